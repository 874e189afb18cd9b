"""An OpenID Connect provider for tests: a small program that says yes to whoever is set.

It does what section 3.1 of OpenID Connect Core asks of a provider (code flow, PKCE, RS256), and what a bad
one does: another nonce, issuer, audience or key.
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey


class OidcProvider:
    """Whom it vouches for, and how it lies."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.key = RSAKey.generate_key(2048, {"kid": "one"})
        self.signing_key = self.key
        self.person: dict[str, Any] = {"sub": "u-1", "email": "ada@acme.example", "groups": ["finance-team"]}
        self.lies: dict[str, Any] = {}
        """Claims that are put over the right ones."""
        self.codes: dict[str, dict[str, str]] = {}

    def answer(self, path: str, form: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/.well-known/openid-configuration":
            found = {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
            }
            return 200, {}, json.dumps(found).encode()
        if parts.path == "/keys":
            return 200, {}, json.dumps({"keys": [self.key.as_dict(private=False)]}).encode()
        if parts.path == "/authorize":
            code = secrets.token_urlsafe(16)
            self.codes[code] = query
            back = urlencode({"state": query["state"], "code": code})
            return 303, {"location": f"{query['redirect_uri']}?{back}"}, b""
        if parts.path == "/token":
            return self._token(form)
        return 404, {}, b"{}"

    def _token(self, form: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        asked = self.codes.pop(form["code"], None)
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if (
            asked is None
            or challenge != asked["code_challenge"]
            or form["redirect_uri"] != asked["redirect_uri"]
            or form.get("client_secret") != "the secret"
        ):
            return 400, {}, b'{"error": "invalid_grant"}'
        now = int(time.time())  # noqa: TID251 - a program of its own
        claims = {
            "iss": self.url,
            "aud": asked["client_id"],
            "nonce": asked["nonce"],
            "iat": now,
            "exp": now + 300,
            **self.person,
            **self.lies,
        }
        token = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self.signing_key)
        return 200, {}, json.dumps({"id_token": token, "token_type": "Bearer", "access_token": "x"}).encode()


@contextmanager
def running_provider() -> Iterator[OidcProvider]:
    """A provider on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def _reply(self, form: dict[str, str]) -> None:
            status, headers, body = provider.answer(self.path, form)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["content-length"])).decode()
            self._reply({name: values[0] for name, values in parse_qs(text).items()})

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider = OidcProvider(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
