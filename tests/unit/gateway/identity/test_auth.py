"""Is a caller known by their key, and nobody else?"""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import AuthenticationFailed, Overloaded, PermissionDenied
from gateway.identity.auth import KEY_CHARS_MAX, Caller, KeyRing, admit
from gateway.identity.credentials import hash_of
from tests.support.clock import MovableClock
from tests.support.factories import KEY, make_call, make_key_record

ROOT = b"r" * 64
OTHER = "tg-klmnopqrst-" + "1" * 32
REVOKED_AT_MS = 1_795_000_000_000


def ring(*records: object, root: bytes = ROOT, clock: MovableClock | None = None) -> KeyRing:
    keys = KeyRing(root, clock or MovableClock(), stale_max_s=900)
    keys.replace(records or [make_key_record()])  # type: ignore[arg-type]  # records of either kind
    return keys


def refusal(keys: KeyRing, **headers: str) -> str:
    with pytest.raises(AuthenticationFailed) as caught:
        keys.authenticate({name.replace("_", "-"): value for name, value in headers.items()})
    return caught.value.caller_detail


def caller_of(keys: KeyRing, key: str = KEY) -> Caller:
    return keys.authenticate({"x-api-key": key})


# ------------------------------------------------------------------------------------------- known callers
@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {KEY}"},
        {"authorization": f"BEARER  {KEY} "},
        {"x-api-key": KEY},
        {"x-api-key": f" {KEY} "},
        {"authorization": f"Bearer {KEY}", "x-api-key": "something else"},
    ],
)
def test_a_key_is_found_in_either_header(headers: dict[str, str]) -> None:
    caller = ring().authenticate(headers)
    assert (caller.key_id, caller.tenant_id, caller.tenant_name) == ("abcdefghij", "ten_1", "acme")
    assert (caller.project_id, caller.project_name) == ("prj_1", "search")


def test_each_key_is_its_own_caller() -> None:
    keys = ring(make_key_record(), make_key_record(OTHER, id="klmnopqrst", tenant_id="ten_2"))
    assert caller_of(keys).tenant_id == "ten_1"
    assert caller_of(keys, OTHER).tenant_id == "ten_2"


def test_what_the_database_says_now_replaces_what_it_said() -> None:
    keys = ring()
    keys.replace([make_key_record(OTHER)])
    assert caller_of(keys, OTHER).key_id == "abcdefghij"
    assert "not known" in refusal(keys, x_api_key=KEY)


# ------------------------------------------------------------------------------------------------ refusals
def test_without_a_key_one_is_asked_for() -> None:
    expected = "No API key: send it in the header 'Authorization: Bearer tg-…'."
    assert refusal(ring()) == refusal(ring(), x_api_key="") == expected


@pytest.mark.parametrize("value", ["", "Basic dXNlcjpwYXNz", "Bearer", "Bearer ", KEY, f"Token {KEY}"])
def test_another_form_of_authorization_is_explained(value: str) -> None:
    assert "must read 'Bearer <API key>'" in refusal(ring(), authorization=value)


@pytest.mark.parametrize("key", ["tg-unknown", KEY[:-1], KEY + "0", KEY.upper(), "\xe9", "   "])
def test_an_unknown_key_is_refused(key: str) -> None:
    expected = "This API key is not known. Check that it was copied whole, or ask an administrator for one."
    assert refusal(ring(), authorization=f"Bearer {key}") == expected


def test_an_unknown_key_is_never_repeated() -> None:
    assert "tg-unknown" not in refusal(ring(), x_api_key="tg-unknown")


def test_a_revoked_key_is_told_when() -> None:
    keys = ring(make_key_record(revoked_at_ms=REVOKED_AT_MS))
    assert refusal(keys, x_api_key=KEY) == (
        "The API key tg-abcdefghij-… was revoked on 2026-11-18 11:06 UTC. Ask an administrator for a new one."
    )


def test_a_key_longer_than_any_is_not_even_hashed() -> None:
    assert (
        refusal(ring(), x_api_key="k" * (KEY_CHARS_MAX + 1)) == "This API key is too long to be one of ours."
    )
    assert "not known" in refusal(ring(), x_api_key="k" * KEY_CHARS_MAX)


def test_only_a_hash_of_a_key_is_kept() -> None:
    assert make_key_record().secret_hash == hash_of(KEY)
    assert KEY not in repr(vars(ring()))


# ------------------------------------------------------------------------------------- ended and retired
def test_a_key_ends_at_its_instant_however_old_the_news() -> None:
    clock = MovableClock()
    keys = ring(make_key_record(expires_at_ms=clock.epoch_ms() + 60_000), clock=clock)
    clock.move(59.999)
    assert caller_of(keys).key_id == "abcdefghij"
    clock.move(0.001)
    expected = (
        "The API key tg-abcdefghij-… expired on 2026-11-20 12:01 UTC. Ask an administrator for a new one."
    )
    assert refusal(keys, x_api_key=KEY) == expected


def test_a_replaced_key_names_its_successor() -> None:
    clock = MovableClock()
    record = make_key_record(expires_at_ms=clock.epoch_ms(), rotated_to="klmnopqrst")
    assert refusal(ring(record, clock=clock), x_api_key=KEY) == (
        "The API key tg-abcdefghij-… was replaced by tg-klmnopqrst-… and ended on 2026-11-20 12:00 UTC."
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tenant_retired_at_ms": REVOKED_AT_MS}, "The tenant 'acme' of the API key tg-abcdefghij-… was"),
        ({"project_retired_at_ms": REVOKED_AT_MS}, "The project 'search' of the API key tg-abcdefghij-… was"),
        (
            {"tenant_retired_at_ms": 1, "revoked_at_ms": REVOKED_AT_MS},
            "The API key tg-abcdefghij-… was revoked",
        ),
    ],
)
def test_a_key_of_somebody_retired_is_told_so(changes: dict[str, Any], said: str) -> None:
    clock = MovableClock()
    keys = ring(make_key_record(**changes), clock=clock)
    clock.move(5_000)  # stays so, however old that news is
    assert refusal(keys, x_api_key=KEY).startswith(said)
    assert "on 2026-11-18 11:06 UTC" in refusal(keys, x_api_key=KEY)


def test_an_administrators_key_is_told_where_it_belongs() -> None:
    assert "for /admin/v1 and the console" in refusal(ring(), x_api_key="tga-abcdefghij-" + "0" * 32)


# --------------------------------------------------------------------------------------- what a key allows
def test_a_key_without_limits_may_ask_for_everything() -> None:
    caller = caller_of(ring())
    assert admit(caller, make_call(model_alias="whatever")) == "default"
    assert [admit(caller, make_call(service_tier=tier)) for tier in ("auto", "flex")] == ["default", "flex"]


@pytest.mark.parametrize(
    ("allowed", "asked", "found"),
    [
        (("flex", "default"), None, "default"),
        (("flex", "default"), "auto", "default"),
        (("priority", "flex"), None, "priority"),
        (("flex",), "auto", "flex"),
        (("flex",), "flex", "flex"),
    ],
)
def test_a_call_that_asks_for_no_class_gets_one_that_is_allowed(
    allowed: tuple[str, ...], asked: str | None, found: str
) -> None:
    caller = caller_of(ring(make_key_record(allowed_classes=allowed)))
    assert admit(caller, make_call(service_tier=asked)) == found


def test_what_a_key_does_not_allow_is_denied_with_what_it_does() -> None:
    limited = make_key_record(allowed_models=("slow", "fast"), allowed_classes=("flex", "default"))
    caller = caller_of(ring(limited))
    assert admit(caller, make_call(model_alias="fast")) == "default"
    with pytest.raises(PermissionDenied, match=r"'auto'\. It may use: fast, slow\.") as caught:
        admit(caller, make_call(model_alias="auto"))
    assert caught.value.param == "model"
    with pytest.raises(PermissionDenied, match=r"'priority'\. It may use: default, flex\.") as caught:
        admit(caller, make_call(model_alias="fast", service_tier="priority"))
    assert caught.value.param == "service_tier"


# ----------------------------------------------------------------------------------------------- freshness
def test_known_keys_stay_valid_while_the_database_is_away_and_no_longer() -> None:
    clock = MovableClock()
    keys = ring(clock=clock)
    clock.move(900)
    assert caller_of(keys).key_id == "abcdefghij"
    clock.move(0.5)
    with pytest.raises(Overloaded, match=r"900\.5 s ago") as caught:
        caller_of(keys)
    assert caught.value.retry_after_s == 5


def test_a_confirmation_makes_old_keys_fresh() -> None:
    clock = MovableClock()
    keys = ring(clock=clock)
    clock.move(5_000)
    keys.confirm()
    assert keys.age_s == 0
    assert caller_of(keys).key_id == "abcdefghij"


def test_a_key_that_old_news_does_not_know_may_be_a_new_one() -> None:
    clock = MovableClock()
    keys = ring(clock=clock)
    clock.move(901)
    with pytest.raises(Overloaded):
        caller_of(keys, OTHER)


def test_before_the_first_keys_are_loaded_nobody_is_called_unknown() -> None:
    keys = KeyRing(ROOT, MovableClock(), stale_max_s=900)
    assert keys.age_s is None
    with pytest.raises(Overloaded):
        caller_of(keys)


def test_a_revoked_key_stays_revoked_however_old_the_news() -> None:
    clock = MovableClock()
    keys = ring(make_key_record(revoked_at_ms=REVOKED_AT_MS), clock=clock)
    clock.move(5_000)
    assert "was revoked" in refusal(keys, x_api_key=KEY)


# ----------------------------------------------------------------------------------------- derived secrets
def test_tenants_have_caches_of_their_own() -> None:
    keys = ring(make_key_record(), make_key_record(OTHER, tenant_id="ten_2"))
    first, second = caller_of(keys).cache_salt, caller_of(keys, OTHER).cache_salt
    assert first != second
    assert len(first) == len(second) == 64


def test_the_keys_of_a_tenant_share_its_cache() -> None:
    keys = ring(make_key_record(), make_key_record(OTHER, id="klmnopqrst", project_id="prj_2"))
    assert caller_of(keys).cache_salt == caller_of(keys, OTHER).cache_salt


def test_a_cache_salt_is_the_same_in_every_process_and_under_another_root_another() -> None:
    assert caller_of(ring()).cache_salt == caller_of(ring()).cache_salt
    assert caller_of(ring()).cache_salt != caller_of(ring(root=b"s" * 64)).cache_salt


def test_end_users_are_stored_as_hashes_that_only_their_tenant_can_make() -> None:
    keys = ring(make_key_record(), make_key_record(OTHER, tenant_id="ten_2"))
    hashed = caller_of(keys).end_user_hash("ada@example.org")
    assert hashed is not None
    assert len(hashed) == 32
    assert "ada" not in hashed
    assert hashed == caller_of(keys).end_user_hash("ada@example.org")
    assert hashed != caller_of(keys, OTHER).end_user_hash("ada@example.org")
    assert hashed != caller_of(keys).end_user_hash("bob@example.org")


def test_without_an_end_user_there_is_no_hash() -> None:
    assert caller_of(ring()).end_user_hash(None) is None
