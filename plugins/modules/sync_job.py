#!/usr/bin/python
# SPDX-FileCopyrightText: serversync.core contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sync_job
short_description: Declare a synchronization job between two servers
version_added: 0.1.0
author:
  - serversync.core contributors (@serversync-core)
description:
  - A synchronization job keeps directory trees and files the same on this server, which is the target host of
    the task, and on a partner. It runs on a schedule, and tells by mail when it fails.
  - The module writes the declaration of the job, its systemd timer and a drop-in for its service. It never runs
    the job itself, and applying it never fires a run that was missed.
  - An option that is omitted leaves the existing job as it is there, and takes the default in a new job.
    V(null) sets the default, or for O(schedule) removes the schedule. A value is enforced.
  - Dictionaries are merged into the existing job. Lists are replaced as a whole, and an entry of a given list
    starts from the defaults.
extends_documentation_fragment:
  - serversync.core._attributes
  - serversync.core._job
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
  name:
    description:
      - The name of the job, which together with O(scope) is its identity.
      - One to 64 of the characters C(a-z), C(0-9), C(_), C(.) and C(-), beginning with a letter or a digit.
    type: str
    required: true
  state:
    description:
      - V(present) creates the job or changes it; V(absent) stops and removes its declaration, even a
        damaged one. The synchronized data stays, with what is known of it.
      - Omitted means V(present).
    type: str
    choices: [present, absent]
  validate_partner:
    description:
      - Whether a job that changes is tried before anything is written. The runner connects to the partner, once for a
        task, and looks at the host key, the log-in, the version of the runner there, the clock, and whether every path
        can be read on the source and written on the target, with the space that is left, and whether what
        O(settings.preserve) lists can be preserved. Check mode does the same.
      - What is wrong for good is an error. What may come later (the runner, a key, the pairing), and a partner that
        cannot be reached now, is a warning that begins with C(not validated). With O(partner.connection=local) there is
        nothing to connect to.
      - Omitted means V(true).
    type: bool
  stop_timeout:
    description:
      - When the job is changed, renamed or removed while it runs, how long the run may go on before it is stopped. Then
        the task says so in a warning, and the next run goes on from there. Where nothing changes nothing is stopped,
        and check mode never waits.
      - From V(0s) to V(1d). Omitted means V(60s).
    type: str
  omitted:
    description:
      - What becomes of options that are omitted. With V(keep) they stay as they are in the existing job. With V(reset)
        they get their defaults, so that the job is exactly what the task says; a damaged declaration is then replaced.
      - Omitted means V(keep).
    type: str
    choices: [keep, reset]
  previous_name:
    description:
      - The name that the job had before. A job of that name in O(scope) on this server is renamed, and keeps its
        records, its archives, and the versions of its files, so that its next run is no first one. Where there is none,
        or it has been renamed, it plays no part.
      - It is an error that both names are jobs.
    type: str
  copy_from:
    description:
      - The name of another job of O(scope) on this server. The job is then that one with the given options laid over
        it, as they are laid over an existing job, so that an omitted option is always as it is there.
      - Its O(accept_circular) and the O(elements[].previous_path) of its elements are not copied. Later changes of it
        are taken over when this task runs again. It does not go with O(omitted).
      - A secret is no other job's to have, so O(account.password) and O(notification.urls) have to be given where the
        base has them, or V(null) for none.
    type: str
  scope:
    description:
      - With V(system) the job is the server's, its service runs as the user C(serversync), and the task needs
        C(become=true).
      - With V(user) the job belongs to the user of the task, and needs no root. Its files are below the XDG
        directories, and its timer is in the user's own systemd manager, which needs C(loginctl enable-linger
        USER) once.
      - Omitted means V(system).
    type: str
    choices: [system, user]
notes:
  - An option that is omitted differs from one that is V(null). In roles and templates use the C(omit) variable
    for the former.
  - Times of day in O(schedule.at) must be quoted in YAML.
  - A damaged declaration on the server is an error, because nobody could tell what to leave as it is.
    O(state=absent) removes it.
  - The document of a job carries the machine id of the server that it was declared on, and the runner of another one
    refuses it. Where it came from another server, by a copy of C(/etc) or a restored backup, the task is changed and
    binds it to this one, with a warning.
seealso:
  - module: serversync.core.sync_jobs
  - module: serversync.core.sync_job_info
  - module: serversync.core.sync_job_run
  - name: The role serversync.core.runner
    description: Deploys what runs the jobs and pairs servers.
    link: https://github.com/serversync/serversync.core
"""

EXAMPLES = r"""
- name: Programs of line 1 go to headquarters every night
  serversync.core.sync_job:
    name: line1-programs
    partner:
      host: hq.example.com
    schedule:
      at: "02:30"
    notification:
      email: ops@example.com
    elements:
      - path: /srv/line1/programs
  become: true

- name: The same job for three lines, every weekday, without temporary files
  serversync.core.sync_job:
    name: "{{ item }}-programs"
    comment: "Nightly copy of {{ item }}"
    partner:
      host: hq.example.com
    schedule:
      at: ["02:30", "14:30"]
      days: [mon, tue, wed, thu, fri]
      timezone: Europe/Berlin
    settings:
      exclude: ["*.tmp", "/cache/"]
    elements:
      - path: "/srv/{{ item }}/programs"
        partner_path: "/srv/sites/{{ item }}/programs"
  loop: [line1, line2, line3]
  become: true

- name: Jobs that differ in a detail from a common one
  serversync.core.sync_job:
    name: "{{ item.name }}"
    partner:
      host: hq.example.com
    schedule: "{{ item.schedule | default(omit) }}"
    on_error:
      retries: 5
      delay: 10m
    settings: "{{ common | combine(item.settings | default({})) }}"
    elements: "{{ item.elements }}"
  loop:
    - name: recipes-hourly
      schedule: {every: 1h}
      elements: [{path: /srv/recipes}]
    - name: reports-back
      settings: {direction: from_partner}
      elements: [{path: /srv/reports}]
  vars:
    common:
      exclude: ["*.tmp"]
  become: true

- name: Recipes are edited on both servers, and where two edits meet both are kept
  serversync.core.sync_job:
    name: line1-recipes
    partner:
      host: hq.example.com
    schedule:
      every: 15m
    settings:
      direction: both
      conflict: keep_both
      delete: synced
    elements:
      - path: /srv/line1/recipes
  become: true

- name: What is deleted here is deleted there, but a run that would delete over a tenth stops first
  serversync.core.sync_job:
    name: line1-archive
    partner:
      host: hq.example.com
    schedule:
      at: "03:30"
    settings:
      conflict: this_server_wins
      delete: synced
      max_delete: 10%
      keep_versions: 30d
      bandwidth_limit: 20M
    elements:
      - path: /srv/line1/archive
  become: true

- name: What this server logs is collected at headquarters, line by line
  serversync.core.sync_job:
    name: line1-audit
    partner:
      host: hq.example.com
    schedule:
      every: 5m
    elements:
      - path: /var/log/line1/audit.log
        partner_path: /srv/logs/line1/audit.log
        kind: log
  become: true

- name: An element was moved, and keeps what was known of it
  serversync.core.sync_job:
    name: line1-archive
    elements:
      - path: /data/line1/archive
        partner_path: /srv/line1/archive
        previous_path: /srv/line1/archive
  become: true

- name: Recipes go only behind the programs that they are for
  serversync.core.sync_job:
    name: line1-coupled
    partner:
      host: hq.example.com
    elements:
      - path: /srv/line1/programs
      - path: /srv/line1/recipes
        requires: [/srv/line1/programs]
  become: true

- name: Programs go to headquarters, recipes come from there, and neither takes temporary files along
  serversync.core.sync_job:
    name: line1
    partner:
      host: hq.example.com
    settings:
      exclude: ["*.tmp"]
    elements:
      - path: /srv/line1/programs
      - path: /srv/line1/recipes
        settings:
          direction: from_partner
          delete: synced
  become: true

- name: Recipes to a NAS that takes no key
  serversync.core.sync_job:
    name: recipes-nas
    partner:
      host: nas.example.com
      connection: sftp
      host_key: "{{ nas_host_key }}"
    account:
      user: backup
      password: "{{ vault_nas_password }}"
    elements:
      - path: /srv/line1/recipes
        partner_path: /volume1/recipes
  become: true

- name: A chat is told of what goes wrong, and a telephone
  serversync.core.sync_job:
    name: line1-night
    partner:
      host: hq.example.com
    notification:
      urls:
        - "{{ vault_ops_chat }}"          # such as msteams://TOKEN_A/TOKEN_B/TOKEN_C
        - "{{ vault_ops_telephone }}"     # such as pover://USER@TOKEN
    elements:
      - path: /srv/line1/archive-of-the-day
  become: true

- name: A night has its end, and the machines that work in it come first
  serversync.core.sync_job:
    name: line1-night
    partner:
      host: hq.example.com
    schedule:
      at: "22:00"
    elements:
      - path: /srv/line1/archive-of-the-day
    on_error:
      retries: 1
    limits:
      timeout: 3h
      nice: 10
  become: true

- name: A database is dumped before every run, and the snapshot that it was dumped from is removed after it
  serversync.core.sync_job:
    name: recipes-db
    partner:
      host: hq.example.com
    schedule:
      at: "01:30"
    elements:
      - path: /var/backups/recipes-db
    before:
      - unit: dump-db.service
    after:
      - unit: remove-snapshot.service
  become: true

- name: What comes back from the other server goes there again, and that is meant
  serversync.core.sync_job:
    name: line1-round-trip
    partner:
      host: hq.example.com
    settings:
      direction: from_partner
    elements:
      - path: /srv/line1/programs
    accept_circular: Headquarters only ever adds approvals, which the nightly copy may take back
  become: true

- name: Change one detail and leave the rest as it is
  serversync.core.sync_job:
    name: line1-programs
    on_error:
      retries: 5
  become: true

- name: A job gets another name, and keeps what is known of it
  serversync.core.sync_job:
    name: line1-recipes-both-ways
    previous_name: line1-recipes
  become: true

- name: A job as another one on this server, but for the elements
  serversync.core.sync_job:
    name: line2-programs
    copy_from: line1-programs
    elements:
      - path: /srv/line2/programs
  become: true

- name: Pause a job
  serversync.core.sync_job:
    name: line1-programs
    enabled: false
  become: true

- name: Remove the schedule, and set the comment back to its default
  serversync.core.sync_job:
    name: line1-programs
    schedule: null
    comment: null
  become: true

- name: A job of one's own between two directories of this server, without root
  serversync.core.sync_job:
    name: notes
    scope: user
    partner:
      host: localhost
      connection: local
    schedule:
      every: 15m
    elements:
      - path: /home/ada/notes
        partner_path: /mnt/stick/notes

- name: Remove a job
  serversync.core.sync_job:
    name: line1-programs
    state: absent
  become: true
"""

RETURN = r"""
job:
  description:
    - The whole job in its normal form, as it is after the task. In check mode as it would be.
    - V(null) when the job is absent, and when the task failed.
  returned: always
  type: dict
  sample:
    version: 1
    name: line1-programs
    comment: ""
    enabled: true
    scope: system
    partner: {host: hq.example.com, port: 22, connection: ssh, host_key: []}
    account: {user: serversync, private_key_file: null, password: null}
    schedule:
      every: null
      at: ["02:30"]
      days: []
      day_of_month: []
      calendar: null
      timezone: null
      jitter: 15m
      catch_up: true
    on_error: {retries: 3, delay: 5m, backoff: 2.0, max_delay: null}
    notification: {email: [ops@example.com], urls: [], events: [conflict, failure, recovery], late_after: null}
    settings:
      direction: to_partner
      conflict: newer_wins
      delete: never
      max_delete: 25%
      max_change: null
      include: []
      exclude: []
      preserve: null
      owners: names
      verify: metadata
      verify_every: null
      keep_versions: 7d
      versions_max: 20%
      bandwidth_limit: null
      compress: auto
    elements:
      - path: /srv/line1/programs
        partner_path: /srv/line1/programs
        kind: tree
        previous_path: null
        requires: []
        settings: null
    before: []
    after: []
    limits: {parallel: 1, timeout: null, nice: 0}
    accept_circular: null
diff:
  description:
    - What changes, with one entry for every file, and for the state of the timer where that differs.
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
      but for the stopping of a run that outlasts O(stop_timeout).
  returned: always
  type: list
  elements: list
  sample:
    - [systemctl, daemon-reload]
    - [systemctl, enable, serversync@line1-programs.timer]
    - [systemctl, start, serversync@line1-programs.timer]
failure:
  description:
    - Why the task failed, for programs. V(null) when it did not.
  returned: always
  type: dict
  contains:
    code:
      description: The kind of failure, such as V(invalid_value), V(unknown_option) or V(runner_missing).
      type: str
    path:
      description: The option, file or command that the failure is about.
      type: str
    details:
      description: Everything that was found wrong, the first of which is in RV(ignore:msg).
      type: list
      elements: dict
  sample:
    code: invalid_value
    path: elements[2].path
    details:
      - code: invalid_value
        path: elements[2].path
        text: "'srv/x' is not absolute; write the whole path from /"
        msg: "elements[2].path: 'srv/x' is not absolute; write the whole path from /"
"""

from ansible_collections.serversync.core.plugins.module_utils import (  # pylint: disable=unused-import
    _fromzip,  # noqa: F401  # before what is large
)
from ansible_collections.serversync.core.plugins.module_utils._apply import apply
from ansible_collections.serversync.core.plugins.module_utils._job import Problem
from ansible_collections.serversync.core.plugins.module_utils._module import JobModule
from ansible_collections.serversync.core.plugins.module_utils._store import StoreError


def main() -> None:
    module = JobModule(job=None, diff=[], commands=[])
    given = module.declared
    if given.get("copy_from") and given.get("omitted"):
        text = "does not go with copy_from, by which omitted options are as in that job; leave one of them out"
        module.fail([Problem("conflict", "omitted", text)])
    try:
        done = apply(module, given.get("scope") or "system", [("", given)], None, given)
    except StoreError as error:
        module.fail_store(error)
    job = done.jobs[0] if done.jobs else None
    module.exit_json(changed=done.plan.changed, job=job, diff=done.plan.diff, commands=done.commands, failure=None)


if __name__ == "__main__":
    main()
