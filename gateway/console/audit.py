"""Who changed what, when and from where, and is the record whole? `/console/audit`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Query
from fastapi.responses import Response

from gateway.audit import AuditEntry, AuditFilter, page_entries
from gateway.audit_chain import head_of
from gateway.console.pages import page
from gateway.dependencies import ActorDep, SessionDep
from gateway.jobs.auditor import decoded
from gateway.jobs.leases import job_states
from gateway.jobs.scheduler import RECENT, WHOLE
from gateway.ledger.audit_checks import AUDIT
from gateway.paging import Page, PageRequest

PATH = "/console/audit"
ROWS = 50
_VALUE_CHARS = 300
_Text = Annotated[str, Query(max_length=160)]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the address asks for; empty: whatever it is."""

    actor: _Text = ""
    action: _Text = ""
    affected: Annotated[str, Query(alias="object", max_length=160)] = ""
    since: Annotated[str, Query(alias="from", max_length=40)] = ""
    until: Annotated[str, Query(alias="to", max_length=40)] = ""
    cursor: Annotated[str, Query(max_length=256)] = ""

    def query(self, **others: str) -> str:
        """The same as a query string."""
        named = {
            "actor": self.actor,
            "action": self.action,
            "object": self.affected,
            "from": self.since,
            "to": self.until,
        } | others
        text = urlencode({name: value for name, value in named.items() if value})
        return f"?{text}" if text else ""


@dataclass(frozen=True, slots=True)
class Changed:
    """A field of what was changed."""

    name: str
    before: str | None
    """None: it was not there."""
    after: str | None


@dataclass(frozen=True, slots=True)
class Chain:
    """Whether somebody looked that the record is whole, and what was found."""

    links: int
    """Entries in the chain; 0: nothing was ever changed."""
    head: str
    looked_at_ms: int | None
    """When every entry was last looked at; None: not yet."""
    breaches: int
    recent_at_ms: int | None
    """When the newest ones were."""


async def show_audit(session: SessionDep, actor: ActorDep, asked: Annotated[Asked, Depends()]) -> Response:
    """A page of entries, the newest first."""
    problem, bounds = None, []
    for text in (asked.since, asked.until):
        try:
            bounds.append(_epoch_ms(text) if text else None)
        except (ValueError, OverflowError):
            bounds.append(None)
            problem = f"{text!r} is no instant; write 2026-11-28T14:05 (UTC)."
    wanted = AuditFilter(
        actor=asked.actor or None,
        action=asked.action or None,
        object=asked.affected or None,
        since_ms=bounds[0],
        until_ms=bounds[1],
    )
    found: Page[AuditEntry] = Page([], None)
    if problem is None:
        found = await page_entries(session, wanted, PageRequest(limit=ROWS, cursor=asked.cursor or None))
    return page(
        "audit.html",
        status_code=200 if problem is None else 400,
        section="audit",
        actor=actor,
        asked=asked,
        problem=problem,
        entries=[(entry, changes_of(entry)) for entry in found.rows],
        next_cursor=found.next_cursor,
        chain=await _chain(session),
    )


def changes_of(entry: AuditEntry) -> list[Changed]:
    """Field by field; of a new object those that say something."""
    before, after = entry.before or {}, entry.after or {}
    names = [*before, *(name for name in after if name not in before)]
    found = [
        Changed(name, _told(before, name), _told(after, name))
        for name in names
        if before.get(name) != after.get(name) or (name in before) != (name in after)
    ]
    if entry.before is None:
        found = [one for one in found if one.after not in {None, "", "[]", "{}"}]
    return found


def _told(values: dict[str, Any], name: str) -> str | None:
    if name not in values or values[name] is None:
        return None
    value = values[name]
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}…"


async def _chain(session: SessionDep) -> Chain:
    head = await head_of(session)
    states = await job_states(session)
    ids = {invariant.id for invariant in AUDIT}
    reports = {job: decoded(states[job].last_result) if job in states else None for job in (RECENT, WHOLE)}
    breaches = sum(
        finding.breaches
        for report in reports.values()
        if report is not None
        for finding in report.findings
        if finding.id in ids
    )
    whole, recent = reports[WHOLE], reports[RECENT]
    return Chain(
        links=0 if head is None else head.number,
        head="" if head is None else head.hash,
        looked_at_ms=None if whole is None else whole.at_ms,
        breaches=breaches,
        recent_at_ms=None if recent is None else recent.at_ms,
    )


def _epoch_ms(text: str) -> int:
    moment = datetime.fromisoformat(text)
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1000)
