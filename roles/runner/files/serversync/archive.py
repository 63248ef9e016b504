# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What both replicas of an element were known to agree on: one SQLite file, and proof that it says what was written.

SQLite keeps transactions whole, but trusts the bytes of its file. So every part of the file is sealed by the part that
leads to it: a directory's rows lie in chunks of some dozens, the directory lists its chunks with their seals, and the
one ``state`` document, sealed itself, holds for every other table how many rows it has and the sum of their seals.
Whatever is read has been compared with that sum before: pages flipped, lost, or left from another day are found, and
DamagedArchive is raised. That a whole file is from another day is found by its generation, which the caller compares.

Opening reads the state alone. The first use of a table reads it once; chunks are read as they are needed.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import sqlite3
from binascii import hexlify, unhexlify
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import chain, groupby, islice, product
from math import isqrt
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from serversync.entry import HERE, THERE, Row
from serversync.failure import Failure
from serversync.machine import known_as

FORMAT = 1
# How many archives that were damaged or void stay beside the one in use.
ASIDE = 3
# A chunk holds about this many rows, in a huge directory the root of its size: then the chunk and the list of chunks,
# both written again when one path changes, stay small.
CHUNK = 48
# Rows of an update, and directories, that are held in memory at a time.
BATCH = 20_000

STATUSES = ("agreed", "kept", "left", "unresolved")
# A row's status, racy and by as one byte, in this order since format 1.
FLAGS = {
    words: bytes([64 + number])
    for number, words in enumerate(product(STATUSES, ("", "h", "t", "ht"), ("", "conflict", "delete", "guard")))
}
WORDS = {flags: words for words, flags in FLAGS.items()}

SCHEMA = [
    "CREATE TABLE state (id INTEGER PRIMARY KEY, document BLOB NOT NULL, seal BLOB NOT NULL)",
    "CREATE TABLE directories (path BLOB PRIMARY KEY, here BLOB, there BLOB, chunks BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE chunks (id INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    # What is not agreed or racy, as WORD NUL DIRECTORY NUL NAME.
    "CREATE TABLE marks (entry BLOB PRIMARY KEY) WITHOUT ROWID",
    # Hard links, as SIDE INODE NUL PATH.
    "CREATE TABLE links (entry BLOB PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE intents (id INTEGER PRIMARY KEY, batch BLOB NOT NULL)",
]
# Per table: all its rows in the order of their keys.
SEALED = {
    "directories": "SELECT path, here, there, chunks FROM directories ORDER BY path",
    "marks": "SELECT entry FROM marks ORDER BY entry",
    "links": "SELECT entry FROM links ORDER BY entry",
    "intents": "SELECT id, batch FROM intents ORDER BY id",
}
READONLY = "attempt to write a readonly database"
# What SQLite says of the disk, not of the file's contents.
DISK = (
    "database or disk is full",
    "disk I/O error",
    "unable to open database file",
    READONLY,
    "database is locked",
)
# The root has no parent; no path begins with a slash.
ABOVE = b"/"

# A row within its directory: name, flags, here, here_more, there, there_more, base in hexadecimal; b"" for None.
Fields = tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes]


class DamagedArchive(Failure):
    """The archive's file is not what was written; ``Archive.restart`` begins a new one."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__("archive_damaged", f"the archive {path} is damaged: {what}")


class Intent(NamedTuple):
    """One path about to be changed: on which side, its record there now and the one to come (None: absent), and what
    these do not hold (``Entry.more``).

    What is not known beforehand of the record to come, inode and ctime, is 0.
    """

    path: bytes
    side: str
    expected: bytes | None
    coming: bytes | None
    expected_more: bytes = b""
    coming_more: bytes = b""


@dataclass
class Update:
    """What one commit changes; iterables are read once, and no more than BATCH of their items are held.

    rows: put, whatever was there; dropped: paths whose rows go; directories: digests over the children (path, here,
    there; None: unknown); streams: digests over the whole scans (here, there; b"": unknown). The digests of a directory
    whose rows change, and with any row the streams, are unknown afterwards unless they are given here again.
    directories_dropped: their digests go; a directory without digests and rows is gone anyway.
    generation: becomes the current one; settings: replace the last run's.
    finished: the run saw every path but those that are ``unseen`` from now on (None: as before) with all below them, so
    the archive may be relied on for the others (``condition``), and is counted for ``runs``; verified: that run
    compared contents.
    """

    rows: Iterable[Row] = ()
    dropped: Iterable[bytes] = ()
    directories: Iterable[tuple[bytes, bytes | None, bytes | None]] = ()
    directories_dropped: Iterable[bytes] = ()
    streams: tuple[bytes, bytes] | None = None
    generation: str = ""
    settings: Mapping[str, Any] | None = None
    finished: bool = False
    unseen: Collection[bytes] | None = None
    verified: bool = False


class _Chunk(NamedTuple):
    first: bytes
    id: int
    rows: int
    seal: bytes


@dataclass
class _Directory:
    here: bytes | None
    there: bytes | None
    chunks: list[_Chunk]

    @cached_property
    def firsts(self) -> list[bytes]:
        """The chunk of a name is the last one whose first name is not greater."""
        return [chunk.first for chunk in self.chunks]

    @property
    def listed(self) -> bytes:
        return b"".join(b"%b\0%d %d %b\0" % (first, id_, rows, seal) for first, id_, rows, seal in self.chunks)

    @classmethod
    def read(cls, here: bytes | None, there: bytes | None, listed: bytes) -> _Directory:
        parts = iter(listed.split(b"\0")[:-1])
        chunks = []
        for first, rest in zip(parts, parts):
            number, rows, seal = rest.split()
            chunks.append(_Chunk(first, int(number), int(rows), seal))
        return cls(here, there, chunks)


class Archive:
    """The archive of one element. One process has it open for writing, and uses it from one thread at a time.

    Every method that reads may raise DamagedArchive, and Failure where the disk does not let it; what failed has
    changed nothing. Iterators are read to their end before the next change, else they raise RuntimeError.
    ``warnings``: sentences on what happened to the archive that was here before.
    """

    def __init__(self, path: Path, *, reading: bool = False) -> None:
        """Opens what is there; raises DamagedArchive or Failure. Use ``open``.

        reading: nothing is changed, and what a run commits meanwhile is not seen.
        """
        self.path = path
        self.reading = reading
        self.warnings: list[str] = []
        self._checked: set[str] = set()
        self._commits = 0
        self._directory: tuple[bytes, _Directory | None] = (ABOVE, None)
        self._chunk: tuple[int, dict[bytes, Fields]] = (0, {})
        with _failures(path):
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            self._state = self._load()
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any]) -> Archive:
        """The archive in this file if it is whole and of these replicas; else a new one, and the file is kept aside.

        identity: what tells the pair of replicas, anything that JSON can hold. Raises Failure (``archive``,
        ``no_space``) where the file cannot be opened or made.
        """
        with _files(path):
            if not path.exists():
                return cls._begin(path, identity, "new", "")
        try:
            archive = cls(path)
        except DamagedArchive as error:
            return cls._begin(path, identity, "damaged", error.message)
        known = archive._state["identity"]
        if known is None:
            with archive._transaction() as state:
                state["identity"] = dict(identity)
        elif archive.identity != json.loads(json.dumps(identity)):
            archive.close()
            reason = "it is of other replicas, because a path, a server or a file system was changed"
            return cls._begin(path, identity, "void", reason)
        elif known != archive.identity:
            with archive._transaction() as state:
                state["identity"] = dict(identity)
        if archive.condition in ("damaged", "void"):
            message = f"the archive {path} was begun anew ({archive.condition}), and no run has been finished since"
            archive.warnings.append(f"{message}; nothing is deleted")
        return archive

    @classmethod
    def adopt(cls, path: Path, previous: Path) -> bool:
        """Makes the archive at ``previous`` the one at ``path``, whatever replicas it is opened with next.

        False where there is none, or one at ``path`` already.
        """
        with _files(path):
            if path.exists() or not previous.exists():
                return False
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Damage is told by whoever opens it.
            with suppress(DamagedArchive), closing(cls(previous)) as archive, archive._transaction() as state:
                state["identity"] = None
            _remove_logs(path)
            # The log first: without its file it means nothing.
            for suffix in ("-wal", ""):
                with suppress(FileNotFoundError):
                    Path(f"{previous}{suffix}").replace(f"{path}{suffix}")
            _remove_logs(previous)
            _sync(path.parent)
            _sync(previous.parent)
        return True

    def restart(self, condition: str, reason: str) -> Archive:
        """Closes this archive, keeps its file aside and begins a new one.

        condition: ``damaged`` or ``void``; reason: a sentence for people.
        """
        identity = self._state["identity"]
        self.close()
        return self._begin(self.path, identity, condition, reason)

    @classmethod
    def _begin(cls, path: Path, identity: Mapping[str, Any], condition: str, reason: str) -> Archive:
        """A new archive takes the file's name when it is whole; so an empty file there is always damage."""
        fresh = Path(f"{path}.new")
        with _files(path), _failures(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with closing(sqlite3.connect(fresh, isolation_level=None)) as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("BEGIN")
                for statement in SCHEMA:
                    database.execute(statement)
                _write_state(database, _blank(identity, condition))
                database.execute("COMMIT")
            for number in range(ASIDE, 0, -1):
                older = path if number == 1 else _aside(path, number - 1)
                if older.exists():
                    older.replace(_aside(path, number))
            # A log that was left would be played into the new file.
            _remove_logs(path)
            fresh.replace(path)
            _sync(path.parent)
        archive = cls(path)
        if condition != "new":
            kept = f"it is kept as {_aside(path, 1)}, a new one is begun, and nothing is deleted"
            archive.warnings.append(f"the archive {path} is {condition}: {reason}; {kept}")
        return archive

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    # What the state says; nothing else is read for it.

    @property
    def condition(self) -> str:
        """current, or why it holds less than was agreed once: new, damaged, void. Stays so until a run is finished."""
        return str(self._state["condition"])

    @property
    def identity(self) -> dict[str, Any]:
        # Of one that was adopted the next ``open`` decides.
        known = dict(self._state["identity"] or {})
        # Earlier versions had the machine ids themselves.
        for side, one in known.items():
            if isinstance(one, dict) and "machine" in one:
                known[side] = {**one, "machine": known_as(one["machine"])}
        return known

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the last run that said them; empty: none has."""
        return dict(self._state["settings"])

    @property
    def unseen(self) -> frozenset[bytes]:
        """Paths that no finished run has taken in since the archive was begun, nor what is below them."""
        return frozenset(map(os.fsencode, self._state["unseen"]))

    @property
    def generation(self) -> tuple[str, str]:
        """The current one and the one that was begun and not committed yet; each may be empty."""
        current, begun = self._state["generation"]
        return current, begun

    def marked(self, side: str) -> set[str]:
        """Any of these is in the side's marker, if both are as they were left: a side that is only read keeps an older
        one."""
        known = self._state["marked"].get(side)
        current = known is None or known[-1] in self.generation
        return {*(self.generation if current else known)} - {""}

    @property
    def rows_count(self) -> int:
        return int(self._state["rows"])

    @property
    def counts(self) -> dict[str, int]:
        """How many rows are ``kept``, ``left``, ``unresolved``, and how many ``racy``."""
        return dict(self._state["marks"])

    @property
    def runs(self) -> int:
        """Finished runs since the last one that compared contents."""
        return int(self._state["runs"])

    def streams(self) -> tuple[bytes, bytes]:
        """Digests of the last scans of the whole replicas, here and there; b"": unknown."""
        here, there = self._state["streams"]
        return bytes.fromhex(here), bytes.fromhex(there)

    # Rows.

    def directories(self) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
        """(path, digest here, digest there) in the order of paths: all that have a digest or rows."""
        for path, here, there, _listed in self._listed(b"", None):
            if path != ABOVE:
                yield path, here, there

    def rows(self, directory: bytes) -> list[Row]:
        """The directory's children, by path."""
        return list(self.children(directory))

    def children(self, directory: bytes) -> Iterator[Row]:
        """The same a few at a time, for directories of any size."""
        found = self._find(directory)
        return self._rows_of(directory, found, self._commits) if found else iter(())

    def below(self, directory: bytes) -> Iterator[Row]:
        """Every row below, directory by directory in the order of their paths, each by path."""
        if directory:
            yield from self.children(directory)
        ends = (directory + b"/", directory + b"0") if directory else (b"", None)
        for path, here, there, listed in self._listed(*ends):
            if path != ABOVE:
                yield from self._rows_of(path, _Directory.read(here, there, listed), self._commits)

    def row(self, path: bytes) -> Row | None:
        directory, name = _split(path)
        found = self._find(directory)
        number = bisect_right(found.firsts, name) - 1 if found else -1
        if found is None or number < 0:
            return None
        chunk = found.chunks[number]
        if self._chunk[0] != chunk.id:
            self._chunk = (chunk.id, {fields[0]: fields for fields in self._fields(chunk)})
        fields = self._chunk[1].get(name)
        if fields is None:
            return None
        _name, flags, here, here_more, there, there_more, base = fields
        status, racy, by = WORDS[flags]
        return Row(path, status, here or None, here_more, there or None, there_more, unhexlify(base), racy, by)

    def by_inode(self, side: str, inode: int) -> list[Row]:
        """Rows of what had this inode and more than one link on the side (HERE or THERE), by path."""
        self._check("links")
        start = b"%b %d\0" % (side.encode("ascii"), inode)
        return [self._marked(entry[len(start) :]) for entry in self._entries("links", start)]

    def standing(self, statuses: Collection[str]) -> Iterator[Row]:
        """Rows that are kept, left or unresolved, as asked, status by status."""
        commits = self._commits
        for status in sorted(statuses):
            self._since(commits)
            yield from self._under(status)

    def racy(self) -> Iterator[Row]:
        """Rows of which a half has to be read by content."""
        yield from self._under("racy")

    # Changes, each one transaction that is on the disk when the call returns.

    def begin(self, generation: str, sides: Iterable[str]) -> None:
        """Records the generation that the run's commit is going to have, and on which sides a marker will say so."""
        with self._transaction() as state:
            state["generation"][1] = generation
            for side in sides:
                state["marked"][side] = [state["marked"].get(side, [""])[-1], generation]

    def intend(self, batch: Iterable[Intent]) -> None:
        """Adds to the journal what is going to be changed on the replicas; the next commit clears it."""
        data = b"".join(
            b"%b\0%b\0%b\0%b\0%b\0%b\0" % (path, side.encode("ascii"), expected or b"", coming or b"", *more)
            for path, side, expected, coming, *more in batch
        )
        with self._transaction() as state:
            self._check("intents")
            number = state["sealed"]["intents"][0] + 1
            self._one("INSERT INTO intents VALUES (?, ?)", number, data)
            _count(state, "intents", 1, _weight((number, data)))

    def intents(self) -> list[Intent]:
        """What was intended since the last commit, in that order: of a run that was killed."""
        self._check("intents")
        found = []
        for _number, batch in self._read(SEALED["intents"]):
            parts = iter(batch.split(b"\0")[:-1])
            for path, side, expected, coming, *more in zip(parts, parts, parts, parts, parts, parts):
                found.append(Intent(path, side.decode("ascii"), expected or None, coming or None, *more))
        return found

    def commit(self, update: Update) -> None:
        """Carries out the update and clears the journal, all or nothing."""
        with self._transaction() as state:
            changes: Iterator[tuple[bytes, Row | None]] = chain(
                ((row.path, row) for row in update.rows), ((path, None) for path in update.dropped)
            )
            changed = False
            while batch := dict(islice(changes, BATCH)):
                changed = True
                self._put(state, batch)
            digests: Iterator[tuple[bytes, bytes | None, bytes | None]] = chain(
                update.directories, ((path, None, None) for path in update.directories_dropped)
            )
            while some := list(islice(digests, BATCH)):
                self._put_digests(state, some)
            if update.streams or changed:
                state["streams"] = [digest.hex() for digest in update.streams or (b"", b"")]
            if update.generation:
                state["generation"] = [update.generation, ""]
            if update.settings is not None:
                state["settings"] = dict(update.settings)
            if update.finished:
                state["condition"] = "current"
                if update.unseen is not None:
                    state["unseen"] = sorted(map(os.fsdecode, update.unseen))
                state["runs"] = 0 if update.verified else state["runs"] + 1
            if state["sealed"]["intents"][0]:
                self._one("DELETE FROM intents")
                state["sealed"]["intents"] = [0, 0]

    # Reading.

    def _load(self) -> dict[str, Any]:
        # FULL: a commit is on the disk, also where the power fails. A log that one large commit made is cut again.
        for pragma in ("synchronous=FULL", "secure_delete=OFF", "cache_size=-16000", "journal_size_limit=4194304"):
            self._one(f"PRAGMA {pragma}")
        if self.reading:
            self._one("BEGIN")
        if [sql for (sql,) in self._read("SELECT sql FROM sqlite_master ORDER BY rowid")] != SCHEMA:
            raise DamagedArchive(self.path, "its tables are not those that were made")
        found = self._one("SELECT document, seal FROM state WHERE id = ?", FORMAT)
        if not found or not isinstance(found[0], bytes) or _seal(found[0]) != found[1]:
            raise DamagedArchive(self.path, "its state is not what was written")
        state: dict[str, Any] = json.loads(found[0])
        return state

    def _read(self, sql: str, *values: object) -> Iterator[Any]:
        with _failures(self.path):
            yield from self._database.execute(sql, values)

    def _one(self, sql: str, *values: object) -> Any:
        return next(self._read(sql, *values), None)

    def _check(self, table: str) -> None:
        """Compares the whole table with the state, once: its seals, and the order that look-ups rely on."""
        if table in self._checked:
            return
        count, total = 0, 0
        last: Any = None
        kind: type = int if table == "intents" else bytes
        for row in self._read(SEALED[table]):
            key = row[0]
            if not isinstance(key, kind) or (last is not None and key <= last):
                raise DamagedArchive(self.path, f"{table} are out of order")
            last = key
            count += 1
            total += _weight(row)
        if [count, total % 2**64] != self._state["sealed"][table]:
            raise DamagedArchive(self.path, f"{table} are not those that were written")
        self._checked.add(table)

    def _listed(self, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes | None, bytes | None, bytes]]:
        """The directories from ``start`` to before ``end``; no statement is left open between batches."""
        self._check("directories")
        condition, values = (">= ?", [start]) if end is None else (">= ? AND path < ?", [start, end])
        sql = f"SELECT path, here, there, chunks FROM directories WHERE path {condition} ORDER BY path LIMIT {BATCH}"  # noqa: S608
        commits = self._commits
        while found := list(self._read(sql, *values)):
            for directory in found:
                self._since(commits)
                yield directory
            # The first path that is greater.
            values[0] = found[-1][0] + b"\0"

    def _entries(self, table: str, start: bytes) -> Iterator[bytes]:
        """The entries that begin with ``start``, which ends in NUL."""
        self._check(table)
        values = [start, start[:-1] + b"\1"]
        sql = f"SELECT entry FROM {table} WHERE entry >= ? AND entry < ? ORDER BY entry LIMIT {BATCH}"  # noqa: S608
        commits = self._commits
        while found := list(self._read(sql, *values)):
            for (entry,) in found:
                self._since(commits)
                yield entry
            values[0] = found[-1][0] + b"\0"

    def _under(self, mark: str) -> Iterator[Row]:
        start = mark.encode("ascii") + b"\0"
        for entry in self._entries("marks", start):
            directory, name = entry[len(start) :].split(b"\0")
            yield self._marked(_join(directory, name))

    def _marked(self, path: bytes) -> Row:
        row = self.row(path)
        if row is None:
            raise DamagedArchive(self.path, "it lists a path that it does not hold")
        return row

    def _find(self, path: bytes) -> _Directory | None:
        self._check("directories")
        if self._directory[0] != path or self._directory[1] is None:
            found = self._one("SELECT here, there, chunks FROM directories WHERE path = ?", path)
            self._directory = (path, _Directory.read(*found) if found else None)
        return self._directory[1]

    def _rows_of(self, path: bytes, directory: _Directory, commits: int) -> Iterator[Row]:
        prefix = path + b"/" if path not in (b"", ABOVE) else b""
        for chunk in directory.chunks:
            self._since(commits)
            # One expression, because a million rows may be read here.
            yield from [
                Row(
                    prefix + name, status, here or None, here_more, there or None, there_more, unhexlify(base), racy, by
                )
                for name, flags, here, here_more, there, there_more, base in self._fields(chunk)
                for status, racy, by in (WORDS[flags],)
            ]

    def _since(self, commits: int) -> None:
        """What is read bit by bit would be taken for damage where it is changed on the way."""
        if commits != self._commits:
            raise RuntimeError("the archive was changed while it was read")

    def _fields(self, chunk: _Chunk) -> Iterator[Fields]:
        found = self._one("SELECT data FROM chunks WHERE id = ?", chunk.id)
        if not found or not isinstance(found[0], bytes) or _seal(found[0]) != chunk.seal:
            raise DamagedArchive(self.path, "rows are not those that were written")
        parts = iter(found[0].split(b"\0")[:-1])
        return zip(parts, parts, parts, parts, parts, parts, parts)

    # Writing.

    @contextmanager
    def _transaction(self) -> Iterator[dict[str, Any]]:
        """Yields the state to come; it counts, with all that was executed, once it is on the disk."""
        state = copy.deepcopy(self._state)
        try:
            with _failures(self.path):
                self._database.execute("BEGIN IMMEDIATE")
            yield state
            with _failures(self.path):
                _write_state(self._database, state)
                self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                # Where even this fails, the next opening of the file undoes what was not committed.
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
            raise
        finally:
            self._forget()
        self._state = state

    def _write(self, batch: _Batch) -> None:
        with _failures(self.path):
            batch.write(self._database)
        self._forget()

    def _forget(self) -> None:
        self._commits += 1
        self._directory = (ABOVE, None)
        self._chunk = (0, {})

    def _put(self, state: dict[str, Any], changes: Mapping[bytes, Row | None]) -> None:
        # Before the first write: afterwards they would be compared with a state that is not theirs.
        for table in ("directories", "marks", "links"):
            self._check(table)
        batch = _Batch(state)
        keyed = sorted((*_split(path), row) for path, row in changes.items())
        for path, group in groupby(keyed, key=itemgetter(0)):
            self._put_rows(batch, path, {name: row for _path, name, row in group})
        self._write(batch)

    def _put_rows(self, batch: _Batch, path: bytes, changes: Mapping[bytes, Row | None]) -> None:
        old = self._find(path)
        chunks = old.chunks if old else []
        total = sum(chunk.rows for chunk in chunks)
        size = max(CHUNK, isqrt(total + len(changes)))
        groups: list[tuple[list[_Chunk], dict[bytes, Row | None]]] = [([chunk], {}) for chunk in chunks]
        if not chunks or len(chunks) > 4 + 4 * total // size:
            # The first rows, or chunks that many deletions have left too small.
            groups = [(chunks, dict(changes))]
        elif old:
            for name, row in changes.items():
                groups[max(bisect_right(old.firsts, name) - 1, 0)][1][name] = row
        new = []
        for parts, wanted in groups:
            if not wanted:
                new += parts
                continue
            held = {fields[0]: fields for part in parts for fields in self._fields(part)}
            for name, row in wanted.items():
                before, after = held.pop(name, None), _fields_of(name, row) if row else None
                batch.index(path, before, after)
                if after:
                    held[name] = after
            new += batch.chunk([part.id for part in parts], [held[name] for name in sorted(held)], size)
        batch.directory(path, old, _Directory(None, None, new))

    def _put_digests(self, state: dict[str, Any], digests: list[tuple[bytes, bytes | None, bytes | None]]) -> None:
        self._check("directories")
        batch = _Batch(state)
        for path, here, there in {digest[0]: digest for digest in digests}.values():
            old = self._find(path)
            batch.directory(path, old, _Directory(here, there, old.chunks if old else []))
        self._write(batch)


class _Batch:
    """What a batch of changes writes, gathered so that each statement runs once over many rows."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state
        self.chunks: dict[int, bytes] = {}
        self.chunks_gone: list[tuple[int]] = []
        self.directories: list[tuple[bytes, bytes | None, bytes | None, bytes]] = []
        self.directories_gone: list[tuple[bytes]] = []
        self.entries: dict[str, set[bytes]] = {"marks": set(), "links": set()}
        self.entries_gone: dict[str, set[bytes]] = {"marks": set(), "links": set()}

    def index(self, directory: bytes, before: Fields | None, after: Fields | None) -> None:
        """Counts a row that is replaced, and the entries by which it is found."""
        self.state["rows"] += (after is not None) - (before is not None)
        old, new = _entries_of(directory, before), _entries_of(directory, after)
        if old == new:
            return
        for table, entry in old - new:
            self.entries_gone[table].add(entry)
            self._count(table, entry, -1)
        for table, entry in new - old:
            self.entries[table].add(entry)
            self._count(table, entry, 1)

    def _count(self, table: str, entry: bytes, sign: int) -> None:
        _count(self.state, table, sign, sign * _weight((entry,)))
        if table == "marks":
            self.state["marks"][entry.partition(b"\0")[0].decode("ascii")] += sign

    def chunk(self, numbers: list[int], rows: list[Fields], size: int) -> list[_Chunk]:
        """Lays the rows into the chunks of these numbers, into more where they are too many."""
        count = 1 if len(rows) <= 2 * size else -(-len(rows) // size)
        found = []
        for index in range(count if rows else 0):
            part = rows[len(rows) * index // count : len(rows) * (index + 1) // count]
            data = b"\0".join(chain.from_iterable(part)) + b"\0"
            if index < len(numbers):
                number = numbers[index]
            else:
                number = self.state["chunk"] = self.state["chunk"] + 1
            self.chunks[number] = data
            found.append(_Chunk(part[0][0], number, len(part), _seal(data)))
        self.chunks_gone += [(number,) for number in numbers[len(found) :]]
        return found

    def directory(self, path: bytes, old: _Directory | None, new: _Directory) -> None:
        if old:
            _count(self.state, "directories", -1, -_weight((path, old.here, old.there, old.listed)))
        if new.chunks or new.here is not None or new.there is not None:
            row = (path, new.here, new.there, new.listed)
            _count(self.state, "directories", 1, _weight(row))
            self.directories.append(row)
        elif old:
            self.directories_gone.append((path,))

    def write(self, database: sqlite3.Connection) -> None:
        database.executemany("INSERT OR REPLACE INTO chunks VALUES (?, ?)", self.chunks.items())
        database.executemany("DELETE FROM chunks WHERE id = ?", self.chunks_gone)
        database.executemany("INSERT OR REPLACE INTO directories VALUES (?, ?, ?, ?)", self.directories)
        database.executemany("DELETE FROM directories WHERE path = ?", self.directories_gone)
        for table, entries in self.entries_gone.items():
            database.executemany(f"DELETE FROM {table} WHERE entry = ?", zip(entries))  # noqa: S608
        for table, entries in self.entries.items():
            database.executemany(f"INSERT INTO {table} VALUES (?)", zip(sorted(entries)))  # noqa: S608


def _blank(identity: Mapping[str, Any], condition: str) -> dict[str, Any]:
    return {
        "condition": condition,
        "identity": dict(identity),
        "settings": {},
        "generation": ["", ""],
        "marked": {},
        "streams": ["", ""],
        "runs": 0,
        "unseen": [],
        "rows": 0,
        "marks": dict.fromkeys((*STATUSES[1:], "racy"), 0),
        "chunk": 0,
        "sealed": {table: [0, 0] for table in SEALED},
    }


def _write_state(database: sqlite3.Connection, state: dict[str, Any]) -> None:
    document = json.dumps(state).encode("ascii")
    database.execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", (FORMAT, document, _seal(document)))


def _seal(data: bytes) -> bytes:
    return blake2b(data, digest_size=8).hexdigest().encode("ascii")


def _weight(row: tuple[object, ...]) -> int:
    """A row's part in its table's sum; of values of another type it is another one."""
    return int.from_bytes(blake2b(repr(row).encode("ascii", "backslashreplace"), digest_size=8).digest(), "big")


def _count(state: dict[str, Any], table: str, rows: int, weight: int) -> None:
    count, total = state["sealed"][table]
    state["sealed"][table] = [count + rows, (total + weight) % 2**64]


def _split(path: bytes) -> tuple[bytes, bytes]:
    if not path:
        return ABOVE, b""
    directory, _slash, name = path.rpartition(b"/")
    return directory, name


def _join(directory: bytes, name: bytes) -> bytes:
    return name if directory in (b"", ABOVE) else b"%b/%b" % (directory, name)


def _fields_of(name: bytes, row: Row) -> Fields:
    """Raises ValueError for a status, racy or by that is none."""
    try:
        flags = FLAGS[row.status, row.racy, row.by]
    except KeyError as error:
        raise ValueError(f"{row.path!r}: {row.status!r}, {row.racy!r}, {row.by!r} is no state of a row") from error
    return name, flags, row.here or b"", row.here_more, row.there or b"", row.there_more, hexlify(row.base)


def _entries_of(directory: bytes, fields: Fields | None) -> set[tuple[str, bytes]]:
    """The entries of the tables marks and links that lead to the row."""
    if fields is None:
        return set()
    name, flags, here, _here_more, there, _there_more, _base = fields
    status, racy, _by = WORDS[flags]
    entries = set()
    for mark in (status if status != "agreed" else "", "racy" if racy else ""):
        if mark:
            entries.add(("marks", b"%b\0%b\0%b" % (mark.encode("ascii"), directory, name)))
    for side, record in ((HERE, here), (THERE, there)):
        # Most are files of one name, told at their ends; a file's link text is empty.
        if record and not (record.startswith(b"f") and record.endswith(b" 1 ")):
            kind, inode, *_rest, links, _text = record.split(b" ", 9)
            if kind != b"d" and links != b"1":
                entries.add(("links", b"%b %b\0%b" % (side.encode("ascii"), inode, _join(directory, name))))
    return entries


def _aside(path: Path, number: int) -> Path:
    return Path(f"{path}.aside.{number}")


def _remove_logs(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """SQLite's errors as ours: of the disk, which may pass, or of the file's contents."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.NotSupportedError):
        raise
    except UnicodeDecodeError as error:
        # Python cannot tell what SQLite says where that quotes damage.
        raise DamagedArchive(path, "its tables are not those that were made") from error
    except sqlite3.Error as error:
        # A flipped byte, too, can make a file read-only to SQLite.
        refused = str(error) == READONLY and os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
        if str(error).startswith(DISK) and not refused:
            raise _unusable(path, str(error), full="full" in str(error)) from error
        raise DamagedArchive(path, str(error)) from error


@contextmanager
def _files(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise _unusable(path, str(error.strerror), full=full) from error


def _unusable(path: Path, why: str, *, full: bool) -> Failure:
    remedy = "free some space" if full else "check its file system and its owner"
    message = f"the archive {path} cannot be used ({why}); {remedy}, and the next run goes on from there"
    return Failure("no_space" if full else "archive", message, transient=True)
