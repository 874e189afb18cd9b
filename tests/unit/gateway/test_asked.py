"""Does a receipt hold what a replay needs, and nothing that anybody wrote?"""

from __future__ import annotations

import msgspec
import pytest

from gateway.asked import asked_text
from gateway.cache.lookup import Slot
from gateway.identity.auth import Caller
from gateway.inference import CacheWish, CallFacts
from gateway.routing.receipts import Asked, Shows
from tests.support.factories import make_call

CALLER = Caller("key_1", "ten_1", "acme", "prj_1", "default", "00", b"secret")
USUAL = Shows.MAY_READ | Shows.MAY_KEEP | Shows.CACHES


def asked(call_values: dict[str, object], caller: Caller = CALLER, slot: Slot | None = None) -> Asked:
    return msgspec.json.decode(asked_text(make_call(**call_values), caller, slot), type=Asked)


def test_a_usual_call() -> None:
    found = asked({"body_bytes": 321, "max_tokens": 7, "choices": 2, "prompts": 3})
    assert found == Asked(int(USUAL), 321, 3, 2, 7, None, "default", None, None, ())


@pytest.mark.parametrize(
    ("facts", "shows"),
    [
        (CallFacts(has_media=True), Shows.MEDIA),
        (CallFacts(needs_full_sampling=True), Shows.FULL_SAMPLING),
        (CallFacts(has_schema=True), Shows.SCHEMA),
        (CallFacts(has_json_mode=True), Shows.JSON_MODE),
        (CallFacts(has_tools=True), Shows.TOOLS),
        (CallFacts(has_prediction=True), Shows.PREDICTION),
    ],
)
def test_what_a_call_shows(facts: CallFacts, shows: Shows) -> None:
    assert asked({"facts": facts}).shows == USUAL | shows


def test_no_word_of_it_is_kept() -> None:
    facts = CallFacts(instruction="my secret plan", system="be kind", previous="before")
    text = asked_text(make_call(facts=facts, tags={"team": "search"}), CALLER, None)
    for word in (b"secret", b"kind", b"before", b"search"):
        assert word not in text


def test_what_its_tenant_and_its_caller_want() -> None:
    caller = Caller(
        "key_1",
        "ten_1",
        "acme",
        "prj_1",
        "default",
        "00",
        b"secret",
        is_internal_only=False,
        caches_answers=False,
        class_unasked="flex",
        fixed_tags=(("cost_center", "4711"),),
    )
    found = asked({"cache_wish": CacheWish(may_read=False, may_keep=True, ttl_s=60)}, caller)
    assert found.shows == Shows.MAY_LEAVE | Shows.MAY_KEEP
    assert (found.latency_class, found.ttl_s, found.fixed_tags) == ("flex", 60, ("cost_center",))


def test_equal_slots_are_seen_to_be_equal_and_not_told() -> None:
    key = bytes(range(64))
    found = asked({}, slot=Slot(key, may_read=True, may_keep=True, ttl_s=1))
    assert found.slot == key[:8].hex()
