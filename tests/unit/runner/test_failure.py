# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the operating guide says of every failure is what the runner does."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import serversync

ROOT = Path(__file__).resolve().parents[3]
GUIDE = ROOT / "docs" / "operating.md"
SOURCES = sorted(Path(str(serversync.__file__)).parent.glob("*.py"))
ROW = re.compile(r"^\| (`[a-z_]+`(?:, `[a-z_]+`)*) \| [^|]+ \| (yes|no|either) \| [^|]+ \|$", re.MULTILINE)
# Given by errno or by what ssh says, not where a failure is made; the tables of both are tried elsewhere.
BY_TABLE = {"unreachable": "yes", "io": "no", "not_permitted": "no", "moved": "either"}


def guide() -> dict[str, str]:
    """Of every code whether the guide has it tried again."""
    return {code: again for codes, again in ROW.findall(GUIDE.read_text()) for code in re.findall("[a-z_]+", codes)}


def failures() -> Iterator[tuple[str, str]]:
    """Every code that the runner's text gives to a failure, and whether that one is tried again."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            if node.func.id not in ("Failure", "InvalidDocument"):
                continue
            transient = next((one.value for one in node.keywords if one.arg == "transient"), ast.Constant(value=False))
            again = {True: "yes", False: "no"}[transient.value] if isinstance(transient, ast.Constant) else "either"
            code = node.args[0]
            choices = [(code, again)]
            if isinstance(code, ast.IfExp):
                # Where the same decides both.
                by = ast.dump(transient) == ast.dump(code.test)
                choices = [(code.body, "yes" if by else again), (code.orelse, "no" if by else again)]
            for one, word in choices:
                if isinstance(one, ast.Constant):
                    yield str(one.value), word


def test_every_failure_is_in_the_guide_as_it_is() -> None:
    found = defaultdict(set)
    for code, again in failures():
        found[code].add(again)
    said = guide()
    assert set(found) - set(said) == set()
    classes = {code: next(iter(some)) if len(some) == 1 else "either" for code, some in found.items()}
    wrong = {code: (said[code], again) for code, again in {**classes, **BY_TABLE}.items() if said[code] != again}
    assert wrong == {}


def test_the_guide_has_no_failure_that_there_is_not() -> None:
    words = {
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert guide().keys() - words == set()
