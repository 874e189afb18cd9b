"""A minute of what `make proof` does for ten."""

import json

from gateway.clock import Clock
from tests.load.soak import soak

SECONDS = 60


def test_a_minute_of_faults_leaves_the_books_right() -> None:
    figures = soak(SECONDS, seed=Clock().epoch_ms() % 1_000_000)
    print(json.dumps(figures, indent=2))
    assert figures["answers_compared"] > 0
