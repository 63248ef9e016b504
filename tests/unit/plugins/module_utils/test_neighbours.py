# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where paths of this server really are: a table of mounts as the kernel writes it, and links."""

from __future__ import annotations

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _job
from ansible_collections.serversync.core.plugins.module_utils._neighbours import moves, places_of, read_mounts

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
