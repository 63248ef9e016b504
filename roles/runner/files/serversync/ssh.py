# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One SSH connection to the partner: its master carries a conversation of the two runners, its channels more of them,
and rsync.

Host keys come from the pairing (or the job) alone and are always checked; nobody's own SSH configuration plays a part.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from serversync import PROTOCOL, __version__
from serversync.failure import Failure
from serversync.frames import BESIDE, CONTROL, PATIENCE, STALL, Frames
from serversync.job import Job
from serversync.layout import Layout

Reply = tuple[dict[str, Any], bytes]

# What of a partner's stderr is kept.
STDERR_LIMIT = 16384
# What is told by a code that is this server's own, and none of a partner's to use.
OURS = ("internal", "killed", "records", "stopped")
# Characters of a version.
LONGEST_VERSION = 64
# Bytes of answers that have come before anybody waits for them; what is asked ahead is answered with less.
UNHEARD = 256 << 20
# Waiting for the greeting covers connecting, logging in, and starting the partner's unit.
GREETING = 90.0


class Pairing:
    """How the partner of a job is reached: address, account, key, and the known host keys under an alias."""

    def __init__(self, layout: Layout, job: Job) -> None:
        partner, account = job["partner"], job["account"]
        self.host: str = partner["host"]
        self.port: int = partner["port"]
        self.user: str = account["user"]
        self.key = Path(account["private_key_file"] or layout.key)
        self.by_password = bool(account.get("password"))
        self.alias = f"serversync-{self.host}"
        self.known_hosts: Path | None = None
        self.name: str | None = None
        found = find_pairing(layout, self.host)
        if found:
            self.name = found["name"]
            self.host = found["host"]
            self.alias = found["alias"]
            self.known_hosts = layout.pairings / f"{self.name}.known_hosts"
        self.host_keys: list[str] = partner["host_key"]
        if not found and not self.host_keys:
            raise Failure(
                "not_paired",
                f"this server is not paired with {self.host}; list it in the role's runner_partners on both servers, "
                "or give its key in partner.host_key",
                field="partner.host",
            )

    def known_keys(self) -> list[str]:
        """The pinned keys as ``TYPE BASE64``; the job's own must be among the pairing's."""
        if self.known_hosts is None:
            return self.host_keys
        lines = self.known_hosts.read_text(encoding="utf-8").splitlines()
        pinned = [" ".join(line.split()[1:3]) for line in lines if line and not line.startswith("#")]
        strangers = [key for key in self.host_keys if key not in pinned]
        if strangers:
            raise Failure(
                "host_key",
                f"is not the key that the pairing {self.name} has pinned; if the server's key was changed on purpose, "
                "apply the role to both servers again",
                field="partner.host_key",
            )
        return pinned


def find_pairing(layout: Layout, host: str) -> dict[str, Any] | None:
    """The pairing of that name, else the one that reaches that host."""
    reaching = []
    if layout.pairings.is_dir():
        for path in sorted(layout.pairings.glob("*.json")):
            pairing: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if pairing["name"] == host:
                return pairing
            if pairing["host"] == host:
                reaching.append(pairing)
    if len(reaching) > 1:
        names = ", ".join(pairing["name"] for pairing in reaching)
        message = f"{host} is the address of several pairings ({names}); name one of them"
        raise Failure("ambiguous", message, field="partner.host")
    return reaching[0] if reaching else None


Self = TypeVar("Self", bound="Conversation")


class Conversation:
    """What two runners say to each other over one channel; ``ask`` and ``ask_long`` may be called by any thread."""

    # What rsync gets as its -e, and what it calls the partner.
    remote_shell: str
    host: str
    # Where ssh writes its own messages: on its standard error they could not be told from the partner's.
    messages: Path | None = None

    def __init__(self, partner: str) -> None:
        self.partner = partner
        self.held = ExitStack()

    def begin(self, argv: list[str]) -> None:
        """Starts ssh."""
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdin and self.process.stdout and self.process.stderr
        # Whoever sends takes in meanwhile what comes, or each side could wait for the other to read.
        os.set_blocking(self.process.stdin.fileno(), False)
        self.converse(Frames(self.process.stdout.fileno(), self.process.stdin.fileno()))
        self.stderr = b""
        # The partner must be able to tell a runner that waits for rsync from one that is gone.
        self.held.enter_context(self.frames.alive())
        self.drain = threading.Thread(target=self.keep_stderr, daemon=True)
        self.drain.start()
        self.hello = self.ask_early("hello")

    def converse(self, frames: Frames) -> None:
        self.frames = frames
        self.questions = 0
        self.asking = threading.Lock()
        # Questions that have not been answered to their end, in the order in which they are; and, in theirs, those that
        # are answered beside them.
        self.waiting: deque[int] = deque()
        self.beside: deque[int] = deque()
        # Question -> what of its answer has come and nobody has taken yet.
        self.come: dict[int, deque[Reply]] = {}
        self.unheard = 0
        self.lost: Failure | None = None
        self.talking = threading.RLock()

    def greet(self) -> None:
        """Waits for the answer of the partner's runner; Failure where it does not fit."""
        reply, _nothing = self.answer(self.hello, GREETING)
        self.greeted = time.time()
        self.about = self.introduced(reply)

    def introduction(self) -> dict[str, Any]:
        """What the partner's runner says of itself now."""
        return self.introduced(self.ask("hello"))

    def introduced(self, about: dict[str, Any]) -> dict[str, Any]:
        version, protocol, clock = (about.get(name) for name in ("version", "protocol", "time"))
        if protocol != PROTOCOL:
            raise Failure(
                "version",
                f"the partner's runner {version!s:.80} speaks protocol {protocol!s:.80}, "
                f"this one ({__version__}) {PROTOCOL}; apply the role of one version to both servers",
            )
        words = isinstance(version, str) and len(version) <= LONGEST_VERSION
        if not (words and isinstance(clock, (int, float)) and 0 <= clock < 1e12):
            raise self.nonsense(f"its version is {version!r:.80}, its time {clock!r:.80}")
        if not isinstance(about.get("privileged"), bool):
            raise self.nonsense(f"privileged is {about.get('privileged')!r:.80}")
        return {"version": version, "protocol": protocol, "time": clock, "privileged": about["privileged"]}

    def rsync_version(self) -> str | None:
        """That of the partner's rsync; None: it has none."""
        found = self.ask("programs").get("rsync")
        if found is not None and not (isinstance(found, str) and len(found) <= LONGEST_VERSION):
            raise self.nonsense(f"its rsync is {found!r:.80}")
        return found

    def nonsense(self, what: str) -> Failure:
        return Failure("protocol", f"{self.partner} gave an answer that cannot be one ({what}); look into it there")

    def keep_stderr(self) -> None:
        assert self.process.stderr is not None
        while True:
            data = os.read(self.process.stderr.fileno(), 4096)
            if not data:
                return
            self.stderr = (self.stderr + data)[-STDERR_LIMIT:]

    def ask(self, verb: str, payload: bytes = b"", *, patience: float = PATIENCE, **request: Any) -> dict[str, Any]:
        """The partner's answer in one frame; its refusals and a lost connection are raised as Failure."""
        return self.answer(self.ask_early(verb, payload, **request), patience)[0]

    def ask_early(self, verb: str, payload: bytes = b"", **request: Any) -> int:
        """Asks without waiting for the answer, which ``answer`` or ``pieces`` tells by this number."""
        return self.question(verb, payload, request)

    def tell(self, verb: str, **request: Any) -> None:
        """Asks for what needs no answer."""
        self.drop(self.question(verb, b"", request))

    def drop(self, number: int) -> None:
        """Nobody wants the answer to this question any more."""
        with self.talking:
            self.unheard -= sum(len(data) for _reply, data in self.come.pop(number, ()))

    def answer(self, number: int, patience: float = PATIENCE) -> Reply:
        """The answer to a question, in one frame, and its bytes."""
        with self.talking:
            reply, data = self.reply(number, patience)
            if reply.get("more"):
                raise self.broken("answered at greater length than it was asked for")
            return reply, data

    def ask_long(self, verb: str, payload: bytes = b"", **request: Any) -> Generator[bytes, None, None]:
        """The bytes of an answer of any length, piece by piece."""
        yield from self.pieces(self.ask_early(verb, payload, **request))

    def pieces(self, number: int, patience: float = PATIENCE) -> Generator[bytes, None, None]:
        """The same of a question that was asked early; nobody else takes up an answer until it has been read."""
        with self.talking:
            more = True
            try:
                while more:
                    reply, data = self.reply(number, patience)
                    more = bool(reply.get("more"))
                    if data:
                        yield data
                    elif more:
                        # So an answer could go on for ever.
                        raise self.broken("sent a piece of an answer with nothing in it")
            except GeneratorExit:
                self.lost = self.lost or Failure("protocol", "an answer was not read to its end", transient=True)
                raise

    def broken(self, what: str) -> Failure:
        """The connection is given up, as nobody knows what comes next."""
        self.lost = Failure("protocol", f"{self.partner} {what}", transient=True)
        return self.lost

    def question(self, verb: str, payload: bytes, request: dict[str, Any]) -> int:
        """Sends it; its number."""
        if self.lost:
            raise self.lost
        with self.asking:
            number = self.questions = self.questions + 1
            self.come[number] = deque()
            (self.beside if verb == BESIDE else self.waiting).append(number)
            # Whoever waits for the answer is told why there is none.
            with suppress(BrokenPipeError):
                self.frames.send({"id": number, "verb": verb, **request}, payload)
        return number

    def reply(self, number: int, patience: float) -> Reply:
        """The next frame of the answer to this question; those of earlier ones that come before it are kept for whoever
        waits for them.

        After anything else the connection is given up: the next answer to come could be that to an older question.
        """
        come = self.come[number]
        while not come:
            if self.lost:
                raise self.lost
            try:
                self.hear(*self.frames.receive(patience, STALL))
            except EOFError:
                raise self.explained() from None
            except Failure as failure:
                self.lost = failure
                raise
        reply, data = come.popleft()
        self.unheard -= len(data)
        if not (reply.get("ok") and reply.get("more")):
            del self.come[number]
        if not reply.get("ok"):
            raise self.refusal(reply)
        return reply, data

    def hear(self, reply: dict[str, Any], data: bytes) -> None:
        """Keeps a frame for whoever waits for it, if anybody does."""
        asked = next((some for some in (self.waiting, self.beside) if some and some[0] == reply.get("id")), None)
        if asked is None:
            raise self.broken("answered another question")
        if not (reply.get("ok") and reply.get("more")):
            asked.popleft()
        if reply["id"] in self.come:
            self.come[reply["id"]].append((reply, data))
            self.unheard += len(data)
            if self.unheard > UNHEARD:
                raise self.broken("answered at greater length than it was asked for")

    def refusal(self, reply: dict[str, Any]) -> Failure:
        """What the partner says of itself; of this server's job and records it has nothing to tell."""
        told = reply.get("failure")
        failure = Failure.from_dict(told if isinstance(told, dict) else {"message": "no, without a reason"})
        code = "unknown" if failure.code in OURS else failure.code
        # Which root is in use is told with where it is.
        said = failure.message if code == "running" else f"{self.partner} says: {failure.message}"
        return Failure(code, said, transient=failure.transient)

    def explained(self) -> Failure:
        self.end()
        said = ""
        if self.messages is not None:
            with suppress(FileNotFoundError):
                said = self.messages.read_text(encoding="utf-8", errors="replace")
        self.lost = explain(said, self.partner, self.stderr.decode("utf-8", "replace"))
        return self.lost

    def abort(self) -> None:
        """Ends the channel now, whoever waits for an answer."""
        if self.process.poll() is None:
            self.process.terminate()

    def end(self) -> None:
        """Waits for the master, which ends with its conversation; one that does not is ended."""
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait()
        self.drain.join()

    def close(self) -> None:
        self.held.close()
        process = getattr(self, "process", None)
        if process is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
            self.end()
            process.stdout.close()
            process.stderr.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Channel(Conversation):
    """One more conversation over the connection of another, which has to outlive it."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection.partner)
        self.remote_shell, self.host = connection.remote_shell, connection.host
        try:
            self.begin([*shlex.split(connection.remote_shell), "--", connection.host, CONTROL])
            self.greet()
        except BaseException:
            self.close()
            raise


class Connection(Conversation):
    """The connection itself: its master carries the first conversation, which begins with ``greet``."""

    def __init__(self, layout: Layout, job: Job) -> None:
        super().__init__(job.partner)
        self.pairing = Pairing(layout, job)
        self.own_key = layout.key
        # The channels go through the master, whatever the name.
        self.host = self.pairing.alias
        self.directory = tempfile.TemporaryDirectory(prefix="ss-", dir=socket_directory(layout))
        self.socket = str(Path(self.directory.name) / "master")
        # Should the master be gone, ssh would connect and log in anew behind it; the proxy command forbids that.
        alone = options(ControlMaster="no", BatchMode="yes", ProxyCommand="false")
        self.remote_shell = shlex.join(["ssh", "-S", self.socket, "-T", *alone])
        try:
            self.open()
        except BaseException:
            self.close()
            raise

    def open(self) -> None:
        pairing = self.pairing
        if not pairing.key.exists():
            remedy = "apply the role serversync.core.runner, which makes it"
            if pairing.key != self.own_key:
                remedy = "put the key there, correct the path, or set null for the runner's own key"
            raise Failure("no_key", f"{pairing.key} does not exist; {remedy}", field="account.private_key_file")
        known_hosts = Path(self.directory.name) / "known_hosts"
        keys = pairing.known_keys()
        known_hosts.write_text("".join(f"{pairing.alias} {key}\n" for key in keys), encoding="utf-8")
        self.messages = Path(self.directory.name) / "messages"
        argv = [
            "ssh",
            "-E",
            str(self.messages),
            "-M",
            "-S",
            self.socket,
            "-T",
            "-p",
            str(pairing.port),
            "-l",
            pairing.user,
            "-i",
            str(pairing.key),
        ]
        argv += options(
            BatchMode="yes",
            CheckHostIP="no",
            ClearAllForwardings="yes",
            ConnectTimeout="20",
            ControlPersist="no",
            GlobalKnownHostsFile="none",
            HostKeyAlias=pairing.alias,
            IdentitiesOnly="yes",
            IdentityAgent="none",
            PreferredAuthentications="publickey",
            ServerAliveCountMax="6",
            ServerAliveInterval="10",
            StrictHostKeyChecking="yes",
            UpdateHostKeys="no",
            UserKnownHostsFile=str(known_hosts),
        )
        self.begin([*argv, "--", pairing.host, CONTROL])

    def close(self) -> None:
        super().close()
        self.directory.cleanup()


def options(**values: str) -> list[str]:
    """``-F none`` and an ``-o`` for each value."""
    return ["-F", "none", *(word for name, value in values.items() for word in ("-o", f"{name}={value}"))]


def socket_directory(layout: Layout) -> str | None:
    """The path of a socket is at most 107 bytes long, so it lives as near to the root as may be."""
    if not layout.privileged:
        return None
    directory = layout.runtime / "ssh"
    directory.mkdir(mode=0o700, exist_ok=True)
    return str(directory)


# What ssh says -> code, what it means (with {partner}), whether another attempt may help. The first that fits counts.
REASONS = [
    (
        r"has no open door",
        "no_door",
        "{partner} let the key in but has no open door for it; apply the role there with this server in its "
        "runner_partners",
        False,
    ),
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|host key is known for",
        "host_key",
        "wrong host key: {partner} does not have the key that was pinned for it, so it was set up anew, or it is "
        "another server; find out which; if it is right, apply the role to both servers, which pins the new key",
        False,
    ),
    (
        r"Permission denied",
        "login",
        "log-in refused by {partner}; apply the role to both servers, which pairs them",
        False,
    ),
    (
        r"Could not resolve hostname",
        "unreachable",
        "the name of {partner} could not be resolved; check partner.host",
        True,
    ),
    (
        r"Connection refused",
        "unreachable",
        "connection refused by {partner}; check that sshd runs there on that port",
        True,
    ),
    (
        r"No route to host|Network is unreachable",
        "unreachable",
        "no route to {partner}; check the network",
        True,
    ),
    (
        r"timed out",
        "unreachable",
        "{partner} did not answer in time; check the network and the firewall",
        True,
    ),
]


def explain(said: str, partner: str, theirs: str = "") -> Failure:
    """What ssh's messages mean to the one who has to mend it.

    theirs: what came from the partner's standard error. Only that it has no open door is believed of it: who believed
    it of a wrong host key would pin another one.
    """
    for pattern, code, meaning, transient in REASONS:
        if re.search(pattern, said) or (code == "no_door" and re.search(pattern, theirs)):
            return Failure(code, meaning.format(partner=partner), field="partner.host", transient=transient)
    lines = [line.strip() for line in f"{theirs}\n{said}".splitlines() if line.strip()]
    last = lines[-1] if lines else "without a message"
    return Failure("connection", f"the connection to {partner} ended: {last}", field="partner.host", transient=True)
