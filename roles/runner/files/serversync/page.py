# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One page about the jobs of a server, or of many: a file that needs nothing else, neither a network nor a script.

Pure: servers as ``report.read`` has them in, HTML out. All that was told by others is escaped, and nothing is loaded.
States are told by a sign and a word, and not by colour alone; what is drawn is also there as a table.
"""

from __future__ import annotations

import hashlib
import shlex
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from serversync import __version__, charts
from serversync._fleet import Server as OfFleet
from serversync._states import SEVERITY
from serversync._topology import Finding, Topology, analyse
from serversync.display import safe
from serversync.jobpart import DAYS, Listed, job_part
from serversync.markup import (
    LEVELS,
    SIGNS,
    WORDS,
    at,
    code,
    name,
    of_state,
    path,
    plain,
    plural,
    sign,
    state_of,
    table,
    when,
    zone,
)
from serversync.pagestyle import SCRIPT, STYLE
from serversync.picture import CIRCLE, MARKERS, drawings

Server = Mapping[str, Any]
Job = Mapping[str, Any]

# A page of more jobs than these tells each one in brief; of fewer than these it needs no filter.
MANY, FILTERED = 100, 8
# Connections that are listed.
MOST_LINES = 2000
# What somebody may have to see to.
OPEN = ("invalid", "failed", "different", "waiting", "skipped")


def page(servers: Sequence[Server]) -> str:
    """servers: at least one; of one that could not be asked only ``server`` and ``problem`` are told."""
    servers = apart(servers)
    found = [(server, job) for server in servers for job in in_order(server)]
    listed = [Listed(number, server, job) for number, (server, job) in enumerate(found)]
    many = len(servers) > 1
    title = f"Synchronization jobs of {f'{len(servers)} servers' if many else plain(servers[0]['server'])}"
    topology = analyse([of_fleet(server, servers) for server in servers if not server["problem"]])
    parts = {
        "To see to": seen_to(servers, listed),
        "Jobs": jobs_part(servers, listed),
        "Open conflicts": conflicts_part(listed, several=many),
        "Connections": connections_part(topology, listed),
        **({"Servers": servers_part(servers)} if many else {}),
    }
    lines = [*head(title), *top(title, servers, listed), contents(parts), '</header>\n<main id="main">']
    for heading, part in parts.items():
        lines += [f'<section aria-labelledby="{anchor(heading)}"><h2 id="{anchor(heading)}">{heading}</h2>', *part]
        lines += ["</section>"]
    return "\n".join([*lines, "</main>", *foot()]) + "\n"


def in_order(server: Server) -> list[Job]:
    return sorted(server.get("jobs", ()), key=lambda job: str(job["job"]))


def apart(servers: Iterable[Server]) -> list[Server]:
    """By their names; of a server that is there twice the newer one, of two of one name both."""
    found: dict[tuple[str, str], Server] = {}
    for server in servers:
        key = (server["server"], server.get("machine", ""))
        if key not in found or when(server.get("made")) > when(found[key].get("made")):
            found[key] = server
    names: Counter[str] = Counter()
    result: list[Server] = []
    for key in sorted(found):
        names[key[0]] += 1
        number = f" ({names[key[0]]})" if names[key[0]] > 1 else ""
        result.append({**found[key], "server": f"{key[0]}{number}"})
    return result


def of_fleet(server: Server, servers: Iterable[Server]) -> OfFleet:
    """The server with its jobs as circles are looked for among them."""
    claimed = Counter(called for one in servers for called in {one["server"], *one.get("aliases", ())})
    return OfFleet(
        server["server"],
        [as_declared(job) for job in server["jobs"] if job["declared"]],
        # A name that several have leads to none of them.
        [called for called in server["aliases"] if claimed[called] == 1],
        server["machine"],
        {one["name"]: one["host"] for one in server["partners"]},
    )


def as_declared(job: Job) -> dict[str, Any]:
    told = job["declared"]
    schedule = {"every": told["every"]} if told["every"] else None
    common = {"name": job["job"], "schedule": schedule, "settings": {}}
    return {**common, **{part: told[part] for part in ("partner", "elements", "accept_circular")}}


# The frame.


def hashed(text: str) -> str:
    """What a policy allows a text in the page by."""
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = f"default-src 'none'; style-src {hashed(STYLE)}; script-src {hashed(SCRIPT)}"


def head(title: str) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f"<meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}; base-uri 'none'; form-action 'none'\">"
    yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
    yield '<meta name="referrer" content="no-referrer">\n<meta name="color-scheme" content="light dark">'
    yield f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>"


def top(title: str, servers: Sequence[Server], listed: Sequence[Listed]) -> Iterator[str]:
    signs = "".join(f'<symbol id="s-{state}" viewBox="0 0 16 16">{shape}</symbol>' for state, shape in SIGNS.items())
    yield '<body>\n<a class="skip" href="#main">Skip to the content</a>'
    yield f'<svg class="signs" width="0" height="0" aria-hidden="true">{signs}{MARKERS}</svg>'
    yield f"<header>\n<h1>{title}</h1>"
    known = [server for server in servers if not server["problem"]]
    if known:
        last = max((server["made"] for server in known), key=when)
        yield f'<p class="soft">As of {at(last)} ({zone(last)}), with the last {DAYS} days</p>'
    counts = Counter(one.state for one in listed)
    counts["silent"] = len(servers) - len(known)
    conflicts = sum(one.job["unresolved"] for one in listed)
    yield f'<ul class="tally"><li><b>{len(listed)}</b> {plural(len(listed), "job")}</li>'
    for state, word in WORDS.items():
        if counts[state]:
            what = f"{plural(counts[state], 'server')} without a report" if state == "silent" else word
            yield f'<li><span class="{state}">{sign(state)}</span> <b>{counts[state]}</b> {what}</li>'
    yield f"<li><b>{conflicts}</b> open {plural(conflicts, 'conflict')}</li></ul>" if conflicts else "</ul>"


def contents(parts: Iterable[str]) -> str:
    items = "".join(f'<li><a href="#{anchor(heading)}">{heading}</a></li>' for heading in parts)
    return f'<nav aria-label="Parts of the page"><ul>{items}</ul></nav>'


def anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def foot() -> Iterator[str]:
    yield f"<footer>Made by serversync {plain(__version__)}. One file; it loads nothing and sends nothing.</footer>"
    yield f"<script>{SCRIPT}</script>\n</body>\n</html>"


# What somebody has to see to.


def seen_to(servers: Sequence[Server], listed: Iterable[Listed]) -> Iterator[str]:
    items = [
        f"<li>{state_of('silent')} <b>{name(server['server'])}</b>: {plain(server['problem'])}</li>"
        for server in servers
        if server["problem"]
    ]
    rank = list(WORDS).index
    waiting = [one for one in listed if one.state in OPEN or one.job.get("late")]
    for one in sorted(waiting, key=lambda one: (rank(one.state), one.number)):
        where = f" on {name(one.server['server'])}" if len(servers) > 1 else ""
        items.append(f"<li>{state_of(one.state)} {link(one)}{where}{''.join(what_is(one))}</li>")
    yield f'<ul class="list">{"".join(items)}</ul>' if items else "<p>Nothing waits for a person.</p>"


def link(one: Listed) -> str:
    return f'<a href="#j{one.number}">{name(one.job["job"])}</a>'


def what_is(one: Listed) -> Iterator[str]:
    """What is known of a job that is not well, and the command that goes on from there."""
    job, quoted = one.job, shlex.quote(one.job["job"])
    error = next((run["error"] for run in job["runs"] if run["state"] == job["state"] and run["error"]), None)
    said = job["problem"] or error
    if said:
        yield f": {plain(said)}"
    if job.get("late"):
        since = f"no good run since {at(job['good'])}" if job["good"] else "no good run yet"
        yield f"<p>It is late: {since}.</p>"
    if job["retry"]:
        yield f"<p>The next attempt is at {at(job['retry'])}.</p>"
    for guard in job["guards"]:
        yield f"<p>{path(guard['element'])} was stopped before its first change: {plain(guard['text'])}</p>"
    if job["guards"]:
        approve = code(f"serversync run {quoted} --approve {shlex.quote(job['plan'])}") if job["plan"] else ""
        plan = code(f"serversync plan {quoted}")
        yield f"<p>See what it would do: {plan}{f', and let it: {approve}' if approve else ''}</p>"
    if job["unresolved"]:
        number = job["unresolved"]
        wait = "waits" if number == 1 else "wait"
        yield f'<p><a href="#c{one.number}">{number} {plural(number, "path")}</a> {wait} for a decision.</p>'
    if one.state == "failed" or (one.state == "different" and not job["unresolved"] and not job["guards"]):
        yield f"<p>The whole record: {code(f'serversync show {quoted}')}</p>"


# The jobs.


def jobs_part(servers: Sequence[Server], listed: Sequence[Listed]) -> Iterator[str]:
    if not listed:
        yield "<p>There are no jobs; declare one with serversync.core.sync_job.</p>"
        return
    yield from legend()
    if len(listed) >= FILTERED:
        yield from filter_of(listed)
    several, brief = len(servers) > 1, len(listed) > MANY
    for server in servers:
        mine = [one for one in listed if one.server is server]
        yield '<div class="of">'
        if several:
            where = "no report" if server["problem"] else f"{len(mine)} {plural(len(mine), 'job')}"
            yield f'<div class="server"><h3>{name(server["server"])}</h3><span class="soft">{where}</span></div>'
        if mine:
            yield '<div class="jobs">'
            for one in mine:
                yield from job_part(one, brief=brief, heading="h4" if several else "h3")
            yield "</div>"
        yield "</div>"


def legend() -> Iterator[str]:
    """What the columns of a strip mean."""
    said = {**{state: WORDS[state] for state in reversed(SEVERITY)}, "none": "no run"}
    yield f'<p class="soft">The last {DAYS} days of each job; a column is the worst that a run of the day came to:</p>'
    yield '<ul class="legend">'
    for state, word in said.items():
        drawn = f'<path fill="currentColor" d="{charts.column(0, state)}"/>'
        size = f'viewBox="0 0 {charts.WIDE} {charts.HIGH}"'
        yield f'<li><svg {size} class="{state}" aria-hidden="true">{drawn}</svg>{word}</li>'
    yield "</ul>"


def filter_of(listed: Iterable[Listed]) -> Iterator[str]:
    states = Counter(one.state for one in listed)
    options = "".join(
        f'<option value="{state}">{word} ({states[state]})</option>' for state, word in WORDS.items() if states[state]
    )
    yield '<div id="filter" role="search" hidden><label>Name, server or partner <input type="search"></label>'
    yield f'<label>State <select><option value="">any</option>{options}</select></label>'
    yield '<output class="soft" aria-live="polite"></output></div>'


# Open conflicts.


def conflicts_part(listed: Sequence[Listed], *, several: bool) -> Iterator[str]:
    having = [one for one in listed if one.job["unresolved"] or one.job["conflicts"]]
    if not having:
        yield "<p>No path waits for a decision.</p>"
    for one in having:
        shown, number = len(one.job["conflicts"]), max(one.job["unresolved"], len(one.job["conflicts"]))
        where = f" on {name(one.server['server'])}" if several else ""
        command = code(f"serversync conflicts {shlex.quote(one.job['job'])}")
        more = f"; {shown} of them are here, {command} has them all" if number > shown else ""
        yield (
            f'<div class="server" id="c{one.number}"><h3>{link(one)}{where}</h3>'
            f'<span class="soft">{number} {plural(number, "path")}{more}</span></div>'
        )
        yield f'<ul class="cards">{"".join(card(one, conflict) for conflict in one.job["conflicts"])}</ul>'


def card(one: Listed, conflict: Mapping[str, Any]) -> str:
    here, there = name(one.server["server"]), plain(one.job["partner"] or "")
    sides = {f"This server, {here}": conflict["this_server"], f"Partner, {there}": conflict["partner"]}
    versions = "".join(
        f"<div><dt>{side}</dt><dd>{plain(version or 'not on record')}</dd></div>" for side, version in sides.items()
    )
    reason = f"<p>{plain(conflict['reason'])}</p>" if conflict["reason"] else ""
    return (
        f'<li class="card"><p>{path(conflict["path"] or ".")} <span class="soft">in</span> {path(conflict["element"])}'
        f'</p><dl class="versions">{versions}</dl>{reason}<p>Decide: {remedy(one.job, conflict)}</p></li>'
    )


def remedy(job: Job, conflict: Mapping[str, Any]) -> str:
    """The command that decides, as a shell takes it."""
    of = ["--element", conflict["element"]] if len(job["elements"]) > 1 else []
    words = ["serversync", "resolve", job["job"], "--use", "this_server", *of, "--", conflict["path"] or "."]
    if safe(" ".join(words)) != " ".join(words):
        # What is shown of such a name is not the name.
        return f"{code('serversync conflicts ' + shlex.quote(job['job']))}, then <code>serversync resolve</code>"
    return f"{code(shlex.join(words))} or <code>--use partner</code>, <code>--use both</code>"


# Connections.


def connections_part(topology: Topology, listed: Sequence[Listed]) -> Iterator[str]:
    missing = sum(not one.job["declared"] for one in listed)
    if missing:
        were = "job was" if missing == 1 else "jobs were"
        yield f"<p>{missing} {were} not looked at: the document cannot be used, or not by who made the report.</p>"
    graph, findings = topology.graph, topology.findings
    if not graph["edges"]:
        yield "<p>Nothing is connected.</p>"
        return
    # All that is wrong and every circle is shown; of the rest, where there is much of it, only that it is there.
    shown = [one for one in findings if one.level == "error" or one.kind in ("circle", "mesh")]
    others = [one for one in findings if one not in shown]
    if not any(one.kind in ("circle", "mesh") for one in shown):
        yield "<p>No circle was found among them.</p>"
    yield from findings_of(shown)
    for title, drawing in drawings(graph):
        yield f'<div class="sheet"><p class="soft">{title}; {CIRCLE} and a dashed line are a part of a circle</p>'
        yield f'<div class="wide" tabindex="0" role="region" aria-label="{title}">{drawing}</div></div>'
    if others:
        counts = Counter(one.level for one in others)
        said = ", ".join(
            f"{counts[level]} {plural(counts[level], word)}" for level, word in LEVELS.items() if counts[level]
        )
        yield f'<details class="more"><summary>{said}</summary>{"".join(findings_of(others))}</details>'
    yield table_of_connections(graph)


def findings_of(findings: Iterable[Finding]) -> Iterator[str]:
    items = [
        f'<li><span class="state {one.level}">{sign(one.level)} {one.level}</span> {plain(one.issue)}'
        f"<p>{plain(one.impact)} {plain(one.remedy)}</p></li>"
        for one in findings
    ]
    if items:
        yield f'<ul class="list">{"".join(items)}</ul>'


def table_of_connections(graph: Mapping[str, Any]) -> str:
    places = {place["id"]: f"{place['server']}:{place['path']}" for place in graph["places"]}
    rows = [
        f'<tr><td class="path">{path(places[edge["source"]])}<td class="way">{"&lt;-&gt;" if edge["both"] else "-&gt;"}'
        f'<td class="path">{path(places[edge["target"]])}<td>{name(edge["job"])}<td>{name(edge["server"])}'
        f"<td>{'part of a circle' if edge['circle'] else ''}"
        for edge in graph["edges"][:MOST_LINES]
    ]
    left = len(graph["edges"]) - len(rows)
    caption = "Connections as a table" + (f", without {left} more" if left else "")
    columns = ("From", "", "To", "Job", "Declared on", "Circle")
    return f'<details class="more"><summary>{caption}</summary>{table(caption, columns, rows)}</details>'


# Servers.


def servers_part(servers: Iterable[Server]) -> Iterator[str]:
    rows = []
    for server in servers:
        begin = f"<tr><th scope=row class=long>{name(server['server'])}"
        if server["problem"]:
            rows.append(f"{begin}<td>{state_of('silent')}<td><td><td class=error>{plain(server['problem'])}")
            continue
        counts = Counter(of_state(job["state"]) for job in server["jobs"])
        said = ", ".join(f"{counts[state]} {word}" for state, word in WORDS.items() if counts[state]) or "no jobs"
        asked = f"{at(server['made'])} {zone(server['made'])}"
        rows.append(f"{begin}<td>{said}<td>{plain(server['runner'])}<td class=way>{asked}<td>")
    yield table("Servers that were asked", ("Server", "Jobs", "Runner", "Asked at", "Problem"), rows)
