# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mails on their way from a run to the mail server: by a service of their own, encrypted, with a log-in."""
# ruff: noqa: S105, S108 - a password of a mail server that lives for one test, and where it could be

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from testservers import MailServer, Server

SERVICE = "serversync-notify.service"
SECRET = "Tr0ub4dor-mailed"
ON_SITE = """
- hosts: siteA
  gather_facts: false
  roles:
    - role: serversync.core.runner
"""
SETTINGS = {
    "runner_smtp_port": 587,
    "runner_smtp_user": "plant-a",
    "runner_smtp_password": SECRET,
    "runner_smtp_ca_file": "/etc/ssl/mail.pem",
}
CERTIFY = (
    *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
    *("-subj", "/CN=mail", "-addext", "subjectAltName=DNS:mail", "-keyout", "/root/mail.key", "-out", "/root/mail.pem"),
)
# A mail server that asks for STARTTLS and a log-in, and keeps mails where the other one does; until a line comes.
STRICT = """
import ssl, sys
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Mailbox
from aiosmtpd.smtp import AuthResult

def log_in(server, session, envelope, mechanism, given):
    known = (given.login.decode(), given.password.decode()) == ("plant-a", "".join(sys.argv[2:]))
    return AuthResult(success=known, handled=known)

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/root/mail.pem", "/root/mail.key")
options = {"tls_context": context, "require_starttls": True, "auth_required": True, "authenticator": log_in}
controller = Controller(Mailbox("/var/spool/sink"), hostname="0.0.0.0", port=587, **options)
controller.start()
print("open", flush=True)
open(sys.argv[1]).read()
controller.stop()
"""


@contextmanager
def strict(mail: MailServer) -> Iterator[None]:
    mail.run("mkfifo", "/run/strict")
    with mail.start("python3", "-c", STRICT, "/run/strict", SECRET[:5], SECRET[5:]) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "open\n"
        try:
            yield
        finally:
            mail.write("/run/strict", "enough\n")
    mail.run("rm", "/run/strict")


@pytest.fixture
def encrypted(site: Server, mail: MailServer, play: Any) -> Iterator[str]:
    """The role with such a mail server, which is away yet; what it said."""
    mail.run(*CERTIFY)
    site.write("/etc/ssl/mail.pem", mail.read("/root/mail.pem"))
    variables = ("--extra-vars", json.dumps(SETTINGS))
    yield play(ON_SITE, *variables, "--diff", "-vvv") + play(ON_SITE, *variables)
    play(ON_SITE)
    assert site.try_run("ls", "/etc/serversync/smtp.password.cred").returncode != 0
    site.run("rm", "/etc/ssl/mail.pem")
    mail.run("rm", "/root/mail.pem", "/root/mail.key")


def test_a_mail_waits_for_its_server_and_comes_by_an_encrypted_way(
    site: Server, mail: MailServer, encrypted: str
) -> None:
    assert SECRET not in encrypted
    assert "changed=0 " in encrypted.rpartition("PLAY RECAP")[2]
    facts = site.run("stat", "--format=%A %U:%G", "/etc/serversync/smtp.password.cred", "/var/lib/serversync/outbox")
    assert facts == "-rw------- root:root\ndrwxrws--- serversync:serversync-notify\n"

    code, run = site.serversync("run", "line1-documents")
    assert (code, run["state"]) == (0, "equal")
    waits = f"run {run['run']}: mail to ops@example.com waits: mail server mail:587: Connection refused"
    site.follow(SERVICE, waits)
    # It has the password now, and waits.
    assert site.processes_with(SECRET) == ""
    assert site.run("systemctl", "show", "--property=LimitCORE", "--value", SERVICE) == "1\n"
    found = site.serversync("check", "line1-documents")[1]["line1-documents"]
    assert [one for one in found if one["issue"].startswith(f"the mail of {run['run']} waits: ")], found
    with strict(mail):
        site.run("systemctl", "restart", SERVICE)
        message = mail.mail_of(site, run)
    assert message.get_body(("html",)) is not None
    assert "X-Peer" in message
    # Where systemd hands it over while it is needed, root alone may look.
    options = ("-rlsF", "--devices=skip", "--exclude-dir=credentials", SECRET)
    seen = site.try_run("grep", *options, "/etc", "/var", "/run", "/root", "/tmp")
    assert seen.stdout == ""
    assert site.run("sh", "-c", f"journalctl --output=export | grep -acF {SECRET} || true") == "0\n"


def test_who_sends_mails_comes_near_nothing_else(site: Server) -> None:
    assert site.try_run("systemd-analyze", "security", "--threshold=23", SERVICE).returncode == 0
    site.run("systemd-analyze", "verify", SERVICE, "serversync-notify.path")
    sender = ["runuser", "-u", "serversync-notify", "--"]
    for path in (
        "/etc/serversync",
        "/var/lib/serversync",
        "/var/lib/serversync/public",
        "/var/lib/serversync/archives",
    ):
        assert site.try_run(*sender, "ls", path).returncode != 0, path
    site.run(*sender, "ls", "/var/lib/serversync/outbox")
    # And nobody else comes near the mails.
    stranger = ["setpriv", "--reuid=65534", "--regid=65534", "--groups=serversync-readers"]
    assert site.try_run(*stranger, "ls", "/var/lib/serversync/outbox").returncode != 0
