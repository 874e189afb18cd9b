"""What does the process do that prints a statement for the one that serves? `python -m` of this module.

It reads a statement as JSON from standard input and writes the PDF to standard output.
"""

from __future__ import annotations

import os
import sys

import msgspec

from gateway.ledger.statement import Statement
from gateway.ledger.statement_pdf import render

NICENESS = 10
"""It yields to whatever serves."""


def main() -> int:
    """Do it; returns the exit status."""
    os.nice(NICENESS)
    statement = msgspec.json.decode(sys.stdin.buffer.read(), type=Statement)
    sys.stdout.buffer.write(render(statement))
    return 0


if __name__ == "__main__":
    sys.exit(main())
