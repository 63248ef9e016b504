# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of SFTP needs no server: packets, tasks, what is to be set, which operations may go side by side."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serversync import sftp, sftptree, sftpwire
from serversync.commit import Op, Refused
from serversync.detect import Content, checksum, digest
from serversync.entry import Entry
from serversync.failure import Failure
from serversync.job import Job, credential
from serversync.layout import Layout
from serversync.machine import known_as
from serversync.sftpcommit import dressing, same, waves
from serversync.sftppaths import children, entry_of, look_at
from serversync.sftptree import Abilities, Frame, Lock, folded, left_behind, process, remembered
from serversync.sftpwire import END_OF_FILE, Attributes, Reader, Session, Task, encode, lstat, one, text

LOST = Failure("connection", "gone", transient=True)
FILE = Entry("f", 0, 5 * 10**9, 5 * 10**9, 3, 0o644, 1, 2, 1)
FOLDER = Entry("d", 0, 0, 0, 0, 0o755, 1, 2, 1)


class Server:
    """A channel to a server that answers with what ``respond`` makes of (kind, payload), in the order of ``sort``."""

    def __init__(
        self,
        respond: Callable[[int, bytes], tuple[int, bytes]],
        sort: Callable[[list[Any]], list[Any]] = list,
        extensions: bytes = b"",
    ) -> None:
        self.respond = respond
        self.sort = sort
        self.extensions = extensions
        self.waiting: list[tuple[int, int, bytes]] = []
        self.most = 0

    def sendall(self, data: bytes) -> None:
        length, kind = struct.unpack(">IB", data[:5])
        assert length == len(data) - 4
        number = 0 if kind == sftpwire.INIT else struct.unpack(">I", data[5:9])[0]
        self.waiting.append((kind, number, data[9:]))
        self.most = max(self.most, len(self.waiting))

    def recv(self, _size: int) -> bytes:
        if not self.waiting:
            return b""
        answers = b""
        for kind, number, payload in self.sort(self.waiting):
            if kind == sftpwire.INIT:
                answers += packet(sftpwire.VERSION, struct.pack(">I", 3) + self.extensions)
            else:
                reply, content = self.respond(kind, payload)
                answers += packet(reply, struct.pack(">I", number) + content)
        self.waiting = []
        return answers


def packet(kind: int, payload: bytes) -> bytes:
    return struct.pack(">IB", len(payload) + 1, kind) + payload


def size_of_path(kind: int, payload: bytes) -> tuple[int, bytes]:
    """LSTAT of a path of digits: a file of that size."""
    assert kind == sftpwire.LSTAT
    return sftpwire.ATTRS, encode(Attributes(size=int(Reader(payload).text())))


def status(code: int, words: bytes = b"") -> tuple[int, bytes]:
    return sftpwire.STATUS, struct.pack(">I", code) + (text(words, b"") if words else b"")


# Packets.


NUMBERS = st.integers(0, 2**32 - 1)


@given(
    st.none() | st.integers(0, 2**64 - 1),
    st.just((None, None)) | st.tuples(NUMBERS, NUMBERS),
    st.none() | NUMBERS,
    st.just((None, None)) | st.tuples(NUMBERS, NUMBERS),
)
def test_attributes_come_back(size: Any, owner: tuple[Any, Any], mode: Any, times: tuple[Any, Any]) -> None:
    found = Attributes(size, *owner, mode, *times)
    assert Reader(encode(found)).attributes() == found


def test_attributes_beyond_those_are_passed_over() -> None:
    data = struct.pack(">IQI", 0x80000001, 7, 1) + text(b"key", b"value") + b"rest"
    reader = Reader(data)
    assert reader.attributes() == Attributes(size=7)
    assert reader.data[reader.at :] == b"rest"


@pytest.mark.parametrize(
    ("code", "words", "number"),
    [
        (2, b"No such file", errno.ENOENT),
        (3, b"", errno.EACCES),
        (4, b"Failure", errno.EIO),
        (5, b"", errno.EINVAL),
        (8, b"no", errno.ENOTSUP),
        (42, b"", errno.EIO),
    ],
)
def test_refusals_are_errors_with_a_number(code: int, words: bytes, number: int) -> None:
    session = Session(Server(lambda _kind, _payload: status(code, words)), LOST)
    with pytest.raises(OSError) as caught:
        session.run(one(lstat(b"/a")))
    assert caught.value.errno == number
    assert caught.value.strerror


def test_the_servers_extensions_are_known() -> None:
    server = Server(lambda _kind, _payload: status(0), extensions=text(b"fsync@openssh.com", b"1", b"x", b"\0"))
    session = Session(server, LOST)
    assert session.has("fsync@openssh.com") and not session.has("hardlink@openssh.com")
    assert (session.reading, session.writing) == (32768, 32768)


@pytest.mark.parametrize(
    "greeting",
    [
        packet(sftpwire.VERSION, struct.pack(">I", 2)),
        packet(sftpwire.VERSION, struct.pack(">I", 3) + b"\0\0\0\x09cut"),
        packet(sftpwire.STATUS, struct.pack(">I", 3)),
        b"Last login: ",
        packet(sftpwire.VERSION, b""),
    ],
)
def test_what_is_no_sftp_is_said(greeting: bytes) -> None:
    class Chatter(Server):
        def recv(self, _size: int) -> bytes:
            return greeting

    with pytest.raises(Failure) as caught:
        Session(Chatter(size_of_path), LOST)
    assert caught.value.code == "protocol"


def test_a_lost_connection_is_the_failure_that_was_given() -> None:
    class Dying(Server):
        def recv(self, size: int) -> bytes:
            return super().recv(size) if self.waiting and self.waiting[0][0] == sftpwire.INIT else b""

    session = Session(Dying(size_of_path), LOST)
    with pytest.raises(Failure) as caught:
        session.run(one(lstat(b"1")))
    assert caught.value is LOST


# Tasks.


def doubled(number: int) -> Task[int]:
    found = yield from one(lstat(b"%d" % number))
    again = yield from one(lstat(b"%d" % (2 * found.size)))
    return int(again.size)


@pytest.mark.parametrize("sort", [list, lambda waiting: waiting[::-1]], ids=["in order", "backwards"])
def test_results_are_in_the_order_of_the_tasks_whatever_that_of_the_answers(
    sort: Callable[[list[Any]], list[Any]],
) -> None:
    server = Server(size_of_path, sort)
    session = Session(server, LOST)
    assert list(session.together(map(doubled, range(200)))) == [2 * number for number in range(200)]
    # Many are under way at once, but not all.
    assert 16 <= server.most <= sftpwire.REQUESTS
    assert session.answers == {}


def test_what_one_task_raises_ends_all_and_answers_to_the_others_are_forgotten() -> None:
    session = Session(Server(size_of_path), LOST)

    def bad() -> Task[int]:
        yield from one(lstat(b"1"))
        raise OSError(errno.EIO, "no")

    with pytest.raises(OSError, match="no"):
        list(session.together([bad(), *(doubled(number) for number in range(10))]))
    assert session.run(doubled(21)) == 42
    assert session.answers == {} and session.forgotten == set()


def listing(*names: bytes) -> Callable[[int, bytes], tuple[int, bytes]]:
    """A directory with files of these names."""
    asked: list[int] = []

    def respond(kind: int, _payload: bytes) -> tuple[int, bytes]:
        if kind == sftpwire.LSTAT:
            return sftpwire.ATTRS, encode(Attributes(mode=0o040755, mtime=1, atime=1))
        if kind == sftpwire.OPENDIR:
            return sftpwire.HANDLE, text(b"handle")
        if kind == sftpwire.READDIR and not asked:
            asked.append(kind)
            rows = b"".join(
                text(name, b"-rw") + encode(Attributes(size=1, mode=0o100644, mtime=1, atime=1)) for name in names
            )
            return sftpwire.NAME, struct.pack(">I", len(names)) + rows
        return status(1) if kind == sftpwire.READDIR else status(0)

    return respond


def test_a_directory_is_read_to_its_end() -> None:
    session = Session(Server(listing(b".", b"..", b"a\n\xff")), LOST)
    found = session.run(children(b"/dir"))
    assert list(found) == [b"a\n\xff"]


@pytest.mark.parametrize("name", [b"a/b", b"", b"a\0b"])
def test_names_that_lead_elsewhere_are_refused(name: bytes) -> None:
    session = Session(Server(listing(name)), LOST)
    with pytest.raises(Failure, match="as none can be"):
        session.run(children(b"/dir"))


def test_a_link_that_a_listing_shows_as_a_directory_is_not_followed() -> None:
    def respond(kind: int, _payload: bytes) -> tuple[int, bytes]:
        if kind == sftpwire.LSTAT:
            return sftpwire.ATTRS, encode(Attributes(mode=0o120777, mtime=1, atime=1))
        return (sftpwire.HANDLE, text(b"handle")) if kind == sftpwire.OPENDIR else status(0)

    with pytest.raises(NotADirectoryError):
        Session(Server(respond), LOST).run(children(b"/dir"))


# Entries.


def test_an_entry_of_what_sftp_tells() -> None:
    told = Attributes(3, 1, 2, 0o100644, 9, 5)
    assert entry_of(told) == FILE
    assert entry_of(told._replace(mode=0o040755)).size == 0
    assert entry_of(told._replace(mode=0o120777), b"target").link == b"target"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": None}, "what it is"),
        ({"mode": 0o644}, "what it is"),
        ({"mode": 0o020644}, "a device"),
        ({"mode": 0o060644}, "a device"),
        ({"mtime": None}, "size and time"),
        ({"size": None}, "size and time"),
    ],
)
def test_what_is_not_told_is_unknown(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        entry_of(Attributes(3, 1, 2, 0o100644, 9, 5)._replace(**change))


def test_what_is_unknown_is_not_absent() -> None:
    refused = Session(Server(lambda _kind, _payload: status(3)), LOST)
    with pytest.raises(PermissionError):
        refused.run(look_at(b"/a"))
    assert Session(Server(lambda _kind, _payload: status(2)), LOST).run(look_at(b"/a")) is None
    bare = Session(Server(lambda _kind, _payload: (sftpwire.ATTRS, encode(Attributes(size=1)))), LOST)
    with pytest.raises(OSError, match="what it is"):
        bare.run(look_at(b"/a"))


def frame(record: bytes, *lines: bytes, inside: bool = True, empty: bool = False) -> Frame:
    made = Frame(record, inside)
    made.lines, made.empty = list(lines), empty
    return made


def test_directories_are_folded_from_below() -> None:
    frames = {
        b"": frame(b"", b"f\0rec-f"),
        b"a": frame(b"rec-a"),
        b"a/b": frame(b"rec-b", b"g\0rec-g"),
        b"a-": frame(b"rec-", empty=True),
        # They hold something, but nothing that takes part.
        b"hidden": frame(b"rec-h"),
        b"outside": frame(b"rec-o", inside=False, empty=True),
    }
    frames[b"unread"] = frame(b"rec-u")
    frames[b"unread"].unread = True
    blocks, entries = folded(frames)
    assert entries == 6
    assert blocks.kept == {
        b"": b"\0".join([b"a\0rec-a", b"a-\0rec-", b"f\0rec-f", b"unread\0"]),
        b"a": b"b\0rec-b",
        b"a/b": b"g\0rec-g",
        b"a-": b"",
    }
    assert blocks.digests[b"a/b"] == digest([(b"a/b/g", b"rec-g", b"")])


@given(st.binary(max_size=40), st.integers(10_000, 3 << 20))
def test_a_content_is_the_same_in_pieces_of_any_size(pattern: bytes, step: int) -> None:
    data = pattern * 60_000
    content = Content(len(data))
    for start in range(0, len(data), step):
        content.add(start, data[start : start + step])
    grains = ((start, data[start : start + (1 << 20)]) for start in range(0, len(data), 1 << 20))
    assert content.digest() == checksum(grains, len(data))


# What is to be set.

ALL = frozenset(("owner", "group", "permissions", "times"))


@pytest.mark.parametrize(
    ("now", "want", "preserve", "before", "chown", "set_"),
    [
        (FILE, FILE, ALL, None, True, []),
        (FILE, FILE._replace(mode=0o600), ALL, None, True, [{"mode": 0o600}]),
        (FILE, FILE._replace(mtime=9 * 10**9 + 5), ALL, None, True, [{"mtime": 9}]),
        # What is less than a second apart is the same.
        (FILE, FILE._replace(mtime=5 * 10**9 + 5), ALL, None, True, []),
        (FILE, FILE._replace(uid=7), ALL, None, True, [{"uid": 7, "gid": 2}, {"mode": 0o644}]),
        # Owners only where they can be given, and then a program is nobody else's.
        (FILE, FILE._replace(uid=7, mode=0o4755), ALL, None, False, [{"mode": 0o755}]),
        (FILE, FILE._replace(mode=0o4755), ALL, None, False, [{"mode": 0o4755}]),
        (None, FILE, ALL, None, True, [{"uid": 1, "gid": 2}, {"mode": 0o644, "mtime": 5}]),
        (None, FILE, frozenset(), None, True, []),
        # Those of what is replaced stay.
        (FILE, FILE._replace(mode=0o777), frozenset(), FILE._replace(mode=0o600), True, [{"mode": 0o600}]),
        (FILE, FILE._replace(mode=0o777), frozenset(), FOLDER, True, []),
    ],
)
def test_only_what_differs_is_set(
    now: Entry | None,
    want: Entry,
    preserve: frozenset[str],
    before: Entry | None,
    chown: bool,
    set_: list[dict[str, int]],
) -> None:
    found = dressing(now, want, preserve, before, chown=chown)
    told = [
        {name: value for name, value in one._asdict().items() if value is not None and name != "atime"} for one in found
    ]
    assert told == set_


def test_a_directory_stays_such_that_it_can_be_moved() -> None:
    closed = FOLDER._replace(mode=0o555)
    assert dressing(FOLDER, closed, ALL, None, chown=False, spare=0o700) == []
    assert dressing(closed, closed, ALL, None, chown=False, spare=0o700)[0].mode == 0o755
    assert dressing(closed, closed, frozenset(), None, chown=False, spare=0o700)[0].mode == 0o755


@pytest.mark.parametrize("when", [-1, (sftpwire.LATEST + 1) * 10**9])
def test_a_time_that_sftp_cannot_tell_is_refused(when: int) -> None:
    with pytest.raises(Refused, match="1970 to 2106"):
        dressing(None, FILE._replace(mtime=when), ALL, None, chown=False)


@pytest.mark.parametrize(
    ("change", "equal"),
    [
        ({}, True),
        ({"inode": 4, "ctime": 4, "nlink": 4}, True),
        ({"size": 4}, False),
        ({"mtime": 4}, False),
        ({"mode": 0o600}, False),
        ({"uid": 4}, False),
        ({"kind": "l"}, False),
    ],
)
def test_what_was_looked_at_is_known_again(change: dict[str, Any], equal: bool) -> None:
    assert same(FILE, FILE._replace(**change)) is equal
    assert not same(FILE, None)
    assert same(FOLDER, FOLDER._replace(size=4, mtime=4))


def op(path: bytes, to: bytes = b"") -> Op:
    return Op("delete", path, to=to)


@pytest.mark.parametrize(
    ("paths", "cut"),
    [
        ([b"a", b"b", b"c/d"], [3]),
        ([b"a/b", b"a/c", b"a"], [2, 1]),
        ([b"a", b"a/b"], [1, 1]),
        ([b"a/b/c", b"a-", b"a"], [2, 1]),
        ([b"a", b"a"], [1, 1]),
        ([b"a", b""], [1, 1]),
        ([b"", b"a"], [1, 1]),
        ([], []),
    ],
)
def test_what_depends_on_one_another_is_not_done_at_once(paths: list[bytes], cut: list[int]) -> None:
    assert [len(wave) for wave in waves(map(op, paths))] == cut


def test_a_name_that_is_taken_by_another_is_waited_for() -> None:
    assert [len(wave) for wave in waves([op(b"a", b"a.conflict"), op(b"a.conflict")])] == [1, 1]


# The lock.


def test_whose_lock_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lock, "held", {"a token"})
    mine = {**process(), "token": "a token"}
    assert not left_behind(mine, 10**6)
    # Of a process in another sandbox only that it lives can be told.
    monkeypatch.setattr(sftptree, "birth", lambda pid: None if pid != os.getpid() else 1)
    assert not left_behind({**process(), "pid": os.getppid(), "started": 5}, sftptree.STALE)
    assert left_behind({**process(), "pid": 2**31 - 1, "started": 5}, 0)
    monkeypatch.undo()
    # A lock of an earlier version, whose process is gone.
    raw = "0" * 32
    monkeypatch.setattr(sftptree, "machine", lambda: known_as(raw))
    assert left_behind({**process(), "machine": raw, "pid": 2**31 - 1}, 0)
    monkeypatch.undo()
    monkeypatch.setattr(Lock, "held", {"a token"})
    # This process has lost the connection by which it held it.
    assert left_behind({**mine, "token": "another"}, 0)
    assert left_behind({**mine, "started": 1}, 0)
    assert left_behind({**mine, "pid": 2**31 - 1}, 0)
    for other in ({"machine": "x"}, {"boot": "x"}):
        assert not left_behind({**mine, "pid": 2**31 - 1, **other}, sftptree.STALE)
        assert left_behind({**mine, **other}, sftptree.STALE + 1)
    assert not left_behind({}, sftptree.BEAT)
    assert left_behind({}, sftptree.BEAT + 1)


@pytest.mark.parametrize("marker", [None, {}, {"sftp": 1}, {"sftp": {"owner": []}}])
def test_without_a_record_a_server_can_nothing(marker: dict[str, Any] | None) -> None:
    assert remembered(marker) == Abilities()


def test_what_was_tried_out_is_remembered() -> None:
    able = Abilities(True, True, ("links",), ("case",))
    assert remembered({"sftp": able._asdict()}) == able


# The way there.


def test_a_pace_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, slept = [100.0], list[Any]()
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", slept.append)
    pace = sftp.Pace(1000)
    pace.spend(500)
    pace.spend(1000)
    clock[0] += 10
    pace.spend(100)
    assert slept == [0.5, 1.5, pytest.approx(0.1)]
    sftp.Pace(None).spend(10**12)
    assert len(slept) == 3


def test_the_end_is_no_error() -> None:
    assert Session(Server(lambda _kind, _payload: status(1)), LOST).run(one(lstat(b"1"))) is END_OF_FILE


def test_a_removed_lock_is_tried_again_and_a_refused_one_is_told() -> None:
    def refuse(kind: int, _payload: bytes) -> tuple[int, bytes]:
        return status(2) if kind in (sftpwire.LSTAT, sftpwire.READ) else status(3)

    with pytest.raises(PermissionError):
        sftptree.Lock(Session(Server(refuse), LOST), b"/.lock", "job")


def test_this_process_has_a_birth() -> None:
    assert sftptree.birth(os.getpid()) == process()["started"]
    assert sftptree.birth(2**31 - 1) is None


class Able:
    """Stands in for a session with a server that has no extensions."""

    def has(self, _extension: object) -> bool:
        return False


@pytest.mark.parametrize("room", [True, False])
def test_a_full_server_is_not_taken_for_one_without_links(room: bool) -> None:
    refused = OSError(errno.EIO, "Failure")
    absent = FileNotFoundError(errno.ENOENT, "No such file")
    answers: list[list[Any]] = [
        [None, None, None],
        [b"handle"],
        [None, None, None],
        [Attributes(mode=0o100604, mtime=10**9 + 1)],
        [refused],
        *([[b"handle"], [None], [None]] if room else [[refused]]),
        [absent],
        [absent],
        [None, None, None],
    ]
    task = sftptree.tried(Able(), b"/reserved")  # type: ignore[arg-type]
    next(task)
    with pytest.raises(StopIteration if room else OSError) as ended:
        for some in answers:
            task.send(some)
    if room:
        assert ended.value.value.lacks == ("owner", "group", "links")


def test_a_service_that_is_told_its_boot_is_the_same_server(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = process()
    told = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    monkeypatch.setenv("SERVERSYNC_BOOT", told)
    monkeypatch.setattr(Path, "read_text", lambda *_arguments, **_options: pytest.fail("/proc has no sys there"))
    monkeypatch.setattr(sftptree, "machine", lambda: mine["machine"])
    assert process() == mine


def test_who_hands_over_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job({"name": "demo"}, "")
    own = Layout("user", tmp_path, tmp_path, tmp_path)
    (own.credentials / "demo").mkdir(parents=True)
    (own.credentials / "demo" / "account.password").write_text("of the user")
    (tmp_path / "account.password").write_text("of the service")
    system = own._replace(scope="system")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert credential(own, job, "account.password") == "of the user"
    assert credential(system, job, "account.password") == "of the service"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Failure, match=r"the secret is not at /run/credentials/account.password .*; apply the job"):
        credential(system, job, "account.password")
    (own.credentials / "demo" / "account.password").write_bytes(b"\xff")
    with pytest.raises(Failure, match="it is not UTF-8"):
        credential(own, job, "account.password")
