# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run may take: the time of an attempt, however alive the partner says that it is, and the processor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.loopback import Pair, Server, endless
from tests.proxy import Proxy

# Long enough for all that a test does, and the test is what ends it.
EVER = "7d"


class Stalled:
    """A job of two elements; the partner reads the first without an end, and says that it is alive meanwhile."""

    def __init__(self, pair: Pair, root: Path) -> None:
        self.pair = pair
        hook = endless(root / "hook")
        self.end = hook / "end"
        pair.there.wrap("env", f"PYTHONPATH={hook}")
        # Opened for both, so that who writes to it waits for nobody.
        self.reading = os.open(hook / "fifo", os.O_RDWR)

    def declare(self, limit: str, parallel: int, retries: int) -> None:
        limits = {"parallel": parallel, "timeout": limit, "nice": 0}
        on_error = {"retries": retries, "delay": "1s"}
        self.pair.declare_two(limits=limits, on_error=on_error)


@pytest.fixture
def stalled(pair: Pair, tmp_path: Path) -> Stalled:
    return Stalled(pair, tmp_path)


def begun(server: Server) -> subprocess.Popen[str]:
    argv = server.command("run", "nightly", "--json")
    return subprocess.Popen(argv, env=server.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], code: int) -> dict[str, Any]:
    out, err = process.communicate()
    assert process.returncode == code, out + err
    record: dict[str, Any] = json.loads(out)
    return record


def codes(record: dict[str, Any]) -> list[Any]:
    return [[error["code"] for error in attempt["errors"]] for attempt in record["attempts"]]


@pytest.mark.parametrize("parallel", [1, 2])
def test_an_attempt_is_over_when_its_time_is(stalled: Stalled, parallel: int) -> None:
    stalled.declare("1s", parallel, retries=1)
    record = stalled.pair.here.run("nightly", code=1)
    assert record["state"] == "failed"
    assert codes(record) == [["timeout"], ["timeout"]]
    assert record["error"] == {
        "code": "timeout",
        "field": "limits.timeout",
        "message": "the attempt was not over after 1s and was ended; the next one goes on from there; if that is not "
        "enough, look into the partner and the network, or raise it",
        "transient": True,
    }


@pytest.mark.parametrize("parallel", [1, 2])
def test_the_next_attempt_goes_on(stalled: Stalled, parallel: int) -> None:
    """Nothing of the one that was ended is in its way: no lock, no process, no connection."""
    stalled.declare(EVER, parallel, retries=1)
    process = begun(stalled.pair.here)
    assert os.read(stalled.reading, 7) == b"reading"
    # As the timer does when the time is over.
    process.send_signal(signal.SIGALRM)
    assert process.stderr is not None
    next(line for line in process.stderr if "attempt 1 of 2 failed" in line)
    stalled.end.touch()
    record = ended(process, 0)
    # The newer one of the two has won.
    assert (record["state"], codes(record)) == ("equal_with_warnings", [["timeout"], []])


def test_a_partner_that_does_not_even_answer(pair: Pair) -> None:
    with Proxy(pair.there.port) as proxy:
        pair.port = proxy.port
        pair.declare(limits={"parallel": 1, "timeout": "1s", "nice": 0})
        proxy.call(stall=True)
        assert codes(pair.here.run("nightly", code=1)) == [["timeout"]]
        proxy.call(stall=False)
        pair.declare()
        assert pair.here.run("nightly")["state"] == "equal"


def test_a_run_without_a_service_gives_way_by_itself(server: Server, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    server.extra["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\nnice >> {tmp_path}/nice\n")
    program.chmod(0o755)
    limits: dict[str, Any] = {"parallel": 1, "timeout": None, "nice": 7}
    after = [{"unit": "a.service"}]
    server.declare("gentle", [(tmp_path / "source", tmp_path / "target")], limits=limits, after=after)
    server.run("gentle")
    assert int((tmp_path / "nice").read_text()) == max(os.getpriority(os.PRIO_PROCESS, 0), 7)
