# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""From what a task declares, of one job or of many, to what is on the server: one read, one difference, one way."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from . import _fromzip  # noqa: F401 # pylint: disable=unused-import # before what is large
from ._job import (
    Problem,
    bound,
    document_text,
    field_of,
    foreign,
    loads,
    own_problems,
    pairings_of,
    pin_problem,
    resolve_all,
    secrets_in,
    secrets_of,
    show,
)
from ._module import JobModule
from ._settings import settings_of
from ._store import (
    FileState,
    Found,
    Layout,
    Plan,
    StoreError,
    Wanted,
    command_error,
    declared_names,
    encrypts,
    find,
    layout,
    manager_environment,
    merge,
    names_of_secrets,
    owner_of,
    plan,
    read_document,
    read_file,
    read_fleet,
    read_machine_id,
    read_pairings,
    read_units,
    renaming,
    renaming_note,
    systemd_runs,
    wanted_files,
    without_note,
    zone_text,
)
from ._units import calendars_of


class Server:
    """What holds for all jobs of a call; read once."""

    def __init__(self, module: JobModule, scope: str) -> None:
        self.module = module
        self.scope = scope
        self.uid, self.gid = owner_of(scope)
        module.check_root(scope)
        self.place = layout(scope, "", os.environ)
        self.own = self.place.own
        self.machine_id = read_machine_id()
        self.systemd = systemd_runs(scope, os.environ, os.geteuid())
        module.run_command_environ_update = manager_environment(scope, os.environ, os.geteuid())
        self.pairings = read_pairings(self.place)
        self.zones: dict[str, str | None] = {}

    def zone_text(self, zone: str) -> str | None:
        if zone not in self.zones:
            self.zones[zone] = zone_text(zone)
        return self.zones[zone]


class Declared(NamedTuple):
    """One job as it shall be; `job` is None where there shall be none. `at`: how its options are named in errors.

    `former`: where the job is that gets this name.
    """

    at: str
    given: Mapping[str, Any]
    place: Layout
    job: dict[str, Any] | None
    former: Layout | None = None


class Way(NamedTuple):
    """One job's difference between what is and what shall be. `there`: its document, perhaps by its former name."""

    declared: Declared
    found: Found
    there: bytes | None
    wanted: dict[str, Wanted]
    plan: Plan

    @property
    def edited(self) -> bool:
        """Whether the job's document is another one afterwards."""
        text = self.wanted[self.declared.place.document].text
        return text is not None and self.there != text.encode("utf-8")

    @property
    def timer(self) -> str | None:
        """The text of the timer, where it is not there yet."""
        text = self.wanted[self.declared.place.timer].text
        there = self.found.files[self.declared.place.timer].data or b""
        return None if text is None or there == text.encode("utf-8") else text


def read_current(place: Layout) -> dict[str, Any] | None:
    """The job that is there; what cannot be read cannot be left as it is."""
    job, said = read_document(place)
    if said:
        remedy = "restore the file, or remove the job with state: absent and declare it whole"
        raise StoreError("damaged_document", place.document, "is damaged (%s); %s" % (said, remedy))
    return job


def declare(server: Server, listed: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[list[Declared], list[Problem]]:
    """The jobs as a task has them, laid over those that are there."""
    entries = [(at, dict(given, scope=server.scope)) for at, given in listed]
    jobs, problems = resolve_all(entries, lambda name: read_current(server.place._replace(name=name)))
    declarations = []
    for (at, given), job in zip(listed, jobs):
        place = server.place._replace(name=given["name"])
        former, wrong = former_of(given, place) if job else (None, [])
        if given.get("state") == "absent" and given.get("previous_name"):
            text = "does not go with state: absent; remove the job by the name that it has, or leave this out"
            wrong = [Problem("conflict", "previous_name", text)]
        declarations.append(Declared(at, given, place, job, former))
        wrong += check_server(server, given, job, place) if job else []
        problems += [problem._replace(path=at + problem.path) for problem in wrong]
    return declarations, problems


def former_of(given: Mapping[str, Any], place: Layout) -> tuple[Layout | None, list[Problem]]:
    """Where the job is that is to be renamed; None where that is done, or there was none.

    Where there are two jobs of a rename that was cut off, it goes on, or back.
    """
    previous = given.get("previous_name")
    if not previous:
        return None, []
    former = place._replace(name=previous)
    for one, other in ((place, former), (former, place)):
        if read_file(one.renaming).data == renaming_note(other).encode("utf-8"):
            return former, []
    if not os.path.lexists(former.document):
        return None, []
    if os.path.lexists(place.document):
        text = "both %s and %s are jobs of this server; remove one of them, or leave previous_name out"
        return None, [Problem("conflict", "previous_name", text % (show(previous), show(place.name)))]
    return former, []


def check_server(server: Server, given: Mapping[str, Any], job: dict[str, Any], place: Layout) -> list[Problem]:
    """What only this server can tell: the runner's directories, its time zones, its pairings, its systemd."""
    problems = own_problems(job, server.own)
    schedule = job["schedule"]
    zone = server.zone_text(schedule["timezone"]) if schedule and schedule["timezone"] else None
    if zone:
        told = given.get("schedule") or {}
        path = "schedule.calendar" if told.get("calendar") and not told.get("timezone") else "schedule.timezone"
        problems.append(Problem("invalid_value", path, zone))
    if not server.systemd:
        problems += without_systemd(job, place)
    pin = pin_problem(job, server.pairings)
    if pin:
        problems.append(pin)
    return problems


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


def kept_secret(name: str, place: Layout, found: Found) -> tuple[str | None, bool]:
    """The secret that is kept as the credential of that name, and whether it is encrypted; None where none is."""
    for encrypted in (True, False):
        data = found.files.get(place.credential(name, encrypted), FileState()).data
        if data:
            return data.decode("utf-8"), encrypted
    return None, False


def files_of(server: Server, declared: Declared, found: Found, left: Found | None = None) -> dict[str, Wanted]:
    """The files of a job. A secret that is kept stays as it is, be it encrypted or not.

    `left`: what there is of the job by its former name.
    """
    place, job = declared.place, declared.job
    if job is None:
        return wanted_files(place, None, "", server.gid)
    given, secrets = secrets_of(declared.given), {}
    for name in secrets_in(job):
        kept, encrypted = kept_secret(name, place, found)
        secret = given.get(name) or kept
        if secret is None and left and declared.former:
            secret = kept_secret(name, declared.former, left)[0]
        if secret is None:
            text = "is to be kept as it is, but nothing is kept on this server; give the secret itself"
            server.module.fail([Problem("missing", declared.at + name, text)])
        secrets[name] = (secret, encrypted if secret == kept else encrypts(place))
    return wanted_files(place, job, document_text(bound(job, server.machine_id)), server.gid, secrets)


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


def missing(server: Server, declared: Declared) -> Iterable[tuple[str, str]]:
    """What may come before the first run, and without which no run can succeed: the option and what is wrong."""
    job = declared.job
    if job is None:
        return
    local = job["partner"]["connection"] == "local"
    for number, element in enumerate(job["elements"]):
        direction = settings_of(job, element)["direction"]
        for name in ("path", "partner_path") if local else ("path",):
            source = direction == "both" or (direction == "to_partner") == (name == "path")
            # a missing target is made by the first run, but not where the service's sandbox forbids it
            # of a target that is a log the directory is open
            path = element[name] if source or element["kind"] == "tree" else os.path.dirname(element[name])
            if (source or server.scope == "system") and not os.path.exists(path):
                yield "elements[%d].%s" % (number, name), "%s does not exist on this server" % path
    host = job["partner"]["host"]
    if not local and not job["partner"]["host_key"] and not pairings_of(host, server.pairings):
        text = "this server is not paired with %s and partner.host_key is empty; until the role pairs them, runs fail"
        yield "partner.host", text % host


def warn_of_what_is_missing(server: Server, ways: Sequence[Way]) -> None:
    """What many jobs miss alike is said once."""
    paths: dict[str, list[str]] = {}
    for way in ways:
        for path, text in missing(server, way.declared):
            paths.setdefault(text, []).append(way.declared.at + path)
    for text, where in paths.items():
        more = " (and %d more)" % (len(where) - 1) if len(where) > 1 else ""
        server.module.warn("%s%s: %s" % (where[0], more, text))


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


class Applied(NamedTuple):
    """What came of it, or in check mode would."""

    jobs: list[dict[str, Any]]
    ways: list[Way]
    plan: Plan
    commands: list[list[str]]


def apply(
    module: JobModule,
    scope: str,
    entries: Sequence[tuple[str, Mapping[str, Any]]],
    purge: bool | None,
    options: Mapping[str, Any],
) -> Applied:
    """Makes the jobs as they are declared. `purge`: whether those that are not are removed; None: it is one job.

    `options`: how it is done, by the names that _job.OF_THE_TASK has.
    """
    server = Server(module, scope)
    listed = list(entries)
    if purge:
        names = {given["name"] for _at, given in entries}
        # what is renamed goes by that
        names.update(given.get("previous_name") for _at, given in entries if given.get("state") != "absent")
        # a task that was killed may have left the secrets of a job that is none yet
        known = {*declared_names(server.place), *names_of_secrets(server.place)}
        listed += [("", {"name": name, "state": "absent"}) for name in sorted(known - names)]
    declarations, problems = declare(server, listed)
    if problems:
        module.fail(problems)

    many = purge is not None
    fleet = read_fleet(server.place, module.run) if many and server.systemd and listed else None

    def found_at(place: Layout) -> Found:
        units = fleet(place) if fleet else read_units(place, module.run) if server.systemd and not many else None
        return find(place, units, module.run)

    ways = []
    for declared in declarations:
        place, former = declared.place, declared.former
        found = found_at(place)
        there = found.files[place.document].data
        # its records go to the new name
        left = found_at(former)._replace(published=False) if former else None
        wanted = files_of(server, declared, found, left)
        one = plan(place, found, wanted, server.uid)
        if former and left:
            there = left.files[former.document].data if there is None else there
            gone = plan(former, left, wanted_files(former, None, "", server.gid), server.uid)
            if os.path.lexists(former.renaming):
                gone = without_note(former, gone)
            one = renaming(place, one, former, gone, server.gid)
            found = found._replace(neighbours=left.neighbours)
        elif os.path.lexists(place.renaming):
            one = without_note(place, one)
        ways.append(Way(declared, found, there, wanted, one))
    reload = server.systemd and os.path.exists(server.place.pending)
    if many or reload or any(way.declared.former for way in ways):
        whole = merge([one.plan for one in ways], server.place.systemctl, reload)
    else:
        whole = ways[0].plan

    check_circles(server, ways)
    check_calendars(module, ways)
    jobs = [declared.job for declared in declarations if declared.job]
    deployed = os.path.exists(server.place.runner)
    if jobs and not deployed:
        lacking = "the runner is not deployed on this server (%s is missing)" % server.place.runner
        if not module.check_mode:
            remedy = "apply the role serversync.core.runner first"
            failure = {"code": "runner_missing", "path": server.place.runner, "details": []}
            module.fail_json("%s; %s" % (lacking, remedy), failure=failure)
        module.warn(lacking + "; without check mode this task fails until the role serversync.core.runner is applied")
    if jobs and deployed:
        warn_of_what_is_missing(server, ways)
        if options.get("validate_partner") is not False:
            changing = [way.declared for way in ways if way.declared.job and way.plan.changed]
            tried = [(one.at, one.job) for one in changing if one.job and one.job["partner"]["connection"] != "local"]
            if tried:
                from ._validate import validate  # as for circles, and the same below

                problems = validate(module, server.place, tried)
                if problems:
                    module.fail(problems)
    warn_of_units(server, ways)
    warn_of_what_was_foreign(server, ways)
    for way in ways:
        removed = way.declared.former or (None if way.declared.job else way.declared.place)
        if removed and way.found.neighbours:
            module.warn("%s holds files of others; it stays" % os.path.dirname(removed.drop_in))
    stops: list[list[str]] = []
    verify_timers(module, ways)
    if not module.check_mode:
        changed = [way.declared for way in ways if way.plan.changed]
        places = [place for one in changed for place in (one.place, one.former) if place]
        if places:
            from ._running import end_runs

            stops = end_runs(module, places, options.get("stop_timeout") or str(field_of("stop_timeout").default()))
        module.carry_out(whole, server.place, server.uid, server.gid)
    return Applied(jobs, ways, whole, stops + whole.commands)
