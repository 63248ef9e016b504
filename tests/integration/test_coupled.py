# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Elements that require others: their order, and what becomes of them where those are not well."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.loopback import Server

LOCAL = {"host": "localhost", "port": None, "connection": "local", "host_key": []}


class Coupled:
    """A job of three elements on one server: the last declared is required by the one before, and so on."""

    def __init__(self, server: Server, root: Path) -> None:
        self.server = server
        self.root = root
        self.names = ["recipes", "programs", "firmware"]
        for name in self.names:
            (root / name).mkdir()
            (root / name / "file").write_text(name)
        self.declare()

    def path(self, name: str) -> str:
        return str(self.root / name)

    def target(self, name: str) -> Path:
        return self.root / f"copy of {name}"

    def declare(self, parallel: int = 1, retries: int = 0, **settings: Any) -> None:
        elements = [{"path": self.path(name), "partner_path": str(self.target(name))} for name in self.names]
        coupled = [{**element, "requires": [required["path"]]} for element, required in pairwise(elements)]
        self.server.declare(
            "line1",
            [],
            elements=[*coupled, elements[-1]],
            limits={"parallel": parallel},
            on_error={"retries": retries, "delay": "1s"},
            settings={"direction": "to_partner", "exclude": [], "delete": "never", **settings},
        )

    def run(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        said = self.server.serversync("run", "line1", "--json", *arguments, code=code)
        self.said = said.stderr.splitlines()
        record: dict[str, Any] = json.loads(said.stdout)
        return record

    def states(self, record: dict[str, Any]) -> dict[str, str]:
        return {Path(entry["path"]).name: entry["state_after"] for entry in record["elements"]}


@pytest.fixture
def coupled(server: Server, tmp_path: Path) -> Coupled:
    return Coupled(server, tmp_path)


@pytest.mark.parametrize("parallel", [1, 2, 8])
def test_each_comes_behind_what_it_requires(coupled: Coupled, parallel: int) -> None:
    coupled.declare(parallel)
    assert coupled.run()["state"] == "equal"
    assert [line.partition(":")[0] for line in coupled.said] == [
        coupled.path(name) for name in ("firmware", "programs", "recipes")
    ]


@pytest.mark.parametrize("parallel", [1, 2])
def test_what_requires_one_that_failed_is_left_alone_and_so_on(coupled: Coupled, parallel: int) -> None:
    coupled.declare(parallel, retries=3)
    (coupled.root / "firmware" / "file").unlink()
    (coupled.root / "firmware").rmdir()
    record = coupled.run(code=1)
    assert coupled.states(record) == {"recipes": "skipped", "programs": "skipped", "firmware": "failed"}
    # What no attempt can cure is not tried again, nor is what waits for it.
    assert (record["state"], len(record["attempts"])) == ("failed", 1)
    assert record["error"]["code"] == "missing"
    errors = [entry["error"] for entry in record["elements"]]
    assert [(error["code"], error["field"]) for error in errors[:2]] == [
        ("required", "elements[0].requires"),
        ("required", "elements[1].requires"),
    ]
    assert errors[1]["message"] == (
        f"{coupled.path('firmware')} failed, and this element requires it; once that is mended, the next run "
        "synchronizes both"
    )
    assert errors[0]["message"].startswith(f"{coupled.path('programs')} was skipped, and ")
    assert not coupled.target("programs").exists()
    shown = coupled.server.serversync("show", "line1").stdout
    assert f"error: elements[1].requires: {errors[1]['message']}" in shown
    (coupled.root / "firmware").mkdir()
    assert set(coupled.states(coupled.run()).values()) == {"equal"}


def test_what_requires_one_that_a_guard_stopped_waits_for_the_decision(coupled: Coupled) -> None:
    for number in range(40):
        (coupled.root / "programs" / str(number)).write_text("1")
    coupled.declare(delete="synced")
    coupled.run()
    for number in range(40):
        (coupled.root / "programs" / str(number)).unlink()
    (coupled.root / "recipes" / "new").write_text("1")
    record = coupled.run(code=3)
    assert coupled.states(record) == {"recipes": "skipped", "programs": "different", "firmware": "equal"}
    assert record["elements"][0]["error"]["message"].startswith(f"{coupled.path('programs')} was stopped by a guard, ")
    plan = json.loads(coupled.server.serversync("plan", "line1", "--json").stdout)
    assert plan["elements"][0]["guards"] == [f"{coupled.path('programs')}, which it requires, would be stopped"]
    assert set(coupled.states(coupled.run("--approve", plan["plan"])).values()) == {"equal"}
    assert (coupled.target("recipes") / "new").exists()


def test_an_unresolved_path_keeps_nothing_back(coupled: Coupled) -> None:
    coupled.declare(conflict="no_winner")
    coupled.target("programs").mkdir()
    (coupled.target("programs") / "file").write_text("another")
    record = coupled.run(code=3)
    assert coupled.states(record) == {"recipes": "equal", "programs": "different", "firmware": "equal"}


def test_a_chosen_element_takes_along_what_it_requires(coupled: Coupled) -> None:
    assert set(coupled.states(coupled.run("--element", coupled.path("programs")))) == {"programs", "firmware"}
    plan = json.loads(coupled.server.serversync("plan", "line1", "--json", "--element", coupled.path("recipes")).stdout)
    assert len(plan["elements"]) == 3
    assert set(coupled.states(coupled.run("--element", coupled.path("firmware")))) == {"firmware"}
