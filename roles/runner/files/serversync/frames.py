# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The conversation of two runners: one JSON object a line, some followed by bytes; what is read is bounded.

A frame with ``bytes: N`` is followed by N bytes as they are. A long answer comes in several frames, all but the last
with ``more``. Whoever works on a long answer, and whoever has nothing to ask meanwhile, says ``alive`` now and then.
"""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from serversync.failure import Failure

# What a runner asks the partner's key for, to converse.
CONTROL = "serversync"
# The verb of requests that are answered in their own order, beside all others.
BESIDE = "take"
LIMIT = 4 * 1024 * 1024
PAYLOAD_LIMIT = 16 * 1024 * 1024
# What no question and no answer may have for a name of its own.
OURS = frozenset({"alive", "bytes"})
# What a sender puts into one frame of a long answer.
CHUNK = 1024 * 1024
# The connection itself is watched by ssh (ServerAliveInterval); this bounds a partner that lives but does not answer.
PATIENCE = 120.0
# Bytes that are taken in, unread, by whoever waits for the other side to read.
UNREAD = 64 * 1024 * 1024
# What one answer takes at most, whatever says meanwhile that it is being worked on: check sums of the largest files.
STALL = 86400.0
# A side that is busy or idle says so this often, in seconds.
HEARTBEAT = 10.0


class Frames:
    """Frames over two descriptors; sending is safe from several threads.

    Where the target is one that does not block, what comes is taken in while the other side does not read.
    """

    def __init__(self, source: int, target: int) -> None:
        self.source = source
        self.target = target
        self.buffer = bytearray()
        self.sending = threading.Lock()
        self.reading = threading.Lock()

    def send(self, frame: dict[str, Any], payload: bytes = b"") -> None:
        if not OURS.isdisjoint(frame):
            # The other side would wait for bytes that never come.
            raise ValueError(f"{frame!r:.200} says what only the conversation itself may say")
        self.write(frame, payload)

    def write(self, frame: dict[str, Any], payload: bytes = b"") -> None:
        if payload:
            frame = {**frame, "bytes": len(payload)}
        data = memoryview(json.dumps(frame).encode("ascii") + b"\n" + payload)
        with self.sending:
            while data:
                try:
                    data = data[os.write(self.target, data) :]
                except BlockingIOError:
                    self.give_way()

    def give_way(self) -> None:
        """Waits until the other side takes something, or has sent something that is taken in."""
        if not self.reading.acquire(blocking=False):
            # Who reads takes in what comes; but may have read what it waits for.
            select.select([], [self.target], [], 0.1)
            return
        try:
            sources = [self.source] if len(self.buffer) < UNREAD else []
            ready, _writable, _failed = select.select(sources, [self.target], [])
            if ready:
                data = os.read(self.source, 1 << 18)
                self.buffer += data
                if not data:
                    # It is for the writing to fail.
                    select.select([], [self.target], [])
        finally:
            self.reading.release()

    def receive(self, patience: float | None = PATIENCE, stall: float | None = None) -> tuple[dict[str, Any], bytes]:
        """The next frame that says more than ``alive``, and its bytes.

        EOFError at the end; Failure on silence (unless patience, in seconds, is None) and on what is no frame.
        """
        until = None if stall is None else monotonic() + stall
        while True:
            with self.reading:
                frame, payload = self.read(patience, until)
            if "alive" not in frame:
                return frame, payload

    def read(self, patience: float | None, until: float | None) -> tuple[dict[str, Any], bytes]:
        scanned = 0
        while (end := self.buffer.find(b"\n", scanned)) < 0:
            if len(self.buffer) > LIMIT:
                raise Failure("protocol", "the other side sent a frame that is too long")
            scanned = len(self.buffer)
            self.fill(patience, until)
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        try:
            frame = json.loads(line)
        except (ValueError, RecursionError):
            frame = None
        if not isinstance(frame, dict):
            raise Failure("protocol", f"the other side answered {line[:80]!r}, which is no frame of serversync")
        length = frame.pop("bytes", 0)
        if not isinstance(length, int) or not 0 <= length <= PAYLOAD_LIMIT:
            raise Failure("protocol", "the other side sent a frame that is too long")
        while len(self.buffer) < length:
            self.fill(patience, until)
        payload = bytes(self.buffer[:length])
        del self.buffer[:length]
        return frame, payload

    def fill(self, patience: float | None, until: float | None) -> None:
        """Reads on; until: when, by the monotonic clock, there is no more of it to wait for."""
        if until is not None and monotonic() > until:
            message = "the other side has said for a day that it is at work, and nothing else"
            raise Failure("silent", message, transient=True)
        ready, _writable, _failed = select.select([self.source], [], [], patience)
        if not ready:
            raise Failure("silent", f"the other side did not answer for {patience:.0f} s", transient=True)
        data = os.read(self.source, 1 << 18)
        if not data:
            raise EOFError
        self.buffer += data

    @contextmanager
    def watched(self, gone: Callable[[], None]) -> Iterator[None]:
        """Calls ``gone``, in another thread, when the other side has closed what is read here, read or not."""
        source = os.dup(self.source)
        inner, outer = os.pipe()

        def watch() -> None:
            poll = select.poll()
            poll.register(source, select.POLLRDHUP)
            poll.register(inner, select.POLLIN)
            if source in dict(poll.poll()):
                gone()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            os.close(outer)
            thread.join()
            os.close(inner)
            os.close(source)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Says ``alive`` every HEARTBEAT seconds for as long as the block takes."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(HEARTBEAT):
                try:
                    self.write({"alive": True})
                except OSError:  # whoever reads or writes next meets the broken connection
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
