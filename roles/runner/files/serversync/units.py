# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of systemd a run needs and may not have: the administrator's units, and to be started again.

In system scope a run may start nothing: root does it, at a socket, and takes no more from a run than a job's name, and
how long to wait for the next attempt. Which units these are it reads in the job document, which only root writes.
Whoever finds a job late has its services told in the same way.
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
from serversync.services import URLS
from serversync.unit import lines_of, service

# Of a question.
LONGEST = 4096
SOCKET = Path("/run/serversync-units.sock")
PHASES = ("before", "after")
AGAIN = "again"
TELL = "late"
# As a job's delay may be.
LONGEST_WAIT = 86400
# What looks at all jobs, and in seconds how long services may take to be told.
LOOK, LONGEST_TELLING = "serversync-late.service", 600


def systemctl(layout: Layout, *words: str) -> subprocess.CompletedProcess[str]:
    try:
        return command("systemctl", *([] if layout.privileged else ["--user"]), "--no-ask-password", *words)
    except OSError as error:
        raise Failure("units", f"systemctl cannot be started ({error.strerror}); leave before and after out") from error


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


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
    return (
        list(question({"job": job.name, "phase": phase})["units"]) if layout.privileged else start(layout, job, phase)
    )


def question(asked: dict[str, Any]) -> dict[str, Any]:
    """What root answers at its socket."""
    phase = asked["phase"]
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(SOCKET))
            connection.sendall(json.dumps(asked).encode() + b"\n")
            with connection.makefile("r", encoding="utf-8") as stream:
                answer = json.loads(stream.read() or "null")
    except (OSError, ValueError) as error:
        message = f"nobody answers at {SOCKET} ({error}); apply the role serversync.core.runner again"
        raise Failure("units", message, field=phase) from error
    if not isinstance(answer, dict) or "failure" in answer:
        said = answer["failure"]["message"] if answer else "there was no answer"
        raise Failure("units", f"{said}; see: journalctl -u 'serversync-units@*'", field=phase)
    return answer


def start_again(job: Job, seconds: int) -> None:
    """Has the job started for its next attempt, by root, when this process and its unit are long gone."""
    question({"job": job.name, "phase": AGAIN, "after": seconds})


def arm(name: str, seconds: int) -> None:
    """Root's part of it: a timer that lives until it elapses, or the server goes down."""
    service = f"serversync-recover@{name}.service"
    timer = f"serversync-recover@{name}.timer"
    # There is none as a rule.
    command("systemctl", "--no-ask-password", "stop", "--", timer)
    when = [f"--on-active={seconds}s", "--timer-property=AccuracySec=1s"]
    done = command("systemd-run", "--quiet", "--no-ask-password", *when, f"--unit={service}")
    if done.returncode:
        raise Failure("units", f"{timer} cannot be made: {done.stderr.strip()}")


def have_told(job: Job) -> None:
    """Has the services of ``notification.urls`` told that the job is late; nobody waits for it."""
    question({"job": job.name, "phase": TELL})


def tell(job: Job) -> None:
    """Root's part of it: a passing unit with the sandbox of what looks at all jobs, a network, and this job's URLs.

    The job's own unit, which may hang, is not needed for it.
    """
    secrets = [line for line in lines_of(service(job.name)) if line.startswith("LoadCredential")]
    lines = [
        *lines_of(LOOK),
        "PrivateNetwork=no",
        "RestrictAddressFamilies=AF_INET AF_INET6",
        f"RuntimeMaxSec={LONGEST_TELLING}",
        *(line for line in secrets if line.partition("=")[2].startswith(f"{URLS}:")),
    ]
    unit = f"serversync-late-{job.name}.service"
    what = [f"--unit={unit}", *(f"--property={line}" for line in lines), "--", sys.argv[0], "late", job.name]
    done = command("systemd-run", "--quiet", "--no-ask-password", "--collect", *what)
    if done.returncode:
        raise Failure("units", f"{unit} cannot be started: {done.stderr.strip()}")


def going_down() -> bool:
    """Whether this server is being shut down, which stops runs that are to go on."""
    for _try in range(5):
        done = command("systemctl", "is-system-running")
        # systemd, which has just told all processes of the unit to end, may have told this one, too.
        if done.returncode >= 0:
            break
    return done.stdout.strip() == "stopping"


def serve(layout: Layout) -> int:
    """Root's end of the socket: one question on standard input, the answer on standard output."""
    try:
        asked = json.loads(sys.stdin.readline(LONGEST))
        phase, job = asked["phase"], jobs.load(layout, str(asked["job"]))
        if phase not in (*PHASES, AGAIN, TELL):
            raise Failure("units", f"{phase!r} is not one of {', '.join((*PHASES, AGAIN, TELL))}")
        answer: dict[str, Any] = {}
        if phase == AGAIN:
            arm(job.name, min(max(int(asked["after"]), 0), LONGEST_WAIT))
        elif phase == TELL:
            tell(job)
        else:
            answer["units"] = start(layout, job, phase)
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
