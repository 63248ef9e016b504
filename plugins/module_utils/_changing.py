# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""What is asked before jobs change, and what of a server is asked only of some jobs."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any, Sequence

from ._job import Problem, foreign, loads
from ._store import Layout, StoreError, command_error, systemd_runs
from ._units import calendars_of

if TYPE_CHECKING:
    from ._apply import Server, Way
    from ._module import JobModule


def check_circles(server: Server, ways: Sequence[Way]) -> None:
    """What jobs that change make of each other, and of those that are there. What stays where it is is no circle."""
    changing = {}
    for way in ways:
        if way.declared.job and way.edited:
            changing[way.declared.place.name] = (way.there, way.declared.job)
    if not changing:
        return
    from ._neighbours import findings_of, moves  # not for a task that changes nothing

    changing = {name: one for name, one in changing.items() if moves(*one, server.machine_id)}
    if not changing:
        return
    jobs = {way.declared.place.name: (way.declared.at, way.declared.job) for way in ways}
    jobs.update({way.declared.former.name: (way.declared.at, None) for way in ways if way.declared.former})
    problems, warnings = findings_of(server.place, server.pairings, jobs, changing, server.machine_id)
    if problems:
        server.module.fail(problems)
    for text in warnings:
        server.module.warn(text)


def check_calendars(module: JobModule, ways: Sequence[Way]) -> None:
    """Lets systemd itself read the schedules, where its tool is there; that changes nothing."""
    jobs = []
    for way in ways:
        job = way.declared.job
        # of a job that is paused too, which has no timer: its end is no time for an error
        if job and job["schedule"] and (way.timer or (way.edited and not job["enabled"])):
            jobs.append((way.declared.at, job))
    lines = list(dict.fromkeys(line for _at, job in jobs for line in calendars_of(job)))
    if not lines or not module.get_bin_path("systemd-analyze"):
        return
    code, out, _err = module.run(["systemd-analyze", "calendar", *lines])
    if not code and "Next elapse: never" not in out:
        return
    for at, job in jobs:
        lines = calendars_of(job)
        code, out, err = module.run(["systemd-analyze", "calendar", *lines])
        path = at + ("schedule.calendar" if job["schedule"]["calendar"] else "schedule")
        if code:
            said = err.strip().splitlines()[0] if err.strip() else "no reason given"
            text = '%r is refused by systemd (%s); see "man systemd.time", e.g. "Mon..Fri *-*-* 02:30"'
            module.fail([Problem("invalid_value", path, text % (lines[0], said))])
        if "Next elapse: never" in out:
            module.warn("%s: %r is over and will never come again" % (path, lines[0]))


def verify_timers(module: JobModule, ways: Sequence[Way]) -> None:
    """Lets systemd read the timers as it will; other units that they name are none of its business here."""
    # those of alike jobs differ in the name only, and of each kind one is read
    kinds: dict[str, tuple[str, str]] = {}
    for way in ways:
        if way.timer:
            place = way.declared.place
            kinds.setdefault(way.timer.replace(place.name, ""), (place.timer, way.timer))
    if not kinds or not module.get_bin_path("systemd-analyze"):
        return
    directory = tempfile.mkdtemp(dir=module.tmpdir)
    paths = {}
    try:
        for timer, text in kinds.values():
            path = os.path.join(directory, os.path.basename(timer))
            paths[path] = timer
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(text)
        _code, out, err = module.run(["systemd-analyze", "verify", *paths])
    finally:
        shutil.rmtree(directory)
    for line in (out + err).splitlines():
        path, colon, said = line.partition(":")
        # a key that an older systemd does not know is ignored there, and the timer works without it
        if colon and path in paths and "Unknown key" not in said:
            text = "systemd refuses the timer (%s); nothing was written" % said
            raise StoreError("unit_verify_failed", paths[path], text)


def warn_of_what_was_foreign(server: Server, ways: Sequence[Way]) -> None:
    """The server that a document came from may run the job as before, and this one will from now on."""
    found = []
    for way in ways:
        place = way.declared.former or way.declared.place
        if way.declared.job and way.plan.changed and foreign(loads(way.there), server.machine_id):
            found.append(place.document)
    if found:
        more = " (and %d more)" % (len(found) - 1) if len(found) > 1 else ""
        text = "%s%s: was declared on another server and is this one's from now on; see that not both run it"
        server.module.warn(text % (found[0], more))


def warn_of_what_stays(module: JobModule, ways: Sequence[Way]) -> None:
    for way in ways:
        removed = way.declared.former or (None if way.declared.job else way.declared.place)
        if removed and way.found.neighbours:
            module.warn("%s holds files of others; it stays" % os.path.dirname(removed.drop_in))


def warn_of_units(server: Server, ways: Sequence[Way]) -> None:
    """A unit that cannot be started would be found by the first run, which is in the night."""
    units: dict[str, str] = {}
    for way in ways:
        for name in ("before", "after"):
            for number, one in enumerate(way.declared.job[name] if way.declared.job else []):
                units.setdefault(one["unit"], "%s%s[%d].unit" % (way.declared.at, name, number))
    if not units or not server.systemd:
        return
    argv = [*server.place.systemctl, "show", "--property=LoadState", "--", *units]
    code, out, err = server.module.run(argv)
    if code:
        raise command_error(argv, code, out, err)
    states = [line.partition("=")[2] for line in out.splitlines() if line.startswith("LoadState=")]
    for (unit, path), state in zip(units.items(), states):
        if state != "loaded":
            text = "%s: %s cannot be started (systemd says %s); until it can, runs fail"
            server.module.warn(text % (path, unit, state))


def without_systemd(job: dict[str, Any], place: Layout) -> list[Problem]:
    """What of the job needs the systemd that does not run here."""
    needing = []
    if job["schedule"]:
        text = "no systemd runs on this server; set schedule: null and run the job with 'serversync run %s'"
        needing.append(("schedule", text % place.name, "set schedule: null"))
    units = next((name for name in ("before", "after") if job[name]), None)
    if units:
        text = "no systemd runs on this server that could start these units; leave them out"
        needing.append((units, text, "leave it out"))
    if place.scope == "user" and systemd_runs("system", os.environ, 0):
        own = "no systemd manager runs for this user; call 'loginctl enable-linger USER' once, or "
        return [Problem("no_systemd", path, own + remedy) for path, _text, remedy in needing]
    return [Problem("no_systemd", path, text) for path, text, _remedy in needing]
