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
import pwd
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serversync._states import UNFINISHED
from serversync.counts import INTERVAL, Count, Publisher, Watch, published
from serversync.failure import Failure
from serversync.history import published as history_of
from serversync.history import replace
from serversync.layout import Layout, read_plain

REQUESTS = Path("/run/serversync-requests")
GROUP = "serversync"
# Seconds between a request and the start of the unit that it asks for, at the most.
STALE = 60


def service(name: str) -> str:
    return f"serversync@{name}.service"


def become_account() -> None:
    """From root to the account that the jobs run as, for good."""
    account = pwd.getpwnam(GROUP)
    os.initgroups(GROUP, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def show(unit: str, *properties: str) -> dict[str, str]:
    """systemd's properties of a unit, as it prints them."""
    argv = ["systemctl", "show", unit, *(f"--property={name}" for name in properties)]
    output = subprocess.run(argv, capture_output=True, text=True, check=False)
    if output.returncode:
        raise Failure("systemd", f"systemctl show {unit}: {output.stderr.strip()}")
    return dict(line.split("=", 1) for line in output.stdout.splitlines() if "=" in line)


# What of a unit says how it is started, and nothing of what it may do.
STARTING = ("Type", "Exec", "SuccessExitStatus", "Timeout", "RuntimeDirectory", "Environment")


def lines_of(unit: str) -> list[str]:
    """The lines of a service's section, without those that say how it is started: its sandbox, and its secrets."""
    output = subprocess.run(["systemctl", "cat", unit], capture_output=True, text=True, check=False)
    if output.returncode:
        raise Failure("systemd", f"systemctl cat {unit}: {output.stderr.strip()}")
    lines, section = [], ""
    for line in output.stdout.splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line[:1].isalpha() and not line.startswith(STARTING):
            lines.append(line)
    return lines


def ask(
    layout: Layout,
    name: str,
    verb: str,
    *,
    show_counts: Callable[[dict[str, Count]], None] | None = None,
    **request: Any,
) -> dict[str, Any]:
    """Starts the job's unit with a request and returns its answer; waits as long as the unit works.

    show_counts: is told how far a run is meanwhile.
    """
    if os.geteuid() != 0:
        raise Failure("not_root", f"only root may start the unit of a job; try: sudo serversync {verb} {name}")
    group = grp.getgrnam(GROUP).gr_gid
    REQUESTS.mkdir(mode=0o750, exist_ok=True)
    os.chown(REQUESTS, 0, group)
    with waiting(name, group):
        timer = f"serversync@{name}.timer"
        triggered = show(timer, "LastTriggerUSec")
        identity = secrets.token_hex(8)
        asked = {"id": identity, "verb": verb, "at": time.clock_gettime(time.CLOCK_BOOTTIME), **request}
        asked["counts"] = show_counts is not None
        path = REQUESTS / f"{name}.json"
        whole_run = verb == "run" and not request.get("element")
        # After the timer was asked: a run that it starts from now on is told by its time, one from before by this.
        if show(service(name), "ActiveState").get("ActiveState") not in ("inactive", "failed"):
            raise Failure("running", f"{name} is running now ({service(name)}); see: serversync status {name}")
        started = None
        try:
            replace(path, json.dumps(asked), 0o640, group)
            argv = ["systemctl", "start", service(name)]
            if show_counts is None:
                started = subprocess.run(argv, capture_output=True, text=True, check=False)
            else:
                started = followed(argv, lambda: show_counts(counts_of(layout, name, identity)))
            answer = read_answer(layout, name)
        finally:
            try:
                if started is None and verb != "run":
                    # Interrupted: the unit must not outlive its request, or it would take itself for the schedule's.
                    subprocess.run(["systemctl", "stop", service(name)], check=False)
            finally:
                path.unlink(missing_ok=True)
            if not whole_run and show(timer, "LastTriggerUSec") != triggered:
                # The schedule fell due while the unit was busy with us, and systemd does not start a unit twice.
                subprocess.run(["systemctl", "start", "--no-block", service(name)], check=False)
    if answer is None or answer.get("id") != identity or not {"result", "failure"} & answer.keys():
        said = started.stderr.strip() or f"see: journalctl -u {service(name)}"
        raise Failure("no_answer", f"{service(name)} gave no answer: {said}")
    if answer.get("failure"):
        raise Failure.from_dict(answer["failure"])
    return dict(answer["result"])


def follow(layout: Layout, record: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """The record of a run when it is over, whose next attempts systemd has made; nothing is held for so long."""
    attempts = 0
    while record["state"] in UNFINISHED:
        if record["state"] == "waiting" and len(record["attempts"]) != attempts:
            attempts = len(record["attempts"])
            say(f"attempt {attempts} {record['attempts'][-1]['state']}; the next at {record['retry']['at']}")
        time.sleep(1)
        known = history_of(layout, record["job"]) or {"runs": []}
        found = next((run for run in known["runs"] if run["run"] == record["run"]), None)
        if found is None:
            raise Failure("no_answer", f"the run {record['run']} is no more on record; its job was removed meanwhile")
        record = found
    return record


def followed(argv: list[str], look: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    """A command's result; looks every now and then while it works."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while True:
                try:
                    output, errors = process.communicate(timeout=INTERVAL)
                except subprocess.TimeoutExpired:
                    look()
                else:
                    return subprocess.CompletedProcess(argv, process.returncode, output, errors)
        except BaseException:
            process.kill()
            raise


def counts_of(layout: Layout, name: str, identity: str) -> dict[str, Count]:
    """How far the unit's run is that somebody asked for with this request."""
    return published(left(counts_path(layout, name)) or {}, identity)


def publisher(layout: Layout, name: str, request: dict[str, Any]) -> Watch | None:
    """What tells the terminal that asked for a run how far it is; None where it does not want to know."""
    return Publisher(counts_path(layout, name), request["id"]).watch if request.get("counts") else None


def counts_path(layout: Layout, name: str) -> Path:
    return answers(layout) / f"{name}.counts"


@contextmanager
def waiting(name: str, group: int) -> Iterator[None]:
    """Held while a terminal waits for the job's unit: one at a time, and the unit can tell that somebody does."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(REQUESTS / f"{name}.lock", flags, 0o640)
    try:
        os.fchown(descriptor, -1, group)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure("running", f"another command waits for {service(name)}; try again when it is done") from None
        yield
    finally:
        os.close(descriptor)


def answers(layout: Layout) -> Path:
    return layout.runtime / "answers"


def read_answer(layout: Layout, name: str) -> dict[str, Any] | None:
    return left(answers(layout) / f"{name}.json")


def left(path: Path) -> dict[str, Any] | None:
    """What a unit has left in a directory of the account's; None where it is not what a unit leaves."""
    try:
        answer = json.loads(read_plain(path))
    except (OSError, ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def request_of(name: str) -> dict[str, Any] | None:
    """The request that somebody waits for; None where the unit is to run the job by schedule.

    Where the terminal of a plan, a check or a run of one element is gone, this raises Failure, and the unit must do
    nothing. A request from long ago (its terminal was killed) says nothing of why the unit was started now.
    """
    try:
        request: dict[str, Any] = json.loads((REQUESTS / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    with (REQUESTS / f"{name}.lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return request
    whole_run = request["verb"] == "run" and not request.get("element")
    old = time.clock_gettime(time.CLOCK_BOOTTIME) - request["at"] > STALE
    # systemd names the timer in TRIGGER_UNIT where one has started the unit.
    if whole_run or old or "TRIGGER_UNIT" in os.environ:
        return None
    raise Failure("abandoned", f"the terminal that asked for {request['verb']} is gone; nothing was done")


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
        counts_path(layout, name).unlink(missing_ok=True)
        replace(directory / f"{name}.json", json.dumps(answer), 0o600)
    return dict(answer["result"])
