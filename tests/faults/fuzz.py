# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever holds a paired key, asking the door whatever he likes.

    python tests/faults/fuzz.py --cases 20000          conversations, and option lines of rsync's daemon
    python tests/faults/fuzz.py --cases 500 --seed 7   others

A case is a conversation of some frames, sound, bent or made of noise, with ``serve`` in this process over a socket, or
a real rsync client with options that it should not have, in front of the daemon that ``serve`` becomes. The three roots
are open for reading, for writing and for both; links in them lead out, and while ``serve`` works another thread
exchanges a directory in each with a link that leads out, as fast as it can.

After each case: every request had an answer; what lies beside the roots is as it was, down to its change times, as is
the root for reading; and no content came out that the pairing may not have.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "roles" / "runner" / "files"))

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from serversync import linux
from serversync.commit import Op
from serversync.entry import Entry, pack
from serversync.failure import Failure
from serversync.frames import Frames
from serversync.layout import Layout
from serversync.parcel import Parcel, Wrapper
from serversync.serve import Desk, Door, converse
from serversync.wire import encode_ops, pack_paths

from tests.loopback import Partner, module, write_launcher

ACCESS = ("read", "write", "both")
# Of the verbs those that reach farthest are asked for most.
OFTEN = ("give", "take", "commit", "listing", "open", "log_open")
# What must not come out.
OUTSIDE, CLOSED = b"what lies outside of all roots", b"what may be written and not read"
VERBS = sorted(name[len("verb_") :] for name in vars(Desk) if name.startswith("verb_"))


class World:
    """Three roots, and beside them what nobody may see or touch."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.outside = base / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_bytes(OUTSIDE)
        (self.outside / "plc").write_bytes(OUTSIDE)
        (self.outside / "app.log").write_bytes(OUTSIDE + b"\n")
        (self.outside / "inner").mkdir()
        (base / "links").mkdir()
        self.roots = {access: base / access for access in ACCESS}
        for access, root in self.roots.items():
            self.fill(root, CLOSED if access == "write" else b"may be read")
            (base / "links" / access).symlink_to(self.outside)
        entries = [{"module": module(root), "path": str(root), "access": access} for access, root in self.roots.items()]
        self.layout = Layout("user", base / "config", base / "state", base / "runtime")
        for directory in (self.layout.doors, base / "state", base / "runtime"):
            directory.mkdir(parents=True)
        (self.layout.doors / "site-a.json").write_text(json.dumps({"roots": entries}))
        self.entries = entries

    def fill(self, root: Path, content: bytes) -> None:
        (root / "line" / "deep").mkdir(parents=True)
        (root / "swap" / "inner").mkdir(parents=True)
        for name in ("plc", "line/a", "line/deep/b", "swap/secret", "swap/plc", "app.log", "app.log.1"):
            (root / name).write_bytes(content + b"\n")
        (root / "app.log.2.gz").write_bytes(gzip.compress(content + b"\n")[:-6])
        (root / "escape").symlink_to("../outside")
        (root / "up").symlink_to("..")
        (root / "absolute").symlink_to(self.outside)
        os.mkfifo(root / "pipe")

    @contextmanager
    def swapping(self) -> Iterator[None]:
        """A directory of each root is a link out every other moment."""
        done = threading.Event()
        links = os.open(self.base / "links", os.O_PATH)
        roots = {os.fsencode(access): os.open(root, os.O_PATH) for access, root in self.roots.items()}

        def swap() -> None:
            while not done.is_set():
                for access, root in roots.items():
                    with suppress(FileNotFoundError):
                        linux.rename(root, b"swap", links, access, linux.RENAME_EXCHANGE)

        thread = threading.Thread(target=swap, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            for descriptor in (links, *roots.values()):
                os.close(descriptor)

    def untouchable(self) -> dict[str, tuple[Any, ...]]:
        """What lies outside, and the root for reading; of what is exchanged no times."""
        found: dict[str, tuple[Any, ...]] = {"": tuple(sorted(os.listdir(self.base)))}
        for top in (self.outside, self.roots["read"]):
            for directory, names, files in os.walk(top):
                for name in ["", *names, *files]:
                    path = Path(directory, name)
                    info = path.lstat()
                    swapped = path == self.roots["read"] or "swap" in path.parts
                    content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
                    times = () if swapped else (info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
                    if not swapped or path.name != "swap":
                        found[str(path)] = (info.st_mode, info.st_uid, content, *times)
        return {path: facts for path, facts in found.items() if "/swap" not in path}


# What is asked.

GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
) | st.sampled_from([10**30, -(10**30), 1 << 63, "\ud800", "a\0b", "x" * 5000, [[]], {"x": 1}])
WORDS = b"""
plc line line/a line/deep swap swap/plc swap/secret swap/inner new new/er escape escape/secret up/outside/secret
absolute/secret pipe app.log stage . .. ../outside/secret line/../../outside/secret /etc/passwd line//a a/. a/..
.serversync .serversync/job.1/marker.json line/.serversync \xff\xfe \x1b[2J
""".split()
ODD = [b"", b"a\nb", b"x" * 300, b"d/" * 3000 + b"x"]
NOISE = st.binary(min_size=1, max_size=12).map(lambda path: path.replace(b"\0", b"/"))
# What is drawn most: by each of these something outside would be met, if a link were followed.
OUT = [
    b"escape/secret",
    b"escape/new",
    b"up/outside/secret",
    b"up/outside/new",
    b"absolute/plc",
    b"swap/plc",
    b"swap/new",
]
PATHS = st.sampled_from(OUT) | st.sampled_from(OUT) | st.sampled_from(WORDS) | st.sampled_from(ODD) | NOISE
TAILS = ["", "\0", "/\ud800", "/\udcff", "/" + "x" * 300]
TAILS += [
    "/",
    "/line",
    "/line/..",
    "/./line",
    "//line",
    "/plc",
    "/app.log",
    "/swap",
    "/swap/plc",
    "/swap/inner",
    "/escape",
    "/escape/secret",
    "/escape/app.log",
    "/up/outside",
    "/absolute",
    "/absolute/app.log",
    "/missing",
    "/new/app.log",
    "/../outside",
    "/../outside/app.log",
    "x",
    "/pipe",
]
NUMBERS = st.integers(0, 3) | st.integers(-5, 1 << 20) | st.sampled_from([1 << 62, 1 << 63, 10**30, -1])
RECORDS = st.builds(
    Entry,
    kind=st.sampled_from("fdlpsbc"),
    inode=NUMBERS.filter(lambda it: it >= 0),
    ctime=NUMBERS,
    mtime=NUMBERS,
    size=st.integers(0, 40),
    mode=st.sampled_from([0o644, 0o755, 0o4755, 0o7777]),
    uid=st.sampled_from([0, 1000]),
    gid=st.sampled_from([0, 1000]),
    nlink=st.integers(1, 2),
    link=st.sampled_from([b"", b"../outside", b"/etc", b"a b"]),
)
LOG_DOINGS = [
    "files",
    "mark",
    "digest",
    "copied",
    "line_end",
    "count",
    "take",
    "read",
    "refresh",
    "create",
    "same",
    "already",
    "append",
    "nonsense",
]
DOINGS = ("put", "tree", "mkdir", "symlink", "special", "link", "meta", "delete", "aside", "drop", "nonsense")

# The kind that what is made so has.
FITTING = {"mkdir": "d", "tree": "d", "symlink": "l", "special": "p", "put": "f"}


@st.composite
def operations(draw: st.DrawFn, world: World) -> bytes:
    """Some expect what is really there, so that they are carried out."""
    ops = []
    for _number in range(draw(st.integers(1, 4))):
        path, do = draw(PATHS), draw(st.sampled_from(DOINGS))
        expect, want = draw(st.none() | RECORDS), draw(st.none() | RECORDS)
        if draw(st.integers(0, 3)):
            with suppress(OSError, ValueError):
                expect = Entry.of(os.lstat(os.fsencode(world.roots["both"]) + b"/" + path))
            if path.endswith(b"new"):
                expect = None
            if want is not None and do in FITTING:
                want = want._replace(kind=FITTING[do], link=b"../outside" if do == "symlink" else b"")
        attributes = draw(st.none() | st.just({}) | st.just({"user.a": b"b", "security.capability": b"c"}))
        ops.append(Op(do, path, expect, want, attributes, draw(PATHS), draw(PATHS), draw(st.integers(0, 3)) == 0))
    return encode_ops(ops)


@st.composite
def payloads(draw: st.DrawFn, verb: str, world: World) -> bytes:
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60) | st.just(b"[" * 100_000) | st.just(b'[{"do":"put"}]'))
    if verb == "commit":
        return draw(operations(world))
    if verb in ("give", "take"):
        items = []
        for path in draw(st.lists(PATHS, min_size=1, max_size=3)):
            entry = draw(RECORDS)
            with suppress(OSError, ValueError):
                if draw(st.booleans()):
                    entry = Entry.of(os.lstat(os.fsencode(world.roots["both"]) + b"/" + path))
            items.append((path.replace(b"\0", b""), entry._replace(link=b"").record, b""))
        if verb == "give":
            return pack(items)
        contents = [b"y" * int(record.split(b" ")[4]) for _path, record, _more in items]
        return Wrapper(deflate=draw(st.booleans())).wrap(Parcel(items, contents))
    if verb == "log":
        mark = [draw(NUMBERS), "x", "y"]
        return json.dumps({"marks": [mark], "stamps": [[1, draw(NUMBERS), 3, 4]]}).encode() + draw(st.just(b"") | PATHS)
    return pack_paths(draw(st.lists(PATHS.filter(lambda path: b"\0" not in path), max_size=4)))


@st.composite
def requests(draw: st.DrawFn, world: World, verb: str | None = None) -> tuple[dict[str, Any], bytes]:
    verb = verb or draw(
        st.sampled_from(VERBS) | st.sampled_from(("give", "take", "commit", "listing", "open", "log_open"))
    )
    access = draw(st.sampled_from(ACCESS))
    root = draw(st.sampled_from([*map(str, world.roots.values()), str(world.outside), str(world.base), "", "/"]))
    number = draw(NUMBERS)
    request: dict[str, Any] = {
        "verb": verb,
        "path": str(world.roots[access]) + draw(st.just("") | st.sampled_from(TAILS)),
        "kind": draw(st.sampled_from(["directory", "directory", "file"])),
        "element": draw(st.sampled_from(["job.1", "job.1", "job.2", "..", "", "a/b"])),
        "run": draw(st.sampled_from(["20260101T000000Z-abcd", "run", "../x"])),
        "writable": draw(st.just(access != "read") | st.booleans()),
        "look": draw(st.sampled_from([False, False, False, True])),
        "owner": draw(st.sampled_from(["a job", "a\nb", "x" * 300])),
        "name": draw(st.sampled_from(["", "plc", "../plc", "a/b", "\udcff"])),
        "previous": draw(st.sampled_from(["", "", "job.0", ".."])),
        "making": draw(st.booleans()),
        "include": draw(st.sampled_from([[], ["*.x"], ["[" * 50], ["!"]])),
        "exclude": draw(st.sampled_from([[], ["line/"], ["\\"], ["**/" * 20], ["a" * 999]])),
        **{"xattrs": [], "expected": draw(NUMBERS), "preserve": ["permissions", "owner", "group", "xattrs"]},
        **{"users": draw(st.lists(GARBAGE | st.just(0), max_size=2)), "groups": draw(st.lists(st.just(0), max_size=2))},
        **{"tree": draw(st.sampled_from([0, 0, 0, 1, 2, -1])), "log": draw(st.sampled_from([0, 0, 1]))},
        **{"content": {"job": "x"}, "keep": number, "most": draw(NUMBERS), "now": draw(NUMBERS)},
        "do": draw(st.sampled_from(LOG_DOINGS)),
        **{"number": draw(NUMBERS), "offset": draw(NUMBERS), "start": draw(NUMBERS), "end": draw(NUMBERS)},
        **{"others": [draw(NUMBERS)], "mark": [draw(NUMBERS), "x", "y"], "mode": draw(NUMBERS), "uid": 0, "gid": 0},
        **{"inode": draw(NUMBERS), "last": True, "deflate": draw(st.booleans())},
    }
    if draw(st.integers(0, 7)) == 0:
        request["path"] = root + draw(st.sampled_from(TAILS))
    for name in draw(st.lists(st.sampled_from(sorted(request)), max_size=2)) if draw(st.integers(0, 3)) == 0 else []:
        request[name] = draw(GARBAGE)
    for name in draw(st.lists(st.sampled_from(sorted(request)), max_size=1)) if draw(st.integers(0, 9)) == 0 else []:
        del request[name]
    return request, draw(payloads(verb, world))


@st.composite
def conversations(draw: st.DrawFn, world: World) -> list[tuple[dict[str, Any], bytes]]:
    """Most begin as a run does, so that what comes later finds something open."""
    access = draw(st.sampled_from(ACCESS))
    path = str(world.roots[access]) + draw(st.just("") | st.just("") | st.sampled_from(TAILS))
    opened = {"path": path, "kind": "directory", "element": "job.1", "run": "run", "writable": access != "read"}
    root = str(world.roots[access])
    opened |= {"look": False, "owner": "a job", "name": "", "previous": ""}
    start: list[tuple[dict[str, Any], bytes]] = []
    if draw(st.integers(0, 9)):
        scan = {"verb": "scan", "tree": 0, "include": [], "exclude": [], "xattrs": [], "expected": 1}
        start = [({"verb": "open", **opened}, b""), (scan, b"")]
        start += [({"verb": "prepare", "tree": 0, "preserve": ["permissions", "times"]}, b"")]
    if draw(st.integers(0, 2)) == 0:
        tail = draw(st.sampled_from(["/app.log", "/new/app.log", "/swap/plc"]))
        start += [({**opened, "verb": "log_open", "path": root + tail, "kind": "file"}, b"")]
        start += [({"verb": "log", "log": 0, "do": "files"}, b'{"marks": [], "stamps": []}')]
    return [*start, *draw(st.lists(requests(world), min_size=1, max_size=8)), *outward(world)]


def outward(world: World) -> list[tuple[dict[str, Any], bytes]]:
    """The ways out once more, at the end of each conversation: contents as they really are there, and something new."""
    entry = Entry.of((world.outside / "secret").lstat())
    names = [path for path in OUT if path.endswith(b"secret")]
    give = pack([(path, entry.record, b"") for path in names])
    want = entry._replace(kind="d", mode=0o755)
    ops = [Op("mkdir", path, None, want) for path in OUT if path.endswith(b"new")]
    ops += [Op("delete", path, entry) for path in names]
    return [({"verb": "give", "tree": 0, "deflate": False}, give), ({"verb": "commit", "tree": 0}, encode_ops(ops))]


# How it is asked.


class Asked:
    """A conversation with ``serve``, and all that came out of it."""

    def __init__(self, world: World) -> None:
        self.mine, theirs = socket.socketpair()
        self.frames = Frames(self.mine.fileno(), self.mine.fileno())
        self.came = bytearray()
        self.failure: BaseException | None = None

        def serve() -> None:
            try:
                converse(Frames(theirs.fileno(), theirs.fileno()), Door(world.layout, "site-a"))
            except BaseException as error:  # told by whoever waits for it
                self.failure = error
            finally:
                theirs.close()

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()

    def ask(self, request: dict[str, Any], payload: bytes) -> Counter[str]:
        """How it was answered, by the answers' codes."""
        self.frames.send({**request, "id": 7}, payload)
        codes: Counter[str] = Counter()
        more = True
        while more:
            reply, data = self.frames.receive(None)
            self.came += json.dumps(reply).encode() + data
            more = bool(reply.get("more"))
            assert reply["id"] == 7
            if not more:
                codes["answered" if reply["ok"] else str(reply["failure"]["code"])] += 1
        return codes

    def end(self) -> None:
        with suppress(OSError):
            self.mine.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            while self.mine.recv(1 << 16):
                pass
        self.thread.join()
        self.mine.close()


def may_not(world: World, request: dict[str, Any]) -> bool:
    """Whether what the request opens is surely not the pairing's to open so."""
    path, writable = request.get("path"), request.get("writable")
    if request.get("verb") not in ("open", "log_open") or not isinstance(path, str) or not isinstance(writable, bool):
        return False
    root = next((access for access, root in world.roots.items() if f"{path}/".startswith(f"{root}/")), None)
    return root is None or (root == "read" and writable) or (root == "write" and not writable)


def talk(world: World, asked: list[tuple[dict[str, Any], bytes]]) -> Counter[str]:
    codes: Counter[str] = Counter()
    before = world.untouchable()
    one = Asked(world)
    try:
        with world.swapping():
            for request, payload in asked:
                answer = one.ask(request, payload)
                assert not (may_not(world, request) and answer["answered"]), request
                codes += answer
    finally:
        one.end()
    assert one.failure is None, repr(one.failure)
    assert OUTSIDE not in bytes(one.came)
    assert CLOSED not in bytes(one.came)
    moved = {path for path, facts in world.untouchable().items() ^ before.items()}
    assert not moved, (moved, asked)
    return codes


def noise(world: World, data: bytes) -> Counter[str]:
    """What is no conversation ends with a failure that is one of ours."""
    one = Asked(world)
    with suppress(BrokenPipeError, ConnectionResetError):
        one.mine.sendall(data)
    one.end()
    assert one.failure is None or isinstance(one.failure, Failure), repr(one.failure)
    return Counter(["noise"])


SENT = [
    *(b"\n", b"[" * 100_000 + b"\n", b'{"id": ' + b"[" * 500 + b"]" * 500 + b', "verb": "hello"}\n'),
    *(b'{"bytes": -1}\n', b'{"bytes": 1e99}\n', b'{"bytes": true}\nx', b'{"bytes": 99999999999}\n', b'{"verb": NaN}\n'),
    *(b"{}\n" * 50, b'{"id": ' + b"9" * 5000 + b', "verb": "hello"}\n', b'{"verb": "hello", "bytes": 9}\nx'),
]
FRAMES = st.binary(max_size=200) | st.sampled_from(SENT)


# rsync's daemon.

OPTIONS = [
    "--delete",
    "--delete-after",
    "--remove-source-files",
    "--inplace",
    "--append",
    "--copy-links",
    "--links",
    "--copy-unsafe-links",
    "--keep-dirlinks",
    "--copy-dirlinks",
    "--super",
    "--fake-super",
    "--write-devices",
    "--devices",
    "--specials",
    "--backup",
    "--backup-dir=../../outside",
    "--backup-dir={outside}",
    "--relative",
    "--temp-dir=../../outside",
    "--temp-dir={outside}",
    "--partial-dir={outside}",
    "--compare-dest={outside}",
    "--copy-dest=../../outside",
    "--link-dest={outside}",
    "--recursive",
    "--times",
    "--perms",
    "--owner",
    "--acls",
    "--xattrs",
    "--chmod=7777",
    "--chown=0:0",
    "--no-implied-dirs",
    "--munge-links",
    "--trust-sender",
    "--archive",
    "--max-delete=9",
    "--force",
    "--ignore-errors",
    "--existing",
    "--mkpath",
    "--secluded-args",
    "--compress",
    "--files-from=:{outside}/secret",
    "--remote-option=--log-file={outside}/log",
    "--sparse",
    "--checksum",
    "--remote-option=--config=/dev/null",
    "--remote-option=--daemon",
    "--remote-option=--write-batch={outside}/b",
]
INSIDE = [
    "",
    *["/", "/line/", "/swap/", "/escape/", "/escape/secret", "/up/outside/", "/absolute/", "/../outside/", "/plc"],
]
Line = tuple[list[str], str, str, bool]
LINES = st.tuples(
    st.lists(st.sampled_from(OPTIONS), max_size=5),
    st.sampled_from(ACCESS),
    st.sampled_from(INSIDE),
    st.booleans(),
)


class Daemon:
    """The door as the key has it, for an rsync client of this machine."""

    def __init__(self, world: World) -> None:
        self.there = Partner(world.base / "daemon")
        (self.there.config / "serve").mkdir(parents=True, exist_ok=True)
        self.there.make_door(world.entries)
        write_launcher(self.there.launcher, f"os.environ['HOME'] = {str(self.there.home)!r}")
        self.shell = self.there.home / "shell"
        self.shell.write_text(
            "#!/bin/sh\nexport SSH_ORIGINAL_COMMAND='rsync --server --daemon .'\n"
            f"exec '{self.there.launcher}' serve --pairing site-a\n"
        )
        self.shell.chmod(0o755)
        self.mine = world.base / "mine"
        self.mine.mkdir()
        (self.mine / "plc").write_text("from the other side")
        (self.mine / "link").symlink_to("/etc")


def transfer(world: World, daemon: Daemon, line: Line) -> Counter[str]:
    options, access, inside, sending = line
    before = world.untouchable()
    remote = f"x::{module(world.roots[access])}{inside}"
    with world.swapping(), tempfile.TemporaryDirectory() as empty:
        argv = ["rsync", "-e", str(daemon.shell), *(option.format(outside=world.outside) for option in options)]
        argv += ["--", *((f"{daemon.mine}/", remote) if sending else (remote, f"{empty}/"))]
        done = subprocess.run(argv, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        came = b"".join(
            Path(directory, name).read_bytes()
            for directory, _names, files in os.walk(empty)
            for name in files
            if stat.S_ISREG(Path(directory, name).lstat().st_mode)
        )
    assert OUTSIDE not in came + done.stdout + done.stderr, line
    assert CLOSED not in came + done.stdout + done.stderr, line
    moved = {path for path, facts in world.untouchable().items() ^ before.items()}
    assert not moved, (moved, line)
    assert b"Traceback" not in done.stderr, line
    return Counter(["rsync let through" if done.returncode == 0 else "rsync refused"])


@contextmanager
def worlds() -> Iterator[tuple[World, Daemon]]:
    with tempfile.TemporaryDirectory(prefix="serversync-fuzz-") as base:
        world = World(Path(base))
        yield world, Daemon(world)


QUIET = {"deadline": None, "database": None, "phases": (Phase.generate, Phase.shrink)}
HEALTH = {"suppress_health_check": list(HealthCheck)}


def every(strategy: st.SearchStrategy[Any], count: int, number: int, play: Callable[[Any], None]) -> None:
    """So many cases of the strategy; the smallest one that fails is told."""

    @seed(number)
    @settings(max_examples=max(1, count), **QUIET, **HEALTH)  # type: ignore[arg-type]
    @given(case=strategy)
    def one(case: Any) -> None:
        play(case)

    one()


def campaign(cases: int, number: int) -> Counter[str]:
    """So many cases: of a hundred, ten are noise and two go to rsync."""
    counts: Counter[str] = Counter()

    def play(world: World, daemon: Daemon, kind: str, case: Any) -> None:
        counts[kind] += 1
        if kind == "conversations":
            counts.update({f"  {code}": count for code, count in talk(world, case).items()})
            counts["  requests"] += len(case)
        elif kind == "noise":
            noise(world, case)
        else:
            counts.update({f"  {code}": count for code, count in transfer(world, daemon, case).items()})

    with worlds() as (world, daemon):
        parts = {
            "conversations": (cases * 88 // 100, conversations(world)),
            "noise": (cases // 10, FRAMES),
            "option lines": (cases // 50, LINES),
        }
        for kind, (count, strategy) in parts.items():
            every(strategy, count, number, partial(play, world, daemon, kind))
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    counts = campaign(chosen.cases, chosen.seed)
    for name, count in counts.items():
        print(f"{name:24}{count}")
    total = sum(counts[kind] for kind in ("conversations", "noise", "option lines"))
    print(f"{total} cases, seed {chosen.seed}, none failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
