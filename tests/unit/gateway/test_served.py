"""Who pays when a client closes its connection behind an answer that it has whole?"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from gateway.attempt_log import AttemptLog
from gateway.cache.lookup import AnswerCache
from gateway.cache.storage import MemoryStorage
from gateway.identity.shedding import Shedder
from gateway.ledger.budgets import Holds, Reservation
from gateway.ledger.records import Ended
from gateway.ledger.settlement import Settlement
from gateway.ledger.spool import Spool
from gateway.money import UsdNanos
from gateway.served import ServedStream
from gateway.settings import TimeoutSettings
from gateway.telemetry import Telemetry
from gateway.upstream.answer_stream import AnswerStream
from gateway.upstream.stream import StreamRelay
from tests.support.clock import MovableClock
from tests.support.factories import make_target
from tests.unit.gateway.test_attempt_log import make_plan

CONTENT: Final = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
END: Final = (
    b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
)


class Source:
    """An engine that says something and then leaves its HTTP message open."""

    def __init__(self, events: bytes) -> None:
        self._events = events

    async def read(self) -> bytes:
        events, self._events = self._events, b""
        if not events:
            await asyncio.Event().wait()
        return events

    def close(self) -> None:
        """Nothing is open."""


class Lease:
    """A claim on nobody."""

    replica = "plain-0"
    url = ""

    def succeeded(self) -> None:
        """Not counted."""

    def failed(self, detail: str, *, fatal: bool = False, slow: bool = False) -> None:
        """Not counted."""

    def release(self) -> None:
        """Nothing was claimed."""


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path, MovableClock(), unshipped_max=9)
    yield opened
    opened.close()


async def abandoned(spool: Spool, events: bytes, *, is_stopping: bool) -> Ended:
    """The attempt of a stream whose client leaves once it has these events."""
    clock, target = MovableClock(), make_target()
    settlement = Settlement(spool, clock)
    log = AttemptLog(
        msgspec.structs.replace(make_plan(), slot=None),
        Reservation(Holds(), UsdNanos(10**9)),
        settlement=settlement,
        clock=clock,
        telemetry=Telemetry(),
    )
    log.started(target, "plain-0", 1)
    relay = StreamRelay(upstream_model="m", alias="auto", wants_usage=False, cost_text=log.cost_text)
    stream = AnswerStream(
        target=target,
        lease=Lease(),
        response=Source(events),
        relay=relay,
        started_s=0.0,
        timeouts=TimeoutSettings(),
    )
    await stream.read_until_content()
    cache = AnswerCache(MemoryStorage(clock, bytes_max=1), clock, entry_bytes_max=1)
    seat = Shedder(lambda: 9, weights={}).admit("default", "acme")
    served = ServedStream(log.plan.facts(target, "plain-0"), stream, log, cache=cache, seat=seat)
    assert await served.read()
    settlement.is_stopping = is_stopping
    served.abandon()
    (ended,) = spool.next_batch(9)
    return ended


@pytest.mark.parametrize("is_stopping", [False, True])
async def test_an_answer_that_the_client_has_whole_is_answered(spool: Spool, *, is_stopping: bool) -> None:
    end = (await abandoned(spool, CONTENT + END, is_stopping=is_stopping)).end
    assert (end.state, end.payer, end.usage_source) == ("answered", "tenant", "measured")
    assert (end.input_tokens, end.output_tokens) == (10, 1)


@pytest.mark.parametrize(
    ("is_stopping", "state", "payer"),
    [(False, "cancelled", "tenant"), (True, "interrupted", "platform")],
)
async def test_one_that_it_has_in_part_is_not(
    spool: Spool, *, is_stopping: bool, state: str, payer: str
) -> None:
    end = (await abandoned(spool, CONTENT, is_stopping=is_stopping)).end
    assert (end.state, end.payer, end.usage_source) == (state, payer, "estimated")
