# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A log-in by password between two real servers: systemd hands it to the job's service, and it is seen nowhere."""
# ruff: noqa: S105, S108 - passwords of an account that lives for one test, and where they could be

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from testservers import Server

SECRET = "Tr0ub4dor-planted"
OTHER = "0ther-planted"
PLAY = """
- hosts: siteA
  gather_facts: false
  tasks:
    - serversync.core.sync_job:
        name: by-password
        partner: {host: hq, connection: sftp}
        account: ACCOUNT
        schedule: {at: "03:15", jitter: 0s}
        elements: [{path: /srv/by-password, partner_path: /home/nas/copy}]
        state: STATE
"""
ROUND = """
    - serversync.core.sync_job_info:
        names: by-password
      register: found
    - serversync.core.sync_job:
        name: by-password
        account: "{{ found.jobs[0].account }}"
        omitted: reset
        partner: "{{ found.jobs[0].partner }}"
        elements: "{{ found.jobs[0].elements }}"
        schedule: "{{ found.jobs[0].schedule }}"
      register: again
    - ansible.builtin.assert:
        that: again is not changed and found.jobs[0].account.password == 'kept as a credential'
"""
URLS = """
- hosts: siteA
  gather_facts: false
  tasks:
    - serversync.core.sync_job:
        name: by-password
        partner: {host: siteA, connection: local}
        notification: {events: [success], urls: ["json://Tr0ub4dor-planted@127.0.0.1:1/"]}
        elements: [{path: /srv/by-password, partner_path: /srv/by-password-copy}]
"""
KEPT = "/etc/serversync/credentials/by-password"
UNIT = "serversync@by-password.service"


def text(password: str | None = None, state: str = "present") -> str:
    account = "{user: nas, password: %s}" % (password or "null")
    # Nothing lets the runner's key into that account.
    state = state if password or state == "absent" else f"{state}\n        validate_partner: false"
    return PLAY.replace("ACCOUNT", account).replace("STATE", state)


@pytest.fixture(autouse=True)
def account(site: Server, hq: Server, play: Any) -> Iterator[None]:
    """An account on the partner that is let in by password."""
    hq.run("useradd", "--create-home", "nas")
    hq.run("chpasswd", stdin=f"nas:{SECRET}\n")
    site.run("mkdir", "-p", "/srv/by-password")
    site.write("/srv/by-password/file", "x\n")
    yield
    play(text(state="absent"))
    site.run("rm", "-r", "/srv/by-password")
    hq.run("userdel", "--remove", "nas")


def seen(site: Server, secret: str) -> str:
    """Where on the server the secret is, and how often in its journal."""
    found = site.try_run("grep", "-rlsF", "--devices=skip", secret, "/etc", "/var", "/run", "/root", "/tmp", "/srv")
    journal = site.run("sh", "-c", f"journalctl --output=export | grep -acF {secret} || true")
    return found.stdout + ("" if journal == "0\n" else f"journal {journal}")


def test_it_comes_changes_and_goes_and_is_seen_nowhere(site: Server, hq: Server, play: Any) -> None:
    said = play(text(SECRET), "--check", "--diff", "-vvv") + play(text(SECRET), "--diff", "-vvv")
    assert said.count("+(a secret)") == 2
    assert SECRET not in said
    assert site.run("ls", KEPT) == "account.password.cred\n"
    assert site.run("stat", "--format=%A %U:%G", f"{KEPT}/account.password.cred") == "-rw------- root:root\n"
    site.run("systemd-analyze", "verify", UNIT)
    code, run = site.serversync("run", "by-password")
    assert (code, run["state"]) == (0, "equal"), run["error"]
    assert hq.read("/home/nas/copy/file") == "x\n"
    assert not [one for one in site.serversync("check", "by-password")[1]["by-password"] if one["level"] == "error"]
    assert "changed=0" in play(text(SECRET))
    play(text(SECRET) + ROUND)
    assert seen(site, SECRET) == ""

    said = play(text(OTHER), "--check", "--diff") + play(text(OTHER), "--diff")
    assert said.count("-(a secret)") == said.count("+(another secret)") == 2
    code, run = site.serversync("run", "by-password")
    assert (code, run["error"]["code"], run["error"]["field"]) == (1, "login", "account.password"), run
    assert len(run["attempts"]) == 1
    assert seen(site, OTHER) == ""

    assert "changed=1" in play(text(None))
    assert site.try_run("ls", KEPT).returncode != 0
    assert "Credential" not in site.run("systemctl", "cat", UNIT)
    assert "changed=1" in play(text(SECRET))
    play(text(state="absent"))
    assert site.try_run("ls", KEPT).returncode != 0


def test_a_server_that_cannot_encrypt_keeps_it_for_root_alone(site: Server, hq: Server, play: Any) -> None:
    key = "/var/lib/systemd/credential.secret"
    site.run("mv", key, f"{key}.away")
    try:
        play(text(SECRET))
        assert site.run("stat", "--format=%n %A %U:%G", f"{KEPT}/account.password") == (
            f"{KEPT}/account.password -rw------- root:root\n"
        )
        found = site.serversync("check", "by-password")[1]["by-password"]
        assert [one for one in found if one["issue"].endswith("lets this server in")], found
    finally:
        site.run("mv", f"{key}.away", key)
    # What is the same stays as it is, and a new one is encrypted.
    assert "changed=0" in play(text(SECRET))
    assert seen(site, SECRET) == f"{KEPT}/account.password\n"
    assert "changed=1" in play(text(OTHER))
    assert site.run("ls", KEPT) == "account.password.cred\n"


def test_urls_are_handed_over_in_the_same_way(site: Server, play: Any) -> None:
    site.run("mkdir", "-p", "/srv/by-password-copy")
    site.run("chown", "serversync:", "/srv/by-password-copy")
    try:
        assert SECRET not in play(URLS, "--diff", "-vvv")
        assert "changed=0" in play(URLS)
        assert site.run("ls", KEPT) == "notification.urls.cred\n"
        site.run("systemd-analyze", "verify", UNIT)
        code, run = site.serversync("run", "by-password")
        assert (code, run["state"]) == (0, "equal"), run["error"]
        # With its scheme, which only who was handed it knows; the role was not asked for Apprise.
        [one] = run["notification"]["urls"]
        assert one["url"] == "notification.urls[0] (json)"
        assert "Apprise is not installed for the runner" in one["error"]
        assert seen(site, SECRET) == ""
    finally:
        site.run("rm", "-r", "/srv/by-password-copy")


# A unit of the administrator's that holds a run at its end, when it has used all that it was handed.
HOLD = """
- hosts: siteA
  gather_facts: false
  tasks:
    - ansible.builtin.copy:
        dest: /etc/systemd/system/held-at-its-end.service
        content: |
          [Service]
          Type=oneshot
          ExecStartPre=/bin/dd if=/dev/zero of=/run/held-begun bs=1 count=1
          ExecStart=/bin/cat /run/held
        mode: "0644"
    - ansible.builtin.command: {argv: [mkfifo, "{{ item }}"], creates: "{{ item }}"}
      loop: [/run/held, /run/held-begun]
    - ansible.builtin.systemd_service: {daemon_reload: true}
    - serversync.core.sync_job:
        name: by-password
        notification: {events: [success], urls: ["json://Tr0ub4dor-planted@127.0.0.1:1/"]}
        after: [{unit: held-at-its-end.service}]
"""


def test_a_run_that_is_on_shows_no_secret(site: Server, hq: Server, play: Any) -> None:
    play(text(SECRET) + HOLD)
    try:
        with site.start("serversync", "run", "by-password", "--json") as run:
            site.read("/run/held-begun")
            for server in (site, hq):
                assert server.processes_with(SECRET) == ""
            core = site.run("systemctl", "show", "--property=MainPID", "--value", UNIT).strip()
            assert site.run("sh", "-c", f"grep 'Max core' /proc/{core}/limits").split()[4:6] == ["1", "1"]
            site.write("/run/held", "go on\n")
            told, _errors = run.communicate()
        assert SECRET not in told
        assert seen(site, SECRET) == ""
        assert seen(hq, SECRET) == ""
    finally:
        site.run("systemctl", "stop", "held-at-its-end.service")
        play(text(state="absent"))
        site.run("rm", "-f", "/etc/systemd/system/held-at-its-end.service", "/run/held", "/run/held-begun")
        site.run("systemctl", "daemon-reload")
