"""Is a policy read by its grammar alone where only that is asked, and refused where it does not fit?"""

import pytest

from backends.files import load_pools
from gateway.errors import ConfigurationError, PayloadTooLarge
from gateway.inference import Nature
from gateway.policy_life import TEXT_BYTES_MAX, Supply, fit, read_policy, refuse_large
from tests.support.pool_files import DEFAULT_POLICY, ROOT

POOLS = load_pools(ROOT / "backends" / "pools")
OUTGOING = DEFAULT_POLICY.read_text().replace(
    "  auto:\n    pools: [speculative, plain]\n",
    "  auto:\n    pools: [speculative, plain]\n    overflow: [partner]\n",
) + (
    "external:\n  partner:\n    model: llama\n    api_base: https://models.example.com/v1\n"
    "    api_key: partner\n    max_model_len: 1024\n"
)


def test_pools_that_are_gone_are_no_mistake_of_the_grammar() -> None:
    text = OUTGOING.replace("plain]", "gone]").replace("[plain", "[gone")
    assert read_policy(text, source="old").routes[Nature.CREATIVE][0] == "gone"
    with pytest.raises(ConfigurationError, match=r"old:\d+: routes.*: there is no pool 'gone'"):
        fit(text, source="old", supply=Supply(POOLS, None))


def test_both_readings_give_the_same_version() -> None:
    fitting = fit(OUTGOING, source="new", supply=Supply(POOLS, {"partner"}))
    assert read_policy(OUTGOING, source="new").version == fitting.policy.version
    assert {"speculative", "plain", "partner"} <= fitting.cards.keys()


def test_a_missing_key_is_told_unless_keys_are_another_machines_matter() -> None:
    with pytest.raises(ConfigurationError, match="set TOLLGATE_EXTERNAL_KEYS__PARTNER"):
        fit(OUTGOING, source="new", supply=Supply(POOLS, ()))
    assert fit(OUTGOING, source="new", supply=Supply(POOLS, None)).policy.external


@pytest.mark.parametrize("text", ["", "[1, 2]", "name: x\nname: y", "models: {a: {pools: [1]}}"])
def test_what_is_no_policy_is_refused_with_its_source(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^some\.yaml:"):
        read_policy(text, source="some.yaml")


def test_a_text_without_end_is_refused_before_it_is_read() -> None:
    with pytest.raises(PayloadTooLarge, match=f"at most {TEXT_BYTES_MAX:,} bytes, this one 500,001"):
        refuse_large("#" * (TEXT_BYTES_MAX + 1), source="big.yaml")
    refuse_large("#" * TEXT_BYTES_MAX, source="big.yaml")
