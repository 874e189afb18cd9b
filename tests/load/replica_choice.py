"""How much of the prompts would be found in the replicas' caches under each rule of choosing a replica?

    python -m tests.load.replica_choice [trace.jsonl.gz] [--replicas 2,4,8,16] [--blocks 2000]

Replays a trace of conversations (without an argument the one in tests/load/traces, see its README) against
replicas that are a model: a cache of so many blocks, the least recently used forgotten first; prompts read
one after another, at PREFILL_TOKENS_PER_S for what was not in the cache; answers written side by side, the
slower the more there are. The rules that Tollgate has are its own code (backends/choice.py), and a gateway
sees of the loads what a real one sees: its own requests at once, those of others once a second. The rest are
there to be compared with. The trace is played faster the more replicas there are: each has the same to do.

The trace has no text. Tollgate's key is how a conversation opens; here the second block of 512 tokens stands
for it, because the first is the same in all requests: what everybody's system prompt is. Answers are not in
it either, so that what an engine keeps of them counts for nothing.

The result is tests/load/results/replica_choice.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import heapq
import itertools
import json
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from backends.choice import Chooser, Rule, Why, key_of, multiplier_of, others_now
from backends.pool import AT_EASE_MAX, ReplicaChoiceSpec
from tests.load.measured import ROOT, write_result

TRACE: Final = ROOT / "tests" / "load" / "traces" / "mooncake_conversation.jsonl.gz"
BLOCK_TOKENS: Final = 512
SPEED_PER_REPLICA: Final = 0.3
"""Keeps a replica's reading busy for 62 % of the time if nothing is found in the cache."""
PREFILL_TOKENS_PER_S: Final = 20_000
"""With STEP_S and STEP_PER_REQUEST_S about what an 8B model does on an 80 GB card."""
STEP_S: Final = 0.010
STEP_PER_REQUEST_S: Final = 0.0003
SCRAPE_INTERVAL_S: Final = 1.0
GATEWAYS: Final = (1, 4)
UNBOUNDED: Final = 1e9
INDEX_ENTRIES: Final = 32_768
BOUNDS: Final = ReplicaChoiceSpec()
TOLLGATE: Final = f"affinity, {BOUNDS.load_factor} x mean or {AT_EASE_MAX} (Tollgate)"
ORACLE: Final = "one cache for all"
BALANCING: Final = ("round robin", "least loaded", "two choices")


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the trace."""

    at_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    """Equal numbers are equal prefixes; the last block may not be full."""

    @property
    def key(self) -> int:
        """Stands for how its conversation opens."""
        return key_of(self.blocks[min(2, len(self.blocks)) - 1].to_bytes(8, "little"))


def read_trace(path: Path) -> list[Request]:
    """The requests of a trace, in Mooncake's form or in that of tests/load/traces."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [_request(json.loads(line)) for line in lines]


def _request(line: Any) -> Request:
    if isinstance(line, dict):
        at_ms, read, written = line["timestamp"], line["input_length"], line["output_length"]
        blocks = tuple(line["hash_ids"])
    else:
        at_ms, read, written, runs = line
        pairs = zip(runs[::2], runs[1::2], strict=True)
        blocks = tuple(block for first, last in pairs for block in range(first, last + 1))
    return Request(at_ms / 1000, read, written, blocks)


class Cache:
    """An engine's prefix cache."""

    def __init__(self, blocks_max: int) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._blocks_max = blocks_max

    def read(self, request: Request) -> int:
        """How many tokens of a prompt are found; all of its full blocks are kept then."""
        full = request.blocks[: request.input_tokens // BLOCK_TOKENS]
        found = 0
        while found < len(full) and full[found] in self._blocks:
            found += 1
        for block in full:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._blocks_max:
            self._blocks.popitem(last=False)
        return found * BLOCK_TOKENS


@dataclass(slots=True)
class Engine:
    """A replica."""

    cache: Cache
    requests: int = 0
    reads_until_s: float = 0.0

    def serve(self, request: Request, now_s: float) -> tuple[int, float, float]:
        """Tokens found in the cache; seconds until the first token, and until the end."""
        found = self.cache.read(request)
        begin_s = max(now_s, self.reads_until_s)
        self.reads_until_s = begin_s + (request.input_tokens - found) / PREFILL_TOKENS_PER_S
        self.requests += 1
        first_token_s = self.reads_until_s - now_s
        step_s = STEP_S + STEP_PER_REQUEST_S * self.requests
        return found, first_token_s, first_token_s + request.output_tokens * step_s


@dataclass(slots=True)
class Seen:
    """What one gateway knows of a replica."""

    number: int
    multiplier: int
    own: int = 0
    others: float | None = None
    copies: int = 0

    @property
    def requests(self) -> int:
        """Under way there."""
        return self.own + round(self.others or 0)

    @requests.setter
    def requests(self, value: int) -> None:
        raise NotImplementedError


class Chooses(Protocol):
    """A rule."""

    def __call__(self, replicas: Sequence[Seen], request: Request) -> Seen:
        """Where a request goes."""


MakeRule = Callable[[random.Random], Chooses]


@dataclass
class Ours:
    """A rule of Tollgate's."""

    chooser: Chooser
    depth: int = 2
    """Of the block that is the key."""
    whys: list[Why] = field(default_factory=list)

    def __call__(self, replicas: Sequence[Seen], request: Request) -> Seen:
        key = request.key if self.depth == 2 else key_of(request.blocks[0].to_bytes(8, "little"))
        taken, why = self.chooser.choose(replicas, lambda: key)
        self.whys.append(why)
        return taken


def ours(rule: Rule, load_factor: float = 1.0, *, at_ease: int = 1, depth: int = 2) -> MakeRule:
    """A rule of Tollgate's with these bounds."""
    return lambda draw: Ours(Chooser(rule, load_factor=load_factor, at_ease=at_ease, draw=draw.random), depth)


def at_random(draw: random.Random) -> Chooses:
    """Any replica."""
    return lambda replicas, _: draw.choice(replicas)


def least_loaded(draw: random.Random) -> Chooses:
    """The one with the fewest requests."""
    return lambda replicas, _: min(replicas, key=lambda one: (one.requests, draw.random()))


class PrefixIndex:
    """Remembers which replicas were sent which prefixes; the deepest known prefix wins.

    What was considered instead of rendezvous hashing: each process knows only what it sent itself. Prefixes
    are remembered at block 1, 2, 3, 4, 6, 8, 12, …, so that a long prompt costs no more than a short one.
    """

    def __init__(self, draw: random.Random) -> None:
        self._two = Chooser(Rule.TWO_CHOICES, load_factor=1, at_ease=1, draw=draw.random)
        self._bounds = Chooser(Rule.AFFINITY, load_factor=BOUNDS.load_factor, at_ease=AT_EASE_MAX)
        self._replicas: OrderedDict[int, set[int]] = OrderedDict()

    def __call__(self, replicas: Sequence[Seen], request: Request) -> Seen:
        depths = list(self._depths(len(request.blocks)))
        bound = self._bounds.bound(replicas)
        taken = None
        for depth in reversed(depths[1:]):  # the first block is everybody's
            known = self._replicas.get(request.blocks[depth - 1], ())
            fit = [replicas[number] for number in known if replicas[number].requests < bound]
            if fit:
                taken = min(fit, key=lambda one: one.requests)
                break
        if taken is None:
            taken, _ = self._two.choose(replicas)
        for depth in depths:
            block = request.blocks[depth - 1]
            self._replicas.setdefault(block, set()).add(taken.number)
            self._replicas.move_to_end(block)
        while len(self._replicas) > INDEX_ENTRIES:
            self._replicas.popitem(last=False)
        return taken

    @staticmethod
    def _depths(blocks: int) -> Iterator[int]:
        depth, step = 1, 1
        while depth <= blocks:
            yield depth
            if depth >= 4 * step:
                step *= 2
            depth += step


RULES: Final[dict[str, MakeRule]] = {
    "round robin": ours(Rule.ROUND_ROBIN),
    "random": at_random,
    "least loaded": least_loaded,
    "two choices": ours(Rule.TWO_CHOICES),
    "affinity, first block only": ours(Rule.AFFINITY, UNBOUNDED, depth=1),
    "affinity, unbounded": ours(Rule.AFFINITY, UNBOUNDED),
    "affinity, 1.1 x mean": ours(Rule.AFFINITY, 1.1),
    "affinity, 1.25 x mean": ours(Rule.AFFINITY, 1.25),
    "affinity, 1.5 x mean": ours(Rule.AFFINITY, 1.5),
    "affinity, 2 x mean": ours(Rule.AFFINITY, 2.0),
    TOLLGATE: ours(Rule.AFFINITY, BOUNDS.load_factor, at_ease=AT_EASE_MAX),
    "affinity, 1.5 x mean or 8": ours(Rule.AFFINITY, 1.5, at_ease=AT_EASE_MAX),
    "index of prefixes": PrefixIndex,
}


def replay(
    trace: Sequence[Request],
    make_rule: MakeRule,
    *,
    replicas: int,
    blocks: int,
    gateways: int = 1,
    is_shared: bool = False,
    seed: int = 1,
) -> dict[str, float]:
    """Figures of one rule.

    Args:
        trace: what is asked, in order of time.
        make_rule: the rule; each gateway has its own.
        replicas: of the pool.
        blocks: that one replica's cache holds.
        gateways: each request comes to any of them.
        is_shared: all replicas have one cache, as large as all of theirs: no rule can find more.
        seed: of what is drawn.
    """
    draw = random.Random(seed)
    common = Cache(blocks * replicas)
    engines = [Engine(common if is_shared else Cache(blocks)) for _ in range(replicas)]
    rules = [make_rule(draw) for _ in range(gateways)]
    seen = [
        [Seen(number, multiplier_of(f"replica-{number}")) for number in range(replicas)]
        for _ in range(gateways)
    ]
    ends: list[tuple[float, int, int]] = []
    found_tokens = 0
    scrape_at_s = 0.0
    firsts, imbalances = [], []
    for request in trace:
        now_s = request.at_s / (SPEED_PER_REPLICA * replicas)
        while ends and ends[0][0] <= now_s:
            _, gateway, number = heapq.heappop(ends)
            engines[number].requests -= 1
            seen[gateway][number].own -= 1
        if now_s >= scrape_at_s:
            scrape_at_s = now_s + SCRAPE_INTERVAL_S
            for known in seen:
                for one in known:
                    one.others = others_now(one.others, engines[one.number].requests - one.own)
        gateway = draw.randrange(gateways)
        taken = rules[gateway](seen[gateway], request)
        taken.own += 1
        found, first_token_s, end_s = engines[taken.number].serve(request, now_s)
        heapq.heappush(ends, (now_s + end_s, gateway, taken.number))
        found_tokens += found
        firsts.append(first_token_s)
        loads = [engine.requests for engine in engines]
        imbalances.append(max(loads) * replicas / sum(loads))
    passed_on = sum(rule.whys.count(Why.PASSED_ON) for rule in rules if isinstance(rule, Ours))
    return {
        "hit_ratio": round(found_tokens / sum(request.input_tokens for request in trace), 4),
        "load_max_to_mean": round(sum(imbalances) / len(trace), 3),
        "passed_on_ratio": round(passed_on / len(trace), 4),
        "first_token_s_mean": round(sum(firsts) / len(trace), 3),
        "first_token_s_p95": round(sorted(firsts)[math.ceil(0.95 * len(trace)) - 1], 3),
    }


def nothing_shared(trace: Sequence[Request]) -> list[Request]:
    """The same trace, were there no two requests with a common prefix."""
    numbers = itertools.count()
    return [
        dataclasses.replace(each, blocks=tuple(itertools.islice(numbers, len(each.blocks)))) for each in trace
    ]


def compare(
    trace: Sequence[Request], *, replicas: int, blocks: int, names: Sequence[str] = tuple(RULES)
) -> dict[str, Any]:
    """Rules at one size of the pool; a line of progress for each."""
    print(f"\n{replicas} replicas, {blocks} blocks each{'':22}1 gateway{'':20}4 gateways", flush=True)
    print(f"{'':38}  hits  load  first token s{'':9}hits  load  first token s", flush=True)
    oracle = replay(trace, least_loaded, replicas=replicas, blocks=blocks, is_shared=True)
    _print(ORACLE, [oracle])
    figures: dict[str, Any] = {ORACLE: {"gateways_1": oracle}}
    for name in names:
        make_rule = RULES[name]
        runs = [replay(trace, make_rule, replicas=replicas, blocks=blocks, gateways=n) for n in GATEWAYS]
        _print(name, runs)
        figures[name] = {f"gateways_{n}": run for n, run in zip(GATEWAYS, runs, strict=True)}
    return figures


def _print(name: str, runs: Sequence[dict[str, float]]) -> None:
    columns = "        ".join(
        f"{run['hit_ratio']:6.1%} {run['load_max_to_mean']:5.2f} {run['first_token_s_mean']:5.2f}"
        f" p95 {run['first_token_s_p95']:5.2f}"
        for run in runs
    )
    print(f"{name:38}{columns}", flush=True)


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description="Replay a trace under each rule of choosing a replica.")
    parser.add_argument("trace", nargs="?", type=Path, default=TRACE, help="JSON lines, .gz or not")
    parser.add_argument("--replicas", default="2,4,8,16", help="sizes of the pool")
    parser.add_argument("--blocks", type=int, default=2_000, help="blocks of 512 tokens in a replica's cache")
    options = parser.parse_args()
    trace = read_trace(options.trace)
    figures: dict[str, Any] = {
        "trace": options.trace.name,
        "requests": len(trace),
        "input_tokens": sum(request.input_tokens for request in trace),
        "blocks_per_replica": options.blocks,
    }
    for replicas in map(int, options.replicas.split(",")):
        figures[f"replicas_{replicas}"] = compare(trace, replicas=replicas, blocks=options.blocks)
        print("  were nothing shared:")
        figures[f"replicas_{replicas}_nothing_shared"] = compare(
            nothing_shared(trace), replicas=replicas, blocks=options.blocks, names=(*BALANCING, TOLLGATE)
        )
    write_result("replica_choice", figures)


if __name__ == "__main__":
    main()
