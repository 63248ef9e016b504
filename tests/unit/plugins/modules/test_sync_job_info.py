# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""sync_job_info on a server of tests/declaring.py: it reads what was declared, and only reads."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _job, _states
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from serversync import display

from tests.declaring import Server
from tests.unit.plugins.module_utils.test_job import declarations


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path)


def jobs(server):
    path = str(server.here)
    return [
        {"name": "a", "partner": {"host": "hq"}, "elements": [{"path": path}], "schedule": {"at": "02:30"}},
        {
            "name": "b",
            "partner": {"host": "hq", "connection": "local"},
            "elements": [{"path": path + "/1", "partner_path": "/srv/é"}, {"path": path + "/2", "partner_path": "/x"}],
            "settings": {"preserve": ["times"], "exclude": ["*.tmp", "!a"], "max_change": 7},
            "on_error": {"retries": 0},
        },
        {
            "name": "c",
            "partner": {"host": "fe80::1%eth0", "port": 2222, "connection": "sftp"},
            "account": {"user": "nas", "private_key_file": "/keys/id"},
            "elements": [{"path": "/srv/c"}],
            "schedule": {"calendar": "Mon..Fri *-*-* 02:30 Europe/Berlin"},
            "enabled": False,
        },
    ]


def element(path, state="equal", **standing):
    return {"path": path, "state_after": state, "standing": standing}


def record(run, state, *elements):
    return {"run": run, "state": state, "started": "2026-11-26T01:30:07.120+00:00", "elements": list(elements)}


def publish(server, name, *runs):
    path = server.published.with_name(name + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"job": name, "runs": list(runs)}))


def info(server, **parameters):
    """What both modes return, which is the same and leaves the server as it is."""
    server.turn("sync_job_info")
    before = server.snapshot()
    result = server.check(**parameters)
    assert result == server.apply(**parameters)
    assert not result["changed"]
    assert server.snapshot() == before
    return result


def test_what_it_returns_changes_nothing_when_it_is_given_back(server):
    server.turn("sync_jobs").apply(jobs=jobs(server))
    found = info(server)
    assert [job["name"] for job in found["jobs"]] == ["a", "b", "c"]
    server.turn("sync_jobs")
    for omitted in ("reset", "keep"):
        for run in (server.check, server.apply):
            result = run(jobs=found["jobs"], purge=True, omitted=omitted)
            assert (result.get("msg"), result["changed"]) == (None, False)
    server.turn("sync_job")
    for job in found["jobs"]:
        for omitted in ("reset", "keep"):
            result = server.apply(**job, omitted=omitted)
            assert (result.get("msg"), result["changed"]) == (None, False)


# an example takes a second, so what fails is not made smaller
@settings(max_examples=8, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.lists(declarations(), min_size=4, max_size=12, unique_by=lambda one: one["name"]))
def test_what_it_returns_of_any_jobs_changes_nothing_when_it_is_given_back(declared):
    """Through modules and documents, with their secrets."""
    own = [dict(one, scope="user", accept_circular="targets are drawn by lot") for one in declared]
    given = [one for one in own if not _job.declare(one)[1]]
    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory)).turn("sync_jobs", purge=True)
        assert server.apply(jobs=given).get("msg") is None
        returned = server.turn("sync_job_info").apply()["jobs"]
        assert [one["name"] for one in returned] == sorted(one["name"] for one in given)
        server.turn("sync_jobs", purge=True)
        for jobs in (given, returned):
            result = server.check(jobs=jobs)
            assert (result["changed"], result["diff"]) == (False, [])
        for one in returned[:2]:
            assert not server.turn("sync_job").check(**one, omitted="reset")["changed"]


def test_what_it_returns_makes_the_same_jobs_on_another_server(server, tmp_path):
    server.turn("sync_jobs").apply(jobs=jobs(server))
    found = info(server)
    other = Server(tmp_path / "other").turn("sync_jobs")
    other.apply(jobs=found["jobs"])
    for job in found["jobs"]:
        name = job["name"] + ".json"
        assert other.document.with_name(name).read_bytes() == server.document.with_name(name).read_bytes()


def test_before_the_first_job(server):
    assert info(server)["jobs"] == []
    assert info(server, names="a")["status"] == []
    assert (
        server.calls() == [["systemctl", "--user", "list-timers", "--all", "--output=json", "serversync@*.timer"]] * 2
    )


def test_named_jobs(server):
    server.turn("sync_jobs").apply(jobs=jobs(server))
    found = info(server, names=["c", "a", "none"])
    assert [job["name"] for job in found["jobs"]] == ["a", "c"] == [one["name"] for one in found["status"]]
    assert info(server, names=[])["jobs"] == []


def test_one_call_asks_for_all_timers(server):
    server.turn("sync_jobs").apply(jobs=jobs(server))
    server.turn("sync_job_info")
    calls = len(server.calls())
    found = server.apply()
    assert [call[2] for call in server.calls(calls)] == ["list-timers"]
    assert [one["next_run"] for one in found["status"]] == ["2026-09-21T14:13:20+00:00", None, None]


def test_without_systemd_there_is_no_next_run(tmp_path):
    server = Server(tmp_path, systemd=False)
    server.turn("sync_jobs").apply(jobs=jobs(server)[1:2])
    assert info(server)["status"][0]["next_run"] is None
    assert server.calls() == []


def test_how_the_runs_went(server):
    server.turn("sync_jobs").apply(jobs=jobs(server))
    path = str(server.here)
    last = record("r2", "different", element(path, "different", unresolved=2, kept=1))
    publish(server, "a", last, record("r1", "equal", element(path)))
    publish(server, "b", record("r1", "equal", element(path + "/1", unresolved=1)))
    a, b, c = info(server)["status"]
    assert a == {
        "name": "a",
        "state": "different",
        "problem": None,
        "conflicts": 2,
        "last_run": last,
        "next_run": "2026-09-21T14:13:20+00:00",
    }
    assert (b["state"], b["conflicts"], b["last_run"]["run"]) == (None, 1, "r1")
    assert (c["state"], c["conflicts"], c["last_run"]) == (None, None, None)


def test_what_was_declared_on_another_server_is_told_and_not_returned(server):
    ids = "0123456789abcdef" * 2, "f" * 32
    server.become(ids[0])
    server.turn("sync_jobs").apply(jobs=jobs(server))
    found = info(server)
    assert [set(job) & {"version", "machine_id"} for job in found["jobs"]] == [set()] * 3
    server.become(ids[1])
    bound = server.turn("sync_jobs").apply(jobs=jobs(server)[1:])
    assert bound["changes"]["edited"] == ["b", "c"]
    text = "%s (and 1 more): was declared on another server and is this one's from now on; see that not both run it"
    assert text % server.document.with_name("b.json") in bound["warnings"]
    publish(server, "a", record("r1", "equal", element(str(server.here))))
    found = info(server)
    assert [job["name"] for job in found["jobs"]] == ["b", "c"]
    a = found["status"][0]
    assert (a["state"], a["problem"]) == (
        "invalid",
        "%s was declared on another server; declare the job on this one, too, or remove it with state: absent"
        % server.document.with_name("a.json"),
    )
    assert (a["conflicts"], a["last_run"]["run"]) == (None, "r1")
    # given back as the whole truth it removes what is not of this server
    result = server.turn("sync_jobs").apply(jobs=found["jobs"], purge=True)
    assert result["changes"] == {"created": [], "edited": [], "removed": ["a"]}


def test_what_is_damaged_is_told_beside_the_others(server):
    server.turn("sync_jobs").apply(jobs=jobs(server))
    document = server.document.with_name("a.json")
    document.write_text("{")
    publish(server, "b")
    server.published.with_name("b.json").write_text("{")
    found = info(server)
    assert [job["name"] for job in found["jobs"]] == ["b", "c"]
    assert [one["state"] for one in found["status"]] == ["invalid", "invalid", None]
    assert found["status"][0]["problem"].startswith("%s is damaged (is not JSON: " % document)
    assert found["status"][1]["problem"] == (
        "%s: is damaged; the next run of the job writes it anew" % server.published.with_name("b.json")
    )
    document.write_bytes(b"\xff")
    assert info(server)["status"][0]["problem"] == "%s is damaged (is not UTF-8)" % document


def test_a_name_that_is_no_utf8_is_told(server):
    server.turn("sync_jobs").apply(jobs=jobs(server))
    one = element(str(server.here))
    publish(server, "a", record("r1", "equal", dict(one, paths=[{"path": "a\udcff"}])))
    assert info(server, names="a")["status"][0]["last_run"]["elements"][0]["paths"] == [{"path": "a\\udcff"}]


@pytest.mark.parametrize(
    ("parameters", "message", "code", "path"),
    [
        ({"names": ["a/b"]}, None, "invalid_value", "names[0]"),
        ({"scope": "all"}, "scope: 'all' is not one of system, user", "not_a_choice", "scope"),
        ({"name": "a"}, "name: is not an option; did you mean names?", "unknown_option", "name"),
        ({"host": "hq"}, "host: is not an option; use one of names, scope", "unknown_option", "host"),
    ],
)
def test_bad_input(server, parameters, message, code, path):
    result = info(server, **parameters)
    assert message in (None, result["msg"])
    assert (result["failure"]["code"], result["failure"]["path"]) == (code, path)
    assert (result["jobs"], result["status"]) == ([], [])


def test_systemd_that_does_not_answer(server):
    server.turn("sync_jobs").apply(jobs=jobs(server))
    (server.root / "broken-list-timers").touch()
    result = info(server)
    assert result["failure"]["code"] == "command_failed"
    assert result["msg"].endswith(": Connection timed out; repair that and run the task again")


STATES = st.sampled_from(["equal", "equal_with_warnings", "skipped", "different", "failed"])
PATHS = st.sampled_from(["/a", "/b", "/c"])
ENTRIES = st.builds(lambda path, state, count: element(path, state, unresolved=count), PATHS, STATES, st.integers(0, 3))
RUNS = st.builds(
    lambda state, elements: {"state": state, "elements": elements},
    STATES | st.sampled_from(["running", "waiting"]),
    st.lists(ENTRIES, max_size=3, unique_by=lambda one: one["path"]),
)


@given(RUNS)
def test_the_conflicts_of_a_whole_run_are_those_that_the_runner_has_standing(run):
    run["state"] = "different"
    run["elements"] = [one for one in run["elements"] if one["state_after"] != "skipped"]
    for one in run["elements"]:
        one["conflicts"] = 0
    paths = [one["path"] for one in run["elements"]]
    assert _states.unresolved([run], paths) == display.conflicts(run)
