"""Which arguments of older guides does a pool file carry, and how are they written today?

Two tables, read off vLLM 0.32.0: flags that are gone, each with what took its place (a test has real vLLM
refuse every one of them), and vLLM's names of what a pool file calls by a plain name. Both are looked for
wherever people put them: at the top of the file, in a section, in `engine_args`. Every finding brings the
edits that settle it; nothing is changed here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from backends.check.findings import Edit, Finding, Severity, line_of
from backends.gpus import gpu_of
from backends.yaml_source import KeyPath, dotted

_SPECULATION = "the section 'speculation' (vLLM: --speculative-config) took its place"
_NOTHING = "leave it out: nothing took its place"
REMOVED_FLAGS: dict[str, str] = {
    "speculative_model": f"{_SPECULATION}: speculation: {{method: draft_model, model: …}}",
    "num_speculative_tokens": f"{_SPECULATION}: speculation.num_speculative_tokens",
    "speculative_draft_tensor_parallel_size": (
        "leave it out: a draft model runs on as many GPUs as its target "
        "(speculation.draft_tensor_parallel_size, for eagle)"
    ),
    "speculative_disable_by_batch_size": (
        "write batching.max_num_seqs: a pool of its own never has a larger batch, and the gateway sends "
        "what is beyond to the plain pool"
    ),
    "speculative_max_model_len": "leave it out: the draft follows model.max_model_len",
    "speculative_model_quantization": f"{_SPECULATION}: speculation.quantization, or read from its "
    "checkpoint",
    "speculative_disable_mqa_scorer": _NOTHING,
    "spec_decoding_acceptance_method": "leave it out: rejection sampling is the only method in production",
    "typical_acceptance_sampler_posterior_threshold": _NOTHING,
    "typical_acceptance_sampler_posterior_alpha": _NOTHING,
    "disable_logprobs_during_spec_decoding": _NOTHING,
    "num_lookahead_slots": "leave it out: it follows from speculation.num_speculative_tokens",
    "ngram_prompt_lookup_max": f"{_SPECULATION}: speculation.prompt_lookup_max",
    "ngram_prompt_lookup_min": f"{_SPECULATION}: speculation.prompt_lookup_min",
    "swap_space": "leave it out: preempted requests are computed again; kv_offloading_size offloads cache",
    "use_v2_block_manager": "leave it out: there is only one block manager",
    "num_scheduler_steps": "leave it out: asynchronous scheduling took the place of multi-step scheduling",
    "multi_step_stream_outputs": "leave it out: there is no multi-step scheduling",
    "scheduler_delay_factor": _NOTHING,
    "preemption_mode": "leave it out: preempted requests are always computed again",
    "guided_decoding_backend": "write engine_args: structured_outputs_config.backend: …",
    "guided_decoding_disable_fallback": "leave it out: name one backend, "
    "structured_outputs_config.backend: …",
    "disable_log_requests": "leave it out: requests are logged only with enable_log_requests",
    "enable_reasoning": "leave it out: reasoning_parser alone switches it on",
    "device": "leave it out: hardware.gpu says it ('cpu' or the GPU's name), vLLM finds it by itself",
    "worker_use_ray": "write engine_args: distributed_executor_backend: ray",
    "engine_use_ray": "write engine_args: distributed_executor_backend: ray",
    "max_context_len_to_capture": "leave it out: CUDA graphs follow from batching.max_num_seqs",
    "max_seq_len_to_capture": "leave it out: CUDA graphs follow from batching.max_num_seqs",
    "enable_lora_bias": _NOTHING,
    "lora_extra_vocab_size": _NOTHING,
    "long_lora_scaling_factors": _NOTHING,
    "tokenizer_pool_size": _NOTHING,
    "tokenizer_pool_type": _NOTHING,
    "qlora_adapter_name_or_path": "leave it out: bitsandbytes is no longer part of vLLM",
    "disable_async_output_proc": "write engine_args: async_scheduling: false",
    "rope_scaling": "write engine_args: hf_overrides: '{\"rope_parameters\": …}'",
    "rope_theta": "write engine_args: hf_overrides: '{\"rope_parameters\": …}'",
    "task": "write engine_args: runner: … (generate or pooling)",
    "disable_mm_preprocessor_cache": "write engine_args: mm_processor_cache_gb: 0",
    "cuda_graph_sizes": "write engine_args: cudagraph_capture_sizes: …",
}
"""Flags of older releases that 0.32 refuses, in YAML's spelling, and what to write instead."""

NO_LONGER_QUANTIZATION = {
    "bitsandbytes": "it left vLLM for a plug-in; use AWQ, GPTQ or fp8",
    "gguf": "it left vLLM for a plug-in; use the checkpoint in safetensors",
    "squeezellm": "it is gone; use AWQ or GPTQ",
    "marlin": "leave it out: Marlin is chosen where the checkpoint allows it",
}
AWQ_NAMES = frozenset({"awq", "awq_marlin", "auto_awq", "marlin"})

PLACES: dict[str, KeyPath] = {
    "max_model_len": ("model", "max_model_len"),
    "dtype": ("model", "dtype"),
    "served_model_name": ("model", "served_name"),
    "quantization": ("model", "quantization"),
    "max_num_seqs": ("batching", "max_num_seqs"),
    "max_num_batched_tokens": ("batching", "max_num_batched_tokens"),
    "enable_chunked_prefill": ("batching", "enable_chunked_prefill"),
    "enable_prefix_caching": ("batching", "enable_prefix_caching"),
    "max_num_queued_reqs": ("batching", "max_num_queued_reqs"),
    "max_num_queued_tokens": ("batching", "max_num_queued_tokens"),
    "tensor_parallel_size": ("hardware", "tensor_parallel_size"),
    "pipeline_parallel_size": ("hardware", "pipeline_parallel_size"),
    "data_parallel_size": ("hardware", "data_parallel_size"),
    "gpu_memory_utilization": ("kv_cache", "gpu_memory_utilization"),
    "kv_cache_dtype": ("kv_cache", "dtype"),
    "block_size": ("kv_cache", "block_size"),
    "kv_cache_memory_bytes": ("kv_cache", "memory_bytes"),
    "scheduling_policy": ("scheduling",),
    "speculative_config": ("speculation",),
    "spec_method": ("speculation", "method"),
    "spec_model": ("speculation", "model"),
    "spec_tokens": ("speculation", "num_speculative_tokens"),
    "gpu": ("hardware", "gpu"),
    "gpus_per_replica": ("hardware", "gpus_per_replica"),
    "usd_per_hour": ("hardware", "usd_per_hour"),
}
"""vLLM's name (or a key's own, without its section) → where a pool file has it."""

# Sections whose own keys stay; `engine_args` may also carry what has no OWN_FLAGS place (backends.pool).
_SECTIONS = ("model", "speculation", "batching", "kv_cache", "hardware", "engine_args")
_STILL_IN_ENGINE_ARGS = frozenset(
    {
        "gpu_memory_utilization",
        "kv_cache_dtype",
        "block_size",
        "kv_cache_memory_bytes",
        "scheduling_policy",
        "pipeline_parallel_size",
        "data_parallel_size",
        "max_num_queued_reqs",
        "max_num_queued_tokens",
    }
)
_TOKENS_OF_GUIDES = 5
LARGE_BATCHED_TOKENS = 8192
A100_BATCHED_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class _Found:
    """A key at a place where the pool file does not have it."""

    key: str
    """In YAML's spelling, without dashes at its beginning."""
    path: KeyPath
    value: Any
    document: Mapping[str, Any]

    @property
    def gpu(self) -> str:
        """What the file says it runs on; '' where it does not."""
        hardware = self.document.get("hardware")
        named = hardware.get("gpu") if isinstance(hardware, Mapping) else self.document.get("gpu")
        return str(named or "")


def find_obsolete(
    document: Mapping[str, Any],
    lines: Mapping[KeyPath, int],
    *,
    own_keys: Callable[[KeyPath], Container[str]],
    engine_flags: Container[str],
    speculation_keys: Container[str],
) -> list[Finding]:
    """Everything in the file that an older guide, or vLLM's own spelling, put there.

    Args:
        document: the file as read, whatever it holds.
        lines: where each key stands.
        own_keys: the keys that a section of a pool file has.
        engine_flags: all flags of vLLM as `--max-num-seqs`, to tell a flag at the top from a misspelling.
        speculation_keys: all keys of vLLM's --speculative-config, for the same.
    """
    findings = []
    if isinstance(document.get("model"), str):
        findings.append(_model_as_a_word(document, lines))
    for found in _misplaced(document, own_keys):
        said = _translated(found, engine_flags, speculation_keys)
        if said is not None:
            message, edits = said
            place = line_of(found.path, lines)
            findings.append(Finding(Severity.ERROR, found.path, message, line=place, edits=edits))
    return [*findings, *_in_place(document, lines)]


def _misplaced(
    document: Mapping[str, Any], own_keys: Callable[[KeyPath], Container[str]]
) -> Iterator[_Found]:
    for section in ("", *_SECTIONS):
        values = document.get(section) if section else document
        if not isinstance(values, Mapping):
            continue
        place: KeyPath = (section,) if section else ()
        for key, value in values.items():
            name = str(key).lstrip("-").replace("-", "_")
            is_at_home = section != "engine_args" and str(key) in own_keys(place)
            if not is_at_home:
                yield _Found(name, (*place, str(key)), value, document)


def _translated(
    found: _Found, engine_flags: Container[str], speculation_keys: Container[str]
) -> tuple[str, tuple[Edit, ...]] | None:
    """What to say of a key that is not where it belongs, and how to settle it; None: nothing to say."""
    away = Edit(found.path, is_removal=True)
    special = _SPECIAL.get(found.key)
    if special is not None:
        said = special(found)
        if said is not None:
            return said[0], (away, *said[1])
    if found.key in REMOVED_FLAGS:
        return f"not in vLLM since before 0.32: {REMOVED_FLAGS[found.key]}", (away,)
    if found.path[0] == "engine_args" and found.key in _STILL_IN_ENGINE_ARGS:
        return None
    if found.path[0] == "speculation":
        if found.key not in speculation_keys:
            return None
        passed_on = Edit(("speculation", "engine_args", found.key), found.value)
        return (
            f"passed on to vLLM: write it under speculation.engine_args: {found.key}: {found.value}",
            (away, passed_on),
        )
    target = PLACES.get(found.key)
    if target is not None and target != found.path:
        if found.key == "quantization":
            return _quantization(found, away, target)
        if found.key == "max_num_batched_tokens" and _is_too_much_for_an_a100(found.value, found.gpu):
            why = _why_not_so_many(found.value)
            return f"{why} Write {dotted(target)}: {A100_BATCHED_TOKENS}", (
                away,
                Edit(target, A100_BATCHED_TOKENS),
            )
        return f"belongs elsewhere: write {dotted(target)}: {found.value}", (away, *_moved(found, target))
    if len(found.path) == 1 and f"--{found.key.replace('_', '-')}" in engine_flags:
        return f"a flag of vLLM: write it under engine_args: {found.key}: {found.value}", (
            away,
            Edit(("engine_args", found.key), found.value),
        )
    return None


def _moved(found: _Found, target: KeyPath) -> tuple[Edit, ...]:
    move = Edit(target, found.value)
    hardware = found.document.get("hardware")
    known = hardware if isinstance(hardware, Mapping) else {}
    if found.key != "tensor_parallel_size" or found.gpu in {"", "cpu"}:
        return (move,)
    return (
        (move,)
        if "gpus_per_replica" in known
        else (move, Edit(("hardware", "gpus_per_replica"), found.value))
    )


def _quantization(found: _Found, away: Edit, target: KeyPath) -> tuple[str, tuple[Edit, ...]]:
    value = str(found.value).lower()
    if value in AWQ_NAMES and found.gpu != "cpu":
        return f"leave it out: {_WHY_NOT_AWQ}", (away,)
    if value in NO_LONGER_QUANTIZATION:
        return f"'{value}' cannot be used: {NO_LONGER_QUANTIZATION[value]}", (away,)
    return f"belongs elsewhere: write {dotted(target)}: {found.value}", (away, Edit(target, found.value))


_WHY_NOT_AWQ = (
    "vLLM reads the quantization from the checkpoint and takes the Marlin kernel by itself (up to about "
    "0.9 writing it forced the slow kernel)"
)


def _why_not_so_many(tokens: Any) -> str:
    return (
        f"{tokens} tokens in one step make an A100 slower (vLLM's own default there is "
        f"{A100_BATCHED_TOKENS}), keep every other request waiting, and their activations take cache (7 "
        "GiB for 32768 on a 70B)."
    )


def _is_too_much_for_an_a100(tokens: Any, gpu: str) -> bool:
    known = gpu_of(gpu)
    is_a100 = known is not None and known.name.startswith("A100")
    return is_a100 and isinstance(tokens, int) and tokens > LARGE_BATCHED_TOKENS


def _in_place(document: Mapping[str, Any], lines: Mapping[KeyPath, int]) -> Iterator[Finding]:
    """Old advice at the right place: it starts, and is not what is wanted."""
    place = _Found("", (), None, document)
    model, batching = document.get("model"), document.get("batching")
    value = str(model.get("quantization") or "").lower() if isinstance(model, Mapping) else ""
    path: KeyPath = ("model", "quantization")
    removal = (Edit(path, is_removal=True),)
    if value in NO_LONGER_QUANTIZATION and value not in AWQ_NAMES:
        said = f"'{value}' cannot be used: {NO_LONGER_QUANTIZATION[value]}"
        yield Finding(Severity.ERROR, path, said, line=line_of(path, lines), edits=removal)
    elif value in AWQ_NAMES and place.gpu not in {"", "cpu"}:
        said = f"harmless, and better left out: {_WHY_NOT_AWQ}"
        yield Finding(Severity.WARNING, path, said, line=line_of(path, lines), edits=removal)
    path = ("batching", "max_num_batched_tokens")
    tokens = batching.get("max_num_batched_tokens") if isinstance(batching, Mapping) else None
    if _is_too_much_for_an_a100(tokens, place.gpu):
        said = f"{_why_not_so_many(tokens)} Write {A100_BATCHED_TOKENS}"
        edits = (Edit(path, A100_BATCHED_TOKENS),)
        yield Finding(Severity.WARNING, path, said, line=line_of(path, lines), edits=edits)
    speculation = document.get("speculation")
    if isinstance(speculation, Mapping) and speculation.get("method") == "mlp_speculator":
        path = ("speculation", "method")
        said = (
            "vLLM 0.32 accepts mlp_speculator in its configuration and its runner knows no such method: "
            "use eagle3 or draft_model with weights for them"
        )
        yield Finding(Severity.ERROR, path, said, line=line_of(path, lines))


def _model_as_a_word(document: Mapping[str, Any], lines: Mapping[KeyPath, int]) -> Finding:
    path = str(document["model"])
    section = {"path": path, "served_name": path.rstrip("/").rpartition("/")[2]}
    message = f"a section here, not a word: write model: {{path: {path}, served_name: …, max_model_len: …}}"
    return Finding(
        Severity.ERROR,
        ("model",),
        message,
        line=line_of(("model",), lines),
        edits=(Edit(("model",), section),),
    )


# ------------------------------------------------------------------------------------------ speculation
_Said = tuple[str, tuple[Edit, ...]]


def _speculation_of(found: _Found) -> Mapping[str, Any]:
    section = found.document.get("speculation")
    return section if isinstance(section, Mapping) else {}


def _anywhere(document: Mapping[str, Any], key: str) -> bool:
    sections = [document, *(document.get(name) for name in _SECTIONS)]
    spelt = {key, key.replace("_", "-")}
    return any(isinstance(section, Mapping) and spelt & section.keys() for section in sections)


def _speculative_model(found: _Found) -> _Said:
    known = _speculation_of(found)
    is_lookup = str(found.value) == "[ngram]"
    method = known.get("method") or ("ngram" if is_lookup else "draft_model")
    edits = [Edit(("speculation", "method"), method)]
    if not is_lookup:
        edits.append(Edit(("speculation", "model"), found.value))
    if not _anywhere(found.document, "num_speculative_tokens"):
        edits.append(Edit(("speculation", "num_speculative_tokens"), _TOKENS_OF_GUIDES))
    draft = "" if is_lookup else f", model: {found.value}"
    said = (
        f"not in vLLM since before 0.32: write speculation: {{method: {method}{draft}, "
        "num_speculative_tokens: …}"
    )
    return said, tuple(edits)


def _num_speculative_tokens(found: _Found) -> _Said:
    said = f"a key of speculation now: write speculation.num_speculative_tokens: {found.value}"
    return said, (Edit(("speculation", "num_speculative_tokens"), found.value),)


def _disable_by_batch_size(found: _Found) -> _Said | None:
    if not isinstance(found.value, int):
        return None
    batching = found.document.get("batching")
    now = batching.get("max_num_seqs") if isinstance(batching, Mapping) else None
    size = min(found.value, now) if isinstance(now, int) else found.value
    said = f"gone: {REMOVED_FLAGS['speculative_disable_by_batch_size']}. Write batching.max_num_seqs: {size}"
    return said, (Edit(("batching", "max_num_seqs"), size),)


def _synthetic(found: _Found) -> _Said | None:
    if found.path[0] != "speculation" or str(found.value) in {"standard", "block"}:
        return None
    return "accepts guesses without looking at them, for load tests: answers would be wrong. Leave it out", ()


def _draft_parallel(found: _Found) -> _Said | None:
    if found.path[0] != "speculation":
        return None
    said = f"vLLM has it only to refuse it: {REMOVED_FLAGS['speculative_draft_tensor_parallel_size']}"
    return said, ()


def _draft_length(found: _Found) -> _Said | None:
    return (REMOVED_FLAGS["speculative_max_model_len"], ()) if found.path[0] == "speculation" else None


def _speculative_config(found: _Found) -> _Said | None:
    value = found.value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return (
                "not JSON, and a section here: write speculation: {method: …, num_speculative_tokens: …}",
                (),
            )
    return "a section here: write its keys under speculation:", (Edit(("speculation",), value),)


def _lookup(found: _Found) -> _Said:
    key = found.key.removeprefix("ngram_")
    return f"a key of speculation now: write speculation.{key}: {found.value}", (
        Edit(("speculation", key), found.value),
    )


def _guided_backend(found: _Found) -> _Said:
    key = "structured_outputs_config.backend"
    return f"renamed: write engine_args: {key}: {found.value}", (Edit(("engine_args", key), found.value),)


def _ray(found: _Found) -> _Said | None:
    key = "distributed_executor_backend"
    edits = (Edit(("engine_args", key), "ray"),) if found.value is True else ()
    return f"renamed: write engine_args: {key}: ray", edits


_SPECIAL: dict[str, Callable[[_Found], _Said | None]] = {
    "speculative_model": _speculative_model,
    "num_speculative_tokens": _num_speculative_tokens,
    "speculative_disable_by_batch_size": _disable_by_batch_size,
    "disable_by_batch_size": _disable_by_batch_size,
    "rejection_sample_method": _synthetic,
    "synthetic_acceptance_rates": _synthetic,
    "synthetic_acceptance_length": _synthetic,
    "tensor_parallel_size": _draft_parallel,
    "max_model_len": _draft_length,
    "speculative_config": _speculative_config,
    "ngram_prompt_lookup_max": _lookup,
    "ngram_prompt_lookup_min": _lookup,
    "guided_decoding_backend": _guided_backend,
    "worker_use_ray": _ray,
    "engine_use_ray": _ray,
}
