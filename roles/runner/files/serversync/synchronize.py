# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One element of one run: update detection on both replicas, reconciliation against the archive, propagation.

Detection compares digests of directories with those that the archive has; only the directories whose digest moved are
read path by path, and only on the side where it moved.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from serversync import ahead
from serversync.archive import Archive, DamagedArchive, Intent, Update
from serversync.archiving import LINES, Archiving, Problems, as_known, row_of, trusted
from serversync.counts import Tell
from serversync.detect import Summary
from serversync.entry import HERE, THERE, Entry, Row
from serversync.failure import Failure, InvalidDocument, Stopped
from serversync.guards import (
    Room,
    doubted,
    empties,
    fits,
    lacking,
    last_change,
    readable,
    replacements,
    room,
    tripped,
)
from serversync.held import good, stage_of
from serversync.job import Element, Job, amount, load, seconds, size
from serversync.layout import Layout
from serversync.locks import owner, told_of
from serversync.machine import known_as
from serversync.pieces import moved_bytes, pieces
from serversync.propagate import (
    Done,
    Groups,
    Piece,
    Propagation,
    Settings,
    Side,
    beneath,
    failure_of,
)
from serversync.reconcile import (
    OTHER,
    SIDES,
    Decision,
    Owners,
    Plan,
    Restamped,
    Rules,
    Seen,
    Triple,
    Unknown,
    deep,
    folded,
    half_of,
    is_directory,
    moved,
    of,
    parent,
    reconcile,
)
from serversync.replica import Partner, PartnerTree, Replica, Server, ThisServer, translations
from serversync.ssh import Conversation
from serversync.tree import Tree
from serversync.wire import plausible

TARGETS = {"to_partner": (THERE,), "from_partner": (HERE,), "both": SIDES}
# What of a replica's identity is a person's to change.
PLACE = ("machine", "path")
# Of as many paths an archive can do without, and knows that it does.
UNSEEN = 1000
# What a plan and a record name one by one.
NAMED_PATHS = 200
PRESERVE = frozenset(("times", "permissions", "owner", "group", "links", "hardlinks", "acls", "xattrs", "sparse"))
# Directories whose children are compared at a time: bounds memory, not the result.
DIRECTORIES = 500
# A piece of a plan: what is lost by a kill, held in memory on the way, and staged.
ENTRIES = 16_000
BYTES = 1 << 30
# A round trip (s) that says wide-area network.
FAR = 0.02


def silent(_phase: str, _files: int, _bytes: int) -> None:
    return


@dataclass
class Report:
    """What a run tells of one element; paths are bytes as the replicas have them."""

    state_before: str | None = None
    state_after: str = "equal"
    plan: Plan | None = None
    entries: int = 0
    created: int = 0
    updated: int = 0
    attributes: int = 0
    deleted: int = 0
    conflicts: int = 0
    sent: int = 0
    standing: dict[str, int] = field(default_factory=dict)
    # The first of what waits for a person, whenever that was found.
    unresolved: list[Row] = field(default_factory=list)
    guards: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    versions: dict[bytes, bytes] = field(default_factory=dict)
    failure: Failure | None = None


def element_name(job: str, path: str, partner_path: str) -> str:
    """The element's directory below ``.serversync``, and its archive. Both paths count: another server's job of this
    name may put its files into the same directory."""
    both = os.fsencode(f"{path}\0{partner_path}")
    return f"{job}.{hashlib.sha256(both).hexdigest()[:8]}"


def archives_of(layout: Layout, job: str) -> Path:
    return layout.state / "archives" / job


def former_name(layout: Layout, job: Job, element: Element) -> str:
    """How the element was called before it was moved or its job renamed; empty: nothing is to be taken over.

    The archives of a job that was renamed have its old name until they are taken over.
    """
    paths = [path for path in (element.path, element.previous_path) if path]
    names = [element_name(job.name, path, element.partner_path) for path in paths]
    directory = archives_of(layout, job.name)
    if not (directory / f"{names[0]}.sqlite").exists():
        for name in names:
            for archive in sorted(directory.glob(f"*.{name.rpartition('.')[2]}.sqlite")):
                return archive.stem
    return names[1] if len(names) > 1 else ""


class Synchronization:
    """One element between its two replicas, held open until its ``with`` block ends."""

    def __init__(
        self,
        layout: Layout,
        job: Job,
        element: Element,
        servers: dict[str, Server],
        *,
        run: str,
        look: bool,
        passed: Collection[str] | None = None,
        decided: dict[bytes, str] | None = None,
        progress: Tell = silent,
    ) -> None:
        """look: for a plan, so nothing is made, changed or locked; passed: the guards that the approved plan was shown
        with, None: no plan is approved; decided: paths whose winner a person has named."""
        self.layout = layout
        self.job = job
        self.element = element
        self.servers = servers
        self.run = run
        self.look = look
        self.passed = passed
        self.decided = decided or {}
        self.progress = progress
        self.settings: dict[str, Any] = element.settings
        self.direction: str = self.settings["direction"]
        self.paths = {HERE: element.path, THERE: element.partner_path}
        self.targets = TARGETS[self.direction]
        self.name = element_name(job.name, element.path, element.partner_path)
        self.previous = former_name(layout, job, element)
        self.held = ExitStack()
        # Which sides were begun before the other was known, until their scan is asked for.
        self.here: ahead.Here | None = None
        self.there: ahead.There | None = None
        self.report = Report()
        self.held_back: list[bytes] = []
        # Something came out other than planned, and has to be looked at once more.
        self.again = False
        # Problems that a later attempt may not have.
        self.transient: set[str] = set()
        # Those of the look that is under way: what the one before it met may be done by now.
        self.problems: Problems = {}

    def __enter__(self) -> Synchronization:
        try:
            self.kind = self.check()
            self.sides = {name: self.open(name) for name in SIDES}
            self.identity = {name: self.identify(name) for name in SIDES}
            self.archive = self.open_archive()
            self.held.callback(self.close_archive)
        except BaseException:
            self.held.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.held.close()

    def begin(self, conversation: Conversation | None) -> None:
        """Lets this server's replica be scanned from now on, and asks the partner to do the same in this conversation.

        Where nothing is known of a run before, or what it was called has changed, nothing is begun.
        """
        server = self.servers[HERE]
        known = None if self.previous else ahead.guess(self.archive_path)
        if known is None or self.look or not isinstance(server, ThisServer):
            return
        patterns = self.settings["include"], self.settings["exclude"]
        with suppress(Failure, OSError):
            options = {side: self.options(side) for side in SIDES}
            self.here = ahead.Here(server, self.paths[HERE], options[HERE], *patterns, known)
            self.held.callback(self.here.close)
            if conversation is not None and self.here.kind:
                there = ahead.There(conversation, self.paths[THERE], self.here.kind, options[THERE], *patterns, known)
                self.there = there

    @property
    def archive_path(self) -> Path:
        return archives_of(self.layout, self.job.name) / f"{self.name}.sqlite"

    def options(self, side: str) -> dict[str, Any]:
        """How a replica is opened, as ``Tree`` has it."""
        return {
            "element": self.name,
            "run": self.run,
            "writable": side in self.targets,
            "look": self.look,
            "owner": owner(self.job.name, self.run),
            "name": os.fsencode(self.paths[HERE].rpartition("/")[2]),
            "previous": self.previous,
        }

    def close_archive(self) -> None:
        """The one in use by then: damage begins a new one."""
        self.archive.close()

    # Before anything else: can these two be synchronized at all?

    def field(self, side: str) -> str:
        return self.element.field(side)

    def server(self, side: str) -> str:
        return "this server" if side == HERE else self.job.partner

    def check(self) -> str:
        """The element's kind (directory or file); Failure where the two replicas cannot be synchronized."""
        looks = {side: self.looked(side) for side in SIDES}
        for side in SIDES:
            check_kind(looks[side], self.paths[side], self.server(side), self.field(side))
        present = [side for side in SIDES if looks[side]["kind"] != "missing"]
        self.absent = [side for side in SIDES if side not in present]
        for side in SIDES:
            where, server, path = self.field(side), self.server(side), self.paths[side]
            if side in present:
                if not looks[side]["readable"] and (self.direction == "both" or side not in self.targets):
                    message = f"{path} is not readable on {server}; give the account or the pairing's root read access"
                    raise Failure("not_readable", message, field=where)
                if not looks[side]["writable"] and side in self.targets:
                    message = f"{path} is not writable on {server}; give the account or the pairing's root write access"
                    raise Failure("not_writable", message, field=where)
            elif side not in self.targets or not present:
                role = "the source; " if side not in self.targets else ""
                message = f"{path} does not exist on {server}, {role}create or mount it, or correct the path"
                raise Failure("missing", message, field=where)
            else:
                self.check_missing(looks[side], looks[OTHER[side]]["kind"], side)
        kinds = {looks[side]["kind"] for side in present}
        if len(kinds) > 1:
            message = (
                f"{self.paths[THERE]} is a {looks[THERE]['kind']} on {self.server(THERE)}, "
                f"but {self.paths[HERE]} is a {looks[HERE]['kind']}"
            )
            raise Failure("kind", f"{message}; correct the path, or move it away", field=self.field(THERE))
        return str(kinds.pop())

    def check_preserve(self, kind: str) -> None:
        """Failure where the job says what to preserve, and that cannot be; it takes both replicas to tell."""
        self.kind = kind
        if self.settings["preserve"] is not None and not self.absent:
            with self.held:
                self.sides = {side: self.open(side) for side in SIDES}
                self.preserve()

    def looked(self, side: str) -> dict[str, Any]:
        server, known = self.servers[side], None
        if side == HERE and self.here is not None:
            known = self.here.look
        elif side == THERE and self.there is not None and isinstance(server, Partner):
            known = self.there.looked(server)
        return known or server.look(self.paths[side])

    def taken(self, side: str) -> Replica | None:
        """The replica that was begun."""
        server = self.servers[side]
        if side == HERE:
            return self.here.taken() if self.here is not None else None
        return self.there.taken(server) if self.there is not None and isinstance(server, Partner) else None

    def check_missing(self, look: dict[str, Any], kind: str, side: str) -> None:
        """A target that is not there is made where that is allowed."""
        confined = self.layout.privileged and side == HERE
        if not confined and look["writable"]:
            return
        remedy = "create it there"
        if confined and kind == "file":
            remedy = "create it empty, then apply the playbook again, which opens its directory to the job"
        message = f"{self.paths[side]} does not exist on {self.server(side)}; {remedy}"
        raise Failure("missing", message, field=self.field(side))

    def open(self, side: str) -> Side:
        server, path = self.servers[side], self.paths[side]
        if side in self.absent and self.look:
            # What a run would make is for its plan an empty directory.
            server = ThisServer(self.layout)
            path = self.held.enter_context(tempfile.TemporaryDirectory(prefix="serversync-"))
            path += "/file" if self.kind == "file" else ""
        with told_of(f"{self.paths[side]} on {self.server(side)}", self.field(side)):
            tree = self.taken(side) or server.open(path, self.kind, **self.options(side))
        self.held.callback(tree.close)
        self.report.warnings += tree.facts.get("warnings", [])
        directory, _slash, own = path.rpartition("/") if self.kind == "file" else (path, "", "")
        return Side(side, server, tree, path, directory or "/", own, os.fsdecode(stage_of(self.name, self.run)))

    def identify(self, side: str) -> dict[str, Any]:
        # The roots of two volumes have one inode number, and what is made anew may get that of what is gone.
        facts = self.sides[side].tree.facts
        known = {name: facts[name] for name in ("machine", "path", "fstype", "inode", "born")}
        return {**known, "machine": known_as(known["machine"])}

    def open_archive(self) -> Archive:
        """The archive of these two replicas; a new one where there is none that fits them."""
        path = self.archive_path
        self.check_owners()
        if self.previous and not self.look:
            Archive.adopt(path, path.with_name(f"{self.previous}.sqlite"))
        self.unmounted = self.find_unmounted(path)
        known = path.exists() or self.previous
        if self.look or self.stopping():
            archive = self.looked_at(path)
        else:
            archive = Archive.open(path, self.identity)
            if self.unmounted and archive.rows_count:
                archive = archive.restart("void", self.unmounted[0])
        self.deletions = archive.condition == "current" and not self.unmounted
        for side in self.targets:
            found = self.sides[side].tree.facts["marker"]
            if found is not None and archive.rows_count:
                archive = self.check_generation(archive, side, {found.get("current"), found.get("next")} - {"", None})
        self.report.warnings += archive.warnings
        if not known and any(self.sides[side].tree.facts["marker"] for side in self.targets):
            self.report.warnings.append(f"the archive {path} is missing; a new one is begun, and nothing is deleted")
        return archive

    def stopping(self) -> list[str]:
        """What looks unmounted, unless a person has been told so with the plan that is approved."""
        return [text for text in self.unmounted if text not in (self.passed or ())]

    def find_unmounted(self, path: Path) -> list[str]:
        """Roots that are not what the archive knows: targets without their marker, others that are empty now."""
        if not path.exists():
            return []
        with suppress(DamagedArchive), closing(Archive(path)) as archive:
            before = {side: archive.identity.get(side, {}) for side in SIDES}
            moved = any(before[side].get(name) != self.identity[side][name] for side in SIDES for name in PLACE)
            if moved or not archive.rows_count:
                return []
            found = []
            for side in SIDES:
                facts = self.sides[side].tree.facts
                where = f"{self.paths[side]} on {self.server(side)}"
                # A side that was only read until now never had one.
                was_target = side in TARGETS.get(str(archive.settings.get("direction")), ())
                if side in self.targets and was_target and facts["marker"] is None:
                    found.append(f"{where} lost the runner's marker: it looks unmounted, or was emptied")
                elif before[side] != self.identity[side] and facts.get("empty"):
                    found.append(f"{where} is empty and not the directory that it was: it looks unmounted")
            return found
        return []

    def check_generation(self, archive: Archive, side: str, known: set[str]) -> Archive:
        """An archive that the marker does not know, or a marker from before, is of no use."""
        if archive.marked(side) & known:
            return archive
        self.deletions = False
        if self.look:
            return archive
        return archive.restart("void", f"{self.paths[side]}, or the archive, was restored from a backup")

    def called(self, side: str) -> str:
        """What the file is called there that is the element; empty where a directory is."""
        return self.paths[side].rpartition("/")[2] if self.kind == "file" else ""

    def check_owners(self) -> None:
        """A root that is a target has one owning element, but that files of different names go side by side."""
        for side in self.targets:
            where = self.sides[side].directory
            for other in self.sides[side].tree.facts["others"]:
                files = [os.fsencode(name) for name in (str(other.get("file", "")), self.called(side))]
                apart = all(files) and len({folded(name, {"case", "normalization"}) for name in files}) > 1
                if not apart and not self.abandoned(other):
                    message = (
                        f"{where} on {self.server(side)} is the target of the job {other.get('job')} of "
                        f"{other.get('server')} already; give one of them another target, or, if that job is no more, "
                        f"remove {where.rstrip('/')}/.serversync/{other.get('element')}"
                    )
                    raise Failure("contended", message, field=self.field(side))

    def looked_at(self, path: Path) -> Archive:
        """The archive for a plan; where a run would begin a new one, one that goes with the plan."""
        before = path.with_name(f"{self.previous}.sqlite")
        directory = Path(self.held.enter_context(tempfile.TemporaryDirectory(prefix="serversync-")))
        if path.exists():
            with suppress(DamagedArchive):
                archive = Archive(path, reading=True)
                if not self.unmounted and archive.identity == json.loads(json.dumps(self.identity)):
                    return archive
                archive.close()
        elif self.previous and before.exists():
            for suffix in ("", "-wal"):
                with suppress(FileNotFoundError):
                    shutil.copyfile(f"{before}{suffix}", directory / f"{before.name}{suffix}")
            Archive.adopt(directory / path.name, directory / before.name)
        return Archive.open(directory / path.name, self.identity)

    def abandoned(self, other: dict[str, Any]) -> bool:
        """Whether a marker is of an element of this server's that is no longer declared, or of this one as it was."""
        whose = (known_as(str(other.get("machine"))), other.get("state"))
        if whose != (self.identity[HERE]["machine"], str(self.layout.state)):
            return False
        if other.get("element") == self.previous:
            return True
        try:
            job = self.job if other.get("job") == self.job.name else load(self.layout, str(other.get("job")))
        except InvalidDocument as problem:
            return problem.code == "unknown_job"
        return all(
            other.get("element") != element_name(job.name, path, element.partner_path)
            for element in job.elements
            for path in (element.path, element.previous_path)
            if path
        )

    @property
    def file_name(self) -> bytes:
        """The only path of an element that is a file; empty where it is a directory."""
        return os.fsencode(self.called(HERE))

    # Detection and reconciliation.

    def preserve(self) -> frozenset[str]:
        """What of a file beside its contents is kept the same: what was asked for, or all that both servers can."""
        facts = [self.sides[side].tree.facts for side in SIDES]
        able = set(PRESERVE).difference(*(fact.get("lacks", ()) for fact in facts))
        if not all(self.sides[side].tree.facts["owner"] for side in self.targets):
            able -= {"owner", "group"}
        for name in ("acls", "xattrs"):
            if not all(fact[name] for fact in facts):
                able.discard(name)
        asked = self.settings["preserve"]
        if asked is None:
            return frozenset(able)
        lacking = [name for name in asked if name not in able]
        if lacking:
            message = (
                f"{lacking[0]} cannot be preserved between {self.paths[HERE]} and {self.paths[THERE]}: the target's "
                "account may not, or a file system cannot; take it off the list"
            )
            raise Failure("preserve", message, field=self.element.setting_field("preserve"))
        return frozenset(asked)

    def at_once(self, work: Callable[[str], Any]) -> dict[str, Any]:
        """The work on both sides at the same time."""
        with ThreadPoolExecutor(2) as pool:
            try:
                running = {side: pool.submit(work, side) for side in SIDES}
                return {side: future.result() for side, future in running.items()}
            except (Stopped, KeyboardInterrupt):
                # Threads hear of no signal, and reading contents may take them hours.
                for server in self.servers.values():
                    server.abort()
                raise

    def plan(self) -> Plan:
        """Detects and reconciles; ``report`` has the plan."""
        with uncollected():
            return self.detect_and_reconcile()

    def detect_and_reconcile(self) -> Plan:
        self.preserved = self.preserve()
        before = self.archive.settings
        now = {
            name: self.settings[name] for name in ("direction", "conflict", "delete", "include", "exclude", "owners")
        } | {"preserve": sorted(self.preserved)}
        self.now = now
        self.edited = edited = {name for name in now if before and before.get(name) != now[name]}
        self.added = frozenset(self.preserved - set(before["preserve"]) if before else ())
        self.folding = any(self.sides[side].tree.facts["folding"] for side in SIDES)
        self.verify = self.settings["verify"] == "checksum" or self.due_to_verify()
        known = dict(zip(SIDES, self.archive.streams()))
        self.waiting = self.waiting_paths()
        usable = not (edited or self.verify or self.decided or self.archive.counts["racy"] or self.archive.intents())
        usable = usable and not self.waiting
        self.progress("scanning", 0, 0)
        self.scans: dict[str, Summary] = self.at_once(lambda side: self.scan(side, known[side] if usable else b""))
        self.report.entries = max(scan.entries for scan in self.scans.values())
        self.progress("scanning", self.report.entries, 0)
        self.touched: set[bytes] = set()
        self.restamped = Restamped((0, 0))
        self.adopted: dict[bytes, Row | None] = {}
        # Paths that a killed run had emptied for what was to come.
        self.cleared: set[bytes] = set()
        self.forget_disagreements(edited)
        self.unchanged = usable and all(scan.unchanged for scan in self.scans.values())
        if self.unchanged:
            self.report.plan = Plan([], [], [])
            self.groups: dict[str, Groups] = {}
            return self.report.plan
        triples = self.with_ancestors([*self.moved(edited), *self.root()])
        self.rules = self.make_rules(triples, edited)
        plan = self.reconciled(triples)
        for _round in range(3):
            if not plan.needs:
                break
            triples = self.compared(triples, plan.needs)
            plan = self.reconciled(triples)
        if plan.needs:
            raise Failure("internal", f"contents of {len(plan.needs)} paths stayed undecided")
        doubtful = self.doubtful(triples, plan)
        if doubtful:
            self.rules = replace(self.rules, suspicious=doubtful)
            plan = self.reconciled(triples)
        self.report.plan = plan
        self.report.warnings += plan.warnings
        return plan

    def reconciled(self, triples: list[Triple]) -> Plan:
        """The plan; a conflict copy has a name that no other one has, which has not moved and so is no triple."""
        while True:
            plan = reconcile(triples, self.rules)
            asides = (one.aside for one in plan.decisions if one.aside)
            taken = {path for path in asides if self.archive.row(path) is not None}
            if not taken:
                return plan
            self.rules = replace(self.rules, occupied=self.rules.occupied | taken)

    def waiting_paths(self) -> set[bytes]:
        """What was held back for a person's word: a plan lists it again and again, so that it can be approved."""
        if self.passed is None and not self.look:
            return set()
        return {row.path for row in self.archive.standing(("unresolved",)) if row.by == "guard"}

    def due_to_verify(self) -> bool:
        every = self.settings["verify_every"]
        return every is not None and (self.archive.runs + 1) % every == 0

    def scan(self, side: str, known: bytes) -> Summary:
        xattrs = frozenset(self.preserved & {"acls", "xattrs"})
        tree = self.sides[side].tree
        begun: ahead.Here | ahead.There | None
        if side == HERE:
            begun, self.here = self.here, None
        else:
            begun, self.there = self.there, None
        summary = begun.scanned(xattrs) if begun is not None else None
        if summary is not None:
            return summary._replace(unchanged=summary.complete and summary.stream == known)
        try:
            return tree.scan(known, self.settings["include"], self.settings["exclude"], xattrs, self.archive.rows_count)
        except Failure as failure:
            if failure.code == "bad_pattern" and failure.field:
                failure.field = self.element.setting_field(failure.field.partition(".")[2])
            raise

    def forget_disagreements(self, edited: set[str]) -> None:
        """An old disagreement must never become a deletion once direction or delete are edited."""
        self.forgotten = bool(edited & {"direction", "delete"})

    def moved(self, edited: set[str]) -> Iterator[Triple]:
        """What is not as archived, directory by directory."""
        archived = {path: dict(zip(SIDES, digests)) for path, *digests in self.archive.directories()}
        self.directories = found = self.at_once(lambda side: dict(self.sides[side].tree.digests()))
        stale = {
            side: {
                path
                for path in found[side].keys() | archived.keys()
                if found[side].get(path) != archived.get(path, {}).get(side)
            }
            for side in SIDES
        }
        self.intents = intended(self.archive.intents())
        again: set[bytes] = {parent(row.path) for row in self.archive.racy()}
        again |= {parent(path) for path in (*self.decided, *self.intents, *self.waiting)}
        reopened = self.reopened(edited)
        for row in self.archive.standing(("kept", "left", "unresolved")):
            # Without a setting of their own they follow from other paths, which may have moved.
            if reopened or self.forgotten or not row.by:
                again.add(parent(row.path))
        unseen = self.archive.unseen
        if unseen:
            again |= {path for side in SIDES for path in found[side] if beneath(path, unseen)} | set(
                map(parent, unseen)
            )
        if self.verify or edited & {"preserve", "owners", "include", "exclude"}:
            again |= found[HERE].keys() | found[THERE].keys() | archived.keys()
        everything = sorted(stale[HERE] | stale[THERE] | again)
        for path in everything:
            self.check_path(path or b"-")
        self.touched.update(everything)
        self.settle({side for side in SIDES if (stale[side] or again) and self.scans[side].entries})
        here, there = (trusted(self.scans[side], self.sides[side]) for side in SIDES)
        self.restamped = Restamped((here, there))
        rest = iter(everything)
        while directories := list(islice(rest, DIRECTORIES)):
            listings = self.at_once(
                lambda side, some=directories: self.listed(side, [one for one in some if one in stale[side]])  # type: ignore[misc]
            )
            for directory in directories:
                rows = self.archive.rows(directory)
                lines = {
                    side: listings[side].get(directory, [])
                    if directory in stale[side]
                    else [line for line in map(LINES[side], rows) if line and self.is_there(side, directory)]
                    for side in SIDES
                }
                # What was not seen for a while may have been decided by other settings.
                if self.forgotten or (unseen and any(beneath(row.path, unseen) for row in rows)):
                    everywhere = self.forgotten
                    rows = [row for row in rows if settled(row) or not (everywhere or beneath(row.path, unseen))]
                    lines = self.relisted(directory)
                try:
                    yield from self.triples(directory, lines, rows, reopened)
                except ValueError as error:
                    raise Failure("protocol", f"{self.server(THERE)} listed what cannot be there: {error}") from error

    def settle(self, sides: Collection[str]) -> None:
        """What these replicas have is on their disks before any contents are read, and archived, of it.

        A replica that has not moved costs nothing: what the archive has of it was settled then.
        """
        if self.look:
            return
        moments = self.at_once(lambda side: self.sides[side].tree.settle() if side in sides else None)
        for side in sides:
            self.scans[side] = self.scans[side]._replace(moment=moments[side])

    def root(self) -> list[Triple]:
        """The element's own directory: in one direction its mode, owner, group and attributes are the source's."""
        if self.direction == "both" or self.kind == "file":
            return []
        here, there = (self.scans[side].root for side in SIDES)
        return [self.with_intent(Triple(b"", here, there, self.archive.row(b"")))]

    def relisted(self, directory: bytes) -> dict[str, list[tuple[bytes, bytes, bytes]]]:
        return {side: self.listed(side, [directory]).get(directory, []) for side in SIDES}

    def listed(self, side: str, directories: list[bytes]) -> dict[bytes, list[tuple[bytes, bytes, bytes]]]:
        """Directory -> its children now; one that could not be seen is unknown, not absent."""
        found: dict[bytes, list[tuple[bytes, bytes, bytes]]] = {}
        for line in self.sides[side].tree.listing(directories):
            if line[1]:
                found.setdefault(parent(line[0]), []).append(line)
            else:
                self.scans[side].problems.setdefault(line[0], "it vanished, or could not be read")
        return found

    def check_path(self, path: bytes) -> None:
        """Nothing that another server names may lead out of the element, or to what the runner keeps."""
        if not good(path):
            message = f"{self.server(THERE)} named {os.fsdecode(path)!r}, which is no path below the element"
            raise Failure("protocol", message)

    def triples(
        self,
        directory: bytes,
        lines: dict[str, list[tuple[bytes, bytes, bytes]]],
        rows: list[Row],
        reopened: frozenset[str],
    ) -> Iterator[Triple]:
        emitted = set()
        # A setting may ask for every path, whatever has become of it.
        asked = self.edited or self.verify or self.added or self.folding or self.decided or self.intents
        for triple in moved(lines[HERE], lines[THERE], rows, None if asked else self.restamped):
            emitted.add(triple.path)
            self.check_path(triple.path)
            if isinstance(triple.there, Entry):
                plausible(triple.there)
            yield self.with_unknown(self.with_intent(triple))
        forced = {row.path for row in rows if row.by in reopened and row.status != "agreed"}
        # The element's own directory is in none.
        forced |= {path for path in (*self.decided, *self.intents) if path and parent(path) == directory}
        if self.verify or self.added or self.folding:
            forced |= {line[0] for side in SIDES for line in lines[side]}
        forced -= emitted
        if forced:
            now = {side: {line[0]: Entry.parse(line[1], line[2]) for line in lines[side]} for side in SIDES}
            known = {row.path: row for row in rows}
            for path in sorted(forced):
                triple = Triple(path, now[HERE].get(path), now[THERE].get(path), known.get(path))
                self.check_path(path)
                if isinstance(triple.there, Entry):
                    plausible(triple.there)
                yield self.with_unknown(self.with_intent(triple))

    def with_intent(self, triple: Triple) -> Triple:
        """What a run that was killed had put in its place is ours, with what the other side had then."""
        if self.cleared and beneath(triple.path, self.cleared):
            self.adopted[triple.path] = None
            return triple._replace(row=None)
        for side, journal in self.intents.get(triple.path, {}).items():
            expected, coming, source = read_intent(*journal)
            entry, other = of(triple, side), of(triple, OTHER[side])
            if coming is not None and expected is not None and entry is None and other is not None:
                # It had been put aside, and nothing had come in its place: nobody has deleted it, or what was below it.
                self.cleared.add(triple.path)
                self.adopted[triple.path] = None
                return triple._replace(row=None)
            if coming is None and deleted(expected, entry, other):
                self.adopted[triple.path] = None
                return triple._replace(row=None)
            if coming is None or not isinstance(entry, Entry) or not as_intended(expected, coming, entry):
                continue
            if expected is not None and as_known(expected, entry):
                # It never came to that.
                continue
            if source is None:
                continue
            row = as_put(triple, side, expected, entry, source)
            self.adopted[triple.path] = row
            return triple._replace(row=row)
        return triple

    def reopened(self, edited: set[str]) -> frozenset[str]:
        return frozenset(edited & {"conflict", "delete"})

    def with_unknown(self, triple: Triple) -> Triple:
        """What a scan could not read is not absent."""
        if not (self.scans[HERE].problems or self.scans[THERE].problems):
            return triple
        here, there = (
            self.unknown(side, triple.path) or seen for side, seen in zip(SIDES, (triple.here, triple.there))
        )
        return triple._replace(here=here, there=there)

    def unknown(self, side: str, path: bytes) -> Unknown | None:
        reason = self.scans[side].problems.get(path)
        return Unknown(reason) if reason else None

    def with_ancestors(self, triples: list[Triple]) -> list[Triple]:
        """Every triple's directories up to the root, as archived where they have not moved; and what was not read."""
        present = {triple.path for triple in triples}
        missing = {path for side in SIDES for path in self.scans[side].problems if path not in present}
        wanted = set(missing)
        for path in present | missing:
            while path := parent(path):
                if path in present or path in wanted:
                    break
                wanted.add(path)
        triples += [self.as_archived(path, self.archive.row(path)) for path in wanted]
        present |= wanted
        # What is below a directory that only one side has goes, or stays, with it.
        for triple in [one for one in triples if deep(one)]:
            below = [row for row in self.archive.below(triple.path) if row.path not in present]
            triples += [self.as_archived(row.path, row) for row in below]
            present |= {row.path for row in below}
        return triples

    def as_archived(self, path: bytes, row: Row | None) -> Triple:
        if row is None:
            return self.with_unknown(Triple(path, None, None, None))
        seen = {side: half_of(row, side) if self.is_there(side, parent(path)) else None for side in SIDES}
        return self.with_unknown(Triple(path, seen[HERE], seen[THERE], row))

    def is_there(self, side: str, directory: bytes) -> bool:
        """Whether the scan found the directory; a row can outlive it where a run could not do all of its plan."""
        return not directory or directory in self.directories[side]

    def make_rules(self, triples: list[Triple], edited: set[str]) -> Rules:
        facts = {side: self.sides[side].tree.facts for side in SIDES}
        entries = {
            HERE: [triple.here for triple in triples if isinstance(triple.here, Entry)],
            THERE: [triple.there for triple in triples if isinstance(triple.there, Entry)],
        }
        owners = {side: Owners({}, {}) for side in SIDES}
        if self.settings["owners"] == "names" and self.preserved & {"owner", "group"}:
            found = self.at_once(
                lambda side: translations(
                    self.servers[side],
                    self.servers[OTHER[side]],
                    {entry.uid for entry in entries[side]},
                    {entry.gid for entry in entries[side]},
                )
            )
            for side in SIDES:
                users, groups, lacking = found[side]
                owners[OTHER[side]] = Owners(users, groups)
                if lacking and OTHER[side] in self.targets:
                    self.report.warnings.append(
                        f"{self.server(OTHER[side])} has no {', '.join(lacking[:5])}: the numbers are kept"
                    )
        self.owners = owners
        self.groups = self.hard_links(triples) if "hardlinks" in self.preserved else {}
        return Rules(
            direction=self.direction,
            conflict=self.settings["conflict"],
            delete=self.settings["delete"],
            preserve=self.preserved,
            to_there=owners[THERE],
            to_here=owners[HERE],
            granularity=max(facts[side]["granularity"] for side in SIDES),
            skew=int(abs(facts[HERE]["time"] - facts[THERE]["time"]) * 1e9) if not self.job.local else 0,
            deletions=self.deletions,
            reopened=self.reopened(edited),
            one_file=self.kind == "file",
            names={HERE: os.uname().nodename, THERE: self.job["partner"]["host"]},
            name_max=min(facts[side]["name_max"] for side in SIDES),
            folding={side: frozenset(facts[side]["folding"]) for side in SIDES},
            verify=self.verify,
            groups={**{side: self.groups.get(side, {}) for side in SIDES}, **self.base_groups(triples)},
            suspicious=frozenset(),
            unseen=self.archive.unseen,
            decided=self.decided,
            added=self.added,
        )

    def hard_links(self, triples: Iterable[Triple]) -> dict[str, Groups]:
        """Per side the names of every file with several, of those that have moved."""
        found: dict[str, Groups] = {}
        for side in SIDES:
            names: dict[int, set[bytes]] = {}
            here = {triple.path: of(triple, side) for triple in triples}
            for path, entry in here.items():
                if isinstance(entry, Entry) and entry.kind != "d" and entry.nlink > 1:
                    names.setdefault(entry.inode, set()).add(path)
            for inode, group in names.items():
                group |= {row.path for row in self.archive.by_inode(side, inode) if row.path not in here}
            found[side] = {path: frozenset(group) for group in names.values() if len(group) > 1 for path in group}
        return found

    def base_groups(self, triples: Iterable[Triple]) -> dict[str, Groups]:
        """The same of the archive; what a killed run has left is in the triples' rows alone."""
        found: dict[str, Groups] = {}
        for side, name in ((HERE, "base_here"), (THERE, "base_there")):
            names: dict[int, set[bytes]] = {}
            given = set()
            for triple in triples:
                given.add(triple.path)
                record = triple.row and (triple.row.here if side == HERE else triple.row.there)
                entry = Entry.parse(record) if record else None
                if entry is not None and entry.kind != "d" and entry.nlink > 1:
                    names.setdefault(entry.inode, set()).add(triple.path)
            for inode, group in names.items():
                group |= {row.path for row in self.archive.by_inode(side, inode) if row.path not in given}
            found[name] = {path: frozenset(group) for group in names.values() if len(group) > 1 for path in group}
        return found

    def doubtful(self, triples: list[Triple], plan: Plan) -> frozenset[bytes]:
        """Paths whose contents are gone as after a crash, and were to be put over the other side's."""
        over = replacements(plan)
        if not over:
            return frozenset()
        rows = {triple.path: triple.row for triple in triples}
        found = []
        for side in SIDES:
            booted = int(self.sides[side].tree.facts.get("booted", 0) * 1e9)
            last = last_change(triples, side, booted)
            mine = (one for one in over if one.content == side)
            found += [one for one in mine if doubted(one, rows.get(one.path), booted, last)]
        return frozenset({one.path for one in found if empties(one)} | self.zeros(found))

    def zeros(self, decisions: Iterable[Decision]) -> set[bytes]:
        """Those whose coming contents are nothing but zeros; what is empty has none."""
        found: set[bytes] = set()
        for side in SIDES:
            tree = self.sides[side].tree
            paths = [one.path for one in decisions if one.content == side and not empties(one)]
            # Every byte would have to cross the network for it.
            if paths and isinstance(tree, (Tree, PartnerTree)):
                found.update(tree.zeros(paths))
        return found

    def compared(self, triples: list[Triple], paths: list[bytes]) -> list[Triple]:
        """The triples with the contents' digests of these paths."""
        self.progress("comparing", len(paths), 0)
        by_path = {triple.path: triple for triple in triples}

        def read(side: str) -> dict[bytes, Entry | str]:
            there = [path for path in paths if isinstance(of(by_path[path], side), Entry)]
            return dict(self.sides[side].tree.checksums(there))

        digests = self.at_once(read)

        def with_digest(side: str, path: bytes, seen: Seen) -> Seen:
            found = digests[side].get(path)
            if not isinstance(seen, Entry) or found is None:
                return seen
            if isinstance(found, str):
                return Unknown(found)
            if found.record != seen.record:
                return Unknown("was changed during the run")
            return seen._replace(digest=found.digest)

        chosen = set(paths)
        return [
            triple._replace(
                here=with_digest(HERE, triple.path, triple.here), there=with_digest(THERE, triple.path, triple.there)
            )
            if triple.path in chosen
            else triple
            for triple in triples
        ]

    # Propagation.

    def guarded(self, plan: Plan) -> list[str]:
        """Why the plan must not begin without a person's word."""
        found = [*self.unmounted, *self.crowded(plan).values()]
        limits = self.archive.rows_count, self.settings["max_delete"], self.settings["max_change"]
        found += tripped(plan, *limits, len(self.zeros(readable(plan, *limits))))
        for side in SIDES:
            if self.scans[side].entries == 0 and self.kind == "directory":
                if self.archived_paths():
                    found.append(f"{self.paths[side]} on {self.server(side)} is empty: it looks unmounted")
                elif self.given_before(OTHER[side]):
                    found.append(
                        f"{self.paths[side]} on {self.server(side)} is empty, and {self.paths[OTHER[side]]} on "
                        f"{self.server(OTHER[side])} has what earlier runs gave it: it looks unmounted, or lost"
                    )
        return found

    def given_before(self, target: str) -> bool:
        """Whether the one target is that of runs of which no archive knows, as where the server with the job, or with
        the source, is another machine now."""
        marked = self.targets == (target,) and self.sides[target].tree.facts["marker"] is not None
        return marked and self.archive.condition != "current" and self.scans[target].entries > 0

    def crowded(self, plan: Plan) -> dict[str, str]:
        """Per target that has no room for what would arrive: a sentence. Versions make none."""
        needed = {side: room(plan.decisions, side, self.groups.get(OTHER[side], {})) for side in self.targets}
        # What stands for a target that is yet to be made is elsewhere.
        elsewhere = self.absent if self.look else ()
        free = {
            side: self.servers[side].look(self.paths[side])
            if side in elsewhere
            else self.sides[side].tree.facts["free"]
            for side in self.targets
        }
        if all(fits(need, free[side]) for side, need in self.together(needed).items()):
            return {}
        if not self.look:
            self.prune()
        # The figures are as old as the scan is long, and holes need no room where they stay holes.
        needed = {side: need._replace(size=self.occupied(OTHER[side], need)) for side, need in needed.items()}
        free = {side: self.servers[side].look(self.paths[side]) for side in self.targets}
        return {
            side: f"{self.crowd(side)}: {lacking(need, free[side])}; make room there, or see keep_versions"
            for side, need in self.together(needed).items()
            if not fits(need, free[side])
        }

    def together(self, needed: dict[str, Room]) -> dict[str, Room]:
        """What is needed on the file system of each target."""
        devices = {self.sides[side].tree.facts["device"] for side in self.targets}
        if self.job.local and len(needed) > len(devices):
            return dict.fromkeys(needed, needed[HERE].beside(needed[THERE]))
        return needed

    def crowd(self, side: str) -> str:
        return f"{self.paths[side]} on {self.server(side)} has too little room"

    def occupied(self, side: str, need: Room) -> int:
        """What the files to come take on the disk, where their holes stay holes."""
        tree = self.sides[side].tree
        if "sparse" not in self.preserved or not isinstance(tree, (Tree, PartnerTree)):
            return need.size
        return min(need.size, tree.occupied(need.files))

    def synchronize(self, approved: Mapping[bytes, Mapping[str, Any]] | None = None) -> None:
        """The whole of it; what came of it is in ``report``, with ``failure`` where it did not come to its end.

        approved: what a person has seen and released, by path, as ``run.told`` tells it. Of what deletes or overwrites
        only that is done, and only where both entries still are as they were.
        """
        report = self.report
        again = self.once(approved)
        report.state_before = "different" if self.different else "equal"
        if again:
            # The conflict copies are new files of the side that they are on, some metadata not those that were planned.
            self.once(approved)
            if not report.guards:
                report.problems = self.problems
        counts = self.archive.counts
        report.standing = {status: counts[status] for status in ("kept", "left", "unresolved") if counts[status]}
        if counts["unresolved"]:
            report.unresolved = [*islice(self.archive.standing(("unresolved",)), NAMED_PATHS)]
        report.failure = failure_of(report.problems, self.transient, self.field(HERE))
        if report.guards or self.held_back or report.standing.get("unresolved"):
            report.state_after = "different"
        elif report.standing or report.conflicts:
            report.state_after = "equal_with_warnings"
        if report.failure:
            report.state_after = "failed"

    def once(self, approved: Mapping[bytes, Mapping[str, Any]] | None) -> bool:
        """One look at both replicas and what follows from it; whether that left something to be found by another."""
        report, known = self.report, self.report.plan
        self.problems = {}
        try:
            plan = self.plan()
        except DamagedArchive as damage:
            if self.look:
                raise
            self.archive = self.archive.restart("damaged", damage.message)
            self.deletions = False
            report.warnings += self.archive.warnings
            plan = self.plan()
        self.different = any(one.content or one.metadata or one.remove for one in plan.decisions) or unsettled(plan)
        self.different = self.different or bool(self.archive.counts["unresolved"])
        for one in plan.decisions:
            if one.what == "unknown":
                seen = one.here if isinstance(one.here, Unknown) else one.there
                reason = seen.reason if isinstance(seen, Unknown) else one.reason
                self.problems[one.path] = ("unread", reason)
        report.problems |= self.problems
        whole = plan
        if approved is None:
            report.guards = self.guarded(plan)
        else:
            plan = self.only_approved(whole, approved)
            # The figures may have moved since it was shown.
            shown = {side for side in SIDES if any(it.startswith(self.crowd(side)) for it in self.passed or ())}
            report.guards = self.stopping()
            report.guards += [text for side, text in self.crowded(plan).items() if side not in shown]
        if report.guards:
            return False
        if self.held_back:
            report.plan = self.as_reported(whole)
        if self.unchanged:
            if self.settings["verify_every"]:
                self.archive.commit(Update(finished=True, verified=self.verify))
            self.prune()
            return False
        self.carry_out(plan)
        self.prune()
        self.answered()
        if known is not None:
            report.plan = known
        return self.again or (self.direction == "both" and any(one.aside for one in plan.decisions))

    def prune(self) -> None:
        """Versions that are too old by the earlier of both clocks, or too many; the run's own stay."""
        here, there = (self.sides[side].tree.facts["time"] for side in SIDES)
        now = time.time() + min(0.0, there - here)
        for side in self.targets:
            tree = self.sides[side].tree
            most = amount(self.settings["versions_max"], tree.facts["free"]["total_bytes"])
            self.report.warnings += tree.prune(seconds(self.settings["keep_versions"]), most, now)

    def only_approved(self, plan: Plan, approved: Mapping[bytes, Mapping[str, Any]]) -> Plan:
        left = {one.path: one for one in plan.decisions if destructive(one) and not listed(one, approved.get(one.path))}
        # What cannot be without these: their conflict copies, and what is below a directory that stands against a file.
        along = {one.aside for one in left.values()}
        along |= {
            one.path for one in left.values() if one.content and is_directory(one.here) != is_directory(one.there)
        }
        decisions = [one for one in plan.decisions if one.path not in left and not beneath(one.path, along)]
        self.held_back = [
            one.path for one in plan.decisions if destructive(one) and (one.path in left or beneath(one.path, along))
        ]
        if self.held_back:
            first = os.fsdecode(self.held_back[0])
            self.report.warnings.append(
                f"{len(self.held_back)} paths are not in the approved plan, or have moved since, and were left: {first}"
            )
        return replace(plan, decisions=decisions)

    def as_reported(self, plan: Plan) -> Plan:
        """The whole plan, in which what was held back is left."""
        held_back = set(self.held_back)
        return replace(
            plan,
            decisions=[
                one._replace(
                    what="left",
                    content=None,
                    metadata=None,
                    remove=None,
                    aside=b"",
                    status="unchanged",
                    reason=f"not in the approved plan, or moved since: {one.reason}",
                )
                if one.path in held_back
                else one
                for one in plan.decisions
            ],
        )

    def tally(self, decisions: Iterable[Decision], propagated: Mapping[str, Done]) -> None:
        """What was done, by the decisions that asked for it."""
        report = self.report
        done = {path for one in propagated.values() for path in one.entries}
        for decision in decisions:
            if decision.path not in done:
                continue
            if decision.what == "conflict":
                report.conflicts += 1
            if decision.remove:
                report.deleted += 1
            elif decision.content is None:
                report.attributes += 1
            elif decision.here is None or decision.there is None:
                report.created += 1
            else:
                report.updated += 1
        for one in propagated.values():
            report.sent += one.sent
            report.versions |= one.versions
            self.transient |= one.transient
            self.again |= bool(one.again) or one.beside

    def archived_paths(self) -> int:
        """How many paths below the element's root the archive has."""
        return self.archive.rows_count - (self.archive.row(b"") is not None)

    def carry_out(self, plan: Plan, *, whole: bool = True) -> None:
        """Does what the plan says, and archives what came of it; not ``whole``: the plan leaves other paths out."""
        settings = Settings(
            self.preserved,
            self.owners,
            self.rules.granularity,
            size(self.settings["bandwidth_limit"]) if self.settings["bandwidth_limit"] else None,
            self.settings["compress"] == "always" or (self.settings["compress"] == "auto" and self.far()),
            self.progress is not silent,
        )
        moving = [one for one in plan.decisions if one.content]
        self.progress("to copy", len(moving), sum(map(moved_bytes, moving)))
        self.progress("to commit", sum(1 for one in plan.decisions if one.content or one.metadata or one.remove), 0)
        # Conflict copies are there only once the path that they are of has been put aside. With direction both they are
        # found as new files by the next look, and reach the other side.
        asides = {one.aside: one.path for one in plan.decisions if one.aside}
        copies = {one.path for one in plan.decisions if beneath(one.path, asides)} if asides else set()
        archiving = Archiving(self.archive, self.sides, self.markers(), self.scans, self.adopted, self.touched)
        # A side that has become a target gets its marker before the archive says that it has one.
        if self.intents or self.restamped.rows or (whole and "direction" in self.edited):
            archiving.adopt(self.restamped.rows)
        if whole:
            self.heed(plan)
        both = self.direction == "both"
        decisions = [one for one in plan.decisions if one.path not in copies] if both else plan.decisions
        ties = [*self.ties(asides, copies)] if copies or any(self.groups.values()) else []
        # Names that fall together have to be freed before they are taken.
        parts = [decisions] if self.folding else pieces(decisions, ties, ENTRIES, BYTES)

        def later(directory: bytes) -> Iterator[bytes]:
            return (one.path for one in decisions if one.content and one.path.startswith(directory + b"/"))

        with uncollected():
            problems = self.put_in_place(
                (
                    Piece(part, self.propagations(settings, archiving, number, later))
                    for number, part in enumerate(parts)
                ),
                archiving,
            )
        self.leave_stages()
        unseen = self.unseen()
        # Contents that differ and were not brought over are looked for again.
        finished = whole and len(unseen) <= UNSEEN and not (self.due_to_verify() and problems)
        # What has changed in them is edited for the next run, too, until it has been heeded.
        heeded = whole and (not self.archive.settings or (finished and not self.held_back))
        emptied = archiving.finish(
            settings=self.now if heeded else None,
            finished=finished,
            unseen=unseen,
            verified=self.verify,
            seen=whole and not self.held_back and not self.problems,
        )
        # One that is there for excluded files alone is not there for a run, which another look tells.
        self.again |= bool(emptied and self.settings["exclude"])

    def heed(self, plan: Plan) -> None:
        """Forgets what settings have decided that are others by now, before anything is archived as decided by these.

        Else the run after one that was killed could not tell the two apart, and would decide anew what is decided.
        """
        rules = self.edited & {"direction", "delete", "conflict"}
        if not rules:
            return
        as_before = {one.path for one in plan.decisions if one.status == "unchanged"}
        rows, dropped = [], []
        for row in self.archive.standing(("kept", "left", "unresolved")):
            if row.path in as_before:
                continue
            if self.forgotten and not settled(row):
                dropped.append(row.path)
            elif row.by in rules and row.status == "unresolved":
                # Its pair is needed yet.
                rows.append(row._replace(by=""))
            elif row.by in rules:
                dropped.append(row.path)
        settings = {**self.archive.settings, **{name: self.now[name] for name in rules}}
        self.archive.commit(Update(rows=rows, dropped=dropped, settings=settings))

    def unseen(self) -> set[bytes]:
        """What the archive does not know once this plan is carried out, or does not know as it is by new settings."""
        now = {*self.problems, *(path for scan in self.scans.values() for path in scan.problems)} - {b""}
        now = {path for path in now if not beneath(parent(path), now)}
        if self.archive.condition != "current" or self.edited:
            return now
        before = self.archive.unseen
        return {path for path in now if beneath(path, before)} | {path for path in before if beneath(path, now)}

    def propagations(
        self, settings: Settings, archiving: Archiving, number: int, later: Callable[[bytes], Iterable[bytes]]
    ) -> dict[str, Propagation]:
        return {
            target: Propagation(
                self.sides[OTHER[target]],
                self.sides[target],
                settings,
                archiving.intend,
                self.agreed,
                later,
                self.progress,
                number,
            )
            for target in self.targets
        }

    def agreed(self, path: bytes) -> bool:
        row = self.archive.row(path)
        return row is not None and row.status == "agreed"

    def put_in_place(self, parts: Iterable[Piece], archiving: Archiving) -> Problems:
        """One after the other, each while the contents of the next one come; what could not be."""
        problems: Problems = {}
        coming: Piece | None = None
        before: Piece | None = None
        try:
            for part in parts:
                before, coming = coming, part
                if before is not None:
                    before.arrived()
                if before is not None and coming.carried:
                    # All are in the same stage: a new directory would take along what comes into it already.
                    problems |= self.conclude(before, archiving)
                    before = None
                    self.leave_stages()
                coming.begin(self.groups)
                if before is not None:
                    problems |= self.conclude(before, archiving)
            if coming is not None:
                coming.arrived()
                problems |= self.conclude(coming, archiving)
        finally:
            for piece in (before, coming):
                if piece is not None:
                    piece.abandon()
        return problems

    def leave_stages(self) -> None:
        for side in self.targets:
            if self.sides[side].prepared:
                self.sides[side].tree.finish()
                self.sides[side].prepared = False

    def answered(self) -> None:
        """Waits for all that was asked of the replicas; ``carry_out`` does for what the archive relies on."""
        for side in SIDES:
            self.sides[side].tree.answered()

    def conclude(self, piece: Piece, archiving: Archiving) -> Problems:
        """Everything that has come is put in its place, on the disks, and into the archive; what could not be."""
        piece.commit(one_way=self.direction != "both")
        # A source had on its disk what was read of it: ``settle``.
        for side in self.targets:
            self.sides[side].tree.sync()
        problems = archiving.remember(piece.decisions, piece.done)
        self.answered()
        self.problems |= problems
        self.report.problems |= problems
        self.tally(piece.decisions, piece.done)
        return problems

    def ties(self, asides: Mapping[bytes, bytes], copies: Collection[bytes]) -> Iterator[Collection[bytes]]:
        """What has to be in one piece: the names of a file; what is put aside, and what is left of it beside it."""
        for groups in self.groups.values():
            yield from set(groups.values())
        beside: dict[bytes, list[bytes]] = {}
        for path in copies:
            top = path
            while top not in asides:
                top = parent(top)
            beside.setdefault(asides[top], [asides[top]]).append(path)
        yield from beside.values()

    def markers(self) -> dict[str, dict[str, Any]]:
        """What each target's marker says beside the generations."""
        return {
            side: {
                "element": self.name,
                "job": self.job.name,
                "server": os.uname().nodename,
                "machine": self.identity[HERE]["machine"],
                "state": str(self.layout.state),
                "path": self.paths[side],
                "file": self.called(side),
            }
            for side in self.targets
        }

    def far(self) -> bool:
        """Whether the partner is far enough for the link, not the processors, to be what a copy waits for."""
        return self.servers[THERE].round_trip >= FAR


@contextmanager
def uncollected() -> Iterator[None]:
    """Millions of small tuples without cycles: looking for some takes a third of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def seen_text(seen: Seen) -> str | None:
    """An entry as a plan names it: what may not move before the plan is approved."""
    if isinstance(seen, Entry):
        return os.fsdecode(seen.record)
    return None if seen is None else f"unknown: {seen.reason}"


def destructive(one: Decision) -> bool:
    """Whether it deletes or overwrites."""
    return one.remove is not None or (one.content is not None and one.here is not None and one.there is not None)


def listed(one: Decision, known: Mapping[str, Any] | None) -> bool:
    """Whether a plan, as ``run.told`` tells it, has this very deletion or overwriting, of the same entries."""
    if known is None:
        return False
    same = (known["here"], known["there"]) == (seen_text(one.here), seen_text(one.there))
    # What was held back is listed as such, and was to be deleted.
    held_back = known["by"] == "guard" and one.remove is not None
    return same and (held_back or (known.get("content"), known.get("remove")) == (one.content, one.remove))


def unsettled(plan: Plan) -> bool:
    return any(one.status == "unresolved" or one.what == "unknown" for one in plan.decisions)


class Intended(NamedTuple):
    """What was about to happen to a path on one side: what was there, what was to come, and what the other side had."""

    expected: Entry | None
    coming: Entry | None
    source: Entry | None


def intended(intents: Iterable[Intent]) -> dict[bytes, dict[str, tuple[Intent, Intent]]]:
    """Path -> the side that was about to change -> what the other side had then, and what was intended."""
    rest = iter(intents)
    found: dict[bytes, dict[str, tuple[Intent, Intent]]] = {}
    for source, intent in zip(rest, rest):
        found.setdefault(intent.path, {})[intent.side] = (source, intent)
    return found


def read_intent(source: Intent, intent: Intent) -> Intended:
    return Intended(
        Entry.parse(intent.expected, intent.expected_more) if intent.expected else None,
        Entry.parse(intent.coming, intent.coming_more) if intent.coming else None,
        Entry.parse(source.coming, source.coming_more) if source.coming else None,
    )


def settled(row: Row) -> bool:
    """Whether the row counts whatever the settings are: it is agreed, or waits for a person's word."""
    return row.status == "agreed" or row.by == "guard"


def deleted(expected: Entry | None, entry: Seen, other: Seen) -> bool:
    """Whether what was about to be deleted is gone, and one of the sides has something new there now."""
    if entry is None:
        return other is not None
    if other is not None or not isinstance(entry, Entry) or expected is None:
        return False
    return (entry.kind, entry.inode) != (expected.kind, expected.inode)


def as_put(triple: Triple, side: str, expected: Entry | None, entry: Entry, source: Entry) -> Row:
    """The pair once ``entry`` was put on the side where ``expected`` was, while the other side had ``source``.

    What was not brought from there has not come to agree by it: of that the pair is the old one.
    """
    row, mine, other = triple.row, entry, source
    if row is not None and row.status == "agreed" and row.here is not None and row.there is not None:
        old, old_other = half_of(row, side), half_of(row, OTHER[side])
        assert old is not None and old_other is not None
        same: list[str] = []
        if expected is not None:
            still = ["mode", "uid", "gid", "xattrs"]
            if entry.inode == expected.inode:
                same += ("kind", "inode", "size", "link", "rdev")
                still.append("mtime")
            same += [name for name in still if getattr(expected, name) == getattr(entry, name)]
        mine = mine._replace(**{name: getattr(old, name) for name in same})
        other = other._replace(**{name: getattr(old_other, name) for name in same})
    return row_of(triple.path, "agreed", {side: mine, OTHER[side]: other})


def as_intended(expected: Entry | None, coming: Entry, entry: Entry) -> bool:
    """Whether an entry is what was to come; inode and ctime, and a directory's size and times, were not known.

    Of what was there already the metadata are set one by one, so some may still be as they were.
    """
    fields = ("kind", "mode", "uid", "gid", "link", "xattrs") + (("size", "mtime") if coming.kind == "f" else ())
    there = expected is not None and entry.inode == expected.inode
    return all(
        getattr(entry, name) == getattr(coming, name) or (there and getattr(entry, name) == getattr(expected, name))
        for name in fields
    )


def check_kind(facts: dict[str, Any], path: str, server: str, field: str) -> None:
    if facts["kind"] == "blocked":
        raise Failure(
            "blocked", f"{path} cannot be reached on {server}: {facts['reason']}; name the real path", field=field
        )
    if facts["kind"] in ("link", "other"):
        what = (
            "a symbolic link; name what it points to" if facts["kind"] == "link" else "neither a directory nor a file"
        )
        raise Failure("kind", f"{path} on {server} is {what}", field=field)
