# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives a held file, directory, link or special file the owner, mode, attributes and time that it is to have."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

from serversync import place
from serversync.entry import Entry

ACLS = ("system.posix_acl_access", "system.posix_acl_default")
CAPABILITY = "security.capability"
# What the kernel says where the account or the file system does not allow an owner or an attribute.
REFUSALS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ERANGE, errno.E2BIG)


class Problem(NamedTuple):
    """code: stable word for machines; text: one sentence for people, without the path."""

    code: str
    text: str


def preserved(name: str, preserve: frozenset[str]) -> bool:
    """Whether this extended attribute is one that the job preserves."""
    if name in ACLS:
        return "acls" in preserve
    return "xattrs" in preserve and (name.startswith("user.") or name == CAPABILITY)


def apply(
    handle: int,
    want: Entry,
    attributes: Mapping[str, bytes] | None,
    preserve: frozenset[str],
    before: Entry | None = None,
    *,
    spare: int = 0,
) -> list[Problem]:
    """Makes what the descriptor (O_PATH suffices) holds like ``want``, as far as ``preserve`` says.

    Where the owner, the group or the permissions are not preserved, those of ``before`` stay, the entry that is
    replaced. ``attributes``: all that there are to be; None leaves them alone. ``spare``: mode bits set in addition.
    Only what differs is set. Returns what did not take; raises OSError where the mode or the time cannot be set.
    """
    path = b"/proc/self/fd/%d" % handle
    problems = set_owner(handle, path, want, preserve, before)
    info = os.fstat(handle)
    if not stat.S_ISLNK(info.st_mode):
        mode = wanted_mode(info, want, preserve, before) | spare
        set_mode(handle, mode)
        if attributes is not None and set_attributes(path, attributes, preserve, problems):
            # Setting an access ACL sets the mode's group bits, too.
            set_mode(handle, mode)
    if "times" in preserve:
        set_time(handle, want.mtime)
    return problems


def dress(descriptor: int, want: Entry, preserve: frozenset[str]) -> list[Problem]:
    """As ``apply``, for a regular file that was just made and is held open: it has no attributes yet.

    ``preserve`` has ``permissions``; else nobody knows which ones the file is to have.
    """
    problems: list[Problem] = []
    info = os.fstat(descriptor)
    if (info.st_uid, info.st_gid) != (want.uid, want.gid):
        problems = set_owner(descriptor, descriptor, want, preserve, None)
        info = os.fstat(descriptor)
    mode = wanted_mode(info, want, preserve, None)
    if stat.S_IMODE(info.st_mode) != mode:
        os.fchmod(descriptor, mode)
    # Whatever is preserved: by it the stage is known to have what was planned.
    os.utime(descriptor, ns=(info.st_atime_ns, want.mtime))
    return problems


def set_time(handle: int, mtime: int) -> None:
    info = os.fstat(handle)
    if info.st_mtime_ns != mtime:
        os.utime(b"/proc/self/fd/%d" % handle, ns=(info.st_atime_ns, mtime))


def set_mode(handle: int, mode: int) -> None:
    if stat.S_IMODE(os.fstat(handle).st_mode) != mode:
        place.through(handle).chmod(mode)


def set_owner(
    handle: int, path: bytes | int, want: Entry, preserve: frozenset[str], before: Entry | None
) -> list[Problem]:
    info, problems = os.fstat(handle), []
    for aspect, number, is_now in (("group", "gid", info.st_gid), ("owner", "uid", info.st_uid)):
        demanded = aspect in preserve
        source = want if demanded else before
        if source is None or getattr(source, number) == is_now:
            continue
        value = getattr(source, number)
        try:
            os.chown(path, value if number == "uid" else -1, value if number == "gid" else -1)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            # Keeping another's owner, which nobody asked for, is a kindness of those who may.
            if demanded:
                problems.append(Problem("owner", f"its {aspect} cannot be set to {value}: {error.strerror}"))
    return problems


def wanted_mode(info: os.stat_result, want: Entry, preserve: frozenset[str], before: Entry | None) -> int:
    if "permissions" in preserve:
        mode = want.mode
    elif before is not None and before.kind == want.kind:
        mode = before.mode
    else:
        return stat.S_IMODE(info.st_mode)
    if stat.S_ISREG(info.st_mode):
        # A program must not run as somebody whose it was not.
        if info.st_uid != want.uid:
            mode &= ~stat.S_ISUID
        if info.st_gid != want.gid:
            mode &= ~stat.S_ISGID
    return mode


def set_attributes(
    path: bytes, attributes: Mapping[str, bytes], preserve: frozenset[str], problems: list[Problem]
) -> bool:
    """Whether an ACL was set or removed; what did not take is added to ``problems``."""
    try:
        present = {name for name in os.listxattr(path) if preserved(name, preserve)}
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        present = set()
    acls = False
    for name in sorted(present | {name for name in attributes if preserved(name, preserve)}):
        try:
            if name not in attributes:
                os.removexattr(path, name)
            elif name not in present or os.getxattr(path, name) != attributes[name]:
                os.setxattr(path, name, attributes[name])
            else:
                continue
            acls = acls or name in ACLS
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            problems.append(Problem("attributes", f"its attribute {name} cannot be set: {error.strerror}"))
    return acls
