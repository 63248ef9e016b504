# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job that is late, from what ``serversync late`` finds to the run after which all is well, with the real runner."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.loopback import Server

NOTIFICATION = {"email": ["ops@example.com"], "events": ["late", "recovery"], "late_after": "2h"}


class Site:
    """A server with a job, whose mails somebody else sends."""

    def __init__(self, server: Server, root: Path) -> None:
        self.server = server
        (root / "source").mkdir()
        (root / "source" / "file").write_text("1")
        self.elements = [(root / "source", root / "target")]
        self.state = server.home / ".local/state/serversync"
        settings = json.loads((server.config / "runner.json").read_text())
        (server.config / "runner.json").write_text(json.dumps({**settings, "outbox_service": True}))

    def declare(self, name: str = "nightly", *, hours_ago: float = 0, **more: Any) -> None:
        path = self.server.declare(name, self.elements, **{"notification": NOTIFICATION, **more})
        os.utime(path, (0, time.time() - hours_ago * 3600))

    def row(self, name: str = "nightly") -> dict[str, Any]:
        [row] = json.loads(self.server.serversync("status", name, "--json").stdout)
        return dict(row)

    def subjects(self) -> list[str]:
        """Of the mails that wait, which are taken away; without the server's name."""
        found = sorted((self.state / "outbox").glob("*.json"))
        subjects = [json.loads(path.read_text())["subject"].partition(": ")[2] for path in found]
        for path in found:
            path.unlink()
        return subjects

    def look(self, code: int = 0) -> str:
        return self.server.serversync("late", code=code).stdout


@pytest.fixture
def site(server: Server, tmp_path: Path) -> Site:
    return Site(server, tmp_path)


def test_a_job_that_does_not_run_is_told_of_and_so_is_that_it_does_again(site: Site) -> None:
    site.declare(hours_ago=1.9)
    assert site.look() == ""
    assert (site.row()["late"], site.subjects()) == (False, [])
    site.declare(hours_ago=2.1)
    assert "nightly: mail to ops@example.com: in the outbox\n" in site.look()
    assert site.look() == ""
    [subject] = site.subjects()
    assert subject.startswith("nightly LATE: no good run since the job was changed, ")
    assert subject.endswith(" (2 hours)")
    assert site.row()["late"] is True
    assert "nightly: late since " in site.server.serversync("status").stdout
    # Another name is no other job.
    site.server.declare("daily", site.elements, notification=NOTIFICATION)
    (site.server.config / "jobs" / "nightly.json").unlink()
    site.server.serversync("rename", "daily", "--from", "nightly")
    record = site.server.run("daily")
    assert record["notification"]["event"] == "recovery"
    assert site.subjects() == ["daily RECOVERED"]
    assert site.server.run("daily")["notification"] is None
    assert [*(site.state / "late").iterdir()] == []


def test_what_is_published_says_when_the_job_is_late(site: Site) -> None:
    site.declare()
    site.server.run("nightly")
    published = site.state / "public" / "nightly.json"
    known = json.loads(published.read_text())
    assert (known["late_after"], known["enabled"], site.row()["late"]) == (7200, True, False)
    # As if that had been in January.
    known["good"], known["declared"] = ("2026-01-01T02:30:00.000+00:00", "2026-01-01T00:00:00.000+00:00")
    published.write_text(json.dumps(known))
    site.declare(hours_ago=24 * 365 * 10)
    assert site.row()["late"] is True
    assert "serversync_late_timestamp_seconds" in site.server.serversync("metrics").stdout
    assert "nightly: LATE: no good run since " in site.look()


def test_a_run_that_fails_makes_no_job_well(site: Site) -> None:
    site.elements[0][0].rename(site.elements[0][0].parent / "away")
    site.declare(hours_ago=3)
    site.server.run("nightly", code=1)
    assert (site.row()["late"], site.row()["state"]) == (True, "failed")
    site.look()
    site.server.run("nightly", code=1)
    assert (len(site.subjects()), site.look()) == (1, "")


def test_a_job_that_is_paused_is_not_late(site: Site) -> None:
    site.declare(hours_ago=24, enabled=False)
    assert (site.row()["late"], site.row()["late_at"], site.look(), site.subjects()) == (False, None, "", [])


def test_one_odd_document_does_not_silence_the_others(site: Site) -> None:
    site.declare("fine", hours_ago=3)
    (site.server.config / "jobs" / "odd.json").write_text("{")
    said = site.look()
    assert "odd: " in said
    assert site.subjects()
