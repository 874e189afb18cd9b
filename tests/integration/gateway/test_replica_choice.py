"""Where do the turns of a conversation go, in a pool of two replicas?"""

import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from tests.integration.gateway.rig import Gateway, bearer, running, settings_for
from tests.support.mock_process import MockVllm

# Nothing here depends on where keys and rows are kept: the other files try both kinds of store.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)

SYSTEM: Final = {"role": "system", "content": "You answer in one sentence, politely. " * 8}
MODEL: Final = "tollgate-reference-plain"


def two_replicas(home: Path, plain: MockVllm, speculative: MockVllm, *, more: str = "") -> Any:
    """Settings of a gateway whose plain pool has both engines."""
    settings = settings_for(home, {"plain": [plain.url, speculative.url], "speculative": [speculative.url]})
    with (settings.pools / "plain.yaml").open("a") as file:
        file.write(more)
    return settings


async def turns(gateway: Gateway, opening: str, count: int = 3, **extra: Any) -> list[str]:
    """The replicas that one conversation's turns went to."""
    messages: list[dict[str, str]] = [SYSTEM, {"role": "user", "content": opening}]
    replicas = []
    for number in range(count):
        answer = await gateway.chat("", messages=messages, model=MODEL, stream=number % 2 == 1, **extra)
        assert answer.status_code == 200, answer.text
        replicas.append(answer.headers["x-tollgate-replica"])
        messages = [
            *messages,
            {"role": "assistant", "content": f"Answer {number}."},
            {"role": "user", "content": f"And then, after {number}?"},
        ]
    return replicas


async def choices(gateway: Gateway) -> dict[str, int]:
    page = (await gateway.client.get("/metrics")).text
    found = re.findall(
        r'^tollgate_replica_choices_total{pool="plain",why="(\w+)"} (\S+)$', page, re.MULTILINE
    )
    return {why: int(float(count)) for why, count in found if float(count)}


async def test_the_turns_of_a_conversation_meet_and_conversations_spread(
    home: Path, plain: MockVllm, speculative: MockVllm
) -> None:
    async with running(two_replicas(home, plain, speculative)) as gateway:
        went = [await turns(gateway, f"Question {number}.") for number in range(16)]
        assert all(len(set(replicas)) == 1 for replicas in went)
        assert {replicas[0] for replicas in went} == {"plain-0", "plain-1"}
        assert await choices(gateway) == {"affinity": 48}


async def test_tenants_with_the_same_prompts_are_kept_apart(
    home: Path, plain: MockVllm, speculative: MockVllm
) -> None:
    async with running(two_replicas(home, plain, speculative)) as gateway:
        other = {"headers": bearer(await gateway.issue_key("globex"))}
        ours = [await turns(gateway, f"Question {number}.", 1) for number in range(24)]
        theirs = [await turns(gateway, f"Question {number}.", 1, **other) for number in range(24)]
        assert ours != theirs


async def test_a_named_key_brings_different_prompts_together(
    home: Path, plain: MockVllm, speculative: MockVllm
) -> None:
    async with running(two_replicas(home, plain, speculative)) as gateway:
        went = [await turns(gateway, f"Question {n}.", 1, prompt_cache_key="report-7") for n in range(12)]
        assert len({replicas[0] for replicas in went}) == 1


async def test_round_robin_is_there_to_compare_with(
    home: Path, plain: MockVllm, speculative: MockVllm
) -> None:
    settings = two_replicas(home, plain, speculative, more="replica_choice:\n  rule: round_robin\n")
    async with running(settings) as gateway:
        went = await turns(gateway, "Question 1.", 4)
        assert went[0] != went[1]
        assert Counter(went) == {"plain-0": 2, "plain-1": 2}
        assert await choices(gateway) == {"round_robin": 4}


async def test_a_conversation_goes_to_the_other_replica_while_its_own_fails_and_comes_back(
    home: Path, plain: MockVllm, speculative: MockVllm
) -> None:
    engines = {"plain-0": plain, "plain-1": speculative}
    async with running(two_replicas(home, plain, speculative)) as gateway:
        (own,) = set(await turns(gateway, "Question 1."))
        engines[own].fault("status", 503, times=1)
        assert (await turns(gateway, "Question 1.", 1))[0] != own
        assert set(await turns(gateway, "Question 1.")) == {own}
        assert await choices(gateway) == {"affinity": 7, "only": 1}
