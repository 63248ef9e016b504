# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two ends of "do it in the job's own unit": root's terminal asks, the sandboxed service answers.

In system scope nothing opens a replica but ``serversync@JOB.service``, with its user, sandbox and writable paths,
whoever types the command. The request lies in a directory that only root may write.
"""

from __future__ import annotations

import fcntl
import grp
import json
import os
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serversync.failure import Failure
from serversync.history import replace
from serversync.layout import Layout

REQUESTS = Path("/run/serversync-requests")
GROUP = "serversync"


def service(name: str) -> str:
    return f"serversync@{name}.service"


def show(unit: str, *properties: str) -> dict[str, str]:
    """systemd's properties of a unit, as it prints them."""
    argv = ["systemctl", "show", unit, *(f"--property={name}" for name in properties)]
    output = subprocess.run(argv, capture_output=True, text=True, check=False)
    if output.returncode:
        raise Failure("systemd", f"systemctl show {unit}: {output.stderr.strip()}")
    return dict(line.split("=", 1) for line in output.stdout.splitlines() if "=" in line)


def ask(layout: Layout, name: str, verb: str, **request: Any) -> dict[str, Any]:
    """Starts the job's unit with a request and returns its answer; waits as long as the unit works."""
    if os.geteuid() != 0:
        raise Failure("not_root", f"only root may start the unit of a job; try: sudo serversync {verb} {name}")
    if show(service(name), "ActiveState").get("ActiveState") not in ("inactive", "failed"):
        raise Failure("running", f"{name} is running now ({service(name)}); see: serversync status {name}")
    timer = f"serversync@{name}.timer"
    triggered = show(timer, "LastTriggerUSec")
    identity = secrets.token_hex(8)
    REQUESTS.mkdir(mode=0o750, exist_ok=True)
    os.chown(REQUESTS, 0, grp.getgrnam(GROUP).gr_gid)
    path = REQUESTS / f"{name}.json"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        # Held as long as this process lives: a request that nobody waits for is void, and the unit runs the job.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.fchown(descriptor, 0, grp.getgrnam(GROUP).gr_gid)
        os.write(descriptor, json.dumps({"id": identity, "verb": verb, **request}).encode("ascii"))
        started = subprocess.run(["systemctl", "start", service(name)], capture_output=True, text=True, check=False)
        answer = read_answer(layout, name)
    finally:
        path.unlink()
        os.close(descriptor)
    if verb != "run" and show(timer, "LastTriggerUSec") != triggered:
        # The schedule fell due while the unit answered us, and systemd does not start a unit twice.
        subprocess.run(["systemctl", "start", "--no-block", service(name)], check=True)
    if answer is None or answer.get("id") != identity:
        said = started.stderr.strip() or f"see: journalctl -u {service(name)}"
        raise Failure("no_answer", f"{service(name)} gave no answer: {said}")
    if answer.get("failure"):
        raise Failure.from_dict(answer["failure"])
    return dict(answer["result"])


def answers(layout: Layout) -> Path:
    return layout.runtime / "answers"


def read_answer(layout: Layout, name: str) -> dict[str, Any] | None:
    try:
        descriptor = os.open(answers(layout) / f"{name}.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, encoding="utf-8") as stream:
        answer: dict[str, Any] = json.load(stream)
    return answer


def request_of(name: str) -> dict[str, Any] | None:
    """The request that somebody waits for, or None: then the unit was started by its timer or by systemctl."""
    try:
        descriptor = os.open(REQUESTS / f"{name}.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            request: dict[str, Any] = json.load(stream)
            return request
    return None


def respond(layout: Layout, name: str, request: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Does the work and leaves its result, or its failure, where the terminal looks for it."""
    directory = answers(layout)
    directory.mkdir(mode=0o700, exist_ok=True)
    answer: dict[str, Any] = {"id": request["id"]}
    try:
        answer["result"] = work()
    except Failure as failure:
        answer["failure"] = failure.as_dict()
        raise
    finally:
        replace(directory / f"{name}.json", json.dumps(answer), 0o600)
    return dict(answer["result"])
