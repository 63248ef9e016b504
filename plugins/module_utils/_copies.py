# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""Several jobs of one task, of which some start from others: copies, and jobs that get another name. Pure."""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence

from ._job import Problem, Wrong, resolve, show


def _base(job: Mapping[str, Any]) -> dict[str, Any]:
    """What a copy starts from: the job without what is true of it alone.

    The archives that its elements take over are its own, and so is the circle that it is accepted to be part of.
    """
    return dict(job, elements=[dict(one, previous_path=None) for one in job["elements"]], accept_circular=None)


def _check_previous_names(
    entries: Sequence[tuple[str, Mapping[str, Any]]], names: Mapping[str, int]
) -> dict[int, list[Problem]]:
    """A name is given up for one job, and is then nobody's. Problems by the number of the entry."""
    problems = {}
    taken: dict[str, str] = {}
    for number, (_at, given) in enumerate(entries):
        previous = given.get("previous_name")
        if not previous or given.get("state") == "absent":
            continue
        text = ""
        if previous == given["name"]:
            text = "%s is the name itself; leave it out"
        elif previous in names:
            text = "%s is the name of another job of the same task; it can be given up or kept, do one of them"
        elif previous in taken:
            text = "%%s is the previous name of %s, too; a job is renamed once, leave one out" % show(taken[previous])
        if text:
            problems[number] = [Problem("conflict", "previous_name", text % show(previous))]
        taken.setdefault(previous, given["name"])
    return problems


def resolve_all(
    entries: Sequence[tuple[str, Mapping[str, Any]]], there: Callable[[str], Mapping[str, Any] | None]
) -> tuple[list[dict[str, Any] | None], list[Problem]]:
    """resolve() for what read() returned of several jobs of one scope, each with how errors name its options.

    A copy is laid over its base as the list has it, or else as it is on the server; a job that gets another name over
    the one of its previous name. `there`: the job of that name on the server. The jobs are in the order of the list;
    None: it is to be absent, or has a problem.
    """
    names = {given["name"]: number for number, (_at, given) in enumerate(entries)}
    absent = {number for number, (_at, given) in enumerate(entries) if given.get("state") == "absent"}
    jobs: dict[int, dict[str, Any] | None] = dict.fromkeys(absent)
    problems = _check_previous_names(entries, names)
    jobs.update(dict.fromkeys(problems))
    renamed = {
        given["previous_name"]: given["name"]
        for number, (_at, given) in enumerate(entries)
        if given.get("previous_name") and number not in absent
    }

    def base(name: str) -> Mapping[str, Any] | None:
        """None: it has problems of its own."""
        number = names.get(name)
        if number in absent:
            raise Wrong("%s is removed by the same task; name a job that stays" % show(name), "unknown_job")
        if name in renamed:
            text = "%s is renamed by the same task; name it %s" % (show(name), show(renamed[name]))
            raise Wrong(text, "unknown_job")
        found = there(name) if number is None else jobs[number]
        if found is None and number is None:
            text = "%s is no job of this scope on this server; declare it first, or name another one"
            raise Wrong(text % show(name), "unknown_job")
        return _base(found) if found else None

    def one(number: int) -> None:
        given = dict(entries[number][1])
        name = given.pop("copy_from", None)
        jobs[number] = None
        try:
            if name:
                given.pop("omitted", None)
                current = base(name)
                if current is None:
                    return
            elif given.get("omitted") == "reset":
                current = None
            else:
                previous = given.get("previous_name")
                current = there(given["name"]) or (there(previous) if previous else None)
        except Wrong as wrong:
            problems[number] = [Problem(wrong.code, "copy_from", wrong.text)]
            return
        job, problems[number] = resolve(given, current)
        jobs[number] = None if problems[number] else job

    for start in range(len(entries)):
        chain: list[int] = []
        number: int | None = start
        while number is not None and number not in jobs and number not in chain:
            chain.append(number)
            number = names.get(entries[number][1].get("copy_from") or "")
        if number in chain:
            circle = chain[chain.index(number) :]
            way = [str(entries[one_of_them][1]["name"]) for one_of_them in [*circle, circle[0]]]
            text = "makes a circle of copies (%s); give one of them options of its own instead" % " -> ".join(way)
            if len(circle) == 1:
                text = "%s is this job itself; name another one, or leave it out" % show(way[0])
            jobs.update(dict.fromkeys(circle))
            problems[circle[0]] = [Problem("conflict", "copy_from", text)]
        for number in reversed(chain):
            if number not in jobs:
                one(number)
    found = [
        problem._replace(path=at + problem.path)
        for number, (at, _given) in enumerate(entries)
        for problem in problems.get(number, [])
    ]
    return [jobs[number] for number in range(len(entries))], found
