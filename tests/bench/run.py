# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures cases and writes docs/performance.md.

python tests/bench/run.py                  the cases that are not behind their name only
python tests/bench/run.py P1 P3 --pairs 7  these
python tests/bench/run.py --list           what there is, and how long it takes
python tests/bench/run.py --report         only the page, from the last results
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.bench import report
from tests.bench.cases import CASES, carry_out
from tests.bench.measure import Wrong, say
from tests.loopback import PACKAGE, ROOT

RESULTS = Path(__file__).with_name("results.json")
PAGE = ROOT / "docs" / "performance.md"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", metavar="CASE", nargs="*", type=str.upper, help="P1, P2, ...")
    parser.add_argument("--pairs", type=int, default=7, metavar="N", help="rounds after a warm-up; 7 is what counts")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="share of the sizes: for trying a case")
    parser.add_argument("--directory", type=Path, default=ROOT / ".bench" / "work", help="where the trees are made")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--report", action="store_true", help="write the page from the last results and stop")
    chosen = parser.parse_args()
    unknown = set(chosen.cases) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))} (there are {', '.join(CASES)})")
    return chosen


def minutes(name: str, results: dict[str, dict[str, Any]], pairs: int) -> float:
    """As long as last time, where that was the same work."""
    last = results.get(name)
    if last and last["rounds"] == pairs and last["scale"] == 1:
        return float(last["took"]) / 60
    return CASES[name].minutes * (pairs + 1) / 8


def main() -> int:
    chosen = arguments()
    # The role compiles what it installs.
    compileall.compile_dir(PACKAGE, quiet=1)
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if chosen.list:
        for name, case in CASES.items():
            named = ", by name only" if case.by_name_only else ""
            say(f"{name:<5} {case.title} (about {minutes(name, results, chosen.pairs):.0f} minutes{named})")
        return 0
    if chosen.report:
        PAGE.write_text(report.render(results))
        return 0
    names = chosen.cases or [name for name, case in CASES.items() if not case.by_name_only]
    total = sum(minutes(name, results, chosen.pairs) for name in names) * (1 if chosen.scale == 1 else chosen.scale)
    say(f"{', '.join(names)}: about {total:.0f} minutes")
    others = [name for name in CASES if name not in names]
    if others and not chosen.cases:
        say(f"by name only: {', '.join(others)}")
    failed = []
    for name in names:
        say(f"\n{name}  {CASES[name].title}")
        try:
            result = carry_out(name, chosen.directory / name, chosen.pairs, chosen.scale)
        except (Wrong, AssertionError) as error:
            say(f"{name}: no result: {error}")
            failed.append(name)
            continue
        print(report.summary(name, result), flush=True)
        if chosen.scale == 1:
            # Only whole sizes are on record. Written after every case: the next one may be interrupted.
            results[name] = result
            temporary = RESULTS.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(results, indent=1) + "\n")
            temporary.replace(RESULTS)
            PAGE.write_text(report.render(results))
    if failed:
        say(f"\nno result: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
