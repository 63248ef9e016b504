# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The replicas of an element, looked at, locked and scanned before it is known whether they fit each other.

This server's is scanned while ssh logs in, the partner's with the first question it is asked. What a scan needs to know
is taken from the last run; where it turns out otherwise the replica is scanned again. Nothing is made by it, and what
goes wrong is left to whoever does it again in its turn and tells what it means.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from serversync import place
from serversync.archive import Archive
from serversync.detect import Summary
from serversync.failure import Failure
from serversync.replica import Partner, PartnerTree, ThisServer, understood
from serversync.ssh import Conversation
from serversync.tree import Tree


class Guess(NamedTuple):
    """What the archive lets expect of a run: the attributes that are preserved, how many paths there are, and what the
    partner's replica has for a digest, empty: unknown."""

    xattrs: frozenset[str]
    expected: int
    there: bytes = b""


def guess(archive: Path) -> Guess | None:
    """None where no run has come to its end."""
    if not archive.exists():
        return None
    # Whatever is wrong with it is told when it is opened for the run.
    with suppress(Failure), closing(Archive(archive)) as known:
        if known.settings:
            xattrs = frozenset(known.settings["preserve"]) & {"acls", "xattrs"}
            return Guess(xattrs, known.rows_count, known.streams()[1])
    return None


class Either(threading.Event):
    """Is set when itself or the other is."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self.other = other

    def is_set(self) -> bool:
        return super().is_set() or self.other.is_set()


class Here:
    """This server's replica, if it is there: ``kind`` is empty where it is not, or could not be locked."""

    def __init__(
        self,
        server: ThisServer,
        path: str,
        options: dict[str, Any],
        include: list[str],
        exclude: list[str],
        known: Guess,
    ) -> None:
        """options: as ``Tree`` has them."""
        self.xattrs = known.xattrs
        self.kind = ""
        self.tree: Tree | None = None
        self.summary: Summary | None = None
        self.error: BaseException | None = None
        self.look = place.look(path)
        may = self.look["writable" if options["writable"] else "readable"]
        self.thread = threading.Thread(target=self.scan, daemon=True)
        if self.look["kind"] in ("directory", "file") and may:
            with suppress(Failure, OSError):
                self.tree = Tree(
                    path,
                    self.look["kind"],
                    locks=server.layout.locks,
                    stopped=Either(server.stopped),
                    making=False,
                    **options,
                )
                self.tree.prepare_scan(include, exclude, known.xattrs, known.expected)
                self.thread.start()
                self.kind = self.look["kind"]

    def scan(self) -> None:
        assert self.tree is not None
        try:
            self.summary = self.tree.scan_prepared(b"")
        except BaseException as error:  # raised where it is waited for
            self.error = error

    def taken(self) -> Tree | None:
        """The replica for the run, as of now."""
        if not self.kind or self.tree is None:
            self.close()
            return None
        self.tree.facts["time"] = time.time()
        return self.tree

    def scanned(self, xattrs: frozenset[str]) -> Summary | None:
        """What the scan found; None where it was another one than is asked for."""
        if not self.kind:
            return None
        self.thread.join()
        if xattrs != self.xattrs:
            return None
        if self.error is not None:
            raise self.error
        return self.summary

    def close(self) -> None:
        if self.thread.is_alive() and self.tree is not None:
            self.tree.scanned.stop()
            self.thread.join()
        if self.tree is not None:
            self.tree.close()


class There:
    """The partner's replica: asked for at once, the answer is waited for later."""

    def __init__(
        self,
        conversation: Conversation,
        path: str,
        kind: str,
        options: dict[str, Any],
        include: list[str],
        exclude: list[str],
        known: Guess,
    ) -> None:
        self.conversation = conversation
        self.path = path
        self.xattrs = known.xattrs
        options = {**options, "name": os.fsdecode(options["name"])}
        scan: dict[str, Any] = {
            "include": include,
            "exclude": exclude,
            "xattrs": sorted(known.xattrs),
            "expected": known.expected,
        }
        self.number = conversation.ask_early("begin", known.there, path=path, kind=kind, **options, **scan)
        self.reply: dict[str, Any] | None = None
        self.digests = b""
        self.tree: PartnerTree | None = None

    def looked(self, partner: Partner) -> dict[str, Any] | None:
        """What is at the path; None where the partner has not said so."""
        with suppress(Failure):
            self.reply, self.digests = self.conversation.answer(self.number)
        return partner.looked(self.path, self.reply["look"]) if self.reply and "look" in self.reply else None

    def taken(self, partner: Partner) -> PartnerTree | None:
        """The replica for the run, as of now."""
        if self.reply and "open" in self.reply:
            self.tree = partner.opened(self.reply["open"])
            with understood(self.conversation):
                # By its clock: it greeted just before it was asked.
                ahead = float(self.conversation.about["time"]) - self.conversation.greeted
                self.tree.facts["time"] = time.time() + ahead
        return self.tree

    def scanned(self, xattrs: frozenset[str]) -> Summary | None:
        if self.tree is None or xattrs != self.xattrs or not self.reply or "scan" not in self.reply:
            return None
        return self.tree.summary(self.reply["scan"], self.digests)
