"""How is a spend report asked for, and how does it look outside?

One form for the API, the command line and exports: names become ids on the way in and names again on the way
out, amounts are decimal strings in USD, shares and unit costs are exact quotients, rounded half to even once.
"""

from __future__ import annotations

from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

from gateway.admin.views import instant
from gateway.clock import instant_text
from gateway.ledger.cuts import month_of
from gateway.ledger.report_facts import BASIS
from gateway.ledger.reports import SpendFigures, SpendReport
from gateway.ledger.unit_costs import TOKENS_PER_UNIT, usd_nanos_per
from gateway.money import usd_text

SHARE_PLACES = 6
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)


def period(since: str | None, until: str | None, now: datetime) -> tuple[datetime, datetime]:
    """The instants a report covers; UTC where no zone is given.

    Raises:
        InvalidRequest: not ISO 8601.
    """
    month_start, month_end = month_of(now)
    return instant(since, "from") or month_start, instant(until, "to") or month_end


# ----------------------------------------------------------------------------------------------- for machines
def as_json(report: SpendReport, *, generated_at_ms: int | None = None) -> dict[str, Any]:
    """A report for machines."""
    found = {
        "from": report.start.isoformat(),
        "to": report.end.isoformat(),
        "time_zone": "UTC",
        "currency": "USD",
        "basis": BASIS,
        "group_by": list(report.group_by),
        "filters": [f"{each.name}={value}" for each in report.filters for value in each.values],
        "rows": [
            {**dict(zip(report.group_by, group, strict=True)), **_row(report, group, figures)}
            for group, figures in report.rows
        ],
        "others": None,
        "total": {
            **figures_json(report.total, end_users=report.end_users_total),
            **_compared(report, report.total, report.previous_total),
        },
        "corrections": [
            {"used_in": month, **figures_json(figures)} for month, figures in report.corrections.items()
        ],
        "adjustments": [
            {
                "kind": line.kind,
                "tenant_id": line.tenant_id,
                "charge_month": line.charge_month,
                "amount_usd": usd_text(line.amount_usd_nanos),
                "count": line.count,
            }
            for line in report.adjustments
        ],
        "adjustments_usd": usd_text(report.adjustments_usd_nanos),
        "due_usd": usd_text(report.total.charge_usd_nanos + report.adjustments_usd_nanos),
        **_facts(report),
        "generated_at": None if generated_at_ms is None else instant_text(generated_at_ms),
    }
    if report.others_count:
        found["others"] = {
            "rows": report.others_count,
            **figures_json(report.others),
            **_compared(report, report.others, report.previous_others),
        }
    if report.before is not None:
        found["compared_with"] = {
            "from": report.before[0].isoformat(),
            "to": report.before[1].isoformat(),
        }
    return found


def _row(report: SpendReport, group: tuple[str, ...], figures: SpendFigures) -> dict[str, Any]:
    users = None if report.end_users is None else report.end_users.get(group, 0)
    return {
        **figures_json(figures, end_users=users),
        **_compared(report, figures, report.previous.get(group)),
    }


def _facts(report: SpendReport) -> dict[str, Any]:
    facts = report.facts
    control = {
        "row_count": len(report.rows) + bool(report.others_count),
        "control_total": {
            "charge_usd": usd_text(report.control.charge_usd_nanos),
            "platform_usd": usd_text(report.control.platform_usd_nanos),
            "requests": report.control.requests,
            "is_footed": report.is_footed,
        },
    }
    if facts is None:
        return control
    return {
        **control,
        "source": facts.source,
        "price_versions": list(facts.price_versions),
        "price_versions_are": "used" if facts.are_prices_used else "known",
        "ledger_high_water": None
        if facts.high_water is None
        else {"journal_id": facts.high_water, "at": instant_text(facts.high_water_at_ms or 0)},
        "unallocated_usd": usd_text(facts.unallocated_usd_nanos),
    }


def figures_json(figures: SpendFigures, *, end_users: int | None = None) -> dict[str, Any]:
    """The sums of a row and what is worked out from them."""
    return {
        "requests": figures.requests,
        "failed_attempts": figures.failed_attempts,
        "unpriced_attempts": figures.unpriced_attempts,
        "cache_hits": figures.cache_hits,
        "input_tokens": figures.input_tokens,
        "cached_input_tokens": figures.cached_input_tokens,
        "cache_write_tokens": figures.cache_write_tokens,
        "output_tokens": figures.output_tokens,
        "reasoning_tokens": figures.reasoning_tokens,
        "charge_usd": usd_text(figures.charge_usd_nanos),
        "platform_usd": usd_text(figures.platform_usd_nanos),
        "unit_costs": unit_costs(figures, end_users=end_users),
        "shares": shares(figures),
        **({} if end_users is None else {"end_users": end_users}),
    }


def unit_costs(figures: SpendFigures, *, end_users: int | None = None) -> dict[str, str | None]:
    """All of the charge for each kind of unit, so that they do not add up; None: there are no units."""
    tokens_in, tokens_out = figures.input_tokens_all, figures.output_tokens_all
    charge = figures.charge_usd_nanos
    costs = {
        "usd_per_request": _usd_per(charge, figures.requests),
        "usd_per_million_tokens": _usd_per(charge * TOKENS_PER_UNIT, tokens_in + tokens_out),
        "usd_per_million_input_tokens": _usd_per(charge * TOKENS_PER_UNIT, tokens_in),
        "usd_per_million_output_tokens": _usd_per(charge * TOKENS_PER_UNIT, tokens_out),
    }
    if end_users is not None:
        costs["usd_per_end_user"] = _usd_per(charge, end_users)
    return costs


def shares(figures: SpendFigures) -> dict[str, str | None]:
    """What part came from caches: of requests from the gateway's, of input tokens from the engines'."""
    return {
        "cache_hit_ratio": _ratio(figures.cache_hits, figures.requests),
        "cached_input_ratio": _ratio(figures.cached_input_tokens, figures.input_tokens_all),
    }


def _usd_per(nanos: int, units: int) -> str | None:
    found = usd_nanos_per(nanos, units)
    return None if found is None else usd_text(found)


def _ratio(part: int, whole: int) -> str | None:
    if whole <= 0:
        return None
    return f"{_EXACT.divide(Decimal(part), Decimal(whole)):.{SHARE_PLACES}f}"


def change_ratio(now: int, before: int) -> str | None:
    """How much more it is than before, `0.25` for a quarter more; None: there was nothing before."""
    return _ratio(now - before, before)


def _compared(report: SpendReport, now: SpendFigures, before: SpendFigures | None) -> dict[str, Any]:
    if report.before is None or before is None:
        return {}
    change = now.charge_usd_nanos - before.charge_usd_nanos
    return {
        "previous": {
            "requests": before.requests,
            "charge_usd": usd_text(before.charge_usd_nanos),
            "platform_usd": usd_text(before.platform_usd_nanos),
        },
        "change": {
            "charge_usd": usd_text(change),
            "charge_ratio": change_ratio(now.charge_usd_nanos, before.charge_usd_nanos),
            "requests": now.requests - before.requests,
        },
    }
