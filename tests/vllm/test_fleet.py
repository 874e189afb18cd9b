"""The bundled fleet answers, tells the truth about itself, comes back when killed, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from backends.files import load_pools
from backends.fleet_file import FLEET_FILE_NAME, read_fleet
from backends.keepwarm import OUTPUT_TOKENS
from backends.launch.command import vllm_argv
from backends.launch.guard import processes, session_members
from backends.pool import PoolSpec, ReplicaLoad, ReplicaState
from backends.scrape import parse_metrics
from backends.upkeep import UpkeepKind
from tests.vllm.conftest import REPOSITORY, VLLM_PYTHON, RunningFleet

pytestmark = pytest.mark.vllm

POOLS = ("plain", "speculative")
MESSAGES = [{"role": "user", "content": "Tell a story about a small town."}]


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def eventually(holds: Callable[[], object], *, within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, "did not happen in time"
        time.sleep(0.2)


def chat(url: str, **extra: object) -> httpx.Response:
    body = {"model": "tollgate-reference", "messages": MESSAGES, "max_tokens": 12, "ignore_eos": True}
    return httpx.post(f"{url}/v1/chat/completions", json={**body, **extra}, timeout=60, trust_env=False)


def _more(before: float | None, after: float | None) -> float:
    assert before is not None
    assert after is not None
    return after - before


def load_of(url: str) -> ReplicaLoad:
    text = httpx.get(f"{url}/metrics", timeout=10, trust_env=False).text
    return parse_metrics(text, scraped_at_s=time.monotonic())


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_pool_answers(fleet: RunningFleet, pool: str, temperature: float) -> None:
    answer = chat(fleet.urls[pool], temperature=temperature)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["usage"]["completion_tokens"] == 12
    assert document["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0
    assert document["metrics"]["time_to_first_token_ms"] > 0
    assert ("speculative_decoding" in document["metrics"]) >= (pool == "speculative")


def test_a_pool_streams(fleet: RunningFleet, pool: str) -> None:
    answer = chat(fleet.urls[pool], stream=True, stream_options={"include_usage": True}, temperature=0)
    assert answer.status_code == 200, answer.text
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 12
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks[:-1])
    assert text == chat(fleet.urls[pool], temperature=0).json()["choices"][0]["message"]["content"]


def test_a_repeated_prompt_is_found_in_the_prefix_cache(fleet: RunningFleet, pool: str) -> None:
    messages = [
        {"role": "user", "content": f"Tell a story about {pool} numbers: {' '.join('1234567890' * 8)}."}
    ]
    first, second = (
        chat(fleet.urls[pool], messages=messages, temperature=0).json()["usage"] for _ in range(2)
    )
    assert first["prompt_tokens"] == second["prompt_tokens"] > 64
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] >= 64


def test_metrics_count_what_was_generated(fleet: RunningFleet, pool: str) -> None:
    url = fleet.urls[pool]
    before = load_of(url)
    usage = chat(url, temperature=0).json()["usage"]
    # The engine publishes its counters after the answer has left.
    eventually(
        lambda: (
            load_of(url).generation_tokens_total - before.generation_tokens_total
            == usage["completion_tokens"]
        ),
        within_s=10,
    )
    after = load_of(url)
    assert after.prompt_tokens_total - before.prompt_tokens_total == usage["prompt_tokens"]
    assert (after.requests_running, after.requests_waiting) == (0, 0)
    assert 0 <= after.kv_cache_usage_ratio <= 1
    assert after.prefix_cache_hit_tokens_total <= after.prefix_cache_query_tokens_total
    if pool == "plain":
        assert after.draft_steps_total is None
        assert after.mean_acceptance_length is None
    else:
        steps, drafted, accepted = (
            _more(getattr(before, name), getattr(after, name))
            for name in ("draft_steps_total", "draft_tokens_total", "accepted_tokens_total")
        )
        # Of this request alone: near the end of its context another one drafts less.
        assert 0 <= accepted <= drafted == 4 * steps
        assert after.mean_acceptance_length is not None
        assert 1 <= after.mean_acceptance_length <= 5


def test_a_killed_engine_brings_the_replica_back(fleet: RunningFleet) -> None:
    (old,) = (one for one in fleet.published.replicas if one.pool == "plain")
    (engine,) = (pid for pid in session_members(old.pid) if b"EngineCore" in command_of(pid))
    os.kill(engine, signal.SIGKILL)
    eventually(lambda: not fleet.is_ready("plain"), within_s=60)
    eventually(lambda: fleet.is_ready("plain"), within_s=300)
    assert session_members(old.pid) == []
    assert fleet.urls["plain"] != old.url
    assert chat(fleet.urls["plain"]).status_code == 200
    assert any(one.state is ReplicaState.UNHEALTHY for one in fleet.progress if one.replica == "plain-0")


def test_a_hung_engine_that_answers_health_is_found_and_replaced(fleet: RunningFleet) -> None:
    (old,) = (one for one in fleet.published.replicas if one.pool == "plain")
    (engine,) = (pid for pid in session_members(old.pid) if b"EngineCore" in command_of(pid))
    with ThreadPoolExecutor(8) as clients:
        # Together they take many seconds: one alone may be over before anybody has seen it.
        asked = [clients.submit(chat, old.url, max_tokens=900) for _ in range(8)]
        eventually(lambda: load_of(old.url).requests_running, within_s=30)
        os.kill(engine, signal.SIGSTOP)
        assert httpx.get(f"{old.url}/health", trust_env=False, timeout=10).status_code == 200
        eventually(lambda: not fleet.is_ready("plain"), within_s=60)
        eventually(lambda: fleet.is_ready("plain"), within_s=300)
        # They could not be helped: the server tells its clients when it is ended, or closes.
        cut = [one for one in asked if one.exception(timeout=30) or one.result().status_code >= 500]
        assert cut
    assert session_members(old.pid) == []
    assert chat(fleet.urls["plain"]).status_code == 200
    (new,) = (one for one in fleet.published.replicas if one.pool == "plain")
    assert new.errors[-1].text.startswith("hangs, nothing moved for")
    assert new.restarts > old.restarts


def test_a_replica_has_been_warmed_up_on_our_account(fleet: RunningFleet, pool: str) -> None:
    (warm, *_) = (each for each in fleet.published.upkeep if each.pool == pool)
    assert warm.kind is UpkeepKind.WARM_UP
    # Every shape was served, the prompt near the batching limit too, or the tokens would be fewer.
    longest = fleet.specs[pool].model.max_model_len
    assert warm.tokens.input > longest - OUTPUT_TOKENS
    assert warm.tokens.output > 10 * OUTPUT_TOKENS


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


RUN_FLEET = """
import asyncio, sys
from pathlib import Path
from backends.files import load_pools
from backends.launch.process import ProcessFleet

pools = load_pools(Path("backends/pools"))
fleet = ProcessFleet(
    {"plain": pools["plain"]},
    state_dir=Path(sys.argv[1]),
    python=Path(sys.argv[2]),
    on_progress=lambda progress: None,
)
asyncio.run(fleet.start())
"""


def test_a_killed_program_leaves_no_engine_behind(tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", RUN_FLEET, str(tmp_path), str(VLLM_PYTHON)], cwd=REPOSITORY
    )
    try:
        session = 0

        def has_an_engine() -> bool:
            nonlocal session
            assert program.poll() is None
            fleet = read_fleet(tmp_path / FLEET_FILE_NAME)
            session = fleet.replicas[0].pid if fleet is not None else 0
            # Two keepers, the API server, its resource tracker, the engine.
            return session != 0 and len(session_members(session)) >= 5

        eventually(has_an_engine, within_s=300)
    finally:
        program.kill()
        program.wait()
    eventually(lambda: not session_members(session), within_s=30)
    assert not [one for one in processes() if one.session_id == session]


PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = make_arg_parser(FlexibleArgumentParser())
known = {option for action in parser._actions for option in action.option_strings}
for argv in json.load(sys.stdin):
    abbreviated = [word for word in argv if word.startswith("--") and word not in known]
    assert not abbreviated, abbreviated
    arguments = parser.parse_args(argv)
    validate_parsed_serve_args(arguments)
print("all parsed")
"""


def test_vllms_own_parser_knows_every_flag() -> None:
    specs = load_pools(REPOSITORY / "backends" / "pools")
    plain = specs["plain"]
    lookup = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    changed = PoolSpec.model_validate(
        plain.model_dump(exclude={"replica_choice"})  # its default goes by prefixes, which are off here
        | {
            "speculation": lookup,
            "hardware": plain.hardware.model_dump() | {"tensor_parallel_size": 2},
            "engine_args": {"enforce_eager": False, "seed": 1},
            "batching": {
                "max_num_seqs": 4,
                "max_num_batched_tokens": 512,
                "enable_chunked_prefill": False,
                "enable_prefix_caching": False,
            },
        }
    )
    commands = [vllm_argv(spec, python=VLLM_PYTHON, port=1)[3:] for spec in (*specs.values(), changed)]
    parsed = subprocess.run(
        [str(VLLM_PYTHON), "-c", PARSE],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert parsed.returncode == 0, parsed.stderr[-3000:]
    assert parsed.stdout.endswith("all parsed\n")
