"""Do requests follow the policy that is active, each one version from its start to its end?"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.clock import Clock
from gateway.db import SessionFactory
from gateway.paging import PageRequest
from gateway.policy_life import Proposal, Supply, publish
from gateway.routing.versions import State, page_versions
from tests.integration.gateway.rig import CHAT, Gateway, eventually, running, settings_for
from tests.support.factories import make_act
from tests.support.mock_process import MockVllm
from tests.support.pool_files import DEFAULT_POLICY

POLICIES = "/admin/v1/policies"
Answer = dict[str, Any]


def text_of(tokens: int) -> str:
    return DEFAULT_POLICY.read_text().replace("max_tokens_default: 256", f"max_tokens_default: {tokens}")


class Desk:
    """An operator of a running gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def ask(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        answer = await self.gateway.client.request(
            method, POLICIES + path, headers=self.gateway.admin, **more
        )
        assert answer.status_code == status, answer.text
        return answer.json()

    async def publish(self, text: str, **more: Any) -> str:
        told = await self.ask("POST", "/publish", json={"text": text, **more})
        version: str = told["active"]["version"]
        return version

    async def followed(self, version: str) -> None:
        """Wait until the gateway follows it."""
        await eventually(lambda: self.gateway.services.pipeline.routing.policy.version == version)

    async def active(self) -> str:
        found: str = (await self.ask("GET", "/active"))["version"]
        return found


@pytest.fixture
def desk(gateway: Gateway) -> Desk:
    return Desk(gateway)


async def test_from_a_draft_to_a_rollback(desk: Desk) -> None:
    gateway, seeded = desk.gateway, await desk.active()
    asked = await gateway.chat("Hm")
    assert (asked.headers["x-tollgate-policy"], asked.headers["x-tollgate-max-tokens"]) == (seeded, "256")

    draft = await desk.ask("POST", "", 201, json={"text": text_of(300), "message": "longer"})
    assert (draft["state"], draft["message"], draft["complaint"]) == ("checked", "longer", None)
    differing = await desk.ask("GET", "/diff", params={"from": seeded, "to": draft["version"]})
    assert [one["path"] for one in differing["differences"]] == ["max_tokens_default"]

    order = {"expected": seeded, "message": "agreed"}
    told = await desk.ask("POST", f"/{draft['version'].partition('@')[2][:6]}/activate", json=order)
    assert (told["is_changed"], told["before"], told["active"]["number"]) == (True, seeded, 2)
    await desk.followed(draft["version"])
    asked = await gateway.chat("Hm")
    assert asked.headers["x-tollgate-policy"] == draft["version"]
    assert asked.headers["x-tollgate-max-tokens"] == "300"

    refused = await desk.ask("POST", "/publish", 409, json={"text": text_of(400), "expected": seeded})
    assert f"The active policy is {draft['version']}, not {seeded}" in refused["error"]["message"]
    same = await desk.ask("POST", "/publish", json={"text": text_of(300) + "# a comment\n"})
    assert (same["is_changed"], same["active"]["number"]) == (False, 2)

    back = await desk.ask("POST", "/rollback", json={"message": "too long"})
    assert (back["active"]["version"], back["active"]["origin"]) == (seeded, "rollback")
    await desk.followed(seeded)
    history = (await desk.ask("GET", "/history", params={"limit": 2}))["data"]
    assert [(one["number"], one["message"]) for one in history] == [(3, "too long"), (2, "agreed")]
    states = {one["version"]: one["state"] for one in (await desk.ask("GET", ""))["data"]}
    assert states == {seeded: "active", draft["version"]: "retired"}
    shown = await desk.ask("GET", f"/{draft['version']}")
    assert shown["text"] == text_of(300)
    assert shown["activated_at"] < shown["retired_at"]


async def test_a_request_ends_as_it_began_whatever_is_published_meanwhile(
    desk: Desk, speculative: MockVllm, plain: MockVllm
) -> None:
    gateway, seeded = desk.gateway, await desk.active()
    for engine in (speculative, plain):
        engine.control(ttft_ms=1500)
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hm"}]}
    async with asyncio.TaskGroup() as group:
        whole = group.create_task(gateway.client.post(CHAT, json=body))
        stream = group.create_task(gateway.client.post(CHAT, json={**body, "stream": True}))
        await eventually(lambda: gateway.services.pipeline.shedder.under_way == 2)
        version = await desk.publish(text_of(300))
        await desk.followed(version)
        assert gateway.services.pipeline.shedder.under_way == 2
    for answer in (whole.result(), stream.result()):
        assert answer.status_code == 200
        assert answer.headers["x-tollgate-policy"] == seeded
    rows = await gateway.rows(2)
    assert [row.policy_version for row in rows] == [seeded, seeded]


async def test_what_is_wrong_is_refused_and_nothing_is_stored(desk: Desk) -> None:
    seeded = await desk.active()
    wrong = text_of(300).replace("creative: [plain,", "creative: [plain, plane,")
    refused = await desk.ask("POST", "/publish", 400, json={"text": wrong})
    assert refused["error"]["param"] == "text"
    assert "there is no pool 'plane'" in refused["error"]["message"]
    refused = await desk.ask("POST", "/publish", 400, json={"text": text_of(1), "message": "two\nlines"})
    assert "no line breaks" in refused["error"]["message"]
    refused = await desk.ask("POST", "/rollback", 404, json={})
    assert "nothing to roll back to" in refused["error"]["message"]
    for name, status in (("ffff", 404), ("abc", 404), ("default@", 404)):
        await desk.ask("GET", f"/{name}", status)
    assert [one["version"] for one in (await desk.ask("GET", ""))["data"]] == [seeded]


async def test_a_draft_may_name_what_there_is_not_yet(desk: Desk) -> None:
    text = text_of(300).replace("plain]", "later, plain]").replace("[plain,", "[plain, later,")
    draft = await desk.ask("POST", "", 201, json={"text": text})
    assert draft["state"] == "draft"
    assert "there is no pool 'later'" in draft["complaint"]
    again = await desk.ask("POST", f"/{draft['version']}/check")
    assert again == draft
    refused = await desk.ask("POST", f"/{draft['version']}/activate", 400)
    assert f"{draft['version']}:" in refused["error"]["message"]


async def test_what_cannot_be_used_here_leaves_the_version_before_in_force(desk: Desk) -> None:
    gateway, seeded = desk.gateway, await desk.active()
    text = text_of(300).replace("plain]", "plain, later]").replace("[plain,", "[plain, later,")
    pools = gateway.services.registry.specs
    elsewhere = Supply({**pools, "later": pools["plain"]}, None)
    version = await _published(gateway.services.sessions, text, elsewhere)

    await eventually(lambda: gateway.services.policies.refused is not None)
    ready = (await gateway.client.get("/readyz")).json()["policy"]
    assert ready == {"in_force": seeded, "refused": version}
    told = await desk.ask("GET", "/active")
    assert (told["version"], told["in_force_here"]) == (version, seeded)
    assert "there is no pool 'later'" in told["refused_here"]
    metrics = (await gateway.client.get("/metrics", headers=gateway.admin)).text
    assert "tollgate_policy_refused 1.0" in metrics
    assert f'tollgate_policy_info{{version="{seeded}"}} 1.0' in metrics
    assert (await gateway.chat("Hm")).headers["x-tollgate-policy"] == seeded

    await desk.ask("POST", "/rollback")
    await eventually(lambda: gateway.services.policies.refused is None)
    assert (await gateway.chat("Hm")).headers["x-tollgate-policy"] == seeded


async def _published(sessions: SessionFactory, text: str, supply: Supply) -> str:
    async with sessions() as session:
        outcome = await publish(session, Proposal(text, "elsewhere"), act=make_act(Clock()), supply=supply)
        await session.commit()
    return outcome.active.version


async def test_of_two_that_publish_at_the_same_moment_one_is_refused(desk: Desk) -> None:
    seeded = await desk.active()
    bodies = [{"text": text_of(tokens), "expected": seeded} for tokens in (301, 302, 303)]
    answers = await asyncio.gather(*(_post(desk, body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
    won = next(answer for answer in answers if answer.status_code == 200)
    assert await desk.active() == won.json()["active"]["version"]


async def _post(desk: Desk, body: Mapping[str, str]) -> httpx.Response:
    return await desk.gateway.client.post(f"{POLICIES}/publish", json=body, headers=desk.gateway.admin)


# ------------------------------------------------------------------------------------------------ at a start
async def test_the_file_counts_until_somebody_publishes(
    home: Path, urls: dict[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    file = home / "policy.yaml"

    async def start(tokens: int) -> None:
        file.write_text(text_of(tokens))
        settings = settings_for(home, urls, policy=file)
        async with running(settings, is_up=False) as gateway:
            policy = gateway.services.pipeline.routing.policy
            found.append(policy.max_tokens_default)
            if tokens == 500:
                await Desk(gateway).publish(text_of(501))
            async with gateway.services.sessions() as session:
                stored = (await page_versions(session, PageRequest())).rows
        assert [one.state for one in stored].count(State.ACTIVE) == 1

    found: list[int] = []
    for tokens in (400, 500, 600):
        await start(tokens)
    is_embedded = settings_for(home, urls).is_embedded
    # Of several replicas each has a file of its own: there the first start counts.
    assert found == ([400, 500, 501] if is_embedded else [400, 400, 501])
    told = [record.message for record in caplog.records if "is not in force" in record.message]
    assert told
    assert f"tollgate policy publish {file}" in told[-1]
