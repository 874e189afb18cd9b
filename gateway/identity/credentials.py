"""What does a key look like, and what is kept of it?

`<prefix>-<public id>-<secret>`: the public id may be shown anywhere, the secret is seen once, a hash is kept.
"""

from __future__ import annotations

import hashlib
import secrets
import string
from dataclasses import dataclass

from gateway.errors import InvalidRequest

KEY_PREFIX = "tg"
"""Of a tenant's key, for the data plane."""
ADMIN_PREFIX = "tga"
"""Of an administrator's key, for the control plane and the console."""
NAME_CHARS = 128
OVERLAP_S_DEFAULT = 24 * 3600
OVERLAP_S_MAX = 30 * 24 * 3600

_ALPHABET = string.ascii_lowercase + string.digits
_PUBLIC_CHARS = 10
_SECRET_CHARS = 32
_ID_PREFIXES = ("ten_", "prj_")


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key: the only time that its secret can be seen."""

    id: str
    secret: str
    """The whole key as the client sends it."""


def mint(prefix: str) -> IssuedKey:
    """A key that nobody has yet."""
    public_id = "".join(secrets.choice(_ALPHABET) for _ in range(_PUBLIC_CHARS))
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_CHARS))
    return IssuedKey(id=public_id, secret=f"{prefix}-{public_id}-{secret}")


def hash_of(key: str) -> str:
    """What is kept of a key. Plain SHA-256 suffices: the secret part has 160 random bits, nobody chose it."""
    return hashlib.sha256(key.encode()).hexdigest()


def public_id(key_or_id: str, prefix: str) -> str:
    """Accepts the whole key too: people paste what they have."""
    parts = key_or_id.split("-")
    return parts[1] if len(parts) == 3 and parts[0] == prefix else key_or_id  # noqa: PLR2004 - prefix-id-secret


def check_name(name: str) -> None:
    """Let a name through that people and terminals can tell apart from others, and from ids.

    Raises:
        InvalidRequest: it is none.
    """
    if not name.strip() or len(name) > NAME_CHARS:
        raise InvalidRequest(f"A name has 1 to {NAME_CHARS} characters.", param="name")
    if name != name.strip() or not name.isprintable():
        raise InvalidRequest(
            "A name has no spaces at its ends, no line breaks and no control characters.", param="name"
        )
    if name.startswith(_ID_PREFIXES):
        raise InvalidRequest(
            f"A name does not start with {' or '.join(_ID_PREFIXES)}: ids look like that.", param="name"
        )


def check_expiry(expires_at_ms: int | None, *, now_ms: int) -> None:
    """Let an expiry through that is still to come.

    Raises:
        InvalidRequest: it is over.
    """
    if expires_at_ms is not None and expires_at_ms <= now_ms:
        raise InvalidRequest("`expires_at` must be in the future.", param="expires_at")


def check_overlap(overlap_s: int) -> None:
    """Let an overlap of a rotation through.

    Raises:
        InvalidRequest: negative, or longer than a rotation should take.
    """
    if not 0 <= overlap_s <= OVERLAP_S_MAX:
        raise InvalidRequest(
            f"`overlap_s` must be 0 (the old key stops at once) to {OVERLAP_S_MAX} seconds (30 days).",
            param="overlap_s",
        )
