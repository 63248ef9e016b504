# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole runs over real ssh, disturbed in every way there is, each judged by the laws and by the model.

    python tests/faults/campaign.py                    failing seeds first, then on until 500 processes were killed
    python tests/faults/campaign.py --kills 20         a short one
    python tests/faults/campaign.py --only stall,full  these faults
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
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.faults import laws
from tests.faults.edits import NAMES, ORDINARY, Editor, apply, content
from tests.faults.observe import State, is_copy, look
from tests.faults.world import ROOT, Ended, World, known_settings
from tests.loopback import ROOT as REPOSITORY
from tests.loopback import Pair, loopback
from tests.processes import kill
from tests.proxy import Proxy

SEEDS = Path(__file__).resolve().parent / "seeds"
ROUNDS = 3
DAY = 86_400 * 10**9
# States of a run that came to its end.
FINISHED = ("equal", "equal_with_warnings", "different")


@dataclass
class Disturbed:
    """What came of a disturbed run.

    kills: processes that were killed; edited: users wrote meanwhile, so that no prediction holds; forgot: whether the
    archive may be gone for the runner now; away: whether the run saw other replicas than there are now; skew: by how
    much the clocks were apart, ns; note: what was done, in words.
    """

    ended: list[Ended]
    kills: int = 0
    edited: bool = False
    forgot: bool = False
    away: bool = False
    skew: int = 0
    note: str = ""
    wrong: list[str] = field(default_factory=list)


Fault = Callable[[World, random.Random, "Stand"], Disturbed]


@dataclass
class Stand:
    """What the campaign runs on."""

    directory: Path
    pair: Pair
    proxy: Proxy
    # Whether this account may mount file systems.
    mounts: bool


# -- faults ----------------------------------------------------------------------------------------------------------


def moment(world: World, rng: random.Random) -> float:
    """Seconds into a run: the later half, where data moves, is the more interesting one."""
    return world.usual * 1.1 * rng.betavariate(1.6, 1.1)


def kill_one(kind: str) -> Fault:
    def fault(world: World, rng: random.Random, stand: Stand) -> Disturbed:
        process = world.start()
        killed = 0
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment(world, rng))
        while process.poll() is None and not killed:
            those = [member for member in world.family(process) if member.kind == kind]
            if kind == "runner":
                those = those[:1] if those else []
            killed = sum(kill(victim) for victim in rng.sample(those, min(1, len(those))))
        ended = world.end(process)
        return Disturbed([ended], killed, note=f"kill -9 {kind}" if killed else f"no {kind} to be killed")

    return fault


# What a run asks of the kernel that leaves something behind.
CALLS = ["renameat2", "rename", "unlinkat", "unlink", "mkdirat", "linkat", "symlinkat", "fsync", "fdatasync", "syncfs"]
CALLS += ["pwrite64", "ftruncate", "utimensat", "fchmod", "fchown"]


def at_call(what: str, calls: list[str]) -> Fault:
    """Killed, or told an error, at the n-th call of a kind, on one of both servers."""

    def fault(world: World, rng: random.Random, stand: Stand) -> Disturbed:
        call, number, here = rng.choice(calls), rng.choice([1, 1, 2, 3, 5, 8, 13]), rng.random() < 0.5
        logs = Path(tempfile.mkdtemp(prefix="strace-", dir=stand.directory))
        injected = f"{call}:signal=KILL:when={number}" if what == "kill" else f"{call}:error={what}:when={number}"
        wrapper = ["strace", "-f", "-ff", "-qq", "-o", str(logs / "log"), f"--trace={call}", f"--inject={injected}"]
        if here:
            world.pair.here.wrapper = wrapper
        else:
            world.pair.there.wrap(*wrapper)
        try:
            ended = world.run()
        finally:
            world.pair.here.wrapper = ()
            world.pair.there.wrap()
        text = "".join(path.read_text(errors="replace") for path in logs.iterdir())
        shutil.rmtree(logs)
        hits = text.count("+++ killed by SIGKILL +++") if what == "kill" else text.count("(INJECTED)")
        side = "here" if here else "there"
        done = Disturbed(
            [ended], hits if what == "kill" else 0, note=f"{what} at {call} {number}, {side}: {hits} times"
        )
        if what != "kill" and hits:
            # Whatever it broke, also the interpreter on its way up: the data is what counts.
            ended.code = 1 if ended.code == 70 else ended.code
        return done

    return fault


def with_link(change: Callable[[random.Random], dict[str, Any]], after: dict[str, Any]) -> Fault:
    """The link changes in the midst of a run, and for some changes once more a little later."""

    def fault(world: World, rng: random.Random, stand: Stand) -> Disturbed:
        process = world.start()
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment(world, rng))
        request = change(rng)
        stand.proxy.call(**request)
        if after:
            with suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.2, 2.0))
            stand.proxy.call(**after)
        try:
            return Disturbed([world.end(process)], note=f"link {request}")
        finally:
            stand.proxy.call(delay=0, bandwidth=None, stall=False, refuse=False)

    return fault


def stalled_for_good(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    """The link stalls, the runner is killed meanwhile, and the partner learns of it late."""
    process = world.start()
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment(world, rng))
    stand.proxy.call(stall=True)
    time.sleep(rng.uniform(0, 0.5))
    killed = 0
    if process.poll() is None:
        process.kill()
        killed = 1
    ended = world.end(process)
    stand.proxy.call(stall=False)
    return Disturbed([ended], killed, note="link stalled, runner killed")


def partner_away(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    before = world.look()
    stand.proxy.call(refuse=True, reset=True)
    try:
        ended = world.run()
    finally:
        stand.proxy.call(refuse=False)
    wrong = laws.untouched(before, world.look(), "the partner was away")
    if ended.outcome != "failed":
        wrong.append(f"the partner was away, and the state is {ended.outcome}")
    return Disturbed([ended], note="partner away", wrong=wrong)


@contextmanager
def filled(directory: Path, rng: random.Random, inodes: bool) -> Iterator[None]:
    """All but a little of a small file system is taken."""
    filler = directory / "filler"
    filler.mkdir()
    try:
        with suppress(OSError):
            number = 0
            while inodes and os.statvfs(directory).f_ffree > 0:
                number += 1
                (filler / str(number)).touch()
            for spare in range(rng.randrange(8) if inodes else 0):
                (filler / str(number - 1 - spare)).unlink(missing_ok=True)
            if not inodes:
                free = os.statvfs(directory)
                leave = rng.choice([0, 4096, 65536, 262_144])
                with open(filler / "data", "wb") as stream:
                    os.posix_fallocate(stream.fileno(), 0, max(1, free.f_bavail * free.f_frsize - leave))
        yield
    finally:
        shutil.rmtree(filler)


def full(where: str, inodes: bool) -> Fault:
    def fault(world: World, rng: random.Random, stand: Stand) -> Disturbed:
        directory = stand.pair.here.home / ".local" / "state" if where == "archive" else world.target.parent
        with filled(directory, rng, inodes):
            ended = world.run()
        if where == "archive" and ended.code == 70 and "Traceback" not in ended.said:
            # Without room for its record the runner cannot tell; it says so by this code.
            ended.code = 1
        return Disturbed([ended], note=f"{where}'s disk {'without inodes' if inodes else 'full'}")

    return fault


def read_only(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    before = world.look()
    mount = str(world.target.parent)
    subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
    try:
        ended = world.run()
    finally:
        subprocess.run(["mount", "-o", "remount,rw", mount], check=True)
    # With both directions this server's side may be brought up to date all the same.
    after = world.look()
    side = "there" if world.target == world.there else "here"
    wrong = [] if getattr(before, side) == getattr(after, side) else ["a read-only replica was changed"]
    return Disturbed([ended], note="target read-only", wrong=wrong)


def locked_files(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    """Some files of the target are immutable."""
    every = [os.path.join(os.fsencode(world.target), path) for path, node in files(world, world.target)]
    those = rng.sample(every, min(len(every), 3))
    if those:
        subprocess.run([b"chattr", b"+i", b"--", *those], check=True, capture_output=True)
    try:
        ended = world.run()
    finally:
        if those:
            subprocess.run([b"chattr", b"-i", b"--", *those], check=True, capture_output=True)
    return Disturbed([ended], note=f"{len(those)} files immutable")


def files(world: World, root: Path) -> list[tuple[bytes, Any]]:
    state = world.look()
    found = state.here if root == world.here else state.there
    return sorted((path, node) for path, node in found.items() if node.kind == "f")


def unreadable(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    """A path of the source, or of the target, that the account may not read."""
    root = rng.choice([world.here, world.there])
    state = world.look()
    every = sorted(
        path for path, node in (state.here if root == world.here else state.there).items() if node.kind in "df"
    )
    if not every:
        return Disturbed([], note="nothing there to be unreadable")
    path = os.path.join(os.fsencode(root), rng.choice(every))
    mode = os.stat(path).st_mode & 0o7777
    os.chmod(path, 0)
    try:
        ended = world.run()
    finally:
        os.chmod(path, mode)
    return Disturbed([ended], note=f"{path!r} unreadable")


def vanished(emptied: bool) -> Fault:
    def fault(world: World, rng: random.Random, stand: Stand) -> Disturbed:
        root = rng.choice([world.here, world.there])
        if emptied and not world.archives():
            return Disturbed([], note="nothing is remembered yet: empty is what it may be")
        before = world.look()
        away = root.with_name(f"{root.name}.away")
        root.rename(away)
        if emptied:
            root.mkdir()
        ended = world.run()
        after = world.look()
        wrong = []
        other = "there" if root == world.here else "here"
        if getattr(before, other) != getattr(after, other):
            wrong.append(f"L7: {root.name} was {'emptied' if emptied else 'gone'}, and the other side was changed")
        if root.exists():
            shutil.rmtree(root)
        away.rename(root)
        return Disturbed([ended], away=True, note=f"a root {'empty' if emptied else 'gone'}", wrong=wrong)

    return fault


def archive_fault(kind: str) -> Fault:
    def fault(world: World, rng: random.Random, stand: Stand) -> Disturbed:
        those = [Path(path) for path in world.archives() if path.endswith(".sqlite")]
        if not those:
            return Disturbed([], note="no archive yet")
        path = rng.choice(those)
        with suppress(FileNotFoundError):
            Path(f"{path}-wal").unlink()
        with suppress(FileNotFoundError):
            Path(f"{path}-shm").unlink()
        data = bytearray(path.read_bytes())
        if kind == "remove":
            path.unlink()
        elif kind == "truncate":
            os.truncate(path, rng.randrange(len(data)))
        elif kind == "flip":
            for _time in range(rng.choice([1, 3, 50])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        elif kind == "old":
            old = OLD_ARCHIVES.get(world.name)
            if not old:
                return Disturbed([], note="no old archive yet")
            path.write_bytes(rng.choice(old))
        return Disturbed([], forgot=True, note=f"archive: {kind}")

    return fault


# The archives of a job after each of its rounds, as a backup would have them.
OLD_ARCHIVES: dict[str, list[bytes]] = {}


def replica_of_old(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    """A replica is restored from a backup of some rounds ago, marker and all."""
    root = rng.choice([world.here, world.there])
    backup = root.with_name(f"{root.name}.backup")
    if not backup.exists():
        subprocess.run(["cp", "-a", "--", str(root), str(backup)], check=True)
        return Disturbed([], note="a backup was made")
    shutil.rmtree(root)
    backup.rename(root)
    return Disturbed([], forgot=True, note="a replica restored from its backup")


def clock(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    here, days = rng.random() < 0.5, rng.choice(["+1d", "-1d"])
    wrapper = ["env", "NO_FAKE_STAT=1", "faketime", "-f", days]
    if here:
        world.pair.here.wrapper = wrapper
    else:
        world.pair.there.wrap(*wrapper)
    try:
        ended = world.run()
    finally:
        world.pair.here.wrapper = ()
        world.pair.there.wrap()
    return Disturbed([ended], skew=DAY, note=f"clock {days} {'here' if here else 'there'}")


def two_at_once(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    first = world.start()
    time.sleep(rng.uniform(0, world.usual))
    second = world.start()
    ended = [world.end(first), world.end(second)]
    wrong = [] if any(not one.skipped for one in ended) else ["of two runs at once both were skipped"]
    return Disturbed(ended, note="two runs at once", wrong=wrong)


def storm(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    """Users go on writing on both sides while the run is on: files grow, shrink, vanish, turn into links."""
    before = world.observe()
    taken: set[bytes] = set()
    written: list[tuple[int, bytes]] = []
    over = threading.Event()
    editors = [Editor(random.Random(rng.random()), f"{world.name}-storm{side}", names=ORDINARY) for side in (0, 1)]

    def write() -> None:
        while not over.is_set():
            side = rng.randrange(2)
            root = world.roots[side]
            with suppress(OSError):
                edit = editors[side].draw(root)
                if edit is None:
                    continue
                full_path = os.path.join(root, edit.path)
                for path in [full_path, *(os.path.join(full_path, name) for name in names_below(full_path))]:
                    node = look(path)
                    if node is not None:
                        taken.add(node.content)
                if apply(root, edit):
                    node = look(os.path.join(full_path, b"inside") if edit.do == "to_directory" else full_path)
                    if node is not None and node.kind in "fl":
                        world.known.add(node.content)
                        written.append((side, node.content))
            over.wait(rng.uniform(0, 0.03))

    process = world.start()
    writer = threading.Thread(target=write)
    writer.start()
    ended = world.end(process)
    over.set()
    writer.join()
    after = world.look()
    return Disturbed(
        [ended], edited=True, note=f"{len(written)} edits meanwhile", wrong=lost(before, after, taken, written)
    )


def names_below(path: bytes) -> list[bytes]:
    found = []
    for directory, _inner, names in os.walk(path):
        found += [os.path.relpath(os.path.join(directory, name), path) for name in names]
    return found


def lost(before: State, after: State, taken: set[bytes], written: list[tuple[int, bytes]]) -> list[str]:
    """L1 while users write: what nobody overwrote by hand is live somewhere, or in versions; names move."""
    there = {node.content for _side, tree, _versions in after.sides() for node in tree.values()}
    there |= {data for _side, _tree, versions in after.sides() for kept in versions.values() for data in kept}
    wrong = []
    for side, tree, _versions in before.sides():
        for path, node in tree.items():
            if node.kind == "f" and node.size and node.content not in taken | there:
                wrong.append(f"L1: {side}: the content of {path!r} is gone, and no user took it")
    wrong += [
        f"L1: what was written meanwhile is gone ({data.hex()[:8]})"
        for _side, data in written
        if data not in taken | there
    ]
    return wrong


def have(*programs: str) -> bool:
    return all(shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") for program in programs)


@dataclass
class Kind:
    """weight: how often; needs: what this machine has to have for it; small: on a small file system of its own."""

    fault: Fault
    weight: int
    needs: str = ""
    small: bool = False


FAULTS = {
    "none": Kind(lambda world, rng, stand: Disturbed([], note="nothing"), 3),
    "kill-runner": Kind(kill_one("runner"), 12),
    "kill-serve": Kind(kill_one("serve"), 8),
    "kill-ssh": Kind(kill_one("ssh"), 6),
    "kill-sshd": Kind(kill_one("sshd"), 3),
    "kill-rsync": Kind(kill_one("rsync"), 6),
    "kill-at-call": Kind(at_call("kill", CALLS), 12, "strace"),
    "stall-and-kill": Kind(stalled_for_good, 3),
    "eio": Kind(at_call("EIO", [*CALLS, "pread64", "getdents64"]), 3, "strace"),
    "enospc": Kind(
        at_call("ENOSPC", ["pwrite64", "mkdirat", "linkat", "renameat2", "fsync", "ftruncate"]), 2, "strace"
    ),
    "stall": Kind(with_link(lambda rng: {"stall": True}, {"stall": False}), 2),
    "reset": Kind(with_link(lambda rng: {"reset": True}, {}), 4),
    "delay": Kind(with_link(lambda rng: {"delay": rng.uniform(0.01, 0.2)}, {}), 1),
    "narrow": Kind(with_link(lambda rng: {"bandwidth": rng.uniform(2e4, 1e6)}, {"bandwidth": None}), 1),
    "away": Kind(partner_away, 1),
    "full": Kind(full("target", False), 3, "mount", small=True),
    "no-inodes": Kind(full("target", True), 2, "mount", small=True),
    "archive-full": Kind(full("archive", False), 2, "mount"),
    "read-only": Kind(read_only, 1, "mount", small=True),
    "immutable": Kind(locked_files, 1, "chattr"),
    "unreadable": Kind(unreadable, 2, "user"),
    "root-gone": Kind(vanished(False), 1),
    "root-empty": Kind(vanished(True), 1),
    "archive-removed": Kind(archive_fault("remove"), 1),
    "archive-truncated": Kind(archive_fault("truncate"), 2),
    "archive-flipped": Kind(archive_fault("flip"), 2),
    "archive-old": Kind(archive_fault("old"), 2),
    "replica-old": Kind(replica_of_old, 2),
    "clock": Kind(clock, 2, "faketime"),
    "two-runs": Kind(two_at_once, 2),
    "storm": Kind(storm, 6),
}


def possible(stand: Stand) -> dict[str, str]:
    """The faults that cannot be made here, and why."""
    return {
        name: reason
        for name, kind in FAULTS.items()
        for reason, missing in (
            ("needs root, to mount a file system", kind.needs == "mount" and not stand.mounts),
            ("needs root and chattr", kind.needs == "chattr" and not (ROOT and have("chattr"))),
            ("root may read everything", kind.needs == "user" and ROOT),
            (f"{kind.needs} is not installed", kind.needs in ("strace", "faketime") and not have(kind.needs)),
        )
        if missing
    }


# -- one scenario ----------------------------------------------------------------------------------------------------


def draw_settings(rng: random.Random) -> dict[str, Any]:
    """Settings that the runner under test knows; what it does not know it behaves as the first of these says."""
    known = known_settings()

    def choice(name: str, fallback: str) -> str:
        return rng.choice(known[name]["enum"]) if name in known else fallback

    settings: dict[str, Any] = {
        "direction": choice("direction", "to_partner"),
        "conflict": choice("conflict", "this_server_wins"),
        "delete": choice("delete", "never"),
        "verify": "checksum" if rng.random() < 0.15 else "metadata",
        "exclude": ["*.tmp"],
        "max_delete": "100%",
    }
    if "conflict" not in known:
        # Such a runner lets the source win.
        settings["conflict"] = {"to_partner": "this_server_wins", "from_partner": "partner_wins"}[settings["direction"]]
    if settings["direction"] == "both" and settings["delete"] == "extraneous":
        settings["delete"] = "synced"
    return settings


def odd(rng: random.Random, world: World) -> None:
    """Things that break what quotes, follows, recurses or reads to the end."""
    for root in rng.sample([world.here, world.there], rng.choice([1, 2])):
        if rng.random() < 0.3:
            deep = root / "/".join(f"level{level:02}" for level in range(64))
            deep.mkdir(parents=True)
            (deep / "bottom").write_bytes(content(f"{world.name}-deep-{root.name}", 10))
        if rng.random() < 0.1:
            with open(root / "sparse", "wb") as stream:
                stream.truncate(256 << 20)
                stream.seek(200 << 20)
                stream.write(content(f"{world.name}-sparse", 100))
        if rng.random() < 0.3:
            (root / "out").symlink_to(os.fsdecode(world.outside["here"]))
            (root / "theirs").symlink_to(os.path.join(os.fsdecode(world.outside["there"]), "theirs"))


class Scenario:
    """One seed, from its first tree to its last round; ``wrong`` is empty where all is as it has to be."""

    def __init__(self, stand: Stand, seed: int, only: list[str], tell: bool) -> None:
        self.stand = stand
        self.seed = seed
        self.tell = tell
        self.rng = random.Random(seed)
        impossible = possible(stand)
        self.faults = {
            name: kind for name, kind in FAULTS.items() if name not in impossible and (not only or name in only)
        }
        self.settings = draw_settings(self.rng)
        self.wrong: list[str] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.kills = 0
        self.story: list[str] = []

    def say(self, text: str) -> None:
        self.story.append(text)
        if self.tell:
            print(text, flush=True)

    def play(self) -> None:
        names = list(self.faults)
        chosen = self.rng.choices(names, [self.faults[name].weight for name in names], k=ROUNDS)
        with ExitStack() as held:
            roots = None
            if any(self.faults[name].small for name in chosen):
                roots = self.small_roots(held)
            world = World(self.stand.pair, f"seed-{self.seed}", self.settings, roots)
            held.callback(self.clear, world)
            self.say(f"seed {self.seed}: {json.dumps(self.settings)}")
            quiet = self.settings["verify"] == "checksum" and "verify" in known_settings()
            pool = ORDINARY if self.rng.random() < 0.4 else [*self.rng.sample(NAMES, 12), b"old.tmp"]
            large = self.rng.choice([0, 0, 400_000, 0 if roots else 6_000_000])
            editors = [
                Editor(self.rng, f"{self.seed}{side}", names=pool, quiet=quiet, large=large) for side in ("h", "t")
            ]
            editors[1].count = 1_000_000
            if not roots:
                odd(self.rng, world)
            for number, name in enumerate(chosen):
                for side, editor in enumerate(editors):
                    count = self.rng.choice([0, 10, 20]) if number == 0 else self.rng.randrange(8)
                    self.say(f"round {number}, edits {('here', 'there')[side]}:")
                    for edit in world.edit(editor, world.roots[side], count):
                        self.say(f"  {edit}")
                self.round(world, name, editors)
                if self.wrong:
                    return
                OLD_ARCHIVES.setdefault(world.name, []).extend(
                    Path(path).read_bytes() for path in world.archives() if path.endswith(".sqlite")
                )

    def round(self, world: World, name: str, editors: list[Editor]) -> None:
        """Disturbed, then left alone, then with nothing to do."""
        first = not world.archives()
        before, around = world.observe(), world.surroundings()
        world.model.rules = self.rules(world, deletions=not first or "delete" not in known_settings())
        disturbed = self.faults[name].fault(world, self.rng, self.stand)
        self.kills += disturbed.kills
        self.say(f"  {name}: {disturbed.note}; {', '.join(ended.outcome for ended in disturbed.ended) or 'no run'}")
        for outcome in [ended.outcome for ended in disturbed.ended] or ["no run"]:
            self.counts[name, outcome] += 1
        self.check(name, disturbed.wrong)
        world.predicted = world.model.predict(before.here, before.there)
        middle = world.look() if not disturbed.edited else world.observe()
        for ended in disturbed.ended:
            wrong = world.judge(
                before, middle, ended, alone=not (disturbed.edited or disturbed.forgot or disturbed.away)
            )
            self.check(name, [text for text in wrong if not (len(disturbed.ended) > 1 and text.startswith("state"))])
        self.check(name, world.claims() + laws.inside(around, world.surroundings()))
        predictions = [world.predicted]
        if disturbed.skew:
            world.model.rules = self.rules(world, world.model.rules.deletions, disturbed.skew)
            predictions.append(world.model.predict(before.here, before.there))
            world.model.rules = self.rules(world, world.model.rules.deletions)
        if disturbed.forgot or disturbed.edited:
            # What the runner knows now is more than anyone can say; it has to be one of these.
            middle = world.observe()
            remembered = dict(world.model.rows)
            if disturbed.edited:
                world.model.absorb(middle.here, middle.there)
            predictions = [world.model.predict(middle.here, middle.there)]
            world.model.forget()
            world.model.rules = self.rules(world, deletions=False)
            predictions.append(world.model.predict(middle.here, middle.there))
            world.model.rows = {} if disturbed.forgot else remembered
        elif self.rng.random() < 0.3 and any(ended.outcome != "equal" for ended in disturbed.ended):
            # Users do not wait for the run that mends it.
            doubtful = world.model.doubtful
            odd_one = len(disturbed.ended) > 1 or disturbed.away or disturbed.skew
            if not odd_one and disturbed.ended[0].outcome in FINISHED and not disturbed.ended[0].guarded:
                world.model.settle(world.predicted, middle.here, middle.there)
                world.model.rules = self.rules(world, deletions=True)
            else:
                # What was the same before it came to be archived only if the run got that far.
                early = {
                    path
                    for path in {*before.here} & {*before.there} - {*world.model.rows}
                    if world.model.same(before.here[path], before.there[path])
                }
                world.model.absorb(middle.here, middle.there)
                if not world.model.rules.deletions:
                    # How far the first run got with what it would not delete nobody knows.
                    world.model.doubt(middle.here, middle.there)
                world.model.doubtful = world.model.doubtful | early
            for side, editor in enumerate(editors):
                for edit in world.edit(editor, world.roots[side], 3):
                    self.say(f"  meanwhile {('here', 'there')[side]}: {edit}")
            middle = world.observe()
            predictions = [world.model.predict(middle.here, middle.there)]
            if not world.model.rules.deletions:
                # The first run may have got as far as to have an archive.
                world.model.rules = self.rules(world, deletions=True)
                predictions.append(world.model.predict(middle.here, middle.there))
            world.model.doubtful = doubtful
        if self.wrong:
            return
        world.predicted = predictions[0]
        ended = world.run_through()
        after = world.observe()
        self.say(f"  then: {ended.outcome} {ended.why}")
        loose = disturbed.edited or disturbed.forgot
        self.check(name, world.judge(middle, after, ended, alone=not disturbed.forgot, known=not loose))
        if ended.outcome not in FINISHED:
            self.check(name, [f"L11: left alone, the run ended {ended.outcome}: {ended.why or ended.said[-500:]}"])
        found = [world.model.differences(prediction, after.here, after.there) for prediction in predictions]
        if all(found) and not disturbed.edited:
            self.check(name, [f"L11: {text}" for text in min(found, key=len)])
        self.check(name, world.claims() + laws.inside(around, world.surroundings()))
        world.model.settle(predictions[found.index(min(found, key=len))], after.here, after.there)
        if loose:
            world.model.doubt(after.here, after.there)
        if self.wrong or (not loose and self.rng.random() < 0.5):
            return
        self.rest(world, name, after)

    def rest(self, world: World, name: str, after: State) -> None:
        """With nothing to do a run does nothing, and what differs stands for a reason."""
        again = world.run_through()
        last = world.observe()
        if name == "storm":
            # What moved under the hands of the first one is settled by the second; now it is at rest.
            world.model.adopt(last.here, last.there)
            again, after = world.run_through(), last
            last = world.observe()
        self.check(name, laws.idle(after, last, again.record or {}))

        def standing(path: bytes) -> bool:
            row = world.model.rows.get(path)
            stands = row is not None and row.status != "agreed"
            return stands or world.hidden(last, path) or is_copy(path) or world.predicted.is_loose(path)

        if name != "storm":
            self.check(name, laws.converged(last, standing, ROOT))

    def rules(self, world: World, deletions: bool, skew: int = 0) -> Any:
        return replace(world.model.rules, deletions=deletions, skew=skew)

    def check(self, name: str, wrong: list[str]) -> None:
        self.wrong += wrong
        for text in wrong[:20]:
            self.say(f"  WRONG ({name}): {text}")

    def small_roots(self, held: ExitStack) -> tuple[Path, Path]:
        """The target on a file system of 24 MiB and 600 inodes."""
        there = self.settings["direction"] != "from_partner"
        pair = self.stand.pair
        here = pair.path.parent / "replicas" / f"small-{self.seed}"
        partner = pair.partner_path.parent / f"small-{self.seed}"
        mount = partner if there else here
        for directory in (here, partner):
            directory.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,nr_inodes=600", "tmpfs", str(mount)], check=True)
        held.callback(subprocess.run, ["umount", "-l", str(mount)], check=True)
        return here / "data", partner / "data"

    def clear(self, world: World) -> None:
        for root in (world.here, world.there):
            for suffix in ("", ".backup", ".away"):
                shutil.rmtree(root.with_name(root.name + suffix), ignore_errors=True)
        OLD_ARCHIVES.pop(world.name, None)

    def keep(self) -> Path:
        SEEDS.mkdir(exist_ok=True)
        path = SEEDS / f"{self.seed}.json"
        kept = {"seed": self.seed, "settings": self.settings, "faults": sorted(self.faults), "wrong": self.wrong[:20]}
        path.write_text(json.dumps({**kept, "story": self.story[-120:]}, indent=1) + "\n")
        return path


# -- the campaign ----------------------------------------------------------------------------------------------------


@contextmanager
def stand(directory: Path) -> Iterator[Stand]:
    with ExitStack() as held:
        pair = held.enter_context(loopback(directory))
        proxy = held.enter_context(Proxy(pair.there.port))
        pair.port = proxy.port
        state = pair.here.home / ".local" / "state"
        state.mkdir(parents=True)
        mounts = (
            ROOT
            and not subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(state)], capture_output=True, check=False
            ).returncode
        )
        if mounts:
            held.callback(subprocess.run, ["umount", "-l", str(state)], check=True)
        yield Stand(directory, pair, proxy, mounts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="go on until so many processes were killed")
    parser.add_argument("--scenarios", type=int, default=0, help="stop after so many")
    parser.add_argument("--seed", type=int, default=None, help="the first one's; default: drawn, and told")
    parser.add_argument("--only", default="", help="these faults, with commas between")
    parser.add_argument("--no-replay", action="store_true", help="do not play the kept seeds first")
    parser.add_argument("--tell", action="store_true", help="tell every edit and outcome")
    chosen = parser.parse_args()
    chosen.only = [name for name in chosen.only.split(",") if name]
    unknown = set(chosen.only) - set(FAULTS)
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))} (there are {', '.join(FAULTS)})")
    return chosen


def main() -> int:
    chosen = arguments()
    first = secrets.randbelow(10**6) if chosen.seed is None else chosen.seed
    counts: Counter[tuple[str, str]] = Counter()
    failed, kills, played = [], 0, 0
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="serversync-faults-") as name, stand(Path(name)) as place:
        for fault, reason in possible(place).items():
            print(f"not here: {fault} ({reason})")
        todo: list[tuple[int, list[str]]] = []
        if chosen.seed is None and not chosen.no_replay:
            todo = [
                (kept["seed"], kept["faults"])
                for kept in (json.loads(path.read_text()) for path in sorted(SEEDS.glob("*.json")))
            ]
            print(f"{len(todo)} kept seeds, then from seed {first}", flush=True)
        while True:
            if not todo:
                if kills >= chosen.kills or (chosen.scenarios and played >= chosen.scenarios):
                    break
                todo.append((first, chosen.only))
                first += 1
            seed, only = todo.pop(0)
            scenario = Scenario(place, seed, only, chosen.tell)
            scenario.play()
            played += 1
            kills += scenario.kills
            counts.update(scenario.counts)
            if scenario.wrong:
                failed.append(seed)
                print(f"seed {seed} FAILED, kept in {scenario.keep().relative_to(REPOSITORY)}")
                if not chosen.tell:
                    print("\n".join(scenario.wrong[:6]), flush=True)
            if played % 10 == 0:
                print(
                    f"{played} scenarios, {kills} kills, {len(failed)} failed, {time.monotonic() - begun:.0f} s",
                    flush=True,
                )
    show(counts)
    print(
        f"{played} scenarios of {ROUNDS} rounds, {kills} kills, {len(failed)} failed, {time.monotonic() - begun:.0f} s"
    )
    if failed:
        print(f"failed: {', '.join(map(str, failed))}")
    return 1 if failed else 0


def show(counts: Counter[tuple[str, str]]) -> None:
    """Faults against what the disturbed runs came to."""
    outcomes = sorted({outcome for _fault, outcome in counts})
    print(f"\n{'fault':<18}" + "".join(f"{outcome[:12]:>14}" for outcome in outcomes))
    for fault in FAULTS:
        row = [counts[fault, outcome] for outcome in outcomes]
        if any(row):
            print(f"{fault:<18}" + "".join(f"{count or '':>14}" for count in row))


if __name__ == "__main__":
    sys.exit(main())
