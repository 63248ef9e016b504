# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serversync import display
from serversync.display import in_words
from serversync.entry import Row
from serversync.ssh import explain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢", "plain é 漢"),
        ("new\nline", "new\\x0aline"),
        ("\x1b[31mred", "\\x1b[31mred"),
        (os.fsdecode(b"\xff"), "\\xff"),
        ("\u202eright to left", "\\u202eright to left"),
        ("\u2028", "\\u2028"),
    ],
)
def test_nothing_steers_the_terminal(text: str, shown: str) -> None:
    assert display.safe(text) == shown


@given(name=st.binary())
def test_every_name_is_printable(name: bytes) -> None:
    assert display.safe(os.fsdecode(name)).isprintable()


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes(count: int, shown: str) -> None:
    assert display.size(count) == shown


@pytest.mark.parametrize(
    ("minutes", "shown"),
    [
        (-5, "0 minutes"),
        (0, "0 minutes"),
        (1, "1 minute"),
        (119, "119 minutes"),
        (120, "2 hours"),
        (47 * 60 + 59, "47 hours"),
        (48 * 60, "2 days"),
        (400 * 1440, "400 days"),
    ],
)
def test_how_long_something_lasts(minutes: int, shown: str) -> None:
    assert display.lasting(timedelta(minutes=minutes)) == shown


LAST: dict[str, Any] = {"started": "2026-11-20T02:30:00+00:00", "ended": "2026-11-20T02:31:00+00:00"}
LAST |= {"state": "equal_with_warnings", "elements": [], "error": None}
ROW = {"job": "line1-programs", "partner": "hq:22", "enabled": True, "state": "equal_with_warnings", "problem": None}
ROW |= {"late": False, "late_at": None, "good": None, "retry": None, "next": 1795746600, "last": LAST}
LATE = {**ROW, "late": True, "late_at": "2026-11-22T02:31:00+00:00", "good": LAST["ended"]}


def test_a_job_that_is_late_is_shown_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    never = {**LATE, "job": "never", "state": None, "good": None, "last": None}
    display.show_status([ROW, LATE, never])
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 100
    cells = [line.split() for line in told.splitlines() if line.startswith(" ")]
    assert sum("late" in line for line in cells) == 2
    since, good = (display.local_time(LATE[name]) for name in ("late_at", "good"))
    assert f"\nline1-programs: late since {since}: no good run since {good}\n" in told
    assert f"\nnever: late since {since}: no good run yet\n" in told


@pytest.mark.parametrize(
    ("stderr", "code", "transient"),
    [
        ("ssh: connect to host hq port 22: Connection refused\n", "unreachable", True),
        ("ssh: connect to host hq port 22: Connection timed out\n", "unreachable", True),
        ("ssh: Could not resolve hostname hq: Name or service not known\n", "unreachable", True),
        ("ssh: connect to host hq port 22: No route to host\n", "unreachable", True),
        ("serversync@hq: Permission denied (publickey).\n", "login", False),
        ("Host key verification failed.\n", "host_key", False),
        ("No ED25519 host key is known for serversync-hq and you have requested strict checking.\n", "host_key", False),
        ("serversync: the pairing x has no open door on this server (Connection refused)\n", "no_door", False),
        ("", "connection", True),
        ("kex_exchange_identification: read: Connection reset by peer\n", "connection", True),
    ],
)
def test_what_ssh_says(stderr: str, code: str, transient: bool) -> None:
    failure = explain(stderr, "hq:22")
    assert (failure.code, failure.transient, failure.field) == (code, transient, "partner.host")
    assert "hq:22" in failure.message


FILE = b"f 7 1.0000000000 1763849999.5000000000 1536 644 0 0 1 "


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (Row(b"x", "unresolved", FILE, b"", FILE, b"", b"both"), "changed on both servers"),
        (Row(b"x", "unresolved", FILE, b"", FILE, b""), "different, never agreed"),
        (Row(b"x", "unresolved", FILE, b"", None, b"", b"both"), "deleted on the partner, changed on this server"),
        (Row(b"x", "unresolved", None, b"", FILE, b"", b"both"), "deleted on this server, changed on the partner"),
        (Row(b"x", "unresolved", FILE, b"", None, b""), "only on this server"),
        (Row(b"x", "unresolved", FILE, b"", None, b"", b"both", by="guard"), "held back by a guard"),
    ],
)
def test_why_a_path_waits_for_a_person(row: Row, reason: str) -> None:
    assert in_words(row)["reason"] == reason


def test_both_versions_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "UTC")
        time.tzset()
        told = in_words(Row(b"a\xff", "unresolved", FILE, b"", None, b""))
    time.tzset()
    assert told["path"] == "a\udcff"
    assert (told["this_server"], told["partner"]) == ("file, 1536 bytes, 2025-11-22 22:19:59, mode 644, 0:0", "absent")
