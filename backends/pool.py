"""What is a vLLM pool, and how is each of its replicas doing right now?

Values only: the specification of a pool as its YAML file states it, and frozen snapshots of live
replicas. No I/O, no processes, no prices beyond USD as the file states them (decimal, per GPU-hour and
per million tokens); the gateway turns rates into integers in `gateway.pricing`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from backends.breaker import Standing
from backends.choice import Rule
from backends.pool_sections import (
    BatchingSpec,
    ExpectedLengths,
    KvCacheSpec,
    LatencyTargets,
    ModelSpec,
    SchedulingPolicy,
    SpeculationSpec,
    Strict,
)
from backends.supply_spec import SupplySpec, supply_obstacle
from backends.warm_spec import KeepWarmSpec, SleepSpec, sleep_obstacle

FlagValue = str | int | float | bool | list[str | int | float]
"""What a pass-through vLLM flag may carry; `True` alone renders as a bare flag, `False` as `--no-…`."""

OWN_FLAGS = frozenset(
    {
        "model",
        "host",
        "port",
        "served-model-name",
        "max-model-len",
        "quantization",
        "dtype",
        "tensor-parallel-size",
        "max-num-seqs",
        "max-num-batched-tokens",
        "enable-chunked-prefill",
        "enable-prefix-caching",
        "speculative-config",
        "enable-per-request-metrics",
        "per-request-spec-decode-metrics",
        "enable-prompt-tokens-details",
        "disable-uvicorn-access-log",
        "enable-sleep-mode",
    }
)
"""Flags that the typed part of a pool file decides, so that `engine_args` cannot contradict it."""


PLAIN_NAMES = {
    "kv-cache-dtype": "kv_cache.dtype",
    "block-size": "kv_cache.block_size",
    "gpu-memory-utilization": "kv_cache.gpu_memory_utilization",
    "kv-cache-memory-bytes": "kv_cache.memory_bytes",
    "scheduling-policy": "scheduling",
    "pipeline-parallel-size": "hardware.pipeline_parallel_size",
    "data-parallel-size": "hardware.data_parallel_size",
    "max-num-queued-reqs": "batching.max_num_queued_reqs",
    "max-num-queued-tokens": "batching.max_num_queued_tokens",
}
"""Flags that have a key of their own, and that `engine_args` may still carry where that key is left out."""


def flag_name(key: str) -> str:
    """`max_num_seqs`, as YAML likes it, in the spelling of the command line: `max-num-seqs`."""
    return key.replace("_", "-")


NAME_CHARS_MAX = 56
"""A replica is its pool's name and a number, and has 64 characters in the records."""


def _plain_name(value: str) -> str:
    if len(value) > NAME_CHARS_MAX:
        message = f"a pool's name has at most {NAME_CHARS_MAX} characters"
        raise ValueError(message)
    if not value or not all(char.isalnum() or char in "-_" for char in value):
        message = "a pool's name may hold letters, digits, '-' and '_' only"
        raise ValueError(message)
    return value


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = "expected a base URL such as http://10.0.0.7:8000"
        raise ValueError(message)
    if parts.query or parts.fragment or parts.path.rstrip("/").endswith("/v1"):
        message = "expected a base URL without /v1, query or fragment: the gateway adds the path of each call"
        raise ValueError(message)
    return value.rstrip("/")


def _pass_through_flag(key: str) -> str:
    if key.startswith("-"):
        message = f"write the flag without leading dashes: '{key.lstrip('-')}'"
        raise ValueError(message)
    # One key of a flag in JSON, as in `structured_outputs_config.backend`, belongs to that flag.
    if flag_name(key).partition(".")[0] in OWN_FLAGS:
        message = f"--{flag_name(key)} follows from another key of the pool file and cannot be set twice"
        raise ValueError(message)
    return key


class RateCard(Strict):
    """What a tenant is charged on this pool, USD per million tokens and per meter (five disjoint meters)."""

    input: Decimal = Field(ge=0, description="fresh input tokens")
    cached_input: Decimal = Field(ge=0, description="input tokens found in the prefix cache")
    cache_write: Decimal = Field(default=Decimal(0), ge=0, description="tokens written to a billed cache")
    output: Decimal = Field(ge=0, description="generated tokens")
    reasoning: Decimal | None = Field(default=None, ge=0, description="left out: the output rate")
    per_request: Decimal = Field(
        default=Decimal(0),
        ge=0,
        # No part of the hash of a policy that does not use it: the grammar got it later.
        exclude_if=lambda value: value == 0,
        description="USD for each request that is answered, beside its tokens",
    )

    @model_validator(mode="after")
    def _not_free(self) -> Self:
        if self.input == 0 or self.output == 0:
            message = "input and output rates must be above 0: a pool that charges nothing cannot be budgeted"
            raise ValueError(message)
        return self


class DerivedRates(Strict):
    """What a tenant is charged on this pool, derived from what its hardware costs at a declared use of it.

    USD per million tokens = usd_per_hour / (tokens per second * 3600) * 1,000,000 / utilisation.
    """

    utilisation: Decimal = Field(gt=0, le=1, description="share of the hours that is paid for by requests")
    input_tokens_per_s: Decimal = Field(gt=0, description="one replica that only reads, tokens per second")
    output_tokens_per_s: Decimal = Field(gt=0, description="one replica that only writes, tokens per second")
    cached_input_ratio: Decimal = Field(
        default=Decimal(1), ge=0, le=1, description="cached input costs this share of fresh input"
    )


AT_EASE_MAX = 8
AT_EASE_RATIO = 4
"""So many requests, and at most this part of a batch, are never too many for one replica."""


class ReplicaChoiceSpec(Strict):
    """Which replica of the pool gets a request."""

    rule: Rule | None = Field(
        default=None, description="left out: affinity where the pool caches prefixes, least_loaded elsewhere"
    )
    load_factor: float = Field(
        default=1.25,
        ge=1,
        le=100,
        description="affinity: a replica that would have more than this times the mean load passes it on",
    )

    @model_validator(mode="after")
    def _bounds_what_it_chooses(self) -> Self:
        if "load_factor" in self.model_fields_set and self.rule not in {None, Rule.AFFINITY}:
            message = f"load_factor is for rule 'affinity'; rule '{self.rule}' balances anyway: leave it out"
            raise ValueError(message)
        return self


class HardwareSpec(Strict):
    """What one replica occupies, and what that costs the company."""

    gpu: str = Field(description="'cpu', or the GPU's name such as 'H100'")
    gpus_per_replica: int = Field(default=0, ge=0)
    tensor_parallel_size: int = Field(
        default=1, gt=0, description="GPUs that share every layer of one copy of the model"
    )
    pipeline_parallel_size: int = Field(
        default=1, gt=0, description="groups of GPUs that hold the layers of one copy one after the other"
    )
    data_parallel_size: int = Field(
        default=1, gt=0, description="copies inside one server; for a dense model rather say replicas"
    )
    gpu_memory_gib: float | None = Field(
        default=None, gt=0, description="usable on each GPU, for a GPU that is not in the table"
    )
    usd_per_hour: Decimal = Field(gt=0, description="of one replica's hardware")


class PoolSpec(Strict):
    """One pool file: interchangeable replicas of one model."""

    name: Annotated[str, AfterValidator(_plain_name)]
    description: str = ""
    driver: Literal["process", "external"]
    model: ModelSpec
    speculation: SpeculationSpec | None = None
    batching: BatchingSpec
    kv_cache: KvCacheSpec = KvCacheSpec()
    scheduling: SchedulingPolicy | None = Field(
        default=None, description="priority: by each request's priority; left out: fcfs, which ignores it"
    )
    hardware: HardwareSpec
    rates: RateCard | None = None
    derived_rates: DerivedRates | None = Field(
        default=None, description="instead of rates: what the hardware costs at a declared utilisation"
    )
    latency_targets: LatencyTargets | None = None
    expected_lengths: ExpectedLengths | None = None
    replicas: int = Field(default=1, ge=1, le=64)
    replica_choice: ReplicaChoiceSpec = ReplicaChoiceSpec()
    urls: tuple[Annotated[str, AfterValidator(_base_url)], ...] = Field(
        default=(), description="external: base URLs, without /v1"
    )
    engine_args: dict[Annotated[str, AfterValidator(_pass_through_flag)], FlagValue] = Field(
        default_factory=dict, description="other vLLM flags, no leading dashes"
    )
    env: dict[str, str] = Field(default_factory=dict, description="environment of the replicas")
    profile: str | None = Field(
        default=None, description="what `tollgate pools bench` measured; relative to the pool file"
    )
    keep_warm: KeepWarmSpec = KeepWarmSpec()
    sleep: SleepSpec | None = Field(default=None, description="left out: a replica never sleeps")
    supply: SupplySpec | None = Field(
        default=None, description="left out: hardware.usd_per_hour while a replica has its hardware"
    )

    @property
    def adapters(self) -> frozenset[str]:
        """LoRA adapters that its engines are started with, by the names that they answer to."""
        for key, value in self.engine_args.items():
            if flag_name(key) == "lora-modules":
                named = value if isinstance(value, list) else [value]
                return frozenset(str(each).partition("=")[0] for each in named)
        return frozenset()

    @property
    def reads_text_only(self) -> bool:
        """Pictures, sound and films are nothing for it; false also where its file does not say."""
        return self.model.reads == ("text",)

    @property
    def schedules_by_priority(self) -> bool:
        """Its engines go by each request's priority."""
        return "priority" in (self.scheduling, self.engine_args.get("scheduling-policy")) or (
            self.engine_args.get("scheduling_policy") == "priority"
        )

    @property
    def choice_rule(self) -> Rule:
        """How a replica is chosen for a request."""
        if self.replica_choice.rule is not None:
            return self.replica_choice.rule
        return Rule.AFFINITY if self.batching.enable_prefix_caching else Rule.LEAST_LOADED

    @property
    def requests_at_ease(self) -> int:
        """So many requests are never too many for a replica, however few the others have.

        The first few slow a batch down too little to be worth the prefixes that others would read again
        (tests/load/results/replica_choice.json).
        """
        return min(AT_EASE_MAX, max(1, self.batching.max_num_seqs // AT_EASE_RATIO))

    @model_validator(mode="after")
    def _says_each_flag_once(self) -> Self:
        typed = plain_flags(self)
        for key in self.engine_args:
            if flag_name(key) in typed:
                message = f"engine_args.{key} and {PLAIN_NAMES[flag_name(key)]} are one flag: keep the latter"
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _has_prefixes_to_go_by(self) -> Self:
        choice = self.replica_choice
        wants_affinity = choice.rule is Rule.AFFINITY or "load_factor" in choice.model_fields_set
        if wants_affinity and not self.batching.enable_prefix_caching:
            message = (
                "replica_choice: affinity brings requests to the prefixes that they share, and "
                "batching.enable_prefix_caching is off; leave replica_choice out, or cache prefixes"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _driver_has_what_it_needs(self) -> Self:
        if self.driver == "external" and not self.urls:
            message = "driver 'external' needs 'urls': the base URLs of the replicas that someone else runs"
            raise ValueError(message)
        if self.driver == "process" and self.urls:
            message = "'urls' is for driver 'external'; driver 'process' chooses its own ports"
            raise ValueError(message)
        if self.driver == "process" and self.model.path is None:
            message = "driver 'process' needs model.path: the folder of the weights it shall serve"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _can_sleep(self) -> Self:
        message = sleep_obstacle(
            self.sleep, driver=self.driver, gpu=self.hardware.gpu, replicas=self.replicas
        )
        if message is not None:
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _can_be_paid_for(self) -> Self:
        message = supply_obstacle(self.supply, gpus=self.hardware.gpus_per_replica, driver=self.driver)
        if message is not None:
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _has_one_price(self) -> Self:
        if (self.rates is None) == (self.derived_rates is None):
            message = (
                "a pool has either 'rates' (USD per million tokens) or 'derived_rates' (tokens per second "
                "and utilisation, priced by hardware.usd_per_hour)"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _drafts_on_gpus_that_it_has(self) -> Self:
        wanted = self.speculation.draft_tensor_parallel_size if self.speculation else None
        size = self.hardware.tensor_parallel_size
        if self.speculation is None or wanted in {None, size}:
            return self
        if self.speculation.method == "draft_model":
            # vLLM 0.32, v1/spec_decode/draft_model.py: ranks would overwrite each other's compiled draft.
            message = (
                f"speculation.draft_tensor_parallel_size is {wanted}, hardware.tensor_parallel_size {size}: "
                "vLLM runs a draft model only on as many GPUs as the target; leave it out"
            )
            raise ValueError(message)
        if wanted != 1:
            message = f"speculation.draft_tensor_parallel_size must be 1 or {size}, as the target has it"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _counts_the_gpus_that_it_starts_on(self) -> Self:
        # What an external server does inside is its owner's business.
        if self.driver != "process" or self.hardware.gpu == "cpu":
            return self
        flags = {flag_name(key): value for key, value in self.engine_args.items()} | plain_flags(self)
        needed = self.hardware.tensor_parallel_size
        for flag in ("pipeline-parallel-size", "data-parallel-size"):
            size = flags.get(flag, 1)
            if not isinstance(size, int):
                message = f"engine_args: expected a whole number for {flag}"
                raise ValueError(message)  # noqa: TRY004 - pydantic reports ValueError with file and line
            needed *= size
        if self.hardware.gpus_per_replica != needed:
            message = (
                f"hardware.gpus_per_replica is {self.hardware.gpus_per_replica}, but a replica of this pool "
                f"starts on {needed}: tensor_parallel_size, times what engine_args says of other parallelism"
            )
            raise ValueError(message)
        chosen = flags.get("device-ids")
        if chosen is not None and (self.replicas > 1 or len(str(chosen).split(",")) != needed):
            message = (
                "engine_args.device_ids names the GPUs of one replica: "
                f"expected replicas 1 and {needed} of them"
            )
            raise ValueError(message)
        return self


def plain_flags(spec: PoolSpec) -> dict[str, FlagValue]:
    """Flags that keys of their own ask for; those that are left to vLLM are not among them."""
    asked = {
        "kv-cache-dtype": spec.kv_cache.dtype,
        "block-size": spec.kv_cache.block_size,
        "gpu-memory-utilization": spec.kv_cache.gpu_memory_utilization,
        "kv-cache-memory-bytes": spec.kv_cache.memory_bytes,
        "scheduling-policy": spec.scheduling,
        "pipeline-parallel-size": _if_several(spec.hardware.pipeline_parallel_size),
        "data-parallel-size": _if_several(spec.hardware.data_parallel_size),
        "max-num-queued-reqs": spec.batching.max_num_queued_reqs,
        "max-num-queued-tokens": spec.batching.max_num_queued_tokens,
    }
    return {flag: value for flag, value in asked.items() if value is not None}


def _if_several(size: int) -> int | None:
    return size if size > 1 else None


class ReplicaState(StrEnum):
    """A replica's life; only READY ones get requests."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    """It finishes what it has: its driver is about to stop it or to put it to sleep."""
    SLEEPING = "sleeping"
    """Asleep, or scaled to zero: it can be woken."""
    WAKING = "waking"
    STOPPED = "stopped"


ASLEEP = frozenset({ReplicaState.SLEEPING, ReplicaState.WAKING})
WAKEABLE = ASLEEP | {ReplicaState.DRAINING}
"""Of a pool whose replicas sleep: who is about to fall asleep stays awake when asked."""


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """What /metrics of one replica said; counters are totals of the replica's process lifetime."""

    requests_running: int
    requests_waiting: int
    kv_cache_usage_ratio: float
    prompt_tokens_total: int
    generation_tokens_total: int
    prefix_cache_query_tokens_total: int
    prefix_cache_hit_tokens_total: int
    draft_steps_total: int | None
    """None: the engine does not speculate (not the same as an acceptance of zero)."""
    draft_tokens_total: int | None
    accepted_tokens_total: int | None
    scraped_at_s: float
    """time.monotonic() of the scrape."""
    engine_steps_total: int | None = None
    """Steps that put out tokens; None: the server does not count them."""

    @property
    def mean_acceptance_length(self) -> float | None:
        """Tokens per target step over the process lifetime, the bonus token included; None without data."""
        if not self.draft_steps_total or self.accepted_tokens_total is None:
            return None
        return 1 + self.accepted_tokens_total / self.draft_steps_total


@dataclass(frozen=True, slots=True)
class ReplicaSnapshot:
    """One replica at one moment."""

    pool: str
    replica: str
    """Unique over all pools, such as `speculative-0`."""
    url: str
    """Base URL without /v1 and without a trailing slash."""
    state: ReplicaState
    in_flight: int
    """Requests that this gateway process has under way there."""
    load: ReplicaLoad | None
    consecutive_failures: int
    detail: str = ""
    """Why it is not ready, for people."""
    breaker: Standing = field(default_factory=Standing)


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """One pool at one moment."""

    spec: PoolSpec
    replicas: tuple[ReplicaSnapshot, ...] = field(default=())

    @property
    def ready_count(self) -> int:
        """Replicas that can take a request now."""
        return sum(1 for replica in self.replicas if replica.state is ReplicaState.READY)

    @property
    def is_within_reach(self) -> bool:
        """A replica can take a request now, or could once it is awake."""
        if self.ready_count:
            return True
        return self.spec.sleep is not None and any(one.state in WAKEABLE for one in self.replicas)
