"""Does the ledger get each value under its own name? Records are made by position."""

from __future__ import annotations

import msgspec

from gateway.asked import asked_text
from gateway.attempt_log import start_of
from gateway.cache.lookup import CacheStatus, Slot
from gateway.course import Course
from gateway.economist import Forecasts
from gateway.identity.auth import Caller
from gateway.inference import Endpoint
from gateway.ledger.buckets import Bucket
from gateway.ledger.budgets import Holds, Reservation
from gateway.money import UsdNanos
from gateway.plan import Plan
from gateway.pricing.book import Prices
from tests.support.factories import (
    make_call,
    make_decision,
    make_outlook,
    make_prediction,
    make_price,
    make_target,
    make_task,
)

CALLER = Caller(
    key_id="key_1",
    tenant_id="ten_1",
    tenant_name="acme",
    project_id="prj_1",
    project_name="search",
    cache_salt="5a17",
    end_user_secret=b"secret",
    fixed_tags=(("cost_center", "4711"),),
)
REQUEST_ID = "req_0123456789ab0123456789abcdef01234567"


def make_plan() -> Plan:
    call = make_call(
        fields={"prompt": msgspec.Raw(b'"%s"' % (b"x" * 100))},
        client_request_id="theirs",
        end_user="bob",
        endpoint=Endpoint.COMPLETIONS,
        is_streaming=True,
        max_tokens=5,
        service_tier="flex",
        tags={"feature": "search", "cost_center": "mine"},
    )
    prices = Prices({"plain": make_price()})
    course = Course(make_decision(), prices, task=make_task(), baseline=None)
    slot = Slot(b"key", may_read=True, may_keep=True, ttl_s=60)
    forecasts = Forecasts((make_outlook(),), [make_prediction(modelled_ttft_s=0.5, modelled_step_s=0.25)])
    bounds = course.bounds(call)
    return Plan(call, CALLER, REQUEST_ID, make_task(), course, prices, bounds, slot, forecasts=forecasts)


def test_every_field_of_a_start_has_its_own_value() -> None:
    plan, bucket = make_plan(), Bucket("bud_1", 0)
    assert plan.forecasts is not None
    reservation = Reservation(Holds(), UsdNanos(777), counted=(bucket,))
    start, price = start_of(plan, make_target(), "plain-0", number=1, reservation=reservation, now_ms=1_234)
    assert price == make_price()
    assert {name: getattr(start, name) for name in start.__struct_fields__} == {
        "attempt_id": "att_0123456789ab0123456789abcdef01234567",
        "request_id": REQUEST_ID,
        "attempt_number": 1,
        "tenant_id": "ten_1",
        "project_id": "prj_1",
        "key_id": "key_1",
        "end_user": CALLER.end_user_hash("bob"),
        "client_request_id": "theirs",
        "endpoint": "completions",
        "model_alias": "auto",
        "is_streaming": True,
        "pool": "plain",
        "replica": "plain-0",
        "task": "extraction",
        "task_source": "declared",
        "nature": "predictable",
        "policy_version": "test@0",
        "price_version": "plain@0",
        "service_tier": "flex",
        "tags": {"feature": "search", "cost_center": "4711"},
        "hold_usd_nanos": 777,
        "estimated_input_tokens": 25,
        "estimated_charge_usd_nanos": 2_500,
        "started_at_ms": 1_234,
        "cache": CacheStatus.MISS,
        "buckets": (bucket,),
        "receipt": plan.course.receipt(
            plan.call,
            plan.bounds,
            plan.forecasts.texts(1),
            asked=asked_text(plan.call, plan.caller, plan.slot),
        ),
        "modelled_ttft_ms": 500.0,
        "modelled_step_ms": 250.0,
    }
    elsewhere, _ = start_of(
        plan, make_target(pool="x"), "x-0", number=2, reservation=reservation, now_ms=1_234
    )
    assert (elsewhere.modelled_ttft_ms, elsewhere.modelled_step_ms) == (None, None)


def test_a_further_attempt_has_an_id_of_its_own_and_no_receipt() -> None:
    plan = make_plan()
    first, _ = start_of(plan, make_target(), "plain-0", number=1, reservation=None, now_ms=1_234)
    second, _ = start_of(plan, make_target(), "plain-1", number=2, reservation=None, now_ms=1_235)
    third, _ = start_of(plan, make_target(), "plain-0", number=3, reservation=None, now_ms=1_235)
    assert len({start.attempt_id for start in (first, second, third)}) == 3
    assert (bytes(second.receipt), second.hold_usd_nanos, second.buckets) == (b"null", 0, ())
