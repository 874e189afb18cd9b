"""Which sections of a pool file say what the engine serves, how it works, and what is expected of it?

Values only, with plain names for flags of vLLM 0.32 (`config/cache.py`, `config/scheduler.py`,
`config/speculative.py`) and the rules of each section; `backends.pool` puts them together, with what the
pool costs and where it runs. Tokens are input and output together unless they say otherwise.
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


class ModelSpec(Strict):
    """Which weights the pool serves, under which name."""

    path: str | None = Field(
        default=None,
        description="folder or repository of the weights; a relative path is relative to the pool file",
    )
    served_name: str = Field(min_length=1, description="the name vLLM is asked for")
    max_model_len: int = Field(gt=0, description="context, tokens of input and output together")
    quantization: str | None = Field(default=None, description="left out: read from the checkpoint")
    dtype: str = "auto"
    shape: ShapeSpec | None = Field(
        default=None, description="its measures, where `tollgate pools check` cannot read them from a folder"
    )
    reads: tuple[Literal["text", "image", "audio", "video"], ...] | None = Field(
        default=None,
        min_length=1,
        description="what it takes beside text; [text]: nothing; left out: the engine says what it refuses",
    )


class SpeculationSpec(Strict):
    """Speculative decoding (vLLM's --speculative-config)."""

    method: Literal["draft_model", "ngram", "ngram_gpu", "suffix", "eagle", "eagle3", "mtp", "medusa"]
    model: str | None = Field(default=None, description="draft weights; relative to the pool file")
    num_speculative_tokens: int = Field(gt=0)
    num_speculative_tokens_per_batch_size: tuple[tuple[int, int, int], ...] | None = Field(
        default=None,
        min_length=1,
        description="[first, last, tokens] by requests in the batch; 0 tokens: no speculation there",
    )
    draft_tensor_parallel_size: int | None = Field(
        default=None, gt=0, description="left out: the target's tensor_parallel_size"
    )
    quantization: str | None = Field(
        default=None, description="of the draft weights; left out: read from their checkpoint"
    )
    prompt_lookup_min: int | None = Field(default=None, gt=0)
    prompt_lookup_max: int | None = Field(default=None, gt=0)
    shape: ShapeSpec | None = Field(
        default=None, exclude=True, description="the draft's measures, as in model; vLLM is not told"
    )
    engine_args: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        exclude=True,
        description="other keys of --speculative-config, such as suffix_decoding_max_tree_depth",
    )

    @model_validator(mode="after")
    def _passes_on_what_it_does_not_know(self) -> Self:
        for key in self.engine_args:
            if key in type(self).model_fields:
                message = f"'{key}' is a key of speculation itself: write it there"
                raise ValueError(message)
            if key.startswith("synthetic_") or self.engine_args[key] == "synthetic":
                # vLLM's own load tests use it: guesses are accepted whatever the target would have said.
                message = f"'{key}' accepts guesses without looking at them, so answers would be wrong"
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _schedule_covers_every_batch(self) -> Self:
        # vLLM 0.32 finds these mistakes only when the engine is built, minutes into the start
        # (v1/spec_decode/dynamic/utils.py), and cuts off too many tokens without a word.
        schedule = self.num_speculative_tokens_per_batch_size
        if schedule is None:
            return self
        if self.method == "suffix":
            message = "method 'suffix' varies its tokens itself: it takes no schedule by batch size"
            raise ValueError(message)
        ends = (0, *(last for _, last, _ in schedule))
        for before, (first, last, tokens) in zip(ends, schedule, strict=False):
            if first <= before or last < first or (before == 0 and first != 1):
                message = (
                    "num_speculative_tokens_per_batch_size needs rising ranges [first, last, tokens] "
                    f"that begin at 1 and do not overlap; [{first}, {last}, {tokens}] does not fit"
                )
                raise ValueError(message)
            if not 0 <= tokens <= self.num_speculative_tokens:
                message = f"{tokens} tokens for a batch of {first}: expected 0 to num_speculative_tokens"
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _has_the_draft_it_needs(self) -> Self:
        if self.method in _DRAFTED and self.model is None:
            message = f"method '{self.method}' needs 'model': the folder or repository of the draft weights"
            raise ValueError(message)
        if self.method not in _DRAFTED and self.model is not None:
            message = f"method '{self.method}' takes no 'model': it proposes tokens without draft weights"
            raise ValueError(message)
        if self.model is None and (self.draft_tensor_parallel_size or self.quantization):
            message = (
                "draft_tensor_parallel_size and quantization are about draft weights, and there are none"
            )
            raise ValueError(message)
        return self


_DRAFTED = frozenset({"draft_model", "eagle", "eagle3", "medusa"})


class BatchingSpec(Strict):
    """How much the engine works on at once; spelled out, never vLLM's per-hardware default."""

    max_num_seqs: int = Field(gt=0, description="requests decoded together")
    max_num_batched_tokens: int = Field(gt=0, description="tokens per engine step")
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    max_num_queued_reqs: int | None = Field(
        default=None, gt=0, description="waiting and running together; one more is answered 503 at once"
    )
    max_num_queued_tokens: int | None = Field(
        default=None,
        gt=0,
        description="prompt tokens not yet read; about the wanted TTFT times prefill speed",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            message = "max_num_batched_tokens must be at least max_num_seqs: each request needs a token"
            raise ValueError(message)
        if self.max_num_queued_reqs is not None and self.max_num_queued_reqs < self.max_num_seqs:
            # vLLM counts the running ones too (v1/engine/async_llm.py), so the batch could never fill.
            message = "max_num_queued_reqs counts running requests too: it must be at least max_num_seqs"
            raise ValueError(message)
        return self


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
