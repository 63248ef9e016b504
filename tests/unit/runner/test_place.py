# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import time
from pathlib import Path

import pytest
from serversync import place
from serversync.failure import Failure


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dir" / "sub").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("dir")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "directory"),
        ("/dir", "directory"),
        ("//dir//sub/", "directory"),
        ("/file", "file"),
        ("/link", "link"),
        ("/none", "missing"),
        ("/none/deeper/still", "missing"),
        ("/link/sub", "blocked"),
        ("/file/x", "blocked"),
    ],
)
def test_kinds(root: Path, path: str, kind: str) -> None:
    assert place.look(f"{root}{path}")["kind"] == kind


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/..", "/a/./b", "/a\0b", ""])
def test_spellings_that_are_refused(path: str) -> None:
    with pytest.raises(Failure, match="is not an absolute path"):
        place.look(path)


def test_prepare_makes_what_is_missing_and_is_repeatable(root: Path) -> None:
    run = "20261122T023000Z-ab12"
    for _time in range(2):
        scratch = place.prepare(f"{root}/new/deeper", "directory", "job.1234abcd", run)
    own = ".serversync/job.1234abcd"
    assert scratch == {"versions": f"{own}/versions/{run}", "temporary": f"{own}/temporary"}
    assert (root / "new" / "deeper" / ".serversync").stat().st_mode & 0o777 == 0o700
    assert not (root / "new" / "deeper" / scratch["versions"]).exists()


def test_prepare_does_not_walk_through_links(root: Path) -> None:
    with pytest.raises(OSError, match="Not a directory"):
        place.prepare(f"{root}/link/new", "directory", "job.1", "20261122T023000Z-ab12")
    assert not (root / "dir" / "new").exists()


@pytest.mark.parametrize("word", ["..", "a/b", "", ".hidden", "a" * 200])
def test_names_from_the_other_side_stay_names(root: Path, word: str) -> None:
    with pytest.raises(Failure, match="is not a name for a directory"):
        place.prepare(f"{root}/dir", "directory", word, "20261122T023000Z-ab12")
    with pytest.raises(Failure, match="is not a name for a directory"):
        place.prepare(f"{root}/dir", "directory", "job.1", word)


def test_old_versions_go_and_young_and_strange_ones_stay(root: Path) -> None:
    versions = root / "dir" / ".serversync" / "job.1" / "versions"
    for name in ("20261101T000000Z-0001", "20261116T000000Z-0002", "20261122T000000Z-0003", "somebody's own"):
        (versions / name).mkdir(parents=True)
        (versions / name / "file").write_text("x")
    place.prepare(f"{root}/dir", "directory", "job.1", "20261122T023000Z-ab12")
    left = sorted(path.name for path in versions.iterdir())
    assert left == ["20261116T000000Z-0002", "20261122T000000Z-0003", "somebody's own"]


def test_a_fast_clock_on_one_side_removes_nothing_too_early(root: Path) -> None:
    versions = root / "dir" / ".serversync" / "job.1" / "versions"
    young = time.strftime(place.RUN_TIME, time.gmtime(time.time() - 86400)) + "-0001"
    (versions / young).mkdir(parents=True)
    place.prepare(f"{root}/dir", "directory", "job.1", "99991231T000000Z-cccc")
    assert [path.name for path in versions.iterdir()] == [young]


def test_what_a_killed_run_left_half_arrived_goes(root: Path) -> None:
    temporary = root / "dir" / ".serversync" / "job.1" / "temporary"
    (temporary / "directory").mkdir(parents=True)
    (temporary / ".big.Xy12ab").write_text("half")
    (temporary / "link").symlink_to(root / "file")
    place.prepare(f"{root}/dir", "directory", "job.1", "20261122T023000Z-ab12")
    assert list(temporary.iterdir()) == []
    assert (root / "file").read_text() == "x"


def test_the_room_of_a_mount_point_is_that_of_what_is_mounted_there() -> None:
    assert place.look("/")["free_bytes"] > 0
    assert place.look("/proc")["free_bytes"] == 0


def test_what_arrives_for_another_file_system_needs_no_room_on_this_one(tmp_path: Path) -> None:
    assert place.mounted_below("/")
    assert not place.mounted_below("/proc/self")
    assert not place.mounted_below(str(tmp_path))
