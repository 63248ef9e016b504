# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Root's care for runs that are not over: those whose next attempt is due, and those that died.

At boot for all jobs; for one job when its timer elapses, and when its service has died. What is known of the runs root
reads where it is published, and it starts the job's own unit for them and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

from serversync import job as jobs
from serversync import units
from serversync._states import UNFINISHED
from serversync.failure import InvalidDocument
from serversync.history import History, published
from serversync.job import Job, pause_after
from serversync.journal import ERR, NOTICE, WARNING, Entry
from serversync.layout import Layout
from serversync.run import STOPPED, Record, attempts_left, buried, ended_by, is_due, now, seconds_left, told_end
from serversync.unit import become_account, service, show

# How often a unit is started that was busy, or did not come to the attempt that is due.
TURNS = 3
# What becomes of the record of a run that is not over; None: it stays as it is.
Change = Callable[[Record], "Record | None"]


def unfinished(layout: Layout, name: str) -> list[Record]:
    known = published(layout, name) or {"runs": []}
    return [run for run in known["runs"] if run["state"] in UNFINISHED]


def is_on(name: str) -> bool:
    return show(service(name), "ActiveState").get("ActiveState") not in ("inactive", "failed")


def at_boot(layout: Layout, log: Callable[[str], None]) -> None:
    """Starts every job whose last run is not over, or has the timer again that the boot has ended."""
    for name in jobs.names(layout):
        try:
            jobs.load(layout, name)
            left = unfinished(layout, name)
        except InvalidDocument as damage:
            log(Entry(f"{name}: {damage}", "failure", ERR, job=name, code=damage.code))
            continue
        due = [run for run in left if run["state"] == "running" or is_due(run, now())]
        if due:
            line = f"{name}: its last run is not over; it goes on"
            log(Entry(line, "recovered", NOTICE, job=name, run=due[0]["run"]))
            units.systemctl(layout, "start", "--no-block", "--", service(name))
        elif left:
            arm(name, left)


def arm(name: str, waiting: list[Record]) -> None:
    units.arm(name, max(0, round(min(seconds_left(run, now()) for run in waiting))))


def recover(layout: Layout, name: str, log: Callable[[str], None]) -> None:
    """Starts the job for an attempt that is due; a run that died has the next one after the usual wait, or is told."""
    job = jobs.load(layout, name)
    for _turn in range(TURNS):
        left = unfinished(layout, name)
        if not any(run["state"] == "waiting" and is_due(run, now()) for run in left):
            break
        # Where it is busy with something else, or another attempt, this waits for the end of that.
        done = units.systemctl(layout, "start", "--", service(name))
        if done.returncode:
            log(Entry(f"{name}: {done.stderr.strip()}", "waiting", WARNING, job=name))
    else:
        line = f"{name}: {service(name)} did not make the attempt that is due; its next start does"
        log(Entry(line, "waiting", WARNING, job=name))
        return
    if is_on(name):
        # What is left it goes on with itself.
        return
    dead = [run for run in left if run["state"] == "running"]
    if dead and not attempts_left(dead[0], job):
        run = dead[0]["run"]
        log(Entry(f"{name}: the run {run} died in its last attempt", "died", ERR, job=name, run=run, code="died"))
        # Only there are the secrets with which that is told.
        units.systemctl(layout, "start", "--", service(name))
    elif dead:
        run = dead[0]["run"]
        log(Entry(f"{name}: the run {run} died", "died", WARNING, job=name, run=run, code="died"))
        units.arm(name, pause_after(job["on_error"], len(dead[0]["attempts"]) + 1))
        change(layout, job, lambda run: buried(run, job) if run["run"] == dead[0]["run"] else None)
    elif left:
        arm(name, left)


def give_up(layout: Layout, name: str, log: Callable[[str], None]) -> None:
    """Ends what waits for another attempt."""
    ended: list[Record] = []

    def end(run: Record) -> Record | None:
        if run["state"] != "waiting":
            return None
        ended.append(ended_by(run, STOPPED))
        return ended[-1]

    job = jobs.load(layout, name)
    if layout.privileged:
        units.command("systemctl", "--no-ask-password", "stop", "--", f"serversync-recover@{name}.timer")
    change(layout, job, end)
    for run in ended:
        log(told_end(run))
    if not ended:
        log(f"{name}: no run waits for another attempt")


def change(layout: Layout, job: Job, what: Change) -> None:
    """Changes records as the account of the runner, whose they are. A run that has begun meanwhile has its own."""
    if layout.privileged:
        become_account()
    with closing(History(layout)) as history:
        with history.changing():
            for run in history.unfinished(job.name):
                changed: dict[str, Any] | None = what(run)
                if changed:
                    history.keep(changed)
        history.publish(job)
