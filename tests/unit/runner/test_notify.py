# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from serversync.notify import event

ALL = ("failure", "conflict", "recovery", "success", "always")
USUAL = ("failure", "conflict", "recovery")


def run(state: str, *open_paths: str, guards: tuple[str, ...] = (), told: str = "", error: str | None = None) -> Any:
    entry = {
        "path": "/srv/a",
        "unresolved": list(open_paths),
        "standing": {"unresolved": len(open_paths)} if open_paths else {},
        "guards": list(guards),
    }
    sent = {"event": told, "to": ["a@b"], "error": error} if told else None
    return {"state": state, "elements": [entry], "notification": sent}


@pytest.mark.parametrize(
    ("record", "past", "wanted", "expected"),
    [
        (run("failed"), [], ALL, "failure"),
        (run("failed"), [], ("success",), None),
        (run("failed"), [], ("always",), "always"),
        (run("equal"), [], ALL, "success"),
        (run("equal_with_warnings"), [], ("success",), "success"),
        (run("equal"), [], USUAL, None),
        (run("equal"), [run("failed")], USUAL, "recovery"),
        (run("equal"), [run("different")], USUAL, "recovery"),
        (run("equal"), [run("skipped"), run("failed")], USUAL, "recovery"),
        (run("equal"), [run("equal"), run("failed")], USUAL, None),
        (run("equal"), [run("failed")], ("success",), "success"),
        (run("skipped"), [run("failed")], ALL, "always"),
        (run("skipped"), [], USUAL, None),
        (run("different", "x"), [], USUAL, "conflict"),
        (run("different", "x"), [run("equal")], USUAL, "conflict"),
        # Told, and the same since.
        (run("different", "x"), [run("different", "x", told="conflict")], USUAL, None),
        (run("different", "x"), [run("failed"), run("different", "x", told="conflict")], USUAL, None),
        (run("different", "x"), [run("different", "x", told="conflict")], ALL, "always"),
        (run("different", "x", "y"), [run("different", "x", told="conflict")], USUAL, "conflict"),
        (
            run("different", guards=("too many",)),
            [run("different", guards=("too many",), told="conflict")],
            USUAL,
            None,
        ),
        (
            run("different", guards=("12 of 13",)),
            [run("different", guards=("9 of 13",), told="conflict")],
            ALL,
            "conflict",
        ),
        # Not told: nobody asked then, or the mail did not go out.
        (run("different", "x"), [run("different", "x")], USUAL, "conflict"),
        (run("different", "x"), [run("different", "x", told="conflict", error="refused")], USUAL, "conflict"),
        # Well meanwhile.
        (run("different", "x"), [run("equal"), run("different", "x", told="conflict")], USUAL, "conflict"),
    ],
)
def test_what_a_run_is_to_those_who_are_told(
    record: dict[str, Any], past: list[dict[str, Any]], wanted: tuple[str, ...], expected: str | None
) -> None:
    assert event(record, past, wanted) == expected


@pytest.mark.parametrize(
    ("record", "past", "wanted", "late", "expected"),
    [
        # Well again, though no run was known to be bad.
        (run("equal"), [run("equal")], USUAL, ("mail",), "recovery"),
        (run("equal"), [], USUAL, ("mail", "notification.urls[0] (json)"), "recovery"),
        (run("equal"), [run("skipped"), run("equal")], ALL, ("mail",), "recovery"),
        (run("equal"), [run("equal")], ("success",), ("mail",), "success"),
        (run("equal"), [run("equal")], ("failure",), ("mail",), None),
        # Who was not told that it was late is told no end of it.
        (run("equal"), [run("equal")], USUAL, ("notification.urls[0] (json)",), None),
        (run("failed"), [run("equal")], USUAL, ("mail",), "failure"),
        (run("skipped"), [run("equal")], USUAL, ("mail",), None),
    ],
)
def test_the_first_good_run_of_a_job_that_was_late_is_a_recovery(
    record: dict[str, Any],
    past: list[dict[str, Any]],
    wanted: tuple[str, ...],
    late: tuple[str, ...],
    expected: str | None,
) -> None:
    assert event(record, past, wanted, "mail", late) == expected
