# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that are told through Apprise, with the module's own job and the runner: they are, and no URL is seen."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Overheard
from tests.loopback import free_port, write_launcher
from tests.processes import processes_that_show

SECRET = "plant-ed"  # noqa: S105 - of services that live for one test


class Service:
    """A service in the network: what it was told, as (path, log-in, message). It refuses where ``refuse`` says so."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, dict[str, Any]]] = []
        self.refuse: Callable[[str], bool] = lambda _path: False
        self.asked: Callable[[], None] = lambda: None
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                service.asked()
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                log_in = b64decode((self.headers["Authorization"] or "").rpartition(" ")[2]).decode()
                service.told.append((self.path, log_in, message))
                self.send_response(404 if service.refuse(self.path) else 200)
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                """Nothing on the terminal."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def url(self, name: str) -> str:
        return f"json://me:{SECRET}@127.0.0.1:{self.server.server_port}/{SECRET}/{name}"

    @property
    def names(self) -> list[str]:
        return [path.rpartition("/")[2] for path, _log_in, _message in self.told]


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    thread = threading.Thread(target=service.server.serve_forever)
    thread.start()
    yield service
    service.server.shutdown()
    service.server.server_close()
    thread.join()


class Site(Overheard):
    """One that is its own partner, and tells services."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.kept = self.credentials / "notification.urls"

    def declare(self, *urls: str, **more: Any) -> dict[str, Any]:
        return self.declare_job(
            partner={"host": "localhost", "connection": "local"},
            notification={"urls": list(urls), "events": ["success", "conflict", "failure"]},
            on_error={"retries": 0},
            **more,
        )

    def serversync(self, *words: str, code: int | None = None) -> subprocess.CompletedProcess[str]:
        done = super().serversync(*words, code=code)
        self.said += done.stdout + done.stderr
        return done

    def run(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.serversync("run", "demo", "--json").stdout)
        return record


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_service_is_told_and_its_url_is_in_one_file_alone(site: Site, service: Service, tmp_path: Path) -> None:
    shown: list[str] = []
    service.asked = lambda: shown.extend(processes_that_show(SECRET))
    site.declare(service.url("a"))
    done = site.serversync("run", "demo")
    assert done.stderr == ""
    assert "notification.urls[0] (json): sent\n" in done.stdout
    [(path, log_in, message)] = service.told
    assert (path, log_in) == (f"/{SECRET}/a", f"me:{SECRET}")
    assert message["title"] == f"[serversync] {os.uname().nodename}: demo succeeded"
    assert message["type"] == "success"
    assert f"{site.source} -> {site.target}\n  before" in message["message"]
    assert "The whole record:  serversync show demo " in message["message"]

    record = site.run()
    told = {
        "event": "success",
        "to": [],
        "error": None,
        "waits": None,
        "urls": [{"url": "notification.urls[0] (json)", "error": None}],
    }
    assert record["notification"] == told
    assert site.serversync("show", "demo").stdout.endswith("notification.urls[0] (json) sent\n")
    info = site.turn("sync_job_info", names="demo").apply()
    assert not site.turn("sync_job").apply(**info["jobs"][0])["changed"]
    assert service.names == ["a", "a"]
    assert shown == []
    assert SECRET not in site.said + json.dumps(info)
    assert [one for one in tmp_path.rglob("*") if one.is_file() and SECRET.encode() in one.read_bytes()] == [site.kept]
    assert (site.kept.stat().st_mode & 0o7777, site.kept.parent.stat().st_mode & 0o7777) == (0o600, 0o700)


def test_one_that_is_not_reached_keeps_no_other_from_being_told(site: Site, service: Service) -> None:
    service.refuse = lambda path: path.endswith("refused")
    away = f"json://127.0.0.1:{free_port()}/{SECRET}"
    site.declare(
        service.url("refused"), away, f"nosuch://{SECRET}", f"jsons://{SECRET}@127.0.0.1/?verify=no", service.url("b")
    )
    done = site.serversync("run", "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert service.names == ["refused", "b"]
    record = json.loads(site.serversync("show", "demo", "--json").stdout)
    assert record["state"] == "equal"
    missed = (
        "the service was not reached or did not take it%s; check the URL, and whether this server reaches the service"
    )
    errors = {
        "notification.urls[0] (json)": missed % " (status 404 of HTTP)",
        "notification.urls[1] (json)": missed % "",
        "notification.urls[2] (nosuch)": "Apprise knows no such service, or the URL lacks something; see what Apprise "
        "asks of it",
        "notification.urls[3] (jsons)": missed % "",
        "notification.urls[4] (json)": None,
    }
    assert {one["url"]: one["error"] for one in record["notification"]["urls"]} == errors
    for name, error in errors.items():
        assert f"{name}: {error or 'sent'}\n" in done.stdout
    assert SECRET not in site.said


def test_what_waits_for_a_person_is_told_again_only_to_whom_it_was_not(site: Site, service: Service) -> None:
    (site.target).mkdir()
    (site.target / "file").write_text("the other")
    service.refuse = lambda path: path.endswith("b")
    site.declare(service.url("a"), service.url("b"), settings={"direction": "both", "conflict": "no_winner"})
    assert site.run()["state"] == "different"
    assert [message["type"] for _path, _log_in, message in service.told] == ["warning", "warning"]
    site.run()
    assert service.names == ["a", "b", "b"]
    service.refuse = lambda _path: False
    site.run()
    assert site.run()["notification"] is None
    assert service.names == ["a", "b", "b", "b"]


def test_where_apprise_is_missing_every_run_and_check_say_so(site: Site, service: Service) -> None:
    missing = "notification.urls: Apprise is not installed for the runner"
    write_launcher(site.launcher, "sys.modules['apprise'] = None")
    site.declare(service.url("a"))
    record = site.run()
    assert record["state"] == "equal"
    error = f"{missing}; set runner_apprise: true of the role"
    assert record["notification"]["urls"] == [{"url": "notification.urls[0] (json)", "error": error}]
    # Also of a run that nobody is to be told of.
    site.turn("sync_job", name="demo").apply(notification={"events": ["failure"]})
    done = site.serversync("run", "demo")
    assert done.stdout.count(f"warning: {error}\n") == 1
    found = json.loads(site.serversync("check", "demo", "--json").stdout)["demo"]
    assert [one for one in found if one["level"] != "ok"] == [
        {
            "level": "warning",
            "issue": missing,
            "impact": "nobody is told by it how a run ended",
            "remedy": "set runner_apprise: true of the role",
            "declared": True,
        }
    ]
    assert service.told == []
    assert SECRET not in site.said


def test_a_check_sends_nothing(site: Site, service: Service) -> None:
    site.declare(service.url("a"), f"nosuch://{SECRET}")
    found = json.loads(site.serversync("check", "demo", "--json").stdout)["demo"]
    assert [(one["level"], one["issue"]) for one in found if one["issue"].startswith("notification")] == [
        ("ok", "notification.urls[0] (json): Apprise takes the URL; nothing was sent"),
        ("error", "notification.urls[1] (nosuch): Apprise knows no such service, or the URL lacks something"),
    ]
    assert service.told == []
    assert SECRET not in site.said


def test_urls_that_are_gone(site: Site, service: Service) -> None:
    site.declare(service.url("a"))
    site.kept.unlink()
    record = site.run()
    error = (
        f"notification.urls: the secret is not at {site.kept} (No such file or directory); apply the job again, with "
    )
    assert record["state"] == "equal"
    assert record["notification"]["urls"] == [{"url": "notification.urls", "error": error + "notification.urls"}]
    found = json.loads(site.serversync("check", "demo", "--json").stdout)["demo"]
    assert [one["issue"] for one in found if one["level"] == "error"] == [error.partition("; ")[0]]
    assert service.told == []
    assert site.declare(service.url("a"))["changed"]
    assert site.run()["notification"]["urls"][0]["error"] is None
