# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is killed before any one of its steps: nothing is lost, and the next run ends as if nothing had been.

    python tests/faults/steps.py               every step of every sort of job, some minutes
    python tests/faults/steps.py --boundaries  before and after each journal, sync and commit of the archive

The jobs are between two directories of one server, so that the process that is killed is both servers at once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.faults import laws
from tests.faults.observe import Node, State
from tests.killing import BOUNDARIES, arm
from tests.loopback import PACKAGE, Server

TIME = 1_600_000_000


def runner() -> Callable[[str], int]:
    """The runner's command line; what it needs is read once, before any of its processes begins."""
    sys.path.insert(0, str(PACKAGE))
    import_module("jsonschema")
    main: Callable[[str], int] = import_module("serversync.cli").main
    return main


command = runner()
# Direction and rule.
JOBS = {"both": "this_server_wins", "to_partner": "keep_both", "from_partner": "newer_wins"}


def write(path: Path, text: str, when: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (TIME + when, TIME + when))


def agree(root: Path) -> None:
    for number, name in enumerate(["stays", "updated", "deleted", "mode", "theirs", "one", "kind", "d/x", "gone/x"]):
        write(root / name, f"{name}, agreed", number)
    (root / "one").chmod(0o640)
    (root / "two").hardlink_to(root / "one")
    (root / "link").symlink_to("stays")
    (root / "empty").mkdir()


def edit(here: Path, there: Path, direction: str) -> None:
    write(here / "new", "new", 100)
    write(here / "tree" / "x", "new in a new directory", 101)
    write(here / "tree" / "deep" / "y", "and below it", 102)
    (here / "tree" / "way").symlink_to("deep/y")
    write(here / "updated", "updated", 103)
    (here / "deleted").unlink()
    (here / "mode").chmod(0o600)
    shutil.rmtree(here / "gone")
    (here / "link").unlink()
    (here / "link").symlink_to("updated")
    (here / "three").hardlink_to(here / "one")
    (here / "kind").unlink()
    write(here / "kind" / "inside", "was a file", 104)
    write(here / "theirs", "changed here", 105)
    write(there / "theirs", "changed there", 106)
    if direction == "both":
        write(there / "back", "new there", 107)
        (there / "empty").rmdir()
        write(there / "d" / "x", "updated there", 108)


class World:
    """Two directories of this server and a job between them, made anew for every step."""

    def __init__(self, directory: Path, direction: str, conflict: str) -> None:
        self.server = Server(directory / "site")
        self.here, self.there = directory / "here", directory / "there"
        self.log = directory / "log"
        self.direction = direction
        self.here.mkdir()
        self.there.mkdir()
        settings = {"direction": direction, "exclude": [], "delete": "synced", "conflict": conflict}
        self.server.declare("job", [(self.here, self.there)], settings={**settings, "max_delete": "100%"})
        self.known: set[bytes] = set()

    def observe(self) -> State:
        return State.of(os.fsencode(self.here), os.fsencode(self.there))

    def run(self, step: int = 0) -> int:
        """How the run ended: its exit code, or the signal that it was killed by, below zero. ``log`` gets its steps."""
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.environ.update(self.server.environment)
                steps = arm(step, self.log)
                sys.argv = ["serversync", "run", "job"]
                code = command("user")
                self.log.write_text(" ".join(steps))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def begin(self) -> State:
        """Agreed on, then edited."""
        agree(self.here)
        assert self.run() == 0
        agreed = self.observe()
        edit(self.here, self.there, self.direction)
        edited = self.observe()
        self.known = {
            node.content
            for state in (agreed, edited)
            for tree in (state.here, state.there)
            for node in tree.values()
            if node.kind == "f"
        }
        return edited


def whole(tree: dict[bytes, Node]) -> dict[bytes, object]:
    return {path: node.whole for path, node in tree.items()}


def finished(directory: Path, direction: str) -> tuple[State, list[str]]:
    """What an undisturbed run comes to, and the names of its steps."""
    world = World(directory, direction, JOBS[direction])
    world.begin()
    code = world.run()
    assert code == 0, code
    return world.observe(), world.log.read_text().split()


def play(directory: Path, direction: str, step: int, expected: State) -> list[str]:
    """Kills a run before one of its steps; what was wrong."""
    world = World(directory, direction, JOBS[direction])
    before = world.begin()
    code = world.run(step)
    if code != -9:
        return [f"step {step} of {direction} did not come: the run ended with {code}"]
    killed, where = world.observe(), world.log.read_text().strip()
    found = laws.kept(before, killed) + laws.whole(killed, world.known)
    code = world.run()
    if code != 0:
        found.append(f"L11: the next run ended with {code}")
    after = world.observe()
    found += laws.kept(before, after) + laws.whole(after, world.known)
    for side, one, other in (("here", after.here, expected.here), ("there", after.there, expected.there)):
        found += [
            f"L11: {side}: {path!r} is not as after an undisturbed run"
            for path in sorted({*one, *other})
            if whole(one).get(path) != whole(other).get(path)
        ]
    world.run()
    found += laws.idle(after, world.observe(), {})
    return [f"{direction}, killed before step {where}: {text}" for text in found]


def boundary(steps: list[str], number: int) -> bool:
    """Whether the step of this number, counted from 1, begins or follows one of the boundaries."""
    return bool({*steps[max(0, number - 2) : number]} & BOUNDARIES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boundaries", action="store_true")
    parser.add_argument("--direction", choices=list(JOBS), action="append")
    parser.add_argument("--share", default="1/1", help="N/M: of M equal shares of the steps the N-th")
    chosen = parser.parse_args()
    share, shares = map(int, chosen.share.split("/"))
    kills, wrong = 0, []
    for direction in chosen.direction or JOBS:
        with tempfile.TemporaryDirectory(prefix="serversync-steps-") as name:
            expected, steps = finished(Path(name), direction)
        numbers = [number for number in range(1, len(steps) + 1) if not chosen.boundaries or boundary(steps, number)]
        for number in numbers[share - 1 :: shares]:
            with tempfile.TemporaryDirectory(prefix="serversync-steps-") as name:
                wrong += play(Path(name), direction, number, expected)
            kills += 1
    print(f"{kills} kills, each before another step: {len(wrong)} times wrong", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
