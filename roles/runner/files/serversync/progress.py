# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a run is, on a terminal: a line for each element that is worked on. Nothing of it stays when the run is over.

``watch`` gives what an element tells: a phase with files and bytes so far. ``(phase, 0, 0)`` begins a stretch, whose
counts add to those of the phase's earlier ones; ``to copy`` and ``to commit`` say how much there is; ``done`` ends the
element.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from serversync.display import safe, size

TOTALS = {"to copy": "copying", "to commit": "committing"}
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
        phase, files, volume = task.fields["phase"], task.fields["files"], task.fields["volume"]
        all_files, all_bytes = task.fields["totals"].get(phase, (0, 0))
        told = []
        if files or all_files:
            told.append(f"{files:,}{f'/{all_files:,}' if all_files else ''} {UNITS.get(phase, 'files')}")
        if volume or all_bytes:
            told.append(f"{size(volume)}{f' of {size(all_bytes)}' if all_bytes else ''}")
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

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def watch(self, path: str) -> Callable[[str, int, int], None]:
        return Line(self.progress, path).tell


class Line:
    """One element's."""

    def __init__(self, progress: Progress, path: str) -> None:
        self.progress = progress
        self.lock = Lock()
        self.task: TaskID | None = None
        self.path = safe(path)
        self.phase = ""
        self.totals: dict[str, tuple[int, int]] = {}
        # Of the phase, before this stretch and with it.
        self.before = self.now = (0, 0)

    def tell(self, phase: str, files: int, volume: int) -> None:
        with self.lock:
            if phase == "done":
                self.end()
            elif phase in TOTALS:
                self.totals[TOTALS[phase]] = (files, volume)
            else:
                self.show(phase, files, volume)

    def end(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None

    def show(self, phase: str, files: int, volume: int) -> None:
        begins = phase != self.phase
        if begins:
            self.phase, self.before = phase, (0, 0)
        elif (files, volume) == (0, 0):
            self.before = self.now
        self.now = files, volume = self.before[0] + files, self.before[1] + volume
        all_files, all_bytes = self.totals.get(phase, (0, 0))
        # By what there is more of to tell: a rate of files says little where their sizes are known.
        completed, total = (volume, all_bytes) if all_bytes or volume else (files, all_files)
        fields: dict[str, Any] = {
            "path": self.path,
            "phase": phase,
            "files": files,
            "volume": volume,
            "totals": self.totals,
        }
        if self.task is None:
            self.task = self.progress.add_task("", total=total or None, completed=completed, **fields)
        elif begins:
            # Shown at once: a phase that is over before the next turn of the clock is seen, too.
            self.progress.reset(self.task, total=total or None, completed=completed, **fields)
        else:
            self.progress.update(self.task, completed=completed, **fields)
