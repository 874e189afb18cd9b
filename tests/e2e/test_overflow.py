"""Does a client that hangs up stop the outside, and does a gateway without overflow stay lean?"""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import httpx
import openai
import pytest

from tests.e2e.site import PATIENCE_S, RawClient, Row, attempts, eventually, mark
from tests.support.gateway_process import GatewayProcess, environment, run_cli
from tests.support.mock_process import OpenAiServer
from tests.support.pool_files import DEFAULT_POLICY, write_pools

LOADING_S: Final = 180.0
"""For litellm to be read and run in: 7 s of CPU, on a machine that may have other things to do."""
KEY: Final = "sk-outside-7f3a9c1e5b"
NOWHERE: Final = {"speculative": ["http://127.0.0.1:9"], "plain": ["http://127.0.0.1:9"]}
"""Pools whose replicas are all down."""
POLICY: Final = """\
name: overflowing
models:
  auto: {pools: [speculative, plain], overflow: [outside]}
external:
  outside:
    model: gpt-4o-mini
    api_base: OUTSIDE
    api_key: elsewhere
    max_model_len: 128000
    rates: {input: "1.50", cached_input: "0.7501", output: "6", reasoning: "7"}
routes:
  predictable: [speculative, plain]
  creative: [plain, speculative]
max_tokens_default: 256
"""
ASK: Final[dict[str, Any]] = {"model": "auto", "messages": [{"role": "user", "content": "Tell me a story"}]}


@pytest.fixture(scope="module")
def _outside() -> Iterator[OpenAiServer]:
    with OpenAiServer("--api-key", KEY) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(_outside: OpenAiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose pools are all down; the demo tenant's owner has opted in."""
    folder = tmp_path_factory.mktemp("overflow")
    policy = folder / "policy.yaml"
    policy.write_text(POLICY.replace("OUTSIDE", _outside.api_base))
    settings = {"TOLLGATE_POLICY": str(policy), "TOLLGATE_EXTERNAL_KEYS__ELSEWHERE": KEY}
    with GatewayProcess(
        folder, NOWHERE, settings=settings, is_up=False, start_timeout_s=LOADING_S
    ) as started:
        with closing(sqlite3.connect(started.state_dir / "tollgate.db", timeout=10)) as database:
            database.execute("UPDATE tenants SET is_internal_only = 0")
            database.execute("UPDATE changes SET revision = revision + 1")
            database.commit()
        eventually(lambda: _is_served(started), within_s=PATIENCE_S)
        yield started


def _is_served(gateway: GatewayProcess) -> bool:
    url = f"{gateway.url}/v1/chat/completions"
    answer = httpx.post(url, json=ASK, headers=gateway.headers, trust_env=False, timeout=30)
    return answer.status_code == 200


@pytest.fixture
def outside(_outside: OpenAiServer, gateway: GatewayProcess) -> OpenAiServer:
    """The world outside, behaving and with empty books."""
    _outside.reset()
    return _outside


def test_the_official_client_notices_nothing(gateway: GatewayProcess, outside: OpenAiServer) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        answer = client.chat.completions.create(**ASK)
        assert (answer.model, answer.choices[0].message.content) == ("auto", "Over the hills")
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 20
        stream = client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        assert (
            "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            == "Over the hills"
        )
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.model_extra == {"cost_usd": "0.000082001"}
        text = client.completions.create(model="auto", prompt="Once", stream=True)
        assert "".join(chunk.choices[0].text for chunk in text) == "Over the hills"
        outside.control(status=429, error={"message": "Slow down", "code": "rate_limit_exceeded"})
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**ASK)
        assert caught.value.status_code == 503


def _leave(gateway: GatewayProcess, outside: OpenAiServer, body: dict[str, Any], *, contents: int) -> Row:
    """Ask, read so many contents, hang up; the row once the outside has noticed."""
    name = mark()
    with RawClient(gateway) as client:
        client.ask(body, f"x-request-id: {name}")
        outside.wait_for(in_flight=1)
        if contents:
            client.read_until(b'"delta":{"content"', times=contents)
    outside.wait_for(aborted=1, in_flight=0, connections_open=0)
    found: list[Row] = []

    def has_arrived() -> bool:
        found[:] = attempts(gateway, client_request_id=name)
        return bool(found)

    eventually(has_arrived)
    (row,) = found
    assert (row["state"], row["payer"], row["pool"]) == ("cancelled", "tenant", "outside")
    assert row["usage_source"] == "estimated"
    return row


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_an_answer_closes_the_way_out(
    gateway: GatewayProcess, outside: OpenAiServer, *, stream: bool
) -> None:
    outside.control(hangs=True)
    row = _leave(gateway, outside, {**ASK, "stream": stream}, contents=0)
    assert (row["status_code"], row["output_tokens"]) == (499, 0)


def test_a_client_that_leaves_in_the_middle_of_a_stream_closes_the_way_out(
    gateway: GatewayProcess, outside: OpenAiServer
) -> None:
    outside.control(hangs_after=2)
    row = _leave(gateway, outside, {**ASK, "stream": True}, contents=2)
    assert row["output_tokens"] == 2
    assert row["charge_usd_nanos"] == row["input_tokens"] * 1500 + 2 * 6000


def test_no_prompt_and_no_key_is_ever_logged(gateway: GatewayProcess, outside: OpenAiServer) -> None:
    secret = f"The password is {mark()}"
    body = {**ASK, "messages": [{"role": "user", "content": secret}]}
    for status in (200, 400, 401, 500):
        outside.control(status=status)
        answer = httpx.post(
            f"{gateway.url}/v1/chat/completions",
            json=body,
            headers=gateway.headers,
            trust_env=False,
            timeout=30,
        )
        assert answer.status_code in {200, 400, 502}
    assert len(outside.received()) == 4
    logged = gateway.said()
    assert "external target 'outside' answered 500" in logged
    assert secret not in logged
    assert KEY not in logged
    assert "iteLLM" not in logged.replace("litellm.", "")


# ---------------------------------------------------------------------------------------------- lean without
_LOADED: Final = """\
import asyncio, os, sys
from gateway.app import create_app
from gateway.migrate import upgrade
from gateway.settings import load_settings

async def main():
    app = create_app(load_settings())
    async with app.router.lifespan_context(app):
        print("litellm" in sys.modules, "openai" in sys.modules, os.environ.get("FROM_A_DOTENV_FILE"))

upgrade(load_settings().effective_database_url)
asyncio.run(main())
"""


@pytest.mark.parametrize("is_overflowing", [False, True])
def test_litellm_is_loaded_only_by_a_policy_that_names_an_external_target(
    tmp_path: Path, *, is_overflowing: bool
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.replace("OUTSIDE", "http://127.0.0.1:9/v1"))
    (tmp_path / "state").mkdir()
    write_pools(tmp_path / "pools", NOWHERE)
    (tmp_path / ".env").write_text("FROM_A_DOTENV_FILE=1\n")
    settings = {
        "TOLLGATE_POLICY": str(policy if is_overflowing else DEFAULT_POLICY),
        "TOLLGATE_EXTERNAL_KEYS__ELSEWHERE": KEY,
    }
    outcome = subprocess.run(
        [sys.executable, "-c", _LOADED],
        cwd=tmp_path,
        env=environment(tmp_path, settings),
        capture_output=True,
        text=True,
        timeout=LOADING_S,
        check=False,
    )
    assert outcome.stdout.strip() == f"{is_overflowing} {is_overflowing} None", outcome.stderr


def test_a_key_that_is_not_configured_stops_the_start_and_not_the_check(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.replace("OUTSIDE", "http://127.0.0.1:9/v1"))
    write_pools(tmp_path / "pools", NOWHERE)
    advice = (
        f"{policy}: external.outside.api_key: there is no key 'elsewhere': "
        "set TOLLGATE_EXTERNAL_KEYS__ELSEWHERE"
    )
    without = environment(tmp_path, {"TOLLGATE_POLICY": str(policy)})
    served = run_cli(without, tmp_path, "serve")
    assert (served.returncode, served.stderr.strip()) == (2, f"tollgate: {advice}")
    checked = run_cli(without, tmp_path, "policy", "check")
    assert checked.returncode == 0
    assert f"{policy}: valid, version overflowing@" in checked.stdout
    assert "set TOLLGATE_EXTERNAL_KEYS__ELSEWHERE" in checked.stdout
    ready = environment(tmp_path, {"TOLLGATE_POLICY": str(policy), "TOLLGATE_EXTERNAL_KEYS__ELSEWHERE": KEY})
    assert "EXTERNAL_KEYS" not in run_cli(ready, tmp_path, "policy", "check").stdout
    config = run_cli(ready, tmp_path, "config")
    assert "external_keys.elsewhere" in config.stdout
    assert KEY not in config.stdout
