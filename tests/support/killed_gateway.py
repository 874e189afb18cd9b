r"""A `tollgate` that is killed at a named point of its own code, as by the out-of-memory killer.

    python -m tests.support.killed_gateway --at gateway.ledger.spool:Spool.start --on return \
        --armed-by FILE serve

Nothing of the product is changed for it: the interpreter's profiling hook (sys.setprofile) is told of every
call and return, and sends SIGKILL at the first one of the function that is named, once FILE exists. Name only
plain functions: a coroutine's call and return are seen at every step of it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

from gateway import cli

_NO_SUCH: Final = 2


class Trap:
    """Looks at every call and return of the program."""

    def __init__(self, code: CodeType, event: str, armed_by: Path) -> None:
        self._code = code
        self._event = event
        self._armed_by = armed_by

    def __call__(self, frame: FrameType, event: str, value: object) -> None:
        """What sys.setprofile calls."""
        del value
        if frame.f_code is self._code and event == self._event and self._armed_by.exists():
            os.kill(os.getpid(), signal.SIGKILL)


def code_of(point: str) -> CodeType:
    """The code of `module:qualified.name`.

    Raises:
        LookupError: there is no such function; a point that was renamed must not pass unnoticed.
    """
    module_name, _, path = point.partition(":")
    found: object = importlib.import_module(module_name)
    for name in path.split("."):
        found = getattr(found, name, None)
    code = getattr(found, "__code__", None)
    if not isinstance(code, CodeType):
        raise LookupError(f"{point} is no function")  # noqa: TRY004 - a name is wrong, not a type
    return code


def main() -> None:
    """Set the trap and run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at", required=True, help="module:qualified.name")
    parser.add_argument("--on", required=True, choices=["call", "return"])
    parser.add_argument("--armed-by", required=True, type=Path, help="nothing happens until this file exists")
    args, rest = parser.parse_known_args()
    try:
        trap: Callable[[FrameType, str, object], None] = Trap(code_of(args.at), args.on, args.armed_by)
    except LookupError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(_NO_SUCH)
    sys.argv = ["tollgate", *rest]
    threading.setprofile(trap)
    sys.setprofile(trap)
    cli.main()


if __name__ == "__main__":
    main()
