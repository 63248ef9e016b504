# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan in pieces that are carried out one after the other, so that what is killed loses one of them at most. Pure.

Within the order of the pieces nothing comes before what it needs: a directory is made before what is in it, and
removed, replaced or given its metadata after. What belongs together is never cut: a wholly new directory, unless it is
larger than a piece; the names of one file; a path that is put aside and its conflict copies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from serversync.entry import Entry
from serversync.reconcile import OTHER, SIDES, Decision, is_directory, of, parent

Unit = list[Decision]


def moved_bytes(decision: Decision) -> int:
    """Of the file whose contents are to be put on the other replica."""
    if decision.content is None:
        return 0
    source = of(decision, decision.content)
    return source.size if isinstance(source, Entry) and source.kind == "f" else 0


def pieces(
    decisions: list[Decision], ties: Iterable[Collection[bytes]], entries: int, size: int
) -> Iterator[list[Decision]]:
    """ties: paths that have to be in one piece; a piece ends once it has as many decisions, or bytes of contents."""
    if len(decisions) <= entries and sum(map(moved_bytes, decisions)) <= size:
        yield decisions
        return
    piece: list[Decision] = []
    volume = 0
    for unit in tied(list(units(ordered(decisions), entries, size)), ties):
        piece += unit
        volume += sum(map(moved_bytes, unit))
        if len(piece) >= entries or volume >= size:
            yield piece
            piece, volume = [], 0
    if piece:
        yield piece


def changing(one: Decision) -> Iterator[str]:
    """The replicas on which the decision changes something."""
    for side in SIDES:
        if OTHER[side] in (one.content, one.metadata) or one.remove == side:
            yield side


def last(one: Decision) -> bool:
    """Whether it has to wait for all that is done below it: a directory goes, or gets its own metadata."""
    return any(is_directory(of(one, side)) for side in changing(one))


def below(path: bytes, top: bytes) -> bool:
    return not top or path.startswith(top + b"/")


def ordered(decisions: Iterable[Decision]) -> Iterator[Decision]:
    """A directory's subtree in one run; the directory before it, or behind where it is the ``last``."""
    waiting: list[Decision] = []
    for one in sorted(decisions, key=lambda one: one.path.replace(b"/", b"\0")):
        while waiting and not below(one.path, waiting[-1].path):
            yield waiting.pop()
        if last(one):
            waiting.append(one)
        else:
            yield one
    yield from reversed(waiting)


def units(decisions: Iterable[Decision], entries: int, size: int) -> Iterator[Unit]:
    """What is put in its place at once: new directories with all that is in them, everything else by itself."""
    rest = list(decisions)
    at = 0
    while at < len(rest):
        end = at + 1
        one = rest[at]
        if one.content and is_directory(of(one, one.content)) and not last(one):
            room = (entries, size) if splittable(one) else (len(rest), 1 << 64)
            volume = 0
            while end < len(rest) and below(rest[end].path, one.path):
                volume += moved_bytes(rest[end])
                end += 1
                if end - at > room[0] or volume > room[1]:
                    end = at + 1
                    break
        yield rest[at:end]
        at = end


def splittable(one: Decision) -> bool:
    """Whether the directory can be made first and then filled: nothing is replaced, and its owner may write in it."""
    assert one.content
    entry = of(one, one.content)
    return of(one, OTHER[one.content]) is None and isinstance(entry, Entry) and entry.mode & 0o700 == 0o700


def tied(found: list[Unit], ties: Iterable[Collection[bytes]]) -> Iterator[Unit]:
    """The units; those that a tie joins as one, behind the others, and then what has to wait for them."""
    groups = [group for group in ties if len(group) > 1]
    if not groups:
        yield from found
        return
    paths = set(chain.from_iterable(groups))
    unit_of = {one.path: number for number, unit in enumerate(found) for one in unit if one.path in paths}
    # Number of a unit -> the one that stands for all that it is tied to.
    head = list(range(len(found)))

    def first(number: int) -> int:
        while head[number] != number:
            head[number] = head[head[number]]
            number = head[number]
        return number

    joined = set()
    for group in groups:
        members = {unit_of[path] for path in group if path in unit_of}
        if len(members) > 1:
            joined |= members
            heads = sorted({first(number) for number in members})
            for number in heads:
                head[number] = heads[0]
    above = set()
    for path in (one.path for number in joined for one in found[number]):
        while path:
            path = parent(path)
            if path in above:
                break
            above.add(path)
    waiting = [
        number for number, unit in enumerate(found) if number not in joined and unit[0].path in above and last(unit[0])
    ]
    later = joined.union(waiting)
    yield from (unit for number, unit in enumerate(found) if number not in later)
    together: dict[int, Unit] = {}
    for number in sorted(joined):
        together.setdefault(first(number), []).extend(found[number])
    yield from together.values()
    yield from (found[number] for number in waiting)
