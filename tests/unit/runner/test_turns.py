# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many runs there are at once."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from serversync.layout import Layout
from serversync.turns import MOST, most, turn


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    for name in ("config", "state"):
        (tmp_path / name).mkdir()
    return Layout("user", tmp_path / "config", tmp_path / "state", tmp_path / "runtime")


def allow(layout: Layout, number: int) -> None:
    layout.settings.write_text(json.dumps({"max_runs": number}))


def never(_seconds: float) -> None:
    raise AssertionError("there is a turn to be had")


@pytest.mark.parametrize("text", [None, "", "{}"])
def test_without_a_setting_there_are_a_few(layout: Layout, text: str | None) -> None:
    if text is not None:
        layout.settings.write_text(text)
    assert most(layout) == MOST


def test_as_many_as_are_allowed_need_not_wait(layout: Layout) -> None:
    allow(layout, 3)
    said: list[str] = []
    with ExitStack() as held:
        for _run in range(3):
            held.enter_context(turn(layout, never, said.append))
    assert said == []


def test_one_more_waits_until_one_of_them_is_over(layout: Layout) -> None:
    allow(layout, 2)
    said: list[str] = []
    first, waits = ExitStack(), 0

    def wait(_seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            first.close()

    first.enter_context(turn(layout, never, said.append))
    with turn(layout, never, said.append), turn(layout, wait, said.append):
        pass
    assert waits == 3
    assert said == ["waiting: as many runs are on as may be at once (runner_max_runs: 2)"]


def test_systemd_does_not_count_the_time_that_a_run_waits(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(layout, 1)
    name = f"serversync-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, ExitStack() as first:
        manager.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        monkeypatch.setenv("SERVERSYNC_LONGEST", "90")
        first.enter_context(turn(layout, never, str))
        with turn(layout, lambda _seconds: first.close(), str):
            pass
        assert manager.recv(100) == b"EXTEND_TIMEOUT_USEC=90000000"
