"""Is the difference of a shadow told in a number, an interval, and a word that claims no more?"""

import pytest

from gateway.console.shadow import _told
from gateway.shadow_figures import Difference


@pytest.mark.parametrize(
    ("measure", "mean", "low", "high", "told"),
    [
        ("ttft_ms", None, None, None, ("not known", "", "no pair has it on both sides")),
        ("ttft_ms", 9.2, None, None, ("+9.2 ms", "", "not claimed: 7 conversations are too few")),
        ("total_ms", 27.75, 17.0, 38.4, ("+27.8 ms", "+17.0 ms to +38.4 ms", "more")),
        ("output_tokens", -3.0, -5.0, -1.0, ("-3.0", "-5.0 to -1.0", "less")),
        ("errors", 0.01, -0.02, 0.04, ("+1.00 %", "-2.00 % to +4.00 %", "no clear change")),
        (
            "charge_usd_nanos",
            3500.0,
            3500.0,
            3500.0,
            ("+0.000003500", "+0.000003500 to +0.000003500", "more"),
        ),
    ],
)
def test_a_difference_claims_what_its_interval_does(
    measure: str, mean: float | None, low: float | None, high: float | None, *, told: tuple[str, str, str]
) -> None:
    one = Difference(measure=measure, mean=mean, low=low, high=high, pairs=14, units=7)
    assert _told(one) == told
