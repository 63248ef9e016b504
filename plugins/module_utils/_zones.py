# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""What somebody may have meant by a time zone that this server does not know."""

from __future__ import annotations

import difflib
import os

from ._store import is_zone


def unknown(zone: str, directory: str) -> str:
    """The error, with the zone that is the nearest in its name. `directory`: tzdata's."""
    names = []
    for where, _directories, files in os.walk(directory):
        base = os.path.relpath(where, directory)
        if (base + os.sep).startswith(("posix/", "right/")):
            continue
        names += [file if base == "." else os.path.join(base, file) for file in files]
    folded = {name.lower(): name for name in names if is_zone(os.path.join(directory, name))}
    # the part after the last slash is what people remember: 'Berlin' for 'Europe/Berlin'
    cities = {os.path.basename(name): full for name, full in folded.items()}
    close = [folded[name] for name in difflib.get_close_matches(zone.lower(), folded, 1)]
    close = close or [cities[name] for name in difflib.get_close_matches(os.path.basename(zone.lower()), cities, 1)]
    hint = "did you mean %s?" % close[0] if close else "write its name, e.g. Europe/Berlin or UTC"
    return "%r is not a time zone of this server; %s" % (zone, hint)
