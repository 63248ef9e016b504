# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serversync.picture import CIRCLE, MOST_PLACES, circular, draw, drawings, fitting, overview, ranked

SVG = "{http://www.w3.org/2000/svg}"
NAMES = st.text(st.characters(), max_size=60)


def place(number: int, server: str, path: str = "/srv", circle: bool = False) -> dict[str, Any]:
    return {"id": number, "server": server, "path": path, "circle": circle}


def edge(source: int, target: int, job: str = "nightly", **more: Any) -> dict[str, Any]:
    return {"server": "a", "job": job, "source": source, "target": target, "both": False, "circle": False, **more}


def graph(places: list[dict[str, Any]], edges: list[dict[str, Any]], *inside: tuple[int, int]) -> dict[str, Any]:
    return {"places": places, "edges": edges, "inside": [{"inner": one, "outer": other} for one, other in inside]}


CIRCLES = graph(
    [place(0, "site", "/srv/x", True), place(1, "hq", "/srv/x", True), place(2, "hq", "/srv/x/y"), place(3, "dr")],
    [edge(0, 1, "there", circle=True), edge(1, 0, "back", circle=True), edge(2, 3, "away", both=True)],
    (2, 1),
)


def drawn(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))  # noqa: S314


def number(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name, "nan"))


@st.composite
def graphs(make: st.DrawFn) -> dict[str, Any]:
    servers = make(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    paths = make(st.lists(st.tuples(st.sampled_from(servers), NAMES), min_size=1, max_size=12, unique=True))
    places = [place(at, *one, circle=make(st.booleans())) for at, one in enumerate(paths)]
    ends = st.integers(0, len(places) - 1)
    edges = make(st.lists(st.builds(edge, ends, ends, NAMES, both=st.booleans(), circle=st.booleans()), max_size=12))
    return graph(places, edges, *make(st.lists(st.tuples(ends, ends), max_size=4)))


@given(graphs())
def test_whatever_is_called_how_all_is_inside_and_nothing_on_another(some: dict[str, Any]) -> None:
    for _title, text in drawings(some):
        svg = drawn(text)
        _left, _top, width, height = map(float, svg.get("viewBox", "").split())
        boxes = [*svg.iter(f"{SVG}rect")]
        assert len(boxes) == len({one["server"] for one in some["places"]})
        corners = [tuple(number(one, name) for name in ("x", "y", "width", "height")) for one in boxes]
        for left, top, wide, high in corners:
            assert left >= 0 and top >= 0 and left + wide <= width and top + high <= height
        for at, (left, top, wide, high) in enumerate(corners):
            for other_left, other_top, *_size in corners[:at]:
                assert not (left == other_left and top < other_top < top + high)
                assert left == other_left or abs(left - other_left) > wide
        assert len([*svg.iter(f"{SVG}path")]) == len(some["edges"])


def test_a_circle_is_dashed_and_marked_and_said() -> None:
    svg = drawn(draw(CIRCLES))
    arrows = {one.findtext(f"{SVG}title"): one for one in svg.iter(f"{SVG}path")}
    assert set(arrows) == {
        "there on a: site:/srv/x \u2192 hq:/srv/x, part of a circle",
        "back on a: hq:/srv/x \u2192 site:/srv/x, part of a circle",
        "away on a: hq:/srv/x/y \u2194 dr:/srv",
    }
    kinds = {title: one.get("class") for title, one in arrows.items()}
    assert [kind for title, kind in kinds.items() if title and "circle" in title] == ["arrow round"] * 2
    away = arrows["away on a: hq:/srv/x/y \u2194 dr:/srv"]
    assert (away.get("class"), away.get("marker-start"), away.get("marker-end")) == (
        "arrow",
        "url(#ahead)",
        "url(#ahead)",
    )
    marked = sorted(one.text or "" for one in svg.iter(f"{SVG}text") if (one.text or "").startswith(CIRCLE))
    assert marked == [f"{CIRCLE} /srv/x"] * 2 + [f"{CIRCLE} back", f"{CIRCLE} there"]
    assert svg.get("aria-label", "").startswith("3 servers and 3 connections, 2 of them in circles")


def test_there_and_back_are_two_lines() -> None:
    lines = [one.get("d") for one in drawn(draw(CIRCLES)).iter(f"{SVG}path") if one.get("class") == "arrow round"]
    assert len(set(lines)) == 2


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("", "0 0 0"),
        ("ab bc", "0 1 2"),
        ("ac bc", "0 0 1"),
        ("ab bc ac", "0 1 2"),
        ("cb ba", "2 1 0"),
        # What leads back does not count: the fewer arrows, or what goes on from those that are there.
        ("ab ab ba bc", "0 1 2"),
        ("ba ba ab", "1 0 0"),
        ("ab bc ca ab bc", "0 1 2"),
    ],
)
def test_servers_stand_along_the_way(pairs: str, expected: str) -> None:
    weights: dict[tuple[str, str], int] = {}
    for one, other in pairs.split():
        weights[one, other] = weights.get((one, other), 0) + 1
    ranks = ranked("abc", weights)
    assert " ".join(str(ranks[name]) for name in "abc") == expected


def test_many_paths_are_drawn_as_their_servers_and_circles_with_theirs() -> None:
    many = [place(at, f"site-{at}") for at in range(4, MOST_PLACES)] + [place(MOST_PLACES, "hq", "/srv/z")]
    some = graph(
        [*CIRCLES["places"], *many], [*CIRCLES["edges"], *(edge(at, MOST_PLACES) for at in range(4, MOST_PLACES))]
    )
    (title, circles), (whole, servers) = drawings(some)
    assert (title, whole) == ("What goes round in circles", "Servers, and what goes where")
    assert len([*drawn(circles).iter(f"{SVG}rect")]) == 2
    assert len([*drawn(servers).iter(f"{SVG}rect")]) == 3 + MOST_PLACES - 4


def test_an_overview_has_one_arrow_for_all_that_go_one_way() -> None:
    some = overview(CIRCLES)
    assert [(one["server"], one["path"], one["circle"]) for one in some["places"]] == [
        ("dr", "/srv", False),
        ("hq", "2 paths", True),
        ("site", "/srv/x", True),
    ]
    found = [(one["source"], one["target"], one["job"], one["both"], one["circle"]) for one in some["edges"]]
    assert found == [(0, 1, "away", True, False), (1, 2, "back", False, True), (2, 1, "there", False, True)]
    more = overview(graph(CIRCLES["places"], [*CIRCLES["edges"], edge(0, 2)]))
    assert [one["job"] for one in more["edges"]] == ["away", "back", "2 elements"]


def test_what_is_in_circles_is_what_is_marked() -> None:
    some = circular(CIRCLES)
    assert [one["id"] for one in some["places"]] == [0, 1] and len(some["edges"]) == 2 and some["inside"] == []


@pytest.mark.parametrize(
    ("said", "room", "beginning", "end"),
    [
        ("/srv/x", 6, "/srv/x", "/srv/x"),
        ("/srv/x", 5, "/srv\u2026", "\u2026rv/x"),
        ("\u6f22\u5b57", 4, "\u6f22\u5b57", "\u6f22\u5b57"),
        ("\u6f22\u5b57", 3, "\u2026", "\u2026"),
        ("", 0, "", ""),
    ],
)
def test_so_much_of_a_name_is_shown_as_there_is_room_for(said: str, room: int, beginning: str, end: str) -> None:
    assert (fitting(said, room), fitting(said, room, end=True)) == (beginning, end)


def test_nothing_is_drawn_of_nothing() -> None:
    assert drawings(graph([], [])) == []
