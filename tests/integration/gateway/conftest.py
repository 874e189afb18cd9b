"""A gateway in front of two mock engines."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.gateway.rig import Gateway, running, settings_for


@pytest.fixture
async def gateway(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[Gateway]:
    async with running(settings_for(home, urls)) as started:
        yield started
