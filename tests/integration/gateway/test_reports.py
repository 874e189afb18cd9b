"""Does the one spend report add up, on SQLite and on PostgreSQL, by everything one may ask for?"""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.app import create_app
from gateway.errors import ConfigurationError
from gateway.ledger.reports import PLATFORM_TENANT, UNTAGGED
from tests.integration.gateway.rig import (
    ADMIN_KEY,
    Gateway,
    bearer,
    lifespan_of,
    settings_for,
)
from tests.support.mock_process import MockVllm
from tests.support.spend_rows import book_rows

SPEND: Final = "/admin/v1/reports/spend"


async def report(gateway: Gateway, group_by: str, **limits: str) -> dict[str, Any]:
    answer = await gateway.client.get(
        SPEND, params={"group_by": group_by, **limits}, headers=bearer(ADMIN_KEY)
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_the_report_is_the_sum_of_the_rows_and_of_what_clients_were_told(
    gateway: Gateway, speculative: MockVllm
) -> None:
    other = await gateway.issue_key("globex", "import")
    told = {"acme": 0, "globex": 0}
    for number in range(6):
        tenant = ("acme", "globex")[number % 2]
        key = gateway.key if tenant == "acme" else other
        content = ("Tell me a story", "Extract all names: Bob")[number // 2 % 2]
        answer = await gateway.chat(content, max_tokens=number + 1, headers=bearer(key))
        told[tenant] += int(answer.headers["x-tollgate-cost-usd"].replace(".", ""))
    speculative.fault("garbage", times=1)
    answer = await gateway.chat("Extract all names: Ann", max_tokens=2)
    assert answer.headers["x-tollgate-pool"] == "plain"
    told["acme"] += int(answer.headers["x-tollgate-cost-usd"].replace(".", ""))
    rows = await gateway.rows(8)

    found = await report(gateway, "tenant,pool,task")
    assert found["group_by"] == ["tenant", "pool", "task"]
    assert (found["currency"], found["time_zone"]) == ("USD", "UTC")
    for tenant, nanos in told.items():
        of_tenant = [row for row in found["rows"] if row["tenant"] == tenant]
        assert sum(int(row["charge_usd"].replace(".", "")) for row in of_tenant) == nanos
    total = found["total"]
    paid = [row for row in rows if row.payer == "tenant"]
    assert total["requests"] == 7
    assert total["failed_attempts"] == 1
    assert total["input_tokens"] == sum(row.input_tokens for row in paid)
    assert total["output_tokens"] == sum(row.output_tokens for row in paid)
    assert int(total["charge_usd"].replace(".", "")) == sum(told.values())
    lost = sum(row.charge_usd_nanos or 0 for row in rows if row.payer == "platform")
    assert lost > 0
    # Beside it stands what the gateway asked of its engines for itself, which is nobody's request.
    (ours,) = (row for row in await by_tenant(gateway) if row["tenant"] == PLATFORM_TENANT)
    assert (ours["requests"], ours["charge_usd"], ours["input_tokens"]) == (0, "0.000000000", 0)
    upkeep = int(ours["platform_usd"].replace(".", ""))
    assert upkeep > 0
    assert int(total["platform_usd"].replace(".", "")) == lost + upkeep
    charges = [row["charge_usd"] for row in found["rows"]]
    assert charges == sorted(charges, reverse=True)


async def by_tenant(gateway: Gateway) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await report(gateway, "tenant"))["rows"]
    return rows


async def test_it_groups_by_every_dimension_and_each_adds_up_to_the_same(gateway: Gateway) -> None:
    await gateway.chat("Tell me a story", metadata={"team": "search"}, user="ann")
    await gateway.chat("Extract all names: Bob", metadata={"team": "ads"})
    await gateway.chat("Hm", model="tollgate-reference")
    await gateway.rows(3)
    total = (await report(gateway, "tenant"))["total"]
    expected: dict[str, set[str]] = {
        "tenant": {"acme", PLATFORM_TENANT},
        "project": {"default", PLATFORM_TENANT},
        "model": {"auto", "tollgate-reference", PLATFORM_TENANT},
        "pool": {"plain", "speculative"},
        "task": {"creative", "extraction", "chat", "heartbeat"},
        "tag:team": {"search", "ads", UNTAGGED},
        "tag:te'am\"%": {UNTAGGED},
    }
    for dimension, values in expected.items():
        found = await report(gateway, dimension)
        assert {row[dimension] for row in found["rows"]} == values
        assert found["total"] == total
    for dimension in ("key", "end_user", "policy", "day", "week", "month"):
        assert (await report(gateway, dimension))["total"] == total
    both = await report(gateway, "day,tag:team,pool,tag:team")
    assert both["group_by"] == ["day", "tag:team", "pool"]
    assert len({(row["tag:team"], row["pool"]) for row in both["rows"]}) == len(both["rows"]) == 4


MOMENTS: Final = (
    "2026-10-31T23:59:59.999",
    "2026-11-01T00:00:00.000",
    "2026-11-01T18:30:00.000",
    "2026-11-02T23:59:59.999",
)


async def test_days_weeks_and_months_begin_at_midnight_utc(gateway: Gateway) -> None:
    await gateway.chat("Hm")
    (row,) = await gateway.rows(1)
    values = {name: getattr(row, name) for name in type(row).model_fields}
    booked = []
    for index, moment in enumerate(MOMENTS):
        at_ms = round(datetime.fromisoformat(f"{moment}+00:00").timestamp() * 1000)
        booked.append(
            {**values, "attempt_id": f"att_{index}", "started_at_ms": at_ms, "charge_usd_nanos": 1000 + index}
        )
    async with gateway.services.sessions() as session:
        await book_rows(session, booked)
        await session.commit()
    limits = {"from": "2026-10-01", "to": "2026-11-03"}
    found = await report(gateway, "day,week,month", **limits)
    groups = [(row["day"], row["week"], row["month"], row["charge_usd"]) for row in found["rows"]]
    assert groups == [
        ("2026-11-01", "2026-10-26", "2026-11", "0.000002003"),
        ("2026-11-02", "2026-11-02", "2026-11", "0.000001003"),
        ("2026-10-31", "2026-10-26", "2026-10", "0.000001000"),
    ]
    by_week = await report(gateway, "week", **limits)
    assert [(row["week"], row["charge_usd"]) for row in by_week["rows"]] == [
        ("2026-10-26", "0.000003003"),
        ("2026-11-02", "0.000001003"),
    ]
    half_open = await report(
        gateway, "day", **{"from": "2026-11-01T00:00:00Z", "to": "2026-11-02T23:59:59.999Z"}
    )
    assert [row["day"] for row in half_open["rows"]] == ["2026-11-01"]
    elsewhere = await report(gateway, "month", **{"from": "2026-11-01T01:00:00+01:00", "to": "2026-11-02"})
    assert elsewhere["total"]["requests"] == 2


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"group_by": "tenant,colour"}, "Cannot group by 'colour'. Known: tenant, project, key"),
        ({"group_by": "tag:"}, "Cannot group by 'tag:'"),
        ({"from": "yesterday"}, "`from` must be a date or an instant such as 2026-11-01"),
        ({"from": "2026-11-02", "to": "2026-11-01"}, "The end of the report must be after its start."),
    ],
)
async def test_a_report_that_cannot_be_made_says_why(
    gateway: Gateway, params: dict[str, str], said: str
) -> None:
    answer = await gateway.client.get(SPEND, params=params, headers=bearer(ADMIN_KEY))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]


async def test_the_report_is_for_administrators(gateway: Gateway) -> None:
    for headers in ({"authorization": ""}, bearer(gateway.key), bearer(ADMIN_KEY + "x"), bearer("")):
        answer = await gateway.client.get(SPEND, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["x-should-retry"] == "false"
    assert (await gateway.client.get(SPEND, headers=bearer(ADMIN_KEY))).status_code == 200


async def test_requests_streams_and_keys_work_the_same_on_both_databases(gateway: Gateway) -> None:
    plain = await gateway.chat("Extract all names: Bob", metadata={"team": "Grüße 東京"})
    assert plain.headers["x-tollgate-cost-usd"] == "0.000007200"
    await gateway.chat("Tell me a story", stream=True)
    first, second = await gateway.rows(2)
    assert (first.charge_usd_nanos, first.tags) == (7_200, {"team": "Grüße 東京"})
    assert (second.charge_usd_nanos, second.is_streaming) == (8 * 150 + 16 * 600, True)
    key = await gateway.issue_key("globex")
    assert (await gateway.chat("Hm", headers=bearer(key))).status_code == 200


async def test_many_rows_at_once_all_arrive(gateway: Gateway) -> None:
    answers = await asyncio.gather(*(gateway.chat("Hm", max_tokens=1) for _ in range(60)))
    assert {answer.status_code for answer in answers} == {200}
    rows = await gateway.rows(60)
    assert {row.request_id for row in rows} == {answer.headers["x-request-id"] for answer in answers}


async def test_a_tag_that_the_database_cannot_hold_does_not_spoil_anything(gateway: Gateway) -> None:
    odd = await gateway.chat("Hm", metadata={"team": "a\u0000b"})
    usual = await gateway.chat("Hm", metadata={"team": "c"})
    assert usual.status_code == 200
    assert odd.status_code == 400
    await gateway.rows(1)
    found = await report(gateway, "tag:team")
    assert "c" in {row["tag:team"] for row in found["rows"]}


async def test_postgresql_without_its_secrets_is_refused_with_what_to_set(
    home: Path, urls: dict[str, list[str]]
) -> None:
    url = "postgresql+asyncpg://nobody@127.0.0.1:9/none"
    with pytest.raises(ConfigurationError, match="TOLLGATE_SECRET_KEY is not set: on PostgreSQL"):
        create_app(settings_for(home, urls, database_url=url, admin_key=None, secret_key=None))
    with pytest.raises(ConfigurationError, match="TOLLGATE_ADMIN_KEY is not set"):
        create_app(settings_for(home, urls, database_url=url, admin_key=None))


async def test_postgresql_without_tables_is_refused_at_the_start(
    home: Path, urls: dict[str, list[str]], postgres: str
) -> None:
    app = create_app(settings_for(home, urls, database_url=postgres))
    with pytest.raises(ConfigurationError, match="run `tollgate migrate` first"):
        async with lifespan_of(app):
            pass
