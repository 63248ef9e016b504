# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a job: where they are, what is read, and the way from what is to what shall be."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _job, _store

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


def way(there, made):
    text = _job.document_text(made) if made else ""
    return _store.plan(SYSTEM, there, _store.wanted_files(SYSTEM, made, text, GID), 0)


def steps(plan):
    return [" ".join(step.argv) if step.do == "run" else step.do + " " + step.path for step in plan.steps]


NOTHING = found(dict.fromkeys((SYSTEM.document, SYSTEM.drop_in, SYSTEM.timer), _store.FileState()), directory=False)
TIMER = "serversync@demo.timer"
SERVICE = "serversync@demo.service"


def test_layout_system():
    assert SYSTEM.document == "/etc/serversync/jobs/demo.json"
    assert SYSTEM.runner == "/etc/serversync/runner.json"
    assert SYSTEM.pairings == "/etc/serversync/pairings"
    assert SYSTEM.timer == "/etc/systemd/system/serversync@demo.timer"
    assert SYSTEM.drop_in == "/etc/systemd/system/serversync@demo.service.d/job.conf"
    assert SYSTEM.stamp == "/var/lib/systemd/timers/stamp-serversync@demo.timer"
    assert SYSTEM.systemctl == ["systemctl"]


def test_layout_user():
    place = _store.layout("user", "demo", {"HOME": "/home/u"})
    assert place.document == "/home/u/.config/serversync/jobs/demo.json"
    assert place.timer == "/home/u/.config/systemd/user/serversync@demo.timer"
    assert place.stamp == "/home/u/.local/share/systemd/timers/stamp-serversync@demo.timer"
    assert place.systemctl == ["systemctl", "--user"]
    place = _store.layout("user", "demo", {"HOME": "/home/u", "XDG_CONFIG_HOME": "/c", "XDG_DATA_HOME": "relative"})
    assert place.document == "/c/serversync/jobs/demo.json"
    assert place.stamp.startswith("/home/u/.local/share/")


def test_the_user_manager_is_found_without_a_session(tmp_path):
    assert _store.manager_environment("user", {}, 7) == {"XDG_RUNTIME_DIR": "/run/user/7"}
    assert _store.manager_environment("user", {"XDG_RUNTIME_DIR": "/r"}, 7) == {}
    assert _store.manager_environment("system", {}, 0) == {}
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert not _store.systemd_runs("user", environ, 7)
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd" / "private").touch()
    assert _store.systemd_runs("user", environ, 7)


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


def test_what_systemctl_shows():
    out = (
        "Id=serversync@demo.timer\nLoadState=loaded\nActiveState=active\nUnitFileState=enabled\nNeedDaemonReload=no\n"
        "\n"
        "Id=serversync@demo.service\nLoadState=loaded\nActiveState=activating\nUnitFileState=static\nNeedDaemonReload=yes\n"
    )
    calls = []

    def run(argv):
        calls.append(argv)
        return 0, out, ""

    units = _store.read_units(SYSTEM, run)
    assert units == _store.Units(enabled=True, active=True, running=True, failed=False, stale=True)
    assert calls == [
        [
            "systemctl",
            "show",
            "--property=Id,LoadState,ActiveState,UnitFileState,NeedDaemonReload",
            "serversync@demo.timer",
            "serversync@demo.service",
        ]
    ]


def test_a_failed_command_says_which_and_why():
    with pytest.raises(_store.StoreError) as raised:
        _store.read_units(SYSTEM, lambda argv: (1, "", "Failed to connect to bus\n"))
    assert str(raised.value) == (
        "systemctl show --property=Id,LoadState,ActiveState,UnitFileState,NeedDaemonReload "
        "serversync@demo.timer serversync@demo.service: failed with exit code 1: Failed to connect to bus; "
        "repair that and apply the job again"
    )
    assert raised.value.code == "command_failed"


# --- what is read ----------------------------------------------------------------------------------------------


def test_reading_files(tmp_path):
    assert _store.read_file(str(tmp_path / "none")) == _store.FileState()
    assert _store.read_file(str(tmp_path / "none" / "below")) == _store.FileState()
    path = tmp_path / "file"
    path.write_bytes(b"\xff")
    path.chmod(0o640)
    state = _store.read_file(str(path))
    assert (state.data, state.mode, state.regular) == (b"\xff", 0o640, True)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert not _store.read_file(str(link)).regular
    with pytest.raises(_store.StoreError, match="is a directory where a file belongs; remove it"):
        _store.read_file(str(tmp_path))


@pytest.mark.parametrize("odd", [os.mkfifo, lambda path: os.symlink(__file__, path)])
def test_what_is_exchanged_before_it_is_opened_holds_nobody_up(tmp_path, monkeypatch, odd):
    path = str(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"x")
    before = os.lstat(path)
    os.unlink(path)
    odd(path)
    monkeypatch.setattr(_store.os, "lstat", lambda _path: before)
    try:
        assert not _store.read_file(path).regular
    except _store.StoreError as error:
        assert "cannot be read" in str(error)


def test_a_file_of_any_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "LARGEST", 10)
    (tmp_path / "file").write_bytes(b"x" * 10)
    assert _store.read_file(str(tmp_path / "file")).data == b"x" * 10
    (tmp_path / "file").write_bytes(b"x" * 11)
    with pytest.raises(_store.StoreError, match="is larger than"):
        _store.read_file(str(tmp_path / "file"))


def test_what_is_the_runners_own():
    assert list(SYSTEM.own) == ["/etc/serversync", "/var/lib/serversync", "/usr/lib/serversync"]
    user = _store.layout("user", "demo", {"HOME": "/home/a", "XDG_STATE_HOME": "/s/./state/"})
    assert list(user.own) == ["/home/a/.config/serversync", "/s/state/serversync", "/home/a/.local/share/serversync"]


def test_reading_pairings(tmp_path):
    place = SYSTEM._replace(config=str(tmp_path))
    assert _store.read_pairings(place) == []
    pairings = tmp_path / "pairings"
    pairings.mkdir()
    (pairings / "P.json").write_text(json.dumps({"name": "P", "host": "hq", "alias": "a"}))
    assert _store.read_pairings(place) == [{"name": "P", "host": "hq", "keys": []}]
    (pairings / "P.known_hosts").write_text("# by the role\nserversync-P ssh-ed25519 AAAA comment\n\n@revoked * x y\n")
    assert _store.read_pairings(place) == [{"name": "P", "host": "hq", "keys": ["ssh-ed25519 AAAA"]}]
    (pairings / "P.json").write_text("{")
    with pytest.raises(_store.StoreError, match=r"P\.json: is damaged; apply the role serversync\.core\.runner again"):
        _store.read_pairings(place)


def test_time_zones(tmp_path):
    for zone in ("Europe/Berlin", "UTC", "America/Argentina/Buenos_Aires", "posix/Nowhere"):
        path = tmp_path / zone
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"TZif2")
    (tmp_path / "zone.tab").write_text("no zone")
    where = str(tmp_path)
    assert _store.zone_text("Europe/Berlin", where) is None
    assert _store.zone_text("Europe/Berlin", where + "/none") is None
    # which has no file of it
    assert _store.zone_text("UTC", where + "/Europe") is None
    for zone, hint in (
        ("Europe/Berln", "did you mean Europe/Berlin?"),
        ("europe/berlin", "did you mean Europe/Berlin?"),
        ("Berlin", "did you mean Europe/Berlin?"),
        ("Buenos_Aires", "did you mean America/Argentina/Buenos_Aires?"),
        ("Mars/Olympus", "write its name, e.g. Europe/Berlin or UTC"),
        ("zone.tab", "write its name, e.g. Europe/Berlin or UTC"),
        ("Europe", None),
    ):
        text = _store.zone_text(zone, where)
        assert text.startswith("%r is not a time zone of this server; " % zone)
        assert hint is None or text.endswith(hint)


def test_directories_are_made_closed_where_the_document_is(tmp_path):
    place = _store.layout("user", "demo", {"XDG_CONFIG_HOME": str(tmp_path / "config")})
    before = os.umask(0o077)
    try:
        _store.make_directory(os.path.dirname(place.document), place, None)
        _store.make_directory(os.path.dirname(place.drop_in), place, None)
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o7777 for path in tmp_path.rglob("*")}
    config = tmp_path / "config"
    assert modes[config / "serversync" / "jobs"] == modes[config / "serversync"] == 0o700
    assert modes[config / "systemd" / "user"] == 0o755


def test_a_directory_has_its_group_from_its_first_moment(tmp_path, monkeypatch):
    place = _store.layout("user", "demo", {"XDG_CONFIG_HOME": str(tmp_path)})._replace(scope="system")
    calls, mkdir = [], os.mkdir
    monkeypatch.setattr(os, "setegid", lambda gid: calls.append(("setegid", gid)))
    monkeypatch.setattr(os, "mkdir", lambda path, mode: (calls.append(os.path.basename(path)), mkdir(path, mode)))
    monkeypatch.setattr(os, "chown", lambda *words: calls.append(words[1:]))
    _store.make_directory(place.config, place, GID)
    assert calls == [("setegid", GID), "serversync", ("setegid", os.getegid()), (0, GID)]
    # what others have to read is root's as it is
    _store.make_directory(os.path.dirname(place.drop_in), place, GID)
    assert calls[4:] == ["systemd", "user", "serversync@demo.service.d"]


# --- several jobs at once --------------------------------------------------------------------------------------


def elsewhere(name):
    return _store.layout("system", name, {"HOME": "/root"})


def way_of(name, there, made):
    place = elsewhere(name)
    wanted = _store.wanted_files(place, made, _job.document_text(made) if made else "", GID)
    files = {path: there.get(path, _store.FileState()) for path in wanted}
    units = ON if there else OFF
    return _store.plan(place, found(files, units, stamp=bool(there), wanted=bool(there)), wanted, 0)


def applied(name, made):
    wanted = _store.wanted_files(elsewhere(name), made, _job.document_text(made), GID)
    there = {path: file for path, file in wanted.items() if not file.secret or file.text}
    return {path: _store.FileState((file.text or "").encode(), file.mode, 0, file.gid) for path, file in there.items()}


def test_several_jobs_are_one_way_with_one_reload():
    nightly = {"schedule": {"at": "02:30"}}
    a, b, c = (job(name=name, **nightly) for name in "abc")
    later = job(name="b", schedule={"at": "03:00"})
    plans = [way_of("a", {}, a), way_of("b", applied("b", b), later), way_of("c", applied("c", c), None)]
    merged = _store.merge(plans, ["systemctl"], False)
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
    assert _store.merge([plan, plan], ["systemctl"], False) == _store.Plan([], [], [], [])
    assert _store.merge([], ["systemctl"], False) == _store.Plan([], [], [], [])


def test_a_reload_that_is_due_is_done_and_told():
    merged = _store.merge([], ["systemctl", "--user"], True)
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


def test_the_units_of_all_jobs_by_one_call(tmp_path):
    place = _store.layout("user", "", {"HOME": str(tmp_path)})
    calls = []

    def run(argv):
        calls.append(list(argv))
        return (
            0,
            (
                "serversync@a.timer   loaded active   waiting Schedule of a job\n"
                "serversync@a.service loaded inactive dead    Synchronization job a: loaded active\n"
                "serversync@b.service loaded failed   failed  Synchronization job b\n"
                "serversync@c.service loaded activating start Synchronization job c\n"
            ),
            "",
        )

    units = _store.read_fleet(place, run)
    wanted = place._replace(name="a").wanted
    os.makedirs(os.path.dirname(wanted))
    os.symlink("/nowhere", wanted)
    assert units(place._replace(name="a")) == ON
    assert units(place._replace(name="b")) == _store.Units(failed=True)
    assert units(place._replace(name="c")) == _store.Units(running=True)
    assert units(place._replace(name="d")) == OFF
    assert len(calls) == 1
    with pytest.raises(_store.StoreError, match=r"list-units .*: failed with exit code 1: no bus; repair that"):
        _store.read_fleet(place, lambda _argv: (1, "", "no bus"))


def test_the_jobs_that_are_declared(tmp_path):
    place = _store.layout("user", "", {"HOME": str(tmp_path)})
    assert _store.declared_names(place) == []
    directory = tmp_path / ".config" / "serversync" / "jobs"
    directory.mkdir(parents=True)
    for name in ("b.json", "a.json", ".reload", "A.json", "x.json.bak", ".a.json"):
        (directory / name).touch()
    assert _store.declared_names(place) == ["a", "b"]


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
    return _store.plan(SYSTEM, found(there), wanted, 0)


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


def test_what_cannot_be_decrypted_is_no_password(tmp_path):
    place = SYSTEM._replace(config=str(tmp_path))
    os.makedirs(place.credentials)
    plain, encrypted = (place.credential("account.password", one) for one in (False, True))
    for path in (plain, encrypted):
        with open(path, "wb") as stream:
            stream.write(b"bl\xffob" if path == plain else b"blob")
    asked = []

    def run(code, out):
        return lambda argv: asked.append(argv) or (code, out, "")

    read = _store.read_credentials(place, run(0, "s3cret"))
    assert (read[encrypted].data, read[plain].data) == (b"s3cret", b"")
    assert asked == [["systemd-creds", "decrypt", "--name=account.password", encrypted, "-"]]
    for code, out in ((1, ""), (0, "\udcff")):
        assert _store.read_credentials(place, run(code, out))[encrypted].data == b""
