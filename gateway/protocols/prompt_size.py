"""How many tokens does a prompt have at least, as far as its bytes show?

For attempts that no engine counted: a client that left before its first content, an engine that died. Nobody
shall pay for the braces and field names of JSON, nor for a picture. So this stays below what an engine
would count, for text of about four bytes a token (English). Nothing is decoded.
"""

from __future__ import annotations

from typing import Final

from gateway.inference import Call

BYTES_PER_TOKEN: Final = 4
MESSAGE_BYTES: Final = 30
"""What a message is around its text: `{"role":"user","content":""},` and a little."""
COUNTED_BYTES: Final = 131_072
"""So far messages are counted; behind that their braces no longer matter."""

_DIGITS: Final = b"0123456789"


def tokens_at_least(call: Call) -> int:
    """Tokens of the prompts of a call, estimated from below; at least one for each prompt."""
    fields = call.fields
    raw = fields.get("messages") or fields.get("prompt") or fields.get("input")
    if raw is None or call.facts.has_media:
        return call.prompts
    view = memoryview(raw)
    beginning = bytes(view[:COUNTED_BYTES])
    if beginning[:1] != b"[":
        return max(call.prompts, (len(view) - 2) // BYTES_PER_TOKEN)
    first = beginning.lstrip(b"[ \t\r\n")[:1]
    if first and first in _DIGITS:  # token ids, with a comma between any two
        commas = beginning.count(b",")
        return max(call.prompts, commas * len(view) // len(beginning))
    around = beginning.count(b'"role"') * MESSAGE_BYTES or 3 * call.prompts
    return max(call.prompts, (len(view) - 2 - around) // BYTES_PER_TOKEN)
