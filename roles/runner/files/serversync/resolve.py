# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people do after a run: look at conflicts and decide them, look at versions and bring one back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from serversync import place
from serversync.archive import Archive
from serversync.display import in_words
from serversync.entry import Entry
from serversync.failure import Failure
from serversync.job import Element, Job, select
from serversync.layout import Layout
from serversync.propagate import beneath
from serversync.reconcile import SIDES, Decision, Plan
from serversync.run import locked, new_run
from serversync.servers import Servers
from serversync.synchronize import Synchronization, archives_of, element_name, former_name

Result = dict[str, Any]


def conflicts(layout: Layout, job: Job, only: Sequence[str] | None) -> Result:
    """Per element the paths that stand unresolved, each with both versions in words."""
    elements = []
    for element in select(job, only):
        name = element_name(job.name, element.path, element.partner_path)
        path = archives_of(layout, job.name) / f"{name}.sqlite"
        if not path.exists():
            path = path.with_name(f"{former_name(layout, job, element)}.sqlite")
        found = []
        if path.exists():
            with Archive(path, reading=True) as archive:
                found = [in_words(row) for row in archive.standing(("unresolved",))]
        elements.append({"path": element.path, "partner_path": element.partner_path, "conflicts": found})
    return {"job": job.name, "elements": elements}


def find(job: Job, path: str, only: Sequence[str] | None) -> tuple[Element, bytes]:
    """The element that a path is of, and the path below it. It is given as one of either server, or below the element.

    Failure where more than one may be meant.
    """
    elements = select(job, only)
    if path.startswith("/"):
        found = {
            (element.path, path[len(root) :].strip("/")): element
            for element in elements
            for root in (element.path, element.partner_path)
            if path == root or path.startswith(root.rstrip("/") + "/")
        }
        if not found:
            raise Failure("unknown_path", f"{path} is not below an element of {job.name}")
        if len(found) > 1:
            meant = " or ".join(f"--element {root} {below or '.'}" for root, below in found)
            raise Failure("ambiguous", f"{path} is another one on each server; say which: {meant}")
        ((_root, below), element) = found.popitem()
        not_a_log(element)
        return element, os.fsencode(below)
    if len(elements) > 1:
        raise Failure("ambiguous", f"{job.name} has several elements; give the whole path, or --element")
    not_a_log(elements[0])
    # As its own directory is listed.
    return elements[0], os.fsencode(path.strip("/")) if path != "." else b""


def not_a_log(element: Element) -> None:
    if element.kind == "log":
        message = f"{element.path} is a log: lines are only ever appended, so it has no conflicts and no versions"
        raise Failure("log", message)


def resolve(layout: Layout, job: Job, path: str, use: str, only: Sequence[str] | None) -> Result:
    """Decides one unresolved path now; ``use``: this_server, partner, or both. Failure where it has moved since."""
    element, below = find(job, path, only)
    with held(layout, job), Servers(layout, job) as servers:
        run = new_run()
        with Synchronization(layout, job, element, servers.by_side, run=run, look=False) as one:
            below = below or one.file_name
            one.decided = {below: use}
            row = one.archive.row(below)
            if row is None or row.status != "unresolved":
                raise Failure("not_unresolved", f"{path} is not unresolved; see: serversync conflicts {job.name}")
            plan = one.plan()
            mine = [decision for decision in plan.decisions if concerns(decision.path, below)]
            for decision in mine:
                if decision.path != below:
                    continue
                if moved(decision.here, row.here) or moved(decision.there, row.there):
                    message = f"{path} has changed since it was found unresolved; run the job, then decide again"
                    raise Failure("moved", message)
                if decision.what == "unresolved":
                    raise Failure("not_resolved", f"{path} {undecidable(plan, decision)}")
                mine = [*way(plan, decision), *mine]
            one.carry_out(Plan(mine, [], []), whole=False)
            copies = {decision.aside for decision in mine if decision.aside}
            if copies and one.direction == "both":
                again = [decision for decision in one.plan().decisions if beneath(decision.path, copies)]
                one.carry_out(Plan(again, [], []), whole=False)
            one.answered()
            problems = {os.fsdecode(key): text for key, (_code, text) in one.report.problems.items()}
    if problems:
        raise Failure("not_resolved", "; ".join(f"{key}: {text}" for key, text in sorted(problems.items())))
    return {"job": job.name, "element": element.path, "path": os.fsdecode(below), "used": use, "run": run}


def concerns(path: bytes, decided: bytes) -> bool:
    return path == decided or path.startswith(decided + b"/")


def undecidable(plan: Plan, decision: Decision) -> str:
    """Why a path stays unresolved whatever a person says of it."""
    for above in plan.decisions:
        if above.what == "unresolved" and above.path != decision.path and concerns(decision.path, above.path):
            return f"goes the way of {os.fsdecode(above.path)}: decide that one"
    return f"cannot be decided by itself: {decision.reason}"


def way(plan: Plan, decision: Decision) -> list[Decision]:
    """The directories that have to be made around what arrives."""
    return [
        above
        for above in plan.decisions
        if decision.content and concerns(decision.path, above.path) and above.path != decision.path
        if above.content == decision.content and None in (above.here, above.there)
    ]


def moved(seen: object, record: bytes | None) -> bool:
    return (seen.record if isinstance(seen, Entry) else None) != record


@contextmanager
def held(layout: Layout, job: Job) -> Iterator[None]:
    """The job's lock, or Failure ``running``."""
    with locked(layout, job.name) as free:
        if not free:
            raise Failure("running", f"{job.name} is running now; see: serversync status {job.name}")
        yield


def versions(layout: Layout, job: Job, path: str | None, only: Sequence[str] | None) -> Result:
    """Per element what its runs overwrote or deleted, on both servers."""
    chosen = (
        [find(job, path, only)] if path else [(element, b"") for element in select(job, only) if element.kind != "log"]
    )
    elements = []
    with Servers(layout, job) as servers:
        for element, below in chosen:
            with Synchronization(layout, job, element, servers.by_side, run=new_run(), look=True) as one:
                found = [
                    {**version, "server": one.server(side)}
                    for side in SIDES
                    for version in one.sides[side].tree.versions(below or None)
                ]
            elements.append({"path": element.path, "partner_path": element.partner_path, "versions": found})
    return {"job": job.name, "elements": elements}


def restore(layout: Layout, job: Job, path: str, run: str | None, only: Sequence[str] | None) -> Result:
    """Brings back what a run displaced, the last one unless ``run`` names it; what is there now goes into versions."""
    element, below = find(job, path, only)
    with (
        held(layout, job),
        Servers(layout, job) as servers,
        Synchronization(layout, job, element, servers.by_side, run=new_run(), look=False) as one,
    ):
        below = below or one.file_name
        if not below:
            raise Failure("no_path", "name a path below the element")
        known = [
            (version["when"], version["run"], side)
            for side in one.targets
            for version in one.sides[side].tree.versions(below)
            if run in (None, version["run"])
        ]
        if not known:
            of = f" of the run {run}" if run else ""
            raise Failure("no_version", f"{path} has no version{of}; see: serversync versions {job.name}")
        _when, chosen, side = max(known, key=lambda one: (one[0], place.turn(one[1])))
        results = list(one.sides[side].tree.restore(below, chosen))
    problems = {os.fsdecode(result.path): result.problem[1] for result in results if result.problem}
    if problems:
        raise Failure("not_restored", "; ".join(f"{key}: {text}" for key, text in sorted(problems.items())))
    restored = [os.fsdecode(result.path) for result in results]
    return {"job": job.name, "element": element.path, "server": one.server(side), "run": chosen, "restored": restored}
