"""Which requests are coming in, and how do they fare? `/console/traffic`.

The list renews itself; filters and the place in the list are in the address. Only what has ended is there,
within a second of its end: what is under way is a number.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Query
from fastapi.responses import RedirectResponse, Response

from gateway.clock import instant_text
from gateway.console.charts import Chart, Series
from gateway.console.pages import page
from gateway.dependencies import ActorDep, Services, ServicesDep, SessionDep
from gateway.errors import InvalidRequest
from gateway.identity.store import tenant_names
from gateway.inference import TaskType
from gateway.ledger.reports import PLATFORM_TENANT
from gateway.ledger.store import attempts_of_request
from gateway.ledger.traffic import (
    OUTCOMES,
    SCANNED_MAX,
    Pulse,
    TrafficFilter,
    page_requests,
    pulse,
)
from gateway.paging import PageRequest
from gateway.routing.receipts import CLOCKS_MS, made_at

REFRESH_S = 4
PULSE_S = 15
PULSES_MAX = 64
"""Filters whose chart is kept; the oldest are forgotten first."""
KEPT_TIMES = 10
ROWS = 50
CHOICES_MAX = 200
"""Tenants that the filter suggests; others can be typed."""
PATH = "/console/traffic"

_Text = Annotated[str, Query(max_length=256)]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the address asks for; empty: whatever it is."""

    tenant: _Text = ""
    pool: _Text = ""
    task: _Text = ""
    model: _Text = ""
    state: Annotated[str, Query(max_length=16)] = ""
    over_ms: Annotated[str, Query(max_length=12)] = ""
    since: Annotated[str, Query(alias="from", max_length=40)] = ""
    until: Annotated[str, Query(alias="to", max_length=40)] = ""
    q: _Text = ""
    """A request's id, or what the caller called it."""
    cursor: _Text = ""

    def query(self, **others: str) -> str:
        """The same as a query string; a page further on says `cursor`."""
        named = {
            "tenant": self.tenant,
            "pool": self.pool,
            "task": self.task,
            "model": self.model,
            "state": self.state,
            "over_ms": self.over_ms,
            "from": self.since,
            "to": self.until,
            "q": self.q,
        } | others
        text = urlencode({name: value for name, value in named.items() if value})
        return f"?{text}" if text else ""


AskedDep = Annotated[Asked, Depends()]


class Traffic:
    """The page and its chart."""

    def __init__(self) -> None:
        self._pulses: OrderedDict[TrafficFilter, tuple[float, Pulse]] = OrderedDict()
        self._turn = asyncio.Lock()

    async def show(
        self, services: ServicesDep, session: SessionDep, actor: ActorDep, *, asked: AskedDep
    ) -> Response:
        """The list."""
        found = await _receipt_of(session, asked.q)
        if found is not None:
            return RedirectResponse(f"{PATH}/{found}", 303)
        tenants = await tenant_names(session)
        wanted, problem = filter_of(asked, tenants)
        listed = None
        if problem is None:
            wish = PageRequest(limit=ROWS, cursor=asked.cursor or None)
            listed = await page_requests(session, wanted, wish)
        return page(
            "traffic.html",
            status_code=200 if problem is None else 400,
            section="traffic",
            actor=actor,
            now=services.clock.now(),
            asked=asked,
            problem=problem,
            listed=listed,
            tenants=tenants,
            refresh_s=REFRESH_S,
            address=PATH + asked.query(),
            scanned_max=SCANNED_MAX,
            under_way=services.pipeline.shedder.under_way,
            choices=_choices(services, tenants),
        )

    async def show_pulse(self, services: ServicesDep, session: SessionDep, asked: AskedDep) -> Response:
        """The chart alone, for the same filter."""
        wanted, problem = filter_of(asked, await tenant_names(session))
        if problem is not None:
            raise InvalidRequest(problem)
        wanted = replace(wanted, since_ms=None, until_ms=None)
        async with self._turn:
            kept = self._pulses.get(wanted)
            start_s = services.clock.monotonic_s()
            if kept is None or kept[0] <= start_s:
                seen = await pulse(session, wanted, now_ms=services.clock.epoch_ms())
                end_s = services.clock.monotonic_s()
                kept = (end_s + max(1.0, KEPT_TIMES * (end_s - start_s)), seen)
                self._pulses[wanted] = kept
                while len(self._pulses) > PULSES_MAX:
                    self._pulses.popitem(last=False)
        return page(
            "traffic_pulse.html",
            rate=_rate_chart(kept[1]),
            times=_times_chart(kept[1]),
            seen=kept[1],
            address=f"{PATH}/pulse{asked.query()}",
            refresh_s=PULSE_S,
            scanned_max=SCANNED_MAX,
        )


def filter_of(asked: Asked, tenants: dict[str, str]) -> tuple[TrafficFilter, str | None]:
    """What the address asks for, and a sentence on what of it cannot be understood; None: nothing."""
    tenant_id = None
    if asked.tenant:
        by_name = {name: one for one, name in tenants.items()} | {PLATFORM_TENANT: PLATFORM_TENANT}
        tenant_id = by_name.get(asked.tenant, asked.tenant if asked.tenant in tenants else None)
        if tenant_id is None:
            return TrafficFilter(), f"There is no tenant {asked.tenant[:64]!r}."
    outcome = next((one for one in OUTCOMES if one == asked.state), None)
    if asked.state and outcome is None:
        return TrafficFilter(), f"There is no state {asked.state!r}; there are {', '.join(OUTCOMES)}."
    if asked.over_ms and not (asked.over_ms.isascii() and asked.over_ms.isdigit()):
        return TrafficFilter(), "The time must be a whole number of milliseconds."
    bounds: list[int | None] = []
    for name, text in (("From", asked.since), ("to", asked.until)):
        try:
            bounds.append(_epoch_ms(text) if text else None)
        except (ValueError, OverflowError):
            return TrafficFilter(), f"{name}: {text[:40]!r} is no instant; write 2026-11-28T14:05 (UTC)."
    return (
        TrafficFilter(
            tenant_id=tenant_id,
            pool=asked.pool or None,
            task=asked.task or None,
            model=asked.model or None,
            outcome=outcome or "",
            slower_than_ms=int(asked.over_ms) if asked.over_ms else None,
            since_ms=bounds[0],
            until_ms=bounds[1],
            client_request_id=asked.q.strip() or None,
        ),
        None,
    )


def _epoch_ms(text: str) -> int:
    moment = datetime.fromisoformat(text)
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


async def _receipt_of(session: SessionDep, query: str) -> str | None:
    """The request that is searched for, if its id is one of ours and it is there."""
    request_id = query.strip()
    made_at_ms = made_at(request_id)
    if made_at_ms is None:
        return None
    between_ms = (made_at_ms - CLOCKS_MS, made_at_ms + CLOCKS_MS)
    found = await attempts_of_request(session, request_id, between_ms=between_ms)
    return request_id if found else None


def _choices(services: Services, tenants: dict[str, str]) -> dict[str, list[str]]:
    policy = services.pipeline.routing.policy
    return {
        "tenant": [*sorted(tenants.values())[:CHOICES_MAX], PLATFORM_TENANT],
        "pool": [*services.registry.specs, *policy.external],
        "task": [task.value for task in TaskType],
        "model": sorted(policy.models),
        "state": list(OUTCOMES),
    }


def _labels(seen: Pulse) -> list[str]:
    return [instant_text(one.start_ms)[11:16] for one in seen.minutes]


def _rate_chart(seen: Pulse) -> Chart:
    return Chart(
        id="rate",
        title="Requests and errors per minute, last hour, UTC",
        description="Bars of the requests without error, and on them those that failed, by minute.",
        across="Minute (UTC)",
        labels=_labels(seen),
        series=[
            Series("Without error", [one.requests - one.errors for one in seen.minutes], tone="accent"),
            Series("Errors", [one.errors for one in seen.minutes], tone="bad"),
        ],
        unit="count",
        is_stacked=True,
    )


def _times_chart(seen: Pulse) -> Chart:
    def drawn(value: float | None) -> Any:
        return None if value is None else float(value)

    return Chart(
        id="times",
        title="Time from request to end, ms",
        description="Two lines: the median and the 95th percentile of the whole time, minute by minute.",
        across="Minute (UTC)",
        labels=_labels(seen),
        series=[
            Series("P50", [drawn(one.p50_ms) for one in seen.minutes], kind="line", tone="accent"),
            Series(
                "P95", [drawn(one.p95_ms) for one in seen.minutes], kind="line", is_dashed=True, tone="wait"
            ),
        ],
        unit="ms",
    )
