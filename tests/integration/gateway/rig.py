"""How does a test get the whole gateway inside its own process?

The real app with its lifespan, a real database that Alembic made, real mock engines behind it; only the
sockets between the test and the gateway are missing (httpx.ASGITransport, which hands a stream over whole).
The lifespan runs in a task of its own, so that a fixture may start and end it.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from fastapi import FastAPI
from sqlalchemy import select
from sqlmodel import col

from gateway.app import create_app
from gateway.clock import Clock
from gateway.dependencies import Services
from gateway.identity import key_store
from gateway.identity import store as identity
from gateway.identity.root_key import load_admin_key
from gateway.ledger.reports import PLATFORM_TENANT
from gateway.ledger.tables import Attempt
from gateway.settings import (
    CacheSettings,
    FreshnessSettings,
    HealthSettings,
    Settings,
    SpoolSettings,
    TimeoutSettings,
)
from tests.support.factories import make_act
from tests.support.pool_files import DEFAULT_POLICY, write_pools

PATIENCE_S: Final = 60.0
"""For things that happen by themselves, on a busy machine."""
ADMIN_KEY: Final = "tga-" + "a" * 40
SECRET_KEY: Final = "s" * 40
CHAT: Final = "/v1/chat/completions"
TEXT: Final = "/v1/completions"


class Events:
    """A stream as its client got it."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.data = [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event]


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway."""

    app: FastAPI
    settings: Settings
    client: httpx.AsyncClient  # noqa: TID251 - a test
    key: str
    tenant_id: str
    project_id: str

    @property
    def services(self) -> Services:
        found: Services = self.app.state.runtime.current()
        return found

    async def chat(self, content: str, **fields: Any) -> httpx.Response:
        """Ask as a chat; `headers` are headers, everything else is the body's."""
        headers = fields.pop("headers", None)
        body = {"model": "auto", "messages": [{"role": "user", "content": content}], **fields}
        return await self.client.post(CHAT, json=body, headers=headers)

    async def rows(self, count: int) -> list[Attempt]:
        """The attempts in the database, oldest first, once all have ended and arrived.

        Raises:
            AssertionError: another number arrived.
        """
        spool = self.services.spool
        await eventually(lambda: not spool.open_count and not spool.unshipped_count)
        async with self.services.sessions() as session:
            found = await session.execute(
                select(Attempt)
                # Not the tokens by which the gateway saw that its engines live.
                .where(col(Attempt.tenant_id) != PLATFORM_TENANT)
                .order_by(col(Attempt.started_at_ms), col(Attempt.attempt_number))
            )
            rows = list(found.scalars())
        assert len(rows) == count, [(row.pool, row.state, row.error_code) for row in rows]
        return rows

    async def issue_key(self, tenant: str, project: str = "default") -> str:
        """A key of a tenant, as `tollgate keys create` would issue it; the running gateway learns of it."""
        key, _, _ = await issue_key(self.services, tenant, project)
        await self.until_known(key)
        return key

    @property
    def admin(self) -> dict[str, str]:
        """What authenticates the bootstrap administrator."""
        return bearer(load_admin_key(self.settings))

    async def until_known(self, key: str) -> None:
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        while (await self.client.get("/v1/models", headers=bearer(key))).status_code != 200:
            assert asyncio.get_running_loop().time() < deadline_s
            await asyncio.sleep(0.02)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def issue_key(services: Services, tenant: str, project: str) -> tuple[str, str, str]:
    """A new key; its tenant's and its project's ids."""
    act = make_act(services.clock)
    async with services.sessions() as session:
        owner = await identity.find_tenant(session, tenant)
        owner = owner or await identity.create_tenant(session, tenant, act=act)
        unit = await identity.ensure_project(session, owner, project, act=act)
        issued = await key_store.create_key(session, unit, "test", act=act)
        ids = (issued.secret, owner.id, unit.id)
        await session.commit()
    return ids


async def eventually(holds: Callable[[], object]) -> None:
    deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
    while not holds():
        assert asyncio.get_running_loop().time() < deadline_s, "did not happen in time"
        await asyncio.sleep(0.01)


STORES: Final = "stores.json"


def choose_stores(folder: Path, **settings: str) -> None:
    """Write down which database and which Redis `settings_for` this folder shall use."""
    (folder / STORES).write_text(json.dumps(settings))


def settings_for(folder: Path, urls: Mapping[str, Sequence[str]], **more: Any) -> Settings:
    """Settings with short waits, for engines at these addresses.

    Without `choose_stores` the database is an SQLite file in `folder/state` and there is no Redis.
    """
    state = folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    stores = folder / STORES
    values: dict[str, Any] = {
        "admin_key": ADMIN_KEY,
        "secret_key": SECRET_KEY,
        "cache": CacheSettings(lookup_timeout_ms=1000),  # a busy machine must not turn hits into misses
        **(json.loads(stores.read_text()) if stores.exists() else {}),
        "state_dir": state,
        "pools": write_pools(folder / "pools", urls),
        "policy": DEFAULT_POLICY,
        "timeouts": TimeoutSettings(connect_s=20, first_token_s=20, between_tokens_s=20, total_s=30),
        "freshness": FreshnessSettings(poll_interval_s=0.05),
        "spool": SpoolSettings(ship_interval_ms=10, fsync_interval_ms=20),
        # Tests count what their engines are asked.
        "health": HealthSettings(idle_probe_s=86_400, stall_s=86_400),
        **more,
    }
    return Settings(**values)


@contextlib.asynccontextmanager
async def lifespan_of(app: FastAPI) -> AsyncIterator[None]:
    """The app's lifespan, entered and left in one task whoever calls."""
    loop = asyncio.get_running_loop()
    started: asyncio.Future[None] = loop.create_future()
    leave = asyncio.Event()

    async def live() -> None:
        try:
            async with app.router.lifespan_context(app):
                started.set_result(None)
                await leave.wait()
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
                return
            raise

    life = loop.create_task(live())
    try:
        await started
        yield
    finally:
        leave.set()
        await life


@contextlib.asynccontextmanager
async def running(
    settings: Settings, *, clock: Clock | None = None, tenant: str = "acme", is_up: bool = True
) -> AsyncIterator[Gateway]:
    """A gateway that serves, with a key of a new tenant.

    Args:
        settings: of a database that is migrated.
        clock: what it shall take for the time.
        tenant: whose key it is.
        is_up: wait until every pool has a replica that is up.
    """
    app = create_app(settings, clock=clock)
    async with lifespan_of(app):
        services: Services = app.state.runtime.current()
        key, tenant_id, project_id = await issue_key(services, tenant, "default")
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(  # noqa: TID251 - a test
            transport=transport, base_url="http://tollgate", headers=bearer(key)
        ) as client:
            gateway = Gateway(app, settings, client, key, tenant_id, project_id)
            await gateway.until_known(key)
            if is_up:
                await eventually(lambda: all(pool.ready_count for pool in services.registry.snapshots()))
            yield gateway
