# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page from real runs: of one server, of several by their reports, and by the collection's playbook."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from serversync import report

from tests.integration.conftest import Server, Site, free_port
from tests.loopback import ROOT

BOTH = {"direction": "both", "exclude": [], "delete": "never", "conflict": "no_winner"}


@pytest.fixture
def ran(server: Server, tmp_path: Path) -> Server:
    """A server with a job that ran twice and left a conflict, one that failed, and one that never ran."""
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "x").write_text(f"of {side}")
    server.declare("nightly", [(tmp_path / "a", tmp_path / "b")], settings=BOTH, comment="Line <1>")
    server.declare("away", [(tmp_path / "missing", tmp_path / "c")])
    server.declare("new", [(tmp_path / "b", tmp_path / "d")])
    server.run("nightly", code=3)
    server.run("nightly", code=3)
    server.run("away", code=1)
    return server


def told(server: Server, *words: str) -> dict[str, Any]:
    """What a server tells of itself, as the page takes it."""
    text = server.serversync("report", *words, "--json").stdout
    (found,) = report.servers_of("-", text)
    assert found["problem"] is None
    return dict(found)


def test_a_server_tells_what_its_runs_came_to(ran: Server, tmp_path: Path) -> None:
    found = told(ran)
    jobs = {job["job"]: job for job in found["jobs"]}
    assert {name: job["state"] for name, job in jobs.items()} == {"away": "failed", "new": None, "nightly": "different"}
    nightly = jobs["nightly"]
    (day,) = nightly["days"]
    assert (day["different"], day["day"]) == (2, nightly["runs"][0]["started"][:10])
    assert day["longest"] <= day["seconds"] and len(nightly["runs"]) == 2
    (conflict,) = nightly["conflicts"]
    assert (conflict["element"], conflict["path"]) == (str(tmp_path / "a"), "x")
    assert conflict["this_server"].startswith("file, 4 bytes, ") and conflict["reason"] == "different, never agreed"
    assert jobs["away"]["days"][0]["failed"] == 1 and "missing does not exist" in jobs["away"]["runs"][0]["error"]
    assert jobs["new"]["days"] == jobs["new"]["runs"] == []
    assert [job["job"] for job in told(ran, "away")["jobs"]] == ["away"]


def test_the_page_is_written_in_one_step(ran: Server, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    done = ran.serversync("report", "--html", str(path))
    assert (done.stdout, done.stderr) == ("", "")
    page = path.read_text(encoding="utf-8")
    assert f"Synchronization jobs of {os.uname().nodename}" in page
    assert "Line &lt;1&gt;" in page and "1 path</a> waits for a decision" in page
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(entry for entry in os.listdir(tmp_path) if entry.startswith(".")) == []
    printed = ran.serversync("report", "--html", "-").stdout
    moment = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?")
    assert moment.sub("", printed) == moment.sub("", page)


@pytest.mark.parametrize("pairs", [["ab"], ["ab", "cd"]])
def test_the_commands_on_the_page_decide(server: Server, tmp_path: Path, pairs: list[str]) -> None:
    names = ("-x", "it's here", "y")
    for side in "".join(pairs):
        (tmp_path / side).mkdir()
        for name in names:
            (tmp_path / side / name).write_text(f"of {side}")
    server.declare("nightly", [(tmp_path / one, tmp_path / other) for one, other in pairs], settings=BOTH)
    server.run("nightly", code=3)
    page = server.serversync("report", "--html", "-").stdout
    commands = [html.unescape(one) for one in re.findall(r"Decide: <code>(.*?)</code>", page)]
    assert len(commands) == len(names) * len(pairs)
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "serversync"
        server.serversync(*words)
    assert server.run("nightly")["state"] == "equal"
    assert "No path waits for a decision." in server.serversync("report", "--html", "-").stdout


def test_a_file_for_the_page_that_cannot_be_one_is_refused(ran: Server, tmp_path: Path) -> None:
    done = ran.serversync("report", "--html", str(tmp_path), code=2)
    assert done.stderr == (f"serversync: --html: {tmp_path} is a directory; name a file, or - for standard output\n")
    done = ran.serversync("report", "--html", str(tmp_path / "none" / "x"), code=1)
    assert "cannot be written: No such file or directory" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say where the page is to be written: --html FILE; or give --json"),
        (["--html", "-", "--json"], "standard output takes one of --html - and --json"),
        (["nightly", "--from", "x", "--json"], "a report --from FILE is of all jobs in it; leave JOB out"),
        (["--from", "/dev/null", "--json"], "--from: /dev/null is not JSON"),
        (["--from", "/none", "--json"], "--from: /none: No such file or directory"),
        (["other", "--json"], "there is no job 'other'"),
    ],
)
def test_what_is_not_understood(server: Server, words: list[str], said: str) -> None:
    assert said in server.serversync("report", *words, code=2).stderr


def test_pages_of_several_servers_are_made_of_what_they_told(ran: Server, tmp_path: Path) -> None:
    other = Server(tmp_path / "other")
    (tmp_path / "d").mkdir()
    other.declare("back", [(tmp_path / "b", tmp_path / "a")])
    names = []
    for name, one in (("site-a", ran), ("hq", other)):
        document = report.document_of([{**told(one), "server": name, "machine": name}])
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
        names += ["--from", str(tmp_path / f"{name}.json")]
    page = other.serversync("report", "--html", "-", *names).stdout
    assert "Synchronization jobs of 2 servers" in page
    both = json.loads(other.serversync("report", "--json", *names).stdout)
    assert [one["server"] for one in both["servers"]] == ["site-a", "hq"]
    # Given on, it is the same.
    done = subprocess.run(
        other.command("report", "--json", "--from", "-"),
        env=other.environment,
        input=json.dumps(both),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == both


def test_circles_among_the_jobs_of_a_server_are_on_its_page(server: Server, tmp_path: Path) -> None:
    for name, one, other in (("there", "a", "b"), ("back", "b", "a")):
        server.declare(name, [(tmp_path / one, tmp_path / other)])
    page = server.serversync("report", "--html", "-").stdout
    assert "A circle: " in page and 'class="arrow round"' in page
    server.declare("back", [(tmp_path / "b", tmp_path / "c")])
    assert "No circle was found among them." in server.serversync("report", "--html", "-").stdout


def test_a_damaged_record_does_not_hide_the_other_jobs(ran: Server) -> None:
    (ran.home / ".local" / "state" / "serversync" / "public" / "nightly.json").write_text("{}")
    page = ran.serversync("report", "--html", "-").stdout
    assert "nightly.json is damaged (no mapping with runs); the next run of the job writes it anew" in page
    assert 'id="j2"' in page


# The playbook.


def play(site: Site, inventory: dict[str, Any], directory: Path, *words: str) -> str:
    """Runs the collection's playbook in a directory; it must succeed."""
    (directory / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": inventory}}))
    programs = os.path.dirname(sys.executable)
    environment = {
        **site.environment,
        "PATH": f"{programs}:{site.environment['PATH']}",
        "PWD": str(directory),
        "ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"],
        "ANSIBLE_HOME": str(site.home / ".ansible"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_NOCOLOR": "1",
    }
    command = ["ansible-playbook", "--inventory", "inventory.yml", "serversync.core.report", *words]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_playbook_makes_one_page_of_all_servers(tmp_path: Path) -> None:
    site = Site(tmp_path, systemd=False)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    elements = [{"path": str(tmp_path / "a"), "partner_path": str(tmp_path / "b")}]
    job = {"partner": {"host": "hq", "connection": "local"}, "elements": elements, "comment": "{{ 6 * 7 }}"}
    site.turn("sync_job", name="nightly").apply(**job)
    site.serversync("run", "nightly")
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    # Where no runner is, one that knows no reports, and one that is not there.
    for name in ("bare", "old"):
        (tmp_path / name / ".local" / "bin").mkdir(parents=True)
    old = tmp_path / "old" / ".local" / "bin" / "serversync"
    old.write_text(
        "#!/bin/sh\necho 'usage: serversync' >&2\necho \"serversync: usage: invalid choice: '$1'\" >&2\nexit 2\n"
    )
    old.chmod(0o755)
    other = {}
    for name, answer in (("cut-off", "{not json"), ("empty", '{"servers": []}'), ("seven", '{"servers": [7]}')):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{answer}'\n")
        path.chmod(0o755)
        other[name] = {**local, "report_launcher": str(path)}
    # Nothing of where it is started is imported.
    (tmp_path / "argparse.py").write_text("raise SystemExit('not this one')\n")
    inventory = {
        **other,
        "site-a": local,
        "bare": {**local, "report_launcher": f"{tmp_path}/bare/.local/bin/serversync"},
        "old": {**local, "report_launcher": str(old)},
        "gone": {"ansible_host": "127.0.0.1", "ansible_port": free_port()},
    }
    said = play(site, inventory, tmp_path, "--extra-vars", "report_scope=user")
    assert "failed=0" in said
    page = (tmp_path / "serversync-report.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<[^>]*>", "", page))
    for expected in (
        "Synchronization jobs of 7 servers",
        "6 servers without a report",
        "no report empty: what it answered is no report",
        "no report bare: ",
        "bare/.local/bin/serversync is not there; apply the role serversync.core.runner",
        "no report gone: ",
        "127.0.0.1 port",
        "no report old: serversync: usage: invalid choice: 'report'",
        "site-a1 job",
        # What a server tells is no template.
        "{{ 6 * 7 }}",
    ):
        assert expected in text, expected
    assert f"site-a:{tmp_path}/a->site-a:{tmp_path}/b" in text
    # In check mode nothing is written.
    before = (tmp_path / "serversync-report.html").stat().st_mtime_ns
    play(site, inventory, tmp_path, "--extra-vars", "report_scope=user", "--check")
    assert (tmp_path / "serversync-report.html").stat().st_mtime_ns == before
    play(
        site,
        inventory,
        tmp_path,
        "--limit",
        "site-a",
        "--extra-vars",
        f"report_scope=user report_file={tmp_path}/one.html",
    )
    assert "Synchronization jobs of site-a" in (tmp_path / "one.html").read_text(encoding="utf-8")


def test_the_guide_has_every_variable_of_the_playbook() -> None:
    book = (ROOT / "playbooks" / "report.yml").read_text(encoding="utf-8")
    guide = (ROOT / "docs" / "many-servers.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(report_\w+)` \|", guide, re.MULTILINE))
    assert documented == set(re.findall(r"(?<!\w)report_[a-z]+", book))
    assert "serversync.core.report\n" in guide
