"""Whose key is this?

All keys are in memory, refreshed within half a second of a change (2.4), so that a request waits for
nothing. While the database is away known keys stay valid for `auth_stale_max_s`, and no longer.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from gateway.clock import Clock
from gateway.errors import AuthenticationFailed, GatewayError, Overloaded, PermissionDenied
from gateway.identity.credentials import ADMIN_PREFIX, KEY_PREFIX
from gateway.identity.key_store import KeyRecord, KeyState
from gateway.identity.limits import Limit, Limiter, Limits, Scope
from gateway.identity.root_key import derive
from gateway.identity.tags import Tags, fixed_tags
from gateway.inference import Call

KEY_CHARS_MAX = 512
CLASS_UNASKED = "default"
"""The latency class of a call that asks for none, where the key allows it."""


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
    allowed_models: frozenset[str] | None = None
    """Aliases that it may ask for; None: all."""
    allowed_classes: frozenset[str] | None = None
    """Latency classes that it may ask for; None: all."""
    class_unasked: str = CLASS_UNASKED
    """The latency class of a call that asks for none."""
    expires_at_ms: int | None = None
    fixed_tags: Tags = ()
    """Cost tags that the operator fixed on its project or key; no tag of a call's own overrides one."""
    key_lineage: tuple[str, ...] = ()
    """Its key's id and those of the keys that this one was rotated from, the newest first."""
    limits: Limits | None = None
    """How fast its tenant, its project and its key may call; None: as fast as they like."""

    def end_user_hash(self, end_user: str | None) -> str | None:
        """What is stored of an end user: an HMAC that only this tenant's secret can make."""
        if end_user is None:
            return None
        return hmac.digest(self.end_user_secret, end_user.encode(), hashlib.sha256).hex()[:32]


def admit(caller: Caller, call: Call) -> str:
    """Let a call through that its key allows; the latency class that it runs in.

    Raises:
        PermissionDenied: the key is not for this model, or not for this latency class.
    """
    models, classes, asked = caller.allowed_models, caller.allowed_classes, call.service_tier
    if models is not None and call.model_alias not in models:
        raise PermissionDenied(
            f"This API key may not use the model {call.model_alias[:128]!r}."
            f" It may use: {', '.join(sorted(models))}.",
            param="model",
        )
    if asked is None or asked == "auto":
        return caller.class_unasked
    if classes is not None and asked not in classes:
        raise PermissionDenied(
            f"This API key may not use the service tier {asked!r}. It may use: {', '.join(sorted(classes))}.",
            param="service_tier",
        )
    return asked


def latency_class(caller: Caller, call: Call) -> str:
    """The latency class that a call runs in which was admitted."""
    asked = call.service_tier
    return caller.class_unasked if asked is None or asked == "auto" else asked


class KeyRing:
    """All keys, by hash."""

    def __init__(self, root_key: bytes, clock: Clock, *, stale_max_s: float) -> None:
        self._root_key = root_key
        self._clock = clock
        self._stale_max_s = stale_max_s
        self.limiter = Limiter(clock)
        self._callers: dict[bytes, Caller] = {}
        self._refused: dict[bytes, KeyRecord] = {}
        """Revoked ones, and those of retired tenants and projects."""
        self._ending: dict[bytes, KeyRecord] = {}
        """Valid ones with an end."""
        self._confirmed_at_s: float | None = None

    def replace(self, records: Iterable[KeyRecord], limits: Iterable[Limit] = ()) -> None:
        """Take over what the database says now."""
        records = list(records)
        rotated_from = {record.id: record.rotated_from for record in records}
        by_owner = {(limit.scope, limit.scope_id): limit for limit in limits}
        self.limiter.has_limits = bool(by_owner)
        callers: dict[bytes, Caller] = {}
        refused: dict[bytes, KeyRecord] = {}
        ending: dict[bytes, KeyRecord] = {}
        for record in records:
            digest = bytes.fromhex(record.secret_hash)
            if record.state(0) in {KeyState.REVOKED, KeyState.RETIRED}:
                refused[digest] = record
                continue
            lineage = _lineage(record.id, rotated_from)
            callers[digest] = self._caller(record, lineage, _limits_of(record, lineage, by_owner))
            if record.expires_at_ms is not None:
                ending[digest] = record
        self._callers, self._refused, self._ending = callers, refused, ending
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
            AuthenticationFailed: no key, not one of ours, unknown, revoked, over, or of a retired tenant.
            Overloaded: the keys in memory are too old to be trusted.
        """
        key = _presented_key(headers)
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        caller = self._callers.get(digest)
        if caller is None:
            raise self._refusal(key, digest)
        self._require_fresh()
        # By the clock, not by news: a key ends at its instant even while the database is away.
        if caller.expires_at_ms is not None and caller.expires_at_ms <= self._clock.epoch_ms():
            raise _over(self._ending[digest])
        return caller

    def _require_fresh(self) -> None:
        confirmed_at_s = self._confirmed_at_s
        if confirmed_at_s is None or self._clock.monotonic_s() - confirmed_at_s > self._stale_max_s:
            raise Overloaded(
                "API keys cannot be checked at the moment. Try again shortly.",
                retry_after_s=5,
                operator_detail=f"keys were last confirmed {self.age_s} s ago",
            )

    def _refusal(self, key: str, digest: bytes) -> GatewayError:
        record = self._refused.get(digest)
        if record is not None:  # stays so, however old that news is
            return _refused(record)
        if key.startswith(f"{ADMIN_PREFIX}-"):
            return AuthenticationFailed(
                f"This is an administrator key ({ADMIN_PREFIX}-…), for /admin/v1 and the console. Models are"
                f" called with a tenant's API key ({KEY_PREFIX}-…); `tollgate keys create` makes one."
            )
        self._require_fresh()
        return AuthenticationFailed(
            "This API key is not known. Check that it was copied whole, or ask an administrator for one."
        )

    def _caller(self, record: KeyRecord, lineage: tuple[str, ...], limits: tuple[Limit, ...]) -> Caller:
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
            allowed_models=None if record.allowed_models is None else frozenset(record.allowed_models),
            allowed_classes=None if record.allowed_classes is None else frozenset(record.allowed_classes),
            class_unasked=_class_unasked(record.allowed_classes),
            expires_at_ms=record.expires_at_ms,
            fixed_tags=fixed_tags(record.project_tags, record.tags),
            key_lineage=lineage,
            limits=Limits(self.limiter, limits) if limits else None,
        )


def _lineage(key_id: str, rotated_from: Mapping[str, str | None]) -> tuple[str, ...]:
    lineage = [key_id]
    while (older := rotated_from.get(lineage[-1])) is not None:
        lineage.append(older)
    return tuple(lineage)


def _limits_of(
    record: KeyRecord, lineage: tuple[str, ...], by_owner: Mapping[tuple[Scope, str], Limit]
) -> tuple[Limit, ...]:
    owners = (
        (Scope.TENANT, record.tenant_id, record.tenant_name),
        (Scope.PROJECT, record.project_id, record.project_name),
        (Scope.KEY, lineage[-1], record.name),
    )
    found = ((by_owner.get((scope, owner_id)), name) for scope, owner_id, name in owners)
    return tuple(replace(limit, name=name) for limit, name in found if limit is not None)


def _class_unasked(allowed: tuple[str, ...] | None) -> str:
    return CLASS_UNASKED if allowed is None or CLASS_UNASKED in allowed else allowed[0]


def _refused(record: KeyRecord) -> AuthenticationFailed:
    shown = f"{KEY_PREFIX}-{record.id}-…"
    if record.revoked_at_ms is not None:
        return AuthenticationFailed(
            f"The API key {shown} was revoked on {_minute(record.revoked_at_ms)} UTC."
            " Ask an administrator for a new one."
        )
    owner, retired_at_ms = f"tenant {record.tenant_name!r}", record.tenant_retired_at_ms
    if retired_at_ms is None:
        owner, retired_at_ms = f"project {record.project_name!r}", record.project_retired_at_ms or 0
    return AuthenticationFailed(
        f"The {owner} of the API key {shown} was retired on {_minute(retired_at_ms)} UTC: its keys do not"
        " work any more."
    )


def _over(record: KeyRecord) -> AuthenticationFailed:
    shown, end = f"{KEY_PREFIX}-{record.id}-…", _minute(record.expires_at_ms or 0)
    if record.rotated_to is not None:
        return AuthenticationFailed(
            f"The API key {shown} was replaced by {KEY_PREFIX}-{record.rotated_to}-… and ended on {end} UTC."
        )
    return AuthenticationFailed(
        f"The API key {shown} expired on {end} UTC. Ask an administrator for a new one."
    )


def _minute(epoch_ms: int) -> str:
    return f"{datetime.fromtimestamp(epoch_ms / 1000, UTC):%Y-%m-%d %H:%M}"


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
