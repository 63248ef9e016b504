# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The jobs that converge.yml declared, on two real servers: what arrives, and what is told when it cannot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from testservers import MailServer, Server, text_of

PROGRAMS = ("/srv/line1/programs", "/srv/sites/siteA/programs")
DOCUMENTS = (("/srv/line1/doc", "/srv/sites/siteA/doc"), ("/srv/line1/python", "/srv/sites/siteA/python"))
RECIPES = ("/srv/line1/recipes", "/srv/recipes")


def without_excluded(lines: list[str]) -> list[str]:
    """The job leaves out *.tmp; on the side where it was never written it is missing."""
    return [line for line in lines if '.tmp"' not in line]


def last_run(server: Server, job: str) -> dict[str, Any]:
    """The newest run that has ended; by its timer another one may just be on."""
    runs: list[dict[str, Any]] = server.published(job)["runs"]
    return next(run for run in runs if run["state"] != "running")


@pytest.fixture(scope="module")
def fired(site: Server) -> dict[str, Any]:
    """The last run that the timer of line1-programs has started."""
    site.follow("serversync@line1-programs.service", "Finished serversync@line1-programs.service")
    return last_run(site, "line1-programs")


def test_a_timer_fires_and_the_files_arrive(site: Server, hq: Server, fired: dict[str, Any]) -> None:
    declared = site.run("systemctl", "show", "--property=TimersCalendar", "serversync@line1-programs.timer")
    assert "OnCalendar=*-*-* *:00/1:00 ;" in declared
    assert (fired["state"], fired["trigger"], fired["partner"]) == ("equal", "schedule", "hq:22")
    expected, arrived = site.tree(PROGRAMS[0]), hq.tree(PROGRAMS[1])
    assert len(expected) > 2000
    assert without_excluded(arrived) == without_excluded(expected)
    assert arrived == without_excluded(arrived), "what the job excludes must not arrive"


@pytest.mark.usefixtures("fired")
def test_a_sparse_file_stays_sparse(hq: Server) -> None:
    size, blocks = hq.run("stat", "--format=%s %b", PROGRAMS[1] + "/sparse").split()
    assert int(size) == 1 << 30
    assert int(blocks) * 512 < 1 << 24


def test_a_run_by_hand_copies_trees_that_nobody_here_wrote(site: Server, hq: Server, mail: MailServer) -> None:
    code, run = site.serversync("run", "line1-documents")
    assert (code, run["state"], run["trigger"]) == (0, "equal", "manual"), run
    for here, there in DOCUMENTS:
        expected = site.tree(here)
        assert len(expected) > 100
        assert hq.tree(there) == expected

    message = mail.mail_of(site, run)
    assert message["Subject"].startswith("[serversync] siteA: line1-documents succeeded")
    assert message["To"] == "ops@example.com"


def test_a_collector_finds_the_metrics_of_the_last_run(site: Server) -> None:
    code, run = site.serversync("run", "line1-documents")
    assert (code, run["state"]) == (0, "equal"), run
    path = "/var/lib/collector/serversync-line1-documents.prom"
    found = site.run("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "cat", path).splitlines()
    assert 'serversync_job_state{sync_job="line1-documents",state="equal"} 1' in found
    assert set(found) < set(site.run("serversync", "metrics").splitlines())


def test_a_second_run_moves_nothing(site: Server) -> None:
    assert site.serversync("run", "line1-documents")[0] == 0
    code, run = site.serversync("run", "line1-documents")
    assert code == 0
    for element in run["elements"]:
        moved = {key: element[key] for key in ("created", "updated", "attributes", "bytes")}
        assert moved == dict.fromkeys(moved, 0)
        assert element["state_before"] == "equal"


def test_from_the_partner(site: Server, hq: Server) -> None:
    code, run = site.serversync("run", "line1-recipes")
    assert (code, run["state"]) == (0, "equal"), run
    assert site.tree(RECIPES[0]) == without_excluded(hq.tree(RECIPES[1]))


def test_an_overwritten_file_is_kept(site: Server, hq: Server) -> None:
    path = "/srv/line1/doc/notes of the shift"
    site.write(path, "old")
    assert site.serversync("run", "line1-documents")[0] == 0
    site.write(path, "new")
    assert site.serversync("run", "line1-documents")[0] == 0
    assert hq.read("/srv/sites/siteA/doc/notes of the shift") == "new"
    kept = hq.run("find", "/srv/sites/siteA/doc/.serversync", "-name", "notes of the shift").splitlines()
    assert [hq.read(name) for name in kept] == ["old"]


def test_status_tells_every_job(site: Server) -> None:
    site.serversync("run", "line1-recipes")
    _code, rows = site.serversync("status")
    assert {"line1-programs", "line1-documents", "line1-recipes"} <= {row["job"] for row in rows}
    following = {row["job"]: row["next"] for row in rows}
    assert time.time() < following["line1-documents"] < time.time() + 4 * 86400
    assert following["line1-recipes"] is None
    assert "line1-recipes" in site.run("serversync", "status")


def test_check_finds_nothing_wrong(site: Server) -> None:
    code, findings = site.serversync("check", "line1-recipes")
    assert code == 0, findings
    assert not [entry for entry in findings["line1-recipes"] if entry["level"] == "error"]


@pytest.mark.usefixtures("no_sshd")
class TestPartnerAway:
    def test_retries_record_and_mail(self, site: Server, mail: MailServer) -> None:
        code, run = site.serversync("run", "line1-recipes")
        assert (code, run["state"]) == (1, "failed")
        assert [attempt["number"] for attempt in run["attempts"]] == [1, 2, 3]
        assert last_run(site, "line1-recipes")["run"] == run["run"]
        assert "hq" in run["error"]["message"]

        message = mail.mail_of(site, run)
        assert message["Subject"].startswith("[serversync] siteA: line1-recipes FAILED after 3 attempts: ")
        assert message["From"] == "serversync@sitea.example"
        body = text_of(message)
        assert "siteA" in body
        assert "hq" in body
        assert "serversync run line1-recipes" in body


def test_the_partner_is_back(site: Server, hq: Server) -> None:
    hq.write("/srv/recipes/after the outage", "here again\n")
    code, run = site.serversync("run", "line1-recipes")
    assert (code, run["state"], len(run["attempts"])) == (0, "equal", 1), run
    assert site.tree(RECIPES[0]) == without_excluded(hq.tree(RECIPES[1]))


def test_another_host_key_is_final(site: Server, hq: Server) -> None:
    pins = "/etc/serversync/pairings/hq.known_hosts"
    pinned = site.read(pins)
    alias = pinned.split()[0]
    other = site.read("/etc/ssh/ssh_host_ed25519_key.pub").split()
    try:
        site.write(pins, f"{alias} {other[0]} {other[1]}\n")
        code, run = site.serversync("run", "line1-recipes")
    finally:
        site.write(pins, pinned)
    assert (code, run["state"], len(run["attempts"])) == (1, "failed", 1), run
    assert "host key" in run["error"]["message"]
    assert site.serversync("run", "line1-recipes")[0] == 0


def test_an_unreachable_source_is_told_by_its_field(site: Server, hq: Server) -> None:
    hq.run("mv", "/srv/recipes", "/srv/recipes.away")
    try:
        code, run = site.serversync("run", "line1-recipes")
    finally:
        hq.run("mv", "/srv/recipes.away", "/srv/recipes")
    assert code == 1
    assert run["error"]["field"] == "elements[0].partner_path"
    assert "/srv/recipes" in run["error"]["message"]


def test_a_damaged_document_is_refused(site: Server) -> None:
    path = "/etc/serversync/jobs/line1-recipes.json"
    document = site.read(path)
    try:
        site.write(path, document.replace('"retries": 2', '"retries": -1'))
        done = site.try_run("serversync", "run", "line1-recipes")
    finally:
        site.write(path, document)
    assert done.returncode == 2
    assert "on_error.retries" in done.stderr


def test_a_plan_whose_terminal_is_closed_changes_nothing(site: Server) -> None:
    """Interrupted at once, again and again: the unit never takes a plan for a run."""
    site.write("/srv/line1/doc/planned only", "x")
    runs = len(site.published("line1-documents")["runs"])
    script = (
        "import signal, subprocess\n"
        "unit = '--unit=serversync@line1-documents.service'\n"
        "for _turn in range(8):\n"
        "    argv = ['journalctl', '--lines=0', '--show-cursor', '--quiet']\n"
        "    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout\n"
        "    cursor = shown.split('cursor: ')[1].strip()\n"
        "    plan = subprocess.Popen(['serversync', 'plan', 'line1-documents'], stdout=subprocess.DEVNULL)\n"
        "    argv = ['journalctl', '--follow', '--after-cursor=' + cursor, '--output=cat', unit]\n"
        "    journal = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)\n"
        "    next(line for line in journal.stdout if 'Starting' in line)\n"
        "    journal.kill()\n"
        "    plan.send_signal(signal.SIGHUP)\n"
        "    assert plan.wait() != 0\n"
    )
    site.python(script)
    assert len(site.published("line1-documents")["runs"]) == runs
    assert site.try_run("systemctl", "is-failed", "serversync@line1-documents.service").returncode != 0
    code, run = site.serversync("run", "line1-documents")
    assert (code, run["elements"][0]["created"]) == (0, 1)


def test_an_element_that_is_none_is_wrong_usage(site: Server) -> None:
    done = site.try_run("serversync", "run", "line1-recipes", "--element", "/nope")
    assert done.returncode == 2
    assert "has no element '/nope' (elements: /srv/line1/recipes)" in done.stderr
    assert site.try_run("systemctl", "is-failed", "serversync@line1-recipes.service").returncode != 0


def test_a_directory_swapped_for_a_link_on_the_partner_leads_nowhere(site: Server, hq: Server) -> None:
    hq.run("mkdir", "/srv/victim")
    hq.run("mv", "/srv/sites/siteA/doc", "/srv/sites/siteA/doc.away")
    hq.run("ln", "-s", "/srv/victim", "/srv/sites/siteA/doc")
    try:
        code, run = site.serversync("run", "line1-documents")
    finally:
        hq.run("rm", "/srv/sites/siteA/doc")
        hq.run("mv", "/srv/sites/siteA/doc.away", "/srv/sites/siteA/doc")
    assert code == 1
    assert [element["state_after"] for element in run["elements"]] == ["failed", "equal"]
    assert run["error"]["field"] == "elements[0].partner_path"
    assert hq.run("ls", "-A", "/srv/victim") == ""


# Has a directory and a link change their places again and again, until there is a third path.
SWAP = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
directory, link, end = map(os.fsencode, sys.argv[1:])
print("begun", flush=True)
swaps = 0
while not os.path.exists(end):
    for _swap in range(100):
        # AT_FDCWD, RENAME_EXCHANGE; a run may just be at one of them
        swaps += libc.renameat2(-100, directory, -100, link, 2) == 0
assert swaps > 100
"""


@contextmanager
def swapping(server: Server, directory: str, link: str) -> Iterator[None]:
    """Meanwhile the directory is now itself, and now the link."""
    end = "/run/swapped-enough"
    with server.start("python3", "-c", SWAP, directory, link, end) as swap:
        assert swap.stdout is not None
        assert swap.stdout.readline() == "begun\n"
        try:
            yield
        finally:
            server.run("touch", end)
    server.run("rm", end)
    assert swap.returncode == 0


def test_a_directory_that_is_swapped_for_a_link_during_runs_leads_nowhere(site: Server, hq: Server) -> None:
    """On this side, which has the job and its rights; by somebody who may write to its target."""
    hq.run("mkdir", "/srv/recipes/swapped")
    site.run("mkdir", "/srv/victim")
    site.run("chown", "serversync:", "/srv/victim")
    site.run("ln", "-s", "/srv/victim", "/srv/line1/link")
    try:
        assert site.serversync("run", "line1-recipes")[0] == 0
        with swapping(site, "/srv/line1/recipes/swapped", "/srv/line1/link"):
            for number in range(8):
                hq.write(f"/srv/recipes/swapped/{number}", f"{number}\n")
                code, run = site.serversync("run", "line1-recipes")
                assert code in (0, 1, 3), run
        assert site.run("ls", "-A", "/srv/victim") == ""
        site.serversync("run", "line1-recipes")
        assert site.run("ls", "/srv/line1/recipes/swapped/") == hq.run("ls", "/srv/recipes/swapped")
        assert site.run("ls", "-A", "/srv/victim") == ""
    finally:
        hq.run("rm", "-r", "/srv/recipes/swapped")
        site.run("rm", "-r", "/srv/victim", "/srv/line1/link", "/srv/line1/recipes/swapped")
    assert site.serversync("run", "line1-recipes")[1]["state"] == "equal"
