"""What does the process do that backtests for the one that serves? `python -m gateway.jobs.backtest_child`.

It reads one JSON object from standard input, so that the database's address stands in no list of processes,
and says on standard output line by line how far it is and at last what it found, as `tollgate policy backtest
--json` does. Its memory is bounded by the number of requests that it takes in.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from backends.files import PoolFileError, load_pools
from backends.profile import ProfileError
from gateway.analysis.backtest import run_backtest, units
from gateway.analysis.history import History, count_attempts, read_history
from gateway.analysis.replay import Scenario
from gateway.analysis.view import as_json
from gateway.db import create_engine, session_factory
from gateway.errors import GatewayError
from gateway.jobs.backtests import Errand, Line
from gateway.pricing.book import Entry, PriceBook
from gateway.pricing.catalog import cards_of
from gateway.pricing.store import list_entries
from gateway.routing.policy import parse_policy
from gateway.spend_names import read_names

NICENESS: Final = 10
"""It yields to whatever serves."""
REQUESTS_MAX: Final = 200_000
"""About a quarter of a gigabyte; for more there is the command line."""
_EVERY_S: Final = 0.5


class Teller:
    """Says how far it is, not too often."""

    def __init__(self) -> None:
        """Nothing is done."""
        self._stage, self._total, self._done = "", 1, 0
        self._said_at_s = 0.0

    def begin(self, stage: str, total: int) -> None:
        """From here on another kind of work is counted."""
        self._stage, self._total, self._done, self._said_at_s = stage, max(1, total), 0, 0.0
        self.tell(0)

    def tell(self, count: int) -> None:
        """So much more is done."""
        self._done += count
        now_s = time.monotonic()
        if now_s - self._said_at_s >= _EVERY_S:
            self._said_at_s = now_s
            say(Line(stage=self._stage, ratio=min(1.0, self._done / self._total)))


def say(line: Line) -> None:
    """Say a line."""
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


async def _read(errand: Errand, teller: Teller) -> tuple[History, list[Entry], dict[str, dict[str, str]]]:
    engine = create_engine(errand.database_url)
    try:
        async with session_factory(engine)() as session:
            span = {"from_ms": errand.from_ms, "to_ms": errand.to_ms}
            teller.begin("reading", await count_attempts(session, **span))
            history = await read_history(session, **span, on_rows=teller.tell, requests_max=REQUESTS_MAX)
            return history, await list_entries(session), dict(await read_names(session))
    finally:
        await engine.dispose()


def run_errand(errand: Errand) -> Line:
    """What becomes of it.

    Raises:
        GatewayError, PoolFileError, ProfileError: it cannot be done; says why.
    """
    teller = Teller()
    specs = load_pools(Path(errand.pools))
    history, entries, names = asyncio.run(_read(errand, teller))

    def scenario(name: str, text: str) -> Scenario:
        policy = parse_policy(text, source=name, pools=specs)
        cards = cards_of(specs, {each: target.rates for each, target in policy.external.items()})
        book = PriceBook(cards, entries, allows_unpriced=policy.allow_unpriced)
        return Scenario(name, policy, specs, book, names["tenant"], names["project"])

    asked = scenario("candidate", errand.candidate), scenario("baseline", errand.baseline)
    teller.begin("simulating", units(len(history.requests), draws=errand.draws))
    found = run_backtest(
        history,
        candidate=asked[0],
        baseline=asked[1],
        seed=errand.seed,
        draws=errand.draws,
        tell=teller.tell,
    )
    return Line(stage="done", ratio=1.0, result=as_json(found, names["tenant"]))


def main() -> int:
    """Do it; returns the exit status."""
    os.nice(NICENESS)
    errand = msgspec.json.decode(sys.stdin.buffer.read(), type=Errand)
    try:
        say(run_errand(errand))
    except GatewayError as error:
        say(Line(error=error.caller_detail))
        return 1
    except (PoolFileError, ProfileError) as error:
        say(Line(error=str(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
