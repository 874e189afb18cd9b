"""Which parts of a pool file say what a replica's memory, queue and answers shall be like?

Values only, each a section of the file with plain names for flags of vLLM 0.32 (`config/cache.py`,
`config/scheduler.py`); `backends.pool` puts them together. Tokens are input and output together unless
they say otherwise.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Unknown keys are errors: a misspelt flag must never be silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ShapeSpec(Strict):
    """A model's measures, for what cannot be read from a folder; names as in the model's own config.json."""

    num_hidden_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    head_dim: int | None = Field(
        default=None, gt=0, description="left out: hidden_size / num_attention_heads"
    )
    tie_word_embeddings: bool = False
    max_position_embeddings: int | None = Field(
        default=None, gt=0, description="the longest context it was trained for"
    )
    parameters: int | None = Field(
        default=None, gt=0, description="left out: those of a dense Llama of these measures"
    )
    weight_bits: float | None = Field(
        default=None, gt=0, le=32, description="per weight of a linear layer; left out: by the quantization"
    )


class KvCacheSpec(Strict):
    """How the keys and values of the tokens in work are kept (vLLM's cache flags)."""

    dtype: str | None = Field(
        default=None, description="such as fp8, which halves a token's share; left out: the model's own"
    )
    block_size: int | None = Field(default=None, gt=0, description="tokens per block; left out: by hardware")
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of each GPU's whole memory for this replica; left out: 0.92",
    )
    memory_bytes: int | None = Field(
        default=None, gt=0, description="of each GPU, instead of what gpu_memory_utilization leaves"
    )

    @model_validator(mode="after")
    def _one_way_to_say_how_much(self) -> Self:
        if self.memory_bytes is not None and self.gpu_memory_utilization is not None:
            message = (
                "memory_bytes takes the place of gpu_memory_utilization (vLLM ignores the latter then): "
                "say one of them"
            )
            raise ValueError(message)
        return self


class LatencyTargets(Strict):
    """What this pool is meant to keep, 95 of 100 times; routing and the planner go by it."""

    ttft_p95_ms: float | None = Field(default=None, gt=0, description="until the first token")
    tpot_p95_ms: float | None = Field(default=None, gt=0, description="for each further token")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.ttft_p95_ms is None and self.tpot_p95_ms is None:
            message = "latency_targets needs ttft_p95_ms, tpot_p95_ms or both"
            raise ValueError(message)
        return self


class ExpectedLengths(Strict):
    """The mean request that the pool is planned for; how many of them fit at once follows."""

    input_tokens: int = Field(gt=0)
    output_tokens: int = Field(gt=0)

    @property
    def mean_live_tokens(self) -> float:
        """What one request holds of the cache, averaged over its life: its answer grows from nothing."""
        return self.input_tokens + self.output_tokens / 2


SchedulingPolicy = Literal["fcfs", "priority"]
