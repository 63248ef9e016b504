# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts staged things into the tree, path by path, and what they displace into versions. Runs where the tree is.

Nothing is displaced that has not been looked at: a new name is taken only if it is free, and what an exchange brought
out is compared with what was planned and changed back if it is something else. What comes waits in versions under the
name of what it will displace, so at no instant, however the process ends, is there content that is neither in the tree
nor in versions. Metadata is set before a thing becomes visible.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from typing import NamedTuple

from serversync import linux, metadata, place, renames
from serversync.entry import KINDS, Entry
from serversync.failure import Failure
from serversync.held import DIRECTORY, RESERVED, THING, Directories, good, make, names_in, own, parts, reach
from serversync.metadata import Problem
from serversync.renames import handle, lstat

CODES = {
    errno.ENOENT: "moved",
    errno.ENOTDIR: "moved",
    errno.ELOOP: "moved",
    errno.EEXIST: "moved",
    errno.EAGAIN: "moved",
    errno.ENOTEMPTY: "not_empty",
    errno.EXDEV: "mount",
    errno.EBUSY: "busy",
    errno.ETXTBSY: "busy",
    errno.EACCES: "not_permitted",
    errno.EPERM: "not_permitted",
    errno.EROFS: "not_permitted",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.ENAMETOOLONG: "name",
    errno.EILSEQ: "name",
}
# Problems that a later attempt, after another look, may not have.
TRANSIENT = frozenset({"moved", "not_staged", "not_empty", "busy", "no_space"})
# Problems of something that is in place all the same.
FLAWS = frozenset({"owner", "attributes"})


class Op(NamedTuple):
    """One thing to do.

    do: ``put`` (the staged thing, no directory, becomes the path), ``tree`` (the same of a directory), ``mkdir``,
    ``symlink``, ``special`` (fifo, socket, device), ``link`` (the path becomes another name of ``to``), ``meta`` (the
    path's metadata become the wanted ones), ``delete`` (into versions; a directory only if it is empty), ``aside`` (the
    path gets the free name ``to``), ``drop`` (what is staged there, no directory, goes: it shall not become visible).
    expect: what is at the path as it was last looked at, None: nothing; want: what is to be there, in this server's
    owner numbers; attributes: all preserved attributes that it is to have, None: leave them as they are.
    staged: path below the stage. stage: ``mkdir``, ``symlink``, ``special``, ``link`` (``to`` too), ``meta`` and
    ``drop`` act there, ``path`` being below it and ``expect`` of no account. A directory made there has mode 0700 until
    its ``meta``; one made in the tree by an ordinary user lets its owner write until then.
    """

    do: str
    path: bytes
    expect: Entry | None = None
    want: Entry | None = None
    attributes: dict[str, bytes] | None = None
    staged: bytes = b""
    to: bytes = b""
    stage: bool = False


class Result(NamedTuple):
    """What came of it. A problem not in FLAWS: the path is as it was (what another process did there aside).

    entry: as read back, without xattrs and digest; of ``aside`` at the new name; None: nothing there, or a problem.
    version: where the displaced thing is now, relative to the root; empty: nothing was displaced.
    """

    path: bytes
    problem: Problem | None = None
    entry: Entry | None = None
    version: bytes = b""


class Refused(Exception):
    """The thing is not done, for a reason that the kernel did not give."""

    def __init__(self, code: str, text: str, version: bytes = b"") -> None:
        super().__init__(text)
        self.problem = Problem(code, text)
        self.version = version


# Time stamps that a file system rounds are at most this far from what was set, in ns.
COARSEST = 2_000_000_000
# Of a file of as many bytes a part is worth keeping, in the directory of the element's own that rsync is told, too.
LARGE = 1 << 20
PARTIAL = b"partial"
# What rsync calls a file until it is whole.
TEMPORARY = re.compile(r"^\.(.+)\.[A-Za-z0-9]{6}$", re.DOTALL)
MOVED = "has changed since it was looked at"


class Slot(NamedTuple):
    """A name in versions: held directory, name there, the path below the root."""

    directory: int
    name: bytes
    path: bytes


class Placed(NamedTuple):
    """coming: what was to be put, just before; version: of what was displaced; copied: a copy was put."""

    coming: os.stat_result
    version: bytes = b""
    copied: bool = False


class Commit:
    """The target's side of one attempt of an element, whose lock the caller holds.

    root: descriptor (O_PATH suffices) of the element's directory, of a file the one above; element, run: names for
    directories; preserve: option values. Use: ``prepare``, fill the stage, ``carry_out`` a batch, and so on, ``sync``,
    ``finish``; or ``close`` where it goes wrong. No other method may be used before ``prepare``.
    """

    def __init__(self, root: int, element: str, run: str, preserve: frozenset[str]) -> None:
        self.root = root
        self.element = element
        self.run = run
        self.preserve = preserve
        self.home = own(element)
        own(element, run)
        self._held = ExitStack()
        # Of an inode with several names: what an act of ours made of its ctime, and how it was before the first one.
        self._touched: dict[int, int] = {}
        self._found: dict[int, os.stat_result] = {}

    def prepare(self) -> None:
        """Makes the element's own directories and the stage. What dead runs left there is removed.

        Raises Failure (``not_writable``, ``no_space``) where they cannot be made or belong to somebody else.
        """
        try:
            self._prepare()
        except OSError as error:
            self.close()
            code = CODES.get(error.errno or 0)
            message = f"{os.fsdecode(self.home)} cannot be made ready ({error.strerror})"
            if code == "no_space":
                raise Failure(code, f"{message}; make room there", transient=True) from error
            raise Failure("not_writable", f"{message}; check it and the account's rights") from error

    def _prepare(self) -> None:
        run = os.fsencode(self.run)
        self.base = home = self._keep_open(make(self.root, self.home))
        self.stages = stages = self._keep_open(make(home, b"stage"))
        trash = self._keep_open(make(home, b"trash"))
        for number, name in enumerate(names_in(stages)):
            renames.move(stages, name, trash, b"%b.%d" % (run, number))
        problems = renames.remove_all(trash, keep=partial(self._salvage, home))
        if problems:
            raise problems[0]
        self._cleanse(home)
        versions = self._keep_open(make(home, b"versions"))
        # What is made here must not inherit an ACL that is meant for the tree.
        for directory in (home, stages, versions):
            with suppress_errno(errno.ENODATA, errno.ENOTSUP):
                os.removexattr(f"/proc/self/fd/{directory}", "system.posix_acl_default")
        self.stage = self._keep_open(make(stages, run))
        self.made = self._keep_open(make(stages, run + b"~made"))
        self._own_doors(os.fstat(self.stage).st_uid, home, stages, versions, trash)
        self.names = map(b"%d".__mod__, count())
        self._live = Directories(self.root)
        self._staged = Directories(self.stage)
        self._versions = Directories(versions, making=True)
        for cache in (self._live, self._staged, self._versions):
            self._held.callback(cache.close)

    def _salvage(self, home: int, directory: int, name: str) -> bool:
        """Keeps a large file that a dead run was staging, whole or not, for rsync to go on from: it compares sums."""
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(info.st_mode) or info.st_size < LARGE or info.st_nlink > 1:
            return False
        held = make(home, PARTIAL)
        try:
            kept = TEMPORARY.sub(r"\1", name)
            with suppress(FileNotFoundError):
                if os.stat(kept, dir_fd=held, follow_symlinks=False).st_size >= info.st_size:
                    return False
            os.rename(name, kept, src_dir_fd=directory, dst_dir_fd=held)
        finally:
            os.close(held)
        return True

    def _cleanse(self, home: int) -> None:
        """Parts are contents and nothing else: rsync goes on in the file itself, which keeps whatever else it has.

        What cannot be made so goes, and so does what an rsync of a dead run has not let go of: it would write into what
        is in the tree by then.
        """
        with suppress(FileNotFoundError), handle(home, PARTIAL, DIRECTORY) as parts_held:
            for name in names_in(parts_held):
                if not bare(parts_held, name):
                    renames.remove(parts_held, name)

    def _own_doors(self, owner: int, *directories: int) -> None:
        """Another owner could exchange what is staged; the one of what was just made is this process's own here."""
        with handle(self.root, RESERVED, DIRECTORY) as reserved:
            for directory in (reserved, *directories):
                info = os.fstat(directory)
                if info.st_uid != owner:
                    os.chown(f"/proc/self/fd/{directory}", owner, -1)
                if stat.S_IMODE(info.st_mode) != 0o700:
                    place.through(directory).chmod(0o700)

    def _keep_open(self, descriptor: int) -> int:
        self._held.callback(os.close, descriptor)
        return descriptor

    def sync(self) -> None:
        """All that was done is on the disk; raises OSError where it is not."""
        with handle(self.stage, b".", os.O_RDONLY | os.O_DIRECTORY) as held:
            linux.syncfs(held)

    def set_times(self, times: Iterable[tuple[bytes, int]]) -> None:
        """The directories at these paths get these times (ns); empty: the root.

        They decide nothing: one that is gone, or whose time may not be set, stays as it is.
        """
        for path, mtime in times:
            with suppress(OSError):
                held = reach(self.root, path)
                try:
                    metadata.set_time(held, mtime)
                finally:
                    os.close(held)

    def finish(self) -> None:
        """Removes the stage and closes; everything has come, so that parts of files are of no use any more."""
        with self._held:
            for name in (os.fsencode(self.run), os.fsencode(self.run) + b"~made"):
                renames.remove(self.stages, name)
            renames.remove(self.base, PARTIAL)

    def close(self) -> None:
        """Lets go of the directories; the stage stays, as after a kill. May be called at any time, and again."""
        self._held.close()

    def carry_out(self, ops: Iterable[Op]) -> Iterator[Result]:
        """One result per op, in order; what the first ``put`` or ``tree`` finds in the stage is synced before it.

        All that a call's ops need has to be in the stage when the first of them is asked for. The paths that two ops of
        a call displace or make may depend on one another (a directory, then what is in it).
        """
        synced = False
        try:
            for op in ops:
                if op.do in ("put", "tree") and not synced:
                    self.sync()
                    synced = True
                try:
                    yield self._carry(op)
                except Refused as refusal:
                    yield Result(op.path, refusal.problem, None, refusal.version)
                except OSError as error:
                    yield Result(op.path, Problem(CODES.get(error.errno or 0, "io"), reason(error)))
        finally:
            self._live.close()
            self._staged.close()

    def _carry(self, op: Op) -> Result:
        root_itself = op.do == "meta" and not op.stage and not op.path
        named = [op.path] * (not root_itself) + [op.staged] * (op.do in ("put", "tree"))
        named += [op.to] * (op.do in ("link", "aside"))
        if not all(good(path) for path in named):
            raise Refused("bad_path", "is not a path below the element")
        if op.do == "meta":
            return self._meta(op)
        if op.do == "delete":
            return self._delete(op)
        if op.do == "aside":
            return self._aside(op)
        if op.do in ("put", "tree"):
            return self._install_staged(op)
        if op.stage:
            above, name = parts(op.path)
            directory = self._staged[above]
            if op.do == "drop":
                os.unlink(name, dir_fd=directory)
                return Result(op.path)
            self._make(op, directory, name)
            with handle(directory, name) as held:
                problems = [] if op.do in ("link", "mkdir") else self._dress(op, held)
                return self._done(op, held, problems)
        name = next(self.names)
        try:
            self._make(op, self.made, name)
        except OSError as error:
            if op.do != "link" or error.errno != errno.EXDEV:
                raise
            return self._link_near(op)
        try:
            with handle(self.made, name) as held:
                problems = [] if op.do == "link" else self._dress(op, held)
                if op.do == "link" and self._already(op, held):
                    return self._done(op, held, problems)
                placed = self._install(op, self.made, name, held)
                return self._done(op, held, problems, placed)
        finally:
            renames.remove(self.made, name)

    def _link_near(self, op: Op) -> Result:
        """Where the stage is on another file system than the file that is to have another name."""
        above, leaf = parts(op.path)
        directory = self._live[above]
        with self._near(directory) as near:
            self._link(op, near, leaf)
            with handle(near, leaf) as held:
                if self._already(op, held):
                    return self._done(op, held, [])
                coming = os.fstat(held)
                if op.expect is None:
                    self._install_new(near, leaf, directory, leaf)
                    return self._done(op, held, [], Placed(coming))
                with self._looked_at(op, directory, leaf) as live:
                    version = self._replace_in_steps(op, near, leaf, directory, leaf, live, False)
                return self._done(op, held, [], Placed(coming, version))

    def _install_staged(self, op: Op) -> Result:
        above, name = parts(op.staged)
        want = wanted(op)
        if (op.do == "tree") != (want.kind == "d"):
            raise Refused("bad_request", f"{op.do} of the kind {want.kind}")
        try:
            directory = self._staged[above]
            held = os.open(name, THING, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            raise Refused("not_staged", f"has not arrived ({reason(error)})") from error
        try:
            info = os.fstat(held)
            if KINDS[stat.S_IFMT(info.st_mode)] != want.kind or (want.kind == "f" and info.st_size != want.size):
                raise Refused("not_staged", "did not arrive as planned")
            problems = self._dress(op, held)
            placed = self._install(op, directory, name, held)
            if op.do == "tree":
                self._staged.forget(op.staged)
                self._narrow(op, held, placed)
            return self._done(op, held, problems, placed)
        finally:
            os.close(held)

    def bring_back(self, op: Op, directory: int, name: bytes) -> Result:
        """Like ``put``, of what has the name in the held directory, which is on the same file system."""
        try:
            with handle(directory, name) as held:
                placed = self._install(op, directory, name, held)
                return self._done(op, held, [], placed)
        except Refused as refusal:
            return Result(op.path, refusal.problem, None, refusal.version)
        except OSError as error:
            return Result(op.path, Problem(CODES.get(error.errno or 0, "io"), reason(error)))

    def _narrow(self, op: Op, held: int, placed: Placed) -> None:
        """Now that it need not be moved any more the directory may be one that its owner cannot write in."""
        mode = metadata.wanted_mode(os.fstat(held), wanted(op), self.preserve, op.expect)
        if placed.copied:
            above, leaf = parts(op.path)
            with handle(self._live[above], leaf, DIRECTORY) as copy:
                metadata.set_mode(copy, mode)
        metadata.set_mode(held, mode)

    def _make(self, op: Op, directory: int, name: bytes) -> None:
        if op.do == "link":
            self._link(op, directory, name)
        elif op.do == "mkdir":
            os.mkdir(name, 0o700, dir_fd=directory)
        elif op.do == "symlink":
            os.symlink(wanted(op).link, name, dir_fd=directory)
        elif op.do == "special":
            kind = next((kind for kind, letter in KINDS.items() if letter == wanted(op).kind), 0)
            if kind not in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR):
                raise Refused("bad_request", f"special of the kind {wanted(op).kind}")
            os.mknod(name, kind | 0o600, wanted(op).rdev, dir_fd=directory)
        else:
            raise Refused("bad_request", f"{op.do} is not known")

    def _link(self, op: Op, directory: int, name: bytes) -> None:
        above, other = parts(op.to)
        source = (self._staged if op.stage else self._live)[above]
        os.link(other, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        info, want = lstat(directory, name), wanted(op)
        self._note(info)
        found = (KINDS[stat.S_IFMT(info.st_mode)], info.st_size)
        if found != (want.kind, want.size):
            os.unlink(name, dir_fd=directory)
            raise Refused("moved", f"{os.fsdecode(op.to)}, which it is to be a name of, {MOVED}")

    def _already(self, op: Op, held: int) -> bool:
        """Whether the path is a name of that inode already."""
        above, name = parts(op.path)
        with suppress(FileNotFoundError):
            return os.path.samestat(lstat(self._live[above], name), os.fstat(held))
        return False

    def _dress(self, op: Op, held: int) -> list[Problem]:
        """Metadata of what is not visible yet. A directory stays such that its owner can fill and move it."""
        want = wanted(op)
        fillable = stat.S_IRWXU if want.kind == "d" and os.geteuid() != 0 else 0
        return metadata.apply(held, want, op.attributes, self.preserve, op.expect, spare=fillable)

    def _done(self, op: Op, held: int, problems: list[Problem], placed: Placed | None = None) -> Result:
        """The entry of what was put: where somebody has written it since, as it was before it became visible."""
        info = os.fstat(held)
        if placed and placed.copied:
            above, leaf = parts(op.path)
            info = lstat(self._live[above], leaf)
        self._note(info)
        if placed and not stat.S_ISDIR(info.st_mode) and not same(Entry.of(placed.coming), info):
            info = placed.coming
        link = os.readlink(b"", dir_fd=held) if stat.S_ISLNK(info.st_mode) else b""
        return Result(
            op.path, problems[0] if problems else None, Entry.of(info, link), placed.version if placed else b""
        )

    def _note(self, info: os.stat_result) -> None:
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            self._touched[info.st_ino] = info.st_ctime_ns

    def _check(self, op: Op, info: os.stat_result) -> None:
        """As expected before anything is done: nothing about the path has moved but what this run did to it."""
        assert op.expect
        ours = self._ours(info)
        as_seen = ours or info.st_ctime_ns == op.expect.ctime or stat.S_ISDIR(info.st_mode)
        alike = same(op.expect, info) or (ours and same(op.expect, self._found.get(info.st_ino, info)))
        if op.expect.inode != info.st_ino or not as_seen or not alike:
            raise Refused("moved", MOVED)
        if info.st_nlink > 1:
            self._found.setdefault(info.st_ino, info)

    def _ours(self, info: os.stat_result) -> bool:
        """Whether the last to do anything to the inode was this run, by another name of it."""
        return self._touched.get(info.st_ino) == info.st_ctime_ns

    def _install(self, op: Op, source: int, name: bytes, held: int) -> Placed:
        """What is ``held`` moves from where it waits to its path."""
        above, leaf = parts(op.path)
        directory = self._live[above]
        coming = os.fstat(held)
        if op.expect is None:
            return Placed(coming, copied=not self._install_new(source, name, directory, leaf))
        with self._looked_at(op, directory, leaf) as live:
            copied = False
            try:
                version = self._exchange(op, source, name, coming, directory, leaf, live)
            except OSError as error:
                if error.errno not in (errno.EXDEV, *renames.LACKING):
                    raise
                copied = error.errno == errno.EXDEV
                version = self._replace_in_steps(op, source, name, directory, leaf, live, copied)
            self._note(os.fstat(live))
            self._live.forget(op.path)
            return Placed(coming, version, copied)

    def _install_new(self, source: int, name: bytes, directory: int, leaf: bytes) -> bool:
        """Whether the very thing is there now, no copy."""
        try:
            return renames.move(source, name, directory, leaf)
        except FileExistsError as error:
            found = "something has been made there since it was looked at"
            if stat.S_ISDIR(lstat(directory, leaf).st_mode):
                found = "a directory is in its place, which holds excluded files or was made since; move it away"
            raise Refused("moved", found) from error

    @contextmanager
    def _looked_at(self, op: Op, directory: int, leaf: bytes) -> Iterator[int]:
        try:
            live = os.open(leaf, THING, dir_fd=directory)
        except FileNotFoundError as error:
            raise Refused("moved", "has gone since it was looked at") from error
        try:
            self._check(op, os.fstat(live))
            yield live
        finally:
            os.close(live)

    def _exchange(
        self, op: Op, source: int, name: bytes, coming: os.stat_result, directory: int, leaf: bytes, live: int
    ) -> bytes:
        slot = self._keep(op.path, lambda inner, free: renames.move(source, name, inner, free))
        try:
            linux.rename(slot.directory, slot.name, directory, leaf, linux.RENAME_EXCHANGE)
        except OSError as error:
            renames.move(slot.directory, slot.name, source, name)
            if error.errno == errno.ENOENT:
                raise Refused("moved", "has gone since it was looked at") from error
            raise
        if self._came_out(op, lstat(slot.directory, slot.name), live):
            if not stat.S_ISDIR(os.fstat(live).st_mode) or not names_in(slot.directory, slot.name):
                return slot.path
            refusal = Refused("not_empty", "is a directory that is not empty")
        else:
            refusal = Refused("moved", MOVED)
        refusal.version = self._exchange_back(slot, source, name, coming, directory, leaf)
        raise refusal

    def _exchange_back(
        self, slot: Slot, source: int, name: bytes, coming: os.stat_result, directory: int, leaf: bytes
    ) -> bytes:
        """Empty, or where something is that could not be put back: its place has been taken a second time."""
        try:
            linux.rename(slot.directory, slot.name, directory, leaf, linux.RENAME_EXCHANGE)
        except FileNotFoundError:
            try:
                renames.move(slot.directory, slot.name, directory, leaf)
            except FileExistsError:
                return slot.path
            return b""
        if unwritten(coming, lstat(slot.directory, slot.name)):
            renames.move(slot.directory, slot.name, source, name)
            return b""
        return slot.path

    def _came_out(self, op: Op, out: os.stat_result, live: int) -> bool:
        """Whether what was displaced is what was looked at. Its ctime moves with the rename."""
        assert op.expect
        return os.path.samestat(out, os.fstat(live)) and same(op.expect, out)

    def _replace_in_steps(
        self, op: Op, source: int, name: bytes, directory: int, leaf: bytes, live: int, crossing: bool
    ) -> bytes:
        """Where the kernel cannot exchange the two: what is there is kept in versions first, then replaced.

        crossing: they are on different file systems; then the new thing is copied next to the path before. On a file
        system without exchange, what somebody else moves there between the last look and the rename is lost.
        """
        before = os.fstat(live)
        with ExitStack() as held:
            if crossing:
                near = held.enter_context(self._near(directory))
                renames.move(source, name, near, leaf)
                source, name = near, leaf
            if stat.S_ISDIR(before.st_mode):
                version = self._delete_directory(op.path, directory, leaf, before).version
                renames.move(source, name, directory, leaf)
                return version
            slot = self._keep(op.path, lambda inner, free: renames.keep(directory, leaf, inner, free))
            try:
                self._take_over(op, source, name, directory, leaf, live)
            except (OSError, Refused):
                self._drop(slot, directory, leaf, live)
                raise
            return slot.path

    def _take_over(self, op: Op, source: int, name: bytes, directory: int, leaf: bytes, live: int) -> None:
        """What is at the path is in versions already; raises where it has changed since, and leaves it."""
        if not self._came_out(op, lstat(directory, leaf), live):
            raise Refused("moved", MOVED)
        coming = lstat(source, name)
        try:
            linux.rename(source, name, directory, leaf, linux.RENAME_EXCHANGE)
        except OSError as error:
            if error.errno not in renames.LACKING:
                raise
        else:
            if self._came_out(op, lstat(source, name), live):
                os.unlink(name, dir_fd=source)
                return
            try:
                linux.rename(source, name, directory, leaf, linux.RENAME_EXCHANGE)
            except FileNotFoundError as error:
                raise Refused("moved", MOVED, self._give_back(op, source, name, directory, leaf)) from error
            if unwritten(coming, lstat(source, name)):
                raise Refused("moved", MOVED)
            # A second edit came out.
            kept = self._keep(op.path, lambda inner, free: renames.move(source, name, inner, free))
            raise Refused("moved", MOVED, kept.path)
        if stat.S_ISDIR(coming.st_mode):
            os.unlink(leaf, dir_fd=directory)
            renames.move(source, name, directory, leaf)
        else:
            os.rename(name, leaf, src_dir_fd=source, dst_dir_fd=directory)

    @contextmanager
    def _near(self, directory: int) -> Iterator[int]:
        """A directory of ours on the file system of a live one: inside, and invisible as all of that name."""
        name = os.fsencode(self.element) + b"~near"
        with suppress(FileExistsError):
            os.mkdir(RESERVED, 0o700, dir_fd=directory)
        try:
            with handle(directory, RESERVED, DIRECTORY) as reserved:
                renames.remove(reserved, name)
                os.mkdir(name, 0o700, dir_fd=reserved)
                try:
                    with handle(reserved, name, DIRECTORY) as near:
                        yield near
                finally:
                    renames.remove(reserved, name)
        finally:
            with suppress_errno(errno.ENOTEMPTY, errno.EEXIST):
                os.rmdir(RESERVED, dir_fd=directory)

    def _keep(self, path: bytes, put: Callable[[int, bytes], object]) -> Slot:
        """Lets ``put`` fill the path's place in versions, the first that is free: RUN, RUN~1, ..."""
        above, name = parts(path)
        for number in range(1000):
            run = os.fsencode(self.run) + (b"~%d" % number if number else b"")
            try:
                directory = self._versions[run + b"/" + above if above else run]
                put(directory, name)
            except OSError as error:
                # Taken, or something that is no directory lies where one is needed.
                if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP):
                    raise
                continue
            return Slot(directory, name, b"/".join([self.home, b"versions", run, path]))
        raise Refused("io", "has no free place in versions")

    def _remember(self, path: bytes, info: os.stat_result) -> Slot:
        """Keeps the owner and the mode of a directory that goes; its owner can always enter what is kept."""

        def put(directory: int, name: bytes) -> None:
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=directory)
            with handle(directory, name, DIRECTORY) as held:
                metadata.apply(held, Entry.of(info), None, renames.ALL, spare=stat.S_IRWXU)

        return self._keep(path, put)

    def _meta(self, op: Op) -> Result:
        above, name = parts(op.path)
        if op.stage:
            with handle(self._staged[above], name) as held:
                return self._done(op, held, metadata.apply(held, wanted(op), op.attributes, self.preserve))
        expect = expected(op)
        with self._looked_at(op, self._live[above], name or b".") as held:
            info = os.fstat(held)
            if self._ours(info):
                expect = Entry.of(info)
            problems = metadata.apply(held, wanted(op), op.attributes, self.preserve - {"times"}, expect)
            # Setting the time must not hide that somebody has written meanwhile, nor the result call it ours.
            written(expect, os.fstat(held))
            if "times" in self.preserve:
                metadata.set_time(held, wanted(op).mtime)
                expect = expect._replace(mtime=wanted(op).mtime)
            result = self._done(op, held, problems)
            written(expect, os.fstat(held), COARSEST)
            return result

    def _delete(self, op: Op) -> Result:
        above, name = parts(op.path)
        directory = self._live[above]
        expected(op)
        with self._looked_at(op, directory, name) as live:
            info = os.fstat(live)
            if stat.S_ISDIR(info.st_mode):
                return self._delete_directory(op.path, directory, name, info)
            try:
                slot = self._keep(op.path, lambda inner, free: renames.rename(directory, name, inner, free))
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                return Result(op.path, version=self._delete_across(op, directory, name, live))
            out = lstat(slot.directory, slot.name)
            if not self._came_out(op, out, live):
                with suppress(FileExistsError):
                    renames.rename(slot.directory, slot.name, directory, name)
                    raise Refused("moved", MOVED)
                raise Refused("moved", MOVED, slot.path)
            self._note(out)
            return Result(op.path, version=slot.path)

    def _delete_across(self, op: Op, directory: int, name: bytes, live: int) -> bytes:
        """Where versions are on another file system: a copy is there before anything goes."""
        slot = self._keep(op.path, lambda inner, free: renames.keep(directory, name, inner, free))
        try:
            with self._near(directory) as near:
                renames.rename(directory, name, near, name)
                out = lstat(near, name)
                if not self._came_out(op, out, live):
                    raise Refused("moved", MOVED, self._give_back(op, near, name, directory, name))
        except (OSError, Refused):
            self._drop(slot, directory, name, live)
            raise
        self._note(out)
        return slot.path

    def _give_back(self, op: Op, source: int, name: bytes, directory: int, leaf: bytes) -> bytes:
        """Back to its path, or where that has been taken again into versions: where it is there, else empty."""
        try:
            renames.rename(source, name, directory, leaf)
        except FileExistsError:
            return self._keep(op.path, lambda inner, free: renames.move(source, name, inner, free)).path
        return b""

    def _drop(self, slot: Slot, directory: int, leaf: bytes, live: int) -> None:
        """What was kept for nothing, as what is at the path is what was there."""
        with suppress(FileNotFoundError):
            if os.path.samestat(lstat(directory, leaf), os.fstat(live)):
                os.unlink(slot.name, dir_fd=slot.directory)

    def _delete_directory(self, path: bytes, directory: int, name: bytes, info: os.stat_result) -> Result:
        slot = self._remember(path, info)
        try:
            self._remove_directory(directory, name)
        except OSError:
            # It holds nothing, or what was deleted in it.
            with suppress_errno(errno.ENOTEMPTY, errno.EEXIST):
                os.rmdir(slot.name, dir_fd=slot.directory)
            self._versions.forget(slot.path.split(b"/", 3)[3])
            raise
        self._live.forget(path)
        return Result(path, version=slot.path)

    def _remove_directory(self, directory: int, name: bytes) -> None:
        try:
            os.rmdir(name, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # All that it holds may be what a killed run had next to a path in it.
            with handle(directory, name, DIRECTORY) as inner:
                if RESERVED not in names_in(inner):
                    raise
                with self._near(inner):
                    pass
            os.rmdir(name, dir_fd=directory)

    def _aside(self, op: Op) -> Result:
        (above, name), (beside, free) = parts(op.path), parts(op.to)
        directory, target = self._live[above], self._live[beside]
        expected(op)
        with self._looked_at(op, directory, name) as live:
            link = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(os.fstat(live).st_mode) else b""
            try:
                moved = renames.move(directory, name, target, free)
            except FileExistsError as error:
                raise Refused("moved", f"the name {os.fsdecode(op.to)} has been taken") from error
            self._live.forget(op.path)
            out = lstat(target, free)
            if moved and not self._came_out(op, out, live):
                try:
                    renames.move(target, free, directory, name)
                except FileExistsError as error:
                    raise Refused("moved", f"{MOVED}; it is at {os.fsdecode(op.to)} now") from error
                raise Refused("moved", MOVED)
            self._note(out)
            return Result(op.path, entry=Entry.of(out, link))


def bare(directory: int, name: bytes) -> bool:
    """Makes a file one of this process's own without attributes; false where it cannot, or somebody writes to it."""
    try:
        with handle(directory, name, os.O_RDONLY | os.O_NONBLOCK) as held:
            info = os.fstat(held)
            if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
                return False
            os.fchown(held, os.geteuid(), os.getegid())
            os.fchmod(held, 0o600)
            for attribute in os.listxattr(held):
                if metadata.preserved(attribute, renames.ALL):
                    os.removexattr(held, attribute)
            # Granted only where nobody has it open to write. Who would break it is no reason for this process to end.
            fcntl.fcntl(held, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ESTALE):
            raise
        return False
    return True


def wanted(op: Op) -> Entry:
    if op.want is None:
        raise Refused("bad_request", f"{op.do} of nothing")
    return op.want


def expected(op: Op) -> Entry:
    if op.expect is None:
        raise Refused("bad_request", f"{op.do} of what nobody looked at")
    return op.expect


def written(expect: Entry, info: os.stat_result, granularity: int = 0) -> None:
    """Raises Refused where the size, or the time by more than that, is not the expected one of a file."""
    moved = abs(expect.mtime - info.st_mtime_ns) > granularity or expect.size != info.st_size
    if moved and expect.kind != "d":
        raise Refused("moved", MOVED)


def unwritten(coming: os.stat_result, info: os.stat_result) -> bool:
    """Whether it is the very thing that was put, and as it was then."""
    return os.path.samestat(coming, info) and same(Entry.of(coming), info)


def same(expect: Entry, info: os.stat_result) -> bool:
    """Whether the two agree in all that a rename leaves as it is; a directory's size and time are its children's."""
    if expect.kind != KINDS[stat.S_IFMT(info.st_mode)]:
        return False
    if (expect.mode, expect.uid, expect.gid) != (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid):
        return False
    return expect.kind == "d" or (expect.size, expect.mtime) == (info.st_size, info.st_mtime_ns)


def reason(error: OSError) -> str:
    return error.strerror or str(error)


@contextmanager
def suppress_errno(*numbers: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise
