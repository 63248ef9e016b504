# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""sync_job_run against the real runner in user scope, on a server of tests/declaring.py.

Whether a run has changed anything is known from both replicas themselves.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.declaring import Server
from tests.loopback import write_launcher


class Site:
    """A server whose runner is the real one, and two directories that are the replicas."""

    def __init__(self, path: Path) -> None:
        self.server = Server(path, systemd=False)
        self.here, self.there = self.server.here, path / "there"
        self.there.mkdir()
        (self.server.config / "serversync" / "runner.json").write_text(
            json.dumps({"version": "0.1.0", "scope": "user", "smtp": {"host": "127.0.0.1", "port": 9, "sender": "a@b"}})
        )
        self.launcher = self.server.launcher
        self.install()

    def install(self, more: str = "") -> None:
        write_launcher(self.launcher, more)

    def declare(self, **more: Any) -> None:
        job = {
            "partner": {"host": "hq", "connection": "local"},
            "on_error": {"retries": 0},
            "elements": [{"path": str(self.here), "partner_path": str(self.there)}],
            **more,
        }
        result = self.server.turn("sync_job", name="demo").apply(**job)
        assert not result.get("failed"), result

    def replicas(self) -> dict[str, tuple[int, int, bytes | None]]:
        """Both replicas as they are, without the runner's own directory."""
        return {
            str(path): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
            for root in (self.here, self.there)
            for path in sorted(root.rglob("*"))
            if ".serversync" not in path.parts
        }

    def go(self, check: bool = False, **parameters: Any) -> dict[str, Any]:
        """Runs the module; ``changed`` must be what both replicas say."""
        server = self.server.turn("sync_job_run", name="demo")
        before = self.replicas()
        result = server.check(**parameters) if check else server.apply(**parameters)
        different = self.replicas() != before
        assert different is (False if check else result["changed"])
        return result

    @property
    def lock(self) -> Path:
        return self.server.home / "state" / "serversync" / "locks" / "demo.lock"

    def wait(self) -> None:
        """Until a run that was started is over: then its lock is free."""
        with self.lock.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)

    def look(self, **parameters: Any) -> dict[str, Any]:
        return self.go(check=True, **parameters)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def lines(result: dict[str, Any]) -> list[str]:
    return "".join(entry["prepared"] for entry in result["diff"]).splitlines()


def test_check_run_run_check(site: Site) -> None:
    site.declare()
    (site.here / "a\nb").write_text("1")
    (site.here / "c").write_text("2")
    look = site.look()
    assert (look["changed"], look["run"]) == (True, None)
    assert look["plan"]["elements"][0]["counts"] == {"new": 2}
    first, *rest = lines(look)
    assert first == "%s -> hq:%s" % (site.here, site.there)
    assert [line.split("  (")[0] for line in rest] == ["+ a\\nb", "+ c"]

    done = site.go()
    assert done["changed"]
    assert done["run"]["state"] == "equal"
    assert done["run"]["elements"][0]["created"] == 2
    assert (done["plan"], done["diff"], done["failure"]) == (None, [], None)
    assert (site.there / "c").read_text() == "2"

    again = site.go()
    assert (again["changed"], again["run"]["state"]) == (False, "equal")
    look = site.look()
    assert (look["changed"], look["diff"], look["plan"]["elements"][0]["counts"]) == (False, [], {})


@pytest.mark.parametrize(
    ("settings", "edit", "sign", "counter"),
    [
        ({}, lambda site: (site.here / "f").write_text("longer"), "~ f", "updated"),
        ({}, lambda site: (site.here / "f").chmod(0o600), "~ f", "attributes"),
        ({"delete": "synced"}, lambda site: (site.here / "f").unlink(), "- f", "deleted"),
        ({"conflict": "this_server_wins"}, lambda site: (site.there / "f").write_text("theirs"), "! f", "conflicts"),
        ({"direction": "both"}, lambda site: (site.there / "g").write_text("new"), "+ g", "created"),
    ],
    ids=["update", "metadata", "delete", "conflict", "new"],
)
def test_what_a_run_changes_is_foretold_and_counted(
    site: Site, settings: dict[str, str], edit: Any, sign: str, counter: str
) -> None:
    (site.here / "f").write_text("before")
    (site.here / "stays").write_text("1")
    site.declare(settings=settings)
    site.go()
    edit(site)
    look = site.look()
    assert look["changed"]
    assert any(line.startswith(sign + "  (") for line in lines(look)), lines(look)
    done = site.go()
    assert done["changed"]
    assert done["run"]["elements"][0][counter] == 1
    assert not site.go()["changed"]


def test_what_waits_for_a_person_is_told_and_changes_nothing(site: Site) -> None:
    (site.here / "f").write_text("1")
    site.declare(settings={"direction": "both", "conflict": "no_winner"})
    site.go()
    (site.here / "f").write_text("mine")
    (site.there / "f").write_text("theirs")
    look = site.look()
    assert not look["changed"]
    assert lines(look)[1].startswith("! f  (")
    done = site.go()
    assert (done["changed"], done["run"]["state"]) == (False, "different")
    assert done["warnings"] == ["%s: 1 paths are unresolved; see: serversync conflicts demo" % site.here]


def test_a_guard_and_its_approval(site: Site) -> None:
    for number in range(20):
        (site.here / str(number)).write_text("1")
    site.declare(settings={"delete": "synced"})
    site.go()
    for number in range(15):
        (site.here / str(number)).unlink()
    look = site.look()
    assert not look["changed"], "it would stop before its first change"
    assert lines(look)[-1].startswith("stops before its first change: 15 paths would be deleted")
    stopped = site.go()
    assert (stopped["changed"], stopped["run"]["state"]) == (False, "different")
    assert "stopped before its first change: 15 paths would be deleted" in stopped["warnings"][0]
    assert site.look(approve=look["plan"]["id"])["changed"]
    done = site.go(approve=look["plan"]["id"])
    assert (done["changed"], done["run"]["elements"][0]["deleted"]) == (True, 15)
    for result in (site.look(approve="0123456789ab"), site.go(approve="0123456789ab")):
        assert result["msg"] == "demo: there is no plan '0123456789ab' of demo; make one: serversync plan demo"
        assert (result["failure"]["code"], result["run"], result["plan"]) == ("unknown_plan", None, None)


def test_only_some_elements(site: Site, tmp_path: Path) -> None:
    pairs = []
    for name in ("a", "b", "c"):
        for side in (site.here, site.there):
            (side / name).mkdir()
        (site.here / name / "f").write_text(name)
        pairs.append({"path": str(site.here / name), "partner_path": str(site.there / name)})
    site.declare(elements=pairs)
    chosen = [str(site.here / "a"), str(site.here / "c") + "/"]
    look = site.look(elements=chosen)
    assert [one["path"] for one in look["plan"]["elements"]] == [str(site.here / "a"), str(site.here / "c")]
    site.go(elements=chosen)
    assert sorted(path.parent.name for path in site.there.rglob("f")) == ["a", "c"]
    for result in (site.go(elements="/x"), site.look(elements="/x")):
        paths = ", ".join(pair["path"] for pair in pairs)
        assert result["msg"] == "demo: job demo has no element '/x' (elements: %s)" % paths
        assert result["failure"]["code"] == "unknown_element"


def test_a_failed_run_fails_the_task_with_its_record(site: Site) -> None:
    site.declare(elements=[{"path": str(site.here / "none"), "partner_path": str(site.there)}])
    result = site.go()
    assert result["failed"]
    record = result["run"]
    assert record["state"] == "failed"
    error = record["error"]
    field = error["field"] + ": " if error["field"] else ""
    assert result["msg"] == "demo: the run failed: %s%s" % (field, error["message"])
    assert result["failure"] == {"code": error["code"], "path": "demo", "details": [error]}
    look = site.look()
    assert look["msg"] == "demo: a run would fail: %s%s" % (field, error["message"])
    assert look["failure"] == result["failure"]


def test_a_run_that_failed_half_way_has_changed_something(site: Site) -> None:
    (site.here / "f").write_text("1")
    (site.here / "sub").mkdir()
    (site.here / "sub" / "f").write_text("1")
    elements = [
        {"path": str(site.here / "sub"), "partner_path": str(site.there / "a")},
        {"path": str(site.here / "none"), "partner_path": str(site.there / "b")},
    ]
    site.declare(elements=elements)
    result = site.go()
    assert (result["failed"], result["changed"]) == (True, True)


def test_start_and_go_on(site: Site) -> None:
    (site.here / "f").write_text("1")
    site.declare()
    server = site.server.turn("sync_job_run", name="demo")
    result = server.apply(wait=False)
    assert (result.get("msg"), result["changed"]) == (None, True)
    started = result["run"]["run"]
    site.wait()
    status = server.turn("sync_job_info").apply(names="demo")["status"][0]
    assert (status["last_run"]["run"], status["state"], status["conflicts"]) == (started, "equal", 0)
    assert (site.there / "f").read_text() == "1"


def test_a_damaged_record_stops_no_run(site: Site) -> None:
    (site.here / "f").write_text("1")
    site.declare()
    site.go()
    server = site.server.turn("sync_job_run", name="demo")
    for more in ({"timeout": "1h"}, {"wait": False}, {}):
        server.published.write_text("{")
        result = server.apply(**more)
        assert result.get("msg") is None
        assert result["run"]["job"] == "demo"
        site.wait()


def test_a_start_that_fails_is_told(site: Site) -> None:
    site.declare()
    server = site.server.turn("sync_job_run", name="demo")
    result = server.apply(wait=False, elements="/x")
    assert result["failure"]["code"] == "unknown_element"
    site.install("sys.exit('no such library')")
    for wait in (True, False):
        result = server.apply(wait=wait)
        assert result["msg"] == "demo: serversync failed with exit code 1: no such library"
        assert result["failure"]["code"] == "command_failed"
    site.launcher.write_text("#!/none/python\n")
    for result in (server.apply(), server.apply(wait=False), server.check()):
        assert result["msg"] == (
            "%s: cannot be started (No such file or directory); apply the role serversync.core.runner again"
            % site.launcher
        )
        assert result["failure"]["code"] == "command_failed"
    site.launcher.chmod(0o644)
    for result in (server.apply(), server.apply(wait=False), server.check()):
        assert result["msg"] == (
            "%s: cannot be started (Permission denied); apply the role serversync.core.runner again" % site.launcher
        )


# Between two looks at the clock there are 90 seconds.
CLOCK = """
import itertools, time
time.monotonic = (90.0 * number for number in itertools.count()).__next__
"""
# timeout(1), but the time is over as soon as the run has begun.
TIMEOUT = """#!%(python)s -IS
import signal, subprocess, sys
if sys.argv[1:4] != ["--foreground", "--kill-after=60", "90"]:
    sys.exit("not called as expected: %%s" %% sys.argv)
process = subprocess.Popen(sys.argv[4:])
open(%(begun)r).read()
process.send_signal(signal.SIGTERM)
process.wait()
sys.exit(124)
"""


def test_a_run_that_takes_too_long_is_stopped(site: Site, tmp_path: Path) -> None:
    (site.here / "f").write_text("1")
    site.declare()
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    # it comes to no end by itself
    site.install(
        "from serversync import run\n"
        f"run.Run.attempt = lambda *_: (open({str(begun)!r}, 'w').close(), run.os.read(run.os.pipe()[0], 1))"
    )
    program = site.server.root / "bin" / "timeout"
    program.write_text(TIMEOUT % {"python": sys.executable, "begun": str(begun)})
    program.chmod(0o755)
    whole, site.server.program = site.server.program, CLOCK + site.server.program
    result = site.go(timeout="90s")
    site.server.program = whole
    assert result["msg"] == "demo: the run was not over after 90s and was stopped; the next one goes on from there"
    assert result["failure"]["code"] == "timeout"
    assert (result["run"]["state"], result["run"]["error"]["code"]) == ("failed", "stopped")
    program.unlink()
    site.install()
    assert site.go(timeout="1h")["run"]["state"] == "equal"


@pytest.mark.parametrize("code", [124, 137], ids=["ended", "killed"])
def test_a_run_that_is_stopped_before_it_has_begun_has_no_record(site: Site, code: int) -> None:
    (site.here / "f").write_text("1")
    site.declare()
    assert site.go()["changed"]
    program = site.server.root / "bin" / "timeout"
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    whole, site.server.program = site.server.program, CLOCK + site.server.program
    result = site.go(timeout="90s")
    assert result["msg"] == "demo: the run was not over after 90s and was stopped; the next one goes on from there"
    assert (result["failure"]["code"], result["run"]) == ("timeout", None)
    # the same, but its time is not over
    site.server.program = whole
    result = site.go(timeout="90s")
    assert result["msg"] == f"demo: serversync failed with exit code {code}: no output"
    assert (result["failure"]["code"], result["run"]) == ("command_failed", None)


@pytest.mark.parametrize("more", [{}, {"timeout": "1h"}], ids=["without a timeout", "with one"])
def test_a_run_that_somebody_else_kills_is_told_as_such(site: Site, more: dict[str, str]) -> None:
    (site.here / "f").write_text("1")
    site.declare()
    site.install("from serversync import run\nrun.Run.attempt = lambda *_: run.os.kill(run.os.getpid(), 9)")
    result = site.go(**more)
    assert result["msg"] == "demo: serversync was ended by signal 9; see: serversync status demo"
    assert (result["failure"]["code"], result["run"]) == ("command_failed", None)


# The system's scope, in the places of the user's.
AS_SYSTEM = """
import os
from ansible_collections.serversync.core.plugins.module_utils import _store
os.geteuid = lambda: 0
places = _store.layout
_store.layout = lambda scope, *more: places("user", *more)._replace(scope=scope)
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (0, "demo: the run was not over after 90s and was stopped; the next one goes on from there"),
        (
            1,
            "systemctl stop serversync@demo.service: failed with exit code 1: Connection timed out; "
            "the run may still be on, see: serversync status demo",
        ),
    ],
)
def test_what_takes_too_long_in_the_service_is_stopped_there(site: Site, code: int, message: str) -> None:
    site.declare()
    site.server.program = CLOCK + AS_SYSTEM + site.server.program
    for name, text in (
        ("timeout", "exit 124"),
        ("systemctl", f'echo "$@" >>{site.server.root}/calls\necho Connection timed out >&2\nexit {code}'),
    ):
        program = site.server.root / "bin" / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    result = site.server.turn("sync_job_run", name="demo").apply(scope="system", timeout="90s")
    assert result["msg"] == message
    assert result["failure"]["code"] == ("command_failed" if code else "timeout")
    assert (site.server.root / "calls").read_text() == "stop serversync@demo.service\n"


def test_another_run_is_on(site: Site) -> None:
    (site.here / "f").write_text("1")
    site.declare()
    site.lock.parent.mkdir(parents=True)
    with site.lock.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = site.go()
    assert result["msg"] == "demo: the run was skipped: another run of this job is on; this one was skipped"
    assert (result["failure"]["code"], result["run"]["state"]) == ("running", "skipped")


def test_what_is_not_there_yet(site: Site) -> None:
    server = site.server.turn("sync_job_run", name="demo")
    document = server.document
    result = server.apply()
    assert result["msg"] == (
        "demo: there is no such job on this server; declare it with sync_job (%s is missing)" % document
    )
    assert (result["failure"]["code"], result["changed"]) == ("unknown_job", False)
    look = server.check()
    assert look["changed"]
    assert look["warnings"] == [result["msg"] + "; without check mode this task fails"]
    site.launcher.unlink()
    result = server.apply()
    assert result["msg"] == (
        "demo: the runner is not deployed on this server; apply the role serversync.core.runner (%s is missing)"
        % site.launcher
    )
    assert result["failure"]["code"] == "runner_missing"
    assert server.check()["warnings"] == [result["msg"] + "; without check mode this task fails"]


@pytest.mark.parametrize(
    ("parameters", "message", "code", "path"),
    [
        ({"name": None}, "name: is missing; give the job a name", "missing", "name"),
        (
            {"elements": ["srv"]},
            "elements[0]: 'srv' is not absolute; write the whole path from /",
            "invalid_value",
            "elements[0]",
        ),
        ({"elements": []}, "elements: is empty; give at least one entry", "missing", "elements"),
        (
            {"approve": ""},
            "approve: '' is not the id of a plan; give plan.id as check mode returns it, or as "
            "'serversync plan' prints it",
            "invalid_value",
            "approve",
        ),
        (
            {"approve": "--help"},
            "approve: '--help' is not the id of a plan; give plan.id as check mode returns it, or as "
            "'serversync plan' prints it",
            "invalid_value",
            "approve",
        ),
        (
            {"timeout": 90},
            "timeout: 90 has no unit; write e.g. 90s, 15m, 2h or 7d",
            "wrong_type",
            "timeout",
        ),
        ({"timeout": "31d"}, "timeout: '31d' is out of range; use 1s to 30d", "out_of_range", "timeout"),
        (
            {"timeout": "1h", "wait": False},
            "timeout: does not go with wait: false; leave one of them out",
            "conflict",
            "timeout",
        ),
        ({"wait": "maybe"}, "wait: 'maybe' is not a boolean; use true or false", "wrong_type", "wait"),
        ({"element": "/a"}, "element: is not an option; did you mean elements?", "unknown_option", "element"),
    ],
)
def test_bad_input(site: Site, parameters: dict[str, Any], message: str, code: str, path: str) -> None:
    site.declare()
    for result in (site.look(**parameters), site.go(**parameters)):
        assert result["msg"] == message
        assert (result["changed"], result["run"], result["plan"], result["diff"]) == (False, None, None, [])
        assert (result["failure"]["code"], result["failure"]["path"]) == (code, path)


def test_system_scope_needs_root(site: Site) -> None:
    site.server.program = "import os; os.geteuid = lambda: 1000" + site.server.program
    message = "scope: system needs root; set become: true, or scope: user for a job of your own"
    for result in (site.look(scope=None), site.go(scope=None)):
        assert result["msg"] == message


def test_a_name_that_is_no_utf8(site: Site) -> None:
    descriptor = os.open(os.fsencode(site.here) + b"/a\xff", os.O_CREAT | os.O_WRONLY, 0o644)
    os.close(descriptor)
    site.declare(settings={"conflict": "this_server_wins"})
    assert lines(site.look())[1].startswith("+ a\\udcff  (")
    assert site.go()["run"]["state"] == "equal"
