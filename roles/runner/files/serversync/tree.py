# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One element's replica, held open for a run by the server that it lies on: looked at, locked, scanned, changed.

The runner holds its own replica so, and ``serve`` the partner's. Everything below happens on the held root, which no
renaming above it can lead elsewhere.
"""

from __future__ import annotations

import grp
import os
import pwd
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from serversync import linux, parcel, place, versions
from serversync.commit import Commit, Op, Result
from serversync.detect import Detection, Summary, now, probe
from serversync.entry import Entry
from serversync.failure import Failure, Stopped
from serversync.filters import Filter
from serversync.held import RESERVED, Directories, make, parts, reach
from serversync.locks import lock
from serversync.machine import machine
from serversync.marker import marker, set_marker
from serversync.parcel import Made, Parcel

CAP_CHOWN = 0
Item = tuple[bytes, bytes, bytes]


def capable(capability: int) -> bool:
    """Whether this process has the capability in effect (proc(5), CapEff)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return os.geteuid() == 0


class Tree:
    """A replica of one element; close it, or leave its ``with`` block, to release its lock."""

    def __init__(
        self,
        path: str,
        kind: str,
        *,
        element: str,
        run: str,
        writable: bool,
        look: bool,
        owner: str,
        locks: Path,
        name: bytes,
        previous: str = "",
        stopped: threading.Event | None = None,
        making: bool = True,
    ) -> None:
        """Opens what ``place.look`` has found to be a ``kind`` (directory or file).

        making: a target that is missing is made.

        name: how the runner calls the file that is the element, which may have another name on each server; element:
        the name of its directory below ``.serversync``; writable: it may be changed, so its lock is exclusive;
        look: for a plan, so nothing is made, changed or locked; previous: the element's name before it was moved;
        stopped: once it is set, whatever is being done here raises Stopped.
        """
        self.element = element
        self.run = run
        self.look = look
        self.changeable = writable and not look
        self.stopped = stopped or threading.Event()
        self.held = ExitStack()
        try:
            steps = place.split(path)
            self.only = os.fsencode(steps.pop()) if kind == "file" else None
            self.name = name
            self.root = place.open_directory(steps, make=making and writable and not look)
            self.held.callback(os.close, self.root)
            if not look:
                self.held.enter_context(lock(self.root, writable, owner, locks))
            self.previous = previous if previous and marker(self.root, element) is None else ""
            if self.previous and writable and not look:
                self.take_over(self.previous)
            info = os.fstat(self.root)
            self.facts: dict[str, Any] = {
                **probe(self.root, writable=writable and not look),
                "device": info.st_dev,
                "inode": info.st_ino,
                "machine": machine(),
                "path": path,
                "owner": capable(CAP_CHOWN),
                "account": os.geteuid(),
                "marker": marker(self.root, self.previous or element),
                "others": self.others(),
                "empty": self.only is None and self.is_empty(),
                "free": place.space(self.root),
                "time": time.time(),
                "booted": booted(),
            }
        except BaseException:
            self.held.close()
            raise
        self.detection: Detection | None = None
        self.commits: Commit | None = None

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self.commits is not None:
            self.commits.close()
        self.held.close()

    def take_over(self, previous: str) -> None:
        """Marker and versions of the element come along with its new name."""
        with suppress(FileNotFoundError):
            reserved = reach(self.root, RESERVED)
            try:
                os.rename(previous, self.element, src_dir_fd=reserved, dst_dir_fd=reserved)
                self.previous = ""
            finally:
                os.close(reserved)

    def own(self, path: bytes) -> bytes:
        """A path as it is here, at whatever place in the stage."""
        above, slash, name = path.rpartition(b"/")
        return above + slash + self.only if self.only is not None and name == self.name else path

    def common(self, path: bytes) -> bytes:
        """A path of here as the runner knows it."""
        above, slash, name = path.rpartition(b"/")
        return above + slash + self.name if self.only is not None and name == self.only else path

    # Update detection.

    def scan(
        self, known: bytes, include: list[str], exclude: list[str], xattrs: frozenset[str], expected: int
    ) -> Summary:
        self.prepare_scan(include, exclude, xattrs, expected)
        return self.scan_prepared(known)

    def prepare_scan(self, include: list[str], exclude: list[str], xattrs: frozenset[str], expected: int) -> None:
        """What of ``scan`` is done before the first look."""
        rules = None
        if (include or exclude) and self.only is None:
            rules = Filter(include, exclude)
        self.xattrs, self.expected = xattrs, expected
        self.detection = self.detecting(self.root, self.only, rules)

    def scan_prepared(self, known: bytes) -> Summary:
        summary = self.scanned.scan(known, touch=self.changeable)
        return summary._replace(problems={self.common(path): reason for path, reason in summary.problems.items()})

    def detecting(self, root: int, only: bytes | None, rules: Filter | None) -> Detection:
        return Detection(
            root, only=only, filter=rules, xattrs=self.xattrs, expected=self.expected, stopped=self.stopped
        )

    @property
    def scanned(self) -> Detection:
        if self.detection is None:
            raise Failure("protocol", "a replica was asked about its entries before it was scanned")
        return self.detection

    def digests(self) -> Iterator[tuple[bytes, bytes]]:
        yield from self.scanned.digests().items()

    def listing(self, directories: Iterable[bytes]) -> Iterator[Item]:
        """The children of these directories; of one that is gone, none."""
        for _directory, children in self.scanned.listing(directories, seen=True):
            for path, record, more in children:
                yield self.common(path), record, more

    def entries(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Entry | str | None]]:
        for path, found in self.scanned.entries(map(self.own, paths)).items():
            yield self.common(path), found

    def checksums(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Entry | str]]:
        """The entries with their contents' digest, or why there is none."""
        for path in paths:
            for found in self.scanned.checksums([self.own(path)]).values():
                yield path, found if isinstance(found, str) else found[0]._replace(digest=found[1])

    def zeros(self, paths: Iterable[bytes]) -> Iterator[bytes]:
        """Those of these files whose contents are nothing but zeros."""
        return map(self.common, self.scanned.zeros(map(self.own, paths)))

    def occupied(self, paths: Iterable[bytes]) -> int:
        """Bytes that these files take on the disk."""
        return self.scanned.occupied(map(self.own, paths))

    def attributes(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, dict[str, bytes]]]:
        for path, found in self.scanned.attributes(map(self.own, paths)).items():
            yield self.common(path), found

    # Contents, for what carries them within this process.

    def reading(self, path: bytes) -> int:
        """A descriptor of the file's contents; raises OSError, ELOOP where it is a link."""
        return reach(self.root, self.own(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    def receiving(self, path: bytes) -> int:
        """A descriptor of a new file in the stage, at that path there; raises OSError."""
        above, name = parts(self.own(path))
        directory = make(self.committing.stage, above) if above else os.dup(self.committing.stage)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(name, flags, 0o600, dir_fd=directory)
        finally:
            os.close(directory)

    def give(self, files: Iterable[tuple[bytes, bytes]], *, deflate: bool = False) -> Generator[Parcel, None, None]:
        """See parcel.read; deflate: parcels that travel do so smaller."""
        yield from self.unstopped(parcel.read(self.root, files))

    def take(self, parcels: Iterable[Parcel], *, deflate: bool = False) -> Iterator[Callable[[], list[Made]]]:
        """For each what tells what it made in the stage; see parcel.write, and ``give``."""
        directories = Directories(self.committing.stage, making=True)
        try:
            for one in self.unstopped(parcels):
                yield partial(list, list(parcel.write(directories, one, self.committing.preserve)))
        finally:
            directories.close()

    def unstopped(self, parcels: Iterable[Parcel]) -> Iterator[Parcel]:
        for one in parcels:
            if self.stopped.is_set():
                raise Stopped
            yield one

    # Propagation.

    def prepare(self, preserve: frozenset[str]) -> None:
        """Makes the stage."""
        self.check_changeable()
        self.commits = Commit(self.root, self.element, self.run, preserve)
        self.commits.prepare()

    def staged(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Entry | str | None]]:
        """As ``entries``, of paths in the stage."""
        stage = self.detecting(self.committing.stage, None, None)
        for path, found in stage.entries(map(self.own, paths)).items():
            yield self.common(path), found

    @property
    def committing(self) -> Commit:
        if self.commits is None:
            raise Failure("protocol", "a replica was asked to change before its stage was made")
        return self.commits

    def commit(self, ops: Iterable[Op]) -> Iterator[Result]:
        named = (op._replace(path=self.own(op.path), staged=self.own(op.staged), to=self.own(op.to)) for op in ops)
        for result in self.committing.carry_out(self.until_stopped(named)):
            yield result._replace(path=self.common(result.path))

    def order(self, ops: Iterable[Op], behind: int = 0) -> Iterator[Result]:
        """As ``commit``; all is done when it returns. behind: of a ``PartnerTree``; here parcels are not under way."""
        return iter(list(self.commit(ops)))

    def set_times(self, times: Iterable[tuple[bytes, int]]) -> None:
        """See ``Commit.set_times``."""
        self.committing.set_times(times)

    def answered(self) -> None:
        """Nothing is asked of it whose answer is not waited for; of a ``PartnerTree`` there is."""

    def until_stopped(self, ops: Iterable[Op]) -> Iterator[Op]:
        for op in ops:
            if self.stopped.is_set():
                raise Stopped
            yield op

    def finish(self) -> None:
        self.committing.finish()

    def sync(self) -> None:
        """Everything written here is on the disk, or OSError."""
        descriptor = linux.open_beneath(self.root, b"", os.O_RDONLY | os.O_DIRECTORY)
        try:
            linux.syncfs(descriptor)
        finally:
            os.close(descriptor)

    def settle(self) -> int:
        """Everything written here is on the disk, or OSError; the moment, as in a Summary, from which on that is so.

        Until then who has a file mapped may write to it without its times moving, and from then on no more.
        """
        self.sync()
        return now(self.root, self.changeable)

    def check_changeable(self) -> None:
        """What was opened to be looked at or read is never written, whoever asks."""
        if not self.changeable:
            raise Failure("read_only", f"{self.facts['path']} was opened for reading only")

    def mark(self, content: dict[str, Any]) -> None:
        self.check_changeable()
        set_marker(self.root, self.element, content)

    def is_empty(self) -> bool:
        """Whether there is nothing but what the runner keeps for itself."""
        try:
            return all(entry.name == RESERVED.decode() for entry in place.through(self.root).iterdir())
        except PermissionError:
            # The scan will say so.
            return False

    def others(self) -> list[dict[str, Any]]:
        """The markers of other elements that have this replica as their target."""
        found = []
        try:
            reserved = reach(self.root, RESERVED)
        except FileNotFoundError:
            return []
        try:
            names = sorted(entry.name for entry in place.through(reserved).iterdir())
        except PermissionError:
            # A pure source may keep what is its own account's closed to this one.
            return []
        finally:
            os.close(reserved)
        for name in names:
            own = name in (self.element, self.previous)
            content = marker(self.root, name) if not own and place.WORD.fullmatch(name) else None
            if content:
                found.append({**content, "element": name})
        return found

    # Versions.

    def prune(self, keep: int, most: int, now: float) -> list[str]:
        """Drops versions older than ``keep`` s at ``now``, then the oldest beyond ``most`` bytes; returns problems."""
        self.check_changeable()
        return versions.prune(self.root, self.element, keep, most, now, self.run).problems

    def versions(self, path: bytes | None) -> Iterator[dict[str, Any]]:
        """What JSON can carry of them."""
        for version in versions.versions(self.root, self.element, None if path is None else self.own(path)):
            yield {
                "run": version["run"],
                "path": os.fsdecode(self.common(version["path"])),
                "bytes": version["entry"].size,
                "when": version["when"],
            }

    def restore(self, path: bytes, run: str) -> Iterator[Result]:
        self.check_changeable()
        for result in versions.restore(self.root, self.element, self.own(path), run, self.run):
            yield result._replace(path=self.common(result.path))


def booted() -> float:
    """When this server was started, seconds since the epoch by its clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def names(users: Iterable[int], groups: Iterable[int]) -> tuple[dict[int, str], dict[int, str]]:
    """The names of these numbers on this server; one without a name is left out."""
    found_users, found_groups = {}, {}
    for number in users:
        try:
            found_users[number] = pwd.getpwuid(number).pw_name
        except KeyError:
            continue
    for number in groups:
        try:
            found_groups[number] = grp.getgrgid(number).gr_name
        except KeyError:
            continue
    return found_users, found_groups


def numbers(users: Iterable[str], groups: Iterable[str]) -> tuple[dict[str, int], dict[str, int]]:
    """The numbers of these names on this server; a name that it does not know is left out."""
    found_users, found_groups = {}, {}
    for name in users:
        try:
            found_users[name] = pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    for name in groups:
        try:
            found_groups[name] = grp.getgrnam(name).gr_gid
        except KeyError:
            continue
    return found_users, found_groups
