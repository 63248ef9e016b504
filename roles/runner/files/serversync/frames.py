# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The conversation of two runners: one JSON object a line, a request and its answer; what is read is bounded."""

from __future__ import annotations

import json
import os
import select
from typing import Any

from serversync.failure import Failure

LIMIT = 4 * 1024 * 1024
# The connection itself is watched by ssh (ServerAliveInterval); this bounds a partner that lives but does not answer.
PATIENCE = 120.0


class Frames:
    """Frames over two descriptors."""

    def __init__(self, source: int, target: int) -> None:
        self.source = source
        self.target = target
        self.buffer = bytearray()

    def send(self, frame: dict[str, Any]) -> None:
        data = json.dumps(frame).encode("ascii") + b"\n"
        while data:
            data = data[os.write(self.target, data) :]

    def receive(self, patience: float | None = PATIENCE) -> dict[str, Any]:
        """The next frame; EOFError at the end, Failure on silence (unless patience is None) and on what is no frame."""
        while b"\n" not in self.buffer:
            if len(self.buffer) > LIMIT:
                raise Failure("protocol", "the other side sent a frame that is too long")
            ready, _writable, _failed = select.select([self.source], [], [], patience)
            if not ready:
                raise Failure("silent", f"the other side did not answer for {patience:.0f} s", transient=True)
            data = os.read(self.source, 65536)
            if not data:
                raise EOFError
            self.buffer += data
        line, _newline, rest = bytes(self.buffer).partition(b"\n")
        self.buffer = bytearray(rest)
        try:
            frame = json.loads(line)
        except ValueError:
            frame = None
        if not isinstance(frame, dict):
            raise Failure("protocol", f"the other side answered {line[:80]!r}, which is no frame of serversync")
        return frame
