# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job gets another name: what is kept of it on this server goes by that.

The replicas' markers and versions follow with the next run, which knows the elements' old names by their archives.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing

from serversync.failure import Failure
from serversync.history import History
from serversync.job import Job
from serversync.layout import Layout
from serversync.run import locked


def rename(layout: Layout, job: Job, previous: str) -> None:
    """Gives ``job`` what is known of the one called ``previous``, which may have been done in part.

    The published file is last: while it is there by the old name, something may be left to do.
    """
    with ExitStack() as held:
        # After a boot the account cannot make the directory before the first run has, and no run is on.
        for name in (previous, job.name) if layout.locks.is_dir() else ():
            if not held.enter_context(locked(layout, name)):
                raise Failure("running", f"{name} is running now; see: serversync status {name}")
        for kind in ("archives", "plans"):
            old, new = layout.state / kind / previous, layout.state / kind / job.name
            if old.exists():
                # Left from a job of this name that was removed.
                shutil.rmtree(new, ignore_errors=True)
                old.rename(new)
        (layout.state / "validated" / previous).unlink(missing_ok=True)
        if (layout.late / f"{previous}.json").exists():
            (layout.late / f"{previous}.json").replace(layout.late / f"{job.name}.json")
        with closing(History(layout)) as history:
            history.rename(previous, job.name)
            history.publish(job)
        (layout.public / f"{previous}.json").unlink(missing_ok=True)
