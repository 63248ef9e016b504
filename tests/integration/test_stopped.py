# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is told to stop, or is killed, ends on both sides, however large what is being read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.loopback import PACKAGE, Pair

# A file that has no end, as soon as its contents are asked for; who reads it has the FIFO open until it ends.
ENDLESS = """
import os, sys
sys.path.insert(0, {package!r})
from serversync import detect
def endless(descriptor, size):
    os.write(os.open({fifo!r}, os.O_WRONLY), b"reading")
    while True:
        yield 0, b"x"
detect.blocks = endless
"""


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    """The directory of a start-up module that makes files endless, and the FIFO in it."""
    directory = tmp_path / "hook"
    directory.mkdir()
    os.mkfifo(directory / "fifo")
    text = ENDLESS.format(package=str(PACKAGE), fifo=str(directory / "fifo"))
    (directory / "sitecustomize.py").write_text(text)
    return directory


@pytest.mark.parametrize(
    ("number", "parallel"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGKILL, 1)]
)
@pytest.mark.parametrize("where", ["here", "there"])
def test_reading_ends(pair: Pair, hook: Path, where: str, number: int, parallel: int) -> None:
    if where == "here":
        pair.here.extra["PYTHONPATH"] = str(hook)
    else:
        pair.there.wrap("env", f"PYTHONPATH={hook}")
    other = (pair.path.with_name("other"), pair.partner_path.with_name("other"))
    for root in (pair.path, pair.partner_path, *other):
        root.mkdir(exist_ok=True)
    for number_of, root in enumerate((pair.path, pair.partner_path)):
        (root / "plc").write_text("same")
        os.utime(root / "plc", (number_of, number_of))
    pair.declare(pairs=[(pair.path, pair.partner_path), other], limits={"parallel": parallel})
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
