"""How do policies look outside? One form for the API's answers and the command line's `--json`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.views import moment, optional_moment
from gateway.policy_life import Outcome
from gateway.routing.policy_diff import Kind, PolicyDiff
from gateway.routing.versions import Activation, Origin, State, Version

_VERSION: dict[str, Any] = {
    "version": "default@3f2a9c41d07e",
    "name": "default",
    "state": "active",
    "author": "ops",
    "message": "creative work to the plain pool",
    "created_at": "2026-11-20T12:00:00Z",
    "checked_at": "2026-11-20T12:00:00Z",
    "complaint": None,
    "activated_at": "2026-11-20T12:00:00Z",
    "retired_at": None,
}
_ACTIVATION: dict[str, Any] = {
    "number": 7,
    "version": "default@3f2a9c41d07e",
    "previous": "default@91c0de55aa10",
    "origin": "publish",
    "at": "2026-11-20T12:00:00Z",
    "actor": "ops",
    "message": "creative work to the plain pool",
}


class VersionView(BaseModel):
    """A stored version of a policy; it never changes, only its state does."""

    model_config = ConfigDict(json_schema_extra={"examples": [_VERSION]})

    version: str = Field(description="name and hash of the content")
    name: str
    state: State
    author: str | None = Field(description="who stored it first; null: a start before versions had authors")
    message: str | None
    created_at: datetime
    checked_at: datetime | None = Field(description="when somebody last looked whether it fits the fleet")
    complaint: str | None = Field(description="what did not fit then; null: everything did, or nobody looked")
    activated_at: datetime | None = Field(description="when it last came into force")
    retired_at: datetime | None = Field(description="when another one last took its place")


class VersionTextView(VersionView):
    """A stored version, with its YAML."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_VERSION, "text": "name: default\n…"}]})

    text: str = Field(description="the YAML, as it was written")


class ActiveView(VersionTextView):
    """The active version, and whether whoever answers follows it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_VERSION,
                    "text": "name: default\n…",
                    "in_force_here": "default@3f2a9c41d07e",
                    "refused_here": None,
                }
            ]
        }
    )

    in_force_here: str = Field(description="what requests to this gateway follow")
    refused_here: str | None = Field(description="why this gateway cannot use the active one; null: it can")


class ActivationView(BaseModel):
    """From an instant on requests followed this version."""

    model_config = ConfigDict(json_schema_extra={"examples": [_ACTIVATION]})

    number: int = Field(description="counts from 1 without gaps; the highest is in force")
    version: str
    previous: str | None = Field(description="what it took the place of; null: nothing")
    origin: Origin = Field(description="seed: a start of a fresh install")
    at: datetime
    actor: str
    message: str | None


class OutcomeView(BaseModel):
    """What an activation came to."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"is_changed": True, "active": _ACTIVATION, "before": "default@91c0de55aa10"}]
        }
    )

    is_changed: bool = Field(description="false: that version was in force already")
    active: ActivationView
    before: str | None = Field(description="the version that was in force; null: none")


class PolicyDifferenceView(BaseModel):
    """A key of the YAML whose value differs."""

    path: str = Field(description="the key, dotted")
    kind: Kind
    before: Any = None
    after: Any = None


class PolicyDiffView(BaseModel):
    """What differs between two policies."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "before": "default@91c0de55aa10",
                    "after": "default@3f2a9c41d07e",
                    "differences": [
                        {"path": "max_tokens_default", "kind": "changed", "before": 256, "after": 512}
                    ],
                    "text": "--- default@91c0de55aa10\n+++ default@3f2a9c41d07e\n…",
                }
            ]
        }
    )

    before: str
    after: str
    differences: list[PolicyDifferenceView] = Field(description="by meaning; empty: they say the same")
    text: str = Field(description="unified; empty: not a byte differs")


def version_view(version: Version) -> VersionView:
    """A version without its YAML."""
    return VersionView(**_fields(version))


def version_text_view(version: Version) -> VersionTextView:
    """A version with its YAML."""
    return VersionTextView(**_fields(version), text=version.text)


def active_view(version: Version, *, in_force: str, refused: str | None) -> ActiveView:
    """The active version, as one gateway sees it."""
    return ActiveView(**_fields(version), text=version.text, in_force_here=in_force, refused_here=refused)


def _fields(version: Version) -> dict[str, Any]:
    return {
        "version": version.version,
        "name": version.name,
        "state": version.state,
        "author": version.author,
        "message": version.message,
        "created_at": moment(version.created_at_ms),
        "checked_at": optional_moment(version.checked_at_ms),
        "complaint": version.complaint,
        "activated_at": optional_moment(version.activated_at_ms),
        "retired_at": optional_moment(version.retired_at_ms),
    }


def activation_view(activation: Activation) -> ActivationView:
    """An activation."""
    return ActivationView(
        number=activation.number,
        version=activation.version,
        previous=activation.previous,
        origin=activation.origin,
        at=moment(activation.at_ms),
        actor=activation.actor,
        message=activation.message,
    )


def outcome_view(outcome: Outcome) -> OutcomeView:
    """What an activation came to."""
    return OutcomeView(
        is_changed=outcome.is_changed,
        active=activation_view(outcome.active),
        before=None if outcome.before is None else outcome.before.version,
    )


def diff_view(diff: PolicyDiff, names: tuple[str, str]) -> PolicyDiffView:
    """What differs between two policies."""
    return PolicyDiffView(
        before=names[0],
        after=names[1],
        differences=[
            PolicyDifferenceView(path=one.path, kind=one.kind, before=one.before, after=one.after)
            for one in diff.differences
        ],
        text=diff.text,
    )
