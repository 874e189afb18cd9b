"""`tollgate prices`: what does each target cost, and who says so?"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.price_views import (
    DifferenceView,
    EntryView,
    PriceHistoryView,
    PriceView,
    RatesView,
    difference_view,
    enter,
    entry_view,
    price_view,
)
from gateway.admin.views import PageView, epoch_ms_of, instant
from gateway.clock import Clock
from gateway.commands.terminal import (
    Json,
    act_of_the_user,
    all_rows,
    in_session,
    load_pool_files,
    out,
    print_json,
    print_table,
)
from gateway.errors import InvalidRequest, NotFound
from gateway.policy_life import active_policy
from gateway.pricing.book import PriceBook
from gateway.pricing.catalog import Source, cards_of, rates_from_amounts
from gateway.pricing.litellm_map import PriceMap, Wanted, load_map, model_of, rates_of
from gateway.pricing.rates import Rates
from gateway.pricing.store import PriceChange, list_entries, page_entries
from gateway.settings import load_settings

prices = typer.Typer(help="What each target costs.", no_args_is_help=True)

_METERS = tuple(RatesView.model_fields)
_COLUMNS = ("input", "cached", "write", "output", "reasoning", "request")
"""The same, short."""
_WIDE = 120
"""Characters of a line that hold since when and the version, too."""
_Rates = dict[str, tuple[Rates | None, str]]
"""Rates by target, and the model of litellm's map that they are of."""

Target = Annotated[str, typer.Argument(help="a pool, or an external target of the policy")]
From = Annotated[
    str | None, typer.Option("--from", help="from this instant on, such as 2027-01-01, UTC; default: now")
]
Note = Annotated[str | None, typer.Option(help="why, for people")]


@dataclass(frozen=True, slots=True)
class _Files:
    """What the pool files and the policy say."""

    book: PriceBook
    """Without entries."""
    wanted: dict[str, Wanted]
    """Every target, as litellm's map is asked for it."""
    external: tuple[str, ...]


@prices.command("show", epilog="Example: `tollgate prices show plain --history`")
def prices_show(
    target: Annotated[str | None, typer.Argument(help="only this one, with where it comes from")] = None,
    at: Annotated[str | None, typer.Option(help="at this instant, such as 2026-11-01; default: now")] = None,
    *,
    history: Annotated[bool, typer.Option("--history", help="every entry there was, of one target")] = False,
    as_machine: Json = False,
) -> None:
    """Show prices, USD per million tokens. What files say is known as it is now, whatever the instant."""
    at_ms, book = _instant_ms(at, "--at"), _files().book
    if target is None:
        if history:
            raise InvalidRequest("--history is about one target: tollgate prices show TARGET --history")
        views = [price_view(quote) for quote in _with_entries(book).quotes(at_ms)]
        print_json(views) if as_machine else _print_prices(views)
        return
    view = price_view(_with_entries(book).quote(target, at_ms))
    entries = _history(target) if history else []
    if as_machine:
        page = PageView[EntryView](data=entries, next_cursor=None)
        print_json(PriceHistoryView(price=view, history=page) if history else view)
        return
    _print_price(view)
    if history:
        out.print()
        _print_entries(entries)


_AMOUNTS = {
    "input": "USD per million fresh input tokens",
    "output": "USD per million generated tokens",
    "cached_input": "found in a cache; default: as input",
    "cache_write": "written to a billed cache; default: as input",
    "reasoning": "reasoning tokens; default: as output",
    "per_request": "USD per answered request; default: nothing",
}
_REQUIRED = ("input", "output")


def _with_amounts(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each amount, behind the argument: Typer reads options from the signature."""
    signature = inspect.signature(command, eval_str=True)
    argument, *others = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    amounts = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if name in _REQUIRED else None,
            annotation=Annotated[
                str if name in _REQUIRED else str | None,
                typer.Option(f"--{name.replace('_', '-')}", help=meaning),
            ],
        )
        for name, meaning in _AMOUNTS.items()
    ]
    command.__signature__ = signature.replace(parameters=[argument, *amounts, *others])  # type: ignore[attr-defined]  # functions take it
    return command


@prices.command(
    "set", epilog="Example: `tollgate prices set openai-mini --input 0.15 --cached-input 0.075 --output 0.60`"
)
@_with_amounts
def prices_set(
    target: Target,
    *,
    effective_from: From = None,
    note: Note = None,
    as_machine: Json = False,
    **amounts: str | None,
) -> None:
    """Set a target's price, now or from an instant on; running gateways charge it within two seconds."""
    change = PriceChange(rates_from_amounts(amounts), note=note, effective_from_ms=_from_ms(effective_from))
    view = _enter(_files().book, {target: change})[0]
    print_json(view) if as_machine else _print_price(view)


@prices.command("reset", epilog="Example: `tollgate prices reset plain`")
def prices_reset(
    target: Target, effective_from: From = None, note: Note = None, *, as_machine: Json = False
) -> None:
    """Go back to what the pool or policy file says; where that is nothing, the target is refused."""
    change = PriceChange(None, note=note, effective_from_ms=_from_ms(effective_from))
    view = _enter(_files().book, {target: change})[0]
    print_json(view) if as_machine else _print_price(view)


@prices.command("import", epilog="Example: `tollgate prices import openai-mini --yes`")
def prices_import(
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="default: every external target whose provider is known", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="the map's name for the model of one target")] = None,
    effective_from: From = None,
    *,
    is_sure: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_machine: Json = False,
) -> None:
    """Take over prices of models outside from litellm's map, as it is installed here; shows them first."""
    files, from_ms, found = _files(), _from_ms(effective_from), load_map()
    if from_ms is not None and from_ms < Clock().epoch_ms():
        raise InvalidRequest(
            "--from lies in the past: what was charged never changes. Leave it out to begin now."
        )
    if as_machine and not is_sure:
        raise InvalidRequest("--json cannot ask whether the prices are right: say --yes, too")
    rates = _imported(files, found, targets or [], model)
    book = _with_entries(files.book)
    differences = _differences(book, _instant_ms(effective_from, "--from"), rates)
    if not as_machine:
        _print_differences(differences, "nothing to change")
    if differences and not is_sure and not typer.confirm("Take these prices over?", err=True):
        sys.stderr.write("Nothing was changed.\n")
        raise SystemExit(1)
    changes = {
        one.target: PriceChange(
            rates[one.target][0],
            source=Source.LITELLM,
            note=f"{found.source}, {rates[one.target][1]}",
            effective_from_ms=from_ms,
        )
        for one in differences
    }
    imported = _enter(files.book, changes)
    if as_machine:
        print_json({"source": found.source, "changed": [view.model_dump(mode="json") for view in imported]})
    elif imported:
        out.print(f"Taken over from {found.source}: {', '.join(view.target for view in imported)}")


@prices.command("diff", epilog="Example: `tollgate prices diff --from 2026-11-01 --to 2027-01-01`")
def prices_diff(
    since: Annotated[
        str | None, typer.Option("--from", help="an instant; default: now, against litellm's map")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="another instant; default: now")] = None,
    *,
    as_machine: Json = False,
) -> None:
    """Show whose price differs: between two instants (by entries), or between now and litellm's map."""
    if until is not None and since is None:
        raise InvalidRequest("--to needs --from: prices are compared between two instants")
    files, since_ms, until_ms = _files(), _instant_ms(since, "--from"), _instant_ms(until, "--to")
    after: _Rates
    if since is None:
        after = _imported(files, load_map(), [], None)
    book = _with_entries(files.book)
    if since is not None:
        after = {
            quote.target: (None if quote.price is None else quote.price.rates, "")
            for quote in book.quotes(until_ms)
        }
    differences = _differences(book, since_ms, after)
    print_json(differences) if as_machine else _print_differences(differences, "no price differs")


# ------------------------------------------------------------------------------------------------ reading
def _files() -> _Files:
    settings = load_settings()
    pools = load_pool_files(settings)
    policy = in_session(lambda session: active_policy(session, settings, pools), settings)
    cards = cards_of(pools, {name: target.rates for name, target in policy.external.items()})
    wanted = {
        name: Wanted(name, spec.model.max_model_len, None, spec.model.served_name)
        for name, spec in pools.items()
    }
    for name, target in policy.external.items():
        wanted[name] = Wanted(name, target.max_model_len, target.provider, target.model)
    book = PriceBook(cards, allows_unpriced=policy.allow_unpriced)
    return _Files(book, wanted, tuple(policy.external))


def _with_entries(book: PriceBook) -> PriceBook:
    async def work(session: AsyncSession) -> PriceBook:
        return book.with_entries(await list_entries(session))

    return in_session(work)


def _history(target: str) -> list[EntryView]:
    async def work(session: AsyncSession) -> list[EntryView]:
        rows = await all_rows(lambda page: page_entries(session, target, page))
        return [entry_view(entry) for entry in rows]

    return in_session(work)


def _from_ms(text: str | None) -> int | None:
    return epoch_ms_of(instant(text, "--from"), "--from")


def _instant_ms(text: str | None, name: str) -> int:
    """An instant; now, where none is given."""
    given = epoch_ms_of(instant(text, name), name)
    return Clock().epoch_ms() if given is None else given


def _imported(files: _Files, found: PriceMap, targets: list[str], model: str | None) -> _Rates:
    """The map's rates and model of each target.

    Raises:
        NotFound: a target is not known, or the map does not know its model.
        InvalidRequest: the map has a price that we cannot charge by.
    """
    if model is not None and len(targets) != 1:
        raise InvalidRequest("--model is for one target: tollgate prices import TARGET --model NAME")
    rates: _Rates = {}
    for name in targets or files.external:
        wanted = files.wanted[files.book.require(name)]
        if not targets and wanted.provider is None:
            sys.stderr.write(f"{name}: left out, its provider is not known (--model says it)\n")
            continue
        key = model_of(wanted, found, model)
        rates[name] = (rates_of(key, found, max_model_len=wanted.max_model_len), key)
    if not rates:
        raise NotFound(
            "The policy has no external target whose provider is known. Name one: tollgate prices import"
            " TARGET --model NAME"
        )
    return rates


def _differences(book: PriceBook, at_ms: int, after: _Rates) -> list[DifferenceView]:
    found = []
    for target, (rates, _) in after.items():
        price = book.quote(target, at_ms).price
        found.append(difference_view(target, None if price is None else price.rates, rates))
    return [view for view in found if view is not None]


# ------------------------------------------------------------------------------------------------ writing
def _enter(book: PriceBook, changes: dict[str, PriceChange]) -> list[PriceView]:
    """Make changes, all or none."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> list[PriceView]:
        return [
            await enter(session, book, target, change=change, act=act) for target, change in changes.items()
        ]

    return in_session(work) if changes else []


# ------------------------------------------------------------------------------------------------ showing
def _print_prices(views: list[PriceView]) -> None:
    titles = ("target", *_COLUMNS, "source", "since", "version")
    rows = [
        (view.target, *_amounts(view.rates), view.source or "unpriced", _date(view.since), view.version)
        for view in views
    ]
    _print_as_wide_as_it_goes(titles, rows, spare=2)


def _print_entries(entries: list[EntryView]) -> None:
    titles = ("from", "source", *_COLUMNS, "note", "made", "version")
    rows = [
        (_minute(one.effective_from), one.source, *_amounts(one.rates), one.note, one.created_at, one.version)
        for one in entries
    ]
    _print_as_wide_as_it_goes(titles, rows, spare=2)


def _print_as_wide_as_it_goes(titles: tuple[str, ...], rows: list[tuple[Any, ...]], *, spare: int) -> None:
    """Without the last columns where the terminal is narrow; --json has them all."""
    kept = len(titles) - (spare if out.width < _WIDE else 0)
    print_table(titles[:kept], [row[:kept] for row in rows])


def _print_price(view: PriceView) -> None:
    fields = [
        ("target", view.target),
        ("version", view.version or "unpriced: refused, unless the policy says allow_unpriced"),
    ]
    if view.rates is not None:
        units = {"per_request": "USD per request"}
        fields += [
            (_title(meter), f"{amount} {units.get(meter, 'USD per million tokens')}")
            for meter, amount in zip(_METERS, _amounts(view.rates), strict=True)
        ]
    fields += [("source", view.source or ""), ("since", _moment_text(view.since))]
    if view.derivation is not None:
        fields.append(("derived", view.derivation.formula))
    if view.note is not None:
        fields.append(("note", view.note))
    if view.following is not None:
        then = view.following.version or "what its file says"
        fields.append(("then", f"{then}, from {_moment_text(view.following.effective_from)}"))
    print_table(("", ""), [*fields])


def _print_differences(differences: list[DifferenceView], nothing: str) -> None:
    if not differences:
        out.print(nothing.capitalize() + ".")
        return
    rows = []
    for one in differences:
        before, after = (
            dict(zip(_METERS, _amounts(rates), strict=True)) for rates in (one.before, one.after)
        )
        rows += [(one.target, _title(meter), before[meter], "->", after[meter]) for meter in one.meters]
    print_table(("target", "USD per million tokens", "before", "", "after"), rows)


def _amounts(rates: RatesView | None) -> list[str]:
    if rates is None:
        return ["-"] * len(_METERS)
    return [_short(getattr(rates, meter)) for meter in _METERS]


def _short(amount: str) -> str:
    """Without the zeros that say nothing: two places at least."""
    whole, _, places = amount.partition(".")
    return f"{whole}.{places.rstrip('0').ljust(2, '0')}"


def _title(meter: str) -> str:
    return meter.replace("_", " ")


def _moment_text(when: datetime | None) -> str:
    return "as long as its file says so" if when is None else f"{_minute(when)} UTC"


def _minute(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M}"


def _date(when: datetime | None) -> str:
    return "" if when is None else f"{when:%Y-%m-%d}"
