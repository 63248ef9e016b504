# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small files with their contents in one message: what was planned arrives, and nothing else."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serversync import parcel
from serversync.entry import Entry
from serversync.held import Directories
from serversync.parcel import REFUSED, Made, Parcel, Wrapper

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)
FILES = st.dictionaries(NAMES, st.one_of(st.none(), st.binary(max_size=3000)), min_size=1, max_size=20)
FILE = Entry("f", 1, 2, 1_000_000_000_123_456_789, 4, 0o640, os.geteuid(), os.getegid(), 1)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_PATH)
    yield descriptor
    os.close(descriptor)


def record(path: Path) -> bytes:
    return Entry.of(path.lstat()).record


def read(root: int, *paths: Path) -> list[Parcel]:
    return list(parcel.read(root, ((os.fsencode(path.name), record(path)) for path in paths)))


def write(root: int, one: Parcel, *preserve: str) -> list[Made]:
    directories = Directories(root, making=True)
    try:
        return list(parcel.write(directories, one, frozenset({"permissions", *preserve})))
    finally:
        directories.close()


@given(FILES)
def test_what_is_wrapped_is_unwrapped(files: dict[bytes, bytes | None]) -> None:
    items = [
        (path, REFUSED if data is None else FILE._replace(size=len(data)).record, b"") for path, data in files.items()
    ]
    one = Parcel(items, [data or b"" for data in files.values()])
    for deflate in (False, True):
        assert parcel.unwrap(Wrapper(deflate=deflate).wrap(one)) == one


@given(st.binary(max_size=300))
def test_what_is_none_is_refused(data: bytes) -> None:
    for kind in (parcel.PLAIN, parcel.DEFLATED, b""):
        try:
            one = parcel.unwrap(kind + data)
        except ValueError:
            continue
        assert kind != parcel.DEFLATED and sum(map(len, one.contents)) <= len(data)


def of(content: bytes) -> Parcel:
    return Parcel([(b"plc", FILE._replace(size=len(content)).record, b"")], [content])


def test_what_gets_smaller_by_it_is_deflated_and_else_it_is_seldom_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    real = zlib.compress
    monkeypatch.setattr(zlib, "compress", lambda data, level: tried.append(len(data)) or real(data, level))
    wrapper = Wrapper(deflate=True)
    assert len(wrapper.wrap(of(b"x" * 10_000))) < 500
    dense = [wrapper.wrap(of(os.urandom(10_000))) for _one in range(parcel.PAUSE + 1)]
    assert [data[:1] for data in dense] == [parcel.PLAIN] * len(dense) and len(tried) == 2
    assert len(wrapper.wrap(of(b"x" * 10_000))) < 500


@pytest.mark.parametrize("lie", ["endless", "cut", "more", "none"])
def test_what_cannot_be_inflated_is_none(lie: str) -> None:
    data = {
        "endless": zlib.compress(bytes(parcel.PAYLOAD_LIMIT + 1)),
        "cut": Wrapper(deflate=True).wrap(of(b"x" * 1000))[1:-1],
        "more": Wrapper(deflate=True).wrap(of(b"x" * 1000))[1:] + b"x",
        "none": b"x" * 1000,
    }[lie]
    with pytest.raises(ValueError, match="a parcel"):
        parcel.unwrap(parcel.DEFLATED + data)


@pytest.mark.parametrize("size", [-1, parcel.NEW + 1])
def test_no_file_of_a_parcel_is_as_large(size: int) -> None:
    one = Wrapper(deflate=False).wrap(Parcel([(b"plc", FILE._replace(size=size).record, b"")], [b""]))
    with pytest.raises(ValueError, match="is none for a parcel"):
        parcel.unwrap(one)


def test_files_are_read_in_order_and_in_parcels_of_bounded_size(
    tmp_path: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcel, "FULL", 100)
    monkeypatch.setattr(parcel, "MOST", 3)
    paths = [tmp_path / f"{number}" for number in range(7)]
    for number, path in enumerate(paths):
        path.write_bytes(b"x" * (200 if number == 1 else 1))
    found = read(root, *paths)
    assert [path for one in found for path, _record, _more in one.items] == [b"%d" % number for number in range(7)]
    assert [len(one.items) for one in found] == [2, 3, 2]
    assert [data for one in found for data in one.contents] == [path.read_bytes() for path in paths]


def grown(path: Path) -> None:
    path.write_text("longer than it was")


def rewritten(path: Path) -> None:
    path.write_text("DATA")


def replaced(path: Path) -> None:
    path.rename(path.with_name("old"))
    path.write_text("data")


def linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("moved", [grown, rewritten, replaced, linked, a_pipe, a_directory, gone])
def test_what_is_not_as_it_was_planned_is_not_given(tmp_path: Path, root: int, moved: Callable[[Path], None]) -> None:
    path, beside = tmp_path / "plc", tmp_path / "beside"
    path.write_text("data")
    beside.write_text("more")
    planned = [(b"plc", record(path)), (b"beside", record(beside))]
    moved(path)
    [one] = parcel.read(root, planned)
    assert [(item[1] == REFUSED, data) for item, data in zip(one.items, one.contents)] == [
        (True, b""),
        (False, b"more"),
    ]
    assert parcel.problem_of(one.items[0][2]).text


def test_a_file_is_written_with_its_metadata_and_told_as_it_is(tmp_path: Path, root: int) -> None:
    [(entry, problem)] = write(root, Parcel([(b"a/b/plc", FILE.record, b"")], [b"data"]), "times")
    path = tmp_path / "a" / "b" / "plc"
    assert (problem, path.read_bytes()) == (None, b"data")
    assert entry == Entry.of(path.stat())
    assert (entry.mode, entry.mtime) == (0o640, FILE.mtime)


def test_one_that_cannot_be_made_is_told_and_hinders_no_other(tmp_path: Path, root: int) -> None:
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    refused = (b"refused", REFUSED, b"moved was changed on the source during the run")
    items = [(name, FILE.record, b"") for name in (b"taken", b"link", b"x" * 300, b"plc")]
    made = write(root, Parcel([refused, *items], [b"", *[b"data"] * 4]))
    assert [problem and problem.code for _entry, problem in made] == ["moved", "moved", "moved", "name", None]
    assert [entry is not None for entry, _problem in made] == [False] * 4 + [True]
    assert (tmp_path / "taken").read_text() == "mine"
    assert not (tmp_path / "outside").exists()


def test_a_file_that_has_no_room_leaves_nothing_behind(
    tmp_path: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    [(entry, problem)] = write(root, Parcel([(b"plc", FILE.record, b"")], [b"data"]))
    monkeypatch.undo()
    assert (entry, problem and problem.code) == (None, "no_space")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_setuid_file_has_its_owner_first(tmp_path: Path, root: int) -> None:
    want = FILE._replace(mode=0o4755, uid=1234, gid=1234)
    write(root, Parcel([(b"theirs", want.record, b"")], [b"data"]), "owner", "group")
    info = (tmp_path / "theirs").stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (1234, 1234, 0o4755)
    # Whose it is not, it does not run as.
    write(root, Parcel([(b"mine", want.record, b"")], [b"data"]))
    assert (tmp_path / "mine").stat().st_mode & 0o7777 == 0o755


def test_requests_are_lists_that_fit_into_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcel, "ASKED", 10)
    files = [(b"%d" % number, b"record") for number in range(5)]
    assert [len(some) for some in parcel.requests(files)] == [2, 2, 1]
