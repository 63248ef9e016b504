# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Update detection on real files: find and the walk see the same, and what cannot be seen is never taken for absent."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serversync import detect
from serversync.detect import Detection
from serversync.entry import Entry
from serversync.failure import Stopped
from serversync.filters import Filter

MANY, FEW = 10**6, 0
NOBODY = 65534


@contextmanager
def detection(
    root: Path,
    expected: int = FEW,
    *,
    only: bytes | None = None,
    patterns: Filter | None = None,
    xattrs: frozenset[str] = frozenset(),
) -> Iterator[Detection]:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        yield Detection(descriptor, only=only, filter=patterns, xattrs=xattrs, expected=expected)
    finally:
        os.close(descriptor)


def make(root: Path, *paths: str) -> None:
    """``a/b`` is a file of its own name, ``a/`` an empty directory."""
    for path in paths:
        target = root / path
        (target if path.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            target.write_text(path)


@contextmanager
def ordinary(*given: Path) -> Iterator[None]:
    """As a user to whom permissions matter; what is given is his."""
    if os.geteuid() != 0:
        yield
        return
    for path in given:
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def seen(found: Detection) -> tuple[dict[bytes, bytes], list[tuple[bytes, list[detect.Child]]]]:
    digests = found.digests()
    return digests, list(found.listing(sorted(digests), seen=True))


def paths(found: Detection) -> set[bytes]:
    return {child[0] for _directory, children in seen(found)[1] for child in children}


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """One of each kind, and whatever makes a name, a record or a directory hard to tell from another."""
    make(tmp_path, "plain", "sub/deeper/file", "sub/empty/", "sub-x/a", "sub.x/a", ".serversync/e/stage/x")
    make(tmp_path, "sub/.serversync", "sub/deeper/.serversync/x", "x.serversync", ".serversync2")
    make(tmp_path, "line\nfeed", " blank ", "tab\t/ä", "nfd/a\u0308", "d 1 2/f 3 4")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/not\xffutf\xfe-8")).touch()
    (tmp_path / "link").symlink_to("to / a \n thing/")
    (tmp_path / "sub" / "dangling").symlink_to("/nowhere")
    (tmp_path / "directory-link").symlink_to("sub")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{os.open(tmp_path, os.O_PATH)}/socket")
    os.link(tmp_path / "plain", tmp_path / "sub" / "hard")
    (tmp_path / "mode").touch(0o600)
    (tmp_path / "mode").chmod(0o6751)
    for path, time in (("mode", -1), ("plain", -1_500_000_001), ("sub-x/a", 2**32 * 10**9 + 7), ("sub.x/a", 0)):
        os.utime(tmp_path / path, ns=(time, time))
    return tmp_path


def test_find_and_the_walk_see_the_same(zoo: Path) -> None:
    with detection(zoo, MANY) as quick, detection(zoo, FEW) as careful:
        first, second = quick.scan(b""), careful.scan(b"")
        assert quick.digests() == careful.digests()
        assert seen(quick) == seen(careful) == (careful.digests(), list(careful.listing(sorted(careful.digests()))))
        assert first.complete and second.complete and first.root == second.root
        assert first.stream != second.stream, "they cannot be told apart, so one of them was not run"


@pytest.mark.parametrize("processors", [1, 2, 64])
def test_a_tree_is_shared_out_among_processors(zoo: Path, monkeypatch: pytest.MonkeyPatch, processors: int) -> None:
    with detection(zoo, FEW) as careful:
        careful.scan(b"")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _process: range(processors))
        with detection(zoo, MANY) as quick:
            summary = quick.scan(b"")
            assert (len(quick._finds) > 1) == (processors > 1)
            assert quick.scan(summary.stream).unchanged and summary.complete
            assert seen(quick) == seen(careful)


def to_link(root: Path) -> None:
    (root / "b").rename(root / "c")
    (root / "b").symlink_to("c")


SWAPS: dict[str, Callable[[Path], object]] = {
    "gone": lambda root: shutil.rmtree(root / "b"),
    "a link": to_link,
    "another": lambda root: (root / "b").rename(root / "x") and (root / "d").rename(root / "b"),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_what_becomes_of_a_directory_before_find_comes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    """What is said of it is what was there at some time: never that it is empty, never what a link leads to."""
    make(tmp_path, "a/f", "b/g", "d/h")
    real = detect._Find.run
    swaps = [SWAPS[swap]]

    def run(self: detect._Find) -> None:
        while swaps:
            swaps.pop()(tmp_path)
        real(self)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: range(2))
    monkeypatch.setattr(detect._Find, "run", run)
    with detection(tmp_path, MANY) as found:
        found.scan(b"")
        below = {path for path in paths(found) if path.startswith(b"b")}
        assert below == {"gone": set(), "a link": {b"b"}, "another": {b"b", b"b/h"}}[swap]
        assert (b"b" in found.digests()) == (swap == "another")


def test_what_is_seen_is_what_lstat_says(zoo: Path) -> None:
    with detection(zoo, MANY) as found:
        found.scan(b"")
        for path, record, more in (child for _directory, children in seen(found)[1] for child in children):
            where = os.fsencode(zoo) + b"/" + path
            link = os.readlink(where) if os.path.islink(where) else b""
            assert Entry.parse(record, more) == Entry.of(os.lstat(where), link), path
        everything = {path.relative_to(zoo).as_posix() for path in zoo.rglob("*")}
        expected = {os.fsencode(path) for path in everything if ".serversync" not in path.split("/")}
        assert paths(found) == expected


NAMES = st.sampled_from(["a", "b", "a b", "a\n", "é", "-", ".serversync", "a.", "ab"])
MAKE: dict[str, Callable[[Path], object]] = {
    "f": Path.touch,
    "d": Path.mkdir,
    "l": lambda path: path.symlink_to("no where"),
    "p": os.mkfifo,
}
TREES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=4).map(tuple), st.sampled_from(sorted(MAKE)), max_size=12)


@settings(max_examples=60)
@given(tree=TREES)
def test_any_tree_gives_the_same_digests_either_way(tree: dict[tuple[str, ...], str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for parts, kind in tree.items():
            path = root.joinpath(*parts)
            with suppress(FileExistsError, NotADirectoryError):
                path.parent.mkdir(parents=True, exist_ok=True)
                MAKE[kind](path)
        with detection(root, MANY) as quick, detection(root, FEW) as careful:
            quick.scan(b"")
            careful.scan(b"")
            assert seen(quick) == seen(careful)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda root: (root / "sub/deeper/file").write_text("sub/deeper/FILE"),
    "mode": lambda root: (root / "sub/deeper/file").chmod(0o640),
    "time": lambda root: os.utime(root / "sub/deeper/file", ns=(5, 5)),
    "new": lambda root: (root / "sub/deeper/new").touch(),
    "gone": lambda root: (root / "sub/deeper/file").unlink(),
    "renamed": lambda root: (root / "sub/deeper/file").rename(root / "sub/deeper/elif"),
    "attribute": lambda root: os.setxattr(root / "sub/deeper/file", "user.x", b"1"),
    "empty directory": lambda root: (root / "sub/empty").rmdir(),
    "mode of the root": lambda root: root.chmod(0o711),
}


@pytest.mark.parametrize("expected", [MANY, FEW])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_changes_the_stream_and_the_directory(tmp_path: Path, expected: int, change: str) -> None:
    make(tmp_path, "sub/deeper/file", "sub/other/file", "sub/empty/")
    with detection(tmp_path, expected) as found:
        before = found.scan(b"")
        digests = found.digests()
        assert found.scan(before.stream).unchanged
        assert not found.scan(b"").unchanged
        CHANGES[change](tmp_path)
        after = found.scan(before.stream)
        assert after.complete and not after.unchanged
        now = found.digests()
        moved = {path for path in digests.keys() | now.keys() if digests.get(path) != now.get(path)}
        assert b"sub/other" not in moved and (bool(moved) or change == "mode of the root")


@pytest.mark.parametrize("expected", [MANY, FEW])
def test_what_the_runner_keeps_moves_nothing(tmp_path: Path, expected: int) -> None:
    make(tmp_path, "a", ".serversync/e/x")
    with detection(tmp_path, expected) as found:
        before = found.scan(b"")
        make(tmp_path, ".serversync/e/y")
        shutil.rmtree(tmp_path / ".serversync/e")
        assert found.scan(before.stream).unchanged
        shutil.rmtree(tmp_path / ".serversync")
        assert found.scan(before.stream).unchanged, "the times of the root"


def test_the_moment_is_on_the_clock_of_the_files(tmp_path: Path) -> None:
    make(tmp_path, ".serversync/e/")
    with detection(tmp_path) as found:
        first = found.scan(b"").moment
        (tmp_path / "after").touch()
        assert first <= os.stat(tmp_path / "after").st_ctime_ns <= found.scan(b"").moment
        assert os.stat(tmp_path / ".serversync").st_ctime_ns >= first


def test_the_digest_of_a_listing_is_that_of_the_scan(zoo: Path) -> None:
    with detection(zoo, MANY) as found:
        found.scan(b"")
        assert {directory: detect.digest(reversed(list_)) for directory, list_ in seen(found)[1]} == found.digests()


def test_a_listing_is_read_again_unless_asked_otherwise(tmp_path: Path) -> None:
    make(tmp_path, "d/a")
    with detection(tmp_path, MANY) as found:
        found.scan(b"")
        make(tmp_path, "d/b")
        assert [[child[0] for child in children] for _d, children in found.listing([b"d"])] == [[b"d/a", b"d/b"]]
        assert [[child[0] for child in children] for _d, children in found.listing([b"d"], seen=True)] == [[b"d/a"]]
        assert list(found.listing([b"no", b"d/a", b"d/a/no"])) == [(b"no", []), (b"d/a", []), (b"d/a/no", [])]


def test_larger_than_what_is_kept(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with detection(zoo, MANY) as found:
        found.scan(b"")
        everything = seen(found)
        monkeypatch.setattr(detect, "KEPT", 300)
        monkeypatch.setattr(detect, "READ", 7)
        found.scan(b"")
        assert len(found._seen().kept) < len(everything[0])
        assert seen(found) == everything


def test_a_path_longer_than_a_system_call_takes(tmp_path: Path) -> None:
    part = "d" * 250
    descriptor = os.open(tmp_path, os.O_PATH)
    for _level in range(20):
        os.mkdir(part, dir_fd=descriptor)
        inner = os.open(part, os.O_PATH, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    path = b"/".join([part.encode()] * 20 + [b"file"])
    with detection(tmp_path, MANY) as quick, detection(tmp_path, FEW) as careful:
        assert quick.scan(b"").complete and careful.scan(b"").complete
        assert seen(quick) == seen(careful)
        assert path in paths(careful)
        assert isinstance(careful.entries([path])[path], Entry)
        assert isinstance(careful.checksums([path])[path], tuple)


# What cannot be seen


@pytest.mark.parametrize("expected", [MANY, FEW])
def test_an_unreadable_directory_is_unknown_not_empty(tmp_path: Path, expected: int) -> None:
    make(tmp_path, "a/f", "shut/f", "shut/deep/f")
    with detection(tmp_path, expected) as found:
        tmp_path.chmod(0o755)
        (tmp_path / "shut").chmod(0)
        with ordinary():
            summary = found.scan(b"")
            assert summary.problems == {b"shut": "Permission denied"}
            assert not summary.complete and summary.stream == b"" and not summary.unchanged
            assert dict(found.listing([b"", b"shut", b"shut/deep", b"a"], seen=True)).keys() == {b"", b"a"}
            assert dict(found.listing([b"", b"shut", b"shut/deep", b"a"])).keys() == {b"", b"a"}
            [(_root, children)] = found.listing([b""])
            assert [child for child in children if child[0] == b"shut"] == [(b"shut", b"", b"")]
            assert detect.digest(children) == found.digests()[b""]
            assert found.entries([b"shut/f", b"a/f"])[b"shut/f"] == "Permission denied"
        (tmp_path / "shut").chmod(0o700)
        assert found.scan(b"").complete


def test_a_directory_that_is_shut_after_the_scan_is_no_empty_one(tmp_path: Path) -> None:
    make(tmp_path, "shut/f")
    with detection(tmp_path) as found:
        found.scan(b"")
        (tmp_path / "shut").chmod(0)
        with ordinary(), pytest.raises(PermissionError):
            list(found.listing([b"shut"]))
        (tmp_path / "shut").chmod(0o700)


def test_mount_points_are_unknown() -> None:
    with detection(Path("/")) as found:
        assert b"proc" in detect.mounts(found.root)
        reasons = found.entries([b"proc", b"proc/self", b"etc"])
        assert reasons[b"proc"] == reasons[b"proc/self"] == detect.MOUNTED
        assert isinstance(reasons[b"etc"], Entry)


@pytest.mark.parametrize("expected", [MANY, FEW])
def test_a_mount_below_is_neither_listed_nor_entered(
    tmp_path: Path, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a/mounted/f", "b", "c")
    with detection(tmp_path, expected) as found:
        monkeypatch.setattr(detect, "mounts", lambda _root: frozenset({b"a/mounted", b"c"}))
        summary = found.scan(b"")
        assert summary.problems == dict.fromkeys((b"a/mounted", b"c"), detect.MOUNTED)
        assert paths(found) == {b"a", b"a/mounted", b"b", b"c"}
        assert b"a/mounted" not in found.digests()
        assert dict(found.listing([b"a"])) == {b"a": [(b"a/mounted", b"", b"")]}


def test_a_mount_that_appears_while_find_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/f")
    with detection(tmp_path, MANY) as found:
        answers = iter([frozenset(), frozenset({b"a"})])
        monkeypatch.setattr(detect, "mounts", lambda _root: next(answers))
        assert found.scan(b"").problems == {b"a": detect.MOUNTED}


class Vanishing:
    """A directory in which something disappears between being read and being looked at, the first ``times`` times."""

    def __init__(self, root: Path, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real, self.root, self.left = os.scandir, root, times
        monkeypatch.setattr(detect.os, "scandir", self)

    @contextmanager
    def __call__(self, descriptor: int) -> Iterator[list[os.DirEntry[str]]]:
        temporary = self.root / "temporary"
        if self.left:
            temporary.touch()
        with self.real(descriptor) as items:
            found = list(items)
        temporary.unlink(missing_ok=True)
        self.left = max(0, self.left - 1)
        yield found


@pytest.mark.parametrize(("times", "problems"), [(1, {}), (2, {}), (99, {b"temporary": detect.VANISHED})])
def test_what_vanishes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, problems: dict[bytes, str]
) -> None:
    make(tmp_path, "a")
    Vanishing(tmp_path, times, monkeypatch)
    with detection(tmp_path) as found:
        assert found.scan(b"").problems == problems
        assert paths(found) == {b"a", *problems}


def test_without_find_the_tree_is_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/f")
    with detection(tmp_path, MANY) as found, detection(tmp_path, FEW) as careful:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert found.scan(b"")[:2] == careful.scan(b"")[:2]
        (tmp_path / "find").write_text("#!/bin/sh\necho 'no -printf here'\nexit 1\n")
        (tmp_path / "find").chmod(0o755)
        assert found.scan(b"").complete
        assert paths(found) == {b"a", b"a/f", b"find"}


def test_a_root_that_cannot_be_read(tmp_path: Path) -> None:
    make(tmp_path, "root/f")
    for expected in (MANY, FEW):
        with detection(tmp_path / "root", expected) as found:
            (tmp_path / "root").chmod(0)
            with ordinary(), pytest.raises(PermissionError):
                found.scan(b"")
            (tmp_path / "root").chmod(0o700)


# Patterns and single files


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], ["*.tmp"], {"a", "a/x", "a/only", "a/only/deep", "a/only/deep/y", "b", "e", "top"}),
        ([], ["x", "y"], {"a", "a/x.tmp", "b", "b/z.tmp", "e", "top"}),
        ([], ["a/only"], {"a", "a/x", "a/x.tmp", "b", "b/z.tmp", "e", "top"}),
        ([], ["b/"], {"a", "a/x", "a/x.tmp", "a/only", "a/only/deep", "a/only/deep/y", "e", "top"}),
        (["y"], [], {"a", "a/only", "a/only/deep", "a/only/deep/y"}),
        (["e", "/b"], [], {"b", "b/z.tmp", "e"}),
        (["/a"], ["*.tmp", "deep"], {"a", "a/x"}),
        (["none"], [], set()),
    ],
)
def test_a_directory_for_excluded_files_only_is_not_there(
    tmp_path: Path, include: list[str], exclude: list[str], expected: set[str]
) -> None:
    make(tmp_path, "a/x", "a/x.tmp", "a/only/deep/y", "b/z.tmp", "e/", "top", "e/.serversync/x")
    if exclude == ["*.tmp"]:
        expected = expected - {"b"}
    if exclude == ["a/only"]:
        expected = expected - {"a/only"}
    with detection(tmp_path, MANY, patterns=Filter(include, exclude)) as found:
        summary = found.scan(b"")
        assert {path.decode() for path in paths(found)} == expected
        assert summary.entries == len(expected)
        digests, listing = seen(found)
        assert list(found.listing(sorted(digests))) == listing
        assert dict(found.listing([b"a/only"]))[b"a/only"] == dict(listing).get(b"a/only", [])


def test_excluded_directories_are_not_even_opened(tmp_path: Path) -> None:
    make(tmp_path, "kept/f", "cache/f")
    (tmp_path / "cache").chmod(0)
    tmp_path.chmod(0o755)
    with detection(tmp_path, patterns=Filter([], ["cache"])) as found, ordinary():
        assert found.scan(b"").complete
    with detection(tmp_path, patterns=Filter(["/kept"], [])) as found, ordinary():
        assert found.scan(b"").complete
    (tmp_path / "cache").chmod(0o700)


@pytest.mark.parametrize("kind", ["file", "directory", "missing"])
def test_an_element_of_one_file(tmp_path: Path, kind: str) -> None:
    make(tmp_path, "other", "one/inner" if kind == "directory" else "another")
    if kind == "file":
        make(tmp_path, "one")
    with detection(tmp_path, MANY, only=b"one") as found:
        before = found.scan(b"")
        assert paths(found) == (set() if kind == "missing" else {b"one"})
        assert found.digests().keys() == {b""}
        make(tmp_path, "other2")
        assert found.scan(before.stream).unchanged
        shutil.rmtree(tmp_path / "one") if kind == "directory" else (tmp_path / "one").touch()
        if kind != "file":
            assert not found.scan(before.stream).unchanged


# Single paths


def test_entries_of_paths_that_are_there_or_not(tmp_path: Path) -> None:
    make(tmp_path, "d/f")
    (tmp_path / "link").symlink_to("d")
    with detection(tmp_path) as found:
        entries = found.entries([b"", b"d", b"d/f", b"link", b"link/f", b"d/f/x", b"no", b"no/no"])
        assert {path: entry.kind for path, entry in entries.items() if isinstance(entry, Entry)} == {
            b"": "d",
            b"d": "d",
            b"d/f": "f",
            b"link": "l",
        }
        assert entries[b"link/f"] is entries[b"d/f/x"] is entries[b"no"] is entries[b"no/no"] is None


def test_checksums_do_not_mind_holes(tmp_path: Path) -> None:
    size = 5 * detect.GRAIN + 17
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(size)
        for start in (0, 3 * detect.GRAIN + 5, size - 4):
            file.seek(start)
            file.write(b"data")
    (tmp_path / "full").write_bytes((tmp_path / "sparse").read_bytes())
    (tmp_path / "shorter").write_bytes((tmp_path / "sparse").read_bytes()[:-1])
    (tmp_path / "zeros").write_bytes(bytes(size))
    (tmp_path / "other").write_bytes((tmp_path / "sparse").read_bytes().replace(b"data", b"date", 1))
    (tmp_path / "empty").touch()
    with detection(tmp_path) as found:
        names = [b"sparse", b"full", b"shorter", b"zeros", b"other", b"empty"]
        digests = {path: result[1] for path, result in found.checksums(names).items()}
        assert digests.pop(b"full") == digests[b"sparse"]
        assert len(set(digests.values())) == len(digests) == 5
        assert all(len(content) == 16 for content in digests.values())
        (tmp_path / "huge").touch()
        os.truncate(tmp_path / "huge", 2**40)
        assert isinstance(found.checksums([b"huge"])[b"huge"], tuple), "a sparse terabyte is read in no time"


def test_a_file_is_read_no_further_than_its_size_was(tmp_path: Path) -> None:
    with (tmp_path / "grown").open("w+b") as file:
        file.write(b"data")
        file.seek(3 * detect.GRAIN)
        file.write(b"more")
        file.flush()
        for size in (4, detect.GRAIN + 1):
            assert b"".join(piece for _start, piece in detect.blocks(file.fileno(), size)).rstrip(b"\0") == b"data"


def test_checksums_of_what_has_none(tmp_path: Path) -> None:
    make(tmp_path, "d/")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("d")
    with detection(tmp_path) as found:
        assert set(found.checksums([b"d", b"fifo", b"link"]).values()) == {"it is not a regular file"}
        assert found.checksums([b"no"]) == {b"no": detect.VANISHED}


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "f")
    real = detect.blocks

    def changing(descriptor: int, size: int) -> Iterator[tuple[int, bytes]]:
        yield from real(descriptor, size)
        os.utime(tmp_path / "f", ns=(1, 1))

    monkeypatch.setattr(detect, "blocks", changing)
    with detection(tmp_path) as found:
        assert found.checksums([b"f"]) == {b"f": "it changed while it was read"}


ACL = b"".join(
    (
        (2).to_bytes(4, "little"),
        *(
            b"".join((tag.to_bytes(2, "little"), (6).to_bytes(2, "little"), number.to_bytes(4, "little")))
            for tag, number in ((1, 2**32 - 1), (2, NOBODY), (4, 2**32 - 1), (16, 2**32 - 1), (32, 2**32 - 1))
        ),
    )
)


@pytest.mark.parametrize("preserved", [set(), {"acls"}, {"xattrs"}, {"acls", "xattrs"}])
def test_attributes_are_those_that_are_preserved(tmp_path: Path, preserved: set[str]) -> None:
    make(tmp_path, "d/f", "d/plain")
    os.setxattr(tmp_path / "d/f", "user.colour", b"red\0\xff")
    os.setxattr(tmp_path / "d/f", "system.posix_acl_access", ACL)
    os.setxattr(tmp_path / "d", "user.colour", b"")
    (tmp_path / "d/link").symlink_to("f")
    with detection(tmp_path, MANY, xattrs=frozenset(preserved)) as found:
        found.scan(b"")
        values = found.attributes([b"d", b"d/f", b"d/plain", b"d/link", b"no"])
        expected = {"user.colour": b"red\0\xff"} if "xattrs" in preserved else {}
        if "acls" in preserved:
            expected["system.posix_acl_access"] = ACL
        assert values == {
            b"d": {"user.colour": b""} if "xattrs" in preserved else {},
            b"d/f": expected,
            b"d/plain": {},
            b"d/link": {},
        }
        entries = found.entries([b"d", b"d/f", b"d/plain"])
        assert bool(entries[b"d/f"].xattrs) == bool(preserved) and entries[b"d/plain"].xattrs == b""
        for given in (True, False):
            [(_directory, children)] = found.listing([b"d"], seen=given)
            assert {path: Entry.parse(record, more) for path, record, more in children if path != b"d/link"} == {
                path: entries[path] for path in (b"d/f", b"d/plain")
            }
        os.setxattr(tmp_path / "d/f", "user.colour", b"blue")
        assert (found.entries([b"d/f"])[b"d/f"].xattrs != entries[b"d/f"].xattrs) == ("xattrs" in preserved)


def test_devices_are_seen_with_their_numbers() -> None:
    with detection(Path("/dev")) as found:
        children = dict(found.listing([b""]))[b""]
        null = next(Entry.parse(record, more) for path, record, more in children if path == b"null")
        assert (null.kind, null.rdev) == ("c", os.stat("/dev/null").st_rdev)


# What a file system can hold


def test_probing_leaves_nothing_behind(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_PATH)
    try:
        for writable in (False, True):
            facts = detect.probe(descriptor, writable=writable)
            assert facts["granularity"] >= 1 and facts["name_max"] >= 255 and facts["folding"] == []
            assert (facts["device"], facts["inode"]) == (os.stat(tmp_path).st_dev, os.stat(tmp_path).st_ino)
        make(tmp_path, ".serversync/")
        assert detect.probe(descriptor, writable=True) == facts
        assert os.listdir(tmp_path) == [".serversync"] and not os.listdir(tmp_path / ".serversync")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("step", "expected"), [(1, 1), (100, 100), (10**9, 10**9), (2 * 10**9, 2 * 10**9)])
def test_granularity_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, expected: int) -> None:
    real = os.utime

    def coarse(path: str, *, ns: tuple[int, int], dir_fd: int) -> None:
        real(path, ns=(ns[0] - ns[0] % step, ns[1] - ns[1] % step), dir_fd=dir_fd)

    monkeypatch.setattr(detect.os, "utime", coarse)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        assert detect.tried(descriptor) == {"granularity": expected, "folding": []}
    finally:
        os.close(descriptor)


def test_what_names_a_file_system_does_not_tell_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        for folded in (["case"], ["normalization"]):
            asked = iter(("case", "normalization"))
            monkeypatch.setattr(
                detect, "exists", lambda _directory, _name, asked=asked, folded=folded: next(asked) in folded
            )
            assert detect.tried(descriptor)["folding"] == folded
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("expected", [FEW, MANY])
def test_who_is_told_to_stop_reads_no_further(tmp_path: Path, expected: int) -> None:
    make(tmp_path, "a/b")
    with detection(tmp_path, expected) as found:
        found.scan(b"")
        found.stopped.set()
        for reading in (
            lambda: found.scan(b""),
            lambda: list(found.listing([b"a"])),
            lambda: found.entries([b"a/b"]),
            lambda: found.checksums([b"a/b"]),
        ):
            with pytest.raises(Stopped):
                reading()


def test_a_scan_that_is_stopped_tries_no_more_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *map(str, range(20)))
    patterns, tried = Filter([], ["*a"]), []
    with detection(tmp_path, patterns=patterns) as found:

        def takes(path: bytes, _directory: bool, _inside: bool) -> bool:
            tried.append(path)
            found.stopped.set()
            return True

        monkeypatch.setattr(patterns, "takes", takes)
        with pytest.raises(Stopped):
            found.scan(b"")
    assert len(tried) == 1
