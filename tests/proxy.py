# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP link on loopback that is as long, as narrow and as bad as asked, switchable while it carries connections.

With a round trip of R a connection takes R to open and every byte R/2 to cross; loss is not played. ``Proxy`` starts
it as a process of its own, so that it does not share an interpreter with what measures. One call is one line of JSON:

    {"delay": 0.15}        round trip in seconds, from the next byte on
    {"bandwidth": 20e6}    bytes per second and direction; null: as fast as it goes
    {"stall": true}        nothing crosses, nothing is lost, connections stay open; false: it goes on
    {"refuse": true}       new connections are reset; false: they are let in again
    {"reset": true}        every open connection is reset, once
    {}                     asks: {"up": bytes, "down": bytes, "connections": n, "open": n}
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from typing import Any

CHUNK = 1 << 18
# What may be under way in one direction of a connection, as the socket buffers of a tuned host would allow.
WINDOW = 16 << 20


class Link:
    """The state of the link, and what has crossed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.delay = 0.0
        self.bandwidth: float | None = None
        self.refuse = False
        self.moving = asyncio.Event()
        self.moving.set()
        self.open: set[asyncio.StreamWriter] = set()
        self.count = {"up": 0, "down": 0, "connections": 0}

    def call(self, request: dict[str, Any]) -> dict[str, int]:
        self.delay = float(request.get("delay", self.delay))
        self.bandwidth = request.get("bandwidth", self.bandwidth)
        self.refuse = bool(request.get("refuse", self.refuse))
        if "stall" in request:
            (self.moving.clear if request["stall"] else self.moving.set)()
        if request.get("reset"):
            for writer in list(self.open):
                reset(writer)
        return {**self.count, "open": len(self.open)}

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: after SYN and SYN-ACK the near end may send, after the ACK the far end knows of it."""
        if self.refuse:
            reset(writer)
            return
        self.count["connections"] += 1
        self.open.add(writer)
        far: asyncio.StreamWriter | None = None
        up, down = Lane(self, "up"), Lane(self, "down")
        try:
            await asyncio.sleep(self.delay)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(up.take(reader))
                await asyncio.sleep(self.delay / 2)
                far_reader, far = await asyncio.open_connection("127.0.0.1", self.port, limit=CHUNK)
                self.open.add(far)
                for end in (writer, far):
                    end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for lane in (up.give(far), down.take(far_reader), down.give(writer)):
                    tasks.create_task(lane)
        except* OSError:
            # Either end is gone, or was reset: so is the other one, as on a link that is no proxy.
            for end in (writer, far):
                if end is not None:
                    reset(end)
        finally:
            for end in (writer, far):
                if end is not None:
                    self.open.discard(end)
                    end.close()


class Lane:
    """One direction of a connection; at most WINDOW bytes are in it."""

    def __init__(self, link: Link, name: str) -> None:
        self.link = link
        self.name = name
        self.under_way = 0
        self.room = asyncio.Event()
        self.chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def take(self, reader: asyncio.StreamReader) -> None:
        clock = asyncio.get_running_loop()
        while True:
            while self.under_way > WINDOW:
                self.room.clear()
                await self.room.wait()
            data = await reader.read(CHUNK)
            self.under_way += len(data)
            self.chunks.put_nowait((clock.time() + self.link.delay / 2, data))
            if not data:
                return

    async def give(self, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop()
        free = 0.0
        while True:
            due, data = await self.chunks.get()
            await asyncio.sleep(max(due, free) - clock.time())
            await self.link.moving.wait()
            if not data:
                with suppress(OSError):
                    writer.write_eof()
                return
            if self.link.bandwidth:
                free = max(free, clock.time()) + len(data) / self.link.bandwidth
            writer.write(data)
            await writer.drain()
            self.link.count[self.name] += len(data)
            self.under_way -= len(data)
            self.room.set()


def reset(writer: asyncio.StreamWriter) -> None:
    """Closes so that the other end gets a reset instead of an end of file."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def serve(port: int) -> None:
    link = Link(port)
    listener = await asyncio.start_server(link.connect, "127.0.0.1", 0, limit=CHUNK, backlog=128)
    print(listener.sockets[0].getsockname()[1], flush=True)
    calls = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(calls), sys.stdin)
    while line := await calls.readline():
        print(json.dumps(link.call(json.loads(line))), flush=True)
    link.call({"reset": True})
    # Nothing is left to be written; unwinding what still waits for its delay would take that long.
    os._exit(0)


class Proxy:
    """A link to a port of this machine; ``port`` is where it begins."""

    def __init__(self, target: int, **state: Any) -> None:
        argv = [sys.executable, __file__, str(target)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self.read())
        self.call(**state)

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the proxy has ended"
        return line

    def call(self, **request: Any) -> dict[str, int]:
        """Switches the link, and returns what has crossed it; see the module's text."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(request)}\n")
        self.process.stdin.flush()
        answer: dict[str, int] = json.loads(self.read())
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
