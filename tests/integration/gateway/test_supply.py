"""Does replica time of a real driver, or of others' servers, become a bill that adds up beside the charges?

The real driver and gateway, mock engines in place of vLLM.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from backends.pool import ReplicaState
from backends.replica_time import read_runs
from gateway.errors import ConfigurationError
from gateway.jobs.replica_time import observe
from gateway.settings import SupplySettings
from tests.integration.gateway.rig import ADMIN_KEY, Gateway, bearer, eventually, running, settings_for
from tests.integration.gateway.terminal import Terminal
from tests.support.factories import POLICY_TEXT, make_policy
from tests.support.mock_fleet import mock_fleet, mock_pool, write_pool
from tests.support.pool_files import DEFAULT_POLICY

SUPPLY = "/admin/v1/reports/supply"
LOOKS = SupplySettings(look_s=0.1)


def nanos(amount: str) -> int:
    return int(amount.replace(".", ""))


async def report(gateway: Gateway, group_by: str, **more: str) -> dict[str, Any]:
    answer = await gateway.client.get(
        SUPPLY, params={"group_by": group_by, **more}, headers=bearer(ADMIN_KEY)
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def assert_foots(found: dict[str, Any]) -> None:
    bill = nanos(found["bill_usd"])
    assert sum(map(nanos, found["lines"].values())) == bill
    assert sum(nanos(pool["bill_usd"]) for pool in found["pools"]) == bill
    for pool in found["pools"]:
        assert sum(map(nanos, pool["lines"].values())) == nanos(pool["bill_usd"])
    allocated = sum(nanos(row["allocated_cost_usd"]) for row in found["rows"])
    assert allocated + nanos(found["unallocated_usd"]) == bill
    assert sum(nanos(row["usage_cost_usd"]) for row in found["rows"]) == nanos(
        found["lines"].get("request", "0")
    )


async def test_a_fleet_that_runs_is_paid_for_by_who_used_it(home: Path, urls: dict[str, list[str]]) -> None:
    settings = settings_for(home, {"speculative": urls["speculative"]}, supply=LOOKS)
    spec = mock_pool(sleep={"after_idle_s": 600, "level": 1}, replicas=2)
    write_pool(settings.pools, spec)
    async with mock_fleet(settings.state_dir, spec, flags=("--sleep-mode", "0.1")) as fleet:
        async with running(settings) as gateway:
            for number in range(4):
                answer = await gateway.chat(f"Tell me a story {number}", max_tokens=20 + number)
                assert answer.headers["x-tollgate-pool"] == "plain"
            await gateway.rows(4)
            await _until_seen(gateway, 2)
            await _until_looked_at_again(gateway)
            found = await report(gateway, "tenant,pool")
            assert_foots(found)
            (pool,) = (one for one in found["pools"] if one["pool"] == "plain")
            assert (pool["time_source"], pool["open_hours"] > 0) == ("driver", True)
            assert pool["prices"][0]["usd_per_replica_hour"] == "2.000000000"
            assert nanos(pool["lines"]["warm_up"]) > 0
            (row,) = (one for one in found["rows"] if one["group"]["pool"] == "plain")
            assert row["attempts"] == 4
            assert float(row["engine_s"]) > 0
            assert nanos(row["charge_usd"]) > 0
            assert nanos(row["recovery_usd"]) == nanos(row["charge_usd"]) - nanos(row["allocated_cost_usd"])
            assert 0 < pool["utilisation_ratio"] < 1
            # However often it was looked at.
            assert len(await _runs(gateway)) == len(read_runs(settings.state_dir)) == 1
        assert fleet.replica().state is ReplicaState.READY
    # The driver has ended, and the gateway before it: the next one reads what it did not live to see.
    (run,) = read_runs(settings.state_dir)
    async with running(settings, is_up=False) as gateway:
        await eventually(lambda: run.changes[-1].phase.value == "off")
        await _until_seen(gateway, 2, phase="off")
        assert_foots(await report(gateway, "task,day"))


async def _runs(gateway: Gateway) -> list[Any]:
    async with gateway.services.sessions() as session:
        found = await session.execute(text("SELECT * FROM replica_runs WHERE source = 'driver'"))
        return list(found)


async def _until_looked_at_again(gateway: Gateway) -> None:
    """The hour that is not over is billed until the last look."""
    now_ms = gateway.services.clock.machine_ms()
    seen_ms = 0
    while seen_ms < now_ms:
        seen_ms = (await _runs(gateway))[0].seen_until_ms


async def _until_seen(gateway: Gateway, count: int, *, phase: str = "serving") -> None:
    statement = text("SELECT count(*) FROM replica_phases WHERE pool = 'plain' AND phase = :phase")
    seen = 0
    while seen < count:
        async with gateway.services.sessions() as session:
            seen = (await session.execute(statement, {"phase": phase})).scalar_one()


async def test_servers_of_others_are_paid_for_while_they_are_seen_up(gateway: Gateway) -> None:
    services = gateway.services
    now_ms = services.clock.epoch_ms()
    for back_ms in (90_000, 30_000, 0):
        async with services.sessions() as session:
            await observe(session, services.registry, now_ms=now_ms - back_ms)
            await session.commit()
    found = await report(
        gateway, "pool", **{"from": _whole_hour(now_ms - 3_600_000), "to": _whole_hour(now_ms + 3_600_000)}
    )
    assert_foots(found)
    for pool in found["pools"]:
        assert pool["time_source"] == "observed"
        assert float(pool["replica_hours"]["serving"]) == pytest.approx(90 / 3600, abs=1e-5)
    answer = await gateway.client.get(SUPPLY, params={"from": "2026-11-01T00:30:00Z"}, headers=gateway.admin)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "from")
    answer = await gateway.client.get(SUPPLY, params={"group_by": "tag:x"}, headers=gateway.admin)
    assert answer.status_code == 400


def _whole_hour(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms // 3_600_000 * 3600, UTC).isoformat()


@pytest.mark.parametrize("home", ["embedded"], indirect=True)
def test_the_command_says_what_the_api_says(home: Path) -> None:
    terminal = Terminal(home)
    found = terminal.json("report", "supply", "--by", "tenant")
    assert (found["bill_usd"], found["rows"], found["group_by"]) == ("0.000000000", [], ["tenant"])
    assert "bill by use" in terminal.text("report", "supply")
    assert "Spend from" in terminal.text("report")
    assert "whole hours" in terminal.refused("report", "supply", "--from", "2026-11-01T00:00:01Z")
    assert "after `supply`" in terminal.refused("report", "--json", "supply")
    assert json.dumps(found)


BASELINES = """
baselines:
  naive_pool:
    usd_per_hour: 0.12
    step: {fixed_s: 0.02, batched_token_s: 0.001}
    batch: 1
    error_ratio: 0.1
    source: a test
  home_pool: plain
  list_prices:
    mini: {rates: {input: "0.15", cached_input: "0.075", output: "0.60"}, source: a list of 2026}
"""


async def test_savings_are_told_against_what_the_policy_declares(
    home: Path, urls: dict[str, list[str]]
) -> None:
    policy = home / "policy.yaml"
    policy.write_text(DEFAULT_POLICY.read_text() + BASELINES)
    async with running(settings_for(home, urls, policy=policy)) as gateway:
        services = gateway.services
        now_ms = services.clock.epoch_ms()
        async with services.sessions() as session:
            await observe(session, services.registry, now_ms=now_ms)
            await session.commit()
        for _ in range(2):
            await gateway.chat("Extract all names: Bob", temperature=0, max_tokens=9)
        await gateway.chat("Tell me a story", max_tokens=9)
        await gateway.rows(3)
        async with services.sessions() as session:
            await observe(session, services.registry, now_ms=services.clock.epoch_ms() + 1)
            await session.commit()
        answer = await gateway.client.get("/admin/v1/reports/savings", headers=gateway.admin)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert found["policy"] == services.pipeline.routing.policy.version
        naive, listed = found["comparisons"]
        for one in (naive, listed):
            saved = nanos(one["baseline_usd"]) - nanos(one["actual_usd"])
            assert nanos(one["saved_usd"]) == saved
            assert sum(nanos(line["usd"]) for line in one["lines"]) == saved
        lines = {line["what"]: line for line in naive["lines"]}
        assert lines["cache"]["measured"] == "1 answers from the cache"
        assert nanos(lines["cache"]["usd"]) > 0
        assert lines["quantization"]["why_not"] == "no profile of plain"
        assert (listed["baseline"], listed["lines"][1]["what"]) == ("mini", "self_hosting")
        # None of it is in the books.
        assert nanos((await report(gateway, "pool"))["bill_usd"]) == nanos(listed["actual_usd"])


def test_a_home_pool_that_is_none_is_refused() -> None:
    text = POLICY_TEXT + "baselines: {home_pool: elsewhere}\n"
    with pytest.raises(ConfigurationError, match=r"test.yaml:\d+: baselines.home_pool: there is no pool"):
        make_policy(text)
    assert make_policy(POLICY_TEXT + "baselines: {}\n").version == make_policy().version


@pytest.mark.parametrize("home", ["embedded"], indirect=True)
def test_the_command_claims_nothing_where_the_policy_declares_nothing(home: Path) -> None:
    terminal = Terminal(home)
    assert terminal.json("report", "savings")["comparisons"] == []
    assert "Nothing is claimed" in terminal.text("report", "savings")
    policy = home / "policy.yaml"
    policy.write_text(DEFAULT_POLICY.read_text() + BASELINES)
    terminal.environment["TOLLGATE_POLICY"] = str(policy)
    printed = terminal.text("report", "savings")
    assert "Against naive_pool" in printed
    assert "Not claimed: the cache answered nothing." in printed
