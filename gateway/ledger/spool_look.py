"""Which attempts wait in spools of this machine that the database may not have yet?

A look from outside, while their owners write: lines are only ever appended, and a line that is cut belongs to
a write that is under way.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from gateway.ledger.records import AttemptStart, Record
from gateway.ledger.spool import SUFFIX

_decode = msgspec.json.Decoder(Record).decode


def attempts_in_spools(folder: Path, *, before_ms: int) -> set[str]:
    """Ids of attempts in the folder's spools that began before an instant (epoch ms), booked or not."""
    found: set[str] = set()
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            continue  # its owner needed it no more
        for line in lines:
            try:
                record = _decode(line)
            except msgspec.DecodeError:
                continue  # the end of a line that is being written, or nothing
            if isinstance(record, AttemptStart) and record.started_at_ms < before_ms:
                found.add(record.attempt_id)
    return found
