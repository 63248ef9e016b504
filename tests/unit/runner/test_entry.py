# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serversync.entry import KINDS, Entry, nanoseconds, pack, seconds, unpack

TIMES = st.integers(-(1 << 62), 1 << 62)
NUMBERS = st.integers(0, 1 << 64)
DIGESTS = st.binary(max_size=16)
ENTRIES = st.builds(
    Entry,
    kind=st.sampled_from(sorted(KINDS.values())),
    inode=NUMBERS,
    ctime=TIMES,
    mtime=TIMES,
    size=NUMBERS,
    mode=st.integers(0, 0o7777),
    uid=NUMBERS,
    gid=NUMBERS,
    nlink=NUMBERS,
    link=st.binary(max_size=20),
    rdev=NUMBERS,
    xattrs=DIGESTS,
    digest=DIGESTS,
)


@given(ENTRIES)
def test_an_entry_survives_the_wire(entry: Entry) -> None:
    assert Entry.parse(entry.record, entry.more) == entry


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"1763849999.1234567890", 1763849999123456789),
        (b"0.0000000010", 1),
        (b"-2.5000000000", -1_500_000_000),
        (b"-1.9999999990", -1),
        (b"5", 5_000_000_000),
        (b"5.25", 5_250_000_000),
    ],
)
def test_times_as_find_prints_them(text: bytes, time: int) -> None:
    assert nanoseconds(text) == time
    assert nanoseconds(seconds(time)) == time


@pytest.mark.parametrize(
    ("record", "more"),
    [
        (b"", b""),
        (b"f 1 2 3 4 5 6 7 8", b""),
        (b"f 1 2 3 4 9 6 7 8 ", b""),
        (b"f x 2 3 4 5 6 7 8 ", b""),
        (b"f 1 2 3 4 5 6 7 8 ", b"1"),
        (b"f 1 2 3 4 5 6 7 8 ", b"1 aa"),
        (b"f 1 2 3 4 5 6 7 8 ", b"1 xx yy"),
    ],
)
def test_what_is_no_record(record: bytes, more: bytes) -> None:
    with pytest.raises(ValueError):
        Entry.parse(record, more)


PARTS = st.binary(max_size=9).map(lambda data: data.replace(b"\0", b"-"))


@given(st.lists(st.tuples(PARTS, PARTS, PARTS)))
def test_packing(items: list[tuple[bytes, bytes, bytes]]) -> None:
    assert list(unpack(pack(items))) == items


@pytest.mark.parametrize("data", [b"a", b"a\0b\0", b"a\0b\0c"])
def test_a_listing_that_is_cut_short(data: bytes) -> None:
    with pytest.raises(ValueError, match="cut short"):
        unpack(data)
