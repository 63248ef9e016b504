# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The records of runs: SQLite for the runner alone, and per job a published file that others may read."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from serversync._states import SEVERITY, UNFINISHED
from serversync.display import copied, total
from serversync.failure import Failure, InvalidDocument
from serversync.job import Job, check_name
from serversync.layout import Layout, read_plain
from serversync.schedule import terms

KEEP_RUNS = 10_000
KEEP_DAYS = 400
PUBLISHED = 50
# Days that are published: 90, and one to either side for whose calendar is ahead or behind.
PUBLISHED_DAYS = 92
SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run TEXT PRIMARY KEY, job TEXT NOT NULL, started TEXT NOT NULL, state TEXT NOT NULL, record TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS configurations (
    job TEXT NOT NULL, number INTEGER NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (job, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS days (
    job TEXT NOT NULL, day TEXT NOT NULL,
    equal INTEGER NOT NULL, equal_with_warnings INTEGER NOT NULL, skipped INTEGER NOT NULL,
    different INTEGER NOT NULL, failed INTEGER NOT NULL,
    seconds REAL NOT NULL, longest REAL NOT NULL,
    copied INTEGER NOT NULL, deleted INTEGER NOT NULL, bytes INTEGER NOT NULL, conflicts INTEGER NOT NULL,
    PRIMARY KEY (job, day)
) WITHOUT ROWID;
"""
# What is known of a day: how many of its runs came to each state; their seconds together, and what they did; the
# longest of them.
SUMS = (*SEVERITY, "seconds", "copied", "deleted", "bytes", "conflicts")
COUNTED = (*SUMS, "longest")
NAMES = ", ".join(COUNTED)
MERGED = (
    f"ON CONFLICT (job, day) DO UPDATE SET longest = max(longest, excluded.longest), "
    f"{', '.join(f'{name} = {name} + excluded.{name}' for name in SUMS)}"
)
ADDED = f"INSERT INTO days (job, day, {NAMES}) VALUES (:job, :day, :{NAMES.replace(', ', ', :')}) {MERGED}"  # noqa: S608


# In which order a job's runs came; a clock that was wrong for a while tells another one.
NUMBERED = "ALTER TABLE runs ADD COLUMN number INTEGER NOT NULL DEFAULT 0"
IN_ORDER = "DROP INDEX IF EXISTS runs_of_job; CREATE INDEX IF NOT EXISTS runs_in_order ON runs (job, number, started)"


def of_day(record: dict[str, Any]) -> dict[str, Any]:
    """What a run that is over adds to the day on which it began, by this server's calendar."""
    record = {"ended": None, "elements": [], **record}
    began = datetime.fromisoformat(record["started"]).astimezone()
    ended = datetime.fromisoformat(record["ended"]).astimezone() if record["ended"] else began
    # A clock that was set back meanwhile makes none shorter than nothing.
    seconds = max((ended - began).total_seconds(), 0)
    return {
        **dict.fromkeys(SEVERITY, 0),
        "job": record["job"],
        "day": began.date().isoformat(),
        record["state"]: 1,
        "seconds": seconds,
        "longest": seconds,
        "copied": copied(record),
        **{counter: total(record, counter) for counter in ("deleted", "bytes", "conflicts")},
    }


class History:
    """The records of one server; only the runner opens them for writing."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        with self.kept():
            layout.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            layout.records.touch(mode=0o600)
            self.database = sqlite3.connect(layout.records, timeout=60, isolation_level=None)
            self.database.execute("PRAGMA journal_mode=WAL")
            self.database.executescript(SCHEMA)
            if "number" not in [column[1] for column in self.database.execute("PRAGMA table_info(runs)")]:
                self.database.execute(NUMBERED)
            self.database.executescript(IN_ORDER)

    def close(self) -> None:
        self.database.close()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What cannot be written is told as one Failure, ``records``."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            message = f"the records cannot be kept in {self.layout.records}: {error}; free space, or move the file away"
            raise Failure("records", message) from error

    @contextmanager
    def changing(self) -> Iterator[None]:
        """What is done in the block is kept whole or not at all; in another such block it is a part of that."""
        with self.kept():
            if self.database.in_transaction:
                yield
                return
            with self.database:
                self.database.execute("BEGIN IMMEDIATE")
                yield

    def configuration(self, job: Job) -> int:
        """The running number of the job's configuration: one more whenever its document differs from the last."""
        query = "SELECT number, digest FROM configurations WHERE job = ? ORDER BY number DESC LIMIT 1"
        number, digest = self.database.execute(query, (job.name,)).fetchone() or (0, None)
        if digest != job.digest:
            number += 1
            insert = "INSERT OR IGNORE INTO configurations VALUES (?, ?, ?)"
            with self.kept():
                self.database.execute(insert, (job.name, number, job.digest))
        return int(number)

    def keep(self, record: dict[str, Any]) -> None:
        row = (record["run"], record["job"], record["started"], record["state"], json.dumps(record))
        with self.changing():
            query = "SELECT state FROM runs WHERE run = ?"
            (before,) = self.database.execute(query, (record["run"],)).fetchone() or ("running",)
            self.database.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, "
                "(SELECT COALESCE(MAX(number), 0) + 1 FROM runs WHERE job = ?)) "
                "ON CONFLICT (run) DO UPDATE SET state = excluded.state, record = excluded.record",
                (*row, record["job"]),
            )
            if before in UNFINISHED and record["state"] not in UNFINISHED:
                self.count(record)

    def count(self, record: dict[str, Any]) -> None:
        """Adds a run that has just ended to its day, once: what is kept of it later tells of its mail."""
        job = record["job"]
        if self.database.execute("SELECT 1 FROM days WHERE job = ? LIMIT 1", (job,)).fetchone():
            self.database.execute(ADDED, of_day(record))
            return
        # It is the first, or those before it are from a version that knew no days.
        query = "SELECT started, state, record FROM runs WHERE job = ? AND started > date('now', ?)"
        for started, state, text in self.database.execute(query, (job, f"-{PUBLISHED_DAYS} days")):
            if state not in UNFINISHED:
                run = {**json.loads(text), "job": job, "started": started, "state": state}
                self.database.execute(ADDED, of_day(run))

    def days(self, job: str) -> list[dict[str, Any]]:
        """The days of which something is known, the oldest first; what is 0 is left out."""
        window = "day > date('now', ?) AND day <= date('now', '+1 day')"
        query = f"SELECT day, {NAMES} FROM days WHERE job = ? AND {window} ORDER BY day"  # noqa: S608
        rows = self.database.execute(query, (job, f"-{PUBLISHED_DAYS} days"))
        return [{name: value for name, value in zip(("day", *COUNTED), row) if value} for row in rows]

    def unfinished(self, job: str) -> list[dict[str, Any]]:
        """The records of runs that have not said how they ended, the newest first: they wait, or are on, or died."""
        states = "state IN ('running', 'waiting')"
        query = f"SELECT record FROM runs WHERE job = ? AND {states} ORDER BY number DESC, started DESC"  # noqa: S608
        # Records of earlier versions have none that waits.
        return [{"retry": None, **json.loads(text)} for (text,) in self.database.execute(query, (job,))]

    def run(self, run: str) -> dict[str, Any] | None:
        """One record by the run's name."""
        found = self.database.execute("SELECT record FROM runs WHERE run = ?", (run,)).fetchone()
        return json.loads(found[0]) if found else None

    def rename(self, previous: str, job: str) -> None:
        """The records of one job become those of another; a job that had this name before may have left some."""
        with self.changing():
            for table in ("runs", "configurations"):
                self.database.execute(
                    f"UPDATE {table} SET job = ?, number = number + "  # noqa: S608 - one of the two above
                    f"(SELECT coalesce(max(number), 0) FROM {table} WHERE job = ?) WHERE job = ?",
                    (job, job, previous),
                )
            taken = f"SELECT ?, day, {NAMES} FROM days WHERE job = ?"  # noqa: S608
            self.database.execute(f"INSERT INTO days (job, day, {NAMES}) {taken} {MERGED}", (job, previous))
            self.database.execute("DELETE FROM days WHERE job = ?", (previous,))

    def runs(self, job: str, limit: int) -> list[dict[str, Any]]:
        """The job's records, the newest first."""
        query = "SELECT record FROM runs WHERE job = ? ORDER BY number DESC, started DESC LIMIT ?"
        return [json.loads(text) for (text,) in self.database.execute(query, (job, limit))]

    def publish(self, job: Job) -> None:
        """Drops what is too old, then replaces the job's published file in one step; it holds no secret."""
        with self.kept():
            self.database.execute(
                "DELETE FROM runs WHERE job = ? AND (started < datetime('now', ?) OR run NOT IN "
                "(SELECT run FROM runs WHERE job = ? ORDER BY number DESC, started DESC LIMIT ?))",
                (job.name, f"-{KEEP_DAYS} days", job.name, KEEP_RUNS),
            )
            self.database.execute(
                "DELETE FROM days WHERE job = ? AND day < date('now', ?)", (job.name, f"-{KEEP_DAYS} days")
            )
        # The last one alone is read: there may be ten thousand.
        query = (
            "SELECT json_extract(record, '$.ended') FROM runs WHERE job = ? AND state LIKE 'equal%' "
            "ORDER BY number DESC, started DESC LIMIT 1"
        )
        (good,) = self.database.execute(query, (job.name,)).fetchone() or (None,)
        published = {
            "job": job.name,
            "comment": job["comment"],
            "partner": job.partner,
            **terms(job),
            "elements": [element.path for element in job.elements],
            # The end of the last run after which the replicas were as declared.
            "good": good,
            "days": self.days(job.name),
            "runs": self.runs(job.name, PUBLISHED),
        }
        with self.kept():
            self.layout.public.mkdir(mode=0o750, exist_ok=True)
            replace(self.layout.public / f"{job.name}.json", json.dumps(published, indent=1) + "\n", 0o640)


def replace(path: Path, text: str, mode: int, group: int = -1) -> None:
    """Writes the file so that a reader, or a crash, sees the old one or the new one whole."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            if group != -1:
                os.fchown(descriptor, -1, group)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def published(layout: Layout, name: str) -> dict[str, Any] | None:
    """What the runner has published of a job; None before its first run."""
    path = layout.public / f"{check_name(name)}.json"
    try:
        document = json.loads(read_plain(path))
        if isinstance(document, dict) and isinstance(document.get("runs"), list):
            return document
        reason: object = "no mapping with runs"
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
    message = f"{path} is damaged ({reason}); the next run of the job writes it anew"
    raise InvalidDocument("damaged_record", message)


def published_names(layout: Layout) -> list[str]:
    """The jobs of which something is published; PermissionError where the caller may not know."""
    try:
        names = [path.name for path in layout.public.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(name[: -len(".json")] for name in names if name.endswith(".json") and not name.startswith("."))
