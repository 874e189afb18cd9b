"""Is every attempt settled once, at what it used, on the account that the rules say?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Overloaded
from gateway.inference import AttemptState, AttemptTiming, EngineMetrics, TokenUsage
from gateway.ledger.budgets import Holds, Reservation
from gateway.ledger.records import Ended, interrupted, row_of
from gateway.ledger.settlement import OpenAttempt, Outcome, Settlement, estimated_input_tokens
from gateway.ledger.spool import Spool
from gateway.ledger.tables import Attempt
from gateway.money import UsdNanos
from gateway.pricing.rates import charge
from tests.support.clock import MovableClock
from tests.support.factories import make_end, make_price, make_rates, make_reservation, make_start

METERS = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
)
USAGE = TokenUsage(input=100, cached_input=50, output=20, reasoning=5)


class Desk:
    """A settlement with its spool and its clock."""

    def __init__(self, folder: Path) -> None:
        self.clock = MovableClock()
        self.spool = Spool(folder, self.clock, unshipped_max=10)
        self.settlement = Settlement(self.spool, self.clock)

    def open(self) -> OpenAttempt:
        return self.settlement.begin(make_start(estimated_input_tokens=25), make_price(), make_reservation())

    def row(self, outcome: Outcome) -> dict[str, Any]:
        self.open().end(outcome)
        (ended,) = self.spool.next_batch(2)
        return row_of(ended)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    found = Desk(tmp_path)
    yield found
    os.close(found.spool._file)


@pytest.mark.parametrize(
    ("state", "payer"),
    [
        (AttemptState.ANSWERED, "tenant"),
        (AttemptState.CANCELLED, "tenant"),
        (AttemptState.FAILED, "platform"),
        (AttemptState.INTERRUPTED, "platform"),
    ],
)
@pytest.mark.parametrize("usage", [USAGE, None])
def test_the_state_says_who_pays_and_every_state_has_its_charge(
    desk: Desk, state: AttemptState, payer: str, usage: TokenUsage | None
) -> None:
    row = desk.row(Outcome(state=state, usage=usage, produced_tokens=7))
    used = usage or TokenUsage(input=25, output=7)
    assert (row["state"], row["payer"]) == (state, payer)
    assert row["charge_usd_nanos"] == charge(used, make_rates()) > 0


def test_what_the_engine_counted_is_booked_as_measured(desk: Desk) -> None:
    row = desk.row(Outcome(state=AttemptState.ANSWERED, usage=USAGE, produced_tokens=999))
    assert row["usage_source"] == "measured"
    assert {name: row[name] for name in METERS} == {
        "input_tokens": 100,
        "cached_input_tokens": 50,
        "cache_write_tokens": 0,
        "output_tokens": 20,
        "reasoning_tokens": 5,
    }


def test_without_a_count_the_tokens_are_estimated(desk: Desk) -> None:
    row = desk.row(Outcome(state=AttemptState.CANCELLED, usage=None, produced_tokens=7))
    assert (row["usage_source"], row["input_tokens"], row["output_tokens"]) == ("estimated", 25, 7)


def test_an_attempt_that_never_reached_an_engine_costs_nothing(desk: Desk) -> None:
    outcome = Outcome(state=AttemptState.FAILED, usage=None, produced_tokens=7, reached_engine=False)
    row = desk.row(outcome)
    assert (row["usage_source"], row["input_tokens"], row["output_tokens"]) == ("none", 0, 0)
    assert row["charge_usd_nanos"] == 0


def test_an_end_says_how_it_went_and_when(desk: Desk) -> None:
    outcome = Outcome(
        state=AttemptState.FAILED,
        usage=None,
        status_code=503,
        error_code="upstream_overloaded",
        timing=AttemptTiming(ttft_ms=3, total_ms=9),
        engine=EngineMetrics(0.5, 2.5, 4, 16, 11),
    )
    row = desk.row(outcome)
    assert (row["status_code"], row["error_code"]) == (503, "upstream_overloaded")
    assert (row["ttft_ms"], row["total_ms"], row["ended_at_ms"]) == (3, 9, desk.clock.epoch_ms())
    assert (row["queue_ms"], row["generation_ms"]) == (0.5, 2.5)
    assert (row["draft_steps"], row["draft_tokens"], row["accepted_tokens"]) == (4, 16, 11)


def test_the_first_end_counts_and_later_ones_change_nothing(desk: Desk) -> None:
    attempt = desk.open()
    first = attempt.end(Outcome(state=AttemptState.ANSWERED, usage=USAGE))
    later = attempt.end(Outcome(state=AttemptState.FAILED, usage=None))
    assert first == later == attempt.charge_usd_nanos == charge(USAGE, make_rates())
    assert [ended.end.state for ended in desk.spool.next_batch(5)] == ["answered"]


def test_a_charge_is_known_before_the_end(desk: Desk) -> None:
    attempt = desk.open()
    assert attempt.charge_of(USAGE) == charge(USAGE, make_rates())
    assert attempt.charge_usd_nanos == 0
    assert desk.spool.unshipped_count == 0


def test_an_attempt_that_cannot_be_written_down_is_not_opened(tmp_path: Path) -> None:
    clock = MovableClock()
    spool = Spool(tmp_path, clock, unshipped_max=0)
    with pytest.raises(Overloaded):
        Settlement(spool, clock).begin(make_start(), make_price(), make_reservation())
    spool.close()


@pytest.mark.parametrize(("body_bytes", "tokens"), [(0, 0), (1, 1), (4, 1), (5, 2), (4_000, 1_000)])
def test_input_is_estimated_at_four_bytes_a_token(body_bytes: int, tokens: int) -> None:
    assert estimated_input_tokens(body_bytes) == tokens


# ---------------------------------------------------------------------------------------------------- records
def test_a_row_has_exactly_the_columns_of_the_table() -> None:
    assert row_of(Ended(make_start(), make_end())).keys() == Attempt.model_fields.keys()


def test_a_row_holds_plain_values() -> None:
    row = row_of(Ended(make_start(), make_end()))
    assert {type(value) for value in row.values()} <= {str, int, float, bool, dict, type(None)}


def test_an_interrupted_attempt_is_the_platforms_at_its_estimate() -> None:
    start = make_start(estimated_input_tokens=9, estimated_charge_usd_nanos=8)
    end = interrupted(start, ended_at_ms=77)
    assert (end.attempt_id, end.state, end.payer) == ("att_1", "interrupted", "platform")
    assert (end.input_tokens, end.output_tokens, end.charge_usd_nanos, end.ended_at_ms) == (9, 0, 8, 77)


# ------------------------------------------------------------------------------------------------------ holds
def test_a_hold_is_open_until_its_first_end() -> None:
    holds = Holds()
    reservation = Reservation(holds, UsdNanos(100))
    assert (holds.held_usd_nanos, holds.open_count) == (100, 1)
    assert reservation.end()
    assert not reservation.end()
    assert (holds.held_usd_nanos, holds.open_count) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 3))))
def test_what_is_held_is_the_sum_of_the_open_holds(plan: list[tuple[int, int]]) -> None:
    holds = Holds()
    reservations = [(Reservation(holds, UsdNanos(bound)), ends) for bound, ends in plan]
    for reservation, ends in reservations:
        for _ in range(ends):
            reservation.end()
    still = [bound for bound, ends in plan if not ends]
    assert (holds.held_usd_nanos, holds.open_count) == (sum(still), len(still))
