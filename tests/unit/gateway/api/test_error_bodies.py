"""Does an error look like OpenAI's, tell nothing internal, and say whether to try again?"""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.error_bodies import error_headers, openai_error
from gateway.errors import (
    AllAttemptsFailed,
    BudgetExceeded,
    GatewayError,
    InvalidRequest,
    ModelNotFound,
    NoEligibleTarget,
    Overloaded,
    RateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)


def body(error: GatewayError) -> Any:
    return json.loads(openai_error(error))["error"]


def test_a_callers_mistake_is_told_with_its_field() -> None:
    assert body(InvalidRequest("`n` must be at least 1.", param="n")) == {
        "message": "`n` must be at least 1.",
        "type": "invalid_request_error",
        "param": "n",
        "code": "invalid_request",
    }


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (ModelNotFound("x"), "invalid_request_error", "model_not_found"),
        (BudgetExceeded("x"), "invalid_request_error", "budget_exceeded"),
        (RateLimited("x", retry_after_s=1), "invalid_request_error", "rate_limited"),
        (Overloaded("x"), "server_error", "overloaded"),
        (NoEligibleTarget("x", removed_by_rules=True), "invalid_request_error", "no_target"),
        (NoEligibleTarget("x", removed_by_rules=False), "server_error", "no_target"),
        (
            UpstreamRejected("x", status_code=400, upstream_code="BadRequestError", param=None),
            "invalid_request_error",
            "BadRequestError",
        ),
        (
            AllAttemptsFailed((UpstreamTimeout("x"), UpstreamUnavailable("x"))),
            "server_error",
            "upstream_unavailable",
        ),
    ],
)
def test_an_error_has_its_kind_and_its_code(error: GatewayError, kind: str, code: str) -> None:
    assert (body(error)["type"], body(error)["code"]) == (kind, code)


def test_a_callers_budget_says_when_it_begins_anew() -> None:
    assert body(BudgetExceeded("x", resets_at="2026-12-01T00:00:00Z"))["resets_at"] == "2026-12-01T00:00:00Z"
    assert body(BudgetExceeded("x"))["resets_at"] is None
    assert "resets_at" not in body(InvalidRequest("x"))


def test_what_the_operator_needs_never_leaves() -> None:
    error = UpstreamUnavailable("The model could not answer.", operator_detail="10.0.0.7:8000 refused")
    assert b"10.0.0.7" not in openai_error(error)
    assert b"10.0.0.7" not in openai_error(AllAttemptsFailed((error,)))


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (InvalidRequest("x"), {b"x-should-retry": b"false"}),
        (BudgetExceeded("x"), {b"x-should-retry": b"false"}),
        (NoEligibleTarget("x", removed_by_rules=True), {b"x-should-retry": b"false"}),
        (NoEligibleTarget("x", removed_by_rules=False), {b"x-should-retry": b"true", b"retry-after": b"5"}),
        (RateLimited("x", retry_after_s=7), {b"x-should-retry": b"true", b"retry-after": b"7"}),
        (Overloaded("x"), {b"x-should-retry": b"true", b"retry-after": b"1"}),
        (AllAttemptsFailed((UpstreamTimeout("x"),)), {b"x-should-retry": b"true", b"retry-after": b"1"}),
    ],
)
def test_headers_say_whether_and_when_to_try_again(error: GatewayError, headers: dict[bytes, bytes]) -> None:
    assert dict(error_headers(error)) == headers
