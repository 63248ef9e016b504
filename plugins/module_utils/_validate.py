# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""Jobs that are going to change are tried by the runner before anything is written: the partner, and their paths."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any, Mapping, Sequence

from ._job import Problem
from ._module import JobModule
from ._records import printable
from ._store import Layout

#: What may come after the declaration.
_NOT_YET = ("not_paired", "no_key")


def validate(module: JobModule, place: Layout, jobs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Problem]:
    """What the runner finds wrong with the jobs, each with how errors name its options; it only reads.

    Warns of what cannot be tried yet, and of what is wrong with the partner but keeps no run from working.
    """
    if not os.path.exists(place.launcher):
        module.warn("not validated: the runner is not deployed on this server (%s is missing)" % place.launcher)
        return []
    found = _ask(module, place, [job for _at, job in jobs])
    problems = []
    warnings: dict[str, None] = {}
    for at, job in jobs:
        for one in found.get(job["name"], ()):
            failure = one.get("failure")
            text = "; ".join(filter(None, (one["issue"], one["impact"], one["remedy"])))
            if failure is None:
                if one.get("declared"):
                    warnings[text] = None
                continue
            field = failure["field"] or "partner.host"
            here = field.startswith("elements") and field.endswith(".path")
            if failure["code"] == "no_credential":
                # a service is handed it, and nobody else
                warnings["not validated: %s: only a run logs in with it" % field] = None
            elif failure["code"] in _NOT_YET or failure["transient"]:
                warnings["not validated: %s: %s" % (field, failure["message"])] = None
            elif not (here and failure["code"] == "missing"):
                # a path of this server that is missing is told of anyway
                problems.append(Problem(failure["code"], at + field, failure["message"]))
    for text in warnings:
        module.warn(str(printable(text)))
    return problems


def _ask(module: JobModule, place: Layout, jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The findings by job; none where the runner has an answer of its own, which is then the warning."""
    handle, path = tempfile.mkstemp(dir=module.tmpdir)
    module.add_cleanup_file(path)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(jobs, stream)
    code, out, err = module.run([place.launcher, "check", path, "--connect", "--json"])
    os.unlink(path)
    try:
        found = json.loads(out)
    except ValueError:
        said = (err or out).strip().splitlines() or ["no output"]
        found = {"failure": {"message": "the runner failed with exit code %d: %s" % (code, said[-1])}}
    if isinstance(found.get("failure"), dict):
        module.warn(str(printable("not validated: %s" % found["failure"]["message"])))
        return {}
    return dict(found)
