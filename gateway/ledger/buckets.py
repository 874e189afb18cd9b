"""Which budgets bind a request, and which window of each does it belong to?

Pure. A bucket is one budget in one window; windows are UTC, half-open, and a request belongs to those in
which it was reserved. A budget of a key binds its successors too, so that rotation is no way around it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

import msgspec

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS_PER_DAY = 86_400_000
_MS_PER_WEEK = 7 * _MS_PER_DAY
_FIRST_MONDAY_MS = 4 * _MS_PER_DAY
"""5 January 1970; weeks begin on Mondays (ISO 8601)."""


class Scope(StrEnum):
    """Whose spending a budget counts."""

    TENANT = "tenant"
    PROJECT = "project"
    KEY = "key"
    TAG = "tag"
    """A tag that the operator fixed on a key or a project."""


class Window(StrEnum):
    """How long a budget lasts until it begins anew, in UTC."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


class Bucket(NamedTuple):
    """One budget in one window."""

    budget_id: str
    window_start_ms: int


def window_at(window: Window, epoch_ms: int) -> tuple[int, int | None]:
    """First instant of the window around an instant, and of the next one; None: there is no next one."""
    if window is Window.TOTAL:
        return 0, None
    if window is Window.DAY:
        start = epoch_ms - epoch_ms % _MS_PER_DAY
        return start, start + _MS_PER_DAY
    if window is Window.WEEK:
        start = epoch_ms - (epoch_ms - _FIRST_MONDAY_MS) % _MS_PER_WEEK
        return start, start + _MS_PER_WEEK
    first = (_EPOCH + timedelta(milliseconds=epoch_ms)).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    following = (first + timedelta(days=32)).replace(day=1)
    return (first - _EPOCH) // timedelta(milliseconds=1), (following - _EPOCH) // timedelta(milliseconds=1)


class Account(msgspec.Struct, frozen=True, cache_hash=True):
    """Who spends: the form in which the ledger wants to be told of a caller."""

    tenant_id: str
    project_id: str
    key_ids: tuple[str, ...]
    """The key and those that it was rotated from."""
    fixed_tags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class BudgetRecord:
    """A budget as serving processes know it."""

    id: str
    name: str
    scope: Scope
    scope_id: str
    tenant_id: str | None
    window: Window
    limit_usd_nanos: int
    is_hard: bool


@dataclass(frozen=True, slots=True)
class Binding:
    """What binds an account until the first of its windows ends."""

    from_ms: int
    """Where the latest of its windows begins: a clock that is set back may fall before it."""
    until_ms: int
    counted: tuple[Bucket, ...]
    """All buckets, in the order in which they are locked."""
    hard: tuple[tuple[Bucket, BudgetRecord], ...]
    """Those that refuse, in the same order."""
    hard_buckets: tuple[Bucket, ...]
    """The same without the budgets."""
    budgets: tuple[tuple[Bucket, BudgetRecord], ...] = ()
    """Those of all that are counted."""


_NOTHING = Binding(from_ms=0, until_ms=2**62, counted=(), hard=(), hard_buckets=())


class BudgetBook:
    """All budgets that bind anybody, by whom they bind."""

    def __init__(self, records: Iterable[BudgetRecord] = ()) -> None:
        self._by_scope: dict[tuple[Scope, str], list[BudgetRecord]] = {}
        for record in records:
            self._by_scope.setdefault((record.scope, record.scope_id), []).append(record)
        self._bindings: dict[Account, Binding] = {}

    def binding(self, account: Account, epoch_ms: int) -> Binding:
        """What binds an account at an instant."""
        if not self._by_scope:
            return _NOTHING
        found = self._bindings.get(account)
        if found is None or not found.from_ms <= epoch_ms < found.until_ms:
            found = self._bindings[account] = self._bind(account, epoch_ms)
        return found

    def _bind(self, account: Account, epoch_ms: int) -> Binding:
        scopes = [(Scope.TENANT, account.tenant_id), (Scope.PROJECT, account.project_id)]
        scopes += [(Scope.KEY, key_id) for key_id in account.key_ids]
        scopes += [(Scope.TAG, f"{name}={value}") for name, value in account.fixed_tags]
        found = [record for scope in scopes for record in self._by_scope.get(scope, ())]
        pairs = []
        from_ms, until_ms = _NOTHING.from_ms, _NOTHING.until_ms
        for record in found:
            if record.tenant_id in {None, account.tenant_id}:
                start_ms, end_ms = window_at(record.window, epoch_ms)
                pairs.append((Bucket(record.id, start_ms), record))
                from_ms = max(from_ms, start_ms)
                until_ms = until_ms if end_ms is None else min(until_ms, end_ms)
        pairs.sort(key=lambda pair: pair[0])
        return Binding(
            from_ms=from_ms,
            until_ms=until_ms,
            counted=tuple(bucket for bucket, _ in pairs),
            hard=tuple(pair for pair in pairs if pair[1].is_hard),
            hard_buckets=tuple(bucket for bucket, record in pairs if record.is_hard),
            budgets=tuple(pairs),
        )
