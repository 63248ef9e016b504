# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serversync import rsync, run
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

    def prepare(self, path: str, kind: str, element: str, run: str) -> str:
        return ".serversync/x/versions/y"

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
def test_what_cannot_be_synchronised_says_which_side(
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
