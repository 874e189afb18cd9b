"""Do the ledger's tokens equal what the engines themselves counted?

An engine's /metrics counts every prompt token and every generated one, whoever asked (vLLM 0.32:
`vllm:prompt_tokens_total`, `vllm:generation_tokens_total`). The ledger has a row for every attempt, those on
the platform's account included; an answer from the cache asked no engine. A client that hangs up is booked by
estimate where no count came, and is shown apart.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import httpx

from backends.scrape import parse_metrics

SETTLE_S: Final = 30.0
_LOOK_S: Final = 0.2


class Tokens(NamedTuple):
    """Of one pool."""

    read: int
    """Input, whether the prefix cache had it or not."""
    written: int

    def minus(self, other: Tokens) -> Tokens:
        """What is more here than there."""
        return Tokens(self.read - other.read, self.written - other.written)


class Ledger(NamedTuple):
    """What the books hold of one pool."""

    attempts: int
    measured: Tokens
    """Counted by the engine."""
    estimated: int
    """Attempts whose tokens nobody counted."""
    estimates: Tokens
    platform: int
    """Attempts on the platform's account, of all."""


def engine_tokens(urls: Mapping[str, str]) -> dict[str, Tokens]:
    """What each pool's engine has counted since its start, once it has nothing to do."""
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        loads = {}
        for pool, url in urls.items():
            page = httpx.get(f"{url}/metrics", timeout=10, trust_env=False)
            loads[pool] = parse_metrics(page.text, scraped_at_s=time.monotonic())
        if not any(load.requests_running or load.requests_waiting for load in loads.values()):
            return {
                pool: Tokens(load.prompt_tokens_total, load.generation_tokens_total)
                for pool, load in loads.items()
            }
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the engines are still busy after {SETTLE_S:.0f} s")
        time.sleep(_LOOK_S)


_QUERY: Final = """
SELECT attempt_id, pool, payer = 'platform', usage_source = 'estimated',
 input_tokens + cached_input_tokens + cache_write_tokens, output_tokens + reasoning_tokens
FROM attempts WHERE cache <> 'hit' AND started_at_ms >= ?
"""


def ledger_tokens(databases: Iterable[Path], since_ms: int) -> dict[str, Ledger]:
    """What embedded gateways' books hold of each pool, of attempts that began since then.

    Gateways that share a fleet all book its upkeep, each in its own books under the same id: it counts once.

    Args:
        databases: their files.
        since_ms: epoch ms.
    """
    rows: dict[str, tuple[str, int, int, int, int]] = {}
    for path in databases:
        with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection:
            rows |= {found: row for found, *row in connection.execute(_QUERY, (since_ms,))}
    return {
        pool: _sum_of([row for row in rows.values() if row[0] == pool])
        for pool in sorted({row[0] for row in rows.values()})
    }


def _sum_of(rows: Sequence[tuple[str, int, int, int, int]]) -> Ledger:
    counted = [row for row in rows if not row[2]]
    guessed = [row for row in rows if row[2]]
    return Ledger(
        len(rows),
        Tokens(sum(row[3] for row in counted), sum(row[4] for row in counted)),
        len(guessed),
        Tokens(sum(row[3] for row in guessed), sum(row[4] for row in guessed)),
        sum(row[1] for row in rows),
    )


def comparison(
    before: Mapping[str, Tokens], after: Mapping[str, Tokens], ledger: Mapping[str, Ledger]
) -> dict[str, dict[str, int]]:
    """Pool → what both counted, and the engine's count less the ledger's, estimates left out."""
    found = {}
    for pool, counted in after.items():
        engine, books = counted.minus(before[pool]), ledger[pool]
        difference = engine.minus(books.measured)
        found[pool] = {
            "attempts": books.attempts,
            "of_the_platform": books.platform,
            "engine_read": engine.read,
            "ledger_read": books.measured.read,
            "engine_written": engine.written,
            "ledger_written": books.measured.written,
            "difference_read": difference.read,
            "difference_written": difference.written,
            "estimated_attempts": books.estimated,
            "estimated_read": books.estimates.read,
            "estimated_written": books.estimates.written,
        }
    return found


def as_table(compared: Mapping[str, Mapping[str, int]]) -> str:
    """The comparison as Markdown."""
    head = "| pool | attempts (platform's) | prompt: engine, ledger | generated: engine, ledger | difference"
    lines = [f"{head} | estimated attempts: prompt, generated |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {pool} | {row['attempts']} ({row['of_the_platform']}) |"
        f" {row['engine_read']}, {row['ledger_read']} | {row['engine_written']}, {row['ledger_written']} |"
        f" {row['difference_read']}, {row['difference_written']} |"
        f" {row['estimated_attempts']}: {row['estimated_read']}, {row['estimated_written']} |"
        for pool, row in compared.items()
    ]
    return "\n".join(lines) + "\n"
