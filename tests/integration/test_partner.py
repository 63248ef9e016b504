# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A partner that tells what cannot be: nothing comes of it, and an honest one is synchronized with afterwards."""

from __future__ import annotations

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
    "nul": "serve.encode_result = lambda it: {**encode_result(it), 'entry': [RECORD.decode() + 'a\\0b', '']}",
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(pair: Pair, lie: str) -> None:
    direction = "to_partner" if lie in ("mute", "nul") else "from_partner"
    pair.partner_path.mkdir()
    source, target = (pair.path, pair.partner_path) if direction == "to_partner" else (pair.partner_path, pair.path)
    (source / "line").mkdir()
    (source / "line" / "plc").write_text("x")
    pair.declare(direction=direction)
    script, honest = pair.there.home / "lies.py", pair.there.door.read_text()
    script.write_text(SCRIPT.format(package=str(PACKAGE), home=str(pair.there.home), lie=LIES[lie]))
    pair.there.door.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{script}' serve --pairing site-a\n")
    record = pair.here.run("nightly", code=1)
    assert record["error"]["code"] == ("unknown" if lie == "steering" else "protocol")
    for command in ("run", "show", "status", "plan") if lie == "steering" else ():
        shown = pair.here.serversync(command, "nightly", code=None)
        assert "gone" in shown.stdout
        assert "\x1b" not in shown.stdout + shown.stderr
    pair.there.door.write_text(honest)
    assert pair.here.run("nightly")["state"] == "equal"
    assert (target / "line" / "plc").read_text() == "x"
