# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moving one thing to a free name, however the file system makes that hard; removing trees of any depth.

The rule is renameat2(RENAME_NOREPLACE). A file system that has no such flag (NFS, some FUSE) gets link and unlink, and
where it cannot link, or for a directory, a look and a plain rename: there, a file that somebody else makes under that
name in between is lost. Where a rename is refused with EXDEV (btrfs
subvolumes, project quotas, directories of overlayfs) a directory is moved file by file, and a file is copied, compared
and only then removed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import count

from serversync import linux
from serversync.entry import Entry
from serversync.held import DIRECTORY, THING, names_in
from serversync.metadata import ACLS, CAPABILITY, apply

BLOCK = 1 << 20
# A file system that lacks a flag or a kind of call says one of these.
LACKING = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
UNLINKABLE = (errno.EPERM, errno.EMLINK, *LACKING)
ALL = frozenset({"permissions", "owner", "group", "times", "acls", "xattrs"})


class Changed(OSError):
    """What was to be moved changed while it was copied; it stays where it was."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "has changed while it was copied")


@contextmanager
def descriptor(number: int) -> Iterator[int]:
    try:
        yield number
    finally:
        os.close(number)


def handle(directory: int, name: bytes, flags: int = THING) -> AbstractContextManager[int]:
    """The thing of that name, held; raises OSError, ELOOP where it is a link and not only O_PATH is asked for."""
    return descriptor(os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory))


def lstat(directory: int, name: bytes) -> os.stat_result:
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def move(source: int, old: bytes, target: int, new: bytes) -> bool:
    """Whether the very thing is there now: a copy of it is where the kernel does not rename.

    Raises FileExistsError where the new name is taken; then, and on any other OSError, nothing was moved. Only of a
    directory that has to be moved file by file a part may have been: what is left is where it was.
    """
    try:
        rename(source, old, target, new)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        across(source, old, target, new)
        return False
    return True


def rename(source: int, old: bytes, target: int, new: bytes) -> None:
    """``move`` within a file system; raises OSError, EXDEV where these are two."""
    try:
        linux.rename(source, old, target, new, linux.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in LACKING:
            raise
        move_without_flags(source, old, target, new)


def move_without_flags(source: int, old: bytes, target: int, new: bytes) -> None:
    if not stat.S_ISDIR(lstat(source, old).st_mode):
        try:
            os.link(old, new, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in UNLINKABLE:
                raise
        else:
            os.unlink(old, dir_fd=source)
            return
    with suppress(FileNotFoundError):
        lstat(target, new)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(new))
    os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)


def across(source: int, old: bytes, target: int, new: bytes) -> None:
    """``move`` where the kernel does not rename: what is removed is only what was copied and compared."""
    with handle(source, old) as held:
        info = os.fstat(held)
        if stat.S_ISDIR(info.st_mode):
            move_children(source, old, target, new, held, info)
            return
        duplicate(source, old, target, new)
        if not unmoved(lstat(source, old), info):
            os.unlink(new, dir_fd=target)
            raise Changed
        os.unlink(old, dir_fd=source)


def move_children(source: int, old: bytes, target: int, new: bytes, held: int, info: os.stat_result) -> None:
    os.mkdir(new, 0o700, dir_fd=target)
    with handle(target, new, DIRECTORY) as inner:
        for name in names_in(held):
            move(held, name, inner, name)
        alike(held, inner, info)
    os.rmdir(old, dir_fd=source)


def unmoved(now: os.stat_result, before: os.stat_result) -> bool:
    return (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )


def keep(source: int, old: bytes, target: int, new: bytes) -> None:
    """Lets what is no directory be under a free name, too (FileExistsError): by a link, or else by a copy."""
    try:
        os.link(old, new, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EXDEV, *UNLINKABLE):
            raise
        duplicate(source, old, target, new)


def duplicate(source: int, old: bytes, target: int, new: bytes) -> None:
    """A copy of what is no directory, under a free name (FileExistsError): as good as the original, and on the disk."""
    with handle(source, old) as held:
        info = os.fstat(held)
        if stat.S_ISREG(info.st_mode):
            duplicate_file(held, target, new)
            return
        if stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(old, dir_fd=source), new, dir_fd=target)
        else:
            os.mknod(new, info.st_mode, info.st_rdev, dir_fd=target)
        with handle(target, new) as made:
            alike(held, made, info)


def duplicate_file(held: int, target: int, new: bytes) -> None:
    # Without a name until it is whole: nobody sees a part of it, and a kill leaves nothing.
    try:
        with descriptor(os.open(b".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=target)) as inner:
            fill(held, inner)
            os.link(f"/proc/self/fd/{inner}", new, dst_dir_fd=target, follow_symlinks=True)
            return
    except OSError as error:
        if error.errno not in (errno.EISDIR, *UNLINKABLE):
            raise
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with descriptor(os.open(new, flags, 0o600, dir_fd=target)) as inner:
        try:
            fill(held, inner)
        except OSError:
            os.unlink(new, dir_fd=target)
            raise


def fill(held: int, inner: int) -> None:
    """Makes the empty file the same as the held one, on the disk; raises Changed where it is not the same then."""
    with descriptor(os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_CLOEXEC)) as outer:
        pour(outer, inner)
        alike(held, inner, os.fstat(held))
        os.fsync(inner)
        if not same_content(outer, inner):
            raise Changed


def pour(outer: int, inner: int) -> None:
    """All bytes; what is zeros takes no room in the copy."""
    size = 0
    while block := os.read(outer, BLOCK):
        if block.count(0) != len(block):
            rest = memoryview(block)
            while rest:
                written = os.pwrite(inner, rest, size + len(block) - len(rest))
                rest = rest[written:]
        size += len(block)
    os.ftruncate(inner, size)


def same_content(one: int, other: int) -> bool:
    offset = 0
    while True:
        block = os.pread(one, BLOCK, offset)
        if block != os.pread(other, BLOCK, offset):
            return False
        if not block:
            return True
        offset += len(block)


def alike(original: int, copy: int, info: os.stat_result) -> None:
    """Owner, mode, attributes and time of the copy as the original's; what this process may not set stays.

    info: of the original, from before anything was moved out of it.
    """
    entry = Entry.of(info)
    path = f"/proc/self/fd/{original}"
    attributes = None
    if entry.kind != "l":
        try:
            names = [name for name in os.listxattr(path) if name.startswith("user.") or name in (*ACLS, CAPABILITY)]
            attributes = {name: os.getxattr(path, name) for name in names}
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
    apply(copy, entry, attributes, ALL)


def remove_all(directory: int, keep: Callable[[int, str], bool] | None = None) -> list[OSError]:
    """Empties the directory, which nobody else uses; returns why something could not be removed.

    A directory in it is emptied after it has been moved up: neither depth nor the length of paths matters.
    keep: whether what is no directory was taken away instead, by its directory and its name there.
    """
    problems: list[OSError] = []
    waiting = names_in(directory)
    taken = frozenset(waiting)
    free = (name for name in map(b"%d".__mod__, count()) if name not in taken)
    while waiting:
        name = waiting.pop()
        try:
            with suppress(IsADirectoryError):
                os.unlink(name, dir_fd=directory)
                continue
            with opened(directory, name) as outer:
                for inner in open_up(outer, problems, keep):
                    lifted = next(free)
                    lift(outer, inner, directory, lifted)
                    waiting.append(lifted)
            os.rmdir(name, dir_fd=directory)
        except OSError as error:
            problems.append(error)
    return problems


def remove(directory: int, name: bytes) -> None:
    """Whatever has the name, if anything has; nobody else uses it. Raises the first OSError after having tried all."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        with handle(directory, name, DIRECTORY) as held:
            problems = remove_all(held)
        if problems:
            raise problems[0] from None
        os.rmdir(name, dir_fd=directory)


def open_up(outer: int, problems: list[OSError], keep: Callable[[int, str], bool] | None) -> list[str]:
    """Removes what is no directory in the directory; the names of those that are."""
    inner = []
    with os.scandir(outer) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                inner.append(entry.name)
                continue
            try:
                if keep is None or not keep(outer, entry.name):
                    os.unlink(entry.name, dir_fd=outer)
            except OSError as error:
                problems.append(error)
    return inner


@contextmanager
def opened(held: int, name: bytes) -> Iterator[int]:
    """To read and to change, whatever its mode."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=held)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=held)
        descriptor = os.open(name, flags, dir_fd=held)
    try:
        if os.geteuid():
            os.fchmod(descriptor, 0o700)
        yield descriptor
    finally:
        os.close(descriptor)


def lift(outer: int, inner: str, held: int, lifted: bytes) -> None:
    try:
        os.rename(inner, lifted, src_dir_fd=outer, dst_dir_fd=held)
    except PermissionError:
        # Its entry for what is above it changes, too.
        os.chmod(inner, 0o700, dir_fd=outer)
        os.rename(inner, lifted, src_dir_fd=outer, dst_dir_fd=held)
