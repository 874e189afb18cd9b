"""How is a long list read piece by piece?

By position, not by number: a cursor names the last row that was read, by its instant and its id, so that rows
which are added meanwhile neither repeat nor hide any other. Opaque to its reader, and not a secret.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import Mapped

from gateway.errors import InvalidRequest

ROWS_DEFAULT = 50
ROWS_MAX = 200

T = TypeVar("T")
Statement = TypeVar("Statement", bound=Select[*tuple[Any, ...]])
Position = tuple[int, str]
"""Epoch milliseconds and id of a row."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which piece is wanted."""

    limit: int = ROWS_DEFAULT
    cursor: str | None = None
    """From the page before; None for the first one."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A piece of a list."""

    rows: list[T]
    next_cursor: str | None
    """None: there is nothing more now."""


def seek(
    statement: Statement,
    wanted: PageRequest,
    *,
    at: Mapped[int],
    row_id: Mapped[str],
    newest_first: bool = False,
) -> Statement:
    """The statement for one row more than the page holds, so that `page_of` sees whether there is another.

    Raises:
        InvalidRequest: the limit is out of range, or the cursor is not one of ours.
    """
    if not 1 <= wanted.limit <= ROWS_MAX:
        raise InvalidRequest(f"`limit` must be 1 to {ROWS_MAX}.", param="limit")
    if wanted.cursor is not None:
        instant, last_id = position_of(wanted.cursor)
        if newest_first:
            statement = statement.where(or_(at < instant, and_(at == instant, row_id < last_id)))
        else:
            statement = statement.where(or_(at > instant, and_(at == instant, row_id > last_id)))
    order = (at.desc(), row_id.desc()) if newest_first else (at, row_id)
    return statement.order_by(*order).limit(wanted.limit + 1)


def page_of(rows: Sequence[T], wanted: PageRequest, position: Callable[[T], Position]) -> Page[T]:
    """The page of what a statement of `seek` found."""
    shown = list(rows[: wanted.limit])
    has_more = len(rows) > wanted.limit
    return Page(shown, cursor_of(position(shown[-1])) if has_more else None)


def cursor_of(position: Position) -> str:
    """What names a position to whoever reads on behind it."""
    text = f"{position[0]}.{position[1]}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def position_of(cursor: str) -> Position:
    """The position that a cursor names.

    Raises:
        InvalidRequest: the cursor is not one of ours.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        instant, _, row_id = base64.b64decode(padded, altchars=b"-_", validate=True).decode().partition(".")
        found = int(instant), row_id
    except (binascii.Error, ValueError):
        found = (-1, "")
    if not 0 <= found[0] < 2**63 or not found[1]:
        raise InvalidRequest(
            "`cursor` must be the `next_cursor` of the page before; leave it out for the first page.",
            param="cursor",
        )
    return found
