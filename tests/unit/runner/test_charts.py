# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st
from serversync._states import SEVERITY
from serversync.charts import COLUMNS, HIGH, STEP, TALL, Mark, bars, column, strip

BOX = re.compile(r"M(\d+) (\d+)h(\d+)v(\d+)h-(\d+)z")
SVG = "{http://www.w3.org/2000/svg}"


def boxes(path: str) -> list[tuple[int, int, int, int]]:
    """left, top, width, height of what a path draws; it must be made of boxes alone."""
    assert BOX.sub("", path) == ""
    return [(int(left), int(top), int(width), int(height)) for left, top, width, height, _back in BOX.findall(path)]


def drawn(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))  # noqa: S314


def test_every_state_has_a_shape_of_its_own() -> None:
    assert set(COLUMNS) == {*SEVERITY, "none"}
    assert len(set(COLUMNS.values())) == len(COLUMNS)
    heights = [max(high for _low, high in COLUMNS[state]) for state in ("none", *SEVERITY)]
    assert heights == sorted(heights) and heights[-1] == HIGH


@given(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=90))
def test_a_strip_has_each_day_in_its_place(states: list[str]) -> None:
    svg = drawn(strip([Mark(state, f"<{state}> & more") for state in states], 'said "so"'))
    assert svg.get("aria-label") == 'said "so"' and svg.get("role") == "img"
    found: dict[int, list[str]] = {}
    titles = 0
    for path in svg.iter(f"{SVG}path"):
        title = path.find(f"{SVG}title")
        titles += title is not None
        assert title is None or title.text == f"<{path.get('class')}> & more"
        for left in sorted({left for left, *_rest in boxes(path.get("d", ""))}):
            found.setdefault(left // STEP, []).append(path.get("class", ""))
    assert found == {place: [state] for place, state in enumerate(states)}
    # What went well needs no words.
    assert titles == sum(state not in ("equal", "none") for state in states)


def test_a_column_stands_on_the_ground() -> None:
    assert boxes(column(3, "failed")) == [(18, 0, 5, 24)]
    assert boxes(column(0, "different")) == [(0, 15, 5, 9), (0, 3, 5, 9)]


@given(st.lists(st.floats(0, 1e15), max_size=90))
def test_bars_are_as_high_as_their_values(values: list[float]) -> None:
    (path,) = [*drawn(bars(values, "said")).iter(f"{SVG}path")] or [ElementTree.Element("path", d="")]
    found = {left // STEP: height for left, top, _width, height in boxes(path.get("d", "")) if top + height == TALL}
    assert set(found) == {place for place, value in enumerate(values) if value > 0}
    most = max(values, default=0)
    for place, height in found.items():
        assert 1 <= height <= TALL
        assert abs(height - TALL * values[place] / most) <= 1
    for one in found:
        assert all(found[one] <= found[other] for other in found if values[one] <= values[other])
