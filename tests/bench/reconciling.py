# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reconciliation alone, in a process of its own: reconciling.py unchanged|conflicts|copies PATHS ROUNDS prints JSON.

unchanged: both listings and the archive are streamed as they would be, made on the fly from one number, 1 % of the
paths changed, which are also measured alone; conflicts: every path has changed on both sides; copies: both versions of
them are kept. What making the listings costs is measured in the same way and taken off. Seconds a path, medians; memory
is the peak of the whole process.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.loopback import PACKAGE

sys.path.insert(0, str(PACKAGE))

from serversync.entry import HERE, THERE, Row
from serversync.reconcile import Owners, Rules, moved, reconcile

NOTHING = Owners({}, {})
ONE_IN = 100


def path(number: int) -> bytes:
    return b"d%05d/f%08d" % (number // 100, number)


def record(number: int, moment: int) -> bytes:
    time = 1_700_000_000 + moment
    return b"f %d %d.1234567890 %d.1234567890 %d 644 0 0 1 " % (number, time, time, 100 + moment)


def listing(paths: int, changed: int, moment: int) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(path, record, more); each ``changed``-th (0: none) is as it has been since the moment."""
    for number in range(paths):
        yield path(number), record(number, moment if changed and number % changed == 0 else 0), b""


def archive(paths: int) -> Iterator[Row]:
    for number in range(paths):
        said = record(number, 0)
        yield Row(path(number), "agreed", said, b"", said, b"")


def rules(conflict: str) -> Rules:
    return Rules(
        direction="both",
        conflict=conflict,
        delete="synced",
        preserve=frozenset(("times", "permissions", "owner", "group", "links")),
        to_there=NOTHING,
        to_here=NOTHING,
        granularity=1,
        skew=0,
        deletions=True,
        reopened=frozenset(),
        one_file=False,
        names={HERE: "site-a", THERE: "hq"},
        name_max=255,
        folding={HERE: frozenset(), THERE: frozenset()},
        verify=False,
        groups={},
        suspicious=frozenset(),
        decided={},
    )


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def drain(stream: Iterable[object]) -> None:
    deque(stream, maxlen=0)


def decide(paths: int, here: int, there: int, conflict: str) -> int:
    triples = moved(listing(paths, here, 7), listing(paths, there, 9), archive(paths))
    return len(reconcile(triples, rules(conflict)).decisions)


def main() -> None:
    kind, paths, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    changed = (ONE_IN, 0) if kind == "unchanged" else (1, 1)
    touched = paths // ONE_IN if kind == "unchanged" else paths
    conflict = "keep_both" if kind == "copies" else "newer_wins"

    def made(paths: int, here: int, there: int) -> None:
        drain(zip(listing(paths, here, 7), listing(paths, there, 9), archive(paths), strict=True))

    def deciding(paths: int, here: int, there: int) -> float:
        decisions = 0

        def whole() -> None:
            nonlocal decisions
            decisions = decide(paths, here, there, conflict)

        took = timed(whole) - timed(lambda: made(paths, here, there))
        if decisions < touched:
            raise SystemExit(f"{decisions} decisions for {touched} paths that moved")
        return took

    found: dict[str, list[float]] = {"unchanged": [], "changed": [], "seconds": []}
    for _round in range(rounds):
        took = deciding(paths, *changed)
        found["seconds"].append(took)
        if kind == "unchanged":
            still = timed(lambda: drain(moved(listing(paths, 0, 0), listing(paths, 0, 0), archive(paths))))
            found["unchanged"].append((still - timed(lambda: made(paths, 0, 0))) / paths)
            # Beside a hundred times as many that are not, their time would be lost in what that differs by.
            took = deciding(touched, 1, 0)
        found["changed"].append(took / touched)
    told = {name: statistics.median(values) for name, values in found.items() if values}
    print(json.dumps({**told, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
