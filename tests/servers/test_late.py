# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job that has had no good run for days: the timer that looks, who is told, in which sandbox, and how often."""
# ruff: noqa: S105, S108 - a secret of a service that is none, and where it could be

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _schedule
from testservers import MailServer, Server, text_of

SECRET = "Tr0ub4dor-late"
TIMER, SERVICE = "serversync-late.timer", "serversync-late.service"
OUTBOX, NOTES = "/var/lib/serversync/outbox", "/var/lib/serversync/late"
PLAY = """
- hosts: siteA
  gather_facts: false
  tasks:
    - serversync.core.sync_job:
        name: NAME
        comment: Nobody runs it
        partner: {host: siteA, connection: local}
        schedule: {at: "03:15"}
        notification: NOTIFICATION
        elements: [{path: /srv/late, partner_path: /srv/late-copy}]
        validate_partner: false
        state: STATE
"""
BY_MAIL = {"email": ["ops@example.com"], "events": ["late", "recovery"]}
# As if nothing had happened to the job for so many days: its document, and what is published of it.
LAST_WEEK = """
import json, os, sys, time
from datetime import datetime, timedelta, timezone
name, days = sys.argv[1], int(sys.argv[2])
then = datetime.now(timezone.utc) - timedelta(days=days)
os.utime(f"/etc/serversync/jobs/{name}.json", (then.timestamp(), then.timestamp()))
path = f"/var/lib/serversync/public/{name}.json"
if os.path.exists(path):
    with open(path, "r+") as stream:
        known = json.load(stream)
        known["good"] = then.isoformat()
        stream.seek(0)
        stream.truncate()
        json.dump(known, stream)
"""


class Job:
    """One of a name that no test had before: what is followed in its journal is its own."""

    def __init__(self, site: Server, play: Any) -> None:
        self.site = site
        self.play = play
        self.name = f"late-{uuid.uuid4().hex[:8]}"

    def declare(self, notification: dict[str, Any], state: str = "present") -> None:
        text = PLAY.replace("NAME", self.name).replace("STATE", state)
        self.play(text.replace("NOTIFICATION", json.dumps(notification)))

    def last_good(self, days: int) -> None:
        """The last good run was so many days ago."""
        self.site.python(LAST_WEEK, self.name, str(days))

    def run(self) -> dict[str, Any]:
        code, run = self.site.serversync("run", self.name)
        assert (code, run["state"]) == (0, "equal"), run["error"]
        return dict(run)

    def said(self, unit: str = SERVICE) -> list[str]:
        """What the unit has said of the job."""
        lines = self.site.run("journalctl", "--output=cat", f"--unit={unit}").splitlines()
        return [line for line in lines if self.name in line]

    def row(self) -> dict[str, Any]:
        [row] = self.site.serversync("status", self.name)[1]
        return dict(row)


@pytest.fixture
def job(site: Server, play: Any) -> Iterator[Job]:
    site.run("mkdir", "-p", "/srv/late", "/srv/late-copy")
    site.run("chown", "serversync:", "/srv/late-copy")
    site.write("/srv/late/file", "x")
    made = Job(site, play)
    yield made
    made.declare({}, state="absent")
    site.run("rm", "-r", "/srv/late", "/srv/late-copy")


@pytest.fixture
def now(site: Server) -> Iterator[None]:
    """The timer elapses when it is started, and not a quarter of an hour later."""
    directory = f"/run/systemd/system/{TIMER}.d"
    site.run("mkdir", "-p", directory)
    site.write(f"{directory}/now.conf", "[Timer]\nOnActiveSec=1s\nAccuracySec=1s\n")
    site.run("systemctl", "daemon-reload")
    yield
    site.run("rm", "-r", directory)
    site.run("systemctl", "daemon-reload")
    site.run("systemctl", "restart", TIMER)


@pytest.mark.usefixtures("now")
def test_the_timer_has_people_told_once_and_the_next_good_run_says_that_it_is_over(
    site: Server, mail: MailServer, job: Job
) -> None:
    job.declare(BY_MAIL)
    assert job.run()["notification"] is None
    site.run("systemctl", "start", SERVICE)
    assert (job.said(), job.row()["late"]) == ([], False)

    job.last_good(days=3)
    assert job.row()["late"] is True
    assert site.run("systemctl", "is-enabled", TIMER) == "enabled\n"
    site.run("systemctl", "restart", TIMER)
    site.follow(SERVICE, f"{job.name}: mail to ops@example.com: in the outbox")
    site.follow("serversync-notify.service", f"{job.name}, lateness ")
    (message,) = [message for message in mail.mails().values() if job.name in message["Subject"]]
    assert f"{job.name} LATE: no good run since " in message["Subject"]
    assert message["Subject"].endswith(" (3 days)")
    text = text_of(message)
    assert "after 2d without a good run" in text
    # systemd was asked from inside the sandbox.
    assert re.search(r"^Next run: +\d{4}-\d\d-\d\d \d\d:", text, re.MULTILINE), text
    assert f"journalctl -u serversync@{job.name}.service" in text

    # What was told is known by each look, also after a boot, which leaves these files.
    told = job.said()
    site.run("systemctl", "start", SERVICE)
    assert job.said() == told
    note = site.run("stat", "--format=%A %U:%G", NOTES, f"{NOTES}/{job.name}.json")
    assert note == "drwx------ serversync:serversync\n-rw------- serversync:serversync\n"

    run = job.run()
    assert run["notification"]["event"] == "recovery"
    assert f"{job.name} RECOVERED" in mail.mail_of(site, run)["Subject"]
    assert job.run()["notification"] is None
    assert job.row()["late"] is False


def test_a_job_that_was_never_well_and_one_that_is_paused(site: Server, job: Job) -> None:
    job.declare(BY_MAIL)
    job.last_good(days=1)
    site.run("systemctl", "start", SERVICE)
    assert job.said() == []
    site.run("systemctl", "stop", "serversync-notify.path")
    try:
        job.last_good(days=40)
        site.run("systemctl", "start", SERVICE)
        (path,) = site.run("find", OUTBOX, "-name", "*.late.json").split()
        letter = json.loads(site.read(path))
        assert (letter["job"], letter["event"]) == (job.name, "late")
        assert "no good run since the job was changed, " in letter["subject"]
        assert site.run("stat", "--format=%U:%G", path) == "serversync:serversync-notify\n"
        site.run("rm", path)
    finally:
        site.run("systemctl", "start", "serversync-notify.path")
    document = f"/etc/serversync/jobs/{job.name}.json"
    site.write(document, site.read(document).replace('"enabled": true', '"enabled": false'))
    job.last_good(days=80)
    told = job.said()
    site.run("systemctl", "start", SERVICE)
    assert (job.said(), job.row()["late"]) == (told, False)


def test_services_are_told_by_a_unit_that_has_the_urls_of_one_job(site: Server, job: Job) -> None:
    job.declare({"urls": [f"json://{SECRET}@127.0.0.1:1/"], "events": ["late"]})
    job.last_good(days=3)
    site.run("systemctl", "start", SERVICE)
    unit = f"serversync-late-{job.name}.service"
    # Which service it is only the secret says; nothing listens there, or no Apprise is installed.
    site.follow(unit, f"{job.name}: notification.urls[0] (json): ")
    options = ("-rlsF", "--devices=skip", "--exclude-dir=credentials", SECRET)
    assert site.try_run("grep", *options, "/etc", "/var", "/run", "/root", "/tmp").stdout == ""
    assert site.run("sh", "-c", f"journalctl --output=export | grep -acF {SECRET} || true") == "0\n"
    # As it was not told, it is by a later look.
    note = json.loads(site.read(f"{NOTES}/{job.name}.json"))
    assert note["told"] == {}
    assert note["tried"]


def test_who_looks_writes_what_is_told_and_nothing_else(site: Server) -> None:
    site.run("systemd-analyze", "verify", SERVICE, TIMER)
    assert site.try_run("systemd-analyze", "security", "--threshold=23", SERVICE).returncode == 0
    script = (
        "import os, sys\n"
        "for path in ('/srv', '/var/lib/serversync', '/var/lib/serversync/public', '/etc/serversync/jobs'):\n"
        "    assert not os.access(path, os.W_OK), path\n"
        f"for path in ('{OUTBOX}', '{NOTES}'):\n"
        "    assert os.access(path, os.W_OK), path\n"
        "for path in ('/etc/serversync/keys/id_ed25519', '/var/lib/serversync/records.sqlite'):\n"
        "    assert not os.access(path, os.R_OK), path\n"
        "for path in ('/var/lib/serversync/archives', '/etc/serversync/credentials'):\n"
        "    assert not os.access(path, os.R_OK) or not os.listdir(path), path\n"
    )
    lines = site.run("systemctl", "cat", SERVICE).splitlines()
    kept = [line for line in lines[lines.index("[Service]") + 1 :] if re.match(r"(?!Type|Exec|Timeout)[A-Z]\w+=", line)]
    properties = [f"--property={line}" for line in kept]
    site.run("systemd-run", "--quiet", "--pipe", "--wait", "--collect", *properties, "--", "python3", "-c", script)
    refused = site.try_run("serversync", "late")
    assert (refused.returncode, "systemctl start serversync-late.service" in refused.stderr) == (2, True)


def test_no_job_is_late_by_itself_when_clocks_are_set_back(site: Server) -> None:
    """The hour that comes twice has no runs, as systemd's own calendar says."""
    for every in ("1m", "15m", "1h", "2h"):
        lines = _schedule.on_calendar(every=every, timezone="Europe/Berlin")
        asked = ["--iterations=300", "--base-time=2026-10-24 23:30:00 UTC", *lines]
        shown = site.run("env", "TZ=Europe/Berlin", "systemd-analyze", "calendar", *asked)
        times = re.findall(r"\(in UTC\): \w+ (\S+ \S+) UTC", shown)
        runs = sorted(datetime.fromisoformat(one) for one in times)
        gap = max((later - earlier).total_seconds() for earlier, later in pairwise(runs))
        period = _schedule.seconds_of(every)
        assert gap == period + 3600, every
        assert gap <= _schedule.seconds_of(_schedule.default_late_after(period))
