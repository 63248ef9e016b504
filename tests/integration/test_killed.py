# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Killed between any two of stage, journal, commit, sync and archive; tests/faults/steps.py has the steps between."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.loopback import ROOT

SHARES = 4


@pytest.mark.parametrize("share", range(1, SHARES + 1))
def test_a_run_that_is_killed_anywhere_is_finished_by_the_next(share: int) -> None:
    """In a process of its own, which has no threads when it forks."""
    argv = [sys.executable, str(ROOT / "tests" / "faults" / "steps.py"), "--boundaries", "--direction", "both"]
    done = subprocess.run([*argv, "--share", f"{share}/{SHARES}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
