# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of a run to people: a subject that says it all, a text, and the same for those who read HTML."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from serversync.display import ARROWS, describe, duration, local_time, safe, size, units
from serversync.job import Job

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
    letter = letter_of(job, record, recovered=recovered)
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
        ("Job", job.name),
        ("Comment", job["comment"] or "-"),
        ("Server", server),
        ("Partner", job.partner),
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
    subject = safe(f"[serversync] {server}: {headline}")[:200]
    colour = COLOURS.get(record["state"], FINE)
    sections = [*map(section, record["elements"][:SECTIONS])]
    if len(record["elements"]) > SECTIONS:
        sections.append(Section(f"... and {len(record['elements']) - SECTIONS} elements more", "", []))
    return Letter(subject, headline, colour, facts, sections, bounded(errors, LINES), commands)


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
