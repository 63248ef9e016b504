# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mail about a run: composed from its record, handed to the SMTP server that the role configured."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from serversync.display import ARROWS, describe, duration, local_time, safe, size, units
from serversync.job import Job
from serversync.layout import Layout

if TYPE_CHECKING:
    from email.message import EmailMessage

# Seconds for each step of the SMTP conversation; a mail server that hangs must not hold the job.
PATIENCE = 30


# States after which somebody has to come, and those after which nobody has.
BAD = {"failed": "failure", "different": "conflict"}
GOOD = ("equal", "equal_with_warnings")


def event(record: dict[str, Any], past: Iterable[dict[str, Any]], wanted: Collection[str]) -> str | None:
    """Which of the wanted events the record is; the first that fits, as there is one mail a run.

    past: the job's records before it, the newest first. What waits for a person is told once, and again when it is
    not the same any more.
    """
    state = record["state"]
    found = [BAD[state]] if state in BAD else []
    if state in GOOD:
        before = next((run["state"] for run in past if run["state"] in (*BAD, *GOOD)), None)
        found = [*(["recovery"] if before in BAD else []), "success"]
    for one in (*found, "always"):
        if one in wanted and not (one == "conflict" and told_already(record, past)):
            return one
    return None


def waiting(record: dict[str, Any]) -> list[Any]:
    """What of the record waits for a person: by element, the unresolved paths and the guards that stopped it."""
    return [
        [entry["path"], entry["standing"].get("unresolved"), entry.get("unresolved"), entry["guards"]]
        for entry in record["elements"]
        if entry.get("unresolved") or entry["guards"]
    ]


def told_already(record: dict[str, Any], past: Iterable[dict[str, Any]]) -> bool:
    """Whether a mail has gone out about the same, and nothing has been well since."""
    for run in past:
        if run["state"] in GOOD:
            return False
        sent = run["notification"]
        if sent and sent["event"] == "conflict" and not sent["error"]:
            return waiting(run) == waiting(record)
    return False


# Decisions that somebody should read.
OPEN = ("conflict", "unresolved")
OUTCOMES = {
    "failed": "FAILED",
    "different": "LEFT PATHS TO DECIDE",
    "equal": "succeeded",
    "equal_with_warnings": "succeeded",
    "skipped": "was skipped",
}


def compose(job: Job, record: dict[str, Any], sender: str, server: str, *, recovered: bool) -> EmailMessage:
    """One mail for one run: the subject says it all, the body has every element, attempt and error."""
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
    from email.message import EmailMessage
    from email.utils import formatdate, make_msgid

    mail = EmailMessage()
    mail["Subject"] = safe(subject)[:200]
    mail["From"] = sender
    mail["To"] = ", ".join(job["notification"]["email"])
    mail["Date"] = formatdate(localtime=True)
    mail["Message-ID"] = make_msgid("serversync", domain=sender.rpartition("@")[2])
    # Loops of auto-responders end at these.
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content("\n".join(safe(line) for line in lines) + "\n")
    return mail


def tell(
    layout: Layout,
    job: Job,
    record: dict[str, Any],
    past: Callable[[], Sequence[dict[str, Any]]],
    log: Callable[[str], None],
) -> dict[str, Any] | None:
    """Sends the mail that the job asks for; what becomes of it is told in the record, and never fails the run.

    past: see ``event``.
    """
    recipients = job["notification"]["email"]
    this = event(record, past(), job["notification"]["events"]) if recipients else None
    if this is None:
        return None
    result: dict[str, Any] = {"event": this, "to": recipients, "error": None}
    smtp: dict[str, Any] = {}
    try:
        # Most runs have nothing to tell.
        import smtplib

        smtp = json.loads(layout.settings.read_text(encoding="utf-8"))["smtp"]
        mail = compose(job, record, smtp["sender"], os.uname().nodename, recovered=this == "recovery")
        with smtplib.SMTP(smtp["host"], smtp["port"], timeout=PATIENCE) as server:
            refused = server.send_message(mail)
        if refused:
            result["error"] = f"refused for {', '.join(sorted(refused))}"
    except Exception as error:  # whatever it is, it is told, and the run stands as it is
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        where = f"mail server {smtp['host']}:{smtp['port']}" if smtp else str(layout.settings)
        result["error"] = f"{where}: {reason}; check runner_smtp_host and runner_smtp_port of the role"
    log(f"mail to {', '.join(recipients)}: {safe(result['error'] or 'sent')}")
    return result
