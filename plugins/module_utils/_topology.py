# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""Circular connections, contended targets and chains over any set of jobs, of one server or of a fleet.

Everything here is pure: servers with their jobs and what is known of their paths in, findings and the graph out.
"""

from __future__ import annotations

from typing import Any, Collection, Iterable, Iterator, Mapping, NamedTuple, Sequence

from . import _schedule
from ._circles import MOST_FILTERS, Ways
from ._fleet import Arc, Element, Filters, Fleet, Member, Server, apart, hides

LEVELS = ("error", "warning", "info")

#: Of jobs, servers and hosts at most so many are named in one sentence.
_NAMED = 8
_ACCEPT = "where this is meant, give the reason in accept_circular"


class Finding(NamedTuple):
    """level: error, warning or info; then one sentence each; accepted: the reason for which it is no error."""

    level: str
    kind: str
    issue: str
    impact: str
    remedy: str
    members: tuple[Member, ...] = ()
    accepted: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return dict(self._asdict(), members=[dict(one._asdict()) for one in self.members])

    def __str__(self) -> str:
        return "%s %s %s" % (self.issue, self.impact, self.remedy)


class Topology(NamedTuple):
    findings: list[Finding]
    graph: dict[str, Any]


def analyse(servers: Iterable[Server], about: Collection[tuple[str, str]] | None = None) -> Topology:
    """`about`: jobs as (server, job); only what they have part in is found, and no graph is made."""
    fleet = Fleet(sorted(servers, key=lambda server: server.name))
    found = _Findings(fleet, None if about is None else frozenset(about))
    findings = sorted(found.all(), key=lambda one: (LEVELS.index(one.level), one.kind, one.members, one.issue))
    return Topology(findings, {} if about is not None else _graph(fleet, found.circular))


# --- findings --------------------------------------------------------------------------------------------------


def _listed(words: Iterable[str]) -> str:
    words = list(dict.fromkeys(words))
    more = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (" and %d more" % more if more > 0 else "")


def _jobs(members: Iterable[Member]) -> str:
    """'by job a', 'by jobs a, b', or with their servers where these are several."""
    jobs = list(dict.fromkeys((member.server, member.job) for member in members))
    several = len({server for server, _job in jobs}) > 1
    names = [job + (" on " + server if several else "") for server, job in jobs]
    return "by job%s %s" % ("s" if len(jobs) > 1 else "", _listed(names))


class _Findings:
    def __init__(self, fleet: Fleet, about: frozenset[tuple[str, str]] | None) -> None:
        self.fleet = fleet
        self.about = about
        #: element -> the places where it goes in circles or is contended, of which no more is said
        self.troubled: set[int] = set()
        #: elements that lie in themselves: an error that is to be mended before more can be said of them
        self.looped: set[int] = set()
        #: the arcs of all circles that nobody accepts
        self.circular: set[int] = set()
        self.writers: dict[int, list[int]] = {}
        for arc in fleet.arcs:
            if arc.source != arc.target:
                writers = self.writers.setdefault(arc.target, [])
                writers.append(arc.element)

    def all(self) -> Iterator[Finding]:
        yield from self._of_servers()
        yield from self._inside_themselves()
        yield from self._contended()
        yield from self._circles()
        yield from self._chains()

    def _concerns(self, members: Iterable[Member]) -> bool:
        return self.about is None or any((one.server, one.job) in self.about for one in members)

    def _finding(
        self, level: str, kind: str, texts: Sequence[str], members: Sequence[Member], reasons: Sequence[str] = ()
    ) -> Iterator[Finding]:
        """`reasons`: for which the jobs accept it, so that it is no error."""
        if not self._concerns(members):
            return
        issue, impact, remedy = texts
        if reasons:
            remedy = "It is accepted: %s." % _listed(reasons)
            level = "info"
        accepted = _listed(reasons) if reasons else None
        yield Finding(level, kind, issue, impact, remedy, tuple(dict.fromkeys(members)), accepted)

    def _of_servers(self) -> Iterator[Finding]:
        if self.about is not None:
            return
        for first, other in self.fleet.same:
            yield Finding(
                "warning",
                "same_machine",
                "One machine under two names: %s and %s have the same machine id." % (first, other),
                "They are taken for one server; if one is a copy of the other, circles are reported that are none.",
                "Give one entry with aliases, or on a copied server remove /etc/machine-id and run "
                "systemd-machine-id-setup.",
            )
        if len(self.fleet.servers) > 1 and self.fleet.unknown:
            yield Finding(
                "info",
                "unknown_server",
                "Partners that are not among the servers: %s." % _listed(sorted(self.fleet.unknown)),
                "What their own jobs do is not known, so that a circle through them may be missed.",
                "Add these servers, or these names to the aliases of the servers that they are.",
            )

    def _inside_themselves(self) -> Iterator[Finding]:
        for element in self.fleet.elements:
            arc = self.fleet.arcs[element.arcs[0]]
            one, other = arc.names
            above = [dict(self.fleet.above[place]) for place in (arc.source, arc.target)]
            path = above[1].get(arc.source) or above[0].get(arc.target)
            if path and hides(element.filters, path, element.kind == "log"):
                yield from self._finding(
                    "warning",
                    "split",
                    (
                        "A target and its own source that only filters keep apart: %s -> %s, %s."
                        % (one, other, _jobs([element.member])),
                        "If the filters are edited, a run takes what it does itself for edits.",
                        "Name a path outside the source.",
                    ),
                    [element.member],
                )
                continue
            if arc.source == arc.target:
                issue = "A target that is its own source: %s -> %s" % (one, other)
                impact = "There is one directory, and a run takes what it does itself for changes of the other server."
            elif arc.source in above[1] or (element.both and arc.target in above[0]):
                issue = "A target inside its own source: %s -> %s" % (one, other)
                impact = "Every run copies what the run before has copied, one directory deeper each time."
            elif arc.target in above[0]:
                issue = "A target around its own source: %s -> %s" % (one, other)
                impact = "A run takes the source itself for files of the target, and may overwrite or delete it."
            else:
                continue
            self.troubled.update((arc.source, arc.target))
            self.looped.add(arc.element)
            texts = ("%s, %s." % (issue, _jobs([element.member])), impact, "Name another path; %s." % _ACCEPT)
            yield from self._finding(
                "error", "inside_itself", texts, [element.member], [element.accepted] if element.accepted else []
            )

    # Contended targets.

    def _contended(self) -> Iterator[Finding]:
        for place in sorted(self.writers):
            yield from self._written_twice(place)
            yield from self._written_around(place)

    def _parted(self, elements: Iterable[int]) -> tuple[list[Element], list[Element]]:
        """The elements whose jobs accept nothing, and those whose jobs do."""
        found = [self.fleet.elements[one] for one in dict.fromkeys(elements)]
        return [one for one in found if not one.accepted], [one for one in found if one.accepted]

    def _name(self, place: int, element: Element) -> str:
        """A place as a job spells it."""
        arcs = (self.fleet.arcs[arc] for arc in element.arcs)
        return next(arc.names[1] for arc in arcs if arc.target == place)

    def _written_twice(self, place: int) -> Iterator[Finding]:
        strict, accepting = self._parted(self.writers[place])
        both = strict if len(strict) > 1 else strict + accepting
        if len(both) < 2 or all(element.kind == "log" for element in both):
            return
        self.troubled.add(place)
        members = [element.member for element in both]
        texts = (
            "One target of several elements: %s, %s." % (self._name(place, both[0]), _jobs(members)),
            "A target belongs to one element: the first that runs takes it, and every run of the others fails.",
            "Give each a target of its own, such as a subdirectory for each source; %s." % _ACCEPT,
        )
        reasons = [] if both is strict else [str(element.accepted) for element in accepting]
        yield from self._finding("error", "contended", texts, members, reasons)

    def _written_around(self, place: int) -> Iterator[Finding]:
        """Where the target of one element lies in that of another: of the nearest, an error before a warning."""
        found: list[Finding] = []
        for holder, path in self.fleet.above[place]:
            if holder not in self.writers:
                continue
            both = set(self.writers[place]) & set(self.writers[holder])
            inner, inner_accepting = self._parted(one for one in self.writers[place] if one not in both)
            outer, outer_accepting = self._parted(one for one in self.writers[holder] if one not in both)
            logs = all(one.kind == "log" for one in inner)
            closed = [one for one in outer if not hides(one.filters, path, logs)]
            accepting = inner_accepting + outer_accepting
            if inner and closed:
                found += self._nested(place, holder, path, inner, closed)
                # several in one place are an error already
                if found and (found[-1].level == "error" or (len(inner) > 1 and not logs)):
                    break
            elif inner and outer:
                members = [inner[0].member, outer[0].member]
                texts = (
                    "Targets that only filters keep apart: %s inside %s, %s."
                    % (self._name(place, inner[0]), self._name(holder, outer[0]), _jobs(members)),
                    "If the filters are edited, two jobs write the same files, and deletions of one meet the other's.",
                    "Move one of the targets out of the other.",
                )
                found += self._finding("warning", "split", texts, members)
            elif accepting and inner + inner_accepting and outer + outer_accepting:
                reasons = [str(one.accepted) for one in accepting]
                found += self._nested(place, holder, path, inner + inner_accepting, outer + outer_accepting, reasons)
        yield from sorted(found, key=lambda one: (LEVELS.index(one.level), one.kind == "split"))[:1]

    def _nested(
        self,
        place: int,
        holder: int,
        path: str,
        inner: Sequence[Element],
        outer: Sequence[Element],
        reasons: Sequence[str] = (),
    ) -> Iterator[Finding]:
        self.troubled.add(place)
        exclude = "Exclude '/%s' in the outer one, or name another target" % path
        accept = exclude + "; %s." % _ACCEPT
        same = self._same_pair(place, holder, path, inner, outer)
        wiping = [one for one in outer if one.settings["delete"] == "extraneous" and one.deletes]
        members = [one.member for one in (*inner, *outer)]
        where = "%s inside %s" % (self._name(place, inner[0]), self._name(holder, (wiping or outer)[0]))
        if same:
            one, other, differing = same
            members = [one.member, other.member]
            where = "%s inside %s" % (self._name(place, one), self._name(holder, other))
        if same and differing:
            texts = (
                "An element inside another one with other settings (%s): %s, %s."
                % (_listed(differing), where, _jobs(members)),
                "Both settings hold for the same files: which of them decides depends on which job runs last.",
                accept,
            )
            yield from self._finding("error", "nested", texts, members, reasons)
        elif same:
            texts = (
                "An element inside another one with the same settings: %s, %s." % (where, _jobs(members)),
                "Two jobs do the same work, and each tells only of its part.",
                "Leave one of them out, or exclude '/%s' in the outer one." % path,
            )
            yield from self._finding("warning", "nested", texts, members, reasons)
        elif wiping:
            texts = (
                "A target inside another one, which deletes what its source lacks: %s, %s." % (where, _jobs(members)),
                "The outer job deletes what the inner one brings.",
                accept,
            )
            yield from self._finding("error", "contended", texts, members, reasons)
        else:
            texts = (
                "A target inside another one: %s, %s." % (where, _jobs(members)),
                "Where both have a file of one name, each job takes what the other one writes for edits made on the "
                "target: conflicts that nobody caused.",
                exclude + ".",
            )
            yield from self._finding("warning", "contended", texts, members, reasons)

    def _same_pair(
        self, place: int, holder: int, path: str, inner: Sequence[Element], outer: Sequence[Element]
    ) -> tuple[Element, Element, list[str]] | None:
        """An inner and an outer element whose sources lie in each other as their targets do, and what differs."""
        sources: dict[int, list[Element]] = {}
        for element in outer:
            for arc in element.arcs:
                if self.fleet.arcs[arc].target == holder:
                    sources.setdefault(self.fleet.arcs[arc].source, []).append(element)
        alike: tuple[Element, Element, list[str]] | None = None
        for element in inner:
            for arc in element.arcs:
                if self.fleet.arcs[arc].target != place:
                    continue
                for above, below in self.fleet.above[self.fleet.arcs[arc].source]:
                    for other in sources.get(above, ()) if below == path else ():
                        mine, its = dict(element.settings, kind=element.kind), dict(other.settings, kind=other.kind)
                        differing = sorted(name for name in mine if mine[name] != its.get(name))
                        if differing:
                            return element, other, differing
                        alike = alike or (element, other, [])
        return alike

    # Circles.

    def _circles(self) -> Iterator[Finding]:
        fleet = self.fleet
        arcs = [number for number, arc in enumerate(fleet.arcs) if arc.element not in self.looped]
        strict = [number for number in arcs if not fleet.elements[fleet.arcs[number].element].accepted]
        ways = Ways(fleet, strict, strict=True)
        seen = self.circular
        for component in ways.circles():
            seen.update(component)
            yield from self._circle(ways, component)
        if ways.split:
            loose = Ways(fleet, strict, strict=False)
            for component in loose.circles():
                if seen.isdisjoint(component):
                    yield from self._circle(loose, component, split=True)
        if len(strict) < len(arcs):
            whole = Ways(fleet, arcs, strict=True)
            for component in whole.circles():
                if seen.isdisjoint(component):
                    yield from self._circle(whole, component)

    def _circle(self, ways: Ways, component: Sequence[int], split: bool = False) -> Iterator[Finding]:
        fleet = self.fleet
        elements = {arc: fleet.elements[fleet.arcs[arc].element] for arc in component}
        for arc in component:
            self.troubled.update((fleet.arcs[arc].source, fleet.arcs[arc].target))
        if not self._concerns(element.member for element in elements.values()):
            return
        mesh = all(element.both for element in elements.values())
        harmful = {arc for arc in component if elements[arc].deletes or elements[arc].overwrites}
        begin = [arc for arc in component if self._concerns([elements[arc].member])]
        # the circle that is shown has what is wrong with it: an element that overwrites, and not only a mesh's
        begin = sorted(harmful.intersection(begin)) or begin
        begin = [arc for arc in begin if not elements[arc].both] or begin
        circle = ways.shortest(component, begin, harmful) or ways.shortest(component, begin)
        harmful.intersection_update(circle)
        members = [elements[arc].member for arc in circle]
        text = "%s, %s." % (self._way(circle, " <-> " if mesh else " -> "), _jobs(members))
        reasons = [str(elements[arc].accepted) for arc in circle if elements[arc].accepted]
        accept = "; %s." % _ACCEPT
        level = "error"
        if split:
            level, kind, what = "warning", "split", "A circle that only filters keep open: "
            impact = "If the filters are edited, the circle is closed."
            remedy = "Take one of the elements out of the circle, or give them directories that do not overlap."
        elif mesh:
            level, kind, what = "warning", "mesh", "A mesh of elements with direction both: "
            impact = (
                "The same edit arrives by two ways, of which each job knows one: "
                "conflicts are reported where nobody made two edits."
            )
            remedy = "Make it a star: one server in the middle, whose directory feeds the others by one job each."
        else:
            kind, what = "circle", "A circle: "
            remedy = "Take one of the elements out, so that one place is the source of all" + accept
            if len(circle) == 2 and all(elements[arc].kind == "tree" and not elements[arc].both for arc in circle):
                remedy = "Make one element with direction both of the two" + accept
            if harmful:
                impact = self._harm(elements[arc] for arc in circle)
            elif all(elements[arc].kind == "log" for arc in circle):
                impact = "Every line comes back to the log that it is from and is appended again, without end."
            else:
                level = "warning"
                impact = (
                    "Nothing is overwritten or deleted, but what is removed at one place comes back from the others."
                )
        yield from self._finding(level, kind, (what + text, impact, remedy), members, reasons)

    @staticmethod
    def _harm(elements: Iterable[Element]) -> str:
        if any(element.deletes for element in elements):
            return (
                "Edits and deletions go round: which version stands, and whether a deleted file is gone or comes back, "
                "depends on which job runs first."
            )
        return (
            "Edits go round: which version stands depends on which job runs first, and what is removed at one place "
            "comes back from the others."
        )

    def _way(self, circle: Sequence[int], by: str) -> str:
        """The places of a circle, or of a chain whose end is not its beginning."""
        arcs = [self.fleet.arcs[arc] for arc in circle]
        text = arcs[0].names[0]
        for number, arc in enumerate(arcs):
            if len(arcs) > 2 * _NAMED and _NAMED <= number < len(arcs) - 2:
                text += by + "%d more" % (len(arcs) - 2 - _NAMED) if number == _NAMED else ""
                continue
            text += by + arc.names[1] + self._related(arc, arcs[(number + 1) % len(arcs)])
        return text

    def _related(self, arc: Arc, following: Arc) -> str:
        """How a target is a part of the source of what follows, where it is not just that."""
        if arc.names[1] == following.names[0]:
            return ""
        how = "the same as" if arc.target == following.source else ""
        how = how or ("inside" if following.source in dict(self.fleet.above[arc.target]) else "")
        how = how or ("around" if arc.target in dict(self.fleet.above[following.source]) else "")
        return " (%s %s)" % (how, following.names[0]) if how else ""

    # Chains.

    def _chains(self) -> Iterator[Finding]:
        """For each place that passes on what it gets: one way through it."""
        fleet = self.fleet
        coming: dict[int, list[int]] = {}
        leaving: dict[int, list[int]] = {}
        for number, arc in enumerate(fleet.arcs):
            if arc.source not in self.troubled and arc.target not in self.troubled:
                coming.setdefault(arc.target, []).append(number)
                leaving.setdefault(arc.source, []).append(number)
        below: dict[int, list[tuple[int, str]]] = {}
        for place, holders in enumerate(fleet.above):
            for holder, path in holders:
                if place in coming and holder in leaving:
                    below.setdefault(holder, []).append((place, path))
        for place in sorted(leaving):
            pairs = self._passed_on(place, coming, leaving[place], below.get(place, ()))
            first = next(pairs, None)
            if first:
                yield from self._chain(first)

    def _passed_on(
        self,
        place: int,
        coming: Mapping[int, Sequence[int]],
        leaving: Sequence[int],
        below: Sequence[tuple[int, str]],
    ) -> Iterator[tuple[int, int]]:
        fleet = self.fleet
        near = [(place, "", False)]
        near += [(holder, path, True) for holder, path in fleet.above[place] if holder in coming]
        near += [(one, path, False) for one, path in below]
        following = self._few(leaving)
        for target, path, outer in near:
            for arc in self._few(coming.get(target, ())):
                for other in following:
                    pair = fleet.arcs[arc].element, fleet.arcs[other].element
                    outside, inside = (fleet.elements[one].filters for one in (pair if outer else pair[::-1]))
                    hidden = path and hides(outside, path)
                    if pair[0] != pair[1] and not hidden and not apart(outside, inside, path):
                        yield arc, other

    def _few(self, arcs: Iterable[int]) -> list[int]:
        """Enough of the arcs that meet in a place to find two that go on from one another: two of each filter."""
        few: dict[Filters, list[int]] = {}
        for arc in arcs:
            filters = self.fleet.elements[self.fleet.arcs[arc].element].filters
            some = few.setdefault(filters, []) if filters in few or len(few) < MOST_FILTERS else []
            if len(some) < 2:
                some.append(arc)
        return [arc for some in few.values() for arc in some]

    def _chain(self, pair: tuple[int, int]) -> Iterator[Finding]:
        fleet = self.fleet
        elements = [fleet.elements[fleet.arcs[arc].element] for arc in pair]
        arcs = [fleet.arcs[arc] for arc in pair]
        members = [element.member for element in elements]
        through = arcs[0].names[1] + self._related(arcs[0], arcs[1])
        way = " -> ".join((arcs[0].names[0], through, arcs[1].names[1]))
        periods = [_schedule.seconds_of(str(element.period)) if element.period else 0 for element in elements]
        most = ", up to %s" % _schedule.duration_of(sum(periods)) if all(periods) else ""
        texts = (
            "A chain: %s, %s." % (way, _jobs(members)),
            "An edit is at the end only after the jobs have run one after the other: their delays add up%s." % most,
            "Where that is too late, let the first place be the source of both.",
        )
        yield from self._finding("info", "chain", texts, members)


# --- the graph -------------------------------------------------------------------------------------------------


def _graph(fleet: Fleet, red: Collection[int]) -> dict[str, Any]:
    """Places, the elements between them, and which place holds which; `circle` marks what is part of a circle."""
    elements = {fleet.arcs[arc].element for arc in red}
    places = {place for arc in red for place in (fleet.arcs[arc].source, fleet.arcs[arc].target)}
    edges = []
    for number, element in enumerate(fleet.elements):
        arc = fleet.arcs[element.arcs[0]]
        edge = dict(element.member._asdict(), source=arc.source, target=arc.target, both=element.both)
        edges.append(dict(edge, kind=element.kind, circle=number in elements))
    return {
        "places": [
            {"id": place.number, "server": place.server, "path": place.path, "circle": place.number in places}
            for place in fleet.places
        ],
        "edges": edges,
        "inside": [{"inner": place, "outer": holders[0][0]} for place, holders in enumerate(fleet.above) if holders],
    }
