# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Elements of kind log over a real SSH connection: new lines are appended, rotation is understood."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.loopback import Pair


def declare(pair: Pair, here: Path, there: Path, direction: str) -> None:
    path = pair.declare("nightly", direction, pairs=[(here, there)])
    document = json.loads(path.read_text())
    document["elements"][0]["kind"] = "log"
    path.write_text(json.dumps(document))


class Logs:
    """A log on one server that a job appends to one on the other."""

    def __init__(self, pair: Pair, direction: str) -> None:
        self.pair = pair
        here, there = pair.path / "plant.log", pair.partner_path / "site-a.log"
        self.source, self.target = (here, there) if direction == "to_partner" else (there, here)
        self.source.parent.mkdir(exist_ok=True)
        declare(pair, here, there, direction)

    def write(self, *lines: str) -> None:
        with self.source.open("a") as stream:
            stream.writelines(lines)

    def run(self, code: int = 0) -> dict[str, Any]:
        record = self.pair.here.run("nightly", code=code)
        entry: dict[str, Any] = record["elements"][0]
        return entry

    def rotated(self, suffix: str) -> Path:
        return self.source.with_name(f"{self.source.name}{suffix}")


@pytest.fixture(params=["to_partner", "from_partner"])
def logs(pair: Pair, request: pytest.FixtureRequest) -> Logs:
    return Logs(pair, str(request.param))


def test_new_lines_are_appended_and_nothing_else(logs: Logs) -> None:
    logs.write("one\n", "two\n", "unfinis")
    logs.source.chmod(0o640)
    entry = logs.run()
    assert (entry["state_before"], entry["state_after"]) == ("different", "equal")
    assert (entry["lines"], entry["bytes"]) == (2, 8)
    assert logs.target.read_text() == "one\ntwo\n"
    assert logs.target.stat().st_mode & 0o777 == 0o640
    logs.write("hed\n", "four\n")
    with logs.target.open("a") as stream:
        stream.write("said there\n")
    said = logs.pair.here.serversync("plan", "nightly").stdout
    assert "+ " in said
    assert "append 2 lines" in said
    assert logs.run()["lines"] == 2
    assert logs.target.read_text() == "one\ntwo\nsaid there\nunfinished\nfour\n"
    entry = logs.run()
    assert (entry["state_before"], entry["lines"]) == ("equal", 0)


def test_a_log_that_was_rotated_is_followed(logs: Logs) -> None:
    logs.write("1\n")
    logs.run()
    logs.write("2\n")
    logs.source.rename(logs.rotated(".1"))
    logs.write("3\n")
    assert logs.run()["lines"] == 2
    # Twice between two runs, the older one packed.
    logs.write("4\n")
    logs.rotated(".2.gz").write_bytes(gzip.compress(logs.rotated(".1").read_bytes() + b"late\n"))
    logs.rotated(".1").unlink()
    logs.source.rename(logs.rotated(".1"))
    logs.write("5\n")
    assert logs.run()["lines"] == 3
    # Copied and truncated.
    logs.write("6\n")
    logs.rotated("-20260101").write_bytes(logs.source.read_bytes())
    logs.source.write_text("7\n")
    entry = logs.run()
    assert (entry["lines"], entry["warnings"]) == (2, [])
    assert logs.target.read_text() == "1\n2\n3\nlate\n4\n5\n6\n7\n"


def test_what_cannot_be_found_again_is_said(logs: Logs) -> None:
    logs.write("1\n", "2\n")
    logs.run()
    logs.source.write_text("3\n")
    entry = logs.run()
    assert entry["state_after"] == "equal_with_warnings"
    assert "was truncated, and no copy of it is beside it" in entry["warnings"][0]
    assert logs.target.read_text() == "1\n2\n3\n"


def test_a_target_that_was_copied_by_hand_is_continued_and_any_other_is_appended_to(logs: Logs) -> None:
    logs.write("1\n", "2\n")
    logs.target.parent.mkdir(exist_ok=True)
    logs.target.write_text("1\n2")
    entry = logs.run()
    assert (entry["lines"], entry["warnings"]) == (1, [])
    assert logs.target.read_text() == "1\n2\n"


def test_the_targets_own_lines_stay_before_the_first_run(logs: Logs) -> None:
    logs.write("1\n")
    logs.target.parent.mkdir(exist_ok=True)
    logs.target.write_text("of before, unfinished")
    entry = logs.run()
    assert "stay, and the whole log is appended" in entry["warnings"][0]
    assert logs.target.read_text() == "of before, unfinished\n1\n"


def test_a_line_longer_than_what_is_sent_at_once_and_any_bytes(logs: Logs) -> None:
    data = b"\0\xff\r\n" + os.urandom(9 << 20).replace(b"\n", b"") + b"\n" + b"end\n"
    logs.source.write_bytes(data)
    assert logs.run()["lines"] == 3
    assert logs.target.read_bytes() == data


def test_both_directions_and_conflicts_are_refused(pair: Pair) -> None:
    (pair.path / "a.log").write_text("1\n")
    declare(pair, pair.path / "a.log", pair.partner_path / "a.log", "both")
    assert "elements[0]" in pair.here.serversync("run", "nightly", code=2).stderr
    declare(pair, pair.path / "a.log", pair.partner_path / "a.log", "to_partner")
    pair.here.run("nightly")
    said = pair.here.serversync("restore", "nightly", str(pair.path / "a.log"), code=1).stderr
    assert "is a log" in said
    assert json.loads(pair.here.serversync("versions", "nightly", "--json").stdout)["elements"] == []
    assert "error" not in pair.here.serversync("check", "nightly", code=None).stdout.replace("mail", "")
