"""Which policy do requests follow, what did it say before, what is being tried? `/console/policies`.

Reads; what changes something is a form that calls the admin API. A policy is told in sentences for those who
do not write YAML, its differences by meaning and line by line.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.console.pages import page
from gateway.dependencies import ActorDep, ServicesDep, SessionDep
from gateway.errors import ConfigurationError, NotFound
from gateway.inference import TaskType
from gateway.jobs.leases import job_states
from gateway.paging import PageRequest
from gateway.policy_canary import HOURS_DEFAULT, UNITS_DEFAULT
from gateway.policy_shadow import HOURS_DEFAULT as SHADOW_HOURS_DEFAULT
from gateway.policy_words import PolicyWords, told
from gateway.routing.canaries import Canary, page_canaries
from gateway.routing.canary_state import JOB, State, state_of
from gateway.routing.harm import COST, FAILURES, MEASURES
from gateway.routing.policy_diff import Difference, PolicyDiff, diff_policies, shown
from gateway.routing.policy_schema import schema_text
from gateway.routing.versions import (
    find_version,
    page_activations,
    page_versions,
    read_active,
    show_version,
)

REFRESH_S = 10
ROWS = 20
_VALUE_CHARS = 120
_Cursor = Annotated[str, Query(max_length=256)]


@dataclass(frozen=True, slots=True)
class CanaryLine:
    """One measure that the guard of a canary watches."""

    name: str
    mean: float | None
    """Of the candidate; a share, or a cost against the control's mean."""
    control_mean: float | None
    units: int
    control_units: int
    log_e: float
    """What speaks against the candidate; at `limit` it is taken back."""
    is_share: bool
    """Else it is a multiple of the control's mean."""

    def written(self, value: float) -> str:
        """A figure of it, for people."""
        return f"{value * 100:.1f} %" if self.is_share else f"{value:.3f} times"


async def show_policies(
    services: ServicesDep,
    session: SessionDep,
    actor: ActorDep,
    *,
    versions: _Cursor = "",
    history: _Cursor = "",
) -> Response:
    """What is in force, what is tried beside it, what there was."""
    active = await read_active(session)
    version = None if active is None else await show_version(session, active.version)
    stored = await page_versions(session, PageRequest(limit=ROWS, cursor=versions or None))
    activations = await page_activations(session, PageRequest(limit=ROWS, cursor=history or None))
    canaries = await page_canaries(session, PageRequest(limit=ROWS))
    newest = canaries.rows[0] if canaries.rows else None
    state = None if newest is None else await _guard_state(session, newest)
    refused = services.policies.refused
    return page(
        "policies.html",
        section="policies",
        actor=actor,
        now=services.clock.now(),
        refresh_s=REFRESH_S,
        active=active,
        version=version,
        words=None if version is None else await _words(version.text),
        in_force=services.pipeline.routing.policy.version,
        refused=None if refused is None else refused.reason,
        stored=stored,
        activations=activations,
        canaries=canaries.rows,
        canary=None if newest is None or newest.end is not None else newest,
        lines=[] if state is None else canary_lines(state),
        state=state,
        harm_limit=math.log(len(MEASURES) / services.settings.canary.error_probability),
        error_probability=services.settings.canary.error_probability,
    )


async def show_policy_version(session: SessionDep, actor: ActorDep, version: str) -> Response:
    """One version: its sentences, its YAML, and what can be done with it.

    Raises:
        NotFound: there is no such version.
    """
    found = await show_version(session, await find_version(session, version))
    active = await read_active(session)
    return page(
        "policy_version.html",
        section="policies",
        actor=actor,
        version=found,
        words=await _words(found.text),
        active=active,
        lines=found.text.splitlines(),
        shadow_hours_default=SHADOW_HOURS_DEFAULT,
        units_default=UNITS_DEFAULT,
        hours_default=HOURS_DEFAULT,
    )


async def show_diff(
    session: SessionDep,
    actor: ActorDep,
    *,
    before: Annotated[str, Query(alias="from", max_length=100)] = "",
    after: Annotated[str, Query(alias="to", max_length=100)] = "",
) -> Response:
    """Two versions beside each other; left out: what is in force."""
    names = [name or await _active_name(session) for name in (before, after)]
    found = [await show_version(session, await find_version(session, name)) for name in names]
    diff = await asyncio.to_thread(
        diff_policies, found[0].text, found[1].text, names=(found[0].version, found[1].version)
    )
    stored = await page_versions(session, PageRequest(limit=100))
    return page(
        "policy_diff.html",
        section="policies",
        actor=actor,
        before=found[0],
        after=found[1],
        differences=[difference_words(each) for each in diff.differences],
        rows=diff_rows(diff),
        versions=stored.rows,
    )


async def edit_policy(
    services: ServicesDep,
    session: SessionDep,
    actor: ActorDep,
    *,
    start: Annotated[str, Query(alias="from", max_length=100)] = "",
) -> Response:
    """The editor, beginning with a stored version; left out: the one in force."""
    active = await read_active(session)
    name = start or await _active_name(session)
    stored = await show_version(session, await find_version(session, name))
    policy = services.pipeline.routing.policy
    now = services.clock.now()
    return page(
        "policy_edit.html",
        section="policies",
        actor=actor,
        stored=stored,
        active=active,
        models=sorted(policy.models),
        tasks=[task.value for task in TaskType],
        week_ago=f"{now - timedelta(days=7):%Y-%m-%dT%H:%M}",
        hints={
            "pools": sorted(services.registry.specs),
            "external": sorted(policy.external),
            "models": sorted(policy.models),
        },
    )


async def show_schema() -> Response:
    """What may stand where in a policy: the editor completes by it."""
    return Response(
        schema_text(), media_type="application/json", headers={"cache-control": "private, max-age=300"}
    )


async def _active_name(session: AsyncSession) -> str:
    active = await read_active(session)
    if active is None:
        raise NotFound("No policy was ever active.")
    return active.version


async def _words(text: str) -> PolicyWords | str:
    """A policy in sentences, or why there are none."""
    try:
        return await asyncio.to_thread(told, text)
    except ConfigurationError as error:
        return str(error)


async def _guard_state(session: AsyncSession, canary: Canary) -> State | None:
    job = (await job_states(session)).get(JOB)
    return state_of(None if job is None else job.last_result, canary.number)


def canary_lines(state: State) -> list[CanaryLine]:
    """What a canary's guard has seen, measure by measure."""
    evidence = state.suspicion.evidence
    return [
        CanaryLine(
            _measure(name),
            one.total / one.units if one.units else None,
            one.control_total / one.control_units if one.control_units else None,
            one.units,
            one.control_units,
            one.log_e,
            is_share=name != COST,
        )
        for name in MEASURES
        if (one := evidence.get(name)) is not None
    ]


_NAMED = {FAILURES: "requests without an answer", COST: "charge, against the control's mean"}


def _measure(name: str) -> str:
    if name in _NAMED:
        return _NAMED[name]
    kind, _, tier = name.partition("_")
    if kind == "ttft":
        return f"first token above the control's P95, {tier}"
    return f"whole time above the control's P95, {tier}" if kind == "total" else name


# ------------------------------------------------------------------------------------------------ differences
@dataclass(frozen=True, slots=True)
class DiffRow:
    """A line of a unified difference."""

    kind: str
    """added, removed, same or hunk."""
    mark: str
    before: int | None
    """Its number in the older text."""
    after: int | None
    text: str


def diff_rows(diff: PolicyDiff) -> list[DiffRow]:
    """The unified difference, with line numbers on both sides."""
    rows: list[DiffRow] = []
    before = after = 0
    for line in diff.text.splitlines()[2:]:
        mark, text = line[:1], line[1:]
        if mark == "@":
            old, new = line.split(" ")[1:3]
            before, after = (abs(int(each.partition(",")[0])) for each in (old, new))
            rows.append(DiffRow("hunk", "", None, None, line))
        elif mark == "-":
            rows.append(DiffRow("removed", "\N{MINUS SIGN}", before, None, text))
            before += 1
        elif mark == "+":
            rows.append(DiffRow("added", "+", None, after, text))
            after += 1
        else:
            rows.append(DiffRow("same", "", before, after, text))
            before, after = before + 1, after + 1
    return rows


def difference_words(one: Difference) -> dict[str, Any]:
    """A key and its two values, short enough to read."""
    return {
        "path": one.path,
        "kind": one.kind.value,
        "before": "" if one.before is None else _short(one.before),
        "after": "" if one.after is None else _short(one.after),
    }


def _short(value: object) -> str:
    text = shown(value)
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}…"
