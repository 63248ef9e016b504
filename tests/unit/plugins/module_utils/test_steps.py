# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way from what is of a job to what shall be, and that there is none where all is."""

from __future__ import annotations

import os

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _job, _steps, _store
from hypothesis import given, settings
from hypothesis import strategies as st

SYSTEM = _store.layout("system", "demo", {"HOME": "/root", "XDG_CONFIG_HOME": "/x"})

GID = 4242


def job(**more):
    declaration = {"name": "demo", "partner": {"host": "hq"}, "elements": [{"path": "/srv/a"}]}
    declaration.update(more)
    made, problems = _job.declare(declaration)
    assert problems == []
    return made


TIMED = job(schedule={"at": "02:30"})


def files_of(made, **changes):
    """The files of a job as they are after it was applied."""
    wanted = _store.wanted_files(SYSTEM, made, _job.document_text(made), GID)
    files = {
        path: _store.FileState() if file.text is None else _store.FileState(file.text.encode(), file.mode, 0, file.gid)
        for path, file in wanted.items()
    }
    files.update(changes)
    return files


ON = _store.Units(enabled=True, active=True)

OFF = _store.Units()


def found(files, units=OFF, stamp=False, wanted=False, directory=True, neighbours=()):
    credentials = any(file.data is not None for path, file in files.items() if path.startswith(SYSTEM.credentials))
    return _store.Found(files, units, stamp, False, wanted, directory, neighbours, credentials)


def planned(place, there, wanted):
    """The plan; that there is none to be made is known without."""
    plan = _steps.plan(place, there, wanted, 0)
    present = wanted[place.document].text is not None
    assert _store.settled(place, there, wanted, 0) == (present and not (plan.changed or plan.diff))
    return plan


def way(there, made):
    text = _job.document_text(made) if made else ""
    return planned(SYSTEM, there, _store.wanted_files(SYSTEM, made, text, GID))


def steps(plan):
    return [" ".join(step.argv) if step.do == "run" else step.do + " " + step.path for step in plan.steps]


NOTHING = found(dict.fromkeys((SYSTEM.document, SYSTEM.drop_in, SYSTEM.timer), _store.FileState()), directory=False)

TIMER = "serversync@demo.timer"

SERVICE = "serversync@demo.service"


def test_a_new_job():
    plan = way(NOTHING, TIMED)
    assert steps(plan) == [
        "write " + SYSTEM.document,
        "write " + SYSTEM.drop_in,
        "write " + SYSTEM.timer,
        "systemctl daemon-reload",
        "systemctl enable " + TIMER,
        "systemctl start " + TIMER,
    ]
    assert [entry["after_header"] for entry in plan.diff] == [
        SYSTEM.document,
        SYSTEM.drop_in,
        SYSTEM.timer,
        TIMER + " (systemd)",
    ]
    assert {entry["before_header"] for entry in plan.diff[:3]} == {"/dev/null"}
    assert [step.file.mode for step in plan.steps[:3]] == [0o640, 0o644, 0o644]
    assert [step.file.gid for step in plan.steps[:3]] == [GID, 0, 0]


def test_nothing_to_do():
    plan = way(found(files_of(TIMED), ON, stamp=True, wanted=True), TIMED)
    assert (plan.changed, plan.diff, plan.steps) == (False, [], [])
    plan = way(found(files_of(job())), job())
    assert (plan.changed, plan.diff, plan.steps) == (False, [], [])
    plan = way(NOTHING, None)
    assert (plan.changed, plan.diff, plan.steps) == (False, [], [])


def test_another_schedule_fires_no_run():
    plan = way(found(files_of(TIMED), ON, stamp=True, wanted=True), job(schedule={"at": "03:00"}))
    assert steps(plan) == [
        "systemctl stop " + TIMER,
        "remove " + SYSTEM.stamp,
        "write " + SYSTEM.document,
        "write " + SYSTEM.timer,
        "systemctl daemon-reload",
        "systemctl start " + TIMER,
    ]


def test_a_detail_that_concerns_no_unit_reloads_nothing():
    plan = way(found(files_of(TIMED), ON, stamp=True, wanted=True), dict(TIMED, on_error={"retries": 1, "delay": "1m"}))
    assert steps(plan) == ["write " + SYSTEM.document]


def test_a_pause_and_its_end():
    paused = dict(TIMED, enabled=False)
    plan = way(found(files_of(TIMED), ON, stamp=True, wanted=True), paused)
    assert steps(plan) == [
        "systemctl disable --now " + TIMER,
        "remove " + SYSTEM.wanted,
        "remove " + SYSTEM.stamp,
        "write " + SYSTEM.document,
        "remove " + SYSTEM.timer,
        "systemctl daemon-reload",
    ]
    plan = way(found(files_of(paused)), TIMED)
    assert steps(plan)[-3:] == ["systemctl daemon-reload", "systemctl enable " + TIMER, "systemctl start " + TIMER]


def test_removal_of_a_running_job():
    units = _store.Units(enabled=True, active=True, running=True)
    plan = way(found(files_of(TIMED), units, stamp=True, wanted=True), None)
    assert steps(plan) == [
        "systemctl disable --now " + TIMER,
        "remove " + SYSTEM.wanted,
        "remove " + SYSTEM.stamp,
        "systemctl stop " + SERVICE,
        "remove " + SYSTEM.timer,
        "remove " + SYSTEM.drop_in,
        "remove " + SYSTEM.document,
        "rmdir " + os.path.dirname(SYSTEM.drop_in),
        "systemctl daemon-reload",
        "systemctl reset-failed serversync@demo.servic[e]",
    ]


def test_removal_leaves_the_files_of_others():
    plan = way(found(files_of(job()), neighbours=("override.conf",)), None)
    assert not any(step.startswith("rmdir") for step in steps(plan))


def test_removal_clears_a_failed_service():
    plan = way(found(files_of(job()), _store.Units(failed=True)), None)
    assert steps(plan)[-1] == "systemctl reset-failed serversync@demo.servic[e]"


def test_leftovers_of_a_removal_that_was_cut_off():
    empty = NOTHING.files
    plan = way(found(empty, stamp=True, wanted=True), None)
    assert steps(plan) == [
        "remove " + SYSTEM.wanted,
        "remove " + SYSTEM.stamp,
        "rmdir " + os.path.dirname(SYSTEM.drop_in),
    ]
    assert len(plan.diff) == 3
    assert steps(way(found(empty, _store.Units(active=True), directory=False), None)) == ["systemctl stop " + TIMER]


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (_store.Units(enabled=False, active=True), ["systemctl enable " + TIMER]),
        (_store.Units(enabled=True, active=False), ["remove " + SYSTEM.stamp, "systemctl start " + TIMER]),
        (_store.Units(enabled=True, active=True, stale=True), ["systemctl daemon-reload"]),
    ],
)
def test_a_drifted_timer_is_repaired(units, expected):
    plan = way(found(files_of(TIMED), units, stamp=True), TIMED)
    assert steps(plan) == expected
    assert plan.changed
    assert len(plan.diff) == 1


@pytest.mark.parametrize(
    ("state", "before", "after"),
    [
        ({"mode": 0o666}, "mode: '0666'\nowner: 0\ngroup: 4242\n", "mode: '0640'\nowner: 0\ngroup: 4242\n"),
        ({"uid": 9}, "mode: '0640'\nowner: 9\ngroup: 4242\n", "mode: '0640'\nowner: 0\ngroup: 4242\n"),
        ({"gid": 9}, "mode: '0640'\nowner: 0\ngroup: 9\n", "mode: '0640'\nowner: 0\ngroup: 4242\n"),
    ],
)
def test_drifted_owner_and_mode_are_repaired(state, before, after):
    files = files_of(job())
    files[SYSTEM.document] = files[SYSTEM.document]._replace(**state)
    plan = way(found(files), job())
    header = SYSTEM.document + " (owner and mode)"
    assert plan.diff == [{"before": before, "after": after, "before_header": header, "after_header": header}]
    assert steps(plan) == ["write " + SYSTEM.document]


def test_a_link_is_replaced_by_the_file():
    files = files_of(job())
    files[SYSTEM.drop_in] = files[SYSTEM.drop_in]._replace(regular=False, data=b"")
    plan = way(found(files), job())
    assert steps(plan) == ["write " + SYSTEM.drop_in, "systemctl daemon-reload"]


def test_without_systemd_nothing_is_called():
    there = found(files_of(TIMED), None, wanted=True, stamp=True)
    assert not way(there, job()).commands
    assert not way(there, None).commands
    assert "remove " + SYSTEM.wanted in steps(way(there, None))


def elsewhere(name):
    return _store.layout("system", name, {"HOME": "/root"})


def way_of(name, there, made):
    place = elsewhere(name)
    wanted = _store.wanted_files(place, made, _job.document_text(made) if made else "", GID)
    files = {path: there.get(path, _store.FileState()) for path in wanted}
    units = ON if there else OFF
    return planned(place, found(files, units, stamp=bool(there), wanted=bool(there)), wanted)


def applied(name, made):
    wanted = _store.wanted_files(elsewhere(name), made, _job.document_text(made), GID)
    there = {path: file for path, file in wanted.items() if not file.secret or file.text}
    return {path: _store.FileState((file.text or "").encode(), file.mode, 0, file.gid) for path, file in there.items()}


def test_several_jobs_are_one_way_with_one_reload():
    nightly = {"schedule": {"at": "02:30"}}
    a, b, c = (job(name=name, **nightly) for name in "abc")
    later = job(name="b", schedule={"at": "03:00"})
    plans = [way_of("a", {}, a), way_of("b", applied("b", b), later), way_of("c", applied("c", c), None)]
    merged = _steps.merge(plans, ["systemctl"], False)
    assert merged.diff == [entry for one in plans for entry in one.diff]
    assert merged.files == [step for one in plans for step in one.files]
    assert steps(merged) == [
        "systemctl stop serversync@b.timer",
        "systemctl disable --now serversync@c.timer",
        "remove " + elsewhere("b").stamp,
        "remove " + elsewhere("c").wanted,
        "remove " + elsewhere("c").stamp,
        *(step.do + " " + step.path for step in merged.files),
        "systemctl enable --no-reload serversync@a.timer",
        "systemctl daemon-reload",
        "systemctl start serversync@a.timer serversync@b.timer",
    ]


def test_several_jobs_and_nothing_to_do():
    nightly = job(name="a", schedule={"at": "02:30"})
    plan = way_of("a", applied("a", nightly), nightly)
    assert _steps.merge([plan, plan], ["systemctl"], False) == _store.Plan([], [], [], [])
    assert _steps.merge([], ["systemctl"], False) == _store.Plan([], [], [], [])


def test_a_reload_that_is_due_is_done_and_told():
    merged = _steps.merge([], ["systemctl", "--user"], True)
    assert steps(merged) == ["systemctl --user daemon-reload"]
    assert merged.diff == [
        {
            "before": "reloaded: false\n",
            "after": "reloaded: true\n",
            "before_header": "systemd",
            "after_header": "systemd",
        }
    ]
    assert merged.changed


# --- passwords -------------------------------------------------------------------------------------------------

BY_PASSWORD = job(partner={"host": "hq", "connection": "sftp"}, account={"password": "s3cret"})

BY_KEY = job(partner={"host": "hq", "connection": "sftp"})

PLAIN = SYSTEM.credential("account.password")

ENCRYPTED = SYSTEM.credential("account.password", encrypted=True)


def kept(password, encrypted=False):
    """The files of a job whose password is kept, as they are compared."""
    given = {"account.password": (password, encrypted)}
    wanted = _store.wanted_files(SYSTEM, BY_PASSWORD, _job.document_text(BY_PASSWORD), GID, given)
    return {
        path: _store.FileState() if file.text is None else _store.FileState(file.text.encode(), file.mode, 0, file.gid)
        for path, file in wanted.items()
    }


def to_password(there, password, encrypted=False):
    given = {"account.password": (password, encrypted)}
    wanted = _store.wanted_files(SYSTEM, BY_PASSWORD, _job.document_text(BY_PASSWORD), GID, given)
    return planned(SYSTEM, found(there), wanted)


def test_where_a_password_is_and_who_hands_it_over():
    assert PLAIN == "/etc/serversync/credentials/demo/account.password"
    plain = kept("s3cret")
    assert (plain[PLAIN].mode, plain[PLAIN].gid) == (0o600, 0)
    assert b"\nLoadCredential=account.password:%s\n" % PLAIN.encode() in plain[SYSTEM.drop_in].data
    assert b"s3cret" not in plain[SYSTEM.document].data + plain[SYSTEM.drop_in].data
    encrypted = kept("s3cret", True)
    assert encrypted[PLAIN].data is None
    line = b"\nLoadCredentialEncrypted=account.password:%s.cred\n" % PLAIN.encode()
    assert line in encrypted[SYSTEM.drop_in].data
    user = SYSTEM._replace(scope="user", config="/home/u/.config/serversync")
    files = _store.wanted_files(
        user, dict(BY_PASSWORD, scope="user"), "", None, {"account.password": ("s3cret", False)}
    )
    kept_there = files[user.credential("account.password")]
    assert (kept_there.mode, kept_there.gid) == (0o600, None)
    assert "Credential" not in files[user.drop_in].text


def test_a_password_is_there_before_the_document_that_says_so_and_goes_after_who_asks_for_it():
    new = to_password(files_of(BY_KEY), "s3cret")
    assert steps(new)[:3] == ["write " + path for path in (PLAIN, SYSTEM.document, SYSTEM.drop_in)]
    gone = way(found(kept("s3cret", True)), BY_KEY)
    assert steps(gone)[:4] == [
        "write " + SYSTEM.document,
        "write " + SYSTEM.drop_in,
        "remove " + ENCRYPTED,
        "rmdir " + SYSTEM.credentials,
    ]
    removed = way(found(kept("s3cret")), None)
    # while the document is there, the job can be seen and removed again
    assert steps(removed)[:4] == [
        "remove " + SYSTEM.drop_in,
        "remove " + PLAIN,
        "rmdir " + SYSTEM.credentials,
        "remove " + SYSTEM.document,
    ]
    encrypted = to_password(kept("s3cret"), "another", True)
    assert steps(encrypted)[:3] == ["write " + ENCRYPTED, "write " + SYSTEM.drop_in, "remove " + PLAIN]


def test_every_secret_is_a_credential_of_its_own():
    both = dict(BY_PASSWORD, notification=dict(BY_PASSWORD["notification"], urls=[_job.KEPT]))
    secrets = {"account.password": ("s3cret", True), "notification.urls": ("json://s3cret\njson://b", False)}
    files = _store.wanted_files(SYSTEM, both, "", GID, secrets)
    urls = SYSTEM.credential("notification.urls")
    assert (files[urls].text, files[urls].mode, files[urls].encrypted) == ("json://s3cret\njson://b", 0o600, "")
    assert files[ENCRYPTED].encrypted == "account.password"
    assert "\nLoadCredentialEncrypted=account.password:%s\nLoadCredential=notification.urls:%s\n" % (
        ENCRYPTED,
        urls,
    ) in (files[SYSTEM.drop_in].text)
    # one that goes leaves the directory to the other
    there = {
        path: _store.FileState() if file.text is None else _store.FileState(file.text.encode(), file.mode, 0, file.gid)
        for path, file in files.items()
    }
    assert steps(to_password(there, "s3cret", True))[-3:] == [
        "write " + SYSTEM.drop_in,
        "remove " + urls,
        "systemctl daemon-reload",
    ]


def test_a_diff_tells_that_a_password_changes_and_not_what():
    for there, password in ((files_of(BY_KEY), "s3cret"), (kept("0ther"), "s3cret"), (kept("0ther", True), "s3cret")):
        plan = to_password(there, password)
        [entry] = [one for one in plan.diff if one["after_header"] == PLAIN]
        assert entry["after"] in ("(a secret)\n", "(another secret)\n")
        assert not {"s3cret", "0ther"} & set(str(plan.diff).split("\n"))
        assert "s3cret" not in str(plan.diff)
        assert "0ther" not in str(plan.diff)
    assert to_password(kept("s3cret"), "s3cret").diff == []
    assert way(found(kept("s3cret")), None).diff[1]["before"] == "(a secret)\n"


UNITS = [None, OFF, ON, *(ON._replace(**{name: not getattr(ON, name)}) for name in ON._fields)]
#: What may be otherwise of a job that is as it shall be: of a file, or of all else.
DRIFTS = [{"data": None}, {"data": b"x"}, {"mode": 0}, {"uid": 1}, {"gid": 1}, {"regular": False}]
STRAYS = [("litter", ("/x",)), *((name, on) for name in ("stamp", "wanted", "credentials") for on in (True, False))]
STRAYS += [("units", one) for one in UNITS]


@settings(max_examples=400)
@given(st.data())
def test_what_is_settled_has_no_way_and_nothing_else(data):
    made = data.draw(st.sampled_from([TIMED, job(), dict(TIMED, enabled=False), BY_PASSWORD]))
    timed = made is TIMED
    secrets = {"account.password": ("s3cret", False)} if made is BY_PASSWORD else {}
    wanted = _store.wanted_files(SYSTEM, made, _job.document_text(made), GID, secrets)
    files = {
        path: _store.FileState() if file.text is None else _store.FileState(file.text.encode(), file.mode, 0, file.gid)
        for path, file in wanted.items()
    }
    there = found(files, ON if timed else OFF, stamp=timed, wanted=timed)
    kinds = st.sampled_from([(path, drift) for path in files for drift in DRIFTS]) | st.sampled_from(STRAYS)
    for what, drift in data.draw(st.lists(kinds, max_size=2)):
        if isinstance(drift, dict):
            files[what] = files[what]._replace(**drift)
        else:
            there = there._replace(**{what: drift})
    planned(SYSTEM, there, wanted)
