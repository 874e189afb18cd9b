"""Do finance and app teams get along in a real browser: reports, a month that closes, a key that works?"""

import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import openai
import pytest
from playwright.sync_api import Browser, Page, expect

from gateway.clock import Clock
from gateway.ledger.cuts import month_of
from tests.support.browser import LOADED_MS, Window, needs_browser
from tests.support.console_site import ADMIN_KEY, EVIL, running_gateway

pytestmark = needs_browser
expect.set_options(timeout=LOADED_MS)

LAST_MONTH = f"{month_of(Clock().now())[0] - timedelta(days=1):%Y-%m}"
PAGES = (
    "/console/spend?compare=previous&by=tenant&by=pool",
    "/console/spend?by=day&by=model&end_users=1&filter=pool%3Dplain",
    "/console/spend/supply",
    "/console/spend/savings?period=last-month",
    "/console/spend/forecast",
    "/console/spend/anomalies",
    "/console/periods",
    f"/console/periods/{LAST_MONTH}",
    "/console/periods/adjustments",
    "/console/periods/bills",
    "/console/budgets",
    "/console/keys",
    "/console/keys/tenants",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a gateway serves whose months may be closed as soon as they are over."""
    with running_gateway(tmp_path_factory.mktemp("finance"), TOLLGATE_PERIODS__GRACE_S="0") as url:
        yield url


def confirm(page: Page) -> None:
    """Say yes to the question before a change."""
    page.get_by_role("dialog").get_by_role("button", name="Yes").click()


def issued_key(site: str, name: str, role: str) -> str:
    """An administrator's key of that role."""
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    answer = httpx.post(f"{site}/admin/v1/admin-keys", json={"name": name, "role": role}, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["key"])


def first_answer(site: str, secret: str) -> str | None:
    """What the model says to whoever calls with a new key, which every process knows within two seconds."""
    with openai.OpenAI(api_key=secret, base_url=f"{site}/v1", max_retries=8) as client:
        for _ in range(100):
            try:
                answer = client.chat.completions.create(
                    model="auto",
                    messages=[{"role": "user", "content": "Say hello."}],
                    extra_headers={"x-tollgate-task": "extraction"},
                )
            except openai.AuthenticationError:
                time.sleep(0.1)
            else:
                return answer.choices[0].message.content
    return None


@pytest.mark.parametrize(("width", "is_dark"), [(1280, False), (390, True)], ids=["light", "phone-dark"])
def test_everybody_can_read_every_page(
    browser: Browser, site: str, tmp_path: Path, width: int, *, is_dark: bool
) -> None:
    window = Window(browser, site, width=width, is_dark=is_dark)
    window.log_in(ADMIN_KEY)
    for path in PAGES:
        window.open(path)
        assert window.too_wide() == [], path
        assert window.accessibility_errors() == [], path
        assert window.complaints == [], path
        name = path.removeprefix("/console/").partition("?")[0].replace("/", "-")
        window.screenshot(tmp_path / f"{name}-{width}.png")
    window.close()


def test_a_click_narrows_and_a_chip_widens_again(window: Window) -> None:
    page = window.page
    window.open("/console/spend")
    page.get_by_role("link", name="acme").first.click()
    expect(page.get_by_label("Filters")).to_contain_text("Tenant: acme")
    assert "filter=tenant%3Dacme" in page.url
    page.get_by_label("Group by").select_option("pool")
    page.wait_for_url(re.compile("by=pool"))
    expect(page.get_by_role("row", name="speculative")).to_be_visible()
    expect(page.get_by_role("row", name="plain")).to_have_count(0)
    with page.expect_download() as found:
        page.get_by_role("link", name="CSV").click()
    text = Path(found.value.path()).read_text()
    assert "speculative" in text
    assert "plain" not in text
    page.get_by_label("Take away the filter tenant=acme").click()
    expect(page.get_by_role("row", name="plain")).to_be_visible()
    assert EVIL not in page.title()
    assert window.complaints == []


def test_finance_closes_a_month_and_a_viewer_cannot(browser: Browser, site: str, tmp_path: Path) -> None:
    viewer = Window(browser, site)
    viewer.log_in(issued_key(site, "looker", "viewer"))
    viewer.open(f"/console/periods/{LAST_MONTH}")
    expect(viewer.page.get_by_role("button", name=f"Close {LAST_MONTH}")).to_have_count(0)
    assert "takes the role admin or finance" in viewer.text()

    window = Window(browser, site)
    page = window.page
    window.log_in(issued_key(site, "ann of finance", "finance"))
    window.open("/console/periods")
    expect(page.get_by_role("row", name=LAST_MONTH)).to_contain_text("due")
    page.get_by_role("link", name=LAST_MONTH).click()
    expect(page.get_by_role("heading", name="Are the books right?")).to_be_visible()
    expect(page.get_by_role("row", name="acme")).to_contain_text("+")  # more than the month before
    page.get_by_role("button", name=f"Close {LAST_MONTH}").click()
    confirm(page)
    expect(page.locator("#notice")).to_have_text(f"{LAST_MONTH} is closed.")
    expect(page.get_by_role("heading", name="Closed for ever")).to_be_visible()
    with page.expect_download() as found:
        page.get_by_role("link", name="Closed report").click()
    assert f'"period":"{LAST_MONTH}"' in Path(found.value.path()).read_text()
    with page.expect_download() as found:
        page.get_by_role("link", name="Statement of acme, PDF").click()
    assert Path(found.value.path()).read_bytes().startswith(b"%PDF-")
    page.get_by_role("link", name="Verify it now").click()
    expect(page.get_by_text("It is what it was.")).to_be_visible()
    assert window.accessibility_errors() == []
    window.screenshot(tmp_path / "closed.png")

    viewer.open(f"/console/periods/{LAST_MONTH}")
    assert "ann of finance" in viewer.text()
    assert window.complaints == viewer.complaints == []
    window.close()
    viewer.close()


def test_a_bill_is_sent_and_what_is_wrong_with_one_is_said(window: Window, tmp_path: Path) -> None:
    page = window.page
    window.open("/console/periods/bills")
    bill = tmp_path / "invoice.csv"
    bill.write_text("day,pool,quantity\n")
    page.set_input_files("#file", bill)
    page.get_by_role("button", name="Compare").click()
    confirm(page)
    expect(page.get_by_role("alert")).to_contain_text("amount")
    bill.write_text(f"day,pool,quantity,amount\n{LAST_MONTH}-02,theirs,1,1.00\n")
    page.set_input_files("#file", bill)
    page.fill("#pools", "theirs=plain")
    page.get_by_role("button", name="Compare").click()
    confirm(page)
    expect(page.get_by_role("heading", name="Why they differ")).to_be_visible()
    assert window.accessibility_errors() == []
    window.screenshot(tmp_path / "bill.png")
    assert "invoice.csv" in window.text()


def test_an_app_team_gets_a_key_and_sees_its_first_request(window: Window, site: str, tmp_path: Path) -> None:
    page = window.page
    window.open("/console/keys/tenants")
    page.fill("#name", "shop")
    page.get_by_role("button", name="Make it").click()
    confirm(page)
    expect(page.get_by_role("heading", name="shop")).to_be_visible()
    page.fill("#name", "checkout")
    page.get_by_role("button", name="Make it").click()
    confirm(page)
    expect(page.get_by_role("row", name="checkout")).to_be_visible()
    page.get_by_role("link", name="Issue a key", exact=True).click()
    page.fill("#project", "checkout")
    page.fill("#name", "web")
    page.get_by_role("button", name="Issue the key").click()
    confirm(page)
    expect(page.locator("#secret-value")).to_have_text(re.compile("^tg-"))
    assert window.accessibility_errors() == []
    window.screenshot(tmp_path / "secret.png")
    secret = page.locator("#secret-value").inner_text()
    command = page.locator("#secret-command").inner_text()
    assert command.startswith(f"curl {site}/v1/chat/completions")
    assert f"Bearer {secret}" in command
    page.get_by_role("button", name="I have it").click()
    expect(page.get_by_text("Waiting for its first request")).to_be_visible()
    assert window.accessibility_errors() == []
    window.screenshot(tmp_path / "waiting.png")
    assert secret not in page.content()
    assert first_answer(site, secret)
    expect(page.get_by_role("link", name="Its spend by day")).to_be_visible()
    page.get_by_role("link", name="Its spend by day").click()
    expect(page.get_by_role("row", name=f"{Clock().now():%Y-%m-%d}")).to_be_visible()
    assert window.complaints == []


def test_a_budget_is_made_and_a_wrong_one_is_refused_in_the_form(window: Window, tmp_path: Path) -> None:
    page = window.page
    window.open("/console/budgets")
    page.fill("#name", "acme-month")
    page.fill("#of", "acne")
    page.fill("#limit", "100")
    page.get_by_role("button", name="Make it").click()
    confirm(page)
    expect(page.get_by_role("alert")).to_contain_text("acme")
    page.fill("#of", "acme")
    page.get_by_role("button", name="Make it").click()
    confirm(page)
    expect(page.get_by_role("heading", name="acme-month")).to_be_visible()
    expect(page.get_by_label("A line of what is left of the budget")).to_be_visible()
    assert window.accessibility_errors() == []
    window.screenshot(tmp_path / "budget.png")
    page.fill("#limit", "250")
    page.get_by_role("button", name="Change").click()
    confirm(page)
    expect(page.locator("#notice")).to_have_text("Changed.")
    assert "250.00" in window.text()
