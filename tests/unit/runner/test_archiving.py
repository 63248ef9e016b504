# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from serversync.archiving import Archiving
from serversync.detect import Summary
from serversync.entry import HERE, THERE, Entry
from serversync.propagate import Done
from serversync.reconcile import Decision

SECOND = 10**9
SCANNED = 1_000 * SECOND + SECOND // 2
ROOT = Entry("d", 1, 0, 0, 0, 0o755, 0, 0, 2)


@pytest.mark.parametrize(
    ("granularity", "age", "racy"),
    [(1, SECOND, ""), (1, 5_000_000, "ht"), (2 * SECOND, SECOND, "ht"), (2 * SECOND, 3 * SECOND, "")],
)
def test_what_the_stamps_of_a_file_system_cannot_tell_is_read_again(granularity: int, age: int, racy: str) -> None:
    side: Any = SimpleNamespace(tree=SimpleNamespace(facts={"granularity": granularity}))
    scan = Summary(b"", 1, SCANNED, True, {}, False, ROOT)
    entry = Entry("f", 2, SCANNED - age, 0, 1, 0o644, 0, 0, 1)
    both = dict.fromkeys((HERE, THERE))
    archive: Any = None
    archiving = Archiving(archive, {one: side for one in both}, {}, {one: scan for one in both}, {}, [])
    decision = Decision(b"plc", "1", "equal", None, None, None, b"", "agreed", "", "equal", entry, entry)
    done = {one: Done() for one in both}
    assert archiving.archived_row(decision, {HERE: entry, THERE: entry}, done).racy == racy
