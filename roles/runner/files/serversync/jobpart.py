# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job on a page: its line with a strip of days, and behind that its elements, charts, days and runs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from serversync import charts
from serversync._states import SEVERITY
from serversync.display import ARROWS, size
from serversync.markup import WORDS, at, name, of_state, path, plain, state_of, table, took

Server = Mapping[str, Any]
Job = Mapping[str, Any]
# A day's name, and what is known of it.
Days = Sequence[tuple[str, Mapping[str, Any]]]

DAYS = 90
# Runs that are listed in brief.
FEW_RUNS = 5
COLUMNS_OF_DAYS = ("Day", "Runs", "Longest", "All together", "Files copied", "Deleted", "Conflicts", "Volume")
COLUMNS_OF_RUNS = (
    *("Began", "State", "Started by", "Took", "Attempts"),
    *("Files copied", "Deleted", "Conflicts", "Volume", "Error"),
)


class Listed(NamedTuple):
    """A job on the page; number: what its anchors are called by."""

    number: int
    server: Server
    job: Job

    @property
    def state(self) -> str:
        return of_state(self.job["state"])


def job_part(one: Listed, *, brief: bool, heading: str) -> Iterator[str]:
    """brief: without the days on which all went well, and with the last runs alone."""
    job, server = one.job, one.server
    days = window(server["made"], job["days"])
    last = next(iter(job["runs"]), None)
    words = plain(" ".join((job["job"], server["server"], job["partner"] or "", job["comment"] or "")).lower())
    partner = f' <span class="soft">with {plain(job["partner"])}</span>' if job["partner"] else ""
    paused = ' <span class="soft">(paused)</span>' if job["enabled"] is False else ""
    yield (
        f'<details class="job" data-state="{one.state}" data-words="{words}"><summary>{state_of(one.state)}'
        f"<span><{heading}>{name(job['job'])}</{heading}>{partner}{paused}</span>{strip_of(days)}"
        f'<span class="when soft">{at(last["started"]) if last else "no run yet"}</span></summary>'
    )
    yield f'<div class="inner" id="j{one.number}">'
    yield from facts(job)
    yield from elements(job)
    yield from figures(days)
    yield from table_of_days(days, brief=brief)
    yield from table_of_runs(job, brief=brief)
    yield "</div></details>"


def window(made: str, known: Sequence[Mapping[str, Any]]) -> Days:
    """The days that are shown, the oldest first; the last is the one on which the report was made there."""
    last = datetime.fromisoformat(made).date()
    of = {one["day"]: one for one in known}
    days = [(last - timedelta(days=back)).isoformat() for back in reversed(range(DAYS))]
    return [(day, of.get(day, {})) for day in days]


def worst(told: Mapping[str, Any]) -> str:
    return next((state for state in reversed(SEVERITY) if told.get(state)), "none")


def in_words(told: Mapping[str, Any]) -> str:
    """How the runs of a day ended."""
    return ", ".join(f"{told[state]} {WORDS[state]}" for state in reversed(SEVERITY) if told.get(state)) or "no run"


def strip_of(days: Days) -> str:
    counts = Counter(worst(told) for _day, told in days)
    said = [f"{counts[state]} {WORDS[state]}" for state in reversed(SEVERITY) if counts[state]]
    said += [f"{counts['none']} without a run"] if counts["none"] else []
    marks = [charts.Mark(worst(told), f"{day}: {in_words(told)}") for day, told in days]
    return charts.strip(marks, f"Of {len(days)} days up to {days[-1][0]}: {', '.join(said)}")


def facts(job: Job) -> Iterator[str]:
    paused = " (paused)" if job["enabled"] is False else ""
    found = {
        "Comment": plain(job["comment"] or ""),
        "Schedule": f"{plain(job['schedule'])}{paused}" if job["schedule"] else "",
        "Next run": at(job["next"]) if job["next"] and not paused else "",
        "Next attempt": at(job["retry"]) if job["retry"] else "",
        "Last good run": at(job["good"]) if job["good"] else "none on record" if job["runs"] else "",
        "Problem": plain(job["problem"] or ""),
    }
    rows = "".join(f"<div><dt>{what}</dt><dd>{text}</dd></div>" for what, text in found.items() if text)
    yield f'<dl class="facts">{rows}</dl>'


def elements(job: Job) -> Iterator[str]:
    rows = [
        f'<tr><td class="path">{path(one["path"])}<td class="way">{plain(ARROWS.get(one["direction"], "?"))}'
        f'<td class="path">{path(one["partner_path"])}<td>{state_of(of_state(one["state"]))}'
        for one in job["elements"]
    ]
    if rows:
        yield table("Elements", ("This server", "", "Partner", "State"), rows)


def figures(days: Days) -> Iterator[str]:
    longest = [float(told.get("longest") or 0) for _day, told in days]
    moved = [float(told.get("bytes") or 0) for _day, told in days]
    if any(told for _day, told in days):
        yield f'<div class="charts">{figure(days, longest, "Longest run of each day", took(max(longest)))}'
        yield f"{figure(days, moved, 'Volume copied on each day', size(int(max(moved))))}</div>"


def figure(days: Days, values: Sequence[float], what: str, most: str) -> str:
    if not any(values):
        return f"<figure><figcaption>{what}: nothing in {len(days)} days</figcaption></figure>"
    peak = days[values.index(max(values))][0]
    axis = "".join(f"<span>{days[place][0]}</span>" for place in (0, len(days) // 2, -1))
    return (
        f"<figure><figcaption>{what}, up to {most}</figcaption>{charts.bars(values, f'{what}, up to {most} on {peak}')}"
        f'<div class="axis" aria-hidden="true">{axis}</div></figure>'
    )


def table_of_days(days: Days, *, brief: bool) -> Iterator[str]:
    known = [(day, told) for day, told in reversed(days) if worst(told) != "none"]
    shown = [(day, told) for day, told in known if not brief or worst(told) != "equal"]
    rows = []
    for day, told in shown:
        spent = [took(told.get("longest") or 0), took(told.get("seconds") or 0)]
        counts = [told.get(what) or 0 for what in ("copied", "deleted", "conflicts")]
        numbers = [*spent, *counts, size(told.get("bytes") or 0)]
        cells = "".join(f"<td class=number>{number}" for number in numbers)
        rows.append(f"<tr><th scope=row>{day}<td>{in_words(told)}{cells}")
    if known:
        left = len(known) - len(shown)
        caption = "Days with runs as a table" + (f", without {left} on which all were equal" if left else "")
        drawn = table(caption, COLUMNS_OF_DAYS, rows, range(2, 8)) if rows else ""
        yield f'<details class="more"><summary>{caption}</summary>{drawn}</details>'


def table_of_runs(job: Job, *, brief: bool) -> Iterator[str]:
    rows = []
    for run in job["runs"][: FEW_RUNS if brief else None]:
        spent = "-" if run["seconds"] is None else took(run["seconds"])
        counts = [run[what] for what in ("attempts", "copied", "deleted", "conflicts")]
        cells = "".join(f"<td class=number>{number}" for number in (spent, *counts, size(run["bytes"])))
        begin = f"<tr><th scope=row>{at(run['started'])}<td>{state_of(of_state(run['state']))}"
        rows.append(f"{begin}<td>{plain(run['trigger'])}{cells}<td class=error>{plain(run['error'] or '')}")
    if rows:
        caption = f"The last {len(rows)} runs" if len(rows) > 1 else "The last run"
        yield table(caption, COLUMNS_OF_RUNS, rows, range(3, 9))
