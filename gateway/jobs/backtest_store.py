"""How are backtests that were asked for over the API kept? All SQL of the noun; flushes, never commits.

There is one at a time in all processes together: a unique column says so. One whose process is not heard of
any more is failed by whoever asks for the next one.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer
from sqlmodel import col

from gateway.db import begin_writing
from gateway.errors import Conflict, NotFound
from gateway.jobs.backtest_tables import BacktestJob
from gateway.paging import Page, PageRequest, page_of, seek

KEPT_MAX: Final = 50
"""So many are kept, the newest."""
UNHEARD_MS: Final = 60_000
"""After so long without a word its process is taken for dead."""
RUNNING: Final = "running"


async def begin_backtest(session: AsyncSession, job: BacktestJob) -> None:
    """Take the one place that there is.

    Raises:
        Conflict: another one is under way.
    """
    await begin_writing(session)
    living = (
        await session.execute(select(BacktestJob).where(col(BacktestJob.slot).is_not(None)))
    ).scalar_one_or_none()
    if living is not None and living.beat_ms > job.at_ms - UNHEARD_MS:
        raise _is_taken(living.id)
    if living is not None:
        await end_backtest(
            session, living.id, state="failed", now_ms=job.at_ms, error="the process that ran it has died"
        )
    newest = (
        select(col(BacktestJob.id)).order_by(col(BacktestJob.at_ms).desc(), col(BacktestJob.id).desc())
    ).limit(KEPT_MAX - 1)
    await session.execute(
        delete(BacktestJob).where(col(BacktestJob.id).not_in(newest), col(BacktestJob.slot).is_(None))
    )
    session.add(job)
    try:
        await session.flush()
    except IntegrityError:
        raise _is_taken("another one") from None


def _is_taken(name: str) -> Conflict:
    return Conflict(
        f"One backtest runs at a time, and {name} is under way: wait for it, or cancel it"
        " (POST /admin/v1/policies/backtest/ID/cancel)."
    )


async def beat(session: AsyncSession, job_id: str, *, stage: str, ratio: float, now_ms: int) -> bool:
    """Say how far it is; false: it shall end."""
    found = await session.execute(
        update(BacktestJob)
        .where(col(BacktestJob.id) == job_id, col(BacktestJob.state) == RUNNING)
        .values(stage=stage, progress_ratio=ratio, beat_ms=now_ms)
        .returning(col(BacktestJob.is_cancelled))
    )
    return found.scalar_one_or_none() is False


async def end_backtest(
    session: AsyncSession,
    job_id: str,
    *,
    state: str,
    now_ms: int,
    error: str | None = None,
    result: dict[str, Any] | None = None,
) -> None:
    """It is over; nothing, if it was over before.

    Args:
        session: the caller's.
        job_id: which.
        state: done, failed or cancelled.
        now_ms: epoch ms.
        error: why it failed.
        result: what it found.
    """
    await session.execute(
        update(BacktestJob)
        .where(col(BacktestJob.id) == job_id, col(BacktestJob.state) == RUNNING)
        .values(state=state, slot=None, error=error, result=result, ended_at_ms=now_ms)
    )


async def cancel_backtest(session: AsyncSession, job_id: str) -> BacktestJob:
    """Ask that it ends; nothing, if it is over.

    Raises:
        NotFound: there is no such backtest.
    """
    await session.execute(
        update(BacktestJob)
        .where(col(BacktestJob.id) == job_id, col(BacktestJob.state) == RUNNING)
        .values(is_cancelled=True)
    )
    return await show_backtest(session, job_id)


async def show_backtest(session: AsyncSession, job_id: str) -> BacktestJob:
    """One of them.

    Raises:
        NotFound: there is no such backtest.
    """
    found = await session.execute(
        select(BacktestJob).where(col(BacktestJob.id) == job_id).execution_options(populate_existing=True)
    )
    job = found.scalar_one_or_none()
    if job is None:
        raise NotFound(f"There is no backtest {job_id[:64]!r}; the newest {KEPT_MAX} are kept.")
    return job


async def page_backtests(session: AsyncSession, page: PageRequest) -> Page[BacktestJob]:
    """All that are kept, the newest first, without what they found.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    result: Any = BacktestJob.result
    without_results = select(BacktestJob).options(defer(result))
    statement = seek(
        without_results, page, at=col(BacktestJob.at_ms), row_id=col(BacktestJob.id), newest_first=True
    )
    rows = list((await session.execute(statement)).scalars())
    return page_of(rows, page, lambda job: (job.at_ms, job.id))
