# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which paths take part; git is the oracle for what a list of patterns excludes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec
from serversync.failure import Failure
from serversync.filters import Filter

TREE = sorted(
    {
        f"{first}{rest}"
        for first in ("a", "b", "ab", "c#", "[a]", "a-b", "^")
        for rest in ("", ".x", "/a", "/b.x", "/a/b", "/ab/a", "/ab/a.x", "/b/a/b", "/ b", "/b ", "/!", "/a]")
    }
)
DIRECTORIES = {path for path in TREE if any(other.startswith(f"{path}/") for other in TREE)} | {
    "/".join(path.split("/")[:depth]) for path in TREE for depth in range(1, path.count("/") + 1)
}
PATHS = sorted(DIRECTORIES | set(TREE))


def kept(*, include: list[str] | None = None, exclude: list[str] | None = None) -> set[str]:
    patterns = Filter(include or [], exclude or [])
    return {path for path in PATHS if not patterns.excluded(path.encode(), path in DIRECTORIES)}


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "root"
        subprocess.run(["git", "init", "-q", root], check=True)
        shutil.rmtree(root / ".git" / "info")
        for path in PATHS:
            if path in DIRECTORIES:
                (root / path).mkdir(parents=True, exist_ok=True)
        for path in PATHS:
            (root / path).touch()
        yield root


def kept_by_git(root: Path, patterns: list[str]) -> set[str]:
    (root.parent / "exclude").write_text("".join(f"{pattern}\n" for pattern in patterns))
    argv = ["git", "-c", f"core.excludesFile={root.parent / 'exclude'}", "check-ignore", "--no-index", "--stdin", "-z"]
    done = subprocess.run(argv, cwd=root, input="\0".join(PATHS), capture_output=True, check=False, text=True)
    assert done.returncode in (0, 1), done.stderr
    return set(PATHS) - set(done.stdout.split("\0"))


# Not among them: a**, which git, unlike its manual, takes for ** where a fixed text stands before it.
PLAIN = ["a", "b", "ab", "a]", "c#", "!", "^", " b", "b\\ ", "\\a", "\\[a]", "\\!"]
WILD = ["a*", "*b", "?", "*", "**", "*.x", "a*b*", "*?*", "[ab]", "[!a]", "[^a]", "a[!b]b", "a[.-0]b", "[[:alpha:]]"]
PART = st.sampled_from(
    [*PLAIN, *WILD, "[]a]", "[[]a]", "[a-]", "[!]a]", "[^^]", "[ab\\]]", "[\\^]", "[\\^a]", "[#-c]", "[[]", "[b-a]"]
)
PATTERN = st.builds(
    lambda negated, start, parts, end: negated + start + "/".join(parts) + end,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "/"]),
    st.lists(PART, min_size=1, max_size=3),
    st.sampled_from(["", "/"]),
)


@settings(max_examples=400)
@given(patterns=st.lists(PATTERN, min_size=1, max_size=4))
@example(patterns=["a", "b", "!a"])
@example(patterns=["!a/b", "a/**"])
@example(patterns=["a/", "!a/b"])
@example(patterns=["*", "!a"])
@example(patterns=["a[!b]b"])
@example(patterns=["#a", "", "  ", "/", "\\#", "b  "])
def test_what_git_ignores_is_excluded(tree: Path, patterns: list[str]) -> None:
    assert kept(exclude=patterns) == kept_by_git(tree, patterns)


@settings(max_examples=200)
@given(patterns=st.lists(PATTERN, min_size=1, max_size=3))
def test_included_is_what_would_be_excluded_and_the_way_to_it(patterns: list[str]) -> None:
    patterns = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"]
    ignored = set(PATHS) - kept(exclude=patterns)
    ways = {"/".join(path.split("/")[:depth]) for path in ignored for depth in range(1, path.count("/") + 1)}
    included = kept(include=patterns)
    assert ignored | ways <= included
    assert included - ignored <= DIRECTORIES, "only directories are kept for what may be below them"


@pytest.mark.parametrize(
    ("include", "entered"),
    [
        ("/a/ab/nothing", {"a", "a/ab"}),
        ("a/*/*/nothing", {"a", "a/a", "a/b", "a/ab", "a/b/a"} & DIRECTORIES),
        ("a/b/**/nothing", {"a", "a/b", "a/b/a"}),
        ("*/nothing", {path for path in DIRECTORIES if "/" not in path}),
        ("**/nothing", DIRECTORIES),
        ("a/**/nothing/", {path for path in DIRECTORIES if f"{path}/".startswith("a/")}),
        ("nothing", DIRECTORIES),
        ("/nothing", set()),
    ],
)
def test_directories_that_hold_nothing_of_interest_are_not_entered(include: str, entered: set[str]) -> None:
    patterns = Filter([include], [])
    assert {path for path in DIRECTORIES if not patterns.excluded(path.encode(), True)} == entered


def test_an_excluded_path_is_out_even_where_it_is_included() -> None:
    assert kept(include=["/a"], exclude=["b"]) == {"a", "a/a", "a/ab", "a/ab/a", "a/ab/a.x"} | {
        path for path in PATHS if path.startswith("a/") and path.count("/") == 1 and path != "a/b"
    }


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"d/a.conflict-hq-20250301T020000Z.tmp", True),
        (b"d/a.conflict-hq.example-20250301T020000Z-2", True),
        (b"d/a.conflict-hq-20250301T020000Z-17.tar.tmp", True),
        (b"d/a.conflict.tmp", False),
        (b"d/a.conflict-hq-2025.tmp", False),
        (b"out/a.conflict-hq-20250301T020000Z.tmp", False),
    ],
)
def test_patterns_do_not_hide_conflict_copies(path: bytes, shown: bool) -> None:
    assert Filter([], ["*.tmp", "*conflict*", "out"]).excluded(path, False) is not shown
    assert Filter(["/d/b"], []).excluded(path, False) is not shown


@pytest.mark.parametrize("path", [b".serversync", b"a/.serversync", b"a/.serversync/e/versions/x"])
def test_what_the_runner_keeps_is_invisible(path: bytes) -> None:
    assert Filter([], []).excluded(path, True)
    assert Filter(["*"], ["!.serversync"]).excluded(path, False)


@pytest.mark.parametrize(
    ("pattern", "path", "excluded"),
    [
        ("?.txt", "ä.txt".encode(), True),
        ("[äö].txt", "ö.txt".encode(), True),
        ("*.t\u0308xt", "x.t\u0308xt".encode(), True),
        ("*.tmp", b"not\xffutf-8.tmp", True),
        ("f", b"line\nfeed/f", True),
        ("line*feed", b"line\nfeed", True),
        ("f", b"f\n", False),
        ("*.tmp\t", b"x.tmp", False),
        ("a//b", b"a/b", True),
        ("[[:digit:]][[:upper:]_]", b"7_", True),
        ("[![:space:]]", b"\t", False),
        ("[[:space:]]", b"\n", True),
        ("[\n]", b"\n", True),
        ("[[:punct:]a]x", b"-x", True),
        ("[[:punct:]a]x", b"^x", True),
        ("[[:punct:]a]x", b"bx", False),
        ("a[[:graph:]]b", b"a/b", False),
        ("a**b", b"a/b", False),
        ("a**b", b"axb", True),
    ],
)
def test_names_that_are_not_plain(pattern: str, path: bytes, excluded: bool) -> None:
    assert Filter([], [pattern]).excluded(path, False) is excluded


PIECES = st.lists(st.sampled_from(["a", "b", "?", "*"]), min_size=1, max_size=8).map("".join)
NAME = st.text("ab", min_size=1, max_size=8)


@settings(max_examples=2000)
@given(
    parts=st.lists(st.just("**") | PIECES.filter(lambda part: "**" not in part), min_size=1, max_size=6),
    names=st.lists(NAME, min_size=1, max_size=6),
)
@example(parts=["a*b*b"], names=["aabab"])
@example(parts=["**", "a", "**", "a", "b"], names=["a", "a", "b", "a", "b"])
@example(parts=["*a", "**", "*b", "**", "*"], names=["a", "b"])
def test_what_pathspec_matches_is_matched(parts: list[str], names: list[str]) -> None:
    pattern = "/" + "/".join(parts)
    ways = ["/".join(names[:depth]) for depth in range(1, len(names) + 1)]
    oracle = GitIgnoreSpec.from_lines([pattern])
    assert Filter([], [pattern]).excluded(ways[-1].encode(), False) is any(map(oracle.match_file, ways))


# One that tried a place anew for each way to it would be at work for longer than there is time.
@pytest.mark.parametrize(
    ("pattern", "missed", "matched"),
    [
        ("*a" * 2000 + "b", "a" * 2001, "a" * 2000 + "b"),
        ("?*" * 127 + "b", "a" * 255, "a" * 254 + "b"),
        ("*[!b]" * 100 + "b", "a" * 255, "a" * 254 + "b"),
        ("**/a/" * 800 + "b", "a/" * 2000 + "a", "a/" * 2000 + "b"),
        ("**/*a*/" * 100 + "b", "aaa/" * 1000 + "a", "aaa/" * 1000 + "b"),
        ("**/" + "a*a*/" * 800 + "b", "aaa/" * 1000 + "a", "aaa/" * 1000 + "b"),
        ("/**/*a*a*/**/*a*a*/**/*a*b", "aaaa/" * 800 + "a", "aaaa/" * 800 + "ab"),
    ],
)
def test_patterns_never_try_a_place_twice(pattern: str, missed: str, matched: str) -> None:
    patterns = Filter([], [pattern])
    assert patterns.takes(missed.encode(), False, True)
    assert not patterns.takes(matched.encode(), False, True)


def test_a_pattern_is_bounded() -> None:
    Filter(["a" * 4096], [])
    with pytest.raises(Failure, match="a pattern has 4097 characters; at most 4096 are taken"):
        Filter(["a" * 4097], [])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a[b", "the pattern 'a[b' has a [ that is not closed; a backslash before a character takes away its meaning"),
        ("a\\", "the pattern 'a\\\\' ends with a backslash; a backslash before a character takes away its meaning"),
        ("[[:nope:]]", "the pattern '[[:nope:]]' has an unknown class [:nope:]"),
    ],
)
def test_patterns_that_cannot_be_understood(pattern: str, message: str) -> None:
    for include, exclude, field in (([pattern], [], "settings.include"), ([], ["x", pattern], "settings.exclude")):
        with pytest.raises(Failure) as failed:
            Filter(include, exclude)
        assert (failed.value.code, failed.value.field, failed.value.message) == ("bad_pattern", field, message)
