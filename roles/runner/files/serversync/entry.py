# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a path is on a replica, as update detection sees it, and how entries travel and are kept. Pure.

A **record** is an entry's bytes without its path: ``KIND INODE CTIME MTIME SIZE MODE UID GID NLINK LINK``, blanks
between, times in seconds with ten digits behind the point, the mode octal, as ``find -printf`` (FORMAT) writes them.
Equal records mean that nothing about the entry has moved, so unchanged paths are compared as bytes and never parsed.
What a record does not hold travels as ``more``: ``RDEV XATTRS DIGEST``, numbers decimal, digests in hexadecimal.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# The two servers of a job, as options and records name them.
HERE = "this_server"
THERE = "partner"

FORMAT = rb"%y %i %C@ %T@ %s %m %U %G %n %l"
KINDS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
    stat.S_IFBLK: "b",
    stat.S_IFCHR: "c",
}


class Entry(NamedTuple):
    """One path on one replica. Times in ns since the epoch, size in bytes, mode the twelve permission bits.

    link: a symbolic link's text; rdev: a device's number; xattrs: digest of the ACLs and extended attributes that are
    preserved (empty: there are none, or they are not preserved); digest: the content's, where it was asked for.
    """

    kind: str
    inode: int
    ctime: int
    mtime: int
    size: int
    mode: int
    uid: int
    gid: int
    nlink: int
    link: bytes = b""
    rdev: int = 0
    xattrs: bytes = b""
    digest: bytes = b""

    @classmethod
    def of(cls, info: os.stat_result, link: bytes = b"") -> Entry:
        return cls(
            KINDS[stat.S_IFMT(info.st_mode)],
            info.st_ino,
            info.st_ctime_ns,
            info.st_mtime_ns,
            info.st_size,
            stat.S_IMODE(info.st_mode),
            info.st_uid,
            info.st_gid,
            info.st_nlink,
            link,
            info.st_rdev if stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode) else 0,
        )

    @classmethod
    def parse(cls, record: bytes, more: bytes = b"") -> Entry:
        """From a record and its ``more``; raises ValueError where they are none."""
        kind, inode, ctime, mtime, size, mode, uid, gid, nlink, link = record.split(b" ", 9)
        rdev, xattrs, digest = 0, b"", b""
        if more:
            number, *digests = more.split(b" ")
            rdev = int(number)
            xattrs, digest = (bytes.fromhex(one.decode("ascii")) for one in digests)
        return cls(
            kind.decode("ascii"),
            int(inode),
            nanoseconds(ctime),
            nanoseconds(mtime),
            int(size),
            int(mode, 8),
            int(uid),
            int(gid),
            int(nlink),
            link,
            rdev,
            xattrs,
            digest,
        )

    @property
    def record(self) -> bytes:
        return self.record_as(self.inode, self.ctime)

    def record_as(self, inode: int, ctime: int) -> bytes:
        """The record that it would have with these."""
        # Written out, as it is made for every path that moves, several times.
        kind, _inode, _ctime, mtime, size, mode, uid, gid, nlink, link, _rdev, _xattrs, _digest = self
        return b"%b %d %d.%09d0 %d.%09d0 %d %o %d %d %d %b" % (
            kind.encode("ascii"),
            inode,
            ctime // 1_000_000_000,
            ctime % 1_000_000_000,
            mtime // 1_000_000_000,
            mtime % 1_000_000_000,
            size,
            mode,
            uid,
            gid,
            nlink,
            link,
        )

    @property
    def more(self) -> bytes:
        """Empty where there is nothing to say beyond the record."""
        return self.more_but(self.digest)

    def more_but(self, digest: bytes) -> bytes:
        """What ``more`` would be with this digest."""
        if not (self.rdev or self.xattrs or digest):
            return b""
        return b"%d %b %b" % (self.rdev, self.xattrs.hex().encode("ascii"), digest.hex().encode("ascii"))


class Row(NamedTuple):
    """What the archive has for one path: a status and, per replica, its own record as last read (None: absent).

    status: agreed, kept, left, or unresolved; base: of an unresolved path the last agreed pair, ``pack``ed as the paths
    ``here`` and ``there``, or empty; racy: which halves ("h", "t", "ht") the next run has to read by content; by: the
    setting that decided a path which is not agreed ("conflict", "delete", or "guard").
    """

    path: bytes
    status: str
    here: bytes | None
    here_more: bytes
    there: bytes | None
    there_more: bytes
    base: bytes = b""
    racy: str = ""
    by: str = ""


def nanoseconds(text: bytes) -> int:
    """``b"1763849999.1234567890"`` -> 1763849999123456789; as find prints them, so before 1970 ``-2.5`` is -1.5 s."""
    if text[-11:-10] == b"." and text[:1] != b"-":
        return int(text[:-11] + text[-10:-1])
    whole, _point, fraction = text.partition(b".")
    return int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or 0)


def seconds(time: int) -> bytes:
    """The inverse of ``nanoseconds``."""
    return b"%d.%09d0" % divmod(time, 1_000_000_000)


def pack(items: Iterable[tuple[bytes, bytes, bytes]]) -> bytes:
    """(path, record, more) -> bytes for the wire; no part can hold a NUL."""
    return b"".join(b"%b\0%b\0%b\0" % item for item in items)


def unpack(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The inverse of ``pack``; raises ValueError on what is none."""
    parts = data.split(b"\0")
    if parts.pop() or len(parts) % 3:
        raise ValueError("a listing is cut short")
    rest = iter(parts)
    return zip(rest, rest, rest)
