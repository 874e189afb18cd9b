"""Who is this, by the company's own login?

OpenID Connect 1.0 with the authorization code flow and PKCE (RFC 7636). What the provider offers is read from
its discovery document; the ID token counts only with a signature by one of its keys, our audience, its
issuer, the nonce that we sent, and a time that is now (OpenID Connect Core 1.0, section 3.1.3.7). What has to
be remembered between leaving for the provider and coming back is in a cookie, signed by us.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, KeySet

from gateway.clock import Clock
from gateway.errors import AuthenticationFailed, ConfigurationError, Overloaded, PermissionDenied
from gateway.identity.roles import Role
from gateway.identity.root_key import derive
from gateway.settings import OidcSettings

PURPOSE = "console/oidc"
JOURNEY_S = 600
"""So long may somebody take at the provider."""
TIMEOUT_S = 10.0
KEPT_S = 3600.0
"""The provider's document and keys; an unknown key asks again at once."""
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
"""None of those that a client secret could sign with."""
_LEEWAY_S = 60

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Departure:
    """Where to send the browser, and what it must bring back."""

    url: str
    cookie: str


@dataclass(frozen=True, slots=True)
class Stranger:
    """Whom the provider vouches for."""

    subject: str
    """`issuer|sub`."""
    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class _Provider:
    authorize: str
    token: str
    keys: KeySet
    read_at_s: float


class SignOn:
    """Sends people to the provider and reads what they bring back."""

    def __init__(
        self, settings: OidcSettings, client_secret: str | None, *, root_key: bytes, clock: Clock
    ) -> None:
        self._settings = settings
        self._client_secret = client_secret
        self._signing_key = derive(root_key, PURPOSE)
        self._clock = clock
        self._provider: _Provider | None = None

    @property
    def is_on(self) -> bool:
        """There is a provider."""
        return self._settings.issuer is not None

    async def leave(self, redirect_uri: str) -> Departure:
        """Begin a journey to the provider.

        Raises:
            Overloaded: the provider does not answer.
        """
        provider = await self._known_provider()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": self._settings.scopes,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        separator = "&" if "?" in provider.authorize else "?"
        ends_s = self._now_s() + JOURNEY_S
        return Departure(
            url=f"{provider.authorize}{separator}{urlencode(query)}",
            cookie=self._signed({"state": state, "nonce": nonce, "verifier": verifier, "ends": ends_s}),
        )

    async def arrive(self, cookie: str, *, state: str, code: str, redirect_uri: str) -> Stranger:
        """Read what somebody brings back from the provider.

        Raises:
            AuthenticationFailed: not begun here, over, or not what the provider signed for us.
            PermissionDenied: the provider's groups give no role here.
            Overloaded: the provider does not answer.
        """
        journey = self._journey(cookie)
        if (
            journey is None
            or not hmac.compare_digest(str(journey["state"]).encode(), state.encode())
            or not code
        ):
            raise AuthenticationFailed(
                "This login was not begun in this browser, or took too long. Begin again."
            )
        provider = await self._known_provider()
        token = await self._exchange(
            provider, code, redirect_uri=redirect_uri, verifier=str(journey["verifier"])
        )
        claims = await self._claims(token, nonce=str(journey["nonce"]))
        return self._stranger(claims)

    def _stranger(self, claims: dict[str, Any]) -> Stranger:
        groups = claims.get(self._settings.role_claim) or []
        groups = [groups] if isinstance(groups, str) else groups
        role = next((role for group, role in self._settings.roles.items() if group in groups), None)
        name = str(claims.get(self._settings.name_claim) or claims["sub"])[:128]
        if role is None:
            raise PermissionDenied(
                f"{name} is in no group that may use this console. Ask whoever keeps the groups for one of:"
                f" {', '.join(self._settings.roles)}."
            )
        return Stranger(subject=f"{self._settings.issuer}|{claims['sub']}"[:512], name=name, role=Role(role))

    async def _exchange(self, provider: _Provider, code: str, *, redirect_uri: str, verifier: str) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": self._settings.client_id,
            "code_verifier": verifier,
        }
        if self._client_secret is not None:
            form["client_secret"] = self._client_secret
        answer = await _ask("POST", provider.token, form=form)
        token = answer.get("id_token")
        if not isinstance(token, str):
            _log.warning("the login provider gave no ID token: %s", answer.get("error", "no error named"))
            raise AuthenticationFailed("The login provider did not accept this login. Begin again.")
        return token

    async def _claims(self, token: str, *, nonce: str) -> dict[str, Any]:
        rules = jwt.JWTClaimsRegistry(
            now=self._now_s(),
            leeway=_LEEWAY_S,
            iss={"essential": True, "value": str(self._settings.issuer)},
            aud={"essential": True, "value": self._settings.client_id},
            exp={"essential": True},
            sub={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        for fresh in (False, True):
            provider = await self._known_provider(fresh=fresh)
            try:
                claims = dict(jwt.decode(token, provider.keys, algorithms=_ALGORITHMS).claims)
                rules.validate(claims)
            except (JoseError, ValueError) as error:
                # A key that came since is known only after another look.
                if fresh:
                    _log.warning("an ID token was refused: %s", error)
                continue
            authorized = claims.get("azp", self._settings.client_id)
            if authorized == self._settings.client_id:
                return claims
        raise AuthenticationFailed("What the login provider sent could not be trusted. Begin again.")

    async def _known_provider(self, *, fresh: bool = False) -> _Provider:
        known = self._provider
        now_s = self._clock.monotonic_s()
        if known is not None and not fresh and now_s < known.read_at_s + KEPT_S:
            return known
        issuer = self._settings.issuer
        if issuer is None:
            raise ConfigurationError("no OpenID Connect provider is set up: oidc.issuer")
        found = await _ask("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            raise Overloaded(
                "The login provider is set up wrongly.",
                operator_detail=f"oidc.issuer is {issuer!r}, the provider says {found.get('issuer')!r}",
            )
        try:
            keys = await _ask("GET", str(found["jwks_uri"]))
            self._provider = _Provider(
                authorize=str(found["authorization_endpoint"]),
                token=str(found["token_endpoint"]),
                keys=KeySet([key for one in keys["keys"] if (key := _key_of(one)) is not None]),
                read_at_s=now_s,
            )
        except KeyError as missing:
            raise Overloaded(
                "The company's login answers nonsense.", operator_detail=f"{issuer} does not say {missing}"
            ) from None
        return self._provider

    def _signed(self, journey: dict[str, Any]) -> str:
        text = base64.urlsafe_b64encode(json.dumps(journey).encode()).decode()
        return f"{text}.{self._signature(text)}"

    def _journey(self, cookie: str) -> dict[str, Any] | None:
        text, _, signature = cookie.partition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(text).encode()):
            return None
        journey: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text))
        return journey if self._now_s() < journey["ends"] else None

    def _signature(self, text: str) -> str:
        return hmac.digest(self._signing_key, text.encode(), hashlib.sha256).hex()

    def _now_s(self) -> int:
        return self._clock.epoch_ms() // 1000


def _key_of(found: Any) -> Any:
    """A key of the provider; None: of a kind that is not known here."""
    try:
        return JWKRegistry.import_key(found)
    except (JoseError, KeyError, ValueError, TypeError) as error:
        _log.warning("a key of the login provider is left out: %s", error)
        return None


async def _ask(method: str, url: str, *, form: dict[str, str] | None = None) -> dict[str, Any]:
    """What the provider answers, as JSON, errors of the protocol included.

    Raises:
        Overloaded: no answer, or none that is JSON.
    """
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:  # noqa: TID251 - the control plane
            answer = await client.request(method, url, data=form)
            found = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Overloaded(
            "The company's login does not answer. Try again, or use an administrator key.",
            operator_detail=f"{method} {url}: {error!r}",
            retry_after_s=10,
        ) from None
    if not isinstance(found, dict):
        raise Overloaded(
            "The company's login answers nonsense.", operator_detail=f"{method} {url}: no object"
        )
    return found
