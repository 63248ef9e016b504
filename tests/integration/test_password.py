# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A log-in by password, with the module's own job and the runner: it works, is tried once, and is seen nowhere."""
# ruff: noqa: S105 - passwords of servers that live for one test

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from tests.integration.conftest import Overheard
from tests.nas import Nas, nas
from tests.processes import processes_that_show

SECRET = 'Tr0ub4dor&3 \'n "friends" $HOME'


class Site(Overheard):
    """One whose partner is a NAS."""

    def declare(self, server: Nas, **account: Any) -> dict[str, Any]:
        return self.declare_job(
            partner={"host": "127.0.0.1", "port": server.port, "connection": "sftp", "host_key": server.host_key},
            account={"user": server.user, **account},
            on_error={"retries": 3, "delay": "0s"},
        )

    def run(self) -> dict[str, Any]:
        result = self.turn("sync_job_run", name="demo").apply()
        self.said += json.dumps(result)
        record: dict[str, Any] = result["run"]
        return record


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def server() -> Iterator[Nas]:
    with nas(SECRET) as server:
        yield server


def test_it_logs_in_and_the_password_is_in_one_file_alone(site: Site, server: Nas, tmp_path: Path) -> None:
    shown: list[str] = []
    server.asked = lambda: shown.extend(processes_that_show("Tr0ub4dor"))
    site.declare(server, password=SECRET)
    assert site.run()["state"] == "equal"
    assert (site.target / "file").read_text() == "1"
    info = site.turn("sync_job_info", names="demo").apply()
    assert not site.turn("sync_job").apply(**info["jobs"][0])["changed"]
    assert site.run()["state"] == "equal"
    assert server.tried == [(server.user, SECRET)] * 2
    assert shown == []
    assert "Tr0ub4dor" not in site.said + json.dumps(info)
    places = [path for path in tmp_path.rglob("*") if path.is_file() and b"Tr0ub4dor" in path.read_bytes()]
    assert places == [site.credentials / "account.password"]


def test_a_server_that_asks_for_it(site: Site) -> None:
    with nas(SECRET, way="keyboard-interactive") as server:
        site.declare(server, password=SECRET)
        assert site.run()["state"] == "equal"
        assert server.tried == [(server.user, SECRET)]


@pytest.mark.parametrize("way", ["password", "keyboard-interactive"])
def test_a_wrong_one_is_tried_once_for_accounts_are_locked_for_less(site: Site, way: str) -> None:
    with nas("another", way) as server:
        site.declare(server, password=SECRET)
        record = site.run()
        assert (record["state"], len(record["attempts"]), len(server.tried)) == ("failed", 1, 1)
        assert record["error"] == {
            "code": "login",
            "field": "account.password",
            "message": f"log-in refused by 127.0.0.1:{server.port}: the account backup there has another password, is "
            "locked, or may not log in by one; find out which, and apply the job with the right one",
            "transient": False,
        }
        assert "Tr0ub4dor" not in site.said


def test_a_stranger_is_not_told_the_password(site: Site, server: Nas) -> None:
    site.declare(server, password=SECRET)
    server.key = paramiko.ECDSAKey.generate()
    record = site.run()
    assert (record["error"]["code"], len(record["attempts"]), server.tried) == ("host_key", 1, [])


def test_a_password_that_is_gone(site: Site, server: Nas) -> None:
    site.declare(server, password=SECRET)
    kept = site.credentials / "account.password"
    kept.unlink()
    record = site.run()
    assert record["error"] == {
        "code": "no_credential",
        "field": "account.password",
        "message": f"the secret is not at {kept} (No such file or directory); apply the job again, with "
        "account.password",
        "transient": False,
    }
    assert server.tried == []
