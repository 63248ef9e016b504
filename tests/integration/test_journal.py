# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run as a unit starts it, whose output is a journal's: what it has to say arrives there, or else is written."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journald import Journal
from tests.loopback import Server, write_launcher

# Says when the end of the process begins to wait for the journal, which it then does for as long as it takes.
FIRST_WAIT = """
journal.PATIENCE = 10**6
first, sleep = [pathlib.Path(%r)], journal.time.sleep
journal.time.sleep = lambda seconds: first.pop().write_text("waits") if first else sleep(seconds)
"""


class Unit:
    """The unit of a job, with a journal of the test's own."""

    def __init__(self, server: Server, journal: Journal) -> None:
        self.server, self.journal = server, journal
        self.launch("")

    def launch(self, more: str) -> None:
        """more: is carried out before the runner's code."""
        home = f"os.environ['HOME'] = {str(self.server.home)!r}"
        path = (
            f"import pathlib\nfrom serversync import journal\njournal.SOCKET = pathlib.Path({str(self.journal.path)!r})"
        )
        write_launcher(self.server.launcher, f"{home}\n{path}\n{more}")

    def start(self, *words: str, code: int = 0) -> list[dict[str, str]]:
        """The entries that came meanwhile."""
        environment = {**self.server.environment, **self.journal.environment}
        output = self.journal.output
        process = subprocess.Popen(self.server.command(*words), env=environment, stdout=output, stderr=output)
        entries, ended = [], os.pidfd_open(process.pid)
        # It does not end before its entries are taken.
        while ended not in select.select([self.journal.socket, ended], [], [])[0]:
            entries += self.journal.entries()
        os.close(ended)
        assert process.wait() == code, self.journal.lines()
        return entries + self.journal.entries()


@pytest.fixture
def unit(server: Server, tmp_path: Path) -> Iterator[Unit]:
    journal = Journal(tmp_path)
    yield Unit(server, journal)
    journal.close()


def test_a_run_says_all_there(unit: Unit, server: Server, tmp_path: Path) -> None:
    good, missing = tmp_path / "a", tmp_path / "missing"
    good.mkdir()
    server.declare("nightly", [(good, tmp_path / "b"), (missing, tmp_path / "c")])
    entries = unit.start("unit", "nightly", code=1)
    assert unit.journal.lines() == []
    names = ("SERVERSYNC_EVENT", "SERVERSYNC_ELEMENT", "SERVERSYNC_STATE")
    assert [tuple(entry.get(name) for name in names) for entry in entries] == [
        ("run_started", None, None),
        ("element_ended", str(good), "equal"),
        ("element_ended", str(missing), "failed"),
        ("run_ended", None, "failed"),
    ]
    assert entries[1]["MESSAGE"] == f"{good}: equal, 0 copied, 0 bytes"
    assert [entry["PRIORITY"] for entry in entries] == ["6", "6", "3", "3"]
    assert {(entry["SERVERSYNC_JOB"], entry["SYSLOG_IDENTIFIER"]) for entry in entries} == {("nightly", "serversync")}
    [run] = {entry["SERVERSYNC_RUN"] for entry in entries}
    assert run in server.serversync("show", "nightly").stdout
    assert {entry.get("SERVERSYNC_CODE") for entry in entries[2:]} == {"missing"}


def test_a_journal_that_takes_nothing_costs_no_line(unit: Unit, server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    server.declare("nightly", [(tmp_path / "a", tmp_path / "b")])
    there = [entry["MESSAGE"] for entry in unit.start("unit", "nightly")]
    unit.journal.path.unlink()
    assert unit.start("unit", "nightly") == []
    lines = unit.journal.lines()
    assert [line.partition(" ")[0] for line in lines] == [line.partition(" ")[0] for line in there] and len(lines) == 3


def test_nobody_ends_before_the_journal_knows_whose_its_entries_are(unit: Unit, server: Server, tmp_path: Path) -> None:
    waits = tmp_path / "waits"
    os.mkfifo(waits)
    unit.launch(FIRST_WAIT % str(waits))
    said = os.open(waits, os.O_RDONLY | os.O_NONBLOCK)
    environment = {**server.environment, **unit.journal.environment}
    output = unit.journal.output
    with subprocess.Popen(server.command("unit", "gone"), env=environment, stdout=output, stderr=output) as process:
        ended = os.pidfd_open(process.pid)
        assert said in select.select([said, ended], [], [])[0]
        os.close(ended)
        assert [entry["SERVERSYNC_CODE"] for entry in unit.journal.entries()] == ["unknown_job"]
        assert process.wait() == 2
    os.close(said)


def test_why_there_was_no_run_is_there_too(unit: Unit, server: Server, tmp_path: Path) -> None:
    server.declare("nightly", [(tmp_path / "a", tmp_path / "b")], settings={"direction": "up"})
    [entry] = unit.start("unit", "nightly", code=2)
    assert (entry["SERVERSYNC_EVENT"], entry["SERVERSYNC_CODE"]) == ("failure", "invalid_document")
    assert (entry["SERVERSYNC_JOB"], entry["PRIORITY"]) == ("nightly", "3")
    assert entry["MESSAGE"].startswith("serversync: ")
    assert unit.journal.lines() == []


def test_whoever_waits_for_the_result_is_told_nothing_twice(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    server.declare("nightly", [(tmp_path / "a", tmp_path / "b")])
    done = server.serversync("run", "nightly")
    first, second = done.stdout.splitlines()[:2]
    assert first == f"{tmp_path}/a: equal, 0 copied, 0 bytes"
    assert second.startswith("nightly: equal (run ")
    assert server.serversync("run", "nightly", "--json").stderr == f"{first}\n"


def test_a_run_that_is_skipped_says_why(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    server.declare("nightly", [(tmp_path / "a", tmp_path / "b")])
    server.run("nightly")
    lock = server.home / ".local/state/serversync/locks/nightly.lock"
    argv = ["flock", str(lock), *server.command("run", "nightly")]
    done = subprocess.run(argv, env=server.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stdout.count("another run of this job is on; this one was skipped") == 1
