# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stops a plan before its first action. Pure."""

from __future__ import annotations

from typing import Optional, Union

from serversync.entry import HERE, Entry
from serversync.job import amount
from serversync.reconcile import Decision, Plan, Seen

# A share of few paths is soon reached by everyday work.
FEWEST = 10
Limit = Optional[Union[str, int]]


def tripped(plan: Plan, rows: int, max_delete: Limit, max_change: Limit, zeroed: int) -> list[str]:
    """Why the plan must not begin without a person's word; empty: it may.

    rows: paths in the archive; the limits: ``"25%"`` of these but never less than 10, a number, or None: no limit;
    zeroed: files whose contents have become nothing but zeros. Those and the ones that become empty count as changed
    even without a limit: then that of the archive's share that deletions have.
    """
    deleted = sum(one.remove is not None for one in plan.decisions)
    changed = sum(overwrites(one) for one in plan.decisions)
    emptied = sum(empties(one) for one in plan.decisions) + zeroed
    found = []
    most = limit(max_delete, rows)
    if most is not None and deleted > most:
        found.append(f"{deleted} paths would be deleted, more than the {most} that max_delete ({max_delete}) allows")
    most = limit(max_change, rows)
    if most is not None and changed + zeroed > most:
        found.append(
            f"{changed + zeroed} files would be overwritten, more than the {most} that max_change ({max_change}) allows"
        )
    elif max_change is None and (most := limit(max_delete, rows)) is not None and emptied > most:
        found.append(f"{emptied} files would become empty or zeros, more than {most}: contents look lost")
    return found


def limit(text: Limit, rows: int) -> int | None:
    """The number of paths, a share rounded down; None: there is no limit."""
    if text is None or text == "100%":
        return None
    number = amount(str(text), rows)
    return max(FEWEST, number) if str(text).endswith("%") else number


def versions(decision: Decision) -> tuple[Seen, Seen]:
    """What comes, and what it displaces."""
    return (decision.here, decision.there) if decision.content == HERE else (decision.there, decision.here)


def overwrites(decision: Decision) -> bool:
    """Whether contents on a replica are replaced by others."""
    if decision.content is None:
        return False
    coming, displaced = versions(decision)
    return isinstance(displaced, Entry) and isinstance(coming, Entry) and {coming.kind, displaced.kind} != {"d"}


def empties(decision: Decision) -> bool:
    coming, displaced = versions(decision)
    if not overwrites(decision) or not isinstance(coming, Entry) or not isinstance(displaced, Entry):
        return False
    return coming.kind == displaced.kind == "f" and coming.size == 0
