"""Does the same unit follow the same version everywhere, and as many as wanted the candidate?"""

import msgspec

from gateway.routing.split import Split, Stickiness, Unit
from tests.support.factories import make_call

EVERYBODY = Split(1, 0.2, Stickiness.REQUEST, frozenset(), frozenset())


def unit(
    split: Split, number: int, *, tenant: str = "acme", key: str = "key_1", text: str = "Hm"
) -> Unit | None:
    messages = msgspec.json.encode([{"role": "user", "content": text}])
    call = make_call(fields={"messages": msgspec.Raw(messages)})
    return split.unit_of(call, tenant=tenant, key_id=key, request_id=f"req_{number}")


def test_as_many_units_as_wanted_follow_the_candidate() -> None:
    units = [unit(EVERYBODY, number) for number in range(5000)]
    share = sum(EVERYBODY.is_candidates(each) for each in units if each is not None) / len(units)
    assert 0.18 < share < 0.22


def test_what_a_unit_is() -> None:
    key = Split(1, 0.2, Stickiness.KEY, frozenset(), frozenset())
    assert unit(key, 1) == unit(key, 2, text="Another") != unit(key, 1, key="key_2")
    conversation = Split(1, 0.2, Stickiness.CONVERSATION, frozenset(), frozenset())
    assert unit(conversation, 1) == unit(conversation, 2) != unit(conversation, 1, text="Another")
    assert unit(conversation, 1) != unit(conversation, 1, tenant="other")
    assert unit(EVERYBODY, 1) != unit(EVERYBODY, 2)
    again = Split(2, 0.2, Stickiness.KEY, frozenset(), frozenset())
    assert unit(key, 1) != unit(again, 1), "another canary divides differently"


def test_a_canary_of_some() -> None:
    acme = Split(1, 0.2, Stickiness.KEY, frozenset({"acme"}), frozenset())
    assert unit(acme, 1) is not None
    assert unit(acme, 1, tenant="other") is None
    alias = Split(1, 0.2, Stickiness.KEY, frozenset(), frozenset({"none-such"}))
    assert unit(alias, 1) is None
