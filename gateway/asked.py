"""What does a replay need to know of a request that its decision does not say?

Shapes and sizes for the receipt, nobody's words; the equality of two requests of a tenant by a part of their
key in the answer cache, which is hashed under the tenant's secret. Made for every request, so in one call of
the encoder.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.cache.lookup import Slot
from gateway.identity.auth import Caller, latency_class
from gateway.inference import Call
from gateway.routing.receipts import Shows

_SLOT_BYTES: Final = 8
"""So many that two requests of a tenant hardly ever agree by chance."""
_WISHES: Final = int(Shows.MAY_READ | Shows.MAY_KEEP)
# Plain numbers: a flag's own `|` takes a microsecond.
_MEDIA, _FULL, _SCHEMA = int(Shows.MEDIA), int(Shows.FULL_SAMPLING), int(Shows.SCHEMA)
_JSON_MODE, _TOOLS, _PREDICTION = int(Shows.JSON_MODE), int(Shows.TOOLS), int(Shows.PREDICTION)
_MAY_LEAVE, _CACHES = int(Shows.MAY_LEAVE), int(Shows.CACHES)
_MAY_READ, _MAY_KEEP = int(Shows.MAY_READ), int(Shows.MAY_KEEP)

_encode = msgspec.json.Encoder().encode


def asked_text(call: Call, caller: Caller, slot: Slot | None) -> bytes:
    """The request as a receipt keeps it (`receipts.Asked`), JSON."""
    facts, wish = call.facts, call.cache_wish
    shows = _WISHES
    if wish is not None:
        shows = (_MAY_READ if wish.may_read else 0) + (_MAY_KEEP if wish.may_keep else 0)
    if facts.has_media:
        shows += _MEDIA
    if facts.needs_full_sampling:
        shows += _FULL
    if facts.has_schema:
        shows += _SCHEMA
    if facts.has_json_mode:
        shows += _JSON_MODE
    if facts.has_tools:
        shows += _TOOLS
    if facts.has_prediction:
        shows += _PREDICTION
    if not caller.is_internal_only:
        shows += _MAY_LEAVE
    if caller.caches_answers:
        shows += _CACHES
    return _encode(
        (
            shows,
            call.body_bytes,
            call.prompts,
            call.choices,
            call.max_tokens,
            facts.temperature,
            latency_class(caller, call),
            None if slot is None else slot.key[:_SLOT_BYTES].hex(),
            None if wish is None else wish.ttl_s,
            [name for name, _ in caller.fixed_tags],
        )
    )
