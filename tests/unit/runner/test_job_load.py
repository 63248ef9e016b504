# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from pathlib import Path

import pytest
from serversync import job, machine
from serversync.failure import InvalidDocument
from serversync.layout import Layout

DOCUMENT = {
    "version": 1,
    "name": "nightly",
    "comment": "",
    "enabled": True,
    "scope": "user",
    "partner": {"host": "hq", "port": None, "connection": "local", "host_key": []},
    "account": None,
    "schedule": None,
    "on_error": {"retries": 0, "delay": "1s"},
    "notification": {"email": [], "events": ["failure"]},
    "settings": {"direction": "to_partner", "exclude": [], "delete": "never"},
    "elements": [{"path": "/a", "partner_path": "/b"}],
}


def test_what_holds_for_an_element_is_its_own_over_the_jobs() -> None:
    settings = {"direction": "to_partner", "exclude": ["x"], "delete": "never", "verify": "metadata", "verify_every": 5}
    own = [None, {"direction": "both", "exclude": []}, {"verify": "checksum"}]
    elements = [{"path": f"/{number}", "partner_path": "/b", "settings": one} for number, one in enumerate(own)]
    found = job.Job({**DOCUMENT, "settings": settings, "elements": elements}, "").elements
    assert [one.settings for one in found] == [
        settings,
        {**settings, "direction": "both", "exclude": []},
        {**settings, "verify": "checksum", "verify_every": None},
    ]
    assert [one.setting_field("exclude") for one in found[:2]] == ["settings.exclude", "elements[1].settings.exclude"]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout("user", tmp_path / "config", tmp_path / "state", tmp_path / "state")
    found.jobs.mkdir(parents=True)
    (found.jobs / "nightly.json").write_text(json.dumps(DOCUMENT))
    return found


def test_a_valid_document_is_validated_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    first = job.load(layout, "nightly", remember=True)
    monkeypatch.setattr(job, "first_problem", lambda _document: pytest.fail("validated again"))
    assert job.load(layout, "nightly").document == first.document


def test_who_only_looks_leaves_nothing(layout: Layout) -> None:
    job.load(layout, "nightly")
    assert not layout.state.exists()


def test_without_room_to_remember_it_is_validated_again(layout: Layout) -> None:
    layout.state.mkdir()
    (layout.state / "validated").touch()
    first = job.load(layout, "nightly", remember=True)
    assert job.load(layout, "nightly", remember=True).document == first.document


@pytest.mark.parametrize("change", [{"surprise": 1}, {"comment": 5}])
def test_a_document_that_changed_is_validated_again(layout: Layout, change: dict[str, object]) -> None:
    job.load(layout, "nightly", remember=True)
    (layout.jobs / "nightly.json").write_text(json.dumps({**DOCUMENT, **change}))
    with pytest.raises(InvalidDocument):
        job.load(layout, "nightly", remember=True)


def test_another_schema_validates_again(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    job.load(layout, "nightly", remember=True)
    monkeypatch.setattr(job, "schema_text", lambda: b"{}")
    monkeypatch.setattr(job, "first_problem", lambda _document: "is checked")
    with pytest.raises(InvalidDocument, match="is checked"):
        job.load(layout, "nightly")


ID, OTHER = "0123456789abcdef" * 2, "f" * 32


@pytest.mark.parametrize(
    ("bound", "here", "said"),
    [
        (None, ID, None),
        (None, "", None),
        (ID, f"{ID}\n", None),
        (ID, OTHER, "another server than this one; declare it here, too, or remove it with state: absent"),
        (ID, "", "another server than this one, which has no machine id; declare it here, too, or remove it with"),
        (ID, "uninitialized\n", "this one, which has no machine id; "),
    ],
)
@pytest.mark.parametrize("remember", [False, True])
def test_a_document_of_another_server_is_refused(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, bound: str | None, here: str, said: str | None, remember: bool
) -> None:
    monkeypatch.setattr(machine, "MACHINE_ID", layout.config / "machine-id")
    machine.MACHINE_ID.write_text(here)
    path = layout.jobs / "nightly.json"
    path.write_text(json.dumps({**DOCUMENT, **({"machine_id": bound} if bound else {})}))
    for _again in range(2):
        if said is None:
            assert job.load(layout, "nightly", remember=remember).name == "nightly"
            continue
        with pytest.raises(InvalidDocument) as refused:
            job.load(layout, "nightly", remember=remember)
        assert (refused.value.code, refused.value.transient) == ("foreign_document", False)
        assert refused.value.message.startswith(f"{path}: machine_id: the job was declared on another server than ")
        assert said in refused.value.message


def test_what_is_nested_deeper_than_python_reads_is_no_document(layout: Layout) -> None:
    path = layout.jobs / "nightly.json"
    path.write_text("[" * 200_000)
    with pytest.raises(InvalidDocument, match="is not JSON"):
        job.load(layout, "nightly")
    with pytest.raises(InvalidDocument, match="is not JSON"):
        job.load_files(path)
