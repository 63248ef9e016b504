# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands for a server outside of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from serversync import machine
from serversync.machine import known_as

ID = "0123456789abcdef0123456789ABCDEF"


def test_a_machine_id_stays_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MACHINE_ID", tmp_path / "machine-id")
    assert machine.machine() == os.uname().nodename
    machine.MACHINE_ID.write_text(f"{ID}\n")
    assert machine.machine_id() == ID
    # Archives and markers on disks are known by it, so it is the same for ever.
    assert machine.machine() == known_as(ID) == known_as(ID.lower())
    assert machine.machine() == "deb1f3d8b35cc8d85e0144e41495719688257dd4bc74ef7aa7c5faee67ebe35a"
    assert known_as(machine.machine()) == machine.machine()
    for name in ("hq", "sftp:me@hq:22", ID[1:], f"{ID}0"):
        assert known_as(name) == name
