"""Which administrator is this, a key or a person, and which login?

Administrators' keys are in memory like tenants' keys, refreshed with them: the metrics, and the console's
pools, must be readable just when the database is away. What that costs, half a second in which a revoked key
still reads, it does not cost for changes: `audit.write` asks the database whether the actor's key stands. The
bootstrap key is a setting and always valid. A login is a value that the console keeps in a cookie: when it
ends, a nonce, the key or the person it was made with, and an HMAC-SHA-256 over these and the key's or the
password's hash, so that it ends with the key, or with the password.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from gateway.audit import Actor, ActorKind
from gateway.clock import Clock
from gateway.errors import AuthenticationFailed, Overloaded
from gateway.identity.admin_store import AdminRecord
from gateway.identity.credentials import ADMIN_PREFIX, KEY_PREFIX, hash_of
from gateway.identity.key_store import KeyState
from gateway.identity.people_store import PERSON_PREFIX, PersonRecord
from gateway.identity.roles import Role
from gateway.identity.root_key import derive

LOGIN_S = 12 * 3600
REMEMBERED_MAX = 4096
"""Logins that were ended before their time and are remembered; the oldest are forgotten first."""

BOOTSTRAP = Actor(kind=ActorKind.BOOTSTRAP, id="bootstrap", name="bootstrap", role=Role.ADMIN)


class AdminRing:
    """All administrators' keys."""

    def __init__(self, bootstrap_key: str, clock: Clock, *, stale_max_s: float) -> None:
        self._bootstrap_hash = hash_of(bootstrap_key)
        self._clock = clock
        self._stale_max_s = stale_max_s
        self._by_hash: dict[str, AdminRecord] = {}
        self._by_id: dict[str, AdminRecord] = {}
        self._people: dict[str, PersonRecord] = {}
        self._confirmed_at_s: float | None = None

    def replace(self, records: Iterable[AdminRecord], people: Iterable[PersonRecord] = ()) -> None:
        """Take over what the database says now."""
        self._people = {person.id: person for person in people if person.retired_at_ms is None}
        by_id = {record.id: record for record in records}
        self._by_hash = {record.secret_hash: record for record in by_id.values()}
        self._by_id = by_id
        self.confirm()

    def confirm(self) -> None:
        """The database was asked just now and nothing changed."""
        self._confirmed_at_s = self._clock.monotonic_s()

    def authenticate(self, headers: Mapping[str, str]) -> Actor:
        """The administrator behind `Authorization: Bearer tga-…`.

        Args:
            headers: any mapping that finds `authorization`.

        Raises:
            AuthenticationFailed: no key, a tenant's, an unknown one, or one that is not valid any more.
            Overloaded: the keys in memory are too old to be trusted.
        """
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise AuthenticationFailed(
                f"The control plane needs an administrator key: 'Authorization: Bearer {ADMIN_PREFIX}-…'."
                " On an embedded install the first one is in the state folder, file admin-key;"
                " `tollgate admins create` makes more."
            )
        return self.actor_of(key)

    def actor_of(self, key: str) -> Actor:
        """The administrator with this key; raises as `authenticate` does."""
        digest = hash_of(key)
        if hmac.compare_digest(digest, self._bootstrap_hash):
            return BOOTSTRAP
        record = self._by_hash.get(digest)
        if record is None:
            if key.startswith(f"{KEY_PREFIX}-"):
                raise AuthenticationFailed(
                    f"This is a tenant's API key ({KEY_PREFIX}-…), for the models under /v1. The control"
                    f" plane needs an administrator key ({ADMIN_PREFIX}-…)."
                )
            self._require_fresh()
            raise AuthenticationFailed("That is not an administrator key. Check that it was copied whole.")
        self._require_valid(record)
        return _actor(record)

    def hash_of_key(self, actor: Actor) -> str | None:
        """The hash of the actor's key; None when it is not valid any more."""
        if actor.kind is ActorKind.BOOTSTRAP:
            return self._bootstrap_hash
        if actor.kind is ActorKind.PERSON:
            person = self._people.get(actor.id)
            return None if person is None else f"{person.password_hash}|{person.subject}"
        record = self._by_id.get(actor.id)
        return None if record is None else record.secret_hash

    def actor_with_id(self, actor_id: str) -> Actor | None:
        """The administrator with that public id, while the key is valid."""
        if actor_id == BOOTSTRAP.id:
            return BOOTSTRAP
        if actor_id.startswith(PERSON_PREFIX):
            person = self._people.get(actor_id)
            self._require_fresh()
            return None if person is None else actor_of_person(person)
        record = self._by_id.get(actor_id)
        if record is None:
            return None
        try:
            self._require_valid(record)
        except AuthenticationFailed:
            return None
        return _actor(record)

    def person_named(self, name: str) -> PersonRecord | None:
        """Whoever logs in by that name; None: nobody who may.

        Raises:
            Overloaded: what is in memory is too old to be trusted.
        """
        self._require_fresh()
        return next((person for person in self._people.values() if person.name == name), None)

    def person_with_id(self, person_id: str) -> PersonRecord | None:
        """Whoever has that id, while not retired."""
        return self._people.get(person_id)

    def person_with_subject(self, subject: str) -> PersonRecord | None:
        """Whoever the company's own login knows by that subject."""
        return next((person for person in self._people.values() if person.subject == subject), None)

    def _require_valid(self, record: AdminRecord) -> None:
        state = record.state(self._clock.epoch_ms())
        if state is KeyState.ACTIVE:
            self._require_fresh()
            return
        ended_ms = record.revoked_at_ms if state is KeyState.REVOKED else record.expires_at_ms
        moment = datetime.fromtimestamp((ended_ms or 0) / 1000, UTC)
        raise AuthenticationFailed(
            f"The administrator key {ADMIN_PREFIX}-{record.id}-… is {state} since"
            f" {moment:%Y-%m-%d %H:%M} UTC."
        )

    def _require_fresh(self) -> None:
        confirmed_at_s = self._confirmed_at_s
        if confirmed_at_s is None or self._clock.monotonic_s() - confirmed_at_s > self._stale_max_s:
            raise Overloaded(
                "Administrator keys cannot be checked at the moment; the bootstrap key works.",
                retry_after_s=5,
            )


class Logins:
    """Issues and checks what the console's cookie holds."""

    def __init__(self, root_key: bytes, admins: AdminRing, clock: Clock) -> None:
        self._secret = derive(root_key, "console-session")
        self._admins = admins
        self._clock = clock
        self._ended: OrderedDict[str, None] = OrderedDict()

    def issue(self, actor: Actor) -> str:
        """A new login's value."""
        ends_s = self._now_s() + LOGIN_S
        nonce = secrets.token_hex(16)
        return f"{ends_s}.{nonce}.{actor.id}.{self._signature(ends_s, nonce, actor)}"

    def actor_of(self, value: str) -> Actor | None:
        """Who made this login; None if it is not ours, over, ended, or its key is not valid any more.

        Raises:
            Overloaded: administrators' keys in memory are too old to be trusted.
        """
        ends_text, _, rest = value.partition(".")
        nonce, _, rest = rest.partition(".")
        actor_id, _, signature = rest.partition(".")
        if not (ends_text.isascii() and ends_text.isdecimal() and len(ends_text) < len(str(2**63))):
            return None
        actor = self._admins.actor_with_id(actor_id)
        ends_s = int(ends_text)
        if actor is None:
            return None
        expected = self._signature(ends_s, nonce, actor)
        if not hmac.compare_digest(signature.encode(), expected.encode()):
            return None
        return actor if self._now_s() < ends_s and nonce not in self._ended else None

    def end(self, value: str) -> None:
        """Make a login useless in this process before its time."""
        if self.actor_of(value) is not None:
            self._ended[value.split(".")[1]] = None
            if len(self._ended) > REMEMBERED_MAX:
                self._ended.popitem(last=False)

    def _signature(self, ends_s: int, nonce: str, actor: Actor) -> str:
        message = f"{ends_s}.{nonce}.{actor.id}.{self._admins.hash_of_key(actor)}".encode()
        return hmac.digest(self._secret, message, hashlib.sha256).hex()

    def _now_s(self) -> int:
        return self._clock.epoch_ms() // 1000


def actor_of_person(person: PersonRecord) -> Actor:
    """Who makes a person's changes."""
    return Actor(kind=ActorKind.PERSON, id=person.id, name=person.name, role=person.role)


def _actor(record: AdminRecord) -> Actor:
    return Actor(kind=ActorKind.ADMIN_KEY, id=record.id, name=record.name, role=record.role)
