# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents of one server on another one: its runner refuses them until they are declared there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration import conftest
from tests.loopback import tree, write_launcher

IDS = {"site-a": "0123456789abcdef" * 2, "site-b": "f" * 32}


class Site(conftest.Site):
    """One with a machine id of its own."""

    def become(self, machine_id: str) -> None:
        super().become(machine_id)
        path = str(self.root / "machine-id")
        write_launcher(
            self.launcher,
            f"from pathlib import Path\nfrom serversync import machine\nmachine.MACHINE_ID = Path({path!r})",
        )

    def status(self) -> dict[str, Any]:
        (row,) = json.loads(self.serversync("status", "--json", code=0).stdout)
        return dict(row)


class Sites:
    """Two servers of one account's that see the same two directories, as of a file system that both have mounted."""

    def __init__(self, path: Path) -> None:
        self.a, self.b = (Site(path / name) for name in IDS)
        self.a.become(IDS["site-a"])
        self.b.become(IDS["site-b"])
        self.source, self.target = self.a.here, path / "target"
        (self.source / "plc").write_text("1")
        self.job = {
            "partner": {"host": "hq", "connection": "local"},
            "elements": [{"path": str(self.source), "partner_path": str(self.target)}],
        }
        self.result = self.a.apply(**self.job)
        assert not self.result.get("failed")
        self.a.serversync("run", "demo", code=0)
        (self.source / "plc").write_text("two")
        self.before = tree(self.source), tree(self.target)

    def copy(self) -> str:
        """The job's document comes to the other server; what its runner says of it."""
        self.b.document.parent.mkdir(exist_ok=True)
        self.b.document.write_bytes(self.a.document.read_bytes())
        return (
            f"{self.b.document}: machine_id: the job was declared on another server than this one; declare it here, "
            "too, or remove it with state: absent"
        )

    def untouched(self) -> bool:
        return (tree(self.source), tree(self.target)) == self.before


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    return Sites(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "demo"),
        ("unit", "demo"),  # what its timer starts
        ("died", "demo"),
        ("plan", "demo"),
        ("conflicts", "demo"),
        ("resolve", "demo", "plc", "--use", "partner"),
        ("versions", "demo"),
        ("restore", "demo", "plc"),
        ("check", "demo"),
        ("rename", "demo", "--from", "old"),
    ],
    ids=lambda words: words[0],
)
def test_a_document_that_came_from_elsewhere_is_refused_before_anything_is_touched(
    sites: Sites, words: tuple[str, ...]
) -> None:
    said = sites.copy()
    sites.b.environment["EXIT_CODE"] = "killed"
    done = sites.b.serversync(*words, code=2)
    assert said in done.stderr
    assert (done.stdout, "Traceback" in done.stderr) == ("", False)
    assert sites.untouched()
    # nor is anything on record; that the document is one by itself was found
    assert {path.name for path in (sites.b.home / "state" / "serversync").glob("*")} <= {"validated"}
    if words[0] not in ("unit", "died", "rename"):
        failure = json.loads(sites.b.serversync(*words, "--json", code=2).stdout)["failure"]
        assert failure == {"code": "foreign_document", "field": None, "message": said, "transient": False}
    sites.a.serversync("run", "demo", code=0)
    assert (sites.target / "plc").read_text() == "two"


def test_it_is_told_where_one_looks(sites: Sites) -> None:
    said = sites.copy()
    row = sites.b.status()
    assert (row["state"], row["problem"], row["last"]) == ("invalid", said, None)
    assert " ".join(said.split()) in " ".join(sites.b.serversync("status", code=0).stdout.split())
    assert said in sites.b.serversync("show", "demo", code=2).stderr
    assert said in sites.b.serversync("history", "demo", code=2).stderr
    assert 'serversync_job_state{sync_job="demo",state="invalid"} 1' in sites.b.serversync("metrics", code=0).stdout
    # where its records have come along, they are those of runs that were
    public = sites.b.home / "state" / "serversync" / "public"
    public.mkdir(parents=True)
    (public / "demo.json").write_bytes((sites.a.home / "state" / "serversync" / "public" / "demo.json").read_bytes())
    shown = sites.b.serversync("show", "demo", code=0)
    assert "demo: equal" in shown.stdout
    assert shown.stderr == f"serversync: {said}\n"
    assert json.loads(sites.b.serversync("show", "demo", "--json", code=0).stdout)["state"] == "equal"
    assert sites.a.serversync("show", "demo", code=0).stderr == ""


def test_check_lists_it_beside_the_others(sites: Sites) -> None:
    said = sites.copy()
    other = {"path": str(sites.b.here), "partner_path": str(sites.b.home / "there")}
    assert not sites.b.apply(name="own", partner={"host": "hq", "connection": "local"}, elements=[other]).get("failed")
    (sites.b.document.parent / "hurt.json").write_text("{")
    found = json.loads(sites.b.serversync("check", "--json", code=1).stdout)
    assert {entry["level"] for entry in found["own"]} <= {"ok", "warning"}
    issue, _semicolon, remedy = said.partition("; ")
    assert [(one["level"], one["issue"], one["remedy"]) for one in found["demo"]] == [("error", issue, remedy)]
    assert found["demo"][0]["failure"]["code"] == "foreign_document"
    assert found["hurt"][0]["failure"]["code"] == "invalid_document"

    # a file that is only looked at is valid, and does not run here
    for more in ((), ("--connect",)):
        looked = json.loads(sites.b.serversync("check", str(sites.b.document), "--json", *more, code=0).stdout)["demo"]
        assert "the job was declared on another server than this one" in looked[-1]["issue"]
        assert looked[-1]["level"] == "warning"
    own = json.loads(sites.a.serversync("check", str(sites.a.document), "--json", code=0).stdout)["demo"]
    assert [one["level"] for one in own] == ["ok"]


def test_declaring_it_binds_it(sites: Sites) -> None:
    said = sites.copy()
    sites.b.turn("sync_job_run", name="demo")
    for run in (sites.b.check, sites.b.apply):
        result = run()
        assert result["failure"]["code"] == "foreign_document"
        assert result["msg"] == f"demo: {said}"
    assert sites.untouched()
    sites.b.turn("sync_job", name="demo")
    for run in (sites.b.check, sites.b.apply):
        assert run(**sites.job)["changed"]
    assert not sites.b.apply(**sites.job)["changed"]
    assert sites.b.status()["state"] is None
    sites.b.serversync("plan", "demo", code=0)
    assert sites.untouched()


def test_a_document_without_a_machine_id_runs_until_it_gets_one(sites: Sites) -> None:
    sites.copy()
    document = json.loads(sites.b.document.read_text())
    assert document.pop("machine_id") == IDS["site-a"]
    sites.b.document.write_text(json.dumps(document))
    assert sites.b.status()["problem"] is None
    sites.b.serversync("plan", "demo", code=0)
    assert sites.b.apply(**sites.job)["changed"]
    assert json.loads(sites.b.document.read_text())["machine_id"] == IDS["site-b"]
    sites.b.serversync("plan", "demo", code=0)


@pytest.mark.parametrize("machine_id", ["", "uninitialized"])
def test_a_server_without_a_machine_id_runs_what_is_declared_on_it(sites: Sites, machine_id: str) -> None:
    sites.copy()
    sites.b.become(machine_id)
    assert "than this one, which has no machine id; declare it here" in sites.b.serversync("run", "demo", code=2).stderr
    assert sites.b.apply(**sites.job)["changed"]
    sites.b.serversync("plan", "demo", code=0)
    assert sites.untouched()


def test_purge_and_absent_remove_it(sites: Sites) -> None:
    for options in ({"module": "sync_jobs", "jobs": [], "purge": True}, {"module": "sync_job", "state": "absent"}):
        sites.copy()
        module = str(options.pop("module"))
        sites.b.turn(module, **({"name": "demo"} if module == "sync_job" else {}))
        result = sites.b.apply(**options)
        assert (result["changed"], result.get("warnings")) == (True, None)
        assert not sites.b.document.exists()
    assert sites.untouched()
