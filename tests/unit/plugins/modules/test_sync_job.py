# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""sync_job on a server of tests/declaring.py. Every transition takes four steps: check, run, run again, check again."""

from __future__ import annotations

import ast
import difflib
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.serversync.core.plugins.module_utils import _host_key, _job, _store
from jinja2.nativetypes import NativeEnvironment

from tests.declaring import PROGRAM, Server, assert_on_disk
from tests.unit.plugins.module_utils.test_job import BAD, base

OMIT = object()
ID, OTHER = "0123456789abcdef" * 2, "f" * 32


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path)


def job(server, **more):
    parameters = {
        "partner": {"host": "hq"},
        "elements": [{"path": str(server.here)}],
        "schedule": {"at": "02:30", "timezone": "UTC"},
    }
    parameters.update(more)
    return parameters


def written(server, name="demo"):
    return json.loads(server.document.with_name(name + ".json").read_text(encoding="utf-8"))


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
    for name in ("diff", "job", "commands"):
        assert run[name] == check[name], name
    assert run["diff"]
    assert server.mutating(calls) == run["commands"]
    assert_on_disk(run["diff"])

    after = server.snapshot()
    for again in (server.apply, server.check):
        calls = len(server.calls())
        result = again(**parameters)
        assert (result["changed"], result["diff"], result["commands"]) == (False, [], [])
        assert result["job"] == run["job"]
        assert server.snapshot() == after, "an unchanged declaration has written"
        units = bool(run["job"]) and bool(run["job"]["before"] + run["job"]["after"])
        assert [call[2] for call in server.calls(calls)] == ["show"] * (1 + units)
    return run


def test_create(server):
    server.become(ID)
    run = four_steps(server, **job(server, comment="Nightly"))
    expected = {
        "version": 1,
        "name": "demo",
        "comment": "Nightly",
        "enabled": True,
        "scope": "user",
        "partner": {"host": "hq", "port": 22, "connection": "ssh", "host_key": []},
        "account": {"user": "serversync", "private_key_file": None, "password": None},
        "schedule": {
            "every": None,
            "at": ["02:30"],
            "days": [],
            "day_of_month": [],
            "calendar": None,
            "timezone": "UTC",
            "jitter": "15m",
            "catch_up": True,
        },
        "on_error": {"retries": 3, "delay": "5m", "backoff": 2.0, "max_delay": None},
        "notification": {"email": [], "urls": [], "events": ["conflict", "failure", "recovery"], "late_after": None},
        "settings": {
            "direction": "to_partner",
            "conflict": "newer_wins",
            "delete": "never",
            "max_delete": "25%",
            "max_change": None,
            "include": [],
            "exclude": [],
            "preserve": None,
            "owners": "names",
            "verify": "metadata",
            "verify_every": None,
            "keep_versions": "7d",
            "versions_max": "20%",
            "bandwidth_limit": None,
            "compress": "auto",
        },
        "elements": [
            {
                "path": str(server.here),
                "partner_path": str(server.here),
                "kind": "tree",
                "previous_path": None,
                "requires": [],
                "settings": None,
            }
        ],
        "before": [],
        "after": [],
        "limits": {"parallel": 1, "timeout": None, "nice": 0},
        "accept_circular": None,
    }
    assert run["job"] == expected
    document = dict(
        {"version": 1, "machine_id": ID}, **{name: expected[name] for name in expected if name != "version"}
    )
    assert server.document.read_text() == json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    assert server.document.stat().st_mode & 0o7777 == 0o600
    assert server.document.parent.stat().st_mode & 0o7777 == 0o700
    assert server.timer.stat().st_mode & 0o7777 == 0o644
    assert "OnCalendar=*-*-* 02:30:00 UTC\n" in server.timer.read_text()
    assert server.drop_in.read_text().endswith("Description=Synchronization job demo: Nightly\n")
    assert server.memory()["active"] == {"serversync@demo.timer": "active"}
    assert os.readlink(server.units / "timers.target.wants" / server.timer.name) == str(server.timer)
    assert run["commands"] == [
        ["systemctl", "--user", "daemon-reload"],
        ["systemctl", "--user", "enable", "serversync@demo.timer"],
        ["systemctl", "--user", "start", "serversync@demo.timer"],
    ]


EDITS = [
    {"comment": "Another"},
    {"partner": {"host": "hq2"}},
    {"partner": {"port": 2222}},
    {"account": {"user": "other", "private_key_file": "/keys/id"}},
    {"schedule": {"every": "15m"}},
    {"schedule": {"calendar": "Mon 02:30"}},
    {"schedule": {"days": ["mon", "fri"]}},
    {"schedule": {"day_of_month": [15, 1]}},
    {"schedule": {"jitter": "0s", "catch_up": False}},
    {"on_error": {"retries": 0}},
    {"notification": {"email": "ops@example.com", "events": ["failure", "success"]}},
    {"notification": {"events": "late", "late_after": "72h"}},
    {"settings": {"direction": "from_partner", "exclude": ["*.tmp"]}},
    {"settings": {"direction": "both", "conflict": "keep_both", "delete": "synced", "max_delete": 40}},
    {"settings": {"delete": "extraneous", "max_delete": "100%", "max_change": "50 %", "include": "*.txt,/a/"}},
    {"settings": {"preserve": ["links", "times"], "owners": "numbers", "verify": "checksum"}},
    {"settings": {"verify_every": 7, "keep_versions": "30d", "versions_max": "50G"}},
    {"settings": {"bandwidth_limit": "20M", "compress": "never"}},
    {"elements": [{"path": "HERE", "partner_path": "/srv/b", "previous_path": "/srv/before"}]},
    {"elements": [{"path": "HERE"}, {"path": "/srv/b", "requires": ["HERE"]}]},
    {"elements": [{"path": "HERE", "settings": {"direction": "from_partner", "exclude": ["*.bak"]}}]},
    {"before": [{"unit": "dump-db.service"}]},
    {"after": [{"unit": "thaw-db.service"}, {"unit": "a@b.service"}]},
    {"limits": {"parallel": 4}},
    {"limits": {"timeout": "2h"}},
    {"limits": {"nice": 10}},
    {"accept_circular": "it is meant"},
]


@pytest.mark.parametrize("edit", EDITS, ids=["-".join(edit) + str(number) for number, edit in enumerate(EDITS)])
def test_edit_one_detail_and_leave_the_rest(server, edit):
    edit = json.loads(json.dumps(edit).replace("HERE", str(server.here)))
    server.become(ID)
    created = server.apply(**job(server))["job"]
    run = four_steps(server, **edit)
    expected, problems = _job.declare(dict(edit, name="demo", scope="user"), created)
    assert problems == []
    assert run["job"] == expected != created
    assert written(server) == dict(expected, machine_id=ID)
    for name in created:
        assert name in edit or run["job"][name] == created[name]
    assert server.memory()["active"] == {"serversync@demo.timer": "active"}
    reloads = [command for command in run["commands"] if command[-1] == "daemon-reload"]
    reloaded = set(edit) & {"schedule", "comment", "after"} or set(edit.get("limits", {})) & {"timeout", "nice"}
    assert len(reloads) == (1 if reloaded else 0)


# Put before PROGRAM: what the module has imported of this collection is written into a file.
IMPORTED = """
import atexit, sys
def write():
    names = [name.rpartition(".")[2] for name in sys.modules if ".serversync.core.plugins.module_utils." in name]
    with open(%r, "w") as stream:
        stream.write(" ".join(sorted(names)))
atexit.register(write)
"""


def test_a_task_that_changes_nothing_loads_no_more_than_it_needs(server):
    """Each task compiles what it loads."""
    server.apply(**job(server, schedule={"every": "1h"}, notification={"email": "ops@example.com"}))
    imported = server.root / "imported"
    server.program = IMPORTED % str(imported) + server.program
    assert not server.apply(schedule={"every": "60m"})["changed"]
    needed = ["_apply", "_fromzip", "_job", "_module", "_schedule", "_settings", "_store", "_units"]
    assert imported.read_text().split() == needed


SFTP = {"host": "nas", "connection": "sftp"}


def secret_is_nowhere_else(server, text, *results, name="account.password"):
    """A planted secret is in one file alone, and in nothing that a task returns."""
    for result in results:
        assert text not in json.dumps(result)
    places = [path for path in server.home.parent.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
    assert places == [server.document.parent.parent / "credentials" / "demo" / name]


def test_a_password_comes_changes_and_goes(server):
    account = {"user": "nas", "password": "Tr0ub4dor&3"}
    new = four_steps(server, **job(server, partner=SFTP, account=account))
    secret_is_nowhere_else(server, "Tr0ub4dor&3", new, server.check(account=account))
    kept = server.document.parent.parent / "credentials" / "demo" / "account.password"
    assert kept.read_text() == "Tr0ub4dor&3"
    assert (kept.stat().st_mode & 0o7777, kept.parent.stat().st_mode & 0o7777) == (0o600, 0o700)
    assert new["job"]["account"] == {"user": "nas", "private_key_file": None, "password": _job.KEPT}

    # given back as it was returned, or left out
    for more in ({"account": new["job"]["account"]}, {"account": {"user": "nas"}}, {}):
        assert not server.apply(**more)["changed"]
    fields = {name: one for name, one in new["job"].items() if name != "version"}
    assert not server.apply(**fields, omitted="reset")["changed"]
    edited = server.apply(comment="c")
    secret_is_nowhere_else(server, "Tr0ub4dor&3", edited)

    other = four_steps(server, account={"password": "correct horse"})
    assert [one["after_header"] for one in other["diff"]] == [str(kept)]
    assert (other["diff"][0]["before"], other["diff"][0]["after"]) == ("(a secret)\n", "(another secret)\n")
    secret_is_nowhere_else(server, "correct horse", other)

    kept.chmod(0o644)
    assert four_steps(server, account={"password": "correct horse"})["diff"][0]["after_header"].startswith(str(kept))
    assert kept.stat().st_mode & 0o7777 == 0o600

    gone = four_steps(server, account={"private_key_file": "/keys/id"})
    assert "correct horse" not in json.dumps(gone)
    assert not kept.parent.exists()
    four_steps(server, account={"password": "once more"})
    four_steps(server, state="absent")
    assert not kept.parent.exists()


def test_urls_come_change_and_go(server):
    urls = ["json://plant-ed@ops.example.com/a,b", "mailtos://me:plant-ed@example.com?x=%20"]
    new = four_steps(server, **job(server, notification={"urls": urls}))
    kept = server.document.parent.parent / "credentials" / "demo" / "notification.urls"
    assert kept.read_text() == "\n".join(urls)
    assert (kept.stat().st_mode & 0o7777, kept.parent.stat().st_mode & 0o7777) == (0o600, 0o700)
    assert new["job"]["notification"]["urls"] == [_job.KEPT]
    secret_is_nowhere_else(server, "plant-ed", new, server.check(notification={"urls": urls}), name=kept.name)

    # given back as they were returned, or left out
    fields = {name: one for name, one in new["job"].items() if name != "version"}
    same = ({"notification": new["job"]["notification"]}, {"notification": {"email": []}}, {}, {"notification": {}})
    for more in (*same, dict(fields, omitted="reset")):
        assert not server.apply(**more)["changed"]
    secret_is_nowhere_else(server, "plant-ed", server.apply(comment="c"), name=kept.name)

    # one more is another list, of which nothing is told but that
    other = four_steps(server, notification={"urls": [*urls, "json://plant-ed.example.com"]})
    assert [(one["after_header"], one["before"], one["after"]) for one in other["diff"]] == [
        (str(kept), "(a secret)\n", "(another secret)\n")
    ]
    secret_is_nowhere_else(server, "plant-ed", other, name=kept.name)

    # beside the other secret, and each goes for itself
    four_steps(server, partner=SFTP, account={"password": "Tr0ub4dor&3"})
    assert sorted(path.name for path in kept.parent.iterdir()) == ["account.password", "notification.urls"]
    gone = four_steps(server, notification={"urls": None})
    assert "plant-ed" not in json.dumps(gone)
    assert [path.name for path in kept.parent.iterdir()] == ["account.password"]
    four_steps(server, notification={"urls": "json://plant-ed"})
    four_steps(server, account={"password": None})
    assert [path.name for path in kept.parent.iterdir()] == ["notification.urls"]
    four_steps(server, notification={"urls": []})
    assert not kept.parent.exists()
    four_steps(server, notification={"urls": ["json://plant-ed"]})
    four_steps(server, state="absent")
    assert not kept.parent.exists()


def test_secrets_go_with_a_name_and_not_to_a_copy(server):
    server.apply(**job(server, notification={"urls": "json://plant-ed"}))
    kept = server.document.parent.parent / "credentials"
    message = "notification.urls: is to be kept as it is, but nothing is kept on this server; give the secret itself"
    refused(server, message, "missing", "notification.urls", name="copy", copy_from="demo")
    for urls in (None, "json://another"):
        given = {"notification": {"urls": urls}, "accept_circular": "it is a test"}
        assert server.apply(name="copy", copy_from="demo", **given)["changed"]
    renamed = four_steps(server, name="new", previous_name="demo")
    assert "plant-ed" not in json.dumps(renamed)
    assert {str(path.relative_to(kept)): path.read_text() for path in kept.rglob("*.urls")} == {
        "copy/notification.urls": "json://another",
        "new/notification.urls": "json://plant-ed",
    }


def test_a_password_that_is_to_be_kept_has_to_be_there(server):
    message = "account.password: is to be kept as it is, but nothing is kept on this server; give the secret itself"
    given = job(server, partner=SFTP, account={"password": _job.KEPT})
    refused(server, message, "missing", "account.password", **given)


def test_no_error_tells_a_password(server):
    for account in (
        {"password": "Tr0ub4dor&3", "private_key_file": "/k"},
        {"password": ["Tr0ub4dor&3"]},
        "Tr0ub4dor&3",
    ):
        for run in (server.check, server.apply):
            result = run(**job(server, partner=SFTP, account=account))
            assert result["failed"]
            assert "Tr0ub4dor&3" not in json.dumps(result)
    # under a name, or in a place, that is none of its own
    for more in (
        {"passwd": "Tr0ub4dor&3"},
        {"acount": {"passwd": "Tr0ub4dor&3"}},
        {"partner": {**SFTP, "passwd": "Tr0ub4dor&3"}},
        {"elements": [{"path": str(server.here), "passwd": "Tr0ub4dor&3"}]},
        {"elements": [{"path": str(server.here), "settings": {"passwd": "Tr0ub4dor&3"}}]},
    ):
        for run in (server.check, server.apply):
            result = run(**dict(job(server), **more))
            assert result["failure"]["code"] == "unknown_option"
            assert "Tr0ub4dor&3" not in json.dumps(result)


def test_no_file_is_open_to_more_while_it_is_put_there(server):
    """A new one has the rights that the umask leaves it, until it has its own."""
    seen = server.root / "modes"
    server.program = (
        "import os\n"
        "from ansible.module_utils import basic\n"
        "move = basic.AnsibleModule.atomic_move\n"
        "def recorded(self, src, dest, **more):\n"
        "    move(self, src, dest, **more)\n"
        "    with open(%r, 'a') as stream:\n"
        "        stream.write('%%o %%s\\n' %% (os.stat(dest).st_mode & 0o777, dest))\n"
        "basic.AnsibleModule.atomic_move = recorded\n" % str(seen)
    ) + server.program
    server.apply(**job(server, partner=SFTP, account={"password": "Tr0ub4dor&3"}))
    modes = {path: int(mode, 8) for mode, path in (line.split() for line in seen.read_text().splitlines())}
    assert len(modes) == 4
    for path, mode in modes.items():
        assert mode & ~os.stat(path).st_mode == 0, path


def test_an_elements_own_settings_come_change_and_go(server):
    other = str(server.here.with_name("other"))

    def elements(own):
        return {"elements": [{"path": str(server.here)}, {"path": other, "settings": own}]}

    def shown(run):
        """The element's own settings in the one diff, which has no other change; as JSON before and after."""
        (diff,) = run["diff"]
        before, after = (json.loads(diff[side]) for side in ("before", "after"))
        assert {**before, "elements": 0} == {**after, "elements": 0}
        assert [one["settings"] for one in (before["elements"][0], after["elements"][0])] == [None, None]
        return before["elements"][1]["settings"], after["elements"][1]["settings"]

    server.apply(**job(server, **elements(None), settings={"exclude": ["a"]}))
    given = {"direction": "both", "bandwidth_limit": "2048k", "conflict": None}
    added = {"direction": "both", "bandwidth_limit": "2M"}
    assert shown(four_steps(server, **elements(given))) == (None, added)
    changed = {"direction": "both", "bandwidth_limit": "2M", "exclude": []}
    assert shown(four_steps(server, **elements(changed))) == (
        added,
        {"direction": "both", "exclude": [], "bandwidth_limit": "2M"},
    )
    # the same as the job's by now is still its own
    run = four_steps(server, settings={"direction": "both"})
    assert run["job"]["elements"][1]["settings"]["direction"] == "both"
    assert shown(four_steps(server, **elements({"direction": "both"})))[1] == {"direction": "both"}
    assert shown(four_steps(server, **elements(None))) == ({"direction": "both"}, None)


def test_no_error_tells_a_url(server):
    """Nor what is perhaps one, under a name or in a place that is wrong."""
    for more in (
        {"notification": {"urls": ["json://plant-ed", "plant-ed"]}},
        {"notification": {"urls": ["json://plant-ed", "json://plant-ed"]}},
        {"notification": {"urls": {"plant-ed": "plant-ed"}}},
        {"notification": {"url": "json://plant-ed"}},
        {"notification": "json://plant-ed"},
        {"notification": ["json://plant-ed"]},
        {"notification": '{"urls": ["plant-ed"]}'},
        {"urls": ["json://plant-ed"]},
        {"on_error": {"retries": "many"}, "notification": {"urls": ["json://plant-ed"]}},
    ):
        for run in (server.check, server.apply):
            result = run(**job(server, **more))
            assert result["failed"], more
            assert "plant-ed" not in json.dumps(result), more


def test_an_edited_schedule_fires_no_run(server):
    server.apply(**job(server))
    assert server.stamp.exists()
    run = four_steps(server, schedule={"at": "03:00"})
    assert run["commands"] == [
        ["systemctl", "--user", "stop", "serversync@demo.timer"],
        ["systemctl", "--user", "daemon-reload"],
        ["systemctl", "--user", "start", "serversync@demo.timer"],
    ]


@pytest.mark.parametrize("more", [{"schedule": None}, {"enabled": False}], ids=["clear", "pause"])
def test_clear_and_pause_take_the_timer_away(server, more):
    server.apply(**job(server))
    four_steps(server, **more)
    assert server.document.exists()
    assert server.drop_in.exists()
    assert not server.timer.exists()
    assert not server.stamp.exists()
    assert list((server.units / "timers.target.wants").iterdir()) == []
    assert server.memory()["active"] == {}
    back = {"schedule": {"at": "02:30", "timezone": "UTC"}} if "schedule" in more else {"enabled": True}
    assert four_steps(server, **back)["job"] == server.check(**job(server))["job"]
    assert server.memory()["active"] == {"serversync@demo.timer": "active"}


def test_null_sets_the_default(server):
    server.apply(**job(server, comment="c", on_error={"retries": 1, "delay": "1m"}))
    run = four_steps(server, comment=None, on_error={"retries": None})
    on_error = {"retries": 3, "delay": "1m", "backoff": 2.0, "max_delay": None}
    assert (run["job"]["comment"], run["job"]["on_error"]) == ("", on_error)


def test_reset_makes_the_job_what_the_task_says(server):
    server.apply(**job(server, comment="c", on_error={"retries": 1, "delay": "1m"}, settings={"exclude": ["*.tmp"]}))
    plain = job(server, omitted="reset")
    run = four_steps(server, **plain)
    assert (run["job"]["comment"], run["job"]["on_error"]["retries"], run["job"]["settings"]["exclude"]) == ("", 3, [])
    assert run["job"] == _job.declare(dict(plain, name="demo", scope="user"))[0]
    server.document.write_text("{damaged")
    assert four_steps(server, **plain)["job"] == run["job"]


def test_reset_needs_what_a_new_job_needs(server):
    server.apply(**job(server))
    refused(
        server,
        "partner.host: is missing; name the partner server (1 more in failure.details)",
        "missing",
        "partner.host",
        omitted="reset",
    )


def test_null_where_there_are_choices(server):
    parameters = job(server, settings={"direction": "from_partner"}, notification={"events": ["success"]})
    server.apply(**parameters)
    run = four_steps(server, state=None, settings={"direction": None, "delete": None}, partner={"connection": None})
    assert run["job"]["settings"]["direction"] == "to_partner"
    assert run["job"]["notification"]["events"] == ["success"]


def test_rename(server):
    before = server.apply(**job(server, comment="kept"))["job"]
    left = server.snapshot()
    run = four_steps(server, name="new", previous_name="demo", on_error={"retries": 9})
    assert run["job"] == dict(before, name="new", on_error=dict(before["on_error"], retries=9))
    assert not [path for path in server.home.rglob("*demo*") if path.name in {Path(one).name for one in left}]
    assert server.memory()["active"] == {"serversync@new.timer": "active"}
    assert [command[2:] for command in run["commands"]] == [
        ["disable", "--now", "serversync@demo.timer"],
        ["enable", "--no-reload", "serversync@new.timer"],
        ["daemon-reload"],
        ["start", "serversync@new.timer"],
    ]
    # a job that was there all the time is none of another name
    assert server.apply(**job(server, partner={"host": "other"}))["changed"]
    message = (
        "previous_name: both 'demo' and 'new' are jobs of this server; remove one of them, or leave previous_name out"
    )
    refused(server, message, "conflict", "previous_name", name="new", previous_name="demo")


def test_there_may_be_nothing_to_rename(server):
    run = four_steps(server, previous_name="before", **job(server))
    assert len(run["diff"]) == 4


def test_a_renamed_job_that_stays_where_it_is_closes_no_circle(server):
    server.apply(**job(server, elements=[{"path": str(server.here), "partner_path": "/srv/x"}]))
    other = job(server, elements=[{"path": str(server.here), "partner_path": "/srv/x"}], accept_circular="for once")
    server.apply(**dict(other, name="other"))
    four_steps(server, name="new", previous_name="demo", comment="renamed")


def test_a_damaged_job_is_not_renamed(server):
    server.apply(**job(server))
    server.document.write_bytes(b"\xff")
    message = (
        "%s: is damaged (is not UTF-8); restore the file, or remove the job with state: absent and declare it whole"
        % server.document
    )
    refused(server, message, "damaged_document", str(server.document), name="new", previous_name="demo")


def test_a_copy_follows_its_base_when_the_task_runs_again(server):
    (server.home / "there").mkdir()
    base = server.apply(**job(server, comment="base", settings={"exclude": ["*.tmp"]}, accept_circular="meant"))["job"]
    elements = [{"path": str(server.home / "there")}]
    copy = {"name": "copy", "copy_from": "demo", "elements": elements, "on_error": {"retries": 9}}
    run = four_steps(server, **copy)
    expected = dict(base, name="copy", elements=run["job"]["elements"], on_error=dict(base["on_error"], retries=9))
    assert run["job"] == dict(expected, accept_circular=None)
    assert dict(written(server), machine_id=None) == dict(base, machine_id=None)
    server.apply(settings={"exclude": ["*.bak"]}, schedule=None)
    run = four_steps(server, **copy)
    assert (run["job"]["settings"]["exclude"], run["job"]["schedule"]) == (["*.bak"], None)
    copy["on_error"] = None
    run = four_steps(server, **copy)
    assert run["job"]["on_error"]["retries"] == 3
    # no trace of where it came from: it can be edited, and its base removed
    four_steps(server, name="copy", comment="mine")
    four_steps(server, state="absent")
    assert not server.check(name="copy", comment="mine")["changed"]


def test_a_copy_of_a_damaged_job(server):
    server.apply(**job(server))
    server.document.write_text("{")
    message = (
        "%s: is damaged (is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
        "restore the file, or remove the job with state: absent and declare it whole" % server.document
    )
    refused(server, message, "damaged_document", str(server.document), name="copy", copy_from="demo")


def test_a_document_of_the_version_before_is_completed_once(server):
    current = server.apply(**job(server))["job"]
    old = json.loads(json.dumps(current))
    old["settings"] = {"direction": "to_partner", "exclude": [], "delete": "never"}
    del (
        old["before"],
        old["after"],
        old["limits"],
        old["accept_circular"],
        old["elements"][0]["previous_path"],
        old["elements"][0]["kind"],
    )
    del old["elements"][0]["requires"], old["elements"][0]["settings"]
    server.document.write_text(_job.document_text(old))
    run = four_steps(server, **job(server))
    assert run["job"] == current
    assert run["commands"] == []


@pytest.mark.parametrize("machine_id", ["", "uninitialized", "not one"])
def test_a_server_without_a_machine_id_binds_nothing(server, machine_id):
    server.become(machine_id)
    run = four_steps(server, **job(server))
    assert written(server) == run["job"]


def lines_of(run, sign):
    (entry,) = run["diff"]
    lines = difflib.ndiff(entry["before"].splitlines(), entry["after"].splitlines())
    return [line[2:].strip() for line in lines if line.startswith(sign + " ")]


def test_a_document_that_is_not_bound_yet_is_by_the_next_apply(server):
    server.become("")
    server.apply(**job(server))
    server.become(ID)
    run = four_steps(server, comment=None)
    assert (lines_of(run, "-"), lines_of(run, "+")) == ([], ['"machine_id": "%s",' % ID])
    assert run["commands"] == []
    assert run["warnings"] == [NOT_PAIRED]


@pytest.mark.parametrize("here", [OTHER, ""])
def test_a_document_of_another_server_is_bound_to_this_one_by_an_apply(server, here):
    server.become(ID)
    declared = server.apply(**job(server))["job"]
    server.become(here)
    warning = "%s: was declared on another server and is this one's from now on; see that not both run it"
    assert server.check(comment=None)["warnings"] == [NOT_PAIRED, warning % server.document]
    run = four_steps(server, comment=None)
    assert lines_of(run, "-") == ['"machine_id": "%s",' % ID]
    assert lines_of(run, "+") == (['"machine_id": "%s",' % here] if here else [])
    assert run["warnings"] == [NOT_PAIRED, warning % server.document]
    assert run["job"] == declared
    assert server.apply(comment=None)["warnings"] == [NOT_PAIRED]


def test_a_document_of_another_server_can_be_removed(server):
    server.become(ID)
    server.apply(**job(server))
    server.become(OTHER)
    run = four_steps(server, state="absent")
    assert "warnings" not in run
    assert not server.document.exists()


def test_copies_and_renamed_jobs_are_bound_to_this_server(server):
    server.become(ID)
    server.apply(**job(server))
    server.become(OTHER)
    elements = [{"path": str(server.home / "there")}]
    four_steps(server, name="copy", copy_from="demo", elements=elements)
    assert (written(server, "copy")["machine_id"], written(server)["machine_id"]) == (OTHER, ID)
    run = four_steps(server, name="new", previous_name="demo")
    assert written(server, "new")["machine_id"] == OTHER
    assert any(one.startswith("%s: was declared on another server" % server.document) for one in run["warnings"])


def test_a_machine_id_is_no_option(server):
    server.become(ID)
    message = "machine_id: is not an option"
    for run in (server.check, server.apply):
        result = run(**job(server, machine_id=ID))
        assert result["msg"].startswith(message)
    assert not server.document.exists()


def test_what_another_server_declared_closes_no_circle_before_it_is_this_ones(server):
    server.become(OTHER)
    there = {"host": "127.0.0.1", "connection": "local"}
    one = {"path": str(server.here), "partner_path": str(server.home / "there")}
    back = {"path": one["partner_path"], "partner_path": one["path"]}
    server.apply(name="back", partner=there, elements=[back], settings={"delete": "synced"})
    server.become(ID)
    run = four_steps(server, partner=there, elements=[one], settings={"delete": "synced"})
    other = server.document.with_name("back.json")
    told = "%s: was declared on another server; it is not looked at for circular connections" % other
    assert told in run["warnings"]
    for run in (server.check, server.apply):
        result = run(name="back", comment=None)
        assert result["failure"]["code"] == "circle"


def test_remove(server):
    server.published.parent.mkdir(parents=True)
    empty = server.state()
    server.apply(**job(server))
    server.published.write_text("{}")
    run = four_steps(server, state="absent")
    assert run["job"] is None
    files, active = server.state()
    for name in ("config/serversync/jobs", "config/systemd/user/timers.target.wants", "data", "data/systemd"):
        files.pop(name)
    files.pop("data/systemd/timers")
    assert (files, active) == empty


def test_remove_stops_a_run_and_clears_a_failure(server):
    server.apply(**job(server))
    server.tell(service="activating")
    run = four_steps(server, state="absent")
    assert ["systemctl", "--user", "stop", "serversync@demo.service"] in run["commands"]
    assert server.memory()["active"] == {}
    server.apply(**job(server))
    server.tell(service="failed")
    run = four_steps(server, state="absent")
    assert run["commands"][-1] == ["systemctl", "--user", "reset-failed", "serversync@demo.servic[e]"]


def test_remove_what_is_damaged_and_needs_no_runner(server):
    server.apply(**job(server))
    server.document.write_text("{damaged")
    (server.config / "serversync" / "runner.json").unlink()
    four_steps(server, state="absent")
    assert not server.document.exists()


def test_remove_leaves_what_others_have_put_there(server):
    server.apply(**job(server))
    other = server.drop_in.parent / "override.conf"
    other.write_text("[Service]\n")
    run = four_steps(server, state="absent")
    assert other.read_text() == "[Service]\n"
    stays = ["%s holds files of others; it stays" % other.parent]
    assert run["warnings"] == stays
    assert server.apply(state="absent")["warnings"] == stays


def test_a_job_leaves_its_neighbours_alone(server):
    server.apply(**job(server))
    before = server.snapshot()
    server.apply(**job(server, name="demo2", partner={"host": "hq2"}))
    server.apply(name="demo2", state="absent")
    after = server.snapshot()
    assert {name: after[name][1:] for name in before if before[name][3]} == {
        name: before[name][1:] for name in before if before[name][3]
    }


DRIFTS = {
    "document edited": lambda server: server.document.write_text(server.document.read_text().replace(" ", "")),
    "document's mode": lambda server: server.document.chmod(0o644),
    "timer edited": lambda server: server.timer.write_text("[Timer]\nOnCalendar=hourly\n"),
    "timer gone": lambda server: server.timer.unlink(),
    "timer's mode": lambda server: server.timer.chmod(0o600),
    "drop-in edited": lambda server: server.drop_in.write_text(""),
    "drop-in a link": lambda server: (server.drop_in.unlink(), server.drop_in.symlink_to("/etc/passwd")),
    "timer masked": lambda server: (server.timer.unlink(), server.timer.symlink_to("/dev/null")),
    "timer stopped": lambda server: server.tell(timer="inactive"),
    "timer failed": lambda server: server.tell(timer="failed"),
    "timer disabled": lambda server: (server.units / "timers.target.wants" / server.timer.name).unlink(),
}


@pytest.mark.parametrize("drift", DRIFTS.values(), ids=DRIFTS)
def test_drift_is_repaired(server, drift):
    server.apply(**job(server))
    good = server.state()
    drift(server)
    assert server.state() != good
    four_steps(server, **job(server))
    assert server.state() == good
    assert Path("/etc/passwd").read_text().startswith("root:")


def test_a_crash_before_the_reload_is_repaired(server):
    server.apply(**job(server))
    memory = server.memory()
    memory["loaded"] = {name: {} for name in memory["loaded"]}
    (server.root / "memory.json").write_text(json.dumps(memory))
    assert four_steps(server, **job(server))["commands"] == [["systemctl", "--user", "daemon-reload"]]


def test_a_failing_command_is_told_and_the_next_apply_finishes(server):
    (server.root / "broken-start").touch()
    result = server.apply(**job(server))
    assert result["msg"] == (
        "systemctl --user start serversync@demo.timer: failed with exit code 1: "
        "Failed to start unit: Connection timed out; repair that and apply the job again"
    )
    assert result["failure"]["code"] == "command_failed"
    assert result["changed"]
    assert [command[2] for command in result["commands"]] == ["daemon-reload", "enable"]
    (server.root / "broken-start").unlink()
    run = four_steps(server, **job(server))
    assert run["commands"] == [["systemctl", "--user", "start", "serversync@demo.timer"]]


def test_a_directory_that_cannot_be_written_is_told_and_the_next_apply_finishes(server):
    server.apply(**job(server))
    # root writes wherever the mode forbids it, so both are as on a read-only file system
    program = server.program
    server.program = (
        "import errno, os, tempfile\n"
        "access = os.access\n"
        "def read_only(path, mode, **more):\n"
        "    return access(path, mode, **more) and not (mode & os.W_OK and str(path).endswith('/jobs'))\n"
        "def refuse(*arguments, dir=None, **more):\n"
        "    raise OSError(errno.EROFS, os.strerror(errno.EROFS), dir)\n"
        "os.access, tempfile.TemporaryFile = read_only, refuse\n" + program
    )
    result = server.apply(**job(server, comment="new"))
    assert result["msg"] == (
        f"{server.document}: cannot be changed (Read-only file system); repair that and apply the job again"
    )
    assert (result["failure"]["code"], result["failure"]["path"]) == ("write_failed", str(server.document))
    server.program = program
    assert server.apply(**job(server, comment="new"))["changed"]
    assert not server.apply(**job(server, comment="new"))["changed"]


def test_two_tasks_at_the_same_time_do_not_stand_in_each_others_way(server):
    """The other one has told systemd of what both have written, and taken the reminder away."""
    program = server.root / "bin" / "systemctl"
    program.rename(program.with_name("first"))
    other = "case $* in *daemon-reload*) rm %s/.reload;; esac" % server.document.parent
    program.write_text('#!/bin/sh\n%s\nexec %s "$@"\n' % (other, program.with_name("first")))
    program.chmod(0o755)
    assert server.apply(**job(server)).get("msg") is None
    assert not server.check(**job(server))["changed"]


def test_systemd_that_does_not_answer(server):
    (server.root / "broken-show").touch()
    for run in (server.check, server.apply):
        result = run(**job(server))
        assert result["failure"]["code"] == "command_failed"
        assert "Failed to show unit: Connection timed out; repair that" in result["msg"]
    assert not server.document.exists()


# --- refusals: the same in both modes, and nothing written -----------------------------------------------------


def refused(server, message, code, path, **parameters):
    before, calls = server.snapshot(), len(server.calls())
    for run in (server.check, server.apply):
        result = run(**parameters)
        assert result["msg"] == message
        assert result["failed"]
        assert (result["changed"], result["job"], result["diff"], result["commands"]) == (False, None, [], [])
        assert (result["failure"]["code"], result["failure"]["path"]) == (code, path)
    assert server.snapshot() == before
    assert server.mutating(calls) == []
    return result


@pytest.mark.parametrize(
    ("more", "message", "code", "path"),
    [
        ({"scheduel": {}}, "scheduel: is not an option; did you mean schedule?", "unknown_option", "scheduel"),
        (
            {"elements": "/a"},
            "elements: '/a' is text, not a list; begin each entry with a dash",
            "wrong_type",
            "elements",
        ),
        (
            {"limits": [1]},
            "limits: [1] is a list, not a dictionary; write it with the keys parallel, timeout, nice",
            "wrong_type",
            "limits",
        ),
        (
            {"limits": "timeout"},
            "limits: 'timeout' is text, not a dictionary; write it with the keys parallel, timeout, nice",
            "wrong_type",
            "limits",
        ),
        ({"name": None}, "name: is missing; give the job a name", "missing", "name"),
        (
            {"name": "a/b"},
            "name: 'a/b' is not a job name; use a-z, 0-9, '_', '.' and '-', and begin with a letter or a digit",
            "invalid_value",
            "name",
        ),
        ({"elements": None}, "elements: is missing; give at least one element with its path", "missing", "elements"),
        (
            {"elements": [{"path": "/a"}, {"partner_path": "/b"}]},
            "elements[1].path: is missing; write the whole path from /",
            "missing",
            "elements[1].path",
        ),
        (
            {"on_error": {"retries": "x"}},
            "on_error.retries: 'x' is not a whole number; use 0 to 100",
            "wrong_type",
            "on_error.retries",
        ),
        (
            {"on_error": {"retries": -1}},
            "on_error.retries: -1 is out of range; use 0 to 100",
            "out_of_range",
            "on_error.retries",
        ),
        (
            {"settings": {"direction": "up"}},
            "settings.direction: 'up' is not one of to_partner, from_partner, both",
            "not_a_choice",
            "settings.direction",
        ),
        (
            {"settings": {"direction": "both", "delete": "extraneous"}},
            "settings.delete: 'extraneous' needs a source, which direction both does not have; use synced or never",
            "conflict",
            "settings.delete",
        ),
        (
            {"elements": [{"path": "/a"}, {"path": "/b", "settings": {"direction": "up"}}]},
            "elements[1].settings.direction: 'up' is not one of to_partner, from_partner, both",
            "not_a_choice",
            "elements[1].settings.direction",
        ),
        (
            {"elements": [{"path": "/a", "settings": "both"}]},
            "elements[0].settings: 'both' is text, not a dictionary; write it with the keys %s"
            % ", ".join(_job.field_of("settings").defaults()),
            "wrong_type",
            "elements[0].settings",
        ),
        (
            {"elements": [{"path": "/b", "settings": {"direction": "both"}}], "settings": {"delete": "extraneous"}},
            "elements[0].settings.delete: 'extraneous', the job's, needs a source, which direction both does not have; "
            "give synced or never here",
            "conflict",
            "elements[0].settings.delete",
        ),
        (
            {"settings": {"max_delete": 0.25}},
            "settings.max_delete: 0.25 is not a whole number; write a share, e.g. 25%",
            "wrong_type",
            "settings.max_delete",
        ),
        (
            {"settings": {"max_change": "101%"}},
            "settings.max_change: '101%' is out of range; use 1% to 100%, or a number of paths, 0 for none",
            "out_of_range",
            "settings.max_change",
        ),
        (
            {"settings": {"bandwidth_limit": 20}},
            "settings.bandwidth_limit: 20 has no unit; write e.g. 500K, 20M or 1G",
            "wrong_type",
            "settings.bandwidth_limit",
        ),
        (
            {"settings": {"compress": True}},
            "settings.compress: True is not one of auto, always, never",
            "not_a_choice",
            "settings.compress",
        ),
        (
            {"settings": {"include": ["!a"]}},
            "settings.include: begins with '!a', an exception from nothing; "
            "put it after the pattern that it is an exception from",
            "invalid_value",
            "settings.include",
        ),
        (
            {"schedule": {"at": 750}},
            'schedule.at[0]: 750 is a number, not a time of day; quote times, e.g. "12:30"',
            "wrong_type",
            "schedule.at[0]",
        ),
        (
            {"schedule": {"at": "02:30", "every": "1h"}},
            "schedule: has every and at; give one of every, at, calendar",
            "conflict",
            "schedule",
        ),
        (
            {"copy_from": "line1"},
            "copy_from: 'line1' is no job of this scope on this server; declare it first, or name another one",
            "unknown_job",
            "copy_from",
        ),
        (
            {"copy_from": "demo"},
            "copy_from: 'demo' is this job itself; name another one, or leave it out",
            "conflict",
            "copy_from",
        ),
        (
            {"copy_from": "line1", "omitted": "reset"},
            "omitted: does not go with copy_from, by which omitted options are as in that job; leave one of them out",
            "conflict",
            "omitted",
        ),
        (
            {"previous_name": "demo"},
            "previous_name: 'demo' is the name itself; leave it out",
            "conflict",
            "previous_name",
        ),
        (
            {"validate_partner": "maybe"},
            "validate_partner: 'maybe' is not a boolean; use true or false",
            "wrong_type",
            "validate_partner",
        ),
        (
            {"stop_timeout": 60},
            "stop_timeout: 60 has no unit; write e.g. 90s, 15m, 2h or 7d",
            "wrong_type",
            "stop_timeout",
        ),
        (
            {"stop_timeout": "2d"},
            "stop_timeout: '2d' is out of range; use 0s to 1d",
            "out_of_range",
            "stop_timeout",
        ),
        ({"state": "gone"}, "state: 'gone' is not one of present, absent", "not_a_choice", "state"),
        (
            {"schedule": {"calendar": "nonsense"}},
            "schedule.calendar: 'nonsense' is refused by systemd (Failed to parse calendar specification 'nonsense': "
            'Invalid argument); see "man systemd.time", e.g. "Mon..Fri *-*-* 02:30"',
            "invalid_value",
            "schedule.calendar",
        ),
        # also where no timer says so yet
        (
            {"schedule": {"calendar": "nonsense"}, "enabled": False},
            "schedule.calendar: 'nonsense' is refused by systemd (Failed to parse calendar specification 'nonsense': "
            'Invalid argument); see "man systemd.time", e.g. "Mon..Fri *-*-* 02:30"',
            "invalid_value",
            "schedule.calendar",
        ),
    ],
)
def test_bad_input(server, more, message, code, path):
    result = refused(server, message, code, path, **job(server, **more))
    assert result["failure"]["details"][0]["msg"] == message


# Runs the module in this process for one task after another.
EACH = """
import io, json, os, sys
os.geteuid = lambda: 0
output, results = sys.stdout, []
for arguments in json.load(sys.stdin):
    sys.stdin, sys.stdout = io.StringIO(json.dumps(arguments)), io.StringIO()
    try:
        exec(%r)
    except SystemExit:
        results.append(json.loads(sys.stdout.getvalue()))
json.dump(results, output)
""" % PROGRAM.replace("modules.MODULE", "modules.sync_job")


def test_every_bad_input_of_the_grammar_in_both_modes(server):
    """Ansible's own validation never speaks first, and check mode says the same."""
    tasks = [
        dict(base(**more), _ansible_check_mode=check, _ansible_remote_tmp=str(server.tmp))
        for more, _message in BAD
        for check in (True, False)
    ]
    done = subprocess.run(
        [sys.executable, "-c", EACH],
        input=json.dumps(tasks),
        env=server.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    results = json.loads(done.stdout)
    assert len(results) == 2 * len(BAD) >= 240
    for (_more, message), check, run in zip(BAD, results[::2], results[1::2]):
        problems = check["failure"]["details"]
        assert problems[0]["msg"] == message
        assert check["msg"].startswith(message)
        assert check == run
        assert (run["failed"], run["changed"], run["job"], run["diff"]) == (True, False, None, [])
        assert "s3cret" not in json.dumps(run)


def test_all_problems_are_in_the_details(server):
    result = server.check(**job(server, nme=1, enabled="maybe", on_error={"retries": -1}))
    assert [problem["path"] for problem in result["failure"]["details"]] == ["nme", "enabled", "on_error.retries"]
    assert result["msg"] == "nme: is not an option; did you mean name? (2 more in failure.details)"


def test_an_unknown_time_zone(server):
    message = "schedule.timezone: 'Europe/Berln' is not a time zone of this server; did you mean Europe/Berlin?"
    schedule = {"at": "02:30", "timezone": "Europe/Berln"}
    refused(server, message, "invalid_value", "schedule.timezone", **job(server, schedule=schedule))
    message = message.replace("timezone", "calendar", 1)
    schedule = {"calendar": "02:30 Europe/Berln"}
    refused(server, message, "invalid_value", "schedule.calendar", **job(server, schedule=schedule))


PINNED = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
GIVEN = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAfuCHKVTjquxvt6CM6tdG4SLp1Btn/nOeHHE5UOzRdf"


def test_the_host_key_of_another_server(server):
    pairings = server.config / "serversync" / "pairings"
    pairings.mkdir()
    (pairings / "headquarters.json").write_text('{"name": "headquarters", "host": "hq"}')
    (pairings / "headquarters.known_hosts").write_text("serversync-headquarters %s\n" % PINNED)
    message = (
        "partner.host_key: is not the key pinned for pairing headquarters "
        "(SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU pinned, %s given); "
        "re-pair with the role if the server's key was changed on purpose" % _host_key.fingerprint(GIVEN)
    )
    partner = {"host": "hq", "host_key": [GIVEN]}
    refused(server, message, "host_key_mismatch", "partner.host_key", **job(server, partner=partner))
    four_steps(server, **job(server, partner={"host": "hq", "host_key": [PINNED + " root@hq"]}))


def test_a_private_key_appears_nowhere(server):
    partner = {"host": "hq", "host_key": ["-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n"]}
    for run in (server.check, server.apply):
        result = run(**job(server, partner=partner))
        assert result["failure"]["code"] == "private_key"
        assert "invocation" in result
        assert "c2VjcmV0" not in json.dumps(result)


def test_a_damaged_document(server):
    server.apply(**job(server))
    text = server.document.read_text()
    remedy = "restore the file, or remove the job with state: absent and declare it whole"
    for damage, said in (
        ("", "is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[" * 200_000, "is not JSON: nested too deeply"),
        (text.replace('"retries": 3', '"retries": -3'), "on_error.retries: -3 is out of range; use 0 to 100"),
        (text.replace('"retries"', '"retires"'), "on_error.retires: is not an option; did you mean retries?"),
        (b"\xff", "is not UTF-8"),
    ):
        server.document.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
        message = "%s: is damaged (%s); %s" % (server.document, said, remedy)
        refused(server, message, "damaged_document", str(server.document), **job(server))


def test_a_document_edited_by_hand_is_what_omitted_options_leave(server):
    server.apply(**job(server))
    server.document.write_text(server.document.read_text().replace('"retries": 3', '"retries": 7'))
    result = server.apply(**job(server))
    assert not result["changed"]
    assert result["job"]["on_error"]["retries"] == 7


def test_system_scope_needs_root(server):
    server.program = "import os; os.geteuid = lambda: 1000" + PROGRAM
    message = "scope: system needs root; set become: true, or scope: user for a job of your own"
    refused(server, message, "not_root", "scope", **job(server, scope=None))


def test_a_timer_that_systemd_cannot_read_is_not_written(server):
    message = (
        "%s: systemd refuses the timer (7: Failed to parse RandomizedDelaySec= value, ignoring: 777s); "
        "nothing was written" % server.timer
    )
    parameters = job(server, schedule={"at": "02:30", "jitter": "777s"})
    refused(server, message, "unit_verify_failed", str(server.timer), **parameters)


# --- what this server has and has not --------------------------------------------------------------------------


def test_before_the_runner_is_deployed(server):
    runner = server.config / "serversync" / "runner.json"
    runner.unlink()
    missing = "the runner is not deployed on this server (%s is missing)" % runner
    check = server.check(**job(server))
    assert check["changed"]
    assert (
        missing + "; without check mode this task fails until the role serversync.core.runner is applied"
        in (check["warnings"])
    )
    before = server.snapshot()
    result = server.apply(**job(server))
    assert result["msg"] == missing + "; apply the role serversync.core.runner first"
    assert (result["failure"]["code"], result["failure"]["path"]) == ("runner_missing", str(runner))
    assert server.snapshot() == before


def test_the_metrics_of_a_job_go_with_it(server):
    collector = server.root / "collector"
    collector.mkdir()
    (server.config / "serversync" / "runner.json").write_text(json.dumps({"metrics_dir": str(collector)}))
    server.apply(**job(server))
    own = collector / ("serversync-%s.prom" % server.document.stem)
    for path in (own, collector / "serversync-other.prom"):
        path.write_text("1")
    assert not server.apply(**job(server))["changed"]
    # no run would say that it is paused, and alerts would go on
    assert str(own) in json.dumps(server.apply(**job(server, enabled=False))["diff"]) and not own.exists()
    # somebody ran it by hand
    own.write_text("1")
    assert not server.apply(**job(server, enabled=False))["changed"] and own.exists()
    server.apply(**job(server))
    assert own.exists()
    check = server.check(state="absent")
    assert str(own) in json.dumps(check["diff"]) and "serversync-other" not in json.dumps(check["diff"])
    assert server.apply(state="absent")["diff"] == check["diff"]
    assert [path.name for path in collector.iterdir()] == ["serversync-other.prom"]
    # settings that are damaged keep nobody from removing a job
    server.apply(**job(server))
    (server.config / "serversync" / "runner.json").write_text("[]")
    assert server.apply(state="absent")["changed"]


def test_without_systemd(tmp_path):
    server = Server(tmp_path, systemd=False)
    result = server.check(**job(server))
    assert result["failure"]["code"] == "no_systemd"
    assert result["failure"]["path"] == "schedule"
    assert result["msg"].startswith("schedule: no systemd ")
    assert "set schedule: null" in result["msg"]
    assert server.apply(**job(server))["msg"] == result["msg"]
    run = four_steps_without_systemd(server, **job(server, schedule=None))
    assert run["job"]["schedule"] is None
    assert server.document.exists()
    four_steps_without_systemd(server, state="absent")
    assert not server.document.exists()
    assert server.calls() == []


def four_steps_without_systemd(server, **parameters):
    check = server.check(**parameters)
    run = server.apply(**parameters)
    assert run["changed"]
    assert (run["diff"], run["job"], run["commands"]) == (check["diff"], check["job"], [])
    after = server.snapshot()
    for again in (server.apply, server.check):
        assert not again(**parameters)["changed"]
        assert server.snapshot() == after
    return run


NOT_PAIRED = (
    "partner.host: this server is not paired with hq and partner.host_key is empty; "
    "until the role pairs them, runs fail"
)


def test_a_partner_that_cannot_be_reached_yet_is_a_warning(server):
    assert server.check(**job(server))["warnings"] == [NOT_PAIRED]
    assert server.apply(**job(server))["warnings"] == [NOT_PAIRED]
    pairings = server.config / "serversync" / "pairings"
    pairings.mkdir()
    (pairings / "main.json").write_text('{"name": "main", "host": "hq"}')
    assert "warnings" not in server.apply(**job(server))


def test_a_path_that_is_not_there_is_a_warning(server):
    missing = server.home / "none"
    run = server.apply(**job(server, elements=[{"path": str(server.here)}, {"path": str(missing)}]))
    assert run["warnings"] == ["elements[1].path: %s does not exist on this server" % missing, NOT_PAIRED]
    local = {"partner": {"host": "x", "connection": "local"}}
    elements = [{"path": str(server.here), "partner_path": str(missing)}]
    run = server.apply(**job(server, elements=elements, settings={"direction": "from_partner"}, **local))
    assert run["warnings"] == ["elements[0].partner_path: %s does not exist on this server" % missing]
    run = server.apply(settings={"direction": "to_partner"})
    assert "warnings" not in run, "the first run makes a missing target"
    for name, other in (("path", "partner_path"), ("partner_path", "path")):
        run = server.check(settings={"direction": "both"}, elements=[{name: str(missing), other: str(server.here)}])
        assert run["warnings"] == ["elements[0].%s: %s does not exist on this server" % (name, missing)]


def test_a_unit_that_cannot_be_started_is_a_warning(server):
    (server.units / "there.service").write_text("[Service]\nType=oneshot\n")
    units = {"before": [{"unit": "there.service"}, {"unit": "gone.service"}], "after": [{"unit": "gone.service"}]}
    for run in (server.check, server.apply):
        assert run(**job(server, **units))["warnings"][-1] == (
            "before[1].unit: gone.service cannot be started (systemd says not-found); until it can, runs fail"
        )
    (server.root / "broken-show").touch()
    assert server.check(**job(server, **units))["failure"]["code"] == "command_failed"


def test_units_need_a_systemd(tmp_path):
    server = Server(tmp_path, systemd=False)
    text = "no systemd runs on this server that could start these units; leave them out"
    if _store.systemd_runs("system", {}, 0):
        text = "no systemd manager runs for this user; call 'loginctl enable-linger USER' once, or leave it out"
    for name in ("before", "after"):
        given = job(server, schedule=None, **{name: [{"unit": "a.service"}]})
        refused(server, "%s: %s" % (name, text), "no_systemd", name, **given)


def test_a_time_that_is_over_is_a_warning(server):
    run = server.apply(**job(server, schedule={"calendar": "2001-01-01"}))
    assert run["warnings"] == ["schedule.calendar: '2001-01-01' is over and will never come again", NOT_PAIRED]


def test_odd_names_arrive_as_they_are(server):
    odd = server.home / 'it\'s 100% "$HOME" ~\\é'
    odd.mkdir()
    server.become(ID)
    run = four_steps(
        server, **job(server, elements=[{"path": str(odd), "partner_path": "/srv/it's"}], comment="50% \\")
    )
    assert run["job"]["elements"][0]["path"] == str(odd)
    assert written(server) == dict(run["job"], machine_id=ID)


@pytest.mark.parametrize(
    ("directory", "what"),
    [
        ("config", "settings, jobs and private key"),
        ("state", "records"),
        ("data", "program"),
    ],
)
def test_what_is_the_runners_own_is_no_element(server, directory, what):
    parent = server.home / directory
    own = parent / "serversync"
    result = server.check(**job(server, elements=[{"path": str(server.here)}, {"path": str(parent)}]))
    # Long values are cut, and how long this one is depends on where the test runs.
    assert result["msg"].startswith("elements[1].path: '")
    assert result["msg"].endswith(
        " is around %s, which holds the runner's %s; name the subdirectories that are meant instead" % (own, what)
    )
    assert result["failure"]["code"] == "invalid_value"
    assert "is inside" in server.check(**job(server, elements=[{"path": str(own / "x")}]))["msg"]


# --- circular connections --------------------------------------------------------------------------------------

ACCEPT = "where this is meant, give the reason in accept_circular."
ROUND = (
    "Edits go round: which version stands depends on which job runs first, and what is removed at one place comes back "
    "from the others."
)


def test_a_job_that_closes_a_circle_is_refused(server):
    server.apply(**job(server, name="there"))
    back = job(server, settings={"direction": "from_partner"})
    here = "%s:%s" % (os.uname().nodename, server.here)
    message = "elements[0]: a circle: hq:%s -> %s -> hq:%s, by jobs demo, there. %s " % (
        server.here,
        here,
        server.here,
        ROUND,
    )
    message += "Make one element with direction both of the two; " + ACCEPT
    refused(server, message, "circle", "elements[0]", **back)
    run = four_steps(server, accept_circular="it is watched", **back)
    assert run["job"]["accept_circular"] == "it is watched"
    # the other job may be edited: the circle is accepted; when it no longer is, that is an error
    assert not server.apply(**dict(back, name="there", settings={"exclude": ["*.tmp"]})).get("failed")
    refused(server, message, "circle", "elements[0]", accept_circular=None)


def test_a_job_that_stays_where_it_is_closes_no_circle(server):
    """Such as one that was declared before anybody looked for circles."""
    server.apply(**job(server, name="there"))
    back = job(server, settings={"direction": "from_partner"})
    current = server.apply(accept_circular="for now", **back)["job"]
    old = dict(current)
    del old["accept_circular"]
    server.document.write_text(_job.document_text(old))
    for edit in ({}, {"comment": "x"}, {"enabled": False}, {"limits": {"parallel": 2}}):
        run = four_steps(server, **dict(back, **edit))
        assert run["warnings"] == [NOT_PAIRED]
    for edit in ({"exclude": ["*.tmp"]}, {"delete": "synced"}):
        result = server.check(**job(server, settings=dict(edit, direction="from_partner")))
        assert result["failure"]["code"] == "circle"
    moved = [{"path": str(server.here), "partner_path": str(server.here / "x")}]
    assert server.check(**dict(back, elements=moved))["failure"]["code"] == "circle"


def test_a_circle_inside_a_job(server):
    other = server.home / "other"
    local = {"host": "x", "connection": "local"}
    elements = [{"path": str(server.here), "partner_path": str(other)}]
    server.apply(**job(server, partner=local, elements=elements))
    back = job(server, name="back", partner=local, elements=elements, settings={"direction": "from_partner"})
    result = server.check(**back)
    assert result["failure"]["code"] == "circle"
    assert result["msg"] == server.apply(**back)["msg"]


def test_a_link_hides_no_circle(server):
    (server.home / "link").symlink_to(server.here)
    server.apply(**job(server, name="there", elements=[{"path": str(server.here), "partner_path": "/x"}]))
    elements = [{"path": str(server.home / "link"), "partner_path": "/x"}]
    result = server.check(**job(server, elements=elements, settings={"direction": "from_partner"}))
    assert result["failure"]["code"] == "circle"
    where = "%s:%s" % (os.uname().nodename, server.home)
    assert "hq:/x -> %s/link (the same as %s/here) -> hq:/x" % (where, where) in result["msg"]


def test_a_circle_of_what_only_adds_is_a_warning(server):
    server.apply(**job(server, name="there", settings={"max_change": 0}))
    back = job(server, settings={"direction": "from_partner", "max_change": 0})
    for run in (server.check, server.apply):
        warnings = run(**back)["warnings"]
        assert warnings[0].startswith("elements[0]: a circle: hq:")
        assert len(warnings) == 2
    assert server.apply(**back)["warnings"] == [NOT_PAIRED], "a job that stays as it is closes no circle"


def test_the_name_of_a_pairing_hides_no_circle(server):
    pairings = server.config / "serversync" / "pairings"
    pairings.mkdir()
    (pairings / "main.json").write_text('{"name": "main", "host": "hq"}')
    server.apply(**job(server, name="there", partner={"host": "main"}))
    result = server.check(**job(server, settings={"direction": "from_partner"}))
    assert result["failure"]["code"] == "circle"


def test_a_target_of_another_job_is_refused(server):
    server.apply(**job(server, name="other"))
    result = server.check(**job(server))
    assert result["failure"]["code"] == "contended"
    assert result["msg"].startswith(
        "elements[0]: one target of several elements: hq:%s, by jobs demo, other. A target" % server.here
    )
    # one that is removed is no more
    server.apply(name="other", state="absent")
    four_steps(server, **job(server))


def test_a_damaged_neighbour_is_a_warning(server):
    server.apply(**job(server, name="other"))
    other = server.document.parent / "other.json"
    whole = other.read_text()
    texts = ["{", "[]", '{"elements": []}', whole.replace('"path"', '"pth"')]
    texts += [
        whole.replace('"exclude": []', '"exclude": [["a"]]'),
        whole.replace('"at": [', '"every": "soon", "at": ['),
    ]
    assert whole not in texts
    for number, text in enumerate([*texts, "\xff"]):
        other.write_bytes(text.encode("latin-1"))
        for run in (server.check, server.apply):
            assert run(settings={"exclude": [str(number)]}, **job(server))["warnings"] == [
                "%s: is damaged; it is not looked at for circular connections" % other,
                NOT_PAIRED,
            ]


# --- documentation ---------------------------------------------------------------------------------------------

MODULE = importlib.import_module("ansible_collections.serversync.core.plugins.modules.sync_job")


def templated(value, variables):
    """A value of a task as Ansible hands it to the module; an omitted option is left out."""
    if isinstance(value, dict):
        parts = {name: templated(one, variables) for name, one in value.items()}
        return {name: one for name, one in parts.items() if one is not OMIT}
    if isinstance(value, list):
        return [templated(one, variables) for one in value]
    if isinstance(value, str) and "{{" in value:
        environment = NativeEnvironment()
        environment.filters["combine"] = lambda one, other: dict(one, **other)
        return environment.from_string(value).render(variables)
    return value


# Variables of examples that are not theirs.
UNKNOWN = {
    "vault_nas_password": "s3cret",
    "nas_host_key": [],
    "vault_ops_chat": "msteams://a/b/c",
    "vault_ops_telephone": "pover://u@t",
}


def test_the_examples_are_valid_declarations():
    tasks = yaml.safe_load(MODULE.EXAMPLES)
    existing = _job.declare({"name": "x", "partner": {"host": "hq"}, "elements": [{"path": "/a"}]})[0]
    declared = []
    for task in tasks:
        for item in task.get("loop", [None]):
            variables = dict(task.get("vars", {}), item=item, omit=OMIT, **UNKNOWN)
            parameters = templated(task["serversync.core.sync_job"], variables)
            job, problems = _job.declare(parameters, None if "partner" in parameters else existing)
            assert [str(problem) for problem in problems] == [], task["name"]
            declared.append(job)
    names = [job["name"] for job in declared]
    assert names[1:4] == ["line1-programs", "line2-programs", "line3-programs"]
    back = declared[names.index("reports-back")]
    assert (back["settings"]["direction"], back["settings"]["exclude"]) == ("from_partner", ["*.tmp"])
    assert (declared[names.index("recipes-hourly")]["schedule"]["every"], back["schedule"]) == ("1h", None)
    first = MODULE.EXAMPLES.strip().split("\n\n")[0]
    assert len(first.splitlines()) <= 15


def test_the_return_values_are_documented():
    returned = yaml.safe_load(MODULE.RETURN)
    assert set(returned) == {"job", "diff", "commands", "failure"}
    job_sample = returned["job"]["sample"]
    assert _job.normalise(job_sample) == (job_sample, [])


def test_options_named_in_errors_exist():
    """Every dotted name in the error texts is an option."""
    names = set()

    def walk(field, path):
        for part in field.parts or (field.element.parts if field.element else ()):
            where = "%s.%s" % (path, part.name) if path else part.name
            names.add(where)
            walk(part, where + ("[]" if part.element else ""))

    walk(_job.JOB, "")
    sources = [Path(_job.__file__).with_name(name + ".py") for name in ("_job", "_copies", "_coupled", "_host_key")]
    tops = "|".join(part.name for part in _job.JOB.parts)
    for node in (one for source in sources for one in ast.walk(ast.parse(source.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for word in re.findall(r"\b(?:%s)\.[a-z_]+" % tops, node.value):
                assert word in names, word


def test_a_secret_that_somebody_wrote_into_a_document_is_in_no_diff(server):
    server.apply(**job(server))
    whole = written(server)
    texts = [json.dumps(dict(whole, account={"user": "nas", "password": "plant-ed"}))]
    texts += [json.dumps(dict(whole, notification=dict(whole["notification"], urls=["json://plant-ed"])))]
    texts += [json.dumps(dict(whole, notification={"urls": [7, {"plant-ed": "plant-ed"}]})), '{"a": "plant-ed"', "[7]"]
    for text in texts:
        for how in ({"state": "absent"}, job(server, omitted="reset")):
            server.document.write_text(text)
            result = server.check(**how)
            assert "plant-ed" not in json.dumps(result), result
            if how.get("state"):
                assert result["diff"][0]["before"] == "(a document that may have a secret in it)\n"


def test_what_a_kill_has_left_beside_the_files_goes(server):
    """As atomic_move() leaves it where the module's temporary files are in another file system."""
    parameters = job(
        server, account={"user": "nas", "password": "plant-ed"}, partner={"host": "hq", "connection": "sftp"}
    )
    server.apply(**parameters)
    kept = server.document.parent.parent / "credentials" / "demo"
    drop_in = server.units / "serversync@demo.service.d"
    for directory in (kept, drop_in):
        (directory / ".ansible_tmpxyzaccount.password").write_text("plant-ed")
    gone = four_steps(server, **parameters)
    assert [entry["before"] for entry in gone["diff"]] == ["(left by a task that was killed)\n"] * 2
    assert (os.listdir(str(kept)), os.listdir(str(drop_in))) == (["account.password"], ["job.conf"])
    for directory in (kept, drop_in):
        (directory / ".ansible_tmpxyz").write_text("plant-ed")
    four_steps(server, state="absent")
    assert not kept.exists()
    assert not drop_in.exists()


def test_a_rename_that_was_cut_off_is_forgotten_by_who_does_not_ask_for_it(server):
    server.apply(**job(server))
    note = server.document.with_name(".demo.renaming")
    note.write_text("old\n")
    forgotten = four_steps(server, **job(server))
    assert forgotten["diff"][0]["before"] == "old\n"
    assert not note.exists()
    note.write_text("old\n")
    four_steps(server, state="absent")
    assert not note.exists()


def test_a_job_goes_by_its_own_name(server):
    message = "previous_name: does not go with state: absent; remove the job by the name that it has, or leave this out"
    refused(server, message, "conflict", "previous_name", state="absent", previous_name="old")


@pytest.mark.parametrize("what", ["archives", "plans"])
def test_what_is_known_of_a_job_that_never_ran_goes_with_its_name(server, what):
    server.apply(**job(server))
    state = server.home / "state" / "serversync" / what / "demo"
    state.mkdir(parents=True)
    runner = server.home / ".local" / "bin" / "serversync"
    runner.parent.mkdir(parents=True, exist_ok=True)
    runner.write_text('#!/bin/sh\nrm -r "%s"\n' % state)
    runner.chmod(0o755)
    server.check(name="renamed", previous_name="demo")
    assert state.exists()
    server.apply(name="renamed", previous_name="demo")
    assert not state.exists()
