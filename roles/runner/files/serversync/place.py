# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one server says about, and does to, a path of its own before files move: looked at, made ready, pruned.

Paths are walked from a root on held directory descriptors and no component may be a symbolic link, so nothing that is
swapped while a run is on leads outside. Both the runner (for its own side) and ``serve`` (for the partner's) use it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
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


def look(root: str, path: str) -> dict[str, Any]:
    """What is at ``root + path``, links not followed.

    kind: directory, file, missing, link, other, or blocked (it cannot be reached; ``reason`` says why); readable and
    writable by this process, for a missing path whether it could be made; free bytes and inodes there.
    """
    parts = split(path)
    facts: dict[str, Any] = {"kind": "missing", "readable": False, "writable": False, "reason": ""}
    with ExitStack() as held:
        try:
            directory = hold(held, os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            return facts | {"kind": "blocked", "reason": f"{root}: {error.strerror}"}
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


def prepare(root: str, path: str, kind: str, element: str, run: str) -> str:
    """Makes the target ready for a run and returns its versions directory as rsync's --backup-dir wants it.

    The element's directory (for a file the one above) is made where it is missing. What earlier runs of this element
    put aside more than KEEP_VERSIONS ago is removed.
    """
    parts = split(path)
    for word in (element, run):
        if not WORD.fullmatch(word):
            raise Failure("bad_request", f"{word!r} is not a name for a directory")
    with ExitStack() as held:
        directory = hold(held, os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        for name in parts if kind == "directory" else parts[:-1]:
            directory = enter(held, directory, name, 0o755)
        for name in (RESERVED, element, "versions"):
            directory = enter(held, directory, name, 0o700)
        prune(directory, run)
    return f"{RESERVED}/{element}/versions/{run}"


def enter(held: ExitStack, directory: int, name: str, mode: int) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=directory)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return hold(held, os.open(name, flags, dir_fd=directory))


def prune(versions: int, run: str) -> None:
    """Removes the runs that began KEEP_VERSIONS before this one; a run's name begins with its time."""
    now = started(run)
    for name in os.listdir(versions):
        if WORD.fullmatch(name) and now - started(name) > KEEP_VERSIONS:
            # rmtree holds descriptors itself and does not follow links.
            shutil.rmtree(f"/proc/self/fd/{versions}/{name}")


def started(run: str) -> float:
    """Seconds since the epoch at which a run of this name began; of any other name: never."""
    try:
        return datetime.strptime(run.partition("-")[0], RUN_TIME).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return float("inf")
