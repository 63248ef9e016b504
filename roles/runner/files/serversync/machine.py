# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which server this is."""

from __future__ import annotations

import os
import re
from pathlib import Path

MACHINE_ID = Path("/etc/machine-id")
PATTERN = re.compile(r"[0-9a-fA-F]{32}")


def machine_id() -> str | None:
    """machine-id(5) of this server; None where there is none, or none yet (an image, a container being built)."""
    try:
        text = MACHINE_ID.read_text(encoding="ascii", errors="replace").strip()
    except (FileNotFoundError, IsADirectoryError):
        return None
    return text if PATTERN.fullmatch(text) else None


def machine() -> str:
    """What stands for this server in the identity of a replica: its machine id, or else its host name."""
    return machine_id() or os.uname().nodename
