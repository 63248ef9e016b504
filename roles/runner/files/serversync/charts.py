# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drawings of a row of days as SVG: how the runs of each ended, and figures as bars. Pure: values in, text out.

Every state has a shape of its own beside its colour. There is no text in them, so that they may be drawn as wide as
there is room; whoever uses them says in words what they show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

# Units that a day is wide, with the gap behind it, and that a strip is high.
STEP, WIDE, HIGH = 6, 5, 24
# State -> the pieces of its column, from the bottom: where each begins and ends. A day without a run has a dash.
COLUMNS = {
    "equal": ((0, 7),),
    "equal_with_warnings": ((0, 7), (9, 12)),
    "skipped": ((0, 3), (5, 8), (10, 13)),
    "different": ((0, 9), (12, 21)),
    "failed": ((0, 24),),
    "none": ((0, 1),),
}
# Days that went well are drawn together; each of the others says what it is where one points at it.
QUIET = ("equal", "none")
# How high the bars of figures are drawn.
TALL = 48


class Mark(NamedTuple):
    """A day in a strip: its state, and what is said of it."""

    state: str
    title: str


def strip(days: Sequence[Mark], label: str) -> str:
    parts = [opening("strip", len(days) * STEP, HIGH, label)]
    for state in QUIET:
        shapes = "".join(column(place, state) for place, day in enumerate(days) if day.state == state)
        if shapes:
            parts.append(f'<path class="{state}" d="{shapes}"/>')
    for place, day in enumerate(days):
        if day.state not in QUIET:
            shape = column(place, day.state)
            parts.append(f'<path class="{day.state}" d="{shape}"><title>{escape(day.title)}</title></path>')
    return "".join([*parts, "</svg>"])


def column(place: int, state: str) -> str:
    """The path of a day's column; the first one is at place 0."""
    return "".join(box(place * STEP, HIGH - high, WIDE, high - low) for low, high in COLUMNS[state])


def bars(values: Sequence[float], label: str) -> str:
    """A bar a value, the largest as high as there is room, and none invisible that is not 0."""
    most = max(values, default=0)
    shapes = [box(place * STEP, TALL - high, WIDE, high) for place, high in enumerate(heights(values, most)) if high]
    drawn = f'<path d="{"".join(shapes)}"/>' if shapes else ""
    return f"{opening('bars', len(values) * STEP, TALL, label)}{drawn}</svg>"


def heights(values: Iterable[float], most: float) -> list[int]:
    return [max(round(TALL * value / most), 1) if value > 0 else 0 for value in values]


def opening(kind: str, width: int, height: int, label: str) -> str:
    """The begin of a drawing that is stretched to the room there is; label is all of it for whoever does not see it."""
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">'
    )


def box(left: int, top: int, width: int, height: int) -> str:
    return f"M{left} {top}h{width}v{height}h-{width}z"
