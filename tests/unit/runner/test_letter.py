# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serversync.job import Job
from serversync.letter import compose

JOB = Job({"name": "nightly", "comment": "Line 1", "partner": {"host": "hq", "port": 22, "connection": "ssh"}}, "")
COUNTERS = dict.fromkeys(("created", "updated", "attributes", "deleted", "bytes", "lines"), 0)


def element(**more: Any) -> dict[str, Any]:
    lists: dict[str, Any] = {name: [] for name in ("problems", "warnings", "guards", "paths")}
    base = {"path": "/srv/a", "partner_path": "/srv/b", "direction": "to_partner", "error": None}
    return {**base, **COUNTERS, **lists, "state_before": "different", "state_after": "equal", **more}


def record(state: str = "equal", **more: Any) -> dict[str, Any]:
    run = {"run": "20260301T023000Z-abcd", "trigger": "schedule", "configuration": 3, "state": state, "error": None}
    times = {"started": "2026-03-01T02:30:00.000+00:00", "ended": "2026-03-01T02:30:04.500+00:00"}
    return {**run, **times, "attempts": [{}], "elements": [element()], "before": [], "after": [], **more}


class Page(HTMLParser):
    """Which elements a page has, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, int] = {}
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] = self.found.get(tag, 0) + 1
        self.attributes |= {name for name, _value in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_subject_says_it_all_and_both_bodies_say_the_same() -> None:
    error = {"code": "unreachable", "field": "", "message": "connection refused by hq:22; look into sshd there"}
    failed = record("failed", error=error, attempts=[{}] * 4, elements=[element(state_after="failed", created=7)])
    letter = compose(JOB, failed, recovered=False)
    assert letter["subject"].endswith(": nightly FAILED after 4 attempts: connection refused by hq:22")
    page = Page(letter["html"])
    for said in (
        "Line 1",
        "hq:22",
        "20260301T023000Z-abcd (schedule, configuration 3)",
        "before different, after failed: 7 copied, 0 updated, 0 deleted, 0 B",
        "connection refused by hq:22; look into sshd there",
        "serversync show nightly 20260301T023000Z-abcd",
        "serversync run nightly",
    ):
        assert said in letter["text"]
        assert said in page.text


HOSTILE = '</li><script src="//x">alert(1)</script><img onerror=x>\x1b[2J\u202e\n"\'&'


def test_no_name_becomes_a_part_of_the_page() -> None:
    clean = Page(compose(JOB, record("different", elements=[element(warnings=["x"])]), recovered=False)["html"])
    hostile = element(path=HOSTILE, partner_path=HOSTILE, warnings=[HOSTILE])
    letter = compose(JOB, record("different", elements=[hostile]), recovered=False)
    page = Page(letter["html"])
    assert (page.found, page.attributes) == (clean.found, clean.attributes)
    assert "<script" in page.text
    assert all(one.isprintable() or one == "\n" for one in letter["text"] + letter["html"])


@given(st.text(), st.lists(st.text(), max_size=5))
def test_whatever_is_in_a_record_the_page_stays_whole(text: str, lines: list[str]) -> None:
    error = {"code": "x", "field": text, "message": text}
    one = element(path=text, warnings=lines, guards=lines, problems=lines, error=error)
    letter = compose(JOB, record("failed", error=error, elements=[one]), recovered=False)
    assert letter["subject"].isprintable()
    assert set(Page(letter["html"]).found) <= {*SKELETON, "ul", "li"}


SKELETON = ("html", "head", "meta", "title", "body", "div", "h1", "h2", "table", "tr", "td")


def test_no_remedy_is_cut_off() -> None:
    error = {"code": "missing", "field": "elements[0].path", "message": f"/srv/{'x' * 400} does not exist; create it"}
    for failed in (record("failed", error=error), record("failed", elements=[element(error=error)])):
        letter = compose(JOB, failed, recovered=False)
        assert "create it" in letter["text"]
        assert "create it" in letter["html"]


@pytest.mark.parametrize("what", ["problems", "warnings", "guards"])
def test_a_partner_does_not_make_a_mail_too_large_to_be_sent(what: str) -> None:
    lines = ["\udc80" * 4096] * 200
    letter = compose(JOB, record("failed", elements=[element(**{what: lines})] * 300), recovered=False)
    assert len(letter["text"].encode()) + len(letter["html"].encode()) < 4 << 20
    assert "... and 250 elements more" in letter["text"]
    assert "more\n" in letter["text"]
