# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the jobs without touching a replica: from the published records and the timers."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from serversync import job
from serversync.failure import InvalidDocument
from serversync.history import published, published_names
from serversync.layout import Layout

MICROSECONDS = 1_000_000


def status(layout: Layout, name: str | None) -> list[dict[str, Any]]:
    """A row a job: name, partner, enabled, next (seconds since the epoch or None), last (its record or None)."""
    try:
        declared = job.names(layout)
    except PermissionError:
        # Who may only read the records sees the jobs that have run.
        declared = published_names(layout)
    if name is not None:
        job.check_name(name)
        if name not in declared:
            known = ", ".join(declared) or "none"
            raise InvalidDocument("unknown_job", f"there is no job {name!r} on this server (jobs: {known})")
        declared = [name]
    elapses = next_runs(layout)
    return [row(layout, each, elapses.get(each)) for each in declared]


def row(layout: Layout, name: str, elapse: int | None) -> dict[str, Any]:
    """One job; a document that cannot be used is a row as well, with what is wrong with it."""
    known = published(layout, name)
    found: dict[str, Any] = {
        "job": name,
        "partner": None,
        "enabled": None,
        "problem": None,
        "next": elapse,
        "last": None,
    }
    if known:
        found |= {
            "partner": known["partner"],
            "enabled": known["enabled"],
            "last": next(iter(known["runs"]), None),
        }
    try:
        document = job.load(layout, name)
    except PermissionError:
        return found
    except InvalidDocument as problem:
        return found | {"problem": str(problem)}
    return found | {"partner": document.partner, "enabled": document["enabled"]}


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


def record(layout: Layout, name: str, run: str | None) -> dict[str, Any]:
    """One published run of a job, the last where none is named."""
    known = published(layout, name)
    runs = known["runs"] if known else []
    if not runs:
        raise InvalidDocument("no_run", f"{name} has not run yet; start it with: serversync run {name}")
    for each in runs:
        if run in (None, each["run"]):
            return dict(each)
    raise InvalidDocument(
        "unknown_run", f"{name} has no run {run!r}; the newest are {', '.join(r['run'] for r in runs[:5])}"
    )
