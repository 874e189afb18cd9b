"""Does litellm's map become the prices that it states, and is anything that it states besides refused?"""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigurationError, InvalidRequest, NotFound
from gateway.pricing.litellm_map import PriceMap, Wanted, load_map, model_of, rates_of
from gateway.pricing.rates import Rates

ROW = {
    "litellm_provider": "openai",
    "input_cost_per_token": Decimal("1E-6"),
    "output_cost_per_token": Decimal("2E-6"),
}


@pytest.fixture(scope="module")
def installed() -> PriceMap:
    return load_map()


def rates(max_model_len: int = 128_000, **fields: Any) -> Rates:
    return rates_of("m", PriceMap("litellm 1", {"m": {**ROW, **fields}}), max_model_len=max_model_len)


# --------------------------------------------------------------------------------------- the map as installed
def test_the_installed_map_is_read_without_importing_litellm() -> None:
    program = (
        "import sys; from gateway.pricing.litellm_map import load_map; found = load_map();"
        "assert found.source.startswith('litellm '), found.source; assert len(found.models) > 1000;"
        "assert 'litellm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[4])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # USD per million: 0.15, 0.075, 0.60; search, batches and priority are not what we ask for.
        ("gpt-4o-mini", Rates(150_000_000, 75_000_000, 150_000_000, 600_000_000, 600_000_000)),
        ("gpt-4o", Rates(2_500_000_000, 1_250_000_000, 2_500_000_000, 10**10, 10**10)),
        ("o3-mini", Rates(1_100_000_000, 550_000_000, 1_100_000_000, 4_400_000_000, 4_400_000_000)),
        # `input_cost_per_token_cache_hit` says the same as the cached rate; cache writes are free there.
        ("deepseek/deepseek-chat", Rates(280_000_000, 28_000_000, 0, 420_000_000, 420_000_000)),
    ],
)
def test_real_models_cost_what_the_map_says(installed: PriceMap, model: str, expected: Rates) -> None:
    assert rates_of(model, installed, max_model_len=128_000) == expected


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("claude-sonnet-4-5", "cache_creation_input_token_cost_above_1hr"),
        ("dashscope/qwen-flash", "tiered_pricing"),
        ("deepseek-v4-flash", "off_peak_pricing"),
        ("gemini/gemini-2.5-flash", "cache_read_input_audio_token_cost"),
    ],
)
def test_real_models_with_prices_of_another_kind_are_refused_with_the_field(
    installed: PriceMap, model: str, field: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"litellm .*, {model}: `{field}` is a price that Tollgate does"):
        rates_of(model, installed, max_model_len=10_000)


def test_a_price_for_long_prompts_is_refused_unless_the_target_takes_none(installed: PriceMap) -> None:
    said = "`cache_read_input_token_cost_above_272k_tokens` is another price for prompts of more than 272,000"
    with pytest.raises(InvalidRequest, match=f"{said} tokens, and the target takes 272,001"):
        rates_of("gpt-5.4", installed, max_model_len=272_001)
    assert rates_of("gpt-5.4", installed, max_model_len=272_000).input > 0


# ---------------------------------------------------------------------------------------------------- fields
def test_every_field_that_we_charge_by_is_taken() -> None:
    found = rates(
        cache_read_input_token_cost=Decimal("1E-7"),
        cache_creation_input_token_cost=Decimal("1.25E-6"),
        output_cost_per_reasoning_token=Decimal("3E-6"),
        input_cost_per_request=Decimal("0.005"),
    )
    assert found == Rates(10**9, 10**8, 1_250_000_000, 2 * 10**9, 3 * 10**9, per_request=5_000_000)
    assert rates() == Rates(10**9, 10**9, 10**9, 2 * 10**9, 2 * 10**9)
    assert rates(cache_read_input_token_cost=None, input_cost_per_request=None) == rates()


def test_what_is_left_of_a_float_is_rounded_away() -> None:
    assert rates(input_cost_per_token=Decimal("0.00000029999999999999998")).input == 300_000_000


@pytest.mark.parametrize("suffix", ["batches", "flex", "priority", "above_200k_tokens_priority"])
def test_service_levels_that_we_do_not_ask_for_do_not_matter(suffix: str) -> None:
    of_it: dict[str, Any] = {f"input_cost_per_token_{suffix}": Decimal(9)}
    assert rates(**of_it) == rates()
    assert rates(search_context_cost_per_query={"search_context_size_low": Decimal("0.01")}) == rates()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("output_cost_per_image", Decimal("0.01")),
        ("input_cost_per_token_ultrafast", Decimal("1E-6")),
        ("cost_of_something_new", {"a": {"b": Decimal(1)}}),
        ("new_pricing", [{}]),
        ("cost_per_second", "0.01"),
        ("input_cost_per_token_cache_hit", Decimal("5E-7")),
    ],
)
def test_any_other_price_stops_the_import(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"`{field}`"):
        rates(**{field: value})


@pytest.mark.parametrize("value", [None, 0, Decimal("0.0"), [], {}, {"a": 0, "b": {"c": None}}])
def test_a_price_of_nothing_says_nothing(value: Any) -> None:
    assert rates(output_cost_per_image=value) == rates()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"input_cost_per_token": None}, "it has no input rate per token"),
        ({"output_cost_per_token": 0}, "it has no output rate per token"),
        ({"input_cost_per_token": "1E-6"}, "m: input_cost_per_token: '1E-6' is not an amount of USD"),
        ({"input_cost_per_token": Decimal(-1)}, "below zero"),
        ({"input_cost_per_token": Decimal("1E-20")}, "less than the smallest amount kept"),
        ({"output_cost_per_token": Decimal("NaN")}, "not an amount of USD"),
        ({"output_cost_per_token": Decimal("1E+9")}, "more than can be kept"),
    ],
)
def test_a_model_without_usable_token_rates_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        rates(**fields)


# ---------------------------------------------------------------------------------------------------- models
def test_a_model_is_looked_up_at_its_own_provider_only(installed: PriceMap) -> None:
    wanted = Wanted("mini", 128_000, "openai", "gpt-4o-mini")
    assert model_of(wanted, installed) == "gpt-4o-mini"
    assert model_of(wanted, installed, "deepseek/deepseek-chat") == "deepseek/deepseek-chat"
    with pytest.raises(
        NotFound, match=r"mini: litellm .* has no model 'deepseek-chat' of openai\. Near ones: "
    ):
        model_of(Wanted("mini", 1, "openai", "deepseek-chat"), installed)
    with pytest.raises(NotFound, match="tollgate prices import mini --model NAME"):
        model_of(Wanted("mini", 1, None, "gpt-4o-mini"), installed)
    with pytest.raises(NotFound, match=r"has no model 'gpt-4o-minii'$"):
        model_of(wanted, installed, "gpt-4o-minii")


def test_a_map_that_is_none_is_named(tmp_path: Path) -> None:
    for text, said in (("[]", "is no map of models"), ("{", "cannot be read")):
        path = tmp_path / "map.json"
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=said):
            load_map(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_map(tmp_path / "missing.json")
