# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""System calls that Python's os module lacks: openat2(2), renameat2(2), statx(2), syncfs(2), landlock(7)."""

from __future__ import annotations

import ctypes
import os

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
# The number is the same on every architecture that Linux got since 2011 (x86, arm, riscv, s390x, ppc).
SYS_OPENAT2 = 437
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_ADD_RULE, SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1
LANDLOCK_ACCESS_FS_REFER = 1 << 13
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
AT_EMPTY_PATH = 0x1000
STATX_BTIME = 0x800

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _Statx(ctypes.Structure):
    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("before", ctypes.c_uint8 * 76),
        ("born_seconds", ctypes.c_int64),
        ("born_nanoseconds", ctypes.c_uint32),
        ("behind", ctypes.c_uint8 * 164),
    )


def _checked(result: int, *names: bytes | None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        shown = [os.fsdecode(name) for name in names if name is not None]
        raise OSError(number, os.strerror(number), *shown[:1])
    return result


def open_beneath(directory: int, path: bytes, flags: int, *, cross: bool = False) -> int:
    """Opens ``path`` below the held ``directory``; no symbolic link is followed and nothing above is reached.

    ``b""`` is the directory itself; ``cross``: into other file systems, too. Raises OSError: ELOOP at a link, EXDEV at
    a mount point or on the way out.
    """
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | (0 if cross else RESOLVE_NO_XDEV)
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    return _checked(
        _libc.syscall(
            SYS_OPENAT2, ctypes.c_int(directory), path or b".", ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
        ),
        path,
    )


def rename(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int = 0) -> None:
    """renameat2(2) between two held directories; ``flags``: RENAME_NOREPLACE or RENAME_EXCHANGE."""
    _checked(_libc.renameat2(old_directory, old, new_directory, new, ctypes.c_uint(flags)), old, new)


def born(descriptor: int) -> int:
    """When what the descriptor holds was made, ns since the epoch, which nothing changes later; 0: nobody knows."""
    found = _Statx()
    try:
        _checked(_libc.statx(descriptor, b"", AT_EMPTY_PATH, ctypes.c_uint(STATX_BTIME), ctypes.byref(found)))
    except OSError:
        return 0
    if not found.mask & STATX_BTIME:
        return 0
    return max(0, int(found.born_seconds) * 10**9 + int(found.born_nanoseconds))


def syncfs(descriptor: int) -> None:
    """Everything written to the file system of the descriptor is on the disk; raises OSError where it is not."""
    _checked(_libc.syncfs(descriptor))


def confine() -> bool:
    """From now on this process, and what it starts, reaches into no process but these, so not into another's
    ``/proc/PID/root``, which is outside every sandbox of a unit.

    Of files nothing changes: all that is handled, links and renamings between directories, is allowed everywhere.
    Before any thread is started, and where no_new_privs is set. False where the kernel has no Landlock of version 2
    (Linux 5.19).
    """

    def landlock(number: int, *arguments: object) -> int:
        return _checked(_libc.syscall(number, *arguments))

    flags, nothing = ctypes.c_uint32, ctypes.c_size_t(0)
    try:
        version = landlock(SYS_LANDLOCK_CREATE_RULESET, None, nothing, flags(LANDLOCK_CREATE_RULESET_VERSION))
    except OSError:
        return False
    if version < 2:
        return False
    handled = _Ruleset(LANDLOCK_ACCESS_FS_REFER)
    size = ctypes.c_size_t(ctypes.sizeof(handled))
    ruleset = landlock(SYS_LANDLOCK_CREATE_RULESET, ctypes.byref(handled), size, flags(0))
    try:
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            rule = ctypes.byref(_PathBeneath(LANDLOCK_ACCESS_FS_REFER, root))
            landlock(SYS_LANDLOCK_ADD_RULE, ctypes.c_int(ruleset), LANDLOCK_RULE_PATH_BENEATH, rule, flags(0))
        finally:
            os.close(root)
        landlock(SYS_LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), flags(0))
    finally:
        os.close(ruleset)
    return True
