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
attributes:
  action_group:
    description: Options can be set for all modules of the group with C(module_defaults).
    support: full
    membership:
      - serversync.core.jobs
  check_mode:
    description: Can run in check mode and return what would change, without changing anything.
    support: full
    details:
      - Works before the runner is deployed.
  diff_mode:
    description: Returns the difference between what is there and what is declared, file by file.
    support: full
  idempotent:
    description: When run twice in a row with the same arguments, the second run changes nothing.
    support: full
  platform:
    description: Target operating systems.
    support: full
    platforms: posix
options:
  name:
    description:
      - The name of the job, which together with O(scope) is its identity.
      - One to 64 of the characters C(a-z), C(0-9), C(_), C(.) and C(-), beginning with a letter or a digit.
    type: str
    required: true
  state:
    description:
      - V(present) creates the job or changes it; V(absent) stops and removes it with all its files, even
        damaged ones. The synchronized data stays.
      - Omitted means V(present).
    type: str
    choices: [present, absent]
  omitted:
    description:
      - What becomes of options that are omitted. With V(keep) they stay as they are in the existing job. With V(reset)
        they get their defaults, so that the job is exactly what the task says; a damaged declaration is then replaced.
      - Omitted means V(keep).
    type: str
    choices: [keep, reset]
  comment:
    description:
      - What the job is for, in one line.
      - On creation V("").
    type: str
  enabled:
    description:
      - Whether the schedule is active. With V(false) the job is paused; it can still be run by hand.
      - On creation V(true).
    type: bool
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
  partner:
    description:
      - The other server.
    type: dict
    suboptions:
      host:
        description:
          - Its host name, IPv4 address or IPv6 address without brackets, or the name of a pairing that the role
            P(serversync.core.runner#role) has made.
          - Needed for a new job.
        type: str
      port:
        description:
          - The port of its SSH server.
          - On creation V(22).
        type: int
      connection:
        description:
          - V(ssh) reaches the partner's runner over SSH. With V(local) both replicas are on this server, and only
            O(partner.host) is needed, as a name for reports.
          - V(sftp) is for a partner that has neither a runner nor rsync, such as a NAS, a Windows server or hosted
            storage. The account there must accept the key. Hard links, ACLs, extended attributes and sparse files are
            not preserved then, files that changed are copied whole, and owners are numbers.
          - On creation V(ssh).
        type: str
        choices: [ssh, sftp, local]
      host_key:
        description:
          - The partner's public host keys, each as in C(/etc/ssh/ssh_host_ed25519_key.pub) there. The comment
            after the key is ignored.
          - Empty for a partner that is paired with this server; its key is pinned then, and a key given here
            must be that one. Without a pairing the job needs at least one, because a host key is always
            checked.
          - On creation V([]).
        type: list
        elements: str
  account:
    description:
      - How to log in on the partner. Has no use with O(partner.connection=local).
    type: dict
    suboptions:
      user:
        description:
          - The user on the partner.
          - On creation V(serversync).
        type: str
      private_key_file:
        description:
          - The absolute path of the private key on this server.
          - V(null) is the runner's own key, and the default on creation.
        type: str
  schedule:
    description:
      - When the job runs by itself. V(null) removes the schedule; the job is then run by hand with C(serversync
        run NAME).
      - Exactly one of O(schedule.every), O(schedule.at) and O(schedule.calendar); giving one clears the others.
      - On creation V(null). Where no systemd runs it must stay V(null).
    type: dict
    suboptions:
      every:
        description:
          - A period from V(1m) to V(1d) that divides an hour or a day, such as V(15m) or V(2h).
        type: str
      at:
        description:
          - One or more times of day, as V(02:30) or V(02:30:10). Quote them, because YAML reads C(12:30) as the
            number 750.
        type: list
        elements: str
      days:
        description:
          - The days of the week that O(schedule.at) is for, as V(mon) or V(monday). Empty means every day.
          - On creation V([]).
        type: list
        elements: str
      calendar:
        description:
          - A calendar expression of systemd for all the rest, such as V(Mon..Fri *-*-1..7 02:30). See C(man
            systemd.time).
        type: str
      timezone:
        description:
          - The time zone of the schedule, such as V(Europe/Berlin). V(null) is that of this server, and the
            default on creation.
        type: str
      jitter:
        description:
          - Up to how much later than scheduled a run starts, so that many jobs do not start at once. The delay
            stays the same from run to run.
          - On creation a tenth of the period, at most V(15m), with O(schedule.calendar) V(0s). As long as it is
            the default it follows the period.
        type: str
      catch_up:
        description:
          - Whether a run that was missed because this server was down is made up for after boot.
          - On creation V(true).
        type: bool
  on_error:
    description:
      - What happens when a run fails for a cause that may pass, such as a lost connection.
    type: dict
    suboptions:
      retries:
        description:
          - How often the run is tried again, from V(0) to V(100).
          - On creation V(3).
        type: int
      delay:
        description:
          - How long to wait before the next try, from V(0s) to V(1d).
          - On creation V(5m).
        type: str
  notification:
    description:
      - Who is told of what.
    type: dict
    suboptions:
      email:
        description:
          - The addresses that get a mail.
          - On creation V([]).
        type: list
        elements: str
      events:
        description:
          - What a mail is sent for. V(failure) when the last try has failed, V(success) after every good run.
          - On creation V([failure]).
        type: list
        elements: str
        choices: [failure, success]
  settings:
    description:
      - How the elements are synchronized.
    type: dict
    suboptions:
      direction:
        description:
          - Where changes go. With V(to_partner) this server is the source and only the partner's files are changed;
            with V(from_partner) it is the other way round. With V(both) each server gets what the other one changed.
          - On creation V(to_partner).
        type: str
        choices: [to_partner, from_partner, both]
      conflict:
        description:
          - Which version stands where both servers have changed a file since they last agreed, where it was changed
            on the target only, and where the two differ and never agreed.
          - V(this_server_wins) and V(partner_wins) name a server, whatever the direction. V(newer_wins) takes the one
            that was modified later; where that cannot be told the source's, and with O(settings.direction=both) none.
            V(no_winner) moves nothing, and leaves the conflict to be resolved by hand. V(keep_both) keeps the losing
            version beside the other, as C(NAME.conflict-SERVER-TIME.EXT); the target's version loses, with
            O(settings.direction=both) the partner's.
          - What loses is never gone at once. It is kept as O(settings.keep_versions) says.
          - On creation V(newer_wins).
        type: str
        choices: [this_server_wins, partner_wins, newer_wins, no_winner, keep_both]
      delete:
        description:
          - What is deleted. V(never) deletes nothing. V(synced) deletes what was the same on both servers and is gone
            from the source, with O(settings.direction=both) from either. V(extraneous) also deletes what only the
            target has, which makes the target a mirror, and does not go with O(settings.direction=both).
          - Nothing is deleted in a first run, nor in one that cannot know what both servers agreed on before. Deleted
            files are kept as O(settings.keep_versions) says.
          - On creation V(never).
        type: str
        choices: [never, synced, extraneous]
      max_delete:
        description:
          - A run that would delete more than this stops before it changes anything, and waits to be approved. It
            protects from a source that was emptied or is not mounted.
          - A share such as V(25%), from V(1%) to V(100%), is one of the paths that both servers agreed on, but never
            less than 10 paths. A whole number is one of paths, and V(0) stops at the first deletion.
          - V(100%) switches this guard off; V(null) does not, it sets the default.
          - On creation V(25%).
        type: str
      max_change:
        description:
          - A run that would overwrite more than this stops before it changes anything, and waits to be approved. The
            same forms as O(settings.max_delete).
          - V(null) is no limit, and the default on creation.
        type: str
      include:
        description:
          - Patterns of the files that take part, as in C(.gitignore); a directory takes along what is in it. Empty
            means all. What O(settings.exclude) matches does not take part in any case.
          - The last pattern that matches decides, and one after C(!) is an exception from those before it. A pattern
            with a comma must stand in a list.
          - On creation V([]).
        type: list
        elements: str
      exclude:
        description:
          - Patterns of files that are left alone on both servers, as in C(.gitignore). An excluded directory takes
            along what is in it.
          - The last pattern that matches decides, and one after C(!) is an exception from those before it. A pattern
            with a comma must stand in a list.
          - On creation V([]).
        type: list
        elements: str
      preserve:
        description:
          - What is kept the same beside the contents. V(hardlinks) keeps names of one file together, V(sparse) keeps
            holes.
          - A job in O(scope=user) whose target is this server cannot keep V(owner).
          - V([]) keeps contents only. V(null) is everything that the account may preserve on both servers, and the
            default on creation.
        type: list
        elements: str
        choices: [times, permissions, owner, group, links, hardlinks, acls, xattrs, sparse]
      owners:
        description:
          - Whether V(owner) and V(group) in O(settings.preserve) mean V(names) or V(numbers). A name that the other
            server does not know keeps its number, with a warning.
          - On creation V(names).
        type: str
        choices: [names, numbers]
      verify:
        description:
          - How a changed file is known. V(metadata) goes by size, times and inode, and reads only files that may have
            changed. V(checksum) reads all files on both servers in every run, and so also finds what changed without
            a trace, such as a damaged disk block.
          - On creation V(metadata).
        type: str
        choices: [metadata, checksum]
      verify_every:
        description:
          - Every how many runs all files are read, from V(1) to V(10000), with O(settings.verify=metadata). It does
            not go with O(settings.verify=checksum), which always does.
          - V(null) is never, and the default on creation.
        type: int
      keep_versions:
        description:
          - How long files that a run has overwritten or deleted are kept in C(.serversync) on their own server, from
            V(0s) to V(3650d). Those of the last run always are.
          - On creation V(7d).
        type: str
      versions_max:
        description:
          - How much room such files may take, of each element, before the oldest go. A share of their file system from
            V(1%) to V(100%), or a size such as V(50G) from V(1M) to V(1024T), where C(K), C(M), C(G) and C(T) are
            powers of 1024.
          - On creation V(20%).
        type: str
      bandwidth_limit:
        description:
          - How many bytes a second the job may send or receive, all its elements together, such as V(500K) or V(20M),
            from V(1K) to V(1T), where C(K), C(M), C(G) and C(T) are powers of 1024.
          - V(null) is no limit, and the default on creation.
        type: str
      compress:
        description:
          - Whether data is compressed on its way. With V(auto) the runner chooses.
          - On creation V(auto).
        type: str
        choices: [auto, always, never]
  elements:
    description:
      - The directory trees and files that are kept in sync. They must not overlap.
      - On this server none may be equal to, inside or around a directory of the runner's own, which in system scope are
        C(/etc/serversync), C(/var/lib/serversync) and C(/usr/lib/serversync).
      - Needed for a new job.
    type: list
    elements: dict
    suboptions:
      path:
        description:
          - The absolute path on this server.
        type: str
        required: true
      partner_path:
        description:
          - The absolute path on the partner.
          - The default is the same as O(elements[].path). With O(partner.connection=local) it must be given.
          - With O(partner.connection=ssh) it must not contain C(*), C(?), C([) or a backslash, also where it is the
            default, because rsync on the partner takes them for a pattern.
        type: str
      kind:
        description:
          - V(tree) is a directory with all that is in it, or one file.
          - V(log) is one file that only ever grows, such as a log. Its new lines are appended to the file on the
            target, where the lines that are there stay, whoever wrote them. No line is taken twice and none is lost
            when the source is rotated. It does not go with O(settings.direction=both).
          - Of O(settings), V(log) heeds O(settings.direction), and of O(settings.preserve) V(permissions), V(owner)
            and V(group), for a file that is made on the target. The others have no use with it, since nothing
            is ever overwritten or deleted.
          - On creation V(tree).
        type: str
        choices: [tree, log]
      previous_path:
        description:
          - The path on this server that the element had before, when its directory was moved. The element takes over
            what was known of it there, so that the next run is no first run. It may stay in the task.
          - V(null) is none, and the default on creation.
        type: str
  limits:
    description:
      - What a run may take of the servers.
    type: dict
    suboptions:
      parallel:
        description:
          - How many elements are synchronized at a time, from V(1) to V(8).
          - On creation V(1).
        type: int
notes:
  - An option that is omitted differs from one that is V(null). In roles and templates use the C(omit) variable
    for the former.
  - Times of day in O(schedule.at) must be quoted in YAML.
  - A damaged declaration on the server is an error, because nobody could tell what to leave as it is.
    O(state=absent) removes it.
seealso:
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

- name: Change one detail and leave the rest as it is
  serversync.core.sync_job:
    name: line1-programs
    on_error:
      retries: 5
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
    account: {user: serversync, private_key_file: null}
    schedule:
      every: null
      at: ["02:30"]
      days: []
      calendar: null
      timezone: null
      jitter: 15m
      catch_up: true
    on_error: {retries: 3, delay: 5m}
    notification: {email: [ops@example.com], events: [failure]}
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
    limits: {parallel: 1}
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
    - The commands that changed something on the server, each as a list of its words. In check mode those that would.
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

from ansible_collections.serversync.core.plugins.module_utils._apply import apply
from ansible_collections.serversync.core.plugins.module_utils._module import JobModule
from ansible_collections.serversync.core.plugins.module_utils._store import StoreError


def main() -> None:
    module = JobModule(job=None)
    given = module.declared
    try:
        done = apply(module, given.get("scope") or "system", [("", given)], None)
    except StoreError as error:
        module.fail_store(error)
    job = done.jobs[0] if done.jobs else None
    module.exit_json(changed=done.plan.changed, job=job, diff=done.plan.diff, commands=done.plan.commands, failure=None)


if __name__ == "__main__":
    main()
