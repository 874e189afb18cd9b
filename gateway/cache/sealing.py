"""What does an answer look like where others can read it? Pure, but for the nonce.

A key's first half is its name in Redis; the second, which Redis never sees, seals what lies there (AES-GCM):
only the same request of the same tenant can give it again. As each request has a key of its own, a nonce by
chance is met again only where the same answer is sealed anew, and 96 bits are enough for that many times.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PREFIX = b"tollgate:answer:"
NONCE_BYTES = 12
HALF = 32


def name_of(key: bytes) -> bytes:
    """Where its answer lies."""
    return PREFIX + key[:HALF].hex().encode()


def seal(key: bytes, value: bytes) -> bytes:
    """The value as it may lie where others read."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key[HALF:]).encrypt(nonce, value, None)


def unseal(key: bytes, sealed: bytes) -> bytes | None:
    """The value; None: this was not sealed under the key, or was changed."""
    try:
        return AESGCM(key[HALF:]).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
    except (InvalidTag, ValueError):
        return None
