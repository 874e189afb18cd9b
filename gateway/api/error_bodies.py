"""How does an error look in the format of the path it happened on?

OpenAI's shape. The message is the error's `caller_detail`; internals never leave. What must not be retried
says so with `x-should-retry: false`, which the official clients obey.
"""

from __future__ import annotations

import msgspec

from gateway.errors import AllAttemptsFailed, BudgetExceeded, GatewayError, UpstreamRejected

_encode = msgspec.json.Encoder().encode
_SERVER_ERROR = 500

Headers = list[tuple[bytes, bytes]]


def openai_error(error: GatewayError) -> bytes:
    """The body for an error."""
    code = error.upstream_code if isinstance(error, UpstreamRejected) else error.code
    if isinstance(error, AllAttemptsFailed):
        code = error.attempts[-1].code
    kind = "server_error" if error.status_code >= _SERVER_ERROR else "invalid_request_error"
    told = {"message": error.caller_detail, "type": kind, "param": error.param, "code": code}
    if isinstance(error, BudgetExceeded):
        told["resets_at"] = error.resets_at  # ours: OpenAI's clients keep what they do not know
    return _encode({"error": told})


def error_headers(error: GatewayError) -> Headers:
    """Advice to the client on whether and when to try again."""
    headers = [(b"x-should-retry", b"true" if error.is_retryable and error.status_code != 403 else b"false")]  # noqa: PLR2004
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    return headers
