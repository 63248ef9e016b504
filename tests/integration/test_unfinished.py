# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run could not do, may not do, or was kept from doing is neither archived as done nor forgotten."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from serversync import job, run, synchronize
from serversync.archive import Archive
from serversync.archiving import Archiving
from serversync.commit import Commit, Op, Result
from serversync.layout import Layout
from serversync.propagate import Propagation
from serversync.synchronize import archives_of
from serversync.tree import Tree

from tests.loopback import Pair, Server, tree
from tests.processes import family, kill
from tests.sftp import sftp_loopback


def one_run(layout: Layout, name: str, approve: str | None = None) -> run.Record:
    one = run.Run(
        layout,
        job.load(layout, name),
        trigger="manual",
        only=None,
        approve=approve,
        log=lambda _line: None,
        wait=lambda _seconds: None,
    )
    return one.carry_out(lambda _record, _past: None)


class Local:
    """A job between two directories of this server, run in this process."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self.layout = Layout.of("user", {"HOME": str(server.home)})
        self.path, self.partner_path = directory / "here", directory / "there"
        self.path.mkdir()
        self.partner_path.mkdir()

    def declare(self, *more: tuple[Path, Path], **options: Any) -> None:
        settings = {"direction": "to_partner", "exclude": [], "delete": "synced", "conflict": "this_server_wins"}
        self.server.declare("job", [(self.path, self.partner_path), *more], settings={**settings, **options})

    def run(self, approve: str | None = None) -> run.Record:
        return one_run(self.layout, "job", approve)


@pytest.fixture
def local(server: Server, tmp_path: Path) -> Local:
    return Local(server, tmp_path)


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EPERM])
def test_what_is_in_a_directory_that_could_not_be_made_comes_later(
    local: Local, monkeypatch: pytest.MonkeyPatch, problem: int
) -> None:
    local.declare()
    (local.path / "line").mkdir()
    (local.path / "line" / "plc").write_text("x")
    meta = Commit._meta

    def refused(self: Commit, op: Op) -> Result:
        if op.stage and op.path == b"0/line":
            raise OSError(problem, os.strerror(problem))
        return meta(self, op)

    with monkeypatch.context() as patched:
        patched.setattr(Commit, "_meta", refused)
        assert local.run()["state"] == "failed"
    assert local.run()["state"] == "equal"
    assert (local.partner_path / "line" / "plc").read_text() == "x"


def test_a_directory_with_a_flaw_is_there_with_all_that_is_in_it(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    local.declare()
    (local.path / "line").mkdir()
    (local.path / "line" / "plc").write_text("x")
    carry = Commit._carry

    def flawed(self: Commit, op: Op) -> Result:
        result = carry(self, op)
        return result._replace(problem=("owner", "its owner cannot be set")) if op.path == b"line" else result

    monkeypatch.setattr(Commit, "_carry", flawed)
    record = local.run()
    assert record["elements"][0]["problems"] == ["line: its owner cannot be set"]
    assert (local.partner_path / "line" / "plc").read_text() == "x"


def test_what_the_second_look_of_a_run_has_done_is_no_problem_of_it(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.declare(direction="both", conflict="keep_both")
    (local.path / "plc").write_text("agreed")
    local.run()
    (local.path / "plc").write_text("here")
    (local.partner_path / "plc").write_text("there")
    (local.path / "new").write_text("half")
    gather = Propagation.gather

    def edited(self: Propagation) -> None:
        if (local.path / "new").read_text() == "half":
            (local.path / "new").write_text("whole")
        gather(self)

    monkeypatch.setattr(Propagation, "gather", edited)
    record = local.run()
    assert (record["state"], record["elements"][0]["problems"]) == ("equal_with_warnings", [])
    assert tree(local.path) == tree(local.partner_path)
    assert (local.partner_path / "new").read_text() == "whole"


def test_a_run_killed_while_a_file_makes_room_for_a_directory_deletes_nothing_in_it(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.declare(direction="both", conflict="keep_both")
    for name in ("agreed", "deep/agreed"):
        (local.path / "line" / name).parent.mkdir(parents=True, exist_ok=True)
        (local.path / "line" / name).write_text("x")
    assert local.run()["state"] == "equal"
    (local.path / "line" / "new").write_text("here")
    shutil.rmtree(local.partner_path / "line")
    (local.partner_path / "line").write_text("there")
    carry = Commit._carry

    def killed(self: Commit, op: Op) -> Result:
        if op.path == b"line" and op.do != "aside":
            raise KeyboardInterrupt
        return carry(self, op)

    with monkeypatch.context() as patched:
        patched.setattr(Commit, "_carry", killed)
        with pytest.raises(KeyboardInterrupt):
            local.run()
    assert not (local.partner_path / "line").exists()
    for _run in range(2):
        local.run()
        for root in (local.path, local.partner_path):
            assert (root / "line" / "new").read_text() == "here"
            assert (root / "line" / "agreed").read_text() == (root / "line" / "deep" / "agreed").read_text() == "x"
            assert [path.read_text() for path in root.glob("line.conflict-*")] == ["there"]


@pytest.mark.parametrize("put", [True, False])
def test_a_run_killed_while_the_element_itself_gets_its_mode_is_finished_by_the_next(
    local: Local, monkeypatch: pytest.MonkeyPatch, put: bool
) -> None:
    local.declare()
    (local.path / "plc").write_text("x")
    local.run()
    local.path.chmod(0o750)
    meta = Commit._meta

    def killed(self: Commit, op: Op) -> Result:
        if op.path or op.stage:
            return meta(self, op)
        if put:
            meta(self, op)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Commit, "_meta", killed)
        with pytest.raises(KeyboardInterrupt):
            local.run()
    assert local.run()["state"] == "equal"
    assert stat.S_IMODE(local.partner_path.stat().st_mode) == 0o750
    assert local.run()["elements"][0]["state_before"] == "equal"


@pytest.mark.parametrize("edited", [{"delete": "extraneous"}, {"conflict": "partner_wins"}])
def test_what_a_killed_run_has_decided_by_edited_settings_stays_decided(
    local: Local, monkeypatch: pytest.MonkeyPatch, edited: dict[str, str]
) -> None:
    before = {"conflict": "partner_wins", "delete": "synced"} if "delete" in edited else {"conflict": "newer_wins"}
    local.declare(**before)
    for name in ("edited", "deleted", "stays"):
        (local.path / name).write_text("x")
    local.run()
    (local.path / "edited").unlink()
    (local.partner_path / "edited").write_text("by its owner")
    (local.partner_path / "deleted").unlink()
    local.declare(**{**before, **edited})

    def killed(*_arguments: Any, **_options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Archiving, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            local.run()
    for _run in range(2):
        record = local.run()
        assert (record["state"], record["elements"][0]["standing"]) == ("equal_with_warnings", {"kept": 2})
        assert (local.partner_path / "edited").read_text() == "by its owner"
        assert not (local.partner_path / "deleted").exists()


@pytest.mark.parametrize("step", ["mark", "commit"])
def test_a_run_killed_before_a_new_target_has_its_marker_is_finished_by_the_next(
    local: Local, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    local.declare(direction="from_partner")
    (local.partner_path / "x").write_text("x")
    local.run()
    local.declare(direction="both")
    (local.path / "y").write_text("y")
    where: Any = Archive if step == "commit" else Tree
    real = getattr(where, step)
    for calls in range(1, 8):
        left = iter(range(calls))

        def killed(*arguments: Any, left: Any = left, **options: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(where, step, killed)
            with suppress(KeyboardInterrupt):
                local.run()
    assert local.run()["state"] == "equal"
    assert (local.partner_path / "y").read_text() == "y"


def test_what_an_approval_did_not_cover_is_not_forgotten(local: Local) -> None:
    local.declare(max_delete="1")
    for number in range(3):
        (local.path / f"plc{number}").write_text("x")
    (local.path / "other").write_text("x")
    assert local.run()["state"] == "equal"
    for number in range(3):
        (local.path / f"plc{number}").unlink()
    plan = local.run()["plan"]
    for number in range(3):
        (local.partner_path / f"plc{number}").write_text("changed since")
    assert local.run(approve=plan)["state"] == "different"
    record = local.run()
    assert (record["state"], len(record["elements"][0]["guards"])) == ("different", 1)


def test_an_archive_that_is_gone_is_told(local: Local) -> None:
    local.declare()
    for name in ("plc", "other"):
        (local.path / name).write_text("x")
    assert local.run()["elements"][0]["warnings"] == []
    [archive] = archives_of(local.layout, "job").glob("*.sqlite")
    archive.unlink()
    (local.path / "plc").unlink()
    record = local.run()
    assert record["elements"][0]["warnings"] == [
        f"the archive {archive} is missing; a new one is begun, and nothing is deleted"
    ]
    assert (record["state"], (local.partner_path / "plc").exists()) == ("equal_with_warnings", True)
    assert local.run()["elements"][0]["warnings"] == []


def test_another_volume_in_the_place_of_the_source_deletes_nothing(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The roots of two volumes have the same inode number, and a number is given again to what is made anew."""
    opened = Tree.__init__

    def at_a_mount_point(self: Tree, *words: Any, **options: Any) -> None:
        opened(self, *words, **options)
        self.facts["inode"] = 2

    monkeypatch.setattr(Tree, "__init__", at_a_mount_point)
    local.declare()
    for name in ("plc", "other"):
        (local.path / name).write_text("x")
    assert [local.run()["state"] for _run in range(2)] == ["equal"] * 2
    local.path.rename(local.path.with_name("unmounted"))
    local.path.mkdir()
    (local.path / "new").write_text("x")
    record = local.run()
    assert record["elements"][0]["deleted"] == 0
    assert "it is of other replicas" in record["elements"][0]["warnings"][0]
    assert sorted(os.listdir(local.partner_path)) == [".serversync", "new", "other", "plc"]


def test_what_an_approval_did_not_cover_is_listed_as_left(local: Local) -> None:
    local.declare(delete="synced", max_delete="1")
    for number in range(6):
        (local.path / f"plc{number}").write_text("x")
    assert local.run()["state"] == "equal"
    for number in (0, 1):
        (local.path / f"plc{number}").unlink()
    plan = local.run()["plan"]
    for number in (2, 3):
        (local.path / f"plc{number}").unlink()
    (local.path / "plc4").write_text("changed since")
    (local.path / "new").write_text("new")
    record = local.run(approve=plan)
    [element] = record["elements"]
    assert (record["state"], element["deleted"], element["updated"], element["created"]) == ("different", 2, 0, 1)
    assert {one["path"]: one["what"] for one in element["paths"]} == {
        **dict.fromkeys(("plc0", "plc1"), "delete"),
        **dict.fromkeys(("plc2", "plc3", "plc4"), "left"),
    }
    assert element["paths"][2]["reason"] == "not in the approved plan, or moved since: deleted on this server"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_ends_when_all_its_processes_are_told_to(pair: Pair, number: int) -> None:
    """As a terminal does it, and systemd: ssh is gone before the runner has closed its replicas."""
    (pair.path / "large").write_bytes(os.urandom(3_000_000))
    settings = {"direction": "to_partner", "exclude": [], "delete": "never", "bandwidth_limit": "100K"}
    pair.declare(settings=settings, on_error={"retries": 2, "delay": "1h"})
    # A shell that runs the tests in the background has it ignored, by all that come from it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        pair.here.command("run", "nightly"),
        env=pair.here.environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not list(pair.partner_path.glob(".serversync/*/stage/*/*/.large.*")):
            assert process.poll() is None, "the run ended before its file was on its way"
        os.killpg(process.pid, number)
        process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        process.kill()
        process.wait()
    record = json.loads(pair.here.serversync("show", "nightly", "--json").stdout)
    assert (record["error"]["code"], record["attempts"]) == ("stopped", [])


def test_an_approval_releases_what_the_plan_had_in_mind(local: Local) -> None:
    local.declare(delete="never")
    (local.partner_path / "own").write_text("x")
    local.run()
    (local.path / "new").write_text("x")
    plan = run.plan(local.layout, job.load(local.layout, "job"))
    assert {one["path"]: one["what"] for one in plan["elements"][0]["decisions"]} == {"new": "new", "own": "left"}
    local.declare(delete="extraneous")
    assert local.run(approve=plan["plan"])["state"] == "different"
    assert (local.partner_path / "own").exists()
    plan = run.plan(local.layout, job.load(local.layout, "job"))
    assert local.run(approve=plan["plan"])["elements"][0]["deleted"] == 1


def test_an_approval_does_not_pass_a_guard_that_nobody_was_shown(local: Local, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "mounted").mkdir()
    (tmp_path / "source" / "plc").write_text("x")
    local.declare((tmp_path / "source", tmp_path / "mounted"), max_delete="1")
    for number in range(3):
        (local.path / f"plc{number}").write_text("x")
    (local.path / "other").write_text("x")
    assert local.run()["state"] == "equal"
    for number in range(3):
        (local.path / f"plc{number}").unlink()
    plan = local.run()["plan"]
    (tmp_path / "mounted").rename(tmp_path / "unmounted")
    (tmp_path / "mounted").mkdir()
    record = local.run(approve=plan)
    assert [entry["deleted"] for entry in record["elements"]] == [3, 0]
    assert "looks unmounted" in record["elements"][1]["guards"][0]
    assert not (tmp_path / "mounted" / "plc").exists()
    assert local.run(approve=record["plan"])["elements"][1]["created"] == 1


def test_no_more_elements_at_once_than_the_connection_has_room_for(pair: Pair) -> None:
    pairs = []
    for number in range(8):
        roots = (pair.path.with_name(f"line{number}"), pair.partner_path.with_name(f"line{number}"))
        for root in roots:
            root.mkdir()
        (roots[0] / "plc").write_bytes(os.urandom(100_000))
        pairs.append(roots)
    settings = {"direction": "to_partner", "exclude": [], "delete": "never", "bandwidth_limit": "100K"}
    pair.declare(pairs=pairs, limits={"parallel": 8}, settings=settings)
    assert pair.here.run("nightly")["state"] == "equal"


def at_rest(local: Local) -> None:
    for number in range(8):
        (local.path / f"d{number % 2}").mkdir(exist_ok=True)
        (local.path / f"d{number % 2}" / f"plc{number}").write_text(f"{number}")
    (local.path / "goes").mkdir()
    for number in range(5):
        (local.path / "goes" / f"plc{number}").write_text("x")
    (local.path / "becomes").mkdir()
    (local.path / "becomes" / "plc").write_text("x")
    (local.path / "name").write_text("linked")
    local.declare(conflict="no_winner")
    assert local.run()["state"] == "equal"


def edited(local: Local) -> None:
    """Some of everything, and a new directory that is larger than a piece."""
    for number in range(0, 8, 2):
        (local.path / f"d{number % 2}" / f"plc{number}").write_text(f"changed {number}")
    shutil.rmtree(local.path / "goes")
    shutil.rmtree(local.path / "becomes")
    (local.path / "becomes").write_text("a file")
    (local.path / "d1").chmod(0o700)
    (local.path / "zz").hardlink_to(local.path / "name")
    (local.path / "large" / "inner").mkdir(parents=True)
    for number in range(6):
        (local.path / "large" / f"plc{number}").write_text(f"{number}")
        (local.path / "large" / "inner" / f"plc{number}").write_text(f"{number}")


def killed(local: Local, kind: type[Any], name: str, number: int) -> bool:
    """Runs the job in a process that dies with this call of the method; whether it came to that."""
    child = os.fork()
    if child == 0:
        method, calls = getattr(kind, name), itertools.count(1)

        def dying(*arguments: Any, **options: Any) -> Any:
            if next(calls) == number:
                os._exit(9)
            return method(*arguments, **options)

        setattr(kind, name, dying)
        try:
            local.run()
        finally:
            os._exit(0)
    _pid, status = os.waitpid(child, 0)
    with (local.layout.locks / "job.lock").open() as lock:
        # Its rsync holds the lock until it is done, too.
        fcntl.flock(lock, fcntl.LOCK_EX)
    return os.waitstatus_to_exitcode(status) == 9


@pytest.mark.parametrize(
    ("kind", "name", "step", "least"),
    [
        (Archive, "intend", 1, 4),
        (Commit, "_carry", 5, 20),
        (Tree, "sync", 2, 4),
        (Tree, "mark", 1, 4),
        (Archive, "commit", 1, 5),
    ],
)
def test_a_run_killed_between_any_two_steps_of_any_piece_is_finished_by_the_next(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Any], name: str, step: int, least: int
) -> None:
    monkeypatch.setattr(synchronize, "ENTRIES", 4)
    for number in itertools.count(1, step):
        (tmp_path / str(number)).mkdir()
        local = Local(server, tmp_path / str(number))
        at_rest(local)
        edited(local)
        came_to_it = killed(local, kind, name, number)
        record = local.run()
        assert (record["state"], record["error"]) == ("equal", None), number
        assert tree(local.partner_path) == tree(local.path), number
        assert os.path.samefile(local.partner_path / "name", local.partner_path / "zz"), number
        (local.path / "d0" / "plc0").unlink()
        record = local.run()
        # What it archived can be relied on: nothing but this is found, and it may be deleted.
        assert (record["state"], record["elements"][0]["deleted"]) == ("equal", 1), number
        assert [record["elements"][0][one] for one in ("created", "updated", "conflicts")] == [0, 0, 0], number
        if not came_to_it:
            break
    assert number > least


def test_what_a_killed_run_had_archived_is_not_brought_again(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synchronize, "ENTRIES", 4)
    local.declare()
    for number in range(20):
        (local.path / f"plc{number:02}").write_text("x")
    # Two pieces, of the root and three files and of four, are archived when the third one's intents are written.
    assert killed(local, Archive, "intend", 3)
    record = local.run()
    assert (record["state"], record["elements"][0]["created"]) == ("equal", 13)


@pytest.mark.parametrize("salvaged", [False, True], ids=["rsync kept it", "every rsync died"])
@pytest.mark.parametrize("direction", ["to_partner", "from_partner"])
def test_a_large_file_goes_on_where_it_was(pair: Pair, tmp_path: Path, direction: str, salvaged: bool) -> None:
    assert pair.there.process is not None
    pair.partner_path.mkdir()
    source, target = pair.path, pair.partner_path
    if direction == "from_partner":
        source, target = target, source
    size = 8_000_000
    (source / "line").mkdir()
    (source / "line" / "image").write_bytes(os.urandom(size))
    # What crosses is told by rsync itself.
    log, programs = tmp_path / "log", tmp_path / "bin"
    programs.mkdir()
    (programs / "rsync").write_text(f'#!/bin/sh\nexec {shutil.which("rsync")} --log-file={log} "$@"\n')
    (programs / "rsync").chmod(0o755)
    pair.here.extra["PATH"] = f"{programs}:{os.environ['PATH']}"
    settings = {"direction": direction, "exclude": [], "delete": "never", "bandwidth_limit": "2M"}
    pair.declare(settings=settings)
    process = subprocess.Popen(
        pair.here.command("run", "nightly"),
        env=pair.here.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not any(path.stat().st_size > size // 2 for path in target.glob(".serversync/*/stage/*/*/line/.image.*")):
            assert process.poll() is None, "the run ended before its file was on its way"
        if salvaged:
            for one in family([process.pid, pair.there.process.pid]):
                if one.kind == "rsync":
                    kill(one)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    pair.declare(settings={**settings, "bandwidth_limit": None})
    log.unlink()
    while (record := pair.here.run("nightly", code=None))["state"] == "skipped" or "running" in str(record["error"]):
        continue
    assert record["state"] == "equal"
    assert (target / "line" / "image").read_bytes() == (source / "line" / "image").read_bytes()
    crossed = [int(number) for number in re.findall(r"(?:sent|received) (\d+) bytes", log.read_text())]
    assert 0 < max(crossed) < size * 3 // 4
    assert [path.name for path in target.glob(".serversync/*/partial")] == []


def test_a_part_lends_its_mode_to_no_file(local: Local) -> None:
    """Where none is preserved, a new file is as open as any."""
    for name in ("a", "b"):
        (local.path / name).mkdir()
    (local.path / "a" / "image").write_bytes(bytes(2_000_000))
    (local.path / "a" / "image").chmod(0o600)
    local.declare(preserve=["times", "permissions"])
    assert killed(local, Commit, "_install", 1)
    shutil.rmtree(local.path / "a")
    (local.path / "b" / "image").write_bytes(os.urandom(2_000_000))
    local.declare(preserve=["times"])
    assert local.run()["state"] == "equal"
    assert stat.S_IMODE((local.partner_path / "b" / "image").stat().st_mode) == 0o644


@pytest.mark.parametrize("direction", ["to_partner", "from_partner"])
def test_pieces_over_sftp_do_not_take_one_another_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    monkeypatch.setattr(synchronize, "ENTRIES", 4)
    with sftp_loopback(tmp_path) as pair:
        source, target = (pair.path, pair.real) if direction == "to_partner" else (pair.real, pair.path)
        for number in range(10):
            directory = source / "large" / f"inner{number % 2}"
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"plc{number}").write_text(f"{number}")
            (source / "large" / f"plc{number}").write_text(f"{number}")
        settings = {"direction": direction, "exclude": [], "delete": "synced"}
        pair.declare(settings=settings, on_error={"retries": 0, "delay": "0s"})
        layout = Layout.of("user", {"HOME": str(pair.here.home)})
        record = one_run(layout, "nightly")
        assert (record["state"], record["elements"][0]["problems"]) == ("equal", [])
        assert sorted(tree(target)) == sorted(tree(source))
