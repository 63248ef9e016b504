# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same edits through Unison with the equivalent preferences, and through rsync for plain mirrors.

    python tests/faults/oracles.py                    the runner against both, 60 scripts
    python tests/faults/oracles.py --of model         the reference model against them, in a second or two
    python tests/faults/oracles.py --seed 17 --count 1   one script, told in full

Final trees have to be the same, or the difference has to be one of EXPLAINED.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.faults.edits import ORDINARY, Edit, Editor, apply
from tests.faults.model import Model, Rules, short
from tests.faults.observe import Node, Tree, is_copy, tree
from tests.loopback import Pair, loopback

# What all three can carry.
EDITS = ["create", "overwrite", "replace", "append", "truncate", "rename", "delete", "chmod", "chown", "touch"]
EDITS += ["touch_back", "mkdir", "rmdir", "remove_tree"]
EDITS += ["symlink", "to_directory", "to_symlink", "to_file"]


class Policy(NamedTuple):
    """Settings of ours, and the peer's words for them."""

    name: str
    settings: dict[str, str]
    peer: str
    options: list[str]


def unison(conflict: str, delete: str, *options: str) -> Policy:
    settings = {"direction": "both", "conflict": conflict, "delete": delete}
    # Roots are ROOT1 and ROOT2 here, their real paths when it is called.
    more = ["-nodeletion", "ROOT1", "-nodeletion", "ROOT2"] if delete == "never" else []
    return Policy(f"{conflict}, delete {delete}", settings, "unison", [*options, *more])


POLICIES = [
    unison("no_winner", "synced"),
    unison("newer_wins", "synced", "-prefer", "newer"),
    unison("this_server_wins", "synced", "-prefer", "ROOT1"),
    unison("partner_wins", "synced", "-prefer", "ROOT2"),
    unison("no_winner", "never"),
    unison("this_server_wins", "never", "-prefer", "ROOT1"),
    Policy(
        "mirror",
        {"direction": "to_partner", "conflict": "this_server_wins", "delete": "extraneous"},
        "rsync",
        ["-aX", "--delete"],
    ),
    Policy(
        "mirror back",
        {"direction": "from_partner", "conflict": "partner_wins", "delete": "extraneous"},
        "rsync",
        ["-aX", "--delete"],
    ),
    Policy(
        "copy",
        {"direction": "to_partner", "conflict": "this_server_wins", "delete": "never"},
        "rsync",
        ["-aX"],
    ),
]


class Difference(NamedTuple):
    """A path that came out differently; before: (here, there) when the run began; old: when they last agreed."""

    path: bytes
    ours: tuple[Node | None, Node | None]
    peer: tuple[Node | None, Node | None]
    before: tuple[Node | None, Node | None]
    old: Node | None
    policy: Policy
    # Those above and below it, as they were before.
    around: list[tuple[Node | None, Node | None, Node | None]]


def moved(difference: Difference, part: Callable[[Node], object]) -> tuple[bool, bool]:
    """Whether a part of it has changed here and there since both agreed."""
    here, there = difference.before
    old = difference.old
    return (
        here is not None and old is not None and part(here) != part(old),
        there is not None and old is not None and part(there) != part(old),
    )


def by_unison(fits: Callable[[Difference], bool]) -> Callable[[Difference], bool]:
    return lambda difference: difference.policy.peer == "unison" and fits(difference)


def merges(difference: Difference) -> bool:
    """The content moved on one side alone, the metadata on the other alone."""
    data, meta = moved(difference, lambda node: node.data), moved(difference, lambda node: node.metadata)
    return any(data) and any(meta) and not (any(one and other for one, other in zip(data, meta, strict=True)))


def metadata_on_both(difference: Difference) -> bool:
    return all(moved(difference, lambda node: (node.metadata, node.time)))


def deletion_against_edit(difference: Difference) -> bool:
    settings = difference.policy.settings
    by_rule = settings["delete"] == "never" or settings["conflict"] == "newer_wins"
    return by_rule and None in difference.before and difference.old is not None


def deletion_against_metadata(difference: Difference) -> bool:
    node = difference.before[0] or difference.before[1]
    old = difference.old
    return None in difference.before and node is not None and old is not None and node.data == old.data


def replaced(difference: Difference) -> bool:
    kinds = {node.kind for node in (*difference.before, difference.old) if node is not None}
    return difference.policy.settings["delete"] == "never" and len(kinds) > 1


def type_change(difference: Difference) -> bool:
    kinds = [{node.kind for node in nodes if node is not None} for nodes in difference.around]
    return any("d" in found and len(found) > 1 for found in kinds)


def whole_directory(difference: Difference) -> bool:
    return any(
        any(node is not None and node.kind == "d" for node in nodes) and None in nodes for nodes in difference.around
    )


# What is different on purpose; the first that fits.
EXPLAINED: list[tuple[str, Callable[[Difference], bool]]] = [
    ("content moved on one side, metadata on the other: ours merges, Unison has a conflict", by_unison(merges)),
    ("metadata moved on both sides: Unison merges field by field, ours goes by the rule", by_unison(metadata_on_both)),
    (
        "a deletion against an edit: with never and newer wins the edit outlives it, in Unison it is a conflict",
        by_unison(deletion_against_edit),
    ),
    (
        "a deletion against new mode, owner or time: a change to ours, for Unison the deletion wins",
        by_unison(deletion_against_metadata),
    ),
    ("a file against a link: for Unison's nodeletion that is a deletion", by_unison(replaced)),
    ("a directory against something else: ours decides path by path, Unison and rsync all at once", type_change),
    ("a directory gone on one side: Unison decides it with all that is below", by_unison(whole_directory)),
]


def key(node: Node | None) -> tuple[object, ...] | None:
    """What both carry: no times of links, and times by the second."""
    if node is None:
        return None
    mode, owner, _xattrs = node.metadata
    if node.kind == "l":
        return (node.data,)
    return node.data, mode, owner if os.geteuid() == 0 else None, node.time // 10**9


class World:
    """The trees of one script: ours, and the peer's, which begin the same and get the same edits."""

    def __init__(self, directory: Path, policy: Policy, pair: Pair | None, seed: int) -> None:
        self.policy = policy
        self.seed = seed
        self.pair = pair
        self.peer = [directory / "peer-here", directory / "peer-there"]
        self.ours = self.peer
        self.directory = directory
        if pair is not None:
            self.ours = [directory / "ours-here", pair.partner_path.parent / f"ours-{seed}"]
            settings = {"exclude": [], "max_delete": "100%", **policy.settings}
            pair.declare(f"script-{seed}", settings=settings, pairs=[(self.ours[0], self.ours[1])])
        for root in {*self.peer, *self.ours}:
            root.mkdir(parents=True)
        self.model = Model(Rules(**policy.settings, owners=os.geteuid() == 0))

    def edit(self, side: int, edits: list[Edit]) -> None:
        """Edits that were made on ours, made on the peer's, too."""
        if self.ours is not self.peer:
            for edit in edits:
                apply(os.fsencode(self.peer[side]), edit)

    def trees(self, roots: list[Path]) -> tuple[Tree, Tree]:
        # Unison sets neither times nor owners of links.
        def comparable(root: Path) -> Tree:
            found = tree(os.fsencode(root))
            return {
                path: node._replace(mtime=0, owner=(0, 0)) if node.kind == "l" else node for path, node in found.items()
            }

        return comparable(roots[0]), comparable(roots[1])

    def run_peer(self) -> None:
        one, other = map(str, self.peer)
        options = [{"ROOT1": one, "ROOT2": other}.get(word, word) for word in self.policy.options]
        if self.policy.peer == "rsync":
            source, target = (one, other) if self.policy.settings["direction"] == "to_partner" else (other, one)
            argv = ["rsync", *options, "--modify-window=-1", f"{source}/", f"{target}/"]
        else:
            own = ["-owner", "-group", "-numericids"] if os.geteuid() == 0 else []
            argv = ["unison", one, other, "-batch", "-ui", "text", "-times", "-perms", "-1", *own, *options]
            argv += ["-confirmbigdel=false", "-ignore", "Name .serversync", "-fastcheck", "false"]
        environment = {**os.environ, "UNISON": str(self.directory / "unison")}
        done = subprocess.run(argv, capture_output=True, env=environment, check=False)
        # Unison's 1: conflicts were skipped, as wanted where nobody wins; rsync's 23: a directory was in the way.
        assert done.returncode in (0, {"unison": 1, "rsync": 23}[self.policy.peer]), done.stderr.decode(
            errors="replace"
        )


def play(directory: Path, seed: int, pair: Pair | None, tell: bool) -> tuple[list[str], list[str]]:
    """One script of three rounds; what nothing explains, and the explanations that were needed."""
    policy = POLICIES[seed % len(POLICIES)]
    world = World(directory, policy, pair, seed)
    rng = random.Random(seed)
    editors = [Editor(rng, f"{seed}{side}", names=ORDINARY, only=EDITS, depth=3, grain=10**9) for side in "ht"]
    editors[1].count = 1_000_000 // 7  # Its own span of times.
    old: Tree = {}
    for number in range(3):
        for side, editor in enumerate(editors):
            if number or side == (policy.settings["direction"] == "from_partner"):
                made = editor.script(os.fsencode(world.ours[side]), 25 if number == 0 else 8)
                world.edit(side, made)
                if tell:
                    print(f"round {number}, {('here', 'there')[side]}:", *made, sep="\n  ")
        before = world.trees(world.ours)
        predicted = world.model.predict(*before)
        world.run_peer()
        peer = world.trees(world.peer)
        if pair is not None:
            pair.here.serversync("run", f"script-{seed}", "--json", code=None)
            ours = world.trees(world.ours)
        else:
            ours = predicted.here, predicted.there
        reasons, unexplained = [], []
        for path in sorted({*ours[0], *ours[1], *peer[0], *peer[1]}):
            found = [(result[0].get(path), result[1].get(path)) for result in (ours, peer)]
            if [key(node) for node in found[0]] == [key(node) for node in found[1]] or is_copy(path):
                continue
            if pair is None and predicted.is_loose(path):
                reasons.append("the model leaves it open")
                continue
            around = [
                (before[0].get(other), before[1].get(other), old.get(other))
                for other in {*before[0], *before[1], *old}
                if (path + b"/").startswith(other + b"/") or other.startswith(path + b"/")
            ]
            nodes = before[0].get(path), before[1].get(path)
            difference = Difference(path, found[0], found[1], nodes, old.get(path), policy, around)
            reason = next((text for text, fits in EXPLAINED if fits(difference)), None)
            if reason:
                reasons.append(reason)
            else:
                told = "; ".join(
                    f"{name}: {short(one)} | {short(other)}"
                    for name, (one, other) in (
                        ("ours", found[0]),
                        (policy.peer, found[1]),
                        ("before", nodes),
                        ("agreed", (difference.old, None)),
                    )
                )
                unexplained.append(f"seed {seed} ({policy.name}), round {number}, {path!r}: {told}")
        if reasons or unexplained:
            # From here on the two are in different worlds.
            return unexplained, reasons
        world.model.settle(predicted, *(ours if pair is not None else peer))
        old = {path: node for path, node in old.items() if path in ours[0] or path in ours[1]}
        old |= {path: node for path, node in ours[0].items() if key(node) == key(ours[1].get(path))}
    return [], []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", choices=["runner", "model"], default="runner")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="the first; each script has the next one")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serversync-oracles-") as name:
        directory = Path(name)
        if chosen.of == "model":
            return judge(directory, chosen, None)
        with loopback(directory / "servers") as pair:
            return judge(directory, chosen, pair)


def judge(directory: Path, chosen: argparse.Namespace, pair: Pair | None) -> int:
    needed: Counter[str] = Counter()
    same, wrong = 0, []
    for seed in range(chosen.seed, chosen.seed + chosen.count):
        unexplained, reasons = play(directory / str(seed), seed, pair, chosen.count == 1)
        shutil.rmtree(directory / str(seed))
        wrong += unexplained
        needed.update(set(reasons))
        same += not unexplained and not reasons
    print(f"{chosen.count} scripts: {same} came out the same, {len(wrong)} paths differ and nothing explains it")
    for reason, count in needed.most_common():
        print(f"  {count:4}  {reason}")
    for text in wrong:
        print(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
