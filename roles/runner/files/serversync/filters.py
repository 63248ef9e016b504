# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which paths of an element take part: gitignore patterns (``settings.include``, ``settings.exclude``). Pure.

pathspec makes a regular expression of each pattern. Which pattern decides, the last one that matches the path itself,
is found here, level by level from the root, as git does it: pathspec's own answer is for a path alone, takes what
matched a directory for a match of all below it, and lets a file back in whose directory is excluded. Patterns match
characters, not bytes; names that are not UTF-8 are matched by what is valid of them.

Source: gitignore(5), "PATTERN FORMAT".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from pathspec import GitIgnoreSpec
from pathspec.pattern import RegexPattern

from serversync.failure import Failure

RESERVED = ".serversync"
# A conflict copy: STEM.conflict-SERVER-MTIME[-N]EXT.
CONFLICT_COPY = re.compile(r"\.conflict-[^/]+-\d{8}T\d{6}Z(-\d+)?(\.[^/]*)?\Z")
# Bracket expressions of a regular expression, and whatever is escaped.
SET = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
# A surrogate that stands for no byte (PEP 383).
NOWHERE = "\udc00"
# The bracket expressions of POSIX; a line feed is a NUL here, see ``text``.
CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": " \t",
    "cntrl": "\0-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-*+-.:-@[-`{-~",
    "space": " \t\0\v\f\r",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}


# What has a meaning in a pattern: an escaped character, a bracket expression, a run of asterisks, white space.
SPECIAL = re.compile(
    r"\\(?P<escaped>.)|\[(?P<not>[!^]?)(?P<set>\]?(?:\\.|\[:[a-z]+:\]|[^\]])*)\]|\*+|\s|[\[\\]", re.DOTALL
)


class Rule(NamedTuple):
    """One pattern.

    regex: finds the path itself, or as ``ps_d`` the slash of a directory above it that the pattern matches; takes: not
    negated; heads: what the directories above a match are matched by, from the top; deep: matches may be at any depth
    below these.
    """

    regex: re.Pattern[str]
    takes: bool
    only_directories: bool
    heads: list[re.Pattern[str]]
    deep: bool

    def matches(self, path: str, directory: bool) -> bool:
        return (directory or not self.only_directories) and itself(self.regex, path)

    def below(self, path: str) -> bool:
        depth = path.count("/")
        return self.takes and (itself(self.heads[depth], path) if depth < len(self.heads) else self.deep)


def itself(regex: re.Pattern[str], path: str) -> bool:
    match = regex.search(path)
    return match is not None and not match.groupdict().get("ps_d")


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
    # A dot of pathspec's expressions matches no line feed; no path has a NUL.
    return path.decode("utf-8", "surrogateescape").replace("\n", "\0")


def parsed(patterns: Iterable[str], field: str) -> list[Rule]:
    """The rules, the last one first."""
    try:
        return [rule for pattern in patterns if (rule := parse(pattern))][::-1]
    except ValueError as error:
        raise Failure("bad_pattern", str(error), field=field) from error


def parse(pattern: str) -> Rule | None:
    """None for what is no pattern: a comment, an empty line; raises ValueError where it cannot be understood."""
    stripped = strip_trailing_spaces(pattern).replace("\n", "\0")
    if stripped.startswith("#"):
        return None
    takes = not stripped.startswith("!")
    stripped = stripped if takes else stripped[1:]
    parts = [part if part == "**" else plain(part, pattern) for part in stripped.split("/") if part]
    if not parts:
        return None
    if "/" not in stripped.rstrip("/"):
        parts = ["**", "*" if parts == ["**"] else parts[0]]
    elif parts[-1] == "**":
        # What is below is matched itself, not taken along by a directory.
        parts.append("*")
    fixed = parts.index("**") if "**" in parts else len(parts)
    heads = [expression(parts[:end]) for end in range(1, min(fixed, len(parts) - 1) + 1)]
    return Rule(expression(parts), takes, stripped.endswith("/"), heads, fixed < len(parts))


def expression(parts: list[str]) -> re.Pattern[str]:
    pattern = GitIgnoreSpec.from_lines(["/" + "/".join(parts)]).patterns[0]
    assert isinstance(pattern, RegexPattern) and pattern.regex is not None
    # A bracket expression of git's matches no slash; those that pathspec makes of asterisks do not anyway.
    return re.compile(SET.sub(lambda found: no_slash(found[0]), pattern.regex.pattern))


def no_slash(expression: str) -> str:
    return f"(?!/){expression}" if expression.startswith("[") and expression != "[^/]" else expression


def plain(part: str, pattern: str) -> str:
    """A part of a pattern, so that every version of pathspec takes it as git does."""

    def rewritten(found: re.Match[str]) -> str:
        if found["escaped"] is not None:
            return literal(found["escaped"])
        if found["set"] is not None:
            return bracketed(found["not"], found["set"], pattern)
        if found[0].startswith("*"):
            return "*"
        if found[0].isspace():
            return literal(found[0])
        problem = "has a [ that is not closed" if found[0] == "[" else "ends with a backslash"
        raise ValueError(f"the pattern {pattern!r} {problem}; a backslash before a character takes away its meaning")

    return SPECIAL.sub(rewritten, part)


def literal(character: str) -> str:
    # White space at an end is cut off, escaped or not.
    return f"[{character}]" if character.isspace() else "\\" + character


def bracketed(negated: str, members: str, pattern: str) -> str:
    def named(found: re.Match[str]) -> str:
        if found[1] not in CLASSES:
            raise ValueError(f"the pattern {pattern!r} has an unknown class {found[0]}")
        return CLASSES[found[1]]

    members = re.sub(r"\[:([a-z]+):\]", named, members)
    # Within brackets pathspec knows no escapes; a bracket or a dash that is escaped goes to where it is a member.
    first, last = "]" if "\\]" in members else "", "-" if "\\-" in members else ""
    members = first + re.sub(r"\\([\]-])", "", members) + last
    members = re.sub(r"\\(.)", r"\1", members)
    if members[0] in "!^[":
        # What would have a meaning there is put after what no name has.
        members = NOWHERE + members
    return f"[{'!' if negated else ''}{members}]"


def strip_trailing_spaces(pattern: str) -> str:
    stripped = pattern.rstrip(" ")
    return stripped + " " if stripped.endswith("\\") and stripped != pattern else stripped
