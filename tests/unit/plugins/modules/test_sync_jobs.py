# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""sync_jobs on a server of tests/declaring.py. Every transition takes four steps: check, run, run, check."""

from __future__ import annotations

import json

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _job

from tests.declaring import Server, assert_on_disk

NIGHTLY = {"at": "02:30", "timezone": "UTC"}


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path).turn("sync_jobs")


def job(server, name, **more):
    (server.here / name).mkdir(exist_ok=True)
    return {"name": name, "partner": {"host": "hq"}, "elements": [{"path": str(server.here / name)}], **more}


def document(server, name):
    return server.document.with_name(name + ".json")


def four_steps(server, **parameters):
    """check -> run -> run -> check; the result of the run."""
    before, calls = server.snapshot(), len(server.calls())
    check = server.check(**parameters)
    assert check.get("msg") is None
    assert check["changed"]
    assert server.snapshot() == before, "check mode has written"
    assert server.mutating(calls) == []

    calls = len(server.calls())
    run = server.apply(**parameters)
    assert run["changed"]
    for name in ("diff", "jobs", "changes", "commands"):
        assert run[name] == check[name], name
    assert run["diff"]
    assert server.mutating(calls) == run["commands"]
    assert len([command for command in run["commands"] if command[-1] == "daemon-reload"]) <= 1
    assert_on_disk(run["diff"])

    after = server.snapshot()
    for again in (server.apply, server.check):
        calls = len(server.calls())
        result = again(**parameters)
        assert (result["changed"], result["diff"], result["commands"]) == (False, [], [])
        assert result["changes"] == {"created": [], "edited": [], "removed": []}
        assert result["jobs"] == run["jobs"]
        assert server.snapshot() == after, "an unchanged declaration has written"
        assert [call[2] for call in server.calls(calls)] == (["list-units"] if parameters["jobs"] else [])
    return run


def three(server):
    """One with a timer, one without, one in user-defined detail."""
    return [
        job(server, "a", schedule=NIGHTLY),
        job(server, "b"),
        job(server, "c", schedule={"every": "15m"}, settings={"exclude": ["*.tmp"]}, comment="100% \\"),
    ]


def test_create(server):
    server.become("0123456789abcdef" * 2)
    run = four_steps(server, jobs=three(server))
    assert run["changes"] == {"created": ["a", "b", "c"], "edited": [], "removed": []}
    assert run["jobs"] == [_job.declare(dict(one, scope="user"))[0] for one in three(server)]
    for one in run["jobs"]:
        assert json.loads(document(server, one["name"]).read_text()) == dict(one, machine_id="0123456789abcdef" * 2)
        assert document(server, one["name"]).stat().st_mode & 0o7777 == 0o600
    assert server.memory()["active"] == dict.fromkeys(["serversync@a.timer", "serversync@c.timer"], "active")
    assert run["commands"] == [
        ["systemctl", "--user", "enable", "--no-reload", "serversync@a.timer", "serversync@c.timer"],
        ["systemctl", "--user", "daemon-reload"],
        ["systemctl", "--user", "start", "serversync@a.timer", "serversync@c.timer"],
    ]
    headers = [entry["after_header"] for entry in run["diff"]]
    assert headers[0] == str(document(server, "a"))
    assert len([header for header in headers if " (" not in header]) == 3 + 2 + 3


def test_the_same_as_by_a_loop_of_sync_job(server, tmp_path):
    four_steps(server, jobs=three(server))
    files, active = server.state()
    other = Server(tmp_path / "other")
    for one in three(server):
        other.turn("sync_job").apply(**one)
    others, also = other.state()
    texts = {name: text for name, (_mode, text) in files.items() if isinstance(text, bytes)}
    assert texts == {name: others[name][1] for name in texts}
    assert active == also
    other.turn("sync_jobs")
    assert not other.apply(jobs=three(server), purge=True)["changed"]


def test_the_list_is_the_truth(server):
    server.apply(jobs=three(server))
    jobs = three(server)
    del jobs[2]["settings"], jobs[2]["comment"]
    run = four_steps(server, jobs=jobs)
    assert run["changes"] == {"created": [], "edited": ["c"], "removed": []}
    assert run["jobs"][2]["settings"]["exclude"] == []


def test_omitted_keep_leaves_the_rest(server):
    server.apply(jobs=three(server))
    run = four_steps(server, jobs=[{"name": "c", "on_error": {"retries": 1}}], omitted="keep")
    assert (run["jobs"][0]["settings"]["exclude"], run["jobs"][0]["on_error"]["retries"]) == (["*.tmp"], 1)


def test_null_is_as_omitted(server):
    server.apply(jobs=three(server))
    assert not server.apply(jobs=three(server), omitted=None, purge=None)["changed"]


@pytest.mark.parametrize(
    ("more", "reloads"),
    [
        ({"comment": "Another"}, 1),
        ({"schedule": {"at": "03:00", "timezone": "UTC"}}, 1),
        ({"on_error": {"retries": 0}}, 0),
        ({"enabled": False}, 1),
        ({"schedule": None}, 1),
    ],
)
def test_edit_several_by_one_reload(server, more, reloads):
    jobs = [job(server, name, schedule=NIGHTLY) for name in ("a", "b", "c")]
    server.apply(jobs=jobs)
    edited = [dict(one, **more) for one in jobs[:2]] + jobs[2:]
    run = four_steps(server, jobs=edited)
    assert run["changes"]["edited"] == ["a", "b"]
    assert len([command for command in run["commands"] if command[-1] == "daemon-reload"]) == reloads
    assert server.memory()["active"]["serversync@c.timer"] == "active"


def test_another_order_of_the_list_changes_nothing(server):
    server.apply(jobs=three(server))
    result = server.apply(jobs=three(server)[::-1])
    assert not result["changed"]
    assert [one["name"] for one in result["jobs"]] == ["c", "b", "a"]


def test_what_is_not_listed_stays_without_purge(server):
    server.apply(jobs=three(server))
    assert not server.apply(jobs=three(server)[:1])["changed"]
    assert document(server, "c").exists()


def test_purge(server):
    server.apply(jobs=three(server))
    document(server, "c").write_text("{damaged")
    run = four_steps(server, jobs=three(server)[:1], purge=True)
    assert run["changes"] == {"created": [], "edited": [], "removed": ["b", "c"]}
    assert [one["name"] for one in run["jobs"]] == ["a"]
    assert sorted(path.name for path in server.document.parent.glob("*.json")) == ["a.json"]
    assert server.memory()["active"] == {"serversync@a.timer": "active"}


def test_purge_of_all(server):
    server.apply(jobs=three(server))
    run = four_steps(server, jobs=[], purge=True)
    assert run["changes"]["removed"] == ["a", "b", "c"]
    assert [path.name for path in server.units.rglob("serversync@*")] == []


def test_renaming_is_no_purging(server):
    server.apply(jobs=three(server))
    jobs = [dict(one, name=one["name"] * 2, previous_name=one["name"]) for one in three(server)]
    run = four_steps(server, jobs=jobs, purge=True)
    assert run["changes"] == {"created": [], "edited": ["aa", "bb", "cc"], "removed": []}
    assert sorted(path.name for path in server.document.parent.iterdir()) == ["aa.json", "bb.json", "cc.json"]
    assert server.memory()["active"] == dict.fromkeys(["serversync@aa.timer", "serversync@cc.timer"], "active")


def test_copies_are_of_jobs_in_the_list(server):
    server.apply(jobs=[job(server, "a", comment="old")])
    jobs = [job(server, "b", copy_from="a"), job(server, "a", comment="new", schedule=NIGHTLY)]
    run = four_steps(server, jobs=jobs, purge=True)
    assert [one["comment"] for one in run["jobs"]] == ["new", "new"]
    # one that is not in the list is that on the server, which purging would remove
    message = "jobs[0].copy_from: 'a' is removed by the same task; name a job that stays"
    refused(server, message, "unknown_job", "jobs[0].copy_from", jobs=jobs[:1], purge=True)
    assert not server.check(jobs=jobs[:1])["changed"]


def test_rename_by_purge(server):
    server.apply(jobs=[job(server, "a", schedule=NIGHTLY)])
    run = four_steps(server, jobs=[dict(job(server, "a", schedule=NIGHTLY), name="z")], purge=True)
    assert run["changes"] == {"created": ["z"], "edited": [], "removed": ["a"]}


def test_purge_takes_secrets_that_are_no_jobs(server):
    """As a task that was killed before there was a job to them leaves them."""
    server.apply(jobs=three(server))
    lost = document(server, "lost").parent.parent / "credentials" / "lost"
    lost.mkdir(parents=True)
    (lost / "account.password").write_text("plant-ed")
    run = four_steps(server, jobs=three(server), purge=True)
    assert run["changes"]["removed"] == ["lost"]
    assert not lost.exists()


def test_an_entry_may_be_absent(server):
    server.apply(jobs=three(server))
    run = four_steps(server, jobs=[*three(server)[:2], {"name": "c", "state": "absent"}])
    assert run["changes"]["removed"] == ["c"]
    assert not document(server, "c").exists()


def test_drift_is_repaired(server):
    server.apply(jobs=three(server))
    good = server.state()
    document(server, "a").write_text("{}")
    (server.units / "serversync@c.timer").unlink()
    server.tell(timer="inactive")
    (server.units / "timers.target.wants" / "serversync@a.timer").unlink()
    four_steps(server, jobs=three(server))
    files, active = server.state()
    active.pop("serversync@demo.timer", None)
    assert (files, active) == (good[0], good[1])


def test_neighbours_are_left_alone(server):
    server.turn("sync_job").apply(name="other", **{k: v for k, v in job(server, "other").items() if k != "name"})
    before = server.snapshot()
    server.turn("sync_jobs").apply(jobs=three(server))
    after = server.snapshot()
    for name, (_mode, _ino, _time, content) in before.items():
        if content:
            assert after[name] == before[name]


def test_a_failing_command_is_told_and_the_next_apply_finishes(server):
    (server.root / "broken-start").touch()
    result = server.apply(jobs=three(server))
    assert result["msg"] == (
        "systemctl --user start serversync@a.timer serversync@c.timer: failed with exit code 1: "
        "Failed to start unit: Connection timed out; repair that and apply the job again"
    )
    assert (result["changed"], result["failure"]["code"]) == (True, "command_failed")
    assert [command[2] for command in result["commands"]] == ["enable", "daemon-reload"]
    (server.root / "broken-start").unlink()
    run = four_steps(server, jobs=three(server))
    assert run["commands"] == [["systemctl", "--user", "start", "serversync@a.timer", "serversync@c.timer"]]


# --- refusals: the same in both modes, and nothing written -----------------------------------------------------


def refused(server, message, code, path, **parameters):
    before, calls = server.snapshot(), len(server.calls())
    for run in (server.check, server.apply):
        result = run(**parameters)
        assert result["msg"] == message
        assert result["failed"]
        assert (result["changed"], result["jobs"], result["diff"], result["commands"]) == (False, [], [], [])
        assert (result["failure"]["code"], result["failure"]["path"]) == (code, path)
    assert server.snapshot() == before
    assert server.mutating(calls) == []
    return result


ELEMENTS = [{"path": "/srv/a"}]
OTHERS = [{"path": "/srv/b"}]
GOOD = {"name": "good", "partner": {"host": "hq"}, "elements": ELEMENTS}


@pytest.mark.parametrize(
    ("parameters", "message", "code", "path"),
    [
        ({}, "jobs: is missing; list the jobs, or write [] for none", "missing", "jobs"),
        ({"jobs": None}, "jobs: is missing; list the jobs, or write [] for none", "missing", "jobs"),
        (
            {"jobs": {"a": 1}},
            "jobs: is a dictionary, not a list; begin each entry with a dash",
            "wrong_type",
            "jobs",
        ),
        ({"jobs": [GOOD, None]}, "jobs[1]: is empty; write a value or remove the entry", "wrong_type", "jobs[1]"),
        ({"jobs": [GOOD, {}]}, "jobs[1].name: is missing; give the job a name", "missing", "jobs[1].name"),
        (
            {"jobs": [GOOD, dict(GOOD, name="x", elements=[{"path": "srv"}])]},
            "jobs[1].elements[0].path: 'srv' is not absolute; write the whole path from /",
            "invalid_value",
            "jobs[1].elements[0].path",
        ),
        (
            {"jobs": [GOOD, dict(GOOD, name="x", host="hq")]},
            "jobs[1].host: is not an option; did you mean partner.host?",
            "unknown_option",
            "jobs[1].host",
        ),
        (
            {"jobs": [GOOD], "name": "a"},
            "name: is not an option; did you mean jobs[].name?",
            "unknown_option",
            "name",
        ),
        (
            {"jobs": [GOOD], "host": "hq"},
            "host: is not an option; use one of jobs, scope, omitted, validate_partner, stop_timeout, purge",
            "unknown_option",
            "host",
        ),
        (
            {"jobs": [GOOD, dict(GOOD, omitted="keep")]},
            "jobs[1].omitted: is not an option; write it outside of jobs[1]",
            "unknown_option",
            "jobs[1].omitted",
        ),
        (
            {"jobs": [dict(GOOD, stop_timeout="1m")]},
            "jobs[0].stop_timeout: is not an option; write it outside of jobs[0]",
            "unknown_option",
            "jobs[0].stop_timeout",
        ),
        (
            {"jobs": [GOOD, dict(GOOD, name="x"), GOOD]},
            "jobs[2].name: 'good' is the name of jobs[0], too; give every job a name of its own",
            "duplicate",
            "jobs[2].name",
        ),
        (
            {"jobs": [GOOD, dict(GOOD, name="x", scope="system")]},
            "jobs[1].scope: 'system' is not the scope of this task, 'user'; set scope: system beside jobs, "
            "and give each scope a task of its own",
            "conflict",
            "jobs[1].scope",
        ),
        (
            {"jobs": [GOOD, {"name": "x", "elements": ELEMENTS}]},
            "jobs[1].partner.host: is missing; name the partner server",
            "missing",
            "jobs[1].partner.host",
        ),
        (
            {"jobs": [GOOD, dict(GOOD, name="x", schedule={"at": "02:30", "timezone": "Europe/Berln"})]},
            "jobs[1].schedule.timezone: 'Europe/Berln' is not a time zone of this server; did you mean Europe/Berlin?",
            "invalid_value",
            "jobs[1].schedule.timezone",
        ),
        (
            {"jobs": [GOOD, dict(GOOD, name="x", elements=OTHERS, schedule={"calendar": "nonsense"})]},
            "jobs[1].schedule.calendar: 'nonsense' is refused by systemd (Failed to parse calendar specification "
            '\'nonsense\': Invalid argument); see "man systemd.time", e.g. "Mon..Fri *-*-* 02:30"',
            "invalid_value",
            "jobs[1].schedule.calendar",
        ),
        (
            {"jobs": [GOOD, dict(GOOD, name="x")]},
            "jobs[0].elements[0]: one target of several elements: hq:/srv/a, by jobs good, x. A target belongs to one "
            "element: the first that runs takes it, and every run of the others fails. Give each a target of its own, "
            "such as a subdirectory for each source; where this is meant, give the reason in accept_circular.",
            "contended",
            "jobs[0].elements[0]",
        ),
        ({"jobs": [], "purge": "maybe"}, "purge: 'maybe' is not a boolean; use true or false", "wrong_type", "purge"),
        (
            {"jobs": [], "omitted": "leave"},
            "omitted: 'leave' is not one of keep, reset",
            "not_a_choice",
            "omitted",
        ),
    ],
)
def test_bad_input(server, parameters, message, code, path):
    refused(server, message, code, path, **parameters)


def test_all_problems_of_all_jobs_are_in_the_details(server):
    jobs = [dict(GOOD, on_error={"retries": -1}), dict(GOOD, name="x", enabled="maybe"), {"name": "y"}]
    result = server.check(jobs=jobs)
    assert [one["path"] for one in result["failure"]["details"]] == ["jobs[0].on_error.retries", "jobs[1].enabled"]
    result = server.check(jobs=[{"name": "y"}, {"name": "z"}])
    assert [one["path"] for one in result["failure"]["details"]] == [
        "jobs[0].partner.host",
        "jobs[0].elements",
        "jobs[1].partner.host",
        "jobs[1].elements",
    ]


def test_one_bad_job_leaves_all_as_they_are(server):
    server.apply(jobs=three(server))
    jobs = three(server)
    jobs[0]["comment"] = "new"
    jobs[2]["on_error"] = {"retries": 101}
    message = "jobs[2].on_error.retries: 101 is out of range; use 0 to 100"
    refused(server, message, "out_of_range", "jobs[2].on_error.retries", jobs=jobs)


def test_a_damaged_document_is_replaced_but_not_kept(server):
    server.apply(jobs=three(server))
    document(server, "a").write_text("{damaged")
    result = server.apply(jobs=[{"name": "a"}], omitted="keep")
    assert result["failure"] == {"code": "damaged_document", "path": str(document(server, "a")), "details": []}
    four_steps(server, jobs=three(server))


def test_what_many_jobs_miss_is_said_once(server):
    jobs = [job(server, name) for name in ("a", "b", "c")]
    jobs[1]["elements"] = [{"path": str(server.home / "none")}]
    assert sorted(server.check(jobs=jobs)["warnings"]) == [
        "jobs[0].partner.host (and 2 more): this server is not paired with hq and partner.host_key is empty; "
        "until the role pairs them, runs fail",
        "jobs[1].elements[0].path: %s does not exist on this server" % (server.home / "none"),
    ]


def test_before_the_runner_is_deployed(server):
    (server.config / "serversync" / "runner.json").unlink()
    assert server.check(jobs=three(server))["changed"]
    result = server.apply(jobs=three(server))
    assert result["failure"]["code"] == "runner_missing"
    assert not server.apply(jobs=[], purge=True)["changed"]


def test_without_systemd(tmp_path):
    server = Server(tmp_path, systemd=False).turn("sync_jobs")
    result = server.check(jobs=[job(server, "a"), job(server, "b", schedule=NIGHTLY)])
    assert (result["failure"]["code"], result["failure"]["path"]) == ("no_systemd", "jobs[1].schedule")
    jobs = [job(server, "a"), job(server, "b")]
    assert server.apply(jobs=jobs)["changes"]["created"] == ["a", "b"]
    assert not server.apply(jobs=jobs, purge=True)["changed"]
    assert server.calls() == []


def test_no_error_tells_a_secret(server):
    one = {"name": "a", "account": {"password": "plant-ed"}}
    for parameters in (
        {"jobs": json.dumps([one])},
        {"jobs": one},
        {"jobs": [json.dumps(one)]},
        {"jobs": [], "account": one["account"]},
        {"jobs": [], "acount": {"passwd": "plant-ed"}},
    ):
        for run in (server.check, server.apply):
            result = run(**parameters)
            assert result["failed"], parameters
            assert "plant-ed" not in json.dumps(result), parameters


def test_a_private_key_appears_nowhere(server):
    partner = {"host": "hq", "host_key": ["-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n"]}
    result = server.apply(jobs=[dict(GOOD, partner=partner)])
    assert result["failure"]["code"] == "private_key"
    (told,) = result["invocation"]["module_args"]["jobs"]
    # Ansible adds what is omitted, as null
    assert {key: value for key, value in told.items() if value is not None} == {"name": "good"}
    assert "c2VjcmV0" not in json.dumps(result)
