# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/performance.md from what has been measured."""

from __future__ import annotations

import statistics
from typing import Any

HEAD = """<!--
SPDX-FileCopyrightText: serversync.core contributors
SPDX-License-Identifier: GPL-3.0-or-later
-->
# Performance, measured

Written by `make bench` from its last results; nothing else writes it. Ours and the peers run in turn on the same data,
through a real sshd on loopback, with the same fields preserved; caches are warm unless a line says otherwise. A time
counts only after an independent hash of the trees has said that the work was done. Times are medians with minimum and
maximum, in seconds. Where data is written, a peer's time includes the `sync -f` of its target, because ours has synced
before it ends; the column "bare" is without it, and for ours "then" is what a `sync -f` after it still took.
"""


def seconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def verdict(held: bool | None) -> str:
    return {True: "held", False: "**missed**", None: ""}[held]


def work(result: dict[str, Any]) -> list[str]:
    lines = [f"**{result['title']}** ({result['rounds']} rounds)", ""]
    lines += ["| | median | min to max | bare | then | ours : this | bar | |", "|---|---|---|---|---|---|---|---|"]
    ours = result["contenders"][0]
    for contender in result["contenders"]:
        counted = contender["counted"]
        span = f"{seconds(min(counted))} to {seconds(max(counted))}"
        writes = contender["writes"]
        mine = contender is ours
        bare = seconds(contender["unsynced"]) if writes and not mine else ""
        then = seconds(contender["then_sync"]) if writes and mine else ""
        ratio = "" if mine else f"{ours['median'] / contender['median']:.2f} x"
        bars = [one for one in result["bars"] if one["peer"] == contender["name"]] or [{"bar": "", "held": None}]
        for limit in bars:
            cells = [contender["name"], seconds(contender["median"]), span, bare, then, ratio, limit["bar"]]
            lines.append(f"| {' | '.join([*cells, verdict(limit['held'])])} |")
    return [*lines, ""]


def figures(facts: list[dict[str, Any]]) -> list[str]:
    lines = ["| | measured | bar | |", "|---|---|---|---|"]
    for fact in facts:
        limit = "" if fact["limit"] is None else f"≤ {fact['limit']:g} {fact['unit']}"
        lines.append(f"| {fact['name']} | {fact['value']:.4g} {fact['unit']} | {limit} | {verdict(fact['held'])} |")
    return [*lines, ""]


def case(name: str, result: dict[str, Any]) -> list[str]:
    lines = [f"## {name}: {result['title']}", ""]
    for each in result["works"]:
        lines += work(each)
    if result["facts"]:
        lines += figures(result["facts"])
    commands = {
        contender["name"]: contender["command"]
        for each in result["works"]
        for contender in each["contenders"]
        if contender["command"]
    }
    lines += [f"- {peer}: `{command}`" for peer, command in commands.items()]
    loads = [load for each in result["works"] for load in each["load"]]
    about = [f"took {result['took'] / 60:.1f} minutes"]
    if loads:
        about.insert(0, f"load average {min(loads):.1f} to {max(loads):.1f}")
    if result["left_out"]:
        about.append(f"settings that this runner does not know: {', '.join(result['left_out'])}")
    return [*lines, f"- {'; '.join(about)}", ""]


def number(name: str) -> tuple[int, str]:
    digits = "".join(letter for letter in name if letter.isdigit())
    # What has a name of its own comes after what is numbered.
    return int(digits or 1000), name


def render(results: dict[str, dict[str, Any]]) -> str:
    """The whole page. Cases that were measured elsewhere or at another time come under their own machine."""
    lines = [HEAD]
    judged = [
        entry["held"]
        for result in results.values()
        for entry in [*result["facts"], *(one for each in result["works"] for one in each["bars"])]
        if entry["held"] is not None
    ]
    lines += [f"{sum(judged)} of {len(judged)} bars held.", ""]
    machines: list[dict[str, Any]] = []
    for result in results.values():
        if result["environment"] not in machines:
            machines.append(result["environment"])
    for machine in machines:
        those = {name: result for name, result in results.items() if result["environment"] == machine}
        told = "; ".join(f"{key}: {value}" for key, value in machine.items())
        lines += [f"Measured for {', '.join(sorted(those, key=number))} on: {told}.", ""]
    for name in sorted(results, key=number):
        lines += case(name, results[name])
    return "\n".join(lines).rstrip() + "\n"


def summary(name: str, result: dict[str, Any]) -> str:
    """A few lines for the terminal."""
    lines = [f"{name}  {result['title']}"]
    for each in result["works"]:
        lines.append(f"  {each['title']}")
        ours = each["contenders"][0]["median"]
        for contender in each["contenders"]:
            counted = contender["counted"]
            bars = "; ".join(
                f"bar {one['bar']} {verdict(one['held'])}" for one in each["bars"] if one["peer"] == contender["name"]
            )
            spread = f"{min(counted):.3f} to {max(counted):.3f}"
            lines.append(
                f"    {contender['name']:<28}{statistics.median(counted):9.3f} s  {spread:<18}"
                f" ours {ours / contender['median']:.2f} x  {bars}"
            )
    for fact in result["facts"]:
        limit = "" if fact["limit"] is None else f"(bar ≤ {fact['limit']:g}, {verdict(fact['held'])})"
        lines.append(f"    {fact['name']}: {fact['value']:.4g} {fact['unit']} {limit}")
    return "\n".join(lines)
