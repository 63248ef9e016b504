# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers of tests/loopback.py as fixtures, and those of tests/declaring.py with the real runner."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import declaring
from tests.loopback import Pair, Server, free_port, loopback, module, tree, write_launcher

__all__ = ["Pair", "Server", "free_port", "module", "tree"]


class Site(declaring.Server):
    """A server where the modules declare and the real runner runs."""

    def __init__(self, path: Path, systemd: bool = True) -> None:
        super().__init__(path, systemd)
        write_launcher(self.launcher)

    def serversync(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Runs a command; the exit code must be ``code`` (None: any)."""
        done = subprocess.run(
            [str(self.launcher), *words], env=self.environment, capture_output=True, text=True, check=False
        )
        assert code in (None, done.returncode), done.stdout + done.stderr
        return done


class Overheard(Site):
    """One whose job has a secret, and two directories; ``said`` is all that the modules and the runner have said."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, systemd=False)
        self.source, self.target = path / "source", path / "target"
        self.source.mkdir()
        (self.source / "file").write_text("1")
        self.credentials = self.config / "serversync" / "credentials" / "demo"
        self.said = ""

    def declare_job(self, **job: Any) -> dict[str, Any]:
        elements = [{"path": str(self.source), "partner_path": str(self.target)}]
        result = self.turn("sync_job", name="demo").apply(elements=elements, **job)
        assert result.get("msg") is None, result
        self.said += json.dumps(result)
        return result


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "site-a")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with loopback(tmp_path) as pair:
        yield pair
