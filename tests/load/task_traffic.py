"""Which requests does the comparison of routing rules send, how, and what does a client see of each?

Records that become JSON at temperature 0 and little stories at temperature 1, from the recipe's generator, in
turn and never twice the same. Nobody declares a task: whoever routes by task has to find it. All are streams
through a gateway. A rule names the model alias that a request asks for, so that every rule takes the same hot
path; least loaded goes by what is under way, which this client knows exactly, because there is no other.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from backends.bench.workload import Prompt, Prompts, TaskName

POOLS: Final = ("plain", "speculative")
TASKS: Final[tuple[TaskName, ...]] = ("extraction", "creative")
ALIAS: Final = "tollgate-reference-{}"
"""Of the shipped policy: one pool, always."""
AUTO: Final = "auto"
ANSWER_TOKENS_MAX: Final = 160
INPUT_TOKENS: Final = 60
REQUEST_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """What arrives, and how."""

    name: str
    requests: int
    concurrency: int = 0
    """Closed loop: so many at any time; 0: by chance."""
    per_s: float = 0.0
    """Poisson arrivals per second."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer as its client saw it; times of `time.perf_counter`, seconds."""

    task: TaskName
    found_task: str
    """By the gateway."""
    pool: str
    start_s: float
    first_s: float
    last_s: float
    input_tokens: int
    output_tokens: int
    charge_usd: float
    request_id: str

    @property
    def ttft_s(self) -> float:
        """From sending to the first token."""
        return self.first_s - self.start_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time between tokens; None with a single one."""
        between = self.output_tokens - 1
        return (self.last_s - self.first_s) / between if between > 0 else None


class RequestFailed(RuntimeError):
    """The gateway did not answer as it should; the figures would be of something else."""


Under = Mapping[str, int]
"""Requests under way by pool."""


def by_turns() -> Callable[[Under], str]:
    """Round robin over the pools, blind to the task."""
    turn = 0

    def choose(_: Under) -> str:
        nonlocal turn
        turn += 1
        return ALIAS.format(POOLS[turn % len(POOLS)])

    return choose


def least_loaded() -> Callable[[Under], str]:
    """The pool with the fewest requests under way; in turn where they have as many."""
    turn = 0

    def choose(under_way: Under) -> str:
        nonlocal turn
        turn += 1
        order = POOLS if turn % 2 else POOLS[::-1]
        return ALIAS.format(min(order, key=lambda pool: under_way[pool]))

    return choose


def always(alias: str) -> Callable[[Under], str]:
    """One alias for all."""
    return lambda _: alias


@dataclass(frozen=True, slots=True)
class Rule:
    """Who is asked for a request."""

    name: str
    title: str
    make: Callable[[], Callable[[Under], str]]
    gateway: str = "order"
    """Which of the gateways: `order` has the shipped policy, `economics` the same with economics on."""


RULES: Final = (
    Rule("round_robin", "task-blind round robin", by_turns),
    Rule("plain", "everything to plain", lambda: always(ALIAS.format("plain"))),
    Rule("speculative", "everything to speculative", lambda: always(ALIAS.format("speculative"))),
    Rule("least_loaded", "least loaded", least_loaded),
    Rule("order", "Tollgate, the policy's order", lambda: always(AUTO)),
    Rule("tollgate", "Tollgate with economics", lambda: always(AUTO), "economics"),
)
BASE: Final = "round_robin"


def prompts_of(load: Load, seed: int) -> list[Prompt]:
    """The requests of a load: the tasks shuffled, half of each."""
    supply, draw = Prompts(seed), random.Random(seed)
    tasks = [TASKS[index % len(TASKS)] for index in range(load.requests)]
    draw.shuffle(tasks)
    return [
        supply.take(
            task,
            input_tokens=draw.randrange(1, 2 * INPUT_TOKENS),
            output_tokens_max=ANSWER_TOKENS_MAX,
            is_output_fixed=False,
        )
        for task in tasks
    ]


def arrivals(load: Load, seed: int) -> list[float]:
    """Seconds from the start; all 0 in a closed loop."""
    draw, at_s = random.Random(seed), 0.0
    moments = []
    for _ in range(load.requests):
        at_s += draw.expovariate(load.per_s) if load.per_s else 0.0
        moments.append(at_s)
    return moments


class Client:
    """Sends streams to one gateway with one key."""

    def __init__(self, url: str, key: str) -> None:
        self._url = f"{url}/v1/chat/completions"
        self.under_way: Counter[str] = Counter()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        # A company's HTTP proxy is not the way to this machine.
        self._client = httpx.AsyncClient(  # noqa: TID251 - measures, serves nobody
            trust_env=False,
            limits=limits,
            timeout=REQUEST_TIMEOUT_S,
            headers={"authorization": f"Bearer {key}"},
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def send(self, prompt: Prompt, choose: Callable[[Under], str]) -> Seen:
        """One request to its end.

        Raises:
            RequestFailed: it was refused, or ended without usage.
        """
        alias = choose(self.under_way)
        pool = alias.removeprefix(ALIAS.format(""))
        self.under_way[pool] += 1
        try:
            return await self._stream(prompt, alias)
        except httpx.HTTPError as error:
            raise RequestFailed(f"{self._url}: {str(error) or type(error).__name__}") from error
        finally:
            self.under_way[pool] -= 1

    async def _stream(self, prompt: Prompt, alias: str) -> Seen:
        start_s = time.perf_counter()
        first_s = last_s = 0.0
        final: dict[str, Any] = {}
        async with self._client.stream("POST", self._url, json=prompt.body(alias)) as answer:
            if answer.status_code != httpx.codes.OK:
                text = (await answer.aread()).decode(errors="replace")
                raise RequestFailed(f"{self._url}: status {answer.status_code}: {text[:300]}")
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                if '"choices":[]' in line:
                    final = json.loads(line[6:])
                elif '"role":' not in line:
                    last_s = time.perf_counter()
                    first_s = first_s or last_s
            headers = answer.headers
        usage = final.get("usage")
        if not usage or not first_s:
            raise RequestFailed(f"the stream {headers.get('x-request-id')} ended without usage: {final}")
        return Seen(
            task=prompt.task,
            found_task=headers["x-tollgate-task"].partition(";")[0],
            pool=headers["x-tollgate-pool"],
            start_s=start_s,
            first_s=first_s,
            last_s=last_s,
            input_tokens=usage["prompt_tokens"],
            output_tokens=usage["completion_tokens"],
            charge_usd=float(usage["cost_usd"]),
            request_id=headers["x-request-id"],
        )


async def drive(load: Load, client: Client, choose: Callable[[Under], str], seed: int) -> list[Seen]:
    """A load to its end, in the order in which its requests were to be sent.

    Raises:
        RequestFailed: one of them failed; the others are given up.
    """
    prompts = prompts_of(load, seed)
    found: dict[int, Seen] = {}
    try:
        async with asyncio.TaskGroup() as group:
            if load.concurrency:
                waiting = iter(enumerate(prompts))

                async def one_after_the_other() -> None:
                    for index, prompt in waiting:
                        found[index] = await client.send(prompt, choose)

                for _ in range(min(load.concurrency, len(prompts))):
                    group.create_task(one_after_the_other())
            else:
                begin_s = time.perf_counter()

                async def at_its_moment(index: int, at_s: float) -> None:
                    await asyncio.sleep(max(0.0, begin_s + at_s - time.perf_counter()))
                    found[index] = await client.send(prompts[index], choose)

                for index, at_s in enumerate(arrivals(load, seed)):
                    group.create_task(at_its_moment(index, at_s))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [found[index] for index in sorted(found)]


def duration_s(answers: Sequence[Seen]) -> float:
    """From the first request's start to the last token."""
    return max(one.last_s for one in answers) - min(one.start_s for one in answers)
