# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Analyses a fleet of so many servers with so many jobs each, and prints the seconds of every round as JSON.

python tests/bench/circles.py SERVERS JOBS ROUNDS, with this collection on PYTHONPATH
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from ansible_collections.serversync.core.plugins.module_utils._fleet import Server
from ansible_collections.serversync.core.plugins.module_utils._job import declare
from ansible_collections.serversync.core.plugins.module_utils._topology import analyse

# Of so many servers each, the last of which gives back to the first what it has got.
RING = 10


def fleet(servers: int, jobs: int) -> list[Server]:
    """Each server has one job to the next one in its ring, and others that lead to headquarters."""

    def job(name: str, host: str, path: str, partner_path: str) -> dict[str, Any]:
        given = {"name": name, "partner": {"host": host}, "elements": [{"path": path, "partner_path": partner_path}]}
        made, problems = declare(given)
        assert made is not None, problems
        return made

    made = []
    for number in range(servers):
        ring, place = divmod(number, RING)
        following = f"s{ring * RING + (place + 1) % RING}"
        mine = [job("ring", following, "/srv/ring", "/srv/ring")]
        mine += [job(f"up{one}", "hq", f"/srv/line{one}", f"/srv/sites/s{number}/{one}") for one in range(1, jobs)]
        made.append(Server(f"s{number}", mine))
    return [*made, Server("hq")]


def main() -> None:
    servers, jobs, rounds = map(int, sys.argv[1:])
    made = fleet(servers, jobs)
    times = []
    for _round in range(rounds + 1):
        begun = time.perf_counter()
        found = analyse(made)
        times.append(time.perf_counter() - begun)
        circles = [one for one in found.findings if one.level == "error"]
        assert len(circles) == servers // RING, len(circles)
    print(json.dumps(times[1:]))


main()
