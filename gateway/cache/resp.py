"""How is Redis asked for a value or given one, and where does each of its answers end? Pure.

Only what the cache says: GET, SET with a time to live, and the replies to them in RESP2 (a value or none, a
status, an error). Source: Redis' protocol specification, https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from typing import Final

MISSING: Final = b"$-1\r\n"
"""What GET is answered where nothing lies."""
OK: Final = b"+OK\r\n"
"""What SET is answered."""
VALUE_BYTES_MAX: Final = 512 * 1024 * 1024
"""Redis' own bound of a value (`proto-max-bulk-len`)."""
LINE_BYTES_MAX: Final = 64 * 1024
"""Statuses, errors and lengths are far shorter."""

_BULK, _STATUS, _ERROR = b"$+-"
_END = b"\r\n"


class NotRedis(Exception):
    """What was said is no reply to GET or SET; nothing after it can be understood either."""


class Refusal(str):
    """A reply that says why not, such as `OOM command not allowed …`."""

    __slots__ = ()


class Incomplete:
    """The rest of a reply is still to come."""


INCOMPLETE: Final = Incomplete()
Reply = bytes | Refusal | None
"""A value or a status' text, a refusal, or nothing."""


def get_command(name: bytes) -> bytes:
    """GET."""
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name)


def set_command(name: bytes, value: bytes, ttl_s: int) -> bytes:
    """SET with EX: for so many seconds."""
    seconds = b"%d" % ttl_s
    return b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\nEX\r\n$%d\r\n%b\r\n" % (
        len(name),
        name,
        len(value),
        value,
        len(seconds),
        seconds,
    )


class ReplyReader:
    """Cuts a stream of bytes into replies, in whatever pieces it comes."""

    __slots__ = ("_position", "_received", "_wanted_bytes")

    def __init__(self) -> None:
        self._received = bytearray()
        self._position = 0
        self._wanted_bytes = 0
        """Fewer than so many bytes hold no further reply: a large value is not looked at each time."""

    @property
    def is_empty(self) -> bool:
        """Nothing is left that a reply could begin with."""
        return len(self._received) == self._position

    def feed(self, data: bytes) -> None:
        """Add what came; then call `next` until it says that the next reply is not whole."""
        del self._received[: self._position]
        self._position = 0
        self._received += data

    def next(self) -> Reply | Incomplete:
        """The next reply.

        Raises:
            NotRedis: that is none.
        """
        received, position = self._received, self._position
        if len(received) - position < self._wanted_bytes:
            return INCOMPLETE
        self._wanted_bytes = 0
        end = received.find(_END, position, position + LINE_BYTES_MAX)
        if end < 0:
            if len(received) - position >= LINE_BYTES_MAX:
                raise NotRedis("a line without an end")
            return INCOMPLETE
        kind, line = received[position], bytes(received[position + 1 : end])
        if kind == _BULK:
            return self._value(line, end + len(_END))
        if kind not in {_STATUS, _ERROR}:
            raise NotRedis(f"a reply that begins with {bytes([kind])!r}")
        self._position = end + len(_END)
        return line if kind == _STATUS else Refusal(line.decode(errors="replace"))

    def _value(self, length: bytes, begin: int) -> Reply | Incomplete:
        if length == b"-1":
            self._position = begin
            return None
        if not length.isdigit() or int(length) > VALUE_BYTES_MAX:
            raise NotRedis(f"a value of {length[:32]!r} bytes")
        end = begin + int(length)
        if len(self._received) < end + len(_END):
            self._wanted_bytes = end + len(_END) - self._position
            return INCOMPLETE
        if self._received[end : end + len(_END)] != _END:
            raise NotRedis("a value that is longer than was said")
        self._position = end + len(_END)
        return bytes(self._received[begin:end])
