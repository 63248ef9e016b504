# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cases, by the names that the design has for them. Each gets a Bench and adds works and facts to it."""

from __future__ import annotations

import getpass
import json
import os
import random
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import trees
from tests.bench.measure import OURS, Bar, Contender, Fact, Work, Wrong, environment, measure, peak, say
from tests.declaring import ColdServer as Declaring
from tests.loopback import PACKAGE, Pair, loopback, make_key
from tests.loopback import ROOT as REPOSITORY
from tests.proxy import Proxy

CORES = len(os.sched_getaffinity(0))
ROOT = os.geteuid() == 0
# What rsync -a preserves, as far as this account may.
ARCHIVE = ["times", "permissions", "group", "links", *(["owner"] if ROOT else [])]
# Unison has times in floating point, so that microseconds come out one off.
UNISON_GRAIN = 10**9
EVERYTHING = [*ARCHIVE, "hardlinks", "acls", "xattrs"]


class Bench:
    """Two servers for one case, what is measured on them, and the peers' way to the partner."""

    def __init__(self, directory: Path, pair: Pair, rounds: int, scale: float) -> None:
        self.directory = directory
        self.pair = pair
        self.rounds = rounds
        self.scale = scale
        self.works: list[dict[str, Any]] = []
        self.facts: list[dict[str, Any]] = []
        self.left_out: set[str] = set()
        self.record: dict[str, Any] = {}
        self.key = directory / "peer-key"
        pair.there.admit(make_key(self.key))
        (directory / "known_hosts").write_text(f"partner {pair.there.host_key}\n")
        self.link(None)

    def link(self, port: int | None) -> None:
        """From now on the partner is reached through this port, by ours and by the peers."""
        self.pair.port = port
        for name, more in (("ssh", ""), ("ssh-shared", "-o ControlMaster=auto -o ControlPersist=30")):
            options = f"-F none -p {port or self.pair.there.port} -i {shlex.quote(str(self.key))} -o IdentitiesOnly=yes"
            options += f" -o UserKnownHostsFile={shlex.quote(str(self.directory / 'known_hosts'))}"
            options += " -o GlobalKnownHostsFile=none -o HostKeyAlias=partner -o BatchMode=yes"
            if more:
                options += f" {more} -o ControlPath=/tmp/ss-bench-{os.getpid()}"
            script = self.directory / name
            script.write_text(f'#!/bin/sh\nexec ssh {options} "$@"\n')
            script.chmod(0o755)

    def files(self, count: int) -> int:
        return max(10, int(count * self.scale))

    # -- what is compared ------------------------------------------------------------------------------------------

    def source(self, name: str = "source") -> Path:
        return self.directory / name

    def target(self, name: str) -> Path:
        """Where ours writes; it has to be below the pairing's root."""
        return self.pair.partner_path.parent / name

    def declare(self, name: str, pairs: Iterable[tuple[Path, Path]], **settings: Any) -> None:
        """A job of ours. What the settings have that an older runner does not know is left out, and said."""
        wanted = {
            "direction": "to_partner",
            "conflict": "this_server_wins",
            "delete": "extraneous",
            "max_delete": "100%",
            "exclude": [],
            "include": [],
            "preserve": ARCHIVE,
            **settings,
        }
        schema = json.loads((PACKAGE / "serversync" / "job.schema.json").read_text())["properties"]["settings"]
        known = {}
        for key, value in wanted.items():
            allowed = schema["properties"].get(key)
            if allowed is None or value not in allowed.get("enum", [value]):
                self.left_out.add(f"{key}: {value}")
            else:
                known[key] = value
        for key in set(schema["required"]) - set(known):
            known[key] = schema["properties"][key]["enum"][0]
        self.pair.declare(name, settings=known, pairs=list(pairs))

    def run(self, name: str) -> None:
        self.record = self.pair.here.run(name)

    def ours(self, name: str, target: Path | None = None, reset: Callable[[], object] = lambda: None) -> Contender:
        return Contender(OURS, lambda: self.run(name), f"serversync run {name} --json", target, reset)

    def forget(self, name: str, target: Path) -> None:
        """As before the job's first run."""
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(self.pair.here.home / ".local" / "state" / "serversync", ignore_errors=True)

    def command(self, argv: list[str], codes: tuple[int, ...] = (0,), **extra: str) -> Callable[[], None]:
        def run() -> None:
            done = subprocess.run(argv, capture_output=True, env={**os.environ, **extra}, check=False)
            if done.returncode not in codes:
                raise Wrong(
                    f"{shlex.join(argv)}: exit {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}"
                )

        return run

    def rsync(
        self,
        source: Path,
        target: Path,
        *options: str,
        name: str = "rsync",
        writes: bool = True,
        shell: str = "ssh",
        reset: Callable[[], object] = lambda: None,
    ) -> Contender:
        options = options or ("-a", "--delete")
        argv = ["rsync", *options, "-e", str(self.directory / shell), f"{source}/", f"127.0.0.1:{target}/"]
        shown = f"rsync {shlex.join(options)} -e ssh SOURCE/ partner:TARGET/"
        return Contender(name, self.command(argv), shown, target if writes else None, reset)

    def unison(self, one: Path, other: Path, *, writes: bool) -> Contender:
        own = [f"-{field}" for field in (["owner", "group", "numericids"] if ROOT else [])]
        options = ["-batch", "-ui", "text", "-times", *own, "-prefer", "newer", "-confirmbigdel=false"]
        options += ["-ignore", "Name .serversync"]
        argv = ["unison", str(one), f"ssh://{getpass.getuser()}@127.0.0.1/{other}", *options]
        argv += ["-sshcmd", str(self.directory / "ssh")]
        for side in ("here", "there"):
            (self.directory / f"unison-{side}").mkdir(exist_ok=True)
        argv += ["-servercmd", f"env UNISON={self.directory}/unison-there unison"]
        run = self.command(argv, UNISON=f"{self.directory}/unison-here")
        return Contender(
            "unison", run, f"unison ROOT ssh://partner/ROOT {shlex.join(options)}", other if writes else None
        )

    def equal(self, *roots: Path, extended: bool = False, grain: int = 1) -> Callable[[], None]:
        def check() -> None:
            found = {root: trees.fingerprint(root, extended=extended, grain=grain) for root in roots}
            if len(set(found.values())) > 1:
                raise Wrong(
                    f"the trees differ: {', '.join(f'{root}: {digest[:12]}' for root, digest in found.items())}"
                )

        return check

    def moved_nothing(self) -> None:
        for element in self.record["elements"]:
            told = {key: element[key] for key in ("created", "updated", "deleted", "bytes") if element.get(key)}
            if told:
                raise Wrong(f"a run with nothing to do says {told}")

    def measure(self, work: Work, rounds: int | None = None) -> dict[str, Any]:
        say(f"{work.title}")
        result = measure(work, rounds or self.rounds)
        self.works.append(result)
        return result

    def fact(self, name: str, value: float, unit: str, limit: float | None = None) -> None:
        self.facts.append(Fact(name, value, unit, limit).as_dict())


# -- the works that several cases share --------------------------------------------------------------------------------


def mirror(bench: Bench, files: int, directories: int, grown: Callable[[Path], object] | None = None) -> None:
    """A source with two mirrors of it: ours in target("ours"), the peer's in target("peer")."""
    source = bench.source()
    if not source.exists():
        say(f"  making {files} files in {directories or 1} directories")
        trees.grow(source, files, directories, seed=files)
        if grown:
            grown(source)
    bench.declare("mirror", [(source, bench.target("ours"))])


def still(bench: Bench, title: str, peers: list[Contender], bars: list[Bar], **more: Any) -> dict[str, Any]:
    """Nothing changed since the last run."""
    extended = bool(more.pop("extended", False))
    same = bench.equal(bench.source(), bench.target("ours"), bench.target("peer"), extended=extended)

    def check() -> None:
        bench.moved_nothing()
        same()

    bench.run("mirror")
    peers[0].run()
    contenders = [bench.ours("mirror"), *peers]
    return bench.measure(Work(title, contenders, bars, check=check, each=False, **more))


def unchanged(bench: Bench, files: int, directories: int, ratio: float) -> dict[str, Any]:
    mirror(bench, files, directories)
    peer = bench.rsync(bench.source(), bench.target("peer"), writes=False)
    return still(
        bench, f"nothing changed, {files:,} files in {directories:,} directories", [peer], [Bar("rsync", ratio)]
    )


def spread_and_clustered(bench: Bench, peers: list[Contender], bars: dict[str, list[Bar]], where: str = "") -> None:
    """1 % of the files changed and 0.5 % deleted. Each peer has a target of its own: the name of its contender."""
    source = bench.source()
    files = len(trees.names(source))
    targets = [peer.target for peer in peers if peer.target is not None]
    for how, clustered in (("spread at random", 0.0), ("in 1 % of the directories", 0.01)):
        title = f"1 % of {files:,} files changed, 0.5 % deleted, {how}{where}"

        def change(number: int, clustered: float = clustered) -> None:
            trees.edit(source, 1000 + number, changed=0.01, deleted=0.005, clustered=clustered)

        contenders = [bench.ours("mirror", bench.target("ours")), *peers]
        grain = UNISON_GRAIN if any(peer.name == "unison" for peer in peers) else 1
        check = bench.equal(source, bench.target("ours"), *targets, grain=grain)
        bench.measure(Work(title, contenders, bars[how], prepare=change, check=check))


def first_copy(
    bench: Bench, title: str, peers: list[Contender], bars: list[Bar], rounds: int | None = None
) -> dict[str, Any]:
    """Into nothing: every contender's target is removed before its turn."""
    source, target = bench.source(), bench.target("ours")
    for peer in peers:
        peer.reset = lambda target=peer.target: shutil.rmtree(target, ignore_errors=True)  # type: ignore[misc]
    ours = bench.ours("mirror", target, reset=lambda: bench.forget("mirror", target))
    check = bench.equal(source, target, *(peer.target for peer in peers if peer.target is not None))
    return bench.measure(Work(title, [ours, *peers], bars, check=check), rounds)


def tar(bench: Bench, source: Path, target: Path) -> Contender:
    there = f"mkdir -p {target} && tar -C {target} -xpf -"
    script = f"tar -C {source} --format=posix -cf - . | {bench.directory / 'ssh'} 127.0.0.1 '{there}'"
    run = bench.command(["bash", "-o", "pipefail", "-c", script])
    shown = "tar -C SOURCE --format=posix -cf - . | ssh partner tar -C TARGET -xpf -"
    return Contender("tar over ssh", run, shown, target)


# -- the cases -------------------------------------------------------------------------------------------------------


def p1(bench: Bench) -> None:
    unchanged(bench, bench.files(200_000), bench.files(2000), 0.5 if CORES >= 4 else 0.6)


def p2(bench: Bench) -> None:
    unchanged(bench, bench.files(1_000_000), bench.files(10_000), 0.5)
    for name, run in (
        ("ours", bench.ours("mirror").run),
        ("rsync", bench.rsync(bench.source(), bench.target("peer")).run),
    ):
        for side, size in peak(bench.pair, run).items():
            bench.fact(f"peak memory, {name}, {side}", size / 1e6, "MB", 400 if name == "ours" else None)


def p3(bench: Bench) -> None:
    mirror(bench, bench.files(200_000), bench.files(2000))
    peer = bench.rsync(bench.source(), bench.target("peer"))
    bars = {"spread at random": [Bar("rsync", 0.85)], "in 1 % of the directories": [Bar("rsync", 0.7)]}
    spread_and_clustered(bench, [peer], bars)


def p4(bench: Bench) -> None:
    mirror(bench, bench.files(200_000), bench.files(2000))
    peer = bench.rsync(bench.source(), bench.target("peer"))
    first_copy(bench, f"first copy of {bench.files(200_000):,} small files", [peer], [Bar("rsync", 1.15)])


def p5(bench: Bench) -> None:
    source, target, peer = bench.source(), bench.target("ours"), bench.target("peer")
    source.mkdir()
    size = int((4 << 30) * bench.scale)
    with (source / "image").open("wb") as stream:
        for _block in range(size >> 22):
            stream.write(os.urandom(1 << 22))
    bench.declare("mirror", [(source, target)])
    contender = bench.rsync(source, peer)
    rounds = min(bench.rounds, 3)
    first_copy(
        bench, f"first copy of one file of {size / 2**30:.1f} GiB", [contender], [Bar("rsync", 1.05, 0.5)], rounds
    )

    def change(number: int) -> None:
        rng = random.Random(number)
        with (source / "image").open("r+b") as stream:
            for _piece in range(max(1, size // 100 >> 16)):
                stream.seek(rng.randrange(size >> 16) << 16)
                stream.write(rng.randbytes(1 << 16))

    contender.reset = lambda: None
    work = Work(
        "1 % of it changed, in pieces of 64 KiB",
        [bench.ours("mirror", target), contender],
        [Bar("rsync", 1.05, 0.5)],
        prepare=change,
        check=bench.equal(source, target, peer),
    )
    bench.measure(work, rounds)


def p6(bench: Bench) -> None:
    mirror(bench, 10, 1)
    peer = bench.rsync(bench.source(), bench.target("peer"), writes=False)
    still(bench, "nothing changed, 10 files", [peer], [Bar("rsync", 1, 0.25)])


def p7(bench: Bench) -> None:
    pairs, peers = [], []
    for number in range(50):
        source = bench.source(f"source-{number}")
        trees.grow(source, 10, 1, seed=number)
        pairs.append((source, bench.target(f"ours-{number}")))
        peers.append((source, bench.target(f"peer-{number}")))
    bench.declare("fifty", pairs)

    def commands(name: str, shell: str, reset: Callable[[], object]) -> Contender:
        each = [bench.rsync(source, target, shell=shell) for source, target in peers]

        def run() -> None:
            for contender in each:
                contender.run()

        return Contender(name, run, f"50 times: {each[0].shown}", None, reset)

    def disconnect() -> None:
        subprocess.run([bench.directory / "ssh-shared", "-O", "exit", "127.0.0.1"], capture_output=True, check=False)

    def check() -> None:
        bench.moved_nothing()
        for (source, ours), (_source, peer) in zip(pairs, peers, strict=True):
            bench.equal(source, ours, peer)()

    contenders = [
        bench.ours("fifty"),
        commands("50 rsync", "ssh", lambda: None),
        commands("50 rsync, ControlMaster", "ssh-shared", disconnect),
    ]
    for contender in contenders:
        contender.run()
    bars = [Bar("50 rsync", 0.2), Bar("50 rsync, ControlMaster", 0.6)]
    bench.measure(Work("50 elements of 10 files, nothing changed", contenders, bars, check=check, each=False))
    disconnect()


def both_ways(bench: Bench, files: int, directories: int, ratio: float) -> tuple[Contender, list[Path]]:
    """Two replicas for ours and two for unison, each pair with the same tree, synchronized once."""
    one, other = bench.source("ours"), bench.target("ours")
    peer, peer_other = bench.source("peer"), bench.target("peer")
    for root in (one, peer):
        trees.grow(root, files, directories, seed=files)
    bench.declare("both", [(one, other)], direction="both", conflict="newer_wins", delete="synced")
    unison = bench.unison(peer, peer_other, writes=False)
    peer_other.mkdir()
    say("  first runs")
    bench.run("both")
    unison.run()
    roots = [one, other, peer, peer_other]
    work = Work(
        f"both directions, nothing changed, {files:,} files",
        [bench.ours("both"), unison],
        [Bar("unison", ratio)],
        check=bench.equal(*roots, grain=UNISON_GRAIN),
        each=False,
    )
    bench.measure(work)
    return unison, roots


def p8(bench: Bench) -> None:
    _unison, roots = both_ways(bench, bench.files(200_000), bench.files(2000), 0.9)
    one, other, peer, peer_other = roots

    def change(number: int) -> None:
        # A share of the directories a side: what both sides changed would be a conflict, which is another work.
        for root in (one, other, peer, peer_other):
            side = sorted(path for path in root.iterdir() if path.name != ".serversync")[
                root in (other, peer_other) :: 2
            ]
            for index, directory in enumerate(side):
                trees.edit(directory, number * 1000 + index, changed=0.02)

    work = Work(
        "both directions, 1 % changed on either side",
        [bench.ours("both", other), bench.unison(peer, peer_other, writes=True)],
        [Bar("unison", 0.6)],
        prepare=change,
        check=bench.equal(*roots, grain=UNISON_GRAIN),
    )
    bench.measure(work)


def p8_million(bench: Bench) -> None:
    both_ways(bench, bench.files(1_000_000), bench.files(10_000), 0.4)


def p9(bench: Bench) -> None:
    mirror(bench, bench.files(200_000), bench.files(2000))
    source = bench.source()
    flat = ("-a", "--delete", "--no-inc-recursive")
    bench.run("mirror")
    with Proxy(bench.pair.there.port) as proxy:
        for delay in (0.05, 0.15):
            proxy.call(delay=delay)
            bench.link(proxy.port)
            mirror(bench, 0, 0)
            where = f", {delay * 1000:.0f} ms round trip"
            plain = bench.rsync(source, bench.target("peer"), writes=False)
            tuned = bench.rsync(source, bench.target("tuned"), *flat, name="rsync, tuned", writes=False)
            unison = bench.unison(source, bench.target("unison"), writes=False)
            if not bench.target("unison").exists():
                bench.target("unison").mkdir()
                for first in (tuned, unison):
                    first.run()
            bars = [Bar("rsync", 1 / 3), Bar("rsync, tuned", 1), Bar("unison", 1)]
            still(bench, f"nothing changed, {bench.files(200_000):,} files{where}", [plain, tuned, unison], bars)
            # Unison would carry back what the others' targets have; it has one of its own.
            peers = [
                bench.rsync(source, bench.target("peer")),
                bench.rsync(source, bench.target("tuned"), *flat, name="rsync, tuned"),
                bench.unison(source, bench.target("unison"), writes=True),
            ]
            spread_and_clustered(
                bench, peers, dict.fromkeys(("spread at random", "in 1 % of the directories"), bars), where
            )
    bench.link(None)


def p12(bench: Bench) -> None:
    sizes = [bench.files(count) for count in (100_000, 200_000, 1_000_000, 2_000_000)]
    reconciling(bench, sizes, "unchanged")


def p12_ten_million(bench: Bench) -> None:
    reconciling(bench, [bench.files(5_000_000), bench.files(10_000_000)], "unchanged")


def p20(bench: Bench) -> None:
    for kind in ("conflicts", "copies"):
        reconciling(bench, [bench.files(50_000), bench.files(100_000)], kind)


TOLD = {"conflicts": "all in conflict", "copies": "all in conflict, both kept"}


def reconciling(bench: Bench, sizes: list[int], kind: str) -> None:
    """Each size in a process of its own, for its memory; see reconciling.py."""
    before: dict[str, float] = {}
    for size in sizes:
        argv = [
            sys.executable,
            str(Path(__file__).parent / "reconciling.py"),
            kind,
            str(size),
            str(min(bench.rounds, 5)),
        ]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        if done.returncode:
            raise Wrong(done.stderr[-2000:])
        found: dict[str, float] = json.loads(done.stdout)
        million = f"{size:,} paths"
        if kind == "unchanged":
            bench.fact(f"{million}, nothing changed: a path", found["unchanged"] * 1e6, "µs", 1)
            bench.fact(f"{million}, 1 % changed: a changed path", found["changed"] * 1e6, "µs", 20)
        else:
            bench.fact(f"{million}, {TOLD[kind]}: a path", found["changed"] * 1e6, "µs")
        bench.fact(f"{million}: peak memory", found["memory"] / 1e6, "MB", 200 if kind == "unchanged" else None)
        if before and size == 2 * before["size"]:
            ratio = found["seconds"] / before["seconds"]
            bench.fact(f"{million}: time against half as many", ratio, "x", 2.2)
        before = {"size": size, **found}


def p13(bench: Bench) -> None:
    mirror(bench, bench.files(200_000), bench.files(2000), lambda root: trees.decorate(root, 13))
    bench.declare("mirror", [(bench.source(), bench.target("ours"))], preserve=EVERYTHING)
    peer = bench.rsync(bench.source(), bench.target("peer"), "-aHAX", "--delete", writes=False)
    title = f"nothing changed, {bench.files(200_000):,} files; ACLs, xattrs and hard links preserved"
    still(bench, title, [peer], [Bar("rsync", 0.3)], extended=True)


def p14(bench: Bench) -> None:
    """On tmpfs, where the network counts and the file system does not."""
    delayed_copy(bench, [Bar("rsync", 0.5), Bar("rsync, tuned", 0.8), Bar("tar over ssh", 1)])


def p14_disk(bench: Bench) -> None:
    delayed_copy(bench, [Bar("rsync, tuned", 1)])


def delayed_copy(bench: Bench, bars: list[Bar]) -> None:
    files = bench.files(100_000)
    mirror(bench, files, bench.files(1000))
    source = bench.source()
    with Proxy(bench.pair.there.port, delay=0.15) as proxy:
        bench.link(proxy.port)
        mirror(bench, 0, 0)
        tuned = ("-a", "--no-inc-recursive", "--whole-file")
        peers = [bench.rsync(source, bench.target("tuned"), *tuned, name="rsync, tuned")]
        if len(bars) > 1:
            peers.insert(0, bench.rsync(source, bench.target("peer"), "-a"))
            peers.append(tar(bench, source, bench.target("tar")))
        first_copy(bench, f"first copy of {files:,} small files, 150 ms round trip", peers, bars)
    bench.link(None)


def p15(bench: Bench) -> None:
    files = bench.files(1_000_000)
    mirror(bench, files, bench.files(10_000))
    source, target = bench.source(), bench.target("ours")
    every = trees.names(source)
    bench.run("mirror")
    written: list[float] = []
    medians = []
    for title, changes in (("nothing", False), ("one file", True)):

        def change(number: int, changes: bool = changes) -> None:
            if changes:
                rng = random.Random(number)
                trees.write(rng.choice(every), rng.randbytes(trees.POOL), rng, (200, 1000))

        def run() -> None:
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock
            bench.run("mirror")
            written.append((resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock - before) * 512)

        written.clear()
        ours = Contender(OURS, run, "serversync run mirror --json", target)
        check = bench.equal(source, target)
        work = Work(f"{title} changed in {files:,}", [ours], prepare=change, check=check, each=False)
        medians.append(bench.measure(work)["contenders"][0]["median"])
    bench.fact("one changed file costs more than none", medians[1] - medians[0], "s", 0.5)
    bench.fact("most written on this server for one changed file", max(written) / 1e6, "MB", 1)


def p16(bench: Bench) -> None:
    files = bench.files(200_000)
    mirror(bench, files, bench.files(2000))
    source, target = bench.source(), bench.target("ours")
    whole = first_copy(bench, f"first copy of {files:,} small files, left alone", [], [])["contenders"][0]["median"]
    taken = []
    for number in range(min(bench.rounds, 3) + 1):
        bench.forget("mirror", target)
        begun = time.perf_counter()
        process = subprocess.Popen(
            bench.pair.here.command("run", "mirror", "--json"),
            env=bench.pair.here.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(whole / 2)
            raise Wrong("the run was done before half of its time")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # What it leaves behind may still hold the locks; waiting for that is part of the price.
        while True:
            record = json.loads(bench.pair.here.serversync("run", "mirror", "--json", code=None).stdout)
            if record["state"] != "skipped" and (record["error"] or {}).get("code") != "running":
                break
        if number:
            taken.append(time.perf_counter() - begun)
        bench.equal(source, target)()
        say(f"  {number or 'warm-up':>7}  killed at half, then finished {taken[-1:] or ''}")
    bench.fact("left alone, median", whole, "s")
    bench.fact(
        "killed at half and finished, both together, against left alone",
        sorted(taken)[len(taken) // 2] / whole,
        "x",
        1.15,
    )


def p17(bench: Bench) -> None:
    if not ROOT:
        raise Wrong("only root can drop the caches")
    mirror(bench, bench.files(200_000), bench.files(2000))
    peer = bench.rsync(bench.source(), bench.target("peer"), writes=False)
    title = f"nothing changed, {bench.files(200_000):,} files, cold caches"
    still(bench, title, [peer], [Bar("rsync", 1)], cold=True)


def p18(bench: Bench) -> None:
    files = bench.files(100_000)
    source, target, peer = bench.source(), bench.target("ours"), bench.target("peer")
    backup = bench.target("backup")
    bench.declare("mirror", [(source, target)])

    def fill(number: int) -> None:
        shutil.rmtree(backup, ignore_errors=True)
        shutil.rmtree(target / ".serversync", ignore_errors=True)
        bench.forget("mirror", target)
        trees.grow(source, files, bench.files(1000), seed=number)
        for directory in source.glob("*/*"):
            trees.grow(directory, 1, 0, seed=number, sizes=(1, 1))
        bench.run("mirror")
        bench.rsync(source, peer).run()
        for path in trees.names(source):
            if not path.endswith("/f0000000"):
                os.unlink(path)

    rsync = bench.rsync(source, peer, "-a", "--delete", "--backup", f"--backup-dir={backup}", name="rsync --backup-dir")
    work = Work(
        f"{files:,} deletions into versions",
        [bench.ours("mirror", target), rsync],
        [Bar("rsync --backup-dir", 1.2)],
        prepare=fill,
        check=bench.equal(source, target, peer),
    )
    bench.measure(work, min(bench.rounds, 3))

    def age(number: int) -> None:
        bench.declare("mirror", [(source, target)])
        fill(number)
        bench.run("mirror")
        rsync.run()
        bench.declare("mirror", [(source, target)], keep_versions="0s")

    def check() -> None:
        left = sum(
            len(names) for _directory, _inner, names in os.walk(target / ".serversync") if "versions" in _directory
        )
        if left >= files:
            raise Wrong(f"{left} versions were not pruned")

    remove = Contender("rm -r", lambda: shutil.rmtree(backup), "rm -r BACKUP", peer)
    remove.run = bench.command(["rm", "-r", str(backup)])
    work = Work(f"pruning {files:,} versions", [bench.ours("mirror", target), remove], [Bar("rm -r", 1.2)], age, check)
    bench.measure(work, min(bench.rounds, 3))


def p19(bench: Bench) -> None:
    unchanged(bench, bench.files(100_000), 0, 0.6)


def p19_million(bench: Bench) -> None:
    unchanged(bench, bench.files(1_000_000), 0, 0.6)


def p21(bench: Bench) -> None:
    mirror(bench, bench.files(200_000), bench.files(2000))
    source, target, peer = bench.source(), bench.target("ours"), bench.target("peer")
    contender = bench.rsync(source, peer, writes=False)

    def bump(_number: int) -> None:
        for root in (source, target, peer):
            trees.bump(root)

    title = f"nothing but every ctime changed, {bench.files(200_000):,} files"
    still(bench, title, [contender], [Bar("rsync", 1)], prepare=bump)


# -- declarations ------------------------------------------------------------------------------------------------------


def fleet(server: Declaring, count: int) -> list[dict[str, Any]]:
    """Jobs as a fleet has them: alike, each with its own name, times and paths."""
    return [
        {
            "name": f"line{number}-programs",
            "comment": f"Programs of line {number}",
            "partner": {"host": "hq"},
            "schedule": {"at": f"{number % 24:02}:30", "days": ["mon", "fri"], "timezone": "Europe/Berlin"},
            "settings": {"exclude": ["*.tmp"], "delete": "synced"},
            "elements": [{"path": f"{server.here}/line{number}"}],
        }
        for number in range(count)
    ]


def declaring(path: Path) -> Declaring:
    """A server for the modules, which find this collection by its name."""
    server = Declaring(path).turn("sync_jobs")
    collections = server.root / "collections"
    (collections / "ansible_collections" / "serversync").mkdir(parents=True)
    (collections / "ansible_collections" / "serversync" / "core").symlink_to(REPOSITORY)
    server.environment["PYTHONPATH"] = f"{collections}{os.pathsep}{server.environment['PYTHONPATH']}"
    return server


def playbook(server: Declaring, tasks: list[dict[str, Any]]) -> Callable[[], None]:
    """Runs the tasks as people do; they must not change anything, so that every round finds the same."""
    book = server.root / f"{len(list(server.root.glob('*.yml')))}.yml"
    book.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    environment = {
        **server.environment,
        "ANSIBLE_COLLECTIONS_PATH": str(server.root / "collections"),
        "ANSIBLE_HOME": str(server.home / ".ansible"),
    }
    del environment["PYTHONPATH"]
    argv = [str(Path(sys.executable).with_name("ansible-playbook")), "--inventory", "localhost,"]
    argv += ["--connection", "local", "--extra-vars", f"ansible_python_interpreter={sys.executable}", str(book)]

    def run() -> None:
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or " changed=0 " not in done.stdout:
            raise Wrong(f"the playbook changed something or failed: {done.stdout[-500:]}{done.stderr[-500:]}")

    return run


def p10(bench: Bench) -> None:
    """The whole process of the module counts, from its start to its result; systemctl is stood in for."""
    count = bench.files(1000)
    times: dict[str, list[float]] = {"check mode": [], "first": [], "unchanged": [], "unchanged, check mode": []}
    for number in range(bench.rounds + 1):
        server = declaring(bench.directory / f"declaring-{number}")
        jobs = fleet(server, count)
        for name, changed in (("check mode", True), ("first", True), ("unchanged", False)):
            begun = time.perf_counter()
            result = server.check(jobs=jobs) if "check" in name else server.apply(jobs=jobs)
            if number:
                times[name].append(time.perf_counter() - begun)
            if result.get("failed") or result["changed"] is not changed or len(result["jobs"]) != count:
                raise Wrong(f"{name}: {result.get('msg')}")
        begun = time.perf_counter()
        server.check(jobs=jobs)
        if number:
            times["unchanged, check mode"].append(time.perf_counter() - begun)
        if len(list(server.document.parent.glob("*.json"))) != count:
            raise Wrong("not every job is there")
        shutil.rmtree(server.home)
    for name, taken in times.items():
        bench.fact(f"{count} jobs, {name}", statistics.median(taken), "s", 6 if name == "first" else 1.5)
    server = declaring(bench.directory / "loop")
    few = fleet(server, 20)
    server.apply(jobs=few)
    names = {"dest": "{{ item.dest }}", "src": "{{ item.dest }}", "mode": "preserve", "remote_src": True}
    files = [path for path in server.home.rglob("*line*") if path.suffix in (".json", ".timer", ".d")]
    files = [path / "job.conf" if path.is_dir() else path for path in files if not path.is_symlink()]
    files = [path for path in files if path.parent != server.stamps]
    if len(files) != 3 * len(few):
        raise Wrong(f"the files of {len(few)} jobs are not those: {files}")
    loop = playbook(server, [{"ansible.builtin.copy": names, "loop": [{"dest": str(path)} for path in files]}])
    begun = time.perf_counter()
    loop()
    each = (time.perf_counter() - begun) / len(few)
    share = statistics.median(times["first"]) / count / each
    bench.fact("a job of these as a share of one by a loop that copies its files (20 jobs)", share, "x", 0.01)


def quick_systemctl(server: Declaring) -> None:
    """From now on the answer of systemctl is what it was to the last question.

    It comes as fast as that of the real one, which starts in about 3 ms; a program in Python takes five times as long.
    """
    program = server.root / "bin" / "systemctl"
    answer = program.with_name("answer")
    asked, question = server.calls()[-1], {**server.environment, "LC_ALL": "C"}
    done = subprocess.run([program, *asked[1:]], check=True, env=question, capture_output=True)
    answer.write_bytes(done.stdout)
    program.write_text(f"#!/bin/sh\nexec cat '{answer}'\n")


def p11(bench: Bench) -> None:
    """systemctl is stood in for."""
    for count in (1, bench.files(1000)):
        server = declaring(bench.directory / f"declaring-{count}")
        jobs = fleet(server, count)
        server.apply(jobs=jobs)
        declared = {**jobs[0], "scope": "user"}
        if server.turn("sync_job").apply(**declared)["changed"]:
            raise Wrong("the job is another one")
        quick_systemctl(server)
        loop = [0] * max(1, int(50 * bench.scale))
        ours = playbook(server, [{"serversync.core.sync_job": declared, "loop": loop}])
        file = {"path": str(server.here), "state": "directory"}
        peer = playbook(server, [{"ansible.builtin.file": file, "loop": loop}])
        contenders = [
            Contender(OURS, ours, "sync_job, unchanged, in a loop of 50"),
            Contender("ansible.builtin.file", peer, "ansible.builtin.file, unchanged, in a loop of 50"),
        ]
        title = f"one task unchanged, 50 times, with {count} job{'s' if count > 1 else ''} on the server"
        bench.measure(Work(title, contenders, [Bar("ansible.builtin.file", 1.3)], each=False))


def circles(bench: Bench) -> None:
    """Over the whole fleet, whose servers are in circles of ten."""
    server = declaring(bench.directory / "declaring")
    argv = [sys.executable, str(Path(__file__).parent / "circles.py")]
    argv += [str(bench.files(1000)), "10", str(bench.rounds)]
    done = subprocess.run(argv, env=server.environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Wrong(done.stderr[-2000:])
    seconds = statistics.median(json.loads(done.stdout))
    bench.fact(f"{bench.files(1000) * 10:,} jobs over {bench.files(1000):,} servers", seconds, "s", 2)


@dataclass
class Case:
    """``minutes``: about how long it takes at seven rounds on two cores, until it has been measured here."""

    run: Callable[[Bench], None]
    title: str
    minutes: float
    by_name_only: bool = False
    memory: bool = False
    notes: list[str] = field(default_factory=list)


CASES = {
    "P1": Case(p1, "nothing changed", 2),
    "P2": Case(p2, "nothing changed, a million files", 12, by_name_only=True),
    "P3": Case(p3, "few files changed", 8),
    "P4": Case(p4, "first copy of small files", 9),
    "P5": Case(p5, "one big file", 10, by_name_only=True),
    "P6": Case(p6, "fixed cost", 0.5),
    "P7": Case(p7, "one job of many elements", 5),
    "P8": Case(p8, "both directions", 9),
    "P8M": Case(p8_million, "both directions, a million files", 40, by_name_only=True),
    "P9": Case(p9, "a long way", 40, by_name_only=True),
    "P10": Case(p10, "a thousand jobs declared in one call", 3),
    "P11": Case(p11, "one job declared again", 12),
    "P12": Case(p12, "reconciliation alone", 3),
    "P12M": Case(p12_ten_million, "reconciliation alone, ten million paths", 10, by_name_only=True),
    "P13": Case(p13, "ACLs, xattrs and hard links", 4),
    "P14": Case(p14, "first copy over a long way, tmpfs", 10, memory=True),
    "P14D": Case(p14_disk, "first copy over a long way, disk", 8, by_name_only=True),
    "P15": Case(p15, "one file changed in a million", 10, by_name_only=True),
    "P16": Case(p16, "killed at half, then finished", 6),
    "P17": Case(p17, "cold caches", 6, by_name_only=True),
    "P18": Case(p18, "deletions into versions, and their pruning", 8),
    "P19": Case(p19, "everything in one directory", 2),
    "P19M": Case(p19_million, "a million files in one directory", 15, by_name_only=True),
    "P20": Case(p20, "conflicts", 1),
    "CIRCLES": Case(circles, "circular connections in a fleet", 1),
    "P21": Case(p21, "every ctime moved", 3),
}


@contextmanager
def in_memory(directory: Path) -> Iterator[None]:
    """A tmpfs there. The one that every Linux has, /dev/shm, is no place for an element."""
    if not ROOT:
        raise Wrong("only root can mount a tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        for path in directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        subprocess.run(["umount", str(directory)], check=True)


def carry_out(name: str, directory: Path, rounds: int, scale: float) -> dict[str, Any]:
    """Measures one case on two fresh servers; what stays of it is the result."""
    case = CASES[name]
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    begun = time.monotonic()
    with ExitStack() as held:
        held.callback(shutil.rmtree, directory)
        if case.memory:
            held.enter_context(in_memory(directory))
        pair = held.enter_context(loopback(directory))
        bench = Bench(directory, pair, rounds, scale)
        about = environment(directory)
        case.run(bench)
    return {
        "title": case.title + ("" if scale == 1 else f" (at {scale:g} of the size)"),
        "environment": about,
        "works": bench.works,
        "facts": bench.facts,
        "left_out": sorted(bench.left_out),
        "rounds": rounds,
        "scale": scale,
        "took": time.monotonic() - begun,
    }
