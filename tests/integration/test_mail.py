# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mails to a real mail server: in clear, by STARTTLS and by TLS, with a log-in and without, and what it refuses."""

from __future__ import annotations

import email
import email.policy
import ipaddress
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from serversync.mail import Post
from serversync.outbox import Away, Later, Refused

from tests.loopback import free_port

# What aiosmtpd says of itself, and leaves to the collector when it is stopped.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Requiring AUTH"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
USER, PASSWORD = "runner", "s3cret-planted"
MAIL = {"job": "nightly", "run": "20260301T023000Z-abcd", "event": "failure", "to": ["ops@example.com"]}
MAIL |= {"subject": "it \u2014 failed", "text": "text\n", "html": "<p>h\u00e4</p>\n"}


class MailServer:
    """What came to it, whom it does not know, and how it answers."""

    def __init__(self, certificate: Path) -> None:
        self.certificate = certificate
        self.mails: list[EmailMessage] = []
        self.logged_in: list[str] = []
        self.unknown: dict[str, str] = {}
        self.answer = "250 OK"
        self.controllers: list[Controller] = []

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any) -> str:
        if address in self.unknown:
            return self.unknown[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, _session: Any, envelope: Any) -> str:
        if self.answer == "gone":
            server.transport.abort()
        if self.answer.startswith("250"):
            message = email.message_from_bytes(envelope.content, policy=email.policy.default)
            assert isinstance(message, EmailMessage)
            self.mails.append(message)
        return self.answer

    def log_in(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, given: Any) -> AuthResult:
        assert isinstance(given, LoginPassword)
        self.logged_in.append(given.login.decode())
        known = (given.login, given.password) == (USER.encode(), PASSWORD.encode())
        return AuthResult(success=known, handled=known)

    def serve(self, security: str, *, auth: bool = False) -> dict[str, Any]:
        """The settings for a server of that kind, which is there from now on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        more: dict[str, Any] = {"tls_context": context, "require_starttls": True} if security == "starttls" else {}
        if auth:
            more |= {"authenticator": self.log_in, "auth_required": True, "auth_require_tls": security == "starttls"}
        port = free_port()
        controller = Controller(
            self, hostname="127.0.0.1", port=port, ssl_context=context if security == "tls" else None, **more
        )
        controller.start()
        self.controllers.append(controller)
        settings = {"host": "127.0.0.1", "port": port, "sender": "serversync@site-a.example.com", "security": security}
        return settings | {"ca_file": str(self.certificate), "user": USER if auth else None}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MailServer]:
    one = MailServer(certificate(tmp_path / "certificate.pem"))
    yield one
    for controller in one.controllers:
        controller.stop()


def certificate(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail")])
    begin = datetime.now(UTC) - timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(*form) + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "smtp.password"
    path.write_text(PASSWORD)
    return path


@pytest.mark.parametrize("auth", [False, True])
@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
def test_it_arrives(server: MailServer, password: Path, security: str, auth: bool) -> None:
    post = Post(server.serve(security, auth=auth), password)
    post.tried()
    assert post.deliver(MAIL) == {}
    (mail,) = server.mails
    assert (mail["Subject"], mail["To"], mail["From"]) == (
        "it \u2014 failed",
        "ops@example.com",
        "serversync@site-a.example.com",
    )
    assert mail["Message-ID"] == "<20260301T023000Z-abcd.failure@site-a.example.com>"
    assert mail["Auto-Submitted"] == "auto-generated"
    plain, rich = mail.get_body(("plain",)), mail.get_body(("html",))
    assert plain is not None
    assert rich is not None
    assert (plain.get_content().strip(), rich.get_content().strip()) == ("text", "<p>h\u00e4</p>")
    assert server.logged_in == ([USER] if auth else [])


def wrong(change: Callable[[dict[str, Any]], dict[str, Any]], text: str, security: str = "tls") -> Any:
    return pytest.param(change, text, security, id=text)


@pytest.mark.parametrize(
    ("change", "text", "security"),
    [
        wrong(lambda _s: {"port": free_port()}, "Connection refused"),
        wrong(lambda _s: {"ca_file": None}, "certificate verify failed"),
        wrong(lambda _s: {"host": "localhost"}, "certificate is not valid for 'localhost'"),
        wrong(lambda _s: {"ca_file": "/nonexistent/ca.pem"}, "No such file or directory"),
        wrong(lambda _s: {"security": "starttls"}, "STARTTLS extension not supported by server", "none"),
        wrong(lambda _s: {"security": "none"}, "530", "starttls"),
        wrong(lambda _s: {"user": "nobody"}, "535", "starttls"),
    ],
)
def test_what_concerns_all_mails_lets_them_wait(
    server: MailServer, password: Path, change: Callable[[dict[str, Any]], dict[str, Any]], text: str, security: str
) -> None:
    settings = server.serve(security, auth=text == "535")
    with pytest.raises(Away) as away:
        Post({**settings, **change(settings)}, password).deliver(MAIL)
    assert text in str(away.value)
    assert "runner_smtp_" in str(away.value)
    assert PASSWORD not in str(away.value)
    assert not server.mails


def test_a_password_that_is_not_there_is_told(server: MailServer, tmp_path: Path) -> None:
    settings = server.serve("starttls", auth=True)
    with pytest.raises(Away, match=r"none: No such file or directory; apply the role again, with runner_smtp_password"):
        Post(settings, tmp_path / "none").deliver(MAIL)


def test_who_is_unknown_gets_none_and_the_others_do(server: MailServer, password: Path) -> None:
    post = Post(server.serve("none"), password)
    server.unknown = {"gone@example.com": "550 no such user", "grey@example.com": "450 come back later"}
    mail = {**MAIL, "to": ["gone@example.com", "ops@example.com", "grey@example.com"]}
    assert post.deliver(mail) == {"gone@example.com": "550 no such user", "grey@example.com": "450 come back later"}
    assert len(server.mails) == 1
    for one in server.unknown:
        assert post.deliver({**MAIL, "to": [one]}) == {one: server.unknown[one]}


@pytest.mark.parametrize(("answer", "raised"), [("554 looks like spam", Refused), ("452 no space left", Later)])
def test_a_mail_is_refused_for_good_or_for_now(
    server: MailServer, password: Path, answer: str, raised: type[Exception]
) -> None:
    post = Post(server.serve("none"), password)
    server.answer = answer
    with pytest.raises(raised, match=answer):
        post.deliver(MAIL)


class Rude(MailServer):
    """It is gone, or says what it should not, once a mail is there."""

    def __init__(self, certificate: Path, last: str) -> None:
        super().__init__(certificate)
        self.last = last

    async def handle_QUIT(self, server: Any, _session: Any, _envelope: Any) -> str:
        if self.last == "gone":
            server.transport.abort()
        return self.last


@pytest.mark.parametrize("last", ["gone", "421 too busy to say goodbye", "250 OK"])
def test_what_was_taken_is_not_sent_again(tmp_path: Path, password: Path, last: str) -> None:
    server = Rude(certificate(tmp_path / "certificate.pem"), last)
    try:
        assert Post(server.serve("none"), password).deliver(MAIL) == {}
    finally:
        server.controllers[0].stop()
    assert len(server.mails) == 1


def test_a_mail_server_that_is_gone_in_the_midst_concerns_this_mail(server: MailServer, password: Path) -> None:
    post = Post(server.serve("none"), password)
    server.answer = "gone"
    with pytest.raises(Later, match="SMTPServerDisconnected"):
        post.deliver(MAIL)


def test_a_password_that_smtp_cannot_say_is_not_told_either(server: MailServer, password: Path) -> None:
    password.write_text("pl\u00e4nted")
    with pytest.raises(Away, match="it is not ASCII; apply the role again") as away:
        Post(server.serve("starttls", auth=True), password).deliver(MAIL)
    assert "\u00e4" not in str(away.value)
    assert "position" not in str(away.value)


@pytest.mark.parametrize(
    "damage",
    [
        {"subject": "a\nBcc: everybody@example.com"},
        {"to": ["a@example.com\r\nBcc: b@example.com"]},
        {"text": None},
        {"html": 7},
        {"run": "x>\nBcc: everybody@example.com"},
    ],
)
def test_nothing_in_a_mail_becomes_a_header(server: MailServer, password: Path, damage: dict[str, Any]) -> None:
    post = Post(server.serve("none"), password)
    with pytest.raises(Refused, match="it is no mail that can be sent"):
        post.deliver({**MAIL, **damage})
    assert not server.mails


def test_the_servers_own_sendmail_takes_it(tmp_path: Path, password: Path) -> None:
    program = tmp_path / "sendmail"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/mail\nexit $(cat {tmp_path}/code)\n'
    )
    (tmp_path / "code").write_text("0")
    post = Post({"host": "x", "port": 0, "sender": "s@example.com", "sendmail": str(program)}, password)
    with pytest.raises(Away, match="is no program; check runner_sendmail of the role"):
        post.tried()
    program.chmod(0o755)
    post.tried()
    assert post.deliver({**MAIL, "to": ["ops@example.com", "plant@example.com"]}) == {}
    assert (tmp_path / "arguments").read_text() == "-i -f s@example.com -- ops@example.com plant@example.com\n"
    mail = email.message_from_bytes((tmp_path / "mail").read_bytes(), policy=email.policy.default)
    assert mail["Subject"] == "it \u2014 failed"
    for code, raised in (("75", Later), ("67", Refused)):
        (tmp_path / "code").write_text(code)
        with pytest.raises(raised, match=rf"sendmail ended with {code}"):
            post.deliver(MAIL)
