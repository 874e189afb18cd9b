"""What do tests of the console's pages ask without a browser? The app in this process, logins by role."""

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from gateway.app import create_app
from gateway.clock import Clock
from gateway.db import create_engine, session_factory
from gateway.dependencies import CONSOLE_HEADER, Services
from gateway.identity.admin_store import create_admin_key, list_admin_keys
from gateway.identity.roles import Role
from gateway.settings import Settings
from tests.support.factories import make_act
from tests.support.pool_files import DEFAULT_POLICY, write_pools

ADMIN_KEY = "tga-a-key-for-the-console-test-only-0123456789"
ORIGIN = "http://gateway.test"


class Visitor:
    """Somebody who is logged in."""

    def __init__(self, client: httpx.AsyncClient) -> None:  # noqa: TID251 - a test's client
        self._client = client

    async def get(self, address: str, *, status_code: int = 200, **query: str) -> str:
        """A page's HTML."""
        answer = await self._client.get(address, params=query or None)
        assert answer.status_code == status_code, answer.text
        return answer.text

    async def read(self, address: str, *, status_code: int = 200) -> str:
        """What a person reads on a page, with single spaces."""
        return text_of(await self.get(address, status_code=status_code))

    async def raw(self, address: str) -> httpx.Response:
        """Any answer."""
        return await self._client.get(address)

    async def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """A change, as the pages' script sends it."""
        headers = {"origin": ORIGIN, CONSOLE_HEADER: "1"}
        return await self._client.request(method, path, json=body, headers=headers)


class ConsoleApp:
    """The running app."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    @property
    def services(self) -> Services:
        """What it serves with."""
        services: Services = self.app.state.runtime.current()
        return services

    async def visitor(self, role: Role = Role.ADMIN, *, name: str = "") -> Visitor:
        """Somebody with that role; the bootstrap administrator where nothing is said."""
        key = ADMIN_KEY
        if name or role is not Role.ADMIN:
            async with self.services.sessions() as session:
                act = make_act(self.services.clock)
                key = (await create_admin_key(session, name or role.value, role, act=act)).secret
                await session.commit()
                self.services.admins.replace(await list_admin_keys(session))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url=ORIGIN)  # noqa: TID251 - a test's client
        answer = await client.post("/console/login", data={"key": key}, headers={"origin": ORIGIN})
        assert answer.status_code == 303, answer.text
        return Visitor(client)


@asynccontextmanager
async def running_console(
    home: Path, database: Path, *, clock: Clock, **more: Any
) -> AsyncIterator[ConsoleApp]:
    """The app on a copy of a database.

    Args:
        home: an empty folder.
        database: an SQLite file.
        clock: the app's.
        more: settings.
    """
    state = home / "state"
    state.mkdir()
    shutil.copy(database, state / "tollgate.db")
    urls = {"speculative": ["http://127.0.0.1:9"], "plain": ["http://127.0.0.1:9"]}
    settings = Settings(
        **{
            "state_dir": state,
            "pools": write_pools(home / "pools", urls),
            "policy": DEFAULT_POLICY,
            "admin_key": SecretStr(ADMIN_KEY),
        }
        | more
    )
    app = create_app(settings, clock=clock)
    async with app.router.lifespan_context(app):
        yield ConsoleApp(app)


@asynccontextmanager
async def writing(database: Path) -> AsyncIterator[Any]:
    """A session that is committed at the end."""
    engine = create_engine(f"sqlite+aiosqlite:///{database}")
    async with session_factory(engine)() as session:
        yield session
        await session.commit()
    await engine.dispose()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


def text_of(html: str) -> str:
    """What a person reads, with single spaces; amounts are whole again, down to the nano-dollar."""
    reader = _Reader()
    reader.feed(html)
    text = re.sub(r"\s+", " ", " ".join(reader.pieces))
    return re.sub(r"(\d\.\d\d) (\d{7})\b", r"\1\2", text)
