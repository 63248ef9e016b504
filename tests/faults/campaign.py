# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole runs over real ssh, disturbed in every way there is, each judged by the laws and by the model.

    python tests/faults/campaign.py                    failing seeds first, then on until 500 processes were killed
    python tests/faults/campaign.py --kills 20         a short one
    python tests/faults/campaign.py --only stall,full  these faults
    python tests/faults/campaign.py --parallel 4       so many scenarios at a time, each between two servers of its own
    python tests/faults/campaign.py --seed 4711 --scenarios 1 --tell   one scenario again, with its edits

A scenario is a job with settings, trees and odd names drawn from a seed; each of its rounds has edits on both sides, a
disturbed run, and a run that is left alone, which has to end where an undisturbed one would have. A seed that fails is
kept in tests/faults/seeds/ and played again at the beginning of every campaign until its file is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.faults.disturb import FAULTS, Stand, have, possible
from tests.faults.logs import LogScenario
from tests.faults.scenario import SEEDS, Scenario
from tests.faults.world import ROOT
from tests.loopback import ROOT as REPOSITORY
from tests.loopback import Pair, loopback
from tests.proxy import Proxy
from tests.sftp import SftpPair, sftp_loopback


@contextmanager
def disk(directory: Path) -> Iterator[None]:
    """A file system of our own and in memory at the directory, where that can be: a run that waits for the disk waits
    for nobody else's data then."""
    memory = Path("/dev/shm")  # noqa: S108 - the name in it is a random one
    room = os.statvfs(memory) if memory.exists() else None
    if not ROOT or not have("mkfs.ext4") or room is None or room.f_bavail * room.f_frsize < SIZE:
        yield
        return
    with tempfile.NamedTemporaryFile(dir=memory, prefix="serversync-") as image:
        os.truncate(image.name, SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-F", image.name], check=True)
        argv = ["mount", "-o", "loop,discard", image.name, str(directory)]
        mounted = subprocess.run(argv, capture_output=True, check=False).returncode == 0
        try:
            yield
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(directory)], check=True)


@contextmanager
def stand(directory: Path) -> Iterator[dict[str, Stand]]:
    """Where scenarios are played, by the connection that they have to their partner."""
    with ExitStack() as held:
        places = {}
        for connection, servers in (("ssh", loopback), ("sftp", sftp_loopback)):
            (directory / connection).mkdir(parents=True)
            pair: Pair | SftpPair = held.enter_context(servers(directory / connection))  # type: ignore[operator]
            proxy = held.enter_context(Proxy(pair.there.port))
            pair.port = proxy.port
            state = pair.here.home / ".local" / "state"
            state.mkdir(parents=True)
            argv = ["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=4000", "tmpfs", str(state)]
            mounts = ROOT and subprocess.run(argv, capture_output=True, check=False).returncode == 0
            if mounts:
                held.callback(subprocess.run, ["umount", "-l", str(state)], check=True)
            places[connection] = Stand(directory, pair, proxy, mounts)
        yield places


SIZE = 4 << 30
# What is synchronized: how often, its scenarios, and the connection to the partner.
KINDS: dict[str, tuple[int, type[Scenario], str]] = {
    "tree": (70, Scenario, "ssh"),
    "sftp": (15, Scenario, "sftp"),
    "log": (15, LogScenario, "ssh"),
}


def kind_of(seed: int, wanted: list[str]) -> str:
    names = [name for name in KINDS if name in wanted] or list(KINDS)
    return random.Random(f"kind of {seed}").choices(names, [KINDS[name][0] for name in names])[0]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="go on until so many processes were killed")
    parser.add_argument("--scenarios", type=int, default=0, help="stop after so many")
    parser.add_argument("--seed", type=int, default=None, help="the first one's; default: drawn, and told")
    parser.add_argument("--only", default="", help="these faults, with commas between")
    parser.add_argument("--kind", default="", help=f"scenarios of these kinds, of {', '.join(KINDS)}")
    parser.add_argument("--seconds", type=int, default=0, help="begin no scenario after so long")
    parser.add_argument("--parallel", type=int, default=1 + (os.cpu_count() or 1), help="scenarios at a time")
    parser.add_argument("--tally", type=Path, help="a file that adds up the counts of several campaigns")
    parser.add_argument("--no-replay", action="store_true", help="do not play the kept seeds first")
    parser.add_argument("--tell", action="store_true", help="tell every edit and outcome")
    chosen = parser.parse_args()
    chosen.only = [name for name in chosen.only.split(",") if name]
    chosen.kind = [name for name in chosen.kind.split(",") if name]
    unknown = set(chosen.only) - set(FAULTS)
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))} (there are {', '.join(FAULTS)})")
    if set(chosen.kind) - set(KINDS):
        parser.error(f"--kind: there are {', '.join(KINDS)}")
    return chosen


class Campaign:
    """Plays scenarios, some at a time, until enough processes were killed; what came of them all."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.first = secrets.randbelow(10**6) if chosen.seed is None else chosen.seed
        # By fault and outcome.
        self.counts: Counter[tuple[str, str]] = Counter()
        self.failed: list[int] = []
        self.played = self.started = self.runs = self.kills = 0
        self.begun = time.monotonic()
        # Seed, kind, and its faults (none: all).
        self.todo: list[tuple[int, str, list[str]]] = []
        self.kinds: Counter[str] = Counter()
        self.taking = threading.Lock()
        if chosen.seed is None and not chosen.no_replay:
            self.todo = [
                (kept["seed"], kept["kind"], kept["faults"])
                for kept in (json.loads(path.read_text()) for path in sorted(SEEDS.glob("*.json")))
            ]
            print(f"{len(self.todo)} kept seeds, then")
        print(f"from seed {self.first}, {chosen.parallel} scenarios at a time", flush=True)

    def next(self) -> tuple[int, str, list[str]] | None:
        """What is to be played next; None: it is enough."""
        chosen = self.chosen
        with self.taking:
            if not self.todo:
                enough = chosen.scenarios and self.started >= chosen.scenarios
                late = chosen.seconds and time.monotonic() - self.begun >= chosen.seconds
                if enough or late or self.kills >= chosen.kills:
                    return None
                self.todo.append((self.first, kind_of(self.first, chosen.kind), chosen.only))
                self.first += 1
            self.started += 1
            return self.todo.pop(0)

    def play(self, places: dict[str, Stand]) -> None:
        while (one := self.next()) is not None:
            seed, kind, only = one
            _weight, played, connection = KINDS[kind]
            scenario = played(places[connection], kind, seed, only, self.chosen.tell)
            try:
                scenario.play()
            except Exception as error:
                error.add_note(f"seed {seed}, {kind}")
                raise
            with self.taking:
                self.take(scenario)

    def take(self, scenario: Scenario) -> None:
        self.played += 1
        self.kills += scenario.kills
        self.runs += scenario.runs
        self.counts.update(scenario.counts)
        self.kinds[scenario.kind] += 1
        if scenario.wrong:
            self.failed.append(scenario.seed)
            print(f"seed {scenario.seed} FAILED, kept in {scenario.keep().relative_to(REPOSITORY)}")
            if not self.chosen.tell:
                print("\n".join(scenario.wrong[:6]), flush=True)
        if self.played % 10 == 0:
            print(self.so_far(), flush=True)

    def add_up(self, tally: Path) -> None:
        """Adds what earlier campaigns came to, and keeps the sum."""
        seconds = time.monotonic() - self.begun
        if tally.exists():
            old = json.loads(tally.read_text())
            self.counts.update({(fault, outcome): count for fault, outcome, count in old["counts"]})
            self.kinds.update(old["kinds"])
            self.failed += old["failed"]
            self.played += old["played"]
            self.runs += old["runs"]
            self.kills += old["kills"]
            self.begun -= old["seconds"]
            seconds += old["seconds"]
        counts = [[fault, outcome, count] for (fault, outcome), count in sorted(self.counts.items())]
        sums = {"played": self.played, "runs": self.runs, "kills": self.kills, "failed": self.failed}
        tally.write_text(json.dumps({"counts": counts, "kinds": self.kinds, **sums, "seconds": seconds}))

    def so_far(self) -> str:
        told = f"{self.played} scenarios, {self.runs} runs, {self.kills} kills, {len(self.failed)} failed"
        return f"{told}, {time.monotonic() - self.begun:.0f} s"


def main() -> int:
    chosen = arguments()
    campaign = Campaign(chosen)
    with tempfile.TemporaryDirectory(prefix="serversync-faults-") as name, ExitStack() as held:
        held.enter_context(disk(Path(name)))
        places = []
        for number in range(chosen.parallel):
            directory = Path(name, str(number))
            directory.mkdir()
            places.append(held.enter_context(stand(directory)))
        for fault, reason in possible(places[0]["ssh"]).items():
            print(f"not here: {fault} ({reason})", flush=True)
        with ThreadPoolExecutor(chosen.parallel) as pool:
            for future in [pool.submit(campaign.play, place) for place in places]:
                future.result()
    if chosen.tally:
        campaign.add_up(chosen.tally)
    show(campaign.counts)
    print(", ".join(f"{campaign.kinds[kind]} scenarios of kind {kind}" for kind in KINDS))
    print(campaign.so_far())
    if campaign.failed:
        print(f"failed: {', '.join(map(str, sorted(campaign.failed)))}")
    return 1 if campaign.failed else 0


def show(counts: Counter[tuple[str, str]]) -> None:
    """Faults against what the disturbed runs came to."""
    outcomes = sorted({outcome for _fault, outcome in counts})
    print(f"\n{'fault':<18}{'runs':>6}" + "".join(f"{outcome[:12]:>14}" for outcome in outcomes))
    for fault in FAULTS:
        row = [counts[fault, outcome] for outcome in outcomes]
        if any(row):
            print(f"{fault:<18}{sum(row):>6}" + "".join(f"{count or '':>14}" for count in row))


if __name__ == "__main__":
    sys.exit(main())
