"""Can an operator change the routing, and an on-call find why a pool is slow, with nothing but a browser?"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

from tests.support.browser import Window, needs_browser
from tests.support.console_site import ADMIN_KEY, serving
from tests.support.mock_process import MockVllm

pytestmark = needs_browser
PATIENCE_MS = 60_000
BACKTESTED = 55
"""Requests; a backtest wants fifty."""
SEEN = 24
"""Requests, for a canary and for a shadow."""
PAGES = (
    "/console/traffic",
    "/console/pools",
    "/console/pools/speculative",
    "/console/policies",
    "/console/policies/edit",
    "/console/audit",
)
Answer = dict[str, Any]
Engines = tuple[MockVllm, MockVllm, MockVllm]


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    """Two replicas of the speculating pool, one of the plain one."""
    with MockVllm("--speculative", "3") as one, MockVllm("--speculative", "3") as two, MockVllm() as plain:
        yield one, two, plain


@pytest.fixture(scope="module", autouse=True)
def _patient() -> Iterator[None]:
    """A busy machine gets more time than a person would wait."""
    expect.set_options(timeout=PATIENCE_MS)
    yield
    expect.set_options(timeout=5_000)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operations")


@pytest.fixture(scope="module")
def site(home: Path, engines: Engines) -> Iterator[str]:
    """A gateway before these engines, which has answered a few requests."""
    one, two, plain = engines
    with serving(home, {"speculative": [one.url, two.url], "plain": [plain.url]}) as url:
        yield url


def ask(site: str, home: Path, content: str) -> str:
    """Send a request; its id."""
    key = (home / "state" / "demo-key").read_text().strip()
    answer = httpx.post(
        f"{site}/v1/chat/completions",
        json={"model": "auto", "messages": [{"role": "user", "content": content}], "max_tokens": 9},
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return answer.headers["x-request-id"]


def confirmed(page: Page) -> None:
    page.locator("#confirm").get_by_role("button", name="Yes").click()


def test_an_on_call_finds_why_a_pool_is_slow(
    window: Window, site: str, home: Path, engines: Engines, tmp_path: Path
) -> None:
    page, (one, two, _) = window.page, engines
    window.open("/console/pools")
    expect(page.locator("#now .state", has_text="ready")).to_have_count(3)
    request_id = ask(site, home, "Extract all names as JSON: Bob met Ann.")
    one.control(gauges={"num_requests_running": 9, "num_requests_waiting": 14, "kv_cache_usage_perc": 0.98})
    two.fault("unhealthy")
    attention = page.locator(".concerns")
    expect(attention).to_contain_text("speculative-0: the KV cache is full")
    expect(attention).to_contain_text("14 requests wait, 9 run of 32 seats")
    expect(attention).to_contain_text("speculative-1: a replica gets no requests")
    expect(attention).to_contain_text("503")
    window.screenshot(tmp_path / "pools-slow.png")
    page.locator(".concerns").get_by_role("link", name="speculative").first.click()
    expect(page.get_by_role("heading", name="Pool speculative")).to_be_visible()
    expect(page.locator(".concerns .is-bad")).to_have_count(2)
    window.screenshot(tmp_path / "pool-slow.png")
    page.get_by_role("link", name="Its requests").click()
    row = page.locator(f'a[title="{request_id}"]')
    expect(row).to_be_visible()
    # It renews itself and keeps the filter.
    with page.expect_response(re.compile(r"/console/traffic\?pool=speculative$")):
        pass
    expect(page.locator("#pool")).to_have_value("speculative")
    row.click()
    expect(page.get_by_role("heading", name=request_id)).to_be_visible()
    expect(page.locator("svg.waterfall rect")).not_to_have_count(0)
    text = window.text()
    assert "first choice; answered" in text
    assert "not needed: one before it answered" in text
    assert window.accessibility_errors() == []
    window.screenshot(tmp_path / "receipt.png")
    one.control(gauges={})
    two.clear()
    window.open("/console/pools")
    expect(page.locator(".concerns .is-bad")).to_have_count(0)
    assert window.complaints == []


def break_a_route(page: Page) -> None:
    """Write a pool's name wrongly, as somebody types it."""
    page.evaluate(
        """() => { const editor = tollgate.editor; const row = editor.session.getDocument().getAllLines()
        .findIndex((line) => line.startsWith('  creative: [')); editor.gotoLine(row + 1, 0);
        editor.selection.selectLine(); editor.focus(); }"""
    )
    page.keyboard.insert_text("  creative: [plain, speculativ]\n")
    findings = page.locator("#findings")
    expect(findings).to_contain_text("routes.creative does not list it: is it 'speculativ' there?")
    row = int(findings.locator("button").first.inner_text().removeprefix("Line ")) - 1
    assert page.evaluate(f"tollgate.editor.session.getLine({row})") == "  creative: [plain, speculativ]"
    assert page.evaluate("tollgate.editor.session.getAnnotations()[0].row") == row
    page.get_by_role("button", name="Publish", exact=True).click()
    page.fill("#publish-why", "creative work to the speculating pool")
    page.locator("#publish-form button").click()
    expect(page.locator("#publish-form .alert")).to_contain_text("has errors")


def try_and_compare(page: Page) -> None:
    """What the draft would do, and what it changes."""
    page.get_by_role("button", name="Try a request").click()
    page.fill("#try-text", "Write a poem about the sea.")
    page.get_by_role("button", name="Try it").click()
    expect(page.locator("#try-result .choice")).to_contain_text("It would go to speculative")
    page.get_by_role("button", name="What it changes").click()
    expect(page.locator("#diff-result .added code")).to_have_text("  creative: [speculative, plain]")
    expect(page.locator("#diff-result .removed code")).to_have_text("  creative: [plain, speculative]")


def backtest(page: Page) -> None:
    """What the draft would have come to on what was recorded."""
    page.get_by_role("button", name="Backtest").click()
    page.get_by_role("button", name="Replay recorded requests").click()
    expect(page.locator("#backtest-result .choice")).to_contain_text(
        "recorded requests", timeout=4 * PATIENCE_MS
    )
    expect(page.locator("#backtest-result table").first).to_contain_text("Charge to tenants")


def test_an_operator_is_shown_the_error_backtests_publishes_and_rolls_back(
    window: Window, site: str, home: Path, tmp_path: Path
) -> None:
    page = window.page
    for number in range(BACKTESTED):
        ask(site, home, f"Write a poem about the sea and the number {number}.")
    window.open("/console/policies")
    active = page.locator("section:has(#active) h3")
    before = active.inner_text()
    page.get_by_role("link", name="Edit").click()
    verdict = page.locator("#verdict")
    expect(verdict).to_have_text(f"Valid: {before}")
    # The keyboard gets into the editor and out of it again.
    page.locator("#editor .ace_content").click()
    page.keyboard.press("Escape")
    assert not page.evaluate("document.activeElement.classList.contains('ace_text-input')")
    break_a_route(page)
    window.screenshot(tmp_path / "editor-error.png")
    wrong, right = "[plain, speculativ]", "[speculative, plain]"
    page.evaluate(
        "([wrong, right]) => tollgate.editor.setValue(tollgate.editor.getValue().replace(wrong, right), 1)",
        [wrong, right],
    )
    expect(verdict).to_contain_text("Valid")
    expect(verdict).not_to_contain_text(before)
    try_and_compare(page)
    assert window.accessibility_errors() == []
    window.screenshot(tmp_path / "editor-diff.png")
    backtest(page)
    assert window.accessibility_errors() == []
    window.screenshot(tmp_path / "editor-backtest.png")
    page.get_by_role("button", name="Publish", exact=True).click()
    page.locator("#publish-form button").click()
    confirmed(page)
    expect(page.locator("#notice")).to_contain_text("is in force")
    expect(active).not_to_have_text(before)
    expect(page.locator("section:has(#active) dd").nth(1)).to_have_text("speculative then plain")
    window.screenshot(tmp_path / "policies.png")
    page.fill("#rollback-why", "too many refusals")
    page.get_by_role("button", name=f"Roll back to {before}").click()
    confirmed(page)
    expect(page.locator("#notice")).to_contain_text("Rolled back")
    expect(active).to_have_text(before)
    rows = page.locator("section:has(#history) tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("too many refusals")
    rows.first.get_by_role("link", name="Changes").click()
    expect(page.locator(".diff .added code")).to_have_text("  creative: [plain, speculative]")
    window.screenshot(tmp_path / "policy-diff.png")
    window.open("/console/audit?action=policy")
    expect(page.locator(".entries li").first).to_contain_text("policy.rollback")
    expect(page.locator(".entries li").first).to_contain_text("bootstrap")
    assert window.complaints == []


def test_whoever_was_overtaken_is_told_and_sees_what_is_in_force_now(window: Window, site: str) -> None:
    page = window.page
    window.open("/console/policies/edit")
    expect(page.locator("#verdict")).to_contain_text("Valid")
    text = page.evaluate("tollgate.editor.getValue()")
    other = text.replace("max_tokens_default: 256", "max_tokens_default: 128")
    assert other != text
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    body = {"text": other, "message": "meanwhile"}
    answer = httpx.post(f"{site}/admin/v1/policies/publish", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    page.evaluate("(text) => tollgate.editor.setValue(text, 1)", text.replace("default: 256", "default: 512"))
    expect(page.locator("#verdict")).to_contain_text("Valid")
    page.get_by_role("button", name="Publish", exact=True).click()
    page.fill("#publish-why", "longer answers")
    page.locator("#publish-form button").first.click()
    confirmed(page)
    expect(page.locator("#publish-form .alert")).to_contain_text("Nothing was changed")
    page.get_by_role("button", name="See what differs from what is in force now").click()
    expect(page.locator("#diff-result .removed code")).to_have_text(
        "max_tokens_default: 128", timeout=PATIENCE_MS
    )
    page.locator("#publish-form button").first.click()
    confirmed(page)
    expect(page.locator("#notice")).to_contain_text("is in force")
    assert [one for one in window.complaints if "409" not in one] == []


def test_the_editor_completes_by_the_schema_and_by_what_there_is(window: Window) -> None:
    page = window.page
    window.open("/console/policies/edit")
    complete = """async (text) => {
        const schema = await (await fetch('/console/policies/schema')).json();
        const lines = text.split('\\n'), last = lines.length - 1;
        const hints = {pools: ['plain', 'speculative'], external: ['mini'], models: ['auto']};
        const found = policyCompletion.complete(schema, hints, lines, last, lines[last].length);
        return found.map(one => one.caption);
    }"""

    def words(text: str) -> list[str]:
        found: list[str] = page.evaluate(complete, text)
        return found

    assert {"name", "models", "routes", "rules"} <= set(words(""))
    assert "name" not in words("name: x\n")
    assert set(words("routes:\n  ")) == {"predictable", "creative"}
    assert set(words("routes:\n  predictable: [pl")) == {"plain", "speculative"}
    assert {"pools", "overflow", "description"} <= set(words("models:\n  auto:\n    "))
    assert words("models:\n  auto:\n    overflow: [") == ["mini"]
    rule = "rules:\n  - name: one\n    "
    assert {"when", "use", "objective"} <= set(words(rule))
    assert "name" not in words(rule)
    assert {"cost", "latency", "order"} == set(words(rule + "objective: "))
    assert {"extraction", "chat"} <= set(words(rule + "when: {task: "))
    assert {"extraction", "chat"} <= set(words(rule + "when: {task: [chat, "))
    assert {"task", "tenant"} <= set(words(rule + "when: {"))
    assert words(rule + "when:\n      model: ") == ["auto"]
    assert set(words(rule + "use: [")) == {"plain", "speculative", "mini"}
    assert set(words(rule + "hedging: ")) == {"true", "false"}
    assert set(words(rule + "use:\n      - ")) == {"plain", "speculative", "mini"}
    assert {"cheaper", "refuse", "alert"} == set(words(rule + "budget_low: {then: "))


def test_whoever_leaves_the_editor_is_asked_while_something_is_not_saved(window: Window) -> None:
    page, asked = window.page, list[str]()

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    menu = page.get_by_role("navigation", name="Pages")

    def edited(line: str) -> None:
        window.open("/console/policies/edit")
        expect(page.locator("#verdict")).to_contain_text("Valid")
        expect(page.locator("#unsaved")).to_be_hidden()
        page.locator("#editor .ace_content").click()
        page.keyboard.press("Control+Home")
        page.keyboard.insert_text(f"{line}\n")
        expect(page.locator("#unsaved")).to_be_visible()

    window.open("/console/policies/edit")
    page.locator("#editor .ace_content").click()
    menu.get_by_role("link", name="Traffic").click()
    expect(page).to_have_url(re.compile("/console/traffic$"))
    assert asked == [], "nothing was written"
    edited("# a line that is nowhere else")
    menu.get_by_role("link", name="Pools").click()
    expect(page).to_have_url(re.compile("/console/policies/edit$"))
    page.keyboard.press("Escape")
    page.locator("#main").focus()
    page.keyboard.type("gt")
    expect(page).to_have_url(re.compile("/console/policies/edit$"))
    assert asked == ["beforeunload"] * 2, "by the menu and by the keys"
    assert "nowhere else" in page.evaluate("tollgate.editor.getValue()")
    page.get_by_role("button", name="Save as draft", exact=True).first.click()
    page.locator("#draft-form button").click()
    expect(page.locator("#notice")).to_contain_text("Stored as")
    edited("# another")
    page.evaluate("tollgate.editor.undo()")
    expect(page.locator("#unsaved")).to_be_hidden()
    menu.get_by_role("link", name="Traffic").click()
    expect(page).to_have_url(re.compile("/console/traffic$"))
    edited("# in force soon")
    page.get_by_role("button", name="Publish", exact=True).click()
    page.fill("#publish-why", "a comment")
    page.locator("#publish-form button").first.click()
    confirmed(page)
    expect(page.locator("#notice")).to_contain_text("in force")  # already: a comment changes no policy
    assert asked == ["beforeunload"] * 2, "what is saved, in force or taken back is not asked about"
    assert window.complaints == []


def change(site: str, method: str, path: str, **body: object) -> Answer:
    """A call of the admin API; what it answers."""
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    answer = httpx.request(method, f"{site}/admin/v1{path}", json=body, headers=headers, timeout=60)
    assert answer.is_success, answer.text
    found: Answer = answer.json()
    return found


def looked_at(browser: Browser, site: str, path: Path, until: str) -> str:
    """The policies' page once it says so, wide and light, narrow and dark; its text."""
    text = ""
    for width, is_dark in ((390, True), (1280, False)):
        window = Window(browser, site, width=width, is_dark=is_dark)
        window.log_in(ADMIN_KEY)
        window.open("/console/policies")
        expect(window.page.locator("main")).to_contain_text(re.compile(until))
        assert (width, window.too_wide(), window.accessibility_errors()) == (width, [], [])
        window.screenshot(path.with_name(f"{path.name}-{width}.png"))
        assert window.complaints == []
        text = window.text()
        window.close()
    return text


def test_a_canary_with_evidence_and_a_shadow_with_pairs_are_there_to_read(
    browser: Browser, site: str, home: Path, tmp_path: Path
) -> None:
    active = change(site, "GET", "/policies/active")
    text = change(site, "GET", f"/policies/{active['version']}")["text"]
    turned = "[speculative, plain]" if "creative: [plain" in text else "[plain, speculative]"
    other = re.sub(r"creative: \[.*\]", f"creative: {turned}", text)
    begun = {"text": other, "expected": active["version"], "message": "poems elsewhere"}
    change(site, "POST", "/policies/canary", **begun, percent=50, stickiness="request", units=500)
    time.sleep(3)  # gateways follow within two seconds
    for number in range(SEEN):
        ask(site, home, f"Write a poem about the moon and the number {number}.")
    told = looked_at(browser, site, tmp_path / "canary", r"[1-9]\d* of 500 units of the candidate")
    assert "EVIDENCE OF HARM" in told.upper()
    change(site, "POST", "/policies/canary/stop", message="seen enough")

    change(site, "PATCH", "/tenants/demo", is_internal_only=False)  # else nothing of it is copied
    change(site, "POST", "/policies/shadow", **begun, percent=100, budget_usd="5")
    time.sleep(3)
    for number in range(SEEN):
        ask(site, home, f"Write a poem about the sun and the number {number}.")
    told = looked_at(browser, site, tmp_path / "shadow", r"[1-9]\d* requests and their copies")
    assert "paid by the platform" in told
    change(site, "POST", "/policies/shadow/stop", message="seen enough")


@pytest.mark.parametrize(("width", "is_dark"), [(1280, False), (390, True)], ids=["light", "phone"])
def test_every_page_fits_and_everybody_can_read_it(
    browser: Browser, site: str, tmp_path: Path, width: int, *, is_dark: bool
) -> None:
    window = Window(browser, site, width=width, is_dark=is_dark)
    window.log_in(ADMIN_KEY)
    for path in PAGES:
        window.open(path)
        if path.endswith("/edit"):
            expect(window.page.locator("#verdict")).to_contain_text("Valid")
        assert (path, window.too_wide()) == (path, [])
        assert (path, window.accessibility_errors()) == (path, [])
        window.screenshot(tmp_path / f"{path.replace('/', '_')}.png")
    assert window.complaints == []
    window.close()
