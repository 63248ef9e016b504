# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is told to stop, or is killed, ends on both sides, however large what is being read."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.loopback import Pair, endless


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    return endless(tmp_path / "hook")


@pytest.mark.parametrize(
    ("number", "parallel"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGKILL, 1)]
)
@pytest.mark.parametrize("where", ["here", "there"])
def test_reading_ends(pair: Pair, hook: Path, where: str, number: int, parallel: int) -> None:
    if where == "here":
        pair.here.extra["PYTHONPATH"] = str(hook)
    else:
        pair.there.wrap("env", f"PYTHONPATH={hook}")
    pair.declare_two(limits={"parallel": parallel})
    # A shell that runs the tests in the background has it ignored, by all that come from it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(pair.here.command("run", "nightly"), env=pair.here.environment)
        with (hook / "fifo").open("rb") as reading:
            assert reading.read(7) == b"reading"
            process.send_signal(number)
            process.wait()
            assert reading.read() == b""
    finally:
        signal.signal(signal.SIGINT, before)
        process.kill()
        process.wait()
    if number != signal.SIGKILL:
        assert process.returncode in (-number, 128 + number)
        pair.here.extra.clear()
        assert json.loads(pair.here.serversync("show", "nightly", "--json").stdout)["error"]["code"] == "stopped"
