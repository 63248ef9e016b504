# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A replica, one of the two copies of an element, behind one interface: on this server, or on the partner by SSH."""

from __future__ import annotations

import re
from typing import Any, Protocol

from serversync import place
from serversync.failure import Failure
from serversync.ssh import Connection


class Replica(Protocol):
    """One server's side of a job. Paths are absolute there; what fails raises Failure."""

    remote_shell: str | None
    # Whether its process may give files to other owners.
    privileged: bool

    def look(self, path: str) -> dict[str, Any]:
        """What is at the path; see place.look."""

    def prepare(self, path: str, kind: str, element: str, run: str) -> dict[str, str]:
        """Makes a target ready; see place.prepare."""

    def address(self, path: str) -> str:
        """The path as rsync names it."""


class LocalReplica:
    """A directory or file of this server."""

    remote_shell: str | None = None

    def __init__(self, privileged: bool) -> None:
        self.privileged = privileged

    def look(self, path: str) -> dict[str, Any]:
        return place.look(path)

    def prepare(self, path: str, kind: str, element: str, run: str) -> dict[str, str]:
        try:
            return place.prepare(path, kind, element, run)
        except OSError as error:
            raise place.unprepared(path, error) from error

    def address(self, path: str) -> str:
        return path


class SshReplica:
    """A directory or file of the partner, behind its door."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.remote_shell: str | None = connection.remote_shell
        self.privileged = bool(connection.about.get("privileged"))
        self.addresses: dict[str, str] = {}

    def look(self, path: str) -> dict[str, Any]:
        reply = self.connection.ask("look", path=path)
        self.addresses[path] = str(reply["address"])
        return dict(reply["facts"])

    def prepare(self, path: str, kind: str, element: str, run: str) -> dict[str, str]:
        reply = self.connection.ask("prepare", path=path, kind=kind, element=element, run=run)
        return dict(reply["scratch"])

    def address(self, path: str) -> str:
        if path not in self.addresses:
            self.look(path)
        address = self.addresses[path]
        if re.search(r"[*?\[\\]", address):
            message = (
                f"{path} contains one of * ? [ \\, which rsync on the partner takes for a pattern; name another path"
            )
            raise Failure("pattern", message)
        return f"{self.connection.host}::{address}"
