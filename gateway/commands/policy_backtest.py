"""`tollgate policy backtest`: what would another policy have cost?"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncSession

from backends.pool import PoolSpec, RateCard
from backends.profile import ProfileError, write_whole
from backends.yaml_source import YamlSourceError, explain, load_yaml_with_lines
from gateway.admin.views import instant
from gateway.analysis.backtest import DRAWS, run_backtest, units
from gateway.analysis.history import History, count_attempts, policy_text, read_history
from gateway.analysis.replay import Scenario
from gateway.analysis.report import as_html, as_markdown, headline, notes, tables
from gateway.analysis.view import as_json
from gateway.clock import Clock
from gateway.commands.terminal import Json, in_session, load_pool_files, out, print_json
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.policy_life import active_policy
from gateway.pricing.book import Entry, PriceBook
from gateway.pricing.catalog import Card, Source, cards_of, priced, rates_from_card
from gateway.pricing.store import list_entries
from gateway.routing.policy import Policy, load_policy, parse_policy
from gateway.settings import Settings, load_settings
from gateway.spend_names import read_names

ACTIVE = "active"
_DAYS = 7
_SEEDS_MAX = 100


class _PricesFile(BaseModel):
    """Other prices, as they are written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rates: dict[str, RateCard] = Field(min_length=1, description="USD per million tokens, by target")


@dataclass(frozen=True, slots=True)
class _Read:
    """What the database knows."""

    history: History
    entries: list[Entry]
    tenants: dict[str, str]
    projects: dict[str, str]
    active: Policy
    """The one in force."""
    texts: dict[str, str]
    """Of the policy versions that were asked for by name."""


_Baseline = Annotated[str, typer.Option(help="what it is compared with: 'active', a file or a version")]
_Prices = Annotated[
    Path | None, typer.Option(help="YAML with `rates:` by target; default: the price book as it was")
]
_Pools = Annotated[
    Path | None, typer.Option(help="a folder of pool files for the candidate; default: those in use")
]


@dataclass(frozen=True, slots=True)
class Compared:
    """With what, and what else is otherwise."""

    baseline: _Baseline = ACTIVE
    prices: _Prices = None
    pools: _Pools = None


def _with_compared(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Compared`; it gets them as its one argument `compared`."""
    own = inspect.signature(command, eval_str=True)
    options = inspect.signature(Compared, eval_str=True).parameters

    @functools.wraps(command)
    def run(**given: Any) -> None:
        compared = Compared(**{name: given.pop(name) for name in options})
        command(compared=compared, **given)

    kept = [parameter for name, parameter in own.parameters.items() if name != "compared"]
    added = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in options.values()]
    signature = own.replace(parameters=[*kept, *added])
    vars(run).pop("__wrapped__")
    vars(run)["__signature__"] = signature
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return run


@_with_compared
def backtest(
    candidate: Annotated[str, typer.Argument(help="a policy file, or the version of one that was in force")],
    since: Annotated[
        str | None, typer.Option("--from", help="first instant, UTC; default: 7 days before --to")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", help="first instant that does not count; default: now")
    ] = None,
    *,
    compared: Compared,
    seed: Annotated[int, typer.Option(help="of everything that is drawn", min=0)] = 0,
    seeds: Annotated[
        int, typer.Option(help="worlds that are drawn for the intervals", min=2, max=_SEEDS_MAX)
    ] = DRAWS,
    report: Annotated[
        Path | None, typer.Option("--out", help="write a report: .html with plots, .md or .json")
    ] = None,
    as_machine: Json = False,
) -> None:
    """Say what recorded requests would have cost under another policy, and whom that would hurt.

    Requests are replayed in time through the same decisions as live ones; the pools are simulated, corrected
    by what the record measured of them. Where the record and the pools' benches say nothing, nothing is
    claimed.
    """
    form = None if report is None else _form_of(report)
    settings = load_settings()
    span_ms = _span_ms(since, until)
    specs = load_pool_files(settings)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as progress:
        wanted = (candidate, compared.baseline)
        read = _read(settings, span_ms, wanted=wanted, specs=specs, progress=progress)
        fleet = load_pool_files(settings, compared.pools)
        asked = _scenario("candidate", candidate, read=read, specs=fleet, prices=compared.prices)
        other = _scenario("baseline", compared.baseline, read=read, specs=specs)
        work = progress.add_task("simulating", total=units(len(read.history.requests), draws=seeds))
        try:
            found = run_backtest(
                read.history,
                candidate=asked,
                baseline=other,
                seed=seed,
                draws=seeds,
                tell=lambda count: progress.advance(work, count),
            )
        except ProfileError as error:
            raise ConfigurationError(str(error)) from None
    view = as_json(found, read.tenants)
    if report is not None and form is not None:
        write_whole(report, form(view))
    print_json(view) if as_machine else _print(view, report)


def _span_ms(since: str | None, until: str | None) -> tuple[int, int]:
    """First instant, and first one that does not count; epoch ms.

    Raises:
        InvalidRequest: not ISO 8601, or the end comes first.
    """
    end = instant(until, "to") or Clock().now()
    start = instant(since, "from") or end - timedelta(days=_DAYS)
    if start >= end:
        raise InvalidRequest("--from must be before --to.")
    return int(start.timestamp() * 1000), int(end.timestamp() * 1000)


def _form_of(path: Path) -> Any:
    """How a report of this name is written.

    Raises:
        InvalidRequest: nothing is written under such a name, or there is no such folder.
    """
    forms = {".html": as_html, ".md": as_markdown, ".json": _as_text}
    if path.suffix not in forms:
        raise InvalidRequest(f"--out {path}: the name must end in .html, .md or .json.")
    if not path.parent.is_dir():
        raise InvalidRequest(f"--out {path}: there is no folder {path.parent}.")
    return forms[path.suffix]


def _as_text(view: Mapping[str, Any]) -> str:
    return json.dumps(view, indent=2) + "\n"


def _read(
    settings: Settings,
    span_ms: tuple[int, int],
    *,
    wanted: Sequence[str],
    specs: Mapping[str, PoolSpec],
    progress: Progress,
) -> _Read:
    named = [each for each in wanted if each != ACTIVE and not Path(each).is_file()]
    bar = progress.add_task("reading", total=None)

    async def work(session: AsyncSession) -> _Read:
        from_ms, to_ms = span_ms
        progress.update(bar, total=await count_attempts(session, from_ms=from_ms, to_ms=to_ms))
        history = await read_history(
            session, from_ms=from_ms, to_ms=to_ms, on_rows=lambda rows: progress.advance(bar, rows)
        )
        names = await read_names(session)
        texts = {}
        for reference in named:
            text = await policy_text(session, reference)
            if text is not None:
                texts[reference] = text
        active = await active_policy(session, settings, specs)
        return _Read(history, await list_entries(session), names["tenant"], names["project"], active, texts)

    return in_session(work, settings)


def _scenario(
    name: str,
    reference: str,
    *,
    read: _Read,
    specs: Mapping[str, PoolSpec],
    prices: Path | None = None,
) -> Scenario:
    policy = _policy(reference, read, specs=specs)
    cards = cards_of(specs, {each: target.rates for each, target in policy.external.items()})
    entries = read.entries
    if prices is not None:
        other = _prices_of(prices, known=cards)
        cards = {**cards, **other}
        entries = [entry for entry in entries if entry.target not in other]
    book = PriceBook(cards, entries, allows_unpriced=policy.allow_unpriced)
    return Scenario(name, policy, specs, book, read.tenants, read.projects)


def _policy(reference: str, read: _Read, *, specs: Mapping[str, PoolSpec]) -> Policy:
    """The policy of a file, of a version, or in force.

    Raises:
        InvalidRequest: there is no such thing.
        ConfigurationError: it is wrong, or does not fit the pools.
    """
    if reference == ACTIVE:
        return read.active
    if reference in read.texts:
        return parse_policy(read.texts[reference], source=reference, pools=specs)
    path = Path(reference)
    if not path.is_file():
        raise InvalidRequest(
            f"There is no policy file {reference[:200]!r}, and no version of that name was ever in force."
        )
    return load_policy(path, pools=specs)


def _prices_of(path: Path, *, known: Mapping[str, Card]) -> dict[str, Card]:
    """Other prices by target.

    Raises:
        ConfigurationError: unreadable, wrong, or of a target that there is not; says where.
    """
    try:
        value, lines = load_yaml_with_lines(path.read_text(encoding="utf-8"))
        file = _PricesFile.model_validate(value)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: the prices cannot be read: {error}") from None
    except YamlSourceError as error:
        raise ConfigurationError(f"{path}:{error.line}: {error}") from None
    except ValidationError as error:
        raise ConfigurationError("\n".join(explain(error, lines, _PricesFile, source=str(path)))) from None
    found = {}
    for target, card in file.rates.items():
        if target not in known:
            line = lines.get(("rates", target), 1)
            raise ConfigurationError(
                f"{path}:{line}: rates: there is no target {target[:64]!r}; known: {', '.join(known)}"
            )
        rates = rates_from_card(card, owner=f"target {target!r}")
        found[target] = Card(priced(target, rates), Source.FINANCE)
    return found


def _print(view: Mapping[str, Any], report: Path | None) -> None:
    out.print(headline(view), highlight=False, markup=False)
    for table in tables(view):
        shown = Table(
            title=table.title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False
        )
        for index, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if index == 0 else "right")
        for row in table.rows:
            shown.add_row(*(Text(cell) for cell in row))
        out.print(shown)
    for note in notes(view):
        out.print(f"- {note}", highlight=False, markup=False)
    if report is not None:
        out.print(f"Written: {report}", highlight=False, markup=False)
