"""Are recorded requests decided, answered and charged again as they were, and otherwise where it is asked?"""

from __future__ import annotations

import copy

import msgspec
import pytest

from gateway.analysis.history import DOWN, RecordedAttempt, RecordedRequest
from gateway.analysis.replay import Habits, Placed, Replayed, Scenario, replay
from gateway.inference import AttemptState, Task, TaskSource, TaskType, TokenUsage
from gateway.pricing.book import PriceBook
from gateway.pricing.catalog import cards_of
from gateway.pricing.rates import charge
from gateway.routing.policy import parse_policy
from gateway.routing.receipts import Asked, Shows
from tests.load.backtest_truth import ALL_PLAIN, BY_NATURE, policy_of, policy_text
from tests.load.backtest_world import Happened, World

USUAL = int(Shows.MAY_READ | Shows.MAY_KEEP | Shows.CACHES)


def again(requests: list[RecordedRequest], scenario: Scenario) -> Replayed:
    return replay(requests, scenario, habits=Habits(requests), recorded_specs=scenario.specs)


def one(**values: object) -> RecordedRequest:
    """An extraction that the speculative pool answered."""
    request = RecordedRequest(
        "req_1",
        1_000_000,
        "ten_1",
        "prj_1",
        "key_1",
        "chat/completions",
        "auto",
        False,
        Task(TaskType.EXTRACTION, TaskSource.DECLARED, 1.0),
        None,
        {},
        "bypass",
        Asked(USUAL, 400, 1, 1, 100, None, "default", None, None),
        "default@0",
        ("speculative", "plain"),
        (),
        None,
        [attempt()],
    )
    for name, value in values.items():
        setattr(request, name, value)
    return request


def attempt(**values: object) -> RecordedAttempt:
    made = RecordedAttempt(
        "speculative",
        "speculative-0",
        1_000_000,
        AttemptState.ANSWERED,
        True,
        TokenUsage(input=100, output=50),
        30_000,
        "speculative@0",
        None,
        500,
        0.0,
        400.0,
        20,
        29,
    )
    return msgspec.structs.replace(made, **values)


def cached(at_ms: int, **asked: object) -> RecordedRequest:
    known = Asked(USUAL, 400, 1, 1, 100, 0.0, "default", "0011", None)
    return one(at_ms=at_ms, asked=msgspec.structs.replace(known, **asked))


def test_a_under_a_is_decided_and_charged_as_it_was(happened: Happened, by_nature: Scenario) -> None:
    requests = [each for each in happened.history.requests if each.cache != "hit"]
    placed = again(requests, by_nature).placed
    compared = 0
    for request, place in zip(requests, placed, strict=True):
        assert (place.targets, place.drops) == (request.targets, request.drops)
        if place.is_hit:  # the world's cache is a little slower than ours
            continue
        answer = request.answer
        assert answer is not None
        assert (place.target, place.usage) == (answer.pool, answer.usage)
        assert place.charge_usd_nanos == request.charge_usd_nanos
        assert place.steps == answer.draft_steps
        compared += 1
    assert compared > 600


def test_other_routes_move_requests_and_their_charge(happened: Happened, world: World) -> None:
    scenario = Scenario("plain", policy_of(ALL_PLAIN), world.specs, PriceBook(cards_of(world.specs)))
    requests = happened.history.requests
    rates = scenario.prices.at(0).price_of("plain").rates
    for request, place in zip(requests, again(requests, scenario).placed, strict=True):
        if place.is_hit or place.target is None:
            continue
        named = "speculative" if request.model_alias.endswith("speculative") else "plain"
        assert place.target == named
        if named == "plain":
            assert place.charge_usd_nanos == charge(place.usage, rates)
            assert place.steps is None


def test_an_alias_that_is_gone_and_a_pool_that_is_down_are_refusals(by_nature: Scenario) -> None:
    unknown = one(model_alias="gone")
    down = one(model_alias="tollgate-reference-plain", drops=(("plain", DOWN),), targets=())
    placed = again([unknown, down], by_nature).placed
    assert [each.refusal for each in placed] == ["model_not_found", "no_target"]


def test_what_was_down_is_down_until_a_decision_says_otherwise(by_nature: Scenario) -> None:
    down = one(drops=(("speculative", DOWN),), targets=("plain",), attempts=[attempt(pool="plain")])
    unaware = one(model_alias="tollgate-reference-plain", targets=("plain",))
    up = one()
    placed = again([down, one(targets=(), policy=""), unaware, up], by_nature).placed
    assert [each.target for each in placed] == ["plain", "plain", "plain", "speculative"]


def test_a_failure_happens_again_at_the_same_pool(by_nature: Scenario) -> None:
    failed = attempt(state=AttemptState.FAILED, is_tenants=False, charge_usd_nanos=0)
    request = one(attempts=[failed, attempt(pool="plain", usage=TokenUsage(input=90, output=40))])
    place = again([request], by_nature).placed[0]
    assert (place.target, place.usage) == ("plain", TokenUsage(input=90, output=40))


def test_a_request_without_an_answer_has_none_again(by_nature: Scenario) -> None:
    failed = attempt(state=AttemptState.FAILED, is_tenants=False, charge_usd_nanos=0)
    assert again([one(attempts=[failed])], by_nature).placed[0].refusal == "no_answer"


def test_the_cache_answers_after_the_first_answer_and_until_its_time_is_over(by_nature: Scenario) -> None:
    times = (0, 400, 600, 3_600_499, 3_600_501)
    placed = again([cached(at_ms) for at_ms in times], by_nature).placed
    assert [each.is_hit for each in placed] == [False, False, True, True, True]
    assert [each.charge_usd_nanos for each in placed][2:] == [0, 0, 0]
    assert not again([cached(0), cached(3_600_500)], by_nature).placed[1].is_hit


@pytest.mark.parametrize(
    "asked",
    [
        {"shows": int(Shows.MAY_READ | Shows.MAY_KEEP)},
        {"shows": int(Shows.MAY_KEEP | Shows.CACHES)},
        {"temperature": 0.7},
        {"slot": None},
    ],
)
def test_what_may_not_be_answered_from_the_cache(by_nature: Scenario, asked: dict[str, object]) -> None:
    found = again([cached(0, **asked), cached(1000, **asked)], by_nature)
    assert [each.is_hit for each in found.placed] == [False, False]
    assert found.cache_unknown == (2 if asked == {"slot": None} else 0)


def test_without_a_cache_an_answer_from_it_costs_what_its_original_did(world: World) -> None:
    text = policy_text(BY_NATURE).replace("cache:\n", "cache:\n  enabled: false\n")
    policy = parse_policy(text, source="policy", pools=world.specs)
    scenario = Scenario("no cache", policy, world.specs, PriceBook(cards_of(world.specs)))
    hit = cached(1000)
    hit.cache = "hit"
    hit.attempts = [attempt(usage=TokenUsage(), charge_usd_nanos=0)]
    orphan = copy.copy(hit)
    orphan.tenant_id = "ten_2"
    first, second, third = again([cached(0), hit, orphan], scenario).placed
    assert (second.usage, second.is_imputed, second.is_hit) == (first.usage, True, False)
    assert third.refusal == "unknown_answer"


def test_answers_older_than_the_record_are_in_the_cache_when_it_begins(
    world: World, by_nature: Scenario
) -> None:
    hits = [cached(at_ms) for at_ms in (1_000, 2_000)]
    for hit in hits:
        hit.cache, hit.attempts = "hit", [attempt(usage=TokenUsage(), charge_usd_nanos=0)]
    assert [each.is_hit for each in again(hits, by_nature).placed] == [True, True]
    # The original is known: at this policy's time to live it is over by then.
    slot, minute_ms = ("ten_1", "0011"), 60_000
    donor = attempt(started_at_ms=-59 * minute_ms, usage=TokenUsage(input=9, output=3))
    known = replay(hits, by_nature, habits=Habits(hits), recorded_specs=by_nature.specs, donors={slot: donor})
    assert [each.is_hit for each in known.placed] == [True, True]
    donor = attempt(started_at_ms=-61 * minute_ms, usage=TokenUsage(input=9, output=3))
    over = replay(hits, by_nature, habits=Habits(hits), recorded_specs=by_nature.specs, donors={slot: donor})
    assert [(each.is_hit, each.usage) for each in over.placed] == [
        (False, TokenUsage(input=9, output=3)),
        (True, TokenUsage()),
    ]
    text = policy_text(BY_NATURE).replace("cache:\n", "cache:\n  enabled: false\n")
    policy = parse_policy(text, source="policy", pools=world.specs)
    bare = Scenario("no cache", policy, world.specs, PriceBook(cards_of(world.specs)))
    charged = replay(hits, bare, habits=Habits(hits), recorded_specs=world.specs, donors={slot: donor}).placed
    assert [each.charge_usd_nanos for each in charged] == [
        charge(donor.usage, bare.prices.at(0).price_of("speculative").rates)
    ] * 2
    unknown = again(hits, bare)
    assert ([each.refusal for each in unknown.placed], unknown.older_unknown) == (["unknown_answer"] * 2, 2)


def test_doubtful_tasks_become_what_the_policy_takes_them_for(by_nature: Scenario, world: World) -> None:
    doubtful = one(task=Task(TaskType.EXTRACTION, TaskSource.CLASSIFIER, 0.3))
    text = policy_text(BY_NATURE, "  classifier: {confidence_min: 0.5}\n")
    strict = Scenario(
        "strict", parse_policy(text, source="policy", pools=world.specs), world.specs, by_nature.prices
    )
    assert again([doubtful], by_nature).placed[0].target == "speculative"
    assert again([doubtful], strict).placed[0].target == "plain"  # a chat, which is creative


def lengths(pool: str, tokens: int, count: int = 25) -> list[RecordedRequest]:
    usage = TokenUsage(input=100, output=tokens)
    return [one(attempts=[attempt(pool=pool, usage=usage)]) for _ in range(count)]


@pytest.mark.parametrize(("count", "tokens", "is_unknown"), [(25, 60, False), (3, 20, True)])
def test_another_models_answers_have_that_models_length(
    by_nature: Scenario, world: World, count: int, tokens: int, *, is_unknown: bool
) -> None:
    plain = world.specs["plain"]
    other = plain.model_copy(update={"model": plain.model.model_copy(update={"path": "/another/model"})})
    specs = {**world.specs, "plain": other}
    scenario = Scenario("plain", policy_of(ALL_PLAIN), specs, by_nature.prices)
    requests = [*lengths("speculative", 20), *lengths("plain", 60, count)]
    place = replay(requests, scenario, habits=Habits(requests), recorded_specs=specs).placed[0]
    assert (place.target, place.usage.output, place.has_unknown_length) == ("plain", tokens, is_unknown)


def test_a_pool_without_a_prefix_cache_reads_everything(by_nature: Scenario, world: World) -> None:
    plain = world.specs["plain"]
    batching = plain.batching.model_copy(update={"enable_prefix_caching": False})
    specs = {**world.specs, "plain": plain.model_copy(update={"batching": batching})}
    scenario = Scenario("plain", policy_of(ALL_PLAIN), specs, by_nature.prices)
    request = one(attempts=[attempt(usage=TokenUsage(input=40, cached_input=60, output=5))])
    place = replay([request], scenario, habits=Habits([request]), recorded_specs=world.specs).placed[0]
    assert place.usage == TokenUsage(input=100, output=5)


def test_external_targets_take_what_may_leave(world: World, by_nature: Scenario) -> None:
    text = (
        policy_text(BY_NATURE)
        .replace(
            "models:\n",
            "external:\n  away: {model: openai/gpt-4o-mini, max_model_len: 9000,"
            " rates: {input: '1', cached_input: '1', output: '2'}}\nmodels:\n",
            1,
        )
        .replace(
            "    pools: [speculative, plain]\n", "    pools: [speculative, plain]\n    overflow: [away]\n", 1
        )
    )
    policy = parse_policy(text, source="policy", pools=world.specs)
    rates = {name: target.rates for name, target in policy.external.items()}
    scenario = Scenario("away", policy, world.specs, PriceBook(cards_of(world.specs, rates)))
    nobody_up = (("speculative", DOWN), ("plain", DOWN))
    usual = Asked(USUAL | int(Shows.MAY_LEAVE), 400, 1, 1, 100, None, "default", None, None)
    leaves = one(asked=usual, drops=nobody_up, targets=())
    stays = one(drops=nobody_up, targets=())
    foreign = one(
        asked=usual,
        drops=(*nobody_up, ("away", "`guided_json` means something to our own engines only")),
        targets=(),
    )
    placed = again([leaves, stays, foreign], scenario).placed
    assert placed[0].target == "away"
    assert placed[0].is_external
    assert placed[0].charge_usd_nanos == 100 * 1_000 + 50 * 2_000
    assert [each.refusal for each in placed[1:]] == ["no_target", "no_target"]


def test_an_empty_placed_says_nothing() -> None:
    assert Placed(None).charge_usd_nanos == 0


RULES = """\
rules:
  - {name: desk, when: {tenant: Desk}, use: [plain]}
  - {name: tagged, when: {tag: {batch: nightly}}, use: [plain]}
  - {name: long, when: {input_tokens: {min: 500}}, use: [plain]}
  - {name: tools, when: {tools: true}, use: [plain]}
  - {name: night, when: {time: {from_hour: 20, to_hour: 6}}, use: [plain]}
  - name: kept
    when: {task: extraction}
    cache: {temperature_max: 0.5, ttl_s: 60}
"""
NOON_MS = 12 * 3_600_000


@pytest.mark.parametrize(
    ("values", "shape", "target"),
    [
        ({}, {}, "speculative"),
        ({"tenant_id": "ten_desk"}, {}, "plain"),
        ({"tags": {"batch": "nightly"}}, {"fixed_tags": ("batch",)}, "plain"),
        ({"tags": {"batch": "nightly"}}, {}, "speculative"),  # the caller's own tag
        ({}, {"body_bytes": 4000}, "plain"),
        ({}, {"shows": USUAL | int(Shows.TOOLS)}, "plain"),
        ({"at_ms": NOON_MS + 10 * 3_600_000}, {}, "plain"),
    ],
)
def test_rules_look_at_what_was_recorded(
    world: World, by_nature: Scenario, values: dict[str, object], shape: dict[str, object], target: str
) -> None:
    policy = parse_policy(policy_text(BY_NATURE) + RULES, source="policy", pools=world.specs)
    scenario = Scenario("rules", policy, world.specs, by_nature.prices, {"ten_desk": "Desk"})
    usual = Asked(USUAL, 400, 1, 1, 100, None, "default", None, None)
    request = one(**{"at_ms": NOON_MS, "asked": msgspec.structs.replace(usual, **shape), **values})
    assert again([request], scenario).placed[0].target == target


def test_a_rules_own_cache_holds_for_its_calls(world: World, by_nature: Scenario) -> None:
    policy = parse_policy(policy_text(BY_NATURE) + RULES, source="policy", pools=world.specs)
    scenario = Scenario("rules", policy, world.specs, by_nature.prices)
    times = (0, 30_000, 90_000)
    requests = [cached(NOON_MS + at_ms, temperature=0.4) for at_ms in times]
    assert [each.is_hit for each in again(requests, scenario).placed] == [False, True, False]
    assert not any(each.is_hit for each in again(requests, by_nature).placed)
