# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A replica on an SFTP server, operation by operation: OpenSSH's own server at the other end of a pipe."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serversync.commit import Op, Refused
from serversync.entry import Entry
from serversync.failure import Failure
from serversync.place import started
from serversync.replica import Coming
from serversync.sftp import upload
from serversync.sftptree import SftpTree
from serversync.sftpwire import EXTENDED, OPENDIR, READ, RENAME, Session

SERVER = "/usr/lib/openssh/sftp-server"
WEAK = ["-P", "posix-rename,hardlink,fsync,statvfs,lsetstat,limits"]
LOST = Failure("connection", "gone", transient=True)
PRESERVE = frozenset(("permissions", "times"))


class Pipe:
    """A server at the other end of a pipe; ``before`` sees each request before it is sent."""

    def __init__(self, *options: str) -> None:
        self.server = subprocess.Popen([SERVER, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.server.stdin is not None and self.server.stdout is not None
        self.write, self.read = self.server.stdin, self.server.stdout
        self.before: Callable[[int, bytes], None] = lambda _kind, _payload: None

    def sendall(self, data: bytes) -> None:
        self.before(data[4], data[9:])
        self.write.write(data)
        self.write.flush()

    def recv(self, size: int) -> bytes:
        return os.read(self.read.fileno(), size)

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self.write.close()
        self.server.wait()
        self.read.close()


@pytest.fixture(params=[[], WEAK], ids=["openssh", "weak"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipe]:
    pipe = Pipe(*request.param)
    yield pipe
    pipe.close()


def opened(pipe: Pipe, path: Path, run: str = "20200101T000000Z-0000", **options: Any) -> SftpTree:
    session = Session(pipe, LOST)
    given: dict[str, Any] = {"element": "job.1", "run": run, "writable": True, "look": False, "owner": "me", **options}
    return SftpTree(
        session, str(path), "directory", name=b"", partner="nas", machine="m", spend=lambda _n: None, warned=[], **given
    )


@pytest.fixture
def tree(pipe: Pipe, tmp_path: Path) -> Iterator[SftpTree]:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_text("old")
    (root / "dir").mkdir()
    (root / "dir" / "inner").write_text("inner")
    (root / "empty").mkdir()
    (root / "link").symlink_to("old")
    for path in ("old", "dir/inner"):
        os.utime(root / path, (10**9, 10**9))
    tree = opened(pipe, root)
    tree.scan(b"", [], [], frozenset(), 0)
    tree.prepare(PRESERVE)
    yield tree
    tree.close()


def entry(tree: SftpTree, path: bytes) -> Entry:
    [(_path, found)] = tree.entries([path])
    assert isinstance(found, Entry)
    return found


def coming(tree: SftpTree, path: bytes, content: bytes = b"new content") -> Entry:
    """Stages a file; what is wanted of it."""
    want = Entry("f", 0, 0, 2 * 10**9, len(content), 0o640, os.getuid(), os.getgid(), 1)
    tree.make_parents([path])
    assert tree.session.run(tree.upload(path, [(0, content)], len(content), want, None)) == []
    return want


def do(tree: SftpTree, *ops: Op) -> list[tuple[str, bytes]]:
    """Problem and version of each."""
    return [(result.problem.code if result.problem else "", result.version) for result in tree.commit(ops)]


def below(root: Path) -> dict[str, str]:
    """Links and contents, versions and stage too."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = Path(directory) / name
            shown = str(path.relative_to(root))
            if path.is_symlink():
                found[shown] = f"-> {os.readlink(path)}"
            elif path.is_file():
                found[shown] = path.read_text()
            elif not any(path.iterdir()):
                found[shown] = "(empty)"
    return {path: content for path, content in found.items() if not path.endswith("/.lock")}


VERSIONS = ".serversync/job.1/versions/20200101T000000Z-0000"
STAGE = ".serversync/job.1/stage/20200101T000000Z-0000"


@pytest.fixture
def root(tree: SftpTree) -> Path:
    return Path(tree.path)


def test_a_new_file_and_one_in_the_place_of_another(tree: SftpTree, root: Path) -> None:
    wants = [coming(tree, path) for path in (b"new", b"old", b"dir/inner")]
    ops = [
        Op("put", b"new", None, wants[0], None, b"new"),
        Op("put", b"old", entry(tree, b"old"), wants[1], None, b"old"),
        Op("put", b"dir/inner", entry(tree, b"dir/inner"), wants[2], None, b"dir/inner"),
    ]
    results = list(tree.commit(ops))
    assert [result.problem for result in results] == [None] * 3
    assert [result.version for result in results] == [b"", f"{VERSIONS}/old".encode(), f"{VERSIONS}/dir/inner".encode()]
    assert [(it.mode, it.mtime, it.size) for it in (result.entry for result in results) if it] == [
        (0o640, 2 * 10**9, 11)
    ] * 3
    tree.finish()
    tree.sync()
    assert below(root) == {
        "new": "new content",
        "old": "new content",
        "dir/inner": "new content",
        "empty": "(empty)",
        "link": "-> old",
        f"{VERSIONS}/old": "old",
        f"{VERSIONS}/dir/inner": "inner",
        ".serversync/job.1/stage": "(empty)",
    }


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda path: path.write_text("longer than it was"),
    "time": lambda path: os.utime(path, (5, 5)),
    "mode": lambda path: path.chmod(0o600),
    "gone": lambda path: path.unlink(),
    "kind": lambda path: subprocess.run(["ln", "-sf", "x", str(path)], check=True),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("do_what", ["put", "delete", "aside", "meta", "symlink"])
def test_what_has_changed_since_it_was_looked_at_is_left_alone(
    tree: SftpTree, root: Path, do_what: str, change: str
) -> None:
    want = coming(tree, b"old") if do_what == "put" else entry(tree, b"old")._replace(mode=0o400)
    if do_what == "symlink":
        want = Entry("l", 0, 0, 0, 1, 0o777, 0, 0, 1, b"x")
    op = Op(do_what, b"old", entry(tree, b"old"), want, None, b"old" if do_what == "put" else b"")
    if do_what == "aside":
        op = op._replace(to=b"aside", want=None)
    CHANGES[change](root / "old")
    before = {path: content for path, content in below(root).items() if not path.startswith(".serversync")}
    mode = os.lstat(root / "old").st_mode if change != "gone" else 0
    assert do(tree, op) == [("moved", b"")]
    after = {path: content for path, content in below(root).items() if not path.startswith(".serversync")}
    assert after == before
    assert change == "gone" or os.lstat(root / "old").st_mode == mode
    # And nothing is kept that was not displaced.
    assert not [path for path in below(root) if path.startswith(VERSIONS + "/old")]


@pytest.mark.parametrize("there", ["file", "link", "directory"])
def test_a_name_that_was_free_and_is_taken_is_left_alone(tree: SftpTree, root: Path, there: str) -> None:
    want = coming(tree, b"new")
    if there == "file":
        (root / "new").write_text("theirs")
    elif there == "link":
        (root / "new").symlink_to("nowhere")
    else:
        (root / "new").mkdir()
    before = below(root)
    assert do(tree, Op("put", b"new", None, want, None, b"new")) == [("moved", b"")]
    assert do(tree, Op("mkdir", b"new", None, Entry("d", 0, 0, 0, 0, 0o755, 0, 0, 1))) == [("moved", b"")]
    assert do(tree, Op("symlink", b"new", None, Entry("l", 0, 0, 0, 1, 0o777, 0, 0, 1, b"x"))) == [("moved", b"")]
    assert do(tree, Op("aside", b"old", entry(tree, b"old"), None, None, b"", b"new")) == [("moved", b"")]
    assert {path: it for path, it in below(root).items() if not path.startswith(STAGE)} == {
        path: it for path, it in before.items() if not path.startswith(STAGE)
    }


def test_directories_go_only_when_they_are_empty(tree: SftpTree, root: Path) -> None:
    ops = [Op("delete", path, entry(tree, path)) for path in (b"empty", b"dir")]
    assert do(tree, *ops) == [("", f"{VERSIONS}/empty".encode()), ("not_empty", b"")]
    assert (root / "dir" / "inner").exists()
    assert not (root / VERSIONS / "dir").exists()
    ops = [Op("delete", path, entry(tree, path)) for path in (b"dir/inner", b"dir")]
    assert [code for code, _version in do(tree, *ops)] == ["", ""]
    assert below(root / VERSIONS) == {"empty": "(empty)", "dir/inner": "inner"}


def test_a_place_in_versions_that_is_taken_is_passed_over(tree: SftpTree, root: Path) -> None:
    for expected in (VERSIONS, VERSIONS + "~1", VERSIONS + "~2"):
        assert do(tree, Op("delete", b"old", entry(tree, b"old"))) == [("", f"{expected}/old".encode())]
        (root / "old").write_text("again")
    # What is no directory where one is needed is passed over, too.
    (root / VERSIONS / "dir").write_text("in the way")
    assert do(tree, Op("delete", b"dir/inner", entry(tree, b"dir/inner"))) == [("", f"{VERSIONS}~1/dir/inner".encode())]


def test_nothing_is_done_behind_a_link(tree: SftpTree, root: Path, tmp_path: Path) -> None:
    want = coming(tree, b"dir/new")
    seen = entry(tree, b"dir/inner")
    (root / "dir").rename(tmp_path / "outside")
    (root / "dir").symlink_to(tmp_path / "outside")
    before = below(tmp_path / "outside")
    ops = [
        Op("put", b"dir/new", None, want, None, b"dir/new"),
        Op("delete", b"dir/inner", seen),
        Op("meta", b"dir/inner", seen, seen._replace(mode=0)),
        Op("aside", b"dir/inner", seen, None, None, b"", b"dir/other"),
        Op("aside", b"old", entry(tree, b"old"), None, None, b"", b"dir/other"),
    ]
    assert do(tree, *ops) == [("moved", b"")] * 5
    assert below(tmp_path / "outside") == before


@pytest.mark.parametrize("path", [b"", b"..", b"a/../b", b".serversync/x", b"a//b", b"/a", b"a/.", b"a\0"])
def test_paths_that_lead_elsewhere_are_refused(tree: SftpTree, path: bytes) -> None:
    want = coming(tree, b"x")
    assert do(tree, Op("put", path, None, want, None, b"x")) == [("bad_path", b"")]
    assert do(tree, Op("put", b"x", None, want, None, path)) == [("bad_path", b"")]
    assert do(tree, Op("aside", b"old", want, None, None, b"", path)) == [("bad_path", b"")]
    with pytest.raises(Failure, match="not a path below"):
        list(tree.versions(path))


def test_an_edit_in_the_last_moment_is_in_versions(tree: SftpTree, root: Path, pipe: Pipe) -> None:
    want = coming(tree, b"old")
    seen = entry(tree, b"old")

    def edit(kind: int, payload: bytes) -> None:
        placing = kind == EXTENDED and b"posix-rename" in payload
        placing = placing or (kind == RENAME and payload.endswith(b"/root/old") and STAGE.encode() in payload)
        if placing and (root / "old").exists():
            (root / "old").write_text("edited in the last moment")

    pipe.before = edit
    # Where it was moved away first there is nothing to edit any more.
    said, version = do(tree, Op("put", b"old", seen, want, None, b"old"))[0]
    assert (said, (root / "old").read_text()) == ("", "new content")
    assert (root / os.fsdecode(version)).read_text() in ("edited in the last moment", "old")


def test_what_comes_into_the_place_of_what_was_moved_away_stays(tmp_path: Path) -> None:
    pipe = Pipe(*WEAK)
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_text("old")
    tree = opened(pipe, root)
    tree.scan(b"", [], [], frozenset(), 0)
    tree.prepare(PRESERVE)
    want = coming(tree, b"old")

    def intrude(kind: int, payload: bytes) -> None:
        if kind == RENAME and payload.endswith(b"/root/old") and STAGE.encode() in payload:
            (root / "old").write_text("somebody else's")

    seen = entry(tree, b"old")
    pipe.before = intrude
    [(said, version)] = do(tree, Op("put", b"old", seen, want, None, b"old"))
    assert (said, (root / "old").read_text()) == ("moved", "somebody else's")
    assert (root / os.fsdecode(version)).read_text() == "old"
    tree.close()
    pipe.close()


def test_what_was_changed_before_it_was_moved_away_comes_back(tree: SftpTree, root: Path, pipe: Pipe) -> None:
    seen = entry(tree, b"old")

    def edit(kind: int, payload: bytes) -> None:
        if kind == RENAME and payload.endswith(f"{VERSIONS}/old".encode()):
            (root / "old").write_text("edited in the last moment")

    pipe.before = edit
    assert do(tree, Op("delete", b"old", seen)) == [("moved", b"")]
    assert (root / "old").read_text() == "edited in the last moment"


def test_a_file_that_changes_while_it_is_read_has_no_digest(tree: SftpTree, root: Path, pipe: Pipe) -> None:
    [(_path, found)] = tree.checksums([b"old"])
    assert isinstance(found, Entry) and found.digest
    changes = [lambda: os.utime(root / "old", (7, 7)), lambda: os.truncate(root / "old", 1)]

    def change(kind: int, _payload: bytes) -> None:
        if kind == READ and changes:
            changes.pop(0)()

    pipe.before = change
    assert list(tree.checksums([b"old"])) == [(b"old", "it changed while it was read")]
    assert list(tree.checksums([b"old"])) == [(b"old", "has become shorter while it was read")]


def test_a_directory_that_cannot_be_read_is_unknown(tree: SftpTree, root: Path, pipe: Pipe) -> None:
    def swap(kind: int, payload: bytes) -> None:
        if kind == OPENDIR and payload.endswith(b"/root/dir"):
            (root / "dir").rename(root / "elsewhere")
            (root / "dir").symlink_to("elsewhere")

    pipe.before = swap
    summary = tree.scan(b"", [], [], frozenset(), 0)
    assert (list(summary.problems), summary.complete, summary.stream) == ([b"dir"], False, b"")
    listed = {path: record for path, record, _more in tree.listing([b"", b"dir"])}
    assert listed[b"dir"] == b""
    assert b"dir/inner" not in listed


def test_holes_are_not_sent_and_the_size_is_kept(tree: SftpTree) -> None:
    want = Entry("f", 0, 0, 2 * 10**9, 5000, 0o640, os.getuid(), os.getgid(), 1)
    assert tree.session.run(tree.upload(b"sparse", [(1000, b"data")], 5000, want, None)) == []
    [(path, found)] = tree.staged([b"sparse"])
    assert isinstance(found, Entry)
    assert (path, found.size) == (b"sparse", 5000)


def test_a_source_that_has_moved_on_is_not_sent(tree: SftpTree, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    source: Any = SimpleNamespace(reading=lambda _path: os.open(path, os.O_RDONLY))
    seen = Entry.of(path.stat())
    for planned in (seen._replace(inode=1), seen._replace(size=1), seen._replace(mtime=1)):
        with pytest.raises(Refused, match="changed on the source"):
            tree.session.run(upload(source, tree, Coming(b"file", planned, planned, None)))
    assert tree.session.run(upload(source, tree, Coming(b"file", seen, seen, None))) == []


def test_a_directory_that_its_owner_may_not_write_in_can_still_be_placed(tree: SftpTree, root: Path) -> None:
    closed = Entry("d", 0, 0, 2 * 10**9, 0, 0o555, os.getuid(), os.getgid(), 1)
    ops = [Op("mkdir", b"closed", None, closed, stage=True), Op("meta", b"closed", None, closed, stage=True)]
    assert do(tree, *ops) == [("", b"")] * 2
    modes = []
    pipe: Any = tree.session.channel

    def look(kind: int, payload: bytes) -> None:
        if kind == RENAME and payload.endswith(b"/root/closed"):
            modes.append((root / STAGE / "closed").stat().st_mode & 0o777)

    pipe.before = look
    assert do(tree, Op("tree", b"closed", None, closed, None, b"closed")) == [("", b"")]
    assert modes == [0o755]
    assert ((root / "closed").stat().st_mode & 0o777, (root / "closed").stat().st_mtime) == (0o555, 2)


def test_a_staged_file_that_is_not_as_planned_is_not_put(tree: SftpTree, root: Path) -> None:
    want = coming(tree, b"new")
    assert do(tree, Op("put", b"new", None, want._replace(size=99), None, b"new")) == [("not_staged", b"")]
    assert do(tree, Op("put", b"other", None, want, None, b"other")) == [("not_staged", b"")]
    assert not (root / "new").exists()


def test_what_sftp_has_no_words_for_is_refused(tree: SftpTree) -> None:
    fifo = Entry("p", 0, 0, 0, 0, 0o644, 0, 0, 1)
    assert do(tree, Op("special", b"fifo", None, fifo)) == [("unsupported", b"")]


def test_what_a_dead_run_had_moved_away_is_put_back(pipe: Pipe, tmp_path: Path) -> None:
    root = tmp_path / "root"
    stage, kept = root / ".serversync/job.1/stage/R", root / ".serversync/job.1/versions"
    for path, content in {
        stage / "replaced": "new",
        kept / "R" / "replaced": "old",
        stage / "again": "new",
        kept / "R~1" / "again": "old",
        # This one was not to be replaced but deleted.
        kept / "R" / "deleted": "old",
        # Here somebody has made a file since.
        stage / "taken": "new",
        kept / "R" / "taken": "old",
        root / "taken": "theirs",
        # Another run's.
        kept / "Q" / "replaced": "older",
        # A directory that gave way to a file; what was in it had been deleted before.
        stage / "dir": "a file now",
        kept / "R" / "dir" / "inner": "deleted",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    tree = opened(pipe, root)
    tree.close()
    assert below(root) == {
        "replaced": "old",
        "again": "old",
        "taken": "theirs",
        "dir": "(empty)",
        ".serversync/job.1/stage": "(empty)",
        ".serversync/job.1/versions/R/deleted": "old",
        ".serversync/job.1/versions/R/taken": "old",
        ".serversync/job.1/versions/R/dir/inner": "deleted",
        ".serversync/job.1/versions/R~1": "(empty)",
        ".serversync/job.1/versions/Q/replaced": "older",
    }


def test_versions_are_pruned_by_age_then_by_size(tree: SftpTree, root: Path) -> None:
    def keep(run: str, content: str) -> None:
        path = root / ".serversync/job.1/versions" / run / "file"
        path.parent.mkdir(parents=True)
        path.write_text(content)
        os.utime(path.parent, (started(run), started(run)))

    for day in (1, 2, 3, 4):
        keep(f"2019010{day}T000000Z-0000", "x" * 100)
    now = 1546300800 + 4 * 86400

    def left() -> list[str]:
        return sorted(path.name[6:8] for path in (root / ".serversync/job.1/versions").iterdir())

    assert tree.prune(10 * 86400, 10**9, now) == []
    assert left() == ["01", "02", "03", "04"]
    tree.prune(int(2.5 * 86400), 10**9, now)
    assert left() == ["03", "04"]
    tree.prune(10**9, 150, now)
    assert left() == ["04"]
    # This run's own stay, whatever they take.
    keep("20200101T000000Z-0000", "x" * 1000)
    tree.prune(0, 0, now + 10**9)
    assert left() == ["01"]
    # So do those of an attempt before.
    tree.run = "20200101T000000Z-0000.2"
    tree.prune(0, 0, now + 10**9)
    assert left() == ["01"]
    # What a slow clock gave its name is as old as its directory.
    keep("19700101T000000Z-0000", "x")
    os.utime(root / ".serversync/job.1/versions/19700101T000000Z-0000", (now, now))
    tree.prune(86400, 10**9, now + 86400)
    assert left() == ["01", "01"]
    tree.prune(86400, 10**9, now + 86401)
    assert left() == ["01"]


def test_a_lock_that_was_taken_over_stops_the_run(tree: SftpTree, root: Path) -> None:
    lock = root / ".serversync" / ".lock"
    lock.write_text('{"token": "another"}')
    assert tree.lock is not None
    tree.lock.beat()
    with pytest.raises(Failure, match="another run took the lock") as caught:
        list(tree.commit([]))
    # Unlike ``running`` no reason to skip the element: it may have been begun.
    assert (caught.value.code, caught.value.transient) == ("lock_lost", True)
    tree.close()
    # It is the other one's now.
    assert lock.exists()


def test_one_run_at_a_time(tree: SftpTree, root: Path) -> None:
    other = Pipe()
    with pytest.raises(Failure, match="in use by me since") as caught:
        opened(other, root)
    assert (caught.value.code, caught.value.transient) == ("running", True)
    # Looking needs no lock.
    opened(other, root, look=True).close()
    opened(other, root, writable=False).close()
    tree.close()
    opened(other, root).close()
    other.close()


def test_another_attempt_of_the_run_whose_connection_was_lost_takes_its_lock(
    tree: SftpTree, pipe: Pipe, root: Path
) -> None:
    pipe.server.kill()
    tree.close()
    assert (root / ".serversync" / ".lock").exists()
    other = Pipe()
    opened(other, root).close()
    other.close()


def test_the_marker_on_its_way_counts(tree: SftpTree, root: Path) -> None:
    tree.mark({"current": "a"})
    assert tree.marker("job.1")["current"] == "a"  # type: ignore[index]
    marker = root / ".serversync/job.1/marker.json"
    marker.rename(marker.with_name("marker.json.new"))
    assert tree.marker("job.1")["current"] == "a"  # type: ignore[index]
    marker.with_name("marker.json.new").write_text('{"cut')
    assert tree.marker("job.1") is None
    tree.mark({"current": "b"})
    assert tree.marker("job.1")["current"] == "b"  # type: ignore[index]


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 200_000])
def test_a_damaged_marker_is_an_empty_one(tree: SftpTree, root: Path, text: str) -> None:
    tree.mark({"current": "a"})
    (root / ".serversync" / "job.1" / "marker.json").write_text(text)
    assert tree.marker("job.1") == {}


def test_other_elements_of_the_root_are_known(pipe: Pipe, tree: SftpTree, root: Path) -> None:
    tree.mark({"job": "one"})
    tree.close()
    again = opened(pipe, root, element="job.2")
    assert [(one["element"], one["job"]) for one in again.facts["others"]] == [("job.1", "one")]
    again.close()
    moved = opened(pipe, root, element="job.2", previous="job.1")
    assert moved.facts["others"] == []
    assert moved.facts["marker"]["job"] == "one"
    moved.close()
    assert (root / ".serversync" / "job.2" / "marker.json").exists()


def test_what_is_known_of_the_replica(tree: SftpTree, pipe: Pipe) -> None:
    facts = tree.facts
    assert (facts["granularity"], facts["folding"], facts["name_max"]) == (10**9, [], 255)
    kept = {"hardlinks", "acls", "xattrs", "sparse"}
    assert set(facts["lacks"]) == kept | (set() if os.geteuid() == 0 else {"owner", "group"})
    assert facts["owner"] is (os.geteuid() == 0)
    before = [path.name for path in (Path(tree.path) / ".serversync").iterdir()]
    assert sorted(before) == [".lock", "job.1"]


def test_a_lost_server_is_a_failure_that_may_pass(tree: SftpTree, pipe: Pipe) -> None:
    pipe.server.kill()
    with pytest.raises(Failure) as caught:
        list(tree.entries([b"old"]))
    assert caught.value is LOST
    # Closing raises nothing more.
    tree.close()
