# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trees that are too much for a campaign of many: 100,000 entries in one directory, a tebibyte of holes.

python tests/faults/extremes.py
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.faults.campaign import disk
from tests.faults.world import Ended, World
from tests.loopback import Pair, loopback
from tests.processes import kill

ENTRIES = 100_000
EPOCH = 1_600_000_000


def names(root: Path) -> dict[str, tuple[int, int]]:
    with os.scandir(root) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries if entry.name != ".serversync"}
    return {name: (info.st_size, info.st_mtime_ns) for name, info in found.items()}


def killed(world: World, kind: str, after: float) -> Ended:
    """A run of which one process of this kind is killed so many seconds from its start, or as soon as there is one."""
    process = world.start()
    with suppress(subprocess.TimeoutExpired):
        process.wait(after)
    while process.poll() is None:
        victims = [one for one in world.family(process) if one.kind == kind]
        if victims and kill(victims[0]):
            break
    return world.end(process)


def many_entries(pair: Pair, rng: random.Random) -> list[str]:
    """Copied, killed again and again on the way, and edited in many places."""
    world = World(pair, "many", {"direction": "both", "conflict": "newer_wins", "delete": "synced"})
    for number in range(ENTRIES):
        path = world.here / f"{number:06} {'n' * (number % 240)}"
        path.write_text(str(number))
        os.utime(path, (EPOCH + number, EPOCH + number))
    for kind, after in (("runner", 3.0), ("serve", 2.0), ("ssh", 3.0), ("runner", 4.0)):
        print(f"  {kind} killed: {killed(world, kind, after).outcome}", flush=True)
    wrong = done(world, world.run_through())
    for number, path in enumerate(sorted(world.there.iterdir())):
        if path.name not in ("anchor", ".serversync") and number % 50 == 0:
            path.unlink()
        elif path.name not in ("anchor", ".serversync") and number % 50 == 1:
            path.write_text("changed there")
    killed(world, "runner", rng.uniform(1, 8))
    return wrong + done(world, world.run_through())


def done(world: World, ended: Ended) -> list[str]:
    wrong = (
        [] if ended.outcome == "equal" else [f"L11: the run ended {ended.outcome}: {ended.why or ended.said[-300:]}"]
    )
    here, there = names(world.here), names(world.there)
    if here != there:
        wrong.append(f"L5: {len(here.items() ^ there.items())} of {len(here)} entries differ")
    [element] = (world.run_through().record or {"elements": [{}]})["elements"]
    told = {name: element.get(name) for name in ("created", "updated", "deleted", "bytes") if element.get(name)}
    print(f"  {len(here)} entries, {ended.outcome}", flush=True)
    return wrong + ([f"L4: a run with nothing to do says {told}"] if told else [])


def tebibyte(pair: Pair, _rng: random.Random) -> list[str]:
    """A file that holds next to nothing, and takes longer to read than anyone waits: killed on its way, then gone."""
    world = World(pair, "holes", {"direction": "to_partner"})
    (world.here / "other").write_text("goes over")
    wrong = [] if world.run().outcome == "equal" else ["a small file did not go over"]
    with (world.here / "holes").open("wb") as stream:
        stream.truncate(1 << 40)
        stream.seek(1 << 39)
        stream.write(b"in the middle")
    before = world.look().there
    process = world.start()
    # Nothing tells when rsync has begun with it.
    while not list(world.there.glob(".serversync/*/stage/**/.holes.*")):
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            break
    process.kill()
    ended = world.end(process)
    print(f"  {ended.outcome} on its way", flush=True)
    if world.look().there != before:
        wrong.append(f"L2: what is on its way is to be seen on the target; the run ended {ended.outcome}")
    (world.here / "holes").unlink()
    ended = world.run_through()
    if ended.outcome != "equal" or world.look().there != before:
        wrong.append(f"L11: without it the run ended {ended.outcome}: {ended.why}")
    if list(world.there.glob(".serversync/*/stage/**/.holes.*")):
        wrong.append("L11: what was on its way is still in the stage")
    return wrong


def main() -> int:
    wrong = []
    with tempfile.TemporaryDirectory(prefix="serversync-extremes-") as name:
        for played in (tebibyte, many_entries):
            begun = time.monotonic()
            directory = Path(name, played.__name__)
            directory.mkdir()
            print(f"{played.__name__}:", flush=True)
            with disk(directory), loopback(directory) as pair:
                found = played(pair, random.Random(0))
            print(json.dumps(found) if found else f"  every law kept, {time.monotonic() - begun:.0f} s", flush=True)
            wrong += found
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
