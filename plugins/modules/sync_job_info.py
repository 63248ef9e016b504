#!/usr/bin/python
# SPDX-FileCopyrightText: serversync.core contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sync_job_info
short_description: Read synchronization jobs, and how their runs went
version_added: 0.2.0
author:
  - serversync.core contributors (@serversync-core)
description:
  - Reads the jobs of this server as M(serversync.core.sync_job) and M(serversync.core.sync_jobs) take them. Giving
    them back to these modules changes nothing, but for a document that cannot be read, which is not among them, or that
    was written by a release that knew fewer options.
  - Beside each job it tells the state, the last run, the paths that stand unresolved, and the next run, from what the
    runner has published and from systemd's timers. It opens no connection and touches no replica.
extends_documentation_fragment:
  - serversync.core._attributes
  - serversync.core._attributes.info
options:
  names:
    description:
      - The jobs to read. One that is not there is left out.
      - Omitted means all jobs of O(scope).
    type: list
    elements: str
  scope:
    description:
      - Whose jobs they are, as for M(serversync.core.sync_job). With V(system) the task needs C(become=true), or a user
        who may read C(/etc/serversync) and C(/var/lib/serversync/public).
      - Omitted means V(system).
    type: str
    choices: [system, user]
seealso:
  - module: serversync.core.sync_job
  - module: serversync.core.sync_jobs
  - module: serversync.core.sync_job_run
"""

EXAMPLES = r"""
- name: Read all jobs
  serversync.core.sync_job_info:
  register: found
  become: true

- name: Fail where one of them is not well
  ansible.builtin.assert:
    that: bad | length == 0
    fail_msg: "{{ bad | map(attribute='name') | join(', ') }}"
  vars:
    bad: "{{ found.status | selectattr('state', 'in', ['failed', 'invalid']) }}"

- name: Note the jobs in a file beside the playbook
  ansible.builtin.copy:
    content: "{{ found.jobs | to_nice_json }}"
    dest: "{{ playbook_dir }}/jobs.json"
    mode: "0600"
  delegate_to: localhost

- name: Wait until a run that was started is over
  serversync.core.sync_job_info:
    names: line1-programs
  register: found
  until: found.status[0].state not in ['running', 'waiting']
  retries: 60
  delay: 10
  become: true
"""

RETURN = r"""
jobs:
  description:
    - The jobs, as C(sync_job) and C(sync_jobs) take them, in the order of their names. Every option is there.
    - A job whose document is damaged, or was declared on another server, is in RV(status) only.
  returned: always
  type: list
  elements: dict
  sample:
    - name: line1-programs
      comment: ""
      enabled: true
      scope: system
status:
  description:
    - How the jobs are, in the order of their names.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The name of the job.
      type: str
    state:
      description:
        - V(equal), V(equal_with_warnings), V(different), V(failed), V(skipped), V(running) or V(waiting), as
          C(serversync status) has it; V(invalid) for a damaged document or record, and for the document of a job that
          was declared on another server, which the runner refuses.
        - V(null) when the job, or one of its elements, has not run yet.
      type: str
    problem:
      description: What is wrong with RV(status[].state=invalid), otherwise V(null).
      type: str
    conflicts:
      description: How many paths stand unresolved; V(null) before the first run.
      type: int
    last_run:
      description: The record of the last run, as C(serversync show --json) has it, or V(null).
      type: dict
    next_run:
      description:
        - When the timer starts the next run, in UTC. V(null) without a schedule, while a run is on, and where no
          systemd runs.
      type: str
  sample:
    - name: line1-programs
      state: equal
      problem: null
      conflicts: 0
      last_run: {run: 20261126-013007-4f1c, job: line1-programs, state: equal}
      next_run: "2026-11-27T01:30:00+00:00"
failure:
  description:
    - Why the task failed, for programs. V(null) when it did not.
  returned: always
  type: dict
  contains:
    code:
      description: The kind of failure, such as V(not_a_choice) or V(unreadable).
      type: str
    path:
      description: The option, file or command that the failure is about.
      type: str
    details:
      description: Everything that was found wrong.
      type: list
      elements: dict
  sample:
    code: unreadable
    path: /etc/serversync/jobs
    details: []
"""

import os
from typing import Any, Mapping

from ansible_collections.serversync.core.plugins.module_utils import (  # pylint: disable=unused-import
    _fromzip,  # noqa: F401  # before what is large
)
from ansible_collections.serversync.core.plugins.module_utils._job import Field, field_of, foreign
from ansible_collections.serversync.core.plugins.module_utils._module import JobModule
from ansible_collections.serversync.core.plugins.module_utils._records import (
    next_runs,
    printable,
    published,
)
from ansible_collections.serversync.core.plugins.module_utils._states import state, unresolved
from ansible_collections.serversync.core.plugins.module_utils._store import (
    Layout,
    StoreError,
    declared_names,
    layout,
    manager_environment,
    read_document,
    read_machine_id,
    systemd_runs,
)

GRAMMAR = Field(
    "sync_job_info",
    "mapping",
    "Which jobs are read.",
    parts=(
        Field("names", "list", "The jobs to read.", element=field_of("name")),
        field_of("scope"),
    ),
)


FOREIGN = "was declared on another server; declare the job on this one, too, or remove it with state: absent"


def status(place: Layout, job: Mapping[str, Any] | None, problem: str | None, elapse: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"name": place.name, "state": "invalid", "problem": problem, "conflicts": None}
    found.update(last_run=None, next_run=elapse)
    try:
        runs = published(place)
    except StoreError as error:
        found["problem"] = problem or str(error)
        return found
    if runs:
        found["last_run"] = printable(runs[0])
    if job is not None:
        paths = [element["path"] for element in job["elements"]]
        found.update(state=state(runs, paths), conflicts=unresolved(runs, paths) if runs else None)
    return found


def main() -> None:
    module = JobModule(GRAMMAR, jobs=[], status=[])
    scope = module.declared.get("scope") or "system"
    place = layout(scope, "", os.environ)
    jobs, states = [], []
    try:
        names = module.declared.get("names")
        names = declared_names(place) if names is None else sorted(names)
        machine_id = read_machine_id()
        elapses: dict[str, str] = {}
        if names and systemd_runs(scope, os.environ, os.geteuid()):
            module.run_command_environ_update = manager_environment(scope, os.environ, os.geteuid())
            elapses = next_runs(place, module.run)
        for name in names:
            one = place._replace(name=name)
            job, said = read_document(one)
            if job is None and said is None:
                continue
            problem = "%s is damaged (%s)" % (one.document, said) if said else None
            if job is not None and foreign(job, machine_id):
                # given back it would be a job of this server
                job, problem = None, "%s %s" % (one.document, FOREIGN)
            if job is not None:
                # the modules take neither
                jobs.append({key: value for key, value in job.items() if key not in ("version", "machine_id")})
            states.append(status(one, job, problem, elapses.get(name)))
    except StoreError as error:
        module.fail_store(error)
    module.exit_json(changed=False, jobs=jobs, status=states, failure=None)


if __name__ == "__main__":
    main()
