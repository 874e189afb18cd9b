"""Does what a real vLLM said reach the client byte for byte, under the name that was asked for?

What the engine says is played back from vLLM's own recordings, so that not one byte of it is made up by the
code under test. One gateway serves them all; each is asked for by a tenant of its own, whose cache is empty.
"""

import itertools
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.integration.gateway.rig import CHAT, TEXT, Events, Gateway, bearer
from tests.integration.gateway.scripted_engine import Engine, behind, stream, whole
from tests.support.mock_vllm_exchange import load

pytestmark = pytest.mark.asyncio(loop_scope="module")

Played = tuple[Gateway, Engine]
NUMBERS: Final = itertools.count()

GOLDEN: Final = Path(__file__).parents[2] / "support" / "golden"
ENGINE_ONLY: Final = {
    "system_fingerprint",
    "metrics",
    "prompt_token_ids",
    "prompt_text",
    "kv_transfer_params",
    "ec_transfer_params",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _shared(tmp_path_factory: pytest.TempPathFactory, _migrated: Path) -> AsyncIterator[Played]:
    # On SQLite alone: nothing here depends on where keys and rows are kept.
    home = tmp_path_factory.mktemp("recordings")
    (home / "state").mkdir()
    shutil.copy(_migrated, home / "state" / "tollgate.db")
    async with behind(home) as shared:
        yield shared


@pytest_asyncio.fixture(loop_scope="module")
async def played(_shared: Played) -> Played:
    """A gateway, and the engine behind it, which this test's tenant has not asked yet."""
    gateway, engine = _shared
    gateway.client.headers.update(bearer(await gateway.issue_key(f"tenant {next(NUMBERS)}")))
    engine.asked.clear()
    return _shared


STRICTER: Final = {"chat_ignored_bad_fields", "chat_numbers_as_text"}
"""vLLM guesses what a wrong type means; the gateway, which decides by these fields, says that it is wrong."""


def recordings(*, streamed: bool, refused: bool = False) -> list[Any]:
    """Answers of a real vLLM, by name; streams whose first event is an error, or all others."""
    found = []
    for path in sorted(GOLDEN.rglob("*.json")):
        ask, reply = load(path)
        is_generation = ask.path in {CHAT, TEXT} and ask.method == "POST" and reply.status == 200
        if (
            is_generation
            and reply.is_stream == streamed
            and reply.body.startswith(b'data: {"error"') == refused
            and path.stem not in STRICTER
        ):
            found.append(pytest.param(path, id=str(path.relative_to(GOLDEN).with_suffix(""))))
    return found


def _asked(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(load(path)[0].body)
    return {**body, "model": "tollgate-reference-plain"}


@pytest.mark.parametrize("path", recordings(streamed=False))
async def test_a_whole_answer_of_vllm_reaches_the_client_under_the_alias(played: Played, path: Path) -> None:
    ask, reply = load(path)
    gateway, engine = played
    engine.replay = whole(reply.body)
    answer = await gateway.client.post(ask.path, json=_asked(path))
    assert answer.status_code == 200, answer.text
    said = json.loads(reply.body)
    expected = {name: value for name, value in said.items() if name not in ENGINE_ONLY}
    expected["model"] = "tollgate-reference-plain"
    assert answer.json() == expected
    assert list(answer.json()) == [name for name in said if name not in ENGINE_ONLY]
    # Nothing is written anew: the values are the engine's own bytes.
    choices = reply.body[reply.body.index(b'"choices":') :].split(b',"service_tier"')[0]
    assert choices.split(b',"usage"')[0] in answer.content


@pytest.mark.parametrize("path", recordings(streamed=True))
async def test_a_stream_of_vllm_reaches_the_client_under_the_alias(played: Played, path: Path) -> None:
    ask, reply = load(path)
    asked = _asked(path)
    wants_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
    served = json.loads(ask.body)["model"]
    gateway, engine = played
    gateway_name = b'"model":"tollgate-reference-plain"'
    engine.replay = stream(
        [piece.replace(json.dumps(served).encode(), b'"tollgate-reference"') for piece in reply.pieces]
    )
    answer = await gateway.client.post(ask.path, json=asked)
    assert answer.status_code == 200, answer.text
    expected = []
    for event in reply.body.decode().split("\n\n")[:-1]:
        data = event.removeprefix("data: ")
        if data == "[DONE]" or json.loads(data)["choices"]:
            written = data.replace(f'"model":"{served}"', gateway_name.decode())
            expected.append(written)
        elif wants_usage:
            expected.append("usage")
    got = [
        "usage" if data != "[DONE]" and not json.loads(data)["choices"] else data
        for data in Events(answer.content).data
    ]
    assert got == expected
    assert engine.asked[-1]["stream_options"]["include_usage"] is True


@pytest.mark.parametrize("path", recordings(streamed=True, refused=True))
async def test_a_refusal_of_vllm_inside_its_stream_reaches_the_client_as_a_refusal(
    played: Played, path: Path
) -> None:
    ask, reply = load(path)
    gateway, engine = played
    engine.replay = stream(reply.pieces)
    answer = await gateway.client.post(ask.path, json=_asked(path))
    said = reply.events()[0]["error"]
    assert answer.status_code == said["code"] == 400
    assert answer.json()["error"]["message"] == said["message"]
    assert len(engine.asked) == 1, "nothing was tried again"
