# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""What a plan of the runner says that a run would do."""

from __future__ import annotations

from typing import Any, Mapping

from ._records import printable

#: What of a plan a run would do; the rest stays as it is.
_ACTIONS = ("new", "update", "metadata", "append", "delete", "conflict")
_SIGNS = {
    "new": "+",
    "append": "+",
    "update": "~",
    "metadata": "~",
    "delete": "-",
    "conflict": "!",
    "unresolved": "!",
    "kept": "=",
    "left": "=",
}
_ARROWS = {"to_partner": "->", "from_partner": "<-", "both": "<->"}
#: Lines of an element in a diff; a first copy may have a million.
_LINES = 1000


def would_change(element: Mapping[str, Any], approved: Mapping[str, Any] | None) -> bool:
    """Whether a run would change anything of an element; one that a guard stops does not.

    `approved`: the element in the plan that is approved; it lets what that lists pass its guards.
    """
    stored = approved or {}
    if element["guards"] and not stored.get("guards"):
        return False
    held = {one["path"] for one in stored.get("decisions", ()) if _is_held_back(one)}
    return any(one["what"] in _ACTIONS or (one["path"] in held and _is_held_back(one)) for one in element["decisions"])


def _is_held_back(decision: Mapping[str, Any]) -> bool:
    """Whether it is a deletion that waits for a person's word."""
    return decision.get("by") == "guard" and (decision.get("here") is None) != (decision.get("there") is None)


def counts(element: Mapping[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in element["decisions"]:
        found[one["what"]] = found.get(one["what"], 0) + 1
    return found


def _line(text: str) -> str:
    """Text in one line, without what could steer a terminal."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def plan_diff(plan: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a run would do, an entry an element: a line a path, as `serversync plan` shows it."""
    entries = []
    for element in plan["elements"]:
        arrow = _ARROWS[element["direction"]]
        lines = ["%s %s %s:%s" % (element["path"], arrow, plan["partner"], element["partner_path"])]
        shown = element["decisions"][:_LINES]
        lines += ["%s %s  (%s)" % (_SIGNS.get(one["what"], "?"), one["path"] or ".", one["reason"]) for one in shown]
        if len(element["decisions"]) > len(shown):
            lines.append("... and %d more" % (len(element["decisions"]) - len(shown)))
        lines += ["stops before its first change: %s" % guard for guard in element["guards"]]
        lines += element["warnings"]
        if len(lines) > 1:
            entries.append({"prepared": "".join(_line(printable(line)) + "\n" for line in lines)})
    return entries
