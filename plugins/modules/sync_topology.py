#!/usr/bin/python
# SPDX-FileCopyrightText: serversync.core contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sync_topology
short_description: Find circular connections among the synchronization jobs of many servers
version_added: 0.2.0
author:
  - serversync.core contributors (@serversync-core)
description:
  - Looks at the jobs of all servers together and tells where changes would go round in circles, where several jobs
    write one place, and where changes take several jobs to arrive. M(serversync.core.sync_job) sees the jobs of its own
    server only.
  - The jobs are given as data, so that a fleet can be checked before anything is applied. The module connects to no
    server. It is run once, as a rule on C(localhost).
  - Jobs that are paused are looked at as the others are, because they can be run by hand.
extends_documentation_fragment:
  - serversync.core._attributes
attributes:
  check_mode:
    support: full
    details:
      - It only reads, except for O(picture).
  diff_mode:
    support: full
    details:
      - What changes is the text of O(picture).
  idempotent:
    support: full
options:
  servers:
    description:
      - All servers with their jobs, also those that have no jobs but are partners.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - The name of the server, as a rule that in the inventory. Partners are looked up by it.
        type: str
        required: true
      aliases:
        description:
          - Further names and addresses by which jobs of other servers call this one in C(partner.host), as V(NAME) or,
            where a router leads each port to another server, V(NAME:PORT). Upper and lower case are the same.
          - Omitted means V([]).
        type: list
        elements: str
      machine_id:
        description:
          - The machine id of the server, such as the fact C(ansible_machine_id). Two entries with the same one are one
            server.
        type: str
      partners:
        description:
          - The pairings of the server, in the form of C(runner_partners) of the role P(serversync.core.runner#role), of
            which C(name) and C(host) are read. Needed where jobs name a pairing and that is not the name of a server.
          - Omitted means V([]).
        type: list
        elements: dict
      places:
        description:
          - What is known of paths of the server, through links and mounts, as dictionaries with C(path), C(file_system)
            (any text that is the same for what is on one file system) and C(real_path) (where it is on that, by default
            C(path)). It holds for what is below, too.
          - Without it two paths are one place where they are spelled alike, and what is below a path belongs to it.
          - Omitted means V([]).
        type: list
        elements: dict
      jobs:
        description:
          - The jobs of the server, each with the options of M(serversync.core.sync_job). Such with C(state=absent) are
            ignored. What C(copy_from) names must be in the list.
          - Omitted means V([]).
        type: list
        elements: dict
  scope:
    description:
      - The scope of jobs that name none, as for M(serversync.core.sync_job).
      - Omitted means V(system).
    type: str
    choices: [system, user]
  fail_on:
    description:
      - The least level of a finding for which the task fails. With V(never) it does not.
      - Omitted means V(error).
    type: str
    choices: [error, warning, never]
  picture:
    description:
      - An absolute path of a file that a picture of the servers, their paths and jobs is written to, with circles in
        red. It is written also when the task fails for a finding.
      - The ending says what it is. C(.mmd) and C(.mermaid) are texts for Mermaid, C(.dot) and C(.gv) such for Graphviz,
        C(.svg) is an image, for which the program C(dot) of Graphviz must be installed where the module runs.
      - Its directory must exist.
    type: str
notes:
  - A finding of level V(error) is a circle with a job that deletes or overwrites or one in which a log grows without
    end, a target of several elements, a target inside that of a job with O(ignore:settings.delete=extraneous), an
    element inside another one with other settings between the same servers, or a target inside its own source.
  - A V(warning) is a circle of jobs that only add, which means that O(ignore:settings.delete=never) and
    O(ignore:settings.max_change=0); any other target inside another one; a mesh of elements with direction both; what
    only filters keep apart; and one machine id under two names.
  - An V(info) is a chain of jobs, an error that C(accept_circular) of a job accepts, and partners that are not among
    O(servers).
  - Filters are compared as far as that is certain, such as an outer element that excludes the directory of the inner
    one by name. Where it is not, they count as overlapping.
seealso:
  - module: serversync.core.sync_job
  - module: serversync.core.sync_job_info
"""

EXAMPLES = r"""
# group_vars/servers.yml, where runner_jobs are the jobs of each server:
#
#   topology:
#     name: "{{ inventory_hostname }}"
#     aliases: ["{{ ansible_host | default(inventory_hostname) }}"]
#     jobs: "{{ runner_jobs | default([]) }}"

- name: The jobs of all servers are checked, before any is applied
  serversync.core.sync_topology:
    servers: "{{ groups['servers'] | map('extract', hostvars, 'topology') | list }}"
  run_once: true
  delegate_to: localhost

- name: Later, what each server really has is read there
  serversync.core.sync_job_info:
  register: declared
  become: true

- name: That is noted for each server
  ansible.builtin.set_fact:
    found: "{{ topology | combine({'jobs': declared.jobs}) }}"

- name: All of it is checked, and drawn with circles in red
  serversync.core.sync_topology:
    servers: "{{ ansible_play_hosts | map('extract', hostvars, 'found') | list }}"
    fail_on: warning
    picture: /srv/www/fleet.svg
  run_once: true
  delegate_to: localhost

- name: Two servers in words, and a picture for Markdown
  serversync.core.sync_topology:
    servers:
      - name: site-a
        jobs:
          - name: programs
            partner: {host: hq}
            elements: [{path: /srv/programs}]
      - name: hq
        aliases: [hq.example.com]
    picture: "{{ playbook_dir }}/fleet.mmd"
  delegate_to: localhost
"""

RETURN = r"""
findings:
  description:
    - What was found, errors first, then warnings. Empty when the options are wrong.
  returned: always
  type: list
  elements: dict
  contains:
    level:
      description: V(error), V(warning) or V(info).
      type: str
    kind:
      description:
        - V(circle), V(mesh), V(contended), V(nested), V(inside_itself), V(split), V(chain), V(same_machine) or
          V(unknown_server).
      type: str
    issue:
      description: What is so, in one sentence, with the way of the changes and the jobs.
      type: str
    impact:
      description: What comes of it.
      type: str
    remedy:
      description: What to do.
      type: str
    members:
      description: The elements that have part in it, as server, job and number of the element.
      type: list
      elements: dict
    accepted:
      description: The reason that a job gives in C(accept_circular), for which this is no error. Otherwise V(null).
      type: str
  sample:
    - level: error
      kind: circle
      issue: "A circle: site-a:/srv/x -> hq:/srv/x -> site-a:/srv/x, by jobs a on site-a, b on hq."
      impact: >-
        Edits go round: which version stands depends on which job runs first, and what is removed at one place comes
        back from the others.
      remedy: >-
        Make one element with direction both of the two; where this is meant, give the reason in accept_circular.
      members:
        - {server: site-a, job: a, element: 0}
        - {server: hq, job: b, element: 0}
      accepted: null
graph:
  description:
    - The servers' paths and what leads from one to another.
  returned: always
  type: dict
  contains:
    places:
      description: The paths, each with C(id), C(server), C(path), and C(circle) for what is part of a circle.
      type: list
      elements: dict
    edges:
      description:
        - The elements, each with C(server), C(job), C(element), C(kind), the ids of its C(source) and C(target),
          C(both) for direction both, and C(circle).
      type: list
      elements: dict
    inside:
      description: Which path lies in which, as the ids C(inner) and C(outer).
      type: list
      elements: dict
mermaid:
  description: The picture as text for Mermaid.
  returned: always
  type: str
dot:
  description: The picture as text for Graphviz.
  returned: always
  type: str
diff:
  description:
    - What changes in the file of O(picture). Empty when nothing does.
  returned: always
  type: list
  elements: dict
  contains:
    before:
      description: The text that is there.
      type: str
    after:
      description: The text of the picture.
      type: str
    before_header:
      description: The path of the file, or V(/dev/null) when it is not there.
      type: str
    after_header:
      description: The path of the file.
      type: str
failure:
  description:
    - Why the task failed, for programs. V(null) when it did not.
  returned: always
  type: dict
  contains:
    code:
      description: The kind of failure, such as V(circular) for findings, or V(invalid_value).
      type: str
    path:
      description: The option or file that the failure is about.
      type: str
    details:
      description: Everything that was found wrong, the first of which is in RV(ignore:msg).
      type: list
      elements: dict
"""

import os
import tempfile
from typing import Any, Mapping

from ansible_collections.serversync.core.plugins.module_utils import (  # pylint: disable=unused-import
    _fromzip,  # noqa: F401  # before what is large
)
from ansible_collections.serversync.core.plugins.module_utils._copies import resolve_all
from ansible_collections.serversync.core.plugins.module_utils._fleet import Server, host_key
from ansible_collections.serversync.core.plugins.module_utils._job import (
    JOB,
    Field,
    Problem,
    Wrong,
    check_path,
    field_of,
    no_control,
    show,
)
from ansible_collections.serversync.core.plugins.module_utils._module import JobModule
from ansible_collections.serversync.core.plugins.module_utils._picture import dot, mermaid
from ansible_collections.serversync.core.plugins.module_utils._store import StoreError, command_error, read_file
from ansible_collections.serversync.core.plugins.module_utils._topology import LEVELS, Finding, Topology, analyse


def _text(name: str, description: str, **more: Any) -> Field:
    return Field(name, "text", description, **more)


def _list(name: str, description: str, *parts: Field) -> Field:
    return Field(
        name, "list", description, default=[], element=Field("", "mapping", "An entry.", parts=parts), folded=True
    )


def check_server(text: str) -> str:
    """Names are lines of the picture and parts of sentences."""
    text = text.strip()
    no_control(text)
    if not text:
        raise Wrong("is empty; write the name of the server")
    return text


def check_place(text: str) -> str:
    """Also / itself, which is where a file system begins."""
    return check_path(text) if text.strip("/") or not text else "/"


#: What a job may also hold, as a document has it.
_OF_DOCUMENTS = (
    Field("version", "number", "The version of a document.", limits=(1, 1), option=True),
    _text("machine_id", "The machine id of the server that it was declared on.", option=True),
)
GRAMMAR = Field(
    "sync_topology",
    "mapping",
    "Servers, and what becomes of what is found.",
    parts=(
        Field(
            "servers",
            "list",
            "The servers.",
            element=Field(
                "",
                "mapping",
                "A server.",
                parts=(
                    _text("name", "Its name.", check=check_server, required="write the name of the server"),
                    Field(
                        "aliases",
                        "list",
                        "Further names.",
                        default=[],
                        element=_text("", "A name.", check=check_server),
                    ),
                    _text("machine_id", "Its machine id."),
                    _list(
                        "partners",
                        "Its pairings.",
                        _text("name", "The name of the pairing.", required="write the name of the pairing"),
                        _text("host", "Its host.", check=check_server),
                        Field("host_keys", "list", "Not read.", element=_text("", "A key."), commas=False),
                        Field("public_keys", "list", "Not read.", element=_text("", "A key."), commas=False),
                        _list(
                            "roots", "Not read.", _text("path", "A path."), _text("access", "What is allowed there.")
                        ),
                        Field("from", "list", "Not read.", element=_text("", "An address.")),
                    ),
                    _list(
                        "places",
                        "What is known of its paths.",
                        _text("path", "A path.", check=check_place, required="write the whole path from /"),
                        _text("file_system", "Its file system.", required="name the file system"),
                        _text("real_path", "Where it is there.", check=check_place),
                    ),
                    _list("jobs", "Its jobs.", *JOB.parts, *_OF_DOCUMENTS),
                ),
            ),
            required="list the servers with their jobs",
        ),
        field_of("scope"),
        _text("fail_on", "The least level that fails.", default="error", choices=("error", "warning", "never")),
        _text("picture", "The file of the picture.", check=check_path),
    ),
)

#: The ending of a file -> what is in it.
ENDINGS = {".mmd": "mermaid", ".mermaid": "mermaid", ".dot": "dot", ".gv": "dot", ".svg": "svg"}


def server_of(entry: Mapping[str, Any], at: str, scope: str) -> tuple[Server, list[Problem]]:
    """A server of the list, its jobs in normal form. `scope`: that of jobs that name none."""
    problems = []
    entries: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    names: dict[tuple[str, str], int] = {}
    for number, given in enumerate(entry.get("jobs") or []):
        where = "%s.jobs[%d]." % (at, number)
        own = given.get("scope") or scope
        entries.setdefault(own, []).append((where, dict(given, scope=own)))
        if given.get("state") == "absent":
            continue
        first = names.setdefault((given["name"], own), number)
        if first != number:
            text = "%s is the name of jobs[%d], too; give every job a name of its own" % (show(given["name"]), first)
            problems.append(Problem("duplicate", where + "name", text))
    jobs: list[dict[str, Any]] = []
    for several in entries.values():
        found, wrong = resolve_all(several, lambda name: None)
        jobs += filter(None, found)
        problems += wrong
    partners = {one["name"]: one.get("host") or one["name"] for one in entry.get("partners") or []}
    places = {
        one["path"]: (one["file_system"], one.get("real_path") or one["path"]) for one in entry.get("places") or []
    }
    aliases = tuple(entry.get("aliases") or ())
    return Server(entry["name"], jobs, aliases, entry.get("machine_id"), partners, places), problems


def read_servers(entries: list[dict[str, Any]], scope: str) -> tuple[list[Server], list[Problem]]:
    servers, problems = [], []
    names: dict[str, int] = {}
    for number, entry in enumerate(entries):
        at = "servers[%d]" % number
        server, wrong = server_of(entry, at, scope)
        servers.append(server)
        problems += wrong
        for name, where in ((server.name, ".name"), *((alias, ".aliases") for alias in server.aliases)):
            first = names.setdefault(host_key(name), number)
            if first != number:
                text = "%s is a name of servers[%d], too; a name leads to one server" % (show(name), first)
                problems.append(Problem("duplicate", at + where, text))
    return servers, problems


def picture_of(module: JobModule, path: str, texts: Mapping[str, str]) -> str:
    """The text of the file, as its ending says."""
    kind = ENDINGS[os.path.splitext(path)[1].lower()]
    if kind != "svg":
        return texts[kind]
    program = module.get_bin_path("dot")
    if program is None:
        remedy = "install the package graphviz, or name a file that ends with .mmd or .dot"
        raise StoreError("missing_program", "picture", "dot is not installed where the module runs; " + remedy)
    argv = [program, "-Tsvg"]
    code, out, err = module.run_command(argv, data=texts["dot"], binary_data=True, expand_user_and_vars=False)
    if code:
        raise command_error(argv, code, "", err)
    return str(out)


def check_picture(path: str) -> list[Problem]:
    if os.path.splitext(path)[1].lower() not in ENDINGS:
        text = "%s does not end with one of %s, which say what is drawn" % (show(path), ", ".join(ENDINGS))
        return [Problem("invalid_value", "picture", text + "; choose one of them")]
    if not os.path.isdir(os.path.dirname(path)):
        text = "%s is not in a directory that exists; make the directory first" % show(path)
        return [Problem("invalid_value", "picture", text)]
    if not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
        text = "%s is in a directory that the user of this task may not write in; choose another one, or set become"
        return [Problem("invalid_value", "picture", text % show(path))]
    return []


def draw(module: JobModule, path: str, text: str) -> list[dict[str, str]]:
    """Writes the picture where it differs; what differs."""
    found = read_file(path)
    before = (found.data or b"").decode("utf-8", "replace")
    if found.data is not None and before == text:
        return []
    if not module.check_mode:
        # where it belongs, as atomic_move() fails with a traceback if nothing can be made there
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
        module.add_cleanup_file(temporary)
        with os.fdopen(handle, "wb") as stream:
            stream.write(text.encode("utf-8"))
        module.atomic_move(temporary, path)
    header = path if found.data is not None else "/dev/null"
    return [{"before": before, "after": text, "before_header": header, "after_header": path}]


def failing(findings: list[Finding], fail_on: str) -> list[Finding]:
    if fail_on == "never":
        return []
    return [one for one in findings if LEVELS.index(one.level) <= LEVELS.index(fail_on)]


def results_of(found: Topology) -> dict[str, Any]:
    return {
        "findings": [one.as_dict() for one in found.findings],
        "graph": found.graph,
        "mermaid": mermaid(found.graph),
        "dot": dot(found.graph),
    }


def main() -> None:
    module = JobModule(GRAMMAR, diff=[], findings=[], graph={}, mermaid="", dot="")
    given = module.declared
    servers, problems = read_servers(given["servers"], given.get("scope") or "system")
    path = given.get("picture")
    problems += check_picture(path) if path else []
    if problems:
        module.fail(problems)
    found = analyse(servers)
    results = results_of(found)
    try:
        diff = draw(module, path, picture_of(module, path, results)) if path else []
    except StoreError as error:
        module.fail_store(error)
    except OSError as error:
        text = "cannot be written (%s); give the user of this task access to it" % error.strerror
        module.fail_store(StoreError("write_failed", str(path), text))
    results.update(changed=bool(diff), diff=diff)
    wrong = failing(found.findings, given.get("fail_on") or "error")
    if wrong:
        more = " (%d more in findings)" % (len(wrong) - 1) if len(wrong) > 1 else ""
        details = [dict(one.as_dict(), msg=str(one)) for one in wrong]
        module.fail_json(
            str(wrong[0]) + more, failure={"code": "circular", "path": "servers", "details": details}, **results
        )
    module.exit_json(failure=None, **results)


if __name__ == "__main__":
    main()
