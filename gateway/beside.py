"""How is long work on the database kept off the loop that serves? In a thread with a loop of its own.

Reading a hundred thousand rows takes the interpreter seconds; on the loop that serves, nobody else would be
answered meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.db import SessionFactory, create_engine, session_factory

T = TypeVar("T")


async def beside(url: str, work: Callable[[SessionFactory], Awaitable[T]]) -> T:
    """Do it there; whoever is cancelled stops waiting, and the work is finished all the same.

    Args:
        url: the database's address.
        work: gets sessions of an engine that is its own.
    """

    async def run() -> T:
        engine = create_engine(url)
        try:
            return await work(session_factory(engine))
        finally:
            await engine.dispose()

    return await asyncio.to_thread(lambda: asyncio.run(run()))
