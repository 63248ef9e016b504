# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one server says about, and does to, a path of its own before files move: looked at, made ready, pruned.

Paths are walked from / on held directory descriptors, and none of their components may be a symbolic link. Both the
runner (for its own side) and ``serve`` (for the partner's) use it. rsync opens the path again by its name: who may
rename a directory above an element can still lead it elsewhere, within what the unit may write.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from serversync.failure import Failure
from serversync.filters import RESERVED

# How long overwritten files stay before a later run of the same element removes them, in seconds.
KEEP_VERSIONS = 7 * 86400
# The name of a run begins with the time at which it began, UTC.
RUN_TIME = "%Y%m%dT%H%M%SZ"
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def split(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    if ".." in parts or "." in parts or "\0" in path or not path.startswith("/"):
        raise Failure("bad_path", f"{path!r} is not an absolute path without . and ..")
    return parts


WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def look(path: str) -> dict[str, Any]:
    """What is at the path, no link on the way or at its end followed.

    kind: directory, file, missing, link, other, or blocked (it cannot be reached; ``reason`` says why); readable and
    writable by this process, for a missing path whether it could be made; free bytes and inodes there.
    """
    parts = split(path)
    facts: dict[str, Any] = {"kind": "missing", "readable": False, "writable": False, "reason": ""}
    with ExitStack() as held:
        directory = hold(held, os.open("/", WALK))
        name = "."
        for index, name in enumerate(parts or ["."]):
            try:
                info = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if index < len(parts) - 1:
                    directory = hold(held, os.open(name, WALK, dir_fd=directory))
            except FileNotFoundError:
                return facts | space(directory) | {"writable": allowed(".", os.W_OK | os.X_OK, directory)}
            except OSError as error:
                above = "/".join(["", *parts[: index + 1]])
                reason = "is a symbolic link or a file" if error.errno == errno.ENOTDIR else str(error.strerror)
                return facts | {"kind": "blocked", "reason": f"{above}: {reason}"}
        kind = "other"
        for test, word in ((stat.S_ISDIR, "directory"), (stat.S_ISREG, "file"), (stat.S_ISLNK, "link")):
            if test(info.st_mode):
                kind = word
        facts |= space(directory) | {"kind": kind}
        if kind == "directory":
            # A mount point has the room of what is mounted there.
            with suppress(PermissionError):
                facts |= space(hold(held, os.open(name, WALK, dir_fd=directory)))
        if kind in ("directory", "file"):
            enter = os.X_OK if kind == "directory" else 0
            facts |= {
                "readable": allowed(name, os.R_OK | enter, directory),
                "writable": allowed(name, os.W_OK | enter, directory),
            }
        return facts


def hold(held: ExitStack, descriptor: int) -> int:
    held.callback(os.close, descriptor)
    return descriptor


def allowed(name: str, mode: int, directory: int) -> bool:
    """Asks with the effective ids: the plain question ignores the capabilities that the unit gives."""
    return os.access(name, mode, dir_fd=directory, effective_ids=True)


def space(descriptor: int) -> dict[str, Any]:
    free = os.statvfs(descriptor)
    return {"free_bytes": free.f_bavail * free.f_frsize, "free_inodes": free.f_favail}


def prepare(path: str, kind: str, element: str, run: str) -> dict[str, str]:
    """Makes the target ready for an attempt; where rsync puts what it displaces and what has not wholly arrived.

    ``versions`` and ``temporary`` are relative to the element's directory (for a file the one above), which is made
    where it is missing; ``temporary`` is left out where a file system is mounted below. What earlier runs of this
    element put aside more than KEEP_VERSIONS ago is removed, and what a killed one left half arrived.
    """
    parts = split(path)
    for word in (element, run):
        if not WORD.fullmatch(word):
            raise Failure("bad_request", f"{word!r} is not a name for a directory")
    with ExitStack() as held:
        directory = hold(held, os.open("/", WALK))
        for name in parts if kind == "directory" else parts[:-1]:
            directory = enter(held, directory, name, 0o755)
        for name in (RESERVED, element):
            directory = enter(held, directory, name, 0o700)
        prune(enter(held, directory, "versions", 0o700), min(started(run), time.time()))
        empty(enter(held, directory, "temporary", 0o700))
    own = f"{RESERVED}/{element}"
    scratch = {"versions": f"{own}/versions/{run}", "temporary": f"{own}/temporary"}
    if mounted_below(path):
        # What arrives for another file system must not first need room on this one.
        del scratch["temporary"]
    return scratch


def mounted_below(path: str) -> bool:
    """Whether a file system is mounted somewhere below the path (proc(5), mountinfo)."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), line.split()[4])
        if point.startswith(f"{path.rstrip('/')}/"):
            return True
    return False


def enter(held: ExitStack, directory: int, name: str, mode: int) -> int:
    try:
        inner = os.open(name, WALK, dir_fd=directory)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=directory)
        inner = os.open(name, WALK, dir_fd=directory)
    return hold(held, inner)


def prune(versions: int, now: float) -> None:
    """Removes the runs that began KEEP_VERSIONS before ``now``; a run's name begins with its time.

    The caller takes the earlier of both servers' clocks, so that one that is fast removes nothing too early.
    """
    for path in through(versions).iterdir():
        if WORD.fullmatch(path.name) and now - started(path.name) > KEEP_VERSIONS:
            with suppress(FileNotFoundError):
                shutil.rmtree(path)


def empty(directory: int) -> None:
    for path in through(directory).iterdir():
        if path.is_dir() and not path.is_symlink():
            with suppress(FileNotFoundError):
                shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def through(descriptor: int) -> Path:
    """A path to what the descriptor holds, wherever that has been moved; rmtree follows no link below it."""
    return Path(f"/proc/self/fd/{descriptor}")


def started(run: str) -> float:
    """Seconds since the epoch at which a run of this name began; of any other name: never."""
    try:
        return datetime.strptime(run.partition("-")[0], RUN_TIME).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return float("inf")


def unprepared(path: str, error: OSError) -> Failure:
    return Failure("not_writable", f"{path} cannot be made ready ({error.strerror}); check it and the account's rights")
