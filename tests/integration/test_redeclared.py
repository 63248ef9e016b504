# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job gets another name by sync_job, and its next run is no first one, wherever the apply was cut off.

And a job is changed while it runs.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration import conftest
from tests.loopback import ROOT, endless, write_launcher

RENAME = {"name": "new", "previous_name": "demo"}


class Site(conftest.Site):
    """One with two directories that a job keeps the same."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.there = path / "there"
        self.there.mkdir()
        for name in ("gone", "kept", "old"):
            (self.here / name).write_text("1")
        self.job: dict[str, Any] = {
            "partner": {"host": "hq", "connection": "local"},
            "elements": [{"path": str(self.here), "partner_path": str(self.there)}],
            "schedule": {"at": "02:30"},
            "settings": {"delete": "synced", "max_delete": "100%"},
        }

    def answer(self, *words: str) -> Any:
        return json.loads(self.serversync(*words, "--json").stdout)

    def declare_and_run(self) -> None:
        assert not self.apply(**self.job).get("failed")
        self.answer("run", "demo")
        (self.here / "old").write_text("two")
        assert self.answer("run", "demo")["state"] == "equal"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.declare_and_run()
    return site


def assert_is_known(site: Site) -> None:
    """All that there is of the job goes by the new name, and nothing by the old one."""
    assert not list(site.document.parent.glob(".*"))
    assert not [path for path in site.home.rglob("demo*") if path.suffix != ".lock" and "archives" not in path.parts]
    assert not (site.home / "state" / "serversync" / "archives" / "demo").exists()
    assert site.memory()["active"] == {"serversync@new.timer": "active"}
    (site.here / "gone").unlink()
    plan = site.answer("plan", "new")["elements"][0]
    assert [(one["what"], one["path"]) for one in plan["decisions"]] == [("delete", "gone")]
    published = json.loads(site.published.with_name("new.json").read_text())
    assert [run["job"] for run in published["runs"]] == ["demo", "demo"]


def assert_is_renamed(site: Site) -> None:
    """And the next run goes on from there."""
    assert_is_known(site)
    record = site.answer("run", "new")
    assert (record["state"], record["elements"][0]["warnings"], record["configuration"]) == ("equal", [], 2)
    assert not (site.there / "gone").exists(), "it was a first run"
    assert [run["job"] for run in site.answer("status", "new")[:1]] == ["new"]
    published = json.loads(site.published.with_name("new.json").read_text())
    assert [run["job"] for run in published["runs"]] == ["new", "demo", "demo"]
    markers = list(site.there.glob(".serversync/*/marker.json"))
    assert [json.loads(path.read_text())["job"] for path in markers] == ["new"]
    site.answer("restore", "new", "old")
    assert (site.there / "old").read_text() == "1"


def test_what_is_known_of_a_job_goes_by_its_new_name(site: Site) -> None:
    check = site.check(**RENAME)
    assert (site.home / "state" / "serversync" / "archives" / "demo").exists()
    done = site.apply(**RENAME)
    assert (done["changed"], done["diff"], done["commands"]) == (True, check["diff"], check["commands"])
    assert [str(site.launcher), "rename", "new", "--from=demo"] in done["commands"]
    for again in (site.apply, site.check):
        assert not again(**RENAME)["changed"]
    site.answer("versions", "new", "old")
    assert_is_renamed(site)


def test_twice_before_it_runs_and_moved_as_well(site: Site) -> None:
    site.apply(name="between", previous_name="demo")
    moved = site.here.with_name("moved")
    site.here.rename(moved)
    elements = [dict(site.job["elements"][0], path=str(moved), previous_path=str(site.here))]
    site.apply(name="new", previous_name="between", elements=elements)
    site.here = moved
    assert_is_renamed(site)


def test_what_a_removed_job_of_the_name_has_left_does_not_stand_in_the_way(site: Site) -> None:
    site.apply(**RENAME)
    site.answer("run", "new")
    site.apply(name="new", state="absent")
    for path in (site.here, site.there):
        path.rename(path.with_name(path.name + "-before"))
        path.mkdir()
    for name in ("gone", "kept", "old"):
        (site.here / name).write_text("1")
    site.declare_and_run()
    site.apply(**RENAME)
    (site.here / "gone").unlink()
    assert site.answer("run", "new")["elements"][0]["deleted"] == 1


class KilledRunner(Site):
    """One where it is the runner that is killed."""

    dies = 1

    def arm(self, program: str) -> Callable[[], None]:
        write_launcher(self.launcher, f"sys.path.insert(0, {str(ROOT)!r})\n{program}")
        return lambda: write_launcher(self.launcher)


@pytest.mark.parametrize("kind", [Site, KilledRunner])
def test_a_crash_at_any_step_is_repaired(tmp_path: Path, kind: type[Site]) -> None:
    site = kind(tmp_path / "site")
    site.declare_and_run()
    seen = 0
    for _crash in site.crashes(**RENAME):
        seen += 1
        names = {path.stem for path in site.document.parent.glob("*.json")}
        assert names in ({"demo"}, {"demo", "new"}, {"new"})
        check = site.check(**RENAME)
        done = site.apply(**RENAME)
        assert done.get("msg") is None
        assert (done["diff"], done["commands"]) == (check["diff"], check["commands"])
        assert not site.check(**RENAME)["changed"]
        assert_is_known(site)
    assert seen > 5


# --- while it runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def run(site: Site, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run that has begun and never ends."""
    hook = endless(tmp_path / "hook")
    site.apply(settings={"verify": "checksum"})
    environment = {**site.environment, "PYTHONPATH": str(hook)}
    process = subprocess.Popen([str(site.launcher), "run", "demo"], env=environment, stderr=subprocess.DEVNULL)
    with (hook / "fifo").open("rb") as reading:
        assert reading.read(7) == b"reading"
        yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("change", [{"comment": "new"}, RENAME, {"state": "absent"}])
def test_a_run_is_stopped_when_its_job_changes(
    site: Site, run: subprocess.Popen[bytes], change: dict[str, Any]
) -> None:
    check = site.check(stop_timeout="0s", **change)
    assert (check["changed"], "warnings" in check, run.poll()) == (True, False, None)
    done = site.apply(stop_timeout="0s", **change)
    assert done["warnings"] == ["demo: the run that was on had not ended after 0s and was stopped"]
    assert (done["diff"], done["commands"]) == (check["diff"], check["commands"])
    run.wait()
    if change != {"state": "absent"}:
        name = change.get("name", "demo")
        assert site.answer("show", name)["error"]["code"] == "stopped"
        assert site.answer("run", name)["state"] == "equal"


def test_what_changes_nothing_stops_nothing(site: Site, run: subprocess.Popen[bytes]) -> None:
    done = site.apply(stop_timeout="0s", comment=None)
    assert (done["changed"], "warnings" in done, run.poll()) == (False, False, None)
