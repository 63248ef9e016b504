# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a paired key may do with what it has opened."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from serversync.commit import Op
from serversync.detect import Summary
from serversync.entry import Entry, pack
from serversync.failure import Failure
from serversync.frames import Frames
from serversync.layout import Layout
from serversync.parcel import Parcel, Wrapper, unwrap
from serversync.serve import Answer, Desk, Door, converse
from serversync.tree import Tree
from serversync.wire import encode_ops, pack_paths

READING = {"writable": False, "look": False, "owner": "x", "name": "", "previous": ""}
SCAN = {"include": [], "exclude": [], "xattrs": [], "expected": 0}

wrap = Wrapper(deflate=False).wrap


class Asking:
    """A partner's desk behind a door with one root."""

    def __init__(self, directory: Path, access: str, held: ExitStack) -> None:
        self.root = directory / "root"
        self.root.mkdir(parents=True)
        layout = Layout("user", directory / "c", directory / "s", directory / "r")
        layout.doors.mkdir(parents=True)
        roots = [{"module": "root", "path": str(self.root), "access": access}]
        (layout.doors / "site-a.json").write_text(json.dumps({"roots": roots}))
        self.desk = Desk(Door(layout, "site-a"), held)

    def __call__(self, verb: str, payload: bytes = b"", **request: Any) -> list[Answer]:
        return list(self.desk.answer({"verb": verb, **request}, payload))

    def open(self, **options: Any) -> None:
        request = {"path": str(self.root), "kind": "directory", "element": "job.1", "run": "run", **READING}
        self("open", **{**request, **options})
        self("scan", tree=0, **SCAN)


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.mark.parametrize("look", [False, True])
def test_what_was_opened_for_reading_is_not_written(tmp_path: Path, held: ExitStack, look: bool) -> None:
    ask = Asking(tmp_path, "both" if look else "read", held)
    (ask.root / "plc").write_text("x")
    ask.open(look=look, writable=look)
    ops = encode_ops([Op("delete", b"plc", Entry.of((ask.root / "plc").stat()))])
    for verb, payload, request in (
        ("prepare", b"", {"preserve": []}),
        ("commit", ops, {}),
        ("take", wrap(Parcel([(b"plc", Entry.of((ask.root / "plc").stat()).record, b"")], [b"y"])), {}),
        ("times", pack([(b"", b"1", b"")]), {}),
        ("mark", b"", {"content": {}}),
        ("prune", b"", {"keep": 0, "most": 0, "now": 0}),
        ("restore", pack_paths([b"run", b"plc"]), {}),
    ):
        with pytest.raises(Failure):
            ask(verb, payload, tree=0, **request)
    assert [path.name for path in ask.root.iterdir()] == ["plc"]


def test_what_was_opened_for_writing_only_is_not_given(tmp_path: Path, held: ExitStack) -> None:
    ask = Asking(tmp_path, "write", held)
    (ask.root / "plc").write_text("x")
    ask.open(writable=True)
    asked = pack([(b"plc", Entry.of((ask.root / "plc").stat()).record, b"")])
    with pytest.raises(Failure, match="for writing only"):
        ask("give", asked, tree=0, deflate=False)
    other = Asking(tmp_path / "other", "both", held)
    other.open(writable=True)
    (other.root / "plc").write_text("x" * 1000)
    asked = pack([(b"plc", Entry.of((other.root / "plc").stat()).record, b"")])
    sizes = []
    for deflate in (False, True):
        [(_more, data), _end] = other("give", asked, tree=0, deflate=deflate)
        assert unwrap(data).contents == [b"x" * 1000]
        sizes.append(len(data))
    assert sizes[1] < 200 < sizes[0]


def test_what_is_opened_after_another_was_closed_takes_the_place_of_none(tmp_path: Path, held: ExitStack) -> None:
    ask = Asking(tmp_path, "read", held)
    request = {"kind": "directory", "element": "job.1", "run": "run", **READING}
    for name in "ab":
        (ask.root / name).mkdir()
    trees = [ask("open", path=f"{ask.root}/{name}", **request)[0][0]["tree"] for name in "ab"]
    ask("close", tree=trees[0])
    again = ask("open", path=f"{ask.root}/a", **request)[0][0]["tree"]
    assert again not in trees
    (ask.root / "b" / "plc").write_text("x")
    [(scan, _nothing)] = ask("scan", tree=trees[1], **SCAN)
    assert scan["entries"] == 1
    with pytest.raises(KeyError):
        ask("scan", tree=trees[0], **SCAN)


@pytest.mark.parametrize("path", [b"..", b"../plc", b"/etc/passwd", b"a/../../plc", b".serversync/x", b"", b"a//b"])
def test_parcels_stay_below_the_element_and_the_stage(tmp_path: Path, held: ExitStack, path: bytes) -> None:
    ask = Asking(tmp_path, "both", held)
    (tmp_path / "plc").write_text("x")
    ask.open(writable=True)
    ask("prepare", tree=0, preserve=["permissions"])
    record = Entry.of((tmp_path / "plc").stat()).record
    with pytest.raises(Failure, match="is not a path below the element"):
        ask("give", pack([(path, record, b"")]), tree=0, deflate=False)
    with pytest.raises(Failure, match="is not a path below the element"):
        ask("take", wrap(Parcel([(path, record, b"")], [b"y"])), tree=0)
    if path:
        with pytest.raises(Failure, match="is not a path below the element"):
            ask("times", pack([(path, b"1", b"")]), tree=0)
    assert (tmp_path / "plc").read_text() == "x"


def test_directories_get_their_times_and_nothing_else_does(tmp_path: Path, held: ExitStack) -> None:
    ask = Asking(tmp_path, "both", held)
    for name in ("d", "d/e", "f"):
        (ask.root / name).mkdir()
    (ask.root / "file").write_text("x")
    (tmp_path / "outside" / "other").mkdir(parents=True)
    (ask.root / "out").symlink_to(tmp_path / "outside")
    others = [tmp_path / "outside", tmp_path / "outside" / "other", ask.root / "file", ask.root / "f"]
    before = [path.stat().st_mtime_ns for path in others]
    ask.open(writable=True)
    ask("prepare", tree=0, preserve=["times"])
    paths = [b"gone", b"file", b"out", b"out/other", b"d", b"d/e", b""]
    assert ask("times", pack([(path, b"1500000000123456789", b"") for path in paths]), tree=0) == [({}, b"")]
    directories = [ask.root, ask.root / "d", ask.root / "d" / "e"]
    assert [path.stat().st_mtime_ns for path in directories] == [1500000000123456789] * 3
    assert [path.stat().st_mtime_ns for path in others] == before


def test_a_root_is_no_file_whose_directory_would_be_opened(tmp_path: Path, held: ExitStack) -> None:
    ask = Asking(tmp_path, "both", held)
    with pytest.raises(Failure, match="is a root of the pairing"):
        ask.open(kind="file", name="plc", writable=True)
    with pytest.raises(Failure, match="is a root of the pairing"):
        ask("log_open", path=f"{ask.root}/", **READING)


@pytest.mark.parametrize("path", [b"..", b"inside/.."])
@pytest.mark.parametrize("verb", ["listing", "entries", "checksums", "attributes"])
def test_what_a_replica_lies_in_is_not_told(tmp_path: Path, held: ExitStack, verb: str, path: bytes) -> None:
    ask = Asking(tmp_path, "read", held)
    (ask.root / "inside").mkdir()
    ask.open()
    with pytest.raises(Failure, match="is not a path below the element"):
        ask(verb, pack_paths([path]), tree=0)


def test_more_unreadable_paths_than_a_frame_holds_are_one_failure(
    tmp_path: Path, held: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Asking(tmp_path, "read", held)
    ask.open()
    problems = {b"line/%0200d" % number: "Permission denied" for number in range(20_000)}
    root = Entry.of(ask.root.stat())
    monkeypatch.setattr(Tree, "scan", lambda *_arguments: Summary(b"", 1, 1, False, problems, False, root))
    with pytest.raises(Failure, match="20000 paths cannot be read"):
        ask("scan", tree=0, **SCAN)


def test_a_replica_is_begun_by_one_question(tmp_path: Path, held: ExitStack) -> None:
    ask = Asking(tmp_path, "both", held)
    (ask.root / "plc").write_text("x")
    request = {"path": str(ask.root), "kind": "directory", "element": "job.1", "run": "run", **READING, **SCAN}
    [(begun, digests)] = ask("begin", **request)
    [(look, _nothing)] = ask("look", path=str(ask.root))
    tree = begun["open"]["tree"]
    [(scan, _nothing)] = ask("scan", tree=tree, **SCAN)
    assert begun["look"]["facts"]["kind"] == look["facts"]["kind"] == "directory"
    assert (begun["scan"]["stream"], begun["scan"]["entries"]) == (scan["stream"], 1)
    [(_more, asked), _end] = ask("digests", tree=tree)
    assert begun["scan"]["digests"] and digests == asked
    [(same, nothing)] = ask("scan", bytes.fromhex(scan["stream"]), tree=tree, **SCAN)
    assert same["unchanged"] and not same["digests"] and nothing == b""


def test_more_digests_than_a_frame_holds_are_asked_for(
    tmp_path: Path, held: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Asking(tmp_path, "both", held)
    ask.open()
    monkeypatch.setattr("serversync.serve.LIMIT", 10)
    [(scan, nothing)] = ask("scan", tree=0, **SCAN)
    assert not scan["digests"] and nothing == b""


@pytest.mark.parametrize("kind", ["missing", "file", "locked", "closed for writing"])
def test_what_does_not_fit_is_looked_at_and_no_more(tmp_path: Path, held: ExitStack, kind: str) -> None:
    ask = Asking(tmp_path, "read" if kind == "closed for writing" else "both", held)
    path = ask.root / "replica"
    if kind == "file":
        path.write_text("x")
    elif kind != "missing":
        path.mkdir()
    if kind == "locked":
        ask("open", path=str(path), kind="directory", element="job.2", run="run", **READING)
    options = {**READING, **SCAN, "writable": True}
    [(begun, _nothing)] = ask("begin", path=str(path), kind="directory", element="job.1", run="run", **options)
    assert list(begun) == ["look"]
    assert path.exists() == (kind != "missing")


def test_who_begins_outside_the_roots_is_refused(tmp_path: Path, held: ExitStack) -> None:
    ask = Asking(tmp_path, "both", held)
    with pytest.raises(Failure, match="outside the roots"):
        ask("begin", path=str(tmp_path), kind="directory", element="job.1", run="run", **READING, **SCAN)


def answers(door: Door, *lines: bytes) -> list[dict[str, Any]]:
    """What comes of these lines, read by ``serve`` as from a partner."""
    mine, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            converse(Frames(theirs.fileno(), theirs.fileno()), door)

    with mine:
        thread = threading.Thread(target=mine.sendall, args=(b"".join(lines),), daemon=True)
        thread.start()
        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        ends = Frames(mine.fileno(), mine.fileno())
        found = [ends.receive(None)[0] for _line in lines]
        mine.shutdown(socket.SHUT_WR)
        serving.join()
        thread.join()
    return found


def line(question: Any, verb: str, payload: bytes = b"", **request: Any) -> bytes:
    frame = {"id": question, "verb": verb, **request, "bytes": len(payload)}
    return json.dumps(frame).encode() + b"\n" + payload


def test_whatever_a_request_breaks_it_is_answered(tmp_path: Path, held: ExitStack) -> None:
    """A traceback would end the conversation without a word, and fill the journal of the partner's unit."""
    ask = Asking(tmp_path, "both", held)
    (ask.root / "app.log").write_text("one\n")
    opened = {"path": str(ask.root), "kind": "directory", "element": "job.1", "run": "run", **READING}
    asked = [
        line(1, "open", **opened),
        line(2, "scan", tree=0, **SCAN),
        # Deeper than what reads it, more than the kernel counts, and an answer's number that is none.
        line(3, "commit", b"[" * 100_000, tree=0),
        line(4, "log_open", path=f"{ask.root}/app.log", **READING),
        line(5, "log", b'{"marks": [], "stamps": []}', log=0, do="files"),
        line(6, "log", log=0, do="mark", number=0, offset=10**30),
        b'{"id": ' + b"[" * 100 + b"]" * 100 + b', "verb": "hello"}\n',
        line(8, "hello"),
    ]
    found = answers(ask.desk.door, *asked)
    assert [answer["ok"] for answer in found] == [True, True, False, True, True, False, True, True]
    assert [answer["id"] for answer in found] == [1, 2, 3, 4, 5, 6, None, 8]


def test_how_much_files_take_is_told_in_a_frame_of_its_own(tmp_path: Path, held: ExitStack) -> None:
    """Were it called as what tells of the bytes behind a frame, the other side would wait for them."""
    ask = Asking(tmp_path, "both", held)
    (ask.root / "plc").write_bytes(b"x" * 5000)
    opened = {"path": str(ask.root), "kind": "directory", "element": "job.1", "run": "run", **READING}
    asked = [line(1, "open", **opened), line(2, "scan", tree=0, **SCAN), line(3, "occupied", b"plc\0", tree=0)]
    found = answers(ask.desk.door, *asked, line(4, "hello"))
    assert found[2]["occupied"] >= 5000
    assert found[3]["id"] == 4


@pytest.mark.parametrize("content", ["x", [], {"x": "y" * 100_000}])
def test_a_marker_is_a_marker(tmp_path: Path, held: ExitStack, content: Any) -> None:
    ask = Asking(tmp_path, "both", held)
    ask.open(writable=True)
    with pytest.raises(Failure, match="no marker"):
        ask("mark", tree=0, content=content)


def test_a_marker_that_nothing_can_read_agrees_with_nothing(tmp_path: Path, held: ExitStack) -> None:
    ask = Asking(tmp_path, "both", held)
    ask.open(writable=True)
    ask("mark", tree=0, content={})
    (ask.root / ".serversync" / "job.1" / "marker.json").write_text("[" * 100_000)
    ask.desk.trees[0].close()
    ask.open(writable=True)


def test_parcels_hold_up_nothing_but_what_needs_them(
    tmp_path: Path, held: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Asking(tmp_path, "both", held)
    (tmp_path / "plc").write_text("y")
    parcel = wrap(Parcel([(b"plc", Entry.of((tmp_path / "plc").stat()).record, b"")], [b"y"]))
    gate, take = threading.Event(), Tree.take

    def taking(*given: Any, **options: Any) -> Any:
        gate.wait()
        return take(*given, **options)

    def found(self: Desk, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        # The last of what is answered meanwhile: without that nothing would ever set the gate.
        gate.set()
        yield {}, b""

    monkeypatch.setattr(Tree, "take", taking)
    monkeypatch.setattr(Desk, "verb_sync", found)
    opened = {"path": str(ask.root), "kind": "directory", "element": "job.1", "run": "run", **READING, "writable": True}
    put = encode_ops([Op("put", b"plc", None, Entry.of((tmp_path / "plc").stat()), None, b"plc")])
    lines = [
        line(1, "open", **opened),
        line(2, "scan", tree=0, **SCAN),
        line(3, "prepare", tree=0, preserve=["permissions"]),
        line(4, "take", parcel, tree=0),
        line(5, "hello"),
        line(6, "sync", tree=0),
        line(7, "commit", put, tree=0, behind=4),
        line(8, "finish", tree=0),
    ]
    said = answers(ask.desk.door, *lines)
    # The one commit has two frames.
    assert [one["id"] for one in said] == [1, 2, 3, 5, 6, 4, 7, 7]
    assert (ask.root / "plc").read_text() == "y"
