"""Does a profile become the pool that it describes, and do published constants give published speed-ups?"""

from pathlib import Path

import pytest

from backends.profile import Profile, load_profile
from backends.simulator.calibration import NO_LIMIT_TOKENS, SimulatedPool
from backends.simulator.fleet import simulate_closed_loop
from backends.simulator.requests import SimulatedRequest

H100 = Path(__file__).parents[4] / "backends" / "profiles" / "h100-llama-3.1-8b.json"
SPEED_UPS = {  # by requests at a time, computed by hand from the same constants, context left out
    ("eagle3", 3, "code"): {1: 1.79, 8: 1.72, 32: 1.54, 64: 1.38},
    ("eagle3", 3, "chat"): {1: 1.72, 8: 1.66, 32: 1.51, 64: 1.38},
    ("ngram", 3, "code"): {1: 2.00, 8: 1.90, 32: 1.66, 64: 1.46},
}


@pytest.fixture
def profile() -> Profile:
    return load_profile(H100)


@pytest.mark.parametrize(("method", "tokens", "task"), SPEED_UPS)
def test_published_constants_give_their_speed_up(
    profile: Profile, method: str, tokens: int, task: str
) -> None:
    plain = SimulatedPool.of(profile)
    speculative = SimulatedPool.of(profile, speculation=(method, tokens))
    for concurrency, speed_up in SPEED_UPS[method, tokens, task].items():
        # Answers are long beside their inputs: first tokens of others are not what is compared.
        asked = [SimulatedRequest(0, 32, 600, task)] * max(8, concurrency)
        times = [
            simulate_closed_loop(asked, pool, concurrency=concurrency).tpot_s() or 0.0
            for pool in (plain, speculative)
        ]
        assert times[0] / times[1] == pytest.approx(speed_up, rel=0.06), concurrency


def test_speculation_stops_paying_where_the_batch_is_large_and_guesses_are_bad(profile: Profile) -> None:
    speculative = SimulatedPool.of(profile, speculation=("ngram", 5))

    def gain(concurrency: int) -> float:
        asked = [SimulatedRequest(0, 32, 200, "math")] * concurrency
        plain_s = simulate_closed_loop(asked, SimulatedPool.of(profile), concurrency=concurrency).duration_s
        return plain_s / simulate_closed_loop(asked, speculative, concurrency=concurrency).duration_s

    assert gain(1) > 1.05
    assert gain(256) < 0.95


def test_the_cache_is_the_profiles_or_what_is_said_instead(profile: Profile) -> None:
    assert SimulatedPool.of(profile).capacity_tokens == NO_LIMIT_TOKENS
    assert SimulatedPool.of(profile, kv_cache_tokens=1_000).capacity_tokens == 992
    assert SimulatedPool.of(profile).prefix_block_tokens == 16
    assert SimulatedPool.of(profile, prefix_block_tokens=512).prefix_block_tokens == 512
    off = profile.engine.model_copy(update={"enable_prefix_caching": False})
    assert SimulatedPool.of(profile.model_copy(update={"engine": off})).prefix_block_tokens == 0


def test_a_batch_leaves_room_for_what_is_proposed(profile: Profile) -> None:
    small = profile.engine.model_copy(update={"max_num_seqs": 100, "max_num_batched_tokens": 240})
    small_profile = profile.model_copy(update={"engine": small})
    assert SimulatedPool.of(small_profile).sequences_max == 100
    assert SimulatedPool.of(small_profile, speculation=("eagle3", 3)).sequences_max == 60


@pytest.mark.parametrize(
    ("speculation", "complaint"),
    [
        (("draft_model", 3), "no cost of drafting by 'draft_model' .known: eagle3, ngram"),
        (("eagle3", 9), "of 5 positions, not of 9"),
    ],
)
def test_what_a_profile_does_not_know_is_not_made_up(
    profile: Profile, speculation: tuple[str, int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        SimulatedPool.of(profile, speculation=speculation)


def test_a_cost_without_an_acceptance_is_not_enough(profile: Profile) -> None:
    with pytest.raises(ValueError, match="has no acceptance for method 'ngram'"):
        SimulatedPool.of(profile.model_copy(update={"acceptance": ()}), speculation=("ngram", 3))
