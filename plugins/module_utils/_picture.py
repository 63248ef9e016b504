# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""The picture of a fleet, in the languages of Mermaid and of Graphviz: servers, paths, what goes where, circles in red.

Everything here is pure: the graph of _topology in, text out.
"""

from __future__ import annotations

from typing import Any, Iterator, Mapping

_RED = "#c00000"


def _servers(graph: Mapping[str, Any]) -> Iterator[tuple[int, str, list[Mapping[str, Any]]]]:
    """Each server with its number and its paths."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for place in graph["places"]:
        found.setdefault(place["server"], []).append(place)
    for number, name in enumerate(sorted(found)):
        yield number, name, sorted(found[name], key=lambda place: str(place["path"]))


def mermaid(graph: Mapping[str, Any]) -> str:
    lines = ["flowchart LR"]
    for number, name, places in _servers(graph):
        lines.append('  subgraph s%d["%s"]' % (number, _in_mermaid(name)))
        lines += ['    p%d["%s"]' % (place["id"], _in_mermaid(place["path"])) for place in places]
        lines.append("  end")
    red = []
    for number, edge in enumerate(graph["edges"]):
        arrow = "<-->" if edge["both"] else "-->"
        lines.append('  p%d %s|"%s"| p%d' % (edge["source"], arrow, _in_mermaid(edge["job"]), edge["target"]))
        if edge["circle"]:
            red.append(number)
    lines += ["  p%d -.- p%d" % (one["outer"], one["inner"]) for one in graph["inside"]]
    if red:
        lines.append("  linkStyle %s stroke:%s,stroke-width:3px" % (",".join(map(str, red)), _RED))
    lines += ["  style p%d stroke:%s" % (place["id"], _RED) for place in graph["places"] if place["circle"]]
    return "\n".join(lines) + "\n"


def _in_mermaid(text: str) -> str:
    """Quotes and what begins an entity as entities, and so is what Markdown and HTML would read."""
    return "".join("#%d;" % ord(char) if char in '"#&<>`*_\\[]|' else char for char in text)


def dot(graph: Mapping[str, Any]) -> str:
    lines = ["digraph serversync {", "  rankdir=LR;", "  node [shape=box];"]
    for number, name, places in _servers(graph):
        lines += ["  subgraph cluster_%d {" % number, "    label=%s;" % _in_dot(name)]
        for place in places:
            color = ', color="%s"' % _RED if place["circle"] else ""
            lines.append("    p%d [label=%s%s];" % (place["id"], _in_dot(place["path"]), color))
        lines.append("  }")
    for edge in graph["edges"]:
        words = "label=" + _in_dot(edge["job"])
        words += ", dir=both" if edge["both"] else ""
        words += ', color="%s", penwidth=2' % _RED if edge["circle"] else ""
        lines.append("  p%d -> p%d [%s];" % (edge["source"], edge["target"], words))
    lines += ["  p%d -> p%d [style=dotted, dir=none];" % (one["outer"], one["inner"]) for one in graph["inside"]]
    return "\n".join([*lines, "}"]) + "\n"


def _in_dot(text: str) -> str:
    return '"%s"' % text.replace("\\", "\\\\").replace('"', '\\"')
