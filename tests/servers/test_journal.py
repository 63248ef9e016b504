# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd's journal has of a run in its sandbox: entries with fields, of the units that they are about."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testservers import MailServer, Server

PLAY = """
- hosts: siteA
  gather_facts: false
  tasks:
    - serversync.core.sync_job:
        name: NAME
        partner: {host: hq}
        on_error: {retries: 0}
        notification: {email: [ops@example.com]}
        settings: {conflict: no_winner}
        elements:
          - {path: /srv/told/a, partner_path: /srv/sites/siteA/NAME}
          - {path: /srv/told/missing, partner_path: /srv/sites/siteA/NAME-missing}
        validate_partner: false
        state: STATE
"""


class Told:
    """A job of a name that no test had before, of which one element is missing; and what the journal has of it."""

    def __init__(self, site: Server, play: Any) -> None:
        self.site = site
        self.play = play
        self.name = f"told-{uuid.uuid4().hex[:8]}"
        self.service = f"serversync@{self.name}.service"

    def declare(self, state: str = "present") -> None:
        self.play(PLAY.replace("NAME", self.name).replace("STATE", state))

    def last(self) -> dict[str, Any]:
        run: dict[str, Any] = self.site.published(self.name)["runs"][0]
        return run

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        self.site.run("journalctl", "--sync")
        return [json.loads(line) for line in self.site.run("journalctl", "--output=json", *matches).splitlines()]

    def events(self, *matches: str) -> list[tuple[Any, ...]]:
        names = ("SERVERSYNC_EVENT", "SERVERSYNC_ELEMENT", "SERVERSYNC_STATE", "SERVERSYNC_CODE", "PRIORITY")
        return [tuple(entry.get(name) for name in names) for entry in self.entries(*matches)]


@pytest.fixture
def job(site: Server, play: Any) -> Iterator[Told]:
    made = Told(site, play)
    site.run("mkdir", "-p", "/srv/told/a")
    site.write("/srv/told/a/file", "here")
    made.declare()
    yield made
    made.declare(state="absent")
    site.run("rm", "-r", "/srv/told")
    site.run("systemctl", "reset-failed")


def test_a_run_in_its_sandbox_tells_the_journal_what_it_is_about(
    site: Server, hq: Server, mail: MailServer, job: Told
) -> None:
    there = f"/srv/sites/siteA/{job.name}"
    hq.run("install", "--directory", "--owner=serversync", there)
    hq.write(f"{there}/file", "there")
    site.run("systemctl", "start", job.service)
    run = job.last()
    assert (run["state"], run["error"]["code"]) == ("failed", "missing")
    of_unit = (f"_SYSTEMD_UNIT={job.service}", f"SERVERSYNC_RUN={run['run']}")
    assert job.events(*of_unit) == [
        ("run_started", None, None, None, "6"),
        ("element_ended", "/srv/told/a", "different", None, "4"),
        ("conflict", "/srv/told/a", "different", None, "4"),
        ("element_ended", "/srv/told/missing", "failed", "missing", "3"),
        ("run_ended", None, "failed", "missing", "3"),
        ("notification", None, None, None, "6"),
    ]
    entries = job.entries(*of_unit)
    account = site.run("id", "--user", "serversync").strip()
    # What the journal itself says of who sent them, and what nobody else can say.
    assert {(one["_TRANSPORT"], one["_UID"]) for one in entries} == {("journal", account)}
    assert {(one["SYSLOG_IDENTIFIER"], one["SERVERSYNC_JOB"]) for one in entries} == {("serversync", job.name)}
    ended = [entry for entry in entries if entry["SERVERSYNC_EVENT"] == "run_ended"]
    assert job.entries(f"MESSAGE_ID={ended[0]['MESSAGE_ID']}", f"SERVERSYNC_JOB={job.name}") == ended
    # As people read it.
    shown = site.run("journalctl", "--output=cat", f"--unit={job.service}").splitlines()
    assert [line for line in shown if "systemd" not in line and job.service not in line][:5] == [
        entry["MESSAGE"] for entry in entries[:5]
    ]
    mail.mail_of(site, run)
    sent = job.entries("_SYSTEMD_UNIT=serversync-notify.service", f"SERVERSYNC_RUN={run['run']}")
    assert [(one["SERVERSYNC_EVENT"], one["SERVERSYNC_JOB"]) for one in sent] == [("notification", job.name)]
    assert sent[0]["MESSAGE"].endswith("mail to ops@example.com sent")


def test_an_entry_that_is_the_last_word_of_its_process_is_of_its_unit(site: Server, job: Told) -> None:
    path = f"/etc/serversync/jobs/{job.name}.json"
    document = site.read(path)
    site.write(path, "{")
    # Each of these says one thing and ends.
    for _time in range(5):
        assert site.try_run("systemctl", "start", job.service).returncode != 0
    site.write(path, document)
    assert (
        job.events(f"_SYSTEMD_UNIT={job.service}", f"SERVERSYNC_JOB={job.name}")
        == [("failure", None, None, "invalid_document", "3")] * 5
    )


def test_an_attempt_that_has_another_behind_it_is_no_alarm(
    site: Server, job: Told, sshd: Callable[[str], None]
) -> None:
    text = PLAY.replace("retries: 0", "retries: 1, delay: 1h").replace("NAME", job.name).replace("STATE", "present")
    job.play(text)
    sshd("stop")
    site.run("systemctl", "start", job.service)
    run = job.last()
    assert run["state"] == "waiting"
    matches = (f"_SYSTEMD_UNIT={job.service}", f"SERVERSYNC_RUN={run['run']}")
    assert [(one[0], one[2], one[3], one[4]) for one in job.events(*matches)] == [
        ("run_started", None, None, "6"),
        ("element_ended", "failed", "unreachable", "4"),
        ("element_ended", "failed", "unreachable", "4"),
        ("attempt_ended", "failed", "unreachable", "4"),
    ]
    site.run("serversync", "recover", job.name, "--give-up")
