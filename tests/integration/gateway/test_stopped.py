"""Is a gateway that has stopped forgotten?"""

import gc
import weakref
from pathlib import Path

import pytest

from tests.integration.gateway.rig import running, settings_for

pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)


async def test_nothing_keeps_an_app_that_has_stopped(home: Path) -> None:
    nowhere = ["http://127.0.0.1:9"]
    settings = settings_for(home, {"speculative": nowhere, "plain": nowhere})
    async with running(settings, is_up=False) as gateway:
        for path in ("/docs", "/openapi.json", "/console", "/metrics"):
            assert (await gateway.client.get(path, headers=gateway.admin)).status_code < 400
        app = weakref.ref(gateway.app)
    del gateway
    gc.collect()
    assert app() is None
