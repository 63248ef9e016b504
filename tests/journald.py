# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A journal of its own for a test: the socket that takes entries, and an output that is the journal's."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path


def decode(datagram: bytes) -> dict[str, str]:
    """The fields of an entry, as the native protocol has them; ValueError where it is none."""
    found, rest = {}, datagram
    while rest:
        line, newline, rest = rest.partition(b"\n")
        name, is_, value = line.partition(b"=")
        if not is_:
            (size,) = struct.unpack("<Q", rest[:8])
            value, newline, rest = rest[8 : 8 + size], rest[8 + size : 9 + size], rest[9 + size :]
        if newline != b"\n" or name.decode() in found:
            raise ValueError(datagram)
        found[name.decode()] = value.decode()
    return found


class Journal:
    """Where ``socket`` is, and ``output``, whose place in the environment says that it is the journal's."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "journal"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.setblocking(False)
        self.output, self.other_end = socket.socketpair()
        self.other_end.setblocking(False)

    def close(self) -> None:
        for one in (self.socket, self.output, self.other_end):
            one.close()

    @property
    def environment(self) -> dict[str, str]:
        there = os.fstat(self.output.fileno())
        return {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"}

    def entries(self) -> list[dict[str, str]]:
        """What has come since this was asked last."""
        found = []
        while True:
            try:
                found.append(decode(self.socket.recv(1 << 20)))
            except BlockingIOError:
                return found

    def lines(self) -> list[str]:
        """What was written to the output since this was asked last."""
        try:
            return self.other_end.recv(1 << 20).decode().splitlines()
        except BlockingIOError:
            return []
