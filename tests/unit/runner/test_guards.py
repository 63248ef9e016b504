# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from serversync.entry import HERE, THERE, Entry, Row
from serversync.guards import (
    WRITTEN_BACK,
    Room,
    doubted,
    fits,
    lacking,
    last_change,
    readable,
    room,
    tripped,
)
from serversync.reconcile import Decision, Plan, Triple, reconcile

from tests.faults.reconcile_cases import plain_rules


def file(size: int, time: int) -> Entry:
    return Entry("f", 7, 5, time, size, 0o644, 0, 0, 1)


def plan(*, deleted: int = 0, changed: int = 0, emptied: int = 0, new: int = 0) -> Plan:
    triples = [
        *(Triple(b"deleted%d" % number, None, file(1, 1), None) for number in range(deleted)),
        *(Triple(b"changed%d" % number, file(2, 2), file(1, 1), None) for number in range(changed)),
        *(Triple(b"emptied%d" % number, file(0, 2), file(1, 1), None) for number in range(emptied)),
        *(Triple(b"new%d" % number, file(0, 2), None, None) for number in range(new)),
    ]
    return reconcile(triples, plain_rules(delete="extraneous"))


@pytest.mark.parametrize(
    ("rows", "limit", "deleted", "stops"),
    [
        (1000, "25%", 250, False),
        (1000, "25%", 251, True),
        (1000, "1%", 10, False),
        (1000, "1%", 11, True),
        (0, "25%", 10, False),
        (0, "25%", 11, True),
        (12, "25%", 10, False),
        (1000, "3", 3, False),
        (1000, "3", 4, True),
        (1000, 3, 4, True),
        (1000, "0", 1, True),
        (1000, "0", 0, False),
        (20, "100%", 999, False),
        (20, None, 999, False),
    ],
)
def test_deletions(rows: int, limit: str | int | None, deleted: int, stops: bool) -> None:
    found = tripped(plan(deleted=deleted, changed=40, new=40), rows, limit, None, 0)
    assert len(found) == stops
    if stops:
        assert f"{deleted} paths would be deleted" in found[0]
        assert f"max_delete ({limit})" in found[0]


@pytest.mark.parametrize(
    ("limit", "changed", "emptied", "zeroed", "stops"),
    [
        ("20", 20, 0, 0, False),
        ("20", 21, 0, 0, True),
        ("20", 10, 11, 0, True),
        ("20", 10, 5, 5, False),
        ("20", 15, 5, 15, False),
        ("100%", 99, 99, 99, False),
        (None, 999, 0, 0, False),
        (None, 0, 25, 0, False),
        (None, 0, 26, 0, True),
        (None, 0, 0, 26, True),
        (None, 0, 13, 13, True),
    ],
)
def test_changes(limit: str | None, changed: int, emptied: int, zeroed: int, stops: bool) -> None:
    assert len(tripped(plan(changed=changed, emptied=emptied, new=99), 100, "25%", limit, zeroed)) == stops


def test_both_at_once() -> None:
    assert len(tripped(plan(deleted=11, changed=11), 0, "25%", "25%", 0)) == 2


def test_what_a_directory_replaces_counts_and_its_metadata_do_not() -> None:
    directory = Entry("d", 1, 1, 1, 0, 0o755, 0, 0, 2)
    rules = plain_rules(conflict="this_server_wins")
    replaced = reconcile([Triple(b"x", directory, file(1, 1), None)], rules)
    assert tripped(replaced, 0, None, "0", 0)
    metadata = reconcile([Triple(b"x", directory, directory._replace(mode=0o700), None)], rules)
    assert metadata.decisions[0].metadata == HERE
    assert tripped(metadata, 0, None, "0", 0) == []


def test_what_was_empty_does_not_become_so() -> None:
    row = Row(b"x", "agreed", file(0, 1).record, b"", file(0, 1).record, b"")
    found = reconcile([Triple(b"x", file(0, 2), file(0, 1), row)], plain_rules())
    assert (found.needs, [one.what for one in found.decisions]) == ([], ["metadata"])
    assert tripped(found, 0, "0", None, 0) == []


def test_it_counts_on_whichever_side() -> None:
    triples = [Triple(b"x", file(1, 1), file(2, 2), None)]
    found = reconcile(triples, plain_rules(direction="both"))
    assert found.decisions[0].content == THERE
    assert tripped(found, 0, None, "0", 0)


ROOMY = Entry("d", 1, 1, 1, 4096, 0o755, 0, 0, 2)


def test_the_room_that_a_plan_takes() -> None:
    triples = [
        Triple(b"new", ROOMY, None, None),
        Triple(b"new/deep", ROOMY, None, None),
        Triple(b"new/deep/file", file(1000, 2), None, None),
        Triple(b"old", ROOMY, ROOMY, None),
        Triple(b"old/in", ROOMY, ROOMY, None),
        Triple(b"old/in/changed", file(700, 2), file(900, 1), None),
        Triple(b"old/in/gone", None, file(5000, 1), None),
    ]
    plan = reconcile(triples, plain_rules(delete="extraneous"))
    need = room(plan.decisions, THERE, {})
    # What is replaced or deleted goes to versions, and the whole new file arrives beside it.
    assert (need.size, need.files) == (1700, [b"new/deep/file", b"old/in/changed"])
    # new, deep, file, changed; old and old/in in the stage and in versions.
    assert need.inodes == 4 + 2 + 2
    assert room(plan.decisions, HERE, {}) == Room(0, 0, [])


def test_a_directory_that_goes_makes_its_own_place_in_versions() -> None:
    triples = [Triple(b"gone", None, ROOMY, None), Triple(b"gone/file", None, file(5000, 1), None)]
    plan = reconcile(triples, plain_rules(delete="extraneous"))
    assert room(plan.decisions, THERE, {}) == Room(0, 0, [])


def test_the_names_of_one_file_take_its_room_once() -> None:
    triples = [Triple(name, file(1000, 2)._replace(nlink=2), None, None) for name in (b"a", b"b")]
    group = frozenset((b"a", b"b"))
    plan = reconcile(triples, plain_rules())
    assert room(plan.decisions, THERE, dict.fromkeys(group, group))[:2] == (1000, 1)


@pytest.mark.parametrize(
    ("free", "said"),
    [
        ((2048, 8), ""),
        ((2047, 8), "2.0 KiB would arrive, 2.0 KiB are free"),
        ((2048, 7), "8 files and directories would be made, there are inodes for 7"),
    ],
)
def test_what_there_is_too_little_of(free: tuple[int, int], said: str) -> None:
    need, left = Room(2048, 8, []), {"free_bytes": free[0], "free_inodes": free[1]}
    assert fits(need, left) is (said == "")
    if said:
        assert lacking(need, left) == said


def agreed(status: str = "agreed", by: str = "", size: int = 9) -> Row:
    return Row(b"x", status, file(size, 1).record, b"", file(size, 1).record, b"", by=by)


BOOTED, DAY = 10**15, 24 * 3600 * 10**9


@pytest.mark.parametrize(
    ("coming", "row", "last", "doubt"),
    [
        # Nobody wrote, says the time.
        (file(0, 1)._replace(ctime=BOOTED + 1), agreed(), 0, True),
        # Somebody has emptied it, after the boot, or long before the last that was written before.
        (file(0, 2)._replace(ctime=BOOTED + 1), agreed(), BOOTED - 1, False),
        (file(0, 2)._replace(ctime=BOOTED - DAY), agreed(), BOOTED - 1, False),
        # It is among that.
        (file(0, 2)._replace(ctime=BOOTED - 1), agreed(), BOOTED - 1, True),
        (file(0, 2)._replace(ctime=BOOTED - DAY), agreed(), BOOTED - DAY + WRITTEN_BACK, True),
        # It was empty, or is not known.
        (file(0, 1)._replace(ctime=BOOTED - 1), agreed(size=0), BOOTED - 1, False),
        (file(0, 1)._replace(ctime=BOOTED - 1), None, BOOTED - 1, False),
        # Once in doubt it stays so, whoever touches it.
        (file(0, 2)._replace(ctime=BOOTED + 1), agreed("unresolved", "guard"), 0, True),
        (file(0, 2)._replace(ctime=BOOTED + 1), agreed("unresolved", "conflict"), 0, False),
        (ROOMY._replace(ctime=BOOTED - 1), agreed(), BOOTED - 1, False),
    ],
)
def test_contents_that_a_crash_may_have_taken(coming: Entry, row: Row | None, last: int, doubt: bool) -> None:
    decision = Decision(b"x", "8", "update", HERE, HERE, None, b"", "agreed", "", "", coming, file(9, 1))
    assert doubted(decision, row, BOOTED, last) is doubt
    # With nothing on the other side there is nothing to lose.
    assert not doubted(decision._replace(there=None), row, BOOTED, last)
    assert not doubted(decision._replace(there=file(0, 1)), row, BOOTED, last)


def test_the_last_change_before_a_boot() -> None:
    times = [BOOTED - 9, BOOTED - 5, BOOTED, BOOTED + 3]
    triples = [Triple(b"%d" % time, file(1, 1)._replace(ctime=time), None, None) for time in times]
    assert last_change(triples, HERE, BOOTED) == BOOTED - 5
    assert last_change(triples, THERE, BOOTED) == 0


@pytest.mark.parametrize(("limit", "max_change", "count"), [("25%", None, 11), ("11", None, 0), ("5", "9", 0)])
def test_contents_are_read_only_where_zeros_could_stop_the_plan(limit: str, max_change: str | None, count: int) -> None:
    found = readable(plan(changed=11), 0, limit, max_change)
    assert len(found) == count
