# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stops a run before its first change, and how a person lets it go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from serversync import place, run

from tests.integration.conftest import Pair, tree
from tests.integration.test_unfinished import Local, local

__all__ = ["local"]


def settings(**options: Any) -> dict[str, Any]:
    return {"direction": "to_partner", "exclude": [], "delete": "synced", **options}


def guards(record: run.Record) -> list[str]:
    [element] = record["elements"]
    return list(element["guards"])


def planned(pair: Pair) -> list[str]:
    [element] = json.loads(pair.here.serversync("plan", "nightly", "--json").stdout)["elements"]
    return list(element["guards"])


def test_a_file_for_which_there_is_no_room_is_not_begun(pair: Pair) -> None:
    free = os.statvfs(pair.partner_path.parent)
    with (pair.path / "image").open("wb") as stream:
        stream.truncate(free.f_bavail * free.f_frsize + (1 << 30))
        stream.write(b"data")
    (pair.path / "plc.s7").write_text("x")
    pair.declare(settings=settings(preserve=["times"]))
    # Of a target that is yet to be made it is the room of where it will be.
    assert "has too little room" in planned(pair)[0]
    [guard] = guards(pair.here.run("nightly", code=3))
    assert guard.startswith(f"{pair.partner_path} on 127.0.0.1:{pair.there.port} has too little room: ")
    assert "GiB would arrive" in guard
    assert guard.endswith("make room there, or see keep_versions")
    assert tree(pair.partner_path) == {}
    # Holes that stay holes need none.
    pair.declare(settings=settings(preserve=["times", "sparse"]))
    assert planned(pair) == []


class Disk:
    """The file system of a target, as far as it tells how much is free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = {"free_bytes": 1 << 40, "free_inodes": 1 << 30, "total_bytes": 1 << 40}
        self.versions: Path | None = None
        monkeypatch.setattr(place, "space", self.space)

    def space(self, _descriptor: int) -> dict[str, int]:
        if self.versions and list(self.versions.glob(".serversync/*/versions/*/plc")):
            return {**self.free, "free_bytes": 0}
        return self.free


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("what", ["free_bytes", "free_inodes"])
def test_who_knows_better_lets_it_go(local: Local, disk: Disk, what: str) -> None:
    local.declare()
    for number in range(3):
        (local.path / f"plc{number}").write_text("x")
    disk.free[what] = 2
    record = local.run()
    assert (record["state"], len(guards(record))) == ("different", 1)
    assert not list(local.partner_path.glob("plc*"))
    assert local.run(approve=record["plan"])["state"] == "equal"
    assert len(list(local.partner_path.glob("plc*"))) == 3


def test_a_plan_that_was_shown_with_room_for_it_passes_no_lack_of_it(local: Local, disk: Disk) -> None:
    local.declare(max_delete="0")
    for number in range(3):
        (local.path / f"plc{number}").write_text("x")
    local.run()
    (local.path / "plc0").unlink()
    (local.path / "new").write_text("new")
    record = local.run()
    assert "would be deleted" in guards(record)[0]
    disk.free["free_bytes"] = 2
    assert "too little room" in guards(local.run(approve=record["plan"]))[0]
    assert (local.partner_path / "plc0").exists()


def test_versions_that_are_due_make_room_first(local: Local, disk: Disk) -> None:
    local.declare(keep_versions="7d")
    (local.path / "plc").write_text("old")
    local.run()
    (local.path / "plc").write_text("newer")
    local.run()
    disk.versions = local.partner_path
    (local.path / "plc").write_text("the newest")
    assert "too little room" in guards(local.run())[0]
    local.declare(keep_versions="0s")
    assert local.run()["state"] == "equal"
    assert (local.partner_path / "plc").read_text() == "the newest"


def test_two_targets_on_one_file_system_need_room_for_both(local: Local, disk: Disk) -> None:
    local.declare(direction="both")
    (local.path / "here").write_text("12345")
    (local.partner_path / "there").write_text("12345")
    disk.free["free_bytes"] = 9
    assert len(guards(local.run())) == 2
    disk.free["free_bytes"] = 10
    assert local.run()["state"] == "equal"
