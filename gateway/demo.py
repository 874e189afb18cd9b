"""Which key can a newcomer paste right away? A demo tenant with one key, on embedded installs only.

The key is kept in the state folder (mode 0600), so that `up` prints the same one every time; a revoked or
lost one is replaced.
"""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.clock import Clock
from gateway.identity import store

DEMO_NAME = "demo"
DEMO_KEY_FILE = "demo-key"


async def ensure_demo_key(session: AsyncSession, state_dir: Path, clock: Clock) -> str:
    """The demo tenant's API key; the caller commits."""
    path = state_dir / DEMO_KEY_FILE
    if path.exists():
        key = path.read_text().strip()
        digest = store.hash_of(key)
        if any(
            one.secret_hash == digest and one.revoked_at_ms is None for one in await store.list_keys(session)
        ):
            return key
    now_ms = clock.epoch_ms()
    tenant = await store.find_tenant(session, DEMO_NAME)
    if tenant is None:
        tenant = await store.create_tenant(session, DEMO_NAME, now_ms=now_ms)
    project = await store.ensure_project(session, tenant, DEMO_NAME, now_ms=now_ms)
    issued = await store.create_key(session, project, DEMO_NAME, now_ms=now_ms)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(issued.secret + "\n")
    return issued.secret
