# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a run between its attempts, when it is killed, and when the server goes down."""

from __future__ import annotations

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
        on_error: {retries: RETRIES, delay: DELAY}
        notification: {email: [ops@example.com]}
        elements: [{path: /srv/again, partner_path: /srv/sites/siteA/NAME}]
        before: [{unit: test-wait.service}]
        validate_partner: false
        state: STATE
"""
# Waits as long as there is a FIFO, which the test writes to.
WAIT = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'test ! -p /run/test-wait || cat /run/test-wait'\n"
# Kills the runner while the unit before its run waits for it.
KILL = """
import os, subprocess, sys
os.mkfifo('/run/test-wait')
subprocess.run(['systemctl', 'start', '--no-block', sys.argv[1]], check=True)
try:
    with open('/run/test-wait', 'w'):
        kill = ['systemctl', 'kill', '--signal=KILL', '--kill-who=main', sys.argv[1]]
        subprocess.run(kill, check=True)
finally:
    os.unlink('/run/test-wait')
"""


class Again:
    """A job of a name that no test had before: what is followed in its journal is its own."""

    def __init__(self, site: Server, play: Any) -> None:
        self.site = site
        self.play = play
        self.name = f"again-{uuid.uuid4().hex[:8]}"
        self.service, self.recovery = f"serversync@{self.name}.service", f"serversync-recover@{self.name}.service"
        self.timer = f"serversync-recover@{self.name}.timer"

    def declare(self, delay: str, retries: int = 2, state: str = "present") -> None:
        text = PLAY.replace("NAME", self.name).replace("DELAY", delay)
        self.play(text.replace("RETRIES", str(retries)).replace("STATE", state))

    def last(self) -> dict[str, Any]:
        run: dict[str, Any] = self.site.published(self.name)["runs"][0]
        return run

    def start(self, unit: str) -> None:
        self.site.run("systemctl", "start", unit)

    def state(self, unit: str) -> str:
        return self.site.run("systemctl", "show", "--value", "--property=ActiveState", unit).strip()

    def kill(self) -> None:
        self.site.python(KILL, self.service)


def codes(run: dict[str, Any]) -> list[str]:
    return [attempt["errors"][0]["code"] for attempt in run["attempts"] if attempt["errors"]]


@pytest.fixture
def job(site: Server, play: Any) -> Iterator[Again]:
    site.run("mkdir", "-p", "/srv/again")
    site.write("/srv/again/file", "x")
    site.write("/etc/systemd/system/test-wait.service", WAIT)
    site.run("systemctl", "daemon-reload")
    made = Again(site, play)
    yield made
    made.declare("1s", state="absent")
    site.try_run("systemctl", "stop", made.timer)
    site.run("rm", "-r", "/srv/again", "/etc/systemd/system/test-wait.service")
    site.run("systemctl", "daemon-reload")
    site.run("systemctl", "reset-failed")


def test_a_run_that_waits_holds_nothing_and_goes_on(
    site: Server, hq: Server, job: Again, sshd: Callable[[str], None]
) -> None:
    job.declare("1h")
    sshd("stop")
    job.start(job.service)
    run = job.last()
    assert (run["state"], codes(run), run["retry"]["pause"]) == ("waiting", ["unreachable"], 3600)
    assert (job.state(job.service), job.state(job.timer)) == ("inactive", "active")
    (row,) = site.serversync("status", job.name)[1]
    assert (row["state"], row["retry"]) == ("waiting", run["retry"]["at"])
    # As the schedule does it, before it is time.
    job.start(job.service)
    assert job.last() == run
    sshd("start")
    assert site.serversync("plan", job.name)[0] == 0
    code, done = site.serversync("run", job.name)
    assert (code, done["state"], done["run"], codes(done)) == (0, "equal", run["run"], ["unreachable"])
    assert hq.read(f"/srv/sites/siteA/{job.name}/file") == "x"
    # What the timer starts finds nothing to do.
    job.start(job.recovery)
    assert job.last() == done


def test_a_run_that_was_killed_has_its_next_attempt_by_itself(site: Server, job: Again) -> None:
    job.declare("1s")
    job.kill()
    site.follow(job.service, f"Finished {job.service}")
    run = job.last()
    assert (run["state"], codes(run), len(run["attempts"])) == ("equal", ["died"], 2)


def test_a_run_that_was_killed_waits_as_after_any_failure(site: Server, job: Again) -> None:
    job.declare("1h")
    job.kill()
    site.follow(job.recovery, f"Finished {job.recovery}")
    run = job.last()
    assert (run["state"], run["error"]["code"], job.state(job.timer)) == ("waiting", "died", "active")
    # A boot leaves no timer of that kind.
    site.run("systemctl", "stop", job.timer)
    job.start("serversync-recover.service")
    assert (job.last(), job.state(job.timer)) == (run, "active")
    site.run("serversync", "recover", job.name, "--give-up")
    assert (job.last()["state"], job.last()["error"]["code"]) == ("failed", "stopped")
    assert (job.last()["run"], job.state(job.timer)) == (run["run"], "inactive")
    # Whatever root did there, the runner's files are its own.
    assert site.run("find", "/var/lib/serversync", "-maxdepth", "1", "-name", "records*", "-user", "root") == ""


def test_who_died_for_good_is_spoken_for(site: Server, mail: MailServer, job: Again) -> None:
    job.declare("1s", retries=0)
    job.kill()
    site.follow(job.recovery, f"Finished {job.recovery}")
    run = job.last()
    assert (run["state"], run["error"]["code"], len(run["attempts"])) == ("failed", "died", 1)
    assert f"{job.name} FAILED: the runner ended without a word" in mail.mail_of(site, run)["Subject"]


def test_a_run_that_went_with_the_server_goes_on_after_boot(site: Server, job: Again) -> None:
    job.declare("1h")
    # Nobody learns of its death, as where the server has lost its power.
    site.run("systemctl", "mask", "--runtime", job.recovery)
    try:
        job.kill()
        site.follow(job.service, f"Failed to start {job.service}")
    finally:
        site.run("systemctl", "unmask", "--runtime", job.recovery)
    assert job.last()["state"] == "running"
    assert site.run("systemctl", "is-enabled", "serversync-recover.service").strip() == "enabled"
    job.start("serversync-recover.service")
    site.follow(job.service, f"Finished {job.service}")
    run = job.last()
    assert (run["state"], codes(run), len(run["attempts"])) == ("equal", ["died"], 2)


@pytest.mark.usefixtures("job")
def test_what_is_root_has_little_else_to_say(site: Server) -> None:
    for unit in ("serversync-recover@x.service", "serversync-recover.service"):
        assert site.try_run("systemd-analyze", "security", "--threshold=23", unit).returncode == 0
