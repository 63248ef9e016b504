# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run has to leave behind: a reference of the decisions, written from the tables and from nothing of the runner.

Three trees: this server's, the partner's, and what is remembered of each path. It works on whole trees in memory and
knows nothing of inodes, digests, stages or journals. Where the tables leave several outcomes open, or where a path
hangs on the type of one above it, the path is *loose*: only the laws (laws.py) judge it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.faults.observe import Node, Tree, copy_of, is_copy, short

Maybe = Node | None
# ns by which the clocks of two servers, asked one after the other on a busy machine, seem to differ.
CLOCKS = 10**9


class Row(NamedTuple):
    """What is remembered: each replica's own node as it was left, and the last agreed pair of an unresolved path."""

    status: str
    here: Maybe
    there: Maybe
    base: tuple[Maybe, Maybe] | None = None


@dataclass(frozen=True)
class Rules:
    direction: str = "to_partner"
    conflict: str = "newer_wins"
    delete: str = "never"
    # False in the first run of an archive: then nothing is deleted.
    deletions: bool = True
    # Whether the account may give files away; who may not leaves owners out.
    owners: bool = True
    # How far the clocks are apart, ns: what is nearer to each other than that is a tie.
    skew: int = 0
    # Whether a replica tells that contents were touched whose size and time are as before.
    change_times: bool = True


class Aspect(NamedTuple):
    """Content or metadata: the side whose goes over (None: neither's), and whether a rule had to say so."""

    side: str | None
    by_rule: bool


class Outcome(NamedTuple):
    here: Maybe
    there: Maybe
    status: str
    # The version that keep both renames beside the path.
    copy: Maybe = None
    loose: bool = False


@dataclass
class Prediction:
    here: Tree = field(default_factory=dict)
    there: Tree = field(default_factory=dict)
    # By the path that they are copies of.
    copies: dict[bytes, list[Node]] = field(default_factory=dict)
    loose: set[bytes] = field(default_factory=set)
    statuses: dict[bytes, str] = field(default_factory=dict)

    def is_loose(self, path: bytes) -> bool:
        """A loose path takes along what is below it."""
        while path:
            if path in self.loose:
                return True
            path = os.path.dirname(path)
        return False


class Model:
    """Remembers between runs what an archive would."""

    def __init__(self, rules: Rules, excluded: Callable[[bytes], bool] = lambda path: False) -> None:
        self.rules = rules
        self.excluded = excluded
        self.rows: dict[bytes, Row] = {}
        # Paths that differ, of which nobody can say what the archive has.
        self.doubtful: set[bytes] = set()

    # -- comparing ---------------------------------------------------------------------------------------------------

    def meta(self, node: Node) -> tuple[object, ...]:
        mode, owner, xattrs = node.metadata
        return mode, owner if self.rules.owners else None, xattrs

    def same(self, one: Maybe, other: Maybe) -> bool:
        """Alike in everything that is synchronized."""
        if one is None or other is None:
            return one is other
        return (one.data, self.meta(one), one.time) == (other.data, self.meta(other), other.time)

    # -- one path ----------------------------------------------------------------------------------------------------

    def freed(self, path: bytes, here: Tree, there: Tree) -> bool:
        """Whether what stood against a directory above has moved: then what is in it is decided again with it."""
        while path := os.path.dirname(path):
            row = self.rows.get(path)
            if row is not None and row.status != "agreed":
                kinds = {node.kind for node in (row.here, row.there) if node is not None}
                still = self.same(here.get(path), row.here) and self.same(there.get(path), row.there)
                if len(kinds) > 1 and "d" in kinds and not still:
                    return True
        return False

    def decide(self, path: bytes, here: Maybe, there: Maybe, *, freed: bool = False) -> Outcome:
        row = self.rows.get(path)
        if here is None and there is None:
            return Outcome(None, None, "dropped")
        if row is not None and (here is None or there is None) and not self.rules.change_times:
            node, old = (here, row.here) if here is not None else (there, row.there)
            # There is nothing to compare it with where its contents alone have moved.
            unseen = node and old and node.content != old.content and self.same(node._replace(content=old.content), old)
            if unseen:
                return Outcome(here, there, row.status, loose=True)
        if row is not None and row.status != "agreed":
            if self.same(here, row.here) and self.same(there, row.there) and not freed:
                # What is below a directory goes the way of what stands against it.
                kinds = {node.kind for node in (here, there) if node is not None}
                return Outcome(here, there, row.status, loose=len(kinds) > 1 and "d" in kinds)
            held = row.status == "unresolved" and not row.base and (row.here is None or row.there is None)
            row = Row("agreed", *row.base) if row.base else None
        else:
            held = False
        if self.same(here, there):
            return Outcome(here, there, "agreed")
        if here is None or there is None:
            outcome = self.one_sided(path, here, there, row)
            # A deletion that was held back waits for a person, whatever has moved.
            return Outcome(here, there, "unresolved") if held and outcome.status == "dropped" else outcome
        if self.rules.conflict == "newer_wins" and 0 < abs(here.mtime - there.mtime) < CLOCKS:
            # As far as that the two clocks may be measured apart.
            return Outcome(here, there, "agreed", loose=True)
        if "d" in {node.kind for node in (here, there, *(row[1:3] if row else ())) if node} and here.kind != there.kind:
            return Outcome(here, there, "agreed", loose=True)
        return self.two_sided(here, there, row)

    def winner(self, here: Node, there: Node) -> str | None:
        """here, there, or None where nobody wins; keep both: the one whose version keeps its name."""
        rule, direction = self.rules.conflict, self.rules.direction
        if rule == "newer_wins":
            # Of a link, too, which else decides nothing; a directory's never.
            ours, theirs = (node.mtime if node.kind != "d" else 0 for node in (here, there))
            if ours == theirs or abs(ours - theirs) < self.rules.skew:
                return {"to_partner": "here", "from_partner": "there", "both": None}[direction]
            return "here" if ours > theirs else "there"
        if rule == "keep_both":
            return "there" if direction == "from_partner" else "here"
        return {"this_server_wins": "here", "partner_wins": "there", "no_winner": None}[rule]

    def one_sided(self, path: bytes, here: Maybe, there: Maybe, row: Row | None) -> Outcome:
        """One replica has the path, the other has not."""
        rules = self.rules
        side, node = ("here", here) if here is not None else ("there", there)
        assert node is not None
        other = "there" if side == "here" else "here"
        copied, gone, stays = Outcome(node, node, "agreed"), Outcome(None, None, "dropped"), (here, there)
        moved = row is not None and not self.same(node, row.here if side == "here" else row.there)
        names = {"this_server_wins": "here", "partner_wins": "there"}
        if rules.direction == "both":
            if row is None:
                return copied
            if not moved:
                return Outcome(*stays, "left") if rules.delete == "never" else self.deleted(gone, stays)
            if rules.delete == "never" or rules.conflict in ("newer_wins", "keep_both"):
                return copied
            if rules.conflict == "no_winner":
                return Outcome(*stays, "unresolved")
            return copied if names[rules.conflict] == side else self.deleted(gone, stays)
        source = "here" if rules.direction == "to_partner" else "there"
        wins = names.get(rules.conflict)
        if side == source:  # rows 2, 3 and 4
            if row is None or rules.conflict in ("newer_wins", "keep_both") or wins == source:
                return copied
            return Outcome(*stays, "unresolved" if rules.conflict == "no_winner" else "kept")
        if row is None:  # row 5
            # What is called like a conflict copy stays, whatever became of it.
            copy = any(map(is_copy, path.split(b"/")))
            if rules.delete == "extraneous" and not copy:
                return self.deleted(gone, stays)
            return Outcome(*stays, "left")
        if rules.delete == "never":  # rows 6 and 7
            return Outcome(*stays, "left")
        if not moved or wins == source:
            return self.deleted(gone, stays)
        assert wins in (None, other, side)
        return Outcome(*stays, "unresolved" if rules.conflict == "no_winner" else "kept")

    def deleted(self, gone: Outcome, stays: tuple[Maybe, Maybe]) -> Outcome:
        return gone if self.rules.deletions else Outcome(*stays, "unresolved")

    def two_sided(self, here: Node, there: Node, row: Row | None) -> Outcome:
        """Both have the path and differ: content and metadata each go where they have to."""
        pair = (row.here, row.there) if row and row.here and row.there else None
        if row is not None and pair is None:
            return Outcome(here, there, "agreed", loose=True)
        same_data = here.data == there.data
        if same_data and here.time != there.time and self.meta(here) != self.meta(there):
            # A file whose time has moved may be taken for changed without a look into it.
            return Outcome(here, there, "agreed", loose=True)

        def rest(node: Node) -> object:
            # Where contents differ the time belongs to them.
            return (self.meta(node), node.time) if same_data else self.meta(node)

        nothing: Aspect = Aspect(None, False)
        data = nothing if same_data else self.aspect(here, there, pair, lambda node: (node.data, node.time))
        meta = nothing if rest(here) == rest(there) else self.aspect(here, there, pair, rest)
        if not same_data and (pair is None or here.kind != there.kind):
            meta = data
        elif pair is None and self.source:
            # Equal content, never agreed: the source's metadata goes over.
            meta = Aspect(self.source, False)
        undecided = [aspect for aspect in (data, meta) if aspect == (None, True)]
        if undecided:
            # Whether the other aspect moves where one alone is in conflict is left open.
            return Outcome(here, there, "unresolved", loose=any(aspect.side for aspect in (data, meta)))
        copy = None
        if self.rules.conflict == "keep_both" and (data.by_rule or meta.by_rule):
            if not data.by_rule:
                return Outcome(here, there, "agreed", loose=True)
            copy = here if self.rules.direction == "from_partner" else there
            if data.side != meta.side and meta.side is not None:
                # Whether what moved of the losing version's metadata goes with it alone is left open.
                return Outcome(here, there, "agreed", loose=True)
        return self.put(here, there, data.side, meta.side, copy)

    @property
    def source(self) -> str | None:
        return {"to_partner": "here", "from_partner": "there", "both": None}[self.rules.direction]

    def aspect(self, here: Node, there: Node, pair: tuple[Node, Node] | None, part: Callable[[Node], object]) -> Aspect:
        """Whose part goes over; in both directions the one that moved, in one the source's if it alone did."""
        if pair is not None:
            moved = {"here": part(here) != part(pair[0]), "there": part(there) != part(pair[1])}
            sides = [side for side in moved if moved[side]]
            if len(sides) == 1 and self.source in (None, sides[0]):
                return Aspect(sides[0], False)
        return Aspect(self.winner(here, there), True)

    def put(self, here: Node, there: Node, data: str | None, meta: str | None, copy: Maybe) -> Outcome:
        """What both are after the aspects have moved; in one direction nothing moves to the source."""
        new = {"here": here, "there": there}
        metadata = ("mode", "owner", "xattrs", *(() if data else ("mtime",)))
        for side, fields in ((data, ("kind", "content", "size", "mtime")), (meta, metadata)):
            if side is not None and self.source in (None, side):
                other = "there" if side == "here" else "here"
                new[other] = new[other]._replace(**{name: getattr(new[side], name) for name in fields})
        status = "agreed" if self.same(new["here"], new["there"]) else "kept"
        return Outcome(new["here"], new["there"], status, copy)

    # -- a whole run -------------------------------------------------------------------------------------------------

    def visible(self, tree: Tree) -> Tree:
        """Without what is excluded, what is below it, and directories that are there for nothing else."""
        shown = {path: node for path, node in tree.items() if not self.hidden(path)}
        for path in sorted(shown, reverse=True):
            below = [other for other in tree if other.startswith(path + b"/")]
            if shown[path].kind == "d" and below and not any(other in shown for other in below):
                del shown[path]
        return shown

    def hidden(self, path: bytes) -> bool:
        while path:
            if self.excluded(path):
                return True
            path = os.path.dirname(path)
        return False

    def predict(self, here: Tree, there: Tree) -> Prediction:
        """The trees after a run (excluded paths left out); nothing is remembered of it yet, see ``settle``."""
        everything = here, there
        here, there = self.visible(here), self.visible(there)
        found = Prediction()
        for path in sorted({*here, *there, *self.rows}):
            freed = self.freed(path, here, there)
            outcome = self.decide(path, here.get(path), there.get(path), freed=freed)
            if outcome.here is not None:
                found.here[path] = outcome.here
            if outcome.there is not None:
                found.there[path] = outcome.there
            if outcome.copy is not None:
                found.copies.setdefault(path, []).append(outcome.copy)
            if outcome.loose:
                found.loose.add(path)
            found.statuses[path] = outcome.status
        for tree, before, other in ((found.here, here, there), (found.there, there, here)):
            for path in sorted(tree):
                above = os.path.dirname(path)
                while above:
                    if above not in tree:
                        # What is below needs it: it stays, or comes with it.
                        made = before.get(above) or other.get(above)
                        if made is None or made.kind != "d":
                            found.loose.add(above)
                            break
                        if found.statuses.get(above) in ("kept", "unresolved"):
                            # Whether what is new in a directory brings that back, against what was decided of it.
                            found.loose.add(above)
                        tree[above] = made
                        found.statuses[above] = "agreed"
                    elif tree[above].kind != "d":
                        found.loose.add(above)
                    above = os.path.dirname(above)
        for tree, whole in zip((found.here, found.there), everything, strict=True):
            # What is left with excluded files alone is not there for another look, which the run may take.
            hidden = {path: node for path, node in whole.items() if self.hidden(path)}
            found.loose |= tree.keys() - self.visible({**hidden, **tree}).keys()
            # And what is to be put where such a directory is has to wait for somebody to move it away.
            hollow = whole.keys() - hidden.keys() - self.visible(whole).keys()
            found.loose |= hollow & {path for path, node in tree.items() if node.kind != "d"}
        found.loose |= {path for path in self.doubtful if not self.same(here.get(path), there.get(path))}
        # Names of one inode are written through one another: their group decides with them.
        for tree in (here, there):
            found.loose |= {path for path, node in tree.items() if node.kind != "d" and node.nlink > 1}
        return found

    def differences(self, found: Prediction, here: Tree, there: Tree) -> list[str]:
        """Where the trees are not as predicted."""
        wrong = []
        for name, predicted, whole in (("this server", found.here, here), ("partner", found.there, there)):
            tree = self.visible(whole)
            for path in sorted({*predicted, *tree}):
                expected, node = predicted.get(path), tree.get(path)
                if expected is not None and expected.kind == "d" and path in whole:
                    # It may have become one that is there for excluded files only.
                    node = whole[path]
                if found.is_loose(path) or self.same(expected, node):
                    continue
                if expected is None and node and self.is_copy(path, node, found):
                    continue
                wrong.append(f"{name}: {path!r} is {short(node)}, should be {short(expected)}")
        return wrong

    def is_copy(self, path: bytes, node: Node, found: Prediction) -> bool:
        """Whether it is a conflict copy that has to be there; of a loose path nobody knows which ones do."""
        copies = [copy.data for of, those in found.copies.items() if copy_of(path, of) for copy in those]
        above = path
        while above:
            # A directory is copied with all that is in it.
            if any(copy_of(above, of) for of in found.loose):
                return True
            above = os.path.dirname(above)
        return node.data in copies

    def settle(self, found: Prediction, here: Tree, there: Tree) -> None:
        """Remembers a run that has ended as it should; loose paths as they came out."""
        here, there = self.visible(here), self.visible(there)
        rows = {}
        for path in {*here, *there}:
            x, y = here.get(path), there.get(path)
            status = found.statuses.get(path, "agreed")
            if self.same(x, y):
                rows[path] = Row("agreed", x, y)
                continue
            if status == "agreed":
                # Loose, or a conflict copy that in one direction only the target has.
                status = "left" if is_copy(path) else "kept"
            base = None
            if status == "unresolved":
                old = self.rows.get(path)
                base = (old.here, old.there) if old and old.status == "agreed" else old.base if old else None
            rows[path] = Row(status, x, y, base)
        self.rows = rows

    def adopt(self, here: Tree, there: Tree) -> None:
        """After a time that no prediction covers: what is equal has agreed, of the rest nothing is known."""
        here, there = self.visible(here), self.visible(there)
        self.rows = {path: Row("agreed", node, there[path]) for path, node in here.items() if path in there}
        self.rows = {path: row for path, row in self.rows.items() if self.same(row.here, row.there)}

    def absorb(self, here: Tree, there: Tree) -> None:
        """After a run that was cut short: what has come to be equal has agreed, the rest is as it was remembered."""
        here, there = self.visible(here), self.visible(there)
        self.rows = {path: row for path, row in self.rows.items() if path in here or path in there}
        for path in {*here} & {*there}:
            if self.same(here[path], there[path]):
                self.rows[path] = Row("agreed", here[path], there[path])

    def edited(self, rules: Rules) -> None:
        """The settings were edited between two runs: what was decided by the old ones is decided again."""
        whole = (rules.direction, rules.delete) != (self.rules.direction, self.rules.delete)
        rule = rules.conflict != self.rules.conflict
        self.rules = rules
        for path, row in list(self.rows.items()):
            if row.status == "unresolved" and row.base and rule and not whole:
                self.rows[path] = Row("agreed", *row.base)
            elif row.status == "unresolved" and not row.base and (row.here is None or row.there is None):
                # A deletion that was held back waits for a person, whatever is edited.
                continue
            elif row.status != "agreed" and (whole or (rule and row.status != "left")):
                del self.rows[path]

    def doubt(self, here: Tree, there: Tree) -> None:
        """What differs now stands for a reason that is not known."""
        here, there = self.visible(here), self.visible(there)
        self.doubtful = {path for path in {*here, *there} if not self.same(here.get(path), there.get(path))}

    def forget(self) -> None:
        """The archive is gone."""
        self.rows = {}
