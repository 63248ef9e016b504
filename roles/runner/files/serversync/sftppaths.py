# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is at paths of an SFTP server, as entries; directories read, made and removed there. Tasks of ``sftpwire``.

SFTP tells neither inode nor ctime nor whole names of devices. An entry has 0 for the inode, and its modification time,
which is in whole seconds, for the ctime: what was changed within the second of a scan is then read by content by the
next run, as what has a late ctime is elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Union

from serversync.entry import KINDS, Entry
from serversync.failure import Failure
from serversync.sftpwire import (
    AHEAD,
    END_OF_FILE,
    Attributes,
    Session,
    Task,
    close,
    lstat,
    mkdir,
    one,
    opendir,
    readdir,
    readlink,
    remove,
    rmdir,
    setstat,
)

SECOND = 10**9
# What is at a path: an entry, or why that cannot be told.
Seen = Union[Entry, str]


def join(above: bytes, name: bytes) -> bytes:
    """Of absolute paths and of those below a root: ``b""`` is the root."""
    return above + b"/" + name if above else name


def entry_of(found: Attributes, link: bytes = b"") -> Entry:
    """Raises ValueError, which says why, where the server does not tell enough."""
    if found.mode is None or not stat.S_IFMT(found.mode):
        raise ValueError("the server does not tell what it is")
    kind = KINDS.get(stat.S_IFMT(found.mode))
    if kind is None or kind in "bc":
        raise ValueError("it is a device, which SFTP does not describe; exclude it")
    if found.mtime is None or (kind == "f" and found.size is None):
        raise ValueError("the server does not tell its size and time")
    time = found.mtime * SECOND
    # The size of a directory is nobody's business, and some servers tell another one each time.
    size = 0 if kind == "d" else found.size or 0
    return Entry(kind, 0, time, time, size, stat.S_IMODE(found.mode), found.uid or 0, found.gid or 0, 1, link)


def look_at(path: bytes) -> Task[Entry | None]:
    """What is there now; None: nothing. Raises OSError where that cannot be told."""
    try:
        found: Attributes = yield from one(lstat(path))
        link = b""
        if stat.S_ISLNK(found.mode or 0):
            link = yield from target_of(path)
        return entry_of(found, link)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OSError(errno.ENOTSUP, str(error)) from error


def target_of(path: bytes) -> Task[bytes]:
    names = yield from one(readlink(path))
    if len(names) != 1:
        raise OSError(errno.EIO, "the server does not tell where the link leads")
    target: bytes = names[0][0]
    return target


def children(path: bytes) -> Task[dict[bytes, Seen]]:
    """What is in the directory, by name. Raises OSError where it cannot be read, ENOTDIR where it is none.

    A link is not followed: it is looked at once more as what it is, since a listing may have shown where it leads.
    """
    handle, own = yield [opendir(path), lstat(path)]
    if isinstance(handle, OSError):
        raise own if isinstance(own, OSError) else handle
    found: dict[bytes, Attributes] = {}
    try:
        if isinstance(own, OSError):
            raise own
        if not stat.S_ISDIR(own.mode or 0):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        # Most directories fit into one answer; the second tells that there is no more.
        ahead, ended = 2, False
        while not ended:
            for answer in (yield [readdir(handle)] * ahead):
                if isinstance(answer, OSError):
                    raise answer
                ended = ended or answer is END_OF_FILE
                if not ended:
                    found.update(answer)
            ahead = AHEAD
    except OSError:
        yield [close(handle)]
        raise
    yield [close(handle)]
    found.pop(b".", None)
    found.pop(b"..", None)
    seen: dict[bytes, Seen] = {}
    if any(not name or b"/" in name or b"\0" in name for name in found):
        raise Failure("protocol", f"the partner names a file in {os.fsdecode(path)} as none can be")
    links = [name for name, attributes in found.items() if stat.S_ISLNK(attributes.mode or 0)]
    lacking = [name for name, attributes in found.items() if attributes.mode is None or attributes.mtime is None]
    for some in pieces(lacking):
        answers = yield [lstat(join(path, name)) for name in some]
        for name, answer in zip(some, answers):
            if isinstance(answer, OSError):
                seen[name] = reason(answer)
            else:
                found[name] = answer
    for some in pieces(links):
        answers = yield [readlink(join(path, name)) for name in some]
        for name, answer in zip(some, answers):
            if isinstance(answer, OSError) or len(answer) != 1:
                seen[name] = reason(answer) if isinstance(answer, OSError) else "the server does not tell its target"
            else:
                seen[name] = entry_of(found[name], answer[0][0])
    for name in found.keys() - seen.keys():
        try:
            seen[name] = entry_of(found[name])
        except ValueError as error:
            seen[name] = str(error)
    return seen


def pieces(names: list[bytes]) -> Iterator[list[bytes]]:
    return (names[start : start + AHEAD] for start in range(0, len(names), AHEAD))


def reason(error: OSError) -> str:
    return error.strerror or str(error)


def tolerant(path: bytes) -> Task[dict[bytes, Seen] | OSError]:
    try:
        return (yield from children(path))
    except OSError as error:
        return error


def names(session: Session, path: bytes, kind: str) -> list[bytes]:
    """Of what is of that kind in the directory, sorted; none where there is no directory."""
    try:
        found = session.run(children(path))
    except FileNotFoundError:
        return []
    return sorted(name for name, seen in found.items() if isinstance(seen, Entry) and seen.kind == kind)


def walk(session: Session, top: bytes, *, opening: bool = False) -> Iterator[tuple[bytes, Entry]]:
    """Everything below the directory, by path below it, parents first; nothing where there is no such directory.

    opening: each directory is made such that its owner can read and empty it. Raises OSError where a part of it cannot
    be read.
    """
    level = [b""]
    while level:
        below: list[bytes] = []
        listed = session.together(tolerant(join(top, directory) if directory else top) for directory in level)
        for directory, found in zip(level, listed):
            if isinstance(found, FileNotFoundError) and not directory:
                return
            if isinstance(found, OSError):
                raise found
            for name, seen in sorted(found.items()):
                path = join(directory, name)
                if isinstance(seen, str):
                    raise OSError(errno.EIO, f"{os.fsdecode(path)}: {seen}")
                yield path, seen
                if seen.kind == "d":
                    below.append(path)
                    if opening and seen.mode & stat.S_IRWXU != stat.S_IRWXU:
                        session.run(one(setstat(join(top, path), Attributes(mode=stat.S_IRWXU))))
        level = below


def make(path: bytes, known: set[bytes], mode: int | None = None) -> Task[None]:
    """The directory and those above it, as far as they are missing; ``known``: those that are there.

    Raises OSError, ENOTDIR where something else has the name.
    """
    if path in known or path in (b"", b"/"):
        return
    [answer] = yield [mkdir(path, 0o777 if mode is None else mode)]
    if isinstance(answer, FileNotFoundError):
        yield from make(path.rpartition(b"/")[0], known, mode)
        [answer] = yield [mkdir(path, 0o777 if mode is None else mode)]
    if isinstance(answer, OSError):
        entry = yield from look_at(path)
        if entry is None:
            raise answer
        if entry.kind != "d":
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    known.add(path)


def discard(session: Session, path: bytes) -> list[str]:
    """Removes whatever is there; why something could not be."""
    entry = session.run(look_at(path))
    if entry is None:
        return []
    if entry.kind != "d":
        return refusals(session, [path], remove)
    try:
        below = [(join(path, name), found) for name, found in walk(session, path, opening=True)]
    except OSError as error:
        return [reason(error)]
    problems = refusals(session, [name for name, found in below if found.kind != "d"], remove)
    directories = [name for name, found in below if found.kind == "d"] + [path]
    by_depth: dict[int, list[bytes]] = {}
    for name in directories:
        by_depth.setdefault(name.count(b"/"), []).append(name)
    for depth in sorted(by_depth, reverse=True):
        problems += refusals(session, by_depth[depth], rmdir)
    return problems


def refusals(session: Session, paths: Iterable[bytes], request: Callable[[bytes], tuple[int, bytes]]) -> list[str]:
    def attempt(path: bytes) -> Task[str]:
        [answer] = yield [request(path)]
        if isinstance(answer, OSError) and not isinstance(answer, FileNotFoundError):
            return f"{os.fsdecode(path)}: {reason(answer)}"
        return ""

    return [problem for problem in session.together(map(attempt, paths)) if problem]
