"""The nouns of one inference call: what was asked, of whom, and what it used.

Frozen values without behaviour; every room speaks in them. A request's body is kept as the client's own
bytes per top-level field (`msgspec.Raw`), so that what we do not decide on reaches the engine unchanged.
They are `msgspec.Struct`s because every request makes a dozen: a frozen dataclass of 20 fields takes 3 µs to
make, a struct 0.5.
"""

from __future__ import annotations

import os
from enum import StrEnum

import msgspec

TAGS_MAX = 16
TAG_NAME_CHARS = 64
TAG_VALUE_CHARS = 512
"""Bounds on cost tags: what OpenAI documents for `metadata`."""


class Endpoint(StrEnum):
    """The path below /v1, the same at the gateway and at vLLM."""

    CHAT_COMPLETIONS = "chat/completions"
    COMPLETIONS = "completions"


class Nature(StrEnum):
    """Does the output follow a pattern that a draft can guess?"""

    PREDICTABLE = "predictable"
    CREATIVE = "creative"


class TaskType(StrEnum):
    """Class of work."""

    EXTRACTION = "extraction"
    CLASSIFICATION = "classification"
    STRUCTURED = "structured"
    CODE = "code"
    SUMMARIZATION = "summarization"
    TRANSLATION = "translation"
    REWRITING = "rewriting"
    QA = "qa"
    MATH = "math"
    CREATIVE = "creative"
    BRAINSTORMING = "brainstorming"
    CHAT = "chat"


CREATIVE_TASKS = frozenset({TaskType.CREATIVE, TaskType.BRAINSTORMING, TaskType.CHAT})
"""Their usual nature is creative, that of all others predictable; a policy may say otherwise."""


class TaskSource(StrEnum):
    """Who said which task it is; earlier beats later."""

    DECLARED = "declared"
    SIGNAL = "signal"
    CLASSIFIER = "classifier"
    DEFAULT = "default"


class Task(msgspec.Struct, frozen=True):
    """The task of one call, and how sure we are."""

    type: TaskType
    source: TaskSource
    confidence: float
    """0 to 1; 1 when declared."""


class CallFacts(msgspec.Struct, frozen=True):
    """What the request shows about its task and about which engines can serve it."""

    instruction: str = ""
    """The last user turn, or the prompt; at most a few thousand characters."""
    system: str = ""
    has_schema: bool = False
    """A JSON schema, a grammar, a regex or a choice constrains the output."""
    has_json_mode: bool = False
    has_tools: bool = False
    has_prediction: bool = False
    has_media: bool = False
    """Images, sound or files: their tokens are not bounded by the request's bytes."""
    temperature: float | None = None
    needs_full_sampling: bool = False
    """`min_p` or `logit_bias`: speculative engines refuse them (vLLM 0.32, sampling_params.py)."""
    previous: str = ""
    """The user turn before the last; empty on the first."""


class CacheWish(msgspec.Struct, frozen=True):
    """What a caller wants of the cache."""

    may_read: bool
    """An answer that was given before will do."""
    may_keep: bool
    ttl_s: int | None
    """How long it may be kept; None leaves that to the policy."""


class CacheRule(msgspec.Struct, frozen=True):
    """Which requests a policy lets be answered from the cache."""

    is_enabled: bool
    temperature_max: float
    ttl_s: int


class Call(msgspec.Struct, frozen=True):
    """One request of a client, checked and ready to be routed."""

    endpoint: Endpoint
    model_alias: str
    fields: dict[str, msgspec.Raw]
    """The body for the engine by top-level field, without what only the gateway reads."""
    is_streaming: bool
    wants_usage: bool
    """A streaming client asked for the usage chunk."""
    wants_continuous_usage: bool
    max_tokens: int | None
    """As the client said; None: the policy's default is used."""
    choices: int
    """Answers that the request asks for: `n` times the number of prompts."""
    facts: CallFacts
    declared_task: TaskType | None
    tags: dict[str, str]
    end_user: str | None
    service_tier: str | None
    affinity_key: str | None
    dropped: tuple[str, ...]
    """Fields and headers that tenants may not set and that were removed."""
    client_request_id: str | None
    body_bytes: int
    prompts: int = 1
    """Prompts of a completions request; a chat is one."""
    cache_wish: CacheWish | None = None
    """None: the caller said nothing about it."""


class TokenUsage(msgspec.Struct, frozen=True):
    """Tokens by meter. The five meters are disjoint: each token is in exactly one."""

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        """All tokens."""
        return self.input + self.cached_input + self.cache_write + self.output + self.reasoning


class UsageSource(StrEnum):
    """Where an attempt's token counts come from."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    NONE = "none"
    """The attempt never reached an engine."""


class AttemptState(StrEnum):
    """How one try at one target ended."""

    ANSWERED = "answered"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """The client left."""
    INTERRUPTED = "interrupted"
    """The engine died after the first content, or the gateway itself did."""


class Payer(StrEnum):
    """Whose account an attempt goes to (decision 2.3)."""

    TENANT = "tenant"
    PLATFORM = "platform"


class Target(msgspec.Struct, frozen=True):
    """A pool, or a model outside the company, that can serve a call."""

    pool: str
    """Its name; one name space for pools and external targets."""
    upstream_model: str
    """The name that the engine answers to."""
    max_model_len: int
    is_external: bool = False
    withheld: tuple[str, ...] = ()
    """Fields of the call that are not sent there, though the caller may set them."""
    priority: int | None = None
    """In the engine's queue, lower is earlier; None: it has no such queue."""


class Drop(msgspec.Struct, frozen=True):
    """A target that was taken out, and why."""

    pool: str
    reason: str


class RouteTerms(msgspec.Struct, frozen=True):
    """What the rule of a call says beside the targets; None: as for every call."""

    rule: str | None = None
    """Its name; None: no rule is the call's."""
    branch: str = ""
    """`canary`, `budget_low`; empty: the rule's main part."""
    objective: str | None = None
    """`cost` or `latency`: measurements decide by it; `order`: they decide nothing."""
    ttft_p95_s: float | None = None
    tpot_p95_s: float | None = None
    cache: CacheRule | None = None
    attempts_max: int | None = None
    hedging: bool | None = None
    budget_low: str | None = None
    """What is done because a budget runs low: `cheaper` or `alert`."""


NO_TERMS = RouteTerms()


class RouteDecision(msgspec.Struct, frozen=True):
    """Where a call goes, in which order, and why."""

    targets: tuple[Target, ...]
    nature: Nature
    reason: str
    drops: tuple[Drop, ...]
    policy_version: str
    max_tokens_default: int
    """Put into a request that states no limit."""
    terms: RouteTerms = NO_TERMS


class AttemptTiming(msgspec.Struct, frozen=True):
    """Durations of one attempt in milliseconds; None where it did not get that far."""

    ttft_ms: int | None = None
    total_ms: int | None = None


class EngineMetrics(msgspec.Struct, frozen=True):
    """vLLM's own per-request figures (`metrics` of its answer, 0.32); None where it did not say."""

    queue_ms: float | None = None
    generation_ms: float | None = None
    draft_steps: int | None = None
    draft_tokens: int | None = None
    accepted_tokens: int | None = None


class Completion(msgspec.Struct, frozen=True):
    """A whole answer as the client shall see it, and what it used."""

    body: bytes
    usage: TokenUsage | None
    """None: the engine did not say."""
    usage_source: UsageSource
    engine: EngineMetrics = EngineMetrics()


class _Randomness:
    """Random hex digits for ids, fetched for many ids at once: the system call costs more than the id."""

    __slots__ = ("_digits", "_position")

    def __init__(self) -> None:
        self._digits = ""
        self._position = 0

    def forget(self) -> None:
        """Hand out nothing of what was fetched."""
        self._digits = ""
        self._position = 0

    def take(self) -> str:
        """The next 20 digits."""
        start = self._position
        if start == len(self._digits):
            self._digits, start = os.urandom(_RANDOM_BYTES * _IDS_PER_FETCH).hex(), 0
        self._position = end = start + 2 * _RANDOM_BYTES
        return self._digits[start:end]


_RANDOM_BYTES = 10
_IDS_PER_FETCH = 256
_randomness = _Randomness()
# A forked process must not hand out what its parent does.
os.register_at_fork(after_in_child=_randomness.forget)


def new_id(prefix: str, epoch_ms: int) -> str:
    """A unique id that sorts by time: prefix, 12 hex digits of milliseconds, 20 random hex digits."""
    return f"{prefix}{epoch_ms:012x}{_randomness.take()}"
