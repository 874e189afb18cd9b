"""What does litellm's price map say that a model costs, in our meters?

The map (`model_prices_and_context_window_backup.json`, MIT, 4,242 models in litellm 1.106.2) is found by the
metadata of the installed distribution; litellm itself is never imported, which would cost seconds and 160 MB.
Its numbers are USD per token, written as floats: they are read as decimals and rounded half up, once, to a
nano-USD per million tokens.

The map grows by dozens of price fields a month. So every field of a model that is about money must be one
that we charge by or one that is known not to concern us (`_NOT_OURS`, with the reason); any other field with
a value stops the import, because a price that leaves it out would be wrong without anybody noticing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from gateway.errors import ConfigurationError, InvalidRequest, NotFound
from gateway.money import NANOS_PER_USD, TOKENS_PER_RATE, USD_MAX, round_half_up
from gateway.pricing.rates import Rates

MAP_NAME = "model_prices_and_context_window_backup.json"

_MONEY = re.compile("cost|pric")
_PER_TOKEN = {
    "input_cost_per_token": "input",
    "cache_read_input_token_cost": "cached_input",
    "cache_creation_input_token_cost": "cache_write",
    "output_cost_per_token": "output",
    "output_cost_per_reasoning_token": "reasoning",
}
_PER_REQUEST = "input_cost_per_request"
_SAME_AS = {"input_cost_per_token_cache_hit": "cache_read_input_token_cost"}
"""An older name, which must then say the same."""
_NOT_OURS = {
    re.compile(r"_batches$"): "the provider's batch interface is not used",
    re.compile(r"_(flex|priority)$"): "no service tier is asked for outside: `service_tier` stays inside",
    re.compile(r"^search_context_cost_per_query$"): "`web_search_options` is never sent outside",
}
"""Families of fields that do not concern what we send (protocols/portable.py says what that is)."""
_TIER = re.compile(r"_above_(\d+)k_tokens$")
"""Another price for longer prompts, in thousands of tokens."""


@dataclass(frozen=True, slots=True)
class PriceMap:
    """litellm's map as it is installed here."""

    source: str
    """Such as `litellm 1.106.2`."""
    models: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whose price is looked for."""

    target: str
    max_model_len: int
    provider: str | None
    """As litellm calls it; None: not known."""
    model: str
    """The name that the provider knows."""


def load_map(path: Path | None = None) -> PriceMap:
    """The installed map, or the one in a file.

    Raises:
        ConfigurationError: litellm is not installed, or its map is not where it was.
    """
    source = str(path)
    if path is None:
        try:
            found = distribution("litellm")
        except PackageNotFoundError:
            raise ConfigurationError("litellm is not installed, so its price map cannot be read") from None
        source = f"litellm {found.version}"
        paths = [Path(str(file.locate())) for file in found.files or () if file.name == MAP_NAME]
        if not paths:
            raise ConfigurationError(f"{source} has no {MAP_NAME}: its price map is somewhere else now")
        path = paths[0]
    try:
        models = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{source}: {path.name} cannot be read: {error}") from None
    if not isinstance(models, dict):
        raise ConfigurationError(f"{source}: {path.name} is no map of models")
    return PriceMap(source, models)


def model_of(wanted: Wanted, prices: PriceMap, name: str | None = None) -> str:
    """The map's name for a target's model.

    Args:
        wanted: the target.
        prices: the map.
        name: as somebody gave it; None: the target's own model at its provider.

    Raises:
        NotFound: there is none. A model of the same name at another provider is never taken: it costs
            something else.
    """
    if name is not None:
        if not isinstance(prices.models.get(name), dict):
            raise NotFound(f"{prices.source} has no model {name[:128]!r}{_near(name, prices)}")
        return name
    if wanted.provider is None:
        raise NotFound(
            f"{wanted.target}: whose server it asks is not known, so say which model of litellm's map it is:"
            f" tollgate prices import {wanted.target} --model NAME"
        )
    for key in (f"{wanted.provider}/{wanted.model}", wanted.model):
        row = prices.models.get(key)
        if isinstance(row, dict) and row.get("litellm_provider") == wanted.provider:
            return key
    raise NotFound(
        f"{wanted.target}: {prices.source} has no model {wanted.model[:128]!r} of {wanted.provider}"
        f"{_near(wanted.model, prices)}"
    )


def rates_of(model: str, prices: PriceMap, *, max_model_len: int) -> Rates:
    """The map's price of a model in our meters.

    Cached input and cache writes that it does not price cost as much as input, reasoning as much as output.

    Args:
        model: the map's name for it.
        prices: the map.
        max_model_len: the longest prompt and answer that the target takes, tokens.

    Raises:
        InvalidRequest: it has no token rates, or a price field that we cannot charge by; names the field.
    """
    row = prices.models[model]
    for field, value in row.items():
        if _MONEY.search(field) and not _says_nothing(value):
            _require_understood(field, row, f"{prices.source}, {model}", max_model_len=max_model_len)
    nanos: dict[str, int] = {
        meter: _nanos(row[field], TOKENS_PER_RATE, f"{model}: {field}")
        for field, meter in _PER_TOKEN.items()
        if row.get(field) is not None
    }
    for meter in ("input", "output"):
        if not nanos.get(meter):
            raise InvalidRequest(
                f"{prices.source}, {model}: it has no {meter} rate per token. Set the price by hand:"
                " tollgate prices set"
            )
    per_request = row.get(_PER_REQUEST)
    return Rates(
        input=nanos["input"],
        cached_input=nanos.get("cached_input", nanos["input"]),
        cache_write=nanos.get("cache_write", nanos["input"]),
        output=nanos["output"],
        reasoning=nanos.get("reasoning", nanos["output"]),
        per_request=0 if per_request is None else _nanos(per_request, 1, f"{model}: {_PER_REQUEST}"),
    )


def _require_understood(field: str, row: Mapping[str, Any], owner: str, *, max_model_len: int) -> None:
    if field in _PER_TOKEN or field == _PER_REQUEST:
        return
    if any(family.search(field) for family in _NOT_OURS):
        return
    if field in _SAME_AS and row[field] == row.get(_SAME_AS[field]):
        return
    tier = _TIER.search(field)
    if tier is None:
        raise InvalidRequest(
            f"{owner}: `{field}` is a price that Tollgate does not charge by, so the import would be wrong."
            " Set the price by hand: tollgate prices set"
        )
    tokens = int(tier[1]) * 1000
    if max_model_len > tokens:
        raise InvalidRequest(
            f"{owner}: `{field}` is another price for prompts of more than {tokens:,} tokens, and the target"
            f" takes {max_model_len:,} (max_model_len). Let it take at most {tokens:,}, or set the price by"
            " hand: tollgate prices set"
        )


def _says_nothing(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_says_nothing(each) for each in value.values())
    return value is None or (isinstance(value, int | Decimal) and value == 0) or value == []


def _nanos(usd: object, per: int, what: str) -> int:
    if isinstance(usd, bool) or not isinstance(usd, int | Decimal) or not Decimal(usd).is_finite():
        raise InvalidRequest(f"{what}: {usd!r} is not an amount of USD")
    exact = Fraction(usd) * per * NANOS_PER_USD
    if exact < 0 or exact > USD_MAX * NANOS_PER_USD:
        raise InvalidRequest(f"{what}: {usd} USD is below zero or more than can be kept")
    nanos = round_half_up(*exact.as_integer_ratio())
    if exact and not nanos:
        raise InvalidRequest(f"{what}: {usd} USD is less than the smallest amount kept")
    return nanos


def _near(name: str, prices: PriceMap) -> str:
    wanted = name.rpartition("/")[2].lower()
    near = [key for key in prices.models if wanted and wanted in key.lower()]
    return f". Near ones: {', '.join(sorted(near, key=len)[:5])}" if near else ""
