# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the guides do what their pages say, by ansible-playbook on a server of one account."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration import conftest
from tests.loopback import ROOT

EXAMPLES = dict(
    example
    for page in ("declaring", "wizard")
    for example in re.findall(
        r"<!-- example: (\w+) -->\n```yaml\n(.*?)```\n", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL
    )
)
LINES = ["line1-programs", "line2-programs", "line3-programs"]
MATRIX = sorted("%s-%s" % (line, kind) for line in ("line1", "line2", "line3") for kind in ("programs", "recipes"))
# What runs before, and the jobs that are there afterwards.
CASES: dict[str, tuple[list[str], list[str]]] = {
    "first": ([], LINES[:1]),
    "detail": (["first"], LINES[:1]),
    "coupled": ([], ["line1"]),
    "late": ([], LINES[:1]),
    "defaults": ([], LINES[:1]),
    "base": ([], LINES),
    "matrix": ([], MATRIX),
    "copy": (["first"], LINES[:2]),
    "rename": (["first"], ["line1-plc-programs"]),
    "purge": (["base"], LINES[:1]),
    "info": (["matrix"], MATRIX),
    "pages": ([], ["line1-nightly"]),
    "userdefined": ([], ["line1"]),
    "ownjobs": ([], ["line1-programs", "line1-recipes"]),
    "ownsettings": ([], ["line1"]),
    "editing": (["pages"], ["line1-nightly", "line2-nightly"]),
}


class Site(conftest.Site):
    """One with a playbook for it."""

    def __init__(self, path: Path, systemd: bool = False) -> None:
        super().__init__(path, systemd)
        self.srv = path / "srv"
        self.book = path / "playbook"
        self.book.mkdir()
        (self.book / "inventory.yml").write_text(
            yaml.safe_dump(
                {
                    "lines": {
                        "hosts": {"here": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}
                    }
                }
            )
        )

    def tasks(self, name: str) -> list[dict[str, Any]]:
        return list(yaml.safe_load(EXAMPLES[name].replace("/srv/", f"{self.srv}/")))

    def play(self, *plays: dict[str, Any]) -> str:
        """Runs a playbook, which must succeed; what it printed."""
        defaults = {"hosts": "here", "gather_facts": False}
        book = self.book / "site.yml"
        book.write_text(json.dumps([{**defaults, **play} for play in plays]))
        directory = os.path.dirname(sys.executable)
        environment = {
            **self.environment,
            "PATH": f"{directory}:{self.environment['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"],
            "ANSIBLE_HOME": str(self.home / ".ansible"),
            "ANSIBLE_LOCALHOST_WARNING": "false",
        }
        command = ["ansible-playbook", "--inventory", str(self.book / "inventory.yml"), str(book)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def of_examples(self, *names: str, **variables: Any) -> dict[str, Any]:
        return {
            "module_defaults": {"group/serversync.core.jobs": {"scope": "user"}},
            "vars": variables,
            "tasks": [task for name in names for task in self.tasks(name)],
        }

    def jobs(self) -> dict[str, Any]:
        return {path.stem: json.loads(path.read_text()) for path in sorted(self.document.parent.glob("*.json"))}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def timed(tmp_path: Path) -> Site:
    """A server where jobs may have schedules."""
    return Site(tmp_path, systemd=True)


def test_every_example_is_tried() -> None:
    assert set(EXAMPLES) == {*CASES, "review", "run", "groups"}


@pytest.mark.parametrize("name", CASES)
def test_an_example_declares_its_jobs_once(timed: Site, name: str) -> None:
    before, jobs = CASES[name]
    timed.play(timed.of_examples(*before, name))
    assert list(timed.jobs()) == jobs
    again = timed.play(timed.of_examples(name))
    assert " changed=0 " in again, again


def test_what_an_entry_says_is_laid_over_the_base(site: Site) -> None:
    site.play(site.of_examples("base"))
    settings = {name: job["settings"] for name, job in site.jobs().items()}
    assert [one["delete"] for one in settings.values()] == ["synced", "never", "synced"]
    assert [one["exclude"] for one in settings.values()] == [["*.tmp"]] * 3
    assert site.jobs()["line3-programs"]["on_error"]["retries"] == 10


def test_every_page_of_the_wizard_is_in_the_job(timed: Site) -> None:
    timed.play(timed.of_examples("pages", "editing"))
    jobs = timed.jobs()
    first = jobs["line1-nightly"]
    assert (first["comment"], first["schedule"]["at"], first["settings"]["delete"]) == (
        "Nightly copy of line 1",
        ["02:30"],
        "synced",
    )
    assert first["notification"]["email"] == ["ops@example.com"]
    assert (first["on_error"]["retries"], first["on_error"]["delay"]) == (5, "10m")
    assert jobs["line2-nightly"]["schedule"] == first["schedule"]
    assert jobs["line2-nightly"]["comment"] == "Nightly copy of line 2"


def test_review(site: Site) -> None:
    jobs = [{"name": "a", "partner": {"host": "hq"}, "elements": [{"path": str(site.srv)}]}]
    site.play(site.of_examples("review", jobs=jobs))
    assert site.jobs() == {}
    site.play(site.of_examples("first"))
    with pytest.raises(AssertionError, match="would remove line1-programs"):
        site.play(site.of_examples("review", jobs=jobs))


def test_run(site: Site) -> None:
    source, target = site.srv / "line1" / "programs", site.srv / "hq"
    for directory in (source, target):
        directory.mkdir(parents=True)
    for number in range(3):
        (source / str(number)).write_text("1")
    job = {
        "name": "line1-programs",
        "partner": {"host": "hq", "connection": "local"},
        "elements": [{"path": str(source), "partner_path": str(target)}],
    }
    declare = {"name": "Declare it", "serversync.core.sync_job": {**job, "scope": "user"}}
    said = site.play({"tasks": [declare]}, site.of_examples("run"))
    assert "+ 0  (" in said
    assert "3 new files" in said
    assert sorted(path.name for path in target.iterdir() if path.is_file()) == ["0", "1", "2"]


def test_the_jobs_of_all_groups_by_the_role(site: Site) -> None:
    common, rest = EXAMPLES["groups"].split("# group_vars/lines.yml\n")
    (site.book / "group_vars").mkdir()
    for name, text in (("all", common), ("lines", rest)):
        text = text.replace("/srv/", f"{site.srv}/")
        (site.book / "group_vars" / f"{name}.yml").write_text(text)
    name = "serversync.core.runner"
    variables = {"runner_scope": "user", "runner_install_method": "packages", "runner_python": sys.executable}
    site.play({"roles": [name], "vars": variables})
    assert list(site.jobs()) == ["programs", "reports"]
    # What finds circles came along: the package has it by links, which a server gets as files.
    assert "No circle was found among them." in site.serversync("report", "--html", "-").stdout
    assert " changed=0 " in site.play({"roles": [name], "vars": variables})
    # as the role does it in the end, whatever else it does before
    only = {"tasks": [{"ansible.builtin.include_role": {"name": name, "tasks_from": "jobs"}}], "vars": variables}
    assert " changed=0 " in site.play(only)
    text = (site.book / "group_vars" / "lines.yml").read_text()
    (site.book / "group_vars" / "lines.yml").write_text(text.replace("name: programs", "name: recipes"))
    site.play(only)
    assert list(site.jobs()) == ["recipes", "reports"]
