# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page in a browser: from a file, without a network, by keys, at the width of a telephone, in light and in dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serversync import report
from serversync.page import page

from tests import reports
from tests.browser.chromium import Chromium

CASES = {
    "one": [reports.site()],
    "fleet": reports.fleet(),
    "nasty": reports.nasty(),
    "none": [reports.server("site-a")],
    "silent": [{"server": "site-a", "problem": "no route to host"}],
    "many": reports.many(),
}
PHONE = 360

# Every text that is shown with less contrast than 4.5 : 1, and every drawn column or bar with less than 3 : 1.
FAINT = """(() => {
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const contrast = (one, other) => {
        const [dark, bright] = [light(one), light(other)].sort((a, b) => a - b);
        return (bright + 0.05) / (dark + 0.05);
    };
    const ground = element => {
        for (; element; element = element.parentElement) {
            const found = parts(getComputedStyle(element).backgroundColor);
            if (found.length === 3 || found[3] === 1) return found;
            if (found[3] !== 0) throw new Error("half transparent: " + element.outerHTML);
        }
        throw new Error("nothing behind it");
    };
    const found = [];
    let looked = 0;
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const element = walk.currentNode.parentElement;
        if (!walk.currentNode.data.trim() || element.closest("title, script, option")) continue;
        if (!element.checkVisibility()) continue;
        looked += 1;
        const style = getComputedStyle(element), drawing = element.closest("svg.picture");
        const colour = parts(drawing ? style.fill : style.color);
        const inside = drawing && (element.matches(".server, .path") ? drawing.querySelector(".box") : null);
        const behind = inside ? parts(getComputedStyle(inside).fill) : ground(element);
        if (contrast(colour, behind) < 4.5) found.push([walk.currentNode.data, contrast(colour, behind)]);
    }
    for (const path of document.querySelectorAll(".strip path, .bars path, .legend path, .arrow")) {
        if (!path.checkVisibility()) continue;
        looked += 1;
        const style = getComputedStyle(path), colour = path.matches(".arrow") ? style.stroke : style.fill;
        const ratio = contrast(parts(colour), ground(path));
        if (ratio < 3) found.push([path.outerHTML.slice(0, 80), ratio]);
    }
    return {looked, found};
})()"""

# What can be reached by keys, in the order of the document.
REACHED = """[...document.querySelectorAll("a[href], summary, input, select, [tabindex='0']")]
    .filter(one => one.checkVisibility() && !one.closest("[hidden]"))"""
OPEN_ALL = "document.querySelectorAll('details').forEach(one => { one.open = true })"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    chromium = Chromium(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("pages")
    found = {}
    for name, servers in CASES.items():
        found[name] = directory / f"{name}.html"
        told = json.dumps(report.document_of(servers))
        found[name].write_text(page(report.servers_of("-", told)), encoding="utf-8")
    return found


def happened(browser: Chromium, *methods: str) -> list[dict[str, Any]]:
    return [one["params"] for one in browser.events if one.get("method") in methods]


@pytest.mark.parametrize("name", CASES)
def test_it_asks_for_nothing_and_nothing_is_amiss(browser: Chromium, files: dict[str, Path], name: str) -> None:
    browser.show(files[name])
    if name != "many":
        browser.run(OPEN_ALL)
    browser.picture(files[name].with_suffix(".png"))
    asked = [one["request"]["url"] for one in happened(browser, "Network.requestWillBeSent")]
    assert asked == [files[name].as_uri()]
    amiss = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening")
    assert happened(browser, *amiss) == []
    assert browser.run("document.querySelectorAll('img, iframe, link, object').length") == 0
    assert browser.run("document.scripts.length") == 1


def test_the_policy_lets_nothing_else_in(browser: Chromium, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    browser.show(files["none"])
    browser.picture(tmp_path / "there.png")
    (tmp_path / "there.css").write_text("h1 { margin: 77px !important }", encoding="utf-8")
    text = files["one"].read_text(encoding="utf-8")
    more = "<script>document.title = 'run'</script><img src=there.png><link rel=stylesheet href=there.css>"
    path.write_text(text.replace("</body>", f"{more}</body>"), encoding="utf-8")
    browser.show(path)
    assert browser.run("document.title") == "Synchronization jobs of site-a"
    assert browser.run("document.images[0].naturalWidth") == 0
    assert browser.run("getComputedStyle(document.querySelector('h1')).marginTop") == "0px"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "fleet", "nasty", "silent"])
def test_all_that_is_shown_can_be_seen(browser: Chromium, files: dict[str, Path], name: str, scheme: str) -> None:
    browser.show(files[name], scheme=scheme)
    browser.run(OPEN_ALL)
    seen = browser.run(FAINT)
    assert seen["found"] == []
    assert seen["looked"] > (20 if name == "silent" else 500)
    dark = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(part => part < 60)")
    assert dark == (scheme == "dark")


def test_what_is_faint_is_found(browser: Chromium, files: dict[str, Path]) -> None:
    browser.show(files["one"])
    browser.run("document.querySelector('h1').style.color = '#999'")
    assert [text for text, _ratio in browser.run(FAINT)["found"]] == ["Synchronization jobs of site-a"]


@pytest.mark.parametrize("width", [PHONE, 320, 768])
@pytest.mark.parametrize("name", CASES)
def test_a_page_is_as_wide_as_the_screen(browser: Chromium, files: dict[str, Path], name: str, width: int) -> None:
    browser.show(files[name], width=width, height=740)
    if name != "many":
        browser.run(OPEN_ALL)
    assert browser.run("document.documentElement.scrollWidth") == width
    # What is wider is in a part that can be scrolled by itself, and nothing else sticks out.
    out = f"""[...document.querySelectorAll("body *")]
        .filter(one => one.checkVisibility() && !one.closest(".wide") && !one.matches(".skip"))
        .filter(one => one.getBoundingClientRect().right > {width + 1}).map(one => one.outerHTML.slice(0, 99))"""
    assert browser.run(out) == []


def test_everything_is_there_without_a_script(browser: Chromium, files: dict[str, Path]) -> None:
    browser.show(files["one"], script=False)
    document = browser.ask("DOM.getDocument", depth=-1)["root"]["nodeId"]
    text = browser.ask("DOM.getOuterHTML", nodeId=document)["outerHTML"]
    hidden = browser.ask("DOM.querySelectorAll", nodeId=document, selector="main [hidden], main [style]")["nodeIds"]
    (box,) = [browser.ask("DOM.getAttributes", nodeId=one)["attributes"] for one in hidden]
    assert box[:2] == ["id", "filter"]
    assert text.count('<details class="job"') == len(CASES["one"][0]["jobs"])


def test_every_part_is_reached_by_keys_in_order(browser: Chromium, files: dict[str, Path]) -> None:
    browser.show(files["fleet"])
    browser.ask("Emulation.setFocusEmulationEnabled", enabled=True)
    browser.run(f"window.order = {REACHED}; window.rings = 0")
    count = browser.run("window.order.length")
    assert count > 30
    for number in range(count):
        browser.press("Tab", 9)
        assert browser.run(f"document.activeElement === window.order[{number}]"), browser.run(
            "document.activeElement.outerHTML.slice(0, 200)"
        )
        # Where one is can be seen.
        assert browser.run(
            "(() => { const style = getComputedStyle(document.activeElement); const box = "
            "document.activeElement.getBoundingClientRect(); return style.outlineStyle === 'solid' && "
            "parseFloat(style.outlineWidth) >= 2 && box.right > 0 && box.left < innerWidth })()"
        ), browser.run("document.activeElement.outerHTML.slice(0, 200)")


def test_the_first_key_skips_to_the_content(browser: Chromium, files: dict[str, Path]) -> None:
    browser.show(files["one"])
    browser.ask("Emulation.setFocusEmulationEnabled", enabled=True)
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.textContent") == "Skip to the content"
    browser.press("Enter", 13, "\r")
    assert browser.run("location.hash") == "#main"
    browser.press("Tab", 9)
    assert browser.run("document.querySelector('main').contains(document.activeElement)")


def test_a_job_is_opened_and_closed_by_a_key(browser: Chromium, files: dict[str, Path]) -> None:
    browser.show(files["one"])
    browser.ask("Emulation.setFocusEmulationEnabled", enabled=True)
    browser.run("document.querySelector('.job > summary').focus()")
    for opened in (True, False):
        browser.press(" ", 32, " ")
        assert browser.run("document.querySelector('.job').open") is opened
        assert browser.run("document.querySelector('.job .facts').checkVisibility()") is opened


def test_a_link_to_a_job_opens_it(browser: Chromium, files: dict[str, Path]) -> None:
    browser.show(files["one"])
    browser.run("document.querySelector('.list a').click()")
    shown = "document.querySelector(document.querySelector('.list a').hash)"
    assert browser.run(f"{shown}.closest('details').open && {shown}.checkVisibility()")


def test_jobs_are_filtered_by_words_and_by_state(browser: Chromium, files: dict[str, Path]) -> None:
    browser.show(files["many"])
    shown = "[...document.querySelectorAll('.job')].filter(one => one.checkVisibility()).length"
    told = "document.querySelector('#filter output').textContent"
    assert browser.run(told) == "1000 of 1000 jobs" and browser.run(shown) == 1000
    change = "const one = document.querySelector('#filter %s'); one.value = '%s'; one.dispatchEvent(new Event('%s'))"
    browser.run("{" + change % ("input", "SERVER-07", "input") + "}")
    assert browser.run(told) == "50 of 1000 jobs" and browser.run(shown) == 50
    titles = "[...document.querySelectorAll('h3')].filter(one => one.checkVisibility()).map(one => one.textContent)"
    assert browser.run(titles) == ["server-07"]
    browser.run("{" + change % ("select", "failed", "change") + "}")
    failed = sum(job["state"] == "failed" for job in CASES["many"][7]["jobs"])
    assert browser.run(shown) == failed and failed


def test_what_readers_of_screens_are_told(browser: Chromium, files: dict[str, Path]) -> None:
    browser.show(files["one"])
    browser.run(OPEN_ALL)
    nodes = [one for one in browser.ask("Accessibility.getFullAXTree")["nodes"] if not one.get("ignored")]
    told: dict[str, list[str]] = {}
    for node in nodes:
        told.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert told["RootWebArea"] == ["Synchronization jobs of site-a"]
    for role in ("image", "region", "link", "searchbox", "combobox", "heading", "navigation", "table"):
        assert told.get(role) and all(told[role]), role
    assert len(told["main"]) == len(told["banner"]) == len(told["contentinfo"]) == 1
    assert "Of 90 days up to 2026-11-27: 6 different, " in " ".join(told["image"])
    assert {"columnheader", "rowheader", "cell"} <= set(told)


def test_paper_is_white_and_has_no_filter(browser: Chromium, files: dict[str, Path]) -> None:
    browser.show(files["one"], scheme="dark")
    browser.ask(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("document.querySelector('#filter').checkVisibility()") is False
    assert browser.run(FAINT)["found"] == []
