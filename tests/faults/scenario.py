# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One scenario of a campaign, drawn from a seed: rounds of edits, a disturbed run, and one that is left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.faults import laws
from tests.faults.disturb import FAULTS, FINISHED, OLD_ARCHIVES, Stand, possible
from tests.faults.edits import EPOCH, NAMES, ORDINARY, Editor, content
from tests.faults.model import Row
from tests.faults.observe import State, is_copy
from tests.faults.world import World, known_settings

SEEDS = Path(__file__).resolve().parent / "seeds"
ROUNDS = 3


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
            os.utime(deep / "bottom", (EPOCH, EPOCH))
        if rng.random() < 0.1:
            with open(root / "sparse", "wb") as stream:
                stream.truncate(256 << 20)
                stream.seek(200 << 20)
                stream.write(content(f"{world.name}-sparse", 100))
            os.utime(root / "sparse", (EPOCH, EPOCH))
        if rng.random() < 0.3:
            (root / "out").symlink_to(os.fsdecode(world.outside["here"]))
            (root / "theirs").symlink_to(os.path.join(os.fsdecode(world.outside["there"]), "theirs"))


def in_the_way(world: World, state: State) -> bool:
    """Whether a directory that holds nothing but excluded files is where the other side has something else: who has put
    them there has to move it away, and until then runs say so."""
    for tree, other in ((state.here, state.there), (state.there, state.here)):
        shown, elsewhere = world.model.visible(tree), world.model.visible(other)
        if any(node.kind == "d" and path not in shown and path in elsewhere for path, node in tree.items()):
            return True
    return False


class Scenario:
    """One seed, from its first tree to its last round; ``wrong`` is empty where all is as it has to be."""

    def __init__(self, stand: Stand, kind: str, seed: int, only: list[str], tell: bool) -> None:
        self.stand = stand
        self.kind = kind
        self.seed = seed
        self.tell = tell
        self.rng = random.Random(seed)
        impossible = possible(stand)
        fitting = {name: kind for name, kind in FAULTS.items() if name not in impossible and self.suits(name)}
        self.faults = {name: kind for name, kind in fitting.items() if name in only} or fitting
        self.settings = draw_settings(self.rng)
        if kind == "tree" and self.rng.random() < 0.4:
            # With a limit rsync brings small files, too.
            self.settings["bandwidth_limit"] = "1G"
        self.wrong: list[str] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.kills = self.runs = 0
        self.story: list[str] = []

    def suits(self, fault: str) -> bool:
        """Whether the fault is one of what is played here."""
        return self.kind != "sftp" or fault not in ("kill-serve", "kill-ssh", "kill-rsync")

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
                Editor(self.rng, f"{self.seed}{side}", names=pool, quiet=quiet, large=large, **world.can_carry)
                for side in ("h", "t")
            ]
            editors[1].count = 1_000_000
            if not roots:
                odd(self.rng, world)
            for number, name in enumerate(chosen):
                if number and self.rng.random() < 0.25:
                    self.edit_settings(world, turn=roots is None)
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

    def edit_settings(self, world: World, turn: bool) -> None:
        """Somebody edits the job between two runs; turn: also its direction."""
        drawn = draw_settings(self.rng)
        for name in self.rng.sample(["direction"] * turn + ["conflict", "delete"], self.rng.choice([1, 1, 2])):
            self.settings[name] = drawn[name]
        if self.settings["direction"] == "both" and self.settings["delete"] == "extraneous":
            self.settings["delete"] = "synced"
        world.declare()
        now = {name: self.settings[name] for name in ("direction", "conflict", "delete")}
        world.model.edited(replace(world.model.rules, **now))
        self.say(f"settings edited: {json.dumps(now)}")

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
            doubtful, remembered = world.model.doubtful, {}
            odd_one = len(disturbed.ended) > 1 or disturbed.away or disturbed.skew
            if not odd_one and disturbed.ended[0].outcome in FINISHED and not disturbed.ended[0].guarded:
                world.model.settle(world.predicted, middle.here, middle.there)
                world.model.rules = self.rules(world, deletions=True)
            else:
                # What was the same before it, or gone on both, came to be archived so only if the run got that far.
                early = {
                    path
                    for path in {*before.here} & {*before.there} - {*world.model.rows}
                    if world.model.same(before.here[path], before.there[path])
                }
                remembered = dict(world.model.rows)
                early |= {path for path in world.model.rows if path not in before.here and path not in before.there}
                # Nor whether the archive has what was decided of a path that had agreed.
                early |= {
                    path
                    for path, status in world.predicted.statuses.items()
                    if status in ("kept", "left", "unresolved")
                    and path in remembered
                    and remembered[path].status == "agreed"
                }
                world.model.absorb(middle.here, middle.there)
                if not world.model.rules.deletions:
                    # How far the first run got with what it would not delete nobody knows.
                    world.model.doubt(middle.here, middle.there)
                world.model.doubtful = world.model.doubtful | early
            for side, editor in enumerate(editors):
                for edit in world.edit(editor, world.roots[side], 3):
                    self.say(f"  meanwhile {('here', 'there')[side]}: {edit}")
            now = world.observe()
            world.model.doubtful = world.model.doubtful | self.edited_before_archived(world, before, middle, now)
            middle = now
            world.model.doubtful = world.model.doubtful | self.come_again(world, remembered, middle)
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
        if ended.outcome not in FINISHED and not in_the_way(world, after):
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

    @staticmethod
    def edited_before_archived(world: World, before: State, middle: State, now: State) -> set[bytes]:
        """Paths that a run that was cut short had put on a side, and that users changed there before it was archived:
        the journal tells what was put as long as it is that."""

        def same(one: Any, other: Any) -> bool:
            return one is other if one is None or other is None else bool(world.model.same(one, other))

        sides = [(before.here, middle.here, now.here), (before.there, middle.there, now.there)]
        return {
            path
            for was, put, edited in sides
            for path in put
            if not same(was.get(path), put[path]) and not same(put[path], edited.get(path))
        }

    @staticmethod
    def come_again(world: World, remembered: dict[bytes, Row], now: State) -> set[bytes]:
        """Paths that a run had deleted, of which nothing tells that what is there now is another file."""
        found = set()
        for path in remembered.keys() - world.model.rows.keys():
            row, here, there = remembered[path], now.here.get(path), now.there.get(path)
            if world.sftp or any(
                one and old and one.inode == old.inode for one, old in ((here, row.here), (there, row.there))
            ):
                found.add(path)
        return found

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
            self.check(name, laws.converged(last, standing, world.owners))

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
        partner = Path(pair.partner_path).parent / f"small-{self.seed}"
        mount = partner if there else here
        for directory in (here, partner):
            directory.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,nr_inodes=600", "tmpfs", str(mount)], check=True)
        held.callback(subprocess.run, ["umount", "-l", str(mount)], check=True)
        return here / "data", partner / "data"

    def clear(self, world: World) -> None:
        self.runs = world.runs
        for root in (world.here, world.there):
            for suffix in ("", ".backup", ".away"):
                shutil.rmtree(root.with_name(root.name + suffix), ignore_errors=True)
        OLD_ARCHIVES.pop(world.name, None)

    def keep(self) -> Path:
        SEEDS.mkdir(exist_ok=True)
        path = SEEDS / f"{self.seed}.json"
        kept = {"seed": self.seed, "kind": self.kind, "settings": self.settings, "faults": sorted(self.faults)}
        kept |= {"wrong": self.wrong[:20], "story": self.story[-120:]}
        path.write_text(json.dumps(kept, indent=1) + "\n")
        return path
