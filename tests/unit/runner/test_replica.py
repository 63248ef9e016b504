# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A partner may answer anything: what cannot be an answer is its failure, told, and no exception of ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serversync.commit import Op, Result
from serversync.entry import Entry, pack
from serversync.failure import Failure, Stopped
from serversync.frames import PAYLOAD_LIMIT
from serversync.metadata import Problem
from serversync.parcel import HEAD, PLAIN, Made, Parcel, Wrapper, pack_made
from serversync.replica import Partner, PartnerTree, fitting
from serversync.wire import decode_ops, encode_entry, encode_result, plausible

FILE = Entry("f", 1, 2, 3, 4, 0o644, 1000, 1000, 1)
FREE = dict.fromkeys(("free_bytes", "free_inodes", "total_bytes"), 1)
FACTS = {
    **dict.fromkeys(("machine", "path", "fstype"), "x"),
    **dict.fromkeys(("acls", "xattrs", "owner", "empty"), True),
    **dict.fromkeys(("inode", "born", "granularity", "name_max", "time", "booted", "device"), 1),
    **{"folding": [], "others": [], "marker": None, "free": FREE},
}
ROOT = encode_entry(FILE._replace(kind="d"))
SUMMARY = {
    "stream": "",
    "entries": 1,
    "moment": 1,
    "complete": True,
    "problems": [],
    "unchanged": False,
    "digests": False,
}
LOOK = {"kind": "directory", "readable": True, "writable": True, "reason": "", **FREE}


class Saying:
    """A conversation with somebody who always says the same."""

    remote_shell, host, partner, about = "", "hq", "hq:22", {"privileged": False}

    def __init__(self, reply: dict[str, Any], *data: bytes) -> None:
        self.reply = reply
        self.data = data

    def ask(self, *_question: object, **_request: object) -> dict[str, Any]:
        return self.reply

    def ask_early(self, *_question: object, **_request: object) -> int:
        return 1

    def answer(self, _number: int, _patience: float) -> tuple[dict[str, Any], bytes]:
        return self.reply, b"".join(self.data)

    def pieces(self, _number: int, _patience: float) -> Iterator[bytes]:
        yield from self.data


def partner(**reply: Any) -> Partner:
    return Partner(Saying(reply))  # type: ignore[arg-type]


def tree(*data: bytes, **reply: Any) -> PartnerTree:
    return PartnerTree(Saying(reply, *data), 0, FACTS)  # type: ignore[arg-type]


def scan(**reply: Any) -> Any:
    return tree(**{**SUMMARY, "root": ROOT, **reply}).scan(b"", [], [], frozenset(), 0)


ASKED = [(b"plc", FILE.record)]
SHORT = PLAIN + HEAD.pack(len(pack([(b"plc", b"x", b"")]))) + pack([(b"plc", b"x", b"")])
MADE: Made = (FILE, None)
DELETE = Op("delete", b"plc", None, None, None, b"", b"", False)
wrap = Wrapper(deflate=False).wrap
GIVEN = Parcel([(b"plc", FILE.record, b"")], [b"data"])


def taken(data: bytes, parcel: Parcel = GIVEN) -> list[list[Made]]:
    return [told() for told in tree(data).take([parcel], deflate=False)]


def fat(name: int) -> bytes:
    """A path's attributes, as many as one can have."""
    return b'["%c", {"user.x": "%b"}]\n' % (name, b"A" * (4 << 20))


def many(*paths: bytes) -> bytes:
    """A listing of files."""
    return b"".join(path + b"\0" + FILE.record + b"\0\0" for path in paths)


def result(**changed: Any) -> bytes:
    return json.dumps({**encode_result(Result(b"plc", None, FILE)), **changed}).encode() + b"\n"


def version(**changed: Any) -> bytes:
    return json.dumps({"run": "run", "path": "plc", "bytes": 1, "when": 1.0, **changed}).encode() + b"\n"


def test_what_is_an_answer_is_understood() -> None:
    assert scan().entries == 1
    assert list(tree(result()).order([])) == []
    assert list(tree(b"plc\0" + FILE.record + b"\0\0").entries([b"plc"])) == [(b"plc", FILE)]
    assert partner(tree=0, facts=FACTS).open("/srv", "directory", name=b"").facts["path"] == "x"
    assert partner(address="root/", facts=LOOK).look("/srv")["kind"] == "directory"


NONSENSE: list[Callable[[], object]] = [
    lambda: partner().look("/srv"),
    lambda: partner(address="root/", facts={**LOOK, "kind": 1}).look("/srv"),
    lambda: partner(tree=0, facts={}).open("/srv", "directory", name=b""),
    lambda: partner(tree=0, facts={**FACTS, "time": float("nan")}).open("/srv", "directory", name=b""),
    lambda: partner(tree="x", facts=FACTS).open("/srv", "directory", name=b""),
    lambda: partner(users=[["x", 1]], groups=[]).names([], []),
    lambda: partner(users=3, groups={}).numbers([], []),
    lambda: scan(entries="many"),
    lambda: scan(root=None),
    lambda: scan(problems=[1]),
    lambda: list(tree(b"plc\0xx\0\0").digests()),
    lambda: list(tree(b"plc\0").listing([b""])),
    lambda: list(tree(b"plc\0nonsense\0\0").entries([b"plc"])),
    lambda: list(tree(b"plc\0Q" + FILE.record[1:] + b"\0\0").entries([b"plc"])),
    lambda: list(tree(b"{}\n").attributes([b"plc"])),
    lambda: list(tree(b"[" * 100_000 + b"\n").attributes([b"plc"])),
    lambda: list(tree(b"{}\n").versions(None)),
    lambda: list(tree(result(entry=["f 1 2.0 3.0 4 644 0 0 1 a\0b", ""])).restore(b"plc", "run")),
    lambda: list(tree(result(problem=[])).restore(b"plc", "run")),
    lambda: tree().prune(0, 0, 0),
    # What may be said, but not so much of it, or not of that.
    lambda: partner(address="root\0/", facts=LOOK).look("/srv"),
    lambda: partner(tree=0, facts={**FACTS, "granularity": 0}).open("/srv", "directory", name=b""),
    lambda: partner(tree=0, facts={**FACTS, "free": {}}).open("/srv", "directory", name=b""),
    lambda: partner(tree=0, facts={**FACTS, "folding": [[]]}).open("/srv", "directory", name=b""),
    lambda: partner(tree=0, facts={**FACTS, "marker": {"next": []}}).open("/srv", "directory", name=b""),
    lambda: partner(tree=0, facts={**FACTS, "others": ["x"]}).open("/srv", "directory", name=b""),
    lambda: partner(users=[[7, "x"]], groups=[]).names([1], []),
    lambda: partner(users=[[1, "a\0b"]], groups=[]).names([1], []),
    lambda: partner(users={"x": 1 << 32}, groups={}).numbers(["x"], []),
    lambda: partner(users={"y": 1}, groups={}).numbers(["x"], []),
    lambda: scan(entries=-1),
    lambda: scan(entries=1 << 40),
    lambda: scan(problems=[["../x", "no"]]),
    lambda: scan(root=encode_entry(FILE)),
    lambda: list(tree(many(b"b", b"a")).listing([b""])),
    lambda: list(tree(many(b"a", b"a")).listing([b""])),
    lambda: list(tree(many(b"a/b")).listing([b""])),
    lambda: list(tree(many(b"a" * 70_000)).listing([b""])),
    lambda: list(tree(b"b\0aa\0\0", b"a\0aa\0\0").digests()),
    lambda: list(tree(b"../a\0aa\0\0").digests()),
    lambda: list(tree(many(b"b")).entries([b"a"])),
    lambda: list(tree(many(b"a"), many(b"a")).entries([b"a"])),
    lambda: list(tree(many(b"b")).zeros([b"a"])),
    lambda: list(tree(b"a\0f " + b"9" * 9000 + b"\0\0").entries([b"a"])),
    lambda: list(tree(b'["b", {}]\n').attributes([b"a"])),
    lambda: list(tree(*map(fat, b"abcdefgh")).attributes(bytes([name]) for name in b"abcdefgh")),
    lambda: list(tree(result()).order([Op("delete", b"other", None, None, None, b"", b"", False)])),
    lambda: list(tree().order([Op("delete", b"plc", None, None, None, b"", b"", False)])),
    lambda: list(tree(result(), result()).order([Op("delete", b"plc", None, None, None, b"", b"", False)])),
    lambda: list(tree().give(ASKED, deflate=False)),
    lambda: list(tree(b"").give(ASKED, deflate=False)),
    lambda: list(tree(wrap(Parcel([], []))).give(ASKED, deflate=False)),
    lambda: list(tree(SHORT).give(ASKED, deflate=False)),
    lambda: list(tree(wrap(GIVEN) + b"more").give(ASKED, deflate=False)),
    lambda: list(tree(wrap(GIVEN)[:-1]).give(ASKED, deflate=False)),
    lambda: list(tree(wrap(Parcel([(b"other", FILE.record, b"")], [b"data"]))).give(ASKED, deflate=False)),
    lambda: list(
        tree(wrap(Parcel([(b"plc", FILE._replace(size=3).record, b"")], [b"dat"]))).give(ASKED, deflate=False)
    ),
    lambda: list(tree(wrap(GIVEN), wrap(GIVEN)).give(ASKED, deflate=False)),
    # Numbers, times and texts that nothing of ours can hold.
    lambda: partner(address="root/", facts={**LOOK, "free_bytes": 10**400}).look("/srv"),
    lambda: partner(address="root/", facts={**LOOK, "free_bytes": -1}).look("/srv"),
    lambda: partner(address="root/", facts={**LOOK, "reason": "x" * 70_000}).look("/srv"),
    lambda: partner(tree=0, facts={**FACTS, "time": 10**400}).open("/srv", "directory", name=b""),
    lambda: partner(tree=0, facts={**FACTS, "machine": "\ud800"}).open("/srv", "directory", name=b""),
    lambda: partner(tree=0, facts={**FACTS, "path": "a\0b"}).open("/srv", "directory", name=b""),
    lambda: partner(tree=0, facts={**FACTS, "inode": 1 << 64}).open("/srv", "directory", name=b""),
    lambda: partner(tree=0, facts={**FACTS, "others": [{"job": []}]}).open("/srv", "directory", name=b""),
    lambda: partner(tree=0, facts={**FACTS, "others": [{"job": "x" * 5000}]}).open("/srv", "directory", name=b""),
    lambda: partner(tree=0, facts={**FACTS, "others": [{"element": "../../etc"}]}).open("/srv", "directory", name=b""),
    lambda: list(tree(b"a\0aa\0\0").digests()),
    lambda: list(tree(b"a\0" + b"aa" * 17 + b"\0\0").digests()),
    lambda: list(tree(b"plc\0" + FILE.record + b"\0" + FILE._replace(digest=b"x").more + b"\0").entries([b"plc"])),
    lambda: list(tree(b'["a", {"user.a\\u0000b": ""}]\n').attributes([b"a"])),
    lambda: list(tree(b'["a", {"user.\\ud800": ""}]\n').attributes([b"a"])),
    lambda: tree(moment=10**400).settle(),
    lambda: tree(occupied=10**400).occupied([b"a"]),
    lambda: tree(occupied=-1).occupied([b"a"]),
    lambda: list(tree(version(bytes=10**400)).versions(None)),
    lambda: list(tree(version(when=10**400)).versions(None)),
    lambda: list(tree(version(run="a\0b")).versions(None)),
    lambda: taken(b""),
    lambda: taken(pack_made([MADE, MADE])),
    lambda: taken(pack_made([(FILE._replace(uid=-1), None)])),
    lambda: taken(b"\0x\0\0"),
]


def test_files_come_and_go_in_parcels() -> None:
    assert list(tree(wrap(GIVEN)).give(ASKED, deflate=False)) == [GIVEN]
    made = [MADE, (None, Problem("no_space", "No space left on device"))]
    assert taken(pack_made(made), GIVEN._replace(items=GIVEN.items * 2, contents=GIVEN.contents * 2)) == [made]


def test_digests_that_came_with_the_scan_are_looked_at_as_those_that_are_asked_for() -> None:
    def come(data: bytes) -> list[tuple[bytes, bytes]]:
        held = tree(data, **{**SUMMARY, "root": ROOT, "digests": True})
        held.scan(b"", [], [], frozenset(), 0)
        return list(held.digests())

    assert come(b"a\0" + b"aa" * 16 + b"\0\0") == [(b"a", b"\xaa" * 16)]
    for data in (b"b\0" + b"aa" * 16 + b"\0\0a\0" + b"aa" * 16 + b"\0\0", b"a\0aa\0\0", b"a"):
        with pytest.raises(Failure, match="cannot be one"):
            come(data)


def test_what_fails_of_what_was_said_is_raised_before_a_later_answer() -> None:
    """And what came of a question before it is told all the same."""
    taken = []

    class Refusing(Saying):
        number = 0

        def ask_early(self, *_question: object, **_request: object) -> int:
            self.number += 1
            return self.number

        def pieces(self, number: int, _patience: float) -> Iterator[bytes]:
            taken.append(number)
            if number == 2:
                raise Failure("no_space", "no", transient=True)
            yield from self.data

    held = PartnerTree(Refusing({}, result()), 0, FACTS)  # type: ignore[arg-type]
    first = held.order([DELETE])
    held.sync()
    held.finish()
    second = held.order([DELETE])
    assert next(first).path == b"plc"
    with pytest.raises(Failure, match="no"):
        next(second)
    assert taken == [1, 2]
    held.answered()
    assert taken == [1, 2, 3] and held.asked == {1, 2, 4}


def test_no_more_children_than_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serversync.replica.MEANWHILE", 1)
    held = PartnerTree(Saying({**SUMMARY, "root": ROOT}, many(b"a", b"b", b"c", b"d")), 0, FACTS)  # type: ignore[arg-type]
    held.scan(b"", [], [], frozenset(), 0)
    with pytest.raises(Failure, match="more paths than there are"):
        list(held.listing([b""]))
    assert held.room.paths == -1


@pytest.mark.parametrize("ask", ["digests", "listing"])
def test_names_of_a_small_tree_are_bounded_by_their_bytes_too(ask: str) -> None:
    """A hundred thousand may come meanwhile, but not of the longest names that there are."""
    some = [
        b"".join(b"%08d%b\0%b\0\0" % (at + n, b"x" * 60_000, b"aa" * 16) for n in range(16))
        for at in range(0, 3200, 16)
    ]
    held = tree(*some)
    with pytest.raises(Failure, match="longer than"):
        list(held.digests() if ask == "digests" else held.listing([b""]))


def test_of_a_version_only_what_is_used_is_kept() -> None:
    assert list(tree(version(more=[[]] * 1000)).versions(None)) == [json.loads(version())]


def test_of_what_another_server_says_of_a_failure_a_person_reads_little() -> None:
    told = Failure.from_dict({"code": "a b", "message": "x" * 99_999, "field": {"x": "y" * 99_999}})
    assert (told.code, len(told.message), len(told.field or "")) == ("unknown", 10_000, 10_000)
    assert [len(text) for text in tree(problems=["x" * 9999] * 300).prune(0, 0, 0)] == [1000] * 200


@pytest.mark.parametrize("ask", NONSENSE)
def test_what_is_none_is_the_partners_failure(ask: Callable[[], object]) -> None:
    with pytest.raises(Failure) as raised:
        ask()
    assert raised.value.code == "protocol"
    assert "hq:22" in raised.value.message


@pytest.mark.parametrize(
    "changed",
    [
        {"mode": 0o10000},
        {"uid": -1},
        {"gid": 1 << 32},
        {"size": -1},
        {"size": 1 << 63},
        {"mtime": 1 << 100},
        {"link": b"\0"},
        {"inode": -1},
        {"inode": 1 << 64},
        {"nlink": 1 << 64},
        {"digest": b"x"},
        {"xattrs": b"x" * 99},
    ],
)
def test_no_entry_has_such_numbers(changed: dict[str, Any]) -> None:
    assert plausible(FILE) == FILE
    with pytest.raises(ValueError, match="is no entry"):
        plausible(FILE._replace(**changed))


def test_a_lost_connection_does_not_hide_why_a_replica_is_closed() -> None:
    class Lost(Saying):
        def tell(self, *_question: object, **_request: object) -> None:
            raise Failure("connection", "lost", transient=True)

    held = PartnerTree(Lost({}), 0, FACTS)  # type: ignore[arg-type]
    with pytest.raises(Stopped):
        try:
            raise Stopped
        finally:
            held.close()


def test_operations_travel_in_frames_that_hold_them() -> None:
    path = b"/".join([b"\xc3\xa4" * 100] * 12)
    ops = [Op("put", path, None, FILE, None, path)] * 2000
    requests = list(fitting(ops))
    assert len(requests) > 1
    assert all(len(request) <= PAYLOAD_LIMIT for request in requests)
    assert [op for request in requests for op in decode_ops(request)] == ops


def test_an_element_within_another_one_has_the_address_of_its_own_root() -> None:
    one = partner()
    one.addresses = {"/": "all/", "/srv": "read/srv", "/srv/data": "written/", "/srv/d": "other/"}
    assert one.address("/srv/data/x") == "hq::written//x"
    assert one.inside("/srv/data/x") == "/x"
    assert one.address("/srv/more") == "hq::read/srv/more"
    assert one.address("/home") == "hq::all/home"
