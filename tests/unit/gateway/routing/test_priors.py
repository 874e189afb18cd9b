"""Is what is thought of a pool before any request taken from its profile, and else from published figures?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.pool import PoolSpec
from backends.pool_sections import SpeculationSpec
from backends.profile import ProfileError
from gateway.inference import TaskType
from gateway.routing.priors import Priors
from tests.support.factories import make_pool_spec

PROFILES = Path(__file__).resolve().parents[4] / "backends" / "profiles"


def pool(name: str = "speculative", **changes: Any) -> PoolSpec:
    return make_pool_spec(name, **changes)


def drafting(method: str, tokens: int = 3, **more: Any) -> SpeculationSpec:
    return SpeculationSpec.model_validate({"method": method, "num_speculative_tokens": tokens, **more})


def tokens_per_step(spec: PoolSpec, task: TaskType) -> float:
    return 1 + Priors({spec.name: spec}).accepted(spec, task).mean


def test_published_acceptance_is_by_method_and_task_and_number_of_guesses() -> None:
    # SpecDecode-Bench, Llama-3.1-8B: n-gram with 3 guesses 2.03 on code edits and 1.16 on GSM8K.
    ngram = pool(speculation=drafting("ngram"))
    assert tokens_per_step(ngram, TaskType.CODE) == pytest.approx(2.03, abs=0.01)
    assert tokens_per_step(ngram, TaskType.MATH) == pytest.approx(1.16, abs=0.01)
    eagle = pool(speculation=drafting("eagle3", model="/d"))
    assert tokens_per_step(eagle, TaskType.CODE) == pytest.approx(2.35, abs=0.01)
    more = pool(speculation=drafting("eagle3", 9, model="/d"))
    assert 2.63 < tokens_per_step(more, TaskType.CODE) < 3.2


@pytest.mark.parametrize("task", list(TaskType))
@pytest.mark.parametrize("method", ["ngram", "ngram_gpu", "suffix", "mtp", "draft_model", "eagle", "medusa"])
def test_every_method_and_task_has_a_prior_that_can_be_outweighed(method: str, task: TaskType) -> None:
    model: dict[str, Any] = {"model": "/draft"} if method in {"draft_model", "eagle", "medusa"} else {}
    spec = pool(speculation=drafting(method, **model))
    belief = Priors({spec.name: spec}).accepted(spec, task)
    assert 0 < belief.mean < 3
    assert belief.deviation > 0.3
    assert 0 < belief.weight <= 6
    assert Priors({spec.name: spec}).pace(spec, 300).sequence_s > 0


def test_a_profile_of_its_own_comes_first() -> None:
    spec = pool(
        speculation=drafting("draft_model", 4, model="/draft"), profile=str(PROFILES / "speculative.json")
    )
    priors = Priors({spec.name: spec})
    own = priors.profile("speculative")
    assert own is not None
    known = next(each for each in own.acceptance if each.task == "extraction")
    belief = priors.accepted(spec, TaskType.EXTRACTION)
    assert 1 + belief.mean == pytest.approx(known.tokens_per_step)
    kin = priors.accepted(spec, TaskType.CODE)
    assert kin.mean == belief.mean
    assert kin.deviation > belief.deviation
    pace = priors.pace(spec, 100)
    assert pace.is_measured
    assert pace.fixed_s == pytest.approx(own.step_time.fixed_s + own.draft_costs["draft_model"].fixed_s)


def test_a_pool_that_does_not_speculate_is_thought_of_plainly() -> None:
    plain = pool("plain")
    priors = Priors({"plain": plain})
    assert priors.accepted(plain, TaskType.CODE).mean == 0
    assert not priors.pace(plain, 100).is_measured
    assert priors.pace(plain, 100).fixed_s == pytest.approx(0.007093)
    assert priors.profile("plain") is None


def test_a_profile_that_cannot_be_used_is_told() -> None:
    with pytest.raises(ProfileError, match="nowhere"):
        Priors({"plain": pool("plain", profile="/nowhere.json")})
