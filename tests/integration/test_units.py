# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services of systemd around a run, in user scope; systemctl is one that keeps a list of what it was asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.loopback import Server

# Units that begin with fail fail; wait.service waits until its FIFO is written to.
SYSTEMCTL = """\
#!/bin/sh
echo "$@" >> {root}/asked
ls {root}/target/file >> {root}/asked 2>&1
for unit; do :; done
case $unit in
    wait.service) read line < {root}/fifo;;
    fail*) echo "Job for $unit failed because the control process exited with error code." >&2
        echo "See systemctl status" >&2
        exit 1;;
esac
"""
START = "--user --no-ask-password start -- "


class Site:
    """A job of one file, with units around its runs."""

    def __init__(self, server: Server, root: Path) -> None:
        self.server = server
        self.root = root
        (root / "source").mkdir()
        (root / "source" / "file").write_text("1")
        (root / "bin").mkdir()
        program = root / "bin" / "systemctl"
        program.write_text(SYSTEMCTL.format(root=root))
        program.chmod(0o755)
        server.extra["PATH"] = f"{root / 'bin'}:{os.environ['PATH']}"

    def declare(self, before: list[str], after: list[str], **options: Any) -> None:
        units = {name: [{"unit": unit} for unit in given] for name, given in (("before", before), ("after", after))}
        self.server.declare("dumped", [(self.root / "source", self.root / "target")], **units, **options)

    def asked(self) -> list[str]:
        """The units that were started, each with whether the file had arrived."""
        lines = (self.root / "asked").read_text().splitlines()
        there = ["" if "cannot access" in line else " arrived" for line in lines[1::2]]
        return [line.removeprefix(START) + arrived for line, arrived in zip(lines[::2], there, strict=True)]


@pytest.fixture
def site(server: Server, tmp_path: Path) -> Site:
    return Site(server, tmp_path)


def test_units_are_started_in_their_order_around_the_run(site: Site) -> None:
    site.declare(["dump.service", "freeze@db.service"], ["thaw.service"])
    record = site.server.run("dumped")
    assert record["state"] == "equal"
    assert site.asked() == ["dump.service", "freeze@db.service", "thaw.service arrived"]
    told = [(one["unit"], one["error"]) for phase in ("before", "after") for one in record[phase]]
    assert told == [("dump.service", None), ("freeze@db.service", None), ("thaw.service", None)]
    assert record["after"][0]["ended"] <= record["ended"]
    shown = site.server.serversync("show", "dumped").stdout
    assert "\nbefore dump.service: done, " in shown
    assert "\nafter thaw.service: done, " in shown


def test_one_that_fails_before_the_run_fails_it_before_anything_moves(site: Site) -> None:
    site.declare(["a.service", "fail.service", "b.service"], ["thaw.service"], on_error={"retries": 3, "delay": "1s"})
    record = site.server.run("dumped", code=1)
    assert (record["state"], record["attempts"], record["elements"][0]["state_after"]) == ("failed", [], "skipped")
    message = "Job for fail.service failed because the control process exited with error code"
    assert record["error"] == {
        "code": "before",
        "field": "before[1].unit",
        "message": f"fail.service: {message}; see: journalctl --user -u fail.service",
        "transient": False,
    }
    assert site.asked() == ["a.service", "fail.service", "thaw.service"]
    assert not (site.root / "target").exists()
    assert (
        f"before fail.service: before[1].unit: fail.service: {message}"
        in site.server.serversync("show", "dumped").stdout
    )


def test_one_that_fails_after_the_run_makes_it_a_failed_one_and_the_others_are_tried(site: Site) -> None:
    site.declare([], ["fail-thaw.service", "umount.service"])
    record = site.server.run("dumped", code=1)
    assert (record["state"], record["elements"][0]["state_after"]) == ("failed", "equal")
    assert (record["error"]["code"], record["error"]["field"]) == ("after", "after[0].unit")
    assert site.asked() == ["fail-thaw.service arrived", "umount.service arrived"]


def test_after_a_failed_run_its_own_error_comes_first(site: Site) -> None:
    (site.root / "source" / "file").unlink()
    (site.root / "source").rmdir()
    site.declare([], ["fail-thaw.service"])
    record = site.server.run("dumped", code=1)
    assert record["error"]["code"] == "missing"
    assert record["after"][0]["error"]["code"] == "after"


def test_a_plan_starts_nothing(site: Site) -> None:
    site.declare(["dump.service"], ["thaw.service"])
    for command in ("plan", "conflicts", "versions"):
        site.server.serversync(command, "dumped")
    assert not (site.root / "asked").exists()


def test_a_run_that_is_stopped_starts_what_comes_after_it(site: Site) -> None:
    os.mkfifo(site.root / "fifo")
    site.declare(["wait.service"], ["thaw.service"])
    process = subprocess.Popen(site.server.command("run", "dumped"), env=site.server.environment)
    # Opened once the unit waits.
    with (site.root / "fifo").open("w"):
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
    assert site.asked() == ["wait.service", "thaw.service"]
    record = json.loads(site.server.serversync("show", "dumped", "--json").stdout)
    assert (record["state"], record["error"]["code"]) == ("failed", "stopped")


def test_a_runner_that_was_killed_leaves_what_comes_after_to_systemd(site: Site) -> None:
    site.declare([], ["thaw.service", "umount.service"])
    site.server.extra["EXIT_CODE"] = "exited"
    site.server.serversync("died", "dumped")
    assert not (site.root / "asked").exists()
    site.server.extra["EXIT_CODE"] = "killed"
    site.server.serversync("died", "dumped")
    line = (site.root / "asked").read_text().splitlines()[0]
    assert line == "--user --no-ask-password start --no-block -- thaw.service umount.service"
