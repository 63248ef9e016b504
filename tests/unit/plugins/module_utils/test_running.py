# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that are on are found by their locks, waited for and stopped."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _running, _store

HOLD = """
import fcntl, sys
lock = open(sys.argv[1])
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


class Module:
    def __init__(self):
        self.warnings = []
        self.warn = self.warnings.append


@pytest.fixture
def place(tmp_path):
    environment = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    place = _store.layout("user", "demo", environment)
    os.makedirs(os.path.dirname(place.lock))
    return place


@pytest.fixture
def held(place):
    """The lock, held by this process."""
    with open(place.lock, "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


@pytest.fixture
def other(place):
    """A process that holds the lock."""
    open(place.lock, "w", encoding="ascii").close()
    argv = [sys.executable, "-c", HOLD, place.lock]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_who_holds_a_lock(place, held):
    assert _running.holders(place.lock, _running.read_locks()) == [os.getpid()]
    fcntl.flock(held, fcntl.LOCK_UN)
    assert _running.holders(place.lock, _running.read_locks()) == []
    assert _running.holders(place.lock + "x", _running.read_locks()) == []


def test_a_device_that_is_numbered_otherwise_in_the_list_of_locks(place, held, tmp_path, monkeypatch):
    inode = os.stat(place.lock).st_ino
    lines = (
        "1: FLOCK  ADVISORY  WRITE %d 00:2f:%d 0 EOF\n" % (os.getpid(), inode),
        "2: FLOCK  ADVISORY  WRITE 999999999 00:2f:%d 0 EOF\n" % inode,
        "3: POSIX  ADVISORY  WRITE %d 00:2f:%d 0 EOF\n" % (os.getpid(), inode),
        "1: -> FLOCK  ADVISORY  WRITE %d 00:2f:%d 0 EOF\n" % (os.getpid(), inode),
        "4: FLOCK  ADVISORY  WRITE %d 00:2f:%d1 0 EOF\n" % (os.getpid(), inode),
    )
    (tmp_path / "locks").write_text("".join(lines))
    monkeypatch.setattr(_running, "LOCKS", str(tmp_path / "locks"))
    assert _running.holders(place.lock, _running.read_locks()) == [os.getpid()]


def test_a_run_that_ends_by_itself_is_waited_for(place, held, monkeypatch):
    monkeypatch.setattr(_running.time, "sleep", lambda seconds: fcntl.flock(held, fcntl.LOCK_UN))
    module = Module()
    assert _running.end_runs(module, [place], "1d") == []
    assert module.warnings == []


def test_a_run_that_does_not_is_told_to_stop(place, other):
    module = Module()
    assert _running.end_runs(module, [place], "0s") == []
    assert module.warnings == ["demo: the run that was on had not ended after 0s and was stopped"]
    assert other.wait() == -signal.SIGTERM


def test_a_run_that_does_not_even_then(place, other, monkeypatch):
    monkeypatch.setattr(_running, "_GRACE", 0)
    monkeypatch.setattr(_running.os, "kill", lambda process, number: None)
    with pytest.raises(_store.StoreError) as caught:
        _running.end_runs(Module(), [place], "0s")
    assert str(caught.value) == (
        "%s: the run of demo does not end though it was told to; end it and apply the job again, "
        "see: serversync status demo" % place.lock
    )


def test_in_system_scope_systemd_stops_it(place, held):
    calls = []

    def run(argv):
        calls.append(argv)
        fcntl.flock(held, fcntl.LOCK_UN)
        return 0, "", ""

    module = Module()
    module.run = run

    class There(type(place)):
        lock = place.lock

    system = There(*place._replace(scope="system"))
    assert _running.end_runs(module, [system], "0s") == calls == [["systemctl", "stop", "serversync@demo.service"]]
