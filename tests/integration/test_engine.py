# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run decides and does, over a real SSH connection, as those who look after it see it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serversync.archive import Archive, Intent, Update
from serversync.detect import Detection
from serversync.entry import HERE, THERE, Entry
from serversync.locks import lock, owner

from tests.loopback import Pair, tree, write_launcher


def settings(direction: str = "to_partner", **options: Any) -> dict[str, Any]:
    return {"direction": direction, "exclude": [], "delete": "never", **options}


@pytest.fixture
def both(pair: Pair) -> Pair:
    """A job in both directions whose replicas agree on two files."""
    pair.partner_path.mkdir()
    (pair.path / "plc.s7").write_text("agreed")
    (pair.path / "other").write_text("stays")
    pair.declare(settings=settings("both", delete="synced", conflict="no_winner"))
    assert pair.here.run("nightly")["state"] == "equal"
    assert (pair.partner_path / "plc.s7").read_text() == "agreed"
    return pair


def test_changes_of_either_side_reach_the_other(both: Pair) -> None:
    (both.path / "here").write_text("new here")
    (both.partner_path / "there").mkdir()
    (both.partner_path / "there" / "deep").write_text("new there")
    (both.partner_path / "plc.s7").write_text("changed there")
    record = both.here.run("nightly")
    assert (record["state"], record["elements"][0]["state_before"]) == ("equal", "different")
    assert tree(both.path) == tree(both.partner_path)
    assert (both.path / "plc.s7").read_text() == "changed there"
    assert both.here.run("nightly")["elements"][0]["state_before"] == "equal"


def test_a_deletion_moves_where_the_other_side_is_as_archived(both: Pair) -> None:
    (both.path / "plc.s7").unlink()
    record = both.here.run("nightly")
    assert record["elements"][0]["deleted"] == 1
    assert not (both.partner_path / "plc.s7").exists()
    [version] = json.loads(both.here.serversync("versions", "nightly", "--json").stdout)["elements"][0]["versions"]
    assert (version["path"], version["run"]) == ("plc.s7", record["run"])
    both.here.serversync("restore", "nightly", "plc.s7")
    assert (both.partner_path / "plc.s7").read_text() == "agreed"


def test_a_conflict_without_a_winner_is_listed_and_a_person_decides_it(both: Pair) -> None:
    (both.path / "plc.s7").write_text("from here")
    (both.partner_path / "plc.s7").write_text("from there")
    record = both.here.run("nightly", code=3)
    assert record["state"] == "different"
    assert ((both.path / "plc.s7").read_text(), (both.partner_path / "plc.s7").read_text()) == (
        "from here",
        "from there",
    )
    assert both.here.run("nightly", code=3)["elements"][0]["standing"] == {"unresolved": 1}
    said = both.here.serversync("conflicts", "nightly", code=3).stdout
    assert "plc.s7" in said
    assert "file, 9 bytes" in said
    both.here.serversync("resolve", "nightly", "plc.s7", "--use", "partner")
    assert (both.path / "plc.s7").read_text() == "from there"
    assert both.here.run("nightly")["state"] == "equal"
    assert both.here.serversync("conflicts", "nightly").stdout.startswith("nightly has no unresolved paths")


def test_the_element_itself_can_be_resolved(pair: Pair) -> None:
    (pair.path / "plc.s7").write_text("agreed")
    pair.declare(settings=settings(conflict="no_winner"))
    pair.here.run("nightly")
    pair.partner_path.chmod(0o700)
    assert pair.here.run("nightly", code=3)["elements"][0]["paths"][0]["path"] == ""
    assert " .  " in pair.here.serversync("conflicts", "nightly", code=3).stdout
    pair.here.serversync("resolve", "nightly", ".", "--use", "this_server")
    assert pair.partner_path.stat().st_mode & 0o777 == pair.path.stat().st_mode & 0o777 == 0o755
    assert pair.here.run("nightly")["elements"][0]["state_before"] == "equal"


def test_an_unresolved_path_that_moved_is_not_resolved_blindly(both: Pair) -> None:
    (both.path / "plc.s7").write_text("from here")
    (both.partner_path / "plc.s7").write_text("from there")
    both.here.run("nightly", code=3)
    (both.partner_path / "plc.s7").write_text("once more")
    said = both.here.serversync("resolve", "nightly", "plc.s7", "--use", "this_server", code=1).stderr
    assert "has changed since it was found unresolved" in said
    assert (both.partner_path / "plc.s7").read_text() == "once more"


@pytest.mark.parametrize(("winner", "content"), [("this_server_wins", "here"), ("partner_wins", "there")])
def test_a_rule_decides_and_the_loser_is_in_versions(both: Pair, winner: str, content: str) -> None:
    both.declare(settings=settings("both", delete="synced", conflict=winner))
    (both.path / "plc.s7").write_text("here")
    (both.partner_path / "plc.s7").write_text("there")
    record = both.here.run("nightly")
    assert (record["state"], record["elements"][0]["conflicts"]) == ("equal_with_warnings", 1)
    assert [(side / "plc.s7").read_text() for side in (both.path, both.partner_path)] == [content] * 2
    [version] = json.loads(both.here.serversync("versions", "nightly", "--json").stdout)["elements"][0]["versions"]
    assert version["path"] == "plc.s7"
    assert both.here.run("nightly")["state"] == "equal"


def test_a_path_is_resolved_together_with_the_directories_that_it_needs(both: Pair) -> None:
    (both.path / "line" / "1").mkdir(parents=True)
    (both.path / "line" / "1" / "recipe").write_text("agreed")
    both.here.run("nightly")
    shutil.rmtree(both.partner_path / "line")
    (both.path / "line" / "1" / "recipe").write_text("edited here")
    both.here.run("nightly", code=3)
    both.here.serversync("resolve", "nightly", "line/1/recipe", "--use", "this_server")
    assert (both.partner_path / "line" / "1" / "recipe").read_text() == "edited here"
    assert both.here.run("nightly")["elements"][0]["state_before"] == "equal"


def test_what_a_directory_decides_is_not_said_to_be_resolved(both: Pair) -> None:
    (both.path / "line").mkdir()
    (both.path / "line" / "recipe").write_text("agreed")
    both.here.run("nightly")
    shutil.rmtree(both.partner_path / "line")
    (both.partner_path / "line").write_text("a file now")
    (both.path / "line" / "recipe").write_text("edited here")
    both.here.run("nightly", code=3)
    refused = both.here.serversync("resolve", "nightly", "line/recipe", "--use", "this_server", code=1)
    assert "line/recipe goes the way of line: decide that one" in refused.stderr
    both.here.serversync("resolve", "nightly", "line", "--use", "this_server")
    assert (both.partner_path / "line" / "recipe").read_text() == "edited here"


def test_keep_both_leaves_both_versions_on_both_sides(both: Pair) -> None:
    both.declare(settings=settings("both", delete="synced", conflict="keep_both"))
    (both.path / "plc.s7").write_text("here")
    (both.partner_path / "plc.s7").write_text("there")
    both.here.run("nightly")
    assert tree(both.path) == tree(both.partner_path)
    [copy] = both.path.glob("plc.conflict-*.s7")
    assert ((both.path / "plc.s7").read_text(), copy.read_text()) == ("here", "there")


def test_each_conflict_copy_has_a_name_of_its_own(both: Pair) -> None:
    both.declare(settings=settings("both", delete="synced", conflict="keep_both"))
    for content in ("first", "second"):
        (both.path / "plc.s7").write_text("here")
        (both.partner_path / "plc.s7").write_text(content)
        # As a copy that keeps times has it.
        os.utime(both.partner_path / "plc.s7", (1_000_000_000, 1_000_000_000))
        assert both.here.run("nightly")["state"] == "equal_with_warnings"
    copies = both.path.glob("plc.conflict-*.s7")
    assert {copy.read_text() for copy in copies} == {"first", "second"}
    assert tree(both.path) == tree(both.partner_path)


def test_keep_both_of_a_directory_brings_all_that_is_in_it(both: Pair) -> None:
    both.declare(settings=settings("both", delete="synced", conflict="keep_both"))
    (both.path / "x").write_text("here")
    (both.partner_path / "x").mkdir()
    (both.partner_path / "x" / "inner").write_text("there")
    assert both.here.run("nightly")["state"] == "equal_with_warnings"
    assert tree(both.path) == tree(both.partner_path)
    [copy] = both.path.glob("x.conflict-*")
    assert ((both.path / "x").read_text(), (copy / "inner").read_text()) == ("here", "there")


def test_keep_both_of_another_name_of_a_file(pair: Pair) -> None:
    pair.partner_path.mkdir()
    (pair.path / "a").write_text("one file")
    os.link(pair.path / "a", pair.path / "b.s7")
    (pair.partner_path / "b.s7").write_text("there")
    pair.declare(settings=settings(conflict="keep_both"))
    assert pair.here.run("nightly")["state"] == "equal_with_warnings"
    assert (pair.partner_path / "a").samefile(pair.partner_path / "b.s7")
    [copy] = pair.partner_path.glob("b.conflict-*.s7")
    assert copy.read_text() == "there"


def test_a_guard_stops_before_the_first_change_until_its_plan_is_approved(pair: Pair) -> None:
    for number in range(40):
        (pair.path / f"f{number:02}").write_text(str(number))
    pair.declare(settings=settings(delete="synced", max_delete="25%"))
    pair.here.run("nightly")
    for number in range(20):
        (pair.path / f"f{number:02}").unlink()
    (pair.path / "new").write_text("new")
    record = pair.here.run("nightly", code=3)
    assert record["state"] == "different"
    assert "20" in record["elements"][0]["guards"][0]
    assert (pair.partner_path / "f00").exists()
    assert not (pair.partner_path / "new").exists()
    plan = json.loads(pair.here.serversync("plan", "nightly", "--json").stdout)
    # One that moves before the approval is held back.
    (pair.partner_path / "f00").write_text("edited meanwhile")
    done = json.loads(pair.here.serversync("run", "nightly", "--approve", plan["plan"], "--json", code=None).stdout)
    assert done["elements"][0]["deleted"] == 19
    assert (pair.partner_path / "f00").read_text() == "edited meanwhile"
    assert not (pair.partner_path / "f01").exists()
    assert (pair.partner_path / "new").exists()


@pytest.mark.parametrize("direction", ["to_partner", "both"])
def test_a_conflict_that_is_not_approved_is_left_with_its_copy(pair: Pair, direction: str) -> None:
    for number in range(4):
        (pair.path / f"f{number}").write_text("agreed")
    pair.declare(settings=settings(direction, delete="synced", conflict="keep_both", max_delete="1"))
    pair.here.run("nightly")
    (pair.path / "f0").unlink()
    (pair.path / "f1").unlink()
    plan = pair.here.run("nightly", code=3)["plan"]
    # One that becomes a file on one of them, and another kind of thing on the other.
    (pair.path / "f2").write_text("here")
    (pair.partner_path / "f2").write_text("there")
    (pair.path / "f3").unlink()
    (pair.path / "f3").mkdir()
    (pair.path / "f3" / "inner").write_text("here")
    (pair.partner_path / "f3").write_text("there")
    done = json.loads(pair.here.serversync("run", "nightly", "--approve", plan, "--json", code=None).stdout)
    [element] = done["elements"]
    assert (done["state"], element["deleted"], element["problems"]) == ("different", 2, [])
    assert element["warnings"] == ["2 paths are not in the approved plan, or have moved since, and were left: f2"]
    assert ((pair.path / "f2").read_text(), (pair.partner_path / "f2").read_text()) == ("here", "there")
    assert pair.here.run("nightly")["state"] == "equal_with_warnings"
    assert (
        sorted(path.name.partition(".conflict")[0] for path in pair.partner_path.glob("f*")) == ["f2"] * 2 + ["f3"] * 2
    )
    if direction == "both":
        assert tree(pair.path) == tree(pair.partner_path)


def test_a_target_without_its_marker_looks_unmounted(pair: Pair, tmp_path: Path) -> None:
    (pair.path / "plc.s7").write_text("agreed")
    pair.declare()
    pair.here.run("nightly")
    pair.partner_path.rename(tmp_path / "unmounted")
    pair.partner_path.mkdir()
    record = pair.here.run("nightly", code=3)
    assert "looks unmounted" in record["elements"][0]["guards"][0]
    assert not (pair.partner_path / "plc.s7").exists()
    # A person knows that it was replaced on purpose.
    assert pair.here.serversync("run", "nightly", "--approve", record["plan"]).returncode == 0
    assert (pair.partner_path / "plc.s7").read_text() == "agreed"


def test_a_marker_that_cannot_be_read_agrees_with_no_archive(pair: Pair) -> None:
    for name in ("plc.s7", "other"):
        (pair.path / name).write_text("agreed")
    pair.declare(settings=settings(delete="synced"))
    pair.here.run("nightly")
    [marker] = pair.partner_path.glob(".serversync/*/marker.json")
    marker.write_text("")
    (pair.path / "plc.s7").unlink()
    record = pair.here.run("nightly")
    assert "restored from a backup" in record["elements"][0]["warnings"][0]
    assert (pair.partner_path / "plc.s7").exists()


def test_an_emptied_source_looks_unmounted(pair: Pair) -> None:
    (pair.path / "plc.s7").write_text("agreed")
    pair.declare(settings=settings(delete="synced", max_delete="100%"))
    pair.here.run("nightly")
    (pair.path / "plc.s7").unlink()
    record = pair.here.run("nightly", code=3)
    assert "is empty: it looks unmounted" in record["elements"][0]["guards"][0]
    assert (pair.partner_path / "plc.s7").exists()


def test_metadata_links_and_hard_links_arrive(pair: Pair) -> None:
    path = pair.path / "dir"
    path.mkdir()
    (path / "one").write_text("one file")
    os.link(path / "one", path / "two")
    os.link(path / "one", pair.path / "three")
    (path / "link").symlink_to("/nowhere/at all")
    (path / "script").write_text("#!/bin/sh\n")
    (path / "script").chmod(0o4750)
    os.mkfifo(path / "fifo")
    (path / "empty").mkdir(mode=0o1777)
    pair.declare()
    record = pair.here.run("nightly")
    assert record["state"] == "equal", record
    assert tree(pair.path) == tree(pair.partner_path)
    inodes = {(pair.partner_path / name).stat().st_ino for name in ("dir/one", "dir/two", "three")}
    assert len(inodes) == 1
    (path / "one").chmod(0o711)
    record = pair.here.run("nightly")
    assert record["state"] == "equal", record
    assert tree(pair.path) == tree(pair.partner_path)
    (path / "script").chmod(0o700)
    os.utime(path / "one", ns=(1, 10**18))
    record = pair.here.run("nightly")
    assert (record["elements"][0]["attributes"], record["elements"][0]["updated"]) == (1, 3)
    assert tree(pair.path) == tree(pair.partner_path)
    assert pair.here.run("nightly")["elements"][0]["state_before"] == "equal"


def test_what_a_killed_run_had_put_has_agreed(both: Pair) -> None:
    both.declare(settings=settings("both", delete="synced", conflict="no_winner"))
    (both.path / "new").write_text("put, then killed")
    shutil.copy2(both.path / "new", both.partner_path / "new")
    source, coming = (Entry.of((root / "new").stat()) for root in (both.path, both.partner_path))
    [path] = both.here.home.glob(".local/state/serversync/archives/nightly/*.sqlite")
    with Archive(path) as archive:
        intents = [Intent(b"new", HERE, None, source.record)]
        archive.intend([*intents, Intent(b"new", THERE, None, coming._replace(inode=0, ctime=0).record)])
    assert both.here.run("nightly")["state"] == "equal"
    (both.partner_path / "new").unlink()
    assert both.here.run("nightly")["elements"][0]["deleted"] == 1


def test_contents_go_one_way_and_metadata_the_other(both: Pair) -> None:
    mine, other = (root / "plc.s7" for root in (both.path, both.partner_path))
    mine.chmod(0o751)
    os.setxattr(mine, "user.kept", b"here")
    other.write_text("changed there")
    assert both.here.run("nightly")["state"] == "equal"
    for path in (mine, other):
        assert (path.read_text(), path.stat().st_mode & 0o777) == ("changed there", 0o751)
        assert os.getxattr(path, "user.kept") == b"here"


@pytest.mark.parametrize("put", ["contents", "mode"])
def test_what_a_killed_run_had_not_put_yet_is_put(both: Pair, put: str) -> None:
    """Contents go one way, the mode goes the other."""
    mine, other = (root / "plc.s7" for root in (both.path, both.partner_path))
    mine.chmod(0o751)
    other.write_text("changed there")
    before = {HERE: Entry.of(mine.stat()), THERE: Entry.of(other.stat())}
    if put == "contents":
        new = mine.with_name("arriving")
        shutil.copy2(other, new)
        new.chmod(0o751)
        new.rename(mine)
        side, coming, source = HERE, Entry.of(mine.stat()), THERE
    else:
        other.chmod(0o751)
        side, coming, source = THERE, Entry.of(other.stat()), HERE
    [path] = both.here.home.glob(".local/state/serversync/archives/nightly/*.sqlite")
    with Archive(path) as archive:
        intents = [Intent(b"plc.s7", source, None, before[source].record)]
        expected, record = before[side].record, coming._replace(inode=0, ctime=0).record
        archive.intend([*intents, Intent(b"plc.s7", side, expected, record)])
    assert both.here.run("nightly")["state"] == "equal"
    assert tree(both.path) == tree(both.partner_path)
    assert (mine.read_text(), other.stat().st_mode & 0o777) == ("changed there", 0o751)


def test_what_comes_to_where_a_killed_run_had_deleted_is_new(both: Pair) -> None:
    both.declare(settings=settings("both", delete="synced", conflict="this_server_wins"))
    assert both.here.run("nightly")["state"] == "equal"
    mine, other = (root / "plc.s7" for root in (both.path, both.partner_path))
    [path] = both.here.home.glob(".local/state/serversync/archives/nightly/*.sqlite")
    with Archive(path) as archive:
        deleted = Entry.of(other.stat()).record
        archive.intend([Intent(b"plc.s7", HERE, None, None), Intent(b"plc.s7", THERE, deleted, None)])
    mine.unlink()
    coming = other.with_name("coming")
    coming.write_text("new since")
    coming.rename(other)
    record = both.here.run("nightly")
    assert (record["state"], record["elements"][0]["created"]) == ("equal", 1)
    assert mine.read_text() == other.read_text() == "new since"


def test_a_row_that_outlived_its_directory_is_no_file(both: Pair) -> None:
    """As it is left where a directory could not be emptied, because people were at work in it."""
    (both.path / "d").mkdir()
    (both.path / "d" / "f").write_text("agreed")
    both.here.run("nightly")
    [path] = both.here.home.glob(".local/state/serversync/archives/nightly/*.sqlite")
    with Archive(path) as archive:
        archive.commit(Update(dropped=[b"d"], directories=[(b"d", None, None)]))
    shutil.rmtree(both.path / "d")
    (both.partner_path / "d" / "f").unlink()
    (both.partner_path / "d" / "new").write_text("came meanwhile")
    assert both.here.run("nightly")["state"] == "equal"
    assert tree(both.path) == tree(both.partner_path)


def test_what_becomes_something_else_does_so_on_the_target(pair: Pair) -> None:
    (pair.path / "a").mkdir()
    (pair.path / "a" / "inner").write_text("x")
    (pair.path / "b").write_text("file")
    (pair.path / "c").symlink_to("b")
    pair.declare(settings=settings(delete="synced"))
    pair.here.run("nightly")
    (pair.path / "a" / "inner").unlink()
    (pair.path / "a").rmdir()
    (pair.path / "a").write_text("now a file")
    (pair.path / "b").unlink()
    (pair.path / "b").mkdir()
    (pair.path / "b" / "inner").write_text("y")
    (pair.path / "c").unlink()
    (pair.path / "c").write_text("was a link")
    record = pair.here.run("nightly")
    assert record["state"] == "equal", record
    assert tree(pair.path) == tree(pair.partner_path)


def test_an_element_that_moved_takes_its_archive_along(pair: Pair) -> None:
    (pair.path / "plc.s7").write_text("agreed")
    (pair.path / "gone").write_text("agreed")
    pair.declare(settings=settings(delete="synced"))
    pair.here.run("nightly")
    moved = pair.path.parent / "moved"
    pair.path.rename(moved)
    (moved / "gone").unlink()
    document = pair.declare(settings=settings(delete="synced"))
    job = json.loads(document.read_text())
    job["elements"] = [{"path": str(moved), "partner_path": str(pair.partner_path), "previous_path": str(pair.path)}]
    document.write_text(json.dumps(job))
    record = pair.here.run("nightly")
    # Only an archive that was taken over can tell a deletion from a file that was never here.
    assert (record["state"], record["elements"][0]["deleted"]) == ("equal", 1), record
    [own] = (pair.partner_path / ".serversync").iterdir()
    assert json.loads((own / "marker.json").read_text())["path"] == str(pair.partner_path)


def test_an_element_with_another_path_is_a_new_one_and_its_old_marker_nobody_s(pair: Pair, tmp_path: Path) -> None:
    (pair.path / "plc.s7").write_text("agreed")
    pair.declare(settings=settings(delete="synced"))
    pair.here.run("nightly")
    moved = pair.path.rename(tmp_path / "elsewhere")
    (moved / "plc.s7").rename(moved / "plc.s8")
    pair.declare(settings=settings(delete="synced"), pairs=[(moved, pair.partner_path)])
    assert pair.here.run("nightly")["state"] == "equal_with_warnings"
    assert sorted(path.name for path in pair.partner_path.glob("plc*")) == ["plc.s7", "plc.s8"]
    # What it was called may still be said once it has an archive of its own.
    declared = json.loads((pair.here.config / "jobs" / "nightly.json").read_text())
    declared["elements"][0]["previous_path"] = str(pair.path)
    (pair.here.config / "jobs" / "nightly.json").write_text(json.dumps(declared))
    assert pair.here.run("nightly")["state"] == "equal_with_warnings"
    # Where both are declared the target has one owner.
    pair.path.mkdir()
    other = json.loads((pair.here.config / "jobs" / "nightly.json").read_text())
    other["elements"] = [{"path": str(pair.path), "partner_path": str(pair.partner_path)}]
    (pair.here.config / "jobs" / "daily.json").write_text(json.dumps({**other, "name": "daily"}))
    error = pair.here.run("daily", code=1)["elements"][0]["error"]
    assert error["code"] == "contended"
    assert f"remove {pair.partner_path}/.serversync/nightly." in error["message"]


@pytest.mark.parametrize("parallel", [1, 2])
def test_two_files_in_one_directory_are_two_targets(pair: Pair, parallel: int) -> None:
    pairs = []
    for name in ("hosts", "fstab"):
        (pair.path / name).write_text("old")
        pairs.append((pair.path / name, pair.partner_path / name))
    pair.partner_path.mkdir()
    pair.declare(pairs=pairs, limits={"parallel": parallel})
    for text in ("new", "newer"):
        (pair.path / "hosts").write_text(text)
        record = pair.here.run("nightly")
        assert record["state"] == "equal", record
        assert ((pair.partner_path / "hosts").read_text(), (pair.partner_path / "fstab").read_text()) == (text, "old")
    # Not so two that are the same, or may be where names of other cases are the same.
    pair.declare(name="daily", pairs=[(pair.path / "hosts", pair.partner_path / "Hosts")])
    assert pair.here.run("daily", code=1)["elements"][0]["error"]["code"] == "contended"


def test_versions_are_dropped_when_their_time_is_over(pair: Pair) -> None:
    pair.declare(settings=settings(keep_versions="0s"))
    for text in ("first", "second", "third"):
        (pair.path / "plc.s7").write_text(text)
        pair.here.run("nightly")
    [version] = json.loads(pair.here.serversync("versions", "nightly", "--json").stdout)["elements"][0]["versions"]
    assert version["path"] == "plc.s7"


def test_a_clock_that_is_fast_drops_no_versions(pair: Pair) -> None:
    pair.partner_path.mkdir()
    pair.declare(settings=settings("from_partner"))
    for content in ("old", "newer"):
        (pair.partner_path / "plc.s7").write_text(content)
        pair.here.run("nightly")
    fast = "import time\nright = time.time\ntime.time = lambda: right() + 30 * 86400"
    write_launcher(pair.here.launcher, f"os.environ['HOME'] = {str(pair.here.home)!r}\n{fast}")
    (pair.partner_path / "more").write_text("new")
    assert pair.here.run("nightly")["state"] == "equal"
    pair.here.serversync("restore", "nightly", "plc.s7")
    assert (pair.path / "plc.s7").read_text() == "old"


def test_in_one_direction_the_element_itself_is_as_open_as_the_source(pair: Pair) -> None:
    pair.partner_path.mkdir(mode=0o755)
    pair.path.chmod(0o750)
    pair.declare()
    assert pair.here.run("nightly")["elements"][0]["attributes"] == 1
    assert pair.partner_path.stat().st_mode & 0o777 == 0o750
    assert pair.here.run("nightly")["elements"][0]["state_before"] == "equal"


def test_elements_side_by_side_fail_by_themselves(pair: Pair) -> None:
    document = pair.declare()
    job = json.loads(document.read_text())
    job["elements"] = []
    for name in ("one", "two", "three", "four", "lost"):
        source = pair.path.parent / f"source-{name}"
        job["elements"].append({"path": str(source), "partner_path": str(pair.partner_path.parent / name)})
        if name != "lost":
            source.mkdir()
            (source / "file").write_text(name)
    document.write_text(json.dumps({**job, "limits": {"parallel": 3}}))
    record = pair.here.run("nightly", code=1)
    assert [entry["state_after"] for entry in record["elements"]] == ["equal"] * 4 + ["failed"]
    for name in ("one", "two", "three", "four"):
        assert (pair.partner_path.parent / name / "file").read_text() == name


@pytest.mark.parametrize("kind", ["tree", "log"])
@pytest.mark.parametrize("direction", ["to_partner", "from_partner"])
def test_an_element_that_another_run_holds_is_skipped(pair: Pair, direction: str, kind: str) -> None:
    server = pair.there if direction == "to_partner" else pair.here
    pairs = [(pair.path / name, pair.partner_path / name) for name in ("held", "free")]
    for one, other in pairs:
        for root in (one, other):
            root.mkdir(parents=True)
            (root / "log").touch()
    document = pair.declare(direction=direction, pairs=pairs)
    if kind == "log":
        job = json.loads(document.read_text())
        one = job["elements"][0]
        job["elements"][0] = {"path": f"{one['path']}/log", "partner_path": f"{one['partner_path']}/log", "kind": "log"}
        document.write_text(json.dumps(job))
    target = pairs[0][1 if direction == "to_partner" else 0]
    root = os.open(target / "log" if kind == "log" else target, os.O_RDONLY)
    with lock(root, True, owner("weekly", "run-1"), server.home / ".local/state/serversync/locks"):
        record = pair.here.run("nightly", code=4)
        assert "skipped" in pair.here.serversync("status", "nightly").stdout
    assert [entry["state_after"] for entry in record["elements"]] == ["skipped", "equal"]
    assert (record["state"], record["error"]["code"]) == ("skipped", "running")
    side = "partner_path" if direction == "to_partner" else "path"
    assert record["error"]["field"] == f"elements[0].{side}"
    assert f"is in use by the job weekly of {os.uname().nodename}, run run-1" in record["error"]["message"]
    assert record["error"]["message"] in pair.here.serversync("show", "nightly").stdout
    assert [entry["state_after"] for entry in pair.here.run("nightly")["elements"]] == ["equal", "equal"]
    os.close(root)


def test_a_source_that_is_no_longer_mounted_stops_the_run(pair: Pair, tmp_path: Path) -> None:
    (pair.path / "plc.s7").write_text("agreed")
    pair.declare(settings=settings(delete="extraneous", max_delete="100%"))
    pair.here.run("nightly")
    pair.path.rename(tmp_path / "mounted elsewhere")
    pair.path.mkdir()
    record = pair.here.run("nightly", code=3)
    assert "is empty and not the directory that it was" in record["elements"][0]["guards"][0]
    assert (pair.partner_path / "plc.s7").exists()
    pair.path.rmdir()
    (tmp_path / "mounted elsewhere").rename(pair.path)
    assert pair.here.run("nightly")["elements"][0]["warnings"] == []


def test_a_direction_may_change(pair: Pair) -> None:
    (pair.path / "plc.s7").write_text("agreed")
    pair.declare(settings=settings())
    pair.here.run("nightly")
    pair.declare(settings=settings("both"))
    assert pair.here.run("nightly")["state"] == "equal"
    (pair.partner_path / "plc.s7").write_text("from there")
    assert pair.here.run("nightly")["state"] == "equal"
    assert (pair.path / "plc.s7").read_text() == "from there"


def test_what_is_held_back_for_want_of_an_archive_can_be_approved_later(pair: Pair) -> None:
    pair.partner_path.mkdir()
    (pair.partner_path / "extra").write_text("only there")
    (pair.path / "plc.s7").write_text("agreed")
    pair.declare(settings=settings(delete="extraneous"))
    assert pair.here.run("nightly", code=3)["elements"][0]["standing"] == {"unresolved": 1}
    assert pair.here.run("nightly", code=3)["elements"][0]["deleted"] == 0
    plan = json.loads(pair.here.serversync("plan", "nightly", "--json").stdout)
    assert [one["reason"] for one in plan["elements"][0]["decisions"]] == ["would be deleted, once it is approved"]
    pair.here.serversync("run", "nightly", "--approve", plan["plan"])
    assert not (pair.partner_path / "extra").exists()


def test_both_versions_are_on_both_servers_as_soon_as_a_person_wants_both(both: Pair) -> None:
    (both.path / "plc.s7").write_text("from here")
    (both.partner_path / "plc.s7").write_text("from there")
    both.here.run("nightly", code=3)
    both.here.serversync("resolve", "nightly", "plc.s7", "--use", "both")
    assert tree(both.path) == tree(both.partner_path)
    assert len(list(both.path.glob("plc.conflict-*.s7"))) == 1
    assert both.here.run("nightly")["state"] == "equal"


def test_a_directory_that_loses_is_on_both_servers_with_all_that_is_in_it(both: Pair) -> None:
    (both.path / "line").write_text("here")
    (both.partner_path / "line").mkdir()
    (both.partner_path / "line" / "recipe").write_text("there")
    both.here.run("nightly", code=3)
    both.here.serversync("resolve", "nightly", "line", "--use", "both")
    [copy] = both.path.glob("line.conflict-*")
    assert (copy / "recipe").read_text() == "there"
    assert both.here.run("nightly")["elements"][0]["state_before"] == "equal"


@pytest.mark.parametrize("put", [True, False])
def test_attributes_that_change_once_more_after_a_kill_are_no_conflict(both: Pair, put: bool) -> None:
    mine, other = (root / "plc.s7" for root in (both.path, both.partner_path))
    state = {}
    for name, content in (("agreed", b"1"), ("put", b"2")):
        os.setxattr(mine, "user.kept", content)
        mine.chmod(0o640 if name == "agreed" else 0o600)
        if name == "agreed":
            both.here.run("nightly")
        [path] = both.here.home.glob(".local/state/serversync/archives/nightly/*.sqlite")
        state[name] = seen(mine), seen(other)
    # What a run would journal, and do, before it is killed.
    source, expected = state["put"]
    coming = expected._replace(mode=source.mode, xattrs=source.xattrs, inode=0, ctime=0)
    with Archive(path) as archive:
        intents = [Intent(b"plc.s7", HERE, None, source.record, b"", source.more)]
        intents.append(Intent(b"plc.s7", THERE, expected.record, coming.record, expected.more, coming.more))
        archive.intend(intents)
    other.chmod(0o600)
    if put:
        os.setxattr(other, "user.kept", b"2")
    os.setxattr(mine, "user.kept", b"3")
    assert both.here.run("nightly")["state"] == "equal"
    assert (os.getxattr(other, "user.kept"), other.stat().st_mode & 0o777) == (b"3", 0o600)
    assert os.getxattr(mine, "user.kept") == b"3"


def seen(path: Path) -> Entry:
    """As update detection sees the path."""
    root = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        found = Detection(root, only=None, filter=None, xattrs=frozenset({"acls", "xattrs"}), expected=0)
        entry = found.entries([os.fsencode(path.name)])[os.fsencode(path.name)]
    finally:
        os.close(root)
    assert isinstance(entry, Entry)
    return entry


def test_a_directory_of_excluded_files_in_the_way_is_named(pair: Pair) -> None:
    (pair.partner_path / "report").mkdir(parents=True)
    (pair.partner_path / "report" / "draft.tmp").write_text("excluded")
    (pair.path / "report").write_text("a file")
    pair.declare(settings=settings(exclude=["*.tmp"], conflict="this_server_wins"))
    record = pair.here.run("nightly", code=1)
    assert "report: a directory is in its place, which holds excluded files" in record["elements"][0]["problems"][0]
    assert (pair.partner_path / "report" / "draft.tmp").read_text() == "excluded"
    (pair.partner_path / "report").rename(pair.partner_path / "drafts")
    assert pair.here.run("nightly")["state"].startswith("equal")


@pytest.mark.parametrize("direction", ["both", "to_partner"])
def test_a_new_empty_directory_and_one_of_excluded_files_both_stay(pair: Pair, direction: str) -> None:
    (pair.path / "new" / "empty").mkdir(parents=True)
    (pair.partner_path / "new" / "empty").mkdir(parents=True)
    (pair.partner_path / "new" / "empty" / "draft.tmp").write_text("excluded")
    (pair.path / "file").write_text("a file")
    pair.declare(settings=settings(direction=direction, exclude=["*.tmp"], delete="synced"))
    for _run in range(3):
        assert pair.here.run("nightly")["state"].startswith("equal")
        assert (pair.path / "new" / "empty").is_dir()
        assert (pair.partner_path / "new" / "empty" / "draft.tmp").read_text() == "excluded"
    again = pair.here.run("nightly")["elements"][0]
    assert (again["created"], again["updated"], again["deleted"], again["attributes"]) == (0, 0, 0, 0)
    # With a file in it that takes part, it does; and goes when the file's directory goes here.
    (pair.path / "new" / "empty" / "file").write_text("to both")
    pair.here.run("nightly")
    assert (pair.partner_path / "new" / "empty" / "file").read_text() == "to both"
    assert pair.here.run("nightly")["state"] == "equal"
    shutil.rmtree(pair.path / "new")
    pair.here.run("nightly")
    assert [path.name for path in (pair.partner_path / "new").rglob("*")] == ["empty", "draft.tmp"]
    pair.here.run("nightly")
    assert not (pair.path / "new").exists()


@pytest.mark.parametrize("direction", ["both", "to_partner"])
def test_a_directory_that_a_run_leaves_with_excluded_files_alone_is_settled_by_it(pair: Pair, direction: str) -> None:
    (pair.path / "inner" / "rest").mkdir(parents=True)
    for name in ("gone here", "gone there"):
        (pair.path / "inner" / "rest" / name).write_text(name)
    (pair.path / "file").write_text("a file")
    pair.declare(settings=settings(direction=direction, exclude=["*.tmp"], delete="synced"))
    pair.here.run("nightly")
    (pair.partner_path / "inner" / "rest" / "draft.tmp").write_text("excluded")
    (pair.path / "inner" / "rest" / "gone here").unlink()
    gone = pair.partner_path if direction == "both" else pair.path
    (gone / "inner" / "rest" / "gone there").unlink()
    assert pair.here.run("nightly")["state"].startswith("equal")
    assert (pair.partner_path / "inner" / "rest" / "draft.tmp").read_text() == "excluded"
    assert (pair.path / "inner").exists() is (direction == "to_partner")
    again = pair.here.run("nightly")["elements"][0]
    assert (again["created"], again["updated"], again["deleted"], again["attributes"]) == (0, 0, 0, 0)


def test_a_new_name_here_and_another_mode_there_are_one_file_on_both(pair: Pair) -> None:
    (pair.path / "file").write_text("x")
    (pair.path / "file").chmod(0o640)
    pair.partner_path.mkdir()
    pair.declare(settings=settings("both", delete="synced"))
    pair.here.run("nightly")
    os.link(pair.path / "file", pair.path / "name")
    (pair.partner_path / "file").chmod(0o600)
    assert pair.here.run("nightly")["state"] == "equal"
    for root in (pair.path, pair.partner_path):
        found = [(root / name).stat() for name in ("file", "name")]
        assert [(info.st_mode & 0o7777, info.st_nlink) for info in found] == [(0o600, 2), (0o600, 2)]
        assert os.path.samestat(*found)
    assert pair.here.run("nightly")["elements"][0]["attributes"] == 0


def test_what_was_a_target_once_knows_the_archive_when_it_is_one_again(pair: Pair) -> None:
    pair.partner_path.mkdir()
    for name in ("goes", "stays"):
        (pair.partner_path / name).write_text(name)
    for direction in ("from_partner", "to_partner", "both"):
        pair.declare(settings=settings(direction, delete="synced"))
        # Each with something to archive, of which the other side's marker learns nothing.
        source = pair.partner_path if direction == "from_partner" else pair.path
        (source / direction).write_text("x")
        if direction == "both":
            (pair.path / "goes").unlink()
        element = pair.here.run("nightly")["elements"][0]
        assert element["warnings"] == []
    assert element["deleted"] == 1
    assert sorted(os.listdir(pair.path)) == sorted(os.listdir(pair.partner_path))
    assert not (pair.partner_path / "goes").exists()


def test_a_name_deleted_there_stays_so_when_another_name_of_the_file_gets_a_new_mode(pair: Pair) -> None:
    (pair.path / "file").write_text("x")
    os.link(pair.path / "file", pair.path / "name")
    pair.partner_path.mkdir()
    pair.declare(settings=settings("both", delete="never"))
    pair.here.run("nightly")
    (pair.partner_path / "name").unlink()
    (pair.partner_path / "file").chmod(0o600)
    for _run in range(2):
        pair.here.run("nightly")
        assert (pair.path / "name").stat().st_mode & 0o7777 == 0o600
        assert not (pair.partner_path / "name").exists()


def test_what_was_only_touched_is_known_from_then_on(both: Pair) -> None:
    """A backup that links every file, for one, moves every ctime."""
    for root in (both.path, both.partner_path):
        for name in ("plc.s7", "other"):
            os.link(root / name, root / "backup")
            (root / "backup").unlink()
    [path] = both.here.home.glob(".local/state/serversync/archives/nightly/*.sqlite")
    for _run in range(2):
        record = both.here.run("nightly")
        assert (record["state"], record["elements"][0]["state_before"]) == ("equal", "equal")
        with Archive(path) as archive:
            for root, side in ((both.path, "here"), (both.partner_path, "there")):
                row = archive.row(b"other")
                assert row is not None
                found = getattr(row, side)
                assert Entry.parse(found).ctime == (root / "other").stat().st_ctime_ns
    (both.path / "plc.s7").write_text("newer")
    both.here.run("nightly")
    assert (both.partner_path / "plc.s7").read_text() == "newer"


def test_another_name_that_got_its_mode_by_the_first_one_reaches_the_other_side(both: Pair) -> None:
    both.declare(settings=settings("both", delete="synced", preserve=["times", "permissions"]))
    both.here.run("nightly")
    os.link(both.path / "plc.s7", both.path / "second")
    (both.partner_path / "plc.s7").chmod(0o600)
    record = both.here.run("nightly")
    modes = {path.stat().st_mode & 0o777 for root in (both.path, both.partner_path) for path in root.glob("[ps]*")}
    assert (record["state"], modes) == ("equal", {0o600})


@pytest.fixture
def second(pair: Pair) -> Callable[[dict[str, Any], Path], dict[str, Any]]:
    """A run with these settings after a second name of first/name under this root could not be brought by the one
    before."""

    def run(options: dict[str, Any], root: Path) -> dict[str, Any]:
        other = pair.partner_path if root == pair.path else pair.path
        pair.declare(settings=settings(**options, exclude=["*.tmp"]))
        os.link(root / "first" / "name", root / "second")
        (other / "second").mkdir()
        (other / "second" / "x.tmp").touch()
        pair.here.run("nightly", code=1)
        shutil.rmtree(other / "second")
        return pair.here.run("nightly")

    return run


def test_a_new_name_of_a_file_that_is_left_on_one_side_brings_its_contents(
    pair: Pair, second: Callable[[dict[str, Any], Path], dict[str, Any]]
) -> None:
    (pair.path / "first").mkdir(parents=True)
    (pair.path / "first" / "name").write_text("contents")
    options = {"direction": "both", "delete": "never"}
    pair.declare(settings=settings(**options, exclude=["*.tmp"]))
    pair.here.run("nightly")
    (pair.path / "first" / "name").unlink()
    assert pair.here.run("nightly")["state"] == "equal_with_warnings"
    assert second(options, pair.partner_path)["elements"][0]["problems"] == []
    assert (pair.path / "second").read_text() == "contents"
    assert not (pair.path / "first" / "name").exists()


def test_a_new_name_of_a_file_whose_other_version_is_kept_is_no_name_of_that(
    pair: Pair, second: Callable[[dict[str, Any], Path], dict[str, Any]]
) -> None:
    for root, content in ((pair.path, "of here"), (pair.partner_path, "of them")):
        (root / "first").mkdir(parents=True)
        (root / "first" / "name").write_text(content)
        os.utime(root / "first" / "name", (1, 1))
    options = {"direction": "to_partner", "conflict": "partner_wins"}
    pair.declare(settings=settings(**options, exclude=["*.tmp"]))
    assert pair.here.run("nightly")["state"] == "equal_with_warnings"
    assert second(options, pair.path)["elements"][0]["problems"] == []
    assert (pair.partner_path / "second").read_text() == "of here"
    assert (pair.partner_path / "first" / "name").read_text() == "of them"


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_why_there_is_no_stage_is_told(pair: Pair, size: int) -> None:
    """Much is asked of the partner before it has said that it could make one."""
    (pair.path / "first").write_text("x" * size)
    pair.declare()
    pair.here.run("nightly")
    [stage] = pair.partner_path.glob(".serversync/nightly.*/stage")
    shutil.rmtree(stage)
    stage.write_text("in the way")
    (pair.path / "inner").mkdir()
    (pair.path / "inner" / "new").write_text("y" * size)
    record = pair.here.run("nightly", code=1)
    assert "before its stage" not in record["error"]["message"], record["error"]
    assert "Not a directory" in record["error"]["message"], record["error"]


@pytest.mark.parametrize("verb", ["finish", "mark"])
def test_what_the_partner_says_of_a_decision_is_heard_to_its_end(both: Pair, verb: str) -> None:
    """Nothing waits for it on the way."""
    (both.path / "plc.s7").write_text("edited here")
    (both.partner_path / "plc.s7").write_text("edited there")
    assert both.here.run("nightly", code=3)["state"] == "different"
    refusing = (
        "from serversync import serve\nfrom serversync.failure import Failure\n"
        "def refuse(*_arguments):\n    raise Failure('io', 'cannot be done any more')\n"
        f"serve.Desk.verb_{verb} = refuse\n"
    )
    write_launcher(both.there.launcher, f"os.environ['HOME'] = {str(both.there.home)!r}\n{refusing}")
    said = both.here.serversync("resolve", "nightly", "plc.s7", "--use", "this_server", code=1).stderr
    assert "cannot be done any more" in said
