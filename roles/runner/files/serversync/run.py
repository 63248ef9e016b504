# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of a job: lock, elements, attempts, record. And the plan, the same without touching anything."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from typing import Any

from serversync import __version__, filters, rsync
from serversync.display import safe
from serversync.failure import Failure, InvalidDocument, Stopped
from serversync.history import History
from serversync.job import Element, Job, seconds
from serversync.layout import Layout
from serversync.place import RUN_TIME
from serversync.replica import LocalReplica, Replica, SshReplica
from serversync.ssh import Connection

Record = dict[str, Any]
EXIT = {"equal": 0, "equal_with_warnings": 0, "failed": 1, "different": 3, "skipped": 4}


def now() -> datetime:
    return datetime.now(timezone.utc)


def timestamp() -> str:
    return now().isoformat(timespec="milliseconds")


def new_run() -> str:
    """A run's name: its time, UTC, and four hex digits that keep two of one second apart."""
    return f"{now().strftime(RUN_TIME)}-{secrets.token_hex(2)}"


@contextmanager
def locked(layout: Layout, job: Job) -> Iterator[bool]:
    """Holds the job's lock; false where another run holds it. The kernel releases it however the processes end."""
    layout.locks.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(layout.locks / f"{job.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Inherited by rsync: should this process be killed, the lock is free only when rsync is done, too.
        os.set_inheritable(descriptor, True)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def select(job: Job, only: str | None) -> list[Element]:
    """The elements of a run, all or the one that ``--element`` names by its path."""
    chosen = [element for element in job.elements if only in (None, element.path)]
    if not chosen:
        paths = ", ".join(element.path for element in job.elements)
        raise InvalidDocument("unknown_element", f"job {job.name} has no element {only!r} (elements: {paths})")
    return chosen


class Sides:
    """The two replicas of a job's elements; the connection behind them is opened once and used by all."""

    def __init__(self, layout: Layout, job: Job) -> None:
        self.local = LocalReplica(layout.privileged)
        self.held = ExitStack()
        self.partner: Replica = self.local
        self.connection: Connection | None = None
        if not job.local:
            self.connection = self.held.enter_context(Connection(layout, job))
            self.partner = SshReplica(self.connection)

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.held.close()


class Transfer:
    """One element between its two replicas, along the job's direction."""

    def __init__(self, layout: Layout, job: Job, element: Element, sides: Sides) -> None:
        self.layout = layout
        self.job = job
        self.element = element
        ends: list[tuple[str, Replica, str]] = [
            ("this_server", sides.local, element.path),
            ("partner", sides.partner, element.partner_path),
        ]
        if not job.to_partner:
            ends.reverse()
        (
            (self.source_side, self.source, self.source_path),
            (self.target_side, self.target, self.target_path),
        ) = ends
        self.remote_shell = sides.partner.remote_shell

    def server(self, side: str) -> str:
        return "this server" if side == "this_server" else self.job.partner

    def check(self) -> str:
        """The element's kind (directory or file); Failure where the two replicas cannot be synchronized."""
        source = self.source.look(self.source_path)
        field, server = self.element.field(self.source_side), self.server(self.source_side)
        if source["kind"] == "missing":
            message = (
                f"{self.source_path} does not exist on {server}, the source; create or mount it, or correct the path"
            )
            raise Failure("missing", message, field=field)
        check_kind(source, self.source_path, server, field)
        if not source["readable"]:
            message = (
                f"{self.source_path} is not readable on {server}; give the account or the pairing's root read access"
            )
            raise Failure("not_readable", message, field=field)
        target = self.target.look(self.target_path)
        field, server = self.element.field(self.target_side), self.server(self.target_side)
        if target["kind"] == "missing":
            confined = self.layout.privileged and self.target_side == "this_server"
            if confined or not target["writable"]:
                remedy = "create it there"
                if confined and source["kind"] == "file":
                    remedy = "create it empty, then apply the playbook again, which opens its directory to the job"
                raise Failure("missing", f"{self.target_path} does not exist on {server}; {remedy}", field=field)
            return str(source["kind"])
        check_kind(target, self.target_path, server, field)
        if target["kind"] != source["kind"]:
            message = f"{self.target_path} is a {target['kind']} on {server}, but the source is a {source['kind']}"
            raise Failure("kind", f"{message}; correct the path, or move it away", field=field)
        if not target["writable"]:
            message = (
                f"{self.target_path} is not writable on {server}; give the account or the pairing's root write access"
            )
            raise Failure("not_writable", message, field=field)
        return str(source["kind"])

    def move(self, run: str, dry_run: bool, on_change: Callable[[rsync.Change], None] | None) -> rsync.Outcome:
        """Lets rsync make the target as the source is; Failure where it could not begin."""
        kind = self.check()
        tail = "/" if kind == "directory" else ""
        scratch = None
        if not dry_run:
            # Both paths: another server's job of this name may put its files into the same directory.
            both = os.fsencode(f"{self.source_path}\0{self.target_path}")
            digest = hashlib.sha256(both).hexdigest()[:8]
            scratch = self.target.prepare(self.target_path, kind, f"{self.job.name}.{digest}", run)
        with tempfile.NamedTemporaryFile(prefix="serversync-") as rules:
            exclude = self.job["settings"]["exclude"] if kind == "directory" else []
            rules.write(filters.rules(exclude))
            rules.flush()
            argv = rsync.command(
                self.source.address(self.source_path) + tail,
                self.target.address(self.target_path) + tail,
                exclude_from=rules.name,
                scratch=scratch,
                privileged=self.target.privileged,
                remote_shell=self.remote_shell,
                dry_run=dry_run,
            )
            return rsync.execute(argv, on_change)


def check_kind(facts: dict[str, Any], path: str, server: str, field: str) -> None:
    if facts["kind"] == "blocked":
        raise Failure(
            "blocked",
            f"{path} cannot be reached on {server}: {facts['reason']}; name the real path",
            field=field,
        )
    if facts["kind"] in ("link", "other"):
        what = (
            "a symbolic link; name what it points to" if facts["kind"] == "link" else "neither a directory nor a file"
        )
        raise Failure("kind", f"{path} on {server} is {what}", field=field)


def plan(layout: Layout, job: Job, only: str | None = None) -> dict[str, Any]:
    """What a run would do now: per element the changes, or the failure. Nothing is written on either server."""
    elements = []
    with Sides(layout, job) as sides:
        for element in select(job, only):
            changes: list[rsync.Change] = []
            found = describe(job, element)
            try:
                transfer = Transfer(layout, job, element, sides)
                outcome = transfer.move("plan", True, changes.append)
                failure = rsync.failure(outcome, element.field(transfer.source_side))
            except Failure as error:
                failure = error
            told = [{"what": change.what, "path": change.name, "bytes": change.size} for change in changes]
            elements.append(found | {"changes": told, "error": failure.as_dict() if failure else None})
    failed = any(entry["error"] for entry in elements)
    return {"job": job.name, "partner": job.partner, "failed": failed, "elements": elements}


def describe(job: Job, element: Element) -> dict[str, Any]:
    return {
        "path": element.path,
        "partner_path": element.partner_path,
        "direction": job["settings"]["direction"],
    }


class Run:
    """One run; ``record`` is what is told of it, in the end and on the way."""

    def __init__(
        self,
        layout: Layout,
        job: Job,
        *,
        trigger: str,
        only: str | None,
        log: Callable[[str], None],
        wait: Callable[[float], None],
    ) -> None:
        self.layout = layout
        self.job = job
        self.log = log
        self.wait = wait
        self.elements = select(job, only)
        self.record: Record = {
            "run": new_run(),
            "job": job.name,
            "partner": job.partner,
            "runner": __version__,
            "configuration": 0,
            "trigger": trigger,
            "started": timestamp(),
            "ended": None,
            "state": "running",
            "attempts": [],
            "elements": [blank(job, element) for element in self.elements],
            "error": None,
            "notification": None,
        }

    def carry_out(self) -> Record:
        """Attempts until nothing is left that another attempt could cure; sets the record's state."""
        retries, delay = self.job["on_error"]["retries"], seconds(self.job["on_error"]["delay"])
        todo = list(range(len(self.elements)))
        try:
            for number in range(1, retries + 2):
                started = timestamp()
                failures = self.attempt(todo)
                todo = [index for index, failure in failures.items() if failure.transient]
                self.record["attempts"].append(
                    {
                        "number": number,
                        "started": started,
                        "ended": timestamp(),
                        "state": "failed" if failures else "equal",
                        "errors": list({str(failure): failure.as_dict() for failure in failures.values()}.values()),
                    }
                )
                if not todo or number > retries:
                    break
                self.log(f"attempt {number} of {retries + 1} failed; the next in {self.job['on_error']['delay']}")
                self.wait(delay)
        except (Stopped, KeyboardInterrupt):
            self.end(Failure("stopped", "the run was stopped before it was done; the next one goes on from there"))
            raise
        except Exception as error:
            self.end(Failure("internal", f"the runner failed: {type(error).__name__}: {error}"))
            raise
        self.end(None)
        return self.record

    def attempt(self, todo: list[int]) -> dict[int, Failure]:
        """Tries the elements of these numbers; the failures by number."""
        failures: dict[int, Failure] = {}
        for index in todo:
            self.record["elements"][index] |= {"state_after": None, "error": None, "problems": []}
        try:
            with Sides(self.layout, self.job) as sides:
                for index in todo:
                    failure = self.synchronize(index, sides)
                    if failure:
                        failures[index] = failure
        except Failure as failure:
            # Without a connection none of the elements that are left can be tried.
            for index in todo:
                if index not in failures and self.record["elements"][index]["state_after"] is None:
                    self.tell(index, failure)
                    failures[index] = failure
        return failures

    def synchronize(self, index: int, sides: Sides) -> Failure | None:
        element, entry = self.elements[index], self.record["elements"][index]
        failure: Failure | None
        try:
            transfer = Transfer(self.layout, self.job, element, sides)
            # An attempt of its own directory: a second one must not replace what the first one put aside.
            attempt = len(self.record["attempts"]) + 1
            run = self.record["run"] + (f".{attempt}" if attempt > 1 else "")
            outcome = transfer.move(run, False, None)
        except Failure as error:
            failure = error
        else:
            for counter in ("created", "updated", "attributes"):
                entry[counter] += getattr(outcome, counter)
            entry["bytes"] += outcome.sent
            entry["files"] = outcome.files
            failure = rsync.failure(outcome, element.field(transfer.source_side))
            if entry["state_before"] is None:
                entry["state_before"] = "different" if outcome.changed or failure else "equal"
            entry["problems"] = outcome.problems
        if failure:
            self.tell(index, failure)
        else:
            entry["state_after"] = "equal"
            copied = entry["created"] + entry["updated"]
            self.log(f"{safe(element.path)}: equal, {copied} copied, {entry['bytes']} bytes")
        return failure

    def tell(self, index: int, failure: Failure) -> None:
        entry = self.record["elements"][index]
        entry["state_after"], entry["error"] = "failed", failure.as_dict()
        self.log(f"{safe(entry['path'])}: failed: {safe(str(failure))}")

    def end(self, failure: Failure | None) -> None:
        for entry in self.record["elements"]:
            if entry["state_after"] is None:
                entry["state_after"] = "failed"
        failed = failure or any(entry["state_after"] == "failed" for entry in self.record["elements"])
        self.record["state"] = "failed" if failed else "equal"
        self.record["error"] = failure.as_dict() if failure else first_error(self.record)
        self.record["ended"] = timestamp()


def blank(job: Job, element: Element) -> dict[str, Any]:
    counters = dict.fromkeys(("files", "created", "updated", "attributes", "bytes"), 0)
    states = dict.fromkeys(("state_before", "state_after", "error"))
    return {**describe(job, element), **states, **counters, "problems": []}


def first_error(record: Record) -> dict[str, Any] | None:
    return next((entry["error"] for entry in record["elements"] if entry["error"]), None)


def run(
    layout: Layout,
    job: Job,
    *,
    trigger: str,
    only: str | None,
    log: Callable[[str], None],
    wait: Callable[[float], None],
    tell: Callable[[Record], dict[str, Any] | None],
) -> Record:
    """Runs the job, or records that it was skipped; ``tell`` sends the notification of a record."""
    history = History(layout)
    attempt = Run(layout, job, trigger=trigger, only=only, log=log, wait=wait)
    record = attempt.record
    record["configuration"] = history.configuration(job)
    with locked(layout, job) as free:
        if not free:
            message = "another run of this job is on; this one was skipped"
            record |= {"state": "skipped", "ended": timestamp(), "elements": []}
            record["error"] = Failure("running", message).as_dict()
            log(message)
            history.keep(record)
            history.publish(job)
            return record
        history.close_unfinished(job.name, timestamp())
        history.keep(record)
        history.publish(job)
        try:
            attempt.carry_out()
        finally:
            try:
                history.keep(record)
                history.publish(job)
            finally:
                record["notification"] = tell(record)
            if record["notification"]:
                history.keep(record)
                history.publish(job)
    return record
