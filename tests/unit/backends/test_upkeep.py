"""What an engine says that it read and wrote is never less than nothing."""

from __future__ import annotations

from typing import Any

import pytest

from backends.upkeep import Tokens, tokens_of


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 20, "completion_tokens": 3}, Tokens(20, 0, 3)),
        (
            {
                "prompt_tokens": 20,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 16},
            },
            Tokens(4, 16, 3),
        ),
        (
            {"prompt_tokens": 2, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 16}},
            Tokens(0, 2, 1),
        ),
        (
            {"prompt_tokens": -5, "completion_tokens": -1, "prompt_tokens_details": {"cached_tokens": -3}},
            Tokens(0, 0, 0),
        ),
    ],
)
def test_counts_that_cannot_be_are_nothing(usage: dict[str, Any], tokens: Tokens) -> None:
    assert tokens_of(usage) == tokens


@pytest.mark.parametrize("usage", [{}, {"completion_tokens": "many"}, {"completion_tokens": None}])
def test_what_is_no_usage_is_refused(usage: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        tokens_of(usage)
