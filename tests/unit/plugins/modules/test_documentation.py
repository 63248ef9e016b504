# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation, argument spec and grammar of every module say the same."""

from __future__ import annotations

import copy
import importlib
import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.serversync.core.plugins.module_utils import _job

from tests.declaring import RESULTS

COLLECTION = "ansible_collections.serversync.core.plugins"
ROOT = Path(__file__).resolve().parents[4]
NAMES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("sync_job*.py"))
MODULES = {name: importlib.import_module("%s.modules.%s" % (COLLECTION, name)) for name in NAMES}


def grammar(name):
    return getattr(MODULES[name], "GRAMMAR", _job.JOB)


def documentation(name):
    """A module's documentation with the fragments that it names, as Ansible merges them."""
    own = yaml.safe_load(MODULES[name].DOCUMENTATION)
    for fragment in own.pop("extends_documentation_fragment", []):
        where, _dot, section = fragment[len("serversync.core.") :].partition(".")
        module = importlib.import_module("%s.doc_fragments.%s" % (COLLECTION, where))
        text = getattr(module.ModuleDocFragment, section.upper() or "DOCUMENTATION")
        for part, entries in yaml.safe_load(text).items():
            for key, value in entries.items():
                mine = own.setdefault(part, {})
                mine[key] = dict(value, **mine.get(key, {}))
    return own


def drift(options, spec, where=""):
    """What documentation and argument spec do not say alike."""
    found = ["%s%s" % (where, name) for name in set(options) ^ set(spec)]
    for name in sorted(set(options) & set(spec)):
        option, one = options[name], spec[name]
        found += ["%s%s: a default" % (where, name)] if "default" in option else []
        found += [
            "%s%s.%s" % (where, name, key)
            for key in ("type", "choices", "elements", "required")
            if option.get(key) != one.get(key)
        ]
        if "suboptions" in option or "options" in one:
            found += drift(option.get("suboptions", {}), one.get("options", {}), where + name + ".")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_documented_as_it_is(name):
    assert drift(documentation(name)["options"], _job.argument_spec(grammar(name))) == []


def test_drift_is_found():
    options, spec = documentation("sync_jobs")["options"], _job.argument_spec(grammar("sync_jobs"))
    changed = copy.deepcopy(options)
    settings = changed["jobs"]["suboptions"]["settings"]["suboptions"]
    settings["delete"]["choices"].append("all")
    settings["compres"] = settings.pop("compress")
    changed["purge"]["type"] = "str"
    assert sorted(drift(changed, spec)) == [
        "jobs.settings.compres",
        "jobs.settings.compress",
        "jobs.settings.delete.choices",
        "purge.type",
    ]


def check_defaults(field, options):
    """'On creation V(x)' and 'Omitted means V(x)' say what the grammar does."""
    for part in field.parts:
        option = options[part.name]
        if part.element and part.element.parts:
            check_defaults(part.element, option["suboptions"])
            continue
        if part.parts:
            check_defaults(part, option["suboptions"])
            if part.name != "schedule":
                continue
        text = " ".join(option["description"])
        said = re.search(r"(?:On creation|Omitted means) V\(((?:[^()]|\\\))*)\)", text)
        assert (yaml.safe_load(said.group(1)) if said else None) == part.default(), part.name


@pytest.mark.parametrize("name", NAMES)
def test_every_default_is_documented_as_it_is(name):
    check_defaults(grammar(name), documentation(name)["options"])


@pytest.mark.parametrize("name", NAMES)
def test_every_module_says_what_it_can(name):
    found = documentation(name)
    assert found["module"] == name
    assert set(found["attributes"]) == {"action_group", "check_mode", "diff_mode", "idempotent", "platform"}
    for attribute in found["attributes"].values():
        assert attribute["description"]
        assert attribute["support"] in ("full", "N/A") or attribute["details"]
    assert name in yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())["action_groups"]["jobs"]


@pytest.mark.parametrize("name", NAMES)
def test_every_module_returns_what_it_documents(name):
    assert set(yaml.safe_load(MODULES[name].RETURN)) == RESULTS[name] | {"failure"}


def test_the_runner_has_the_version_of_the_collection():
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text())
    text = (ROOT / "roles" / "runner" / "files" / "serversync" / "__init__.py").read_text()
    assert re.findall('__version__ = "(.*)"', text) == [galaxy["version"]]


def test_the_role_has_pip_install_what_is_tested():
    variables = yaml.safe_load((ROOT / "roles" / "runner" / "vars" / "main.yml").read_text())
    lines = (ROOT / "requirements" / "runner.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert re.findall("'([a-z]+>=[0-9.]+)'", variables["__runner_requirements"])[: len(wanted)] == wanted


def is_template(value):
    return "{{" in yaml.safe_dump(value)


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_are_valid(name):
    """As far as they are no templates; those of sync_job are rendered, by a test of its own."""
    grammars = {"serversync.core." + one: grammar(one) for one in NAMES}
    used = set()
    for task in yaml.safe_load(MODULES[name].EXAMPLES):
        for module in set(task) & set(grammars):
            used.add(module)
            options = task[module] or {}
            assert set(options) <= {part.name for part in grammars[module].parts}, task["name"]
            given = {option: value for option, value in options.items() if not is_template(value)}
            problems = _job.read(given, grammars[module])[1]
            assert [str(one) for one in problems if one.path not in options or one.path in given] in (
                [],
                ["jobs: is missing; list the jobs, or write [] for none"],
                ["name: is missing; give the job a name"],
            ), task["name"]
    assert "serversync.core." + name in used
