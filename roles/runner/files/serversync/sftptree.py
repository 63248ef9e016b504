# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One element's replica on an SFTP server, held by the runner on the other side: what ``tree.Tree`` is elsewhere.

Nothing there holds a directory open or a lock for us. The lock is a file that the runner makes new, and writes again
every half minute for as long as it lives; the root is known by its path alone.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from serversync import place
from serversync.commit import CODES, Op, Refused, Result
from serversync.detect import GONE, SIZE, VANISHED, Blocks, Content, Summary
from serversync.entry import Entry
from serversync.failure import Failure
from serversync.filters import Filter
from serversync.held import NAME, RESERVED
from serversync.locks import exists
from serversync.machine import known_as, machine
from serversync.metadata import Problem
from serversync.sftpcommit import SftpCommit, dressing
from serversync.sftppaths import SECOND, Seen, discard, join, look_at, make, names, reason, target_of, tolerant, walk
from serversync.sftpwire import (
    AHEAD,
    CREATE,
    END_OF_FILE,
    EXCLUSIVE,
    FOR_READING,
    FOR_WRITING,
    FSYNC,
    HARDLINK,
    POSIX_RENAME,
    TRUNCATE,
    Attributes,
    Request,
    Session,
    Task,
    close,
    fsetstat,
    fsync,
    hardlink,
    lstat,
    one,
    open_file,
    posix_rename,
    read,
    remove,
    rename,
    rmdir,
    setstat,
    space_at,
    symlink,
    write,
)
from serversync.tree import Item
from serversync.versions import checked

# Seconds between two signs of life, and after which a lock without one is nobody's, by the server's clock.
BEAT = 30
STALE = 300
ATTEMPTS = 3
# Not the name of an element.
LOCK = RESERVED + b"/.lock"
MARKER = b"marker.json"
SIZES = b"sizes.json"
COMING = b".new"
# What SFTP has no words for.
LACKING = frozenset(("hardlinks", "acls", "xattrs", "sparse"))
# The longest file of our own.
OWN_FILE = 1 << 20


class Abilities(NamedTuple):
    """What was tried out in the root's ``.serversync``."""

    owner: bool = False
    linking: bool = False
    lacks: tuple[str, ...] = ()
    folding: tuple[str, ...] = ()


class SftpTree:
    """A replica of one element; ``close`` it to release its lock. What fails raises Failure."""

    def __init__(
        self,
        session: Session,
        path: str,
        kind: str,
        *,
        element: str,
        run: str,
        writable: bool,
        look: bool,
        owner: str,
        name: bytes,
        previous: str = "",
        partner: str,
        machine: str,
        spend: Callable[[int], None],
        warned: list[str],
    ) -> None:
        """As ``Tree``. partner: how messages name the server; machine: what stands for its machine id; spend: waits
        until as many bytes of content may travel; warned: what the record says of the server."""
        self.session = session
        self.path = path
        self.partner = partner
        self.element = element
        self.run = run
        self.spend = spend
        self.held = ExitStack()
        self.name = name
        parts = [os.fsencode(part) for part in place.split(path)]
        self.only = parts.pop() if kind == "file" else None
        self.root = b"/" + b"/".join(parts)
        self.lock: Lock | None = None
        self.patterns: Filter | None = None
        self.problems: dict[bytes, str] = {}
        self.blocks = Blocks(place.PLENTY)
        self.commits: SftpCommit | None = None
        try:
            with self.explained("not_writable" if writable else "not_readable"):
                abilities = self.make_ready(owner) if writable and not look else Abilities()
                self.previous = previous if previous and self.marker(element) is None else ""
                if self.previous and self.lock:
                    self.take_over(previous)
                marker = self.marker(self.previous or element)
                space = session.run(space_at(session, self.root))
                if not self.lock:
                    abilities = remembered(marker)
                self.abilities = abilities
                self.facts: dict[str, Any] = {
                    "granularity": SECOND,
                    "folding": list(abilities.folding),
                    "acls": False,
                    "xattrs": False,
                    "lacks": sorted(LACKING.union(abilities.lacks)),
                    "name_max": space.name_max,
                    "fstype": "",
                    "device": 0,
                    "inode": 0,
                    "born": 0,
                    "machine": machine,
                    "path": path,
                    "owner": abilities.owner,
                    "marker": marker,
                    "others": self.others(),
                    "free": space._asdict(),
                    "time": self.lock.clock + 0.5 if self.lock else time.time(),
                    "warnings": warned,
                }
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.held.close()

    @contextmanager
    def explained(self, code: str = "io") -> Iterator[None]:
        """What the server refuses, as a Failure."""
        try:
            yield
        except OSError as error:
            told = CODES.get(error.errno or 0, code)
            raise Failure(told if code == "io" else code, f"{self.path} on {self.partner}: {reason(error)}") from error

    def make_ready(self, owner: str) -> Abilities:
        known: set[bytes] = set()
        if self.session.run(look_at(self.root)) is None:
            self.session.run(make(self.root, known))
        reserved = join(self.root, RESERVED)
        self.session.run(make(reserved, {self.root}, 0o700))
        self.lock = Lock(self.session, join(self.root, LOCK), owner)
        self.held.callback(self.lock.release)
        abilities = self.session.run(tried(self.session, reserved))
        commit = SftpCommit(self.session, self.root, self.element, self.run, frozenset(), linking=False, chown=False)
        commit.recover()
        return abilities

    def take_over(self, previous: str) -> None:
        """Marker and versions of the element come along with its new name."""
        home = join(self.root, RESERVED)
        [answer] = self.session.run(
            asked([rename(join(home, os.fsencode(previous)), join(home, os.fsencode(self.element)))])
        )
        if answer is None:
            self.previous = ""
        elif not isinstance(answer, FileNotFoundError):
            raise answer

    def own(self, path: bytes) -> bytes:
        """A path as it is there."""
        return self.only if self.only is not None and path == self.name else path

    def common(self, path: bytes) -> bytes:
        """A path of there as the runner knows it."""
        return self.name if self.only is not None and path == self.only else path

    def there(self, path: bytes) -> bytes:
        """Absolute, on the server."""
        return join(self.root, self.own(path)) if path else self.root

    # Update detection.

    def scan(
        self, known: bytes, include: list[str], exclude: list[str], _xattrs: frozenset[str], _expected: int
    ) -> Summary:
        self.patterns = Filter(include, exclude) if (include or exclude) and self.only is None else None
        self.problems = {}
        with self.explained("not_readable"):
            moment = self.settle()
            root = self.session.run(look_at(self.root))
            if root is None or root.kind != "d":
                raise Failure("missing", f"{self.path} on {self.partner} is not there any more", transient=True)
            frames = self.look_at_one() if self.only is not None else self.look_at_all()
        blocks, entries = folded(frames)
        self.blocks = blocks
        # The times of the root move whenever something is put into .serversync.
        stream = blake2b(b"%o %d %d\0" % (root.mode, root.uid, root.gid), digest_size=SIZE, person=b"sftp")
        for directory in sorted(blocks.digests):
            stream.update(b"%b\0%b" % (directory, blocks.digests[directory]))
        complete = not self.problems
        result = stream.digest() if complete else b""
        problems = {self.common(path): why for path, why in self.problems.items()}
        return Summary(result, entries, moment, complete, problems, complete and result == known, root)

    def settle(self) -> int:
        """As ``Tree.settle``, as far as it goes: the server writes to its disk when it likes."""
        # By our own clock, to be sure less two seconds, where the server's cannot be asked.
        return (self.lock.beat() if self.lock else int(time.time()) - 2) * SECOND

    def look_at_one(self) -> dict[bytes, Frame]:
        assert self.only is not None
        frame = Frame(b"", True)
        try:
            entry = self.session.run(look_at(join(self.root, self.only)))
        except OSError as error:
            self.problems[self.only] = reason(error)
        else:
            if entry is not None:
                frame.lines.append(b"%b\0%b" % (self.only, entry.record))
        return {b"": frame}

    def look_at_all(self) -> dict[bytes, Frame]:
        """Every directory that may take part, level by level."""
        patterns = self.patterns
        frames = {b"": Frame(b"", patterns is None or patterns.inside(b""))}
        level = [b""]
        while level:
            below: list[bytes] = []
            for directory, found in zip(level, self.session.together(map(self.listed, level))):
                frame = frames[directory]
                if isinstance(found, OSError):
                    if not directory:
                        raise found
                    self.problems[directory] = VANISHED if found.errno in GONE else reason(found)
                    frame.unread = True
                    continue
                below += self.sort_out(directory, frame, found, frames)
            level = below
        return frames

    def listed(self, directory: bytes) -> Task[dict[bytes, Seen] | OSError]:
        return tolerant(join(self.root, directory) if directory else self.root)

    def sort_out(
        self, directory: bytes, frame: Frame, found: dict[bytes, Seen], frames: dict[bytes, Frame]
    ) -> Iterator[bytes]:
        """Fills the frame; the directories in it that are to be read."""
        for name, seen in found.items():
            if name == RESERVED:
                continue
            frame.empty = False
            path = join(directory, name)
            is_directory = isinstance(seen, Entry) and seen.kind == "d"
            inside = frame.inside
            if self.patterns is not None:
                inside = self.patterns.takes(path, is_directory, inside)
                if not inside and not (is_directory and self.patterns.enters(path)):
                    continue
            if isinstance(seen, str):
                self.problems[path] = seen
                frame.lines.append(name + b"\0")
            elif is_directory:
                frames[path] = Frame(seen.record, inside)
                yield path
            else:
                frame.lines.append(b"%b\0%b" % (name, seen.record))

    def digests(self) -> Iterator[tuple[bytes, bytes]]:
        yield from self.blocks.digests.items()

    def listing(self, directories: Iterable[bytes]) -> Iterator[Item]:
        """The children of these directories as the scan saw them; of one that was not there, none."""
        for directory in directories:
            block = self.blocks.kept.get(directory)
            if not block:
                continue
            parts = iter(block.split(b"\0"))
            for name, record in zip(parts, parts):
                yield self.common(join(directory, name)), record, b""

    def entries(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Entry | str | None]]:
        def seen(path: bytes) -> Task[tuple[bytes, Entry | str | None]]:
            try:
                return path, (yield from look_at(self.there(path)))
            except OSError as error:
                return path, reason(error)

        return self.session.together(map(seen, paths))

    def checksums(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Entry | str]]:
        """Every byte crosses the network for it."""
        return self.session.together(map(self.checksum, paths))

    def checksum(self, path: bytes) -> Task[tuple[bytes, Entry | str]]:
        there = self.there(path)
        try:
            before = yield from look_at(there)
            if before is None or before.kind != "f":
                return path, VANISHED if before is None else "it is not a regular file"
            content = Content(before.size)
            yield from self.fetch(there, before.size, content.add)
            if (yield from look_at(there)) != before:
                return path, "it changed while it was read"
            return path, before._replace(digest=content.digest())
        except Refused as refusal:
            return path, refusal.problem.text
        except OSError as error:
            return path, reason(error)

    def attributes(self, _paths: Iterable[bytes]) -> Iterator[tuple[bytes, dict[str, bytes]]]:
        """There are none over SFTP."""
        return iter(())

    # Contents.

    def fetch(self, path: bytes, size: int, take: Callable[[int, bytes], object]) -> Task[None]:
        """Gives the file's bytes to ``take``, each piece with its offset, in order; Refused where there are fewer."""
        handle = yield from one(open_file(path, FOR_READING))
        try:
            offset = 0
            while offset < size:
                ends = min(size, offset + AHEAD * self.session.reading)
                self.spend(ends - offset)
                wanted = [
                    (start, min(self.session.reading, ends - start))
                    for start in range(offset, ends, self.session.reading)
                ]
                answers = yield [read(handle, start, length) for start, length in wanted]
                for (start, length), answer in zip(wanted, answers):
                    while True:
                        if isinstance(answer, OSError):
                            raise answer
                        if answer is END_OF_FILE or not answer:
                            raise Refused("moved", "has become shorter while it was read")
                        take(start, answer)
                        start, length = start + len(answer), length - len(answer)
                        if length <= 0:
                            break
                        [answer] = yield [read(handle, start, length)]
                offset = ends
        except (OSError, Refused):
            yield [close(handle)]
            raise
        yield [close(handle)]

    def upload(
        self, path: bytes, pieces: Iterable[tuple[int, bytes]], size: int, want: Entry, before: Entry | None
    ) -> Task[list[Problem]]:
        """Makes the staged file of these pieces and this size, with its metadata, on the disk; what did not take."""
        there = join(self.committing.stage, self.own(path))
        changes = dressing(None, want, self.committing.preserve, before, chown=self.abilities.owner)
        handle = yield from one(open_file(there, FOR_WRITING | CREATE | EXCLUSIVE))
        requests: list[Request] = []
        written = 0
        try:
            for start, piece in pieces:
                for at in range(0, len(piece), self.session.writing):
                    part = piece[at : at + self.session.writing]
                    requests.append(write(handle, start + at, part))
                    self.spend(len(part))
                    written = start + at + len(part)
                    if len(requests) == AHEAD:
                        yield from granted(requests)
                        requests = []
            if written < size:
                requests.append(fsetstat(handle, Attributes(size=size)))
            yield from granted(requests)
            problems = yield from self.dress(handle, changes)
            if self.session.has(FSYNC):
                yield from one(fsync(handle))
        except OSError as error:
            yield [close(handle)]
            left = yield from space_at(self.session, self.committing.stage)
            if error.errno == errno.EIO and (
                left.free_bytes < size - written + self.session.writing or not left.free_inodes
            ):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        # Some servers tell only now that a write went wrong.
        yield from one(close(handle))
        return problems

    def dress(self, handle: bytes, changes: list[Attributes]) -> Task[list[Problem]]:
        problems = []
        for attributes, answer in zip(changes, (yield [fsetstat(handle, attributes) for attributes in changes])):
            if not isinstance(answer, OSError):
                continue
            if attributes.uid is None:
                raise answer
            if self.committing.preserve & {"owner", "group"}:
                problems.append(Problem("owner", f"its owner cannot be set: {reason(answer)}"))
        return problems

    def make_parents(self, paths: Iterable[bytes]) -> None:
        """The directories of the stage that these files are in."""
        known = self.committing.known
        with self.explained():
            for directory in sorted(
                {join(self.committing.stage, self.own(path)).rpartition(b"/")[0] for path in paths}
            ):
                self.session.run(make(directory, known, 0o700))

    # Propagation.

    def prepare(self, preserve: frozenset[str]) -> None:
        """Makes the stage."""
        able = self.abilities
        self.commits = SftpCommit(
            self.session, self.root, self.element, self.run, preserve, linking=able.linking, chown=able.owner
        )
        self.commits.prepare()

    @property
    def committing(self) -> SftpCommit:
        if self.commits is None:
            raise Failure("protocol", "a replica was asked to change before its stage was made")
        return self.commits

    def staged(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Entry | str | None]]:
        """As ``entries``, of paths in the stage."""
        with self.explained():
            found = {self.common(path): entry for path, entry in walk(self.session, self.committing.stage)}
        for path in paths:
            yield path, found.get(path)

    def commit(self, ops: Iterable[Op]) -> Iterator[Result]:
        self.still_ours()
        named = (op._replace(path=self.own(op.path), staged=self.own(op.staged), to=self.own(op.to)) for op in ops)
        for result in self.committing.carry_out(named):
            yield result._replace(path=self.common(result.path))

    def order(self, ops: Iterable[Op], behind: int = 0) -> Iterator[Result]:
        """As ``commit``; all is done when it returns. behind: of a ``PartnerTree``; no parcels come here."""
        return iter(list(self.commit(ops)))

    def set_times(self, times: Iterable[tuple[bytes, int]]) -> None:
        """As ``commit.Commit.set_times``."""
        wanted = dict(times)
        seen = ((path, entry) for path, entry in self.entries(wanted) if isinstance(entry, Entry) and entry.kind == "d")
        self.order(Op("meta", path, entry, entry._replace(mtime=wanted[path])) for path, entry in seen)

    def answered(self) -> None:
        """Nothing is asked of it whose answer is not waited for."""

    def still_ours(self) -> None:
        if self.lock is not None and self.lock.lost:
            message = f"another run took the lock of {self.path} on {self.partner}, which had been silent for {STALE} s"
            raise Failure("lock_lost", message, transient=True)

    def finish(self) -> None:
        with self.explained():
            self.committing.finish()

    def sync(self) -> None:
        """The names of what was put there are on the disk, where the server can do that; contents are since long."""
        if self.commits is not None:
            self.commits.sync()

    # Our own files.

    def home(self, element: str) -> bytes:
        return b"/".join([self.root, RESERVED, os.fsencode(element)])

    def marker(self, element: str) -> dict[str, Any] | None:
        """As marker.marker."""
        path = join(self.home(element), MARKER)
        found = self.session.run(read_json(path))
        if found is None:
            # Where the server cannot replace it in one step it may be on its way.
            found = self.session.run(read_json(path + COMING)) or None
        return found

    def mark(self, content: dict[str, Any]) -> None:
        with self.explained():
            known: set[bytes] = {self.root}
            self.session.run(make(self.home(self.element), known, 0o700))
            told = {**content, "sftp": self.abilities._asdict()}
            self.session.run(replace(self.session, join(self.home(self.element), MARKER), told))

    def others(self) -> list[dict[str, Any]]:
        """The markers of other elements that have this replica as their target."""
        found = []
        try:
            elements = [os.fsdecode(name) for name in names(self.session, join(self.root, RESERVED), "d")]
        except PermissionError:
            # A pure source may keep what is its own account's closed to this one.
            return []
        for element in elements:
            if element not in (self.element, self.previous) and place.WORD.fullmatch(element):
                content = self.marker(element)
                if content:
                    found.append({**content, "element": element})
        return found

    # Versions.

    @property
    def store(self) -> bytes:
        return join(self.home(self.element), b"versions")

    def runs(self) -> list[str]:
        """Oldest first."""
        found = [os.fsdecode(name) for name in names(self.session, self.store, "d")]
        found = [name for name in found if NAME.fullmatch(name)]
        return sorted(found, key=lambda name: (began(name), place.turn(name)))

    def prune(self, keep: int, most: int, now: float) -> list[str]:
        """As ``Tree.prune``; what a version takes is the sum of its files' sizes."""
        with self.explained():
            runs = self.runs()
            mine = [name for name in runs if place.run_of(name) == place.run_of(self.run)]
            others = [name for name in runs if name not in mine]
            # A directory's time counts, too: the clock that gave the run its name may have been behind.
            gone = [name for name in others if now - began(name) > keep and now - self.displaced(name) > keep]
            left = [name for name in others if name not in gone]
            sizes = self.sizes(left, mine)
            total = sum(sizes.values())
            for name in left:
                if total <= most:
                    break
                gone.append(name)
                total -= sizes[name]
            return [problem for name in gone for problem in discard(self.session, join(self.store, os.fsencode(name)))]

    def displaced(self, run: str) -> float:
        entry = self.session.run(look_at(join(self.store, os.fsencode(run))))
        return entry.mtime / 10**9 if entry is not None else 0.0

    def sizes(self, left: list[str], mine: list[str]) -> dict[str, int]:
        """Bytes per run; another run's change no more, so that they are measured once."""
        path = join(self.home(self.element), SIZES)
        before = (self.session.run(read_json(path)) if left else None) or {}
        known = {name: before[name] if isinstance(before.get(name), int) else self.measured(name) for name in left}
        if known != before and left:
            self.session.run(replace(self.session, path, known))
        return {**known, **{name: self.measured(name) for name in mine}}

    def measured(self, run: str) -> int:
        return sum(entry.size for _path, entry in walk(self.session, join(self.store, os.fsencode(run))))

    def versions(self, path: bytes | None) -> Iterator[dict[str, Any]]:
        """As versions.versions, what JSON can carry of them."""
        checked(path)
        with self.explained():
            for run in self.runs():
                for found, entry in self.kept(run, None if path is None else self.own(path)):
                    yield {
                        "run": run,
                        "path": os.fsdecode(self.common(found)),
                        "bytes": entry.size,
                        "when": began(run),
                    }

    def kept(self, run: str, path: bytes | None) -> list[tuple[bytes, Entry]]:
        """What the run displaced of the path and below it; of directories only the empty ones."""
        store = join(self.store, os.fsencode(run))
        found = list(walk(self.session, store)) if path is None else self.kept_below(store, path)
        full = {path.rpartition(b"/")[0] for path, _entry in found}
        return [(path, entry) for path, entry in found if path not in full]

    def kept_below(self, store: bytes, path: bytes) -> list[tuple[bytes, Entry]]:
        entry = self.session.run(look_at(join(store, path)))
        if entry is None:
            return []
        below = walk(self.session, join(store, path)) if entry.kind == "d" else ()
        return [(path, entry), *((join(path, found), one) for found, one in below)]

    def restore(self, path: bytes, run: str) -> Iterator[Result]:
        """As versions.restore."""
        checked(path)
        mine = self.own(path)
        with self.explained():
            store = join(self.store, os.fsencode(run))
            found = self.kept(run, mine)
            if not found:
                raise Failure("missing", f"{os.fsdecode(path)} has no version of the run {run}")
            self.prepare(frozenset(("permissions", "owner", "group", "times")))
            results = list(self.bring_back(store, found))
            for directory, _entry in reversed(self.kept_below(store, mine)):
                self.session.run(asked([rmdir(join(store, directory))]))
            while mine:
                # Those above it that held nothing else, the run's own last.
                mine = mine.rpartition(b"/")[0]
                self.session.run(asked([rmdir(join(store, mine) if mine else store)]))
            self.finish()
            self.sync()
        for result in results:
            yield result._replace(path=self.common(result.path))

    def bring_back(self, store: bytes, found: list[tuple[bytes, Entry]]) -> Iterator[Result]:
        commit = self.committing
        for path, entry in found:
            above = path.split(b"/")[:-1]
            for number in range(1, len(above) + 1):
                directory = b"/".join(above[:number])
                if self.session.run(look_at(join(self.root, directory))) is None:
                    was = self.session.run(look_at(join(store, directory)))
                    yield from commit.carry_out([Op("mkdir", directory, None, was)])
            live = self.session.run(look_at(join(self.root, path)))
            if entry.kind == "d":
                if live is None:
                    yield from commit.carry_out([Op("mkdir", path, None, entry)])
            else:
                source = join(store, path)
                op = Op("put", path, live, entry)
                yield self.session.run(commit.careful(op, commit.put(op, source)))


class Frame:
    """A directory of a scan. record: its own; inside: it takes part as it is; lines: its children's, at first those of
    no directories; empty: nothing is in it; unread: it could not be read."""

    __slots__ = ("empty", "inside", "lines", "record", "unread")

    def __init__(self, record: bytes, inside: bool) -> None:
        self.record = record
        self.inside = inside
        self.lines: list[bytes] = []
        self.empty = True
        self.unread = False


def folded(frames: dict[bytes, Frame]) -> tuple[Blocks, int]:
    """The blocks of all directories that take part, those below first, and the number of entries. Uses the frames up.

    A directory that exists only for what does not take part is not there.
    """
    blocks = Blocks(place.PLENTY)
    entries = 0
    for path in sorted(frames, reverse=True):
        frame = frames[path]
        above, _slash, name = path.rpartition(b"/")
        if frame.unread:
            frames[above].lines.append(name + b"\0")
        elif not path or frame.lines or (frame.empty and frame.inside):
            entries += len(frame.lines)
            blocks.add(path, frame.lines)
            if path:
                frames[above].lines.append(b"%b\0%b" % (name, frame.record))
    return blocks, entries


def began(run: str) -> float:
    return place.started(run.partition("~")[0])


def remembered(marker: dict[str, Any] | None) -> Abilities:
    """What the last run that could try it out has left on record."""
    told = (marker or {}).get("sftp")
    if not isinstance(told, dict):
        return Abilities()
    owner, linking = bool(told.get("owner")), bool(told.get("linking"))
    return Abilities(owner, linking, *(tuple(map(str, told.get(name) or ())) for name in ("lacks", "folding")))


def granted(requests: list[Request]) -> Task[None]:
    """All of them; the first refusal is raised."""
    for answer in (yield requests):
        if isinstance(answer, OSError):
            raise answer


def asked(requests: list[Request]) -> Task[list[Any]]:
    """The answers, refusals too."""
    return (yield requests)


# Small files.


def read_whole(path: bytes) -> Task[bytes]:
    """A file of our own; raises OSError."""
    handle = yield from one(open_file(path, FOR_READING))
    content = b""
    while len(content) < OWN_FILE:
        [answer] = yield [read(handle, len(content), 32768)]
        if not isinstance(answer, bytes) or not answer:
            break
        content += answer
    yield [close(handle)]
    if isinstance(answer, OSError):
        raise answer
    return content


def read_json(path: bytes) -> Task[dict[str, Any] | None]:
    """A JSON object; None: there is no such file, empty: it is none."""
    try:
        content = json.loads((yield from read_whole(path)))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def replace(session: Session, path: bytes, content: Mapping[str, Any]) -> Task[None]:
    """The old content or the new one where the server replaces in one step; else for a moment neither."""
    coming = path + COMING
    handle = yield from one(open_file(coming, FOR_WRITING | CREATE | TRUNCATE, 0o600))
    data = json.dumps(content, sort_keys=True).encode("ascii")
    yield from granted([write(handle, at, data[at : at + 32768]) for at in range(0, len(data), 32768)])
    if session.has(FSYNC):
        yield from one(fsync(handle))
    yield from one(close(handle))
    if session.has(POSIX_RENAME):
        yield from one(posix_rename(coming, path))
    else:
        yield [remove(path)]
        yield from one(rename(coming, path))


# What the server can.


def tried(session: Session, directory: bytes) -> Task[Abilities]:
    """Tries it out in that directory, which nobody else uses; raises OSError where nothing can be made there."""
    stem = "probe-\u00e9"
    path, other, link = (join(directory, name.encode()) for name in (stem, "probe-2", "probe-3"))
    yield [remove(path), remove(other), remove(link)]
    handle = yield from one(open_file(path, FOR_WRITING | CREATE | EXCLUSIVE))
    yield [
        fsetstat(handle, Attributes(mode=0o604)),
        fsetstat(handle, Attributes(atime=10**9, mtime=10**9 + 1)),
        close(handle),
    ]
    found: Attributes = yield from one(lstat(path))
    lacks = []
    if (found.mode or 0) & 0o7777 != 0o604:
        lacks.append("permissions")
    if found.mtime != 10**9 + 1:
        lacks.append("times")
    owner = False
    if found.uid is not None and found.gid is not None:
        given = Attributes(uid=found.uid + 1, gid=found.gid + 1)
        _answer, now = yield [setstat(path, given), lstat(path)]
        owner = isinstance(now, Attributes) and (now.uid, now.gid) == (given.uid, given.gid)
    if not owner:
        lacks += ["owner", "group"]
    [answer] = yield [symlink(b"probe target", link)]
    if isinstance(answer, OSError):
        # Without room for any other file it says nothing about links.
        yield from one(close((yield from one(open_file(other, FOR_WRITING | CREATE | EXCLUSIVE)))))
        yield from one(remove(other))
    try:
        if isinstance(answer, OSError) or (yield from target_of(link)) != b"probe target":
            lacks.append("links")
    except OSError:
        lacks.append("links")
    linking = False
    if session.has(HARDLINK):
        [answer] = yield [hardlink(path, other)]
        linking = not isinstance(answer, OSError)
    folding = []
    for word, twin in (("case", stem.upper()), ("normalization", unicodedata.normalize("NFD", stem))):
        [answer] = yield [lstat(join(directory, twin.encode()))]
        if not isinstance(answer, OSError):
            folding.append(word)
    yield [remove(path), remove(other), remove(link)]
    return Abilities(owner, linking, tuple(lacks), tuple(folding))


class Lock:
    """The lock of a root that this run may change: a file, made new, that says whose it is.

    Nothing takes it away when the run dies, or loses its connection. It counts for nobody's when the run's process is
    gone, or has let go of it, where that was one of this server, or when it was not written for STALE seconds by the
    server's own clock. Sources have none.
    """

    # What this process holds, by token.
    held: ClassVar[set[str]] = set()

    def __init__(self, session: Session, path: bytes, owner: str) -> None:
        """Failure ``running``, transient, where it is taken."""
        self.session = session
        self.path = path
        self.token = secrets.token_hex(8)
        told = {"owner": " ".join(owner.split()), "token": self.token, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self.content = json.dumps({**told, **process()}).encode("ascii")
        self.lost = False
        self.clock = 0
        self.ended = threading.Event()
        self.held.add(self.token)
        try:
            self.take()
            self.clean()
        except BaseException:
            self.held.discard(self.token)
            raise
        self.thread = threading.Thread(target=self.keep, daemon=True)
        self.thread.start()

    def take(self) -> None:
        refusal: OSError | None = None
        for _attempt in range(ATTEMPTS):
            refusal = self.session.run(self.taken())
            if refusal is None:
                return
        assert refusal is not None
        raise refusal

    def taken(self) -> Task[OSError | None]:
        """None where it is ours now; else why not, where that is worth another attempt."""
        refusal = yield from self.made()
        if refusal is None:
            self.clock = yield from self.written()
            return None
        try:
            found: Attributes = yield from one(lstat(self.path))
            holder = (yield from read_json(self.path)) or {}
        except FileNotFoundError:
            return refusal
        now = yield from self.server_time()
        if not left_behind(holder, now - (found.mtime or 0)):
            message = f"in use by {holder.get('owner') or 'another run'} since {holder.get('since') or 'just now'}"
            raise Failure("running", message, transient=True)
        aside = self.path + b"." + self.token.encode()
        [answer] = yield [rename(self.path, aside)]
        if isinstance(answer, OSError):
            return answer
        if ((yield from read_json(aside)) or {}).get("token") != holder.get("token"):
            # Somebody else was faster, and this is a living one.
            yield [rename(aside, self.path)]
        else:
            yield [remove(aside)]
        return refusal

    def made(self) -> Task[OSError | None]:
        """Makes it, with all that it says where the server has hard links; else why there is one, or can be none."""
        path = self.path
        if self.session.has(HARDLINK):
            path += b"." + self.token.encode()
        [handle] = yield [open_file(path, FOR_WRITING | CREATE | EXCLUSIVE, 0o600)]
        if isinstance(handle, OSError):
            return handle
        yield from granted([write(handle, 0, self.content)])
        yield from one(close(handle))
        if path == self.path:
            return None
        [linked] = yield [hardlink(path, self.path)]
        if isinstance(linked, OSError) and (yield from look_at(self.path)) is None:
            # The file system has none.
            [linked] = yield [rename(path, self.path)]
        yield [remove(path)]
        return linked if isinstance(linked, OSError) else None

    def clean(self) -> None:
        """Removes what runs that were killed had beside it."""
        above, name = self.path.rpartition(b"/")[::2]
        with suppress(OSError):
            left = [one for one in names(self.session, above, "f") if one.startswith(name + b".")]
            self.session.run(asked([remove(join(above, one)) for one in left]))

    def written(self) -> Task[int]:
        found: Attributes = yield from one(lstat(self.path))
        return found.mtime or 0

    def server_time(self) -> Task[int]:
        """Seconds since 1970 by the server's clock."""
        path = self.path + b".clock." + self.token.encode()
        handle = yield from one(open_file(path, FOR_WRITING | CREATE | EXCLUSIVE, 0o600))
        found: Attributes = yield from one(lstat(path))
        yield [close(handle), remove(path)]
        return found.mtime or 0

    def beat(self) -> int:
        """Writes it again, unless it is another's; the server's time."""
        self.session.run(self.rewritten())
        return self.clock

    def rewritten(self) -> Task[None]:
        try:
            holder = yield from read_json(self.path)
            if (holder or {}).get("token") != self.token:
                self.lost = True
                return
            handle = yield from one(open_file(self.path, FOR_WRITING))
            yield from granted([write(handle, 0, self.content)])
            yield from one(close(handle))
            self.clock = yield from self.written()
        except FileNotFoundError:
            self.lost = True

    def keep(self) -> None:
        while not self.ended.wait(BEAT):
            # Whoever uses the connection next learns that it is gone; where this is refused the lock goes stale.
            with suppress(Failure, OSError):
                self.beat()

    def release(self) -> None:
        self.ended.set()
        self.thread.join()
        # Without a connection it stays, and is found to be left behind.
        with suppress(Failure, OSError):
            if not self.lost:
                self.session.run(asked([remove(self.path)]))
        self.held.discard(self.token)


def process() -> dict[str, Any]:
    """What tells this process from any other, also on another server, or in another container."""
    # A job's service sees nothing of /proc but processes, and is told by systemd.
    boot = os.environ.get("SERVERSYNC_BOOT") or Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    boot = boot.strip().replace("-", "")
    space = Path("/proc/self/ns/pid").readlink()
    return {"machine": machine(), "boot": f"{boot} {space}", "pid": os.getpid(), "started": birth(os.getpid())}


def birth(pid: int) -> int | None:
    """When the process started, in ticks since the boot (proc(5)); None: there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def left_behind(holder: dict[str, Any], silent: float) -> bool:
    """Whether nobody holds a lock any more that says this and has been silent for so many seconds."""
    mine = process()
    if holder.items() >= mine.items():
        return holder.get("token") not in Lock.held
    if (known_as(str(holder.get("machine"))), holder.get("boot")) == (mine["machine"], mine["boot"]):
        pid = int(holder.get("pid", 0))
        started = birth(pid)
        # Of one in another sandbox nothing can be told but that it is there.
        if started is not None or not exists(pid):
            return started != holder.get("started")
    # A living run says whose it is as soon as it has made it.
    return silent > (STALE if holder else BEAT)
