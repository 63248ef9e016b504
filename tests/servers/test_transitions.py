# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every option of a job from one value to another and back, in four steps, where systemd carries out what is said.

After each its files are, byte for byte, those of a job that is declared so at once.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _job, _store
from ansible_collections.serversync.core.plugins.module_utils._job import JOB, KEPT, Field
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
OWN = [
    {"conflict": "keep_both", "max_delete": 9, "max_change": "5%", "include": "*.st"},
    {"preserve": ["times"], "owners": "numbers", "verify": "checksum"},
    {"verify_every": 3, "keep_versions": "1d", "versions_max": "1G", "bandwidth_limit": "1M", "compress": "never"},
]
THREE = [{"path": "/srv/moving/three", "partner_path": "/srv/sites/siteA/moving/three"}]
#: In the place of the key that hq is paired with.
PINNED = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
SECRET = "json://plant-ed@127.0.0.1:1/"  # noqa: S105 - of no service
#: What is declared of the job, in this order; and what systemd says of it then: unit, property, value.
TRANSITIONS: list[tuple[dict[str, Any], list[tuple[str, str, str]]]] = [
    (CREATED, [(TIMER, "ActiveState", "active"), (SERVICE, "Description", "Synchronization job moving: Moves")]),
    ({"comment": "Moves on"}, [(SERVICE, "Description", "Synchronization job moving: Moves on")]),
    ({"comment": None}, [(SERVICE, "Description", "Synchronization job moving")]),
    ({"partner": {"port": 2222, "connection": "sftp"}, "account": {"user": "nas", "private_key_file": "/etc/k"}}, []),
    ({"account": {"private_key_file": None}}, []),
    ({"account": {"password": SECRET}}, []),
    ({"partner": {"port": None, "connection": None}, "account": None}, []),
    ({"partner": {"host_key": [PINNED]}}, []),
    ({"partner": {"host_key": None}}, []),
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
    ({"notification": {"urls": [SECRET]}, "validate_partner": False}, []),
    ({"notification": {"urls": None}}, []),
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
    *(({"elements": [{**TWO[0], "settings": own}]}, []) for own in OWN),
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
#: How a task is carried out, and whose the jobs are, of which there is more below.
ELSEWHERE = {"stop_timeout", "scope"}

#: On a server: appends what there is of the jobs, and what it is told, to a file.
RECORD = """
import json, os, stat, sys
found = {}
for root in sys.argv[2:]:
    for directory, _directories, names in os.walk(root):
        for path in (os.path.join(directory, name) for name in names):
            if "moving" not in path[len(root):]:
                continue
            info = os.lstat(path)
            link = stat.S_ISLNK(info.st_mode)
            text = os.readlink(path) if link else open(path, "rb").read().decode("utf-8", "replace")
            found[path] = [None if link else oct(stat.S_IMODE(info.st_mode)), info.st_gid, text]
with open(sys.argv[1], "a") as stream:
    stream.write(json.dumps({"told": json.load(sys.stdin), "files": found}) + "\\n")
"""
STATES = "/var/tmp/moving-states"  # noqa: S108 - on a server of the test, whose only user it is
ROOTS = ["/etc/serversync", "/etc/systemd/system"]
RECORDED = """
        - ansible.builtin.command: {{argv: {argv}, stdin: "{{{{ {told} | to_json }}}}"}}
          changed_when: false
"""
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
    """Every option by its path: those of entries of lists as those of one."""
    parts = field.element.parts if field.element else field.parts
    if not parts:
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
    # And none is said that there is not, but for what holds others.
    assert said - options <= {path[:end] for path in options for end in range(len(path)) if path[end] == "."} | {""}


def files_of(job: dict[str, Any], place: _store.Layout, machine_id: str, group: int | None, encrypted: bool) -> Any:
    """What there is of a job that was declared so at once: mode, group and text of each file."""
    job, problems = _job.normalise(job)
    assert problems == []
    names = dict.fromkeys(_job.secrets_in(job), (SECRET, encrypted))
    text = _job.document_text(_job.bound(job, machine_id))
    wanted = _store.wanted_files(place, job, text, group, names).items()
    found = {path: [oct(file.mode), file.gid, file.text] for path, file in wanted if file.text is not None}
    if place.timer in found:
        found[place.wanted] = [None, group and 0, place.timer]
    return found


def told_alike(found: dict[str, Any]) -> dict[str, Any]:
    """Without what an encrypted secret is, of which no two are the same."""
    return {path: [*one[:2], None if path.endswith(".cred") else one[2]] for path, one in found.items()}


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
    site.run("rm", "-f", STATES)


@pytest.fixture
def pinned(site: Server) -> str:
    """The key that hq is paired with."""
    lines = [line.split() for line in site.read("/etc/serversync/pairings/hq.known_hosts").splitlines()]
    return next(" ".join(words[1:3]) for words in lines if len(words) > 2 and words[1] == "ssh-ed25519")


@pytest.mark.usefixtures("gone")
def test_every_transition_in_four_steps(site: Server, play: Any, pinned: str) -> None:
    """Check mode tells what an apply does, and does it not; a second apply and a second look change nothing."""
    text = "- hosts: siteA\n  gather_facts: false\n  tasks:\n"
    for change, shown in TRANSITIONS:
        job = json.dumps({"name": "moving", **change}).replace(PINNED, pinned)
        text += TASKS.format(title=json.dumps(json.dumps(change)[:150]), job=job)
        text += RECORDED.format(argv=json.dumps(["python3", "-c", RECORD, STATES, *ROOTS]), told="done.job")
        for unit, name, value in shown:
            show = ["systemctl", "show", "--value", f"--property={name}", unit]
            text += SHOWN.format(show=json.dumps(show), value=json.dumps(value))
    play(text)
    assert site.run("find", "/etc", "/run/systemd", "/var/lib/systemd", "-name", "*moving*") == ""

    machine_id, group = (
        site.read("/etc/machine-id").strip(),
        int(site.run("getent", "group", "serversync").split(":")[2]),
    )
    jobs: dict[str, Any] = {}
    states = site.read(STATES).splitlines()
    assert len(states) == len(TRANSITIONS)
    for line, (change, _shown) in zip(states, TRANSITIONS, strict=True):
        state = json.loads(line)
        name = change.get("name", "moving")
        jobs.pop(change.get("previous_name"), None)
        jobs[name] = state["told"]
        jobs = {name: job for name, job in jobs.items() if job}
        encrypted = any(path.endswith(".cred") for path in state["files"])
        expected: dict[str, Any] = {}
        for name, job in jobs.items():
            expected.update(files_of(job, _store.layout("system", name, {}), machine_id, group, encrypted))
        assert told_alike(state["files"]) == told_alike(expected), change


# --- of a user -------------------------------------------------------------------------------------------------

UNIT = """
[Service]
Type=oneshot
ExecStart=/bin/true
"""
#: As user@.service, which would want a log-in.
MANAGER = """
[Service]
User=moving
Type=notify
Environment=XDG_RUNTIME_DIR=/run/user/{number}
ExecStart=/usr/lib/systemd/systemd --user
Delegate=yes
KillMode=mixed
"""
MANAGERS = "/etc/systemd/system/manager-of-a-user.service"
OF_A_USER = """
- hosts: siteA
  gather_facts: false
  become: true
  become_user: moving
  vars: {ansible_pipelining: true}
  tasks:
"""
LIST = """
    - serversync.core.sync_jobs: {{scope: user, validate_partner: false, purge: true, jobs: {jobs}}}
      check_mode: {check_mode}
      register: tried
      failed_when: tried.failure is not none or {wrong}
"""


@pytest.fixture
def home(site: Server) -> Iterator[str]:
    """The home of an account whose systemd manager runs, and that has what the role leaves of a runner."""
    site.run("useradd", "--create-home", "--shell", "/bin/sh", "moving")
    number = site.run("id", "-u", "moving").strip()
    site.run("install", "--directory", "--owner=moving", "--group=moving", "--mode=0700", f"/run/user/{number}")
    config = "/home/moving/.config"
    site.run("mkdir", "-p", f"{config}/serversync", f"{config}/systemd/user")
    site.write(f"{config}/serversync/runner.json", "{}\n")
    site.write(f"{config}/systemd/user/serversync@.service", UNIT)
    site.run("chown", "--recursive", "moving:", "/home/moving")
    site.write(MANAGERS, MANAGER.format(number=number))
    site.run("systemctl", "daemon-reload")
    site.run("systemctl", "start", "manager-of-a-user.service")
    yield config
    site.run("systemctl", "stop", "manager-of-a-user.service")
    site.run("rm", MANAGERS)
    site.run("systemctl", "daemon-reload")
    site.run("rm", "-r", f"/run/user/{number}")
    site.run("userdel", "--remove", "moving")
    site.run("rm", "-f", STATES)


def forms() -> list[dict[str, Any]]:
    """The job after each transition, whole, with the secrets that it has."""
    whole: list[dict[str, Any]] = []
    job: dict[str, Any] | None = None
    for change, _shown in TRANSITIONS:
        if change.get("state") == "absent" or "copy_from" in change:
            continue
        given = {name: one for name, one in change.items() if name not in ("previous_name", "validate_partner")}
        job, problems = _job.declare({**given, "name": "moving", "scope": "user"}, job)
        assert problems == []
        text = json.dumps({name: one for name, one in job.items() if name != "version"})
        whole.append(json.loads(text.replace(json.dumps(KEPT), json.dumps(SECRET))))
    return whole


def with_paths_of_their_own(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """So many jobs with the paths of one would contend for them."""
    texts = (json.dumps(job).replace('"/srv/', f'"/srv/{number}/') for number, job in enumerate(jobs))
    return [dict(json.loads(text), name=f"moving{number}") for number, text in enumerate(texts)]


def test_every_transition_of_a_user_in_four_steps(site: Server, play: Any, home: str) -> None:
    """All of them at once: each job of the first list is in the second one what the next one is in the first."""
    whole = forms()
    lists = [with_paths_of_their_own(several) for several in (whole[:-1], whole[1:])]
    recorded = RECORDED.format(argv=json.dumps(["python3", "-c", RECORD, STATES, home]), told="[]")
    recorded = textwrap.indent(textwrap.dedent(recorded), " " * 4)
    text = OF_A_USER
    for jobs in lists:
        for check_mode in ("true", "false"):
            text += LIST.format(jobs=json.dumps(jobs), check_mode=check_mode, wrong="tried is not changed")
        text += recorded
        for check_mode in ("false", "true"):
            text += LIST.format(jobs=json.dumps(jobs), check_mode=check_mode, wrong="tried is changed")
    for jobs in (lists[0], [], lists[1]):
        text += LIST.format(jobs=json.dumps(jobs), check_mode="false", wrong="tried is not changed")
        text += recorded if jobs else ""
    text += LIST.format(jobs="[]", check_mode="false", wrong="tried is not changed")
    play(text)
    assert site.run("find", home, "-name", "*moving?*") == ""

    machine_id = site.read("/etc/machine-id").strip()
    expected: list[dict[str, Any]] = [{}, {}]
    for found, jobs in zip(expected, lists, strict=True):
        for declared in jobs:
            job, problems = _job.declare(declared)
            assert problems == []
            place = _store.layout("user", job["name"], {"HOME": "/home/moving"})
            found.update(files_of(job, place, machine_id, None, encrypted=False))
    states = [json.loads(line)["files"] for line in site.read(STATES).splitlines()]
    for state, number in zip(states, (0, 1, 0, 1), strict=True):
        assert {path: (mode, text) for path, (mode, _group, text) in state.items()} == {
            path: (mode, text) for path, (mode, _group, text) in expected[number].items()
        }
