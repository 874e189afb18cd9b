"""What may a rule of a policy say, as people write it?

The grammar alone: `rules.py` says what a rule means. A rule names conditions, all of which must hold, and
says what is done with the calls that match it; the first rule that matches a call decides. What a rule leaves
out is as if there were no rule. Pure.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from backends.pool import NAME_CHARS_MAX
from gateway.inference import TAG_NAME_CHARS, TAG_VALUE_CHARS, Nature, TaskType

MODEL_CHARS = 128
"""What the ledger keeps of an alias."""
RULES_MAX = 200
ATTEMPTS_MAX = 10
WHOLE_PERCENT = 100
_T = TypeVar("_T")
LatencyClass = Literal["priority", "default", "flex"]
Format = Literal["text", "json_object", "json_schema"]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def is_unset(value: object) -> bool:
    """For what a policy leaves out: no part of its hash, so that the grammar may grow."""
    return value is None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _not_empty(value: tuple[_T, ...]) -> tuple[_T, ...]:
    # Not a length of the type: one wrong word would then be told as two mistakes.
    if not value:
        raise ValueError("the list is empty: name one, or leave the key out")
    return value


class Strict(BaseModel):
    """A section that knows its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


TargetName = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]
Targets = Annotated[
    tuple[TargetName, ...],
    AfterValidator(_not_empty),
    BeforeValidator(_as_list, json_schema_input_type=TargetName | list[TargetName]),
]
_Text = Annotated[str, Field(min_length=1, max_length=MODEL_CHARS)]
_Tag = Annotated[str, Field(min_length=1, max_length=TAG_VALUE_CHARS)]
_TagName = Annotated[str, Field(min_length=1, max_length=TAG_NAME_CHARS)]
_Names = Annotated[
    tuple[_Text, ...],
    AfterValidator(_not_empty),
    BeforeValidator(_as_list, json_schema_input_type=_Text | list[_Text]),
]
_TagValues = Annotated[
    tuple[_Tag, ...],
    AfterValidator(_not_empty),
    BeforeValidator(_as_list, json_schema_input_type=_Tag | list[_Tag]),
]
_Tasks = Annotated[
    tuple[TaskType, ...],
    AfterValidator(_not_empty),
    BeforeValidator(_as_list, json_schema_input_type=TaskType | list[TaskType]),
]
_Natures = Annotated[
    tuple[Nature, ...],
    AfterValidator(_not_empty),
    BeforeValidator(_as_list, json_schema_input_type=Nature | list[Nature]),
]
_Classes = Annotated[
    tuple[LatencyClass, ...],
    AfterValidator(_not_empty),
    BeforeValidator(_as_list, json_schema_input_type=LatencyClass | list[LatencyClass]),
]
_Formats = Annotated[
    tuple[Format, ...],
    AfterValidator(_not_empty),
    BeforeValidator(_as_list, json_schema_input_type=Format | list[Format]),
]
_Days = Annotated[
    tuple[Weekday, ...],
    AfterValidator(_not_empty),
    BeforeValidator(_as_list, json_schema_input_type=Weekday | list[Weekday]),
]


class InputTokens(Strict):
    """How long the input is, by the gateway's own estimate: four bytes of the request are a token."""

    min: int | None = Field(default=None, ge=1, exclude_if=is_unset, description="at least so many")
    max: int | None = Field(default=None, ge=1, exclude_if=is_unset, description="at most so many")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("say min, max or both, such as input_tokens: {max: 2000}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"no input has at least {self.min} and at most {self.max} tokens")
        return self


class TimeSection(Strict):
    """When, in UTC. A span that ends before it begins ends on the next day."""

    from_hour: int = Field(default=0, ge=0, le=23, description="it begins with this hour, 0 to 23")
    to_hour: int = Field(default=24, ge=0, le=24, description="it ends before this hour, 0 to 24")
    days: _Days | None = Field(
        default=None, exclude_if=is_unset, description="days on which the span begins; left out: every day"
    )

    @model_validator(mode="after")
    def _is_a_span(self) -> Self:
        if self.from_hour == self.to_hour:
            raise ValueError("from_hour and to_hour are the same: leave both out for the whole day")
        return self


class WhenSection(Strict):
    """Which calls a rule is for: all of these must hold; of a list, one."""

    task: _Tasks | None = Field(default=None, exclude_if=is_unset, description="what is asked for")
    nature: _Natures | None = Field(
        default=None, exclude_if=is_unset, description="whether a draft can guess the output"
    )
    tenant: _Names | None = Field(default=None, exclude_if=is_unset, description="who pays, by name")
    project: _Names | None = Field(
        default=None, exclude_if=is_unset, description="for which project, by name"
    )
    tag: dict[_TagName, _TagValues] | None = Field(
        default=None,
        min_length=1,
        exclude_if=is_unset,
        description="cost tags that an operator fixed on the key or its project; never the caller's own",
    )
    model: _Names | None = Field(
        default=None, exclude_if=is_unset, description="the alias that the client asked for"
    )
    latency_class: _Classes | None = Field(
        default=None, exclude_if=is_unset, description="the service_tier that the call runs in"
    )
    input_tokens: InputTokens | None = Field(
        default=None, exclude_if=is_unset, description="how long the input is"
    )
    time: TimeSection | None = Field(default=None, exclude_if=is_unset, description="when, in UTC")
    tools: bool | None = Field(default=None, exclude_if=is_unset, description="the call offers tools, or not")
    format: _Formats | None = Field(
        default=None,
        exclude_if=is_unset,
        description="the output's format; json_schema also stands for grammars, expressions and choices",
    )
    media: bool | None = Field(
        default=None, exclude_if=is_unset, description="the input has images, sound or files, or not"
    )


class LimitsSection(Strict):
    """What a target may cost and how long it may take."""

    output_usd_per_million: Decimal | None = Field(
        default=None, gt=0, exclude_if=is_unset, description="dearest output that is allowed, USD per million"
    )
    input_usd_per_million: Decimal | None = Field(
        default=None, gt=0, exclude_if=is_unset, description="dearest input that is allowed, USD per million"
    )
    ttft_p95_ms: float | None = Field(
        default=None,
        gt=0,
        exclude_if=is_unset,
        description="95 of 100 first tokens within this: targets that are predicted to keep it go first",
    )
    tpot_p95_ms: float | None = Field(
        default=None, gt=0, exclude_if=is_unset, description="the same for each further token"
    )

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if all(value is None for _, value in self):
            raise ValueError("it limits nothing: name a limit or leave the section out")
        return self


class RuleCacheSection(Strict):
    """How the cache differs for these calls from what the policy says of all."""

    enabled: bool | None = Field(
        default=None, exclude_if=is_unset, description="false: neither read nor kept"
    )
    temperature_max: float | None = Field(
        default=None, ge=0, le=2, exclude_if=is_unset, description="calls that state at most this"
    )
    ttl_s: int | None = Field(
        default=None, gt=0, le=30 * 86_400, exclude_if=is_unset, description="how long an answer is kept"
    )


class CanaryShare(Strict):
    """A share of the calls that goes elsewhere."""

    percent: float = Field(gt=0, le=WHOLE_PERCENT, description="of the rule's calls, 0.01 is possible")
    use: Targets = Field(description="targets in order of preference")


class CanarySection(Strict):
    """Other targets for a share of the calls, the same ones each time."""

    by: Literal["conversation", "key"] = Field(
        default="conversation",
        description="what stays together: all turns of a conversation, or all of a key",
    )
    shares: tuple[CanaryShare, ...] = Field(min_length=1, description="their percents add up to 100 at most")

    @model_validator(mode="after")
    def _is_a_part(self) -> Self:
        total = sum(share.percent for share in self.shares)
        if total > WHOLE_PERCENT:
            raise ValueError(f"the shares add up to {total:g} %: there are only 100 to give away")
        return self


class BudgetLowSection(Strict):
    """What is done when a budget over the caller runs low, hard or soft."""

    at_percent: float = Field(gt=0, le=1000, description="from this share of a budget's limit on")
    then: Literal["cheaper", "refuse", "alert"] = Field(
        description="cheaper: other targets; refuse: 402; alert: a line in the log and a counter"
    )
    use: Targets | None = Field(
        default=None,
        exclude_if=is_unset,
        description="for `cheaper`: the targets; left out: the same ones, the cheapest first",
    )

    @model_validator(mode="after")
    def _has_a_use(self) -> Self:
        if self.use is not None and self.then != "cheaper":
            raise ValueError(f"use belongs to `then: cheaper`, not to `then: {self.then}`")
        return self


class RuleEntry(Strict):
    """What is done with some calls. The first rule that matches a call decides; no other one is looked at."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64, description="what receipts call it; unique"
    )
    description: str = Field(default="", exclude_if=lambda value: not value, description="for people")
    when: WhenSection = Field(default_factory=WhenSection, description="which calls; left out: all")
    use: Targets | None = Field(
        default=None,
        exclude_if=is_unset,
        description="pools and external targets in order of preference, and no others; left out: the routes",
    )
    objective: Literal["cost", "latency", "order"] | None = Field(
        default=None,
        exclude_if=is_unset,
        description=(
            "what measurements may change in the order: cost and latency put the pool first that is better "
            "at it, order keeps it as it is written; left out: as `economics` says"
        ),
    )
    limits: LimitsSection | None = Field(
        default=None, exclude_if=is_unset, description="what a target may cost and how long it may take"
    )
    cache: RuleCacheSection | None = Field(
        default=None, exclude_if=is_unset, description="how the cache differs for these calls"
    )
    attempts_max: int | None = Field(
        default=None,
        ge=1,
        le=ATTEMPTS_MAX,
        exclude_if=is_unset,
        description="attempts over all targets, the first included; left out: TOLLGATE_LIMITS__ATTEMPTS_MAX",
    )
    hedging: bool | None = Field(
        default=None,
        exclude_if=is_unset,
        description="whether slow streams are asked for at a second replica; left out: as in the settings",
    )
    canary: CanarySection | None = Field(
        default=None, exclude_if=is_unset, description="other targets for a share of the calls"
    )
    budget_low: BudgetLowSection | None = Field(
        default=None, exclude_if=is_unset, description="what is done when a budget runs low"
    )

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        limits = self.limits
        has_targets = limits is not None and (limits.ttft_p95_ms or limits.tpot_p95_ms)
        if self.objective == "order" and has_targets:
            raise ValueError("objective: order keeps the order, so P95 limits would have no effect")
        if self.hedging and self.attempts_max == 1:
            raise ValueError("hedging needs a second attempt: raise attempts_max or turn hedging off")
        return self


def mentioned(rule: RuleEntry) -> list[tuple[tuple[str | int, ...], str]]:
    """Every target that a rule names, with where it stands below the rule."""
    found: list[tuple[tuple[str | int, ...], str]] = [
        (("use", index), name) for index, name in enumerate(rule.use or ())
    ]
    for number, share in enumerate(rule.canary.shares if rule.canary else ()):
        found += [(("canary", "shares", number, "use", index), name) for index, name in enumerate(share.use)]
    if rule.budget_low is not None:
        found += [
            (("budget_low", "use", index), name) for index, name in enumerate(rule.budget_low.use or ())
        ]
    return found
