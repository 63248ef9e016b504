# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a declaration writes on a server with systemd, and that nothing of it stays behind."""

from __future__ import annotations

from typing import Any

from testservers import Server

JOB = """
- hosts: siteA
  gather_facts: false
  tasks:
    - serversync.core.sync_job:
        name: passing-by
        partner:
          host: hq
        schedule: {at: "03:15", jitter: 0s}
        elements:
          - {path: /srv/line1/passing, partner_path: /srv/sites/siteA/passing}
        state: STATE
"""
LIMITED = JOB.replace(
    "        state: STATE\n",
    "        limits: {timeout: 1h, nice: 10}\n        on_error: {retries: 1, delay: 10m}\n        state: present\n",
)
FIND = ("find", "/etc", "/run/systemd", "/var/lib/systemd", "-name", "*passing-by*")


def test_a_job_comes_and_goes_without_a_trace(site: Server, play: Any) -> None:
    present, absent = JOB.replace("STATE", "present"), JOB.replace("STATE", "absent")

    play(present, "--check", "--diff")
    assert site.run(*FIND) == ""

    play(present)
    assert site.run("systemctl", "is-active", "serversync@passing-by.timer") == "active\n"
    written = site.run(*FIND).split()
    assert "/etc/serversync/jobs/passing-by.json" in written
    assert "/etc/systemd/system/serversync@passing-by.timer" in written
    assert "changed=0" in play(present)

    play(absent, "--check", "--diff")
    assert sorted(site.run(*FIND).split()) == sorted(written)

    play(absent)
    assert site.run(*FIND) == ""
    assert site.try_run("systemctl", "is-active", "serversync@passing-by.timer").stdout == "inactive\n"
    assert "changed=0" in play(absent)


def test_the_timer_is_what_was_declared(site: Server) -> None:
    shown = site.run("systemctl", "cat", "serversync@line1-documents.timer")
    for line in ("OnCalendar=Mon..Fri *-*-* 02:30:00 Europe/Berlin", "Persistent=true", "FixedRandomDelay=true"):
        assert line in shown.splitlines()
    site.run("systemd-analyze", "verify", "serversync@line1-documents.timer", "serversync@line1-documents.service")
    assert "line1-recipes" not in site.run("systemctl", "list-unit-files", "serversync@*.timer")


def test_systemd_keeps_to_the_limits(site: Server, play: Any) -> None:
    play(LIMITED)
    try:
        shown = site.run("systemctl", "show", "--property=Nice,TimeoutStartUSec", "serversync@passing-by.service")
        # One attempt, and ten minutes for the runner to end by itself.
        assert sorted(shown.split("\n")[:2]) == ["Nice=10", "TimeoutStartUSec=1h 10min"]
    finally:
        play(JOB.replace("STATE", "absent"))
