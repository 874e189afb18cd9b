"""Are events found however their bytes arrive?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamProtocolError
from gateway.protocols.sse import (
    DONE,
    EVENT_BYTES_MAX,
    EventBuffer,
    encode_event,
    event_data,
    split_events,
)
from tests.support.cuts import cut, pieces

EVENTS = [b'data: {"a":1}\n\n', b": keep-alive\n\n", 'data: {"b":"é😀"}\n\n'.encode(), DONE]
STREAM = b"".join(EVENTS)


def fed(chunks: list[bytes]) -> tuple[list[bytes], EventBuffer]:
    buffer = EventBuffer()
    return [block for chunk in chunks if (block := buffer.feed(chunk))], buffer


@given(pieces(STREAM))
def test_cuts_change_nothing(chunks: list[bytes]) -> None:
    blocks, buffer = fed(chunks)
    assert b"".join(blocks) == STREAM
    assert all(block.endswith(b"\n\n") for block in blocks)
    assert not buffer.has_rest


@given(pieces(STREAM.replace(b"\n", b"\r\n")))
def test_carriage_returns_are_framing(chunks: list[bytes]) -> None:
    blocks, buffer = fed(chunks)
    assert b"".join(blocks) == STREAM
    assert not buffer.has_rest


def test_every_single_cut_changes_nothing() -> None:
    for position in range(1, len(STREAM)):
        blocks, _ = fed(cut(STREAM, [position]))
        assert b"".join(blocks) == STREAM


def test_a_whole_event_goes_on_while_half_of_the_next_waits() -> None:
    buffer = EventBuffer()
    assert buffer.feed(b"data: 1\n\ndata: 2") == b"data: 1\n\n"
    assert buffer.has_rest
    assert buffer.feed(b"\n\n") == b"data: 2\n\n"
    assert not buffer.has_rest


def test_blank_lines_left_over_are_no_half_event() -> None:
    buffer = EventBuffer()
    buffer.feed(b"data: 1\n\n\n")
    assert not buffer.has_rest


def test_an_event_that_never_ends_is_given_up() -> None:
    buffer = EventBuffer()
    buffer.feed(b"data: " + b"x" * (EVENT_BYTES_MAX - 6))
    with pytest.raises(UpstreamProtocolError) as caught:
        buffer.feed(b"x")
    assert str(EVENT_BYTES_MAX) in caught.value.operator_detail


def test_a_large_event_that_ends_is_passed_on() -> None:
    event = b"data: " + b"x" * EVENT_BYTES_MAX + b"\n\n"
    assert EventBuffer().feed(event) == event


def test_a_block_is_split_into_its_events() -> None:
    assert list(split_events(STREAM)) == EVENTS


def test_blank_lines_between_events_are_no_events() -> None:
    assert list(split_events(b"\n\ndata: 1\n\n\n\ndata: 2\n\n")) == [b"data: 1\n\n", b"data: 2\n\n"]


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b'data: {"a":1}\n\n', b'{"a":1}'),
        (b"data:no blank\n\n", b"no blank"),
        (b"data:  two blanks\n\n", b" two blanks"),
        (b"data: one\ndata: two\n\n", b"one\ntwo"),
        (b"event: message\nid: 7\ndata: x\n\n", b"x"),
        (b"\ndata: after a blank line\n\n", b"after a blank line"),
        (b"data:\n\n", b""),
        (b": keep-alive\n\n", None),
        (b"event: ping\n\n", None),
    ],
)
def test_the_data_of_an_event_is_read(event: bytes, data: bytes | None) -> None:
    assert event_data(event) == data


@given(st.binary(max_size=30).filter(lambda data: not set(data) & set(b"\r\n")))
def test_what_is_encoded_is_read_back(data: bytes) -> None:
    assert event_data(encode_event(data)) == data
