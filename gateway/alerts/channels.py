"""How does a message leave the house: by webhook, or by mail?

A webhook gets the message as JSON, signed: `X-Tollgate-Signature: v1=` and the hex HMAC-SHA-256 of
`<X-Tollgate-Timestamp>.<body>` under the key that `tollgate alerts key` shows. `X-Tollgate-Alert` is the id,
the same at every try. Any 2xx means taken; redirects are not followed. Mail has the id as its Message-ID.

Addresses are the operator's settings, nobody else's: they may be inside the company. Neither they nor
passwords are logged or stored; a channel is known by its host and a hash.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Protocol
from urllib.parse import urlsplit

import httpx
import msgspec

from gateway.alerts.tables import AlertMessage
from gateway.clock import Clock, instant_text
from gateway.errors import ConfigurationError
from gateway.settings import AlertSettings

PURPOSE = "alerts/webhook"
"""What the signing key is derived for; see `identity.root_key.derive`."""


class NotTaken(Exception):
    """The other side did not take it; says why, and nothing secret."""


class Channel(Protocol):
    """A way to tell."""

    @property
    def name(self) -> str:
        """What deliveries by it are noted under."""
        ...

    async def send(self, message: AlertMessage) -> None:
        """Deliver it.

        Raises:
            NotTaken: it was not taken, or nobody knows.
        """
        ...


def channels_of(settings: AlertSettings, *, key: bytes, clock: Clock) -> tuple[Channel, ...]:
    """Every way that is set up.

    Raises:
        ConfigurationError: the file of certificates cannot be used.
    """
    urls = dict.fromkeys(url.get_secret_value() for url in settings.webhook_urls)
    if not urls and settings.smtp_host is None and settings.ca_file is None:
        return ()  # reading the machine's certificates takes longer than the rest of a start
    trust = _trust(settings)
    found: list[Channel] = [
        Webhook(url, key=key, trust=trust, timeout_s=settings.timeout_s, clock=clock) for url in urls
    ]
    if settings.smtp_host is not None:
        found.append(Mail(settings, settings.smtp_host, trust=trust))
    return tuple(found)


def _trust(settings: AlertSettings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"TOLLGATE_ALERTS__CA_FILE: {error}") from None


def body_of(message: AlertMessage) -> bytes:
    """A message for programs."""
    return msgspec.json.encode(
        {
            "id": message.id,
            "kind": message.kind,
            "at": instant_text(message.at_ms),
            "subject": message.subject,
            "details": message.details,
        }
    )


def signature(key: bytes, timestamp: str, body: bytes) -> str:
    """What a receiver compares the header with."""
    return "v1=" + hmac.digest(key, timestamp.encode() + b"." + body, hashlib.sha256).hex()


@dataclass(frozen=True, slots=True)
class Webhook:
    """An HTTP address that takes messages."""

    url: str
    key: bytes
    trust: ssl.SSLContext
    timeout_s: float
    clock: Clock

    @property
    def name(self) -> str:
        """Says where, and nothing secret: paths of webhooks often are."""
        return f"webhook:{urlsplit(self.url).hostname}#{hashlib.sha256(self.url.encode()).hexdigest()[:8]}"

    async def send(self, message: AlertMessage) -> None:
        """See `Channel`."""
        body = body_of(message)
        timestamp = str(self.clock.epoch_ms() // 1000)
        headers = {
            "content-type": "application/json",
            "user-agent": "tollgate",
            "x-tollgate-alert": message.id,
            "x-tollgate-timestamp": timestamp,
            "x-tollgate-signature": signature(self.key, timestamp, body),
        }
        try:
            answer = await asyncio.to_thread(self._post, body, headers)
        except httpx.HTTPError as error:
            raise NotTaken(f"{type(error).__name__} while asking its host") from None
        if not answer.is_success:
            raise NotTaken(f"its host answered {answer.status_code}")

    def _post(self, body: bytes, headers: dict[str, str]) -> httpx.Response:
        # The proxy of the environment would be told the address.
        with httpx.Client(verify=self.trust, timeout=self.timeout_s, trust_env=False) as client:
            return client.post(self.url, content=body, headers=headers)


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail server that takes messages."""

    settings: AlertSettings
    host: str
    trust: ssl.SSLContext

    @property
    def name(self) -> str:
        """There is one."""
        return "email"

    async def send(self, message: AlertMessage) -> None:
        """See `Channel`."""
        try:
            await asyncio.to_thread(
                self._send, mail_of(message, self.settings.mail_from or "", self.settings.mail_to)
            )
        except smtplib.SMTPResponseException as error:
            raise NotTaken(f"the mail server answered {error.smtp_code}") from None
        except (smtplib.SMTPException, OSError) as error:
            raise NotTaken(f"{type(error).__name__} while talking to the mail server") from None

    def _send(self, mail: EmailMessage) -> None:
        settings = self.settings
        with self._connected() as server:
            if settings.smtp_security == "starttls":
                server.starttls(context=self.trust)
            if settings.smtp_user is not None and settings.smtp_password is not None:
                server.login(settings.smtp_user, settings.smtp_password.get_secret_value())
            server.send_message(mail)

    def _connected(self) -> smtplib.SMTP:
        port, timeout_s = self.settings.smtp_port, self.settings.timeout_s
        if self.settings.smtp_security == "tls":
            return smtplib.SMTP_SSL(self.host, port, timeout=timeout_s, context=self.trust)
        return smtplib.SMTP(self.host, port, timeout=timeout_s)


def mail_of(message: AlertMessage, sender: str, to: Sequence[str]) -> EmailMessage:
    """A message for people."""
    mail = EmailMessage()
    mail["Subject"] = f"[Tollgate] {' '.join(message.subject.split())}"
    mail["From"] = sender
    mail["To"] = ", ".join(to)
    mail["Message-ID"] = f"<{message.id}@{sender.rpartition('@')[2] or 'tollgate'}>"
    mail["Auto-Submitted"] = "auto-generated"
    lines = [message.subject, "", *(f"{name}: {value}" for name, value in message.details.items())]
    mail.set_content(
        "\n".join([*lines, "", f"{message.kind} {message.id}, {instant_text(message.at_ms)}", ""])
    )
    return mail
