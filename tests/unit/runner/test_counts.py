# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a run is, as another process is told of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from serversync import counts, unit
from serversync.counts import Count, Publisher, published


def read(path: Path) -> dict[str, Count]:
    return published(json.loads(path.read_text()), "7")


def test_a_phase_is_told_at_once_and_its_counts_every_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(counts.time, "monotonic", lambda: now)
    path = tmp_path / "nightly.counts"
    tell = Publisher(path, "7").watch("/srv/a")
    tell("to copy", 9, 900)
    assert not path.exists()
    tell("copying", 0, 0)
    assert read(path) == {"/srv/a": Count("copying", 0, 0, 9, 900)}
    tell("copying", 4, 400)
    assert read(path)["/srv/a"].files == 0
    now += counts.INTERVAL
    tell("copying", 5, 500)
    assert read(path) == {"/srv/a": Count("copying", 5, 500, 9, 900)}
    # Another stretch of the phase goes on where that one was.
    tell("copying", 0, 0)
    now += counts.INTERVAL
    tell("copying", 1, 100)
    assert read(path)["/srv/a"].files == 6
    tell("committing", 0, 0)
    assert read(path) == {"/srv/a": Count("committing", 0, 0)}
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_element_that_is_done_is_told_of_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "INTERVAL", 0.0)
    publisher = Publisher(tmp_path / "counts", "7")
    first, second = publisher.watch("/srv/a"), publisher.watch("/srv/b")
    first("scanning", 0, 0)
    second("scanning", 0, 0)
    first("done", 0, 0)
    assert list(read(tmp_path / "counts")) == ["/srv/b"]
    first("done", 0, 0)


def test_a_run_goes_on_where_nothing_can_be_told(tmp_path: Path) -> None:
    Publisher(tmp_path / "missing" / "counts", "7").watch("/srv/a")("scanning", 0, 0)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"id": "8", "elements": {"/srv/a": ["copying", 1, 2, 3, 4]}},
        {"id": "7", "elements": [1]},
        {"id": "7", "elements": {"/srv/a": 7}},
        {"id": "7", "elements": {"/srv/a": []}},
        {"id": "7", "elements": {"/srv/a": ["copying", 1, 2, 3, 4, 5]}},
        {"id": "7", "elements": {"/srv/a": ["copying", "1", 2, 3, 4]}},
        {"id": "7", "elements": {"/srv/a": ["copying", -1, 2, 3, 4]}},
        {"id": "7", "elements": {"/srv/a": ["copying", True, 2, 3, 4]}},
        {"id": "7", "elements": {"/srv/a": [["copying"], 1, 2, 3, 4]}},
        {"id": "7", "elements": {"/srv/a": ["c" * 1000, 1, 2, 3, 4]}},
        {"id": "7", "elements": {str(number): ["copying", 1, 2, 3, 4] for number in range(1000)}},
    ],
)
def test_what_is_no_such_document_tells_nothing(document: dict[str, Any]) -> None:
    assert published(document, "7") == {}


def test_a_command_is_looked_after_while_it_works(tmp_path: Path) -> None:
    # It ends only once somebody has looked.
    script = "import sys; print('on'); sys.stdout.flush(); print(open(sys.argv[1]).read(), file=sys.stderr)"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    looked = []

    def look() -> None:
        if not looked:
            fifo.write_text("off")
        looked.append(1)

    done = unit.followed([sys.executable, "-c", script, str(fifo)], look)
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "off\n")


def test_a_look_that_is_interrupted_leaves_no_command_behind(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def interrupt() -> None:
        raise KeyboardInterrupt

    script = "import sys; open(sys.argv[1], 'rb').read()"
    with pytest.raises(KeyboardInterrupt):
        # Nobody ever writes there.
        unit.followed([sys.executable, "-c", script, str(fifo)], interrupt)
