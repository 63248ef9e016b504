# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stops a plan before its first action. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Optional, Union

from serversync.display import size
from serversync.entry import HERE, Entry, Row
from serversync.job import amount
from serversync.reconcile import OTHER, SIDES, Decision, Plan, Seen, Triple, base_of, half_of

# A share of few paths is soon reached by everyday work.
FEWEST = 10
# Within this time (ns) what is written comes to the disk, unless a kernel was told otherwise: 30 s are Linux' own.
WRITTEN_BACK = 120 * 10**9
Limit = Optional[Union[str, int]]


def tripped(plan: Plan, rows: int, max_delete: Limit, max_change: Limit, zeroed: int) -> list[str]:
    """Why the plan must not begin without a person's word; empty: it may.

    rows: paths in the archive; the limits: ``"25%"`` of these but never less than 10, a number, or None: no limit;
    zeroed: of the files to be overwritten those that become nothing but zeros. They and the ones that become empty
    count even without a limit: then by the one that deletions have.
    """
    deleted = sum(one.remove is not None for one in plan.decisions)
    changed = sum(overwrites(one) for one in plan.decisions)
    emptied = sum(empties(one) for one in plan.decisions) + zeroed
    found = []
    most = limit(max_delete, rows)
    if most is not None and deleted > most:
        found.append(f"{deleted} paths would be deleted, more than the {most} that max_delete ({max_delete}) allows")
    most = limit(max_change, rows)
    if most is not None and changed > most:
        found.append(
            f"{changed} files would be overwritten, more than the {most} that max_change ({max_change}) allows"
        )
    elif max_change is None and (most := limit(max_delete, rows)) is not None and emptied > most:
        found.append(f"{emptied} files would become empty or zeros, more than {most}: contents look lost")
    return found


def limit(text: Limit, rows: int) -> int | None:
    """The number of paths, a share rounded down; None: there is no limit."""
    if text is None or text == "100%":
        return None
    number = amount(str(text), rows)
    return max(FEWEST, number) if str(text).endswith("%") else number


def versions(decision: Decision) -> tuple[Seen, Seen]:
    """What comes, and what it displaces."""
    return (decision.here, decision.there) if decision.content == HERE else (decision.there, decision.here)


def overwrites(decision: Decision) -> bool:
    """Whether contents on a replica are replaced by others."""
    if decision.content is None:
        return False
    coming, displaced = versions(decision)
    return isinstance(displaced, Entry) and isinstance(coming, Entry) and {coming.kind, displaced.kind} != {"d"}


def empties(decision: Decision) -> bool:
    found = files(decision)
    return found is not None and found[0].size == 0


def files(decision: Decision) -> tuple[Entry, Entry] | None:
    """The file that comes and the one with contents that it displaces, if the decision is of such."""
    coming, displaced = versions(decision)
    if decision.content is None or not isinstance(coming, Entry) or not isinstance(displaced, Entry):
        return None
    return (coming, displaced) if coming.kind == displaced.kind == "f" and displaced.size else None


def replacements(plan: Plan) -> list[Decision]:
    """The decisions by which a file goes over one with contents; a first copy has many, and none of these."""
    return [one for one in plan.decisions if one.content and one.here and one.there and files(one)]


def readable(plan: Plan, rows: int, max_delete: Limit, max_change: Limit) -> list[Decision]:
    """The decisions of which ``tripped`` has to know whether zeros come; none where they could not stop the plan."""
    most = limit(max_delete, rows)
    if max_change is not None or most is None:
        return []
    coming = replacements(plan)
    return [one for one in coming if not empties(one)] if len(coming) > most else []


def last_change(triples: Iterable[Triple], side: str, booted: int) -> int:
    """The last change on the side, of those given, before its server was booted (ns since the epoch)."""
    entries = (triple.here if side == HERE else triple.there for triple in triples)
    return max((one.ctime for one in entries if isinstance(one, Entry) and one.ctime < booted), default=0)


def doubted(decision: Decision, row: Row | None, booted: int, last: int) -> bool:
    """Whether what comes would, if it is empty or all zeros, rather be lost than meant.

    booted, last: of the server that it comes from, see ``last_change``: what was changed shortly before may never have
    come to the disk. A path of which that was said stays in doubt until a person decides, or until it has contents.
    """
    if row is None or files(decision) is None or decision.content is None:
        return False
    coming, _displaced = versions(decision)
    old = base_of(row)[SIDES.index(decision.content)] if row.base else half_of(row, decision.content)
    if not isinstance(coming, Entry) or old is None or old.kind != "f" or not old.size:
        return False
    if row.status == "unresolved" and row.by == "guard":
        return True
    crashed = last - WRITTEN_BACK <= coming.ctime < booted and coming.ctime != old.ctime
    return crashed or coming.mtime == old.mtime


class Room(NamedTuple):
    """What a plan takes of a target's file system: bytes of the files that arrive, inodes, and the files' paths."""

    size: int
    inodes: int
    files: list[bytes]

    def beside(self, other: Room) -> Room:
        """Both on one file system."""
        return Room(self.size + other.size, self.inodes + other.inodes, [*self.files, *other.files])


def room(decisions: Iterable[Decision], side: str, groups: Mapping[bytes, frozenset[bytes]]) -> Room:
    """What is needed on the side before anything is given back: every file arrives whole, beside the one that it is to
    replace, and what is replaced or deleted goes to versions. groups: the hard links of the other side."""
    total, files, arriving, removed = 0, [], set(), set()
    # Directories in which something arrives, or of which something goes to versions.
    stage: set[bytes] = set()
    kept: set[bytes] = set()
    led: set[frozenset[bytes]] = set()
    source = OTHER[side]
    for one in decisions:
        if one.content == source:
            coming, present = (one.here, one.there) if source == HERE else (one.there, one.here)
            directory = one.path.rpartition(b"/")[0]
            if present is not None:
                kept.add(directory)
            group = groups.get(one.path)
            if group in led:
                continue
            if group is not None:
                led.add(group)
            arriving.add(one.path)
            stage.add(directory)
            if isinstance(coming, Entry) and coming.kind == "f":
                total += coming.size
                files.append(one.path)
        elif one.remove == side:
            removed.add(one.path)
            kept.add(one.path.rpartition(b"/")[0])
    inodes = len(arriving) + len(ways(stage) - arriving) + len(ways(kept) - removed)
    return Room(total, inodes, files)


def ways(directories: Iterable[bytes]) -> set[bytes]:
    """These and all that they are in, the root left out."""
    found: set[bytes] = set()
    for directory in directories:
        while directory and directory not in found:
            found.add(directory)
            directory = directory.rpartition(b"/")[0]
    return found


def fits(need: Room, free: Mapping[str, int]) -> bool:
    return need.size <= free["free_bytes"] and need.inodes <= free["free_inodes"]


def lacking(need: Room, free: Mapping[str, int]) -> str:
    """What there is too little of."""
    if need.size > free["free_bytes"]:
        return f"{size(need.size)} would arrive, {size(free['free_bytes'])} are free"
    return f"{need.inodes} files and directories would be made, there are inodes for {free['free_inodes']}"
