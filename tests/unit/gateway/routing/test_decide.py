"""Does a call go where its nature, its alias and its pools say, and is every drop explained?"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import pytest

from backends.pool_sections import ModelSpec
from gateway.errors import ModelNotFound, NoEligibleTarget, Unpriced
from gateway.inference import CREATIVE_TASKS, Drop, Nature, RouteDecision, Target, TaskType
from gateway.routing.decide import decide
from gateway.routing.policy import Policy
from tests.support.factories import OVERFLOW_TEXT, POLICY_TEXT, make_call, make_policy, make_pool, make_task

SAMPLING = {"needs_full_sampling": True}


def decision(
    task: TaskType = TaskType.EXTRACTION,
    *,
    policy: Policy | None = None,
    plain: int = 1,
    speculative: int = 1,
    may_leave: bool | None = None,
    unpriced: Collection[str] = (),
    **call: Any,
) -> RouteDecision:
    pools = {
        "plain": make_pool("plain", ready=plain, down=1),
        "speculative": make_pool("speculative", ready=speculative),
    }
    more: dict[str, Any] = {} if may_leave is None else {"may_leave": may_leave}
    if unpriced:
        more["unpriced"] = unpriced
    return decide(make_call(**call), make_task(task), policy or make_policy(), pools=pools, **more)


def order(found: RouteDecision) -> list[str]:
    return [target.pool for target in found.targets]


def refusal(**arguments: Any) -> NoEligibleTarget:
    with pytest.raises(NoEligibleTarget) as caught:
        decision(**arguments)
    return caught.value


@pytest.mark.parametrize("task", list(TaskType))
def test_the_nature_of_a_task_orders_its_pools(task: TaskType) -> None:
    found = decision(task)
    if task in CREATIVE_TASKS:
        assert (found.nature, order(found)) == (Nature.CREATIVE, ["plain", "speculative"])
    else:
        assert (found.nature, order(found)) == (Nature.PREDICTABLE, ["speculative", "plain"])


def test_a_decision_says_all_that_its_receipt_needs() -> None:
    policy = make_policy()
    assert decision(policy=policy) == RouteDecision(
        targets=(
            Target(pool="speculative", upstream_model="tollgate-reference", max_model_len=1024),
            Target(pool="plain", upstream_model="tollgate-reference", max_model_len=1024),
        ),
        nature=Nature.PREDICTABLE,
        reason="extraction is predictable: speculative then plain",
        drops=(),
        policy_version=policy.version,
        max_tokens_default=256,
    )


def test_a_policy_may_see_a_task_otherwise() -> None:
    policy = make_policy(POLICY_TEXT + "tasks: {natures: {chat: predictable, extraction: creative}}\n")
    assert order(decision(TaskType.CHAT, policy=policy)) == ["speculative", "plain"]
    assert order(decision(TaskType.EXTRACTION, policy=policy)) == ["plain", "speculative"]
    assert order(decision(TaskType.CREATIVE, policy=policy)) == ["plain", "speculative"]


@pytest.mark.parametrize(
    ("alias", "task", "pools", "dropped"),
    [
        ("auto", TaskType.CODE, ["speculative", "plain"], []),
        ("fast", TaskType.CODE, ["speculative"], ["plain"]),
        ("fast", TaskType.CREATIVE, ["speculative"], ["plain"]),
        ("careful", TaskType.CODE, ["plain"], ["speculative"]),
    ],
)
def test_an_alias_uses_only_its_pools(
    alias: str, task: TaskType, pools: list[str], dropped: list[str]
) -> None:
    found = decision(task, model_alias=alias)
    assert order(found) == pools
    assert found.drops == tuple(Drop(pool, f"model '{alias}' does not use it") for pool in dropped)


def test_an_unknown_alias_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelNotFound) as caught:
        decision(model_alias="gpt-5")
    assert caught.value.caller_detail == "Unknown model 'gpt-5'. Known models: auto, fast, careful."
    assert caught.value.param == "model"


def test_a_pool_without_a_ready_replica_is_passed_over() -> None:
    found = decision(TaskType.CODE, speculative=0)
    assert order(found) == ["plain"]
    assert found.drops == (Drop("speculative", "no replica is up"),)


def test_replicas_that_are_down_do_not_hide_one_that_is_up() -> None:
    assert order(decision(TaskType.CREATIVE, plain=1))[0] == "plain"


@pytest.mark.parametrize("task", [TaskType.CODE, TaskType.CREATIVE])
def test_what_a_speculating_engine_refuses_is_never_sent_there(task: TaskType) -> None:
    found = decision(task, facts=SAMPLING)
    assert order(found) == ["plain"]
    assert found.drops == (Drop("speculative", "a speculating engine refuses min_p and logit_bias"),)


def test_when_nothing_is_up_the_caller_is_told_to_come_back() -> None:
    error = refusal(plain=0, speculative=0)
    assert (error.status_code, error.retry_after_s, error.removed_by_rules) == (503, 5, False)
    assert error.caller_detail == (
        "No replica that could serve 'auto' is up at the moment. Try again in a few seconds."
    )


def test_when_the_only_pool_that_may_serve_is_down_the_caller_is_told_to_come_back() -> None:
    assert refusal(model_alias="fast", speculative=0).status_code == 503
    assert refusal(facts=SAMPLING, plain=0).status_code == 503


def test_what_rules_forbid_is_not_worth_another_try() -> None:
    error = refusal(model_alias="fast", facts=SAMPLING)
    assert (error.status_code, error.retry_after_s, error.removed_by_rules) == (403, None, True)
    assert error.caller_detail == (
        "Nothing may serve this request for 'fast': speculative: a speculating engine refuses min_p and"
        " logit_bias; plain: model 'fast' does not use it."
    )


# -------------------------------------------------------------------------------------------------- overflow
OUTSIDE = Target(pool="outside", upstream_model="gpt-4o-mini", max_model_len=128_000, is_external=True)
COMPATIBLE = Target(pool="compatible", upstream_model="org/m", max_model_len=32_000, is_external=True)
STAYS = "requests of this tenant stay inside the company"


def overflowing(**arguments: Any) -> RouteDecision:
    policy = make_policy(OVERFLOW_TEXT)
    return decision(policy=policy, **{"may_leave": True, **arguments})


def test_external_targets_stand_behind_every_pool_in_the_aliass_order() -> None:
    found = overflowing()
    assert order(found) == ["speculative", "plain", "outside", "compatible"]
    assert found.targets[2:] == (OUTSIDE, COMPATIBLE)
    assert found.drops == ()
    assert found.reason == "extraction is predictable: speculative then plain then outside then compatible"


def test_with_every_pool_down_the_outside_is_all_there_is() -> None:
    found = overflowing(plain=0, speculative=0)
    assert found.targets == (OUTSIDE, COMPATIBLE)
    assert found.drops == (Drop("speculative", "no replica is up"), Drop("plain", "no replica is up"))


def test_an_alias_without_overflow_never_leaves() -> None:
    assert order(overflowing(model_alias="careful")) == ["plain"]
    with pytest.raises(NoEligibleTarget):
        overflowing(model_alias="careful", plain=0)


def test_without_consent_no_call_leaves_and_the_decision_says_so() -> None:
    found = overflowing(may_leave=False)
    assert order(found) == ["speculative", "plain"]
    assert found.drops == (Drop("outside", STAYS), Drop("compatible", STAYS))


def test_consent_is_never_taken_for_granted() -> None:
    assert order(decision(policy=make_policy(OVERFLOW_TEXT))) == ["speculative", "plain"]


def test_without_consent_and_without_pools_the_caller_may_try_again() -> None:
    with pytest.raises(NoEligibleTarget) as caught:
        overflowing(may_leave=False, plain=0, speculative=0)
    assert (caught.value.status_code, caught.value.retry_after_s) == (503, 5)
    assert caught.value.caller_detail == (
        "No replica that could serve 'auto' is up at the moment. Try again in a few seconds."
        f" Overflow was not used: outside: {STAYS}; compatible: {STAYS}."
    )


def test_a_call_that_another_model_cannot_answer_stays_inside() -> None:
    fields = {"structured_outputs": msgspec.Raw(b'{"choice":["a"]}')}
    found = overflowing(fields=fields)
    assert order(found) == ["speculative", "plain"]
    reason = "`structured_outputs` means something to our own engines only"
    assert found.drops == (Drop("outside", reason), Drop("compatible", reason))
    with pytest.raises(
        NoEligibleTarget, match="Overflow was not used: outside: `structured_outputs`"
    ) as caught:
        overflowing(fields=fields, plain=0, speculative=0)
    assert caught.value.status_code == 503


def test_a_target_without_a_price_is_taken_out_before_anything_is_sent() -> None:
    found = overflowing(unpriced={"outside", "elsewhere"})
    assert order(found) == ["speculative", "plain", "compatible"]
    assert found.drops == (Drop("outside", "it has no price"),)
    assert found.reason == "extraction is predictable: speculative then plain then compatible"
    assert order(overflowing(unpriced={"outside"}, plain=0, speculative=0)) == ["compatible"]


def test_where_nothing_has_a_price_the_caller_is_told_who_can_mend_it() -> None:
    with pytest.raises(Unpriced) as caught:
        overflowing(unpriced={"outside", "compatible"}, plain=0, speculative=0)
    assert caught.value.caller_detail == (
        "'outside' and 'compatible' have no price, so they cannot be used until finance sets one:"
        " tollgate prices set outside --input USD --output USD (per million tokens)"
    )


def test_what_an_external_target_is_not_sent_is_named_there_and_only_there() -> None:
    found = overflowing(fields={"top_k": msgspec.Raw(b"5")})
    assert [target.withheld for target in found.targets] == [(), (), ("top_k",), ("top_k",)]


def test_overflow_is_for_want_of_capacity_and_not_for_what_no_pool_may_serve() -> None:
    with pytest.raises(NoEligibleTarget) as caught:
        overflowing(model_alias="fast", facts=SAMPLING)
    assert caught.value.status_code == 403
    assert "outside" not in caught.value.caller_detail
    assert order(overflowing(model_alias="auto", facts=SAMPLING)) == ["plain", "outside", "compatible"]
    assert order(overflowing(model_alias="auto", facts=SAMPLING, plain=0)) == ["outside", "compatible"]


# ------------------------------------------------------------------------------------- what engines refuse
def model(**changes: Any) -> ModelSpec:
    return ModelSpec(served_name="tollgate-reference", max_model_len=1024, **changes)


def test_pictures_never_go_to_a_model_that_reads_text_only() -> None:
    pools = {
        "speculative": make_pool("speculative", model=model(reads=("text",))),
        "plain": make_pool("plain", model=model(reads=("text", "image"))),
    }
    call = make_call(facts={"has_media": True})
    found = decide(call, make_task(), make_policy(), pools=pools)
    assert order(found) == ["plain"]
    assert found.drops == (Drop("speculative", "its model reads text only"),)
    assert order(decide(make_call(), make_task(), make_policy(), pools=pools)) == ["speculative", "plain"]


def test_an_engine_that_says_nothing_of_pictures_is_asked() -> None:
    assert order(decision(facts={"has_media": True})) == ["speculative", "plain"]


def test_an_adapter_is_asked_for_where_it_is_loaded_and_nowhere_else() -> None:
    policy = make_policy(
        POLICY_TEXT.replace("careful: {", "legal: {adapter: law, pools: [speculative, plain]}\n  careful: {")
    )
    pools = {
        "speculative": make_pool("speculative"),
        "plain": make_pool("plain", engine_args={"lora_modules": ["law=/models/law", "med=/models/med"]}),
    }
    found = decide(make_call(model_alias="legal"), make_task(), policy, pools=pools)
    assert [(each.pool, each.upstream_model) for each in found.targets] == [("plain", "law")]
    assert found.drops == (Drop("speculative", "its engines have no adapter 'law'"),)
    assert (
        decide(make_call(), make_task(), policy, pools=pools).targets[1].upstream_model
        == "tollgate-reference"
    )


@pytest.mark.parametrize(("tier", "priority"), [("priority", 0), ("default", 10), ("flex", 20)])
def test_a_class_has_its_place_in_queues_that_go_by_priority(tier: str, priority: int) -> None:
    pools = {
        "speculative": make_pool("speculative"),
        "plain": make_pool("plain", scheduling="priority"),
    }
    found = decide(make_call(), make_task(), make_policy(), pools=pools, latency_class=tier)
    assert [each.priority for each in found.targets] == [None, priority]
