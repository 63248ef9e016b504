# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One element of kind ``log`` in one run: the source's new lines are appended to the target's file, and none twice.

**What a line is.** Everything up to a line feed, any bytes, any length. A last line without one waits, until it is
finished, also in a file that was rotated away meanwhile.

**What is known.** Of every file that lines were taken from: its stamp (device, inode, time, size), how far it was taken
(a mark: the offset and the digests of the first bytes and of those before the offset), and which of them was the log.
A file is known again by its inode and its mark, or by the mark alone: after a rename it has the inode, after being
copied or packed it has not, after being truncated or rewritten the mark does not fit. So a rotated file is no file of
its own: what it got after it was looked at last is taken first. Files that were rotated in and out between two runs
were never seen, and are taken whole, the oldest first; the log comes last. A copy of what another file still has brings
nothing new. Files whose names have no number or date, copies that people make, are only looked at for what the log was.
Where the log is not found again, as it was rotated out of its directory or truncated without a copy, lines may be
missing, and a warning says so. What lies beside the log when it is first seen is not taken.

Two files that begin with the same lines, all that was taken of one of them included, can only be told apart by inode;
where even that fails they are taken for one, which is the same lines once.

**What is on the target** is nobody's but its own: nothing there is compared after the first run, removed or rewritten,
whether it is appended to by others, rotated or truncated. In the first run a target that the source begins with is
continued, one that begins with the source is left; after any other the whole log is appended, and a warning says so. A
last line there that is not finished is ended first.

**A kill** neither doubles nor loses. Before bytes are appended, a few megabytes of whole lines or one longer line, the
state says which ones, their digest, and how long the target is; after they are on the target's disk it says that they
are taken, together with what is intended next. A state with an intent is held against the target: what came after its
length is compared with the intended bytes. All there: taken. A beginning of them and nothing behind it: the rest is
appended to it, which ends as removing it would, but takes away nothing that is written there meanwhile. Others wrote
there, too: the whole lines that are there are taken, a torn one is ended and comes again, whole.

The state is a file of its own beside the archives, replaced in one step, with a digest; of one that is damaged nothing
is believed, and the next run is a first run.

``match``, ``assess`` and ``logfile.already`` decide, and are pure. The rest carries it out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from serversync import history
from serversync.counts import Tell
from serversync.entry import HERE, THERE
from serversync.failure import Failure
from serversync.job import Element, Job
from serversync.layout import Layout
from serversync.locks import owner, told_of
from serversync.logfile import (
    BATCH,
    NOTHING,
    Extent,
    File,
    Mark,
    Source,
    Stamp,
    Target,
    digest_of,
    explained,
    rotated_names,
)
from serversync.machine import known_as
from serversync.partnerlog import AnySource, AnyTarget, PartnerSource, PartnerTarget
from serversync.reconcile import OTHER, Plan
from serversync.replica import Partner, Server, ThisServer, translations
from serversync.synchronize import Report, Synchronization, check_kind, element_name, silent

FORMAT = 1
# Files that are remembered, those that are gone included: one that comes back, say unpacked, is not new.
KNOWN = 400
# Of a file whose mark or stamp says nothing.
UNSEEN = Stamp(0, 0, 0, -1)


@dataclass
class Known:
    """A file that lines were taken from, or that is not to be taken.

    mark: None where nothing is known of its contents, which are not taken as long as its stamp stays; stamp: as it was
    when it had been taken to its end, with the size -1 until then; present: it was there in the last run.
    """

    number: int
    stamp: Stamp
    mark: Mark | None
    present: bool = True

    @property
    def offset(self) -> int:
        return -1 if self.mark is None else self.mark.offset


@dataclass
class Torn:
    """The target, as long as it is as in ``State.target``, ends within a line of this known file, of which the rest is
    to follow; else the whole line, from this mark on."""

    number: int
    line: Mark


@dataclass
class Intent:
    """Bytes about to be appended: those of a known file between two marks. target: its device, inode and size before;
    newline: its last line is ended first."""

    number: int
    start: Mark
    end: Mark
    digest: str
    target: tuple[int, int, int]
    newline: bool


@dataclass
class State:
    """What is known after a run. identity: both servers and paths; directories: inodes of both logs' directories, the
    source's first; current: the known file that was the log; target: device, inode and size after the last append;
    unreadable: siblings that could not be read."""

    identity: dict[str, list[str]]
    directories: tuple[int, int] = (0, 0)
    known: list[Known] = field(default_factory=list)
    current: int | None = None
    target: tuple[int, int, int] | None = None
    unreadable: list[Stamp] = field(default_factory=list)
    intent: Intent | None = None
    torn: Torn | None = None
    numbers: int = 0

    def add(self, stamp: Stamp, mark: Mark | None) -> Known:
        self.numbers += 1
        one = Known(self.numbers, stamp, mark)
        self.known.append(one)
        return one

    def of(self, number: int | None) -> Known | None:
        return next((one for one in self.known if one.number == number), None)

    def dump(self) -> str:
        intent = self.intent
        document = {
            "format": FORMAT,
            "identity": self.identity,
            "directories": self.directories,
            "known": [[one.number, one.stamp, one.mark, one.present] for one in self.known],
            "current": self.current,
            "target": self.target,
            "unreadable": self.unreadable,
            "intent": intent
            and [intent.number, intent.start, intent.end, intent.digest, intent.target, intent.newline],
            "torn": self.torn and [self.torn.number, self.torn.line],
            "numbers": self.numbers,
        }
        text = json.dumps(document)
        return json.dumps({"digest": digest_of(text.encode("ascii")), "state": text}) + "\n"

    @classmethod
    def parse(cls, text: str) -> State:
        """Raises ValueError on what ``dump`` has not written."""
        outer = json.loads(text)
        if not isinstance(outer, dict) or digest_of(str(outer.get("state")).encode()) != outer.get("digest"):
            raise ValueError("its digest is not that of its contents")
        document = json.loads(outer["state"])
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, not {FORMAT}")
        intent = document["intent"]
        return cls(
            # Earlier versions had the machine ids themselves.
            {name: [known_as(server), path] for name, (server, path) in document["identity"].items()},
            tuple(document["directories"]),
            [
                Known(number, Stamp(*stamp), mark and Mark(*mark), present)
                for number, stamp, mark, present in document["known"]
            ],
            document["current"],
            document["target"] and tuple(document["target"]),
            [Stamp(*one) for one in document["unreadable"]],
            intent and Intent(intent[0], Mark(*intent[1]), Mark(*intent[2]), intent[3], tuple(intent[4]), intent[5]),
            document["torn"] and Torn(document["torn"][0], Mark(*document["torn"][1])),
            document["numbers"],
        )


# The core: which file is which, and what is to be taken.


def match(known: Sequence[Known], files: Sequence[File]) -> dict[int, int]:
    """Index of a file -> index of the known file that it is; each of both at most once. ``File.holds`` are indexes of
    known files."""
    found: dict[int, int] = {}

    def agrees(index: int, file: File) -> bool:
        one = known[index]
        if one.mark is None:
            return one.stamp[2:] == file.stamp[2:]
        if file.size < 0:
            return one.stamp == file.stamp
        return one.mark.offset == 0 or index in file.holds

    ways: list[Callable[[Known, File], bool]] = [
        lambda one, file: one.offset > 0 and one.stamp[:2] == file.stamp[:2],
        # Of some file systems the device has another number after each mount.
        lambda one, file: one.offset > 0 and one.stamp.inode == file.stamp.inode,
        lambda one, file: one.offset == 0 and one.stamp.inode == file.stamp.inode and file.current,
        lambda one, file: one.offset > 0 and one.offset == file.size and likely(file),
        lambda one, file: one.offset > 0 and one.present and likely(file),
        lambda one, _file: one.offset > 0 and one.present,
        # Its inode may be another file's by now, whose contents are known.
        lambda one, file: one.offset == 0 and one.stamp.inode == file.stamp.inode and file.counted,
        # Last, as the log may be found in a copy that brought nothing new when it was made.
        lambda one, _file: one.mark is None,
    ]
    for fits in ways:
        for number, file in enumerate(files):
            if number in found:
                continue
            taken = found.values()
            fitting = [
                index
                for index, one in enumerate(known)
                if index not in taken and fits(one, file) and agrees(index, file)
            ]
            if fitting:
                # The one of which most is known to be the same.
                found[number] = max(fitting, key=lambda index: known[index].offset)
    return found


def likely(file: File) -> bool:
    return file.current or file.counted


def in_order(files: Sequence[File], name: str) -> list[int]:
    """Indexes of the files as they were written, the log itself last: by number or date in their names where all have
    one of a sort, else by the time of their last line."""
    pattern = rotated_names(name)

    def place_of(file: File) -> tuple[str, int]:
        found = pattern.fullmatch(file.name)
        groups = found.groupdict() if found else {}
        digits = "".join(filter(str.isdigit, groups.get("after") or groups.get("within") or ""))
        if not digits:
            return "", 0
        # app.log.2 is older than app.log.1, app.log-20240102 is newer than app.log-20240101.
        return (f"date{len(digits)}", int(digits)) if len(digits) > 4 else ("number", -int(digits))

    places = {index: place_of(file) for index, file in enumerate(files)}
    rotated = [index for index, file in enumerate(files) if not file.current]
    sorts = {places[index][0] for index in rotated}
    by_name = len(sorts) == 1 and "" not in sorts

    def key(index: int) -> tuple[int, int, int]:
        when = files[index].stamp.mtime
        return (places[index][1], when, 0) if by_name else (when, places[index][1], index)

    return sorted(rotated, key=key) + [index for index, file in enumerate(files) if file.current]


class Work(NamedTuple):
    """A file to take from: its index, and that of the known file that it is (None: it was never seen). originals: files
    that it may be a copy of."""

    file: int
    known: int | None
    originals: list[int]


class Assessment(NamedTuple):
    """work: in the order in which it is to be done; unreadable: files that are not known and cannot be read; lost: what
    became of the log where it is not found again, for people, else empty."""

    matched: dict[int, int]
    work: list[Work]
    unreadable: list[int]
    lost: str


def assess(known: Sequence[Known], current: int | None, files: Sequence[File], name: str) -> Assessment:
    """What to do with the files as they are; current: index of the known file that was the log."""
    matched = match(known, files)
    work, unreadable = [], []
    order = in_order(files, name)
    for number in order:
        file, index = files[number], matched.get(number)
        if index is not None:
            if file.size > known[index].offset >= 0:
                work.append(Work(number, index, []))
        elif file.problem and file.rotated:
            unreadable.append(number)
        elif file.current or file.counted:
            work.append(Work(number, None, originals(files, matched, number)))
    return Assessment(matched, work, unreadable, lost(known, current, files, matched))


def originals(files: Sequence[File], matched: Mapping[int, int], number: int) -> list[int]:
    """Indexes of the files that this one, which was never seen, is perhaps being copied or packed from at this moment.

    Any other file with a number or date is one of its own, even if it says the same as another one.
    """
    name, log = files[number].name, not files[number].current
    return [
        other
        for other, one in enumerate(files)
        if other in matched and ((log and one.current) or name == f"{one.name}.gz")
    ]


def lost(known: Sequence[Known], current: int | None, files: Sequence[File], matched: Mapping[int, int]) -> str:
    if current is None or current in matched.values() or any(current in file.holds for file in files):
        return ""
    one = known[current]
    if one.offset == 0 and any(file.counted and number not in matched for number, file in enumerate(files)):
        # Nothing tells that it is not one of these, which are taken whole.
        return ""
    now = next((file for file in files if file.current), None)
    if now is None or now.stamp.inode != one.stamp.inode:
        return "was rotated or replaced, and the file that it was is not beside it"
    if now.size < one.offset:
        return "was truncated, and no copy of it is beside it"
    return "was rewritten"


# What is told.


class Append(NamedTuple):
    """What would be appended, of one of the source's files; size in bytes."""

    name: str
    lines: int
    size: int

    def told(self) -> dict[str, Any]:
        nothing: dict[str, Any] = dict.fromkeys(("here", "there", "content", "remove"))
        words = dict.fromkeys(("row", "by", "aside"), "")
        said = {"what": "append", "path": self.name, "reason": f"append {self.lines} lines", "bytes": self.size}
        return {**said, **words, **nothing, "lines": self.lines}


@dataclass
class LogPlan(Plan):
    decisions: list[Append]  # type: ignore[assignment]


@dataclass
class LogReport(Report):
    lines: int = 0


def engine(element: Element) -> type[Any]:
    """What synchronizes elements of this kind."""
    return LogSynchronization if element.kind == "log" else Synchronization


class LogSynchronization:
    """Like ``synchronize.Synchronization``, of a log."""

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
        self.layout = layout
        self.job = job
        self.element = element
        self.servers = servers
        self.run = run
        self.look = look
        self.passed = passed or ()
        self.progress = progress
        self.paths = {HERE: element.path, THERE: element.partner_path}
        direction = element.settings["direction"]
        if direction == "both":
            where = f"elements[{element.index}]"
            message = f"a log goes one way; give it to_partner or from_partner in {where}.settings.direction"
            raise Failure("direction", message, field=f"{where}.kind")
        self.to = THERE if direction == "to_partner" else HERE
        self.targets = (self.to,)
        self.name = Path(self.paths[OTHER[self.to]]).name
        self.state_path = (
            layout.state / "archives" / job.name / f"{element_name(job.name, element.path, element.partner_path)}.log"
        )
        self.held = ExitStack()
        self.report = LogReport()
        self.saved = ""

    def __enter__(self) -> LogSynchronization:
        try:
            self.check()
            self.source, self.target = self.open_source(), self.open_target()
            self.state = self.load()
        except BaseException:
            self.held.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.held.close()

    # Before anything else: can lines be taken and appended at all?

    def server(self, side: str) -> str:
        return "this server" if side == HERE else self.job.partner

    def check(self) -> str:
        """``log``; Failure where a log cannot be synchronized."""
        field = f"elements[{self.element.index}].kind"
        for server in self.servers.values():
            if not isinstance(server, (ThisServer, Partner)):
                message = (
                    f"a log cannot be appended to over connection {self.job['partner']['connection']}, which does not "
                    "tell what became of an append that was cut off; use connection ssh"
                )
                raise Failure("log_connection", message, field=field)
        for side in (HERE, THERE):
            path, where_is, where = self.paths[side], self.server(side), self.element.field(side)
            facts = self.servers[side].look(path)
            if facts["kind"] == "directory":
                raise Failure(
                    "kind", f"{path} is a directory on {where_is}; name one file, or use kind tree", field=where
                )
            check_kind(facts, path, where_is, where)
            access = "writable" if side == self.to else "readable"
            if facts["kind"] == "missing" and side != self.to:
                if not self.state_path.exists():
                    message = (
                        f"{path} does not exist on {where_is}, the source; create or mount it, or correct the path"
                    )
                    raise Failure("missing", message, field=where)
            elif not facts[access]:
                right = "write" if side == self.to else "read"
                message = f"{path} is not {access} on {where_is}; give the account or the pairing's root {right} access"
                raise Failure(f"not_{access}", message, field=where)
        return "log"

    def open_source(self) -> AnySource:
        server, path = self.servers[OTHER[self.to]], self.paths[OTHER[self.to]]
        source: AnySource
        if isinstance(server, Partner):
            source = PartnerSource(server.connection, path, writable=False, look=self.look, owner="")
        else:
            with explained(path):
                source = Source(path)
        self.held.callback(source.close)
        return source

    def open_target(self) -> AnyTarget:
        server, path = self.servers[self.to], self.paths[self.to]
        by = owner(self.job.name, self.run)
        target: AnyTarget
        with told_of(f"{path} on {self.server(self.to)}", self.element.field(self.to)):
            if isinstance(server, Partner):
                target = PartnerTarget(server.connection, path, writable=True, look=self.look, owner=by)
            else:
                with explained(path):
                    target = Target(path, look=self.look, owner=by, locks=self.layout.locks)
        self.held.callback(target.close)
        return target

    # The state.

    def identity(self) -> dict[str, list[str]]:
        source = OTHER[self.to]
        return {
            "source": [known_as(self.source.facts["machine"]), self.paths[source]],
            "target": [known_as(self.target.facts["machine"]), self.paths[self.to]],
        }

    def load(self) -> State | None:
        """None: there is none of these two logs."""
        state = self.read(self.state_path)
        if state is None:
            # That of a job that was renamed has its old name.
            same = self.state_path.name.rpartition(".")[0].rpartition(".")[2]
            before = self.element.previous_path or ""
            for path in sorted(self.state_path.parent.glob("*.log")):
                renamed = path.name.endswith(f".{same}.log")
                other = self.read(path) if renamed or before else None
                if other and before in (one[1] for one in other.identity.values()):
                    return replace(other, identity=self.identity())
                state = other if renamed else state
        if state is not None and state.identity != self.identity():
            self.report.warnings.append(
                f"{self.state_path} is of other logs, because a path, a server or the direction was changed; "
                "this is a first run"
            )
            return None
        return state

    def read(self, path: Path) -> State | None:
        try:
            text = path.read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        except ValueError as error:
            text, problem = "", str(error)
        try:
            state = State.parse(text)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            problem = str(error)
            self.report.warnings.append(f"{path} is damaged ({problem}); this is a first run")
            return None
        if path == self.state_path:
            self.saved = text
        return state

    def save(self) -> None:
        assert self.state is not None
        text = self.state.dump()
        if self.look or text == self.saved:
            return
        self.state_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        history.replace(self.state_path, text, 0o600)
        held = os.open(self.state_path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(held)
        finally:
            os.close(held)
        self.saved = text

    # What there is to take.

    def files(self, state: State, *more: Mark) -> list[File]:
        """The source's files. holds: indexes of known files, and behind them of the other marks."""
        marks = [one.mark or NOTHING for one in state.known]
        stamps = [one.stamp for one in state.known]
        return self.source.files([*marks, *more], [*stamps, *(UNSEEN for _one in more)])

    def examine(self) -> list[tuple[File, Known]]:
        """What to take from which file, in order; brings the state up to the files as they are."""
        if self.state is None:
            return self.begin()
        state = self.state
        if state.intent is not None:
            self.recover(state, state.intent)
        files = self.files(state)
        numbers = [one.number for one in state.known]
        current = numbers.index(state.current) if state.current in numbers else None
        found = assess(state.known, current, files, self.name)
        self.guard(state, found)
        if self.report.guards:
            return []
        known = list(state.known)
        self.tell_unread(state, files, found)
        for one in known:
            one.present = False
        for number, index in found.matched.items():
            # Until it is taken to its end a file may have more than its stamp tells.
            whole = files[number].size in (-1, known[index].offset)
            known[index].present = True
            known[index].stamp = files[number].stamp if whole else files[number].stamp._replace(size=-1)
        todo = []
        for work in found.work:
            file = files[work.file]
            seen = None if work.known is None else known[work.known]
            if self.is_copy(files, work):
                # One that is packed is to be read again: what it was packed from may go before that was taken.
                if not file.packed:
                    state.add(file.stamp, None)
            else:
                todo.append((file, seen or state.add(file.stamp._replace(size=-1), NOTHING)))
        by_index = {number: known[index].number for number, index in found.matched.items()}
        now = next((number for number, file in enumerate(files) if file.current), None)
        state.current = by_index.get(now) if now is not None else None
        for file, one in todo:
            if file.current:
                state.current = one.number
        gone = [one for one in state.known if not one.present]
        for one in gone[: max(0, len(state.known) - KNOWN)]:
            state.known.remove(one)
        state.directories = (self.source.facts["directory"], state.directories[1])
        # Before anything else may come its rest.
        return sorted(todo, key=lambda work: state.torn is None or work[1].number != state.torn.number)

    def is_copy(self, files: list[File], work: Work) -> bool:
        """Whether another file, of which the rest is taken, begins with all of this one."""
        others = [files[one].number for one in work.originals]
        return bool(others) and self.source.copied(files[work.file].number, others) >= 0

    def guard(self, state: State, found: Assessment) -> None:
        """A log that is not where it was, in a directory that is another one, is rather not mounted than rotated."""
        looks, stopping = "looks unmounted, or was replaced", []
        source, target = self.source.facts["directory"], self.target.facts["directory"]
        if found.lost and source != state.directories[0]:
            stopping.append(f"{self.paths[OTHER[self.to]]}: its directory {looks}")
        if state.directories[1] and not self.target.facts["exists"] and target != state.directories[1]:
            stopping.append(f"{self.paths[self.to]}: its directory on {self.server(self.to)} {looks}")
        self.report.guards += [text for text in stopping if text not in self.passed]

    def tell_unread(self, state: State, files: list[File], found: Assessment) -> None:
        """What is missing on the target, or would be. Failure where another look may find it."""
        path, server = self.paths[OTHER[self.to]], self.server(OTHER[self.to])
        unread = [files[number] for number in found.unreadable]
        known = [file for file in unread if file.stamp in state.unreadable]
        fresh = [file for file in unread if file.stamp not in state.unreadable]
        state.unreadable = [file.stamp for file in unread]
        if found.lost and fresh:
            # Perhaps it is being packed at this moment. If it is the same next time, it is not.
            self.save()
            message = f"{path} {found.lost}; {fresh[0].name} may be it, but cannot be read ({fresh[0].problem})"
            raise Failure("unread", message, transient=True)
        if found.lost and not any(file.current for file in files):
            message = f"{path} does not exist on {server}, nor is what it was rotated to beside it; create or mount it"
            raise Failure("missing", message, field=self.element.field(OTHER[self.to]))
        if found.lost:
            self.report.warnings.append(
                f"{path} {found.lost}: lines that it got after the last run may be missing on the target"
            )
        for file in known:
            self.report.warnings.append(
                f"{file.name} cannot be read ({file.problem}): its lines are missing on the target"
            )
            state.add(file.stamp, None)

    def begin(self) -> list[tuple[File, Known]]:
        """The first run: what is rotated already is left, and the target may have lines."""
        self.state = state = State(self.identity(), (self.source.facts["directory"], 0))
        todo = []
        for file in self.files(state):
            if not file.current:
                mark = None
                if not file.problem and not file.packed:
                    mark = self.source.mark(file.number, self.source.line_end(file.number, file.size))
                state.add(file.stamp, mark)
                continue
            start = self.where_to_begin(file)
            one = state.add(file.stamp._replace(size=-1), self.source.mark(file.number, start))
            line = self.source.line_end(file.number, start)
            if line != start:
                state.torn = Torn(one.number, self.source.mark(file.number, line))
            state.current = one.number
            todo.append((file, one))
        if not todo:
            path, server = self.paths[OTHER[self.to]], self.server(OTHER[self.to])
            raise Failure("missing", f"{path} is gone from {server}", transient=True)
        return todo

    def where_to_begin(self, file: File) -> int:
        facts = self.target.facts
        size = int(facts["size"])
        if not size:
            return 0
        both = min(size, file.size)
        if self.source.digest(file.number, 0, both) == self.target.digest(0, both):
            assert self.state is not None
            self.state.target = (facts["device"], facts["inode"], size)
            return size if size <= file.size else self.source.line_end(file.number, file.size)
        self.report.warnings.append(
            f"{self.paths[self.to]} on {self.server(self.to)} has lines that are not the source's first ones: they "
            "stay, and the whole log is appended after them"
        )
        return 0

    def recover(self, state: State, intent: Intent) -> None:
        """What a run that was killed was appending: how much of it is there."""
        one = state.of(intent.number)
        files = self.files(state, intent.end)
        last = len(state.known)
        holding = [file for file in files if last in file.holds]
        if one is None or not holding:
            if one is not None and self.recovered_blindly(intent):
                one.mark = intent.end
        else:
            file = max(holding, key=lambda file: file.stamp.inode == one.stamp.inode)
            done = self.recovered(file, intent)
            one.mark = intent.end if done == intent.end.offset else self.source.mark(file.number, done)
        state.intent = None
        self.save()

    def recovered_blindly(self, intent: Intent) -> bool:
        """The source has the bytes no more, so only their digest can tell."""
        _device, inode, size = intent.target
        start = size + intent.newline
        length = intent.end.offset - intent.start.offset
        facts = self.target.facts
        return bool(
            facts["inode"] == inode
            and facts["size"] >= start + length
            and self.target.digest(start, start + length) == intent.digest
        )

    def recovered(self, file: File, intent: Intent) -> int:
        """The offset in the source up to which the target has what was intended."""
        assert self.state is not None
        _device, inode, size = intent.target
        start, end = intent.start.offset, intent.end.offset
        if end - start > BATCH:
            return self.recovered_line(file, intent)
        before = b"\n" * intent.newline
        data = b"".join(self.source.read(file.number, start, end))
        count, last = self.target.already(inode, size, before + data)
        if count < 0:
            self.report.warnings.append(self.maybe_twice(end - start))
            return start
        done = max(0, count - len(before))
        if done:
            line = data.rfind(b"\n", 0, done) + 1
            if last and line != done:
                self.tear(file, intent, start + line)
            else:
                self.state.torn = None
        return start + done

    def tear(self, file: File, intent: Intent, line: int) -> None:
        """The target ends within the line that begins there, or before."""
        state, facts = self.state, self.target.facts
        assert state is not None
        if line != intent.start.offset:
            state.torn = Torn(intent.number, self.source.mark(file.number, line))
        elif state.torn is None or state.torn.number != intent.number:
            state.torn = Torn(intent.number, intent.start)
        state.target = (facts["device"], facts["inode"], facts["size"])

    def recovered_line(self, file: File, intent: Intent) -> int:
        """The same for a line that is longer than what is held in memory."""
        assert self.state is not None
        _device, inode, size = intent.target
        start, end = intent.start.offset, intent.end.offset
        at, offset, last = size + intent.newline, start, False
        for data in self.source.read(file.number, start, end):
            if not last:
                count = self.target.same(inode, at, data)
                if count < 0 and offset == start:
                    # Not even what there was is there, or nothing but that.
                    if self.target.facts["inode"] != inode or self.target.facts["size"] < size:
                        self.report.warnings.append(self.maybe_twice(end - start))
                    last = True
                    continue
                offset, at, last = offset + max(0, count), at + max(0, count), count < len(data)
        if offset == end:
            self.state.torn = None
            return end
        if offset > start and (inode, at) == (self.target.facts["inode"], self.target.facts["size"]):
            self.tear(file, intent, start)
            return offset
        return start

    def maybe_twice(self, length: int) -> str:
        path, server = self.paths[self.to], self.server(self.to)
        return f"{path} on {server} was rotated or truncated after a run was killed: {length} bytes may be there twice"

    # What run.py asks for.

    def plan(self) -> LogPlan:
        with explained(self.element.path):
            todo = self.examine()
            appends = []
            for file, one in todo:
                end, lines = self.source.count(file.number, one.offset)
                if lines:
                    appends.append(Append(file.name, lines, end - one.offset))
        self.report.plan = LogPlan(appends, [], self.report.warnings)
        self.report.entries = 1
        return self.report.plan

    def guarded(self, _plan: Plan) -> list[str]:
        return self.report.guards

    def synchronize(self, _approved: Mapping[bytes, Mapping[str, Any]] | None = None) -> None:
        """Appends; ``report`` has what came of it, also where it did not come to its end."""
        report = self.report
        report.entries = 1
        with explained(self.element.path):
            todo = self.examine()
            appends: list[Append] = []
            report.plan = LogPlan(appends, [], [])
            for file, one in todo:
                for append in self.drain(file, one):
                    appends.append(append)
            assert self.state is not None
            if not report.guards:
                self.save()
        report.state_before = "different" if report.lines or report.guards else "equal"
        if report.guards:
            report.state_after = "different"
        elif report.warnings:
            report.state_after = "equal_with_warnings"

    def drain(self, file: File, one: Known) -> Iterator[Append]:
        """Appends what the file has; yields what was appended, if anything."""
        state = self.state
        assert state is not None
        if state.torn is not None and state.torn.number == one.number:
            facts = self.target.refresh()
            if (facts["device"], facts["inode"], facts["size"]) != state.target:
                one.mark, state.torn = state.torn.line, None
        begin = one.offset
        end, _lines = self.source.count(file.number, begin)
        lines = 0
        while one.mark is not None and one.mark.offset < end:
            extent = self.source.take(file.number, one.mark, end)
            self.append(file, one, extent)
            one.mark = extent.mark
            lines += extent.lines
            self.report.lines += extent.lines
            self.progress("appending", self.report.lines, self.report.sent)
        # With a line that is not finished it has more than was taken, and is looked at again; nothing finishes a
        # line of one that is packed.
        if one.offset == file.size or file.packed:
            one.stamp = file.stamp
        if one.offset < file.size and file.packed:
            self.report.warnings.append(f"{file.name} ends within a line, which is left out")
        if lines:
            yield Append(file.name, lines, end - begin)

    def append(self, file: File, one: Known, extent: Extent) -> None:
        state = self.state
        assert state is not None
        assert one.mark is not None
        facts = self.target.refresh()
        if not facts["exists"]:
            self.create(file)
            facts = self.target.refresh()
        now = (facts["device"], facts["inode"], facts["size"])
        start = one.mark.offset
        newline = not facts["whole"] and (state.torn is None or state.torn.number != one.number)
        state.directories = (state.directories[0], facts["directory"])
        state.intent = Intent(one.number, one.mark, extent.mark, extent.digest, now, newline)
        self.save()
        size, length = now[2] + newline, extent.end - start
        if length <= BATCH:
            data = b"".join(self.source.read(file.number, start, extent.end))
            if digest_of(data) != extent.digest:
                raise Failure("moved", f"{file.name} was changed while it was read", transient=True)
            size = self.target.append(b"\n" * newline + data, True)
        else:
            if newline:
                self.target.append(b"\n", False)
            digest = blake2b(digest_size=16)
            for data in self.source.read(file.number, start, extent.end):
                digest.update(data)
                self.target.append(data, False)
            size = self.target.append(b"", True)
            if digest.hexdigest() != extent.digest:
                # What is there of it is told apart by the next run, as after a kill.
                raise Failure("moved", f"{file.name} was changed while it was read", transient=True)
        state.target = (now[0], now[1], size)
        state.intent = state.torn = None
        self.report.sent += length

    def create(self, file: File) -> None:
        """The target, with the source's mode and owner as far as they are preserved."""
        source, target = self.servers[OTHER[self.to]], self.servers[self.to]
        asked = self.element.settings["preserve"]
        able = {"permissions"} | ({"owner", "group"} if self.target.facts["owner"] else set())
        preserve = frozenset(able if asked is None else able & set(asked))
        uid, gid = file.uid, file.gid
        if self.element.settings["owners"] == "names" and preserve & {"owner", "group"}:
            users, groups, lacking = translations(source, target, {uid}, {gid})
            uid, gid = users.get(uid, uid), groups.get(gid, gid)
            if lacking:
                self.report.warnings.append(f"{self.server(self.to)} has no {', '.join(lacking)}: the numbers are kept")
        problems = self.target.create(file.mode, uid, gid, preserve)
        self.report.warnings += [f"{self.paths[self.to]}: {problem}" for problem in problems]
