"""Bytes in pieces: every way in which a network may cut a stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st


def cut(stream: bytes, positions: Iterable[int]) -> list[bytes]:
    """The pieces of `stream` when it is cut at these positions."""
    ends = sorted({position for position in positions if 0 < position < len(stream)})
    return [stream[start:end] for start, end in zip([0, *ends], [*ends, len(stream)], strict=True)]


@st.composite
def pieces(draw: Any, stream: bytes) -> list[bytes]:
    """The stream cut at some positions, or into single bytes."""
    if draw(st.integers(0, 9)) == 0:
        return cut(stream, range(len(stream)))
    return cut(stream, draw(st.lists(st.integers(1, max(len(stream) - 1, 1)), max_size=12)))
