"""How does a test look at a page with a real browser, and use it as a person does?

Playwright drives Chromium as Debian ships it. What the browser complains of (scripts that failed, files that
our own policy refused) is collected: a test ends with `complaints == []`. axe-core judges accessibility.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="needs Debian's package chromium")

LOADED_MS = 120_000
"""Longer than anything takes on a machine that other tests share."""
SERIOUS = {"serious", "critical"}


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Window:
    """One window with cookies of its own."""

    def __init__(self, browser: Browser, url: str, *, width: int = 1280, is_dark: bool = False) -> None:
        """Open it.

        Args:
            browser: a running one.
            url: where the gateway serves.
            width: CSS pixels.
            is_dark: what the person prefers.
        """
        self.url = url
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if is_dark else "light"
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(LOADED_MS)
        self.complaints: list[str] = []
        """Errors of scripts, refused files, broken policies."""
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def log_in(self, key: str, *, name: str = "") -> None:
        """Through the form, with a key or a name's password, ending at the overview."""
        for _ in range(20):  # a key that was issued just now is known within two seconds
            self.page.goto(f"{self.url}/console/login")
            self.page.fill("#name", name)
            self.page.fill("#key", key)
            self.page.click("button.primary")
            self.page.wait_for_load_state()
            if self.page.url == f"{self.url}/console":
                break
        expect(self.page).to_have_url(f"{self.url}/console")
        self.complaints[:] = [text for text in self.complaints if "401" not in text]  # of tries before

    def open(self, path: str) -> None:
        """Go to a page of the console and wait until its parts are there."""
        self.page.goto(f"{self.url}{path}")
        # Not wait_for_function, which evaluates text in the page: its policy forbids that.
        expect(self.page.locator(".loading")).to_have_count(0, timeout=LOADED_MS)

    def text(self) -> str:
        """What a person reads."""
        return self.page.inner_text("body")

    def too_wide(self) -> list[str]:
        """What reaches out of the window without a scrollbar of its own: tags and the start of their text."""
        found: list[str] = self.page.evaluate(
            """() => document.documentElement.scrollWidth <= innerWidth ? [] :
            [...document.querySelectorAll('main *')]
            .filter(one => one.getBoundingClientRect().right > innerWidth + 1)
            .map(one => one.tagName + ' ' + one.textContent.trim().slice(0, 40))"""
        )
        return found

    def accessibility_errors(self) -> list[str]:
        """What axe-core calls serious or critical: the rule and the elements."""
        found: list[dict[str, Any]] = Axe().run(self.page).response["violations"]
        return [
            f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes'][:3]]}"
            for one in found
            if one["impact"] in SERIOUS
        ]

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG; with SCREENSHOTS=FOLDER in the environment there, too."""
        self.page.screenshot(path=path, full_page=True)
        folder = os.environ.get("SCREENSHOTS")  # noqa: TID251 - whoever wants to look says where
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, Path(folder) / path.name)

    def close(self) -> None:
        """With everything in it."""
        self.context.close()

    def _heard(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)
