# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Circles, contended targets and chains: a table of fleets, and properties against a search that tries everything."""

from __future__ import annotations

import functools
import itertools

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _job
from ansible_collections.serversync.core.plugins.module_utils._fleet import Server, apart, hides
from ansible_collections.serversync.core.plugins.module_utils._topology import LEVELS, analyse
from hypothesis import assume, given, settings
from hypothesis import strategies as st


def job(name, host, path, partner_path=None, **more):
    """A job of one element; what is no option of a job or an element is one of its settings."""
    element = {"path": path, "partner_path": partner_path or path, "kind": more.pop("kind", "tree")}
    reason, schedule = more.pop("accept", None), more.pop("every", None)
    connection = more.pop("connection", "ssh")
    partner = {"host": host, "connection": connection}
    if "port" in more:
        partner["port"] = more.pop("port")
    parameters = {"name": name, "partner": partner, "elements": [element], "settings": more}
    if reason:
        parameters["accept_circular"] = reason
    if schedule:
        parameters["schedule"] = {"every": schedule}
    made, problems = _job.declare(parameters)
    assert problems == []
    return made


def own(name, host, *elements, **more):
    """A job of several elements, each a path on this server, one on the partner, and what it has of its own."""
    entries = [{"path": here, "partner_path": there, "settings": settings} for here, there, settings in elements]
    made, problems = _job.declare({"name": name, "partner": {"host": host}, "elements": entries, "settings": more})
    assert problems == []
    return made


def fleet(**jobs):
    return [Server(name, ones) for name, ones in jobs.items()]


def found(servers, *levels):
    """Level, kind and issue of what is found; of these levels, or of errors and warnings."""
    findings = analyse(servers).findings
    return [(one.level, one.kind, one.issue) for one in findings if one.level in (levels or LEVELS[:2])]


BACK = {"direction": "from_partner"}
BOTH = {"direction": "both"}
ADDS = {"max_change": 0}

TABLE = {
    "one way": (fleet(a=[job("j", "hq", "/x")]), []),
    "both ways in one element": (fleet(a=[job("j", "hq", "/x", **BOTH)]), []),
    "there and back by two jobs of one server": (
        fleet(siteA=[job("a", "hq", "/srv/x"), job("b", "hq", "/srv/x", **BACK)]),
        [("error", "circle", "A circle: siteA:/srv/x -> hq:/srv/x -> siteA:/srv/x, by jobs a, b.")],
    ),
    "there and back by a job of each": (
        fleet(siteA=[job("a", "hq", "/srv/x")], hq=[job("b", "siteA", "/srv/x")]),
        [("error", "circle", "A circle: hq:/srv/x -> siteA:/srv/x -> hq:/srv/x, by jobs b on hq, a on siteA.")],
    ),
    "by SSH there and by SFTP back": (
        fleet(a=[job("j", "nas", "/x"), job("k", "nas", "/x", connection="sftp", **BACK)]),
        [("error", "circle", "A circle: a:/x -> nas:/x -> a:/x, by jobs j, k.")],
    ),
    "there and back by two elements of one job, of which the partner is the same server": (
        fleet(a=[own("j", "a", ("/x", "/y", None), ("/y", "/x", None))]),
        [("error", "circle", "A circle: a:/x -> a:/y -> a:/x, by job j.")],
    ),
    "an element's own direction opens a circle": (
        fleet(a=[job("j", "hq", "/x"), own("k", "hq", ("/x", "/x", {"direction": "to_partner"}), **BACK)]),
        [("error", "contended", "One target of several elements: hq:/x, by jobs j, k.")],
    ),
    "an element's own direction closes a circle": (
        fleet(a=[job("j", "hq", "/x"), own("k", "hq", ("/z", "/z", None), ("/x", "/x", BACK))]),
        [("error", "circle", "A circle: a:/x -> hq:/x -> a:/x, by jobs j, k.")],
    ),
    "both by an element's own direction": (fleet(a=[own("j", "hq", ("/z", "/z", None), ("/x", "/x", BOTH))]), []),
    "a circle of elements that only add by their own settings": (
        fleet(
            a=[own("j", "hq", ("/x", "/x", ADDS), delete="extraneous"), own("k", "hq", ("/x", "/x", {**BACK, **ADDS}))]
        ),
        [("error", "circle", "A circle: a:/x -> hq:/x -> a:/x, by jobs j, k.")],
    ),
    "a circle of elements that neither delete nor overwrite by their own settings": (
        fleet(
            a=[
                own("j", "hq", ("/x", "/x", {**ADDS, "delete": "never"}), delete="extraneous"),
                own("k", "hq", ("/x", "/x", {**BACK, **ADDS})),
            ]
        ),
        [("warning", "circle", "A circle: a:/x -> hq:/x -> a:/x, by jobs j, k.")],
    ),
    "through three servers": (
        fleet(a=[job("j", "b", "/x")], b=[job("k", "c", "/x", "/y")], c=[job("l", "a", "/y", "/x")]),
        [("error", "circle", "A circle: a:/x -> b:/x -> c:/y -> a:/x, by jobs j on a, k on b, l on c.")],
    ),
    "through a target that is inside a source": (
        fleet(a=[job("j", "b", "/srv", "/copy/a")], b=[job("k", "a", "/copy", "/srv/back")]),
        [
            (
                "error",
                "circle",
                "A circle: a:/srv -> b:/copy/a (inside b:/copy) -> a:/srv/back (inside a:/srv), "
                "by jobs j on a, k on b.",
            )
        ],
    ),
    "through a target that is around a source": (
        fleet(a=[job("j", "b", "/srv/x", "/in")], b=[job("k", "a", "/in/x", "/srv")]),
        [
            (
                "error",
                "circle",
                "A circle: a:/srv/x -> b:/in (around b:/in/x) -> a:/srv (around a:/srv/x), by jobs j on a, k on b.",
            )
        ],
    ),
    "names that only begin alike do not overlap": (
        fleet(a=[job("j", "b", "/srv/x", "/srv/x")], b=[job("k", "a", "/srv/x1", "/srv/x2")]),
        [],
    ),
    "on one server": (
        fleet(a=[job("j", "z", "/x", "/y", connection="local"), job("k", "z", "/y", "/x", connection="local")]),
        [("error", "circle", "A circle: a:/x -> a:/y -> a:/x, by jobs j, k.")],
    ),
    "of a partner that is this server": (
        fleet(a=[job("j", "localhost", "/x", "/y"), job("k", "A.", "/y", "/x")]),
        [("error", "circle", "A circle: a:/x -> a:/y -> a:/x, by jobs j, k.")],
    ),
    "a port of this server that may lead anywhere": (
        fleet(a=[job("j", "127.0.0.1", "/x", port=2222), job("k", "127.0.0.1", "/x")]),
        [("error", "inside_itself", "A target that is its own source: a:/x -> a:/x, by job k.")],
    ),
    "two ports of a router": (
        fleet(a=[job("j", "gw", "/x", port=2201), job("k", "gw", "/x", port=2202), job("l", "gw", "/x")]),
        [],
    ),
    "of elements that only add": (
        fleet(a=[job("j", "b", "/x", **ADDS), job("k", "b", "/x", **dict(ADDS, **BACK))]),
        [("warning", "circle", "A circle: a:/x -> b:/x -> a:/x, by jobs j, k.")],
    ),
    "of which one only adds": (
        fleet(a=[job("j", "b", "/x", **ADDS), job("k", "b", "/x", **BACK)]),
        [("error", "circle", "A circle: a:/x -> b:/x -> a:/x, by jobs j, k.")],
    ),
    "of which one deletes": (
        fleet(a=[job("j", "b", "/x", **ADDS), job("k", "b", "/x", delete="synced", **dict(ADDS, **BACK))]),
        [("error", "circle", "A circle: a:/x -> b:/x -> a:/x, by jobs j, k.")],
    ),
    "of logs": (
        fleet(a=[job("j", "b", "/l", kind="log"), job("k", "b", "/l", kind="log", **BACK)]),
        [("error", "circle", "A circle: a:/l -> b:/l -> a:/l, by jobs j, k.")],
    ),
    "accepted by one of its jobs": (
        fleet(a=[job("j", "b", "/x", accept="for a test")], b=[job("k", "a", "/x")]),
        [],
    ),
    "parted by what is included": (
        fleet(a=[job("j", "b", "/x", include=["*.xml"]), job("k", "b", "/x", include=["*.csv"], **BACK)]),
        [("warning", "split", "A circle that only filters keep open: a:/x -> b:/x -> a:/x, by jobs j, k.")],
    ),
    "parted by what the outer one excludes": (
        fleet(a=[job("j", "b", "/x", exclude=["/done/"]), job("k", "b", "/x/done", **BACK)]),
        [
            (
                "warning",
                "split",
                "A circle that only filters keep open: a:/x -> b:/x (around b:/x/done) -> a:/x/done (inside a:/x), "
                "by jobs j, k.",
            )
        ],
    ),
    "not parted by what is excluded elsewhere": (
        fleet(a=[job("j", "b", "/x", include=["/done/"]), job("k", "b", "/x/done", exclude=["/done/"], **BACK)]),
        [
            (
                "error",
                "circle",
                "A circle: a:/x -> b:/x (around b:/x/done) -> a:/x/done (inside a:/x), by jobs j, k.",
            )
        ],
    ),
    "not parted by endings that end alike": (
        fleet(a=[job("j", "b", "/x", include=["*.gz"]), job("k", "b", "/x", include=["*.tar.gz"], **BACK)]),
        [("error", "circle", "A circle: a:/x -> b:/x -> a:/x, by jobs j, k.")],
    ),
    "a mesh": (
        fleet(a=[job("j", "b", "/x", **BOTH)], b=[job("k", "c", "/x", **BOTH)], c=[job("l", "a", "/x", **BOTH)]),
        [
            ("error", "contended", "One target of several elements: b:/x, by jobs j on a, k on b."),
            ("error", "contended", "One target of several elements: a:/x, by jobs j on a, l on c."),
            ("error", "contended", "One target of several elements: c:/x, by jobs k on b, l on c."),
            (
                "warning",
                "mesh",
                "A mesh of elements with direction both: a:/x <-> b:/x <-> c:/x <-> a:/x, "
                "by jobs j on a, k on b, l on c.",
            ),
        ],
    ),
    "a tree of both is no mesh": (
        fleet(
            hub=[job("j", "b", "/b", "/x", **BOTH), job("k", "c", "/c", "/x", **BOTH)],
            c=[job("l", "d", "/x/sub", **BOTH)],
        ),
        [
            ("warning", "contended", "A target inside another one: c:/x/sub inside c:/x, by jobs l on c, k on hub."),
        ],
    ),
    "a star that is fed from its middle": (
        fleet(hub=[job("j%d" % one, "s%d" % one, "/x") for one in range(4)]),
        [],
    ),
    "two jobs that write one place": (
        fleet(a=[job("j", "hq", "/x", "/in")], b=[job("k", "hq", "/y", "/in")], hq=[]),
        [("error", "contended", "One target of several elements: hq:/in, by jobs j on a, k on b.")],
    ),
    "two logs that are collected in one file": (
        fleet(a=[job("j", "hq", "/l", kind="log")], b=[job("k", "hq", "/l", kind="log")], hq=[]),
        [],
    ),
    "a log in a tree that is written": (
        fleet(a=[job("j", "hq", "/l", "/in/l", kind="log")], b=[job("k", "hq", "/in")], hq=[]),
        [("warning", "contended", "A target inside another one: hq:/in/l inside hq:/in, by jobs j on a, k on b.")],
    ),
    "two jobs that write one place inside the other": (
        fleet(a=[job("j", "hq", "/x", "/in/x/y")], b=[job("k", "hq", "/z", "/in")], hq=[]),
        [("warning", "contended", "A target inside another one: hq:/in/x/y inside hq:/in, by jobs j on a, k on b.")],
    ),
    "which the outer one excludes": (
        fleet(a=[job("j", "hq", "/x", "/in/x/y")], b=[job("k", "hq", "/z", "/in", exclude=["/x"])], hq=[]),
        [
            (
                "warning",
                "split",
                "Targets that only filters keep apart: hq:/in/x/y inside hq:/in, by jobs j on a, k on b.",
            )
        ],
    ),
    "which the outer one does not include": (
        fleet(a=[job("j", "hq", "/x", "/in/x/y")], b=[job("k", "hq", "/z", "/in", include=["/a/", "/b"])], hq=[]),
        [
            (
                "warning",
                "split",
                "Targets that only filters keep apart: hq:/in/x/y inside hq:/in, by jobs j on a, k on b.",
            )
        ],
    ),
    "an element inside another with other settings": (
        fleet(a=[job("j", "hq", "/x"), job("k", "hq", "/x/y", delete="extraneous", exclude=["a"])]),
        [
            (
                "error",
                "nested",
                "An element inside another one with other settings (delete, exclude): hq:/x/y inside hq:/x, "
                "by jobs k, j.",
            )
        ],
    ),
    "an element inside another with the same settings": (
        fleet(a=[job("j", "hq", "/x"), job("k", "hq", "/x/y")]),
        [
            (
                "warning",
                "nested",
                "An element inside another one with the same settings: hq:/x/y inside hq:/x, by jobs k, j.",
            )
        ],
    ),
    "two elements inside another, of which one has other settings": (
        fleet(a=[job("j", "hq", "/x"), job("k", "hq", "/x/y"), job("l", "hq", "/x/z", conflict="partner_wins")]),
        [
            (
                "error",
                "nested",
                "An element inside another one with other settings (conflict): hq:/x/z inside hq:/x, by jobs l, j.",
            ),
            (
                "warning",
                "nested",
                "An element inside another one with the same settings: hq:/x/y inside hq:/x, by jobs k, j.",
            ),
        ],
    ),
    "a target inside one that is emptied of what is strange": (
        fleet(a=[job("j", "hq", "/x", "/in/x")], b=[job("k", "hq", "/z", "/in", delete="extraneous")], hq=[]),
        [
            (
                "error",
                "contended",
                "A target inside another one, which deletes what its source lacks: hq:/in/x inside hq:/in, "
                "by jobs j on a, k on b.",
            )
        ],
    ),
    "unless that is guarded": (
        fleet(
            a=[job("j", "hq", "/x", "/in/x")],
            b=[job("k", "hq", "/z", "/in", delete="extraneous", max_delete="0")],
            hq=[],
        ),
        [("warning", "contended", "A target inside another one: hq:/in/x inside hq:/in, by jobs j on a, k on b.")],
    ),
    "a target inside two others, of which the outer one deletes": (
        fleet(
            a=[job("j", "hq", "/x", "/in/x/y")],
            b=[job("k", "hq", "/z", "/in/x")],
            c=[job("l", "hq", "/w", "/in", delete="extraneous", exclude=["/x/y"], accept="k is gone soon")],
            d=[job("m", "hq", "/w", "/in", delete="extraneous", exclude=["/x/z"])],
            hq=[],
        ),
        [
            (
                "error",
                "contended",
                "A target inside another one, which deletes what its source lacks: hq:/in/x/y inside hq:/in, "
                "by jobs j on a, m on d.",
            ),
            (
                "error",
                "contended",
                "A target inside another one, which deletes what its source lacks: hq:/in/x inside hq:/in, "
                "by jobs k on b, m on d.",
            ),
        ],
    ),
    "a log in a tree that excludes directories of its name": (
        fleet(
            a=[job("j", "hq", "/l", "/in/l", kind="log")],
            b=[job("k", "hq", "/y", "/in", delete="extraneous", exclude=["/l/"])],
            hq=[],
        ),
        [
            (
                "error",
                "contended",
                "A target inside another one, which deletes what its source lacks: hq:/in/l inside hq:/in, "
                "by jobs j on a, k on b.",
            )
        ],
    ),
    "a target inside its own source": (
        fleet(a=[job("j", "a", "/x", "/x/y")]),
        [("error", "inside_itself", "A target inside its own source: a:/x -> a:/x/y, by job j.")],
    ),
    "a target inside its own source, which leaves it out": (
        fleet(a=[job("j", "a", "/x", "/x/y", exclude=["/y/"])]),
        [
            (
                "warning",
                "split",
                "A target and its own source that only filters keep apart: a:/x -> a:/x/y, by job j.",
            )
        ],
    ),
    "a circle through a target inside its own source": (
        fleet(a=[job("j", "a", "/x", "/x/y", exclude=["/y/"]), job("k", "a", "/x/y", "/z"), job("l", "a", "/z", "/x")]),
        [
            ("error", "circle", "A circle: a:/x/y -> a:/z -> a:/x (around a:/x/y), by jobs k, l."),
            ("warning", "contended", "A target inside another one: a:/x/y inside a:/x, by jobs j, l."),
            (
                "warning",
                "split",
                "A target and its own source that only filters keep apart: a:/x -> a:/x/y, by job j.",
            ),
        ],
    ),
    "a circle that filters keep open, through a target inside its own source": (
        fleet(
            a=[
                job("j", "a", "/x", "/x/y", exclude=["/y/"]),
                job("k", "b", "/x/y", "/z", include=["*.csv"]),
                job("l", "b", "/x", "/z", include=["*.xml"], **BACK),
            ]
        ),
        [
            ("warning", "contended", "A target inside another one: a:/x/y inside a:/x, by jobs j, l."),
            (
                "warning",
                "split",
                "A circle that only filters keep open: a:/x/y -> b:/z -> a:/x (around a:/x/y), by jobs k, l.",
            ),
            (
                "warning",
                "split",
                "A target and its own source that only filters keep apart: a:/x -> a:/x/y, by job j.",
            ),
        ],
    ),
    "a target around its own source": (
        fleet(a=[job("j", "a", "/x/y", "/x")]),
        [("error", "inside_itself", "A target around its own source: a:/x/y -> a:/x, by job j.")],
    ),
    "one machine under two names": (
        [Server("a", [job("j", "b", "/x", "/y")], machine="m"), Server("b", [job("k", "a", "/y", "/x")], machine="m")],
        [
            ("error", "circle", "A circle: a:/x -> a:/y -> a:/x, by jobs j on a, k on b."),
            ("warning", "same_machine", "One machine under two names: a and b have the same machine id."),
        ],
    ),
    "a server by its alias": (
        [
            Server("a", [job("j", "hq.example.com", "/x")]),
            Server("hq", [job("k", "10.0.0.7", "/x", port=2201)], aliases=["HQ.example.com"]),
            Server("c", [], aliases=["10.0.0.7"]),
            Server("d", [job("l", "a", "/x", "/z")], aliases=["10.0.0.7:2201"]),
        ],
        [],
    ),
    "an IPv6 address in two spellings": (
        fleet(a=[job("j", "fd00::7", "/x"), job("k", "FD00:0:0::0:7", "/x", **BACK)]),
        [("error", "circle", "A circle: a:/x -> fd00::7:/x -> a:/x, by jobs j, k.")],
    ),
    "a server by the name of a pairing": (
        [Server("a", [job("j", "main", "/x")], partners={"main": "hq"}), Server("hq", [job("k", "a", "/x")])],
        [("error", "circle", "A circle: a:/x -> hq:/x -> a:/x, by jobs j on a, k on hq.")],
    ),
    "a link hides nothing": (
        [
            Server("a", [job("j", "hq", "/x"), job("k", "hq", "/y", "/in", **BACK)]),
            Server("hq", [], places={"/x": ("8:1", "/data"), "/in": ("8:1", "/data")}),
            Server("b", [job("l", "a", "/z", "/y/sub")]),
        ],
        [("warning", "contended", "A target inside another one: a:/y/sub inside a:/y, by jobs l on b, k on a.")],
    ),
    "a bind mount hides no circle": (
        [
            Server(
                "a",
                [job("j", "hq", "/x"), job("k", "hq", "/y", **BACK)],
                places={"/x": ("8:1", "/data/x"), "/y": ("8:1", "/data")},
            )
        ],
        [],
    ),
    "a circle through a bind mount": (
        [
            Server(
                "a",
                [job("j", "hq", "/x/deep"), job("k", "hq", "/y", "/x", **BACK)],
                places={"/x": ("8:1", "/data/x"), "/y": ("8:1", "/data")},
            ),
        ],
        [
            (
                "error",
                "circle",
                "A circle: a:/x/deep -> hq:/x/deep (inside hq:/x) -> a:/y (around a:/x/deep), by jobs j, k.",
            )
        ],
    ),
    "a mount below keeps apart": (
        [
            Server(
                "a",
                [job("j", "hq", "/x", "/in"), job("k", "hq", "/x/mnt", "/in", **BACK)],
                places={"/x": ("8:1", "/"), "/x/mnt": ("8:2", "/")},
            )
        ],
        [],
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_fleets(name):
    servers, expected = TABLE[name]
    assert sorted(found(servers)) == sorted(expected)


def test_the_three_sentences():
    (one,) = analyse(fleet(siteA=[job("a", "hq", "/x"), job("b", "hq", "/x", delete="synced", **BACK)])).findings
    assert str(one) == (
        "A circle: siteA:/x -> hq:/x -> siteA:/x, by jobs a, b. "
        "Edits and deletions go round: which version stands, and whether a deleted file is gone or comes back, "
        "depends on which job runs first. "
        "Make one element with direction both of the two; where this is meant, give the reason in accept_circular."
    )
    assert one.as_dict()["members"] == [
        {"server": "siteA", "job": "a", "element": 0},
        {"server": "siteA", "job": "b", "element": 0},
    ]


def test_logs_cannot_go_both_ways():
    (one,) = analyse(fleet(a=[job("j", "b", "/l", kind="log"), job("k", "b", "/l", kind="log", **BACK)])).findings
    assert str(one).partition("by jobs j, k. ")[2] == (
        "Every line comes back to the log that it is from and is appended again, without end. Take one of the elements "
        "out, so that one place is the source of all; where this is meant, give the reason in accept_circular."
    )


def test_a_reason_is_repeated():
    servers = fleet(a=[job("j", "b", "/x", accept="b is only read.")], b=[job("k", "a", "/x")])
    (one,) = analyse(servers).findings
    assert (one.level, one.kind, one.accepted) == ("info", "circle", "b is only read")
    assert one.remedy == "It is accepted: b is only read."


def test_what_is_accepted_hides_no_other_circle():
    servers = fleet(
        a=[job("j", "b", "/x", accept="so"), job("l", "b", "/x/sub", "/y")],
        b=[job("k", "a", "/x"), job("m", "a", "/y", "/x/sub")],
    )
    circles = [(one.level, one.issue) for one in analyse(servers).findings if one.kind == "circle"]
    assert circles == [("error", "A circle: a:/x/sub -> b:/y -> a:/x/sub, by jobs l on a, m on b.")]


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (job("k", "hq", "/y", "/in"), job("l", "hq", "/z", "/in"), "contended"),
        (job("k", "hq", "/y", "/in/sub"), job("l", "hq", "/z", "/in", delete="extraneous"), "contended"),
        (job("k", "hq", "/y/sub", "/in/sub", delete="synced"), job("l", "hq", "/y", "/in"), "nested"),
        (job("k", "hq", "/y"), job("l", "hq", "/y", **BACK), "circle"),
        (job("k", "a", "/y", "/y/sub"), job("l", "z", "/q"), "inside_itself"),
    ],
)
def test_every_error_may_be_accepted(one, other, kind):
    assert [level for level, kinds, _issue in found(fleet(a=[one, other])) if kinds == kind] == ["error"]
    for accepting in (one, other)[: 1 if kind == "inside_itself" else 2]:
        jobs = [dict(each, accept_circular="so") if each is accepting else each for each in (one, other)]
        assert found(fleet(a=jobs)) == []
        assert [each[:2] for each in found(fleet(a=jobs), "info")] == [("info", kind)]


def test_a_chain():
    servers = fleet(
        a=[job("j", "b", "/x", every="15m")], b=[job("k", "c", "/x", every="1h"), job("l", "d", "/x")], c=[], d=[]
    )
    (one,) = analyse(servers).findings
    assert str(one) == (
        "A chain: a:/x -> b:/x -> c:/x, by jobs j on a, k on b. "
        "An edit is at the end only after the jobs have run one after the other: their delays add up, up to 75m. "
        "Where that is too late, let the first place be the source of both."
    )
    inside = fleet(a=[job("j", "b", "/x", "/in/a")], b=[job("k", "c", "/in")], c=[])
    assert found(inside, "info") == [
        ("info", "chain", "A chain: a:/x -> b:/in/a (inside b:/in) -> c:/in, by jobs j on a, k on b.")
    ]
    assert found(fleet(a=[job("j", "b", "/x", "/in/a")], b=[job("k", "c", "/in", exclude=["/a/"])], c=[]), "info") == []
    elsewhere = [job("k", "c", "/in", exclude=["/b/"])]
    inside = fleet(a=[job("j", "b", "/x", "/in/a", include=["/b/"])], b=elsewhere, c=[])
    assert [kind for _level, kind, _issue in found(inside, "info")] == ["chain"]


def test_partners_that_are_not_known():
    servers = fleet(a=[job("j", "elsewhere", "/x"), job("k", "gw", "/y", port=2201)], b=[])
    assert found(servers, "info") == [
        ("info", "unknown_server", "Partners that are not among the servers: elsewhere, gw:2201.")
    ]
    assert found(servers[:1], "info") == []


def test_many_names_are_cut():
    jobs = {"s%02d" % one: [job("j", "hq", "/x%d" % one, "/in")] for one in range(12)}
    ((_level, _kind, issue),) = found(fleet(**jobs))
    assert issue.endswith("j on s06, j on s07 and 4 more.")
    ring = {"s%02d" % one: [job("j", "s%02d" % ((one + 1) % 30), "/x")] for one in range(30)}
    ((_level, _kind, issue),) = found(fleet(**ring))
    assert "s08:/x -> 20 more -> s29:/x -> s00:/x, by jobs j on s00" in issue


def test_only_what_a_job_has_part_in():
    servers = fleet(
        a=[job("j", "b", "/x"), job("k", "b", "/x", **BACK), job("l", "b", "/y"), job("m", "b", "/y", **BACK)]
    )
    assert len(analyse(servers).findings) == 2
    (one,) = analyse(servers, [("a", "m")]).findings
    assert [member.job for member in one.members] == ["l", "m"]
    # a longer circle of the same component is found for who is in it alone
    servers = fleet(
        a=[job("j", "b", "/x"), job("k", "b", "/x", **BACK), job("l", "c", "/x", "/y")],
        c=[job("m", "b", "/y", "/x/sub")],
    )
    circles = [one for one in analyse(servers).findings if one.kind == "circle"]
    assert [sorted(member.job for member in one.members) for one in circles] == [["j", "k"]]
    circles = [one for one in analyse(servers, [("c", "m")]).findings if one.kind == "circle"]
    assert [sorted(member.job for member in one.members) for one in circles] == [["k", "l", "m"]]


def test_a_circle_is_an_error_where_one_of_its_own_elements_overwrites():
    first = [job("j", "b", "/x", **ADDS)]
    # what the others do to each other is none of the job's own circle
    servers = fleet(a=first, b=[job("k", "c", "/x", **ADDS)], c=[job("l", "b", "/x"), job("m", "a", "/x", **ADDS)])
    circles = [one for one in analyse(servers, [("a", "j")]).findings if one.kind == "circle"]
    assert [(one.level, one.issue) for one in circles] == [
        ("warning", "A circle: a:/x -> b:/x -> c:/x -> a:/x, by jobs j on a, k on b, m on c.")
    ]
    # but a longer one that it is part of is
    adds = [*first, job("k", "b", "/x", **dict(ADDS, **BACK))]
    servers = fleet(a=adds, b=[job("l", "c", "/x")], c=[job("n", "a", "/x", "/x/sub")])
    circles = [one for one in analyse(servers, [("a", "j")]).findings if one.kind == "circle"]
    assert [(one.level, one.issue) for one in circles] == [
        (
            "error",
            "A circle: a:/x -> b:/x -> c:/x -> a:/x/sub (inside a:/x), by jobs j on a, l on b, n on c.",
        )
    ]


def test_the_graph():
    servers = fleet(a=[job("j", "b", "/x", **BOTH)], b=[job("k", "c", "/x/y")])
    graph = analyse(servers).graph
    assert [(one["server"], one["path"]) for one in graph["places"]] == [
        ("a", "/x"),
        ("b", "/x"),
        ("b", "/x/y"),
        ("c", "/x/y"),
    ]
    assert graph["edges"][0] == {
        "server": "a",
        "job": "j",
        "element": 0,
        "source": 0,
        "target": 1,
        "both": True,
        "kind": "tree",
        "circle": False,
    }
    assert graph["inside"] == [{"inner": 2, "outer": 1}]


@pytest.mark.parametrize(
    ("include", "exclude", "path", "hidden"),
    [
        ([], ["/a/"], "a", True),
        ([], ["/a/"], "a/b", True),
        ([], ["a"], "x/a/b", True),
        ([], ["/a/b"], "a", False),
        ([], ["/a"], "ab", False),
        ([], ["a*"], "abc", True),
        ([], ["x/a"], "x/a/b", True),
        ([], ["**/a"], "a", False),
        ([], ["/a", "!/a/b"], "a", False),
        ([], ["\\*"], "*", False),
        (["/a/"], [], "b", True),
        (["/a/"], [], "a/b", False),
        (["/a/b"], [], "a", False),
        (["a"], [], "b", False),
        (["*.xml"], [], "b", False),
        ([], [], "b", False),
    ],
)
def test_what_filters_certainly_hide(include, exclude, path, hidden):
    assert hides((tuple(include), tuple(exclude)), path) is hidden


@pytest.mark.parametrize(
    ("one", "other", "parted"),
    [
        ((["*.a"], []), (["*.b"], []), True),
        ((["*.a", "*.b"], []), (["*.b"], []), False),
        ((["*.a"], []), (["*a"], []), False),
        ((["/a/"], []), (["/b"], []), True),
        ((["/a/"], []), (["/a/b"], []), False),
        ((["*.a"], []), ([], ["*.a"]), True),
        ((["*.a"], []), ([], ["*.a", "!x.a"]), False),
        ((["*.a"], []), ([], ["*.b"]), False),
        (([], ["*.a"]), ([], ["*.b"]), False),
        (([], []), (["*.a"], []), False),
        ((["a"], []), (["b"], []), False),
    ],
)
def test_what_filters_certainly_keep_apart(one, other, parted):
    pair = [(tuple(include), tuple(exclude)) for include, exclude in (one, other)]
    assert apart(*pair) is apart(*pair[::-1]) is parted


@pytest.mark.parametrize(
    ("one", "other", "path", "parted"),
    [
        ((["*.a"], []), (["*.b"], []), "d", True),
        ((["*.a"], []), (["*.b"], []), "d.a", False),
        ((["*.b"], []), (["*.a"], []), "d.a", True),
        ((["/a/"], []), (["/b/"], []), "a", False),
        ((["*.a"], []), ([], ["*.a"]), "d", True),
        ((["*.a"], []), ([], ["*.a"]), "d.a", False),
        (([], ["*.a"]), (["*.a"], []), "d.a", True),
        ((["d/"], []), ([], ["d/"]), "d", False),
        (([], ["/a"]), (["/a"], []), "d", False),
        ((["*.a"], []), (["*.b"], ["/x/y"]), "d", True),
        ((["a**"], []), ([], ["a**"]), "ab", False),
    ],
)
def test_what_filters_certainly_keep_apart_from_another_root(one, other, path, parted):
    pair = [(tuple(include), tuple(exclude)) for include, exclude in (one, other)]
    assert apart(*pair, path) is parted


# --- against a search that tries everything --------------------------------------------------------------------

NAMES = ("a", "b", "c")
PATHS = ("/x", "/x/y", "/x/y/z", "/w")


KINDS = {"plain": {}, "adds": ADDS, "deletes": {"delete": "synced"}, "accepted": {"accept": "so"}}


@functools.lru_cache(maxsize=None)
def quick(name, host, path, partner_path, direction, kind):
    return job(name, host, path, partner_path, direction=direction, **KINDS[kind])


@st.composite
def fleets(draw, most=6):
    jobs: dict = {name: [] for name in NAMES}
    for number in range(draw(st.integers(0, most))):
        here, there = draw(st.sampled_from(NAMES)), draw(st.sampled_from(NAMES))
        path, partner_path = draw(st.sampled_from(PATHS)), draw(st.sampled_from(PATHS))
        direction = draw(st.sampled_from(["to_partner", "from_partner", "both"]))
        kind = draw(st.sampled_from(["plain", "plain", "plain", "adds", "deletes", "accepted"]))
        jobs[here].append(quick("j%d" % number, there, path, partner_path, direction, kind))
    return [Server(name, jobs[name]) for name in NAMES]


def overlap(one, other):
    paths = [path + "/" for _server, path in (one, other)]
    return one[0] == other[0] and (paths[0].startswith(paths[1]) or paths[1].startswith(paths[0]))


def arcs_of(servers, nested):
    """(element, source, target, both) of every arc between two places; nested: also of elements inside themselves."""
    arcs = []
    for server in servers:
        for one in server.jobs:
            element, direction = one["elements"][0], one["settings"]["direction"]
            ends = [(server.name, element["path"]), (one["partner"]["host"], element["partner_path"])]
            if one["accept_circular"] or (ends[0] == ends[1] if nested else overlap(*ends)):
                continue
            if direction != "from_partner":
                arcs.append((one["name"], *ends, direction == "both"))
            if direction != "to_partner":
                arcs.append((one["name"], *ends[::-1], direction == "both"))
    return arcs


def circles_of(servers):
    """The elements of every component of arcs that reach each other, tried pair by pair."""
    arcs = arcs_of(servers, False)
    count = range(len(arcs))
    turns = {(i, j) for i in count for j in count if i != j and arcs[i][0] == arcs[j][0] and arcs[i][2] == arcs[j][1]}
    reach = {(i, j) for i in count for j in count if overlap(arcs[i][2], arcs[j][1]) and (i, j) not in turns}
    for by, one, other in itertools.product(count, count, count):
        if (one, by) in reach and (by, other) in reach:
            reach.add((one, other))
    components = {frozenset(arcs[j][0] for j in count if (i, j) in reach and (j, i) in reach) for i in count}
    return {component for component in components if len(component) > 1}


@settings(max_examples=200)
@given(fleets())
def test_circles_are_those_of_a_search_that_tries_everything(servers):
    expected = circles_of(servers)
    findings = [one for one in analyse(servers).findings if one.kind in ("circle", "mesh") and not one.accepted]
    jobs = [frozenset(member.job for member in one.members) for one in findings]
    for names in jobs:
        assert any(names <= component for component in expected)
    for component in expected:
        assert any(names <= component for names in jobs)


@settings(max_examples=100)
@given(fleets())
def test_contended_targets_are_those_of_a_search_that_tries_everything(servers):
    written: dict = {}
    for name, _source, target, _both in arcs_of(servers, True):
        written.setdefault(target, set()).add(name)
    expected = set()
    for (one, some), (other, others) in itertools.product(written.items(), written.items()):
        if (one == other and len(some) > 1) or (
            one != other and overlap(one, other) and one[1] > other[1] and some - others and others - some
        ):
            expected.add("%s:%s" % one)
    findings = [one for one in analyse(servers).findings if one.kind in ("contended", "nested") and not one.accepted]
    assert {one.issue.split(": ", 1)[1].split(" inside ")[0].split(", by ")[0] for one in findings} == expected


def told(servers):
    return [(one.level, one.kind, one.issue, one.impact, one.remedy) for one in analyse(servers).findings]


@settings(max_examples=60)
@given(fleets(), st.permutations(NAMES), st.randoms())
def test_the_order_of_servers_and_jobs_changes_nothing(servers, order, random):
    shuffled = []
    for server in sorted(servers, key=lambda one: order.index(one.name)):
        jobs = list(server.jobs)
        random.shuffle(jobs)
        shuffled.append(server._replace(jobs=jobs))
    assert told(shuffled) == told(servers)


@settings(max_examples=60)
@given(fleets())
def test_an_unrelated_job_changes_nothing(servers):
    more = [*servers, Server("z", [job("unrelated", "y", "/elsewhere")]), Server("y", [])]
    assert told(more) == told(servers)


@settings(max_examples=60)
@given(fleets())
def test_other_names_of_the_servers_keep_the_findings(servers):
    def renamed(server):
        jobs = [dict(one, partner=dict(one["partner"], host="site-%s" % one["partner"]["host"])) for one in server.jobs]
        return server._replace(name="site-%s" % server.name, jobs=jobs)

    def sentence(text):
        for name in NAMES:
            text = text.replace("site-%s" % name, name)
        return text

    assert [tuple(map(sentence, one)) for one in told([renamed(server) for server in servers])] == told(servers)


@settings(max_examples=60)
@given(fleets())
def test_aliases_and_machine_ids_find_the_same_as_names(servers):
    aliased = []
    for server in servers:
        jobs = [dict(one, partner=dict(one["partner"], host="%s.lan" % one["partner"]["host"])) for one in server.jobs]
        aliased.append(server._replace(jobs=jobs, aliases=["%s.lan" % server.name], machine="id of %s" % server.name))
    assert told(aliased) == told(servers)


@settings(max_examples=60)
@given(fleets())
def test_each_job_is_told_of_what_it_has_part_in(servers):
    whole = analyse(servers).findings
    for server in servers:
        for one in server.jobs:
            about = analyse(servers, [(server.name, one["name"])])
            assert about.graph == {}
            for finding in about.findings:
                assert (server.name, one["name"]) in [(member.server, member.job) for member in finding.members]
            mine = {f.kind for f in whole if (server.name, one["name"]) in [(m.server, m.job) for m in f.members]}
            assert mine - {"chain"} <= {finding.kind for finding in about.findings}


@settings(max_examples=60)
@given(fleets())
def test_taking_a_job_away_adds_no_error(servers):
    def errors(these):
        return {one.kind for one in analyse(these).findings if one.level == "error"}

    assume(errors(servers))
    for number, server in enumerate(servers):
        for one in server.jobs:
            jobs = [each for each in server.jobs if each is not one]
            fewer = [*servers[:number], server._replace(jobs=jobs), *servers[number + 1 :]]
            assert errors(fewer) - errors(servers) <= {"nested", "contended"}
