# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services of the administrator around a run, where systemd really starts them and only root may."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from testservers import MailServer, Server, text_of

PLAY = """
- hosts: siteA
  gather_facts: false
  tasks:
    - serversync.core.sync_job:
        name: dumped
        partner: {host: hq}
        notification: {email: [ops@example.com]}
        elements: [{path: /srv/dumped, partner_path: /srv/sites/siteA/dumped}]
        before: [{unit: test-dump.service}]
        after: [{unit: test-thaw.service}]
        state: STATE
"""
UNITS = {
    "test-dump.service": "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'date +%%s%%N > /srv/dumped/dump'\n",
    # Root's own, outside every sandbox.
    "test-thaw.service": "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo thawed >> /root/thawed'\n",
    "test-fail.service": "[Service]\nType=oneshot\nExecStart=/bin/false\n",
}
DROP_IN = "/etc/systemd/system/test-dump.service.d/fail.conf"
TARGET = "/srv/sites/siteA/dumped/dump"


def thawed(site: Server) -> int:
    """How often the unit after the runs was started."""
    done = site.try_run("cat", "/root/thawed")
    return len(done.stdout.splitlines())


@pytest.fixture(scope="module")
def units(site: Server) -> Iterator[None]:
    site.run("mkdir", "-p", "/srv/dumped")
    for name, text in UNITS.items():
        site.write(f"/etc/systemd/system/{name}", text)
    site.run("systemctl", "daemon-reload")
    yield
    site.run("rm", "-rf", "/srv/dumped", "/root/thawed", *(f"/etc/systemd/system/{name}" for name in UNITS))
    site.run("systemctl", "daemon-reload")


@pytest.fixture
def declared(units: None, site: Server, play: Any) -> Iterator[None]:
    assert "changed=1" in play(PLAY.replace("STATE", "present"))
    yield
    play(PLAY.replace("STATE", "absent"))


@pytest.fixture
def failing(declared: None, site: Server) -> Iterator[None]:
    """The unit before the run fails."""
    site.run("mkdir", "-p", DROP_IN.rpartition("/")[0])
    site.write(DROP_IN, "[Service]\nExecStart=\nExecStart=/bin/false\n")
    site.run("systemctl", "daemon-reload")
    yield
    site.run("rm", "-r", DROP_IN.rpartition("/")[0])
    site.run("systemctl", "daemon-reload")
    site.run("systemctl", "reset-failed")


@pytest.mark.usefixtures("declared")
def test_they_are_started_by_every_run_and_by_nothing_else(site: Server, hq: Server, play: Any) -> None:
    assert "changed=0" in play(PLAY.replace("STATE", "present"))
    for number in (1, 2):
        code, run = site.serversync("run", "dumped")
        assert (code, run["state"]) == (0, "equal"), run
        assert hq.read(TARGET) == site.read("/srv/dumped/dump")
        assert thawed(site) == number
        assert [one["unit"] for one in run["before"] + run["after"]] == ["test-dump.service", "test-thaw.service"]
    dump = site.read("/srv/dumped/dump")
    for command in ("plan", "check"):
        site.serversync(command, "dumped")
    assert (site.read("/srv/dumped/dump"), thawed(site)) == (dump, 2)
    # As the timer does it.
    site.run("systemctl", "start", "serversync@dumped.service")
    assert site.read("/srv/dumped/dump") != dump
    assert site.published("dumped")["runs"][0]["trigger"] == "schedule"


@pytest.mark.usefixtures("failing")
def test_one_that_fails_before_the_run_is_on_record_and_mailed(site: Server, hq: Server, mail: MailServer) -> None:
    count = thawed(site)
    arrived = hq.try_run("cat", TARGET).stdout
    site.write("/srv/dumped/dump", "must not move")
    code, run = site.serversync("run", "dumped")
    assert (code, run["state"], run["error"]["field"]) == (1, "failed", "before[0].unit"), run
    assert site.published("dumped")["runs"][0]["error"]["code"] == "before"
    assert hq.try_run("cat", TARGET).stdout == arrived
    assert thawed(site) == count + 1
    message = mail.mail_of(site, run)
    assert message["Subject"].startswith("[serversync] siteA: dumped FAILED: test-dump.service: Job for test-dump.")
    assert "before:    test-dump.service: before[0].unit: test-dump.service: Job for" in text_of(message)


@pytest.mark.usefixtures("declared")
def test_a_runner_that_is_killed_does_not_leave_things_frozen(site: Server) -> None:
    count = thawed(site)
    # The unit before the run waits for as long as it takes to kill the runner.
    script = (
        "import os, subprocess\n"
        "argv = ['journalctl', '--lines=0', '--show-cursor', '--quiet']\n"
        "shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout\n"
        "cursor = shown.split('cursor: ')[1].strip()\n"
        "os.makedirs('/run/systemd/system/test-dump.service.d', exist_ok=True)\n"
        "os.mkfifo('/run/test-dump')\n"
        "with open('/run/systemd/system/test-dump.service.d/wait.conf', 'w') as stream:\n"
        "    stream.write('[Service]\\nExecStart=\\nExecStart=/bin/cat /run/test-dump\\n')\n"
        "subprocess.run(['systemctl', 'daemon-reload'], check=True)\n"
        "try:\n"
        "    subprocess.run(['systemctl', 'start', '--no-block', 'serversync@dumped.service'], check=True)\n"
        "    with open('/run/test-dump', 'w'):\n"
        "        kill = ['systemctl', 'kill', '--signal=KILL', '--kill-who=main', 'serversync@dumped.service']\n"
        "        subprocess.run(kill, check=True)\n"
        "        argv = ['journalctl', '--follow', '--after-cursor=' + cursor, '--output=cat', '--unit=test-thaw']\n"
        "        journal = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)\n"
        "        next(line for line in journal.stdout if 'Finished' in line)\n"
        "        journal.kill()\n"
        "finally:\n"
        "    os.unlink('/run/test-dump')\n"
        "    os.unlink('/run/systemd/system/test-dump.service.d/wait.conf')\n"
        "    subprocess.run(['systemctl', 'daemon-reload'], check=True)\n"
        "    subprocess.run(['systemctl', 'reset-failed'], check=True)\n"
    )
    site.python(script)
    assert thawed(site) == count + 1
    site.follow("serversync-recover@dumped.service", "Finished serversync-recover@dumped.service")
    code, run = site.serversync("run", "dumped")
    assert (code, run["attempts"][0]["errors"][0]["code"]) == (0, "died")
    assert [one["unit"] for one in run["before"]] == ["test-dump.service"]


@pytest.mark.usefixtures("declared")
def test_nobody_else_has_units_started(site: Server) -> None:
    count = thawed(site)
    script = (
        "import json, socket\n"
        "with socket.socket(socket.AF_UNIX) as connection:\n"
        "    connection.connect('/run/serversync-units.sock')\n"
        "    connection.sendall(json.dumps({'job': 'JOB', 'phase': 'PHASE'}).encode() + b'\\n')\n"
        "    print(connection.makefile().read())\n"
    )

    def ask(user: str, job: str, phase: str) -> tuple[int, str]:
        text = script.replace("JOB", job).replace("PHASE", phase)
        done = site.try_run("runuser", "-u", user, "--", "python3", "-", stdin=text)
        return done.returncode, done.stdout

    assert ask("nobody", "dumped", "after")[0] != 0
    # The runner's account, should it fall into wrong hands, has what is declared started and nothing else.
    assert "is not one of before, after" in ask("serversync", "dumped", "test-fail.service")[1]
    assert "there is no job" in ask("serversync", "none", "after")[1]
    assert thawed(site) == count
    assert site.try_run("systemd-analyze", "security", "--threshold=20", "serversync-units@x.service").returncode == 0
