# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as it really runs, in a process of its own, with a dot that draws nothing; and the guide that shows it."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.serversync.core.plugins.module_utils import _job, _picture
from jinja2.nativetypes import NativeEnvironment

from tests import declaring

ROOT = Path(__file__).resolve().parents[4]
MODULE = importlib.import_module("ansible_collections.serversync.core.plugins.modules.sync_topology")
PROGRAM = declaring.PROGRAM.replace("MODULE", "sync_topology")

DOT = """\
#!%s -IS
import sys
text = sys.stdin.read()
if "broken" in text:
    sys.exit("Error: syntax error in line 1")
print("<svg>%%s %%d</svg>" %% (sys.argv[1:], len(text)))
"""


class Controller:
    """Where the module runs: a directory for pictures, and Graphviz where asked for."""

    def __init__(self, path: Path) -> None:
        self.bin, self.tmp, self.pictures = (path / name for name in ("bin", "tmp", "pictures"))
        for directory in (self.bin, self.tmp, self.pictures):
            directory.mkdir()

    def graphviz(self) -> None:
        (self.bin / "dot").write_text(DOT % sys.executable)
        (self.bin / "dot").chmod(0o755)

    def run(self, check: bool = False, **parameters: object) -> dict:
        arguments = dict(parameters, _ansible_check_mode=check, _ansible_diff=True, _ansible_remote_tmp=str(self.tmp))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps(arguments),
            env={"PATH": str(self.bin), "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.stderr, done.stderr
        result = json.loads(done.stdout)
        assert {"changed", "findings", "graph", "mermaid", "dot", "diff", "failure"} <= set(result)
        assert done.returncode == (1 if result.get("failed") else 0)
        assert list(self.tmp.iterdir()) == []
        return result


@pytest.fixture
def controller(tmp_path):
    return Controller(tmp_path)


def job(name, host, path="/srv/x", **more):
    return dict({"name": name, "partner": {"host": host}, "elements": [{"path": path}]}, **more)


CHAIN = [
    {"name": "site-a", "jobs": [job("a", "hq.example.com")]},
    {"name": "hq", "aliases": ["HQ.example.com"], "jobs": [job("b", "dr")]},
    {"name": "dr"},
]
CIRCLE = [*CHAIN[:2], {"name": "dr", "jobs": [job("c", "site-a")]}]
ISSUE = "A circle: dr:/srv/x -> site-a:/srv/x -> hq:/srv/x -> dr:/srv/x, by jobs c on dr, a on site-a, b on hq."


def test_a_fleet_without_errors(controller):
    result = controller.run(servers=CHAIN)
    assert (result["changed"], result["diff"], result["failure"]) == (False, [], None)
    assert [(one["level"], one["kind"]) for one in result["findings"]] == [("info", "chain")]
    assert [place["server"] for place in result["graph"]["places"]] == ["hq", "dr", "site-a"]


def test_a_circle_fails_the_same_in_check_mode(controller):
    for check in (True, False):
        result = controller.run(check, servers=CIRCLE)
        assert result["msg"] == (
            ISSUE + " Edits go round: which version stands depends on which job runs first, and what is removed at one "
            "place comes back from the others. Take one of the elements out, so that one place is the source of all; "
            "where this is meant, give the reason in accept_circular."
        )
        assert (result["failure"]["code"], result["failure"]["path"]) == ("circular", "servers")
        assert result["failure"]["details"] == [dict(result["findings"][0], msg=result["msg"])]
        assert result["findings"][0]["members"][0] == {"server": "dr", "job": "c", "element": 0}
        assert all(edge["circle"] for edge in result["graph"]["edges"])


def test_what_fails_is_a_choice(controller):
    adds = {"max_change": 0}
    servers = [
        {"name": "a", "jobs": [job("j", "b", settings=adds)]},
        {"name": "b", "jobs": [job("k", "a", settings=adds)]},
    ]
    assert not controller.run(servers=servers).get("failed")
    assert controller.run(servers=servers, fail_on="warning")["failure"]["code"] == "circular"
    result = controller.run(servers=CIRCLE, fail_on="never")
    assert (result.get("failed"), result["failure"], result["findings"][0]["issue"]) == (None, None, ISSUE)


def test_a_job_as_it_is_returned_and_one_that_is_absent(controller):
    whole = _job.declare(job("a", "hq"))[0]
    assert whole["version"] == 1
    for returned in (whole, _job.bound(whole, "f" * 32)):  # the latter as its document has it
        servers = [{"name": "site-a", "jobs": [returned]}, {"name": "hq", "jobs": [job("b", "site-a", state="absent")]}]
        assert controller.run(servers=servers)["findings"] == []


def test_a_copy_of_a_job_in_the_list(controller):
    jobs = [{"name": "b", "copy_from": "a", "elements": [{"path": "/srv/b"}]}, job("a", "hq")]
    assert controller.run(servers=[{"name": "site-a", "jobs": jobs}, {"name": "hq"}])["findings"] == []
    message = "servers[0].jobs[0].copy_from: 'a' is no job of this scope on this server; "
    assert controller.run(servers=[{"name": "site-a", "jobs": jobs[:1]}])["msg"].startswith(message)


def test_the_scope_of_jobs_that_name_none(controller):
    """Module defaults of the action group may have it, and paths that only a user's job may have."""
    servers = [{"name": "a", "jobs": [job("j", "hq", "/tmp/x")]}, {"name": "hq"}]  # noqa: S108
    message = "servers[0].jobs[0].elements[0].path: '/tmp/x' is under /tmp, of which the job's service has its own; "
    for scope in ({}, {"scope": "system"}):
        assert controller.run(servers=servers, **scope)["msg"].startswith(message)
    assert "failed" not in controller.run(servers=servers, scope="user")
    servers[0]["jobs"][0]["scope"] = "system"
    assert controller.run(servers=servers, scope="user")["msg"].startswith(message)


def test_pairings_are_taken_as_the_role_takes_them(controller):
    role = yaml.safe_load((ROOT / "roles" / "runner" / "meta" / "argument_specs.yml").read_text())
    spec = role["argument_specs"]["main"]["options"]["runner_partners"]["options"]
    (servers,) = (part for part in MODULE.GRAMMAR.parts if part.name == "servers")
    (partners,) = (part for part in servers.element.parts if part.name == "partners")
    assert {part.name for part in partners.element.parts} == set(spec)
    (roots,) = (part for part in partners.element.parts if part.name == "roots")
    assert {part.name for part in roots.element.parts} == set(spec["roots"]["options"])
    key = "ssh-ed25519 AAAA root@hq, the new one"
    pairing = {"name": "main", "host": "hq", "host_keys": [key], "public_keys": key}
    servers = [{"name": "a", "jobs": [job("j", "main", "/srv/x")], "partners": [pairing]}, {"name": "hq"}]
    result = controller.run(servers=servers)
    assert result["findings"] == []


def test_pairings_and_places(controller):
    places = [
        {"path": "/", "file_system": "8:2", "real_path": "/"},
        {"path": "/srv/x", "file_system": "8:1", "real_path": "/data"},
        {"path": "/mnt/y", "file_system": "8:1", "real_path": "/data"},
    ]
    servers = [
        {
            "name": "a",
            "jobs": [job("j", "main", "/srv/x")],
            "places": places,
            "partners": [{"name": "main", "host": "hq", "roots": [{"path": "/srv", "access": "both"}], "from": []}],
        },
        {"name": "hq", "jobs": [dict(job("k", "a"), elements=[{"path": "/srv/x", "partner_path": "/mnt/y"}])]},
    ]
    result = controller.run(servers=servers)
    assert result["findings"][0]["issue"] == (
        "A circle: a:/srv/x -> hq:/srv/x -> a:/mnt/y (the same as a:/srv/x), by jobs j on a, k on hq."
    )


@pytest.mark.parametrize(
    ("parameters", "message", "code", "path"),
    [
        ({}, "servers: is missing; list the servers with their jobs", "missing", "servers"),
        (
            {"servers": [{"jobs": []}]},
            "servers[0].name: is missing; write the name of the server",
            "missing",
            "servers[0].name",
        ),
        (
            {"servers": [{"name": "a", "job": []}]},
            "servers[0].job: is not an option; did you mean jobs?",
            "unknown_option",
            "servers[0].job",
        ),
        (
            {"servers": [{"name": "a", "jobs": [job("j", "b", "x")]}]},
            "servers[0].jobs[0].elements[0].path: 'x' is not absolute; write the whole path from /",
            "invalid_value",
            "servers[0].jobs[0].elements[0].path",
        ),
        (
            {"servers": [{"name": "a", "jobs": [{"name": "j", "partner": {"host": "b"}}]}]},
            "servers[0].jobs[0].elements: is missing; give at least one element with its path",
            "missing",
            "servers[0].jobs[0].elements",
        ),
        (
            {"servers": [{"name": "a", "jobs": [job("j", "b"), job("j", "c")]}]},
            "servers[0].jobs[1].name: 'j' is the name of jobs[0], too; give every job a name of its own",
            "duplicate",
            "servers[0].jobs[1].name",
        ),
        (
            {"servers": [{"name": "a\nb"}]},
            "servers[0].name: 'a\\nb' contains the control character U+000A; remove it",
            "invalid_value",
            "servers[0].name",
        ),
        (
            {"servers": [{"name": " "}]},
            "servers[0].name: is empty; write the name of the server",
            "invalid_value",
            "servers[0].name",
        ),
        (
            {"servers": [{"name": "a", "aliases": ["b\x1b"]}]},
            "servers[0].aliases[0]: 'b\\x1b' contains the control character U+001B; remove it",
            "invalid_value",
            "servers[0].aliases[0]",
        ),
        (
            {"servers": [{"name": "a"}, {"name": "A."}]},
            "servers[1].name: 'A.' is a name of servers[0], too; a name leads to one server",
            "duplicate",
            "servers[1].name",
        ),
        (
            {"servers": [{"name": "a"}, {"name": "b", "aliases": ["a"]}]},
            "servers[1].aliases: 'a' is a name of servers[0], too; a name leads to one server",
            "duplicate",
            "servers[1].aliases",
        ),
        (
            {"servers": [], "fail_on": "info"},
            "fail_on: 'info' is not one of error, warning, never",
            "not_a_choice",
            "fail_on",
        ),
        (
            {"servers": [], "picture": "x.svg"},
            "picture: 'x.svg' is not absolute; write the whole path from /",
            "invalid_value",
            "picture",
        ),
        (
            {"servers": [], "picture": "/srv/x.png"},
            "picture: '/srv/x.png' does not end with one of .mmd, .mermaid, .dot, .gv, .svg, which say what is drawn; "
            "choose one of them",
            "invalid_value",
            "picture",
        ),
        (
            {"servers": [], "picture": "/no/where/x.svg"},
            "picture: '/no/where/x.svg' is not in a directory that exists; make the directory first",
            "invalid_value",
            "picture",
        ),
        (
            {"servers": [{"name": "a", "places": [{"path": "/x", "file_system": "1", "real_path": "y"}]}]},
            "servers[0].places[0].real_path: 'y' is not absolute; write the whole path from /",
            "invalid_value",
            "servers[0].places[0].real_path",
        ),
        (
            {"servers": [{"name": "a", "places": [{"path": "/x"}]}]},
            "servers[0].places[0].file_system: is missing; name the file system",
            "missing",
            "servers[0].places[0].file_system",
        ),
    ],
)
def test_bad_input(controller, parameters, message, code, path):
    for check in (True, False):
        result = controller.run(check, **parameters)
        assert result["msg"] == message
        assert (result["changed"], result["findings"], result["diff"]) == (False, [], [])
        assert (result["failure"]["code"], result["failure"]["path"]) == (code, path)


def test_what_is_told_of_the_task_is_without_the_jobs(controller):
    servers = [{"name": "a", "jobs": [job("j", "b", comment="hunter2")]}]
    assert "hunter2" not in json.dumps(controller.run(servers=servers))


# --- pictures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mmd", "mermaid", "dot", "gv", "svg", "SVG"])
def test_a_picture_in_four_steps(controller, ending):
    controller.graphviz()
    path = controller.pictures / ("fleet." + ending)
    check = controller.run(True, servers=CHAIN, picture=str(path))
    assert check["changed"]
    assert list(controller.pictures.iterdir()) == []
    run = controller.run(servers=CHAIN, picture=str(path))
    assert (run["changed"], run["diff"]) == (True, check["diff"])
    text = path.read_text()
    (entry,) = run["diff"]
    assert entry == {"before": "", "after": text, "before_header": "/dev/null", "after_header": str(path)}
    svg = "<svg>['-Tsvg'] %d</svg>\n" % len(run["dot"])
    assert text == {"mmd": run["mermaid"], "mermaid": run["mermaid"], "dot": run["dot"], "gv": run["dot"]}.get(
        ending, svg
    )
    before = path.stat()
    for mode in (False, True):
        again = controller.run(mode, servers=CHAIN, picture=str(path))
        assert (again["changed"], again["diff"]) == (False, [])
    assert path.stat() == before
    # an error is drawn, too
    failed = controller.run(servers=CIRCLE, picture=str(path))
    assert (failed["failed"], failed["changed"], failed["failure"]["code"]) == (True, True, "circular")
    assert failed["diff"] == [dict(entry, before=text, before_header=str(path), after=path.read_text())]


def test_an_image_needs_graphviz(controller):
    path = controller.pictures / "fleet.svg"
    for check in (True, False):
        result = controller.run(check, servers=CHAIN, picture=str(path))
        assert result["msg"] == (
            "picture: dot is not installed where the module runs; "
            "install the package graphviz, or name a file that ends with .mmd or .dot"
        )
        assert result["failure"]["code"] == "missing_program"
    controller.graphviz()
    result = controller.run(servers=[{"name": "broken", "jobs": [job("j", "x")]}], picture=str(path))
    assert result["failure"]["code"] == "command_failed"
    assert "failed with exit code 1: Error: syntax error in line 1" in result["msg"]
    assert not path.exists()


def test_a_picture_that_cannot_be_written(controller):
    path = controller.pictures / "fleet.mmd"
    path.mkdir()
    result = controller.run(servers=CHAIN, picture=str(path))
    assert result["msg"] == "%s: is a directory where a file belongs; remove it" % path
    # nobody makes a file there
    result = controller.run(servers=CHAIN, picture="/proc/fleet.mmd")
    assert result["msg"] == (
        "/proc/fleet.mmd: cannot be written (No such file or directory); give the user of this task access to it"
    )


def test_a_directory_that_is_not_this_users(monkeypatch):
    path = "/fleet.mmd"
    monkeypatch.setattr(MODULE.os, "access", lambda path, mode: True)
    assert MODULE.check_picture(path) == []
    monkeypatch.setattr(MODULE.os, "access", lambda path, mode: False)
    assert [str(one) for one in MODULE.check_picture(path)] == [
        "picture: %r is in a directory that the user of this task may not write in; choose another one, or set become"
        % path
    ]


GRAPH = {
    "places": [
        {"id": 0, "server": "b", "path": '/x"y', "circle": True},
        {"id": 1, "server": "a", "path": "/a\\b", "circle": False},
        {"id": 2, "server": "b", "path": '/x"y/z', "circle": False},
    ],
    "edges": [
        {"job": "j", "source": 0, "target": 1, "both": False, "circle": True},
        {"job": "k", "source": 1, "target": 2, "both": True, "circle": False},
    ],
    "inside": [{"inner": 2, "outer": 0}],
}


def test_the_text_for_mermaid():
    assert _picture.mermaid(GRAPH) == (
        "flowchart LR\n"
        '  subgraph s0["a"]\n'
        '    p1["/a#92;b"]\n'
        "  end\n"
        '  subgraph s1["b"]\n'
        '    p0["/x#34;y"]\n'
        '    p2["/x#34;y/z"]\n'
        "  end\n"
        '  p0 -->|"j"| p1\n'
        '  p1 <-->|"k"| p2\n'
        "  p0 -.- p2\n"
        "  linkStyle 0 stroke:#c00000,stroke-width:3px\n"
        "  style p0 stroke:#c00000\n"
    )


def test_the_text_for_graphviz():
    assert _picture.dot(GRAPH) == (
        "digraph serversync {\n"
        "  rankdir=LR;\n"
        "  node [shape=box];\n"
        "  subgraph cluster_0 {\n"
        '    label="a";\n'
        '    p1 [label="/a\\\\b"];\n'
        "  }\n"
        "  subgraph cluster_1 {\n"
        '    label="b";\n'
        '    p0 [label="/x\\"y", color="#c00000"];\n'
        '    p2 [label="/x\\"y/z"];\n'
        "  }\n"
        '  p0 -> p1 [label="j", color="#c00000", penwidth=2];\n'
        '  p1 -> p2 [label="k", dir=both];\n'
        "  p0 -> p2 [style=dotted, dir=none];\n"
        "}\n"
    )


# --- documentation ---------------------------------------------------------------------------------------------


def test_every_option_is_documented_as_it_is():
    def compare(options, spec, where):
        assert set(options) == set(spec), where
        for name, option in options.items():
            for key in ("type", "choices", "elements", "required", "default"):
                assert option.get(key) == spec[name].get(key), (where, name, key)
            if "suboptions" in option or "options" in spec[name]:
                compare(option["suboptions"], spec[name]["options"], where + name + ".")

    compare(yaml.safe_load(MODULE.DOCUMENTATION)["options"], _job.argument_spec(MODULE.GRAMMAR), "")


def test_the_return_values_are_those_that_are_documented(controller):
    returned = yaml.safe_load(MODULE.RETURN)
    result = controller.run(servers=CIRCLE, fail_on="never")
    assert set(returned) == set(result) - {"changed", "invocation"}
    assert set(returned["findings"]["contains"]) == set(result["findings"][0])
    assert set(returned["findings"]["sample"][0]) == set(result["findings"][0])
    assert set(returned["graph"]["contains"]) == set(result["graph"])
    kinds = set(re.findall(r"V\((\w+)\)", returned["findings"]["contains"]["kind"]["description"][0]))
    sources = [ROOT / "plugins/module_utils" / name for name in ("_topology.py", "_circles.py")]
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    assert all('"%s"' % kind in text for kind in kinds)
    guide = (ROOT / "docs/many-servers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \w+ \| `(\w+)` \|", guide, re.MULTILINE)) == kinds


def rendered(value, variables):
    if isinstance(value, dict):
        return {name: rendered(one, variables) for name, one in value.items()}
    if isinstance(value, list):
        return [rendered(one, variables) for one in value]
    if isinstance(value, str) and "{{" in value:
        environment = NativeEnvironment()
        environment.filters["extract"] = lambda key, container, inner: container[key][inner]
        return environment.from_string(value).render(variables)
    return value


def test_the_examples(controller):
    controller.graphviz()
    tasks = yaml.safe_load(MODULE.EXAMPLES)
    assert [next(name for name in task if "." in name).rpartition(".")[2] for task in tasks] == [
        "sync_topology",
        "sync_job_info",
        "set_fact",
        "sync_topology",
        "sync_topology",
    ]
    hosts = {server["name"]: {"topology": server, "found": server} for server in CHAIN}
    variables = {"groups": {"servers": list(hosts)}, "hostvars": hosts, "ansible_play_hosts": list(hosts)}
    variables["playbook_dir"] = str(controller.pictures)
    for task in tasks:
        if "serversync.core.sync_topology" in task:
            parameters = rendered(task["serversync.core.sync_topology"], variables)
            if "picture" in parameters:
                parameters["picture"] = str(controller.pictures / Path(parameters["picture"]).name)
            assert "failed" not in controller.run(**parameters), task["name"]


def test_the_guide_shows_the_example():
    guide = (ROOT / "docs/many-servers.md").read_text(encoding="utf-8")
    shown = re.findall(r"<!-- (docs/examples/\S+) -->\n```yaml\n(.*?)```", guide, re.DOTALL)
    assert len(shown) == 2
    for name, text in shown:
        assert (ROOT / name).read_text(encoding="utf-8").split("---\n", 1)[1] == text
    finding = re.search(r"```text\n(.*?)```", guide, re.DOTALL).group(1)
    sample = yaml.safe_load(MODULE.RETURN)["findings"]["sample"][0]
    assert " ".join(finding.split()) == " ".join(sample[name] for name in ("issue", "impact", "remedy"))


def play(tmp_path, *words):
    """The guide's playbook, with Ansible itself, as its reader would run it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment.update(
        ANSIBLE_COLLECTIONS_PATH=os.environ["ANSIBLE_COLLECTIONS_PATH"],
        ANSIBLE_HOME=str(tmp_path / "home"),
        ANSIBLE_LOCAL_TEMP=str(tmp_path / "local"),
        ANSIBLE_REMOTE_TMP=str(tmp_path / "remote"),
        ANSIBLE_NOCOLOR="1",
    )
    program = Path(sys.executable).parent / "ansible-playbook"
    return subprocess.run(
        [str(program), "check.yml", *words],
        cwd=str(ROOT / "docs/examples/fleet"),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_example_checks_a_fleet_and_finds_a_circle(tmp_path):
    picture = tmp_path / "fleet.mmd"
    done = play(tmp_path, "--extra-vars", "picture=%s" % picture)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'subgraph s1["hq"]' in picture.read_text()
    assert "failed=0" in done.stdout
    back = {"name": "back", "partner": {"host": "hq"}, "elements": [{"path": "/srv/sites"}]}
    variables = json.dumps({"runner_jobs": [back]})
    done = play(tmp_path, "--limit", "dr,hq", "--extra-vars", variables)
    assert done.returncode != 0
    assert "A target that is its own source: hq:/srv/sites -> hq:/srv/sites, by job back." in done.stdout + done.stderr
