# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wherever a job comes from, its files are byte for byte those of one that was declared so at once."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _job
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.declaring import Server
from tests.unit.plugins.module_utils.test_job import KEY, OTHER_KEY, declarations, options, said

SFTP = {"host": "nas", "connection": "sftp"}
SSH = {"host": "hq", "connection": "ssh"}
BOTH = [{"path": "/srv/a", "partner_path": "/srv/b"}]
OWN = [
    {"direction": "from_partner", "conflict": "keep_both", "delete": "synced", "max_delete": 7, "max_change": "5%"},
    {"include": ["/a/"], "exclude": ["*.tmp"], "preserve": ["times"], "owners": "numbers", "verify": "checksum"},
    {"verify_every": 3, "keep_versions": "1d", "versions_max": "1G", "bandwidth_limit": "1M", "compress": "never"},
]
#: What is declared of a job, and then again of it; each way of saying something is in one of both.
CHANGES = [
    ({"comment": "one"}, {"comment": "another"}),
    ({"enabled": True}, {"enabled": False}),
    ({"partner": SSH}, {"partner": {"host": "dr", "port": 2222, "host_key": [KEY]}}),
    ({"partner": {**SSH, "host_key": [KEY]}}, {"partner": {"host_key": [OTHER_KEY, KEY]}}),
    ({"account": {"user": "a"}}, {"account": {"private_key_file": "/etc/k"}}),
    ({"partner": SSH}, {"partner": SFTP, "account": {"password": "plant-ed"}}),
    ({"partner": SFTP, "account": {"password": "plant-ed"}}, {"account": {"password": "another"}}),
    ({"partner": SFTP, "account": {"password": "plant-ed"}}, {"account": {"password": None, "user": "a"}}),
    ({"partner": SSH, "elements": BOTH}, {"partner": {"connection": "local"}}),
    ({"schedule": None}, {"schedule": {"every": "1h"}}),
    ({"schedule": {"every": "1h"}}, {"schedule": {"at": ["02:30", "14:30"], "days": ["sat"], "jitter": "5m"}}),
    (
        {"schedule": {"at": "02:30", "days": ["sat"]}},
        {"schedule": {"at": "03:30", "day_of_month": [1, 15], "catch_up": False}},
    ),
    ({"schedule": {"at": "02:30"}}, {"schedule": {"calendar": "Mon 02:30", "timezone": "CET", "catch_up": 0}}),
    ({"on_error": {"retries": 0}}, {"on_error": {"retries": 9, "delay": "1m", "backoff": 1.5, "max_delay": "2h"}}),
    ({"notification": {"email": ["a@b.c"]}}, {"notification": {"email": [], "events": ["success"]}}),
    ({"notification": {"events": ["late"]}}, {"notification": {"events": ["late"], "late_after": "3d"}}),
    ({"notification": {"urls": ["json://plant-ed"]}}, {"notification": {"urls": ["json://a", "json://b"]}}),
    ({"notification": {"urls": ["json://plant-ed"]}}, {"notification": {"urls": None}}),
    *(({"settings": {}}, {"settings": own}) for own in OWN),
    *(({"elements": BOTH}, {"elements": [{**BOTH[0], "settings": own}]}) for own in OWN),
    ({"elements": BOTH}, {"elements": [*BOTH, {"path": "/srv/c", "kind": "log", "requires": ["/srv/a"]}]}),
    ({"elements": BOTH}, {"elements": [{"path": "/srv/c", "previous_path": "/srv/a"}]}),
    ({"before": [{"unit": "a.service"}]}, {"before": [], "after": [{"unit": "b.service"}]}),
    ({"limits": {"nice": 1}}, {"limits": {"parallel": 2, "timeout": "2h", "nice": 10}}),
    ({"accept_circular": "one"}, {"accept_circular": "another"}),
]


def test_no_option_is_forgotten():
    there = {path for change in CHANGES for one in change for path in said(_job.JOB, one)}
    assert set(options(_job.JOB)) - there == {"name", "scope"}


def merged(one, other):
    """A later task laid over an earlier one, as Ansible's combine(recursive=True) does; a schedule is whole."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return other
    return {
        **one,
        **{name: merged(one.get(name), value) if name != "schedule" else value for name, value in other.items()},
    }


def files(server):
    """What there is of jobs, byte for byte, and what systemd has of it; a directory that one has left is none."""
    there, active = server.state()
    files = {name: one for name, one in there.items() if one[1] is not None}
    return files, active, server.memory()["loaded"]


@pytest.mark.parametrize(("first", "then"), CHANGES, ids=[json.dumps(one[1])[:40] for one in CHANGES])
def test_what_is_changed_ends_where_what_is_declared_so_begins(tmp_path, first, then):
    server, saved = Server(tmp_path / "server"), tmp_path / "saved"
    shutil.copytree(server.root.parent, saved, symlinks=True)
    base = {"partner": {"host": "hq"}, "elements": [{"path": "/srv/a"}], "schedule": {"at": "03:00", "timezone": "UTC"}}
    whole = merged(base, first), merged(merged(base, first), then)
    expected = []
    for one in whole:
        server.restore(saved)
        assert server.apply(**one).get("msg") is None
        expected.append(files(server))
    assert expected[0] != expected[1]
    server.restore(saved)
    server.apply(**whole[0])
    for how, state in (
        (then, 1),
        (then, 1),
        ({**whole[0], "omitted": "reset"}, 0),
        ({**whole[1], "omitted": "reset"}, 1),
    ):
        before = files(server)
        result = server.apply(**how)
        assert result.get("msg") is None
        assert files(server) == expected[state]
        assert result["changed"] == (before != expected[state])


# an example takes seconds, so what fails is not made smaller
@settings(max_examples=5, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.data())
def test_any_jobs_become_any_others_as_if_they_had_been_declared_at_once(data):
    drawn = st.lists(declarations(), min_size=6, max_size=9)
    lists = []
    for _number in range(2):
        jobs = [dict(one, scope="user", accept_circular="drawn by lot") for one in data.draw(drawn)]
        jobs = [one for one in jobs if not _job.declare(one)[1]]
        lists.append([dict(one, name="job%d" % number) for number, one in enumerate(jobs)])
    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory) / "server").turn("sync_jobs", purge=True)
        saved = Path(directory) / "saved"
        shutil.copytree(server.root.parent, saved, symlinks=True)
        expected = []
        for jobs in lists:
            server.restore(saved)
            assert server.apply(jobs=jobs).get("msg") is None
            expected.append(files(server))
        # there are those of the second list
        for state in (0, 1):
            assert server.apply(jobs=lists[state]).get("msg") is None
            assert files(server) == expected[state]
