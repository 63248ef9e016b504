# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far the elements of a run are, from what they tell, and as another process is told of it.

An element tells its phase with files and bytes so far. ``(phase, 0, 0)`` begins a stretch, whose counts add to those of
the phase's earlier ones; ``to copy`` and ``to commit`` say how much there is; ``done`` ends the element.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from serversync.history import replace

Tell = Callable[[str, int, int], None]
# By its path an element gets what it tells.
Watch = Callable[[str], Tell]
TOTALS = {"to copy": "copying", "to commit": "committing"}
# Seconds between two looks at what is published.
INTERVAL = 0.2
# Elements that are told of: a terminal has no more lines. Characters of a phase.
MOST_ELEMENTS, LONGEST_PHASE = 100, 100


class Count(NamedTuple):
    """total_files, total_volume: of the phase, 0 where that is not known; volume: bytes."""

    phase: str
    files: int
    volume: int
    total_files: int = 0
    total_volume: int = 0


class Counting:
    """One element's."""

    def __init__(self) -> None:
        self.phase = ""
        self.totals: dict[str, tuple[int, int]] = {}
        # Of the phase, before this stretch and with it.
        self.before = self.now = (0, 0)

    def tell(self, phase: str, files: int, volume: int) -> Count | None:
        """What there is to show from now on; None: nothing new."""
        if phase in TOTALS:
            self.totals[TOTALS[phase]] = (files, volume)
            return None
        if phase != self.phase:
            self.phase, self.before = phase, (0, 0)
        elif (files, volume) == (0, 0):
            self.before = self.now
        self.now = self.before[0] + files, self.before[1] + volume
        return Count(phase, *self.now, *self.totals.get(phase, (0, 0)))


class Publisher:
    """Has a file say how far the elements are that are worked on: a phase at once, counts every INTERVAL."""

    def __init__(self, path: Path, identity: str) -> None:
        """identity: of the request, by which who made it knows that the file is of it."""
        self.path = path
        self.identity = identity
        self.lock = Lock()
        self.elements: dict[str, Count] = {}
        self.last = 0.0

    def watch(self, element: str) -> Tell:
        counting = Counting()

        def tell(phase: str, files: int, volume: int) -> None:
            with self.lock:
                before = self.elements.get(element)
                if phase == "done":
                    self.elements.pop(element, None)
                else:
                    count = counting.tell(phase, files, volume)
                    if count is None:
                        return
                    self.elements[element] = count
                now = time.monotonic()
                if before is None or before.phase != phase or now - self.last >= INTERVAL:
                    self.last = now
                    self.publish()

        return tell

    def publish(self) -> None:
        # No run fails for what a terminal shows.
        with suppress(OSError):
            replace(self.path, json.dumps({"id": self.identity, "elements": self.elements}), 0o600)


def published(document: Mapping[str, Any], identity: str) -> dict[str, Count]:
    """By their paths the elements that are worked on; none where it is no document of the Publisher's."""
    elements = document.get("elements")
    if document.get("id") != identity or not isinstance(elements, dict) or len(elements) > MOST_ELEMENTS:
        return {}
    with suppress(TypeError, ValueError):
        return {path: counted(*count) for path, count in elements.items()}
    return {}


def counted(phase: str, *numbers: int) -> Count:
    count = Count(phase, *numbers)
    plain = isinstance(phase, str) and len(phase) <= LONGEST_PHASE
    if not plain or not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in numbers):
        raise ValueError(f"{count!r:.200} is no count")
    return count
