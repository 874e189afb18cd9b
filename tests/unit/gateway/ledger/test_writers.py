"""What the driver says of a database that is away is what callers know how to survive."""

from __future__ import annotations

from typing import Any, cast

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.ledger.records import Ended
from gateway.ledger.writers import PostgresWriter
from tests.support.factories import make_end, make_start


class Broken:
    """A connection whose every question fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def fetch(self, *_: Any) -> Any:
        raise self.error


async def nobody(*_: Any) -> None:
    """Insert nothing."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (asyncpg.ConnectionDoesNotExistError("closed in the middle"), DBAPIError),
        (asyncpg.InterfaceError("connection is closed"), DBAPIError),
        # Of an idle connection that the server ends, between its last words and its end.
        (asyncpg.InternalClientError("cannot switch to state 12; another operation (2)"), DBAPIError),
        (asyncpg.ProtocolError("unexpected message"), DBAPIError),
        (OverflowError("value out of int64 range"), StatementError),
    ],
)
async def test_every_error_of_the_driver_is_one_that_the_shipper_survives(
    error: Exception, told: type[Exception]
) -> None:
    writer = PostgresWriter(Broken(error), cast("AsyncSession", None), nobody)
    with pytest.raises(told) as caught:
        await writer.known([Ended(make_start("att_1"), make_end("att_1"))])
    assert caught.value.__cause__ is error
