"""Who says that a closed month is as it was closed? A signature that the installation's secret key makes.

Ed25519 (RFC 8032): the private key is derived from `TOLLGATE_SECRET_KEY`, so that every replica signs alike
and nothing new has to be kept; the public key may be given to auditors. The first key of the list signs, any
key of the list verifies.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.identity.root_key import derive

_PURPOSE = "period-seal"


class Signer:
    """Signs and verifies seals."""

    def __init__(self, root_keys: Sequence[bytes]) -> None:
        """Take the secret keys in force, the one that signs first."""
        keys = [Ed25519PrivateKey.from_private_bytes(derive(root, _PURPOSE)) for root in root_keys]
        self._key = keys[0]
        self._known = {key.public_key().public_bytes_raw().hex() for key in keys}
        self.public_key = keys[0].public_key().public_bytes_raw().hex()
        """Hexadecimal."""

    def sign(self, seal: bytes) -> str:
        """The signature, hexadecimal."""
        return self._key.sign(seal).hex()

    def knows(self, public_key: str) -> bool:
        """A key of the list made it."""
        return public_key in self._known


def is_signed(seal: bytes, *, signature: str, public_key: str) -> bool:
    """The signature is of that seal by that key."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(bytes.fromhex(signature), seal)
    except (InvalidSignature, ValueError):
        return False
    return True
