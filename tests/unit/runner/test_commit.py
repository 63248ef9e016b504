# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every op over every kind of thing, on file systems that exchange, that do not, and across two; then what others do
to the path meanwhile, and kills, at every step."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from serversync import linux, metadata
from serversync.commit import LARGE, Commit, Op, Result
from serversync.entry import Entry
from serversync.failure import Failure
from serversync.held import stage_of

RUN = "20261122T023000Z-ab12"
NEXT = "20261122T033000Z-ab12"
PRESERVE = frozenset({"times", "permissions", "owner", "group", "links", "hardlinks", "acls", "xattrs"})
KINDS = ("absent", "file", "link", "directory", "fifo")
MOMENT = 1_700_000_000_123_456_789


class Replica:
    """A root with a commit under way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.root = os.open(path, os.O_PATH | os.O_DIRECTORY)
        self.held = ExitStack()
        self.begin(RUN)

    def begin(self, run: str, preserve: frozenset[str] = PRESERVE) -> None:
        """The run before, if there was one, has ended as it does by a kill."""
        self.held.close()
        self.commit = Commit(self.root, "job.1", run, preserve)
        self.held.callback(self.commit.close)
        self.commit.prepare()
        self.stage = self.path / os.fsdecode(stage_of("job.1", run))

    @property
    def versions(self) -> Path:
        return self.path / ".serversync" / "job.1" / "versions"

    def entry(self, path: str) -> Entry | None:
        return entry(self.path / path)

    def do(self, *ops: Op) -> Result:
        """The last op's result."""
        return list(self.commit.carry_out(ops))[-1]

    def stage_file(self, content: str = "new", name: str = "staged") -> Entry:
        (self.stage / name).write_text(content)
        return wanted("f", len(content))

    def coming(self, do: str, path: bytes = b"dir/x", expect: Entry | None = None) -> Op:
        """The op that puts something new there, with all that it needs."""
        if do == "put":
            return Op(do, path, expect, self.stage_file(), {}, b"staged")
        if do == "tree":
            (self.stage / "staged").mkdir()
            (self.stage / "staged" / "child").write_text("new")
            return Op(do, path, expect, wanted("d"), {}, b"staged")
        kind, link = {"mkdir": ("d", b""), "symlink": ("l", b"new"), "special": ("p", b"")}[do]
        return Op(do, path, expect, wanted(kind)._replace(link=link), {})


def wanted(kind: str, size: int = 0) -> Entry:
    mode = 0o777 if kind == "l" else 0o751
    return Entry(kind, 0, 0, MOMENT, size, mode, os.geteuid(), os.getegid(), 1)


def entry(path: Path) -> Entry | None:
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return Entry.of(info, os.fsencode(os.readlink(path)) if path.is_symlink() else b"")


def create(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("old")
    elif kind == "link":
        path.symlink_to("old")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)


def shape(path: Path) -> dict[str, tuple[str, str]]:
    """Kind and content of all there is, but for what the runner keeps."""
    found = {}
    for directory, directories, files in os.walk(path):
        if ".serversync" in directories:
            directories.remove(".serversync")
        for name in directories + files:
            one = Path(directory, name)
            kind = stat.S_IFMT(one.lstat().st_mode)
            content = one.read_text() if kind == stat.S_IFREG else os.readlink(one) if kind == stat.S_IFLNK else ""
            found[str(one.relative_to(path))] = (oct(kind), content)
    return found


def contents(path: Path) -> set[str]:
    return {content for _kind, content in shape(path).values()}


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replica]:
    # Nothing here depends on what a disk does.
    monkeypatch.setattr(linux, "syncfs", lambda descriptor: None)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    made = Replica(tmp_path / "root")
    (made.path / "dir").mkdir()
    with made.held:
        yield made
    os.close(made.root)


def zone(replica: Replica, descriptor: int | None) -> bool | None:
    """Whether the directory is on the file system that the tests pretend the stage and the versions to be on."""
    if descriptor is None:
        return None
    return f"{os.readlink(f'/proc/self/fd/{descriptor}')}/".startswith(f"{replica.path}/.serversync/job.1/")


@pytest.fixture(params=["exchanging", "flagless", "linkless", "two"])
def system(request: pytest.FixtureRequest, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> str:
    """The replica's file system: as it is; without flags of rename; without hard links, too; or two of them."""
    kind = str(request.param)
    pretend(kind, replica, monkeypatch)
    return kind


def pretend(kind: str, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    real_rename, real_link = linux.rename, os.link

    def rename(source: int, old: bytes, target: int, new: bytes, flags: int = 0) -> None:
        if kind == "two" and zone(replica, source) != zone(replica, target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        if kind in ("flagless", "linkless") and flags:
            raise OSError(errno.EINVAL, "Invalid argument")
        real_rename(source, old, target, new, flags)

    def link(old: bytes, new: bytes, **options: int) -> None:
        if kind == "linkless":
            raise OSError(errno.EPERM, "Operation not permitted")
        source = options.get("src_dir_fd")
        if kind == "two" and source is not None and zone(replica, source) != zone(replica, options["dst_dir_fd"]):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real_link(old, new, **options)  # type: ignore[arg-type]

    if kind != "exchanging":
        monkeypatch.setattr(linux, "rename", rename)
        monkeypatch.setattr(os, "link", link)


# What each op does where all is as expected.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("do", ["put", "tree", "mkdir", "symlink", "special"])
def test_something_new_takes_the_place_of_anything(replica: Replica, system: str, do: str, kind: str) -> None:
    path = replica.path / "dir" / "x"
    create(path, kind)
    op = replica.coming(do, expect=replica.entry("dir/x"))
    result = replica.do(op)
    assert result.problem is None
    assert result.entry == entry(path)
    assert op.want
    spare = 0o700 if do == "mkdir" and os.geteuid() else 0
    assert result.entry and result.entry.kind == op.want.kind
    assert (result.entry.mode, result.entry.mtime) == (op.want.mode | spare, MOMENT)
    assert "old" not in contents(replica.path)
    if kind == "absent":
        assert result.version == b""
        assert not list(replica.versions.iterdir())
    else:
        assert result.version.endswith(b"/versions/%b/dir/x" % RUN.encode())
        assert shape(replica.path / os.fsdecode(result.version).rpartition("/")[0])["x"] == before(kind)
    replica.commit.finish()
    assert not list((replica.path / ".serversync" / "job.1" / "stage").iterdir())
    assert not list((replica.path / "dir").glob(".serversync"))


def before(kind: str) -> tuple[str, str]:
    number = {"file": stat.S_IFREG, "link": stat.S_IFLNK, "directory": stat.S_IFDIR, "fifo": stat.S_IFIFO}[kind]
    return oct(number), "old" if kind in ("file", "link") else ""


@pytest.mark.parametrize("kind", KINDS[1:])
def test_delete_puts_it_into_versions(replica: Replica, system: str, kind: str) -> None:
    create(replica.path / "dir" / "x", kind)
    result = replica.do(Op("delete", b"dir/x", replica.entry("dir/x")))
    assert result.problem is None
    assert result.entry is None
    assert shape(replica.path) == {"dir": (oct(stat.S_IFDIR), "")}
    assert shape(replica.versions / RUN / "dir") == {"x": before(kind)}


@pytest.mark.parametrize("kind", [*KINDS[1:], "tree"])
def test_aside_takes_all_along(replica: Replica, system: str, kind: str) -> None:
    create(replica.path / "dir" / "x", "directory" if kind == "tree" else kind)
    if kind == "tree":
        (replica.path / "dir" / "x" / "child").write_text("old")
    result = replica.do(Op("aside", b"dir/x", replica.entry("dir/x"), to=b"dir/y"))
    assert result.problem is None
    assert result.entry == replica.entry("dir/y")
    assert set(shape(replica.path)) == {"dir", "dir/y"} | ({"dir/y/child"} if kind == "tree" else set())


def test_aside_where_directories_cannot_be_renamed_goes_file_by_file(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = replica.path / "dir" / "x"
    (tree / "deeper").mkdir(parents=True)
    (tree / "deeper" / "file").write_text("content")
    (tree / "deeper").chmod(0o750)
    os.utime(tree / "deeper", ns=(MOMENT, MOMENT))
    inode = (tree / "deeper" / "file").stat().st_ino
    real = linux.rename

    def rename(source: int, old: bytes, target: int, new: bytes, flags: int = 0) -> None:
        if stat.S_ISDIR(os.stat(old, dir_fd=source, follow_symlinks=False).st_mode):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, old, target, new, flags)

    monkeypatch.setattr(linux, "rename", rename)
    result = replica.do(Op("aside", b"dir/x", replica.entry("dir/x"), to=b"dir/y"))
    assert result.problem is None
    moved = replica.path / "dir" / "y" / "deeper"
    assert (moved / "file").stat().st_ino == inode
    assert (stat.S_IMODE(moved.stat().st_mode), moved.stat().st_mtime_ns) == (0o750, MOMENT)
    assert not tree.exists()


@pytest.mark.parametrize("kind", ["exchanging", "flagless", "two"])
def test_a_link_is_another_name_of_the_same_file(replica: Replica, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    pretend(kind, replica, monkeypatch)
    (replica.path / "dir" / "a").write_text("old")
    expect = replica.entry("dir/a")
    put = replica.coming("put", b"first")
    result = replica.do(put, Op("link", b"dir/a", expect, put.want, to=b"first"))
    assert result.problem is None
    assert (replica.path / "dir" / "a").samefile(replica.path / "first")
    assert (replica.versions / RUN / "dir" / "a").read_text() == "old"
    again = replica.do(Op("link", b"dir/a", replica.entry("dir/a"), put.want, to=b"first"))
    assert (again.problem, again.version) == (None, b"")
    new = replica.do(Op("link", b"dir/b", None, put.want, to=b"first"))
    assert (new.problem, new.version) == (None, b"")
    assert new.entry == replica.entry("dir/b")
    assert (replica.path / "dir" / "b").samefile(replica.path / "first")


def test_a_link_to_something_else_than_planned_is_not_made(replica: Replica) -> None:
    (replica.path / "first").write_text("quite another file")
    result = replica.do(Op("link", b"dir/a", None, wanted("f", 3), to=b"first"))
    assert result.problem and result.problem.code == "moved"
    assert set(shape(replica.path)) == {"dir", "first"}


def test_names_of_one_file_are_deleted_one_after_the_other(replica: Replica) -> None:
    """Moving the first changes the ctime of the second."""
    (replica.path / "a").write_text("x")
    os.link(replica.path / "a", replica.path / "b")
    first, second = replica.entry("a"), replica.entry("b")
    results = list(replica.commit.carry_out([Op("delete", b"a", first), Op("delete", b"b", second)]))
    assert [result.problem for result in results] == [None, None]
    assert (replica.versions / RUN / "a").samefile(replica.versions / RUN / "b")


def test_names_of_one_file_get_its_metadata_one_after_the_other(replica: Replica) -> None:
    (replica.path / "a").write_text("old")
    for name in ("b", "c"):
        os.link(replica.path / "a", replica.path / name)
    before = entry(replica.path / "a")
    want = wanted("f", 3)
    names = (b"a", b"b", b"c")
    results = list(replica.commit.carry_out([Op("meta", name, before, want, {}) for name in names]))
    assert [result.problem for result in results] == [None] * 3
    assert (replica.path / "c").stat().st_mtime_ns == MOMENT
    # What somebody else does in between is seen.
    before = entry(replica.path / "a")
    ops = [Op("meta", name, before, want._replace(mode=0o600), {}) for name in names]
    results = replica.commit.carry_out(ops)
    assert next(results).problem is None
    (replica.path / "b").chmod(0o640)
    assert [result.problem and result.problem.code for result in results] == ["moved", "moved"]


def test_a_device_is_made_or_refused_with_a_reason(replica: Replica) -> None:
    result = replica.do(Op("special", b"null", None, wanted("c")._replace(rdev=os.makedev(1, 3))))
    if result.problem:
        assert result.problem.code == "not_permitted"
        assert replica.entry("null") is None
    else:
        assert result.entry and result.entry.rdev == os.makedev(1, 3)


def test_a_socket(replica: Replica) -> None:
    assert replica.do(Op("special", b"s", None, wanted("s"), {})).problem is None
    assert stat.S_ISSOCK((replica.path / "s").stat().st_mode)


def test_a_tree_is_built_in_the_stage_and_put_in_one_piece(replica: Replica) -> None:
    (replica.stage / "t").mkdir()
    (replica.stage / "t" / "file").write_text("x")
    narrow = wanted("d")._replace(mode=0o555)
    file = wanted("f", 1)._replace(mode=0o600)
    results = list(
        replica.commit.carry_out(
            [
                Op("mkdir", b"t/inner", None, narrow, stage=True),
                Op("symlink", b"t/inner/link", None, wanted("l")._replace(link=b"x"), {}, stage=True),
                Op("special", b"t/inner/fifo", None, wanted("p"), {}, stage=True),
                Op("meta", b"t/file", None, file, {}, stage=True),
                Op("link", b"t/inner/same", None, file, to=b"t/file", stage=True),
                Op("meta", b"t/inner", None, narrow, {}, stage=True),
                Op("tree", b"dir/t", None, narrow, {}, b"t"),
            ]
        )
    )
    assert [result.problem for result in results] == [None] * 7
    tree = replica.path / "dir" / "t"
    assert set(shape(tree)) == {"file", "inner", "inner/link", "inner/fifo", "inner/same"}
    assert (tree / "file").samefile(tree / "inner" / "same")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tree, tree / "inner", tree / "file")] == [
        0o555,
        0o555,
        0o600,
    ]
    assert {path.lstat().st_mtime_ns for path in (tree, tree / "inner", tree / "inner" / "link")} == {MOMENT}


# What has moved since it was looked at stays as it is.


def vanish(path: Path) -> None:
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def rewrite(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
        path.symlink_to("edited")
    elif path.is_file():
        path.write_text("edited")
    else:
        replace_by_file(path)


def replace_by_file(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("edited")
    vanish(path)
    other.rename(path)


def touch(path: Path) -> None:
    """Same size, same time: only ctime tells."""
    info = path.lstat()
    if path.is_file() and not path.is_symlink():
        path.write_text("OLD")
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    else:
        replace_by_file(path)


def change_mode(path: Path) -> None:
    if path.is_symlink():
        os.utime(path, ns=(5, 5), follow_symlinks=False)
    else:
        path.chmod(0o711)


@pytest.mark.parametrize("disturb", [vanish, rewrite, replace_by_file, touch, change_mode])
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("do", ["put", "tree", "mkdir", "symlink", "special", "link", "meta", "delete", "aside"])
def test_what_has_moved_stays(replica: Replica, do: str, kind: str, disturb: Callable[[Path], None]) -> None:
    path = replica.path / "dir" / "x"
    create(path, kind)
    expect = replica.entry("dir/x")
    if do in ("put", "tree", "mkdir", "symlink", "special"):
        op = replica.coming(do, expect=expect)
    else:
        (replica.path / "first").write_text("new")
        op = Op(do, b"dir/x", expect, wanted("f", 3), {}, to={"aside": b"y", "link": b"first"}.get(do, b""))
    disturb(path)
    tree, found = shape(replica.path), replica.entry("dir/x")
    result = replica.do(op)
    assert result.problem and result.problem.code == "moved"
    assert (result.entry, result.version) == (None, b"")
    assert (shape(replica.path), replica.entry("dir/x")) == (tree, found)
    assert contents(replica.versions) <= {""}


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("do", ["put", "tree", "mkdir", "symlink", "special", "link"])
def test_a_name_taken_meanwhile_stays_taken(replica: Replica, system: str, do: str, kind: str) -> None:
    (replica.path / "first").write_text("new")
    op = Op("link", b"dir/x", None, wanted("f", 3), to=b"first") if do == "link" else replica.coming(do)
    create(replica.path / "dir" / "x", kind)
    found = replica.entry("dir/x")
    if do == "tree" and kind == "directory":
        (replica.path / "dir" / "x" / "theirs").write_text("x")
        found = replica.entry("dir/x")
    result = replica.do(op)
    cannot_link = do == "link" and system == "linkless"
    assert result.problem and result.problem.code == ("not_permitted" if cannot_link else "moved")
    assert replica.entry("dir/x") == found


def test_a_directory_goes_only_when_it_is_empty(replica: Replica, system: str) -> None:
    (replica.path / "dir" / "file").write_text("x")
    for op in (Op("delete", b"dir", replica.entry("dir")), replica.coming("put", b"dir", replica.entry("dir"))):
        result = replica.do(op)
        assert result.problem and result.problem.code == "not_empty"
        assert set(shape(replica.path)) == {"dir", "dir/file"}
        assert not list((replica.versions / RUN).iterdir())


def test_aside_does_not_displace_either(replica: Replica, system: str) -> None:
    for name in ("x", "y"):
        (replica.path / name).write_text(name)
    result = replica.do(Op("aside", b"x", replica.entry("x"), to=b"y"))
    assert result.problem and result.problem.code == "moved"
    assert [(replica.path / name).read_text() for name in ("x", "y")] == ["x", "y"]


@pytest.mark.parametrize(
    ("size", "kind"), [(2, "f"), (3, "l"), (3, "d")], ids=["another size", "another kind", "no directory"]
)
def test_what_did_not_arrive_as_planned_is_not_put(replica: Replica, size: int, kind: str) -> None:
    replica.stage_file("new")
    do = "tree" if kind == "d" else "put"
    result = replica.do(Op(do, b"x", None, wanted(kind, size), {}, b"staged"))
    assert result.problem and result.problem.code == "not_staged"
    missing = replica.do(Op(do, b"x", None, wanted(kind, size), {}, b"never/came"))
    assert missing.problem and missing.problem.code == "not_staged"
    assert replica.entry("x") is None


# Ways out of the root, and into what the runner keeps.


@pytest.mark.parametrize(
    "path",
    [b"", b"/x", b"x/", b"a//b", b".", b"..", b"../x", b"dir/../../x", b"dir/./x", b"x\0y", b".serversync",
     b".serversync/job.1/marker.json", b"dir/.serversync/x"],
)  # fmt: skip
def test_paths_that_are_none(replica: Replica, path: bytes) -> None:
    good = replica.coming("put", b"fine")
    (replica.path / "first").write_text("new")
    for op in (
        good._replace(path=path),
        good._replace(staged=path),
        Op("aside", b"first", replica.entry("first"), to=path),
        Op("link", b"fine", None, wanted("f", 3), to=path),
        Op("mkdir", path, None, wanted("d"), stage=True),
    ):
        result = replica.do(op)
        assert result.problem and result.problem.code == "bad_path"
    assert set(shape(replica.path)) == {"dir", "first"}


@pytest.mark.parametrize("word", ["", "..", "a/b", "~1", "x~y", "x~1/.."])
def test_names_that_are_no_directories(replica: Replica, word: str) -> None:
    for element, run in ((word, RUN), ("job.1", word)):
        with pytest.raises(Failure, match="is not a name for a directory"):
            Commit(replica.root, element, run, PRESERVE)


@pytest.mark.parametrize("do", ["put", "tree", "mkdir", "symlink", "special", "meta", "delete", "aside"])
def test_no_link_is_followed(replica: Replica, tmp_path: Path, do: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("theirs")
    (replica.path / "way").symlink_to(outside)
    expect = entry(outside / "x") if do in ("meta", "delete", "aside") else None
    on_theirs = Op(do, b"way/x", expect, wanted("f", 6), {}, to=b"y")
    op = on_theirs if expect else replica.coming(do, b"way/new")
    info = (outside / "x").stat()
    result = replica.do(op)
    assert result.problem and result.problem.code == "moved"
    assert shape(outside) == {"x": (oct(stat.S_IFREG), "theirs")}
    assert (outside / "x").stat().st_ctime_ns == info.st_ctime_ns


def test_a_link_in_the_place_of_the_runners_directory_is_refused(tmp_path: Path) -> None:
    for name in ("root", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "root" / ".serversync").symlink_to(tmp_path / "outside")
    root = os.open(tmp_path / "root", os.O_PATH)
    with pytest.raises(Failure, match=r"cannot be made ready"):
        Commit(root, "job.1", RUN, PRESERVE).prepare()
    os.close(root)
    assert not list((tmp_path / "outside").iterdir())


def test_a_directory_swapped_between_two_batches_is_looked_up_again(replica: Replica) -> None:
    assert replica.do(replica.coming("put", b"dir/a")).problem is None
    (replica.path / "dir").rename(replica.path.parent / "taken")
    (replica.path / "dir").mkdir()
    assert replica.do(replica.coming("put", b"dir/b")).problem is None
    assert (replica.path / "dir" / "b").read_text() == "new"


def test_depth_beyond_what_a_path_may_be_long(replica: Replica) -> None:
    deep = [b"d" * 200 for _level in range(64)]
    for level in range(1, len(deep) + 1):
        assert replica.do(Op("mkdir", b"/".join(deep[:level]), None, wanted("d"))).problem is None
    path = b"/".join([*deep, b"n" * 255])
    put = replica.do(replica.coming("put", path))
    assert put.problem is None
    replaced = replica.do(replica.coming("put", path, put.entry))
    assert replaced.problem is None
    assert replica.do(Op("delete", path, replaced.entry)).version.startswith(
        b".serversync/job.1/versions/%b~1/" % RUN.encode()
    )


# Metadata.


def test_metadata_in_place(replica: Replica) -> None:
    path = replica.path / "x"
    path.write_text("content")
    want = wanted("f", 7)._replace(mode=0o600)
    result = replica.do(Op("meta", b"x", replica.entry("x"), want, {"user.note": b"1"}))
    assert result.problem is None
    assert result.entry == replica.entry("x")
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime_ns) == (0o600, MOMENT)
    assert os.getxattr(path, "user.note") == b"1"
    result = replica.do(Op("meta", b"x", result.entry, want, {}))
    assert os.listxattr(path) == []
    still = replica.do(Op("meta", b"x", result.entry, want, {}))
    assert still.entry == result.entry, "what is right already is not set again"


def test_metadata_of_the_root_and_of_a_link(replica: Replica) -> None:
    (replica.path / "l").symlink_to("nowhere")
    link = replica.do(Op("meta", b"l", replica.entry("l"), wanted("l"), {}))
    root = replica.do(Op("meta", b"", entry(replica.path), wanted("d"), {}))
    assert (link.problem, root.problem) == (None, None)
    assert link.entry == replica.entry("l")
    assert (stat.S_IMODE(replica.path.stat().st_mode), replica.path.stat().st_mtime_ns) == (0o751, MOMENT)
    assert (replica.path / "l").lstat().st_mtime_ns == MOMENT


@pytest.mark.parametrize(("without", "field", "kept"), [("permissions", "mode", 0o640), ("times", "mtime", None)])
def test_what_is_not_preserved_stays_as_what_was_replaced(
    replica: Replica, without: str, field: str, kept: int | None
) -> None:
    replica.commit.finish()
    replica.begin(NEXT, PRESERVE - {without})
    (replica.path / "x").write_text("old")
    (replica.path / "x").chmod(0o640)
    result = replica.do(replica.coming("put", b"x", replica.entry("x")))
    assert result.problem is None
    assert result.entry and getattr(result.entry, field) != getattr(wanted("f"), field)
    assert kept is None or getattr(result.entry, field) == kept


def test_owners_are_set_or_told(replica: Replica) -> None:
    op = replica.coming("put", b"x")
    assert op.want
    result = replica.do(op._replace(want=op.want._replace(uid=12345, gid=23456, mode=0o6755)))
    assert result.entry == replica.entry("x"), "in place in any case"
    assert result.entry
    if os.geteuid() == 0:
        assert result.problem is None
        assert (result.entry.uid, result.entry.gid, result.entry.mode) == (12345, 23456, 0o6755)
    else:
        assert result.problem and result.problem.code == "owner"
        assert result.entry.mode == 0o755


@pytest.mark.parametrize("moment", ["chmod", "utime"])
@pytest.mark.parametrize("size", [7, 8])
def test_an_edit_while_metadata_are_set_is_seen(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, moment: str, size: int
) -> None:
    path = replica.path / "x"
    path.write_text("content")
    module, name = {"chmod": (metadata, "set_mode"), "utime": (metadata, "set_time")}[moment]
    real = getattr(module, name)

    def edited(handle: int, value: int) -> None:
        real(handle, value)
        path.write_text("e" * size)

    monkeypatch.setattr(module, name, edited)
    result = replica.do(Op("meta", b"x", replica.entry("x"), wanted("f", 7), {}))
    assert result.problem and result.problem.code == "moved"
    assert path.read_text() == "e" * size
    assert path.stat().st_mtime_ns != MOMENT


def test_a_program_never_runs_as_somebody_whose_it_was_not(replica: Replica) -> None:
    replica.begin(NEXT, PRESERVE - {"owner", "group"})
    op = replica.coming("put", b"x")
    assert op.want
    result = replica.do(op._replace(want=op.want._replace(uid=12345, gid=23456, mode=0o6755)))
    assert result.problem is None
    assert result.entry and result.entry.mode == 0o755


def acl(*entries: tuple[int, int, int]) -> bytes:
    """posix_acl_xattr.h: version 2, then tag, permissions, id of each entry."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)


ACCESS = acl((1, 6, 0xFFFFFFFF), (2, 6, 7), (4, 4, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
INHERITED = acl((1, 7, 0xFFFFFFFF), (2, 7, 7), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 5, 0xFFFFFFFF))


def test_acls_come_and_go(replica: Replica) -> None:
    op = replica.coming("put", b"x")
    assert op.want
    want = op.want._replace(mode=0o660)
    result = replica.do(op._replace(want=want, attributes={"system.posix_acl_access": ACCESS}))
    assert result.problem is None
    assert os.getxattr(replica.path / "x", "system.posix_acl_access") == ACCESS
    assert result.entry and result.entry.mode == 0o660
    result = replica.do(Op("meta", b"x", result.entry, want, {}))
    assert os.listxattr(replica.path / "x") == []
    assert result.entry and result.entry.mode == 0o660


def test_the_stage_inherits_no_acl(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    os.setxattr(tmp_path / "root", "system.posix_acl_default", INHERITED)
    (tmp_path / "root").rename(tmp_path / "made")
    root = os.open(tmp_path / "made", os.O_PATH)
    commit = Commit(root, "job.1", RUN, PRESERVE)
    commit.prepare()
    stage = tmp_path / "made" / os.fsdecode(stage_of("job.1", RUN))
    (stage / "x").write_text("")
    assert os.listxattr(stage / "x") == []
    commit.close()
    os.close(root)


@pytest.mark.parametrize("at_once", [False, True], ids=["salvaged", "kept by rsync"])
def test_a_part_of_a_file_is_its_contents_and_nothing_else(replica: Replica, at_once: bool) -> None:
    """rsync goes on in the file itself, for whatever path of this name there is then."""
    kept = replica.versions.parent / "partial"
    kept.mkdir(mode=0o700, exist_ok=True)
    part = kept / "image" if at_once else replica.stage / "image"
    part.write_bytes(b"x" * LARGE)
    part.chmod(0o4755)
    if os.geteuid() == 0:
        os.chown(part, 1, 1)
    os.setxattr(part, "user.secret", b"x")
    os.setxattr(part, "system.posix_acl_access", ACCESS)
    replica.begin(NEXT)
    info = (kept / "image").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o600, os.geteuid(), os.getegid())
    assert (info.st_size, os.listxattr(kept / "image")) == (LARGE, [])


@pytest.mark.parametrize("at_once", [False, True], ids=["salvaged", "kept by rsync"])
def test_what_somebody_still_writes_to_is_no_part_to_go_on_from(replica: Replica, at_once: bool) -> None:
    """The rsync of a run whose connection was lost writes its last words when it notices, minutes later."""
    kept = replica.versions.parent / "partial"
    kept.mkdir(mode=0o700, exist_ok=True)
    with (kept / "image" if at_once else replica.stage / "image").open("wb") as orphan:
        orphan.truncate(LARGE)
        replica.begin(NEXT)
        assert list(kept.iterdir()) == []


def test_an_attribute_that_is_refused_is_told(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    result = replica.do(replica.coming("put", b"x")._replace(attributes={"user.a": b"1"}))
    assert result.problem == ("attributes", "its attribute user.a cannot be set: Operation not supported")
    assert result.entry == replica.entry("x")


# What the system refuses.


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EPERM, "not_permitted"), (errno.EROFS, "not_permitted"), (errno.ENOSPC, "no_space"), (errno.EIO, "io")],
)
@pytest.mark.parametrize("do", ["put", "replace", "delete", "aside"])
def test_a_refusal_is_a_problem_and_nothing_moves(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, do: str, number: int, code: str
) -> None:
    """As of an immutable file: the live side of a rename is refused."""
    (replica.path / "dir" / "x").write_text("old")
    expect = replica.entry("dir/x")
    op = {
        "put": replica.coming("put", b"dir/y"),
        "replace": replica.coming("put", b"dir/x", expect),
        "delete": Op("delete", b"dir/x", expect),
        "aside": Op("aside", b"dir/x", expect, to=b"dir/z"),
    }[do]
    real = linux.rename

    def rename(source: int, old: bytes, target: int, new: bytes, flags: int = 0) -> None:
        if zone(replica, source) is False or zone(replica, target) is False:
            raise OSError(number, os.strerror(number))
        real(source, old, target, new, flags)

    monkeypatch.setattr(linux, "rename", rename)
    result = replica.do(op)
    assert result.problem == (code, os.strerror(number))
    assert shape(replica.path / "dir") == {"x": before("file")}
    assert contents(replica.versions) <= {""}
    monkeypatch.undo()
    assert replica.do(op._replace(expect=replica.entry(os.fsdecode(op.path)))).problem is None


@pytest.mark.parametrize(("kind", "do"), [("flagless", "replace"), ("two", "replace"), ("two", "delete")])
def test_what_was_kept_for_nothing_is_no_version(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, kind: str, do: str
) -> None:
    """Where versions get the old content before anything is replaced, and that is refused then."""
    (replica.path / "dir" / "x").write_text("old")
    expect = replica.entry("dir/x")
    op = replica.coming("put", expect=expect) if do == "replace" else Op("delete", b"dir/x", expect)
    pretend(kind, replica, monkeypatch)
    real, real_plain = linux.rename, os.rename

    def rename(source: int, old: bytes, target: int, new: bytes, flags: int = 0) -> None:
        if zone(replica, source) is False and zone(replica, target) is False:
            raise OSError(errno.EIO, "Input/output error")
        real(source, old, target, new, flags)

    def plain(old: bytes, new: bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        if zone(replica, dst_dir_fd) is False:
            raise OSError(errno.EIO, "Input/output error")
        real_plain(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(linux, "rename", rename)
    monkeypatch.setattr(os, "rename", plain)
    result = replica.do(op)
    assert result.problem == ("io", "Input/output error")
    assert shape(replica.path) == {"dir": (oct(stat.S_IFDIR), ""), "dir/x": before("file")}
    assert contents(replica.versions) == {""}


# What others do meanwhile.


class Killed(BaseException):
    """Like SIGKILL: no handler of the code sees it as an error that it could cure."""


CALLS = (
    (linux, "rename"),
    *((os, name) for name in ("rename", "link", "unlink", "rmdir", "mkdir", "mknod", "symlink")),
)


def intercept(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None], *, after: bool = False) -> list[int]:
    """Lets ``act`` happen at every call that changes a directory, with its number, from 1; returns those so far."""
    calls: list[int] = []
    acting = False

    def wrap(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            nonlocal acting
            if acting:
                real(*arguments, **options)
                return
            calls.append(len(calls) + 1)
            number = calls[-1]
            try:
                if after:
                    real(*arguments, **options)
            finally:
                acting = True
                try:
                    act(number)
                finally:
                    acting = False
            if not after:
                real(*arguments, **options)

        return call

    for module, name in CALLS:
        monkeypatch.setattr(module, name, wrap(getattr(module, name)))
    return calls


def batch(replica: Replica) -> list[Op]:
    """An op of each kind that displaces or moves, and one that makes; contents are the tokens."""
    for name in ("replaced", "deleted", "aside", "retyped"):
        (replica.path / name).write_text(f"old {name}")
    new = replica.stage_file("new replaced", "one")
    made = replica.stage_file("new made", "two")
    return [
        Op("put", b"replaced", replica.entry("replaced"), new, {}, b"one"),
        Op("put", b"made", None, made, {}, b"two"),
        Op("delete", b"deleted", replica.entry("deleted")),
        Op("aside", b"aside", replica.entry("aside"), to=b"beside"),
        Op("symlink", b"retyped", replica.entry("retyped"), wanted("l")._replace(link=b"new retyped"), {}),
    ]


OLD = {"old replaced", "old deleted", "old aside", "old retyped"}
NEW = {"new replaced", "new made", "new retyped"}


def kept(replica: Replica) -> set[str]:
    return contents(replica.path) | contents(replica.versions)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_step_nothing_is_lost(
    replica: Replica, system: str, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    step = 0

    def kill(number: int) -> None:
        if number == step:
            raise Killed

    while True:
        step += 1
        clear(replica)
        ops = batch(replica)
        with monkeypatch.context() as patched:
            calls = intercept(patched, kill, after=after)
            try:
                done = [result.problem for result in replica.commit.carry_out(ops)]
            except Killed:
                done = None
        if done is not None:
            break
        assert kept(replica) >= OLD
        for name in ("replaced", "made", "retyped"):
            content = shape(replica.path).get(name, ("", "absent"))[1]
            assert content in (f"old {name}", f"new {name}", "absent")
            # Only a change of type has no single step where nothing can be exchanged.
            assert content != "absent" or name == "made" or (name == "retyped" and system != "exchanging")
        # The next run: it knows nothing of the first, and ends where that one would have.
        replica.begin(NEXT)
        for op in replan(replica):
            assert replica.do(op).problem is None
        replica.commit.finish()
        assert contents(replica.path) == {*NEW, "old aside"}
        assert kept(replica) >= OLD | NEW
    assert done == [None] * 5
    assert step > len(ops) and len(calls) == step - 1


def clear(replica: Replica) -> None:
    for path in replica.path.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    replica.begin(RUN)


def replan(replica: Replica) -> list[Op]:
    """What is left to do, decided by what is there now."""
    ops = []
    for name, staged in (("replaced", "one"), ("made", "two")):
        if f"new {name}" not in contents(replica.path):
            want = replica.stage_file(f"new {name}", staged)
            ops.append(Op("put", name.encode(), replica.entry(name), want, {}, staged.encode()))
    if replica.entry("deleted"):
        ops.append(Op("delete", b"deleted", replica.entry("deleted")))
    if replica.entry("aside"):
        if replica.entry("beside"):
            ops.append(Op("delete", b"beside", replica.entry("beside")))
        ops.append(Op("aside", b"aside", replica.entry("aside"), to=b"beside"))
    if "new retyped" not in contents(replica.path):
        want = wanted("l")._replace(link=b"new retyped")
        ops.append(Op("symlink", b"retyped", replica.entry("retyped"), want, {}))
    return ops


class Editor:
    """Somebody who writes a path at so many steps; ``last``: what they wrote last."""

    def __init__(self, path: Path, edit: Callable[[Path, str], bool], steps: range) -> None:
        self.path = path
        self.edit = edit
        self.steps = steps
        self.last = ""

    def act(self, number: int) -> None:
        if number in self.steps:
            own = self.path.is_file() and self.path.read_text() == self.last
            if self.edit(self.path, f"edit {number}"):
                self.last = f"edit {number}"
            elif own and not self.path.exists():
                self.last = ""


def edit_in_place(path: Path, text: str) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    path.write_text(text)
    return True


def edit_by_rename(path: Path, text: str) -> bool:
    other = path.parent / "editor's"
    other.write_text(text)
    other.rename(path)
    return True


def edit_if_there(path: Path, text: str) -> bool:
    return path.exists() and edit_by_rename(path, text)


def edit_after_removal(path: Path, text: str) -> bool:
    path.unlink(missing_ok=True)
    return edit_by_rename(path, text)


def remove_or_edit(path: Path, text: str) -> bool:
    """Gone at one step, and there again at the next."""
    if path.exists() or path.is_symlink():
        path.unlink()
        return False
    return edit_by_rename(path, text)


@pytest.mark.parametrize(
    ("edit", "times", "after"),
    [
        *((edit, times, False) for edit in (edit_in_place, edit_by_rename) for times in (1, 2, 99)),
        (edit_in_place, 1, True),
        (edit_by_rename, 1, True),
        (edit_if_there, 2, False),
        (edit_after_removal, 1, False),
        (remove_or_edit, 2, False),
    ],
)
@pytest.mark.parametrize("name", ["replaced", "made", "deleted", "aside", "retyped"])
@pytest.mark.parametrize("kind", ["exchanging", "two"])
def test_an_edit_at_any_step_is_kept(
    replica: Replica,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    name: str,
    edit: Callable[[Path, str], bool],
    times: int,
    after: bool,
) -> None:
    """What somebody else wrote last is at its path or in versions, and nothing of any other path is disturbed."""
    pretend(kind, replica, monkeypatch)
    edits = 0
    for step in count(1):
        clear(replica)
        ops = batch(replica)
        editor = Editor(replica.path / name, edit, range(step, step + times))
        with monkeypatch.context() as patched:
            calls = intercept(patched, editor.act, after=after)
            results = list(replica.commit.carry_out(ops))
        if len(calls) < step:
            break
        edits += bool(editor.last)
        assert not editor.last or editor.last in kept(replica)
        assert kept(replica) >= OLD - {f"old {name}"}
        entries = [result.entry for result in results if result.path == name.encode()]
        if editor.last and editor.last in contents(replica.path):
            assert replica.entry(name) not in entries, "an edit is not taken for what was put"
        assert [result.path for result in results if result.problem and result.path != name.encode()] == []
        replica.commit.finish()
    assert edits


# Between runs.


def test_what_a_dead_run_staged_is_removed_and_its_versions_are_not(replica: Replica) -> None:
    (replica.path / "x").write_text("old")
    assert replica.do(Op("delete", b"x", replica.entry("x"))).problem is None
    deep = replica.stage
    for _level in range(40):
        deep = deep / "a"
    deep.mkdir(parents=True)
    (deep / "file").write_text("left")
    deep.chmod(0o500)
    (replica.stage / "0").mkdir()
    replica.begin(NEXT)
    assert {path.name for path in replica.stage.parent.iterdir()} == {NEXT, f"{NEXT}~made"}
    assert not list((replica.path / ".serversync" / "job.1" / "trash").iterdir())
    assert (replica.versions / RUN / "x").read_text() == "old"


def test_a_path_displaced_twice_in_one_run_has_two_versions(replica: Replica) -> None:
    for content in ("one", "two", "three"):
        (replica.path / "dir" / "x").write_text(content)
        assert replica.do(Op("delete", b"dir/x", replica.entry("dir/x"))).problem is None
    found = [(replica.versions / run / "dir" / "x").read_text() for run in (RUN, f"{RUN}~1", f"{RUN}~2")]
    assert found == ["one", "two", "three"]


def test_a_directory_where_versions_have_a_file(replica: Replica) -> None:
    (replica.path / "x").write_text("file")
    replica.do(Op("delete", b"x", replica.entry("x")))
    (replica.path / "x").mkdir()
    (replica.path / "x" / "y").write_text("below")
    assert replica.do(Op("delete", b"x/y", replica.entry("x/y"))).problem is None
    assert replica.do(Op("delete", b"x", replica.entry("x"))).problem is None
    assert (replica.versions / RUN / "x").read_text() == "file"
    assert (replica.versions / f"{RUN}~1" / "x" / "y").read_text() == "below"


def test_the_directories_of_the_runner_are_closed_to_others(replica: Replica) -> None:
    own = replica.path / ".serversync"
    for path in (own, own / "job.1", replica.versions, replica.stage):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    own.chmod(0o755)
    replica.begin(NEXT)
    assert stat.S_IMODE(own.stat().st_mode) == 0o700


def test_what_a_kill_left_next_to_a_path_does_not_keep_a_directory(replica: Replica) -> None:
    left = replica.path / "dir" / ".serversync" / "job.1~near"
    left.mkdir(parents=True)
    (left / "copy").write_text("x")
    assert replica.do(Op("delete", b"dir", replica.entry("dir"))).problem is None
    (replica.path / "other" / ".serversync" / "job.2").mkdir(parents=True)
    kept_for_another = replica.do(Op("delete", b"other", replica.entry("other")))
    assert kept_for_another.problem and kept_for_another.problem.code == "not_empty"


def test_the_staged_is_on_the_disk_before_it_is_put(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_sync, real_rename = linux.syncfs, linux.rename
    monkeypatch.setattr(linux, "syncfs", lambda descriptor: (order.append("sync"), real_sync(descriptor))[1])
    monkeypatch.setattr(linux, "rename", lambda *given: (order.append("rename"), real_rename(*given))[1])
    one = replica.stage_file("1", "one")
    two = replica.stage_file("2", "two")
    list(replica.commit.carry_out([Op("put", b"1", None, one, {}, b"one"), Op("put", b"2", None, two, {}, b"two")]))
    assert order == ["sync", "rename", "rename"]


def test_a_sync_that_fails_puts_nothing(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(linux, "syncfs", fail)
    with pytest.raises(OSError, match="Input/output error"):
        replica.do(replica.coming("put", b"x"))
    assert replica.entry("x") is None


def test_what_is_dropped_from_the_stage_never_becomes_visible(tmp_path: Path) -> None:
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    commit = Commit(root, "job.1", "20261122T023000Z-ab12", frozenset())
    commit.prepare()
    stage = tmp_path / os.fsdecode(stage_of("job.1", "20261122T023000Z-ab12"))
    (stage / "new").mkdir()
    (stage / "new" / "torn").write_text("torn")
    [dropped] = commit.carry_out([Op("drop", b"new/torn", stage=True)])
    [put] = commit.carry_out([Op("tree", b"new", None, Entry.of((stage / "new").stat()), None, b"new")])
    assert (dropped.problem, put.problem) == (None, None)
    assert list((tmp_path / "new").iterdir()) == []
    commit.finish()
    os.close(root)
