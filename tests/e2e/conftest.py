"""A gateway as a program, in front of two mock engines, one of each per test worker."""

from collections.abc import Iterator

import pytest

from tests.e2e.site import Site
from tests.support.gateway_process import GatewayProcess
from tests.support.mock_process import MockVllm


@pytest.fixture(scope="session")
def _mocks() -> Iterator[dict[str, MockVllm]]:
    tools = "--enable-auto-tool-choice"
    with MockVllm(tools, "--speculative", "3") as speculative, MockVllm(tools) as plain:
        yield {"speculative": speculative, "plain": plain}


@pytest.fixture(scope="session")
def _site(_mocks: dict[str, MockVllm], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("gateway")
    urls = {name: [mock.url] for name, mock in _mocks.items()}
    settings = {"TOLLGATE_CLIENTS__KEEP_ALIVE_S": "5"}  # a test waits for it
    with GatewayProcess(folder, urls, settings=settings, is_measured=True) as gateway:
        yield Site(gateway, **_mocks)


@pytest.fixture
def mocks(_mocks: dict[str, MockVllm]) -> Iterator[dict[str, MockVllm]]:
    """The engines by pool, behaving and with empty books."""
    for mock in _mocks.values():
        mock.reset()
        mock.control(ttft_ms=0, tpot_ms=0, answer_tokens=16)
    yield _mocks
    for mock in _mocks.values():
        mock.reset()
        mock.control(ttft_ms=0, tpot_ms=0, answer_tokens=16)


@pytest.fixture
def site(_site: Site, mocks: dict[str, MockVllm]) -> Site:
    """The gateway that tests share, with every replica up."""
    _site.until_up()
    for mock in mocks.values():
        mock.wait_for(in_flight=0)
        mock.reset()
    return _site
