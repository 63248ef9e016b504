# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The marker of a replica that may be written, ``.serversync/ELEMENT/marker.json``: whose it is, and as of which run.

A replica without the marker that it had is not mounted, or not the one that the archive knows.
"""

from __future__ import annotations

import json
import os
from typing import Any

from serversync.held import make, own, reach
from serversync.renames import handle

MARKER = b"marker.json"


def marker(root: int, element: str) -> dict[str, Any] | None:
    """None: there is none. Empty: there is one, but it cannot be understood, so that it agrees with no archive."""
    try:
        home = reach(root, own(element))
    except FileNotFoundError:
        return None
    try:
        return read(home, MARKER)
    finally:
        os.close(home)


def set_marker(root: int, element: str, content: dict[str, Any]) -> None:
    """Replaces the marker; on the disk when this returns. Raises OSError."""
    home = make(root, own(element))
    try:
        write(home, MARKER, content)
    finally:
        os.close(home)


def read(directory: int, name: bytes) -> dict[str, Any] | None:
    """A JSON object; None: there is no such file, empty: it is none."""
    try:
        with handle(directory, name, os.O_RDONLY | os.O_NONBLOCK) as held, os.fdopen(os.dup(held), "rb") as file:
            content = json.load(file)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write(directory: int, name: bytes, content: dict[str, Any]) -> None:
    """The old content or the new one, whenever the power fails."""
    coming = name + b".new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(coming, flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(json.dumps(content, sort_keys=True).encode("ascii"))
        file.flush()
        os.fsync(file.fileno())
    os.rename(coming, name, src_dir_fd=directory, dst_dir_fd=directory)
    with handle(directory, b".", os.O_RDONLY | os.O_DIRECTORY) as held:
        os.fsync(held)
