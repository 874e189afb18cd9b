"""Is this text a policy, where is it wrong, what would it change? POST /admin/v1/policies/check and /diff.

What `tollgate policy check` and `policy diff` say of a file, of a text that nobody has stored: for editors,
while somebody types. Nothing is stored.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from backends.yaml_source import YamlSourceError, load_yaml_with_lines
from gateway.admin.policy_views import PolicyDiffView, diff_view
from gateway.dependencies import ServicesDep, SessionDep
from gateway.errors import (
    ConfigurationError,
    InvalidRequest,
    NotFound,
    Overloaded,
    PayloadTooLarge,
)
from gateway.policy_life import Supply
from gateway.pricing.catalog import cards_of
from gateway.routing.policy_check import Finding, Severity, check_policy
from gateway.routing.policy_diff import diff_policies
from gateway.routing.versions import find_version, read_active, show_version

router = APIRouter(prefix="/admin/v1/policies", tags=["policies"])

SOURCE = "policy"
LOOKED_AT_BYTES_MAX = 100_000
"""A policy of two hundred rules has a third of that."""
FINDINGS_MAX = 100
WAITING_MAX = 8
"""Texts that wait while one is read; of a person who types there is one."""
RETRY_AFTER_S = 2
T = TypeVar("T")


class Reader:
    """Reads texts in a thread, one after the other: requests do not wait while somebody's YAML is read."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy-check")
        self._asked = 0

    async def read(self, work: Callable[..., T], *words: Any, **named: Any) -> T:
        """What the work comes to, in its turn.

        Raises:
            Overloaded: too many wait.
        """
        if self._asked > WAITING_MAX:
            raise Overloaded(
                f"Policies are read one at a time here, and {self._asked} texts are asked about already: try"
                f" again in {RETRY_AFTER_S} s. `tollgate policy check FILE` waits for nobody.",
                retry_after_s=RETRY_AFTER_S,
            )
        self._asked += 1
        try:
            asked = functools.partial(work, *words, **named)
            return await asyncio.get_running_loop().run_in_executor(self._thread, asked)
        finally:
            self._asked -= 1


READER = Reader()


class CheckRequest(BaseModel):
    """A text that may be a policy."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": "name: default\n…"}]})

    text: str = Field(description="the whole policy, YAML")


class FindingView(BaseModel):
    """Something that is wrong, or looks so."""

    severity: Severity = Field(description="overlap: two rules share calls, which is usually meant")
    line: int = Field(description="of the text, from 1")
    path: str = Field(description="the key, such as rules[2].use; empty: of the whole text")
    message: str
    suggestion: str | None = Field(description="what to do; null: the message says it")


class CheckView(BaseModel):
    """What is to be said of a text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "version": None,
                    "is_valid": False,
                    "findings": [
                        {
                            "severity": "error",
                            "line": 12,
                            "path": "routes.creative",
                            "message": "there is no pool 'plan'; did you mean 'plain'?",
                            "suggestion": None,
                        }
                    ],
                }
            ]
        }
    )

    version: str | None = Field(description="what it would be called; null: it cannot be read")
    is_valid: bool = Field(description="it could be put into force here")
    findings: list[FindingView] = Field(description="in the order of their lines")


@router.post("/check", summary="See whether a text is a policy that fits the fleet, and where it is wrong")
async def check_text(services: ServicesDep, asked: CheckRequest) -> CheckView:
    """Errors and warnings by line; nothing is stored.

    Raises:
        PayloadTooLarge: no policy is that long.
        Overloaded: too many texts wait to be read.
    """
    _refuse_long(asked.text)
    version, found = await READER.read(findings_of, asked.text, services.policies.supply)
    return CheckView(
        version=version,
        is_valid=not any(each.severity is Severity.ERROR for each in found),
        findings=[
            FindingView(
                severity=each.severity,
                line=each.line,
                path=each.path,
                message=each.message,
                suggestion=each.suggestion,
            )
            for each in found[:FINDINGS_MAX]
        ],
    )


def _refuse_long(text: str) -> None:
    """Insist on what people write by hand: who only looks may not keep a processor busy for long.

    Raises:
        PayloadTooLarge: it is longer.
    """
    if len(text.encode(errors="surrogatepass")) > LOOKED_AT_BYTES_MAX:
        raise PayloadTooLarge(
            f"Texts of at most {LOOKED_AT_BYTES_MAX:,} bytes are checked here."
            " `tollgate policy check FILE` reads longer ones."
        )


def findings_of(text: str, supply: Supply) -> tuple[str | None, list[Finding]]:
    """What a text would be called as a version, and what is wrong with it here.

    Args:
        text: the YAML.
        supply: what there is.
    """
    cards = cards_of(supply.pools)
    prices = {name: card.price for name, card in cards.items() if card.price is not None}
    policy, found = check_policy(text, source=SOURCE, pools=supply.pools, prices=prices)
    if policy is not None and supply.keys is not None:
        for sentence in policy.missing_keys(supply.keys):
            path, _, message = sentence.partition(": ")
            found.append(Finding(Severity.ERROR, _line_of(text, path), path, message))
    found.sort(key=lambda each: each.line)
    return (None if policy is None else policy.version), found


def _line_of(text: str, path: str) -> int:
    """Where a key of an external target stands; 1 where it does not."""
    try:
        _, lines = load_yaml_with_lines(text)
    except YamlSourceError:
        return 1
    keys = tuple(path.split("."))
    return lines.get(keys, lines.get(keys[:2], 1))


class DiffRequest(BaseModel):
    """A text, and what it shall be compared with."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": "name: default\n…"}]})

    text: str = Field(description="the whole policy, YAML")
    before: str | None = Field(default=None, description="a stored version; null: the one in force")


@router.post("/diff", summary="What a text that nobody has stored would change")
async def compare_text(session: SessionDep, asked: DiffRequest) -> PolicyDiffView:
    """By meaning, key by key, and as text, against a stored version; nothing is stored.

    Raises:
        NotFound: no policy was ever active, or there is no such version.
        InvalidRequest: the text is not YAML.
        PayloadTooLarge: no policy is that long.
        Overloaded: too many texts wait to be read.
    """
    _refuse_long(asked.text)
    wanted = asked.before
    if wanted is None:
        active = await read_active(session)
        if active is None:
            raise NotFound("No policy was ever active.")
        wanted = active.version
    stored = await show_version(session, await find_version(session, wanted))
    names = (stored.version, "draft")
    try:
        diff = await READER.read(diff_policies, stored.text, asked.text, names=names)
    except ConfigurationError as error:
        raise InvalidRequest(str(error), param="text") from None
    return diff_view(diff, names)
