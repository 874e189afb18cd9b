"""The gateway and the browser that this folder's tests look with."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.browser import PROGRAM, Window, running_browser
from tests.support.console_site import ADMIN_KEY, running_gateway


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a gateway with spend and pools serves."""
    if PROGRAM is None:
        pytest.skip("needs Debian's package chromium")
    with running_gateway(tmp_path_factory.mktemp("console")) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with running_browser() as running:
        yield running


@pytest.fixture
def window(browser: Browser, site: str) -> Iterator[Window]:
    """Logged in with every right."""
    opened = Window(browser, site)
    opened.log_in(ADMIN_KEY)
    yield opened
    opened.close()
