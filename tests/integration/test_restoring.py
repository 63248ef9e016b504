# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook serversync.core.restore: a server is lost, and what its jobs kept in sync comes back from the other end.

Two directories are the two servers where nothing is said of ssh; what becomes of them is seen by ``loopback.tree``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration import conftest
from tests.loopback import ROOT, Pair, module, tree, write_launcher
from tests.nas import nas
from tests.sftp import sftp_loopback

# Killed when a second piece of the plan is in its place and not archived yet, as long as the file is there.
DYING = """
if os.path.exists({flag!r}):
    import signal
    from serversync import synchronize
    from serversync.archiving import Archiving
    synchronize.ENTRIES = 3
    done, remember = [], Archiving.remember
    def dying(*arguments):
        done.append(1)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return remember(*arguments)
    Archiving.remember = dying
"""


EXAMPLES = dict(
    re.findall(
        r"<!-- example: (\w+) -->\n *```yaml\n(.*?)```\n", (ROOT / "docs" / "restoring.md").read_text(), re.DOTALL
    )
)


def playbook(
    home: Path,
    environment: dict[str, str],
    inventory: Path,
    *words: str,
    code: int = 0,
    book: str = "serversync.core.restore",
    **inputs: object,
) -> str:
    """What the playbook prints, in one line; it must end with the code."""
    settings = {
        "PATH": f"{os.path.dirname(sys.executable)}:{environment['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"],
        "ANSIBLE_HOME": str(home / ".ansible"),
        # The account's own home is another one.
        "ANSIBLE_ASYNC_DIR": str(home / ".ansible_async"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
    }
    given = {f"restore_{name}": value for name, value in inputs.items()}
    command = ["ansible-playbook", "--inventory", str(inventory), "--extra-vars", json.dumps(given), *words]
    done = subprocess.run(
        [*command, book],
        env={**environment, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


def write_inventory(path: Path, **hosts: dict[str, Any]) -> Path:
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "runner_scope": "user"}
    group = {"children": {"lines": {"hosts": {"siteA": {}}}}}
    path.write_text(json.dumps({"all": {"hosts": {name: {**here, **more} for name, more in hosts.items()}, **group}}))
    return path


def fill(root: Path) -> None:
    """Files, links and directories, with what is kept the same beside contents."""
    (root / "blocks" / "old").mkdir(parents=True)
    for number in range(8):
        path = root / "blocks" / f"block{number}.st"
        path.write_text(f"FUNCTION_BLOCK {number}\n" * (number + 1))
        path.chmod(0o600 + number)
        os.utime(path, ns=(10**18 + number, 10**18 + number))
    (root / "main.st").write_text("PROGRAM main\n")
    (root / "same.st").hardlink_to(root / "main.st")
    (root / "current.st").symlink_to("main.st")
    (root / "dangling").symlink_to("/nowhere/at all")
    (root / "empty").mkdir(mode=0o700)
    (root / "none").touch()
    root.chmod(0o751)


class Site(conftest.Site):
    """A server with a job for each way, and the directory that is the other server; runs are as they really are."""

    def __init__(self, path: Path, systemd: bool) -> None:
        super().__init__(path / "site", systemd)
        self.path = path
        self.there = path / "hq"
        (self.config / "serversync" / "runner.json").write_text(
            json.dumps({"version": "0.1.0", "scope": "user", "smtp": {"host": "127.0.0.1", "port": 9, "sender": "a@b"}})
        )
        self.here = path / "here"
        self.deployed = {"runner.json": (self.config / "serversync" / "runner.json").read_text()}
        self.jobs = [
            self.job("programs", self.element("programs"), settings={"delete": "extraneous", "exclude": ["*.tmp"]}),
            self.job(
                "line1",
                self.element("notes", {"direction": "both", "delete": "synced", "conflict": "no_winner"}),
                self.element("recipes", {"direction": "from_partner", "delete": "extraneous"}),
                self.element("plan.xml", {"direction": "from_partner"}),
                {**self.element("audit.log"), "kind": "log"},
            ),
        ]
        if systemd:
            self.jobs[0]["schedule"] = {"at": "02:30"}
        for root in (self.here, self.there):
            root.mkdir()
        for name in ("programs", "notes"):
            fill(self.here / name)
        fill(self.there / "recipes")
        (self.there / "notes").mkdir()
        # In both directions an element's own directory is each server's.
        (self.there / "notes").chmod(0o751)
        (self.there / "notes" / "theirs").write_text("from there")
        (self.here / "programs" / "editor.tmp").write_text("scratch")
        (self.there / "plan.xml").write_text("<plan/>")
        (self.here / "audit.log").write_text("one\ntwo\n")

    def element(self, name: str, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"path": str(self.here / name), "partner_path": str(self.there / name), "settings": settings}

    def job(self, name: str, *elements: dict[str, Any], **more: Any) -> dict[str, Any]:
        defaults = {"partner": {"host": "hq", "connection": "local"}, "on_error": {"retries": 0}}
        return {"name": name, "elements": list(elements), **defaults, **more}

    @property
    def inventory(self) -> Path:
        return write_inventory(
            self.path / "inventory.yml", siteA={"runner_jobs": self.jobs}, other={"runner_partners": []}
        )

    def declare(self) -> None:
        done = self.turn("sync_jobs").apply(jobs=self.jobs)
        assert not done.get("failed"), done

    def restore(self, *words: str, code: int = 0, **inputs: object) -> str:
        given = {"lost": "siteA", "from": "hq", "deploy": False, **inputs}
        given = {name: value for name, value in given.items() if value is not None}
        return playbook(self.home, self.environment, self.inventory, *words, code=code, **given)

    def run(self, *jobs: str) -> None:
        for job in jobs or [one["name"] for one in self.jobs]:
            self.serversync("run", job)

    def lose(self) -> None:
        """Everything but the runner, which somebody has deployed again."""
        shutil.rmtree(self.here)
        shutil.rmtree(self.config)
        shutil.rmtree(self.home / "state")
        shutil.rmtree(self.home / "data", ignore_errors=True)
        self.units.mkdir(parents=True)
        for name, text in self.deployed.items():
            (self.config / "serversync").mkdir(exist_ok=True)
            (self.config / "serversync" / name).write_text(text)
        (self.root / "memory.json").write_text('{"loaded": {}, "active": {}}')
        # The markers are those of a machine that is no more.
        markers = list(self.there.rglob("marker.json"))
        assert markers
        for marker in markers:
            marker.write_text(json.dumps({**json.loads(marker.read_text()), "machine": "0" * 64}))

    def told(self, job: str) -> dict[str, Any]:
        return dict(json.loads(self.serversync("show", job, "--json").stdout))

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.document.parent.glob("*.json"))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path, systemd=False)
    site.declare()
    site.run()
    return site


@pytest.fixture
def timed(tmp_path: Path) -> Site:
    """One with schedules."""
    site = Site(tmp_path, systemd=True)
    site.declare()
    site.run()
    return site


def test_every_example_is_tried() -> None:
    assert set(EXAMPLES) == {"noted"}


def links(root: Path) -> int:
    return os.stat(root / "main.st").st_nlink


def mode(root: Path) -> int:
    return stat.S_IMODE(root.stat().st_mode)


def test_a_server_that_is_lost_has_its_data_again(timed: Site) -> None:
    site = timed
    before, there = tree(site.here), tree(site.there)
    site.lose()
    empty = site.snapshot()

    said = site.restore("--check")
    assert "programs " + str(site.here / "programs") + ": 16 paths, " in said
    assert "would come back from hq" in said
    kept = {path: entry for path, entry in site.snapshot().items() if not path.startswith(".ansible")}
    assert kept == {path: entry for path, entry in empty.items() if not path.startswith(".ansible")}
    assert not site.here.exists()

    start = len(site.calls())
    said = site.restore()
    assert f"programs {site.here / 'programs'}: equal, 16 paths, 16 brought back from hq, " in said
    assert f"line1 {site.here / 'plan.xml'}: equal, 1 paths, 1 brought back from hq, " in said
    assert f"line1 {site.here / 'audit.log'}: a log, left to the job" in said
    lost = {b"programs/editor.tmp", b"audit.log"}
    assert tree(site.here) == {path: entry for path, entry in before.items() if path not in lost}
    assert tree(site.there) == there
    for name in ("programs", "notes", "recipes"):
        assert links(site.here / name) == 2
    assert mode(site.here / "programs") == mode(site.here / "recipes") == 0o751
    # The schedule comes last, when there is nothing that could be missed.
    assert site.names() == ["line1", "programs"]
    started = [call for call in site.calls(start) if "start" in call]
    assert started == [["systemctl", "--user", "start", "serversync@programs.timer"]]
    for job in site.names():
        done = site.told(job)
        assert (done["state"], done["elements"][0]["files"] > 10) == ("equal", True), done

    (site.here / "audit.log").write_text("three\n")
    for job in site.names():
        done = json.loads(site.serversync("run", job, "--json").stdout)
        assert [one["created"] + one["updated"] + one["deleted"] for one in done["elements"]] == [0] * len(
            done["elements"]
        )
    assert (site.there / "audit.log").read_text() == "one\ntwo\nthree\n"

    said = site.restore()
    assert '"programs: equal, nothing to bring back"' in said
    assert '"line1: equal, nothing to bring back"' in said
    assert site.memory()["active"]["serversync@programs.timer"] == "active"


def test_a_partner_that_is_lost_has_its_data_again(site: Site) -> None:
    """Its jobs are declared on the server that is left, and their archives know what was there."""
    before, here = tree(site.there), tree(site.here)
    documents = {name: (site.document.parent / f"{name}.json").read_bytes() for name in site.names()}
    shutil.rmtree(site.there)
    said = site.restore(lost="hq", **{"from": "siteA"})
    assert f"line1 {site.here / 'recipes'}: equal, 16 paths, 16 brought back from siteA, " in said
    assert "programs: equal" in said
    assert tree(site.there) == {path: entry for path, entry in before.items() if path != b"audit.log"}
    assert tree(site.here) == here
    assert {name: (site.document.parent / f"{name}.json").read_bytes() for name in site.names()} == documents
    for job in site.names():
        done = json.loads(site.serversync("run", job, "--json", code=None).stdout)
        trees = [one for one in done["elements"] if not one["path"].endswith(".log")]
        assert [(one["state_before"], one["state_after"]) for one in trees] == [("equal", "equal")] * len(trees), done


def test_what_was_deleted_there_is_no_deletion_of_what_is_left(site: Site) -> None:
    """The job itself would take it for one: its archive and the runner's own files are as they were."""
    before, here = tree(site.there / "notes"), tree(site.here)
    for path in list((site.there / "notes").iterdir()):
        if path.name != ".serversync":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    said = site.restore(lost="hq", only="line1", **{"from": "lines"})
    assert f"line1 {site.here / 'notes'}: equal, 17 paths, 17 brought back from siteA, " in said
    assert (tree(site.there / "notes"), tree(site.here)) == (before, here)
    assert json.loads(site.serversync("run", "line1", "--json").stdout)["state"] == "equal"
    (marker,) = (site.there / "notes" / ".serversync").glob("line1.*/marker*")
    assert marker.name == "marker.json"


def test_what_is_there_already_is_not_overwritten_unless_that_is_said(timed: Site) -> None:
    site = timed
    (site.here / "programs" / "main.st").write_text("PROGRAM other\n")
    (site.here / "programs" / "new.st").write_text("PROGRAM new\n")
    before, there, start = tree(site.path / "here"), tree(site.there), len(site.calls())
    said = site.restore(only="programs", code=2)
    assert (
        f"programs: {site.here / 'programs'} on siteA has files of its own that would be overwritten or are not on hq, "
        "such as "
    ) in said
    assert "give -e restore_over=true, with which those of hq win and the others are kept as versions" in said
    assert (tree(site.here), tree(site.there), site.names()) == (before, there, ["line1", "programs"])
    # The timer was held meanwhile, and is again as it was.
    verbs = [call[2] for call in site.calls(start) if set(call) & {"start", "disable", "enable"}]
    assert verbs == ["disable", "enable", "start"]
    assert site.memory()["active"]["serversync@programs.timer"] == "active"

    said = site.restore(only=["programs"], over=True)
    assert "programs: its first run is left to you, for it would copy what is on siteA alone" in said
    assert (site.here / "programs" / "main.st").read_text() == "PROGRAM main\n"
    assert (site.here / "programs" / "new.st").read_text() == "PROGRAM new\n"
    kept = list((site.here / "programs" / ".serversync").glob("restore-programs.*/versions/*/main.st"))
    assert [path.read_text() for path in kept] == ["PROGRAM other\n"]
    assert tree(site.there) == there


def test_a_call_that_is_killed_is_gone_on_with(site: Site) -> None:
    before, flag = tree(site.here / "programs"), site.path / "flag"
    noting = site.path / "noting.yml"
    play = {"hosts": "siteA", "gather_facts": False, "tasks": yaml.safe_load(textwrap.dedent(EXAMPLES["noted"]))}
    play["module_defaults"] = {"group/serversync.core.jobs": {"scope": "user"}}
    noting.write_text(json.dumps([play]))
    playbook(site.home, site.environment, site.inventory, book=str(noting))
    site.jobs = []
    noted = (f"--extra-vars=@{site.path / 'siteA.jobs.json'}",)
    site.lose()
    write_launcher(site.launcher, DYING.format(flag=str(flag)))
    flag.touch()
    said = site.restore(*noted, only="programs", code=2)
    assert (
        "ended by signal 9; see: serversync status restore-programs. Mend that and give the same command again" in said
    )
    half = tree(site.here / "programs")
    assert 3 <= len(half) < 16
    assert json.loads((site.document.parent / "programs.json").read_text())["enabled"] is False
    assert site.names() == ["programs", "restore-programs"]

    flag.unlink()
    said = site.restore(*noted, only="programs")
    assert f"programs {site.here / 'programs'}: equal, 16 paths, " in said
    assert tree(site.here / "programs") == {path: entry for path, entry in before.items() if path != b"editor.tmp"}
    assert json.loads((site.document.parent / "programs.json").read_text())["enabled"] is True
    assert site.names() == ["programs"]


def test_what_runs_beside_a_job_is_not_started_on_a_machine_that_is_new(timed: Site) -> None:
    """It may dump a database that is empty yet."""
    site = timed
    site.jobs = [{**site.jobs[0], "before": [{"unit": "dump.service"}]}]
    before, there = tree(site.here / "programs"), tree(site.there)
    site.lose()
    said = site.restore()
    text = "programs: paused, for it starts dump.service; declare it again when what that needs is back, too"
    assert text in said
    assert tree(site.here / "programs") == {path: entry for path, entry in before.items() if path != b"editor.tmp"}
    assert tree(site.there) == there
    declared = json.loads((site.document.parent / "programs.json").read_text())
    assert (declared["enabled"], declared["before"]) == (False, [{"unit": "dump.service"}])
    assert site.memory()["active"] == {}
    assert "programs has not run yet" in site.serversync("show", "programs", code=2).stderr


def test_the_role_comes_first_with_the_variables_of_the_inventory(tmp_path: Path) -> None:
    site = Site(tmp_path, systemd=False)
    # As long as a name may be, and a copy of a job that comes after it.
    name = "programs".ljust(64, "_")
    site.jobs = [
        {"name": "notes", "copy_from": name, "elements": [site.element("notes")]},
        {**site.jobs[0], "name": name},
    ]
    (site.there / "notes" / "theirs").unlink()
    site.declare()
    site.run()
    before = tree(site.here)
    site.lose()
    shutil.rmtree(site.config / "serversync")
    site.launcher.unlink()
    python = {"runner_install_method": "packages", "runner_python": sys.executable}
    inventory = write_inventory(
        tmp_path / "inventory.yml", siteA={"runner_jobs": site.jobs, "runner_partners": [], **python}
    )
    given = {"lost": "siteA", "from": "hq"}
    said = playbook(site.home, site.environment, inventory, **given)
    assert "serversync.core.runner : Install the program" in said
    assert tree(site.here) == {
        path: entry
        for path, entry in before.items()
        if path.startswith((b"programs", b"notes")) and path != b"programs/editor.tmp"
    }
    assert site.names() == ["notes", name]


INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"lost": None}, "restore_lost: is missing; name the server that lost its data, and is written: -e restore_lost="),
    (
        {"from": None},
        "restore_from: is missing; name the server that still has the data, and is read: -e restore_from=",
    ),
    ({"from": "hq,siteA"}, "restore_from: 'siteA' is the lost server itself; name the one that still has the data"),
    (
        {"lost": "siteB"},
        "restore_lost, restore_from: none of siteB, hq is a host of the inventory; one has to be, the server with the "
        "jobs",
    ),
    (
        {"deploy": True},
        "runner_partners: is not in the inventory for siteA, and without it the role would end the pairings; put it "
        "there, or apply the role yourself and give -e restore_deploy=false",
    ),
    (
        {"from": "other"},
        "no job is known between siteA and other; the jobs that were declared on siteA are to be in its runner_jobs, "
        "or in restore_declarations",
    ),
    (
        {"only": "programs,line2"},
        "restore_only: line2 is no job between siteA and hq; these are: line1, programs",
    ),
    ({"declarations": [{"name": "Line 1"}]}, "jobs[0].name: 'Line 1' is not a job name"),
]


@pytest.mark.parametrize(("inputs", "text"), INPUTS, ids=[text.split(":")[0] for _inputs, text in INPUTS])
def test_wrong_inputs(tmp_path: Path, inputs: dict[str, Any], text: str) -> None:
    site = Site(tmp_path, systemd=False)
    before = tree(tmp_path / "here"), tree(tmp_path / "hq")
    assert text in site.restore(code=2, **inputs)
    assert (tree(tmp_path / "here"), tree(tmp_path / "hq")) == before
    assert site.names() == []


def test_a_limit_that_leaves_one_of_them_out(tmp_path: Path) -> None:
    site = Site(tmp_path, systemd=False)
    said = site.restore("--limit=other", code=2)
    assert "--limit leaves out siteA; leave it away, or add them" in said


def test_nothing_comes_back_from_where_nothing_is(site: Site) -> None:
    programs = site.there / "programs"
    site.lose()
    shutil.rmtree(programs)
    said = site.restore(only="programs", code=2)
    assert f"programs: {programs} on hq does not exist, so nothing can come back; mount or create it, or leave " in said
    programs.mkdir()
    (programs / ".serversync").mkdir()
    said = site.restore(only="programs", code=2)
    assert f"programs: {programs} on hq is empty, so nothing can come back; mount it, or give " in said
    assert site.names() == []
    site.restore(only="programs", empty=True)
    assert list(tree(site.here / "programs")) == []


def test_roots_that_are_open_one_way_are_told_before_anything_is_done(tmp_path: Path) -> None:
    site = Site(tmp_path, systemd=False)
    element = {"path": str(site.here / "programs"), "partner_path": str(site.there / "programs")}
    # By the name under which the pairing reaches it.
    jobs = [{"name": "programs", "partner": {"host": "hq.example.com"}, "elements": [element]}]
    roots = [{"path": str(site.there), "access": "write"}]
    inventory = write_inventory(
        tmp_path / "inventory.yml",
        siteA={"runner_jobs": jobs, "runner_partners": [{"name": "hq", "host": "hq.example.com"}]},
        hq={"runner_partners": [{"name": "siteA", "roots": roots}]},
    )
    shutil.copytree(site.here / "programs", site.there / "programs", symlinks=True)
    given = {"lost": "siteA", "from": "hq"}
    begin = f"hq opens {site.there} to siteA not for reading, so nothing comes back from there; "
    said = playbook(site.home, site.environment, inventory, code=2, **given)
    assert f"{begin}give -e restore_open_roots=true, which opens it both ways until this playbook ends, or set " in said
    said = playbook(site.home, site.environment, inventory, code=2, **given, deploy=False, open_roots=True)
    assert f"{begin}set access: both in runner_partners of hq, apply the role, and take it back afterwards" in said
    assert site.names() == []


def test_a_job_of_somebody_else_keeps_its_name(site: Site) -> None:
    site.jobs.append(site.job("restore-programs", site.element("other")))
    site.declare()
    shutil.rmtree(site.here / "programs")
    said = site.restore(only="programs", code=2)
    text = "programs: restore-programs is the name of another job of this server, which is needed here; give that job "
    assert text in said
    assert site.names() == ["line1", "programs", "restore-programs"]
    assert not (site.here / "programs").exists()


def ready(server: Any) -> dict[str, str]:
    """Puts the launcher where the modules look for it."""
    launcher = server.home / ".local" / "bin" / "serversync"
    launcher.parent.mkdir(parents=True)
    launcher.symlink_to(server.launcher)
    return {**server.environment, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def lose(server: Any, path: Path) -> None:
    shutil.rmtree(path)
    shutil.rmtree(server.home / ".local" / "state")
    for document in (server.config / "jobs").iterdir():
        document.unlink()


def test_over_ssh_the_partners_door_decides(pair: Pair) -> None:
    environment = ready(pair.here)
    fill(pair.path)
    document = json.loads(pair.declare().read_text())
    declared = {name: document[name] for name in ("name", "partner", "account", "settings", "elements", "on_error")}
    pair.here.run("nightly")
    before = tree(pair.path)
    lose(pair.here, pair.path)
    inventory = write_inventory(pair.path.with_name("inventory.yml"), siteA={"runner_jobs": [declared]})

    def restore(code: int) -> str:
        given = {"lost": "siteA", "from": "127.0.0.1", "deploy": False}
        return playbook(pair.here.home, environment, inventory, code=code, **given)

    root = pair.partner_path.parent
    pair.there.make_door([{"module": module(root), "path": str(root), "access": "write"}])
    said = restore(2)
    assert "jobs[0].elements[0].partner_path: " in said
    assert "is not readable on 127.0.0.1:" in said
    assert list(tree(pair.path)) == []
    pair.there.make_door([{"module": module(root), "path": str(root), "access": "both"}])
    said = restore(0)
    assert f"nightly {pair.path}: equal, 16 paths, 16 brought back from 127.0.0.1, " in said
    assert tree(pair.path) == before == tree(pair.partner_path)


def in_seconds(found: dict[bytes, tuple[Any, ...]]) -> dict[bytes, tuple[Any, ...]]:
    """As SFTP has times."""
    return {path: (*entry[:2], entry[2] and entry[2] // 10**9, entry[3]) for path, entry in found.items()}


def test_over_sftp_both_ways(tmp_path: Path) -> None:
    with sftp_loopback(tmp_path) as pair:
        environment = ready(pair.here)
        fill(pair.path)
        document = json.loads(pair.declare().read_text())
        declared = {name: document[name] for name in ("name", "partner", "account", "settings", "elements", "on_error")}
        pair.here.run("nightly")
        before, there = tree(pair.path), tree(pair.real)
        inventory = write_inventory(pair.path.with_name("inventory.yml"), siteA={"runner_jobs": [declared]})
        shutil.rmtree(pair.real)
        pair.real.mkdir()
        given = {"lost": "127.0.0.1", "from": "siteA"}
        said = playbook(pair.here.home, environment, inventory, **given)
        assert f"nightly {pair.path}: equal, 16 paths, 16 brought back from siteA, " in said
        assert tree(pair.real) == there

        lose(pair.here, pair.path)
        given = {"lost": "siteA", "from": "127.0.0.1", "deploy": False}
        said = playbook(pair.here.home, environment, inventory, **given)
        assert f"nightly {pair.path}: equal, 16 paths, 16 brought back from 127.0.0.1, " in said
        seconds = {path: (*entry[:2], entry[2] and entry[2] // 10**9, entry[3]) for path, entry in before.items()}
        after = tree(pair.path)
        assert {
            path: (*entry[:2], entry[2] and entry[2] // 10**9, entry[3]) for path, entry in after.items()
        } == seconds


def test_a_password_is_given_to_both_jobs_and_told_nobody(tmp_path: Path) -> None:
    site = Site(tmp_path, systemd=False)
    password = "nobody may read this"  # noqa: S105 - of a server that ends with the test
    with nas(password) as server:
        partner = {"host": "127.0.0.1", "port": server.port, "connection": "sftp", "host_key": [server.host_key]}
        account = {"user": server.user, "password": password}
        site.jobs = [site.job("programs", site.element("programs"), partner=partner, account=account)]
        site.declare()
        site.run()
        before = in_seconds(tree(site.here / "programs"))
        site.lose()
        said = site.restore("-vvv", **{"from": "127.0.0.1"})
        assert "programs: equal" in said
        assert in_seconds(tree(site.here / "programs")) == before
        assert password not in said
        site.run()
