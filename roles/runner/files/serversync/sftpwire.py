# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SFTP, version 3 (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions, over a channel that is open already.

paramiko brings the channel but not the client: its own has no names that are no UTF-8, does not tell which extensions
the server has, and waits for every answer before it asks again. Here work is written as **tasks**, generators that
yield lists of requests and get the answers to them, and many of them are under way at once, so that a partner that is
far away costs little more than one that is near.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Any, NamedTuple, Protocol, TypeVar

from serversync.failure import Failure
from serversync.place import PLENTY

INIT, VERSION, OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT = range(1, 11)
OPENDIR, READDIR, REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME, READLINK, SYMLINK = range(11, 21)
STATUS, HANDLE, DATA, NAME, ATTRS = range(101, 106)
EXTENDED, EXTENDED_REPLY = 200, 201
# Flags of ``open_file``.
FOR_READING, FOR_WRITING, CREATE, TRUNCATE, EXCLUSIVE = 0x01, 0x02, 0x08, 0x10, 0x20

POSIX_RENAME = "posix-rename@openssh.com"
HARDLINK = "hardlink@openssh.com"
FSYNC = "fsync@openssh.com"
STATVFS = "statvfs@openssh.com"
LSETSTAT = "lsetstat@openssh.com"
LIMITS = "limits@openssh.com"

SUCCESS, END, NO_SUCH_FILE, DENIED, FAILED, BAD, _NO_CONNECTION, _LOST, UNSUPPORTED = range(9)
ERRORS = {NO_SUCH_FILE: errno.ENOENT, DENIED: errno.EACCES, BAD: errno.EINVAL, UNSUPPORTED: errno.ENOTSUP}
HAS_SIZE, HAS_OWNER, HAS_MODE, HAS_TIMES, HAS_MORE = 1, 2, 4, 8, 1 << 31
# Times are seconds since 1970 in 32 bits without a sign.
LATEST = 2**32 - 1
# Requests and tasks under way at once; OpenSSH's own client has 64 of the former.
REQUESTS = 64
TASKS = 32
# What every server takes in one reading or writing; ``limits@openssh.com`` may tell of more.
PIECE = 32768
LARGEST_PIECE = 261120
# No packet is as long: what says so is no SFTP.
LONGEST = 1 << 24
# Requests that a task has under way for one file or directory.
AHEAD = 16

Request = tuple[int, bytes]
T = TypeVar("T")
# Yields requests, gets their answers: None for plain success, END_OF_FILE, an OSError, or what was asked for.
Task = Generator[list[Request], list[Any], T]


class Channel(Protocol):
    """What paramiko.Channel has of a socket."""

    def sendall(self, data: bytes) -> None:
        """Sends all of it."""

    def recv(self, size: int) -> bytes:
        """At most as many bytes; none at the end."""


class EndOfFile:
    """The answer that there is no more."""


END_OF_FILE = EndOfFile()


class Attributes(NamedTuple):
    """What a server tells of a path, or is to set; None: it does not, or is not to. Times in seconds since 1970."""

    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    atime: int | None = None
    mtime: int | None = None


class Space(NamedTuple):
    """statvfs(3) of the server; what is free is what an ordinary user may have; PLENTY where it does not tell."""

    free_bytes: int = PLENTY
    free_inodes: int = PLENTY
    total_bytes: int = PLENTY
    name_max: int = 255


# Requests.


def text(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def encode(attributes: Attributes) -> bytes:
    size, uid, gid, mode, atime, mtime = attributes
    flags, fields = 0, b""
    if size is not None:
        flags, fields = flags | HAS_SIZE, fields + struct.pack(">Q", size)
    if uid is not None and gid is not None:
        flags, fields = flags | HAS_OWNER, fields + struct.pack(">II", uid, gid)
    if mode is not None:
        flags, fields = flags | HAS_MODE, fields + struct.pack(">I", mode)
    if atime is not None and mtime is not None:
        flags, fields = flags | HAS_TIMES, fields + struct.pack(">II", atime, mtime)
    return struct.pack(">I", flags) + fields


def open_file(path: bytes, flags: int, mode: int | None = None) -> Request:
    return OPEN, text(path) + struct.pack(">I", flags) + encode(Attributes(mode=mode))


def close(handle: bytes) -> Request:
    return CLOSE, text(handle)


def read(handle: bytes, offset: int, length: int) -> Request:
    return READ, text(handle) + struct.pack(">QI", offset, length)


def write(handle: bytes, offset: int, data: bytes) -> Request:
    return WRITE, text(handle) + struct.pack(">Q", offset) + text(data)


def lstat(path: bytes) -> Request:
    return LSTAT, text(path)


def fstat(handle: bytes) -> Request:
    return FSTAT, text(handle)


def setstat(path: bytes, attributes: Attributes) -> Request:
    """Follows a symbolic link."""
    return SETSTAT, text(path) + encode(attributes)


def fsetstat(handle: bytes, attributes: Attributes) -> Request:
    return FSETSTAT, text(handle) + encode(attributes)


def opendir(path: bytes) -> Request:
    return OPENDIR, text(path)


def readdir(handle: bytes) -> Request:
    return READDIR, text(handle)


def remove(path: bytes) -> Request:
    return REMOVE, text(path)


def mkdir(path: bytes, mode: int) -> Request:
    return MKDIR, text(path) + encode(Attributes(mode=mode))


def rmdir(path: bytes) -> Request:
    return RMDIR, text(path)


def rename(path: bytes, new: bytes) -> Request:
    """Only to a name that is free; OpenSSH makes sure of that for regular files, and looks before for the rest."""
    return RENAME, text(path, new)


def readlink(path: bytes) -> Request:
    return READLINK, text(path)


def symlink(content: bytes, path: bytes) -> Request:
    """In OpenSSH's order of the two, which is not the draft's, and which others follow."""
    return SYMLINK, text(content, path)


def extended(name: str, payload: bytes) -> Request:
    return EXTENDED, text(name.encode("ascii")) + payload


def posix_rename(path: bytes, new: bytes) -> Request:
    """In the place of what has the new name, in one step."""
    return extended(POSIX_RENAME, text(path, new))


def hardlink(path: bytes, new: bytes) -> Request:
    return extended(HARDLINK, text(path, new))


def fsync(handle: bytes) -> Request:
    return extended(FSYNC, text(handle))


def statvfs(path: bytes) -> Request:
    return extended(STATVFS, text(path))


def lsetstat(path: bytes, attributes: Attributes) -> Request:
    """As ``setstat``, of a symbolic link itself."""
    return extended(LSETSTAT, text(path) + encode(attributes))


# Answers.


class Reader:
    """Takes a packet apart; struct.error where it is too short."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def number(self, form: str = ">I") -> int:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def text(self) -> bytes:
        length = self.number()
        if self.at + length > len(self.data):
            raise struct.error("a text is cut short")
        self.at += length
        return self.data[self.at - length : self.at]

    def attributes(self) -> Attributes:
        flags = self.number()
        size = self.number(">Q") if flags & HAS_SIZE else None
        uid, gid = (self.number(), self.number()) if flags & HAS_OWNER else (None, None)
        mode = self.number() if flags & HAS_MODE else None
        atime, mtime = (self.number(), self.number()) if flags & HAS_TIMES else (None, None)
        if flags & HAS_MORE:
            for _number in range(self.number()):
                self.text()
                self.text()
        return Attributes(size, uid, gid, mode, atime, mtime)


def decode(kind: int, reader: Reader) -> Any:
    """An answer, as tasks get it."""
    if kind == STATUS:
        return status(reader)
    if kind in (HANDLE, DATA):
        return reader.text()
    if kind == ATTRS:
        return reader.attributes()
    if kind == NAME:
        found = []
        for _number in range(reader.number()):
            name = reader.text()
            reader.text()  # for people
            found.append((name, reader.attributes()))
        return found
    if kind == EXTENDED_REPLY:
        return reader.data[reader.at :]
    raise struct.error(f"an answer of the unknown kind {kind}")


def status(reader: Reader) -> Any:
    code = reader.number()
    if code == SUCCESS:
        return None
    if code == END:
        return END_OF_FILE
    # Some servers leave the words out.
    said = reader.text().decode("utf-8", "replace") if reader.at < len(reader.data) else ""
    number = ERRORS.get(code, errno.EIO)
    return OSError(number, os.strerror(number) if code in (NO_SUCH_FILE, DENIED) else said or f"status {code}")


def space(reply: bytes) -> Space:
    _bsize, unit, blocks, _bfree, available, files, _ffree, inodes, _fsid, _flag, name_max = struct.unpack(
        ">11Q", reply
    )
    # Some file systems make inodes as they are needed, and say that there are none.
    return Space(available * unit, inodes if files else PLENTY, blocks * unit, name_max or 255)


# Tasks.


def one(request: Request) -> Task[Any]:
    """A task of one request, or a part of a larger one; raises OSError where the server refuses it."""
    [answer] = yield [request]
    if isinstance(answer, OSError):
        raise answer
    return answer


def space_at(session: Session, path: bytes) -> Task[Space]:
    if not session.has(STATVFS):
        return Space()
    [answer] = yield [statvfs(path)]
    return Space() if isinstance(answer, OSError) else space(answer)


class Session:
    """The conversation with one server. Several threads may use it at once."""

    def __init__(self, channel: Channel, lost: Failure) -> None:
        """lost: what is raised once the connection is gone, or silent for too long. Failure where this is no SFTP."""
        self.channel = channel
        self.lost = lost
        self.gone = False
        self.sending = threading.Lock()
        self.receiving = threading.Lock()
        self.numbers = 0
        self.answers: dict[int, tuple[int, Reader]] = {}
        # Nobody waits for these any more.
        self.forgotten: set[int] = set()
        # What has come, and how much of it has been used.
        self.received, self.taken = b"", 0
        self.write(INIT, struct.pack(">I", 3))
        kind, reader = self.packet()
        try:
            if kind != VERSION or reader.number() < 3:
                raise Failure("protocol", "the server does not speak SFTP, version 3")
            self.extensions: dict[str, bytes] = {}
            while reader.at < len(reader.data):
                name = reader.text().decode("utf-8", "replace")
                self.extensions[name] = reader.text()
        except struct.error as error:
            raise Failure("protocol", f"the server's greeting is no SFTP: {error}") from error
        self.reading = self.writing = PIECE
        if self.has(LIMITS):
            answer = self.run(one(extended(LIMITS, b"")))
            _packet, reading, writing, _handles = struct.unpack_from(">4Q", answer)
            self.reading = min(reading, LARGEST_PIECE) or PIECE
            self.writing = min(writing, LARGEST_PIECE) or PIECE

    def has(self, extension: str) -> bool:
        return extension in self.extensions

    def run(self, task: Task[T]) -> T:
        """One task to its end; what it raises is raised."""
        with closing(self.together([task])) as results:
            return next(results)

    def together(self, tasks: Iterable[Task[T]]) -> Generator[T, None, None]:
        """The tasks' results in their order, many tasks being under way at once; what one raises ends all of them."""
        coming = enumerate(tasks)
        under_way: deque[tuple[int, Task[T], list[int]]] = deque()
        done: dict[int, T] = {}
        given = requests = 0
        more = True
        try:
            while more or under_way or done:
                while more and requests < REQUESTS and len(under_way) < TASKS:
                    found = next(coming, None)
                    more = found is not None
                    if found is not None:
                        requests += self.step(found[0], found[1], None, under_way, done)
                if under_way:
                    index, task, numbers = under_way.popleft()
                    answers = [self.answer(number) for number in numbers]
                    requests += self.step(index, task, answers, under_way, done) - len(numbers)
                while given in done:
                    yield done.pop(given)
                    given += 1
        finally:
            for _index, task, numbers in under_way:
                self.forget(numbers)
                task.close()

    def step(
        self,
        index: int,
        task: Task[T],
        answers: list[Any] | None,
        under_way: deque[tuple[int, Task[T], list[int]]],
        done: dict[int, T],
    ) -> int:
        """Goes on with a task; how many requests it has under way then."""
        try:
            requests = next(task) if answers is None else task.send(answers)
        except StopIteration as stop:
            done[index] = stop.value
            return 0
        numbers = [self.ask(kind, payload) for kind, payload in requests]
        under_way.append((index, task, numbers))
        return len(numbers)

    def ask(self, kind: int, payload: bytes) -> int:
        with self.sending:
            self.numbers = (self.numbers + 1) & 0xFFFFFFFF
            self.write(kind, struct.pack(">I", self.numbers) + payload)
            return self.numbers

    def answer(self, number: int) -> Any:
        """Waits for the answer to that request; answers to others are kept for those who wait for them."""
        while True:
            with self.receiving:
                if number not in self.answers:
                    kind, reader = self.packet()
                    try:
                        of = reader.number()
                    except struct.error as error:
                        raise self.broken(error) from error
                    if of in self.forgotten:
                        self.forgotten.discard(of)
                    else:
                        self.answers[of] = (kind, reader)
                    continue
                kind, reader = self.answers.pop(number)
            try:
                return decode(kind, reader)
            except struct.error as error:
                raise self.broken(error) from error

    def forget(self, numbers: Iterable[int]) -> None:
        with self.receiving:
            for number in numbers:
                if self.answers.pop(number, None) is None:
                    self.forgotten.add(number)

    def write(self, kind: int, payload: bytes) -> None:
        if self.gone:
            raise self.lost
        try:
            self.channel.sendall(struct.pack(">IB", len(payload) + 1, kind) + payload)
        except (OSError, EOFError) as error:
            self.gone = True
            raise self.lost from error

    def packet(self) -> tuple[int, Reader]:
        (length,) = struct.unpack(">I", self.take(4))
        if not 0 < length < LONGEST:
            raise self.broken(struct.error(f"a packet of {length} bytes"))
        data = self.take(length)
        return data[0], Reader(data[1:])

    def take(self, length: int) -> bytes:
        while len(self.received) - self.taken < length:
            try:
                piece = b"" if self.gone else self.channel.recv(1 << 18)
            except (OSError, EOFError) as error:
                # What answers after that long would answer another question.
                self.gone = True
                raise self.lost from error
            if not piece:
                self.gone = True
                raise self.lost
            self.received = self.received[self.taken :] + piece
            self.taken = 0
        start, self.taken = self.taken, self.taken + length
        return self.received[start : self.taken]

    def broken(self, error: struct.error) -> Failure:
        return Failure("protocol", f"the server's answer is no SFTP: {error}", transient=True)
