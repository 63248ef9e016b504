# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from serversync import place, versions
from serversync.commit import Commit, Op
from serversync.entry import Entry
from serversync.failure import Failure

OLD, NEW, NOW = (f"20261122T0{hour}3000Z-ab12" for hour in (2, 3, 4))
# Seconds since the epoch of OLD; NEW and NOW begin an hour and two after it.
BEGAN = 1_795_314_600
PRESERVE = frozenset({"times", "permissions"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def root(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def entry(path: Path) -> Entry:
    return Entry.of(path.lstat(), os.fsencode(os.readlink(path)) if path.is_symlink() else b"")


def delete(root: int, path: Path, run: str, *names: str) -> None:
    """As a run does it."""
    commit = Commit(root, "job.1", run, PRESERVE)
    commit.prepare()
    for name in names:
        (result,) = commit.carry_out([Op("delete", name.encode(), entry(path / name))])
        assert result.problem is None
    commit.finish()
    for kept in store(path).glob(f"{run}*"):
        os.utime(kept, (place.started(run), place.started(run)))


def store(path: Path) -> Path:
    return path / ".serversync" / "job.1" / "versions"


def told(root: int, name: bytes | None = None) -> list[tuple[str, bytes, str]]:
    return [(one["run"], one["path"], one["entry"].kind) for one in versions.versions(root, "job.1", name)]


def test_what_runs_displaced(root: int, path: Path) -> None:
    assert versions.versions(root, "job.1") == []
    (path / "a" / "deep").mkdir(parents=True)
    (path / "a" / "deep" / "file").write_text("x")
    (path / "a" / "link").symlink_to("nowhere")
    (path / "empty").mkdir()
    file = entry(path / "a" / "deep" / "file")
    delete(root, path, OLD, "a/deep/file", "a/deep", "a/link", "empty")
    (path / "a" / "deep").mkdir()
    (path / "a" / "deep" / "file").write_text("later")
    delete(root, path, NEW, "a/deep/file")
    assert told(root) == [
        (OLD, b"a/deep/file", "f"),
        (OLD, b"a/link", "l"),
        (OLD, b"empty", "d"),
        (NEW, b"a/deep/file", "f"),
    ]
    assert told(root, b"a/deep") == [(OLD, b"a/deep/file", "f"), (NEW, b"a/deep/file", "f")]
    assert told(root, b"a/de") == []
    first, link, *_rest = versions.versions(root, "job.1")
    assert first["when"] == BEGAN
    assert (first["entry"].inode, first["entry"].mtime) == (file.inode, file.mtime)
    assert link["entry"].link == b"nowhere"


@pytest.mark.parametrize("name", [b"..", b"/etc", b"a/../../b", b".serversync"])
def test_paths_that_are_none(root: int, path: Path, name: bytes) -> None:
    with pytest.raises(Failure, match="is not a path below the element"):
        versions.versions(root, "job.1", name)
    with pytest.raises(Failure, match="is not a path below the element"):
        versions.restore(root, "job.1", name, OLD, NOW)


def test_a_file_comes_back_to_where_it_was(root: int, path: Path) -> None:
    """With its directories, which are gone, and what is in its place now is a version itself."""
    (path / "a" / "b").mkdir(parents=True)
    (path / "a" / "b" / "file").write_text("first")
    os.utime(path / "a" / "b" / "file", ns=(5, 1_700_000_000_000_000_005))
    (path / "a" / "b").chmod(0o750)
    delete(root, path, OLD, "a/b/file", "a/b", "a")
    (result,) = (one for one in versions.restore(root, "job.1", b"a/b/file", OLD, NOW) if one.path == b"a/b/file")
    assert (result.problem, result.entry) == (None, entry(path / "a" / "b" / "file"))
    assert (path / "a" / "b" / "file").stat().st_mtime_ns == 1_700_000_000_000_000_005
    assert stat.S_IMODE((path / "a" / "b").stat().st_mode) == 0o750
    assert told(root) == []
    assert list(store(path).iterdir()) == []
    delete(root, path, OLD, "a/b/file")
    (path / "a" / "b" / "file").write_text("second")
    (result,) = versions.restore(root, "job.1", b"a/b/file", OLD, NOW)
    assert result.version == f".serversync/job.1/versions/{NOW}/a/b/file".encode()
    assert (path / "a" / "b" / "file").read_text() == "first"
    assert (store(path) / NOW / "a" / "b" / "file").read_text() == "second"
    assert not list((path / ".serversync" / "job.1" / "stage").iterdir())


def test_a_directory_comes_back_with_all_that_was_displaced_in_it(root: int, path: Path) -> None:
    (path / "d" / "inner").mkdir(parents=True)
    for name in ("one", "inner/two", "stays"):
        (path / "d" / name).write_text(name)
    (path / "other").write_text("not asked for")
    delete(root, path, OLD, "d/one", "d/inner/two", "d/inner", "other")
    results = versions.restore(root, "job.1", b"d", OLD, NOW)
    assert {result.path for result in results} == {b"d/one", b"d/inner", b"d/inner/two"}
    assert all(result.problem is None for result in results)
    assert {str(found.relative_to(path / "d")) for found in (path / "d").rglob("*")} == {
        "one",
        "inner",
        "inner/two",
        "stays",
    }
    assert told(root) == [(OLD, b"other", "f")]


def test_what_cannot_come_back_stays_a_version(root: int, path: Path) -> None:
    (path / "x").write_text("file")
    delete(root, path, OLD, "x")
    (path / "x").mkdir()
    (path / "x" / "child").write_text("theirs")
    (result,) = versions.restore(root, "job.1", b"x", OLD, NOW)
    assert result.problem and result.problem.code == "not_empty"
    assert (path / "x" / "child").read_text() == "theirs"
    assert told(root) == [(OLD, b"x", "f")]


@pytest.mark.parametrize(("name", "run"), [(b"y", OLD), (b"x", NEW)])
def test_there_is_no_such_version(root: int, path: Path, name: bytes, run: str) -> None:
    (path / "x").write_text("file")
    delete(root, path, OLD, "x")
    with pytest.raises(Failure, match=f"{name.decode()} has no version of the run {run}"):
        versions.restore(root, "job.1", name, run, NOW)


def three_runs(root: int, path: Path) -> None:
    for run, size in ((OLD, 50_000), (NEW, 60_000), (NOW, 70_000)):
        (path / "x").write_bytes(b"x" * size)
        delete(root, path, run, "x")


HOUR = 3600


@pytest.mark.parametrize(
    ("keep", "most", "gone"),
    [
        (None, None, []),
        (3 * HOUR, None, []),
        (1.5 * HOUR, None, [OLD]),
        (0, None, [OLD, NEW]),
        (None, 10_000_000, []),
        (None, 150_000, [OLD]),
        (None, 100_000, [OLD, NEW]),
        (None, 0, [OLD, NEW]),
        (1.5 * HOUR, 150_000, [OLD]),
        (1.5 * HOUR, 100_000, [OLD, NEW]),
    ],
)
def test_pruning_by_age_and_by_size(
    root: int, path: Path, keep: float | None, most: int | None, gone: list[str]
) -> None:
    """The oldest first, and never this run's."""
    three_runs(root, path)
    pruned = versions.prune(root, "job.1", keep, most, BEGAN + 2 * HOUR + 1, NOW)
    assert pruned.runs == gone
    assert pruned.problems == []
    assert {run for run, _path, _kind in told(root)} == {OLD, NEW, NOW} - set(gone)
    assert list((path / ".serversync" / "job.1" / "trash").iterdir()) == []
    if most is not None and most >= 100_000:
        assert 70_000 <= pruned.size <= most


def test_the_tenth_attempt_comes_after_the_second(root: int, path: Path) -> None:
    for run in (f"{NOW}.10", f"{NOW}.2", NOW, NOW, f"{NOW}.10"):
        (path / "x").write_text("x")
        delete(root, path, run, "x")
    assert [run for run, _path, _kind in told(root)] == [NOW, f"{NOW}~1", f"{NOW}.2", f"{NOW}.10", f"{NOW}.10~1"]


def test_nothing_of_this_run_is_pruned(root: int, path: Path) -> None:
    for content in ("one", "two"):
        (path / "x").write_text(content)
        delete(root, path, NOW, "x")
    assert [run for run, _path, _kind in told(root)] == [NOW, f"{NOW}~1"]
    assert versions.prune(root, "job.1", 0, 0, BEGAN + 9 * HOUR, NOW).runs == []
    # Another attempt of it is the same run.
    assert versions.prune(root, "job.1", 0, 0, BEGAN + 9 * HOUR, f"{NOW}.2").runs == []
    assert versions.prune(root, "job.1", 0, 0, BEGAN + 9 * HOUR, NEW).runs == [NOW, f"{NOW}~1"]


def test_a_clock_that_went_back_removes_nothing(root: int, path: Path) -> None:
    three_runs(root, path)
    assert versions.prune(root, "job.1", 0, None, BEGAN - 86400, "20261121T023000Z-ab12").runs == []


def test_what_a_run_by_a_slow_clock_displaced_is_as_old_as_its_directory(root: int, path: Path) -> None:
    (path / "x").write_text("x")
    delete(root, path, "19700101T000107Z-ab12", "x")
    os.utime(store(path) / "19700101T000107Z-ab12", (BEGAN, BEGAN))
    assert versions.prune(root, "job.1", HOUR, None, BEGAN + HOUR, NOW).runs == []
    assert versions.prune(root, "job.1", HOUR, None, BEGAN + HOUR + 1, NOW).runs == ["19700101T000107Z-ab12"]


def test_pruning_where_nothing_was_ever_displaced(root: int, path: Path) -> None:
    assert versions.prune(root, "job.1", 0, 0, BEGAN, NOW) == ([], 0, [])
    assert not (path / ".serversync").exists()


def test_another_runs_versions_are_measured_once(root: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_runs(root, path)
    first = versions.prune(root, "job.1", None, 10**9, BEGAN, NOW)
    measured: list[str] = []
    real = versions.measured
    monkeypatch.setattr(versions, "measured", lambda store, run: (measured.append(run), real(store, run))[1])
    assert versions.prune(root, "job.1", None, 10**9, BEGAN, NOW) == first
    assert measured == [NOW]
    sizes = path / ".serversync" / "job.1" / "sizes.json"
    before = sizes.stat().st_ino
    versions.prune(root, "job.1", None, 10**9, BEGAN, NOW)
    assert sizes.stat().st_ino == before, "what is known already is not written again"
    assert set(json.loads(sizes.read_text())) == {OLD, NEW}
    versions.restore(root, "job.1", b"x", OLD, NOW)
    assert set(json.loads(sizes.read_text())) == {NEW}


@pytest.mark.parametrize("damage", ["", "[]", '{"20261122T023000Z-ab12": "many"}', "\0" * 40])
def test_sizes_that_cannot_be_read_are_measured_again(root: int, path: Path, damage: str) -> None:
    three_runs(root, path)
    first = versions.prune(root, "job.1", None, 10**9, BEGAN, NOW)
    (path / ".serversync" / "job.1" / "sizes.json").write_text(damage)
    assert versions.prune(root, "job.1", None, 10**9, BEGAN, NOW) == first


def test_pruning_removes_what_is_deep_closed_and_odd(root: int, path: Path) -> None:
    deep = store(path) / OLD
    for level in range(30):
        deep = deep / ("d" * 200)
        if len(str(deep)) > 3500:
            break
        deep.mkdir(parents=True)
        (deep / f"file{level}").write_text("x")
    (store(path) / OLD / "link").symlink_to(path)
    os.mkfifo(store(path) / OLD / "fifo")
    closed = store(path) / OLD / "closed"
    (closed / "inner").mkdir(parents=True)
    (closed / "inner" / "file").write_text("x")
    (closed / "inner").chmod(0)
    closed.chmod(0o500)
    os.utime(store(path) / OLD, (BEGAN, BEGAN))
    (store(path) / "not a run").mkdir()
    (path / "live").write_text("x")
    assert versions.prune(root, "job.1", 0, None, BEGAN + HOUR, NOW) == ([OLD], 0, [])
    assert [found.name for found in store(path).iterdir()] == ["not a run"]
    assert list((path / ".serversync" / "job.1" / "trash").iterdir()) == []
    assert (path / "live").read_text() == "x"


def test_what_cannot_be_removed_is_told_and_the_rest_removed(
    root: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "stuck", "z"):
        (path / name).write_text("x")
    delete(root, path, OLD, "a", "stuck", "z")
    real = os.unlink

    def unlink(name: str, **options: int) -> None:
        if name == "stuck":
            raise PermissionError(1, "Operation not permitted", name)
        real(name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "unlink", unlink)
    pruned = versions.prune(root, "job.1", 0, None, BEGAN + HOUR, NOW)
    assert pruned.runs == [OLD]
    assert any("Operation not permitted: 'stuck'" in problem for problem in pruned.problems)
    trash = path / ".serversync" / "job.1" / "trash"
    assert [found.name for found in trash.rglob("*") if not found.is_dir()] == ["stuck"]
    monkeypatch.undo()
    assert told(root) == []
    (path / "b").write_text("x")
    delete(root, path, NEW, "b")
    assert list(trash.iterdir()) == [], "the next run gets rid of it"
