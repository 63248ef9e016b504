# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from serversync import late, status
from serversync._states import state, unresolved
from serversync.history import published_names
from serversync.layout import Layout


def run(job: str, **elements: str) -> dict[str, Any]:
    return {"state": job, "elements": [{"path": path, "state_after": after} for path, after in elements.items()]}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], None),
        ([run("equal", a="equal", b="equal")], "equal"),
        ([run("failed", a="equal", b="failed")], "failed"),
        # A run of one element says nothing of the other.
        ([run("equal", a="equal"), run("failed", a="equal", b="failed")], "failed"),
        ([run("equal", b="equal"), run("failed", a="equal", b="failed")], "equal"),
        ([run("equal", a="equal")], None),
        ([run("skipped"), run("equal", a="equal", b="equal")], "skipped"),
        ([run("running", a="equal"), run("failed", a="failed")], "running"),
        ([run("skipped"), run("skipped"), run("running", a="equal"), run("failed", a="failed")], "running"),
        ([run("skipped"), run("failed", a="failed"), run("running")], "skipped"),
        ([run("skipped"), run("waiting", a="failed"), run("equal", a="equal")], "waiting"),
        ([run("equal", a="equal", b="equal"), run("waiting", a="failed", b="equal")], "equal"),
        ([run("skipped", a="equal", b="skipped"), run("equal", a="equal", b="equal")], "skipped"),
        # What was skipped is as it was found before.
        (
            [run("equal", b="equal"), run("skipped", a="skipped", b="equal"), run("failed", a="failed", b="equal")],
            "failed",
        ),
        ([run("failed", a="skipped", b="failed"), run("equal", a="equal", b="equal")], "failed"),
        ([run("equal", a="equal"), run("different", a="equal", b="different")], "different"),
        # A run of all that died, then one of one element.
        (
            [run("equal", a="equal"), run("failed", a="failed", b="failed"), run("equal", a="equal", b="equal")],
            "failed",
        ),
        # An element that is no longer declared counts no more.
        ([run("equal", a="equal", b="equal"), run("failed", c="failed")], "equal"),
    ],
)
def test_the_state_is_that_of_all_declared_elements(runs: list[dict[str, Any]], expected: str | None) -> None:
    assert state(runs, ["a", "b"]) == expected


def test_what_stands_is_that_of_the_last_run_that_looked_through_an_element() -> None:
    def entry(path: str, after: str, unresolved: int = 0) -> dict[str, Any]:
        return {"path": path, "state_after": after, "standing": {"unresolved": unresolved} if unresolved else {}}

    runs = [
        {"state": "skipped", "elements": [entry("a", "skipped"), entry("b", "skipped")]},
        {"state": "waiting", "elements": [entry("a", "failed"), entry("b", "different", 1)]},
        {"state": "failed", "elements": [entry("a", "failed"), entry("b", "different", 2)]},
        {"state": "different", "elements": [entry("a", "different", 3), entry("b", "equal")]},
    ]
    assert [unresolved(runs, paths) for paths in (["a"], ["b"], ["a", "b"], None, ["c"])] == [3, 1, 4, 4, 0]


@pytest.mark.parametrize(
    ("noticed", "expected"), [(None, False), (timedelta(hours=-1), False), (timedelta(days=-3), True)]
)
def test_a_clock_that_was_set_back_keeps_no_job_from_being_late(
    tmp_path: Path, noticed: timedelta | None, expected: bool
) -> None:
    """The last good run is noted as one of the year after next; what counts is when that was seen to be so."""
    layout = Layout("user", tmp_path, tmp_path / "state", tmp_path)
    now = datetime.now(timezone.utc)
    good = (now + timedelta(days=700)).isoformat()
    layout.public.mkdir(parents=True)
    told = {"runs": [], "good": good, "declared": None, "enabled": True, "late_after": 2 * 86400}
    (layout.public / "demo.json").write_text(json.dumps(told))
    if noticed:
        layout.late.mkdir(parents=True)
        late.keep(layout, "demo", late.Note(good, (now + noticed).isoformat(), None, {}))
    row = status.row(layout, "demo", None)
    assert row["late"] == expected
    assert datetime.fromisoformat(row["late_at"]) < now + timedelta(days=3)


def test_who_may_not_see_the_records_is_not_told_that_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout("system", tmp_path, tmp_path / "state", tmp_path)
    assert published_names(layout) == []
    layout.public.mkdir(parents=True)
    for name in ("b.json", "a.b.json", ".b.json.x1y2z3", "x.prom"):
        (layout.public / name).touch()
    assert published_names(layout) == ["a.b", "b"]

    def refuse(_path: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(layout.public))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PermissionError):
        published_names(layout)
