# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of a run: composed from its record, handed to the mail server of the role, and to services."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from serversync.display import ARROWS, describe, duration, local_time, safe, size, units
from serversync.job import Job
from serversync.layout import Layout
from serversync.services import deliver, urls_of, with_apprise

# Seconds for each step of the SMTP conversation; a mail server that hangs must not hold the job.
PATIENCE = 30
# One of the ways in which people are told; the others are the names of URLs.
MAIL = "mail"


# States after which somebody has to come, and those after which nobody has.
BAD = {"failed": "failure", "different": "conflict"}
GOOD = ("equal", "equal_with_warnings")


def event(
    record: dict[str, Any], past: Iterable[dict[str, Any]], wanted: Collection[str], way: str = MAIL
) -> str | None:
    """Which of the wanted events the record is; the first that fits, as there is one message a run.

    past: the job's records before it, the newest first. What waits for a person is told once in each way, and again
    when it is not the same any more.
    """
    state = record["state"]
    found = [BAD[state]] if state in BAD else []
    if state in GOOD:
        before = next((run["state"] for run in past if run["state"] in (*BAD, *GOOD)), None)
        found = [*(["recovery"] if before in BAD else []), "success"]
    for one in (*found, "always"):
        if one in wanted and not (one == "conflict" and told_already(record, past, way)):
            return one
    return None


def waiting(record: dict[str, Any]) -> list[Any]:
    """What of the record waits for a person: by element, the unresolved paths and the guards that stopped it."""
    return [
        [entry["path"], entry["standing"].get("unresolved"), entry.get("unresolved"), entry["guards"]]
        for entry in record["elements"]
        if entry.get("unresolved") or entry["guards"]
    ]


def told_already(record: dict[str, Any], past: Iterable[dict[str, Any]], way: str) -> bool:
    """Whether a message has gone out that way about the same, and nothing has been well since."""
    for run in past:
        if run["state"] in GOOD:
            return False
        sent = run["notification"]
        if sent and sent["event"] == "conflict" and went_out(sent, way):
            return waiting(run) == waiting(record)
    return False


def went_out(sent: dict[str, Any], way: str) -> bool:
    if way == MAIL:
        return bool(sent["to"]) and not sent["error"]
    # Records of earlier versions have none.
    return any(one["url"] == way and not one["error"] for one in sent.get("urls", ()))


# Decisions that somebody should read.
OPEN = ("conflict", "unresolved")
OUTCOMES = {
    "failed": "FAILED",
    "different": "LEFT PATHS TO DECIDE",
    "equal": "succeeded",
    "equal_with_warnings": "succeeded",
    "skipped": "was skipped",
}


def compose(job: Job, record: dict[str, Any], *, recovered: bool) -> tuple[str, str]:
    """The subject, which says it all, and the body, which has every element, attempt and error."""
    server = os.uname().nodename
    outcome = "RECOVERED" if recovered else OUTCOMES[record["state"]]
    attempts = len(record["attempts"])
    subject = f"[serversync] {server}: {job.name} {outcome}"
    if record["error"]:
        subject += f" after {attempts} attempts" if attempts > 1 else ""
        # The remedy stands behind the semicolon; it is for the body.
        subject += f": {record['error']['message'].split(';')[0]}"
    lines = [
        f"Job:       {job.name}",
        f"Comment:   {job['comment'] or '-'}",
        f"Server:    {server}",
        f"Partner:   {job.partner}",
        f"Run:       {record['run']} ({record['trigger']}, configuration {record['configuration']})",
        f"Started:   {local_time(record['started'])}, took {duration(record)}",
        f"Attempts:  {attempts}",
        *units(record),
        "",
    ]
    for entry in record["elements"]:
        arrow = ARROWS[entry["direction"]]
        lines += [
            f"{entry['path']} {arrow} {entry['partner_path']}",
            f"  before {entry['state_before'] or 'not seen'}, after {entry['state_after']}: {entry['created']} copied, "
            f"{entry['updated'] + entry['attributes']} updated, {entry['deleted']} deleted, {size(entry['bytes'])}"
            + (f", {entry['lines']} lines appended" if entry["lines"] else ""),
        ]
        if entry["error"]:
            lines.append(f"  error: {describe(entry['error'])}")
        lines += [f"    {problem}" for problem in entry["problems"][1:]]
        lines += [f"  {warning}" for warning in entry["warnings"]]
        lines += [f"  stopped before the first change: {guard}" for guard in entry["guards"]]
        lines += [f"    {one['what']}: {one['path']}: {one['reason']}" for one in entry["paths"] if one["what"] in OPEN]
    if record["error"] and not any(entry["error"] for entry in record["elements"]):
        lines.append(f"error: {describe(record['error'])}")
    lines += ["", f"The whole record:  serversync show {job.name} {record['run']}"]
    if record["state"] == "different":
        lines.append(f"To decide:         serversync conflicts {job.name}; serversync plan {job.name}")
    elif record["state"] == "failed":
        lines.append(f"Once it is mended: serversync run {job.name}")
    return safe(subject)[:200], "\n".join(safe(line) for line in lines) + "\n"


def tell(
    layout: Layout,
    job: Job,
    record: dict[str, Any],
    past: Callable[[], Sequence[dict[str, Any]]],
    log: Callable[[str], None],
) -> dict[str, Any] | None:
    """Sends what the job asks for; what becomes of it is told in the record, and never fails the run.

    past: see ``event``.
    """
    recipients, wanted = job["notification"]["email"], job["notification"]["events"]
    urls, hindrance = urls_of(layout, job)
    if hindrance:
        # Whether or not this run is to be told: the one that is must not be the first to say so.
        log(f"warning: {safe(hindrance)}")
    ways = [*([MAIL] if recipients else []), *urls]
    earlier = past() if ways else []
    told = {way: one for way in ways if (one := event(record, earlier, wanted, way))}
    if not told:
        return None
    this = "conflict" if "conflict" in told.values() else next(iter(told.values()))
    message = compose(job, record, recovered=this == "recovery")
    result: dict[str, Any] = {"event": this, "to": [], "error": None, "urls": []}
    if MAIL in told:
        result |= {"to": recipients, "error": mail(layout, recipients, *message)}
        log(f"mail to {', '.join(recipients)}: {safe(result['error'] or 'sent')}")
    for way, url in urls.items():
        if way in told:
            error = hindrance or with_apprise(url, lambda service: deliver(service, *message, this))
            result["urls"].append({"url": way, "error": error})
            log(f"{way}: {safe(error or 'sent')}")
    return result


def mail(layout: Layout, recipients: Sequence[str], subject: str, body: str) -> str | None:
    """Hands the mail to the mail server; what went wrong."""
    smtp: dict[str, Any] = {}
    try:
        # Most runs have nothing to tell.
        import smtplib
        from email.message import EmailMessage
        from email.utils import formatdate, make_msgid

        smtp = json.loads(layout.settings.read_text(encoding="utf-8"))["smtp"]
        message = EmailMessage()
        message["Subject"] = subject
        message["From"] = smtp["sender"]
        message["To"] = ", ".join(recipients)
        message["Date"] = formatdate(localtime=True)
        message["Message-ID"] = make_msgid("serversync", domain=smtp["sender"].rpartition("@")[2])
        # Loops of auto-responders end at these.
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(body)
        with smtplib.SMTP(smtp["host"], smtp["port"], timeout=PATIENCE) as server:
            refused = server.send_message(message)
    except Exception as error:  # whatever it is, it is told, and the run stands as it is
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        where = f"mail server {smtp['host']}:{smtp['port']}" if smtp else str(layout.settings)
        return f"{where}: {reason}; check runner_smtp_host and runner_smtp_port of the role"
    return f"refused for {', '.join(sorted(refused))}" if refused else None
