# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import subprocess
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from serversync import place, run
from serversync.counts import Tell
from serversync.failure import Failure, Stopped
from serversync.history import History
from serversync.job import Element, Job, in_order
from serversync.journal import ERR, INFO, NOTICE, WARNING, Entry
from serversync.layout import Layout
from serversync.reconcile import Plan
from serversync.synchronize import Report

DOCUMENT = {
    "name": "nightly",
    "comment": "",
    "enabled": True,
    "partner": {"host": "here", "connection": "local"},
    "settings": {"direction": "to_partner", "exclude": []},
    "schedule": None,
    "notification": {"late_after": None},
    "on_error": {"retries": 2, "delay": "20m", "backoff": 2.0, "max_delay": None},
    "elements": [{"path": "/a", "partner_path": "/b"}],
    "before": [],
    "after": [],
    "limits": {"parallel": 1, "timeout": None},
}


class Synchronized:
    """An element of which only its end is there."""

    def __init__(self, outcome: BaseException | None, progress: Tell) -> None:
        self.outcome = outcome
        self.progress = progress
        self.report = Report()

    def __enter__(self) -> object:
        return self

    def __exit__(self, *_exception: object) -> None:
        return

    def synchronize(self, _approved: object) -> None:
        if self.outcome:
            raise self.outcome


class Site:
    """A job of elements that end as told, attempt by attempt, in runs of this process."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layout = Layout("user", directory, directory, directory)
        (directory / "runner.json").write_text("{}")
        self.outcomes: list[BaseException | None] = []
        # The names that the attempts had, which elements they were of, and what was waited.
        self.names: list[str] = []
        self.paths: list[str] = []
        self.waits: list[float] = []
        self.asked: list[int] = []
        self.told: list[str] = []
        self.said: list[str] = []
        self.document: dict[str, Any] = copy.deepcopy(DOCUMENT)
        self.clock = datetime(2026, 11, 27, 2, 30, tzinfo=timezone.utc)
        monkeypatch.setattr(run, "engine", lambda _element: self.synchronized)
        monkeypatch.setattr(run, "now", lambda: self.clock)

    def synchronized(self, _layout: object, _job: object, element: Element, *_servers: object, **given: Any) -> object:
        self.names.append(given["run"])
        self.paths.append(element.path)
        return Synchronized(self.outcomes[len(self.names) - 1], given["progress"])

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock += timedelta(seconds=seconds)

    def run(
        self,
        *,
        trigger: str = "schedule",
        only: list[str] | None = None,
        later: Callable[[int], None] | None = None,
        going_down: bool = False,
        wait: Callable[[float], None] | None = None,
    ) -> run.Record:
        text = json.dumps(self.document)
        one = run.Run(
            self.layout,
            Job(self.document, hashlib.sha256(text.encode()).hexdigest()),
            trigger=trigger,
            only=only,
            approve=None,
            log=self.said.append,
            wait=wait or self.wait,
            later=later,
            going_down=lambda: going_down,
        )

        def tell(record: run.Record, _past: object) -> None:
            self.told.append(record["state"])

        return one.carry_out(tell)

    def start(self, **options: Any) -> run.Record:
        """As a unit does it, which does not wait for its next attempt."""
        return self.run(later=self.asked.append, **options)

    def states(self) -> list[str]:
        with closing(History(self.layout)) as history:
            return [record["state"] for record in history.runs("nightly", 9)]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def attempts(site: Site, outcomes: Sequence[Failure | None]) -> tuple[run.Record, list[str]]:
    """A run whose element ends as told, attempt by attempt; its record and the names that the attempts had."""
    site.outcomes = [*outcomes]
    record = site.run()
    assert site.waits == [1200, 2400][: len(site.names) - 1]
    assert site.told == [record["state"]]
    return record, site.names


LOST = Failure("connection", "gone", transient=True)
REFUSED = Failure("login", "no")
BUSY = Failure("running", "in use", transient=True)


def test_each_attempt_keeps_what_it_displaces_apart(site: Site) -> None:
    record, names = attempts(site, [LOST, LOST, None])
    assert names == [record["run"], f"{record['run']}.2", f"{record['run']}.3"]
    assert all(place.WORD.fullmatch(name) and place.started(name) < float("inf") for name in names)


@pytest.mark.parametrize(
    ("outcomes", "states", "state"),
    [
        ([None], ["equal"], "equal"),
        ([LOST, None], ["failed", "equal"], "equal"),
        ([LOST, REFUSED], ["failed", "failed"], "failed"),
        ([REFUSED], ["failed"], "failed"),
        ([LOST, LOST, LOST], ["failed", "failed", "failed"], "failed"),
        ([BUSY, None], ["skipped", "equal"], "equal"),
        ([BUSY, BUSY, BUSY], ["skipped", "skipped", "skipped"], "skipped"),
        ([LOST, BUSY, REFUSED], ["failed", "skipped", "failed"], "failed"),
    ],
)
def test_attempts_go_on_as_long_as_another_one_can_help(
    outcomes: list[Failure | None], states: list[str], state: str, site: Site
) -> None:
    record, _names = attempts(site, outcomes)
    assert [attempt["state"] for attempt in record["attempts"]] == states
    assert record["state"] == state
    last = outcomes[-1]
    assert record["error"] == (last.as_dict() if last else None)


def test_whoever_waits_for_the_next_attempt_holds_nothing(site: Site) -> None:
    site.outcomes = [LOST, None]

    def wait(seconds: float) -> None:
        with run.locked(site.layout, "nightly") as free:
            assert free
        assert [*(site.layout.runtime / "turns").iterdir()]
        for path in (site.layout.runtime / "turns").iterdir():
            with path.open("ab") as one:
                fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert site.states() == ["waiting"]
        site.wait(seconds)

    assert site.run(wait=wait)["state"] == "equal"


def test_a_unit_ends_with_each_attempt_and_the_next_one_goes_on(site: Site) -> None:
    site.outcomes = [LOST, LOST, None]
    record = site.start()
    assert (record["state"], record["retry"]["at"]) == ("waiting", "2026-11-27T02:50:00.000+00:00")
    assert (site.asked, site.waits, site.told) == ([1200], [], [])
    # The schedule falls due meanwhile.
    site.clock += timedelta(minutes=15)
    assert site.start()["state"] == "waiting"
    assert len(site.names) == 1
    site.clock += timedelta(minutes=5)
    assert site.start()["state"] == "waiting"
    site.clock += timedelta(minutes=40)
    last = site.start()
    assert (last["run"], last["state"], last["retry"]) == (record["run"], "equal", None)
    assert site.names == [record["run"], f"{record['run']}.2", f"{record['run']}.3"]
    assert (site.asked, site.told, site.states()) == ([1200, 2400], ["equal"], ["equal"])


def test_the_last_attempt_ends_the_run_and_is_told(site: Site) -> None:
    site.outcomes = [LOST] * 3
    for _attempt in site.outcomes:
        site.start()
        site.clock += timedelta(hours=1)
    assert (site.told, site.states()) == (["failed"], ["failed"])


def test_only_what_failed_is_tried_again_and_by_hand_all_of_it(site: Site) -> None:
    site.document["elements"].append({"path": "/c", "partner_path": "/d"})
    site.outcomes = [LOST, None, LOST, None, None]
    assert [site.start()["state"], site.paths] == ["waiting", ["/a", "/c"]]
    site.clock += timedelta(hours=1)
    assert [site.start()["state"], site.paths[2:]] == ["waiting", ["/a"]]
    # Before it is due.
    record = site.start(trigger="manual")
    assert (record["state"], site.paths[3:], len(record["attempts"])) == ("equal", ["/a", "/c"], 3)
    assert site.states() == ["equal"]


def test_a_run_of_some_elements_leaves_the_attempts_of_the_others_alone(site: Site) -> None:
    site.document["elements"].append({"path": "/c", "partner_path": "/d"})
    site.outcomes = [LOST, None, None, None]
    site.start()
    assert site.start(trigger="manual", only=["/c"])["state"] == "equal"
    assert site.states() == ["equal", "waiting"]
    site.clock += timedelta(hours=1)
    assert site.start()["state"] == "equal"
    assert (site.paths, site.states()) == (["/a", "/c", "/c", "/a"], ["equal", "equal"])


def test_a_job_that_was_changed_begins_anew(site: Site) -> None:
    site.outcomes = [LOST, None]
    first = site.start()
    site.document["comment"] = "another"
    record = site.start()
    assert (record["state"], record["run"] != first["run"], site.states()) == ("equal", True, ["equal", "failed"])
    with closing(History(site.layout)) as history:
        assert history.runs("nightly", 2)[1]["error"]["code"] == "replaced"


def test_a_job_that_was_removed_and_declared_again_begins_anew(site: Site) -> None:
    site.outcomes = [LOST, None]
    site.start()
    (site.layout.public / "nightly.json").unlink()
    assert (site.start()["state"], site.states()) == ("equal", ["equal", "failed"])


def test_attempts_are_counted_over_deaths(site: Site) -> None:
    """The process is gone without a word, as after a kill, or with the server."""
    site.outcomes = [SystemExit(), SystemExit(), LOST]
    for number in range(3):
        history = History(site.layout)
        with closing(history), pytest.MonkeyPatch.context() as patched:
            # A killed process neither says how it ended nor tells anybody.
            patched.setattr(run.Run, "end", lambda *_arguments: None)
            patched.setattr(run.Run, "close", lambda *_arguments: None)
            if number < 2:
                with pytest.raises(SystemExit):
                    site.start()
                assert site.states() == ["running"]
    record = site.start()
    assert [attempt["errors"][0]["code"] for attempt in record["attempts"]] == ["died", "died", "connection"]
    assert (record["state"], site.told, len(set(site.names))) == ("failed", ["failed"], 3)


def test_by_hand_a_run_that_died_is_told_and_another_one_begun(site: Site) -> None:
    site.outcomes = [SystemExit(), None]
    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(run.Run, "close", lambda *_arguments: None)
        site.start()
    assert site.start(trigger="manual")["state"] == "equal"
    with closing(History(site.layout)) as history:
        codes = [(record["state"], (record["error"] or {}).get("code")) for record in history.runs("nightly", 9)]
    assert codes == [("equal", None), ("failed", "died")]


def test_what_died_waits_as_after_any_failure(site: Site) -> None:
    job = Job(site.document, "")
    dead = {"state": "running", "started": "", "attempts": [], "elements": [{"path": "/a", "state_after": None}]}
    second = run.buried(dead, job)
    assert (second["state"], second["retry"]["at"]) == ("waiting", "2026-11-27T02:50:00.000+00:00")
    third = run.buried(second | {"state": "running"}, job)
    assert (third["retry"]["at"], len(third["attempts"])) == ("2026-11-27T03:10:00.000+00:00", 2)


def test_what_died_in_its_last_attempt_is_told_and_nothing_else_done(site: Site) -> None:
    site.document["on_error"]["retries"] = 0
    site.outcomes = [SystemExit(), None]
    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(run.Run, "close", lambda *_arguments: None)
        site.start()
    record = site.start()
    assert (record["state"], record["error"]["code"], len(record["attempts"])) == ("failed", "died", 1)
    assert record["elements"][0]["state_after"] == "failed"
    assert (len(site.names), site.told, site.states()) == (1, ["failed"], ["failed"])
    assert site.start()["state"] == "equal"


def test_a_run_that_is_stopped_with_the_server_goes_on_after_boot(site: Site) -> None:
    site.outcomes = [Stopped(), None]
    with pytest.raises(Stopped):
        site.start(going_down=True)
    assert (site.states(), site.asked, site.told) == (["waiting"], [], [])
    record = site.start()
    assert (record["state"], len(record["attempts"]), site.names[1]) == ("equal", 2, f"{record['run']}.2")


def test_a_run_that_is_stopped_while_it_waits_says_so(site: Site) -> None:
    site.outcomes = [LOST]

    def wait(_seconds: float) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        site.run(wait=wait)
    assert (site.states(), site.told) == (["failed"], ["failed"])


def test_a_run_that_is_stopped_just_before_it_waits_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.outcomes = [LOST]

    def stop(*_arguments: object) -> None:
        raise Stopped

    monkeypatch.setattr(run, "span", stop)
    with pytest.raises(Stopped):
        site.start()
    assert (site.states(), site.asked, site.told) == (["failed"], [], ["failed"])


def test_another_run_may_make_the_attempt_that_a_process_waits_for(site: Site) -> None:
    site.outcomes = [LOST, None]

    def wait(_seconds: float) -> None:
        assert site.run(trigger="manual")["state"] == "equal"

    record = site.run(wait=wait)
    assert (record["state"], len(site.names), site.states()) == ("equal", 2, ["equal"])


def test_nobody_to_start_it_again_is_no_end(site: Site) -> None:
    site.outcomes = [LOST, None]

    def later(_seconds: int) -> None:
        raise Failure("units", "nobody answers")

    assert site.run(later=later)["state"] == "equal"
    assert site.waits == [1200]


@pytest.mark.parametrize("hours", [-1, 2])
def test_a_clock_that_was_set_delays_no_attempt_for_long(hours: int, site: Site) -> None:
    site.outcomes = [LOST, None]
    site.start()
    site.clock += timedelta(hours=hours)
    assert site.start()["state"] == "equal"


COUPLED = [
    Element(0, "/c", "/c", requires=["/a", "/b"]),
    Element(1, "/a", "/a"),
    Element(2, "/b", "/b", requires=["/a"]),
]


def test_elements_go_behind_what_they_require() -> None:
    assert in_order(COUPLED) == [1, 2, 0]
    # what is required and is no part of the run is waited for by nobody
    assert in_order([COUPLED[2], COUPLED[0]]) == [0, 1]
    assert in_order([Element(number, str(number), "") for number in range(3)]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("errors", "transient"),
    [([LOST, None], True), ([LOST, BUSY], True), ([LOST, REFUSED], False), ([None, REFUSED], False)],
)
def test_what_was_left_alone_is_tried_again_where_all_that_it_requires_is(
    errors: list[Failure | None], transient: bool
) -> None:
    entries = [
        {"path": path, "state_after": "failed" if error else "equal", "error": error and error.as_dict(), "guards": []}
        for path, error in zip(("/a", "/b"), errors)
    ]
    unwell = run.unfit(COUPLED[0], entries)
    assert len(unwell) == sum(error is not None for error in errors)
    assert run.required(COUPLED[0], unwell).transient is transient
    assert run.unfit(COUPLED[1], entries) == []


def test_the_lock_is_held_as_long_as_what_was_started_lives(tmp_path: Path) -> None:
    layout = Layout("user", tmp_path, tmp_path, tmp_path)
    job = Job({"name": "nightly"}, "")
    with run.locked(layout, job.name) as free:
        assert free
        # In the place of an rsync whose runner is killed.
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    with run.locked(layout, job.name) as free:
        assert not free
    child.communicate()
    with run.locked(layout, job.name) as free:
        assert free


def events(site: Site) -> list[tuple[str, int, str, str]]:
    """What was said: event, level, state and code."""
    entries = [line for line in site.said if isinstance(line, Entry)]
    assert entries == site.said
    assert {entry.about["job"] for entry in entries} == {"nightly"}
    return [(one.event, one.level, one.about.get("state", ""), one.about.get("code", "")) for one in entries]


def test_each_step_of_a_run_is_an_event(site: Site) -> None:
    site.outcomes = [LOST, BUSY, None]
    record = site.run()
    assert events(site) == [
        ("run_started", INFO, "", ""),
        # It is tried again, which is no alarm yet.
        ("element_ended", WARNING, "failed", "connection"),
        ("attempt_ended", WARNING, "failed", "connection"),
        ("attempt_started", INFO, "", ""),
        ("element_ended", WARNING, "skipped", "running"),
        ("attempt_ended", WARNING, "skipped", "running"),
        ("attempt_started", INFO, "", ""),
        ("element_ended", INFO, "equal", ""),
        ("run_ended", INFO, "equal", ""),
    ]
    assert site.said[0] == f"nightly: run {record['run']} begins, schedule, configuration 1"
    assert site.said[-1].startswith(f"nightly: equal after 3 attempts, run {record['run']}, ")
    assert {line.about["run"] for line in site.said} == {record["run"]}
    assert [line.about["element"] for line in site.said if line.event == "element_ended"] == ["/a"] * 3


@pytest.mark.parametrize(
    ("outcomes", "level", "state", "code"),
    [([REFUSED], ERR, "failed", "login"), ([BUSY, BUSY, BUSY], NOTICE, "skipped", "running")],
)
def test_the_last_try_says_how_grave_it_is(
    outcomes: list[Failure], level: int, state: str, code: str, site: Site
) -> None:
    attempts(site, outcomes)
    assert events(site)[-2:] == [("element_ended", level, state, code), ("run_ended", level, state, code)]
    assert site.said[-1].endswith(f": {outcomes[-1]}")


def test_what_waits_for_a_person_is_an_event_of_its_own(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize(one: Synchronized, _approved: object) -> None:
        one.report.state_after = "different"
        one.report.standing = {"unresolved": 2}
        one.report.guards = ["the source is empty"]
        one.report.plan = Plan([])

    monkeypatch.setattr(Synchronized, "synchronize", synchronize)
    site.outcomes = [None]
    site.run()
    assert events(site)[1:] == [
        ("element_ended", WARNING, "different", ""),
        ("conflict", WARNING, "different", ""),
        ("guard", WARNING, "different", ""),
        ("run_ended", WARNING, "different", ""),
    ]
    assert site.said[2:4] == [
        "/a: 2 unresolved; decide: serversync conflicts nightly",
        "/a: stopped before the first change: the source is empty",
    ]


def test_a_run_that_is_ended_by_another_one_has_its_end_told(site: Site) -> None:
    site.outcomes = [LOST, None]
    first = site.start()
    site.said.clear()
    site.document["comment"] = "changed"
    second = site.start()
    assert events(site)[0] == ("run_ended", ERR, "failed", "replaced")
    assert [line.about["run"] for line in site.said] == [first["run"], *[second["run"]] * 3]


def test_a_run_that_is_skipped_has_its_end_told(site: Site) -> None:
    with run.locked(site.layout, "nightly"):
        record = site.run()
    assert events(site) == [("run_ended", NOTICE, "skipped", "running")]
    assert site.said[0].endswith(f", run {record['run']}, 0.0 s: another run of this job is on; this one was skipped")
