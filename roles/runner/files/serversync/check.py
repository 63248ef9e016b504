# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``serversync check``: what would keep a job from running well, found before it runs. Changes nothing."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from serversync import __version__, outbox
from serversync.entry import THERE
from serversync.failure import Failure
from serversync.job import Job, foreign, select
from serversync.layout import Layout
from serversync.log import engine
from serversync.mail import Post
from serversync.outbox import Away
from serversync.serve import about, rsync_version
from serversync.servers import Servers
from serversync.services import MISSING, has_apprise, urls_of, with_apprise
from serversync.synchronize import Synchronization

Finding = dict[str, Any]
# rsync's release that closed the holes known by then (its NEWS of 2026-08-13).
RSYNC_FLOOR = (3, 5, 0)
# A difference of clocks that the round trip of a question does not explain, in seconds.
SKEW = 2.0
LOW_SPACE = 1 << 30


def finding(level: str, issue: str, impact: str = "", remedy: str = "", **more: Any) -> Finding:
    """level: ok, warning or error; more, for programs: the failure, or whether it is told when a job is declared."""
    return {"level": level, "issue": issue, "impact": impact, "remedy": remedy, **more}


def from_text(level: str, text: str, impact: str, **more: Any) -> Finding:
    """Of a text that has its remedy behind a semicolon."""
    issue, _semicolon, remedy = text.partition("; ")
    return finding(level, issue, impact, remedy, **more)


def from_failure(failure: Failure, impact: str) -> Finding:
    return from_text("error", str(failure), impact, failure=failure.as_dict())


def check(layout: Layout, job: Job) -> list[Finding]:
    """The findings for one job, the good ones too."""
    return check_all(layout, [job])[job.name] + mail(layout, job) + urls(layout, job)


def check_all(layout: Layout, jobs: Sequence[Job]) -> dict[str, list[Finding]]:
    """The findings for several jobs but for who is told, by their names; one connection for all of a partner's."""
    found = {job.name: [finding("ok", f"the document of {job.name} is valid"), *apprise(job)] for job in jobs}
    of_partner: dict[str, list[Job]] = {}
    for job in jobs:
        of_partner.setdefault(json.dumps([job["partner"], job["account"]]), []).append(job)
    for several in of_partner.values():
        try:
            with Servers(layout, several[0]) as servers:
                findings = server_findings(several[0], servers)
                for job in several:
                    found[job.name] += findings
                    for element in select(job, None):
                        one = engine(element)(layout, job, element, servers.by_side, run="check", look=True)
                        found[job.name] += element_findings(one)
        except Failure as failure:
            for job in several:
                found[job.name].append(from_failure(failure, "no run can begin"))
    return found


def bound(job: Job) -> list[Finding]:
    """What keeps this server's runner from running the job in a document that is looked at and not installed."""
    problem = foreign(job)
    return [from_text("warning", problem, "no run of it can begin here")] if problem else []


def server_findings(job: Job, servers: Servers) -> list[Finding]:
    findings = []
    if servers.connection or servers.sftp:
        findings.append(finding("ok", f"{job.partner} has the pinned host key and lets this server in"))
    if servers.sftp:
        remedy = "use a server that can, or live with it: docs/sftp.md"
        findings += [finding("warning", *weakness, remedy) for weakness in servers.sftp.weaknesses()]
    else:
        findings += versions("this server", about(), rsync_version())
    if servers.connection:
        asked = time.time()
        partner = servers.connection.introduction()
        answered = time.time()
        findings += versions(job.partner, partner, servers.connection.rsync_version())
        findings += clocks(partner, asked, answered)
    return findings


def versions(server: str, about: dict[str, Any], rsync: str | None) -> list[Finding]:
    found = []
    if not rsync:
        found.append(finding("error", f"rsync is not installed on {server}", "no run can begin", "install it"))
    elif tuple(int(part) for part in re.findall(r"\d+", str(rsync))[:3]) < RSYNC_FLOOR:
        found.append(
            finding(
                "warning",
                f"rsync {rsync} on {server} is older than {'.'.join(map(str, RSYNC_FLOOR))}",
                "security holes known by then are open unless the distribution closed them",
                "upgrade the package rsync",
            )
        )
    else:
        found.append(finding("ok", f"rsync {rsync} on {server}"))
    if about.get("version") != __version__:
        issue = f"the runner on {server} is {about.get('version')}, here it is {__version__}"
        impact, remedy = "they fit, but do not know the same options", "apply the role there"
        found.append(finding("warning", issue, impact, remedy, declared=True))
    return found


def clocks(partner: dict[str, Any], asked: float, answered: float) -> list[Finding]:
    if asked - SKEW <= float(partner["time"]) <= answered + SKEW:
        return [finding("ok", "the clocks agree")]
    skew = float(partner["time"]) - (asked + answered) / 2
    return [
        finding(
            "warning",
            f"the partner's clock is {skew:+.0f} s off",
            "time stamps mislead people, and newer_wins within that difference is a tie",
            "run NTP on both",
            declared=True,
        )
    ]


def element_findings(one: Any) -> list[Finding]:
    element = one.element
    try:
        kind = one.check()
        if isinstance(one, Synchronization):
            one.check_preserve(kind)
        free = {side: one.servers[side].look(one.paths[side])["free_bytes"] for side in one.targets}
    except Failure as failure:
        # What the partner says of a path names no option of a job that it does not know.
        failure.field = failure.field or element.field(THERE)
        return [from_failure(failure, f"{element.path} is not synchronized")]
    found = [
        finding(
            "ok", f"{element.path} and {element.partner_path}: {kind}, readable on the source, writable on the target"
        )
    ]
    for side, left in free.items():
        if left < LOW_SPACE:
            issue = f"{one.paths[side]} on {one.server(side)} has {left >> 20} MiB left"
            found.append(finding("warning", issue, "a run may end without space", "free some", declared=True))
    return found


def mail(layout: Layout, job: Job) -> list[Finding]:
    """Whether the mail server takes mails, and what of the job was not sent; nothing is sent."""
    if not job["notification"]["email"]:
        return []
    impact = "nobody is told how a run ended"
    found = []
    try:
        post = Post.of(layout)
        post.tried()
        found.append(finding("ok", f"{post.place} takes mails"))
    except Away as away:
        found.append(from_text("error", str(away), impact))
    for what, directory in (("waits", layout.outbox), ("was not sent", layout.outbox / "undelivered")):
        for path in sorted(directory.glob("*.json")):
            # What is gone meanwhile is sent, and what is no mail is nobody's.
            with suppress(OSError, ValueError):
                letter = outbox.read(path)
                if letter["job"] == job.name and letter["error"]:
                    found.append(from_text("warning", f"the mail of {letter['run']} {what}: {letter['error']}", impact))
    return found


def apprise(job: Job) -> list[Finding]:
    if not job["notification"]["urls"] or has_apprise():
        return []
    return [from_text("warning", MISSING, "nobody is told by it how a run ended", declared=True)]


def urls(layout: Layout, job: Job) -> list[Finding]:
    """Whether Apprise takes them; no message is sent."""
    if not has_apprise():
        return []
    named, hindrance = urls_of(layout, job)
    if hindrance:
        return [from_text("error", hindrance, "nobody is told by Apprise how a run ended")]
    found = []
    for name, url in named.items():
        error = with_apprise(url, lambda _service: True)
        if error:
            found.append(from_text("error", f"{name}: {error}", "nobody is told by it how a run ended"))
        else:
            found.append(finding("ok", f"{name}: Apprise takes the URL; nothing was sent"))
    return found
