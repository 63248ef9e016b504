# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serversync.entry import HERE, THERE
from serversync.failure import Failure
from serversync.job import Element, Job
from serversync.layout import Layout
from serversync.synchronize import Synchronization


class FakeServer:
    """A server of which only its answers are there."""

    remote_shell = None

    def __init__(self, kind: str = "directory", privileged: bool = False, **facts: Any) -> None:
        self.facts = {"kind": kind, "readable": True, "writable": True, "reason": "", **facts}
        self.privileged = privileged

    def look(self, path: str) -> dict[str, Any]:
        return self.facts

    def address(self, path: str) -> str:
        return path


def element(here: FakeServer, there: FakeServer, direction: str, scope: str = "user") -> Synchronization:
    document = {"name": "nightly", "partner": {"host": "hq", "port": 22, "connection": "ssh"}}
    layout = Layout(scope, Path("/c"), Path("/s"), Path("/r"))
    servers: Any = {HERE: here, THERE: there}
    one = Element(0, "/a", "/b", settings={"direction": direction})
    return Synchronization(layout, Job(document, ""), one, servers, run="run", look=True)


@pytest.mark.parametrize(
    ("direction", "here", "there", "field", "said"),
    [
        ("to_partner", {"kind": "missing"}, {}, "elements[0].path", "/a does not exist on this server, the source"),
        ("from_partner", {}, {"kind": "missing"}, "elements[0].partner_path", "/b does not exist on hq:22, the source"),
        ("to_partner", {"readable": False}, {}, "elements[0].path", "/a is not readable on this server"),
        ("to_partner", {}, {"writable": False}, "elements[0].partner_path", "/b is not writable on hq:22"),
        ("both", {"readable": False}, {}, "elements[0].path", "/a is not readable on this server"),
        ("both", {}, {"writable": False}, "elements[0].partner_path", "/b is not writable on hq:22"),
        ("both", {"kind": "missing"}, {"kind": "missing"}, "elements[0].path", "/a does not exist on this server"),
        ("to_partner", {}, {"kind": "file"}, "elements[0].partner_path", "is a file on hq:22, but /a is a directory"),
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
        element(FakeServer(**here), FakeServer(**there), direction).check()
    assert raised.value.field == field
    assert said in raised.value.message
    assert not raised.value.transient


def test_the_sandbox_cannot_make_a_missing_target_of_this_server() -> None:
    sides = (FakeServer(kind="missing"), FakeServer(kind="file"))
    assert element(*sides, "from_partner", scope="user").check() == "file"
    with pytest.raises(Failure, match="create it empty, then apply the playbook again"):
        element(*sides, "from_partner", scope="system").check()
