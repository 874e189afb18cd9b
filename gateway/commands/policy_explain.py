"""`tollgate policy explain`: why would this request go where it goes?"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession

from backends.pool import PoolSpec
from backends.profile import ProfileError
from backends.registry import PoolRegistry
from gateway.clock import Clock
from gateway.commands.terminal import Json, in_session, load_pool_files, out, print_json
from gateway.economist import Economist
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.explain import Explanation, explain
from gateway.identity.auth import Caller
from gateway.imagined import Given, asked_of, call_of, fleet_of, prices_by_files, task_of
from gateway.inference import Call, Endpoint
from gateway.policy_life import active_policy
from gateway.pricing.book import Prices
from gateway.protocols.openai import ParseLimits, parse_call
from gateway.recorded import Recorded, caller_of, recorded
from gateway.routing.policy import Policy, load_policy
from gateway.routing.priors import Priors
from gateway.settings import Settings, load_settings

_NO_LIMITS = ParseLimits(messages_max=100_000, choices_max=100_000)
_LISTS = frozenset({"down"})


def policy_explain(
    file: Annotated[
        Path | None, typer.Argument(help="a request's body as JSON; `-` reads it from standard input")
    ] = None,
    *,
    receipt: Annotated[
        str | None, typer.Option(metavar="ID", help="a request that was served, instead of a body")
    ] = None,
    draft: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="default: the policy in use")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="ID", help="who asks: tenant, project, tags, class of this key")
    ] = None,
    tenant: Annotated[str | None, typer.Option(metavar="NAME", help="who asks, without a key")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--given",
            metavar="NAME=VALUE",
            help="what else is so, several times: task=code, class=flex, project=search, tag.team=ads,"
            " at=2026-11-20T23:00, input_tokens=9000, tools=yes, format=json_schema, media=yes, down=plain,"
            " budget_used_percent=95, may_leave=yes, …",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say why a request goes where it goes: facts, rules tried, candidates, drops and the choice.

    By the pools' files, with all replicas up and idle but for those of `--given down=POOL`; nothing is sent.
    The policy is the one in force, or --policy. What the running gateway would do now, by what it has
    learned and by the book's prices: POST /admin/v1/policies/explain. Exit status 1: the request would be
    refused.
    """
    settings = load_settings()
    specs = load_pool_files(settings)
    policy = load_policy(draft, pools=specs) if draft else _in_force(settings, specs)
    said = _given(given or [], tenant)
    if (file is None) == (receipt is None) and (file is not None or not given):
        raise InvalidRequest(
            "Say what is asked: a file with a request's body, --receipt ID, or some --given."
        )
    known = _known(receipt, key)
    base = known.request.call if known.request else None
    if file is not None:
        base = _read(file)
    found = _explained(call_of(said, base), said, known, policy=policy, specs=specs)
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        _print(found, known.request)
    if found.error is not None:
        raise typer.Exit(1)


def _in_force(settings: Settings, specs: dict[str, PoolSpec]) -> Policy:
    """The policy that requests follow; the file's, where nothing was ever started."""
    database = make_url(settings.effective_database_url).database
    if settings.is_embedded and not (database and Path(database).exists()):
        return load_policy(settings.policy, pools=specs)
    return in_session(lambda session: active_policy(session, settings, specs))


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database says."""

    request: Recorded | None = None
    caller: Caller | None = None


def _known(receipt: str | None, key: str | None) -> _Known:
    if receipt is None and key is None:
        return _Known()

    async def look(session: AsyncSession) -> _Known:
        request = None if receipt is None else await recorded(session, receipt)
        if key is not None:
            return _Known(request, await caller_of(session, key))
        return _Known(request, None if request is None else request.caller)

    return in_session(look)


def _explained(
    call: Call, said: Given, known: _Known, *, policy: Policy, specs: dict[str, PoolSpec]
) -> Explanation:
    clock = Clock()
    now_ms = clock.epoch_ms() if known.request is None else known.request.at_ms
    prices: Prices = prices_by_files(specs, policy, now_ms)
    unknown = [name for name in said.down if name not in specs]
    if unknown:
        raise InvalidRequest(f"There is no pool {unknown[0]!r}; known: {', '.join(sorted(specs))}.")
    fleet = fleet_of(specs, said.down)
    return explain(
        call,
        task_of(call, policy, None if known.request is None else known.request.task),
        policy,
        asked=asked_of(said, call, prices=prices, now_ms=now_ms, caller=known.caller),
        pools={each.spec.name: each for each in fleet.snapshots()},
        prices=prices,
        economist=_economist(fleet, specs, clock),
    )


def _economist(fleet: PoolRegistry, specs: dict[str, PoolSpec], clock: Clock) -> Economist:
    """By the pools' profiles alone: what was learned is asked of a running gateway."""
    try:
        return Economist(fleet, Priors(specs), clock=clock)
    except ProfileError as error:
        raise ConfigurationError(str(error)) from None


def _given(pairs: list[str], tenant: str | None) -> Given:
    """What was said.

    Raises:
        InvalidRequest: a name that nobody knows, or a value that cannot be.
    """
    values: dict[str, Any] = {} if tenant is None else {"tenant": tenant}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = {"class": "latency_class"}.get(name, name)
        if not equals:
            raise InvalidRequest(f"--given takes NAME=VALUE, such as task=code, not {pair[:80]!r}.")
        if name.startswith("tag."):
            values.setdefault("tags", {})[name.removeprefix("tag.")] = value
        elif name in _LISTS:
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    try:
        return Given.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(
                ["class", "tag.NAME", *sorted(set(Given.model_fields) - {"tags", "latency_class"})]
            )
            raise InvalidRequest(f"--given {name}: nobody knows it; known: {known}.") from None
        raise InvalidRequest(f"--given {name}: {first['msg']}.") from None


def _read(file: Path) -> Call:
    """The request in a file.

    Raises:
        ConfigurationError: the file cannot be read.
        InvalidRequest: it is no request.
    """
    try:
        body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}") from None
    endpoint = Endpoint.CHAT_COMPLETIONS
    try:
        fields = msgspec.json.decode(body)
        if isinstance(fields, dict) and "messages" not in fields and "prompt" in fields:
            endpoint = Endpoint.COMPLETIONS
        return parse_call(endpoint, body, {}, limits=_NO_LIMITS)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{file}: not JSON: {error}") from None
    except InvalidRequest as error:
        raise InvalidRequest(f"{file}: {error}") from None


# ---------------------------------------------------------------------------------------------------- people
def _print(found: Explanation, request: Recorded | None) -> None:
    out.print(Text(f"Policy {found.policy}", style="bold"))
    if request is not None:
        went = " then ".join(request.went_to)
        out.print(Text(f"It went to {went} by {request.policy}; its key as it is now."), soft_wrap=True)
    out.print(Text("\nFacts", style="bold"))
    for name, value in found.facts.items():
        if value not in (None, {}, False):
            out.print(Text(f"  {name.replace('_', ' ')}: {_plain(value)}"), soft_wrap=True)
    out.print(Text("\nRules", style="bold"))
    for number, rule in enumerate(found.rules, start=1):
        verdict = "matches" if rule.is_matched else f"no: {'; '.join(rule.why_not)}"
        out.print(Text(f"  {number}. {rule.name}: {verdict}"), soft_wrap=True)
    if not found.rules:
        out.print("  the policy has none")
    elif found.rule is None:
        out.print("  none matches: the routes decide")
    if found.error is not None:
        out.print(Text("\nRefused", style="bold red"))
        out.print(
            Text(f"  {found.error['status']} {found.error['code']}: {found.error['message']}"), soft_wrap=True
        )
        return
    _print_choice(found)


def _print_choice(found: Explanation) -> None:
    out.print(Text("\nCandidates", style="bold"))
    table = Table("", "target", "charge at most", "first token", "whole answer", "cost to us", box=None)
    for number, each in enumerate(found.candidates, start=1):
        told = each.predicted
        name = f"{each.target} (outside)" if each.is_external else each.target
        shown = ["", "", ""]
        if told is not None:
            shown = [f"{told.first_token_ms:g} ms", f"{told.total_ms:g} ms", told.cost_usd]
        table.add_row(f"{number}.", name, each.charge_usd_at_most or "unpriced", *shown)
    out.print(table, highlight=False)
    for drop in found.drops:
        out.print(Text(f"  not {drop.target}: {drop.reason}"), soft_wrap=True)
    out.print(Text("\nChoice", style="bold"))
    out.print(Text(f"  {found.reason}"), soft_wrap=True)
    cache = "looked up first" if found.cache["is_used"] else f"not used: {found.cache['why_not']}"
    out.print(Text(f"  cache: {cache}"), soft_wrap=True)
    if found.attempts_max is not None:
        out.print(f"  attempts at most: {found.attempts_max}", highlight=False)
    if found.hedging is not None:
        out.print(f"  hedging: {'on' if found.hedging else 'off'}")
    if found.budget_low is not None:
        out.print(f"  a budget runs low: {found.budget_low}")


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    return "yes" if value is True else str(value)
