"""Which rules found a budget low, and is somebody told of it?

Every such call is counted, the first of a rule and a budget is a line in the log: again when the budget
begins anew. In memory, by process.
"""

from __future__ import annotations

import logging
from typing import Final

from gateway.routing.rules import BudgetLevel, Match

TOLD_MAX: Final = 1_000
_log = logging.getLogger(__name__)


class BudgetWatch:
    """Counts by rule and by what it does."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, ...], float] = {}
        """Calls by rule and verdict."""
        self._told: set[tuple[str, str, int | None]] = set()

    def saw(self, match: Match, budget: BudgetLevel) -> None:
        """A call met a low budget."""
        rule, verdict = match.rule, match.low or ""
        key = (rule.name, verdict)
        self.seen[key] = self.seen.get(key, 0) + 1
        told = (rule.name, budget.name, budget.resets_at_ms)
        if told in self._told:
            return
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told.add(told)
        _log.warning(
            "policy rule %s: %.1f %% of the budget %s are used (%s)",
            rule.name,
            budget.used_percent,
            budget.name,
            verdict,
        )
