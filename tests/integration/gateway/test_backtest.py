"""Is history read back as it was booked, and does `tollgate policy backtest` answer on it?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.analysis.history import RecordedRequest, count_attempts, read_history
from gateway.db import create_engine, session_factory
from gateway.errors import InvalidRequest
from gateway.inference import AttemptState, TokenUsage
from gateway.ledger.reports import spend_report
from gateway.money import usd_text
from tests.integration.gateway.rig import settings_for
from tests.integration.gateway.terminal import Terminal
from tests.load.backtest_truth import ALL_PLAIN, BY_NATURE, policy_of, policy_text
from tests.load.backtest_world import START_MS, make_world, run_world
from tests.support.recorded import book_requests

FROM, TO = datetime.fromtimestamp(START_MS / 1000, UTC), datetime.fromtimestamp(START_MS / 1000 + 3600, UTC)
SPAN = ("--from", FROM.isoformat(), "--to", TO.isoformat())


@pytest.fixture(scope="module")
def requests() -> list[RecordedRequest]:
    happened = run_world(make_world(2, seconds=200.0), policy_of(BY_NATURE), run="recorded")
    found = happened.history.requests
    first = found[0].attempts[0]
    # One that failed first: on the platform's account.
    failed = msgspec.structs.replace(
        first, state=AttemptState.FAILED, is_tenants=False, charge_usd_nanos=700, pool="plain"
    )
    found[0].attempts.insert(0, failed)
    found[1].policy = ""  # its receipt is gone
    return found


def in_database(url: str, work: Callable[[AsyncSession], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        engine = create_engine(url)
        try:
            async with session_factory(engine)() as session:
                found = await work(session)
                await session.commit()
                return found
        finally:
            await engine.dispose()

    return asyncio.run(run())


def url_of(home: Path) -> str:
    nowhere = ["http://127.0.0.1:9"]
    return settings_for(home, {"speculative": nowhere, "plain": nowhere}).effective_database_url


def test_history_is_what_was_booked_and_foots_to_the_ledger(
    home: Path, requests: list[RecordedRequest]
) -> None:
    url = url_of(home)
    in_database(url, lambda session: book_requests(session, requests))
    told: list[int] = []
    span: dict[str, Any] = {"from_ms": START_MS, "to_ms": START_MS + 3_600_000}
    history = in_database(url, lambda session: read_history(session, on_rows=told.append, **span))
    assert [each.request_id for each in history.requests] == [each.request_id for each in requests]
    for read, booked in zip(history.requests, requests, strict=True):
        if booked.policy:
            assert read == booked
    bare = history.requests[1]
    assert (bare.policy, bare.targets, bare.asked.temperature) == ("", (), None)
    assert bare.attempts == requests[1].attempts
    assert (history.without_receipt, history.without_asked) == (1, 1)
    assert history.platform_usd_nanos == 700
    attempts = in_database(url, lambda session: count_attempts(session, **span))
    assert sum(told) == attempts == len(requests) + 1
    report = in_database(
        url, lambda session: spend_report(session, group_by=["tenant"], start=FROM, end=TO, names={})
    )
    assert history.charge_usd_nanos == report.total.charge_usd_nanos
    with pytest.raises(InvalidRequest, match="more than 10 requests"):
        in_database(url, lambda session: read_history(session, requests_max=10, **span))


def test_who_answered_before_the_record_is_looked_up(home: Path, requests: list[RecordedRequest]) -> None:
    first = requests[5]
    asked = msgspec.structs.replace(first.asked, slot="00ff", temperature=0.0)
    day_ms = 86_400_000
    donor, older, hit = (
        RecordedRequest(
            **{
                **{name: getattr(first, name) for name in first.__struct_fields__},
                "request_id": f"req_donor_{place}",
                "at_ms": START_MS + at_ms,
                "asked": asked,
                "cache": cache,
                "attempts": [msgspec.structs.replace(first.attempts[0], started_at_ms=START_MS + at_ms)],
            }
        )
        for place, (at_ms, cache) in enumerate([(-5_000, "miss"), (-9_000, "miss"), (1_000, "hit")])
    )
    older.attempts = [msgspec.structs.replace(older.attempts[0], usage=TokenUsage(input=1, output=1))]
    url = url_of(home)
    in_database(url, lambda session: book_requests(session, [donor, older, hit]))
    span: dict[str, Any] = {"from_ms": START_MS, "to_ms": START_MS + 3_600_000}
    history = in_database(url, lambda session: read_history(session, **span))
    assert history.donors == {(first.tenant_id, "00ff"): donor.attempts[0]}
    later: dict[str, Any] = {"from_ms": START_MS + 1_000, "to_ms": START_MS + day_ms}
    assert in_database(url, lambda session: read_history(session, **later)).donors == history.donors


class Bench:
    """A database with a record, and the bundled pools."""

    def __init__(self, home: Path, requests: list[RecordedRequest]) -> None:
        self.folder = home
        self.terminal = Terminal(home)
        self.terminal.environment["TOLLGATE_POOLS"] = str(Path(__file__).parents[3] / "backends" / "pools")
        in_database(url_of(home), lambda session: book_requests(session, requests))

    def policy(self, routes: str, name: str = "other.yaml") -> str:
        path = self.folder / name
        path.write_text(policy_text(routes), encoding="utf-8")
        return str(path)


@pytest.fixture
def bench(home: Path, requests: list[RecordedRequest]) -> Bench:
    return Bench(home, requests)


only_embedded = pytest.mark.parametrize("home", ["embedded"], indirect=True)


@only_embedded
def test_an_operator_asks_what_a_policy_would_have_cost(
    bench: Bench, requests: list[RecordedRequest]
) -> None:
    command = ("policy", "backtest", bench.policy(ALL_PLAIN), *SPAN, "--seeds", "2")
    page = bench.folder / "report.html"
    view = bench.terminal.json(*command, "--baseline", bench.policy(BY_NATURE, "a.yaml"), "--out", str(page))
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    charged = sum(each.charge_usd_nanos for each in requests)
    assert view["record"]["charge_usd"] == usd_text(charged)
    assert view["requests"] == len(requests)
    whole = view["groups"][0]
    assert whole["by"] == "all"
    assert float(whole["change"]["charge_usd"]["low"]) > 0  # output is dearer on the plain pool
    # Written down and asked for in all forms, it is the same answer.
    for name in ("report.json", "report.md"):
        bench.terminal.json(*command, "--out", str(bench.folder / name))
    said = json.loads((bench.folder / "report.json").read_text(encoding="utf-8"))
    assert said["groups"][0]["candidate"] == whole["candidate"]
    text = bench.terminal.text(*command, "--out", str(page))
    assert "Tenants would be charged +" in text
    assert "Who wins and who loses: tenants" in text
    assert f"Written: {page}" in text


@only_embedded
def test_other_prices_and_another_fleet(bench: Bench) -> None:
    prices = bench.folder / "prices.yaml"
    prices.write_text('rates:\n  speculative: {input: "10", cached_input: "10", output: "10"}\n')
    pools = bench.folder / "two"
    pools.mkdir()
    bundled = Path(bench.terminal.environment["TOLLGATE_POOLS"])
    for path in bundled.glob("*.yaml"):
        text = (
            path.read_text()
            .replace("path: ../", f"path: {bundled.parent}/")
            .replace("replicas: 1", "replicas: 2")
        )
        text = text.replace("profile: ../", f"profile: {bundled.parent}/").replace(
            "model: ../", f"model: {bundled.parent}/"
        )
        (pools / path.name).write_text(text)
    same = bench.policy(BY_NATURE)
    view = bench.terminal.json(
        "policy", "backtest", same, *SPAN, "--seeds", "2", "--prices", str(prices), "--pools", str(pools)
    )
    change = view["groups"][0]["change"]
    assert float(change["charge_usd"]["low"]) > 0
    assert float(change["total_p95_s"]["estimate"]) < 0
    loads = {each["pool"]: each for each in view["pools"]}
    halved = loads["plain"]["candidate"]["busy_ratio"] / loads["plain"]["baseline"]["busy_ratio"]
    assert 0.4 < halved < 0.8


@only_embedded
def test_what_cannot_be_backtested_says_why(bench: Bench) -> None:
    policy, folder = bench.policy(ALL_PLAIN), bench.folder
    wrong = folder / "wrong.yaml"
    refusals = {
        ("nowhere.yaml", *SPAN): "There is no policy file 'nowhere.yaml', and no version",
        (policy, "--from", TO.isoformat(), "--to", FROM.isoformat()): "--from must be before --to",
        (policy, "--from", "2001-01-01", "--to", "2001-01-02"): "There are 0 requests in this span",
        (policy, *SPAN, "--out", "report.pdf"): "must end in .html, .md or .json",
        (policy, *SPAN, "--out", "nofolder/report.md"): "there is no folder nofolder",
        (policy, *SPAN, "--prices", str(folder / "no.yaml")): "the prices cannot be read",
        (policy, *SPAN, "--prices", str(wrong)): f"{wrong}:2: rates: there is no target 'plan'",
    }
    wrong.write_text('rates:\n  plan: {input: "1", cached_input: "1", output: "1"}\n')
    for arguments, message in refusals.items():
        assert message in bench.terminal.refused("policy", "backtest", *arguments)
    wrong.write_text("rates:\n  plain: {input: 1, cached_input: 1, output: 1, outptu: 2}\n")
    assert f"{wrong}:2" in bench.terminal.refused("policy", "backtest", policy, *SPAN, "--prices", str(wrong))
    wrong.write_text("rates: [\n")
    assert f"{wrong}:" in bench.terminal.refused("policy", "backtest", policy, *SPAN, "--prices", str(wrong))
