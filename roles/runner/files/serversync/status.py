# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the jobs without touching a replica: from the published records and the timers."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from serversync import job, late
from serversync._states import state, unresolved
from serversync.failure import InvalidDocument
from serversync.history import PUBLISHED, published, published_names
from serversync.layout import Layout
from serversync.schedule import terms

MICROSECONDS = 1_000_000


def status(layout: Layout, name: str | None) -> list[dict[str, Any]]:
    """A row a job: name, partner, enabled, state, problem, last (its record), good (when the last good run ended),
    late (whether it is), late_at (from when on it is, unless a good run ends before; None: it never is), unresolved
    (paths), next (seconds since the epoch), retry (when its next attempt is due, where one waits)."""
    declared = known_jobs(layout)
    if name is not None:
        check_known(name, declared)
        declared = [name]
    elapses = next_runs(layout)
    return [row(layout, each, elapses.get(each)) for each in declared]


def known_jobs(layout: Layout) -> list[str]:
    try:
        return job.names(layout)
    except PermissionError:
        # Who may only read the records sees the jobs that have run.
        return published_names(layout)


def check_known(name: str, declared: list[str]) -> None:
    if job.check_name(name) not in declared:
        known = ", ".join(declared) or "none"
        raise InvalidDocument("unknown_job", f"there is no job {name!r} on this server (jobs: {known})")


def row(layout: Layout, name: str, elapse: int | None) -> dict[str, Any]:
    """One job; a document or record that cannot be used is a row as well, with what is wrong with it."""
    found: dict[str, Any] = {"job": name, "partner": None, "enabled": None, "state": None, "problem": None}
    found |= {"next": elapse, "retry": None, "last": None, "good": None, "late": False, "late_at": None}
    found["unresolved"] = 0
    try:
        known = published(layout, name) or {"runs": []}
    except InvalidDocument as damage:
        return found | {"state": "invalid", "problem": str(damage)}
    paths = known.get("elements")
    try:
        with suppress(PermissionError):
            document = job.load(layout, name)
            known |= {"partner": document.partner, **terms(document)}
            paths = [element.path for element in document.elements]
    except InvalidDocument as damage:
        found["problem"] = str(damage)
    past = known["runs"]
    found |= {"partner": known.get("partner"), "enabled": known.get("enabled"), "last": next(iter(past), None)}
    found["good"] = known.get("good")
    lateness = late.lateness(known)
    if lateness:
        now = datetime.now(timezone.utc)
        lateness = late.as_noticed(lateness, late.noted(layout, name), now)[0]
        is_late = late.is_late(lateness, past, now)
        found |= {"late": is_late, "late_at": lateness.at.isoformat(timespec="milliseconds")}
    found["retry"] = next((run["retry"]["at"] for run in past if run["state"] == "waiting"), None)
    found["unresolved"] = unresolved(past, paths)
    return found | {"state": "invalid" if found["problem"] else state(past, paths)}


def next_runs(layout: Layout) -> dict[str, int]:
    """When each job's timer elapses next; nothing where no systemd runs."""
    argv = ["systemctl", *([] if layout.privileged else ["--user"]), "list-timers", "--all", "--output=json"]
    try:
        answer = subprocess.run([*argv, "serversync@*.timer"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return {}
    if answer.returncode:
        return {}
    # A timer whose service is running has no next time; systemd then says 0 or null.
    return {
        timer["unit"][len("serversync@") : -len(".timer")]: timer["next"] // MICROSECONDS
        for timer in json.loads(answer.stdout)
        if timer.get("next")
    }


def runs(layout: Layout, name: str, limit: int) -> list[dict[str, Any]]:
    """The newest published runs of a job, the newest first."""
    check_known(name, known_jobs(layout))
    known = published(layout, name)
    found = known["runs"] if known else []
    if not found:
        unusable = problem(layout, name)
        if unusable:
            raise unusable
        raise InvalidDocument("no_run", f"{name} has not run yet; start it with: serversync run {name}")
    return list(found[:limit])


def problem(layout: Layout, name: str) -> InvalidDocument | None:
    """What keeps the document of a job from being run, as far as the caller may read it."""
    try:
        with suppress(PermissionError):
            job.load(layout, name)
    except InvalidDocument as found:
        return found
    return None


def record(layout: Layout, name: str, run: str | None) -> dict[str, Any]:
    """One published run of a job, the last where none is named."""
    found = runs(layout, name, PUBLISHED)
    for each in found:
        if run in (None, each["run"]):
            return dict(each)
    raise InvalidDocument(
        "unknown_run", f"{name} has no run {run!r}; the newest are {', '.join(r['run'] for r in found[:5])}"
    )
