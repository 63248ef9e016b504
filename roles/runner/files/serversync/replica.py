# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two servers of a job behind one interface: this one, and the partner by SSH. What fails raises Failure.

A server opens replicas; an open replica is a ``Tree``, or a ``PartnerTree`` that passes every call on to the Tree which
the partner's ``serve`` holds, or of a partner without a runner an ``SftpTree`` (``sftp.SftpServer`` has these).
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, Union

from serversync import place, tree
from serversync.commit import Op, Result
from serversync.detect import SIZE, Summary
from serversync.entry import Entry, pack, unpack
from serversync.failure import Failure
from serversync.frames import BESIDE, PATIENCE, PAYLOAD_LIMIT
from serversync.held import good
from serversync.layout import Layout
from serversync.parcel import REFUSED, Made, Parcel, Wrapper, requests, unpack_made, unwrap
from serversync.ssh import Conversation, Reply
from serversync.tree import Item, Tree
from serversync.wire import (
    LATEST,
    LONGEST_PATH,
    LONGEST_PROBLEM,
    bounded,
    decode_attributes,
    decode_entry,
    decode_result,
    encode_ops,
    pack_paths,
    plain,
    unpack_seen,
)

if TYPE_CHECKING:
    from serversync.counts import Tell
    from serversync.sftptree import SftpTree

# Paths or operations in one request: of paths of the greatest length still one frame.
REQUEST = 2000
# Requests for paths that are sent before the first of them has been answered; bytes of operations.
BATCHES_AHEAD, OPERATIONS_AHEAD = 2, 8 << 20
# Seconds that parcels may take to the partner: over a thin line nothing else comes from there meanwhile.
ON_ITS_WAY = 600.0
# What a partner may say of what it has: paths of an element, children that have come since the scan, bytes of the
# attributes of a path, of a list of versions, problems of which nothing more is told.
MOST_PATHS, MEANWHILE = 100_000_000, 100_000
# Bytes of a name and what is said of it, on the average of many: one may have many times that.
AVERAGE = 512
MOST_ATTRIBUTES, MOST_VERSIONS, MOST_PROBLEMS = 1 << 16, 256 << 20, 200
Found = TypeVar("Found")
Key = TypeVar("Key", int, str)
Answer = Generator[Found, None, None]
Names = tuple[dict[int, str], dict[int, str]]
Numbers = tuple[dict[str, int], dict[str, int]]


class Allowance:
    """What may still be listed of a replica: so many paths, which are held in memory, and no more bytes of them than
    as many paths ever have."""

    def __init__(self, paths: int) -> None:
        self.paths = paths
        self.bytes = paths * AVERAGE

    def spend(self, item: Item) -> None:
        self.paths -= 1
        self.bytes -= sum(map(len, item))
        if self.paths < 0:
            raise ValueError(f"{item[0][:80]!r} is one of more paths than there are")
        if self.bytes < 0:
            raise ValueError(f"{item[0][:80]!r} is one of paths that are longer than any element's")


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


# Source, target, files, what is preserved, and who is told how far it is.
Carry = Callable[["Replica", "Replica", list[Coming], frozenset[str], "Tell"], Carried]


class Server(Protocol):
    """One server of a job. Paths are absolute there."""

    # What rsync takes as its -e, None where it needs none.
    remote_shell: str | None
    # Whether rsync there runs with capabilities but not as root.
    privileged: bool

    @property
    def round_trip(self) -> float:
        """Seconds that a question and its answer take."""

    @property
    def carry(self) -> Carry | None:
        """How contents come from it and go to it; None: by rsync, unless the other server has a way of its own."""

    def abort(self) -> None:
        """Whatever is being done there, for whichever thread, ends before long."""

    def look(self, path: str) -> dict[str, Any]:
        """What is at the path; see place.look."""

    def open(self, path: str, kind: str, **options: Any) -> Replica:
        """Holds a replica; options as Tree has them, but for ``locks`` and ``making``."""

    def names(self, users: Iterable[int], groups: Iterable[int]) -> Names:
        """See tree.names."""

    def numbers(self, users: Iterable[str], groups: Iterable[str]) -> Numbers:
        """See tree.numbers."""

    def address(self, path: str) -> str:
        """The path as rsync names it."""

    def inside(self, path: str) -> str:
        """The path as rsync there takes it in its options."""


class ThisServer:
    """The server that the job runs on."""

    remote_shell: str | None = None
    carry: Carry | None = None

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.privileged = layout.privileged and tree.capable(tree.CAP_CHOWN)
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

    def inside(self, path: str) -> str:
        return path


class Partner:
    """The partner, behind its door."""

    carry: Carry | None = None

    def __init__(self, connection: Conversation) -> None:
        self.connection = connection
        self.remote_shell: str | None = connection.remote_shell
        self.privileged = bool(connection.about.get("privileged"))
        self.addresses: dict[str, str] = {}
        # Seconds that the fastest of the questions took that are answered without looking far.
        self.fastest = math.inf

    def abort(self) -> None:
        self.connection.abort()

    @property
    def round_trip(self) -> float:
        if self.fastest == math.inf:
            self.ask("hello")
        return self.fastest

    def ask(self, verb: str, **request: Any) -> dict[str, Any]:
        asked = time.monotonic()
        reply = self.connection.ask(verb, **request)
        self.fastest = min(self.fastest, time.monotonic() - asked)
        return reply

    def look(self, path: str) -> dict[str, Any]:
        return self.looked(path, self.ask("look", path=path))

    def looked(self, path: str, reply: dict[str, Any]) -> dict[str, Any]:
        with understood(self.connection):
            self.addresses[path] = plain(reply["address"])
            return checked(reply["facts"], LOOK)

    def open(self, path: str, kind: str, **options: Any) -> Replica:
        options["name"] = os.fsdecode(options["name"])
        return self.opened(self.connection.ask("open", path=path, kind=kind, **options))

    def opened(self, reply: dict[str, Any]) -> PartnerTree:
        with understood(self.connection):
            return PartnerTree(self.connection, int(reply["tree"]), believable(reply["facts"]))

    def names(self, users: Iterable[int], groups: Iterable[int]) -> Names:
        asked = (set(users), set(groups))
        reply = self.ask("names", users=list(asked[0]), groups=list(asked[1]))
        with understood(self.connection):
            found = ({number: plain(name) for number, name in reply[kind]} for kind in ("users", "groups"))
            users_found, groups_found = (only(one, some) for one, some in zip(found, asked))
            return users_found, groups_found

    def numbers(self, users: Iterable[str], groups: Iterable[str]) -> Numbers:
        asked = (set(users), set(groups))
        reply = self.ask("numbers", users=list(asked[0]), groups=list(asked[1]))
        with understood(self.connection):
            found = (
                {name: owner_number(number) for name, number in reply[kind].items()} for kind in ("users", "groups")
            )
            users_found, groups_found = (only(one, some) for one, some in zip(found, asked))
            return users_found, groups_found

    def address(self, path: str) -> str:
        """rsync on the partner takes * ? [ in the path that it is given for a pattern, and a backslash as quoting."""
        return f"{self.connection.host}::" + re.sub(r"([*?\[\\])", r"\\\1", self.known(path))

    def inside(self, path: str) -> str:
        """There the root of the pairing is all that there is."""
        return "/" + self.known(path).partition("/")[2].lstrip("/")

    def known(self, path: str) -> str:
        # An element in another one may be in a root of its own, with its own access.
        around = (one for one in self.addresses if f"{path}/".startswith(one.rstrip("/") + "/"))
        if above := max(around, key=len, default=""):
            return self.addresses[above] + path[len(above) :]
        self.look(path)
        return self.addresses[path]


# What is used of a partner's facts: name -> types; of numbers the least one.
FREE: dict[str, tuple[Any, ...]] = dict.fromkeys(("free_bytes", "free_inodes", "total_bytes"), (int,))
LOOK = {**dict.fromkeys(("kind", "reason"), (str,)), **dict.fromkeys(("readable", "writable"), (bool,)), **FREE}
VERSION: dict[str, tuple[Any, ...]] = {"run": (str,), "path": (str,), "bytes": (int,), "when": (int, float)}
FACTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("machine", "path", "fstype"), (str,)),
    **dict.fromkeys(("acls", "xattrs", "owner"), (bool,)),
    **dict.fromkeys(("inode", "born", "granularity", "name_max"), (int,)),
    **dict.fromkeys(("time", "booted"), (int, float)),
    "folding": (list,),
    "others": (list,),
    "marker": (dict, type(None)),
    "free": (dict,),
    "device": (int,),
    "empty": (bool,),
}


def checked(facts: Any, kinds: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Those of the facts that are used, if they are of these types; ValueError else."""
    for name, types in kinds.items():
        value = facts[name]
        possible = isinstance(value, types)
        if isinstance(value, str):
            plain(value)
        elif isinstance(value, (int, float)):
            # Of a time, by whatever clock, or of what a kernel counts.
            possible = possible and (abs(value) < 1e12 if float in types else 0 <= value < 1 << 64)
        if not possible:
            raise ValueError(f"{name} is {value!r:.80}")
    return {name: facts[name] for name in kinds}


def believable(facts: Any) -> dict[str, Any]:
    """Of a replica's facts those that are used, if they can be true; ValueError else."""
    found = checked(facts, FACTS)
    found["free"] = checked(found["free"], FREE)
    marker = found["marker"] or {}
    true = (
        1 <= found["granularity"] <= 10**10
        and 1 <= found["name_max"] <= LONGEST_PATH
        and set(found["folding"]) <= {"case", "normalization"}
        and all(isinstance(marker.get(name, ""), (str, type(None))) for name in ("current", "next"))
        and all(map(is_marker, found["others"]))
    )
    if not true:
        raise ValueError(f"{found!r:.500} cannot be")
    return found


def is_marker(content: Any) -> bool:
    """Whether another element's marker has words where it is told of, and a job of this server is looked for by it."""
    if not isinstance(content, dict):
        return False
    names = all(place.WORD.fullmatch(plain(content.get(name, "x"))) for name in ("job", "element"))
    return names and len(plain(content.get("server", ""))) < 256


def owner_number(number: Any) -> int:
    if not isinstance(number, int) or not 0 <= number < 1 << 32:
        raise ValueError(f"{number!r:.80} is nobody's number")
    return number


def only(found: dict[Key, Found], asked: set[Key]) -> dict[Key, Found]:
    """What was asked for, and nothing else."""
    if not found.keys() <= asked:
        raise ValueError(f"{next(iter(found.keys() - asked), None)!r:.80} was not asked for")
    return found


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
        self.most = MEANWHILE
        # Of children.
        self.room = Allowance(MEANWHILE)
        # Questions without a whole answer yet, and in their order those that nothing waits for.
        self.asked: set[int] = set()
        self.said: deque[int] = deque()
        self.patience = PATIENCE
        # The last parcel that was sent.
        self.latest = 0
        # Directories and their digests, where they came along with the scan.
        self.digests_come: bytes | None = None

    def send(self, verb: str, payload: bytes = b"", **request: Any) -> int:
        """Asks; the question's number."""
        number = self.connection.ask_early(verb, payload, tree=self.handle, **request)
        self.asked.add(number)
        return number

    def say(self, verb: str, payload: bytes = b"", **request: Any) -> None:
        """Asks for what nothing waits for. If it fails, that is raised before any later answer is taken up."""
        self.said.append(self.send(verb, payload, **request))

    def answered(self, before: float = math.inf) -> None:
        """Waits for the answers to what was said; before: of questions with lower numbers than this one alone."""
        while self.said and self.said[0] < before:
            for _piece in self.pieces(self.said.popleft()):
                continue

    def answer(self, number: int) -> Reply:
        self.answered(number)
        self.asked.discard(number)
        return self.connection.answer(number, self.patience)

    def pieces(self, number: int) -> Iterator[bytes]:
        self.answered(number)
        yield from self.connection.pieces(number, self.patience)
        self.asked.discard(number)

    def ask(self, verb: str, payload: bytes = b"", **request: Any) -> dict[str, Any]:
        return self.answer(self.send(verb, payload, **request))[0]

    def ask_long(self, verb: str, payload: bytes = b"", **request: Any) -> Iterator[bytes]:
        yield from self.pieces(self.send(verb, payload, **request))

    def ask_ahead(self, verb: str, paths: Iterable[bytes]) -> Iterator[tuple[list[bytes], int]]:
        """Some of the paths after others, with the question about them; the next ones are asked before it is read."""
        waiting: deque[tuple[list[bytes], int]] = deque()
        for some in batches(paths):
            waiting.append((some, self.send(verb, pack_paths(some))))
            if len(waiting) > BATCHES_AHEAD:
                yield waiting.popleft()
        yield from waiting

    def close(self) -> None:
        for number in self.asked:
            self.connection.drop(number)
        # Without a connection it is released anyway; and this must not hide why it is closed.
        with suppress(Failure):
            self.connection.tell("close", tree=self.handle)

    def scan(
        self, known: bytes, include: list[str], exclude: list[str], xattrs: frozenset[str], expected: int
    ) -> Summary:
        request = {"include": include, "exclude": exclude, "xattrs": sorted(xattrs), "expected": expected}
        return self.summary(*self.answer(self.send("scan", known, **request)))

    def summary(self, reply: dict[str, Any], digests: bytes) -> Summary:
        """digests: of the directories, where the reply says that they have come along."""
        with understood(self.connection):
            self.digests_come = digests if reply["digests"] is True else None
            root = decode_entry(reply["root"])
            stream, entries, moment = bytes.fromhex(reply["stream"]), int(reply["entries"]), int(reply["moment"])
            problems = {os.fsencode(path): str(reason)[:LONGEST_PROBLEM] for path, reason in reply["problems"]}
            if root is None or root.kind != "d" or len(stream) > 64 or abs(moment) > LATEST:
                raise ValueError("there is no such replica")
            if not 0 <= entries <= MOST_PATHS:
                raise ValueError(f"{entries} paths, of {MOST_PATHS} that an element can have")
            if not all(map(good, problems)):
                raise ValueError("a problem of what is no path below the element")
            # Directories may be listed twice, and what comes meanwhile with them.
            self.most = 2 * entries + MEANWHILE
            self.room = Allowance(self.most)
            return Summary(
                stream=stream,
                entries=entries,
                moment=moment,
                complete=bool(reply["complete"]),
                problems=problems,
                unchanged=bool(reply["unchanged"]),
                root=root,
            )

    def digests(self) -> Iterator[tuple[bytes, bytes]]:
        before: bytes | None = None
        room = Allowance(self.most)
        come, self.digests_come = self.digests_come, None
        with understood(self.connection):
            for item in self.items(self.pieces(self.send("digests")) if come is None else [come]):
                room.spend(item)
                path, digest = item[0], bytes.fromhex(item[1].decode("ascii"))
                if before is not None and path <= before:
                    raise ValueError(f"the directory {path[:80]!r} is out of order, or there twice")
                if (path and not good(path)) or len(digest) != SIZE:
                    raise ValueError(f"the directory {path[:80]!r} cannot be there, or its digest is none")
                before = path
                yield path, digest

    def listing(self, directories: Iterable[bytes]) -> Iterator[Item]:
        for some, number in self.ask_ahead("listing", directories):
            yield from self.in_order(self.items(self.pieces(number)), set(some))

    def in_order(self, items: Answer[Item], directories: set[bytes]) -> Iterator[Item]:
        """Children of directories, each once, those of one after those of another; as many as there can be."""
        before: tuple[bytes, bytes] | None = None
        with understood(self.connection), closing(items):
            for item in items:
                path = item[0]
                here = (path.rpartition(b"/")[0], path)
                if before is not None and here <= before:
                    raise ValueError(f"{path[:80]!r} is out of order, or there twice")
                before = here
                self.room.spend(item)
                if here[0] not in directories:
                    raise ValueError(f"{path[:80]!r} was not asked for")
                yield item

    def entries(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Entry | str | None]]:
        return self.seen("entries", paths)

    def checksums(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Entry | str]]:
        for path, found in self.seen("checksums", paths):
            yield path, "is gone" if found is None else found

    def zeros(self, paths: Iterable[bytes]) -> Iterator[bytes]:
        for some, number in self.ask_ahead("zeros", paths):
            items = self.items(self.pieces(number))
            for path, _more in self.asked_for(some, ((path, more) for path, _record, more in items)):
                yield path

    def occupied(self, paths: Iterable[bytes]) -> int:
        total = 0
        for some in batches(paths):
            reply = self.ask("occupied", pack_paths(some))
            with understood(self.connection):
                total += checked(reply, {"occupied": (int,)})["occupied"]
        return total

    def attributes(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, dict[str, bytes]]]:
        def attributes(line: bytes) -> tuple[bytes, dict[str, bytes]]:
            path, found = json.loads(line)
            return os.fsencode(path), decode_attributes(found) or {}

        for some, number in self.ask_ahead("attributes", paths):
            # One path's may be a frame of them.
            most = PAYLOAD_LIMIT + len(some) * MOST_ATTRIBUTES
            yield from self.asked_for(some, self.lines(number, attributes, most))

    def prepare(self, preserve: frozenset[str]) -> None:
        self.say("prepare", preserve=sorted(preserve))

    def staged(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Entry | str | None]]:
        return self.seen("staged", paths)

    def give(self, files: Iterable[tuple[bytes, bytes]], *, deflate: bool) -> Answer[Parcel]:
        for some in requests(files):
            expected = iter(some)
            with understood(self.connection), closing(self.parcels(some, deflate)) as parcels:
                for parcel in parcels:
                    for path, record, _more in parcel.items:
                        asked, known = next(expected, (None, b""))
                        if path != asked or record not in (known, REFUSED):
                            raise ValueError(f"{path[:80]!r} was not asked for, or is another file")
                    yield parcel
                if next(expected, None) is not None:
                    raise ValueError("fewer files came than were asked for")

    def parcels(self, files: list[tuple[bytes, bytes]], deflate: bool) -> Answer[Parcel]:
        for data in self.ask_long("give", pack((path, record, b"") for path, record in files), deflate=deflate):
            yield unwrap(data)

    def take(self, parcels: Iterable[Parcel], *, deflate: bool) -> Iterator[Callable[[], list[Made]]]:
        wrapper = Wrapper(deflate=deflate)
        self.patience = ON_ITS_WAY
        for parcel in parcels:
            self.latest = self.send(BESIDE, wrapper.wrap(parcel))
            yield partial(self.taken, self.latest, len(parcel.items))

    def taken(self, number: int, count: int) -> list[Made]:
        _reply, data = self.answer(number)
        with understood(self.connection):
            made = unpack_made(data)
            if len(made) != count:
                raise ValueError(f"{len(made)} files were made of {count}")
            return made

    def order(self, ops: Iterable[Op], behind: int = 0) -> Iterator[Result]:
        """Has the operations done, or under way once it returns; what came of each, for whoever asks.

        behind: the ``latest`` of the parcels that have to be in the stage before.
        """
        asked: list[Op] = []
        results: list[Iterator[Result]] = []
        waiting: deque[tuple[int, int]] = deque()
        ahead = 0

        def heard() -> int:
            at, size = waiting.popleft()
            results[at] = iter(list(results[at]))
            return size

        for some in batches(ops):
            asked += some
            for data in fitting(some):
                while waiting and ahead + len(data) > OPERATIONS_AHEAD:
                    ahead -= heard()
                waiting.append((len(results), len(data)))
                results.append(self.lines(self.send("commit", data, behind=behind), result))
                ahead += len(data)
        return self.of_each(asked, chain.from_iterable(results))

    def of_each(self, ops: list[Op], results: Iterator[Result]) -> Iterator[Result]:
        with understood(self.connection):
            for op in ops:
                found = next(results, None)
                if found is None or found.path != op.path:
                    raise ValueError(f"nothing was said of {op.path[:80]!r}")
                yield found
            if next(results, None) is not None:
                raise ValueError("more was done than was asked for")

    def set_times(self, times: Iterable[tuple[bytes, int]]) -> None:
        for some in batches(times):
            self.say("times", pack((path, b"%d" % mtime, b"") for path, mtime in some))

    def finish(self) -> None:
        self.say("finish")

    def sync(self) -> None:
        self.say("sync")

    def settle(self) -> int:
        reply = self.ask("settle")
        with understood(self.connection):
            moment = int(reply["moment"])
            if abs(moment) > LATEST:
                raise ValueError(f"{moment!r:.80} is no moment")
            return moment

    def mark(self, content: dict[str, Any]) -> None:
        self.say("mark", content=content)

    def prune(self, keep: int, most: int, now: float) -> list[str]:
        reply = self.ask("prune", keep=keep, most=most, now=now)
        with understood(self.connection):
            return [str(problem)[:LONGEST_PROBLEM] for problem in reply["problems"][:MOST_PROBLEMS]]

    def versions(self, path: bytes | None) -> Iterator[dict[str, Any]]:
        def version(line: bytes) -> dict[str, Any]:
            return checked(json.loads(line), VERSION)

        return self.lines(self.send("versions", b"" if path is None else pack_paths([path])), version)

    def restore(self, path: bytes, run: str) -> Iterator[Result]:
        return self.lines(self.send("restore", pack_paths([os.fsencode(run), path])), result)

    # How answers of any length are read: in pieces that are whole.

    # Whoever gives one up before its end closes it: else nothing could be asked any more.

    def items(self, pieces: Iterable[bytes]) -> Answer[Item]:
        with understood(self.connection):
            for data in pieces:
                yield from map(bounded, unpack(data))

    def seen(self, verb: str, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Entry | str | None]]:
        for some, number in self.ask_ahead(verb, paths):
            yield from self.asked_for(some, self.seen_of(number))

    def seen_of(self, number: int) -> Answer[tuple[bytes, Entry | str | None]]:
        for data in self.pieces(number):
            yield from unpack_seen(data)

    def asked_for(self, paths: Iterable[bytes], answers: Answer[tuple[bytes, Found]]) -> Iterator[tuple[bytes, Found]]:
        """Answers about these paths, one of each at the most."""
        waiting = set(paths)
        with understood(self.connection), closing(answers):
            for path, found in answers:
                if path not in waiting:
                    raise ValueError(f"{path[:80]!r} was not asked for, or is there twice")
                waiting.remove(path)
                yield path, found

    def lines(self, number: int, read: Callable[[bytes], Found], most: int = MOST_VERSIONS) -> Answer[Found]:
        with understood(self.connection):
            for data in self.pieces(number):
                most -= len(data)
                if most < 0:
                    raise ValueError("an answer is longer than it can be")
                yield from map(read, data.splitlines())


Replica = Union[Tree, PartnerTree, "SftpTree"]


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
