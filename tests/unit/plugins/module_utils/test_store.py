# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a job: where they are, and what is read."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _store

SYSTEM = _store.layout("system", "demo", {"HOME": "/root", "XDG_CONFIG_HOME": "/x"})


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
    assert units(place._replace(name="a")) == _store.Units(enabled=True, active=True)
    assert units(place._replace(name="b")) == _store.Units(failed=True)
    assert units(place._replace(name="c")) == _store.Units(running=True)
    assert units(place._replace(name="d")) == _store.Units()
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


# --- several jobs at once --------------------------------------------------------------------------------------


def elsewhere(name):
    return _store.layout("system", name, {"HOME": "/root"})
