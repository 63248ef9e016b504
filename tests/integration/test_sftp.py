# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Partners that have nothing but SFTP, over OpenSSH's own server: with all of its extensions, and without any."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serversync.job import load_file
from serversync.layout import Layout
from serversync.sftp import SftpServer

from tests.loopback import make_key, tree
from tests.sftp import ORDINARY, SftpPair, sftp_loopback

# The extensions that not every server has.
WEAK = "internal-sftp -P posix-rename,hardlink,fsync,statvfs,lsetstat,limits"
# As root also a server as hosted ones are: an ordinary account that sees nothing but its own directory.
WAYS: dict[str, dict[str, Any]] = {"own account": {}, "weak server": {"command": WEAK}}
if os.geteuid() == 0:
    WAYS["chroot"] = {"chroot": True, "user": ORDINARY}


@pytest.fixture(params=list(WAYS))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SftpPair]:
    with sftp_loopback(tmp_path, **WAYS[request.param]) as pair:
        yield pair


@pytest.fixture
def simple(tmp_path: Path) -> Iterator[SftpPair]:
    with sftp_loopback(tmp_path) as pair:
        yield pair


def settings(direction: str = "to_partner", **options: Any) -> dict[str, Any]:
    return {"direction": direction, "exclude": [], "delete": "never", **options}


def told(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """What SFTP can tell of a tree: times in seconds, no owners (the account's own)."""
    return {
        path: (mode, None if when is None else when // 10**9, content)
        for path, (mode, _owner, when, content) in tree(root).items()
    }


def make(path: Path, content: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)


def on_partner(pair: SftpPair, change: Callable[[Path], object]) -> None:
    """A change by the partner's own account."""
    if pair.there.user == getpass.getuser():
        change(pair.real)
        return
    entry = pwd.getpwnam(pair.there.user)
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        change(pair.real)
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_each_element_keeps_to_its_own_pace(simple: SftpPair) -> None:
    elements: list[dict[str, Any]] = [
        {"path": f"{simple.path}{number}", "partner_path": f"{simple.partner_path}{number}", "settings": own}
        for number, own in enumerate((None, {"bandwidth_limit": "1K"}))
    ]
    simple.declare(settings=settings(bandwidth_limit="1G"), elements=elements)
    layout = Layout("user", simple.here.config, simple.path, simple.path)
    with SftpServer(layout, load_file(simple.here.config / "jobs" / "nightly.json")) as server:
        options = {
            "element": "e",
            "run": "r",
            "writable": False,
            "look": True,
            "owner": "",
            "name": b"",
            "previous": "",
        }
        for number, limit in enumerate((1 << 30, 1 << 10)):
            (simple.real.with_name(f"programs{number}")).mkdir()
            opened = server.open(elements[number]["partner_path"], "directory", **options)
            assert opened.spend.__self__.limit == limit  # type: ignore[attr-defined]


def quiet(pair: SftpPair) -> None:
    """Another run finds nothing to do, moves nothing and leaves nothing behind."""
    before = tree(pair.real), tree(pair.path)
    record = pair.here.run("nightly")
    element = record["elements"][0]
    assert (element["state_before"], element["bytes"], element["problems"]) == ("equal", 0, [])
    assert (tree(pair.real), tree(pair.path)) == before
    reserved = pair.real / ".serversync"
    if reserved.exists():
        [own] = reserved.iterdir()
        assert {one.name for one in own.iterdir()} <= {"marker.json", "stage", "versions", "sizes.json"}
        assert list((own / "stage").iterdir()) == []


def fill(root: Path) -> None:
    make(root / "plc.s7", "agreed")
    make(root / "dir" / "deep" / "inner", "x" * 100_000, 0o600)
    make(root / "dir" / "script", "#!/bin/sh\n", 0o755)
    (root / "empty").mkdir(mode=0o750)
    (root / "link").symlink_to("/nowhere/at all")
    (root / "zero").touch()


def test_to_partner(pair: SftpPair) -> None:
    fill(pair.path)
    pair.declare(settings=settings(delete="synced"))
    record = pair.here.run("nightly")
    assert record["state"] == "equal", record
    assert told(pair.real) == told(pair.path)
    quiet(pair)
    make(pair.path / "plc.s7", "changed here")
    (pair.path / "dir" / "script").unlink()
    (pair.path / "link").unlink()
    (pair.path / "link").symlink_to("elsewhere")
    (pair.path / "dir" / "deep" / "inner").chmod(0o640)
    make(pair.path / "new" / "one", "new")
    element = pair.here.run("nightly")["elements"][0]
    assert (element["created"], element["updated"], element["deleted"], element["attributes"]) == (2, 2, 1, 1)
    assert told(pair.real) == told(pair.path)
    quiet(pair)


def test_from_partner(pair: SftpPair) -> None:
    on_partner(pair, fill)
    pair.declare(settings=settings("from_partner", delete="synced"))
    assert pair.here.run("nightly")["state"] == "equal"
    assert told(pair.real) == told(pair.path)
    # A pure source gets no file.
    assert not (pair.real / ".serversync").exists()
    quiet(pair)

    def change(root: Path) -> None:
        make(root / "plc.s7", "changed there")
        (root / "dir" / "script").unlink()
        make(root / "new" / "one", "new")

    on_partner(pair, change)
    assert pair.here.run("nightly")["state"] == "equal"
    assert told(pair.real) == told(pair.path)
    quiet(pair)


def test_both(pair: SftpPair) -> None:
    fill(pair.path)
    pair.declare(settings=settings("both", delete="synced", conflict="no_winner"))
    pair.here.run("nightly")
    make(pair.path / "here", "new here")
    (pair.path / "dir" / "script").unlink()

    def change(root: Path) -> None:
        make(root / "there" / "deep", "new there")
        make(root / "plc.s7", "changed there")
        (root / "zero").unlink()

    on_partner(pair, change)
    assert pair.here.run("nightly")["state"] == "equal"
    assert told(pair.real) == told(pair.path)
    assert (pair.path / "plc.s7").read_text() == "changed there"
    assert not (pair.path / "zero").exists()
    assert not (pair.real / "dir" / "script").exists()
    quiet(pair)


@pytest.fixture
def conflict(pair: SftpPair) -> SftpPair:
    make(pair.path / "plc.s7", "agreed")
    pair.declare(settings=settings("both", delete="synced", conflict="no_winner"))
    pair.here.run("nightly")
    make(pair.path / "plc.s7", "from here")
    on_partner(pair, lambda root: make(root / "plc.s7", "from there"))
    return pair


def test_a_conflict_waits_for_a_person(conflict: SftpPair) -> None:
    assert conflict.here.run("nightly", code=3)["state"] == "different"
    conflict.here.serversync("resolve", "nightly", "plc.s7", "--use", "this_server")
    assert (conflict.real / "plc.s7").read_text() == "from here"
    quiet(conflict)


@pytest.mark.parametrize(("winner", "content"), [("this_server_wins", "from here"), ("partner_wins", "from there")])
def test_a_rule_decides_and_the_loser_is_in_versions(conflict: SftpPair, winner: str, content: str) -> None:
    conflict.declare(settings=settings("both", delete="synced", conflict=winner))
    assert conflict.here.run("nightly")["state"] == "equal_with_warnings"
    assert [(side / "plc.s7").read_text() for side in (conflict.path, conflict.real)] == [content] * 2
    [version] = versions(conflict)
    assert version["path"] == "plc.s7"
    quiet(conflict)


def test_keep_both(conflict: SftpPair) -> None:
    conflict.declare(settings=settings("both", delete="synced", conflict="keep_both"))
    conflict.here.run("nightly")
    assert told(conflict.real) == told(conflict.path)
    [copy] = conflict.path.glob("plc.conflict-*.s7")
    assert ((conflict.path / "plc.s7").read_text(), copy.read_text()) == ("from here", "from there")


def versions(pair: SftpPair) -> list[dict[str, Any]]:
    found = json.loads(pair.here.serversync("versions", "nightly", "--json").stdout)
    return list(found["elements"][0]["versions"])


def test_what_was_displaced_comes_back(pair: SftpPair) -> None:
    fill(pair.path)
    pair.declare(settings=settings(delete="synced", max_delete="100%"))
    pair.here.run("nightly")
    make(pair.path / "plc.s7", "second")
    for name in ("dir/deep/inner", "dir/script"):
        (pair.path / name).unlink()
    for name in ("dir/deep", "dir", "empty"):
        (pair.path / name).rmdir()
    run = pair.here.run("nightly")["run"]
    assert {(one["path"], one["run"]) for one in versions(pair)} == {
        (path, run) for path in ("plc.s7", "dir/deep/inner", "dir/script", "empty")
    }
    assert told(pair.real) == told(pair.path)
    pair.here.serversync("restore", "nightly", "plc.s7")
    assert (pair.real / "plc.s7").read_text() == "agreed"
    pair.here.serversync("restore", "nightly", "dir")
    assert stat.S_IMODE((pair.real / "dir" / "script").stat().st_mode) == 0o755
    assert (pair.real / "dir" / "deep" / "inner").stat().st_size == 100_000
    # What stood in its place is a version now.
    assert {one["path"] for one in versions(pair)} == {"plc.s7", "empty"}


def test_what_becomes_something_else_does_so_on_the_target(pair: SftpPair) -> None:
    make(pair.path / "a" / "inner", "x")
    make(pair.path / "b", "file")
    (pair.path / "c").symlink_to("b")
    pair.declare(settings=settings(delete="synced"))
    pair.here.run("nightly")
    (pair.path / "a" / "inner").unlink()
    (pair.path / "a").rmdir()
    make(pair.path / "a", "now a file")
    (pair.path / "b").unlink()
    make(pair.path / "b" / "inner", "y")
    (pair.path / "c").unlink()
    make(pair.path / "c", "was a link")
    record = pair.here.run("nightly")
    assert record["state"] == "equal", record
    assert told(pair.real) == told(pair.path)
    quiet(pair)


ODD = [b"line\nfeed", b"\xff\xfe not utf-8", b"n" * 255, b"-rf", b" blank ", b"*?[x]\\", b"#;'\"$", "ümlaut".encode()]


def test_odd_names_both_ways(pair: SftpPair) -> None:
    for name in ODD:
        (pair.path / os.fsdecode(b"here " + name)[:255]).write_bytes(name)
    (pair.path / os.fsdecode(b"dir\n\xff")).mkdir()
    (pair.path / os.fsdecode(b"dir\n\xff/link")).symlink_to(os.fsdecode(b"to \xff\n"))
    pair.declare(settings=settings("both"))

    def change(root: Path) -> None:
        for name in ODD:
            (root / os.fsdecode(b"there" + name)[:255]).write_bytes(name)

    on_partner(pair, change)
    record = pair.here.run("nightly")
    assert record["state"] == "equal", record
    assert told(pair.real) == told(pair.path)
    assert len(tree(pair.path)) == 2 * len(ODD) + 2
    quiet(pair)


def test_large_and_sparse_files_are_whole(pair: SftpPair) -> None:
    (pair.path / "large").write_bytes(os.urandom(5_000_001))
    with (pair.path / "sparse").open("wb") as file:
        file.seek(3_000_000)
        file.write(b"data")
        file.truncate(9_000_000)
    pair.declare(settings=settings("both"))
    pair.here.run("nightly")
    assert told(pair.real) == told(pair.path)
    on_partner(pair, lambda root: os.truncate(root / "sparse", 20_000_000))
    pair.here.run("nightly")
    assert told(pair.real) == told(pair.path)
    assert (pair.path / "sparse").stat().st_blocks * 512 < 5_000_000


def test_checksums_are_read_over_the_network(pair: SftpPair) -> None:
    make(pair.path / "same", "x" * 3_000_000)
    on_partner(pair, lambda root: make(root / "same", "x" * 3_000_000))
    when = (pair.real / "same").stat().st_mtime_ns // 10**9 * 10**9
    os.utime(pair.path / "same", ns=(when, when))
    pair.declare(settings=settings(verify="checksum"))
    element = pair.here.run("nightly")["elements"][0]
    assert (element["bytes"], element["conflicts"]) == (0, 0)
    # Size and time are what they were.
    on_partner(pair, lambda root: make(root / "same", "y" * 3_000_000))
    os.utime(pair.real / "same", ns=(when, when))
    pair.here.run("nightly")
    assert told(pair.real) == told(pair.path)


def test_one_file_with_another_name_there(pair: SftpPair) -> None:
    make(pair.path / "plc.s7", "one file")
    pairs = [(pair.path / "plc.s7", Path(pair.partner_path) / "copy.s7")]
    on_partner(pair, lambda root: make(root / "other", "not concerned"))
    pair.declare(pairs=pairs)
    assert pair.here.run("nightly")["state"] == "equal"
    assert {name: row[2] for name, row in told(pair.real).items()} == {
        b"copy.s7": b"one file",
        b"other": b"not concerned",
    }
    assert pair.here.run("nightly")["elements"][0]["state_before"] == "equal"


def test_patterns(pair: SftpPair) -> None:
    fill(pair.path)
    on_partner(pair, lambda root: make(root / "dir" / "theirs.tmp", "stays"))
    pair.declare(settings=settings(exclude=["*.tmp", "deep/"], delete="extraneous"))
    make(pair.path / "mine.tmp", "stays")
    pair.here.run("nightly")
    assert b"dir/theirs.tmp" in told(pair.real)
    assert {b"mine.tmp", b"dir/deep"}.isdisjoint(told(pair.real))


def test_a_plan_and_a_check_change_nothing(pair: SftpPair) -> None:
    fill(pair.path)
    pair.declare()
    before = sorted(os.walk(pair.real))
    plan = json.loads(pair.here.serversync("plan", "nightly", "--json").stdout)
    assert {one["what"] for one in plan["elements"][0]["decisions"]} == {"new"}
    findings = pair.here.serversync("check", "nightly", "--json", code=None).stdout
    assert "lets this server in" in findings
    assert sorted(os.walk(pair.real)) == before


def test_a_weak_server_is_told_of(tmp_path: Path) -> None:
    with sftp_loopback(tmp_path, command=WEAK) as pair:
        make(pair.path / "plc.s7", "x")
        pair.declare()
        warnings = pair.here.run("nightly")["elements"][0]["warnings"]
        assert len(warnings) == 3
        assert "cannot replace a file in one step" in warnings[0]
        assert "cannot be told to write to its disk" in warnings[1]
        found = json.loads(pair.here.serversync("check", "nightly", "--json", code=None).stdout)
        assert "cannot replace a file in one step" in json.dumps(found)


def test_openssh_has_nothing_to_be_told_of(simple: SftpPair) -> None:
    make(simple.path / "plc.s7", "x")
    simple.declare()
    assert simple.here.run("nightly")["elements"][0]["warnings"] == []


def test_what_sftp_cannot_make_is_listed(simple: SftpPair) -> None:
    make(simple.path / "plc.s7", "x")
    os.mkfifo(simple.path / "fifo")
    os.utime(simple.path / "plc.s7", ns=(0, -(10**9)))
    simple.declare()
    record = simple.here.run("nightly", code=1)
    assert record["elements"][0]["problems"] == [
        "fifo: is a fifo, which SFTP cannot make; exclude it",
        "plc.s7: has a modification time that SFTP cannot tell (it knows 1970 to 2106)",
    ]
    assert tree(simple.real) == {}


# Logging in.


def test_another_host_key(simple: SftpPair, tmp_path: Path) -> None:
    make(simple.path / "plc.s7", "x")
    other = " ".join(make_key(tmp_path / "other").split()[:2])
    partner = {"host": "127.0.0.1", "port": simple.there.port, "connection": "sftp"}
    simple.declare(partner={**partner, "host_key": [other]})
    record = simple.here.run("nightly", code=1)
    assert record["error"]["code"] == "host_key"
    assert "wrong host key: 127.0.0.1" in record["error"]["message"]
    assert not record["error"]["transient"]
    simple.declare(partner={**partner, "host_key": []})
    assert simple.here.run("nightly", code=1)["error"]["code"] == "not_paired"
    # One of another type, which the server does not have.
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", str(tmp_path / "rsa")], check=True)
    rsa = " ".join((tmp_path / "rsa.pub").read_text().split()[:2])
    simple.declare(partner={**partner, "host_key": [rsa]})
    assert simple.here.run("nightly", code=1)["error"]["code"] == "host_key"
    simple.declare(partner={**partner, "host_key": [rsa, simple.there.host_key]})
    assert simple.here.run("nightly")["state"] == "equal"


def test_a_key_that_is_not_let_in(simple: SftpPair) -> None:
    simple.there.keys.write_text("")
    simple.declare()
    record = simple.here.run("nightly", code=1)
    assert (record["error"]["code"], record["error"]["transient"]) == ("login", False)
    assert "log-in refused by 127.0.0.1" in record["error"]["message"]


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_keys_of_other_types(simple: SftpPair, tmp_path: Path, kind: str) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(tmp_path / "key")], check=True)
    with simple.there.keys.open("a") as file:
        file.write((tmp_path / "key.pub").read_text())
    simple.declare(account={"user": simple.there.user, "private_key_file": str(tmp_path / "key")})
    assert simple.here.run("nightly")["state"] == "equal"


def test_keys_that_cannot_be_used(simple: SftpPair, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(tmp_path / "locked")], check=True)
    (tmp_path / "none").write_text("no key at all")
    for name, said in (("locked", "passphrase"), ("none", "is no private key"), ("missing", "cannot be read")):
        simple.declare(account={"user": simple.there.user, "private_key_file": str(tmp_path / name)})
        error = simple.here.run("nightly", code=1)["error"]
        assert (error["code"], error["field"]) == ("no_key", "account.private_key_file")
        assert said in error["message"]


def test_nobody_answers(simple: SftpPair) -> None:
    simple.there.stop()
    simple.declare()
    record = simple.here.run("nightly", code=1)
    assert (record["error"]["code"], record["error"]["transient"]) == ("unreachable", True)
    assert "connection refused by 127.0.0.1" in record["error"]["message"]


def test_a_server_without_sftp(tmp_path: Path) -> None:
    with sftp_loopback(tmp_path, command="/bin/false") as pair:
        pair.declare()
        record = pair.here.run("nightly", code=1)
        assert record["error"]["code"] in ("connection", "no_sftp")
    with sftp_loopback(tmp_path / "other", command="/bin/echo no sftp here") as pair:
        pair.declare()
        assert pair.here.run("nightly", code=1)["error"]["code"] in ("protocol", "connection")


# Rights.


def test_what_may_not_be_read_is_unknown_not_absent(tmp_path: Path) -> None:
    way = WAYS.get("chroot", {})
    with sftp_loopback(tmp_path, **way) as pair:
        on_partner(pair, fill)
        pair.declare(settings=settings("from_partner", delete="synced"))
        pair.here.run("nightly")
        before = told(pair.path)
        on_partner(pair, lambda root: (root / "dir").chmod(0))
        on_partner(pair, lambda root: (root / "plc.s7").chmod(0))
        record = pair.here.run("nightly", code=1)
        problems = record["elements"][0]["problems"]
        assert any(problem.startswith("dir: ") for problem in problems)
        assert {path: row[2] for path, row in told(pair.path).items()} == {path: row[2] for path, row in before.items()}
        on_partner(pair, lambda root: (root / "dir").chmod(0o755))
        on_partner(pair, lambda root: (root / "plc.s7").chmod(0o644))
        assert pair.here.run("nightly")["state"] == "equal"
        assert told(pair.path) == before


def test_what_may_not_be_written_is_refused(tmp_path: Path) -> None:
    with sftp_loopback(tmp_path, **WAYS.get("chroot", {})) as pair:
        fill(pair.path)
        on_partner(pair, lambda root: root.chmod(0o555))
        pair.declare()
        record = pair.here.run("nightly", code=1)
        assert record["error"]["code"] == "not_writable"
        assert "Permission denied" in record["error"]["message"]
        on_partner(pair, lambda root: root.chmod(0o755))
        assert pair.here.run("nightly")["state"] == "equal"
        on_partner(pair, lambda root: (root / "dir").chmod(0o555))
        make(pair.path / "dir" / "new", "x")
        (pair.path / "dir").chmod(0o755)
        record = pair.here.run("nightly", code=1)
        assert record["elements"][0]["problems"] == ["dir/new: Permission denied"]


# The lock.


def holder(pair: SftpPair, **content: Any) -> Path:
    lock = pair.real / ".serversync" / ".lock"
    lock.parent.mkdir(mode=0o700, exist_ok=True)
    lock.write_text(json.dumps({"owner": "day, run 1", "token": "other", "since": "yesterday", **content}))
    return lock


def test_a_root_that_another_run_changes_is_left_alone(simple: SftpPair) -> None:
    make(simple.path / "plc.s7", "x")
    simple.declare()
    lock = holder(simple, machine="another", boot="x", pid=1, started=1)
    record = simple.here.run("nightly", code=4)
    assert (record["state"], record["elements"][0]["state_after"]) == ("skipped", "skipped")
    assert (record["error"]["code"], record["error"]["transient"]) == ("running", True)
    assert "in use by day, run 1 since yesterday" in record["error"]["message"]
    assert told(simple.real) == {}
    assert lock.exists()
    # One that nobody has written for so long is nobody's.
    os.utime(lock, (lock.stat().st_mtime - 301,) * 2)
    assert simple.here.run("nightly")["state"] == "equal"
    assert not lock.exists()


def test_the_lock_of_a_dead_process_of_this_server_is_nobodys(simple: SftpPair) -> None:
    from serversync.sftptree import process

    make(simple.path / "plc.s7", "x")
    simple.declare()
    holder(simple, **process())
    assert simple.here.run("nightly", code=4)["error"]["code"] == "running"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    holder(simple, **{**process(), "pid": gone.pid})
    assert simple.here.run("nightly")["state"] == "equal"


# Lost connections.


def before_the_cut(here: Path) -> None:
    fill(here)
    make(here / "kind", "a file")
    make(here / "turn" / "inner", "a directory")


def edit_both(here: Path, there: Path) -> None:
    make(here / "plc.s7", "second")
    (here / "link").unlink()
    (here / "link").symlink_to("second")
    (here / "dir" / "script").unlink()
    make(here / "new" / "one", "new")
    (here / "kind").unlink()
    make(here / "kind" / "inner", "a directory now")
    (here / "turn" / "inner").unlink()
    (here / "turn").rmdir()
    make(here / "turn", "a file now")
    make(there / "theirs", "of the partner")


@pytest.mark.parametrize("options", [[], ["-P", "posix-rename,hardlink,fsync,statvfs,lsetstat,limits"]])
def test_a_run_that_is_cut_off_anywhere_is_finished_by_the_next(tmp_path: Path, options: list[str]) -> None:
    """From the first request to the last: nothing is lost, and nothing of ours is taken for a conflict."""
    log = tmp_path / "requests"
    cut = log.with_suffix(".cut")
    script = Path(__file__).parent.parent / "cutting.py"
    command = " ".join([sys.executable, str(script), str(log), "/usr/lib/openssh/sftp-server", *options])
    rules = settings("both", delete="synced", conflict="no_winner", max_delete="100%")
    with sftp_loopback(tmp_path, command=command) as pair:
        before_the_cut(pair.path)
        pair.declare(settings=rules)
        pair.here.run("nightly")
        edit_both(pair.path, pair.real)
        pair.here.run("nightly")
        quiet(pair)
        wanted, total = told(pair.path), int(log.read_text())
        state, partner = pair.here.home / ".local", pair.real
        for number in cuts(total):
            shutil.rmtree(state)
            for root in (pair.path, partner):
                shutil.rmtree(root)
                root.mkdir()
            before_the_cut(pair.path)
            pair.here.run("nightly")
            edit_both(pair.path, partner)
            cut.write_text(str(number))
            pair.here.serversync("run", "nightly", code=None)
            cut.unlink()
            lock = partner / ".serversync" / ".lock"
            if lock.exists() and not lock.read_text():
                # Killed within the two requests in which a server without hard links has a lock that says nothing.
                os.utime(lock, (1, 1))
            record = pair.here.run("nightly")
            assert (number, record["state"]) == (number, "equal"), record
            assert times_aside(told(pair.path)) == times_aside(wanted), number
            assert told(partner) == told(pair.path), number
            quiet(pair)


def test_what_a_killed_run_left_is_removed_whatever_its_mode(pair: SftpPair) -> None:
    make(pair.path / "plc.s7", "x")
    pair.declare()
    pair.here.run("nightly")
    [own] = (pair.real / ".serversync").iterdir()

    def leave(root: Path) -> None:
        make(root / ".serversync" / own.name / "stage" / "20200101T000000Z-0000" / "a" / "b" / "c", "left")
        make(root / ".serversync" / ".lock.0123456789abcdef", "left")
        (root / ".serversync" / own.name / "stage" / "20200101T000000Z-0000" / "a" / "b").chmod(0o555)
        (root / ".serversync" / own.name / "stage" / "20200101T000000Z-0000" / "a").chmod(0)

    on_partner(pair, leave)
    quiet(pair)


def times_aside(found: dict[bytes, tuple[Any, ...]]) -> dict[bytes, tuple[Any, ...]]:
    return {path: (mode, content) for path, (mode, _when, content) in found.items()}


def cuts(total: int) -> range:
    """The requests of a run at which it is cut off."""
    return range(1, total + 1, int(os.environ.get("SFTP_CUTS_EVERY", 0)) or max(1, total // 8))


def hang_up(listener: socket.socket) -> None:
    listener.accept()[0].close()


def test_a_partner_that_is_gone_is_a_reason_to_try_again(simple: SftpPair) -> None:
    make(simple.path / "plc.s7", "x")
    simple.declare()
    # Something that takes the connection and never says a word, and then hangs up.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        simple.port = listener.getsockname()[1]
        simple.declare()
        with ThreadPoolExecutor(1) as pool:
            hung_up = pool.submit(hang_up, listener)
            record = simple.here.run("nightly", code=1)
            hung_up.result()
    assert record["error"]["transient"]
