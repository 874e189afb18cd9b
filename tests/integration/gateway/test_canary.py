"""Does a part of the requests follow a candidate, and does the guard take a bad one back?"""

from tests.integration.gateway.rig import Gateway, eventually, running, settings_for
from tests.integration.gateway.test_policy_life import Desk, text_of


async def test_first(gateway: Gateway) -> None:
    desk = Desk(gateway)
    seeded = await desk.active()
    told = await desk.ask("POST", "/canary", 201, json={"text": text_of(300), "percent": 50})
    candidate = told["version"]
    await eventually(lambda: gateway.services.pipeline.routing.beside is not None)
    seen = []
    for number in range(20):
        answer = await gateway.chat(f"Hm {number}")
        assert answer.status_code == 200
        seen.append(answer.headers["x-tollgate-policy"])
    assert set(seen) == {seeded, candidate}
