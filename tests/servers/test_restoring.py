# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server burns down, and another machine takes its place; then the partner loses a disk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from testservers import STATE, Server

RESTORE = "- ansible.builtin.import_playbook: serversync.core.restore\n"
PAIR = """
- hosts: servers
  gather_facts: false
  roles:
    - role: serversync.core.runner
"""
ABSENT = """
- hosts: siteA
  gather_facts: false
  roles:
    - role: serversync.core.runner
      runner_state: absent
"""
# Beside the directories one that is one file, for which a sandbox is opened otherwise.
PLAN = """
- hosts: siteA
  gather_facts: false
  tasks:
    - serversync.core.sync_job:
        name: line1-plan
        partner: {host: hq}
        elements: [{path: /srv/line1/plan.xml, partner_path: /srv/sites/siteA/plan.xml}]
        state: STATE
"""
DECLARE = """
- hosts: siteA
  gather_facts: false
  tasks:
    - serversync.core.sync_jobs: {jobs: JOBS, purge: true, validate_partner: false}
"""
# What is new on another machine, but for its name; prints the host key.
BURN = """
import pathlib, subprocess, uuid
pathlib.Path("/srv/line1").rename("/srv/line1.burnt")
for path in pathlib.Path("/etc/ssh").glob("ssh_host_*"):
    path.unlink()
pathlib.Path("/etc/machine-id").write_text(uuid.uuid4().hex + "\\n")
subprocess.run(["ssh-keygen", "-q", "-A"], check=True, stdout=subprocess.DEVNULL)
subprocess.run(["systemctl", "restart", "systemd-journald.service"], check=True)
subprocess.run(["systemctl", "reload", "ssh.service"], check=True)
print(pathlib.Path("/etc/ssh/ssh_host_ed25519_key.pub").read_text())
"""
JOBS = ("line1-programs", "line1-documents", "line1-recipes", "line1-plan")
# Where each element is, here and there.
PLACES = {
    "/srv/line1/programs": "/srv/sites/siteA/programs",
    "/srv/line1/doc": "/srv/sites/siteA/doc",
    "/srv/line1/python": "/srv/sites/siteA/python",
    "/srv/line1/recipes": "/srv/recipes",
}
DOOR = "/etc/serversync/serve/siteA.json"
GOING = "/etc/systemd/system/serversync@restore-line1-plan.service.d"
AWAY = """
[Service]
ExecStartPre=+/bin/sh -c 'systemctl stop ssh.service; pkill sshd'
"""


def inputs(**given: object) -> tuple[str, str]:
    return "--extra-vars", json.dumps({f"restore_{name}": value for name, value in given.items()})


def tree(server: Server, path: str) -> list[str]:
    """Without *.tmp, which the jobs leave out; and when the root was changed, which is each server's own."""
    root, *lines = server.tree(path)
    return [re.sub(r'"mtime": \d+, ', "", root), *(line for line in lines if '.tmp"' not in line)]


def document(site: Server, job: str) -> dict[str, Any]:
    """The job as its owner has noted it."""
    known = json.loads(site.read(f"/etc/serversync/jobs/{job}.json"))
    return {name: value for name, value in known.items() if name not in ("version", "machine_id")}


def runs(site: Server, job: str) -> dict[str, Any]:
    code, run = site.serversync("run", job)
    assert (code, run["state"]) == (0, "equal"), run
    return dict(run)


def plan_of(server: Server, path: str) -> tuple[str, str]:
    """The element that is one file."""
    return server.run("stat", "--format=%a %u %g %y", path), server.read(path)


@pytest.fixture
def declared(site: Server, play: Any) -> Iterator[list[dict[str, Any]]]:
    """The jobs, whose elements are the same on both servers; no run of theirs is on."""
    site.write("/srv/line1/plan.xml", "<plan/>\n")
    play(PLAN.replace("STATE", "present"))
    site.run("systemctl", "stop", "serversync@line1-programs.timer")
    site.run("systemctl", "start", "serversync@line1-programs.service")  # or joins one that is on, to its end
    for job in JOBS:
        runs(site, job)
    yield [document(site, job) for job in JOBS]
    site.run("systemctl", "start", "serversync@line1-programs.timer")
    play(PLAN.replace("STATE", "absent"))
    site.run("rm", "-r", "/srv/line1/plan.xml")


class Burnt(NamedTuple):
    """A server that is no more: its jobs, and the trees of their elements without what these leave out."""

    jobs: list[dict[str, Any]]
    trees: dict[str, list[str]]


@pytest.fixture
def burnt(site: Server, play: Any, declared: list[dict[str, Any]]) -> Iterator[Burnt]:
    """Another machine is in its place, and has its name."""
    machine_id = site.read("/etc/machine-id")
    gone = Burnt(declared, {path: tree(site, path) for path in PLACES})
    play(ABSENT)
    try:
        kind, key = site.python(BURN).split()[:2]
        pins = STATE / "known_hosts"
        lines = [line for line in pins.read_text().splitlines() if line.split()[0] != site.name]
        pins.write_text("\n".join([*lines, f"{site.name} {kind} {key}", ""]))
        yield gone
    finally:
        # Secrets of other tests' jobs are encrypted for the machine id, and no job of these has one: systemd throws the
        # server's key away when it is asked for one under another id.
        site.write("/etc/machine-id", machine_id)
        site.run("systemctl", "restart", "systemd-journald.service")
        site.run("rm", "-rf", "/srv/line1")
        site.run("mv", "/srv/line1.burnt", "/srv/line1")
        play(PAIR)
        play(DECLARE.replace("JOBS", json.dumps(declared)))
        site.run("systemctl", "stop", "serversync@line1-programs.timer")
        site.run("systemctl", "start", "serversync@line1-programs.service")
        for job in JOBS:
            runs(site, job)


def test_another_machine_takes_the_place_of_one_that_burned_down(
    site: Server, hq: Server, play: Any, burnt: Burnt
) -> None:
    there = {path: tree(hq, path) for path in PLACES.values()}
    door = hq.read(DOOR)
    given = {"lost": "siteA", "from": "hq", "declarations": burnt.jobs}

    # Nothing is there yet that could plan anything.
    said = " ".join(play(RESTORE, *inputs(**given, open_roots=True), "--check").split())
    for path in ("/srv/line1/programs", "/srv/line1/doc", "/srv/line1/python"):
        assert f" {path}: {len(burnt.trees[path]) - 1} paths, " in said
    assert site.try_run("test", "-e", "/srv/line1").returncode == 1
    assert site.try_run("test", "-e", "/etc/serversync").returncode == 1
    assert hq.read(DOOR) == door

    # It goes away again in the midst of it, which leaves nothing open.
    site.run("mkdir", "-p", GOING)
    site.write(f"{GOING}/away.conf", AWAY)
    with pytest.raises(AssertionError) as gone:
        play(RESTORE, *inputs(**given, open_roots=True, only="line1-plan"))
    site.sshd("start")
    assert "unreachable=1" in str(gone.value)
    assert hq.read(DOOR) == door
    site.run("rm", "-r", GOING)

    said = " ".join(play(RESTORE, *inputs(**given, open_roots=True)).split())
    for path in PLACES:
        assert f" {path}: equal, {len(burnt.trees[path]) - 1} paths, " in said
    for path, lines in burnt.trees.items():
        assert tree(site, path) == lines
    assert {path: tree(hq, path) for path in PLACES.values()} == there
    assert plan_of(site, "/srv/line1/plan.xml") == plan_of(hq, "/srv/sites/siteA/plan.xml")

    # The door is as it was, the jobs are as they were declared, and have nothing to do.
    assert hq.read(DOOR) == door
    assert [document(site, job) for job in JOBS] == burnt.jobs
    assert site.run("ls", "/etc/serversync/jobs").split() == sorted(f"{job}.json" for job in JOBS)
    for job in ("line1-programs", "line1-documents"):
        assert site.run("systemctl", "is-active", f"serversync@{job}.timer") == "active\n"
    site.run("systemctl", "start", "serversync@line1-programs.service")
    for job in JOBS[1:]:
        for element in runs(site, job)["elements"]:
            assert [element[name] for name in ("created", "updated", "attributes", "deleted")] == [0] * 4
    assert {path: tree(hq, path) for path in PLACES.values()} == there
    assert play(PAIR).count("changed=0 ") == 2


@pytest.fixture
def patient(play: Any, declared: list[dict[str, Any]]) -> Iterator[None]:
    """Between attempts the jobs wait for longer than the test takes."""
    jobs = [{**job, "on_error": {**job["on_error"], "delay": "1h", "max_delay": "1h"}} for job in declared]
    play(DECLARE.replace("JOBS", json.dumps(jobs)))
    yield
    play(DECLARE.replace("JOBS", json.dumps(declared)))


@pytest.mark.usefixtures("patient")
def test_a_partner_that_lost_a_disk_gets_it_back_from_the_server_with_the_jobs(
    site: Server, hq: Server, play: Any, sshd: Callable[[str], None]
) -> None:
    """Its runner and its pairings are as before; the jobs' archives know what was there, and stop for that.

    A run waits for the partner, whose next attempt must not come while only a part is back.
    """
    paths = ("/srv/line1/doc", "/srv/line1/python")
    there = {path: tree(hq, PLACES[path]) for path in paths}
    hq.run("rm", "-r", *(PLACES[path] for path in paths))
    code, run = site.serversync("run", "line1-documents")
    assert (code, run["state"]) == (3, "different")
    sshd("stop")
    site.run("systemctl", "start", "serversync@line1-documents.service")
    sshd("start")
    (waits,) = (run["run"] for run in site.published("line1-documents")["runs"] if run["state"] == "waiting")
    given = {"lost": "hq", "from": "siteA", "only": "line1-documents", "deploy": False}
    said = " ".join(play(RESTORE, *inputs(**given)).split())
    assert "line1-documents: equal" in said
    assert {path: tree(hq, PLACES[path]) for path in paths} == there
    assert site.run("systemctl", "is-active", "serversync@line1-documents.timer") == "active\n"
    assert site.run("systemctl", "is-enabled", "serversync@line1-documents.timer") == "enabled\n"
    _code, ended = site.serversync("show", "line1-documents", waits)
    assert (ended["state"], ended["error"]["code"]) == ("failed", "stopped")
    for element in runs(site, "line1-documents")["elements"]:
        assert (element["state_before"], element["created"]) == ("equal", 0)
