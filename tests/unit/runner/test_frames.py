# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serversync import frames
from serversync.failure import Failure


@pytest.fixture
def pipe() -> Iterator[tuple[frames.Frames, int]]:
    source, target = os.pipe()
    yield frames.Frames(source, target), target
    for descriptor in (source, target):
        try:
            os.close(descriptor)
        except OSError:
            assert descriptor == target, "the reading end is never closed by a test"


# Keys that frames keep for themselves are not the sender's.
KEYS = st.text().filter(lambda key: key not in ("alive", "bytes"))
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@pytest.mark.parametrize("key", ["alive", "bytes"])
def test_what_frames_keep_for_themselves_is_refused_before_anybody_waits_for_it(
    pipe: tuple[frames.Frames, int], key: str
) -> None:
    ends, _target = pipe
    with pytest.raises(ValueError, match="only the conversation itself may say"):
        ends.send({key: 4096})


@given(sent=st.lists(st.dictionaries(KEYS, JSON, max_size=3), max_size=5))
def test_frames_arrive_as_they_were_sent(sent: list[dict[str, object]]) -> None:
    source, target = os.pipe()
    try:
        ends = frames.Frames(source, target)
        for frame in sent:
            ends.send(frame)
        assert [ends.receive() for _frame in sent] == [(frame, b"") for frame in sent]
    finally:
        os.close(source)
        os.close(target)


@pytest.mark.parametrize("line", [b"SSH-2.0-other\n", b"[1]\n", b"\xff\xfe\n", b"null\n"])
def test_what_is_no_frame_is_a_failure(pipe: tuple[frames.Frames, int], line: bytes) -> None:
    ends, target = pipe
    os.write(target, line)
    with pytest.raises(Failure, match="which is no frame of serversync"):
        ends.receive()


def test_the_end_of_the_stream_is_told(pipe: tuple[frames.Frames, int]) -> None:
    ends, target = pipe
    os.write(target, b'{"half":')
    os.close(target)
    with pytest.raises(EOFError):
        ends.receive()


def test_silence_ends(pipe: tuple[frames.Frames, int]) -> None:
    with pytest.raises(Failure, match="did not answer"):
        pipe[0].receive(patience=0)


def test_an_endless_frame_ends(pipe: tuple[frames.Frames, int], monkeypatch: pytest.MonkeyPatch) -> None:
    ends, target = pipe
    monkeypatch.setattr(frames, "LIMIT", 100)
    os.write(target, b"x" * 1000)
    with pytest.raises(Failure, match="too long"):
        ends.receive()


@given(payloads=st.lists(st.binary(max_size=300), max_size=5))
def test_bytes_arrive_with_their_frames(payloads: list[bytes]) -> None:
    source, target = os.pipe()
    try:
        ends = frames.Frames(source, target)
        for number, payload in enumerate(payloads):
            ends.send({"number": number}, payload)
            ends.write({"alive": True})
        ends.send({})
        received = [ends.receive() for _payload in payloads]
        assert received == [({"number": number}, payload) for number, payload in enumerate(payloads)]
    finally:
        os.close(source)
        os.close(target)


@pytest.mark.parametrize("busy", [False, True])
def test_who_sends_much_takes_in_what_the_other_side_says_first(busy: bool) -> None:
    """Each has more to say than fits into the pipes, and reads only then."""
    (here, far_out), (far_in, there) = os.pipe(), os.pipe()
    os.set_blocking(there, False)
    near, far = frames.Frames(here, there), frames.Frames(far_in, far_out)
    much = bytes(1 << 20)
    heard = []

    def talk() -> None:
        far.send({"number": 1}, much)
        far.send({"number": 2}, much)
        heard.append(far.receive())

    other = threading.Thread(target=talk)
    other.start()
    try:
        if busy:
            # Another thread reads, until it has what it waits for.
            reader = threading.Thread(target=lambda: heard.append(near.receive()))
            reader.start()
        near.send({"number": 3}, much)
        other.join()
        if busy:
            reader.join()
        heard += [near.receive() for _one in range(2 - busy)]
        assert sorted((frame["number"], len(payload)) for frame, payload in heard) == [
            (number, len(much)) for number in (1, 2, 3)
        ]
    finally:
        for descriptor in (here, there, far_in, far_out):
            os.close(descriptor)


def test_more_bytes_than_are_allowed_are_refused(pipe: tuple[frames.Frames, int]) -> None:
    ends, target = pipe
    os.write(target, b'{"bytes": 1000000000000}\n')
    with pytest.raises(Failure, match="too long"):
        ends.receive()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("unread", [b"", b'{"verb": "x"}\n'])
def test_that_the_other_side_is_gone_is_noticed_while_nobody_reads(kind: str, unread: bytes) -> None:
    gone = threading.Event()
    if kind == "pipe":
        source, target = os.pipe()
    else:
        source, target = (end.detach() for end in socket.socketpair())
    try:
        with frames.Frames(source, target).watched(gone.set):
            os.write(target, unread)
            assert not gone.is_set()
            os.close(target)
            gone.wait()
    finally:
        os.close(source)


def test_who_is_no_longer_watched_may_go() -> None:
    source, target = os.pipe()
    gone = threading.Event()
    with frames.Frames(source, target).watched(gone.set):
        pass
    os.close(target)
    os.close(source)
    assert not gone.is_set()


@pytest.mark.parametrize("said", [b'{"alive": true}\n', b'{"alive": true, "bytes": 3}\nabc', b" "])
def test_who_only_says_that_it_is_alive_is_given_up(
    pipe: tuple[frames.Frames, int], monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    ends, target = pipe
    os.write(target, b".")
    hours = count(0, 3600)
    monkeypatch.setattr(frames, "monotonic", lambda: next(hours))
    # For ever, and as often as it is asked for.
    monkeypatch.setattr(frames.os, "read", lambda _source, _most: said)
    with pytest.raises(Failure, match="has said for a day that it is at work") as given_up:
        ends.receive(stall=frames.STALL)
    assert (given_up.value.code, given_up.value.transient) == ("silent", True)
    assert next(hours) == 26 * 3600
