"""What does the shipped file of the task classifier hold, and how is it read and written?

One file: a magic line, the length of a JSON header (4 bytes, little-endian), the header, and a zlib stream of
the names of all features and of one signed byte per feature and task. A feature's twelve bytes become one
Python integer with a 32-bit field per task, so that the scores of many words are one sum of integers: adding
twelve floats per word takes ten times as long, and no array library is needed. Reading a file runs no code.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from gateway.errors import ConfigurationError
from gateway.inference import TaskType
from gateway.routing.classifier.features import FLAGS, ZONES

SHIPPED: Final = Path(__file__).with_name("weights.bin")
MAGIC: Final = b"tollgate task classifier 1\n"
TASKS: Final = tuple(TaskType)
FIELD_BYTES: Final = 4
ROW_BYTES: Final = FIELD_BYTES * len(TASKS)
STEP_MAX: Final = 127
"""Weights are whole steps from -127 to 127."""
FILE_BYTES_MAX: Final = 12 * 2**20
PAYLOAD_BYTES_MAX: Final = 64 * 2**20
_LENGTH = struct.Struct("<I")
_SEPARATOR: Final = "\n"
_BIAS: Final = int.from_bytes(struct.pack("<I", STEP_MAX + 1) * len(TASKS), "little")


class Zone(NamedTuple):
    """The weights of one zone: a packed integer by word and by pair of neighbours."""

    words: Mapping[str, int]
    pairs: Mapping[tuple[str, str], int]


class Weights(NamedTuple):
    """The model in memory."""

    zones: tuple[Zone, ...]
    """In the order of `features.ZONES`."""
    flags: tuple[int, ...]
    """Packed, in the order of `features.FLAGS`."""
    bias: tuple[float, ...]
    """By task, in the order of `TASKS`."""
    step: float
    """What one step of a word or pair is worth, in logits, before the zone's scale."""
    flag_step: float
    temperature: float
    """By which logits are divided so that confidences are right as often as they say."""
    confidence_min: float
    """Below it the answer is "unknown", unless a policy says otherwise."""
    about: Mapping[str, Any]
    """The header as it is written."""


def packed(steps: Sequence[int]) -> int:
    """Twelve signed weights as one integer; the sum of such integers packs the sums of the weights."""
    return sum(step << (8 * FIELD_BYTES * index) for index, step in enumerate(steps))


def write(path: Path, header: Mapping[str, Any], tables: Sequence[tuple[Sequence[str], bytes]]) -> str:
    """Write the file and return the SHA-256 of its bytes.

    Args:
        path: where.
        header: what `read` takes from it, and anything else that describes the model.
        tables: names and signed bytes (row by row, a byte per task), for each zone its words, then its pairs
            (two words with a space between), and last the flags.
    """
    names = [name for table, _ in tables for name in table]
    values = b"".join(rows for _, rows in tables)
    payload = _SEPARATOR.join(names).encode() + b"\0\n" + values
    told = json.dumps({**header, "sizes": [len(table) for table, _ in tables]}, sort_keys=True).encode()
    data = MAGIC + _LENGTH.pack(len(told)) + told + zlib.compress(payload, 9)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=2)
def load(path: Path = SHIPPED) -> Weights:
    """The model of a file.

    Raises:
        ConfigurationError: it cannot be read, or is no such file or of another version.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: the task classifier cannot be read: {error.strerror}") from None
    try:
        return _unpack(data)
    except (ValueError, KeyError, IndexError, TypeError, struct.error, zlib.error) as error:
        raise ConfigurationError(
            f"{path}: not a task classifier that this version can use ({error}); reinstall Tollgate, or "
            "train one: python -m gateway.routing.training --prompts FILE"
        ) from None


def _unpack(data: bytes) -> Weights:
    if not data.startswith(MAGIC) or len(data) > FILE_BYTES_MAX:
        message = "it starts with other bytes, or is too large"
        raise ValueError(message)
    start = len(MAGIC) + _LENGTH.size
    (length,) = _LENGTH.unpack(data[len(MAGIC) : start])
    header = json.loads(data[start : start + length])
    payload = zlib.decompressobj().decompress(data[start + length :], PAYLOAD_BYTES_MAX)
    text, _, values = payload.partition(b"\0\n")
    names, sizes = text.decode().split(_SEPARATOR), header["sizes"]
    if header["tasks"] != list(TASKS) or header["flags"] != list(FLAGS) or header["zones"] != list(ZONES):
        message = "its tasks or features are others"
        raise ValueError(message)
    if len(sizes) != 2 * len(ZONES) + 1 or sum(sizes) != len(names) or len(values) != len(names) * len(TASKS):
        message = "its parts do not fit together"
        raise ValueError(message)
    rows = _rows(values)
    tables, at = [], 0
    for size in sizes:
        tables.append((names[at : at + size], rows[at : at + size]))
        at += size
    zones = []
    for index in range(len(ZONES)):
        (words, word_rows), (pairs, pair_rows) = tables[2 * index], tables[2 * index + 1]
        keys = (tuple(pair.split(" ")) for pair in pairs)
        both = {(first, second): row for (first, second), row in zip(keys, pair_rows, strict=True)}
        zones.append(Zone(dict(zip(words, word_rows, strict=True)), both))
    return Weights(
        zones=tuple(zones),
        flags=tuple(tables[-1][1]),
        bias=tuple(float(value) for value in header["bias"]),
        step=float(header["step"]),
        flag_step=float(header["flag_step"]),
        temperature=float(header["temperature"]),
        confidence_min=float(header["confidence_min"]),
        about=header,
    )


def _rows(values: bytes) -> list[int]:
    """One packed integer per feature: bytes spread out to fields, all at once."""
    # As unsigned, for a field must not borrow from its neighbour while it is read.
    lifted = values.translate(bytes((byte + STEP_MAX + 1) % 256 for byte in range(256)))
    spread = bytearray(FIELD_BYTES * len(lifted))
    spread[::FIELD_BYTES] = lifted
    view, whole = memoryview(spread), int.from_bytes
    return [whole(view[at : at + ROW_BYTES], "little") - _BIAS for at in range(0, len(spread), ROW_BYTES)]
