# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may happen to a run: each fault runs a job, or two, while something goes wrong, and puts it right again."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import killing
from tests.faults import laws
from tests.faults.edits import ORDINARY, Editor, apply
from tests.faults.observe import State, look
from tests.faults.world import ROOT, Ended, World
from tests.loopback import Pair
from tests.processes import kill
from tests.proxy import Proxy
from tests.sftp import SftpPair

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
    pair: Pair | SftpPair
    proxy: Proxy
    # Whether this account may mount file systems.
    mounts: bool


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


def kill_again(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    """The runner is killed again and again, the next one started at once, whatever is left of the one before."""
    ended, killed = [], 0
    for _time in range(rng.randrange(2, 7)):
        process = world.start()
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment(world, rng))
        if process.poll() is None:
            process.kill()
            killed += 1
        ended.append(world.end(process))
    return Disturbed(ended, killed, note=f"the runner killed {killed} times")


# What a run asks of the kernel that leaves something behind.
CALLS = ["renameat2", "rename", "unlinkat", "unlink", "mkdirat", "linkat", "symlinkat", "fsync", "fdatasync", "syncfs"]
CALLS += ["pwrite64", "ftruncate", "utimensat", "fchmod", "fchown"]
# Of these there are many before anything that is of interest, and in the midst of it.
COMMON = {"read": 1500, "write": 60, "openat": 900}


def at_call(what: str, calls: list[str]) -> Fault:
    """Killed, or told an error, at the n-th call of a kind, on one of both servers."""

    def fault(world: World, rng: random.Random, stand: Stand) -> Disturbed:
        call, number, here = rng.choice(calls), rng.choice([1, 1, 2, 3, 5, 8, 13]), world.picks_here(rng)
        if call in COMMON:
            number = rng.randrange(1, COMMON[call])
        logs = Path(tempfile.mkdtemp(prefix="strace-", dir=stand.directory))
        injected = f"{call}:signal=KILL:when={number}" if what == "kill" else f"{call}:error={what}:when={number}"
        wrapper = ["strace", "-f", "-ff", "-qq", "-o", str(logs / "log"), f"--trace={call}", f"--inject={injected}"]
        with through(world, "here" if here else "there", *wrapper):
            ended = world.run()
        text = "".join(path.read_text(errors="replace") for path in logs.iterdir())
        shutil.rmtree(logs)
        # Each thread of a killed process tells of it.
        hits = "+++ killed by SIGKILL +++" in text if what == "kill" else text.count("(INJECTED)")
        side = "here" if here else "there"
        done = Disturbed(
            [ended], int(hits) if what == "kill" else 0, note=f"{what} at {call} {number}, {side}: {int(hits)} times"
        )
        if what != "kill" and hits:
            # Whatever it broke, also the interpreter on its way up: the data is what counts.
            ended.code = 1 if ended.code == 70 else ended.code
        return done

    return fault


def kill_at_step(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    """Killed before its n-th step, on one of both servers."""
    step, side = rng.randrange(1, 100), "here" if world.picks_here(rng) else "there"
    with tempfile.TemporaryDirectory(dir=stand.directory) as name:
        log = Path(name, "log")
        with through(world, side, sys.executable, killing.__file__, str(step), str(log)):
            ended = world.run()
        where = log.read_text().strip() if log.exists() else ""
    return Disturbed([ended], int(bool(where)), note=f"killed {side} before step {where or f'{step}: there was none'}")


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
    # How long it has stalled when the runner dies is part of the fault.
    with suppress(subprocess.TimeoutExpired):
        process.wait(rng.uniform(0, 0.5))
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


def gone_and_back(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    """The partner is gone in the midst of a run, for less long than the job's retries go on."""
    world.declare(on_error={"retries": 5, "delay": "1s"})
    try:
        process = world.start()
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment(world, rng))
        stand.proxy.call(reset=True, refuse=True)
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.2, 2.0))
        stand.proxy.call(refuse=False)
        ended = world.end(process)
    finally:
        world.declare()
    wrong = (
        [] if ended.outcome in FINISHED else [f"the partner came back, and the run ended {ended.outcome}: {ended.why}"]
    )
    return Disturbed([ended], note="partner gone and back", wrong=wrong)


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


def some_path(world: World, rng: random.Random, kinds: str) -> tuple[Path, str] | None:
    """One of the paths of these kinds, on either replica, with its side."""
    side, root = rng.choice([("here", world.here), ("there", world.there)])
    every = sorted(path for path, node in getattr(world.look(), side).items() if node.kind in kinds)
    return (root / os.fsdecode(rng.choice(every)), side) if every else None


@contextmanager
def through(world: World, side: str, *wrapper: str) -> Iterator[None]:
    """What runs on one of the servers is started through a program."""
    if side == "here":
        world.pair.here.wrapper = wrapper
    else:
        world.pair.there.wrap(*wrapper)
    try:
        yield
    finally:
        world.pair.here.wrapper = ()
        world.pair.there.wrap()


# root's, but for the right to read and write whatever it likes.
NO_SPECIAL_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def unreadable(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    """A path of either replica that the account may not read, nor write in, from before the run or from its midst."""
    found = some_path(world, rng, "df")
    if found is None:
        return Disturbed([], note="nothing there to be unreadable")
    path, side = found
    before, mode = world.look(), path.stat().st_mode & 0o7777
    taken, midway = rng.choice([0o777, 0o222]), rng.random() < 0.3
    with through(world, side, *(NO_SPECIAL_RIGHTS if ROOT else ())):
        if not midway:
            path.chmod(mode & ~taken)
        process = world.start()
        if midway:
            with suppress(subprocess.TimeoutExpired):
                process.wait(moment(world, rng))
            with suppress(FileNotFoundError):
                path.chmod(mode & ~taken)
        ended = world.end(process)
    with suppress(FileNotFoundError):
        path.chmod(mode)
    note = f"{path} is {mode & ~taken:o}{' from the midst on' if midway else ''}, {side}"
    # Its mode was edited, and edited back, whatever became of its contents.
    return Disturbed([ended], edited=True, note=note, wrong=laws.kept(before, world.look()))


def bad_sector(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    """Reading a file, or a directory, of one of the replicas is an error of the disk."""
    found = some_path(world, rng, "fffd")
    if found is None:
        return Disturbed([], note="nothing there to be unreadable")
    path, side = found
    calls = "read,pread64,readv,preadv,copy_file_range,getdents64"
    argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(path), f"--inject={calls}:error=EIO"]
    with through(world, side, *argv):
        ended = world.run()
    return Disturbed([ended], note=f"EIO of {path}, {side}")


def moved_away(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    """A root gets another name in the midst of a run, as a mount that is taken off lazily."""
    root = rng.choice([world.here, world.there])
    if not world.archives():
        return Disturbed([], note="nothing is remembered yet: what comes back has no marker, which stops the next run")
    process = world.start()
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment(world, rng))
    away = root.with_name(f"{root.name}.away")
    root.rename(away)
    ended = world.end(process)
    wrong = []
    if root.exists():
        # A target that is missing is made; what was moved away is not looked at any more.
        made = [path for path in root.rglob("*") if ".serversync" not in path.parts]
        wrong = [] if root == world.target or not made else [f"a source was made again: {made[:3]}"]
        shutil.rmtree(root)
    away.rename(root)
    return Disturbed([ended], away=True, note=f"{root.name} moved away in the midst", wrong=wrong)


def vanished(emptied: bool) -> Fault:
    def fault(world: World, rng: random.Random, stand: Stand) -> Disturbed:
        root = rng.choice([world.here, world.there])
        if not world.archives():
            return Disturbed([], note="nothing is remembered yet: empty, or made anew, is what it may be")
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
    here, days = world.picks_here(rng), rng.choice(["+1d", "-1d"])
    wrapper = ["env", "NO_FAKE_STAT=1", "faketime", "-f", days]
    with through(world, "here" if here else "there", *wrapper):
        ended = world.run()
    return Disturbed([ended], skew=DAY, note=f"clock {days} {'here' if here else 'there'}")


def two_at_once(world: World, rng: random.Random, stand: Stand) -> Disturbed:
    first = world.start()
    # How far the first one is by then is part of the fault.
    with suppress(subprocess.TimeoutExpired):
        first.wait(rng.uniform(0, world.usual))
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
    editors = [
        Editor(random.Random(rng.random()), f"{world.name}-storm{side}", names=ORDINARY, **world.can_carry)
        for side in (0, 1)
    ]

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
    "kill-again": Kind(kill_again, 20),
    "kill-serve": Kind(kill_one("serve"), 8),
    "kill-ssh": Kind(kill_one("ssh"), 6),
    "kill-sshd": Kind(kill_one("sshd"), 3),
    "kill-rsync": Kind(kill_one("rsync"), 6),
    "kill-at-call": Kind(at_call("kill", CALLS), 12, "strace"),
    "kill-at-step": Kind(kill_at_step, 10),
    "stall-and-kill": Kind(stalled_for_good, 3),
    "eio": Kind(at_call("EIO", [*CALLS, *COMMON, "pread64", "getdents64"]), 3, "strace"),
    "enospc": Kind(
        at_call("ENOSPC", ["pwrite64", "write", "mkdirat", "linkat", "renameat2", "fsync", "ftruncate"]), 2, "strace"
    ),
    "stall": Kind(with_link(lambda rng: {"stall": True}, {"stall": False}), 2),
    "reset": Kind(with_link(lambda rng: {"reset": True}, {}), 4),
    "delay": Kind(with_link(lambda rng: {"delay": rng.uniform(0.01, 0.2)}, {}), 1),
    "narrow": Kind(with_link(lambda rng: {"bandwidth": rng.uniform(2e4, 1e6)}, {"bandwidth": None}), 1),
    "gone-and-back": Kind(gone_and_back, 3),
    "away": Kind(partner_away, 1),
    "full": Kind(full("target", False), 3, "mount", small=True),
    "no-inodes": Kind(full("target", True), 2, "mount", small=True),
    "archive-full": Kind(full("archive", False), 2, "mount"),
    "archive-no-inodes": Kind(full("archive", True), 1, "mount"),
    "read-only": Kind(read_only, 1, "mount", small=True),
    "immutable": Kind(locked_files, 1, "chattr"),
    "unreadable": Kind(unreadable, 3, "setpriv"),
    "bad-sector": Kind(bad_sector, 2, "strace"),
    "root-moved": Kind(moved_away, 1),
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
            ("setpriv is not installed", kind.needs == "setpriv" and ROOT and not have("setpriv")),
            (f"{kind.needs} is not installed", kind.needs in ("strace", "faketime") and not have(kind.needs)),
        )
        if missing
    }
