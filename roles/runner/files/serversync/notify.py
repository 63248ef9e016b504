# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is told of a run: by mail, which goes through the outbox, and by services, which are told at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from serversync import late, outbox
from serversync.failure import Failure
from serversync.job import Job
from serversync.journal import ERR, INFO, WARNING, Entry
from serversync.layout import Layout
from serversync.services import deliver, urls_of, with_apprise

# One of the ways in which people are told; the others are the names of URLs.
MAIL = "mail"


# States after which somebody has to come, and those after which nobody has.
BAD = {"failed": "failure", "different": "conflict"}
GOOD = ("equal", "equal_with_warnings")


def event(
    record: dict[str, Any],
    past: Iterable[dict[str, Any]],
    wanted: Collection[str],
    way: str = MAIL,
    late: Collection[str] = (),
) -> str | None:
    """Which of the wanted events the record is; the first that fits, as there is one message a run.

    past: the job's records before it, the newest first. What waits for a person is told once in each way, and again
    when it is not the same any more. late: the ways in which it was told that the job is late.
    """
    state = record["state"]
    found = [BAD[state]] if state in BAD else []
    if state in GOOD:
        before = next((run["state"] for run in past if run["state"] in (*BAD, *GOOD)), None)
        found = [*(["recovery"] if before in BAD or way in late else []), "success"]
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


def tell(
    layout: Layout,
    job: Job,
    record: dict[str, Any],
    past: Callable[[], Sequence[dict[str, Any]]],
    log: Callable[[str], None],
) -> dict[str, Any] | None:
    """Sees to what the job asks for; what becomes of it is told in the record, and never fails the run.

    past: see ``event``.
    """
    note = late.noted(layout, job.name) if record["state"] in GOOD else None
    told = tell_of(layout, job, record, past, log, note.told if note else ())
    if note:
        # Nobody is owed a word on it any more.
        late.forget(layout, job.name)
    return told


def tell_of(
    layout: Layout,
    job: Job,
    record: dict[str, Any],
    past: Callable[[], Sequence[dict[str, Any]]],
    log: Callable[[str], None],
    told_late: Collection[str],
) -> dict[str, Any] | None:
    """As ``tell``; told_late: see ``event``."""
    recipients, wanted = job["notification"]["email"], job["notification"]["events"]
    urls, hindrance = urls_of(layout, job)
    if hindrance:
        # Whether or not this run is to be told: the one that is must not be the first to say so.
        log(entry(record, f"warning: {hindrance}", WARNING))
    ways = [*([MAIL] if recipients else []), *urls]
    earlier = [as_it_went(layout, run) for run in past()] if ways else []
    told = {way: one for way in ways if (one := event(record, earlier, wanted, way, told_late))}
    if not told:
        return None
    this = "conflict" if "conflict" in told.values() else next(iter(told.values()))
    # Most runs have nothing to tell.
    from serversync.letter import compose

    letter = compose(job, record, recovered=this == "recovery")
    result: dict[str, Any] = {"event": this, "to": [], "error": None, "waits": None, "urls": []}
    if MAIL in told:
        result |= {
            "to": recipients,
            **mail(layout, {"job": job.name, "run": record["run"], "event": this, "to": recipients, **letter}, log),
        }
    for way, url in urls.items():
        if way in told:
            said = letter["subject"], letter["text"], this
            error = hindrance or with_apprise(url, lambda service, said=said: deliver(service, *said))  # type: ignore[misc]
            result["urls"].append({"url": way, "error": error})
            log(entry(record, f"{way}: {error or 'sent'}", ERR if error else INFO))
    return result


def entry(about: dict[str, Any], line: str, level: int = INFO) -> Entry:
    """about: the run's record, or its mail."""
    return Entry(line, "notification", level, job=about["job"], run=about["run"])


def as_it_went(layout: Layout, run: dict[str, Any]) -> dict[str, Any]:
    """The record with what became of its mail after it was handed over."""
    sent = run["notification"]
    if not sent or not sent["to"] or sent["error"]:
        return run
    return {**run, "notification": {**sent, "error": outbox.refusal(layout.outbox, name_of(run, sent["event"]))}}


def name_of(record: dict[str, Any], this: str) -> str:
    """What a mail is called in the outbox."""
    return f"{record['run']}.{this}"


def mail(layout: Layout, letter: dict[str, Any], log: Callable[[str], None]) -> dict[str, str | None]:
    """Puts a mail into the outbox, and sends it where no service does. error: why it will not be sent; waits: why it
    has not been, as far as this process knows."""
    to, name = ", ".join(letter["to"]), name_of(letter, letter["event"])
    try:
        outbox.post(layout, name, letter)
    except Failure as failure:
        log(entry(letter, f"mail to {to}: {failure}", ERR))
        return {"error": str(failure), "waits": None}
    if sends(layout):
        log(entry(letter, f"mail to {to}: in the outbox"))
        return {"error": None, "waits": None}
    from serversync.mail import Post

    try:
        left = outbox.send(layout.outbox, lambda one: Post.of(layout).deliver(one), log)
    except Exception as error:  # whatever it is, the run stands as it is, and the mail is where it was
        log(entry(letter, f"mail to {to}: {type(error).__name__}: {error}", WARNING))
        return {"error": None, "waits": f"{type(error).__name__}: {error}"}
    return {"error": outbox.refusal(layout.outbox, name), "waits": left.reason if left else None}


def sends(layout: Layout) -> bool:
    """Whether a service sends what is in the outbox."""
    try:
        return bool(json.loads(layout.settings.read_text(encoding="utf-8")).get("outbox_service"))
    except (OSError, ValueError, AttributeError):
        return False
