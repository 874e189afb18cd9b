"""Are spans of time written as OpenAI writes them?"""

from __future__ import annotations

import pytest

from gateway.api.rate_limit_headers import duration, rate_limit_headers


@pytest.mark.parametrize(
    ("milliseconds", "said"),
    [
        (0, "0s"),
        (20, "20ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (8_640, "8.64s"),
        (59_007, "59.007s"),
        (60_000, "1m0s"),
        (90_951, "1m30.951s"),
        (360_000, "6m0s"),
    ],
)
def test_spans_are_written_as_openai_writes_them(milliseconds: int, said: str) -> None:
    assert duration(milliseconds) == said


def test_without_limits_nothing_is_said() -> None:
    assert rate_limit_headers(None) == []
