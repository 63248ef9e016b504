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
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from queue import Queue
from typing import Any

from serversync import __version__, display, metrics
from serversync._states import UNFINISHED, worst
from serversync.counts import Watch
from serversync.entry import HERE, THERE
from serversync.failure import Failure, InvalidDocument, Overdue, Stopped, of_system
from serversync.history import PUBLISHED, History, replace
from serversync.job import Element, Job, in_order, pause_after, seconds, span, with_required
from serversync.journal import ERR, INFO, LEVELS, NOTICE, WARNING, Entry
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
Tell = Callable[[Record, Callable[[], list[Record]]], "dict[str, Any] | None"]
# Over one connection: each has a conversation and an rsync, and sshd allows ten sessions (MaxSessions).
AT_ONCE = 4
# Unresolved paths of an element that a record has with both versions.
SHOWN_CONFLICTS = 50
EXIT = {"equal": 0, "equal_with_warnings": 0, "failed": 1, "waiting": 1, "different": 3, "skipped": 4}


def now() -> datetime:
    return datetime.now(timezone.utc)


def timestamp() -> str:
    return now().isoformat(timespec="milliseconds")


def in_seconds(count: int) -> str:
    """The time so many seconds from now, as records have it."""
    return (now() + timedelta(seconds=count)).isoformat(timespec="milliseconds")


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
        later: Callable[[int], None] | None = None,
        going_down: Callable[[], bool] = lambda: False,
        watch: Watch | None = None,
    ) -> None:
        """later: has the job started again after so many seconds; None: this process waits for its next attempt.
        going_down: whether this server is being shut down."""
        self.layout = layout
        self.job = job
        self.log = log
        self.wait = wait
        self.later = later
        self.going_down = going_down
        self.watch = watch
        self.partial = only is not None
        self.elements = with_required(job, only)
        self.order = self.todo = in_order(self.elements)
        self.approve = approve
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
            "retry": None,
            "plan": None,
            "notification": None,
        }

    def say(self, line: str, event: str, level: int = INFO, **about: str | None) -> None:
        self.log(Entry(line, event, level, job=self.job.name, run=self.record["run"], **about))

    def carry_out(self, tell: Tell) -> Record:
        """Runs the job under its lock, or records that it was skipped.

        While it waits for the next attempt nothing is locked, and where that is somebody else's to start it comes back
        with a record that is ``waiting``. ``tell`` sends the notification of a record; it may ask for those before it,
        the newest first.
        """
        with closing(History(self.layout)) as history:
            self.record["configuration"] = history.configuration(self.job)
            try:
                self.make_attempts(history, tell)
            except (Stopped, KeyboardInterrupt):
                self.stop_waiting(history, tell)
                raise
        return self.record

    def make_attempts(self, history: History, tell: Tell) -> None:
        with locked(self.layout, self.job.name) as free:
            if not free:
                self.skip()
                self.keep(history)
                self.measure()
                return
            if not self.take_up(history):
                if self.record["state"] == "failed":
                    self.close(history, tell)
                return
            self.go_on(history, tell)
        while self.record["state"] == "waiting" and self.rest():
            with locked(self.layout, self.job.name) as free:
                if not free:
                    # What another run makes of this one is on record when that has ended.
                    self.wait(1.0)
                elif self.is_mine(history):
                    self.go_on(history, tell)
                else:
                    return

    def keep(self, history: History) -> None:
        history.keep(self.record)
        history.publish(self.job)

    def take_up(self, history: History) -> bool:
        """Goes on with a run that waits for its next attempt or died in one, or else begins one.

        False where there is nothing to do yet: a schedule that falls due meanwhile has no run of its own; and where
        what died had no attempt left, of which it remains to tell. Whoever starts the job by hand makes the attempt at
        once, of all elements. The caller holds the job's lock.
        """
        taken: Record | None = None
        unattended, moment = self.record["trigger"] == "schedule", now()
        # Of a job that was removed, and declared again, nothing is published.
        known = (self.layout.public / f"{self.job.name}.json").exists()
        # What is due comes first.
        for earlier in sorted(history.unfinished(self.job.name), key=lambda one: not is_due(one, moment)):
            part = is_partial(earlier, self.job)
            same = known and earlier["configuration"] == self.record["configuration"]
            if earlier["state"] == "running":
                if unattended and same and not taken:
                    attempts = {"attempts": [*earlier["attempts"], died(earlier)]}
                    taken = (
                        earlier | attempts if attempts_left(earlier, self.job) else ended_by(earlier | attempts, DIED)
                    )
                else:
                    self.end_other(history, earlier, DIED)
            elif unattended and same and not taken and (is_due(earlier, moment) or not part):
                taken = earlier
            elif self.partial or (same and (unattended or part)):
                # One of some elements and one of all have attempts of their own.
                continue
            elif same and not taken and not self.approve:
                taken = earlier
                taken["retry"] |= {"at": timestamp(), "todo": [element.path for element in self.elements]}
            else:
                self.end_other(history, earlier, REPLACED)
        return taken is None or self.continues(taken)

    def end_other(self, history: History, earlier: Record, failure: Failure) -> None:
        ended = ended_by(earlier, failure)
        history.keep(ended)
        self.log(told_end(ended))

    def continues(self, taken: Record) -> bool:
        """Makes the record of a run that was begun that of this one; false where it has no attempt now."""
        self.record = taken
        retry = taken["retry"]
        if taken["state"] == "failed":
            return False
        if not is_due(taken, now()):
            self.say(f"nothing to do before the next attempt of the run {taken['run']}, at {retry['at']}", "waiting")
            return False
        # The job may have got another name meanwhile.
        taken["job"] = self.job.name
        paths = [entry["path"] for entry in taken["elements"]]
        self.elements = [element for element in self.job.elements if element.path in paths]
        self.order = in_order(self.elements)
        self.todo = [number for number in self.order if retry is None or self.elements[number].path in retry["todo"]]
        self.approve = retry["approve"] if retry else None
        self.approved = load_plan(self.layout, self.job, self.approve) if self.approve else None
        if taken["plan"]:
            kept = load_plan(self.layout, self.job, taken["plan"])["elements"]
            self.plans = {entry["path"]: entry["decisions"] for entry in kept}
        return True

    def is_mine(self, history: History) -> bool:
        """Whether nobody else has made the attempt that this process waits for. The caller holds the job's lock."""
        found = history.run(self.record["run"])
        if found is None or (found["state"] in UNFINISHED and len(found["attempts"]) <= len(self.record["attempts"])):
            return True
        self.record = found
        return False

    def rest(self) -> bool:
        """Waits until the next attempt is due; false where somebody else has the job started again then."""
        pause = int(self.record["retry"]["pause"])
        if self.later:
            try:
                self.later(pause)
            except Failure as failure:
                self.say(f"{failure}; waiting here instead", "waiting", WARNING, code=failure.code)
            else:
                return False
        self.wait(pause)
        return True

    def stop_waiting(self, history: History, tell: Tell) -> None:
        """A run that is stopped between two attempts has no other; one that goes down with the server has."""
        if self.record["state"] != "waiting" or self.going_down():
            return
        with locked(self.layout, self.job.name) as free:
            if free and self.is_mine(history):
                self.end(STOPPED)
                self.close(history, tell)

    def go_on(self, history: History, tell: Tell) -> None:
        """An attempt, between the units before and after it, and what is kept and told of it."""
        self.record |= {"state": "running", "retry": None}
        self.keep(history)
        # One that hangs is to be seen, too.
        self.measure()
        self.say_start()
        try:
            try:
                self.attempt_left()
            finally:
                self.after()
        finally:
            if self.record["state"] == "waiting":
                self.keep(history)
                self.measure()
                last, tries = self.record["attempts"][-1], self.job["on_error"]["retries"] + 1
                pause = span(self.record["retry"]["pause"])
                line = f"attempt {last['number']} of {tries} {last['state']}; the next in {pause}"
                code = self.record["error"] and self.record["error"]["code"]
                self.say(line, "attempt_ended", WARNING, state=last["state"], code=code)
            else:
                self.close(history, tell)

    def say_start(self) -> None:
        record, done = self.record, len(self.record["attempts"])
        if done:
            self.say(f"attempt {done + 1} of the run {record['run']} begins", "attempt_started")
        else:
            why = f"{record['trigger']}, configuration {record['configuration']}"
            self.say(f"{record['job']}: run {record['run']} begins, {why}", "run_started")

    def close(self, history: History, tell: Tell) -> None:
        """Keeps and tells what the run has come to."""
        try:
            self.keep(history)
            self.log(told_end(self.record))
        finally:
            self.record["notification"] = tell(self.record, lambda: self.others(history))
        if self.record["notification"]:
            self.keep(history)
        self.measure()

    def others(self, history: History) -> list[Record]:
        """The records of the job's other runs, the newest first."""
        return [run for run in history.runs(self.job.name, PUBLISHED) if run["run"] != self.record["run"]]

    def measure(self) -> None:
        """Metrics tell of a run, and fail none."""
        try:
            metrics.write(self.layout, self.job.name)
        except Failure as failure:
            self.say(str(failure), "metrics", WARNING, code=failure.code)

    def skip(self) -> None:
        message = "another run of this job is on; this one was skipped"
        self.record |= {"state": "skipped", "ended": timestamp(), "elements": []}
        self.record["error"] = Failure("running", message).as_dict()
        self.log(told_end(self.record))

    def attempt_left(self) -> None:
        """Attempts what is left; the record then waits for the next attempt, or has the run's state."""
        number, retries = len(self.record["attempts"]) + 1, self.job["on_error"]["retries"]
        started = timestamp()
        try:
            with turn(self.layout, self.let_others, lambda line: self.say(line, "waiting")):
                failure = self.start_units("before")
                if failure:
                    for index in self.todo:
                        self.record["elements"][index]["state_after"] = "skipped"
                    self.end(failure)
                    return
                started = timestamp()
                failures = self.attempt(self.todo)
        except (Stopped, KeyboardInterrupt):
            if self.going_down():
                self.say("this server goes down; the run goes on when it is up again", "waiting", NOTICE)
                self.add_attempt(started, [GOING_DOWN])
                self.put_off(0, self.todo)
            else:
                self.end(STOPPED)
            raise
        except Failure as failure:
            self.end(failure)
            return
        except Exception as error:
            self.end(Failure("internal", f"the runner failed: {type(error).__name__}: {error}"))
            raise
        failures = {index: failures[index] for index in self.order if index in failures}
        self.add_attempt(started, failures.values())
        todo = [index for index, failure in failures.items() if failure.transient]
        if not todo or number > retries:
            self.end(None)
            return
        self.put_off(pause_after(self.job["on_error"], number), todo)

    def add_attempt(self, started: str, failures: Iterable[Failure]) -> None:
        """Puts an attempt on record that has just ended."""
        number, state = len(self.record["attempts"]) + 1, self.worst()
        errors = list({str(failure): failure.as_dict() for failure in failures}.values())
        attempt = {"number": number, "started": started, "ended": timestamp(), "state": state, "errors": errors}
        self.record["attempts"].append(attempt)

    def put_off(self, pause: int, todo: Sequence[int]) -> None:
        """Leaves the elements of these numbers to another attempt, after so many seconds."""
        self.keep_plans()
        self.todo = list(todo)
        self.record |= {
            "state": "waiting",
            "error": first_error(self.record, self.worst()),
            "retry": {
                "at": in_seconds(pause),
                "pause": pause,
                "todo": [self.elements[index].path for index in todo],
                "approve": self.approve,
            },
        }

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

        self.say(f"{phase}: {', '.join(units.names(self.job, phase))}", "units")
        try:
            started = units.ask(self.layout, self.job, phase)
            # Those of earlier attempts are on record, too.
            self.record[phase] = [*self.record[phase], *started]
            failure = next((Failure.from_dict(one["error"]) for one in started if one["error"]), None)
        except Failure as refused:
            failure = refused
        if failure:
            self.say(str(failure), "units", ERR, code=failure.code)
        return failure

    def after(self) -> None:
        """Whatever the attempt came to: what ``before`` has stopped or mounted must not stay so until the next one."""
        if self.record["state"] == "waiting" and not self.record["retry"]["pause"] and self.going_down():
            return
        failure = self.start_units("after")
        if failure and self.record["state"] == "waiting":
            self.end(None)
        if failure and self.record["state"] != "failed":
            self.record |= {"state": "failed", "error": failure.as_dict()}
        if self.job["after"] and self.record["state"] != "waiting":
            self.record["ended"] = timestamp()

    def worst(self) -> str:
        """Of what was not begun nothing is known."""
        return worst(entry["state_after"] or "failed" for entry in self.record["elements"])

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
        state, about = report.state_after, {"element": element.path, "state": report.state_after}
        line = f"{element.path}: {state}, {done}, {entry['bytes']} bytes"
        self.say(line, "element_ended", LEVELS.get(state, INFO), **about)
        unresolved = entry["standing"].get("unresolved", 0)
        if unresolved:
            line = f"{element.path}: {unresolved} unresolved; decide: serversync conflicts {self.job.name}"
            self.say(line, "conflict", WARNING, **about)
        for guard in entry["guards"]:
            self.say(f"{element.path}: stopped before the first change: {guard}", "guard", WARNING, **about)
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
        entry["unresolved"] = [os.fsdecode(row.path) for row in report.unresolved]
        entry["open"] = [display.in_words(row) for row in report.unresolved[:SHOWN_CONFLICTS]]
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
        # One after which it is tried again is no alarm yet.
        again = failure.transient and len(self.record["attempts"]) < self.job["on_error"]["retries"]
        level = WARNING if again else LEVELS[state]
        about = {"element": entry["path"], "state": state, "code": failure.code}
        self.say(f"{entry['path']}: {state}: {failure}", "element_ended", level, **about)

    def end(self, failure: Failure | None) -> None:
        for entry in self.record["elements"]:
            if entry["state_after"] is None:
                entry["state_after"] = "failed"
        self.record["state"] = "failed" if failure else self.worst()
        self.record["error"] = failure.as_dict() if failure else first_error(self.record, self.record["state"])
        self.record["retry"] = None
        self.keep_plans()
        self.record["ended"] = timestamp()

    def keep_plans(self) -> None:
        """Keeps what guards have stopped, until somebody approves it."""
        kept = [
            {"path": entry["path"], "guards": entry["guards"], "decisions": self.plans[entry["path"]]}
            for entry in self.record["elements"]
            if entry["guards"]
        ]
        if kept:
            self.record["plan"] = keep_plan(self.layout, self.job, kept)


STOPPED = Failure("stopped", "the run was stopped before it was done; the next one goes on from there")
GOING_DOWN = Failure("stopped", "the server went down; the next attempt goes on from there", transient=True)
DIED = Failure("died", "the runner ended without a word: it was killed, or the server went down", transient=True)
REPLACED = Failure("replaced", "the job was changed or removed, or a plan approved, before the next attempt")
# Seconds that an attempt may come too early, as timers and clocks have it.
SLACK = 2


def is_due(record: Record, moment: datetime) -> bool:
    """Whether it is time for the next attempt of a run; also where a clock that was set leaves it far ahead."""
    retry = record["retry"]
    if not retry:
        return True
    left = seconds_left(record, moment)
    return left <= SLACK or left > retry["pause"] + SLACK


def seconds_left(record: Record, moment: datetime) -> float:
    """How long a run waits yet."""
    return (datetime.fromisoformat(record["retry"]["at"]) - moment).total_seconds()


def is_partial(record: Record, job: Job) -> bool:
    """Whether it is of some of the job's elements."""
    return {entry["path"] for entry in record["elements"]} != {element.path for element in job.elements}


def attempts_left(record: Record, job: Job) -> bool:
    """Whether there is another attempt behind the one in which the run died."""
    return len(record["attempts"]) < int(job["on_error"]["retries"])


def died(record: Record) -> dict[str, Any]:
    """The attempt in which the run died, of which nobody can say more."""
    before = record["attempts"]
    started = before[-1]["ended"] if before else record["started"]
    errors = [DIED.as_dict()]
    return {"number": len(before) + 1, "started": started, "ended": timestamp(), "state": "failed", "errors": errors}


def buried(record: Record, job: Job) -> Record:
    """The record of a run that has died, whose next attempt is due after the usual wait."""
    attempts = [*record["attempts"], died(record)]
    pause = pause_after(job["on_error"], len(attempts))
    todo = [entry["path"] for entry in record["elements"]]
    retry = {"at": in_seconds(pause), "pause": pause, "todo": todo, "approve": None}
    return record | {"state": "waiting", "attempts": attempts, "error": DIED.as_dict(), "retry": retry}


def ended_by(record: Record, failure: Failure) -> Record:
    """The record of a run that somebody else has to end."""
    elements = [entry | {"state_after": entry["state_after"] or "failed"} for entry in record["elements"]]
    end = {"state": "failed", "ended": timestamp(), "elements": elements, "error": failure.as_dict(), "retry": None}
    return record | end


def told_end(record: Record) -> Entry:
    """What a run has come to."""
    tries, error, state = len(record["attempts"]), record["error"], record["state"]
    after = f" after {tries} attempts" if tries > 1 else ""
    why = f": {display.describe(error)}" if error else ""
    line = f"{record['job']}: {state}{after}, run {record['run']}, {display.duration(record)}{why}"
    about = {"job": record["job"], "run": record["run"], "state": state, "code": error and error["code"]}
    return Entry(line, "run_ended", LEVELS.get(state, INFO), **about)


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
    lists: dict[str, Any] = {name: [] for name in ("problems", "paths", "unresolved", "open", "warnings", "guards")}
    return {**describe(element), **states, **counters, **lists, "standing": {}}


def first_error(record: Record, state: str) -> dict[str, Any] | None:
    """The first of those that make the run what it is."""
    errors = (entry["error"] for entry in record["elements"] if entry["state_after"] == state)
    return next(filter(None, errors), None)
