"""Which requests are the same request?

Two requests are the same when the same tenant asks the same of the same models under the same policy: the
key is a keyed hash of everything that can change the answer, so that no other tenant can meet it and
nobody can guess a prompt from it. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from gateway.inference import Call

_NOT_PART_OF_THE_ANSWER = frozenset({"stream", "stream_options"})
"""How the answer travels; what matters of it is added in words of our own."""

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="sorted").encode


def answer_scope(policy_version: str, models: Iterable[str]) -> str:
    """What decides an alias's answers beside the request.

    Args:
        policy_version: of the policy in force.
        models: what names each model behind the alias.
    """
    return hashlib.sha256("\0".join([policy_version, *sorted(models)]).encode()).hexdigest()


def answer_key(call: Call, *, secret: bytes, scope: str) -> bytes:
    """The key of a call's answer: 64 bytes, of which the second half is known to nobody but us.

    Args:
        call: what was asked; its fields are compared by value, whatever their order and spacing.
        secret: the tenant's own, 64 bytes at most.
        scope: what else decides the answer: the policy's version and the models behind the alias.
    """
    fields = {
        name: _decode(value) for name, value in call.fields.items() if name not in _NOT_PART_OF_THE_ANSWER
    }
    form = (call.is_streaming, call.wants_usage, call.wants_continuous_usage)
    asked = _encode((scope, call.endpoint, call.model_alias, form, fields))
    # BLAKE2b is a keyed hash by itself (RFC 7693, 2.9), at a third of what HMAC takes.
    return hashlib.blake2b(asked, key=secret, digest_size=64).digest()
