# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A path that can never be read keeps nothing else from its due, and nothing is deleted for not having been seen."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from serversync import run
from serversync.archive import Archive
from serversync.commit import Commit, Op, Result
from serversync.detect import Detection

from tests.integration.test_unfinished import Local, local

__all__ = ["local"]


class Closed(set[Path]):
    """Directories that the account may not read; root may read everything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read = Detection._read

        def refused(found: Detection, path: bytes, record: bytes, inside: bool) -> Any:
            if Path(f"/proc/self/fd/{found.root}").readlink() / os.fsdecode(path) in self:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            return read(found, path, record, inside)

        monkeypatch.setattr(Detection, "_read", refused)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Closed:
    return Closed(monkeypatch)


def archive(local: Local) -> Archive:
    [path] = local.server.home.glob(".local/state/serversync/archives/job/*.sqlite")
    return Archive(path)


def standing(record: run.Record) -> dict[str, int]:
    found: dict[str, int] = record["elements"][0]["standing"]
    return found


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("direction", ["to_partner", "both"])
def test_deletions_of_what_was_seen_move(local: Local, closed: Closed, direction: str, side: int) -> None:
    local.declare(direction=direction)
    root = (local.path, local.partner_path)[side]
    for where in (local.path, local.partner_path):
        (where / "line").mkdir()
        (where / "line" / "plc").write_text("x")
    (local.path / "other").write_text("x")
    closed.add(root / "line")
    assert local.run()["state"] == "failed"
    (local.path / "other").unlink()
    # What is below may be gone on the side that can be read; on the other nobody knows.
    (local.path / "line" / "plc").unlink()
    assert local.run()["state"] == "failed"
    assert not (local.partner_path / "other").exists()
    assert (local.partner_path / "line" / "plc").exists()


def test_what_is_seen_for_the_first_time_is_not_deleted_for_it(local: Local, closed: Closed) -> None:
    local.declare(delete="extraneous", max_delete="100%")
    for name in ("own", "line/own"):
        (local.partner_path / name).parent.mkdir(exist_ok=True)
        (local.partner_path / name).write_text("x")
    (local.path / "line").mkdir()
    closed.add(local.partner_path / "line")
    for _run in range(2):
        record = local.run()
        assert (record["state"], standing(record)) == ("failed", {"unresolved": 1})
    closed.clear()
    for _run in range(2):
        record = local.run()
        assert (record["state"], standing(record)) == ("different", {"unresolved": 2})
    assert (local.partner_path / "line" / "own").exists()
    # From now on it is known what was there.
    (local.partner_path / "line" / "more").write_text("x")
    local.run()
    assert not (local.partner_path / "line" / "more").exists()
    assert (local.partner_path / "line" / "own").exists()


def test_a_part_that_stays_closed_stays_unseen(local: Local, closed: Closed) -> None:
    local.declare(delete="extraneous", max_delete="100%")
    (local.partner_path / "line" / "deep").mkdir(parents=True)
    (local.partner_path / "line" / "deep" / "own").write_text("x")
    (local.path / "line").mkdir()
    closed.add(local.partner_path / "line")
    local.run()
    with archive(local) as found:
        assert (found.condition, found.unseen) == ("current", {b"line"})
    closed.clear()
    closed.add(local.partner_path / "line" / "deep")
    local.run()
    with archive(local) as found:
        assert found.unseen == {b"line/deep"}
    closed.clear()
    assert local.run()["state"] == "different"
    assert (local.partner_path / "line" / "deep" / "own").exists()
    with archive(local) as found:
        assert found.unseen == set()


def test_what_was_seen_before_is_deleted_as_ever_once_it_can_be_read_again(local: Local, closed: Closed) -> None:
    local.declare()
    (local.path / "line").mkdir()
    (local.path / "line" / "plc").write_text("x")
    assert local.run()["state"] == "equal"
    closed.add(local.path / "line")
    local.run()
    with archive(local) as found:
        assert found.unseen == set()
    closed.clear()
    (local.path / "line" / "plc").unlink()
    assert local.run()["elements"][0]["deleted"] == 1


def test_edited_settings_hold_for_what_was_closed_then(local: Local, closed: Closed) -> None:
    """Else they would be taken for edited again in every run to come."""
    local.declare(delete="never", conflict="partner_wins")
    (local.path / "line").mkdir()
    for root in (local.path, local.partner_path):
        (root / "plc").write_text("x")
    (local.path / "line" / "plc").write_text("here")
    local.run()
    (local.partner_path / "line" / "plc").write_text("there")
    assert standing(local.run()) == {"kept": 1}
    local.declare(delete="never", conflict="this_server_wins")
    closed.add(local.path / "line")
    local.run()
    with archive(local) as found:
        assert found.settings["conflict"] == "this_server_wins"
        assert found.unseen == {b"line"}
    closed.clear()
    local.run()
    assert (local.partner_path / "line" / "plc").read_text() == "here"
    assert local.run()["state"] == "equal"


def test_what_can_never_be_put_in_its_place_keeps_no_deletion(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    local.declare()
    for name in ("plc", "stuck"):
        (local.path / name).write_text("x")
    carry = Commit._carry

    def refused(self: Commit, op: Op) -> Result:
        if op.path == b"stuck":
            return Result(op.path, problem=("denied", "may not be there"))
        return carry(self, op)

    monkeypatch.setattr(Commit, "_carry", refused)
    assert local.run()["state"] == "failed"
    (local.path / "plc").unlink()
    assert local.run()["elements"][0]["deleted"] == 1
