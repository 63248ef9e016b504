# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands print: tables and lines, with nothing in a name that could steer a terminal."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from serversync._states import worst
from serversync.entry import Entry, Row

SIGNS = {
    "new": "+",
    "update": "~",
    "metadata": "~",
    "delete": "-",
    "append": "+",
    "conflict": "!",
    "unresolved": "!",
    "kept": "=",
    "left": "=",
    "unknown": "?",
}
ARROWS = {"to_partner": "->", "from_partner": "<-", "both": "<->"}


def safe(text: object) -> str:
    """Control characters, line separators and undecodable bytes as ``\\xNN`` or ``\\uNNNN``."""
    shown = []
    for character in str(text):
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            shown.append(f"\\x{code - 0xDC00:02x}")
        elif character.isprintable():
            shown.append(character)
        else:
            shown.append(f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
    return "".join(shown)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")
    for column in columns:
        # A job's name is what one types next, a state is one word.
        justify: Literal["left", "right"] = "right" if column in NUMBERS else "left"
        grid.add_column(column, overflow="fold", justify=justify, no_wrap=column in ("job", "run", "state", "after"))
    for row in rows:
        grid.add_row(*(Text(lines(cell), style=colour(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(grid)


def colour(cell: object) -> str:
    """That of its last line, where it has several."""
    return COLOURS.get(str(cell[-1] if isinstance(cell, tuple) else cell), "")


def lines(cell: object) -> str:
    """A cell's text; only a tuple has several lines."""
    return "\n".join(map(safe, cell)) if isinstance(cell, tuple) else safe(cell)


NUMBERS = {"bytes", "config", "conflicts", "copied", "deleted", "duration", "entries", "new", "tries", "updated"}
COLOURS = {
    "equal": "green",
    "failed": "bold red",
    "different": "yellow",
    "skipped": "yellow",
    "late": "bold red",
    "invalid": "bold red",
    "running": "cyan",
    "waiting": "yellow",
}


LONG = "%Y-%m-%d %H:%M:%S"
# The table of jobs has many columns.
SHORT = "%m-%d %H:%M"
# In minutes.
LASTING = (("day", 24 * 60), ("hour", 60))


def local_time(text: str | None, form: str = LONG) -> str:
    """An ISO time of a record, in this server's own time zone."""
    return datetime.fromisoformat(text).astimezone().strftime(form) if text else "-"


def duration(record: dict[str, Any]) -> str:
    if not record["ended"]:
        return "-"
    span = datetime.fromisoformat(record["ended"]) - datetime.fromisoformat(record["started"])
    return f"{span.total_seconds():.1f} s"


def lasting(span: timedelta) -> str:
    """In whole units of the largest of which there are two: ``47 hours``, ``2 days``."""
    minutes = max(0, int(span.total_seconds()) // 60)
    unit, count = next(((unit, minutes // size) for unit, size in LASTING if minutes >= 2 * size), ("minute", minutes))
    return f"{count} {unit}{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """Bytes with a binary prefix: 1536 -> ``1.5 KiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def show_record(record: dict[str, Any], *, followed: bool = False) -> None:
    """One run with its attempts, elements and errors; followed: its own lines have told of these, and of its mail."""
    print(
        safe(
            f"{record['job']}: {record['state']} (run {record['run']}, {record['trigger']}, configuration "
            f"{record['configuration']}, {local_time(record['started'])}, {duration(record)}, {record['partner']})"
        )
    )
    if record["elements"]:
        table(
            ("element", "before", "after", "entries", "new", "updated", "deleted", "conflicts", "bytes"),
            (
                (
                    (entry["path"], f"{ARROWS[entry['direction']]} {entry['partner_path']}"),
                    entry["state_before"] or "-",
                    entry["state_after"] or "-",
                    entry["files"],
                    entry["created"],
                    entry["updated"] + entry["attributes"],
                    entry["deleted"],
                    entry["conflicts"] + entry["standing"].get("unresolved", 0),
                    size(entry["bytes"]),
                )
                for entry in record["elements"]
            ),
        )
    for line in units(record):
        print(safe(line))
    # Where no element was begun, no line has told why.
    if not followed or not record["elements"]:
        show_errors(record)
    if record.get("retry"):
        print(f"attempt {len(record['attempts']) + 1} at {local_time(record['retry']['at'])}")
    for entry in record["elements"]:
        show_element(entry, record["job"], record["plan"])
    notification = record["notification"]
    if notification and not followed:
        mail = f"mail to {', '.join(notification['to'])}"
        if notification["error"]:
            print(safe(f"{mail} failed: {notification['error']}"))
        elif notification["to"]:
            # Records of earlier versions have neither of these.
            waits = notification.get("waits")
            print(safe(f"{mail} waits: {waits}" if waits else f"{mail} handed over"))
        for one in notification.get("urls", ()):
            print(safe(f"{one['url']} failed: {one['error']}" if one["error"] else f"{one['url']} sent"))


def units(record: dict[str, Any]) -> list[str]:
    """What became of the administrator's units around a run."""
    return [
        f"{phase} {one['unit']}: {describe(one['error']) if one['error'] else f'done, {duration(one)}'}"
        for phase in ("before", "after")
        for one in record.get(phase, ())  # records of earlier versions have none
    ]


def show_errors(record: dict[str, Any]) -> None:
    """Attempt by attempt where there were several, then those that stayed, each once."""
    if len(record["attempts"]) > 1:
        for attempt in record["attempts"]:
            met = "; ".join(describe(error) for error in attempt["errors"])
            print(safe(f"attempt {attempt['number']}, {local_time(attempt['started'])}: {attempt['state']} {met}"))
    errors = [record["error"], *(entry["error"] for entry in record["elements"])]
    for text in dict.fromkeys(describe(error) for error in errors if error):
        print(f"error: {safe(text)}")


def show_element(entry: dict[str, Any], job: str, plan: str | None) -> None:
    """What a run says of an element beside its row in the table."""
    told = [*entry["warnings"], *(f"stopped before the first change: {guard}" for guard in entry["guards"])]
    for text in told:
        print(f"{safe(entry['path'])}: {safe(text)}")
    if entry.get("lines"):  # records of earlier versions have none
        print(f"{safe(entry['path'])}: {entry['lines']} lines appended")
    for problem in entry["problems"]:
        if not entry["error"] or problem not in entry["error"]["message"]:
            print(f"  {safe(problem)}")
    for one in entry["paths"]:
        print(f"  {SIGNS[one['what']]} {safe(one['path']) or '.'}: {safe(one['reason'])}")
    if entry["guards"]:
        print(f"  see what it would do: serversync plan {job}; let it: serversync run {job} --approve {plan or 'PLAN'}")
    if entry["standing"].get("unresolved"):
        print(f"  decide: serversync conflicts {job}; serversync resolve {job} PATH --use this_server|partner|both")


def describe(error: dict[str, Any]) -> str:
    return f"{error['field']}: {error['message']}" if error["field"] else str(error["message"])


def show_plan(plan: dict[str, Any]) -> None:
    for element in plan["elements"]:
        arrow = ARROWS[element["direction"]]
        print(f"{safe(element['path'])} {arrow} {safe(plan['partner'])} {safe(element['partner_path'])}")
        for one in element["decisions"]:
            print(f"  {SIGNS[one['what']]} {safe(one['path']) or '.'}  ({safe(one['reason'])})")
        for text in (*element["warnings"], *(f"stops before its first change: {it}" for it in element["guards"])):
            print(f"  {safe(text)}")
        if element["error"]:
            print(f"  error: {safe(describe(element['error']))}")
        counts = Counter(one["what"] for one in element["decisions"])
        names = ("new", "update", "metadata", "append", "delete", "conflict", "unresolved", "kept", "left", "unknown")
        totals = ", ".join(f"{counts[name]} {name}" for name in names if counts[name])
        moved = size(sum(one["bytes"] for one in element["decisions"]))
        if totals or not element["error"]:
            print(f"  {totals or 'nothing to do'}{f', {moved} of files' if totals else ''}")
        if element["unresolved"]:
            print(f"  {element['unresolved']} unresolved, for a person to decide: serversync conflicts {plan['job']}")
    print(f"plan {plan['plan']}")


def show_conflicts(elements: list[dict[str, Any]], job: str) -> None:
    """What stands unresolved, with both versions."""
    rows = [
        (entry["path"], one["path"] or ".", one["this_server"], one["partner"])
        for entry in elements
        for one in entry["conflicts"]
    ]
    if not rows:
        print(f"{job} has no unresolved paths")
        return
    table(("element", "path", "this server", "partner"), rows)
    print(f"decide: serversync resolve {job} PATH --use this_server|partner|both")


def in_words(row: Row) -> dict[str, str]:
    """An unresolved path with both versions, and why it waits for a person."""
    return {
        "path": os.fsdecode(row.path),
        "this_server": entry_in_words(row.here, row.here_more),
        "partner": entry_in_words(row.there, row.there_more),
        "reason": disagreement(row),
    }


def disagreement(row: Row) -> str:
    if row.by == "guard":
        return "held back by a guard"
    if row.here is not None and row.there is not None:
        return "changed on both servers" if row.base else "different, never agreed"
    has, lacks = ("the partner", "this server") if row.here is None else ("this server", "the partner")
    return f"deleted on {lacks}, changed on {has}" if row.base else f"only on {has}"


KINDS = {
    "f": "file",
    "d": "directory",
    "l": "link",
    "p": "fifo",
    "s": "socket",
    "b": "block device",
    "c": "character device",
}


def entry_in_words(record: bytes | None, more: bytes) -> str:
    if record is None:
        return "absent"
    entry = Entry.parse(record, more)
    try:
        when = datetime.fromtimestamp(entry.mtime / 1e9).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        when = f"{entry.mtime // 1_000_000_000} s since 1970"
    size = f", {entry.size} bytes" if entry.kind == "f" else ""
    return f"{KINDS[entry.kind]}{size}, {when}, mode {entry.mode:o}, {entry.uid}:{entry.gid}"


def show_versions(elements: list[dict[str, Any]], job: str) -> None:
    rows = [
        (one["run"], one["server"], entry["path"], one["path"], size(one["bytes"]))
        for entry in elements
        for one in entry["versions"]
    ]
    if not rows:
        print(f"{job} has no versions of that")
        return
    table(("run", "server", "element", "path", "bytes"), rows)
    print(f"bring one back: serversync restore {job} PATH --run RUN")


def show_findings(findings: dict[str, list[dict[str, str]]]) -> None:
    for job, found in findings.items():
        print(f"{job}:")
        for entry in found:
            rest = [text for text in (entry["impact"], entry["remedy"]) if text]
            print(f"  {entry['level']}: {safe('; '.join([entry['issue'], *rest]))}")


def show_status(rows: list[dict[str, Any]]) -> None:
    def cells(row: dict[str, Any]) -> tuple[object, ...]:
        last = row["last"]
        when = datetime.fromtimestamp(row["next"]).strftime(SHORT) if row["next"] else "-"
        paused = row["enabled"] is False
        outcome = (
            (local_time(last["started"], SHORT), duration(last), copied(last), total(last, "deleted"), conflicts(last))
            if last
            else ("never", "-", "-", "-", "-")
        )
        following: object = "paused" if paused else when
        if row["retry"]:
            following = (local_time(row["retry"], SHORT), "another attempt")
        state = row["state"] or "-"
        return (row["job"], row["partner"] or "-", (state, "late") if row["late"] else state, *outcome, following)

    if not rows:
        print("no jobs on this server; declare one with serversync.core.sync_job")
        return
    columns = ("job", "partner", "state", "last run", "duration", "copied", "deleted", "conflicts", "next run")
    table(columns, map(cells, rows))
    for row in rows:
        if row["late"]:
            good = f"since {local_time(row['good'])}" if row["good"] else "yet"
            print(f"{row['job']}: late since {local_time(row['late_at'])}: no good run {good}")
        if row["problem"]:
            print(f"{row['job']}: {safe(row['problem'])}")
        elif row["last"] and row["last"]["error"]:
            print(f"{row['job']}: {safe(describe(row['last']['error']))}")


def show_history(runs: list[dict[str, Any]]) -> None:
    def cells(run: dict[str, Any]) -> tuple[object, ...]:
        before = [entry["state_before"] for entry in run["elements"] if entry["state_before"]]
        return (
            run["run"],
            run["configuration"],
            (f"{worst(before) if before else '-'} ->", run["state"]),
            duration(run),
            len(run["attempts"]),
            copied(run),
            total(run, "deleted"),
            conflicts(run),
        )

    columns = ("run", "config", "state", "duration", "tries", "copied", "deleted", "conflicts")
    table(columns, map(cells, runs))


def copied(record: dict[str, Any]) -> int:
    return sum(entry["created"] + entry["updated"] for entry in record["elements"])


def total(record: dict[str, Any], counter: str) -> int:
    return sum(int(entry[counter]) for entry in record["elements"])


def conflicts(record: dict[str, Any]) -> int:
    """Those decided in the run, and those that stand."""
    standing = sum(int(entry["standing"].get("unresolved", 0)) for entry in record["elements"])
    return total(record, "conflicts") + standing
