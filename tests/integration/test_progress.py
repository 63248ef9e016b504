# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever runs a job on a terminal sees how far it is; whoever does not gets plain lines."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

from .conftest import Pair


def on_a_terminal(pair: Pair, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a command whose standard output is a terminal."""
    master, slave = pty.openpty()
    environment = {**pair.here.environment, "TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    process = subprocess.Popen(
        pair.here.command(*arguments), env=environment, stdin=slave, stdout=slave, stderr=slave, close_fds=True
    )
    os.close(slave)
    output = b""
    try:
        while data := os.read(master, 65536):
            output += data
    except OSError:
        # Linux says so when the last writer has closed its end.
        pass
    os.close(master)
    return process.wait(), output.decode()


def fill(path: Path) -> None:
    (path / "blocks").mkdir()
    for number in range(20):
        (path / "blocks" / f"{number}.st").write_text(f"FUNCTION_BLOCK {number}\n")


def test_a_terminal_sees_the_phases_and_at_the_end_only_the_result(pair: Pair) -> None:
    fill(pair.path)
    pair.declare()
    code, output = on_a_terminal(pair, "run", "nightly")
    assert code == 0, output
    assert output.index("scanning") < output.index("copying") < output.index("committing")
    assert "21 files" in output
    # The cursor is shown again, and what was there of the progress is gone.
    result = output[output.rindex("\x1b[?25h") :]
    assert "committing" not in result
    assert "nightly: equal" in result


def test_what_differs_though_it_looks_the_same_is_compared(pair: Pair) -> None:
    fill(pair.path)
    pair.declare()
    pair.here.run("nightly")
    for path in (pair.path / "new", pair.partner_path / "new"):
        path.write_text("the same\n")
    assert "comparing" in on_a_terminal(pair, "run", "nightly")[1]


def test_elsewhere_the_lines_are_plain(pair: Pair) -> None:
    fill(pair.path)
    pair.declare()
    done = pair.here.serversync("run", "nightly")
    assert done.stdout.startswith(f"{pair.path}: equal, 21 copied, ")
    printed = done.stdout + done.stderr
    assert [one for one in printed if not one.isprintable() and one != "\n"] == []


def test_json_is_nothing_but_json_on_a_terminal_too(pair: Pair) -> None:
    fill(pair.path)
    pair.declare()
    _code, output = on_a_terminal(pair, "run", "nightly", "--json")
    assert "\x1b" not in output
    assert "scanning" not in output
