# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serversync import PROTOCOL, ssh
from serversync.failure import Failure
from serversync.frames import Frames
from serversync.layout import Layout
from serversync.replica import Partner


class Talk(ssh.Connection):
    """The conversation alone: what the partner says lies ready in a pipe."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        source, target = os.pipe()
        os.write(target, b"".join(json.dumps(answer).encode() + b"\n" for answer in answers))
        self.converse(Frames(source, os.open(os.devnull, os.O_WRONLY)))
        self.partner = "hq:22"
        self.descriptors = (source, target, self.frames.target)

    def __exit__(self, *_exception: object) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def test_an_answer_to_an_older_question_is_never_taken() -> None:
    with Talk({"id": 1, "ok": True, "address": "root-1/one"}, {"id": 1, "ok": True, "address": "root-1/one"}) as talk:
        assert talk.ask("look", path="/one")["address"] == "root-1/one"
        with pytest.raises(Failure, match="answered another question"):
            talk.ask("look", path="/two")


def test_after_silence_the_connection_is_given_up() -> None:
    with Talk() as talk:
        with pytest.raises(Failure, match="did not answer") as first:
            talk.ask("look", patience=0)
        os.write(talk.descriptors[1], b'{"id": 2, "ok": true}\n')
        with pytest.raises(Failure) as second:
            talk.ask("look", path="/two")
        assert second.value is first.value
        assert second.value.transient


def test_a_refusal_is_an_answer_and_the_conversation_goes_on() -> None:
    refused = Failure("outside_roots", "no").as_dict()
    with Talk({"id": 1, "ok": False, "failure": refused}, {"id": 2, "ok": True}) as talk:
        with pytest.raises(Failure, match="no"):
            talk.ask("look", path="/etc")
        assert talk.ask("hello") == {"id": 2, "ok": True}


def test_what_was_asked_early_is_answered_when_it_is_waited_for() -> None:
    refused = Failure("outside_roots", "no").as_dict()
    with Talk({"id": 1, "ok": True, "a": 1}, {"id": 2, "ok": False, "failure": refused}, {"id": 3, "ok": True}) as talk:
        first, second = talk.ask_early("begin", path="/one"), talk.ask_early("begin", path="/two")
        assert talk.ask("look", path="/three") == {"id": 3, "ok": True}
        with pytest.raises(Failure, match="no"):
            talk.answer(second)
        assert talk.answer(first)[0]["a"] == 1


def test_what_was_asked_early_is_not_waited_for_once_the_connection_is_lost() -> None:
    with Talk() as talk:
        number = talk.ask_early("begin", path="/one")
        with pytest.raises(Failure) as first:
            talk.ask("look", patience=0)
        with pytest.raises(Failure) as second:
            talk.answer(number)
        assert second.value is first.value


@pytest.mark.parametrize("character", ["*", "?", "[", "\\"])
def test_no_character_of_an_address_is_a_pattern(character: str) -> None:
    connection: Any = SimpleNamespace(remote_shell="ssh", about={}, host="serversync-hq")
    partner = Partner(connection)
    partner.addresses["/x"] = f"root-1/a{character}b"
    assert partner.address("/x") == f"serversync-hq::root-1/a\\{character}b"


def test_a_long_answer_that_is_left_half_read_ends_the_conversation() -> None:
    with Talk({"id": 1, "ok": True}) as talk:
        answer = talk.ask_long("listing")
        answer.close()
        assert list(talk.ask_long("listing")) == []
    with Talk({"id": 1, "ok": True, "more": True, "bytes": 1}) as talk:
        os.write(talk.descriptors[1], b"x")
        answer = talk.ask_long("listing")
        assert next(answer) == b"x"
        answer.close()
        with pytest.raises(Failure, match="was not read to its end"):
            talk.ask("hello")


def test_a_long_answer_of_nothing_ends_the_conversation() -> None:
    with Talk({"id": 1, "ok": True, "more": True}) as talk:
        with pytest.raises(Failure, match="with nothing in it") as caught:
            list(talk.ask_long("listing"))
        assert caught.value.code == "protocol"
        with pytest.raises(Failure, match="with nothing in it"):
            talk.ask("hello")


ABOUT = {"version": "1", "protocol": PROTOCOL, "time": 1.0, "privileged": False}


@pytest.mark.parametrize(
    "lie",
    [
        {"time": float("nan")},
        {"time": float("inf")},
        {"time": 10**400},
        {"time": None},
        {"version": 7},
        {"version": "x" * 9_999},
        {"privileged": "yes"},
        {"protocol": PROTOCOL + 1, "version": "x" * 9_999},
        {"protocol": [[]], "version": {}},
    ],
)
def test_a_partner_that_is_none_is_not_greeted(lie: dict[str, Any]) -> None:
    with Talk({"id": 1, "ok": True, **ABOUT, **lie}) as talk:
        talk.hello = talk.ask_early("hello")
        with pytest.raises(Failure) as raised:
            talk.greet()
        assert raised.value.code in ("protocol", "version")
        assert len(raised.value.message) < 1000
    with Talk({"id": 1, "ok": True, **ABOUT}) as talk:
        talk.hello = talk.ask_early("hello")
        talk.greet()
        assert talk.about == ABOUT


@pytest.mark.parametrize("lie", [7, [], "x" * 9_999])
def test_a_version_of_rsync_that_is_none(lie: Any) -> None:
    with Talk({"id": 1, "ok": True, "rsync": lie}) as talk, pytest.raises(Failure, match="cannot be one"):
        talk.rsync_version()


def test_parcels_are_answered_beside_everything_else_and_in_their_order() -> None:
    with Talk({"id": 3, "ok": True}, {"id": 1, "ok": True}, {"id": 2, "ok": True}, {"id": 5, "ok": True}) as talk:
        first, second = talk.ask_early("take"), talk.ask_early("take")
        assert talk.ask("commit") == {"id": 3, "ok": True}
        assert [talk.answer(number)[0]["id"] for number in (second, first)] == [2, 1]
        talk.ask_early("take")
        talk.ask_early("take")
        with pytest.raises(Failure, match="answered another question"):
            talk.ask("commit")


def test_what_was_asked_early_is_answered_once() -> None:
    """Who answers it again and again would be listened to for ever."""
    again = {"id": 1, "ok": True, "a": 1}
    with Talk(again, again, {"id": 2, "ok": True}) as talk:
        talk.ask_early("begin", path="/one")
        with pytest.raises(Failure, match="answered another question"):
            talk.ask("look", path="/two")


def test_answers_that_nobody_waits_for_are_not_kept() -> None:
    with Talk({"id": 1, "ok": True, "a": "x" * 1000}, {"id": 2, "ok": True}) as talk:
        talk.tell("close", tree=0)
        talk.ask("look", path="/one")
        assert talk.come == {} and talk.unheard == 0


def test_answers_of_any_length_are_kept_for_whoever_waits_for_them() -> None:
    pieces: list[dict[str, Any]] = [{"id": 1, "ok": True, "more": True, "bytes": 1}]
    with Talk() as talk:
        numbers = [talk.ask_early("entries"), talk.ask_early("entries"), talk.ask_early("entries")]
        for number in numbers:
            line = json.dumps({**pieces[0], "id": number}).encode() + b"\n" + b"%d" % number
            os.write(talk.descriptors[1], line * 2 + json.dumps({"id": number, "ok": True}).encode() + b"\n")
        os.write(talk.descriptors[1], b'{"id": 4, "ok": true}\n')
        talk.drop(numbers[0])
        assert talk.ask("look") == {"id": 4, "ok": True}
        talk.drop(numbers[1])
        assert talk.unheard == 2
        assert list(talk.pieces(numbers[2])) == [b"3", b"3"]
        assert talk.come == {} and talk.unheard == 0


def test_what_comes_before_it_is_waited_for_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "UNHEARD", 10)
    with Talk({"id": 1, "ok": True, "more": True, "bytes": 11}) as talk:
        os.write(talk.descriptors[1], b"x" * 11)
        talk.ask_early("entries")
        with pytest.raises(Failure, match="at greater length"):
            talk.ask("look")


def test_an_answer_of_one_frame_has_no_more() -> None:
    with Talk({"id": 1, "ok": True, "more": True}) as talk, pytest.raises(Failure, match="at greater length"):
        talk.ask("look")


def test_a_refusal_names_the_partner_and_speaks_of_it_alone() -> None:
    """Neither an option of this server's job nor the state of its records is the partner's to tell of."""
    refused = {"code": "records", "field": "settings.delete", "message": "no space", "transient": True}
    with Talk({"id": 1, "ok": False, "failure": refused}) as talk:
        with pytest.raises(Failure) as raised:
            talk.ask("look", path="/etc")
        told = raised.value
        assert (told.code, told.field, told.message) == ("unknown", None, "hq:22 says: no space")


@pytest.mark.parametrize("lie", ["Permission denied", "Host key verification failed", "Connection refused"])
def test_what_ssh_says_is_not_the_partners_to_say(lie: str) -> None:
    """It has its standard error for words of its own; whoever is told of a wrong host key would pin another one."""
    told = ssh.explain("", "hq:22", f"{lie}\n")
    assert (told.code, told.transient, told.message) == ("connection", True, f"the connection to hq:22 ended: {lie}")
    assert ssh.explain(f"{lie}\n", "hq:22").code != "connection"


def test_two_pairings_with_one_address_have_to_be_named(tmp_path: Path) -> None:
    layout = Layout("user", tmp_path, tmp_path, tmp_path)
    layout.pairings.mkdir()
    for name in ("hq", "lab"):
        (layout.pairings / f"{name}.json").write_text(json.dumps({"name": name, "host": "192.0.2.1"}))
    found = ssh.find_pairing(layout, "lab")
    assert found is not None
    assert found["name"] == "lab"
    assert ssh.find_pairing(layout, "other") is None
    with pytest.raises(Failure, match=r"several pairings \(hq, lab\); name one of them"):
        ssh.find_pairing(layout, "192.0.2.1")
