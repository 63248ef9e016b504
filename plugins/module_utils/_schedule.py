# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""The friendly schedule: durations, times and days, and how systemd's calendar says them.

Everything here is pure: text in, text out.
"""

from __future__ import annotations

import math
import re

MINUTE = 60
HOUR = 3600
DAY = 86400

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LONG_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MONTHS_OF_LEAP_YEAR = (31, 29, *_MONTHS[2:])

DURATION_PATTERN = r"^(?:0s|[1-9][0-9]{0,9}[smhd])$(?!\n)"
TIME_PATTERN = r"^(?:[01][0-9]|2[0-3]):[0-5][0-9](?::(?:0[1-9]|[1-5][0-9]))?$(?!\n)"
TIMEZONE_PATTERN = r"^[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+)*$(?!\n)"
CALENDAR_PATTERN = r"^[A-Za-z0-9*](?:[A-Za-z0-9*,.:/~+_ -]*[A-Za-z0-9*])?$(?!\n)"

#: What tzdata calls UTC too, and GMT, which no clock can tell from it; each also below Etc/. Of the other names that
#: stand for one zone a server may know only some, which differ from one to another, so these are left as they are.
_UTC = ("utc", "uct", "universal", "zulu", "gmt", "gmt0", "gmt+0", "gmt-0", "greenwich")

_UNITS = (("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", 1))
_DURATION = re.compile(r"([0-9]{1,10})\s*([smhd])", re.IGNORECASE | re.ASCII)
_TIME = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?")


def seconds_of(duration: str) -> int:
    """Seconds of '90s', '15m', '2h' or '7d'; ValueError for any other text."""
    text = duration.strip()
    if text == "0":
        return 0
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(duration)
    return int(match.group(1)) * dict(_UNITS)[match.group(2).lower()]


def duration_of(seconds: int) -> str:
    """The one spelling of a duration: in the largest unit that divides it."""
    for unit, size in _UNITS:
        if seconds and seconds % size == 0:
            return "%d%s" % (seconds // size, unit)
    return "0s"


def time_of(text: str) -> str:
    """'2:30' and '02:30:00' as '02:30'; ValueError for what is no time of day."""
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise ValueError(text)
    hour, minute, second = (int(part or 0) for part in match.groups())
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError(text)
    return "%02d:%02d:%02d" % (hour, minute, second) if second else "%02d:%02d" % (hour, minute)


def day_of(text: str) -> str:
    """'Mon' and 'monday' as 'mon'; ValueError for what is no day."""
    day = text.strip().lower()
    if day in LONG_DAYS:
        return DAYS[LONG_DAYS.index(day)]
    if day not in DAYS:
        raise ValueError(text)
    return day


def zone_of(text: str) -> str:
    """A time zone; UTC by the one name that systemd knows without tzdata."""
    zone = text.strip()
    name = zone.lower()
    return "UTC" if (name[4:] if name.startswith("etc/") else name) in _UTC else zone


def divides(period: int) -> bool:
    """Whether runs with this period fall on the same times every hour or every day."""
    return DAY % period == 0  # as every divisor of an hour does


def nearest_period(period: int) -> int:
    """The period nearest to this one that divides an hour or a day, in whole minutes where this one is."""
    step = MINUTE if period % MINUTE == 0 else 1
    candidates = [one for one in range(MINUTE, DAY + 1, step) if divides(one)]
    return min(candidates, key=lambda one: (abs(one - period), HOUR % one != 0, one))


def split_zone(calendar: str) -> tuple[str, str | None]:
    """A calendar expression without the time zone that may end it, and that time zone."""
    words = calendar.split()
    if len(words) > 1 and words[-1][0].isalpha():
        return " ".join(words[:-1]), zone_of(words[-1])
    return " ".join(words), None


def period_of(every: str | None, at: list[str] | None) -> int:
    """Seconds after which the schedule repeats; 0 where only systemd knows."""
    if every is not None:
        return seconds_of(every)
    return DAY if at else 0


def default_jitter(every: str | None, at: list[str] | None) -> str:
    """A tenth of the period, at most a quarter of an hour."""
    return duration_of(min(period_of(every, at) // 10, 15 * MINUTE))


def _longest_days(days: list[str], day_of_month: list[int]) -> int:
    """The most days from one day of a schedule to the next."""
    dates = list(range(2))
    if day_of_month:
        dates, first = [], 0
        # around a February of either length; a month that lacks a day is passed over
        for length in (*_MONTHS, *_MONTHS_OF_LEAP_YEAR, *_MONTHS):
            dates += [first + day for day in day_of_month if day <= length]
            first += length
    elif days:
        numbers = [DAYS.index(day) for day in days]
        dates = [*numbers, numbers[0] + len(DAYS)]
    return max(later - earlier for earlier, later in zip(dates, dates[1:]))


def longest_gap(every: str | None, at: list[str] | None, days: list[str], day_of_month: list[int]) -> int:
    """The most seconds from one run of a schedule to the next, by a clock that is never set; 0 where only systemd
    knows."""
    if every is not None or not at:
        return period_of(every, at)
    times = [sum(int(part) * unit for part, unit in zip(time.split(":"), (HOUR, MINUTE, 1))) for time in at]
    over_night = _longest_days(days, day_of_month) * DAY + times[0] - times[-1]
    return max([over_night, *(later - earlier for earlier, later in zip(times, times[1:]))])


def default_late_after(gap: int) -> str:
    """One run may fail before its job is late. When clocks are set back, systemd lets an hour pass without any."""
    return duration_of(max(2 * gap, 2 * HOUR))


def _lcm(one: int, other: int) -> int:
    return one * other // math.gcd(one, other)


def _every(period: int) -> list[str]:
    """Calendar expressions for a period. A calendar, unlike OnUnitActiveSec=, lets systemd catch up."""
    if HOUR % period == 0:
        step = _lcm(period, MINUTE)
        repeat = "" if step == HOUR else "/%d" % (step // MINUTE)
        starts = (divmod(start, MINUTE) for start in range(0, step, period))
        return ["*-*-* *:%02d%s:%02d" % (minute, repeat, second) for minute, second in starts]
    step = _lcm(period, HOUR)
    repeat = "" if step == DAY else "/%d" % (step // HOUR)
    lines = []
    for start in range(0, step, period):
        hour, rest = divmod(start, HOUR)
        lines.append("*-*-* %02d%s:%02d:%02d" % (hour, repeat, rest // MINUTE, rest % MINUTE))
    return lines


def _weekdays(days: list[str]) -> str:
    """'Mon..Wed,Sat ': runs of three and more days as a range, the rest as a list."""
    numbers = [DAYS.index(day) for day in days]
    parts: list[str] = []
    while numbers:
        length = 1
        while length < len(numbers) and numbers[length] == numbers[0] + length:
            length += 1
        names = [DAYS[number].capitalize() for number in numbers[:length]]
        parts += ["%s..%s" % (names[0], names[-1])] if length > 2 else names
        numbers = numbers[length:]
    return ",".join(parts) + " " if parts else ""


def on_calendar(
    every: str | None = None,
    at: list[str] | None = None,
    days: list[str] | None = None,
    calendar: str | None = None,
    timezone: str | None = None,
    day_of_month: list[int] | None = None,
) -> list[str]:
    """The OnCalendar= values of a schedule in normal form."""
    if every is not None:
        lines = _every(seconds_of(every))
    elif at:
        dates = "%s*-*-%s" % (_weekdays(days or []), ",".join("%02d" % day for day in day_of_month or ()) or "*")
        lines = ["%s %s" % (dates, time if time.count(":") == 2 else time + ":00") for time in at]
    else:
        lines = [calendar or ""]
    return ["%s %s" % (line, timezone) if timezone else line for line in lines]
