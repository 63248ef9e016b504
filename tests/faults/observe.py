# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on a replica, seen by the standard library alone: trees, versions, and what lies around them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tests.loopback import Server

RESERVED = b".serversync"
# A file that no edit touches: a replica without anything looks unmounted, which is a fault of its own.
ANCHOR = b"anchor"
# STEM.conflict-SERVER-MTIME[-N]EXT
COPY_BEGINS = re.compile(rb"\.conflict-")
COPY_ENDS = re.compile(rb"-\d{8}T\d{6}Z(?:-\d+)?(?=\.|$)")
KINDS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
    stat.S_IFBLK: "b",
    stat.S_IFCHR: "c",
}


class Node(NamedTuple):
    """One path. content: digest of a file's bytes, a link's text, a device's number; of other kinds empty."""

    kind: str
    content: bytes
    mode: int
    owner: tuple[int, int]
    mtime: int
    xattrs: bytes
    size: int
    inode: int
    ctime: int
    nlink: int

    @property
    def data(self) -> tuple[str, bytes]:
        return self.kind, self.content

    @property
    def metadata(self) -> tuple[int, tuple[int, int], bytes]:
        """But for the time; nobody can set a link's mode."""
        return 0 if self.kind == "l" else self.mode, self.owner, self.xattrs

    @property
    def time(self) -> int:
        """Of files alone: that of anything else decides nothing."""
        return self.mtime if self.kind == "f" else 0

    @property
    def whole(self) -> tuple[object, ...]:
        """What has to be the same on both replicas."""
        return self.data, self.metadata, self.time


Tree = dict[bytes, Node]


def short(node: Node | None) -> str:
    if node is None:
        return "absent"
    said = node.content.hex()[:10] if node.kind == "f" else repr(node.content)
    return f"{node.kind} {node.mode:04o} {node.owner} {node.mtime} {node.size} bytes {said}"


def look(path: bytes) -> Node | None:
    """One path now, None where it is absent; what vanishes meanwhile is absent."""
    try:
        info = os.lstat(path)
        kind = KINDS[stat.S_IFMT(info.st_mode)]
        content = b""
        if kind == "l":
            content = os.readlink(path)
        elif kind == "f":
            content = digest(path, info)
        elif kind in "bc":
            content = b"%d" % info.st_rdev
        attributes = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(listed(path))]
        return Node(
            kind,
            content,
            stat.S_IMODE(info.st_mode),
            (info.st_uid, info.st_gid),
            info.st_mtime_ns,
            repr(attributes).encode() if attributes else b"",
            info.st_size,
            info.st_ino,
            info.st_ctime_ns,
            info.st_nlink,
        )
    except (FileNotFoundError, NotADirectoryError):
        return None


def listed(path: bytes) -> list[str]:
    """ACLs and the user's own attributes; what the system keeps there is not synchronized."""
    names = os.listxattr(path, follow_symlinks=False)
    return [name for name in names if name.startswith(("user.", "system.posix_acl"))]


def digest(path: bytes, info: os.stat_result) -> bytes:
    """Of a file's bytes; holes are not read (their places are hashed), so that a sparse file costs what it holds."""
    whole = hashlib.blake2b(digest_size=16)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if info.st_size < 1 << 26:
            while data := os.read(descriptor, 1 << 20):
                whole.update(data)
            return whole.digest()
        position = 0
        while position < info.st_size:
            try:
                position = os.lseek(descriptor, position, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole to the end
                break
            data = os.pread(descriptor, 1 << 16, position // 65536 * 65536)
            # Blocks of zeros are a hole or none as the file system likes.
            if data.strip(b"\0"):
                whole.update(b"%d:" % (position // 65536) + data.rstrip(b"\0"))
            position = (position // 65536 + 1) * 65536
        whole.update(b"%d" % info.st_size)
        return whole.digest()
    finally:
        os.close(descriptor)


def walk(root: bytes) -> Iterator[bytes]:
    """All paths below, relative; what the runner keeps for itself is left out. However deep: by descriptors."""
    if not os.path.isdir(root):
        return
    for directory, inner, files, _descriptor in os.fwalk(root, follow_symlinks=False):
        inner[:] = sorted(name for name in inner if name != RESERVED)
        for name in inner + sorted(files):
            yield os.path.relpath(os.path.join(directory, name), root)


def tree(root: bytes) -> Tree:
    found = ((path, look(os.path.join(root, path))) for path in walk(root))
    return {path: node for path, node in found if node is not None}


def versions(root: bytes) -> dict[bytes, list[bytes]]:
    """What was overwritten or deleted: path -> the contents (digests) of all its versions."""
    found: dict[bytes, list[bytes]] = {}
    reserved = os.path.join(root, RESERVED)
    for element in sorted(os.listdir(reserved)) if os.path.isdir(reserved) else []:
        kept = os.path.join(reserved, element, b"versions")
        for run in sorted(os.listdir(kept)) if os.path.isdir(kept) else []:
            for path in walk(os.path.join(kept, run)):
                node = look(os.path.join(kept, run, path))
                if node is not None and node.kind != "d":
                    found.setdefault(re.sub(rb"~\d+$", b"", path), []).append(node.content)
                    found.setdefault(path, []).append(node.content)
    return found


class State(NamedTuple):
    """Both replicas at one moment; here and there are trees, *_versions what they have put aside."""

    here: Tree
    there: Tree
    here_versions: dict[bytes, list[bytes]]
    there_versions: dict[bytes, list[bytes]]

    @classmethod
    def of(cls, here: bytes, there: bytes) -> State:
        return cls(tree(here), tree(there), versions(here), versions(there))

    def sides(self) -> list[tuple[str, Tree, dict[bytes, list[bytes]]]]:
        return [("this server", self.here, self.here_versions), ("partner", self.there, self.there_versions)]


def readings(path: bytes) -> list[tuple[bytes, bytes]]:
    """Every (STEM, EXT) that a name can be a conflict copy of; copies of copies can be read in several ways."""
    name = os.path.basename(path)
    return [
        (name[: begin.start()], name[end.end() :])
        for begin in COPY_BEGINS.finditer(name)
        for end in COPY_ENDS.finditer(name, begin.end())
    ]


def is_copy(path: bytes) -> bool:
    return bool(readings(path))


def copy_of(path: bytes, of: bytes) -> bool:
    """Whether a path is a conflict copy of another, or in one of its directory; long names are cut."""
    directory, full = os.path.split(of)
    if directory != os.path.dirname(path):
        return os.path.basename(path) == full and copy_of(os.path.dirname(path), directory)
    for stem, extension in readings(path):
        whole = full[: len(full) - len(extension)]
        cut = len(os.path.basename(path)) > 240 and len(whole) > 200 and whole.startswith(stem)
        if full.endswith(extension) and (whole == stem or cut):
            return True
    return False


def surroundings(directories: Mapping[str, bytes]) -> dict[bytes, tuple[int, ...]]:
    """What lies outside the roots and is nobody's to touch: every entry with inode, size, times and mode."""
    found = {}
    for directory in directories.values():
        for path in walk(directory):
            info = os.lstat(os.path.join(directory, path))
            found[os.path.join(directory, path)] = (
                info.st_ino,
                info.st_size,
                info.st_mtime_ns,
                info.st_ctime_ns,
                info.st_mode,
            )
    return found


def archives(server: Server) -> list[str]:
    """The files of all archives of a server."""
    found = []
    for directory, _inner, names in os.walk(server.home / ".local" / "state" / "serversync" / "archives"):
        found += [os.path.join(directory, name) for name in names]
    return sorted(found)
