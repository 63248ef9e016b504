# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stops a run before its first change, and how a person lets it go on."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from serversync import place, run
from serversync import tree as trees

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


@pytest.mark.parametrize("direction", ["to_partner", "from_partner"])
def test_a_file_for_which_there_is_no_room_is_not_begun(pair: Pair, direction: str) -> None:
    source, target, server = pair.path, pair.partner_path, f"127.0.0.1:{pair.there.port}"
    if direction == "from_partner":
        source, target, server = target, source, "this server"
        source.mkdir()
        target.rmdir()
    free = os.statvfs(target.parent)
    with (source / "image").open("wb") as stream:
        stream.truncate(free.f_bavail * free.f_frsize + (1 << 30))
        stream.write(b"data")
    (source / "plc.s7").write_text("x")
    pair.declare(settings=settings(direction=direction, preserve=["times"]))
    # Of a target that is yet to be made it is the room of where it will be.
    assert "has too little room" in planned(pair)[0]
    [guard] = guards(pair.here.run("nightly", code=3))
    assert guard.startswith(f"{target} on {server} has too little room: ")
    assert "GiB would arrive" in guard
    assert guard.endswith("make room there, or see keep_versions")
    assert tree(target) == {}
    # Holes that stay holes need none.
    pair.declare(settings=settings(direction=direction, preserve=["times", "sparse"]))
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


@pytest.mark.parametrize(("direction", "side"), [("to_partner", 0), ("from_partner", 1), ("both", 0), ("both", 1)])
def test_a_file_found_empty_without_its_time_moving_is_a_conflict_whatever_the_rule(
    pair: Pair, direction: str, side: int
) -> None:
    pair.partner_path.mkdir()
    source, target = ((pair.path, pair.partner_path)[number] / "plc.s7" for number in (side, 1 - side))
    source.write_text("program")
    rule = ("this_server_wins", "partner_wins")[side]
    pair.declare(settings=settings(direction=direction, conflict=rule))
    assert pair.here.run("nightly")["state"] == "equal"
    when = source.stat().st_mtime_ns
    source.write_text("")
    os.utime(source, ns=(when, when))
    for _run in range(2):
        record = pair.here.run("nightly", code=3)
        assert record["elements"][0]["standing"] == {"unresolved": 1}
        assert target.read_text() == "program"
    # Whoever touches it has not said that it is meant.
    source.touch()
    assert pair.here.run("nightly", code=3)["state"] == "different"
    pair.here.serversync("resolve", "nightly", "plc.s7", "--use", ("this_server", "partner")[side])
    assert target.read_text() == ""
    assert pair.here.run("nightly")["state"] == "equal"


def test_one_that_has_contents_again_goes_by_rule(pair: Pair) -> None:
    (pair.path / "plc.s7").write_text("program")
    pair.declare()
    pair.here.run("nightly")
    when = (pair.path / "plc.s7").stat().st_mtime_ns
    (pair.path / "plc.s7").write_text("")
    os.utime(pair.path / "plc.s7", ns=(when, when))
    pair.here.run("nightly", code=3)
    (pair.path / "plc.s7").write_text("mended")
    assert pair.here.run("nightly")["state"] == "equal_with_warnings"
    assert (pair.partner_path / "plc.s7").read_text() == "mended"


def test_zeros_are_as_good_as_nothing(pair: Pair) -> None:
    for name in ("plc.s7", "other"):
        (pair.path / name).write_bytes(b"program" * 1000)
    pair.declare()
    pair.here.run("nightly")
    for name, content in (("plc.s7", bytes(3_000_000)), ("other", bytes(5000) + b"x")):
        when = (pair.path / name).stat().st_mtime_ns
        (pair.path / name).write_bytes(content)
        os.utime(pair.path / name, ns=(when, when))
    record = pair.here.run("nightly", code=3)
    assert record["elements"][0]["standing"] == {"unresolved": 1}
    assert (pair.partner_path / "plc.s7").stat().st_size == 7000
    assert (pair.partner_path / "other").stat().st_size == 5001


def test_what_was_emptied_on_purpose_is_no_conflict(local: Local) -> None:
    local.declare()
    (local.path / "log").write_text("lines")
    local.run()
    (local.path / "log").write_text("")
    assert local.run()["state"] == "equal"
    assert (local.partner_path / "log").read_text() == ""


def test_what_was_emptied_last_before_the_server_was_started_is_one(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.declare()
    (local.path / "plc").write_text("program")
    (local.path / "log").write_text("lines")
    local.run()
    (local.path / "plc").write_text("")
    monkeypatch.setattr(trees, "booted", lambda: (local.path / "plc").stat().st_ctime + 3600)
    assert local.run()["elements"][0]["standing"] == {"unresolved": 1}
    assert (local.partner_path / "plc").read_text() == "program"


@pytest.mark.parametrize("direction", ["to_partner", "from_partner", "both"])
def test_many_files_that_become_zeros_stop_the_run(local: Local, direction: str) -> None:
    local.declare(direction=direction)
    source, target = local.path, local.partner_path
    if direction == "from_partner":
        source, target = target, source
    for number in range(30):
        (source / f"plc{number}").write_text("program")
    local.run()
    for number in range(12):
        (source / f"plc{number}").write_bytes(bytes(7 if number % 2 else 0))
    assert guards(local.run()) == ["12 files would become empty or zeros, more than 10: contents look lost"]
    assert (target / "plc0").read_text() == "program"


@pytest.mark.parametrize("side", [0, 1])
def test_an_emptied_replica_stops_both_directions(local: Local, side: int) -> None:
    local.declare(direction="both", max_delete="100%")
    (local.path / "plc").write_text("program")
    local.run()
    emptied, other = (local.path, local.partner_path)[side], (local.path, local.partner_path)[1 - side]
    (emptied / "plc").unlink()
    assert "is empty: it looks unmounted" in guards(local.run())[0]
    assert (other / "plc").exists()


@pytest.mark.parametrize("direction", ["to_partner", "from_partner"])
def test_an_empty_source_of_which_no_archive_knows_does_not_stand_against_what_its_target_was_given(
    local: Local, direction: str
) -> None:
    """Another machine may be in its place, or in that of the server with the job."""
    local.declare(direction=direction, delete="never")
    source, target = local.path, local.partner_path
    if direction == "from_partner":
        source, target = target, source
    # In the first run of all an empty one is nothing special.
    (target / "older").write_text("program")
    assert guards(local.run()) == []
    (source / "plc").write_text("program")
    source.chmod(0o750)
    assert guards(local.run()) == []
    shutil.rmtree(source)
    source.mkdir(mode=0o700)
    shutil.rmtree(local.layout.state / "archives")
    record = local.run()
    where = {True: "this server", False: "localhost"}
    [guard] = guards(record)
    assert guard == (
        f"{source} on {where[source == local.path]} is empty, and {target} on {where[target == local.path]} has what "
        "earlier runs gave it: it looks unmounted, or lost"
    )
    assert (stat.S_IMODE(target.stat().st_mode), (target / "plc").read_text()) == (0o750, "program")
    assert guards(local.run(record["plan"])) == []
    assert (target / "plc").read_text() == "program"


def test_deletions_of_both_sides_count_together(local: Local) -> None:
    local.declare(direction="both", max_delete="5")
    for number in range(20):
        (local.path / f"plc{number}").write_text("program")
    local.run()
    for number in range(6):
        ((local.path, local.partner_path)[number % 2] / f"plc{number}").unlink()
    assert guards(local.run()) == ["6 paths would be deleted, more than the 5 that max_delete (5) allows"]
