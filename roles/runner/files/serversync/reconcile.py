# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reconciliation: from what is on both replicas and what the archive has, what to do. Pure and deterministic.

Every path is first decided by itself, parents before children, because a directory on one side against something else
on the other, and what could not be read, take along what is below them. Then, children before parents, directories
follow from what stays or arrives in them. Last come names that a replica cannot hold: they are taken out, and all of
it is decided once more.
"""

from __future__ import annotations

import re
import time
import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, NamedTuple, Union

from serversync.entry import HERE, THERE, Entry, Row, nanoseconds, unpack

SIDES = (HERE, THERE)
OTHER = {HERE: THERE, THERE: HERE}
SERVERS = {HERE: "this server", THERE: "the partner"}
OWNERS = {HERE: "this server's", THERE: "the partner's"}
BOTH = "both"
# A conflict copy, by its name.
COPY = re.compile(rb"\.conflict-[^/]+-[0-9]{8}T[0-9]{6}Z(-[0-9]+)?(\.[^./]*)?(/|$)")
# The last second of the year 9999, which is as far as a copy's name tells the time.
LAST_SECOND = 253_402_300_799


class Unknown(NamedTuple):
    """What could not be seen, which is not the same as absent."""

    reason: str


# None: absent.
Seen = Union[Entry, Unknown, None]


class Triple(NamedTuple):
    """A path on both replicas, and its row of the archive. Of regular files ``digest`` is there once asked for."""

    path: bytes
    here: Seen
    there: Seen
    row: Row | None


@dataclass(frozen=True)
class Owners:
    """Numbers of one server's users and groups -> the other's; what is missing keeps its number."""

    users: Mapping[int, int]
    groups: Mapping[int, int]


@dataclass(frozen=True)
class Rules:
    """What decides, beside the replicas themselves.

    direction, conflict, delete, preserve: option values; to_there, to_here: owners of the one replica as numbers of the
    other; granularity: the coarser time stamp of the two, ns; skew: measured difference of the clocks, ns; deletions:
    whether anything may be deleted in this run; reopened: of "conflict" and "delete" what was edited since the last
    run; one_file: the element is a file; names: per side the server as conflict copies are named after it; name_max:
    bytes that a name may have on both; folding: per side what its names are compared without, "case" or
    "normalization"; verify: contents are compared whatever size and time say; groups: per side, and as ``base_here``
    and ``base_there`` of the archive, path -> all names of its file, of files with several; suspicious: contents that
    may be a crash's work; decided: path -> HERE, THERE or "both", as a person has named it.
    unseen: paths of which, and of what is below them, the archive knows nothing, though it is not new: nothing is
    deleted there either.
    added: of ``preserve`` what was not preserved in the last run, which is given every path; occupied: paths of
    conflict copies that are on a replica though no triple is given.
    """

    direction: str
    conflict: str
    delete: str
    preserve: frozenset[str]
    to_there: Owners
    to_here: Owners
    granularity: int
    skew: int
    deletions: bool
    reopened: frozenset[str]
    one_file: bool
    names: Mapping[str, str]
    name_max: int
    folding: Mapping[str, frozenset[str]]
    verify: bool
    groups: Mapping[str, Mapping[bytes, frozenset[bytes]]]
    suspicious: frozenset[bytes]
    decided: Mapping[bytes, str]
    added: frozenset[str] = frozenset()
    occupied: frozenset[bytes] = frozenset()
    unseen: frozenset[bytes] = frozenset()


class Decision(NamedTuple):
    """What is to be done with a path.

    row: of the tables, "0" to "13" and of those for both directions "b1" to "b8"; what: new, update, metadata, delete,
    conflict (a rule decided, and something moves), kept, left, unresolved, unknown, equal, dropped.
    content, metadata: the replica whose content or metadata is put on the other, which keeps its own metadata where
    ``metadata`` names it; times belong to the content where that moves or differs. remove: where the path is deleted.
    aside: the name that the losing version gets on its own replica before the winning one arrives there; its own
    decision under that name says what becomes of it.
    status: what the archive says afterwards, with the entries as they are then: agreed, kept, left, unresolved,
    dropped, or "unchanged"; by: the setting that decided what is not agreed; empty: that follows from other paths, and
    is decided again whenever it is given. here, there: as seen, and so expected when it is done.
    """

    path: bytes
    row: str
    what: str
    content: str | None
    metadata: str | None
    remove: str | None
    aside: bytes
    status: str
    by: str
    reason: str
    here: Seen
    there: Seen


@dataclass
class Plan:
    """Decisions by path; what is equal and exactly as archived has none. needs: paths whose contents must be known."""

    decisions: list[Decision]
    needs: list[bytes] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


Item = tuple[bytes, bytes, bytes]
# Behind the end of the listings and of the rows.
NO_ITEM: Any = (None, None, b"")
NO_ROW: Any = (None, "", None, b"", None, b"", b"", "", "")
UNSEEN = Unknown("could not be read")
ONCE_APPROVED = "would be deleted, once it is approved"


def moved(
    here: Iterable[Item], there: Iterable[Item], rows: Iterable[Row], restamped: Restamped | None = None
) -> Iterator[Triple]:
    """Every path that is not exactly as archived, or not agreed, or of which a half is racy.

    All three sorted by path as bytes, none twice. here, there: (path, record, more); an empty record: the path could
    not be seen. restamped: takes what needs no decision, and then has no triple. Raises ValueError on what is no
    record.
    """
    here_items: Iterator[Any] = chain(here, repeat(NO_ITEM))
    there_items: Iterator[Any] = chain(there, repeat(NO_ITEM))
    all_rows: Iterator[Any] = chain(rows, repeat(NO_ROW))
    while True:
        for mine, other, row in zip(here_items, there_items, all_rows):
            path, status, record, more, record_there, more_there, _base, racy, _by = row
            if (
                mine != (path, record, more)
                or other != (path, record_there, more_there)
                or status != "agreed"
                or racy
                or path is None
            ):
                break
        # From where they are no longer alike, by hand until all three are at the same path again.
        while True:
            paths = [one for one in (mine[0], other[0], row[0]) if one is not None]
            if not paths:
                return
            path = min(paths)
            found = mine if mine[0] == path else None
            found_there = other if other[0] == path else None
            old = Row(*row) if row[0] == path else None
            still = old is not None and old.status == "agreed" and not old.racy and as_archived(found, found_there, old)
            if not still and not (
                restamped and old and found and found_there and restamped.take(found, found_there, old)
            ):
                yield Triple(path, seen(found), seen(found_there), old)
            if found and found_there and old:
                break
            if found:
                mine = next(here_items, NO_ITEM)
            if found_there:
                other = next(there_items, NO_ITEM)
            if old:
                row = next(all_rows, NO_ROW)


class Restamped:
    """Rows of paths of which nothing but ctime moved, as when a backup links every file: most need no decision.

    moments: per side (here, there), from when on (ns) an entry may change once more without its ctime telling.
    """

    def __init__(self, moments: tuple[int, int]) -> None:
        self.moments = moments
        self.rows: list[Row] = []

    def take(self, here: Item, there: Item, row: Row) -> bool:
        """Keeps the row with the entries as they are now, if there is nothing to decide."""
        if row.status != "agreed" or row.racy or row.here is None or row.there is None:
            return False
        halves = []
        sides = ((here, row.here, row.here_more), (there, row.there, row.there_more))
        for (_path, record, more), known, known_more in sides:
            # Attributes may be others with the same ctime: what was set came out otherwise, or in the same moment.
            if not same_more(more, known_more):
                return False
            if record == known:
                halves.append((known, known_more))
                continue
            now, before = record.split(b" ", 9), known.split(b" ", 9)
            # KIND INODE CTIME MTIME SIZE MODE UID GID NLINK LINK; other names of a file may have come or gone with it.
            if len(now) != len(before) or now[:2] != before[:2] or now[3:] != before[3:] or not alone(now):
                return False
            if nanoseconds(now[2]) >= self.moments[len(halves)]:
                return False
            halves.append((record, more))
        (mine, mine_more), (other, other_more) = halves
        self.rows.append(row._replace(here=mine, here_more=mine_more, there=other, there_more=other_more))
        return True


def alone(record: list[bytes]) -> bool:
    return record[0] == b"d" or record[8] == b"1"


def as_archived(here: Item | None, there: Item | None, row: Row) -> bool:
    for item, record, more in ((here, row.here, row.here_more), (there, row.there, row.there_more)):
        if (item[1] if item else None) != record:
            return False
        if item and not same_more(item[2], more):
            return False
    return True


def same_more(now: bytes, archived: bytes) -> bool:
    """A listing has no digests of contents; the archive has those that were asked for."""
    return now == archived or now.rpartition(b" ")[0] == nothing_more(archived.rpartition(b" ")[0])


def nothing_more(more: bytes) -> bytes:
    """RDEV XATTRS of an archived ``more``; empty where a listing would say nothing."""
    return b"" if more == b"0 " else more


def seen(item: Item | None) -> Seen:
    if item is None:
        return None
    return Entry.parse(item[1], item[2]) if item[1] else UNSEEN


def deep(triple: Triple) -> bool:
    """Whether every archived path below must be given: a directory on one side only, which may go with all of it."""
    return triple.row is not None and is_directory(triple.here) != is_directory(triple.there)


def reconcile(triples: Iterable[Triple], rules: Rules) -> Plan:
    """The plan for all paths that are not as archived.

    They are given with every directory that they are in, with what is below those that are ``deep``, and with all
    that was archived as neither agreed nor decided by a setting (``Row.by`` empty).
    Contents are compared by ``Entry.digest``: where that is lacking and matters the path is in ``needs`` and has no
    decision; fill the digests of both entries and call again.
    """
    return Reconciliation(triples, rules).plan()


class Half(NamedTuple):
    """What of a path moved since its half of a pair.

    doubt: contents may have moved without a trace; replaced: another inode, with the size and time of the old one;
    relinked: other names are names of its file, which is metadata where contents are equal and else comes with them.
    """

    content: bool
    metadata: bool
    doubt: bool = False
    replaced: bool = False
    relinked: bool = False


STILL = Half(False, False)
MOVED = Half(True, True)


class Taken(NamedTuple):
    """What a directory's decision means for the paths below it.

    do: ``unknown``, ``stay`` (nothing moves; status), ``comes`` (they are copied from ``side``), ``goes`` (they are
    deleted on ``side``), ``aside`` (they have gone with their directory on ``side``, which is ``to`` now).
    """

    do: str
    top: bytes
    row: str
    reason: str
    side: str = ""
    status: str = ""
    to: bytes = b""


class Outcome(NamedTuple):
    """Whose content or metadata it is to be. side: HERE, THERE, BOTH, or None: unresolved; ruled: a rule decided."""

    side: str | None
    ruled: bool
    row: str
    reason: str


def parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def of(one: Triple | Decision, side: str) -> Seen:
    return one.here if side == HERE else one.there


def is_directory(entry: Seen) -> bool:
    return isinstance(entry, Entry) and entry.kind == "d"


class Reconciliation:
    """One plan in the making."""

    def __init__(self, triples: Iterable[Triple], rules: Rules) -> None:
        self.rules = rules
        self.given = {triple.path: triple for triple in triples}
        self.paths = sorted(self.given)
        self.both = rules.direction == BOTH
        # Without a source: the replica whose version keeps its name where both are kept.
        self.source = THERE if rules.direction == "from_partner" else HERE
        self.target = OTHER[self.source]
        preserve = rules.preserve
        self.times = "times" in preserve
        self.permissions = "permissions" in preserve
        self.owner = "owner" in preserve
        self.group = "group" in preserve
        self.xattrs = bool(preserve & {"acls", "xattrs"})
        self.hardlinks = "hardlinks" in preserve and any(rules.groups.values())
        self.links = "links" in preserve
        self.restricted: dict[frozenset[bytes], frozenset[bytes] | None] = {}
        # Names that a replica cannot hold -> why.
        self.impossible: dict[bytes, str] = {}

    def plan(self) -> Plan:
        while True:
            self.needs: list[bytes] = []
            self.decisions: dict[bytes, Decision] = {}
            self.taken: dict[bytes, Taken] = {}
            self.asides: dict[bytes, Taken] = {}
            self.reserved: set[bytes] = set()
            for path in self.paths:
                decision = self.decide(self.given[path])
                if decision is not None:
                    self.decisions[path] = decision
                    self.reserved.add(decision.aside)
            self.settle()
            impossible = self.names_impossible()
            if not impossible.keys() - self.impossible.keys():
                break
            self.impossible.update(impossible)
        decisions = [*self.decisions.values(), *self.copies()]
        decisions = [one for one in decisions if one.what != "equal" or one.status != "unchanged"]
        return Plan(sorted(decisions, key=lambda one: one.path), self.needs)

    # One path.

    def above(self, path: bytes) -> Taken | None:
        """What the directories above mean for the path."""
        while path and self.taken:
            path = parent(path)
            taken = self.taken.get(path)
            if taken is not None:
                return taken
            if path in self.given:
                return None
        return None

    def decide(self, triple: Triple) -> Decision | None:
        path, here, there, row = triple
        taken = self.above(path)
        if taken is not None:
            self.taken[path] = taken
        if isinstance(here, Unknown):
            return self.unseen(triple, f"{OWNERS[HERE]}: {here.reason}")
        if isinstance(there, Unknown):
            return self.unseen(triple, f"{OWNERS[THERE]}: {there.reason}")
        if taken is not None and taken.do == "unknown":
            return self.unseen(triple, taken.reason)
        if here is None and there is None:
            if row is None:
                return None
            return self.make(triple, "b7" if self.both else "12", "dropped", "dropped", "gone on both")
        if self.rules.one_file and not path:
            return None
        if path in self.impossible:
            return self.stay(triple, "unresolved", "", self.impossible[path])
        if taken is not None:
            return self.follow(triple, taken)
        if not self.links and (kind_of(here) == "l" or kind_of(there) == "l"):
            return self.stay(triple, "left", "", "symbolic links are not preserved")
        settled = self.settled_before(triple)
        if settled is not None:
            return settled
        decision = self.judge(triple)
        if decision is not None:
            decision = self.restrain(triple, decision)
            if here is not None and there is not None and (here.kind == "d") != (there.kind == "d"):
                decision = self.take_along(triple, decision)
        return decision

    def make(
        self,
        triple: Triple,
        row: str,
        what: str,
        status: str,
        reason: str,
        *,
        content: str | None = None,
        metadata: str | None = None,
        remove: str | None = None,
        aside: bytes = b"",
        by: str = "",
    ) -> Decision:
        return Decision(
            triple.path, row, what, content, metadata, remove, aside, status, by, reason, triple.here, triple.there
        )

    def unseen(self, triple: Triple, reason: str) -> Decision:
        self.taken[triple.path] = Taken("unknown", triple.path, "0", reason)
        return self.make(triple, "0", "unknown", "unchanged", reason)

    def stay(self, triple: Triple, status: str, by: str, reason: str, row: str = "") -> Decision:
        """Nothing moves, neither the path nor what is below it."""
        if not row:
            row = self.plain_row(triple)
        self.taken[triple.path] = Taken("stay", triple.path, row, reason, status=status)
        return self.as_before(triple, self.make(triple, row, status, status, reason, by=by))

    def plain_row(self, triple: Triple) -> str:
        """The table's row for a path that was never agreed."""
        if triple.here is not None and triple.there is not None:
            return "b4" if self.both else "11"
        if self.both:
            return "b1"
        return "2" if of(triple, self.source) is not None else "5"

    def as_before(self, triple: Triple, decision: Decision) -> Decision:
        """Row 13, where this was decided already and nothing has moved since."""
        row = triple.row
        if row is None or row.status != decision.status or row.status == "agreed" or row.by != decision.by:
            return decision
        # What is racy here is in nobody's way, and no longer racy once it was seen again.
        if not all(self.half(triple, side, half_of(row, side)) == STILL for side in SIDES):
            return decision
        exact = exactly(triple, row) and not row.racy
        return decision._replace(row="b8" if self.both else "13", status="unchanged" if exact else row.status)

    def settled_before(self, triple: Triple) -> Decision | None:
        row = triple.row
        if row is None or row.status == "agreed" or not row.by or row.by in self.rules.reopened:
            return None
        if triple.path in self.rules.decided:
            return None
        reason = "decided before, nothing moved since"
        if row.by == "guard" and None in (triple.here, triple.there):
            # Who approves a plan has to read in it what goes then.
            reason = ONCE_APPROVED
        decision = self.make(triple, "", row.status, row.status, reason, by=row.by)
        before = self.as_before(triple, decision)
        if not before.row:
            return None
        if is_directory(triple.here) != is_directory(triple.there) and triple.here and triple.there:
            self.taken[triple.path] = Taken("stay", triple.path, before.row, before.reason, status=row.status)
        return before

    def half(self, triple: Triple, side: str, old: Entry | None, racy: bool = False) -> Half:
        """What moved on the side since ``old``."""
        new = of(triple, side)
        assert not isinstance(new, Unknown)
        if new is None or old is None:
            return STILL if new is old else MOVED
        if new.kind != old.kind:
            return MOVED
        doubt = replaced = False
        if new.kind == "f":
            if new.digest and old.digest:
                content = new.digest != old.digest
            else:
                touched = new.size != old.size or new.mtime != old.mtime
                content = touched or new.inode != old.inode
                replaced = content and not touched
                doubt = racy and not content
                if self.rules.verify and of(triple, OTHER[side]) is None and new.ctime != old.ctime:
                    # There is nothing to compare it with, and it was touched.
                    content = True
        elif new.kind == "l":
            content = new.link != old.link
        else:
            content = new.rdev != old.rdev
        added = self.rules.added
        metadata = (
            (self.permissions and new.mode != old.mode and new.kind != "l" and "permissions" not in added)
            or (self.owner and new.uid != old.uid and "owner" not in added)
            or (self.group and new.gid != old.gid and "group" not in added)
            or (self.xattrs and new.xattrs != old.xattrs and not added & {"acls", "xattrs"})
            or (not content and self.times and new.kind == "f" and new.mtime != old.mtime and "times" not in added)
        )
        relinked = self.hardlinks and new.kind != "d" and self.relinked(triple.path, side)
        return Half(content, metadata, doubt, replaced, relinked)

    def relinked(self, path: bytes, side: str) -> bool:
        if "hardlinks" in self.rules.added:
            return False
        return self.names_of(side, path) != self.names_of(f"base_{'here' if side == HERE else 'there'}", path)

    def names_of(self, which: str, path: bytes) -> frozenset[bytes] | None:
        """The names of the path's file, of those that both replicas have; None: just this one."""
        group = self.rules.groups.get(which, {}).get(path)
        if group is None:
            return None
        if group not in self.restricted:
            names = frozenset(
                one
                for one in group
                if one not in self.given or (self.given[one].here is not None and self.given[one].there is not None)
            )
            self.restricted[group] = names if len(names) > 1 else None
        names_left = self.restricted[group]
        return names_left if names_left and path in names_left else None

    def same_content(self, triple: Triple) -> bool | None:
        """None: their digests are needed to know."""
        here, there = triple.here, triple.there
        assert isinstance(here, Entry) and isinstance(there, Entry)
        if here.kind != there.kind:
            return False
        if here.kind == "f":
            if here.size != there.size or here.size == 0:
                return here.size == there.size
            return here.digest == there.digest if here.digest and there.digest else None
        return here.link == there.link if here.kind == "l" else here.rdev == there.rdev

    def same_metadata(self, triple: Triple, *, times: bool, only: frozenset[str] | None = None) -> bool:
        """On the preserved fields; times: of files too, and names of the same file; only: of these alone."""
        here, there = triple.here, triple.there
        assert isinstance(here, Entry) and isinstance(there, Entry)
        rules = self.rules

        if only is None:
            only = rules.preserve
        if "permissions" in only and here.mode != there.mode and here.kind != "l":
            return False
        forth, back = rules.to_there, rules.to_here
        if "owner" in only and not self.same_owner(forth.users, back.users, here.uid, there.uid):
            return False
        if "group" in only and not self.same_owner(forth.groups, back.groups, here.gid, there.gid):
            return False
        if here.xattrs != there.xattrs and not only.isdisjoint(("acls", "xattrs")):
            return False
        if times and "times" in only and here.kind == "f":
            step = rules.granularity or 1
            if here.mtime // step != there.mtime // step:
                return False
        if times and self.hardlinks and "hardlinks" in only and here.kind != "d":
            return self.names_of(HERE, triple.path) == self.names_of(THERE, triple.path)
        return True

    def same_owner(self, forth: Mapping[int, int], back: Mapping[int, int], here: int, there: int) -> bool:
        if self.both:
            return forth.get(here, here) == there or back.get(there, there) == here
        return forth.get(here, here) == there if self.source == HERE else back.get(there, there) == here

    # By the tables.

    def judge(self, triple: Triple) -> Decision | None:
        """By the tables, whatever the paths around it are; None: contents must be known first."""
        row = triple.row
        pair: tuple[Entry | None, Entry | None] | None = None
        racy = ""
        if row is not None:
            if row.status == "agreed":
                pair, racy = (half_of(row, HERE), half_of(row, THERE)), row.racy
            elif row.status == "unresolved" and row.base:
                # That it came to this may have had a reason that no size and no time tells.
                pair, racy = base_of(row), "ht"
        if triple.here is None or triple.there is None:
            return self.one_sided(triple, pair, racy)
        if pair is None:
            changed = {HERE: MOVED, THERE: MOVED}
        else:
            changed = {
                HERE: self.half(triple, HERE, pair[0], "h" in racy),
                THERE: self.half(triple, THERE, pair[1], "t" in racy),
            }
        return self.two_sided(triple, changed, pair)

    def one_sided(self, triple: Triple, pair: tuple[Entry | None, Entry | None] | None, racy: str) -> Decision:
        path = triple.path
        side = HERE if triple.here is not None else THERE
        lacking = OTHER[side]
        rules = self.rules
        if pair is None or pair[0] is None or pair[1] is None:
            return self.only_there(triple, side)
        half = self.half(triple, side, pair[SIDES.index(side)], ("h" if side == HERE else "t") in racy)
        still = half == STILL
        named = self.named(path)
        deleted = f"deleted on {SERVERS[lacking]}"
        if not still:
            deleted = f"{deleted}, changed on {SERVERS[side]}"
        if not self.both and side == self.source:
            number = "3" if still else "4"
            if named is None:
                return self.make(triple, number, "unresolved", "unresolved", f"{deleted}: no rule", by="conflict")
            if named == lacking:
                reason = f"{deleted}: {SERVERS[lacking]} wins"
                return self.make(triple, number, "kept", "kept", reason, by="conflict")
            what = "new" if still else "conflict"
            return self.copy(triple, number, what, side, f"{deleted}: copied again")
        if still and path not in rules.decided:
            number = "b5" if self.both else "6"
            if rules.delete == "never":
                return self.make(triple, number, "left", "left", f"{deleted}, left as it is", by="delete")
            return self.make(triple, number, "delete", "dropped", deleted, remove=side)
        number = "b6" if self.both else "7"
        if rules.delete == "never" and path not in rules.decided:
            if self.both:
                return self.copy(triple, number, "conflict", side, f"{deleted}: copied again")
            return self.make(triple, number, "left", "left", f"{deleted}, left as it is", by="delete")
        if named is None:
            return self.make(triple, number, "unresolved", "unresolved", f"{deleted}: no rule", by="conflict")
        if named == lacking:
            reason = f"{deleted}: {SERVERS[lacking]} wins"
            return self.make(triple, number, "conflict", "dropped", reason, remove=side)
        if self.both:
            return self.copy(triple, number, "conflict", side, f"{deleted}: copied again")
        return self.make(triple, number, "kept", "kept", f"{deleted}: {SERVERS[side]} wins", by="conflict")

    def only_there(self, triple: Triple, side: str) -> Decision:
        """Rows 2 and 5 and b1: on one replica, never agreed."""
        rules, path, lacking = self.rules, triple.path, OTHER[side]
        decided = rules.decided.get(path)
        number = self.plain_row(triple)
        reason = f"new on {SERVERS[side]}"
        if self.both or side == self.source:
            if decided == lacking:
                if not self.both:
                    return self.make(triple, number, "kept", "kept", "not wanted on the target", by="conflict")
                return self.make(triple, number, "delete", "dropped", "not wanted", remove=side)
            return self.copy(triple, number, "new", side, reason)
        reason = f"only on {SERVERS[side]}"
        if decided == lacking or (rules.delete == "extraneous" and decided is None and not COPY.search(path)):
            return self.make(triple, number, "delete", "dropped", reason, remove=side)
        by = "conflict" if COPY.search(path) else "delete"
        return self.make(triple, number, "left", "left", reason, by=by)

    def copy(self, triple: Triple, row: str, what: str, side: str, reason: str) -> Decision:
        return self.make(triple, row, what, "agreed", reason, content=side, metadata=side)

    def named(self, path: bytes) -> str | None:
        """Who the rule names where one side has the path and the other deleted it; BOTH: whoever has it."""
        decided = self.rules.decided.get(path)
        if decided is not None:
            return decided
        rule = self.rules.conflict
        return {"this_server_wins": HERE, "partner_wins": THERE, "no_winner": None}.get(rule, BOTH)

    def two_sided(
        self, triple: Triple, changed: dict[str, Half], pair: tuple[Entry | None, Entry | None] | None
    ) -> Decision | None:
        """Rows 1 and 8 to 11, b2 to b4: on both replicas."""
        agreed = pair is not None
        path, rules = triple.path, self.rules
        here, there = triple.here, triple.there
        assert isinstance(here, Entry) and isinstance(there, Entry)
        mine, other = changed[HERE], changed[THERE]
        decided = path in rules.decided
        doubtful = mine.doubt or other.doubt or (rules.verify and here.kind == "f")
        same: bool | None
        if agreed and not (mine.content or other.content or doubtful):
            same = here.kind == there.kind
        else:
            same = self.same_content(triple)
            if same is None or (pair is not None and rules.verify and self.unread(triple, pair, changed)):
                one = mine if mine.content else other
                clean = agreed and not doubtful and mine.content != other.content and not one.replaced
                if not (clean and (self.both or mine.content == (self.source == HERE))) or decided:
                    self.needs.append(path)
                    return None
                same = False
        if same:
            content = None
        else:
            here_moved, there_moved = mine.content or mine.doubt, other.content or other.doubt
            if pair is not None and not (here_moved or there_moved):
                # Contents alone tell; which of them changed, the change time may.
                here_moved, there_moved = (
                    old is not None and new.ctime != old.ctime for new, old in zip((here, there), pair)
                )
            if decided:
                here_moved = there_moved = True
            content = self.whose(triple, here_moved, there_moved, agreed)
        metadata = self.metadata_outcome(triple, changed, agreed, same, content)
        if content is None and metadata is None:
            exact = agreed and triple.row is not None and triple.row.status == "agreed" and not triple.row.racy
            unchanged = exact and triple.row is not None and exactly(triple, triple.row)
            return self.make(triple, "1", "equal", "unchanged" if unchanged else "agreed", "equal")
        return self.combine(triple, content, metadata)

    def unread(self, triple: Triple, pair: tuple[Entry | None, Entry | None], changed: dict[str, Half]) -> bool:
        """Whether a file was touched since its contents were read, and only reading them again tells if they moved."""
        if kind_of(triple.here) != "f" or kind_of(triple.there) != "f":
            return False
        return any(
            isinstance(new, Entry)
            and old is not None
            and old.digest
            and not new.digest
            and new.ctime != old.ctime
            and not changed[side].content
            for side, new, old in zip(SIDES, (triple.here, triple.there), pair)
        )

    def whose(self, triple: Triple, here_moved: bool, there_moved: bool, agreed: bool) -> Outcome:
        if here_moved != there_moved:
            side = HERE if here_moved else THERE
            if self.both or side == self.source:
                return Outcome(side, False, "b2" if self.both else "8", f"changed on {SERVERS[side]}")
            number, reason = "9", f"changed on {SERVERS[side]}"
        elif agreed:
            number, reason = "b3" if self.both else "10", "changed on both"
        else:
            number, reason = "b4" if self.both else "11", "different, never agreed"
        winner, why = self.winner(triple)
        return Outcome(winner, True, number, f"{reason}: {why}")

    def winner(self, triple: Triple) -> tuple[str | None, str]:
        rules = self.rules
        decided = rules.decided.get(triple.path)
        if decided == BOTH:
            return BOTH, "both are kept, as decided"
        if decided is not None:
            return decided, f"{OWNERS[decided]}, as decided"
        if rules.conflict in ("this_server_wins", "partner_wins"):
            side = HERE if rules.conflict == "this_server_wins" else THERE
            return side, f"{SERVERS[side]} wins"
        if rules.conflict == "keep_both":
            return BOTH, "both are kept"
        if rules.conflict == "no_winner":
            return None, "no rule"
        later = self.later(triple)
        if later is not None:
            return later, f"{OWNERS[later]} is newer"
        return (None, "neither is newer") if self.both else (self.source, "neither is newer, the source wins")

    def later(self, triple: Triple) -> str | None:
        """The side with the later time; None: a tie, as ever where a directory is part of it."""
        here, there = triple.here, triple.there
        assert isinstance(here, Entry) and isinstance(there, Entry)
        if "d" in (here.kind, there.kind):
            return None
        step = self.rules.granularity or 1
        if here.mtime // step == there.mtime // step or abs(here.mtime - there.mtime) < self.rules.skew:
            return None
        return HERE if here.mtime > there.mtime else THERE

    def metadata_outcome(
        self, triple: Triple, changed: dict[str, Half], agreed: bool, same: bool, content: Outcome | None
    ) -> Outcome | None:
        """Whose metadata; None: nothing is to be done about them, or they go with the contents."""
        row = triple.row
        if content is not None and (not agreed or kind_of(triple.here) != kind_of(triple.there)):
            return None
        if self.same_metadata(triple, times=same):
            return None
        # A time that moved with contents that turned out equal is metadata.
        mine, other = changed[HERE], changed[THERE]
        here_moved = mine.metadata or (same and (mine.content or mine.relinked))
        there_moved = other.metadata or (same and (other.content or other.relinked))
        if triple.path in self.rules.decided:
            return self.whose(triple, True, True, agreed)
        if not agreed:
            if self.both or (row is not None and row.status == "kept"):
                return self.whose(triple, True, True, agreed)
            return Outcome(self.source, False, "11", "the same contents, different metadata")
        if self.rules.added and not self.same_metadata(triple, times=same, only=self.rules.added):
            if self.both and not (here_moved or there_moved):
                return self.fill(triple, same)
            if not self.both:
                here_moved, there_moved = here_moved or self.source == HERE, there_moved or self.source == THERE
        if not (here_moved or there_moved):
            return None
        return self.whose(triple, here_moved, there_moved, agreed)

    def fill(self, triple: Triple, same: bool) -> Outcome:
        """What is to be preserved from now on: an absent value is filled, different ones go by rule."""
        here, there = triple.here, triple.there
        assert isinstance(here, Entry) and isinstance(there, Entry)
        others = self.rules.added - {"acls", "xattrs"}
        if self.same_metadata(triple, times=same, only=others) and bool(here.xattrs) != bool(there.xattrs):
            return Outcome(HERE if here.xattrs else THERE, False, "b2", "to be preserved from now on")
        return self.whose(triple, True, True, True)

    def combine(self, triple: Triple, content: Outcome | None, metadata: Outcome | None) -> Decision:
        """One decision of what becomes of contents and of metadata."""
        if content is not None and metadata is None and not content.ruled:
            side = content.side
            return self.make(triple, content.row, "update", "agreed", content.reason, content=side, metadata=side)
        outcomes = [one for one in (content, metadata) if one is not None]
        # The graver of the two is what is told.
        told = max(outcomes, key=lambda one: (one.side is None, one.ruled))
        if any(one.side is None for one in outcomes):
            return self.make(triple, told.row, "unresolved", "unresolved", told.reason, by="conflict")
        aside = b""
        content_side = metadata_side = None
        kept = acting = False
        if content is not None:
            content_side = self.source if content.side == BOTH else content.side
            if content.side == BOTH and not self.rules.one_file:
                aside = self.copy_name(triple)
            if not self.both and content_side == self.target:
                kept, content_side = True, None
            metadata_side = content_side
            acting = content_side is not None
        # The losing version that is kept has its own with it.
        if metadata is not None and not (content is not None and content.side == BOTH):
            metadata_side = self.source if metadata.side == BOTH else metadata.side
            if not self.both and metadata_side == self.target:
                kept = True
                if content_side is None:
                    metadata_side = None
            else:
                acting = True
        ruled = any(one.ruled for one in outcomes)
        if not acting:
            what = "kept"
        elif ruled:
            what = "conflict"
        else:
            what = "update" if content_side else "metadata"
        return self.make(
            triple,
            told.row,
            what,
            "kept" if kept else "agreed",
            told.reason,
            content=content_side,
            metadata=metadata_side,
            aside=aside,
            by="conflict" if kept else "",
        )

    def restrain(self, triple: Triple, decision: Decision) -> Decision:
        """What must not be done in this run, whatever the tables say."""
        path, rules = triple.path, self.rules
        acting = decision.content or decision.metadata or decision.remove
        if not acting:
            return self.as_before(triple, decision)
        reason = ""
        if decision.remove and not path:
            reason = "the element's own directory is never deleted"
        elif path in rules.decided:
            return decision
        elif decision.remove and self.unknown_ground(path):
            reason = f"would be deleted ({decision.reason}), but the archive is new"
        elif decision.remove and deletion_waits(triple.row):
            reason = ONCE_APPROVED
        elif path in rules.suspicious:
            reason = f"{decision.reason}, but the contents look as after a crash"
        if not reason:
            return decision
        return self.as_before(triple, self.make(triple, decision.row, "unresolved", "unresolved", reason, by="guard"))

    def unknown_ground(self, path: bytes) -> bool:
        """Whether the archive cannot tell what was there before."""
        unseen = self.rules.unseen
        while path and unseen and path not in unseen:
            path = parent(path)
        return not self.rules.deletions or path in unseen

    # What a directory takes along.

    def below(self, path: bytes) -> Iterator[Triple]:
        start = path + b"/"
        index = bisect_left(self.paths, start)
        while index < len(self.paths) and self.paths[index].startswith(start):
            yield self.given[self.paths[index]]
            index += 1

    def take_along(self, triple: Triple, decision: Decision) -> Decision:
        """A directory on one side, something else on the other: what is below goes the directory's way."""
        path, rules = triple.path, self.rules
        side = HERE if is_directory(triple.here) else THERE
        lower = list(self.below(path))
        for one in lower:
            entry = of(one, side)
            if isinstance(entry, Unknown):
                return self.unseen(triple, f"{OWNERS[side]} has a path below it that could not be read: {entry.reason}")
        replaced = decision.content == OTHER[side]
        if replaced and decision.what == "update" and any(self.lively(one, side) for one in lower):
            # Something below is new, so the directory has changed too.
            content = self.whose(triple, True, True, True)
            decision = self.restrain(triple, self.combine(triple, content, None))
            replaced = decision.content == OTHER[side]
        removing = replaced and not decision.aside and any(of(one, side) is not None for one in lower)
        if removing and path not in rules.decided:
            if self.unknown_ground(path) or any(self.unknown_ground(one.path) for one in lower):
                return self.hold_back(triple, decision, "guard", "the archive is new")
            if rules.delete == "never":
                return self.hold_back(triple, decision, "delete", "nothing is to be deleted")
        if decision.aside and replaced:
            taken = Taken("aside", path, decision.row, decision.reason, side=side, to=decision.aside)
        elif replaced:
            taken = Taken("goes", path, decision.row, decision.reason, side=side)
        elif decision.content:
            taken = Taken("comes", path, decision.row, decision.reason, side=side)
        else:
            taken = Taken("stay", path, decision.row, decision.reason, status=decision.what)
        self.taken[path] = taken
        return decision

    def hold_back(self, triple: Triple, decision: Decision, by: str, why: str) -> Decision:
        reason = f"would take a directory's contents away ({decision.reason}), but {why}"
        return self.stay(triple, "unresolved", by, reason, decision.row)

    def lively(self, triple: Triple, side: str) -> bool:
        """Whether the path on this side is not as it was agreed."""
        row = triple.row
        if of(triple, side) is None:
            return False
        if row is None or row.status != "agreed":
            return True
        racy = ("h" if side == HERE else "t") in row.racy
        return self.half(triple, side, half_of(row, side), racy) != STILL

    def follow(self, triple: Triple, taken: Taken) -> Decision:
        """A path below a directory that stands against something else."""
        reason = f"with {printable(taken.top)}: {taken.reason}"
        if taken.do == "stay":
            decision = self.make(triple, taken.row, taken.status, taken.status, reason)
            return self.as_before(triple, decision)
        if taken.do == "comes":
            return self.copy(triple, taken.row, "new", taken.side, reason)
        if taken.do == "goes":
            return self.make(triple, taken.row, "delete", "dropped", reason, remove=taken.side)
        self.asides[triple.path] = taken
        return self.make(triple, taken.row, "dropped", "dropped", reason)

    # What stays or arrives needs its directory.

    def settle(self) -> None:
        """Directories after what is in them: one with something left in it stays, one that something needs is made."""
        needed: dict[tuple[bytes, str], Decision | None] = {}
        for path in reversed(self.paths):
            triple, decision = self.given[path], self.decisions.get(path)
            if decision is not None and ((path, HERE) in needed or (path, THERE) in needed):
                decision = self.as_needed(triple, decision, needed)
                self.decisions[path] = decision
            if not path:
                continue
            directory = parent(path)
            for side in SIDES:
                key = (directory, side)
                weighty = key not in needed or (decision is not None and decision.what == "unknown")
                if weighty and self.after(triple, decision, side):
                    needed[key] = decision

    def after(self, triple: Triple, decision: Decision | None, side: str) -> bool:
        """Whether the side has the path once all is done."""
        if of(triple, side) is None:
            return decision is not None and decision.content == OTHER[side]
        return decision is None or decision.remove != side

    def as_needed(
        self, triple: Triple, decision: Decision, needed: dict[tuple[bytes, str], Decision | None]
    ) -> Decision:
        path = triple.path
        for side in SIDES:
            if (path, side) not in needed or self.after(triple, decision, side):
                continue
            other = of(triple, OTHER[side])
            if decision.remove == side and (path, OTHER[side]) not in needed:
                child = needed[path, side]
                reason = f"{decision.reason}; left, because something in it stays"
                if child is not None and child.what == "unknown":
                    return self.make(triple, decision.row, "left", "unchanged", reason)
                by = child.by if child is not None else ""
                return self.make(triple, decision.row, "left", "left", reason, by=by or "delete")
            if decision.remove == side or is_directory(other):
                at = side if decision.remove == side else OTHER[side]
                return self.copy(triple, decision.row, "new", at, "needed for what arrives in it")
        return decision

    # Names.

    def names_impossible(self) -> dict[bytes, str]:
        """Names that would come to a replica that cannot hold them, with all that they fall together with."""
        rules = self.rules
        found: dict[bytes, str] = {}
        for path, one in self.decisions.items():
            arrives = one.content is not None and (one.here is None or one.there is None)
            if arrives and len(path) - path.rfind(b"/") - 1 > rules.name_max:
                found[path] = f"{SERVERS[OTHER[one.content or HERE]]} can have no name as long as this"
        for side in SIDES:
            ignoring = rules.folding.get(side)
            if not ignoring:
                continue
            alike: dict[str, list[bytes]] = {}
            arriving: set[bytes] = set()
            for path in self.paths:
                triple = self.given[path]
                if self.after(triple, self.decisions.get(path), side):
                    alike.setdefault(folded(path, ignoring), []).append(path)
                    if of(triple, side) is None:
                        arriving.add(path)
            for names in alike.values():
                if len(names) > 1 and not arriving.isdisjoint(names):
                    reason = f"the same name on {SERVERS[side]}: {', '.join(printable(one) for one in names)}"
                    found.update(dict.fromkeys(names, reason))
        return found

    def copy_name(self, triple: Triple) -> bytes:
        """What the losing version is called: STEM.conflict-SERVER-MTIME[-N]EXT, free on both replicas."""
        directory, _slash, name = triple.path.rpartition(b"/")
        entry = of(triple, self.target)
        assert isinstance(entry, Entry)
        moment = time.gmtime(max(0, min(entry.mtime // 1_000_000_000, LAST_SECOND)))
        server = cut(self.rules.names[self.target].encode(), self.rules.name_max // 2)
        middle = b".conflict-%b-%b" % (server, time.strftime("%Y%m%dT%H%M%SZ", moment).encode())
        stem, dot, extension = name.rpartition(b".")
        ending = dot + extension if stem else b""
        if not stem or len(middle) + len(ending) + 16 > self.rules.name_max:
            stem, ending = name, b""
        number = 1
        while True:
            tail = middle + (b"-%d" % number if number > 1 else b"") + ending
            found = cut(stem, self.rules.name_max - len(tail)) + tail
            path = directory + b"/" + found if directory else found
            if path not in self.given and path not in self.rules.occupied and path not in self.reserved:
                return path
            number += 1

    def copies(self) -> Iterator[Decision]:
        """The losing versions under their new names: carried to the other side, or left where they are."""
        for path, decision in self.decisions.items():
            if decision.aside:
                yield self.copied(self.given[path], decision, decision.aside)
        for path, taken in self.asides.items():
            if of(self.given[path], taken.side) is not None:
                to = taken.to + path[len(taken.top) :]
                yield self.copied(self.given[path], self.decisions[path], to)

    def copied(self, triple: Triple, decision: Decision, to: bytes) -> Decision:
        loser = self.target
        entry = of(triple, loser)
        here, there = (entry, None) if loser == HERE else (None, entry)
        copy = Triple(to, here, there, None)
        reason = f"the other version of {printable(triple.path)}"
        if self.both:
            return self.copy(copy, decision.row, "new", loser, reason)
        return self.make(copy, decision.row, "left", "left", reason, by="conflict")


def deletion_waits(row: Row | None) -> bool:
    """Whether the path's deletion waits for a person, whatever has moved since."""
    return row is not None and (row.status, row.by) == ("unresolved", "guard") and None in (row.here, row.there)


def kind_of(entry: Seen) -> str:
    return entry.kind if isinstance(entry, Entry) else ""


def half_of(row: Row, side: str) -> Entry | None:
    """The side's entry as archived."""
    record, more = (row.here, row.here_more) if side == HERE else (row.there, row.there_more)
    return None if record is None else Entry.parse(record, more)


def base_of(row: Row) -> tuple[Entry | None, Entry | None]:
    pair = {name: Entry.parse(record, more) for name, record, more in unpack(row.base)}
    return pair[b"here"], pair[b"there"]


def exactly(triple: Triple, row: Row) -> bool:
    """Whether both entries are in every field as archived, contents included where they were read."""
    for side in SIDES:
        entry, record = of(triple, side), row.here if side == HERE else row.there
        if isinstance(entry, Entry):
            known = half_of(row, side)
            if known is None or entry != (known if entry.digest else known._replace(digest=b"")):
                return False
        elif record is not None:
            return False
    return True


def folded(path: bytes, ignoring: Collection[str]) -> str:
    """Equal for names that fall together where these differences do not count."""
    text = path.decode("utf-8", "surrogateescape")
    if "normalization" in ignoring:
        text = unicodedata.normalize("NFD", text)
    if "case" in ignoring:
        text = text.casefold()
    return unicodedata.normalize("NFD", text) if "normalization" in ignoring else text


def cut(text: bytes, size: int) -> bytes:
    """At most ``size`` bytes of it, cut between two characters."""
    if len(text) <= size:
        return text
    end = max(size, 0)
    for _byte in range(3):
        if end and text[end] & 0xC0 == 0x80:
            end -= 1
    return text[:end]


def printable(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace") or "."
