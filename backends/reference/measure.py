"""How good are the reference models, asked through real vLLM?

Starts vLLM on the weights (or takes the address of a server that runs) and asks held-out prompts of both
halves at temperature 0 and 1. Prints and writes JSON: share of structured answers that are JSON with the
asked keys, share whose values are exact too, share of story sentences that read as English, whether two
stories to one prompt differ, and what vLLM says of the draft (`metrics.speculative_decoding`, vLLM 0.32 with
`--enable-per-request-metrics --per-request-spec-decode-metrics summary`). Run it with the vLLM environment's
Python. How fast the models are is asked in `backends.reference.speed`.
"""

import argparse
import json
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from backends.reference.sentences import english_ratio
from backends.reference.text import Conversation, conversations
from backends.reference.words import Split

MODEL_NAME: Final = "reference"
START_TIMEOUT_S: Final = 600.0
REQUEST_TIMEOUT_S: Final = 300.0
ANSWER_TOKENS_MAX: Final = {"structured": 120, "creative": 200}
CASES: Final[tuple[tuple[Literal["structured", "creative"], float, Split], ...]] = (
    ("structured", 0.0, "held_out"),
    ("structured", 1.0, "held_out"),
    ("creative", 0.0, "held_out"),
    ("creative", 1.0, "held_out"),
    ("structured", 0.0, "new_words"),
)

# What a laptop needs: vLLM's CPU build would otherwise bind threads to cores that other programs use.
ENVIRONMENT: Final = (
    "VLLM_TARGET_DEVICE=cpu",
    "VLLM_CPU_KVCACHE_SPACE=1",
    "VLLM_CPU_OMP_THREADS_BIND=nobind",
    "OMP_NUM_THREADS=1",
    "HF_HUB_OFFLINE=1",
    "VLLM_NO_USAGE_STATS=1",
)


def server_command(
    weights: Path, *, target: str, port: int, draft_tokens: int, python: str = sys.executable
) -> list[str]:
    """Build the command that serves a target with the draft.

    Args:
        weights: directory that holds the models.
        target: `target` or `target-awq`.
        port: TCP port on 127.0.0.1.
        draft_tokens: tokens the draft proposes a step (K); 0 serves the target alone.
        python: interpreter of an environment that has vLLM and the plugin.
    """
    command = ["/usr/bin/env", *ENVIRONMENT, python, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(weights / target), "--served-model-name", MODEL_NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--max-num-seqs", "32"]
    command += ["--enable-per-request-metrics"]
    if draft_tokens:
        draft = {
            "method": "draft_model",
            "model": str(weights / "draft"),
            "num_speculative_tokens": draft_tokens,
        }
        # vLLM refuses this flag without speculation.
        command += ["--per-request-spec-decode-metrics", "summary"]
        command += ["--speculative-config", json.dumps(draft)]
    return command


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310  # http on this machine
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def serve(weights: Path, *, target: str, draft_tokens: int, python: str = sys.executable) -> Iterator[str]:
    """Run a server for the time of the block and yield its base URL.

    Raises:
        RuntimeError: the server ended, or was not ready in time; the message holds the end of its log.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = server_command(
        weights.resolve(), target=target, port=port, draft_tokens=draft_tokens, python=python
    )
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory() as directory:
        # Away from the repository, whose folders would shadow installed packages.
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)  # noqa: S603  # our own command
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not _is_healthy(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"vLLM is not ready:\n{log.read()[-4000:]}")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


def ask(url: str, item: Conversation, temperature: float, *, model: str) -> dict[str, Any]:
    """Send the conversation's prompt and return the response body."""
    body = {
        "model": model,
        "messages": item.prompt(),
        "temperature": temperature,
        "max_tokens": ANSWER_TOKENS_MAX.get(item.kind, 120),
    }
    request = urllib.request.Request(  # noqa: S310  # http on this machine
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:  # noqa: S310
        answer: dict[str, Any] = json.load(response)
        return answer


def served_name(url: str) -> str:
    """The first model name the server lists."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as response:  # noqa: S310  # http on this machine
        name: str = json.load(response)["data"][0]["id"]
        return name


def judge(item: Conversation, answer: str) -> tuple[bool, bool]:
    """Say whether an answer is JSON with exactly the asked keys, and whether its values are right too."""
    try:
        value = json.loads(answer)
    except ValueError:
        return False, False
    has_keys = isinstance(value, dict) and set(value) == set(item.expected)
    return has_keys, has_keys and value == item.expected


def held_out(
    kind: Literal["structured", "creative"], count: int, seed: int, *, split: Split = "held_out"
) -> list[Conversation]:
    """The first conversations of a kind that training never saw."""
    return list(islice(conversations(seed, split, kind), count))


def ask_all(
    url: str, items: Sequence[Conversation], temperature: float, *, model: str, parallel: int
) -> list[dict[str, Any]]:
    """Send all prompts, so many at a time, and return the response bodies in their order."""
    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(lambda item: ask(url, item, temperature, model=model), items))


def _text(body: dict[str, Any]) -> str:
    return body["choices"][0]["message"]["content"] or ""


def acceptance(bodies: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of drafted tokens that were accepted and tokens per step; empty when nothing was drafted."""
    metrics = [body.get("metrics") or {} for body in bodies]
    drafts = [entry["speculative_decoding"] for entry in metrics if entry.get("speculative_decoding")]
    steps = sum(entry["num_spec_steps"] for entry in drafts)
    accepted = sum(entry["num_accepted_draft_tokens"] for entry in drafts)
    proposed = sum(entry["num_draft_tokens"] for entry in drafts)
    if not steps or not proposed:
        return {}
    return {
        "acceptance_ratio": round(accepted / proposed, 3),
        "tokens_per_step_mean": round(1 + accepted / steps, 2),
    }


def measure_half(
    url: str, items: Sequence[Conversation], temperature: float, *, model: str, parallel: int = 2
) -> dict[str, Any]:
    """Ask all prompts of one kind at one temperature and sum up; stories at temperature 1 are drawn twice."""
    bodies = ask_all(url, items, temperature, model=model, parallel=parallel)
    texts = [_text(body) for body in bodies]
    intervals = [
        body["metrics"]["mean_itl_ms"] for body in bodies if (body.get("metrics") or {}).get("mean_itl_ms")
    ]
    half: dict[str, Any] = {
        "kind": items[0].kind,
        "temperature": temperature,
        "prompts": len(items),
        "output_tokens_mean": round(
            statistics.mean(body["usage"]["completion_tokens"] for body in bodies), 1
        ),
        "time_per_output_token_ms_median": round(statistics.median(intervals), 2) if intervals else None,
        "stopped_ratio": round(
            sum(body["choices"][0]["finish_reason"] == "stop" for body in bodies) / len(items), 3
        ),
        "examples": texts[:3],
    }
    if items[0].expected:
        verdicts = [judge(item, text) for item, text in zip(items, texts, strict=True)]
        half["has_keys_ratio"] = round(sum(has_keys for has_keys, _ in verdicts) / len(items), 3)
        half["is_exact_ratio"] = round(sum(is_exact for _, is_exact in verdicts) / len(items), 3)
        pairs = [
            (wanted, _value(text, key))
            for item, text in zip(items, texts, strict=True)
            for key, wanted in item.expected.items()
        ]
        half["exact_values_ratio"] = round(sum(wanted == got for wanted, got in pairs) / len(pairs), 3)
    else:
        half["english_sentences_ratio"] = round(english_ratio(texts), 3)
        if temperature > 0:
            again = ask_all(url, items, temperature, model=model, parallel=parallel)
            differing = sum(_text(body) != text for body, text in zip(again, texts, strict=True))
            half["differing_ratio"] = round(differing / len(items), 3)
    half |= acceptance(bodies)
    return half


def _value(answer: str, key: str) -> object:
    try:
        value = json.loads(answer)
    except ValueError:
        return None
    return value.get(key) if isinstance(value, dict) else None


def tell(line: str) -> None:
    """Show progress where it does not mix with the figures."""
    print(line, file=sys.stderr, flush=True)


def measure(url: str, *, count: int, seed: int) -> list[dict[str, Any]]:
    """Ask both halves at both temperatures, and for words never seen; tells what it finds as it finds it."""
    model = served_name(url)
    halves = []
    for kind, temperature, split in CASES:
        items = held_out(kind, count, seed, split=split)
        half = {"split": split} | measure_half(url, items, temperature, model=model)
        ratios = [f"{name} {half[name]:.3f}" for name in half if name.endswith("_ratio")]
        tell(f"{kind}, {split}, temperature {temperature:g}, {count} prompts: {', '.join(ratios)}")
        halves.append(half)
    return halves


def main() -> None:
    """Parse the command line, measure, print and write the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m backends.reference.measure",
        description="Ask the reference models held-out prompts through real vLLM and write what came out.",
        epilog="Example: .venv-vllm/bin/python -m backends.reference.measure --count 60 --out figures.json",
    )
    default_weights = Path(__file__).parent / "weights"
    parser.add_argument("--weights", type=Path, default=default_weights, help="directory of the models")
    parser.add_argument("--target", default="target-awq", choices=("target", "target-awq"))
    parser.add_argument(
        "--draft-tokens", type=int, default=4, help="K; 0 measures the target alone (default 4)"
    )
    parser.add_argument("--url", help="a running server instead of starting one, e.g. http://127.0.0.1:8000")
    parser.add_argument("--count", type=int, default=60, help="prompts of each half (default 60)")
    parser.add_argument("--seed", type=int, default=2, help="of the held-out prompts (default 2)")
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if options.url:
        halves = measure(options.url, count=options.count, seed=options.seed)
    else:
        with serve(options.weights, target=options.target, draft_tokens=options.draft_tokens) as url:
            halves = measure(url, count=options.count, seed=options.seed)
    figures = {
        "target": options.target,
        "draft_tokens": options.draft_tokens,
        "machine": platform.machine(),
        "halves": halves,
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
