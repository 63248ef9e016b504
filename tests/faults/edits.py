# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random edits of a tree from a seed; every content holds a token that is written once and never again.

An Edit is data: the same can be made on several equal trees, with the same times, so that their synchronizers can be
compared. What has become impossible meanwhile (a parent is gone) is not done, the same way everywhere.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.faults.observe import ANCHOR, RESERVED, look, walk

ROOT = os.geteuid() == 0
# Far from now, and far apart: whoever takes the newer one is not to be helped by the clock.
EPOCH = 1_600_000_000
LONG = b"l" * 251
NAMES = [
    *(b"a", b"b", b"c.txt", b"d.tar.gz", b"e f", b"report.doc", b".hidden", b"x.conflict", b"old.tmp"),
    *(
        b"new\nline",
        b"tab\there",
        b"quote'\"",
        b"-rf",
        b"*?[x]",
        b"back\\slash",
        b"#;$(x)",
        b"\xff\xfe\x80",
        b"\x1b[31m",
    ),
    *("\u00e4".encode(), "a\u0308".encode(), b"Case", b"case", b"trailing ", b"dot.", b"~", b"%s%n", b"a,v"),
    *(LONG + b".txt", LONG + b".doc", b"\xf0\x9f\x92\xbe", b"CON", b".serversync.not"),
]
ORDINARY = [b"a", b"b", b"c", b"d", b"e", b"f.txt", b"g.txt", b"h.txt", b"i.tar.gz", b"j"]
FILE_EDITS = {
    "overwrite": 8,  # in place: the inode stays
    "replace": 6,  # a new file renamed over it
    "append": 4,
    "truncate": 2,
    "empty": 1,
    "rename": 5,
    "delete": 8,
    "chmod": 4,
    "chown": 2,
    "touch": 2,
    "touch_back": 2,
    "link": 3,
    "xattr": 1,
    "to_directory": 1,
    "to_symlink": 1,
}
NEW_EDITS = {"create": 12, "mkdir": 4, "symlink": 3, "fifo": 1, "socket": 1, "device": int(ROOT), "sparse": 1}
DIRECTORY_EDITS = {"rename": 2, "chmod": 2, "rmdir": 2, "remove_tree": 2, "to_file": 1}
# Same size, same time, same inode: only ctime tells, so only runs that compare contents have to see it.
QUIET = {"quiet": 4}


class Edit(NamedTuple):
    """do: one of the words above; path, to: relative; token: what is written; size in bytes; time: ns, what is set."""

    do: str
    path: bytes
    to: bytes = b""
    token: str = ""
    size: int = 0
    mode: int = 0o644
    owner: tuple[int, int] = (-1, -1)
    time: int = 0

    def __str__(self) -> str:
        more = f" -> {self.to!r}" if self.to else ""
        return f"{self.do} {self.path!r}{more}" + (f" [{self.token}, {self.size}]" if self.token else "")


class Editor:
    """Draws edits; the tokens and times of one editor are never drawn twice.

    names: what new paths are called, NAMES if none are given; only: the kinds of edits; quiet: whether those that only
    contents betray are in; large: bytes of some files; grain: of times, in ns.
    """

    def __init__(
        self,
        rng: random.Random,
        name: str,
        *,
        names: Collection[bytes] = (),
        only: Collection[str] = (),
        quiet: bool = False,
        depth: int = 4,
        large: int = 0,
        grain: int = 1,
    ) -> None:
        self.rng = rng
        self.name = name
        self.names = list(names or NAMES)
        self.only = set(only)
        self.quiet = quiet
        self.depth = depth
        self.large = large
        self.grain = grain
        self.count = 0

    def time(self) -> int:
        """Rising, seven seconds and a bit apart."""
        time = (EPOCH + self.count * 7) * 10**9 + 123_456_789
        return time - time % self.grain

    def choose(self, weights: dict[str, int]) -> str | None:
        allowed = {do: weight for do, weight in weights.items() if weight and (not self.only or do in self.only)}
        return self.rng.choices(list(allowed), list(allowed.values()))[0] if allowed else None

    def fresh(self, directories: list[bytes]) -> bytes:
        return os.path.join(self.rng.choice(directories), self.rng.choice(self.names))

    def draw(self, root: bytes) -> Edit | None:
        """The next edit for the tree as it is now; None where nothing of what is wanted fits it."""
        self.count += 1
        kinds = {path: "d" if os.path.isdir(full) and not os.path.islink(full) else "f" for path, full in paths(root)}
        directories = [
            b"",
            *(path for path, kind in kinds.items() if kind == "d" and path.count(b"/") < self.depth - 1),
        ]
        files = [path for path, kind in kinds.items() if kind == "f"]
        inner = [path for path, kind in kinds.items() if kind == "d"]
        rng = self.rng
        # A third new things, most of the rest on files.
        group = rng.choices(["new", "file", "directory"], [3 if len(kinds) < 40 else 1, 6, 1])[0]
        if group == "file" and files:
            do = self.choose({**FILE_EDITS, **(QUIET if self.quiet else {})})
            path = rng.choice(files)
        elif group == "directory" and inner:
            do, path = self.choose(DIRECTORY_EDITS), rng.choice(inner)
        else:
            do, path = self.choose(NEW_EDITS), self.fresh(directories)
        if do is None or (do == "chown" and not ROOT):
            return None
        size = rng.choice([0, 1, 100, 5000, 70_000]) if not (self.large and rng.random() < 0.3) else self.large
        return Edit(
            do,
            path,
            to=self.fresh(directories)
            if do in ("rename", "link")
            else rng.choice([b"a", b"../b", b"/etc/hostname", b"no"]),
            token=f"{self.name}-{self.count}",
            size=size,
            mode=rng.choice([0o600, 0o644, 0o640, 0o755, 0o4755 if ROOT else 0o700]),
            owner=(rng.choice([0, 1, 1000, 54321]), rng.choice([0, 4, 1000, 54321])),
            time=self.time() if do != "touch_back" else (EPOCH - self.count * 11) * 10**9,
        )

    def script(self, root: bytes, count: int) -> list[Edit]:
        """Makes so many edits on the tree and returns them."""
        made = []
        for _number in range(count):
            edit = self.draw(root)
            if edit is not None and apply(root, edit):
                made.append(edit)
        return made


def paths(root: bytes) -> Iterator[tuple[bytes, bytes]]:
    for path in walk(root):
        if path != ANCHOR:
            yield path, os.path.join(root, path)


def content(token: str, size: int) -> bytes:
    """The token again and again, at least once: any piece of it tells where it is from."""
    line = f"{token}\n".encode()
    return (line * (size // len(line) + 1))[: max(size, len(line))]


def apply(root: bytes, edit: Edit) -> bool:
    """Makes one edit; False where it cannot be made on this tree."""
    path = os.path.join(root, edit.path)
    try:
        return EDITS[edit.do](path, edit, root)
    except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError):
        return False
    except OSError as error:
        if error.errno in (36, 39, 18, 22, 98):  # ENAMETOOLONG, ENOTEMPTY, EXDEV, EINVAL (into itself), EADDRINUSE
            return False
        raise


def stamp(path: bytes, edit: Edit) -> bool:
    os.utime(path, ns=(edit.time, edit.time), follow_symlinks=False)
    return True


@contextmanager
def regular(path: bytes, flags: int) -> Iterator[int]:
    """A file opened without following links; a pipe would wait for its other end."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise FileNotFoundError(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def create(path: bytes, edit: Edit, _root: bytes) -> bool:
    write_new(path, edit)
    return True


def write_new(path: bytes, edit: Edit) -> None:
    """A new file, there at once as a whole."""
    aside = os.path.join(os.path.dirname(path), b".%d-%d.tmp" % (os.getpid(), id(edit)))
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, content(edit.token, edit.size))
        os.fchmod(descriptor, edit.mode)
        os.utime(descriptor, ns=(edit.time, edit.time))
        os.link(aside, path)
    finally:
        os.close(descriptor)
        os.unlink(aside)


def replace(path: bytes, edit: Edit, _root: bytes) -> bool:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        return False
    aside = path[: -len(os.path.basename(path))] + b".%d.tmp" % os.getpid()
    write_new(aside, edit)
    os.replace(aside, path)
    return True


def overwrite(path: bytes, edit: Edit, _root: bytes) -> bool:
    # One write of the new length or longer: a reader sees the old, the new, or the end of the old after the new.
    with regular(path, 0) as descriptor:
        new = content(edit.token, edit.size)
        os.write(descriptor, new)
        os.ftruncate(descriptor, len(new))
    return stamp(path, edit)


def append(path: bytes, edit: Edit, _root: bytes) -> bool:
    with regular(path, os.O_APPEND) as descriptor:
        os.write(descriptor, content(edit.token, edit.size % 1000))
    return stamp(path, edit)


def truncate(path: bytes, edit: Edit, _root: bytes) -> bool:
    with regular(path, 0) as descriptor:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    return stamp(path, edit)


def empty(path: bytes, edit: Edit, _root: bytes) -> bool:
    with regular(path, os.O_TRUNC):
        pass
    return stamp(path, edit)


def quiet(path: bytes, edit: Edit, _root: bytes) -> bool:
    info = os.lstat(path)
    with regular(path, 0) as descriptor:
        new = content(edit.token, info.st_size)
        if len(new) != info.st_size:
            return False
        os.write(descriptor, new)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)
    return True


def sparse(path: bytes, edit: Edit, _root: bytes) -> bool:
    write_new(path, edit)
    with regular(path, 0) as descriptor:
        os.ftruncate(descriptor, 8 << 20)
        os.pwrite(descriptor, edit.token.encode(), 6 << 20)
    return stamp(path, edit)


def delete(path: bytes, _edit: Edit, _root: bytes) -> bool:
    os.unlink(path)
    return True


def rename(path: bytes, edit: Edit, root: bytes) -> bool:
    # Onto nothing: what is there would be lost by the user's own hand, and untraceable.
    if os.path.lexists(os.path.join(root, edit.to)):
        return False
    os.rename(path, os.path.join(root, edit.to))
    return True


def link(path: bytes, edit: Edit, root: bytes) -> bool:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    os.link(path, os.path.join(root, edit.to))
    return True


def chmod(path: bytes, edit: Edit, _root: bytes) -> bool:
    if os.path.islink(path):
        return False
    os.chmod(path, edit.mode | 0o700 if os.path.isdir(path) else edit.mode)
    return True


def chown(path: bytes, edit: Edit, _root: bytes) -> bool:
    os.chown(path, *edit.owner, follow_symlinks=False)
    return True


def touch(path: bytes, edit: Edit, _root: bytes) -> bool:
    return stamp(path, edit)


def xattr(path: bytes, edit: Edit, _root: bytes) -> bool:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    os.setxattr(path, "user.token", edit.token.encode())
    return True


def mkdir(path: bytes, _edit: Edit, _root: bytes) -> bool:
    os.mkdir(path)
    return True


def rmdir(path: bytes, _edit: Edit, _root: bytes) -> bool:
    os.rmdir(path)
    return True


def remove_tree(path: bytes, _edit: Edit, _root: bytes) -> bool:
    if os.path.islink(path):
        return False
    shutil.rmtree(path)
    return True


def symlink(path: bytes, edit: Edit, _root: bytes) -> bool:
    os.symlink(edit.to, path)
    return stamp(path, edit)


def fifo(path: bytes, _edit: Edit, _root: bytes) -> bool:
    os.mkfifo(path)
    return True


def device(path: bytes, edit: Edit, _root: bytes) -> bool:
    """The null device: none that somebody could do harm with."""
    os.mknod(path, stat.S_IFCHR | edit.mode & 0o666, os.makedev(1, 3))
    return True


def make_socket(path: bytes, _edit: Edit, _root: bytes) -> bool:
    if len(path) > 100:
        return False
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
    return True


def to_directory(path: bytes, edit: Edit, _root: bytes) -> bool:
    os.unlink(path)
    os.mkdir(path)
    write_new(os.path.join(path, b"inside"), edit)
    return True


def to_symlink(path: bytes, edit: Edit, _root: bytes) -> bool:
    os.unlink(path)
    return symlink(path, edit, b"")


def to_file(path: bytes, edit: Edit, _root: bytes) -> bool:
    if RESERVED in os.listdir(path):
        return False
    shutil.rmtree(path)
    write_new(path, edit)
    return True


EDITS = {
    **{
        edit.__name__: edit
        for edit in (create, replace, overwrite, append, truncate, empty, quiet, sparse, delete, rename, link, chmod)
    },
    **{edit.__name__: edit for edit in (chown, touch, xattr, mkdir, rmdir, remove_tree, symlink, fifo, device)},
    **{edit.__name__: edit for edit in (to_directory, to_symlink, to_file)},
    "touch_back": touch,
    "socket": make_socket,
}


def describe(root: bytes) -> list[str]:
    """A tree for people, a line a path."""
    lines = []
    for path, full in paths(root):
        node = look(full)
        if node is not None:
            said = node.content.hex()[:8] if node.kind == "f" else repr(node.content)
            lines.append(f"{node.kind} {node.mode:04o} {node.owner} {node.mtime} {node.size} {said} {path!r}")
    return lines
