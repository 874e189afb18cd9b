"""A gateway whose policy knows models outside the company, and who lets a tenant's requests go there."""

from pathlib import Path
from typing import Any, Final

from gateway.identity.store import update_tenant
from gateway.ledger.tables import Attempt
from gateway.settings import Settings
from tests.integration.gateway.rig import Gateway, bearer, eventually, settings_for
from tests.support.factories import make_act
from tests.support.mock_process import OpenAiServer

KEY: Final = "sk-outside-7f3a9c1e5b"
EXTRACT: Final = "Extract all names: Bob met Ann."
"""Goes to the speculative pool first."""
CHARGE_NANOS: Final = 82_001
"""12 fresh, 8 cached, 5 output and 4 reasoning tokens: 18,000 + 6,000.8 + 30,000 + 28,000, half up."""
NOWHERE: Final = "http://127.0.0.1:9"

POLICY: Final = """\
name: overflowing
models:
  auto: {pools: [speculative, plain], overflow: [outside]}
  fast: {pools: [speculative], overflow: [outside]}
  home: {pools: [speculative, plain]}
  twice: {pools: [speculative, plain], overflow: [broken, outside]}
  thinking: {pools: [speculative, plain], overflow: [thinker]}
external:
  thinker:
    model: o3-mini
    api_base: OUTSIDE
    api_key: elsewhere
    max_model_len: 128000
    rates: {input: "1", cached_input: "1", output: "1"}
  outside:
    model: gpt-4o-mini
    api_base: OUTSIDE
    api_key: Elsewhere
    max_model_len: 128000
    rates: {input: "1.50", cached_input: "0.7501", output: "6", reasoning: "7"}
  broken:
    model: some-model
    api_base: BROKEN
    max_model_len: 128000
    rates: {input: "1", cached_input: "1", output: "1"}
routes:
  predictable: [speculative, plain]
  creative: [plain, speculative]
max_tokens_default: 256
"""


def overflowing(
    home: Path, outside: OpenAiServer, urls: dict[str, list[str]] | None = None, **more: Any
) -> Settings:
    """Settings with the policy above; without `urls` no pool has a replica that is up."""
    path = home / "policy.yaml"
    path.write_text(POLICY.replace("OUTSIDE", outside.api_base).replace("BROKEN", f"{NOWHERE}/v1"))
    nowhere = {"speculative": [NOWHERE], "plain": [NOWHERE]}
    return settings_for(home, urls or nowhere, policy=path, external_keys={"elsewhere": KEY}, **more)


async def opt_in(gateway: Gateway) -> None:
    """The tenant's owner allows that its requests leave the company."""
    services = gateway.services
    async with services.sessions() as session:
        await update_tenant(session, gateway.tenant_id, act=make_act(), is_internal_only=False)
        await session.commit()
    headers = bearer(gateway.key)
    await eventually(lambda: not services.keys.authenticate(headers).is_internal_only)


def is_charged(row: Attempt) -> None:
    """The answer that the server gives by default is booked to the nano-dollar."""
    assert (row.pool, row.replica, row.state, row.payer) == ("outside", "external", "answered", "tenant")
    assert (row.usage_source, row.charge_usd_nanos) == ("measured", CHARGE_NANOS)
    tokens = (row.input_tokens, row.cached_input_tokens, row.cache_write_tokens)
    assert (*tokens, row.output_tokens, row.reasoning_tokens) == (12, 8, 0, 5, 4)
    assert row.hold_usd_nanos >= CHARGE_NANOS
    assert row.price_version.startswith("outside@")
