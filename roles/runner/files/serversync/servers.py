# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two servers of a job in one attempt, and the connection between them.

What a run needs beside it is imported while ssh logs in, which takes as long.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from serversync.entry import HERE, THERE
from serversync.failure import Failure
from serversync.job import Job
from serversync.layout import Layout
from serversync.ssh import Channel, Connection

if TYPE_CHECKING:
    from serversync.replica import Server
    from serversync.sftp import SftpServer


class Servers:
    """The two servers of a job; the connection between them is opened once and used by all elements."""

    def __init__(self, layout: Layout, job: Job, *, greet: bool = True) -> None:
        """greet: wait until ssh has logged in; else ``greet`` has to be called before anything else."""
        self.layout = layout
        self.job = job
        self.held = ExitStack()
        self.connection: Connection | None = None
        self.sftp: SftpServer | None = None
        self.channels: list[Channel] = []
        if not job.local and job["partner"]["connection"] == "ssh":
            self.connection = self.held.enter_context(Connection(layout, job))
        # While ssh logs in.
        from serversync.replica import ThisServer

        # The partner is there once it has been greeted.
        self.by_side: dict[str, Server] = {HERE: ThisServer(layout)}
        if greet:
            self.greet()

    def greet(self) -> None:
        try:
            from serversync.replica import Partner

            partner = self.by_side[HERE]
            if self.connection is not None:
                self.connection.greet()
                partner = Partner(self.connection)
            elif not self.job.local:
                from serversync.sftp import SftpServer  # paramiko, which only such a job needs

                partner = self.sftp = self.held.enter_context(SftpServer(self.layout, self.job))
        except BaseException:
            self.held.close()
            raise
        self.by_side[THERE] = partner

    def another(self) -> dict[str, Server]:
        """The same servers with a conversation of their own, for an element beside others; by SFTP one has room for
        all of them."""
        if self.connection is None:
            return self.by_side
        from serversync.replica import Partner

        channel = self.held.enter_context(Channel(self.connection))
        self.channels.append(channel)
        return {HERE: self.by_side[HERE], THERE: Partner(channel)}

    def abort(self) -> None:
        """Ends what runs for the elements in other threads."""
        from serversync import rsync

        rsync.stop()
        if self.connection is not None:
            self.connection.abort()
        for server in self.by_side.values():
            server.abort()
        for channel in self.channels:
            channel.abort()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.held.close()


class Connecting:
    """The servers of the first attempt, being connected to while the runner gets ready."""

    def __init__(self, layout: Layout, job: Job) -> None:
        self.servers: Servers | None = None
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self.greet, daemon=True)
        try:
            self.servers = Servers(layout, job, greet=False)
        except Exception as error:  # raised where it is waited for
            self.error = error
        self.thread.start()

    def greet(self) -> None:
        try:
            if self.servers is not None:
                self.servers.greet()
        except Exception as error:  # raised where it is waited for
            self.servers, self.error = None, error

    def result(self) -> Servers:
        self.thread.join()
        if self.servers is None:
            raise self.error or Failure("connection", "the connection was not made", transient=True)
        return self.servers

    def abort(self) -> None:
        """Ends and closes it, however far it has come."""
        if self.servers is not None:
            self.servers.abort()
        self.thread.join()
        if self.servers is not None:
            self.servers.held.close()

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        """Closes what nobody asked for: a run that was skipped needs no partner. Who is told to stop does not wait."""
        if kind is None or issubclass(kind, Exception):
            self.thread.join()
            if self.servers is not None:
                self.servers.held.close()
