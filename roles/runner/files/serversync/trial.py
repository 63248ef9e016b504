# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs are tried before they are declared: in a passing unit with the account, abilities and sandbox of theirs."""

from __future__ import annotations

import grp
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from serversync.entry import HERE, THERE
from serversync.job import Element, Job
from serversync.layout import Layout
from serversync.synchronize import TARGETS
from serversync.unit import GROUP, lines_of, service

# Seconds that it may take to try jobs, whatever a partner says.
TRIAL = 600


def try_as_unit(layout: Layout, path: str, jobs: Sequence[Job], argv: list[str]) -> NoReturn:
    """From root to a unit like those that these jobs will have.

    What the file at the path holds, which may be root's alone, is its standard input.
    """
    descriptor = os.memfd_create("documents")
    with os.fdopen(descriptor, "wb", closefd=False) as stream:
        stream.write(Path(path).read_bytes())
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.fchmod(descriptor, 0o440)
    os.fchown(descriptor, -1, grp.getgrnam(GROUP).gr_gid)
    os.dup2(descriptor, 0)
    properties = [f"--property={line}" for line in (*sandbox(layout, jobs), f"RuntimeMaxSec={TRIAL}")]
    unit = f"--unit=serversync-try-{secrets.token_hex(4)}"
    os.execvp(
        "systemd-run", ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", unit, *properties, "--", *argv]
    )


def sandbox(layout: Layout, jobs: Sequence[Job]) -> list[str]:
    """The lines of a unit's section that confine these jobs, as the module will write them."""
    # Of none of the jobs, which have something of their own.
    lines = lines_of(service(""))
    targets: set[str] = set()
    needed: set[str | None] = set()
    for job in jobs:
        needed.add((job["account"] or {}).get("private_key_file"))
        for element in job.elements:
            sides = {HERE: element.path, **({THERE: element.partner_path} if job.local else {})}
            needed.update(sides.values())
            written = TARGETS[element.settings["direction"]]
            targets.update(opened(element, path) for side, path in sides.items() if side in written)
    hidden = json.loads(layout.settings.read_text(encoding="utf-8")).get("hidden", ())
    hidden = [secret for secret in hidden if not any(path and Path(secret).is_relative_to(path) for path in needed)]
    lines += [f"ReadWritePaths={quoted(path)}" for path in sorted(targets)]
    return lines + [f"InaccessiblePaths={quoted(secret)}" for secret in hidden]


def opened(element: Element, target: str) -> str:
    """What has to be writable for a target: of a file its directory, for a new version is moved over the old one."""
    path = Path(target)
    is_file = element.kind == "log" or path.is_file()
    return str(path.parent) if is_file and path.parent != Path("/") else target


def quoted(path: str) -> str:
    """One word of a list of paths; it may be missing."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"-{escaped}"'
