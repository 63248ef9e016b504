# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What root has systemd start so that a job's services are told: systemctl and systemd-run are programs of the test."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from serversync import units
from serversync.layout import Layout

LOOK = """\
# /etc/systemd/system/serversync-late.service
[Unit]
Description=Tell of synchronization jobs that are late
[Service]
Type=oneshot
ExecStart=/usr/bin/serversync late
TimeoutStartSec=600
User=serversync
# Nothing of the network.
PrivateNetwork=yes
RestrictAddressFamilies=AF_UNIX
"""
OF_JOB = """\
# /etc/systemd/system/serversync@.service
[Service]
ExecStart=/usr/bin/serversync unit %i
AmbientCapabilities=CAP_CHOWN
# /etc/systemd/system/serversync@nightly.service.d/job.conf
[Service]
ReadWritePaths=-/srv/a
LoadCredential=account.password:/etc/serversync/credentials/nightly/account.password
LoadCredentialEncrypted=notification.urls:/etc/serversync/credentials/nightly/notification.urls.cred
"""
SYSTEMCTL = """#!/bin/sh
test "$1" = cat && cat "{root}/$2"
"""
SYSTEMD_RUN = """#!/bin/sh
test ! -e "{root}/refuse" || {{ echo 'Unit was already loaded.' >&2; exit 1; }}
printf '%s\\n' "$@" > "{root}/asked"
"""


class Root:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.layout = Layout("system", directory, directory, directory)

    def answer(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **question: Any) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(question) + "\n"))
        monkeypatch.setattr(sys, "argv", ["/usr/bin/serversync", "units"])
        assert units.serve(self.layout) == 0
        return json.loads(capsys.readouterr().out)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    for name, text in (("systemctl", SYSTEMCTL), ("systemd-run", SYSTEMD_RUN)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text.format(root=tmp_path))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "serversync-late.service").write_text(LOOK)
    (tmp_path / "serversync@nightly.service").write_text(OF_JOB)
    document = {
        "version": 1,
        "name": "nightly",
        "comment": "",
        "enabled": True,
        "scope": "system",
        "partner": {"host": "localhost", "port": None, "connection": "local", "host_key": []},
        "account": None,
        "schedule": None,
        "on_error": {"retries": 0, "delay": "1s"},
        "notification": {"email": [], "events": ["late"], "late_after": "2d"},
        "settings": {"direction": "to_partner", "exclude": [], "delete": "never"},
        "elements": [{"path": "/srv/a", "partner_path": "/srv/b"}],
    }
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "nightly.json").write_text(json.dumps(document))
    return Root(tmp_path)


def test_it_has_the_sandbox_of_the_look_a_network_and_the_urls_of_the_job(
    root: Root, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert root.answer(monkeypatch, capsys, job="nightly", phase="late") == {}
    asked = (root.directory / "asked").read_text().splitlines()
    unit = asked.index("--unit=serversync-late-nightly.service")
    assert {"--no-ask-password", "--collect"} <= set(asked[:unit])
    assert asked[unit + 1 :] == [
        "--property=User=serversync",
        "--property=PrivateNetwork=yes",
        "--property=RestrictAddressFamilies=AF_UNIX",
        "--property=PrivateNetwork=no",
        "--property=RestrictAddressFamilies=AF_INET AF_INET6",
        "--property=RuntimeMaxSec=600",
        "--property=LoadCredentialEncrypted=notification.urls:"
        "/etc/serversync/credentials/nightly/notification.urls.cred",
        "--",
        "/usr/bin/serversync",
        "late",
        "nightly",
    ]


def test_what_systemd_says_against_it_is_told(
    root: Root, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root.directory / "refuse").touch()
    message = "serversync-late-nightly.service cannot be started: Unit was already loaded."
    assert root.answer(monkeypatch, capsys, job="nightly", phase="late")["failure"]["message"] == message
    (root.directory / "serversync-late.service").unlink()
    failure = root.answer(monkeypatch, capsys, job="nightly", phase="late")["failure"]
    assert failure["message"].startswith("systemctl cat serversync-late.service: ")


@pytest.mark.parametrize("question", [{"job": "other", "phase": "late"}, {"job": "../x", "phase": "late"}])
def test_root_tells_of_no_job_that_is_not_declared(
    root: Root, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], question: dict[str, str]
) -> None:
    assert "failure" in root.answer(monkeypatch, capsys, **question)
    assert not (root.directory / "asked").exists()
