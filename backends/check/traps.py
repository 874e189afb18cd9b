"""What of this pool starts, and then does something that is easily not meant?

Each rule looks at one pool and says one thing, with its line and what to do. They are facts of vLLM 0.32.0
(its source, or issues of its repository where the number is given); the ones that vLLM refuses at the start
are errors here, so that a snapshot finds them too. Nothing is asked of a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from backends.check.findings import Edit, Finding, Severity, line_of
from backends.check.fit import DEFAULT_UTILISATION, GIB, Fit, NoFit, flags_of, number
from backends.check.shapes import ModelShape, bits_of, shape_of
from backends.check.snapshot import Snapshot
from backends.gpus import Gpu, gpu_of
from backends.pool import PLAIN_NAMES, FlagValue, PoolSpec, flag_name
from backends.yaml_source import KeyPath

CPU_HEAD_DIMS = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})
"""v1/attention/backends/cpu_attn.py:69; others end the engine at its first request."""
NOT_ON_CPU = (
    "mxfp4",
    "gpt_oss_mxfp4",
    "mxfp8",
    "modelopt_mxfp8",
    "modelopt_fp4",
    "nvfp4_per_token",
    "humming",
)
ASYNCHRONOUS = frozenset({"eagle", "eagle3", "mtp", "draft_model", "ngram_gpu"})
"""Methods with which vLLM still schedules the next step while this one runs (config/vllm.py:1553-1644)."""
SPECULATIVE_BATCH_MAX = 128
LARGE_DRAFT_RATIO = 0.25
"""With three accepted guesses of four, a draft of a quarter of the target's size costs what it saves."""
KEEP_ALIVE_S = 5
"""vLLM closes an idle connection after so long; the gateway lets go of it after 4 s."""
EFFICIENCY_OF_READING, EFFICIENCY_OF_COMPUTING = 0.78, 0.70
"""Of bandwidth and of arithmetic, as measured on A100 (github.com/microsoft/vidur at 7d47513)."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What the rules look at."""

    spec: PoolSpec
    lines: Mapping[KeyPath, int]
    fit: Fit | NoFit
    shape: ModelShape | None
    draft: ModelShape | None
    snapshot: Snapshot
    has_cpu_repair: bool
    """This project's plug-in is in vLLM's environment (True also where there is no environment to look "
    "at)."""
    flags: Mapping[str, FlagValue] = field(default_factory=dict)

    @property
    def gpu(self) -> Gpu | None:
        """The GPU, if it is in the table."""
        return gpu_of(self.spec.hardware.gpu)

    @property
    def is_on_cpu(self) -> bool:
        """It runs without an accelerator."""
        return self.spec.hardware.gpu == "cpu"

    def engine_path(self, flag: str) -> KeyPath:
        """Where the file has this flag."""
        for key in self.spec.engine_args:
            if flag_name(key) == flag:
                return ("engine_args", key)
        return tuple(PLAIN_NAMES.get(flag, "engine_args").split("."))

    def say(self, severity: Severity, path: KeyPath, message: str, *edits: Edit) -> Finding:
        """A finding at this place."""
        return Finding(severity, path, message, line=line_of(path, self.lines), edits=edits)


def look_at(
    spec: PoolSpec,
    lines: Mapping[KeyPath, int],
    *,
    fit: Fit | NoFit,
    snapshot: Snapshot,
    has_cpu_repair: bool,
) -> list[Finding]:
    """All that the rules have to say of a pool, in the order of the file.

    Raises:
        ValueError: the config.json in the folder of the weights cannot be understood.
    """
    speculation = spec.speculation
    draft = (
        shape_of(speculation.model, speculation.shape, speculation.quantization)
        if speculation is not None and speculation.model is not None
        else None
    )
    looked = Looked(
        spec,
        lines,
        fit,
        shape_of(spec.model.path, spec.model.shape, spec.model.quantization),
        draft,
        snapshot,
        has_cpu_repair,
        flags_of(spec),
    )
    found = [finding for rule in RULES for finding in rule(looked)]
    return sorted(found, key=lambda finding: finding.line or 0)


# ------------------------------------------------------------------------------------------------- model
def _model(looked: Looked) -> Iterator[Finding]:
    spec, shape = looked.spec, looked.shape
    if "thebloke/llama-3" in (spec.model.path or "").lower():
        yield looked.say(
            Severity.WARNING,
            ("model", "path"),
            "no such repository is known: TheBloke stopped before Llama 3 came out. Confirm it on the "
            "Hub, or use hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4",
        )
    if shape is None:
        return
    wanted, has = spec.model.quantization, shape.quantization
    if wanted and has and _contradict(wanted, has) and shape.stored_bytes is not None:
        yield looked.say(
            Severity.ERROR,
            ("model", "quantization"),
            f"the checkpoint is quantized already, by {has}, and vLLM refuses another: leave it out",
            Edit(("model", "quantization"), is_removal=True),
        )
    limit = shape.context_tokens
    if limit and spec.model.max_model_len > limit and not _allows_long_contexts(spec):
        yield looked.say(
            Severity.ERROR,
            ("model", "max_model_len"),
            f"the model was made for {limit:,} tokens and vLLM refuses more: write at most {limit}",
            Edit(("model", "max_model_len"), limit),
        )
    if looked.is_on_cpu and shape.head_dim not in CPU_HEAD_DIMS:
        yield looked.say(
            Severity.ERROR,
            ("model", "path"),
            f"its attention heads have {shape.head_dim} dimensions; vLLM on a CPU knows "
            f"{', '.join(str(size) for size in sorted(CPU_HEAD_DIMS))}, and ends at the first request",
        )


def _contradict(wanted: str, has: str) -> bool:
    """Whether vLLM refuses the one for a checkpoint of the other; kinds of `modelopt` go together."""
    if wanted.startswith("modelopt") and has.startswith("modelopt"):
        return False
    bits = bits_of(wanted), bits_of(has)
    return None not in bits and bits[0] != bits[1]


def _allows_long_contexts(spec: PoolSpec) -> bool:
    overridden = "hf-overrides" in flags_of(spec)
    return overridden or spec.env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1"


def _quantization(looked: Looked) -> Iterator[Finding]:
    spec, shape, gpu = looked.spec, looked.shape, looked.gpu
    method = spec.model.quantization or (shape.quantization if shape else None)
    path: KeyPath = ("model", "quantization") if spec.model.quantization else ("model", "path")
    bits = bits_of(method) if method else None
    if looked.is_on_cpu and method in NOT_ON_CPU:
        yield looked.say(Severity.ERROR, path, f"vLLM has no {method} for CPUs: use AWQ, GPTQ or int8 there")
    if gpu is None or bits is None or shape is None or shape.parameters is None:
        return
    if bits == 8 and gpu.fp8_tflops is None and "fp8" in str(method):  # noqa: PLR2004 - bits
        yield looked.say(
            Severity.NOTE,
            path,
            f"an {gpu.name} has no FP8 arithmetic: FP8 saves half the memory there and no computing",
        )
    if shape.stored_bytes and spec.model.quantization and shape.quantization is None:
        yield looked.say(
            Severity.NOTE, path, "the weights are read in their full size and made smaller while they load"
        )
    if bits < 8 and spec.batching.max_num_seqs > _ridge(shape, gpu):  # noqa: PLR2004 - bits
        yield looked.say(
            Severity.NOTE,
            path,
            f"4 bits save bytes, not arithmetic: beyond about {_ridge(shape, gpu):.0f} tokens per step an "
            f"{gpu.name} is busy computing, as long as for 16 bits, and max_num_seqs is "
            f"{spec.batching.max_num_seqs}. It is cheap by needing fewer GPUs and in small batches",
        )


def _ridge(shape: ModelShape, gpu: Gpu) -> float:
    """Tokens per step from which computing takes longer than reading the weights, whatever the GPUs."""
    read = (shape.weight_bytes or 0) - (0 if shape.is_tied else shape.vocabulary * shape.hidden * 2)
    reading_s = read / (gpu.bandwidth_tb_per_s * 1e12 * EFFICIENCY_OF_READING)
    computing_s = 2 * (shape.parameters or 1) / (gpu.bf16_tflops * 1e12 * EFFICIENCY_OF_COMPUTING)
    return reading_s / computing_s


# ------------------------------------------------------------------------------------------- speculation
def _speculation(looked: Looked) -> Iterator[Finding]:
    speculation = looked.spec.speculation
    if speculation is None:
        return
    method = speculation.method
    path: KeyPath = ("speculation", "method")
    if looked.is_on_cpu and not looked.has_cpu_repair:
        yield looked.say(
            Severity.WARNING,
            path,
            "speculation at temperature above 0 returns wrong text on vLLM's CPU build 0.31 and 0.32: "
            "install this project's plug-in into its environment (`make engine`), or send this pool "
            "greedy requests only",
        )
    if method not in ASYNCHRONOUS:
        other = ": use ngram_gpu" if method == "ngram" and not looked.is_on_cpu else ""
        yield looked.say(Severity.NOTE, path, f"{method} switches asynchronous scheduling off{other}")
    if method == "suffix":
        needs = "needs arctic-inference==0.1.1 in vLLM's environment, which does not bring it"
        yield looked.say(Severity.NOTE, path, needs)
    if method == "ngram_gpu":
        yield looked.say(
            Severity.NOTE, path, "structured output by xgrammar fails with it (vLLM issue 52620)"
        )
    yield looked.say(
        Severity.NOTE,
        ("speculation",),
        "vLLM refuses min_p, logit_bias and custom logits processors here (400): let the policy send "
        "those to a plain pool",
    )
    if str(looked.flags.get("structured-outputs-config.backend")) == "lm-format-enforcer":
        yield looked.say(
            Severity.ERROR,
            looked.engine_path("structured-outputs-config.backend"),
            "lm-format-enforcer fails with speculation: use xgrammar or guidance",
        )
    if looked.spec.batching.max_num_seqs > SPECULATIVE_BATCH_MAX:
        yield looked.say(
            Severity.WARNING,
            ("batching", "max_num_seqs"),
            f"in a batch of {looked.spec.batching.max_num_seqs} speculation costs more than it gains (it "
            "turns at 32 to 128, by method and tokens): write 64 or less, and let a plain pool take what "
            "is beyond",
        )


def _schedule(looked: Looked) -> Iterator[Finding]:
    speculation = looked.spec.speculation
    if speculation is None or speculation.num_speculative_tokens_per_batch_size is None:
        return
    path: KeyPath = ("speculation", "num_speculative_tokens_per_batch_size")
    if number(looked.flags, "data-parallel-size", 1) > 1:
        yield looked.say(
            Severity.WARNING,
            path,
            "vLLM drops the schedule where data_parallel_size is above 1: use replicas instead",
        )
    if speculation.method not in {"eagle", "eagle3", "mtp"}:
        yield looked.say(
            Severity.WARNING,
            path,
            f"vLLM's default model runner ignores the schedule with {speculation.method} (issue 51510), "
            "and the older one loses its full CUDA graphs (issue 49548): measure first, or bound "
            "batching.max_num_seqs",
        )


def _draft(looked: Looked) -> Iterator[Finding]:
    speculation, shape, draft = looked.spec.speculation, looked.shape, looked.draft
    if speculation is None or shape is None or draft is None:
        return
    is_free = bool(speculation.engine_args.get("use_heterogeneous_vocab"))
    if speculation.method == "draft_model" and draft.vocabulary != shape.vocabulary and not is_free:
        yield looked.say(
            Severity.ERROR,
            ("speculation", "model"),
            f"its vocabulary has {draft.vocabulary:,} entries, the target's {shape.vocabulary:,}: vLLM "
            "refuses that; take a draft of the same family",
        )
    share = _layers_only(draft) / (_layers_only(shape) or 1)
    if speculation.method == "draft_model" and share > LARGE_DRAFT_RATIO:
        yield looked.say(
            Severity.WARNING,
            ("speculation", "model"),
            f"the draft's layers have {share:.0%} of the target's parameters: a guess costs about as much "
            "as it saves. Take one of a tenth or less",
        )


def _layers_only(shape: ModelShape) -> int:
    return max(0, (shape.parameters or 0) - shape.embedding_parameters)


# ------------------------------------------------------------------------------------------- parallelism
def _parallelism(looked: Looked) -> Iterator[Finding]:
    hardware, shape, flags = looked.spec.hardware, looked.shape, looked.flags
    size = hardware.tensor_parallel_size
    if shape is not None and shape.attention_heads % size:
        yield looked.say(
            Severity.ERROR,
            ("hardware", "tensor_parallel_size"),
            f"{size} GPUs cannot share {shape.attention_heads} attention heads: write a divisor of them",
        )
    elif shape is not None and size > shape.kv_heads and shape.mla_width is None:
        yield looked.say(
            Severity.NOTE,
            ("hardware", "tensor_parallel_size"),
            f"beyond {shape.kv_heads} GPUs each holds a copy of the same keys and values: the cache grows "
            "no more",
        )
    # What a pool file states has no word for experts, and of an unknown model nothing is known.
    is_dense = shape is not None and not shape.is_moe and looked.spec.model.shape is None
    for flag in ("data-parallel-external-lb", "data-parallel-rank"):
        if flag in flags and is_dense:
            yield looked.say(
                Severity.ERROR,
                looked.engine_path(flag),
                "vLLM refuses this for a dense model: write replicas, which are servers of their own "
                "that the gateway balances",
            )
    if number(flags, "data-parallel-size", 1) > 1 and is_dense:
        yield looked.say(
            Severity.WARNING,
            looked.engine_path("data-parallel-size"),
            "copies of a dense model inside one server share its front end and fail together: write replicas",
        )


# --------------------------------------------------------------------------------------- batch and queue
def _batching(looked: Looked) -> Iterator[Finding]:
    spec, fit = looked.spec, looked.fit
    if isinstance(fit, Fit) and fit.is_enough and spec.hardware.gpu != "cpu":
        held = fit.cache_tokens / spec.batching.max_num_seqs
        mean = fit.mean_tokens
        if mean is not None and held < mean:
            yield looked.say(
                Severity.WARNING,
                ("batching", "max_num_seqs"),
                f"{spec.batching.max_num_seqs} is a wish: the cache holds {fit.cache_tokens:,} tokens, "
                f"{held:,.0f} for each, and the mean request has {mean:,.0f}. Write "
                f"{max(1, int(fit.cache_tokens / mean))}, or vLLM throws requests out and computes them "
                "again",
            )
    if spec.latency_targets is None:
        return
    if spec.scheduling != "priority":
        yield looked.say(
            Severity.NOTE,
            ("latency_targets",),
            "vLLM serves in order of arrival and ignores a request's priority without a word; with "
            "scheduling: priority it heeds it",
        )
    if spec.batching.max_num_queued_reqs is None:
        yield looked.say(
            Severity.NOTE,
            ("latency_targets",),
            "vLLM's queue is unbounded: with batching.max_num_queued_reqs (running and waiting ones) it "
            "answers 503 at once, and the gateway goes elsewhere",
        )


# ------------------------------------------------------------------------------------------- engine_args
_FLAG_TRAPS: dict[str, tuple[Severity, str]] = {
    "enable-force-include-usage": (
        Severity.WARNING,
        (
            "puts usage into every chunk, and clients see what they did not ask for: leave it out, the "
            "gateway asks for usage itself"
        ),
    ),
    "api-key": (
        Severity.WARNING,
        (
            "guards only /v1, /v2, /inference and /cohere: /metrics, /tokenize and /invocations answer "
            "everybody, and everybody on the machine can read the command line. Keep the server on a private "
            "network instead"
        ),
    ),
    "disable-log-stats": (
        Severity.ERROR,
        "takes /metrics away, by which the gateway sees load, cache and acceptance: leave it out",
    ),
    "trust-request-chat-template": (
        Severity.WARNING,
        "lets every caller run a template of its own in the server: leave it out",
    ),
}


def _engine_args(looked: Looked) -> Iterator[Finding]:
    for key, value in looked.spec.engine_args.items():
        flag, path = flag_name(key), ("engine_args", key)
        if flag in _FLAG_TRAPS and value is not False:
            severity, message = _FLAG_TRAPS[flag]
            yield looked.say(severity, path, message, Edit(path, is_removal=True))
        known = looked.snapshot.flag(f"--{flag}")
        if known is not None and known.get("is_deprecated"):
            yield looked.say(
                Severity.WARNING, path, "vLLM 0.33 removes it: leave it out", Edit(path, is_removal=True)
            )
        if flag in PLAIN_NAMES:
            plain = PLAIN_NAMES[flag]
            yield looked.say(
                Severity.NOTE,
                path,
                f"has a plain name: {plain}",
                Edit(path, is_removal=True),
                Edit(tuple(plain.split(".")), value),
            )
        if flag == "prefix-caching-hash-algo" and "xxhash" in str(value):
            yield looked.say(
                Severity.WARNING,
                path,
                "its collisions can be made, and let one tenant's request meet another's cache (vLLM "
                "advisory GHSA-rm76-4mrf-v9r8): keep sha256",
            )


def _environment(looked: Looked) -> Iterator[Finding]:
    env = looked.spec.env
    if env.get("VLLM_SERVER_DEV_MODE") == "1":
        yield looked.say(
            Severity.WARNING,
            ("env", "VLLM_SERVER_DEV_MODE"),
            "opens /sleep, /collective_rpc and more to whoever reaches the port, without a key. Here it "
            "listens on 127.0.0.1; never make the port reachable from elsewhere",
        )
    keep_alive = env.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE")
    if keep_alive is not None and keep_alive.isdigit() and int(keep_alive) < KEEP_ALIVE_S:
        yield looked.say(
            Severity.WARNING,
            ("env", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"),
            "the gateway keeps an idle connection for 4 s: below 5 vLLM closes it under a request. Write "
            "5 or more",
        )


def _memory(looked: Looked) -> Iterator[Finding]:
    fit = looked.fit
    if isinstance(fit, NoFit) or looked.is_on_cpu:
        return
    if not fit.is_enough and not fit.is_close:
        # An external server runs already, and what moves weights elsewhere is not counted.
        is_sure = looked.spec.driver == "process" and not any(
            "offload" in flag or flag == "enable-expert-parallel" for flag in looked.flags
        )
        yield looked.say(Severity.ERROR if is_sure else Severity.WARNING, ("hardware",), fit.why_not())
    elif not fit.is_enough:
        yield looked.say(Severity.WARNING, ("hardware",), f"by a narrow estimate, {fit.why_not()}")
    elif fit.is_close:
        spare = (fit.cache_bytes - fit.max_model_len * fit.cache_bytes_per_token) / GIB
        yield looked.say(
            Severity.WARNING,
            ("hardware",),
            f"fits with {spare:.1f} GiB to spare on each GPU, less than this estimate is good for: try it "
            "first",
        )


RULES: tuple[Callable[[Looked], Iterator[Finding]], ...] = (
    _model,
    _quantization,
    _speculation,
    _schedule,
    _draft,
    _parallelism,
    _batching,
    _engine_args,
    _environment,
    _memory,
)


def shared_gpus(specs: Mapping[str, PoolSpec]) -> list[str]:
    """Which pools of one machine ask for more than the whole of a GPU together; a sentence for each GPU.

    A replica without `device_ids` takes the first GPUs of the machine, as CUDA counts them.
    """
    asked: dict[str, list[tuple[str, float, int]]] = {}
    for name, spec in specs.items():
        if spec.driver != "process" or spec.hardware.gpu == "cpu":
            continue
        flags = flags_of(spec)
        chosen = str(flags.get("device-ids", "")) or spec.env.get("CUDA_VISIBLE_DEVICES", "")
        first = [str(position) for position in range(spec.hardware.gpus_per_replica)]
        share = number(flags, "gpu-memory-utilization", DEFAULT_UTILISATION)
        for gpu in [each.strip() for each in chosen.split(",") if each.strip()] or first:
            asked.setdefault(gpu, []).append((name, share, spec.replicas))
    sentences = []
    for gpu, shares in sorted(asked.items()):
        total = sum(share * replicas for _, share, replicas in shares)
        if total >= 1 and sum(replicas for _, _, replicas in shares) > 1:
            names = " and ".join(
                f"{name} ({replicas} replicas)" if replicas > 1 else name for name, _, replicas in shares
            )
            sentences.append(
                f"GPU {gpu}: {names} ask for {total:.2f} of its memory, and together they may ask for less "
                "than 1. Give each its own GPUs (a pool for each, engine_args: device_ids), or a smaller "
                "kv_cache.gpu_memory_utilization"
            )
    return sentences
