"""What does a simulated replica need to know of a pool, and how does a profile tell it?

The formula of a step is the profile's (`backends.profile`). Not modelled, because no profile measures it: a
number of proposed tokens that varies with the batch, pre-empting by priority, and requests of one task that
differ in how well they can be guessed (their spread in time per token comes out too small).
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from backends.profile import DraftCost, Engine, Profile, StepTime

NO_LIMIT_TOKENS: Final = 1 << 40
_DRAWN_TOKENS_MAX: Final = 256
"""Longer answers draw their number of steps at once, from the normal distribution that it tends to."""


@dataclass(frozen=True, slots=True)
class Guessing:
    """How many tokens a verified step yields, by chance."""

    by_position: tuple[float, ...]
    """Share of drafts whose token at this position is accepted; falling."""

    def steps(self, tokens: int, draw: random.Random) -> int:
        """Draw how many steps so many tokens take; the last one may yield fewer than it could."""
        if tokens <= 0:
            return 0
        if tokens > _DRAWN_TOKENS_MAX:
            return self._steps_of_many(tokens, draw)
        rising = self.by_position[::-1]
        most = len(rising) + 1
        count, uniform, place = 0, draw.random, bisect.bisect_right
        while tokens > 0:
            tokens -= most - place(rising, uniform())
            count += 1
        return count

    def _steps_of_many(self, tokens: int, draw: random.Random) -> int:
        """Renewal theory: tokens / mean steps, with variance tokens * variance / mean³."""
        mean = 1.0 + sum(self.by_position)
        square = 1.0 + sum((2 * place + 1) * share for place, share in enumerate(self.by_position, start=1))
        spread = math.sqrt(max(0.0, tokens * (square - mean * mean) / mean**3))
        least = -(-tokens // (len(self.by_position) + 1))
        return min(tokens, max(least, round(draw.gauss(tokens / mean, spread))))


@dataclass(frozen=True, slots=True)
class SimulatedPool:
    """All that a replica of it does."""

    engine: Engine
    step_time: StepTime
    draft: DraftCost = field(default_factory=DraftCost)
    draft_tokens: int = 0
    """Proposed per step and sequence (K); 0: no speculation."""
    guessing: Mapping[str, Guessing] = field(default_factory=dict)
    """By task; "" for those that are not named."""
    prefix_block_tokens: int = 0
    """Tokens of a named block of `SimulatedRequest.prefix`; 0: the prefix cache finds nothing."""

    def __post_init__(self) -> None:
        if self.draft_tokens and "" not in self.guessing:
            raise ValueError("speculation needs an acceptance for tasks that are not named: guessing['']")

    @classmethod
    def of(
        cls,
        profile: Profile,
        *,
        speculation: tuple[str, int] | None = None,
        kv_cache_tokens: int | None = None,
        prefix_block_tokens: int | None = None,
    ) -> Self:
        """The pool of a profile, as it was measured.

        Args:
            profile: of the pool.
            speculation: method and number of proposed tokens, for a profile that knows several methods; None:
                what the profile's own pool does.
            kv_cache_tokens: instead of the profile's; without either there is no limit.
            prefix_block_tokens: what the requests' named blocks hold; None: the engine's block size.

        Raises:
            ValueError: the profile knows no cost or no acceptance for the method.
        """
        engine = profile.engine
        if kv_cache_tokens is not None:
            engine = engine.model_copy(update={"kv_cache_tokens": kv_cache_tokens})
        block = engine.block_size if prefix_block_tokens is None else prefix_block_tokens
        block = block if engine.enable_prefix_caching else 0
        if speculation is None and profile.method is None:
            return cls(engine, profile.step_time, prefix_block_tokens=block)
        method, tokens = speculation or (str(profile.method), profile.num_speculative_tokens)
        if method not in profile.draft_costs:
            known = ", ".join(profile.draft_costs) or "none"
            raise ValueError(
                f"the profile of '{profile.pool}' has no cost of drafting by '{method}' (known: {known}): "
                "measure a pool that speculates so"
            )
        return cls(
            engine,
            profile.step_time,
            draft=profile.draft_costs[method],
            draft_tokens=tokens,
            guessing=_guessing(profile, method, tokens),
            prefix_block_tokens=block,
        )

    @property
    def capacity_tokens(self) -> int:
        """Of the key/value cache, whole blocks."""
        known = self.engine.kv_cache_tokens
        if known is None:
            return NO_LIMIT_TOKENS
        return known // self.engine.block_size * self.engine.block_size

    @property
    def sequences_max(self) -> int:
        """Decoded together: a step must have room for a token of each, and for those that are proposed."""
        return max(
            1, min(self.engine.max_num_seqs, self.engine.max_num_batched_tokens // (1 + self.draft_tokens))
        )

    def step_s(self, *, tokens: float, context_tokens: float, sequences: float, proposed: float) -> float:
        """One step.

        Args:
            tokens: computed by the target.
            context_tokens: attended to.
            sequences: in the step.
            proposed: by the draft, of all sequences.
        """
        time = self.step_time
        target_s = (
            time.fixed_s
            + time.batched_token_s * tokens
            + time.kv_token_s * context_tokens
            + time.sequence_s * sequences
        )
        if not self.draft_tokens:
            return target_s
        draft = self.draft
        return (
            target_s * (1.0 + draft.verify_ratio)
            + draft.fixed_s
            + draft.proposed_token_s * proposed
            + draft.kv_token_s * context_tokens
        )

    @property
    def context_token_s(self) -> float:
        """What a token of context adds to every step."""
        if not self.draft_tokens:
            return self.step_time.kv_token_s
        return self.step_time.kv_token_s * (1.0 + self.draft.verify_ratio) + self.draft.kv_token_s


def _guessing(profile: Profile, method: str, tokens: int) -> dict[str, Guessing]:
    """By task, cut to the pool's number of tokens; "" is the mean over the tasks, each counted alike."""
    known = {one.task: one.by_position[:tokens] for one in profile.acceptance if one.method == method}
    if not known:
        raise ValueError(f"the profile of '{profile.pool}' has no acceptance for method '{method}'")
    length = min(len(one) for one in known.values())
    if length < tokens:
        raise ValueError(
            f"the profile of '{profile.pool}' knows the acceptance by '{method}' of {length} positions, "
            f"not of {tokens}"
        )
    mean = tuple(sum(one[place] for one in known.values()) / len(known) for place in range(length))
    return {task: Guessing(one) for task, one in known.items()} | {"": Guessing(mean)}
