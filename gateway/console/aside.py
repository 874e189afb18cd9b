"""How is something long read without keeping those waiting who are served meanwhile?

In a thread with an event loop and a database connection of its own: what reading and adding up takes of the
processor is interleaved with serving instead of standing before it. A few at a time, the others wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.db import create_engine, session_factory
from gateway.dependencies import Services

AT_ONCE = 2

T = TypeVar("T")


class Aside:
    """Where the console's long readings happen."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def read(self, services: Services, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """What `work` returns, given a fresh session; raises what it raises."""
        url = services.settings.effective_database_url

        async def with_session() -> T:
            engine = create_engine(url)
            try:
                async with session_factory(engine)() as session:
                    return await work(session)
            finally:
                await engine.dispose()

        async with self._turns:
            return await asyncio.to_thread(lambda: asyncio.run(with_session()))
