"""Which secret are all other secrets derived from?

`TOLLGATE_SECRET_KEY` (or the file named by `TOLLGATE_SECRET_KEY_FILE`), the same on every replica; on
embedded SQLite it is made once and kept in the state folder, readable by its owner only. Derived with
HMAC-SHA-256 over a purpose, so that one leaked derivate says nothing of another.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from gateway.errors import ConfigurationError
from gateway.settings import Settings

_CHARS_MIN = 32


def derive(root: bytes, purpose: str) -> bytes:
    """32 bytes that belong to one purpose."""
    return hmac.digest(root, purpose.encode(), hashlib.sha256)


def load_root_key(settings: Settings) -> bytes:
    """The root key in force (the first of a comma list).

    Raises:
        ConfigurationError: too short, unreadable, or missing where it cannot be generated.
    """
    return load_root_keys(settings)[0]


def load_root_keys(settings: Settings) -> list[bytes]:
    """All root keys of the list; the first is in force, the others are of before.

    Raises:
        ConfigurationError: as above.
    """
    if settings.secret_key is not None:
        text = settings.secret_key.get_secret_value()
    elif settings.secret_key_file is not None:
        try:
            text = settings.secret_key_file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"TOLLGATE_SECRET_KEY_FILE: {error}") from None
    elif settings.is_embedded:
        text = generated_secret(settings.state_dir / "secret-key")
    else:
        raise ConfigurationError(
            "TOLLGATE_SECRET_KEY is not set: on PostgreSQL every replica needs the same root key."
            ' Make one with `python3 -c "import secrets; print(secrets.token_hex(32))"`'
        )
    keys = [part.strip() for part in text.split(",")]
    for key in [keys[0], *filter(None, keys[1:])]:
        if len(key) < _CHARS_MIN:
            raise ConfigurationError(
                f"the secret key has {len(key)} characters; at least {_CHARS_MIN} are needed"
            )
    return [key.encode() for key in keys if key]


def load_admin_key(settings: Settings) -> str:
    """The bootstrap administrator key.

    Raises:
        ConfigurationError: missing where it cannot be generated, or too short.
    """
    if settings.admin_key is not None:
        key = settings.admin_key.get_secret_value()
        if len(key) < _CHARS_MIN:
            raise ConfigurationError(f"TOLLGATE_ADMIN_KEY needs at least {_CHARS_MIN} characters")
        return key
    if settings.is_embedded:
        return generated_secret(settings.state_dir / "admin-key", prefix="tga-")
    raise ConfigurationError("TOLLGATE_ADMIN_KEY is not set: it is generated on embedded SQLite only")


def generated_secret(path: Path, *, prefix: str = "") -> str:
    """The secret in that file, made at the first call; mode 0600.

    Two processes that start together agree: the file appears whole, and the first one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(prefix + secrets.token_hex(32) + "\n")
        # Another process may have been first; then its secret is the one to read.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return path.read_text().strip()
