# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of ``serversync``: argument parsing, printing, exit codes; nothing else."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from serversync import __version__
from serversync.failure import Failure, InvalidDocument, Stopped
from serversync.layout import Layout
from serversync.signals import heard

if TYPE_CHECKING:
    from serversync.counts import Watch
    from serversync.job import Job

USAGE = 2
FAILED = 1
DIFFERENT = 3
SKIPPED = 4
INTERNAL = 70


class Parser(argparse.ArgumentParser):
    """Its errors are told as all others are."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise InvalidDocument("usage", message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The one whose arguments they are tells of those that it does not know, and not the one above it."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def parser() -> Parser:
    top = Parser(
        prog="serversync",
        description="Runs and shows the synchronization jobs that serversync.core.sync_job declares.",
        epilog="Exit codes: 0 fine, 1 failed, 2 usage or invalid document, 3 different, 4 skipped.",
    )
    top.add_argument("--version", action="version", version=f"serversync {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, job: str | None = None) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        # Without a help text a command is not listed: keys, units and modules call those, people do not.
        command = (
            commands.add_parser(name, help=text, description=description)
            if job
            else commands.add_parser(name, description=description)
        )
        if job:
            command.add_argument("job", metavar="JOB", nargs=None if job == "one" else "?")
            command.add_argument("--json", action="store_true", help="print JSON, also of a failure")
        return command

    of_element = [
        add("run", "run a job now", "one"),
        add("plan", "show what a run would do now; changes nothing", "one"),
        add("conflicts", "what is unresolved, with both versions", "one"),
        add("resolve", "decide an unresolved path now", "one"),
        add("versions", "what was overwritten or deleted and can come back", "one"),
        add("restore", "bring back what was overwritten or deleted", "one"),
    ]
    run, _plan, _conflicts, resolve, versions, restore = of_element
    run.add_argument("--approve", metavar="PLAN", help="let what this plan lists be deleted and overwritten")
    resolve.add_argument("path", metavar="PATH", help="below the element, or whole")
    resolve.add_argument(
        "--use", required=True, choices=("this_server", "partner", "both"), help="whose version is to stand"
    )
    versions.add_argument("path", metavar="PATH", nargs="?", help="below the element, or whole; default: all")
    restore.add_argument("path", metavar="PATH", help="below the element, or whole")
    restore.add_argument("--run", metavar="RUN", dest="of", help="what this run displaced; default: the last")
    for command in of_element:
        text = "only this element, by its path; may be given several times"
        command.add_argument("--element", metavar="PATH", action="append", help=text)
    add("status", "the jobs of this server with their last and next run", "any")
    add("history", "the last runs of a job", "one").add_argument(
        "--limit", metavar="N", type=count, default=20, help="so many of the newest 50, the newest first; default: 20"
    )
    add("metrics", "the jobs as metrics, in the text format of OpenMetrics and Prometheus", "any")
    add("show", "one run with every attempt, element and error", "one").add_argument(
        "run", metavar="RUN", nargs="?", help="the run's name; default: the last"
    )
    report = add("report", "the jobs with their last 90 days, conflicts and connections, as a page", "any")
    report.add_argument("--html", metavar="FILE", help="write the page there; - is standard output")
    report.add_argument(
        "--from", metavar="FILE", action="append", dest="sources", help="of what reports in JSON tell, once or more"
    )
    check = add("check", "validate documents and try what a run needs, on both servers", "any")
    check.add_argument("--connect", action="store_true", help="of a file, which may hold a list: not its text alone")
    door = add("serve", "answer a paired partner; only ever started by a paired key")
    door.add_argument("--pairing", metavar="NAME", required=True)
    door.add_argument("--connection", action="store_true", help="stdin is a connection of the pairing's socket")
    add("unit", "what the service of a job starts").add_argument("job", metavar="JOB")
    add("units", "start the units that a job has before or after a run; asked at a socket that is standard input")
    add("died", "what the service of a job starts when it has ended").add_argument("job", metavar="JOB")
    recover = add("recover", "start jobs whose last run is not over")
    recover.add_argument("job", metavar="JOB", nargs="?")
    recover.add_argument("--give-up", action="store_true", help="end what waits for another attempt instead")
    add("notify", "send the mails that wait in the outbox, until none does")
    add("late", "tell of jobs that are late").add_argument("job", metavar="JOB", nargs="?")
    rename = add("rename", "give a declared job what is known of the one that had another name")
    rename.add_argument("job", metavar="JOB")
    rename.add_argument("--from", metavar="JOB", required=True, dest="previous")
    return top


def count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of runs; give one from 1 on")
    return number


def main(scope: str, argv: Sequence[str] | None = None) -> int:
    """Entry of the launcher, which knows its scope; returns the exit code."""
    layout = Layout.of(scope, os.environ)
    given = sys.argv[1:] if argv is None else argv
    as_json = "--json" in given
    # Directories made on a target are as open as any; what is private is created so.
    os.umask(0o022)
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    # The job that a unit of its own is started for.
    about = None
    try:
        arguments = parser().parse_args(given)
        about = arguments.job if arguments.command in ("unit", "recover", "died") else None
        handler: Callable[[Layout, argparse.Namespace], int] = globals()[f"command_{arguments.command}"]
        with heard():
            return handler(layout, arguments)
    except Failure as failure:
        return fail(failure, as_json, about)
    except PermissionError as error:
        remedy = "try with sudo" if layout.privileged else "give this account access to it"
        return fail(Failure("permission", f"permission denied; {remedy}", field=str(error.filename)), as_json, about)
    except BrokenPipeError:
        # The reader of our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except KeyboardInterrupt:
        print_failure(STOPPED, as_json)
        return 128 + signal.SIGINT
    except Stopped:
        # Everything is written; now as who sent the signal expects it, by the signal.
        print_failure(STOPPED, as_json)
        sys.stdout.flush()
        from serversync import journal

        journal.settle()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        return FAILED
    except Exception as error:
        # Not 1, which says that the runner has told of the failure itself: systemd shall see this one.
        import traceback

        traceback.print_exc()
        broken = Failure("internal", f"the runner failed: {type(error).__name__}: {error}")
        told_the_journal(broken, about)
        print_failure(broken, as_json)
        return INTERNAL


STOPPED = Failure("stopped", "it was stopped before it was done")


def fail(failure: Failure, as_json: bool, about: str | None) -> int:
    """Tells what went wrong, of the job that a unit was started for; the exit code."""
    from serversync.display import safe

    if not told_the_journal(failure, about):
        print(f"serversync: {safe(failure)}", file=sys.stderr)
    print_failure(failure, as_json)
    if isinstance(failure, InvalidDocument):
        return USAGE
    if failure.code == "records":
        return INTERNAL
    return SKIPPED if failure.code == "running" else FAILED


def print_failure(failure: Failure, as_json: bool) -> None:
    """What asked for JSON gets some, whatever happens."""
    if as_json:
        print(json.dumps({"failure": failure.as_dict()}, indent=2))


def told_the_journal(failure: Failure, about: str | None) -> bool:
    """Whether the journal knows now why a unit of the job did not do what it was started for."""
    if not about:
        return False
    from serversync import journal

    entry = journal.Entry(f"serversync: {failure}", "failure", journal.ERR, job=about, code=failure.code)
    return journal.tell(entry, 2)


def log(line: str, *, output: int = 1, result_follows: bool = False) -> None:
    """Tells the journal, or else whoever reads the output: 1 or 2, the standard one or that for errors.

    result_follows: and tells what the line does, where that is about the run as a whole.
    """
    from serversync import journal
    from serversync.display import safe

    if journal.tell(line, output) or (result_follows and journal.is_of_result(line)):
        return
    # Whoever reads it may be gone, or its disk full; a run goes on without, and its record says all of it.
    with suppress(OSError):
        print(safe(line), file=sys.stderr if output == 2 else sys.stdout, flush=True)


def perform(
    layout: Layout,
    document: Job,
    trigger: str,
    only: Sequence[str] | None,
    approve: str | None,
    say: Callable[[str], None],
    watch: Watch | None = None,
) -> dict[str, Any]:
    """A run in this process."""
    from serversync.servers import Connecting

    give_way(layout, document["limits"]["nice"])
    # Units that take an hour would leave the connection idle for it.
    connecting = None if document["before"] else Connecting(layout, document)
    from serversync import notify, run, units

    again = (lambda seconds: units.start_again(document, seconds)) if layout.privileged else None
    with connecting or nullcontext():
        one = run.Run(
            layout,
            document,
            trigger=trigger,
            only=only,
            approve=approve,
            first=connecting,
            log=say,
            wait=time.sleep,
            later=again,
            going_down=units.going_down if layout.privileged else lambda: False,
            watch=watch,
        )
        return one.carry_out(lambda record, past: notify.tell(layout, document, record, past, say))


def command_notify(layout: Layout, _arguments: argparse.Namespace) -> int:
    from serversync import outbox
    from serversync.mail import Post

    handed = os.environ.get("CREDENTIALS_DIRECTORY")
    if layout.privileged and not handed:
        # Root would do in the runner's directory what the runner has laid out for it.
        message = (
            "serversync-notify.service sends mails; to have it try now: systemctl restart serversync-notify.service"
        )
        raise InvalidDocument("usage", message)
    if layout.outbox.is_dir():
        outbox.send_all(layout.outbox, lambda one: Post.of(layout, handed).deliver(one), log, time.sleep)
    return 0


def command_late(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync import alarm, job, linux, outbox

    if layout.privileged and os.geteuid() == 0:
        # What it notes is the account's.
        message = "serversync-late.service looks; to have it look now: systemctl start serversync-late.service"
        raise InvalidDocument("usage", message)
    if layout.privileged:
        linux.confine()
    name = job.check_name(arguments.job) if arguments.job else None
    return 0 if alarm.look(layout, name, outbox.now(), log) else FAILED


def give_way(layout: Layout, nice: int) -> None:
    """As the job's service does, for a run that is none of a service."""
    missing = nice - os.getpriority(os.PRIO_PROCESS, 0)
    if missing > 0 and not layout.privileged:
        os.nice(missing)


def command_run(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync import job

    say = partial(log, output=2 if arguments.json else 1, result_follows=True)
    document = job.load(layout, arguments.job, remember=not layout.privileged)
    job.select(document, arguments.element)
    # Nothing more is imported here: ssh starts first of all, and logs in meanwhile.
    if layout.privileged:
        from serversync import unit

        request = {"element": arguments.element, "approve": arguments.approve}
        if sys.stderr.isatty():
            print(f"running in {unit.service(arguments.job)}; journalctl -fu has it live", file=sys.stderr)
        if arguments.json or not sys.stdout.isatty():
            record = unit.ask(layout, arguments.job, "run", **request)
        else:
            from serversync.progress import Display

            with Display() as display:
                record = unit.ask(layout, arguments.job, "run", show_counts=display.show, **request)
        record = unit.follow(layout, record, lambda line: print(line, file=sys.stderr))
    elif arguments.json or not sys.stdout.isatty():
        record = perform(layout, document, "manual", arguments.element, arguments.approve, say)
    else:
        from serversync.progress import Display

        with Display() as display:
            record = perform(layout, document, "manual", arguments.element, arguments.approve, say, display.watch)
    from serversync.display import show_record
    from serversync.run import EXIT

    tell(arguments, record, lambda: show_record(record, followed=not layout.privileged))
    return EXIT[record["state"]]


def tell(arguments: argparse.Namespace, result: Any, show: Callable[[], None]) -> None:
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        show()


def work(layout: Layout, document: Job, request: dict[str, Any]) -> dict[str, Any]:
    """What a command other than run asks of the process that may touch the replicas."""
    from serversync import check, resolve, run

    verb, only = request["verb"], request.get("element")
    if verb == "plan":
        return run.plan(layout, document, only)
    if verb == "conflicts":
        return resolve.conflicts(layout, document, only)
    if verb == "resolve":
        return resolve.resolve(layout, document, request["path"], request["use"], only)
    if verb == "versions":
        return resolve.versions(layout, document, request["path"], only)
    if verb == "restore":
        return resolve.restore(layout, document, request["path"], request["of"], only)
    if verb == "check":
        return {"findings": check.check(layout, document)}
    raise Failure("unknown_verb", f"the unit was asked to {verb!r}, which this runner does not know")


def ask(layout: Layout, arguments: argparse.Namespace, **request: Any) -> dict[str, Any]:
    """Has the work done by whoever may touch the replicas: the job's unit, or in user scope this process."""
    from serversync import job, unit

    document = job.load(layout, arguments.job, remember=not layout.privileged)
    job.select(document, arguments.element)
    request["element"] = arguments.element
    if layout.privileged:
        return unit.ask(layout, arguments.job, arguments.command, **request)
    return work(layout, document, {"verb": arguments.command, **request})


def command_plan(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync.display import show_plan

    found = ask(layout, arguments)
    tell(arguments, found, lambda: show_plan(found))
    return FAILED if found["failed"] else 0


def command_conflicts(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync.display import show_conflicts

    found = ask(layout, arguments)
    tell(arguments, found, lambda: show_conflicts(found["elements"], found["job"]))
    return DIFFERENT if any(entry["conflicts"] for entry in found["elements"]) else 0


def command_resolve(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync.display import safe

    done = ask(layout, arguments, path=arguments.path, use=arguments.use)
    tell(arguments, done, lambda: print(f"{safe(done['path']) or '.'}: resolved, {done['used']}"))
    return 0


def command_versions(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync.display import show_versions

    found = ask(layout, arguments, path=arguments.path)
    tell(arguments, found, lambda: show_versions(found["elements"], found["job"]))
    return 0


def command_restore(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync.display import safe

    done = ask(layout, arguments, path=arguments.path, of=arguments.of)
    lines = [
        f"{safe(path)}: brought back on {safe(done['server'])}, as before run {done['run']}"
        for path in done["restored"]
    ]
    tell(arguments, done, lambda: print("\n".join(lines)))
    return 0


def command_check(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync import check, job, linux, unit

    if arguments.job and ("/" in arguments.job or arguments.job.endswith(".json")):
        try:
            documents = job.load_files(Path(arguments.job))
        except OSError as error:
            raise InvalidDocument("unreadable", f"{arguments.job}: {error.strerror}") from error
        if arguments.connect and layout.privileged:
            if os.geteuid() == 0:
                # The jobs' units are not there yet.
                from serversync import trial

                again = [sys.argv[0], "check", "/dev/stdin", *given_flags(arguments)]
                trial.try_as_unit(layout, arguments.job, documents, again)
            linux.confine()
        if arguments.connect:
            import tempfile

            # What only a unit, or the first run, makes is not needed for that and not left behind.
            with tempfile.TemporaryDirectory(prefix="serversync-") as runtime:
                findings = check.check_all(layout._replace(runtime=Path(runtime)), documents)
        else:
            text = f"{arguments.job} is a valid job document"
            findings = {document.name: [check.finding("ok", text)] for document in documents}
        for document in documents:
            findings[document.name] += check.bound(document)
    else:
        findings = {}
        for name in [arguments.job] if arguments.job else job.names(layout):
            try:
                document = job.load(layout, name)
            except InvalidDocument as problem:
                if arguments.job:
                    raise
                findings[name] = [check.from_failure(problem, "no run can begin")]
                continue
            if layout.privileged:
                findings[name] = unit.ask(layout, name, "check")["findings"]
            else:
                findings[name] = check.check(layout, document)
    from serversync.display import show_findings

    tell(arguments, findings, lambda: show_findings(findings))
    return FAILED if any(entry["level"] == "error" for found in findings.values() for entry in found) else 0


def given_flags(arguments: argparse.Namespace) -> list[str]:
    return [f"--{name}" for name in ("connect", "json") if getattr(arguments, name)]


def command_unit(layout: Layout, arguments: argparse.Namespace) -> int:
    """In the job's own unit: what a terminal asks for, or else the run that the schedule wants."""
    from serversync import job, linux, unit

    name = job.check_name(arguments.job)
    if layout.privileged:
        linux.confine()
    request = unit.request_of(name) if layout.privileged else None

    def perform_it(
        trigger: str, only: Sequence[str] | None, approve: str | None, watch: Watch | None = None
    ) -> dict[str, Any]:
        return perform(layout, job.load(layout, name, remember=True), trigger, only, approve, log, watch)

    try:
        if request is None or request["verb"] == "run":
            if request is None:
                record = perform_it("schedule", None, None)
            else:
                only, approve = request.get("element"), request.get("approve")
                watch = unit.publisher(layout, name, request)
                record = unit.respond(layout, name, request, lambda: perform_it("manual", only, approve, watch))
            from serversync.run import EXIT

            return EXIT[record["state"]]
        document = job.load(layout, name)
        unit.respond(layout, name, request, lambda: work(layout, document, request))
    except InvalidDocument:
        # There is no run that would end with them.
        if name in job.names(layout):
            measure(layout, name)
        raise
    except Stopped:
        # What a run had to say of its end is on record.
        return FAILED
    return 0


def measure(layout: Layout, name: str) -> None:
    from serversync import journal, metrics

    try:
        metrics.write(layout, name)
    except Failure as failure:
        log(journal.Entry(failure, "metrics", journal.WARNING, job=name, code=failure.code))


def command_units(layout: Layout, _arguments: argparse.Namespace) -> int:
    from serversync import units

    return units.serve(layout)


def command_died(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync import job, journal, unit, units

    # In systemd's words; a process that could still speak has started them itself.
    if os.environ.get("EXIT_CODE") not in ("killed", "dumped"):
        return 0
    name = job.check_name(arguments.job)
    request = unit.request_of(name) if layout.privileged else None
    if request is None or request["verb"] == "run":
        started = units.after_death(layout, job.load(layout, name))
        line = f"the runner was killed; started, and not waited for: {', '.join(started)}"
        log(journal.Entry(line, "units", journal.WARNING, job=name))
    return 0


def command_recover(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync import job, recover

    if not arguments.job:
        recover.at_boot(layout, log)
    elif job.check_name(arguments.job) not in job.names(layout):
        log(f"{arguments.job} is no job any more; there is nothing to do")
    elif arguments.give_up:
        recover.give_up(layout, arguments.job, log)
    else:
        recover.recover(layout, arguments.job, log)
    return 0


def command_rename(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync import job, rename, unit

    document = job.load(layout, arguments.job)
    if layout.privileged and os.geteuid() == 0:
        # What is kept of a job is its account's, and nothing of it may become root's.
        unit.become_account()
    rename.rename(layout, document, job.check_name(arguments.previous))
    return 0


def command_serve(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync import linux
    from serversync.serve import serve

    if arguments.connection:
        linux.confine()
    return serve(layout, arguments.pairing, connection=arguments.connection)


def command_status(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync import status
    from serversync.display import show_status

    rows = status.status(layout, arguments.job)
    tell(arguments, rows, lambda: show_status(rows))
    return 0


def command_history(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync import status
    from serversync.display import show_history

    runs = status.runs(layout, arguments.job, arguments.limit)
    tell(arguments, runs, lambda: show_history(runs))
    return 0


def command_metrics(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync import metrics, status

    found = [*metrics.samples(status.status(layout, arguments.job))]
    told = [one._asdict() for one in found]
    tell(arguments, told, lambda: print(metrics.render(found), end=""))
    return 0


def command_report(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync import report

    if arguments.html is None and not arguments.json:
        raise InvalidDocument("usage", "say where the page is to be written: --html FILE; or give --json")
    if arguments.html == "-" and arguments.json:
        raise InvalidDocument("usage", "standard output takes one of --html - and --json")
    if arguments.job and arguments.sources:
        raise InvalidDocument("usage", "a report --from FILE is of all jobs in it; leave JOB out")
    servers = report.read(arguments.sources) if arguments.sources else [report.gather(layout, arguments.job)]
    if arguments.html is not None:
        from serversync.page import page

        report.write(arguments.html, page(servers))
    if arguments.json:
        print(json.dumps(report.document_of(servers)))
    return 0


def command_show(layout: Layout, arguments: argparse.Namespace) -> int:
    from serversync import status
    from serversync.display import safe, show_record

    record = status.record(layout, arguments.job, arguments.run)
    problem = status.problem(layout, arguments.job)
    if problem:
        # What is shown is of a run that was; as it is there will be no other.
        print(f"serversync: {safe(problem)}", file=sys.stderr)
    tell(arguments, record, lambda: show_record(record))
    return 0
