# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A partner may say anything of its logs: what cannot be is its failure, and nothing of it is kept or written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
from serversync.failure import Failure
from serversync.logfile import BATCH, NOTHING, SIBLINGS, File, Mark, Stamp, digest_of
from serversync.partnerlog import PartnerSource, PartnerTarget

DIGEST = digest_of(b"x")
MARK = Mark(10, DIGEST, DIGEST)
FILE = asdict(File(0, "app.log", True, False, False, Stamp(1, 2, 3, 4), 4, [0]))
SOURCE = {"machine": "hq", "directory": 7}
TARGET = {
    **{"machine": "hq", "owner": True, "directory": 7, "exists": True},
    **{"device": 1, "inode": 2, "size": 3, "whole": True},
}


class Saying:
    """A conversation with somebody who opens a log, and then always says the same."""

    partner = "hq:22"

    def __init__(self, opened: dict[str, Any], reply: dict[str, Any], *data: bytes) -> None:
        self.opened = opened
        self.reply = reply
        self.data = data

    def ask(self, verb: str, *_question: object, **_request: object) -> dict[str, Any]:
        return self.opened if verb == "log_open" else self.reply

    def ask_long(self, *_question: object, **_request: object) -> Iterator[bytes]:
        yield from self.data


def source(*data: bytes, facts: Any = ..., handle: Any = 0, **reply: Any) -> PartnerSource:
    facts = SOURCE if facts is ... else facts
    return PartnerSource(Saying({"log": handle, "facts": facts}, reply, *data), "/app.log")  # type: ignore[arg-type]


def target(facts: Any = ..., **reply: Any) -> PartnerTarget:
    facts = TARGET if facts is ... else facts
    return PartnerTarget(Saying({"log": 0, "facts": facts}, {"facts": facts, **reply}), "/app.log")  # type: ignore[arg-type]


def files(**changed: Any) -> list[File]:
    return source(files=[{**FILE, **changed}]).files([MARK], [Stamp(1, 2, 3, 4)])


def take(*extent: Any) -> object:
    return source(extent=extent).take(0, MARK, 20)


def endless() -> Iterator[bytes]:
    while True:
        yield b"x" * 1000 + b"\n"


def test_what_is_an_answer_is_understood() -> None:
    assert files() == [File(0, "app.log", True, False, False, Stamp(1, 2, 3, 4), 4, [0])]
    assert source(mark=MARK).mark(0, 10) == MARK
    assert source(end=15, lines=2).count(0, 10) == (15, 2)
    assert source(end=10, lines=0).count(0, 10) == (10, 0)
    assert source(extent=[15, 2, DIGEST, [15, DIGEST, DIGEST]]).take(0, MARK, 20).end == 15
    assert b"".join(source(b"ab\n", b"c\n").read(0, 10, 15)) == b"ab\nc\n"
    assert source(place=-1).copied(0, [1]) == -1
    assert target(facts=TARGET).refresh() == TARGET
    assert target(same=-1).same(2, 0, b"abc") == -1
    assert target(count=3, last=True).already(2, 0, b"abc") == (3, True)
    assert target(problems=[]).create(0o644, 0, 0, frozenset()) == []


NONSENSE: list[Callable[[], object]] = [
    lambda: source(handle="x"),
    lambda: source(facts={}),
    lambda: source(facts={**SOURCE, "directory": "x"}),
    lambda: source(facts={**SOURCE, "machine": "a\0b"}),
    lambda: source(files=3).files([], []),
    lambda: source(files=[FILE] * (SIBLINGS + 1)).files([], []),
    lambda: source(files=[FILE, FILE]).files([MARK], []),
    lambda: files(name="../app.log"),
    lambda: files(name="\ud800"),
    lambda: files(name=""),
    lambda: files(name=7),
    lambda: files(number="0"),
    lambda: files(stamp=[1, 2, 3]),
    lambda: files(stamp=[{}, 2, 3, 4]),
    lambda: files(stamp=[1, 2, 3, 1 << 99]),
    lambda: files(size=-2),
    lambda: files(size=10**400),
    lambda: files(holds=[1]),
    lambda: files(holds=[-1]),
    lambda: files(mode=0o10000),
    lambda: files(uid=-1),
    lambda: files(more=1),
    lambda: files(packed="x"),
    lambda: source(mark=[11, DIGEST, DIGEST]).mark(0, 10),
    lambda: source(mark=[10, DIGEST, {}]).mark(0, 10),
    lambda: source(mark=[10, DIGEST, "x"]).mark(0, 10),
    lambda: source(digest="x" * 9999).digest(0, 0, 10),
    lambda: source(place=1).copied(0, [1]),
    lambda: source(end=11).line_end(0, 10),
    lambda: source(end=-1).line_end(0, 10),
    lambda: source(end=float("nan")).line_end(0, 10),
    lambda: source(end=9, lines=1).count(0, 10),
    lambda: source(end=1 << 64, lines=1).count(0, 10),
    lambda: source(end=15, lines=0).count(0, 10),
    lambda: source(end=15, lines=6).count(0, 10),
    # Nothing would ever come to its end by these.
    lambda: take(10, 0, DIGEST, MARK),
    lambda: take(15, 1, DIGEST, MARK),
    lambda: take(21, 1, DIGEST, [21, DIGEST, DIGEST]),
    lambda: take(15, 9, DIGEST, [15, DIGEST, DIGEST]),
    lambda: take(15, 1, "x", [15, DIGEST, DIGEST]),
    lambda: take(15, 1, DIGEST, [15, DIGEST]),
    lambda: list(source(b"more than five").read(0, 10, 15)),
    lambda: list(PartnerSource(Endless(), "/app.log").read(0, 0, BATCH)),  # type: ignore[arg-type]
    lambda: target(facts={**TARGET, "size": -1}),
    lambda: target(facts={**TARGET, "exists": "no"}),
    lambda: target(problems=3).create(0o644, 0, 0, frozenset()),
    lambda: target(digest=7).digest(0, 10),
    lambda: target(same=4).same(2, 0, b"abc"),
    lambda: target(count=4, last=True).already(2, 0, b"abc"),
    lambda: target(size="x").append(b"x", True),
]


class Endless(Saying):
    def __init__(self) -> None:
        super().__init__({"log": 0, "facts": SOURCE}, {})

    def ask_long(self, *_question: object, **_request: object) -> Iterator[bytes]:
        return endless()


@pytest.mark.parametrize("ask", NONSENSE)
def test_what_is_none_is_the_partners_failure(ask: Callable[[], object]) -> None:
    with pytest.raises(Failure) as raised:
        ask()
    assert raised.value.code == "protocol"
    assert "hq:22" in raised.value.message


def test_of_problems_a_person_reads_little() -> None:
    told = target(problems=["x" * 9999] * 300).create(0o644, 0, 0, frozenset())
    assert [len(text) for text in told] == [1000] * 200
    assert [len(one.problem) for one in files(problem="x" * 9999)] == [1000]


def test_nothing_is_asked_of_nothing() -> None:
    assert source(mark=NOTHING).mark(0, 0) == NOTHING
