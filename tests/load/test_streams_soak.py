"""A short form of what `make proof` does with a thousand streams for a minute."""

import json
import sys

from tests.load.streams_soak import slope, soak


def test_many_streams_at_once_all_end_whole_and_leave_nothing() -> None:
    figures = soak(streams=150, seconds=6, warm_up_s=2, tokens=8, tpot_ms=200)
    sys.stdout.write(f"\n{json.dumps(figures, indent=2)}\n")
    assert figures["streams_whole"] >= 150
    assert figures["open_files"] > 300, "a call under way is two connections"


def test_the_slope_of_a_line() -> None:
    assert slope([(0, 5.0), (1, 7.0), (2, 9.0)]) == 2
    assert slope([(1, 5.0)]) == 0
