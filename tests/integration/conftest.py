# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers of tests/loopback.py as fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loopback import Pair, Server, free_port, loopback, module, tree

__all__ = ["Pair", "Server", "free_port", "module", "tree"]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "site-a")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with loopback(tmp_path) as pair:
        yield pair
