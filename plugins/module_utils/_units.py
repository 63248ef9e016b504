# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""A job in normal form -> the text of its systemd timer and of the drop-in of its service. Pure."""

from __future__ import annotations

import posixpath
import re
from typing import Any, Collection, Mapping

from ._schedule import HOUR, on_calendar, seconds_of
from ._settings import settings_of

HEADER = "# Written by serversync.core.sync_job; changes made here are lost.\n"

#: Seconds for what a run does beside its attempts: records, a mail, and ending what was timed out.
_GRACE = 600
_LAUNCHERS = {"system": "+/usr/bin/serversync", "user": "%h/.local/bin/serversync"}
_PATHS = ("path", "partner_path")
#: What no run needs and whoever passes over permissions could read; the role has the same list for the doors.
SECRETS = (
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/security/opasswd",
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/ssh/ssh_host_ecdsa_key",
    "/etc/ssh/ssh_host_ed25519_key",
    "/etc/ssh/ssh_host_rsa_key",
    "/var/lib/systemd/credential.secret",
)
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._@:,+=~-]+")


def timer_name(name: str) -> str:
    return "serversync@%s.timer" % name


def service_name(name: str) -> str:
    return "serversync@%s.service" % name


def path_value(path: str) -> str:
    """A path as a value of ReadOnlyPaths=/ReadWritePaths=.

    The dash keeps a missing path from stopping the unit before the runner can say what is missing.
    systemd expands % and splits at white space, and a backslash takes the next character as it is.
    """
    text = "-" + path.replace("%", "%%")
    if _PLAIN_PATH.fullmatch(path):
        return text
    return '"%s"' % text.replace("\\", "\\\\").replace('"', '\\"')


def description_value(text: str) -> str:
    """Text as a value of Description=, which expands % and would continue after a final backslash."""
    value = text.replace("%", "%%")
    backslashes = len(value) - len(value.rstrip("\\"))
    return value + "\\" if backslashes % 2 else value


def calendars_of(job: Mapping[str, Any]) -> list[str]:
    """The OnCalendar= values of a job that has a schedule."""
    names = ("every", "at", "days", "day_of_month", "calendar", "timezone")
    return on_calendar(**{name: job["schedule"][name] for name in names})


def timer_text(job: dict[str, Any]) -> str | None:
    """The timer unit; None when the job has no schedule or is paused."""
    schedule = job["schedule"]
    if schedule is None or not job["enabled"]:
        return None
    lines = ["[Unit]", "Description=Schedule of synchronization job " + job["name"], "", "[Timer]"]
    lines += ["OnCalendar=" + calendar for calendar in calendars_of(job)]
    lines += [
        "Persistent=" + ("true" if schedule["catch_up"] else "false"),
        "RandomizedDelaySec=%ds" % seconds_of(schedule["jitter"]),
        # the same delay every time, so that runs stay one period apart
        "FixedRandomDelay=true",
        "AccuracySec=1s",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    return HEADER + "\n".join(lines) + "\n"


def paths_here(job: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The job's sources and targets on this server."""
    sources: list[str] = []
    targets: list[str] = []
    for name in _PATHS if job["partner"]["connection"] == "local" else ("path",):
        for element in job["elements"]:
            direction = settings_of(job, element)["direction"]
            target = direction == "both" or (direction == "from_partner") == (name == "path")
            (targets if target else sources).append(element[name])
    return sources, targets


def pauses(on_error: Mapping[str, Any]) -> list[int]:
    """The seconds between the attempts of a run, as the runner waits them."""
    delay, backoff = seconds_of(on_error["delay"]), on_error["backoff"]
    most = seconds_of(on_error["max_delay"]) if on_error["max_delay"] else max(HOUR, delay)
    return [int(min(delay * backoff**number, most)) for number in range(on_error["retries"])]


def longest(job: dict[str, Any]) -> int:
    """The seconds after which a service is over, whatever comes of it; one that is not, cannot end itself any more.

    It is not known of one that waits for the administrator's units. In system scope it ends with each attempt.
    """
    timeout = seconds_of(job["limits"]["timeout"])
    waits = pauses(job["on_error"]) if job["scope"] == "user" else []
    return (len(waits) + 1) * timeout + sum(waits) + _GRACE


def drop_in_text(
    job: dict[str, Any], regular_files: Collection[str] = (), credentials: Mapping[str, tuple[str, bool]] | None = None
) -> str:
    """What the job adds to the service. `regular_files`: paths on this server that are one file.
    `credentials`: by their names the files of the job's secrets, and whether they are encrypted.

    A new version of a file is moved over the old one, which is a write to its directory; so is making a log anew.
    """
    description = "Synchronization job " + job["name"]
    if job["comment"]:
        description += ": " + job["comment"]
    lines = ["[Unit]", "Description=" + description_value(description)]
    service: list[str] = []
    if job["scope"] == "system":
        sources, targets = paths_here(job)
        logs = {element[name] for element in job["elements"] if element["kind"] == "log" for name in _PATHS}
        # a mount on a log that is rotated away would go on showing the old one
        sources = [source for source in sources if source not in logs]
        writable: list[str] = []
        for target in targets:
            directory = posixpath.dirname(target) if target in logs or target in regular_files else target
            # never the whole file system for the sake of one file
            directory = target if directory == "/" else directory
            if directory not in writable:
                writable.append(directory)
        service += ["ReadOnlyPaths=" + path_value(path) for path in sources]
        service += ["ReadWritePaths=" + path_value(path) for path in writable]
        key = (job["account"] or {}).get("private_key_file")
        needed = [*sources, *targets, *logs, *([key] if key else [])]
        service += [
            "InaccessiblePaths=" + path_value(secret)
            for secret in SECRETS
            if not any((secret + "/").startswith(path.rstrip("/") + "/") for path in needed)
        ]
        for name, (path, encrypted) in (credentials or {}).items():
            option = "LoadCredentialEncrypted" if encrypted else "LoadCredential"
            service.append("%s=%s:%s" % (option, name, path))
    limits = job["limits"]
    if limits["nice"]:
        service.append("Nice=%d" % limits["nice"])
    if limits["timeout"] and not job["before"] and not job["after"]:
        seconds = longest(job)
        # The runner has it count anew when it has waited until other runs are over.
        service += ["TimeoutStartSec=%ds" % seconds, "NotifyAccess=main", "Environment=SERVERSYNC_LONGEST=%d" % seconds]
    if job["after"]:
        # a run that was killed cannot start them; it is root that may
        service.append("ExecStopPost=%s died %%i" % _LAUNCHERS[job["scope"]])
    if service:
        lines += ["", "[Service]", *service]
    return HEADER + "\n".join(lines) + "\n"
