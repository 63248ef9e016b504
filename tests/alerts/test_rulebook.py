# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rulebook of docs/examples/eda, in ansible-rulebook itself: a job that fails is seen to."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import Overheard
from tests.integration.test_mail import certificate
from tests.loopback import free_port

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDE, EXAMPLE = DOCS / "event-driven.md", DOCS / "examples" / "eda"
TOKEN = "planted-t0ken"  # noqa: S105 - of a listener that lives for one test


class Rulebook:
    """ansible-rulebook at work, for servers and jobs of this test alone."""

    def __init__(self, site: Overheard, path: Path) -> None:
        self.site, self.path, self.port = site, path, free_port()
        self.certificate = certificate(path / "listener.pem")
        # Whom the service that a run tells believes; of a server it is what the system does.
        site.environment["REQUESTS_CA_BUNDLE"] = str(self.certificate)
        self.seen: list[str] = []

    def url(self) -> str:
        """As the guide has it."""
        [job] = re.findall(r"```yaml\n(    notification:.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
        [url] = yaml.safe_load(job)["notification"]["urls"]
        names = {"vault_eda_token": TOKEN, "item.name": "demo", "inventory_hostname": "siteA"}
        for name, value in names.items():
            assert url.count("{{ %s }}" % name) == 1
            url = url.replace("{{ %s }}" % name, value)
        return str(url.replace("eda.example.com:5000", f"127.0.0.1:{self.port}"))

    def start(self, remedies: dict[str, list[str]]) -> subprocess.Popen[str]:
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        inventory = yaml.safe_load((EXAMPLE / "inventory.yml").read_text())
        inventory["all"]["vars"] |= {"ansible_become": False, "remedies": remedies, "scope": "user"}
        # A remedy on the other one would be seen.
        inventory["all"]["hosts"] = {"siteA": host, "siteB": {**host, "remedies": {}}}
        (self.path / "inventory.yml").write_text(yaml.safe_dump(inventory))
        given = {"listen_at": "127.0.0.1", "listen_port": self.port, "token": TOKEN}
        given |= {"certificate": str(self.certificate), "certificate_key": str(self.certificate)}
        (self.path / "listener.yml").write_text(yaml.safe_dump(given))
        words = [
            "--inventory",
            str(self.path / "inventory.yml"),
            "--vars",
            str(self.path / "listener.yml"),
            "--verbose",
        ]
        environment = {
            **{name: value for name, value in self.site.environment.items() if name != "PYTHONPATH"},
            "PATH": f"{os.path.dirname(sys.executable)}:{self.site.environment['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"],
            "ANSIBLE_HOME": str(self.path / "ansible"),
            "ANSIBLE_NOCOLOR": "true",
            "PYTHONUNBUFFERED": "1",
        }
        return subprocess.Popen(
            ["ansible-rulebook", "--rulebook", "rulebook.yml", "--print-events", *words],
            cwd=EXAMPLE,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read_until(self, process: subprocess.Popen[str], text: str) -> None:
        """Its output up to a line that ends with the text."""
        assert process.stdout is not None
        for line in process.stdout:
            self.seen.append(line)
            if line.rstrip().endswith(text):
                return
        raise AssertionError(self.said)

    def listens(self, process: subprocess.Popen[str]) -> None:
        """Waits until it does."""
        self.read_until(process, "Waiting for events, ruleset: Synchronization jobs")
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                assert process.poll() is None

    @property
    def said(self) -> str:
        return "".join(self.seen)

    def come_to(self, process: subprocess.Popen[str], title: str) -> None:
        """Waits until all that it was told before is done with: it does one thing after another."""
        assert self.post({"type": "success", "server": "siteA", "title": title}) == 200
        self.read_until(process, title)

    def post(self, payload: dict[str, Any], token: str | None = TOKEN) -> int:
        """What the listener answers to somebody who is no server; it must be there by now."""
        head = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"https://127.0.0.1:{self.port}/serversync"
        request = urllib.request.Request(
            url, json.dumps(payload).encode(), {"Content-Type": "application/json", **head}
        )
        try:
            with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=self.certificate)) as answer:  # noqa: S310
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code


@pytest.fixture
def site(tmp_path: Path) -> Overheard:
    return Overheard(tmp_path)


@pytest.fixture
def rulebook(site: Overheard, tmp_path: Path) -> Iterator[Rulebook]:
    yield Rulebook(site, tmp_path)


def test_a_failed_job_starts_the_rulebook_and_is_well_again(
    site: Overheard, rulebook: Rulebook, tmp_path: Path
) -> None:
    site.source.rename(tmp_path / "unmounted")
    site.declare_job(
        partner={"host": "localhost", "connection": "local"},
        notification={"urls": [rulebook.url()]},
        on_error={"retries": 0},
    )
    mount = ["mv", str(tmp_path / "unmounted"), str(site.source)]
    with rulebook.start({"missing": mount}) as process:
        try:
            rulebook.listens(process)
            # Nobody without the token is listened to.
            assert (rulebook.post({}, None), rulebook.post({}, "guessed")) == (401, 401)
            # A name that is none starts nothing: Ansible would carry it out.
            forged = {"type": "failure", "server": "siteA", "job": "{{ lookup('pipe', 'touch %s/forged') }}" % tmp_path}
            assert rulebook.post(forged) == 200
            assert rulebook.post({**forged, "job": "demo", "server": "siteA,siteB"}) == 200
            rulebook.come_to(process, "nothing yet")
            assert "PLAY [" not in rulebook.said

            done = site.serversync("run", "demo", code=1)
            assert "notification.urls[0] (jsons): sent\n" in done.stdout
            rulebook.come_to(process, "it was seen to")
            assert "failed=0" in rulebook.said.partition("PLAY RECAP")[2], rulebook.said
            assert (site.target / "file").read_text() == "1"
            record = json.loads(site.serversync("show", "demo", "--json").stdout)
            assert (record["state"], record["notification"]["event"]) == ("equal", "recovery")
            assert record["notification"]["urls"][0]["error"] is None
            # What this one tells was told meanwhile.
            rulebook.come_to(process, "it is well again")
            assert f"\n[serversync] {os.uname().nodename}: demo RECOVERED" in rulebook.said

            # Within the hour the same does not start it again.
            assert rulebook.post({**forged, "job": "demo"}) == 200
            rulebook.come_to(process, "enough")
            assert rulebook.said.count("PLAY [") == 1
            assert "[siteB]" not in rulebook.said
        finally:
            process.terminate()
    assert not (tmp_path / "forged").exists()
    assert TOKEN not in rulebook.said + site.said
