"""Is anything lost or doubled when a gateway is killed, whatever it was doing at that moment?"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.ledger.buckets import Scope
from tests.e2e.faults.plant import LONG_MS, STORY, Asked, Customer, Plant, chat, leaving, metric, write_fleet
from tests.integration.gateway.databases import new_database
from tests.support.books import Row, assert_books_are_right, query, tokens_booked
from tests.support.gateway_process import GatewayProcess
from tests.support.mock_process import MockVllm

BIG: Final = {**STORY, "max_tokens": 700, "n": 16}
"""More than any slice holds in reserve: it has to be lent for."""
HELD: Final = {**STORY, "model": "tollgate-reference-speculative", "stream": True, "max_tokens": 400}
ANSWERED: Final = ("answered", "tenant")
INTERRUPTED: Final = ("interrupted", "platform")
RECOVERY_S_MAX: Final = 60
"""Only against a recovery that hangs; the figure itself is printed."""


@dataclass(frozen=True, slots=True)
class Point:
    """A moment at which the process dies."""

    name: str
    at: str
    """module:function, or nothing where the test itself kills."""
    on: str
    booked: tuple[str, str] | None
    """State and payer of the request that was under way; None: it never began."""
    reached_engine: bool = True
    has_open_stream: bool = True
    """Another answer is under way at the same time."""


POINTS: Final = (
    Point("slice granted", "gateway.ledger.rounds:Round.apply", "call", None, reached_engine=False),
    Point(
        "start record written",
        "gateway.ledger.spool:Spool.start",
        "return",
        INTERRUPTED,
        reached_engine=False,
    ),
    Point("dispatched", "", "", INTERRUPTED),
    Point("mid-stream", "", "", INTERRUPTED),
    Point("answered, end not written", "gateway.ledger.spool:Spool.end", "call", INTERRUPTED),
    Point("end record written", "gateway.ledger.spool:Spool.end", "return", ANSWERED),
    Point("before fsync", "gateway.ledger.group_sync:fsync_and_close", "call", None),
    Point("batch sent", "gateway.ledger.posting:_receipts", "call", ANSWERED),
    Point("committed, not acknowledged", "gateway.ledger.spool:Spool.acknowledge", "call", ANSWERED),
    Point("trimmed", "gateway.ledger.spool:Spool.acknowledge", "return", ANSWERED, has_open_stream=False),
)


@dataclass(slots=True)
class Case:
    """An installation that is killed again and again."""

    plant: Plant
    folder: Path
    settings: dict[str, str]
    engines: dict[str, MockVllm]
    customer: Customer
    expected: dict[str, tuple[str, str] | None] = field(default_factory=dict)
    """State and payer of every request so far, by name; None: by what its client was told."""
    answered: set[str] = field(default_factory=set)
    """Requests whose clients got a whole answer."""
    recovery_s: list[float] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.settings["TOLLGATE_DATABASE_URL"]

    @property
    def key(self) -> str:
        return self.customer.keys["key"]

    def rows(self) -> list[Row]:
        return query(self.url, "SELECT * FROM attempts WHERE tenant_id <> 'platform' ORDER BY started_at_ms")


START_S = 180.0
"""Every call is looked at while it starts."""


@contextmanager
def _dying(case: Case, point: Point, armed_by: Path) -> Iterator[GatewayProcess]:
    """A gateway that will die there; what the one before it left is recovered by its start."""
    trap = [sys.executable, "-m", "tests.support.killed_gateway", "--at", point.at, "--on", point.on]
    program = [*trap, "--armed-by", str(armed_by)] if point.at else None
    began_s = time.monotonic()
    gateway = GatewayProcess(
        case.folder,
        {},
        settings=case.settings,
        program=program,
        start_timeout_s=START_S,
    )
    case.recovery_s.append(time.monotonic() - began_s)
    try:
        yield gateway
    finally:
        gateway.kill9()


def _live_and_die(case: Case, point: Point) -> None:
    """Some requests before, an open stream, then the fatal request."""
    engines = case.engines
    armed_by = case.folder / "armed"
    armed_by.unlink(missing_ok=True)
    for engine in engines.values():
        engine.reset()
        engine.control(ttft_ms=0, tpot_ms=0, answer_tokens=16)
    engines["speculative"].control(tpot_ms=50, answer_tokens=400)
    with _dying(case, point, armed_by) as gateway:
        _look_back(case, gateway)
        for number in range(2):
            name = f"{point.name}, before {number}"
            assert chat(gateway, case.key, name=name).status_code == 200
            case.expected[name] = ANSWERED
        asked: list[Asked] = []
        with leaving(asked):
            if point.has_open_stream:
                asked.append(Asked(gateway, case.key, HELD))
                asked[0].read_until(b'"delta":{"content"', times=2)
                case.expected[asked[0].name] = INTERRUPTED
            _until_booked(gateway)
            fatal = _ask_fatally(case, point, gateway, armed_by)
            asked.append(fatal)
            assert gateway.process.wait(20) == -9, point.name
            if fatal.reply().is_complete:
                case.answered.add(fatal.name)
    engines["plain"].wait_for(in_flight=0)
    engines["speculative"].wait_for(in_flight=0, aborted=int(point.has_open_stream))
    reached = engines["plain"].stats()["paths"]["/v1/chat/completions"] - 2
    assert reached == point.reached_engine, f"{point.name}: {reached} fatal requests reached the engine"
    case.expected[fatal.name] = point.booked


def _until_booked(gateway: GatewayProcess) -> None:
    """Wait until nothing waits for the database: an earlier batch would be the fatal one otherwise."""
    deadline = time.monotonic() + START_S
    while metric(gateway, "tollgate_spool_unshipped"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _ask_fatally(case: Case, point: Point, gateway: GatewayProcess, armed_by: Path) -> Asked:
    plain = case.engines["plain"]
    if point.name == "dispatched":
        plain.control(ttft_ms=LONG_MS)
        asked = Asked(gateway, case.key)
        plain.wait_for(in_flight=1)
        gateway.kill9()
        return asked
    if point.name == "mid-stream":
        plain.control(tpot_ms=50, answer_tokens=400)
        asked = Asked(gateway, case.key, {**STORY, "stream": True, "max_tokens": 400})
        asked.read_until(b'"delta":{"content"', times=3)
        gateway.kill9()
        return asked
    if point.name == "before fsync":
        # Armed once the engine has it: any record that waits to be synced would be the fatal one otherwise.
        plain.control(ttft_ms=300)
        asked = Asked(gateway, case.key)
        plain.wait_for(in_flight=1)
        armed_by.touch()
        return asked
    body = BIG if point.name == "slice granted" else STORY
    return Asked(gateway, case.key, body, just_before=armed_by.touch)


def _look_back(case: Case, gateway: GatewayProcess | None) -> None:
    """What the dead left is booked: each attempt once, as it was, and nothing is lent to them any more."""
    rows = case.rows()
    names = [row["client_request_id"] for row in rows]
    assert len(set(names)) == len(names), "booked twice"
    found = {row["client_request_id"]: (row["state"], row["payer"]) for row in rows}
    began = {name for name, booked in case.expected.items() if booked is not None}
    assert began <= set(found), "lost"
    for name, booked in found.items():
        assert booked == (case.expected[name] or booked), name
        assert booked == ANSWERED or name not in case.answered, f"{name}: answered, and not paid for"
    for row in rows:
        if row["state"] == "answered":
            assert (row["output_tokens"], row["usage_source"]) == (16, "measured")
        else:
            assert (row["error_code"], row["usage_source"]) == ("gateway_died", "estimated")
            assert 0 < row["charge_usd_nanos"] <= row["hold_usd_nanos"]
    owners = {row["owner_id"] for row in query(case.url, "SELECT owner_id FROM budget_slices")}
    spools = {path.stem for path in (case.folder / "state" / "spool").glob("*.spool")}
    assert owners <= spools, "lent to the dead"
    assert len(spools) == (gateway is not None), "a spool of the dead is still there"
    assert_books_are_right(case.settings)


@pytest.fixture
def case(plant: Plant, template: str, tmp_path: Path) -> Iterator[Case]:
    folder = tmp_path / "dying"
    write_fleet(folder, {name: [engine.url] for name, engine in plant.engines.items()})
    with new_database(plant.postgres.url, template=template) as url:
        own = Plant(
            folder=plant.folder,
            postgres=plant.postgres,
            redis=plant.redis,
            engines=plant.engines,
            database_url=url,
            database_proxy=plant.database_proxy,
            engine_proxies={},
        )
        customer = own.customer("project/key")
        own.budget(Scope.TENANT, customer.tenant_id, 10**9)
        own.budget(Scope.KEY, customer.key_ids["key"], 10**8)
        yield Case(own, folder, own.settings, plant.engines, customer)


@pytest.mark.timeout(900)  # it starts eleven gateways, one after the other
def test_a_kill_at_any_point_loses_nothing_and_doubles_nothing(
    case: Case, record_property: Callable[[str, Any], None]
) -> None:
    """One installation dies at one point after another; each start recovers what the death before left."""
    for point in POINTS:
        _live_and_die(case, point)
    began_s = time.monotonic()
    with GatewayProcess(case.folder, {}, settings=case.settings) as gateway:
        case.recovery_s.append(time.monotonic() - began_s)
        _look_back(case, gateway)
        assert chat(gateway, case.key, name="at last").status_code == 200
        case.expected["at last"] = ANSWERED
    _look_back(case, None)
    rows = case.rows()
    answered = [row for row in rows if row["state"] == "answered"]
    assert tokens_booked(answered) == len(answered) * (8 + 16), "prompt and answer of each, once"
    recoveries = case.recovery_s[1:]
    assert max(recoveries) < RECOVERY_S_MAX
    record_property("recovery_s", [round(each, 2) for each in recoveries])
    sys.stdout.write(
        f"\nkilled {len(POINTS)} times; from a start to serving with all recovered:"
        f" {min(recoveries):.1f} to {max(recoveries):.1f} s\n"
    )


def test_a_point_that_is_not_there_any_more_is_noticed(case: Case, tmp_path: Path) -> None:
    point = Point("renamed", "gateway.ledger.spool:Spool.begin", "call", None)
    with pytest.raises(RuntimeError, match=r"Spool\.begin is no function"), _dying(case, point, tmp_path):
        pass
