# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serversync import journal
from serversync.journal import Entry

from tests.journald import Journal, decode

ROOT = Path(__file__).resolve().parents[3]
COMMON = {"PRIORITY": "6", "SYSLOG_FACILITY": "3", "SYSLOG_IDENTIFIER": "serversync"}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    """A journal, to which the output of the test leads."""
    one = Journal(tmp_path)
    monkeypatch.setattr(journal, "SOCKET", one.path)
    monkeypatch.setenv("JOURNAL_STREAM", one.environment["JOURNAL_STREAM"])
    journal.sender.cache_clear()
    yield one
    if journal.sender.cache_info().currsize:
        journal.sender().close()
    journal.sender.cache_clear()
    one.close()


def test_an_entry_says_what_its_line_is_about() -> None:
    entry = Entry("/a: failed: gone", "element_ended", journal.ERR, job="nightly", run="R", element="/a", code=None)
    assert str(entry) == entry == "/a: failed: gone"
    assert journal.fields(entry) == {
        **COMMON,
        "MESSAGE": "/a: failed: gone",
        "PRIORITY": "3",
        "MESSAGE_ID": "fdfd6be969ed47ddb1f665bedca4b2c3",
        "SERVERSYNC_EVENT": "element_ended",
        "SERVERSYNC_JOB": "nightly",
        "SERVERSYNC_RUN": "R",
        "SERVERSYNC_ELEMENT": "/a",
    }


def test_a_line_of_no_event_is_a_message_all_the_same() -> None:
    assert journal.fields("a\tb") == {**COMMON, "MESSAGE": "a\\x09b"}


def test_names_forge_neither_lines_nor_fields() -> None:
    name = "/a\nSERVERSYNC_STATE=equal\x1b[2J"
    line = Entry(f"{name}: failed", "element_ended", state="failed", element=name)
    entry = decode(journal.encode(journal.fields(line)))
    assert entry["SERVERSYNC_STATE"] == "failed"
    assert entry["SERVERSYNC_ELEMENT"] == "/a\\x0aSERVERSYNC_STATE=equal\\x1b[2J"
    assert entry["MESSAGE"] == f"{entry['SERVERSYNC_ELEMENT']}: failed"


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True), st.text(st.characters(codec="utf-8"))))
def test_whatever_a_field_holds_it_arrives(entry: dict[str, str]) -> None:
    assert decode(journal.encode(entry)) == entry


def test_a_value_of_several_lines_comes_with_its_length() -> None:
    assert journal.encode({"A": "b\nc", "D": "e"}) == b"A\n\x03\0\0\0\0\0\0\0b\nc\nD=e\n"


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert journal.encode({"A": "\udcff"}) == b"A=\\udcff\n"


@pytest.mark.parametrize("letter", ["x", "ü", "\n"])
def test_a_value_that_is_too_long_is_cut(letter: str) -> None:
    long = letter * journal.LONGEST
    value = decode(journal.encode({"A": long + "end"}))["A"]
    assert value.endswith(" [cut]") and long.startswith(value[: -len(" [cut]")])
    assert journal.LONGEST - 4 < len(value.encode()) <= journal.LONGEST


def test_only_where_the_output_is_the_journals_it_is_told(there: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    try:
        assert journal.tell("one", there.output.fileno())
        assert not journal.tell("two", writing)
        for elsewhere in ("", "1:2", "nothing"):
            monkeypatch.setenv("JOURNAL_STREAM", elsewhere)
            assert not journal.tell("three", there.output.fileno())
        monkeypatch.delenv("JOURNAL_STREAM")
        assert not journal.tell("four", there.output.fileno())
        # What is closed is nobody's.
        monkeypatch.setenv("JOURNAL_STREAM", there.environment["JOURNAL_STREAM"])
        assert not journal.tell("five", 10**6)
    finally:
        os.close(reading)
        os.close(writing)
    assert there.entries() == [{**COMMON, "MESSAGE": "one"}]


def test_a_journal_that_is_gone_takes_nothing_and_then_all_again(there: Journal) -> None:
    away = there.path.rename(there.path.with_name("away"))
    assert not journal.tell("one", there.output.fileno())
    away.rename(there.path)
    assert journal.tell("two", there.output.fileno())
    assert [entry["MESSAGE"] for entry in there.entries()] == ["two"]


def test_a_journal_that_is_stuck_holds_nobody(there: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PATIENCE", 0.01)
    told = 0
    while journal.tell("one", there.output.fileno()):
        told += 1
    # Nor at the end.
    journal.settle()
    assert len(there.entries()) == told > 0
    assert journal.tell("two", there.output.fileno())


def test_the_end_waits_until_all_is_read(there: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(journal.time, "sleep", lambda _seconds: read.append(decode(there.socket.recv(1 << 20))))
    for number in "123":
        assert journal.tell(number, there.output.fileno())
    journal.settle()
    assert [entry["MESSAGE"] for entry in read] == ["1", "2", "3"]


def test_every_event_has_an_id_of_its_own_and_is_documented() -> None:
    assert len(set(journal.EVENTS.values())) == len(journal.EVENTS)
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in journal.EVENTS.values())
    guide = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    section = guide.partition("\n## Journal\n")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `(\w+)` \|.* \| `([0-9a-f]{32})` \|$", section, re.MULTILINE)) == journal.EVENTS


def test_every_event_is_said_somewhere() -> None:
    package = Path(journal.__file__).parent
    program = "".join(path.read_text() for path in package.glob("*.py") if path.name != "journal.py")
    assert [event for event in journal.EVENTS if f'"{event}"' not in program] == []
