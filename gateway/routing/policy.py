"""What may a policy say, and what does it mean?

Two types: `PolicyFile`, the YAML as people write it (unknown keys are errors with file, line, key and the
nearest known key), and `Policy`, what a decision uses. A version's id is a hash of the content, so the same
policy has the same id everywhere and an edited one can never keep its old name. What was added to the
grammar later is left out of the hash where a policy does not use it: stored versions keep their ids. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from backends.pool import NAME_CHARS_MAX, RateCard
from backends.yaml_source import KeyPath, YamlSourceError, dotted, explain, load_yaml_with_lines, nearest
from gateway.errors import ConfigurationError, ModelNotFound
from gateway.inference import CREATIVE_TASKS, CacheRule, Nature, TaskType
from gateway.routing.baselines import BaselinesSection, declares_nothing
from gateway.routing.economics import LatencyTarget, Rule
from gateway.routing.rule_compile import compile_rules
from gateway.routing.rule_file import MODEL_CHARS, RULES_MAX, RuleEntry, mentioned
from gateway.routing.rule_file import Strict as _Strict
from gateway.routing.rules import NO_RULES, RuleBook

SHOWN_MODELS = 20
CONFIDENCE_MIN = 0.25
"""Below it the classifier's answer is "unknown"; how it was found stands in classifier/CARD.md."""
PROVIDERS = {"openai": "https://api.openai.com/v1"}
"""Providers whose own address is used where an external target names none."""
KEY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")
"""A word that an environment variable can end with."""


def _is_unused(value: object) -> bool:
    """For what the grammar got later: no part of the hash of a policy that does not use it."""
    return not value


def _is_plain_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_plain = not (parts.username or parts.password or parts.query or parts.fragment)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and is_plain and parts.port != 0
    except ValueError:  # a port that is none
        return False


class ModelEntry(_Strict):
    """A name that clients may ask for."""

    pools: tuple[str, ...] = Field(min_length=1, description="pools that may serve it")
    overflow: tuple[str, ...] = Field(
        default=(),
        exclude_if=_is_unused,
        description="external targets, in order, for when none of its pools can take a call",
    )
    adapter: str | None = Field(
        default=None,
        min_length=1,
        max_length=MODEL_CHARS,
        exclude_if=_is_unused,
        description="LoRA adapter that it names; pools whose engines were not started with it are left out",
    )
    description: str = Field(default="", description="for people, shown in /v1/models")


class ExternalEntry(_Strict):
    """A model outside the company, behind an API that speaks OpenAI's format."""

    model: str = Field(
        min_length=1,
        max_length=256,
        description="provider/model, such as openai/gpt-4o-mini; with api_base, the server's name for it",
    )
    api_base: str | None = Field(
        default=None, description="URL of an OpenAI-compatible API, usually ending in /v1"
    )
    api_key: str | None = Field(default=None, description="name of a configured key; left out: none is sent")
    max_model_len: int = Field(gt=0, description="context, tokens of input and output together")
    rates: RateCard | None = Field(
        default=None,
        description="what a tenant is charged; left out: refused until `tollgate prices` knows a price",
    )

    @model_validator(mode="after")
    def _is_within_reach(self) -> Self:
        # Not a validator of the field: its message would show the value, and that may be a secret.
        if self.api_key is not None and not KEY_NAME.fullmatch(self.api_key):
            message = (
                "api_key is the name of a key (letters, digits, single underscores), never the key itself: "
                "write api_key: openai and set TOLLGATE_EXTERNAL_KEYS__OPENAI"
            )
            raise ValueError(message)
        if self.api_base is None:
            provider, _, model = self.model.partition("/")
            if provider not in PROVIDERS or not model:
                message = (
                    "without api_base the model is provider/model, such as openai/gpt-4o-mini; "
                    f"known providers: {', '.join(PROVIDERS)}"
                )
                raise ValueError(message)
        elif not _is_plain_url(self.api_base):
            message = (
                "api_base must be a URL such as https://models.example.com/v1, "
                "without user, password, query and fragment"
            )
            raise ValueError(message)
        return self


class ClassifierSection(_Strict):
    """When the trained classifier is believed, of calls that neither their sender nor a signal names."""

    enabled: bool = True
    confidence_min: float = Field(
        default=CONFIDENCE_MIN, ge=0, le=1, description="less sure than this is unknown: the default task"
    )


def _is_usual(section: ClassifierSection) -> bool:
    """The id of policies that were written before the section existed stays what it was."""
    return section == ClassifierSection()


class TaskSection(_Strict):
    """How tasks are judged."""

    default: TaskType = Field(default=TaskType.CHAT, description="when nothing says which task a call is")
    natures: dict[TaskType, Nature] = Field(
        default_factory=dict, description="where a task's nature differs from the usual one"
    )
    classifier: ClassifierSection = Field(
        default_factory=ClassifierSection, exclude_if=_is_usual, description="when nothing else says it"
    )


class RouteSection(_Strict):
    """Pools in order of preference, by the task's nature."""

    predictable: tuple[str, ...] = Field(min_length=1)
    creative: tuple[str, ...] = Field(min_length=1)


class CacheSection(_Strict):
    """Which requests may be answered with an answer that was given before."""

    enabled: bool = True
    temperature_max: float = Field(
        default=0.0, ge=0, le=2, description="requests that state at most this temperature"
    )
    ttl_s: int = Field(default=3600, gt=0, le=30 * 86_400, description="how long an answer is kept")


def _says_nothing_new(section: CacheSection) -> bool:
    """The id of policies that were written before the section existed stays what it was."""
    return section == CacheSection()


class ClassTarget(_Strict):
    """What a latency class shall keep, 95 of 100 times."""

    ttft_p95_ms: float | None = Field(default=None, gt=0, description="until the first token")
    tpot_p95_ms: float | None = Field(default=None, gt=0, description="for each further token")


class EconomicsSection(_Strict):
    """May measurements overturn the order of the routes, and when?"""

    enabled: bool = Field(default=False, description="the routes' order holds only until another is measured")
    switch_margin: float = Field(
        default=0.15, gt=0, lt=1, description="share by which another pool has to be cheaper, or faster"
    )
    exploration: float = Field(
        default=0.0,
        ge=0,
        le=0.2,
        description="share of requests without a declared task that go elsewhere to measure it",
    )
    latency_targets: dict[Literal["priority", "default", "flex"], ClassTarget] = Field(
        default_factory=dict, description="by service_tier; left out: latency_targets of the pool's file"
    )


def _says_no_economics(section: EconomicsSection) -> bool:
    return section == EconomicsSection()


class PolicyFile(_Strict):
    """A policy as it is written."""

    name: str = Field(min_length=1, max_length=64)
    description: str = ""
    models: dict[Annotated[str, Field(min_length=1, max_length=MODEL_CHARS)], ModelEntry] = Field(
        min_length=1
    )
    external: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=NAME_CHARS_MAX)], ExternalEntry
    ] = Field(default_factory=dict, exclude_if=_is_unused, description="targets outside the company")
    tasks: TaskSection = Field(default_factory=TaskSection)
    routes: RouteSection
    rules: tuple[RuleEntry, ...] = Field(
        default=(),
        max_length=RULES_MAX,
        exclude_if=_is_unused,
        description="what is done otherwise with some calls: the first rule that matches a call decides",
    )
    max_tokens_default: int = Field(gt=0, description="put into requests that state no limit on their output")
    cache: CacheSection = Field(
        default_factory=CacheSection, exclude_if=_says_nothing_new, description="what may be answered twice"
    )
    economics: EconomicsSection = Field(
        default_factory=EconomicsSection,
        exclude_if=_says_no_economics,
        description="what measurements may change in the routes",
    )
    baselines: BaselinesSection = Field(
        default_factory=BaselinesSection,
        exclude_if=declares_nothing,
        description="what savings are measured against",
    )
    allow_unpriced: bool = Field(
        default=False,
        exclude_if=_is_unused,
        description="use targets without a price; their rows say unpriced, and no budget sees them",
    )

    @model_validator(mode="after")
    def _every_pool_has_a_place(self) -> Self:
        missing = [
            (nature, pool, f"model {alias!r} may use pool {pool!r}, but routes.{nature} does not list it")
            for alias, entry in self.models.items()
            for pool in entry.pools
            for nature in Nature
            if pool not in getattr(self.routes, nature)
        ]
        if missing:
            nature, pool, what = missing[0]
            used = {each for entry in self.models.values() for each in entry.pools}
            meant = nearest(pool, [each for each in getattr(self.routes, nature) if each not in used])
            todo = "add it there, last if it is only a fallback"
            if meant is not None:
                todo = f"is it {meant!r} there? Else {todo}"
            # With its own place: the line of the route, not the file's first.
            told = PydanticCustomError(
                "value_error",
                "Value error, {error}",
                {"error": f"{what}: {todo}"},
            )
            details = InitErrorDetails(type=told, loc=("routes", nature.value), input=None)
            raise ValidationError.from_exception_data("PolicyFile", [details])
        return self


@dataclass(frozen=True, slots=True)
class ExternalTarget:
    """A model outside the company, as decisions and connections use it."""

    model: str
    """The name that the API answers to."""
    api_base: str
    key_name: str | None
    """Of a configured key, in lower case; None: the API takes none."""
    max_model_len: int
    rates: RateCard | None
    """None: its price is in the price book, or it has none."""

    @property
    def provider(self) -> str | None:
        """Whose model it is; None: of a server that is not a known provider's."""
        return next((name for name, url in PROVIDERS.items() if url == self.api_base), None)


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as decisions use it."""

    name: str
    version: str
    """Hash of its content."""
    text: str
    """The YAML that it was read from."""
    models: Mapping[str, frozenset[str]]
    """Pools by alias."""
    descriptions: Mapping[str, str]
    routes: Mapping[Nature, tuple[str, ...]]
    natures: Mapping[TaskType, Nature]
    default_task: TaskType
    max_tokens_default: int
    cache: CacheRule
    overflow: Mapping[str, tuple[str, ...]]
    """External targets by alias, in order."""
    external: Mapping[str, ExternalTarget]
    """Those that an alias uses."""
    allow_unpriced: bool
    """Targets without a price may be used."""
    adapters: Mapping[str, str]
    """LoRA adapters by alias."""
    economics: Rule
    baselines: BaselinesSection
    """What savings are measured against."""
    classifier_confidence_min: float | None
    """From which confidence the trained classifier is believed; None: it is not asked."""
    rules: RuleBook = field(default=NO_RULES, compare=False)

    def missing_keys(self, configured: Collection[str]) -> list[str]:
        """A sentence for each key that a target needs and that is not configured.

        Args:
            configured: names of keys, in lower case.
        """
        return [
            f"external.{name}.api_key: there is no key {target.key_name!r}: "
            f"set TOLLGATE_EXTERNAL_KEYS__{target.key_name.upper()}"
            for name, target in self.external.items()
            if target.key_name is not None and target.key_name not in configured
        ]

    def pools_of(self, alias: str) -> frozenset[str]:
        """The pools that may serve an alias.

        Raises:
            ModelNotFound: there is no such alias; names the known ones.
        """
        pools = self.models.get(alias)
        if pools is None:
            known = ", ".join(list(self.models)[:SHOWN_MODELS])
            raise ModelNotFound(f"Unknown model {alias[:128]!r}. Known models: {known}.", param="model")
        return pools


def load_policy(path: Path, *, pools: Collection[str]) -> Policy:
    """The policy in that file, checked against the pools that there are.

    Raises:
        ConfigurationError: unreadable, or wrong; one sentence per mistake with file, line and key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: the policy cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: the policy cannot be read: not UTF-8 text") from None
    return parse_policy(text, source=str(path), pools=pools)


def parse_policy(text: str, *, source: str, pools: Collection[str]) -> Policy:
    """The policy of a YAML text.

    Args:
        text: the YAML.
        source: what to call it in messages, usually the file's path.
        pools: names of the pools that exist.

    Raises:
        ConfigurationError: one sentence per mistake.
    """
    file, _ = read_policy(text, source=source, pools=pools)
    return compile_policy(file, text, pools)


def read_policy(
    text: str, *, source: str, pools: Collection[str]
) -> tuple[PolicyFile, Mapping[KeyPath, int]]:
    """What a YAML text says, and on which line each of its keys stands; the same errors."""
    try:
        value, lines = load_yaml_with_lines(text)
    except YamlSourceError as error:
        raise ConfigurationError(f"{source}:{error.line}: {error}") from None
    try:
        file = PolicyFile.model_validate(value)
    except ValidationError as error:
        raise ConfigurationError("\n".join(explain(error, lines, PolicyFile, source=source))) from None
    _check_targets(file, lines, source=source, pools=pools)
    return file, lines


def _check_targets(
    file: PolicyFile, lines: Mapping[KeyPath, int], *, source: str, pools: Collection[str]
) -> None:
    """Every name is the name of something.

    Raises:
        ConfigurationError: one is not, or a rule's name is there twice.
    """
    for nature in Nature:
        for index, pool in enumerate(getattr(file.routes, nature)):
            if pool not in pools:
                line = lines.get(("routes", nature.value, index), lines.get(("routes",), 1))
                raise ConfigurationError(
                    f"{source}:{line}: routes.{nature}: there is no pool {pool!r};{_hint(pool, pools)} "
                    f"known pools: {', '.join(sorted(pools)) or 'none'}"
                )
    _check_external(file, lines, source=source, pools=pools)
    seen: dict[str, int] = {}
    known = [*pools, *file.external]
    for index, rule in enumerate(file.rules):
        line = lines.get(("rules", index, "name"), lines.get(("rules", index), 1))
        if rule.name in seen:
            raise ConfigurationError(
                f"{source}:{line}: rules[{index}].name: {rule.name!r} is the name of the rule on line "
                f"{seen[rule.name]} too; receipts name rules, so give it another one"
            )
        seen[rule.name] = line
        for below, name in mentioned(rule):
            if name not in known:
                path: KeyPath = ("rules", index, *below)
                # A single name may stand where a list may.
                line = lines.get(path, lines.get(path[:-1], line))
                raise ConfigurationError(
                    f"{source}:{line}: {dotted(path[:-1])}: there is no pool and no external target {name!r};"
                    f"{_hint(name, known)} known: {', '.join(sorted(known))}"
                )
    home = file.baselines.home_pool
    if home is not None and home not in pools:
        raise ConfigurationError(
            f"{source}:{lines.get(('baselines', 'home_pool'), 1)}: baselines.home_pool: there is no pool "
            f"{home!r};{_hint(home, pools)} known pools: {', '.join(sorted(pools)) or 'none'}"
        )


def _hint(word: str, known: Collection[str]) -> str:
    meant = nearest(word, list(known))
    return f" did you mean {meant!r}?" if meant else ""


def _check_external(
    file: PolicyFile, lines: Mapping[KeyPath, int], *, source: str, pools: Collection[str]
) -> None:
    for name in file.external:
        if name in pools:
            raise ConfigurationError(
                f"{source}:{lines.get(('external', name), 1)}: external.{name}: a pool has this name; "
                "an external target needs another one"
            )
    for alias, entry in file.models.items():
        for index, name in enumerate(entry.overflow):
            if name not in file.external:
                line = lines.get(("models", alias, "overflow", index), lines.get(("models", alias), 1))
                known = ", ".join(sorted(file.external)) or "none"
                raise ConfigurationError(
                    f"{source}:{line}: models.{alias}.overflow: there is no external target {name!r};"
                    f"{_hint(name, file.external)} known external targets: {known}"
                )


def compile_policy(file: PolicyFile, text: str, pools: Collection[str]) -> Policy:
    """What decisions use of what `read_policy` read."""
    usual = {task: Nature.CREATIVE if task in CREATIVE_TASKS else Nature.PREDICTABLE for task in TaskType}
    used = {name for entry in file.models.values() for name in entry.overflow}
    used |= {name for rule in file.rules for _, name in mentioned(rule) if name in file.external}
    cache = CacheRule(
        is_enabled=file.cache.enabled, temperature_max=file.cache.temperature_max, ttl_s=file.cache.ttl_s
    )
    content = file.model_dump_json()
    return Policy(
        name=file.name,
        version=f"{file.name}@{hashlib.sha256(content.encode()).hexdigest()[:12]}",
        text=text,
        models={alias: frozenset(entry.pools) for alias, entry in file.models.items()},
        descriptions={alias: entry.description for alias, entry in file.models.items()},
        routes={nature: getattr(file.routes, nature) for nature in Nature},
        natures={**usual, **file.tasks.natures},
        default_task=file.tasks.default,
        max_tokens_default=file.max_tokens_default,
        overflow={alias: entry.overflow for alias, entry in file.models.items() if entry.overflow},
        external={name: _compile_external(file.external[name]) for name in sorted(used)},
        cache=cache,
        allow_unpriced=file.allow_unpriced,
        adapters={alias: entry.adapter for alias, entry in file.models.items() if entry.adapter},
        economics=_compile_economics(file.economics),
        baselines=file.baselines,
        classifier_confidence_min=file.tasks.classifier.confidence_min
        if file.tasks.classifier.enabled
        else None,
        rules=_compile_rules(file, cache, pools),
    )


def _compile_rules(file: PolicyFile, cache: CacheRule, pools: Collection[str]) -> RuleBook:
    if not file.rules:
        return NO_RULES
    models = {alias: (frozenset(entry.pools), entry.overflow) for alias, entry in file.models.items()}
    return compile_rules(file.rules, models, pools=frozenset(pools), cache=cache)


def _compile_economics(section: EconomicsSection) -> Rule:
    return Rule(
        is_enabled=section.enabled,
        switch_margin=section.switch_margin,
        exploration=section.exploration,
        targets={
            name: LatencyTarget(_seconds(target.ttft_p95_ms), _seconds(target.tpot_p95_ms))
            for name, target in section.latency_targets.items()
        },
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _compile_external(entry: ExternalEntry) -> ExternalTarget:
    api_base, model = entry.api_base, entry.model
    if api_base is None:
        provider, _, model = model.partition("/")
        api_base = PROVIDERS[provider]
    return ExternalTarget(
        model=model,
        api_base=api_base.rstrip("/"),
        key_name=None if entry.api_key is None else entry.api_key.lower(),
        max_model_len=entry.max_model_len,
        rates=entry.rates,
    )
