# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many jobs in one call, reading them back, and running one as a task, where systemd carries it out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from testservers import Server

PLAY = """
- hosts: siteA
  gather_facts: false
  vars:
    base:
      partner: {host: hq}
      schedule: {at: "03:15", jitter: 0s}
      settings: {bandwidth_limit: BANDWIDTH}
    lines:
      - name: passing-one
        elements: [{path: /srv/passing/one, partner_path: /srv/sites/siteA/passing/one}]
      - name: passing-two
        elements: [{path: /srv/passing/two, partner_path: /srv/sites/siteA/passing/two}]
  tasks:
TASKS
"""
DECLARE = """
    - serversync.core.sync_jobs:
        jobs: "{{ [base] | product(lines) | map('combine', recursive=True) | list }}"
"""
ROUND = """
    - serversync.core.sync_job_info:
      register: found
    - serversync.core.sync_jobs:
        jobs: "{{ found.jobs }}"
        purge: true
      register: again
    - ansible.builtin.assert:
        that:
          - again is not changed
          - "['passing-one', 'passing-two'] is subset(found.jobs | map(attribute='name') | list)"
"""
RUN = """
    - serversync.core.sync_job_run:
        name: passing-one
      check_mode: true
      register: looked
    - serversync.core.sync_job_run:
        name: passing-one
      register: first
    - serversync.core.sync_job_run:
        name: passing-one
      register: second
    - serversync.core.sync_job_info:
        names: passing-one
      register: after
    - ansible.builtin.assert:
        that:
          - looked is changed and looked.plan.elements[0].counts.new == 1 and looked.run is none
          - first is changed and first.run.state == 'equal' and first.run.elements[0].created == 1
          - second is not changed and second.run.run != first.run.run
          - after.status[0].last_run.run == second.run.run and after.status[0].next_run is not none
"""
TOO_LONG = """
    - serversync.core.sync_job_run:
        name: passing-two
        timeout: 3s
      register: cut
      failed_when: cut.failure.code != 'timeout'
"""
REFUSED = """
    - serversync.core.sync_job:
        name: passing-three
        partner: {host: hq}
        elements: [{path: /srv/passing/one, partner_path: /srv/elsewhere}]
      register: tried
      failed_when: tried.failure.code != 'outside_roots' or tried.failure.path != 'elements[0].partner_path'
    - serversync.core.sync_job:
        name: passing-three
        partner: {host: hq}
        elements: [{path: /srv/passing/one, partner_path: /srv/elsewhere}]
        validate_partner: false
    - serversync.core.sync_job_run:
        name: passing-three
      register: refused
      failed_when: refused.failure.code != 'outside_roots' or refused.run.state != 'failed'
"""
RENAME = """
    - serversync.core.sync_job_run:
        name: passing-one
    - serversync.core.sync_job:
        name: passing-four
        previous_name: passing-one
      register: renamed
    - serversync.core.sync_job_run:
        name: passing-four
      register: next
    - serversync.core.sync_job_info:
        names: passing-four
      register: after
    - ansible.builtin.assert:
        that:
          - renamed is changed and renamed.commands | select('contains', 'rename') | list | length == 1
          - next is not changed and next.run.elements[0].state_before == 'equal'
          - after.status[0].last_run.run == next.run.run
"""
STOP = """
    - serversync.core.sync_job_run:
        name: passing-two
        wait: false
    - serversync.core.sync_job:
        name: passing-two
        comment: Edited while it runs
        stop_timeout: 1s
      register: edited
    - ansible.builtin.assert:
        that:
          - edited.commands[0] == ['systemctl', 'stop', 'serversync@passing-two.service']
"""
REMOVE = """
    - serversync.core.sync_job:
        name: "{{ item }}"
        state: absent
      loop: [passing-one, passing-two, passing-three, passing-four]
"""
UNITS = ("systemctl", "list-units", "--all", "--plain", "--no-legend", "serversync@passing-*")


def text(tasks: str, bandwidth: str = "null") -> str:
    return PLAY.replace("BANDWIDTH", bandwidth).replace("TASKS", tasks)


@pytest.fixture(scope="module")
def trees(site: Server, hq: Server) -> Iterator[None]:
    site.run("mkdir", "-p", "/srv/passing/one", "/srv/passing/two")
    site.write("/srv/passing/one/main.st", "x := 1;\n")
    site.run("truncate", "--size=64M", "/srv/passing/two/image")
    yield
    site.run("rm", "-r", "/srv/passing")
    hq.run("rm", "-rf", "/srv/sites/siteA/passing")


@pytest.fixture(autouse=True)
def declared(trees: None, play: Any) -> Iterator[None]:
    yield
    play(text(REMOVE))


def test_many_jobs_in_one_call(site: Server, play: Any) -> None:
    play(text(DECLARE), "--check", "--diff")
    assert site.run(*UNITS) == ""
    assert "changed=1" in play(text(DECLARE))
    assert site.run(*UNITS).count(".timer") == 2
    assert "changed=0" in play(text(DECLARE))
    play(text(ROUND))


def test_a_run_is_a_task(site: Server, hq: Server, play: Any) -> None:
    play(text(DECLARE + RUN))
    assert hq.read("/srv/sites/siteA/passing/one/main.st") == "x := 1;\n"
    # In the job's own unit, whose sandbox and account it has.
    assert "Finished serversync@passing-one.service" in site.run(
        "journalctl", "--output=cat", "--unit=serversync@passing-one.service"
    )


def test_a_run_that_takes_too_long_is_stopped(site: Server, play: Any) -> None:
    play(text(DECLARE + TOO_LONG, bandwidth="1M"))
    assert site.try_run("systemctl", "is-active", "serversync@passing-two.service").stdout.strip() != "active"
    assert site.published("passing-two")["runs"][0]["error"]["code"] == "stopped"


def test_a_terminal_sees_how_far_the_unit_is(site: Server, play: Any) -> None:
    play(text(DECLARE, bandwidth="1M"))
    site.python(
        "import os, pty\n"
        "process, terminal = pty.fork()\n"
        "if not process:\n"
        "    os.environ.update(TERM='xterm', COLUMNS='140', LINES='40')\n"
        "    os.execvp('serversync', ['serversync', 'run', 'passing-two'])\n"
        "shown = b''\n"
        "while not (b'/srv/passing/two' in shown and b'copying' in shown and b' of 64.0 MiB' in shown):\n"
        "    shown += os.read(terminal, 65536)\n"
        # What the unit does is not this terminal's, which may go.
        "os.close(terminal)\n"
        "os.waitpid(process, 0)\n"
    )
    site.run("systemctl", "stop", "serversync@passing-two.service")
    assert site.published("passing-two")["runs"][0]["error"]["code"] == "stopped"


def test_a_job_that_is_edited_while_it_runs(site: Server, play: Any) -> None:
    play(text(DECLARE + STOP, bandwidth="1M"))
    assert site.published("passing-two")["runs"][0]["error"]["code"] == "stopped"


def test_another_name_is_no_first_run(site: Server, play: Any) -> None:
    play(text(DECLARE + RENAME))
    assert site.run("find", "/etc", "/var/lib/serversync", "-name", "*passing-one*") == ""
    assert site.run("find", "/var/lib/serversync", "-not", "-user", "serversync") == ""
    assert [run["job"] for run in site.published("passing-four")["runs"][:2]] == ["passing-four", "passing-one"]


def test_a_failed_run_fails_the_task_with_its_record(play: Any) -> None:
    play(text(REFUSED))
