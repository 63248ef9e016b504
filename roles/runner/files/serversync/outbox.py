# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mails on their way: runs put them here, and whoever sends them takes one away when the mail server has it.

In system scope that is a service of its own account, which comes near neither jobs nor replicas. A mail server that is
away is asked again and again; a mail that it will never take is put beside the others, with what was said of it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

from serversync.failure import Failure
from serversync.history import replace
from serversync.journal import ERR, INFO, WARNING, Entry
from serversync.layout import Layout, read_plain

# How long a mail is tried; as a rule mail servers keep one for as long.
PATIENCE = timedelta(days=5)
# Seconds between two tries: the first pause, and the longest of those that double it.
PAUSE, LONGEST = 60, 15 * 60
# And the only one after a refused log-in: servers lock accounts for those.
SLOW = 6 * 3600
# So many of those that could not be sent are kept, the newest.
KEPT = 100

# What there is to say of a mail that the mail server has.
SENT = "sent"

# The directory is for those alone who write and send.
MODE = 0o644

Mail = dict[str, Any]
# Hands a mail to the mail server; those whom it does not take it for, each with its answer. Raises these three.
Deliver = Callable[[Mail], dict[str, str]]


class Away(Exception):
    """The mail server takes no mails now; its text says why, and what to do. slow: to ask often does harm, as where a
    log-in was refused."""

    def __init__(self, text: str, *, slow: bool = False) -> None:
        super().__init__(text)
        self.slow = slow


class Later(Exception):
    """The mail server does not take this mail now; its text says why."""


class Refused(Exception):
    """The mail server will never take this mail; its text says why."""


class Left(NamedTuple):
    """Why mails wait. slow: as of ``Away``."""

    reason: str
    slow: bool = False


def now() -> datetime:
    return datetime.now(timezone.utc)


def post(layout: Layout, name: str, mail: Mail) -> None:
    """Puts a mail into the outbox. mail: job, run, event, to, subject, text, html. Raises Failure.

    run: its name, or what stands for it where the mail is not about one.
    """
    letter = {**mail, "posted": now().isoformat(timespec="seconds"), "tries": 0, "error": None}
    try:
        # The role makes it, for the account that sends.
        layout.outbox.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace(layout.outbox / f"{name}.json", json.dumps(letter, indent=1) + "\n", MODE)
    except OSError as error:
        message = f"the mail cannot be put into {layout.outbox} ({error.strerror}); free space, or apply the role again"
        raise Failure("records", message) from error


def read(path: Path) -> Mail:
    """A mail as ``post`` has written it; ValueError where it is none."""
    try:
        mail: Mail = json.loads(read_plain(path))
        texts = {name: mail[name] for name in ("job", "run", "event", "subject", "text", "html")}
        if not all(isinstance(one, str) for one in (*texts.values(), *mail["to"])) or not mail["to"]:
            raise TypeError("no text")
        posted = moment(mail).isoformat()
        return {**texts, "to": [*mail["to"]], "tries": int(mail["tries"]), "error": mail["error"], "posted": posted}
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever it is, it is none, and the others are to be sent
        raise ValueError(f"{path}: {error}") from error


def called(mail: Mail) -> str:
    """How texts name a mail."""
    what = "lateness" if mail["event"] == "late" else "run"
    return f"{mail['job']}, {what} {mail['run']}: mail to {', '.join(mail['to'])}"


def moment(mail: Mail) -> datetime:
    """When it was posted."""
    return datetime.fromisoformat(mail["posted"]).astimezone()


def put_aside(path: Path, mail: Mail | None) -> None:
    """Keeps what will not be sent, but not for ever; mail: as it is to be kept."""
    directory = path.parent / "undelivered"
    if not directory.is_dir():
        directory.mkdir()
        # The runner, too, is to see them; nobody else comes as far as here.
        directory.chmod(0o755)
    if mail is None:
        path.replace(directory / path.name)
    else:
        replace(directory / path.name, json.dumps(mail, indent=1) + "\n", MODE)
        path.unlink(missing_ok=True)
    for old in sorted(directory.iterdir(), reverse=True)[KEPT:]:
        # What is no file is none of ours.
        with suppress(OSError):
            old.unlink()


def cleared(path: Path) -> Left | None:
    """Puts aside what is no mail; why it stays, where that cannot be."""
    try:
        put_aside(path, None)
    except OSError as error:
        return Left(f"{path} is no mail and stays where it is ({error.strerror})")
    return None


def send(outbox: Path, deliver: Deliver, log: Callable[[str], None]) -> Left | None:
    """Tries each mail once, unless the mail server is away for all; why some still wait, None: none does."""
    left = None
    with locked(outbox):
        # The oldest first.
        for path in sorted(outbox.glob("*.json")):
            try:
                mail = read(path)
            except FileNotFoundError:
                continue
            except ValueError:
                stays = cleared(path)
                if stays:
                    log(Entry(stays.reason, "notification", ERR))
                    left = stays
                continue

            def say(what: str, level: int, mail: Mail = mail) -> None:
                line = f"{called(mail)} {what}"
                log(Entry(line, "notification", level, job=mail["job"], run=mail["run"]))

            try:
                refused = deliver(mail)
            except Away as away:
                say(keep(path, mail, str(away)), WARNING)
                return Left(str(away), away.slow)
            except Later as later:
                left = Left(str(later))
                say(keep(path, mail, left.reason), WARNING)
                continue
            except Refused as refusal:
                put_aside(path, mail | {"error": str(refusal)})
                say(f"refused: {refusal}", ERR)
                continue
            found = outcome(path, mail, refused)
            left = found[0] or left
            for line in found[1]:
                say(line, INFO if line == SENT else WARNING)
    return left


def outcome(path: Path, mail: Mail, refused: dict[str, str]) -> tuple[Left | None, list[str]]:
    """What becomes of a mail that the mail server has answered for each of its recipients, and what there is to say."""
    later = {recipient: why for recipient, why in refused.items() if why.startswith("4")}
    never = [f"{recipient}: {why}" for recipient, why in refused.items() if recipient not in later]
    lines = [f"refused for {one}" for one in never]
    if len(refused) < len(mail["to"]):
        lines.append(SENT)
    if later:
        reason = "; ".join(f"{recipient}: {why}" for recipient, why in later.items())
        return Left(reason), [*lines, keep(path, mail | {"to": [*later]}, reason)]
    if len(refused) == len(mail["to"]):
        put_aside(path, mail | {"error": "; ".join(never)})
    else:
        path.unlink(missing_ok=True)
    return None, lines


def keep(path: Path, mail: Mail, reason: str) -> str:
    """Leaves a mail for another try, unless it has been tried for long enough; what there is to say of it."""
    mail = mail | {"tries": mail["tries"] + 1, "error": reason}
    # A clock may have been set meanwhile.
    if abs(now() - moment(mail)) < PATIENCE:
        replace(path, json.dumps(mail, indent=1) + "\n", MODE)
        return f"waits: {reason}"
    put_aside(path, mail)
    return f"given up after {PATIENCE.days} days: {reason}"


def refusal(outbox: Path, name: str) -> str | None:
    """Why the mail of that name was not sent and will not be, as far as that is known."""
    try:
        return str(json.loads(read_plain(outbox / "undelivered" / f"{name}.json"))["error"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


@contextmanager
def locked(outbox: Path) -> Iterator[None]:
    """One at a time sends what is there, so that nothing is sent twice."""
    descriptor = os.open(outbox, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def send_all(outbox: Path, deliver: Deliver, log: Callable[[str], None], wait: Callable[[float], None]) -> None:
    """Until the outbox is empty. wait: sleeps for so many seconds."""
    pause = PAUSE
    while left := send(outbox, deliver, log):
        wait(SLOW if left.slow else pause)
        pause = min(2 * pause, LONGEST)
