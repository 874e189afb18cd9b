"""Which attempts teach, and what do they say?"""

from __future__ import annotations

from typing import Any

import pytest

from gateway.inference import AttemptState, Payer, UsageSource
from gateway.ledger.records import Ended
from gateway.lessons import LESSONS_MAX, lessons_of
from tests.support.factories import make_end, make_start

PLAIN = frozenset({"plain"})


def ended(number: int = 1, **changes: Any) -> Ended:
    starts = {"pool", "task", "cache", "modelled_step_ms", "modelled_ttft_ms"}
    start = make_start(f"att_{number}", **{name: changes[name] for name in starts & set(changes)})
    return Ended(start, make_end(f"att_{number}", **{n: v for n, v in changes.items() if n not in starts}))


def test_an_answer_says_how_long_its_steps_and_its_first_token_took() -> None:
    (stream,) = lessons_of([ended(output_tokens=5, generation_ms=40.0, ttft_ms=25, total_ms=70)], PLAIN)
    assert (stream.step_ms, stream.ttft_ms) == (10.0, 25)
    (whole,) = lessons_of([ended(output_tokens=5, generation_ms=40.0, total_ms=70)], PLAIN)
    assert whole.ttft_ms == 30.0
    (drafted,) = lessons_of(
        [ended(output_tokens=21, generation_ms=40.0, draft_steps=8, accepted_tokens=12)], PLAIN
    )
    assert (drafted.step_ms, drafted.draft_steps, drafted.accepted_tokens) == (5.0, 8, 12)


def test_an_engine_that_says_little_teaches_little() -> None:
    (lesson,) = lessons_of([ended(input_tokens=0, output_tokens=1, generation_ms=0.0)], PLAIN)
    assert (lesson.step_ms, lesson.ttft_ms, lesson.cached_ratio) == (None, None, None)
    (lesson,) = lessons_of([ended(input_tokens=30, cached_input_tokens=10)], PLAIN)
    assert (lesson.step_ms, lesson.cached_ratio) == (None, 0.25)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": AttemptState.FAILED},
        {"state": AttemptState.CANCELLED},
        {"usage_source": UsageSource.ESTIMATED},
        {"cache": "hit"},
        {"payer": Payer.PLATFORM},
        {"pool": "outside"},
    ],
)
def test_only_what_one_of_our_engines_answered_teaches(changes: dict[str, Any]) -> None:
    assert lessons_of([ended(**changes)], PLAIN) == []


def test_a_great_batch_teaches_by_an_even_sample_of_each_pool_and_task() -> None:
    batch = [ended(number, output_tokens=number) for number in range(1000)]
    batch += [ended(2000 + number, task="code") for number in range(3)]
    found = lessons_of(batch, PLAIN)
    sampled = [each.output_tokens for each in found if each.task == "extraction"]
    assert len(sampled) <= LESSONS_MAX
    assert sampled[0] == 0
    assert sampled[-1] > 900
    assert sum(each.task == "code" for each in found) == 3
