# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts staged things into a tree on an SFTP server, and what they displace into versions: ``commit`` for that tree.

There is no exchange of two names over SFTP. Where the server has hard links and renames in one step, what is to be
displaced gets its name in versions first, is looked at under both names, and is replaced then: nothing is ever missing,
an edit of the file in those milliseconds is in versions, and only another file that somebody renames to its place just
then is lost. Elsewhere it is moved to versions first, looked at there, and moved back where it is not what was planned:
nothing is lost, but for two round trips nothing is at the path. A run that was killed then is mended by the next
(``recover``).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator

from serversync.commit import CODES, MOVED, Op, Refused, Result, expected, wanted
from serversync.entry import Entry
from serversync.failure import Failure
from serversync.held import good, own, parts
from serversync.metadata import Problem
from serversync.sftppaths import SECOND, discard, join, look_at, make, names, reason, walk
from serversync.sftpwire import (
    FOR_READING,
    FSYNC,
    HARDLINK,
    LATEST,
    LSETSTAT,
    POSIX_RENAME,
    Attributes,
    Request,
    Session,
    Task,
    close,
    fsync,
    hardlink,
    lsetstat,
    mkdir,
    one,
    open_file,
    posix_rename,
    remove,
    rename,
    rmdir,
    setstat,
    symlink,
)

SLOTS = 1000


class SftpCommit:
    """The target's side of one attempt of an element; use as ``commit.Commit``.

    root: absolute, on the server; linking: hard links can be made there; chown: owners can be given.
    """

    def __init__(
        self,
        session: Session,
        root: bytes,
        element: str,
        run: str,
        preserve: frozenset[str],
        *,
        linking: bool,
        chown: bool,
    ) -> None:
        self.session = session
        self.root = root
        self.run_name = os.fsencode(run)
        self.preserve = preserve
        self.home = own(element)
        own(element, run)
        self.stages = join(root, self.home + b"/stage")
        self.stage = join(self.stages, self.run_name)
        self.store = join(root, self.home + b"/versions")
        self.in_one_step = linking and session.has(HARDLINK) and session.has(POSIX_RENAME)
        self.chown = chown
        # Directories of our own that are there; live ones that have been looked at; those in which something changed.
        self.known: set[bytes] = {root}
        self.sure: set[bytes] = set()
        self.changed: set[bytes] = set()

    def prepare(self) -> None:
        """As ``commit.Commit.prepare``."""
        try:
            for path in (self.stages, self.store):
                self.session.run(make(path, self.known, 0o700))
            problems = discard(self.session, self.stages)
            if problems:
                raise Failure("not_writable", f"{problems[0]}; remove it, or give the account access")
            self.known.discard(self.stages)
            self.session.run(make(self.stage, self.known, 0o700))
        except OSError as error:
            message = (
                f"{os.fsdecode(self.home)} cannot be made ready ({reason(error)}); check it and the account's rights"
            )
            raise Failure("not_writable", message) from error

    def recover(self) -> None:
        """What a killed run had moved to versions, but not yet replaced, is put back; then its stage goes.

        To be called before anything is looked at. Only what still lies in that run's stage was to replace something.
        """
        kept = names(self.session, self.store, "d")
        for run in names(self.session, self.stages, "d"):
            waiting = {path for path, _entry in walk(self.session, join(self.stages, run), opening=True)}
            for store in [name for name in kept if name.partition(b"~")[0] == run] if waiting else []:
                for path, entry in list(walk(self.session, join(self.store, store))):
                    if path in waiting:
                        self.session.run(self.put_back(path, join(self.store, store + b"/" + path), entry))
            discard(self.session, join(self.stages, run))

    def put_back(self, path: bytes, kept: bytes, entry: Entry) -> Task[None]:
        live = join(self.root, path)
        if (yield from look_at(live)) is not None:
            return
        if entry.kind == "d":
            # It was empty; what is in it now was deleted from it.
            yield from one(mkdir(live, entry.mode))
        else:
            yield from one(rename(kept, live))

    def finish(self) -> None:
        """Removes the stage."""
        discard(self.session, self.stage)
        self.changed.add(self.stages)

    def sync(self) -> None:
        """Files are on the disk since they were staged; their names are now, where the server can do that."""
        if self.session.has(FSYNC):
            for _done in self.session.together(map(self.sync_directory, sorted(self.changed))):
                pass
        self.changed.clear()

    @staticmethod
    def sync_directory(path: bytes) -> Task[None]:
        # Not every server opens directories; there the system decides when their names are written.
        [handle] = yield [open_file(path, FOR_READING)]
        if not isinstance(handle, OSError):
            yield [fsync(handle), close(handle)]

    def carry_out(self, ops: Iterable[Op]) -> Iterator[Result]:
        """One result per op, in order. Those that do not depend on one another are under way at once."""
        self.sure.clear()
        for wave in waves(ops):
            yield from self.session.together(map(self.careful, wave))

    def careful(self, op: Op, task: Task[Result] | None = None) -> Task[Result]:
        """What the op, or the task for it, comes to; a refusal is a result."""
        try:
            return (yield from task or self.carry(op))
        except Refused as refusal:
            return Result(op.path, refusal.problem, None, refusal.version)
        except OSError as error:
            return Result(op.path, Problem(CODES.get(error.errno or 0, "io"), reason(error)))

    def carry(self, op: Op) -> Task[Result]:
        root_itself = op.do == "meta" and not op.stage and not op.path
        named = [op.path] * (not root_itself) + [op.staged] * (op.do in ("put", "tree")) + [op.to] * (op.do == "aside")
        if not all(good(path) for path in named):
            raise Refused("bad_path", "is not a path below the element")
        if op.do in ("put", "tree"):
            return (yield from self.put(op, join(self.stage, op.staged)))
        if op.do in ("mkdir", "symlink"):
            return (yield from self.made(op))
        if op.do == "meta":
            return (yield from self.meta(op))
        if op.do == "delete":
            return (yield from self.delete(op))
        if op.do == "aside":
            return (yield from self.aside(op))
        if op.do == "drop":
            yield from one(remove(join(self.stage, op.path)))
            return Result(op.path)
        raise Refused("unsupported", f"is a {WORDS.get(wanted(op).kind, op.do)}, which SFTP cannot make; exclude it")

    # What comes.

    def made(self, op: Op) -> Task[Result]:
        path, want = join(self.stage, op.path), wanted(op)
        yield from make(parts(path)[0], self.known, 0o700)
        if not op.stage:
            yield [remove(path), rmdir(path)]
        yield from one(mkdir(path, 0o700) if op.do == "mkdir" else symlink(want.link, path))
        if not op.stage:
            return (yield from self.put(op, path))
        if op.do == "symlink":
            yield from self.dress(path, None, want, None)
        return Result(op.path, entry=(yield from look_at(path)))

    def put(self, op: Op, source: bytes) -> Task[Result]:
        """What is at ``source`` becomes the path."""
        want = wanted(op)
        coming = yield from look_at(source)
        if coming is None:
            raise Refused("not_staged", "has not arrived")
        if coming.kind != want.kind or (want.kind == "f" and coming.size != want.size):
            raise Refused("not_staged", "did not arrive as planned")
        # A directory that its owner may not write in could not be moved.
        spare = stat.S_IRWXU if coming.kind == "d" else 0
        problems = yield from self.dress(source, coming, want, op.expect, spare)
        coming = (yield from look_at(source)) or coming
        version = yield from self.place(op, source, coming)
        live = join(self.root, op.path)
        if spare:
            self.known = {path for path in self.known if path != source and not path.startswith(source + b"/")}
            problems += yield from self.dress(live, coming, want, op.expect)
        entry = yield from look_at(live)
        if coming.kind == "f" and entry is not None and not same(coming, entry):
            # Somebody has written it since.
            entry = coming
        return Result(op.path, problems[0] if problems else None, entry, version)

    def place(self, op: Op, source: bytes, coming: Entry) -> Task[bytes]:
        """Where what was displaced is now, below the root; empty: nothing was."""
        live = join(self.root, op.path)
        yield from self.sure_of(op.path)
        if op.expect is None:
            yield from self.move(source, live, "something has been made there since it was looked at")
            return b""
        if op.expect.kind == "d":
            slot = yield from self.delete_directory(op, live)
        elif coming.kind != "d" and self.in_one_step:
            linked = yield from self.link_and_replace(op, source, live)
            if linked is not None:
                return linked
            slot = yield from self.move_away(op, live)
        else:
            slot = yield from self.move_away(op, live)
        try:
            yield from self.move(source, live, MOVED)
        except (OSError, Refused) as error:
            if op.expect.kind == "d":
                [answer] = yield [mkdir(live, op.expect.mode)]
            else:
                [answer] = yield [rename(join(self.root, slot), live)]
            if isinstance(answer, OSError) and isinstance(error, Refused):
                error.version = slot
            raise
        return slot

    def move(self, source: bytes, target: bytes, taken: str) -> Task[None]:
        """To a free name; Refused where it is taken."""
        if (yield from look_at(target)) is not None:
            raise Refused("moved", taken)
        [answer] = yield [rename(source, target)]
        if isinstance(answer, OSError):
            if (yield from look_at(target)) is not None:
                raise Refused("moved", taken)
            raise answer
        self.changed.add(parts(target)[0])

    def link_and_replace(self, op: Op, source: bytes, live: bytes) -> Task[bytes | None]:
        """As ``place``; None: the server makes no hard link of this one, and nothing was done."""
        try:
            slot = yield from self.keep(op.path, lambda free: hardlink(live, free))
        except FileNotFoundError:
            raise Refused("moved", "has gone since it was looked at") from None
        except OSError:
            return None
        inside = join(self.root, slot)
        kept, now = (yield from look_at(inside)), (yield from look_at(live))
        if not (same(expected(op), kept) and same(expected(op), now)):
            yield from one(remove(inside))
            raise Refused("moved", MOVED)
        [answer] = yield [posix_rename(source, live)]
        if isinstance(answer, OSError):
            yield from one(remove(inside))
            raise answer
        self.changed.add(parts(live)[0])
        return slot

    # What goes.

    def move_away(self, op: Op, live: bytes) -> Task[bytes]:
        """Into versions, if it is what was looked at; its path below the root there."""
        if not same(expected(op), (yield from look_at(live))):
            raise Refused("moved", MOVED)
        slot = yield from self.keep(op.path, lambda free: rename(live, free))
        inside = join(self.root, slot)
        if not same(expected(op), (yield from look_at(inside))):
            [answer] = yield [rename(inside, live)]
            raise Refused("moved", MOVED, slot if isinstance(answer, OSError) else b"")
        self.changed.add(parts(live)[0])
        return slot

    def keep(self, path: bytes, request: Callable[[bytes], Request]) -> Task[bytes]:
        """Lets the request fill the path's place in versions, the first that is free: RUN, RUN~1, ..."""
        for number in range(SLOTS):
            run = self.run_name + (b"~%d" % number if number else b"")
            free = join(self.store, run + b"/" + path)
            try:
                yield from make(parts(free)[0], self.known, 0o700)
            except NotADirectoryError:
                continue
            if (yield from look_at(free)) is not None:
                continue
            [answer] = yield [request(free)]
            if not isinstance(answer, OSError):
                self.changed.add(parts(free)[0])
                return b"/".join([self.home, b"versions", run, path])
            if (yield from look_at(free)) is None:
                raise answer
        raise Refused("io", "has no free place in versions")

    def delete(self, op: Op) -> Task[Result]:
        live = join(self.root, op.path)
        yield from self.sure_of(op.path)
        if expected(op).kind == "d":
            return Result(op.path, version=(yield from self.delete_directory(op, live)))
        return Result(op.path, version=(yield from self.move_away(op, live)))

    def delete_directory(self, op: Op, live: bytes) -> Task[bytes]:
        """An empty one; its owner and mode are kept in versions, with what was deleted in it."""
        expect = expected(op)
        if not same(expect, (yield from look_at(live))):
            raise Refused("moved", MOVED)
        slot = b"/".join([self.home, b"versions", self.run_name, op.path])
        inside = join(self.root, slot)
        yield from make(inside, self.known, 0o700)
        yield [setstat(inside, Attributes(mode=expect.mode | stat.S_IRWXU))]
        [answer] = yield [rmdir(live)]
        if isinstance(answer, OSError):
            # It holds nothing, or what was deleted in it.
            yield [rmdir(inside)]
            self.known.discard(inside)
            if answer.errno in CODES:
                raise answer
            # Servers have no word for that.
            raise Refused("not_empty", "is a directory that is not empty")
        self.sure.discard(live)
        self.changed.add(parts(live)[0])
        return slot

    def aside(self, op: Op) -> Task[Result]:
        live, free = join(self.root, op.path), join(self.root, op.to)
        yield from self.sure_of(op.path)
        yield from self.sure_of(op.to)
        if not same(expected(op), (yield from look_at(live))):
            raise Refused("moved", MOVED)
        yield from self.move(live, free, f"the name {os.fsdecode(op.to)} has been taken")
        self.sure.clear()
        entry = yield from look_at(free)
        if not same(expected(op), entry):
            yield from self.move(free, live, f"{MOVED}; it is at {os.fsdecode(op.to)} now")
            raise Refused("moved", MOVED)
        self.changed.add(parts(live)[0])
        return Result(op.path, entry=entry)

    # Metadata.

    def meta(self, op: Op) -> Task[Result]:
        path = join(self.stage if op.stage else self.root, op.path) if op.path else self.root
        now = yield from look_at(path)
        if not op.stage:
            yield from self.sure_of(op.path)
            if not same(expected(op), now):
                raise Refused("moved", MOVED)
        problems = yield from self.dress(path, now, wanted(op), op.expect)
        return Result(op.path, problems[0] if problems else None, (yield from look_at(path)))

    def dress(
        self, path: bytes, now: Entry | None, want: Entry, before: Entry | None, spare: int = 0
    ) -> Task[list[Problem]]:
        """Gives what is at the path its owner, mode and time, as far as it has not got them; what did not take."""
        if want.kind == "l" and not self.session.has(LSETSTAT):
            return []
        problems: list[Problem] = []
        change = setstat if want.kind != "l" else lsetstat
        for attributes in dressing(now, want, self.preserve, before, chown=self.chown, spare=spare):
            [answer] = yield [change(path, attributes)]
            if not isinstance(answer, OSError):
                continue
            if attributes.uid is not None:
                demanded = self.preserve & {"owner", "group"}
                problems += [Problem("owner", f"its owner cannot be set: {reason(answer)}")] if demanded else []
            elif want.kind != "l":
                raise answer
        return problems

    def sure_of(self, path: bytes) -> Task[None]:
        """That what leads to the path are directories and no links; each is looked at once in a batch."""
        above = parts(path)[0]
        for number in range(1, above.count(b"/") + 2) if above else ():
            directory = join(self.root, b"/".join(above.split(b"/")[:number]))
            if directory in self.sure:
                continue
            entry = yield from look_at(directory)
            if entry is None or entry.kind != "d":
                raise Refused("moved", f"{os.fsdecode(directory)} has changed since it was looked at")
            self.sure.add(directory)


WORDS = {"p": "fifo", "s": "socket", "b": "block device", "c": "character device"}


def same(expect: Entry, found: Entry | None) -> bool:
    """Whether the two agree in all that SFTP tells; a directory's size and time are its children's."""
    if found is None or (expect.kind, expect.mode, expect.uid, expect.gid) != (
        found.kind,
        found.mode,
        found.uid,
        found.gid,
    ):
        return False
    return expect.kind == "d" or (expect.size, expect.mtime, expect.link) == (found.size, found.mtime, found.link)


def dressing(
    now: Entry | None,
    want: Entry,
    preserve: frozenset[str],
    before: Entry | None,
    *,
    chown: bool,
    spare: int = 0,
) -> list[Attributes]:
    """What is to be set of an entry that is ``now`` so (None: not known), one after the other; as metadata.apply.

    The owner comes first, since giving something away takes setuid bits away. Raises Refused for a time that SFTP
    cannot tell.
    """
    found = []
    uid, gid = (
        getattr(want if aspect in preserve else before, number, None)
        for aspect, number in (("owner", "uid"), ("group", "gid"))
    )
    uid = uid if uid is not None or now is None else now.uid
    gid = gid if gid is not None or now is None else now.gid
    if chown and uid is not None and gid is not None and (now is None or (uid, gid) != (now.uid, now.gid)):
        found.append(Attributes(uid=uid, gid=gid))
    owner = (uid, gid) if chown and uid is not None else (now.uid, now.gid) if now else (None, None)
    mode = None
    if want.kind != "l":
        if "permissions" in preserve:
            mode = want.mode
        elif before is not None and before.kind == want.kind:
            mode = before.mode
    if mode is not None and want.kind == "f":
        # A program must not run as somebody whose it was not.
        mode &= ~(stat.S_ISUID if owner[0] != want.uid else 0) & ~(stat.S_ISGID if owner[1] != want.gid else 0)
    if mode is not None:
        mode |= spare
    elif spare and now is not None:
        mode = now.mode | spare
    if mode is not None and now is not None and now.mode == mode and not found:
        mode = None
    when = None
    if "times" in preserve:
        when = want.mtime // SECOND
        if not 0 <= when <= LATEST:
            raise Refused("time", "has a modification time that SFTP cannot tell (it knows 1970 to 2106)")
        if now is not None and now.mtime // SECOND == when:
            when = None
    if mode is not None or when is not None:
        atime = None if when is None else min(int(time.time()), LATEST)
        found.append(Attributes(mode=mode, atime=atime, mtime=when))
    return found


def waves(ops: Iterable[Op]) -> Iterator[list[Op]]:
    """The ops in their order, cut where one is about a path that is the same as, above or below another's."""
    wave: list[Op] = []
    paths: set[bytes] = set()
    above: set[bytes] = set()
    for op in ops:
        mine = {path for path in (op.path, op.to, op.staged) if path} or {b""}
        over = {path[:end] for path in mine for end in slashes(path)} | {b""}
        if mine & (paths | above) or over & paths:
            yield wave
            wave, paths, above = [], set(), set()
        wave.append(op)
        paths |= mine
        above |= over
    if wave:
        yield wave


def slashes(path: bytes) -> Iterator[int]:
    at = path.find(b"/")
    while at >= 0:
        yield at
        at = path.find(b"/", at + 1)
