"""Does the console work in a real browser: login, figures, narrow windows, nothing to complain of?"""

from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from gateway.clock import Clock
from tests.support.browser import LOADED_MS, Window, needs_browser
from tests.support.console_site import ADMIN_KEY, EVIL

pytestmark = needs_browser


def test_a_person_logs_in_looks_and_logs_out(browser: Browser, site: str) -> None:
    window = Window(browser, site)
    page = window.page
    page.goto(f"{site}/console")
    assert page.url == f"{site}/console/login"
    expect(page.locator("#name")).to_be_focused()
    page.fill("#key", "not the key")
    page.click("button.primary")
    expect(page.get_by_role("alert")).to_contain_text("not an administrator key")
    window.log_in(ADMIN_KEY)
    assert "Spend this month" in window.text()
    assert page.evaluate("document.cookie") == ""  # scripts cannot read it
    page.click("header form button")
    page.wait_for_url(f"{site}/console/login")
    page.goto(f"{site}/console")
    assert page.url == f"{site}/console/login"
    # A style, a script or a form that our own policy blocks would be named here.
    assert [text for text in window.complaints if "401" not in text] == []
    window.close()


def test_a_person_changes_the_own_password_and_stays_logged_in(
    browser: Browser, site: str, tmp_path: Path
) -> None:
    name, old, new = "ada@acme.example", "four words in a row", "four other words in a row"
    made = httpx.post(
        f"{site}/admin/v1/people",
        json={"name": name, "role": "viewer", "password": old},
        headers={"authorization": f"Bearer {ADMIN_KEY}"},
        timeout=60,
    )
    assert made.status_code == 201, made.text
    window = Window(browser, site, width=390, is_dark=True)
    page = window.page
    window.log_in(old, name=name)
    page.get_by_role("link", name=f"{name} · viewer").click()
    expect(page.get_by_role("heading", name="Your password")).to_be_visible()
    assert (window.too_wide(), window.accessibility_errors()) == ([], [])
    page.fill("#old", "no, other words")
    page.fill("#new", new)
    page.fill("#again", new)
    page.get_by_role("button", name="Change it").click()
    expect(page.get_by_role("alert")).to_contain_text("The old password is wrong")
    window.screenshot(tmp_path / "login-wrong.png")
    page.fill("#old", old)
    page.get_by_role("button", name="Change it").click()
    expect(page.locator("#notice")).to_contain_text("Your password is changed", timeout=LOADED_MS)
    expect(page.get_by_role("link", name=f"{name} · viewer")).to_be_visible()
    window.screenshot(tmp_path / "login.png")
    assert [text for text in window.complaints if "400" not in text] == []
    page.click("header form button")
    window.log_in(new, name=name)
    window.close()


def test_what_a_tenant_chose_is_text(window: Window) -> None:
    assert window.page.title() == "Overview · Tollgate"
    assert EVIL in window.page.inner_text("section:has(#keys)")


def test_pools_and_bars_are_drawn_and_renew_themselves(window: Window) -> None:
    page = window.page
    states = page.locator(".pools .state")
    expect(states).to_have_text(["starting", "ready"], timeout=30_000)
    bars = "Chart.getChart(document.querySelector('canvas[data-chart]')).getDatasetMeta(0).data"
    drawn = page.evaluate(f"{bars}.filter(bar => bar.height > 0).length")
    assert drawn == Clock().now().day
    assert window.complaints == []


def test_the_keyboard_gets_everywhere(window: Window) -> None:
    page = window.page
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("g")
    with page.expect_navigation():
        page.keyboard.press("o")
    assert page.url == f"{window.url}/console"


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window_and_everybody_can_read_it(
    browser: Browser, site: str, tmp_path: Path, width: int, *, is_dark: bool
) -> None:
    window = Window(browser, site, width=width, is_dark=is_dark)
    window.log_in(ADMIN_KEY)
    assert window.too_wide() == []
    assert window.accessibility_errors() == []
    picture = tmp_path / f"console-{width}-{'dark' if is_dark else 'light'}.png"
    window.screenshot(picture)
    assert picture.stat().st_size > 0
    window.close()
