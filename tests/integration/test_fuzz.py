# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The door, asked for whatever there is, the same cases every time; ``tests/faults/fuzz.py`` asks for more."""

from __future__ import annotations

from tests.faults import fuzz


def test_whoever_holds_the_key_gets_nothing_else() -> None:
    counts = fuzz.campaign(200, 1)
    assert (counts["conversations"], counts["noise"], counts["option lines"]) >= (176, 20, 4)
    # What is asked is not all nonsense, and what is refused is told.
    assert counts["  answered"] > 300
    assert counts["  read_only"] and counts["  outside_roots"] and counts["  rsync refused"]
