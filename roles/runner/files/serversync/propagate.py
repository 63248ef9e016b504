# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Propagation of one piece of a plan: stage, journal, commit; what comes of it goes into the archive.

Contents come into the stage of the replica that is to change, small files in parcels and larger ones by rsync; that
replica's own process puts each path in its place, after both replicas were looked at again. A path that has moved
meanwhile is left for the next attempt.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import IO

from serversync import rsync
from serversync.commit import FLAWS, TRANSIENT, Op, Result
from serversync.counts import Tell
from serversync.entry import Entry
from serversync.failure import Failure
from serversync.parcel import CHANGED, NEW, REFUSED, Item, Made, Parcel
from serversync.reconcile import OTHER, SIDES, Decision, Owners, Seen, of, parent
from serversync.replica import Carry, Coming, PartnerTree, Replica, Server
from serversync.tree import Tree

# Operations that are on record as intents at a time, and batches of them that are sent before the first is answered.
BATCH, BATCHES = 2000, 2
# Parcels that are sent before the first of them has been answered: more than an SSH channel carries at a time, and as
# many as the other side holds while it puts others into the stage, so that nobody waits for it who has other work.
UNDER_WAY = 64
# Path -> all names of its file, of files with several names.
Groups = Mapping[bytes, frozenset[bytes]]


@dataclass
class Side:
    """One replica of the element in this run."""

    name: str
    server: Server
    tree: Replica
    path: str
    # The directory that holds the element's paths, and the name of the file that is the element, if it is one.
    directory: str
    own: str
    # The stage's path below that directory, and whether it is there.
    stage: str
    prepared: bool = False

    @property
    def partial(self) -> str:
        """Where parts of files wait for the next run: .serversync/ELEMENT/partial."""
        return f"{self.stage.rsplit('/', 2)[0]}/partial"


@dataclass
class Settings:
    """What of a job's settings says how data moves."""

    preserve: frozenset[str]
    # HERE, THERE -> numbers of the other replica's owners as numbers there.
    owners: dict[str, Owners]
    granularity: int
    bandwidth_limit: int | None
    compress: bool
    # Somebody looks at how far it is.
    watched: bool


@dataclass
class Done:
    """What a propagation did on one replica: entries as read back (None: removed), and what it could not do."""

    entries: dict[bytes, Entry | None] = field(default_factory=dict)
    versions: dict[bytes, bytes] = field(default_factory=dict)
    problems: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    # Codes of problems that a later attempt may not have.
    transient: set[str] = field(default_factory=lambda: set(TRANSIENT))
    sent: int = 0
    # Names of a file whose metadata turned out to be others: whether they agree, another look tells.
    again: set[bytes] = field(default_factory=set)
    # Whether names have moved that the plan knows nothing of, as what they are names of was given metadata.
    beside: bool = False


def beneath(path: bytes, directories: Collection[bytes]) -> bool:
    """Whether the path is one of them, or below one."""
    while path:
        if path in directories:
            return True
        path = parent(path)
    return False


class Propagation:
    """Carries decisions out on one replica, ``target``; the other one is ``source``.

    Use: ``begin`` lets the contents come, ``arrived`` waits for them, ``gather`` makes ready what is in the stage,
    ``commit`` puts it in its place; or ``abandon`` where it goes wrong. Nothing that is in use is touched before
    ``commit``. number: of the piece in this run; its place in the stage is its own, so the contents of the next one may
    come while this one is committed. agreed: whether a path of which there is no decision is archived as agreed;
    later: what the whole plan puts below a directory.
    """

    def __init__(
        self,
        source: Side,
        target: Side,
        settings: Settings,
        intend: Callable[[str, Iterable[tuple[Decision, Entry | None]]], None],
        agreed: Callable[[bytes], bool],
        later: Callable[[bytes], Iterable[bytes]],
        progress: Tell,
        number: int,
    ) -> None:
        self.source = source
        self.target = target
        self.settings = settings
        self.intend = intend
        self.agreed = agreed
        self.later = later
        self.progress = progress
        self.done = Done()
        # New directories whose name was taken, and what the commit said of it.
        self.blocked: dict[bytes, tuple[str, str]] = {}
        # Those of them that are there for what does not take part.
        self.shared: set[bytes] = set()
        # What rsync said of what did not arrive.
        self.incomplete: Failure | None = None
        self.carry = source.server.carry or target.server.carry
        # What brings contents by itself knows one stage.
        self.place = b"" if self.carry else b"%d/" % number
        # What comes in parcels, and what came, as it is in the stage.
        self.handed: dict[bytes, Decision] = {}
        self.brought: dict[bytes, Entry] = {}
        # What parcels that are under way were sent with, and what tells what became of them.
        self.parcels: deque[tuple[list[Item], Callable[[], list[Made]]]] = deque()
        self.unpacked_files = 0
        # What is done to the stage is done behind the last of them.
        self.behind = 0
        # What is told of operations on the stage that nobody has asked for yet.
        self.orders: deque[Iterator[Result]] = deque()
        self.running: rsync.Running | None = None
        self.names: IO[bytes] | None = None

    def wanted(self, decision: Decision) -> Entry:
        """The entry that the target is to have, in the target's own numbers of owners."""
        theirs = self.seen(decision, self.source)
        mine = self.seen(decision, self.target)
        assert isinstance(theirs, Entry)
        if not isinstance(mine, Entry):
            mine = theirs
        # Times belong to the contents, where these move or differ.
        alone = decision.content is None and decision.status == "agreed"
        timed = theirs if alone or decision.content == self.source.name else mine
        content = theirs if decision.content == self.source.name else mine
        if decision.metadata == self.target.name:
            return content._replace(mode=mine.mode, uid=mine.uid, gid=mine.gid, xattrs=mine.xattrs)
        owners = self.settings.owners[self.target.name]
        return content._replace(
            mode=theirs.mode,
            uid=owners.users.get(theirs.uid, theirs.uid),
            gid=owners.groups.get(theirs.gid, theirs.gid),
            xattrs=theirs.xattrs,
            mtime=timed.mtime,
        )

    def seen(self, decision: Decision, side: Side) -> Seen:
        return of(decision, side.name)

    def begin(self, decisions: list[Decision], groups: Groups, target_groups: Groups) -> None:
        """Sees what the decisions need of the target, and lets it come.

        ``groups`` are the source's hard links.
        """
        source = self.source.name
        contents = [decision for decision in decisions if decision.content == source]
        self.metas: list[Decision] = []
        # A name that only one replica has yet parts nobody from its file.
        lacking = {one.path for one in decisions if one.here is None or one.there is None}
        for decision in decisions:
            if decision.metadata == source and decision.content != source:
                # Names that shall be one file, or no longer be one, take its data anew.
                names = [restricted(known.get(decision.path), lacking) for known in (groups, target_groups)]
                relinked = decision.content is None and names[0] != names[1]
                (contents if relinked and "hardlinks" in self.settings.preserve else self.metas).append(decision)
        self.removals = [decision for decision in decisions if decision.remove == self.target.name]
        self.asides = [decision for decision in contents if decision.aside]
        self.idle = not (contents or self.metas or self.removals)
        if self.idle:
            return
        self.groups = groups
        # Names of a file that has others there than on the source.
        self.parted = {one.path for one in self.metas if groups.get(one.path) != target_groups.get(one.path)}
        # Of these the target may have no name, or another file by it.
        self.doubtful = {one.path for one in decisions if one.status != "agreed" or one.content == self.target.name}
        self.decided = {one.path for one in decisions}
        if not self.target.prepared:
            self.target.tree.prepare(self.settings.preserve)
            self.target.prepared = True
        self.leaders, self.followers = self.split_groups(contents, groups)
        new_trees = {one.path for one in self.leaders if self.kind(one) == "d"}
        self.tops = {path for path in new_trees if parent(path) not in new_trees}
        self.inside = {
            one.path for one in self.leaders if one.path not in self.tops and self.top(one.path, self.tops) is not None
        }
        self.made = [
            one for one in self.leaders if self.kind(one) != "f" and (one.path in self.inside or one.path in self.tops)
        ]
        self.run(
            chain(
                (Op("mkdir", path, None, DIRECTORY) for path in self.ways()),
                (Op("mkdir", one.path, None, writable(self.wanted(one))) for one in self.made if self.kind(one) == "d"),
            )
        )
        small: list[Decision] = []
        large: list[Decision] = []
        self.alike: list[Decision] = []
        for one in self.leaders:
            if self.kind(one) == "f":
                (small if self.fits(one) else self.alike if self.same_look(one) else large).append(one)
        if self.carry is None:
            self.start(large, anew=False)
            self.hand_over(small)
        else:
            self.bring(self.carry, large)

    def arrived(self) -> None:
        """Everything has come that was to come from the source; Failure where the way was lost."""
        if self.idle:
            return
        self.wait()
        if self.carry is None:
            self.start(self.alike, anew=True)
            self.wait()
        else:
            self.bring(self.carry, self.alike)

    def abandon(self) -> None:
        """Nothing more is to come."""
        if self.running is not None:
            self.running.stop()
        if self.names is not None:
            self.names.close()

    def gather(self) -> None:
        """Makes ready what has come, and looks again at the source."""
        if self.idle:
            return
        inside = self.inside | self.tops
        within = [one for one in self.leaders if one.path in inside]
        attributes = self.attributes(within)
        self.run(
            Op(KIND_OPS[self.kind(one)], one.path, None, self.wanted(one), attributes.get(one.path))
            for one in self.made
            if self.kind(one) != "d"
        )
        self.run(
            Op("meta", one.path, None, self.wanted(one), attributes.get(one.path))
            for one in within
            if self.kind(one) == "f" and one.path in attributes
        )
        self.run(
            Op("meta", one.path, None, self.wanted(one), attributes.get(one.path))
            for one in reversed(self.made)
            if self.kind(one) == "d"
        )
        # What is handed over is told of, unless it has been given attributes since.
        told = self.handed.keys() - attributes.keys()
        self.staged = self.in_stage(one.path for one in self.leaders if one.path not in told)
        self.unpack(0)
        self.heard()
        if lost := sorted(told - self.brought.keys()):
            self.staged |= self.in_stage(lost)
        self.staged |= {path: self.brought[path] for path in told & self.brought.keys()}
        good = self.verify(self.leaders)
        self.clear([one for one in self.leaders if one.path in self.inside and one.path not in good])
        self.heard()
        self.good = [one for one in self.leaders if one.path in good]

    def in_stage(self, paths: Iterable[bytes]) -> dict[bytes, Entry]:
        """What is there of the piece at these paths."""
        found = self.target.tree.staged(self.place + path for path in paths)
        return {path[len(self.place) :]: entry for path, entry in found if isinstance(entry, Entry)}

    def commit(self, *, one_way: bool) -> None:
        """Puts everything that was gathered in its place."""
        if self.idle:
            return
        self.progress("committing", 0, 0)
        self.put()
        self.link()
        self.set_metadata()
        if one_way:
            self.set_times()
        self.leave_out()

    def kind(self, decision: Decision) -> str:
        entry = self.seen(decision, self.source)
        return entry.kind if isinstance(entry, Entry) else ""

    @staticmethod
    def top(path: bytes, tops: set[bytes]) -> bytes | None:
        """The new directory that the path arrives in, if any."""
        while path:
            path = parent(path)
            if path in tops:
                return path
        return None

    def split_groups(self, contents: list[Decision], groups: Groups) -> tuple[list[Decision], list[Decision]]:
        """Of every hard-link group one name brings the data; the others are linked to it."""
        if "hardlinks" not in self.settings.preserve:
            return contents, []
        leaders, followers = [], []
        led: set[frozenset[bytes]] = set()
        arriving = {one.path for one in contents}
        for decision in contents:
            group = groups.get(decision.path)
            if group is None or self.kind(decision) == "d":
                leaders.append(decision)
            elif group in led or any(self.has(name) for name in group - arriving):
                followers.append(decision)
            else:
                led.add(group)
                leaders.append(decision)
        return leaders, followers

    def has(self, name: bytes) -> bool:
        """Whether the target has the source's file by this name, which does not arrive."""
        return name not in self.doubtful and (name in self.decided or self.agreed(name))

    # Stage.

    def ways(self) -> list[bytes]:
        """The directories that are there already, as far as the stage needs them around what is made in it."""
        found = {b""} if self.place else set()
        for one in self.made:
            path = one.path if one.path in self.tops else b""
            while path := parent(path):
                found.add(path)
        return sorted(found)

    def run(self, ops: Iterable[Op]) -> None:
        """Operations on what is staged of the piece; what came of them is for ``heard``."""
        placed = (op._replace(path=(self.place + op.path).rstrip(b"/"), stage=True) for op in ops)
        self.orders.append(self.target.tree.order(placed, self.behind))

    def heard(self) -> None:
        """What could not be done of the operations on the stage is among the problems."""
        while self.orders:
            for result in self.orders.popleft():
                if result.problem:
                    self.done.problems[result.path[len(self.place) :]] = result.problem

    def same_look(self, decision: Decision) -> bool:
        """Whether rsync would take the target's file for the source's, by size and time."""
        there, mine = self.seen(decision, self.source), self.seen(decision, self.target)
        return (
            isinstance(there, Entry)
            and isinstance(mine, Entry)
            and (there.kind, there.size, there.mtime) == (mine.kind, mine.size, mine.mtime)
        )

    def attributes(self, decisions: list[Decision]) -> dict[bytes, dict[str, bytes]]:
        """What the paths are to have, of those that have attributes, or whose target has some to lose."""
        if not self.settings.preserve & {"acls", "xattrs"}:
            return {}
        paths: dict[str, list[bytes]] = {self.source.name: [], self.target.name: []}
        for decision in decisions:
            mine = self.seen(decision, self.target)
            if self.wanted(decision).xattrs or (isinstance(mine, Entry) and mine.xattrs):
                stay = decision.metadata == self.target.name
                paths[self.target.name if stay else self.source.name].append(decision.path)
        found: dict[bytes, dict[str, bytes]] = {}
        for side in (self.source, self.target):
            if paths[side.name]:
                found.update(side.tree.attributes(paths[side.name]))
        return found

    def bring(self, carry: Carry, files: list[Decision]) -> None:
        """Contents of the source into the stage, in the way of the servers that they go between."""
        if not files:
            return
        coming = [Coming(one.path, self.planned(one), self.wanted(one), self.expected(one)) for one in files]
        carried = carry(self.source.tree, self.target.tree, coming, self.settings.preserve, self.progress)
        self.done.sent += carried.sent
        self.done.problems.update(carried.problems)

    def fits(self, decision: Decision) -> bool:
        """Whether the file is one for a parcel: small, and with nothing asked for that only rsync can do."""
        settings = self.settings
        planned, before = self.planned(decision), self.expected(decision)
        return (
            planned.size <= (NEW if before is None else CHANGED)
            and not (self.carry or self.source.own or settings.bandwidth_limit)
            and "permissions" in settings.preserve
        )

    def hand_over(self, files: list[Decision]) -> None:
        """Lets small files come, whose entries in the stage are told with that."""
        if not files:
            return
        assert isinstance(self.source.tree, (Tree, PartnerTree)) and isinstance(self.target.tree, (Tree, PartnerTree))
        self.progress("copying", 0, 0)
        self.handed = {one.path: one for one in files}
        sent: list[list[Item]] = []
        deflate = self.settings.compress
        asked = ((one.path, self.planned(one).record) for one in files)
        with closing(self.source.tree.give(asked, deflate=deflate)) as parcels:
            addressed = (self.addressed(one, sent) for one in parcels)
            for told in self.target.tree.take(addressed, deflate=deflate):
                self.parcels.append((sent.pop(), told))
                self.unpack(UNDER_WAY)
        self.behind = self.target.tree.latest if isinstance(self.target.tree, PartnerTree) else 0

    def unpack(self, most: int) -> None:
        """Takes up what became of parcels, until no more than so many are under way."""
        while len(self.parcels) > most:
            items, told = self.parcels.popleft()
            for (path, given, _more), (entry, problem) in zip(items, told()):
                path = path[len(self.place) :]
                if problem is not None:
                    self.done.problems[path] = problem
                size = self.planned(self.handed[path]).size
                if given != REFUSED and entry is not None and (entry.kind, entry.size) == ("f", size):
                    self.brought[path] = entry
            self.unpacked_files += len(items)
            self.progress("copying", self.unpacked_files, self.done.sent)

    def addressed(self, parcel: Parcel, sent: list[list[Item]]) -> Parcel:
        """The parcel as the target is to have it, in its own numbers of owners and its place in the stage.

        What it says is added to ``sent``.
        """
        owners = self.settings.owners[self.target.name]
        items = []
        for path, record, more in parcel.items:
            decision = self.handed[path]
            # Of what is new nothing is kept but its owners, by the target's numbers.
            planned = self.planned(decision)
            same_owners = (planned.uid, planned.gid) == (
                owners.users.get(planned.uid, planned.uid),
                owners.groups.get(planned.gid, planned.gid),
            )
            if record != REFUSED and not (same_owners and self.seen(decision, self.target) is None):
                record = self.wanted(decision).record
            items.append((self.place + path, record, more))
        self.done.sent += sum(map(len, parcel.contents))
        sent.append(items)
        return Parcel(items, parcel.contents)

    def planned(self, decision: Decision) -> Entry:
        entry = self.seen(decision, self.source)
        assert isinstance(entry, Entry)
        return entry

    def start(self, files: list[Decision], *, anew: bool) -> None:
        """Lets rsync bring the contents of the source into the stage."""
        if not files:
            return
        # The stage has to be there.
        self.heard()
        owners = self.settings.owners[self.target.name]
        self.names = names = tempfile.NamedTemporaryFile(prefix="serversync-")  # noqa: SIM115
        names.write(rsync.list_of(one.path for one in files))
        names.flush()
        place = f"{self.target.stage}/{os.fsdecode(self.place)}".rstrip("/")
        directory = f"{self.target.directory.rstrip('/')}/{place}"
        source, target = f"{self.source.directory.rstrip('/')}/{self.source.own}", f"{directory}/{self.target.own}"
        argv = rsync.command(
            self.source.server.address(source),
            self.target.server.address(target),
            files_from=None if self.source.own else names.name,
            basis="/".join([".."] * (place.count("/") + 1)),
            preserve=self.settings.preserve,
            privileged=self.target.server.privileged,
            users=owners.users,
            groups=owners.groups,
            remote_shell=self.source.server.remote_shell or self.target.server.remote_shell,
            bandwidth_limit=self.settings.bandwidth_limit,
            compress=self.settings.compress,
            anew=anew,
            partial=self.partial(),
            watched=self.settings.watched,
        )
        seen = [0, 0]

        def count(_change: rsync.Change) -> None:
            seen[0] += 1
            self.progress("copying", *seen)

        def measure(come: int) -> None:
            seen[1] = come
            self.progress("copying", *seen)

        self.progress("copying", 0, 0)
        limited = self.settings.bandwidth_limit is not None
        self.running = rsync.Running(argv, count, measure, limited=limited)

    def partial(self) -> str | None:
        """What a part has no mode of, because none is preserved, a whole file would not get either."""
        if "permissions" not in self.settings.preserve:
            return None
        return self.target.server.inside(f"{self.target.directory.rstrip('/')}/{self.target.partial}")

    def wait(self) -> None:
        """For rsync, if it runs."""
        if self.running is None:
            return
        outcome = self.running.wait()
        self.abandon()
        self.running = None
        self.done.sent += outcome.sent
        failure = rsync.failure(outcome, self.source.path)
        if failure and outcome.code not in PARTIAL:
            raise failure
        if failure:
            self.incomplete = failure
            if failure.transient:
                self.done.transient.add(failure.code)

    # Looking again.

    def verify(self, leaders: list[Decision]) -> set[bytes]:
        """The paths whose staged entry is what was planned and whose source has not moved since."""
        good = set()
        now = dict(self.source.tree.entries([one.path for one in leaders]))
        for one in leaders:
            planned, arrived, current = self.seen(one, self.source), self.staged.get(one.path), now.get(one.path)
            assert isinstance(planned, Entry)
            if not isinstance(current, Entry) or not unmoved(planned, current):
                self.done.problems[one.path] = ("moved", "was changed on the source during the run")
            elif (planned.kind == "f" or one.path in self.inside) and not self.whole(planned, arrived):
                why = self.incomplete
                said = (why.code, why.message) if why else ("not_staged", "did not arrive whole")
                self.done.problems.setdefault(one.path, said)
            elif self.done.problems.get(one.path, NO_PROBLEM)[0] in (*FLAWS, ""):
                good.add(one.path)
        return good

    def whole(self, planned: Entry, arrived: Entry | None) -> bool:
        step = self.settings.granularity
        if arrived is None or arrived.kind != planned.kind:
            return False
        if planned.kind != "f":
            return True
        return arrived.size == planned.size and arrived.mtime // step == planned.mtime // step

    def clear(self, bad: list[Decision]) -> None:
        """What must not become visible with the new directory around it."""
        self.run(Op("drop", one.path) for one in reversed(bad) if one.path in self.staged and self.kind(one) != "d")

    # Commit.

    def put(self) -> None:
        attributes = self.attributes(
            [one for one in self.good if one.path not in self.inside and one.path not in self.tops]
        )
        steps: list[tuple[Decision, Op]] = []
        for one in self.asides:
            steps.append((one, Op("aside", one.path, self.expected(one), to=one.aside)))
        for one in sorted(self.removals, key=lambda one: one.path, reverse=True):
            steps.append((one, Op("delete", one.path, self.expected(one), None, None)))
        within: dict[bytes, list[Decision]] = {}
        for one in self.good:
            if one.path in self.inside:
                top = self.top(one.path, self.tops)
                assert top is not None
                within.setdefault(top, []).append(one)
            else:
                steps.append((one, self.putting(one, one.path in self.tops, attributes)))
        for top in within.keys() - {one.path for one, _op in steps}:
            # It could not be made ready in the stage, or is another one by now.
            self.done.problems.update((one.path, WITHOUT) for one in within.pop(top))
        while steps:
            in_the_way = self.carry_out(steps, within)
            steps = []
            for taken in in_the_way:
                # A directory that is there for what does not take part: its contents arrive one by one.
                steps += self.unpacked(taken, within)

    def putting(self, one: Decision, tree: bool, attributes: Mapping[bytes, dict[str, bytes]]) -> Op:
        do = "tree" if tree else KIND_OPS[self.kind(one)]
        arriving = self.place + one.path if do in ("tree", "put") else b""
        return Op(do, one.path, self.replaced(one), self.wanted(one), attributes.get(one.path), arriving)

    def carry_out(self, steps: list[tuple[Decision, Op]], within: dict[bytes, list[Decision]]) -> list[Decision]:
        """Commits, each batch once its intents are on record; the new directories for which there is one already."""
        in_the_way: list[Decision] = []
        waiting: deque[tuple[list[tuple[Decision, Op]], Iterator[Result]]] = deque()
        for batch in cut(steps, BATCH):
            self.intend(
                self.target.name,
                (
                    (one, None if op.do == "delete" else self.staged.get(one.path, op.want))
                    for decision, op in batch
                    if op.do != "aside"
                    for one in [decision, *(within.get(decision.path, []) if op.do == "tree" else [])]
                ),
            )
            waiting.append((batch, self.target.tree.order(op for _decision, op in batch)))
            if len(waiting) > BATCHES:
                in_the_way += self.kept(*waiting.popleft(), within)
        for ordered in waiting:
            in_the_way += self.kept(*ordered, within)
        return in_the_way

    def kept(
        self, batch: list[tuple[Decision, Op]], results: Iterator[Result], within: dict[bytes, list[Decision]]
    ) -> Iterator[Decision]:
        """Keeps what came of a batch; the new directories for which there is one already."""
        for (decision, op), result in zip(batch, list(results)):
            inner = within.get(decision.path, []) if op.do == "tree" else []
            placed = result.problem is None or result.problem[0] in FLAWS
            if op.do == "tree" and result.problem and not placed and op.expect is None:
                yield decision
                self.blocked[decision.path] = result.problem
                continue
            self.keep(decision, op, result)
            if placed:
                self.done.entries.update((one.path, self.staged[one.path]) for one in inner)
            else:
                self.done.problems.update((one.path, WITHOUT) for one in inner)
        self.progress("committing", len(self.done.entries), 0)

    def unpacked(self, top: Decision, within: dict[bytes, list[Decision]]) -> list[tuple[Decision, Op]]:
        """The steps by which the contents of a staged directory get into the one that is there."""
        inner = within.pop(top.path, [])
        [(_path, there)] = self.target.tree.entries([top.path])
        if not isinstance(there, Entry) or there.kind != "d":
            self.done.problems.update((one.path, self.blocked[top.path]) for one in [top, *inner])
            return []
        self.shared.add(top.path)
        attributes = self.attributes([top, *inner])
        steps = [(top, Op("meta", top.path, there, self.wanted(top), attributes.get(top.path)))]
        for one in inner:
            child = one.path[: (one.path + b"/").index(b"/", len(top.path) + 1)]
            if child == one.path:
                steps.append((one, self.putting(one, self.kind(one) == "d", attributes)))
            else:
                within.setdefault(child, []).append(one)
        return steps

    def expected(self, decision: Decision) -> Entry | None:
        entry = self.seen(decision, self.target)
        return entry if isinstance(entry, Entry) else None

    def replaced(self, decision: Decision) -> Entry | None:
        """What is at the path when something is put there; what was put aside is at its new name by then."""
        return None if decision.aside else self.expected(decision)

    def keep(self, decision: Decision, op: Op, result: Result) -> None:
        left = op.do == "delete" and result.problem is not None and result.problem[0] == "not_empty"
        if left and not any(path.startswith(decision.path + b"/") for path in self.done.problems):
            # It is there for what does not take part, which the next scan does not see, or for what came meanwhile.
            self.done.entries[decision.path] = None
        elif result.problem:
            self.done.problems[decision.path] = result.problem
        elif op.do == "aside":
            self.done.entries[op.to] = result.entry
        else:
            entry = result.entry
            if entry is not None and op.want is not None:
                # What is read back there comes without.
                entry = entry._replace(xattrs=op.want.xattrs)
                if op.do == "link" and not alike(entry, op.want, self.settings.preserve):
                    self.done.again.add(decision.path)
            self.done.entries[decision.path] = None if op.do == "delete" else entry
        if result.version:
            self.done.versions[decision.path] = result.version

    def link(self) -> None:
        """The other names of a group whose data has arrived, or was there."""
        steps = []
        followers, groups = self.followers, self.groups
        following = {one.path for one in followers}
        for one in followers:
            for leader in sorted(groups[one.path]):
                entry = self.done.entries.get(leader)
                if leader != one.path and entry is not None and leader not in self.done.problems:
                    break
            else:
                there = [path for path in sorted(groups[one.path]) if path not in following and self.has(path)]
                if not there or there[0] in self.done.problems:
                    self.done.problems[one.path] = ("moved", "the file that it is a hard link of did not arrive")
                    continue
                leader = there[0]
            steps.append((one, Op("link", one.path, self.replaced(one), self.wanted(one), to=leader)))
        for batch in cut(steps, BATCH):
            self.intend(self.target.name, ((one, op.want) for one, op in batch))
            for (one, op), result in zip(batch, list(self.target.tree.order(op for _one, op in batch))):
                self.keep(one, op, result)
            self.progress("committing", len(self.done.entries), 0)

    def set_times(self) -> None:
        """The directories in which something was put or removed have the times of the source's."""
        if "times" not in self.settings.preserve:
            return
        # A new directory has them already, but where a name was linked in it or a file had to go from it.
        whole = self.inside | self.tops if not self.shared else set()
        good = {one.path for one in self.good}
        whole -= {parent(one.path) for one in (*self.followers, *self.leaders) if one.path not in good}
        touched = sorted({parent(path) for path in self.done.entries} - whole, reverse=True)
        seen = self.source.tree.entries(touched)
        theirs = [(path, entry.mtime) for path, entry in seen if isinstance(entry, Entry) and entry.kind == "d"]
        # They decide nothing: one that cannot be set, of a root that is somebody else's, fails no run.
        if theirs:
            self.target.tree.set_times(theirs)

    def leave_out(self) -> None:
        """A directory that still holds nothing but what does not take part is not there for this run, nor the next."""
        if not self.shared:
            return
        entries = self.done.entries
        filled = {parent(path) for path, entry in entries.items() if entry is not None and path not in self.shared}
        for path in sorted(self.shared, reverse=True):
            if path in entries and path not in filled and not self.awaited(path):
                entries[path] = None
            else:
                filled.add(parent(path))

    def awaited(self, directory: bytes) -> bool:
        """Whether another piece puts something in it."""
        return any(path not in self.decided for path in self.later(directory))

    def set_metadata(self) -> None:
        """Metadata of what is there; directories after all else and from below."""
        metas = self.metas
        attributes = self.attributes(metas)
        steps = [
            (one, Op("meta", one.path, self.expected(one), self.wanted(one), attributes.get(one.path)))
            for one in sorted(metas, key=lambda one: (self.kind(one) == "d", [-len(one.path)]))
        ]
        for batch in cut(steps, BATCH):
            self.intend(self.target.name, ((one, op.want) for one, op in batch))
            for (one, op), result in zip(batch, list(self.target.tree.order(op for _one, op in batch))):
                self.keep(one, op, result)
                several = op.expect is not None and op.expect.kind != "d" and op.expect.nlink > 1
                if several and ("hardlinks" not in self.settings.preserve or one.path in self.parted):
                    self.done.beside = True
            self.progress("committing", len(self.done.entries), 0)


class Piece:
    """A part of a plan on its way to the replicas that it changes."""

    def __init__(self, decisions: list[Decision], propagations: dict[str, Propagation]) -> None:
        """propagations: by the replica that they change."""
        self.decisions = decisions
        self.propagations = propagations

    @property
    def done(self) -> dict[str, Done]:
        return {side: self.propagations[side].done if side in self.propagations else Done() for side in SIDES}

    @property
    def carried(self) -> bool:
        """Whether it does not have its own place in the stage; then it comes only after the one before is in place."""
        return any(one.carry is not None for one in self.propagations.values())

    def begin(self, groups: Mapping[str, Groups]) -> None:
        """groups: hard links by replica."""
        for target, one in self.propagations.items():
            one.begin(self.decisions, groups.get(OTHER[target], {}), groups.get(target, {}))

    def arrived(self) -> None:
        for one in self.propagations.values():
            one.arrived()

    def commit(self, *, one_way: bool) -> None:
        # Both gather before either commits: what is put on one side would else look moved to the other.
        for one in self.propagations.values():
            one.gather()
        for one in self.propagations.values():
            one.commit(one_way=one_way)

    def abandon(self) -> None:
        for one in self.propagations.values():
            one.abandon()


KIND_OPS = {"f": "put", "l": "symlink", "p": "special", "s": "special", "b": "special", "c": "special", "d": "mkdir"}
# A directory of the stage that is only on the way to something.
DIRECTORY = Entry("d", 0, 0, 0, 0, 0o700, 0, 0, 0)
NO_PROBLEM = ("", "")
WITHOUT = ("moved", "its directory could not be put in its place")
# rsync's exit codes after which what has arrived may be used: some paths could not be read, or vanished.
PARTIAL = {0, 23, 24}


def writable(entry: Entry) -> Entry:
    """A directory into which its owner may put files; its own mode comes last."""
    return entry._replace(mode=entry.mode | 0o700)


def restricted(group: frozenset[bytes] | None, lacking: set[bytes]) -> frozenset[bytes] | None:
    """The names of a file that both replicas have; None: just one."""
    names = group - lacking if group else frozenset()
    return names if len(names) > 1 else None


# What is preserved of a file's metadata -> the entry's field.
FIELDS = {"permissions": "mode", "owner": "uid", "group": "gid", "times": "mtime"}


def alike(entry: Entry, want: Entry, preserve: frozenset[str]) -> bool:
    return all(getattr(entry, name) == getattr(want, name) for field, name in FIELDS.items() if field in preserve)


def unmoved(planned: Entry, current: Entry) -> bool:
    if planned.kind != current.kind or planned.inode != current.inode:
        return False
    if planned.kind == "d":
        return True
    return (planned.size, planned.mtime, planned.ctime) == (current.size, current.mtime, current.ctime)


def cut(items: list[tuple[Decision, Op]], size: int) -> Iterable[list[tuple[Decision, Op]]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def failure_of(problems: dict[bytes, tuple[str, str]], curable: set[str], where: str) -> Failure | None:
    """What the problems of an element mean for it, or None where there are none; curable: codes that may pass."""
    if not problems:
        return None
    transient = all(code in curable for code, _text in problems.values())
    path, (code, text) = min(problems.items(), key=lambda item: (item[1][0] in curable, item[0]))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Failure(code, f"{os.fsdecode(path) or '.'}: {text}{more}", field=where, transient=transient)
