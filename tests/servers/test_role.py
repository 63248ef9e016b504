# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role comes to a server, is upgraded while a job runs, opens and closes doors, and goes without a trace."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testservers import ROOT, Server

ROLE = """
- hosts: HOST
  gather_facts: false
  roles:
    - role: serversync.core.runner
"""
ON_SITE = ROLE.replace("HOST", "siteA")

# --- an upgrade ------------------------------------------------------------------------------------------------

HELD_UP = """
- hosts: siteA
  gather_facts: false
  tasks:
    - ansible.builtin.copy:
        dest: /etc/systemd/system/held-up.service
        content: |
          [Service]
          Type=oneshot
          ExecStartPre=/bin/dd if=/dev/zero of=/run/held-up-begun bs=1 count=1
          ExecStart=/bin/cat /run/held-up
        mode: "0644"
    - ansible.builtin.command: {argv: [mkfifo, "{{ item }}"], creates: "{{ item }}"}
      loop: [/run/held-up, /run/held-up-begun]
    - ansible.builtin.systemd_service: {daemon_reload: true}
    - serversync.core.sync_job:
        name: held-up
        partner: {host: hq}
        before: [{unit: held-up.service}]
        elements: [{path: /srv/line1/programs, partner_path: TARGET}]
"""
GONE = """
- hosts: siteA
  gather_facts: false
  tasks:
    - serversync.core.sync_job: {name: held-up, state: absent}
    - ansible.builtin.file: {path: "{{ item }}", state: absent}
      loop: [/etc/systemd/system/held-up.service, /run/held-up, /run/held-up-begun]
    - ansible.builtin.systemd_service: {daemon_reload: true}
"""
REMOVED = """
- hosts: siteA
  gather_facts: false
  tasks:
    - serversync.core.sync_job: {name: JOB, state: absent}
"""


def builds(server: Server) -> list[str]:
    return server.run("ls", "/usr/lib/serversync").split()


@pytest.fixture
def another_build(tmp_path: Path) -> Path:
    """A directory of collections, in which the runner's program is another one."""
    copy = tmp_path / "ansible_collections/serversync/core"
    copy.mkdir(parents=True)
    shutil.copy(ROOT / "galaxy.yml", copy)
    for name in ("meta", "plugins", "roles"):
        shutil.copytree(ROOT / name, copy / name)
    with (copy / "roles/runner/files/serversync/notify.py").open("a") as stream:
        stream.write("\n# another build\n")
    return tmp_path


@pytest.fixture
def run_that_is_on(site: Server, hq: Server, play: Any) -> Iterator[subprocess.Popen[str]]:
    """It waits for a unit of the administrator, which waits for a line in /run/held-up. No other run is on."""
    target = f"/srv/sites/siteA/{uuid.uuid4().hex}"  # of which no archive knows
    hq.run("mkdir", target)
    play(HELD_UP.replace("TARGET", target))
    site.run("systemctl", "stop", "serversync@line1-programs.timer")
    site.run("systemctl", "start", "serversync@line1-programs.service")  # or joins one that is on, to its end
    with site.start("serversync", "run", "held-up", "--json") as run:
        try:
            site.read("/run/held-up-begun")
            yield run
        finally:
            site.run("systemctl", "stop", "held-up.service")
    site.run("systemctl", "start", "serversync@line1-programs.timer")
    play(GONE)
    hq.run("rm", "-r", target)


def test_an_upgrade_cuts_off_no_run(
    site: Server,
    play: Any,
    another_build: Path,
    run_that_is_on: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (before,) = builds(site)
    ours = os.environ["ANSIBLE_COLLECTIONS_PATH"]
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", str(another_build))
    said = " ".join(play(ON_SITE).split())
    assert f"/usr/lib/serversync/{before} stays until the runs that were started from it are over" in said
    assert len(builds(site)) == 2
    assert "changed=0 " in play(ON_SITE)

    site.write("/run/held-up", "go on\n")
    told, _errors = run_that_is_on.communicate()
    assert json.loads(told)["state"] == "equal", told

    assert "changed=1 " in play(ON_SITE)
    (after,) = builds(site)
    assert after != before
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", ours)
    play(ON_SITE)
    assert builds(site) == [before]


def test_one_run_more_than_there_may_be_waits(site: Server, run_that_is_on: subprocess.Popen[str]) -> None:
    path = "/etc/serversync/runner.json"
    deployed = site.read(path)
    site.write(path, json.dumps({**json.loads(deployed), "max_runs": 1}))
    try:
        with site.start("serversync", "run", "line1-recipes", "--json") as another:
            site.follow("serversync@line1-recipes.service", "waiting: as many runs are on as may be at once")
            site.write("/run/held-up", "go on\n")
            told, _errors = another.communicate()
            assert json.loads(told)["state"] == "equal", told
    finally:
        site.write(path, deployed)


def test_an_earlier_version_is_refused(site: Server, play: Any) -> None:
    path = "/etc/serversync/runner.json"
    deployed = site.read(path)
    settings = json.loads(deployed)
    site.write(path, json.dumps({**settings, "version": "99.1.0"}))
    try:
        for options in ([], ["--check"]):
            with pytest.raises(AssertionError) as refused:
                play(ON_SITE, *options)
            text = f"the runner 99.1.0 is deployed here, and the one of this collection is {settings['version']}"
            assert text in " ".join(str(refused.value).split())
    finally:
        site.write(path, deployed)


# --- another key -----------------------------------------------------------------------------------------------

PAIR = ROLE.replace("HOST", "servers")


def public_key(server: Server, path: str) -> str:
    return " ".join(server.read(path).split()[:2])


def test_a_key_follows_another_and_no_run_fails(site: Server, hq: Server, play: Any) -> None:
    def key(name: str = "id_ed25519") -> str:
        return public_key(site, f"/etc/serversync/keys/{name}.pub").split()[1]

    def let_in() -> list[str]:
        lines = hq.read("/etc/serversync/authorized_keys").splitlines()
        return [line.split("ssh-ed25519 ")[1].split()[0] for line in lines if "--pairing siteA" in line]

    def runs() -> bool:
        return bool(site.serversync("run", "line1-recipes")[0] == 0)

    old = key()
    assert let_in() == [old]
    # One server after the other, as somebody does who has to.
    said = play(PAIR, "--limit=siteA", "--extra-vars", "runner_rotate_key=true")
    assert "the new key is taken when hq has let it in" in " ".join(said.split())
    new = key("id_ed25519.next")
    assert (key(), let_in(), runs()) == (old, [old], True)
    play(PAIR, "--limit=hq")
    assert (key(), let_in(), runs()) == (old, [old, new], True)
    # In one play one server takes it, and then the other one forgets the old one.
    play(PAIR)
    assert (key(), let_in(), runs()) == (new, [new], True)
    assert site.run("ls", "/etc/serversync/keys").split() == ["id_ed25519", "id_ed25519.pub"]


# --- libraries of its own --------------------------------------------------------------------------------------


def test_the_program_runs_from_a_virtual_environment(site: Server, play: Any) -> None:
    """Made by hand, as where no index of packages can be reached; the role makes none where one has what is needed."""
    home = "/usr/lib/serversync/venv"
    python = ("--extra-vars", "runner_install_method=venv")
    site.run("python3", "-m", "venv", "--without-pip", "--system-site-packages", home)
    assert "changed=0 " not in play(ON_SITE, *python)
    assert "changed=0 " in play(ON_SITE, *python)
    assert site.read("/usr/bin/serversync").startswith(f"#!{home}/bin/python")
    code, run = site.serversync("run", "line1-recipes")
    assert (code, run["state"]) == (0, "equal")
    play(ON_SITE)
    assert site.try_run("test", "-e", home).returncode == 1
    assert site.serversync("run", "line1-recipes")[0] == 0


# --- two partners ----------------------------------------------------------------------------------------------

TWO_PARTNERS = """
- hosts: siteA,mail
  gather_facts: false
  vars:
    runner_partners: "{{ pairings[inventory_hostname] }}"
    pairings:
      siteA: [{name: hq}, {name: mail}]
      mail: [{name: siteA, roots: [{path: /srv/copy, access: write}]}]
  roles:
    - role: serversync.core.runner
  post_tasks:
    - serversync.core.sync_job:
        name: to-mail
        partner: {host: mail}
        schedule: null
        elements: [{path: /srv/line1/programs, partner_path: /srv/copy/programs}]
      when: inventory_hostname == 'siteA'
"""


def test_a_server_has_two_partners_at_once(
    site: Server, hq: Server, mail: Server, apply: Callable[..., str], play: Any
) -> None:
    play(TWO_PARTNERS)
    mail.run("mkdir", "/srv/copy/programs")
    try:
        runs = [site.start("serversync", "run", name, "--json") for name in ("line1-documents", "to-mail")]
        told = [json.loads(run.communicate()[0]) for run in runs]
        assert [run["state"] for run in told] == ["equal", "equal"], told
        assert mail.tree("/srv/copy/programs") == site.tree("/srv/line1/programs")
        # Each key has its own door, and each door its own roots.
        assert "--pairing siteA" in mail.read("/etc/serversync/authorized_keys")
        assert mail.run("ls", "/run/serversync-serve").split() == ["siteA.sock"]
    finally:
        play(REMOVED.replace("JOB", "to-mail") + ON_SITE)
        mail.run("rm", "-r", "/srv/copy/programs")
    assert site.run("find", "/etc/serversync", "-name", "*mail*") == ""


# --- a server that has nothing of it before --------------------------------------------------------------------

# Everything there that is no data, with what it holds; of accounts the backups that their tools make are left out.
STATE = """
import hashlib, os, stat
for top in ("/etc", "/usr/bin", "/usr/lib/systemd", "/root", "/srv"):
    for where, directories, names in os.walk(top):
        for path in (os.path.join(where, name) for name in directories + names):
            if not path.startswith("/root/.ansible") and not (where == "/etc" and path.endswith("-")):
                seen = os.lstat(path)
                content = ""
                if stat.S_ISREG(seen.st_mode):
                    with open(path, "rb") as stream:
                        content = hashlib.sha256(stream.read()).hexdigest()
                print(path, oct(seen.st_mode), seen.st_uid, seen.st_gid, content)
"""
# Changes what the role has made: contents, modes and owners of files, modes of directories, units, accounts; one file
# goes, and one is a link to another. Tells how much that is.
SPOIL = """
import glob, os, shutil, subprocess
tops = ["/etc/serversync", "/etc/serversync/*", "/etc/serversync/pairings/*", "/etc/serversync/serve/*",
        "/etc/serversync/keys/*", "/etc/systemd/system/serversync*", "/etc/ssh/sshd_config.d/50-serversync.conf",
        "/usr/bin/serversync", "/usr/lib/serversync", "/usr/lib/serversync/*", "/usr/lib/serversync/*/lock",
        "/usr/lib/serversync/*/serversync", "/var/lib/serversync", "/var/lib/serversync/[alop]*"]
paths = [path for top in tops for path in sorted(glob.glob(top))]
for number, path in enumerate(paths):
    if number % 3 == 0 or os.path.isdir(path):
        os.chmod(path, 0o777)
    elif number % 3 == 1 or "/keys/" in path:
        shutil.chown(path, "games", "games")
    else:
        with open(path, "a") as stream:
            stream.write("# spoiled\\n")
os.remove("/etc/serversync/pairings/hq.json")
os.rename("/etc/systemd/system/serversync-late.service", "/root/elsewhere")
os.symlink("/root/elsewhere", "/etc/systemd/system/serversync-late.service")
os.rmdir("/var/lib/serversync/plans")
subprocess.run(["systemctl", "--quiet", "disable", "--now", "serversync-late.timer"], check=True)
subprocess.run(["systemctl", "--quiet", "disable", "serversync-recover.service", "serversync-notify.path"], check=True)
subprocess.run(["systemctl", "stop", "serversync-units.socket", "serversync-serve-hq.socket"], check=True)
subprocess.run(["usermod", "--shell", "/bin/bash", "serversync"], check=True)
subprocess.run(["usermod", "--comment", "", "serversync-notify"], check=True)
print(len(paths))
"""
UNITS = [
    "serversync-late.timer",
    "serversync-recover.service",
    "serversync-notify.path",
    "serversync-units.socket",
    "serversync-serve-hq.socket",
]
MADE = ("find", "/etc/serversync", "/usr/lib/serversync", "/var/lib/serversync", "-printf", "%p %y %m %u %g\\n")
# Asks the door of a partner for rsync again and again, as the forced command of a key does, and tells how often it was
# greeted. Then it holds what it has until the other end lets go of all of it.
CONNECT = """
import contextlib, os, pwd, socket, sys
account = pwd.getpwnam("serversync")
os.setgid(account.pw_gid)
os.setuid(account.pw_uid)
doors = []
for number in range(int(sys.argv[1])):
    door = socket.socket(socket.AF_UNIX)
    door.connect("/run/serversync-serve/elsewhere.sock")
    with contextlib.suppress(ConnectionError):
        door.sendall(b'{"command": "rsync --server --daemon ."}\\n')
        if door.recv(1):
            doors.append(door)
print(len(doors), flush=True)
for door in doors:
    with contextlib.suppress(ConnectionError):
        while door.recv(65536):
            pass
print("closed")
"""
JOB = {
    "name": "kept",
    "partner": {"host": "here", "connection": "local"},
    "schedule": {"at": "02:30"},
    "elements": [{"path": "/srv/kept", "partner_path": "/srv/copy"}],
}
PAIRED = {"runner_partners": [{"name": "hq", "roots": [{"path": "/srv/kept", "access": "both"}]}]}
CONNECTIONS = ("systemctl", "list-units", "--all", "--plain", "--no-legend", "serversync-serve-elsewhere@*")


def state(server: Server) -> set[str]:
    """What is there, but for what the runner keeps in the elements themselves."""
    return {line for line in server.python(STATE).splitlines() if "/.serversync" not in line}


@pytest.fixture(scope="module")
def apply(mail: Server, play: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Applies the role to a server with these variables; in the end the server is as it was before."""
    path = tmp_path_factory.mktemp("role") / "variables.json"

    def one(**variables: Any) -> str:
        path.write_text(json.dumps(variables))
        return str(play(ROLE.replace("HOST", "mail"), "--extra-vars", f"@{path}"))

    one()  # the packages that it installs stay
    one(runner_state="absent")
    mail.run("mkdir", "/srv/kept", "/srv/copy", "/srv/metrics")
    mail.run("chmod", "0777", "/srv/metrics")
    mail.write("/srv/kept/data", "x := 1;\n")
    mail.run("chown", "games", "/srv/kept/data")
    before = state(mail)
    assert not any("/serversync" in line for line in before)
    try:
        yield one
        one(runner_state="absent")
        assert state(mail) == before
        assert "serversync" not in mail.run("getent", "passwd") + mail.run("getent", "group")
        assert mail.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "*serversync*") == ""
        assert mail.run("find", "/var/lib", "/usr/lib", "/run", "-name", "*serversync*") == ""
        assert "changed=0 " in one(runner_state="absent")
    finally:
        mail.run("rm", "-r", "/srv/kept", "/srv/copy", "/srv/metrics")


def test_a_door_takes_so_many_connections_and_closes_with_its_pairing(
    mail: Server, hq: Server, apply: Callable[..., str]
) -> None:
    apply(**PAIRED)
    assert mail.run("systemctl", "is-active", "serversync-serve-hq.socket") == "active\n"
    key = public_key(hq, "/etc/serversync/keys/id_ed25519.pub")
    assert 'serve --pairing hq",from="' in mail.read("/etc/serversync/authorized_keys")
    assert key in mail.read("/etc/serversync/authorized_keys")

    # The same by hand, as for a partner that nobody here manages.
    host_key = public_key(hq, "/etc/ssh/ssh_host_ed25519_key.pub")
    told = {"name": "elsewhere", "host": "hq", "host_keys": [host_key], "public_keys": [key]}
    apply(runner_partners=[{**PAIRED["runner_partners"][0], **told}])
    assert host_key in mail.read("/etc/serversync/pairings/elsewhere.known_hosts")
    assert key in mail.read("/etc/serversync/authorized_keys")
    assert mail.run("find", "/etc", "-path", "*serversync*", "-name", "*hq*") == ""

    most = mail.run("systemctl", "show", "--property=MaxConnections", "--value", "serversync-serve-elsewhere.socket")
    with mail.start("python3", "-c", CONNECT, str(int(most) + 1)) as connections:
        assert connections.stdout is not None
        assert connections.stdout.readline() == most
        # As an upgrade may have to; it is nothing to those who have come in.
        mail.run("systemctl", "restart", "serversync-serve-elsewhere.socket")
        assert len(mail.run(*CONNECTIONS).splitlines()) == int(most)
        apply(runner_partners=[])
        assert connections.stdout.read() == "closed\n"
    assert mail.run(*CONNECTIONS) == ""
    assert "elsewhere" not in mail.read("/etc/serversync/authorized_keys")
    assert mail.run("find", "/etc", "-path", "*serversync*", "-name", "*elsewhere*") == ""


def test_what_somebody_has_changed_is_put_right_and_else_nothing_is_written(
    mail: Server, apply: Callable[..., str]
) -> None:
    apply(**PAIRED)

    def seen() -> list[str]:
        units = mail.run("systemctl", "show", "--property=Id,ActiveState,UnitFileState", *UNITS)
        return [*sorted(mail.run(*MADE).splitlines()), units]

    before, made = state(mail), seen()
    said = apply(**PAIRED)
    assert "changed=0 " in said
    assert re.findall(r"TASK \[.* : ((?:Write|Pin|Make the (?:dir|lock|outbox)).*)\]", said) == []
    assert int(mail.python(SPOIL)) > 35
    assert len(state(mail) ^ before) > 50
    assert seen() != made
    apply(**PAIRED)
    mail.run("rm", "/root/elsewhere")
    assert state(mail) == before
    assert seen() == made


@pytest.mark.parametrize("name", ["outbox", "public"])
def test_root_makes_no_directory_behind_a_link(mail: Server, apply: Callable[..., str], name: str) -> None:
    """As the runner's account could lay it out, whose the directory is."""
    apply()
    path = f"/var/lib/serversync/{name}"
    mail.run("mv", path, f"{path}.away")
    mail.run("ln", "-s", "/srv/kept", path)
    before = mail.run("stat", "--format=%A %U:%G", "/srv/kept")
    try:
        with pytest.raises(AssertionError, match="already exists as a link"):
            apply()
        assert mail.run("stat", "--format=%A %U:%G", "/srv/kept") == before
    finally:
        mail.run("rm", path)
        mail.run("mv", f"{path}.away", path)


def test_a_root_gives_no_less_than_one_around_it(apply: Callable[..., str]) -> None:
    around = {"path": "/srv//kept/", "access": "read"}
    roots = [{"path": "/srv/kept.not", "access": "both"}, around, {"path": "/srv/kept/in/it", "access": "write"}]
    told = 'roots.2..path: "/srv/kept/in/it" is inside of *\n? *the root /srv/kept, which gives hq more than .write.;'
    with pytest.raises(AssertionError, match=told):
        apply(runner_partners=[{"name": "hq", "roots": roots}])


def test_another_match_before_the_roles_is_told_with_its_place(mail: Server, apply: Callable[..., str]) -> None:
    other = "/etc/ssh/sshd_config.d/10-first.conf"
    mail.write(other, "Match User serversync\n    PermitTTY yes\n    AllowTcpForwarding yes\nMatch all\n")
    try:
        wrong = f"permittty yes in the place of permittty no; .*{other}:2:.*PermitTTY"
        with pytest.raises(AssertionError, match=wrong):
            apply(**PAIRED)
    finally:
        mail.run("rm", other)
    apply(**PAIRED)


def test_there_is_a_job_with_the_rights_of_root_or_without(mail: Server, apply: Callable[..., str]) -> None:
    apply(runner_jobs=[JOB], runner_metrics_dir="/srv/metrics")
    assert mail.run("systemctl", "is-active", "serversync@kept.timer") == "active\n"
    assert mail.serversync("run", "kept")[0] == 0
    assert mail.run("stat", "--format=%U", "/srv/copy/data") == "games\n"

    assert mail.run("ls", "/srv/metrics") == "serversync-kept.prom\n"
    apply(runner_privileged=False, runner_jobs=[JOB], runner_metrics_dir="/srv/metrics")
    capabilities = ("--property=CapabilityBoundingSet", "--property=AmbientCapabilities")
    assert mail.run("systemctl", "show", *capabilities, "--value", "serversync@kept.service").strip() == ""
    code, refused = mail.serversync("run", "kept")
    assert (code, refused["state"]) == (1, "failed")
    assert "/srv/copy" in refused["elements"][0]["error"]["message"]
    mail.run("chown", "--recursive", "serversync:", "/srv/copy")
    mail.write("/srv/kept/data", "x := 2;\n")
    assert mail.serversync("run", "kept")[0] == 0
    assert mail.read("/srv/copy/data") == "x := 2;\n"
    assert mail.run("stat", "--format=%U", "/srv/copy/data") == "serversync\n"

    # In the end nothing is left but the data, as it was.
    mail.write("/srv/kept/data", "x := 1;\n")
    mail.run("chown", "--recursive", "root:", "/srv/copy")
    mail.run("rm", "/srv/copy/data")
