"""Is a policy sound: can each rule match, and can each target hold what it is given?

What `parse_policy` refuses is wrong in itself; what is found here is right YAML that does not do what its
author meant: rules that an earlier one leaves nothing, targets that cannot take a rule's calls, limits below
every price. Errors are certain, warnings are worth a look. Takes files as values, asks nobody. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from backends.pool import PoolSpec
from backends.yaml_source import KeyPath, dotted, nearest
from gateway.errors import ConfigurationError
from gateway.pricing.catalog import cards_of
from gateway.pricing.rates import Price
from gateway.routing.policy import Policy, PolicyFile, compile_policy, read_policy
from gateway.routing.rule_boxes import Box, box_of, example_of, is_covered, shared
from gateway.routing.rule_file import RuleEntry, mentioned
from gateway.routing.rules import PolicyRule, usd_per_million

_LINE = re.compile(r"^(?P<source>.*?):(?P<line>\d+): (?P<text>.*)$", re.DOTALL)


class Severity(StrEnum):
    """How certain it is that something is wrong."""

    ERROR = "error"
    WARNING = "warning"
    OVERLAP = "overlap"
    """Two rules are for some of the same calls: usually meant."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, or looks so."""

    severity: Severity
    line: int
    path: str
    """The key, such as `rules[2].use`; empty: of the whole file."""
    message: str
    suggestion: str | None = None
    """What to do about it; None: the message says it."""

    def told(self, source: str) -> str:
        """A line for people."""
        kind = "" if self.severity is Severity.ERROR else f"{self.severity}: "
        where = f"{source}:{self.line}: {kind}"
        key = f"{self.path}: " if self.path else ""
        more = f"; {self.suggestion}" if self.suggestion else ""
        return f"{where}{key}{self.message}{more}"


def check_policy(
    text: str, *, source: str, pools: Mapping[str, PoolSpec], prices: Mapping[str, Price]
) -> tuple[Policy | None, list[Finding]]:
    """The policy of a text, if it can be read, and what is wrong with it, in the order of its lines.

    Args:
        text: the YAML.
        source: what to call it.
        pools: those that exist.
        prices: of targets, where they are known; what the policy says of external ones is added.
    """
    try:
        file, lines = read_policy(text, source=source, pools=pools)
    except ConfigurationError as error:
        return None, [_of_mistake(each) for each in str(error).splitlines()]
    policy = compile_policy(file, text, pools)
    try:
        cards = cards_of({}, {name: entry.rates for name, entry in file.external.items()})
    except ConfigurationError as error:
        return None, [Finding(Severity.ERROR, lines.get(("external",), 1), "external", str(error))]
    outside = {name: card.price for name, card in cards.items() if card.price is not None}
    check = _Check(file, lines, policy, pools=pools, prices={**outside, **prices})
    check.run()
    return policy, sorted(check.found, key=lambda each: (each.line, each.severity))


def _of_mistake(sentence: str) -> Finding:
    found = _LINE.match(sentence)
    if found is None:
        return Finding(Severity.ERROR, 1, "", sentence)
    path, separator, message = found["text"].partition(": ")
    if not separator or " " in path:
        path, message = "", found["text"]
    return Finding(Severity.ERROR, int(found["line"]), path, message)


class _Check:
    """One look at one policy."""

    def __init__(
        self,
        file: PolicyFile,
        lines: Mapping[KeyPath, int],
        policy: Policy,
        *,
        pools: Mapping[str, PoolSpec],
        prices: Mapping[str, Price],
    ) -> None:
        self.found: list[Finding] = []
        self._file = file
        self._lines = lines
        self._policy = policy
        self._pools = pools
        self._prices = prices
        self._boxes: list[Box] = [
            box_of(entry, rule, policy) for entry, rule in zip(file.rules, policy.rules.entries, strict=True)
        ]

    def run(self) -> None:
        """Look at everything."""
        self._models()
        self._external()
        for number, (entry, rule) in enumerate(
            zip(self._file.rules, self._policy.rules.entries, strict=True)
        ):
            if self._can_match(number, entry):
                self._reach(number)
            self._targets(number, entry, rule)
            self._limits(number, entry, rule)
            self._parts(number, entry)

    def _say(self, severity: Severity, path: KeyPath, message: str, *, suggestion: str | None = None) -> None:
        line, at = 1, path
        while at:
            if at in self._lines:
                line = self._lines[at]
                break
            at = at[:-1]
        self.found.append(Finding(severity, line, dotted(path), message, suggestion))

    def _error(self, path: KeyPath, message: str, suggestion: str | None = None) -> None:
        self._say(Severity.ERROR, path, message, suggestion=suggestion)

    def _warn(self, path: KeyPath, message: str, suggestion: str | None = None) -> None:
        self._say(Severity.WARNING, path, message, suggestion=suggestion)

    # ------------------------------------------------------------------------------------ models, targets
    def _models(self) -> None:
        for alias, entry in self._file.models.items():
            if entry.adapter is None:
                continue
            without = [name for name in entry.pools if entry.adapter not in self._pools[name].adapters]
            if len(without) == len(entry.pools):
                self._error(
                    ("models", alias, "adapter"),
                    f"nothing serves it: none of its pools has the adapter {entry.adapter!r}",
                    f"start one with it (`adapters` in its pool file): {', '.join(entry.pools)}",
                )
            elif without:
                self._warn(
                    ("models", alias, "pools"),
                    f"{', '.join(without)} has no adapter {entry.adapter!r} and is never used for this model",
                )

    def _external(self) -> None:
        for name in self._file.external:
            if name not in self._policy.external:
                self._warn(
                    ("external", name), "nothing uses it", "name it in a model's overflow or in a rule's use"
                )
            elif name not in self._prices and not self._file.allow_unpriced:
                self._warn(
                    ("external", name),
                    "it has no price and is refused until it has one",
                    f"give it rates, or: tollgate prices set {name} --input USD --output USD",
                )

    # ------------------------------------------------------------------------------------ what can match
    def _can_match(self, number: int, entry: RuleEntry) -> bool:
        path: KeyPath = ("rules", number)
        is_possible = True
        for index, alias in enumerate(entry.when.model or ()):
            if alias not in self._file.models:
                is_possible = False
                meant = nearest(alias, list(self._file.models))
                self._error(
                    (*path, "when", "model", index),
                    f"there is no model {alias!r}",
                    f"did you mean {meant!r}?" if meant else f"known: {', '.join(self._file.models)}",
                )
        box = self._boxes[number]
        if not is_possible:
            return False
        if not box.sets["task"]:
            self._error(
                (*path, "when"),
                "it can never match: none of its tasks has its nature",
                "leave out `nature`, or see tasks.natures",
            )
        elif not box.sets["model"]:
            self._error(
                (*path, "use"),
                "it can never match: none of its targets may serve "
                + ("the models that it names" if entry.when.model else "any model"),
                _how_to_serve(entry),
            )
        elif entry.when.media and entry.when.input_tokens is not None:
            self._error(
                (*path, "when"),
                "it can never match: nobody knows how many tokens images or sound come to",
                "leave out `input_tokens` or `media`",
            )
        else:
            return True
        return False

    def _reach(self, number: int) -> None:
        box = self._boxes[number]
        earlier = [(index, each) for index, each in enumerate(self._boxes[:number]) if each.can_match]
        covering = is_covered(box, [each for _, each in earlier])
        if covering is not None:
            names = [self._rule_at(earlier[index][0]) for index in covering]
            self._error(
                ("rules", number, "name"),
                f"no call reaches it: {' and '.join(names)} {'take' if names[1:] else 'takes'} them all",
                "move it up, or narrow what stands above it",
            )
            return
        for index, each in earlier:
            common = shared(each, box)
            if common is not None and not each.is_within(box):
                self._say(
                    Severity.OVERLAP,
                    ("rules", number, "name"),
                    f"{self._rule_at(index)} takes the calls that both are for, such as {example_of(common)}",
                )

    def _rule_at(self, index: int) -> str:
        return f"rule '{self._file.rules[index].name}' (line {self._lines[('rules', index, 'name')]})"

    # ------------------------------------------------------------------------------------ what can be held
    def _targets(self, number: int, entry: RuleEntry, rule: PolicyRule) -> None:
        models = self._boxes[number].sets["model"]
        used = {
            name
            for orders in _orders(rule)
            for alias, order in orders.items()
            if alias in models
            for name in order
        }
        for below, name in mentioned(entry):
            path: KeyPath = ("rules", number, *below)
            if name not in used and models:
                self._error(
                    path,
                    f"no model that the rule is for may use {name!r}",
                    _add_to(name, is_pool=name in self._pools),
                )
                continue
            obstacle = self._obstacle(entry, name)
            if obstacle is not None:
                self._error(path, f"{name} cannot take the rule's calls: {obstacle}", "use another target")
            else:
                self._doubts(path, entry, name)
        self._speculation(number, entry)

    def _obstacle(self, entry: RuleEntry, name: str) -> str | None:
        """Why none of the rule's calls fits a target."""
        spec = self._pools.get(name)
        context = self._policy.external[name].max_model_len if spec is None else spec.model.max_model_len
        length = entry.when.input_tokens
        if length is not None and length.min is not None and length.min >= context:
            return f"its context has {context} tokens, and their input at least {length.min}"
        if spec is not None and entry.when.media and spec.reads_text_only:
            return "its model reads text only"
        if spec is not None and entry.when.model:
            wanted = {alias: self._policy.adapters.get(alias) for alias in entry.when.model}
            if all(adapter is not None and adapter not in spec.adapters for adapter in wanted.values()):
                return f"its engines have no adapter {' or '.join(str(each) for each in wanted.values())}"
        return None

    def _doubts(self, path: KeyPath, entry: RuleEntry, name: str) -> None:
        """What of a rule's calls does not fit a target."""
        spec = self._pools.get(name)
        context = self._policy.external[name].max_model_len if spec is None else spec.model.max_model_len
        length = entry.when.input_tokens
        if length is not None and length.max is not None and length.max > context:
            self._warn(
                path,
                f"{name} has a context of {context} tokens: it is passed over for longer inputs,"
                f" and the rule is for up to {length.max}",
            )
        if spec is None or spec.driver == "external":
            return
        flags = {key.replace("_", "-") for key, value in spec.engine_args.items() if value is not False}
        if entry.when.tools and "enable-auto-tool-choice" not in flags:
            self._warn(
                path,
                f"{name} is started without enable-auto-tool-choice: its engines refuse most of these calls",
                "add it and a tool-call-parser to engine_args of its pool file",
            )

    def _speculation(self, number: int, entry: RuleEntry) -> None:
        specs = [self._pools.get(name) for name in entry.use or ()]
        if specs and all(spec is not None and spec.speculation is not None for spec in specs):
            self._warn(
                ("rules", number, "use"),
                "calls with min_p or logit_bias are refused: every one of its pools speculates",
                "add a pool that does not, last, for those",
            )

    # ------------------------------------------------------------------------------------ prices
    def _limits(self, number: int, entry: RuleEntry, rule: PolicyRule) -> None:
        if entry.limits is None or (rule.limits.input is None and rule.limits.output is None):
            return
        for where, names in self._used_by(number, entry):
            dear = [(name, rule.limits.exceeded_by(self._prices.get(name))) for name in names]
            told = [f"{name}: {why}" for name, why in dear if why is not None]
            if told and len(told) == len(dear):
                self._error(
                    ("rules", number, "limits"),
                    f"no target of {where} is cheap enough: {'; '.join(told)}",
                    "raise the limit, or use cheaper targets",
                )
            elif told:
                self._warn(("rules", number, "limits"), f"some of {where} are never used: {'; '.join(told)}")

    def _used_by(self, number: int, entry: RuleEntry) -> list[tuple[str, list[str]]]:
        """The targets of each part of a rule."""
        if entry.use is not None:
            found = [("`use`", list(entry.use))]
        else:
            models = self._boxes[number].sets["model"]
            own = {pool for alias in models for pool in self._policy.models.get(str(alias), ())}
            found = [("the routes", sorted(own))]
        found += [("the canary", list(share.use)) for share in (entry.canary.shares if entry.canary else ())]
        return found

    def _parts(self, number: int, entry: RuleEntry) -> None:
        path: KeyPath = ("rules", number)
        for index, share in enumerate(entry.canary.shares if entry.canary else ()):
            if share.use == entry.use:
                self._warn(
                    (*path, "canary", "shares", index, "use"), "it is the same as the rule's `use`: no canary"
                )
        pools = [name for name in entry.use or () if name in self._pools]
        if entry.objective in {"cost", "latency"} and entry.use is not None and len(pools) < 2:  # noqa: PLR2004
            self._warn(
                (*path, "objective"), "there is nothing to choose: measurements order pools, and it has one"
            )
        low = entry.budget_low
        if low is not None and low.use is not None and entry.use is not None:
            before, after = self._output_rate(entry.use[0]), self._output_rate(low.use[0])
            if before is not None and after is not None and after >= before:
                self._warn(
                    (*path, "budget_low", "use"),
                    f"{low.use[0]} is not cheaper than {entry.use[0]}: output at {usd_per_million(after)} USD"
                    f" per million tokens, not below {usd_per_million(before)}",
                )

    def _output_rate(self, name: str) -> int | None:
        price = self._prices.get(name)
        return None if price is None or price.rates is None else price.rates.output


def _orders(rule: PolicyRule) -> list[Mapping[str, tuple[str, ...]]]:
    low = None if rule.low is None else rule.low.orders
    return [each for each in (rule.orders, *(arm.orders for arm in rule.arms), low) if each is not None]


def _add_to(name: str, *, is_pool: bool) -> str:
    if is_pool:
        return f"add {name!r} to the model's pools, or take it out here"
    return f"add {name!r} to the model's overflow, or name the model in the rule's `when`"


def _how_to_serve(entry: RuleEntry) -> str:
    names = ", ".join(entry.use or ())
    where = ", ".join(f"models.{alias}" for alias in entry.when.model or ()) or "a model"
    return f"add one of them ({names}) to {where}, or use other targets"
