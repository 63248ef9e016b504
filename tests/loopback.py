# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two servers on one machine without root: each is a set of XDG directories, joined by a real sshd on loopback.

What the integration tests, the measurements (tests/bench) and the campaigns (tests/faults) stand on.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml

ROOT = Path(__file__).resolve().parent.parent
# The runner under test; that of another clone for comparing two of them.
PACKAGE = Path(os.environ.get("SERVERSYNC_PACKAGE", ROOT / "roles" / "runner" / "files"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_launcher(path: Path, more: str = "") -> None:
    """Installs the runner under test in user scope; `more` is carried out before its own code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        # A path with a blank cannot stand in a first line.
        f"#!/bin/sh\n'''exec' '{sys.executable}' \"$0\" \"$@\"\n' '''\n"
        f"import os, sys\nsys.path.insert(0, {str(PACKAGE)!r})\nsys.dont_write_bytecode = True\n{more}\n"
        "from serversync.cli import main\nsys.exit(main('user'))\n"
    )
    path.chmod(0o755)


# A file that has no end before it is told so, as soon as its contents are asked for; the process that reads it has the
# FIFO open for as long as it lives.
ENDLESS = """
import os, sys
sys.path.insert(0, {package!r})
from serversync import detect
def endless(descriptor, size):
    os.write(os.open({fifo!r}, os.O_WRONLY), b"reading")
    while not os.path.exists({end!r}):
        yield 0, b"x"
detect.blocks = endless
"""


def endless(directory: Path) -> Path:
    """Makes the directory of a start-up module that makes files endless until there is ``end`` in it, and the FIFO."""
    directory.mkdir()
    os.mkfifo(directory / "fifo")
    text = ENDLESS.format(package=str(PACKAGE), fifo=str(directory / "fifo"), end=str(directory / "end"))
    (directory / "sitecustomize.py").write_text(text)
    return directory


@dataclass
class Server:
    """One server: its home, and the launcher as the role would install it in user scope."""

    home: Path
    extra: dict[str, str] = field(default_factory=dict)
    # What commands of this server are started through: strace, faketime, prlimit ...
    wrapper: Sequence[str] = ()

    def __post_init__(self) -> None:
        for directory in (self.config / "jobs", self.config / "pairings", self.config / "serve", self.config / "keys"):
            directory.mkdir(mode=0o700, parents=True)
        write_launcher(self.launcher, f"os.environ['HOME'] = {str(self.home)!r}")
        self.settings("127.0.0.1", 9)

    @property
    def launcher(self) -> Path:
        return self.home / "serversync"

    @property
    def config(self) -> Path:
        return self.home / ".config" / "serversync"

    @property
    def key(self) -> Path:
        return self.config / "keys" / "id_ed25519"

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), **self.extra}

    def settings(self, host: str, port: int) -> None:
        smtp = {"host": host, "port": port, "sender": "serversync@site-a.example.com"}
        (self.config / "runner.json").write_text(json.dumps({"version": "0.1.0", "scope": "user", "smtp": smtp}))

    def command(self, *arguments: str) -> list[str]:
        return [*self.wrapper, str(self.launcher), *arguments]

    def serversync(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Runs a command; the exit code must be ``code`` (None: any)."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            check=False,
            text=True,
            errors="surrogateescape",
        )
        if code is not None:
            assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def run(self, job: str, code: int = 0) -> dict[str, Any]:
        """Runs the job and returns its record."""
        record: dict[str, Any] = json.loads(self.serversync("run", job, "--json", code=code).stdout)
        return record

    def declare(self, name: str, elements: list[tuple[Path, Path]], /, **options: Any) -> Path:
        """Writes a job document; options replace whole parts of it."""
        document = {
            "version": 1,
            "name": name,
            "comment": "",
            "enabled": True,
            "scope": "user",
            "partner": {"host": "localhost", "port": None, "connection": "local", "host_key": []},
            "account": None,
            "schedule": None,
            "on_error": {"retries": 0, "delay": "1s"},
            "notification": {"email": [], "events": ["failure"]},
            "settings": {"direction": "to_partner", "exclude": [], "delete": "never"},
            "elements": [{"path": str(path), "partner_path": str(partner)} for path, partner in elements],
        }
        path = self.config / "jobs" / f"{name}.json"
        path.write_text(json.dumps({**document, **options}, indent=2) + "\n")
        return path


def module(path: object) -> str:
    """The name that the role gives to a root."""
    return f"root-{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"


def daemon_configuration(roots: list[dict[str, str]]) -> str:
    """The role's own template: an option that its door refuses fails here, too."""
    role = PACKAGE.parent
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)  # noqa: S701 - no HTML
    environment.filters["hash"] = lambda text, kind: hashlib.new(kind, text.encode()).hexdigest()
    template = environment.from_string((role / "templates" / "serve.conf.j2").read_text())
    options = yaml.safe_load((role / "vars" / "main.yml").read_text())["__runner_rsync_options"]
    return template.render(item=[{"name": "site-a", "roots": roots}], __runner_rsync_options=options)


class Partner(Server):
    """A server with an sshd of its own, whose only way in is a paired key."""

    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def host_key(self) -> str:
        return " ".join((self.home / "host_key.pub").read_text().split()[:2])

    def prepare(self, key: str, roots: list[tuple[Path, str]]) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.home / "host_key")], check=True)
        self.port = free_port()
        self.make_door([{"module": module(path), "path": str(path), "access": access} for path, access in roots])
        self.wrap()
        (self.home / "authorized_keys").write_text(f'restrict,command="{self.door}" {key}\n')
        (self.home / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self.home / 'host_key'}\n"
            f"AuthorizedKeysFile {self.home / 'authorized_keys'}\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\nMaxStartups 100\n"
        )

    def make_door(self, entries: list[dict[str, str]]) -> None:
        """What ``serve`` knows of the pairing, and rsync's daemon."""
        (self.config / "serve" / "site-a.json").write_text(json.dumps({"name": "site-a", "roots": entries}))
        text = daemon_configuration(entries)
        if os.geteuid() == 0:
            # A daemon that is root would else become nobody.
            text = f"uid = 0\ngid = 0\n{text}"
        (self.config / "serve" / "site-a.conf").write_text(text)

    @property
    def door(self) -> Path:
        return self.home / "door"

    def wrap(self, *wrapper: str) -> None:
        """What the door starts ``serve`` through from the next connection on."""
        self.wrapper = wrapper
        new = self.home / "door.new"
        new.write_text(f"#!/bin/sh\nexec {shlex.join(self.command('serve', '--pairing', 'site-a'))}\n")
        new.chmod(0o755)
        new.replace(self.door)

    def admit(self, key: str) -> None:
        """Lets a key in with nothing forced on it, as the accounts of rsync and unison have it."""
        with (self.home / "authorized_keys").open("a") as stream:
            stream.write(f"{key}\n")

    def start(self) -> None:
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert sshd, "sshd is not installed; install openssh-server"
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        argv = [sshd, "-D", "-e", "-f", str(self.home / "sshd_config")]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE)
        assert self.process.stderr is not None
        # sshd says so once it listens; what it says later goes where it cannot block it.
        said = b""
        while b"listening" not in said:
            line = self.process.stderr.readline()
            assert line, f"sshd did not start: {said.decode()}"
            said += line
        self.drain = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        if self.process is not None and self.process.stderr is not None:
            self.process.terminate()
            self.process.wait()
            self.process.stderr.close()
            self.drain.wait()
            self.process = None


@dataclass
class Pair:
    """This server, its partner, and a directory on each that a job keeps in sync."""

    here: Server
    there: Partner
    path: Path
    partner_path: Path
    # Where a proxy listens that stands before the partner's sshd.
    port: int | None = None

    def declare(self, name: str = "nightly", direction: str = "to_partner", **options: Any) -> Path:
        port = self.port or self.there.port
        partner = {"host": "127.0.0.1", "port": port, "connection": "ssh", "host_key": [self.there.host_key]}
        settings = {"direction": direction, "exclude": [], "delete": "never"}
        given = {
            "partner": partner,
            "account": {"user": getpass.getuser(), "private_key_file": None},
            "settings": settings,
        }
        elements = options.pop("pairs", [(self.path, self.partner_path)])
        return self.here.declare(name, elements, **{**given, **options})

    def declare_two(self, **options: Any) -> Path:
        """A job of two elements; of a file of the first only its contents tell whether it is the same."""
        other = (self.path.with_name("other"), self.partner_path.with_name("other"))
        for root in (self.path, self.partner_path, *other):
            root.mkdir(exist_ok=True)
        for number, root in enumerate((self.path, self.partner_path)):
            (root / "plc").write_text("same")
            os.utime(root / "plc", (number, number))
        return self.declare(pairs=[(self.path, self.partner_path), other], **options)


def make_key(path: Path) -> str:
    """Makes a key pair; the public half's line."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return Path(f"{path}.pub").read_text().strip()


@contextmanager
def loopback(directory: Path) -> Iterator[Pair]:
    """Two servers below a directory, paired, the partner's sshd listening; replicas are programs and roots/programs."""
    here = Server(directory / "site-a")
    key = make_key(here.key)
    there = Partner(directory / "hq")
    path, root = directory / "programs", directory / "roots"
    path.mkdir()
    root.mkdir()
    there.prepare(key, [(root, "both")])
    there.start()
    try:
        yield Pair(here, there, path, root / "programs")
    finally:
        there.stop()


def tree(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """What is below a directory, by the standard library alone; what the runner keeps for itself is left out.

    Owners only for root: no one else can give files away.
    """
    found: dict[bytes, tuple[Any, ...]] = {}
    for directory, names, files in os.walk(os.fsencode(root)):
        if b".serversync" in names:
            names.remove(b".serversync")
        for name in names + files:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            content: Any = None
            if stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            owner = (info.st_uid, info.st_gid) if os.geteuid() == 0 else None
            when = None if stat.S_ISDIR(info.st_mode) or stat.S_ISLNK(info.st_mode) else info.st_mtime_ns
            found[os.path.relpath(path, os.fsencode(root))] = (info.st_mode, owner, when, content)
    return found
