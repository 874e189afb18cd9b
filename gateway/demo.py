"""Which key can a newcomer paste right away? A demo tenant with one key, on embedded installs only.

The key is kept in the state folder (mode 0600), so that `up` prints the same one every time; a revoked or
lost one is replaced.
"""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.audit import Act
from gateway.identity import key_store, store
from gateway.identity.credentials import hash_of
from gateway.identity.key_store import KeyState

DEMO_NAME = "demo"
DEMO_KEY_FILE = "demo-key"


async def ensure_demo_key(session: AsyncSession, state_dir: Path, act: Act) -> str:
    """The demo tenant's API key; the caller commits."""
    path = state_dir / DEMO_KEY_FILE
    if path.exists():
        key = path.read_text().strip()
        digest = hash_of(key)
        for record in await key_store.list_keys(session):
            if record.secret_hash == digest and record.state(act.at_ms) is KeyState.ACTIVE:
                return key
    tenant = await store.find_tenant(session, DEMO_NAME)
    if tenant is None:
        tenant = await store.create_tenant(session, DEMO_NAME, act=act)
    project = await store.ensure_project(session, tenant, DEMO_NAME, act=act)
    issued = await key_store.create_key(session, project, DEMO_NAME, act=act)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(issued.secret + "\n")
    return issued.secret
