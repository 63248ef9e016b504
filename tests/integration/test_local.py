# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs between two directories of one machine: what is copied, told, locked, refused."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from tests.integration.conftest import Server, free_port, tree


@pytest.mark.parametrize("source", ["/usr/share/doc", sysconfig.get_path("stdlib") + "/email"])
def test_trees_that_nobody_here_wrote(server: Server, tmp_path: Path, source: str) -> None:
    server.declare("real", [(Path(source), tmp_path / "copy")])
    server.run("real")
    assert tree(tmp_path / "copy") == tree(Path(source))
    again = server.run("real")["elements"][0]
    assert (again["created"], again["updated"], again["bytes"]) == (0, 0, 0)


def test_a_sparse_file_stays_sparse(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / "disk").open("wb") as stream:
        stream.truncate(1 << 30)
        stream.seek(1 << 29)
        stream.write(b"middle")
    server.declare("disk", [(tmp_path / "a", tmp_path / "b")])
    server.run("disk")
    info = (tmp_path / "b" / "disk").stat()
    assert info.st_size == 1 << 30
    assert info.st_blocks * 512 < 1 << 20
    with (tmp_path / "b" / "disk").open("rb") as stream:
        stream.seek(1 << 29)
        assert stream.read(6) == b"middle"


def test_an_unreadable_file_fails_the_element_and_the_rest_is_copied(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "open").write_text("1")
    (tmp_path / "a" / "closed").write_text("2")
    (tmp_path / "a" / "closed").chmod(0)
    server.declare("some", [(tmp_path / "a", tmp_path / "b")], on_error={"retries": 3, "delay": "0s"})
    # Root without these capabilities reads what its mode allows, like anyone.
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*drop, str(server.launcher), "run", "some", "--json"],
        env=server.environment,
        capture_output=True,
        check=False,
        text=True,
    )
    record = json.loads(done.stdout)
    assert done.returncode == 1
    assert (tmp_path / "b" / "open").read_text() == "1"
    assert record["error"]["code"] == "permission"
    assert "closed" in record["error"]["message"]
    assert len(record["attempts"]) == 1
    assert "give the account access or exclude the path" in record["error"]["message"]


def test_a_source_that_is_missing_says_which_field(server: Server, tmp_path: Path) -> None:
    server.declare("gone", [(tmp_path / "a", tmp_path / "b")])
    done = server.serversync("run", "gone", code=1)
    expected = f"elements[0].path: {tmp_path / 'a'} does not exist on this server, the source; create or mount it, or"
    # By the run itself; what comes of it does not repeat that.
    assert done.stdout.count(expected) == 1
    assert server.serversync("show", "gone").stdout.count(expected) == 1
    assert not (tmp_path / "b").exists()


def test_one_bad_element_does_not_hold_back_the_others_and_alone_is_tried_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    elements = [(tmp_path / "missing", tmp_path / "m"), (tmp_path / "a", tmp_path / "b")]
    server.declare("two", elements)
    record = server.run("two", code=1)
    assert [entry["state_after"] for entry in record["elements"]] == ["failed", "equal"]
    only = json.loads(server.serversync("run", "two", "--element", f"{tmp_path}/a/", "--json").stdout)
    assert [entry["path"] for entry in only["elements"]] == [str(tmp_path / "a")]
    both = ["--element", str(tmp_path / "a"), "--element", str(tmp_path / "missing")]
    done = server.serversync("run", "two", *both, "--json", code=1)
    assert [entry["path"] for entry in json.loads(done.stdout)["elements"]] == [
        str(tmp_path / "missing"),
        str(tmp_path / "a"),
    ]
    done = server.serversync("run", "two", "--element", str(tmp_path / "a"), "--element", "/other", code=2)
    assert "job two has no element '/other'" in done.stderr


def test_a_directory_never_replaces_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("precious")
    server.declare("kinds", [(tmp_path / "a", tmp_path / "b")])
    record = server.run("kinds", code=1)
    assert record["error"]["code"] == "kind"
    assert (tmp_path / "b").read_text() == "precious"


def test_excluded_paths_do_not_exist_for_a_run(server: Server, tmp_path: Path) -> None:
    for name in ("a/keep", "a/drop.tmp", "a/cache/file", "a/sub/cache/file", "a/sub/build/out", "b/drop.tmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    settings = {"direction": "to_partner", "exclude": ["*.tmp", "/cache/", "sub/build"], "delete": "never"}
    server.declare("some", [(tmp_path / "a", tmp_path / "b")], settings=settings)
    server.run("some")
    found = {os.fsdecode(name) for name in tree(tmp_path / "b")}
    assert found == {"keep", "drop.tmp", "sub", "sub/cache", "sub/cache/file"}
    assert (tmp_path / "b" / "drop.tmp").read_text() == "b/drop.tmp"


def test_a_second_run_is_skipped_and_says_so(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    server.declare("busy", [(tmp_path / "a", tmp_path / "b")])
    server.run("busy")
    with (server.home / ".local/state/serversync/locks/busy.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = server.run("busy", code=4)
    assert record["state"] == "skipped"
    assert "another run of this job is on" in server.serversync("status", "busy").stdout
    assert server.run("busy")["state"] == "equal"


@pytest.fixture
def waiting(server: Server, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run between two attempts, on a partner that cannot be reached."""
    (tmp_path / "a").mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(server.key)], check=True)
    key = " ".join(Path(f"{server.key}.pub").read_text().split()[:2])
    server.declare(
        "patient",
        [(tmp_path / "a", tmp_path / "b")],
        partner={"host": "127.0.0.1", "port": free_port(), "connection": "ssh", "host_key": [key]},
        account={"user": "nobody", "private_key_file": None},
        on_error={"retries": 1, "delay": "1d"},
    )
    argv = [str(server.launcher), "run", "patient"]
    process = subprocess.Popen(argv, env=server.environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("attempt 1 of 2 failed; the next in 1d"):
            break
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def runs(server: Server, job: str) -> list[dict[str, Any]]:
    document = json.loads((server.home / f".local/state/serversync/public/{job}.json").read_text())
    return list(document["runs"])


def test_a_run_that_is_told_to_stop_leaves_its_record(server: Server, waiting: subprocess.Popen[str]) -> None:
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait() == -signal.SIGTERM
    assert [(run["state"], run["error"]["code"]) for run in runs(server, "patient")] == [("failed", "stopped")]


def test_a_run_that_waits_is_told_and_gone_on_with_by_hand(server: Server, waiting: subprocess.Popen[str]) -> None:
    [first] = runs(server, "patient")
    assert (first["state"], first["retry"]["pause"]) == ("waiting", 86400)
    assert "another" in server.serversync("status", "patient").stdout
    assert "\nattempt 2 at " in server.serversync("show", "patient").stdout
    waiting.kill()
    waiting.wait()
    record = server.run("patient", code=1)
    assert (record["run"], record["state"], len(record["attempts"])) == (first["run"], "failed", 2)


def test_what_waits_can_be_given_up(server: Server, waiting: subprocess.Popen[str]) -> None:
    waiting.kill()
    waiting.wait()
    (waits,) = runs(server, "patient")
    said = server.serversync("recover", "patient", "--give-up").stdout
    assert said.startswith(f"patient: failed, run {waits['run']}, ")
    said = server.serversync("recover", "patient", "--give-up").stdout
    assert said == "patient: no run waits for another attempt\n"
    assert [(run["state"], run["error"]["code"], run["retry"]) for run in runs(server, "patient")] == [
        ("failed", "stopped", None)
    ]


def test_a_job_that_was_changed_while_it_waited_begins_anew(
    server: Server, waiting: subprocess.Popen[str], tmp_path: Path
) -> None:
    waiting.kill()
    waiting.wait()
    server.declare("patient", [(tmp_path / "a", tmp_path / "b")])
    server.run("patient")
    states = [
        (run["state"], run["configuration"], run["error"] and run["error"]["code"]) for run in runs(server, "patient")
    ]
    assert states == [("equal", 2, None), ("failed", 1, "replaced")]


class Sink:
    """Keeps the mails that it is handed."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []

    async def handle_DATA(self, _server: object, _session: object, envelope: Any) -> str:
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 kept"


@pytest.fixture
def sink(server: Server) -> Iterator[Sink]:
    kept = Sink()
    controller = Controller(kept, hostname="127.0.0.1", port=free_port())
    controller.start()
    server.settings("127.0.0.1", controller.port)
    yield kept
    controller.stop()


def body(mail: EmailMessage, kind: str = "plain") -> str:
    part = mail.get_body((kind,))
    assert part is not None
    return str(part.get_content())


@pytest.mark.parametrize(
    ("events", "told"),
    [
        (["failure"], ["FAILED"]),
        (["success"], ["succeeded"]),
        (["failure", "success"], ["FAILED", "succeeded"]),
        (["conflict", "failure", "recovery"], ["FAILED", "RECOVERED"]),
    ],
)
def test_the_mail_that_the_job_asks_for(
    server: Server, sink: Sink, tmp_path: Path, events: list[str], told: list[str]
) -> None:
    notification = {"email": ["ops@example.com", "plant@example.com"], "events": events}
    server.declare("told", [(tmp_path / "a", tmp_path / "b")], notification=notification, comment="Line 1")
    server.run("told", code=1)
    (tmp_path / "a").mkdir()
    record = server.run("told")
    assert [mail["Subject"].split()[3].rstrip(":") for mail in sink.mails] == told
    for mail in sink.mails:
        assert mail["To"] == "ops@example.com, plant@example.com"
        assert "Comment:   Line 1" in body(mail)
        assert f"serversync show told {record['run'][:8]}" in body(mail)
        assert "Line 1</td>" in body(mail, "html")


def test_the_failure_mail_names_job_server_and_cause(server: Server, sink: Sink, tmp_path: Path) -> None:
    notification = {"email": ["ops@example.com"], "events": ["failure"]}
    server.declare("told", [(tmp_path / "a", tmp_path / "b")], notification=notification)
    record = server.run("told", code=1)
    (mail,) = sink.mails
    name = os.uname().nodename
    assert (
        mail["Subject"]
        == f"[serversync] {name}: told FAILED: {tmp_path / 'a'} does not exist on this server, the source"
    )
    assert f"elements[0].path: {tmp_path / 'a'} does not exist" in body(mail)
    told = {"event": "failure", "to": ["ops@example.com"], "error": None, "waits": None, "urls": []}
    assert record["notification"] == told


def test_what_waits_for_a_person_is_told_once(server: Server, sink: Sink, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x").write_text("this")
    (tmp_path / "b" / "x").write_text("the other")
    notification = {"email": ["ops@example.com"], "events": ["conflict", "failure", "recovery"]}
    settings = {"direction": "both", "exclude": [], "delete": "never", "conflict": "no_winner"}
    server.declare("told", [(tmp_path / "a", tmp_path / "b")], notification=notification, settings=settings)
    server.run("told", code=3)
    assert server.run("told", code=3)["notification"] is None
    assert (
        "nothing to do\n  1 unresolved, for a person to decide: serversync conflicts told"
        in server.serversync("plan", "told").stdout
    )
    server.serversync("resolve", "told", "x", "--use", "partner")
    server.run("told")
    assert [mail["Subject"].partition(" told ")[2] for mail in sink.mails] == ["LEFT PATHS TO DECIDE", "RECOVERED"]


def test_what_waits_for_a_person_is_on_record_with_both_versions(server: Server, tmp_path: Path) -> None:
    for side, text in (("a", "this"), ("b", "the other")):
        (tmp_path / side).mkdir()
        for name in ("x", "y"):
            (tmp_path / side / name).write_text(text)
            os.utime(tmp_path / side / name, (0, 0))
    settings = {"direction": "both", "exclude": [], "delete": "never", "conflict": "no_winner"}
    server.declare("told", [(tmp_path / "a", tmp_path / "b")], settings=settings)
    (found,) = json.loads(server.serversync("conflicts", "told", "--json").stdout)["elements"]
    assert found["conflicts"] == []
    for _run in range(2):
        entry = server.run("told", code=3)["elements"][0]
        (found,) = json.loads(server.serversync("conflicts", "told", "--json", code=3).stdout)["elements"]
        assert entry["open"] == found["conflicts"]
    assert [one["path"] for one in entry["open"]] == entry["unresolved"] == ["x", "y"]
    one = entry["open"][0]
    assert one["reason"] == "different, never agreed"
    assert one["this_server"].startswith("file, 4 bytes, 1970-01-01 ")
    assert one["partner"].startswith("file, 9 bytes, 1970-01-01 ")
    server.serversync("resolve", "told", "x", "--use", "partner")
    assert [one["path"] for one in server.run("told", code=3)["elements"][0]["open"]] == ["y"]


def test_a_mail_server_that_is_away_costs_neither_the_run_nor_the_mail(
    server: Server, sink: Sink, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    notification = {"email": ["ops@example.com"], "events": ["success"]}
    server.declare("told", [(tmp_path / "a", tmp_path / "b")], notification=notification)
    there = json.loads((server.config / "runner.json").read_text())["smtp"]
    server.settings("127.0.0.1", free_port())
    record = server.run("told")
    assert (record["state"], record["notification"]["error"]) == ("equal", None)
    assert "Connection refused" in record["notification"]["waits"]
    assert "runner_smtp_" in record["notification"]["waits"]
    assert "mail to ops@example.com waits: " in server.serversync("show", "told").stdout
    found = server.serversync("check", "told", code=1).stdout
    assert f"warning: the mail of {record['run']} waits: mail server 127.0.0.1:" in found
    server.settings(there["host"], there["port"])
    # The next one takes it with it.
    again = server.run("told")
    assert {mail["Message-ID"].split(".")[0][1:] for mail in sink.mails} == {record["run"], again["run"]}
    assert len(sink.mails) == 2


def test_where_a_service_sends_a_run_leaves_its_mail_to_it(server: Server, sink: Sink, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    notification = {"email": ["ops@example.com"], "events": ["success"]}
    server.declare("told", [(tmp_path / "a", tmp_path / "b")], notification=notification)
    settings = json.loads((server.config / "runner.json").read_text())
    (server.config / "runner.json").write_text(json.dumps({**settings, "outbox_service": True}))
    assert server.run("told")["notification"]["to"] == ["ops@example.com"]
    assert not sink.mails
    done = server.serversync("notify")
    assert "mail to ops@example.com sent\n" in done.stdout
    assert len(sink.mails) == 1
    assert server.serversync("notify").stdout == ""


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:40], "is not JSON"),
        (
            lambda text: text.replace('"to_partner"', '"up"'),
            "settings.direction: 'up' is not one of ['to_partner', 'from_partner', 'both']",
        ),
        (
            lambda text: text.replace('"retries": 0', '"retries": -1'),
            "on_error.retries: -1 is less than the minimum of 0",
        ),
        (lambda text: text.replace('"enabled": true,', ""), "'enabled' is a required property"),
        (lambda text: text.replace('"comment"', '"coment"'), "'comment' is a required property"),
        (
            lambda text: text.replace('"name": "hurt"', '"name": "other"'),
            "name: is 'other', but the file is named for 'hurt'",
        ),
    ],
)
def test_a_damaged_document_is_refused_before_anything_is_touched(
    server: Server, tmp_path: Path, damage: Any, said: str
) -> None:
    (tmp_path / "a").mkdir()
    path = server.declare("hurt", [(tmp_path / "a", tmp_path / "b")])
    path.write_text(damage(path.read_text()))
    for command in ("run", "plan", "check"):
        done = server.serversync(command, "hurt", code=2)
        assert said in done.stderr
        assert "restore it, or remove the job with state: absent and declare it again" in done.stderr
    assert said in server.serversync("status").stdout
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run", "none"), 2, "there is no job 'none' on this server (jobs: none)"),
        (("run", "../x"), 2, "'../x' is not a job's name"),
        (("run",), 2, "the following arguments are required: JOB"),
        (("run", "none", "--fast"), 2, "usage: serversync run [-h]"),
        (("fly",), 2, "invalid choice: 'fly'"),
        (("show", "none"), 2, "there is no job 'none' on this server (jobs: none)"),
        (("check", "/nowhere.json"), 2, "/nowhere.json: No such file or directory"),
    ],
)
def test_wrong_words_on_the_command_line(server: Server, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = server.serversync(*arguments, code=code)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "failure"),
    [
        (("plan", "none"), 2, "unknown_job"),
        (("show", "none"), 2, "unknown_job"),
        (("run", "new", "--element", "/x"), 2, "unknown_element"),
        (("resolve", "new"), 2, "usage"),
        (("versions", "new", "/x"), 1, "unknown_path"),
        (("check", "/nowhere.json"), 2, "unreadable"),
    ],
)
def test_a_failure_is_json_where_json_is_wanted(
    server: Server, tmp_path: Path, arguments: tuple[str, ...], code: int, failure: str
) -> None:
    server.declare("new", [(tmp_path / "a", tmp_path / "b")])
    done = server.serversync(*arguments, "--json", code=code)
    told = json.loads(done.stdout)
    assert list(told) == ["failure"]
    assert told["failure"]["code"] == failure
    assert told["failure"]["message"] in done.stderr


def test_a_runner_that_breaks_says_so_in_json(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    server.declare("new", [(tmp_path / "a", tmp_path / "b")])
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text("import tempfile\ntempfile.TemporaryDirectory = None\n")
    server.extra["PYTHONPATH"] = str(hook)
    done = server.serversync("plan", "new", "--json", code=70)
    assert json.loads(done.stdout)["failure"]["code"] == "internal"
    assert "Traceback" in done.stderr


def test_a_run_loads_nothing_that_it_does_not_need(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    server.declare("nightly", [(tmp_path / "a", tmp_path / "b")])
    hook = tmp_path / "hook"
    hook.mkdir()
    # Where it is found, it is loaded.
    for name in ("jsonschema", "paramiko", "rich"):
        (hook / f"{name}.py").write_text("raise SystemExit(f'{__name__} takes longer to be loaded than a run')")
    server.run("nightly")
    server.extra["PYTHONPATH"] = str(hook)
    assert server.run("nightly")["state"] == "equal"
    # That the trap works.
    (hook / "sqlite3.py").write_text((hook / "rich.py").read_text())
    assert "sqlite3 takes longer" in server.serversync("run", "nightly", code=None).stderr


def test_a_lock_that_cannot_be_made_says_where(server: Server, tmp_path: Path) -> None:
    server.declare("new", [(tmp_path / "a", tmp_path / "b")])
    locks = server.home / ".local/state/serversync/locks"
    locks.parent.mkdir(parents=True, exist_ok=True)
    locks.write_text("in the way")
    done = server.serversync("run", "new", "--json", code=70)
    assert json.loads(done.stdout)["failure"]["code"] == "records"
    assert str(locks) in done.stderr and "Traceback" not in done.stderr


def test_a_job_that_never_ran_says_how_to_run_it(server: Server, tmp_path: Path) -> None:
    server.declare("new", [(tmp_path / "a", tmp_path / "b")])
    done = server.serversync("show", "new", code=2)
    assert "new has not run yet; start it with: serversync run new" in done.stderr
    assert "never" in server.serversync("status").stdout


def test_a_plan_that_cannot_be_kept_says_where(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    server.declare("nightly", [(tmp_path / "a", tmp_path / "b")])
    server.run("nightly")
    plans = server.home / ".local" / "state" / "serversync" / "plans"
    assert not plans.exists()
    plans.write_text("in the way")
    done = server.serversync("plan", "nightly", code=70)
    assert done.stderr == (
        f"serversync: the plan cannot be kept in {plans}/nightly (Not a directory); free space, or make it writable\n"
    )


def test_the_last_runs_of_a_job(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    server.declare("nightly", [(tmp_path / "a", tmp_path / "b")])
    assert "nightly has not run yet" in server.serversync("history", "nightly", code=2).stderr
    (tmp_path / "a" / "x").write_text("1")
    server.run("nightly")
    (tmp_path / "a").rename(tmp_path / "away")
    server.run("nightly", code=1)
    (tmp_path / "away").rename(tmp_path / "a")
    server.run("nightly")
    runs = json.loads(server.serversync("history", "nightly", "--json").stdout)
    assert [run["state"] for run in runs] == ["equal", "failed", "equal"]
    assert json.loads(server.serversync("history", "nightly", "--json", "--limit", "1").stdout) == runs[:1]
    for wrong in ("0", "-1", "all"):
        done = server.serversync("history", "nightly", f"--limit={wrong}", code=2)
        assert f"argument --limit: {wrong!r} is no number of runs; give one from 1 on" in done.stderr
    table = server.serversync("history", "nightly").stdout
    assert all(run["run"] in table for run in runs)
    assert all(len(line) <= 100 for line in table.splitlines())
    assert {"config", "duration", "tries", "copied", "deleted", "conflicts", "failed"} < set(table.split())
    assert "there is no job 'other'" in server.serversync("history", "other", code=2).stderr


def test_metrics_are_where_the_role_wants_them(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "collector").mkdir()
    server.declare("nightly", [(tmp_path / "a", tmp_path / "b")])
    server.declare("other", [(tmp_path / "a", tmp_path / "c")])
    settings = json.loads((server.config / "runner.json").read_text())
    (server.config / "runner.json").write_text(json.dumps({**settings, "metrics_dir": str(tmp_path / "collector")}))
    server.run("nightly")
    [written] = (tmp_path / "collector").iterdir()
    assert written.name == "serversync-nightly.prom" and written.stat().st_mode & 0o777 == 0o644
    assert 'serversync_job_state{sync_job="nightly",state="equal"} 1' in written.read_text()
    printed = server.serversync("metrics").stdout
    assert 'serversync_job_state{sync_job="other",state="none"} 1' in printed
    assert set(written.read_text().splitlines()) <= set(printed.splitlines())
    # A document that cannot be used has no run that would tell of it.
    (server.config / "jobs" / "nightly.json").write_text("{")
    server.serversync("unit", "nightly", code=2)
    assert 'serversync_job_state{sync_job="nightly",state="invalid"} 1' in written.read_text()
    server.serversync("unit", "gone", code=2)
    assert [*(tmp_path / "collector").iterdir()] == [written]
    server.declare("nightly", [(tmp_path / "a", tmp_path / "b")])
    # What cannot be written fails no run, and is told.
    (tmp_path / "collector").rename(tmp_path / "gone")
    done = server.serversync("run", "nightly")
    expected = f"no metrics in {tmp_path}/collector: No such file or directory; check runner_metrics_dir of the role"
    assert expected in done.stdout


def test_settings_that_cannot_be_read_fail_no_run(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    server.declare("nightly", [(tmp_path / "a", tmp_path / "b")])
    (server.config / "runner.json").write_text("{")
    assert f"no metrics: {server.config}/runner.json cannot be read" in server.serversync("run", "nightly").stdout


def test_elements_that_overlap_in_a_document_edited_by_hand(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    server.declare("both", [(tmp_path / "a", tmp_path / "b"), (tmp_path / "c", tmp_path / "b" / "c")])
    done = server.serversync("run", "both", code=2)
    assert "elements[1].partner_path: " in done.stderr
    assert "overlaps elements[0].partner_path" in done.stderr
    assert not (tmp_path / "b").exists()


def test_a_document_of_another_version(server: Server, tmp_path: Path) -> None:
    path = server.declare("next", [(tmp_path / "a", tmp_path / "b")])
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    assert "version: 2 is not 1, the only one that this runner reads" in server.serversync("run", "next", code=2).stderr


def test_one_odd_document_does_not_hide_the_other_jobs(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    server.declare("good", [(tmp_path / "a", tmp_path / "b")])
    server.run("good")
    (server.config / "jobs" / "odd.json").mkdir()
    (server.home / ".local/state/serversync/public/hurt.json").write_text("{")
    server.declare("hurt", [(tmp_path / "a", tmp_path / "c")])
    rows = {row["job"]: row for row in json.loads(server.serversync("status", "--json").stdout)}
    assert {name: row["state"] for name, row in rows.items()} == {"good": "equal", "odd": "invalid", "hurt": "invalid"}
    assert "is a directory where a file belongs" in server.serversync("run", "odd", code=2).stderr
    # When a job last ran well is known, whatever becomes of its document.
    (server.config / "jobs" / "good.json").write_text("{")
    [row] = json.loads(server.serversync("status", "good", "--json").stdout)
    assert (row["state"], row["partner"]) == ("invalid", rows["good"]["partner"])
    assert (row["last"], row["good"]) == (rows["good"]["last"], rows["good"]["good"])
    assert "never" not in server.serversync("status", "good").stdout


def test_records_that_cannot_be_kept_are_no_ordinary_failure(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    server.declare("told", [(tmp_path / "a", tmp_path / "b")])
    server.run("told")
    records = server.home / ".local/state/serversync/records.sqlite"
    for path in records.parent.glob("records.sqlite*"):
        path.unlink()
    records.write_text("no database " * 1000)
    done = server.serversync("run", "told", code=70)
    assert f"the records cannot be kept in {records}: file is not a database" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_of_ones_own_that_is_missing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(server.key)], check=True)
    key = " ".join(Path(f"{server.key}.pub").read_text().split()[:2])
    server.declare(
        "keyless",
        [(tmp_path / "a", tmp_path / "b")],
        partner={"host": "127.0.0.1", "port": 9, "connection": "ssh", "host_key": [key]},
        account={"user": "nobody", "private_key_file": "/nowhere/key"},
    )
    record = server.run("keyless", code=1)
    assert record["error"]["field"] == "account.private_key_file"
    assert "put the key there, correct the path, or set null for the runner's own key" in record["error"]["message"]
