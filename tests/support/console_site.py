"""What do the console's browser tests look at? A gateway as `tollgate serve` starts it, spend and pools.

Two tenants, one of whom chose its name to break pages, spend on every day of this month and of the one
before at a price that the ledger knows, so that its books are right; one pool that is up (a mock engine,
which speculates) and one that is not.
"""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from gateway.clock import Clock
from gateway.db import create_engine, session_factory
from gateway.identity.key_store import create_key
from gateway.identity.store import create_tenant, ensure_project
from gateway.ledger.cuts import month_of
from gateway.migrate import upgrade
from tests.support.factories import make_act
from tests.support.mock_process import MockVllm
from tests.support.pool_files import DEFAULT_POLICY, write_pools
from tests.support.spend_rows import attempt_row, book_rows, know_price, priced

ADMIN_KEY = "tga-a-key-for-the-browser-test-only-0123456789"
EVIL = "<script>document.title = 'owned'</script>"


async def fill(url: str) -> None:
    """Book what the pages show."""
    clock = Clock()
    now, act = clock.now(), make_act(clock)
    engine = create_engine(url)
    rows: list[dict[str, Any]] = []
    start = month_of(month_of(now)[0] - timedelta(days=1))[0]
    async with session_factory(engine)() as session:
        await know_price(session)
        for number, name in enumerate(("acme", EVIL)):
            tenant = await create_tenant(session, name, act=act)
            project = await ensure_project(session, tenant, f"project of {name}", act=act)
            key = await create_key(session, project, f"key of {name}", act=act)
            day = start
            while day <= now:
                made = attempt_row(
                    len(rows),
                    tenant_id=tenant.id,
                    project_id=project.id,
                    key_id=key.id,
                    end_user=f"user-{day.day % 3}",
                    pool=("speculative", "plain")[number],
                    task=("extraction", "chat")[number],
                    input_tokens=(1_000_000 + 37 * day.day) * (number + 1) * (1 + day.day % 5),
                    cached_input_tokens=200_000,
                    output_tokens=80_000,
                    started_at_ms=int(day.timestamp() * 1000),
                    ended_at_ms=int(day.timestamp() * 1000) + 50,
                )
                rows.append(priced(made))
                day += timedelta(days=1)
        await book_rows(session, rows, now_ms=clock.epoch_ms())
        await session.commit()
    await engine.dispose()


@contextmanager
def running_gateway(home: Path, **environment: str) -> Iterator[str]:
    """`tollgate serve` on a filled database of its own, before one engine; yields where it serves.

    Args:
        home: an empty folder.
        environment: more settings.
    """
    with MockVllm("--speculative", "3") as mock:
        urls = {"speculative": [mock.url], "plain": ["http://127.0.0.1:9"]}
        with serving(home, urls, **environment) as url:
            yield url


@contextmanager
def serving(home: Path, urls: Mapping[str, Sequence[str]], **environment: str) -> Iterator[str]:
    """The same before these engines: pool → base URLs."""
    state = home / "state"
    state.mkdir()
    database = f"sqlite+aiosqlite:///{state / 'tollgate.db'}"
    with ThreadPoolExecutor() as thread:
        # Where Playwright's loop is not: another one cannot run beside it.
        thread.submit(upgrade, database).result()
        thread.submit(lambda: asyncio.run(fill(database))).result()
    with (home / "log").open("w+") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "tollgate", "serve"],
            env=os.environ  # noqa: TID251 - what a program of its own is started with
            | {
                "TOLLGATE_STATE_DIR": str(state),
                "TOLLGATE_POOLS": str(write_pools(home / "pools", urls)),
                "TOLLGATE_POLICY": str(DEFAULT_POLICY),
                "TOLLGATE_PORT": "0",
                "TOLLGATE_ADMIN_KEY": ADMIN_KEY,
                "PYTHONUNBUFFERED": "1",
            }
            | environment,
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _base_url(process, home / "log")
        finally:
            process.terminate()
            process.wait(60)


def _base_url(process: subprocess.Popen[bytes], log: Path) -> str:
    """What the program says it serves on."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"serves on (http://[\d.:]+)", log.read_text())
        if found is not None:
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"tollgate serve did not start:\n{log.read_text()}")
