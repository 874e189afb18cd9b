"""How does a record survive until the database has it?

One file per process in the state folder, locked by its owner. Each record is one line, appended with a
single write, so that it survives the death of the process; a group fsync makes it survive a power loss. What
the database has acknowledged is trimmed away. A file whose owner is dead is read by the next process that
starts: attempts that never ended are settled as interrupted.

All calls are synchronous and short, and of one thread but for `file_to_sync` and `sync_failed`. Ids are
unique and the database ignores those that it has, so a record that is shipped twice is booked once.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec

from gateway.clock import Clock
from gateway.errors import Overloaded
from gateway.ledger.records import AttemptEnd, AttemptStart, Ended, Record, interrupted, row_of

SUFFIX = ".spool"
REFUSED_FILE = "refused.jsonl"
TRIM_BYTES = 1_000_000
"""A file longer than this is rewritten; one in which nothing is needed any more is emptied at once."""

_encoder = msgspec.json.Encoder()
_encode, _encode_into = _encoder.encode, _encoder.encode_into
_decode = msgspec.json.Decoder(Record).decode
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Left:
    """What a dead process left behind."""

    path: Path
    owner_id: str
    ended: list[Ended]


class Spool:
    """This process's spool file, and what waits in it."""

    def __init__(self, folder: Path, clock: Clock, *, unshipped_max: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._clock = clock
        self._unshipped_max = unshipped_max
        self._open: dict[str, AttemptStart] = {}
        self._ready: deque[Ended] = deque()
        self._path = folder / f"{clock.epoch_ms():013d}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        self._file = _create_locked(self._path)
        self._replacing = threading.Lock()
        """Held while the file becomes another one; whoever syncs it does so in another thread."""
        self._line = bytearray()
        """The last line that was written: its memory serves for the next one."""
        self._size = 0
        self._needed_bytes = 0
        """What the last trim could not throw away; the next one waits until the file is well beyond."""
        self._is_dirty = False
        self.on_dirty: Callable[[], None] | None = None
        """Called when something was written and nothing had been since the last `file_to_sync`."""
        self._is_torn = False
        """The file ends in the middle of a line: the disk was full."""

    @property
    def owner_id(self) -> str:
        """What this process is called wherever money is lent to it."""
        return self._path.stem

    @property
    def unshipped_count(self) -> int:
        """Ended attempts that the database does not have yet."""
        return len(self._ready)

    @property
    def open_count(self) -> int:
        """Attempts under way."""
        return len(self._open)

    def start(self, record: AttemptStart) -> None:
        """Write down that an attempt starts.

        Raises:
            Overloaded: it cannot be written, or too much waits for the database: the attempt must not start.
        """
        if len(self._ready) >= self._unshipped_max:
            raise Overloaded(
                "Usage cannot be recorded at the moment. Try again shortly.",
                retry_after_s=5,
                operator_detail=f"{len(self._ready)} usage records wait for the database (limit reached)",
            )
        try:
            self._append(record)
        except OSError as error:
            raise Overloaded(
                "Usage cannot be recorded at the moment. Try again shortly.",
                retry_after_s=5,
                operator_detail=f"{self._path}: {error}",
            ) from error
        self._open[record.attempt_id] = record

    def end(self, record: AttemptEnd) -> None:
        """Write down how an attempt ended; a second end of the same attempt is ignored."""
        start = self._open.pop(record.attempt_id, None)
        if start is None:
            return
        self._ready.append(Ended(start, record))
        try:
            self._append(record)
        except OSError:
            # It is still shipped from memory; only a crash before that would book the estimate instead.
            _log.exception("the end of attempt %s could not be written to %s", record.attempt_id, self._path)

    def next_batch(self, count_max: int) -> list[Ended]:
        """The oldest attempts that the database does not have yet; they stay until they are acknowledged."""
        return list(islice(self._ready, count_max))

    def acknowledge(self, count: int) -> None:
        """The database has the oldest `count` attempts."""
        for _ in range(count):
            self._ready.popleft()
        if not self._ready and not self._open:
            if self._size:
                os.ftruncate(self._file, 0)
                self._size = self._needed_bytes = 0
        elif self._size > TRIM_BYTES + 4 * self._needed_bytes:
            self._trim()

    def set_aside(self, ended: Ended, *, reason: str) -> None:
        """Keep what the database refuses where a person can look at it; nothing is thrown away."""
        with (self._folder / REFUSED_FILE).open("ab") as file:
            file.write(_encode({**row_of(ended), "refused": reason}) + b"\n")

    def file_to_sync(self) -> int | None:
        """A descriptor of its own to fsync and close, elsewhere; None when nothing was written since."""
        if not self._is_dirty:
            return None
        with self._replacing:
            descriptor = os.dup(self._file)
        # Only now, and before the fsync: what is written from here on is of the next one.
        self._is_dirty = False
        return descriptor

    def sync_failed(self) -> None:
        """What was handed out by `file_to_sync` is not on the disk: the next call hands it out again."""
        self._is_dirty = True

    def close(self) -> None:
        """Give up the file; one that is still needed stays for the next process to recover."""
        if not self._open and not self._ready:
            self._path.unlink(missing_ok=True)
        os.close(self._file)

    def recover(self) -> Iterator[Left]:
        """What dead processes left behind, file by file; delete a file once its attempts are booked."""
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            if path == self._path:
                continue
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue  # booked by another process, or not needed any more
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, path):
                    yield Left(path, path.stem, self._ended_of(path))
            except BlockingIOError:
                continue  # its owner is alive
            finally:
                os.close(descriptor)

    def _ended_of(self, path: Path) -> list[Ended]:
        starts: dict[str, AttemptStart] = {}
        ended: list[Ended] = []
        for line in path.read_bytes().split(b"\n"):
            if not line:
                continue
            try:
                record = _decode(line)
            except msgspec.DecodeError:
                # Only the last line can be cut, by a crash in the middle of its write.
                _log.warning("%s: an unreadable record was skipped: %r", path, line[:200])
                continue
            if isinstance(record, AttemptStart):
                starts[record.attempt_id] = record
            elif (start := starts.pop(record.attempt_id, None)) is not None:
                ended.append(Ended(start, record))
        now_ms = self._clock.epoch_ms()
        ended.extend(Ended(start, interrupted(start, ended_at_ms=now_ms)) for start in starts.values())
        return ended

    def _append(self, record: Record) -> None:
        line = self._line
        _encode_into(record, line)
        line += b"\n"
        if self._is_torn:  # so that this record starts on a line of its own
            line.insert(0, 10)
        written = os.write(self._file, line)
        self._size += written
        if not self._is_dirty:
            self._is_dirty = True
            if self.on_dirty is not None:
                self.on_dirty()
        self._is_torn = written != len(line)
        if self._is_torn:
            raise OSError(f"only {written} of {len(line)} bytes were written")

    def _trim(self) -> None:
        """Start a new file with what is still needed; the old one is replaced in one step."""
        records: list[Record] = list(self._open.values())
        for start, end in self._ready:
            records += (start, end)
        content = b"".join(_encode(record) + b"\n" for record in records)
        draft = self._path.with_suffix(".draft")
        draft.unlink(missing_ok=True)  # of a trim that failed
        file = _create_locked(draft)
        try:
            with os.fdopen(os.dup(file), "wb") as writer:
                writer.write(content)
            os.fsync(file)
            draft.replace(self._path)
        except OSError:  # the old file is whole; a full disk must not cost a descriptor at every attempt
            os.close(file)
            draft.unlink(missing_ok=True)
            raise
        with self._replacing:
            os.close(self._file)
            self._file = file
        self._size = self._needed_bytes = len(content)


def _create_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # a process that recovers took the empty file for a dead one's and deleted it


def _is_at(descriptor: int, path: Path) -> bool:
    """The open file is still the one of that name: it may be deleted or replaced before its lock is had."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
