"""Does a replica of this pool fit on its hardware, and for how many requests is there cache?

The arithmetic of vLLM 0.32's own budget (v1/worker/gpu_worker.py:740-744), with an estimate where vLLM
measures: per GPU, usable memory times gpu_memory_utilization, less weights, peak of the activations,
context and CUDA graphs; the rest is cache. Activations: max_num_batched_tokens * (6 * intermediate / TP
+ 6 * hidden) bytes, and 8 bytes per row of logits. OTHER_BYTES is typical of one card and of a few. A
running server knows better: `vllm:cache_config_info{kv_cache_size_tokens}`. On a CPU the cache has a
fixed size (VLLM_CPU_KVCACHE_SPACE) and the weights come on top. Bytes, and per GPU, unless named otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.check.shapes import ModelShape, cache_bits_of, shape_of
from backends.gpus import gpu_of
from backends.launch.command import vllm_environment
from backends.pool import FlagValue, PoolSpec, flag_name, plain_flags

GIB = 2**30
OTHER_BYTES = int(1.5 * GIB)
"""CUDA context, NCCL and CUDA graphs."""
DEFAULT_UTILISATION = 0.92
LOGITS_BYTES = 8
CLOSE_BYTES = GIB
"""Nearer to the edge than this the estimate decides nothing."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What becomes of a replica's memory."""

    hardware: str
    """Such as `2 x A100-80GB`."""
    usable_bytes: int | None
    """Of each GPU; None on a CPU."""
    utilisation: float | None
    budget_bytes: int
    """What vLLM may use of each GPU; on a CPU the cache itself."""
    weights_bytes: int
    draft_weights_bytes: int
    activation_bytes: int
    other_bytes: int
    cache_bytes: int
    """What is left for keys and values; below 0: it does not even load."""
    cache_bytes_per_token: float
    cache_tokens: int
    """Of a whole replica; 0 where nothing is left."""
    max_model_len: int
    max_num_seqs: int
    requests_at_full_length: float
    """So many of max_model_len tokens fit at once, max_num_seqs aside."""
    mean_tokens: float | None
    """What a request holds on average, by expected_lengths; None: not stated."""
    requests_at_mean_length: float | None
    """The smaller of max_num_seqs and what the cache holds of the mean request."""
    notes: tuple[str, ...]
    """What was assumed or left out."""

    @property
    def is_enough(self) -> bool:
        """At least one request of full length fits: below that vLLM refuses to start."""
        return self.cache_bytes > 0 and self.requests_at_full_length >= 1

    @property
    def is_close(self) -> bool:
        """The estimate may be wrong about it."""
        needed = self.max_model_len * self.cache_bytes_per_token
        return self.usable_bytes is not None and abs(self.cache_bytes - needed) < CLOSE_BYTES

    def why_not(self) -> str:
        """What is missing, and what can be done, for a pool that does not fit."""
        lacking = (self.max_model_len * self.cache_bytes_per_token - self.cache_bytes) / GIB
        if self.cache_bytes <= 0:
            what = f"the weights and the work on them leave {self.cache_bytes / GIB:.1f} GiB for the cache"
        else:
            what = (
                f"the cache holds {self.cache_tokens:,} tokens, and one request may have "
                f"{self.max_model_len:,} (vLLM refuses to start then)"
            )
        return (
            f"does not fit on {self.hardware}: {what}; {lacking:.1f} GiB short on each GPU. Take more "
            "GPUs per replica (hardware.tensor_parallel_size), a quantized model, fewer "
            "max_num_batched_tokens, or a shorter model.max_model_len"
        )


@dataclass(frozen=True, slots=True)
class NoFit:
    """It cannot be calculated; the text says what is missing."""

    reason: str


def fit_of(spec: PoolSpec) -> Fit | NoFit:
    """What becomes of the memory of one replica of this pool.

    Raises:
        ValueError: the config.json in the folder of the weights cannot be understood.
    """
    shape = shape_of(spec.model.path, spec.model.shape, spec.model.quantization)
    if shape is None:
        return NoFit(
            "memory not calculated: its weights are in no folder here, and their measures are not known "
            "by name; copy them from the model's config.json to model.shape"
        )
    weights = shape.weight_bytes
    if weights is None:
        return NoFit("memory not calculated: the size of such a model does not follow from its measures; "
                     "state model.shape.parameters, or put its folder here")  # fmt: skip
    draft, notes = _draft_of(spec)
    bits = cache_bits_of(str(flags_of(spec).get("kv-cache-dtype", "auto")), spec.model.dtype)
    if bits is None:
        return NoFit(
            f"memory not calculated: kv_cache.dtype {flags_of(spec)['kv-cache-dtype']} is not counted"
        )
    notes = (f"measures {shape.source}", *notes)
    if shape.windowed_layers:
        notes = (*notes, "layers with a window need less: the cache holds at least so many tokens")
    if shape.stateful_layers:
        notes = (*notes, "the state of its layers without a cache is not counted")
    memory = _memory(spec, shape, draft)
    if isinstance(memory, NoFit):
        return memory
    return _fit(spec, (shape, draft), memory, bits=bits, notes=notes)


def flags_of(spec: PoolSpec) -> Mapping[str, FlagValue]:
    """The flags beyond those that every pool has, by plain name or passed through."""
    return {flag_name(key): value for key, value in spec.engine_args.items()} | plain_flags(spec)


def number(flags: Mapping[str, FlagValue], name: str, default: float) -> float:
    """A flag's value where it is a number; what is no number is somebody else's finding."""
    value = flags.get(name, default)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


@dataclass(frozen=True, slots=True)
class _Memory:
    usable: int | None
    utilisation: float | None
    budget: int
    weights: int
    draft_weights: int
    activation: int
    other: int
    cache: int


def _draft_of(spec: PoolSpec) -> tuple[ModelShape | None, tuple[str, ...]]:
    speculation = spec.speculation
    if speculation is None or speculation.model is None:
        return None, ()
    draft = shape_of(speculation.model, speculation.shape, speculation.quantization)
    if draft is None or draft.weight_bytes is None:
        return None, ("the draft's weights and cache are not counted: state speculation.shape",)
    return draft, ()


def _parallel(spec: PoolSpec) -> tuple[int, int, int]:
    flags = flags_of(spec)
    pipeline = int(number(flags, "pipeline-parallel-size", 1))
    return spec.hardware.tensor_parallel_size, pipeline, int(number(flags, "data-parallel-size", 1))


def _memory(spec: PoolSpec, shape: ModelShape, draft: ModelShape | None) -> _Memory | NoFit:
    tensor, pipeline, _ = _parallel(spec)
    weights = (shape.weight_bytes or 0) // (tensor * pipeline)
    # vLLM 0.32 gives a draft no pipeline of its own (config/speculative.py:1777).
    drafts = (draft.weight_bytes or 0) // _draft_parallel(spec) if draft else 0
    if spec.hardware.gpu == "cpu":
        space = vllm_environment(spec, is_cpu=True).get("VLLM_CPU_KVCACHE_SPACE", "")
        if not space.isdigit() or space == "0":
            return NoFit("memory not calculated: VLLM_CPU_KVCACHE_SPACE is no whole number of GiB")
        cache = int(space) * GIB
        return _Memory(None, None, cache, weights, drafts, activation=0, other=0, cache=cache)
    usable = _usable_bytes(spec)
    if usable is None:
        return NoFit(
            f"memory not calculated: a GPU called {spec.hardware.gpu!r} is not in the table; state "
            "hardware.gpu_memory_gib, what the driver reports as its total"
        )
    flags = flags_of(spec)
    activation = activation_bytes(spec, shape)
    fixed = number(flags, "kv-cache-memory-bytes", 0)
    if fixed:
        left = usable - weights - drafts - activation - OTHER_BYTES
        cache = int(min(fixed, left))
        return _Memory(usable, None, usable, weights, drafts, activation, OTHER_BYTES, cache)
    utilisation = number(flags, "gpu-memory-utilization", DEFAULT_UTILISATION)
    budget = int(usable * utilisation)
    cache = budget - weights - drafts - activation - OTHER_BYTES
    return _Memory(usable, utilisation, budget, weights, drafts, activation, OTHER_BYTES, cache)


def _usable_bytes(spec: PoolSpec) -> int | None:
    if spec.hardware.gpu_memory_gib is not None:
        return int(spec.hardware.gpu_memory_gib * GIB)
    gpu = gpu_of(spec.hardware.gpu)
    return int(gpu.usable_gib * GIB) if gpu else None


def _draft_parallel(spec: PoolSpec) -> int:
    wanted = spec.speculation.draft_tensor_parallel_size if spec.speculation else None
    return wanted or spec.hardware.tensor_parallel_size


def activation_bytes(spec: PoolSpec, shape: ModelShape) -> int:
    """The most that the work on one step takes of each GPU, cache and weights aside (an estimate)."""
    batching = spec.batching
    per_token = 6 * shape.intermediate / spec.hardware.tensor_parallel_size + 6 * shape.hidden
    guesses = spec.speculation.num_speculative_tokens if spec.speculation else 0
    rows = min(batching.max_num_seqs * (1 + guesses), batching.max_num_batched_tokens)
    return int(batching.max_num_batched_tokens * per_token + rows * shape.vocabulary * LOGITS_BYTES)


def _fit(
    spec: PoolSpec,
    shapes: tuple[ModelShape, ModelShape | None],
    memory: _Memory,
    *,
    bits: float,
    notes: tuple[str, ...],
) -> Fit:
    _, _, copies = _parallel(spec)
    per_token = _cache_bytes(spec, shapes, bits, tokens=1)
    tokens = int(max(0, memory.cache) / per_token) * copies if per_token else 0
    full = max(0, memory.cache) * copies / _cache_bytes(spec, shapes, bits, tokens=spec.model.max_model_len)
    lengths = spec.expected_lengths
    mean = lengths.mean_live_tokens if lengths else None
    at_mean = None
    if mean is not None:
        held = max(0, memory.cache) * copies / _cache_bytes(spec, shapes, bits, tokens=mean)
        at_mean = min(float(spec.batching.max_num_seqs * copies), held)
    gpus = max(1, spec.hardware.gpus_per_replica)
    name = "CPU" if spec.hardware.gpu == "cpu" else f"{gpus} x {spec.hardware.gpu}"
    return Fit(
        hardware=name,
        usable_bytes=memory.usable,
        utilisation=memory.utilisation,
        budget_bytes=memory.budget,
        weights_bytes=memory.weights,
        draft_weights_bytes=memory.draft_weights,
        activation_bytes=memory.activation,
        other_bytes=memory.other,
        cache_bytes=memory.cache,
        cache_bytes_per_token=per_token,
        cache_tokens=tokens,
        max_model_len=spec.model.max_model_len,
        max_num_seqs=spec.batching.max_num_seqs,
        requests_at_full_length=full,
        mean_tokens=mean,
        requests_at_mean_length=at_mean,
        notes=notes,
    )


def _cache_bytes(
    spec: PoolSpec, shapes: tuple[ModelShape, ModelShape | None], bits: float, *, tokens: float
) -> float:
    """What a request with so many tokens holds of each GPU's cache, the draft's share with it."""
    tensor, pipeline, _ = _parallel(spec)
    target, draft = shapes
    held = _of_one(target, tokens, bits, tensor=tensor, spec=spec) / pipeline
    if draft is not None:
        held += _of_one(draft, tokens, bits, tensor=_draft_parallel(spec), spec=spec)
    return held


def _of_one(shape: ModelShape, tokens: float, bits: float, *, tensor: int, spec: PoolSpec) -> float:
    keeping = shape.layers - shape.stateful_layers
    windowed = min(shape.windowed_layers, keeping)
    per_full = shape.kv_bytes_per_token(bits, tensor_parallel=tensor, layers=keeping - windowed)
    if not windowed or shape.window_tokens is None:
        return per_full * tokens
    per_window = shape.kv_bytes_per_token(bits, tensor_parallel=tensor, layers=windowed)
    in_window = min(tokens, shape.window_tokens + spec.batching.max_num_batched_tokens)
    return per_full * tokens + per_window * in_window


def as_json(fit: Fit | NoFit) -> dict[str, Any]:
    """For machines: every figure, in bytes and tokens."""
    if isinstance(fit, NoFit):
        return {"is_calculated": False, "reason": fit.reason}
    names = (name for name in Fit.__slots__ if name != "notes")
    return {
        "is_calculated": True,
        "fits": fit.is_enough,
        **{name: getattr(fit, name) for name in names},
        "notes": list(fit.notes),
    }
