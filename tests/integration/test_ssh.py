# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs over a real SSH connection through the partner's door."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import Pair, module, tree
from tests.proxy import Proxy


def fill(path: Path) -> None:
    """Names and kinds of files that break what quotes, splits or follows."""
    for name in (
        b"plain",
        b"with space",
        b"new\nline",
        b"quote'\"s",
        b"-dash",
        b"\xff\xfe",
        b"*?[a]",
        b"back\\slash",
        b"#;",
    ):
        (path / os.fsdecode(name)).write_bytes(name)
    (path / "deep" / "a" / "b").mkdir(parents=True)
    (path / "empty").mkdir()
    (path / "deep" / "a" / "b" / "file").write_bytes(b"x" * 100_000)
    for name, target in (
        ("absolute", "/etc/passwd"),
        ("upward", "../../x"),
        ("dangling", "nowhere"),
        ("near", "plain"),
    ):
        (path / name).symlink_to(target)
    os.link(path / "plain", path / "hard link")
    (path / "setgid").write_text("s")
    (path / "setgid").chmod(0o2751)


@pytest.mark.parametrize("direction", ["to_partner", "from_partner"])
def test_the_target_becomes_as_the_source_is_and_a_second_run_moves_nothing(pair: Pair, direction: str) -> None:
    pair.partner_path.mkdir()
    source, target = pair.path, pair.partner_path
    if direction == "from_partner":
        source, target = target, source
    fill(source)
    pair.declare(direction=direction)

    first = pair.here.run("nightly")

    assert tree(target) == tree(source)
    assert (target / "plain").stat().st_nlink == 2
    assert (first["elements"][0]["state_before"], first["state"]) == ("different", "equal")
    before = tree(target)
    second = pair.here.run("nightly")
    entry = second["elements"][0]
    assert (entry["state_before"], entry["created"], entry["updated"], entry["bytes"]) == ("equal", 0, 0, 0)
    assert tree(target) == before
    assert not (source / ".serversync").exists()


def test_a_missing_target_below_the_root_is_made(pair: Pair) -> None:
    fill(pair.path)
    pair.partner_path = pair.partner_path / "new" / "deeper"
    pair.declare()
    pair.here.run("nightly")
    assert tree(pair.partner_path) == tree(pair.path)


def test_one_file_is_an_element_too(pair: Pair) -> None:
    pair.path = pair.path / "a file.txt"
    pair.path.write_text("one")
    pair.partner_path = pair.partner_path / "b file.txt"
    pair.declare()
    pair.here.run("nightly")
    assert pair.partner_path.read_text() == "one"
    pair.path.write_text("two!")
    pair.here.run("nightly")
    assert pair.partner_path.read_text() == "two!"
    kept = list(pair.partner_path.parent.glob(".serversync/*/versions/*/b file.txt"))
    assert [path.read_text() for path in kept] == ["one"]


@pytest.mark.parametrize("direction", ["to_partner", "from_partner"])
def test_what_is_overwritten_stays_in_versions(pair: Pair, direction: str) -> None:
    pair.partner_path.mkdir()
    source, target = (pair.path, pair.partner_path) if direction == "to_partner" else (pair.partner_path, pair.path)
    (source / "program").write_text("from the source")
    (target / "program").write_text("of the target alone")
    os.utime(target / "program", (1, 1))
    pair.declare(direction=direction)
    record = pair.here.run("nightly")
    assert (target / "program").read_text() == "from the source"
    kept = list(target.glob(f".serversync/nightly.*/versions/{record['run']}/program"))
    assert [path.read_text() for path in kept] == ["of the target alone"]


def test_plan_shows_the_changes_and_writes_nothing_on_either_side(pair: Pair) -> None:
    fill(pair.path)
    pair.declare()
    before = tree(pair.partner_path.parent)
    text = pair.here.serversync("plan", "nightly").stdout
    assert "  + with space" in text and "  + new\\x0aline" in text and "  + \\xff\\xfe" in text
    assert tree(pair.partner_path.parent) == before == {}
    pair.here.run("nightly")
    (pair.path / "plain").write_text("changed")
    plan = json.loads(pair.here.serversync("plan", "nightly", "--json").stdout)
    changes = {change["path"]: change["what"] for change in plan["elements"][0]["decisions"]}
    assert changes == {"plain": "update", "hard link": "update"}


def moments(*roots: Path) -> dict[Path, tuple[int, int, int]]:
    """When each inode was changed, those that the runner keeps for itself included; reading is no change."""
    found = [path for root in roots for path in [root, *root.rglob("*")]]
    return {path: (info.st_ino, info.st_mtime_ns, info.st_ctime_ns) for path in found for info in [path.lstat()]}


@pytest.mark.parametrize("direction", ["to_partner", "from_partner", "both"])
def test_a_plan_changes_no_inode_on_either_side(pair: Pair, direction: str) -> None:
    pair.partner_path.mkdir()
    for root in (pair.path, pair.partner_path):
        (root / "sub").mkdir()
        (root / "sub" / "same").write_text("x")
        os.utime(root / "sub" / "same", (1, 1))
        (root / root.parent.name).write_text("x")
    pair.declare(direction=direction)
    before = moments(pair.path, pair.partner_path)
    pair.here.serversync("plan", "nightly")
    assert moments(pair.path, pair.partner_path) == before
    pair.here.run("nightly")
    (pair.path / "sub" / "new").write_text("x")
    (pair.partner_path / "sub" / "same").write_text("y")
    before = moments(pair.path, pair.partner_path)
    assert any(path.name == ".serversync" for path in before)
    pair.here.serversync("plan", "nightly")
    assert moments(pair.path, pair.partner_path) == before


def test_the_sshd_is_gone_then_back(pair: Pair) -> None:
    fill(pair.path)
    pair.declare(on_error={"retries": 2, "delay": "0s"})
    pair.there.stop()
    record = pair.here.run("nightly", code=1)
    assert [attempt["state"] for attempt in record["attempts"]] == ["failed"] * 3
    expected = f"connection refused by 127.0.0.1:{pair.there.port}; check that sshd runs there on that port"
    assert record["error"] == {
        "code": "unreachable",
        "field": "partner.host",
        "message": expected,
        "transient": True,
    }
    pair.there.start()
    assert pair.here.run("nightly")["state"] == "equal"
    assert tree(pair.partner_path) == tree(pair.path)


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_run_logs_in_once(pair: Pair, parallel: int) -> None:
    other = (pair.path.with_name("other"), pair.partner_path.with_name("other"))
    other[0].mkdir()
    for path in (pair.path, other[0]):
        # One that rsync brings, over a channel of its own.
        (path / "image").write_bytes(os.urandom(1 << 20))
    with Proxy(pair.there.port) as proxy:
        pair.port = proxy.port
        pair.declare(pairs=[(pair.path, pair.partner_path), other], limits={"parallel": parallel})
        assert pair.here.run("nightly")["state"] == "equal"
        assert proxy.call()["connections"] == 1


def test_the_key_of_another_server_ends_the_run_at_once(pair: Pair, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    other = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    partner = {"host": "127.0.0.1", "port": pair.there.port, "connection": "ssh", "host_key": [other]}
    pair.declare(partner=partner, on_error={"retries": 3, "delay": "0s"})
    record = pair.here.run("nightly", code=1)
    assert record["error"]["code"] == "host_key"
    assert len(record["attempts"]) == 1
    assert not pair.partner_path.exists()


def test_a_pairing_pins_the_key_and_a_different_one_in_the_job_is_refused(pair: Pair, tmp_path: Path) -> None:
    pairings = pair.here.config / "pairings"
    facts = {"name": "hq", "host": "127.0.0.1", "alias": "serversync-hq"}
    (pairings / "hq.json").write_text(json.dumps(facts))
    (pairings / "hq.known_hosts").write_text(f"serversync-hq {pair.there.host_key}\n")
    partner = {"host": "hq", "port": pair.there.port, "connection": "ssh", "host_key": []}
    pair.declare(partner=partner)
    assert pair.here.run("nightly")["state"] == "equal"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    partner["host_key"] = [" ".join((tmp_path / "other.pub").read_text().split()[:2])]
    pair.declare(partner=partner)
    record = pair.here.run("nightly", code=1)
    assert record["error"]["field"] == "partner.host_key"
    assert "is not the key that the pairing hq has pinned" in record["error"]["message"]


def test_a_refused_key_is_not_tried_again(pair: Pair) -> None:
    pair.declare(on_error={"retries": 3, "delay": "0s"})
    (pair.there.home / "authorized_keys").write_text("")
    record = pair.here.run("nightly", code=1)
    assert (record["error"]["code"], len(record["attempts"])) == ("login", 1)


@pytest.mark.parametrize(
    "command", ["", "id", "sh -c id", "rsync --server --sender -e.LsfxC . /etc", "rsync --server --daemon . ; id"]
)
def test_the_key_opens_nothing_else(pair: Pair, command: str) -> None:
    known_hosts = pair.there.home / "known_hosts"
    known_hosts.write_text(f"door {pair.there.host_key}\n")
    argv = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={known_hosts}"]
    argv += [
        "-o",
        "HostKeyAlias=door",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "IdentityAgent=none",
        "-i",
        str(pair.here.key),
    ]
    done = subprocess.run(
        [*argv, "-p", str(pair.there.port), "127.0.0.1", *([command] if command else [])],
        capture_output=True,
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "opens synchronization for the pairing site-a and nothing else" in done.stderr


def test_a_path_outside_the_roots_is_refused(pair: Pair, tmp_path: Path) -> None:
    pair.partner_path = tmp_path / "elsewhere"
    pair.declare()
    record = pair.here.run("nightly", code=1)
    assert record["error"]["code"] == "outside_roots"
    assert str(tmp_path / "roots") in record["error"]["message"]
    assert not pair.partner_path.exists()


def test_a_root_that_is_open_for_reading_is_not_written(pair: Pair, tmp_path: Path) -> None:
    fill(pair.path)
    root = tmp_path / "roots"
    entry = {"module": module(root), "path": str(root), "access": "read"}
    (pair.there.config / "serve" / "site-a.json").write_text(json.dumps({"name": "site-a", "roots": [entry]}))
    pair.declare()
    record = pair.here.run("nightly", code=1)
    assert record["error"]["field"] == "elements[0].partner_path"
    assert list(root.iterdir()) == []


def test_a_link_in_the_partners_path_is_not_followed(pair: Pair, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (pair.path / "file").write_text("x")
    pair.partner_path.symlink_to(outside)
    pair.partner_path = pair.partner_path / "below"
    pair.declare()
    record = pair.here.run("nightly", code=1)
    assert record["error"]["code"] == "blocked"
    assert list(outside.iterdir()) == []


def test_check_names_what_is_right_and_what_is_wrong(pair: Pair) -> None:
    pair.declare(notification={"email": ["ops@example.com"], "events": ["failure"]})
    findings = json.loads(pair.here.serversync("check", "nightly", "--json", code=1).stdout)["nightly"]
    issues = {entry["issue"].split(":")[0]: entry["level"] for entry in findings}
    assert issues["the clocks agree"] == "ok"
    assert [issues[one] for one in issues if one.startswith("mail server ")] == ["error"], issues
    assert f"elements {pair.path}" not in issues
    assert sum(entry["level"] == "error" for entry in findings) == 1


def test_a_root_that_became_a_link_is_not_entered(pair: Pair, tmp_path: Path) -> None:
    root, victim = tmp_path / "roots", tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    (pair.path / "file").write_text("evil")
    root.rmdir()
    root.symlink_to(victim)
    pair.declare()
    record = pair.here.run("nightly", code=1)
    assert record["error"]["code"] == "blocked"
    assert (victim / "file").read_text() == "precious"
    assert [path.name for path in victim.iterdir()] == ["file"]


def test_a_link_on_this_side_is_not_followed(pair: Pair, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    pair.partner_path.mkdir()
    (pair.partner_path / "file").write_text("evil")
    pair.path.rmdir()
    pair.path.symlink_to(victim)
    pair.declare(direction="from_partner")
    record = pair.here.run("nightly", code=1)
    assert (record["error"]["code"], record["error"]["field"]) == ("kind", "elements[0].path")
    assert "is a symbolic link; name what it points to" in record["error"]["message"]
    assert list(victim.iterdir()) == []


@pytest.mark.parametrize("name", ["data*", "a[1]", "what?", "back\\slash"])
def test_a_pattern_in_the_partners_path_is_refused(pair: Pair, name: str) -> None:
    """rsync's daemon would expand it, and reach another directory."""
    pair.partner_path = pair.partner_path.parent / name
    pair.declare()
    done = pair.here.serversync("run", "nightly", code=2)
    assert "elements[0].partner_path" in done.stderr
    assert tree(pair.partner_path.parent) == {}
