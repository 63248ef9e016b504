# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills a process of the runner at a given step: before the n-th call that leaves something behind.

``killing.py STEP LOG LAUNCHER ARGUMENTS...`` starts the launcher's command so. LOG gets the step before which it was
killed; it is not written where the command came to its end first.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent / "roles" / "runner" / "files"
# What changes something on a disk; SQLite's and rsync's own calls are one step each.
SYSTEM = ("rename", "unlink", "rmdir", "mkdir", "link", "symlink", "mknod", "fsync", "ftruncate", "pwrite", "utime")
SYSTEM += ("chmod", "fchmod", "chown", "fchown", "setxattr", "removexattr")
# The ends of what the parts of a run promise.
BOUNDARIES = {"intend", "syncfs", "begin", "commit"}


def arm(step: int, log: Path) -> list[str]:
    """From now on this process counts its steps, in all of its threads, and is killed before the one of this number.

    What is returned fills with the names of those that were done.
    """
    sys.path.insert(0, str(PACKAGE))
    from serversync import archive, linux, rsync

    done: list[str] = []

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            done.append(name)
            if len(done) == step:
                log.write_text(f"{step}: {name}\n")
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counting

    for name in SYSTEM:
        setattr(os, name, counted(name, getattr(os, name)))
    for owner, names in ((archive.Archive, ("intend", "begin", "commit")), (rsync, ("Running",))):
        for name in names:
            setattr(owner, name, counted(name, getattr(owner, name)))
    for name in ("rename", "syncfs"):
        setattr(linux, name, counted(name, getattr(linux, name)))
    return done


def main() -> None:
    step, log, launcher = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    arm(step, log)
    sys.argv = sys.argv[3:]
    runpy.run_path(launcher, run_name="__main__")


if __name__ == "__main__":
    main()
