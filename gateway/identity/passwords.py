"""Is this the person's password?

argon2id with the parameters that OWASP's password storage cheat sheet gives as its minimum (19 MiB, two
passes, one lane): at most two run at once, outside of the loop that serves. Whoever names a person who does
not exist waits as long as for one who does.
"""

from __future__ import annotations

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from gateway.errors import InvalidRequest

CHARS_MIN = 12
CHARS_MAX = 256
AT_ONCE = 2

_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


def check_password(password: str, *, name: str) -> None:
    """Let a password through that cannot be guessed at once.

    Raises:
        InvalidRequest: too short, too long, or the person's own name.
    """
    if not CHARS_MIN <= len(password) <= CHARS_MAX:
        raise InvalidRequest(
            f"A password has {CHARS_MIN} to {CHARS_MAX} characters: a few words in a row, for instance.",
            param="password",
        )
    if (name.strip() and name.lower() in password.lower()) or len(set(password)) < CHARS_MIN // 3:
        raise InvalidRequest(
            "A password neither contains the person's name nor repeats a few characters.", param="password"
        )


def hash_password(password: str, *, name: str) -> str:
    """What is kept of it: argon2's own text with its parameters and a random salt.

    Raises:
        InvalidRequest: as `check_password` does.
    """
    check_password(password, name=name)
    return _hasher.hash(password)


class PasswordCheck:
    """Checks passwords, a few at a time."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._nobodys = _hasher.hash("the password of whoever does not exist")

    async def matches(self, password_hash: str | None, password: str) -> bool:
        """Whether it is the one; None never matches, as slowly as a wrong one."""
        async with self._turns:
            found = await asyncio.to_thread(
                _verify, password_hash or self._nobodys, password[: CHARS_MAX + 1]
            )
        return found and password_hash is not None


def _verify(password_hash: str, password: str) -> bool:
    try:
        return _hasher.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False
