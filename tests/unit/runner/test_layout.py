# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What root reads where the runner's account may have put anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from serversync import layout
from serversync.history import published
from serversync.job import was_valid
from serversync.layout import Layout, read_plain


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    (path.parent / "elsewhere").write_text("{}")
    path.symlink_to("elsewhere")


def large(path: Path) -> None:
    path.write_text("{}" + " " * layout.LARGEST)


def directory(path: Path) -> None:
    path.mkdir()


ODD = pytest.mark.parametrize("odd", [pipe, link, large, directory])


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "LARGEST", 100)


@ODD
def test_only_a_plain_file_is_read(tmp_path: Path, odd: Callable[[Path], None]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_plain(path) == b"x" * 100
    path.unlink()
    odd(path)
    with pytest.raises(OSError, match=r"Not a regular file|symbolic links|too large"):
        read_plain(path)


@ODD
def test_root_takes_no_odd_file_for_a_record(tmp_path: Path, odd: Callable[[Path], None]) -> None:
    there = Layout("system", tmp_path, tmp_path, tmp_path)
    there.public.mkdir()
    odd(there.public / "demo.json")
    with pytest.raises(Exception, match=r"demo\.json is damaged \(.+\); the next run of the job writes it anew"):
        published(there, "demo")


@pytest.mark.parametrize("text", ["[]", "{", "1", "[" * 90])
def test_a_record_is_a_mapping(tmp_path: Path, text: str) -> None:
    there = Layout("system", tmp_path, tmp_path, tmp_path)
    there.public.mkdir()
    (there.public / "demo.json").write_text(text)
    with pytest.raises(Exception, match="is damaged"):
        published(there, "demo")


@ODD
def test_root_takes_no_odd_file_for_a_seal(tmp_path: Path, odd: Callable[[Path], None]) -> None:
    path = tmp_path / "known"
    path.write_text("{}")
    assert was_valid(path, "{}")
    path.unlink()
    odd(path)
    assert not was_valid(path, "{}")
