# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two servers of a job behind one interface: this one, and the partner by SSH. What fails raises Failure.

A server opens replicas; an open replica is a ``Tree``, or a ``PartnerTree`` that passes every call on to the Tree which
the partner's ``serve`` holds, or of a partner without a runner an ``SftpTree`` (``sftp.SftpServer`` has these).
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol, TypeVar, Union

from serversync import place, tree
from serversync.commit import Op, Result
from serversync.detect import Summary
from serversync.entry import Entry, unpack
from serversync.failure import Failure
from serversync.frames import PAYLOAD_LIMIT
from serversync.layout import Layout
from serversync.sftptree import SftpTree
from serversync.ssh import Conversation
from serversync.tree import Item, Tree
from serversync.wire import decode_attributes, decode_entry, decode_result, encode_ops, pack_paths, unpack_seen

# Paths or operations in one request: of paths of the greatest length still one frame.
REQUEST = 2000
Found = TypeVar("Found")
Names = tuple[dict[int, str], dict[int, str]]
Numbers = tuple[dict[str, int], dict[str, int]]


class Coming(NamedTuple):
    """A file whose contents are to be in the target's stage, with its metadata.

    planned: as seen on the source; want: as the target is to have it; before: what it will replace there.
    """

    path: bytes
    planned: Entry
    want: Entry
    before: Entry | None


class Carried(NamedTuple):
    """Bytes of content that travelled, and per path what kept a file from the stage or did not take there."""

    sent: int
    problems: dict[bytes, tuple[str, str]]


# Source, target, files, what is preserved, and who is told of the phase, the files and the bytes so far.
Carry = Callable[["Replica", "Replica", list[Coming], frozenset[str], Callable[[str, int, int], None]], Carried]


class Server(Protocol):
    """One server of a job. Paths are absolute there."""

    # What rsync takes as its -e, None where it needs none.
    remote_shell: str | None
    # Whether rsync there runs with capabilities but not as root.
    privileged: bool
    # Seconds that a question and its answer take.
    round_trip: float

    @property
    def carry(self) -> Carry | None:
        """How contents come from it and go to it; None: by rsync, unless the other server has a way of its own."""

    def abort(self) -> None:
        """Whatever is being done there, for whichever thread, ends before long."""

    def look(self, path: str) -> dict[str, Any]:
        """What is at the path; see place.look."""

    def open(self, path: str, kind: str, **options: Any) -> Replica:
        """Holds a replica; options as Tree has them, but for ``locks``."""

    def names(self, users: Iterable[int], groups: Iterable[int]) -> Names:
        """See tree.names."""

    def numbers(self, users: Iterable[str], groups: Iterable[str]) -> Numbers:
        """See tree.numbers."""

    def address(self, path: str) -> str:
        """The path as rsync names it."""


class ThisServer:
    """The server that the job runs on."""

    remote_shell: str | None = None
    carry: Carry | None = None

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.privileged = layout.privileged
        self.round_trip = 0.0
        self.stopped = threading.Event()

    def abort(self) -> None:
        self.stopped.set()

    def look(self, path: str) -> dict[str, Any]:
        return place.look(path)

    def open(self, path: str, kind: str, **options: Any) -> Replica:
        try:
            return Tree(path, kind, locks=self.layout.locks, stopped=self.stopped, **options)
        except OSError as error:
            raise place.unprepared(path, error) from error

    def names(self, users: Iterable[int], groups: Iterable[int]) -> Names:
        return tree.names(users, groups)

    def numbers(self, users: Iterable[str], groups: Iterable[str]) -> Numbers:
        return tree.numbers(users, groups)

    def address(self, path: str) -> str:
        return path


class Partner:
    """The partner, behind its door."""

    carry: Carry | None = None

    def __init__(self, connection: Conversation) -> None:
        self.connection = connection
        self.remote_shell: str | None = connection.remote_shell
        self.privileged = bool(connection.about.get("privileged"))
        self.round_trip = 0.0
        self.addresses: dict[str, str] = {}

    def abort(self) -> None:
        self.connection.abort()

    def look(self, path: str) -> dict[str, Any]:
        asked = time.monotonic()
        reply = self.connection.ask("look", path=path)
        self.round_trip = time.monotonic() - asked
        with understood(self.connection):
            self.addresses[path] = str(reply["address"])
            return checked(reply["facts"], LOOK)

    def open(self, path: str, kind: str, **options: Any) -> Replica:
        options["name"] = os.fsdecode(options["name"])
        reply = self.connection.ask("open", path=path, kind=kind, **options)
        with understood(self.connection):
            facts = checked(reply["facts"], FACTS)
            return PartnerTree(self.connection, int(reply["tree"]), {**facts, "free": checked(facts["free"], FREE)})

    def names(self, users: Iterable[int], groups: Iterable[int]) -> Names:
        reply = self.connection.ask("names", users=list(users), groups=list(groups))
        with understood(self.connection):
            users_found = {int(number): str(name) for number, name in reply["users"]}
            return users_found, {int(number): str(name) for number, name in reply["groups"]}

    def numbers(self, users: Iterable[str], groups: Iterable[str]) -> Numbers:
        reply = self.connection.ask("numbers", users=list(users), groups=list(groups))
        with understood(self.connection):
            users_found = {str(name): int(number) for name, number in reply["users"].items()}
            return users_found, {str(name): int(number) for name, number in reply["groups"].items()}

    def address(self, path: str) -> str:
        """rsync on the partner takes * ? [ in the path that it is given for a pattern, and a backslash as quoting."""
        if path not in self.addresses:
            self.look(path)
        return f"{self.connection.host}::" + re.sub(r"([*?\[\\])", r"\\\1", self.addresses[path])


# What is used of a partner's facts: name -> types; of numbers the least one.
FREE: dict[str, tuple[Any, ...]] = dict.fromkeys(("free_bytes", "free_inodes", "total_bytes"), (int,))
LOOK = {**dict.fromkeys(("kind", "reason"), (str,)), **dict.fromkeys(("readable", "writable"), (bool,)), **FREE}
VERSION: dict[str, tuple[Any, ...]] = {"run": (str,), "path": (str,), "bytes": (int,), "when": (int, float)}
FACTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("machine", "path", "fstype"), (str,)),
    **dict.fromkeys(("acls", "xattrs", "owner"), (bool,)),
    **dict.fromkeys(("inode", "granularity", "name_max"), (int,)),
    **dict.fromkeys(("time", "booted"), (int, float)),
    "folding": (list,),
    "others": (list,),
    "marker": (dict, type(None)),
    "free": (dict,),
}


def checked(facts: Any, kinds: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The facts, if they are of these types; ValueError else."""
    for name, types in kinds.items():
        value = facts[name]
        if not isinstance(value, types) or (isinstance(value, float) and not abs(value) < 1e12):
            raise ValueError(f"{name} is {value!r:.80}")
    return dict(facts)


@contextmanager
def understood(connection: Conversation) -> Iterator[None]:
    """An answer that is none is the partner's failure."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        message = f"{connection.partner} gave an answer that cannot be one ({error!r:.200}); look into it there"
        raise Failure("protocol", message) from error


def result(line: bytes) -> Result:
    return decode_result(json.loads(line))


class PartnerTree:
    """A replica that the partner holds for this connection."""

    def __init__(self, connection: Conversation, handle: int, facts: dict[str, Any]) -> None:
        self.connection = connection
        self.handle = handle
        self.facts = facts

    def ask(self, verb: str, payload: bytes = b"", **request: Any) -> dict[str, Any]:
        return self.connection.ask(verb, payload, tree=self.handle, **request)

    def ask_long(self, verb: str, payload: bytes = b"") -> Iterator[bytes]:
        return self.connection.ask_long(verb, payload, tree=self.handle)

    def close(self) -> None:
        # Without a connection it is released anyway; and this must not hide why it is closed.
        with suppress(Failure):
            self.ask("close")

    def scan(
        self, known: bytes, include: list[str], exclude: list[str], xattrs: frozenset[str], expected: int
    ) -> Summary:
        reply = self.ask("scan", known, include=include, exclude=exclude, xattrs=sorted(xattrs), expected=expected)
        with understood(self.connection):
            root = decode_entry(reply["root"])
            if root is None:
                raise ValueError("a replica without a root")
            return Summary(
                stream=bytes.fromhex(reply["stream"]),
                entries=int(reply["entries"]),
                moment=int(reply["moment"]),
                complete=bool(reply["complete"]),
                problems={os.fsencode(path): str(reason) for path, reason in reply["problems"]},
                unchanged=bool(reply["unchanged"]),
                root=root,
            )

    def digests(self) -> Iterator[tuple[bytes, bytes]]:
        for path, digest, _nothing in self.items("digests", None):
            with understood(self.connection):
                known = bytes.fromhex(digest.decode("ascii"))
            yield path, known

    def listing(self, directories: Iterable[bytes]) -> Iterator[Item]:
        return self.items("listing", directories)

    def entries(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Entry | str | None]]:
        return self.seen("entries", paths)

    def checksums(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Entry | str]]:
        for path, found in self.seen("checksums", paths):
            yield path, "is gone" if found is None else found

    def zeros(self, paths: Iterable[bytes]) -> Iterator[bytes]:
        return (path for path, _record, _more in self.items("zeros", paths))

    def occupied(self, paths: Iterable[bytes]) -> int:
        total = 0
        for some in batches(paths):
            reply = self.ask("occupied", pack_paths(some))
            with understood(self.connection):
                total += int(reply["bytes"])
        return total

    def attributes(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, dict[str, bytes]]]:
        def attributes(line: bytes) -> tuple[bytes, dict[str, bytes]]:
            path, found = json.loads(line)
            return os.fsencode(path), decode_attributes(found) or {}

        return self.lines("attributes", (pack_paths(some) for some in batches(paths)), attributes)

    def prepare(self, preserve: frozenset[str]) -> str:
        return str(self.ask("prepare", preserve=sorted(preserve)).get("stage"))

    def staged(self) -> Iterator[Item]:
        return self.items("staged", None)

    def commit(self, ops: Iterable[Op]) -> Iterator[Result]:
        return self.lines("commit", chain.from_iterable(map(fitting, batches(ops))), result)

    def finish(self) -> None:
        self.ask("finish")

    def sync(self) -> None:
        self.ask("sync")

    def settle(self) -> int:
        reply = self.ask("settle")
        with understood(self.connection):
            return int(reply["moment"])

    def mark(self, content: dict[str, Any]) -> None:
        self.ask("mark", content=content)

    def prune(self, keep: int, most: int, now: float) -> list[str]:
        reply = self.ask("prune", keep=keep, most=most, now=now)
        with understood(self.connection):
            return [str(problem) for problem in reply["problems"]]

    def versions(self, path: bytes | None) -> Iterator[dict[str, Any]]:
        def version(line: bytes) -> dict[str, Any]:
            return checked(json.loads(line), VERSION)

        return self.lines("versions", [b"" if path is None else pack_paths([path])], version)

    def restore(self, path: bytes, run: str) -> Iterator[Result]:
        return self.lines("restore", [pack_paths([os.fsencode(run), path])], result)

    # How answers of any length are read: in pieces that are whole.

    def items(self, verb: str, paths: Iterable[bytes] | None) -> Iterator[Item]:
        for payload in [b""] if paths is None else map(pack_paths, batches(paths)):
            for data in self.ask_long(verb, payload):
                with understood(self.connection):
                    items = unpack(data)
                yield from items

    def seen(self, verb: str, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Entry | str | None]]:
        for some in batches(paths):
            for data in self.ask_long(verb, pack_paths(some)):
                with understood(self.connection):
                    found = list(unpack_seen(data))
                yield from found

    def lines(self, verb: str, payloads: Iterable[bytes], read: Callable[[bytes], Found]) -> Iterator[Found]:
        for payload in payloads:
            for data in self.ask_long(verb, payload):
                with understood(self.connection):
                    found = list(map(read, data.splitlines()))
                yield from found


Replica = Union[Tree, PartnerTree, SftpTree]


def batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(islice(rest, REQUEST)):
        yield some


def fitting(ops: list[Op]) -> Iterator[bytes]:
    """The operations as they travel, in as many requests as frames can hold: names and attributes may be long."""
    data = encode_ops(ops)
    if len(data) <= PAYLOAD_LIMIT or len(ops) == 1:
        yield data
        return
    middle = len(ops) // 2
    yield from fitting(ops[:middle])
    yield from fitting(ops[middle:])


def translations(
    source: Server, target: Server, users: set[int], groups: set[int]
) -> tuple[dict[int, int], dict[int, int], list[str]]:
    """Users and groups of the source as numbers of the target, by name; and the names that the target lacks.

    A number that is missing in the result stays as it is.
    """
    user_names, group_names = source.names(users, groups)
    user_numbers, group_numbers = target.numbers(set(user_names.values()), set(group_names.values()))
    lacking = sorted({*user_names.values()} - user_numbers.keys()) + sorted(
        {*group_names.values()} - group_numbers.keys()
    )
    return (
        {number: user_numbers[name] for number, name in user_names.items() if name in user_numbers},
        {number: group_numbers[name] for number, name in group_names.items() if name in group_numbers},
        lacking,
    )
