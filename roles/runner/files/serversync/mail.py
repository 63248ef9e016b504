# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The conversation with the mail server of the role, or with the server's own sendmail."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serversync.layout import Layout
from serversync.outbox import Away, Later, Mail, Refused

if TYPE_CHECKING:
    import smtplib

# Seconds for each step of the conversation, and for the program in its place.
PATIENCE, PROGRAM_PATIENCE = 30, 300
# Exit codes by which such a program says that it will never take the mail (sysexits.h: usage, data, user, host).
NEVER = (64, 65, 67, 68)
# What a mail server says to a mail that is larger than it takes (RFC 1870).
TOO_LARGE = 552
PASSWORD = "smtp.password"  # noqa: S105 - what its file is called
REMEDY = "check the variables runner_smtp_* of the role"


class Post:
    """Where mails are handed in.

    settings: ``smtp`` of runner.json: host, port, sender, security (none, starttls, tls), and, each or None, user,
    ca_file and sendmail, the program that takes mails instead. password: the file that holds the user's.
    """

    def __init__(self, settings: Mapping[str, Any], password: Path) -> None:
        self.settings = settings
        self.password = password

    @classmethod
    def of(cls, layout: Layout, handed: str | None = None) -> Post:
        """As the role has it; raises Away where that cannot be read.

        handed: the directory of what systemd has handed to the service that sends, which sees nothing else of it.
        """
        settings = Path(handed, "settings") if handed else layout.settings
        try:
            smtp: dict[str, Any] = json.loads(settings.read_text(encoding="utf-8"))["smtp"]
            return cls({**smtp, "host": smtp["host"], "port": smtp["port"]}, Path(handed or layout.config, PASSWORD))
        except (OSError, ValueError, LookupError, TypeError) as error:
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else f"{settings}: {error}"
            raise Away(f"{reason}; apply the role serversync.core.runner again") from error

    @property
    def place(self) -> str:
        program = self.settings.get("sendmail")
        return str(program or f"mail server {self.settings['host']}:{self.settings['port']}")

    def deliver(self, mail: Mail) -> dict[str, str]:
        """As ``outbox.Deliver``."""
        try:
            message = self.message(mail)
        except Exception as error:  # whatever it is, it is none, and the others are to be sent
            raise Refused(f"it is no mail that can be sent: {error}") from error
        if self.settings.get("sendmail"):
            self.to_program(message, mail["to"])
            return {}
        return self.to_server(message, mail["to"])

    def message(self, mail: Mail) -> EmailMessage:
        message = EmailMessage()
        message["Subject"] = mail["subject"]
        message["From"] = self.settings["sender"]
        message["To"] = ", ".join(mail["to"])
        message["Date"] = formatdate(localtime=True)
        # The same for every try, so that one which came all the same is known by it.
        domain = self.settings["sender"].rpartition("@")[2]
        message["Message-ID"] = f"<{mail['run']}.{mail['event']}@{domain}>"
        # Loops of auto-responders end at these.
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(mail["text"])
        message.add_alternative(mail["html"], subtype="html")
        return message

    def to_program(self, message: EmailMessage, to: list[str]) -> None:
        argv = [self.settings["sendmail"], "-i", "-f", self.settings["sender"], "--", *to]
        try:
            done = subprocess.run(
                argv, input=bytes(message), capture_output=True, check=False, timeout=PROGRAM_PATIENCE
            )
        except OSError as error:
            raise Away(f"{self.place}: {error.strerror}; check runner_sendmail of the role") from error
        except subprocess.TimeoutExpired as error:
            raise Later(f"{self.place} did not end within {PROGRAM_PATIENCE} s; see its own log") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().split("\n")[-1]
            text = f"{self.place} ended with {done.returncode}: {said}; see its own log"
            raise Refused(text) if done.returncode in NEVER else Later(text)

    def to_server(self, message: EmailMessage, to: list[str]) -> dict[str, str]:
        import smtplib

        with self.connected() as server:
            self.log_in(server)
            try:
                return said(server.send_message(message, self.settings["sender"], to))
            except smtplib.SMTPRecipientsRefused as error:
                return said(error.recipients)
            except smtplib.SMTPSenderRefused as error:
                text = f"{self.place}: {error.smtp_code} {as_text(error.smtp_error)}; {REMEDY}"
                if error.smtp_code == TOO_LARGE:
                    raise Refused(text) from error
                raise Away(text) from error
            except smtplib.SMTPDataError as error:
                text = f"{self.place}: {error.smtp_code} {as_text(error.smtp_error)}"
                raise (Refused(text) if 500 <= error.smtp_code < 600 else Later(text)) from error
            except (OSError, smtplib.SMTPException) as error:
                # In the midst of this one; whether it has to do with it, the next one will tell.
                raise Later(f"{self.place}: {reason_of(error)}") from error

    def tried(self) -> None:
        """Raises Away where the mail server does not answer, or not encrypted as it is to; nobody is logged in."""
        program = self.settings.get("sendmail")
        if not program:
            with self.connected() as server:
                server.noop()
        elif not os.access(program, os.X_OK):
            raise Away(f"{program} is no program; check runner_sendmail of the role")

    @contextmanager
    def connected(self) -> Iterator[smtplib.SMTP]:
        """A conversation, encrypted as the settings ask. Raises Away where there is none."""
        # Most runs have nothing to tell.
        import smtplib
        import ssl

        host, port, security = self.settings["host"], self.settings["port"], self.settings.get("security", "none")
        try:
            context = ssl.create_default_context(cafile=self.settings.get("ca_file")) if security != "none" else None
            server: smtplib.SMTP
            if security == "tls":
                server = smtplib.SMTP_SSL(host, port, timeout=PATIENCE, context=context)
            else:
                server = smtplib.SMTP(host, port, timeout=PATIENCE)
            try:
                if security == "starttls":
                    server.starttls(context=context)
            except BaseException:
                server.close()
                raise
        except (OSError, smtplib.SMTPException, ValueError) as error:
            raise Away(f"{self.place}: {reason_of(error)}; {REMEDY}") from error
        try:
            yield server
        finally:
            # What it has taken it has taken, whatever it says to the end.
            with suppress(OSError, smtplib.SMTPException):
                server.quit()
            server.close()

    def log_in(self, server: smtplib.SMTP) -> None:
        import smtplib

        user = self.settings.get("user")
        if not user:
            return
        try:
            password = self.password.read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            # Not what it says of it, which is a part of it.
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
            raise Away(f"{self.password}: {reason}; apply the role again, with runner_smtp_password") from None
        try:
            server.login(user, password)
        except (OSError, smtplib.SMTPException, ValueError) as error:
            slow = isinstance(error, smtplib.SMTPAuthenticationError)
            raise Away(f"{self.place}: {reason_of(error)}; {REMEDY}", slow=slow) from error


def said(refused: Mapping[str, tuple[int, bytes]]) -> dict[str, str]:
    return {recipient: f"{code} {as_text(text)}" for recipient, (code, text) in refused.items()}


def as_text(said: bytes | str) -> str:
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)


def reason_of(error: Exception) -> str:
    code = getattr(error, "smtp_code", None)
    if code is not None:
        return f"{code} {as_text(getattr(error, 'smtp_error', ''))}"
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
