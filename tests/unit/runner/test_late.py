# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serversync import late
from serversync.late import Lateness, Note
from serversync.layout import Layout

NOON = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)


def at(**span: float) -> datetime:
    return NOON + timedelta(**span)


def known(good: datetime | None = NOON, declared: datetime | None = None, **more: Any) -> dict[str, Any]:
    times = {"good": good and good.isoformat(), "declared": declared and declared.isoformat()}
    return {"enabled": True, "late_after": 2 * 86400, **times, **more}


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (known(), Lateness(NOON, True, at(days=2))),
        (known(late_after=3600), Lateness(NOON, True, at(hours=1))),
        (known(declared=at(days=-9)), Lateness(NOON, True, at(days=2))),
        # Changed, or declared, since: it has not had its time yet.
        (known(declared=at(hours=3)), Lateness(at(hours=3), False, at(days=2, hours=3))),
        (known(good=None, declared=NOON), Lateness(NOON, False, at(days=2))),
        (known(declared=NOON), Lateness(NOON, True, at(days=2))),
        (known(enabled=False), None),
        (known(late_after=None), None),
        (known(good=None), None),
        # As a runner of before has published it.
        ({"good": NOON.isoformat()}, None),
        ({}, None),
    ],
)
def test_when_a_job_is_late(known: dict[str, Any], expected: Lateness | None) -> None:
    assert late.lateness(known) == expected


def run(state: str, **begun: float) -> dict[str, Any]:
    return {"state": state, "started": at(**begun).isoformat()}


TWO_DAYS = Lateness(NOON, True, at(days=2))


@pytest.mark.parametrize(
    ("runs", "now", "expected"),
    [
        ([], at(days=1), False),
        ([], at(days=2, seconds=-1), False),
        ([], at(days=2), True),
        ([run("failed", days=1.9), run("skipped", days=1)], at(days=2), True),
        # One that is on at that time may be the good one, and one that waits for an attempt, too.
        ([run("running", days=1.999)], at(days=2), False),
        ([run("waiting", days=1.999)], at(days=2), False),
        ([run("skipped", days=1.999), run("running", days=1.9)], at(days=2), False),
        # But one that hangs is none.
        ([run("running", days=1.5)], at(days=2.499), False),
        ([run("running", days=1.5)], at(days=2.5), True),
        ([run("running", days=0)], at(days=2), True),
        # Of one that began at a time that is far off, as a clock had it, nothing is known.
        ([run("running", days=2.001)], at(days=2), False),
        ([run("running", days=400)], at(days=2), True),
        # The clock was set back.
        ([], at(days=-400), False),
    ],
)
def test_a_run_that_is_on_has_its_chance(runs: list[dict[str, Any]], now: datetime, expected: bool) -> None:
    assert late.is_late(TWO_DAYS, runs, now) is expected


def note(since: datetime, noticed: datetime | None) -> Note:
    return Note(since.isoformat(), noticed and noticed.isoformat(), None, {})


AHEAD = Lateness(at(days=400), True, at(days=402))


@pytest.mark.parametrize(
    ("it", "note", "since"),
    [
        (TWO_DAYS, None, NOON),
        (TWO_DAYS, note(NOON, at(days=-1)), NOON),
        # Still to come: from now on, and from then on where that was seen before.
        (AHEAD, None, at(days=1)),
        (AHEAD, note(at(days=400), at(hours=3)), at(hours=3)),
        (AHEAD, note(at(days=500), at(hours=3)), at(days=1)),
        (AHEAD, note(at(days=400), None), at(days=1)),
        # What was noted is to come as well.
        (AHEAD, note(at(days=400), at(days=30)), at(days=1)),
    ],
)
def test_a_time_to_come_counts_from_when_it_was_noticed(it: Lateness, note: Note | None, since: datetime) -> None:
    found, noticed = late.as_noticed(it, note, at(days=1))
    assert (found.since, found.at, found.well) == (since, since + timedelta(days=2), it.well)
    assert noticed == (None if it is TWO_DAYS else since.isoformat())


@given(st.lists(st.integers(-2000, 2000), min_size=1, max_size=9), st.integers(-2000, 2000))
def test_whatever_the_clock_does_a_job_is_late_after_its_time_and_not_before(hours: list[int], since: int) -> None:
    """Looks at these hours; those in a row, each later than the one before, last two days before it is late."""
    began = Lateness(at(hours=since), True, at(hours=since + 48))
    kept: Note | None = None
    for hour in hours:
        now = at(hours=hour)
        it, noticed = late.as_noticed(began, kept, now)
        assert it.since <= now
        assert it.at - it.since == timedelta(days=2)
        if noticed:
            kept = Note(began.since.isoformat(), noticed, None, {})
    it, noticed = late.as_noticed(began, kept, now + timedelta(days=2))
    assert late.is_late(it, [], now + timedelta(days=2)) or it.since > now


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout("user", tmp_path, tmp_path, tmp_path)
    made.late.mkdir()
    return made


def test_what_is_noted_is_read_again(layout: Layout) -> None:
    assert late.noted(layout, "nightly") is None
    written = Note(NOON.isoformat(), None, at(days=2).isoformat(), {"mail": at(days=2).isoformat()})
    late.keep(layout, "nightly", written)
    late.keep(layout, "other", written)
    assert late.noted(layout, "nightly") == written
    (layout.late / "odd.json").mkdir()
    late.forget_others(layout, ["nightly"])
    assert (late.noted(layout, "nightly"), late.noted(layout, "other")) == (written, None)
    for _twice in range(2):
        late.forget(layout, "nightly")
        assert late.noted(layout, "nightly") is None


GOOD = {"since": NOON.isoformat(), "noticed": None, "tried": None, "told": {}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({**GOOD, "since": None}),
        json.dumps({**GOOD, "since": 3}),
        json.dumps({**GOOD, "noticed": "today"}),
        json.dumps({**GOOD, "tried": [1]}),
        json.dumps({**GOOD, "told": ["mail"]}),
        json.dumps({**GOOD, "told": {"mail": 1}}),
        json.dumps({**GOOD, "told": {"mail": "2026-11-20T12:00:00"}}),
    ],
)
def test_what_cannot_be_read_says_nothing(layout: Layout, text: str) -> None:
    (layout.late / "nightly.json").write_text(text)
    assert late.noted(layout, "nightly") is None


def test_no_odd_file_is_a_note(layout: Layout) -> None:
    path = layout.late / "nightly.json"
    os.mkfifo(path)
    assert late.noted(layout, "nightly") is None
    path.unlink()
    (layout.late / "real").write_text(json.dumps(GOOD))
    path.symlink_to("real")
    assert late.noted(layout, "nightly") is None
