# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How paths, entries and operations travel in the frames of two runners. Pure; ValueError on what is none."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, Union

from serversync.commit import Op, Result
from serversync.detect import SIZE
from serversync.entry import KINDS, Entry, unpack
from serversync.frames import CHUNK
from serversync.metadata import Problem

# An entry, None where there is nothing, or why it could not be read.
Seen = Union[Entry, None, str]
UNREAD = b"?"
LETTERS = frozenset(KINDS.values())
# Of paths, bytes: many times what programs can open by name. Of an entry's record; a link's text has 4095 at most.
LONGEST_PATH, LONGEST_RECORD = 65536, 8192
# Characters of a problem that are told.
LONGEST_PROBLEM = 1000
# As many seconds as the kernel counts, in ns.
LATEST = (1 << 63) * 1_000_000_000
# Bytes of a digest, where there is one.
DIGEST = (0, SIZE)


def pack_paths(paths: Iterable[bytes]) -> bytes:
    return b"".join(path + b"\0" for path in paths)


def unpack_paths(data: bytes) -> list[bytes]:
    *paths, rest = data.split(b"\0")
    if rest:
        raise ValueError("a list of paths is cut short")
    return paths


def pack_seen(items: Iterable[tuple[bytes, Seen]]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """For ``entry.pack``: no record where there is nothing, UNREAD and the reason where it could not be read."""
    for path, seen in items:
        if seen is None:
            yield path, b"", b""
        elif isinstance(seen, str):
            yield path, UNREAD, os.fsencode(seen)
        else:
            yield path, seen.record, seen.more


def unpack_seen(data: bytes) -> Iterator[tuple[bytes, Seen]]:
    for path, record, more in map(bounded, unpack(data)):
        if record == UNREAD:
            yield path, os.fsdecode(more)
        else:
            yield path, plausible(Entry.parse(record, more)) if record else None


def bounded(item: tuple[bytes, bytes, bytes]) -> tuple[bytes, bytes, bytes]:
    """The item, if there can be one as long."""
    path, record, more = item
    if len(path) > LONGEST_PATH or len(record) > LONGEST_RECORD or len(more) > LONGEST_RECORD:
        raise ValueError(f"{path[:80]!r} is too long, or what is said of it")
    return item


def plain(text: Any) -> str:
    """A word or a path of another server's that is used as one."""
    if not isinstance(text, str) or "\0" in text or len(os.fsencode(text)) > LONGEST_PATH:
        raise ValueError(f"{text!r:.80} is no text")
    return text


def plausible(entry: Entry) -> Entry:
    """The entry, if there can be such a one: what another server says may be anything."""
    numbers = 0 <= entry.mode <= 0o7777 and 0 <= entry.uid < 1 << 32 and 0 <= entry.gid < 1 << 32
    sizes = 0 <= entry.size < 1 << 63 and 0 <= entry.inode < 1 << 64 and 0 <= entry.nlink < 1 << 64
    times = abs(entry.mtime) < LATEST and abs(entry.ctime) < LATEST
    digests = len(entry.xattrs) in DIGEST and len(entry.digest) in DIGEST
    kind = entry.kind in LETTERS and 0 <= entry.rdev < 1 << 64 and b"\0" not in entry.link
    if not (numbers and sizes and times and digests and kind):
        raise ValueError(f"{entry.record!r:.200} is no entry")
    return entry


def chunks(items: Iterable[bytes]) -> Iterator[bytes]:
    """Joins small pieces into payloads of about CHUNK bytes."""
    gathered: list[bytes] = []
    size = 0
    for item in items:
        gathered.append(item)
        size += len(item)
        if size >= CHUNK:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)


def encode_entry(entry: Entry | None) -> list[str] | None:
    return None if entry is None else [os.fsdecode(entry.record), entry.more.decode("ascii")]


def decode_entry(data: Any) -> Entry | None:
    if data is None:
        return None
    record, more = data
    return plausible(Entry.parse(os.fsencode(record), more.encode("ascii")))


def encode_attributes(attributes: dict[str, bytes] | None) -> dict[str, str] | None:
    if attributes is None:
        return None
    return {name: base64.b64encode(value).decode("ascii") for name, value in attributes.items()}


def decode_attributes(data: Any) -> dict[str, bytes] | None:
    return None if data is None else {plain(name): base64.b64decode(value) for name, value in data.items()}


def encode_ops(ops: Iterable[Op]) -> bytes:
    return json.dumps(
        [
            {
                "do": op.do,
                "path": os.fsdecode(op.path),
                "expect": encode_entry(op.expect),
                "want": encode_entry(op.want),
                "attributes": encode_attributes(op.attributes),
                "staged": os.fsdecode(op.staged),
                "to": os.fsdecode(op.to),
                "stage": op.stage,
            }
            for op in ops
        ]
    ).encode("ascii")


def decode_ops(data: bytes) -> list[Op]:
    return [
        Op(
            do=str(op["do"]),
            path=os.fsencode(op["path"]),
            expect=decode_entry(op["expect"]),
            want=decode_entry(op["want"]),
            attributes=decode_attributes(op["attributes"]),
            staged=os.fsencode(op["staged"]),
            to=os.fsencode(op["to"]),
            stage=bool(op["stage"]),
        )
        for op in json.loads(data)
    ]


def encode_result(result: Result) -> dict[str, Any]:
    return {
        "path": os.fsdecode(result.path),
        "problem": result.problem,
        "entry": encode_entry(result.entry),
        "version": os.fsdecode(result.version),
    }


def decode_result(data: dict[str, Any]) -> Result:
    problem = data["problem"]
    return Result(
        path=os.fsencode(data["path"]),
        problem=None if problem is None else Problem(str(problem[0])[:64], str(problem[1])[:LONGEST_PROBLEM]),
        entry=decode_entry(data["entry"]),
        version=os.fsencode(plain(data["version"])),
    )
