# SPDX-FileCopyrightText: serversync.core contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""The options of a job: those of sync_job itself, and the same as a list for sync_jobs."""

from __future__ import annotations

import textwrap

_LIST = r"""
options:
  jobs:
    description:
      - The jobs, each with the options of M(serversync.core.sync_job).
      - What is said of creation holds with O(omitted=reset) whenever an option is omitted.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - The name of the job, which together with O(scope) is its identity. No two jobs of the list have the same.
          - One to 64 of the characters C(a-z), C(0-9), C(_), C(.) and C(-), beginning with a letter or a digit.
        type: str
        required: true
      state:
        description:
          - V(present) creates the job or changes it; V(absent) stops and removes its declaration. The
            synchronized data stays, with what is known of it.
          - Omitted means V(present).
        type: str
        choices: [present, absent]
      previous_name:
        description:
          - The name that the job had before. A job of that name in O(scope) on this server is renamed, and keeps its
            records, its archives, and the versions of its files. Where there is none, or it has been renamed, it plays
            no part.
        type: str
      copy_from:
        description:
          - The name of another job, as it is in the list or else on this server in O(scope). The job is then that one
            with the options of the entry laid over it, whatever O(omitted) says.
          - Its C(accept_circular) and the C(previous_path) of its elements are not copied.
        type: str
      scope:
        description:
          - It may be given, but must be that of the task, O(scope).
        type: str
        choices: [system, user]
"""


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
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
      password:
        description:
          - The password of the account, with O(partner.connection=sftp) only, for servers that take no key. Giving it
            clears O(account.private_key_file), and the other way round.
          - It is kept outside of the job's document in C(/etc/serversync/credentials/), which only root reads, and
            handed to the job's service as a credential of systemd; in O(scope=user) below
            C(~/.config/serversync/credentials/), where the service reads it. Where C(systemd-creds) has a key of this
            server it is encrypted with that. It is compared without ever being shown. V(kept as a credential), which is
            returned in its place, may be given back and means that it stays as it is.
          - V(null) is a log-in by key, and the default on creation; a password that is kept is removed then.
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
      day_of_month:
        description:
          - The days of the month that O(schedule.at) is for, in the place of O(schedule.days), as V(1) or V(15). A
            month that lacks the day is passed over. Empty means every day.
          - On creation V([]).
        type: list
        elements: int
      calendar:
        description:
          - A calendar expression of systemd for all the rest, such as V(Mon..Fri *-*-1..7 02:30). See C(man
            systemd.time).
        type: str
      timezone:
        description:
          - The time zone of the schedule, such as V(Europe/Berlin). V(null) is that of this server, and the
            default on creation.
          - The names of UTC (V(Etc/UTC), V(GMT), V(Zulu) and the like) are all taken for V(UTC). Other names that stand
            for one zone, such as V(Europe/Kiev) and V(Europe/Kyiv), are different, since not every server knows both.
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
          - How long to wait before the second try, from V(0s) to V(1d).
          - On creation V(5m).
        type: str
      backoff:
        description:
          - How many times longer each wait is than the one before it, from V(1) to V(10). With V(1) all are
            O(on_error.delay).
          - On creation V(2.0).
        type: float
      max_delay:
        description:
          - The longest wait, up to V(1d); not shorter than O(on_error.delay).
          - On creation V(null), which means V(1h), or O(on_error.delay) where that is longer.
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
      urls:
        description:
          - The URLs of services that get the same message through Apprise, such as chats, telephones and pagers, each
            as Apprise's page of the service has it. A URL must be of a service in the network, and have C(%20) for a
            blank.
          - The runner sends with the Python library Apprise, which the role P(serversync.core.runner#role) installs
            with C(runner_apprise=true). Where it is missing every run warns of that, and is carried out all the same.
          - They have tokens and passwords in them, and are kept as O(account.password) is. They are the file
            C(notification.urls) there, and are named in errors and records by their place in the list and their scheme
            alone. V([kept as a credential]), which is returned in their place, may be given back and means that they
            stay as they are; they are given all or none.
          - On creation V([]); URLs that are kept are removed then.
        type: list
        elements: str
      events:
        description:
          - What a message is sent for; one a run at most to each.
          - V(failure) when the last try has failed.
          - V(conflict) when paths wait for a person, or a guard stopped the run; not again while it is the same.
          - V(recovery) after the first good run that follows one of these, or V(late).
          - V(late) when there was no good run for longer than O(notification.late_after), once until there is one.
          - V(success) after every good run, V(always) after every run that did not find another one of the job on.
          - On creation V([conflict, failure, recovery]).
        type: list
        elements: str
        choices: [failure, conflict, recovery, late, success, always]
      late_after:
        description:
          - How long the job may be without a good run before it is late, from V(1m) to V(3650d), whether its runs fail,
            are skipped, leave paths to decide, or do not begin at all. C(serversync status) and the metrics tell it of
            every job, people are told with V(late) in O(notification.events). A job that is paused is never late.
          - It counts from the end of the last good run, or from when the job was last changed, if that is later.
          - Not shorter than the longest time that O(schedule) leaves between two runs.
          - V(null) is twice that time, but at least V(2h), and the default on creation. With O(schedule.calendar), of
            which only systemd knows that time, and without a schedule V(null) means that nothing makes the job late;
            then it must be given for V(late) in O(notification.events).
        type: str
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
            when the source is rotated. It does not go with O(settings.direction=both), unless the element has a
            O(elements[].settings.direction) of its own.
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
      requires:
        description:
          - The O(elements[].path) of other elements of the job that have to be well first, such as the program of a
            machine before its recipes. This one is begun when they are done, and left alone, with the state C(skipped)
            and the reason on record, if one of them failed, was skipped or was stopped by a guard.
          - What is chosen for a run by C(--element) takes along what it requires.
          - On creation V([]).
        type: list
        elements: str
      settings:
        description:
          - Settings of this element alone, with the same options as O(settings). What is given here holds for the
            element, whatever O(settings) says, now or later; what is omitted or V(null) is as O(settings) has it. A
            list replaces the one of O(settings).
          - Where the two do not go together, such as O(settings.delete=extraneous) with
            O(elements[].settings.direction=both), the task fails and says what to give here.
          - A log takes O(elements[].settings.direction), O(elements[].settings.owners) and, of permissions, owner and
            group, O(elements[].settings.preserve).
          - V(null) is none, and the default on creation.
        type: dict
        suboptions:
          direction:
            description:
              - As O(settings.direction).
            type: str
            choices: [to_partner, from_partner, both]
          conflict:
            description:
              - As O(settings.conflict).
            type: str
            choices: [this_server_wins, partner_wins, newer_wins, no_winner, keep_both]
          delete:
            description:
              - As O(settings.delete).
            type: str
            choices: [never, synced, extraneous]
          max_delete:
            description:
              - As O(settings.max_delete), of the paths of this element.
            type: str
          max_change:
            description:
              - As O(settings.max_change). Where the job has a limit, V(100%) is none.
            type: str
          include:
            description:
              - As O(settings.include), in the place of those patterns. V([]) is all.
            type: list
            elements: str
          exclude:
            description:
              - As O(settings.exclude), in the place of those patterns. V([]) is none.
            type: list
            elements: str
          preserve:
            description:
              - As O(settings.preserve), in the place of that list.
            type: list
            elements: str
            choices: [times, permissions, owner, group, links, hardlinks, acls, xattrs, sparse]
          owners:
            description:
              - As O(settings.owners).
            type: str
            choices: [names, numbers]
          verify:
            description:
              - As O(settings.verify). With V(checksum) O(settings.verify_every) plays no part for this element.
            type: str
            choices: [metadata, checksum]
          verify_every:
            description:
              - As O(settings.verify_every).
            type: int
          keep_versions:
            description:
              - As O(settings.keep_versions).
            type: str
          versions_max:
            description:
              - As O(settings.versions_max).
            type: str
          bandwidth_limit:
            description:
              - As O(settings.bandwidth_limit), for what this element sends or receives.
            type: str
          compress:
            description:
              - As O(settings.compress). With O(partner.connection=sftp) it is of the whole job, and cannot be given
                here.
            type: str
            choices: [auto, always, never]
  before:
    description:
      - Services of systemd that are started before a run moves anything, one after another, each when the one before it
        is done; such as one that dumps a database. A service has C(Type=oneshot), or a run does not wait for its end;
        one that is active already is left as it is.
      - One that fails fails the run, which is not tried again by O(on_error), and has no element begun.
      - With O(scope=user) these are services of the user's own systemd manager. A plan and a check start none.
      - On creation V([]).
    type: list
    elements: dict
    suboptions:
      unit:
        description:
          - The whole name of the service, such as V(dump-db.service) or V(dump-db@main.service).
        type: str
        required: true
  after:
    description:
      - Services that are started when a run is over, whatever it came to, even if one of O(before) failed or the run
        was stopped or killed; such as one that thaws what was frozen. All of them are tried, and one that fails makes
        the run a failed one.
      - On creation V([]).
    type: list
    elements: dict
    suboptions:
      unit:
        description:
          - The whole name of the service, as in O(before).
        type: str
        required: true
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
      timeout:
        description:
          - How long one attempt of a run may take, from V(1m) to V(30d). It is ended then, counts as failed, and is
            tried again as O(on_error) says; the next one goes on from there.
          - V(null) is as long as it takes, and the default on creation.
        type: str
      nice:
        description:
          - How much a run gives way to other processes of this server, from V(0) to V(19), as C(nice) has it.
          - On creation V(0).
        type: int
  accept_circular:
    description:
      - Why a circular connection that the job is part of is meant, in one line. Also accepts the other errors that
        M(serversync.core.sync_topology) describes, such as a target that another job writes, too.
      - Without it a task fails that closes a circle with another job of the same scope on this server. A job that was
        there before and whose partner, elements and settings stay as they are closes none. V(null) is that, and the
        default on creation.
    type: str
"""


# Not in the class, of which ansible-test reads literals only.
ModuleDocFragment.JOBS = _LIST + textwrap.indent(
    ModuleDocFragment.DOCUMENTATION.partition("options:\n")[2].replace(" O(", " O(jobs[]."), " " * 4
)
