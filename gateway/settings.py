"""Which settings are in force? Read once, from the environment, then `tollgate.toml`, then defaults.

Environment names start with `TOLLGATE_`; nested groups are joined by `__` (`TOLLGATE_TIMEOUTS__CONNECT_S`).
Unknown keys are errors, in the file and in the environment alike.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from backends.liveness import HealthRule
from gateway.errors import ConfigurationError

SETTINGS_FILE = Path("tollgate.toml")
PREFIX = "TOLLGATE_"
MASK = "**********"
EXTERNAL_KEY = "EXTERNAL_KEYS__"
"""Begins the names that operators choose themselves."""


class TimeoutSettings(BaseModel):
    """The limits on an engine's answer, seconds."""

    model_config = ConfigDict(extra="forbid")

    connect_s: float = Field(default=2.0, gt=0, description="until a connection to the replica stands")
    first_token_s: float = Field(default=60.0, gt=0, description="until the first content of a stream")
    between_tokens_s: float = Field(default=30.0, gt=0, description="between two pieces of a stream")
    total_s: float = Field(default=600.0, gt=0, description="for a whole answer")
    stream_total_s: float = Field(default=3600.0, gt=0, description="for a whole stream")
    drain_s: int = Field(
        default=30, ge=0, description="how long answers under way may take to end after a stop is asked for"
    )


class ClientSettings(BaseModel):
    """What a client's connection may hold, and for how long."""

    model_config = ConfigDict(extra="forbid")

    head_bytes_max: int = Field(default=65_536, gt=0, description="a request's line and headers together")
    headers_max: int = Field(default=256, gt=0, description="headers of a request")
    request_timeout_s: float = Field(
        default=60.0, gt=0, description="from a request's first byte, or the connection, to its last byte"
    )
    read_timeout_s: float = Field(
        default=120.0, gt=0, description="a client that takes in nothing of its answer for so long has left"
    )
    keep_alive_s: int = Field(
        default=75, gt=0, description="idle connections; longer than clients keep theirs, or they lose races"
    )


class HealthSettings(BaseModel):
    """When a replica is taken out, and when it is tried again; seconds."""

    model_config = ConfigDict(extra="forbid")

    poll_interval_s: float = Field(default=1.0, gt=0, le=60, description="between two looks at a replica")
    stall_s: float = Field(
        default=20.0,
        gt=0,
        description="a busy engine that does not move for so long must generate a token",
    )
    idle_probe_s: float = Field(
        default=60.0, gt=0, description="an idle engine generates a token after so long, to see that it does"
    )
    probe_timeout_s: float = Field(default=30.0, gt=0, description="for that token")
    failures_in_a_row: int = Field(default=3, gt=0, description="failed requests that open a breaker")
    failure_ratio: float = Field(
        default=0.5, gt=0, le=1, description="share of the last 20 requests that does so too"
    )
    backoff_s: float = Field(default=1.0, gt=0, description="until an open breaker is tried; doubles")
    backoff_s_max: float = Field(default=30.0, gt=0, description="and no longer than this")

    @property
    def rule(self) -> HealthRule:
        """How closely replicas are watched, by gateways and by the process driver."""
        return HealthRule(
            poll_interval_s=self.poll_interval_s,
            stall_s=self.stall_s,
            idle_probe_s=self.idle_probe_s,
            probe_timeout_s=self.probe_timeout_s,
        )


class RetrySettings(BaseModel):
    """How often failed attempts are tried again, so that an outage does not multiply load."""

    model_config = ConfigDict(extra="forbid")

    ratio: float = Field(default=0.2, ge=0, le=10, description="retries per request of the last 10 to 20 s")
    floor_per_s: float = Field(
        default=10.0, ge=0, description="retries per second beside that, however few requests there are"
    )


class HedgeSettings(BaseModel):
    """When a stream that is slow to begin is asked for at a second replica too."""

    model_config = ConfigDict(extra="forbid")

    ratio: float = Field(default=0.0, ge=0, le=0.5, description="hedges per stream at most; 0: none")
    quantile: float = Field(
        default=0.95,
        ge=0.5,
        lt=1,
        description="of a pool's times to the first content: later is slow",
    )
    delay_s_min: float = Field(default=0.05, gt=0, description="no hedge is made earlier")


class OverloadSettings(BaseModel):
    """How much may be under way in one process, and who is refused first beyond that."""

    model_config = ConfigDict(extra="forbid")

    in_flight_max: int | None = Field(
        default=None, gt=0, description="calls under way; unset: per_slot times what the ready replicas batch"
    )
    per_slot: float = Field(
        default=4.0, gt=0, description="calls under way per sequence that the ready replicas decode together"
    )
    in_flight_min: int = Field(
        default=256, gt=0, description="calls that may be under way however small the pools are"
    )
    flex_share: float = Field(default=0.7, gt=0, le=1, description="of all that, until `flex` is refused")
    default_share: float = Field(default=0.9, gt=0, le=1, description="until `default` is refused")
    reserved_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="of each class's part, for tenants below their share",
    )
    tenant_weights: dict[str, float] = Field(
        default_factory=dict, description="by tenant's name, for their shares; 1 for all others"
    )

    @field_validator("tenant_weights")
    @classmethod
    def _above_nothing(cls, weights: dict[str, float]) -> dict[str, float]:
        if any(weight <= 0 for weight in weights.values()):
            message = "a weight must be above 0: revoke a key or set a limit to keep somebody out"
            raise ValueError(message)
        return weights

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.flex_share > self.default_share:
            message = "flex_share must not be above default_share: flex is refused first"
            raise ValueError(message)
        return self


class LimitSettings(BaseModel):
    """Bounds on what one request or one process may hold."""

    model_config = ConfigDict(extra="forbid")

    body_bytes_max: int = Field(default=20_000_000, gt=0, description="size of a request body")
    messages_max: int = Field(default=2_048, gt=0, description="messages in one chat request")
    choices_max: int = Field(default=128, gt=0, description="n times the number of prompts")
    attempts_max: int = Field(default=3, gt=0, description="targets tried for one request")
    unshipped_records_max: int = Field(
        default=200_000,
        gt=0,
        description="usage records that may wait for the database before requests are shed",
    )


class FreshnessSettings(BaseModel):
    """How soon a change reaches a running gateway."""

    model_config = ConfigDict(extra="forbid")

    poll_interval_s: float = Field(default=0.5, gt=0, le=2, description="between two looks for changes")
    auth_stale_max_s: float = Field(
        default=900, gt=0, description="how long known keys stay valid while the database is away"
    )


class SpoolSettings(BaseModel):
    """How usage records reach the database."""

    model_config = ConfigDict(extra="forbid")

    fsync_interval_ms: int = Field(default=50, gt=0, description="group fsync, against power loss")
    ship_interval_ms: int = Field(default=600, gt=0, description="between two batches to the database")
    batch_records_max: int = Field(default=2_000, gt=0, description="records in one statement")


class BudgetSettings(BaseModel):
    """How much of the budgets a process may hold, and for how long, without asking the database."""

    model_config = ConfigDict(extra="forbid")

    slice_ttl_s: float = Field(
        default=900, gt=0, description="a process that cannot renew its slices stops spending them after this"
    )
    slice_grace_s: float = Field(
        default=1200,
        gt=0,
        description="after that, silent slices are booked as unattributed; longer than any answer",
    )
    reserve_s: float = Field(
        default=300, gt=0, description="how long a process can go on at its pace while the database is away"
    )
    recall_s: float = Field(
        default=1.0, gt=0, le=10, description="how long others have to give back before a request is refused"
    )
    look_interval_s: float = Field(default=0.25, gt=0, description="between two looks whether slices run low")


class AuditSettings(BaseModel):
    """How often the books are checked while they are kept."""

    model_config = ConfigDict(extra="forbid")

    interval_s: float = Field(default=60, gt=0, description="between two looks at what is recent")
    recent_s: float = Field(default=7200, gt=0, description="how far back such a look goes")
    whole_interval_s: float = Field(default=86_400, gt=0, description="between two looks at everything")


class SupplySettings(BaseModel):
    """How what supply costs is counted."""

    model_config = ConfigDict(extra="forbid")

    interval_s: float = Field(default=300, gt=0, description="between two looks for hours to freeze")
    grace_s: float = Field(
        default=7200,
        ge=0,
        description="an hour is frozen so long after its end; what comes later is a correction",
    )
    look_s: float = Field(default=10, gt=0, description="between two looks at how long replicas ran")


class PeriodSettings(BaseModel):
    """When months are closed."""

    model_config = ConfigDict(extra="forbid")

    grace_s: float = Field(
        default=259_200,
        ge=0,
        description="usage may arrive so long after a month's end; closing it earlier takes `--now`",
    )


class FinanceSettings(BaseModel):
    """Who bills whom, as it stands in FOCUS files."""

    model_config = ConfigDict(extra="forbid")

    organisation_id: str = Field(
        default="organisation", min_length=1, max_length=128, description="the billing account, opaque"
    )
    organisation: str = Field(
        default="Organisation", min_length=1, max_length=128, description="what people call it"
    )
    issuer: str = Field(
        default="Tollgate",
        min_length=1,
        max_length=128,
        description="the platform's legal name: provider and issuer of invoices",
    )
    region_id: str | None = Field(default=None, max_length=128, description="data centre of the pools")
    region: str | None = Field(default=None, max_length=128, description="its name")


class OidcSettings(BaseModel):
    """The company's own login to the console (OpenID Connect); off while there is no issuer."""

    model_config = ConfigDict(extra="forbid")

    issuer: str | None = Field(default=None, description="the provider's issuer URL, as its tokens say it")
    client_id: str = Field(default="", description="what the provider knows Tollgate as")
    scopes: str = Field(default="openid profile email", description="asked for; the roles' claim with them")
    name_claim: str = Field(default="email", description="claim that says what people call the person")
    role_claim: str = Field(default="groups", description="claim with the groups that have roles here")
    roles: dict[str, Literal["admin", "operator", "finance", "viewer"]] = Field(
        default_factory=dict, description="groups and their roles; whoever is in several has the first"
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.issuer is not None and not (self.client_id and self.roles):
            raise ValueError("with an issuer, client_id and roles (a group for each role) are needed too")
        return self


class CanarySettings(BaseModel):
    """When the guard of a canary takes the candidate back."""

    model_config = ConfigDict(extra="forbid")

    interval_s: float = Field(default=2, gt=0, description="between two looks of all processes together")
    error_probability: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="with which a candidate that does no harm is ever taken back, however often one looks",
    )
    units_min: int = Field(default=20, ge=1, description="of the candidate, before which nothing is judged")
    tolerated_latency_ratio: float = Field(
        default=0.10, ge=0, description="a candidate may be so much slower, 0 to 1 of the control's time"
    )
    tolerated_cost_ratio: float = Field(
        default=0.05, ge=0, description="a candidate may be so much dearer, 0 to 1 of the control's charge"
    )


class ShadowSettings(BaseModel):
    """How much of this process copies of requests may take, which are made to judge a candidate."""

    model_config = ConfigDict(extra="forbid")

    concurrency_max: int = Field(default=4, ge=1, description="copies under way at once")
    queue_max: int = Field(default=64, ge=1, description="copies that wait; what comes then is not copied")
    queue_bytes_max: int = Field(default=16_000_000, gt=0, description="of their requests' bodies together")
    age_s_max: float = Field(default=30, gt=0, description="a copy that waited longer is not made")
    headroom_ratio: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="no copy is made while more of what this process, or a replica, can take is under way",
    )


class CacheSettings(BaseModel):
    """How much is kept of answers, and how long a request may wait to look one up."""

    model_config = ConfigDict(extra="forbid")

    memory_bytes_max: int = Field(default=64_000_000, gt=0, description="in this process, without Redis")
    entry_bytes_max: int = Field(default=1_000_000, gt=0, description="the largest answer that is kept")
    lookup_timeout_ms: int = Field(
        default=10, gt=0, le=1000, description="a slower lookup is a miss and rests the cache for a second"
    )


class AlertSettings(BaseModel):
    """Who is told of budgets and of unusual spend, and what is unusual."""

    model_config = ConfigDict(extra="forbid")

    webhook_urls: list[SecretStr] = Field(
        default_factory=list, description="where messages are posted as signed JSON"
    )
    smtp_host: str | None = Field(default=None, description="mail server; unset: no mail")
    smtp_port: int = Field(default=587, gt=0, le=65535, description="of the mail server")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="none: in the clear, and without a password"
    )
    smtp_user: str | None = Field(default=None, description="to log in with")
    smtp_password: SecretStr | None = Field(default=None, description="to log in with")
    mail_from: str | None = Field(default=None, description="sender's address")
    mail_to: list[str] = Field(default_factory=list, description="receivers' addresses")
    ca_file: Path | None = Field(
        default=None, description="certificate authorities of webhooks and the mail server, PEM"
    )
    timeout_s: float = Field(default=10.0, gt=0, le=60, description="for one delivery")
    interval_s: float = Field(default=15.0, gt=0, description="between two looks for what is to be told")
    anomaly_floor_usd: float = Field(
        default=1.0, gt=0, description="an excess of less, in an hour or a day, is no anomaly"
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for url in self.webhook_urls:
            if not re.match(r"https?://[^/\s]", url.get_secret_value()):
                message = "webhook_urls: an address begins with http:// or https:// and a host"
                raise ValueError(message)
        if self.smtp_host is not None and not (self.mail_from and self.mail_to):
            message = "smtp_host needs mail_from and mail_to too"
            raise ValueError(message)
        for address in (*self.mail_to, *([self.mail_from] if self.mail_from else [])):
            if not re.fullmatch(r"[^\s@<>,]+@[^\s@<>,]+", address):
                message = "mail_from and mail_to are plain addresses, such as finance@example.com"
                raise ValueError(message)
        if (self.smtp_user is None) != (self.smtp_password is None):
            message = "smtp_user and smtp_password go together"
            raise ValueError(message)
        if self.smtp_password is not None and self.smtp_security == "none":
            message = "a password is not sent in the clear: set smtp_security to starttls or tls"
            raise ValueError(message)
        return self


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", toml_file=SETTINGS_FILE, extra="forbid"
    )

    database_url: str = Field(default="", description="default: an SQLite file in the state folder")
    redis_url: SecretStr | None = Field(
        default=None, description="default: cache in the process; redis://, rediss://, cluster or sentinel"
    )
    workers: int = Field(
        default=1, ge=1, le=64, description="serving processes; several need PostgreSQL and Redis"
    )
    state_dir: Path = Field(default=Path(".tollgate"), description="database, spool, logs, demo keys")
    pools: Path = Field(default=Path("backends/pools"), description="folder of pool files")
    policy: Path = Field(
        default=Path("policies/default.yaml"), description="policy that seeds a fresh install"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="port to listen on; 0 chooses a free one")
    admin_key: SecretStr | None = Field(default=None, description="bootstrap administrator key")
    secret_key: SecretStr | None = Field(default=None, description="root key; a comma list rotates")
    secret_key_file: Path | None = Field(default=None, description="file that holds the root key")
    migration_database_url: SecretStr | None = Field(default=None, description="owner role for migrations")
    external_keys: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="API keys of external targets, by the names that the policy uses",
    )
    timeouts: TimeoutSettings = Field(default_factory=TimeoutSettings)
    clients: ClientSettings = Field(default_factory=ClientSettings)
    health: HealthSettings = Field(default_factory=HealthSettings)
    retries: RetrySettings = Field(default_factory=RetrySettings)
    hedging: HedgeSettings = Field(default_factory=HedgeSettings)
    overload: OverloadSettings = Field(default_factory=OverloadSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    freshness: FreshnessSettings = Field(default_factory=FreshnessSettings)
    spool: SpoolSettings = Field(default_factory=SpoolSettings)
    budgets: BudgetSettings = Field(default_factory=BudgetSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)
    supply: SupplySettings = Field(default_factory=SupplySettings)
    periods: PeriodSettings = Field(default_factory=PeriodSettings)
    finance: FinanceSettings = Field(default_factory=FinanceSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    alerts: AlertSettings = Field(default_factory=AlertSettings)
    canary: CanarySettings = Field(default_factory=CanarySettings)
    oidc: OidcSettings = Field(default_factory=OidcSettings)
    oidc_client_secret: SecretStr | None = Field(
        default=None, description="of Tollgate at the OpenID Connect provider; none: a public client"
    )
    shadow: ShadowSettings = Field(default_factory=ShadowSettings)

    @field_validator("external_keys")
    @classmethod
    def _in_lower_case(cls, keys: dict[str, SecretStr]) -> dict[str, SecretStr]:
        """Names as environment variables have them and as files do are the same names."""
        return {name.lower(): key for name, key in keys.items()}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the file: no .env files, no secret folders."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def effective_database_url(self) -> str:
        """The database in use."""
        if self.database_url:
            return self.database_url
        return f"sqlite+aiosqlite:///{(self.state_dir / 'tollgate.db').resolve()}"

    @property
    def is_embedded(self) -> bool:
        """SQLite in the state folder: one machine, one process, generated secrets allowed."""
        return self.effective_database_url.startswith("sqlite")


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """The effective settings.

    Args:
        environment: None for the process's own (used to look for unknown names; values are read by pydantic).

    Raises:
        ConfigurationError: an unknown key, or a value out of range; names the key and the nearest known one.
    """
    names = os.environ if environment is None else environment  # noqa: TID251 - the one place that reads it
    _refuse_unknown_names(names)
    try:
        settings = Settings()
    except ValidationError as error:
        raise ConfigurationError(_readable(error)) from None
    except SettingsError as error:  # a group in one variable, as JSON that does not parse
        raise ConfigurationError(f"in the environment: {error}") from None
    except (ValueError, OSError) as error:  # a TOML file that cannot be read
        raise ConfigurationError(f"{SETTINGS_FILE}: {error}") from None
    _refuse_workers_without_stores(settings)
    return settings


def _refuse_workers_without_stores(settings: Settings) -> None:
    missing = []
    if settings.is_embedded:
        missing.append("PostgreSQL (TOLLGATE_DATABASE_URL=postgresql+asyncpg://…)")
    if settings.redis_url is None:
        missing.append("Redis (TOLLGATE_REDIS_URL=redis://…)")
    if settings.workers > 1 and missing:
        raise ConfigurationError(
            f"{settings.workers} workers share what they know through PostgreSQL and Redis: set"
            f" {' and '.join(missing)}, or TOLLGATE_WORKERS=1"
        )


def _refuse_unknown_names(names: Mapping[str, str]) -> None:
    known = {name.upper() for name in _known_keys()}
    for name in names:
        # The prefix is left out of the comparison: it alone would make every name look like another.
        prefix, key = name[: len(PREFIX)].upper(), name[len(PREFIX) :].upper()
        is_external_key = len(key) > len(EXTERNAL_KEY) and key.startswith(EXTERNAL_KEY)
        if prefix == PREFIX and key not in known and not is_external_key:
            hint = _nearest(key, known, prefix=PREFIX)
            raise ConfigurationError(f"unknown setting {name} in the environment{hint}")


def _known_keys() -> set[str]:
    keys: set[str] = set()
    for name, field in Settings.model_fields.items():
        keys.add(name)
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            keys.update(f"{name}__{inner}" for inner in group.model_fields)
    return keys


def _nearest(name: str, known: set[str], *, prefix: str = "") -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else "; `tollgate config` lists the known ones"


def _readable(error: ValidationError) -> str:
    known = {key.replace("__", ".") for key in _known_keys()}
    lines = []
    for problem in error.errors(include_url=False):
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting {path!r} in {SETTINGS_FILE}{_nearest(path, known)}")
        elif problem["loc"][0] in _CONFIDENTIAL:
            lines.append(f"setting {path!r}: {problem['msg']}")
        else:
            lines.append(f"setting {path!r}: {problem['msg']} (got {problem['input']!r})")
    return "; ".join(lines)


_SECRETS = frozenset(
    name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)
)
_CONFIDENTIAL = _SECRETS | {"database_url", "alerts"}
"""Never shown as they are, in mistakes either."""


def masked(settings: Settings) -> dict[str, Any]:
    """The effective values as plain JSON, secrets and passwords in URLs replaced by asterisks."""
    values = settings.model_dump(mode="json")
    values["database_url"] = _without_password(settings.effective_database_url)
    for name in _SECRETS:
        if isinstance(values[name], dict):
            values[name] = dict.fromkeys(values[name], MASK)
        elif values[name] is not None:
            values[name] = MASK
    return values


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    credentials, at, address = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    shown = f"{scheme}{separator}{user}{f':{MASK}' if colon else ''}{at}{address}"
    # PostgreSQL's drivers take a password as a parameter too.
    return re.sub(r"(?i)([?&][^=&]*password[^=&]*=)[^&]*", rf"\1{MASK}", shown)
