"""What is thought of a pool before any request has been measured?

Its own profile where it has one (`tollgate pools bench`), published figures elsewhere: the step times and
the acceptance by method and position of vLLM on an H100 (`backends/profiles/h100-llama-3.1-8b.json`, which
names its sources). For other hardware the times are wrong by a factor, but by the same one for all loads: the
first requests correct it (`learning.py`), and until then nothing is overturned on the strength of it.

Which published workload stands for which task is a judgement. Where drafts are guessed by looking up the
prompt, what counts is how much of it is copied; with trained drafts the tasks differ little.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

import backends
from backends.pool import PoolSpec
from backends.profile import DraftCost, Profile, load_profile
from gateway.inference import CREATIVE_TASKS, Nature, TaskType
from gateway.routing.learning import Belief

_PUBLISHED: Final = Path(backends.__file__).parent / "profiles" / "h100-llama-3.1-8b.json"
_METHODS: Final = {
    "ngram_gpu": "ngram",
    "suffix": "ngram",
    "eagle": "eagle3",
    "mtp": "eagle3",
    "medusa": "draft_model",
}
"""Methods without figures of their own, and whose are taken."""
_WORKLOADS: Final = {
    TaskType.CODE: "code",
    TaskType.STRUCTURED: "code",
    TaskType.REWRITING: "code",  # an edit copies most of its input, as code editing does
    TaskType.MATH: "math",
    TaskType.QA: "math",
    TaskType.TRANSLATION: "math",  # nothing to copy (Spec-Bench: prompt lookup gains 3 to 15 %)
    TaskType.SUMMARIZATION: "summarization",
    TaskType.EXTRACTION: "summarization",
    TaskType.CLASSIFICATION: "summarization",
}
_WORKLOAD_DEFAULT: Final = "chat"

OWN_WEIGHT: Final = 6.0
OTHERS_WEIGHT: Final = 2.0
"""So many requests outweigh a prior: from the pool's own profile, from somebody else's."""
OWN_RATIO: Final = 0.15
KIN_RATIO: Final = 0.25
OTHERS_RATIO: Final = 0.35
"""How wrong acceptance may be, one standard deviation: measured for the task, for another, published."""
STEP_OWN: Final = Belief(0.0, 0.3, 2.0)
STEP_OTHERS: Final = Belief(0.0, 1.5, 0.05)
"""Logarithm of the true step time over the modelled one."""
OUTPUT_TOKENS: Final = 200.0
OUTPUT_WEIGHT: Final = 2.0
TTFT_SPREAD: Final = 0.5
STEP_SPREAD: Final = 0.2
"""Deviation of single requests' logarithms, before they are known."""


class Pace(msgspec.Struct, frozen=True):
    """How fast one replica works by its model: a step takes `fixed_s + sequence_s * sequences`."""

    fixed_s: float
    sequence_s: float
    prompt_token_s: float
    """Of reading one token of a prompt."""
    request_s: float
    """Before the engine sees a request."""
    seats: int
    """Requests generated together."""
    chunk_tokens: int
    """Of prompts, read in one step."""
    is_measured: bool
    """With this pool's own bench, not taken from elsewhere."""


class Priors:
    """Profiles of the pools, and what stands in for those that have none."""

    def __init__(self, specs: Mapping[str, PoolSpec]) -> None:
        """Read them.

        Raises:
            ProfileError: a file cannot be used; says which and why.
        """
        self._published = load_profile(_PUBLISHED)
        self._profiles = {
            name: load_profile(Path(spec.profile)) for name, spec in specs.items() if spec.profile is not None
        }

    @property
    def published(self) -> Profile:
        """What stands in for pools without a profile of their own."""
        return self._published

    def profile(self, pool: str) -> Profile | None:
        """The pool's own, where it has one."""
        return self._profiles.get(pool)

    def pace(self, spec: PoolSpec, live_tokens: float) -> Pace:
        """How fast a replica is thought to be.

        Args:
            spec: the pool.
            live_tokens: what a request holds of the cache, on average.
        """
        own = self._profiles.get(spec.name)
        profile = own or self._published
        times, draft, guesses = profile.step_time, DraftCost(), 0
        if spec.speculation is not None:
            draft = self._draft_cost(profile, spec.speculation.method)
            guesses = spec.speculation.num_speculative_tokens
        more = 1 + draft.verify_ratio
        # Every guess is one more token that the target computes.
        sequence_s = times.batched_token_s * (1 + guesses) + times.sequence_s + times.kv_token_s * live_tokens
        drafting_s = draft.proposed_token_s * guesses + draft.kv_token_s * live_tokens
        return Pace(
            (times.fixed_s + draft.fixed_s) * more,
            (sequence_s + drafting_s) * more,
            times.batched_token_s,
            times.request_s,
            spec.batching.max_num_seqs,
            spec.batching.max_num_batched_tokens,
            own is not None and own.provenance.kind == "measured",
        )

    def _draft_cost(self, profile: Profile, method: str) -> DraftCost:
        for costs in (profile.draft_costs, self._published.draft_costs):
            for name in (method, _METHODS.get(method, method)):
                if name in costs:
                    return costs[name]
        return self._published.draft_costs["eagle3"]

    def accepted(self, spec: PoolSpec, task: TaskType) -> Belief:
        """Tokens that are accepted per verification step, of a pool that speculates."""
        if spec.speculation is None:
            return Belief(0.0, 0.0, 0.0)
        method, guesses = spec.speculation.method, spec.speculation.num_speculative_tokens
        own = self._profiles.get(spec.name)
        if own is not None:
            nature = Nature.CREATIVE if task in CREATIVE_TASKS else Nature.PREDICTABLE
            known = [each for each in own.acceptance if each.method == method]
            for each in known:
                if each.task == task:
                    return _belief(each.by_position, guesses, wrong_ratio=OWN_RATIO, weight=OWN_WEIGHT)
            for each in known:
                if each.nature == nature:
                    return _belief(each.by_position, guesses, wrong_ratio=KIN_RATIO, weight=OTHERS_WEIGHT)
        name = _METHODS.get(method, method)
        workload = _WORKLOADS.get(task, _WORKLOAD_DEFAULT)
        published = [each for each in self._published.acceptance if each.method == name]
        best = next((each for each in published if each.task == workload), published[0])
        return _belief(best.by_position, guesses, wrong_ratio=OTHERS_RATIO, weight=OTHERS_WEIGHT)


def _belief(by_position: tuple[float, ...], guesses: int, *, wrong_ratio: float, weight: float) -> Belief:
    accepted = sum(by_position[:guesses])
    if guesses > len(by_position) > 1:  # goes on as it did
        last, ratio = by_position[-1], by_position[-1] / by_position[-2] if by_position[-2] else 0.0
        for _ in range(guesses - len(by_position)):
            last *= ratio
            accepted += last
    return Belief(accepted, wrong_ratio * (1 + accepted), weight)
