"""Whose key is this?

All keys are in memory, refreshed within half a second of a change (2.4), so that a request waits for
nothing. While the database is away known keys stay valid for `auth_stale_max_s`, and no longer.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.clock import Clock
from gateway.errors import AuthenticationFailed, Overloaded
from gateway.identity.root_key import derive
from gateway.identity.store import KEY_PREFIX, KeyRecord

KEY_CHARS_MAX = 512


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call."""

    key_id: str
    tenant_id: str
    tenant_name: str
    project_id: str
    project_name: str
    cache_salt: str
    """Keeps the tenant's prefixes apart from others' in an engine's cache (vLLM `cache_salt`, hex)."""
    end_user_secret: bytes
    """Under which end users are hashed before they are stored."""
    is_internal_only: bool = True
    """Nothing of it may be sent to external targets: the tenant's owner has not opted in."""
    caches_answers: bool = True
    """Its answers may be kept in the cache."""
    cache_secret: bytes = b""
    """Under which its answers are found in the cache."""

    def end_user_hash(self, end_user: str | None) -> str | None:
        """What is stored of an end user: an HMAC that only this tenant's secret can make."""
        if end_user is None:
            return None
        return hmac.digest(self.end_user_secret, end_user.encode(), hashlib.sha256).hex()[:32]


class KeyRing:
    """All keys, by hash."""

    def __init__(self, root_key: bytes, clock: Clock, *, stale_max_s: float) -> None:
        self._root_key = root_key
        self._clock = clock
        self._stale_max_s = stale_max_s
        self._callers: dict[bytes, Caller] = {}
        self._revoked: dict[bytes, KeyRecord] = {}
        self._confirmed_at_s: float | None = None

    def replace(self, records: Iterable[KeyRecord]) -> None:
        """Take over what the database says now."""
        callers: dict[bytes, Caller] = {}
        revoked: dict[bytes, KeyRecord] = {}
        for record in records:
            digest = bytes.fromhex(record.secret_hash)
            if record.revoked_at_ms is None:
                callers[digest] = self._caller(record)
            else:
                revoked[digest] = record
        self._callers, self._revoked = callers, revoked
        self.confirm()

    def confirm(self) -> None:
        """The database was asked just now and nothing changed."""
        self._confirmed_at_s = self._clock.monotonic_s()

    @property
    def age_s(self) -> float | None:
        """Seconds since the keys were last known to be right; None before the first time."""
        return None if self._confirmed_at_s is None else self._clock.monotonic_s() - self._confirmed_at_s

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """The caller behind `Authorization: Bearer …` or `x-api-key`.

        Args:
            headers: lower-case names.

        Raises:
            AuthenticationFailed: no key, not one of ours, unknown, or revoked.
            Overloaded: the keys in memory are too old to be trusted.
        """
        digest = hashlib.sha256(_presented_key(headers).encode("latin-1")).digest()
        caller = self._callers.get(digest)
        if digest in self._revoked:  # stays so, however old that news is
            raise self._refusal(digest)
        age_s = self.age_s
        if age_s is None or age_s > self._stale_max_s:
            raise Overloaded(
                "API keys cannot be checked at the moment. Try again shortly.",
                retry_after_s=5,
                operator_detail=f"keys were last confirmed {age_s} s ago",
            )
        if caller is None:
            raise self._refusal(digest)
        return caller

    def _refusal(self, digest: bytes) -> AuthenticationFailed:
        record = self._revoked.get(digest)
        if record is None or record.revoked_at_ms is None:
            return AuthenticationFailed(
                "This API key is not known. Check that it was copied whole, or ask an administrator for one."
            )
        day = datetime.fromtimestamp(record.revoked_at_ms / 1000, UTC)
        return AuthenticationFailed(
            f"The API key {KEY_PREFIX}-{record.id}-… was revoked on {day:%Y-%m-%d %H:%M} UTC."
            " Ask an administrator for a new one."
        )

    def _caller(self, record: KeyRecord) -> Caller:
        return Caller(
            key_id=record.id,
            tenant_id=record.tenant_id,
            tenant_name=record.tenant_name,
            project_id=record.project_id,
            project_name=record.project_name,
            cache_salt=derive(self._root_key, f"cache-salt:{record.tenant_id}").hex(),
            end_user_secret=derive(self._root_key, f"end-user:{record.tenant_id}"),
            is_internal_only=record.is_internal_only,
            caches_answers=record.caches_answers,
            cache_secret=derive(self._root_key, f"cache:{record.tenant_id}"),
        )


def _presented_key(headers: Mapping[str, str]) -> str:
    authorization = headers.get("authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise AuthenticationFailed(
                "The Authorization header must read 'Bearer <API key>', with a key that starts with 'tg-'."
            )
    else:
        key = headers.get("x-api-key", "")
        if not key:
            raise AuthenticationFailed("No API key: send it in the header 'Authorization: Bearer tg-…'.")
    if len(key) > KEY_CHARS_MAX:
        raise AuthenticationFailed("This API key is too long to be one of ours.")
    return key.strip()
