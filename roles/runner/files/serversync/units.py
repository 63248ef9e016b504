# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The administrator's systemd units that a job has started before and after a run.

In system scope a run may start nothing: root does it, at a socket, and takes no more from a run than a job's name.
Which units these are it reads in the job document, which only root writes.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from serversync import job as jobs
from serversync.failure import Failure
from serversync.job import Job
from serversync.layout import Layout
from serversync.run import timestamp

# Of a question.
LONGEST = 4096
SOCKET = Path("/run/serversync-units.sock")
PHASES = ("before", "after")


def systemctl(layout: Layout, *words: str) -> subprocess.CompletedProcess[str]:
    argv = ["systemctl", *([] if layout.privileged else ["--user"]), "--no-ask-password", *words]
    try:
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Failure("units", f"systemctl cannot be started ({error.strerror}); leave before and after out") from error


def names(job: Job, phase: str) -> list[str]:
    return [one["unit"] for one in job[phase]]


def start(layout: Layout, job: Job, phase: str) -> list[dict[str, Any]]:
    """Starts the units one after another, each when the one before it is done: what became of each.

    Before a run the first that fails ends it. After one all are tried: each may be there to set something free.
    """
    told: list[dict[str, Any]] = []
    for number, unit in enumerate(names(job, phase)):
        entry: dict[str, Any] = {"unit": unit, "started": timestamp(), "ended": None, "error": None}
        done = systemctl(layout, "start", "--", unit)
        entry["ended"] = timestamp()
        told.append(entry)
        if done.returncode:
            said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0].rstrip(".")
            user = "" if layout.privileged else "--user "
            message = f"{unit}: {said}; see: journalctl {user}-u {unit}"
            entry["error"] = Failure(phase, message, field=f"{phase}[{number}].unit").as_dict()
            if phase == "before":
                break
    return told


def ask(layout: Layout, job: Job, phase: str) -> list[dict[str, Any]]:
    """Has them started by who may, and waits for them."""
    if not layout.privileged:
        return start(layout, job, phase)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(SOCKET))
            connection.sendall(json.dumps({"job": job.name, "phase": phase}).encode() + b"\n")
            with connection.makefile("r", encoding="utf-8") as stream:
                answer = json.loads(stream.read() or "null")
    except (OSError, ValueError) as error:
        message = f"nobody answers at {SOCKET} ({error}); apply the role serversync.core.runner again"
        raise Failure("units", message, field=phase) from error
    if not isinstance(answer, dict) or "failure" in answer:
        said = answer["failure"]["message"] if answer else "there was no answer"
        raise Failure("units", f"{said}; see: journalctl -u 'serversync-units@*'", field=phase)
    return list(answer["units"])


def serve(layout: Layout) -> int:
    """Root's end of the socket: one question on standard input, the answer on standard output."""
    try:
        question = json.loads(sys.stdin.readline(LONGEST))
        phase = question["phase"]
        if phase not in PHASES:
            raise Failure("units", f"{phase!r} is not one of {', '.join(PHASES)}")
        answer: dict[str, Any] = {"units": start(layout, jobs.load(layout, str(question["job"])), phase)}
    except (ValueError, KeyError, TypeError) as error:
        answer = {"failure": Failure("units", f"that is no question: {error!r}").as_dict()}
    except Failure as failure:
        answer = {"failure": failure.as_dict()}
    print(json.dumps(answer))
    return 0


def after_death(layout: Layout, job: Job) -> list[str]:
    """Starts the units of ``after`` in the place of a runner that was killed; nobody waits for them."""
    found = names(job, "after")
    done = systemctl(layout, "start", "--no-block", "--", *found)
    if done.returncode:
        raise Failure("units", f"{', '.join(found)}: {done.stderr.strip()}", field="after")
    return found
