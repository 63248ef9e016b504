# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from serversync.history import PUBLISHED_DAYS, History
from serversync.layout import Layout


def record(run: str, started: str, state: str = "equal") -> dict[str, Any]:
    return {"run": run, "job": "nightly", "started": started, "state": state, "elements": []}


def kept(layout: Layout) -> list[tuple[str, str]]:
    with closing(History(layout)) as history:
        return [(one["run"], one["state"]) for one in history.runs("nightly", 10)]


def test_the_last_run_is_the_last_one_whatever_the_clock_said(tmp_path: Path) -> None:
    layout = Layout("user", tmp_path, tmp_path / "state", tmp_path)
    with closing(History(layout)) as history:
        history.keep(record("b", "2027-01-01T02:30:00.000+00:00"))
        history.keep(record("a", "2026-11-21T02:30:00.000+00:00", "running"))
        history.keep(record("a", "2026-11-21T02:30:00.000+00:00", "failed"))
    assert kept(layout) == [("a", "failed"), ("b", "equal")]


def test_records_of_before_runs_were_numbered_go_on(tmp_path: Path) -> None:
    layout = Layout("user", tmp_path, tmp_path / "state", tmp_path)
    layout.state.mkdir()
    columns = (
        "run TEXT PRIMARY KEY, job TEXT NOT NULL, started TEXT NOT NULL, state TEXT NOT NULL, record TEXT NOT NULL"
    )
    with closing(sqlite3.connect(layout.records)) as database:
        database.execute(f"CREATE TABLE runs ({columns}) WITHOUT ROWID")
        database.execute("CREATE INDEX runs_of_job ON runs (job, started)")
        for run, day in (("y", "2026-11-20"), ("z", "2026-11-19")):
            database.execute(
                "INSERT INTO runs VALUES (?, 'nightly', ?, 'equal', ?)",
                (run, day, f'{{"run": "{run}", "state": "equal"}}'),
            )
        database.commit()
    with closing(History(layout)) as history:
        history.keep(record("a", "2026-11-18T02:30:00.000+00:00"))
    assert [run for run, _state in kept(layout)] == ["a", "y", "z"]


def test_records_go_to_another_name_behind_its_own_configurations(tmp_path: Path) -> None:
    layout = Layout("user", tmp_path, tmp_path / "state", tmp_path)
    with closing(History(layout)) as history:
        history.keep(record("a", "2026-11-18T02:30:00.000+00:00"))
        numbers = [("nightly", 1), ("nightly", 2), ("other", 4)]
        history.database.executemany("INSERT INTO configurations VALUES (?, ?, '')", numbers)
        for run in ("old", "older"):
            history.keep({**record(run, "2026-11-19T02:30:00.000+00:00"), "job": "other"})
        history.rename("nightly", "other")
        assert [run["run"] for run in history.runs("other", 9)] == ["a", "older", "old"]
        assert not history.runs("nightly", 9)
        found = history.database.execute("SELECT job, number FROM configurations ORDER BY number").fetchall()
        assert found == [("other", 4), ("other", 5), ("other", 6)]


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with closing(History(Layout("user", tmp_path, tmp_path / "state", tmp_path))) as history:
        yield history


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "CET-1")
        time.tzset()
        yield
    time.tzset()


NOW = datetime.now(timezone.utc)


def ago(days: int) -> str:
    return (NOW - timedelta(days=days)).date().isoformat()


def ended(run: str, day: str, state: str = "equal", begin: str = "02:30:00", end: str = "02:31:30") -> dict[str, Any]:
    """A run of one element that copied 3 files and deleted one."""
    element = {"created": 2, "updated": 1, "deleted": 1, "bytes": 1000, "conflicts": 4}
    times = {"started": f"{day}T{begin}.000+00:00", "ended": f"{day}T{end}.000+00:00"}
    return {**record(run, "", state), **times, "elements": [element] if state != "skipped" else []}


def test_a_run_counts_once_when_it_is_over(history: History, berlin: None) -> None:
    day = ago(3)
    run = ended("a", day)
    for state in ("running", "waiting", "running", "equal", "equal"):
        history.keep({**run, "state": state, "ended": run["ended"] if state == "equal" else None})
    history.keep(ended("b", day, "failed", end="02:30:10"))
    history.keep(ended("c", day, "skipped", end="02:30:00"))
    history.keep({**ended("d", day), "state": "running"})
    counts = {"equal": 1, "failed": 1, "skipped": 1, "seconds": 100, "longest": 90}
    figures = {"copied": 6, "deleted": 2, "bytes": 2000, "conflicts": 8}
    assert history.days("nightly") == [{"day": day, **counts, **figures}]


def test_a_day_is_one_of_the_servers_calendar(history: History, berlin: None) -> None:
    history.keep(ended("a", ago(3), begin="22:59:59", end="23:30:00"))
    history.keep(ended("b", ago(3), begin="23:00:00", end="23:30:00"))
    assert [(one["day"], one["longest"]) for one in history.days("nightly")] == [(ago(3), 1801), (ago(2), 1800)]


def test_a_clock_that_was_set_back_makes_no_run_shorter_than_nothing(history: History, berlin: None) -> None:
    history.keep(ended("a", ago(3), begin="02:30:00", end="02:00:00"))
    assert "seconds" not in history.days("nightly")[0]


def test_only_days_of_late_are_told(history: History, berlin: None) -> None:
    for days in (PUBLISHED_DAYS + 1, PUBLISHED_DAYS - 2, 0, -3):
        history.keep(ended(f"{days}", ago(days)))
    assert [one["day"] for one in history.days("nightly")] == [ago(PUBLISHED_DAYS - 2), ago(0)]


def test_what_was_kept_before_there_were_days_is_counted_with_the_first_run(history: History, berlin: None) -> None:
    runs = [
        ended("a", ago(9)),
        ended("b", ago(9), "failed"),
        ended("c", ago(8)),
        {**ended("d", ago(8)), "state": "running"},
    ]
    for run in runs:
        history.keep(run)
    history.keep({**ended("e", ago(8)), "job": "other"})
    expected = [*history.days("nightly")]
    history.database.execute("DELETE FROM days")
    history.keep({**runs[-1], "state": "running"})
    assert history.days("nightly") == []
    history.keep(ended("z", ago(1)))
    assert history.days("nightly")[:-1] == expected
    assert [one["day"] for one in history.days("nightly")] == [ago(9), ago(8), ago(1)]


def test_days_go_to_another_name_and_are_added_to_its_own(history: History, berlin: None) -> None:
    history.keep(ended("a", ago(3)))
    history.keep(ended("b", ago(2)))
    history.keep({**ended("c", ago(3), "failed", end="03:30:00"), "job": "other"})
    history.rename("nightly", "other")
    assert history.days("nightly") == []
    first, second = history.days("other")
    assert (first["day"], first["equal"], first["failed"], first["seconds"], first["longest"]) == (
        ago(3),
        1,
        1,
        3690,
        3600,
    )
    assert (second["day"], second["equal"], second["copied"]) == (ago(2), 1, 3)


def test_a_change_of_several_records_is_one(history: History) -> None:
    for run in ("a", "b"):
        history.keep(record(run, "2026-11-18T02:30:00.000+00:00", "waiting"))
    with pytest.raises(ZeroDivisionError), history.changing():
        history.keep(record("a", "2026-11-18T02:30:00.000+00:00", "failed"))
        raise ZeroDivisionError
    assert {run["state"] for run in history.runs("nightly", 9)} == {"waiting"}
    with history.changing():
        for run in history.unfinished("nightly"):
            history.keep({**run, "state": "failed"})
    assert {run["state"] for run in history.runs("nightly", 9)} == {"failed"}
