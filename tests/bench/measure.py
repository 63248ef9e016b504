# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a time is taken: ours and the peers in turn, the data checked before it counts, the machine on record."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.loopback import PACKAGE, ROOT, Pair
from tests.processes import family, memory

OURS = "serversync"


class Wrong(Exception):
    """What was measured did not do the work: no time of it counts."""


@dataclass
class Contender:
    """One way to do the work.

    run: does it once, and is timed; target: where it writes, for sync -f (None: it writes nothing); reset: what has to
    be as before, untimed; shown: the command as a person would type it.
    """

    name: str
    run: Callable[[], object]
    shown: str = ""
    target: Path | None = None
    reset: Callable[[], object] = lambda: None


@dataclass
class Bar:
    """Ours may take ``ratio`` times as long as the peer, and ``plus`` seconds."""

    peer: str
    ratio: float
    plus: float = 0.0

    def __str__(self) -> str:
        return f"≤ {self.ratio:g} x" + (f" + {self.plus:g} s" if self.plus else "")


@dataclass
class Fact:
    """One figure that is not a time against a peer's; limit None: reported, not judged."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "held": None if self.limit is None else self.value <= self.limit}


@dataclass
class Work:
    """One line of the table: what is done, by whom, and how it is known to be done.

    prepare(n) makes the n-th round's work, untimed (0 is the warm-up); check() raises Wrong where a result is not
    what it has to be, after every round (each) or after the warm-up and the last one.
    """

    title: str
    contenders: list[Contender]
    bars: list[Bar] = field(default_factory=list)
    prepare: Callable[[int], object] = lambda _round: None
    check: Callable[[], object] = lambda: None
    each: bool = True
    cold: bool = False


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def measure(work: Work, rounds: int) -> dict[str, Any]:
    """Every contender in turn, ``rounds`` times after a warm-up; the times, and how the bars stand."""
    times: dict[str, dict[str, list[float]]] = {
        contender.name: {"seconds": [], "sync": []} for contender in work.contenders
    }
    loads = [os.getloadavg()[0]]
    for number in range(rounds + 1):
        work.prepare(number)
        for contender in work.contenders:
            contender.reset()
            if work.cold:
                drop_caches()
            begun = time.perf_counter()
            contender.run()
            done = time.perf_counter()
            if contender.target is not None:
                subprocess.run(["sync", "-f", str(contender.target)], check=True)
            synced = time.perf_counter()
            if number:
                times[contender.name]["seconds"].append(done - begun)
                times[contender.name]["sync"].append(synced - done)
            say(f"  {number or 'warm-up':>7}  {contender.name:<28}{done - begun:9.3f} s")
        loads.append(os.getloadavg()[0])
        if work.each or number in (0, rounds):
            work.check()
    result: dict[str, Any] = {"title": work.title, "rounds": rounds, "load": [min(loads), max(loads)], "contenders": []}
    for contender in work.contenders:
        taken = times[contender.name]
        # Ours has synced what it wrote before it ends; a peer is not done before that is done for it.
        counted = taken["seconds"]
        if contender.name != OURS and contender.target is not None:
            counted = [sum(both) for both in zip(taken["seconds"], taken["sync"], strict=True)]
        result["contenders"].append(
            {"name": contender.name, "command": contender.shown, "writes": contender.target is not None, **taken}
            | {"counted": counted, "median": statistics.median(counted)}
            | {"unsynced": statistics.median(taken["seconds"]), "then_sync": statistics.median(taken["sync"])}
        )
    result["bars"] = [judge(one, result["contenders"]) for one in work.bars]
    return result


def judge(limit: Bar, contenders: list[dict[str, Any]]) -> dict[str, Any]:
    medians = {contender["name"]: contender["median"] for contender in contenders}
    ours, peer = medians[OURS], medians[limit.peer]
    return {
        "peer": limit.peer,
        "bar": str(limit),
        "ratio": ours / peer,
        "held": ours <= limit.ratio * peer + limit.plus,
    }


def peak(pair: Pair, run: Callable[[], object]) -> dict[str, int]:
    """Runs it, and returns the most memory that all processes of each side had at once, in bytes.

    This side's are the descendants of this process, the partner's those of its sshd.
    """
    found = {"this server": 0, "partner": 0}
    stop = threading.Event()
    assert pair.there.process is not None
    door = pair.there.process.pid
    # A process of its own between us and what is run: its descendants are all there is to it.
    worker = os.fork()
    if worker == 0:
        code = 1
        with suppress(Exception):
            run()
            code = 0
        os._exit(code)

    def watch() -> None:
        while not stop.wait(0.05):
            for side, top in (("this server", worker), ("partner", door)):
                found[side] = max(found[side], sum(memory(process.pid) for process in family([top])))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _pid, status = os.waitpid(worker, 0)
    stop.set()
    watcher.join()
    if status:
        raise Wrong("what was watched failed")
    return found


def output(*argv: str) -> str:
    """The first line that a command prints, or that it is not there."""
    if shutil.which(argv[0]) is None:
        return "not installed"
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().split("\n")[0]


def mount(path: Path) -> tuple[str, str]:
    """Kind and mount options of the file system that holds the path, and of the one that holds its image."""
    best = ("", "", "", "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _dash, rest = line.partition(" - ")
        point = fields.split()[4]
        inside = str(path) == point or str(path).startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            kind, device, options = rest.split()[:3]
            best = (point, kind, ",".join([fields.split()[5], options]), device)
    _point, kind, options, device = best
    image = Path("/sys/block", Path(device).name, "loop", "backing_file")
    if image.exists():
        kind = f"{kind} in a file on {mount(Path(image.read_text().strip()))[0]}"
    return kind, options


def environment(directory: Path) -> dict[str, Any]:
    """What a time depends on beside the programs: machine, file system, versions."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    kind, options = mount(directory)
    git = ["git", "-C", str(PACKAGE if PACKAGE.exists() else ROOT)]
    commit = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True, check=False)
    # What the cases write of themselves is no change of what is measured.
    product = ["HEAD", "--", ":/roles", ":/plugins"]
    differs = subprocess.run([*git, "diff", "--quiet", *product], capture_output=True, check=False).returncode == 1
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": model,
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "file system": kind,
        "mount options": options,
        "account": "root" if os.geteuid() == 0 else "an ordinary user",
        "runner": commit.stdout.strip() + "-dirty" * differs or "outside git",
        "python": platform.python_version(),
        "rsync": output("rsync", "--version"),
        "unison": output("unison", "-version"),
        "ssh": output("ssh", "-V"),
        "tar": output("tar", "--version"),
        "date": time.strftime("%Y-%m-%d"),
    }
