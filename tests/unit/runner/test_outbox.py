# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from serversync import outbox
from serversync.layout import Layout
from serversync.outbox import Away, Later, Left, Mail, Refused

NONE = ("empty", "list", "to", "posted", "tries", "endless", "early", "subject", "nobody", "deep", "pipe", "link")
START = datetime(2026, 3, 1, 2, 30, tzinfo=timezone.utc)


class World:
    """A mail server and a clock."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layout = Layout("user", directory, directory / "state", directory)
        self.now = START
        self.away: str | None = None
        self.slow = False
        self.refused: dict[str, str] = {}
        self.tries: list[tuple[float, str]] = []
        self.took: list[tuple[str, list[str]]] = []
        self.log: list[str] = []
        self.until: Callable[[], object] = lambda: None
        monkeypatch.setattr(outbox, "now", lambda: self.now)

    def post(self, run: str, *to: str) -> None:
        mail = {"job": "nightly", "run": run, "event": "failure", "to": [*to] or ["ops@example.com"]}
        outbox.post(self.layout, f"{run}.failure", {**mail, "subject": run, "text": "text", "html": "html"})

    def deliver(self, mail: Mail) -> dict[str, str]:
        self.tries.append(((self.now - START).total_seconds(), mail["run"]))
        if self.away:
            raise Away(self.away, slow=self.slow)
        if mail["run"] == "grey":
            raise Later("451 come back later")
        if mail["run"] == "spam":
            raise Refused("554 spam")
        found = {one: self.refused[one] for one in mail["to"] if one in self.refused}
        self.took.append((mail["run"], [one for one in mail["to"] if one not in found]))
        return found

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.until()

    def send(self) -> Left | None:
        return outbox.send(self.layout.outbox, self.deliver, self.log.append)

    def send_all(self) -> None:
        outbox.send_all(self.layout.outbox, self.deliver, self.log.append, self.wait)

    def left(self, where: str = ".") -> dict[str, Any]:
        found = (self.layout.outbox / where).glob("*.json")
        return {path.name.partition(".")[0]: json.loads(path.read_text()) for path in found}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_mails_go_out_once_and_in_order(world: World) -> None:
    for run in ("b", "a", "c"):
        world.post(run, "ops@example.com", "plant@example.com")
    assert world.send() is None
    assert world.took == [(run, ["ops@example.com", "plant@example.com"]) for run in "abc"]
    assert world.log[0] == "nightly, run a: mail to ops@example.com, plant@example.com sent"
    world.send_all()
    assert len(world.took) == 3


def test_a_mail_server_that_is_away_for_an_hour_costs_no_mail(world: World) -> None:
    world.away = "mail:25: Connection refused"
    world.post("a")

    def go_on() -> None:
        if len(world.tries) == 2:
            world.post("b")
        if world.now >= START + timedelta(hours=1):
            world.away = None

    world.until = go_on
    world.send_all()
    # The first that is tried tells of all.
    assert world.tries == [(60 * at, "a") for at in (0, 1, 3, 7, 15, 30, 45, 60)] + [(3600, "b")]
    assert [run for run, _to in world.took] == ["a", "b"]
    assert not world.left()


def test_what_waits_says_why(world: World) -> None:
    world.away = "mail:25: Connection refused"
    world.post("a")
    assert world.send() == world.send() == Left("mail:25: Connection refused")
    assert (world.left()["a"]["tries"], world.left()["a"]["error"]) == (2, "mail:25: Connection refused")
    assert world.log == ["nightly, run a: mail to ops@example.com waits: mail:25: Connection refused"] * 2
    assert outbox.refusal(world.layout.outbox, "a.failure") is None


def test_after_five_days_a_mail_is_given_up_and_kept(world: World) -> None:
    world.away = "mail:25: Connection refused"
    world.post("a")
    world.send_all()
    assert START + timedelta(days=5) <= world.now < START + timedelta(days=5, hours=1)
    assert not world.left()
    assert world.left("undelivered")["a"]["error"] == "mail:25: Connection refused"
    assert world.log[-1].endswith("given up after 5 days: mail:25: Connection refused")


def test_a_mail_that_is_refused_holds_no_other_up(world: World) -> None:
    for run in ("a", "spam", "z"):
        world.post(run)
    assert world.send() is None
    assert [run for run, _to in world.took] == ["a", "z"]
    assert outbox.refusal(world.layout.outbox, "spam.failure") == "554 spam"


def test_a_mail_that_has_to_wait_holds_no_other_up(world: World) -> None:
    for run in ("a", "grey", "z"):
        world.post(run)
    assert world.send() == Left("451 come back later")
    assert [run for run, _to in world.took] == ["a", "z"]
    assert [*world.left()] == ["grey"]


def test_a_refused_log_in_is_not_tried_again_and_again(world: World) -> None:
    world.away, world.slow = "mail:587: 535 wrong password", True
    world.post("a")
    world.send_all()
    assert [at / 3600 for at, _run in world.tries] == [6 * number for number in range(21)]


def test_who_is_refused_whole_is_told_of(world: World) -> None:
    world.post("a", "gone@example.com")
    world.refused = {"gone@example.com": "550 no such user"}
    assert world.send() is None
    assert outbox.refusal(world.layout.outbox, "a.failure") == "gone@example.com: 550 no such user"
    assert world.log == ["nightly, run a: mail to gone@example.com refused for gone@example.com: 550 no such user"]


def test_one_recipient_of_several_is_refused(world: World) -> None:
    world.post("a", "gone@example.com", "grey@example.com", "ops@example.com")
    world.refused = {"gone@example.com": "550 no such user", "grey@example.com": "450 come back later"}
    assert world.send() == Left("grey@example.com: 450 come back later")
    assert world.left()["a"]["to"] == ["grey@example.com"]
    assert any("refused for gone@example.com: 550 no such user" in line for line in world.log)
    world.refused = {}
    assert world.send() is None
    assert [to for _run, to in world.took] == [["ops@example.com"], ["grey@example.com"]]


def test_what_is_no_mail_is_put_aside(world: World) -> None:
    world.post("b")
    good = json.loads((world.layout.outbox / "b.failure.json").read_text())
    for name, text in (
        ("empty", ""),
        ("list", "[]"),
        ("to", json.dumps({**good, "to": None})),
        ("posted", json.dumps({**good, "posted": "yesterday"})),
        ("tries", json.dumps({**good, "tries": "x"})),
        ("endless", json.dumps({**good, "tries": float("inf")})),
        ("early", json.dumps({**good, "posted": "0001-01-01T00:00:00+14:00"})),
        ("subject", json.dumps({**good, "subject": {}})),
        ("nobody", json.dumps({**good, "to": []})),
        ("deep", "[" * 100_000),
    ):
        (world.layout.outbox / f"{name}.json").write_text(text)
    os.mkfifo(world.layout.outbox / "pipe.json")
    (world.layout.outbox / "link.json").symlink_to("/etc/passwd")
    assert world.send() is None
    assert [run for run, _to in world.took] == ["b"]
    aside = {path.name for path in (world.layout.outbox / "undelivered").iterdir()}
    assert aside == {f"{name}.json" for name in NONE}


def test_what_cannot_be_put_aside_holds_no_mail_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.post("b")
    (world.layout.outbox / "a.json").mkdir()

    def refuse(path: Path, _mail: Mail | None) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(outbox, "put_aside", refuse)
    assert world.send() == Left(f"{world.layout.outbox}/a.json is no mail and stays where it is (Permission denied)")
    assert [run for run, _to in world.took] == ["b"]


def test_a_directory_among_what_was_put_aside_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "KEPT", 1)
    world.post("spam")
    for name in ("a.json", "z.json"):
        (world.layout.outbox / name).mkdir()
    assert world.send() is None
    assert sorted(path.name for path in (world.layout.outbox / "undelivered").iterdir()) == ["a.json", "z.json"]


def test_of_what_is_put_aside_the_newest_are_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "KEPT", 2)
    for run in ("1", "2", "3"):
        (world.layout.outbox).mkdir(parents=True, exist_ok=True)
        (world.layout.outbox / f"{run}.json").write_text("")
    world.send()
    assert sorted(path.name for path in (world.layout.outbox / "undelivered").iterdir()) == ["2.json", "3.json"]
