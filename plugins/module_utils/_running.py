# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""The runs that are on while their jobs change: they are waited for, and then stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Sequence

from ._schedule import seconds_of
from ._store import Layout, StoreError, command_error
from ._units import service_name

if TYPE_CHECKING:
    from ._module import JobModule

LOCKS = "/proc/locks"
#: Seconds between two looks, and for how long one that was told to stop may go on, as with systemd.
_LOOK = 0.2
_GRACE = 90


def read_locks() -> list[list[str]]:
    """The words of the kernel's list of file locks."""
    try:
        with open(LOCKS, encoding="ascii") as stream:
            return [line.split() for line in stream]
    except FileNotFoundError:
        # no Linux, where no runner is
        return []


def holders(path: str, locks: Sequence[Sequence[str]]) -> list[int]:
    """The processes that hold a run's lock. To try the lock would keep a run that begins just then from having it."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        # it never ran
        return []
    exact = "%02x:%02x:%d" % (os.major(info.st_dev), os.minor(info.st_dev), info.st_ino)
    found = []
    for words in locks:
        # those that wait have an arrow in the second place
        if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(info.st_ino):
            process = int(words[4])
            # some file systems number their devices otherwise there
            if words[5] == exact or _has_open(process, info):
                found.append(process)
    return found


def _has_open(process: int, info: os.stat_result) -> bool:
    directory = "/proc/%d/fd" % process
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(os.path.join(directory, name)), info):
                    return True
    return False


def _wait(places: Sequence[Layout], seconds: float) -> list[Layout]:
    """Those that are still on when the time is over."""
    end = time.monotonic() + seconds
    while True:
        locks = read_locks()
        places = [place for place in places if holders(place.lock, locks)]
        if not places or time.monotonic() >= end:
            return list(places)
        time.sleep(_LOOK)


def end_runs(module: JobModule, places: Sequence[Layout], timeout: str) -> list[list[str]]:
    """Waits for the runs of these jobs, all of them together; then stops those that are on, and says so.

    Returns the commands that did it.
    """
    left = _wait(places, seconds_of(timeout))
    commands = []
    for place in left:
        if place.scope == "system":
            argv = ["systemctl", "stop", service_name(place.name)]
            commands.append(argv)
            code, out, err = module.run(argv)
            if code:
                raise command_error(argv, code, out, err)
            continue
        for process in holders(place.lock, read_locks()):
            # one that has ended by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
    for place in _wait(left, _GRACE):
        text = "does not end though it was told to; end it and apply the job again, see: serversync status %s"
        raise StoreError("still_running", place.lock, "the run of %s %s" % (place.name, text % place.name))
    for place in left:
        module.warn("%s: the run that was on had not ended after %s and was stopped" % (place.name, timeout))
    return commands
