r"""Is this body one well-formed JSON object, each key said once?

Decodes the top level only; every value stays the client's own bytes (`msgspec.Raw`). A key that is said
twice, also by way of an escape such as `mod\u0065l`, is refused: two readers could take different ones.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from typing import Any

import msgspec

from gateway.errors import InvalidRequest, UnsupportedEncoding

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode
_format = msgspec.json.format

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


ABSENT = msgspec.Raw()
"""Default of a raw field in a struct; msgspec takes `Raw | None` to mean null only."""


def decode_object(body: bytes) -> dict[str, msgspec.Raw]:
    """The top level of a JSON object.

    Raises:
        InvalidRequest: not JSON (with line and column), not an object, a repeated key, not UTF-8.
        UnsupportedEncoding: compressed.
    """
    try:
        fields = _object.decode(body)
    except msgspec.ValidationError:
        raise InvalidRequest(
            'The request body must be a JSON object such as {"model": "auto", "messages": [...]}, '
            f"not {_kind(body)}."
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the latter for a bad byte in a key
        raise _malformed(body, str(error)) from None
    except RecursionError:
        raise _too_deep() from None
    if not body.isascii():
        _refuse_bad_utf8(body)
    # Encoding what was decoded gives the same length only if no key was lost and no key was escaped; any
    # other body is looked at more closely.
    encoded = _encode(fields)
    if len(encoded) != len(body) and not _is_as_long_without_spaces(body, encoded):
        _refuse_repeated_keys(body)
    return fields


def is_there(value: msgspec.Raw) -> bool:
    """A field that was sent with a value: neither left out nor null."""
    return bytes(value) not in {b"", b"null"}


def encode_object(fields: dict[str, msgspec.Raw]) -> bytes:
    """The JSON object of raw values."""
    return _encode(fields)


@functools.lru_cache(maxsize=4096)
def raw_name(name: str) -> msgspec.Raw:
    """The same for what comes again and again: names of models, salts."""
    return raw(name)


def raw(value: object) -> msgspec.Raw:
    """A value as raw JSON."""
    return msgspec.Raw(_encode(value))


def _malformed(body: bytes, reason: str) -> InvalidRequest | UnsupportedEncoding:
    if body.startswith(BYTE_ORDER_MARK):
        return InvalidRequest(
            "The request body starts with a UTF-8 byte-order mark, which JSON does not allow: send the body "
            "without it (in Python: encode as 'utf-8', not 'utf-8-sig')."
        )
    if body.startswith(b"\x1f\x8b"):
        return UnsupportedEncoding("The request body is compressed with gzip: send it uncompressed.")
    if not body.strip():
        return InvalidRequest("The request body is empty: send a JSON object.")
    try:
        # Numbers stay text: Python refuses to make an integer of more than 4300 digits.
        json.loads(body, parse_constant=_refuse_constant, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at")
        return InvalidRequest(
            f"The request body is not valid JSON: {problem} at line {error.lineno}, column {error.colno}."
        )
    except UnicodeDecodeError as error:
        return InvalidRequest(f"The request body is not UTF-8 text: bad byte at position {error.start}.")
    except _ConstantError as error:
        return InvalidRequest(
            f"The request body holds {error}, which is not JSON: send a number or null instead."
        )
    except RecursionError:
        return _too_deep()
    if _SURROGATE.search(body):
        return InvalidRequest(
            "The request body holds half of a surrogate pair, such as \\ud83d alone, which is no character:"
            " a text was probably cut in the middle of an emoji."
        )
    return InvalidRequest(f"The request body is not valid JSON: {reason}.")


def _too_deep() -> InvalidRequest:
    return InvalidRequest("The request body is nested too deeply.")


class _ConstantError(ValueError):
    """NaN or an infinity."""


def _refuse_constant(name: str) -> Any:
    raise _ConstantError(name)


def _refuse_bad_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The request body is not UTF-8 text: bad byte at position {error.start}."
        ) from None


class _Pairs(list[tuple[str, Any]]):
    """An object's pairs in order, repeated keys included."""


def _is_as_long_without_spaces(one: bytes, other: bytes) -> bool:
    """Python's own `json.dumps` puts a space behind each comma and colon."""
    try:
        return len(_format(one, indent=-1)) == len(_format(other, indent=-1))
    except RecursionError:  # read without decoding so far: whoever reads more closely says what is wrong
        return False


def _refuse_repeated_keys(body: bytes) -> None:
    try:
        pairs = json.loads(body, object_pairs_hook=_Pairs, parse_int=str, parse_float=str)
    except RecursionError:  # Python's reader gives up earlier than msgspec
        raise _too_deep() from None
    counts = Counter(key for key, _ in pairs)
    repeated = [key for key, count in counts.items() if count > 1]
    if repeated:
        raise InvalidRequest(
            f"The request body says {repeated[0]!r} {counts[repeated[0]]} times: say each field once.",
            param=repeated[0],
        )


def _kind(body: bytes) -> str:
    names = {ord("["): "an array", ord('"'): "a string", ord("t"): "a boolean", ord("f"): "a boolean"}
    first = body.lstrip()[:1]
    if first == b"n":
        return "null"
    return names.get(first[0], "a number")
