"""Which pools does the simulated fleet have, how fast are they, what do they accept, and what do they cost?

One model, Llama 3.1 8B, on one card per replica, quantized in every pool but one: 4-bit weights (AWQ) on
A100, FP8 on H100. Step times start from `backends/profiles/{a100,h100}-llama-3.1-8b.json`, which name their
sources; what quantization changes is arithmetic on them (modelled, nobody measured it here):

- A100, 4 bit: 4.68 GB are read in a step instead of 16.06 (6.98e9 weights of linear layers at 4.156 bit,
  the output embedding at 16) at the same 78 % of 2.039 TB/s, and 1.207 ms of overhead; arithmetic stays as
  it is.
- H100, FP8: 8.03 GB at the same 81 % of 3.35 TB/s, the same overhead; arithmetic at the ratio of the peaks
  (989 / 1979 TFLOPS).
- A draft of 1.24e9 weights at 16 bit: three passes of 2.47 GB a step at 78 %; 16 layers of cache. What the
  draft needs to read prompts is left out, which flatters that pool.

Room for the cache is 92 % of 79.25 GiB less weights and 2 GiB, 128 KiB a token (`reference` arithmetic of
`tollgate pools check`). Prices are Lambda's on demand per GPU-hour (tracker datareceipts/data-receipts of
2026-11-09): A100 80 GB 2.79, H100 SXM 3.99.

Acceptance by method and task: vLLM with Llama-3.1-8B where it was profiled (SpecDecode-Bench, arXiv
2601.11580; per position, from the profiles), other tasks by their ratio to the same system's average on
Spec-Bench (A100, Vicuna, greedy; translation, QA, retrieval) and Medusa's tokens per step (code, creative).
All greedy; drafts by position of the untabled tasks are the nearest tabled ones, scaled. What a company's own
traffic accepts is drawn around that (`DEVIATION`), because no published figure is anybody's own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Final

from backends.choice import Rule
from backends.pool import HardwareSpec, PoolSpec, RateCard, ReplicaChoiceSpec
from backends.pool_sections import BatchingSpec, ExpectedLengths, ModelSpec, SpeculationSpec
from backends.profile import DraftCost, Profile, load_profile
from backends.simulator.calibration import Guessing, SimulatedPool
from gateway.inference import TaskType
from tests.load.fleet.traffic import Means
from tests.load.measured import ROOT

PROFILES: Final = ROOT / "backends" / "profiles"
USD_PER_HOUR: Final = {"a100": Decimal("2.79"), "h100": Decimal("3.99")}
PROPOSED: Final = 3
"""Tokens that every speculating pool proposes per step."""
DEVIATION: Final = 0.15
"""Of the logarithm of what is accepted of a draft, between companies."""
MAX_MODEL_LEN: Final = 16_384
SEATS: Final = 256
CONTEXT_TOKEN_BYTES: Final = 131_072
OVERHEAD_S: Final = 1.207e-3
ONE: Final = TaskType


# ------------------------------------------------------------------------------------- what drafts come to
_TABLED: Final = {
    ONE.CODE: "code",
    ONE.MATH: "math",
    ONE.SUMMARIZATION: "summarization",
    ONE.CHAT: "chat",
}
"""Workloads that were profiled: code editing, GSM8K, CNN summaries, ShareGPT."""
_NEAREST: Final = {
    ONE.STRUCTURED: "code",
    ONE.REWRITING: "code",
    ONE.CREATIVE: "chat",
    ONE.BRAINSTORMING: "chat",
    ONE.EXTRACTION: "summarization",
    ONE.CLASSIFICATION: "summarization",
    ONE.QA: "math",
    ONE.TRANSLATION: "math",
}
_RATIOS: Final[dict[str, dict[TaskType, float]]] = {
    "ngram": {ONE.TRANSLATION: 0.689, ONE.QA: 0.734, ONE.EXTRACTION: 1.086, ONE.CLASSIFICATION: 1.086},
    "eagle3": {ONE.TRANSLATION: 0.876, ONE.QA: 0.933, ONE.EXTRACTION: 0.887, ONE.CLASSIFICATION: 0.887},
    "draft_model": {
        ONE.TRANSLATION: 0.766,
        ONE.SUMMARIZATION: 1.105,
        ONE.QA: 0.981,
        ONE.MATH: 1.015,
        ONE.EXTRACTION: 1.059,
        ONE.CLASSIFICATION: 1.059,
        ONE.CHAT: 1.086,
        ONE.CODE: 1.126,
        ONE.STRUCTURED: 1.126,
        ONE.REWRITING: 1.105,
        ONE.CREATIVE: 0.976,
        ONE.BRAINSTORMING: 0.976,
    },
}
"""Tokens per step over the average of the same system, where a task was not profiled itself."""


@cache
def published(method: str) -> Mapping[TaskType, tuple[float, ...]]:
    """Share of drafts that reach each position, by task, as published or scaled from that."""
    known = {
        one.task: one.by_position[:PROPOSED]
        for one in load_profile(PROFILES / "h100-llama-3.1-8b.json").acceptance
        if one.method == method
    }
    average = sum(1 + sum(one) for one in known.values()) / len(known)
    found = {}
    for task in TaskType:
        curve = known[_TABLED.get(task) or _NEAREST[task]]
        ratio = _RATIOS[method].get(task)
        found[task] = curve if ratio is None else _scaled(curve, (average * ratio - 1) / sum(curve))
    return found


def _scaled(curve: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(min(0.98, max(0.0, share * factor)) for share in curve)


def acceptance(method: str, seed: int) -> dict[TaskType, tuple[float, ...]]:
    """What one company's traffic accepts."""
    chance = random.Random(f"{method} {seed}")
    return {
        task: _scaled(curve, math.exp(chance.gauss(0.0, DEVIATION)))
        for task, curve in published(method).items()
    }


# ------------------------------------------------------------------------------------------------ the pools
@dataclass(frozen=True, slots=True)
class Pool:
    """One kind of replica."""

    name: str
    card: str
    method: str | None = None
    """Of speculation; None: a plain pool."""
    is_quantized: bool = True

    @property
    def usd_per_hour(self) -> Decimal:
        """Of a replica: one card."""
        return USD_PER_HOUR[self.card]


PLAIN_A100: Final = Pool("plain-a100", "a100")
PLAIN_H100: Final = Pool("plain-h100", "h100")
NGRAM_A100: Final = Pool("ngram-a100", "a100", "ngram")
DRAFT_A100: Final = Pool("draft-a100", "a100", "draft_model")
EAGLE_H100: Final = Pool("eagle-h100", "h100", "eagle3")
EAGLE_16_A100: Final = Pool("eagle16-a100", "a100", "eagle3", is_quantized=False)


@cache
def profile_of(pool: Pool) -> Profile:
    """How fast a replica is."""
    base = load_profile(PROFILES / f"{pool.card}-llama-3.1-8b.json")
    times, costs = base.step_time, dict(base.draft_costs)
    if pool.is_quantized and pool.card == "a100":
        times = times.model_copy(update={"fixed_s": 4.68e9 / (2.039e12 * 0.78) + OVERHEAD_S})
    elif pool.is_quantized:
        times = times.model_copy(
            update={
                "fixed_s": 8.03e9 / (3.35e12 * 0.81) + OVERHEAD_S,
                "batched_token_s": times.batched_token_s * 989 / 1979,
            }
        )
    if pool.method == "draft_model":
        costs["draft_model"] = DraftCost(
            fixed_s=PROPOSED * 2.47e9 / (2.039e12 * 0.78),
            proposed_token_s=2 * 1.236e9 / (312e12 * 0.70),
            kv_token_s=PROPOSED * 32_768 / 2.039e12,
        )
    update = {
        "pool": pool.name,
        "method": pool.method,
        "num_speculative_tokens": PROPOSED if pool.method else 0,
        "provenance": base.provenance.model_copy(update={"kind": "modelled"}),
        "engine": base.engine.model_copy(
            update={"max_num_seqs": SEATS, "kv_cache_tokens": _cache_tokens(pool)}
        ),
        "step_time": times.model_copy(update={"sources": {}}),
        "draft_costs": costs,
        "acceptance": (),
    }
    return Profile.model_validate(base.model_copy(update=update).model_dump())


def _cache_tokens(pool: Pool) -> int:
    weights_gb = {("a100", True): 5.7, ("h100", True): 9.1, ("a100", False): 16.1}[
        pool.card, pool.is_quantized
    ]
    token_bytes = CONTEXT_TOKEN_BYTES
    if pool.method == "draft_model":
        weights_gb, token_bytes = weights_gb + 2.5, token_bytes + 32_768
    room = (79.25 * 0.92 - 2) * 2**30 - weights_gb * 1e9
    return int(room / token_bytes)


def simulated(pool: Pool, seed: int) -> SimulatedPool:
    """A replica of it, with what one company's traffic accepts."""
    profile = profile_of(pool)
    if pool.method is None:
        return SimulatedPool(profile.engine, profile.step_time)
    drafts = {task.value: Guessing(curve) for task, curve in acceptance(pool.method, seed).items()}
    return SimulatedPool(
        profile.engine,
        profile.step_time,
        draft=profile.draft_costs[pool.method],
        draft_tokens=PROPOSED,
        guessing={**drafts, "": drafts[TaskType.CHAT.value]},
    )


def spec_of(pool: Pool, replicas: int, *, means: Means, folder: Path) -> PoolSpec:
    """Its file, as the gateway reads it.

    Args:
        pool: which.
        replicas: how many.
        means: of the traffic, as its operator knows it.
        folder: where its profile is written: times as a bench would have found them, no acceptance.
    """
    path = folder / f"{pool.name}.json"
    if not path.exists():
        path.write_text(profile_of(pool).model_dump_json())
    speculation = None
    if pool.method is not None:
        needs_model = pool.method in {"draft_model", "eagle3"}
        speculation = SpeculationSpec(
            method=pool.method,  # type: ignore[arg-type]  # one of those that it knows
            model="draft" if needs_model else None,
            num_speculative_tokens=PROPOSED,
        )
    engine = profile_of(pool).engine
    return PoolSpec(
        name=pool.name,
        driver="external",
        urls=tuple(f"http://{pool.name}-{number}:8000" for number in range(replicas)),
        model=ModelSpec(served_name="llama-3.1-8b", max_model_len=MAX_MODEL_LEN),
        speculation=speculation,
        batching=BatchingSpec(
            max_num_seqs=SEATS,
            max_num_batched_tokens=engine.max_num_batched_tokens,
        ),
        hardware=HardwareSpec(gpu=pool.card.upper(), gpus_per_replica=1, usd_per_hour=pool.usd_per_hour),
        rates=RateCard(input=Decimal("0.05"), cached_input=Decimal("0.01"), output=Decimal("0.20")),
        expected_lengths=ExpectedLengths(
            input_tokens=round(means.input_tokens), output_tokens=round(means.output_tokens)
        ),
        profile=str(path),
        # The traces say nothing of prefixes, and these engines cache none.
        replica_choice=ReplicaChoiceSpec(rule=Rule.LEAST_LOADED),
    )


# ----------------------------------------------------------------------------------------------- the fleets
@dataclass(frozen=True, slots=True)
class Fleet:
    """So many replicas of some pools."""

    name: str
    pools: tuple[tuple[Pool, int], ...]
    """In the order in which a policy prefers them for predictable tasks; plain pools are last."""

    @property
    def usd_per_hour(self) -> float:
        """Of all cards, used or not."""
        return sum(float(pool.usd_per_hour) * count for pool, count in self.pools)

    @property
    def replicas(self) -> int:
        """All together."""
        return sum(count for _, count in self.pools)

    def all_of(self, pool: Pool) -> Fleet:
        """The same cards, every replica started like this pool's."""
        return Fleet(f"{self.name}, all {pool.name}", ((pool, self.replicas),))

    @property
    def is_of_one_card(self) -> bool:
        """Each of its pools could be started on any of its cards."""
        return len({pool.card for pool, _ in self.pools}) == 1


FLEETS: Final = (
    Fleet("A100: n-gram, plain", ((NGRAM_A100, 4), (PLAIN_A100, 4))),
    Fleet("A100: draft model, plain", ((DRAFT_A100, 4), (PLAIN_A100, 4))),
    Fleet("A100: EAGLE-3 in 16 bit, plain", ((EAGLE_16_A100, 4), (PLAIN_A100, 4))),
    Fleet("H100: EAGLE-3, plain", ((EAGLE_H100, 4), (PLAIN_H100, 4))),
    Fleet("H100: EAGLE-3; A100: n-gram, plain", ((EAGLE_H100, 3), (NGRAM_A100, 3), (PLAIN_A100, 3))),
)
