# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""Where arcs lead in circles.

An arc feeds every arc whose source is, holds or lies in its target. A circle is a way along arcs that comes back and
nowhere turns round on the element that it came by, so that one element with direction both is none. The graph that
Tarjan's algorithm is given has, beside the arcs, vertices that stand for many arcs at once, so that its size is linear
in the number of elements and the depth of their paths, however many jobs meet in one place.
"""

from __future__ import annotations

import collections
from typing import Collection, Iterable, Iterator, Mapping, Sequence

from ._fleet import Filters, Fleet, apart, hides

#: How many arcs are looked at for shorter circles than the first of each component.
_EFFORT = 50000
#: Of one place at most so many different filters are told apart; where there are more they part nothing.
MOST_FILTERS = 16


class Ways:
    """Which arc feeds which, as a graph of vertices; those below the number of arcs are arcs, the others are helpers.

    `strict`: without what only filters keep apart.
    """

    def __init__(self, fleet: Fleet, arcs: Sequence[int], strict: bool) -> None:
        self.fleet = fleet
        self.arcs = arcs
        self.split = False
        self.effort = _EFFORT
        self.next: list[list[int]] = [[] for _arc in fleet.arcs]
        leaving: dict[int, dict[Filters, list[int]]] = {}
        coming: dict[int, dict[Filters, list[int]]] = {}
        for arc in arcs:
            _element, source, target, _names = fleet.arcs[arc]
            filters = fleet.elements[fleet.arcs[arc].element].filters
            leaving.setdefault(source, {}).setdefault(filters, []).append(arc)
            coming.setdefault(target, {}).setdefault(filters, []).append(arc)
        for ends in (leaving, coming):
            for place in [place for place, groups in ends.items() if len(groups) > MOST_FILTERS]:
                for one in (leaving, coming):
                    if place in one:
                        one[place] = {((), ()): sorted(arc for group in one[place].values() for arc in group)}
        whole: dict[tuple[int, Filters], int] = {}
        for place, groups in leaving.items():
            for filters, group in groups.items():
                whole[place, filters] = self._helper(group, coming.get(place, {}).get(filters, ()))
        feeds = self._feeds(leaving, coming)
        for place, groups in coming.items():
            for filters, group in groups.items():
                out = []
                for source, path, holder in feeds.get(place, ()):
                    for others in leaving[source]:
                        if source == place and others == filters:
                            continue
                        pair = (filters, others) if holder == place else (others, filters)
                        split = apart(*pair, path) or bool(path and hides(pair[0], path))
                        self.split = self.split or split
                        if not (split and strict):
                            out.append(whole[source, others])
                helper = self._vertex(out) if out else -1
                for arc in group:
                    if helper >= 0:
                        self.next[arc].append(helper)
                    if (place, filters) in whole and not fleet.elements[fleet.arcs[arc].element].both:
                        self.next[arc].append(whole[place, filters])

    def _vertex(self, out: list[int]) -> int:
        self.next.append(out)
        return len(self.next) - 1

    def _helper(self, group: Sequence[int], coming: Sequence[int]) -> int:
        """A vertex that leads to all arcs of a group; of those that come by `coming` none turns round.

        So many may meet here that each cannot be joined with all the others: two chains of helpers, one from each end,
        let an arc reach all but its own way back.
        """
        elements = self.fleet.elements
        back = {self.fleet.arcs[arc].element: at for at, arc in enumerate(group)}
        turning = [arc for arc in coming if elements[self.fleet.arcs[arc].element].both]
        if len(group) == 1:
            return group[0]
        if not turning:
            return self._vertex(list(group))
        before, after = [-1] * len(group), [-1] * len(group)
        for at, arc in enumerate(group):
            before[at] = self._vertex([arc, *before[at - 1 : at]])
        for at in reversed(range(len(group))):
            after[at] = self._vertex([group[at], *after[at + 1 : at + 2]])
        for arc in turning:
            at = back[self.fleet.arcs[arc].element]
            self.next[arc] += [*before[at - 1 : at], *after[at + 1 : at + 2]]
        return before[-1]

    def _feeds(self, leaving: Collection[int], coming: Collection[int]) -> dict[int, list[tuple[int, str, int]]]:
        """Target -> sources that it overlaps, with the path of the inner in the outer, and which is the outer."""
        feeds: dict[int, list[tuple[int, str, int]]] = {}
        for place in coming:
            if place in leaving:
                feeds.setdefault(place, []).append((place, "", place))
        for place, holders in enumerate(self.fleet.above):
            for holder, path in holders:
                if place in coming and holder in leaving:
                    feeds.setdefault(place, []).append((holder, path, holder))
                if holder in coming and place in leaving:
                    feeds.setdefault(holder, []).append((place, path, holder))
        return feeds

    def circles(self) -> list[list[int]]:
        """The arcs of every component in which a circle of two or more elements lies, sorted."""
        arcs = self.fleet.arcs
        found: dict[frozenset[int], list[int]] = {}
        for component in components(self.next, self.arcs):
            inside = sorted(vertex for vertex in component if vertex < len(arcs))
            elements = frozenset(arcs[arc].element for arc in inside)
            if len(elements) > 1:
                # a mesh is found once each way round
                found[elements] = min(inside, found.get(elements, inside))
        return sorted(found.values())

    def shortest(self, component: Collection[int], begin: Sequence[int], by: Collection[int] = ()) -> list[int]:
        """A shortest circle in a component through one of these arcs, and through one of `by` where there are any.

        Without `by` there is one; with it, there may only be ways that pass an arc twice.
        """
        inside = set(component)
        best: list[int] = []
        for number, start in enumerate(begin):
            if number and (self.effort <= 0 or len(best) == 2):
                break
            self.effort -= len(inside)
            circle = self._around(start, inside, len(best), by)
            if circle and (not best or len(circle) < len(best)):
                best = circle
        turn = best.index(min(best)) if best else 0
        return best[turn:] + best[:turn]

    def _around(self, start: int, inside: set[int], limit: int, by: Collection[int]) -> list[int]:
        """The shortest way from an arc over others back to it; helpers cost nothing on the way."""
        count = len(self.fleet.arcs)
        first = (start, not by or start in by)
        came: dict[tuple[int, bool], tuple[int, bool]] = {}
        waiting = collections.deque([(first, 0)])
        done = set()
        while waiting:
            here, length = waiting.popleft()
            if here in done:
                continue
            done.add(here)
            if limit and length + 1 >= limit:
                return []
            vertex, passed = here
            for one in self.next[vertex]:
                if one == start:
                    # one that only filters keep from feeding itself is no circle of several
                    if passed and length:
                        return self._way(first, here, came)
                    continue
                there = (one, passed or one in by)
                if there in done or (one < count and one not in inside):
                    continue
                came.setdefault(there, here)
                if one < count:
                    waiting.append((there, length + 1))
                else:
                    waiting.appendleft((there, length))
        return []

    def _way(
        self, first: tuple[int, bool], last: tuple[int, bool], came: Mapping[tuple[int, bool], tuple[int, bool]]
    ) -> list[int]:
        way = []
        while last != first:
            if last[0] < len(self.fleet.arcs):
                way.append(last[0])
            last = came[last]
        way = [first[0], *way[::-1]]
        return way if len(set(way)) == len(way) else []


def components(following: Sequence[Sequence[int]], roots: Iterable[int]) -> Iterator[list[int]]:
    """Strongly connected components (Tarjan), without recursion."""
    order: list[int] = [0] * len(following)
    low: list[int] = [0] * len(following)
    held = bytearray(len(following))
    stack: list[int] = []
    clock = 0
    for root in roots:
        if order[root]:
            continue
        clock += 1
        order[root] = low[root] = clock
        stack.append(root)
        held[root] = 1
        work = [(root, iter(following[root]))]
        while work:
            vertex, rest = work[-1]
            for one in rest:
                if not order[one]:
                    clock += 1
                    order[one] = low[one] = clock
                    stack.append(one)
                    held[one] = 1
                    work.append((one, iter(following[one])))
                    break
                if held[one] and order[one] < low[vertex]:
                    low[vertex] = order[one]
            else:
                work.pop()
                if work and low[vertex] < low[work[-1][0]]:
                    low[work[-1][0]] = low[vertex]
                if low[vertex] == order[vertex]:
                    component = []
                    while True:
                        one = stack.pop()
                        held[one] = 0
                        component.append(one)
                        if one == vertex:
                            break
                    yield component
