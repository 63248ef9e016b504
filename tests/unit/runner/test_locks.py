# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serversync import locks
from serversync.failure import Failure
from serversync.locks import lock, owner, told_of


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root").mkdir()
    descriptor = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run" / "locks"


def refusal(root: int, exclusive: bool, directory: Path) -> str:
    """What is told to somebody who wants the lock now; empty: they get it."""
    try:
        with lock(root, exclusive, "another", directory):
            return ""
    except Failure as failure:
        assert (failure.code, failure.transient) == ("running", True)
        return failure.message


def test_who_holds_a_lock_takes_little_room(root: int, directory: Path) -> None:
    with lock(root, True, "x" * 1_000_000, directory):
        assert sum(path.stat().st_size for path in directory.iterdir()) < 1000
        assert len(refusal(root, False, directory)) < 400


@pytest.mark.parametrize(
    ("first", "second", "free"), [(False, False, True), (False, True, False), (True, False, False), (True, True, False)]
)
def test_many_read_one_writes(root: int, directory: Path, first: bool, second: bool, free: bool) -> None:
    with lock(root, first, "run 1 of job a", directory):
        assert refusal(root, second, directory) == ("" if free else "in use by run 1 of job a")
    assert refusal(root, True, directory) == ""


def test_all_who_read_are_named_and_none_twice(root: int, directory: Path) -> None:
    with lock(root, False, "a", directory), lock(root, False, "b\nc", directory), lock(root, False, "a", directory):
        assert refusal(root, True, directory) == "in use by a, b c"


def test_who_is_refused_is_told_which_root_it_is(root: int, directory: Path) -> None:
    with (
        lock(root, True, owner("nightly", "run-1"), directory),
        pytest.raises(Failure) as caught,
        told_of("/srv/x on hq:22", "elements[0].partner_path"),
        lock(root, True, "another", directory),
    ):
        raise AssertionError
    assert (caught.value.code, caught.value.transient) == ("running", True)
    assert str(caught.value) == (
        f"elements[0].partner_path: /srv/x on hq:22 is in use by the job nightly of {os.uname().nodename}, run run-1; "
        "it is left alone until that has ended"
    )
    with pytest.raises(Failure, match=r"^other$"), told_of("/srv/x", "field"):
        raise Failure("other", "other")


def test_roots_do_not_share_a_lock_but_names_of_one_do(root: int, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "root").rename(tmp_path / "renamed")
    for path, message in (("other", ""), ("renamed", "in use by first")):
        descriptor = os.open(tmp_path / path, os.O_PATH)
        with lock(root, True, "first", directory):
            assert refusal(descriptor, True, directory) == message
        os.close(descriptor)


def test_a_killed_holder_holds_nothing(root: int, directory: Path, tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from serversync.locks import lock\n"
        "root = os.open(sys.argv[1], os.O_PATH)\n"
        "with lock(root, True, 'the killed one', Path(sys.argv[2])):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(locks.__file__).parent.parent)}
    argv = [sys.executable, "-c", program, str(tmp_path / "root"), str(directory)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        assert refusal(root, True, directory) == "in use by the killed one"
        holder.kill()
    with lock(root, False, "me", directory):
        assert refusal(root, True, directory) == "in use by me"


def test_the_record_of_a_root_that_is_only_read_does_not_grow(root: int, directory: Path) -> None:
    for number in range(200):
        with lock(root, False, f"{number:0100}", directory):
            pass
    (record,) = directory.iterdir()
    assert record.stat().st_size < 2 * locks.RECORD
