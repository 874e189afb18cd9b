"""How much does Tollgate cost, beside the floor (nginx) and its peers, in one run?

    python -m tests.load.peer_table                       everything that is installed, three rounds
    python -m tests.load.peer_table --quick               one short round
    python -m tests.load.peer_table --only nginx,tollgate --rounds 5
    LAB_PEERS=/tmp/peers python -m tests.load.peer_table  peers that were installed elsewhere
    python -m tests.load.peer_table --again tests/load/results/peers.jsonl    the tables of an earlier run

The rounds go over the targets in turn, so that what else happens on the machine meets all of them. Needs two
cores, gcc and nginx; PostgreSQL and Redis are started by the program; peers come from tests/load/peers.sh.
Writes peers.jsonl, peers.md and peers.svg (peers-quick.… with --quick or --only) to tests/load/results.

Exit status 1: Tollgate takes more than 7 times nginx per request or twice nginx per chunk at 200 streams,
or an answer or a booking is wrong. 2: it could not be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.clock import Clock
from tests.load.measured import RESULTS, ROOT, command_line, commit, hardware
from tests.load.peer_chart import draw
from tests.load.peer_report import gates, problems, report
from tests.load.phases import QUICK, Plan, Round, check_books
from tests.load.processor import calibrate
from tests.load.programs import BuildFailed, ProgramMissing, build, find_program
from tests.load.running import Cores, Running, TargetFailed, choose_cores
from tests.load.targets import FLOOR, NAMES, OURS, Place, Target, nginx, peers
from tests.load.tollgate_site import Site, tollgate_site
from tests.load.traffic import Traffic, Upstream, write_bodies
from tests.support.servers import ServerFailed, ServerMissing

Record = dict[str, Any]
ROUNDS: Final = 3
PEERS: Final = "LAB_PEERS"
NOT_MEASURED: Final = 2


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    only: tuple[str, ...]
    rounds: int
    plan: Plan
    peers: Path


class Lab:
    """Measures one target after the other."""

    def __init__(self, options: Options, folder: Path, cores: Cores, upstream: Upstream) -> None:
        self._options = options
        self._cores = cores
        self._upstream = upstream
        self.place = Place(options.peers, folder, tuple(upstream.urls))

    def targets(self) -> tuple[list[str], dict[str, Target], dict[str, str]]:
        """Names in their order, those that are described already, and how to install the missing ones."""
        found, missing = peers(self.place)
        described = {one.name: one for one in found}
        if self._asks(FLOOR):
            described[FLOOR] = nginx(self.place)
        wanted = [name for name in NAMES if self._asks(name) and (name in described or name == OURS)]
        return wanted, described, {name: how for name, how in missing.items() if self._asks(name)}

    def _asks(self, name: str) -> bool:
        return not self._options.only or name in self._options.only

    def measure(self, name: str, target: Target | None, number: int) -> Record:
        """One round of one target; with `error` if it could not be measured."""
        record: Record = {"kind": "round", "target": name, "title": target.title if target else "Tollgate"}
        record |= {"round": number, "at": Clock().now().isoformat(timespec="seconds")}
        began_s = time.monotonic()
        print(f"round {number} of {self._options.rounds}, {record['title']}:", end="", flush=True)
        try:
            with self._site(target) as site:
                record |= self._measure(target or _target_of(site), site)
        except (TargetFailed, RuntimeError, OSError) as error:
            record["error"] = f"{type(error).__name__}: {error}"
            print(f"\n  {record['error']}", end="")
        print(f" ({time.monotonic() - began_s:.0f} s)", flush=True)
        return record

    @contextlib.contextmanager
    def _site(self, target: Target | None) -> Iterator[Site | None]:
        if target is not None:
            yield None
            return
        with tollgate_site(self.place) as site:
            yield site

    def _measure(self, target: Target, site: Site | None) -> Record:
        traffic = Traffic(self.place.folder)
        bodies = write_bodies(self.place.folder, target.model)
        first = bodies.read_text().partition("\n")[0].encode()
        calibration_ms = calibrate(self._cores.gateway)
        log = self.place.folder / f"{target.name}.log"
        with Running(target, self._cores.gateway, log, first) as running:
            work = Round(running, upstream=self._upstream, traffic=traffic, site=site, say=_say)
            found = work.measure(self._options.plan)
            if site is not None:
                _say("books")
                found["books"] = check_books(site, work, traffic)
        examples = [phase.get("example", "") for phase in found.values() if isinstance(phase, dict)]
        return {
            "title": target.title,
            "note": target.note,
            "calibration_ms": round(calibration_ms, 2),
            "cpu_is_exact": running.cpu.is_exact,
            "answered": work.answered,
            "failures": traffic.failures,
            "example": next(filter(None, examples), ""),
            **found,
        }


def _target_of(site: Site | None) -> Target:
    assert site is not None
    return site.target


def _say(what: str) -> None:
    print(f" {what} ·", end="", flush=True)


# ------------------------------------------------------------------------------------------ the whole run
def run(options: Options, write: Callable[[Record], None]) -> None:
    """Measure everything that is asked for; `write` gets each record as soon as there is one.

    Raises:
        ProgramMissing: a Debian package is not installed; the message names it.
        ServerMissing: the same, of PostgreSQL or Redis.
        BuildFailed: a C program does not compile.
    """
    find_program("cc")
    for program in ("upstream", "load"):
        build(program)
    cores, machine = choose_cores(), hardware()
    if not cores.are_apart:
        print("only one core: gateway and load share it, so that latencies and most requests/s mean little")
    # Servers and programs that are started from here stay on the load's core; the gateway moves to its own.
    os.sched_setaffinity(0, {cores.load})
    with tempfile.TemporaryDirectory(prefix="tollgate-lab-") as name, Upstream(Path(name)) as upstream:
        lab = Lab(options, Path(name), cores, upstream)
        names, described, missing = lab.targets()
        write(_about(cores, machine, missing))
        for peer, command in missing.items():
            print(f"{peer}: not installed; to have it measured: {command}", flush=True)
        for number in range(1, options.rounds + 1):
            for target in names:
                write(lab.measure(target, described.get(target), number))


def _about(cores: Cores, machine: Record, missing: dict[str, str]) -> Record:
    return {
        "kind": "run",
        "command": command_line(),
        "commit": commit(),
        "date": Clock().now().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "hardware": machine,
        "setting": f"gateway on core {cores.gateway}; load, upstream, PostgreSQL, Redis on core {cores.load}",
        "missing": missing,
    }


def write_tables(records: Sequence[Record], folder: Path, name: str) -> int:
    """Print and write what was measured; the exit status."""
    if not records:
        return NOT_MEASURED
    text = report(records)
    (folder / f"{name}.md").write_text(text)
    chart = draw(records)
    if chart is not None:
        (folder / f"{name}.svg").write_text(chart)
    print(f"\n{text}\nwritten: {folder / name}.md, .jsonl{'' if chart is None else ', .svg'}")
    judged = gates(records)
    # A peer that fails is told of, and is no failure of ours.
    wrong = problems([one for one in records if one.get("target") in {FLOOR, OURS}])
    if not judged:
        print("the gate was not judged: it needs nginx and Tollgate in the same run")
    return 1 if wrong or not all(gate.is_met for gate in judged) else 0


def _options(given: argparse.Namespace) -> Options:
    only = tuple(filter(None, (given.only or "").split(",")))
    if unknown := [name for name in only if name not in NAMES]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(NAMES)}")
    plan = QUICK if given.quick else Plan()
    return Options(only, given.rounds or (1 if given.quick else ROUNDS), plan, given.peers)


def main() -> int:
    """Measure, print, judge."""
    description, _, examples = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.peer_table",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folder = os.environ.get(PEERS, str(ROOT / ".tollgate" / "peers"))  # noqa: TID251 - named by peers.sh
    parser.add_argument("--quick", action="store_true", help="one round of about half the length")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}, with --quick 1")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(NAMES)}")
    parser.add_argument("--peers", type=Path, default=Path(folder), help=f"default: ${PEERS} or {folder}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--again", type=Path, metavar="FILE", help="JSON lines of an earlier run")
    given = parser.parse_args()
    options = _options(given)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.again is not None:
        records = [json.loads(line) for line in given.again.read_text().splitlines()]
        return write_tables(records, given.out, given.again.stem)
    name = "peers-quick" if given.quick or given.only else "peers"
    records = []
    with (given.out / f"{name}.jsonl").open("w") as lines:

        def write(record: Record) -> None:
            records.append(record)
            lines.write(json.dumps(record) + "\n")
            lines.flush()

        try:
            run(options, write)
        except (ProgramMissing, ServerMissing, ServerFailed, BuildFailed) as error:
            print(error, file=sys.stderr)
            return NOT_MEASURED
        except KeyboardInterrupt:
            print("\nstopped; what was measured until then follows", flush=True)
    return write_tables(records, given.out, name)


if __name__ == "__main__":
    sys.exit(main())
