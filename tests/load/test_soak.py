"""As many faults in half a minute as `make proof` makes in one of its ten."""

import json

from gateway.clock import Clock
from tests.load.soak import soak

SECONDS = 30


def test_half_a_minute_of_faults_leaves_the_books_right() -> None:
    figures = soak(SECONDS, seed=Clock().epoch_ms() % 1_000_000, calm_s=(1, 2.5))
    print(json.dumps(figures, indent=2))
    assert figures["answers_compared"] > 0
