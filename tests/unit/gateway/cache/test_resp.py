"""Are Redis' replies told apart however they are cut, and is anything else refused?"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache.resp import (
    INCOMPLETE,
    LINE_BYTES_MAX,
    Incomplete,
    NotRedis,
    Refusal,
    Reply,
    ReplyReader,
    get_command,
    set_command,
)


def wire(reply: Reply) -> bytes:
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, Refusal):
        return b"-" + str(reply).encode() + b"\r\n"
    return b"$%d\r\n%b\r\n" % (len(reply), reply)


def read(pieces: Iterable[bytes]) -> list[Reply]:
    reader, found = ReplyReader(), list[Reply]()
    for piece in pieces:
        reader.feed(piece)
        while not isinstance(reply := reader.next(), Incomplete):
            found.append(reply)
    assert reader.is_empty
    return found


replies = st.none() | st.binary(max_size=40) | st.just(Refusal("OOM command not allowed"))


@given(
    st.lists(replies, max_size=8),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_replies_are_the_same_wherever_they_are_cut(expected: list[Reply], cuts: list[int]) -> None:
    said = b"".join(map(wire, expected))
    places = sorted({0, len(said), *(cut for cut in cuts if cut < len(said))})
    found = read(said[begin:end] for begin, end in itertools.pairwise(places))
    assert found == expected
    assert list(map(type, found)) == list(map(type, expected))


def test_replies_are_the_same_byte_by_byte() -> None:
    said = b"+OK\r\n$4\r\n\r\n\r\n\r\n$0\r\n\r\n$-1\r\n-ERR no\r\n$2\r\n$1\r\n"
    assert read(bytes([byte]) for byte in said) == [b"OK", b"\r\n\r\n", b"", None, "ERR no", b"$1"]


def test_a_large_value_is_whole() -> None:
    value = bytes(range(256)) * 4_000
    said = wire(value) + wire(b"next")
    assert read(said[begin : begin + 1_000] for begin in range(0, len(said), 1_000)) == [value, b"next"]


@pytest.mark.parametrize(
    "said",
    [
        b":1\r\n",
        b"*1\r\n$1\r\nx\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\r\n",
        b"$-2\r\n",
        b"$ 1\r\nx\r\n",
        b"$1_0\r\n",
        b"$\r\n",
        b"$999999999999\r\n",
        b"$1\r\nxyz\r\n",
        b"+" + b"x" * LINE_BYTES_MAX,
    ],
)
def test_what_is_no_reply_is_refused(said: bytes) -> None:
    reader = ReplyReader()
    reader.feed(said)
    with pytest.raises(NotRedis):
        reader.next()


@given(st.binary(max_size=200))
def test_nothing_that_comes_does_more_than_be_refused(said: bytes) -> None:
    reader = ReplyReader()
    reader.feed(said)
    count = 0
    with contextlib.suppress(NotRedis):
        while reader.next() is not INCOMPLETE:
            count += 1
    assert count * 3 <= len(said)


def test_commands_are_arrays_of_counted_strings() -> None:
    assert get_command(b"a\r\nb") == b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n"
    expected = b"*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\nv\r\n\r\n$2\r\nEX\r\n$3\r\n600\r\n"
    assert set_command(b"k", b"v\r\n", 600) == expected
