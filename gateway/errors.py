"""What can go wrong, and how does each failure look from outside?

GatewayError                      code                  status  retryable
├─ CallerError                    the message is safe to show
│  ├─ InvalidRequest              invalid_request         400     no
│  ├─ AuthenticationFailed        invalid_api_key         401     no
│  ├─ BudgetExceeded              budget_exceeded         402     no
│  ├─ Unpriced                    unpriced                402     no
│  ├─ PermissionDenied            permission_denied       403     no
│  ├─ NotFound                    not_found               404     no
│  │  └─ ModelNotFound            model_not_found         404     no
│  ├─ MethodNotAllowed            method_not_allowed      405     no
│  ├─ Conflict                    conflict                409     no
│  ├─ PayloadTooLarge             payload_too_large       413     no
│  ├─ UnsupportedEncoding         unsupported_encoding    415     no
│  └─ RateLimited                 rate_limited            429     yes    + retry_after_s
├─ NoEligibleTarget               no_target               403 if rules removed them all, else 503, retryable
├─ Overloaded                     overloaded              503     yes    our own shedding
├─ UpstreamError                  one attempt failed
│  ├─ UpstreamUnavailable         upstream_unavailable    502     yes    connect, or the connection broke
│  ├─ UpstreamTimeout             upstream_timeout        504     yes    connect | first_token | total
│  ├─ UpstreamOverloaded          upstream_overloaded     503     yes    429 or 503 from it
│  ├─ UpstreamRejected            upstream_rejected       4xx     no     passed on with its own code
│  └─ UpstreamProtocolError       upstream_protocol       502     yes    unreadable answer
├─ AllAttemptsFailed              of the most telling attempt
└─ ConfigurationError             at start-up or on save; never travels over HTTP at run time

Statuses are here because the code, the status and the advice to retry are one decision; raise sites never
mention HTTP, and only `api/error_bodies.py` renders bodies. 402 for budgets, not 429: the official clients
retry 408, 409, 429 and 5xx by themselves, and an empty budget must not be retried.
"""

from __future__ import annotations

import logging
from typing import ClassVar


class GatewayError(Exception):
    """Base of everything that Tollgate raises on purpose."""

    code: ClassVar[str] = "internal_error"
    status_code: int = 500
    is_retryable: ClassVar[bool] = False
    log_level: ClassVar[int] = logging.ERROR

    def __init__(self, caller_detail: str, *, operator_detail: str = "", param: str | None = None) -> None:
        super().__init__(operator_detail or caller_detail)
        self.caller_detail = caller_detail
        """A sentence that helps whoever made the call; holds nothing internal."""
        self.operator_detail = operator_detail or caller_detail
        """What the log says; may name replicas and addresses."""
        self.param = param
        """The field of the request that is wrong, as OpenAI's `param`."""
        self.retry_after_s: int | None = None


class CallerError(GatewayError):
    """The caller can mend it; `caller_detail` is safe to show."""

    log_level = logging.INFO


class InvalidRequest(CallerError):
    """The request is malformed or asks for something that does not exist."""

    code = "invalid_request"
    status_code = 400


class AuthenticationFailed(CallerError):
    """No key, a wrong key or a revoked key."""

    code = "invalid_api_key"
    status_code = 401


class BudgetExceeded(CallerError):
    """A hard budget cannot hold what the request may come to."""

    code = "budget_exceeded"
    status_code = 402

    def __init__(self, caller_detail: str, *, resets_at: str | None = None) -> None:
        super().__init__(caller_detail)
        self.resets_at = resets_at
        """When the budget begins anew, ISO 8601 UTC; None: never."""


class Unpriced(CallerError):
    """A target has no price, and the policy does not allow that."""

    code = "unpriced"
    status_code = 402
    log_level = logging.WARNING


class PermissionDenied(CallerError):
    """The key is known and may not do this."""

    code = "permission_denied"
    status_code = 403


class NotFound(CallerError):
    """The path or the thing does not exist."""

    code = "not_found"
    status_code = 404


class ModelNotFound(NotFound):
    """The policy has no such model alias."""

    code = "model_not_found"


class MethodNotAllowed(CallerError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    status_code = 405


class Conflict(CallerError):
    """The name is taken, or somebody else changed it first."""

    code = "conflict"
    status_code = 409


class PayloadTooLarge(CallerError):
    """The body is over the limit."""

    code = "payload_too_large"
    status_code = 413


class UnsupportedEncoding(CallerError):
    """The body is compressed."""

    code = "unsupported_encoding"
    status_code = 415


class RateLimited(CallerError):
    """Too many requests or tokens at this moment."""

    code = "rate_limited"
    status_code = 429
    is_retryable = True

    def __init__(self, caller_detail: str, *, retry_after_s: int) -> None:
        super().__init__(caller_detail)
        self.retry_after_s = retry_after_s


class NoEligibleTarget(GatewayError):
    """No target can take the call: rules removed them all (403), or none is up now (503)."""

    code = "no_target"
    status_code = 503
    is_retryable = True
    log_level = logging.WARNING

    def __init__(self, caller_detail: str, *, removed_by_rules: bool, retry_after_s: int = 5) -> None:
        super().__init__(caller_detail)
        self.removed_by_rules = removed_by_rules
        if removed_by_rules:
            self.status_code = 403
        else:
            self.retry_after_s = retry_after_s


class Overloaded(GatewayError):
    """We shed load, or cannot do our own part right now."""

    code = "overloaded"
    status_code = 503
    is_retryable = True
    log_level = logging.WARNING

    def __init__(self, caller_detail: str, *, retry_after_s: int = 1, operator_detail: str = "") -> None:
        super().__init__(caller_detail, operator_detail=operator_detail)
        self.retry_after_s = retry_after_s


class UpstreamError(GatewayError):
    """One attempt at one replica failed."""

    is_retryable = True
    log_level = logging.WARNING
    upstream_status: int | None = None
    """The status that the replica answered; None without an answer."""
    was_accepted: bool = False
    """The replica had begun to answer with success: it has read the prompt."""


class UpstreamUnavailable(UpstreamError):
    """No connection, or it broke before the answer was whole."""

    code = "upstream_unavailable"
    status_code = 502


class UpstreamTimeout(UpstreamError):
    """The replica took longer than a limit: connect, first token, between tokens, or total."""

    code = "upstream_timeout"
    status_code = 504


class UpstreamOverloaded(UpstreamError):
    """The replica answered 429 or 503."""

    code = "upstream_overloaded"
    status_code = 503


class UpstreamRejected(UpstreamError):
    """The replica refused the request itself (4xx): its message is passed on, nothing is retried."""

    code = "upstream_rejected"
    is_retryable = False
    log_level = logging.INFO

    def __init__(
        self, caller_detail: str, *, status_code: int, upstream_code: str, param: str | None
    ) -> None:
        super().__init__(caller_detail, param=param)
        self.status_code = status_code
        self.upstream_status = status_code
        self.upstream_code = upstream_code


class UpstreamProtocolError(UpstreamError):
    """The replica's answer cannot be read."""

    code = "upstream_protocol"
    status_code = 502


class AllAttemptsFailed(GatewayError):
    """Every target of the decision was tried; speaks with the status of the most telling attempt."""

    code = "all_attempts_failed"
    status_code = 502
    is_retryable = True
    log_level = logging.WARNING

    def __init__(self, attempts: tuple[UpstreamError, ...]) -> None:
        most_telling = max(attempts, key=lambda error: error.status_code)
        count = len(attempts)
        tries = "1 attempt" if count == 1 else f"{count} attempts"
        super().__init__(
            f"The model could not answer ({tries}, last: {attempts[-1].code}). Try again in a moment.",
            operator_detail="; ".join(error.operator_detail for error in attempts),
        )
        self.attempts = attempts
        self.status_code = most_telling.status_code
        self.retry_after_s = 1


class ConfigurationError(GatewayError):
    """A setting, a policy or a pool file is wrong; the message says which, where and what to do."""

    code = "configuration"


def may_have_read(error: UpstreamError) -> bool:
    """The engine may have read the prompt: it took the request and failed later, or was too slow to say."""
    if isinstance(error, UpstreamRejected):
        return False
    return error.was_accepted or (error.upstream_status is None and error.code != "upstream_unavailable")
