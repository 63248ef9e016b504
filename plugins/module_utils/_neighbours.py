# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""Circles and the like among the jobs that a task declares and those that are on the server already."""

from __future__ import annotations

import os
import re
from typing import Any, Collection, Iterable, Mapping, Sequence

from ._fleet import Server
from ._job import JOB, Problem, foreign, loads
from ._otherscope import read_others
from ._settings import settings_of
from ._store import Layout, declared_names, read_document
from ._topology import analyse

MOUNTS = "/proc/self/mountinfo"
_SETTINGS = next(part for part in JOB.parts if part.name == "settings").defaults()


def moves(there: bytes | None, job: Mapping[str, Any], machine_id: str | None = None) -> bool:
    """Whether a job is new, or what it copies, from where, to where or how is another than its document says.

    On the server with this machine id a document that was declared on another one moves nothing.
    """
    before = loads(there)
    try:
        return foreign(before, machine_id) or _way(before) != _way(job)
    except (KeyError, TypeError, AttributeError):
        return True


def _way(job: Mapping[str, Any]) -> tuple[Any, ...]:
    """A document of an earlier version lacks some settings, for which the defaults hold."""
    partner = job["partner"]
    whole = dict(job, settings=dict(_SETTINGS, **job["settings"]))
    elements = [
        (one["path"], one["partner_path"], one.get("kind", "tree"), settings_of(whole, one)) for one in job["elements"]
    ]
    return partner["host"], partner["port"], partner["connection"], elements, job.get("accept_circular")


def read_neighbours(
    place: Layout, without: Iterable[str], machine_id: str | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The other jobs of the scope, and of the documents that are none what keeps them from being one."""
    jobs, none = [], []
    for name in sorted(set(declared_names(place)).difference(without)):
        one = place._replace(name=name)
        job, said = read_document(one)
        if said:
            none.append("%s: is damaged" % one.document)
        elif job is not None and foreign(job, machine_id):
            none.append("%s: was declared on another server" % one.document)
        elif job is not None:
            jobs.append(dict(job, name=name))
    return jobs, none


def read_mounts(path: str = MOUNTS) -> list[tuple[str, str, str]]:
    """Mount point, file system and the directory of it that is mounted there; the deepest first, of equals the last."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            lines = [line.split(" ") for line in stream]
    except OSError:
        # no Linux: paths are then compared as they are spelled
        return []
    mounts = {_plain(words[4]): (words[2], _plain(words[3])) for words in lines if len(words) > 4}
    return sorted(((point, *of) for point, of in mounts.items()), key=lambda one: (-len(one[0]), one[0]))


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)


def places_of(paths: Iterable[str], mounts: Sequence[tuple[str, str, str]]) -> dict[str, tuple[str, str]]:
    """Where paths of this server are, through links and mounts: their file system and the path on it."""
    places = {}
    for path in paths if mounts else ():
        real = os.path.realpath(path)
        for point, system, root in mounts:
            rest = real[len(point.rstrip("/")) :]
            if real == point or (real.startswith(point.rstrip("/")) and rest.startswith("/")):
                places[path] = (system, os.path.normpath(root + "/" + rest.lstrip("/")).replace("//", "/"))
                break
    return places


def findings_of(
    place: Layout,
    pairings: Sequence[Mapping[str, Any]],
    declared: Mapping[str, tuple[str, Mapping[str, Any] | None]],
    changing: Collection[str],
    machine_id: str | None,
) -> tuple[list[Problem], list[str]]:
    """Errors and warnings that jobs which change have part in; the others on the server are read beside them.

    What those of the other scope have part in is beside what there is without them.

    `declared`: the jobs of the task, with how their options are named in errors; None: such a job there shall not be.
    """
    others, none = read_neighbours(place, declared, machine_id)
    jobs = others + [dict(job) for _at, job in declared.values() if job]
    paths = {element["path"] for job in jobs for element in job["elements"]}
    local = [job for job in jobs if job["partner"].get("connection") == "local"]
    paths.update(element["partner_path"] for job in local for element in job["elements"])
    name = os.uname().nodename
    partners = {str(one["name"]): str(one["host"]) for one in pairings}
    here = Server(name, jobs, [name.partition(".")[0]], None, partners, places_of(sorted(paths), read_mounts()))
    about = [(name, job) for job in changing]
    findings = [(one, one.level) for one in analyse([here], about).findings]
    strange = read_others(place, machine_id)
    if strange:
        strangers = {job["name"] for job in strange}
        # a user is not to forbid root a job by one of its own
        levels = {"error": "warning" if place.scope == "system" else "error", "warning": "warning"}
        for one in analyse([here._replace(jobs=jobs + strange)], about).findings:
            if strangers.intersection(member.job for member in one.members):
                findings.append((one, levels.get(one.level, one.level)))
    problems = []
    warnings = ["%s; it is not looked at for circular connections" % text for text in none]
    for finding, level in findings:
        member = next(one for one in finding.members if one.job in changing)
        path = "%selements[%d]" % (declared[member.job][0], member.element)
        text = str(finding)
        text = text[0].lower() + text[1:]
        if level == "error":
            problems.append(Problem(finding.kind, path, text))
        elif level == "warning":
            warnings.append("%s: %s" % (path, text))
    return problems, warnings
