# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of what goes where, as SVG: servers as boxes around their paths, in columns along the way of the data.

What is part of a circle is dashed, thick and marked by a sign, and not by its colour alone. Pure: the graph of
_topology in, text out.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from serversync.display import safe

Graph = Mapping[str, Any]
# What still can be looked at: more paths are drawn as their servers, and more servers not at all.
MOST_PLACES, MOST_SERVERS, MOST_NAMES = 160, 200, 60
BOX, GAP, ROW, HEAD, MARGIN, INDENT = 232, 160, 18, 24, 10, 10
# The gap below a box; how far an arrow is from the middle of its line.
BELOW, APART = 14, 3
# Letters that fit into a line of a box and into its title, and that an arrow's name may have.
LETTERS, TITLE, NAME = 33, 26, 20
CIRCLE = "\u21bb"


class Spot(NamedTuple):
    """Where a path is drawn: its box's column, and the middle of its line."""

    column: int
    y: float


class Line(NamedTuple):
    """A Bezier curve from one box to another, which is level where it begins and ends."""

    x: tuple[float, float, float, float]
    y: tuple[float, float]


def drawings(graph: Graph) -> list[tuple[str, str]]:
    """What can be drawn of a graph: titles and pictures."""
    if not graph["places"]:
        return []
    if len(graph["places"]) <= MOST_PLACES:
        return [("Servers, their paths, and what goes where", draw(graph))]
    found = []
    circles, servers = circular(graph), overview(graph)
    if 0 < len(circles["places"]) <= MOST_PLACES:
        found.append(("What goes round in circles", draw(circles)))
    if len(servers["places"]) <= MOST_SERVERS:
        found.append(("Servers, and what goes where", draw(servers)))
    return found


def circular(graph: Graph) -> Graph:
    """The part of a graph that goes round."""
    places = [place for place in graph["places"] if place["circle"]]
    known = {place["id"] for place in places}
    inside = [one for one in graph["inside"] if one["inner"] in known and one["outer"] in known]
    return {"places": places, "edges": [edge for edge in graph["edges"] if edge["circle"]], "inside": inside}


def overview(graph: Graph) -> Graph:
    """A graph with one place a server, and one edge for all that go from one to another."""
    of: dict[str, list[Mapping[str, Any]]] = {}
    for place in graph["places"]:
        of.setdefault(place["server"], []).append(place)
    numbers = {name: number for number, name in enumerate(sorted(of))}
    servers = {place["id"]: place["server"] for place in graph["places"]}
    places = [
        {
            "id": numbers[name],
            "server": name,
            "path": f"{len(some)} paths" if len(some) > 1 else some[0]["path"],
            "circle": any(place["circle"] for place in some),
        }
        for name, some in sorted(of.items())
    ]
    pairs: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for edge in graph["edges"]:
        ends = (numbers[servers[edge["source"]]], numbers[servers[edge["target"]]])
        # One that goes both ways is drawn once.
        pairs.setdefault(ends if not edge["both"] else (min(ends), max(ends)), []).append(edge)
    edges = [
        {
            "server": "",
            "job": some[0]["job"] if len(some) == 1 else f"{len(some)} elements",
            "source": source,
            "target": target,
            "both": any(edge["both"] for edge in some),
            "circle": any(edge["circle"] for edge in some),
        }
        for (source, target), some in sorted(pairs.items())
    ]
    return {"places": places, "edges": edges, "inside": []}


def draw(graph: Graph) -> str:
    boxes: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    depths = nested(graph)
    for place in sorted(graph["places"], key=lambda place: (place["server"], place["path"])):
        boxes.setdefault(place["server"], []).append((depths[place["id"]], place))
    servers = {place["id"]: place["server"] for place in graph["places"]}
    pairs = Counter((servers[edge["source"]], servers[edge["target"]]) for edge in graph["edges"])
    columns = arranged(boxes, {pair: weight for pair, weight in pairs.items() if pair[0] != pair[1]})
    tall = max(sum(height(boxes[name]) for name in column) for column in columns)
    shapes, spots = [], {}
    for number, column in enumerate(columns):
        top = MARGIN + (tall - sum(height(boxes[name]) for name in column)) / 2
        for name in column:
            shapes.append(box(name, boxes[name], number, top))
            for line, (_depth, place) in enumerate(boxes[name]):
                spots[place["id"]] = Spot(number, top + HEAD + ROW * (line + 0.5))
            top += height(boxes[name])
    places = {place["id"]: f"{place['server']}:{place['path']}" for place in graph["places"]}
    # Circles are drawn last, over all others.
    edges = sorted(graph["edges"], key=lambda edge: bool(edge["circle"]))
    lines = [line_of(edge, spots) for edge in edges]
    # What passes by a box is behind it.
    shapes[:0] = [arrow(edge, line, places) for edge, line in zip(edges, lines)]
    shapes += names(edges, lines) if len(edges) <= MOST_NAMES else []
    # What begins and ends in the last column bends beside it, with its name.
    bent = any(spots[edge["source"]].column == spots[edge["target"]].column == len(columns) - 1 for edge in edges)
    width = 2 * MARGIN + len(columns) * (BOX + GAP) - (0 if bent else GAP)
    tall += 2 * MARGIN - BELOW
    circles = sum(bool(edge["circle"]) for edge in edges)
    label = f"{len(boxes)} servers and {len(edges)} connections, {circles} of them in circles; the table has them all"
    size = f'width="{width}" height="{tall:g}" viewBox="0 0 {width} {tall:g}"'
    return f'<svg class="picture" {size} role="img" aria-label="{label}">{"".join(shapes)}</svg>'


# Heads of arrows, once for all pictures of a page.
MARKERS = (
    "<defs>"
    + "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="{size}" markerHeight="{size}" '
        'markerUnits="userSpaceOnUse" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z"/></marker>'
        for name, size in (("ahead", 9), ("round", 12))
    )
    + "</defs>"
)


def nested(graph: Graph) -> dict[int, int]:
    """How deep each place lies in others of its server."""
    outer = {one["inner"]: one["outer"] for one in graph["inside"]}
    depths = {}
    for place in graph["places"]:
        depth, at = 0, place["id"]
        while at in outer and depth < 4:
            depth, at = depth + 1, outer[at]
        depths[place["id"]] = depth
    return depths


def arranged(names: Iterable[str], weights: Mapping[tuple[str, str], int]) -> list[list[str]]:
    """The servers in columns, those that others get from left of these, and near to what they are connected with.

    weights: how many arrows lead from one to another.
    """
    ranks = ranked(names, weights)
    columns: list[list[str]] = [[] for _rank in range(max(ranks.values()) + 1)]
    for name in sorted(ranks):
        columns[ranks[name]].append(name)
    around: dict[str, list[str]] = {name: [] for name in ranks}
    for one, other in sorted(weights):
        around[one].append(other)
        around[other].append(one)
    for _pass in range(4):
        places = {name: at / len(column) for column in columns for at, name in enumerate(column)}
        for column in columns:
            column.sort(key=lambda name: (sum(map(places.__getitem__, around[name])) / (len(around[name]) or 1), name))
    return columns


def ranked(names: Iterable[str], weights: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """How many servers are before each on the longest way to it, without what leads back where it came from."""
    order = in_order(names, weights)
    places = {name: place for place, name in enumerate(order)}
    ranks = dict.fromkeys(order, 0)
    for source, target in sorted(weights, key=lambda pair: places[pair[0]]):
        if places[source] < places[target]:
            ranks[target] = max(ranks[target], ranks[source] + 1)
    return ranks


def in_order(names: Iterable[str], weights: Mapping[tuple[str, str], int]) -> list[str]:
    """The servers so that little leads back: greedily, from both ends (Eades, Lin and Smyth)."""
    first: list[str] = []
    last: list[str] = []
    rest = sorted(names)
    placed, left = set[str](), set(rest)
    while rest:
        leaving, coming, fed = Counter[str](), Counter[str](), Counter[str]()
        for (source, target), weight in weights.items():
            if source in placed:
                fed[target] += weight
            elif source in left and target in left:
                leaving[source] += weight
                coming[target] += weight
        end = next((name for name in rest if coming[name] and not leaving[name]), None)
        if end is not None:
            last.append(end)
        else:
            # Where all are alike, on from those that are there.
            end = max(rest, key=lambda name: (not coming[name], leaving[name] - coming[name], fed[name]))
            first.append(end)
            placed.add(end)
        rest.remove(end)
        left.remove(end)
    return [*first, *reversed(last)]


def height(lines: Sequence[Any]) -> float:
    """Of a box with the gap below it."""
    return HEAD + ROW * len(lines) + 6 + BELOW


def box(name: str, lines: Sequence[tuple[int, Mapping[str, Any]]], column: int, top: float) -> str:
    left = MARGIN + column * (BOX + GAP)
    parts = [f'<rect class="box" x="{left}" y="{top:g}" width="{BOX}" height="{height(lines) - BELOW:g}" rx="4"/>']
    parts.append(text(left + 8, top + 16, name, TITLE, "server"))
    for line, (depth, place) in enumerate(lines):
        sign = f"{CIRCLE} " if place["circle"] else ""
        kind = "path round" if place["circle"] else "path"
        room = LETTERS - len(sign) - depth * INDENT // 6
        parts.append(
            text(left + 8 + depth * INDENT, top + HEAD + ROW * (line + 0.5) + 4, place["path"], room, kind, sign)
        )
    return "".join(parts)


def text(left: float, base: float, said: str, room: int, kind: str, sign: str = "") -> str:
    whole = safe(said)
    shown = fitting(whole, room, end=kind != "server")
    title = f"<title>{escape(whole)}</title>" if shown != whole else ""
    return f'<text class="{kind}" x="{left:g}" y="{base:g}">{sign}{escape(shown)}{title}</text>'


def fitting(said: str, room: int, *, end: bool = False) -> str:
    """So much of a text as there is room for, in letters, of which some count for two; of a path the end says most."""
    kept = ""
    for letter in reversed(said) if end else said:
        room -= 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if room < 0:
            return f"\u2026{kept[:-1][::-1]}" if end else f"{kept[:-1]}\u2026"
        kept += letter
    return said


def line_of(edge: Mapping[str, Any], spots: Mapping[int, Spot]) -> Line:
    source, target = spots[edge["source"]], spots[edge["target"]]
    left = MARGIN + source.column * (BOX + GAP)
    other = MARGIN + target.column * (BOX + GAP)
    # A little above at its beginning and below at its end, so that there and back are two.
    y = source.y - APART, target.y + APART
    if source.column == target.column:
        bow = min(40 + abs(target.y - source.y) / 4, GAP - 20)
        return Line((left + BOX, left + BOX + bow, left + BOX + bow, left + BOX), y)
    if source.column < target.column:
        return Line((left + BOX, left + BOX + GAP / 2, other - GAP / 2, other), y)
    return Line((left, left - GAP / 2, other + BOX + GAP / 2, other + BOX), y)


def arrow(edge: Mapping[str, Any], line: Line, places: Mapping[int, str]) -> str:
    (start, first, second, end), (above, below) = line
    head = "round" if edge["circle"] else "ahead"
    heads = f'marker-end="url(#{head})"' + (f' marker-start="url(#{head})"' if edge["both"] else "")
    server = f" on {edge['server']}" if edge["server"] else ""
    way = "\u2194" if edge["both"] else "\u2192"
    said = f"{edge['job']}{server}: {places[edge['source']]} {way} {places[edge['target']]}"
    said += ", part of a circle" if edge["circle"] else ""
    drawn = f"M{start:g} {above:g}C{first:g} {above:g} {second:g} {below:g} {end:g} {below:g}"
    kind = "arrow round" if edge["circle"] else "arrow"
    return f'<path class="{kind}" d="{drawn}" {heads}><title>{escape(safe(said))}</title></path>'


def names(edges: Sequence[Mapping[str, Any]], lines: Sequence[Line]) -> Iterable[str]:
    """The job beside each arrow, at the end where it meets fewer others."""
    leaving, coming = Counter(edge["source"] for edge in edges), Counter(edge["target"] for edge in edges)
    for edge, (x, y) in zip(edges, lines):
        at, towards, base = x[0], x[1], y[0] - 3
        if leaving[edge["source"]] > coming[edge["target"]]:
            at, towards, base = x[3], x[2], y[1] + 10
        side = 1 if towards > at else -1
        kind = f"name {'right' if side > 0 else 'left'}{' round' if edge['circle'] else ''}"
        said = f"{CIRCLE} " if edge["circle"] else ""
        said += escape(fitting(safe(edge["job"]), NAME))
        yield f'<text class="{kind}" x="{at + 13 * side:g}" y="{base:g}">{said}</text>'
