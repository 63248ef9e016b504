# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the runner says: a line for people, and where systemd's journal takes it, an entry with fields for machines.

A process whose output is the journal's hands its entries to the journal's own socket, where they may have fields.
Everywhere else, and where that fails, there is the line.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from serversync.display import safe

SOCKET = Path("/run/systemd/journal/socket")
# As syslog(3) counts them.
ERR, WARNING, NOTICE, INFO = 3, 4, 5, 6
# Of the system's services, as what they write to their output is filed.
FACILITY = 3
# Bytes of a value; what is longer is cut, for an entry must fit into one datagram. The record has it whole.
LONGEST = 32 << 10
CUT = " [cut]"
# Seconds that a journal which is behind is waited for, with one entry and at the end.
PATIENCE = 1.0

# What may have happened, and the id by which the journal finds it (MESSAGE_ID=, see systemd.journal-fields(7)).
EVENTS = {
    "run_started": "35b3fbbdb43a45c8a70c96aa8cedf345",
    "attempt_started": "275714a8fb294f91aa39a0e22d1d774d",
    "element_ended": "fdfd6be969ed47ddb1f665bedca4b2c3",
    "conflict": "186ea6ecfb8b4f509058be0b3a4fd395",
    "guard": "2a85b0cdfe764afbbc9715daea8ef97f",
    "attempt_ended": "50d7c29aa054498b9a7ecc1f387d0628",
    "run_ended": "8d2b08070c744c999f4a5f0613316dfa",
    "waiting": "596c29239173429b90af543e73843c5e",
    "units": "545b6d99e40843faa74774abe87a4a77",
    "notification": "db634cf556e14245bb6d05abe956d140",
    "metrics": "c1911d81a23b4ad295a11827524908c3",
    "late": "3a78b6671b114e9e884a469100471c99",
    "died": "d61fbf5089024cef8f769b3e4b2247e2",
    "recovered": "3128fa3494ff4081aea1d0c5e41d2e3f",
    "failure": "a9132ff1ccd744c1be943a48b3b0d3f0",
}
# How grave it is that a run, an attempt or an element came to a state; of all others it is INFO.
LEVELS = {"failed": ERR, "different": WARNING, "waiting": WARNING, "skipped": NOTICE}


# What the result of a run says, too, to whoever waits for it.
OF_RESULT = ("run_started", "conflict", "guard", "run_ended")


class Entry(str):
    """A line, and what of it is told to machines: the event, the level, and fields by their names without prefix."""

    __slots__ = ("about", "event", "level")
    event: str
    level: int
    about: dict[str, str]

    def __new__(cls, line: object, event: str, level: int = INFO, **about: str | None) -> Entry:
        """about: job, run, element, state, code; what is None or empty is left out."""
        entry = super().__new__(cls, safe(line))
        entry.event, entry.level = event, level
        entry.about = {name: value for name, value in about.items() if value}
        return entry


def is_of_result(line: str) -> bool:
    return isinstance(line, Entry) and line.event in OF_RESULT


def fields(line: str) -> dict[str, str]:
    """The fields of an entry; a plain line has those alone that every message has."""
    found = {
        "MESSAGE": safe(line),
        "PRIORITY": str(line.level if isinstance(line, Entry) else INFO),
        "SYSLOG_FACILITY": str(FACILITY),
        "SYSLOG_IDENTIFIER": "serversync",
    }
    if isinstance(line, Entry):
        found |= {"MESSAGE_ID": EVENTS[line.event], "SERVERSYNC_EVENT": line.event}
        found |= {f"SERVERSYNC_{name.upper()}": safe(value) for name, value in line.about.items()}
    return found


def encode(entry: Mapping[str, str]) -> bytes:
    """An entry as the journal's native protocol has it."""
    return b"".join(field(name.encode(), value) for name, value in entry.items())


def field(name: bytes, text: str) -> bytes:
    value = text.encode("utf-8", "backslashreplace")
    if len(value) > LONGEST:
        value = value[: LONGEST - len(CUT)].decode("utf-8", "ignore").encode() + CUT.encode()
    if b"\n" in value:
        # A value of several lines comes with its length, so that none of them can be taken for a field.
        return b"%s\n%s%s\n" % (name, struct.pack("<Q", len(value)), value)
    return b"%s=%s\n" % (name, value)


def is_journal(descriptor: int) -> bool:
    """Whether the output is the journal's: systemd says by device and inode which one is (systemd.exec(5))."""
    stream = os.environ.get("JOURNAL_STREAM")
    if not stream:
        return False
    try:
        there = os.fstat(descriptor)
    except OSError:
        return False
    return stream == f"{there.st_dev}:{there.st_ino}"


@lru_cache(maxsize=1)
def sender() -> socket.socket:
    """One for all entries of this process; a send waits no longer than a while."""
    atexit.register(settle)
    one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    seconds, fraction = divmod(PATIENCE, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(fraction * 1e6)))
    return one


def tell(line: str, descriptor: int) -> bool:
    """Hands a line to the journal, where the output that it would be written to is the journal's.

    False where it has to be written instead: the journal takes no entries now, or none as large.
    """
    if not is_journal(descriptor):
        return False
    try:
        sender().sendto(encode(fields(line)), str(SOCKET))
    except OSError:
        return False
    return True


def settle() -> None:
    """Waits until the journal has read what it was told, but not for long.

    By its process it finds out of which unit an entry is, so that one which came just before the end of the process
    would be missing in what is shown of the unit.
    """
    if not sender.cache_info().currsize:
        return
    until = time.monotonic() + PATIENCE
    with suppress(OSError):
        while unread(sender()) and time.monotonic() < until:
            time.sleep(0.001)


def unread(one: socket.socket) -> int:
    """Bytes of memory that the datagrams use which nobody has read yet."""
    return int(struct.unpack("@i", fcntl.ioctl(one, termios.TIOCOUTQ, b"\0" * 4))[0])
