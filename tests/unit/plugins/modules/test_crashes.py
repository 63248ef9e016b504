# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A task that is killed at any of its steps leaves the old job or the new one, and the next task repairs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.declaring import Server

SECRETS = {"account.password": "plant-ed", "notification.urls": "json://plant-ed"}
SFTP = {"host": "nas", "connection": "sftp"}
NIGHTLY = {"at": "02:30"}


def job(name, **more):
    return {"name": name, "partner": {"host": "hq"}, "elements": [{"path": "/srv/%s" % name}], **more}


def secret(name, text="plant-ed", **more):
    account = {"user": "nas", "password": text}
    return job(name, partner=SFTP, account=account, notification={"urls": "json://" + text}, **more)


class Change(NamedTuple):
    """From jobs that are there to others: the tasks of both, and those that lead back, if that is tried."""

    before: list
    after: tuple
    back: list


def one(*before, to, back=None):
    """`back`: by default the same tasks again, and no job where there was none."""
    gone = [("sync_job", {"name": to["name"], "state": "absent"})]
    tasks = [("sync_job", dict(task, omitted="reset")) for task in before]
    return Change(tasks, ("sync_job", to), back or tasks or gone)


MANY = [job("a", schedule=NIGHTLY), secret("c", schedule=NIGHTLY), secret("gone", schedule=NIGHTLY)]
OTHERS = [job("a", schedule={"at": "03:00"}), secret("new", previous_name="c"), secret("d", schedule=NIGHTLY)]
CHANGES = {
    "create": one(to=secret("demo", schedule=NIGHTLY)),
    "edit": one(job("demo", schedule=NIGHTLY), to=job("demo", comment="new", on_error={"retries": 9})),
    "move the timer": one(job("demo", schedule=NIGHTLY), to=job("demo", schedule={"every": "1h"})),
    "pause": one(
        job("demo", schedule=NIGHTLY),
        to={"name": "demo", "enabled": False},
        back=[("sync_job", {"name": "demo", "enabled": True})],
    ),
    "a secret comes": one(job("demo", partner=SFTP), to=secret("demo")),
    "a secret changes": one(secret("demo"), to=secret("demo", "another")),
    "a secret goes": one(secret("demo"), to={"name": "demo", "account": {"password": None}, "notification": None}),
    "remove": one(secret("demo", schedule=NIGHTLY), to={"name": "demo", "state": "absent"}),
    "rename": one(
        secret("demo", schedule=NIGHTLY),
        to={"name": "new", "previous_name": "demo", "comment": "new"},
        back=[
            ("sync_job", {"name": "demo", "previous_name": "new", "comment": None}),
            ("sync_job", {"name": "new", "state": "absent"}),
        ],
    ),
    "many": Change([("sync_jobs", {"jobs": MANY})], ("sync_jobs", {"jobs": OTHERS, "purge": True}), []),
}


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "server")
    server.program = "import os; os.umask(0o077)\n" + server.program
    # what a run has left of every job
    server.published.parent.mkdir(parents=True)
    for name in ("demo", "a", "c", "gone"):
        server.published.with_name(name + ".json").write_text('{"runs": []}')
    # the runner moves what is its own
    server.launcher.parent.mkdir(parents=True)
    server.launcher.write_text(
        '#!/bin/sh\nexec mv "%s/${3#--from=}.json" "%s/$2.json"\n' % ((server.published.parent,) * 2)
    )
    server.launcher.chmod(0o755)
    return server


def declare(server, tasks):
    for module, parameters in tasks:
        result = server.turn(module).apply(**parameters)
        assert result.get("msg") is None


def state(server):
    """All that there is by its name, but directories that are no job's, which one that was removed may have left."""
    files, active = server.state()
    there = {
        (name, *one) for name, one in files.items() if one[1] is not None or "demo" in name or "credentials/" in name
    }
    loaded = {(unit, path, text) for unit, files in server.memory()["loaded"].items() for path, text in files.items()}
    return there | loaded | set(active.items())


def taken_back(server):
    """Without records, which are gone where a job was removed, and notes of renames to jobs that are not there."""
    names = {"." + name + ".renaming" for name in documents(server)}
    notes = {name for name, *_more in state(server) if name.endswith(".renaming") and Path(name).name not in names}
    return {one for one in state(server) if "/public/" not in one[0] and one[0] not in notes}


def documents(server):
    return {path.stem: path.read_bytes() for path in server.document.parent.glob("*.json")}


def assert_stands(server, old, new):
    """Every document is the old or the new one, and what it says is kept is there; nothing has ever other rights.

    Of a job that is being removed the document is what stays longest, so that it can be removed again.
    """
    found = documents(server)
    for name in {*old, *new, *found}:
        assert found.get(name) in (old.get(name), new.get(name)), name
    credentials = server.document.parent.parent / "credentials"
    for name, text in found.items():
        document = json.loads(text)
        for path in SECRETS:
            part, _dot, option = path.partition(".")
            if document[part][option] and name in new:
                assert (credentials / name / path).read_text().endswith(("plant-ed", "another"))
    for path in [*credentials.rglob("*"), *server.document.parent.glob("*.json")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    for path in server.units.rglob("serversync@*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_next_task_finishes_what_was_begun_or_takes_it_back(server, tmp_path, change):
    module, parameters = change.after
    declare(server, change.before)
    saved, left = tmp_path / "saved", tmp_path / "left"
    shutil.copytree(server.root.parent, saved, symlinks=True)
    old = documents(server)
    declare(server, [change.after])
    assert not server.check(**parameters)["changed"]
    new, finished = documents(server), state(server)
    declare(server, change.back)
    before = taken_back(server)
    server.restore(saved)
    seen = 0
    for temporary in server.turn(module).crashes(**parameters):
        seen += 1
        assert b"plant-ed" not in temporary
        assert_stands(server, old, new)
        shutil.copytree(server.root.parent, left, symlinks=True)
        declare(server, [change.after])
        assert state(server) ^ finished == set()
        # What is left is much the same from one step to the next, and the way back takes as long as all else.
        if change.back and seen % 3 == 1:
            server.restore(left)
            declare(server, change.back)
            assert taken_back(server) ^ before == set()
        shutil.rmtree(left)
        server.turn(module)
    assert seen
