# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""The steps of a plan, taken.

Everything that can fail for want of room or rights comes first; then files are only put in their places.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from typing import TYPE_CHECKING, Iterable, Iterator, Sequence

from ._store import LITTER, Layout, Plan, Step, StoreError, Wanted, command_error

if TYPE_CHECKING:
    from ._module import JobModule

#: Files that are put on the disk at a time: one after another each would wait for a turn of the journal.
_AT_ONCE = 16


def on_disk(paths: Iterable[str]) -> None:
    """Comes back when the files and directories are on the disk."""

    def sync(path: str) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    several = list(paths)
    if len(several) < _AT_ONCE:
        for path in several:
            sync(path)
        return
    from concurrent.futures import ThreadPoolExecutor  # not for a job or two: the import takes longer

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for done in [pool.submit(sync, path) for path in several]:
            done.result()


@contextlib.contextmanager
def made_as(mode: int, gid: int | None) -> Iterator[None]:
    """What is made meanwhile has these rights, and this group, from its first moment: a task may be killed in its next.

    It still has to be given them where a directory hands on its own group.
    """
    umask, group = os.umask(0o777 & ~mode), os.getegid()
    try:
        if gid is not None:
            os.setegid(gid)
        yield
    finally:
        if gid is not None:
            os.setegid(group)
        os.umask(umask)


def make_directory(path: str, place: Layout, gid: int | None) -> None:
    """A missing directory on the way to one of the job's files, closed to others where the job's document is."""
    if os.path.isdir(path):
        return
    make_directory(os.path.dirname(path), place, gid)
    private = path == place.config or path.startswith(place.config + os.sep)
    mode = 0o755 if not private else 0o700 if place.scope == "user" else 0o750
    group = gid if private else None
    try:
        with made_as(mode, group):
            os.mkdir(path, mode)
        if group is not None:
            os.chown(path, 0, group)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise


def _give(path: str | int, file: Wanted, uid: int) -> None:
    """Gives a file its owner and rights."""
    if file.gid is not None:
        os.chown(path, uid, file.gid)
    os.chmod(path, file.mode)


def carry_out(module: JobModule, plan: Plan, place: Layout, uid: int, gid: int | None) -> None:
    """Takes all steps of a plan; fails the module at the one that it cannot take. `uid`, `gid`: whose files are."""
    way = _Way(module, place, uid, gid)
    number = 0
    try:
        way.prepare([step for step in plan.steps if step.do == "write"])
        if any(step.argv[-1:] == ("daemon-reload",) for step in plan.steps):
            make_directory(os.path.dirname(place.pending), place, gid)
            with open(place.pending, "wb"):
                pass
        for step in plan.steps:
            way.take(step)
            number += 1
        way.sync()
    except OSError as error:
        # after the last step all of them are still put on the disk
        path = plan.steps[number].path if number < len(plan.steps) else ""
        path = path or str(error.filename or place.config)
        text = "cannot be changed (%s); repair that and apply the job again" % error.strerror
        module.fail_store(StoreError("write_failed", path, text), plan, number)
    except StoreError as error:
        module.fail_store(error, plan, number)


class _Way:
    """What holds for all steps. `ready`: the new files, by their paths; `moved`: what may not be on the disk yet."""

    def __init__(self, module: JobModule, place: Layout, uid: int, gid: int | None) -> None:
        self.module = module
        self.place = place
        self.uid = uid
        self.gid = gid
        self.ready: dict[str, str] = {}
        self.moved: set[str] = set()

    def prepare(self, steps: Sequence[Step]) -> None:
        """Puts the new files on the disk, to be moved to where they belong."""
        for step in steps:
            directory, prefix = self.module.tmpdir, "tmp"
            if step.file.secret:
                directory, prefix = os.path.dirname(step.path), LITTER
                make_directory(directory, self.place, self.gid)
            handle, temporary = tempfile.mkstemp(dir=directory, prefix=prefix)
            self.module.add_cleanup_file(temporary)
            self.ready[step.path] = temporary
            data = (step.file.text or "").encode("utf-8")
            with os.fdopen(handle, "wb") as stream:
                stream.write(self._encrypted(step.file.encrypted, data) if step.file.encrypted else data)
                _give(handle, step.file, self.uid)
        on_disk(self.ready.values())

    def _encrypted(self, name: str, data: bytes) -> bytes:
        """The credential for systemd, of what reaches its program by a pipe alone."""
        argv = ["systemd-creds", "encrypt", "--name=" + name, "-", "-"]
        code, out, err = self.module.run(argv, data)
        if code:
            raise command_error(argv, code, "", err)
        return out.encode("utf-8")

    def sync(self) -> None:
        on_disk(sorted(filter(os.path.exists, self.moved)))
        self.moved.clear()

    def take(self, step: Step) -> None:
        if step.do == "run":
            # what systemd is to read is on the disk before it is told of it
            self.sync()
            code, out, err = self.module.run(step.argv)
            if code:
                raise command_error(step.argv, code, out, err)
            if step.argv[-1] == "daemon-reload":
                # another task, at the same time, may have told systemd and taken it away
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.place.pending)
            return
        self.moved.update((step.path, os.path.dirname(step.path)))
        if step.do == "write":
            make_directory(os.path.dirname(step.path), self.place, self.gid)
            self._put(self.ready[step.path], step.path, step.file)
        elif step.do == "rmdir":
            os.rmdir(step.path)
        elif os.path.lexists(step.path):
            os.unlink(step.path)

    def _put(self, temporary: str, path: str, file: Wanted) -> None:
        """A whole file at once: the old one or the new one, never a part."""
        if not os.access(os.path.dirname(path), os.W_OK):
            # atomic_move() would fail by itself, without the file that this is about and the remedy; here the reason
            # is told by the system
            tempfile.TemporaryFile(dir=os.path.dirname(path)).close()
        with made_as(file.mode, file.gid):
            self.module.atomic_move(temporary, path, keep_dest_attrs=False)
        _give(path, file, self.uid)
