# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of a run, or of a job that is late, to people.

A subject that says it all, a text, and the same for those who read HTML.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from itertools import takewhile
from typing import Any, NamedTuple

from serversync._states import UNFINISHED
from serversync.display import ARROWS, LONG, describe, duration, lasting, local_time, safe, size, units
from serversync.history import PUBLISHED
from serversync.job import Job, span
from serversync.late import Lateness
from serversync.layout import Layout

# Decisions that somebody should read.
OPEN = ("conflict", "unresolved")
OUTCOMES = {
    "failed": "FAILED",
    "different": "LEFT PATHS TO DECIDE",
    "equal": "succeeded",
    "equal_with_warnings": "succeeded",
    "skipped": "was skipped",
}
# So many elements, lines of each, and characters of a line are told; the record has them all.
SECTIONS, LINES, LONGEST = 50, 20, 1000
# Of white letters on it, as of it on white, the contrast is above 4.5 : 1.
COLOURS = {"failed": "#b3261e", "different": "#8a5300", "skipped": "#5f6368"}
FINE = "#1b6e3c"
# No run is late by seconds.
MINUTES = "%Y-%m-%d %H:%M"


class Section(NamedTuple):
    """An element: what it is, how it went, and what there is to read of it."""

    title: str
    summary: str
    lines: list[str]


class Letter(NamedTuple):
    """facts, commands: by their labels."""

    subject: str
    headline: str
    colour: str
    facts: list[tuple[str, str]]
    sections: list[Section]
    errors: list[str]
    commands: list[tuple[str, str]]


def compose(job: Job, record: dict[str, Any], *, recovered: bool) -> dict[str, str]:
    """subject, text and html; nothing in them steers a terminal or a browser."""
    return bodies(letter_of(job, record, recovered=recovered))


def bodies(letter: Letter) -> dict[str, str]:
    return {"subject": letter.subject, "text": text(letter), "html": html(letter)}


def letter_of(job: Job, record: dict[str, Any], *, recovered: bool) -> Letter:
    server = os.uname().nodename
    outcome = "RECOVERED" if recovered else OUTCOMES[record["state"]]
    attempts = len(record["attempts"])
    headline = f"{job.name} {outcome}"
    if record["error"]:
        headline += f" after {attempts} attempts" if attempts > 1 else ""
        # The remedy stands behind the semicolon; it is for the body.
        headline += f": {record['error']['message'].split(';')[0]}"
    facts = [
        *whose(job, server),
        ("Run", f"{record['run']} ({record['trigger']}, configuration {record['configuration']})"),
        ("Started", f"{local_time(record['started'])}, took {duration(record)}"),
        ("Attempts", str(attempts)),
        *((phase, what) for phase, _space, what in (line.partition(" ") for line in units(record))),
    ]
    told = any(entry["error"] for entry in record["elements"])
    errors = [describe(record["error"])] if record["error"] and not told else []
    commands = [("The whole record", f"serversync show {job.name} {record['run']}")]
    if record["state"] == "different":
        commands.append(("To decide", f"serversync conflicts {job.name}; serversync plan {job.name}"))
    elif record["state"] == "failed":
        commands.append(("Once it is mended", f"serversync run {job.name}"))
    subject = subject_of(server, headline)
    colour = COLOURS.get(record["state"], FINE)
    sections = [*map(section, record["elements"][:SECTIONS])]
    if len(record["elements"]) > SECTIONS:
        sections.append(Section(f"... and {len(record['elements']) - SECTIONS} elements more", "", []))
    return Letter(subject, headline, colour, facts, sections, bounded(errors, LINES), commands)


def whose(job: Job, server: str) -> list[tuple[str, str]]:
    return [("Job", job.name), ("Comment", job["comment"] or "-"), ("Server", server), ("Partner", job.partner)]


def subject_of(server: str, headline: str) -> str:
    return safe(f"[serversync] {server}: {headline}")[:200]


def compose_late(
    layout: Layout, job: Job, it: Lateness, known: Mapping[str, Any], elapse: int | None, now: datetime
) -> dict[str, str]:
    """As ``compose``, of a job that is late.

    known: what is published of it: good, runs. elapse: when its timer elapses next, in seconds since the epoch.
    """
    runs: Sequence[dict[str, Any]] = known["runs"]
    server, since = os.uname().nodename, local_time(it.since.isoformat(), MINUTES)
    event = since if it.well else f"the job was changed, {since}"
    headline = f"{job.name} LATE: no good run since {event} ({lasting(now - it.since)})"
    facts = [
        *whose(job, server),
        ("Late", f"after {span(int((it.at - it.since).total_seconds()))} without a good run"),
        ("Last good", local_time(known["good"]) if known["good"] else "none on record"),
        ("Meanwhile", meanwhile(it, runs)),
        *(("Last run", outcome_of(run)) for run in runs[:1]),
        # One that others are skipped for.
        *(("On", outcome_of(run)) for run in runs[1:] if run["state"] in UNFINISHED),
        ("Next run", next_run(job, elapse, runs)),
    ]
    errors = [describe(run["error"]) for run in runs[:1] if run["error"]]
    user = "" if layout.privileged else "--user "
    commands = [("The last run", f"serversync show {job.name}")] if runs else []
    if job["schedule"]:
        commands.append(("Its schedule", f"systemctl {user}list-timers --all serversync@{job.name}.timer"))
    if any(run["state"] == "running" for run in runs):
        commands.append(("To end that one", f"systemctl {user}stop serversync@{job.name}.service"))
    commands += [
        ("Its journal", f"journalctl {user}-u serversync@{job.name}.service"),
        ("What hinders it", f"serversync check {job.name}"),
        ("Once it is mended", f"serversync run {job.name}"),
    ]
    return bodies(
        Letter(subject_of(server, headline), headline, COLOURS["failed"], facts, [], bounded(errors, LINES), commands)
    )


def meanwhile(it: Lateness, runs: Sequence[dict[str, Any]]) -> str:
    """What the runs came to since the job was well or changed, by their order and not by clocks."""
    begun = [*takewhile(lambda run: not run["state"].startswith("equal"), runs)]
    if not it.well:
        begun = [run for run in begun if datetime.fromisoformat(run["started"]) >= it.since]
    counts = Counter(run["state"] for run in begun)
    more = "at least " if len(begun) == PUBLISHED else ""
    return more + (", ".join(f"{count} {state}" for state, count in counts.items()) or "no run began")


def outcome_of(run: dict[str, Any]) -> str:
    took = f", took {duration(run)}" if run["ended"] else ""
    return f"{run['run']} ({run['trigger']}): {run['state']}, started {local_time(run['started'])}{took}"


def next_run(job: Job, elapse: int | None, runs: Sequence[dict[str, Any]]) -> str:
    """When it is due; and where it is not, why."""
    waiting = next((run["retry"]["at"] for run in runs if run["state"] == "waiting"), None)
    if waiting:
        return f"{local_time(waiting)}, another attempt"
    if elapse:
        return datetime.fromtimestamp(elapse).strftime(LONG)
    if any(run["state"] == "running" for run in runs):
        return "when the one that is on is over"
    return "none: its timer is off; apply the job again" if job["schedule"] else "by hand, for it has no schedule"


def bounded(lines: list[str], most: int) -> list[str]:
    """As many lines as a person reads, none of them endless, as they are shown: a partner may have named the paths in
    them."""
    cut = [line if len(line) <= LONGEST else f"{line[:LONGEST]}..." for line in map(safe, lines[:most])]
    return cut if len(lines) <= most else [*cut, f"... and {len(lines) - most} more"]


def section(entry: dict[str, Any]) -> Section:
    summary = (
        f"before {entry['state_before'] or 'not seen'}, after {entry['state_after']}: {entry['created']} copied, "
        f"{entry['updated'] + entry['attributes']} updated, {entry['deleted']} deleted, {size(entry['bytes'])}"
        + (f", {entry['lines']} lines appended" if entry["lines"] else "")
    )
    lines = [f"error: {describe(entry['error'])}"] if entry["error"] else []
    lines += [f"  {problem}" for problem in entry["problems"][1:]]
    lines += entry["warnings"]
    lines += [f"stopped before the first change: {guard}" for guard in entry["guards"]]
    lines += [f"  {one['what']}: {one['path']}: {one['reason']}" for one in entry["paths"] if one["what"] in OPEN]
    title = f"{entry['path']} {ARROWS[entry['direction']]} {entry['partner_path']}"
    return Section(title, summary, bounded(lines, LINES))


def text(letter: Letter) -> str:
    lines = [f"{f'{label}:':<11}{value}" for label, value in letter.facts] + [""]
    for one in letter.sections:
        lines += [one.title, *(f"  {line}" for line in (one.summary, *one.lines))]
    lines += [f"error: {error}" for error in letter.errors]
    lines += ["", *(f"{f'{label}:':<19}{command}" for label, command in letter.commands)]
    return "\n".join(map(safe, lines)) + "\n"


def html(letter: Letter) -> str:
    """One column that fits a telephone, styled where it stands, since mail programs drop what stands elsewhere."""
    small = "font:13px/1.45 sans-serif;color:#444"
    mono = "font:13px/1.45 monospace;overflow-wrap:anywhere"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{plain(letter.subject)}</title></head>"
        '<body style="margin:0;background:#f1f3f4;color:#202124;font:15px/1.45 sans-serif">'
        '<div style="max-width:640px;margin:0 auto;background:#fff">',
        f'<h1 style="margin:0;padding:16px;background:{letter.colour};color:#fff;font:bold 18px/1.35 sans-serif;'
        f'overflow-wrap:anywhere">{plain(letter.headline)}</h1>',
        '<table role="presentation" style="border-collapse:collapse;margin:12px 16px">',
        *(
            f'<tr><td style="{small};padding:2px 16px 2px 0;vertical-align:top">{plain(label)}</td>'
            f'<td style="padding:2px 0;overflow-wrap:anywhere">{plain(value)}</td></tr>'
            for label, value in letter.facts
        ),
        "</table>",
    ]
    for one in letter.sections:
        parts += [
            '<div style="margin:0 16px;padding:12px 0;border-top:1px solid #dadce0">',
            f'<h2 style="margin:0 0 4px;font:bold 15px/1.45 sans-serif;overflow-wrap:anywhere">{plain(one.title)}</h2>',
            f'<div style="{small}">{plain(one.summary)}</div>',
            *listed(one.lines, mono),
            "</div>",
        ]
    if letter.errors:
        parts += ['<div style="margin:0 16px;padding:12px 0;border-top:1px solid #dadce0">']
        parts += [*listed(letter.errors, mono), "</div>"]
    parts += ['<div style="margin:0 16px;padding:12px 0 16px;border-top:1px solid #dadce0">']
    for label, command in letter.commands:
        parts += [
            f'<div style="{small}">{plain(label)}</div>'
            f'<div style="{mono};background:#f1f3f4;padding:8px;margin:2px 0 8px">{plain(command)}</div>'
        ]
    return "\n".join([*parts, "</div></div></body></html>"]) + "\n"


def listed(lines: Sequence[str], style: str) -> Iterable[str]:
    if lines:
        yield f'<ul style="margin:8px 0 0;padding-left:18px;{style}">'
        yield from (f"<li>{plain(line.strip())}</li>" for line in lines)
        yield "</ul>"


def plain(text: str) -> str:
    return escape(safe(text))
