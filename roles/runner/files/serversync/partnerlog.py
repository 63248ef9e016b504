# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two ends of a log that the partner's ``serve`` holds: see ``logfile.Source`` and ``logfile.Target``.

What it says goes into the state of a log and decides what is appended, so it is looked at here, where it comes in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Any, Union

from serversync.failure import Failure
from serversync.logfile import SIBLINGS, Extent, File, Mark, Source, Stamp, Target
from serversync.replica import MOST_PROBLEMS, checked, owner_number, understood
from serversync.ssh import Conversation
from serversync.wire import LATEST, LONGEST_PROBLEM, plain

# What a kernel counts of a file, and what it gives numbers to.
LARGEST, COUNT = (1 << 63) - 1, (1 << 64) - 1
DIGEST = re.compile("[0-9a-f]{32}")
FACTS: dict[str, tuple[Any, ...]] = {"machine": (str,), "directory": (int,)}
TARGET = {**FACTS, **dict.fromkeys(("owner", "exists", "whole"), (bool,)), **dict.fromkeys(("device", "inode"), (int,))}


def number(value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{value!r:.80} is not between {least} and {most}")
    return value


def digest(value: Any) -> str:
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise ValueError(f"{value!r:.80} is no digest")
    return value


def mark(value: Any, offset: int) -> Mark:
    at, head, tail = value
    return Mark(number(at, offset, offset), digest(head), digest(tail))


def stamp(value: Any) -> Stamp:
    device, inode, mtime, size = value
    counted = (number(device, 0, COUNT), number(inode, 0, COUNT), number(mtime, -LATEST, LATEST))
    return Stamp(*counted, number(size, 0, LARGEST))


def file(data: dict[str, Any], marks: int) -> File:
    """A file of the source's directory; its name is told, and compared with others."""
    found = File(**{**data, "stamp": stamp(data["stamp"])})
    if not plain(found.name) or "/" in found.name:
        raise ValueError(f"{found.name!r:.80} is no name")
    if not all(isinstance(flag, bool) for flag in (found.current, found.rotated, found.counted, found.packed)):
        raise ValueError(f"{found.name!r:.80} is not told what it is")
    number(found.number, -1, COUNT)
    number(found.size, -1, LARGEST)
    number(found.mode, 0, 0o7777)
    owner_number(found.uid)
    owner_number(found.gid)
    holds = [number(index, 0, marks - 1) for index in found.holds]
    return File(**{**vars(found), "holds": holds, "problem": str(found.problem)[:LONGEST_PROBLEM]})


class PartnerLog:
    """A log that the partner holds for this connection."""

    kinds: dict[str, tuple[Any, ...]]

    def __init__(self, connection: Conversation, path: str, **options: Any) -> None:
        self.connection = connection
        self.path = path
        reply = connection.ask("log_open", path=path, **options)
        with understood(connection):
            self.handle = number(reply["log"], 0, COUNT)
        self.facts = self.checked(reply)

    def checked(self, reply: dict[str, Any]) -> dict[str, Any]:
        with understood(self.connection):
            return checked(reply["facts"], self.kinds)

    def ask(self, do: str, payload: bytes = b"", **request: Any) -> dict[str, Any]:
        return self.connection.ask("log", payload, log=self.handle, do=do, **request)

    def number(self, least: int, most: int, name: str, do: str, payload: bytes = b"", **request: Any) -> int:
        """What the answer has by this name."""
        reply = self.ask(do, payload, **request)
        with understood(self.connection):
            return number(reply[name], least, most)

    def digest_of(self, **request: Any) -> str:
        reply = self.ask("digest", **request)
        with understood(self.connection):
            return digest(reply["digest"])

    def close(self) -> None:
        # As PartnerTree.close.
        with suppress(Failure):
            self.connection.ask("log_close", log=self.handle)


class PartnerSource(PartnerLog):
    """See Source."""

    kinds = FACTS

    def files(self, marks: Sequence[Mark], stamps: Sequence[Stamp]) -> list[File]:
        reply = self.ask("files", json.dumps({"marks": marks, "stamps": stamps}).encode("ascii"))
        with understood(self.connection):
            found = [file(one, len(marks)) for one in reply["files"]]
            if len(found) > SIBLINGS or sum(one.current for one in found) > 1:
                raise ValueError(f"{len(found)} files are beside each other, or more than one is the log")
            return found

    def mark(self, number: int, offset: int) -> Mark:
        reply = self.ask("mark", number=number, offset=offset)
        with understood(self.connection):
            return mark(reply["mark"], offset)

    def digest(self, number: int, start: int, end: int) -> str:
        return self.digest_of(number=number, start=start, end=end)

    def copied(self, number: int, others: list[int]) -> int:
        return self.number(-1, len(others) - 1, "place", "copied", number=number, others=others)

    def line_end(self, number: int, end: int) -> int:
        return self.number(0, end, "end", "line_end", number=number, end=end)

    def count(self, file: int, start: int) -> tuple[int, int]:
        reply = self.ask("count", number=file, start=start)
        with understood(self.connection):
            end = number(reply["end"], start, LARGEST)
            return end, number(reply["lines"], int(end > start), end - start)

    def take(self, file: int, taken: Mark, end: int) -> Extent:
        reply = self.ask("take", number=file, mark=taken, end=end)
        with understood(self.connection):
            upto, lines, content, found = reply["extent"]
            # Nothing at all would be taken again and again.
            number(upto, taken.offset + 1, end)
            return Extent(upto, number(lines, 1, upto - taken.offset), digest(content), mark(found, upto))

    def read(self, number: int, start: int, end: int) -> Iterator[bytes]:
        """Fewer bytes where the file is shorter by now, never more."""
        left = end - start
        answer = self.connection.ask_long("log", log=self.handle, do="read", number=number, start=start, end=end)
        with understood(self.connection), closing(answer) as pieces:
            for data in pieces:
                left -= len(data)
                if left < 0:
                    raise ValueError(f"more of a log than the {end - start} bytes that were asked for")
                yield data


class PartnerTarget(PartnerLog):
    """See Target."""

    kinds = TARGET

    def checked(self, reply: dict[str, Any]) -> dict[str, Any]:
        found = super().checked(reply)
        with understood(self.connection):
            found["size"] = number(reply["facts"]["size"], 0, LARGEST)
        return found

    def refresh(self) -> dict[str, Any]:
        self.facts = self.checked(self.ask("refresh"))
        return self.facts

    def create(self, mode: int, uid: int, gid: int, preserve: frozenset[str]) -> list[str]:
        reply = self.ask("create", mode=mode, uid=uid, gid=gid, preserve=sorted(preserve))
        with understood(self.connection):
            return [str(one)[:LONGEST_PROBLEM] for one in reply["problems"][:MOST_PROBLEMS]]

    def digest(self, start: int, end: int) -> str:
        return self.digest_of(start=start, end=end)

    def same(self, inode: int, start: int, data: bytes) -> int:
        return self.number(-1, len(data), "same", "same", data, inode=inode, start=start)

    def already(self, inode: int, start: int, data: bytes) -> tuple[int, bool]:
        reply = self.ask("already", data, inode=inode, start=start)
        with understood(self.connection):
            return number(reply["count"], -1, len(data)), bool(reply["last"])

    def append(self, data: bytes, last: bool) -> int:
        return self.number(0, LARGEST, "size", "append", data, last=last)


AnySource = Union[Source, PartnerSource]
AnyTarget = Union[Target, PartnerTarget]
