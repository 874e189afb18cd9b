"""Who takes alerts in tests: an HTTP server and a mail server with STARTTLS, both real, which may refuse."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.servers import free_port

LOCAL = "127.0.0.1"


@dataclass
class Hook:
    """An HTTP server's books."""

    url: str
    statuses: list[int] = field(default_factory=list)
    """What it answers, the next first; 200 when there are none left."""
    taken: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    """Headers, in lower case, and body of every request."""


@contextlib.contextmanager
def hook_server(port: int = 0) -> Iterator[Hook]:
    """A server that takes everything, or answers what it is told to."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            hook.taken.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(hook.statuses.pop(0) if hook.statuses else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((LOCAL, port), Handler)
    hook = Hook(f"http://{LOCAL}:{server.server_port}/hooks/secret-path")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Postbox:
    """A mail server's books."""

    port: int
    user: str = "tollgate"
    password: str = "correct horse"
    refusals: list[str] = field(default_factory=list)
    """What it answers to a mail, the next first."""
    mails: list[Message] = field(default_factory=list)
    to: list[str] = field(default_factory=list)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """A mail is there: aiosmtpd calls it."""
        del server
        if self.refusals:
            return self.refusals.pop(0)
        assert session.ssl is not None, "in the clear"
        self.mails.append(message_from_bytes(envelope.original_content or b""))
        self.to += envelope.rcpt_tos
        return "250 OK"

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object
    ) -> AuthResult:
        """Whether a login is right: aiosmtpd calls it."""
        del server, session, envelope, mechanism
        assert isinstance(data, LoginPassword)
        right = (data.login, data.password) == (self.user.encode(), self.password.encode())
        return AuthResult(success=right, handled=right)


@contextlib.contextmanager
def mail_server(folder: Path) -> Iterator[tuple[Postbox, Path]]:
    """A mail server that insists on STARTTLS and a login; with the certificate to trust."""
    certificate, key = certificate_for_this_machine(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    box = Postbox(free_port())
    controller = Controller(
        box,
        hostname=LOCAL,
        port=box.port,
        tls_context=context,
        require_starttls=True,
        authenticator=box.authenticate,
        auth_required=True,
    )
    controller.start()
    try:
        yield box, certificate
    finally:
        controller.stop()


def certificate_for_this_machine(folder: Path) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=20_000))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOCAL))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "mail.pem", folder / "mail.key"
    certificate_path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return certificate_path, key_path
