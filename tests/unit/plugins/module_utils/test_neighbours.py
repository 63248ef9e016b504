# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where paths of this server really are: a table of mounts as the kernel writes it, and links."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _job, _otherscope, _store
from ansible_collections.serversync.core.plugins.module_utils._neighbours import (
    findings_of,
    moves,
    places_of,
    read_mounts,
)

MOUNTS = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:5 / /proc rw - proc proc rw
30 21 8:2 / /srv rw - ext4 /dev/sdb1 rw
31 30 8:2 /line\0401/x /mnt/with\040blank rw - ext4 /dev/sdb1 rw
32 21 8:3 / /over rw - ext4 /dev/sdc1 rw
33 32 8:1 /under /over rw - ext4 /dev/sda1 rw
34 21 0:9 /@data /data rw - btrfs /dev/sdd1 rw
"""


@pytest.fixture
def mounts(tmp_path):
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTS.lstrip())
    return read_mounts(str(path))


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/no/where", ("8:1", "/no/where")),
        ("/srv", ("8:2", "/")),
        ("/srv/a", ("8:2", "/a")),
        ("/srvx", ("8:1", "/srvx")),
        ("/mnt/with blank", ("8:2", "/line 1/x")),
        ("/mnt/with blank/a/b", ("8:2", "/line 1/x/a/b")),
        ("/over/a", ("8:1", "/under/a")),
        ("/data/a", ("0:9", "/@data/a")),
    ],
)
def test_where_a_path_is(mounts, path, place):
    assert places_of([path], mounts) == {path: place}


def test_links_are_followed(mounts, tmp_path):
    (tmp_path / "link").symlink_to("/srv/a")
    assert places_of([str(tmp_path / "link" / "b")], mounts) == {str(tmp_path / "link" / "b"): ("8:2", "/a/b")}


def test_where_nothing_is_known_of_mounts_paths_are_as_they_are_spelled(tmp_path):
    assert read_mounts(str(tmp_path / "none")) == []
    assert places_of(["/srv/a"], []) == {}


def test_the_mounts_of_this_machine_have_a_root():
    assert read_mounts()[-1][0] == "/"


def job(**more):
    made, problems = _job.declare(dict({"name": "j", "partner": {"host": "hq"}, "elements": [{"path": "/x"}]}, **more))
    assert problems == []
    return made


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({}, False),
        ({"comment": "x", "enabled": False, "schedule": {"every": "1h"}, "on_error": {"retries": 0}}, False),
        ({"account": {"user": "x"}, "notification": {"email": ["a@example.com"]}, "limits": {"parallel": 2}}, False),
        ({"partner": {"host": "dr"}}, True),
        ({"partner": {"host": "hq", "port": 2222}}, True),
        ({"partner": {"host": "hq", "connection": "sftp"}}, True),
        ({"elements": [{"path": "/y"}]}, True),
        ({"elements": [{"path": "/x", "partner_path": "/y"}]}, True),
        ({"elements": [{"path": "/x", "kind": "log"}]}, True),
        ({"elements": [{"path": "/x"}, {"path": "/y"}]}, True),
        ({"settings": {"delete": "synced"}}, True),
        ({"settings": {"exclude": ["a"]}}, True),
        ({"accept_circular": "so"}, True),
        ({"elements": [{"path": "/x", "settings": {"direction": "from_partner"}}]}, True),
        # what holds is the same
        ({"elements": [{"path": "/x", "settings": {"direction": "to_partner"}}]}, False),
    ],
)
def test_which_edits_may_close_a_circle(change, moved):
    before, after = job(), job(**change)
    assert moves(_job.document_text(before).encode("utf-8"), after) is moved
    assert moves(_job.document_text(after).encode("utf-8"), before) is moved


def test_a_document_of_another_server_moves_when_it_becomes_one_of_this():
    document = _job.document_text(_job.bound(job(), "f" * 32)).encode("utf-8")
    assert not moves(document, job(), "f" * 32)
    assert moves(document, job(), "0" * 32)
    assert not moves(_job.document_text(job()).encode("utf-8"), job(), "0" * 32)


@pytest.mark.parametrize("there", [None, b"", b"{", b"[]", b"{}", b"\xff", b'{"partner": 1}', b"[" * 200_000])
def test_what_was_not_there_or_is_damaged_moves(there):
    assert moves(there, job())


def test_a_document_of_an_earlier_version_stays():
    old = job()
    del old["accept_circular"], old["limits"], old["elements"][0]["kind"], old["elements"][0]["settings"]
    old["settings"] = {"direction": "to_partner", "delete": "never", "exclude": []}
    assert not moves(_job.document_text(old).encode("utf-8"), job())


# --- the other scope -------------------------------------------------------------------------------------------


@pytest.fixture
def alice(tmp_path, monkeypatch):
    """The home of a user whose manager runs; bob's does not."""
    homes = {"alice": tmp_path / "alice", "bob": tmp_path / "bob"}
    users = {
        name: SimpleNamespace(pw_name=name, pw_uid=os.geteuid() + number, pw_dir=str(home))
        for number, (name, home) in enumerate(homes.items())
    }
    for name in ("linger", "run"):
        (tmp_path / name).mkdir()
    for name in ("alice", "nobody-any-more"):
        (tmp_path / "linger" / name).touch()
    for name in (str(os.geteuid()), "4294967294", "x"):
        (tmp_path / "run" / name).touch()
    monkeypatch.setattr(_otherscope, "LINGER", str(tmp_path / "linger"))
    monkeypatch.setattr(_otherscope, "MANAGERS", str(tmp_path / "run"))
    monkeypatch.setattr(_otherscope, "SYSTEM", str(tmp_path / "etc"))
    monkeypatch.setattr(_otherscope.pwd, "getpwnam", users.__getitem__)
    monkeypatch.setattr(_otherscope.pwd, "getpwuid", {one.pw_uid: one for one in users.values()}.__getitem__)
    return homes["alice"]


def way(name, source, target, scope="user", host="localhost"):
    elements = [{"path": source, "partner_path": target}]
    settings = {"delete": "synced"}
    return job(name=name, scope=scope, partner={"host": host}, elements=elements, settings=settings)


def put(config, made, **more):
    document = config / "jobs" / (made["name"] + ".json")
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(_job.document_text(dict(made, **more)))
    return document


def found(tmp_path, declared):
    """What a task of root's finds, whose own directories are empty."""
    place = _store.layout(declared["scope"], "", {"HOME": str(tmp_path)})._replace(config=str(tmp_path / "none"))
    return findings_of(place, [], {"own": ("", declared)}, ["own"], "f" * 32)


CIRCLE = (
    "elements[0]: a circle: %(here)s:/srv/y -> %(here)s:/srv/x -> %(here)s:/srv/y, by jobs %(others)s, own. Edits and "
    "deletions go round: which version stands, and whether a deleted file is gone or comes back, depends on which job "
    "runs first. Make one element with direction both of the two; where this is meant, give the reason in "
    "accept_circular."
)


def test_a_circle_with_a_users_job_is_a_warning_of_roots(tmp_path, alice):
    own = way("own", "/srv/x", "/srv/y", scope="system")
    assert found(tmp_path, own) == ([], [])
    put(alice / ".config" / "serversync", way("back", "/srv/y", "/srv/x"))
    expected = CIRCLE % {"here": os.uname().nodename, "others": "back of user alice"}
    assert found(tmp_path, own) == ([], [expected])


def test_a_users_pairing_hides_no_circle(tmp_path, alice):
    config = alice / ".config" / "serversync"
    put(config, way("back", "/srv/y", "/srv/x", host="myself"))
    own = way("own", "/srv/x", "/srv/y", scope="system")
    assert found(tmp_path, own) == ([], [])
    (config / "pairings").mkdir()
    for number, what in enumerate(
        ({"name": "myself", "host": "localhost"}, {"name": [], "host": "x"}, {"host": 1}, [])
    ):
        (config / "pairings" / ("%d.json" % number)).write_text(json.dumps(what))
    assert len(found(tmp_path, own)[1]) == 1


def test_a_circle_with_a_job_of_the_system_is_an_error_where_it_can_be_read(tmp_path, alice, monkeypatch):
    own = way("own", "/srv/x", "/srv/y")
    put(tmp_path / "etc" / "serversync", way("back", "/srv/y", "/srv/x", scope="system"))
    system = [one._replace(owner=os.geteuid()) for one in _otherscope.other_scopes("user")]
    monkeypatch.setattr(_otherscope, "other_scopes", lambda scope: system)
    problems, warnings = found(tmp_path, own)
    expected = CIRCLE % {"here": os.uname().nodename, "others": "back of scope system"}
    assert ([str(one) for one in problems], warnings) == ([expected], [])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
        lambda path: (path.rename(path.with_name("true")), path.symlink_to("true")),
        lambda path: (path.parent.rename(path.parent.with_name("real")), path.parent.symlink_to("real")),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.write_bytes(b"\xff"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text(path.read_text() + " " * (1 << 20)),
        lambda path: put(path.parent.parent, way("back", "/srv/y", "/srv/x", scope="system")),
        lambda path: put(path.parent.parent, way("back", "/srv/y", "/srv/x"), machine_id="0" * 32),
    ],
    ids=["link", "own link", "linked directory", "pipe", "directory", "no text", "deep", "large", "scope", "foreign"],
)
def test_what_a_user_has_in_the_place_of_a_job_is_none(tmp_path, alice, spoil):
    document = put(alice / ".config" / "serversync", way("back", "/srv/y", "/srv/x"))
    own = way("own", "/srv/x", "/srv/y", scope="system")
    assert len(found(tmp_path, own)[1]) == 1
    spoil(document)
    assert found(tmp_path, own) == ([], [])


def test_the_paths_of_users_are_not_touched(tmp_path, alice, monkeypatch):
    """They may lead to what hangs, or mounts something."""
    put(alice / ".config" / "serversync", way("back", "/srv/y", "/net/far/away"))
    asked = []
    monkeypatch.setattr(os.path, "realpath", lambda path: asked.append(path) or path)
    found(tmp_path, way("own", "/srv/x", "/srv/y", scope="system"))
    assert asked == ["/srv/x"]
