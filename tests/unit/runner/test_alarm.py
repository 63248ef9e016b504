# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is told that a job is late, when, and how often; the clock is what the test says it is."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from serversync import alarm, late, notify, outbox, units
from serversync.failure import Failure
from serversync.layout import Layout

NOON = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)
MADE = NOON - timedelta(days=30)


class World:
    """A server's files, its mails, what its services got, and a clock."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, scope: str = "user") -> None:
        self.layout = Layout(scope, directory / "config", directory / "state", directory / "state")
        for path in (self.layout.jobs, self.layout.public, self.layout.outbox):
            path.mkdir(parents=True)
        self.layout.settings.write_text('{"outbox_service": true}')
        self.now = NOON
        self.log: list[str] = []
        self.services: dict[str, str] = {}
        self.got: list[str] = []
        self.refused: set[str] = set()
        self.asked: list[str] = []
        monkeypatch.setattr(alarm, "next_runs", lambda _layout: {})
        monkeypatch.setattr(alarm, "urls_of", lambda _layout, _job: (self.services, None))
        monkeypatch.setattr(alarm, "with_apprise", self.deliver)
        monkeypatch.setattr(units, "have_told", lambda job: self.asked.append(job.name))
        monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)

    def deliver(self, url: str, _use: Callable[[Any], bool]) -> str | None:
        if url in self.refused:
            return "did not take it; check the URL"
        self.got.append(url)
        return None

    def declare(self, name: str = "nightly", *, made: datetime = MADE, **more: Any) -> None:
        schedule = {"every": None, "at": ["02:30"], "days": [], "calendar": None, "timezone": None}
        document = {
            "version": 1,
            "name": name,
            "comment": "Line 1",
            "enabled": True,
            "scope": self.layout.scope,
            "partner": {"host": "localhost", "port": None, "connection": "local", "host_key": []},
            "account": None,
            "schedule": {**schedule, "jitter": "0s", "catch_up": True},
            "on_error": {"retries": 0, "delay": "1s"},
            "notification": {"email": ["ops@example.com"], "events": ["late"]},
            "settings": {"direction": "to_partner", "exclude": [], "delete": "never"},
            "elements": [{"path": "/srv/a", "partner_path": "/srv/b"}],
        }
        path = self.layout.jobs / f"{name}.json"
        path.write_text(json.dumps({**document, **more}))
        os.utime(path, (made.timestamp(), made.timestamp()))

    def publish(self, *runs: dict[str, Any], name: str = "nightly", good: datetime | None = None) -> None:
        text = {"good": good and good.isoformat(), "runs": [*runs]}
        (self.layout.public / f"{name}.json").write_text(json.dumps(text))

    def look(self, only: str | None = None, **later: float) -> bool:
        """So much later."""
        self.now += timedelta(**later)
        return alarm.look(self.layout, only, self.now, self.log.append)

    def mails(self) -> list[dict[str, Any]]:
        """The mails that wait; whoever sends them takes them away."""
        paths = sorted(self.layout.outbox.glob("*.json"))
        found = [outbox.read(path) for path in paths]
        assert [path.stem for path in paths] == [f"{mail['run']}.late" for mail in found]
        for path in paths:
            path.unlink()
        return found


def run(state: str, started: datetime, **more: Any) -> dict[str, Any]:
    ended = None if state in ("running", "waiting") else started.isoformat()
    record = {"run": "20261118T023000Z-abcd", "trigger": "schedule", "started": started.isoformat(), "ended": ended}
    return {**record, "state": state, "error": None, "retry": None, "attempts": [], "elements": [], **more}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def local(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def test_who_is_late_is_told_of_once(world: World) -> None:
    world.declare()
    world.publish(run("equal", NOON), good=NOON)
    assert world.look()
    assert world.look(days=1, hours=23, minutes=59)
    assert (world.mails(), world.log, [*world.layout.late.iterdir()]) == ([], [], [])
    assert world.look(minutes=1)
    (mail,) = world.mails()
    server = os.uname().nodename
    assert mail["subject"] == f"[serversync] {server}: nightly LATE: no good run since {local(NOON)} (2 days)"
    assert (mail["to"], mail["job"], mail["run"][:17]) == (["ops@example.com"], "nightly", "20261120T120000Z-")
    assert world.log == [
        f"nightly: LATE: no good run since {local(NOON)} (2 days)",
        "nightly: mail to ops@example.com: in the outbox",
    ]
    for _look in range(100):
        assert world.look(hours=7)
    assert world.mails() == []
    # And again when it was well meanwhile, though nobody looked then.
    well = world.now
    world.publish(run("equal", well), good=well)
    assert world.look(days=1)
    assert world.mails() == []
    assert world.look(days=1)
    (again,) = world.mails()
    assert again["run"] != mail["run"]
    assert f"no good run since {local(well)} (2 days)" in again["subject"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, True),
        ({"enabled": False}, False),
        ({"notification": {"email": ["a@b"], "events": ["failure", "always"]}}, False),
        ({"notification": {"email": ["a@b"], "events": ["late"], "late_after": "30d"}}, True),
        ({"notification": {"email": ["a@b"], "events": ["late"], "late_after": "31d"}}, False),
        ({"notification": {"email": [], "events": ["late"]}}, False),
        ({"schedule": None, "notification": {"email": ["a@b"], "events": ["late"], "late_after": "7d"}}, True),
        ({"made": NOON - timedelta(days=2)}, True),
        ({"made": NOON - timedelta(days=1)}, False),
    ],
)
def test_what_was_never_well_is_late_some_time_after_it_was_declared(
    world: World, more: dict[str, Any], told: bool
) -> None:
    world.declare(**more)
    world.publish(run("failed", NOON), run("skipped", NOON))
    assert world.look()
    mails = world.mails()
    assert [mail["subject"].partition("since ")[2][:20] for mail in mails] == ["the job was changed,"] * told
    assert all("Last good: none on record\n" in mail["text"] for mail in mails)


def test_who_changes_a_job_has_the_whole_time_again(world: World) -> None:
    world.declare()
    world.publish(good=NOON - timedelta(days=9))
    world.declare(made=NOON)
    world.look(days=1)
    assert world.mails() == []
    world.look(days=1)
    assert [mail["subject"][-8:] for mail in world.mails()] == ["(2 days)"]


def test_a_run_that_is_on_is_waited_for_and_one_that_hangs_is_not(world: World) -> None:
    world.declare()
    world.publish(run("running", NOON + timedelta(days=1, hours=23)), good=NOON)
    world.look(days=2)
    world.look(hours=22)
    assert world.mails() == []
    world.look(hours=1)
    (mail,) = world.mails()
    assert "Meanwhile: 1 running\n" in mail["text"]
    assert "systemctl --user stop serversync@nightly.service" in mail["text"]
    assert "Next run:  when the one that is on is over\n" in mail["text"]


def test_one_job_that_is_damaged_keeps_nobody_from_being_told_of_another(world: World) -> None:
    for name in ("a-fifo", "b-text", "c-list", "d-runs", "e-good", "fine"):
        world.declare(name)
        world.publish(good=NOON, name=name)
    (world.layout.jobs / "a-fifo.json").unlink()
    (world.layout.jobs / "a-fifo.json").mkdir()
    (world.layout.jobs / "b-text.json").write_text("{")
    for name, text in (("c-list", "[]"), ("d-runs", '{"runs": 3}'), ("e-good", '{"runs": [], "good": "soon"}')):
        (world.layout.public / f"{name}.json").write_text(text)
    world.now = datetime.now(timezone.utc) + timedelta(days=1)
    assert not world.look()
    assert [mail["job"] for mail in world.mails()] == ["fine"]
    said = "\n".join(world.log)
    for text in (
        "a-fifo: ",
        "b-text: ",
        "c-list: ",
        "d-runs.json is damaged (no mapping with runs)",
        "e-good: ValueError: Invalid isoformat string: 'soon'",
    ):
        assert text in said, said.splitlines()
    # That of which every run writes a new one was there for so long.
    assert not world.look(days=1)
    assert {mail["job"] for mail in world.mails()} == {"c-list", "d-runs"}


def test_a_clock_that_was_set_back_tells_nothing_and_silences_nobody(world: World) -> None:
    world.declare()
    world.publish(good=NOON + timedelta(days=400))
    world.look()
    assert world.mails() == []
    world.look(days=1, hours=23)
    assert world.mails() == []
    world.look(hours=1)
    assert [mail["subject"][-8:] for mail in world.mails()] == ["(2 days)"]
    # Once more, by a year.
    world.look(days=-365)
    world.look(days=30)
    world.look(days=400)
    assert world.mails() == []


def test_while_one_tells_no_other_looks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.declare()
    held = []

    def mail(layout: Layout, *_more: Any) -> dict[str, str | None]:
        directory = os.open(layout.late, os.O_RDONLY | os.O_DIRECTORY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(directory)
        held.append(True)
        return {"error": None, "waits": None}

    monkeypatch.setattr(notify, "mail", mail)
    assert world.look()
    assert held == [True]


def test_a_death_before_it_is_noted_makes_no_second_mail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.declare()
    keep, notes = late.keep, []

    def die(*arguments: Any) -> None:
        notes.append(arguments)
        if len(notes) == 2:
            raise KeyboardInterrupt
        keep(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(late, "keep", die)
        with pytest.raises(KeyboardInterrupt):
            world.look()
    [path] = world.layout.outbox.glob("*.json")
    assert world.look(minutes=15)
    assert [*world.layout.outbox.glob("*.json")] == [path]
    assert len(world.mails()) == 1
    assert world.look(minutes=15)
    assert world.mails() == []


def test_a_mail_that_finds_no_room_is_put_there_by_a_later_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.declare()

    def full(_path: Path, _text: str, _mode: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(outbox, "replace", full)
        assert not world.look()
    assert world.mails() == []
    assert "cannot be put into" in world.log[-1]
    assert world.look(minutes=15)
    assert len(world.mails()) == 1
    assert world.look(minutes=15)
    assert world.mails() == []


def test_where_nothing_can_be_noted_nothing_is_told_again_and_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.declare()

    def full(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(late, "keep", full)
        assert not world.look()
        assert not world.look(minutes=15)
    assert world.log == ["nightly: OSError: [Errno 28] No space left on device"] * 2
    assert world.mails() == []
    assert world.look(minutes=15)
    assert len(world.mails()) == 1


BY_URLS = {"email": ["ops@example.com"], "urls": ["kept as a credential"], "events": ["late"]}


def test_services_are_told_and_those_that_refuse_are_asked_again_for_a_day(world: World) -> None:
    world.declare(notification=BY_URLS)
    world.services, world.refused = {"[0] (a)": "a://", "[1] (b)": "b://"}, {"a://"}
    assert not world.look()
    assert world.look(minutes=15) is False
    assert world.got == ["b://"]
    world.refused = set()
    assert world.look(minutes=15)
    assert world.look(minutes=15)
    assert world.got == ["b://", "a://"]
    assert len(world.mails()) == 1


def test_a_service_that_never_takes_it_is_given_up(world: World) -> None:
    world.declare(notification={**BY_URLS, "email": []})
    world.services, world.refused = {"[0] (a)": "a://"}, {"a://"}
    assert [world.look(hours=1) for _look in range(30)] == [False] * 25 + [True] * 5
    world.refused = set()
    assert world.look(hours=1)
    assert world.got == []


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch, "system")


def test_in_system_scope_root_has_the_services_told(system: World, monkeypatch: pytest.MonkeyPatch) -> None:
    system.declare(notification=BY_URLS)
    system.services = {"[0] (a)": "a://"}
    assert system.look()
    assert (system.asked, system.got, len(system.mails())) == (["nightly"], [], 1)
    # Until it is told.
    assert system.look(minutes=15)
    assert system.asked == ["nightly"] * 2
    system.declare("other")
    with monkeypatch.context() as patched:
        patched.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/serversync-late-nightly.service")
        assert system.look("nightly", minutes=1)
    assert (system.got, system.mails()) == (["a://"], [])
    assert system.look(minutes=14)
    assert (system.asked, system.got) == (["nightly"] * 2, ["a://"])
    assert [mail["job"] for mail in system.mails()] == ["other"]


def test_where_root_does_not_answer_the_mail_goes_out(system: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_job: Any) -> None:
        raise Failure("units", "nobody answers; apply the role again")

    monkeypatch.setattr(units, "have_told", refuse)
    system.declare(notification=BY_URLS)
    assert not system.look()
    assert len(system.mails()) == 1
    assert system.log[-1] == "nightly: nobody answers; apply the role again"


def test_of_jobs_that_are_no_more_nothing_is_noted(world: World) -> None:
    for name in ("kept", "removed"):
        world.declare(name)
    world.look()
    (world.layout.jobs / "removed.json").unlink()
    world.look()
    assert [path.name for path in world.layout.late.iterdir()] == ["kept.json"]


def test_the_mail_says_what_is_known(world: World) -> None:
    error = {"code": "unreachable", "field": "partner.host", "message": "hq:22: Connection refused; look into sshd"}
    world.declare()
    runs = [run("failed", NOON + timedelta(days=1), error=error), run("skipped", NOON), run("equal", NOON)]
    world.publish(*runs, good=NOON)
    world.look(days=2)
    (mail,) = world.mails()
    for said in (
        "Line 1",
        "after 2d without a good run",
        f"{local(NOON)}:00",
        "1 failed, 1 skipped",
        f"20261118T023000Z-abcd (schedule): failed, started {local(NOON + timedelta(days=1))}:00, took 0.0 s",
        "none: its timer is off; apply the job again",
        "partner.host: hq:22: Connection refused; look into sshd",
        "serversync show nightly",
        "systemctl --user list-timers --all serversync@nightly.timer",
        "journalctl --user -u serversync@nightly.service",
        "serversync check nightly",
        "serversync run nightly",
    ):
        assert said in mail["text"], mail["text"]
        assert said in mail["html"]
