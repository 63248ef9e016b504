# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who has a file mapped writes to it without its times moving, until its pages are on the disk."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest
from serversync import linux
from serversync.archiving import RACY
from serversync.detect import Detection
from serversync.tree import Tree

from tests.integration.test_unfinished import Local, local

__all__ = ["local"]


def test_what_is_written_to_a_mapped_file_arrives(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    settle, syncfs = Tree.settle, linux.syncfs

    def settled(self: Tree) -> int:
        with monkeypatch.context() as real:
            real.setattr(linux, "syncfs", syncfs)
            return settle(self)

    # As if all that the runner writes were on another file system.
    monkeypatch.setattr(linux, "syncfs", lambda _descriptor: None)
    monkeypatch.setattr(Tree, "settle", settled)
    local.declare()
    (local.path / "plc").write_bytes(b"0" * 4096)
    with (local.path / "plc").open("r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
        for letter in (b"1", b"2", b"3"):
            mapped[0:1] = letter
            assert local.run()["state"] == "equal"
            assert (local.partner_path / "plc").read_bytes()[:1] == letter


def test_a_replica_that_has_moved_is_on_the_disk_before_its_contents_are_read(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.declare()
    for root in (local.path, local.partner_path):
        (root / "plc").write_text("same")
    os.utime(local.partner_path / "plc", (1, 1))
    done: list[tuple[str, Path]] = []
    for owner, name in ((Tree, "settle"), (Detection, "checksums")):
        plain = getattr(owner, name)

        def noted(self: Tree | Detection, *given: object, plain: object = plain, name: str = name) -> object:
            done.append((name, Path(f"/proc/self/fd/{self.root}").readlink()))
            return plain(self, *given)  # type: ignore[operator]

        monkeypatch.setattr(owner, name, noted)
    local.run()
    for root in (local.path, local.partner_path):
        assert [name for name, where in done if where == root][:2] == ["settle", "checksums"]
    local.run()
    done.clear()
    local.run()
    assert done == []
    (local.path / "plc").write_text("other")
    local.run()
    assert {where for name, where in done if name == "settle"} == {local.path}


def test_contents_are_compared_in_every_third_run_where_that_is_asked_for(local: Local) -> None:
    """One byte that changes with neither size nor time, as a disk or a careless program does it."""
    local.declare(verify_every=3, conflict="no_winner")
    for name in ("plc", "other"):
        (local.path / name).write_text("agreed")
    assert [local.run()["state"] for _run in range(3)] == ["equal"] * 3
    there = local.partner_path / "plc"
    before = there.stat()
    there.write_text("Agreed")
    os.utime(there, ns=(before.st_atime_ns, before.st_mtime_ns))
    while time.time_ns() < there.stat().st_ctime_ns + 2 * RACY:
        pass  # what was touched a moment before a scan is looked at again by the next one
    # These see that it was touched, and take its contents for the old ones.
    assert [local.run()["state"] for _run in range(2)] == ["equal"] * 2
    record = local.run()
    assert [(one["path"], one["what"]) for one in record["elements"][0]["paths"]] == [("plc", "unresolved")]
    assert (record["state"], there.read_text(), (local.path / "plc").read_text()) == ("different", "Agreed", "agreed")
