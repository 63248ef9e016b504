# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills a process, such as a module, before a given one of its steps: what changes something on a disk, or a command.

The interpreter itself tells of the steps, whoever takes them; of fsync it does not.
"""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import sys
from collections.abc import Callable
from typing import Any

_CHANGES = ("remove", "rename", "rmdir", "mkdir", "chmod", "chown", "link", "symlink", "truncate", "utime", "setxattr")
STEPS = {"os." + name for name in _CHANGES} | {"subprocess.Popen"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def what_is(path: str) -> tuple[int, bytes]:
    """Its mode, and its content or where it leads."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return mode, os.fsencode(os.readlink(path))
    if not stat.S_ISREG(mode):
        return mode, b""
    with open(path, "rb") as stream:
        return mode, stream.read()


def what_is_there(*roots: str) -> str:
    """A digest of all below these directories and files."""
    digest = hashlib.sha256()

    def add(path: str) -> None:
        digest.update(repr((path, what_is(path))).encode())
        if os.path.isdir(path) and not os.path.islink(path):
            for name in sorted(os.listdir(path)):
                add(os.path.join(path, name))

    for root in roots:
        add(root)
    return digest.hexdigest()


def _concerns(event: str, arguments: Any, where: str) -> bool:
    if event == "open":
        path, _mode, flags = arguments
        if isinstance(path, int) or not flags & _WRITING:
            return False
    elif event not in STEPS:
        return False
    path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else ""
    # relative ones are those of directories that are removed; what Python keeps compiled is elsewhere
    return event == "subprocess.Popen" or not os.path.isabs(path) or path.startswith(where)


def _each(where: str, step: Callable[[], None]) -> None:
    """From now on this process calls `step` before each of its steps below a directory."""
    inside: list[bool] = []

    def before() -> None:
        # what a step does is none
        if not inside:
            inside.append(True)
            try:
                step()
            finally:
                inside.pop()

    def hook(event: str, arguments: Any) -> None:
        if _concerns(event, arguments, where):
            before()

    fsync = os.fsync

    def counted(handle: int) -> None:
        before()
        fsync(handle)

    os.fsync = counted
    sys.addaudithook(hook)


def kill_before(number: int, where: str) -> None:
    """From now on this process counts its steps from 0, and is killed before the one of this number."""
    left = [number]

    def step() -> None:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    _each(where, step)


def record(log: str, where: str, *roots: str) -> None:
    """From now on this process writes the numbers of its steps into a file, of those before which the roots changed.

    To be killed before one of the others leaves what is left already.
    """
    number, last = [0], [""]

    def step() -> None:
        now: str | None = what_is_there(*roots)
        if now != last[0]:
            last[0] = str(now)
            with open(log, "a", encoding="ascii") as stream:
                stream.write("%d\n" % number[0])
        number[0] += 1

    _each(where, step)
