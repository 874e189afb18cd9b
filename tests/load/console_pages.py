"""How long does a page of the console take, on a year of ten million attempts?

    python -m tests.load.console_pages --rows 10000000
    python -m tests.load.console_pages --url postgresql+asyncpg://postgres@127.0.0.1:5432/year

Pages that the rollups hold must answer within 300 ms; parts that take longer come after their page, which
says so meanwhile. Each page is asked as a browser does, with a login, several times one after another; the
first time is told apart. Parts are found by what a page's own markup loads. The result is
tests/load/results/console_pages.json and .md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from gateway.console.navigation import HOME, SECTIONS
from gateway.db import create_engine
from gateway.ledger.periods import month_named
from gateway.migrate import upgrade
from tests.load.measured import RESULTS, write_result
from tests.load.year import MONTHS, Year
from tests.support.console_site import ADMIN_KEY
from tests.support.pool_files import DEFAULT_POLICY, write_pools
from tests.support.servers import postgres_server

WITHIN_MS = 300.0
TIMES = 15
LATER = re.compile(r'class="loading[^"]*" hx-get="([^"]+)"')
MORE = (
    f"{HOME}/spend?period=custom&from=2025-01-01&to=2026-01-01&by=tenant",
    f"{HOME}/spend?period=custom&from=2025-06-01&to=2025-07-01&by=pool&compare=previous",
    f"{HOME}/spend?period=custom&from=2025-06-01&to=2025-07-01&by=day",
    f"{HOME}/spend/supply?period=custom&from=2025-06-01&to=2025-07-01&by=pool",
    f"{HOME}/periods/2025-06",
    f"{HOME}/traffic?from=2025-06-15T00:00&to=2025-06-16T00:00",
)
"""Where the rows are."""


async def fill(url: str, rows: int) -> None:
    """Twelve months of attempts with their bookings and sums, none of them closed."""
    engine = create_engine(url)
    year = Year(engine, rows)
    await year.make_prices()
    for name in MONTHS:
        await year.make_month(month_named(name))
        print(f"  {name} is there", flush=True)
    await engine.dispose()


@contextmanager
def gateway(url: str, home: Path) -> Iterator[str]:
    """`tollgate serve` on that database; yields where."""
    pools = write_pools(
        home / "pools", {"speculative": ["http://127.0.0.1:9"], "plain": ["http://127.0.0.1:9"]}
    )
    environment = os.environ | {  # noqa: TID251 - what a program of its own is started with
        "TOLLGATE_DATABASE_URL": url,
        "TOLLGATE_STATE_DIR": str(home / "state"),
        "TOLLGATE_POOLS": str(pools),
        "TOLLGATE_POLICY": str(DEFAULT_POLICY),
        "TOLLGATE_PORT": "0",
        "TOLLGATE_ADMIN_KEY": ADMIN_KEY,
        "TOLLGATE_SECRET_KEY": "for-this-measurement-only-0123456789abcdef",
        "PYTHONUNBUFFERED": "1",
    }
    log = home / "log"
    with log.open("w+") as file:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "tollgate", "serve"],
            env=environment,
            cwd=home,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + 120
            while (found := re.search(r"serves on (http://[\d.:]+)", log.read_text())) is None:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f"tollgate serve did not start:\n{log.read_text()}")
                time.sleep(0.1)
            yield found[1]
        finally:
            process.terminate()
            process.wait(60)


def ask(client: httpx.Client, path: str, times: int) -> dict[str, Any]:
    """Milliseconds of a page, and the parts that it loads afterwards."""
    took = []
    text = ""
    for _ in range(times):
        began = time.perf_counter()
        answer = client.get(path)
        took.append((time.perf_counter() - began) * 1000)
        answer.raise_for_status()
        text = answer.text
    warm = sorted(took[1:]) or took
    return {
        "first_ms": round(took[0], 1),
        "p50_ms": round(median(warm), 1),
        "p95_ms": round(warm[max(0, -(-len(warm) * 95 // 100) - 1)], 1),
        "bytes": len(text),
        "later": [unescape(url) for url in LATER.findall(text)],
    }


def measure(url: str, home: Path, *, times: int = TIMES) -> dict[str, Any]:
    """Every page of the menu and a few views of the year."""
    with (
        gateway(url, home) as base,
        httpx.Client(base_url=base, timeout=120, headers={"origin": base}) as client,
    ):
        client.post("/console/login", data={"key": ADMIN_KEY})
        pages = {path: ask(client, path, times) for path in (*(one.path for one in SECTIONS), *MORE)}
        parts = sorted({part for page in pages.values() for part in page["later"]})
        later = {part: ask(client, part, 1)["first_ms"] for part in parts}
    slow = [path for path, page in pages.items() if page["p95_ms"] > WITHIN_MS]
    return {"within_ms": WITHIN_MS, "times": times, "pages": pages, "later_ms": later, "slower": slow}


def main() -> int:
    """Measure; the status tells whether every page was fast enough."""
    parser = argparse.ArgumentParser(description="How long the console's pages take on a big ledger.")
    parser.add_argument("--rows", type=int, default=10_000_000, help="attempts in the year")
    parser.add_argument("--url", help="a database with a year in it already")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.url is not None:
            figures = measure(asked.url, Path(folder))
        else:
            with postgres_server() as url:
                upgrade(url)
                asyncio.run(fill(url, asked.rows))
                figures = measure(url, Path(folder))
    write_result("console_pages", figures)
    write_summary(figures)
    return 1 if figures["slower"] else 0


def write_summary(figures: dict[str, Any], folder: Path = RESULTS) -> None:
    """For people."""
    lines = [
        "# How long a page of the console takes\n",
        f"`python -m tests.load.console_pages`; milliseconds over loopback, {figures['times']} times each.\n",
        "| page | first | P50 | P95 | KB |\n|---|--:|--:|--:|--:|",
        *(
            f"| `{path}` | {one['first_ms']} | {one['p50_ms']} | {one['p95_ms']} | {one['bytes'] // 1024} |"
            for path, one in figures["pages"].items()
        ),
        "\nParts that follow their page:\n\n| part | ms |\n|---|--:|",
        *(f"| `{part}` | {took} |" for part, took in figures["later_ms"].items()),
    ]
    (folder / "console_pages.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
