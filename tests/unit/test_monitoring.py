# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dashboard and the alert rules of docs/monitoring ask for metrics that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from serversync.metrics import HELP, STATES, samples

from tests.unit.runner.test_metrics import NEVER, ROW

MONITORING = Path(__file__).resolve().parents[2] / "docs" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
ALERTS = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
# What Prometheus gives every series that it collects.
TARGET = {"instance", "job"}
LABELS: dict[str, set[str]] = {name: set() for name in HELP}
for sample in samples([ROW, NEVER]):
    LABELS[sample.metric] |= {*sample.labels}
# Of the node exporter, about the files that it collects.
LABELS |= {"node_textfile_mtime_seconds": {"file"}, "node_textfile_scrape_error": set()}
EVERY_LABEL = TARGET.union(*LABELS.values())


def asked(text: str) -> Iterator[tuple[str, str, str]]:
    """What an expression asks for: a metric, label and value, or a label that it groups or matches by."""

    def look(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            found.append((node.name, "", ""))
            found.extend((node.name, one.name, one.value) for one in node.matchers.matchers)
        modifier = getattr(node, "modifier", None)
        grouped = modifier if isinstance(node, promql.AggregateExpr) else getattr(modifier, "matching", None)
        found.extend(("", label, "") for label in (grouped.labels if grouped else []))

    found: list[tuple[str, str, str]] = []
    promql.walk(promql.parse(text), look)
    yield from found


def refused(text: str) -> list[str]:
    """What an expression asks for and nothing has."""
    wrong = []
    for metric, label, value in asked(text):
        if metric and metric not in LABELS:
            wrong.append(metric)
        elif label and label not in (LABELS[metric] | TARGET if metric else EVERY_LABEL):
            wrong.append(f"{metric}{{{label}}}")
        elif metric and label == "state":
            wrong += [state for state in value.split("|") if state not in STATES]
    return wrong


def expanded(text: str) -> str:
    """An expression of the dashboard, for any server and job."""
    for name in VARIABLES:
        text = text.replace(f"${name}", "26" if name == "late_hours" else ".+")
    assert "$" not in text
    return text


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("serversync_job_state", []),
        ('rate(serversync_job_state{state="failed"}[5m])', []),
        ("serversync_jobs", ["serversync_jobs"]),
        ('serversync_last_run_bytes{state="failed"}', ["serversync_last_run_bytes{state}"]),
        ('max_over_time(serversync_job_state{state=~"equal|well"}[1d])', ["well"]),
        ("sum by (element) (serversync_last_run_bytes)", ["{element}"]),
        ("serversync_job_enabled and on (name) serversync_job_info", ["{name}"]),
    ],
)
def test_the_check_sees_what_there_is_not(text: str, wrong: list[str]) -> None:
    assert refused(text) == wrong


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_asks_for_what_there_is(rule: dict[str, Any]) -> None:
    assert refused(rule["expr"]) == []
    for text in (*rule["annotations"].values(), *rule["labels"].values()):
        assert {*re.findall(r"\$labels\.(\w+)", text)} <= EVERY_LABEL
    assert {"summary", "description"} == {*rule["annotations"]} and rule["labels"]["severity"] in (
        "critical",
        "warning",
    )


def test_alerts_have_names_of_their_own_and_are_documented() -> None:
    guide = (MONITORING.parent / "operating.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(Serversync\w+)` \|", guide, re.MULTILINE) == [rule["alert"] for rule in ALERTS]
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_a_panel_asks_for_what_there_is(panel: dict[str, Any]) -> None:
    assert panel["targets"] and panel["description"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert refused(expanded(target["expr"])) == []
        assert {*re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])} <= EVERY_LABEL
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(f'{name}=~"${name}"' in target["expr"] for name in ("instance", "sync_job"))


def test_the_table_of_jobs_names_what_it_is_made_of() -> None:
    [table] = [panel for panel in PANELS if panel["type"] == "table"]
    [organize] = [one["options"] for one in table["transformations"] if one["id"] == "organize"]
    made = {f"Value #{target['refId']}" for target in table["targets"]} | {"Time", "instance", "sync_job", "state"}
    for part in ("excludeByName", "indexByName", "renameByName"):
        assert {*organize[part]} <= made
    assert made - {*organize["excludeByName"]} == {*organize["indexByName"]}
    shown = {*organize["renameByName"].values(), "state"}
    assert {one["matcher"]["options"] for one in table["fieldConfig"]["overrides"]} <= shown


@pytest.mark.parametrize("name", ["instance", "sync_job"])
def test_a_variable_lists_what_there_is(name: str) -> None:
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[name]["query"]["query"])
    assert found and found[2] == name
    assert refused(expanded(found[1])) == []


def test_every_state_has_its_colour() -> None:
    [table] = [panel for panel in PANELS if panel["type"] == "table"]
    [state] = [one for one in table["fieldConfig"]["overrides"] if one["matcher"]["options"] == "state"]
    [mapping] = [one["value"] for one in state["properties"] if one["id"] == "mappings"]
    assert {*mapping[0]["options"]} == {*STATES}
    [line] = [panel for panel in PANELS if panel["type"] == "state-timeline"]
    codes = {code: one["text"] for code, one in line["fieldConfig"]["defaults"]["mappings"][0]["options"].items()}
    coded = re.findall(r'(\d+) \* serversync_job_state\{[^}]*state="(\w+)"\}', line["targets"][0]["expr"])
    assert dict(coded) == codes and {*codes.values()} == {*STATES}


def test_grafana_can_lay_the_dashboard_out() -> None:
    assert DASHBOARD["uid"] == "serversync" and DASHBOARD["schemaVersion"] >= 36
    assert "__inputs" not in DASHBOARD and DASHBOARD.get("id") is None
    assert VARIABLES["datasource"]["type"] == "datasource"
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [tuple(panel["gridPos"][name] for name in "xywh") for panel in panels]
    assert all(x >= 0 and x + w <= 24 and w and h for x, _y, w, h in places)
    for (x, y, w, h), (x2, y2, w2, h2) in combinations(places, 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
