# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small files that come from runner to runner are what rsync would have made of them, and what the plan said."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from serversync import propagate, synchronize

from tests.integration.test_unfinished import Local
from tests.loopback import Pair, Server, tree

LONG_AGO = 1_000_000_000


@pytest.fixture
def local(server: Server, tmp_path: Path) -> Local:
    return Local(server, tmp_path)


@pytest.fixture
def before_gathering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has something done once, after the contents of the first piece have come."""

    def when(edit: Callable[[], object]) -> None:
        gather = propagate.Propagation.gather
        edits = [edit]

        def edited(self: propagate.Propagation) -> None:
            while edits:
                edits.pop()()
            gather(self)

        monkeypatch.setattr(propagate.Propagation, "gather", edited)

    return when


def test_a_new_directory_in_which_names_are_linked_has_its_time(pair: Pair) -> None:
    directory = pair.path / "d"
    directory.mkdir()
    (directory / "a").write_text("x")
    os.link(directory / "a", directory / "b")
    os.utime(directory, (LONG_AGO, LONG_AGO))
    pair.declare()
    pair.here.run("nightly")
    assert (pair.partner_path / "d").stat().st_mtime == LONG_AGO
    assert (pair.partner_path / "d" / "a").stat().st_nlink == 2


@pytest.mark.parametrize("size", [5, 400_000])
def test_without_times_attributes_come_and_files_have_their_source_s_time(local: Local, size: int) -> None:
    (local.path / "d").mkdir()
    for path in (local.path / "d" / "a", local.path / "a"):
        path.write_bytes(b"x" * size)
        os.setxattr(path, "user.note", b"1")
        os.utime(path, (LONG_AGO, LONG_AGO))
    local.declare(preserve=["permissions", "xattrs"])
    assert local.run()["state"] == "equal"
    for path in (local.partner_path / "d" / "a", local.partner_path / "a"):
        assert (os.getxattr(path, "user.note"), path.stat().st_mtime) == (b"1", LONG_AGO)


def test_holes_of_small_files_are_kept_where_they_are_to_be(local: Local) -> None:
    with (local.path / "hole").open("wb") as stream:
        stream.truncate(200 << 10)
        stream.seek(100 << 10)
        stream.write(b"data")
    local.declare(preserve=["times", "permissions", "sparse"])
    local.run()
    copy = local.partner_path / "hole"
    assert copy.read_bytes() == (local.path / "hole").read_bytes()
    assert copy.stat().st_blocks == (local.path / "hole").stat().st_blocks


def test_an_attribute_that_changes_after_the_contents_were_read_is_not_taken_for_the_planned_one(
    local: Local, before_gathering: Callable[[Callable[[], object]], None]
) -> None:
    path = local.path / "file"
    path.write_text("x")
    os.setxattr(path, "user.note", b"1")
    local.declare()
    before_gathering(lambda: os.setxattr(path, "user.note", b"2"))
    assert local.run()["state"] == "failed"
    os.setxattr(path, "user.note", b"1")
    assert local.run()["state"] == "equal"
    assert os.getxattr(local.partner_path / "file", "user.note") == b"1"


def test_what_goes_after_it_was_read_is_not_put(
    local: Local, before_gathering: Callable[[Callable[[], object]], None]
) -> None:
    (local.path / "top" / "d").mkdir(parents=True)
    (local.path / "top" / "d" / "inner").write_text("x")
    (local.path / "file").write_text("x")
    (local.path / "stays").write_text("x")
    local.declare(direction="both")

    def edit() -> None:
        (local.path / "top" / "d").rename(local.path / "top" / "e")
        (local.path / "file").unlink()

    before_gathering(edit)
    assert local.run()["state"] == "failed"
    assert not (local.partner_path / "file").exists()
    assert local.run()["state"] == "equal"
    assert tree(local.path) == tree(local.partner_path)


@pytest.mark.parametrize("entries", [1, 2, 3])
@pytest.mark.parametrize("direction", ["both", "to_partner"])
def test_a_directory_of_excluded_files_that_is_filled_by_several_pieces_is_there(
    local: Local, monkeypatch: pytest.MonkeyPatch, direction: str, entries: int
) -> None:
    monkeypatch.setattr(synchronize, "ENTRIES", entries)
    (local.path / "d").mkdir()
    for number in range(6):
        (local.path / "d" / f"{number}").write_text("x")
    (local.path / "stays").write_text("x")
    (local.partner_path / "d").mkdir()
    (local.partner_path / "d" / "x.tmp").write_text("excluded")
    local.declare(direction=direction, exclude=["*.tmp"], delete="synced")
    assert local.run()["state"] == "equal"
    shutil.rmtree(local.path / "d")
    local.run()
    assert [path.name for path in (local.partner_path / "d").iterdir()] == ["x.tmp"]
    local.run()
    assert not (local.path / "d").exists()
