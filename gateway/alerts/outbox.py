"""What is still to be told, and to whom? SQL of messages and deliveries; flushes, never commits.

A message and its deliveries appear in one transaction. A delivery is noted after it was taken: a process that
dies in between delivers it again, with the same id, so that whoever is told can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.alerts.tables import AlertDelivery, AlertMessage
from gateway.db import insert_ignoring_duplicates
from gateway.inference import new_id

RETRY_MS = 10_000
"""After the first failure; doubles."""
RETRY_MS_MAX = 3_600_000
GIVEN_UP_MS = 7 * 86_400_000
"""What nobody took for so long is news no more."""
BATCH = 50
ERROR_CHARS = 256


@dataclass(frozen=True, slots=True)
class Alert:
    """What shall be told."""

    kind: str
    topic: str
    """What it is about; told once."""
    subject: str
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Due:
    """One message to be delivered by one channel."""

    message: AlertMessage
    channel: str
    attempts: int


async def post(session: AsyncSession, alert: Alert, channels: Sequence[str], *, now_ms: int) -> str | None:
    """Have it told by every channel; its id, or None if it was told before."""
    message_id = new_id("alr_", now_ms)
    row = {
        "id": message_id,
        "topic": alert.topic,
        "kind": alert.kind,
        "at_ms": now_ms,
        "subject": alert.subject[:256],
        "details": alert.details,
    }
    await insert_ignoring_duplicates(session, AlertMessage, [row])
    found = await session.execute(select(col(AlertMessage.id)).where(col(AlertMessage.topic) == alert.topic))
    if found.scalar_one() != message_id:
        return None
    session.add_all(
        AlertDelivery(alert_id=message_id, channel=channel, attempts=0, next_at_ms=now_ms)
        for channel in channels
    )
    await session.flush()
    return message_id


async def due(session: AsyncSession, channels: Sequence[str], *, now_ms: int) -> list[Due]:
    """What is to be delivered now by these channels, the oldest first."""
    found = await session.execute(
        select(AlertMessage, col(AlertDelivery.channel), col(AlertDelivery.attempts))
        .join(AlertMessage, col(AlertMessage.id) == col(AlertDelivery.alert_id))
        .where(col(AlertDelivery.next_at_ms) <= now_ms, col(AlertDelivery.channel).in_(channels))
        .order_by(col(AlertDelivery.next_at_ms), col(AlertMessage.id), col(AlertDelivery.channel))
        .limit(BATCH)
    )
    return [Due(message, channel, attempts) for message, channel, attempts in found]


async def note(session: AsyncSession, each: Due, *, error: str | None, now_ms: int) -> None:
    """It was taken, or what was wrong: then it is tried again later, until it is too old."""
    values: dict[str, Any] = {"delivered_at_ms": now_ms, "next_at_ms": None}
    if error is not None:
        wait_ms = min(RETRY_MS * 2**each.attempts, RETRY_MS_MAX)
        is_old = now_ms - each.message.at_ms > GIVEN_UP_MS
        values = {
            "attempts": each.attempts + 1,
            "last_error": error[:ERROR_CHARS],
            "next_at_ms": None if is_old else now_ms + wait_ms,
        }
    await session.execute(
        update(AlertDelivery)
        .where(
            col(AlertDelivery.alert_id) == each.message.id,
            col(AlertDelivery.channel) == each.channel,
            col(AlertDelivery.delivered_at_ms).is_(None),
        )
        .values(**values)
    )


async def recent(
    session: AsyncSession, *, limit: int, message_id: str | None = None
) -> list[tuple[AlertMessage, list[AlertDelivery]]]:
    """Messages and their deliveries, the newest first."""
    statement = select(AlertMessage).order_by(col(AlertMessage.at_ms).desc(), col(AlertMessage.id).desc())
    if message_id is not None:
        statement = statement.where(col(AlertMessage.id) == message_id)
    messages = list((await session.execute(statement.limit(limit))).scalars())
    found = await session.execute(
        select(AlertDelivery)
        .where(col(AlertDelivery.alert_id).in_([each.id for each in messages]))
        .order_by(col(AlertDelivery.channel))
    )
    deliveries = list(found.scalars())
    return [(each, [one for one in deliveries if one.alert_id == each.id]) for each in messages]
