"""Which requests should meet on one replica, because they begin with the same text?

An engine keeps what it has read (vLLM's prefix cache), and each turn of a conversation begins with all the
turns before it. What stays the same from turn to turn, and differs between conversations, is how one opens:
the beginning of the system prompt and of the first user message. That is the key, unless the caller named one
(`prompt_cache_key`), which is for what this cannot see, such as many questions about one long document. A
text prompt has no turns: its beginning is the key.

Works on the client's own bytes, which are the same in every turn as long as the client writes its messages
the same way; nothing is decoded. Two conversations with one key only share a replica, so that a rare mistake
costs a little time and no more.
"""

from __future__ import annotations

import re

from backends.choice import key_of
from gateway.inference import Call, Endpoint

OPENING_BYTES = 1024
"""So much of the prompt and so much of the first user message is looked at."""
SEARCHED_BYTES = 131_072
"""Behind a longer system prompt the first user message is not looked for."""
SHORT_BYTES = 256
"""A shorter prompt is read faster than anybody could wait for a busy replica: it goes by load alone."""

# An unescaped quote stands in no text, so this is a whole JSON string: a role, or rarely a name. In long
# texts an expression finds it more than twice as fast as bytes.find.
_USER = re.compile(rb'"user"')
_ROLE = b'"role"'
_BETWEEN_MESSAGES = b" \t\r\n,{}[]"
_GAP_BYTES = 64
"""At most so much white space is expected between two messages."""


def affinity_key(call: Call, tenant: str) -> int | None:
    """What a request shares with those that it should meet; None: nothing that is worth it.

    Args:
        call: the request.
        tenant: what keeps tenants apart in the engine's cache (the cache salt).
    """
    if call.affinity_key:
        return key_of(b"named\0" + tenant.encode() + b"\0" + call.affinity_key.encode())
    is_chat = call.endpoint is Endpoint.CHAT_COMPLETIONS
    raw = call.fields.get("messages" if is_chat else "prompt")
    if raw is None:
        return None
    view = memoryview(raw)
    if len(view) < SHORT_BYTES:
        return None
    opening = _opening(view) if is_chat else bytes(view[:OPENING_BYTES])
    return key_of(tenant.encode() + b"\0" + opening)


def conversation_key(call: Call, tenant: str) -> bytes:
    """What is the same in every turn of a conversation, however short; of other requests, of the request.

    Args:
        call: the request.
        tenant: whose conversation it is.
    """
    named = call.affinity_key
    if named:
        return b"named\0%s\0%s" % (tenant.encode(), named.encode())
    is_chat = call.endpoint is Endpoint.CHAT_COMPLETIONS
    raw = call.fields.get("messages" if is_chat else "prompt")
    if raw is None:
        return tenant.encode()
    view = memoryview(raw)
    return b"%s\0%s" % (tenant.encode(), _opening(view) if is_chat else bytes(view[:OPENING_BYTES]))


def _opening(messages: memoryview) -> bytes:
    """How a conversation opens: the same bytes in each of its turns."""
    found = _USER.search(messages, 0, SEARCHED_BYTES)
    if found is None:
        return bytes(messages[:OPENING_BYTES])
    start, after = found.span()
    rest = bytes(messages[after : after + OPENING_BYTES + _GAP_BYTES])
    if rest[:_GAP_BYTES].lstrip()[:1] == b"}":  # the content stands before the role
        head = bytes(messages[: min(start, OPENING_BYTES)])
        return head + bytes(messages[max(OPENING_BYTES, start - OPENING_BYTES) : start])
    end = rest.find(_ROLE)
    first = rest[: end if end >= 0 else None][:OPENING_BYTES]
    # What follows is the end of the list in the first turn, and the beginning of an answer in all others.
    return bytes(messages[: min(after, OPENING_BYTES)]) + first.rstrip(_BETWEEN_MESSAGES)
