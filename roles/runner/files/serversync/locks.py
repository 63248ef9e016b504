# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The locks of elements' roots: many runs may read one, only one may write it. The kernel releases them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serversync.failure import Failure

# Of a root that is only ever read the owners' lines are dropped beyond this.
RECORD = 4096
# Characters of an owner, which a partner may name.
LONGEST_OWNER = 300


@contextmanager
def lock(root: int, exclusive: bool, by: str, directory: Path) -> Iterator[int]:
    """Holds the root's lock, by device and inode: shared for a source, exclusive for a target.

    Yields the descriptor, for children that must hold it on after this process (``pass_fds``). by: whose it is, which
    those are told who come meanwhile. Failure (``running``, transient) naming the owners where it is held.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = os.fstat(root)
    path = directory / f"{info.st_dev}-{info.st_ino}.lock"
    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(held, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owners = alive(os.pread(held, 2 * RECORD, 0))
            message = f"in use by {', '.join(owners) or 'another run'}"
            raise Failure("running", message, transient=True) from error
        if exclusive or os.fstat(held).st_size > RECORD:
            os.ftruncate(held, 0)
        os.write(held, f"{os.getpid()} {' '.join(by.split())[:LONGEST_OWNER]}\n".encode("utf-8", "surrogateescape"))
        yield held
    finally:
        os.close(held)


def owner(job: str, run: str) -> str:
    """How a run of a job of this server calls itself."""
    return f"the job {job} of {os.uname().nodename}, run {run}"


@contextmanager
def told_of(where: str, field: str) -> Iterator[None]:
    """Failure ``running`` tells which root is in use, and the option that names it."""
    try:
        yield
    except Failure as failure:
        if failure.code != "running":
            raise
        message = f"{where} is {failure.message}; it is left alone until that has ended"
        raise Failure("running", message, field=field, transient=True) from failure


def alive(record: bytes) -> list[str]:
    """The owners whose processes have not ended; of those that have, lines may remain."""
    owners = []
    for line in record.decode("utf-8", "replace").splitlines():
        number, _blank, owner = line.partition(" ")
        if number.isdecimal() and exists(int(number)):
            owners.append(owner)
    return list(dict.fromkeys(owners))


def exists(process: int) -> bool:
    """Also of a process that /proc does not show, because it is in another sandbox."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of somebody else
        pass
    return True
