# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from serversync import linux
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


CONFINED = """
import ctypes, os, sys
from serversync import linux
outside = os.getppid()
os.readlink(f"/proc/{outside}/root")
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert linux.confine()
for way in ("root", "cwd", "fd/0"):
    try:
        os.stat(f"/proc/{outside}/{way}")
    except PermissionError:
        continue
    sys.exit(f"{way} of a process outside is in reach")
waiting, held = os.pipe()
child = os.fork()
if not child:
    os.close(held)
    os.read(waiting, 1)
    os._exit(0)
os.readlink(f"/proc/{child}/root")
for name in ("a", "b"):
    os.mkdir(name)
open("a/file", "w").close()
os.link("a/file", "b/link")
os.rename("a/file", "b/file")
os.rename("b", "a/b")
"""


def test_who_is_confined_reaches_no_process_outside(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(linux.__file__).parents[1])}
    argv = [sys.executable, "-c", CONFINED]
    subprocess.run(argv, check=True, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["file", "link"]
