# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serversync import archive as module
from serversync.archive import Archive, DamagedArchive, Intent, Update
from serversync.entry import HERE, THERE, Row, pack
from serversync.failure import Failure
from serversync.machine import known_as

IDENTITY = {"this_server": {"machine": "a", "path": "/srv/\udcff", "inode": 2}, "partner": {"path": "/srv"}}
STATUSES = ("kept", "left", "unresolved")


def record(inode: int = 1, size: int = 4, links: int = 1, kind: str = "f", link: str = "") -> bytes:
    return f"{kind} {inode} 1763849999.1234567890 1763849999.0000000000 {size} 644 0 0 {links} {link}".encode()


def agreed(path: bytes, inode: int = 1, size: int = 4, links: int = 1) -> Row:
    return Row(path, "agreed", record(inode, size, links), b"", record(inode + 1, size, links), b"")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archives" / "job" / "element.sqlite"


@pytest.fixture
def archive(path: Path) -> Iterator[Archive]:
    with Archive.open(path, IDENTITY) as opened:
        yield opened


def contents(archive: Archive) -> tuple[Any, ...]:
    """Everything that can be read from an archive, by every way."""
    rows = list(archive.below(b""))
    assert all(archive.row(row.path) == row for row in rows)
    return (
        sorted(rows),
        archive.rows_count,
        archive.counts,
        list(archive.directories()),
        sorted(archive.standing(STATUSES)),
        sorted(archive.racy()),
        [archive.by_inode(side, inode) for side in (HERE, THERE) for inode in (1, 2, 3)],
        archive.intents(),
        archive.streams(),
        archive.generation,
        archive.settings,
        archive.runs,
    )


# What is written is read.

ROWS = [
    Row(b"", "agreed", record(kind="d", links=3), b"", record(kind="d"), b""),
    Row(b"absent here", "left", None, b"", record(9), b"", by="delete"),
    Row(b"absent there", "kept", record(9), b"", None, b"", by="conflict"),
    Row(b"dir", "agreed", record(kind="d", links=2), b"", record(kind="d", links=2), b""),
    Row(b"dir-x/after dir in one order, before dir/ in another", "agreed", record(), b"", record(), b""),
    Row(b"dir/\xff\n\x01'\"", "agreed", record(), b"0 ab cd", record(), b"5  "),
    Row(b"dir/sub/link", "agreed", record(kind="l", link="text 1 "), b"", record(kind="l", link="x 1 "), b""),
    Row(b"racy", "agreed", record(), b"", record(), b"", racy="ht"),
    Row(
        b"un",
        "unresolved",
        record(),
        b"",
        record(),
        b"",
        pack([(b"here", b"x", b""), (b"there", b"y", b"")]),
        "h",
        "guard",
    ),
]


def test_rows_come_back_as_they_were_put(archive: Archive, path: Path) -> None:
    archive.commit(Update(rows=reversed(ROWS)))
    archive.close()
    with Archive.open(path, IDENTITY) as again:
        assert [again.row(row.path) for row in ROWS] == ROWS
        assert again.row(b"dir/none") is None
        assert again.row(b"none/none") is None
        assert [row.path for row in again.rows(b"")] == [b"absent here", b"absent there", b"dir", b"racy", b"un"]
        assert again.rows(b"dir") == [ROWS[5]]
        assert again.rows(b"none") == []
        assert list(again.below(b"dir")) == [ROWS[5], ROWS[6]]
        assert sorted(again.below(b"")) == sorted(ROWS[1:])
        assert list(again.standing({"kept", "unresolved"})) == [ROWS[2], ROWS[8]]
        assert list(again.racy()) == [ROWS[7], ROWS[8]]
        assert again.counts == {"kept": 1, "left": 1, "unresolved": 1, "racy": 2}
        assert again.rows_count == len(ROWS)


def test_a_state_that_is_none_is_refused_and_nothing_changed(archive: Archive) -> None:
    with pytest.raises(ValueError, match="is no state of a row"):
        archive.commit(Update(rows=[ROWS[3], ROWS[3]._replace(path=b"x", status="fine")]))
    assert list(archive.below(b"")) == []
    archive.commit(Update(rows=[ROWS[3]]))
    assert list(archive.below(b"")) == [ROWS[3]]


def test_hard_links_are_found_by_inode_as_long_as_they_are_links(archive: Archive) -> None:
    two = [agreed(b"a/x", 7, links=2), agreed(b"b", 7, links=2)]
    archive.commit(
        Update(rows=[*two, agreed(b"c", 7), Row(b"d", "agreed", record(7, kind="d", links=2), b"", None, b"")])
    )
    assert archive.by_inode(HERE, 7) == two
    assert archive.by_inode(THERE, 8) == two
    assert archive.by_inode(THERE, 7) == []
    archive.commit(Update(rows=[agreed(b"b", 7)], dropped=[b"a/x"]))
    assert archive.by_inode(HERE, 7) == []


def test_digests_hold_until_rows_change(archive: Archive) -> None:
    archive.commit(Update(rows=[agreed(b"a/x"), agreed(b"b/x")], streams=(b"s", b"t")))
    archive.commit(
        Update(directories=[(b"", b"1", b"2"), (b"a", b"3", None), (b"b", b"4", b""), (b"empty", b"5", b"6")])
    )
    known = [(b"", b"1", b"2"), (b"a", b"3", None), (b"b", b"4", b""), (b"empty", b"5", b"6")]
    assert list(archive.directories()) == known
    assert archive.streams() == (b"s", b"t")
    archive.commit(Update(rows=[agreed(b"a/x", size=5)], directories_dropped=[b"empty"]))
    assert list(archive.directories()) == [(b"", b"1", b"2"), (b"a", None, None), (b"b", b"4", b"")]
    assert archive.streams() == (b"", b"")
    archive.commit(Update(dropped=[b"a/x", b"b/x", b"none"], directories_dropped=[b""]))
    assert list(archive.directories()) == []


def test_one_update_says_rows_and_their_digests(archive: Archive) -> None:
    archive.commit(Update(rows=[agreed(b"a/x")], directories=[(b"a", b"1", b"2")], streams=(b"s", b"t")))
    assert list(archive.directories()) == [(b"a", b"1", b"2")]
    assert archive.streams() == (b"s", b"t")


def test_the_journal_is_kept_in_order_until_the_next_commit(archive: Archive, path: Path) -> None:
    first = [Intent(b"a", HERE, None, record()), Intent(b"b", THERE, record(), None)]
    second = [Intent(b"a", THERE, record(), record(0), b"0 aa ", b"7  ")]
    archive.intend(first)
    archive.intend(second)
    archive.close()
    with Archive.open(path, IDENTITY) as again:
        assert again.intents() == first + second
        again.commit(Update())
        assert again.intents() == []
        again.intend(second)
        assert again.intents() == second


def test_generations_settings_and_runs(archive: Archive) -> None:
    assert (archive.generation, archive.settings, archive.runs) == (("", ""), {}, 0)
    archive.begin("aa", [HERE])
    assert archive.generation == ("", "aa")
    archive.commit(Update(generation="aa", settings={"direction": "both"}, finished=True))
    assert archive.generation == ("aa", "")
    archive.begin("bb", [THERE])
    assert archive.generation == ("aa", "bb")
    archive.commit(Update(finished=True))
    assert (archive.generation, archive.settings, archive.runs) == (("aa", "bb"), {"direction": "both"}, 2)
    archive.commit(Update(finished=True, verified=True))
    assert archive.runs == 0


@pytest.mark.parametrize(
    "begin",
    [
        lambda archive: archive.below(b""),
        lambda archive: archive.children(b"many"),
        lambda archive: archive.directories(),
        lambda archive: archive.standing(STATUSES),
    ],
)
def test_iterating_over_a_change_is_refused_not_taken_for_damage(
    archive: Archive, begin: Callable[[Archive], Iterator[Any]]
) -> None:
    many = [agreed(b"many/%03d" % number) for number in range(200)]
    archive.commit(Update(rows=[*ROWS, *many]))
    reading = begin(archive)
    next(reading)
    archive.commit(Update(dropped=[row.path for row in (*ROWS, *many)]))
    with pytest.raises(RuntimeError, match="changed while it was read"):
        list(reading)


def test_what_a_run_commits_meanwhile_is_no_damage_to_a_reader(archive: Archive, path: Path) -> None:
    archive.commit(Update(rows=ROWS))
    with Archive(path, reading=True) as reader:
        archive.commit(Update(rows=[agreed(b"later")], dropped=[ROWS[2].path]))
        assert sorted(reader.below(b"")) == sorted(ROWS[1:])
        assert list(reader.standing({"kept", "unresolved"})) == [ROWS[2], ROWS[8]]
    with Archive(path, reading=True) as reader:
        assert reader.row(b"later") == agreed(b"later")


NAMES = st.sampled_from([b"a", b"b", b"c", b"-", b"0", b"\xff"])
PATHS = st.lists(NAMES, max_size=3).map(b"/".join)
HALVES = st.one_of(
    st.none(),
    st.builds(record, st.integers(1, 3), st.integers(0, 1), st.integers(1, 2), st.sampled_from("fdl")),
)
STATES = st.sampled_from(list(module.FLAGS))


@st.composite
def rows(draw: st.DrawFn) -> Row:
    status, racy, by = draw(STATES)
    base = pack([(b"here", record(), b""), (b"there", b"", b"")]) if status == "unresolved" else b""
    return Row(draw(PATHS), status, draw(HALVES), b"", draw(HALVES), b"0 aa ", base, racy, by)


UPDATES = st.lists(st.tuples(st.lists(rows(), max_size=40), st.lists(PATHS, max_size=20)), max_size=6)


@given(updates=UPDATES, reopen=st.booleans())
def test_any_updates_leave_what_a_dictionary_would_hold(
    updates: list[tuple[list[Row], list[bytes]]], reopen: bool
) -> None:
    model: dict[bytes, Row] = {}
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 2)
        patch.setattr(module, "BATCH", 7)
        archive = Archive.open(Path(directory) / "x.sqlite", IDENTITY)
        for put, dropped in updates:
            archive.commit(Update(rows=put, dropped=dropped))
            model.update({row.path: row for row in put})
            for name in dropped:
                model.pop(name, None)
            if reopen:
                archive.close()
                archive = Archive.open(archive.path, IDENTITY)
        with archive:
            held = sorted(model.values())
            assert [archive.row(row.path) for row in held] == held
            assert sorted(archive.below(b"")) == [row for row in held if row.path]
            assert archive.rows_count == len(held)
            parents = {row.path.rpartition(b"/")[0] for row in held if row.path}
            assert [name for name, _here, _there in archive.directories()] == sorted(parents)
            for parent in parents:
                children = [row for row in held if row.path and row.path.rpartition(b"/")[0] == parent]
                assert archive.rows(parent) == children
            for status in STATUSES:
                assert sorted(archive.standing({status})) == [row for row in held if row.status == status]
            assert sorted(archive.racy()) == [row for row in held if row.racy]
            for inode in (1, 2, 3):
                assert archive.by_inode(HERE, inode) == [row for row in held if linked(row.here, inode)]
                assert archive.by_inode(THERE, inode) == [row for row in held if linked(row.there, inode)]


def linked(half: bytes | None, inode: int) -> bool:
    kind, number, *rest = (half or b"d 0 0 0 0 0 0 0 0 ").split(b" ")
    return kind != b"d" and int(number) == inode and rest[6] != b"1"


# Which archive it is.


def test_a_new_archive_is_private_and_stays_new_until_a_run_is_finished(path: Path) -> None:
    for _run in range(2):
        with Archive.open(path, IDENTITY) as archive:
            assert (archive.condition, archive.warnings) == ("new", [])
            archive.commit(Update(rows=[agreed(b"a")]))
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
    with Archive.open(path, IDENTITY) as archive:
        archive.commit(Update(finished=True))
        assert archive.condition == "current"
    with Archive.open(path, IDENTITY) as archive:
        assert (archive.condition, archive.warnings, archive.identity) == ("current", [], IDENTITY)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_other_replicas_void_it(path: Path) -> None:
    with Archive.open(path, IDENTITY) as archive:
        archive.commit(Update(rows=[agreed(b"a")], finished=True))
    other = {**IDENTITY, "partner": {"path": "/elsewhere"}}
    with Archive.open(path, other) as archive:
        assert (archive.condition, archive.rows_count, archive.identity) == ("void", 0, other)
        assert "is void: it is of other replicas" in archive.warnings[0]
    with Archive.open(path, other) as archive:
        assert archive.condition == "void"
        assert archive.warnings == [
            f"the archive {path} was begun anew (void), and no run has been finished since; nothing is deleted"
        ]
    with Archive(Path(f"{path}.aside.1")) as old:
        assert old.row(b"a")


def test_an_archive_with_machine_ids_goes_on_without_them(path: Path) -> None:
    there = {"machine": "0" * 32, "path": "/srv"}
    identity = {"this_server": {"machine": "f" * 32, "path": "/srv"}, "partner": there}
    now = {side: {**one, "machine": known_as(one["machine"])} for side, one in identity.items()}
    with Archive.open(path, identity) as archive:
        archive.commit(Update(rows=[agreed(b"a")], finished=True))
    for _time in range(2):
        with Archive.open(path, now) as archive:
            assert (archive.condition, archive.warnings, archive.rows_count) == ("current", [], 1)
    with Archive.open(path, {**now, "partner": there}) as archive:
        assert archive.condition == "void", "the machine id is still in it"


def test_the_newest_three_are_kept_aside(path: Path) -> None:
    archive = Archive.open(path, IDENTITY)
    for number in range(5):
        archive.commit(Update(generation=str(number)))
        archive = archive.restart("void", "its generation is not the marker's")
    archive.close()
    kept = sorted(entry.name for entry in path.parent.iterdir())
    assert kept == [path.name, *(f"{path.name}.aside.{number}" for number in (1, 2, 3))]
    for number, generation in ((1, "4"), (2, "3"), (3, "2")):
        with Archive(Path(f"{path}.aside.{number}")) as old:
            assert old.generation[0] == generation


def test_adopting_an_archive_from_another_path(path: Path, tmp_path: Path) -> None:
    previous = tmp_path / "archives" / "old name" / "element.sqlite"
    assert not Archive.adopt(path, previous)
    with Archive.open(previous, IDENTITY) as archive:
        archive.commit(Update(rows=ROWS, finished=True))
    assert Archive.adopt(path, previous)
    other = {"this_server": "other"}
    for _run in range(2):
        with Archive.open(path, other) as archive:
            assert (archive.condition, archive.warnings) == ("current", [])
            assert (archive.rows_count, archive.identity) == (len(ROWS), other)
    assert list(previous.parent.iterdir()) == []
    with Archive.open(previous, IDENTITY):
        pass
    assert not Archive.adopt(path, previous)


def test_adopting_takes_the_log_along(path: Path, tmp_path: Path) -> None:
    """Someone who looks into the old one keeps its log from being played into the file."""
    previous = tmp_path / "old" / "element.sqlite"
    with Archive.open(previous, IDENTITY) as archive, closing(sqlite3.connect(previous)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM state").fetchall()
        archive.commit(Update(rows=ROWS, finished=True))
        archive.close()
        assert Archive.adopt(path, previous)
        assert list(previous.parent.iterdir()) == []
        with Archive.open(path, IDENTITY) as adopted:
            assert (adopted.condition, adopted.rows_count) == ("current", len(ROWS))


def test_adopting_damage_finds_it(path: Path, tmp_path: Path) -> None:
    previous = tmp_path / "old.sqlite"
    previous.write_bytes(b"not a database, but long enough to be looked at as one" * 100)
    assert Archive.adopt(path, previous)
    with Archive.open(path, IDENTITY) as archive:
        assert archive.condition == "damaged"


# Damage.


@pytest.mark.parametrize("data", [b"", b"x", b"SQLite format 3\0", bytes(8192), b"text\n" * 2000])
def test_what_is_no_archive_is_kept_aside_and_a_new_one_begun(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with Archive.open(path, IDENTITY) as archive:
        assert archive.condition == "damaged"
        assert archive.warnings[0].startswith(f"the archive {path} is damaged: ")
        assert archive.warnings[0].endswith("a new one is begun, and nothing is deleted")
        archive.commit(Update(rows=ROWS))
    assert Path(f"{path}.aside.1").read_bytes() == data


def test_a_log_that_lost_its_file_is_not_played_into_the_new_one(
    path: Path, unfinished: tuple[bytes, bytes, list[tuple[Any, ...]]]
) -> None:
    path.parent.mkdir(parents=True)
    Path(f"{path}-wal").write_bytes(unfinished[1])
    with Archive.open(path, IDENTITY) as archive:
        assert (archive.condition, archive.rows_count) == ("new", 0)


def test_tables_that_someone_has_touched_are_not_trusted(path: Path) -> None:
    with Archive.open(path, IDENTITY) as archive:
        archive.commit(Update(finished=True))
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TRIGGER own AFTER INSERT ON chunks BEGIN DELETE FROM marks; END")
    with Archive.open(path, IDENTITY) as archive:
        assert archive.condition == "damaged"


def test_another_database_is_no_archive(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE state (id INTEGER PRIMARY KEY)")
    with Archive.open(path, IDENTITY) as archive:
        assert archive.condition == "damaged"


COMMITS: list[Callable[[Archive], None]] = [
    lambda archive: archive.commit(
        Update(
            rows=[*ROWS, *(agreed(b"many/%04d" % number, number, links=1 + number % 7 // 6) for number in range(400))],
            directories=[(b"dir", b"1" * 16, b"2" * 16)],
            streams=(b"s", b"t"),
            generation="g0",
            settings={"exclude": ["*.tmp"]},
            finished=True,
        )
    ),
    lambda archive: archive.intend([Intent(b"un", HERE, record(), record(0))]),
    lambda archive: archive.begin("g1", [HERE, THERE]),
    lambda archive: archive.commit(
        Update(
            rows=[
                ROWS[8]._replace(status="agreed", racy="", by=""),
                *(agreed(b"many/%04d" % n, 5, 9) for n in range(0, 400, 60)),
            ],
            dropped=[b"racy", *(b"many/%04d" % number for number in range(100, 200))],
            directories=[(b"d%04d" % number, b"1", b"2") for number in range(100)],
            generation="g1",
            finished=True,
        )
    ),
]


def build(path: Path) -> list[tuple[Any, ...]]:
    """Carries out COMMITS; the archive's contents after each."""
    states = []
    with Archive.open(path, IDENTITY) as archive:
        for commit in COMMITS:
            commit(archive)
            states.append(contents(archive))
    return states


def judge(path: Path, states: list[tuple[Any, ...]]) -> str:
    """Reads everything: either exactly what was there after one of the commits, or it is found to be damaged."""
    with Archive.open(path, IDENTITY) as archive:
        if archive.condition != "current":
            assert archive.condition == "damaged"
            return "damaged"
        try:
            found = contents(archive)
        except DamagedArchive as error:
            with archive.restart("damaged", error.message) as again:
                assert again.condition == "damaged"
                return "damaged"
        assert found in states
        return "whole"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[tuple[Any, ...]]]:
    path = tmp_path_factory.mktemp("built") / "x.sqlite"
    states = build(path)
    return path.read_bytes(), states


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, list[tuple[Any, ...]]]:
    """The file, its log as a killed run leaves it, and the contents after each commit."""
    path = tmp_path_factory.mktemp("unfinished") / "x.sqlite"
    states = []
    with Archive.open(path, IDENTITY) as archive:
        for commit in COMMITS:
            commit(archive)
            states.append(contents(archive))
        return path.read_bytes(), Path(f"{path}-wal").read_bytes(), states


def test_an_undamaged_copy_is_whole(tmp_path: Path, built: Any, unfinished: Any) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(built[0])
    assert judge(path, built[1][-1:]) == "whole"
    path.write_bytes(unfinished[0])
    Path(f"{path}-wal").write_bytes(unfinished[1])
    assert judge(path, unfinished[2][-1:]) == "whole"


@given(data=st.data())
def test_flipped_bytes_are_found(built: tuple[bytes, list[tuple[Any, ...]]], data: st.DataObject) -> None:
    whole, states = built
    damaged = bytearray(whole)
    for _flip in range(data.draw(st.integers(1, 4))):
        # Half of the time in the head of a page, where the trees are.
        offset = data.draw(
            st.one_of(
                st.integers(0, len(whole) - 1),
                st.builds(
                    lambda page, at: page * 4096 + at, st.integers(0, len(whole) // 4096 - 1), st.integers(0, 40)
                ),
            )
        )
        damaged[offset] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.sqlite"
        path.write_bytes(damaged)
        judge(path, states[-1:])


def test_damage_that_sqlite_quotes_is_found(tmp_path: Path, built: tuple[bytes, list[tuple[Any, ...]]]) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(built[0].replace(b"CREATE TABLE links", b"CREA\x84E TABLE links"))
    assert judge(path, []) == "damaged"


def test_a_changed_state_is_found(tmp_path: Path, built: tuple[bytes, list[tuple[Any, ...]]]) -> None:
    path = tmp_path / "x.sqlite"
    assert b'"condition": "current"' in built[0]
    path.write_bytes(built[0].replace(b'"condition": "current"', b'"condition": "Current"'))
    assert judge(path, []) == "damaged"


@given(first=st.integers(0, 200), second=st.integers(0, 200))
def test_exchanged_pages_are_found(built: tuple[bytes, list[tuple[Any, ...]]], first: int, second: int) -> None:
    whole, states = built
    pages = [whole[start : start + 4096] for start in range(0, len(whole), 4096)]
    first, second = first % len(pages), second % len(pages)
    pages[first], pages[second] = pages[second], pages[first]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.sqlite"
        path.write_bytes(b"".join(pages))
        judge(path, states[-1:])


def test_any_two_pages_of_a_tree_exchanged_are_found(tmp_path: Path) -> None:
    """Every row is there and its seal is right, but look-ups would go astray."""
    path = tmp_path / "x.sqlite"
    with Archive.open(path, IDENTITY) as archive:
        archive.commit(
            Update(directories=[(b"%04d" % number, b"1" * 16, None) for number in range(300)], finished=True)
        )
    whole = path.read_bytes()
    pages = [whole[start : start + 4096] for start in range(0, len(whole), 4096)]
    for first, second in combinations(range(1, len(pages)), 2):
        if pages[first] == pages[second]:
            continue
        exchanged = list(pages)
        exchanged[first], exchanged[second] = pages[second], pages[first]
        path.write_bytes(b"".join(exchanged))
        with Archive.open(path, IDENTITY) as archive:
            if archive.condition == "current":
                with pytest.raises(DamagedArchive):
                    archive.commit(Update(rows=[agreed(b"0299/x")]))


def test_a_page_of_zeros_is_found(tmp_path: Path, built: tuple[bytes, list[tuple[Any, ...]]]) -> None:
    whole, states = built
    path = tmp_path / "x.sqlite"
    found = []
    for start in range(0, len(whole), 4096):
        path.write_bytes(whole[:start] + bytes(4096) + whole[start + 4096 :])
        found.append(judge(path, states[-1:]))
    # Pages that are in no use may hold anything.
    assert found.count("damaged") > len(found) // 2


def test_a_truncated_file_is_found(tmp_path: Path, built: tuple[bytes, list[tuple[Any, ...]]]) -> None:
    whole, states = built
    path = tmp_path / "x.sqlite"
    for length in range(0, len(whole), 1024):
        path.write_bytes(whole[:length])
        assert judge(path, states) == "damaged", length


def test_a_page_from_another_day_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with Archive.open(path, IDENTITY) as archive:
        COMMITS[0](archive)
    old = path.read_bytes()
    with Archive.open(path, IDENTITY) as archive:
        archive.commit(Update(rows=[agreed(b"many/0399", 3, 3)]))
        states = [contents(archive)]
    new = path.read_bytes()
    stale = [start for start in range(0, len(new), 4096) if new[start : start + 4096] != old[start : start + 4096]]
    found = []
    for start in stale:
        path.write_bytes(new[:start] + old[start : start + 4096] + new[start + 4096 :])
        found.append(judge(path, states))
    # The state, the directory, the chunk and the links; elsewhere only what is in no use differs.
    assert found.count("damaged") >= 4


@given(data=st.data())
def test_a_damaged_log_gives_an_earlier_commit_or_is_found(
    unfinished: tuple[bytes, bytes, list[tuple[Any, ...]]], data: st.DataObject
) -> None:
    file, log, states = unfinished
    offset = data.draw(st.integers(0, len(log) - 1))
    cut = data.draw(st.booleans())
    damaged = log[:offset] + (b"" if cut else bytes([log[offset] ^ data.draw(st.integers(1, 255))]) + log[offset + 1 :])
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.sqlite"
        path.write_bytes(file)
        Path(f"{path}-wal").write_bytes(damaged)
        with Archive.open(path, IDENTITY) as archive:
            if archive.condition == "new" and archive.rows_count == 0:
                return
        judge(path, states)


def test_a_log_beside_a_file_from_another_day_is_found(tmp_path: Path) -> None:
    """An administrator puts last week's file back where a killed run has left its log."""
    path, log = tmp_path / "x.sqlite", tmp_path / "x.sqlite-wal"
    with Archive.open(path, IDENTITY) as archive:
        archive.commit(Update(rows=[agreed(b"many/%04d" % number) for number in range(400)], finished=True))
    old = path.read_bytes()
    with Archive.open(path, IDENTITY) as archive:
        archive.commit(Update(rows=[agreed(b"many/%04d" % number, 8, 8) for number in range(200)]))
    with Archive.open(path, IDENTITY) as archive:
        archive.commit(Update(rows=[agreed(b"other/%04d" % number) for number in range(100)]))
        states = [contents(archive)]
        newer = log.read_bytes()
    path.write_bytes(old)
    log.write_bytes(newer)
    assert judge(path, states) == "damaged"


def test_damage_is_found_before_anything_is_built_upon_it(
    tmp_path: Path, built: tuple[bytes, list[tuple[Any, ...]]]
) -> None:
    whole, _states = built
    path = tmp_path / "x.sqlite"
    refused = 0
    for start in range(4096, len(whole), 4096):
        path.write_bytes(whole[:start] + bytes([whole[start] ^ 1]) + whole[start + 1 :])
        with Archive.open(path, IDENTITY) as archive:
            try:
                archive.commit(Update(rows=[agreed(b"many/0000", 3, 3)]))
            except DamagedArchive:
                refused += 1
    assert refused > 3


# The disk.


@contextmanager
def full(directory: Path) -> Iterator[Callable[[], None]]:
    """No room below the directory, until what is yielded is called: a small file system, or a limit on files."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(directory)]
    if os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0:
        try:
            remount = ["mount", "-o", "remount,size=64m", str(directory)]
            yield lambda: subprocess.run(remount, check=True) and None
        finally:
            # Lazy: a test that failed may hold a file there.
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))
        try:
            yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_changes_nothing_and_the_next_commit_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with full(tmp_path) as make_room:
        archive = Archive.open(path, IDENTITY)
        archive.commit(Update(rows=ROWS, finished=True))
        archive.intend([Intent(b"a", HERE, None, record())])
        before = contents(archive)
        many = [agreed(b"many/%06d" % number) for number in range(5000)]
        with pytest.raises(Failure, match=r"the archive .* cannot be used") as caught:
            archive.commit(Update(rows=many))
        assert (caught.value.code in ("no_space", "archive"), caught.value.transient) == (True, True)
        assert not isinstance(caught.value, DamagedArchive)
        assert contents(archive) == before
        make_room()
        archive.commit(Update(rows=many))
        archive.close()
        with Archive.open(path, IDENTITY) as again:
            assert again.condition == "current"
            assert again.rows(b"many") == many


def test_a_place_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="cannot be used") as caught:
        Archive.open(tmp_path / "file" / "x.sqlite", IDENTITY)
    assert caught.value.code == "archive"
    (tmp_path / "directory").mkdir()
    with pytest.raises(Failure, match="unable to open database file"):
        Archive.open(tmp_path / "directory", IDENTITY)


# Killed.

CALLS = {"connect", "execute", "executemany", "close", "open", "mkdir", "replace", "unlink", "fsync"}


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Does the work in a process that kills itself at the step-th call that could reach the disk; whether it was."""
    child = os.fork()
    if child == 0:
        left = step

        def count(_frame: Any, event: str, call: Any) -> None:
            nonlocal left
            if event == "c_call" and call.__name__ in CALLS:
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.setprofile(count)
        try:
            work()
        finally:
            sys.setprofile(None)
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_at_any_step_it_holds_the_last_commit_or_the_one_under_way(tmp_path: Path) -> None:
    states = [None, *build(tmp_path / "undisturbed.sqlite")]
    path, done = tmp_path / "killed" / "x.sqlite", tmp_path / "done"

    def work() -> None:
        archive = Archive.open(path, IDENTITY)
        for commit in COMMITS:
            commit(archive)
            with done.open("ab") as stream:
                stream.write(b".")
        archive.close()

    step, killed = 0, True
    while killed:
        shutil.rmtree(path.parent, ignore_errors=True)
        done.write_bytes(b"")
        killed = killed_at(step, work)
        finished = len(done.read_bytes())
        with Archive.open(path, IDENTITY) as archive:
            assert archive.warnings == []
            found = contents(archive) if archive.rows_count else None
            assert found in states[finished : finished + 2], step
            assert archive.condition == ("current" if found else "new")
            archive.commit(Update(rows=[agreed(b"goes on")]))
        step += 1
    assert step > 60


def test_killed_while_it_is_begun_anew_nothing_old_comes_back(
    tmp_path: Path, unfinished: tuple[bytes, bytes, list[tuple[Any, ...]]]
) -> None:
    path = tmp_path / "killed" / "x.sqlite"
    other = {"partner": "another"}
    step, killed = 0, True
    while killed:
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        path.write_bytes(unfinished[0])
        Path(f"{path}-wal").write_bytes(unfinished[1])
        killed = killed_at(step, lambda: Archive.open(path, other).close())
        with Archive.open(path, other) as archive:
            assert archive.condition in ("void", "new"), step
            assert contents(archive)[:2] == ([], 0)
        step += 1
    assert step > 15


def test_killed_while_it_is_adopted_it_is_at_one_of_the_two_paths(tmp_path: Path) -> None:
    previous, path = tmp_path / "old" / "x.sqlite", tmp_path / "new" / "x.sqlite"
    step, killed = 0, True
    while killed:
        for place in (previous, path):
            shutil.rmtree(place.parent, ignore_errors=True)
        states = build(previous)[-1:]
        killed = killed_at(step, lambda: Archive.adopt(path, previous) and None)
        assert Archive.adopt(path, previous) != path.exists() or not previous.exists()
        assert judge(path, states) == "whole", step
        step += 1
    assert step > 10


# Bounded.


def test_a_change_of_one_path_writes_little_and_opening_reads_no_rows(path: Path) -> None:
    with Archive.open(path, IDENTITY) as archive:
        archive.commit(Update(rows=(agreed(b"flat/%06d" % number) for number in range(100_000)), finished=True))
    statements: list[str] = []
    with Archive.open(path, IDENTITY) as archive:
        archive._database.set_trace_callback(statements.append)
        assert (archive.condition, archive.rows_count, archive.streams()) == ("current", 100_000, (b"", b""))
        assert statements == []
        archive.commit(Update(rows=[agreed(b"flat/050000", 5, 5)]))
        assert Path(f"{path}-wal").stat().st_size < 80_000


def test_what_is_deleted_leaves_no_crumbs(archive: Archive, path: Path) -> None:
    """A directory in which files come and go does not let the archive grow."""
    sizes = []
    for round_ in range(30):
        now = range(round_ * 500, round_ * 500 + 1000)
        archive.commit(
            Update(
                rows=[agreed(b"spool/%06d" % number) for number in now],
                dropped=[b"spool/%06d" % number for number in range(now.start) if number % 40],
            )
        )
        sizes.append(archive._one("SELECT count(*) FROM chunks")[0])
    assert max(sizes) < 150
    assert archive.rows_count == len(archive.rows(b"spool"))
    archive.commit(Update(dropped=[row.path for row in archive.rows(b"spool")]))
    for table in ("chunks", "directories", "marks", "links"):
        assert archive._one(f"SELECT count(*) FROM {table}") == (0,)  # noqa: S608


def test_a_side_that_is_only_read_keeps_the_marker_that_it_had(archive: Archive) -> None:
    assert archive.marked(HERE) == set()
    for number, sides in enumerate(([HERE], [HERE], [THERE], [THERE])):
        archive.begin(f"g{number}", sides)
        archive.commit(Update(generation=f"g{number}"))
    archive.begin("g4", [THERE])
    assert archive.marked(THERE) == {"g3", "g4"}
    # Its marker says both, should the second have been killed on the way.
    assert archive.marked(HERE) == {"g0", "g1"}
