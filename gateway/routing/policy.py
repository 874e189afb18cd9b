"""What may a policy say, and what does it mean?

Two types: `PolicyFile`, the YAML as people write it (unknown keys are errors with file, line, key and the
nearest known key), and `Policy`, what a decision uses. A version's id is a hash of the content, so the same
policy has the same id everywhere and an edited one can never keep its old name. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from backends.yaml_source import YamlSourceError, explain, load_yaml_with_lines
from gateway.errors import ConfigurationError, ModelNotFound
from gateway.inference import CREATIVE_TASKS, CacheRule, Nature, TaskType

SHOWN_MODELS = 20
MODEL_CHARS = 128
"""What the ledger keeps of an alias."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Strict):
    """A name that clients may ask for."""

    pools: tuple[str, ...] = Field(min_length=1, description="pools that may serve it")
    description: str = Field(default="", description="for people, shown in /v1/models")


class TaskSection(_Strict):
    """How tasks are judged."""

    default: TaskType = Field(default=TaskType.CHAT, description="when nothing says which task a call is")
    natures: dict[TaskType, Nature] = Field(
        default_factory=dict, description="where a task's nature differs from the usual one"
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


class PolicyFile(_Strict):
    """A policy as it is written."""

    name: str = Field(min_length=1, max_length=64)
    description: str = ""
    models: dict[Annotated[str, Field(min_length=1, max_length=MODEL_CHARS)], ModelEntry] = Field(
        min_length=1
    )
    tasks: TaskSection = Field(default_factory=TaskSection)
    routes: RouteSection
    max_tokens_default: int = Field(gt=0, description="put into requests that state no limit on their output")
    cache: CacheSection = Field(default_factory=CacheSection)

    @model_validator(mode="after")
    def _every_pool_has_a_place(self) -> Self:
        for alias, entry in self.models.items():
            for pool in entry.pools:
                for nature in Nature:
                    if pool not in getattr(self.routes, nature):
                        message = (
                            f"model {alias!r} may use pool {pool!r}, but routes.{nature} does not list it: "
                            "add it there, last if it is only a fallback"
                        )
                        raise ValueError(message)
        return self


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
    try:
        value, lines = load_yaml_with_lines(text)
    except YamlSourceError as error:
        raise ConfigurationError(f"{source}:{error.line}: {error}") from None
    try:
        file = PolicyFile.model_validate(value)
    except ValidationError as error:
        raise ConfigurationError("\n".join(explain(error, lines, PolicyFile, source=source))) from None
    for nature in Nature:
        for index, pool in enumerate(getattr(file.routes, nature)):
            if pool not in pools:
                line = lines.get(("routes", nature.value, index), lines.get(("routes",), 1))
                known = ", ".join(sorted(pools)) or "none"
                raise ConfigurationError(
                    f"{source}:{line}: routes.{nature}: there is no pool {pool!r}; known pools: {known}"
                )
    return _compile(file, text)


def _compile(file: PolicyFile, text: str) -> Policy:
    usual = {task: Nature.CREATIVE if task in CREATIVE_TASKS else Nature.PREDICTABLE for task in TaskType}
    # A section that says nothing new leaves the id of policies alone that were written before it existed.
    content = file.model_dump_json(exclude={"cache"} if file.cache == CacheSection() else None)
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
        cache=CacheRule(
            is_enabled=file.cache.enabled,
            temperature_max=file.cache.temperature_max,
            ttl_s=file.cache.ttl_s,
        ),
    )
