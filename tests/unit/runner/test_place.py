# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
from pathlib import Path

import pytest
from serversync import place
from serversync.failure import Failure


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dir" / "sub").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("dir")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "directory"),
        ("/dir", "directory"),
        ("//dir//sub/", "directory"),
        ("/file", "file"),
        ("/link", "link"),
        ("/none", "missing"),
        ("/none/deeper/still", "missing"),
        ("/link/sub", "blocked"),
        ("/file/x", "blocked"),
    ],
)
def test_kinds(root: Path, path: str, kind: str) -> None:
    assert place.look(f"{root}{path}")["kind"] == kind


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/..", "/a/./b", "/a\0b", ""])
def test_spellings_that_are_refused(path: str) -> None:
    with pytest.raises(Failure, match="is not an absolute path"):
        place.look(path)


def test_a_target_that_is_missing_is_made(root: Path) -> None:
    for _time in range(2):
        held = place.open_directory([*place.split(f"{root}/new/deeper")], make=True)
        assert os.fstat(held).st_ino == (root / "new" / "deeper").stat().st_ino
        os.close(held)


def test_nothing_is_made_for_a_look(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        place.open_directory(place.split(f"{root}/new"), make=False)
    assert not (root / "new").exists()


def test_links_on_the_way_are_not_followed(root: Path) -> None:
    with pytest.raises(OSError, match="Not a directory"):
        place.open_directory(place.split(f"{root}/link/new"), make=True)
    assert not (root / "dir" / "new").exists()


def test_the_room_of_a_mount_point_is_that_of_what_is_mounted_there() -> None:
    assert place.look("/")["free_bytes"] > 0
    assert place.look("/proc")["free_bytes"] == 0
