# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A partner that has neither a runner nor rsync: what SFTP offers of it, through paramiko.

The runner's key and the pinned host keys are those of ``ssh.Pairing``; nobody's own SSH configuration, agent or
known_hosts plays a part.
"""

from __future__ import annotations

import base64
import logging
import os
import socket
import stat
import threading
import time
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from serversync import metadata, place, tree
from serversync.commit import CODES, Refused
from serversync.counts import Tell
from serversync.detect import blocks
from serversync.failure import Failure
from serversync.job import Job, credential, size
from serversync.layout import Layout
from serversync.metadata import Problem
from serversync.replica import Carried, Coming, Replica
from serversync.sftptree import SftpTree
from serversync.sftpwire import (
    END_OF_FILE,
    FOR_READING,
    FOR_WRITING,
    FSYNC,
    HARDLINK,
    POSIX_RENAME,
    STATVFS,
    Session,
    Task,
    close,
    lstat,
    one,
    open_file,
    opendir,
    space_at,
)
from serversync.ssh import Pairing, explain
from serversync.tree import Tree

# What the job calls its password, and its service the credential.
PASSWORD = "account.password"  # noqa: S105 - its name
# Seconds for a connection, and for any answer: a server that writes to its disk at last may take its time.
CONNECTING = 20
PATIENCE = 180
KEEPALIVE = 10
# All types of host keys that paramiko may know, so that those which are not pinned are not asked for.
KEY_TYPES = {
    "ssh-ed25519": ["ssh-ed25519"],
    "ecdsa-sha2-nistp256": ["ecdsa-sha2-nistp256"],
    "ecdsa-sha2-nistp384": ["ecdsa-sha2-nistp384"],
    "ecdsa-sha2-nistp521": ["ecdsa-sha2-nistp521"],
    "ssh-rsa": ["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"],
    "ssh-dss": ["ssh-dss"],
}
# The classes of paramiko for the keys that a server may have.
PUBLIC_KEYS = {"ssh-ed25519": "Ed25519Key", "ssh-rsa": "RSAKey", "ssh-dss": "DSSKey"} | dict.fromkeys(
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"), "ECDSAKey"
)


class Weakness(NamedTuple):
    """What this server cannot, and what that means for a run."""

    issue: str
    impact: str


class Pace:
    """Keeps to a number of bytes per second, None: as fast as may be."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.free_at = time.monotonic()
        self.spending = threading.Lock()

    def spend(self, count: int) -> None:
        """Returns when that many more bytes may travel."""
        if self.limit is None:
            return
        with self.spending:
            now = time.monotonic()
            # What was not used up to now is not saved for later.
            self.free_at = max(self.free_at, now) + count / self.limit
            wait = self.free_at - now
        time.sleep(wait)


class SftpServer:
    """The partner, by SFTP. Paths are absolute there, as a log-in of the account sees them (in its chroot, if any)."""

    remote_shell: str | None = None
    privileged = False

    def __init__(self, layout: Layout, job: Job) -> None:
        """Connects and logs in; Failure where that does not succeed."""
        self.partner = job.partner
        self.pairing = Pairing(layout, job)
        # One after another, as elements are by SFTP, each has its limit to itself.
        limits = {element.partner_path: element.settings["bandwidth_limit"] for element in job.elements}
        self.paces = {path: Pace(size(limit) if limit else None) for path, limit in limits.items()}
        # Of the connection, and so the same for all elements.
        compress = job["settings"]["compress"] == "always"
        self.held = ExitStack()
        try:
            password = credential(layout, job, PASSWORD) if self.pairing.by_password else None
            self.channel = connect(self.pairing, self.partner, compress, self.held, password)
            self.session = Session(self.channel, explain("", self.partner))
        except BaseException:
            self.held.close()
            raise
        self.round_trip = 0.0
        self.machine = f"sftp:{self.pairing.user}@{self.pairing.alias}:{self.pairing.port}"

    def __enter__(self) -> SftpServer:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.held.close()

    def abort(self) -> None:
        """Ends the conversation; what waits for an answer raises Failure."""
        self.channel.close()

    def look(self, path: str) -> dict[str, Any]:
        """As place.look. SFTP does not tell whether a directory may be written: that is taken for granted."""
        return self.session.run(
            look(self.session, [part.encode("utf-8", "surrogateescape") for part in place.split(path)])
        )

    def open(self, path: str, kind: str, **options: Any) -> SftpTree:
        told = self.weaknesses() if options["writable"] else []
        return SftpTree(
            self.session,
            path,
            kind,
            partner=self.partner,
            machine=self.machine,
            spend=self.paces[path].spend,
            warned=[f"{weakness.issue}: {weakness.impact}" for weakness in told],
            **options,
        )

    def carry(
        self,
        source: Replica,
        target: Replica,
        files: list[Coming],
        preserve: frozenset[str],
        progress: Tell,
    ) -> Carried:
        """Contents between this server and the partner, whole files, many at once."""
        carried = 0
        problems: dict[bytes, tuple[str, str]] = {}
        if isinstance(target, SftpTree):
            target.make_parents(file.path for file in files)
        tasks = (careful(journey(source, target, file, preserve)) for file in files)
        for number, (file, found) in enumerate(zip(files, self.session.together(tasks)), 1):
            if found:
                problems[file.path] = found[0]
            else:
                carried += file.planned.size
            progress("copying", number, carried)
        return Carried(carried, problems)

    def weaknesses(self) -> list[Weakness]:
        found = []
        lacking = [name for name in (POSIX_RENAME, HARDLINK) if not self.session.has(name)]
        if lacking:
            issue = f"{self.partner} cannot replace a file in one step (no {', '.join(lacking)})"
            found.append(Weakness(issue, "while a file is replaced nothing is at its path for a moment"))
        if not self.session.has(FSYNC):
            issue = f"{self.partner} cannot be told to write to its disk ({FSYNC})"
            found.append(Weakness(issue, "what was copied last may be lost there when its power fails"))
        if not self.session.has(STATVFS):
            issue = f"{self.partner} does not tell how much space is left ({STATVFS})"
            found.append(Weakness(issue, "a run may end without space"))
        return found

    def names(self, _users: Iterable[int], _groups: Iterable[int]) -> tuple[dict[int, str], dict[int, str]]:
        """None: over SFTP owners are numbers."""
        return {}, {}

    def numbers(self, users: Iterable[str], groups: Iterable[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Those of this server: over SFTP owners are numbers, and stay what they are."""
        return tree.numbers(users, groups)

    def address(self, path: str) -> str:
        return path

    def inside(self, path: str) -> str:
        return path


# Contents.


def careful(task: Task[list[Problem]]) -> Task[list[Problem]]:
    """What kept the file from the stage, or did not take."""
    try:
        return (yield from task)
    except Refused as refusal:
        return [refusal.problem]
    except OSError as error:
        return [Problem(CODES.get(error.errno or 0, "io"), error.strerror or str(error))]


def journey(source: Replica, target: Replica, file: Coming, preserve: frozenset[str]) -> Task[list[Problem]]:
    if isinstance(target, SftpTree):
        assert isinstance(source, Tree)
        return upload(source, target, file)
    assert isinstance(source, SftpTree) and isinstance(target, Tree)
    return download(source, target, file, preserve)


def upload(source: Tree, target: SftpTree, file: Coming) -> Task[list[Problem]]:
    descriptor = source.reading(file.path)
    try:
        info = os.fstat(descriptor)
        planned = file.planned
        if not stat.S_ISREG(info.st_mode) or (info.st_ino, info.st_size, info.st_mtime_ns) != (
            planned.inode,
            planned.size,
            planned.mtime,
        ):
            raise Refused("moved", "was changed on the source during the run")
        return (
            yield from target.upload(file.path, blocks(descriptor, planned.size), planned.size, file.want, file.before)
        )
    finally:
        os.close(descriptor)


def download(source: SftpTree, target: Tree, file: Coming, preserve: frozenset[str]) -> Task[list[Problem]]:
    """Blocks of nothing but zeros take no room in the copy."""
    descriptor = target.receiving(file.path)

    def take(offset: int, data: bytes) -> None:
        if data.count(0) != len(data):
            rest = memoryview(data)
            while rest:
                rest = rest[os.pwrite(descriptor, rest, offset + len(data) - len(rest)) :]

    try:
        yield from source.fetch(source.there(file.path), file.planned.size, take)
        os.ftruncate(descriptor, file.planned.size)
        return metadata.apply(descriptor, file.want, None, preserve, file.before)
    finally:
        os.close(descriptor)


# Logging in.


def connect(pairing: Pairing, partner: str, compress: bool, held: ExitStack, password: str | None = None) -> Any:
    """An open channel of the subsystem sftp; what it needs is kept by ``held``.

    password: with it the log-in is tried by it alone, and once: servers lock accounts for less.
    """
    with warnings.catch_warnings():
        # What its libraries are going to drop is no concern of those who read the runner's messages.
        warnings.simplefilter("ignore")
        try:
            import paramiko
        except ImportError:
            message = "paramiko is not installed on this server, and connection sftp needs it; apply the role again"
            raise Failure("no_paramiko", message, field="partner.connection") from None
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    logging.getLogger("paramiko").propagate = False
    key = private_key(paramiko, pairing.key) if password is None else None
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    pinned = pairing.known_keys()
    for line in pinned:
        kind, encoded = line.split()[:2]
        make = getattr(paramiko, PUBLIC_KEYS.get(kind, ""), None)
        if make is not None:
            client.get_host_keys().add(pairing.alias, kind, make(data=base64.b64decode(encoded)))
    asked_for = {line.split()[0] for line in pinned}
    unasked = [name for kind, names in KEY_TYPES.items() if kind not in asked_for for name in names]
    try:
        connected = socket.create_connection((pairing.host, pairing.port), timeout=CONNECTING)
        held.callback(connected.close)
        held.callback(client.close)
        client.connect(
            pairing.alias,
            username=pairing.user,
            pkey=key,
            password=password,
            sock=connected,
            timeout=CONNECTING,
            banner_timeout=CONNECTING,
            auth_timeout=CONNECTING,
            allow_agent=False,
            look_for_keys=False,
            compress=compress,
            disabled_algorithms={"keys": unasked},
        )
        transport = client.get_transport()
        assert transport is not None
        transport.set_keepalive(KEEPALIVE)
        channel = transport.open_session(timeout=CONNECTING)
        channel.settimeout(PATIENCE)
        channel.invoke_subsystem("sftp")
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise explained(error, partner, pairing) from error
    return channel


def private_key(paramiko: Any, path: Path) -> Any:
    """The key of the file, whatever its type."""
    where = "account.private_key_file"
    try:
        path.open("rb").close()
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}); apply the role, or correct the path"
        raise Failure("no_key", message, field=where) from error
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key_file(str(path))
        except paramiko.PasswordRequiredException:
            message = f"{path} is protected by a passphrase, which a run cannot give; name a key without one"
            raise Failure("no_key", message, field=where) from None
        except (paramiko.SSHException, ValueError):
            continue
    raise Failure("no_key", f"{path} is no private key of the types ed25519, ecdsa or rsa", field=where)


def explained(error: Exception, partner: str, pairing: Pairing) -> Failure:
    """What went wrong while connecting, in the words that ``ssh.explain`` has for it; remedies are the account's."""
    said = str(error)
    name = type(error).__name__
    if name == "BadHostKeyException" or "not found in known_hosts" in said or "host key" in said:
        remedy = "or it is another server; find out which; if it is right, correct partner.host_key"
        if pairing.name:
            remedy = "or it is another server; find out which; if it is right, apply the role again"
        message = (
            f"wrong host key: {partner} does not have the key that was pinned for it, so it was set up anew, {remedy}"
        )
        return Failure("host_key", message, field="partner.host")
    if "timeout" in said:
        # Also while it logs in, which refuses nothing.
        return explain("timed out", partner)
    if name in ("AuthenticationException", "BadAuthenticationType") and pairing.by_password:
        message = (
            f"log-in refused by {partner}: the account {pairing.user} there has another password, is locked, or may "
            "not log in by one; find out which, and apply the job with the right one"
        )
        return Failure("login", message, field=PASSWORD)
    if name in ("AuthenticationException", "BadAuthenticationType"):
        message = f"log-in refused by {partner}; let the account {pairing.user} there accept the key {pairing.key}.pub"
        return Failure("login", message, field="account.user")
    if isinstance(error, socket.gaierror):
        said = "Could not resolve hostname"
    elif isinstance(error, ConnectionRefusedError):
        said = "Connection refused"
    elif isinstance(error, socket.timeout):
        said = "timed out"
    elif "subsystem" in said or said == "Channel closed.":
        message = f"{partner} lets the account in but has no SFTP for it; switch it on there"
        return Failure("no_sftp", message, field="partner.connection")
    return explain(said, partner)


# Looking.


def look(session: Session, parts: list[bytes]) -> Task[dict[str, Any]]:
    paths = [b"/" + b"/".join(parts[:number]) for number in range(1, len(parts) + 1)]
    answers = yield [lstat(path) for path in paths]
    facts: dict[str, Any] = {"kind": "missing", "readable": False, "writable": False, "reason": ""}
    above = b"/"
    for path, answer in zip(paths, answers):
        last = path == paths[-1]
        shown = path.decode("utf-8", "replace")
        if isinstance(answer, FileNotFoundError):
            facts["writable"] = True
            break
        if isinstance(answer, OSError):
            if last:
                return facts | {"kind": "blocked", "reason": f"{shown}: {answer.strerror}"}
            # What leads there may be closed to the account, which is none the worse for it.
            continue
        kind = tree_kind(answer.mode)
        if not last and kind != "directory":
            return facts | {"kind": "blocked", "reason": f"{shown}: is a symbolic link or a file"}
        above = path if kind == "directory" else above
        if last:
            facts |= {"kind": kind}
            facts |= yield from tried(path, kind)
    return {**(yield from space_at(session, above))._asdict(), **facts}


def tree_kind(mode: int | None) -> str:
    return {0o040000: "directory", 0o100000: "file", 0o120000: "link"}.get((mode or 0) & 0o170000, "other")


def tried(path: bytes, kind: str) -> Task[dict[str, bool]]:
    """Whether it may be read and written, as far as that can be tried without changing anything."""
    if kind == "directory":
        return {"readable": (yield from opens(opendir(path))), "writable": True}
    if kind == "file":
        readable = yield from opens(open_file(path, FOR_READING))
        return {"readable": readable, "writable": (yield from opens(open_file(path, FOR_WRITING)))}
    return {"readable": False, "writable": False}


def opens(request: tuple[int, bytes]) -> Task[bool]:
    [answer] = yield [request]
    if isinstance(answer, OSError):
        return False
    assert answer is not END_OF_FILE
    yield from one(close(answer))
    return True
