"""Is a settlement booked once, however often, by whomever and in which order it is delivered?"""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import msgspec
import pytest

from gateway.inference import AttemptState, Payer
from gateway.ledger.records import Ended
from gateway.ledger.spool import REFUSED_FILE
from tests.integration.ledger.accounts import balances, check_books
from tests.integration.ledger.site import Process, Site
from tests.support.factories import make_end, make_start

COUNT = 120
NOON_MS = 1_795_953_600_000


def ended(number: int, *, bucket: tuple[str, int], charge: int, is_tenant: bool) -> Ended:
    attempt_id = f"att_{number:04}"
    start = make_start(
        attempt_id, request_id=f"req_{number}", started_at_ms=NOON_MS + number * 60_000, buckets=(bucket,)
    )
    end = make_end(
        attempt_id,
        state=AttemptState.ANSWERED if is_tenant else AttemptState.FAILED,
        payer=Payer.TENANT if is_tenant else Payer.PLATFORM,
        charge_usd_nanos=charge,
        ended_at_ms=start.started_at_ms + 5,
    )
    return Ended(start, end)


def contradicting(one: Ended) -> Ended:
    charge = (one.end.charge_usd_nanos or 0) + 1_000
    return Ended(one.start, msgspec.structs.replace(one.end, charge_usd_nanos=charge))


async def deliver(process: Process, deliveries: list[Ended], *, size: int) -> None:
    """As the shipper does with what its spool or a dead process's holds."""
    for batch in _batches(deliveries, size):
        await process.shipper._book(batch, process.spool.owner_id)
        await asyncio.sleep(0)


def _batches(deliveries: list[Ended], size: int) -> list[list[Ended]]:
    return [deliveries[index : index + size] for index in range(0, len(deliveries), size)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_each_is_booked_once_and_contradictions_are_set_aside(site: Site, seed: int) -> None:
    draw = random.Random(seed)
    one, other = await site.process("one"), await site.process("other")
    budget = await site.budget(10**9)
    attempts = [
        ended(number, bucket=(budget.id, 0), charge=draw.randint(0, 99), is_tenant=draw.random() < 0.8)
        for number in range(COUNT)
    ]
    deliveries = [each for each in attempts for _ in range(draw.randint(1, 5))]
    draw.shuffle(deliveries)
    # The same and the same again on both sides, so that both are at work on the same attempts.
    await asyncio.gather(
        deliver(one, deliveries, size=17), deliver(other, list(reversed(deliveries)), size=23)
    )
    false = [contradicting(each) for each in draw.sample(attempts, 5)]
    unknown = ended(COUNT, bucket=(budget.id, 0), charge=7, is_tenant=True)
    twice = [unknown, contradicting(unknown)]
    await asyncio.gather(deliver(one, false * 2 + twice, size=40), deliver(other, false, size=2))

    expected = {each.start.attempt_id: each.end.charge_usd_nanos for each in [*attempts, unknown]}
    found: list[Any] = list(await site.rows("SELECT attempt_id, charge_usd_nanos FROM attempts"))
    assert sorted(found) == sorted(expected.items())
    by_tenant = sum(
        each.end.charge_usd_nanos or 0 for each in [*attempts, unknown] if each.end.payer is Payer.TENANT
    )
    by_platform = sum(expected[each.start.attempt_id] or 0 for each in attempts) + 7 - by_tenant
    assert (await site.window())["posted"] == by_tenant
    assert await balances(site) == {
        "tenant:ten_1": by_tenant,
        "platform": by_platform,
        "usage": -by_tenant - by_platform,
    }
    await check_books(site)
    assert one.shipper.contradictions + other.shipper.contradictions == 3 * len(false) + 1
    set_aside = [
        json.loads(line)
        for folder in ("one", "other")
        for line in (site.folder / folder / REFUSED_FILE).read_text().splitlines()
    ]
    assert {row["attempt_id"] for row in set_aside} == {each.start.attempt_id for each in [*false, unknown]}
    assert all("booked already" in row["refused"] for row in set_aside)
