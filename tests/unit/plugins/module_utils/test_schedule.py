# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Durations, times, and the calendar expressions of systemd."""

from __future__ import annotations

import datetime
import re

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _schedule
from hypothesis import given, settings
from hypothesis import strategies as st

PERIODS = [period for period in range(60, 86401) if 3600 % period == 0 or 86400 % period == 0]


@pytest.mark.parametrize(
    ("text", "seconds", "canonical"),
    [
        ("0s", 0, "0s"),
        ("0", 0, "0s"),
        ("0D", 0, "0s"),
        ("90s", 90, "90s"),
        ("60s", 60, "1m"),
        (" 60 M ", 3600, "1h"),
        ("24h", 86400, "1d"),
        ("36h", 129600, "36h"),
        ("7d", 604800, "7d"),
    ],
)
def test_durations(text, seconds, canonical):
    assert _schedule.seconds_of(text) == seconds
    assert _schedule.duration_of(seconds) == canonical
    assert re.search(_schedule.DURATION_PATTERN, canonical)


@pytest.mark.parametrize("text", ["", "s", "5", "-5m", "1.5h", "5 minutes", "1h30m", "soon", "5m\n5m", "99999999999s"])
def test_no_durations(text):
    with pytest.raises(ValueError, match="^%s$" % re.escape(text)):
        _schedule.seconds_of(text)


@pytest.mark.parametrize(
    ("text", "time"), [("0:00", "00:00"), ("02:30:00", "02:30"), ("2:30:01", "02:30:01"), (" 23:59 ", "23:59")]
)
def test_times(text, time):
    assert _schedule.time_of(text) == time
    assert re.search(_schedule.TIME_PATTERN, time)


@pytest.mark.parametrize("text", ["24:00", "12:60", "12:00:60", "1230", "12", "-1:00", "12:3", "12:30pm", ""])
def test_no_times(text):
    with pytest.raises(ValueError, match="^%s$" % re.escape(text)):
        _schedule.time_of(text)


def seconds_of_day(expression: str) -> set[int]:
    """An oracle of its own: the seconds of a day at which '*-*-* H:M:S' with '*' and 'a/b' elapses."""
    match = re.fullmatch(r"\*-\*-\* ([^:]+):([^:]+):([^:]+)", expression)
    assert match, expression
    fields = []
    for text, size in zip(match.groups(), (24, 60, 60)):
        if text == "*":
            fields.append(range(size))
        else:
            start, _slash, step = text.partition("/")
            fields.append(range(int(start), size, int(step)) if step else [int(start)])
    return {hour * 3600 + minute * 60 + second for hour in fields[0] for minute in fields[1] for second in fields[2]}


def test_which_periods_divide():
    assert [period for period in range(60, 86401) if _schedule.divides(period)] == PERIODS


@pytest.mark.parametrize("period", PERIODS)
def test_every_period_comes_in_equal_steps_over_the_whole_day(period):
    lines = _schedule.on_calendar(every=_schedule.duration_of(period))
    times = [seconds_of_day(line) for line in lines]
    assert set().union(*times) == set(range(0, 86400, period))
    assert sum(len(one) for one in times) == 86400 // period


@pytest.mark.parametrize(
    ("schedule", "lines"),
    [
        ({"every": "15m"}, ["*-*-* *:00/15:00"]),
        ({"every": "1h"}, ["*-*-* *:00:00"]),
        ({"every": "2h"}, ["*-*-* 00/2:00:00"]),
        ({"every": "1d"}, ["*-*-* 00:00:00"]),
        ({"every": "90s"}, ["*-*-* *:00/3:00", "*-*-* *:01/3:30"]),
        ({"every": "90m", "timezone": "UTC"}, ["*-*-* 00/3:00:00 UTC", "*-*-* 01/3:30:00 UTC"]),
        ({"at": ["02:30"]}, ["*-*-* 02:30:00"]),
        ({"at": ["02:30"], "day_of_month": [1, 15]}, ["*-*-01,15 02:30:00"]),
        ({"at": ["02:30"], "day_of_month": [31], "timezone": "UTC"}, ["*-*-31 02:30:00 UTC"]),
        ({"at": ["02:30", "14:00:10"], "days": ["mon", "tue"]}, ["Mon,Tue *-*-* 02:30:00", "Mon,Tue *-*-* 14:00:10"]),
        (
            {"at": ["02:30"], "days": ["mon", "tue", "wed", "fri", "sun"], "timezone": "Europe/Berlin"},
            ["Mon..Wed,Fri,Sun *-*-* 02:30:00 Europe/Berlin"],
        ),
        ({"calendar": "Sat *-*-1..7 02:30", "timezone": "UTC"}, ["Sat *-*-1..7 02:30 UTC"]),
    ],
)
def test_calendar_expressions(schedule, lines):
    assert _schedule.on_calendar(**schedule) == lines


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("daily", ("daily", None)),
        ("Mon..Fri  02:30", ("Mon..Fri 02:30", None)),
        ("Mon 02:30 UTC", ("Mon 02:30", "UTC")),
        ("daily Europe/Berlin", ("daily", "Europe/Berlin")),
        ("daily Etc/UTC", ("daily", "UTC")),
        ("*:0/15", ("*:0/15", None)),
    ],
)
def test_the_time_zone_at_the_end_of_an_expression(text, parts):
    assert _schedule.split_zone(text) == parts


@pytest.mark.parametrize(
    "text", ["UTC", "utc", " Etc/UTC ", "etc/uct", "Zulu", "Universal", "GMT", "GMT0", "Etc/GMT+0", "Greenwich"]
)
def test_the_names_of_utc(text):
    assert _schedule.zone_of(text) == "UTC"


@pytest.mark.parametrize("text", ["Etc/GMT+1", "Etc", "GMT+00", "Europe/London", "WET", "Etc/Etc/UTC"])
def test_no_names_of_utc(text):
    assert _schedule.zone_of(text) == text


@pytest.mark.parametrize(
    ("every", "at", "jitter"),
    [("1m", None, "6s"), ("15m", None, "90s"), ("1d", None, "15m"), (None, ["02:30"], "15m"), (None, None, "0s")],
)
def test_the_default_jitter(every, at, jitter):
    assert _schedule.default_jitter(every, at) == jitter


WEEK = st.lists(st.sampled_from(_schedule.DAYS), min_size=1, max_size=6, unique=True)
MONTH = st.lists(st.integers(1, 31), min_size=1, max_size=6, unique=True)


def is_day(date, days, day_of_month):
    return (not days or _schedule.DAYS[date.weekday()] in days) and (not day_of_month or date.day in day_of_month)


@given(
    st.lists(st.integers(0, 86399), min_size=1, max_size=3, unique=True),
    st.one_of(st.tuples(WEEK, st.just([])), st.tuples(st.just([]), MONTH), st.just(([], []))),
)
def test_the_longest_gap_is_that_of_the_runs_of_eight_years(seconds, dates):
    """An oracle that lists them all; a year of 366 days is among them."""
    at = sorted(_schedule.time_of("%d:%02d:%02d" % (one // 3600, one // 60 % 60, one % 60)) for one in seconds)
    days = [day for day in _schedule.DAYS if day in dates[0]]
    first = datetime.date(2025, 1, 1)
    calendar = [first + datetime.timedelta(number) for number in range(8 * 365)]
    runs = [day.toordinal() * 86400 + second for day in calendar if is_day(day, *dates) for second in sorted(seconds)]
    gap = max(later - earlier for earlier, later in zip(runs, runs[1:]))
    assert _schedule.longest_gap(None, at, days, sorted(dates[1])) == gap


@pytest.mark.parametrize(("every", "gap"), [("1m", 60), ("90m", 5400), ("1d", 86400), (None, 0)])
def test_the_gap_of_other_schedules(every, gap):
    assert _schedule.longest_gap(every, None, [], []) == gap


@pytest.mark.parametrize(
    ("gap", "late_after"), [(60, "2h"), (3600, "2h"), (5400, "3h"), (44990, "89980s"), (86400, "2d"), (5270400, "122d")]
)
def test_a_job_is_late_when_two_runs_in_a_row_were_none(gap, late_after):
    assert _schedule.default_late_after(gap) == late_after


@settings(max_examples=50)
@given(st.integers(60, 86400))
def test_the_nearest_period_divides_and_none_is_nearer(period):
    nearest = _schedule.nearest_period(period)
    assert _schedule.divides(nearest)
    same_kind = [one for one in PERIODS if one % 60 == 0 or period % 60]
    assert abs(nearest - period) == min(abs(one - period) for one in same_kind)
