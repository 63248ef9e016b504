# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
from pathlib import Path

import pytest
from serversync.linux import born


def test_when_a_directory_was_made_stays_whatever_becomes_of_it(tmp_path: Path) -> None:
    held = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        made = born(held)
        if not made:
            pytest.skip("this file system does not keep it")
        # By the clock that stamped it then, which no later change of the directory is before.
        assert made <= tmp_path.stat().st_ctime_ns
        (tmp_path / "x").mkdir()
        tmp_path.chmod(0o700)
        os.utime(tmp_path, (1, 1))
        assert born(held) == made
    finally:
        os.close(held)


def test_what_cannot_be_asked_says_nothing() -> None:
    assert born(-1) == 0
