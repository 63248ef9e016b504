# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role makes systemd units of: the sandboxes of jobs and doors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.plugins.filter import core as filters
from ansible.plugins.test import core as tests
from ansible_collections.serversync.core.plugins.module_utils import _schedule, _units

ROLE = Path(__file__).resolve().parents[2] / "roles" / "runner"
VARIABLES = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
DEFAULTS = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
UNITS = ["serversync@.service.system", "serve@.service", "serversync-units@.service", "serversync-late.service"]


def rendered(name: str, **variables: Any) -> dict[str, list[str]]:
    """The settings of a unit as the role writes it, by their names."""
    loader = jinja2.FileSystemLoader(ROLE / "templates")
    environment = jinja2.Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True)  # noqa: S701 - no HTML
    environment.filters.update(filters.FilterModule().filters())
    environment.tests.update(tests.TestModule().tests())
    given = {
        **DEFAULTS,
        **VARIABLES,
        "__runner_config": "/etc/serversync",
        "__runner_state": "/var/lib/serversync",
        "__runner_launcher": "/usr/bin/serversync",
        "item": {"name": "hq", "roots": [{"path": "/srv/a b", "access": "both"}]},
        **variables,
    }
    settings: dict[str, list[str]] = {}
    for line in environment.get_template(f"{name}.j2").render(given).splitlines():
        if line and line[0] not in "#[":
            key, _is, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def hidden(settings: dict[str, list[str]]) -> set[str]:
    return {path for value in settings["InaccessiblePaths"] for path in value.split()}


def test_modules_and_the_role_hide_the_same() -> None:
    assert list(_units.SECRETS) == VARIABLES["__runner_secrets"]


@pytest.mark.parametrize("unit", UNITS)
def test_the_secrets_of_jobs_are_out_of_reach(unit: str) -> None:
    assert "-/etc/serversync/credentials" in hidden(rendered(unit))


@pytest.mark.parametrize("unit", UNITS[1:])
def test_the_servers_secrets_are_out_of_reach(unit: str) -> None:
    assert {f"-{path}" for path in _units.SECRETS} <= hidden(rendered(unit))


def test_connections_have_a_bound_together() -> None:
    assert rendered("serve@.service")["Slice"] == ["serversync-serve.slice"]
    assert rendered("serversync-serve.slice", runner_memory_max="4G")["MemoryMax"] == ["4G"]
    assert "MemoryMax" not in rendered("serversync-serve.slice", runner_memory_max="")
    assert rendered("serversync-serve.slice")["TasksMax"] == ["25%"]


def test_no_key_floods_the_journal_or_shuts_its_door() -> None:
    unit = rendered("serve@.service")
    assert unit["SyslogLevel"] == unit["LogLevelMax"] == ["notice"]
    assert int(unit["LogRateLimitBurst"][0]) <= 20
    assert unit["LogRateLimitIntervalSec"] == ["1h"]
    assert rendered("serve.socket")["TriggerLimitIntervalSec"] == ["0"]


def test_a_door_sees_of_the_runner_what_it_needs() -> None:
    own = {f"-/etc/serversync/{name}" for name in ("credentials", "jobs", "keys", "pairings")}
    assert own | {"-/var/lib/serversync"} <= hidden(rendered("serve@.service"))


@pytest.mark.parametrize(
    ("root", "seen"),
    [
        ("/etc/shadow", {"/etc/shadow"}),
        ("/etc/ssh", {path for path in _units.SECRETS if "/ssh/" in path}),
        ("/etc/ss", set()),
    ],
)
def test_what_a_root_holds_is_not_hidden_from_its_partner(root: str, seen: set[str]) -> None:
    item = {"name": "hq", "roots": [{"path": "/srv", "access": "both"}, {"path": root, "access": "read"}]}
    assert {f"-{path}" for path in _units.SECRETS} - hidden(rendered("serve@.service", item=item)) == {
        f"-{path}" for path in seen
    }


@pytest.mark.parametrize(
    "unit", [*UNITS, "serversync-notify.service", "serversync-recover.service", "serversync-recover@.service"]
)
def test_the_journals_socket_is_in_reach(unit: str) -> None:
    settings = rendered(unit, __runner_system=True, __runner_password_kept={"encrypted": False})
    assert all("AF_UNIX" in families for families in settings["RestrictAddressFamilies"])
    # A path that is only read keeps nobody from a socket.
    away = {path.lstrip("-") for path in settings.get("InaccessiblePaths", []) for path in path.split()}
    away |= {path.partition(":")[0] for path in settings.get("TemporaryFileSystem", [])}
    back = {path.lstrip("-") for path in settings.get("BindReadOnlyPaths", [])}
    for path in ("/run", "/run/systemd", "/run/systemd/journal", "/run/systemd/journal/socket"):
        assert path not in away or "/run/systemd/journal" in back


def test_who_looks_for_jobs_that_are_late_writes_what_is_told_and_nothing_else() -> None:
    unit = rendered("serversync-late.service")
    assert unit["ReadWritePaths"] == ["/var/lib/serversync/late /var/lib/serversync/outbox"]
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == [""]
    assert (unit["User"], unit["PrivateNetwork"], unit["ProtectSystem"]) == (["serversync"], ["yes"], ["strict"])
    assert {"-/etc/serversync/keys", "-/var/lib/serversync/archives", "-/var/lib/serversync/records.sqlite"} <= hidden(
        unit
    )


def test_in_user_scope_it_looks_as_the_user() -> None:
    unit = rendered("serversync-late.service", __runner_system=False)
    assert unit["ExecStart"] == ["%h/.local/bin/serversync late"]
    assert "User" not in unit
    assert "ReadWritePaths" not in unit


def test_the_first_look_is_behind_the_runs_that_are_made_up_for_after_boot() -> None:
    timer = rendered("serversync-late.timer")
    first, every = (
        _schedule.seconds_of(timer[name][0].replace("min", "m")) for name in ("OnStartupSec", "OnUnitActiveSec")
    )
    assert first >= 2 * _schedule.seconds_of(_schedule.default_jitter(None, ["02:30"]))
    assert every <= 15 * _schedule.MINUTE
