# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a partner or a file's name says, as a task shows it."""

from __future__ import annotations

import pytest
from ansible_collections.serversync.core.plugins.module_utils._records import printable


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain, and fünf", "plain, and fünf"),
        ("two\nlines", "two\nlines"),
        ("\x1b]0;title\x07\r\x7f", "\\x1b]0;title\\x07\\x0d\\x7f"),
        ("\x9b2J\u2028\u202e", "\\x9b2J\\u2028\\u202e"),
        ("name\udcff", "name\\udcff"),
        (7, 7),
        ([{"a": "\x1b"}], [{"a": "\\x1b"}]),
    ],
)
def test_nothing_steers_the_terminal_that_ansible_writes_to(said, shown):
    assert printable(said) == shown
