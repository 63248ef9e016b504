# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moving where the kernel does not rename: what is removed is only what was copied and compared."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from serversync import linux, renames
from serversync.renames import move, remove, remove_all

MOMENT = 1_700_000_000_123_456_789


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Two directories between which nothing can be renamed: ``one`` and ``other``."""

    def rename(source: int, old: bytes, target: int, new: bytes, flags: int = 0) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(linux, "rename", rename)
    descriptors = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        descriptors.append(os.open(tmp_path / name, os.O_PATH | os.O_DIRECTORY))
    yield descriptors[0], descriptors[1]
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_copy_is_as_good_as_the_original(two: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "one" / "x"
    content = b"begin" + bytes(3 * renames.BLOCK) + b"end"
    path.write_bytes(content)
    os.setxattr(path, "user.note", b"1")
    path.chmod(0o4751)
    os.utime(path, ns=(5, MOMENT))
    assert move(two[0], b"x", two[1], b"y") is False
    info = (tmp_path / "other" / "y").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o4751, MOMENT)
    assert info.st_blocks * 512 < 2.5 * renames.BLOCK, "what is zeros takes no room"
    assert (tmp_path / "other" / "y").read_bytes() == content
    assert os.getxattr(tmp_path / "other" / "y", "user.note") == b"1"
    assert not path.exists()


def test_a_tree_of_all_kinds(two: tuple[int, int], tmp_path: Path) -> None:
    tree = tmp_path / "one" / "t"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "file").write_text("content")
    (tree / "link").symlink_to("nowhere")
    os.mkfifo(tree / "fifo", 0o640)
    (tree / "inner").chmod(0o550)
    for path in (tree / "link", tree / "fifo", tree / "inner" / "file", tree / "inner", tree):
        os.utime(path, ns=(5, MOMENT), follow_symlinks=False)
    (tree / "inner").chmod(0o750)
    before = {str(path.relative_to(tree)): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in tree.rglob("*")}
    move(two[0], b"t", two[1], b"t")
    moved = tmp_path / "other" / "t"
    assert {
        str(path.relative_to(moved)): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in moved.rglob("*")
    } == before
    assert moved.stat().st_mtime_ns == MOMENT
    assert os.readlink(moved / "link") == "nowhere"
    assert not tree.exists()


@pytest.mark.parametrize("kind", ["file", "link", "fifo", "directory"])
def test_a_taken_name_stays(two: tuple[int, int], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "one" / "x"
    {
        "file": lambda: path.write_text("x"),
        "link": lambda: path.symlink_to("x"),
        "fifo": lambda: os.mkfifo(path),
        "directory": path.mkdir,
    }[kind]()
    (tmp_path / "other" / "x").write_text("theirs")
    with pytest.raises(FileExistsError):
        move(two[0], b"x", two[1], b"x")
    assert (tmp_path / "other" / "x").read_text() == "theirs"
    assert os.path.lexists(path)


@pytest.mark.parametrize("damage", [b"torn", b""])
def test_a_copy_that_is_not_the_same_is_none(
    two: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    (tmp_path / "one" / "x").write_text("content")
    monkeypatch.setattr(renames, "pour", lambda outer, inner: os.write(inner, damage))
    with pytest.raises(renames.Changed):
        move(two[0], b"x", two[1], b"x")
    assert (tmp_path / "one" / "x").read_text() == "content"
    assert list((tmp_path / "other").iterdir()) == []


def test_an_edit_after_the_copy_stays_where_it_is(
    two: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one" / "x"
    path.write_text("content")
    real = renames.duplicate

    def duplicate(source: int, old: bytes, target: int, new: bytes) -> None:
        real(source, old, target, new)
        path.write_text("edited!")

    monkeypatch.setattr(renames, "duplicate", duplicate)
    with pytest.raises(renames.Changed):
        move(two[0], b"x", two[1], b"x")
    assert path.read_text() == "edited!"
    assert list((tmp_path / "other").iterdir()) == []


def test_a_file_system_without_files_that_have_no_name(
    two: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: str, flags: int, *arguments: int, **options: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.ENOTSUP, "Operation not supported")
        return real(path, flags, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    (tmp_path / "one" / "x").write_text("content")
    move(two[0], b"x", two[1], b"x")
    assert (tmp_path / "other" / "x").read_text() == "content"
    (tmp_path / "one" / "y").write_text("content")
    monkeypatch.setattr(renames, "pour", lambda outer, inner: os.write(inner, b"torn"))
    with pytest.raises(renames.Changed):
        move(two[0], b"y", two[1], b"y")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["x"]


def test_removing_follows_no_link_and_leaves_its_neighbors(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("theirs")
    inside = tmp_path / "inside"
    (inside / "0" / "1").mkdir(parents=True)
    (inside / "1" / "0" / "1").mkdir(parents=True)
    (inside / "1" / "0" / "link").symlink_to(tmp_path / "outside")
    (inside / "link").symlink_to(tmp_path / "outside")
    held = os.open(tmp_path, os.O_PATH)
    remove(held, b"never there")
    inner = os.open(inside, os.O_PATH)
    assert remove_all(inner) == []
    assert list(inside.iterdir()) == []
    remove(held, b"inside")
    os.close(inner)
    os.close(held)
    assert (tmp_path / "outside" / "file").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
