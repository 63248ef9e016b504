# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serversync import place, rsync, run
from serversync.failure import Failure
from serversync.job import Element, Job
from serversync.layout import Layout


class FakeReplica:
    """A replica of which only its answers are there."""

    remote_shell = None

    def __init__(self, kind: str = "directory", privileged: bool = False, **facts: Any) -> None:
        self.facts = {"kind": kind, "readable": True, "writable": True, "reason": "", **facts}
        self.privileged = privileged

    def look(self, path: str) -> dict[str, Any]:
        return self.facts

    def prepare(self, path: str, kind: str, element: str, run: str) -> dict[str, str]:
        return {"versions": ".serversync/x/versions/y", "temporary": ".serversync/x/temporary"}

    def address(self, path: str) -> str:
        return path


def transfer(here: FakeReplica, there: FakeReplica, direction: str, scope: str = "user") -> run.Transfer:
    document = {
        "name": "nightly",
        "partner": {"host": "hq", "port": 22, "connection": "ssh"},
        "settings": {"direction": direction, "exclude": []},
    }
    layout = Layout(scope, Path("/c"), Path("/s"), Path("/r"))
    sides: Any = SimpleNamespace(local=here, partner=there)
    return run.Transfer(layout, Job(document, ""), Element(0, "/a", "/b"), sides)


@pytest.mark.parametrize("direction", ["to_partner", "from_partner"])
@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_the_targets_process_decides_whether_owners_are_kept(
    direction: str, here: bool, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def execute(argv: list[str], _on_change: object) -> rsync.Outcome:
        called.append(argv)
        return rsync.Outcome()

    monkeypatch.setattr(rsync, "execute", execute)
    moved = transfer(FakeReplica(privileged=here), FakeReplica(privileged=there), direction)
    moved.move("run", False, None)
    assert ("--super" in called[0]) is (there if direction == "to_partner" else here)


@pytest.mark.parametrize(
    ("direction", "here", "there", "field", "said"),
    [
        ("to_partner", {"kind": "missing"}, {}, "elements[0].path", "/a does not exist on this server, the source"),
        ("from_partner", {}, {"kind": "missing"}, "elements[0].partner_path", "/b does not exist on hq:22, the source"),
        ("to_partner", {"readable": False}, {}, "elements[0].path", "/a is not readable on this server"),
        ("to_partner", {}, {"writable": False}, "elements[0].partner_path", "/b is not writable on hq:22"),
        ("to_partner", {}, {"kind": "file"}, "elements[0].partner_path", "is a file on hq:22, but the source is a dir"),
        ("from_partner", {"kind": "link"}, {}, "elements[0].path", "/a on this server is a symbolic link"),
        ("to_partner", {"kind": "other"}, {}, "elements[0].path", "is neither a directory nor a file"),
        (
            "to_partner",
            {},
            {"kind": "blocked", "reason": "why"},
            "elements[0].partner_path",
            "cannot be reached on hq:22: why",
        ),
        (
            "to_partner",
            {},
            {"kind": "missing", "writable": False},
            "elements[0].partner_path",
            "/b does not exist on hq:22",
        ),
    ],
)
def test_what_cannot_be_synchronized_says_which_side(
    direction: str, here: dict[str, Any], there: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(Failure) as raised:
        transfer(FakeReplica(**here), FakeReplica(**there), direction).check()
    assert raised.value.field == field
    assert said in raised.value.message
    assert not raised.value.transient


def test_the_sandbox_cannot_make_a_missing_target_of_this_server() -> None:
    sides = (FakeReplica(kind="missing"), FakeReplica(kind="file"))
    assert transfer(*sides, "from_partner", scope="user").check() == "file"
    with pytest.raises(Failure, match="create it empty, then apply the playbook again"):
        transfer(*sides, "from_partner", scope="system").check()


def attempts(monkeypatch: pytest.MonkeyPatch, outcomes: list[Failure | None]) -> tuple[run.Record, list[str]]:
    """A run whose element ends as told, attempt by attempt; its record and the names that the attempts had."""
    names: list[str] = []

    def move(_self: object, name: str, _dry_run: bool, _on_change: object) -> rsync.Outcome:
        names.append(name)
        failure = outcomes[len(names) - 1]
        if failure:
            raise failure
        return rsync.Outcome()

    document = {
        "name": "nightly",
        "comment": "",
        "partner": {"host": "here", "connection": "local"},
        "settings": {"direction": "to_partner", "exclude": []},
        "on_error": {"retries": 2, "delay": "1h"},
        "elements": [{"path": "/a", "partner_path": "/b"}],
    }
    waits: list[float] = []
    monkeypatch.setattr(run.Transfer, "move", move)
    layout = Layout("user", Path("/c"), Path("/s"), Path("/r"))
    made = run.Run(layout, Job(document, ""), trigger="manual", only=None, log=lambda _line: None, wait=waits.append)
    record = made.carry_out()
    assert waits == [3600.0] * (len(names) - 1)
    return record, names


LOST = Failure("connection", "gone", transient=True)
REFUSED = Failure("login", "no")


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


def test_the_lock_is_held_as_long_as_what_was_started_lives(tmp_path: Path) -> None:
    layout = Layout("user", tmp_path, tmp_path, tmp_path)
    job = Job({"name": "nightly"}, "")
    with run.locked(layout, job) as free:
        assert free
        # In the place of an rsync whose runner is killed.
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    with run.locked(layout, job) as free:
        assert not free
    child.communicate()
    with run.locked(layout, job) as free:
        assert free
