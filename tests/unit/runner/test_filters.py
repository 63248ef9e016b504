# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""gitignore patterns as rsync rules: rsync itself does the matching, git is the oracle."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serversync import filters


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.tmp", ["*.tmp"]),
        ("cache/", ["cache/"]),
        ("/cache", ["/cache"]),
        ("sub/build", ["/sub/build"]),
        ("sub/build/", ["/sub/build/"]),
        ("**/build", ["build"]),
        ("**/sub/build", ["sub/build"]),
        ("sub/**", ["/sub/**"]),
        ("a/**/b", ["/a/b", "/a/**/b"]),
        ("a**b", ["a*b"]),
        ("**", ["*"]),
        ("trailing  ", ["trailing"]),
        ("kept\\ ", ["kept "]),
        ("\\#hash", ["#hash"]),
        ("\\!bang", ["!bang"]),
        ("star\\*", ["star\\*"]),
        ("/", []),
    ],
)
def test_translation(pattern: str, expected: list[str]) -> None:
    assert filters.translate(pattern) == expected


def test_the_runners_own_directory_is_always_hidden() -> None:
    assert filters.rules([]) == b"- .serversync\0"


def kept_by_rsync(root: Path, patterns: list[str]) -> set[str]:
    with tempfile.NamedTemporaryFile() as rules:
        rules.write(filters.rules(patterns))
        rules.flush()
        argv = [
            "rsync",
            "-rn",
            "--exclude=.git",
            "--from0",
            f"--exclude-from={rules.name}",
            "--out-format=%n",
            f"{root}/",
            f"{root}.none/",
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return {line.rstrip("/") for line in done.stdout.splitlines()} - {".", ""}


def kept_by_git(root: Path, paths: list[str], pattern: str) -> set[str]:
    (root.parent / "exclude").write_text(f"{pattern}\n")
    argv = ["git", "-c", f"core.excludesFile={root.parent / 'exclude'}", "check-ignore", "--no-index", "--stdin", "-z"]
    done = subprocess.run(argv, cwd=root, input="\0".join(paths), capture_output=True, check=False, text=True)
    assert done.returncode in (0, 1), done.stderr
    return {path.rstrip("/") for path in paths} - {path.rstrip("/") for path in done.stdout.split("\0")}


TREE = [
    f"{first}{rest}"
    for first in ("a", "b", "ab", "c#")
    for rest in ("", ".x", "/a", "/b.x", "/a/b", "/ab/a", "/ab/a.x", "/b/a/b")
]


@pytest.fixture(scope="module")
def tree() -> tuple[Path, list[str]]:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "root"
        subprocess.run(["git", "init", "-q", root], check=True)
        shutil.rmtree(root / ".git" / "info")
        for name in TREE:
            path = root / name
            if any(other.startswith(f"{name}/") for other in TREE):
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        paths = []
        for where, names, files in os.walk(root):
            names[:] = [name for name in names if name != ".git"]
            for name in names:
                paths.append(os.path.relpath(os.path.join(where, name), root))
            for name in files:
                paths.append(os.path.relpath(os.path.join(where, name), root))
        yield root, paths


# Not among them: a**, which git, unlike its manual, takes for ** where a fixed text stands before it.
PART = st.sampled_from(["a", "b", "ab", "a*", "*b", "?", "*", "**", "[ab]", "[!a]", "*.x", "c#", "\\a"])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_rsync_keeps_what_gitignore_keeps(tree: tuple[Path, list[str]], data: st.DataObject) -> None:
    root, paths = tree
    parts = data.draw(st.lists(PART, min_size=1, max_size=3))
    pattern = data.draw(st.sampled_from(["", "/"])) + "/".join(parts) + data.draw(st.sampled_from(["", "/"]))
    assert kept_by_rsync(root, [pattern]) == kept_by_git(root, paths, pattern), pattern
