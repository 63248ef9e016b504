# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""Which settings hold for an element. Apart from the grammar, which the runner's package has no use for."""

from __future__ import annotations

from typing import Any, Mapping


def settings_of(job: Mapping[str, Any], element: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that hold for an element: its own, and of what it has none the job's."""
    common: Mapping[str, Any] = job["settings"]
    own = element.get("settings")
    if not own:
        return common
    settings = dict(common, **own)
    if settings.get("verify") == "checksum":
        settings["verify_every"] = None
    return settings
