# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""What the runner has published of a job, and when its timer elapses. It only reads."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any, Mapping

from ._store import Layout, Run, StoreError, command_error, read_file
from ._units import timer_name

#: What a run counts that is on a replica afterwards and was not before.
_COUNTERS = ("created", "updated", "attributes", "deleted", "lines")


def printable(value: Any) -> Any:
    """A copy that every terminal and every JSON can take: what steers one, or is not UTF-8, is escaped."""
    if isinstance(value, dict):
        return {key: printable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [printable(one) for one in value]
    if isinstance(value, str) and not value.isprintable():
        return "".join(map(_escaped, value))
    return value


def _escaped(character: str) -> str:
    """A line feed parts lines, and does no more."""
    code = ord(character)
    if character == "\n" or character.isprintable():
        return character
    return "\\x%02x" % code if code < 256 else "\\u%04x" % code


def published(place: Layout) -> list[dict[str, Any]]:
    """The last runs of a job, the newest first; none before its first one."""
    data = read_file(place.published).data
    if data is None:
        return []
    try:
        return [dict(run) for run in json.loads(data.decode("utf-8"))["runs"]]
    except (ValueError, KeyError, TypeError):
        text = "is damaged; the next run of the job writes it anew"
        raise StoreError("damaged_record", place.published, text) from None


def has_changed(record: Mapping[str, Any]) -> bool:
    """Whether a run has changed anything on either replica."""
    return any(entry.get(counter) for entry in record["elements"] for counter in _COUNTERS)


def next_runs(place: Layout, run: Run) -> dict[str, str]:
    """When each job's timer elapses next, in UTC, by one call for all of them; without those that are running now."""
    argv = [*place.systemctl, "list-timers", "--all", "--output=json", "serversync@*.timer"]
    code, out, err = run(argv)
    if code:
        raise command_error(argv, code, out, err, "repair that and run the task again")
    prefix, _job, suffix = timer_name(" ").partition(" ")
    try:
        timers = [(timer["unit"], timer["next"]) for timer in json.loads(out)]
    except (ValueError, KeyError, TypeError):
        text = "prints no JSON; systemd 246 or later does"
        raise StoreError("systemd_too_old", " ".join(argv), text) from None
    return {
        unit[len(prefix) : -len(suffix)]: datetime.fromtimestamp(elapse // 1000000, timezone.utc).isoformat()
        for unit, elapse in timers
        if elapse
    }
