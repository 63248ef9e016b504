# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of a job: lock, elements, attempts, record. And the plan, the same without touching anything."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from queue import Queue
from typing import Any

from serversync import __version__, metrics
from serversync.counts import Watch
from serversync.display import safe
from serversync.entry import HERE, THERE
from serversync.failure import Failure, InvalidDocument, Overdue, Stopped, of_system
from serversync.history import PUBLISHED, History, replace, worst
from serversync.job import Element, Job, in_order, seconds, with_required
from serversync.layout import Layout
from serversync.log import Append, engine
from serversync.pieces import moved_bytes
from serversync.place import RUN_TIME
from serversync.reconcile import Decision
from serversync.replica import Partner, Server
from serversync.servers import Connecting, Servers
from serversync.signals import Limit
from serversync.synchronize import NAMED_PATHS, Report, seen_text, silent
from serversync.turns import turn

Record = dict[str, Any]
# Over one connection: each has a conversation and an rsync, and sshd allows ten sessions (MaxSessions).
AT_ONCE = 4
EXIT = {"equal": 0, "equal_with_warnings": 0, "failed": 1, "different": 3, "skipped": 4}


def now() -> datetime:
    return datetime.now(timezone.utc)


def timestamp() -> str:
    return now().isoformat(timespec="milliseconds")


def new_run() -> str:
    """A run's name: its time, UTC, and four hex digits that keep two of one second apart."""
    return f"{now().strftime(RUN_TIME)}-{secrets.token_hex(2)}"


@contextmanager
def locked(layout: Layout, name: str) -> Iterator[bool]:
    """Holds a job's lock; false where another run holds it. The kernel releases it however the processes end."""
    path = layout.locks / f"{name}.lock"
    try:
        layout.locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # Where not even this can be kept, no record could tell of the run.
        message = f"the lock {path} cannot be made ({error.strerror}); mend its file system, or free some space there"
        raise Failure("records", message) from error
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


def plan(layout: Layout, job: Job, only: Sequence[str] | None = None) -> dict[str, Any]:
    """What a run would do now: per element the decisions, or the failure. Nothing is written on either server.

    ``plan`` is its id, for ``run --approve``: the same decisions on the same entries have the same.
    """
    elements = []
    with Servers(layout, job) as servers:
        planned = with_required(job, only)
        for element in planned:
            found: dict[str, Any] = describe(element) | {
                "decisions": [],
                "guards": [],
                "warnings": [],
                "unresolved": 0,
                "error": None,
            }
            try:
                with engine(element)(layout, job, element, servers.by_side, run=new_run(), look=True) as one:
                    decided = one.plan()
                    found["decisions"] = told(decided.decisions)
                    found["guards"] = one.guarded(decided)
                    found["warnings"] = one.report.warnings
                    if element.kind == "tree":
                        found["unresolved"] = one.archive.counts["unresolved"]
            except Failure as error:
                found["error"] = error.as_dict()
            elements.append(found)
    for number in in_order(planned):
        elements[number]["guards"] += [
            f"{path}, which it requires, {why}" for path, why, _passes in unfit(planned[number], elements)
        ]
    failed = any(entry["error"] for entry in elements)
    kept = keep_plan(layout, job, elements)
    return {"job": job.name, "partner": job.partner, "plan": kept, "failed": failed, "elements": elements}


# Plans of a job that wait for their approval.
KEEP_PLANS = 10


def keep_plan(layout: Layout, job: Job, elements: list[dict[str, Any]]) -> str:
    """Keeps what was planned until somebody approves it; its id."""
    text = json.dumps(
        {"elements": [{name: entry[name] for name in ("path", "decisions", "guards")} for entry in elements]}
    )
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    directory = layout.state / "plans" / job.name
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace(directory / f"{name}.json", text, 0o600)
        for old in sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)[KEEP_PLANS:]:
            old.unlink()
    except OSError as error:
        message = f"the plan cannot be kept in {directory} ({error.strerror}); free space, or make it writable"
        raise Failure("records", message) from error
    return name


def load_plan(layout: Layout, job: Job, name: str) -> dict[str, Any]:
    path = layout.state / "plans" / job.name / f"{name}.json"
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"there is no plan {name!r} of {job.name}; make one: serversync plan {job.name}"
        raise InvalidDocument("unknown_plan", message) from None
    return plan


def told(decisions: Iterable[Decision | Append]) -> list[dict[str, Any]]:
    """What people, and the approval of a plan, need of decisions; those that change nothing are left out."""
    return [
        decision.told()
        if isinstance(decision, Append)
        else {
            "what": decision.what,
            "path": os.fsdecode(decision.path),
            "row": decision.row,
            "reason": decision.reason,
            "bytes": moved_bytes(decision),
            "content": decision.content,
            "remove": decision.remove,
            "by": decision.by,
            "here": seen_text(decision.here),
            "there": seen_text(decision.there),
            "aside": os.fsdecode(decision.aside),
        }
        for decision in decisions
        if isinstance(decision, Append) or decision.what not in QUIET
    ]


# What a decision may be that neither replica nor reader notices.
QUIET = {"equal", "dropped"}
# What a record only counts.
ORDINARY = {"new", "update", "metadata", *QUIET}


def describe(element: Element) -> dict[str, Any]:
    return {
        "path": element.path,
        "partner_path": element.partner_path,
        "direction": element.settings["direction"],
    }


def unfit(element: Element, entries: Iterable[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """What the element requires and is not well: the path, why, and whether another attempt can help.

    entries: of a record or a plan. An unresolved path keeps nothing back: the rest of that element is as it should be.
    """
    found = []
    for entry in entries:
        if entry["path"] in element.requires:
            state = entry.get("state_after")
            if entry["error"]:
                what = "was skipped" if state == "skipped" else "failed" if state else "would fail"
                found.append((entry["path"], what, bool(entry["error"]["transient"])))
            elif entry["guards"]:
                found.append((entry["path"], "was stopped by a guard" if state else "would be stopped", False))
    return found


class Run:
    """One run; ``record`` is what is told of it, in the end and on the way."""

    def __init__(
        self,
        layout: Layout,
        job: Job,
        *,
        trigger: str,
        only: Sequence[str] | None,
        approve: str | None,
        first: Connecting | None = None,
        log: Callable[[str], None],
        wait: Callable[[float], None],
        watch: Watch | None = None,
    ) -> None:
        self.layout = layout
        self.job = job
        self.log = log
        self.wait = wait
        self.watch = watch
        self.elements = with_required(job, only)
        self.order = in_order(self.elements)
        self.first = first
        self.begun: dict[int, Any] = {}
        self.plans: dict[str, list[dict[str, Any]]] = {}
        self.approved = load_plan(layout, job, approve) if approve else None
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
            "elements": [blank(element) for element in self.elements],
            "before": [],
            "after": [],
            "error": None,
            "plan": None,
            "notification": None,
        }

    def carry_out(self, tell: Callable[[Record, Callable[[], list[Record]]], dict[str, Any] | None]) -> Record:
        """Runs the job under its lock, or records that it was skipped.

        ``tell`` sends the notification of a record; it may ask for those before it, the newest first.
        """
        record = self.record
        with closing(History(self.layout)) as history:

            def keep() -> None:
                history.keep(record)
                history.publish(self.job)

            record["configuration"] = history.configuration(self.job)
            with locked(self.layout, self.job.name) as free:
                if not free:
                    self.skip()
                    keep()
                    self.measure()
                    return record
                history.close_unfinished(self.job.name, timestamp())
                keep()
                try:
                    try:
                        self.attempt_all()
                    finally:
                        self.after()
                finally:
                    try:
                        keep()
                    finally:
                        record["notification"] = tell(record, lambda: history.runs(self.job.name, PUBLISHED)[1:])
                    if record["notification"]:
                        keep()
                    self.measure()
        return record

    def measure(self) -> None:
        """Metrics tell of a run, and fail none."""
        try:
            metrics.write(self.layout, self.job.name)
        except Failure as failure:
            self.log(safe(failure))

    def skip(self) -> None:
        message = "another run of this job is on; this one was skipped"
        self.record |= {"state": "skipped", "ended": timestamp(), "elements": []}
        self.record["error"] = Failure("running", message).as_dict()
        self.log(message)

    def attempt_all(self) -> Record:
        """Attempts until nothing is left that another attempt could cure; sets the record's state."""
        retries, delay = self.job["on_error"]["retries"], seconds(self.job["on_error"]["delay"])
        todo = self.order
        turns = ExitStack()
        try:
            turns.enter_context(turn(self.layout, self.let_others, self.log))
            failure = self.start_units("before")
            if failure:
                for entry in self.record["elements"]:
                    entry["state_after"] = "skipped"
                self.end(failure)
                return self.record
            for number in range(1, retries + 2):
                started = timestamp()
                failures = self.attempt(todo)
                turns.close()
                failures = {index: failures[index] for index in self.order if index in failures}
                todo = [index for index, failure in failures.items() if failure.transient]
                self.record["attempts"].append(
                    {
                        "number": number,
                        "started": started,
                        "ended": timestamp(),
                        "state": self.worst(),
                        "errors": list({str(failure): failure.as_dict() for failure in failures.values()}.values()),
                    }
                )
                if not todo or number > retries:
                    break
                state = self.record["attempts"][-1]["state"]
                self.log(f"attempt {number} of {retries + 1} {state}; the next in {self.job['on_error']['delay']}")
                self.wait(delay)
                turns.enter_context(turn(self.layout, self.let_others, self.log))
        except (Stopped, KeyboardInterrupt):
            self.end(Failure("stopped", "the run was stopped before it was done; the next one goes on from there"))
            raise
        except Failure as failure:
            self.end(failure)
            return self.record
        except Exception as error:
            self.end(Failure("internal", f"the runner failed: {type(error).__name__}: {error}"))
            raise
        finally:
            turns.close()
        self.end(None)
        return self.record

    def let_others(self, pause: float) -> None:
        """Waits for a turn. A connection that says nothing meanwhile would be given up by the partner."""
        if self.first:
            self.first.abort()
            self.first = None
        self.wait(pause)

    def start_units(self, phase: str) -> Failure | None:
        """The administrator's units of ``before`` or ``after``; what one failed with.

        Not tried again: how often that makes sense the unit itself says (Restart=).
        """
        if not self.job[phase]:
            return None
        from serversync import units

        self.log(f"{phase}: {', '.join(units.names(self.job, phase))}")
        try:
            self.record[phase] = units.ask(self.layout, self.job, phase)
            failure = next((Failure.from_dict(one["error"]) for one in self.record[phase] if one["error"]), None)
        except Failure as refused:
            failure = refused
        if failure:
            self.log(safe(str(failure)))
        return failure

    def after(self) -> None:
        """Whatever the run came to: what ``before`` has stopped or mounted must not stay so."""
        failure = self.start_units("after")
        if failure and self.record["state"] != "failed":
            self.record |= {"state": "failed", "error": failure.as_dict()}
        if self.job["after"]:
            self.record["ended"] = timestamp()

    def worst(self) -> str:
        return worst(entry["state_after"] for entry in self.record["elements"] if entry["state_after"])

    def attempt(self, todo: list[int]) -> dict[int, Failure]:
        """Tries the elements of these numbers; the failures by number."""
        failures: dict[int, Failure] = {}
        for index in todo:
            self.record["elements"][index] |= {"state_after": None, "error": None}
        limit = self.job["limits"]["timeout"]
        connecting, self.first = self.first or Connecting(self.layout, self.job), None
        try:
            with Limit(seconds(limit) if limit else None), connecting, ExitStack() as held:
                self.begin(todo[0], connecting, held)
                with connecting.result() as servers:
                    failures.update(self.side_by_side(todo, servers))
        except Overdue:
            connecting.abort()
            message = (
                f"the attempt was not over after {limit} and was ended; the next one goes on from there; if that is "
                "not enough, look into the partner and the network, or raise it"
            )
            # What other threads had under way has failed for its lost connection, which says less.
            for index in todo:
                if index not in failures and self.record["elements"][index]["state_after"] in (None, "failed"):
                    failures[index] = Failure("timeout", message, field="limits.timeout", transient=True)
                    self.tell(index, failures[index])
        except Failure as failure:
            # Without a connection none of the elements that are left can be tried.
            for index in todo:
                if index not in failures and self.record["elements"][index]["state_after"] is None:
                    self.tell(index, failure)
                    failures[index] = failure
        return failures

    def begin(self, index: int, connecting: Connecting, held: ExitStack) -> None:
        """The replicas of the first element are scanned as soon as may be: here while ssh logs in."""
        self.begun = {}
        servers = connecting.servers
        if self.job.local or servers is None or self.elements[index].kind != "tree":
            return
        one = self.made(index, servers.by_side)
        held.callback(one.held.close)
        one.begin(servers.connection)
        self.begun[index] = one

    def made(self, index: int, servers: dict[str, Server]) -> Any:
        """The element's engine; see ``log.engine``."""
        element = self.elements[index]
        # An attempt of its own directory: a second one must not replace what the first one put aside.
        attempt = len(self.record["attempts"]) + 1
        return engine(element)(
            self.layout,
            self.job,
            element,
            servers,
            run=self.record["run"] + (f".{attempt}" if attempt > 1 else ""),
            look=False,
            passed=self.passed(element),
            decided=self.released(element),
            progress=self.watch(element.path) if self.watch else silent,
        )

    def side_by_side(self, todo: list[int], servers: Servers) -> Iterator[tuple[int, Failure]]:
        """The elements of these numbers, as many at a time as ``limits.parallel`` says; those that failed."""
        parallel = min(self.job["limits"]["parallel"], len(todo), len(todo) if self.job.local else AT_ONCE)
        if parallel == 1 or self.job["partner"]["connection"] == "sftp":
            for index in todo:
                failure = self.synchronize(index, servers.by_side)
                if failure:
                    yield index, failure
            return
        waiting: Queue[dict[str, Server]] = Queue()
        for number in range(parallel):
            waiting.put(servers.another() if number else servers.by_side)

        def one(index: int) -> Failure | None:
            mine = waiting.get()
            try:
                return self.synchronize(index, mine)
            finally:
                waiting.put(mine)

        left = list(todo)
        running: dict[Future[Failure | None], int] = {}
        with ThreadPoolExecutor(parallel) as pool:
            try:
                while left or running:
                    open_ = {self.elements[index].path for index in (*left, *running.values())}
                    for index in [index for index in left if open_.isdisjoint(self.elements[index].requires)]:
                        if any(share_a_lock(self.elements[index], self.elements[other]) for other in running.values()):
                            continue
                        left.remove(index)
                        running[pool.submit(one, index)] = index
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        index = running.pop(future)
                        failure = future.result()
                        if failure:
                            yield index, failure
            except BaseException:
                # Told to stop: the others must not go on for hours.
                pool.shutdown(wait=False, cancel_futures=True)
                servers.abort()
                raise

    def synchronize(self, index: int, servers: dict[str, Server]) -> Failure | None:
        element, entry = self.elements[index], self.record["elements"][index]
        unwell = unfit(element, self.record["elements"])
        if unwell:
            failure = required(element, unwell)
            self.tell(index, failure)
            return failure
        report = Report()
        one = self.begun.pop(index, None)
        if one is None:
            one = self.made(index, servers)
            partner = servers.get(THERE)
            if element.kind == "tree" and isinstance(partner, Partner):
                one.begin(partner.connection)
        try:
            with one:
                report = one.report
                one.synchronize(self.approval(element))
        except Failure as error:
            report.failure = report.failure or error
        except OSError as error:
            report.failure = of_system(error)
        finally:
            one.progress("done", 0, 0)
        if report.failure:
            self.count(entry, report)
            self.tell(index, report.failure)
            return report.failure
        self.count(entry, report)
        entry["state_after"] = report.state_after
        copied = f"{entry['created'] + entry['updated']} copied"
        done = f"{entry['lines']} lines appended" if element.kind == "log" else copied
        self.log(f"{safe(element.path)}: {report.state_after}, {done}, {entry['bytes']} bytes")
        return None

    def approval(self, element: Element) -> dict[bytes, dict[str, Any]] | None:
        """What the approved plan has for the element, by path; None: no plan is approved."""
        if self.approved is None:
            return None
        return {
            os.fsencode(one["path"]): one
            for entry in self.approved["elements"]
            if entry["path"] == element.path
            for one in entry["decisions"]
        }

    def passed(self, element: Element) -> list[str] | None:
        """The guards that the approved plan was shown with; None: no plan is approved."""
        if self.approved is None:
            return None
        of_element = [entry for entry in self.approved["elements"] if entry["path"] == element.path]
        return [guard for entry in of_element for guard in entry.get("guards", [])]

    def released(self, element: Element) -> dict[bytes, str]:
        """Deletions that were held back because the archive was new: the side that lacks the path wins."""
        return {
            path: HERE if one["here"] is None else THERE
            for path, one in (self.approval(element) or {}).items()
            if one["by"] == "guard" and (one["here"] is None) != (one["there"] is None)
        }

    def count(self, entry: dict[str, Any], report: Report) -> None:
        """Adds an attempt's figures to the element's."""
        for counter in ("created", "updated", "attributes", "deleted", "conflicts"):
            entry[counter] += getattr(report, counter)
        entry["lines"] += getattr(report, "lines", 0)
        entry["bytes"] += report.sent
        entry["files"] = report.entries
        entry["standing"] = report.standing
        entry["unresolved"] = [os.fsdecode(path) for path in report.unresolved]
        entry["warnings"] = list(dict.fromkeys(entry["warnings"] + report.warnings))
        entry["guards"] = report.guards
        if entry["state_before"] is None:
            entry["state_before"] = report.state_before
        if report.plan is not None:
            # Of a first copy they are as many as there are files.
            notable = (one for one in report.plan.decisions if isinstance(one, Decision) and one.what not in ORDINARY)
            entry["paths"] = told(islice(notable, NAMED_PATHS))
            if report.guards:
                self.plans[entry["path"]] = told(report.plan.decisions)
        entry["problems"] = [
            f"{os.fsdecode(path) or '.'}: {text}" for path, (_code, text) in sorted(report.problems.items())
        ][:NAMED_PATHS]

    def tell(self, index: int, failure: Failure) -> None:
        entry = self.record["elements"][index]
        # Nothing of it was touched: its root is another run's, or what it requires is not well.
        state = "skipped" if failure.code in ("running", "required") else "failed"
        entry["state_after"], entry["error"] = state, failure.as_dict()
        self.log(f"{safe(entry['path'])}: {state}: {safe(str(failure))}")

    def end(self, failure: Failure | None) -> None:
        for entry in self.record["elements"]:
            if entry["state_after"] is None:
                entry["state_after"] = "failed"
        self.record["state"] = "failed" if failure else self.worst()
        self.record["error"] = failure.as_dict() if failure else first_error(self.record)
        kept = [
            {"path": entry["path"], "guards": entry["guards"], "decisions": self.plans[entry["path"]]}
            for entry in self.record["elements"]
            if entry["guards"]
        ]
        if kept:
            self.record["plan"] = keep_plan(self.layout, self.job, kept)
        self.record["ended"] = timestamp()


def share_a_lock(one: Element, other: Element) -> bool:
    """Whether they may be files in one directory, of which one at a time is worked on."""
    if any(Path(element.path).is_dir() for element in (one, other)):
        return False
    pairs = ((one.path, other.path), (one.partner_path, other.partner_path))
    return any(Path(mine).parent == Path(theirs).parent for mine, theirs in pairs)


def required(element: Element, unwell: list[tuple[str, str, bool]]) -> Failure:
    """Why an element was left alone. Another attempt helps where it helps all that this one requires."""
    path, what, _passes = unwell[0]
    message = f"{path} {what}, and this element requires it; once that is mended, the next run synchronizes both"
    field = f"elements[{element.index}].requires"
    return Failure("required", message, field=field, transient=all(passes for _path, _what, passes in unwell))


def blank(element: Element) -> dict[str, Any]:
    counters = dict.fromkeys(("files", "created", "updated", "attributes", "deleted", "conflicts", "lines", "bytes"), 0)
    states = dict.fromkeys(("state_before", "state_after", "error"))
    lists: dict[str, Any] = {name: [] for name in ("problems", "paths", "unresolved", "warnings", "guards")}
    return {**describe(element), **states, **counters, **lists, "standing": {}}


def first_error(record: Record) -> dict[str, Any] | None:
    """The first of those that make the run what it is."""
    errors = (entry["error"] for entry in record["elements"] if entry["state_after"] == record["state"])
    return next(filter(None, errors), None)
