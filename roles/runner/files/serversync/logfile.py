# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two ends of a log, each held open by its own server: ``Source`` with its rotated siblings, ``Target``.

``serve`` has them for the partner, and ``partnerlog.py`` passes every call on to it. Offsets are bytes of what a file
holds, of one that is packed (gzip) unpacked. Everything that is read is read in pieces.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import takewhile, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from serversync import metadata, place
from serversync.entry import Entry
from serversync.failure import Failure
from serversync.frames import CHUNK
from serversync.locks import lock
from serversync.machine import machine
from serversync.tree import CAP_CHOWN, capable

# What of a file's beginning, and of the block before an offset, is digested to know the file again.
HEAD = 4096
TAIL = 4096
# Bytes that are appended at once; a longer line takes several pieces.
BATCH = 4 << 20
# Where somebody else wrote to the target at the same time, our bytes may begin this much later.
SLACK = 1 << 20
# Rotated siblings that are looked at, the ones last written.
SIBLINGS = 256
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
UNREADABLE = (OSError, EOFError, zlib.error)


@contextmanager
def explained(path: str) -> Iterator[None]:
    """What the kernel says of a log as a Failure."""
    try:
        yield
    except OSError as error:
        code, remedy, transient = REMEDIES.get(error.errno or 0, ("io", "check its file system", False))
        raise Failure(code, f"{path}: {error.strerror or error}; {remedy}", transient=transient) from error


REMEDIES = {
    errno.ENOSPC: ("no_space", "make room there", True),
    errno.EDQUOT: ("no_space", "make room there", True),
    errno.ENOENT: ("missing", "create or mount it", False),
    errno.ENOTDIR: ("missing", "create or mount it", False),
    errno.EACCES: ("not_permitted", "give the account access to it and to its directory", False),
    errno.EPERM: ("not_permitted", "give the account access to it and to its directory", False),
    errno.EROFS: ("not_permitted", "its file system, or the job's service, allows reading only", False),
    errno.ELOOP: ("kind", "name what the symbolic link points to", False),
}


def digest_of(*pieces: bytes) -> str:
    digest = blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


class Mark(NamedTuple):
    """A place in a file and what is known of the file up to there: its size, and the digests of the first and the last
    bytes (HEAD, TAIL) of it."""

    offset: int
    head: str
    tail: str


NOTHING = Mark(0, digest_of(), digest_of())


class Stamp(NamedTuple):
    """A file that still has it was not written to; mtime in ns, size as it is on the disk."""

    device: int
    inode: int
    mtime: int
    size: int

    @classmethod
    def of(cls, info: os.stat_result) -> Stamp:
        return cls(info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size)


@dataclass(frozen=True)
class File:
    """The log, or a sibling, as it is now.

    number: to ask more about it; rotated: its name is one that a rotated file has; counted: with a number or date;
    holds: of the marks that were asked about, those which it agrees with up to their offset; size: -1 where it cannot
    be read, and ``problem`` says why, or where it is packed and not read, as its stamp is known.
    """

    number: int
    name: str
    current: bool
    rotated: bool
    counted: bool
    stamp: Stamp
    size: int
    holds: list[int]
    packed: bool = False
    problem: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0


class Extent(NamedTuple):
    """The next bytes to take: up to ``end``, always a line's; with their digest, and the mark there."""

    end: int
    lines: int
    digest: str
    mark: Mark


def rotated_names(name: str) -> re.Pattern[str]:
    """What rotation makes of a log's name: NAME.1, NAME-20240131, NAME.old, STEM-2024-01-31.EXT, each with .gz or not.

    The groups ``after`` and ``within`` have the number or date.
    """
    stem, point, extension = name.rpartition(".")
    number = r"[.\-_](?P<{0}>\d[\d.\-_T:]*)"
    ways = [f"{re.escape(name)}(?:{number.format('after')}|[.\\-_~]?(?:old|bak|prev)|~)"]
    if point and stem:
        ways.append(f"{re.escape(stem)}{number.format('within')}{re.escape(point + extension)}")
    return re.compile(f"(?:{'|'.join(ways)})(?:\\.gz)?")


class Reader:
    """A file's contents, unpacked."""

    def __init__(self, descriptor: int, packed: bool) -> None:
        self.descriptor = descriptor
        self.file = os.fdopen(descriptor, "rb")
        self.packed = gzip.GzipFile(fileobj=self.file) if packed else None

    def close(self) -> None:
        if self.packed is not None:
            self.packed.close()
        self.file.close()

    def read(self, offset: int, length: int) -> bytes:
        """Fewer bytes only at the end."""
        pieces = []
        while length:
            if self.packed is None:
                data = os.pread(self.descriptor, min(length, CHUNK), offset)
            else:
                self.packed.seek(offset)
                data = self.packed.read(min(length, CHUNK))
            if not data:
                break
            pieces.append(data)
            offset += len(data)
            length -= len(data)
        return b"".join(pieces)

    def stream(self, offset: int, end: int | None = None) -> Iterator[bytes]:
        while end is None or offset < end:
            data = self.read(offset, CHUNK if end is None else min(CHUNK, end - offset))
            if not data:
                return
            yield data
            offset += len(data)

    def mark(self, offset: int) -> Mark:
        start = max(0, offset - TAIL)
        return Mark(offset, digest_of(self.read(0, min(HEAD, offset))), digest_of(self.read(start, offset - start)))

    def survey(self, marks: list[Mark]) -> tuple[int, list[int]]:
        """The size, and the numbers of the marks that it agrees with; those at its beginning say nothing."""
        head = self.read(0, HEAD)
        close = [
            number
            for number, mark in enumerate(marks)
            if mark.offset > 0
            and len(head) >= min(HEAD, mark.offset)
            and digest_of(head[: min(HEAD, mark.offset)]) == mark.head
        ]
        if self.packed is None:
            size = os.fstat(self.descriptor).st_size
            return size, [
                one for one in close if marks[one].offset <= size and self.mark(marks[one].offset) == marks[one]
            ]
        size, recent, tails = 0, b"", dict.fromkeys((marks[one].offset for one in close), "")
        for data in self.stream(0):
            joined, base = recent + data, size - len(recent)
            for offset in tails:
                if size < offset <= size + len(data):
                    tails[offset] = digest_of(joined[max(0, offset - TAIL - base) : offset - base])
            size += len(data)
            recent = joined[-TAIL:]
        return size, [one for one in close if tails[marks[one].offset] == marks[one].tail]


class Source:
    """The log that lines are taken from; close it."""

    def __init__(self, path: str) -> None:
        parts = place.split(path)
        self.path = path
        self.name = parts.pop()
        self.pattern = rotated_names(self.name)
        self.held = ExitStack()
        self.directory = place.hold(self.held, place.open_directory(parts, make=False))
        info = os.fstat(self.directory)
        self.facts: dict[str, Any] = {"machine": machine(), "directory": info.st_ino}
        self.readers: list[Reader] = []
        self.recent = (-1, 0, b"")

    def close(self) -> None:
        self.forget()
        self.held.close()

    def forget(self) -> None:
        for reader in self.readers:
            reader.close()
        self.readers = []
        self.recent = (-1, 0, b"")

    def files(self, marks: list[Mark], stamps: list[Stamp]) -> list[File]:
        """The log first, if it is there, and what it was rotated to; with files of any name that have a known inode.

        stamps: as many as marks; a packed file that has one is not read again. Failure where the files are renamed
        faster than they can be looked at.
        """
        for _round in range(10):
            self.forget()
            before = self.listing({stamp.inode for stamp in stamps})
            files = [one for one in (self.look(name, marks, stamps) for name in before) if one is not None]
            if self.listing({stamp.inode for stamp in stamps}) == before:
                return files
        raise Failure("moved", f"{self.path} is being rotated", transient=True)

    def listing(self, inodes: set[int]) -> dict[str, int]:
        """Names and inodes, the log's own first, then those last written to."""
        held = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.directory)
        try:
            with os.scandir(held) as entries:
                found = {}
                for entry in entries:
                    wanted = entry.name == self.name or self.pattern.fullmatch(entry.name) or entry.inode() in inodes
                    if wanted and entry.is_file(follow_symlinks=False):
                        found[entry.name] = (entry.stat(follow_symlinks=False).st_mtime_ns, entry.inode())
        finally:
            os.close(held)
        names = sorted(found, key=lambda name: (name != self.name, -found[name][0], name))
        return {name: found[name][1] for name in names[:SIBLINGS]}

    def look(self, name: str, marks: list[Mark], stamps: list[Stamp]) -> File | None:
        """None: it is gone."""
        current, number, size = name == self.name, len(self.readers), -1
        packed, problem, holds = name.endswith(".gz") and not current, "", []
        try:
            descriptor = os.open(name, READ, dir_fd=self.directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            if current:
                raise
            info = os.stat(name, dir_fd=self.directory, follow_symlinks=False)
            number, problem = -1, str(error.strerror)
        else:
            self.readers.append(Reader(descriptor, packed))
            info = os.fstat(descriptor)
            if packed and Stamp.of(info) in stamps:
                holds = [one for one, stamp in enumerate(stamps) if stamp == Stamp.of(info)]
            else:
                try:
                    size, holds = self.readers[-1].survey(marks)
                except UNREADABLE as error:
                    problem = str(error) or type(error).__name__
        fits = self.pattern.fullmatch(name)
        return File(
            number=number,
            name=name,
            current=current,
            rotated=fits is not None,
            counted=fits is not None and any(fits.groupdict().values()),
            stamp=Stamp.of(info),
            size=size,
            holds=holds,
            packed=packed,
            problem=problem,
            mode=stat.S_IMODE(info.st_mode),
            uid=info.st_uid,
            gid=info.st_gid,
        )

    def reader(self, number: int) -> Reader:
        if not 0 <= number < len(self.readers):
            raise Failure("protocol", "a log was asked about a file that it was not asked to look at")
        return self.readers[number]

    def mark(self, number: int, offset: int) -> Mark:
        return self.reader(number).mark(offset)

    def digest(self, number: int, start: int, end: int) -> str:
        return digest_of(*self.reader(number).stream(start, end))

    def copied(self, number: int, others: list[int]) -> int:
        """The place in the list of the first file that begins with all of this one; -1: none does."""
        reader = self.reader(number)
        head = reader.read(0, HEAD)
        for place_of, other in enumerate(others):
            if self.reader(other).read(0, len(head)) == head:
                pairs = zip_longest(reader.stream(0), self.reader(other).stream(0), fillvalue=b"")
                if all(there.startswith(mine) for mine, there in takewhile(itemgetter(0), pairs)):
                    return place_of
        return -1

    def line_end(self, number: int, end: int) -> int:
        """Where the last line before ``end`` that is finished ends."""
        reader = self.reader(number)
        while end > 0:
            start = max(0, end - TAIL)
            at = reader.read(start, end - start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
        return 0

    def count(self, number: int, start: int) -> tuple[int, int]:
        """Where the last finished line after ``start`` ends, and how many of them there are."""
        end, lines, offset = start, 0, start
        for data in self.reader(number).stream(start):
            lines += data.count(b"\n")
            at = data.rfind(b"\n")
            if at >= 0:
                end = offset + at + 1
            offset += len(data)
        return end, lines

    def take(self, number: int, mark: Mark, end: int) -> Extent:
        """What comes after the mark: finished lines of at most BATCH bytes together, or one that is longer.

        end: that of a finished line. Failure where the file is not any more what the mark is of.
        """
        reader = self.reader(number)
        data = reader.read(mark.offset, min(BATCH, end - mark.offset))
        data = data[: data.rfind(b"\n") + 1]
        if data:
            upto, lines, digest = mark.offset + len(data), data.count(b"\n"), digest_of(data)
            self.recent = (number, mark.offset, data)
        else:
            upto, lines, digest = self.long_line(reader, mark.offset)
        found = Extent(upto, lines, digest, reader.mark(upto))
        # Last, so that a log that was truncated, and is longer again, is not taken for the one that it was.
        if upto > end or not lines or reader.mark(mark.offset) != mark:
            raise Failure("moved", f"{self.path} was truncated while it was read", transient=True)
        return found

    @staticmethod
    def long_line(reader: Reader, start: int) -> tuple[int, int, str]:
        digest, offset = blake2b(digest_size=16), start
        for data in reader.stream(start):
            at = data.find(b"\n") + 1
            digest.update(data[:at] if at else data)
            offset += at or len(data)
            if at:
                return offset, 1, digest.hexdigest()
        return offset, 0, digest.hexdigest()

    def read(self, number: int, start: int, end: int) -> Iterator[bytes]:
        known, offset, data = self.recent
        if (known, offset, offset + len(data)) == (number, start, end):
            yield data
        else:
            yield from self.reader(number).stream(start, end)

    # The same for the wire.

    def answer(self, request: dict[str, Any], payload: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        do, number = str(request["do"]), int(request.get("number", -1))
        if do == "files":
            asked = json.loads(payload)
            marks, stamps = [Mark(*one) for one in asked["marks"]], [Stamp(*one) for one in asked["stamps"]]
            yield {"files": [asdict(one) for one in self.files(marks, stamps)]}, b""
        elif do == "mark":
            yield {"mark": self.mark(number, int(request["offset"]))}, b""
        elif do == "digest":
            yield {"digest": self.digest(number, int(request["start"]), int(request["end"]))}, b""
        elif do == "copied":
            yield {"place": self.copied(number, [int(one) for one in request["others"]])}, b""
        elif do == "line_end":
            yield {"end": self.line_end(number, int(request["end"]))}, b""
        elif do == "count":
            end, lines = self.count(number, int(request["start"]))
            yield {"end": end, "lines": lines}, b""
        elif do == "take":
            yield {"extent": self.take(number, Mark(*request["mark"]), int(request["end"]))}, b""
        elif do == "read":
            for data in self.read(number, int(request["start"]), int(request["end"])):
                yield {"more": True}, data
            yield {}, b""
        else:
            raise unknown(do)


def unknown(do: str) -> Failure:
    return Failure("unknown_verb", f"this runner does not know the request {do!r} to a log; upgrade it")


def common(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def already(data: bytes, found: bytes, ends: bool) -> tuple[int, bool]:
    """How many bytes of ``data``, which a killed run was to append, are in ``found``, what came after its target's end;
    and whether nothing is behind them.

    All of them, or whole lines; a part of a line only where nothing is behind it (ends: the file does, with ``found``),
    so that the rest may be appended to it.
    """
    if found.startswith(data) or (ends and data.startswith(found)):
        return min(len(data), len(found)), ends and len(found) <= len(data)
    # Somebody else has appended, too.
    most, last, line = 0, False, data[: data.find(b"\n") + 1] or data
    at = found.find(line)
    while at >= 0:
        same = common(data, found[at:])
        behind = at + same < len(found) or not ends
        if behind and same < len(data):
            same = data.rfind(b"\n", 0, same) + 1
        if same > most:
            most, last = same, not behind
        at = found.find(line, at + 1)
    return most, last


class Target:
    """The log that lines are appended to; close it, which releases its lock.

    What it is now is in ``facts``, which ``refresh`` renews: exists, device, inode, size, whole (it ends with a line's
    end, or is empty), directory (its inode, 0: there is none), machine, owner (files may be given away), changed by
    nobody else but by what appends.
    """

    def __init__(self, path: str, *, look: bool, owner: str, locks: Path) -> None:
        self.path = path
        self.parts = place.split(path)
        self.name = self.parts.pop()
        self.look, self.owner, self.locks = look, owner, locks
        self.held = ExitStack()
        self.descriptor = -1
        self.facts: dict[str, Any] = {}
        try:
            self.refresh()
        except BaseException:
            self.held.close()
            raise

    def close(self) -> None:
        self.held.close()

    def refresh(self) -> dict[str, Any]:
        """Looks again, and opens what is at the path now."""
        facts: dict[str, Any] = {
            "machine": machine(), "owner": capable(CAP_CHOWN), "directory": 0, "exists": False,
            "device": 0, "inode": 0, "size": 0, "whole": True,
        }  # fmt: skip
        try:
            directory = place.open_directory(self.parts, make=False)
        except FileNotFoundError:
            self.facts = facts
            return facts
        try:
            facts["directory"] = os.fstat(directory).st_ino
            with suppress(FileNotFoundError):
                info = os.stat(self.name, dir_fd=directory, follow_symlinks=False)
                if self.descriptor < 0 or not os.path.samestat(info, os.fstat(self.descriptor)):
                    self.open(directory, 0)
                size = os.fstat(self.descriptor).st_size
                facts |= {"exists": True, "device": info.st_dev, "inode": info.st_ino, "size": size}
                facts["whole"] = size == 0 or os.pread(self.descriptor, 1, size - 1) == b"\n"
        finally:
            os.close(directory)
        self.facts = facts
        return facts

    def open(self, directory: int, flags: int) -> None:
        access = READ if self.look else os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.name, access | flags, 0o600, dir_fd=directory)
        self.held.callback(os.close, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Failure("kind", f"{self.path} is not a file")
        if not self.look:
            self.held.enter_context(lock(descriptor, True, self.owner, self.locks))
        self.descriptor = descriptor

    def create(self, mode: int, uid: int, gid: int, preserve: frozenset[str]) -> list[str]:
        """Makes it, empty, where it is not there; what of its owner and mode did not take."""
        directory = place.open_directory(self.parts, make=True)
        try:
            try:
                self.open(directory, os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                return []
            default = Entry("f", 0, 0, 0, 0, 0o644, os.geteuid(), os.getegid(), 1)
            want = default._replace(mode=mode, uid=uid, gid=gid)
            problems = metadata.apply(self.descriptor, want, None, preserve, default)
            os.fsync(self.descriptor)
            held = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.fsync(held)
            finally:
                os.close(held)
            return [problem.text for problem in problems]
        finally:
            os.close(directory)

    def digest(self, start: int, end: int) -> str:
        """Of these bytes."""
        offset, digest = start, blake2b(digest_size=16)
        while offset < end and (data := os.pread(self.descriptor, min(CHUNK, end - offset), offset)):
            digest.update(data)
            offset += len(data)
        return digest.hexdigest()

    @staticmethod
    def pread(descriptor: int, start: int, length: int) -> bytes:
        pieces = []
        while length and (piece := os.pread(descriptor, length, start)):
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return b"".join(pieces)

    @contextmanager
    def file_of(self, inode: int) -> Iterator[int | None]:
        """The file of this inode, which may have been rotated; None: it is not there any more."""
        with ExitStack() as held:
            if self.facts["inode"] == inode:
                yield self.descriptor
                return
            names: list[str] = []
            with suppress(FileNotFoundError):
                directory = place.hold(held, place.open_directory(self.parts, make=False))
                listed = place.hold(held, os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory))
                with os.scandir(listed) as entries:
                    names = [one.name for one in entries if one.inode() == inode and one.is_file(follow_symlinks=False)]
            yield place.hold(held, os.open(names[0], READ, dir_fd=directory)) if names else None

    def already(self, inode: int, start: int, data: bytes) -> tuple[int, bool]:
        """``already`` of what the file of this inode has from ``start`` on; -1: there is none, or it is shorter."""
        with self.file_of(inode) as descriptor:
            if descriptor is None or (size := os.fstat(descriptor).st_size) < start:
                return -1, False
            found = self.pread(descriptor, start, len(data) + SLACK)
            return already(data, found, descriptor == self.descriptor and start + len(found) == size)

    def same(self, inode: int, start: int, data: bytes) -> int:
        """How many bytes from ``start`` are as in ``data``, in the file of this inode; -1 as with ``already``."""
        with self.file_of(inode) as descriptor:
            if descriptor is None or os.fstat(descriptor).st_size < start:
                return -1
            return common(data, self.pread(descriptor, start, len(data)))

    def append(self, data: bytes, last: bool) -> int:
        """Writes behind all that is there; its size then. last: with all that was written before it is on the disk."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.descriptor, view) :]
        if last:
            os.fsync(self.descriptor)
        return os.fstat(self.descriptor).st_size

    def answer(self, request: dict[str, Any], payload: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        do = str(request["do"])
        if do == "refresh":
            yield {"facts": self.refresh()}, b""
        elif do == "create":
            wanted = (int(request["mode"]), int(request["uid"]), int(request["gid"]), frozenset(request["preserve"]))
            yield {"problems": self.create(*wanted)}, b""
        elif do == "digest":
            yield {"digest": self.digest(int(request["start"]), int(request["end"]))}, b""
        elif do == "same":
            yield {"same": self.same(int(request["inode"]), int(request["start"]), payload)}, b""
        elif do == "already":
            count, last = self.already(int(request["inode"]), int(request["start"]), payload)
            yield {"count": count, "last": last}, b""
        elif do == "append":
            yield {"size": self.append(payload, bool(request["last"]))}, b""
        else:
            raise unknown(do)
