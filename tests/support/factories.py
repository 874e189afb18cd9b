"""The nouns of the gateway with sensible values; a test says only what matters to it.

Each factory takes the fields that shall differ by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from decimal import Decimal
from typing import Any

import msgspec

from backends.pool import (
    HardwareSpec,
    PoolSnapshot,
    PoolSpec,
    RateCard,
    ReplicaSnapshot,
    ReplicaState,
)
from backends.pool_sections import BatchingSpec, ModelSpec, SpeculationSpec
from gateway.audit import Act, Actor, ActorKind, Source
from gateway.clock import Clock
from gateway.identity.credentials import hash_of
from gateway.identity.key_store import KeyRecord
from gateway.identity.roles import Role
from gateway.inference import (
    AttemptState,
    Call,
    CallFacts,
    Endpoint,
    Nature,
    Payer,
    RouteDecision,
    Target,
    Task,
    TaskSource,
    TaskType,
    UsageSource,
)
from gateway.ledger.budgets import Holds, Reservation
from gateway.ledger.records import AttemptEnd, AttemptStart
from gateway.money import UsdNanos
from gateway.pricing.rates import Price, Rates
from gateway.routing.economics import Outlook, Prediction, predict
from gateway.routing.policy import Policy, parse_policy

POLICY_TEXT = """\
name: test
models:
  auto: {pools: [speculative, plain], description: Either}
  fast: {pools: [speculative]}
  careful: {pools: [plain]}
routes:
  predictable: [speculative, plain]
  creative: [plain, speculative]
max_tokens_default: 256
"""
OVERFLOW_TEXT = """\
name: test
models:
  auto: {pools: [speculative, plain], overflow: [outside, compatible]}
  fast: {pools: [speculative], overflow: [outside]}
  careful: {pools: [plain]}
external:
  outside:
    model: openai/gpt-4o-mini
    api_key: OpenAI
    max_model_len: 128000
    rates: {input: "0.15", cached_input: "0.075", output: "0.60"}
  compatible:
    model: org/m
    api_base: https://models.example.com/v1/
    max_model_len: 32000
    rates: {input: "0.2", cached_input: "0.2", output: "0.9", reasoning: "1.1"}
routes:
  predictable: [speculative, plain]
  creative: [plain, speculative]
max_tokens_default: 256
"""
"""The same pools, and two external targets."""
POOLS = ("plain", "speculative")

_CALL = Call(
    endpoint=Endpoint.CHAT_COMPLETIONS,
    model_alias="auto",
    fields={},
    is_streaming=False,
    wants_usage=False,
    wants_continuous_usage=False,
    max_tokens=None,
    choices=1,
    facts=CallFacts(),
    declared_task=None,
    tags={},
    end_user=None,
    service_tier=None,
    affinity_key=None,
    dropped=(),
    client_request_id=None,
    body_bytes=100,
)
_TASK = Task(type=TaskType.EXTRACTION, source=TaskSource.DECLARED, confidence=1.0)
_TARGET = Target(pool="plain", upstream_model="tollgate-reference", max_model_len=1024)
_DECISION = RouteDecision(
    targets=(_TARGET,),
    nature=Nature.PREDICTABLE,
    reason="extraction is predictable: plain",
    drops=(),
    policy_version="test@0",
    max_tokens_default=256,
)
_START = AttemptStart(
    attempt_id="att_1",
    request_id="req_1",
    attempt_number=1,
    tenant_id="ten_1",
    project_id="prj_1",
    key_id="key1",
    end_user=None,
    client_request_id=None,
    endpoint="chat/completions",
    model_alias="auto",
    is_streaming=False,
    pool="plain",
    replica="plain-0",
    task="extraction",
    task_source="declared",
    nature="predictable",
    policy_version="test@0",
    price_version="plain@0",
    service_tier=None,
    tags={},
    hold_usd_nanos=1_000,
    estimated_input_tokens=25,
    estimated_charge_usd_nanos=3,
    started_at_ms=1_700_000_000_000,
)
_END = AttemptEnd(
    attempt_id="att_1",
    state=AttemptState.ANSWERED,
    payer=Payer.TENANT,
    usage_source=UsageSource.MEASURED,
    input_tokens=10,
    output_tokens=5,
    charge_usd_nanos=4,
    ended_at_ms=1_700_000_001_000,
)
KEY = "tg-abcdefghij-" + "0" * 32
_KEY_RECORD = KeyRecord(
    id="abcdefghij",
    secret_hash=hash_of(KEY),
    name="laptop",
    tenant_id="ten_1",
    tenant_name="acme",
    project_id="prj_1",
    project_name="search",
    created_at_ms=1_700_000_000_000,
    revoked_at_ms=None,
)


def make_call(**changes: Any) -> Call:
    """A plain chat call for `auto`; `facts` may be given as a dictionary."""
    facts = changes.get("facts")
    if isinstance(facts, dict):
        changes["facts"] = CallFacts(**facts)
    return msgspec.structs.replace(_CALL, **{"fields": {}, "tags": {}, **changes})


def make_task(task: TaskType = TaskType.EXTRACTION) -> Task:
    """A declared task."""
    return msgspec.structs.replace(_TASK, type=task)


def make_target(**changes: Any) -> Target:
    """The plain pool."""
    return msgspec.structs.replace(_TARGET, **changes)


def make_decision(**changes: Any) -> RouteDecision:
    """One target, the plain pool."""
    return msgspec.structs.replace(_DECISION, **changes)


def make_outlook(pool: str = "plain", **changes: Any) -> Outlook:
    """A known pool: steps of 10 ms and 0.2 ms for each request, one token a step, a dollar a second."""
    usual = Outlook(
        pool=pool,
        fixed_s=0.010,
        sequence_s=0.0002,
        prompt_token_s=0.0001,
        request_s=0.002,
        ttft_factor=1.0,
        step_factor=1.0,
        seats=32,
        chunk_tokens=2048,
        tokens_per_step=1.0,
        output_tokens=100,
        fresh_ratio=1.0,
        usd_nanos_per_s=1e9,
        usd_nanos_per_hour=3_600 * 10**9,
        deviation=0.02,
        step_tail=1.2,
        ttft_tail=1.5,
        is_known=True,
        is_speculative=False,
        is_sticky=True,
    )
    return msgspec.structs.replace(usual, **changes)


def make_prediction(**changes: Any) -> Prediction:
    """Of a call alone on such a pool."""
    usual = predict(make_outlook(), 0, 1, input_tokens=25, output_tokens=100)
    return msgspec.structs.replace(usual, **changes)


def make_policy(text: str = POLICY_TEXT, pools: Collection[str] = POOLS) -> Policy:
    """Two pools, three aliases."""
    return parse_policy(text, source="test.yaml", pools=pools)


def make_pool_spec(name: str = "plain", **changes: Any) -> PoolSpec:
    """A pool of somebody else's servers; one called `speculative` speculates."""
    speculation = SpeculationSpec(method="ngram", num_speculative_tokens=4) if name == "speculative" else None
    return PoolSpec(
        **{
            "name": name,
            "driver": "external",
            "urls": ("http://127.0.0.1:1",),
            "model": ModelSpec(served_name="tollgate-reference", max_model_len=1024),
            "speculation": speculation,
            "batching": BatchingSpec(max_num_seqs=8, max_num_batched_tokens=1024),
            "hardware": HardwareSpec(gpu="cpu", usd_per_hour=Decimal("0.12")),
            "rates": RateCard(input=Decimal("0.10"), cached_input=Decimal("0.01"), output=Decimal("0.60")),
            **changes,
        }
    )


def make_pool(name: str = "plain", *, ready: int = 1, down: int = 0, **changes: Any) -> PoolSnapshot:
    """A pool with so many replicas that are up and that are not."""
    states = [ReplicaState.READY] * ready + [ReplicaState.UNHEALTHY] * down
    replicas = tuple(
        ReplicaSnapshot(
            pool=name,
            replica=f"{name}-{number}",
            url="http://127.0.0.1:1",
            state=state,
            in_flight=0,
            load=None,
            consecutive_failures=0,
        )
        for number, state in enumerate(states)
    )
    return PoolSnapshot(spec=make_pool_spec(name, **changes), replicas=replicas)


def make_rates(**changes: Any) -> Rates:
    """0.10 USD per million input tokens, a tenth of that cached, 0.60 generated."""
    usual = Rates(
        input=100_000_000, cached_input=10_000_000, cache_write=0, output=600_000_000, reasoning=600_000_000
    )
    return dataclasses.replace(usual, **changes)


def make_price(version: str = "plain@0", **changes: Any) -> Price:
    """The usual rates."""
    return Price(version=version, rates=make_rates(**changes))


def make_start(attempt_id: str = "att_1", **changes: Any) -> AttemptStart:
    """An attempt that begins."""
    return msgspec.structs.replace(_START, attempt_id=attempt_id, **changes)


def make_end(attempt_id: str = "att_1", **changes: Any) -> AttemptEnd:
    """An attempt that was answered."""
    return msgspec.structs.replace(_END, attempt_id=attempt_id, **changes)


def make_reservation(bound: int = 1_000) -> Reservation:
    """A hold of a caller without budgets."""
    return Reservation(Holds(), UsdNanos(bound))


def make_act(clock: Clock | None = None, **changes: Any) -> Act:
    """A change by somebody at a terminal; now, or when the clock says."""
    actor = Actor(kind=ActorKind.CLI, id="cli:tester", name="tester", role=Role.ADMIN)
    act = Act(actor=actor, source=Source.CLI, at_ms=(clock or Clock()).epoch_ms())
    return dataclasses.replace(act, **changes)


def make_key_record(key: str = KEY, **changes: Any) -> KeyRecord:
    """A valid key of the tenant `acme`."""
    return dataclasses.replace(_KEY_RECORD, secret_hash=hash_of(key), **changes)
