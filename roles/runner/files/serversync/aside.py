# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that are answered in a thread of their own, so that who fills a stage holds nothing else up."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

# Bytes that have come and wait to be worked on, and requests.
MOST, MOST_REQUESTS = 32 << 20, 256


class Aside:
    """Answers requests in a thread of its own, one after the other, while others are answered that do not touch what
    these do.

    respond: answers one; False: nothing more is to be answered. What waits is bounded: ``put`` waits, too.
    """

    def __init__(self, respond: Callable[[dict[str, Any], bytes], bool]) -> None:
        self.respond = respond
        self.changed = threading.Condition()
        self.waiting: deque[tuple[dict[str, Any], bytes]] = deque()
        self.bytes = 0
        # Whether one is being answered, and the number of the last that was.
        self.busy = self.ended = False
        self.answered = 0
        self.thread: threading.Thread | None = None

    def put(self, request: dict[str, Any], payload: bytes) -> bool:
        """Whether it is going to be answered."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended or (self.bytes < MOST and len(self.waiting) < MOST_REQUESTS))
            if self.ended:
                return False
            self.waiting.append((request, payload))
            self.bytes += len(payload)
            self.changed.notify_all()
            if self.thread is None:
                # Most conversations need none.
                self.thread = threading.Thread(target=self.work, daemon=True)
                self.thread.start()
        return True

    def wait(self, number: object) -> bool:
        """Until the requests up to this number are answered; of what is no number: until all are.

        False where they will not be.
        """
        behind = number if isinstance(number, int) else math.inf
        with self.changed:
            self.changed.wait_for(lambda: self.answered >= behind or not (self.busy or self.waiting))
            return not self.ended

    def work(self) -> None:
        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.ended or self.waiting)
                    if self.ended:
                        return
                    self.busy = True
                    request, payload = self.waiting.popleft()
                goes_on = self.respond(request, payload)
                with self.changed:
                    self.busy = False
                    self.bytes -= len(payload)
                    number = request.get("id")
                    self.answered = number if isinstance(number, int) else self.answered
                    self.ended = self.ended or not goes_on
                    self.changed.notify_all()
        finally:
            with self.changed:
                self.busy, self.ended = False, True
                # Who waits for the rest would wait for ever.
                self.waiting.clear()
                self.changed.notify_all()

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, *_error: object) -> None:
        """What is being answered is; nothing else is any more."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        if self.thread is not None:
            self.thread.join()
