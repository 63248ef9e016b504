# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The partner's side: the only thing that a paired key may reach.

``serversync serve --pairing P`` is the key's forced command. In system scope it only relays its stdio to the socket of
the pairing; systemd starts the sandboxed unit behind it, where ``--connection`` answers. Without that socket (user
scope) it answers itself, with the rights of the account.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serversync import PROTOCOL, __version__, place
from serversync.aside import Aside
from serversync.entry import pack, unpack
from serversync.failure import Failure, Stopped, of_system
from serversync.frames import BESIDE, CONTROL, LIMIT, Frames
from serversync.held import good
from serversync.layout import Layout
from serversync.parcel import Wrapper, pack_made, unwrap
from serversync.tree import CAP_CHOWN, Tree, capable, names, numbers
from serversync.wire import chunks, decode_ops, encode_attributes, encode_entry, encode_result, pack_seen, unpack_paths

if TYPE_CHECKING:
    from serversync.logfile import Source, Target

SOCKETS = Path("/run/serversync-serve")
# What rsync asks its remote shell for where it speaks to a daemon; nothing in it is chosen by the caller.
RSYNC = "rsync --server --daemon ."
HEADER_LIMIT = 4096
# A runner that lives says so every ten seconds; after this many without a word its locks are released.
SILENCE = 60.0
# What is answered while parcels are put into a stage. Of that these touch only what the request names, which says which
# parcel it belongs behind.
MEANWHILE = frozenset({"attributes", "commit", "entries", "give", "hello", "staged", "sync", "times"})
# As many paths certainly fit into a frame.
FEW = 100
# Bytes of a marker: a few names and numbers.
LONGEST_MARKER = 65536
ACCESS = {"read": (True, False), "write": (False, True), "both": (True, True)}


def relay(pairing: str, command: str) -> int:
    """Carries stdio to the pairing's unit and back until both directions have ended."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(SOCKETS / f"{pairing}.sock"))
    except OSError as error:
        print(
            f"serversync: the pairing {pairing} has no open door on this server ({error.strerror})",
            file=sys.stderr,
        )
        return 1
    connection.sendall(json.dumps({"command": command}).encode("ascii") + b"\n")

    def inward() -> None:
        pass_on(0, connection.fileno())
        with suppress(OSError):  # the unit may have gone meanwhile; then the other direction ends, too
            connection.shutdown(socket.SHUT_WR)

    # A thread a direction: one that waited for the other to drain could wait for ever.
    threading.Thread(target=inward, daemon=True).start()
    pass_on(connection.fileno(), 1)
    return 0


def pass_on(source: int, target: int) -> None:
    """Everything from source to target, until either ends."""
    try:
        while True:
            data = os.read(source, 1 << 18)
            if not data:
                return
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
    except (BrokenPipeError, ConnectionResetError):
        return


def read_header() -> str:
    """The command that the relay passes on, read byte by byte since what follows belongs to that command."""
    header = b""
    while not header.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte or len(header) >= HEADER_LIMIT:
            raise Failure("protocol", "the relay sent no header")
        header += byte
    return str(json.loads(header)["command"])


def answer(layout: Layout, pairing: str, command: str) -> int:
    """Does what the paired key asked: rsync over the pairing's roots, or the conversation of two runners."""
    if command == RSYNC:
        return rsync_daemon(layout, pairing)
    if command == CONTROL:
        converse(Frames(0, 1), Door(layout, pairing))
        return 0
    return refuse(pairing)


def refuse(pairing: str) -> int:
    print(
        f"serversync: this key opens synchronization for the pairing {pairing} and nothing else",
        file=sys.stderr,
    )
    return 1


def rsync_daemon(layout: Layout, pairing: str) -> int:
    """Becomes an rsync daemon without a port, chrooted in the module that the other side names."""
    argv = ["rsync", "--server", "--daemon", f"--config={layout.doors / (pairing + '.conf')}", "."]
    if not layout.privileged and os.geteuid() != 0:
        # A user may only chroot in a user namespace of its own; unchrooted, rsync would rewrite link texts.
        argv = ["unshare", "--user", "--map-current-user", "--keep-caps", "--", *argv]
    door = Door(layout, pairing)
    try:
        for root in door.roots:
            # One that is missing, say not mounted, closes no other; rsync refuses its module itself.
            if place.look(root["path"])["kind"] != "missing":
                door.hold_to(root)
    except Failure as failure:
        print(f"serversync: {failure}", file=sys.stderr)
        return 1
    program = shutil.which(argv[0])
    if program is None:
        print(f"serversync: {argv[0]} is not installed on this server; install it", file=sys.stderr)
        return 1
    os.execv(program, argv)


class Door:
    """A pairing's roots with their access, as the role wrote them: ``{"module", "path", "access"}`` each."""

    def __init__(self, layout: Layout, pairing: str) -> None:
        self.layout = layout
        self.pairing = pairing
        self.roots: list[dict[str, str]] = json.loads((layout.doors / f"{pairing}.json").read_text())["roots"]

    def find(self, path: str) -> tuple[dict[str, str], str]:
        """The innermost root that holds the path, and the path below it; Failure where there is none."""
        parts = place.split(path)
        best: dict[str, str] | None = None
        for root in self.roots:
            inside = place.split(root["path"])
            if parts[: len(inside)] == inside and (best is None or len(inside) > len(place.split(best["path"]))):
                best = root
        if best is None:
            roots = ", ".join(root["path"] for root in self.roots) or "none"
            raise Failure(
                "outside_roots",
                f"{path} is outside the roots of the pairing {self.pairing} (roots: {roots}); "
                "add it to the role's runner_partners there",
            )
        return best, "/" + "/".join(parts[len(place.split(best["path"])) :])

    def hold_to(self, root: dict[str, str]) -> None:
        """A root must be there as it was declared: a link in its place, or above it, would lead elsewhere."""
        facts = place.look(root["path"])
        if facts["kind"] != "directory":
            reason = facts["reason"] or f"{root['path']}: is {facts['kind']}"
            raise Failure(
                "bad_root", f"the root {root['path']} of the pairing {self.pairing} is no directory ({reason})"
            )


def converse(frames: Frames, door: Door) -> None:
    """Answers requests until the other side closes or falls silent; then every replica is released."""
    with ExitStack() as held:
        desk = Desk(door, held)
        # Who reads a file of any size for nobody would keep the replica locked.
        held.enter_context(frames.watched(desk.stopped.set))
        with Aside(partial(respond, frames, desk)) as aside:
            while True:
                try:
                    request, payload = frames.receive(SILENCE)
                except EOFError:
                    return
                verb = str(request.get("verb"))
                if verb == BESIDE:
                    if not aside.put(request, payload):
                        return
                    continue
                behind = request.get("behind", 0) if verb in MEANWHILE else None
                if not (aside.wait(behind) and respond(frames, desk, request, payload)):
                    return


def respond(frames: Frames, desk: Desk, request: dict[str, Any], payload: bytes) -> bool:
    """Answers one request; whether the conversation goes on."""
    number = request.get("id")
    if not isinstance(number, int):
        # Whatever it is, it would go back, and may be deeper than can be written.
        number = None
    try:
        try:
            with frames.alive():
                for answer, data in desk.answer(request, payload):
                    frames.send({"id": number, "ok": True, **answer}, data)
            return True
        except Failure as found:
            failure = found
        except (BrokenPipeError, ConnectionResetError):
            raise
        except OSError as error:
            failure = of_system(error)
        except Exception as error:  # nobody knows what all can be asked; whatever it breaks, it is answered
            print(f"serversync: request {request!r:.200}: {error!r:.1000}", file=sys.stderr)
            failure = Failure("partner_error", f"{error!r:.1000}")
        frames.send({"id": number, "ok": False, "failure": failure.as_dict()})
    except (BrokenPipeError, ConnectionResetError, Stopped):
        return False
    return True


Answer = tuple[dict[str, Any], bytes]


class Desk:
    """Answers the requests of one connection; it holds the replicas that these have opened.

    An answer is one frame or more; each has ``more`` but the last.
    """

    def __init__(self, door: Door, held: ExitStack) -> None:
        self.door = door
        self.held = held
        # What is closed leaves its handle to nobody: another replica would take the place of one that is open.
        self.handles = count()
        self.trees: dict[int, Tree] = {}
        # Those whose contents the pairing may have.
        self.readable: set[Tree] = set()
        self.logs: dict[int, Source | Target] = {}
        self.stopped = threading.Event()

    def answer(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        verb = str(request["verb"])
        handler: Callable[[dict[str, Any], bytes], Iterator[Answer]] | None = getattr(self, f"verb_{verb}", None)
        if handler is None:
            raise Failure("unknown_verb", f"this runner ({__version__}) does not know the request {verb!r}; upgrade it")
        return handler(request, payload)

    def verb_hello(self, _request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        privileged = self.door.layout.privileged and capable(CAP_CHOWN)
        yield {"roots": self.door.roots, "privileged": privileged, **about()}, b""

    def verb_programs(self, _request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        yield {"rsync": rsync_version()}, b""

    def verb_look(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        root, below = self.door.find(request["path"])
        may_read, may_write = ACCESS[root["access"]]
        facts = place.look(root["path"] + below)
        facts["readable"] = facts["readable"] and may_read
        facts["writable"] = facts["writable"] and may_write
        yield {"facts": facts, "access": root["access"], "address": f"{root['module']}{below}"}, b""

    def admitted(self, request: dict[str, Any], *, file: bool) -> str:
        """The path, if the pairing may read it, or write it where the request says ``writable``; else Failure.

        Of a file the directory is opened, too, which therefore has to be inside the root.
        """
        root, below = self.door.find(request["path"])
        if file and below == "/":
            raise Failure("outside_roots", f"{root['path']} is a root of the pairing, so it is no file")
        writable = bool(request["writable"])
        may_read, may_write = ACCESS[root["access"]]
        if writable and not may_write:
            message = f"{root['path']} is open for reading only; change its access in runner_partners there"
            raise Failure("read_only", message)
        if not may_read and not writable:
            message = f"{root['path']} is open for writing only; change its access in runner_partners there"
            raise Failure("write_only", message)
        self.door.hold_to(root)
        return root["path"] + below

    def verb_open(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        path = self.admitted(request, file=request["kind"] == "file")
        for word in (request["element"], request["run"], request["previous"] or request["element"]):
            if not place.WORD.fullmatch(word):
                raise Failure("bad_request", f"{word!r} is not a name for a directory")
        try:
            tree = Tree(
                path,
                request["kind"],
                element=request["element"],
                run=request["run"],
                writable=bool(request["writable"]),
                look=bool(request["look"]),
                owner=f"{self.door.pairing}: {request['owner']}",
                locks=self.door.layout.locks,
                name=os.fsencode(request["name"]),
                previous=request["previous"],
                stopped=self.stopped,
                making=bool(request.get("making", True)),
            )
        except OSError as error:
            raise place.unprepared(path, error) from error
        self.held.callback(tree.close)
        handle = next(self.handles)
        self.trees[handle] = tree
        if ACCESS[self.door.find(request["path"])[0]["access"]][0]:
            self.readable.add(tree)
        yield {"tree": handle, "facts": tree.facts}, b""

    def verb_begin(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        """What ``look``, ``open`` and ``scan`` say, in one answer; the last two only where the replica is there and is
        what the request takes it for. Whatever fails is told to who asks for it by itself."""
        [(look, _nothing)] = self.verb_look(request, payload)
        found: dict[str, Any] = {"look": look}
        digests = b""
        facts = look["facts"]
        if facts["kind"] == request["kind"] and facts["writable" if request["writable"] else "readable"]:
            with suppress(Failure, OSError):
                [(opened, _nothing)] = self.verb_open({**request, "look": False, "making": False}, payload)
                found["open"] = opened
                [(scan, digests)] = self.verb_scan({**request, "tree": opened["tree"]}, payload)
                found["scan"] = scan
        yield found, digests

    def verb_log_open(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        from serversync.logfile import Source, Target, explained

        path = self.admitted(request, file=True)
        with explained(path):
            owner, look = f"{self.door.pairing}: {request['owner']}", bool(request["look"])
            log: Source | Target = (
                Target(path, look=look, owner=owner, locks=self.door.layout.locks)
                if request["writable"]
                else Source(path)
            )
        self.held.callback(log.close)
        handle = len(self.logs)
        self.logs[handle] = log
        yield {"log": handle, "facts": log.facts}, b""

    def verb_log(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        from serversync.logfile import explained

        log = self.logs[request["log"]]
        with explained(log.path):
            yield from log.answer(request, payload)

    def verb_log_close(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        self.logs[request["log"]].close()
        yield {}, b""

    def tree(self, request: dict[str, Any]) -> Tree:
        return self.trees[request["tree"]]

    def verb_close(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        self.trees.pop(request["tree"]).close()
        yield {}, b""

    def verb_scan(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        summary = self.tree(request).scan(
            payload, request["include"], request["exclude"], frozenset(request["xattrs"]), request["expected"]
        )
        problems = [[os.fsdecode(path), reason] for path, reason in summary.problems.items()]
        if len(problems) > FEW and len(json.dumps(problems)) > LIMIT // 2:
            path, reason = problems[0]
            message = f"{len(problems)} paths cannot be read, among them {path}: {reason}; give the account access"
            raise Failure("unread", f"{message}, or exclude them")
        found = {"stream": summary.stream.hex(), "problems": problems, "root": encode_entry(summary.root)}
        # Where something has moved they are the next thing that is asked for.
        digests = b"" if summary.unchanged else b"".join(self.digests(request))
        along = not summary.unchanged and len(digests) <= LIMIT
        yield {**summary._asdict(), **found, "digests": along}, digests if along else b""

    def digests(self, request: dict[str, Any]) -> Iterator[bytes]:
        found = sorted(self.tree(request).digests())
        return (pack([(path, digest.hex().encode("ascii"), b"")]) for path, digest in found)

    def verb_digests(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        return stream(self.digests(request))

    def verb_listing(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        return stream(pack([item]) for item in self.tree(request).listing(below(payload)))

    def verb_entries(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        return stream(pack([item]) for item in pack_seen(self.tree(request).entries(below(payload))))

    def verb_checksums(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        return stream(pack([item]) for item in pack_seen(self.tree(request).checksums(below(payload))))

    def verb_zeros(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        return stream(pack([(path, b"", b"")]) for path in self.tree(request).zeros(below(payload)))

    def verb_occupied(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        yield {"occupied": self.tree(request).occupied(below(payload))}, b""

    def verb_attributes(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        return stream(
            json.dumps([os.fsdecode(path), encode_attributes(found)]).encode("ascii") + b"\n"
            for path, found in self.tree(request).attributes(below(payload))
        )

    def verb_names(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        users, groups = names(request["users"], request["groups"])
        yield {"users": list(users.items()), "groups": list(groups.items())}, b""

    def verb_numbers(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        users, groups = numbers(request["users"], request["groups"])
        yield {"users": users, "groups": groups}, b""

    def verb_prepare(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        self.tree(request).prepare(frozenset(request["preserve"]))
        yield {}, b""

    def verb_staged(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        return stream(pack([item]) for item in pack_seen(self.tree(request).staged(below(payload))))

    def verb_give(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        tree = self.tree(request)
        if tree not in self.readable:
            raise Failure("write_only", "what was opened for writing only is not given")
        files = [(path, record) for path, record, _more in unpack(payload)]
        check_paths(path for path, _record in files)
        wrapper = Wrapper(deflate=bool(request["deflate"]))
        for one in tree.give(files):
            yield {"more": True}, wrapper.wrap(one)
        yield {}, b""

    def verb_take(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        parcel = unwrap(payload)
        check_paths(path for path, _record, _more in parcel.items)
        [told] = self.tree(request).take([parcel])
        yield {}, pack_made(told())

    def verb_commit(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        results = self.tree(request).commit(decode_ops(payload))
        return stream(json.dumps(encode_result(result)).encode("ascii") + b"\n" for result in results)

    def verb_times(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        times = [(path, int(mtime)) for path, mtime, _nothing in unpack(payload)]
        check_paths(path for path, _mtime in times if path)
        self.tree(request).set_times(times)
        yield {}, b""

    def verb_finish(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        self.tree(request).finish()
        yield {}, b""

    def verb_sync(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        self.tree(request).sync()
        yield {}, b""

    def verb_settle(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        yield {"moment": self.tree(request).settle()}, b""

    def verb_mark(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        content = request["content"]
        if not isinstance(content, dict) or len(json.dumps(content)) > LONGEST_MARKER:
            raise Failure("bad_request", "what is to be written is no marker of an element")
        self.tree(request).mark(content)
        yield {}, b""

    def verb_prune(self, request: dict[str, Any], _payload: bytes) -> Iterator[Answer]:
        problems = self.tree(request).prune(request["keep"], request["most"], min(request["now"], time.time()))
        yield {"problems": problems}, b""

    def verb_versions(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        path = unpack_paths(payload)[0] if payload else None
        return stream(json.dumps(version).encode("ascii") + b"\n" for version in self.tree(request).versions(path))

    def verb_restore(self, request: dict[str, Any], payload: bytes) -> Iterator[Answer]:
        run, path = os.fsdecode(unpack_paths(payload)[0]), unpack_paths(payload)[1]
        results = self.tree(request).restore(path, run)
        return stream(json.dumps(encode_result(result)).encode("ascii") + b"\n" for result in results)


def below(payload: bytes) -> list[bytes]:
    """The paths that are asked for. What leads out on the way is not followed; here the end must not be out there."""
    paths = unpack_paths(payload)
    for path in paths:
        if path.rpartition(b"/")[2] == b"..":
            raise Failure("bad_path", f"{os.fsdecode(path)!r} is not a path below the element")
    return paths


def check_paths(paths: Iterable[bytes]) -> None:
    for path in paths:
        if not good(path):
            raise Failure("bad_path", f"{os.fsdecode(path)!r} is not a path below the element")


def stream(pieces: Iterable[bytes]) -> Iterator[Answer]:
    """An answer of any length in frames of about a megabyte."""
    for data in chunks(pieces):
        yield {"more": True}, data
    yield {}, b""


def about() -> dict[str, Any]:
    """What a runner tells of itself: version, protocol, clock (seconds since the epoch)."""
    return {"version": __version__, "protocol": PROTOCOL, "time": time.time()}


def rsync_version() -> str | None:
    try:
        output = subprocess.run(["rsync", "--version"], capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    words = output.split()
    return words[words.index("version") + 1] if "version" in words else None


def serve(layout: Layout, pairing: str, *, connection: bool) -> int:
    if not place.WORD.fullmatch(pairing):
        print(f"serversync: {pairing!r} is not a pairing's name", file=sys.stderr)
        return 2
    if connection:
        return answer(layout, pairing, read_header())
    command = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    if command not in (RSYNC, CONTROL):
        return refuse(pairing)
    if layout.privileged:
        return relay(pairing, command)
    return answer(layout, pairing, command)
