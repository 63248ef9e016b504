#!/usr/bin/python
# SPDX-FileCopyrightText: serversync.core contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sync_jobs
short_description: Declare all synchronization jobs of a server in one call
version_added: 0.2.0
author:
  - serversync.core contributors (@serversync-core)
description:
  - Does for a list of jobs what M(serversync.core.sync_job) does for one, in one call. Where nothing changes, a hundred
    jobs take about as long as one.
  - The list is the truth. An option that an entry omits has its default, and with O(purge=true) a job that is not in
    the list is removed.
  - Everything is checked and compared before the first change, and an error in one job leaves all of them as they
    are. systemd is told once, and only if something changed.
extends_documentation_fragment:
  - serversync.core._attributes
  - serversync.core._job.jobs
attributes:
  check_mode:
    support: full
    details:
      - Works before the runner is deployed.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  scope:
    description:
      - Whose jobs they are, as for M(serversync.core.sync_job). With V(system) the task needs C(become=true).
      - Omitted means V(system).
    type: str
    choices: [system, user]
  validate_partner:
    description:
      - Whether jobs that change are tried before anything is written, as with M(serversync.core.sync_job), by one
        connection to each partner and account.
      - Omitted means V(true).
    type: bool
  stop_timeout:
    description:
      - When jobs are changed, renamed or removed while they run, how long their runs may go on before they are stopped,
        all of them together. Then the task says so in a warning. Where nothing changes nothing is stopped, and check
        mode never waits.
      - From V(0s) to V(1d). Omitted means V(60s).
    type: str
  omitted:
    description:
      - What becomes of options that an entry omits. With V(reset) they get their defaults, so that every job is exactly
        what the list says; a damaged declaration is then replaced. With V(keep) they stay as they are in the existing
        job.
      - Omitted means V(reset).
    type: str
    choices: [keep, reset]
  purge:
    description:
      - Whether jobs of O(scope) that are on the server and not in O(jobs) are removed. With an empty list that is all
        of them. The synchronized data stays.
      - Omitted means V(false).
    type: bool
notes:
  - An option that is omitted differs from one that is V(null) with O(omitted=keep) only; V(null) sets the default.
  - Times of day in O(jobs[].schedule.at) must be quoted in YAML.
  - Should the task be killed, every job is the old one or the new one, and the next run finishes what is left.
seealso:
  - module: serversync.core.sync_job
  - module: serversync.core.sync_job_info
"""

EXAMPLES = r"""
- name: These are the jobs of this server, and there are no others
  serversync.core.sync_jobs:
    purge: true
    jobs:
      - name: line1-programs
        partner: {host: hq.example.com}
        schedule: {at: "02:30"}
        elements: [{path: /srv/line1/programs}]
      - name: line1-recipes
        partner: {host: hq.example.com}
        schedule: {every: 15m}
        settings: {direction: both, conflict: keep_both}
        elements: [{path: /srv/line1/recipes}]
  become: true

- name: One base and what is special about each job
  serversync.core.sync_jobs:
    jobs: "{{ [base] | product(lines) | map('combine', recursive=True) | list }}"
  vars:
    base:
      partner: {host: hq.example.com}
      schedule: {at: "02:30"}
    lines:
      - name: line1-programs
        elements: [{path: /srv/line1/programs}]
      - name: line2-programs
        elements: [{path: /srv/line2/programs}]
  become: true

- name: The jobs are as they were noted before
  serversync.core.sync_jobs:
    jobs: "{{ noted.jobs }}"
  vars:
    noted: "{{ lookup('ansible.builtin.file', 'jobs.json') | from_json }}"
  become: true
"""

RETURN = r"""
jobs:
  description:
    - The jobs of the list in their normal form, as they are after the task. In check mode as they would be.
    - Empty when the task failed.
  returned: always
  type: list
  elements: dict
  sample:
    - version: 1
      name: line1-programs
      comment: ""
      enabled: true
      scope: system
changes:
  description:
    - The names of the jobs that changed, by what happened to them. In check mode of those that would.
  returned: always
  type: dict
  contains:
    created:
      description: Jobs that were not there.
      type: list
      elements: str
    edited:
      description: Jobs that were there, and were different or had another name.
      type: list
      elements: str
    removed:
      description: Jobs that are no more.
      type: list
      elements: str
  sample:
    created: [line2-programs]
    edited: []
    removed: []
diff:
  description:
    - What changes, with one entry for every file, and for the state of timers where that differs.
      The same in check mode and for real.
    - Empty when nothing changes.
  returned: always
  type: list
  elements: dict
  contains:
    before:
      description: What is there.
      type: str
    after:
      description: What is declared.
      type: str
    before_header:
      description: The path of the file, or V(/dev/null) when it is not there.
      type: str
    after_header:
      description: The path of the file, or V(/dev/null) when it is removed.
      type: str
  sample:
    - before: ""
      after: "[Unit]\n…"
      before_header: /dev/null
      after_header: /etc/systemd/system/serversync@line1-programs.timer
commands:
  description:
    - The commands that changed something on the server, each as a list of its words. In check mode those that would,
      but for the stopping of runs that outlast O(stop_timeout).
  returned: always
  type: list
  elements: list
  sample:
    - [systemctl, enable, --no-reload, serversync@line1-programs.timer, serversync@line1-recipes.timer]
    - [systemctl, daemon-reload]
    - [systemctl, start, serversync@line1-programs.timer, serversync@line1-recipes.timer]
failure:
  description:
    - Why the task failed, for programs. V(null) when it did not.
  returned: always
  type: dict
  contains:
    code:
      description: The kind of failure, such as V(invalid_value), V(duplicate) or V(runner_missing).
      type: str
    path:
      description: The option, file or command that the failure is about.
      type: str
    details:
      description: Everything that was found wrong in all jobs, the first of which is in RV(ignore:msg).
      type: list
      elements: dict
  sample:
    code: invalid_value
    path: jobs[3].elements[0].path
    details:
      - code: invalid_value
        path: jobs[3].elements[0].path
        text: "'srv/x' is not absolute; write the whole path from /"
        msg: "jobs[3].elements[0].path: 'srv/x' is not absolute; write the whole path from /"
"""

from typing import Any, Mapping, Sequence

from ansible_collections.serversync.core.plugins.module_utils import (  # pylint: disable=unused-import
    _fromzip,  # noqa: F401  # before what is large
)
from ansible_collections.serversync.core.plugins.module_utils._apply import Way, apply
from ansible_collections.serversync.core.plugins.module_utils._job import (
    JOB,
    OF_THE_TASK,
    Field,
    Problem,
    field_of,
    show,
)
from ansible_collections.serversync.core.plugins.module_utils._module import JobModule
from ansible_collections.serversync.core.plugins.module_utils._store import StoreError

SCOPE = Field("scope", "text", "The scope of the task.", choices=field_of("scope").choices)
ENTRY = tuple(SCOPE if part.name == "scope" else part for part in JOB.parts if part.name not in OF_THE_TASK)
GRAMMAR = Field(
    "sync_jobs",
    "mapping",
    "The jobs of a server.",
    parts=(
        Field(
            "jobs",
            "list",
            "The jobs.",
            element=Field("", "mapping", "A job.", parts=ENTRY),
            required="list the jobs, or write [] for none",
        ),
        field_of("scope"),
        Field(
            "omitted",
            "text",
            "What becomes of the fields that an entry omits.",
            default="reset",
            choices=field_of("omitted").choices,
        ),
        field_of("validate_partner"),
        field_of("stop_timeout"),
        Field("purge", "flag", "Whether jobs that are not listed are removed.", default=False),
    ),
)


def check_list(jobs: Sequence[Mapping[str, Any]], scope: str) -> list[Problem]:
    """What a list of jobs can have wrong beyond its entries."""
    problems = []
    first: dict[str, int] = {}
    for number, job in enumerate(jobs):
        earlier = first.setdefault(job["name"], number)
        if earlier != number:
            text = "%s is the name of jobs[%d], too; give every job a name of its own"
            problems.append(Problem("duplicate", "jobs[%d].name" % number, text % (show(job["name"]), earlier)))
        if job.get("scope") not in (None, scope):
            text = (
                "%s is not the scope of this task, %s; set scope: %s beside jobs, and give each scope a task of its own"
            )
            words = (show(job["scope"]), show(scope), job["scope"])
            problems.append(Problem("conflict", "jobs[%d].scope" % number, text % words))
    return problems


def changes_of(ways: Sequence[Way]) -> dict[str, list[str]]:
    changes: dict[str, list[str]] = {"created": [], "edited": [], "removed": []}
    for way in ways:
        if way.plan.changed:
            there = way.there is not None
            what = "removed" if way.declared.job is None else "edited" if there else "created"
            changes[what].append(way.declared.place.name)
    return changes


def main() -> None:
    module = JobModule(GRAMMAR, jobs=[], changes=changes_of([]), diff=[], commands=[])
    given = module.declared
    scope = given.get("scope") or "system"
    problems = check_list(given["jobs"], scope)
    if problems:
        module.fail(problems)
    omitted = given.get("omitted") or "reset"
    entries = [("jobs[%d]." % number, dict(job, omitted=omitted)) for number, job in enumerate(given["jobs"])]
    try:
        done = apply(module, scope, entries, bool(given.get("purge")), given)
    except StoreError as error:
        module.fail_store(error)
    module.exit_json(
        changed=done.plan.changed,
        jobs=done.jobs,
        changes=changes_of(done.ways),
        diff=done.plan.diff,
        commands=done.commands,
        failure=None,
    )


if __name__ == "__main__":
    main()
