# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways to what is below an element's root: held descriptors, names that are checked, the element's own directory.

Every path is bytes, relative, and walked without following a link; of paths longer than PATH_MAX a piece at a time.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from contextlib import suppress

from serversync import linux
from serversync.failure import Failure
from serversync.place import WORD

RESERVED = b".serversync"
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
THING = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# Of an element, of a run, of what a run had to keep beside what it had kept already.
NAME = re.compile(rf"{WORD.pattern}(~[0-9]+)?")
# What one call resolves at most; PATH_MAX is 4096 with the end.
PIECE = 4000


def good(path: bytes) -> bool:
    """Whether the path can only lead to something below, and not to what the runner keeps there."""
    parts = path.split(b"/")
    return b"\0" not in path and not any(part in (b"", b".", b"..", RESERVED) for part in parts)


def parts(path: bytes) -> tuple[bytes, bytes]:
    """The directory's path and the name in it: ``b"a/b/c"`` -> ``(b"a/b", b"c")``."""
    above, _slash, name = path.rpartition(b"/")
    return above, name


def reach(root: int, path: bytes, flags: int = DIRECTORY) -> int:
    """linux.open_beneath for a path of any length; raises OSError as that does."""
    if len(path) < PIECE:
        return linux.open_beneath(root, path, flags)
    held, rest = os.dup(root), path
    try:
        while len(rest) >= PIECE:
            cut = rest.rindex(b"/", 0, PIECE)
            inner = linux.open_beneath(held, rest[:cut], DIRECTORY)
            os.close(held)
            held, rest = inner, rest[cut + 1 :]
        return linux.open_beneath(held, rest, flags)
    finally:
        os.close(held)


def names_in(directory: int, name: bytes = b".") -> list[bytes]:
    """What the directory of this name holds, which a descriptor with O_PATH cannot tell."""
    held = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        with os.scandir(held) as entries:
            return [os.fsencode(entry.name) for entry in entries]
    finally:
        os.close(held)


def make(root: int, path: bytes, mode: int = 0o700) -> int:
    """Opens the directory; those of the way that are missing are made. Raises OSError: ENOTDIR, ELOOP in the way."""
    with suppress(FileNotFoundError):
        return reach(root, path)
    held = os.dup(root)
    try:
        for name in path.split(b"/"):
            with suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=held)
            inner = linux.open_beneath(held, name, DIRECTORY)
            os.close(held)
            held = inner
        return os.dup(held)
    finally:
        os.close(held)


class Directories:
    """Descriptors of directories below a held one; the most recently used ones stay open."""

    KEPT = 64

    def __init__(self, root: int, *, making: bool = False) -> None:
        self.root = root
        self.making = making
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def __getitem__(self, path: bytes) -> int:
        """Valid while fewer than KEPT others are asked for; raises OSError where there is no such directory."""
        if not path:
            return self.root
        held = self._open.get(path)
        if held is None:
            held = make(self.root, path) if self.making else reach(self.root, path)
            self._open[path] = held
            if len(self._open) > self.KEPT:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(path)
        return held

    def forget(self, path: bytes) -> None:
        """To be called when another directory may be at the path from now on."""
        for known in [known for known in self._open if known == path or known.startswith(path + b"/")]:
            os.close(self._open.pop(known))

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def stage_of(element: str, run: str) -> bytes:
    """The stage's path below the root."""
    above, _slash, name = own(element, run).rpartition(b"/")
    return b"/".join([above, b"stage", name])


def own(element: str, *rest: str) -> bytes:
    """The path below the root of what the runner keeps for the element; Failure where a name cannot be one."""
    for word in (element, *rest):
        if not NAME.fullmatch(word):
            raise Failure("bad_request", f"{word!r} is not a name for a directory")
    return b"/".join([RESERVED, *(os.fsencode(word) for word in (element, *rest))])
