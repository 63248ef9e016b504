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
from contextlib import suppress
from pathlib import Path
from typing import Any

from serversync import PROTOCOL, __version__, place
from serversync.failure import Failure
from serversync.frames import Frames
from serversync.layout import Layout

SOCKETS = Path("/run/serversync-serve")
# What rsync asks its remote shell for where it speaks to a daemon; nothing in it is chosen by the caller.
RSYNC = "rsync --server --daemon ."
CONTROL = "serversync"
HEADER_LIMIT = 4096
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
    """Answers requests until the other side closes; what a request asks wrongly is answered, never raised."""
    while True:
        try:
            # The caller is silent while rsync moves files, for hours; a dead connection is sshd's to end.
            request = frames.receive(patience=None)
        except EOFError:
            return
        try:
            answer = {"ok": True, **handle(request, door)}
        except Failure as failure:
            answer = {"ok": False, "failure": failure.as_dict()}
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            print(f"serversync: request {request!r:.200}: {error!r}", file=sys.stderr)
            answer = {"ok": False, "failure": Failure("partner_error", f"{error!r}").as_dict()}
        # The number lets the other side tell a late answer from the one that it waits for.
        frames.send({"id": request.get("id"), **answer})


def handle(request: dict[str, Any], door: Door) -> dict[str, Any]:
    verb = request["verb"]
    if verb == "hello":
        return {"roots": door.roots, "privileged": door.layout.privileged, **about()}
    if verb == "look":
        root, below = door.find(request["path"])
        may_read, may_write = ACCESS[root["access"]]
        facts = place.look(root["path"] + below)
        facts["readable"] = facts["readable"] and may_read
        facts["writable"] = facts["writable"] and may_write
        return {"facts": facts, "access": root["access"], "address": f"{root['module']}{below}"}
    if verb == "prepare":
        root, below = door.find(request["path"])
        if not ACCESS[root["access"]][1]:
            raise Failure(
                "read_only",
                f"{root['path']} is open for reading only; change its access in runner_partners there",
            )
        door.hold_to(root)
        path = root["path"] + below
        try:
            return {"scratch": place.prepare(path, request["kind"], request["element"], request["run"])}
        except OSError as error:
            raise place.unprepared(path, error) from error
    raise Failure("unknown_verb", f"this runner ({__version__}) does not know the request {verb!r}; upgrade it")


def about() -> dict[str, Any]:
    """What a runner tells of itself: versions, protocol, clock (seconds since the epoch)."""
    return {"version": __version__, "protocol": PROTOCOL, "rsync": rsync_version(), "time": time.time()}


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
