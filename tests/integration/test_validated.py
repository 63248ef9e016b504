# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs are tried against a real partner before they are written."""

from __future__ import annotations

import getpass
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.integration import conftest
from tests.loopback import Pair, make_key, write_launcher


class Site(conftest.Site):
    """One whose partner is that of a pair; it has the key of the pair's server."""

    def __init__(self, path: Path, pair: Pair) -> None:
        super().__init__(path, systemd=False)
        self.pair = pair
        self.doors = path / "doors"
        self.doors.touch()
        pair.there.wrap("sh", "-c", f'echo >> {shlex.quote(str(self.doors))}; exec "$@"', "sh")
        self.options["validate_partner"] = True

    def job(self, **more: Any) -> dict[str, Any]:
        there = self.pair.there
        partner = {"host": "127.0.0.1", "port": there.port, "host_key": [there.host_key]}
        return {
            "partner": partner,
            "account": {"user": getpass.getuser(), "private_key_file": str(self.pair.here.key)},
            "elements": [{"path": str(self.pair.path), "partner_path": str(self.pair.partner_path)}],
            **more,
        }

    def connections(self) -> int:
        """Since the last time."""
        count = len(self.doors.read_text())
        self.doors.write_text("")
        return count


@pytest.fixture
def site(tmp_path: Path, pair: Pair) -> Site:
    return Site(tmp_path / "declaring", pair)


def refused(site: Site, message: str, code: str, path: str, **parameters: Any) -> None:
    before = site.snapshot()
    for run in (site.check, site.apply):
        result = run(**parameters)
        assert result["msg"] == message
        assert (result["failure"]["code"], result["failure"]["path"], result["changed"]) == (code, path, False)
    assert site.snapshot() == before


def warned(site: Site, warning: str, **parameters: Any) -> None:
    for run in (site.check, site.apply):
        result = run(**parameters)
        assert not result.get("failed"), result
        assert warning in result["warnings"]


def test_a_job_that_will_run_is_tried_once_per_change(site: Site) -> None:
    check = site.check(**site.job())
    assert (check["changed"], check.get("warnings"), site.connections()) == (True, None, 1)
    assert not (site.home / "state").exists()
    done = site.apply(**site.job())
    assert (done["diff"], done.get("warnings"), site.connections()) == (check["diff"], None, 1)
    for again in (site.apply, site.check):
        assert not again(**site.job())["changed"]
    site.apply(comment="not tried", validate_partner=False)
    assert site.connections() == 0
    # nothing is left on either server that a run would not have made
    assert not list(site.pair.partner_path.parent.rglob("*"))


def test_what_can_never_run_is_not_written(site: Site, tmp_path: Path) -> None:
    path = str(site.pair.path)
    refused(
        site,
        f"elements[0].partner_path: 127.0.0.1:{site.pair.there.port} says: /srv/elsewhere is outside the roots of the "
        f"pairing site-a (roots: {site.pair.partner_path.parent}); add it to the role's runner_partners there",
        "outside_roots",
        "elements[0].partner_path",
        **site.job(elements=[{"path": path, "partner_path": "/srv/elsewhere"}]),
    )
    missing = site.pair.partner_path.parent / "none"
    refused(
        site,
        f"elements[0].partner_path: {missing} does not exist on 127.0.0.1:{site.pair.there.port}, the source; "
        "create or mount it, or correct the path",
        "missing",
        "elements[0].partner_path",
        **site.job(elements=[{"path": path, "partner_path": str(missing)}], settings={"direction": "from_partner"}),
    )
    if os.geteuid() == 0:  # whose partner may give files away
        site.pair.there.wrap("setpriv", "--bounding-set", "-chown")
    (site.pair.path / "owned").touch()
    site.pair.partner_path.mkdir()
    owned = (
        f"settings.preserve: owner cannot be preserved between {path} and {site.pair.partner_path}: the target's "
        "account may not, or a file system cannot; take it off the list"
    )
    refused(site, owned, "preserve", "settings.preserve", **site.job(settings={"preserve": ["times", "owner"]}))
    elements = [{"path": path, "partner_path": str(site.pair.partner_path), "settings": {"preserve": ["owner"]}}]
    refused(site, f"elements[0].{owned}", "preserve", "elements[0].settings.preserve", **site.job(elements=elements))
    site.apply(**site.job(settings={"preserve": ["times"]}))
    site.apply(state="absent")
    assert not list(site.pair.partner_path.iterdir())
    make_key(tmp_path / "stranger")
    account = {"user": getpass.getuser(), "private_key_file": str(tmp_path / "stranger")}
    refused(
        site,
        f"partner.host: log-in refused by 127.0.0.1:{site.pair.there.port}; apply the role to both servers, "
        "which pairs them",
        "login",
        "partner.host",
        **site.job(account=account),
    )
    key = " ".join((tmp_path / "stranger.pub").read_text().split()[:2])
    partner = dict(site.job()["partner"], host_key=[key])
    result = site.check(**site.job(partner=partner))
    assert (result["failure"]["code"], site.apply(**site.job(partner=partner))["msg"]) == ("host_key", result["msg"])


def test_what_may_come_later_is_a_warning(site: Site, tmp_path: Path) -> None:
    job = site.job()
    account = dict(job["account"], private_key_file=str(tmp_path / "none"))
    result = site.check(**site.job(account=account))
    [warning] = result["warnings"]
    assert warning.startswith(f"not validated: account.private_key_file: {tmp_path}/none does not exist; ")
    result = site.check(**site.job(partner=dict(job["partner"], host_key=[])))
    assert [
        one for one in result["warnings"] if one.startswith("not validated: partner.host: this server is not paired")
    ]
    site.pair.there.stop()
    port = site.pair.there.port
    warned(
        site,
        f"not validated: partner.host: connection refused by 127.0.0.1:{port}; check that sshd runs there on that port",
        **job,
    )
    site.launcher.unlink()
    warned(
        site,
        f"not validated: the runner is not deployed on this server ({site.launcher} is missing)",
        comment="x",
    )
    write_launcher(site.launcher, "sys.argv[1:] = ['check', '--what']")
    result = site.check(comment="y")
    assert result["warnings"][0].startswith("not validated: the runner failed with exit code 2: serversync: ")


def test_many_jobs_by_one_connection(site: Site) -> None:
    site.turn("sync_jobs", validate_partner=True)
    jobs = []
    for name in ("a", "b", "c"):
        (site.pair.path / name).mkdir()
        elements = [{"path": str(site.pair.path / name), "partner_path": str(site.pair.partner_path / name)}]
        jobs.append(site.job(name=name, elements=elements))
    assert "warnings" not in site.check(jobs=jobs)
    assert site.connections() == 1
    jobs[1]["elements"][0]["partner_path"] = "/srv/elsewhere"
    result = site.apply(jobs=jobs)
    assert result["failure"]["path"] == "jobs[1].elements[0].partner_path"
    assert site.connections() == 1
    assert not site.document.parent.exists()


def test_a_password_is_left_to_the_runs(site: Site) -> None:
    """The service alone is handed it; a refusal here would keep everybody from declaring such a job."""
    partner = {**site.job()["partner"], "connection": "sftp"}
    account = {"user": getpass.getuser(), "password": "it is"}
    warning = "not validated: account.password: only a run logs in with it"
    warned(site, warning, **site.job(partner=partner, account=account))
