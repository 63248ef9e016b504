# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a terminal shows of a run's progress."""

from __future__ import annotations

import io

from rich.console import Console
from serversync.progress import Display

MIB = 1 << 20


def shown(*told, path="/srv/a"):
    """The text of the lines after these calls, and all that was written up to then."""
    console = Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None)
    with Display(console) as display:
        watch = display.watch(path)
        for each in told:
            watch(*each)
        frame = Console(file=io.StringIO(), width=140, color_system=None)
        frame.print(display.progress.get_renderable())
    return frame.file.getvalue(), console.file.getvalue()


def test_an_element_has_its_phase_files_bytes_and_totals():
    frame, _all = shown(("to copy", 3000, 8 * MIB), ("copying", 0, 0), ("copying", 120, 2 * MIB))
    assert "/srv/a" in frame
    assert "copying" in frame
    assert "120/3,000 files  2.0 MiB of 8.0 MiB" in frame


def test_the_stretches_of_a_phase_add_up_and_another_phase_begins_at_nothing():
    copied = [("copying", 0, 0), ("copying", 5, 10), ("copying", 0, 0), ("copying", 2, 4)]
    assert "7 files  14 B" in shown(*copied)[0]
    frame, _all = shown(*copied, ("to commit", 9, 0), ("committing", 0, 0), ("committing", 4, 0))
    assert "4/9 files" in frame
    assert "14 B" not in frame


def test_every_phase_is_seen_however_short():
    _frame, written = shown(*((phase, 0, 0) for phase in ("scanning", "comparing", "copying", "committing")))
    assert all(phase in written for phase in ("scanning", "comparing", "copying", "committing"))


def test_an_element_that_is_done_has_no_line_and_may_begin_again():
    assert "/srv/a" not in shown(("scanning", 0, 0), ("done", 0, 0))[0]
    assert "/srv/a" in shown(("scanning", 0, 0), ("done", 0, 0), ("scanning", 0, 0))[0]


def test_a_name_steers_no_terminal_and_is_no_markup():
    frame, written = shown(("scanning", 0, 0), path="/srv/[red]a\x1b[2J")
    assert "/srv/[red]a\\x1b[2J" in frame
    assert "\x1b[2J" not in written
