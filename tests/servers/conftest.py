# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers, and what it takes to change something on them for the length of a test."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testservers import ROOT, MailServer, Server

INVENTORY = ROOT / "extensions/molecule/default/inventory.yml"


@pytest.fixture(scope="session")
def site() -> Server:
    """Debian 12; the jobs are declared here."""
    return Server("siteA")


@pytest.fixture(scope="session")
def hq() -> Server:
    """Debian 13; the partner."""
    return Server("hq")


@pytest.fixture(scope="session")
def mail() -> MailServer:
    return MailServer("mail")


def playbook(tmp_path: Path, text: str, *options: str) -> str:
    """Runs a playbook against the servers; it must succeed."""
    path = tmp_path / f"{uuid.uuid4().hex}.yml"
    path.write_text(text, encoding="utf-8")
    command = ["ansible-playbook", "--inventory", str(INVENTORY), *options, str(path)]
    # Molecule wants colours, which would be in the midst of what a test looks for.
    environment = {**os.environ, "ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"}
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def play(tmp_path_factory: pytest.TempPathFactory) -> Any:
    books = tmp_path_factory.mktemp("books")
    return lambda text, *options: playbook(books, text, *options)


@pytest.fixture
def sshd(hq: Server) -> Iterator[Callable[[str], None]]:
    """Starts and stops the partner's sshd."""
    yield hq.sshd
    hq.sshd("start")


@pytest.fixture
def no_sshd(sshd: Callable[[str], None]) -> None:
    sshd("stop")
