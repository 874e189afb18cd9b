"""What does a policy say, in sentences?

For people who read what is in force and do not write YAML. Knows the grammar alone: a stored version is told
although the pools that it names are gone. Pure, but reading a large text takes a while: in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from backends.yaml_source import YamlSourceError, load_yaml_with_lines
from gateway.errors import ConfigurationError
from gateway.inference import Nature
from gateway.routing.policy import ModelEntry, PolicyFile
from gateway.routing.rule_file import LimitsSection, RuleEntry, TimeSection, WhenSection
from gateway.routing.rules import either


@dataclass(frozen=True, slots=True)
class RuleWords:
    """One rule."""

    name: str
    description: str
    when: str
    then: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicyWords:
    """A policy."""

    name: str
    description: str
    models: tuple[tuple[str, str], ...]
    """By alias: where it may go."""
    routes: tuple[tuple[str, tuple[str, ...]], ...]
    """By nature: the pools in their order."""
    rules: tuple[RuleWords, ...]
    others: tuple[str, ...]
    """What holds of all calls."""


def told(text: str) -> PolicyWords:
    """A policy's YAML in sentences.

    Raises:
        ConfigurationError: it cannot be read by today's grammar.
    """
    try:
        file = PolicyFile.model_validate(load_yaml_with_lines(text)[0])
    except (YamlSourceError, ValidationError) as error:
        raise ConfigurationError(f"This version cannot be read by today's grammar: {error}") from None
    return PolicyWords(
        file.name,
        file.description,
        tuple((alias, _model(entry)) for alias, entry in file.models.items()),
        tuple((nature.value, getattr(file.routes, nature)) for nature in Nature),
        tuple(_rule(entry) for entry in file.rules),
        tuple(_others(file)),
    )


def _model(entry: ModelEntry) -> str:
    said = either(list(entry.pools))
    if entry.overflow:
        said += f"; outside the company to {_in_order(entry.overflow)} when no pool can take a call"
    return f"{said}; with the adapter {entry.adapter}" if entry.adapter else said


def _rule(rule: RuleEntry) -> RuleWords:
    then = [f"goes to {_in_order(rule.use)}"] if rule.use else ["follows the routes"]
    then += {
        None: [],
        "cost": ["measurements may put a cheaper target first"],
        "latency": ["measurements may put a faster target first"],
        "order": ["the order stays as it is written, whatever is measured"],
    }[rule.objective]
    then += _limits(rule.limits)
    if rule.cache is not None:
        then.append(_cache(rule.cache.enabled, rule.cache.temperature_max, rule.cache.ttl_s))
    if rule.attempts_max is not None:
        then.append(f"is tried {rule.attempts_max} time{'' if rule.attempts_max == 1 else 's'} at most")
    if rule.hedging is not None:
        then.append("slow streams are asked for twice" if rule.hedging else "no stream is asked for twice")
    for share in rule.canary.shares if rule.canary else ():
        by = "conversations" if rule.canary and rule.canary.by == "conversation" else "keys"
        then.append(f"{share.percent:g} % of the {by} go to {_in_order(share.use)} instead")
    low = rule.budget_low
    if low is not None:
        what = {
            "cheaper": f"goes to {_in_order(low.use)}" if low.use else "the cheapest target goes first",
            "refuse": "is refused (402)",
            "alert": "somebody is told",
        }[low.then]
        then.append(f"from {low.at_percent:g} % of a budget on {what}")
    return RuleWords(rule.name, rule.description, _when(rule.when), tuple(then))


def _when(when: WhenSection) -> str:
    parts: list[str] = []
    for name, words in (
        ("task", when.task),
        ("nature", when.nature),
        ("tenant", when.tenant),
        ("project", when.project),
        ("model", when.model),
        ("latency class", when.latency_class),
        ("format", when.format),
    ):
        if words is not None:
            parts.append(f"the {name} is {either([str(word) for word in words])}")
    parts += [f"the fixed tag {name} is {either(list(values))}" for name, values in (when.tag or {}).items()]
    if when.input_tokens is not None:
        least, most = when.input_tokens.min, when.input_tokens.max
        bounds = [f"at least {least:,}"] if least else []
        bounds += [f"at most {most:,}"] if most else []
        parts.append(f"the input has {' and '.join(bounds)} tokens")
    if when.time is not None:
        parts.append(_time(when.time))
    if when.tools is not None:
        parts.append("it offers tools" if when.tools else "it offers no tools")
    if when.media is not None:
        parts.append("it has images, sound or files" if when.media else "it is text only")
    return " and ".join(parts) if parts else "always"


def _time(time: TimeSection) -> str:
    days = "" if time.days is None else f" on {either(list(time.days))}"
    return f"it is {time.from_hour:02d}:00 to {time.to_hour:02d}:00 UTC{days}"


def _limits(limits: LimitsSection | None) -> list[str]:
    if limits is None:
        return []
    said = []
    for meter in ("output", "input"):
        most = getattr(limits, f"{meter}_usd_per_million")
        if most is not None:
            said.append(f"nothing whose {meter} costs more than {most} USD per million tokens")
    if limits.ttft_p95_ms is not None:
        said.append(f"first tokens within {limits.ttft_p95_ms:g} ms, 95 of 100 times")
    if limits.tpot_p95_ms is not None:
        said.append(f"each further token within {limits.tpot_p95_ms:g} ms, 95 of 100 times")
    return said


def _cache(enabled: bool | None, temperature_max: float | None, ttl_s: int | None) -> str:  # noqa: FBT001 - as the section has it
    if enabled is False:
        return "the answer cache is neither read nor filled"
    said = "is answered from the cache"
    if temperature_max is not None:
        said += f" up to temperature {temperature_max:g}"
    return f"{said}, kept for {ttl_s:,} s" if ttl_s is not None else said


def _others(file: PolicyFile) -> list[str]:
    said = [
        f"A call of which nothing says the task is {file.tasks.default.value}.",
        f"A call that states no limit on its output gets {file.max_tokens_default:,} tokens.",
        (
            f"Calls that state a temperature of at most {file.cache.temperature_max:g} are answered from the"
            f" cache for {file.cache.ttl_s:,} s."
            if file.cache.enabled
            else "Nothing is answered from the cache."
        ),
    ]
    if file.tasks.natures:
        odd = ", ".join(f"{task.value} as {nature.value}" for task, nature in file.tasks.natures.items())
        said.append(f"Judged otherwise than usual: {odd}.")
    economics = file.economics
    if economics.enabled:
        said.append(
            "Measurements may overturn the order of the routes where another pool is cheaper or faster by"
            f" {economics.switch_margin:.0%}."
        )
    else:
        said.append("The routes' order holds, whatever is measured.")
    if economics.exploration:
        said.append(f"{economics.exploration:.1%} of calls go elsewhere to measure it.")
    if file.allow_unpriced:
        said.append("Targets without a price may be used; no budget sees what they cost.")
    return said


def _in_order(names: tuple[str, ...] | None) -> str:
    return ", then ".join(names or ())
