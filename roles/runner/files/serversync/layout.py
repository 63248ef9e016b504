# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the runner finds its files: system-wide, or under the XDG directories of one user."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

# Bytes of a file that the runner has written for others.
LARGEST = 256 << 20


def read_plain(path: Path) -> bytes:
    """A file that the runner's account may have put anything in the place of, for root to read.

    Raises OSError: ELOOP for a link, EINVAL for what is no file, EFBIG for one of more than LARGEST.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            data = stream.read(LARGEST + 1)
    finally:
        os.close(descriptor)
    if len(data) > LARGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data


class Layout(NamedTuple):
    """The directories of one scope (``system`` or ``user``)."""

    scope: str
    config: Path
    state: Path
    runtime: Path

    @classmethod
    def of(cls, scope: str, environ: Mapping[str, str]) -> Layout:
        if scope == "system":
            return cls(scope, Path("/etc/serversync"), Path("/var/lib/serversync"), Path("/run/serversync"))
        home = Path(environ.get("HOME") or Path.home())

        def base(variable: str, default: str) -> Path:
            # The XDG specification has relative values ignored.
            value = environ.get(variable, "")
            return (Path(value) if value.startswith("/") else home / default) / "serversync"

        state = base("XDG_STATE_HOME", ".local/state")
        return cls(scope, base("XDG_CONFIG_HOME", ".config"), state, state)

    @property
    def jobs(self) -> Path:
        return self.config / "jobs"

    @property
    def pairings(self) -> Path:
        return self.config / "pairings"

    @property
    def credentials(self) -> Path:
        """The secrets of jobs, where no systemd hands them over."""
        return self.config / "credentials"

    @property
    def doors(self) -> Path:
        return self.config / "serve"

    @property
    def settings(self) -> Path:
        return self.config / "runner.json"

    @property
    def key(self) -> Path:
        return self.config / "keys" / "id_ed25519"

    @property
    def records(self) -> Path:
        return self.state / "records.sqlite"

    @property
    def public(self) -> Path:
        return self.state / "public"

    @property
    def outbox(self) -> Path:
        return self.state / "outbox"

    @property
    def late(self) -> Path:
        """What was told of jobs that are late."""
        return self.state / "late"

    @property
    def locks(self) -> Path:
        return self.runtime / "locks"

    @property
    def privileged(self) -> bool:
        """The system's unit may give the capabilities that preserving foreign owners needs; a user has none."""
        return self.scope == "system"
