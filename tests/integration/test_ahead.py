# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that begin with what the last one lets expect: what the partner is asked, and what becomes of a wrong guess."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serversync import job, rsync
from serversync.layout import Layout
from serversync.run import Run
from serversync.ssh import Conversation

from tests.integration.conftest import Pair, tree

Asked = tuple[dict[str, Any], list[str]]


@pytest.fixture
def run(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Asked]:
    """Runs the job in this process; its record, and what the partner was asked."""
    asked: list[str] = []
    real = Conversation.question

    def question(self: Conversation, verb: str, *arguments: Any, **options: Any) -> int:
        asked.append(verb)
        return real(self, verb, *arguments, **options)

    monkeypatch.setattr(Conversation, "question", question)

    def run() -> Asked:
        asked.clear()
        layout = Layout.of("user", pair.here.environment)
        said: dict[str, Any] = {"trigger": "manual", "only": None, "approve": None, "log": lambda _line: None}
        one = Run(layout, job.load(layout, "nightly"), **said, wait=lambda _seconds: None)
        return one.carry_out(lambda _record, _past: None), list(asked)

    return run


def fill(root: Path) -> None:
    (root / "d").mkdir()
    for name in ("a", "d/b"):
        (root / name).write_text(name)


def test_an_unchanged_element_is_two_questions(pair: Pair, run: Callable[[], Asked]) -> None:
    fill(pair.path)
    pair.declare()
    first, asked = run()
    assert first["state"] == "equal" and asked[:3] == ["hello", "look", "open"], "nothing is known yet"
    assert run()[0]["state"] == "equal", "what was new then is looked at once more"
    third, asked = run()
    assert third["state"] == "equal"
    assert asked == ["hello", "begin", "prune", "close"]


@pytest.mark.parametrize("side", ["this server", "partner"])
def test_what_changed_is_found_by_what_was_begun(pair: Pair, run: Callable[[], Asked], side: str) -> None:
    fill(pair.path)
    pair.declare(settings={"direction": "both", "conflict": "newer_wins", "delete": "synced", "exclude": []})
    run()
    changed = pair.path if side == "this server" else pair.partner_path
    (changed / "a").write_text("changed")
    (changed / "new").write_text("new")
    (changed / "d" / "b").unlink()
    record, asked = run()
    assert asked[:2] == ["hello", "begin"] and "scan" not in asked and "open" not in asked
    assert "digests" not in asked, "the partner's had moved since its last scan was archived"
    assert record["state"] == "equal" and tree(pair.path) == tree(pair.partner_path)
    assert sorted(tree(pair.path)) == [b"a", b"d", b"new"] and (pair.path / "a").read_text() == "changed"


def test_attributes_that_are_preserved_from_now_on_are_looked_for(pair: Pair, run: Callable[[], Asked]) -> None:
    fill(pair.path)
    settings = {"direction": "to_partner", "exclude": [], "delete": "never"}
    pair.declare(settings={**settings, "preserve": ["times", "permissions"]})
    run()
    os.setxattr(pair.path / "d" / "b", "user.note", b"x")
    pair.declare(settings={**settings, "preserve": ["times", "permissions", "xattrs"]})
    record, asked = run()
    assert asked[:3] == ["hello", "begin", "scan"], "the guess was wrong"
    assert record["state"] == "equal" and os.getxattr(pair.partner_path / "d" / "b", "user.note") == b"x"
    run()
    assert run()[1] == ["hello", "begin", "prune", "close"]


@pytest.mark.parametrize("what", ["gone", "a file", "moved away with its marker"])
def test_a_partner_that_is_not_as_it_was_is_told_as_ever(pair: Pair, run: Callable[[], Asked], what: str) -> None:
    fill(pair.path)
    pair.declare()
    run()
    shutil.rmtree(pair.partner_path)
    if what == "a file":
        pair.partner_path.write_text("")
    if what == "moved away with its marker":
        pair.partner_path.mkdir()
    record, asked = run()
    if what == "a file":
        assert record["error"]["code"] == "kind" and pair.partner_path.read_text() == ""
    else:
        assert record["state"] == "different" and "lost the runner's marker" in record["elements"][0]["guards"][0]
        assert (what == "gone") == ("open" in asked)


def test_a_source_that_is_gone_is_told_as_ever(pair: Pair, run: Callable[[], Asked]) -> None:
    fill(pair.path)
    pair.declare()
    run()
    shutil.rmtree(pair.path)
    record, asked = run()
    assert "begin" not in asked
    assert record["error"]["message"].startswith(f"{pair.path} does not exist on this server, the source")


def test_a_partner_that_cannot_be_reached_leaves_nothing_locked(pair: Pair, run: Callable[[], Asked]) -> None:
    fill(pair.path)
    pair.declare()
    run()
    pair.there.stop()
    assert run()[0]["error"]["code"] == "unreachable"
    pair.there.start()
    assert run()[0]["state"] == "equal"


def test_the_answers_that_a_run_waits_for_are_few(
    pair: Pair, run: Callable[[], Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a round trip: the greeting, what was begun, owners, parcels, operations, what is archived, the end."""
    fill(pair.path)
    pair.declare()
    run()
    (pair.path / "a").write_text("changed")
    (pair.path / "d" / "new").write_text("new")
    order: list[str] = []
    asked, heard = Conversation.ask_early, Conversation.hear

    def ask(self: Conversation, verb: str, *arguments: Any, **options: Any) -> int:
        if order[-1:] != ["asked"]:
            order.append("asked")
        return asked(self, verb, *arguments, **options)

    def hear(self: Conversation, *answer: Any) -> None:
        # The greeting is answered before or after the next question, as the machine has time.
        if order[-1:] != ["heard"] and answer[0].get("id") != 1:
            order.append("heard")
        heard(self, *answer)

    monkeypatch.setattr(Conversation, "ask_early", ask)
    monkeypatch.setattr(Conversation, "hear", hear)
    assert run()[0]["state"] == "equal" and tree(pair.path) == tree(pair.partner_path)
    assert order.count("heard") <= 6, order


@pytest.mark.parametrize("direction", ["to_partner", "from_partner"])
@pytest.mark.parametrize("compress", ["always", "never"])
def test_small_files_need_no_rsync(
    pair: Pair, run: Callable[[], Asked], monkeypatch: pytest.MonkeyPatch, direction: str, compress: str
) -> None:
    def start(*_arguments: object, **_options: object) -> None:
        raise AssertionError("rsync was started")

    monkeypatch.setattr(rsync, "Running", start)
    source, target = (pair.path, pair.partner_path) if direction == "to_partner" else (pair.partner_path, pair.path)
    source.mkdir(exist_ok=True)
    fill(source)
    (source / "dense").write_bytes(os.urandom(100_000))
    (source / "thin").write_bytes(b"x" * 100_000)
    pair.declare(settings={"direction": direction, "exclude": [], "delete": "never", "compress": compress})
    assert run()[0]["state"] == "equal"
    assert tree(source) == tree(target)
