# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What servers tell of themselves for a page: gathered from records and documents, and checked where it arrives."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serversync import job, report, status
from serversync.failure import Failure, InvalidDocument
from serversync.layout import Layout
from serversync.page import page

from tests import reports

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "roles" / "runner" / "files" / "serversync"


def test_what_both_sides_need_is_the_declaration_sides_own() -> None:
    links = sorted(path for path in PACKAGE.glob("_[a-z]*.py"))
    assert [path.stem for path in links] == ["_circles", "_fleet", "_schedule", "_settings", "_states", "_topology"]
    for path in links:
        assert path.is_symlink() and path.resolve() == ROOT / "plugins" / "module_utils" / path.name


# What arrives.

SERVER = reports.site()


def damaged(change: Any) -> dict[str, Any]:
    server = copy.deepcopy(SERVER)
    change(server)
    return server


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda server: server.update(made="2026-11-27T14:11:05"), "the report.made is not what it should be: '2026"),
        (lambda server: server.update(made="0001-01-01T00:00:00+00:00"), "the report.made is not"),
        (lambda server: server.update(jobs={}), "the report.jobs is no list"),
        (lambda server: server.update(machine=None), "the report.machine is not what it should be: None"),
        (lambda server: server["jobs"].append([]), f"the report.jobs[{len(SERVER['jobs'])}] is no mapping"),
        (lambda server: server["jobs"][0].update(unresolved=-1), "jobs[0].unresolved is not"),
        (lambda server: server["jobs"][0].update(unresolved=True), "jobs[0].unresolved is not"),
        (lambda server: server["jobs"][1].update(days=[{"day": "today"}]), "jobs[1].days[0].day is not"),
        (lambda server: server["jobs"][1].update(days=[{"day": "2026-11-27", "failed": 1.5}]), "days[0].failed is not"),
        (lambda server: server["jobs"][1]["runs"][0].update(seconds="1"), "jobs[1].runs[0].seconds is not"),
        (lambda server: server["jobs"][1]["runs"][0].update(seconds=float("nan")), "jobs[1].runs[0].seconds is not"),
        (lambda server: server["jobs"][0]["declared"].update(every="often"), "jobs[0].declared.every is not"),
        (lambda server: server["jobs"][0]["declared"]["elements"][0].pop("settings"), "elements[0].settings is not"),
        (
            lambda server: server["jobs"][0]["declared"]["elements"][0]["settings"].update(exclude=[1]),
            "settings is not",
        ),
        (
            lambda server: server["jobs"][0]["declared"]["elements"][0]["settings"].update(direction=[]),
            "settings is not",
        ),
    ],
)
def test_what_cannot_be_used_of_a_server_is_told_and_the_others_are_shown(change: Any, where: str) -> None:
    servers = [reports.server("hq"), damaged(change)]
    found = report.servers_of("-", json.dumps(report.document_of(servers)))
    assert found[0]["problem"] is None
    assert set(found[1]) == {"server", "problem"} and where in found[1]["problem"]
    assert "what it told of itself cannot be used" in page(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "x is not JSON"),
        ("[" * 100_000, "x is not JSON"),
        ("[]", "the document is no mapping"),
        ('{"version": 1}', "the document.servers is no list"),
        ('{"version": 1, "servers": [{}]}', "the document.servers[0].server is not what it should be: None"),
        ('{"version": 2, "servers": []}', "its version 2 is not 1; use the same version of the collection"),
    ],
)
def test_what_is_no_report_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        report.servers_of("x", text)
    assert said in str(caught.value) and caught.value.field == "--from"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key in it."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def small_fleet() -> list[dict[str, Any]]:
    """With a chain, a circle, an open conflict and a guard."""
    there = reports.job(
        "there", "hq", reports.element("/srv/a"), reports.element("/srv/b"), unresolved=1, state="different"
    )
    there |= {"conflicts": [reports.conflict("x")], "guards": [{"element": "/srv/a", "text": "too many"}]}
    back = reports.job("back", "site-a", reports.element("/srv/b"))
    away = reports.job("away", "dr", reports.element("/srv/a"), days=reports.days(1)[:2])
    for one in (there, back, away):
        one["runs"] = one["runs"][:1]
        one["declared"]["every"] = "15m"
    return [reports.server("site-a", there), reports.server("hq", back, away)]


def test_the_small_fleet_has_what_it_says() -> None:
    text = page(report.servers_of("-", json.dumps(report.document_of(small_fleet()))))
    for said in ("A circle:", "A chain:", "their delays add up, up to 30m", 'class="card"', "was stopped before"):
        assert said in text


@given(data=st.data())
def test_whatever_a_server_tells_there_is_a_page(data: st.DataObject) -> None:
    servers = small_fleet()
    container, key = data.draw(st.sampled_from([*places(servers)]))
    container[key] = data.draw(JSON)
    try:
        found = report.servers_of("-", json.dumps({"version": 1, "servers": servers}))
    except InvalidDocument:
        # Without its name nobody knows what to call it.
        assert container is servers or key == "server"
    else:
        assert page(found).endswith("</html>\n")


# What a server gathers.


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    layout = Layout("user", tmp_path / "config", tmp_path / "state", tmp_path / "run")
    layout.public.mkdir(parents=True)
    layout.jobs.mkdir(parents=True)
    monkeypatch.setattr(status, "next_runs", lambda layout: {"nightly": 1795833000})
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "CET-1")
        time.tzset()
        yield layout
    time.tzset()


def entry(path: str, state: str = "equal", **more: Any) -> dict[str, Any]:
    counters = {"created": 2, "updated": 1, "deleted": 3, "bytes": 100, "conflicts": 4}
    told = {"path": path, "partner_path": f"{path}/there", "direction": "both", "state_after": state}
    return {**told, **counters, "guards": [], "standing": {}, "unresolved": [], "open": [], **more}


def record(run: str, *entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    times = {"started": "2026-11-26T23:30:00.000+00:00", "ended": "2026-11-26T23:31:30.250+00:00"}
    common = {"run": run, "trigger": "schedule", "configuration": 2, "attempts": [{}, {}], "error": None, "retry": None}
    return {**common, **times, "state": "equal", "plan": None, "elements": [*entries], **more}


def publish(layout: Layout, *runs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The job of which this is published, as it is gathered without its document, which is not there."""
    told = {"job": "nightly", "comment": "Line 1", "enabled": True, "partner": "hq:22", "good": None, "runs": [*runs]}
    (layout.public / "nightly.json").write_text(json.dumps({**told, **more}))
    (layout.jobs / "nightly.json").touch()
    server = report.gather(layout, None)
    assert report.misfit(server, report.SERVER, "the report") is None
    (found,) = server["jobs"]
    return dict(found)


CONFLICT = {"path": "x", "this_server": "file, 4 bytes", "partner": "absent", "reason": "only on this server"}


def test_times_are_by_the_servers_clock(layout: Layout) -> None:
    found = publish(layout, record("a", entry("/srv/a")), good="2026-11-26T23:31:30.250+00:00")
    (run,) = found["runs"]
    assert (run["started"], run["seconds"]) == ("2026-11-27T00:30:00+01:00", 90.25)
    assert (found["good"], found["next"]) == ("2026-11-27T00:31:30+01:00", "2026-11-28T03:30:00+01:00")
    assert (run["attempts"], run["copied"], run["deleted"], run["bytes"], run["conflicts"]) == (2, 3, 3, 100, 4)


def test_conflicts_are_those_of_the_last_run_that_saw_the_element(layout: Layout) -> None:
    seen = entry("/srv/a", "different", standing={"unresolved": 2}, open=[CONFLICT], unresolved=["x", "y"])
    runs = [
        record("d", entry("/srv/b"), state="equal"),
        record("c", entry("/srv/a", "failed"), entry("/srv/b", "skipped"), state="failed"),
        record("b", seen, entry("/srv/b", "different", standing={"unresolved": 1}), state="different"),
        record("a", entry("/srv/a", "different", standing={"unresolved": 9}), state="different"),
    ]
    found = publish(layout, *runs)
    # Of /srv/b the last run knows that it is equal, of /srv/a the one that failed knows nothing.
    assert found["unresolved"] == 2
    assert found["conflicts"] == [{"element": "/srv/a", **CONFLICT}]
    states = {one["path"]: one["state"] for one in found["elements"]}
    assert states == {"/srv/a": "failed", "/srv/b": "equal"}


def test_conflicts_of_earlier_versions_have_their_paths_alone(layout: Layout) -> None:
    old = entry("/srv/a", "different", standing={"unresolved": 1}, unresolved=["x"])
    del old["open"]
    (found,) = publish(layout, record("a", old, state="different"))["conflicts"]
    assert found == {"element": "/srv/a", "path": "x", "this_server": None, "partner": None, "reason": None}


def test_what_a_guard_stopped_is_told_with_the_plan(layout: Layout) -> None:
    stopped = entry("/srv/a", "different", guards=["too many"])
    found = publish(layout, record("a", stopped, state="different", plan="3f9a"))
    assert (found["guards"], found["plan"]) == ([{"element": "/srv/a", "text": "too many"}], "3f9a")
    found = publish(layout, record("b", entry("/srv/a")), record("a", stopped, state="different", plan="3f9a"))
    assert (found["guards"], found["plan"]) == ([], None)


def test_a_job_whose_document_is_not_for_the_caller_is_told_from_its_records(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any, **_more: Any) -> Any:
        raise PermissionError

    monkeypatch.setattr(job, "names", refuse)
    monkeypatch.setattr(job, "load", refuse)
    monkeypatch.setattr(report, "load", refuse)
    found = publish(layout, record("a", entry("/srv/a")), elements=["/srv/a"])
    assert (found["partner"], found["comment"], found["enabled"], found["problem"]) == ("hq:22", "Line 1", True, None)
    assert (found["schedule"], found["declared"]) == (None, None)
    (element,) = found["elements"]
    assert element == {"path": "/srv/a", "partner_path": "/srv/a/there", "direction": "both", "state": "equal"}


def test_days_are_as_they_are_published(layout: Layout) -> None:
    days = [{"day": "2026-11-26", "equal": 95, "failed": 1, "seconds": 12.5, "longest": 3.25, "bytes": 7}]
    assert publish(layout, days=days)["days"] == days
    assert publish(layout)["days"] == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"runs": {}}'])
def test_a_damaged_record_is_a_job_with_a_problem(layout: Layout, text: str) -> None:
    publish(layout)
    (layout.public / "nightly.json").write_text(text)
    server = report.gather(layout, "nightly")
    assert report.misfit(server, report.SERVER, "the report") is None
    (found,) = server["jobs"]
    assert found["state"] == "invalid" and "is damaged" in found["problem"] and found["runs"] == []
    assert "is damaged" in page([server])


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({}, "by hand only"),
        ({"every": "15m"}, "every 15m"),
        ({"at": ["02:30", "14:30"]}, "at 02:30, 14:30"),
        ({"at": ["02:30"], "days": ["mon", "fri"], "timezone": "Europe/Berlin"}, "at 02:30 (mon, fri), Europe/Berlin"),
        ({"at": ["02:30"], "day_of_month": [1, 15]}, "at 02:30 (day 1, day 15)"),
        ({"calendar": "Mon *-*-* 02:30"}, "Mon *-*-* 02:30"),
    ],
)
def test_schedules_in_words(schedule: dict[str, Any], said: str) -> None:
    nothing = {"every": None, "at": None, "days": [], "day_of_month": [], "calendar": None, "timezone": None}
    assert report.in_words({**nothing, **schedule} if schedule else None) == said


# What is written.


def test_a_page_is_as_open_as_the_records_and_stays_as_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report.write(str(path), "one")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("one", 0o640)
    path.chmod(0o604)
    link = tmp_path / "link"
    link.symlink_to(path)
    report.write(str(link), "two")
    assert (path.read_text(), path.stat().st_mode & 0o777, link.is_symlink()) == ("two", 0o604, True)
    assert sorted(os.listdir(tmp_path)) == ["link", "report.html"]


def test_what_is_no_file_is_left_as_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("", f"{tmp_path}/ is a directory"), ("pipe", f"{tmp_path}/pipe is no file")):
        with pytest.raises(InvalidDocument, match=said) as caught:
            report.write(f"{tmp_path}/{name}", "page")
        assert caught.value.field == "--html"
    with pytest.raises(Failure, match="No such file or directory; name a file in a directory that is yours"):
        report.write(f"{tmp_path}/none/report.html", "page")
    assert os.listdir(tmp_path) == ["pipe"]
