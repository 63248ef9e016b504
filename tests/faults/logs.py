# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs under the same faults: each line arrives once and in order, whatever is killed, cut off or full meanwhile.

The judge knows every line that was ever written to the source and every one that others wrote to the target, and reads
nothing but the target's file.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tests.faults.disturb import FINISHED, Disturbed, Fault, Stand, moment
from tests.faults.observe import look
from tests.faults.scenario import Scenario
from tests.faults.world import World

NAME = "plant.log"
ROUNDS = 5
# What is there to be done to one file that grows; what a damaged state means for a log is told in docs/logs.md.
SUITING = {"none", "stall", "reset", "delay", "narrow", "away", "gone-and-back", "full", "no-inodes", "archive-full"}
SUITING |= {"archive-no-inodes", "immutable", "read-only", "clock", "two-runs", "storm", "eio", "enospc"}
SUITING |= {"kill-runner", "kill-again", "kill-serve", "kill-ssh", "kill-sshd", "kill-at-call", "kill-at-step"}
SUITING |= {"stall-and-kill"}


class LogWorld(World):
    """A directory on each server, with a log in it that a job appends to the other one's."""

    def declare(self, **options: Any) -> None:
        settings = {"direction": self.settings["direction"], "exclude": [], "delete": "never"}
        logs = (self.here / NAME, self.there / NAME)
        path = self.pair.declare(self.name, settings=settings, pairs=[logs], **options)
        document = json.loads(path.read_text())
        document["elements"][0]["kind"] = "log"
        path.write_text(json.dumps(document))


class Log:
    """What was written to the source, and what others wrote to the target."""

    def __init__(self, world: LogWorld, rng: random.Random, name: str, large: bool) -> None:
        self.world = world
        self.rng = rng
        self.name = name
        self.source, self.target = world.source / NAME, world.target / NAME
        self.large = large
        self.lines: list[bytes] = []
        self.own: list[bytes] = []
        self.unfinished = b""
        self.count = 0
        # What was rotated before the first run is not taken, and whose lines the target has then is another question.
        self.known = False
        self.source.touch()

    def token(self) -> bytes:
        self.count += 1
        sizes = [0, 20, 200, 5000] + ([6_000_000] if self.large and self.rng.random() < 0.1 else [])
        return f"{self.name}-{self.count} ".encode() + b"x" * self.rng.choice(sizes)

    def write(self, data: bytes) -> None:
        descriptor = os.open(self.source, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def append(self) -> str:
        made = [self.token() for _number in range(self.rng.randrange(1, 200))]
        self.write(b"".join([line + b"\n" for line in made]))
        # What was begun before is the beginning of the first of these.
        self.lines += [self.unfinished + made[0], *made[1:]]
        self.unfinished = b""
        return f"append {len(made)} lines"

    def begin_line(self) -> str:
        data = self.token()
        self.write(data)
        self.unfinished += data
        return "begin a line"

    def make_room(self) -> Path:
        """The rotated files move on by one."""
        numbered = sorted(
            (path for path in self.source.parent.glob(f"{NAME}.[0-9]*")),
            key=lambda path: int(path.name[len(NAME) + 1 :].split(".")[0]),
            reverse=True,
        )
        for path in numbered:
            number, dot, packed = path.name[len(NAME) + 1 :].partition(".")
            path.rename(path.with_name(f"{NAME}.{int(number) + 1}{dot}{packed}"))
        return self.source.with_name(f"{NAME}.1")

    def rotate(self) -> str:
        if self.unfinished:
            return self.append()
        self.source.rename(self.make_room())
        self.source.touch()
        return "rotate"

    def copy_and_truncate(self) -> str:
        if self.unfinished:
            return self.append()
        self.make_room().write_bytes(self.source.read_bytes())
        os.truncate(self.source, 0)
        return "copy and truncate"

    def pack(self) -> str:
        old = self.source.with_name(f"{NAME}.1")
        if old.exists():
            packed = old.with_name(f"{NAME}.1.gz")
            packed.write_bytes(gzip.compress(old.read_bytes()))
            os.utime(packed, ns=(old.stat().st_atime_ns, old.stat().st_mtime_ns))
            old.unlink()
        return "pack"

    def write_to_target(self) -> str:
        """Somebody else's whole line, as one that does not look before it writes."""
        if not self.target.exists():
            return "nothing to write to"
        line = b"own " + self.token()
        with self.target.open("ab") as stream:
            torn = self.target.stat().st_size and not self.target.read_bytes().endswith(b"\n")
            stream.write(b"\n" * bool(torn) + line + b"\n")
        self.own.append(line)
        return "a line of the target's own"

    def edit(self, count: int) -> list[str]:
        edits = [self.append] * 6 + [self.begin_line]
        if self.known:
            edits += [self.rotate, self.copy_and_truncate, self.pack, self.write_to_target]
        return [self.rng.choice(edits)() for _number in range(count)]

    def judge(self, *, whole: bool) -> list[str]:
        """whole: all lines have to be there; else the first ones, the last of them perhaps torn."""
        data = self.target.read_bytes() if self.target.exists() else b""
        *lines, last = data.split(b"\n")
        own, number = list(self.own), 0
        for line in lines:
            following = self.lines[number] if number < len(self.lines) else b""
            if own and line == own[0]:
                own.pop(0)
            elif number < len(self.lines) and line == following:
                number += 1
            elif not (line and following.startswith(line)):
                return [f"line {number} of the target is {line[:40]!r}, should be {following[:40]!r}"]
        wrong = [f"L1: of the target's own lines {len(own)} are gone"] if own else []
        if last and not (number < len(self.lines) and self.lines[number].startswith(last)):
            wrong.append(f"L2: the target ends with {last[:40]!r}, which is of no line that is due")
        if whole and (number, last) != (len(self.lines), b""):
            wrong.append(f"L11: {number} lines arrived of {len(self.lines)}, and then {len(last)} bytes")
        return wrong


class LogScenario(Scenario):
    """One seed, of a log."""

    def suits(self, fault: str) -> bool:
        return fault in SUITING

    def play(self) -> None:
        self.settings = {"direction": self.rng.choice(["to_partner", "from_partner"])}
        names = list(self.faults)
        chosen = self.rng.choices(names, [self.faults[name].weight for name in names], k=ROUNDS)
        with ExitStack() as held:
            roots = self.small_roots(held) if any(self.faults[name].small for name in chosen) else None
            world = LogWorld(self.stand.pair, f"seed-{self.seed}", self.settings, roots)
            held.callback(self.clear, world)
            log = Log(world, self.rng, str(self.seed), large=roots is None)
            self.say(f"seed {self.seed}: a log, {self.settings['direction']}")
            for number, name in enumerate(chosen):
                self.say(f"round {number}: {', '.join(log.edit(self.rng.randrange(1, 6)))}")
                self.log_round(world, log, name)
                if self.wrong:
                    return

    def log_round(self, world: LogWorld, log: Log, name: str) -> None:
        fault = writing(log) if name == "storm" else self.faults[name].fault
        disturbed = fault(world, self.rng, self.stand)
        self.kills += disturbed.kills
        self.say(f"  {name}: {disturbed.note}; {', '.join(ended.outcome for ended in disturbed.ended)}")
        self.counts.update((name, ended.outcome) for ended in disturbed.ended)
        self.check(name, [text for text in disturbed.wrong if "state" not in text] + log.judge(whole=False))
        if self.rng.random() < 0.3:
            self.say(f"  meanwhile: {', '.join(log.edit(2))}")
        ended = world.run_through()
        self.say(f"  then: {ended.outcome} {ended.why}")
        if ended.outcome not in FINISHED or ended.why:
            self.check(name, [f"L11: left alone, the run ended {ended.outcome}: {ended.why or ended.said[-500:]}"])
        self.check(name, log.judge(whole=True))
        log.known = True
        before = look(os.fsencode(log.target))
        again = world.run_through()
        if again.outcome != "equal" or look(os.fsencode(log.target)) != before:
            self.check(name, [f"L4: with nothing to do the run ended {again.outcome} {again.why}, or wrote"])


def writing(log: Log) -> Fault:
    """The program that logs goes on while the run is on, and is rotated meanwhile."""

    def fault(world: World, rng: random.Random, stand: Stand) -> Disturbed:
        over, told = threading.Event(), []

        def write() -> None:
            while not over.wait(log.rng.uniform(0, 0.05)):
                with suppress(FileNotFoundError):
                    last = log.rotate if log.known else log.append
                    told.append(log.rng.choice([log.append, log.append, log.begin_line, last])())

        process = world.start()
        writer = threading.Thread(target=write)
        writer.start()
        killed = 0
        if rng.random() < 0.5:
            with suppress(subprocess.TimeoutExpired):
                process.wait(moment(world, rng))
            if process.poll() is None:
                process.kill()
                killed = 1
        ended = world.end(process)
        over.set()
        writer.join()
        return Disturbed([ended], killed, edited=True, note=f"{len(told)} edits meanwhile")

    return fault
