"""Do people get in with their password or the company's login, and nobody else?"""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc.jwk import RSAKey
from pydantic import SecretStr

from gateway.app import create_app
from gateway.clock import Clock
from gateway.dependencies import COOKIE, Services
from gateway.identity.passwords import PasswordCheck, hash_password
from gateway.identity.roles import RULES, Credential
from gateway.migrate import upgrade
from gateway.settings import OidcSettings, Settings
from tests.support.gateway_process import environment
from tests.support.oidc_provider import OidcProvider, running_provider
from tests.support.own_process import run_here
from tests.support.pool_files import DEFAULT_POLICY, write_pools

ADMIN_KEY = "tga-a-key-for-the-people-test-only-0123456789"
HTTP = "http://gateway.test"
PASSWORD = "four words in a row"
BEARER = {"authorization": f"Bearer {ADMIN_KEY}"}
CHANGING = {"origin": HTTP, "x-tollgate-console": "1"}
Browser = httpx.AsyncClient  # noqa: TID251 - a test's client


class House:
    """A gateway with its doors."""

    def __init__(self, browser: Browser, services: Callable[[], Services]) -> None:
        self.browser = browser
        self.services = services

    async def create(self, name: str = "ada@acme.example", role: str = "finance") -> str:
        body = {"name": name, "role": role, "password": PASSWORD}
        answer = await self.browser.post("/admin/v1/people", json=body, headers=BEARER)
        assert answer.status_code == 201, answer.text
        assert "password" not in answer.text.replace("password_set_at", "").replace('"password"', "")
        found: str = answer.json()["id"]
        await self.until(lambda: self.services().admins.person_named(name) is not None)
        return found

    async def log_in(self, name: str, secret: str) -> httpx.Response:
        body = {"name": name, "key": secret}
        return await self.browser.post("/console/login", data=body, headers={"origin": HTTP})

    async def until(self, holds: Callable[[], bool]) -> None:
        deadline_s = asyncio.get_running_loop().time() + 30
        while not holds():
            assert asyncio.get_running_loop().time() < deadline_s
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def provider() -> Iterator[OidcProvider]:
    with running_provider() as running:
        yield running


@pytest.fixture
async def house(
    tmp_path: Path, provider: OidcProvider, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "state"
    state.mkdir()
    await asyncio.to_thread(upgrade, f"sqlite+aiosqlite:///{state / 'tollgate.db'}")
    provider.lies = {}
    provider.signing_key = provider.key
    settings = Settings(
        state_dir=state,
        pools=write_pools(
            tmp_path / "pools", {"speculative": ["http://127.0.0.1:9"], "plain": ["http://127.0.0.1:9"]}
        ),
        policy=DEFAULT_POLICY,
        admin_key=SecretStr(ADMIN_KEY),
        oidc=OidcSettings(
            issuer=provider.url,
            client_id="tollgate",
            roles={"platform": "operator", "finance-team": "finance"},
        ),
        oidc_client_secret=SecretStr("the secret"),
    )
    app = create_app(settings, clock=Clock())
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with Browser(transport=transport, base_url=HTTP) as browser:
            yield House(browser, app.state.runtime.current)


async def test_a_person_logs_in_and_changes_what_the_role_may_in_the_own_name(house: House) -> None:
    await house.create()
    wrong = await house.log_in("ada@acme.example", "four words in a raw")
    assert wrong.status_code == 401
    assert "do not belong together" in wrong.text
    assert 'value="ada@acme.example"' in wrong.text
    nobody = await house.log_in("eve@acme.example", PASSWORD)
    assert "do not belong together" in nobody.text  # the same sentence: nobody learns who exists
    assert (await house.log_in("ada@acme.example", PASSWORD)).status_code == 303
    assert "ada@acme.example · finance" in (await house.browser.get("/console")).text

    tenants = await house.browser.get("/admin/v1/tenants")  # the console's pages ask the API with the login
    assert tenants.status_code == 200
    budget = {"scope": "tenant", "owner": "acme", "amount_usd": "1.5", "window": "month"}
    made = await house.browser.post("/admin/v1/tenants", json={"name": "acme"}, headers=BEARER)
    assert made.status_code == 201
    created = await house.browser.post("/admin/v1/budgets", json=budget, headers=CHANGING)
    assert created.status_code in {201, 400}  # the body is the budgets' own matter
    refused = await house.browser.post("/admin/v1/policies/rollback", json={}, headers=CHANGING)
    assert refused.status_code == 403
    assert "has the role finance" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers", [{}, {"origin": HTTP}, {"origin": "http://evil.test", "x-tollgate-console": "1"}]
)
async def test_another_sites_page_changes_nothing_with_a_login(house: House, headers: dict[str, str]) -> None:
    await house.create(role="admin")
    await house.log_in("ada@acme.example", PASSWORD)
    answer = await house.browser.post("/admin/v1/tenants", json={"name": "evil"}, headers=headers)
    assert answer.status_code == 403


async def test_a_viewer_changes_nothing_whatever_is_tried(house: House) -> None:
    await house.create(role="viewer")
    await house.log_in("ada@acme.example", PASSWORD)
    tried = 0
    for (method, template), rule in RULES.items():
        if method in {"GET", "HEAD"} or rule.credential is not Credential.ADMIN_KEY:
            continue
        if template.endswith(("/policies/explain", "/policies/check", "/policies/diff")):
            continue  # they tell what is so and change nothing
        path = "/".join("x" if part.startswith("{") else part for part in template.split("/"))
        answer = await house.browser.request(method, path, json={}, headers=CHANGING)
        allowed = "viewer" in rule.roles
        assert (answer.status_code == 403) != allowed, (method, template)
        tried += not allowed
    assert tried > 30


async def test_another_password_or_none_ends_the_logins(house: House) -> None:
    person = await house.create()
    await house.log_in("ada@acme.example", PASSWORD)
    path = f"/admin/v1/people/{person}"
    old = house.services().admins.person_named("ada@acme.example")
    changed = await house.browser.post(
        f"{path}/password", json={"password": "quite another sentence"}, headers=BEARER
    )
    assert changed.status_code == 200, changed.text
    await house.until(lambda: house.services().admins.person_named("ada@acme.example") != old)
    assert (await house.browser.get("/console")).status_code == 303
    assert (await house.log_in("ada@acme.example", "quite another sentence")).status_code == 303
    moved = await house.browser.patch(path, json={"role": "viewer"}, headers=BEARER)
    assert moved.json()["role"] == "viewer"
    await house.until(lambda: "viewer" in str(house.services().admins.person_named("ada@acme.example")))
    assert "ada@acme.example · viewer" in (await house.browser.get("/console")).text
    retired = await house.browser.post(f"{path}/retire", headers=BEARER)
    assert retired.json()["retired_at"] is not None
    await house.until(lambda: house.services().admins.person_named("ada@acme.example") is None)
    assert (await house.browser.get("/console")).status_code == 303
    assert (await house.log_in("ada@acme.example", "quite another sentence")).status_code == 401
    again = await house.browser.post(f"{path}/password", json={"password": PASSWORD}, headers=BEARER)
    assert again.status_code == 409
    listed = (await house.browser.get("/admin/v1/people", headers=BEARER)).json()["data"]
    assert [(one["name"], one["logs_in_by"]) for one in listed] == [("ada@acme.example", "password")]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"name": "ada", "role": "finance", "password": "short"}, 400, "12 to 256 characters"),
        ({"name": "ada", "role": "finance", "password": "my name is ada, really"}, 400, "the person's name"),
        ({"name": "ada", "role": "finance", "password": "aaaaaaaaaaaaaaaa"}, 400, "repeats a few"),
        ({"name": " ", "role": "finance", "password": PASSWORD}, 400, "A name has"),
        ({"name": "ada", "role": "boss", "password": PASSWORD}, 400, "role"),
        ({"name": "taken", "role": "finance", "password": PASSWORD}, 409, "named 'taken' already"),
    ],
)
async def test_what_is_no_person_gets_a_sentence(
    house: House, body: dict[str, str], status: int, says: str
) -> None:
    if body["name"] == "taken":
        await house.create("taken")
    answer = await house.browser.post("/admin/v1/people", json=body, headers=BEARER)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]
    unknown = await house.browser.post("/admin/v1/people/nobody/retire", headers=BEARER)
    assert unknown.status_code == 404


async def test_a_name_that_many_guess_at_must_wait(house: House) -> None:
    transport = house.browser._transport
    assert isinstance(transport, httpx.ASGITransport)
    for number in range(5):
        transport.client = (f"192.0.2.{number}", 1)
        answers = await asyncio.gather(*(house.log_in("root", f"guess {guess}") for guess in range(10)))
        assert {answer.status_code for answer in answers} == {401}
    transport.client = ("192.0.2.99", 1)
    assert (await house.log_in("root", "one more")).status_code == 429
    assert (await house.log_in("", ADMIN_KEY)).status_code == 303


async def test_many_guesses_at_once_are_counted_like_one_after_the_other(house: House) -> None:
    await house.create()
    guesses = [house.log_in("ada@acme.example", f"a guess, number {guess}") for guess in range(30)]
    answers = await asyncio.gather(*guesses, house.log_in("ada@acme.example", PASSWORD))
    assert sorted(answer.status_code for answer in answers) == [401] * 10 + [429] * 21


async def test_a_password_may_end_with_a_space(house: House) -> None:
    body = {"name": "bea", "role": "viewer", "password": f"{PASSWORD} "}
    assert (await house.browser.post("/admin/v1/people", json=body, headers=BEARER)).status_code == 201
    await house.until(lambda: house.services().admins.person_named("bea") is not None)
    assert (await house.log_in("bea", PASSWORD)).status_code == 401
    assert (await house.log_in("bea", f"{PASSWORD} ")).status_code == 303


async def test_passwords_are_argon2id_and_nobodys_never_matches() -> None:
    kept = hash_password(PASSWORD, name="ada")
    assert kept.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    check = PasswordCheck()
    assert await check.matches(kept, PASSWORD)
    assert not await check.matches(kept, PASSWORD + "!")
    assert not await check.matches(None, "the password of whoever does not exist")
    assert not await check.matches("no hash", PASSWORD)


def test_the_command_line_makes_people_too(tmp_path: Path) -> None:
    def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return run_here(environment(tmp_path), tmp_path, *arguments, given=given)

    assert run("migrate").returncode == 0
    made = run(
        "people", "create", "ada", "--role", "viewer", "--password-stdin", given="quite a long sentence\n"
    )
    assert made.stdout == "ada (viewer) may log in to the console.\n", made.stderr
    assert "has the role operator" in run("people", "role", "ada", "operator").stdout
    again = run("people", "password", "ada", "--password-stdin", given="another long sentence\n")
    assert "has another password" in again.stdout
    assert "--password-stdin" in run("people", "password", "ada").stderr
    (person,) = json.loads(run("people", "list", "--json").stdout)
    named = run("people", "password", person["id"], "--password-stdin", given="this is ada, who else\n")
    assert (named.returncode, "contains the person's name" in named.stderr) == (2, True), named
    assert "may not log in any more" in run("people", "retire", "ada").stdout
    assert '"logs_in_by": "password"' in run("people", "list", "--json").stdout


# --------------------------------------------------------------------------------------- the own password
NEW = "quite another sentence"


async def change(house: House, old: str, new: str, **more: str) -> httpx.Response:
    body = {"old_password": old, "password": new, **more}
    return await house.browser.post("/admin/v1/me/password", json=body, headers=CHANGING)


async def test_a_person_changes_the_own_password_and_every_other_login_ends(house: House) -> None:
    person = await house.create(role="viewer")
    await house.log_in("ada@acme.example", PASSWORD)
    elsewhere = dict(house.browser.cookies)
    house.browser.cookies.clear()
    await house.log_in("ada@acme.example", PASSWORD)
    page = (await house.browser.get("/console/me")).text
    assert "name and password" in page
    assert 'data-api="POST /admin/v1/me/password"' in page
    assert "Your login</a>" in (await house.browser.get("/console")).text, "the menu leads there"

    changed = await change(house, PASSWORD, NEW, password_again=NEW)
    assert changed.status_code == 200, changed.text
    assert changed.json()["id"] == person
    assert "SameSite=strict" in changed.headers["set-cookie"]
    assert "HttpOnly" in changed.headers["set-cookie"]
    assert "ada@acme.example · viewer" in (await house.browser.get("/console")).text, "this login goes on"
    here = dict(house.browser.cookies)
    house.browser.cookies.clear()
    house.browser.cookies.update(elsewhere)
    assert (await house.browser.get("/console")).status_code == 303, "the other one has ended"
    house.browser.cookies.clear()
    assert (await house.log_in("ada@acme.example", PASSWORD)).status_code == 401
    assert (await house.log_in("ada@acme.example", NEW)).status_code == 303
    house.browser.cookies.update(here)
    (entry, *_) = (await house.browser.get("/admin/v1/audit?action=person", headers=BEARER)).json()["data"]
    assert (entry["action"], entry["object"]["id"]) == ("person.set_password", person)
    assert (entry["actor"]["id"], entry["source"]) == (person, "console")
    assert NEW not in str(entry)
    assert "argon2" not in str(entry)


async def test_what_is_no_new_password_changes_nothing(house: House) -> None:
    await house.create()
    await house.log_in("ada@acme.example", PASSWORD)
    for old, new, again, param, says in (
        ("four words in a raw", NEW, NEW, "old_password", "old password is wrong"),
        (PASSWORD, PASSWORD, PASSWORD, "password", "is the old one"),
        (PASSWORD, "short", "short", "password", "12 to 256 characters"),
        (PASSWORD, "I am ada@acme.example", "I am ada@acme.example", "password", "the person's name"),
        (PASSWORD, NEW, f"{NEW}.", "password_again", "write the same twice"),
    ):
        answer = await change(house, old, new, password_again=again)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
        assert says in answer.json()["error"]["message"]
        assert "set-cookie" not in answer.headers
    body = {"old_password": PASSWORD, "password": NEW}
    for headers in ({}, {"origin": HTTP}, CHANGING | {"origin": "http://evil.test"}):
        answer = await house.browser.post("/admin/v1/me/password", json=body, headers=headers)
        assert answer.status_code == 403, "another site's page changes nothing"
    assert (await house.log_in("ada@acme.example", PASSWORD)).status_code == 303


async def test_whoever_finds_a_login_guesses_no_password(house: House) -> None:
    await house.create()
    await house.log_in("ada@acme.example", PASSWORD)
    guesses = (change(house, f"a guess, number {number}", NEW) for number in range(12))
    answers = await asyncio.gather(*guesses)
    assert sorted(answer.status_code for answer in answers) == [400] * 10 + [429] * 2
    refused = await change(house, PASSWORD, NEW)
    assert refused.status_code == 429, "now the right one must wait, too"
    assert 0 < int(refused.headers["retry-after"]) <= 300
    assert "Try again in 5 min" in refused.json()["error"]["message"]
    house.browser.cookies.clear()
    assert (await house.log_in("ada@acme.example", PASSWORD)).status_code == 429, "one count for both"


async def test_keys_and_the_companys_login_have_no_password_here(
    house: House, provider: OidcProvider
) -> None:
    body = {"old_password": PASSWORD, "password": NEW}
    by_key = await house.browser.post("/admin/v1/me/password", json=body, headers=BEARER)
    assert by_key.status_code == 409
    assert "administrator key 'bootstrap', which has no password" in by_key.json()["error"]["message"]
    await house.log_in("", ADMIN_KEY)
    page = (await house.browser.get("/console/me")).text
    assert "the setting <code>TOLLGATE_ADMIN_KEY</code>" in page
    assert "data-api" not in page
    house.browser.cookies.clear()
    assert (await journey(house, provider)).status_code == 200
    page = (await house.browser.get("/console/me")).text
    assert "you log in with the company's login" in page.replace("&#39;", "'")
    assert "data-api" not in page
    by_login = await change(house, PASSWORD, NEW)
    assert by_login.status_code == 409
    assert "company's login, which keeps your password" in by_login.json()["error"]["message"]


async def test_an_administrator_who_names_a_person_by_id_gives_no_password_with_the_name(
    house: House,
) -> None:
    person = await house.create()
    for named in (person, "ada@acme.example"):
        answer = await house.browser.post(
            f"/admin/v1/people/{named}/password", json={"password": "ada@acme.example 1"}, headers=BEARER
        )
        assert answer.status_code == 400, named
        assert "the person's name" in answer.json()["error"]["message"]


# ------------------------------------------------------------------------------------- the company's login
async def journey(house: House, provider: OidcProvider) -> httpx.Response:
    """Out to the provider and back, as a browser goes."""
    away = await house.browser.get("/console/login/oidc")
    assert away.status_code == 303, away.text
    async with Browser() as world:
        back = await world.get(away.headers["location"])
    assert back.status_code == 303
    parts = urlsplit(back.headers["location"])
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{HTTP}/console/login/oidc/callback"
    assert provider.codes
    return await house.browser.get(f"{parts.path}?{parts.query}")


async def test_the_companys_login_makes_a_person_whose_role_follows_the_groups(
    house: House, provider: OidcProvider
) -> None:
    assert "company" in (await house.browser.get("/console/login")).text
    arrived = await journey(house, provider)
    assert arrived.status_code == 200, arrived.text
    assert "Welcome, ada@acme.example" in arrived.text
    assert "SameSite=strict" in "".join(arrived.headers.get_list("set-cookie"))
    assert "ada@acme.example · finance" in (await house.browser.get("/console")).text
    house.browser.cookies.clear()
    provider.person = provider.person | {"groups": ["platform", "finance-team"]}
    assert (await journey(house, provider)).status_code == 200
    assert "ada@acme.example · operator" in (await house.browser.get("/console")).text
    entries = (await house.browser.get("/admin/v1/audit?action=person", headers=BEARER)).json()["data"]
    assert [one["action"] for one in entries] == ["person.change_role", "person.create"]
    house.browser.cookies.clear()
    provider.person = provider.person | {"groups": ["strangers"]}
    refused = await journey(house, provider)
    assert refused.status_code == 403
    assert "in no group that may use this console" in refused.text
    provider.person = provider.person | {"groups": ["finance-team"]}


@pytest.mark.parametrize(
    "lies",
    [
        {"nonce": "another"},
        {"aud": "somebody else"},
        {"iss": "http://evil.test"},
        {"exp": 1},
        {"azp": "evil"},
    ],
    ids=lambda lies: next(iter(lies)),
)
async def test_a_token_that_is_not_for_us_is_worth_nothing(
    house: House, provider: OidcProvider, lies: dict[str, object]
) -> None:
    provider.lies = lies
    refused = await journey(house, provider)
    assert refused.status_code == 401
    assert "could not be trusted" in refused.text
    assert COOKIE not in house.browser.cookies


async def test_whoever_had_a_password_moves_to_the_companys_login_once_that_is_retired(
    house: House, provider: OidcProvider
) -> None:
    person = await house.create()
    refused = await journey(house, provider)
    assert refused.status_code == 409
    assert "tollgate people retire ada@acme.example" in refused.text
    await house.browser.post(f"/admin/v1/people/{person}/retire", headers=BEARER)
    await house.until(lambda: house.services().admins.person_named("ada@acme.example") is None)
    assert (await journey(house, provider)).status_code == 200
    listed = (await house.browser.get("/admin/v1/people", headers=BEARER)).json()["data"]
    assert [(one["logs_in_by"], one["retired_at"] is None) for one in listed] == [
        ("password", False),
        ("oidc", True),
    ]


async def test_another_key_or_another_browser_is_worth_nothing(house: House, provider: OidcProvider) -> None:
    provider.signing_key = RSAKey.generate_key(2048, {"kid": "one"})
    assert (await journey(house, provider)).status_code == 401
    provider.signing_key = provider.key
    away = await house.browser.get("/console/login/oidc")
    state = parse_qs(urlsplit(away.headers["location"]).query)["state"][0]
    stolen = f"/console/login/oidc/callback?state={state}&code=x"
    house.browser.cookies.clear()
    assert "not begun in this browser" in (await house.browser.get(stolen)).text
    await house.browser.get("/console/login/oidc")
    other = await house.browser.get("/console/login/oidc/callback?state=another&code=x")
    assert other.status_code == 401
    denied = await house.browser.get("/console/login/oidc/callback?error=access_denied")
    assert "said no: access_denied" in denied.text
