# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Update detection: what is on a replica now, in the process that holds the replica's root.

One pass over names and metadata gives a **stream** digest: while it is what it was, the replica is as archived, and
nothing else need be known. Where it is not, the digests of the directories tell which of them have moved, and only
those are listed. A **line** is ``NAME NUL RECORD``; a directory's **block** is its children's lines in the order of
their names, joined by NUL; its digest is that of the block. An empty record stands for a child that cannot be seen.

There are two ways to make the pass, find(1) and a walk on held descriptors. The first is three times as fast, but it
knows neither patterns nor mount points nor which path failed: it is taken where none of these matters and given up for
the second as soon as one does. Both come to the same digests of directories; their stream digests differ, so a change
from one to the other costs a comparison of the directories.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
import threading
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fcntl import fcntl
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from serversync.entry import FORMAT, KINDS, Entry, seconds
from serversync.failure import Stopped
from serversync.held import RESERVED, reach
from serversync.linux import born, open_beneath
from serversync.metadata import ACLS, preserved

if TYPE_CHECKING:
    from serversync.filters import Filter

Child = tuple[bytes, bytes, bytes]
Found = Union[Entry, str, None]

# Below as many entries the walk is done before find has started.
FEW = 5_000
# A large tree is seen by so many at a time at most, in so many shares for each: some hold more than others.
SEEKERS, SHARES = 4, 4
# Bytes of what was seen that are kept for digests and listings; of a larger tree directories are read again.
KEPT = 100 << 20
READ = 1 << 20
# Where contents that are something are mostly told from zeros.
FIRST = 4096
GRAIN = 1 << 20
# How often a directory is read until nothing vanishes meanwhile.
READINGS = 3
SIZE = 16
F_SETPIPE_SZ = 1031
VANISHED = "it vanished while it was looked at"
MOUNTED = "another file system is mounted there"
ENCODING, ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW
LETTERS = {kind: letter.encode() for kind, letter in KINDS.items()}
# What opening a path says where there is nothing of that name: a part of it is missing, a file, or a link.
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
ZEROS = bytes(GRAIN)
# What is known of file systems that cannot be tried out: ns between two time stamps, and what names do not tell apart.
GRANULARITY = {"vfat": 2 * 10**9, "msdos": 2 * 10**9, "exfat": 10**7, "ext2": 10**9, "ext3": 10**9, "hfsplus": 10**9}
GRANULARITY |= dict.fromkeys(("cifs", "smb3", "ntfs", "ntfs3", "fuseblk"), 100)
FOLDING = {
    "case": ("vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "cifs", "smb3", "hfsplus"),
    "normalization": ("hfsplus",),
}
STEPS = (1, 100, 1_000, 10**6, 10**7, 10**9, 2 * 10**9)


class Summary(NamedTuple):
    """What one pass found.

    stream: digest of the whole pass, empty where something could not be seen; entries: how many paths there are;
    moment: when the pass began, or later where ``Tree.settle`` says so, ns by the file system's own clock where
    ``.serversync`` may be touched, else by this server's: what has a later ctime, less the clock's granularity, may
    move without a trace; complete: whether every path was seen; problems: path -> why it is unknown, and all below it;
    unchanged: complete, and the stream is the one that was known; root: the entry of the element's directory itself,
    whose times tell nothing.
    """

    stream: bytes
    entries: int
    moment: int
    complete: bool
    problems: dict[bytes, str]
    unchanged: bool
    root: Entry


def digest(children: Iterable[Child]) -> bytes:
    """A directory's digest from its children, as ``Detection.listing`` gives them, in any order."""
    return _digest(b"\0".join(sorted(b"%b\0%b" % (name(path), record) for path, record, _more in children)))


def name(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def join(directory: bytes, name: bytes) -> bytes:
    return b"%b/%b" % (directory, name) if directory else name


def checksum(pieces: Iterable[tuple[int, bytes]], size: int) -> bytes:
    """Digest of a file's content of that size from its pieces of GRAIN bytes, each with where it begins.

    Pieces of nothing but zeros may be left out, so that holes cost nothing and matter no more than to a reader.
    """
    content = Content(size)
    for start, piece in pieces:
        content.grain(start, piece)
    return content.digest()


class Content:
    """The digest of ``checksum``, of pieces as they come."""

    def __init__(self, size: int) -> None:
        self._content = blake2b(b"%d" % size, digest_size=SIZE, person=b"content")
        self._start, self._waiting = 0, b""

    def grain(self, start: int, piece: bytes) -> None:
        """A piece of GRAIN bytes, or the last one."""
        if piece != (ZEROS if len(piece) == GRAIN else bytes(len(piece))):
            self._content.update(b"%d " % start)
            self._content.update(piece)

    def add(self, _start: int, data: bytes) -> None:
        """The next bytes, however many."""
        self._waiting += data
        while len(self._waiting) >= GRAIN:
            self.grain(self._start, self._waiting[:GRAIN])
            self._start, self._waiting = self._start + GRAIN, self._waiting[GRAIN:]

    def digest(self) -> bytes:
        if self._waiting:
            self.grain(self._start, self._waiting)
            self._waiting = b""
        return self._content.digest()


def blocks(descriptor: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The pieces for ``checksum`` of an open file of that size, without those that are holes."""
    start = 0
    while start < size:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        start -= start % GRAIN
        # Nothing is left where the data begin behind that size: the file has grown.
        length = max(0, min(GRAIN, size - start))
        piece = os.pread(descriptor, length, start)
        while len(piece) < length and (rest := os.pread(descriptor, length - len(piece), start + len(piece))):
            piece += rest
        yield start, piece
        start += GRAIN


def now(root: int, touch: bool) -> int:
    """The time by the clock of the root's file system, where the runner may touch its own directory; else by ours."""
    if not touch:
        return time_ns()
    try:
        os.utime(RESERVED, dir_fd=root, follow_symlinks=False)
        return os.stat(RESERVED, dir_fd=root, follow_symlinks=False).st_ctime_ns
    except OSError:
        return time_ns()


def mounts(root: int) -> frozenset[bytes]:
    """The paths below the root at which something is mounted (proc(5), mountinfo)."""
    top = os.fsencode(Path(f"/proc/self/fd/{root}").readlink()).rstrip(b"/") + b"/"
    found = set()
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match.group(1), 8),)), line.split(b" ")[4])
        if point.startswith(top) and point != top:
            found.add(point[len(top) :])
    return frozenset(found)


def probe(root: int, *, writable: bool) -> dict[str, Any]:
    """What the root's file system can hold.

    granularity: of its time stamps, ns; folding: which of ``case`` and ``normalization`` it does not tell apart in
    names; acls, xattrs: whether it has them; name_max: bytes; fstype; device and inode of the root; born: when that was
    made. ``writable`` allows it to be tried out within ``.serversync``, under the root's lock; where that is not there
    or nothing can be written, granularity and folding are what is known of the type.
    """
    info = os.stat(root)
    kind = fstype(root)
    facts = {
        "granularity": GRANULARITY.get(kind, 1),
        "folding": [word for word, kinds in FOLDING.items() if kind in kinds],
        "acls": supports(root, ACLS[0]),
        "xattrs": supports(root, "user.serversync"),
        "name_max": os.statvfs(root).f_namemax,
        "fstype": kind,
        "device": info.st_dev,
        "inode": info.st_ino,
        "born": born(root),
    }
    if writable:
        with suppress(OSError):
            directory = open_beneath(root, RESERVED, os.O_RDONLY | DIRECTORY)
            try:
                facts |= tried(directory)
            finally:
                os.close(directory)
    return facts


def tried(directory: int) -> dict[str, Any]:
    """Granularity and folding, by a file that is made for it; raises OSError where it cannot be."""
    stem, time = "probe-\u00e9", 1_000_000_001_987_654_321
    os.close(os.open(stem, os.O_CREAT | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory))
    try:
        os.utime(stem, ns=(time, time), dir_fd=directory)
        kept = os.stat(stem, dir_fd=directory).st_mtime_ns
        folding = [
            word
            for word, other in (
                ("case", stem.replace("probe", "PROBE")),
                ("normalization", unicodedata.normalize("NFD", stem)),
            )
            if exists(directory, other)
        ]
    finally:
        os.unlink(stem, dir_fd=directory)
    return {"granularity": next((step for step in STEPS if time - time % step == kept), STEPS[-1]), "folding": folding}


def exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def supports(root: int, attribute: str) -> bool:
    """Whether there are attributes of that kind; having none is no sign against it."""
    try:
        os.getxattr(f"/proc/self/fd/{root}", attribute)
    except OSError as error:
        return error.errno != errno.ENOTSUP
    return True


def fstype(root: int) -> str:
    """The type of the file system, as mount(8) names it; empty where proc(5) does not tell."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{root}").read_text("ascii").splitlines())
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        if line.split()[0] == fields["mnt_id"].strip():
            return line.partition(" - ")[2].split()[0]
    return ""


def record_of(info: os.stat_result, link: str = "") -> bytes:
    """``Entry.of(…).record``, at a third of its price."""
    return b"%b %d %b %b %d %o %d %d %d %b" % (
        LETTERS[stat.S_IFMT(info.st_mode)],
        info.st_ino,
        seconds(info.st_ctime_ns),
        seconds(info.st_mtime_ns),
        info.st_size,
        info.st_mode & 0o7777,
        info.st_uid,
        info.st_gid,
        info.st_nlink,
        link.encode(ENCODING, ERRORS),
    )


def _digest(block: bytes) -> bytes:
    return blake2b(block, digest_size=SIZE).digest()


def _reason(error: OSError) -> str:
    if error.errno == errno.EXDEV:
        return MOUNTED
    return error.strerror or str(error)


class Blocks:
    """The digests of directories, and their blocks as far as there is room (bytes; None: KEPT)."""

    def __init__(self, room: int | None = None) -> None:
        self.digests: dict[bytes, bytes] = {}
        self.kept: dict[bytes, bytes] = {}
        self.room = KEPT if room is None else room

    def add(self, directory: bytes, lines: list[bytes]) -> None:
        lines.sort()
        block = b"\0".join(lines)
        self.digests[directory] = _digest(block)
        if self.room > 0:
            self.room -= len(block) + len(directory)
            self.kept[directory] = block


class _Fold:
    """Makes blocks of what find prints, given in pieces of any size; a directory is closed when find has left it."""

    def __init__(self, room: int | None = None) -> None:
        self.blocks = Blocks(room)
        self.tail = b""
        self.open: list[tuple[bytes, list[bytes]]] = [(b".", [])]

    def feed(self, piece: bytes) -> None:
        text = self.tail + piece
        end = text.rfind(b"\0\0")
        self.tail = text[end + 2 :] if end >= 0 else text
        if end < 0:
            return
        # What begins with a slash is a directory, which what is in it follows.
        first, *entered = text[:end].split(b"\0\0/")
        if first.startswith(b"/"):
            self.enter(first[1:])
        else:
            self.stay(first)
        for one in entered:
            self.enter(one)

    def enter(self, text: bytes) -> None:
        own, _end, rest = text.partition(b"\0\0")
        parent, _nul, line = own.partition(b"\0")
        self.leave(parent)
        self.open[-1][1].append(line)
        self.open.append((b"%b/%b" % (parent, line[: line.index(b"\0")]), []))
        if rest:
            self.stay(rest)

    def stay(self, text: bytes) -> None:
        """No directories; most of them are in the one that was entered last, all of them in one that is open."""
        where, lines = self.open[-1]
        start = where + b"\0"
        some = text[len(start) :].split(b"\0\0" + start)
        if text.startswith(start) and text.count(b"\0\0") == len(some) - 1:
            lines += some
            return
        for unit in text.split(b"\0\0"):
            parent, _nul, line = unit.partition(b"\0")
            self.leave(parent)
            self.open[-1][1].append(line)

    def leave(self, parent: bytes) -> None:
        """Closes what is open below ``parent``."""
        while self.open[-1][0] != parent:
            self.close()

    def close(self) -> None:
        path, lines = self.open.pop()
        # find is asked to leave out directories of that name alone: a question for each file would cost it a tenth.
        self.blocks.add(path[2:], [line for line in lines if not line.startswith(RESERVED + b"\0")])

    def finish(self) -> list[bytes]:
        """The lines that belong into the root's block, which others may have more of."""
        if self.tail:
            raise ValueError("what find printed is cut short")
        self.leave(b".")
        return self.open.pop()[1]


class _Room:
    """How many bytes may still be kept as they were printed, by all finds of a pass."""

    def __init__(self) -> None:
        self.left = KEPT


class _Find:
    """One find, over a share of a tree; what it printed, and the digest of that."""

    def __init__(self, root: int, starts: list[bytes], room: _Room, kept: int, stopped: threading.Event) -> None:
        """starts: names in the root, none: all of it; kept: bytes of blocks to keep; stopped: as Detection has it."""
        each = b"%h\\0%f\\0" + FORMAT + b"\\0\\0"
        self.argv = [b"find", *(b"./" + name for name in starts)] if starts else [b"find", b".", b"-mindepth", b"1"]
        self.argv += [b"-xdev", b"-type", b"d"]
        self.argv += [
            b"(",
            b"-name",
            RESERVED,
            b"-prune",
            b"-o",
            b"-printf",
            b"/" + each,
            b")",
            b"-o",
            b"-printf",
            each,
        ]
        self.root = root
        self.room = room
        self.stopped = stopped
        self.stream = blake2b(digest_size=SIZE)
        self.nuls = 0
        self.printed: deque[bytes] = deque()
        self.folded = _Fold(kept)
        self.done = False
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """``done`` afterwards, if find has seen all of its share."""
        try:
            self.process = process = subprocess.Popen(
                self.argv,
                cwd=f"/proc/self/fd/{self.root}",
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=READ,
            )
        except OSError:
            return
        if self.stopped.is_set():
            process.kill()
        with process:
            assert process.stdout is not None
            # An ordinary user may have used up what he may have in pipes.
            with suppress(PermissionError):
                fcntl(process.stdout, F_SETPIPE_SZ, READ)
            while piece := process.stdout.read(READ):
                if self.stopped.is_set():
                    process.kill()
                    break
                self.take(piece)
        self.done = process.returncode == 0

    def take(self, piece: bytes) -> None:
        self.stream.update(piece)
        self.nuls += piece.count(b"\0")
        self.printed.append(piece)
        self.room.left -= len(piece)
        if self.room.left < 0:
            self.fold()

    def fold(self) -> _Fold:
        while self.printed:
            self.folded.feed(self.printed.popleft())
        return self.folded

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()


class _Frame:
    """A directory that the walk is in. inside: it takes part as it is; record: its own, for its parent's block."""

    __slots__ = ("directories", "empty", "inside", "lines", "path", "record")

    def __init__(self, path: bytes, record: bytes, inside: bool) -> None:
        self.path = path
        self.record = record
        self.inside = inside
        self.lines: list[bytes] = []
        self.directories: list[tuple[bytes, bytes, bool]] = []
        self.empty = True


class Detection:
    """A replica's root, held for one run.

    root: descriptor of the element's directory; only: of a one-file element the file's name; filter: which paths take
    part, None for all; xattrs: which of ``acls`` and ``xattrs`` are preserved and therefore part of an entry;
    expected: how many entries there were last time, 0 where that is not known; stopped: once it is set, whatever reads
    raises Stopped before long: a thread has no other way to hear of it.
    """

    def __init__(
        self,
        root: int,
        *,
        only: bytes | None,
        filter: Filter | None,  # noqa: A002
        xattrs: frozenset[str],
        expected: int,
        stopped: threading.Event | None = None,
    ) -> None:
        self.root = root
        self.stopped = stopped or threading.Event()
        self.only = only
        self.filter = filter
        self.xattrs = xattrs
        self.expected = expected
        self.mounts = mounts(root)
        self.problems: dict[bytes, str] = {}
        self._finds: list[_Find] = []
        self._loose: list[bytes] = []
        self._blocks: Blocks | None = None

    # The pass

    def stop(self) -> None:
        """Ends a pass that another thread is making; as ``stopped``, but without waiting for find."""
        self.stopped.set()
        for find in self._finds:
            find.stop()

    def scan(self, known: bytes, *, touch: bool = True) -> Summary:
        """Looks at everything once. Raises OSError where the root itself cannot be read.

        touch: whether ``.serversync`` may be, for the time by the file system's clock.
        """
        moment = now(self.root, touch)
        self.mounts = mounts(self.root)
        self.problems = {}
        self._finds, self._loose, self._blocks = [], [], None
        root = self._entry(self.root, b"")
        # The times of the root move whenever something is put into .serversync.
        own = b"%o %d %d %b\0" % (root.mode, root.uid, root.gid, root.xattrs)
        large = self.expected > FEW and self.only is None and self.filter is None and not self.mounts
        counted = self._find(own) if large else None
        stream, entries = counted or self._walk_all(own)
        complete = not self.problems
        return Summary(
            stream if complete else b"",
            entries,
            moment,
            complete,
            dict(self.problems),
            complete and stream == known,
            root,
        )

    def _find(self, own: bytes) -> tuple[bytes, int] | None:
        """The pass by find: stream digest and number of entries; None where it did not see all."""
        seekers = min(SEEKERS, len(os.sched_getaffinity(0)))
        shares, self._loose = self._shared_out(seekers * SHARES) if seekers > 1 else ([[]], [])
        room, kept = _Room(), KEPT // len(shares)
        self._finds = finds = [_Find(self.root, share, room, kept, self.stopped) for share in shares]
        waiting = finds[::-1]

        def seek() -> None:
            with suppress(IndexError):
                while not self.stopped.is_set():
                    waiting.pop().run()

        others = [threading.Thread(target=seek) for _number in range(min(seekers, len(finds)) - 1)]
        try:
            for other in others:
                other.start()
            seek()
        except BaseException:
            waiting.clear()
            for find in finds:
                find.stop()
            raise
        finally:
            for other in others:
                if other.ident is not None:
                    other.join()
        self._go_on()
        self.mounts = mounts(self.root)
        if self.problems or self.mounts or not all(find.done for find in finds):
            self._finds, self._loose, self.problems = [], [], {}
            return None
        stream = blake2b(own, digest_size=SIZE, person=b"find")
        stream.update(b"\0".join(self._loose))
        for find in finds:
            stream.update(find.stream.digest())
        return stream.digest(), len(self._loose) + sum(find.nuls // 4 for find in finds)

    def _shared_out(self, most: int) -> tuple[list[list[bytes]], list[bytes]]:
        """The directories in the root in so many shares, and the lines of what else is there; one share of no names is
        all of it."""
        with self._opened(b"", os.O_RDONLY | DIRECTORY) as descriptor, os.scandir(descriptor) as found:
            some = list(islice(found, FEW + 1))
            names = sorted(item.name.encode(ENCODING, ERRORS) for item in some if item.is_dir(follow_symlinks=False))
        names = [name for name in names if name != RESERVED]
        if len(names) < 2 or len(some) > FEW:
            return [[]], []
        # What is a directory by now is looked at by find, whatever it was, and the other way round: nothing is missed.
        frame = self._read(b"", b"", True)
        directories = {own for own, _record, _inside in frame.directories}
        if directories != {*names}:
            return [[]], []
        return [names[number::most] for number in range(min(most, len(names)))], sorted(frame.lines)

    def _go_on(self) -> None:
        if self.stopped.is_set():
            raise Stopped

    def _walk_all(self, own: bytes) -> tuple[bytes, int]:
        """The pass by walking: stream digest and number of entries."""
        self._blocks = blocks = Blocks()
        entries = 0
        for directory, lines in self._walk():
            entries += len(lines)
            blocks.add(directory, lines)
        stream = blake2b(own, digest_size=SIZE, person=b"walk")
        for directory in sorted(blocks.digests):
            stream.update(b"%b\0%b" % (directory, blocks.digests[directory]))
        return stream.digest(), entries

    def _walk(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """Every directory that takes part, each after those below it, and its lines."""
        frames = [self._read(b"", b"", self.filter is None or self.filter.inside(b""))]
        while frames:
            frame = frames[-1]
            if frame.directories:
                own, record, inside = frame.directories.pop()
                path = join(frame.path, own)
                try:
                    frames.append(self._read(path, record, inside))
                except OSError as error:
                    self.problems[path] = VANISHED if error.errno in GONE else _reason(error)
                    frame.lines.append(own + b"\0")
                continue
            frames.pop()
            if not frames:
                yield frame.path, frame.lines
            elif frame.lines or (frame.empty and frame.inside):
                frames[-1].lines.append(b"%b\0%b" % (name(frame.path), frame.record))
                yield frame.path, frame.lines

    def _read(self, path: bytes, record: bytes, inside: bool) -> _Frame:
        """One directory as it is now; raises OSError where it cannot be read."""
        self._go_on()
        for reading in range(READINGS):
            frame = _Frame(path, record, inside)
            problems: dict[bytes, str] = {}
            vanished = self._look(frame, problems)
            if not vanished or reading == READINGS - 1:
                break
        for own in vanished:
            problems[join(path, own)] = VANISHED
        frame.lines += [name(problem) + b"\0" for problem in problems]
        self.problems.update(problems)
        return frame

    def _look(self, frame: _Frame, problems: dict[bytes, str]) -> list[bytes]:
        """Fills the frame; the names that were there and were not when they were looked at."""
        path, lines, patterns = frame.path, frame.lines, self.filter
        if self.only is not None:
            return self._look_at_one(frame, self.only, problems)
        vanished = []
        with self._opened(path, os.O_RDONLY | DIRECTORY) as descriptor, os.scandir(descriptor) as found:
            for item in found:
                own = item.name.encode(ENCODING, ERRORS)
                if own == RESERVED:
                    continue
                frame.empty = False
                directory = item.is_dir(follow_symlinks=False)
                inside = frame.inside
                if patterns is not None:
                    # A partner's patterns may take their time.
                    self._go_on()
                    inside = patterns.takes(join(path, own), directory, inside)
                    if not inside and not (directory and patterns.enters(join(path, own))):
                        continue
                if self.mounts and join(path, own) in self.mounts:
                    problems[join(path, own)] = MOUNTED
                    continue
                try:
                    info = item.stat(follow_symlinks=False)
                    link = os.readlink(item.name, dir_fd=descriptor) if stat.S_ISLNK(info.st_mode) else ""
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.EINVAL):
                        vanished.append(own)
                    else:
                        problems[join(path, own)] = _reason(error)
                    continue
                seen = record_of(info, link)
                if directory != stat.S_ISDIR(info.st_mode):
                    vanished.append(own)
                elif directory:
                    frame.directories.append((own, seen, inside))
                else:
                    lines.append(b"%b\0%b" % (own, seen))
        return vanished

    def _look_at_one(self, frame: _Frame, own: bytes, problems: dict[bytes, str]) -> list[bytes]:
        """As ``_look``, for the one file of an element, which is not there or is of whatever kind."""
        with self._opened(frame.path, os.O_PATH | DIRECTORY) as descriptor:
            try:
                if own in self.mounts:
                    problems[own] = MOUNTED
                else:
                    frame.lines.append(b"%b\0%b" % (own, self._entry(descriptor, own).record))
            except FileNotFoundError:
                return []
            except OSError as error:
                problems[own] = _reason(error)
        return []

    # What was seen

    def digests(self) -> dict[bytes, bytes]:
        """Directory -> digest, of every directory that the last ``scan`` saw, the root and empty ones included."""
        return self._seen().digests

    def _seen(self) -> Blocks:
        if self._blocks is None:
            self._blocks, lines = Blocks(), self._loose
            for find in self._finds:
                fold = find.fold()
                lines = lines + fold.finish()
                self._blocks.digests.update(fold.blocks.digests)
                self._blocks.kept.update(fold.blocks.kept)
            self._blocks.add(b"", [line for line in lines if not line.startswith(RESERVED + b"\0")])
            self._finds = []
        return self._blocks

    def listing(self, directories: Iterable[bytes], *, seen: bool = False) -> Iterator[tuple[bytes, list[Child]]]:
        """Per directory its children as (path, record, more), sorted by path; an empty record: ``problems`` says why.

        Read again now, or with ``seen`` as the last ``scan`` saw them, which is far faster and fits its digests. A
        directory that is not there, or not one, has no children; one that the scan could not read, or below such a one,
        is not given at all. Raises OSError where one cannot be read that the scan could read.
        """
        for directory in directories:
            self._go_on()
            if self._unseen(directory):
                continue
            block = self._seen().kept.get(directory) if seen else None
            try:
                if block is None:
                    lines = sorted(self._lines(directory))
                    block = b"\0".join(lines)
                yield directory, self._children(directory, block)
            except OSError as error:
                if error.errno not in GONE:
                    raise
                yield directory, []

    def _unseen(self, path: bytes) -> bool:
        while path and path not in self.problems:
            path = path.rpartition(b"/")[0]
        return path in self.problems

    def _lines(self, directory: bytes) -> list[bytes]:
        """A directory's lines as they are now."""
        patterns = self.filter
        if patterns is not None and patterns.excluded(directory, True):
            return []
        frame = self._read(directory, b"", patterns is None or patterns.inside(directory))
        for own, record, inside in frame.directories:
            path = join(directory, own)
            if patterns is None or self._there(path, inside):
                frame.lines.append(b"%b\0%b" % (own, b"" if path in self.problems else record))
        return frame.lines

    def _there(self, path: bytes, inside: bool) -> bool:
        """Whether a directory exists for this run: it is empty, or something in it takes part."""
        pending = [(path, inside)]
        while pending:
            path, inside = pending.pop()
            try:
                frame = self._read(path, b"", inside)
            except OSError as error:
                if error.errno in GONE:
                    continue
                return True
            if frame.lines or (frame.empty and inside):
                return True
            pending += [(join(path, own), within) for own, _record, within in frame.directories]
        return False

    def _children(self, directory: bytes, block: bytes) -> list[Child]:
        if not block:
            return []
        parts = iter(block.split(b"\0"))
        prefix = directory + b"/" if directory else b""
        plain = [(prefix + own, record, b"") for own, record in zip(parts, parts)]
        if not self.xattrs and not any(record[:1] in (b"b", b"c") for _path, record, _more in plain):
            return plain
        with self._opened(directory, os.O_PATH | DIRECTORY) as descriptor:
            return [self._completed(descriptor, child) for child in plain]

    def _completed(self, parent: int, child: Child) -> Child:
        """The child with what its record does not hold."""
        path, record, _more = child
        if not record:
            return child
        try:
            entry = self._entry(parent, name(path))
        except OSError as error:
            self.problems[path] = VANISHED if error.errno in GONE else _reason(error)
            return path, b"", b""
        return path, record, entry.more

    # Single paths

    def entries(self, paths: Iterable[bytes]) -> dict[bytes, Found]:
        """What is at the paths now: an entry, None where nothing is, or why it is unknown."""
        found: dict[bytes, Found] = {}
        for path, parent, error in self._parents(paths):
            if error is None:
                try:
                    found[path] = self._entry(parent, name(path))
                except OSError as failed:
                    error = failed
            if error is not None:
                found[path] = None if error.errno in GONE else _reason(error)
        return found

    def checksums(self, paths: Iterable[bytes]) -> dict[bytes, tuple[Entry, bytes] | str]:
        """The entries of regular files with the digests of their contents; or why there is none."""
        results: dict[bytes, tuple[Entry, bytes] | str] = {}
        for path, parent, error in self._parents(paths):
            if error is None:
                try:
                    results[path] = self._checksum(parent, path)
                except OSError as failed:
                    error = failed
            if error is not None:
                results[path] = VANISHED if error.errno in GONE else _reason(error)
        return results

    def _checksum(self, parent: int, path: bytes) -> tuple[Entry, bytes] | str:
        before = self._entry(parent, name(path))
        if before.kind != "f":
            return "it is not a regular file"
        descriptor = open_beneath(parent, name(path), os.O_RDONLY | os.O_NONBLOCK)
        try:
            content = checksum(self._read_on(descriptor, before.size), before.size)
        finally:
            os.close(descriptor)
        if self._entry(parent, name(path)) != before:
            return "it changed while it was read"
        return before, content

    def _read_on(self, descriptor: int, size: int) -> Iterator[tuple[int, bytes]]:
        for block in blocks(descriptor, size):
            self._go_on()
            yield block

    def zeros(self, paths: Iterable[bytes]) -> Iterator[bytes]:
        """Those of the regular files at these paths whose contents are nothing but zeros."""
        for path, parent, error in self._parents(paths):
            if error is None:
                # What cannot be read is told by whoever has to.
                with suppress(OSError):
                    descriptor = open_beneath(parent, name(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                    try:
                        size = os.fstat(descriptor).st_size
                        first = os.pread(descriptor, FIRST, 0)
                        if not any(first) and not any(any(block) for _at, block in self._read_on(descriptor, size)):
                            yield path
                    finally:
                        os.close(descriptor)

    def occupied(self, paths: Iterable[bytes]) -> int:
        """Bytes on the disk of the files at these paths, which of one with holes are fewer than its size."""
        total = 0
        for path, parent, error in self._parents(paths):
            with suppress(OSError):
                info = None if error else os.stat(name(path), dir_fd=parent, follow_symlinks=False)
                total += min(info.st_blocks * 512, info.st_size) if info else 0
        return total

    def attributes(self, paths: Iterable[bytes]) -> dict[bytes, dict[str, bytes]]:
        """The preserved ACLs and extended attributes of the paths; one that is not there or unreadable is left out."""
        found = {}
        for path, parent, error in self._parents(paths):
            if error is None:
                with suppress(OSError):
                    found[path] = self._attributes(parent, name(path))
        return found

    def _parents(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, int, OSError | None]]:
        """Each path with a descriptor of the directory that it is in, or the error that opening this one met."""
        held: int | None = None
        where: bytes | None = None
        error: OSError | None = None
        try:
            for path in paths:
                self._go_on()
                parent = path.rpartition(b"/")[0]
                if parent != where:
                    where, error = parent, None
                    if held is not None:
                        os.close(held)
                        held = None
                    try:
                        held = reach(self.root, parent, os.O_PATH | DIRECTORY)
                    except OSError as failed:
                        error = failed
                mounted = OSError(errno.EXDEV, MOUNTED) if path in self.mounts else None
                yield path, -1 if held is None else held, error or mounted
        finally:
            if held is not None:
                os.close(held)

    def _entry(self, parent: int, own: bytes) -> Entry:
        if not own:
            info, link = os.stat(parent), b""
        else:
            info = os.stat(own, dir_fd=parent, follow_symlinks=False)
            link = os.readlink(own, dir_fd=parent) if stat.S_ISLNK(info.st_mode) else b""
        entry = Entry.of(info, link)
        values = self._attributes(parent, own) if self.xattrs else {}
        if not values:
            return entry
        parts = b"".join(b"%b\0%d\0%b" % (key.encode(), len(values[key]), values[key]) for key in sorted(values))
        return entry._replace(xattrs=_digest(parts))

    def _attributes(self, parent: int, own: bytes) -> dict[str, bytes]:
        # No system call reads attributes by a directory's descriptor and a name; with no name the slash leads into it.
        location = b"/proc/self/fd/%d/%b" % (parent, own)
        values = {}
        try:
            keys = os.listxattr(location, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            keys = []
        for key in keys:
            if preserved(key, self.xattrs):
                values[key] = os.getxattr(location, key, follow_symlinks=False)
        return values

    # Ways in

    @contextmanager
    def _opened(self, path: bytes, flags: int) -> Iterator[int]:
        descriptor = reach(self.root, path, flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
