"""Is every failure drawn in the tree, and does each say what a caller and an operator need?"""

from __future__ import annotations

import inspect
import logging
import re

import pytest

from gateway import errors
from gateway.errors import (
    AllAttemptsFailed,
    CallerError,
    GatewayError,
    InvalidRequest,
    NoEligibleTarget,
    Overloaded,
    RateLimited,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, GatewayError) and value.__module__ == errors.__name__
}
LINE = re.compile(
    r"^(?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+) {2,}(?P<code>[a-z_]+(?= {2}|$))?\s*(?P<status>\d{3})?"
)


def drawn() -> dict[str, tuple[int, str | None, int | None, str]]:
    """The tree of the docstring: depth, code, status and the whole line by class."""
    tree = (errors.__doc__ or "").split("\n\n")[1]
    found = {}
    for line in tree.splitlines():
        match = LINE.match(line)
        assert match, line
        status = match["status"]
        found[match["name"]] = (
            len(match["branch"]) // 3,
            match["code"],
            int(status) if status else None,
            line,
        )
    return found


def test_the_tree_shows_exactly_the_classes_that_exist() -> None:
    assert set(drawn()) == set(CLASSES)


def test_the_tree_shows_who_inherits_from_whom() -> None:
    above: list[str] = []
    for name, (depth, *_) in drawn().items():
        del above[depth:]
        if above:
            assert CLASSES[name].__base__ is CLASSES[above[-1]], name
        above.append(name)


# Their status is decided by the case, which tests of their own show.
VARIABLE = {"NoEligibleTarget", "UpstreamRejected"}


@pytest.mark.parametrize(
    "name",
    [name for name, (_, code, status, _) in drawn().items() if code and status and name not in VARIABLE],
)
def test_the_tree_tells_the_code_the_status_and_whether_to_retry(name: str) -> None:
    _, code, status, line = drawn()[name]
    kind = CLASSES[name]
    assert (kind.code, kind.status_code) == (code, status)
    assert kind.is_retryable is (re.search(rf"{status} +yes", line) is not None)


@pytest.mark.parametrize("kind", CLASSES.values())
def test_every_class_has_a_code_a_status_a_level_and_a_meaning(kind: type[GatewayError]) -> None:
    assert re.fullmatch(r"[a-z_]+", kind.code)
    assert 400 <= kind.status_code < 600
    assert kind.log_level in {logging.INFO, logging.WARNING, logging.ERROR}
    assert kind.__doc__


def test_codes_are_not_shared() -> None:
    branches = {"CallerError", "UpstreamError", "GatewayError"}  # never raised themselves
    codes = [kind.code for name, kind in CLASSES.items() if name not in branches]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", [kind for kind in CLASSES.values() if issubclass(kind, CallerError)])
def test_what_a_caller_can_mend_is_no_error_in_our_log(kind: type[GatewayError]) -> None:
    assert kind.log_level < logging.ERROR
    assert kind.status_code < 500 or kind is CallerError


def test_the_log_says_what_the_operator_needs_and_the_caller_only_what_helps() -> None:
    error = UpstreamUnavailable("Try again.", operator_detail="10.0.0.7 refused")
    assert (error.caller_detail, error.operator_detail, str(error)) == (
        "Try again.",
        "10.0.0.7 refused",
        "10.0.0.7 refused",
    )


def test_without_words_for_the_operator_the_callers_are_logged() -> None:
    error = InvalidRequest("`n` is wrong.", param="n")
    assert (error.operator_detail, str(error), error.param) == ("`n` is wrong.", "`n` is wrong.", "n")


def test_who_is_shed_is_told_when_to_come_back() -> None:
    assert RateLimited("Slow down.", retry_after_s=7).retry_after_s == 7
    assert Overloaded("Busy.").retry_after_s == 1
    assert InvalidRequest("Wrong.").retry_after_s is None


@pytest.mark.parametrize(("removed", "status", "retry_after_s"), [(True, 403, None), (False, 503, 5)])
def test_no_target_is_forbidden_or_away(*, removed: bool, status: int, retry_after_s: int | None) -> None:
    error = NoEligibleTarget("None.", removed_by_rules=removed)
    assert (error.status_code, error.retry_after_s) == (status, retry_after_s)


def test_a_refusal_keeps_the_engines_own_status_and_code() -> None:
    error = UpstreamRejected("Too long.", status_code=413, upstream_code="BadRequestError", param="prompt")
    assert (error.status_code, error.upstream_status, error.upstream_code) == (413, 413, "BadRequestError")
    assert not error.is_retryable


def test_when_all_attempts_failed_the_most_telling_status_speaks() -> None:
    attempts = (
        UpstreamUnavailable("a", operator_detail="first: refused"),
        UpstreamTimeout("b", operator_detail="second: slow"),
        UpstreamOverloaded("c", operator_detail="third: busy"),
    )
    error = AllAttemptsFailed(attempts)
    assert error.status_code == 504
    assert error.retry_after_s == 1
    assert error.attempts == attempts
    assert error.operator_detail == "first: refused; second: slow; third: busy"
    assert error.caller_detail == (
        "The model could not answer (3 attempts, last: upstream_overloaded). Try again in a moment."
    )


def test_one_attempt_is_not_called_attempts() -> None:
    assert "(1 attempt, last: upstream_timeout)" in AllAttemptsFailed((UpstreamTimeout("a"),)).caller_detail
