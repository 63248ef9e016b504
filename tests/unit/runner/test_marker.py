# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from serversync.failure import Failure
from serversync.marker import marker, set_marker

CONTENT = {"element": "job.1", "current": "aa", "next": None, "path": "/srv/\udcff"}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_there_is_none_until_it_is_set(root: int, tmp_path: Path) -> None:
    assert marker(root, "job.1") is None
    assert list(tmp_path.iterdir()) == []
    set_marker(root, "job.1", CONTENT)
    assert marker(root, "job.1") == CONTENT
    assert marker(root, "job.2") is None
    set_marker(root, "job.1", {"current": "bb"})
    assert marker(root, "job.1") == {"current": "bb"}
    home = tmp_path / ".serversync" / "job.1"
    assert [path.name for path in home.iterdir()] == ["marker.json"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (home.parent, home, home / "marker.json")] == [
        0o700,
        0o700,
        0o600,
    ]


@pytest.mark.parametrize("content", [b"", b"\0" * 80, b'{"current": "a', b"[1]", b"null", b"\xff\xfe"])
def test_one_that_cannot_be_understood_says_nothing(root: int, tmp_path: Path, content: bytes) -> None:
    set_marker(root, "job.1", CONTENT)
    (tmp_path / ".serversync" / "job.1" / "marker.json").write_bytes(content)
    assert marker(root, "job.1") == {}


def test_no_link_is_followed(root: int, tmp_path: Path) -> None:
    home = tmp_path / ".serversync" / "job.1"
    home.mkdir(parents=True)
    (tmp_path / "theirs").write_text("theirs")
    (home / "marker.json").symlink_to(tmp_path / "theirs")
    (home / "marker.json.new").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="symbolic link"):
        marker(root, "job.1")
    with pytest.raises(OSError, match="symbolic link"):
        set_marker(root, "job.1", CONTENT)
    assert (tmp_path / "theirs").read_text() == "theirs"
    with pytest.raises(Failure, match="is not a name"):
        marker(root, "../job.1")


def test_the_old_one_stays_where_the_new_one_cannot_be_written(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_marker(root, "job.1", CONTENT)

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        set_marker(root, "job.1", {})
    assert marker(root, "job.1") == CONTENT
