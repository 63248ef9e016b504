# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands before an SFTP server and ends it at a given request, as a lost connection or a dying server would.

``cutting.py LOG SERVER...``: LOG.cut, where it is there, has the number of the request that is not passed on any more;
LOG counts the requests of the last conversation.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path


def exactly(length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = os.read(0, length - len(data))
        if not piece:
            return b""
        data += piece
    return data


def main() -> int:
    log = Path(sys.argv[1])
    cut = log.with_suffix(".cut")
    last = int(cut.read_text()) if cut.exists() else 0
    server = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None and server.stdout is not None
    answers = server.stdout.fileno()

    def back() -> None:
        while piece := os.read(answers, 1 << 16):
            os.write(1, piece)

    thread = threading.Thread(target=back, daemon=True)
    thread.start()
    count = 0
    counter = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
    while length := exactly(4):
        packet = exactly(struct.unpack(">I", length)[0])
        count += 1
        os.pwrite(counter, b"%010d" % count, 0)
        if count == last:
            # What was asked before is done and answered, as far as the server has come.
            server.kill()
            break
        server.stdin.write(length + packet)
        server.stdin.flush()
    server.stdin.close()
    server.wait()
    if last == 0:
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
