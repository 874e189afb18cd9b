"""A row that the database refuses must not hold up the others, and must not be lost."""

import asyncio
import errno
import json
from pathlib import Path

from sqlalchemy import text

from gateway.clock import Clock
from gateway.db import create_engine, session_factory
from gateway.ledger.shipper import Shipper
from gateway.ledger.spool import REFUSED_FILE, Spool
from gateway.routing.receipts import insert_receipts
from gateway.settings import SpoolSettings
from tests.integration.gateway.rig import eventually, settings_for
from tests.support.factories import make_end, make_start

BEYOND_64_BITS = 2**70


async def test_a_refused_row_is_set_aside_and_the_others_are_booked(home: Path) -> None:
    engine = create_engine(settings_for(home, {}).effective_database_url)
    spool = Spool(home / "spool", Clock(), unshipped_max=10)
    for name, tokens in (("att_1", 3), ("att_2", BEYOND_64_BITS), ("att_3", 4)):
        spool.start(make_start(name))
        spool.end(make_end(name, output_tokens=tokens))

    shipper = Shipper(
        spool, session_factory(engine), SpoolSettings(), clock=Clock(), insert_receipts=insert_receipts
    )
    await shipper.drain()

    async with engine.connect() as connection:
        booked = (
            (await connection.execute(text("select attempt_id from attempts order by 1"))).scalars().all()
        )
    await engine.dispose()
    refused = [json.loads(line) for line in (home / "spool" / REFUSED_FILE).read_text().splitlines()]
    assert booked == ["att_1", "att_3"]
    assert [(row["attempt_id"], row["output_tokens"]) for row in refused] == [("att_2", BEYOND_64_BITS)]
    assert spool.unshipped_count == 0
    spool.close()


class CrampedSpool(Spool):
    """The process has no file descriptor left for a while."""

    failures_left = 2

    def file_to_sync(self) -> int | None:
        if self.failures_left:
            self.failures_left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().file_to_sync()


async def test_a_sync_that_fails_is_tried_again_and_the_books_go_on(home: Path) -> None:
    engine = create_engine(settings_for(home, {}).effective_database_url)
    spool = CrampedSpool(home / "spool", Clock(), unshipped_max=10)
    shipper = Shipper(
        spool,
        session_factory(engine),
        SpoolSettings(fsync_interval_ms=10, ship_interval_ms=10),
        clock=Clock(),
        insert_receipts=insert_receipts,
    )
    running = asyncio.create_task(shipper.run())  # noqa: TID251 - a test
    spool.start(make_start("att_1"))
    await eventually(lambda: not spool.failures_left and not spool._is_dirty)
    spool.end(make_end("att_1"))
    await eventually(lambda: not spool.unshipped_count)
    assert not running.done()
    shipper.stop()
    await running
    spool.close()
    await engine.dispose()
