# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""From what a task declares, of one job or of many, to what is on the server: one read, one difference, one way."""

from __future__ import annotations

import os
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from ._job import (
    Problem,
    bound,
    document_text,
    field_of,
    own_problems,
    pairings_of,
    resolve,
    secrets_in,
)
from ._module import JobModule
from ._settings import settings_of
from ._store import (
    Found,
    Layout,
    Plan,
    StoreError,
    Wanted,
    declared_names,
    find,
    layout,
    manager_environment,
    names_of_secrets,
    owner_of,
    read_document,
    read_fleet,
    read_machine_id,
    read_pairings,
    read_units,
    settled,
    systemd_runs,
    wanted_files,
    zone_text,
)

# What is imported further below is of no use to a task that changes nothing, which Python would have to compile it for.

#: The way where all is as it shall be.
_NO_WAY = Plan([], [], [], [])


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
    jobs, problems = _resolved(server, entries)
    declarations = []
    for (at, given), job in zip(listed, jobs):
        place = server.place._replace(name=given["name"])
        former: Layout | None = None
        wrong: list[Problem] = []
        if job and given.get("previous_name"):
            from ._renaming import former_of

            former, wrong = former_of(given["previous_name"], place)
        if given.get("state") == "absent" and given.get("previous_name"):
            text = "does not go with state: absent; remove the job by the name that it has, or leave this out"
            wrong = [Problem("conflict", "previous_name", text)]
        declarations.append(Declared(at, given, place, job, former))
        wrong += check_server(server, given, job, place) if job else []
        problems += [problem._replace(path=at + problem.path) for problem in wrong]
    return declarations, problems


def _resolved(
    server: Server, entries: Sequence[tuple[str, Mapping[str, Any]]]
) -> tuple[list[dict[str, Any] | None], list[Problem]]:
    """resolve_all() over the jobs that are there; without it where there is one that has to do with no other."""

    def there(name: str) -> dict[str, Any] | None:
        return read_current(server.place._replace(name=name))

    if len(entries) == 1 and not any(entries[0][1].get(name) for name in ("copy_from", "previous_name")):
        at, given = entries[0]
        if given.get("state") == "absent":
            return [None], []
        job, problems = resolve(given, None if given.get("omitted") == "reset" else there(given["name"]))
        return [None if problems else job], [one._replace(path=at + one.path) for one in problems]
    from ._copies import resolve_all

    return resolve_all(entries, there)


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
        from ._changing import without_systemd

        problems += without_systemd(job, place)
    if job["partner"]["host_key"] and server.pairings:
        from ._host_key import pin_problem

        pin = pin_problem(job, server.pairings)
        problems += [pin] if pin else []
    return problems


def files_of(server: Server, declared: Declared, found: Found, left: Found | None = None) -> dict[str, Wanted]:
    """The files of a job. `left`: what there is of the job by its former name."""
    place, job = declared.place, declared.job
    if job is None:
        return wanted_files(place, None, "", server.gid)
    secrets: dict[str, tuple[str, bool]] = {}
    if secrets_in(job):
        from ._credentials import secrets_for

        former = [(declared.former, left)] if declared.former and left else []
        secrets, problems = secrets_for(job, declared.given, [(place, found), *former])
        if problems:
            server.module.fail([one._replace(path=declared.at + one.path) for one in problems])
    return wanted_files(place, job, document_text(bound(job, server.machine_id)), server.gid, secrets)


def way_of(server: Server, declared: Declared, found: Found, left: Found | None) -> Way:
    """`left`: what there is of the job by its former name."""
    place, former = declared.place, declared.former
    wanted = files_of(server, declared, found, left)
    there = found.files[place.document].data
    noted = os.path.lexists(place.renaming)
    if not former and not noted and settled(place, found, wanted, server.uid):
        return Way(declared, found, there, wanted, _NO_WAY)
    from ._steps import plan

    one = plan(place, found, wanted, server.uid)
    if noted and not former:
        from ._renaming import without_note

        one = without_note(place, one)
    if former and left:
        from ._renaming import renaming, without_note

        there = left.files[former.document].data if there is None else there
        gone = plan(former, left, wanted_files(former, None, "", server.gid), server.uid)
        if os.path.lexists(former.renaming):
            gone = without_note(former, gone)
        one = renaming(place, one, former, gone, server.gid)
        found = found._replace(neighbours=left.neighbours)
    return Way(declared, found, there, wanted, one)


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
        # its records go to the new name
        left = found_at(declared.former)._replace(published=False) if declared.former else None
        ways.append(way_of(server, declared, found_at(declared.place), left))
    reload = server.systemd and os.path.exists(server.place.pending)
    whole = _NO_WAY
    if reload or any(way.plan.changed for way in ways):
        whole = ways[0].plan
        if many or reload or any(way.declared.former for way in ways):
            from ._steps import merge

            whole = merge([one.plan for one in ways], server.place.systemctl, reload)
        from . import _changing

        _changing.check_circles(server, ways)
        _changing.check_calendars(module, ways)
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
                from ._validate import validate

                problems = validate(module, server.place, tried)
                if problems:
                    module.fail(problems)
    if any(job["before"] or job["after"] for job in jobs):
        from ._changing import warn_of_units

        warn_of_units(server, ways)
    stops: list[list[str]] = []
    if any(way.found.neighbours and (way.declared.former or not way.declared.job) for way in ways):
        from ._changing import warn_of_what_stays

        warn_of_what_stays(module, ways)
    if whole.changed:
        from . import _changing

        _changing.warn_of_what_was_foreign(server, ways)
        _changing.verify_timers(module, ways)
    if whole.changed and not module.check_mode:
        changed = [way.declared for way in ways if way.plan.changed]
        places = [place for one in changed for place in (one.place, one.former) if place]
        if places:
            from ._running import end_runs

            stops = end_runs(module, places, options.get("stop_timeout") or str(field_of("stop_timeout").default()))
        from ._carrying import carry_out

        carry_out(module, whole, server.place, server.uid, server.gid)
    return Applied(jobs, ways, whole, stops + whole.commands)
