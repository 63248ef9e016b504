# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What pages are put together from: words and signs of states, names, times, tables. Pure; all is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape

from serversync.display import safe

# State -> its word; the first ones are told first.
WORDS = {
    "silent": "no report",
    "invalid": "invalid",
    "failed": "failed",
    "different": "different",
    "waiting": "waiting",
    "skipped": "skipped",
    "running": "running",
    "none": "never ran",
    "equal_with_warnings": "equal, with warnings",
    "equal": "equal",
}
# The signs, in a square of 16; what is the same in colour differs in shape.
RING = '<circle cx="8" cy="8" r="6.5"/>'
SQUARE = '<rect x="1.5" y="1.5" width="13" height="13" rx="1"/>'
SIGNS = {
    "equal": RING + '<path d="M5 8.2l2.2 2.2L11.2 6"/>',
    "equal_with_warnings": '<path d="M8 1.8L14.6 14H1.4zM8 6.5v3.2M8 12v.1"/>',
    "different": '<path d="M8 1L15 8 8 15 1 8zM8 1v14"/>',
    "failed": SQUARE + '<path d="M5.2 5.2l5.6 5.6M10.8 5.2l-5.6 5.6"/>',
    "skipped": RING + '<path d="M5 8h6"/>',
    "waiting": RING + '<path d="M8 4.4V8l2.4 1.6"/>',
    "running": RING + '<path d="M6.6 5.2v5.6L11 8z"/>',
    "invalid": SQUARE + '<path d="M8 4.3v4.4M8 11.5v.1"/>',
    "silent": SQUARE + '<path d="M4 12L12 4"/>',
    "none": '<circle cx="8" cy="8" r="6.5" stroke-dasharray="2 3"/>',
    "info": RING + '<path d="M8 7.4v4M8 4.6v.1"/>',
}
# Level of a finding -> its word where there are several; it has the sign of a state that is as bad.
LEVELS = {"error": "error", "warning": "warning", "info": "note"}
SIGNS |= {"error": SIGNS["failed"], "warning": SIGNS["equal_with_warnings"]}


def plain(text: object) -> str:
    return escape(safe(text))


def of_state(state: object) -> str:
    return state if isinstance(state, str) and state in WORDS else "none"


def table(caption: str, columns: Sequence[str], rows: Iterable[str], numbers: Sequence[int] = ()) -> str:
    """numbers: which of the columns are such."""
    heads = "".join(
        f"<th scope=col{' class=number' if place in numbers else ''}>{column}" for place, column in enumerate(columns)
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table><caption>{caption}</caption>'
        f"<thead><tr>{heads}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def sign(state: str) -> str:
    return f'<svg class="mark" aria-hidden="true"><use href="#s-{state}"/></svg>'


def state_of(state: str) -> str:
    return f'<span class="state {state}">{sign(state)} {WORDS[state]}</span>'


def name(text: object) -> str:
    """A name in the midst of others, which may be written from right to left."""
    return f"<bdi>{plain(text)}</bdi>"


def path(text: object) -> str:
    return f'<span class="path">{plain(text)}</span>'


def code(text: str) -> str:
    return f"<code>{plain(text)}</code>"


def plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"


def when(moment: str | None) -> float:
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0


def at(moment: str) -> str:
    """A time by the clock of its server."""
    shown = datetime.fromisoformat(moment)
    return f'<time datetime="{shown.isoformat()}">{shown.strftime("%Y-%m-%d %H:%M")}</time>'


def zone(moment: str) -> str:
    """``UTC+01:00``, as its server has it."""
    offset = datetime.fromisoformat(moment).strftime("%z")
    return f"UTC{offset[:3]}:{offset[3:5]}"


def took(seconds: float) -> str:
    """``4.2 s``, ``3 min 12 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
