"""`tollgate pools learned`: what have answered requests taught of each pool and task?"""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from backends.profile import ProfileError
from backends.registry import PoolRegistry
from gateway.admin.learned_views import LearnedView, learned_view
from gateway.clock import Clock
from gateway.commands.terminal import Json, in_session, load_pool_files, out, print_json, print_table
from gateway.economist import Economist
from gateway.errors import ConfigurationError
from gateway.routing.learning_store import LearnedRow, read_learned
from gateway.routing.priors import Priors
from gateway.settings import load_settings

EXAMPLE = "Example: `tollgate pools learned --pool speculative`"


def pools_learned(
    pool: Annotated[str | None, typer.Option(help="only this pool")] = None,
    *,
    tenants: Annotated[bool, typer.Option("--tenants", help="what is known of single tenants too")] = False,
    as_machine: Json = False,
) -> None:
    """Show what was learned of each pool and task: acceptance, speed, lengths, and when speculation pays."""
    views = learned_of_settings(pool, tenants=tenants)
    if as_machine:
        print_json(views)
    else:
        show_learned(views)


def learned_of_settings(pool: str | None, *, tenants: bool) -> list[LearnedView]:
    """What the database of the settings knows.

    Raises:
        ConfigurationError: a file is wrong, there is no such pool, or the database cannot be used.
    """
    specs = load_pool_files(load_settings())
    if pool is not None and pool not in specs:
        raise ConfigurationError(f"there is no pool {pool!r}; known pools: {', '.join(sorted(specs))}")
    try:
        economist = Economist(PoolRegistry(specs), Priors(specs), clock=Clock())
    except ProfileError as error:
        raise ConfigurationError(str(error)) from None

    async def work(session: AsyncSession) -> list[LearnedRow]:
        return await read_learned(session)

    economist.take(row for row in in_session(work) if row.key.pool in specs)
    return [
        learned_view(economist, row)
        for key, row in sorted(economist.rows().items())
        if pool in {None, key.pool} and (tenants or not key.tenant_id)
    ]


def show_learned(views: list[LearnedView]) -> None:
    """For people."""
    if not views:
        out.print("Nothing was learned yet: no request was answered by these pools.")
        return
    titles = (
        *("pool", "task", "requests", "weight", "tokens/step", "step x", "token ms", "first ms"),
        *("output", "USD/M", "pays up to"),
    )
    print_table(
        titles,
        [
            (
                one.pool,
                _task(one),
                one.lessons,
                f"{one.weight:.0f}",
                _with_error(one.tokens_per_step, one.tokens_per_step_error),
                _number(one.step_ratio, 2),
                _number(one.token_ms, 1),
                _number(one.first_token_ms, 0),
                _number(one.output_tokens, 0),
                _number(one.usd_per_million_tokens, 3),
                _gates(one),
            )
            for one in views
        ],
    )
    out.print("step x: time of a step over the model's; pays up to: requests per replica against that pool")


def _task(one: LearnedView) -> str:
    task = one.task or "(all)"
    return f"{task} of {one.tenant_id}" if one.tenant_id else task


def _with_error(value: float | None, error: float | None) -> str:
    return "" if value is None or error is None else f"{value:.2f} ± {error:.2f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _gates(one: LearnedView) -> str:
    return ", ".join(
        f"{'all' if gate.requests is None else f'{gate.requests:.0f}'} ({gate.against})" for gate in one.gates
    )
