# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from serversync import place, run
from serversync.counts import Tell
from serversync.failure import Failure
from serversync.job import Element, Job, in_order
from serversync.layout import Layout
from serversync.synchronize import Report


def attempts(monkeypatch: pytest.MonkeyPatch, outcomes: list[Failure | None]) -> tuple[run.Record, list[str]]:
    """A run whose element ends as told, attempt by attempt; its record and the names that the attempts had."""
    names: list[str] = []

    class Synchronized:
        """An element of which only its end is there."""

        def __init__(self, *_arguments: object, run: str, progress: Tell, **_options: object) -> None:
            names.append(run)
            self.progress = progress
            self.report = Report()

        def __enter__(self) -> object:
            return self

        def __exit__(self, *_exception: object) -> None:
            return

        def synchronize(self, _approved: object) -> None:
            failure = outcomes[len(names) - 1]
            if failure:
                raise failure

    document = {
        "name": "nightly",
        "comment": "",
        "partner": {"host": "here", "connection": "local"},
        "settings": {"direction": "to_partner", "exclude": []},
        "on_error": {"retries": 2, "delay": "1h"},
        "elements": [{"path": "/a", "partner_path": "/b"}],
        "before": [],
        "after": [],
        "limits": {"parallel": 1, "timeout": None},
    }
    waits: list[float] = []
    monkeypatch.setattr(run, "engine", lambda _element: Synchronized)
    layout = Layout("user", Path("/c"), Path("/s"), Path("/r"))
    said: dict[str, Any] = {"trigger": "manual", "only": None, "approve": None, "log": lambda _line: None}
    made = run.Run(layout, Job(document, ""), **said, wait=waits.append)
    record = made.attempt_all()
    assert waits == [3600.0] * (len(names) - 1)
    return record, names


LOST = Failure("connection", "gone", transient=True)
REFUSED = Failure("login", "no")
BUSY = Failure("running", "in use", transient=True)


def test_each_attempt_keeps_what_it_displaces_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    record, names = attempts(monkeypatch, [LOST, LOST, None])
    assert names == [record["run"], f"{record['run']}.2", f"{record['run']}.3"]
    assert all(place.WORD.fullmatch(name) and place.started(name) < float("inf") for name in names)


@pytest.mark.parametrize(
    ("outcomes", "states", "state"),
    [
        ([None], ["equal"], "equal"),
        ([LOST, None], ["failed", "equal"], "equal"),
        ([LOST, REFUSED], ["failed", "failed"], "failed"),
        ([REFUSED], ["failed"], "failed"),
        ([LOST, LOST, LOST], ["failed", "failed", "failed"], "failed"),
        ([BUSY, None], ["skipped", "equal"], "equal"),
        ([BUSY, BUSY, BUSY], ["skipped", "skipped", "skipped"], "skipped"),
        ([LOST, BUSY, REFUSED], ["failed", "skipped", "failed"], "failed"),
    ],
)
def test_attempts_go_on_as_long_as_another_one_can_help(
    outcomes: list[Failure | None], states: list[str], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _names = attempts(monkeypatch, outcomes)
    assert [attempt["state"] for attempt in record["attempts"]] == states
    assert record["state"] == state
    last = outcomes[-1]
    assert record["error"] == (last.as_dict() if last else None)


COUPLED = [
    Element(0, "/c", "/c", requires=["/a", "/b"]),
    Element(1, "/a", "/a"),
    Element(2, "/b", "/b", requires=["/a"]),
]


def test_elements_go_behind_what_they_require() -> None:
    assert in_order(COUPLED) == [1, 2, 0]
    # what is required and is no part of the run is waited for by nobody
    assert in_order([COUPLED[2], COUPLED[0]]) == [0, 1]
    assert in_order([Element(number, str(number), "") for number in range(3)]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("errors", "transient"),
    [([LOST, None], True), ([LOST, BUSY], True), ([LOST, REFUSED], False), ([None, REFUSED], False)],
)
def test_what_was_left_alone_is_tried_again_where_all_that_it_requires_is(
    errors: list[Failure | None], transient: bool
) -> None:
    entries = [
        {"path": path, "state_after": "failed" if error else "equal", "error": error and error.as_dict(), "guards": []}
        for path, error in zip(("/a", "/b"), errors)
    ]
    unwell = run.unfit(COUPLED[0], entries)
    assert len(unwell) == sum(error is not None for error in errors)
    assert run.required(COUPLED[0], unwell).transient is transient
    assert run.unfit(COUPLED[1], entries) == []


def test_the_lock_is_held_as_long_as_what_was_started_lives(tmp_path: Path) -> None:
    layout = Layout("user", tmp_path, tmp_path, tmp_path)
    job = Job({"name": "nightly"}, "")
    with run.locked(layout, job.name) as free:
        assert free
        # In the place of an rsync whose runner is killed.
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    with run.locked(layout, job.name) as free:
        assert not free
    child.communicate()
    with run.locked(layout, job.name) as free:
        assert free
