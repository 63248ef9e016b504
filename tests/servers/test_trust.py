# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may do what: the sandbox of a job's unit, the door of a pairing, the rights of what lies on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from testservers import Server

UNIT = "serversync@line1-recipes.service"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBxo7zDBVCTFEBHTP9FBDDMQbYDpWIb4Ql5vD2lTPDsE"
OVERRIDE = "/run/systemd/system/serversync@line1-recipes.service.d/zz-test.conf"


@pytest.fixture
def in_unit(site: Server) -> Iterator[object]:
    """Runs a command in the job's own unit in place of the runner: same account, same sandbox."""

    def run(command: str) -> int:
        site.run("mkdir", "-p", OVERRIDE.rpartition("/")[0])
        site.write(OVERRIDE, f"[Service]\nExecStart=\nExecStart=/bin/sh -c '{command}'\nSuccessExitStatus=\n")
        site.run("systemctl", "daemon-reload")
        return site.try_run("systemctl", "start", UNIT).returncode

    yield run
    site.run("rm", "-f", OVERRIDE)
    site.run("systemctl", "daemon-reload")
    site.run("systemctl", "reset-failed")


def test_the_unit_writes_its_elements_and_nothing_else(site: Server, in_unit: object) -> None:
    assert callable(in_unit)
    assert in_unit("echo inside > /srv/line1/recipes/inside") == 0
    assert site.read("/srv/line1/recipes/inside") == "inside\n"
    site.run("rm", "/srv/line1/recipes/inside")
    for outside in ("/srv/line1/programs", "/srv/line1", "/etc", "/usr/lib/serversync", "/root", "/home", "/boot"):
        assert in_unit(f"echo outside > {outside}/outside") != 0, outside
        assert site.try_run("test", "-e", f"{outside}/outside").returncode == 1


# From within the unit: is the root of a process outside in reach, before and after what the runner does first there?
REACH = """
import glob, os, sys
sys.path.insert(0, max(glob.glob("/usr/lib/serversync/*/"), key=os.path.getmtime))
from serversync import linux
way = sys.argv[1] + "/root/etc/passwd"
if not os.path.exists(way):
    sys.exit(2)
linux.confine()
sys.exit(os.path.exists(way))
"""


def test_the_unit_does_not_leave_its_sandbox_by_another_process(site: Server, in_unit: object) -> None:
    assert callable(in_unit)
    site.write("/etc/serversync/reach.py", REACH)
    outside = site.start("runuser", "-u", "serversync", "--", "sh", "-c", "echo $$; exec sleep infinity")
    assert outside.stdout is not None
    pid = outside.stdout.readline().strip()
    try:
        assert in_unit(f"exec python3 /etc/serversync/reach.py /proc/{pid}") == 0
    finally:
        site.run("kill", pid)
        outside.communicate()
        site.run("rm", "/etc/serversync/reach.py")


def test_the_unit_runs_as_the_runner(site: Server, in_unit: object) -> None:
    assert callable(in_unit)
    assert in_unit("id -un > /srv/line1/recipes/who") == 0
    assert site.read("/srv/line1/recipes/who") == "serversync\n"
    site.run("rm", "/srv/line1/recipes/who")


@pytest.mark.parametrize("path", ["/etc/shadow", "/etc/ssh/ssh_host_ed25519_key", "/var/lib/systemd/credential.secret"])
def test_no_unit_reads_the_servers_secrets(site: Server, in_unit: object, path: str) -> None:
    assert callable(in_unit)
    site.run("test", "-s", path)
    assert in_unit(f"test -s {path}") != 0
    assert in_unit("test -s /etc/passwd && test -s /etc/serversync/keys/id_ed25519") == 0


def test_no_unit_reads_the_secrets_of_other_jobs(site: Server, in_unit: object) -> None:
    assert callable(in_unit)
    site.write("/etc/serversync/credentials/planted", "secret")
    try:
        assert in_unit("ls -A /etc/serversync/credentials | grep -q .") != 0
    finally:
        site.run("rm", "/etc/serversync/credentials/planted")


@pytest.mark.parametrize("unit", ["serversync@line1-recipes.service"])
def test_the_unit_is_hardened(site: Server, unit: str) -> None:
    assert site.try_run("systemd-analyze", "security", "--threshold=23", unit).returncode == 0
    assert site.run("systemctl", "show", "--property=LimitCORE", "--value", unit) == "1\n"
    assert int(site.run("systemctl", "show", "--property=MemoryMax", "--value", unit)) > 0


# Somebody at a port who says nothing, until a line comes to the other path.
SILENT = """
import socket, sys
with socket.create_server(("127.0.0.1", 2222)) as door:
    print("open", flush=True)
    visitor, _address = door.accept()
    print("come", flush=True)
    open(sys.argv[1]).read()
"""


def test_what_is_tried_before_it_is_declared_is_in_the_same_sandbox(site: Server) -> None:
    job = json.loads(site.read("/etc/serversync/jobs/line1-recipes.json"))
    job["name"] = "tried"
    job["partner"] |= {"host": "127.0.0.1", "port": 2222, "connection": "sftp", "host_key": [HOST_KEY]}
    site.write("/root/tried.json", json.dumps(job))
    site.run("mkfifo", "/run/let-go")
    try:
        with site.start("python3", "-c", SILENT, "/run/let-go") as partner:
            assert partner.stdout is not None
            assert partner.stdout.readline() == "open\n"
            with site.start("serversync", "check", "/root/tried.json", "--connect", "--json") as check:
                assert partner.stdout.readline() == "come\n"
                (unit,) = site.run("systemctl", "list-units", "--plain", "--no-legend", "serversync-try-*").split()[:1]
                assert site.try_run("systemd-analyze", "security", "--threshold=23", unit).returncode == 0
                shown = site.run("systemctl", "show", "--property=User,ReadWritePaths,InaccessiblePaths", unit)
                assert "User=serversync\n" in shown
                assert "-/srv/line1/recipes" in shown
                for hidden in ("/etc/shadow", "/etc/serversync/credentials", "/var/lib/systemd/credential.secret"):
                    assert f"-{hidden}" in shown
                site.write("/run/let-go", "go on\n")
                found = json.loads(check.communicate()[0])
        [error] = [one for one in found["tried"] if one["level"] == "error"]
        assert error["failure"]["field"] == "partner.host", error
    finally:
        site.run("rm", "-f", "/root/tried.json", "/run/let-go")


def test_connections_are_bounded_together(hq: Server) -> None:
    (unit,) = hq.run("sh", "-c", "cd /etc/systemd/system && ls serversync-serve-*@.service").split()
    slice_of = hq.run("systemctl", "show", "--property=Slice", "--value", unit.replace("@.", "@test.")).strip()
    assert slice_of == "serversync-serve.slice"
    for name in ("MemoryMax", "TasksMax"):
        assert int(hq.run("systemctl", "show", f"--property={name}", "--value", slice_of)) > 0


# Requests that break, through the door as the forced command of a key comes to it; then how many lines the journal got.
FLOOD = """
import json, os, pathlib, pwd, socket, subprocess
def journal(*more):
    argv = ["journalctl", "--quiet", "--output=cat", *more]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
cursor = journal("--lines=0", "--show-cursor").split("cursor: ")[1].strip()
(path,) = pathlib.Path("/run/serversync-serve").iterdir()
child = os.fork()
if not child:
    account = pwd.getpwnam("serversync")
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    answered = 0
    for _connection in range(20):
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(str(path))
            requests = [{"command": "serversync"}] + [{"id": number, "verb": "look"} for number in range(300)]
            door.sendall(b"".join(json.dumps(one).encode() + b"\\n" for one in requests))
            door.shutdown(socket.SHUT_WR)
            with door.makefile("rb") as answers:
                answered += sum(b"partner_error" in line for line in answers)
    os._exit(answered != 20 * 300)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
subprocess.run(["journalctl", "--sync"], check=True)
print(len(journal("--after-cursor=" + cursor, "--unit=serversync-serve-*").splitlines()))
"""


def test_what_a_key_sends_fills_no_journal(hq: Server) -> None:
    assert int(hq.python(FLOOD)) <= 20 * 110
    assert hq.run("systemctl", "is-active", "serversync-serve-siteA.socket") == "active\n"


def ssh_as_runner(site: Server, *command: str, options: tuple[str, ...] = ("-tt",)) -> tuple[int, str]:
    """The paired key in the hands of somebody who wants more than a run."""
    done = site.try_run(
        "runuser",
        "-u",
        "serversync",
        "--",
        "ssh",
        "-F",
        "none",
        "-i",
        "/etc/serversync/keys/id_ed25519",
        "-o",
        "UserKnownHostsFile=/etc/serversync/pairings/hq.known_hosts",
        "-o",
        "HostKeyAlias=serversync-hq",
        "-o",
        "BatchMode=yes",
        *options,
        "serversync@hq",
        *command,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("command", [(), ("id",), ("cat", "/etc/passwd"), ("sh", "-c", "id"), ("rsync", "--version")])
def test_the_paired_key_gives_no_shell(site: Server, command: tuple[str, ...]) -> None:
    code, text = ssh_as_runner(site, *command)
    assert code != 0
    assert "uid=" not in text
    assert "root:" not in text
    assert "rsync  version" not in text


REMOTELY = ("-N", "-o", "ExitOnForwardFailure=yes", "-R")


@pytest.mark.parametrize(
    ("options", "command", "code", "said"),
    [
        (("-W", "127.0.0.1:22"), (), 255, "administratively prohibited"),
        ((*REMOTELY, "127.0.0.1:0:127.0.0.1:22"), (), 255, "remote port forwarding failed"),
        ((*REMOTELY, "/run/serversync-test:/run/none"), (), 255, "remote port forwarding failed"),
        # Of what is refused to a subsystem sshd passes no word on.
        (("-s",), ("sftp",), 1, ""),
        (("-tt",), ("serversync",), 255, "PTY allocation request failed"),
    ],
)
def test_the_paired_key_forwards_nothing_and_has_no_terminal(
    site: Server, options: tuple[str, ...], command: tuple[str, ...], code: int, said: str
) -> None:
    found, text = ssh_as_runner(site, *command, options=options)
    assert found == code, text
    assert said in text


def test_the_paired_key_opens_from_its_own_address_alone(site: Server, hq: Server) -> None:
    """The same key, on the partner itself: from= names the address of siteA."""
    line = hq.read("/etc/serversync/authorized_keys").splitlines()[-1]
    assert 'from="' in line
    where = "/run/serversync-test-key"
    hq.write(where, site.read("/etc/serversync/keys/id_ed25519"))
    try:
        hq.run("chmod", "0600", where)
        options = ("-F", "none", "-i", where, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new")
        known = ("-o", "UserKnownHostsFile=/run/serversync-test-hosts")
        done = hq.try_run("ssh", *options, *known, "serversync@127.0.0.1", "serversync")
        assert (done.returncode, "Permission denied" in done.stderr) == (255, True)
    finally:
        hq.run("rm", "-f", where, "/run/serversync-test-hosts")


def test_the_door_is_hardened(hq: Server) -> None:
    unit = "serversync-serve-siteA@test.service"
    done = hq.try_run("systemd-analyze", "security", "--threshold=23", unit)
    assert done.returncode == 0, done.stdout


def test_keys_are_private_and_their_owners_right(site: Server, hq: Server) -> None:
    for server in (site, hq):
        facts = server.run(
            "stat",
            "--format=%A %U %G %n",
            "/etc/serversync",
            "/etc/serversync/jobs",
            "/etc/serversync/keys",
            "/etc/serversync/keys/id_ed25519",
            "/etc/serversync/authorized_keys",
            "/var/lib/serversync",
            "/var/lib/serversync/public",
        ).splitlines()
        assert facts == [
            "drwxr-x--- root serversync /etc/serversync",
            "drwxr-x--- root serversync /etc/serversync/jobs",
            "drwxr-x--- root serversync /etc/serversync/keys",
            "-rw------- serversync serversync /etc/serversync/keys/id_ed25519",
            "-rw-r----- root serversync /etc/serversync/authorized_keys",
            "drwx--x--x serversync serversync /var/lib/serversync",
            "drwxr-s--- serversync serversync-readers /var/lib/serversync/public",
        ]


def test_a_reader_sees_the_status_and_no_more(site: Server) -> None:
    site.run("serversync", "run", "line1-recipes")
    reader = ["setpriv", "--reuid=65534", "--regid=65534", "--groups=serversync-readers"]
    assert "line1-recipes" in site.run(*reader, "serversync", "status")
    assert site.try_run(*reader, "cat", "/etc/serversync/jobs/line1-recipes.json").returncode != 0
    stranger = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    assert site.try_run(*stranger, "ls", "/var/lib/serversync/public").returncode != 0
