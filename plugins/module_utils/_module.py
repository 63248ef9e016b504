# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""The module object: what the task really gave, and one form for every result."""

from __future__ import annotations

import os
from typing import Any, NoReturn, Sequence

from ansible.module_utils.basic import AnsibleModule

from ._job import JOB, Field, Problem, argument_spec, read
from ._store import Plan, StoreError, start_error

_HIDDEN = "(a private key, hidden)"


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
