# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What carrying a plan out makes beside the job's files."""

from __future__ import annotations

import errno
import os

from ansible_collections.serversync.core.plugins.module_utils import _carrying, _store

GID = 4242


def test_directories_are_made_closed_where_the_document_is(tmp_path):
    place = _store.layout("user", "demo", {"XDG_CONFIG_HOME": str(tmp_path / "config")})
    before = os.umask(0o077)
    try:
        _carrying.make_directory(os.path.dirname(place.document), place, None)
        _carrying.make_directory(os.path.dirname(place.drop_in), place, None)
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
    _carrying.make_directory(place.config, place, GID)
    assert calls == [("setegid", GID), "serversync", ("setegid", os.getegid()), (0, GID)]
    # what others have to read is root's as it is
    _carrying.make_directory(os.path.dirname(place.drop_in), place, GID)
    assert calls[4:] == ["systemd", "user", "serversync@demo.service.d"]


def test_what_is_not_on_the_disk_in_the_end_is_told(tmp_path, monkeypatch):
    """After the last step, of which nothing is left to be named."""
    place = _store.layout("user", "demo", {"XDG_CONFIG_HOME": str(tmp_path)})
    told = []

    class Module:
        def fail_store(self, error, plan, number):
            told.append((str(error), number))

    def fails(paths):
        if list(paths):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(_carrying, "on_disk", fails)
    (tmp_path / "left").touch()
    plan = _store.Plan([], [], [_store.Step("remove", str(tmp_path / "left"))], [])
    _carrying.carry_out(Module(), plan, place, os.geteuid(), None)
    text = "cannot be changed (Input/output error); repair that and apply the job again"
    assert told == [("%s: %s" % (place.config, text), 1)]
