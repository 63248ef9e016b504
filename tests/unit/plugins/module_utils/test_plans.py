# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.serversync.core.plugins.module_utils._plans import would_change

HELD = {"what": "left", "path": "x", "by": "guard", "here": None, "there": "f 1"}
NEW = {"what": "new", "path": "n", "by": "", "here": "f 1", "there": None}
KEPT = {"what": "kept", "path": "k", "by": "delete", "here": None, "there": "f 1"}


def element(*decisions, guards=()):
    return {"path": "/srv/a", "decisions": list(decisions), "guards": list(guards)}


@pytest.mark.parametrize(
    ("now", "approved", "expected"),
    [
        (element(), None, False),
        (element(KEPT), None, False),
        (element(NEW), None, True),
        (element(NEW, guards=["9 of 10"]), None, False),
        # approved with a guard that stops it, without one, and without this element
        (element(NEW, guards=["9 of 10"]), element(NEW, guards=["9 of 10"]), True),
        (element(NEW, guards=["9 of 10"]), element(NEW), False),
        (element(NEW, guards=["9 of 10"]), {}, False),
        # a deletion that was held back, with a plan that lists it and one that does not
        (element(HELD), None, False),
        (element(HELD), element(HELD), True),
        (element(HELD), element(dict(HELD, path="y")), False),
        (element(HELD), element(dict(HELD, by="delete")), False),
        (element(KEPT), element(KEPT), False),
    ],
)
def test_check_mode_says_of_a_plan_what_a_run_does(now, approved, expected):
    assert would_change(now, approved) is expected
