# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a job is late: it has been without a good run for too long, whatever its runs came to, or if there were none.

What was told of that is noted in a file for each job, so that nobody is told twice, and so that the run after which all
is well again can say so.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from serversync._states import UNFINISHED
from serversync.history import replace
from serversync.layout import Layout, read_plain


class Lateness(NamedTuple):
    """since: when the last good run ended, or when the job was changed, if that is later; well: whether it is the
    former; at: from when on the job is late."""

    since: datetime
    well: bool
    at: datetime


def lateness(known: Mapping[str, Any]) -> Lateness | None:
    """None: the job is paused, or nothing makes it late.

    known: of the job, as it is published: enabled, late_after (seconds, or None), declared (when it was changed last)
    and good (when its last good run ended), times of records, or None.
    """
    times = [datetime.fromisoformat(known[name]) for name in ("good", "declared") if known.get(name)]
    after = known.get("late_after")
    if not known.get("enabled") or not after or not times:
        return None
    since = max(times)
    return Lateness(since, bool(known.get("good")) and since == times[0], since + timedelta(seconds=after))


def is_late(it: Lateness, runs: Iterable[Mapping[str, Any]], now: datetime) -> bool:
    """Whether the job is late, of which these are the runs.

    One that is on, or waits for its next attempt, has its chance: as a rule the schedule has it begin at about the time
    when the job is late. But it has half of the time that makes the job late, and not for ever.
    """
    patience = (it.at - it.since) / 2
    begun = (datetime.fromisoformat(run["started"]) for run in runs if run["state"] in UNFINISHED)
    return now >= it.at and not any(abs(now - started) < patience for started in begun)


class Note(NamedTuple):
    """What is known of a lateness by who looked before.

    since: of ``Lateness``, as it was on record; noticed: when that was seen to be still to come, None where it was not;
    tried: when telling of it was begun; told: when each way in which people are told had taken it.
    """

    since: str
    noticed: str | None
    tried: str | None
    told: dict[str, str]


def noted(layout: Layout, name: str) -> Note | None:
    """None where nothing is noted; and where it cannot be read, for to tell twice is better than not at all."""
    try:
        found = json.loads(read_plain(layout.late / f"{name}.json"))
        times = [found["since"], *filter(None, (found["noticed"], found["tried"])), *found["told"].values()]
        if any(datetime.fromisoformat(one).tzinfo is None for one in times):
            raise ValueError("no time")
        return Note(found["since"], found["noticed"], found["tried"], found["told"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def keep(layout: Layout, name: str, note: Note) -> None:
    replace(layout.late / f"{name}.json", json.dumps(note._asdict(), indent=1) + "\n", 0o600)


def forget(layout: Layout, name: str) -> None:
    # What stays says at the worst once more that all is well again.
    with suppress(OSError):
        (layout.late / f"{name}.json").unlink()


def forget_others(layout: Layout, names: Collection[str]) -> None:
    """What was noted of jobs that are no more."""
    for path in layout.late.glob("*.json"):
        # One that is being renamed is still published by its old name.
        if path.stem not in names and not (layout.public / path.name).exists():
            forget(layout, path.stem)


def as_noticed(it: Lateness, note: Note | None, now: datetime) -> tuple[Lateness, str | None]:
    """A time that is still to come was told by a clock that was set back since: it counts from when that was noticed.

    And when that was, as it is noted.
    """
    if it.since <= now:
        return it, None
    since = now
    if note and note.noticed and note.since == it.since.isoformat():
        # That clock, too, may have been set back.
        since = min(datetime.fromisoformat(note.noticed), now)
    return Lateness(since, it.well, since + (it.at - it.since)), since.isoformat()
