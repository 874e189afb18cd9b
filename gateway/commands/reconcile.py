"""`tollgate reconcile`: does a provider's invoice, or a GPU bill, say what the ledger says?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.reconciliation_views import (
    MonthMadeView,
    ReconcileRequest,
    ReconciliationMadeView,
    ReconciliationView,
    bill_of,
    made_view,
    reconciliation_view,
    summary_view,
)
from gateway.commands.adjustments import KeyFile, decided
from gateway.commands.options import with_options
from gateway.commands.terminal import (
    Json,
    act_of_the_user,
    in_session,
    out,
    print_fields,
    print_json,
    print_table,
)
from gateway.db import begin_writing
from gateway.errors import InvalidRequest
from gateway.ledger.reconcile_store import get_reconciliation, list_reconciliations, reconcile

reconciling = typer.Typer()
_LINES_SHOWN = 20
_VERBS = ("approve", "reject", "show")


@dataclass(frozen=True, slots=True)
class Terms:
    """How a bill is read."""

    kind: Annotated[str, typer.Option(help="provider (tokens) or gpu (GPU-hours)")] = "provider"
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="THEIRS=POOL", help="their name of a pool; several times"),
    ] = None
    rate: Annotated[
        list[str] | None, typer.Option(metavar="CURRENCY=USD", help="ours, such as EUR=1.0834; several times")
    ] = None
    also: Annotated[
        list[str] | None,
        typer.Option("--pool", help="a pool that the bill should name and may not; several times"),
    ] = None
    tolerance: Annotated[str, typer.Option(help="USD a line; what is within it is rounding")] = "0.01"


@reconciling.command(
    "reconcile",
    epilog="Example: `tollgate reconcile openai.csv --period 2026-10 --map gpt-5.2=large`, then, somebody"
    " else, `tollgate reconcile approve adj_01… --key-file KEY`; also `tollgate reconcile show rec_01…` and"
    " `tollgate reconcile list`",
)
@with_options(terms=Terms)
def reconcile_file(
    what: Annotated[str, typer.Argument(metavar="FILE|approve|reject|show|list", help="a bill as CSV")],
    subject: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="of a proposal (adj_…) or a comparison (rec_…)")
    ] = None,
    period: Annotated[
        str | None,
        typer.Option(help="a UTC month, such as 2026-10; else every month of the file, each apart"),
    ] = None,
    *,
    terms: Terms,
    key_file: KeyFile = None,
    as_machine: Json = False,
) -> None:
    """Compare a bill with the ledger by day and pool, say why it differs, and propose adjustments."""
    if what in _VERBS:
        if subject is None:
            raise InvalidRequest(f"`tollgate reconcile {what}` takes an id.")
        _of_one(what, subject, key_file=key_file, as_machine=as_machine)
        return
    if what == "list":
        _list(as_machine=as_machine)
        return
    path = Path(what)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{what}: {error}: give a CSV file in UTF-8.") from None
    asked = ReconcileRequest(
        period=period,
        kind=terms.kind,
        file_name=path.name,
        file=text,
        pools=_pairs(terms.mapping, "--map", "gpt-5.2=large"),
        rates=_pairs(terms.rate, "--rate", "EUR=1.0834"),
        also=terms.also or [],
        tolerance_usd=terms.tolerance,
    )
    bill = bill_of(asked)

    async def work(session: AsyncSession) -> ReconciliationMadeView:
        await begin_writing(session)
        return await made_view(session, bill, await reconcile(session, bill, act=act_of_the_user()))

    view = in_session(work)
    if as_machine:
        print_json(view)
        return
    for each in (view, *view.other_months):
        _show(each)
        _tell(each)
    for month, lines in view.left_out_lines.items():
        out.print(f"{lines} lines of {month} are not compared: leave --period out.", highlight=False)


def _pairs(texts: list[str] | None, option: str, example: str) -> dict[str, str]:
    pairs = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InvalidRequest(f"{option} is written {example}, not {text[:80]!r}.")
        pairs[name] = value
    return pairs


def _of_one(what: str, subject: str, *, key_file: Path | None, as_machine: bool) -> None:
    if what != "show":
        decision = decided(subject, is_approved=what == "approve", key_file=key_file)
        print_json(decision) if as_machine else print_fields(decision)
        return

    async def work(session: AsyncSession) -> ReconciliationView:
        return await reconciliation_view(session, await get_reconciliation(session, subject))

    view = in_session(work)
    print_json(view) if as_machine else _show(view)


def _list(*, as_machine: bool) -> None:
    rows = in_session(list_reconciliations)
    views = [summary_view(row) for row in rows]
    if as_machine:
        print_json(views)
        return
    print_table(
        ("id", "file", "kind", "period", "bill USD", "ledger USD", "difference", "made by"),
        [
            (
                *(each.id, each.file, each.kind, each.period, each.bill_usd, each.ledger_usd),
                *(each.difference_usd, each.made_by),
            )
            for each in views
        ],
    )


def _tell(view: MonthMadeView) -> None:
    if not view.is_new:
        out.print(
            f"This file was compared with {view.period} already ({view.id}, {view.made_at},"
            f" by {view.made_by}), and nothing has changed since: nothing is proposed.",
            markup=False,
            highlight=False,
        )
    for each in view.standing:
        out.print(
            f"Not proposed again: {each.id}, {each.amount_usd} USD, {each.state}: {each.reason}",
            markup=False,
            highlight=False,
        )


def _show(view: ReconciliationView) -> None:
    out.print(
        f"{view.file} against the ledger of {view.period} ({view.kind}): {view.bill_usd} billed,"
        f" {view.ledger_usd} in the ledger, {view.difference_usd} USD more.",
        markup=False,
        highlight=False,
    )
    print_table(
        ("why", "USD"), [*((name.replace("_", " "), amount) for name, amount in view.classes.items())]
    )
    out.print(f"Tolerance {view.tolerance_usd_per_line} USD a line; the classes add up.", highlight=False)
    for pool, hours in view.zones_hours_ahead_of_utc.items():
        out.print(f"{pool}: the bill's days are {hours:+d} h from UTC.", markup=False, highlight=False)
    worst = sorted(
        (line for line in view.lines if line.gaps),
        key=lambda line: (-_largest(line.gaps), line.pool, line.day),
    )
    print_table(
        ("day", "pool", "billed", "in ledger", "bill USD", "ledger USD", "why"),
        [
            (
                *(each.day, each.pool, f"{each.bill_quantity:,}", f"{each.ledger_quantity:,}"),
                *(each.bill_usd, each.ledger_usd, each.gaps),
            )
            for each in worst[:_LINES_SHOWN]
        ],
    )
    if len(worst) > _LINES_SHOWN:
        out.print(f"… and {len(worst) - _LINES_SHOWN} more lines: --json shows all.", highlight=False)
    if view.proposals:
        print_table(
            ("proposal", "USD", "state", "proposed by", "reason"),
            [
                (each.id, each.amount_usd, each.state, each.proposed_by, each.reason)
                for each in view.proposals
            ],
        )
        out.print(
            "Somebody else approves them, with their key: `tollgate reconcile approve ID`.", markup=False
        )


def _largest(gaps: dict[str, str]) -> float:
    return max(abs(float(amount)) for amount in gaps.values())
