"""How fast are the reference models with and without their draft, and where does speculation pay?

Starts vLLM twice, on the 4-bit target alone and on the target with the draft, and lets both answer the same
held-out prompts: structured ones at temperature 0 and stories at temperature 1, one at a time and eight at a
time. Only one server is asked at any moment, the other is idle (it used no CPU time in 15 seconds).
They take turns within each round, because whatever else the machine does changes from minute to minute: two
runs one after the other once called the same draft both a gain and a loss. What is compared is therefore the
pair of one round, and one pool is called faster only where every round says so.

A request's time per output token is vLLM's own `metrics.mean_itl_ms` (0.32: time from the first token to the
last, by the tokens between); a round's figure is the median of its requests, the table's the median of the
rounds, with the least and the greatest round beside it. With `--count` the answers are judged as well
(`backends.reference.measure`), so that one file holds all that the model card states.

Writes JSON that names the weights by checksum: `backends.reference.card` refuses figures of other weights.
Run it with the vLLM environment's Python on a machine that does nothing else; the load it found is in the
file.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from backends.reference.measure import acceptance, ask_all, held_out, measure, serve, served_name, tell
from backends.reference.text import Conversation

TARGET: Final = "target-awq"
POOLS: Final = ("plain", "speculative")
WEIGHTS: Final = Path(__file__).parent / "weights"
WORKLOADS: Final[tuple[tuple[Literal["structured", "creative"], float], ...]] = (
    ("structured", 0.0),
    ("creative", 1.0),
)
BATCHES: Final = (1, 8)
REQUESTS: Final = {1: 8, 8: 24}
"""A round's requests by how many run at a time: with 24, eight run during most of it."""
_SEED: Final = 2


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    kind: Literal["structured", "creative"]
    temperature: float
    batch: int

    def __str__(self) -> str:
        return f"{self.kind}, temperature {self.temperature:g}, {self.batch} at a time"


CASES: Final = tuple(Case(kind, heat, batch) for kind, heat in WORKLOADS for batch in BATCHES)


def prompts(case: Case, round_number: int) -> list[Conversation]:
    """The round's prompts: the same for both pools, others in each round, so that no cache knows them."""
    count = REQUESTS[case.batch]
    start = (round_number + 1) * count
    return held_out(case.kind, start, _SEED + 1)[start - count :]


def ms_per_token(bodies: Sequence[dict[str, Any]]) -> float:
    """The median request's time per output token."""
    times: list[float] = [body["metrics"]["mean_itl_ms"] or 0.0 for body in bodies]
    return statistics.median(one for one in times if one)


def summary(rounds: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Sum up one pool's response bodies by round: ms per token, tokens per step and ms per step."""
    medians = [ms_per_token(bodies) for bodies in rounds]
    bodies = [body for one in rounds for body in one]
    found: dict[str, Any] = {
        "ms_per_token": round(statistics.median(medians), 3),
        "ms_per_token_least": round(min(medians), 3),
        "ms_per_token_greatest": round(max(medians), 3),
        "ms_per_token_rounds": [round(one, 3) for one in medians],
        "output_tokens_mean": round(
            statistics.mean(body["usage"]["completion_tokens"] for body in bodies), 1
        ),
    }
    found["ms_per_step"] = round(statistics.median(_ms_per_step(body) for body in bodies if _steps(body)), 3)
    return found | (acceptance(bodies) or {"tokens_per_step_mean": 1.0})


def _steps(body: dict[str, Any]) -> int:
    """Engine steps behind the first token; without a draft every token is one."""
    drafts = body["metrics"].get("speculative_decoding")
    steps: int = drafts["num_spec_steps"] if drafts else body["usage"]["completion_tokens"] - 1
    return steps


def _ms_per_step(body: dict[str, Any]) -> float:
    total_ms: float = body["metrics"]["generation_time_ms"]
    return total_ms / _steps(body)


def comparison(plain: dict[str, Any], speculative: dict[str, Any]) -> dict[str, Any]:
    """How many times as fast tokens come with the draft, by pairs of rounds, and what follows from it."""
    pairs = zip(plain["ms_per_token_rounds"], speculative["ms_per_token_rounds"], strict=True)
    gains = [without / with_draft for without, with_draft in pairs]
    if min(gains) > 1:
        verdict = "pays"
    elif max(gains) < 1:
        verdict = "loses"
    else:
        verdict = "unclear"
    return {
        "gain": round(statistics.median(gains), 3),
        "gain_least": round(min(gains), 3),
        "gain_greatest": round(max(gains), 3),
        "verdict": verdict,
    }


def in_words(row: dict[str, Any]) -> str:
    """One row of the table as a sentence."""
    meaning = {
        "pays": "speculation pays",
        "loses": "speculation loses",
        "unclear": "no clear difference, the rounds disagree",
    }[row["verdict"]]
    name = {"structured": "Structured answers", "creative": "Stories"}[row["kind"]]
    together = "one at a time" if row["batch"] == 1 else f"{row['batch']} at a time"
    dearer = row["speculative"]["ms_per_step"] / row["plain"]["ms_per_step"]
    return (
        f"{name}, {together}: {meaning}. Tokens come {row['gain']:.2f} times as fast "
        f"({row['gain_least']:.2f} to {row['gain_greatest']:.2f}): a step yields "
        f"{row['speculative']['tokens_per_step_mean']:.2f} and takes {dearer:.2f} times as long."
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text for a terminal."""
    titles = f"{'plain ms/token':>22} {'with draft':>22} {'tokens/step':>12} {'gain':>6}"
    lines = [f"{'':12}{'T':>3}{'batch':>6} {titles}  verdict"]
    for row in rows:
        cells = [
            "{ms_per_token:.2f} ({ms_per_token_least:.2f} to {ms_per_token_greatest:.2f})".format(**row[pool])
            for pool in ("plain", "speculative")
        ]
        lines.append(
            f"{row['kind']:12}{row['temperature']:>3g}{row['batch']:>6} {cells[0]:>22} {cells[1]:>22} "
            f"{row['speculative']['tokens_per_step_mean']:>12.2f} {row['gain']:>6.2f}  {row['verdict']}"
        )
    return "\n".join([*lines, "", *(in_words(row) for row in rows)])


def time_pools(urls: Mapping[str, str], rounds: int) -> list[dict[str, Any]]:
    """Measure every case on both servers, in turns, after requests that only warm them up."""
    models = {pool: served_name(url) for pool, url in urls.items()}

    def answers(pool: str, case: Case, number: int) -> list[dict[str, Any]]:
        items = prompts(case, number)
        return ask_all(urls[pool], items, case.temperature, model=models[pool], parallel=case.batch)

    found: dict[tuple[str, Case], list[list[dict[str, Any]]]] = {
        (pool, case): [] for pool in POOLS for case in CASES
    }
    for pool, case in found:
        answers(pool, case, rounds)
    for number in range(rounds):
        for case in CASES:
            # First the one, then the other: neither always comes after what the machine did for the other.
            for pool in POOLS if number % 2 == 0 else reversed(POOLS):
                found[pool, case].append(answers(pool, case, number))
            times = " against ".join(f"{ms_per_token(found[pool, case][-1]):.2f}" for pool in POOLS)
            tell(f"round {number + 1}/{rounds}, {case}: {times} ms per token")
    rows = []
    for case in CASES:
        plain, speculative = (summary(found[pool, case]) for pool in POOLS)
        both = {"plain": plain, "speculative": speculative}
        rows.append(asdict(case) | both | comparison(plain, speculative))
    return rows


def checksums(weights: Path) -> dict[str, str]:
    """SHA-256 of each model's weights, by the name of its folder."""
    return {
        name: hashlib.sha256((weights / name / "model.safetensors").read_bytes()).hexdigest()
        for name in (TARGET, "draft")
    }


def processor() -> str:
    """The processor's name, as the kernel knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(url: str) -> str:
    with urllib.request.urlopen(f"{url}/version", timeout=30) as response:  # noqa: S310  # http on this machine
        version: str = json.load(response)["version"]
        return version


def run(weights: Path, *, rounds: int, count: int, draft_tokens: int) -> dict[str, Any]:
    """Start both pools, measure them in turns, and judge their answers.

    Args:
        weights: directory that holds `target-awq` and `draft`.
        rounds: how often each case is measured.
        count: prompts of each kind and temperature to judge; 0 judges none.
        draft_tokens: tokens that the draft proposes a step (K).
    """
    figures: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "settings": {
            "rounds": rounds,
            "requests_by_batch": {str(batch): requests for batch, requests in REQUESTS.items()},
            "count": count,
            "draft_tokens": draft_tokens,
            "seed": _SEED,
        },
        "weights": checksums(weights),
        "quality": {},
    }
    with ExitStack() as servers:
        urls = {}
        for pool in POOLS:
            tokens = draft_tokens if pool == "speculative" else 0
            tell(f"{pool}: vLLM loads {TARGET} {f'with the draft, K = {tokens}' if tokens else 'alone'} …")
            urls[pool] = servers.enter_context(serve(weights, target=TARGET, draft_tokens=tokens))
        figures["vllm"] = _version(urls["plain"])
        figures["speed"] = time_pools(urls, rounds)
        if count:
            for pool, url in urls.items():
                tell(f"{pool}: answers to judge")
                figures["quality"][pool] = measure(url, count=count, seed=_SEED)
    return figures


def main() -> None:
    """Parse the command line, measure, print the table and write the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m backends.reference.speed",
        description="Measure the reference models with and without their draft through real vLLM.",
        epilog="Example: .venv-vllm/bin/python -m backends.reference.speed --out figures.json",
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="directory of the models")
    parser.add_argument("--rounds", type=int, default=6, help="of the time measurement (default 6)")
    parser.add_argument(
        "--count", type=int, default=60, help="prompts to judge of each kind and temperature (default 60)"
    )
    parser.add_argument("--draft-tokens", type=int, default=4, help="K (default 4)")
    parser.add_argument("--out", type=Path, help="also write the figures to this file, as JSON")
    options = parser.parse_args()
    figures = run(
        options.weights, rounds=options.rounds, count=options.count, draft_tokens=options.draft_tokens
    )
    print(table(figures["speed"]))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
