"""Does vLLM's own load generator see what ours sees?

Sends the same number of prompts of the same kind, by our client before and after and by `vllm bench serve`
between (vLLM 0.32, `benchmarks/serve.py`), and sets the medians side by side. It fits where one message per
request is enough; our own load drives the rest, because vLLM's has no conversations, no mixed tasks and no
engine counters per cell.

vLLM's `vllm` program is not used: in the CPU distribution it crashes, because it looks for its own metadata
under another name. Its benchmark's function is called in its own interpreter instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backends.bench.load import BenchError, Client, LoadResult, closed_loop
from backends.bench.workload import TEMPERATURE, Prompt, Prompts
from backends.pool import PoolSpec

_REQUESTS: Final = 32
_CONCURRENCY: Final = 8
_OUTPUT_TOKENS: Final = 48
_SEED: Final = 77
_ERROR_CHARS: Final = 2_000
_CALL: Final = """
import sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args(sys.argv[1:]))
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one load generator saw, medians."""

    output_tokens_per_s: float
    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """Both, for the same load."""

    ours: Seen
    vllms: Seen

    def in_words(self) -> str:
        """For people."""
        return (
            f"the same load ({_REQUESTS} requests, {_CONCURRENCY} at a time, {_OUTPUT_TOKENS} tokens each), "
            "ours against `vllm bench serve`: "
            f"{self.ours.output_tokens_per_s:.0f} against {self.vllms.output_tokens_per_s:.0f} tokens/s, "
            f"TTFT {self.ours.ttft_ms:.1f} against {self.vllms.ttft_ms:.1f} ms, "
            f"TPOT {self.ours.tpot_ms:.2f} against {self.vllms.tpot_ms:.2f} ms"
        )


async def cross_check(spec: PoolSpec, url: str, *, python: Path) -> CrossCheck:
    """Load the server twice.

    Args:
        spec: the pool, with local weights: vLLM's benchmark reads the tokenizer from them.
        url: its server.
        python: the interpreter of the environment that vLLM is installed in.

    Raises:
        BenchError: the benchmark is not there, failed, or a request of ours did.
    """
    if spec.model.path is None or not Path(spec.model.path).is_dir():  # noqa: ASYNC240 - before anything runs
        raise BenchError("--with-vllm-bench needs the tokenizer: model.path must be a folder on this machine")
    if not python.exists():  # noqa: ASYNC240 - as above
        raise BenchError(f"--with-vllm-bench needs vLLM ({python} is missing): run `make engine`")
    prompts = Prompts(_SEED)
    before, theirs, after = ([_prompt(prompts) for _ in range(_REQUESTS)] for _ in range(3))
    client = Client(url, spec.model.served_name)
    try:
        loads = [await closed_loop(client, before, concurrency=_CONCURRENCY)]
        vllms = await _their_run(spec, url, theirs, python=python)
        # What the machine does for others changes within seconds: ours stands on both sides of theirs.
        loads.append(await closed_loop(client, after, concurrency=_CONCURRENCY))
    finally:
        await client.aclose()
    return CrossCheck(_seen(loads), vllms)


def _prompt(prompts: Prompts) -> Prompt:
    return prompts.take("creative", input_tokens=1, output_tokens_max=_OUTPUT_TOKENS, is_output_fixed=True)


def _seen(loads: list[LoadResult]) -> Seen:
    samples = [one for load in loads for one in load.samples]
    return Seen(
        round(sum(one.output_tokens for one in samples) / sum(load.duration_s for load in loads), 1),
        round(statistics.median(one.ttft_s for one in samples) * 1e3, 2),
        round(statistics.median(one.tpot_s for one in samples if one.tpot_s is not None) * 1e3, 3),
    )


async def _their_run(spec: PoolSpec, url: str, prompts: list[Prompt], *, python: Path) -> Seen:
    with tempfile.TemporaryDirectory(prefix="tollgate-vllm-bench-") as folder:
        data = Path(folder) / "prompts.json"
        # ShareGPT's form, because vLLM reads its own `custom` form with pandas, which is often not there.
        asked = [{"conversations": [{"value": one.messages[-1][1]}, {"value": ""}]} for one in prompts]
        data.write_text(json.dumps(asked), encoding="utf-8")
        arguments = [
            *("--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions"),
            *("--model", spec.model.served_name, "--tokenizer", str(spec.model.path)),
            *("--dataset-name", "sharegpt", "--dataset-path", str(data)),
            *("--sharegpt-output-len", str(_OUTPUT_TOKENS), "--ignore-eos", "--disable-tqdm"),
            *("--num-prompts", str(len(prompts)), "--max-concurrency", str(_CONCURRENCY)),
            *("--temperature", str(TEMPERATURE["creative"]), "--percentile-metrics", "ttft,tpot"),
            *("--save-result", "--result-dir", folder, "--result-filename", "result.json"),
        ]
        await _call(python, arguments, folder)
        try:
            result: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
            return Seen(
                round(result["output_throughput"], 1),
                round(result["median_ttft_ms"], 2),
                round(result["median_tpot_ms"], 3),
            )
        except (OSError, ValueError, LookupError) as error:
            raise BenchError(f"`vllm bench serve` left no result that can be read: {error!r}") from error


async def _call(python: Path, arguments: list[str], folder: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(python), "-c", _CALL, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": folder, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
    )
    try:
        _, complaint = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        end = complaint.decode(errors="replace")[-_ERROR_CHARS:]
        raise BenchError(f"`vllm bench serve` ended with status {process.returncode}:\n{end}")
