# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""This server's replica, begun before anything is known of the partner's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from serversync import ahead
from serversync.archive import Archive, Update
from serversync.detect import Detection, Summary
from serversync.entry import Row
from serversync.failure import Failure, Stopped
from serversync.layout import Layout
from serversync.replica import ThisServer
from serversync.tree import Tree

SOURCE = {
    "element": "job.1",
    "run": "run",
    "writable": False,
    "look": False,
    "owner": "me",
    "name": b"",
    "previous": "",
}
TARGET = {**SOURCE, "writable": True}


RECORD = b"f 1 0.0 0.0 0 644 0 0 1 "
NOTHING = ahead.Guess(frozenset(), 0)


def begun(root: Path, known: ahead.Guess = NOTHING, **options: Any) -> ahead.Here:
    server = ThisServer(Layout("user", root.parent, root.parent, root.parent))
    return ahead.Here(server, str(root), {**SOURCE, **options}, [], [], known)


def test_what_is_guessed_is_what_the_last_run_had(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    assert ahead.guess(path) is None
    with Archive.open(path, {}) as archive:
        assert ahead.guess(path) is None, "no run has come to its end"
        archive.commit(
            Update(
                rows=[Row(b"a", "agreed", RECORD, b"", RECORD, b"")],
                settings={"preserve": ["acls", "times"]},
                streams=(b"here", b"there"),
            )
        )
    assert ahead.guess(path) == ahead.Guess(frozenset({"acls"}), 1, b"there")
    path.write_bytes(b"no archive")
    assert ahead.guess(path) is None


def test_the_root_is_locked_before_it_is_scanned_and_until_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    real, refused = Detection.scan, []

    def scan(self: Detection, known: bytes, **options: Any) -> Summary:
        with pytest.raises(Failure, match="in use by me"):
            Tree(str(tmp_path / "root"), "directory", locks=tmp_path / "locks", **TARGET)
        refused.append(True)
        return real(self, known, **options)

    monkeypatch.setattr(Detection, "scan", scan)
    here = begun(tmp_path / "root")
    assert here.scanned(frozenset()) and refused
    here.close()
    Tree(str(tmp_path / "root"), "directory", locks=tmp_path / "locks", **TARGET).close()


def test_what_is_found_is_what_a_scan_in_its_turn_finds(tmp_path: Path) -> None:
    (tmp_path / "root" / "d").mkdir(parents=True)
    (tmp_path / "root" / "d" / "f").write_text("x")
    here = begun(tmp_path / "root")
    summary, taken = here.scanned(frozenset()), here.taken()
    assert summary is not None and isinstance(taken, Tree) and here.kind == "directory"
    seen = list(taken.digests())
    again = taken.scan(b"", [], [], frozenset(), 0)
    assert (again.stream, again.entries) == (summary.stream, summary.entries) and list(taken.digests()) == seen
    here.close()


def test_attributes_that_were_not_expected_are_no_part_of_what_is_found(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    here = begun(tmp_path / "root", ahead.Guess(frozenset({"xattrs"}), 0))
    assert here.taken() and here.scanned(frozenset()) is None
    here.close()


@pytest.mark.parametrize("what", ["missing", "a link", "in use"])
def test_what_cannot_be_begun_is_left_to_who_tells_why(tmp_path: Path, what: str) -> None:
    root, other = tmp_path / "root", None
    if what == "a link":
        root.symlink_to(tmp_path)
    if what == "in use":
        root.mkdir()
        other = Tree(str(root), "directory", locks=tmp_path / "locks", **TARGET)
    here = begun(root, writable=True)
    assert (here.kind, here.taken(), here.scanned(frozenset())) == ("", None, None)
    assert here.look["kind"] == {"missing": "missing", "a link": "link", "in use": "directory"}[what]
    here.close()
    if other is not None:
        other.close()
    assert os.path.lexists(root) == (what != "missing"), "nothing is made"


def test_what_goes_wrong_with_the_scan_is_told_to_who_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()

    def scan(_self: Detection, _known: bytes, **_options: Any) -> Summary:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Detection, "scan", scan)
    here = begun(tmp_path / "root")
    with pytest.raises(PermissionError):
        here.scanned(frozenset())
    here.close()


@pytest.mark.parametrize("expected", [0, 10**6])
def test_who_closes_does_not_wait_for_the_end_of_the_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: int
) -> None:
    """A find that never ends, and a walk that goes round in a circle."""
    (tmp_path / "root" / "d").mkdir(parents=True)
    (tmp_path / "find").write_text("#!/bin/sh\nexec sleep 1000\n")
    (tmp_path / "find").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    real = Detection._read

    def read(self: Detection, path: bytes, record: bytes, inside: bool) -> Any:
        frame = real(self, b"", record, inside)
        frame.directories = [(b"d", b"", True)]
        return frame

    monkeypatch.setattr(Detection, "_read", read)
    here = begun(tmp_path / "root", ahead.Guess(frozenset(), expected))
    here.close()
    assert isinstance(here.error, Stopped) and not here.thread.is_alive()


def test_who_stops_the_server_stops_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    server = ThisServer(Layout("user", tmp_path, tmp_path, tmp_path))
    real = Detection._read

    def read(self: Detection, path: bytes, record: bytes, inside: bool) -> Any:
        server.abort()
        return real(self, path, record, inside)

    monkeypatch.setattr(Detection, "_read", read)
    here = ahead.Here(server, str(tmp_path / "root"), SOURCE, [], [], NOTHING)
    with pytest.raises(Stopped):
        here.scanned(frozenset())
    here.close()
