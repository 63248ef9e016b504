# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The alert rules of docs/monitoring, carried out by Prometheus' own tool on series as the runner writes them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from serversync.metrics import render, samples

from tests.unit.runner.test_metrics import LAST, NEVER, ROW

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "docs" / "monitoring" / "alerts.yml"
ALERTS = {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
# The clock of the tool's tests begins with 1970, and looks every five minutes.
STEP = 5
DAYS = 4
# What a scrape of the node exporter adds.
TARGET = {"instance": "site-a:9100", "job": "node"}
FILE = {"file": "/var/lib/collector/serversync-line1.prom"}


def at(hours: float) -> str:
    """So many hours after the clock began, as records have it."""
    day, hour = divmod(int(hours), 24)
    return f"1970-01-{day + 1:02}T{hour:02}:{round(hours % 1 * 60):02}:00.000+00:00"


def row(ended: float = 30, **changes: Any) -> dict[str, Any]:
    """A job whose last run was well and ended so many hours after the clock began."""
    last = {**LAST, "started": at(ended - 0.5), "ended": at(ended)}
    good = {"good": at(ended), "late_at": at(ended + 48)}
    return {**ROW, "state": "equal", "unresolved": 0, **good, "last": last, **changes}


def series(rows: list[dict[str, Any]], *more: tuple[str, float], hours: float = 24 * DAYS) -> list[dict[str, str]]:
    """What Prometheus has after so many hours in which that was collected; more: of the node exporter."""
    steps = int(hours * 60 / STEP)
    lines = [line.rpartition(" ")[::2] for line in render(samples(rows)).splitlines() if not line.startswith("#")]
    lines += [(text, str(value)) for text, value in more]
    added = ",".join(f'{name}="{value}"' for name, value in TARGET.items())
    return [
        {"series": f"{text[:-1]}{'' if text.endswith('{}') else ','}{added}}}", "values": f"{value}+0x{steps}"}
        for text, value in lines
    ]


def written(hours: float) -> tuple[str, float]:
    """The file of the job's metrics, last written so many hours after the clock began."""
    return f'node_textfile_mtime_seconds{{file="{FILE["file"]}"}}', hours * 3600


def promtool(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *words], input=stdin, capture_output=True, text=True, check=False)


JOB = {**TARGET, "sync_job": "line1"}
WAITS = {**LAST, "started": at(1), "ended": None}
PLACE = "line1 on site-a:9100"
#: What is collected, when one looks, and which alerts there are then, with labels and summary.
CASES: dict[str, tuple[list[dict[str, str]], float, dict[str, tuple[dict[str, str], str]]]] = {
    "all is well": (series([row()], written(30)), 40, {}),
    "a job has failed": (
        series([row(state="failed", good=at(20), late_at=at(68))], written(30)),
        40,
        {"JobFailing": ({**JOB, "state": "failed"}, f"{PLACE} is failed")},
    ),
    "a document cannot be used": (
        series([row(state="invalid", good=at(20), late_at=at(68))], written(30)),
        40,
        {"JobFailing": ({**JOB, "state": "invalid"}, f"{PLACE} is invalid")},
    ),
    "not yet late": (series([row(10)], written(56)), 57.9, {}),
    "late": (series([row(10)], written(56)), 58.1, {"JobLate": (JOB, f"{PLACE} is late")}),
    "paused": (series([row(10, enabled=False, late_at=None)], written(10)), 90, {}),
    "never well": (
        series([{**NEVER, "job": "line1", "partner": "hq", "late_at": at(24)}]),
        25,
        {"JobLate": (JOB, f"{PLACE} is late")},
    ),
    "unresolved for minutes": (series([row(state="different", unresolved=3)], written(30)), 0.9, {}),
    "unresolved": (
        series([row(state="different", unresolved=3)], written(30)),
        40,
        {"ConflictsOpen": (JOB, f"{PLACE}: 3 unresolved")},
    ),
    "stopped by a guard": (
        series([row(state="different")], written(30)),
        40,
        {"JobStopped": ({**JOB, "state": "different"}, f"{PLACE} was stopped by a guard")},
    ),
    "waits": (series([row(0, state="waiting", last=WAITS)], written(0)), 11.9, {}),
    "waits too long": (
        series([row(0, state="waiting", last=WAITS)], written(0)),
        12.1,
        {"RunStuck": ({**JOB, "state": "waiting"}, f"{PLACE} is waiting and comes to no end")},
    ),
    "the runner is dead": (
        series([row(30)], written(10)),
        36.1,
        {"RunnerDead": (JOB, f"{PLACE} does not run any more")},
    ),
    "the file of another job is old": (
        series([row(30)], ('node_textfile_mtime_seconds{file="serversync-line2.prom"}', 0.0)),
        36.1,
        {},
    ),
    "an older exporter names the file alone": (
        series([row(30)], ('node_textfile_mtime_seconds{file="serversync-line1.prom"}', 0.0)),
        36.1,
        {"RunnerDead": (JOB, f"{PLACE} does not run any more")},
    ),
    "nothing is collected any more": (
        series([row(1)], written(1), hours=4),
        5,
        {"MetricsGone": ({"instance": TARGET["instance"]}, "site-a:9100 tells nothing of its jobs any more")},
    ),
    "what is collected is broken": (
        series([row()], ("node_textfile_scrape_error{}", 1.0)),
        40,
        {"MetricsUnread": (TARGET, "The node exporter of site-a:9100 cannot read all metrics")},
    ),
    "what else is collected is broken": (
        [{"series": 'node_textfile_scrape_error{instance="other:9100",job="node"}', "values": "1+0x999"}],
        40,
        {},
    ),
}


def test_prometheus_takes_the_rules() -> None:
    done = promtool("check", "rules", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_prometheus_takes_the_metrics_and_finds_no_fault() -> None:
    done = promtool("check", "metrics", stdin=render(samples([row(), {**NEVER, "job": "line2"}])))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("case", CASES)
def test_who_is_alarmed(case: str, tmp_path: Path) -> None:
    collected, hours, expected = CASES[case]
    wanted = {f"Serversync{name}": one for name, one in expected.items()}
    minutes = f"{round(hours * 60)}m"
    alerts = []
    for name, rule in ALERTS.items():
        found = []
        if name in wanted:
            labels, summary = wanted[name]
            description = rule["annotations"]["description"].replace("{{ $labels.sync_job }}", "line1")
            found = [
                {
                    "exp_labels": {**labels, **rule["labels"]},
                    "exp_annotations": {"summary": summary, "description": description},
                }
            ]
        alerts.append({"eval_time": minutes, "alertname": name, "exp_alerts": found})
    assert {*wanted} <= {*ALERTS}
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": f"{STEP}m",
        "tests": [{"interval": f"{STEP}m", "input_series": collected, "alert_rule_test": alerts}],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    done = promtool("test", "rules", str(tmp_path / "test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_was_seen() -> None:
    assert {f"Serversync{name}" for _series, _hours, expected in CASES.values() for name in expected} == {*ALERTS}
