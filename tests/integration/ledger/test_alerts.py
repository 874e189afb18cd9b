"""Is what shall be told told by everybody set up, once, and not lost when they or we are away?"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.alerts.channels import Webhook, channels_of, signature
from gateway.alerts.outbox import GIVEN_UP_MS, RETRY_MS, Alert, recent
from gateway.audit import Act, Actor, ActorKind, Source
from gateway.clock import Clock
from gateway.db import database_ms
from gateway.forecasts.anomaly_search import search
from gateway.jobs.alerts import Searcher, Teller
from gateway.jobs.leases import Turn, begin_turn
from gateway.ledger.buckets import Scope, Window
from gateway.ledger.budget_store import Owner, create_budget
from gateway.ledger.burn_down import burn_down
from gateway.ledger.cuts import MS_PER_DAY, MS_PER_HOUR
from gateway.ledger.tables import BudgetAlert, BudgetMark, BudgetPosting, BudgetWindow, SpendHour
from gateway.settings import AlertSettings
from tests.integration.ledger.site import Site
from tests.support.receivers import LOCAL, Hook, hook_server, mail_server
from tests.support.servers import free_port
from tests.support.spend_shapes import hourly

CLOCK = Clock()
KEY = b"k" * 32
NEWS = Alert("test", "test/1", "Something is up\r\nBcc: nobody@example.com", {"limit_usd": "10"})
FLOOR = 10**9


def teller(site: Site, **settings: Any) -> Teller:
    return Teller(site.sessions, CLOCK, channels_of(AlertSettings(**settings), key=KEY, clock=CLOCK))


async def turn(site: Site) -> Turn:
    async with site.engine.begin() as connection:
        await connection.execute(text("UPDATE job_leases SET expires_at_ms = 1"))
    found = await begin_turn(site.sessions, CLOCK, "alerts", holder="test", ttl_s=60)
    assert found is not None
    return found


async def deliver(site: Site, to: Teller) -> tuple[int, int]:
    return await to.deliver(await turn(site), asyncio.Event())


async def later(site: Site, ms: int) -> None:
    """Time passes: what is waiting becomes due."""
    async with site.engine.begin() as connection:
        await connection.execute(
            text("UPDATE alert_deliveries SET next_at_ms = next_at_ms - :ms"), {"ms": ms}
        )


def hooked(hook: Hook) -> dict[str, Any]:
    return {"webhook_urls": [SecretStr(hook.url)]}


async def test_a_webhook_gets_it_signed_and_once(site: Site) -> None:
    with hook_server() as hook:
        one, other = teller(site, **hooked(hook)), teller(site, **hooked(hook))
        assert await one.post(await turn(site), [NEWS, NEWS]) == 1
        assert await deliver(site, one) == (1, 0)
        assert await other.post(await turn(site), [NEWS]) == 0, "another process knows"
        assert await deliver(site, other) == (0, 0)
        ((headers, body),) = hook.taken
    told = json.loads(body)
    assert told["subject"] == NEWS.subject
    assert told["details"] == {"limit_usd": "10"}
    assert headers["x-tollgate-alert"] == told["id"]
    assert headers["x-tollgate-signature"] == signature(KEY, headers["x-tollgate-timestamp"], body)
    assert headers["x-tollgate-signature"] != signature(b"another key", headers["x-tollgate-timestamp"], body)


async def test_who_fails_is_asked_again_later_with_the_same_id(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with hook_server() as hook, caplog.at_level(logging.WARNING):
        hook.statuses += [503, 302]
        told = teller(site, **hooked(hook))
        await told.post(await turn(site), [NEWS])
        assert await deliver(site, told) == (0, 1)
        assert await deliver(site, told) == (0, 0), "not at once"
        await later(site, RETRY_MS)
        assert await deliver(site, told) == (0, 1), "a redirect is not followed"
        await later(site, RETRY_MS)
        assert await deliver(site, told) == (0, 0), "twice as long"
        await later(site, RETRY_MS)
        assert await deliver(site, told) == (1, 0)
        assert len({headers["x-tollgate-alert"] for headers, _ in hook.taken}) == 1
        assert len(hook.taken) == 3
    async with site.sessions() as session:
        ((_, (delivery,)),) = await recent(session, limit=9)
    assert (delivery.attempts, delivery.last_error) == (2, "its host answered 302")
    assert "was not taken by webhook:127.0.0.1#" in caplog.text
    assert "secret-path" not in caplog.text + str(delivery.last_error) + delivery.channel


async def test_a_process_that_dies_before_it_notes_delivers_again_under_the_same_id(site: Site) -> None:
    with hook_server() as hook:
        first = teller(site, **hooked(hook))
        await first.post(await turn(site), [NEWS])
        lost = await turn(site)
        async with site.engine.begin() as connection:
            await connection.execute(text("UPDATE job_leases SET expires_at_ms = 1"))
        with pytest.raises(Exception, match="is over"):
            await first.deliver(lost, asyncio.Event())
        assert len(hook.taken) == 1, "it was told"
        assert await deliver(site, teller(site, **hooked(hook))) == (1, 0)
        one, other = (headers["x-tollgate-alert"] for headers, _ in hook.taken)
        assert one == other


async def test_an_address_that_is_none_holds_nobody_else_up(site: Site) -> None:
    with hook_server() as hook:
        told = teller(site, webhook_urls=[SecretStr(f"http://{LOCAL}:99999/"), SecretStr(hook.url)])
        await told.post(await turn(site), [NEWS])
        assert await deliver(site, told) == (1, 1)
        assert len(hook.taken) == 1


async def test_nobody_listens_and_then_somebody_does(site: Site) -> None:
    port = free_port()
    told = teller(site, webhook_urls=[SecretStr(f"http://{LOCAL}:{port}/hooks/secret-path")])
    await told.post(await turn(site), [NEWS])
    assert await deliver(site, told) == (0, 1)
    await later(site, RETRY_MS)
    with hook_server(port) as hook:
        assert await deliver(site, told) == (1, 0)
        assert len(hook.taken) == 1


async def test_what_nobody_took_for_a_week_is_given_up(site: Site) -> None:
    told = teller(site, webhook_urls=[SecretStr(f"http://{LOCAL}:{free_port()}/")])
    async with site.sessions() as session:
        now_ms = await database_ms(session, CLOCK) - GIVEN_UP_MS - 1000
        row = {
            "id": "alr_old",
            "topic": "old",
            "kind": "test",
            "subject": "old",
            "details": "{}",
            "at_ms": now_ms,
        }
        await session.execute(
            text("INSERT INTO alert_messages VALUES (:id, :topic, :kind, :at_ms, :subject, :details)"), row
        )
        await session.execute(
            text(
                "INSERT INTO alert_deliveries (alert_id, channel, attempts, next_at_ms)"
                " VALUES (:id, :c, 9, 1)"
            ),
            {"id": "alr_old", "c": told.names[0]},
        )
        await session.commit()
    assert await deliver(site, told) == (0, 1)
    await later(site, GIVEN_UP_MS)
    assert await deliver(site, told) == (0, 0)


async def test_mail_goes_out_encrypted_and_a_server_that_recovers_gets_it(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mail_server(tmp_path) as (box, certificate), caplog.at_level(logging.DEBUG):
        settings: dict[str, Any] = {
            "smtp_host": LOCAL,
            "smtp_port": box.port,
            "smtp_user": box.user,
            "smtp_password": SecretStr(box.password),
            "mail_from": "tollgate@example.com",
            "mail_to": ["finance@example.com", "ops@example.com"],
            "ca_file": certificate,
        }
        box.refusals.append("451 try again later")
        told = teller(site, **settings)
        await told.post(await turn(site), [NEWS])
        assert await deliver(site, told) == (0, 1)
        await later(site, RETRY_MS)
        assert await deliver(site, told) == (1, 0)
        (mail,) = box.mails
        assert box.to == ["finance@example.com", "ops@example.com"]
        wrong = teller(site, **{**settings, "smtp_password": SecretStr("wrong horse")})
        await wrong.post(await turn(site), [Alert("test", "test/2", "again", {})])
        assert await deliver(site, wrong) == (0, 1)
        untrusting = teller(site, **{**settings, "ca_file": None})
        await later(site, RETRY_MS)
        assert await deliver(site, untrusting) == (0, 1), "nobody vouches for the certificate"
    assert mail["Subject"] == "[Tollgate] Something is up Bcc: nobody@example.com"
    assert mail["Bcc"] is None, "a name cannot add a header"
    assert "limit_usd: 10" in str(mail.get_payload())
    assert "horse" not in caplog.text


def test_settings_that_cannot_work_are_refused() -> None:
    for wrong in (
        {"webhook_urls": ["ftp://example.com"]},
        {"smtp_host": "mail.example.com"},
        {"mail_from": "a@b", "mail_to": ["x@y\r\nBcc: z@z"]},
        {"smtp_user": "me"},
        {"smtp_user": "me", "smtp_password": "p", "smtp_security": "none"},
    ):
        with pytest.raises(ValidationError):
            AlertSettings.model_validate(wrong)
    names = [
        Webhook(url, key=KEY, trust=None, timeout_s=1, clock=CLOCK).name  # type: ignore[arg-type]
        for url in ("https://hooks.example.com/a", "https://hooks.example.com/b")
    ]
    assert len(set(names)) == 2
    assert all(name.startswith("webhook:hooks.example.com#") for name in names)


async def test_budgets_are_told_of_when_reached_and_when_they_will_not_last(site: Site) -> None:
    async with site.sessions() as session:
        now_ms = await database_ms(session, CLOCK)
        start_ms = now_ms - 10 * MS_PER_DAY
        budget_id = await _budget(session, "acme's month", Window.TOTAL, at_ms=start_ms)
        session.add(
            BudgetAlert(
                budget_id=budget_id, window_start_ms=0, percent=50, at_ms=now_ms, posted_usd_nanos=51 * FLOOR
            )
        )
        session.add(
            BudgetAlert(
                budget_id=budget_id,
                window_start_ms=0,
                percent=20,
                at_ms=start_ms,
                posted_usd_nanos=20 * FLOOR,
            )
        )
        await session.commit()
    with hook_server() as hook:
        told = teller(site, **hooked(hook))
        assert await told.look(await turn(site)) == 1, "what is long gone is not told"
        assert await told.look(await turn(site)) == 0
        assert await deliver(site, told) == (1, 0)
        details = json.loads(hook.taken[0][1])["details"]
    assert (details["budget"], details["percent"], details["booked_usd"]) == (
        "acme's month",
        50,
        "51.000000000",
    )


async def test_a_month_that_will_not_last_is_told_once(site: Site) -> None:
    async with site.sessions() as session:
        now_ms = await database_ms(session, CLOCK)
    day = now_ms // MS_PER_DAY * MS_PER_DAY
    week_ms = day - (day // MS_PER_DAY + 3) % 7 * MS_PER_DAY
    if now_ms - week_ms < 1.2 * MS_PER_DAY:
        # On Mondays a week's pace is not known for a day: a rule of its own.
        assert await teller(site).look(await turn(site)) == 0
        return
    async with site.sessions() as session:
        budget_id = await _budget(session, "weekly", Window.WEEK, at_ms=week_ms)
        session.add(
            BudgetWindow(
                budget_id=budget_id,
                window_start_ms=week_ms,
                limit_usd_nanos=100 * FLOOR,
                limit_highest_usd_nanos=100 * FLOOR,
                posted_usd_nanos=99 * FLOOR,
            )
        )
        await session.execute(
            text(
                "INSERT INTO journal_transactions (id, kind, at_ms, attempts, note)"
                f" VALUES ('jtx_{now_ms - 1000:012x}00', 'usage', {now_ms}, 1, '')"
            )
        )
        session.add(
            BudgetPosting(
                transaction_id=f"jtx_{now_ms - 1000:012x}00",
                budget_id=budget_id,
                window_start_ms=week_ms,
                owner_id="one",
                amount_usd_nanos=99 * FLOOR,
                overage_usd_nanos=0,
            )
        )
        await session.commit()
    told = teller(site)
    assert await told.look(await turn(site)) == 1
    assert await told.look(await turn(site)) == 0
    async with site.sessions() as session:
        ((message, deliveries),) = await recent(session, limit=9)
    assert message.kind == "overrun"
    assert message.subject.startswith("Budget weekly will run out on 2")
    assert not deliveries, "nobody is set up, and it is kept all the same"


async def test_a_pace_is_read_from_marks_and_never_from_postings(site: Site) -> None:
    async with site.sessions() as session:
        now_ms = await database_ms(session, CLOCK)
        budget_id = await _budget(session, "total", Window.TOTAL, at_ms=now_ms - 90 * MS_PER_DAY)
        session.add(
            BudgetWindow(
                budget_id=budget_id,
                window_start_ms=0,
                limit_usd_nanos=100 * FLOOR,
                limit_highest_usd_nanos=100 * FLOOR,
                posted_usd_nanos=80 * FLOOR,
            )
        )
        for days, posted in ((9, 1), (7, 10), (3, 50)):
            mark: dict[str, Any] = {
                "budget_id": budget_id,
                "window_start_ms": 0,
                "posted_usd_nanos": posted * FLOOR,
            }
            session.add(BudgetMark(at_ms=now_ms - days * MS_PER_DAY, **mark))
        await session.commit()
    async with site.sessions() as session:
        (burning,) = await burn_down(session, now_ms=now_ms)
    assert burning.pace_usd_nanos_a_day == 10 * FLOOR, "80 less the 10 of seven days ago, in seven days"
    await teller(site).look(await turn(site))
    ages = await site.rows("SELECT at_ms, posted_usd_nanos FROM budget_marks ORDER BY at_ms")
    assert [posted for _, posted in ages] == [10 * FLOOR, 50 * FLOOR, 80 * FLOOR], "a new one, none too old"
    await teller(site).look(await turn(site))
    assert len(await site.rows("SELECT at_ms FROM budget_marks")) == 3, "one an hour"


async def test_a_jump_is_found_with_its_cause_told_and_kept_once_a_day(site: Site) -> None:
    async with site.sessions() as session:
        now_ms = await database_ms(session, CLOCK)
        end_ms = (now_ms - 300_000) // MS_PER_HOUR * MS_PER_HOUR
        rows = []
        for key, pool, factor in (("calm", "plain", 1), ("wild", "spec", 12)):
            hours = hourly(28, seed=len(key), noise=0.1, level=3)
            start_ms = end_ms - len(hours) * MS_PER_HOUR
            for index, value in enumerate(hours):
                usual = 3.0 if index >= len(hours) - 6 else value
                amount = usual * (factor if index >= len(hours) - 6 else 1)
                rows.append(_hour(start_ms + index * MS_PER_HOUR, key, pool, amount))
        await session.execute(insert(SpendHour), rows)
        await session.commit()
    async with site.sessions() as session:
        found = await search(session, now_ms=now_ms, floor_usd_nanos=FLOOR)
    assert [(each.dimension, each.value) for each in found] == [("tenant", "ten_1")], (
        "its key is no second one"
    )
    assert found[0].cause is not None
    assert (found[0].cause.dimension, found[0].cause.value) in {("key", "wild"), ("pool", "spec")}
    told = teller(site)
    searcher = Searcher(told, site.url, FLOOR)
    for _ in range(2):
        await searcher.tell(await turn(site), found)
    assert await site.rows("SELECT dimension, value FROM anomalies") == [("tenant", "ten_1")]
    async with site.sessions() as session:
        ((message, _),) = await recent(session, limit=9)
    assert message.subject.startswith("Unusual spend of tenant ten_1 in the last ")
    assert "mostly" in message.subject


async def _budget(session: AsyncSession, name: str, window: Window, *, at_ms: int) -> str:
    actor = Actor(kind=ActorKind.CLI, id="cli:test", name="test", role="admin")
    budget = await create_budget(
        session,
        name,
        owner=Owner(Scope.TENANT, "ten_1", "ten_1"),
        window=window,
        limit_usd_nanos=100 * FLOOR,
        is_hard=False,
        act=Act(actor=actor, source=Source.CLI, at_ms=at_ms),
    )
    return budget.id


def _hour(at_ms: int, key: str, pool: str, amount: float) -> dict[str, Any]:
    sums = ("requests", "attempts", "failed_attempts", "unpriced_attempts", "input_tokens", "output_tokens")
    more = ("cached_input_tokens", "cache_write_tokens", "reasoning_tokens", "cache_hits")
    return {
        **dict.fromkeys((*sums, *more), 1),
        "hour_start_ms": at_ms,
        "tenant_id": "ten_1",
        "project_id": "prj_1",
        "key_id": key,
        "model_alias": "auto",
        "pool": pool,
        "task": "qa",
        "payer": "tenant",
        "charge_usd_nanos": round(amount * FLOOR),
    }
