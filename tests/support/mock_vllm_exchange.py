"""One HTTP exchange, as raw as it was: how to make it, keep it in a file, and compare two of them.

A golden file keeps the answer unnormalised (real ids, times and numbers), piece by piece as the HTTP chunks
came: what a server really wrote is the evidence, and placeholders would hide how it writes a float or an
id. Volatile values are left out when two exchanges are compared instead: `outline` turns a body into its
structure (key order, types, nulls, constants, framing), and errors are compared as text.
"""

import json
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

Headers = list[tuple[str, str]]
READ_BYTES: Final = 65536
# Headers that say something about the wire format; date and lengths differ from answer to answer.
TELLING_HEADERS: Final = ("server", "content-type", "transfer-encoding", "allow", "retry-after", "connection")
# Values that are part of the format and not of the answer.
_CONSTANTS: Final = {"object", "role", "owned_by", "type"}


@dataclass(frozen=True, slots=True)
class Ask:
    """A request."""

    method: str
    path: str
    body: str = ""
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)


@dataclass(slots=True)
class Reply:
    """What came back."""

    status: int = 0
    headers: Headers = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    """The body; one piece per HTTP chunk, or one in all."""
    is_complete: bool = True
    """False: the connection ended before the body did."""

    @property
    def body(self) -> bytes:
        """The body without HTTP's own framing."""
        return b"".join(self.pieces)

    def header(self, name: str) -> str | None:
        """The first header of this name."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def is_stream(self) -> bool:
        """Whether server-sent events came back."""
        return (self.header("content-type") or "").startswith("text/event-stream")

    def events(self) -> list[Any]:
        """The data of the events: decoded JSON, or the text where it is none ([DONE])."""
        found: list[Any] = []
        for block in self.body.decode().split("\n\n")[:-1]:
            data = block.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
        return found


# --------------------------------------------------------------------------------------------- on the wire
def connect(url: str, timeout_s: float = 30.0) -> socket.socket:
    """A connection to the server at this base URL."""
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), timeout=timeout_s)


def encode(ask: Ask, host: str = "golden") -> bytes:
    """The bytes of a request."""
    body = ask.body.encode()
    headers = [("host", host), *ask.headers]
    if body or ask.method == "POST":
        headers.append(("content-length", str(len(body))))
    lines = [f"{ask.method} {ask.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode() + body


def exchange(url: str, ask: Ask, timeout_s: float = 30.0) -> Reply:
    """Ask on a connection of its own."""
    with connect(url, timeout_s) as channel:
        channel.sendall(encode(ask))
        return read_reply(channel)


class _Source:
    """Bytes of a socket, on demand; remembers when there are no more."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._held = b""
        self.is_over = False

    def _more(self) -> bool:
        try:
            data = self._channel.recv(READ_BYTES)
        except ConnectionResetError:
            data = b""
        self._held += data
        self.is_over = not data
        return bool(data)

    def until(self, mark: bytes) -> bytes:
        while mark not in self._held and self._more():
            continue
        found, _, self._held = self._held.partition(mark)
        return found

    def exactly(self, size: int) -> bytes:
        while len(self._held) < size and self._more():
            continue
        found, self._held = self._held[:size], self._held[size:]
        return found


def read_reply(channel: socket.socket) -> Reply:
    """Read one answer; a connection that ends early gives an incomplete one."""
    source = _Source(channel)
    lines = source.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
    reply = Reply()
    if source.is_over or not lines[0]:
        reply.is_complete = False
        return reply
    reply.status = int(lines[0].split(" ")[1])
    reply.headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines[1:])]
    if (reply.header("transfer-encoding") or "") == "chunked":
        _read_chunks(source, reply)
    else:
        size = int(reply.header("content-length") or 0)
        body = source.exactly(size)
        reply.pieces = [body] if body else []
        reply.is_complete = len(body) == size
    return reply


def _read_chunks(source: _Source, reply: Reply) -> None:
    while True:
        line = source.until(b"\r\n")
        if source.is_over or not line:
            reply.is_complete = False
            return
        size = int(line, 16)
        piece = source.exactly(size)
        source.until(b"\r\n")
        if not size:
            return
        reply.pieces.append(piece)
        if len(piece) < size:
            reply.is_complete = False
            return


# ------------------------------------------------------------------------------------------------- in files
def save(path: Path, ask: Ask, reply: Reply) -> None:
    """Write a golden file."""
    kept = {
        "request": {"method": ask.method, "path": ask.path, "headers": list(ask.headers), "body": ask.body},
        "response": {
            "status": reply.status,
            "headers": reply.headers,
            "pieces": [piece.decode() for piece in reply.pieces],
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[Ask, Reply]:
    """Read a golden file."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    asked, replied = kept["request"], kept["response"]
    headers = tuple((name, value) for name, value in asked["headers"])
    ask = Ask(asked["method"], asked["path"], asked["body"], headers)
    pieces = [piece.encode() for piece in replied["pieces"]]
    return ask, Reply(replied["status"], [(name, value) for name, value in replied["headers"]], pieces)


# ------------------------------------------------------------------------------------------------- compared
def outline(reply: Reply) -> dict[str, object]:
    """The structure of an answer: everything about the format, nothing about what was said."""
    headers = {name: reply.header(name) for name in TELLING_HEADERS if reply.header(name) is not None}
    told: dict[str, object] = {"status": reply.status, "headers": headers}
    if reply.is_stream:
        told["one_event_per_piece"] = all(
            piece.startswith(b"data: ") and piece.endswith(b"\n\n") and piece.count(b"\n\n") == 1
            for piece in reply.pieces
        )
        told["events"] = _by_choice(reply.events())
    elif reply.status >= 400:
        told["error"] = re.sub(r"\d{3,}", "N", reply.body.decode())
    elif (reply.header("content-type") or "").startswith("application/json"):
        told["body"] = _shape(json.loads(reply.body))
        told["is_compact"] = b'": ' not in reply.body.split(b'"content"')[0]
    else:
        told["has_body"] = bool(reply.body)
    return told


def _by_choice(events: list[Any]) -> dict[str, object]:
    """The events of each choice; how several choices interleave depends on the moment."""
    found: dict[str, list[object]] = {}
    for event in events:
        choices = event.get("choices") if isinstance(event, dict) else None
        name = f"choice {choices[0]['index']}" if choices else "no choice"
        found.setdefault(name, []).append(_shape(event))
    return {name: _runs(shapes) for name, shapes in sorted(found.items())}


def _shape(value: Any, key: str = "") -> object:
    """Types and key order of a decoded JSON value."""
    if (
        key == "top_logprobs"
        and isinstance(value, dict)
        and all(isinstance(p, float) for p in value.values())
    ):
        # Of completions: its keys are tokens.
        return [["*", "float"]]
    if isinstance(value, dict):
        # As a list of pairs, because the order of keys is part of the structure.
        return [[name, _shape(part, name)] for name, part in value.items()]
    if isinstance(value, list):
        return {"list": _runs([_shape(part, key if key == "top_logprobs" else "") for part in value])}
    if isinstance(value, str) and (key in _CONSTANTS or value == "[DONE]"):
        return f"={value}"
    return "null" if value is None else type(value).__name__


def _runs(shapes: list[object]) -> list[object]:
    """Neighbours that look alike, once: how many tokens there were is not structure."""
    return [shape for i, shape in enumerate(shapes) if i == 0 or shape != shapes[i - 1]]


def metric_names(page: bytes) -> dict[str, str]:
    """The vllm: metrics of a Prometheus page, name → type."""
    found = re.findall(r"^# TYPE (vllm:\S+) (\w+)$", page.decode(), flags=re.MULTILINE)
    return dict(found)
