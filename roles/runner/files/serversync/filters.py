# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""gitignore patterns (``settings.exclude``) as rsync filter rules. Pure.

Sources: gitignore(5), "PATTERN FORMAT"; rsync(1), "PATTERN MATCHING RULES".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product

RESERVED = ".serversync"


def rules(exclude: Iterable[str]) -> bytes:
    """NUL-separated rules for ``rsync --from0 --exclude-from``; the runner's own directory is always hidden."""
    patterns = [RESERVED, *(rule for pattern in exclude for rule in translate(pattern))]
    return b"".join(b"- " + pattern.encode("utf-8", "surrogateescape") + b"\0" for pattern in patterns)


def translate(pattern: str) -> list[str]:
    """One gitignore pattern -> the rsync patterns that together exclude the same paths."""
    pattern = strip_trailing_spaces(pattern)
    only_directories = pattern.endswith("/")
    parts = [part for part in pattern.split("/") if part]
    anchored = "/" in pattern.rstrip("/")
    while len(parts) > 1 and parts[0] == "**":
        parts, anchored = parts[1:], False
    if not parts:
        return []
    if parts == ["**"]:
        parts = ["*"]
    # In gitignore a ** between slashes also stands for no directory at all; in rsync it stands for at least one.
    middle = [index for index, part in enumerate(parts[:-1]) if part == "**"]
    translated = []
    for kept in product((False, True), repeat=len(middle)):
        dropped = {index for index, keep in zip(middle, kept) if not keep}
        chosen = [component(part) for index, part in enumerate(parts) if index not in dropped]
        text = ("/" if anchored else "") + "/".join(chosen) + ("/" if only_directories else "")
        translated.append(text if re.search(r"[*?\[]", text) else re.sub(r"\\(.)", r"\1", text))
    return list(dict.fromkeys(translated))


def component(part: str) -> str:
    """Within a name gitignore's ** is a plain *; rsync's would cross directories."""
    return part if part == "**" else re.sub(r"(?<!\\)\*{2,}", "*", part)


def strip_trailing_spaces(pattern: str) -> str:
    stripped = pattern.rstrip(" ")
    return stripped + " " if stripped.endswith("\\") and stripped != pattern else stripped
