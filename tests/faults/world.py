# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One element between two servers, with what is needed to disturb its runs and to see what they did."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import laws
from tests.faults.edits import DIRECTORY_EDITS, FILE_EDITS, NEW_EDITS, QUIET, Editor
from tests.faults.model import Model, Prediction, Rules
from tests.faults.observe import ANCHOR, State, archives, look, surroundings
from tests.loopback import PACKAGE, Pair
from tests.processes import Process, family
from tests.sftp import SftpPair

# Longer than any run of these small trees, and than a door stays open for a dead one.
PATIENCE = 150.0
INTERNAL = 70
EPOCH = 1_500_000_000 * 10**9
ROOT = os.geteuid() == 0
SFTP_EDITS = {*FILE_EDITS, *NEW_EDITS, *DIRECTORY_EDITS, *QUIET} - {"fifo", "socket", "device", "xattr", "chown"}


def known_settings() -> dict[str, Any]:
    """What the runner under test has for settings: name -> its part of the schema."""
    schema = json.loads((PACKAGE / "serversync" / "job.schema.json").read_text())
    settings: dict[str, Any] = schema["properties"]["settings"]["properties"]
    return settings


@dataclass
class Ended:
    """How a run ended: its exit code (negative: the signal), its record if it told one, what it said."""

    code: int | None
    record: dict[str, Any] | None
    said: str

    @property
    def outcome(self) -> str:
        if self.code is None:
            return "hung"
        if self.code < 0 or self.code == 137:
            return "killed"
        if self.record is not None:
            return str(self.record["state"])
        return f"exit {self.code}"

    @property
    def why(self) -> str:
        """What the record gives as reasons."""
        if self.record is None:
            return ""
        found = [str((self.record.get("error") or {}).get("message", ""))]
        for element in self.record.get("elements", []):
            found += [str(element.get(name)) for name in ("guards", "warnings", "problems") if element.get(name)]
        return "; ".join(text for text in found if text)

    @property
    def skipped(self) -> bool:
        """Somebody else was on: another run, or what is left of one."""
        if self.record is None:
            return False
        errors = [self.record.get("error"), *(element.get("error") for element in self.record.get("elements", []))]
        codes = {(error or {}).get("code") for error in errors}
        return self.record["state"] == "skipped" or "running" in codes

    @property
    def guarded(self) -> bool:
        return bool(self.record) and any(element.get("guards") for element in (self.record or {}).get("elements", []))


class World:
    """A job of one element. Roots are made empty, or are given where they lie on file systems of their own."""

    def __init__(
        self, pair: Pair | SftpPair, name: str, settings: dict[str, Any], roots: tuple[Path, Path] | None = None
    ) -> None:
        self.pair = pair
        self.name = name
        self.settings = settings
        base = pair.path.parent
        self.here, self.there = roots or (base / "replicas" / name, Path(pair.partner_path).parent / name)
        for root in (self.here, self.there):
            root.mkdir(parents=True, exist_ok=True)
        for root in self.roots:
            with open(os.path.join(root, ANCHOR), "w") as stream:
                stream.write("holds the ground\n")
            os.utime(os.path.join(root, ANCHOR), ns=(EPOCH, EPOCH))
        self.outside = {"here": os.fsencode(base / "outside"), "there": os.fsencode(base / "outside-there")}
        for directory in map(os.fsdecode, self.outside.values()):
            Path(directory).mkdir(exist_ok=True)
            (Path(directory) / "theirs").write_text("nobody's to touch\n")
        self.declare()
        # SFTP has no words for owners.
        self.owners = ROOT and not self.sftp
        rules = {key: settings[key] for key in ("direction", "conflict", "delete") if key in settings}
        rules = {"conflict": "this_server_wins", **rules, "owners": self.owners, "change_times": not self.sftp}
        self.model = Model(Rules(**rules), self.excluded)
        # Contents that somebody wrote as a whole; see laws.whole.
        self.known: set[bytes] = set()
        # What is expected of the run that is judged.
        self.predicted = Prediction()
        # Seconds that a run takes.
        self.usual = 1.0
        # Runs that were started.
        self.runs = 0

    def declare(self, **options: Any) -> None:
        defaults = {"direction": "to_partner", "delete": "never", "exclude": []}
        known = known_settings()
        settings = {key: value for key, value in {**defaults, **self.settings}.items() if key in known}
        self.pair.declare(self.name, settings=settings, pairs=[(self.here, self.there)], **options)

    @property
    def sftp(self) -> bool:
        return isinstance(self.pair, SftpPair)

    @property
    def can_carry(self) -> dict[str, Any]:
        """What of edits the connection has words for; all else is listed, and fails the element."""
        return {"only": SFTP_EDITS, "grain": 10**9} if self.sftp else {}

    def picks_here(self, rng: random.Random) -> bool:
        """Of which server something shall be disturbed: this one's, where nothing of ours runs on the partner."""
        return rng.random() < 0.5 or self.sftp

    @staticmethod
    def excluded(path: bytes) -> bool:
        """As the pattern *.tmp has it."""
        return path.endswith(b".tmp")

    @property
    def roots(self) -> tuple[bytes, bytes]:
        return os.fsencode(self.here), os.fsencode(self.there)

    @property
    def target(self) -> Path:
        """A root that may be written; with both directions the partner's."""
        return self.here if self.settings["direction"] == "from_partner" else self.there

    @property
    def source(self) -> Path:
        return self.there if self.target == self.here else self.here

    # -- runs --------------------------------------------------------------------------------------------------------

    def start(self) -> subprocess.Popen[bytes]:
        self.runs += 1
        return subprocess.Popen(
            self.pair.here.command("run", self.name, "--json"),
            env=self.pair.here.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def end(self, process: subprocess.Popen[bytes], patience: float = PATIENCE) -> Ended:
        """Waits for a run; one that hangs is killed, and that is how it ended."""
        try:
            out, said = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            out, said = process.communicate()
            return Ended(None, None, said.decode(errors="replace"))
        try:
            told = json.loads(out)
        except ValueError:
            told = {}
        # Of a run that did not come to have a record there is the failure alone.
        record = told if "state" in told else None
        return Ended(process.returncode, record, said.decode(errors="replace") or str(told.get("failure", "")))

    def run(self) -> Ended:
        return self.end(self.start())

    def run_through(self) -> Ended:
        """A run that is on its own: what a killed one has left behind may hold the locks for a while."""
        begun = time.monotonic()
        while True:
            started = time.monotonic()
            ended = self.run()
            if not ended.skipped or time.monotonic() - begun > PATIENCE:
                self.usual = 0.7 * self.usual + 0.3 * (time.monotonic() - started)
                return ended

    def family(self, process: subprocess.Popen[bytes]) -> list[Process]:
        """The processes of its runs on both servers, the run itself first."""
        assert self.pair.there.process is not None
        door = self.pair.there.process.pid
        marks = [str(self.pair.here.home), str(self.pair.there.home)]
        those = family([process.pid, door], marks)
        return [Process(process.pid, 0, tuple(map(str, process.args))), *those]  # type: ignore[arg-type]

    # -- edits and observation ---------------------------------------------------------------------------------------

    def edit(self, editor: Editor, side: bytes, count: int) -> list[str]:
        made = []
        for _number in range(count):
            for edit in editor.script(side, 1):
                made.append(str(edit))
                # What is replaced at once may be the content of another name, also of one among the versions.
                node = look(os.path.join(side, edit.path))
                if node is not None and node.kind == "f":
                    self.known.add(node.content)
        return made

    def observe(self) -> State:
        state = State.of(*self.roots)
        self.known |= {node.content for tree in (state.here, state.there) for node in tree.values() if node.kind == "f"}
        return state

    def look(self) -> State:
        """Without taking what is there for whole."""
        return State.of(*self.roots)

    def surroundings(self) -> dict[bytes, tuple[int, ...]]:
        return surroundings(self.outside)

    def archives(self) -> list[str]:
        return [path for path in archives(self.pair.here) if f"/{self.name}/" in path or f"/{self.name}." in path]

    # -- laws --------------------------------------------------------------------------------------------------------

    def judge(self, before: State, after: State, ended: Ended, *, alone: bool = True, known: bool = True) -> list[str]:
        """The laws for one run. alone: nobody edited meanwhile; known: the model knows what had agreed before it."""
        wrong = []
        if ended.code is None:
            wrong.append(f"the run hung: {ended.said[-300:]}")
        if ended.code == INTERNAL:
            wrong.append(f"the runner broke: {ended.said[-1500:]}")
        if alone:
            wrong += laws.kept(before, after) + laws.whole(after, self.known)
            agreed = {
                path: (row.here, row.there)
                for path, row in self.model.rows.items()
                if row.status == "agreed" and row.here and row.there
            }
            if known:
                wrong += laws.deletions(agreed, before, after, self.may_delete, self.model.visible)
            if ended.guarded:
                wrong += laws.untouched(before, after, "a guard stopped the run")
            if ended.record is not None:
                wrong += laws.states(ended.record, after, lambda path: self.hidden(after, path), self.owners)
        return wrong

    def hidden(self, state: State, path: bytes) -> bool:
        """Excluded, or a directory that exists only for what is; and what rules left only on the target."""
        return all(path not in self.model.visible(tree) for tree in (state.here, state.there))

    def may_delete(self, path: bytes, side: str) -> bool:
        """Where the settings let a run delete what has not agreed, or a type change takes it along."""
        target = "partner" if self.target == self.there else "this server"
        if self.settings.get("delete") == "extraneous" and side == target:
            return True
        if self.settings.get("conflict", "this_server_wins") in ("this_server_wins", "partner_wins"):
            return True
        row = self.model.rows.get(path)
        return (row is not None and row.status != "agreed") or self.predicted.is_loose(path)

    def claims(self) -> list[str]:
        """L3, on a copy of each archive as the runner reads it itself; what it says is damaged claims nothing."""
        wrong = []
        for path in self.archives():
            if not path.endswith(".sqlite"):
                continue
            if str(PACKAGE) not in sys.path:
                sys.path.insert(0, str(PACKAGE))
            from serversync.archive import Archive, DamagedArchive

            with tempfile.TemporaryDirectory() as directory:
                for suffix in ("", "-wal"):
                    if os.path.exists(path + suffix):
                        shutil.copy(path + suffix, os.path.join(directory, f"copy.sqlite{suffix}"))
                with suppress(DamagedArchive), Archive(Path(directory) / "copy.sqlite") as archive:
                    wrong += laws.claims(archive.below(b""), {"here": self.roots[0], "there": self.roots[1]})
        return wrong
