# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small files with their contents, many in one message, from the source's process into the target's stage.

rsync looks for every file on both servers, has three processes talk about it, and renames it once it is whole. Where
all of its contents fit into a few blocks that is most of the work; here each is one opening, reading and writing, and
its entry as read back comes with it.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Union

from serversync import metadata
from serversync.commit import CODES, Refused
from serversync.detect import record_of
from serversync.entry import Entry, pack, unpack
from serversync.frames import PAYLOAD_LIMIT
from serversync.held import Directories, parts
from serversync.metadata import Problem
from serversync.wire import bounded, plausible

# Bytes of the largest file that travels so: of one that is new, and of one of which rsync would send what has changed.
NEW, CHANGED = 256 << 10, 16 << 10
# A parcel is full with as many bytes of contents, or files: what is answered to some of them fits into any buffer.
FULL, MOST = 256 << 10, 1000
# Bytes of names and records in one request.
ASKED = 4 << 20
# Instead of a record, with the problem behind it.
REFUSED = b"?"
CHANGED_MEANWHILE = "was changed on the source during the run"
# What takes no room on a disk that knows holes.
HOLE = bytes(4096)
HEAD = struct.Struct(">I")
# What a parcel begins with: it follows as it is, or deflated.
PLAIN, DEFLATED = b"\0", b"\1"
# After one that was no tenth smaller deflated, which takes longer than all the rest, as many go as they are.
PAUSE = 7
READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MAKING = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Item = tuple[bytes, bytes, bytes]
# A file in the stage as read back; what kept it from there, or, of one that is there, what did not take.
Made = tuple[Union[Entry, None], Union[Problem, None]]


class Parcel(NamedTuple):
    """items: (path, record, more), as ``entry.pack`` has them; contents: of each, as long as its record says.

    The record is REFUSED where there is no content, and what is behind it the problem.
    """

    items: list[Item]
    contents: list[bytes]


class Wrapper:
    """Parcels as they travel, one after another; ``deflate``: deflated, as long as that makes them smaller."""

    def __init__(self, *, deflate: bool) -> None:
        self.deflate = deflate
        self.pause = 0

    def wrap(self, parcel: Parcel) -> bytes:
        head = pack(parcel.items)
        data = b"".join((PLAIN, HEAD.pack(len(head)), head, *parcel.contents))
        if not self.deflate:
            return data
        if self.pause:
            self.pause -= 1
            return data
        deflated = DEFLATED + zlib.compress(data[len(PLAIN) :], 1)
        if len(deflated) > len(data) * 0.9:
            self.pause = PAUSE
        return min(deflated, data, key=len)


def inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, PAYLOAD_LIMIT)
    except zlib.error as error:
        raise ValueError(f"a parcel cannot be inflated ({error})") from None
    if not stream.eof or stream.unused_data:
        raise ValueError("a parcel is cut short, or is longer than any")
    return found


def unwrap(data: bytes) -> Parcel:
    """The parcel that a ``Wrapper`` made this of; raises ValueError on what is none."""
    if data[:1] not in (PLAIN, DEFLATED):
        raise ValueError("what came is no parcel")
    data = inflated(data[1:]) if data[:1] == DEFLATED else data[1:]
    if len(data) < HEAD.size:
        raise ValueError("a parcel is cut short")
    at = HEAD.size + HEAD.unpack_from(data)[0]
    items = list(unpack(data[HEAD.size : at]))
    if not items:
        raise ValueError("a parcel with nothing in it")
    contents = []
    for _path, record, _more in items:
        size = 0 if record == REFUSED else size_of(record)
        contents.append(data[at : at + size])
        at += size
    if at != len(data):
        raise ValueError("a parcel is not as long as what is in it")
    return Parcel(items, contents)


def size_of(record: bytes) -> int:
    fields = record.split(b" ", 9)
    if len(fields) != 10:
        raise ValueError(f"{record[:80]!r} is no record")
    size = int(fields[4])
    if not 0 <= size <= NEW:
        raise ValueError(f"a file of {size} bytes is none for a parcel")
    return size


def told(problem: Problem) -> bytes:
    return os.fsencode(f"{problem.code} {problem.text}")


def problem_of(more: bytes) -> Problem:
    """The inverse of ``told``."""
    code, _blank, text = os.fsdecode(more).partition(" ")
    return Problem(code[:64], text[:1000])


def pack_made(made: Iterable[Made]) -> bytes:
    return pack((b"", entry.record if entry else REFUSED, told(problem) if problem else b"") for entry, problem in made)


def unpack_made(data: bytes) -> list[Made]:
    """The inverse of ``pack_made``; raises ValueError on what is none."""
    return [
        (None if record == REFUSED else plausible(Entry.parse(record)), problem_of(more) if more else None)
        for _nothing, record, more in map(bounded, unpack(data))
    ]


def requests(files: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Paths and records in lists, each of which fits into one frame."""
    some: list[tuple[bytes, bytes]] = []
    room = ASKED
    for path, record in files:
        some.append((path, record))
        room -= len(path) + len(record)
        if room < 0:
            yield some
            some, room = [], ASKED
    if some:
        yield some


def refusal(error: OSError) -> Problem:
    return Problem(CODES.get(error.errno or 0, "io"), error.strerror or str(error))


def unread(error: OSError) -> Problem:
    if error.errno in (errno.EACCES, errno.EPERM):
        return Problem("permission", f"cannot be read ({error.strerror}); give the account access or exclude the path")
    return refusal(error)


def read(root: int, files: Iterable[tuple[bytes, bytes]]) -> Iterator[Parcel]:
    """The files below the root in parcels, in order; each path with the record by which it was planned.

    What has another one once it has been read is refused: its contents may be of any time.
    """
    directories = Directories(root)
    items: list[Item] = []
    contents: list[bytes] = []
    size = 0
    try:
        for path, record in files:
            try:
                data = contents_of(directories, path, record)
                items.append((path, record, b""))
            except Refused as refused:
                data = b""
                items.append((path, REFUSED, told(refused.problem)))
            except OSError as error:
                data = b""
                items.append((path, REFUSED, told(unread(error))))
            contents.append(data)
            size += len(data) + len(path)
            if size >= FULL or len(items) >= MOST:
                yield Parcel(items, contents)
                items, contents, size = [], [], 0
        if items:
            yield Parcel(items, contents)
    finally:
        directories.close()


def contents_of(directories: Directories, path: bytes, record: bytes) -> bytes:
    above, name = parts(path)
    size = size_of(record)
    descriptor = os.open(name, READING, dir_fd=directories[above])
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Refused("moved", CHANGED_MEANWHILE)
        data = os.read(descriptor, size) if size else b""
        now = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if len(data) != size or record_of(now) != record:
        raise Refused("moved", CHANGED_MEANWHILE)
    return data


def write(directories: Directories, parcel: Parcel, preserve: frozenset[str]) -> Iterator[Made]:
    """Makes the files, of records in this server's owner numbers."""
    for (path, record, more), content in zip(parcel.items, parcel.contents):
        if record == REFUSED:
            yield None, problem_of(more)
            continue
        try:
            yield written(directories, path, plausible(Entry.parse(record)), content, preserve)
        except OSError as error:
            yield None, refusal(error)


def fill(descriptor: int, content: bytes) -> None:
    """Writes what is not zeros, block by block."""
    for start in range(0, len(content), len(HOLE)):
        rest = memoryview(content)[start : start + len(HOLE)]
        while rest and rest != HOLE[: len(rest)]:
            done = os.pwrite(descriptor, rest, start)
            start, rest = start + done, rest[done:]
    os.ftruncate(descriptor, len(content))


def written(directories: Directories, path: bytes, want: Entry, content: bytes, preserve: frozenset[str]) -> Made:
    above, name = parts(path)
    directory = directories[above]
    descriptor = os.open(name, MAKING, 0o600, dir_fd=directory)
    try:
        if "sparse" in preserve and HOLE in content:
            fill(descriptor, content)
        else:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        problems = metadata.dress(descriptor, want, preserve)
        info = os.fstat(descriptor)
    except BaseException:
        os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(descriptor)
    return Entry.of(info), problems[0] if problems else None
