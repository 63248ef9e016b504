# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reconciliation alone, on replicas that are only dictionaries: a tree perturbed on both sides, run, perturbed again.

    python tests/faults/reconcile_cases.py [COUNT [SEED]]

Every case is a history of a few runs, drawn from its number alone. A plan is carried out to the letter, and what a file
system would refuse is a failure, as is a broken law. The case that failed is printed; ``history(NUMBER)`` repeats it.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles" / "runner" / "files"))

from serversync.entry import HERE, THERE, Entry, Row, pack
from serversync.reconcile import Decision, Owners, Plan, Rules, Triple, Unknown, deep, moved, reconcile

SIDES = (HERE, THERE)
OTHER = {HERE: THERE, THERE: HERE}
NAMES = (b"a", b"b", b"c", b"A")
CASE = frozenset({"case"})
RULES = ("this_server_wins", "partner_wins", "newer_wins", "no_winner", "keep_both")
NOBODY = Owners({}, {})
NONE: frozenset[str] = frozenset()


class Node(NamedTuple):
    """What a path is: data is unique to every write, so whatever is lost is seen to be lost."""

    kind: str
    data: int
    size: int
    mode: int
    mtime: int
    inode: int
    ctime: int

    @property
    def entry(self) -> Entry:
        link = b"%d" % self.data if self.kind == "l" else b""
        return Entry(self.kind, self.inode, self.ctime, self.mtime, self.size, self.mode, 0, 0, 1, link)

    @property
    def preserved(self) -> tuple[object, ...]:
        mode = self.mode if self.kind != "l" else 0
        return (self.kind, self.data, mode, self.mtime if self.kind == "f" else 0)


Tree = dict[bytes, Node]


def plain_rules(**changes: object) -> Rules:
    rules = Rules(
        direction="to_partner",
        conflict="newer_wins",
        delete="synced",
        preserve=frozenset({"times", "permissions", "links"}),
        to_there=NOBODY,
        to_here=NOBODY,
        granularity=1,
        skew=0,
        deletions=True,
        reopened=NONE,
        one_file=False,
        names={HERE: "alpha", THERE: "beta"},
        name_max=255,
        folding={HERE: NONE, THERE: NONE},
        verify=False,
        groups={},
        suspicious=frozenset(),
        decided={},
    )
    return replace(rules, **changes)  # type: ignore[arg-type]


def targets(rules: Rules) -> tuple[str, ...]:
    return {"to_partner": (THERE,), "from_partner": (HERE,), "both": SIDES}[rules.direction]


def parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


@dataclass
class World:
    """Two replicas, their archive, and what went into versions."""

    trees: dict[str, Tree]
    archive: dict[bytes, Row] = field(default_factory=dict)
    # What the archive stands for: per path the data on both sides.
    agreed: dict[bytes, dict[str, int | None]] = field(default_factory=dict)
    versions: set[int] = field(default_factory=set)
    unknown: dict[str, set[bytes]] = field(default_factory=lambda: {HERE: set(), THERE: set()})
    ticks: int = 0

    def tick(self) -> int:
        self.ticks += 1
        return self.ticks

    def triples(self, rules: Rules) -> list[Triple]:
        """What update detection gives: all that has moved, with the directories above."""
        listings = {
            side: [
                (path, b"" if path in self.unknown[side] else node.entry.record, b"")
                for path, node in sorted(self.trees[side].items())
                if path and not any(one in self.unknown[side] for one in above(path))
            ]
            for side in SIDES
        }
        rows = [row for path, row in sorted(self.archive.items()) if path]
        found = {triple.path: triple for triple in moved(listings[HERE], listings[THERE], rows)}
        if rules.reopened or any(rules.folding.values()):
            for path in self.archive:
                found.setdefault(path, self.triple(path))
        else:
            read = self.directories_to_read(rules)
            found = {path: triple for path, triple in found.items() if parent(path) in read}
            for top in [triple.path for triple in found.values() if deep(triple)]:
                lower = [path for path in self.archive if path.startswith(top + b"/")]
                found.update((path, self.triple(path)) for path in lower)
        for path in list(found):
            for one in above(path):
                found.setdefault(one, self.triple(one))
        found[b""] = self.triple(b"")
        return list(found.values())

    def directories_to_read(self, rules: Rules) -> set[bytes]:
        """Those with a digest that moved, and those of what has to be decided again."""
        found = {
            parent(row.path) for row in self.archive.values() if row.racy or (not row.by and row.status != "agreed")
        }
        found |= {parent(path) for path in rules.decided}
        for side in SIDES:
            now: dict[bytes, dict[bytes, bytes]] = {}
            for path, one in self.trees[side].items():
                if one.kind == "d":
                    now.setdefault(path, {})
                if path:
                    now.setdefault(parent(path), {})[path] = one.entry.record
            for path in self.unknown[side]:
                now[parent(path)][path] = b""
            archived: dict[bytes, dict[bytes, bytes]] = {}
            for path, row in self.archive.items():
                record = row.here if side == HERE else row.there
                if record is not None and record.startswith(b"d"):
                    archived.setdefault(path, {})
                if record is not None and path:
                    archived.setdefault(parent(path), {})[path] = record
            found |= {path for path in now.keys() | archived.keys() if now.get(path) != archived.get(path)}
        return found

    def triple(self, path: bytes) -> Triple:
        seen = {}
        for side in SIDES:
            node = self.trees[side].get(path)
            hidden = any(one in self.unknown[side] for one in (path, *above(path)))
            seen[side] = Unknown("closed") if hidden and node else node.entry if node else None
        return Triple(path, seen[HERE], seen[THERE], self.archive.get(path))

    def plan(self, triples: list[Triple], rules: Rules) -> Plan:
        plan = reconcile(triples, rules)
        if plan.needs:
            triples = [self.digested(one) if one.path in set(plan.needs) else one for one in triples]
            plan = reconcile(triples, rules)
            assert not plan.needs, f"contents are known and still asked for: {plan.needs}"
        return plan

    def digested(self, triple: Triple) -> Triple:
        seen = {}
        for side, entry in ((HERE, triple.here), (THERE, triple.there)):
            assert isinstance(entry, Entry) and entry.kind == "f", f"{triple.path!r} has no contents to compare"
            seen[side] = entry._replace(digest=b"%16d" % self.trees[side][triple.path].data)
        return triple._replace(here=seen[HERE], there=seen[THERE])

    # Carrying out.

    def carry_out(self, plan: Plan, rules: Rules) -> None:
        writable = targets(rules)
        for one in plan.decisions:
            if one.aside:
                loser = OTHER[one.content or ""]
                assert loser in writable
                self.rename(self.trees[loser], one.path, one.aside)
        for one in reversed(plan.decisions):
            if one.remove:
                assert one.remove in writable
                self.check_removal(one, rules)
                self.displace(one.remove, one.path)
        for one in plan.decisions:
            if one.content:
                self.put(one, rules)
        for one in plan.decisions:
            if one.metadata and one.metadata != one.content:
                self.set_metadata(one, writable)
        for one in plan.decisions:
            self.remember(one)

    def rename(self, tree: Tree, path: bytes, to: bytes) -> None:
        assert to not in tree, f"{to!r} is taken"
        for old in [one for one in tree if one == path or one.startswith(path + b"/")]:
            tree[to + old[len(path) :]] = tree.pop(old)
        tree[to] = tree[to]._replace(ctime=self.tick())

    def displace(self, side: str, path: bytes) -> None:
        node = self.trees[side].pop(path)
        assert not any(one.startswith(path + b"/") for one in self.trees[side]), f"{path!r} is not empty"
        if node.kind != "d":
            self.versions.add(node.data)

    def put(self, one: Decision, rules: Rules) -> None:
        assert one.content
        side = OTHER[one.content]
        assert side in targets(rules), f"{one.path!r} would be put on the source"
        source = self.trees[one.content][one.path]
        old = self.trees[side].get(one.path)
        else_there = {path for path in self.trees[side] if path != one.path} if rules.folding[side] else set()
        assert one.path.lower() not in {path.lower() for path in else_there}, f"{one.path!r} is there in other letters"
        if old is not None:
            self.check_overwriting(one, side, old, rules)
            self.displace(side, one.path)
        above_it = self.trees[side].get(parent(one.path))
        assert above_it is not None and above_it.kind == "d", f"{one.path!r} has no directory on {side}"
        mode = old.mode if one.metadata == side and old is not None else source.mode
        self.trees[side][one.path] = source._replace(mode=mode, inode=self.tick(), ctime=self.tick())

    def set_metadata(self, one: Decision, writable: tuple[str, ...]) -> None:
        assert one.metadata
        side = OTHER[one.metadata]
        if side not in writable:
            return
        seen = one.here if one.metadata == HERE else one.there
        old = self.trees[side][one.path]
        assert isinstance(seen, Entry)
        with_time = one.content is None and one.status == "agreed" and old.kind == "f"
        mtime = seen.mtime if with_time else old.mtime
        self.trees[side][one.path] = old._replace(mode=seen.mode, mtime=mtime, ctime=self.tick())

    def remember(self, one: Decision) -> None:
        if one.status == "unchanged":
            return
        if one.status == "dropped":
            self.archive.pop(one.path, None)
            self.agreed.pop(one.path, None)
            return
        here, there = (self.trees[side].get(one.path) for side in SIDES)
        old = self.archive.get(one.path)
        base = b""
        if one.status == "unresolved" and old is not None:
            base = old.base
            if old.status == "agreed" and old.here is not None and old.there is not None:
                base = pack([(b"here", old.here, b""), (b"there", old.there, b"")])
        self.archive[one.path] = Row(
            one.path,
            one.status,
            here.entry.record if here else None,
            b"",
            there.entry.record if there else None,
            b"",
            base,
            "",
            one.by,
        )
        if one.status != "unresolved" or not base:
            self.agreed[one.path] = {HERE: here.data if here else None, THERE: there.data if there else None}

    # The laws.

    def check_removal(self, one: Decision, rules: Rules) -> None:
        """L6, and that nothing is deleted where that is not wanted."""
        assert one.remove
        if any(path in rules.decided for path in (one.path, *above(one.path))):
            return
        assert rules.deletions and rules.delete != "never", f"{one.path!r} is deleted all the same"
        node = self.trees[one.remove][one.path]
        row = self.archive.get(one.path)
        if (
            row is not None
            and row.status in ("agreed", "unresolved")
            and self.agreed[one.path][one.remove] == node.data
        ):
            return
        named = {"this_server_wins": HERE, "partner_wins": THERE, "newer_wins": OTHER[one.remove]}.get(rules.conflict)
        extraneous = rules.delete == "extraneous" and rules.direction != "both"
        assert extraneous or named == OTHER[one.remove], f"{one.path!r} was not as archived and no rule deletes it"

    def check_overwriting(self, one: Decision, side: str, old: Node, rules: Rules) -> None:
        """What was edited is overwritten by a rule only."""
        if rules.conflict not in ("no_winner", "keep_both") or old.kind == "d" or one.path in rules.decided:
            return
        known = self.agreed.get(one.path, {}).get(side)
        assert known == old.data, f"{one.path!r} was edited on {side} and is overwritten without a rule"

    def check_settled(self) -> None:
        """L3 and L5: everything is in the archive as it is, and agreed only where it is equal."""
        for path in self.trees[HERE].keys() | self.trees[THERE].keys() | self.archive.keys():
            row = self.archive.get(path)
            here, there = (self.trees[side].get(path) for side in SIDES)
            assert row is not None, f"{path!r} is not in the archive"
            assert row.here == (here.entry.record if here else None), f"{path!r} is not archived as it is here"
            assert row.there == (there.entry.record if there else None), f"{path!r} is not archived as it is there"
            if row.status == "agreed":
                assert here and there and here.preserved == there.preserved, f"{path!r} is agreed, but differs"

    def data(self) -> set[int]:
        return {node.data for tree in self.trees.values() for node in tree.values() if node.kind != "d"}


def above(path: bytes) -> Iterator[bytes]:
    while path:
        path = parent(path)
        yield path


# Edits.


def node(world: World, kind: str, draw: random.Random) -> Node:
    data = world.tick()
    size = draw.randrange(1, 3) if kind == "f" else 0
    return Node(kind, 0 if kind == "d" else data, size, draw.choice((0o644, 0o600)), draw.randrange(5), data, data)


def edit(world: World, side: str, draw: random.Random, folding: bool) -> None:
    """One act of a user on one replica."""
    tree = world.trees[side]
    path = draw.choice([b"", *(one for one, node in sorted(tree.items()) if node.kind == "d")])
    path = path + b"/" + draw.choice(NAMES) if path else draw.choice(NAMES)
    if path.count(b"/") > 2:
        return
    old = tree.get(path)
    if side == THERE and folding and any(one != path and one.lower() == path.lower() for one in tree):
        return
    what = draw.choice(("write", "write", "delete", "delete", "mode", "touch", "directory", "link", "replace", "same"))
    if what == "same":
        twin = world.trees[OTHER[side]].get(path)
        if twin is None or twin.kind != "f":
            return
        remove(tree, path)
        tree[path] = twin._replace(inode=world.tick(), ctime=world.tick(), mtime=draw.randrange(5))
    elif what in ("write", "directory", "link"):
        if what == "write" and old is not None and old.kind == "f" and draw.random() < 0.5:
            # A write moves the time, and nothing sets it back.
            later = old.mtime + draw.randrange(1, 3)
            tree[path] = node(world, "f", draw)._replace(inode=old.inode, mode=old.mode, mtime=later)
            return
        remove(tree, path)
        tree[path] = node(world, {"write": "f", "directory": "d", "link": "l"}[what], draw)
        if what == "directory" and draw.random() < 0.7:
            tree[path + b"/" + draw.choice(NAMES)] = node(world, "f", draw)
    elif old is None:
        return
    elif what == "delete":
        remove(tree, path)
    elif what == "mode":
        tree[path] = old._replace(mode=old.mode ^ 0o44, ctime=world.tick())
    elif what == "touch":
        tree[path] = old._replace(mtime=old.mtime + draw.randrange(1, 3), ctime=world.tick())
    else:
        tree[path] = old._replace(inode=world.tick(), ctime=world.tick())


def forget(world: World) -> None:
    """What the caller does where direction or delete were edited: only what is agreed, or guarded, stays archived."""
    for path, row in list(world.archive.items()):
        if row.status != "agreed" and row.by != "guard":
            del world.archive[path]
            del world.agreed[path]


def remove(tree: Tree, path: bytes) -> None:
    for one in [one for one in tree if one == path or one.startswith(path + b"/")]:
        del tree[one]


def silent_edit(world: World, draw: random.Random) -> None:
    """A write that left no trace, because the archive's half was taken in the same tick of the clock."""
    side = draw.choice(SIDES)
    letter = "h" if side == HERE else "t"
    files = [path for path, node in sorted(world.trees[side].items()) if node.kind == "f"]
    path = draw.choice(files) if files else b""
    row = world.archive.get(path)
    if not path or row is None or row.status != "agreed":
        return
    old = world.trees[side][path]
    record = row.here if side == HERE else row.there
    if record != old.entry.record:
        return
    world.archive[path] = row._replace(racy=row.racy + letter if letter not in row.racy else row.racy)
    if draw.random() < 0.5:
        world.trees[side][path] = old._replace(data=world.tick())


# Histories.


def mirrored(rules: Rules) -> Rules:
    swap = {"this_server_wins": "partner_wins", "partner_wins": "this_server_wins"}
    return replace(
        rules,
        direction={"to_partner": "from_partner", "from_partner": "to_partner"}.get(rules.direction, "both"),
        conflict=swap.get(rules.conflict, rules.conflict),
        names={HERE: rules.names[THERE], THERE: rules.names[HERE]},
        folding={HERE: rules.folding[THERE], THERE: rules.folding[HERE]},
        decided={path: OTHER.get(who, who) for path, who in rules.decided.items()},
    )


def mirrored_triple(triple: Triple) -> Triple:
    row = triple.row
    if row is not None:
        base = b""
        if row.base:
            parts = row.base.split(b"\0")
            base = pack([(b"here", parts[4], b""), (b"there", parts[1], b"")])
        racy = "".join(sorted({"h": "t", "t": "h"}[one] for one in row.racy))
        row = row._replace(here=row.there, there=row.here, base=base, racy=racy)
    return triple._replace(here=triple.there, there=triple.here, row=row)


def mirrored_decision(one: Decision) -> Decision:
    swap = {HERE: THERE, THERE: HERE, None: None}
    return one._replace(
        content=swap[one.content],
        metadata=swap[one.metadata],
        remove=swap[one.remove],
        here=one.there,
        there=one.here,
        reason="",
    )


def check_pure(triples: list[Triple], rules: Rules, draw: random.Random) -> None:
    """L8: the order of what is given does not matter, nor which side is called this server."""
    plan = reconcile(triples, rules)
    shuffled = draw.sample(triples, len(triples))
    assert reconcile(shuffled, rules) == plan, "the plan depends on the order of the paths"
    if rules.direction == "both" and (rules.conflict == "keep_both" or "both" in rules.decided.values()):
        return
    other = reconcile([mirrored_triple(one) for one in triples], mirrored(rules))
    assert [one._replace(reason="") for one in other.decisions] == [mirrored_decision(one) for one in plan.decisions]
    assert sorted(other.needs) == sorted(plan.needs)


def acting(plan: Plan) -> list[Decision]:
    return [one for one in plan.decisions if one.content or one.metadata or one.remove or one.aside]


def run(world: World, rules: Rules, draw: random.Random) -> None:
    """One run, and a second one that must find nothing to do."""
    triples = world.triples(rules)
    rules = replace(rules, occupied=frozenset(path for path in world.archive if b".conflict-" in path))
    check_pure(triples, rules, draw)
    before = world.data()
    unseen = {side: set(world.unknown[side]) for side in SIDES}
    plan = world.plan(triples, rules)
    for one in acting(plan):
        for side in SIDES:
            hidden = unseen[side] & {one.path, *above(one.path)}
            assert not hidden, f"{one.path!r} is touched though {hidden} could not be read"
    world.carry_out(plan, rules)
    lost = before - world.data() - world.versions
    assert not lost, f"lost: {lost}"
    if any(unseen.values()):
        return
    world.check_settled()
    rules = replace(rules, reopened=NONE, decided={})
    again = world.plan(world.triples(rules), rules)
    assert not acting(again), f"a second run would act: {acting(again)}"
    changes = [one for one in again.decisions if one.status != "unchanged"]
    assert not changes, f"a second run would change the archive: {changes}"


def history(number: int) -> int:
    """One case; how many plans were made and checked."""
    draw = random.Random(number)
    root = Node("d", 0, 0, 0o755, 0, 1, 1)
    world = World({HERE: {b"": root}, THERE: {b"": root._replace(inode=2)}})
    rules = plain_rules(
        direction=draw.choice(("to_partner", "from_partner", "both", "both")),
        conflict=draw.choice(RULES),
        deletions=draw.random() < 0.9,
    )
    folding = draw.random() < 0.2
    if folding:
        rules = replace(rules, folding={HERE: NONE, THERE: CASE})
    rules = replace(
        rules, delete=draw.choice(("never", "synced", "synced", "extraneous")[: 3 + (rules.direction != "both")])
    )
    for _edit in range(draw.randrange(8)):
        edit(world, HERE, draw, folding)
    if draw.random() < 0.8 and not folding:
        # What both sides start with.
        world.trees[THERE] = {
            path: old._replace(inode=world.tick(), ctime=world.tick()) for path, old in world.trees[HERE].items()
        }
    rounds = draw.randrange(1, 4)
    for _round in range(rounds):
        run(world, rules, draw)
        world.unknown = {HERE: set(), THERE: set()}
        for _edit in range(draw.randrange(6)):
            edit(world, draw.choice(SIDES), draw, folding)
        if draw.random() < 0.3:
            silent_edit(world, draw)
        if draw.random() < 0.1:
            side = draw.choice(SIDES)
            paths = [path for path in sorted(world.trees[side]) if path]
            world.unknown[side] = {draw.choice(paths)} if paths else set()
        rules = replace(rules, deletions=True, reopened=NONE, decided={})
        standing = [path for path, row in sorted(world.archive.items()) if row.status != "agreed"]
        if standing and not folding and draw.random() < 0.3:
            rules = replace(rules, decided={draw.choice(standing): draw.choice((HERE, THERE, "both"))})
        if draw.random() < 0.2:
            conflict = draw.choice(RULES)
            rules = replace(rules, conflict=conflict, reopened=frozenset({"conflict"}))
        if draw.random() < 0.1:
            direction = draw.choice(("to_partner", "from_partner", "both"))
            deletes = ("never", "synced", "extraneous") if direction != "both" else ("never", "synced")
            rules = replace(rules, direction=direction, delete=draw.choice(deletes))
            forget(world)
    run(world, rules, draw)
    return 3 * (rounds + 1)


def main(count: int = 100_000, seed: int = 0) -> int:
    started, plans = time.monotonic(), 0
    for number in range(seed, seed + count):
        try:
            plans += history(number)
        except AssertionError as error:
            print(f"history({number}) failed: {error}")
            return 1
    print(f"{count} histories from {seed}, {plans} plans, every law kept, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
