# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

from serversync.aside import MOST, MOST_REQUESTS, Aside


def test_what_waits_aside_is_bounded_and_ends_with_the_conversation() -> None:
    gate, begun, answered = threading.Event(), threading.Event(), []

    def respond(request: dict[str, Any], _payload: bytes) -> bool:
        begun.set()
        gate.wait()
        answered.append(request["id"])
        return True

    with Aside(respond) as aside:
        assert aside.put({"id": 3}, bytes(MOST))
        begun.wait()
        putting = threading.Thread(target=lambda: answered.append(("put", aside.put({"id": 4}, b""))))
        putting.start()
        gate.set()
        putting.join()
        aside.wait(4)
        assert answered in ([3, ("put", True), 4], [3, 4, ("put", True)])
        gate.clear()
        begun.clear()
        assert aside.put({"id": 5}, b"")
        begun.wait()
        assert aside.put({"id": 6}, b"")
        aside.ended = True
        gate.set()
        aside.wait(None)
        assert not aside.put({"id": 7}, b"")
    assert answered[3:] == [5]


def test_who_belongs_behind_a_parcel_waits_for_it_and_no_others() -> None:
    gates, answered = {number: threading.Event() for number in (3, 4, 6)}, []

    def respond(request: dict[str, Any], _payload: bytes) -> bool:
        gates[request["id"]].wait()
        answered.append(request["id"])
        return True

    class Noticed(threading.Condition):
        """Opens gates once it is waited for here, and not before."""

        opening: tuple[int, ...] = ()

        def wait_for(self, *given: Any, **options: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                for number in self.opening:
                    gates[number].set()
            return super().wait_for(*given, **options)

    aside = Aside(respond)
    aside.changed = noticed = Noticed()
    with aside, ExitStack() as opened:
        for number in (3, 4, 6):
            # Whatever fails here is to be told, and not waited for.
            opened.callback(gates[number].set)
            assert aside.put({"id": number}, b"")
        aside.wait(0)
        noticed.opening = (3, 4)
        aside.wait(4)
        assert answered == [3, 4]
        noticed.opening = (6,)
        aside.wait(None)
        assert answered == [3, 4, 6]


def test_nobody_waits_for_what_will_not_be_answered() -> None:
    def respond(_request: dict[str, Any], _payload: bytes) -> bool:
        gate.wait()
        raise BrokenPipeError

    gate, told = threading.Event(), []
    hook, threading.excepthook = threading.excepthook, lambda given: told.append(given.exc_type)
    try:
        with Aside(respond) as aside:
            for number in range(9):
                assert aside.put({"id": number}, b"")
            gate.set()
            assert not aside.wait(None)
            assert not aside.put({"id": 9}, b"")
        assert told == [BrokenPipeError]
    finally:
        threading.excepthook = hook


def test_requests_without_bytes_are_bounded_too() -> None:
    gate, begun = threading.Event(), threading.Event()
    put: list[int] = []

    def respond(_request: dict[str, Any], _payload: bytes) -> bool:
        begun.set()
        gate.wait()
        return True

    def put_many() -> None:
        for number in range(MOST_REQUESTS + 1):
            aside.put({"id": number}, b"")
            put.append(number)

    with Aside(respond) as aside:
        assert aside.put({"id": 0}, b"")
        begun.wait()
        putting = threading.Thread(target=put_many)
        putting.start()
        with aside.changed:
            assert aside.changed.wait_for(lambda: len(aside.waiting) == MOST_REQUESTS)
        assert len(aside.waiting) == MOST_REQUESTS
        gate.set()
        putting.join()
        assert aside.wait(None)
    assert len(put) == MOST_REQUESTS + 1
