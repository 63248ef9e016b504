# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""What elements of a job say of other paths than their own: which ones they require, and which they were. Pure."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from ._job import Problem, one_of, show


def check_requires(elements: Sequence[Mapping[str, Any]], problems: list[Problem]) -> None:
    """What is required is an element of this job, and no element has to wait for itself."""
    before = len(problems)
    paths = [element["path"] for element in elements]
    for number, element in enumerate(elements):
        others = [path for path in paths if path != element["path"]]
        for path in element["requires"]:
            if path in others:
                continue
            remedy = "use %s" % one_of(others) if others else "leave it out"
            text = "%s is not the path of another element of this job; %s" % (show(path), remedy)
            if path == element["path"]:
                text = "%s is the element itself; leave it out" % show(path)
            problems.append(Problem("invalid_value", "elements[%d].requires" % number, text))
    if len(problems) > before:
        return
    left = {element["path"]: element["requires"] for element in elements}
    while True:
        ready = [path for path, requires in left.items() if not any(one in left for one in requires)]
        if not ready:
            break
        for path in ready:
            del left[path]
    if not left:
        return
    # from anywhere in what is left one comes to a circle, and goes round
    way = [next(iter(left))]
    while way[-1] not in way[:-1]:
        way.append(next(path for path in left[way[-1]] if path in left))
    circle = way[way.index(way[-1]) :]
    text = "%s closes a circle (%s); leave one of them out" % (show(circle[1]), " requires ".join(circle))
    problems.append(Problem("conflict", "elements[%d].requires" % paths.index(circle[0]), text))


def check_previous(elements: Sequence[Mapping[str, Any]], problems: list[Problem]) -> None:
    """An archive is of one element: no other may have it or take it over."""
    taken = {element["path"]: "elements[%d].path" % number for number, element in enumerate(elements)}
    for number, element in enumerate(elements):
        path, at = element["previous_path"], "elements[%d]." % number
        if path is None:
            continue
        if path in taken:
            remedy = "leave it out" if taken[path] == at + "path" else "an archive is of one element, name another path"
            text = "%s is the same path as %s; %s" % (show(path), taken[path], remedy)
            problems.append(Problem("conflict", at + "previous_path", text))
        taken.setdefault(path, at + "previous_path")
