"""What belongs to a figure: the command, the commit, the machine and the day."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from gateway.clock import Clock

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "tests" / "load" / "results"


def hardware() -> dict[str, Any]:
    """CPU model, cores, memory and how busy the machine is with other work."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def commit() -> str:
    """The commit that is measured, with `+` if files were changed since."""
    if not (ROOT / ".git").exists():
        return "unknown"
    named = _git("rev-parse", "--short=12", "HEAD")
    return f"{named}{'+' if _git('status', '--porcelain', '--untracked-files=no') else ''}"


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607 - whichever git there is
    return found.stdout.strip()


def write_result(name: str, figures: dict[str, Any], *, folder: Path = RESULTS) -> Path:
    """Write `<name>.json` with everything that is needed to measure it again, and print it."""
    result = {
        "name": name,
        "command": command_line(),
        "commit": commit(),
        "date": Clock().now().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "hardware": hardware(),
        "figures": figures,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps(result, indent=2)
    path.write_text(text + "\n")
    print(text, flush=True)
    return path


def command_line() -> str:
    """What was typed to get this."""
    return "python " + " ".join([_module(), *sys.argv[1:]])


def _module() -> str:
    script = Path(sys.argv[0])
    if not script.is_relative_to(ROOT):
        return script.name
    return "-m " + ".".join(script.relative_to(ROOT).with_suffix("").parts)


def medians(count: int, measure: Callable[[], float]) -> dict[str, float]:
    """A measurement repeated: its median and its extremes."""
    return spread([measure() for _ in range(count)])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    rounded = [round(value, 3) for value in values]
    return {"median": round(median(rounded), 3), "min": min(rounded), "max": max(rounded)}
