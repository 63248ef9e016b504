# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a page of reports is made of: servers with their jobs, runs, days and open conflicts, as one JSON document.

A server gathers its own from what the runner has published and, where the caller may read them, from the documents; no
replica is opened. What comes from elsewhere is compared with SERVER before anything is made of it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

from serversync import __version__, display, status
from serversync._states import SEVERITY, last_of_elements, looked_through
from serversync.failure import Failure, InvalidDocument
from serversync.history import published, replace
from serversync.job import Element, Job, load
from serversync.layout import Layout
from serversync.machine import machine

VERSION = 1
# Runs of a job that are listed, and characters of a text that is no name.
RUNS, LONGEST = 15, 1000

Server = dict[str, Any]


class Maybe(NamedTuple):
    """Of this shape, or null."""

    shape: Any


def text(value: Any) -> bool:
    return isinstance(value, str)


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1 << 40


def moment(value: Any) -> bool:
    """A time with its distance from UTC, by the server's clock and calendar."""
    with suppress(TypeError, ValueError):
        when = datetime.fromisoformat(value)
        # The calendar has days before it, and clocks know it.
        return when.tzinfo is not None and 1970 <= when.year < 9999
    return False


def day(value: Any) -> bool:
    with suppress(TypeError, ValueError):
        return bool(date.fromisoformat(value).isoformat() == value)
    return False


def duration(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,9}[smhd]", value) is not None


def settings(value: Any) -> bool:
    """Those that decide whether jobs are in each other's way; of the others any value will do."""
    if not isinstance(value, dict) or value.get("direction") not in [*display.ARROWS]:
        return False
    lists = (value.get(name, []) for name in ("include", "exclude"))
    return text(value.get("delete")) and all(isinstance(one, list) and all(map(text, one)) for one in lists)


# What is 0 may be left out.
DAY = {"day": day, **{name: Maybe(count) for name in (*SEVERITY, "copied", "deleted", "bytes", "conflicts")}}
DAY |= {"seconds": Maybe(seconds), "longest": Maybe(seconds)}
RUN = {
    **dict.fromkeys(("run", "trigger", "state"), text),
    **dict.fromkeys(("configuration", "attempts", "copied", "deleted", "bytes", "conflicts"), count),
    "started": moment,
    "seconds": Maybe(seconds),
    "error": Maybe(text),
}
CONFLICT = {
    "element": text,
    "path": text,
    # How each version is in words; null: the record is of a version that did not keep them.
    **dict.fromkeys(("this_server", "partner", "reason"), Maybe(text)),
}
# What sync_topology needs to know of a job: its document, without what plays no part in it.
DECLARED = {
    "partner": {"host": text, "port": Maybe(count), "connection": text},
    "every": Maybe(duration),
    "accept_circular": Maybe(text),
    "elements": [{"path": text, "partner_path": text, "kind": text, "settings": settings}],
}
JOB = {
    "job": text,
    **dict.fromkeys(("comment", "partner", "state", "problem", "schedule", "plan"), Maybe(text)),
    **dict.fromkeys(("enabled", "late"), Maybe(flag)),
    **dict.fromkeys(("next", "retry", "good"), Maybe(moment)),
    "elements": [{"path": text, "partner_path": text, "direction": text, "state": Maybe(text)}],
    "guards": [{"element": text, "text": text}],
    "unresolved": count,
    "conflicts": [CONFLICT],
    "runs": [RUN],
    "days": [DAY],
    "declared": Maybe(DECLARED),
}
SERVER = {
    "server": text,
    # Why nothing else is told of it.
    "problem": Maybe(text),
    "aliases": [text],
    **dict.fromkeys(("machine", "scope", "runner"), text),
    "made": moment,
    "partners": [{"name": text, "host": text}],
    "jobs": [JOB],
}


def misfit(value: Any, shape: Any, where: str) -> str | None:
    """Where a value is not of that shape; what the shape does not name may be anything."""
    found: Iterable[str | None]
    if isinstance(shape, Maybe):
        return None if value is None else misfit(value, shape.shape, where)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{where} is no mapping"
        found = (misfit(value.get(name), one, f"{where}.{name}") for name, one in shape.items())
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        found = (misfit(one, shape[0], f"{where}[{index}]") for index, one in enumerate(value))
    else:
        return None if shape(value) else f"{where} is not what it should be: {value!r:.80}"
    return next(filter(None, found), None)


def gather(layout: Layout, name: str | None) -> Server:
    """This server with its jobs, or the one of that name."""
    return {
        "server": os.uname().nodename,
        "problem": None,
        "aliases": [],
        "machine": machine(),
        "scope": layout.scope,
        "runner": __version__,
        "made": datetime.now().astimezone().isoformat(timespec="seconds"),
        "partners": pairings(layout),
        "jobs": [job_of(layout, row) for row in status.status(layout, name)],
    }


def pairings(layout: Layout) -> list[dict[str, str]]:
    """What jobs may call their partners, and where these are; none where the caller may not see them."""
    found = []
    with suppress(PermissionError):
        for path in sorted(layout.pairings.glob("*.json")):
            # One that is damaged hides no job.
            with suppress(ValueError, LookupError, TypeError):
                one = json.loads(path.read_text(encoding="utf-8"))
                found.append({"name": str(one["name"]), "host": str(one["host"])})
    return found


def local(when: str | None) -> str | None:
    """A time of a record by this server's clock and calendar."""
    return datetime.fromisoformat(when).astimezone().isoformat(timespec="seconds") if when else None


def job_of(layout: Layout, row: Mapping[str, Any]) -> dict[str, Any]:
    """row: as ``status.status`` has it."""
    name = str(row["job"])
    known: dict[str, Any] = {}
    document: Job | None = None
    with suppress(InvalidDocument):
        known = published(layout, name) or {}
    with suppress(InvalidDocument, PermissionError):
        document = load(layout, name)
    runs: list[dict[str, Any]] = known.get("runs", [])
    last, seen = last_of_elements(runs), looked_through(runs)
    elements = (
        [(one.path, one.partner_path, one.settings["direction"]) for one in document.elements]
        if document
        else [(path, one["partner_path"], one["direction"]) for path, one in last.items()]
    )
    paths = [path for path, _partner_path, _direction in elements]
    guards = [{"element": path, "text": guard} for path in paths if path in last for guard in last[path]["guards"]]
    return {
        **{key: row[key] for key in ("job", "partner", "enabled", "late", "state", "problem", "unresolved")},
        "comment": document["comment"] if document else known.get("comment"),
        "schedule": in_words(document["schedule"]) if document else None,
        "next": datetime.fromtimestamp(row["next"]).astimezone().isoformat() if row["next"] else None,
        "retry": local(row["retry"]),
        "good": local(row["good"]),
        "elements": [
            {"path": path, "partner_path": partner, "direction": way, "state": last.get(path, {}).get("state_after")}
            for path, partner, way in elements
        ],
        "guards": guards,
        "plan": next((run["plan"] for run in runs if run["plan"]), None) if guards else None,
        "conflicts": [one for path in paths if path in seen for one in conflicts_of(seen[path])],
        "runs": [*map(run_of, runs[:RUNS])],
        "days": known.get("days", []),
        "declared": declared(document) if document else None,
    }


def conflicts_of(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Open conflicts of an element; records of earlier versions have the paths alone."""
    found = entry.get("open")
    if found is None:
        nothing = dict.fromkeys(("this_server", "partner", "reason"))
        found = [{"path": path, **nothing} for path in entry.get("unresolved", [])]
    return [{"element": entry["path"], **one} for one in found]


def run_of(record: Mapping[str, Any]) -> dict[str, Any]:
    record = dict(record)
    began = datetime.fromisoformat(record["started"])
    ended = datetime.fromisoformat(record["ended"]) if record["ended"] else None
    return {
        **{key: record[key] for key in ("run", "trigger", "state", "configuration")},
        "started": local(record["started"]),
        "seconds": max((ended - began).total_seconds(), 0) if ended else None,
        "attempts": len(record["attempts"]),
        "copied": display.copied(record),
        "deleted": display.total(record, "deleted"),
        "bytes": display.total(record, "bytes"),
        "conflicts": display.conflicts(record),
        "error": error_of(record),
    }


def error_of(record: Mapping[str, Any]) -> str | None:
    return display.describe(record["error"])[:LONGEST] if record["error"] else None


def declared(document: Job) -> dict[str, Any]:
    partner = document["partner"]
    elements: list[Element] = document.elements
    return {
        "partner": {name: partner[name] for name in ("host", "port", "connection")},
        "every": (document["schedule"] or {}).get("every"),
        "accept_circular": document["accept_circular"],
        "elements": [
            {"path": one.path, "partner_path": one.partner_path, "kind": one.kind, "settings": one.settings}
            for one in elements
        ],
    }


def in_words(schedule: Mapping[str, Any] | None) -> str:
    if schedule is None:
        return "by hand only"
    if schedule["every"]:
        said = f"every {schedule['every']}"
    elif schedule["at"]:
        days = schedule["days"] or [f"day {number}" for number in schedule["day_of_month"]]
        said = f"at {', '.join(schedule['at'])}" + (f" ({', '.join(days)})" if days else "")
    else:
        said = str(schedule["calendar"])
    return f"{said}, {schedule['timezone']}" if schedule["timezone"] else said


def document_of(servers: Sequence[Server]) -> dict[str, Any]:
    return {"version": VERSION, "servers": [*servers]}


def read(sources: Iterable[str]) -> list[Server]:
    """The servers of the documents in these files, - being standard input."""
    servers = [server for source in sources for server in servers_of(source, read_source(source))]
    if not servers:
        raise InvalidDocument(
            "invalid_report", "no server is in it; give what servers told of themselves", field="--from"
        )
    return servers


def read_source(source: str) -> str:
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidDocument("unreadable", f"{source}: {said}", field="--from") from None


def servers_of(source: str, data: str) -> list[Server]:
    remedy = "give what 'serversync report --json' prints"
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidDocument("invalid_report", f"{source} is not JSON ({error}); {remedy}", field="--from") from None
    problem = misfit(document, {"version": count, "servers": [{"server": text}]}, "the document")
    if not problem and document["version"] != VERSION:
        problem = f"its version {document['version']} is not {VERSION}"
        remedy = "use the same version of the collection on all servers"
    if problem:
        raise InvalidDocument("invalid_report", f"{source}: {problem}; {remedy}", field="--from")
    return [*map(sound, document["servers"])]


def sound(server: Server) -> Server:
    """The server, or where something is wrong with what is told of it, that alone: ``server`` and ``problem``."""
    problem = server.get("problem")
    if not problem:
        problem = misfit(server, SERVER, "the report")
        problem = f"what it told of itself cannot be used: {problem}" if problem else None
    return {"server": server["server"], "problem": str(problem)[:LONGEST]} if problem else {**server, "problem": None}


def write(target: str, page: str) -> None:
    """Puts the page in its place in one step; - being standard output.

    What is there keeps its mode and group, so that a web server may go on reading it. A new one is as open as the
    records, which it tells: to the caller's group, and to nobody else.
    """
    if target == "-":
        # Whatever the terminal reads, the page says that it is this.
        sys.stdout.buffer.write(page.encode("utf-8"))
        return
    path = Path(os.path.realpath(target))
    mode, group = 0o640, -1
    try:
        with suppress(FileNotFoundError):
            there = path.stat()
            if not stat.S_ISREG(there.st_mode):
                what = "a directory" if stat.S_ISDIR(there.st_mode) else "no file"
                raise InvalidDocument(
                    "usage", f"{target} is {what}; name a file, or - for standard output", field="--html"
                )
            mode = stat.S_IMODE(there.st_mode)
            group = there.st_gid if there.st_gid != os.getegid() else -1
        replace(path, page, mode, group)
    except OSError as error:
        message = f"{target} cannot be written: {error.strerror}; name a file in a directory that is yours"
        raise Failure("permission", message, field="--html") from error
