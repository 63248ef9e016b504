# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a run is, on a terminal: a line for each element that is worked on. Nothing of it stays once it is over."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from serversync.counts import Count, Counting, Tell
from serversync.display import safe, size

UNITS = {"scanning": "entries", "appending": "lines"}


class Words(ProgressColumn):
    """A field of the task, as it is: names may hold what rich takes for markup."""

    def __init__(self, field: str, column: Column) -> None:
        super().__init__(column)
        self.field = field

    def render(self, task: Task) -> Text:
        return Text(str(task.fields[self.field]))


class Counts(ProgressColumn):
    """Files, bytes, rate, and the time left where the total is known."""

    def render(self, task: Task) -> Text:
        count: Count = task.fields["count"]
        told = []
        if count.files or count.total_files:
            of = f"/{count.total_files:,}" if count.total_files else ""
            told.append(f"{count.files:,}{of} {UNITS.get(count.phase, 'files')}")
        if count.volume or count.total_volume:
            told.append(f"{size(count.volume)}{f' of {size(count.total_volume)}' if count.total_volume else ''}")
            if task.speed:
                told.append(f"{size(int(task.speed))}/s")
        if task.time_remaining is not None and task.total:
            minutes, seconds = divmod(int(task.time_remaining), 60)
            told.append(f"{minutes}:{seconds:02} left")
        return Text("  ".join(told))


class Display:
    """The lines, from ``with`` to its end; what is printed meanwhile stands above them."""

    def __init__(self, console: Console | None = None) -> None:
        self.progress = Progress(
            Words("path", Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            Words("phase", Column(no_wrap=True, min_width=10)),
            BarColumn(20),
            Counts(Column(no_wrap=True)),
            console=console or Console(highlight=False),
            transient=True,
            expand=True,
        )
        self.lines: dict[str, Line] = {}

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def watch(self, path: str) -> Tell:
        """What an element of this process tells; see counts."""
        line, counting, lock = self.line(path), Counting(), Lock()

        def tell(phase: str, files: int, volume: int) -> None:
            with lock:
                if phase == "done":
                    line.end()
                    return
                count = counting.tell(phase, files, volume)
                if count is not None:
                    line.show(count)

        return tell

    def show(self, counts: Mapping[str, Count]) -> None:
        """What another process has told, by the paths of the elements that are worked on."""
        for path in self.lines.keys() - counts.keys():
            self.lines.pop(path).end()
        for path, count in counts.items():
            self.line(path).show(count)

    def line(self, path: str) -> Line:
        return self.lines.setdefault(path, Line(self.progress, path))


class Line:
    """One element's."""

    def __init__(self, progress: Progress, path: str) -> None:
        self.progress = progress
        self.task: TaskID | None = None
        self.path = safe(path)
        self.phase = ""

    def end(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None

    def show(self, count: Count) -> None:
        begins = count.phase != self.phase
        self.phase = count.phase
        # By what there is more of to tell: a rate of files says little where their sizes are known.
        by_volume = count.total_volume or count.volume
        completed = count.volume if by_volume else count.files
        total = (count.total_volume if by_volume else count.total_files) or None
        fields: dict[str, Any] = {"path": self.path, "phase": count.phase, "count": count}
        if self.task is None:
            self.task = self.progress.add_task("", total=total, completed=completed, **fields)
        elif begins:
            # Shown at once: a phase that is over before the next turn of the clock is seen, too.
            self.progress.reset(self.task, total=total, completed=completed, **fields)
        else:
            self.progress.update(self.task, completed=completed, **fields)
