# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""A command that outlives the module that has started it."""

from __future__ import annotations

import subprocess
import tempfile
import time
from typing import Any, Callable, Sequence

#: Seconds between two looks whether it has begun.
_LOOK = 0.05


def begin(argv: Sequence[str], begun: Callable[[], Any]) -> tuple[Any, int, str, str]:
    """Starts the command in a session of its own, and comes back once `begun` returns what it waits for.

    Or when the command has ended before: then with its exit code and what it has printed. What it prints goes to
    files without a name, which are gone when the last of both has closed them.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # run_command waits for the end, and this one is to go on after the module.
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function
            list(argv), stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        while True:
            code = process.poll()
            # asked after the command: one that ends now has begun before
            found = begun()
            if found is not None:
                return found, 0, "", ""
            if code is not None:
                texts = []
                for stream in (out, err):
                    stream.seek(0)
                    texts.append(stream.read().decode("utf-8", "replace"))
                return None, code, texts[0], texts[1]
            time.sleep(_LOOK)
