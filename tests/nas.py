# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that lets an account in by password: paramiko asks for it, and OpenSSH's sftp-server answers behind it."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import paramiko

SFTP_SERVER = "/usr/lib/openssh/sftp-server"


class Door(paramiko.ServerInterface):
    """Who may come in; ``tried`` has every password that was offered."""

    def __init__(self, nas: Nas) -> None:
        self.nas = nas

    def get_allowed_auths(self, username: str) -> str:
        return self.nas.way

    def judge(self, username: str, password: str) -> int:
        self.nas.tried.append((username, password))
        self.nas.asked()
        right = (username, password) == (self.nas.user, self.nas.password)
        return paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        return self.judge(username, password) if self.nas.way == "password" else paramiko.AUTH_FAILED

    def check_auth_interactive(self, username: str, submethods: str) -> Any:
        self.username = username
        return paramiko.InteractiveQuery("", "", ("Password: ", False))

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        return self.judge(self.username, responses[0])

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED


class Sftp(paramiko.SubsystemHandler):
    def start_subsystem(self, name: str, transport: paramiko.Transport, channel: paramiko.Channel) -> None:
        process = subprocess.Popen([SFTP_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None and process.stdout is not None
        output = process.stdout.fileno()

        def outward() -> None:
            while data := os.read(output, 1 << 16):
                channel.sendall(data)

        thread = threading.Thread(target=outward)
        thread.start()
        while data := channel.recv(1 << 16):
            process.stdin.write(data)
            process.stdin.flush()
        process.stdin.close()
        process.wait()
        thread.join()
        process.stdout.close()


class Nas:
    """way: ``password`` or ``keyboard-interactive``; asked: called whenever somebody has offered a password."""

    user = "backup"

    def __init__(self, password: str, way: str) -> None:
        self.password = password
        self.way = way
        self.tried: list[tuple[str, str]] = []
        self.asked: Callable[[], None] = lambda: None
        self.key = paramiko.ECDSAKey.generate()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.transports: list[paramiko.Transport] = []
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    @property
    def host_key(self) -> str:
        return f"{self.key.get_name()} {self.key.get_base64()}"

    def serve(self) -> None:
        while True:
            try:
                connection, _address = self.listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(self.key)
            transport.set_subsystem_handler("sftp", Sftp)
            transport.start_server(event=threading.Event(), server=Door(self))
            self.transports.append(transport)

    def stop(self) -> None:
        # Wakes up who waits in accept(), which closing alone does not.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        for transport in self.transports:
            transport.close()


@contextmanager
def nas(password: str, way: str = "password") -> Iterator[Nas]:
    server = Nas(password, way)
    try:
        yield server
    finally:
        server.stop()
