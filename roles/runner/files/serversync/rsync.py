# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How rsync is called and what its output and exit codes mean. Pure but for ``execute``."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import IO

from serversync.failure import Failure

# The size of a record stays bounded however many paths an element has.
NAMED_PATHS = 200
LONGEST_LINE = 65536
# Lines of ours among rsync's messages: itemised change, size, name.
MARK = ">>"
FORMAT = f"{MARK}%i|%l|%n"

# rsync(1), EXIT VALUES: those that another attempt can cure.
TRANSIENT = {10, 11, 12, 20, 24, 30, 35, 255}
MEANING = {
    1: "syntax or usage error",
    2: "the two rsync versions do not fit",
    3: "a path could not be selected",
    4: "an action that the partner's rsync does not have",
    5: "the partner's rsync daemon refused the module",
    10: "the connection failed",
    11: "reading or writing a file failed",
    12: "the connection broke",
    14: "rsync could not start its helper",
    20: "stopped by a signal",
    22: "out of memory",
    23: "some paths could not be copied",
    24: "some paths vanished while they were read",
    30: "nothing came for too long",
    35: "the daemon did not answer in time",
    255: "the SSH connection failed",
}


@dataclass(frozen=True)
class Change:
    """One path that rsync changed (or would): ``new``, ``update`` or ``attributes``; size in bytes, of files only."""

    what: str
    name: str
    size: int


@dataclass
class Outcome:
    """What one rsync did. ``sent`` is bytes of file contents that crossed; ``problems`` are rsync's own lines."""

    code: int = 0
    created: int = 0
    updated: int = 0
    attributes: int = 0
    files: int = 0
    sent: int = 0
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0

    @property
    def changed(self) -> int:
        return self.created + self.updated + self.attributes

    def add_problem(self, line: str) -> None:
        self.problem_count += 1
        if len(self.problems) < NAMED_PATHS:
            self.problems.append(line)


def command(
    source: str,
    stage: str,
    *,
    files_from: str | None,
    basis: str,
    preserve: frozenset[str],
    privileged: bool,
    users: Mapping[int, int],
    groups: Mapping[int, int],
    remote_shell: str | None = None,
    bandwidth_limit: int | None = None,
    compress: bool = False,
    anew: bool = False,
    partial: str | None = None,
    watched: bool = False,
) -> list[str]:
    """The argv that brings files into a stage.

    source, stage: as Server.address names the two directories, or files; files_from: a file with a ``list_of`` paths
    below the source, None where that is the file; basis: the live tree, as seen from the stage; privileged: the
    target's process may change owners without being root; users, groups: numbers of the source -> numbers of the
    target; remote_shell: rsync's -e, split by rsync on blanks; bandwidth_limit: bytes per second; anew: also files of
    the basis' size and time, whose contents differ; partial: the target's directory for what an end in the middle of a
    file leaves, from which the next rsync goes on; watched: it tells how far it is.
    """
    argv = ["rsync", "--secluded-args"]
    argv += ["--from0", f"--files-from={files_from}", "--no-implied-dirs"] if files_from else []
    # Without --modify-window=-1 rsync takes files whose times differ by less than a second for equal.
    argv += [f"--compare-dest={basis}", "--no-whole-file", "--modify-window=-1", "--times"]
    argv += ["--ignore-times"] if anew else []
    argv += ["--perms"] if "permissions" in preserve else []
    argv += ["--sparse"] if "sparse" in preserve else []
    if "owner" in preserve or "group" in preserve:
        argv += ["--numeric-ids"]
        for option, numbers in (("owner", users), ("group", groups)):
            if option in preserve:
                argv.append(f"--{option}")
                changed = sorted((old, new) for old, new in numbers.items() if old != new)
                if changed:
                    kind = "usermap" if option == "owner" else "groupmap"
                    argv.append(f"--{kind}=" + ",".join(f"{old}:{new}" for old, new in changed))
    if privileged:
        # A process that may change owners but is not root would otherwise silently keep its own.
        argv.append("--super")
    argv += [f"--bwlimit={bandwidth_limit // 1024 or 1}K"] if bandwidth_limit else []
    argv += ["--compress"] if compress else []
    argv += [f"--partial-dir={partial}"] if partial else []
    argv += ["--timeout=600", "--stats", "--no-human-readable"]
    # A line for each path costs both sides time that nobody has asked for.
    argv += [f"--out-format={FORMAT}", "--info=progress2"] if watched else []
    argv += ["-e", remote_shell] if remote_shell else []
    return [*argv, "--", source, stage]


def list_of(paths: Iterable[bytes]) -> bytes:
    """The contents of ``files_from``; without the ./ rsync would take names that begin with ; or # for comments."""
    return b"".join(b"./%b\0" % path for path in paths)


def unescape(name: str) -> str:
    """rsync prints bytes that it takes for unprintable as ``\\#ooo``; the name as Python has it."""
    data = name.encode("utf-8", "surrogateescape")
    data = re.sub(rb"\\#([0-7]{3})", lambda match: bytes([int(match.group(1), 8)]), data)
    return data.decode("utf-8", "surrogateescape")


DIGITS = re.compile(r"[0-9]{1,18}")


def parse_change(line: str) -> Change | None:
    """An itemised line of ours, or None where the line says nothing that changed."""
    if not line.startswith(MARK):
        return None
    parts = line[len(MARK) :].split("|", 2)
    if len(parts) != 3 or len(parts[0]) < 2 or not DIGITS.fullmatch(parts[1]):
        return None
    item, size, name = parts
    if set(item[2:]) == {"+"}:
        what = "new"
    elif item[0] == ".":
        if not item[2:].strip(". "):
            return None
        what = "attributes"
    else:
        what = "update"
    # A directory's time is set after its children and decides nothing.
    if what == "attributes" and item[1] == "d" and set(item[2:]) <= {".", "t", "T", " "}:
        return None
    return Change(what, unescape(name), int(size) if item[1] == "f" else 0)


STATISTICS = {
    "Number of files": "files",
    "Total transferred file size": "sent",
}


# Of all files together: bytes, their share.
FAR = re.compile(r"\s*(\d{1,18})\s+\d+%\s")


def bounded(stream: IO[str]) -> Iterator[str]:
    """Its lines, too long ones in pieces: the partner's rsync has ours say what it wants."""
    return iter(lambda: stream.readline(LONGEST_LINE), "")


def read_output(
    lines: Iterator[str],
    outcome: Outcome,
    on_change: Callable[[Change], None] | None,
    on_bytes: Callable[[int], None] | None,
) -> None:
    for line in lines:
        line = line.rstrip("\n")
        change = parse_change(line)
        if change:
            if change.what == "new":
                outcome.created += 1
            elif change.what == "update":
                outcome.updated += 1
            else:
                outcome.attributes += 1
            if on_change:
                on_change(change)
        elif line.startswith("skipping non-regular file "):
            name = line[len("skipping non-regular file ") :].strip('"')
            outcome.add_problem(f"{unescape(name)}: is a device, which is not synchronized; exclude it")
        elif on_bytes and (far := FAR.match(line)):
            on_bytes(int(far.group(1)))
        else:
            title, _colon, value = line.partition(":")
            number = re.match(r"\s*(\d{1,18})\b", value)
            if title in STATISTICS and number:
                setattr(outcome, STATISTICS[title], int(number.group(1)))


# The last line of a failed rsync repeats the exit code and names a source file of rsync's.
SUMMARY = re.compile(r"^rsync error: ")


def read_problems(stream: IO[str], outcome: Outcome) -> None:
    for line in bounded(stream):
        line = line.rstrip("\n")
        if line and not SUMMARY.match(line):
            outcome.add_problem(unescape(line))


class Turn:
    """Those with a limit run one at a time: side by side they would take it several times, and one alone has all of it.

    running: what this process waits for, in whichever thread; stops: how often all were ended.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen[str]] = set()
        self.stops = 0


TURN = Turn()


def stop() -> None:
    """Ends every rsync that runs now or waits for its turn; who waits for one goes on with its failure."""
    TURN.stops += 1
    for process in list(TURN.running):
        process.terminate()


class Running:
    """One rsync, which works on its own from here on; ``wait`` for it, or ``stop`` it.

    on_change, on_bytes: are told of paths, and how many bytes have come, if it is watched, by another thread; limited:
    it has a limit that it shares with the others of the job.
    """

    def __init__(
        self,
        argv: list[str],
        on_change: Callable[[Change], None] | None = None,
        on_bytes: Callable[[int], None] | None = None,
        *,
        limited: bool = False,
    ) -> None:
        self.outcome = Outcome()
        self.failure: Exception | None = None
        self.process: subprocess.Popen[str] | None = None
        self.stopped = False
        self.stops = TURN.stops
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._work, args=(argv, on_change, on_bytes, limited), daemon=True)
        self.thread.start()

    def _work(
        self,
        argv: list[str],
        on_change: Callable[[Change], None] | None,
        on_bytes: Callable[[int], None] | None,
        limited: bool,
    ) -> None:
        try:
            with TURN.lock if limited else nullcontext():
                with self.lock:
                    if self.stopped or self.stops != TURN.stops:
                        raise Failure("killed", "the run was stopped before rsync had its turn", transient=True)
                    self.process = begin(argv)
                    if self.stops != TURN.stops:
                        # All were ended while it was being begun, and could not be seen yet.
                        self.process.terminate()
                follow(self.process, self.outcome, on_change, on_bytes)
        except Exception as error:  # raised where it is waited for
            self.failure = error

    def wait(self) -> Outcome:
        """Its end, however that is; raises Failure where it could not begin."""
        self.thread.join()
        if self.failure:
            raise self.failure
        return self.outcome

    def stop(self) -> None:
        """May be called at any time, and again; one that waits for its turn does not begin any more."""
        with self.lock:
            self.stopped = True
            process = self.process
        if process is not None:
            end(process)
            self.thread.join()


def begin(argv: list[str]) -> subprocess.Popen[str]:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    if shutil.which(argv[0], path=environment["PATH"]) is None:
        raise Failure("no_rsync", "rsync is not installed on this server; install the package rsync")
    # A caller that was killed can end nothing any more, and hours of copying would hold its job's lock.
    mortal = shutil.which("setpriv", path=environment["PATH"])
    argv = [mortal, "--pdeathsig", "TERM", *argv] if mortal else argv
    process = subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
        umask=0o022,
        close_fds=False,
    )
    TURN.running.add(process)
    return process


def follow(
    process: subprocess.Popen[str],
    outcome: Outcome,
    on_change: Callable[[Change], None] | None,
    on_bytes: Callable[[int], None] | None,
) -> None:
    """Reads what it says until its end."""
    assert process.stdout is not None and process.stderr is not None
    drain = threading.Thread(target=read_problems, args=(process.stderr, outcome), daemon=True)
    drain.start()
    try:
        read_output(bounded(process.stdout), outcome, on_change, on_bytes)
        outcome.code = process.wait()
    except BaseException:
        # Nobody reads what it says any more, so it would wait for ever to be heard, and be waited for.
        end(process)
        raise
    finally:
        TURN.running.discard(process)
        drain.join()
        process.stdout.close()
        process.stderr.close()


def end(process: subprocess.Popen[str]) -> None:
    """Returns once it has ended, or soon will have."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        # It waits for the other side's last words.
        process.kill()


# errno at the end of rsync's messages; names stand before it, so that none is taken for it.
NUMBER = re.compile(r"\((\d+)\)$")
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
DENIED = {errno.EACCES, errno.EPERM}
# What stays as it is until somebody changes something.
FINAL = DENIED | {
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EINVAL,
    errno.EOPNOTSUPP,
}
IN_THE_WAY = ("could not make way for", "cannot delete non-empty directory")


def number(problem: str) -> int | None:
    """The errno that a message of rsync ends with."""
    found = NUMBER.search(problem)
    return int(found.group(1)) if found else None


def failure(outcome: Outcome, where: str) -> Failure | None:
    """What the outcome means for the element, or None where everything was copied."""
    if outcome.code == 0 and not outcome.problem_count:
        return None
    problems = outcome.problems
    # These end with a name, which may look like a number of an error.
    blocked = [problem for problem in problems if any(words in problem for words in IN_THE_WAY)]
    numbers = {number(problem) for problem in problems if problem not in blocked}
    first = problems[0] if problems else ""
    count = f" ({outcome.problem_count} messages)" if outcome.problem_count > 1 else ""
    if outcome.code == 0:
        return Failure("not_copied", f"{first}{count}", field=where)
    if outcome.code < 0:
        return Failure("killed", f"rsync was ended by signal {-outcome.code}", field=where, transient=True)
    if numbers & NO_SPACE:
        first = next(problem for problem in problems if number(problem) in NO_SPACE)
        message = f"no space left on the target; free some and it goes on from there: {first}"
        return Failure("no_space", message, field=where, transient=True)
    # A connection that ends before a word was said is told with the code of a daemon that refuses.
    unanswered = any(problem.endswith("did not see server greeting") for problem in problems)
    code, remedy, transient = f"rsync_{outcome.code}", "", outcome.code in TRANSIENT or unanswered
    if outcome.code == 23:
        transient = not problems or any(number(problem) not in FINAL for problem in problems if problem not in blocked)
        if blocked:
            code, remedy, first = "in_the_way", "; move what is there away on the target", blocked[0]
        elif numbers and numbers <= DENIED:
            code, remedy = "permission", "; give the account access or exclude the path"
    meaning = MEANING.get(outcome.code, "rsync failed")
    said = f": {first}" if first else ""
    message = f"{meaning} (rsync exit code {outcome.code}){said}{count}{remedy}"
    return Failure(code, message, field=where, transient=transient)
