# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs displaced, ``.serversync/ELEMENT/versions/RUN/PATH``: listed, brought back, pruned. Runs where the tree is.

What a run displaced of a path that it had displaced before is in ``RUN~1``, and so on. A name below RUN whose content
never was in the tree can only be that of a file that a killed run was about to put there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from serversync import place, renames
from serversync.commit import Commit, Op, Result, suppress_errno
from serversync.entry import Entry
from serversync.failure import Failure
from serversync.held import NAME, good, make, names_in, own, parts, reach
from serversync.marker import read, write
from serversync.renames import ALL, handle, lstat

SIZES = b"sizes.json"


class Pruned(NamedTuple):
    """runs: the removed ones; size: bytes that the others take on the disk, 0 where there is no limit;
    problems: what could not be removed."""

    runs: list[str]
    size: int
    problems: list[str]


def versions(root: int, element: str, path: bytes | None = None) -> list[dict[str, Any]]:
    """The versions of the path and of all below it, or all there are, the oldest run first.

    ``{"run", "path", "entry", "when"}`` each: the name that ``restore`` asks for, bytes, Entry, the run's start in
    seconds since the epoch. Of directories only the empty ones: the others are where their contents are. Raises OSError
    where one is unreadable.
    """
    checked(path)
    found = []
    with opened(root, own(element) + b"/versions") as held:
        for run in runs(held) if held is not None else []:
            assert held is not None
            name, when = os.fsencode(run), began(held, run)
            for place_of, entry, names in walk(held, name + b"/" + path if path else name):
                if not names and place_of != name:
                    found.append({"run": run, "path": place_of[len(name) + 1 :], "entry": entry, "when": when})
    return found


def restore(root: int, element: str, path: bytes, run: str, run_now: str) -> list[Result]:
    """Brings what ``run`` displaced of the path, and of all below it, back to where it was. The caller holds the lock.

    What is there now goes to the versions of ``run_now``. Directories that are missing are made. Failure where there is
    no such version; what could not be brought back is in the results.
    """
    checked(path)
    home = own(element) + b"/versions"
    if run not in {version["run"] for version in versions(root, element, path)}:
        raise Failure("missing", f"{os.fsdecode(path)} has no version of the run {run}")
    commit = Commit(root, element, run_now, ALL)
    commit.prepare()
    try:
        with opened(root, home) as held:
            assert held is not None
            name = os.fsencode(run)
            results = list(bring_back(root, commit, held, name, path))
            clear(held, name, path)
            drop_size(root, element, run)
        commit.sync()
    finally:
        commit.finish()
    return results


def checked(path: bytes | None) -> None:
    if path is not None and not good(path):
        raise Failure("bad_path", f"{os.fsdecode(path)!r} is not a path below the element")


def bring_back(root: int, commit: Commit, store: int, run: bytes, path: bytes) -> Iterator[Result]:
    pieces = path.split(b"/")
    for number in range(1, len(pieces)):
        yield from make_again(root, commit, store, run, b"/".join(pieces[:number]))
    for found, entry, _names in walk(store, run + b"/" + path):
        target = found[len(run) + 1 :]
        if entry.kind == "d":
            yield from make_again(root, commit, store, run, target)
            continue
        above, name = parts(found)
        with opened(store, above) as directory:
            assert directory is not None
            op = Op("put", target, live_entry(root, target), entry)
            yield commit.bring_back(op, directory, name)


def make_again(root: int, commit: Commit, store: int, run: bytes, path: bytes) -> Iterator[Result]:
    """The directory with the owner and mode that it had; nothing where something is in its place."""
    if live_entry(root, path) is None:
        above, name = parts(run + b"/" + path)
        with opened(store, above) as directory:
            assert directory is not None
            was = Entry.of(lstat(directory, name))
        yield from commit.carry_out([Op("mkdir", path, None, was)])


def live_entry(root: int, path: bytes) -> Entry | None:
    above, name = parts(path)
    try:
        with opened(root, above) as directory:
            if directory is None:
                return None
            return Entry.of(lstat(directory, name))
    except (FileNotFoundError, NotADirectoryError):
        return None


def clear(store: int, run: bytes, path: bytes) -> None:
    """Removes the directories that held nothing but what was brought back, the run's own last."""
    below = [found for found, entry, _names in walk(store, run + b"/" + path) if entry.kind == "d"]
    pieces = (run + b"/" + path).split(b"/")
    above = [b"/".join(pieces[:number]) for number in range(1, len(pieces))]
    for directory in reversed(above + sorted(below)):
        outer, name = parts(directory)
        with opened(store, outer) as held, suppress_errno(errno.ENOTEMPTY, errno.EEXIST):
            assert held is not None
            os.rmdir(name, dir_fd=held)


def prune(
    root: int, element: str, keep_seconds: float | None, versions_max_bytes: int | None, now: float, run: str
) -> Pruned:
    """Removes the runs of more than ``keep_seconds`` before ``now``, by name and directory alike, then the oldest while
    all together take more than ``versions_max_bytes`` on the disk; never this run's, of whatever attempt. None: no such
    limit.

    ``now``: seconds since the epoch, the earlier of both servers' clocks, so that one that is fast removes nothing too
    early. The caller holds the lock. Raises OSError where the versions cannot be read.
    """
    home = own(element)
    with opened(root, home + b"/versions") as store:
        if store is None:
            return Pruned([], 0, [])
        names = runs(store)
        mine = [name for name in names if place.run_of(name) == place.run_of(run)]
        others = [name for name in names if name not in mine]
        gone = [name for name in others if keep_seconds is not None and now - displaced(store, name) > keep_seconds]
        size = 0
        if versions_max_bytes is not None:
            sizes = known_sizes(root, home, store, [name for name in others if name not in gone])
            size = sum(sizes.values()) + sum(measured(store, name) for name in mine)
            for name in [name for name in others if name not in gone]:
                if size <= versions_max_bytes:
                    break
                gone.append(name)
                size -= sizes[name]
        return Pruned(gone, size, discard(root, home, store, gone))


def discard(root: int, home: bytes, store: int, names: list[str]) -> list[str]:
    """A run's store are all there or gone: what is half removed lies elsewhere."""
    if not names:
        return []
    trash = make(root, home + b"/trash")
    try:
        # What a pruning that was killed left, or could not remove then.
        problems = renames.remove_all(trash)
        for number, name in enumerate(names):
            renames.move(store, os.fsencode(name), trash, b"%b.%d.%d" % (os.fsencode(name), os.getpid(), number))
        problems += renames.remove_all(trash)
    finally:
        os.close(trash)
    return list(dict.fromkeys(str(problem) for problem in problems))


def known_sizes(root: int, home: bytes, store: int, names: list[str]) -> dict[str, int]:
    """Bytes per run. Another run's store change no more, so that they are measured once."""
    with opened(root, home) as held:
        assert held is not None
        before = read(held, SIZES) or {}
        known = {name: size for name, size in before.items() if isinstance(size, int)}
        sizes = {name: known[name] if name in known else measured(store, name) for name in names}
        if sizes != before:
            write(held, SIZES, sizes)
    return sizes


def drop_size(root: int, element: str, run: str) -> None:
    with opened(root, own(element)) as held:
        assert held is not None
        known = read(held, SIZES) or {}
        if known.pop(run, None) is not None:
            write(held, SIZES, known)


def measured(store: int, run: str) -> int:
    """Bytes on the disk; of a file with several names this one's share."""
    total = 0
    waiting = [os.fsencode(run)]
    while waiting:
        path = waiting.pop()
        directory = reach(store, path)
        try:
            with handle(directory, b".", os.O_RDONLY | os.O_DIRECTORY) as held, os.scandir(held) as entries:
                for entry in entries:
                    info = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(info.st_mode):
                        waiting.append(path + b"/" + os.fsencode(entry.name))
                        total += info.st_blocks * 512
                    else:
                        total += info.st_blocks * 512 // info.st_nlink
        finally:
            os.close(directory)
    return total


def began(store: int, run: str) -> float:
    """By its name, which a run has from its start; of any other name the time of the directory."""
    when = place.started(run.partition("~")[0])
    return lstat(store, os.fsencode(run)).st_mtime if when == float("inf") else when


def displaced(store: int, run: str) -> float:
    """When the run displaced something at the latest: the clock that gave it its name may have been behind."""
    return max(began(store, run), lstat(store, os.fsencode(run)).st_mtime)


def runs(store: int) -> list[str]:
    """Oldest first."""
    names = [name for name in map(os.fsdecode, names_in(store)) if NAME.fullmatch(name)]
    return sorted(names, key=lambda name: (began(store, name), place.turn(name)))


@contextmanager
def opened(root: int, path: bytes) -> Iterator[int | None]:
    """The directory, or None where there is none."""
    held = None
    with suppress(FileNotFoundError):
        held = reach(root, path)
    try:
        yield held
    finally:
        if held is not None:
            os.close(held)


def walk(store: int, start: bytes) -> Iterator[tuple[bytes, Entry, list[bytes]]]:
    """The path and all below it, parents first: path, entry, and of a directory the names in it.

    What has been yielded may be moved away before the next is asked for.
    """
    waiting = [start]
    while waiting:
        path = waiting.pop()
        above, name = parts(path)
        with opened(store, above) as directory:
            if directory is None:
                continue
            try:
                info = lstat(directory, name)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(info.st_mode):
                link = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(info.st_mode) else b""
                yield path, Entry.of(info, link), []
                continue
            names = sorted(names_in(directory, name))
        yield path, Entry.of(info), names
        waiting += [path + b"/" + name for name in reversed(names)]
