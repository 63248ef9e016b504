# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which server this is."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from pathlib import Path

MACHINE_ID = Path("/etc/machine-id")
# Of this program, which must never get another one: archives and markers are known by it.
APPLICATION = bytes.fromhex("4d97ec7c64affbada0525391e3a40f16")
PATTERN = re.compile(r"[0-9a-fA-F]{32}")


def machine_id() -> str | None:
    """machine-id(5) of this server; None where there is none, or none yet (an image, a container being built)."""
    try:
        text = MACHINE_ID.read_text(encoding="ascii", errors="replace").strip()
    except (FileNotFoundError, IsADirectoryError):
        return None
    return text if PATTERN.fullmatch(text) else None


def known_as(server: str) -> str:
    """What stands for a server outside of it: of a machine id, which is confidential, a hash that it is the key of.

    Whatever else stands for one, as a hash or a host name does, goes on standing for it.
    """
    if not PATTERN.fullmatch(server):
        return server
    return hmac.new(bytes.fromhex(server), APPLICATION, hashlib.sha256).hexdigest()


def machine() -> str:
    """What stands for this server in the identity of a replica: a hash of its machine id, or else its host name."""
    return known_as(machine_id() or os.uname().nodename)
