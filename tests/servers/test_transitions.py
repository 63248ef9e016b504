# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every option of a job from one value to another and back, in four steps, where systemd carries out what is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.serversync.core.plugins.module_utils._job import JOB, Field
from testservers import Server

HERE = "/srv/moving/one"
TIMER, SERVICE = "serversync@moving.timer", "serversync@moving.service"
CREATED = {
    "comment": "Moves",
    "partner": {"host": "hq"},
    "schedule": {"at": "03:15", "jitter": "0s"},
    "elements": [{"path": HERE, "partner_path": "/srv/sites/siteA/moving/one"}],
    "validate_partner": False,
}
TWO = [*CREATED["elements"], {"path": "/srv/moving/two", "kind": "log", "requires": [HERE]}]  # type: ignore[misc]
THREE = [{"path": "/srv/moving/three", "partner_path": "/srv/sites/siteA/moving/three"}]
#: What is declared of the job, in this order; and what systemd says of it then: unit, property, value.
TRANSITIONS: list[tuple[dict[str, Any], list[tuple[str, str, str]]]] = [
    (CREATED, [(TIMER, "ActiveState", "active"), (SERVICE, "Description", "Synchronization job moving: Moves")]),
    ({"comment": "Moves on"}, [(SERVICE, "Description", "Synchronization job moving: Moves on")]),
    ({"comment": None}, [(SERVICE, "Description", "Synchronization job moving")]),
    ({"partner": {"port": 2222, "connection": "sftp"}, "account": {"user": "nas", "private_key_file": "/etc/k"}}, []),
    ({"account": {"private_key_file": None}}, []),
    ({"partner": {"port": None, "connection": None}, "account": None}, []),
    ({"schedule": {"every": "15m"}}, [(TIMER, "Persistent", "yes")]),
    ({"schedule": {"calendar": "Mon..Fri 02:30", "timezone": "Europe/Berlin", "catch_up": False}}, []),
    ({"schedule": {"at": ["02:30", "14:30"], "days": ["sat"], "catch_up": True}}, [(TIMER, "Persistent", "yes")]),
    ({"schedule": {"day_of_month": [1, 15], "jitter": "5m"}}, [(TIMER, "RandomizedDelayUSec", "5min")]),
    ({"enabled": False}, [(TIMER, "ActiveState", "inactive")]),
    ({"enabled": True}, [(TIMER, "ActiveState", "active")]),
    ({"schedule": None}, [(TIMER, "ActiveState", "inactive")]),
    ({"schedule": {"at": "03:15"}}, [(TIMER, "ActiveState", "active")]),
    ({"on_error": {"retries": 1, "delay": "10m"}, "limits": {"timeout": "1h", "nice": 10, "parallel": 2}}, []),
    ({"notification": {"email": ["ops@example.com"], "events": ["failure", "always"]}}, []),
    ({"notification": {"events": ["late"], "late_after": "72h"}}, []),
    ({"notification": {"late_after": None}}, []),
    ({"on_error": {"backoff": 1.5, "max_delay": "20m"}}, []),
    ({"on_error": {"backoff": None, "max_delay": None}}, []),
    ({"on_error": None, "notification": None, "limits": {"nice": None}}, [(SERVICE, "Nice", "0")]),
    ({"settings": {"direction": "both", "conflict": "keep_both", "delete": "synced", "exclude": "*.tmp"}}, []),
    ({"settings": {"direction": None, "max_delete": 9, "max_change": "5%", "include": "*.st", "conflict": None}}, []),
    ({"settings": {"preserve": ["times", "links"], "owners": "numbers", "verify": "checksum"}}, []),
    ({"settings": {"verify": "metadata", "verify_every": 3}}, []),
    ({"settings": {"bandwidth_limit": "20M", "compress": "never", "keep_versions": "30d", "versions_max": "1G"}}, []),
    ({"settings": None, "limits": None}, []),
    ({"elements": TWO}, []),
    ({"elements": [{**TWO[0], "settings": {"direction": "from_partner", "exclude": "*.tmp"}}, TWO[1]]}, []),
    ({"elements": [{**TWO[0], "settings": {"delete": "synced"}}, TWO[1]]}, []),
    ({"elements": [{**TWO[0], "previous_path": "/srv/moving/before"}]}, []),
    ({"before": [{"unit": "dump.service"}], "after": [{"unit": "thaw.service"}]}, []),
    ({"before": None, "after": None, "accept_circular": "it is watched"}, []),
    ({"accept_circular": None}, []),
    ({"copy_from": "moving", "name": "moving-copy", "elements": THREE}, []),
    ({"name": "moving-copy", "state": "absent"}, []),
    ({"name": "moving-on", "previous_name": "moving"}, [(TIMER, "LoadState", "not-found")]),
    ({"name": "moving", "previous_name": "moving-on"}, [(TIMER, "ActiveState", "active")]),
    ({**CREATED, "omitted": "reset"}, [(SERVICE, "Description", "Synchronization job moving: Moves")]),
    ({"state": "absent"}, [(TIMER, "LoadState", "not-found")]),
]
#: How a task is carried out, or what has tests of its own here: secrets, a pin that has to be the pairing's, and units
#: of one's own account.
ELSEWHERE = {"stop_timeout", "scope", "account.password", "notification.urls", "partner.host_key"}

TASKS = """
    - name: {title}
      block:
        - {{serversync.core.sync_job: {job}, check_mode: true, diff: true, register: planned}}
        - {{serversync.core.sync_job: {job}, diff: true, register: done}}
        - {{serversync.core.sync_job: {job}, diff: true, register: again}}
        - {{serversync.core.sync_job: {job}, check_mode: true, diff: true, register: still}}
        - ansible.builtin.assert:
            that:
              - planned is changed and done is changed
              - planned.diff == done.diff and planned.job == done.job and planned.commands == done.commands
              - again is not changed and again.commands == [] and again.job == done.job
              - still is not changed
"""
SHOWN = """
        - ansible.builtin.command: {{argv: {show}}}
          changed_when: false
          register: shown
          failed_when: shown.stdout != expected
          vars: {{expected: {value}}}
"""


def leaves(field: Field = JOB, path: str = "") -> Iterator[str]:
    """Every option by its path: those of entries of lists as those of one, an element's settings as one option."""
    parts = field.element.parts if field.element else field.parts
    if not parts or field.partial:
        yield path
        return
    for part in parts:
        yield from leaves(part, f"{path}.{part.name}".strip("."))


def given(value: Any, path: str = "") -> Iterator[str]:
    yield path
    if isinstance(value, dict):
        for name, one in value.items():
            yield from given(one, f"{path}.{name}".strip("."))
    elif isinstance(value, list):
        for one in value:
            yield from given(one, path)


def test_no_option_is_forgotten() -> None:
    options = set(leaves())
    said = {path for change, _shown in TRANSITIONS for path in given({"name": "moving", **change})}
    assert options - said == ELSEWHERE
    # And none is said that there is not, but for those of one element and what holds others.
    assert {path for path in said if not path.startswith("elements.settings.") and path not in options} <= {
        path[: path.rindex(".")] for path in options if "." in path
    } | {""}


@pytest.fixture
def gone(site: Server, play: Any) -> Iterator[None]:
    yield
    play(
        """
- hosts: siteA
  gather_facts: false
  tasks:
    - serversync.core.sync_job: {name: "{{ item }}", state: absent}
      loop: [moving, moving-on, moving-copy]
"""
    )


@pytest.mark.usefixtures("gone")
def test_every_transition_in_four_steps(site: Server, play: Any) -> None:
    """Check mode tells what an apply does, and does it not; a second apply and a second look change nothing."""
    text = "- hosts: siteA\n  gather_facts: false\n  tasks:\n"
    for change, shown in TRANSITIONS:
        text += TASKS.format(title=json.dumps(json.dumps(change)[:150]), job=json.dumps({"name": "moving", **change}))
        for unit, name, value in shown:
            show = ["systemctl", "show", "--value", f"--property={name}", unit]
            text += SHOWN.format(show=json.dumps(show), value=json.dumps(value))
    play(text)
    assert site.run("find", "/etc", "/run/systemd", "/var/lib/systemd", "-name", "*moving*") == ""
