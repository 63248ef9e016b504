# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which paths of an element take part: gitignore patterns (``settings.include``, ``settings.exclude``). Pure.

Each pattern becomes a regular expression that never tries a place twice, for a partner may send any: what stands
between two asterisks is taken where it first fits, since what follows fits behind that if it fits anywhere. Which
pattern decides, the last one that matches the path itself, is found level by level from the root, as git does it.
Patterns match characters, not bytes; names that are not UTF-8 are matched by what is valid of them.

Source: gitignore(5), "PATTERN FORMAT".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import count
from typing import NamedTuple

from serversync.failure import Failure

RESERVED = ".serversync"
# Characters of a pattern, as a job document has it.
LONGEST = 4096
# A conflict copy: STEM.conflict-SERVER-MTIME[-N]EXT.
CONFLICT_COPY = re.compile(r"\.conflict-[^/]+-\d{8}T\d{6}Z(-\d+)?(\.[^/]*)?\Z")
# The bracket expressions of POSIX, as a regular expression has them.
CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r" \t-\r",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
# What has a meaning in a part of a pattern, and in a bracket expression: a class, or a character or two with a dash.
SPECIAL = re.compile(
    r"\\(?P<escaped>.)|\[(?P<not>[!^]?)(?P<set>\]?(?:\\.|\[:[a-z]+:\]|[^\]])*)\]|\*+|\?|[\[\\]", re.DOTALL
)
MEMBER = re.compile(r"\[:(?P<named>[a-z]+):\]|\\?(?P<low>.)(?:-\\?(?P<high>.))?", re.DOTALL)

# Of a part of a pattern what stands between its asterisks; none where the part is ``**``.
Pieces = list[str]
# The part ``*``.
ANY = ["", ""]


class Rule(NamedTuple):
    """One pattern.

    regex: what the paths are like that it matches; takes: not negated; heads: what the directories above a match are
    like, from the top; deep: matches may be at any depth below these.
    """

    regex: re.Pattern[str]
    takes: bool
    only_directories: bool
    heads: list[re.Pattern[str]]
    deep: bool

    def matches(self, path: str, directory: bool) -> bool:
        return (directory or not self.only_directories) and self.regex.fullmatch(path) is not None

    def below(self, path: str) -> bool:
        depth = path.count("/")
        return self.takes and (self.heads[depth].fullmatch(path) is not None if depth < len(self.heads) else self.deep)


class Filter:
    """The paths of an element that take part in a run, from its patterns.

    A path takes part if it, or a directory that it is in, is matched by ``include``, or there is no ``include``, and
    none of these is excluded. Nothing below an excluded directory can be had back. Conflict copies are not hidden by
    patterns, and RESERVED is by none needed: it is invisible to everybody. Paths are relative to the element's root.
    Raises Failure where a pattern cannot be understood.
    """

    def __init__(self, include: Iterable[str], exclude: Iterable[str]) -> None:
        self.include = parsed(include, "settings.include")
        self.exclude = parsed(exclude, "settings.exclude")

    def excluded(self, path: bytes, directory: bool) -> bool:
        """Whether the path does not take part; of a directory, not even something below it."""
        parts = path.split(b"/")
        if RESERVED.encode() in parts:
            return True
        inside = not self.include
        for end in range(1, len(parts)):
            above = b"/".join(parts[:end])
            inside = self.takes(above, True, inside)
            if not inside and not self.enters(above):
                return True
        return bool(path) and not self.takes(path, directory, inside) and not (directory and self.enters(path))

    def inside(self, directory: bytes) -> bool:
        """Whether what is in the directory takes part unless it is excluded."""
        inside = not self.include
        parts = directory.split(b"/") if directory else []
        for end in range(1, len(parts) + 1):
            inside = self.takes(b"/".join(parts[:end]), True, inside)
        return inside

    def takes(self, path: bytes, directory: bool, inside: bool) -> bool:
        """Whether a path takes part whose directory is not excluded; ``inside`` as of this directory."""
        shown = text(path)
        if decides(self.exclude, shown, directory) or not (inside or decides(self.include, shown, directory)):
            return CONFLICT_COPY.search(shown) is not None
        return True

    def enters(self, directory: bytes) -> bool:
        """Whether something below a directory may take part that does not itself (``takes``)."""
        shown = text(directory)
        if decides(self.exclude, shown, True) and not CONFLICT_COPY.search(shown):
            return False
        return not self.include or any(rule.below(shown) for rule in self.include)


def decides(rules: list[Rule], path: str, directory: bool) -> bool:
    """What the last pattern says that matches the path itself."""
    return next((rule.takes for rule in rules if rule.matches(path, directory)), False)


def text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def parsed(patterns: Iterable[str], field: str) -> list[Rule]:
    """The rules, the last one first."""
    try:
        return [rule for pattern in patterns if (rule := parse(pattern))][::-1]
    except ValueError as error:
        raise Failure("bad_pattern", str(error), field=field) from error


def parse(pattern: str) -> Rule | None:
    """None for what is no pattern: a comment, an empty line; raises ValueError where it cannot be understood."""
    if len(pattern) > LONGEST:
        raise ValueError(f"a pattern has {len(pattern)} characters; at most {LONGEST} are taken")
    stripped = strip_trailing_spaces(pattern)
    if stripped.startswith("#"):
        return None
    takes = not stripped.startswith("!")
    stripped = stripped if takes else stripped[1:]
    parts = [[] if part == "**" else list(pieces(part, pattern)) for part in stripped.split("/") if part]
    if not parts:
        return None
    if "/" not in stripped.rstrip("/"):
        parts = [[], parts[0] or ANY]
    elif not parts[-1]:
        # What is below is matched itself, not taken along by a directory.
        parts.append(ANY)
    fixed = parts.index([]) if [] in parts else len(parts)
    heads = [expression(parts[:end]) for end in range(1, min(fixed, len(parts) - 1) + 1)]
    return Rule(expression(parts), takes, stripped.endswith("/"), heads, fixed < len(parts))


def expression(parts: list[Pieces]) -> re.Pattern[str]:
    names = map("at{}".format, count())

    def first(what: str) -> str:
        """Where this first fits, and no other place (an atomic group, which Python has since 3.11)."""
        name = next(names)
        return f"(?=(?P<{name}>{what}))(?P={name})"

    def one(part: Pieces) -> str:
        if part == ANY:
            return "[^/]+"
        start, *middle = part
        end = f"[^/]*{middle.pop()}" if middle else ""
        return start + "".join(first(f"[^/]*?{piece}") for piece in middle) + end

    runs: list[list[Pieces]] = [[]]
    for part in parts:
        if part:
            runs[-1].append(part)
        elif runs[-1] or len(runs) == 1:
            runs.append([])
    top, *deeper = ["/".join(map(one, run)) for run in runs]
    if not deeper:
        return re.compile(top, re.DOTALL)
    *between, end = deeper
    found = "".join(first(f"(?:|.*?/){run}/") for run in between)
    return re.compile(f"{top}{'/' if top else ''}{found}(?:.*/|){end}", re.DOTALL)


def pieces(part: str, pattern: str) -> Iterator[str]:
    """What stands between the asterisks of a part, as regular expressions of so many characters."""
    piece, done = "", 0
    for found in SPECIAL.finditer(part):
        piece += re.escape(part[done : found.start()])
        done = found.end()
        if found["escaped"] is not None:
            piece += re.escape(found["escaped"])
        elif found["set"] is not None:
            piece += members(found["not"], found["set"], pattern)
        elif found[0] == "?":
            piece += "[^/]"
        elif found[0].startswith("*"):
            yield piece
            piece = ""
        else:
            problem = "has a [ that is not closed" if found[0] == "[" else "ends with a backslash"
            raise ValueError(
                f"the pattern {pattern!r} {problem}; a backslash before a character takes away its meaning"
            )
    yield piece + re.escape(part[done:])


def members(negated: str, listed: str, pattern: str) -> str:
    """A bracket expression; no slash is in any."""
    kept = ""
    for found in MEMBER.finditer(listed):
        named, low, high = found.groups()
        if named is not None and named not in CLASSES:
            raise ValueError(f"the pattern {pattern!r} has an unknown class [:{named}:]")
        if named is not None:
            kept += CLASSES[named]
        else:
            # Of a range that runs backwards git takes the first character.
            kept += re.escape(low) + (f"-{re.escape(high)}" if high and low <= high else "")
    return f"(?!/)[{'^' if negated else ''}{kept}]"


def strip_trailing_spaces(pattern: str) -> str:
    stripped = pattern.rstrip(" ")
    return stripped + " " if stripped.endswith("\\") and stripped != pattern else stripped
