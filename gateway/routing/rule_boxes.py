"""Does one rule leave another anything to match?

A rule's conditions are a box: in each direction (task, tenant, length, hour, …) the values that it takes. A
rule is unreachable where earlier boxes cover its own: one alone, or several that differ in one direction and
together fill it. More is not looked for, so that what is called unreachable is so. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from gateway.inference import TaskType
from gateway.routing.policy import Policy
from gateway.routing.rule_compile import hours_of
from gateway.routing.rule_file import RuleEntry
from gateway.routing.rules import DAYS, HOURS_PER_WEEK, PolicyRule, Serves

EVERY_HOUR: Final = frozenset(range(HOURS_PER_WEEK))
NO_END: Final = 2**62
Values = frozenset[Any] | None
"""None: all there are, where nobody can list them."""


@dataclass(frozen=True, slots=True)
class Box:
    """The calls that a rule is for."""

    sets: Mapping[str, frozenset[Any]]
    """By direction, where all values are known."""
    open: Mapping[str, Values]
    """By direction, where they are not: tenants, projects, tags."""
    tokens: tuple[int, int]
    """Least and most; all there are where nothing is said."""

    @property
    def can_match(self) -> bool:
        """It is not empty."""
        return all(self.sets.values())

    def is_within(self, other: Box) -> bool:
        """All its calls are the other's too."""
        return not self.beyond(other)

    def beyond(self, other: Box) -> list[str]:
        """The directions in which it is not within the other."""
        found = [name for name, values in self.sets.items() if not values <= other.sets[name]]
        for name in {*self.open, *other.open}:
            mine, theirs = self.open.get(name), other.open.get(name)
            if theirs is not None and (mine is None or not mine <= theirs):
                found.append(name)
        if self.tokens[0] < other.tokens[0] or self.tokens[1] > other.tokens[1]:
            found.append("tokens")
        return found


def box_of(entry: RuleEntry, rule: PolicyRule, policy: Policy) -> Box:
    """The box of a rule."""
    when = entry.when
    tasks = frozenset(when.task or TaskType)
    if when.nature is not None:
        tasks = frozenset(task for task in tasks if policy.natures[task] in when.nature)
    models = frozenset(when.model or policy.models) & frozenset(policy.models)
    for one in rule.constant:
        if isinstance(one, Serves):
            models &= one.models
    hours = EVERY_HOUR
    if when.time is not None:
        mask = hours_of(when.time)
        hours = frozenset(hour for hour in EVERY_HOUR if mask >> hour & 1)
    length = when.input_tokens
    sets: dict[str, frozenset[Any]] = {
        "task": tasks,
        "model": models,
        "latency_class": frozenset(when.latency_class or ("priority", "default", "flex")),
        "hour": hours,
        "format": frozenset(when.format or ("text", "json_object", "json_schema")),
        "tools": _either_or(when.tools),
        # Of media nobody knows the length.
        "media": _either_or(when.media) if length is None else _either_or(when.media) - {True},
    }
    open_: dict[str, Values] = {
        "tenant": None if when.tenant is None else frozenset(when.tenant),
        "project": None if when.project is None else frozenset(when.project),
    }
    open_.update({f"tag {name}": frozenset(values) for name, values in (when.tag or {}).items()})
    tokens = (0, NO_END)
    if length is not None:
        tokens = (length.min or 0, NO_END if length.max is None else length.max)
    return Box(sets, open_, tokens)


_BOTH: Final = frozenset({True, False})


def _either_or(said: Literal[True, False] | None) -> frozenset[bool]:
    return _BOTH if said is None else frozenset({said})


def is_covered(box: Box, earlier: Sequence[Box]) -> list[int] | None:
    """Which earlier boxes leave nothing of it; None: something is left.

    Boxes that differ in more than one direction are not put together.
    """
    by_direction: dict[str, list[int]] = {}
    for index, other in enumerate(earlier):
        beyond = box.beyond(other)
        if not beyond:
            return [index]
        if len(beyond) == 1:
            by_direction.setdefault(beyond[0], []).append(index)
    for direction, indices in by_direction.items():
        if _fill(box, [earlier[index] for index in indices], direction):
            return indices
    return None


def _fill(box: Box, others: Sequence[Box], direction: str) -> bool:
    """The boxes together take all values of a direction."""
    if direction == "tokens":
        reached = box.tokens[0]
        for least, most in sorted(other.tokens for other in others):
            if least <= reached:
                reached = max(reached, most + 1)
        return reached > box.tokens[1]
    if direction in box.sets:
        return box.sets[direction] <= frozenset().union(*(other.sets[direction] for other in others))
    wanted = box.open.get(direction)
    taken = frozenset().union(*(other.open.get(direction) or frozenset() for other in others))
    return wanted is not None and wanted <= taken


def shared(first: Box, second: Box) -> Box | None:
    """The calls that are both boxes'; None: there are none."""
    sets = {name: values & second.sets[name] for name, values in first.sets.items()}
    open_: dict[str, Values] = {}
    for name in {*first.open, *second.open}:
        mine, theirs = first.open.get(name), second.open.get(name)
        both = mine if theirs is None else theirs if mine is None else mine & theirs
        if both is not None and not both:
            return None
        open_[name] = both
    tokens = max(first.tokens[0], second.tokens[0]), min(first.tokens[1], second.tokens[1])
    if not all(sets.values()) or tokens[0] > tokens[1]:
        return None
    return Box(sets, open_, tokens)


def example_of(box: Box) -> str:
    """A call of a box, for people: what is special about it."""
    words = [f"{name} {min(values)}" for name, values in sorted(box.open.items()) if values]
    if len(box.sets["task"]) < len(TaskType):
        words.append(f"task {min(box.sets['task'])}")
    words.append(f"model {min(box.sets['model'])}")
    if len(box.sets["latency_class"]) == 1:
        words.append(f"class {min(box.sets['latency_class'])}")
    if box.sets["hour"] != EVERY_HOUR:
        day, hour = divmod(min(box.sets["hour"]), 24)
        words.append(f"{DAYS[day]} {hour:02d}:00 UTC")
    if box.tokens != (0, NO_END):
        words.append(f"{box.tokens[0] or box.tokens[1]} tokens of input")
    words += [
        name if True in box.sets[name] else f"no {name}"
        for name in ("tools", "media")
        if len(box.sets[name]) == 1
    ]
    return ", ".join(words)
