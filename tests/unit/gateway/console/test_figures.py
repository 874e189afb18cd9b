"""Are amounts written exactly, and do bars stand where they should?"""

from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.console.charts import BASE_PERCENT, TOP_PERCENT, bar_chart, round_scale
from gateway.console.display import count, minute, percent, usd_below_cents, usd_short, usd_to_cents
from gateway.money import usd_text

AMOUNTS = st.integers(-(2**63), 2**63 - 1)


@given(AMOUNTS)
def test_the_two_parts_of_an_amount_are_the_exact_amount(nanos: int) -> None:
    assert (usd_to_cents(nanos) + usd_below_cents(nanos)).replace(",", "") == usd_text(nanos)


@pytest.mark.parametrize(
    ("nanos", "short"),
    [
        (0, "0.00"),
        (2_000_000, "0.002"),
        (-5, "-0.000000005"),
        (1_500_000_000_000, "1,500.00"),
        (-1_234_567_890_000_000, "-1,234,567.89"),
    ],
)
def test_short_amounts_end_where_nothing_follows(nanos: int, short: str) -> None:
    assert usd_short(nanos) == short


def test_counts_shares_and_instants() -> None:
    assert count(1_234_567) == "1,234,567"
    assert [percent(ratio) for ratio in (0.0, 0.001, 0.371, 1.0)] == ["0 %", "< 1 %", "37 %", "100 %"]
    assert minute(datetime(2026, 11, 3, 14, 5, tzinfo=UTC)) == minute(1_793_714_700_000) == "2026-11-03 14:05"


@given(st.integers(1, 2**63 - 1))
def test_a_scale_holds_the_largest_amount_and_no_more_than_needed(largest: int) -> None:
    scale = round_scale(largest)
    assert largest <= scale < 2.5 * largest + 1
    assert str(scale).rstrip("0") in {"1", "2", "5"}


def test_bars_fill_the_month_and_share_the_scale() -> None:
    start, end = date(2026, 2, 1), date(2026, 3, 1)
    amounts = {date(2026, 2, 1): 10, date(2026, 2, 14): 5, date(2026, 2, 28): 1 / 1000}
    chart = bar_chart(start, end, {day: int(amount * 1000) for day, amount in amounts.items()}, today=end)
    assert len(chart.bars) == 28
    assert chart.scale == 10_000
    first, valentine, last = chart.bars[0], chart.bars[13], chart.bars[27]
    assert (first.y, first.height) == (TOP_PERCENT, BASE_PERCENT - TOP_PERCENT)
    assert valentine.height == first.height / 2
    assert 0 < last.height < 1  # seen, however little it is
    assert chart.bars[1].height == 0
    assert first.x > 0
    assert last.x + last.width < 100
    assert [bar.day.day for bar in chart.bars if bar.is_labelled] == [1, 5, 10, 15, 20, 25]
    assert not any(bar.is_today for bar in chart.bars)


def test_a_month_without_spend_has_flat_bars() -> None:
    chart = bar_chart(date(2026, 11, 1), date(2026, 12, 1), {}, today=date(2026, 11, 2))
    assert {bar.height for bar in chart.bars} == {0}
    assert [bar.day.day for bar in chart.bars if bar.is_today] == [2]
