#!/usr/bin/python
# SPDX-FileCopyrightText: serversync.core contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sync_job_run
short_description: Run a synchronization job now
version_added: 0.2.0
author:
  - serversync.core contributors (@serversync-core)
description:
  - Runs a job that M(serversync.core.sync_job) has declared on this server, waits for its end, and returns the record
    of the run. The task fails when the run failed, and when it was skipped because another run of the job was on.
  - With O(scope=system) the run takes place in the job's own service, with its account and its sandbox, as one by
    schedule does; with O(scope=user) in a process of the task.
  - In check mode it shows what a run would do now, from a look at both replicas.
extends_documentation_fragment:
  - serversync.core._attributes
attributes:
  check_mode:
    support: full
    details:
      - It connects to the partner and reads both replicas, as C(serversync plan) does, and keeps the plan on this
        server so that it can be approved.
      - Where the runner is not deployed or the job is not declared yet, it warns instead of failing.
  diff_mode:
    support: partial
    details:
      - In check mode only. What a run did is in RV(run), with names only for what is out of the ordinary.
  idempotent:
    support: partial
    details:
      - It runs the job every time. A run right after another one finds nothing to change.
options:
  name:
    description:
      - The name of the job.
    type: str
    required: true
  scope:
    description:
      - Whose job it is, as for M(serversync.core.sync_job). With V(system) the task needs C(become=true).
      - Omitted means V(system).
    type: str
    choices: [system, user]
  elements:
    description:
      - The elements that are synchronized, by their paths on this server; at least one. They take along what they
        require.
      - Omitted means all.
    type: list
    elements: str
  approve:
    description:
      - The id of a plan, as RV(plan.id) or C(serversync plan) tells it. What it lists may be deleted and overwritten
        even where a guard would stop the run.
    type: str
  wait:
    description:
      - Whether the task waits for the end of the run. With V(false) it comes back as soon as the run has begun, and
        nobody but the record tells how it ended.
      - Omitted means V(true).
    type: bool
  timeout:
    description:
      - How long the run may take, from V(1s) to V(30d). One that takes longer is stopped, and the task fails; the next
        run goes on from there. It does not go with O(wait=false).
      - Omitted means without end.
    type: str
notes:
  - Of a run that takes hours use C(async) and C(poll), so that no connection has to stay up so long.
seealso:
  - module: serversync.core.sync_job
  - module: serversync.core.sync_job_info
"""

EXAMPLES = r"""
- name: Run a job and wait
  serversync.core.sync_job_run:
    name: line1-programs
  become: true

- name: Run a job that takes hours, looking after it every minute
  serversync.core.sync_job_run:
    name: line1-archive
    timeout: 6h
  async: 22000
  poll: 60
  become: true

- name: Only one of its elements, and fail also where something is left for a person to decide
  serversync.core.sync_job_run:
    name: line1-recipes
    elements: /srv/line1/recipes
  register: done
  failed_when: done is failed or done.run.state == 'different'
  become: true

- name: Start a run and go on
  serversync.core.sync_job_run:
    name: line1-programs
    wait: false
  register: started
  become: true

- name: See what a run would do
  serversync.core.sync_job_run:
    name: line1-archive
  check_mode: true
  diff: true
  register: looked
  become: true

- name: Let it do just that, though it deletes more than the job allows
  serversync.core.sync_job_run:
    name: line1-archive
    approve: "{{ looked.plan.id }}"
  become: true
"""

RETURN = r"""
run:
  description:
    - The record of the run, as C(serversync show --json) has it, also when it failed. RV(run.run) is its id.
    - With O(wait=false) as it was when the run had begun. V(null) in check mode, and when there was no run.
  returned: always
  type: dict
  contains:
    run:
      description: The id of the run.
      type: str
    state:
      description:
        - V(equal), V(equal_with_warnings), V(different), V(failed), V(skipped), V(running), or V(waiting) between two
          attempts.
      type: str
    started:
      description: When it began, in UTC.
      type: str
    ended:
      description: When it ended, in UTC.
      type: str
    attempts:
      description: Every attempt with its errors.
      type: list
      elements: dict
    elements:
      description: Every element with its states, what was done in figures, warnings and the error.
      type: list
      elements: dict
    before:
      description: What became of each service that was started before the run, and RV(run.after) of those after it.
      type: list
      elements: dict
    after:
      description: As RV(run.before).
      type: list
      elements: dict
    error:
      description: Why the run failed, or V(null).
      type: dict
    plan:
      description: The id of the plan that is to be approved, where a guard has stopped the run.
      type: str
  sample:
    run: 20261126-013007-4f1c
    job: line1-programs
    state: equal
    started: "2026-11-26T01:30:07.120+00:00"
    ended: "2026-11-26T01:30:09.480+00:00"
    elements:
      - {path: /srv/line1/programs, state_before: different, state_after: equal, created: 2, updated: 1, deleted: 0}
    error: null
plan:
  description:
    - What a run would do, in check mode. V(null) otherwise.
  returned: always
  type: dict
  contains:
    id:
      description: The id of the plan, for O(approve).
      type: str
    elements:
      description:
        - Every element with C(path), C(partner_path), C(direction), the C(guards) that would stop it, its C(warnings),
          and in C(counts) how many paths there are of each kind.
      type: list
      elements: dict
  sample:
    id: 5b2f0c9d1e7a
    elements:
      - path: /srv/line1/programs
        partner_path: /srv/line1/programs
        direction: to_partner
        counts: {new: 2, update: 1}
        guards: []
        warnings: []
diff:
  description:
    - In check mode what a run would do, with one entry for every element where that is anything and one line for every
      path, of which the first thousand are told. Otherwise empty.
  returned: always
  type: list
  elements: dict
  contains:
    prepared:
      description: The lines.
      type: str
  sample:
    - prepared: "/srv/line1/programs -> hq:/srv/line1/programs\n+ main.st  (new here)\n"
failure:
  description:
    - Why the task failed, for programs. V(null) when it did not.
  returned: always
  type: dict
  contains:
    code:
      description:
        - The kind of failure. Of a run it is that of its record, such as V(connection); V(running) when another run was
          on, V(timeout) when it took too long.
      type: str
    path:
      description: The option, element or command that the failure is about.
      type: str
    details:
      description: Everything that went wrong.
      type: list
      elements: dict
  sample:
    code: timeout
    path: line1-programs
    details: []
"""

import json
import os
import re
import time
from typing import Any, Callable, Mapping, NoReturn, Sequence

from ansible_collections.serversync.core.plugins.module_utils import (  # pylint: disable=unused-import
    _fromzip,  # noqa: F401  # before what is large
)
from ansible_collections.serversync.core.plugins.module_utils._detached import begin
from ansible_collections.serversync.core.plugins.module_utils._job import (
    Field,
    Problem,
    Wrong,
    duration,
    field_of,
    loads,
    show,
)
from ansible_collections.serversync.core.plugins.module_utils._module import JobModule
from ansible_collections.serversync.core.plugins.module_utils._plans import counts, plan_diff, would_change
from ansible_collections.serversync.core.plugins.module_utils._records import (
    has_changed,
    printable,
    published,
)
from ansible_collections.serversync.core.plugins.module_utils._schedule import DAY, seconds_of
from ansible_collections.serversync.core.plugins.module_utils._states import UNFINISHED
from ansible_collections.serversync.core.plugins.module_utils._store import (
    Layout,
    StoreError,
    command_error,
    layout,
    read_file,
    start_error,
)
from ansible_collections.serversync.core.plugins.module_utils._units import service_name

#: The id of a plan.
PLAN = "[0-9a-f]{12}"


def check_plan(text: str) -> str:
    if not re.fullmatch(PLAN, text):
        words = "%s is not the id of a plan; give plan.id as check mode returns it, or as 'serversync plan' prints it"
        raise Wrong(words % show(text))
    return text


GRAMMAR = Field(
    "sync_job_run",
    "mapping",
    "A run of a job.",
    parts=(
        field_of("name"),
        field_of("scope"),
        # an empty list that somebody has filtered does not mean all
        Field(
            "elements",
            "list",
            "Which elements.",
            element=field_of("elements[].path"),
            schema={"minItems": 1},
            commas=False,
        ),
        Field("approve", "text", "The id of a plan.", check=check_plan),
        Field("wait", "flag", "Whether the task waits for the end.", default=True),
        duration("timeout", "How long the run may take.", None, 1, 30 * DAY, optional=True),
    ),
)
#: What timeout(1) exits with when it has ended the command, or had to kill it; so may the command, of itself.
TIMED_OUT = (124, 128 + 9)


def in_words(error: Mapping[str, Any]) -> str:
    """An error of the runner: the field that it is about, and the message."""
    message = str(error.get("message", "no reason is on record"))
    return "%s: %s" % (error["field"], message) if error.get("field") else message


class Runner:
    """The commands of the runner that concern one job."""

    def __init__(self, module: JobModule, place: Layout) -> None:
        self.module = module
        self.place = place
        self.elements = [word for path in module.declared.get("elements") or [] for word in ("--element", path)]
        self.approve = module.declared.get("approve")

    def argv(self, command: str) -> list[str]:
        return [self.place.launcher, command, self.place.name, "--json", *self.elements]

    def run_argv(self) -> list[str]:
        return [*self.argv("run"), *(["--approve", self.approve] if self.approve else [])]

    def fail(self, code: str, text: str, run: Mapping[str, Any] | None = None, details: Sequence[Any] = ()) -> NoReturn:
        self.module.fail_json(
            "%s: %s" % (self.place.name, text),
            changed=bool(run) and has_changed(run or {}),
            run=run,
            failure={"code": code, "path": self.place.name, "details": list(details)},
        )

    def answer(self, code: int, out: str, err: str) -> dict[str, Any]:
        """What a command has printed: its result; where it failed before there was one, the task fails, too."""
        try:
            answer = json.loads(out)
        except ValueError:
            if code < 0:
                text = "serversync was ended by signal %d; see: serversync status %s"
                self.fail("command_failed", text % (-code, self.place.name))
            said = (err or out).strip().splitlines() or ["no output"]
            self.fail("command_failed", "serversync failed with exit code %d: %s" % (code, printable(said[-1])))
        failure = answer.get("failure")
        if failure:
            self.fail(failure["code"], printable(in_words(failure)), None, [printable(failure)])
        return dict(answer)

    def plan(self) -> dict[str, Any]:
        plan = self.answer(*self.module.run(self.argv("plan")))
        failed = [element for element in plan["elements"] if element["error"]]
        if failed:
            errors = [element["error"] for element in failed]
            words = in_words(dict(errors[0], field=errors[0]["field"] or failed[0]["path"]))
            self.fail(errors[0]["code"], printable("a run would fail: " + words), None, printable(errors))
        return plan

    def approved(self) -> dict[str, Any]:
        """The elements of the plan that is approved, by their paths."""
        if not self.approve:
            return {}
        path = os.path.join(self.place.state, "plans", self.place.name, self.approve + ".json")
        return {element["path"]: element for element in loads(read_file(path).data).get("elements", ())}

    def since(self) -> Callable[[], dict[str, Any] | None]:
        """What tells the record of the last run that was not there yet; None before there is one."""

        def records() -> list[dict[str, Any]]:
            try:
                return published(self.place)
            except StoreError as error:
                if error.code != "damaged_record":
                    raise
                # the run is what writes it anew
                return []

        before = {run["run"] for run in records()}
        return lambda: next((run for run in records() if run["run"] not in before), None)

    def run(self, timeout: str | None) -> dict[str, Any]:
        argv = self.run_argv()
        if timeout is None:
            return self.answer(*self.module.run(argv))
        # in the foreground: the runner itself ends what it has started
        seconds = seconds_of(timeout)
        limit = ["timeout", "--foreground", "--kill-after=60", str(seconds)]
        new = self.since()
        begun = time.monotonic()
        code, out, err = self.module.run([*limit, *argv])
        if code not in TIMED_OUT or time.monotonic() - begun < seconds:
            return self.answer(code, out, err)
        if self.place.scope == "system":
            # what was ended is the command that waited; between two attempts there is no unit that could be stopped
            stop = ["systemctl", "stop", service_name(self.place.name)]
            code, out, err = self.module.run(stop)
            if not code:
                stop = [self.place.launcher, "recover", self.place.name, "--give-up"]
                code, out, err = self.module.run(stop)
            if code:
                remedy = "the run may still be on, see: serversync status %s" % self.place.name
                raise command_error(stop, code, out, err, remedy)
        text = "the run was not over after %s and was stopped; the next one goes on from there" % timeout
        self.fail("timeout", text, printable(new()))

    def start(self) -> dict[str, Any]:
        """Begins a run and comes back with its record, which says that it is running or, if it was quick, more."""
        argv = self.run_argv()
        try:
            record, code, out, err = begin(argv, self.since())
        except OSError as error:
            raise start_error(argv, error) from error
        return record if record is not None else self.answer(code, out, err)


def look(module: JobModule, runner: Runner) -> NoReturn:
    """Check mode."""
    plan, approved = runner.plan(), runner.approved()
    names = ("path", "partner_path", "direction", "guards", "warnings")
    elements = [dict({name: element[name] for name in names}, counts=counts(element)) for element in plan["elements"]]
    module.exit_json(
        changed=any(would_change(element, approved.get(element["path"])) for element in plan["elements"]),
        run=None,
        plan={"id": plan["plan"], "elements": printable(elements)},
        diff=plan_diff(plan),
        failure=None,
    )


def tell(module: JobModule, runner: Runner, record: dict[str, Any]) -> NoReturn:
    """How a run went."""
    record = printable(record)
    error = record["error"] or {}
    if record["state"] in ("failed", "skipped"):
        errors = [record["error"], *(element["error"] for element in record["elements"])]
        what = "the run failed" if record["state"] == "failed" else "the run was skipped"
        details = [one for number, one in enumerate(errors) if one and one not in errors[:number]]
        runner.fail(error.get("code", "unknown"), "%s: %s" % (what, in_words(error)), record, details)
    for element in record["elements"]:
        for guard in element["guards"]:
            text = "%s: stopped before its first change: %s; look at it in check mode, and approve the plan"
            module.warn(text % (element["path"], guard))
        unresolved = element["standing"].get("unresolved")
        if unresolved:
            text = "%s: %d paths are unresolved; see: serversync conflicts %s"
            module.warn(text % (element["path"], unresolved, runner.place.name))
    begun = record["state"] in UNFINISHED
    module.exit_json(changed=begun or has_changed(record), run=record, plan=None, diff=[], failure=None)


def main() -> None:
    module = JobModule(GRAMMAR, run=None, plan=None, diff=[])
    given = module.declared
    scope = given.get("scope") or "system"
    module.check_root(scope)
    waits = given.get("wait") is not False
    if given.get("timeout") and not waits:
        module.fail([Problem("conflict", "timeout", "does not go with wait: false; leave one of them out")])
    place = layout(scope, given["name"], os.environ)
    runner = Runner(module, place)
    try:
        for path, code, lacking in (
            (
                place.launcher,
                "runner_missing",
                "the runner is not deployed on this server; apply the role serversync.core.runner",
            ),
            (place.document, "unknown_job", "there is no such job on this server; declare it with sync_job"),
        ):
            if not os.path.exists(path):
                if not module.check_mode:
                    runner.fail(code, "%s (%s is missing)" % (lacking, path))
                module.warn("%s: %s (%s is missing); without check mode this task fails" % (place.name, lacking, path))
                module.exit_json(changed=True, run=None, plan=None, diff=[], failure=None)
        approve = runner.approve
        if approve and not os.path.exists(os.path.join(place.state, "plans", place.name, approve + ".json")):
            text = "there is no plan %s of %s; make one: serversync plan %s"
            runner.fail("unknown_plan", text % (show(approve), place.name, place.name))
        if module.check_mode:
            look(module, runner)
        tell(module, runner, runner.run(given.get("timeout")) if waits else runner.start())
    except StoreError as error:
        module.fail_store(error)


if __name__ == "__main__":
    main()
