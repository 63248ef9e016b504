# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import argparse
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serversync import cli, linux, unit
from serversync.failure import Failure, InvalidDocument
from serversync.layout import Layout


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(unit, "REQUESTS", tmp_path)
    return tmp_path


def write(requests: Path, verb: str, age: float = 0.0) -> dict[str, object]:
    asked = {"id": "1", "verb": verb, "at": time.clock_gettime(time.CLOCK_BOOTTIME) - age}
    (requests / "demo.json").write_text(json.dumps(asked))
    return asked


def test_without_a_request_the_schedule_wants_a_run(requests: Path) -> None:
    assert unit.request_of("demo") is None


def test_a_request_counts_while_somebody_waits(requests: Path) -> None:
    with unit.waiting("demo", os.getgid()):
        asked = write(requests, "plan")
        assert unit.request_of("demo") == asked


@pytest.mark.parametrize("verb", ["plan", "check"])
def test_a_plan_that_nobody_waits_for_never_becomes_a_run(requests: Path, verb: str) -> None:
    write(requests, verb)
    (requests / "demo.lock").touch()
    with pytest.raises(Failure, match="is gone; nothing was done"):
        unit.request_of("demo")


def test_a_run_that_nobody_waits_for_is_a_run(requests: Path) -> None:
    write(requests, "run")
    (requests / "demo.lock").touch()
    assert unit.request_of("demo") is None


def test_a_timer_always_gets_its_run(requests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(requests, "plan")
    (requests / "demo.lock").touch()
    monkeypatch.setenv("TRIGGER_UNIT", "serversync@demo.timer")
    assert unit.request_of("demo") is None


def test_a_request_from_long_ago_does_not_hold_up_the_schedule(requests: Path) -> None:
    write(requests, "plan", age=unit.STALE + 1)
    (requests / "demo.lock").touch()
    assert unit.request_of("demo") is None


def test_two_terminals_do_not_wait_at_once(requests: Path) -> None:
    second = unit.waiting("demo", os.getgid())
    with unit.waiting("demo", os.getgid()), pytest.raises(Failure, match="another command waits"), second:
        pass
    with unit.waiting("demo", os.getgid()), (requests / "demo.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout("system", tmp_path, tmp_path, tmp_path)
    unit.answers(made).mkdir()
    return made


def test_root_takes_no_odd_file_for_an_answer(layout: Layout) -> None:
    path = unit.answers(layout) / "demo.json"
    assert unit.read_answer(layout, "demo") is None
    os.mkfifo(path)
    assert unit.read_answer(layout, "demo") is None
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert unit.read_answer(layout, "demo") is None
    path.unlink()
    for text in ("{", "[]", "\xff"):
        path.write_bytes(text.encode("latin-1"))
        assert unit.read_answer(layout, "demo") is None
    path.write_text('{"id": "1", "result": {}}')
    assert unit.read_answer(layout, "demo") == {"id": "1", "result": {}}


def test_the_answer_is_what_was_done_or_why_not(layout: Layout) -> None:
    assert unit.respond(layout, "demo", {"id": "1"}, lambda: {"x": 1}) == {"x": 1}
    assert unit.read_answer(layout, "demo") == {"id": "1", "result": {"x": 1}}

    def fail() -> dict[str, object]:
        raise Failure("missing", "no such path", field="elements[0].path")

    with pytest.raises(Failure):
        unit.respond(layout, "demo", {"id": "2"}, fail)
    answer = unit.read_answer(layout, "demo")
    assert answer is not None
    assert (answer["id"], answer["failure"]["code"], answer["failure"]["field"]) == ("2", "missing", "elements[0].path")


class Confined(Exception):
    pass


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (cli.command_unit, {"job": "demo"}),
        (cli.command_serve, {"pairing": "hq", "connection": True}),
        (cli.command_late, {"job": None}),
    ],
)
def test_what_is_in_a_unit_reaches_no_process_outside_before_it_does_anything(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, command: Callable[..., int], arguments: dict[str, Any]
) -> None:
    def confine() -> bool:
        raise Confined

    monkeypatch.setattr(linux, "confine", confine)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Confined):
        command(layout, argparse.Namespace(**arguments))


def test_root_does_not_look_in_a_directory_of_the_accounts(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(InvalidDocument, match=r"systemctl start serversync-late\.service"):
        cli.command_late(layout, argparse.Namespace(job=None))
    assert not layout.late.exists()
