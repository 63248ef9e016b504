# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The jobs of this server as metrics: text that is both OpenMetrics and what node_exporter's textfile collector reads.

All are gauges that tell of the last run, so a collector that looks once in five minutes misses no failure that still
stands. There is one series per job and metric, and one more per state: the number of jobs bounds them all. A job's name
is the label ``sync_job``: Prometheus has a ``job`` of its own, and takes that away from whatever it collects.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from serversync import __version__, display
from serversync._states import SEVERITY
from serversync.failure import Failure
from serversync.history import replace
from serversync.layout import Layout
from serversync.status import row

# Every state a job may have; "none": it never ran.
STATES = (*SEVERITY, "running", "waiting", "invalid", "none")


class Sample(NamedTuple):
    metric: str
    labels: dict[str, str]
    value: float


# Metric -> what it says.
HELP = {
    "serversync_job_info": "The partner of the job, and the version of this server's runner; always 1.",
    "serversync_job_enabled": "Whether the job's schedule is on.",
    "serversync_job_state": "1 for the state that the job is in, 0 for all others.",
    "serversync_last_run_timestamp_seconds": "When the last run began.",
    "serversync_last_good_run_timestamp_seconds": "When the last run ended after which the replicas were as declared.",
    "serversync_late_timestamp_seconds": "From when on the job is late, unless a good run ends before.",
    "serversync_last_run_duration_seconds": "How long the last run took, with its attempts and the waits between them.",
    "serversync_last_run_attempts": "Attempts of the last run.",
    "serversync_last_run_files_copied": "New and updated files of the last run.",
    "serversync_last_run_files_deleted": "What the last run deleted; it is among the versions.",
    "serversync_last_run_bytes": "Bytes of file contents that crossed in the last run.",
    "serversync_last_run_conflicts": "Conflicts that rules decided in the last run.",
    "serversync_unresolved_paths": "Paths that wait for a person's decision.",
    "serversync_next_run_timestamp_seconds": "When the timer elapses next.",
}


def samples(rows: Iterable[dict[str, Any]]) -> Iterator[Sample]:
    """rows: as ``status.status`` has them."""
    for job in rows:
        name = job["job"]

        def one(metric: str, value: float, name: str = name, **more: str) -> Sample:
            return Sample(f"serversync_{metric}", {"sync_job": name, **more}, value)

        yield one("job_info", 1, partner=job["partner"] or "", version=__version__)
        if job["enabled"] is not None:
            yield one("job_enabled", int(job["enabled"]))
        state = job["state"] or "none"
        yield from (one("job_state", int(state == each), state=each) for each in STATES)
        if job["good"]:
            yield one("last_good_run_timestamp_seconds", moment(job["good"]))
        if job["late_at"]:
            yield one("late_timestamp_seconds", moment(job["late_at"]))
        if job["next"]:
            yield one("next_run_timestamp_seconds", job["next"])
        last = job["last"]
        if last is None:
            continue
        yield one("last_run_timestamp_seconds", moment(last["started"]))
        if last["ended"]:
            yield one("last_run_duration_seconds", moment(last["ended"]) - moment(last["started"]))
        yield one("last_run_attempts", len(last["attempts"]))
        yield one("last_run_files_copied", display.copied(last))
        yield one("last_run_files_deleted", display.total(last, "deleted"))
        yield one("last_run_bytes", display.total(last, "bytes"))
        yield one("last_run_conflicts", display.total(last, "conflicts"))
        yield one("unresolved_paths", job["unresolved"])


def render(found: Iterable[Sample]) -> str:
    """The exposition; one family after the other, as both formats ask."""
    by_metric: dict[str, list[Sample]] = {}
    for sample in found:
        by_metric.setdefault(sample.metric, []).append(sample)
    lines = []
    for metric, text in HELP.items():
        if metric in by_metric:
            lines += [f"# HELP {metric} {text}", f"# TYPE {metric} gauge"]
            lines += map(line, by_metric[metric])
    return "\n".join([*lines, "# EOF"]) + "\n"


def line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{escape(text)}"' for name, text in sample.labels.items())
    # Without an exponent, and no finer than clocks and counts are.
    return f"{sample.metric}{{{labels}}} {round(sample.value, 3):.15g}"


def escape(text: str) -> str:
    return display.safe(text).replace("\\", "\\\\").replace('"', '\\"')


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def write(layout: Layout, name: str) -> None:
    """Replaces the job's file in the directory that the role has set, if it has."""
    try:
        directory = json.loads(layout.settings.read_text(encoding="utf-8")).get("metrics_dir")
    except (OSError, ValueError) as error:
        message = f"no metrics: {layout.settings} cannot be read ({error}); apply the role serversync.core.runner again"
        raise Failure("metrics", message) from error
    if not directory:
        return
    # Timers are out of reach within a job's unit.
    text = render(samples([row(layout, name, None)]))
    try:
        replace(Path(directory, f"serversync-{name}.prom"), text, 0o644)
    except OSError as error:
        message = f"no metrics in {directory}: {error.strerror}; check runner_metrics_dir of the role"
        raise Failure("metrics", message) from error
