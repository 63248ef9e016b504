# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A partner that has nothing but SFTP: a real sshd on loopback that lets a key do ``internal-sftp`` and no more.

As root it can also be one whose account is an ordinary one, in a chroot.
"""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.loopback import Partner, Server, free_port, make_key

# An account without rights, which every Debian has.
ORDINARY = "nobody"


class SftpPartner(Partner):
    """A server whose account can do nothing but SFTP."""

    user: str = getpass.getuser()
    keys: Path

    def serve(self, key: str, keys: Path, command: str, options: str) -> None:
        """keys: the directory for the account's keys, which it must be able to read; command: what it may do."""
        host_key = self.home / "host_key"
        if not host_key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key)], check=True)
            self.port = free_port()
        self.keys = keys / "authorized_keys"
        self.keys.write_text(f"{key}\n")
        (self.home / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {host_key}\n"
            f"AuthorizedKeysFile {self.keys}\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n"
            f"Subsystem sftp {command}\nForceCommand {command}\nMaxStartups 100\n{options}"
        )
        self.start()


@dataclass
class SftpPair:
    """This server and its partner; path is here, partner_path there, root is what the account sees as /."""

    here: Server
    there: SftpPartner
    path: Path
    root: Path
    partner_path: str = "/programs"
    port: int | None = None

    @property
    def real(self) -> Path:
        """The replica on the partner, as this machine sees it."""
        return self.root / self.partner_path.lstrip("/") if self.root != Path("/") else Path(self.partner_path)

    def declare(self, name: str = "nightly", **options: Any) -> Path:
        given = {
            "partner": {
                "host": "127.0.0.1",
                "port": self.port or self.there.port,
                "connection": "sftp",
                "host_key": [self.there.host_key],
            },
            "account": {"user": self.there.user, "private_key_file": None},
        }
        pairs = options.pop("pairs", [(self.path, Path(self.partner_path))])
        return self.here.declare(name, pairs, **{**given, **options})


@contextmanager
def sftp_loopback(
    directory: Path, *, chroot: bool = False, user: str | None = None, command: str = "internal-sftp"
) -> Iterator[SftpPair]:
    """chroot: the account sees nothing but a directory of its own, and may be another ``user`` (root only)."""
    here = Server(directory / "site-a")
    there = SftpPartner(directory / "nas")
    there.user = user or there.user
    key = make_key(here.key)
    path = directory / "programs"
    path.mkdir()
    # sshd wants every directory above a chroot to be root's alone, which /tmp is not.
    root = Path(tempfile.mkdtemp(prefix="serversync-", dir="/run")) if chroot else directory / "roots"
    options = f"ChrootDirectory {root}\n" if chroot else ""
    root.mkdir(exist_ok=True)
    root.chmod(0o755)
    try:
        pair = SftpPair(here, there, path, root if chroot else Path("/"))
        home = root / "programs"
        home.mkdir()
        if user:
            entry = pwd.getpwnam(user)
            os.chown(home, entry.pw_uid, entry.pw_gid)
        if not chroot:
            pair.partner_path = str(home)
        there.serve(key, root if chroot else there.home, command, options)
        yield pair
    finally:
        there.stop()
        if chroot:
            shutil.rmtree(root)
