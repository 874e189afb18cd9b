"""Is a candidate asked for copies, at the platform's expense and without any tenant noticing?"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select
from sqlmodel import col

from backends.supply_spec import Count, PriceKind
from gateway.copies import payer_of
from gateway.ledger.findings import Extent
from gateway.ledger.invariants import examine
from gateway.ledger.records import OURS, AttemptStart
from gateway.ledger.supply import LineKind, Price, Terms, pool_hour
from gateway.ledger.supply_store import works_of
from gateway.ledger.tables import Attempt
from gateway.settings import OverloadSettings, Settings, ShadowSettings
from tests.integration.gateway.overflow_rig import opt_in
from tests.integration.gateway.rig import Gateway, bearer, eventually, running, settings_for
from tests.integration.gateway.test_policy_life import Desk
from tests.support.mock_process import MockVllm
from tests.support.pool_files import policy_in_order

CANDIDATE = policy_in_order().replace("cache:\n", "cache:\n  enabled: false\n")
"""Sends what is creative, and so what says nothing, to the plain pool."""
CONTROL = CANDIDATE.replace("creative: [plain, speculative]", "creative: [speculative, plain]")
KEY = "shadow-1"
Answer = dict[str, Any]


class Shadows(Desk):
    """An operator of shadows."""

    async def start(self, **more: Any) -> Answer:
        order = {"text": CANDIDATE, "percent": 100, "budget_usd": "1", **more}
        told: Answer = await self.ask("POST", "/shadow", 201, json=order)
        await self.copied_to(told["version"])
        return told

    async def status(self) -> Answer:
        copier: Any = self.gateway.services.pipeline.copies
        await copier.tell()
        found: Answer = await self.ask("GET", "/shadow")
        return found

    async def copied_to(self, version: str | None) -> None:
        """Wait until the gateway copies to this candidate on its budget, or to none."""
        services = self.gateway.services

        def holds() -> bool:
            beside = services.pipeline.routing.beside
            shadow = None if beside is None else beside.shadow
            if shadow is None:
                return version is None
            payer = _payer(self.gateway)
            return shadow.version == version and services.pipeline.is_held_by(payer, shadow.terms.budget_id)

        await eventually(holds)

    async def ask_for(self, count: int, **fields: Any) -> list[str]:
        """So many requests of a conversation each, all answered; their ids."""
        answers = [await self.gateway.chat(f"Hm {number}", **fields) for number in range(count)]
        assert {answer.status_code for answer in answers} == {200}
        return [answer.headers["x-request-id"] for answer in answers]

    async def offered(self, count: int) -> Any:
        """Whoever makes copies, once so many requests were copied or not, and that is booked."""
        copier: Any = self.gateway.services.pipeline.copies
        spool = self.gateway.services.spool

        def is_told() -> bool:
            told = sum(copier.skips.values()) + sum(copier.outcomes.values())
            return told == count and not spool.open_count and not spool.unshipped_count

        try:
            await eventually(is_told)
        except AssertionError:
            raise AssertionError((copier.skips, copier.outcomes, copier.under_way)) from None
        return copier

    async def copies(self, count: int) -> list[Attempt]:
        """The attempts at copies that are booked, the oldest first.

        Raises:
            AssertionError: another number is.
        """
        async with self.gateway.services.sessions() as session:
            found = await session.execute(
                select(Attempt)
                .where(col(Attempt.tenant_id) == OURS, col(Attempt.key_id) == KEY)
                .order_by(col(Attempt.started_at_ms))
            )
            rows = list(found.scalars())
        copier: Any = self.gateway.services.pipeline.copies
        assert len(rows) == count, copier.skips
        return rows

    async def breaches(self) -> list[str]:
        """Invariants of the books that do not hold."""
        services = self.gateway.services
        extent = Extent(since_ms=0, now_ms=services.clock.epoch_ms(), grace_ms=600_000)
        async with services.sessions() as session:
            return [f"{one.id}: {one.examples}" async for one in examine(session, extent) if one.breaches]


def _payer(gateway: Gateway) -> Any:
    return payer_of(gateway.services.keys.authenticate(bearer(gateway.key)), 1)


@asynccontextmanager
async def shadowing(
    home: Path, urls: dict[str, list[str]], *, opted_in: bool = True, **more: Any
) -> AsyncIterator[Shadows]:
    async with running(_settings(home, urls, **more)) as gateway:
        if opted_in:
            await opt_in(gateway)
        yield Shadows(gateway)


def _settings(home: Path, urls: dict[str, list[str]], **more: Any) -> Settings:
    policy = home / "policy.yaml"
    policy.write_text(CONTROL)
    return settings_for(home, urls, policy=policy, **more)


@pytest.fixture
async def shadows(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[Shadows]:
    async with shadowing(home, urls) as found:
        yield found


async def test_tenants_pay_the_same_and_the_platform_for_the_copies(shadows: Shadows) -> None:
    gateway, control = shadows.gateway, await shadows.active()
    await shadows.ask_for(3)
    await shadows.ask_for(3, stream=True)
    before = sum(row.charge_usd_nanos or 0 for row in await gateway.rows(6))
    assert before > 0

    candidate = (await shadows.start(message="plain first"))["version"]
    asked = await shadows.ask_for(3) + await shadows.ask_for(3, stream=True)
    await shadows.offered(6)
    copies = await shadows.copies(6)
    rows = (await gateway.rows(12))[6:]
    assert sum(row.charge_usd_nanos or 0 for row in rows) == before
    assert {(row.policy_version, row.pool, row.payer) for row in rows} == {(control, "speculative", "tenant")}
    assert {
        (row.policy_version, row.pool, row.state, row.payer, row.project_id, row.usage_source)
        for row in copies
    } == {(candidate, "plain", "answered", "platform", "evaluation", "measured")}
    assert sorted(str(row.client_request_id) for row in copies) == sorted(asked)
    assert [(row.is_streaming, row.ttft_ms is not None) for row in copies].count((True, True)) == 3
    assert {(row.end_user, str(row.tags), row.cache) for row in copies} == {(None, "{}", "bypass")}

    status = await shadows.status()
    cost = sum(row.charge_usd_nanos or 0 for row in copies)
    assert int(status["budget"]["posted_usd"].replace(".", "")) == cost
    assert (status["active"]["requests"], status["candidate"]["requests"]) == (6, 6)
    assert (status["active"]["targets"], status["candidate"]["targets"]) == ({"speculative": 6}, {"plain": 6})
    assert (status["active"]["acceptance"] is None, status["candidate"]["acceptance"]) == (False, None)
    differences = {one["measure"]: one for one in status["differences"]}
    mean = differences["charge_usd"]["mean"]
    assert abs(int(mean.replace(".", "")) - (cost - before) / 6) <= 1
    errors = differences["errors"]
    assert (errors["mean"], errors["low"], errors["units"]) == (0, None, 3), "three conversations"
    assert {one["original"]["request_id"] for one in status["pairs"]} == set(asked)

    # Operators may look at a copy, its original's tenant may not.
    copy_id = copies[0].request_id
    refused = await gateway.client.get(f"/v1/receipts/{copy_id}")
    assert refused.status_code == 404
    told = await shadows.ask("POST", "/explain", json={"receipt": copy_id})
    assert told["recorded"] == {"went_to": ["plain"], "policy": candidate}
    assert await shadows.breaches() == []
    metrics = (await gateway.client.get("/metrics", headers=gateway.admin)).text
    assert 'tollgate_shadow_copies_total{outcome="answered"} 6.0' in metrics
    assert f'tollgate_shadow_info{{version="{candidate}"}} 1.0' in metrics


async def test_reports_show_what_copies_cost_on_lines_of_their_own(shadows: Shadows) -> None:
    gateway = shadows.gateway
    await shadows.start()
    await shadows.ask_for(2)
    await shadows.offered(2)
    copies = await shadows.copies(2)
    answer = await gateway.client.get(
        "/admin/v1/reports/spend", params={"group_by": "tenant,project,key"}, headers=gateway.admin
    )
    (ours,) = (row for row in answer.json()["rows"] if row["project"] == "evaluation")
    assert (ours["tenant"], ours["key"], ours["requests"]) == (OURS, KEY, 0)
    assert int(ours["platform_usd"].replace(".", "")) == sum(row.charge_usd_nanos or 0 for row in copies)
    filtered = await gateway.client.get(
        "/admin/v1/reports/spend",
        params={"group_by": "project", "filter": "project=evaluation"},
        headers=gateway.admin,
    )
    assert filtered.status_code == 200, filtered.text
    # Of supply's bill for that hour, by engine time.
    hour_ms = copies[0].started_at_ms - copies[0].started_at_ms % 3_600_000
    price = Price(0, PriceKind.ON_DEMAND, 120_000_000)
    terms = Terms("plain", (price,), Count.DECLARED, "declared", (copies[0].replica,), 1)
    async with gateway.services.sessions() as session:
        end_ms = hour_ms + 2 * 3_600_000
        works = await works_of(session, "plain", terms.weights, start_ms=hour_ms, end_ms=end_ms)
    bill = pool_hour(terms, hour_ms, (), works=works)
    lines = {key.line: (key.tenant_id, key.project_id, line) for key, line in bill.lines.items()}
    tenant_id, project_id, line = lines[LineKind.EVALUATION]
    assert (tenant_id, project_id, line.attempts) == (OURS, "evaluation", 2)
    assert line.usd_nanos > 0
    assert LineKind.REQUEST not in lines


async def test_the_budget_stops_it(home: Path, urls: dict[str, list[str]]) -> None:
    async with shadowing(home, urls) as shadows:
        await shadows.start(budget_usd="0.0001")
        await shadows.ask_for(20, max_tokens=16)
        await shadows.offered(20)
        status = await shadows.status()
        limit, posted = (int(status["budget"][name].replace(".", "")) for name in ("limit_usd", "posted_usd"))
        assert 0 < posted <= limit
        assert status["skips"]["budget"] > 0
        made = status["candidate"]["requests"]
        assert made + sum(status["skips"].values()) == 20
        assert await shadows.breaches() == []
        rows = await shadows.gateway.rows(20)
        assert {row.state for row in rows} == {"answered"}


async def test_a_candidate_that_fails_is_seen_and_takes_no_replica_from_tenants(
    shadows: Shadows, plain: MockVllm
) -> None:
    await shadows.start()
    plain.fault("status", 500)
    await shadows.ask_for(6)
    await shadows.offered(6)
    status = await shadows.status()
    assert (status["active"]["errors"], status["candidate"]["requests"]) == (0, 6)
    # Each went on to the other pool, which answered.
    assert status["candidate"]["targets"] == {"speculative": 6}
    copies = await shadows.copies(12)
    assert [row.state for row in copies].count("failed") == 6
    assert {row.payer for row in copies} == {"platform"}
    assert shadows.gateway.services.registry.snapshot("plain").ready_count == 1
    assert await shadows.breaches() == []
    metrics = (await shadows.gateway.client.get("/metrics", headers=shadows.gateway.admin)).text
    assert "tollgate_failed_attempts_total{" not in metrics


async def test_nothing_of_a_tenant_that_has_not_opted_in_is_copied(
    home: Path, urls: dict[str, list[str]]
) -> None:
    async with shadowing(home, urls, opted_in=False) as shadows:
        await shadows.start()
        (request_id,) = await shadows.ask_for(1)
        await shadows.gateway.rows(1)
        status = await shadows.status()
        assert (status["skips"], status["candidate"]["requests"]) == ({"internal_only": 1}, 0)
        receipt = (await shadows.gateway.client.get(f"/v1/receipts/{request_id}")).json()
        (drop,) = receipt["decision"]["drops"]
        assert drop == {"target": "shadow", "reason": "the tenant is internal_only: no copy was made"}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"overload": OverloadSettings(in_flight_max=1)}, id="process"),
        # Of a replica's 32 seats not even one.
        pytest.param({"shadow": ShadowSettings(headroom_ratio=0.03)}, id="pool"),
    ],
)
async def test_no_copy_is_made_while_tenants_need_the_room(
    home: Path, urls: dict[str, list[str]], settings: dict[str, Any]
) -> None:
    async with shadowing(home, urls, **settings) as shadows:
        await shadows.start()
        await shadows.ask_for(3)
        await shadows.offered(3)
        status = await shadows.status()
        assert (status["skips"], status["candidate"]["requests"]) == ({"loaded": 3}, 0)


async def test_from_the_start_to_the_stop(shadows: Shadows) -> None:
    control = await shadows.active()
    await shadows.ask("GET", "/shadow", 404)
    order = {"text": CANDIDATE, "percent": 10, "budget_usd": "1"}
    for status, wrong, why in (
        (400, {"percent": 0}, "more than 0 and at most 100"),
        (400, {"percent": 101}, "more than 0 and at most 100"),
        (400, {"budget_usd": "0"}, "needs a budget of more than 0 USD"),
        (400, {"budget_usd": "much"}, "is not a decimal amount"),
        (400, {"budget_usd": None}, "budget_usd"),
        (400, {"models": ["nobody"]}, "has no alias 'nobody'"),
        (400, {"hours": 1000}, "at most 720 hours"),
        (404, {"text": None, "version": "ffffff"}, "There is no policy version"),
        (409, {"text": CONTROL}, "is active already"),
    ):
        refused = await shadows.ask("POST", "/shadow", status, json={**order, **wrong})
        assert why in refused["error"]["message"], refused
    started = await shadows.start(percent=10, window="month", tenants=["acme"])
    assert (started["number"], started["control"], started["tenants"]) == (1, control, ["acme"])
    refused = await shadows.ask("POST", "/shadow", 409, json=order)
    assert "Shadow 1" in refused["error"]["message"]
    refused = await shadows.ask("POST", "/canary", 409, json={"text": CANDIDATE, "percent": 5})
    assert "Shadow 1" in refused["error"]["message"]
    await shadows.ask("POST", "/shadow/stop", 409, json={"number": 7})
    stopped = await shadows.ask("POST", "/shadow/stop", json={"message": "seen enough"})
    assert (stopped["end"]["how"], stopped["end"]["reason"]) == ("stopped", "seen enough")
    assert stopped["budget"]["window"] == "month"
    await shadows.copied_to(None)
    await shadows.ask("POST", "/shadow/stop", 404)

    await shadows.ask("POST", "/canary", 201, json={"text": CANDIDATE, "percent": 5})
    refused = await shadows.ask("POST", "/shadow", 409, json=order)
    assert "Canary 1" in refused["error"]["message"]
    await shadows.ask("POST", "/canary/stop")
    await shadows.ask("POST", "/shadow", 201, json=order)
    await shadows.publish(CONTROL.replace("max_tokens_default: 256", "max_tokens_default: 300"))
    await shadows.copied_to(None)
    history = (await shadows.ask("GET", "/shadow/history"))["data"]
    assert [(one["number"], one["end"]["how"]) for one in history] == [(2, "superseded"), (1, "stopped")]
    audited = await shadows.gateway.client.get(
        "/admin/v1/audit", params={"action": "policy"}, headers=shadows.gateway.admin
    )
    actions = [one["action"] for one in audited.json()["data"] if "shadow" in one["action"]]
    assert sorted(actions) == ["policy.shadow", "policy.shadow", "policy.shadow_stopped"]


async def test_it_outlives_a_restart_and_a_copy_that_is_cut_is_settled_once(
    home: Path, urls: dict[str, list[str]], plain: MockVllm
) -> None:
    async with shadowing(home, urls) as shadows:
        await shadows.start()
        plain.control(ttft_ms=60_000)
        await shadows.ask_for(1, stream=True)
        spool = shadows.gateway.services.spool
        await eventually(lambda: spool.open_count == 1)
        shadows.gateway.services.pipeline.stop()
    plain.control(ttft_ms=0)
    async with shadowing(home, urls) as shadows:
        (cut,) = await shadows.copies(1)
        assert (cut.state, cut.error_code, cut.payer) == ("interrupted", "gateway_stopped", "platform")
        await shadows.copied_to(cut.policy_version)
        await shadows.ask_for(1)
        await shadows.offered(1)
        await shadows.copies(2)
        status = await shadows.status()
        assert status["candidate"]["requests"] == 1, "what the gateway cut says nothing of a candidate"
        assert await shadows.breaches() == []


async def test_a_copy_of_a_gateway_that_was_killed_draws_on_the_budget(
    home: Path, urls: dict[str, list[str]]
) -> None:
    async with shadowing(home, urls) as shadows:
        started = await shadows.start()
        await shadows.ask_for(1)
        await shadows.offered(1)
        (row,) = await shadows.copies(1)
        status = await shadows.status()
    left = AttemptStart(
        **{
            name: getattr(row, name)
            for name in AttemptStart.__struct_fields__
            if name in Attempt.model_fields and name not in {"attempt_id", "request_id"}
        },
        attempt_id="att_left",
        request_id="req_left",
        estimated_input_tokens=10,
        estimated_charge_usd_nanos=1500,
        buckets=((started["budget_id"], _day_of(row.started_at_ms)),),
    )
    spool = home / "state" / "spool" / "0000000000001-1-dead.spool"
    spool.write_bytes(msgspec.json.encode(left) + b"\n")
    async with shadowing(home, urls) as shadows:
        dead = next(each for each in await shadows.copies(2) if each.attempt_id == "att_left")
        assert (dead.state, dead.error_code, dead.payer) == ("interrupted", "gateway_died", "platform")
        after = await shadows.status()
        posted = [int(one["budget"]["posted_usd"].replace(".", "")) for one in (status, after)]
        assert posted[1] == posted[0] + 1500
        assert await shadows.breaches() == []


def _day_of(epoch_ms: int) -> int:
    return epoch_ms - epoch_ms % 86_400_000


async def test_a_conversation_is_copied_as_a_whole_or_not_at_all(shadows: Shadows) -> None:
    await shadows.start(percent=50)
    first = await shadows.ask_for(16)
    again = await shadows.ask_for(16)
    spool = shadows.gateway.services.spool
    copier: Any = shadows.gateway.services.pipeline.copies
    await eventually(lambda: sum(copier.outcomes.values()) % 2 == 0 and sum(copier.outcomes.values()) > 0)
    await eventually(lambda: not copier.under_way and not spool.open_count and not spool.unshipped_count)
    assert not copier.skips
    copied = {str(row.client_request_id) for row in await shadows.copies(sum(copier.outcomes.values()))}
    places = [[number for number, each in enumerate(ids) if each in copied] for ids in (first, again)]
    assert places[0] == places[1]
    assert 0 < len(places[0]) < 16
