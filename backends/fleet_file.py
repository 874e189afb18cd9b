"""Which replicas does the fleet on this machine consist of, for programs other than the one that runs it?

`<state>/fleet.json` is written by the process driver at every change, as a whole, and read by the monitor.
It names its owner, so that a file which a killed fleet left behind is recognised. Linux only (/proc).
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backends.pool import ReplicaState
from backends.upkeep import Tokens, Upkeep, UpkeepKind

FLEET_FILE_NAME = "fleet.json"
_VERSION = 2
UPKEEP_MAX = 256
"""So many of the driver's last tokens are published, for gateways that start after it."""


@dataclass(frozen=True, slots=True)
class FleetOwner:
    """The process that runs a fleet; all three together are never the same for another process."""

    pid: int
    started_ticks: int
    """Clock ticks after boot (proc_pid_stat(5), field 22): a pid alone comes around again."""
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> FleetOwner | None:
        """The process with this pid now; None if there is none."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name in parentheses may hold spaces. State is the first field after it; a zombie runs nothing.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]), boot_id)

    @property
    def is_alive(self) -> bool:
        """Is this very process still running?"""
        return FleetOwner.of(self.pid) == self


@dataclass(frozen=True, slots=True)
class FleetReplica:
    """One line of the file."""

    pool: str
    replica: str
    url: str
    """Base URL without /v1; changes with every start, because each start takes a free port."""
    pid: int
    """Of the guard, which is also the session of all the replica's processes."""
    state: ReplicaState
    detail: str = ""
    """Why it is in this state, for people."""
    restarts: int = 0
    """How often the driver has started it again."""
    errors: tuple[FleetError, ...] = ()
    """What went wrong last, the newest at the end."""
    wake_s: float | None = None
    """How long it is expected to take to wake; None: it never sleeps."""


@dataclass(frozen=True, slots=True)
class FleetError:
    """Something went wrong with a replica."""

    at_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """The file's content."""

    owner: FleetOwner
    replicas: tuple[FleetReplica, ...]
    upkeep: tuple[Upkeep, ...] = field(default=())
    """What the driver's own looks and warm-ups used, the newest at the end."""


def write_fleet(path: Path, fleet: Fleet) -> None:
    """Replace the file in one step; a reader sees the old or the new one, never a part."""
    document = {
        "version": _VERSION,
        "owner": asdict(fleet.owner),
        "replicas": [asdict(replica) for replica in fleet.replicas],
        "upkeep": [asdict(each) for each in fleet.upkeep],
    }
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_fleet(path: Path) -> Fleet | None:
    """The living fleet that the file describes; None without a file or when its owner is dead.

    Raises:
        ValueError: the file is not one of ours, or of another version.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    try:
        if document["version"] != _VERSION:
            raise ValueError(f"{path}: version {document['version']}, expected {_VERSION}")
        owner = FleetOwner(**document["owner"])
        replicas = tuple(_replica_of(replica) for replica in document["replicas"])
        upkeep = tuple(
            Upkeep(**{**each, "kind": UpkeepKind(each["kind"]), "tokens": Tokens(**each["tokens"])})
            for each in document["upkeep"]
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a fleet file: {error!r}") from error
    return Fleet(owner, replicas, upkeep) if owner.is_alive else None


def _replica_of(written: dict[str, Any]) -> FleetReplica:
    errors = tuple(FleetError(**error) for error in written["errors"])
    return FleetReplica(**{**written, "state": ReplicaState(written["state"]), "errors": errors})
