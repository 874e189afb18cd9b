"""Are amounts written exactly, in sentences and beside charts?"""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.console.charts import Chart, Series
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


def test_a_chart_has_its_figures_exactly_in_words_too() -> None:
    chart = Chart(
        id="c",
        title="Charge",
        description="Bars.",
        across="Day",
        labels=["1", "2"],
        series=[Series("Charge", [1_500_000_000, None]), Series("Forecast", [2, 3], kind="line")],
        unit="usd",
    )
    assert chart.rows() == [("1", ["1.50", "0.000000002"]), ("2", ["\N{EN DASH}", "0.000000003"])]
    drawn = chart.for_script()
    assert [one["values"] for one in drawn["series"]] == [[1.5, None], [2e-9, 3e-9]]
    latency = Chart("l", "Latency", "Lines.", "Hour", ["1"], [Series("P95", [12.34])], "ms")
    assert latency.rows() == [("1", ["12.3"])]
    share = Chart("r", "Share", "Bars.", "Pool", ["a"], [Series("s", [0.371])], "ratio")
    assert share.rows() == [("a", ["37 %"])]
