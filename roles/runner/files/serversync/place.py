# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one server says about a path of its own before it is opened as a replica.

Paths are walked from / on held directory descriptors, and none of their components may be a symbolic link. Both the
runner (for its own side) and ``serve`` (for the partner's) use it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from serversync.failure import Failure

# The name of a run begins with the time at which it began, UTC.
RUN_TIME = "%Y%m%dT%H%M%SZ"
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
# More than anybody needs: what is free where a file system does not count it.
PLENTY = 1 << 62


def split(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    if ".." in parts or "." in parts or "\0" in path or not path.startswith("/"):
        raise Failure("bad_path", f"{path!r} is not an absolute path without . and ..")
    return parts


WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def look(path: str) -> dict[str, Any]:
    """What is at the path, no link on the way or at its end followed.

    kind: directory, file, missing, link, other, or blocked (it cannot be reached; ``reason`` says why); readable and
    writable by this process, for a missing path whether it could be made; free bytes and inodes there, and its size.
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
                return facts | space(directory) | {"kind": "blocked", "reason": f"{above}: {reason}"}
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
    """What is free on the file system, for an ordinary user, and its size."""
    free = os.statvfs(descriptor)
    return {
        "free_bytes": free.f_bavail * free.f_frsize,
        # Some file systems make inodes as they are needed, and say that there are none.
        "free_inodes": free.f_favail if free.f_files else PLENTY,
        "total_bytes": free.f_blocks * free.f_frsize,
    }


def open_directory(parts: list[str], *, make: bool) -> int:
    """A held descriptor of the directory, no link on the way followed; with ``make`` what is missing is made."""
    with ExitStack() as held:
        directory = hold(held, os.open("/", WALK))
        for name in parts:
            directory = enter(held, directory, name, make=make)
        return os.dup(directory)


def enter(held: ExitStack, directory: int, name: str, *, make: bool) -> int:
    try:
        return hold(held, os.open(name, WALK, dir_fd=directory))
    except FileNotFoundError:
        if not make:
            raise
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=directory)
        return hold(held, os.open(name, WALK, dir_fd=directory))


def through(descriptor: int) -> Path:
    """A path to what the descriptor holds, wherever that has been moved."""
    return Path(f"/proc/self/fd/{descriptor}")


def started(run: str) -> float:
    """Seconds since the epoch at which a run of this name began; of any other name: never."""
    try:
        return datetime.strptime(run.partition("-")[0], RUN_TIME).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return float("inf")


def run_of(name: str) -> str:
    """The run that the name is of: an attempt's (RUN.2), or that of what an attempt displaced once more (RUN.2~1)."""
    return name.partition("~")[0].partition(".")[0]


def turn(name: str) -> tuple[str, int, int, str]:
    """In which order the names of one run came to be: RUN, RUN~1, RUN.2, RUN.10."""
    attempt, _tilde, again = name.partition("~")
    run, _point, number = attempt.partition(".")
    return run, int(number) if number.isdecimal() else 0, int(again) if again.isdecimal() else 0, name


def unprepared(path: str, error: OSError) -> Failure:
    return Failure("not_writable", f"{path} cannot be made ready ({error.strerror}); check it and the account's rights")
