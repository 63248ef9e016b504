# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes of a run, found in /proc: those to measure, and those to kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    pid: int
    parent: int
    argv: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What it is of a run: runner, serve, ssh, sshd, rsync, find, sftp-server, or other."""
        words = [os.path.basename(word) for word in self.argv]
        if "serve" in words:
            return "serve"
        if "run" in words and "serversync" in words:
            return "runner"
        name = words[0].rstrip(":") if words else ""
        return name if name in ("ssh", "sshd", "rsync", "find", "sftp-server") else "other"


def processes() -> dict[int, Process]:
    """All that run; the dead that wait for their parents are left out."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                argv = Path("/proc", name, "cmdline").read_bytes()
                status = Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()
                if argv and status[0] not in "ZX":
                    # sshd shows its children as one word: "sshd: user [priv]".
                    words = argv.rstrip(b"\0").replace(b"\0", b" ") if argv.startswith(b"sshd:") else argv.rstrip(b"\0")
                    split = words.split(b" " if argv.startswith(b"sshd:") else b"\0")
                    found[int(name)] = Process(int(name), int(status[1]), tuple(map(os.fsdecode, split)))
    return found


def family(parents: Collection[int], marks: Collection[str] = ()) -> list[Process]:
    """All that descend from these processes, or have one of the marks in their command line or an ancestor that has."""
    every = processes()
    members: dict[int, bool] = dict.fromkeys(parents, True)

    def belongs(pid: int) -> bool:
        if pid not in members:
            process = every.get(pid)
            members[pid] = process is not None and (
                any(mark in word for word in process.argv for mark in marks) or belongs(process.parent)
            )
        return members[pid]

    members[os.getpid()] = False
    return [process for pid, process in every.items() if pid not in parents and belongs(pid)]


def kill(process: Process) -> bool:
    """Whether it was still there to be killed."""
    try:
        os.kill(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def memory(pid: int) -> int:
    """Bytes of memory that are the process's own, shared ones by their share; 0 where it is gone."""
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for line in Path("/proc", str(pid), "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def processes_that_show(text: str) -> list[str]:
    """The processes of this machine in whose command or environment the text is."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for path in (Path("/proc", pid, "cmdline"), Path("/proc", pid, "environ")):
            try:
                data = path.read_bytes()
            except OSError:  # it has ended, or is another user's
                continue
            if text.encode() in data:
                found.append(f"{path}: {data!r}")
    return found
