# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the archive in step with what is done to the replicas: intents before, rows once it is on both disks.

What is archived of a part of a plan counts at once; that the run has seen everything, its settings and the digests by
which the next scan finds nothing moved are said at its end.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from serversync.archive import Archive, Intent, Update
from serversync.detect import Summary, digest
from serversync.entry import HERE, THERE, Entry, Row, pack
from serversync.propagate import Done, Side
from serversync.reconcile import OTHER, SIDES, Decision, Seen, half_of, parent

# An entry whose ctime is this near to the scan (ns), or as two stamps of its file system are, may have changed again
# without a trace.
RACY = 10_000_000
# The digest of a directory without children.
EMPTY = digest([])
Problems = dict[bytes, tuple[str, str]]


class Archiving:
    """What becomes of the archive while one plan is carried out.

    scans: from which the plan was made; adopted: rows of what a killed run had put in its place, None: it had removed
    that; touched: directories that were read path by path; markers: what the marker of each target says beside the
    generations.
    """

    def __init__(
        self,
        archive: Archive,
        sides: Mapping[str, Side],
        markers: Mapping[str, dict[str, Any]],
        scans: Mapping[str, Summary],
        adopted: Mapping[bytes, Row | None],
        touched: Iterable[bytes],
    ) -> None:
        self.archive = archive
        self.sides = sides
        self.markers = markers
        self.scans = scans
        self.adopted = adopted
        self.touched = set(touched)
        # Sides on which something was done.
        self.changed: set[str] = set()
        # By side, the directories in which something was removed.
        self.emptier: dict[str, set[bytes]] = {side: set() for side in SIDES}
        self.begun = False

    def intend(self, side: str, steps: Iterable[tuple[Decision, Entry | None]]) -> None:
        """Journals what is about to be put on the side, with what the other side has: after a kill that is the pair."""
        other, batch = OTHER[side], []
        for decision, coming in steps:
            planned = {HERE: decision.here, THERE: decision.there}
            source = known(planned[other])
            expected = known(planned[side])
            after = (coming.record_as(0, 0), coming.more_but(b"")) if coming else (None, b"")
            batch.append(Intent(decision.path, other, None, source[0], b"", source[1]))
            batch.append(Intent(decision.path, side, expected[0], after[0], expected[1], after[1]))
        self.archive.intend(batch)

    def adopt(self, restamped: Iterable[Row]) -> None:
        """What a killed run had put in its place is archived before its journal goes with the first piece's.

        restamped: rows of what needs no decision, and is only known by another ctime from now on.
        """
        rows = [*restamped, *(row for row in self.adopted.values() if row is not None)]
        nothing: dict[str, dict[Any, Any]] = {side: {} for side in SIDES}
        self.update(rows, [path for path, row in self.adopted.items() if row is None], nothing, nothing)

    def remember(self, decisions: Iterable[Decision], propagated: Mapping[str, Done]) -> Problems:
        """Rows of what both replicas have on their disks by now; returns what could not be done."""
        rows, dropped, refresh = [], [], {side: set() for side in SIDES}  # type: ignore[var-annotated]
        files: dict[str, dict[int, Entry | None]] = {side: {} for side in SIDES}
        decisions = list(decisions)
        problems = {path: it for done in propagated.values() for path, it in done.problems.items()}
        again = {path for done in propagated.values() for path in done.again}
        problems |= self.undone(decisions, propagated, problems)
        for decision in decisions:
            if decision.status == "unchanged" or decision.path in problems or decision.path in again:
                continue
            entries = {HERE: decision.here, THERE: decision.there}
            for side in SIDES:
                if decision.path in propagated[side].entries:
                    now = propagated[side].entries[decision.path]
                    before = entries[side]
                    if isinstance(before, Entry) and several(before):
                        files[side].setdefault(before.inode, None)
                    if isinstance(now, Entry) and several(now):
                        files[side][now.inode] = now
                    entries[side] = now
                    refresh[side].add(parent(decision.path))
                    if now is None:
                        self.emptier[side].add(parent(decision.path))
            if decision.status == "dropped":
                dropped.append(decision.path)
            else:
                rows.append(self.archived_row(decision, entries, propagated))
        self.changed |= {side for side in SIDES if refresh[side]}
        self.update(rows, dropped, refresh, files)
        return problems

    def undone(
        self, decisions: Iterable[Decision], propagated: Mapping[str, Done], known: Collection[bytes]
    ) -> Problems:
        """What was to be done and of which nobody says that it was, or that it could not be."""
        found = {}
        for one in decisions:
            changes = {OTHER[side] for side in (one.content, one.metadata) if side} | ({one.remove} - {None})
            done = all(one.path in propagated[side].entries for side in self.markers if side in changes)
            if not done and one.path not in known:
                found[one.path] = ("moved", "was not put in its place")
        return found

    def archived_row(self, decision: Decision, entries: dict[str, Any], propagated: Mapping[str, Done]) -> Row:
        racy = ""
        for side, letter in ((HERE, "h"), (THERE, "t")):
            entry = entries[side]
            if decision.path in propagated[side].entries or not isinstance(entry, Entry) or entry.kind != "f":
                continue
            if entry.ctime >= trusted(self.scans[side], self.sides[side]):
                racy += letter
        status, by = decision.status, decision.by
        if status == "agreed" and None in entries.values():
            # The target has a directory by that name, in which nothing takes part.
            status, by = "left", "delete"
        row = row_of(decision.path, status, entries, racy, by)
        if decision.status == "unresolved":
            old = self.archive.row(decision.path)
            if old is not None:
                base = old.base
                if old.status == "agreed" and old.here is not None and old.there is not None:
                    base = pack([(b"here", old.here, old.here_more), (b"there", old.there, old.there_more)])
                row = row._replace(base=base)
        return row

    def update(
        self,
        rows: list[Row],
        dropped: list[bytes],
        refresh: Mapping[str, Collection[bytes]],
        files: Mapping[str, Mapping[int, Entry | None]],
    ) -> None:
        """One transaction for what has changed; nothing where nothing has.

        Per side: directories in which something was done, and inodes with several names of which one was put or
        removed, with the file as it is now by the one that was put.
        """
        self.touched |= {path for paths in refresh.values() for path in paths}
        # The directories' own entries have moved with their children, those of files with their other names.
        again = {
            side: {path for path in refresh[side] if path} | self.names_beside(side, files[side], rows)
            for side in SIDES
        }
        # A side that became a target has no marker yet, and that of a job that was renamed names the job of before.
        told = {side: self.sides[side].tree.facts["marker"] or {} for side in self.markers}
        bare = not self.begun and any(told[side].get("job") != one["job"] for side, one in self.markers.items())
        if not (rows or dropped or bare or any(again.values())):
            return
        generation = secrets.token_hex(16)
        self.archive.begin(generation, self.markers)
        self.mark(current=self.archive.generation[0], next=generation)
        for side in SIDES:
            by_path = {row.path: index for index, row in enumerate(rows)}
            for path, entry in dict(self.sides[side].tree.entries(sorted(again[side]))).items():
                index = by_path.get(path)
                old = rows[index] if index is not None else self.archive.row(path)
                known = half_of(old, side) if old is not None else None
                if old is None or known is None or not isinstance(entry, Entry):
                    continue
                # What the run gave to another name of the file is no edit of one that stays different.
                same = known.inode == entry.inode and old.status != "agreed"
                given = files[side].get(entry.inode) if same else None
                if not as_known(known, entry) and not (given is not None and as_known(given, entry)):
                    continue
                fresh = old._replace(here=entry.record) if side == HERE else old._replace(there=entry.record)
                if index is not None:
                    rows[index] = fresh
                else:
                    by_path[path] = len(rows)
                    rows.append(fresh)
                self.touched.add(parent(path))
        # Only what is known to be on the disks is archived, with markers that know of it.
        for side in SIDES:
            self.sides[side].tree.answered()
        self.archive.commit(Update(rows=rows, dropped=dropped, generation=generation))
        self.begun = True

    def names_beside(self, side: str, moved: Collection[int], rows: Iterable[Row]) -> set[bytes]:
        """All names, as archived or about to be, of these files with several, of which one was put or removed."""
        found = {row.path for inode in moved for row in self.archive.by_inode(side, inode)}
        if moved:
            halves = ((row.path, half_of(row, side)) for row in rows)
            found |= {path for path, known in halves if known is not None and known.inode in moved}
        return found

    def finish(
        self,
        *,
        settings: Mapping[str, Any] | None,
        finished: bool,
        unseen: Collection[bytes],
        verified: bool,
        seen: bool,
    ) -> set[bytes]:
        """The plan has been carried out; ``seen``: nothing was left out of it, and there was no problem with it.

        Returns the directories that have nothing left in them but, if at all, what does not take part.
        """
        if self.begun:
            self.mark(current=self.archive.generation[0], next="")
        # With the rows there: what the next scan finds with these digests has not moved.
        directories = [(path, *self.archived_digests(path)) for path in sorted(self.touched)]
        emptied = {
            path
            for path, *digests in directories
            for side, found in zip(SIDES, digests)
            if path and found == EMPTY and path in self.emptier[side]
        }
        streams = {
            side: self.scans[side].stream
            if seen and side not in self.changed and not self.scans[side].problems
            else b""
            for side in SIDES
        }
        self.archive.commit(
            Update(
                directories=directories,
                streams=(streams[HERE], streams[THERE]),
                settings=settings,
                finished=finished,
                unseen=unseen,
                verified=verified,
            )
        )
        return emptied

    def archived_digests(self, directory: bytes) -> tuple[bytes | None, bytes | None]:
        """The digests that a scan of the archived children would have; None: the directory is not there."""
        rows = self.archive.rows(directory)
        own = self.archive.row(directory) if directory else None
        found = []
        for line, record in ((here_line, own and own.here), (there_line, own and own.there)):
            children = [child for child in map(line, rows) if child]
            there = not directory or (record is not None and record.startswith(b"d"))
            found.append(digest(children) if there else None)
        return found[0], found[1]

    def mark(self, **generations: str) -> None:
        for side, marker in self.markers.items():
            self.sides[side].tree.mark({**marker, **generations})


def trusted(scan: Summary, side: Side) -> int:
    """The moment (ns) up to which a ctime tells of every change of an entry that the scan saw."""
    return scan.moment - max(RACY, int(side.tree.facts["granularity"]))


def known(seen: Seen) -> tuple[bytes | None, bytes]:
    """Record and ``more`` of what is there, which says nothing of contents."""
    return (seen.record, seen.more_but(b"")) if isinstance(seen, Entry) else (None, b"")


def several(entry: Entry) -> bool:
    """Whether the file has several names."""
    return entry.nlink > 1 and entry.kind != "d"


def as_known(known: Entry, entry: Entry) -> bool:
    """Whether nothing has moved but what follows from other names of the file, or from what is in the directory."""
    fields: tuple[str, ...] = ("kind", "inode", "mode", "uid", "gid", "link", "rdev", "xattrs")
    fields += () if known.kind == "d" else ("size", "mtime")
    return all(getattr(known, name) == getattr(entry, name) for name in fields)


def here_line(row: Row) -> tuple[bytes, bytes, bytes] | None:
    return (row.path, row.here, undigested(row.here_more)) if row.here is not None else None


def there_line(row: Row) -> tuple[bytes, bytes, bytes] | None:
    return (row.path, row.there, undigested(row.there_more)) if row.there is not None else None


def undigested(more: bytes) -> bytes:
    """Without the contents' digest: what was read by an earlier run says nothing of what is there now."""
    known, _blank, digest = more.rpartition(b" ")
    return more if not digest else b"" if known == b"0 " else known + b" "


LINES = {HERE: here_line, THERE: there_line}


def row_of(path: bytes, status: str, entries: Mapping[str, Seen], racy: str = "", by: str = "") -> Row:
    here, there = (entry if isinstance(entry := entries[side], Entry) else None for side in SIDES)
    return Row(
        path,
        status,
        here.record if here else None,
        here.more if here else b"",
        there.record if there else None,
        there.more if there else b"",
        racy=racy,
        by=by,
    )
