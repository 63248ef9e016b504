# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serversync import rsync
from serversync.failure import Failure

NAME = st.binary(min_size=1, max_size=40).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


def to_stage(source: str, stage: str, names: list[bytes], files: Path, **options: Any) -> list[str]:
    files.write_bytes(rsync.list_of(names))
    given: dict[str, Any] = {
        "basis": "../live",
        "preserve": frozenset(),
        "privileged": False,
        "users": {},
        "groups": {},
    }
    return rsync.command(source, stage, files_from=str(files), **{**given, **options})


@settings(max_examples=80)
@given(names=st.lists(NAME, min_size=1, max_size=8, unique=True))
def test_every_name_arrives_and_comes_back_as_it_is_on_disk(names: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "a"
        source.mkdir()
        for name in names:
            (source / os.fsdecode(name)).touch()
        seen: list[str] = []
        argv = to_stage(f"{source}/", f"{directory}/b/", names, Path(directory) / "list", watched=True)
        outcome = rsync.Running(argv, lambda change: seen.append(change.name)).wait()
        assert outcome.code == 0, outcome.problems
        assert sorted(map(os.fsencode, seen)) == sorted(names)
        assert sorted(map(os.fsencode, os.listdir(f"{directory}/b"))) == sorted(names)


def test_the_live_file_is_the_basis_and_stays(tmp_path: Path) -> None:
    for name in ("source", "live", "stage"):
        (tmp_path / name).mkdir()
    (tmp_path / "source" / "big").write_bytes(os.urandom(1 << 20))
    (tmp_path / "live" / "big").write_bytes((tmp_path / "source" / "big").read_bytes()[:-1] + b"!")
    argv = to_stage(f"{tmp_path}/source/", f"{tmp_path}/stage/", [b"big"], tmp_path / "list")
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    literal = next(line for line in said.splitlines() if line.startswith("Literal data"))
    assert int(literal.split()[2]) < 100_000
    assert (tmp_path / "stage" / "big").read_bytes() == (tmp_path / "source" / "big").read_bytes()
    assert (tmp_path / "live" / "big").read_bytes().endswith(b"!")


def test_the_options_follow_what_is_preserved(tmp_path: Path) -> None:
    preserve = frozenset({"owner", "group", "permissions", "sparse"})
    argv = to_stage("a/", "b/", [], tmp_path / "list", preserve=preserve, users={5: 5, 6: 7}, groups={8: 9})
    assert {"--owner", "--group", "--perms", "--sparse", "--usermap=6:7", "--groupmap=8:9"} <= {*argv}
    assert not {"--super", "--compress", "--ignore-times"} & {*argv}
    bare = to_stage("a/", "b/", [], tmp_path / "list", privileged=True, compress=True, bandwidth_limit=2048, anew=True)
    assert {"--super", "--compress", "--bwlimit=2K", "--ignore-times"} <= {*bare}
    assert not {"--owner", "--perms", "--sparse", "--numeric-ids"} & {*bare}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (">>>f+++++++++|12|name", rsync.Change("new", "name", 12)),
        (">>cd+++++++++|4096|dir/", rsync.Change("new", "dir/", 0)),
        (">>>f.st......|7|a|b", rsync.Change("update", "a|b", 7)),
        (">><f.st......|7|sent", rsync.Change("update", "sent", 7)),
        (">>.f...p.....|7|mode", rsync.Change("attributes", "mode", 7)),
        (">>.d..t......|4096|dir/", None),
        (">>.f          |4096|same", None),
        (">>hf+++++++++|7|hard", rsync.Change("new", "hard", 7)),
        (">>>f.st......|7|new\\#012line", rsync.Change("update", "new\nline", 7)),
        ("Number of files: 3", None),
        (">>nonsense", None),
    ],
)
def test_itemised_lines(line: str, expected: rsync.Change | None) -> None:
    assert rsync.parse_change(line) == expected


def outcome(code: int, *problems: str) -> rsync.Outcome:
    result = rsync.Outcome(code=code)
    for problem in problems:
        result.add_problem(problem)
    return result


@pytest.mark.parametrize(
    ("result", "code", "transient"),
    [
        (outcome(10, "connection refused"), "rsync_10", True),
        (outcome(12), "rsync_12", True),
        (outcome(23, 'send_files failed to open "/x": Permission denied (13)'), "permission", False),
        (outcome(23, 'set_acl: "/x": Operation not permitted (1)'), "permission", False),
        (outcome(23, "Permission denied (13)", "Input/output error (5)"), "rsync_23", True),
        (outcome(23, 'read errors mapping "/photo (13)": Input/output error (5)'), "rsync_23", True),
        (outcome(23, 'mkstemp "/x" failed: Read-only file system (30)'), "rsync_23", False),
        (outcome(23, "could not make way for new regular file: a"), "in_the_way", False),
        (outcome(23, "could not make way for new regular file: a", "Input/output error (5)"), "in_the_way", True),
        (outcome(23), "rsync_23", True),
        (outcome(24, "file has vanished"), "rsync_24", True),
        (outcome(11, "write failed: No space left on device (28)"), "no_space", True),
        (outcome(23, "Disk quota exceeded (122)"), "no_space", True),
        (outcome(23, 'could not make way for new regular file: "scan (122).pdf"'), "in_the_way", False),
        (outcome(23, "could not make way for new regular file: x (28)"), "in_the_way", False),
        (outcome(4), "rsync_4", False),
        (outcome(5, "@ERROR: Unknown module"), "rsync_5", False),
        (outcome(5, "rsync: did not see server greeting"), "rsync_5", True),
        (outcome(-9), "killed", True),
        (outcome(0, "dev: is a device"), "not_copied", False),
    ],
)
def test_what_an_exit_code_means(result: rsync.Outcome, code: str, transient: bool) -> None:
    failure = rsync.failure(result, "elements[0].path")
    assert failure is not None
    assert (failure.code, failure.transient, failure.field) == (code, transient, "elements[0].path")


def test_all_well_is_no_failure() -> None:
    assert rsync.failure(outcome(0), "elements[0].path") is None


def test_a_record_stays_bounded() -> None:
    result = outcome(23, *(f"problem {number}" for number in range(5000)))
    assert (len(result.problems), result.problem_count) == (rsync.NAMED_PATHS, 5000)


def test_one_limit_is_for_all_rsyncs_of_a_job(tmp_path: Path) -> None:
    with rsync.TURN.lock:
        limited = rsync.Running(["touch", str(tmp_path / "limited")], limited=True)
        rsync.Running(["touch", str(tmp_path / "free")]).wait()
        assert [path.name for path in tmp_path.iterdir()] == ["free"]
    limited.wait()
    assert (tmp_path / "limited").exists()


@pytest.mark.parametrize("everything", [False, True])
def test_what_waits_for_its_turn_is_stopped_as_well(tmp_path: Path, everything: bool) -> None:
    with rsync.TURN.lock:
        limited = rsync.Running(["touch", str(tmp_path / "limited")], limited=True)
        if everything:
            rsync.stop()
        else:
            limited.stop()
    with pytest.raises(Failure, match="before rsync had its turn"):
        limited.wait()
    assert not list(tmp_path.iterdir())


def test_it_dies_with_the_runner() -> None:
    """However the runner dies; else it would hold the job's lock until the last of its bytes has gone over."""
    reading, writing = os.pipe()
    waiting, gate = os.pipe()
    for descriptor in (writing, waiting):
        os.set_inheritable(descriptor, True)
    outliving = f"import os; os.write({writing}, b'on '); os.read({waiting}, 1); os.write({writing}, b'and on')"
    argv = [sys.executable, "-c", outliving]
    # What is inherited, as the lock is, has to be open in the runner, too.
    runner = subprocess.Popen(
        [sys.executable, "-c", f"from serversync import rsync; rsync.Running({argv!r}).wait()"],
        env={**os.environ, "PYTHONPATH": str(Path(rsync.__file__).parents[1])},
        pass_fds=[writing, waiting],
    )
    os.close(writing)
    os.close(waiting)
    assert os.read(reading, 3) == b"on "
    runner.kill()
    runner.wait()
    # Who lives still goes on now.
    os.close(gate)
    with open(reading, "rb") as stream:
        assert stream.read() == b""


def test_one_that_runs_is_stopped_alone(tmp_path: Path) -> None:
    for name in ("one", "other"):
        os.mkfifo(tmp_path / name)
    one, other = (rsync.Running(["cat", str(tmp_path / name)]) for name in ("one", "other"))
    # Opened once they read.
    with (tmp_path / "one").open("w"), (tmp_path / "other").open("w"):
        one.stop()
        assert one.wait().code == -signal.SIGTERM
    assert other.wait().code == 0


def test_one_that_nobody_can_listen_to_is_ended() -> None:
    def refuse(_change: rsync.Change) -> None:
        raise OSError("the terminal has gone")

    with pytest.raises(OSError, match="the terminal has gone"):
        rsync.Running(["yes", f"{rsync.MARK}>f+++++++++|1|name"], refuse).wait()


def test_one_that_is_beginning_when_all_are_stopped_is_stopped_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "waits")
    begin = rsync.begin

    def late(argv: list[str]) -> subprocess.Popen[str]:
        rsync.stop()
        return begin(argv)

    monkeypatch.setattr(rsync, "begin", late)
    running = rsync.Running(["cat", str(tmp_path / "waits")])
    assert running.wait().code == -signal.SIGTERM


def said(script: str) -> rsync.Outcome:
    """What is understood of a program that says this; the partner's rsync has ours say what it wants."""
    seen: list[rsync.Change] = []
    argv = [sys.executable, "-c", f"import sys\n{script}"]
    return rsync.Running(argv, seen.append, lambda _bytes: None).wait()


def test_lines_and_numbers_of_the_other_side_are_bounded() -> None:
    """A line without an end is read in pieces, and no number is larger than a file can be."""
    longest = rsync.LONGEST_LINE
    outcome = said(f"for _ in range(3): sys.stdout.write('x' * {longest})\nprint('\\nTotal transferred file size: 7')")
    assert (outcome.code, outcome.sent) == (0, 7)
    for text in ("Total transferred file size: ", ">>>f+++++++++|", "  "):
        more = {"T": "", ">": "|name", " ": "  99% "}[text[0]]
        outcome = said(f"print({text!r} + '9' * 9000 + {more!r})")
        assert (outcome.code, outcome.sent, outcome.problems) == (0, 0, [])


def test_of_endless_output_no_more_than_a_line_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    kept = rsync.parse_change

    def watched(line: str) -> rsync.Change | None:
        held.append(len(line))
        return kept(line)

    monkeypatch.setattr(rsync, "parse_change", watched)
    assert said("for _ in range(100): sys.stdout.write('x' * 100_000)").code == 0
    assert max(held) <= rsync.LONGEST_LINE
