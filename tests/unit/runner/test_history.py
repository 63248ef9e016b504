# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from serversync.history import History
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
