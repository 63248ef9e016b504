# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serversync import rsync

NAME = st.binary(min_size=1, max_size=40).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@settings(max_examples=80, deadline=None)
@given(names=st.lists(NAME, min_size=1, max_size=8, unique=True))
def test_every_name_comes_back_as_it_is_on_disk(names: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "a"
        source.mkdir()
        for name in names:
            (source / os.fsdecode(name)).touch()
        seen: list[str] = []
        argv = rsync.command(
            f"{source}/", f"{directory}/b/", exclude_from="/dev/null", scratch=None, privileged=False, dry_run=True
        )
        outcome = rsync.execute(argv, lambda change: seen.append(change.name))
    assert outcome.code == 0
    assert sorted(map(os.fsencode, seen)) == sorted([*names, b"./"]) or sorted(map(os.fsencode, seen)) == sorted(names)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (">>>f+++++++++|12|name", rsync.Change("new", "name", 12)),
        (">>cd+++++++++|4096|dir/", rsync.Change("new", "dir/", 0)),
        (">>>f.st......|7|a|b", rsync.Change("update", "a|b", 7)),
        (">><f.st......|7|sent", rsync.Change("update", "sent", 7)),
        (">>.f...p.....|7|mode", rsync.Change("attributes", "mode", 7)),
        (">>.d..t......|4096|dir/", None),
        (">>.f          |4096|same", None),
        (">>hf+++++++++|7|hard", rsync.Change("new", "hard", 7)),
        (">>>f.st......|7|new\\#012line", rsync.Change("update", "new\nline", 7)),
        ("Number of files: 3", None),
        (">>nonsense", None),
    ],
)
def test_itemised_lines(line: str, expected: rsync.Change | None) -> None:
    assert rsync.parse_change(line) == expected


def outcome(code: int, *problems: str) -> rsync.Outcome:
    result = rsync.Outcome(code=code)
    for problem in problems:
        result.add_problem(problem)
    return result


@pytest.mark.parametrize(
    ("result", "code", "transient"),
    [
        (outcome(10, "connection refused"), "rsync_10", True),
        (outcome(12), "rsync_12", True),
        (outcome(23, 'send_files failed to open "/x": Permission denied (13)'), "permission", False),
        (outcome(23, 'set_acl: "/x": Operation not permitted (1)'), "permission", False),
        (outcome(23, "Permission denied (13)", "Input/output error (5)"), "rsync_23", True),
        (outcome(23, 'read errors mapping "/photo (13)": Input/output error (5)'), "rsync_23", True),
        (outcome(23, 'mkstemp "/x" failed: Read-only file system (30)'), "rsync_23", False),
        (outcome(23, "could not make way for new regular file: a"), "in_the_way", False),
        (outcome(23, "could not make way for new regular file: a", "Input/output error (5)"), "in_the_way", True),
        (outcome(23), "rsync_23", True),
        (outcome(24, "file has vanished"), "rsync_24", True),
        (outcome(11, "write failed: No space left on device (28)"), "no_space", True),
        (outcome(23, "Disk quota exceeded (122)"), "no_space", True),
        (outcome(23, 'could not make way for new regular file: "scan (122).pdf"'), "in_the_way", False),
        (outcome(23, "could not make way for new regular file: x (28)"), "in_the_way", False),
        (outcome(4), "rsync_4", False),
        (outcome(5, "@ERROR: Unknown module"), "rsync_5", False),
        (outcome(-9), "killed", True),
        (outcome(0, "dev: is a device"), "not_copied", False),
    ],
)
def test_what_an_exit_code_means(result: rsync.Outcome, code: str, transient: bool) -> None:
    failure = rsync.failure(result, "elements[0].path")
    assert failure is not None
    assert (failure.code, failure.transient, failure.field) == (code, transient, "elements[0].path")


def test_all_well_is_no_failure() -> None:
    assert rsync.failure(outcome(0), "elements[0].path") is None


def test_a_record_stays_bounded() -> None:
    result = outcome(23, *(f"problem {number}" for number in range(5000)))
    assert (len(result.problems), result.problem_count) == (rsync.NAMED_PATHS, 5000)
