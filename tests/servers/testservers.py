# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running test servers, reached as an administrator reaches servers: by ssh, as root, host keys checked."""

from __future__ import annotations

import email
import email.policy
import json
import os
import shlex
import subprocess
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STATE = Path(os.environ.get("SERVERS_STATE", ROOT / ".servers"))


# Arguments and environments of all processes: where the secret is in one, its number and name.
PROCESSES = """
import pathlib, sys
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        name = (process / "comm").read_text().strip()
    except OSError:
        continue
    # What looks for it is handed it in two pieces.
    if "".join(sys.argv[1:]).encode() in told:
        print(process.name, name)
"""


@dataclass(frozen=True)
class Server:
    """One test server; `name` is its name in the inventory, and the one under which the others find it."""

    name: str

    def ssh(self, *argv: str) -> list[str]:
        return ["ssh", "-F", str(STATE / "ssh_config"), self.name, shlex.join(argv)]

    def try_run(self, *argv: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command there and returns what became of it."""
        return subprocess.run(self.ssh(*argv), input=stdin, capture_output=True, text=True, check=False)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Runs a command there that goes on meanwhile."""
        return subprocess.Popen(self.ssh(*argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def run(self, *argv: str, stdin: str | None = None) -> str:
        """Runs a command there, which must succeed, and returns what it prints."""
        done = self.try_run(*argv, stdin=stdin)
        assert done.returncode == 0, f"{self.name}: {shlex.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def python(self, script: str, *arguments: str) -> str:
        return self.run("python3", "-", *arguments, stdin=script)

    def processes_with(self, secret: str) -> str:
        """Processes in whose arguments or environment the secret is."""
        return self.python(PROCESSES, secret[:5], secret[5:])

    def read(self, path: str) -> str:
        return self.run("cat", path)

    def write(self, path: str, text: str) -> None:
        self.run("tee", path, stdin=text)

    def follow(self, unit: str, text: str) -> None:
        """Reads the unit's journal, from its beginning and on, until a line holds the text."""
        script = (
            "import subprocess, sys\n"
            "argv = ['journalctl', '--follow', '--lines=all', '--output=cat', '--unit=' + sys.argv[1]]\n"
            "journal = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)\n"
            "next(line for line in journal.stdout if sys.argv[2] in line)\n"
            "journal.kill()\n"
        )
        self.python(script, unit, text)

    def sshd(self, verb: str) -> None:
        """Starts or stops it, from inside, since by ssh nobody could start it again."""
        environment = {**os.environ, "CONTAINERS_CONF": str(HERE / "containers.conf")}
        command = ["podman", "exec", f"serversync-{self.name.lower()}", "systemctl", verb, "ssh.service"]
        subprocess.run(command, check=True, env=environment)

    def tree(self, path: str) -> list[str]:
        """What the oracle says about a tree, a line for each path."""
        return self.python((HERE / "oracle.py").read_text(encoding="utf-8"), path).splitlines()

    def published(self, job: str) -> dict[str, Any]:
        """What the runner tells everybody about a job."""
        told: dict[str, Any] = json.loads(self.read(f"/var/lib/serversync/public/{job}.json"))
        return told

    def serversync(self, *argv: str) -> tuple[int, Any]:
        """Exit code and JSON of a command of the runner."""
        done = self.try_run("serversync", *argv, "--json")
        assert done.returncode in (0, 1, 3, 4), done.stdout + done.stderr
        return done.returncode, json.loads(done.stdout)


@dataclass(frozen=True)
class MailServer(Server):
    def mails(self) -> dict[str, EmailMessage]:
        """The mails that came so far, by the name of their file."""
        script = (
            "import json, pathlib\n"
            "found = pathlib.Path('/var/spool/sink/new').glob('*')\n"
            "print(json.dumps({path.name: path.read_bytes().decode('latin-1') for path in found}))\n"
        )
        texts = json.loads(self.python(script))
        return {
            name: email.message_from_bytes(text.encode("latin-1"), policy=email.policy.default)
            for name, text in texts.items()
        }

    def mail_of(self, server: Server, run: dict[str, Any]) -> EmailMessage:
        """The mail about a run, once the server's own service has handed it in."""
        server.follow("serversync-notify.service", f"run {run['run']}: mail to ops@example.com sent")
        (message,) = [message for message in self.mails().values() if run["run"] in message["Message-ID"]]
        return message


def text_of(message: EmailMessage) -> str:
    part = message.get_body(("plain",))
    assert part is not None
    return str(part.get_content())
