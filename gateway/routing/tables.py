"""Which policies have ever been in force, how was each request decided, and what has been learned?"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, ForeignKey, Index, String, Text
from sqlmodel import Field, SQLModel

from gateway.audit import Audited
from gateway.db import EpochMs

TOPIC = "policies"
"""Of `changes`: raised when a version is stored, checked or activated."""
MESSAGE_CHARS = 500


class PolicyVersion(Audited, table=True):
    """An immutable state of a policy. Rows are only ever added; how far it got is in the tables below."""

    __tablename__ = "policy_versions"
    audit_kind: ClassVar[str] = "policy"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = ("version", "message")

    version: str = Field(
        sa_column=Column(String(80), primary_key=True, comment="name and hash of the content")
    )
    name: str = Field(sa_column=Column(String(64), nullable=False, comment="the policy's name"))
    text: str = Field(sa_column=Column(Text, nullable=False, comment="the YAML as it was written"))
    first_seen_at_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="when this version was first stored, epoch ms")
    )
    author_id: str | None = Field(
        default=None,
        sa_column=Column(
            String(160), nullable=True, comment="who stored it; empty: a start before versions had authors"
        ),
    )
    author_name: str | None = Field(
        default=None,
        sa_column=Column(String(128), nullable=True, comment="what people called the author then"),
    )
    message: str | None = Field(
        default=None,
        sa_column=Column(
            String(MESSAGE_CHARS), nullable=True, comment="what it is for, in the author's words"
        ),
    )

    @property
    def id(self) -> str:
        """The hash alone: how the audit refers to it."""
        return self.version.rpartition("@")[2]

    @property
    def audit_name(self) -> str:
        """What people call it in the audit."""
        return self.version


class PolicyCheck(Audited, table=True):
    """Whether a version fitted the fleet when somebody looked. Rows are only ever added."""

    __tablename__ = "policy_checks"
    __table_args__ = (Index("ix_policy_checks_version", "version", "at_ms"),)
    audit_kind: ClassVar[str] = "policy"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = ("version", "is_fit", "complaint")

    id: str = Field(sa_column=Column(String(64), primary_key=True, comment="opaque id, chk_…"))
    version: str = Field(
        sa_column=Column(
            String(80), ForeignKey("policy_versions.version"), nullable=False, comment="what was looked at"
        )
    )
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="when, epoch ms"))
    is_fit: bool = Field(sa_column=Column(Boolean, nullable=False, comment="it could have served"))
    complaint: str | None = Field(
        default=None, sa_column=Column(Text, nullable=True, comment="what was wrong; empty: nothing")
    )

    @property
    def audit_name(self) -> str:
        """What people call it in the audit."""
        return self.version


class PolicyActivation(Audited, table=True):
    """From an instant on requests follow this version. The one of the highest number is in force.

    A number is taken once: of two people who activate at the same moment, one is refused.
    """

    __tablename__ = "policy_activations"
    __table_args__ = (Index("ix_policy_activations_version", "version", "number"),)
    audit_kind: ClassVar[str] = "policy"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = ("number", "version", "origin", "message")

    number: int = Field(
        sa_column=Column(
            BigInteger, primary_key=True, autoincrement=False, comment="counts activations from 1, no gaps"
        )
    )
    version: str = Field(
        sa_column=Column(
            String(80), ForeignKey("policy_versions.version"), nullable=False, comment="what came into force"
        )
    )
    previous: str | None = Field(
        default=None,
        sa_column=Column(
            String(80),
            ForeignKey("policy_versions.version"),
            nullable=True,
            comment="what it took the place of; empty: nothing",
        ),
    )
    origin: str = Field(sa_column=Column(String(16), nullable=False, comment="seed, publish or rollback"))
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="when, epoch ms"))
    actor_id: str = Field(sa_column=Column(String(160), nullable=False, comment="whose doing it is"))
    actor_name: str = Field(
        sa_column=Column(String(128), nullable=False, comment="what people called the actor then")
    )
    message: str | None = Field(
        default=None, sa_column=Column(String(MESSAGE_CHARS), nullable=True, comment="why, in people's words")
    )

    @property
    def id(self) -> str:
        """How the audit refers to what came into force."""
        return self.version.rpartition("@")[2]

    @property
    def audit_name(self) -> str:
        """What people call it in the audit."""
        return self.version

    @property
    def audit_before(self) -> dict[str, Any] | None:
        """What was in force."""
        return None if self.previous is None else {"number": self.number - 1, "version": self.previous}


class PolicyCanary(Audited, table=True):
    """From an instant on a part of the requests followed a candidate. Rows are only ever added.

    It lives until it has an end, or another version is activated. A number is taken once.
    """

    __tablename__ = "policy_canaries"
    audit_kind: ClassVar[str] = "policy"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = (
        "number",
        "version",
        "control",
        "share",
        "stickiness",
        "tenants",
        "models",
        "units_max",
        "auto_promote",
        "message",
    )

    number: int = Field(
        sa_column=Column(
            BigInteger, primary_key=True, autoincrement=False, comment="counts canaries from 1, no gaps"
        )
    )
    version: str = Field(
        sa_column=Column(
            String(80), ForeignKey("policy_versions.version"), nullable=False, comment="the candidate"
        )
    )
    control: str = Field(
        sa_column=Column(
            String(80), ForeignKey("policy_versions.version"), nullable=False, comment="what is active beside"
        )
    )
    activation: int = Field(
        sa_column=Column(
            BigInteger,
            ForeignKey("policy_activations.number"),
            nullable=False,
            comment="the control's activation; the next one ends the canary",
        )
    )
    share: float = Field(
        sa_column=Column(Float, nullable=False, comment="of the units that follow the candidate, 0 to 1")
    )
    stickiness: str = Field(
        sa_column=Column(
            String(16), nullable=False, comment="what a unit is: a conversation, a key or a request"
        )
    )
    tenants: list[str] = Field(
        sa_column=Column(JSON, nullable=False, comment="names of the tenants that it is about; none: all")
    )
    models: list[str] = Field(
        sa_column=Column(JSON, nullable=False, comment="aliases that it is about; none: all")
    )
    units_max: int = Field(
        sa_column=Column(
            BigInteger,
            nullable=False,
            comment="units of the candidate without harm after which there is a verdict",
        )
    )
    until_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="it ends then at the latest, epoch ms")
    )
    auto_promote: bool = Field(
        sa_column=Column(Boolean, nullable=False, comment="the candidate is activated if it does no harm")
    )
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="when it began, epoch ms"))
    actor_id: str = Field(sa_column=Column(String(160), nullable=False, comment="whose doing it is"))
    actor_name: str = Field(
        sa_column=Column(String(128), nullable=False, comment="what people called the actor then")
    )
    message: str | None = Field(
        default=None, sa_column=Column(String(MESSAGE_CHARS), nullable=True, comment="why, in people's words")
    )

    @property
    def id(self) -> str:
        """How the audit refers to the candidate."""
        return self.version.rpartition("@")[2]

    @property
    def audit_name(self) -> str:
        """What people call it in the audit."""
        return self.version


class PolicyCanaryEnd(Audited, table=True):
    """Why no request follows a candidate any more. Rows are only ever added."""

    __tablename__ = "policy_canary_ends"
    audit_kind: ClassVar[str] = "policy"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = ("number", "version", "how", "reason", "evidence")

    number: int = Field(
        sa_column=Column(
            BigInteger,
            ForeignKey("policy_canaries.number"),
            primary_key=True,
            autoincrement=False,
            comment="the canary",
        )
    )
    version: str = Field(
        sa_column=Column(
            String(80), ForeignKey("policy_versions.version"), nullable=False, comment="the candidate"
        )
    )
    how: str = Field(
        sa_column=Column(
            String(16), nullable=False, comment="stopped, rolled_back (by its guard), promoted or expired"
        )
    )
    reason: str = Field(sa_column=Column(Text, nullable=False, comment="why, for people"))
    evidence: dict[str, Any] | None = Field(
        default=None,
        sa_column=Column(
            JSON(none_as_null=True), nullable=True, comment="what the guard saw; empty: nobody looked"
        ),
    )
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="when, epoch ms"))
    actor_id: str = Field(sa_column=Column(String(160), nullable=False, comment="whose doing it is"))
    actor_name: str = Field(
        sa_column=Column(String(128), nullable=False, comment="what people called the actor then")
    )

    @property
    def id(self) -> str:
        """How the audit refers to the candidate."""
        return self.version.rpartition("@")[2]

    @property
    def audit_name(self) -> str:
        """What people call it in the audit."""
        return self.version


class PolicyShadow(Audited, table=True):
    """From an instant on a candidate was asked for copies of requests. Rows are only ever added.

    It lives until it has an end, its time is over, or another version is activated. A number is taken once.
    """

    __tablename__ = "policy_shadows"
    audit_kind: ClassVar[str] = "policy"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = (
        "number",
        "version",
        "control",
        "share",
        "stickiness",
        "tenants",
        "models",
        "budget_id",
        "until_ms",
        "message",
    )

    number: int = Field(
        sa_column=Column(
            BigInteger, primary_key=True, autoincrement=False, comment="counts shadows from 1, no gaps"
        )
    )
    version: str = Field(
        sa_column=Column(
            String(80), ForeignKey("policy_versions.version"), nullable=False, comment="the candidate"
        )
    )
    control: str = Field(
        sa_column=Column(
            String(80), ForeignKey("policy_versions.version"), nullable=False, comment="what answers tenants"
        )
    )
    activation: int = Field(
        sa_column=Column(
            BigInteger,
            ForeignKey("policy_activations.number"),
            nullable=False,
            comment="the control's activation; the next one ends the shadow",
        )
    )
    share: float = Field(
        sa_column=Column(Float, nullable=False, comment="of the units that are copied, 0 to 1")
    )
    stickiness: str = Field(
        sa_column=Column(
            String(16), nullable=False, comment="what a unit is: a conversation, a key or a request"
        )
    )
    tenants: list[str] = Field(
        sa_column=Column(JSON, nullable=False, comment="names of the tenants that it is about; none: all")
    )
    models: list[str] = Field(
        sa_column=Column(JSON, nullable=False, comment="aliases that it is about; none: all")
    )
    budget_id: str = Field(
        sa_column=Column(String(64), nullable=False, comment="the budget that its copies draw on")
    )
    until_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="it ends then at the latest, epoch ms")
    )
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="when it began, epoch ms"))
    actor_id: str = Field(sa_column=Column(String(160), nullable=False, comment="whose doing it is"))
    actor_name: str = Field(
        sa_column=Column(String(128), nullable=False, comment="what people called the actor then")
    )
    message: str | None = Field(
        default=None, sa_column=Column(String(MESSAGE_CHARS), nullable=True, comment="why, in people's words")
    )

    @property
    def id(self) -> str:
        """How the audit refers to the candidate."""
        return self.version.rpartition("@")[2]

    @property
    def audit_name(self) -> str:
        """What people call it in the audit."""
        return self.version


class PolicyShadowEnd(Audited, table=True):
    """Why a candidate is asked for no copies any more. Rows are only ever added."""

    __tablename__ = "policy_shadow_ends"
    audit_kind: ClassVar[str] = "policy"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = ("number", "version", "reason")

    number: int = Field(
        sa_column=Column(
            BigInteger,
            ForeignKey("policy_shadows.number"),
            primary_key=True,
            autoincrement=False,
            comment="the shadow",
        )
    )
    version: str = Field(
        sa_column=Column(
            String(80), ForeignKey("policy_versions.version"), nullable=False, comment="the candidate"
        )
    )
    reason: str = Field(sa_column=Column(Text, nullable=False, comment="why, for people"))
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="when, epoch ms"))
    actor_id: str = Field(sa_column=Column(String(160), nullable=False, comment="whose doing it is"))
    actor_name: str = Field(
        sa_column=Column(String(128), nullable=False, comment="what people called the actor then")
    )

    @property
    def id(self) -> str:
        """How the audit refers to the candidate."""
        return self.version.rpartition("@")[2]

    @property
    def audit_name(self) -> str:
        """What people call it in the audit."""
        return self.version


class ShadowSkip(SQLModel, table=True):
    """How many requests of a shadow were not copied, and why: a count of all gateways together."""

    __tablename__ = "policy_shadow_skips"

    number: int = Field(
        sa_column=Column(
            BigInteger,
            ForeignKey("policy_shadows.number"),
            primary_key=True,
            autoincrement=False,
            comment="the shadow",
        )
    )
    reason: str = Field(
        sa_column=Column(String(16), primary_key=True, comment="budget, loaded, full, refused, …")
    )
    requests: int = Field(sa_column=Column(BigInteger, nullable=False, comment="so many"))


class Receipt(SQLModel, table=True):
    """How one request was decided: facts, candidates, reasons, nobody's text. Rows are only ever added."""

    __tablename__ = "receipts"

    request_id: str = Field(sa_column=Column(String(64), primary_key=True, comment="as in x-request-id"))
    started_at_ms: int = Field(
        sa_column=Column(
            EpochMs,
            primary_key=True,
            autoincrement=False,
            comment="epoch ms; months are partitions on PostgreSQL",
        )
    )
    tenant_id: str = Field(sa_column=Column(String(64), nullable=False, comment="who may read it"))
    body: str = Field(sa_column=Column(Text, nullable=False, comment="the decision, JSON"))


class Learned(SQLModel, table=True):
    """What answered attempts have taught of one pool and task: decayed sums, no request."""

    __tablename__ = "learned"
    __table_args__ = (Index("ix_learned_folded", "folded_at_ms"),)

    pool: str = Field(sa_column=Column(String(64), primary_key=True, comment="the pool that answered"))
    task: str = Field(sa_column=Column(String(32), primary_key=True, comment="task type; empty: all tasks"))
    tenant_id: str = Field(
        sa_column=Column(String(64), primary_key=True, comment="whose requests; empty: everybody's")
    )
    lessons: int = Field(
        sa_column=Column(BigInteger, nullable=False, comment="attempts that were ever folded in")
    )
    folded_at_ms: int = Field(
        sa_column=Column(
            EpochMs,
            nullable=False,
            comment="until then its weights have faded, epoch ms; the database's clock",
        )
    )
    evidence: str = Field(
        sa_column=Column(Text, nullable=False, comment="the sums, JSON (gateway/routing/learning.py)")
    )


class RefusalHour(SQLModel, table=True):
    """How many requests were refused after a policy was asked and before any attempt, in one hour."""

    __tablename__ = "refusal_hours"

    hour_start_ms: int = Field(
        sa_column=Column(
            EpochMs, primary_key=True, autoincrement=False, comment="first instant of the hour, epoch ms"
        )
    )
    tenant_id: str = Field(sa_column=Column(String(64), primary_key=True, comment="whose requests"))
    policy_version: str = Field(
        sa_column=Column(String(80), primary_key=True, comment="the policy that was asked")
    )
    code: str = Field(sa_column=Column(String(64), primary_key=True, comment="code of the error"))
    requests: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, comment="how many"))


class PolicyCanaryRefusal(SQLModel, table=True):
    """A unit of a canary of which a request was refused before any attempt; the first is kept.

    Rows are only ever added.
    """

    __tablename__ = "policy_canary_refusals"
    __table_args__ = (Index("ix_policy_canary_refusals_written", "number", "written_at_ms"),)

    number: int = Field(
        sa_column=Column(BigInteger, primary_key=True, autoincrement=False, comment="the canary")
    )
    unit: str = Field(
        sa_column=Column(String(16), primary_key=True, comment="the unit, hexadecimal, as in receipts")
    )
    version: str = Field(sa_column=Column(String(80), nullable=False, comment="the policy that was asked"))
    code: str = Field(sa_column=Column(String(64), nullable=False, comment="code of the error"))
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="when, epoch ms"))
    written_at_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="when it was written down, epoch ms")
    )
