# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The door, asked for whatever there is, the same cases every time; ``tests/faults/fuzz.py`` asks for more."""

from __future__ import annotations

from tests.faults import fuzz


def test_what_may_only_be_written_is_not_read_as_a_list_of_files() -> None:
    """A daemon that is sent to opens the list that a client names there, and passes it on to the client."""
    with fuzz.worlds() as (world, daemon):
        for options in (["--files-from=:/plc"], ["--from0", "--files-from=:/plc"]):
            counts = fuzz.transfer(world, daemon, (options, "write", "", True))
            assert counts["rsync refused"]


def test_whoever_holds_the_key_gets_nothing_else() -> None:
    counts = fuzz.campaign(200, 1)
    assert (counts["conversations"], counts["noise"], counts["option lines"]) >= (176, 20, 4)
    # What is asked is not all nonsense, and what is refused is told.
    assert counts["  answered"] > 300
    assert counts["  read_only"] and counts["  outside_roots"] and counts["  rsync refused"]
