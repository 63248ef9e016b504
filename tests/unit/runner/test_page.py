# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page as HTML: what is on it, that it is accessible as far as markup tells, and that names stay in their places.

How it looks, and what a browser makes of it, is in tests/browser.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serversync import report
from serversync.jobpart import DAYS, window
from serversync.markup import SIGNS, WORDS, took
from serversync.page import MANY, page
from serversync.pagestyle import SCRIPT, STYLE

from tests import reports

VOID = {"meta", "input", "br", "link", "img", "hr"}
LEVELS = {f"h{level}": level for level in range(1, 7)}
# What may be left open, and closes by what follows.
OPTIONAL = {"tr", "td", "th", "thead", "tbody"}


class Page(HTMLParser):
    """Elements with their attributes and texts, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.headings: list[tuple[int, str]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.declarations: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open
        self.text = "".join(self.texts)

    def handle_decl(self, decl: str) -> None:
        self.declarations.append(decl)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"{tag} has an attribute twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open[-1] != tag and self.open[-1] in OPTIONAL:
            self.open.pop()
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.texts.append(data)
        self.headings += [(LEVELS[tag], data) for tag in self.open if tag in LEVELS]

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str]]:
        """The attributes of the elements of that name, and class."""
        return [
            found
            for name, found in self.elements
            if name == tag and (kind is None or kind in found.get("class", "").split())
        ]


def made(*servers: dict[str, Any]) -> Page:
    """The page of what these told, as it came."""
    return Page(text_of(*servers))


def text_of(*servers: dict[str, Any]) -> str:
    return page(report.servers_of("-", json.dumps(report.document_of(servers))))


CASES = {
    "one": [reports.site()],
    "fleet": reports.fleet(),
    "nasty": reports.nasty(),
    "none": [reports.server("site-a")],
    "silent": [{"server": "site-a", "problem": "no route to host"}],
}


@functools.cache
def case(name: str) -> Page:
    return made(*CASES[name])


@pytest.fixture(params=sorted(CASES))
def any_page(request: pytest.FixtureRequest) -> Page:
    return case(request.param)


def test_what_was_told_can_be_used() -> None:
    for servers in CASES.values():
        found = report.servers_of("-", json.dumps(report.document_of(servers)))
        assert [one["problem"] for one in found] == [one.get("problem") for one in servers]


def test_nothing_is_loaded_and_nothing_is_run_but_what_is_there(any_page: Page) -> None:
    for tag, found in any_page.elements:
        assert tag not in (
            "link",
            "img",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "audio",
            "video",
            "source",
            "a:base",
        )
        for name, value in found.items():
            assert name not in ("src", "srcset", "style", "action", "background", "poster", "xlink:href"), (tag, name)
            assert not name.startswith("on"), (tag, name)
            assert name != "href" or value.startswith("#")
    assert len(any_page.all("script")) == len(any_page.all("style")) == 1
    (policy,) = [one["content"] for one in any_page.all("meta") if "http-equiv" in one]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for rule, text in (("style-src", STYLE), ("script-src", SCRIPT)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert "url(" not in STYLE and "@import" not in STYLE and "//" not in STYLE


def test_the_page_has_what_readers_of_screens_need(any_page: Page) -> None:
    assert any_page.declarations == ["doctype html"]
    assert any_page.all("html") == [{"lang": "en"}]
    assert len(any_page.all("main")) == len(any_page.all("h1")) == 1
    # The other titles are of drawings.
    assert any_page.elements[[tag for tag, _found in any_page.elements].index("title") - 1][0] == "meta"
    levels = [level for level, _text in any_page.headings]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    first = next(found for tag, found in any_page.elements if tag == "a")
    assert first["href"] == "#main"
    ids = [found["id"] for _tag, found in any_page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    for tag, found in any_page.elements:
        if tag in ("a", "use"):
            assert found["href"][1:] in ids
        if tag == "section":
            assert found["aria-labelledby"] in ids
        if tag == "svg":
            assert found.get("aria-hidden") == "true" or (found["role"] == "img" and found["aria-label"])
        if "tabindex" in found:
            # What can be scrolled can be reached by keys, and says what it is.
            assert (found["tabindex"], found["role"]) == ("0", "region") and found["aria-label"]
        if tag == "th":
            assert found["scope"] in ("row", "col")
    assert len(any_page.all("caption")) == len(any_page.all("table"))


def test_every_state_has_a_word_and_a_sign() -> None:
    assert set(WORDS) <= set(SIGNS)
    signs = {SIGNS[state] for state in WORDS}
    assert len(signs) == len(WORDS)
    found = case("fleet")
    for state, word in WORDS.items():
        assert any(state in one["class"].split() for one in found.all("span", "state")), state
        assert f" {word}" in found.text


# Contrast, as WCAG 2 has it.


def palettes() -> dict[str, dict[str, str]]:
    """light and dark: the colours by their names."""
    light, dark = re.findall(r":root\{([^}]*)\}", STYLE)[:2]
    colours = [dict(re.findall(r"--([a-z]+):(#[0-9a-f]{3,6})", part)) for part in (light, dark)]
    return {"light": colours[0], "dark": colours[1]}


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_computed_as_it_should_be() -> None:
    assert contrast("#000", "#ffffff") == 21
    assert round(contrast("#767676", "#fff"), 2) == 4.54


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_letters_can_be_read(scheme: str) -> None:
    colours = palettes()[scheme]
    letters = set(colours) - {"ground", "sheet", "line"}
    assert letters == {"ink", "soft", "link", "good", "warn", "differ", "bad", "still"}
    for name in letters:
        for ground in ("ground", "sheet"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    assert set(palettes()["light"]) == set(palettes()["dark"])
    assert set(re.findall(r"var\(--([a-z]+)\)", STYLE)) == set(colours)


# No name gets out of its place.


def called(name: str) -> Page:
    """The page on which everything is called that."""
    job = reports.job(
        name,
        name,
        reports.element(f"/srv/{name}", f"/srv/{name}"),
        comment=name,
        state="different",
        problem=name,
        schedule=name,
        plan=name,
        unresolved=1,
        guards=[{"element": name, "text": name}],
        conflicts=[reports.conflict(name, f"/srv/{name}", this_server=name, partner=name, reason=name)],
        runs=[reports.run(0, "failed", error=name, trigger=name)],
        days=[reports.on_day(0, failed=1)],
    )
    return made(reports.server(name, job), {"server": f"{name}.", "problem": name})


@given(text=st.one_of(st.sampled_from(reports.NASTY[:-1]), st.text(st.characters(), min_size=1, max_size=40)))
@settings(max_examples=50)
def test_no_name_becomes_a_part_of_the_page(text: str) -> None:
    found, expected = called(text), called("x")
    # Of long names some have titles, of odd ones other commands.
    odd = ("title", "code", "p")
    tags, plain = (Counter(tag for tag, _found in one.elements if tag not in odd) for one in (found, expected))
    assert tags == plain
    names, known = ({(tag, name) for tag, has in one.elements for name in has} for one in (found, expected))
    assert names == known
    assert all(character.isprintable() or character == "\n" for character in found.text)


def test_nasty_names_are_told_as_they_are() -> None:
    text = case("nasty").text
    for name in (
        "<script>alert(1)</script>",
        "new\\x0aline\\x09tab\\x1b[31mred\\x00",
        "\\u202eltr",
        "undecodable \\xff\\xfe",
    ):
        assert name in text


# What is told.


def test_what_is_to_be_seen_to_comes_with_the_command_that_goes_on_from_there() -> None:
    text = case("one").text
    for said in (
        "failed line1-programs: connection refused by hq:22; look into sshd, the network and the firewall there",
        "serversync show line1-programs",
        "/srv/archive was stopped before its first change: 8120 of 9000 paths would be deleted, max_delete allows 25%",
        "serversync plan archive, and let it: serversync run archive --approve 3f9a0c1b7d22",
        "3 paths wait for a decision.",
        "The next attempt is at 2026-11-27 14:20.",
        "invalid broken: /etc/serversync/jobs/broken.json: is not JSON",
        "skipped line4: another run of this job is on",
        "As of 2026-11-27 14:11 (UTC+01:00)",
    ):
        assert said in text


def test_nothing_to_see_to() -> None:
    text = made(reports.server("site-a", reports.job("nightly"))).text
    assert "Nothing waits for a person." in text and "No path waits for a decision." in text
    assert "No circle was found among them." in text


def test_a_server_without_jobs() -> None:
    text = case("none").text
    assert "0 jobs" in text and "There are no jobs; declare one with serversync.core.sync_job." in text


def test_a_server_that_is_silent_is_told() -> None:
    page = case("fleet")
    assert "1 server without a report" in page.text
    assert "no report site-z: Failed to connect to the host via ssh" in page.text


def test_conflicts_have_both_versions_and_a_command_for_a_shell() -> None:
    elements = [reports.element("/srv/a"), reports.element("/srv/b")]
    told = [
        reports.conflict("it's here", "/srv/b"),
        reports.conflict("", "/srv/a", reason="only on this server", partner="absent"),
        reports.conflict("-x", "/srv/a", this_server=None, partner=None, reason=None),
        reports.conflict("new\nline", "/srv/a"),
        reports.conflict("x"),
    ]
    text = made(reports.server("site-a", reports.job("two", "hq", *elements, unresolved=60, conflicts=told[:4]))).text
    for said in (
        "60 paths; 4 of them are here, serversync conflicts two has them all",
        "it's here in /srv/b",
        "This server, site-afile, 18231 bytes, 2026-11-26 16:02:11, mode 664, 1000:1000",
        "Partner, hq:22file, 18190 bytes, 2026-11-26 15:47:30, mode 664, 1000:1000",
        "changed on both servers",
        """serversync resolve two --use this_server --element /srv/b -- 'it'"'"'s here'""",
        "serversync resolve two --use this_server --element /srv/a -- .",
        "serversync resolve two --use this_server --element /srv/a -- -x",
        "Partner, hq:22not on record",
        "new\\x0aline in /srv/a",
        "Decide: serversync conflicts two, then serversync resolve",
    ):
        assert said in text
    one = made(reports.server("site-a", reports.job("one", state="different", unresolved=1, conflicts=told[4:]))).text
    assert "serversync resolve one --use this_server -- x" in one and "1 path waits for a decision" in one


def test_circles_are_found_among_the_jobs_of_one_server_and_of_several() -> None:
    one = case("one").text
    assert "error A circle: hq:/srv/sites/site-a/programs -> site-a:/srv/line1/programs -> " in one
    fleet = case("fleet")
    assert (
        "A circle: dr:/srv/sites -> hq:/srv/sites -> dr:/srv/sites, by jobs back on dr, sites-away on hq." in fleet.text
    )
    assert "hq:/srv/sites->dr:/srv/sitessites-awayhqpart of a circle" in fleet.text


def test_a_partner_is_known_by_its_pairing_and_by_one_name_alone() -> None:
    there = reports.job("there", "headquarters", reports.element("/srv/x"))
    back = reports.job("back", "site-a", reports.element("/srv/x"))
    pairing = [{"name": "headquarters", "host": "10.0.0.1"}]
    site = reports.server("site-a", there, partners=pairing, aliases=["both"])
    assert "A circle" in made(site, reports.server("hq", back, aliases=["10.0.0.1", "both"])).text
    site = reports.server("site-a", reports.job("there", "both", reports.element("/srv/x")), aliases=["both"])
    assert "A circle" not in made(site, reports.server("hq", back, aliases=["both"])).text


def test_what_cannot_be_looked_at_is_told() -> None:
    job = reports.job("nightly", declared=None)
    text = made(reports.server("site-a", job)).text
    assert "1 job was not looked at" in text and "Nothing is connected." in text


def test_the_days_are_those_up_to_the_report() -> None:
    days = window(
        reports.MADE, [reports.on_day(0, equal=1), reports.on_day(DAYS - 1, failed=1), reports.on_day(DAYS, failed=1)]
    )
    assert len(days) == DAYS
    assert (days[0], days[-1]) == (
        ("2026-08-30", reports.on_day(89, failed=1)),
        ("2026-11-27", reports.on_day(0, equal=1)),
    )
    assert all(told == {} for _day, told in days[1:-1])


def test_days_are_drawn_and_listed() -> None:
    days = [
        reports.on_day(
            2, equal=95, failed=1, longest=912.4, seconds=4000.0, copied=7, bytes=1536, deleted=2, conflicts=3
        ),
        reports.on_day(1, equal=96, longest=3725.0, seconds=7450.0),
    ]
    page = made(reports.server("site-a", reports.job("nightly", days=days)))
    (strip,) = page.all("svg", "strip")
    assert strip["aria-label"] == "Of 90 days up to 2026-11-27: 1 failed, 1 equal, 88 without a run"
    assert [one["aria-label"] for one in page.all("svg", "bars")] == [
        "Longest run of each day, up to 1 h 2 min on 2026-11-26",
        "Volume copied on each day, up to 1.5 KiB on 2026-11-25",
    ]
    assert "2026-11-251 failed, 95 equal15 min 12 s1 h 6 min7231.5 KiB" in page.text
    assert "2026-11-25: 1 failed, 95 equal" in page.text
    nothing = made(reports.server("site-a", reports.job("nightly", days=[reports.on_day(0, equal=1)])))
    assert "Volume copied on each day: nothing in 90 days" in nothing.text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (4.25, "4.2 s"),
        (60, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (3725, "1 h 2 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert took(seconds) == said


def test_a_page_of_many_jobs_tells_each_in_brief() -> None:
    days = [reports.on_day(1, equal=1), reports.on_day(0, failed=1)]
    jobs = [reports.job(f"job{number}", days=days) for number in range(MANY + 1)]
    text = made(reports.server("site-a", *jobs)).text
    assert text.count("Days with runs as a table, without 1 on which all were equal") == 2 * (MANY + 1)
    assert "2026-11-261 equal" not in text and "2026-11-271 failed" in text
    few = made(reports.server("site-a", *jobs[:MANY])).text
    assert "2026-11-261 equal" in few
    # It grows by some kilobytes a job: see docs/many-servers.md.
    size = len(text_of(*reports.many(200, 4)))
    assert size < 200 * 12_000


def test_a_filter_is_there_only_where_it_is_of_use() -> None:
    jobs = [reports.job(f"job{number}", state="failed" if number else "equal") for number in range(8)]
    page = made(reports.server("site-a", *jobs))
    (box,) = [found for _tag, found in page.elements if found.get("id") == "filter"]
    # A script shows it.
    assert "hidden" in box
    assert [one["value"] for one in page.all("option")] == ["", "failed", "equal"]
    assert not made(reports.server("site-a", *jobs[1:])).all("input")


def test_a_server_that_is_there_twice_is_told_of_once() -> None:
    old = reports.server("site-a", reports.job("old"), made="2026-11-26T14:00:00+01:00")
    new = reports.server("site-a", reports.job("new"))
    for servers in ((old, new), (new, old)):
        text = made(*servers).text
        assert "Synchronization jobs of site-a" in text and "old" not in text
    other = reports.server("site-a", reports.job("other"), machine="another")
    text = made(new, other).text
    assert "2 servers" in text and "site-a (2)" in text


def test_jobs_of_a_paused_schedule_say_so() -> None:
    text = made(reports.server("site-a", reports.job("nightly", enabled=False))).text
    assert "with hq:22 (paused)" in text and "at 02:30 (paused)" in text and "Next run" not in text
