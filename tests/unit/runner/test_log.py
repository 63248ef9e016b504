# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every line of a log arrives once, in order, whatever becomes of the log, of its target, and of the run."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serversync import log, logfile, machine
from serversync.entry import HERE, THERE
from serversync.failure import Failure
from serversync.job import Element, Job
from serversync.layout import Layout
from serversync.log import Known, LogSynchronization, State, assess, in_order, match
from serversync.logfile import NOTHING, File, Mark, Stamp, already, rotated_names
from serversync.replica import ThisServer

# The core.


@pytest.mark.parametrize(
    ("name", "rotated"),
    [
        ("app.log.1", True),
        ("app.log.12.gz", True),
        ("app.log-20260131", True),
        ("app.log-20260131-04.gz", True),
        ("app.log.2026-01-31_04:00:00", True),
        ("app-20260131.log", True),
        ("app.1.log.gz", True),
        ("app.log.old", True),
        ("app.log.bak.gz", True),
        ("app.log~", True),
        ("app.log", False),
        ("app.log.1.swp", False),
        ("app-debug.log", False),
        ("app.log.tmp", False),
        ("xapp.log.1", False),
        ("app2.log", False),
    ],
)
def test_names_that_rotation_makes(name: str, rotated: bool) -> None:
    assert bool(rotated_names("app.log").fullmatch(name)) is rotated


def test_a_log_without_an_extension_has_rotated_siblings_too() -> None:
    assert rotated_names("messages").fullmatch("messages-20260131.gz")
    assert rotated_names(".log").fullmatch(".log.1")
    assert not rotated_names("messages").fullmatch("messages.conf")


def file(name: str, inode: int = 1, size: int = 10, holds: tuple[int, ...] = (), **more: Any) -> File:
    current = name == "app.log"
    stamp = more.pop("stamp", Stamp(1, inode, more.pop("mtime", 0), size))
    found = rotated_names("app.log").fullmatch(name)
    counted = found is not None and any(found.groupdict().values())
    holding, packed = list(holds), name.endswith(".gz")
    return File(0, name, current, found is not None, counted, stamp, size, holding, packed=packed, **more)


def known(number: int, inode: int = 1, offset: int = 10, *, present: bool = True) -> Known:
    return Known(number, Stamp(1, inode, 0, offset), Mark(offset, "h", "t") if offset else NOTHING, present)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (
            ["app.log", "app.log.1", "app.log.10", "app.log.2.gz"],
            ["app.log.10", "app.log.2.gz", "app.log.1", "app.log"],
        ),
        (
            ["app.log-20260102", "app.log", "app.log-20260101.gz"],
            ["app.log-20260101.gz", "app.log-20260102", "app.log"],
        ),
        # No common order of names: the times of their last lines decide, which are those of this list.
        (["app.log.1", "app.log-20260101", "app.log.old"], ["app.log.1", "app.log-20260101", "app.log.old"]),
    ],
)
def test_the_order_of_rotated_files(names: list[str], order: list[str]) -> None:
    files = [file(name, mtime=number) for number, name in enumerate(names)]
    assert [files[index].name for index in in_order(files, "app.log")] == order


@pytest.mark.parametrize(
    ("known_files", "files", "matched"),
    [
        # It grew; it was renamed; it was copied and truncated; it was packed.
        ([known(1)], [file("app.log", size=20, holds=(0,))], {0: 0}),
        ([known(1)], [file("app.log", inode=2), file("app.log.1", size=20, holds=(0,))], {1: 0}),
        ([known(1)], [file("app.log", size=5), file("app.log.1", inode=2, size=20, holds=(0,))], {1: 0}),
        ([known(1)], [file("app.log", inode=3), file("app.log.1.gz", inode=2, size=20, holds=(0,))], {1: 0}),
        # It was rewritten, or another file has its inode now.
        ([known(1)], [file("app.log", size=20)], {}),
        # A file system that was mounted again has another number.
        (
            [known(1), known(2, inode=2)],
            [
                file("app.log", holds=(0, 1), stamp=Stamp(9, 2, 0, 10)),
                file("app.log.1", holds=(0, 1), stamp=Stamp(9, 1, 0, 9)),
            ],
            {0: 1, 1: 0},
        ),
        # Nothing was taken of it: only its inode says what it is.
        ([known(1, offset=0)], [file("app.log"), file("app.log.1", inode=2)], {0: 0}),
        # A file that is gone comes back only as it was; one that was there may have grown before it was packed.
        ([known(1, inode=7, present=False)], [file("app.log.1", size=10, holds=(0,))], {0: 0}),
        ([known(1, inode=7, present=False)], [file("app.log", size=20, holds=(0,))], {}),
        # Both begin alike: the inode decides.
        (
            [known(1), known(2, inode=2)],
            [file("app.log", inode=2, holds=(0, 1)), file("app.log.1", holds=(0, 1))],
            {0: 1, 1: 0},
        ),
        # What rotation has made is likelier than a copy by hand.
        (
            [known(1, inode=7)],
            [file("app.log.bak", inode=2, size=20, holds=(0,)), file("app.log.1", inode=3, size=20, holds=(0,))],
            {1: 0},
        ),
        # The inode of a file of which nothing was taken is another one's now.
        (
            [known(1, inode=7, offset=0), known(2, inode=8)],
            [file("app.log.1.gz", inode=7, size=20, holds=(1,))],
            {0: 1},
        ),
        # The more is known to be the same, the better.
        ([known(1, inode=7, offset=5), known(2, inode=8)], [file("app.log.1", size=20, holds=(0, 1))], {0: 1}),
        # Packed files are known by their stamp.
        ([Known(1, Stamp(1, 5, 3, 9), None)], [file("app.log.2.gz", size=-1, stamp=Stamp(2, 6, 3, 9))], {0: 0}),
        ([Known(1, Stamp(1, 5, 3, 9), None)], [file("app.log.2.gz", size=-1, stamp=Stamp(1, 5, 4, 9))], {}),
    ],
)
def test_which_file_is_which(known_files: list[Known], files: list[File], matched: dict[int, int]) -> None:
    assert match(known_files, files) == matched


@pytest.mark.parametrize(
    ("files", "work", "lost"),
    [
        ([file("app.log", holds=(0,))], [], ""),
        ([file("app.log", size=20, holds=(0,))], [("app.log", 0)], ""),
        (
            [file("app.log", inode=2), file("app.log.1", inode=3), file("app.log.2", size=20, holds=(0,))],
            [("app.log.2", 0), ("app.log.1", None), ("app.log", None)],
            "",
        ),
        (
            [file("app.log", inode=2)],
            [("app.log", None)],
            "was rotated or replaced, and the file that it was is not beside it",
        ),
        ([file("app.log", size=5)], [("app.log", None)], "was truncated, and no copy of it is beside it"),
        ([file("app.log", size=20)], [("app.log", None)], "was rewritten"),
        # Nothing is taken of a file that has a known inode, but neither its beginning nor a name of the log's.
        (
            [file("app.log", inode=2), file("other", size=20)],
            [("app.log", None)],
            "was rotated or replaced, and the file that it was is not beside it",
        ),
    ],
)
def test_what_is_to_be_taken(files: list[File], work: list[tuple[str, int | None]], lost: str) -> None:
    found = assess([known(1)], 0, files, "app.log")
    assert [(files[one.file].name, one.known) for one in found.work] == work
    assert found.lost == lost


@pytest.mark.parametrize(
    ("found", "ends", "expected"),
    [
        (b"", True, (0, True)),
        (b"one\ntwo\n", True, (8, True)),
        (b"one\ntwo\nhers\n", True, (8, False)),
        (b"one\ntw", True, (6, True)),
        (b"one\ntw", False, (4, False)),
        (b"one\ntwhers\n", True, (4, False)),
        (b"onhers\n", True, (0, False)),
        (b"hers\none\ntwo\n", True, (8, True)),
        (b"hers\none\nt", True, (5, True)),
        (b"hers\none\nthers\n", True, (4, False)),
        (b"hers\n", True, (0, False)),
    ],
)
def test_how_much_of_an_append_is_there(found: bytes, ends: bool, expected: tuple[int, bool]) -> None:
    assert already(b"one\ntwo\n", found, ends) == expected


def test_a_state_is_whole_or_refused() -> None:
    state = State({"source": ["m", "/a"], "target": ["n", "/b"]}, (1, 2), numbers=3, target=(1, 2, 3))
    state.add(Stamp(1, 2, 3, 4), NOTHING)
    state.add(Stamp(1, 2, 3, 4), None)
    state.torn = log.Torn(2, NOTHING)
    state.intent = log.Intent(4, NOTHING, Mark(5, "h", "t"), "d", (1, 2, 3), True)
    text = state.dump()
    assert State.parse(text) == state
    for damaged in (text[: len(text) // 2], text.replace("4", "5", 1), "[]", "{}", ""):
        if damaged != text:
            with pytest.raises(ValueError):
                State.parse(damaged)


# Whole runs, on real files.


class Kill(BaseException):
    pass


class Killed(LogSynchronization):
    """A run that ends after so many steps: before or after the state is saved, before, in or after an append."""

    left = -1
    torn = 0.5

    def step(self) -> None:
        if self.left == 0:
            raise Kill
        self.left -= 1

    def save(self) -> None:
        self.step()
        super().save()
        self.step()

    def open_target(self) -> Any:
        target = super().open_target()
        whole = target.append

        def append(data: bytes, last: bool) -> int:
            self.step()
            if self.left == 0:
                whole(data[: int(len(data) * self.torn)], last)
            self.step()
            size: int = whole(data, last)
            self.step()
            return size

        target.append = append
        return target


class World:
    """A log and its target in a directory, and what should be where."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.source, self.target = directory / "logs" / "app.log", directory / "copies" / "app.log"
        self.source.parent.mkdir()
        self.layout = Layout("user", directory / "config", directory / "state", directory / "state")
        self.generation = 0
        self.sent: list[bytes] = []
        self.theirs: list[bytes] = []
        self.unfinished = b""
        self.lines = 0
        self.dates = 20260100
        self.clean = False
        self.pending = False
        self.rotated_targets = 0
        self.source.write_bytes(b"")

    def synchronization(self, left: int = -1, torn: float = 0.5, **more: Any) -> Killed:
        document = {"name": "nightly", "partner": {"host": "localhost", "connection": "local"}}
        settings = {"direction": "to_partner", "preserve": None, "owners": "names"}
        server = ThisServer(self.layout)
        element = Element(0, str(self.source), str(self.target), kind="log", settings=settings)
        one = Killed(
            self.layout, Job(document, ""), element, {HERE: server, THERE: server}, run="run", look=False, **more
        )
        one.left, one.torn = left, torn
        return one

    def run(self, left: int = -1, torn: float = 0.5) -> log.LogReport:
        self.clean = False
        one = self.synchronization(left, torn)
        try:
            with one:
                one.synchronize()
        except Kill:
            self.pending = True
        else:
            self.clean, self.pending = True, False
        return one.report

    # What others do.

    def write(self, length: int) -> None:
        self.lines += 1
        line = b"%d:%d %b\n" % (self.generation, self.lines, b"x" * length)
        with self.source.open("ab") as stream:
            if self.unfinished:
                stream.write(b"!\n")
                self.sent.append(self.unfinished + b"!\n")
                self.unfinished = b""
            stream.write(line)
        self.sent.append(line)

    def write_part(self, length: int) -> None:
        self.lines += 1
        part = b"%d:%d %b" % (self.generation, self.lines, b"y" * length)
        self.unfinished += part
        with self.source.open("ab") as stream:
            stream.write(part)

    def rotated(self) -> list[Path]:
        def number(path: Path) -> int:
            return int(path.name.split(".")[2])

        names = [path for path in self.source.parent.iterdir() if path.name.split(".")[2:3] not in ([], ["bak"])]
        return sorted(names, key=number)

    def shift(self) -> Path:
        for path in reversed(self.rotated()):
            parts = path.name.split(".")
            parts[2] = str(int(parts[2]) + 1)
            path.rename(path.with_name(".".join(parts)))
        return self.source.with_name("app.log.1")

    def rename(self, dated: bool, create: bool) -> None:
        if not self.source.exists():
            return
        self.dates += dated
        self.source.rename(self.source.with_name(f"app.log-{self.dates}") if dated else self.shift())
        self.generation += 1
        self.unfinished = b""
        if create:
            self.source.write_bytes(b"")

    def copy_and_truncate(self) -> None:
        if self.source.exists():
            shutil.copyfile(self.source, self.shift())
            self.source.write_bytes(b"")
            self.generation += 1
            self.unfinished = b""

    def copy(self) -> None:
        if self.source.exists():
            shutil.copyfile(self.source, self.source.with_name("app.log.bak"))

    def pack(self) -> None:
        for path in self.rotated():
            if path.suffix != ".gz":
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
                return

    def late(self) -> None:
        """A line to a file that was rotated already."""
        for path in self.rotated():
            if path.suffix != ".gz":
                self.lines += 1
                line = b"late:%d\n" % self.lines
                before = path.read_bytes().rpartition(b"\n")[2]
                with path.open("ab") as stream:
                    stream.write(line)
                self.sent.append(before + line)
                return

    def expire(self) -> None:
        if self.clean:
            for path in self.rotated()[1:]:
                path.unlink()

    def there(self, ended: bool) -> None:
        """Somebody's line on the target."""
        if self.target.exists():
            self.lines += 1
            self.theirs.append(b"theirs:%d%b" % (self.lines, b"\n" if ended else b""))
            with self.target.open("ab") as stream:
                stream.write(self.theirs[-1])

    def rotate_target(self) -> None:
        if self.target.exists():
            self.rotated_targets += 1
            self.target.rename(self.target.with_name(f"app.log.{self.rotated_targets}"))

    def truncate_target(self) -> None:
        if self.target.exists() and not self.pending:
            self.rotated_targets += 1
            shutil.copyfile(self.target, self.target.with_name(f"app.log.{self.rotated_targets}"))
            self.target.write_bytes(b"")

    def arrived(self) -> list[bytes]:
        """The lines of all that the target has been."""
        parts = [self.target.with_name(f"app.log.{number + 1}") for number in range(self.rotated_targets)]
        paths = [path for path in [*parts, self.target] if path.exists()]
        return [line for path in paths for line in path.read_bytes().splitlines(keepends=True)]

    def judge(self) -> None:
        lines = self.arrived()
        mine = set(self.sent)
        assert Counter(line for line in lines if line in mine) == Counter(self.sent)
        for theirs in self.theirs:
            assert any(theirs in line for line in lines)
        for generation in range(self.generation + 1):
            prefix = b"%d:" % generation
            assert [line for line in lines if line in mine and line.startswith(prefix)] == [
                line for line in self.sent if line.startswith(prefix)
            ]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few lines are several batches, and one may be longer than a batch."""
    shrink(monkeypatch)


def shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(logfile, "BATCH", 40)
    patch.setattr(log, "BATCH", 40)
    patch.setattr(logfile, "CHUNK", 16)
    patch.setattr(logfile, "HEAD", 24)
    patch.setattr(logfile, "TAIL", 12)
    # The kills are of the process, not of the machine.
    patch.setattr(os, "fsync", lambda descriptor: None)


ACTS: dict[str, tuple[Callable[..., object], st.SearchStrategy[tuple[Any, ...]]]] = {
    "write": (World.write, st.tuples(st.sampled_from([0, 3, 20, 70]))),
    "write_part": (World.write_part, st.tuples(st.sampled_from([0, 30, 60]))),
    "rename": (World.rename, st.tuples(st.booleans(), st.booleans())),
    "copy_and_truncate": (World.copy_and_truncate, st.just(())),
    "copy": (World.copy, st.just(())),
    "pack": (World.pack, st.just(())),
    "late": (World.late, st.just(())),
    "expire": (World.expire, st.just(())),
    "there": (World.there, st.tuples(st.booleans())),
    "rotate_target": (World.rotate_target, st.just(())),
    "truncate_target": (World.truncate_target, st.just(())),
    "run": (World.run, st.just(())),
    "killed": (World.run, st.tuples(st.integers(0, 14), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))),
}
WEIGHTS = ["write"] * 5 + ["run"] * 3 + ["killed"] * 4 + ["rename"] * 2 + list(ACTS)
HISTORIES = st.lists(
    st.sampled_from(WEIGHTS).flatmap(lambda name: st.tuples(st.just(name), ACTS[name][1])), min_size=3, max_size=30
)


@settings(max_examples=300)
@given(HISTORIES)
# What failed once.
@example([("rename", (False, False)), ("write", (0,)), ("killed", (3, 0.5)), ("late", ())])
@example([("write", (0,)), ("killed", (3, 0.5)), ("there", (True,))])
@example([("write", (70,)), ("there", (False,)), ("killed", (10, 0.0)), ("killed", (12, 0.0)), ("rotate_target", ())])
@example([("write", (20,)), ("killed", (3, 0.5)), ("rotate_target", ())])
@example([("copy", ()), ("write", (0,)), ("run", ()), ("copy", ())])
@example([("copy", ()), ("write", (0,)), ("copy_and_truncate", ())])
@example([("write", (0,)), ("copy", ()), ("write", (0,)), ("killed", (1, 0.0)), ("copy", ())])
@example([("copy_and_truncate", ()), ("run", ()), ("rename", (False, False)), ("pack", ()), ("run", ())])
@example([("copy_and_truncate", ())] * 2 + [("run", ()), ("pack", ()), ("write", (0,)), ("copy", ())])
def test_any_history(history: list[tuple[str, tuple[Any, ...]]]) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        world = World(Path(directory))
        world.write(5)
        world.run()
        for name, arguments in history:
            world.clean = world.clean and name in ("expire", "there")
            ACTS[name][0](world, *arguments)
        world.write(1)
        world.run()
        world.judge()
        before = world.arrived()
        assert world.run().state_before == "equal"
        assert world.arrived() == before


@pytest.mark.parametrize("torn", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "rotates", [None, World.copy_and_truncate, World.pack, lambda world: world.rename(False, True)]
)
def test_a_kill_at_every_step(tmp_path: Path, torn: float, rotates: Callable[[World], None] | None) -> None:
    for left in range(60):
        directory = tmp_path / str(left)
        directory.mkdir()
        world = World(directory)
        world.write(5)
        world.run()
        for length in (2, 90, 30):
            world.write(length)
        world.rename(False, True)
        world.write(50)
        world.run(left, torn)
        killed = world.pending
        if rotates:
            rotates(world)
        world.write(3)
        world.run()
        world.judge()
        if not killed:
            assert left > 10
            return
    raise AssertionError("no run came to its end")


def test_a_log_that_is_being_copied_or_packed_comes_once(world: World) -> None:
    world.write(1)
    world.run()
    world.write(2)
    copied = world.source.with_name("app.log.1")
    shutil.copyfile(world.source, copied)
    world.run()
    world.source.write_bytes(b"")
    world.write(3)
    assert len(world.arrived()) == 2
    assert world.run().lines == 1
    packed = world.source.with_name("app.log.1.gz")
    packed.write_bytes(gzip.compress(copied.read_bytes()))
    world.run()
    copied.unlink()
    world.run()
    world.judge()


@pytest.mark.parametrize("left", range(12))
def test_a_file_that_is_packed_when_a_run_is_killed(world: World, left: int) -> None:
    world.write(1)
    world.run()
    for length in (30, 30, 30):
        world.write(length)
    world.rename(False, True)
    path = world.source.with_name("app.log.1")
    packed = world.source.with_name("app.log.1.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    world.run(left)
    path.unlink()
    world.run(left)
    world.run()
    world.judge()


def test_a_line_that_the_target_has_in_part_comes_whole_where_others_wrote_behind_it(world: World) -> None:
    world.write(1)
    world.write_part(3)
    world.target.parent.mkdir()
    world.target.write_bytes(world.source.read_bytes())
    assert world.run().lines == 0
    world.there(True)
    world.write(1)
    world.run()
    world.judge()


def test_a_log_that_is_truncated_and_grows_while_it_is_read_is_read_again(world: World) -> None:
    world.write(1)
    world.run()
    world.write(2)
    one = world.synchronization()
    with one:
        take = one.source.take

        def truncated(*arguments: Any) -> Any:
            world.source.write_bytes(b"z\n" * 40)
            return take(*arguments)

        one.source.take = truncated  # type: ignore[method-assign]
        with pytest.raises(Failure, match="was truncated while it was read") as caught:
            one.synchronize()
    assert caught.value.transient
    assert len(world.arrived()) == 1


def test_a_rotation_while_the_files_are_looked_at(world: World) -> None:
    world.write(1)
    world.run()
    world.write(2)
    one = world.synchronization()
    with one:
        look = one.source.look  # type: ignore[union-attr]

        def rotated(*arguments: Any) -> Any:
            one.source.look = look  # type: ignore[union-attr, method-assign]
            world.rename(False, True)
            return look(*arguments)

        one.source.look = rotated  # type: ignore[union-attr, method-assign]
        one.synchronize()
    assert one.report.warnings == []
    world.judge()


def test_an_append_is_known_by_its_digest_where_the_source_has_it_no_more(world: World) -> None:
    world.write(1)
    world.run()
    world.write(2)
    world.run(left=5)
    assert world.pending
    assert len(world.arrived()) == 2
    away = world.directory / "away"
    world.source.rename(away)
    world.source.write_bytes(b"")
    assert "is not beside it" in world.run().warnings[0]
    away.rename(world.source.with_name("app.log.1"))
    world.run()
    world.judge()


def test_files_that_say_the_same_are_not_taken_for_copies(world: World) -> None:
    world.source.write_bytes(b"alive\n")
    world.run()
    for _time in range(3):
        world.rename(False, True)
        world.source.write_bytes(b"alive\n")
    world.run()
    assert world.arrived() == [b"alive\n"] * 4


def test_a_first_run_leaves_what_was_rotated_before(world: World) -> None:
    world.source.with_name("app.log.1").write_bytes(b"old\n")
    world.source.with_name("app.log.2.gz").write_bytes(gzip.compress(b"older\n"))
    world.write(1)
    world.run()
    world.source.with_name("app.log.2.gz").rename(world.source.with_name("app.log.3.gz"))
    world.source.with_name("app.log.1").rename(world.source.with_name("app.log.2"))
    world.pack()
    world.run()
    world.judge()
    assert b"old\n" not in world.arrived()


def test_files_that_begin_alike_are_told_apart(world: World) -> None:
    world.source.write_bytes(b"# header\n")
    world.run()
    world.source.write_bytes(b"# header\n1\n")
    world.copy_and_truncate()
    world.source.write_bytes(b"# header\n2\n")
    world.run()
    assert sorted(world.arrived()) == [b"# header\n", b"# header\n", b"1\n", b"2\n"]


def test_what_cannot_be_read_is_tried_again_and_then_said(world: World) -> None:
    world.write(1)
    world.run()
    path = world.source.with_name("app.log.1.gz")
    path.write_bytes(gzip.compress(world.source.read_bytes() + b"more\n")[:-12])
    world.source.rename(world.directory / "away")
    world.write(2)
    with pytest.raises(Failure, match=r"app.log.1.gz may be it, but cannot be read") as caught:
        world.run()
    assert caught.value.transient
    report = world.run()
    assert "was rotated or replaced, and the file that it was is not beside it" in report.warnings[0]
    assert "its lines are missing" in report.warnings[1]
    assert world.run().warnings == []
    world.judge()


def test_a_log_that_is_packed_meanwhile_is_waited_for(world: World) -> None:
    world.write(1)
    world.run()
    world.write(2)
    data = world.source.read_bytes()
    path = world.source.with_name("app.log.1.gz")
    path.write_bytes(gzip.compress(data)[:-12])
    world.source.write_bytes(b"")
    with pytest.raises(Failure, match="cannot be read"):
        world.run()
    path.write_bytes(gzip.compress(data))
    assert world.run().warnings == []
    world.judge()


def test_a_log_that_is_gone_is_no_reason_to_forget_it(world: World) -> None:
    world.write(1)
    world.run()
    away = world.directory / "away"
    world.source.rename(away)
    with pytest.raises(Failure, match="does not exist on this server, nor is what it was rotated to"):
        world.run()
    away.rename(world.source)
    world.write(2)
    assert world.run().warnings == []
    world.judge()


def test_a_target_that_looks_unmounted_stops_the_log_until_a_person_says_so(world: World) -> None:
    world.write(1)
    world.run()
    world.target.parent.rename(world.directory / "unmounted")
    world.target.parent.mkdir()
    world.write(2)
    report = world.run()
    assert (report.state_after, report.lines) == ("different", 0)
    assert "looks unmounted" in report.guards[0]
    assert not world.target.exists()
    one = world.synchronization(passed=report.guards)
    with one:
        one.synchronize({})
    assert one.report.lines == 1


def test_a_source_that_looks_unmounted_stops_the_log(world: World) -> None:
    world.write(1)
    world.run()
    world.source.parent.rename(world.directory / "unmounted")
    world.source.parent.mkdir()
    world.source.write_bytes(b"of the directory below\n")
    report = world.run()
    assert "looks unmounted" in report.guards[0]
    shutil.rmtree(world.source.parent)
    (world.directory / "unmounted").rename(world.source.parent)
    world.write(2)
    world.run()
    world.judge()


def test_a_damaged_state_is_not_believed(world: World) -> None:
    world.write(1)
    world.run()
    [path] = (world.layout.state / "archives" / "nightly").iterdir()
    path.write_text(path.read_text()[:-9])
    world.write(2)
    report = world.run()
    assert "is damaged" in report.warnings[0]
    # The target is what the source begins with.
    world.judge()


def test_a_log_keeps_its_state_when_its_path_changes(world: World) -> None:
    world.write(1)
    world.run()
    world.there(True)
    moved = world.directory / "moved"
    world.source.parent.rename(moved)
    before, world.source = world.source, moved / "app.log"
    world.write(2)
    one = world.synchronization()
    one.element = Element(0, str(world.source), str(world.target), previous_path=str(before), kind="log")
    with one:
        one.synchronize()
    assert one.report.lines == 1
    world.judge()


def test_a_log_whose_state_has_machine_ids_goes_on_without_them(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "MACHINE_ID", tmp_path / "machine-id")
    machine.MACHINE_ID.write_text("f" * 32)
    world.write(1)
    world.run()
    [path] = (world.layout.state / "archives" / "nightly").iterdir()
    assert "f" * 32 not in path.read_text()
    state = State.parse(path.read_text())
    state.identity = {side: ["f" * 32, place] for side, (_server, place) in state.identity.items()}
    path.write_text(state.dump())
    world.write(2)
    report = world.run()
    assert (report.warnings, report.lines) == ([], 1)
    assert "f" * 32 not in path.read_text()
    world.judge()


def test_a_plan_changes_nothing(world: World) -> None:
    world.write(1)
    world.write(100)
    one = world.synchronization()
    one.look = True
    with one:
        plan = one.plan()
    assert [(append.lines, append.size) for append in plan.decisions] == [(2, len(b"".join(world.sent)))]
    assert not world.target.parent.exists()
    assert not world.layout.state.exists()


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_what_is_no_log_is_refused(world: World, kind: str) -> None:
    world.source.unlink()
    if kind == "link":
        world.source.symlink_to("elsewhere")
    else:
        world.source.mkdir()
    with pytest.raises(Failure) as caught:
        world.run()
    assert (caught.value.code, caught.value.field) == ("kind", "elements[0].path")
