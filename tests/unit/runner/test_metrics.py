# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import openmetrics, parser
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from serversync.metrics import HELP, STATES, escape, render, samples

ELEMENT = {
    "created": 3,
    "updated": 2,
    "deleted": 1,
    "bytes": 12345678901,
    "conflicts": 4,
    "standing": {"unresolved": 5},
}
LAST = {
    "started": "2026-11-26T02:30:00.000+00:00",
    "ended": "2026-11-26T02:31:01.500+00:00",
    "attempts": [{}, {}],
    "elements": [ELEMENT, ELEMENT],
}
ROW = {
    "job": "line1",
    "partner": "hq",
    "enabled": True,
    "state": "different",
    "good": "2026-11-25T02:30:10.000+00:00",
    "late_at": "2026-11-27T02:30:10.000+00:00",
    "unresolved": 10,
    "next": 1795746600,
    "last": LAST,
}
NEVER = {
    **ROW,
    "job": "line2",
    "partner": None,
    "state": None,
    "good": None,
    "late_at": None,
    "next": None,
    "last": None,
}


def parsed(text: str, families: Any) -> dict[tuple[str, str, str], float]:
    """Metric, job, state -> value, as a parser of the format reads them."""
    return {
        (one.name, one.labels["sync_job"], one.labels.get("state", "")): one.value
        for family in families(text)
        for one in family.samples
    }


@pytest.mark.parametrize("families", [text_string_to_metric_families, parser.text_string_to_metric_families])
def test_both_formats_say_the_same(families: Any) -> None:
    found = parsed(render(samples([ROW, NEVER])), families)
    assert found["serversync_last_run_timestamp_seconds", "line1", ""] == 1795660200
    assert found["serversync_last_run_duration_seconds", "line1", ""] == 61.5
    assert found["serversync_last_good_run_timestamp_seconds", "line1", ""] == 1795573810
    assert found["serversync_late_timestamp_seconds", "line1", ""] == 1795746610
    assert ("serversync_late_timestamp_seconds", "line2", "") not in found
    assert found["serversync_last_run_files_copied", "line1", ""] == 10
    assert found["serversync_last_run_bytes", "line1", ""] == 24691357802
    assert found["serversync_unresolved_paths", "line1", ""] == 10
    assert found["serversync_next_run_timestamp_seconds", "line1", ""] == 1795746600
    assert ("serversync_last_run_timestamp_seconds", "line2", "") not in found
    states = {
        job: [state for state in STATES if found["serversync_job_state", job, state]] for job in ("line1", "line2")
    }
    assert states == {"line1": ["different"], "line2": ["none"]}
    assert {name for name, _job, _state in found} == set(HELP)


def test_jobs_alone_bound_the_number_of_series() -> None:
    many = {**LAST, "elements": [{**ELEMENT, "path": f"/srv/{number}"} for number in range(1000)], "attempts": [{}] * 9}
    found = [*samples([{**ROW, "last": many}])]
    assert len(found) == len({*HELP}) - 1 + len(STATES)
    assert {name for one in found for name in one.labels} == {"sync_job", "state", "partner", "version"}


def test_a_run_that_is_on_has_no_duration() -> None:
    text = render(samples([{**ROW, "last": {**LAST, "ended": None}}]))
    assert "serversync_last_run_timestamp_seconds" in text and "duration" not in text


@given(st.text())
def test_no_text_breaks_out_of_its_label(text: str) -> None:
    [family] = text_string_to_metric_families(f'# TYPE a gauge\na{{b="{escape(text)}"}} 1\n# EOF\n')
    assert len(family.samples) == 1 and family.samples[0].value == 1


def test_the_parser_is_one_that_refuses() -> None:
    with pytest.raises(ValueError, match=r"."):
        list(openmetrics.parser.text_string_to_metric_families('a{b="1"} 1\n'))
