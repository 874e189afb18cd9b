"""Conversations find more of themselves in vLLM's prefix cache with affinity than by taking turns.

The bundled fleet's two servers answer for the same model: to a gateway they are two replicas of a pool. Both
rules meet the same servers through it, one after the other, with texts that nobody has read yet.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import httpx
import pytest

from backends.scrape import parse_metrics
from tests.support.gateway_process import GatewayProcess
from tests.support.pool_files import write_pools
from tests.vllm.conftest import RunningFleet

pytestmark = pytest.mark.vllm

CONVERSATIONS = 5
"""An odd number: with an even one, taking turns would bring each conversation to one replica by chance."""
TURNS = 4
WORDS = (
    "river",
    "stone",
    "mill",
    "garden",
    "letter",
    "winter",
    "bridge",
    "lamp",
    "harbour",
    "clock",
    "orchard",
)


def cache_tokens(urls: list[str]) -> tuple[int, int]:
    """What all prompts had, and what of it was found, by the engines' own counters."""
    texts = [httpx.get(f"{url}/metrics", timeout=10, trust_env=False).text for url in urls]
    loads = [parse_metrics(text, scraped_at_s=time.monotonic()) for text in texts]
    return (
        sum(load.prefix_cache_query_tokens_total for load in loads),
        sum(load.prefix_cache_hit_tokens_total for load in loads),
    )


def converse(gateway: GatewayProcess, draw: random.Random) -> tuple[int, list[set[str]]]:
    """Hold conversations side by side; the tokens of all prompts, and each one's replicas."""
    talks = [[{"role": "system", "content": "You are a patient teller of long tales about quiet places."}]]
    talks = [[*talks[0]] for _ in range(CONVERSATIONS)]
    replicas: list[set[str]] = [set() for _ in talks]
    tokens = 0
    with httpx.Client(headers=gateway.headers, timeout=120, trust_env=False) as client:
        for _ in range(TURNS):
            for number, messages in enumerate(talks):
                words = " ".join(draw.choices(WORDS, k=30))
                messages.append({"role": "user", "content": f"{draw.random()} Go on with {words}."})
                answer = client.post(
                    f"{gateway.url}/v1/chat/completions",
                    json={
                        "model": "tollgate-reference-plain",
                        "messages": messages,
                        "max_tokens": 8,
                        "ignore_eos": True,
                    },
                )
                assert answer.status_code == 200, answer.text
                document = answer.json()
                messages.append(document["choices"][0]["message"] | {"role": "assistant"})
                tokens += document["usage"]["prompt_tokens"]
                replicas[number].add(answer.headers["x-tollgate-replica"])
    return tokens, replicas


def hit_ratio(fleet: RunningFleet, folder: Path, rule: str) -> float:
    """Of all prompts' tokens, the share that was found, with this rule."""
    urls = [fleet.urls["plain"], fleet.urls["speculative"]]
    pools = write_pools(folder / "ours", {"plain": urls, "speculative": urls[1:]})
    with (pools / "plain.yaml").open("a") as file:
        file.write(f"replica_choice:\n  rule: {rule}\n")
    settings = {"TOLLGATE_POOLS": str(pools)}
    with GatewayProcess(folder, {}, settings=settings) as gateway:
        queries, hits = cache_tokens(urls)
        tokens, replicas = converse(gateway, random.Random(rule))
        deadline_s = time.monotonic() + 20
        while (now := cache_tokens(urls))[0] - queries < tokens:  # counted after an answer has left
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
    assert all((len(each) == 1) == (rule == "affinity") for each in replicas), replicas
    ratio = (now[1] - hits) / (now[0] - queries)
    print(f"{rule}: {now[1] - hits} of {now[0] - queries} prompt tokens found, {ratio:.1%}")  # noqa: T201 - what this is for
    return ratio


def test_conversations_find_more_of_themselves_with_affinity(fleet: RunningFleet, tmp_path: Path) -> None:
    in_turns = hit_ratio(fleet, tmp_path / "turns", "round_robin")
    with_affinity = hit_ratio(fleet, tmp_path / "affinity", "affinity")
    assert with_affinity > 1.2 * in_turns
