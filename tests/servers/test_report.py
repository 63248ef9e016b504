# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of reports: what root, a reader and a stranger see of a server, and what the playbook makes of both."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from testservers import Server

READER = ("setpriv", "--reuid=65534", "--regid=65534", "--groups=serversync-readers")
STRANGER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page))


@pytest.fixture
def ran(site: Server) -> str:
    """The run of a job that was just made."""
    code, run = site.serversync("run", "line1-recipes")
    assert code == 0, run
    return str(run["run"])


def test_root_sees_jobs_with_their_days_and_connections(site: Server, ran: str) -> None:
    site.run("serversync", "report", "--html", "/run/report.html")
    assert site.run("stat", "--format=%A %U", "/run/report.html") == "-rw-r----- root\n"
    page = site.read("/run/report.html")
    site.run("rm", "/run/report.html")
    told = json.loads(site.run("serversync", "report", "--json", "line1-recipes"))["servers"][0]
    (job,) = told["jobs"]
    assert (told["scope"], job["runs"][0]["run"], job["days"][-1]["day"]) == ("system", ran, told["made"][:10])
    assert job["days"][-1]["equal"] >= 1
    text = text_of(page)
    for said in (
        "Synchronization jobs of siteA",
        "No circle was found among them.",
        "at 02:30 (mon, tue, wed, thu, fri)",
    ):
        assert said in text
    # The partner is one of the pairing's.
    assert "hq:/srv/recipes->siteA:/srv/line1/recipesline1-recipes" in text


def test_a_reader_sees_the_records_and_no_more(site: Server, ran: str) -> None:
    text = text_of(site.run(*READER, "serversync", "report", "--html", "-"))
    assert "line1-recipes" in text and "/srv/line1/recipes" in text
    assert "were not looked at: the document cannot be used, or not by who made the report." in text
    told = json.loads(site.run(*READER, "serversync", "report", "--json"))["servers"][0]
    assert told["partners"] == [] and all(job["declared"] is None for job in told["jobs"])
    assert ran in [run["run"] for job in told["jobs"] for run in job["runs"]]


def test_a_stranger_sees_nothing(site: Server, ran: str) -> None:
    done = site.try_run(*STRANGER, "serversync", "report", "--html", "-")
    assert (done.returncode, done.stdout) == (1, "")
    assert "permission denied" in done.stderr


def test_the_playbook_makes_a_page_of_both(play: Any, ran: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.html"
    variables = json.dumps({"report_hosts": "servers", "report_file": str(path)})
    play("- ansible.builtin.import_playbook: serversync.core.report\n", "--extra-vars", variables)
    text = text_of(path.read_text(encoding="utf-8"))
    assert "Synchronization jobs of 2 servers" in text and "No circle was found among them." in text
    # By the playbook one server is known to the other, whatever addresses they have.
    assert not re.search(r"Partners that are not among the servers: [^.]*\bhq\b", text)
    assert "siteA:/srv/line1/programs->hq:/srv/sites/siteA/programsline1-programs" in text
