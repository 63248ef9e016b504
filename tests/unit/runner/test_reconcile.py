# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serversync.entry import HERE, THERE, Entry, Row, pack
from serversync.reconcile import (
    Decision,
    Owners,
    Plan,
    Restamped,
    Rules,
    Seen,
    Triple,
    Unknown,
    deep,
    moved,
    reconcile,
)

from tests.faults.reconcile_cases import RULES, history, mirrored, mirrored_triple, plain_rules

SECOND = 1_000_000_000
ROOT = Entry("d", 1, 1, 0, 0, 0o755, 0, 0, 2)


def file(
    size: int = 1, time: int = 100, *, inode: int = 7, mode: int = 0o644, digest: bytes = b"", **more: int
) -> Entry:
    return Entry("f", inode, 5, time * SECOND, size, mode, more.get("uid", 0), more.get("gid", 0), 1, digest=digest)


def directory(mode: int = 0o755, time: int = 0) -> Entry:
    return Entry("d", 8, 5, time * SECOND, 0, mode, 0, 0, 2)


def link(text: bytes = b"aim", time: int = 0) -> Entry:
    return Entry("l", 9, 5, time * SECOND, len(text), 0o777, 0, 0, 1, text)


OLD = file(1, 100)
OLD_THERE = file(1, 100, inode=70)


def row(
    path: bytes,
    here: Entry | None,
    there: Entry | None,
    status: str = "agreed",
    *,
    by: str = "",
    base: tuple[Entry, Entry] | None = None,
    racy: str = "",
) -> Row:
    return Row(
        path,
        status,
        here.record if here else None,
        here.more if here else b"",
        there.record if there else None,
        there.more if there else b"",
        pack([(name, one.record, one.more) for name, one in zip((b"here", b"there"), base)]) if base else b"",
        racy,
        by,
    )


def plan(*triples: Triple, **rules: object) -> Plan:
    return reconcile(triples, plain_rules(**rules))


def decide(here: Seen, there: Seen, old: Row | None = None, path: bytes = b"x", **rules: object) -> Decision:
    """The one decision about the path."""
    found = plan(Triple(path, here, there, old), **rules)
    assert found.needs == []
    return next(one for one in found.decisions if one.path == path)


def outcome(one: Decision) -> str:
    """The word of the tables for what is done, and for what the archive says afterwards."""
    if one.aside:
        done = "aside"
    elif one.content:
        done = "copy" if None in (one.here, one.there) else "update"
    elif one.metadata:
        done = "metadata"
    elif one.remove:
        done = "delete"
    else:
        done = "nothing"
    return f"{done} {one.status}"


# The columns of both tables: who wins by this_server_wins, partner_wins, newer_wins, no_winner, keep_both.
WORDS = {
    "copy": "copy agreed",
    "update": "update agreed",
    "aside": "aside agreed",
    "delete": "delete dropped",
    "kept": "nothing kept",
    "left": "nothing left",
    "open": "nothing unresolved",
    "drop": "nothing dropped",
    "equal": "nothing agreed",
    "same": "nothing unchanged",
}
# What a side has: old is as archived; the others are ever later, "before" is earlier than all; the sizes all differ.
THINGS = {
    "-": None,
    "old": OLD,
    "before": file(5, 50),
    "new": file(2, 200),
    "later": file(3, 300),
    "also": file(4, 200),
}

ONE_DIRECTION = """
row  source  target  pair        delete             source  target  newer   none    both
1    new     new     none        any                equal   equal   equal   equal   equal
1    new     new     agreed      any                equal   equal   equal   equal   equal
2    new     -       none        any                copy    copy    copy    copy    copy
3    old     -       agreed      any                copy    kept    copy    open    copy
4    new     -       agreed      any                copy    kept    copy    open    copy
5    -       new     none        never,synced       left    left    left    left    left
5    -       new     none        extraneous         delete  delete  delete  delete  delete
6    -       old     agreed      never              left    left    left    left    left
6    -       old     agreed      synced,extraneous  delete  delete  delete  delete  delete
7    -       new     agreed      never              left    left    left    left    left
7    -       new     agreed      synced,extraneous  delete  kept    kept    open    kept
8    new     old     agreed      any                update  update  update  update  update
9    old     new     agreed      any                update  kept    kept    open    aside
9    old     before  agreed      any                update  kept    update  open    aside
10   later   new     agreed      any                update  kept    update  open    aside
10   new     later   agreed      any                update  kept    kept    open    aside
10   new     also    agreed      any                update  kept    update  open    aside
11   later   new     none        any                update  kept    update  open    aside
11   new     later   none        any                update  kept    kept    open    aside
11   new     also    none        any                update  kept    update  open    aside
12   -       -       agreed      any                drop    drop    drop    drop    drop
12   -       -       kept        any                drop    drop    drop    drop    drop
13   new     later   kept        any                same    same    same    same    same
13   new     -       kept        any                same    same    same    same    same
13   -       new     left        any                same    same    same    same    same
13   new     later   unresolved  any                same    same    same    same    same
2    new     -       kept-moved  any                copy    copy    copy    copy    copy
5    -       new     left-moved  never,synced       left    left    left    left    left
5    -       new     left-moved  extraneous         delete  delete  delete  delete  delete
11   new     later   kept-moved  any                update  kept    kept    open    aside
11   new     later   left-moved  any                update  kept    kept    open    aside
11   new     later   open-moved  any                update  kept    kept    open    aside
10   new     later   base-moved  any                update  kept    kept    open    aside
4    new     -       base-moved  any                copy    kept    copy    open    copy
7    -       new     base-moved  synced             delete  kept    kept    open    kept
"""

BOTH_DIRECTIONS = """
row  here    there   pair        delete  here    partner newer   none    both
1    new     new     none        any     equal   equal   equal   equal   equal
b1   new     -       none        any     copy    copy    copy    copy    copy
b1   -       new     none        any     copy    copy    copy    copy    copy
b2   old     new     agreed      any     update  update  update  update  update
b2   new     old     agreed      any     update  update  update  update  update
b3   later   new     agreed      any     update  update  update  open    aside
b3   new     also    agreed      any     update  update  open    open    aside
b4   later   new     none        any     update  update  update  open    aside
b4   new     also    none        any     update  update  open    open    aside
b5   old     -       agreed      never   left    left    left    left    left
b5   old     -       agreed      synced  delete  delete  delete  delete  delete
b5   -       old     agreed      never   left    left    left    left    left
b5   -       old     agreed      synced  delete  delete  delete  delete  delete
b6   new     -       agreed      never   copy    copy    copy    copy    copy
b6   new     -       agreed      synced  copy    delete  copy    open    copy
b6   -       new     agreed      never   copy    copy    copy    copy    copy
b6   -       new     agreed      synced  delete  copy    copy    open    copy
b7   -       -       agreed      any     drop    drop    drop    drop    drop
b8   new     later   kept        any     same    same    same    same    same
b8   -       new     left        any     same    same    same    same    same
b8   new     later   unresolved  any     same    same    same    same    same
b1   new     -       left-moved  any     copy    copy    copy    copy    copy
b4   later   new     kept-moved  any     update  update  update  open    aside
b4   later   new     open-moved  any     update  update  update  open    aside
b3   later   new     base-moved  any     update  update  update  open    aside
b6   new     -       base-moved  synced  copy    delete  copy    open    copy
"""


def archived(pair: str, here: Entry | None, there: Entry | None) -> Row | None:
    if pair == "none":
        return None
    if pair == "agreed":
        return row(b"x", OLD, OLD)
    if pair in ("kept", "left", "unresolved"):
        return row(b"x", here, there, pair, by="conflict")
    status = {"open": "unresolved", "base": "unresolved"}.get(pair[:4], pair[:4])
    return row(b"x", file(9), file(9, inode=9), status, by="conflict", base=(OLD, OLD) if pair[:4] == "base" else None)


def cells(table: str, deletes: str) -> list[tuple[str, str, str, str, str, str, str]]:
    found = []
    for line in table.strip().splitlines()[1:]:
        number, here, there, pair, which, *words = line.split()
        for delete in deletes.split(",") if which == "any" else which.split(","):
            for rule, word in zip(RULES, words):
                found.append((number, here, there, pair, delete, rule, word))
    return found


@pytest.mark.parametrize("direction", ["to_partner", "from_partner"])
@pytest.mark.parametrize(
    ("number", "source", "target", "pair", "delete", "rule", "word"), cells(ONE_DIRECTION, "never,synced,extraneous")
)
def test_one_direction(
    direction: str, number: str, source: str, target: str, pair: str, delete: str, rule: str, word: str
) -> None:
    here, there = THINGS[source], THINGS[target]
    triple = Triple(b"x", here, there, archived(pair, here, there))
    rules = plain_rules(direction="to_partner", delete=delete, conflict=rule)
    if direction == "from_partner":
        triple, rules = mirrored_triple(triple), mirrored(rules)
    one, *others = with_contents(triple, rules)
    assert (one.row, outcome(one)) == (number, WORDS[word])
    assert len(others) == (word == "aside")
    # Nothing is ever done to the source.
    mine = HERE if direction == "to_partner" else THERE
    assert {one.content, one.metadata} <= {mine, None}
    assert one.remove != mine


@pytest.mark.parametrize(
    ("number", "here", "there", "pair", "delete", "rule", "word"), cells(BOTH_DIRECTIONS, "never,synced")
)
def test_both_directions(number: str, here: str, there: str, pair: str, delete: str, rule: str, word: str) -> None:
    mine, other = THINGS[here], THINGS[there]
    triple = Triple(b"x", mine, other, archived(pair, mine, other))
    one, *copies = with_contents(triple, plain_rules(direction="both", delete=delete, conflict=rule))
    assert (one.row, outcome(one)) == (number, WORDS[word])
    assert len(copies) == (word == "aside")


def with_contents(triple: Triple, rules: Rules) -> list[Decision]:
    """The decisions, after contents were read where that was asked for: equal where the sizes are."""
    found = reconcile([triple], rules)
    if found.needs:
        assert found.needs == [triple.path]
        found = reconcile([triple._replace(here=with_digest(triple.here), there=with_digest(triple.there))], rules)
    assert found.needs == []
    return found.decisions


def with_digest(entry: Seen) -> Seen:
    return entry._replace(digest=b"%16d" % entry.size) if isinstance(entry, Entry) else entry


@pytest.mark.parametrize(
    ("direction", "rule", "here", "there", "winner"),
    [
        ("both", "this_server_wins", 2, 3, HERE),
        ("both", "partner_wins", 3, 2, THERE),
        ("both", "newer_wins", 2, 3, THERE),
        ("both", "newer_wins", 3, 2, HERE),
        ("both", "keep_both", 2, 3, HERE),
        ("to_partner", "keep_both", 2, 3, HERE),
        ("from_partner", "keep_both", 2, 3, THERE),
        ("from_partner", "newer_wins", 2, 2, THERE),
        ("from_partner", "partner_wins", 3, 2, THERE),
    ],
)
def test_the_winner_is_a_server(direction: str, rule: str, here: int, there: int, winner: str) -> None:
    one = decide(file(here, here * 100), file(there + 3, there * 100), direction=direction, conflict=rule)
    assert (one.content, one.metadata, one.what) == (winner, winner, "conflict")


@pytest.mark.parametrize(
    ("rule", "who"), [("this_server_wins", HERE), ("partner_wins", THERE)], ids=["this_server_wins", "partner_wins"]
)
def test_of_a_deletion_against_a_change_the_named_server_decides(rule: str, who: str) -> None:
    kept = decide(file(2, 200), None, row(b"x", OLD, OLD), direction="both", conflict=rule)
    assert (kept.content, kept.remove) == ((HERE, None) if who == HERE else (None, HERE))
    other = decide(None, file(2, 200), row(b"x", OLD, OLD), direction="both", conflict=rule)
    assert (other.content, other.remove) == ((None, THERE) if who == HERE else (THERE, None))


# Times.


@pytest.mark.parametrize(
    ("here", "there", "granularity", "skew", "winner"),
    [
        (200, 201, 1, 0, THERE),
        (200, 201, SECOND, 0, THERE),
        (200, 201, 2 * SECOND, 0, None),
        (200, 201, 1, 2 * SECOND, None),
        (200, 203, 1, 2 * SECOND, THERE),
        (200, 202, 1, 2 * SECOND, THERE),
    ],
)
def test_newer_is_newer_by_more_than_the_clocks_differ(
    here: int, there: int, granularity: int, skew: int, winner: str | None
) -> None:
    one = decide(file(2, here), file(3, there), direction="both", granularity=granularity, skew=skew)
    assert one.content == winner
    assert one.status == ("agreed" if winner else "unresolved")


def test_times_are_compared_at_the_coarser_of_the_two() -> None:
    mine = file(1, 200, digest=b"same")._replace(mtime=200 * SECOND + 123)
    other = file(1, 200, digest=b"same")
    assert decide(mine, other, granularity=SECOND).what == "equal"
    assert decide(mine, other, granularity=1).what == "metadata"


# Contents that must be read.


@pytest.mark.parametrize(
    ("here", "there", "old", "rules", "needed"),
    [
        (file(1, 100), file(1, 200), None, {}, True),
        (file(1, 100), file(2, 200), None, {}, False),
        (link(), link(), None, {}, False),
        (file(1, 200), OLD_THERE, row(b"x", OLD, OLD_THERE), {}, False),
        (OLD, file(1, 200), row(b"x", OLD, OLD_THERE), {}, True),
        (OLD, file(1, 200), row(b"x", OLD, OLD_THERE), {"direction": "both"}, False),
        (file(1, 200), file(1, 300), row(b"x", OLD, OLD_THERE), {"direction": "both"}, True),
        (file(1, 100, inode=6), OLD_THERE, row(b"x", OLD, OLD_THERE), {}, True),
        (OLD, OLD_THERE, row(b"x", OLD, OLD_THERE), {}, False),
        (OLD, OLD_THERE, row(b"x", OLD, OLD_THERE), {"verify": True}, True),
        (OLD, OLD_THERE, row(b"x", OLD, OLD_THERE, racy="h"), {}, True),
        (OLD, OLD_THERE, row(b"x", OLD, OLD_THERE, racy="t"), {}, True),
        (OLD, None, row(b"x", OLD, OLD_THERE, racy="h"), {}, False),
        (OLD, OLD_THERE, row(b"x", OLD, OLD_THERE, "kept", by="conflict", racy="h"), {}, False),
    ],
)
def test_contents_are_read_where_nothing_else_tells(
    here: Entry, there: Entry, old: Row | None, rules: dict[str, object], needed: bool
) -> None:
    found = plan(Triple(b"x", here, there, old), **rules)
    assert found.needs == ([b"x"] if needed else [])
    if needed:
        assert found.decisions == []
        for other in (b"one", b"two"):
            triple = Triple(b"x", here._replace(digest=b"one"), there._replace(digest=other), old)
            assert plan(triple, **rules).needs == []


def racy_pair(here: bytes, there: bytes, racy: str) -> Triple:
    mine, other = OLD._replace(digest=here), OLD_THERE._replace(digest=there)
    return Triple(b"x", mine, other, row(b"x", OLD, OLD_THERE, racy=racy))


@pytest.mark.parametrize(
    ("racy", "there", "expected"),
    [
        ("h", b"same", ("1", "nothing agreed")),
        ("h", b"else", ("8", "update agreed")),
        ("t", b"else", ("9", "nothing unresolved")),
        ("ht", b"else", ("10", "nothing unresolved")),
    ],
)
def test_a_racy_half_may_have_changed_without_a_trace(racy: str, there: bytes, expected: tuple[str, str]) -> None:
    one = plan(racy_pair(b"same", there, racy), conflict="no_winner").decisions[0]
    assert (one.row, outcome(one)) == expected


def test_what_may_have_changed_is_not_deleted() -> None:
    one = decide(None, OLD_THERE, row(b"x", OLD, OLD_THERE, racy="t"))
    assert (one.row, outcome(one)) == ("7", "nothing kept")


def test_an_unresolved_path_keeps_its_doubt() -> None:
    """What only the contents told must not be forgotten once the other side moves."""
    old = row(b"x", OLD, OLD_THERE, "unresolved", by="conflict", base=(OLD, OLD_THERE))
    one = decide(file(1, 200, digest=b"1"), OLD_THERE._replace(digest=b"2"), old, conflict="no_winner")
    assert outcome(one) == "nothing unresolved"


@pytest.mark.parametrize(
    ("halves", "expected"),
    [
        ((b"", b""), ("10", "nothing unresolved")),
        ((b"1", b"1"), ("9", "nothing unresolved")),
        ((b"2", b"2"), ("8", "update agreed")),
    ],
)
def test_contents_that_differ_under_the_same_times(halves: tuple[bytes, bytes], expected: tuple[str, str]) -> None:
    old = row(b"x", OLD._replace(digest=halves[0]), OLD_THERE._replace(digest=halves[1]))
    here, there = OLD._replace(digest=b"1"), OLD_THERE._replace(digest=b"2")
    one = decide(here, there, old, verify=True, conflict="no_winner")
    assert (one.row, outcome(one)) == expected


def test_the_side_that_was_touched_is_the_one_that_changed() -> None:
    here, there = OLD._replace(digest=b"1", ctime=6), OLD_THERE._replace(digest=b"2")
    one = decide(here, there, row(b"x", OLD, OLD_THERE), verify=True, conflict="no_winner")
    assert (one.row, outcome(one)) == ("8", "update agreed")


@pytest.mark.parametrize(
    ("now", "ctime", "expected"),
    [
        (b"1", 6, ("b2", "update agreed")),
        (b"3", 6, ("b3", "nothing unresolved")),
        (b"", 5, ("b2", "update agreed")),
    ],
)
def test_an_edit_that_only_the_contents_tell_counts_beside_one_of_the_other_side(
    now: bytes, ctime: int, expected: tuple[str, str]
) -> None:
    old = row(b"x", OLD._replace(digest=b"1"), OLD_THERE._replace(digest=b"1"))
    here, there = OLD._replace(ctime=ctime), file(2, 200, inode=70)
    rules: dict[str, object] = {"verify": True, "direction": "both", "conflict": "no_winner"}
    if now:
        assert plan(Triple(b"x", here, there, old), **rules).needs == [b"x"]
    one = decide(here._replace(digest=now), there._replace(digest=now and b"2"), old, **rules)
    assert (one.row, outcome(one)) == expected


def test_a_link_in_the_place_of_a_file_has_no_contents_to_read() -> None:
    old = row(b"x", OLD._replace(digest=b"1"), OLD_THERE._replace(digest=b"1"))
    one = decide(OLD, link(time=300), old, verify=True, direction="both")
    assert (one.row, outcome(one)) == ("b2", "update agreed")


def test_verified_contents_leave_only_the_times() -> None:
    here, there = file(1, 300, digest=b"1"), OLD_THERE._replace(digest=b"1")
    one = decide(here, there, row(b"x", OLD, OLD_THERE), verify=True)
    assert (one.row, outcome(one), one.metadata) == ("8", "metadata agreed", HERE)


# Metadata.


@pytest.mark.parametrize(
    ("rule", "direction", "here", "there", "expected"),
    [
        ("no_winner", "to_partner", 0o600, 0o644, ("8", HERE, "agreed")),
        ("no_winner", "to_partner", 0o644, 0o600, ("9", None, "unresolved")),
        ("partner_wins", "to_partner", 0o644, 0o600, ("9", None, "kept")),
        ("this_server_wins", "to_partner", 0o644, 0o600, ("9", HERE, "agreed")),
        ("keep_both", "to_partner", 0o644, 0o600, ("9", HERE, "agreed")),
        ("no_winner", "to_partner", 0o600, 0o640, ("10", None, "unresolved")),
        ("no_winner", "to_partner", 0o600, 0o600, ("1", None, "agreed")),
        ("no_winner", "both", 0o644, 0o600, ("b2", THERE, "agreed")),
        ("no_winner", "both", 0o600, 0o640, ("b3", None, "unresolved")),
        ("partner_wins", "both", 0o600, 0o640, ("b3", THERE, "agreed")),
        ("keep_both", "both", 0o600, 0o640, ("b3", HERE, "agreed")),
    ],
)
@pytest.mark.parametrize("kind", ["f", "d"])
def test_metadata_alone(
    kind: str, rule: str, direction: str, here: int, there: int, expected: tuple[str, str | None, str]
) -> None:
    thing = OLD if kind == "f" else directory(0o644)
    old = row(b"x", thing, thing)
    one = decide(thing._replace(mode=here), thing._replace(mode=there), old, conflict=rule, direction=direction)
    assert (one.row, one.metadata, one.status) == expected
    assert (one.content, one.remove, one.aside) == (None, None, b"")


def test_contents_of_one_side_and_metadata_of_the_other() -> None:
    one = decide(file(2, 200), OLD._replace(mode=0o600), row(b"x", OLD, OLD), direction="both", conflict="no_winner")
    assert (one.content, one.metadata, one.status) == (HERE, THERE, "agreed")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("this_server_wins", (HERE, HERE, "agreed")),
        ("partner_wins", (HERE, THERE, "kept")),
        ("no_winner", (None, None, "unresolved")),
    ],
)
def test_a_conflict_of_metadata_and_new_contents(rule: str, expected: tuple[str | None, str | None, str]) -> None:
    one = decide(file(2, 200), OLD._replace(mode=0o600), row(b"x", OLD, OLD), conflict=rule)
    assert (one.content, one.metadata, one.status) == expected


def test_new_metadata_on_contents_that_are_kept() -> None:
    one = decide(OLD._replace(mode=0o600), file(2, 200), row(b"x", OLD, OLD), conflict="partner_wins")
    assert (one.content, one.metadata, one.status) == (None, HERE, "kept")


def test_the_same_contents_never_agreed_take_the_sources_metadata() -> None:
    here, there = file(1, 100, digest=b"1"), file(1, 200, mode=0o600, digest=b"1")
    for rule in RULES:
        one = decide(here, there, conflict=rule)
        assert (one.row, one.what, one.metadata, one.content) == ("11", "metadata", HERE, None)
    assert outcome(decide(here, there, direction="both", conflict="no_winner")) == "nothing unresolved"


def test_metadata_that_were_kept_are_not_overwritten_when_they_move_again() -> None:
    old = row(b"x", OLD, OLD._replace(mode=0o600), "kept", by="conflict")
    here, there = OLD._replace(mode=0o640, digest=b"1"), OLD._replace(mode=0o600, digest=b"1")
    assert outcome(decide(here, there, old, conflict="partner_wins")) == "nothing kept"
    assert outcome(decide(here, there, old, conflict="this_server_wins")) == "metadata agreed"


@pytest.mark.parametrize(
    ("preserve", "change", "what"),
    [
        ("permissions", {"mode": 0o600}, "metadata"),
        ("owner", {"mode": 0o600}, "equal"),
        ("owner", {"uid": 5}, "metadata"),
        ("group", {"uid": 5}, "equal"),
        ("group", {"gid": 5}, "metadata"),
        ("xattrs", {"xattrs": b"1"}, "metadata"),
        ("acls", {"xattrs": b"1"}, "metadata"),
        ("times", {"xattrs": b"1"}, "equal"),
        ("times", {"ctime": 99, "nlink": 5}, "equal"),
    ],
)
def test_only_what_is_preserved_counts(preserve: str, change: dict[str, int], what: str) -> None:
    one = decide(OLD._replace(**change), OLD, row(b"x", OLD, OLD), preserve=frozenset({preserve}))  # type: ignore[arg-type]
    assert (one.what, one.status) == (what, "agreed")


def test_a_directory_has_neither_size_nor_time() -> None:
    old = row(b"x", directory(), directory())
    moved_on = directory(time=500)._replace(size=4096, inode=99, ctime=9)
    assert decide(moved_on, directory(), old).what == "equal"
    assert decide(moved_on, directory()).what == "equal"


def test_a_links_mode_and_time_do_not_count() -> None:
    assert decide(link(time=5), link(time=9)._replace(mode=0o755)).what == "equal"
    assert decide(link(b"a"), link(b"b"), conflict="this_server_wins").what == "conflict"


def test_owners_are_compared_as_numbers_of_the_target() -> None:
    names = Owners({1000: 2000}, {})
    preserve = frozenset({"owner"})
    here, there = file(uid=1000, digest=b"1"), file(uid=2000, digest=b"1")
    assert decide(here, there, preserve=preserve, to_there=names).what == "equal"
    assert decide(here, there, preserve=preserve).what == "metadata"
    back = Owners({2000: 1000}, {})
    assert decide(here, there, preserve=preserve, direction="from_partner", to_here=back).what == "equal"
    assert decide(here, there, preserve=preserve, direction="both", to_there=names).what == "equal"


@pytest.mark.parametrize(
    ("direction", "here", "there", "expected"),
    [
        ("to_partner", b"1", b"", (HERE, "agreed")),
        ("to_partner", b"1", b"2", (HERE, "agreed")),
        ("to_partner", b"", b"2", (HERE, "agreed")),
        ("to_partner", b"2", b"2", (None, "agreed")),
        ("from_partner", b"1", b"2", (THERE, "agreed")),
        ("from_partner", b"1", b"", (THERE, "agreed")),
        ("both", b"1", b"", (HERE, "agreed")),
        ("both", b"", b"2", (THERE, "agreed")),
        ("both", b"1", b"2", (None, "unresolved")),
    ],
)
def test_what_is_to_be_preserved_from_now_on(
    direction: str, here: bytes, there: bytes, expected: tuple[str | None, str]
) -> None:
    mine, other = OLD._replace(xattrs=here), OLD._replace(xattrs=there)
    added = frozenset({"xattrs"})
    rules: dict[str, Any] = {"added": added, "preserve": added, "direction": direction, "conflict": "no_winner"}
    one = decide(mine, other, row(b"x", OLD, OLD), **rules)
    assert (one.metadata, one.status) == expected


def test_what_is_to_be_preserved_from_now_on_and_was_edited_on_the_target() -> None:
    added = frozenset({"xattrs"})
    rules: dict[str, Any] = {"added": added, "preserve": added | {"permissions"}, "conflict": "partner_wins"}
    one = decide(OLD._replace(xattrs=b"1"), OLD._replace(mode=0o600), row(b"x", OLD, OLD), **rules)
    assert (one.row, outcome(one)) == ("10", "nothing kept")


# Hard links.


def group(*names: bytes) -> dict[bytes, frozenset[bytes]]:
    return dict.fromkeys(names, frozenset(names))


LINKS = frozenset({"hardlinks", "permissions"})


def test_a_new_name_of_a_file_leaves_the_other_names_alone() -> None:
    both = OLD._replace(nlink=2)
    found = plan(
        Triple(b"a", both, OLD, row(b"a", OLD, OLD)),
        Triple(b"b", both, None, None),
        preserve=LINKS,
        groups={HERE: group(b"a", b"b")},
    )
    assert [(one.path, one.what) for one in found.decisions] == [(b"a", "equal"), (b"b", "new")]


def test_a_name_that_is_deleted_leaves_the_other_names_alone() -> None:
    both = OLD._replace(nlink=2)
    found = plan(
        Triple(b"a", OLD, both, row(b"a", both, both)),
        Triple(b"b", None, both, row(b"b", both, both)),
        preserve=LINKS,
        groups={THERE: group(b"a", b"b"), "base_here": group(b"a", b"b"), "base_there": group(b"a", b"b")},
    )
    assert [(one.path, one.what) for one in found.decisions] == [(b"a", "equal"), (b"b", "delete")]


def test_names_that_become_one_file_are_metadata() -> None:
    both = OLD._replace(nlink=2)
    triples = [
        Triple(b"a", both, OLD, row(b"a", OLD, OLD)),
        Triple(b"b", both._replace(inode=OLD.inode), OLD, row(b"b", OLD, OLD)),
    ]
    groups = {HERE: group(b"a", b"b")}
    found = plan(*triples, preserve=LINKS, groups=groups)
    assert [(one.path, one.what, one.metadata) for one in found.decisions] == [
        (b"a", "metadata", HERE),
        (b"b", "metadata", HERE),
    ]
    assert {one.what for one in plan(*triples, groups=groups).decisions} == {"equal"}


def test_names_of_one_file_come_with_its_contents() -> None:
    both, new = OLD._replace(nlink=2), file(5, 300)._replace(nlink=2)
    agreed = group(b"a", b"b")
    found = plan(
        Triple(b"a", OLD, new, row(b"a", both, both)),
        Triple(b"b", link(), new, row(b"b", both, both)),
        direction="both",
        conflict="partner_wins",
        preserve=LINKS | {"links"},
        groups={THERE: agreed, "base_here": agreed, "base_there": agreed},
    )
    assert [(one.path, one.what, one.content, one.metadata) for one in found.decisions] == [
        (b"a", "update", THERE, THERE),
        (b"b", "conflict", THERE, THERE),
    ]


# Directories, and what they take along.


def tree(*triples: Triple, **rules: object) -> dict[bytes, Decision]:
    found = plan(Triple(b"", ROOT, ROOT, row(b"", ROOT, ROOT)), *triples, **rules)
    assert found.needs == []
    return {one.path: one for one in found.decisions}


def outcomes(found: dict[bytes, Decision]) -> dict[str, str]:
    return {path.decode("utf-8", "replace"): outcome(one) for path, one in found.items()}


D, F, G = b"d", b"d/f", b"d/g"
OLD_D = directory()


def test_a_directory_whose_child_stays_stays() -> None:
    found = tree(
        Triple(D, None, OLD_D, row(D, OLD_D, OLD_D)),
        Triple(F, None, OLD, row(F, OLD, OLD)),
        Triple(G, None, file(2, 200), row(G, OLD, OLD)),
    )
    assert outcomes(found) == {"d": "nothing left", "d/f": "delete dropped", "d/g": "nothing kept"}
    assert found[D].by == "conflict"
    assert "stays" in found[D].reason


def test_a_directory_is_left_for_a_child_that_was_left_before() -> None:
    found = tree(
        Triple(D, None, OLD_D, row(D, OLD_D, OLD_D)),
        Triple(G, None, OLD, row(G, None, OLD, "left", by="delete")),
    )
    assert outcomes(found) == {"d": "nothing left", "d/g": "nothing unchanged"}


def test_a_directory_that_a_changed_child_needs_is_made_again() -> None:
    found = tree(
        Triple(D, OLD_D, None, row(D, OLD_D, OLD_D)),
        Triple(F, OLD, None, row(F, OLD, OLD)),
        Triple(G, file(2, 200), None, row(G, OLD, OLD)),
        direction="both",
    )
    assert outcomes(found) == {"d": "copy agreed", "d/f": "delete dropped", "d/g": "copy agreed"}
    assert found[D].content == HERE


def test_a_new_child_brings_a_directory_that_the_target_kept_away() -> None:
    found = tree(
        Triple(D, OLD_D, None, row(D, OLD_D, None, "kept", by="conflict")),
        Triple(G, OLD, None, None),
        conflict="partner_wins",
    )
    assert outcomes(found) == {"d": "copy agreed", "d/g": "copy agreed"}


def test_unknown_takes_along_what_is_below_and_holds_what_is_above() -> None:
    found = tree(
        Triple(D, None, OLD_D, row(D, OLD_D, OLD_D)),
        Triple(b"d/e", None, Unknown("closed"), row(b"d/e", OLD_D, OLD_D)),
        Triple(b"d/e/f", None, OLD, row(b"d/e/f", OLD, OLD)),
        Triple(F, None, OLD, row(F, OLD, OLD)),
        delete="extraneous",
        conflict="this_server_wins",
    )
    assert outcomes(found) == {
        "d": "nothing unchanged",
        "d/e": "nothing unchanged",
        "d/e/f": "nothing unchanged",
        "d/f": "delete dropped",
    }
    assert [found[path].row for path in (b"d/e", b"d/e/f")] == ["0", "0"]
    assert "closed" in found[b"d/e"].reason


@pytest.mark.parametrize("names", [(b"d/a", b"d/z"), (b"d/z", b"d/a")])
def test_what_stays_for_something_unseen_is_not_settled(names: tuple[bytes, bytes]) -> None:
    found = tree(
        Triple(D, None, OLD_D, row(D, OLD_D, OLD_D)),
        Triple(names[0], None, Unknown("closed"), row(names[0], OLD, OLD)),
        Triple(names[1], None, file(2, 200), row(names[1], OLD, OLD)),
    )
    assert outcome(found[D]) == "nothing unchanged"


def test_a_directory_is_deleted_whatever_its_time() -> None:
    touched = directory(time=500)._replace(size=4096, ctime=99)
    assert decide(None, touched, row(b"x", OLD_D, OLD_D)).row == "6"
    assert decide(None, touched._replace(mode=0o700), row(b"x", OLD_D, OLD_D)).row == "7"


def test_a_directory_is_not_newer() -> None:
    for here, there in ((directory(time=900), file(2, 200)), (file(2, 200), directory(time=900))):
        assert decide(here, there, direction="both").status == "unresolved"
        assert decide(here, there).content == HERE


def type_change(**rules: object) -> dict[str, str]:
    """On this server a file took the place of a directory with two files."""
    return outcomes(
        tree(
            Triple(D, file(2, 200), OLD_D, row(D, OLD_D, OLD_D)),
            Triple(F, None, OLD, row(F, OLD, OLD)),
            Triple(G, None, OLD, row(G, OLD, OLD)),
            **rules,
        )
    )


def test_a_file_in_the_place_of_a_directory_takes_it_away() -> None:
    gone = {"d": "update agreed", "d/f": "delete dropped", "d/g": "delete dropped"}
    assert type_change() == gone
    assert type_change(direction="both") == gone


def test_where_nothing_may_be_deleted_a_directory_is_not_replaced() -> None:
    stays = {"d": "nothing unresolved", "d/f": "nothing unresolved", "d/g": "nothing unresolved"}
    assert type_change(delete="never") == stays
    assert type_change(deletions=False) == stays
    assert type_change(delete="never", decided={D: HERE})["d"] == "update agreed"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("this_server_wins", ["update agreed", "delete dropped", "delete dropped"]),
        ("partner_wins", ["nothing kept", "nothing kept", "nothing kept"]),
        ("newer_wins", ["update agreed", "delete dropped", "delete dropped"]),
        ("no_winner", ["nothing unresolved", "nothing unresolved", "nothing unresolved"]),
        ("keep_both", ["aside agreed", "nothing dropped", "nothing dropped"]),
    ],
)
def test_a_directory_with_something_new_in_it_has_changed_too(rule: str, expected: list[str]) -> None:
    found = tree(
        Triple(D, file(2, 200), OLD_D, row(D, OLD_D, OLD_D)),
        Triple(F, None, OLD, row(F, OLD, OLD)),
        Triple(G, None, file(3, 300), row(G, OLD, OLD)),
        conflict=rule,
    )
    assert [outcome(found[path]) for path in (D, F, G)] == expected
    assert found[D].row == "10"
    copies = {path.decode(): one for path, one in found.items() if b".conflict-" in path}
    assert len(copies) == (3 if rule == "keep_both" else 0)
    assert all((one.status, one.what) == ("left", "left") for one in copies.values())


def test_both_versions_kept_of_a_directory_arrive_on_both_sides() -> None:
    found = tree(Triple(D, OLD, OLD_D, None), Triple(F, None, OLD, None), direction="both", conflict="keep_both")
    name = b"d.conflict-beta-19700101T000000Z"
    assert {path: (one.content, one.what) for path, one in found.items()} == {
        D: (HERE, "conflict"),
        F: (None, "dropped"),
        name: (THERE, "new"),
        name + b"/f": (THERE, "new"),
    }


def test_a_directory_with_something_unseen_in_it_is_not_replaced() -> None:
    found = tree(
        Triple(D, file(2, 200), OLD_D, row(D, OLD_D, OLD_D)),
        Triple(F, None, Unknown("closed"), row(F, OLD, OLD)),
        conflict="this_server_wins",
    )
    assert set(outcomes(found).values()) == {"nothing unchanged"}


def test_what_goes_along_is_decided_again_with_what_it_goes_along_with() -> None:
    together = tree(Triple(D, OLD_D, OLD, None), Triple(F, OLD, None, None), conflict="no_winner")
    assert (together[F].status, together[F].by) == ("unresolved", "")
    old = [row(D, OLD_D, OLD, "unresolved", by="conflict"), row(F, OLD, None, "unresolved")]
    still = tree(Triple(D, OLD_D, OLD, old[0]), Triple(F, OLD, None, old[1]), conflict="no_winner")
    assert [(one.row, one.status) for one in still.values()] == [("13", "unchanged")] * 2
    freed = tree(Triple(D, OLD_D, OLD_D, old[0]), Triple(F, OLD, None, old[1]), conflict="no_winner")
    assert outcomes(freed) == {"d": "nothing agreed", "d/f": "copy agreed"}


def test_the_root_has_metadata_and_is_never_deleted() -> None:
    one = plan(Triple(b"", ROOT._replace(mode=0o700), ROOT, row(b"", ROOT, ROOT))).decisions[0]
    assert (one.path, one.what, one.metadata) == (b"", "metadata", HERE)
    one = plan(Triple(b"", None, ROOT, row(b"", ROOT, ROOT))).decisions[0]
    assert (one.status, one.by) == ("unresolved", "guard")


def test_what_does_not_exist_is_no_decision() -> None:
    assert plan(Triple(b"", None, None, None)).decisions == []
    assert plan(Triple(b"x", OLD, OLD, row(b"x", OLD, OLD))).decisions == []


def test_of_a_file_alone_the_directory_does_not_count() -> None:
    root = Triple(b"", ROOT._replace(mode=0o700), ROOT, None)
    found = plan(root, Triple(b"x", file(2, 200), file(3, 300), None), one_file=True, conflict="keep_both")
    assert [(one.path, outcome(one)) for one in found.decisions] == [(b"x", "update agreed")]


# Both versions kept.


@pytest.mark.parametrize(
    ("path", "limit", "name"),
    [
        ("report.txt", 255, "report.conflict-beta-20010909T014640Z.txt"),
        ("a/b/archive.tar.gz", 255, "a/b/archive.tar.conflict-beta-20010909T014640Z.gz"),
        ("plain", 255, "plain.conflict-beta-20010909T014640Z"),
        (".profile", 255, ".profile.conflict-beta-20010909T014640Z"),
        ("ä" * 30 + ".txt", 66, "ä" * 15 + ".conflict-beta-20010909T014640Z.txt"),
        ("ä" * 30 + ".txt", 67, "ä" * 16 + ".conflict-beta-20010909T014640Z.txt"),
        ("x." + "e" * 64, 66, "x." + "e" * 33 + ".conflict-beta-20010909T014640Z"),
    ],
)
def test_the_name_of_a_conflict_copy(path: str, limit: int, name: str) -> None:
    here, there = file(2, 5), file(3, 1_000_000_000)
    found = decide(here, there, path=path.encode(), conflict="keep_both", name_max=limit)
    assert found.aside.decode() == name
    assert len(name.rpartition("/")[2].encode()) <= limit


def test_a_conflict_copy_takes_no_name_that_is_there() -> None:
    taken = b"x.conflict-beta-19700101T000140Z"
    rules: dict[str, Any] = {"conflict": "keep_both", "occupied": frozenset({taken})}
    triples = [Triple(b"x", file(2, 5), OLD, None), Triple(taken + b"-2", OLD, OLD, row(taken, OLD, OLD))]
    assert plan(*triples, **rules).decisions[0].aside == taken + b"-3"


def test_two_conflict_copies_whose_names_are_cut_to_the_same() -> None:
    names = [b"x" * 50 + letter + b".txt" for letter in (b"a", b"b")]
    triples = [Triple(path, file(2, 5), file(3, 6), None) for path in names]
    found = plan(*triples, conflict="keep_both", name_max=60)
    first, second = (one.aside for one in found.decisions if one.aside)
    assert second == first.replace(b"Z.txt", b"Z-2.txt").replace(b"xx.", b".")
    assert {one.path for one in found.decisions} == {*names, first, second}


def test_a_time_that_no_calendar_has_still_makes_a_name() -> None:
    for moment, name in ((-5, b"19700101T000000Z"), (1 << 62, b"99991231T235959Z")):
        there = file(3)._replace(mtime=moment * SECOND)
        assert decide(file(2), there, conflict="keep_both").aside.endswith(name)


def test_extraneous_spares_conflict_copies() -> None:
    for path in (b"x.conflict-beta-20010909T014640Z.txt", b"d/y.conflict-beta-20010909T014640Z-2/z"):
        one = decide(None, OLD, path=path, delete="extraneous")
        assert (outcome(one), one.by) == ("nothing left", "conflict")
    assert outcome(decide(None, OLD, path=b"x.conflict-ing", delete="extraneous")) == "delete dropped"


# Settings that were edited, guards, and a person's word.


@pytest.mark.parametrize(
    ("reopened", "by", "expected"),
    [
        ((), "conflict", "nothing unchanged"),
        (("delete",), "conflict", "nothing unchanged"),
        (("conflict",), "conflict", "update agreed"),
        (("conflict", "delete"), "guard", "nothing unchanged"),
    ],
)
def test_an_edited_rule_decides_again_what_it_decided(reopened: tuple[str, ...], by: str, expected: str) -> None:
    here, there = file(2, 200), file(3, 100)
    old = row(b"x", here, there, "kept", by=by)
    assert outcome(decide(here, there, old, reopened=frozenset(reopened))) == expected


def test_without_a_trusted_archive_nothing_is_deleted() -> None:
    one = decide(None, OLD, delete="extraneous", deletions=False)
    assert (one.status, one.by, one.what) == ("unresolved", "guard", "unresolved")
    assert "only on the partner" in one.reason
    later = decide(None, OLD, row(b"x", None, OLD, "unresolved", by="guard"), delete="extraneous")
    assert (later.row, later.status) == ("13", "unchanged")
    approved = decide(
        None, OLD, row(b"x", None, OLD, "unresolved", by="guard"), delete="extraneous", decided={b"x": HERE}
    )
    assert outcome(approved) == "delete dropped"
    # A person has to say so, whatever has become of it since; but one that is wanted again is no deletion.
    for there in (file(2, 200), OLD._replace(ctime=OLD.ctime + 1), link()):
        touched = decide(None, there, row(b"x", None, OLD, "unresolved", by="guard"), delete="extraneous", verify=True)
        assert (touched.status, touched.by, touched.remove) == ("unresolved", "guard", None)
    back = decide(file(2), OLD, row(b"x", None, OLD, "unresolved", by="guard"), delete="extraneous")
    assert outcome(back) == "update agreed"
    spared = decide(None, file(2, 200), row(b"x", None, OLD, "unresolved", by="guard"), delete="never")
    assert outcome(spared) == "nothing left"


@pytest.mark.parametrize(
    ("here", "there", "direction", "who", "expected"),
    [
        (file(2), file(3), "to_partner", HERE, "update agreed"),
        (file(2), file(3), "to_partner", THERE, "nothing kept"),
        (file(2), file(3), "to_partner", "both", "aside agreed"),
        (file(2), file(3), "both", THERE, "update agreed"),
        (None, file(3), "to_partner", HERE, "delete dropped"),
        (None, file(3), "to_partner", THERE, "nothing kept"),
        (None, file(3), "both", HERE, "delete dropped"),
        (None, file(3), "both", THERE, "copy agreed"),
        (file(2), None, "to_partner", HERE, "copy agreed"),
        (file(2), None, "to_partner", THERE, "nothing kept"),
        (file(2), None, "both", "both", "copy agreed"),
    ],
)
@pytest.mark.parametrize("suspicious", [frozenset(), frozenset({b"x"})])
def test_a_persons_word_goes_before_every_rule(
    here: Entry | None, there: Entry | None, direction: str, who: str, expected: str, suspicious: frozenset[bytes]
) -> None:
    old = row(b"x", here, there, "unresolved", by="conflict", base=(OLD, OLD))
    rules: dict[str, Any] = {"direction": direction, "decided": {b"x": who}, "delete": "never", "conflict": "no_winner"}
    assert outcome(decide(here, there, old, suspicious=suspicious, **rules)) == expected


def test_a_persons_word_goes_before_a_plain_update() -> None:
    triple = Triple(b"x", file(2, 200), OLD, row(b"x", OLD, OLD))
    assert outcome(plan(triple, decided={b"x": THERE}).decisions[0]) == "nothing kept"
    one = plan(triple, decided={b"x": THERE}, direction="both").decisions[0]
    assert (one.content, one.metadata) == (THERE, THERE)


def test_what_looks_like_a_crash_is_nobodys_to_decide() -> None:
    one = decide(file(0, 200), OLD, row(b"x", OLD, OLD), suspicious=frozenset({b"x"}), conflict="this_server_wins")
    assert (one.status, one.by) == ("unresolved", "guard")


def test_symbolic_links_that_are_not_preserved_are_left() -> None:
    rules: dict[str, Any] = {"preserve": frozenset({"times"})}
    assert outcome(decide(link(), None, **rules)) == "nothing left"
    assert outcome(decide(None, link(), delete="extraneous", **rules)) == "nothing left"
    left = row(b"x", link(), None, "left")
    assert decide(link(), None, left, **rules).row == "13"
    assert outcome(decide(link(), None, left)) == "copy agreed"


# Names.

CASE = {HERE: frozenset[str](), THERE: frozenset({"case"})}
NORMAL = {HERE: frozenset[str](), THERE: frozenset({"normalization"})}


@pytest.mark.parametrize(
    ("folding", "one", "two", "expected"),
    [
        (CASE, b"readme", b"README", "nothing unresolved"),
        (NORMAL, "é".encode(), "e\u0301".encode(), "nothing unresolved"),
        (NORMAL, b"readme", b"README", "copy agreed"),
        (CASE, b"a\xff", b"a\xfe", "copy agreed"),
    ],
)
def test_names_that_fall_together_on_a_replica(
    folding: dict[str, frozenset[str]], one: bytes, two: bytes, expected: str
) -> None:
    found = tree(Triple(one, OLD, None, None), Triple(two, OLD, None, None), folding=folding)
    assert set(outcomes(found).values()) == {expected}
    # The other way they are different names.
    back = tree(Triple(one, None, OLD, None), folding=folding, direction="from_partner")
    assert set(outcomes(back).values()) == {"copy agreed"}


def test_a_name_whose_namesake_goes_can_come() -> None:
    old = row(b"readme", OLD, OLD)
    triples = [Triple(b"README", OLD, None, None), Triple(b"readme", None, OLD, old)]
    assert outcomes(tree(*triples, folding=CASE)) == {"README": "copy agreed", "readme": "delete dropped"}
    assert set(outcomes(tree(*triples, folding=CASE, delete="never")).values()) == {"nothing unresolved"}
    waiting = row(b"README", OLD, None, "unresolved")
    alone = tree(Triple(b"README", OLD, None, waiting), Triple(b"readme", None, None, old), folding=CASE)
    assert outcomes(alone) == {"README": "copy agreed", "readme": "nothing dropped"}


def test_directories_that_fall_together_take_along_what_is_in_them() -> None:
    found = tree(
        Triple(b"D", OLD_D, None, None),
        Triple(b"D/x", OLD, None, None),
        Triple(D, OLD_D, None, None),
        Triple(b"d/y", OLD, None, None),
        folding=CASE,
    )
    assert set(outcomes(found).values()) == {"nothing unresolved"}


def test_namesakes_below_a_directory_that_takes_a_files_place() -> None:
    found = tree(
        Triple(D, OLD_D, OLD, row(D, OLD, OLD)),
        Triple(b"d/E", OLD_D, None, None),
        Triple(b"d/E/x", OLD, None, None),
        Triple(b"d/e", OLD, None, None),
        Triple(b"d/f", OLD, None, None),
        folding=CASE,
    )
    open_ = "nothing unresolved"
    assert outcomes(found) == {"d": "update agreed", "d/E": open_, "d/E/x": open_, "d/e": open_, "d/f": "copy agreed"}


def test_a_name_that_is_too_long() -> None:
    found = tree(Triple(b"x" * 11, OLD, None, None), Triple(b"y" * 10, OLD, None, None), name_max=10)
    assert outcomes(found) == {"x" * 11: "nothing unresolved", "y" * 10: "copy agreed"}


# The streams.

ENTRIES = st.sampled_from([file(1), file(2), directory()])
TREES = st.dictionaries(st.sampled_from([b"a", b"a.b", b"a/b", b"b", b"c\xff", b"d"]), ENTRIES)


@given(TREES, TREES, TREES, st.sets(st.sampled_from([b"a", b"b"])), st.sets(st.sampled_from([b"a", b"d"])))
def test_moved_is_what_differs_from_the_archive(
    here: dict[bytes, Entry],
    there: dict[bytes, Entry],
    agreed: dict[bytes, Entry],
    standing: set[bytes],
    racy: set[bytes],
) -> None:
    rows = [
        row(path, one, one, "kept" if path in standing else "agreed", racy="t" if path in racy else "")
        for path, one in sorted(agreed.items())
    ]
    by_path = {one.path: one for one in rows}
    expected = [
        Triple(path, here.get(path), there.get(path), by_path.get(path))
        for path in sorted(here.keys() | there.keys() | agreed.keys())
        if path in standing & agreed.keys()
        or path in racy & agreed.keys()
        or not here.get(path) == there.get(path) == agreed.get(path)
    ]
    mine, other = ([(path, one.record, one.more) for path, one in sorted(side.items())] for side in (here, there))
    assert list(moved(mine, other, rows)) == expected


def test_moved_does_not_miss_attributes_and_does_not_mind_digests() -> None:
    plain, known = OLD.record, OLD._replace(digest=b"1" * 16).more
    device = OLD._replace(rdev=3, xattrs=b"2" * 8)
    archived_rows = [
        row(b"a", OLD, OLD)._replace(here_more=known),
        row(b"b", device, device)._replace(there_more=device._replace(digest=b"1" * 16).more),
        row(b"c", OLD, OLD),
    ]
    here = [(b"a", plain, b""), (b"b", plain, device.more), (b"c", plain, b"")]
    assert list(moved(here, here, archived_rows)) == []
    other = [here[0], (b"b", plain, device._replace(xattrs=b"3" * 8).more), (b"c", plain, device.more)]
    assert [one.path for one in moved(here, other, archived_rows)] == [b"b", b"c"]


AGREED = file(1, 100)._replace(xattrs=b"2" * 8)


@pytest.mark.parametrize("side", [HERE, THERE])
@pytest.mark.parametrize(
    ("now", "known", "taken"),
    [
        pytest.param({"ctime": 900}, {}, True, id="touched"),
        pytest.param({}, {}, True, id="only-the-other"),
        pytest.param({"ctime": 900}, {"digest": b"1" * 16}, True, id="read-before"),
        pytest.param({"ctime": 1000}, {}, False, id="may-change-again-without-a-trace"),
        pytest.param({"ctime": 900, "mtime": 7}, {}, False, id="mtime"),
        pytest.param({"ctime": 900, "size": 7}, {}, False, id="size"),
        pytest.param({"ctime": 900, "inode": 17}, {}, False, id="inode"),
        pytest.param({"ctime": 900, "mode": 0o600}, {}, False, id="mode"),
        pytest.param({"ctime": 900, "uid": 7}, {}, False, id="owner"),
        pytest.param({"ctime": 900, "gid": 7}, {}, False, id="group"),
        pytest.param({"ctime": 900, "nlink": 2}, {}, False, id="another-name"),
        pytest.param({"ctime": 900, "nlink": 2}, {"nlink": 2}, False, id="names"),
        pytest.param({"ctime": 900, "xattrs": b""}, {}, False, id="attributes-gone"),
        pytest.param({"ctime": 900, "xattrs": b"3" * 8}, {}, False, id="attributes"),
        pytest.param({"xattrs": b"3" * 8}, {}, False, id="attributes-in-the-same-moment"),
        pytest.param({"ctime": 900, "rdev": 3}, {}, False, id="device"),
        pytest.param({"ctime": 900, "kind": "p"}, {}, False, id="kind"),
        pytest.param({"ctime": 900, "kind": "d", "nlink": 2}, {"kind": "d", "nlink": 2}, True, id="directory"),
        pytest.param({"ctime": 900, "kind": "l", "link": b"a b"}, {"kind": "l", "link": b"a b"}, True, id="link"),
        pytest.param({"ctime": 900, "kind": "l", "link": b"a"}, {"kind": "l", "link": b"a b"}, False, id="link-text"),
    ],
)
def test_what_was_only_touched_needs_no_decision(
    side: str, now: dict[str, Any], known: dict[str, Any], taken: bool
) -> None:
    before, other = AGREED._replace(**known), AGREED._replace(**{**known, "digest": b""}, inode=70)
    after = before._replace(**{"digest": b"", **now})
    # The other side is touched, too.
    mine, theirs = (after, other._replace(ctime=901)) if side == HERE else (other._replace(ctime=901), after)
    old = row(b"a", before, other) if side == HERE else row(b"a", other, before)
    restamped = Restamped((1000, 1000))
    items = [[(b"a", one.record, one.more)] for one in (mine, theirs)]
    found = list(moved(*items, [old], restamped))
    assert [bool(found), bool(restamped.rows)] == [not taken, taken]
    if taken and before != after:
        assert restamped.rows == [row(b"a", mine, theirs)]
    for standing in ("kept", "left", "unresolved"):
        assert list(moved(*items, [old._replace(status=standing)], Restamped((1000, 1000))))
    assert list(moved(*items, [old._replace(racy="h")], Restamped((1000, 1000))))
    assert list(moved(items[0], [], [old], Restamped((1000, 1000))))


@given(st.data(), st.sampled_from(["to_partner", "from_partner", "both"]))
def test_what_is_taken_as_touched_would_have_been_decided_as_agreed(data: st.DataObject, direction: str) -> None:
    entries = st.builds(
        file(1)._replace,
        kind=st.sampled_from(["f", "d"]),
        ctime=st.integers(1, 3),
        mtime=st.integers(1, 2),
        size=st.integers(1, 2),
        mode=st.sampled_from([0o644, 0o600]),
        inode=st.integers(1, 2),
    )
    here, there, known = (data.draw(entries) for _one in range(3))
    known_there = known._replace(inode=data.draw(st.integers(1, 2)), ctime=data.draw(st.integers(1, 3)))
    old = row(b"a", known, known_there)
    restamped = Restamped((1 << 62, 1 << 62))
    mine, other = ([(b"a", one.record, one.more)] for one in (here, there))
    list(moved(mine, other, [old], restamped))
    if restamped.rows:
        plan = reconcile([Triple(b"a", here, there, old)], plain_rules(direction=direction))
        assert not plan.needs
        for one in plan.decisions:
            assert (one.content, one.metadata, one.remove, one.status) == (None, None, None, "agreed")


def test_moved_tells_what_could_not_be_seen_from_what_is_absent() -> None:
    (one,) = moved([(b"a", b"", b"")], [], [row(b"a", OLD, OLD)])
    assert isinstance(one.here, Unknown)
    assert one.there is None


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [(directory(), None, True), (OLD, directory(), True), (directory(), directory(), False), (OLD, None, False)],
)
def test_below_a_directory_that_may_go_everything_counts(here: Seen, there: Seen, expected: bool) -> None:
    assert deep(Triple(b"d", here, there, row(b"d", OLD, OLD))) == expected
    assert not deep(Triple(b"d", here, there, None))


def test_moved_refuses_what_is_no_record() -> None:
    with pytest.raises(ValueError, match="unpack"):
        list(moved([(b"a", b"nonsense", b"")], [], []))


# The laws, on random histories.


@pytest.mark.parametrize("start", range(0, 3000, 500))
def test_histories(start: int) -> None:
    for number in range(start, start + 500):
        try:
            history(number)
        except AssertionError as error:
            raise AssertionError(f"history({number}) of tests/faults/reconcile_cases.py") from error


def test_the_same_plan_whatever_the_order() -> None:
    triples = [Triple(b"%d" % number, file(2), file(3, 200), None) for number in range(20)]
    rules: Rules = replace(plain_rules(), conflict="keep_both")
    assert reconcile(triples, rules) == reconcile(triples[::-1], rules)
