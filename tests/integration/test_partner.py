# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A partner that tells what cannot be: nothing comes of it, and an honest one is synchronized with afterwards."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.loopback import PACKAGE, Pair

SCRIPT = """\
import os, sys
sys.path.insert(0, {package!r})
sys.dont_write_bytecode = True
os.environ["HOME"] = {home!r}
from serversync import serve
from serversync.cli import main
from serversync.tree import Tree
listing, encode_result = Tree.listing, serve.encode_result
RECORD = b"d 1 1.0000000000 1.0000000000 1 755 0 0 2 "
def endless():
    start = 0
    while True:
        names = range(start, start := start + 1000)
        yield {{"more": True}}, b"".join(b"%020d\\0%b\\0\\0" % (name, RECORD) for name in names)
HUGE = b"f 1 1.0000000000 1.0000000000 " + b"9" * 400 + b" 644 0 0 1 "
def other_files(payload):
    from serversync.parcel import Parcel, Wrapper
    parcel = Parcel([(b"../outside", b"f 1 1.0 1.0 1 644 0 0 1 ", b"")], [b"x"])
    yield {{"more": True}}, Wrapper(deflate=False).wrap(parcel)
    yield {{}}, b""
def steer():
    raise serve.Failure("\\x1b[2J", "\\x1b[2Jgone", field="\\x1b[31m")
{lie}
sys.exit(main("user"))
"""
LIES = {
    "upwards": "Tree.listing = lambda self, some: [(b'..', RECORD, b''), *listing(self, some)]",
    "reserved": "Tree.listing = lambda self, some: [(b'.serversync', RECORD, b''), *listing(self, some)]",
    "nonsense": "Tree.listing = lambda self, some: [(path, b'x', b'') for path, _record, _more in listing(self, some)]",
    "kind": "Tree.listing = lambda self, some: [(path, b'Q' + it[1:], b'') for path, it, _more in listing(self, some)]",
    "mute": "serve.Desk.verb_commit = lambda self, request, payload: serve.stream([])",
    "twice": "Tree.listing = lambda self, some: [it for it in listing(self, some) for _twice in range(2)]",
    "endless": "serve.Desk.verb_listing = lambda self, request, payload: endless()",
    "empty": "serve.Desk.verb_listing = lambda self, request, payload: iter(lambda: ({'more': True}, b''), None)",
    "steering": "serve.Desk.verb_scan = lambda self, request, payload: steer()",
    "parcel": "serve.Desk.verb_give = lambda self, request, payload: other_files(payload)",
    "huge": "Tree.listing = lambda self, some: [(path, HUGE, b'') for path, _record, _more in listing(self, some)]",
    "attributes": "serve.encode_attributes = lambda found: {'user.a\\0b': ''}",
    "digests": "Tree.digests = lambda self: [(b'', b'short')]",
    "moment": "Tree.settle = lambda self: 10 ** 400",
    "clock": "serve.about = lambda: {'version': serve.__version__, 'protocol': serve.PROTOCOL, 'time': float('nan')}",
    "nul": "serve.encode_result = lambda it: {**encode_result(it), 'entry': [RECORD.decode() + 'a\\0b', '']}",
}


def tell(pair: Pair, lie: str) -> str:
    """The partner's door leads to a liar from now on; the text of the one that it had."""
    script, honest = pair.there.home / "lies.py", pair.there.door.read_text()
    script.write_text(SCRIPT.format(package=str(PACKAGE), home=str(pair.there.home), lie=lie))
    pair.there.door.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{script}' serve --pairing site-a\n")
    return honest


def outside(pair: Pair) -> list[str]:
    """What lies beside the element, and beside the directories of the two servers."""
    return sorted(path.name for path in pair.path.parent.iterdir())


@pytest.mark.parametrize("lie", LIES)
def test_lies(pair: Pair, lie: str) -> None:
    direction = "to_partner" if lie in ("mute", "nul") else "from_partner"
    before = outside(pair)
    pair.partner_path.mkdir()
    source, target = (pair.path, pair.partner_path) if direction == "to_partner" else (pair.partner_path, pair.path)
    (source / "line").mkdir()
    (source / "line" / "plc").write_text("x")
    pair.declare(direction=direction)
    if lie == "attributes":
        os.setxattr(source / "line" / "plc", "user.a", b"b")
    honest = tell(pair, LIES[lie])
    record = pair.here.run("nightly", code=1)
    assert record["error"]["code"] == ("unknown" if lie == "steering" else "protocol")
    assert f"127.0.0.1:{pair.there.port}" in record["error"]["message"] or "partner" in record["error"]["message"]
    assert outside(pair) == before
    for command in ("run", "show", "status", "plan") if lie == "steering" else ():
        shown = pair.here.serversync(command, "nightly", code=None)
        assert "gone" in shown.stdout
        assert "\x1b" not in shown.stdout + shown.stderr
    pair.there.door.write_text(honest)
    assert pair.here.run("nightly")["state"] == "equal"
    assert (target / "line" / "plc").read_text() == "x"


ENDS = """\
def refuse(code):
    raise serve.Failure(code, 'no')
def half(request):
    os.write(1, b'{"id": %d, "bytes": 9}\\nx' % request["id"])
    os._exit(1)
"""
ERRORS = {
    # What ssh alone can know is not believed of the partner.
    "host key": ("sys.stderr.write('Host key verification failed.\\n'); sys.exit(1)", "connection"),
    "log-in": ("sys.stderr.write('Permission denied (publickey).\\n'); sys.exit(1)", "connection"),
    "midst": ("serve.Desk.verb_listing = lambda self, request, payload: os._exit(1)", "connection"),
    "half": ("serve.Desk.verb_listing = lambda self, request, payload: half(request)", "connection"),
    "records": ("serve.Desk.verb_scan = lambda self, request, payload: refuse('records')", "unknown"),
}


@pytest.mark.parametrize("lie", ERRORS)
def test_ends_that_are_not_what_they_are_called(pair: Pair, lie: str) -> None:
    pair.partner_path.mkdir()
    (pair.partner_path / "plc").write_text("x")
    pair.declare(direction="from_partner")
    text, code = ERRORS[lie]
    honest = tell(pair, f"{ENDS}{text}")
    error = pair.here.run("nightly", code=1)["error"]
    assert (error["code"], f"127.0.0.1:{pair.there.port}" in error["message"]) == (code, True)
    pair.there.door.write_text(honest)
    assert pair.here.run("nightly")["state"] == "equal"


LOG_LIES = {
    "endless": "Source.read = lambda self, number, start, end: iter(lambda: b'x' * 1000000, None)",
    "nothing": "Source.take = lambda self, number, mark, end: Extent(mark.offset, 0, NOTHING.head, mark)",
    "name": "File.name = property(lambda self: '../x', lambda self, name: None)",
    "state": "Source.mark = lambda self, number, offset: [offset, {}, {}]",
    "numbers": "Source.count = lambda self, number, start: (10 ** 400, 1)",
}


@pytest.mark.parametrize("lie", LOG_LIES)
def test_lies_about_a_log(pair: Pair, lie: str) -> None:
    pair.partner_path.mkdir()
    source, target = pair.partner_path / "plant.log", pair.path / "plant.log"
    source.write_text("one\ntwo\n")
    document = pair.declare(direction="from_partner", pairs=[(target, source)])
    declared = json.loads(document.read_text())
    declared["elements"][0]["kind"] = "log"
    document.write_text(json.dumps(declared))
    honest = tell(pair, f"from serversync.logfile import NOTHING, Extent, File, Source\n{LOG_LIES[lie]}")
    error = pair.here.run("nightly", code=1)["error"]
    assert (error["code"], f"127.0.0.1:{pair.there.port}" in error["message"]) == ("protocol", True)
    pair.there.door.write_text(honest)
    assert pair.here.run("nightly")["state"] == "equal"
    assert target.read_text() == "one\ntwo\n"


def test_the_partner_is_checked_whatever_it_says_of_itself(pair: Pair) -> None:
    pair.partner_path.mkdir()
    pair.declare(direction="from_partner")
    tell(pair, "serve.rsync_version = lambda: '9' * 5000")
    shown = pair.here.serversync("check", "nightly", code=1)
    assert "gave an answer that cannot be one" in shown.stdout
