# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trees to measure with: made from a seed, changed by a seed, and told apart by a hash of their own."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
from collections import defaultdict
from pathlib import Path

EPOCH = 1_700_000_000
POOL = 1 << 20


def grow(root: Path, files: int, directories: int, seed: int, sizes: tuple[int, int] = (200, 1000)) -> None:
    """So many files, evenly over so many directories (a hundred of them in each directory above; 0: all in root)."""
    rng = random.Random(seed)
    pool = rng.randbytes(POOL)
    root.mkdir(parents=True, exist_ok=True)
    for number in range(directories or 1):
        directory = root / f"d{number // 100:04}" / f"e{number:06}" if directories else root
        directory.mkdir(parents=True, exist_ok=True)
        held = os.open(directory, os.O_RDONLY)
        for file in range(number * files // (directories or 1), (number + 1) * files // (directories or 1)):
            write(f"f{file:07}", pool, rng, sizes, held)
        os.close(held)


def write(name: str, pool: bytes, rng: random.Random, sizes: tuple[int, int], held: int | None = None) -> None:
    """A file of a random piece of the pool and a time that says nothing about now, and is near no whole second."""
    start, size = rng.randrange(POOL), rng.randint(*sizes)
    when = (EPOCH + rng.randrange(10**7)) * 10**9 + rng.randrange(10**8, 9 * 10**8)
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=held)
    os.write(file, (pool + pool)[start : start + size])
    os.utime(file, ns=(when, when))
    os.close(file)


def names(root: Path) -> list[str]:
    """The paths of all files, in an order that depends on nothing else."""
    found = []
    for directory, inner, files in os.walk(root):
        if ".serversync" in inner:
            inner.remove(".serversync")
        found += [os.path.join(directory, name) for name in files]
    return sorted(found)


def edit(root: Path, seed: int, *, changed: float, deleted: float = 0.0, clustered: float = 0.0) -> int:
    """Writes a share of the files anew and deletes another; ``clustered``: all in this share of the directories.

    Returns how many paths it touched.
    """
    rng = random.Random(seed)
    pool = rng.randbytes(POOL)
    every = names(root)
    chosen = every
    if clustered:
        directories = sorted({os.path.dirname(path) for path in every})
        those = set(rng.sample(directories, max(1, round(len(directories) * clustered))))
        chosen = [path for path in every if os.path.dirname(path) in those]
    writes, deletions = round(len(every) * changed), round(len(every) * deleted)
    # A cluster can be smaller than the share of the whole: then all of it, in the same proportion.
    scale = min(1.0, len(chosen) / (writes + deletions))
    touched = rng.sample(chosen, int((writes + deletions) * scale))
    for path in touched[: int(writes * scale)]:
        write(path, pool, rng, (200, 1000))
    for path in touched[int(writes * scale) :]:
        os.unlink(path)
    return len(touched)


def decorate(root: Path, seed: int) -> None:
    """Every tenth file gets an extended attribute, every tenth an ACL, every hundredth a second name."""
    rng = random.Random(seed)
    every = names(root)
    some = rng.sample(every, len(every) // 5)
    for path in some[: len(some) // 2]:
        os.setxattr(path, "user.origin", b"line %d" % rng.randrange(100))
    with_acl = some[len(some) // 2 :]
    subprocess.run(
        ["xargs", "-0", "setfacl", "-m", "u:1:r"], input="\0".join(with_acl).encode(), check=True, capture_output=True
    )
    for path in rng.sample(every, len(every) // 100):
        os.link(path, f"{path}.second")


def bump(root: Path) -> None:
    """Moves every file's ctime and nothing else, as a backup by hard links does."""
    for path in names(root):
        os.chmod(path, stat.S_IMODE(os.lstat(path).st_mode))


def fingerprint(root: Path, *, extended: bool = False, grain: int = 1) -> str:
    """Hash of all paths with kind, mode, owner, group, time (of directories none), content or link text.

    ``extended``: ACLs, extended attributes and hard links, too; grain: of the times, in ns. Neither the runner nor
    rsync has a part in it.
    """
    whole = hashlib.blake2b()
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for directory, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if name != ".serversync")
        for name in sorted(inner + files):
            path = os.path.join(directory, name)
            info = os.lstat(path)
            below = os.path.relpath(path, root)
            time = 0 if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns // grain
            parts = [os.fsencode(below), b"%o %d %d %d" % (info.st_mode, info.st_uid, info.st_gid, time)]
            if stat.S_ISLNK(info.st_mode):
                parts.append(os.fsencode(os.readlink(path)))
            elif stat.S_ISREG(info.st_mode):
                with open(path, "rb", buffering=0) as stream:
                    parts.append(hashlib.file_digest(stream, "blake2b").digest())
            if extended:
                if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
                    groups[info.st_dev, info.st_ino].append(below)
                for attribute in sorted(os.listxattr(path, follow_symlinks=False)):
                    parts += [os.fsencode(attribute), os.getxattr(path, attribute, follow_symlinks=False)]
            for part in parts:
                whole.update(b"%d:" % len(part) + part)
    for group in sorted(sorted(group) for group in groups.values()):
        whole.update(os.fsencode("\0".join(group)))
    return whole.hexdigest()
