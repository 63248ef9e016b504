# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Elements with settings of their own beside those of the job: declared by sync_job, then run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration import conftest
from tests.integration.conftest import Pair, module, tree

# What elements have of their own, beside one that has nothing.
OWN: dict[str, dict[str, Any] | None] = {
    "programs": None,
    "recipes": {"direction": "from_partner", "delete": "never", "exclude": []},
    "notes": {"direction": "both", "conflict": "keep_both"},
}
COMMON = {"direction": "to_partner", "delete": "synced", "exclude": ["*.tmp"]}


class Site(conftest.Site):
    """One with two directories for each element."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.here, self.there = path / "site-a", path / "hq"
        for root in (self.here, self.there):
            for name in OWN:
                (root / name).mkdir(parents=True)
                # A root that becomes empty looks unmounted.
                (root / name / "stays").write_text(name)
                os.utime(root / name / "stays", (1, 1))

    def elements(self, own: dict[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
        return [
            {"path": str(self.here / name), "partner_path": str(self.there / name), "settings": settings}
            for name, settings in own.items()
        ]

    def declare(self, own: dict[str, dict[str, Any] | None], **more: Any) -> dict[str, Any]:
        job = {
            "partner": {"host": "hq", "connection": "local"},
            "settings": COMMON,
            "elements": self.elements(own),
            **more,
        }
        looked, done = self.check(**job), self.apply(**job)
        assert not done.get("failed"), done
        assert (looked["diff"], looked["job"]) == (done["diff"], done["job"])
        assert not self.apply(**job)["changed"]
        return done

    def run(self) -> dict[str, dict[str, Any]]:
        """Runs the job; what it did with each element, by name."""
        record = json.loads(self.serversync("run", "demo", "--json").stdout)
        return {Path(entry["path"]).name: entry for entry in record["elements"]}

    def names(self, root: Path) -> dict[str, list[str]]:
        return {name: sorted(map(bytes.decode, tree(root / name).keys() - {b"stays"})) for name in OWN}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def moved(entries: dict[str, dict[str, Any]]) -> dict[str, tuple[int, int]]:
    return {name: (entry["created"] + entry["updated"], entry["deleted"]) for name, entry in entries.items()}


STILL = dict.fromkeys(OWN, (0, 0))


def test_each_element_goes_its_own_way(site: Site) -> None:
    site.declare(OWN)
    for name in OWN:
        for root, file in ((site.here, "here"), (site.there, "there")):
            (root / name / file).write_text(file)
            (root / name / f"{file}.tmp").write_text(file)
    assert " <-> " in (said := site.serversync("plan", "demo").stdout)
    assert (" -> " in said, " <- " in said) == (True, True)
    entries = site.run()
    assert [entry["direction"] for entry in entries.values()] == ["to_partner", "from_partner", "both"]
    assert site.names(site.here) == {
        "programs": ["here", "here.tmp"],
        "recipes": ["here", "here.tmp", "there", "there.tmp"],
        "notes": ["here", "here.tmp", "there"],
    }
    assert site.names(site.there) == {
        "programs": ["here", "there", "there.tmp"],
        "recipes": ["there", "there.tmp"],
        "notes": ["here", "there", "there.tmp"],
    }
    assert moved(site.run()) == STILL
    # Deletions: of programs and notes as the job has it, of recipes as it has it itself.
    for root, name, file in ((site.here, "programs", "here"), (site.there, "recipes", "there")):
        (root / name / file).unlink()
    (site.there / "notes" / "here").unlink()
    assert moved(site.run()) == {"programs": (0, 1), "recipes": (0, 0), "notes": (0, 1)}
    assert (site.here / "recipes" / "there").read_text() == "there"
    assert moved(site.run()) == STILL


def test_one_detail_of_an_element_is_edited_and_the_others_stay(site: Site) -> None:
    site.declare(OWN)
    (site.there / "recipes" / "there").write_text("1")
    assert moved(site.run())["recipes"] == (1, 0)
    edited = {**OWN, "recipes": {**(OWN["recipes"] or {}), "delete": "synced"}}
    done = site.declare(edited)
    before, after = (json.loads(done["diff"][0][side]) for side in ("before", "after"))
    assert [one["settings"] for one in before["elements"]] == list(OWN.values())
    assert [one["settings"] for one in after["elements"]] == list(edited.values())
    assert {**before, "elements": None} == {**after, "elements": None}
    assert moved(site.run()) == STILL
    (site.there / "recipes" / "there").unlink()
    assert moved(site.run())["recipes"] == (0, 1)
    # The job's own settings are edited: who has nothing of its own follows.
    site.apply(settings={"direction": "from_partner"})
    (site.there / "programs" / "new").write_text("1")
    (site.there / "recipes" / "new.tmp").write_text("1")
    assert moved(site.run()) == {"programs": (1, 0), "recipes": (1, 0), "notes": (0, 0)}


def test_an_old_disagreement_becomes_no_deletion_when_an_elements_own_settings_are_edited(site: Site) -> None:
    own = {**OWN, "recipes": {"delete": "never"}}
    site.declare(own)
    (site.here / "recipes" / "gone").write_text("1")
    site.run()
    (site.here / "recipes" / "gone").unlink()
    assert moved(site.run()) == STILL
    site.declare({**own, "recipes": {"delete": "synced"}})
    assert moved(site.run()) == STILL
    assert (site.there / "recipes" / "gone").exists()
    # The other way round it is a new file on the source.
    site.declare({**own, "recipes": {"direction": "from_partner"}})
    assert moved(site.run())["recipes"] == (1, 0)
    assert moved(site.run()) == STILL


def test_what_the_runner_finds_wrong_names_the_elements_own_setting(site: Site) -> None:
    # Only a document that no task has written has a pattern that it cannot understand.
    site.declare({"programs": {"exclude": ["a"]}, "recipes": {"delete": "synced"}})
    document = json.loads(site.document.read_text())
    document["elements"][0]["settings"]["exclude"] = ["[a"]
    site.document.write_text(json.dumps(document))
    record = json.loads(site.serversync("run", "demo", "--json", code=1).stdout)
    assert [entry["error"] and entry["error"]["field"] for entry in record["elements"]] == [
        "elements[0].settings.exclude",
        None,
    ]


@pytest.mark.parametrize("parallel", [1, 2])
def test_the_partner_is_asked_for_each_elements_own_access(pair: Pair, parallel: int) -> None:
    read, write = pair.partner_path.with_name("read"), pair.partner_path.with_name("write")
    entries = [
        {"module": module(path), "path": str(path), "access": access}
        for path, access in ((read, "read"), (write, "write"))
    ]
    pair.there.make_door(entries)
    recipes = pair.path.with_name("recipes")
    for root in (read, write, recipes):
        root.mkdir()
    (pair.path / "plc").write_text("program")
    (read / "oven").write_text("recipe")

    def declare(own: dict[str, str] | None) -> None:
        elements = [
            {"path": str(pair.path), "partner_path": str(write), "settings": None},
            {"path": str(recipes), "partner_path": str(read), "settings": own},
        ]
        pair.declare(elements=elements, limits={"parallel": parallel})

    declare({"direction": "from_partner"})
    assert "error" not in pair.here.serversync("check", "nightly", code=None).stdout.replace("mail", "")
    assert pair.here.run("nightly")["state"] == "equal"
    assert (write / "plc").read_text() == "program"
    assert (recipes / "oven").read_text() == "recipe"
    assert not (read / ".serversync").exists()
    again = pair.here.run("nightly")
    assert [(entry["created"], entry["updated"]) for entry in again["elements"]] == [(0, 0), (0, 0)]
    declare(None)
    record = pair.here.run("nightly", code=1)
    assert [entry["state_after"] for entry in record["elements"]] == ["equal", "failed"]
    assert record["error"]["field"] == "elements[1].partner_path"


def test_a_log_goes_its_own_way_beside_trees_that_go_both(pair: Pair) -> None:
    log, copy = pair.path.with_name("audit.log"), pair.partner_path.with_name("audit.log")
    pair.partner_path.mkdir()
    (pair.path / "plc").write_text("here")
    (pair.partner_path / "oven").write_text("there")
    log.write_text("1\n")
    elements = [
        {"path": str(pair.path), "partner_path": str(pair.partner_path)},
        {"path": str(log), "partner_path": str(copy), "kind": "log", "settings": {"direction": "to_partner"}},
    ]
    pair.declare(direction="both", elements=elements)
    record = pair.here.run("nightly")
    assert [entry["direction"] for entry in record["elements"]] == ["both", "to_partner"]
    assert tree(pair.path).keys() == tree(pair.partner_path).keys() == {b"plc", b"oven"}
    assert copy.read_text() == "1\n"
