"""Does the console work in a real browser: login, figures, narrow windows, nothing to complain of?"""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import Clock
from gateway.db import create_engine, session_factory
from gateway.identity.key_store import create_key
from gateway.identity.store import create_tenant, ensure_project
from gateway.ledger.cuts import month_of
from gateway.migrate import upgrade
from tests.e2e.site import eventually
from tests.support.chromium import Chromium, chromium_path
from tests.support.factories import make_act
from tests.support.mock_process import MockVllm
from tests.support.pool_files import DEFAULT_POLICY, write_pools
from tests.support.spend_rows import attempt_row, book_rows

PROGRAM = chromium_path()
ADMIN_KEY = "tga-a-key-for-the-browser-test-only-0123456789"
EVIL = "<script>document.title = 'owned'</script>"

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Debian's package chromium")


async def fill(url: str) -> None:
    """Two tenants, one of them with bad intentions, and spend on every day of this month so far."""
    clock = Clock()
    now, act = clock.now(), make_act(clock)
    engine = create_engine(url)
    rows: list[dict[str, Any]] = []
    async with session_factory(engine)() as session:
        for number, name in enumerate(("acme", EVIL)):
            tenant = await create_tenant(session, name, act=act)
            project = await ensure_project(session, tenant, f"project of {name}", act=act)
            key = await create_key(session, project, f"key of {name}", act=act)
            day = month_of(now)[0]
            while day <= now:
                rows.append(
                    attempt_row(
                        len(rows),
                        tenant_id=tenant.id,
                        key_id=key.id,
                        pool=("speculative", "plain")[number],
                        task=("extraction", "chat")[number],
                        input_tokens=1_000_000 + 37 * day.day,
                        charge_usd_nanos=1_234_567_890_123 * (number + 1) * (1 + day.day % 5),
                        started_at_ms=int(day.timestamp() * 1000),
                    )
                )
                day += timedelta(days=1)
        await book_rows(session, rows)
        await session.commit()
    await engine.dispose()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of `tollgate serve` with one replica that is up and one that is not."""
    home = tmp_path_factory.mktemp("console")
    state = home / "state"
    state.mkdir()
    database = f"sqlite+aiosqlite:///{state / 'tollgate.db'}"
    upgrade(database)
    asyncio.run(fill(database))
    with MockVllm("--speculative", "3") as mock:
        urls = {"speculative": [mock.url], "plain": ["http://127.0.0.1:9"]}
        environment = os.environ | {  # noqa: TID251 - what a program of its own is started with
            "TOLLGATE_STATE_DIR": str(state),
            "TOLLGATE_POOLS": str(write_pools(home / "pools", urls)),
            "TOLLGATE_POLICY": str(DEFAULT_POLICY),
            "TOLLGATE_PORT": "0",
            "TOLLGATE_ADMIN_KEY": ADMIN_KEY,
            "PYTHONUNBUFFERED": "1",
        }
        with (home / "log").open("w+") as log:
            process = subprocess.Popen(
                [Path(sys.executable).parent / "tollgate", "serve"],
                env=environment,
                cwd=home,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                yield base_url(process, home / "log")
            finally:
                process.terminate()
                process.wait(60)


def base_url(process: subprocess.Popen[bytes], log: Path) -> str:
    """What the program says it serves on."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"serves on (http://[\d.:]+)", log.read_text())
        if found is not None:
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"tollgate serve did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    assert PROGRAM is not None
    with Chromium(PROGRAM, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def logged_in(browser: Chromium, gateway: str) -> Chromium:
    """A browser that went through the login form, on a page that does not load itself again."""
    browser.open(f"{gateway}/console")
    if browser.evaluate("location.pathname") == "/console/login":
        log_in(browser, ADMIN_KEY)
    browser.open(f"{gateway}/console?refresh=off")
    return browser


def log_in(browser: Chromium, key: str) -> None:
    browser.evaluate(f"document.getElementById('key').value = '{key}'")
    browser.submit("button.primary")


def test_a_person_logs_in_looks_and_logs_out(browser: Chromium, gateway: str) -> None:
    browser.open(f"{gateway}/console")
    assert browser.evaluate("location.pathname") == "/console/login"
    eventually(lambda: browser.evaluate("document.activeElement.id") == "key")  # a moment after it is loaded
    log_in(browser, "not the key")
    assert "not an administrator key" in browser.evaluate("document.body.innerText")
    log_in(browser, ADMIN_KEY)
    assert browser.evaluate("location.pathname") == "/console"
    assert "Spend this month" in browser.evaluate("document.body.innerText")
    assert browser.evaluate("document.cookie") == ""  # scripts cannot read it
    browser.submit("header form button")
    assert browser.evaluate("location.pathname") == "/console/login"
    browser.open(f"{gateway}/console")
    assert browser.evaluate("location.pathname") == "/console/login"
    refused = [text for text in browser.console if "401" not in text]
    assert refused == []  # a style, an icon or a form that our own policy blocks would be named here


def test_what_a_tenant_chose_is_text(logged_in: Chromium) -> None:
    assert logged_in.evaluate("document.title") == "Overview · Tollgate"
    assert logged_in.evaluate("document.scripts.length") == 0
    assert EVIL in logged_in.evaluate("document.getElementById('keys').parentElement.innerText")


def test_pools_and_bars_are_drawn(logged_in: Chromium, gateway: str) -> None:
    states = "[...document.querySelectorAll('.pools .state')].map(state => state.innerText).join()"
    deadline = time.monotonic() + 30
    while (found := logged_in.evaluate(states)) != "starting,ready" and time.monotonic() < deadline:
        time.sleep(0.3)
        logged_in.open(f"{gateway}/console?refresh=off")
    assert found == "starting,ready"
    heights = "[...document.querySelectorAll('svg rect')].map(bar => bar.getBoundingClientRect().height)"
    assert logged_in.evaluate(f"{heights}.length") == Clock().now().day
    assert logged_in.evaluate(f"Math.min(...{heights}) > 1")


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_window(
    logged_in: Chromium, tmp_path: Path, width: int, *, is_dark: bool
) -> None:
    logged_in.look(width=width, is_dark=is_dark)
    assert logged_in.evaluate("document.documentElement.scrollWidth") <= width
    for cut in ("td", "th", "p", "h3"):
        overflowing = (
            f"[...document.querySelectorAll('{cut}')].some(one => one.scrollWidth > one.clientWidth + 1)"
        )
        assert not logged_in.evaluate(overflowing), cut
    ground = logged_in.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(17, 21, 27)") == is_dark
    picture = tmp_path / f"console-{width}-{'dark' if is_dark else 'light'}.png"
    logged_in.screenshot(picture)
    assert picture.stat().st_size > 0
