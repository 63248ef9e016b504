# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much time a job's schedule lets pass, as the modules that declare jobs know it, too. Pure."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from serversync._schedule import default_late_after, longest_gap
from serversync.job import Job, seconds

# What of a schedule says when it is due.
TERMS = ("every", "at", "days", "day_of_month")
# Of what may be given, in seconds; a document that was written by hand may have anything.
LONGEST = 3650 * 86400


def late_after(job: Job) -> int | None:
    """The seconds without a good run after which the job is late; None: nothing makes it late."""
    given = job["notification"]["late_after"]
    if given:
        return min(seconds(given), LONGEST)
    schedule = job["schedule"]
    gap = longest_gap(**{name: schedule[name] for name in TERMS}) if schedule else 0
    return seconds(default_late_after(gap)) if gap else None


def terms(job: Job) -> dict[str, Any]:
    """What says when the job is late, beside how its runs went; see ``late.lateness``."""
    declared = datetime.fromtimestamp(job.written, timezone.utc).isoformat(timespec="milliseconds")
    return {"enabled": job["enabled"], "late_after": late_after(job), "declared": declared}
