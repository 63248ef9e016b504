# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Any history of edits, runs, kills and edited settings over a real SSH connection, against the model and the laws.

SERVERSYNC_EXAMPLES=200 has Hypothesis look for so many new histories; without it a few are played that are always the
same. What fails is made shorter until nothing can be left out.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
from contextlib import suppress
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.faults import laws
from tests.faults.edits import DIRECTORY_EDITS, FILE_EDITS, NEW_EDITS, ORDINARY, Editor, apply
from tests.faults.world import Ended, World, known_settings
from tests.loopback import Pair
from tests.processes import kill

EXAMPLES = int(os.environ.get("SERVERSYNC_EXAMPLES", "0"))
EDITS = sorted({*FILE_EDITS, *DIRECTORY_EDITS, *NEW_EDITS} - {"socket"})
KNOWN = known_settings()
NUMBERS = itertools.count()


def choices(name: str, fallback: str) -> st.SearchStrategy[str]:
    return st.sampled_from(KNOWN[name]["enum"] if name in KNOWN else [fallback])


class Histories(RuleBasedStateMachine):
    """One element; the pair of servers is the same for all histories of a test."""

    pair: Pair

    @initialize(
        direction=choices("direction", "to_partner"),
        conflict=choices("conflict", "this_server_wins"),
        delete=choices("delete", "never"),
        # With a limit rsync brings small files, too.
        limit=st.sampled_from((None, "1G")),
    )
    def begin(self, direction: str, conflict: str, delete: str, limit: str | None) -> None:
        chosen = {"direction": direction, "conflict": conflict, "delete": delete, "bandwidth_limit": limit}
        if direction == "both" and delete == "extraneous":
            chosen["delete"] = "synced"
        if "conflict" not in KNOWN:
            chosen["conflict"] = "this_server_wins" if direction == "to_partner" else "partner_wins"
        self.world = World(
            self.pair, f"history-{next(NUMBERS)}", {**chosen, "exclude": ["*.tmp"], "max_delete": "100%"}
        )
        self.editors = [Editor(random.Random(side), f"{self.world.name}-{side}", names=ORDINARY) for side in (0, 1)]
        self.editors[1].count = 1_000_000
        self.ran = False

    @rule(side=st.sampled_from((0, 1)), do=st.sampled_from(EDITS), seed=st.integers(0, 9))
    def edit(self, side: int, do: str, seed: int) -> None:
        editor, root = self.editors[side], self.world.roots[side]
        editor.only, editor.rng = {do}, random.Random(seed)
        # Not every draw is of a group that the edit belongs to.
        edit = next((edit for edit in (editor.draw(root) for _try in range(8)) if edit is not None), None)
        if edit is not None:
            apply(root, edit)

    @rule()
    def run(self) -> None:
        world = self.world
        world.model.rules = replace(world.model.rules, deletions=self.ran)
        before, around = world.observe(), world.surroundings()
        world.predicted = world.model.predict(before.here, before.there)
        ended = world.run_through()
        after = world.observe()
        assert not world.judge(before, after, ended)
        assert ended.outcome in ("equal", "equal_with_warnings", "different"), ended.why
        assert not world.model.differences(world.predicted, after.here, after.there)
        assert not world.claims() + laws.inside(around, world.surroundings())
        world.model.settle(world.predicted, after.here, after.there)
        self.ran = True

    @precondition(lambda self: getattr(self, "ran", False))
    @rule()
    def run_again(self) -> None:
        """A run right after a run has nothing to do."""
        self.run()
        before = self.world.observe()
        ended = self.world.run_through()
        assert not laws.idle(before, self.world.observe(), ended.record or {})

    @precondition(lambda self: getattr(self, "ran", False))
    @rule(share=st.floats(0.1, 1.1), kind=st.sampled_from(("runner", "serve", "ssh", "rsync")))
    def kill(self, share: float, kind: str) -> None:
        world = self.world
        before = world.observe()
        world.predicted = world.model.predict(before.here, before.there)
        process = world.start()
        with suppress(subprocess.TimeoutExpired):
            process.wait(world.usual * share)
        for victim in [one for one in world.family(process) if one.kind == kind][:1]:
            kill(victim)
        ended: Ended = world.end(process)
        after = world.look()
        assert not world.judge(before, after, ended)
        assert not world.claims()
        world.model.absorb(after.here, after.there)

    @precondition(lambda self: getattr(self, "ran", False) and "conflict" in KNOWN)
    @rule(conflict=choices("conflict", ""), delete=choices("delete", ""))
    def edit_settings(self, conflict: str, delete: str) -> None:
        world = self.world
        if world.settings["direction"] == "both" and delete == "extraneous":
            delete = "synced"
        world.settings |= {"conflict": conflict, "delete": delete}
        world.declare()
        world.model.edited(replace(world.model.rules, conflict=conflict, delete=delete))


def test_whatever_happens_the_laws_hold(pair: Pair) -> None:
    machine = type("Histories", (Histories,), {"pair": pair})
    few = settings(
        max_examples=EXAMPLES or 3,
        stateful_step_count=25 if EXAMPLES else 12,
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(machine, settings=few)
