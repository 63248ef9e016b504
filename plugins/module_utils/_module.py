# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""The module object: what the task really gave, and one form for every result."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import Any, Iterable, Mapping, NoReturn, Sequence

from ansible.module_utils.basic import AnsibleModule

from ._job import JOB, Field, Problem, argument_spec, read
from ._store import (
    LITTER,
    Layout,
    Plan,
    Step,
    StoreError,
    Wanted,
    command_error,
    made_as,
    make_directory,
    start_error,
)

_HIDDEN = "(a private key, hidden)"
#: Files that are put on the disk at a time: one after another each would wait for a turn of the journal.
_AT_ONCE = 16


def _plain(value: Any) -> Any:
    """A copy in the types of JSON, without what Ansible attaches to them."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, str) else value


def _for_ansible(value: Any, field: Field) -> Any:
    """Parameters as Ansible's own validation and its logs shall see them, along the grammar; None for nothing.

    Without nulls, which Ansible refuses where there are choices; without secrets, nor what is no option or not of its
    kind, which is perhaps one under a misspelt name or in a wrong place, and of which the grammar tells; and without a
    private key, should somebody have given one as host key.
    """
    element = field.element
    if field.kind == "mapping":
        if not isinstance(value, dict):
            return None
        seen = {part.name: _for_ansible(value[part.name], part) for part in field.parts if part.name in value}
        return {name: one for name, one in seen.items() if one is not None}
    if field.name == "jobs":
        return _named(value)
    if "secret" in (field.kind, element.kind if element else ""):
        return None
    if element and isinstance(value, list):
        return [one for one in (_for_ansible(entry, element) for entry in value) if one is not None]
    if isinstance(value, (dict, list)) or (element and element.kind == "mapping"):
        return None
    if isinstance(value, str) and "PRIVATE KEY" in value:
        return _HIDDEN
    # Ansible's log ends in a traceback where text is no UTF-8
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def _named(jobs: Any) -> Any:
    """A list of jobs as Ansible's own validation shall see it: their names, or with a thousand it takes its time."""
    if not isinstance(jobs, list):
        return None
    return [{"name": job["name"]} for job in jobs if isinstance(job, dict) and isinstance(job.get("name"), str)]


def _give(path: str | int, file: Wanted, uid: int) -> None:
    """Gives a file its owner and rights."""
    if file.gid is not None:
        os.chown(path, uid, file.gid)
    os.chmod(path, file.mode)


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


class JobModule(AnsibleModule):  # type: ignore[misc]
    """An AnsibleModule that can tell null from omitted and whose errors name the field and the remedy.

    AnsibleModule keeps neither what was omitted nor entries' numbers in its errors, so the parameters are taken as
    they arrive (`_load_params` is private to ansible-core; it is overridden here and nowhere else) and validated by
    the grammar; Ansible's own validation still runs, and speaks only where the grammar has nothing to say.
    """

    params: dict[str, Any]

    def __init__(self, grammar: Field = JOB, **results: Any) -> None:
        """`results`: what the module also returns when it fails, and as what."""
        self.given: dict[str, Any] | None = None
        self.declared: dict[str, Any] = {}
        self._grammar = grammar
        self._results = {"changed": False, **results}
        self._accepted = False
        super().__init__(argument_spec=argument_spec(grammar), supports_check_mode=True)
        self._accepted = True
        self.declared, problems = read(self.given or {}, grammar)
        if problems:
            self.fail(problems)

    def _load_params(self) -> None:
        super()._load_params()
        self.given = {key: _plain(one) for key, one in self.params.items() if not key.startswith("_ansible_")}
        given = _for_ansible({key: self.params[key] for key in self.given}, self._grammar)
        self.params = {key: one for key, one in self.params.items() if key not in self.given}
        self.params.update(given)

    def fail_json(self, msg: Any, **kwargs: Any) -> NoReturn:
        if not self._accepted and self.given is not None:
            _dummy, problems = read(self.given, self._grammar)
            if problems:
                self._accepted = True
                self.fail(problems)
        for key, value in self._results.items():
            kwargs.setdefault(key, value)
        kwargs.setdefault("failure", {"code": "invalid_option", "path": "", "details": [{"msg": str(msg)}]})
        super().fail_json(msg=msg, **kwargs)
        raise AssertionError("fail_json() has not ended the module")

    def fail(self, problems: Sequence[Problem]) -> NoReturn:
        """The first problem for people, all of them for machines."""
        first = problems[0]
        details = [dict(problem._asdict(), msg=str(problem)) for problem in problems]
        more = " (%d more in failure.details)" % (len(problems) - 1) if len(problems) > 1 else ""
        self.fail_json(str(first) + more, failure={"code": first.code, "path": first.path, "details": details})

    def check_root(self, scope: str) -> None:
        if scope == "system" and os.geteuid() != 0:
            text = "system needs root; set become: true, or scope: user for a job of your own"
            self.fail([Problem("not_root", "scope", text)])

    def fail_store(self, error: StoreError, plan: Plan | None = None, done: int = 0) -> NoReturn:
        """`done`: how many steps of the plan were taken before it failed."""
        results: dict[str, Any] = {}
        steps = plan.steps[:done] if plan else []
        if plan and steps:
            commands = [list(step.argv) for step in steps if step.do == "run"]
            results = {"changed": True, "diff": plan.diff, "commands": commands}
        self.fail_json(
            str(error),
            **results,
            failure={"code": error.code, "path": error.path, "details": [error.details] if error.details else []},
        )

    def run(self, argv: Sequence[str], data: bytes | None = None) -> tuple[int, str, str]:
        """A program of the system, or by its path the runner; values of the job reach it as they are."""
        program = argv[0] if os.path.isabs(argv[0]) else self.get_bin_path(argv[0])
        if program is None:
            raise StoreError("missing_program", argv[0], "is not installed; install the package systemd")
        try:
            code, out, err = self.run_command(
                [program, *argv[1:]],
                data=data,
                binary_data=True,
                expand_user_and_vars=False,
                environ_update={"LC_ALL": "C", "LANGUAGE": "C"},
                handle_exceptions=False,
            )
        except OSError as error:
            raise start_error(argv, error) from error
        return code, out, err

    def carry_out(self, plan: Plan, place: Layout, uid: int, gid: int | None) -> None:
        """Everything that can fail for want of room or rights comes first; then files are only put in their places."""
        number = 0
        try:
            ready = self._prepare([step for step in plan.steps if step.do == "write"], place, uid, gid)
            if any(step.argv[-1:] == ("daemon-reload",) for step in plan.steps):
                make_directory(os.path.dirname(place.pending), place, gid)
                with open(place.pending, "wb"):
                    pass
            moved: set[str] = set()
            for step in plan.steps:
                self._do(step, ready, place, uid, gid, moved)
                number += 1
            on_disk(sorted(filter(os.path.exists, moved)))
        except OSError as error:
            path = plan.steps[number].path or str(error.filename or place.config)
            text = "cannot be changed (%s); repair that and apply the job again" % error.strerror
            self.fail_store(StoreError("write_failed", path, text), plan, number)
        except StoreError as error:
            self.fail_store(error, plan, number)

    def _encrypted(self, name: str, data: bytes) -> bytes:
        """The credential for systemd, of what reaches its program by a pipe alone."""
        argv = ["systemd-creds", "encrypt", "--name=" + name, "-", "-"]
        code, out, err = self.run(argv, data)
        if code:
            raise command_error(argv, code, "", err)
        return out.encode("utf-8")

    def _prepare(self, steps: Sequence[Step], place: Layout, uid: int, gid: int | None) -> dict[str, str]:
        """The new files on the disk, to be moved to where they belong; by their paths there."""
        ready = {}
        for step in steps:
            directory, prefix = self.tmpdir, "tmp"
            if step.file.secret:
                directory, prefix = os.path.dirname(step.path), LITTER
                make_directory(directory, place, gid)
            handle, temporary = tempfile.mkstemp(dir=directory, prefix=prefix)
            self.add_cleanup_file(temporary)
            ready[step.path] = temporary
            data = (step.file.text or "").encode("utf-8")
            with os.fdopen(handle, "wb") as stream:
                stream.write(self._encrypted(step.file.encrypted, data) if step.file.encrypted else data)
                _give(handle, step.file, uid)
        on_disk(ready.values())
        return ready

    def _do(
        self, step: Step, ready: Mapping[str, str], place: Layout, uid: int, gid: int | None, moved: set[str]
    ) -> None:
        if step.do == "run":
            # what systemd is to read is on the disk before it is told of it
            on_disk(sorted(filter(os.path.exists, moved)))
            moved.clear()
            code, out, err = self.run(step.argv)
            if code:
                raise command_error(step.argv, code, out, err)
            if step.argv[-1] == "daemon-reload":
                # another task, at the same time, may have told systemd and taken it away
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(place.pending)
            return
        moved.update((step.path, os.path.dirname(step.path)))
        if step.do == "write":
            make_directory(os.path.dirname(step.path), place, gid)
            self._put(ready[step.path], step.path, step.file, uid)
        elif step.do == "rmdir":
            os.rmdir(step.path)
        elif os.path.lexists(step.path):
            os.unlink(step.path)

    def _put(self, temporary: str, path: str, file: Wanted, uid: int) -> None:
        """A whole file at once: the old one or the new one, never a part."""
        if not os.access(os.path.dirname(path), os.W_OK):
            # atomic_move() would fail by itself, without the file that this is about and the remedy; here the reason is
            # told by the system
            tempfile.TemporaryFile(dir=os.path.dirname(path)).close()
        with made_as(file.mode, file.gid):
            self.atomic_move(temporary, path, keep_dest_attrs=False)
        _give(path, file, uid)
