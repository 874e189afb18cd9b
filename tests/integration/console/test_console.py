"""Does the console let the right people in, show what is, and survive what tenants and attackers send?"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from backends.pool import ReplicaLoad, ReplicaState
from gateway.app import create_app
from gateway.clock import Clock
from gateway.dependencies import COOKIE, Services
from gateway.identity import guesses
from gateway.identity.admin_store import create_admin_key, revoke_admin_key
from gateway.identity.admins import AdminRing, Logins
from gateway.identity.key_store import create_key, revoke_key
from gateway.identity.roles import Role
from gateway.identity.store import create_tenant, ensure_project
from gateway.migrate import upgrade
from gateway.settings import Settings
from tests.support.factories import make_act
from tests.support.pool_files import DEFAULT_POLICY, write_pools
from tests.support.spend_rows import attempt_row, book_rows

ADMIN_KEY = "tga-a-key-for-the-console-test-only-0123456789"
HTTP = "http://gateway.test"
HTTPS = "https://gateway.test"
Browser = httpx.AsyncClient  # noqa: TID251 - a test's client
UNKNOWN = "\N{EN DASH}"
NOW = datetime(2026, 11, 15, 12, 30, tzinfo=UTC)


class MovableClock(Clock):
    """A clock that a test sets; durations are those of the machine plus what the clock was moved by."""

    def __init__(self) -> None:
        self.moved = timedelta(0)

    def now(self) -> datetime:
        return NOW + self.moved

    def epoch_ms(self) -> int:
        return int(self.now().timestamp() * 1000)

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.moved.total_seconds()


class Console:
    """The running app, and a browser that keeps cookies."""

    def __init__(self, app: FastAPI, clock: MovableClock) -> None:
        self.app = app
        self.clock = clock
        self.browser = self.new_browser(HTTP)

    @property
    def services(self) -> Services:
        services: Services = self.app.state.runtime.current()
        return services

    def new_browser(self, base_url: str, *, address: str = "192.0.2.1") -> Browser:
        transport = httpx.ASGITransport(self.app, client=(address, 50_000))
        return Browser(transport=transport, base_url=base_url)

    async def log_in(self, key: str = ADMIN_KEY, browser: Browser | None = None) -> httpx.Response:
        browser = browser or self.browser
        origin = str(browser.base_url).rstrip("/")
        return await browser.post("/console/login", data={"key": key}, headers={"origin": origin})

    async def overview(self) -> str:
        answer = await self.browser.get("/console")
        assert answer.status_code == 200
        return answer.text


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("console") / "empty.db"
    upgrade(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> Settings:
    state = tmp_path / "state"
    state.mkdir()
    (state / "tollgate.db").write_bytes(migrated.read_bytes())
    # Nobody listens there: what the pools look like is written into the registry by the tests.
    urls = {"speculative": ["http://127.0.0.1:9"], "plain": ["http://127.0.0.1:9"]}
    return Settings(
        state_dir=state,
        pools=write_pools(tmp_path / "pools", urls),
        policy=DEFAULT_POLICY,
        admin_key=SecretStr(ADMIN_KEY),
    )


@pytest.fixture
async def console(settings: Settings) -> AsyncIterator[Console]:
    clock = MovableClock()
    app = create_app(settings, clock=clock)
    async with app.router.lifespan_context(app):
        yield Console(app, clock)


@pytest.fixture
async def inside(console: Console) -> Console:
    assert (await console.log_in()).status_code == 303
    return console


@pytest.fixture(autouse=True)
def _no_settings_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Reader(HTMLParser):
    """Collects the text between the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


def text_of(page: str) -> str:
    """What a person reads, with single spaces."""
    reader = Reader()
    reader.feed(page)
    return re.sub(r"\s+", " ", " ".join(reader.pieces))


async def tenant_with_key(console: Console, name: str, *, key: str = "app") -> tuple[str, str]:
    """A new tenant; its id and its key's public id."""
    act = make_act(console.clock)
    async with console.services.sessions() as database:
        tenant = await create_tenant(database, name, act=act)
        project = await ensure_project(database, tenant, f"{name}-project", act=act)
        issued = await create_key(database, project, key, act=act)
        await database.commit()
    return tenant.id, issued.id


async def book(console: Console, *rows: dict[str, Any]) -> None:
    moment = int(NOW.timestamp() * 1000)
    async with console.services.sessions() as database:
        await book_rows(
            database,
            [attempt_row(number, **{"started_at_ms": moment} | row) for number, row in enumerate(rows)],
        )
        await database.commit()


# ------------------------------------------------------------------------------------------------- login
async def test_strangers_are_led_to_the_login(console: Console) -> None:
    for path in ("/console", "/console?refresh=off", "/console/", "/console/anything/else"):
        answer = await console.browser.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/login"), path


async def test_the_key_opens_a_session_that_scripts_and_other_sites_cannot_use(console: Console) -> None:
    answer = await console.log_in()
    assert (answer.status_code, answer.headers["location"]) == (303, "/console")
    cookie = answer.headers["set-cookie"]
    assert {part.strip() for part in cookie.split(";")[1:]} == {
        "HttpOnly",
        "Max-Age=43200",
        "Path=/",
        "SameSite=strict",
    }
    assert ADMIN_KEY not in cookie
    assert "Spend this month" in await console.overview()
    again = await console.browser.get("/console/login")
    assert (again.status_code, again.headers["location"]) == (303, "/console")


async def test_over_https_the_cookie_stays_on_https(console: Console) -> None:
    async with console.new_browser(HTTPS) as browser:
        answer = await console.log_in(browser=browser)
        assert "; Secure" in answer.headers["set-cookie"]
        assert (await browser.get("/console")).status_code == 200


async def test_a_wrong_key_is_refused_after_a_while(console: Console) -> None:
    started_s = asyncio.get_running_loop().time()
    answer = await console.log_in("not the key, \u00e4\u00f6\u00fc")
    assert asyncio.get_running_loop().time() - started_s >= guesses.FAILURE_DELAY_S
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "That is not an administrator key." in answer.text
    assert (await console.browser.get("/console")).status_code == 303


async def test_an_address_that_fails_often_must_wait(console: Console) -> None:
    answers = await asyncio.gather(*(console.log_in(f"guess {number}") for number in range(13)))
    assert sorted(answer.status_code for answer in answers) == [401] * 10 + [429] * 3
    locked = await console.log_in()
    assert locked.status_code == 429
    assert 0 < int(locked.headers["retry-after"]) <= guesses.FAILURES_WINDOW_S
    assert "Try again in 5 min" in locked.text
    async with console.new_browser(HTTP, address="192.0.2.2") as elsewhere:
        assert (await console.log_in(browser=elsewhere)).status_code == 303
    console.clock.moved = timedelta(seconds=guesses.FAILURES_WINDOW_S)
    assert (await console.log_in()).status_code == 303


def test_one_subscribers_addresses_count_as_one() -> None:
    assert guesses.network_of("2001:db8::1") == guesses.network_of("2001:db8::ffff:1") == "2001:db8::/64"
    assert guesses.network_of("2001:db8:0:1::1") != guesses.network_of("2001:db8::1")
    assert guesses.network_of("::ffff:192.0.2.1") == guesses.network_of("192.0.2.1") == "192.0.2.1"
    assert guesses.network_of("testclient") == "testclient"


def test_failures_are_remembered_within_bounds() -> None:
    failed = guesses.FailedLogins()
    for number in range(guesses.REMEMBERED_MAX + 50):
        failed.note(str(number), 0.0)
    assert len(failed._failures) == guesses.REMEMBERED_MAX
    for _ in range(guesses.FAILURES_MAX - 1):
        failed.note("a", 0.0)
    failed.note("a", guesses.FAILURES_WINDOW_S)  # a new window, a new count
    failed.check("a", guesses.FAILURES_WINDOW_S)


# ----------------------------------------------------------------------------------------------- sessions
async def test_a_session_ends_after_twelve_hours(inside: Console) -> None:
    inside.clock.moved = timedelta(hours=12, seconds=-1)
    await inside.overview()
    inside.clock.moved = timedelta(hours=12)
    assert (await inside.browser.get("/console")).status_code == 303


async def test_logging_out_ends_the_session_even_for_whoever_copied_it(inside: Console) -> None:
    copied = inside.browser.cookies[COOKIE]
    answer = await inside.browser.post("/console/logout", headers={"origin": HTTP})
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/login")
    assert COOKIE not in inside.browser.cookies
    inside.browser.cookies.set(COOKIE, copied, path="/")
    assert (await inside.browser.get("/console")).status_code == 303


@pytest.mark.parametrize(
    "forge",
    [
        lambda _: "",
        lambda _: "..",
        lambda _: "9999999999999999999999.a.b",
        lambda _: "\u00b2.a.b",
        lambda value: value[:-1] + ("0" if value[-1] != "0" else "1"),
        lambda value: value.replace(value.split(".")[0], str(int(value.split(".")[0]) + 1)),
        lambda value: value.replace(value.split(".")[1], "0" * 32),
        lambda value: f"-{value}",
        lambda value: value.rpartition(".")[0],
        lambda value: f"{value}\u00e4",
    ],
)
async def test_a_forged_session_is_worth_nothing(inside: Console, forge: Any) -> None:
    value = forge(inside.browser.cookies[COOKIE])
    async with inside.new_browser(HTTP) as browser:
        cookie = f"{COOKIE}={value}".encode("latin-1")
        answer = await browser.get("/console", headers=[(b"cookie", cookie)])
    assert answer.status_code == 303


async def test_other_secrets_end_every_session(inside: Console) -> None:
    value = inside.browser.cookies[COOKIE]
    clock, root_key = inside.clock, inside.services.root_key
    same, other = (AdminRing(key, clock, stale_max_s=900) for key in (ADMIN_KEY, ADMIN_KEY.upper()))
    assert Logins(root_key, same, clock).actor_of(value) is not None
    assert Logins(root_key, other, clock).actor_of(value) is None
    assert Logins(b"another", same, clock).actor_of(value) is None


async def admin_key(console: Console, role: Role) -> tuple[str, str]:
    """A new administrator's key that the running gateway knows, and its public id."""
    async with console.services.sessions() as database:
        issued = await create_admin_key(database, "ada", role, act=make_act(console.clock))
        await database.commit()
    await until(lambda: console.services.admins.actor_with_id(issued.id) is not None)
    return issued.secret, issued.id


async def until(holds: Callable[[], bool]) -> None:
    deadline_s = asyncio.get_running_loop().time() + 20
    while not holds():
        assert asyncio.get_running_loop().time() < deadline_s
        await asyncio.sleep(0.02)


async def test_any_administrators_key_opens_the_console_and_the_page_says_whose(console: Console) -> None:
    key, _ = await admin_key(console, Role.VIEWER)
    assert (await console.log_in(key)).status_code == 303
    assert "ada \u00b7 viewer" in await console.overview()


async def test_a_session_ends_with_its_key(console: Console) -> None:
    key, key_id = await admin_key(console, Role.ADMIN)
    assert (await console.log_in(key)).status_code == 303
    await console.overview()
    async with console.services.sessions() as database:
        await revoke_admin_key(database, key_id, act=make_act(console.clock))
        await database.commit()
    await until(lambda: console.services.admins.actor_with_id(key_id) is None)
    assert (await console.browser.get("/console")).headers["location"] == "/console/login"
    again = await console.log_in(key)
    assert again.status_code == 401
    assert "is revoked since 2026-11-15 12:30 UTC" in text_of(again.text)


async def test_a_session_cannot_be_turned_into_somebody_elses(console: Console) -> None:
    key, key_id = await admin_key(console, Role.VIEWER)
    await console.log_in(key)
    value = console.browser.cookies[COOKIE].replace(key_id, "bootstrap")
    assert console.services.logins.actor_of(console.browser.cookies[COOKIE]) is not None
    assert console.services.logins.actor_of(value) is None


async def test_a_tenants_key_is_no_login(console: Console) -> None:
    await tenant_with_key(console, "acme")
    answer = await console.log_in("tg-abcdefghij-" + "0" * 32)
    assert answer.status_code == 401
    assert "The control plane needs an administrator key (tga-\u2026)" in text_of(answer.text)


@pytest.mark.parametrize(
    "headers", [{}, {"origin": "null"}, {"origin": "http://evil.test"}, {"origin": "http://[bad"}]
)
@pytest.mark.parametrize("path", ["/console/login", "/console/logout"])
async def test_forms_of_other_sites_are_refused(inside: Console, path: str, headers: dict[str, str]) -> None:
    answer = await inside.browser.post(path, data={"key": ADMIN_KEY}, headers=headers)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert "not sent from the console itself" in answer.text
    await inside.overview()


@pytest.mark.parametrize(("body", "status"), [(b"k" * 5000, 413), (b"&".join([b"a=b"] * 9), 400), (b"", 401)])
async def test_a_form_that_is_none_gets_a_sentence(console: Console, body: bytes, status: int) -> None:
    answer = await console.browser.post("/console/login", content=body, headers={"origin": HTTP})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


# ------------------------------------------------------------------------------------------- every answer
@pytest.mark.parametrize("path", ["/console", "/console/login", "/console/nowhere"])
async def test_pages_are_not_kept_framed_or_scripted(inside: Console, path: str) -> None:
    answer = await inside.browser.get(path)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert re.findall(r"<script(?! defer src=|[^>]* type=\"application/json\")", answer.text) == []
    assert not re.search(r" on[a-z]+=", answer.text)
    assert " style=" not in answer.text


async def test_files_are_served_and_kept(console: Console) -> None:
    page = (await console.browser.get("/console/login")).text
    addresses = re.findall(r'(?:href|src)="(/console/static/[^"]+)"', page)
    assert {address.partition("?")[0].rpartition("/")[2] for address in addresses} == {
        "console.css",
        "icon.svg",
    }
    for address in addresses:
        answer = await console.browser.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    missing = await console.browser.get("/console/static/..%2fsession.py")
    assert missing.status_code in {303, 404}
    assert (await console.browser.get("/console/static/session.py")).status_code == 404


async def test_errors_are_pages_with_a_sentence(inside: Console) -> None:
    answer = await inside.browser.get("/console/nowhere")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "There is no such page in the console." in text_of(answer.text)
    assert (await inside.browser.get("/console/")).headers["location"] == "/console"


async def test_before_the_start_there_is_a_page_too(settings: Settings) -> None:
    console = Console(create_app(settings), MovableClock())
    answer = await console.browser.get("/console")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "starting or stopping" in text_of(answer.text)


async def test_the_console_is_no_part_of_the_api_description(console: Console) -> None:
    description = (await console.browser.get("/openapi.json")).json()
    assert not [path for path in description["paths"] if path.startswith("/console")]


# --------------------------------------------------------------------------------------------- the overview
async def test_what_changes_renews_itself_and_asks_for_no_more_than_the_page(inside: Console) -> None:
    page = await inside.overview()
    assert 'id="now" data-live hx-get="/console" hx-select="#now"' in page
    assert 'hx-trigger="every 10s"' in page
    await inside.browser.post("/console/logout", headers={"origin": HTTP})
    answer = await inside.browser.get("/console", headers={"hx-request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/console/login")


async def test_pools_say_how_they_are(inside: Console) -> None:
    registry = inside.services.registry
    load = ReplicaLoad(
        requests_running=7,
        requests_waiting=1234,
        kv_cache_usage_ratio=0.371,
        prompt_tokens_total=0,
        generation_tokens_total=0,
        prefix_cache_query_tokens_total=0,
        prefix_cache_hit_tokens_total=0,
        draft_steps_total=100,
        draft_tokens_total=300,
        accepted_tokens_total=225,
        scraped_at_s=0.0,
    )
    # Names that no file has: the monitor, which runs, leaves them alone.
    registry.set_replicas("speculative", {"a": "http://127.0.0.1:9", "b": "http://127.0.0.1:9"})
    registry.set_state("a", ReplicaState.READY)
    registry.set_load("a", load)
    registry.set_state("b", ReplicaState.UNHEALTHY, "its <engine> died")
    lease = registry.lease("speculative")
    assert lease is not None
    text = text_of(await inside.overview())
    lease.release()
    assert "speculative 1 of 2 ready" in text
    assert "external driver" in text
    assert "speculates by ngram, 3 tokens per step" in text
    assert " a ready 1 7 1,234 37 % 3.25 " in text
    assert f" b unhealthy 0 {UNKNOWN} {UNKNOWN} {UNKNOWN} {UNKNOWN} its <engine> died " in text
    assert "plain 0 of 1 ready" in text


async def test_spend_is_shown_by_tenant_pool_task_and_day(inside: Console) -> None:
    acme, _ = await tenant_with_key(inside, "acme")
    umbrella, _ = await tenant_with_key(inside, "umbrella")
    last_month = int(datetime(2026, 10, 31, 23, 59, tzinfo=UTC).timestamp() * 1000)
    the_first = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp() * 1000)
    await book(
        inside,
        {"tenant_id": acme, "charge_usd_nanos": 1_234_567_890_123_456_789, "input_tokens": 1_234_567},
        {
            "tenant_id": umbrella,
            "charge_usd_nanos": 2,
            "pool": "plain",
            "task": "chat",
            "cached_input_tokens": 41,
        },
        {"tenant_id": umbrella, "charge_usd_nanos": 9, "started_at_ms": the_first},
        {"tenant_id": umbrella, "charge_usd_nanos": 5_000, "started_at_ms": last_month},
        {"payer": "platform", "state": "failed", "charge_usd_nanos": 3_000_000, "attempt_number": 2},
    )
    page = await inside.overview()
    text = re.sub(r"(?<=\.\d\d) (?=\d{7}\b)", "", text_of(page))  # cents and the rest, one number to the eye
    assert "USD 1,234,567,890.123456800 November 2026: 2026-11-01 to before 2026-12-01, UTC" in text
    assert "Charged to tenants for 3 requests." in text
    assert "1 failed attempt, USD 0.003." in text
    assert "By tenant acme 1 1,234,567 0 10 1,234,567,890.123456789 umbrella 2 200 41 20 0.000000011" in text
    assert (
        "By pool speculative 2 1,234,667 0 20 1,234,567,890.123456798 plain 1 100 41 10 0.000000002" in text
    )
    assert "By task extraction 2" in text
    assert "Total 3 1,234,767 41 30 1,234,567,890.123456800" in text
    assert "reasoning" not in text.lower()  # a meter that nobody used
    assert "1 0.000000009 2 0.00" in text  # the chart's days, in figures
    assert "15 1,234,567,890.123456791 16 \N{EN DASH}" in text


async def test_meters_appear_when_they_are_used(inside: Console) -> None:
    await book(inside, {"reasoning_tokens": 77, "cache_write_tokens": 88})
    assert (
        "Requests Input tokens Cached input tokens Cache write tokens Output tokens Reasoning tokens"
        in text_of(await inside.overview())
    )


async def test_many_tenants_are_added_up_at_the_end(inside: Console) -> None:
    await book(
        inside, *({"tenant_id": f"ten_{number}", "charge_usd_nanos": 1000 - number} for number in range(25))
    )
    text = text_of(await inside.overview())
    assert "ten_19 " in text
    assert "ten_20 " not in text
    assert "5 others 5 500 0 50" in text


async def test_nothing_spent_is_no_empty_chart(inside: Console) -> None:
    page = await inside.overview()
    assert "Charged to tenants for 0 requests." in text_of(page)
    assert "<svg" not in page


async def test_what_tenants_choose_is_never_markup(inside: Console) -> None:
    evil = "<script>alert('x')</script>\"><img src=x>"
    tenant, _ = await tenant_with_key(inside, evil, key=evil)
    await book(inside, {"tenant_id": tenant, "task": "<b>", "pool": "<i>"})
    page = await inside.overview()
    assert "<script>" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") == 4  # spend, key, tenant, project
    assert evil in text_of(page)


async def test_keys_are_listed_with_the_valid_ones_first(inside: Console) -> None:
    _, old = await tenant_with_key(inside, "acme", key="old")
    inside.clock.moved = timedelta(minutes=1)
    _, new = await tenant_with_key(inside, "umbrella", key="new")
    async with inside.services.sessions() as database:
        await revoke_key(database, new, act=make_act(inside.clock))
        await database.commit()
    text = text_of(await inside.overview())
    assert f"{old} old acme acme-project 2026-11-15 12:30 valid" in text
    assert f"{new} new umbrella umbrella-project 2026-11-15 12:31 revoked 2026-11-15 12:31" in text
    assert text.index(old) < text.index(new)


async def test_the_policy_in_force_is_shown(inside: Console) -> None:
    policy = inside.services.pipeline.routing.policy
    text = text_of(await inside.overview())
    assert f"{policy.name} version {policy.version}" in text
    assert "Predictable work goes to speculative then plain" in text
    assert "Creative work goes to plain then speculative" in text


async def test_pools_are_shown_while_the_database_is_away(inside: Console) -> None:
    async with inside.services.sessions() as database:
        connection = await database.connection()
        await connection.exec_driver_sql("ALTER TABLE spend_days RENAME TO away")
        await database.commit()
    text = text_of(await inside.overview())
    assert "The database does not answer" in text
    assert "speculative 0 of 1 ready" in text
    assert "Active policy" in text
    assert "Spend this month" not in text
