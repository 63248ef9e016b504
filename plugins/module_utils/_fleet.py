# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""Servers and their jobs as places and what leads from one to another. Pure: data in, data out.

A place is a path on a machine. An element makes one arc from its source to its target, with direction both two.
"""

from __future__ import annotations

import contextlib
import fnmatch
import ipaddress
import re
from typing import Any, Iterator, Mapping, NamedTuple, Sequence, Tuple

from ._settings import settings_of

_LOOPBACK = ("localhost", "ip6-localhost", "::1")


class Server(NamedTuple):
    """A server, its jobs in normal form, and what is known of it.

    aliases   further names by which other servers' jobs may call it, NAME or NAME:PORT
    machine   its machine id; None: not known
    partners  what its own jobs may call another server (the name of a pairing) -> its host
    places    a path on it -> (file system, path there), through links and mounts; None: not known
    """

    name: str
    jobs: Sequence[Mapping[str, Any]] = ()
    aliases: Sequence[str] = ()
    machine: str | None = None
    partners: Mapping[str, str] = {}
    places: Mapping[str, tuple[str, str]] = {}


class Member(NamedTuple):
    """An element of a job of a server."""

    server: str
    job: str
    element: int


def host_key(host: str) -> str:
    """One spelling of a host; an IPv6 address has many."""
    if ":" in host:
        with contextlib.suppress(ValueError):
            return str(ipaddress.IPv6Address(host))
    return host.lower().rstrip(".")


class Place:
    """A path on a machine, by whatever names."""

    __slots__ = ("number", "path", "server", "source", "system", "target")

    def __init__(self, number: int, server: str, path: str, system: str) -> None:
        self.number = number
        self.server = server
        self.path = path
        self.system = system
        self.source = False
        self.target = False


class Element:
    __slots__ = ("accepted", "arcs", "both", "deletes", "filters", "kind", "member", "overwrites", "period", "settings")

    def __init__(self, member: Member, job: Mapping[str, Any], element: Mapping[str, Any]) -> None:
        settings = settings_of(job, element)
        self.member = member
        self.settings = settings
        self.kind = element.get("kind", "tree")
        self.both = settings["direction"] == "both"
        self.accepted = job.get("accept_circular")
        tree = self.kind == "tree"
        # a guard at 0 lets none pass that nobody has approved
        self.deletes = tree and settings["delete"] != "never" and settings.get("max_delete") != "0"
        self.overwrites = tree and settings.get("max_change") != "0"
        include, exclude = settings.get("include", ()), settings.get("exclude", ())
        self.filters: Filters = (tuple(include), tuple(exclude)) if tree and (include or exclude) else ((), ())
        self.period = (job.get("schedule") or {}).get("every")
        self.arcs: list[int] = []


class Arc(NamedTuple):
    """From a place to a place; `names` are the paths as the job spells them."""

    element: int
    source: int
    target: int
    names: tuple[str, str]


class Fleet:
    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = servers
        self.places: list[Place] = []
        self.elements: list[Element] = []
        self.arcs: list[Arc] = []
        self.unknown: dict[str, None] = {}
        self.same: list[tuple[str, str]] = []
        #: (machine, file system) -> path -> place; the file system of a path as it is spelled is ''
        self._spots: dict[tuple[str, str], dict[str, int]] = {}
        self._by_name: dict[str, int] = {}
        self._machines: list[str] = []
        self._facts: dict[str, Mapping[str, tuple[str, str]]] = {}
        self._label: dict[str, str] = {}
        self._name_servers()
        for number, server in enumerate(servers):
            for job in sorted(server.jobs, key=lambda job: str(job["name"])):
                self._add_job(number, server, job)
        self.above = self._ancestors()

    def _name_servers(self) -> None:
        known: dict[str, int] = {}
        for number, server in enumerate(self.servers):
            first = known.setdefault(server.machine, number) if server.machine else number
            if first != number:
                self.same.append((self.servers[first].name, server.name))
            machine = "=" + self.servers[first].name
            self._machines.append(machine)
            self._label.setdefault(machine, self.servers[first].name)
            self._facts[machine] = dict(self._facts.get(machine, {}), **server.places)
            for name in (server.name, *server.aliases):
                self._by_name.setdefault(host_key(name), number)

    def _partner(self, number: int, server: Server, partner: Mapping[str, Any]) -> str:
        """The machine that a job's partner is."""
        if partner.get("connection") == "local":
            return self._machines[number]
        told, port = partner["host"], partner.get("port") or 22
        host = host_key(server.partners.get(told) or told)
        exact = "%s:%d" % (host, port)
        for name in (exact, host, host_key(told)):
            if name in self._by_name:
                return self._machines[self._by_name[name]]
        loopback = host in _LOOPBACK or re.fullmatch(r"127(\.[0-9]{1,3}){1,3}", host) is not None
        if loopback and port == 22:
            return self._machines[number]
        # behind another port may be another server: one that a tunnel or a router leads to
        label = host if port == 22 else exact
        machine = "?%s" % label + (" of %s" % server.name if loopback else "")
        self._label[machine] = label
        self.unknown[label] = None
        return machine

    def _place(self, machine: str, path: str) -> int:
        spelled = self._spots.setdefault((machine, ""), {})
        number = spelled.get(path)
        if number is not None:
            return number
        system, at = self._real(machine, path)
        if system:
            number = self._spots.setdefault((machine, system), {}).get(at)
        if number is None:
            number = len(self.places)
            self.places.append(Place(number, self._label[machine], path, system))
        spelled[path] = number
        if system:
            self._spots[machine, system][at] = number
        return number

    def _real(self, machine: str, path: str) -> tuple[str, str]:
        """The file system of a path and where it is there, as far as is known of it or of a directory above."""
        facts = self._facts.get(machine)
        for root in _upwards(path) if facts else ():
            if facts and root in facts:
                system, at = facts[root]
                return system, at.rstrip("/") + path[len(root.rstrip("/")) :] or "/"
        return "", path

    def _add_job(self, number: int, server: Server, job: Mapping[str, Any]) -> None:
        partner = self._partner(number, server, job["partner"])
        for index, entry in enumerate(job["elements"]):
            element = Element(Member(server.name, job["name"], index), job, entry)
            here, there = entry["path"], entry.get("partner_path") or entry["path"]
            ways = [(self._machines[number], here), (partner, there)]
            if element.settings["direction"] == "from_partner":
                ways.reverse()
            ends = [self._place(*way) for way in ways]
            for one, other in ((0, 1), (1, 0)) if element.both else ((0, 1),):
                element.arcs.append(len(self.arcs))
                names = (self._named(*ways[one]), self._named(*ways[other]))
                self.arcs.append(Arc(len(self.elements), ends[one], ends[other], names))
                self.places[ends[one]].source = True
                self.places[ends[other]].target = True
            self.elements.append(element)

    def _named(self, machine: str, path: str) -> str:
        return "%s:%s" % (self._label[machine], path)

    def _ancestors(self) -> list[list[tuple[int, str]]]:
        """For each place the places that hold it, nearest first, and its path in them."""
        above: list[dict[int, str]] = [{} for _place in self.places]
        for spots in self._spots.values():
            for path, number in spots.items():
                at = path.rfind("/")
                while at > 0:
                    root = path[:at]
                    if root in spots:
                        self._lies_in(above, number, spots[root], path[at + 1 :])
                    at = path.rfind("/", 0, at)
                if "/" in spots and path != "/":
                    self._lies_in(above, number, spots["/"], path[1:])
        return [sorted(one.items(), key=lambda item: (len(item[1]), item[0])) if one else [] for one in above]

    def _lies_in(self, above: Sequence[dict[int, str]], place: int, holder: int, path: str) -> None:
        systems = {self.places[holder].system, self.places[place].system}
        # a run stays on its root's file system
        if holder != place and ("" in systems or len(systems) == 1):
            above[place].setdefault(holder, path)


def _upwards(path: str) -> Iterator[str]:
    """A path and the directories above it, / last."""
    yield path
    at = path.rfind("/")
    while at > 0:
        yield path[:at]
        at = path.rfind("/", 0, at)
    yield "/"


# --- what filters keep apart -----------------------------------------------------------------------------------

Filters = Tuple[Tuple[str, ...], Tuple[str, ...]]  # include and exclude
_WILD = frozenset("*?[\\!")


def _matches(pattern: str, path: str, file: bool = False) -> bool:
    """Whether a pattern of gitignore certainly matches a path or what it is in; of '**' nothing is certain."""
    # with a slash at its end it matches directories only
    names = path.split("/")[: -1 if file and pattern.endswith("/") else None]
    body = pattern.rstrip("/")
    if "\\" in body or "**" in body:
        return False
    if "/" not in body:
        return any(fnmatch.fnmatchcase(name, body) for name in names)
    wanted = body.lstrip("/").split("/")
    return len(wanted) <= len(names) and all(map(fnmatch.fnmatchcase, names, wanted))


def hides(filters: Filters, path: str, file: bool = False) -> bool:
    """Whether the filters of an element certainly leave out a path below it, with all that is in it."""
    include, exclude = filters
    exceptions = any(pattern.startswith("!") for pattern in exclude)
    if not exceptions and any(_matches(pattern, path, file) for pattern in exclude):
        return True
    anchored = [pattern.strip("/") for pattern in include]
    certain = all("/" in one.rstrip("/") and not _WILD & set(one) for one in include)
    return bool(include) and certain and not any(_meet(one, path) for one in anchored)


def _meet(one: str, other: str) -> bool:
    return (one + "/").startswith(other + "/") or (other + "/").startswith(one + "/")


def apart(one: Filters, other: Filters, path: str = "") -> bool:
    """Whether two elements take certainly no file both, of one place or the other at `path` in the one."""
    included = [pair[0] if all(_floats(pattern, path) for pattern in pair[0]) else () for pair in (one, other)]
    if any(_matches(pattern, path) for pattern in included[0] if path):
        # all below is included
        included[0] = ()
    for patterns, exclude in zip(included, (other[1], one[1])):
        if patterns and not any(pattern.startswith("!") for pattern in exclude) and set(patterns) <= set(exclude):
            return True
    return all(included) and all(_differ(a, b) for a in included[0] for b in included[1])


def _floats(pattern: str, path: str) -> bool:
    """Whether a pattern says the same from a root and, where there is a path, from another one there."""
    return not path or not ("/" in pattern or "\\" in pattern or "**" in pattern)


def _differ(one: str, other: str) -> bool:
    """Whether two patterns match nothing both, for endings of names and for paths from the root."""
    if one[:1] == other[:1] == "*":
        ends = one[1:], other[1:]
        if any(_WILD & set(end) or "/" in end for end in ends):
            return False
        return not (ends[0].endswith(ends[1]) or ends[1].endswith(ends[0]))
    if one[:1] == other[:1] == "/" and not _WILD & set(one + other):
        return not _meet(one.strip("/"), other.strip("/"))
    return False
