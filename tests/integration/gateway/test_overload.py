"""What does a client get when the gateway is full, and is the room there again when calls end?"""

import asyncio
from pathlib import Path
from typing import Final

import httpx
import pytest

from gateway.settings import OverloadSettings
from tests.integration.gateway.rig import Gateway, bearer, eventually, running, settings_for
from tests.support.mock_process import MockVllm

# Nothing here depends on where keys and rows are kept.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)

SMALL: Final = OverloadSettings(in_flight_max=10, flex_share=0.5, default_share=0.8, reserved_share=0.0)
STORY: Final = "Tell me a story"


def _is_shed(answer: httpx.Response) -> bool:
    if answer.status_code == 200:
        return False
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "overloaded"
    assert answer.headers["x-should-retry"] == "true"
    assert int(answer.headers["retry-after"]) > 0
    return True


def _under_way(gateway: Gateway) -> int:
    return gateway.services.spool.open_count


async def test_a_full_gateway_refuses_the_lower_class_first_and_takes_calls_again(
    home: Path, urls: dict[str, list[str]], plain: MockVllm
) -> None:
    async with running(settings_for(home, urls, overload=SMALL)) as gateway, asyncio.TaskGroup() as group:
        plain.fault("hold")

        def ask(tier: str, number: int) -> asyncio.Task[httpx.Response]:
            return group.create_task(gateway.chat(STORY, service_tier=tier, stream=bool(number % 2)))

        held = [ask("flex", number) for number in range(5)]
        await eventually(lambda: _under_way(gateway) == 5)
        assert _is_shed(await gateway.chat(STORY, service_tier="flex"))
        held += [ask("auto", number) for number in range(3)]
        await eventually(lambda: _under_way(gateway) == 8)
        assert _is_shed(await gateway.chat(STORY))
        assert _is_shed(await gateway.chat(STORY, stream=True))
        held += [ask("priority", number) for number in range(2)]
        await eventually(lambda: _under_way(gateway) == 10)
        assert _is_shed(await gateway.chat(STORY, service_tier="priority"))
        page = (await gateway.client.get("/metrics", headers=gateway.admin)).text
        for line in (
            'tollgate_shed_total{tier="flex"} 1.0',
            'tollgate_shed_total{tier="default"} 2.0',
            'tollgate_shed_total{tier="priority"} 1.0',
            "tollgate_in_flight 10.0",
            "tollgate_in_flight_max 10.0",
        ):
            assert line in page
        await asyncio.to_thread(plain.clear)
        assert {(await each).status_code for each in held} == {200}
        assert (await gateway.chat(STORY, service_tier="flex")).status_code == 200
        rows = await gateway.rows(11)  # what is refused is no attempt
        assert {row.state for row in rows} == {"answered"}


async def test_whoever_leaves_leaves_their_room(
    home: Path, urls: dict[str, list[str]], plain: MockVllm
) -> None:
    one = OverloadSettings(in_flight_max=1, flex_share=1, default_share=1, reserved_share=0)
    async with running(settings_for(home, urls, overload=one)) as gateway, asyncio.TaskGroup() as group:
        for is_stream in (False, True):
            plain.fault("hold")
            asked = group.create_task(gateway.chat(STORY, stream=is_stream))
            await eventually(lambda: _under_way(gateway) == 1)
            assert _is_shed(await gateway.chat(STORY))
            asked.cancel()
            await eventually(lambda: _under_way(gateway) == 0)
            await asyncio.to_thread(plain.clear)
            assert (await gateway.chat(STORY, stream=is_stream)).status_code == 200


async def test_a_tenant_below_its_share_finds_room_when_another_has_taken_the_rest(
    home: Path, urls: dict[str, list[str]], plain: MockVllm
) -> None:
    shares = OverloadSettings(in_flight_max=10, flex_share=1, default_share=1, reserved_share=0.2)
    async with running(settings_for(home, urls, overload=shares)) as gateway, asyncio.TaskGroup() as group:
        other = bearer(await gateway.issue_key("modest"))
        plain.fault("hold")
        held = [group.create_task(gateway.chat(STORY)) for _ in range(8)]
        await eventually(lambda: _under_way(gateway) == 8)
        refused = await gateway.chat(STORY)
        assert _is_shed(refused)
        assert "its share" in refused.json()["error"]["message"]
        held.append(group.create_task(gateway.chat(STORY, headers=other)))
        await eventually(lambda: _under_way(gateway) == 9)
        await asyncio.to_thread(plain.clear)
        assert {(await each).status_code for each in held} == {200}


async def test_an_answer_from_the_cache_needs_no_room(
    home: Path, urls: dict[str, list[str]], plain: MockVllm
) -> None:
    one = OverloadSettings(in_flight_max=1, flex_share=1, default_share=1, reserved_share=0)
    async with running(settings_for(home, urls, overload=one)) as gateway, asyncio.TaskGroup() as group:
        first = await gateway.chat(STORY, temperature=0)
        plain.fault("hold")
        asked = group.create_task(gateway.chat("Tell me another story"))
        await eventually(lambda: _under_way(gateway) == 1)
        again = await gateway.chat(STORY, temperature=0)
        assert (again.headers["x-tollgate-cache"], again.json()) == ("hit", first.json())
        await asyncio.to_thread(plain.clear)
        assert (await asked).status_code == 200
