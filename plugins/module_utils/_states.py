# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""How a job is, by what is on record of its last runs. Pure.

Runs are records, the newest first; paths are those of the declared elements, None where they are not known.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

#: What a run, or an element, came to; a job is as its worst element, which is the last of these. One that was skipped
#: is not known to agree, which passes by itself; one that is different waits for a person.
SEVERITY = ("equal", "equal_with_warnings", "skipped", "different", "failed")
#: Of a run that is not over: it is on, or waits for its next attempt.
UNFINISHED = ("running", "waiting")
#: After these an element is known to have been looked through.
_SEEN = ("equal", "equal_with_warnings", "different")


def worst(states: Iterable[str]) -> str:
    return max(states, key=SEVERITY.index)


def last_of_elements(runs: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What each element's last run has on record, by its path; one that was skipped counts as it was found before."""
    return {
        entry["path"]: entry
        for run in reversed(runs)
        if run["state"] not in UNFINISHED
        for entry in run["elements"]
        if entry["state_after"] != "skipped"
    }


def looked_through(runs: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What is on record of each element from the last run that has seen all of it, also one that is on; by its path."""
    return {
        entry["path"]: entry
        for run in reversed(runs)
        for entry in run["elements"]
        if entry["standing"] or entry["state_after"] in _SEEN
    }


def unresolved(runs: Sequence[Mapping[str, Any]], paths: Sequence[str] | None) -> int:
    """How many paths of the elements stand unresolved."""
    seen = looked_through(runs)
    known = seen if paths is None else [path for path in paths if path in seen]
    return sum(int(seen[path]["standing"].get("unresolved", 0)) for path in known)


def state(runs: Sequence[Mapping[str, Any]], paths: Sequence[str] | None) -> str | None:
    """The job's state: of the last run, or where that had not all of its elements, the worst of each one's last.

    None: an element never ran.
    """
    if not runs:
        return None
    # One that is on, or waits for its next attempt, goes on while others are skipped for it.
    on = next((str(run["state"]) for run in runs if run["state"] != "skipped"), "")
    if on in UNFINISHED:
        return on
    if runs[0]["state"] == "skipped":
        return "skipped"
    last = {path: str(entry["state_after"]) for path, entry in last_of_elements(runs).items()}
    states = [last[path] for path in paths if path in last] if paths is not None else [*last.values()]
    found = worst([*states, str(runs[0]["state"])])
    unknown = paths is not None and len(states) < len(paths)
    return None if unknown and found in ("equal", "equal_with_warnings") else found
