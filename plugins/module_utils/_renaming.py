# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""A job gets another name: where it was, and the way from there.

A file says which job is going to be renamed, from before there are two of them until the old one is gone, so that the
next apply can tell a rename that was cut off from two jobs.
"""

from __future__ import annotations

import os

from ._job import Problem, show
from ._steps import entry_of, text_of
from ._store import Layout, Plan, Step, Wanted, read_file


def former_of(previous: str, place: Layout) -> tuple[Layout | None, list[Problem]]:
    """Where the job is that is to be renamed; None where that is done, or there was none.

    Where there are two jobs of a rename that was cut off, it goes on, or back.
    """
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


def renaming_note(former: Layout) -> str:
    return former.name + "\n"


def renaming(place: Layout, new: Plan, former: Layout, old: Plan, gid: int | None) -> Plan:
    """The way to a job from the one of another name: what is written for the one and removed of the other.

    The runner moves what is its own.
    """
    text = renaming_note(former)
    there = read_file(place.renaming).data == text.encode("utf-8")
    note = Wanted(text, 0o640 if place.scope == "system" else 0o600, gid)
    diff = new.diff + old.diff
    files = [*new.files, *old.files, Step("remove", place.renaming)]
    if there:
        diff.append(entry_of(place.renaming, text, "", will=False))
    else:
        files.insert(0, Step("write", place.renaming, file=note))
    kept = [os.path.join(former.state, name, former.name) for name in ("archives", "plans")]
    if any(map(os.path.lexists, (former.published, *kept))):
        shown = "(records of the last runs)\n"
        diff.append(entry_of(former.published, shown, "", will=False))
        diff.append(entry_of("%s (of %s)" % (place.published, former.name), "", shown, was=False))
        files.insert(len(files) - len(old.files) - 1, Step("run", argv=rename_command(place, former)))
    return Plan(diff, old.before + new.before, files, new.after + old.after)


def without_note(place: Layout, plan: Plan) -> Plan:
    """Forgets a rename that was cut off, and that nobody asks for any more."""
    entry = entry_of(place.renaming, text_of(read_file(place.renaming).data), "", will=False)
    return plan._replace(diff=[*plan.diff, entry], files=[*plan.files, Step("remove", place.renaming)])


def rename_command(place: Layout, former: Layout) -> tuple[str, ...]:
    """Its last word is no job's name, such as daemon-reload may be one."""
    return place.launcher, "rename", place.name, "--from=" + former.name
