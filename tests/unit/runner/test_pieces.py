# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan in pieces: nothing before what it needs, nothing cut that belongs together, nothing lost, none too large."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serversync.entry import HERE, THERE, Entry
from serversync.pieces import pieces
from serversync.reconcile import Decision

NAME = st.sampled_from([b"a", b"a-", b"a.b", b"b", b"c"])
PATH = st.lists(NAME, min_size=1, max_size=4).map(b"/".join)


def entry(kind: str, *, size: int = 0, mode: int = 0o755) -> Entry:
    return Entry(kind, 1, 1, 1, size, mode, 0, 0, 1)


def decision(path: bytes, here: Entry | None, there: Entry | None = None, **more: object) -> Decision:
    given: dict[str, object] = {"content": None, "metadata": None, "remove": None, "aside": b"", **more}
    return Decision(path, "2", "new", status="agreed", by="", reason="", here=here, there=there, **given)  # type: ignore[arg-type]


def new(path: bytes, kind: str = "f", **more: int) -> Decision:
    return decision(path, entry(kind, **more), content=HERE, metadata=HERE)


def gone(path: bytes, kind: str = "f") -> Decision:
    return decision(path, None, entry(kind), remove=THERE)


def named(parts: list[list[Decision]]) -> list[list[bytes]]:
    return [[one.path for one in part] for part in parts]


def cut(decisions: list[Decision], *ties: list[bytes], entries: int = 3, size: int = 1000) -> list[list[bytes]]:
    return named([*pieces(sorted(decisions), ties, entries, size)])


def tree(top: bytes, count: int, **more: int) -> list[Decision]:
    return [new(top, "d", **more), *(new(b"%b/%d" % (top, number)) for number in range(count))]


def test_a_small_plan_is_one_piece_as_it_is() -> None:
    assert cut([gone(b"d", "d"), gone(b"d/x")]) == [[b"d", b"d/x"]]


def test_a_piece_ends_with_as_many_decisions() -> None:
    assert cut([new(name) for name in (b"a", b"b", b"c", b"d")]) == [[b"a", b"b", b"c"], [b"d"]]


def test_a_piece_ends_with_as_many_bytes() -> None:
    assert cut([new(b"a", size=1000), new(b"b", size=10), new(b"c")]) == [[b"a"], [b"b", b"c"]]


def test_a_new_directory_is_not_cut() -> None:
    assert cut([new(b"a"), new(b"b"), *tree(b"d", 2), new(b"e")]) == [
        [b"a", b"b", b"d", b"d/0", b"d/1"],
        [b"e"],
    ]


def test_a_new_directory_that_is_larger_than_a_piece_is_made_first() -> None:
    assert cut(tree(b"d", 4)) == [[b"d", b"d/0", b"d/1"], [b"d/2", b"d/3"]]


def test_one_that_its_owner_cannot_write_in_is_not_cut() -> None:
    assert cut([*tree(b"d", 4, mode=0o555), new(b"e")]) == [
        [b"d", b"d/0", b"d/1", b"d/2", b"d/3"],
        [b"e"],
    ]


def test_one_in_the_place_of_a_file_is_not_cut() -> None:
    [_top, *inner] = tree(b"d", 4)
    top = decision(b"d", entry("d"), entry("f"), content=HERE, metadata=HERE)
    assert len(cut([top, *inner])) == 1


def test_a_directory_goes_after_what_is_in_it() -> None:
    assert cut([gone(b"d", "d"), gone(b"d-"), *(gone(b"d/%d" % number) for number in range(3))]) == [
        [b"d/0", b"d/1", b"d/2"],
        [b"d", b"d-"],
    ]


def test_a_file_takes_the_place_of_a_directory_after_what_was_in_it() -> None:
    top = decision(b"d", entry("f"), entry("d"), content=HERE, metadata=HERE)
    assert cut([top, *(gone(b"d/%d" % number) for number in range(3))]) == [[b"d/0", b"d/1", b"d/2"], [b"d"]]


def test_the_metadata_of_a_directory_come_after_what_is_put_into_it() -> None:
    top = decision(b"d", entry("d", mode=0o555), entry("d"), metadata=HERE)
    root = decision(b"", entry("d", mode=0o555), entry("d"), metadata=HERE)
    assert cut([root, top, *(new(b"d/%d" % number) for number in range(3))]) == [
        [b"d/0", b"d/1", b"d/2"],
        [b"d", b""],
    ]


def test_the_names_of_a_file_are_not_cut() -> None:
    names = [new(name) for name in (b"a", b"b", b"c", b"d", b"e", b"f")]
    assert cut(names, [b"a", b"f"], entries=2) == [[b"b", b"c"], [b"d", b"e"], [b"a", b"f"]]


def test_a_directory_waits_for_names_that_are_not_cut() -> None:
    removed = [gone(b"d", "d"), gone(b"d/x"), gone(b"d/y"), new(b"e"), gone(b"z")]
    assert cut(removed, [b"d/x", b"z"], entries=2) == [[b"d/y", b"e"], [b"d/x", b"z"], [b"d"]]


def test_names_within_a_new_directory_are_not_torn_out() -> None:
    assert cut([*tree(b"d", 2), new(b"e")], [b"d/0", b"d/1"])[0] == [b"d", b"d/0", b"d/1"]


@st.composite
def plans(draw: st.DrawFn) -> list[Decision]:
    """Any tree of changes that a plan may have: what is below a path fits what becomes of that."""
    found: dict[bytes, Decision] = {}
    for path in sorted(draw(st.sets(PATH, max_size=25))):
        above = path
        while above := above.rpartition(b"/")[0]:
            if above in found:
                break
        within = found.get(above)
        kind = draw(st.sampled_from("dddff"))
        if within is not None and within.remove:
            found[path] = gone(path, kind)
        elif within is not None and within.content and within.here is not None and within.here.kind == "d":
            found[path] = new(path, kind, mode=draw(st.sampled_from([0o755, 0o555])))
        elif within is not None and within.content:
            # A file takes the place of its directory, or it is below a file.
            if within.there is not None and within.there.kind == "d":
                found[path] = gone(path, kind)
        elif within is None or within.here.kind == "d":  # type: ignore[union-attr]
            what = draw(st.sampled_from(["new", "gone", "metadata", "to file", "to directory"]))
            found[path] = {
                "new": new(path, kind),
                "gone": gone(path, kind),
                "metadata": decision(path, entry(kind), entry(kind), metadata=HERE),
                "to file": decision(path, entry("f"), entry("d"), content=HERE, metadata=HERE),
                "to directory": decision(path, entry("d"), entry("f"), content=HERE, metadata=HERE),
            }[what]
    return sorted(found.values())


@settings(max_examples=500)
@given(plans(), st.integers(1, 8), st.data())
def test_whatever_the_plan(plan: list[Decision], entries: int, data: st.DataObject) -> None:
    files = [one.path for one in plan if "f" in (getattr(one.here, "kind", "f"), getattr(one.there, "kind", "f"))]
    files = [path for path in files if not any(other.path.startswith(path + b"/") for other in plan)]
    ties = [data.draw(st.lists(st.sampled_from(files), min_size=2, max_size=4))] if files else []
    parts = [*pieces(plan, ties, entries, 1 << 30)]
    number = {one.path: index for index, part in enumerate(parts) for one in part}
    assert sorted(one.path for part in parts for one in part) == [one.path for one in plan]
    for tie in ties:
        assert len({number[path] for path in tie}) == 1
    for one in plan:
        for inner in plan:
            if not inner.path.startswith(one.path + b"/"):
                continue
            if one.there is not None and one.there.kind == "d":  # type: ignore[union-attr]
                assert number[one.path] >= number[inner.path]
            else:
                assert number[one.path] <= number[inner.path]


@pytest.mark.parametrize("count", [100, 1000])
def test_no_piece_is_much_larger_than_asked(count: int) -> None:
    plan = [one for top in range(10) for one in tree(b"%d" % top, count // 10)]
    parts = [*pieces(sorted(plan), [], 20, 1 << 30)]
    assert max(map(len, parts)) <= 40
