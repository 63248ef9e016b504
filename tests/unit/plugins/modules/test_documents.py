# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module writes and what the runner reads are the same job."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _job, _schedule, _store, _units
from hypothesis import given
from hypothesis import strategies as st
from serversync import job, machine, schedule
from serversync.failure import InvalidDocument

ELEMENTS = [{"path": "/srv/a"}, {"path": "/srv/b", "partner_path": "/srv/c", "previous_path": "/srv/d"}]


def declared(**more):
    made, problems = _job.declare(dict({"name": "demo", "partner": {"host": "hq"}, "elements": ELEMENTS}, **more))
    assert problems == []
    return made


def loaded(tmp_path, document):
    path = tmp_path / "demo.json"
    path.write_text(_job.document_text(document), encoding="utf-8")
    return job.load_file(path)


def without_later(field, value):
    """A document as the version before has written it."""
    if isinstance(value, dict):
        parts = {part.name: part for part in field.parts}
        kept = {name: one for name, one in value.items() if name not in parts or not parts[name].later}
        return {name: without_later(parts[name], one) if name in parts else one for name, one in kept.items()}
    return [without_later(field.element, one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("more", [{}, {"schedule": {"every": "1h"}}, {"settings": {"exclude": ["a"]}}])
def test_both_sides_read_a_document_of_the_version_before_as_the_same_job(tmp_path, more):
    old = without_later(_job.JOB, declared(**more))
    assert set(old["settings"]) == {"direction", "exclude", "delete"}
    assert set(old["elements"][1]) == {"path", "partner_path"}
    document = loaded(tmp_path, old).document
    # also in the order of their keys
    assert json.dumps(document) == json.dumps(_job.normalise(old)[0])


def test_what_is_said_is_not_replaced_by_a_default(tmp_path):
    made = declared(
        settings={"max_delete": "100%", "preserve": [], "keep_versions": 0, "delete": "synced"}, limits={"parallel": 8}
    )
    assert loaded(tmp_path, made).document == made


@given(
    st.integers(0, 100),
    st.sampled_from(["0s", "1s", "5m", "90m", "1d"]),
    st.floats(1, 10),
    st.sampled_from([None, "1d"]),
)
def test_both_sides_know_how_long_a_run_waits_for_its_next_attempt(retries, delay, backoff, longest):
    on_error = {"retries": retries, "delay": delay, "backoff": backoff, "max_delay": longest}
    waits = [job.pause_after(on_error, number) for number in range(1, retries + 1)]
    assert waits == _units.pauses(on_error)
    assert waits == sorted(waits)
    assert all(job.seconds(job.span(wait)) == wait <= 86400 for wait in waits)


def test_waits_grow_up_to_the_longest():
    def waits(**given):
        on_error = declared(on_error=dict(retries=6, **given))["on_error"]
        return [job.span(wait) for wait in _units.pauses(on_error)]

    assert waits() == ["5m", "10m", "20m", "40m", "1h", "1h"]
    assert waits(backoff=1) == ["5m"] * 6
    assert waits(backoff=1.5, max_delay="10m") == ["5m", "450s", "10m", "10m", "10m", "10m"]
    assert waits(delay="2h") == ["2h"] * 6


TIMES = st.lists(st.from_regex(_schedule.TIME_PATTERN, fullmatch=True), min_size=1, max_size=4)


@given(
    st.one_of(
        st.none(),
        st.builds(lambda every: {"every": every}, st.sampled_from(["1m", "90s", "45m", "1h", "8h", "1d"])),
        st.builds(lambda calendar: {"calendar": calendar}, st.just("Mon..Fri *-*-* 02:30")),
        st.builds(lambda at, days: {"at": at, "days": days}, TIMES, st.lists(st.sampled_from(_schedule.DAYS))),
        st.builds(lambda at, days: {"at": at, "day_of_month": days}, TIMES, st.lists(st.integers(1, 31))),
    )
)
def test_the_runner_knows_how_much_time_a_schedule_lets_pass(times):
    made = declared(schedule=times)
    names = ("every", "at", "days", "day_of_month")
    gap = _schedule.longest_gap(*map(made["schedule"].get, names)) if times else 0
    after = schedule.late_after(job.Job(made, ""))
    assert after == (_schedule.seconds_of(_schedule.default_late_after(gap)) if gap else None)
    # just as much is the least that may be given
    if gap:
        least = declared(schedule=times, notification={"late_after": _schedule.duration_of(gap)})
        assert schedule.late_after(job.Job(least, "")) == gap


def test_when_a_job_was_declared_is_when_its_document_was_written(tmp_path):
    document = declared(schedule={"at": "02:30"}, enabled=False)
    loaded(tmp_path, document)
    os.utime(tmp_path / "demo.json", (0, 1795746600.5))
    terms = {"enabled": False, "late_after": 2 * 86400, "declared": "2026-11-27T02:30:00.500+00:00"}
    assert schedule.terms(job.load_file(tmp_path / "demo.json")) == terms


def test_defaults_are_not_shared_between_jobs(tmp_path):
    old = without_later(_job.JOB, declared())
    loaded(tmp_path, old).document["settings"]["include"].append("a")
    assert loaded(tmp_path, old).document["settings"]["include"] == []


def test_the_elements_of_a_loaded_job(tmp_path):
    previous = [element.previous_path for element in loaded(tmp_path, declared()).elements]
    assert previous == [None, "/srv/d"]


@pytest.mark.parametrize("previous", [["/srv/b", None], ["/srv/a", None], ["/x", "/x"]])
def test_neither_side_takes_two_elements_for_one_archive(tmp_path, previous):
    made = declared()
    for element, path in zip(made["elements"], previous):
        element["previous_path"] = path
    assert _job.normalise(made)[1]
    with pytest.raises(InvalidDocument, match=r"previous_path: .* is the same path as elements"):
        loaded(tmp_path, made)


@pytest.mark.parametrize(
    ("requires", "message"),
    [
        ([[], ["/srv/x"]], r"elements\[1\].requires: '/srv/x' is not the path of an element"),
        ([["/srv/a"], []], r"elements\[0\].requires: closes a circle of /srv/a"),
        ([["/srv/b"], ["/srv/a"]], r"elements\[0\].requires: closes a circle of /srv/a, /srv/b"),
    ],
)
def test_neither_side_takes_an_element_that_would_wait_for_ever(tmp_path, requires, message):
    made = declared()
    for element, paths in zip(made["elements"], requires):
        element["requires"] = paths
    assert _job.normalise(made)[1]
    with pytest.raises(InvalidDocument, match=message):
        loaded(tmp_path, made)


ID = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("text", "machine_id"),
    [
        (ID + "\n", ID),
        (ID, ID),
        (ID.upper(), ID.upper()),
        *((one, None) for one in ("", "\n", "uninitialized\n", ID[1:], ID + "0", "é" * 16, "%s\n%s" % (ID, ID), None)),
    ],
)
def test_both_sides_read_the_same_machine_id(tmp_path, monkeypatch, text, machine_id):
    path = tmp_path / "machine-id"
    monkeypatch.setattr(_store, "MACHINE_ID", str(path))
    monkeypatch.setattr(machine, "MACHINE_ID", path)
    if text is None:
        path.mkdir()
    else:
        path.write_text(text)
    assert (_store.read_machine_id(), machine.machine_id()) == (machine_id, machine_id)
    path.rename(tmp_path / "gone")
    assert (_store.read_machine_id(), machine.machine_id()) == (None, None)


@pytest.mark.parametrize(("bound", "here"), [(None, ID), (ID, ID), (ID, "f" * 32), (ID, None)])
def test_both_sides_know_the_documents_of_another_server(tmp_path, monkeypatch, bound, here):
    monkeypatch.setattr(job, "machine_id", lambda: here)
    document = _job.bound(declared(), bound)
    assert bool(job.foreign(loaded(tmp_path, document))) is _job.foreign(document, here)


@pytest.mark.parametrize(
    ("text", "total", "number"),
    [
        ("25%", 1000, 250),
        ("25%", 3, 0),
        ("100%", 7, 7),
        ("1%", 10**15, 10**13),
        ("0", 50, 0),
        ("40", 0, 40),
        ("50G", 0, 50 * 2**30),
        ("1M", 7, 2**20),
    ],
)
def test_shares_counts_and_sizes_as_numbers(text, total, number):
    assert job.amount(text, total) == number


@pytest.mark.parametrize(("text", "number"), [("1K", 1024), ("20M", 20 * 2**20), ("3G", 3 * 2**30), ("1T", 2**40)])
def test_sizes_as_numbers(text, number):
    assert job.size(text) == number
    settings = declared(settings={"bandwidth_limit": "%dK" % (number // 1024)})["settings"]
    assert settings["bandwidth_limit"] == text
