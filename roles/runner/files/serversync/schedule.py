# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much time a job's schedule lets pass, as the modules that declare jobs know it, too. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from serversync.job import UNITS, Job, seconds

HOUR, DAY = UNITS["h"], UNITS["d"]
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
MONTHS_OF_LEAP_YEAR = (31, 29, *MONTHS[2:])


def longest_days(schedule: Mapping[str, Any]) -> int:
    """The most days from one day of a schedule with times of day to the next."""
    dates = [0, 1]
    if schedule["day_of_month"]:
        dates, first = [], 0
        # Around a February of either length; a month that lacks a day is passed over.
        for length in (*MONTHS, *MONTHS_OF_LEAP_YEAR, *MONTHS):
            dates += [first + day for day in schedule["day_of_month"] if day <= length]
            first += length
    elif schedule["days"]:
        numbers = [DAYS.index(day) for day in schedule["days"]]
        dates = [*numbers, numbers[0] + len(DAYS)]
    return max(later - earlier for earlier, later in zip(dates, dates[1:]))


def longest_gap(schedule: Mapping[str, Any] | None) -> int:
    """The most seconds from one run to the next; 0 where there is no schedule, or only systemd knows."""
    if not schedule:
        return 0
    if schedule["every"]:
        return seconds(schedule["every"])
    if not schedule["at"]:
        return 0
    times = [sum(int(part) * unit for part, unit in zip(time.split(":"), (HOUR, 60, 1))) for time in schedule["at"]]
    over_night = longest_days(schedule) * DAY + times[0] - times[-1]
    return max([over_night, *(later - earlier for earlier, later in zip(times, times[1:]))])


def late_after(job: Job) -> int | None:
    """The seconds without a good run after which the job is late; None: nothing makes it late."""
    given = job["notification"]["late_after"]
    if given:
        return seconds(given)
    gap = longest_gap(job["schedule"])
    # One run may fail. When clocks are set back, systemd lets an hour pass without any.
    return max(2 * gap, 2 * HOUR) if gap else None


def terms(job: Job) -> dict[str, Any]:
    """What says when the job is late, beside how its runs went; see ``late.lateness``."""
    declared = datetime.fromtimestamp(job.written, timezone.utc).isoformat(timespec="milliseconds")
    return {"enabled": job["enabled"], "late_after": late_after(job), "declared": declared}
