# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tells a process to stop, heard by its main thread whatever that waits for."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar

from serversync.failure import Overdue, Stopped

# Nobody sends it, nothing else here uses it, and whoever does not know it ignores it.
NUDGE = signal.SIGURG
# Seconds between two nudges.
PAUSE = 0.05


class Limit:
    """What is done within raises Overdue after so many seconds, None: never. Where signals are ``heard``."""

    on: ClassVar[bool] = False

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        if self.seconds is not None:
            Limit.on = True
            signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_exception: object) -> None:
        Limit.on = False
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def heard() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Stopped in the main thread, SIGINT KeyboardInterrupt; what is ignored stays so.
    SIGALRM raises Overdue while a ``Limit`` is on.

    Python runs a handler between two steps of the main thread. A signal that comes just before a wait, or is taken by
    another thread, does not end that wait: it could last for hours. So a thread sees to it that every wait ends until
    the handler has run.
    """
    told = {signal.SIGALRM}
    told |= {number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        told.add(signal.SIGINT)
    # How often a handler has run. No lock: one handler may interrupt another.
    ran = 0

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal ran
        ran += 1
        if number == signal.SIGALRM:
            # One that comes when its limit has just been taken away is of nobody's concern.
            if Limit.on:
                raise Overdue
            return
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped

    def nudged(_number: int, _frame: FrameType | None) -> None:
        nonlocal ran
        ran += 1

    main = threading.get_ident()
    arrivals, arrived = os.pipe()
    os.set_blocking(arrived, False)

    def watch() -> None:
        while numbers := os.read(arrivals, 64):
            if told.isdisjoint(numbers):
                continue
            # Python looks for signals in the order of their numbers, so that of the nudge comes last: a look that began
            # after the signal came has heard it once the nudge is heard. One may have been under way.
            enough = ran + 2
            while ran < enough:
                signal.pthread_kill(main, NUDGE)
                time.sleep(PAUSE)

    before = {number: signal.signal(number, stop) for number in told}
    before[NUDGE] = signal.signal(NUDGE, nudged)
    waking = signal.set_wakeup_fd(arrived, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(waking)
        os.close(arrived)
        thread.join()
        os.close(arrivals)
        for number, handler in before.items():
            signal.signal(number, handler)
