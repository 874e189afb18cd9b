"""With which command and environment does vLLM serve this pool?

Pure. Flags are written in full (vLLM accepts prefixes, which change meaning as flags are added) and every
flag whose default depends on the hardware is spelled out. Checked against vLLM 0.32.0; `tests/vllm` runs
the result through vLLM's own parser. The `vllm` program is not used: in the CPU distribution it crashes at
start, because it looks for its own metadata under another name.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

from backends.pool import FlagValue, PoolSpec, flag_name, plain_flags
from backends.pool_sections import SpeculationSpec


def vllm_argv(spec: PoolSpec, *, python: Path, port: int, host: str = "127.0.0.1") -> list[str]:
    """The whole command line of one replica.

    Args:
        spec: a pool with driver `process`, its paths made absolute by `backends.files`.
        python: the interpreter of the environment that vLLM is installed in.
        port: a free TCP port; vLLM binds it early in its start-up.
        host: the address to listen on. vLLM's `/metrics` and `/health` are never protected, so anything but
            a loopback or private address is a mistake.

    Raises:
        ValueError: the pool names no model, or is to sleep where anybody could wake it.
    """
    model = spec.model
    if model.path is None:
        raise ValueError(f"pool '{spec.name}' names no model.path, so there is nothing to serve")
    batching = spec.batching
    argv = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", model.path, "--served-model-name", model.served_name]
    argv += ["--host", host, "--port", str(port)]
    argv += ["--dtype", model.dtype, "--max-model-len", str(model.max_model_len)]
    if model.quantization is not None:
        argv += ["--quantization", model.quantization]
    if spec.hardware.tensor_parallel_size > 1:
        argv += ["--tensor-parallel-size", str(spec.hardware.tensor_parallel_size)]
    argv += ["--max-num-seqs", str(batching.max_num_seqs)]
    argv += ["--max-num-batched-tokens", str(batching.max_num_batched_tokens)]
    argv += _flag("enable-chunked-prefill", batching.enable_chunked_prefill)
    argv += _flag("enable-prefix-caching", batching.enable_prefix_caching)
    for flag, value in plain_flags(spec).items():
        argv += _flag(flag, value)
    # Receipts live on these; without the second one cached tokens would be charged in full.
    argv += ["--enable-per-request-metrics", "--enable-prompt-tokens-details"]
    if spec.speculation is not None:
        argv += ["--speculative-config", _speculative_config(spec.speculation)]
        # Refused by vLLM on a pool that does not speculate.
        argv += ["--per-request-spec-decode-metrics", "summary"]
    if sleep_level(spec) is not None:
        if not _is_private(host):
            raise ValueError(
                f"pool '{spec.name}': sleep.level opens vLLM's development endpoints, which must not listen "
                f"on {host}: expected a loopback or private address"
            )
        argv.append("--enable-sleep-mode")
    argv.append("--disable-uvicorn-access-log")
    if spec.hardware.gpu == "cpu" and not any(flag_name(key) == "enforce-eager" for key in spec.engine_args):
        # Compiling takes minutes on a CPU and gains little on models that a CPU can serve.
        argv.append("--enforce-eager")
    for key, value in spec.engine_args.items():
        argv += _flag(flag_name(key), value)
    return argv


def vllm_environment(spec: PoolSpec, *, is_cpu: bool, threads: int = 1) -> dict[str, str]:
    """What a replica's environment must hold besides the machine's own; the pool file's `env` wins.

    Args:
        spec: the pool.
        is_cpu: vLLM runs on the CPU of this machine.
        threads: CPU threads for one replica's arithmetic. Two replicas which each use every core are several
            times slower than two that share them, because each waits for the other's idle spinning.
    """
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    if _is_local(spec.model.path) and (spec.speculation is None or _is_local(spec.speculation.model)):
        # Otherwise a machine without internet waits for time-outs before it reads its own disk.
        environment["HF_HUB_OFFLINE"] = "1"
    if is_cpu:
        environment |= {
            "VLLM_TARGET_DEVICE": "cpu",
            # GiB. Unset, vLLM would take 92 % of the machine's memory for the first replica.
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # vLLM would pin every replica to the same cores, and then ignore OMP_NUM_THREADS.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
        }
    if sleep_level(spec) is not None:
        # /sleep and /wake_up are among these; tenants never reach an engine's own paths.
        environment["VLLM_SERVER_DEV_MODE"] = "1"
    return environment | spec.env


def sleep_level(spec: PoolSpec) -> int | None:
    """The level of vLLM's sleep mode that the pool's replicas use."""
    return None if spec.sleep is None else spec.sleep.level


def _is_private(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or (address.is_private and not address.is_unspecified)


def _is_local(model: str | None) -> bool:
    return model is None or Path(model).is_absolute()


def _flag(name: str, value: FlagValue) -> list[str]:
    if value is True:
        return [f"--{name}"]
    if value is False:
        return [f"--no-{name}"]
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *(str(item) for item in values)]


def _speculative_config(speculation: SpeculationSpec) -> str:
    config = speculation.model_dump(exclude_none=True) | speculation.engine_args
    return json.dumps(config, separators=(",", ":"))
