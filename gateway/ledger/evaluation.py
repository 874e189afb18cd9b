"""On whose account are copies of requests that are made to judge a candidate?

The platform's, in a project of their own, under one key for each shadow: so reports show them apart, the line
of supply's bill is `evaluation`, and a budget on that key holds them all. It is a budget like every other,
lent and booked in the same way; but it is the one kind that holds what the platform pays.
"""

from __future__ import annotations

from typing import Final

from gateway.ledger.buckets import Scope
from gateway.ledger.budget_store import Owner
from gateway.ledger.records import OURS

EVALUATION: Final = "evaluation"
"""The project of the tenant `platform` whose attempts judge candidates."""
_KEY: Final = "shadow-"


def shadow_key(number: int) -> str:
    """What stands for the key in the attempts of a shadow."""
    return f"{_KEY}{number}"


def is_of_evaluation(name: str) -> bool:
    """A project or key that nobody made: it stands for evaluations."""
    return name == EVALUATION or (name.startswith(_KEY) and name.removeprefix(_KEY).isdigit())


def shadow_owner(number: int) -> Owner:
    """Whose spending the budget of a shadow counts."""
    return Owner(Scope.KEY, shadow_key(number), OURS)
