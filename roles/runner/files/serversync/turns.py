# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""So many runs at once on this server and no more: each takes one of that many turns.

A turn is a locked file, so that one whose run was killed is free again.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from serversync.failure import Failure
from serversync.layout import Layout

# As the role's runner_max_runs has it where nothing else is said.
MOST = 4


def most(layout: Layout) -> int:
    """How many runs there may be at once."""
    try:
        return int(json.loads(layout.settings.read_text(encoding="utf-8")).get("max_runs", MOST))
    except (OSError, ValueError):  # what needs the settings says that they cannot be read
        return MOST


@contextmanager
def turn(layout: Layout, wait: Callable[[float], None], log: Callable[[str], None]) -> Iterator[None]:
    """Waits until one is free, and holds it."""
    number, directory = most(layout), layout.runtime / "turns"
    with ExitStack() as held:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            turns = [held.enter_context((directory / str(one)).open("ab")) for one in range(number)]
        except OSError as error:
            message = (
                f"{directory} cannot be written ({error.strerror}); mend its file system, or free some space there"
            )
            raise Failure("records", message) from error
        told = False
        while not any(map(taken, turns)):
            if not told:
                log(f"waiting: as many runs are on as may be at once (runner_max_runs: {number})")
                told = True
            extend()
            wait(1.0)
        yield


def taken(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def extend() -> None:
    """Has systemd count the time of the job's unit from now on (sd_notify(3)): waiting is no part of an attempt."""
    manager, longest = os.environ.get("NOTIFY_SOCKET"), os.environ.get("SERVERSYNC_LONGEST")
    if manager and longest:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.sendto(f"EXTEND_TIMEOUT_USEC={int(longest) * 1_000_000}".encode(), manager.replace("@", "\0", 1))
