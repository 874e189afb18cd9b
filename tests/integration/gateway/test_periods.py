"""Does a month close over the API and by the command, as finance does it, to the second person's approval?"""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.admin.reconciliation_views import ReconcileRequest, bill_of
from gateway.admin.reconciliations import BODY_BYTES_MAX
from gateway.cli import app as program
from gateway.clock import Clock
from gateway.db import create_engine, session_factory
from gateway.ledger.posting import book
from gateway.routing.receipts import insert_receipts
from tests.integration.gateway.desk import Desk
from tests.integration.gateway.rig import Gateway, bearer
from tests.integration.gateway.terminal import Terminal
from tests.support.clock import MovableClock
from tests.support.spend_rows import attempt_row, ended_of

MONTH = "2026-01"


def row_of(number: int, **values: Any) -> dict[str, Any]:
    """Without a price, so that no price has to be there; amounts are the other test's."""
    at_ms = int(datetime.fromisoformat(f"{MONTH}-05T10:00:00Z").timestamp() * 1000) + number
    free = {"charge_usd_nanos": None, "price_version": "unpriced", "pool": "plain"}
    return attempt_row(number, started_at_ms=at_ms, ended_at_ms=at_ms + 50, **{**free, **values})


async def book_now(sessions: Any, *rows: dict[str, Any]) -> None:
    async with sessions() as session:
        batch = [ended_of(row) for row in rows]
        now_ms = Clock().epoch_ms()
        await book(session, batch, owner_id="test", now_ms=now_ms, insert_receipts=insert_receipts)
        await session.commit()


@pytest.fixture
def terminal(home: Path) -> Terminal:
    made = Terminal(home)
    made.environment["TOLLGATE_SECRET_KEY"] = "k" * 64  # on PostgreSQL nobody makes one up

    async def fill() -> None:
        engine = create_engine(made.environment["TOLLGATE_DATABASE_URL"])
        await book_now(session_factory(engine), *(row_of(number) for number in range(3)))
        await engine.dispose()

    asyncio.run(fill())
    return made


def test_a_month_is_closed_shown_verified_and_never_opened(terminal: Terminal) -> None:
    assert terminal.json("period", "list")[-1] == {
        **dict.fromkeys(terminal.json("period", "list")[-1]),
        "period": MONTH,
        "state": "due",
        "period_start": "2026-01-01T00:00:00Z",
        "period_end": "2026-02-01T00:00:00Z",
    }
    closed = terminal.json("period", "close", MONTH)
    body = terminal.text("period", "show", MONTH, "--report")
    assert hashlib.sha256(body.encode()).hexdigest() == closed["report_sha256"]
    assert terminal.json("period", "close", MONTH)["was_closed_already"]
    assert terminal.text("period", "show", MONTH, "--report") == body
    assert terminal.json("period", "verify", MONTH)["is_right"]
    assert "is what it was" in terminal.text("period", "verify", MONTH)
    for arguments in (("period", "reopen", MONTH), ("period", "close", f"{Clock().now():%Y-%m}")):
        outcome = terminal.runner.invoke(program, arguments, env=terminal.environment)
        assert outcome.exit_code == 1, outcome.output
    assert terminal.audit()[0]["action"] == "period.close"


def test_a_bill_is_compared_and_its_proposer_may_not_approve(terminal: Terminal, tmp_path: Path) -> None:
    bill = tmp_path / "bill.csv"
    bill.write_text(f"day,pool,quantity,amount\n{MONTH}-05,gpt,330,1.5\n{MONTH}-06,other,1,2\n")
    made = terminal.json("reconcile", str(bill), "--period", MONTH, "--map", "gpt=plain")
    assert made["difference_usd"] == "3.500000000"
    assert made["classes"] == {"missing_in_ledger": "2.000000000", "price": "1.500000000"}
    shown = terminal.json("reconcile", "show", made["id"])
    assert shown["lines"] == made["lines"]
    assert "the classes add up" in terminal.text("reconcile", "show", made["id"])
    assert made["id"] in terminal.text("reconcile", "list")
    proposal = made["proposals"][0]["id"]
    assert "An approval names a person" in terminal.refused("reconcile", "approve", proposal)
    secret = tmp_path / "key"
    secret.write_text(terminal.json("admins", "create", "fay", "--role", "finance")["key"])
    said = terminal.refused("reconcile", "approve", proposal, "--key-file", str(secret))
    assert "a second person approves it" in said, "the user of the machine who proposed it has a key too"
    again = terminal.json("reconcile", str(bill), "--period", MONTH, "--map", "gpt=plain")
    assert (again["id"], again["is_new"], len(again["proposals"])) == (made["id"], False, 2)
    assert "compared with" in terminal.text("reconcile", str(bill), "--period", MONTH, "--map", "gpt=plain")
    bill.write_bytes(b"\xef\xbb\xbf" + bill.read_bytes().replace(b"\n", b"\r\n"))
    sent = bill.read_bytes().decode("utf-8-sig")  # as browsers do: the mark is gone, the ends are there
    asked = ReconcileRequest(file_name="bill.csv", file=sent, pools={"gpt": "plain"})
    assert bill_of(asked).sha256 == made["file_sha256"]
    again = terminal.json("reconcile", str(bill), "--period", MONTH, "--map", "gpt=plain")
    assert (again["id"], again["is_new"]) == (made["id"], False)
    assert terminal.json("reconcile", "reject", proposal)["state"] == "rejected"
    assert proposal in terminal.text("period", "adjustments")
    for arguments, said in (
        (("reconcile", "nowhere.csv", "--period", MONTH), "give a CSV file"),
        (("reconcile", str(bill), "--period", "2026-02"), f"it has lines of {MONTH}"),
        (("reconcile", "approve"), "takes an id"),
        (("reconcile", str(bill), "--period", MONTH, "--map", "gpt"), "--map is written"),
        (("reconcile", str(bill), "--period", MONTH, "--rate", "EUR=x"), "rate of EUR"),
        (("period", "reject", "adj_none"), "no proposal"),
        (("period", "correct", "--tenant", "acme", "--amount", "x", "--reason", "y"), "decimal amount"),
    ):
        assert said in terminal.refused(*arguments)


async def test_finance_closes_corrects_and_reconciles_over_the_api(gateway: Gateway) -> None:
    desk = Desk(gateway, MovableClock())
    await book_now(gateway.services.sessions, *(row_of(number) for number in range(3)))
    closed = await desk.post("/periods", {"period": MONTH})
    assert (closed["state"], closed["was_closed_already"]) == ("closed", False)
    answer = await desk.ask("GET", f"/periods/{MONTH}/report")
    assert hashlib.sha256(answer.content).hexdigest() == answer.headers["x-tollgate-sha256"]
    assert (await desk.get("/periods"))["periods"][-1]["state"] == "closed"
    assert (await desk.get(f"/periods/{MONTH}/verification"))["is_right"]
    assert (await desk.refused("POST", f"/periods/{MONTH}/reopen"))[0] == 409
    await book_now(gateway.services.sessions, row_of(100))
    spend = await desk.get("/reports/spend", **{"from": "2026-02-01", "to": "2026-03-01"})
    assert [each["used_in"] for each in spend["corrections"]] == [MONTH]
    assert (await desk.post("/periods", {"period": MONTH}))["report_sha256"] == closed["report_sha256"]

    credit = {"kind": "credit", "tenant": "acme", "amount_usd": "-2.5", "reason": "Outage"}
    proposed = await desk.post("/adjustments", {**credit, "charge_month": MONTH})
    status, _, message = await desk.refused("POST", f"/adjustments/{proposed['id']}/approve")
    assert (status, "second person" in message) == (403, True)
    second = await _another_person(desk, proposed["id"])
    path = f"/adjustments/{proposed['id']}/approve"
    await desk.until_admin(second["key"], 200)
    approved = await desk.ask("POST", path, headers=bearer(second["key"]))
    assert approved.json()["state"] == "approved", approved.text
    now = await desk.get("/reports/spend")
    assert (now["adjustments_usd"], now["due_usd"]) == ("-2.500000000", "-2.500000000")
    bill = {
        "period": MONTH,
        "file_name": "b.csv",
        "file": f"day,pool,quantity,amount\n{MONTH}-05,plain,440,0\n",
    }
    made = await desk.post("/reconciliations", bill)
    assert (made["difference_usd"], made["proposals"]) == ("0.000000000", [])
    assert (await desk.get(f"/reconciliations/{made['id']}"))["id"] == made["id"]
    assert [each["id"] for each in (await desk.get("/reconciliations"))["reconciliations"]] == [made["id"]]
    rejected = await desk.post("/adjustments", credit)
    assert (await desk.post(f"/adjustments/{rejected['id']}/reject"))["state"] == "rejected"
    assert len((await desk.get("/adjustments"))["adjustments"]) == 3
    assert await desk.get("/adjustments", open="true") == {"adjustments": []}
    entries = (await desk.get("/audit", limit=200))["data"]
    kinds = ("period", "adjustment", "reconciliation")
    found = [(each["action"], each["actor"]["name"]) for each in entries if each["object"]["kind"] in kinds]
    assert found[::-1] == [
        ("period.close", "bootstrap"),
        ("adjustment.propose", "bootstrap"),
        *((f"adjustment.{verb}", "one") for verb in ("propose", "reject")),
        ("adjustment.approve", "second"),
        ("reconciliation.make", "bootstrap"),
        ("adjustment.propose", "bootstrap"),
        ("adjustment.reject", "bootstrap"),
    ]


async def _another_person(desk: Desk, proposed_by_bootstrap: str) -> dict[str, Any]:
    """A key that may approve; and what may not: a person's rotated key, or a second one of that name."""
    one = await desk.post("/admin-keys", {"name": "one", "role": "finance"})
    await desk.until_admin(one["key"], 200)
    new = {"kind": "credit", "tenant": "acme", "amount_usd": "-1", "reason": "Mine"}
    mine = (await desk.ask("POST", "/adjustments", json=new, headers=bearer(one["key"]))).json()["id"]
    rotated = await desk.post(f"/admin-keys/{one['id']}/rotate")
    named = await desk.post("/admin-keys", {"name": "One", "role": "finance"})
    for key in (one, rotated, named):
        await desk.until_admin(key["key"], 200)
        refused = await desk.ask("POST", f"/adjustments/{mine}/approve", headers=bearer(key["key"]))
        assert (refused.status_code, "same person" in refused.text) == (403, True), refused.text
    assert (await desk.refused("POST", f"/adjustments/{mine}/approve"))[0] == 403, "nobody's key"
    rejected = await desk.ask("POST", f"/adjustments/{mine}/reject", headers=bearer(one["key"]))
    assert rejected.status_code == 200
    second: dict[str, Any] = await desk.post("/admin-keys", {"name": "second", "role": "finance"})
    assert (await desk.refused("POST", f"/adjustments/{proposed_by_bootstrap}/approve"))[0] == 403
    return second


async def test_a_bill_of_megabytes_is_read_and_one_that_is_too_large_is_refused(gateway: Gateway) -> None:
    desk = Desk(gateway, MovableClock())
    line = f"{MONTH}-05,plain,1,0\n"
    file = "day,pool,quantity,amount\n" + line * (1_200_000 // len(line) + 1)
    made = await desk.post("/reconciliations", {"period": MONTH, "file_name": "big.csv", "file": file})
    assert made["lines"][0]["bill_quantity"] == file.count("\n") - 1
    answer = await desk.ask("POST", "/reconciliations", content=b" " * (BODY_BYTES_MAX + 1))
    assert answer.status_code == 413, answer.text
    assert (await desk.refused("POST", "/reconciliations", {"file": "x"}))[:2] == (400, "file_name")
