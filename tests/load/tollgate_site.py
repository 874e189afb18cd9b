"""What does Tollgate have to carry while it is measured, and are its books right afterwards?

Everything: PostgreSQL and Redis of its own (with their defaults: every commit is synced), two pools of two
replicas, the policy as shipped, hard budgets on tenant, project and key, its settings as shipped. After the
load the spool has to be empty within ten seconds; at the end the database must hold exactly the requests
that were answered, at exactly the costs that the clients were told, and `tollgate audit` must find nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from gateway.db import create_engine, session_factory
from gateway.identity import key_store, store
from gateway.ledger.buckets import Scope, Window
from gateway.ledger.budget_store import Owner, create_budget
from gateway.migrate import upgrade
from gateway.money import usd_nanos_from_decimal
from tests.load.processor import child_named
from tests.load.targets import OURS, Place, Target
from tests.load.traffic import MODEL, PORTS
from tests.support.factories import make_act
from tests.support.gateway_process import COVERAGE, PROGRAM, environment, run_cli
from tests.support.pool_files import RATES
from tests.support.servers import free_port, postgres_server, redis_server

DRAIN_S: Final = 10.0
"""How long the spool may take to be empty after the load."""
TENANT: Final = "bench"
PROJECT: Final = "load"
LIMIT_USD: Final = "1000000"
DECLARED: Final = ("x-tollgate-task: extraction", "x-tollgate-task: creative")
"""One task of each nature, so that both pools are asked."""
_AS_SHIPPED: Final = ("TOLLGATE_FRESHNESS__POLL_INTERVAL_S", "TOLLGATE_SPOOL__SHIP_INTERVAL_MS")
"""Set by `environment` for quick tests; left to their defaults here."""
_REDIS: Final = ["--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"]
_LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Totals:
    """What the database holds."""

    attempts: int
    answered: int
    hits: int
    """Answers from the cache; there may be none, or the requests were not different."""
    charge_usd_nanos: int


class Site:
    """A Tollgate to be started, and the books that it will keep."""

    def __init__(
        self,
        target: Target,
        folder: Path,
        settings: Mapping[str, str],
        books: Books,
        apart: Mapping[str, int],
    ) -> None:
        self.target = target
        self.books = books
        self.apart = apart
        """The servers beside it: process by name."""
        self._folder = folder
        self._settings = settings

    def audit(self) -> tuple[bool, str]:
        """Whether `tollgate audit` finds every number right, and what it says."""
        outcome = run_cli(self._settings, self._folder, "audit")
        return outcome.returncode == 0, f"{outcome.stdout}{outcome.stderr}"


class Books:
    """Reads Tollgate's database, over one connection that stays open."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        dsn = url.replace("postgresql+asyncpg", "postgresql")
        self._connection: Any = self._runner.run(self._connect(dsn))

    @staticmethod
    async def _connect(dsn: str) -> Any:
        return await asyncpg.connect(dsn)

    def _row(self, query: str) -> Any:
        return self._runner.run(self._connection.fetchrow(query))

    def booked(self) -> int:
        """Attempts that are booked: by the hourly sums, which are written with them and cheap to read."""
        return int(
            self._row("SELECT coalesce(sum(attempts), 0) FROM spend_hours WHERE tenant_id <> 'platform'")[0]
        )

    def wait_booked(self, count: int, *, within_s: float = DRAIN_S) -> float | None:
        """Seconds until so many attempts are booked; None: they are not in that time."""
        began_s = time.monotonic()
        while self.booked() < count:
            if time.monotonic() - began_s > within_s:
                return None
            time.sleep(_LOOK_S)
        return time.monotonic() - began_s

    def totals(self) -> Totals:
        """All attempts, counted one by one."""
        return Totals(
            *self._row(
                "SELECT count(*), count(*) FILTER (WHERE state = 'answered'),"
                " count(*) FILTER (WHERE cache = 'hit'), coalesce(sum(charge_usd_nanos), 0)::bigint"
                " FROM attempts WHERE tenant_id <> 'platform'"
            )
        )

    def close(self) -> None:
        """Leave."""
        self._runner.run(self._connection.close())
        self._runner.close()


def pool_text(name: str, urls: tuple[str, ...]) -> str:
    """The file of one pool whose replicas somebody else runs."""
    rates = "".join(f"  {meter}: {rate}\n" for meter, rate in RATES[name].items())
    speculation = "speculation:\n  method: ngram\n  num_speculative_tokens: 3\n  prompt_lookup_max: 4\n"
    return (
        f"name: {name}\ndriver: external\nmodel:\n  served_name: {MODEL}\n  max_model_len: 32768\n"
        f"{speculation if name == 'speculative' else ''}"
        "batching:\n  max_num_seqs: 256\n  max_num_batched_tokens: 8192\n"
        f'hardware:\n  gpu: cpu\n  usd_per_hour: "0.12"\nrates:\n{rates}'
        f"urls:\n{''.join(f'  - {url}{chr(10)}' for url in urls)}"
    )


@contextlib.contextmanager
def tollgate_site(place: Place) -> Iterator[Site]:
    """Servers, pools, a tenant with its key and budgets; Tollgate itself is not started.

    Raises:
        ServerMissing: PostgreSQL or Redis is not installed.
    """
    folder = place.folder / OURS
    folder.mkdir(exist_ok=True)
    with (
        postgres_server() as database,
        redis_server(arguments=_REDIS) as redis_url,
        contextlib.ExitStack() as stack,
    ):
        port = free_port()
        settings = {
            "TOLLGATE_DATABASE_URL": database,
            "TOLLGATE_REDIS_URL": redis_url,
            "TOLLGATE_ADMIN_KEY": "tga-" + "a" * 40,
            "TOLLGATE_SECRET_KEY": "s" * 40,
            "TOLLGATE_PORT": str(port),
        }
        mine = environment(folder, settings)
        for name in (*_AS_SHIPPED, COVERAGE):
            mine.pop(name, None)
        pools = folder / "pools"
        pools.mkdir(exist_ok=True)
        half = PORTS // 2
        for name, urls in (("speculative", place.upstreams[:half]), ("plain", place.upstreams[half:])):
            (pools / f"{name}.yaml").write_text(pool_text(name, urls))
        upgrade(database)
        key = asyncio.run(_make_tenant(database))
        target = Target(
            OURS,
            "Tollgate",
            (*PROGRAM, "serve"),
            port,
            model="auto",
            headers=(f"authorization: Bearer {key}",),
            vary=DECLARED,
            environment=mine,
            folder=folder,
            note="Python; two pools of two; keys, policy, cache, three hard budgets, books in PostgreSQL",
        )
        books = Books(database)
        stack.callback(books.close)
        servers = {"PostgreSQL": child_named("postgres"), "Redis": child_named("redis-server")}
        apart = {name: pid for name, pid in servers.items() if pid is not None}
        yield Site(target, folder, mine, books, apart)


async def _make_tenant(url: str) -> str:
    """A tenant, its key, and a hard budget on each of tenant, project and key; returns the key."""
    act, limit = make_act(), usd_nanos_from_decimal(LIMIT_USD, what="the limit")
    engine = create_engine(url)
    async with session_factory(engine)() as session:
        tenant = await store.create_tenant(session, TENANT, act=act)
        project = await store.ensure_project(session, tenant, PROJECT, act=act)
        issued = await key_store.create_key(session, project, "bench", act=act)
        for scope, scope_id in (
            (Scope.TENANT, tenant.id),
            (Scope.PROJECT, project.id),
            (Scope.KEY, issued.id),
        ):
            await create_budget(
                session,
                f"bench-{scope}",
                owner=Owner(scope, scope_id, tenant.id),
                window=Window.MONTH,
                limit_usd_nanos=limit,
                is_hard=True,
                act=act,
            )
        await session.commit()
    await engine.dispose()
    return issued.secret
