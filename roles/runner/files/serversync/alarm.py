# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The look at all jobs for those that are late, of which people are told: one that does not run cannot tell of itself.

A timer has it made again and again, by the runner's account, in a sandbox in which it may write nothing but what it
tells. In system scope a job's URLs are not handed to it: root starts a unit for them that does nothing else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from serversync import job as jobs
from serversync import late, letter, notify, units
from serversync.failure import Failure, InvalidDocument
from serversync.history import published
from serversync.job import Job
from serversync.journal import ERR, NOTICE, WARNING, Entry
from serversync.late import Lateness, Note
from serversync.layout import Layout
from serversync.machine import machine
from serversync.outbox import locked
from serversync.place import RUN_TIME
from serversync.schedule import terms
from serversync.services import URLS, deliver, urls_of, with_apprise
from serversync.status import next_runs

EVENT = "late"
# How long a service that does not take a message is asked again, by each look.
PATIENCE = timedelta(days=1)

Log = Callable[[str], None]


def look(layout: Layout, only: str | None, now: datetime, log: Log) -> bool:
    """Tells of the jobs that are late, of each once; false where somebody could not be told.

    only: of this job alone.
    """
    try:
        # The role makes it, for the account.
        layout.late.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        message = f"{layout.late} cannot be made ({error.strerror}); free space, or apply the role again"
        raise Failure("records", message) from error
    fine = True
    with locked(layout.late):
        names = jobs.names(layout)
        for name in names if only is None else [only]:
            try:
                fine = Look(layout, name, now, log).tell() and fine
            except InvalidDocument as damage:
                # Whom it is to be told, nobody knows any more; its unit fails, and its state is invalid.
                log(Entry(f"{name}: {damage}", "failure", ERR, job=name, code=damage.code))
            except Exception as error:  # whatever it is, it keeps nobody from being told of the others
                log(Entry(f"{name}: {type(error).__name__}: {error}", EVENT, ERR, job=name))
                fine = False
        late.forget_others(layout, names)
    return fine


class Look:
    """At one job. The caller holds the lock of what is noted."""

    def __init__(self, layout: Layout, name: str, now: datetime, log: Log) -> None:
        self.layout = layout
        self.now = now
        self.log = log
        self.job: Job = jobs.load(layout, name)
        self.known: dict[str, Any] = {"runs": [], "good": None}
        self.fine = True

    def say(self, line: str, level: int = NOTICE) -> None:
        # What is less than that its unit keeps out of the journal: that it has looked again is no news.
        level = min(line.level, NOTICE) if isinstance(line, Entry) else level
        self.log(Entry(f"{self.job.name}: {line}", EVENT, level, job=self.job.name))

    def lateness(self) -> Lateness | None:
        self.known |= terms(self.job)
        try:
            found = published(self.layout, self.job.name) or {"runs": []}
            self.known |= {"runs": found["runs"], "good": found.get("good")}
        except InvalidDocument as damage:
            # Each run writes it anew, so there was none since.
            self.say(str(damage), WARNING)
            written = (self.layout.public / f"{self.job.name}.json").lstat().st_mtime
            since = datetime.fromtimestamp(max(written, self.job.written), timezone.utc)
            self.known["declared"] = since.isoformat(timespec="milliseconds")
        return late.lateness(self.known)

    def tell(self) -> bool:
        """Whether all have been told that are to be."""
        notification = self.job["notification"]
        found = self.lateness() if EVENT in notification["events"] else None
        if found is None:
            return True
        name, since = self.job.name, found.since.isoformat()
        note = late.noted(self.layout, name)
        it, noticed = late.as_noticed(found, note, self.now)
        known = note if note and note.since == since else Note(since, noticed, None, {})
        known = known._replace(noticed=noticed)
        if not late.is_late(it, self.known["runs"], self.now):
            if noticed and known != note:
                late.keep(self.layout, name, known)
            return True
        ways = [way for way, asked in ((notify.MAIL, "email"), (URLS, "urls")) if notification[asked]]
        ways = [way for way in ways if way not in known.told]
        if known.tried and abs(self.now - datetime.fromisoformat(known.tried)) > PATIENCE:
            # A mail is tried for as long as there is no room for it; a service that takes none is not there for that.
            ways = [way for way in ways if way != URLS]
        if not ways:
            return True
        # Where this cannot be noted, it would be told again by each look.
        self.note = known._replace(tried=known.tried or self.now.isoformat(timespec="seconds"))
        late.keep(self.layout, name, self.note)
        elapse = next_runs(self.layout).get(name)
        said = letter.compose_late(self.layout, self.job, it, self.known, elapse, self.now)
        self.say(said["subject"].partition(f"{name} ")[2], ERR)
        if notify.MAIL in ways:
            self.mail(it, said)
        if URLS in ways:
            self.ask() if self.layout.privileged and not handed() else self.urls(said)
        return self.fine

    def told(self, way: str) -> None:
        """A death between telling and this has it told twice, in a mail that is called the same."""
        self.note = self.note._replace(told={**self.note.told, way: self.now.isoformat(timespec="seconds")})
        there = late.noted(self.layout, self.job.name)
        # A run that went well meanwhile has forgotten it, and has told those who knew.
        if there and there.since == self.note.since:
            late.keep(self.layout, self.job.name, self.note)

    def mail(self, it: Lateness, said: dict[str, str]) -> None:
        about = {"job": self.job.name, "run": identity(self.job, it), "event": EVENT}
        done = notify.mail(self.layout, {**about, "to": self.job["notification"]["email"], **said}, self.say)
        if done["error"]:
            self.fine = False
        else:
            self.told(notify.MAIL)

    def ask(self) -> None:
        try:
            units.have_told(self.job)
        except Failure as failure:
            self.say(str(failure), ERR)
            self.fine = False

    def urls(self, said: dict[str, str]) -> None:
        urls, hindrance = urls_of(self.layout, self.job)
        fine = True
        for way, url in urls.items():
            if way in self.note.told:
                continue
            error = hindrance or with_apprise(url, lambda one: deliver(one, said["subject"], said["text"], EVENT))
            self.say(f"{way}: {error or 'sent'}", ERR if error else NOTICE)
            if error:
                fine = False
            else:
                self.told(way)
        if fine:
            self.told(URLS)
        self.fine = self.fine and fine


def handed() -> bool:
    """Whether systemd has handed secrets to this process."""
    return "CREDENTIALS_DIRECTORY" in os.environ


def identity(job: Job, it: Lateness) -> str:
    """What stands for a lateness where a run's name does for a run: the same for each look, and on no two servers."""
    since = it.since.astimezone(timezone.utc)
    digest = hashlib.sha256(f"{machine()} {job.name} {since.isoformat()}".encode()).hexdigest()
    return f"{since.strftime(RUN_TIME)}-{digest[:12]}"
