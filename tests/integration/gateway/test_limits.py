"""Does a gateway hold its callers to their limits, and say so as OpenAI does? Do fixed tags stay fixed?"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, RateLimitError
from sqlalchemy import select
from sqlmodel import col

from gateway.identity.limits import Meter
from gateway.ledger.tables import Attempt
from gateway.settings import FreshnessSettings
from tests.integration.gateway.desk import Answer, Desk
from tests.integration.gateway.rig import Gateway, bearer, eventually, running, settings_for
from tests.integration.gateway.terminal import Terminal
from tests.support.clock import MovableClock
from tests.support.mock_process import MockVllm

EMBEDDED = pytest.mark.parametrize("home", ["embedded"], indirect=True)
SHARED = pytest.mark.parametrize("home", ["shared"], indirect=True)
FRESH = FreshnessSettings(poll_interval_s=0.05, auth_stale_max_s=1e9)


@pytest.fixture
async def desk(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[Desk]:
    clock = MovableClock()
    async with running(settings_for(home, urls, freshness=FRESH), clock=clock) as gateway:
        yield Desk(gateway, clock)


async def put(desk: Desk, path: str, **bounds: int) -> Answer:
    answer = await desk.ask("PUT", f"/limits/{path}", json=bounds)
    assert answer.status_code == 200, answer.text
    found: Answer = answer.json()
    return found


def limits_of(gateway: Gateway, key: str) -> Any:
    limits = gateway.services.keys.authenticate(bearer(key)).limits
    return () if limits is None else limits.each


async def until_limited(gateway: Gateway, *keys: str, by: int = 1) -> None:
    await eventually(lambda: all(len(limits_of(gateway, key)) == by for key in keys))


def meters(gateway: Gateway) -> dict[str, Meter]:
    return gateway.services.keys.limiter.meters


def told(answer: httpx.Response) -> dict[str, str]:
    start = "x-ratelimit-"
    return {
        name.removeprefix(start): value for name, value in answer.headers.items() if name.startswith(start)
    }


# ------------------------------------------------------------------------------------------- both stores
async def test_a_limit_from_the_first_to_the_last(desk: Desk) -> None:
    key = desk.gateway.key
    assert told(await desk.chat(key)) == {}
    made = await put(desk, "tenant/acme", requests_per_minute=2)
    assert made == {
        "id": made["id"],
        "scope": "tenant",
        "scope_id": desk.gateway.tenant_id,
        "name": "acme",
        "tenant": "acme",
        "requests_per_minute": 2,
        "tokens_per_minute": None,
        "concurrent_requests": None,
        "created_at": "2026-11-20T12:00:00Z",
        "ended_at": None,
    }
    assert await desk.get("/limits/tenant/acme") == made == (await desk.get("/limits"))["data"][0]
    await until_limited(desk.gateway, key)
    answers = [await desk.chat(key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [told(answer)["remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert answers[2].headers["retry-after"] == "90"
    assert answers[2].headers["x-should-retry"] == "true"
    assert answers[2].json()["error"] == {
        "message": "The tenant 'acme' may make 2 requests a minute, and has made them."
        " There is room for it in 90 s.",
        "type": "invalid_request_error",
        "param": None,
        "code": "rate_limited",
    }
    desk.clock.move(90)
    assert (await desk.chat(key)).status_code == 200, "when it was said there is room"
    changed = await put(desk, "tenant/acme", concurrent_requests=7)
    assert changed == {**made, "requests_per_minute": None, "concurrent_requests": 7}
    ended = (await desk.ask("DELETE", f"/limits/tenant/{desk.gateway.tenant_id}")).json()
    assert ended == {**changed, "ended_at": "2026-11-20T12:01:30Z"}
    assert (await desk.ask("DELETE", "/limits/tenant/acme")).json() == ended
    assert (await desk.get("/limits"))["data"] == []
    await until_limited(desk.gateway, key, by=0)
    assert told(await desk.chat(key)) == {}
    again = await put(desk, "tenant/acme", requests_per_minute=1)
    assert again["id"] != made["id"]


async def test_fixed_tags_stand_on_every_row_whatever_the_caller_sends(desk: Desk) -> None:
    project = await desk.post(
        "/projects", {"tenant": "acme", "name": "a", "tags": {"team": "x", "unit": "9"}}
    )
    key = await desk.post("/keys", {"tenant": "acme", "project": "a", "name": "ci", "tags": {"team": "y"}})
    assert (project["tags"], key["tags"]) == ({"team": "x", "unit": "9"}, {"team": "y"})
    await desk.until(key["key"], 200)
    own = {"team": "mine", "feature": "f"}
    assert (await desk.chat(key["key"], metadata=own)).status_code == 200
    new = await desk.post(f"/keys/{key['id']}/rotate")
    assert new["tags"] == {"team": "y"}
    await desk.patch(f"/projects/{project['id']}", {"tags": None})
    desk.clock.move(1)
    assert (await desk.patch(f"/projects/{project['id']}", {"name": "b"}))["tags"] == {}
    changed = await desk.patch(f"/keys/{new['id']}", {"tags": {"team": "z"}})
    assert (changed["tags"], changed["name"]) == ({"team": "z"}, "ci")
    await desk.until(new["key"], 200)
    keys = desk.gateway.services.keys
    await eventually(lambda: keys.authenticate(bearer(new["key"])).fixed_tags == (("team", "z"),))
    assert (await desk.chat(new["key"])).status_code == 200
    rows = await desk.gateway.rows(2)
    assert [row.tags for row in rows] == [{"team": "y", "unit": "9", "feature": "f"}, {"team": "z"}]
    entry = (await desk.get("/audit", object=project["id"], action="project.update"))["data"][-1]
    assert (entry["before"], entry["after"]) == ({"tags": {"team": "x", "unit": "9"}}, {"tags": None})
    for tags, said in [
        ({str(number): "" for number in range(17)}, "at most 16"),
        ({"": "x"}, "1 to 64 characters"),
        ({"x" * 65: ""}, "1 to 64 characters"),
        ({"x": "y" * 513}, "at most 512"),
        ({"x": "a\nb"}, "line break"),
    ]:
        status, param, message = await desk.refused("PATCH", f"/keys/{new['id']}", {"tags": tags})
        assert (status, param, said in message) == (400, "tags", True), message


# ---------------------------------------------------------------------------------------------- the wire
@EMBEDDED
async def test_every_answer_to_a_limited_caller_says_how_it_stands(desk: Desk, plain: MockVllm) -> None:
    key = desk.gateway.key
    key_id = key.split("-")[1]
    await put(desk, f"key/{key_id}", tokens_per_minute=1000, requests_per_minute=6)
    await put(desk, f"project/{desk.gateway.project_id}", tokens_per_minute=900, requests_per_minute=90)
    await until_limited(desk.gateway, key, by=2)
    desk.clock.move(1.5)
    whole = await desk.chat(key, max_tokens=16)
    used = whole.json()["usage"]["total_tokens"]
    assert told(whole) == {
        "limit-requests": "6",
        "remaining-requests": "5",
        "reset-requests": "1m58.5s",
        "limit-tokens": "900",
        "remaining-tokens": str(900 - used),
        "reset-tokens": "1m58.5s",
    }
    stream = await desk.chat(key, max_tokens=16, stream=True)
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert told(stream)["remaining-requests"] == "4"
    assert int(told(stream)["remaining-tokens"]) < 900 - 2 * used, (
        "it may still come to all that it asked for"
    )
    project = meters(desk.gateway)[f"project:{desk.gateway.project_id}"]
    assert (project.now, project.under_way) == ([2, 2 * used], 0)
    # What is refused for another reason counts as a request and uses no tokens.
    missing = await desk.chat(key, model="nothing")
    assert (missing.status_code, told(missing)["remaining-requests"]) == (404, "3")
    too_much = await desk.chat(key, max_tokens=5000)
    assert (too_much.status_code, too_much.json()["error"]["param"]) == (400, "max_tokens")
    assert too_much.headers["x-should-retry"] == "false"
    assert "The project 'default' may use 900 tokens a minute" in too_much.text
    assert told(await desk.models(key))["remaining-requests"] == "3"
    assert (await desk.chat(key, max_tokens=880)).status_code == 429
    assert (project.now[1], project.under_way) == (2 * used, 0)
    wrong = await desk.gateway.client.get("/v1/models", headers=bearer("tg-nobody"))
    assert told(wrong) == {}


@EMBEDDED
async def test_an_answer_from_the_cache_is_a_request_without_tokens(desk: Desk) -> None:
    key = desk.gateway.key
    await put(desk, "tenant/acme", tokens_per_minute=1000, requests_per_minute=3, concurrent_requests=1)
    await until_limited(desk.gateway, key)
    for stream in (False, True):
        first = await desk.chat(key, temperature=0, max_tokens=16, stream=stream)
        assert first.status_code == 200
        await desk.gateway.rows(1 + 2 * stream)
        await desk.gateway.services.pipeline.cache.flush(timeout_s=20)
        before = list(meters(desk.gateway)[f"tenant:{desk.gateway.tenant_id}"].now)
        hit = await desk.chat(key, temperature=0, max_tokens=16, stream=stream)
        meter = meters(desk.gateway)[f"tenant:{desk.gateway.tenant_id}"]
        assert hit.headers["x-tollgate-cache"] == "hit"
        assert (meter.now, meter.under_way) == ([before[0] + 1, before[1]], 0)
        desk.clock.move(120)


@EMBEDDED
async def test_what_is_under_way_is_bounded_and_ends_with_a_client_that_leaves(
    desk: Desk, plain: MockVllm, speculative: MockVllm
) -> None:
    key = desk.gateway.key
    await put(desk, f"project/{desk.gateway.project_id}", concurrent_requests=2, tokens_per_minute=10_000)
    await until_limited(desk.gateway, key)
    for engine in (plain, speculative):
        engine.control(ttft_ms=60_000)
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(desk.chat(key, max_tokens=100, stream=stream)) for stream in (False, True)]
        name = f"project:{desk.gateway.project_id}"
        await eventually(lambda: name in meters(desk.gateway) and meters(desk.gateway)[name].under_way == 2)
        refused = await desk.chat(key)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "may have 2 requests under way at once, and has." in refused.text
        for task in asked:
            task.cancel()
    await eventually(lambda: not meters(desk.gateway)[name].under_way)
    assert meters(desk.gateway)[name].now[1] > 200, "nobody knows how far the engines came"
    for engine in (plain, speculative):
        engine.control(ttft_ms=0)
    assert (await desk.chat(key)).status_code == 200


@EMBEDDED
async def test_openais_client_sees_its_own_error_and_comes_back_by_itself(desk: Desk) -> None:
    await put(desk, "tenant/acme", requests_per_minute=1)
    await until_limited(desk.gateway, desk.gateway.key)
    transport = httpx.ASGITransport(desk.gateway.app)
    async with (
        httpx.AsyncClient(transport=transport) as http,  # noqa: TID251 - a test
        AsyncOpenAI(
            base_url="http://tollgate/v1", api_key=desk.gateway.key, http_client=http, max_retries=0
        ) as client,
    ):

        async def ask() -> Any:
            messages: Any = [{"role": "user", "content": "Hm"}]
            return await client.chat.completions.create(model="auto", messages=messages)

        assert (await ask()).model == "auto"
        with pytest.raises(RateLimitError) as caught:
            await ask()
    error = caught.value
    assert (error.code, error.response.headers["retry-after"]) == ("rate_limited", "120")
    assert error.response.headers["x-ratelimit-reset-requests"] == "2m0s"


# ------------------------------------------------------------------------------------------ several gateways
@SHARED
async def test_two_gateways_on_one_redis_hold_one_limit(home: Path, urls: dict[str, list[str]]) -> None:
    clock = MovableClock()
    settings = settings_for(home, urls, freshness=FRESH)
    other = settings.model_copy(update={"state_dir": home / "other"})
    async with (
        running(settings, clock=clock) as one,
        running(other, clock=clock, tenant="umbrella") as two,
    ):
        desk = Desk(one, clock)
        await put(desk, "tenant/acme", requests_per_minute=4, concurrent_requests=50)
        await until_limited(one, one.key)
        await eventually(lambda: limits_of(two, one.key))
        name = f"tenant:{one.tenant_id}"
        statuses = []
        for number in range(8):
            gateway = (one, two)[number % 2]
            statuses.append((await Desk(gateway, clock).chat(one.key)).status_code)
            await _until_seen(name, min(number + 1, 4), one, two)
        assert statuses == [200] * 4 + [429] * 4
        page = await one.client.get("/metrics", headers=one.admin)
        assert "tollgate_limits_alone 0.0" in page.text
        assert "tollgate_rate_limited_total 2.0" in page.text


async def _until_seen(name: str, count: int, *gateways: Gateway) -> None:
    await eventually(lambda: {_seen(each, name) for each in gateways} == {count})


def _seen(gateway: Gateway, name: str) -> int:
    meter = meters(gateway).get(name)
    return 0 if meter is None else meter.now[0] + meter.others_now[0]


# ------------------------------------------------------------------------------------------- steering it
@EMBEDDED
async def test_mistakes_about_limits_are_explained(desk: Desk) -> None:
    cases: list[tuple[str, Answer, int, str | None, str]] = [
        ("tenant/acme", {}, 400, None, "needs at least one of requests_per_minute, tokens_per_minute,"),
        ("tenant/acme", {"requests_per_minute": 0}, 400, "requests_per_minute", "must be 1 to"),
        ("tenant/acme", {"tokens_per_minute": 10**16}, 400, "tokens_per_minute", "must be 1 to"),
        ("tenant/acme", {"concurrent_requests": 1.5}, 400, "concurrent_requests", "valid integer"),
        ("tenant/acme", {"concurrent": 1}, 400, "concurrent", "there is no such field"),
        ("team/acme", {"concurrent_requests": 1}, 400, "scope", "tenant"),
        ("tenant/nobody", {"concurrent_requests": 1}, 404, None, "No tenant 'nobody'"),
        ("project/default", {"concurrent_requests": 1}, 404, None, "No project 'default'"),
        ("key/nothing", {"concurrent_requests": 1}, 404, None, "No key 'nothing'"),
    ]
    for path, body, status, param, said in cases:
        found = await desk.refused("PUT", f"/limits/{path}", body)
        assert found[:2] == (status, param), (path, body, found)
        assert said in found[2], (path, body, found)
    for method in ("GET", "DELETE"):
        status, _, said = await desk.refused(method, "/limits/project/default?tenant=acme")
        assert (status, said) == (
            404,
            "The project 'default' has no limit; `tollgate limits list` shows those there are.",
        )


@EMBEDDED
async def test_a_rotated_key_and_its_successors_share_a_limit(desk: Desk) -> None:
    old_id = desk.gateway.key.split("-")[1]
    new = await desk.post(f"/keys/{old_id}/rotate")
    made = await put(desk, f"key/{new['id']}", requests_per_minute=2)
    assert (made["scope_id"], made["name"]) == (old_id, "test")
    assert await desk.get(f"/limits/key/{old_id}") == made
    await until_limited(desk.gateway, desk.gateway.key)
    await desk.until(new["key"], 200)
    await until_limited(desk.gateway, new["key"])
    answers = [await desk.chat(key) for key in (desk.gateway.key, new["key"], desk.gateway.key)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert len(await desk.gateway.rows(2)) == 2
    async with desk.gateway.services.sessions() as session:
        theirs = select(col(Attempt.key_id)).where(col(Attempt.tenant_id) == desk.gateway.tenant_id)
        ids = (await session.execute(theirs)).scalars()
        assert set(ids) == {old_id, new["id"]}


@EMBEDDED
def test_limits_and_tags_at_a_terminal(home: Path) -> None:
    terminal = Terminal(home)
    bounds = ("--requests-per-minute", "60", "--tokens-per-minute", "1000")
    made = terminal.json("limits", "set", "project", "default", "--tenant", "acme", *bounds)
    assert (made["scope"], made["name"], made["tenant"]) == ("project", "default", "acme")
    assert terminal.json("limits", "show", "project", made["scope_id"]) == made
    terminal.text("limits", "set", "tenant", "acme", "--concurrent", "3")
    assert [one["scope"] for one in terminal.json("limits", "list")] == ["project", "tenant"]
    assert len(terminal.json("limits", "list", "--scope", "tenant")) == 1
    assert "1000" in terminal.text("limits", "list")
    said = terminal.text("limits", "clear", "tenant", "acme")
    assert said == "The tenant 'acme' has no limit any more.\n"
    assert "has no limit" in terminal.refused("limits", "show", "tenant", "acme")
    assert "at least one of" in terminal.refused("limits", "set", "tenant", "acme")
    tags = ("--tag", "unit=9", "--tag", "team=a=b")
    project = terminal.json("projects", "update", "default", "--tenant", "acme", *tags)
    assert (project["name"], project["tags"]) == ("default", {"team": "a=b", "unit": "9"})
    assert "team=a=b, unit=9" in terminal.text("projects", "show", project["id"])
    assert terminal.json("projects", "update", project["id"], "--no-tags")["tags"] == {}
    key = terminal.json("keys", "create", "--tenant", "acme", "--tag", "team=x")
    assert terminal.json("keys", "update", key["id"], "--name", "ci")["tags"] == {"team": "x"}
    assert terminal.json("keys", "update", key["id"], "--no-tags")["tags"] == {}
    for pair, why in [("team", "it has no ="), ("unit=1", "that name is there twice")]:
        assert why in terminal.refused(
            "projects", "create", "p", "--tenant", "acme", "--tag", "unit=", "--tag", pair
        )
