"""What is pip doing, and what does its failure mean?

Reads the lines that pip (23 to 26) writes into a pipe and turns them into progress for people. Pure text:
`backends.install` runs the programs. Standard library only.
"""

from __future__ import annotations

import re
from pathlib import Path

LARGE_BYTES = 10_000_000
"""Files from this size on are named as they are downloaded; the many small ones are only counted."""
UNITS = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
TRANSFER = re.compile(r"^\s*(Downloading|Using cached) (\S+) \(([\d.]+) (bytes|kB|MB|GB)\)")
LOCAL = re.compile(r"^Processing (.+\.whl)( \(from .*\))?$")
KILLED = -9

ADVICE = (
    (r"No space left on device", "the disk filled up: free some space and run this again"),
    (
        r"No matching distribution found|Could not find a version",
        "pip's index does not offer this version for this Python: see `pip config list`, and the log",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "the index's certificate is not trusted: set pip's `cert` option to the certificates of your network",
    ),
    (
        r"ConnectionError|Temporary failure in name resolution|timed out|ProxyError|ReadTimeout",
        "the index cannot be reached: check the network and pip's index and proxy settings, run this again",
    ),
    (
        r"401 Client Error|403 Client Error",
        "the index refuses access: check the credentials in pip's configuration",
    ),
    (r"Permission denied", "this folder is not writable for this user: check its owner"),
    (
        r"error: command '.*(gcc|cc|g\+\+)'|Failed building wheel",
        "a package came as source and did not compile: there is no wheel for this Python; try Python 3.11",
    ),
)


def megabytes(count: int) -> str:
    """A size for people."""
    return f"{count / 1e9:.2f} GB" if count >= UNITS["GB"] else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """A duration for people."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def packages(count: int) -> str:
    """A number of packages for people."""
    return f"{count} package" if count == 1 else f"{count} packages"


def advice_for(output: str, status: int) -> str:
    """The next step after pip failed with `status` and these last lines."""
    if status == KILLED:
        return "pip was killed, most likely for want of memory: free some and run this again"
    for pattern, advice in ADVICE:
        if re.search(pattern, output):
            return advice
    return "read the log, and run the same command again: it goes on from here"


def next_step_for_venv(output: str, version: tuple[int, int]) -> str:
    """The next step after `python -m venv` failed; Debian splits the module off its Python."""
    if "ensurepip" in output or "No module named venv" in output:
        package = f"python{version[0]}.{version[1]}-venv"
        return f"python3-venv is missing: apt-get install {package} (or python3-venv), then run this again"
    return advice_for(output, 1)


class PipProgress:
    """Counts what pip reports, line by line."""

    def __init__(self, *, expected: int = 0) -> None:
        self.expected = expected
        self.found = 0
        self.files = 0
        self.downloaded_bytes = 0
        self.reused_bytes = 0
        self.installed = 0
        self.unpacking = 0

    def feed(self, line: str) -> str | None:
        """Take a line of pip's output; returns a line for people when it is worth one."""
        transfer = TRANSFER.match(line)
        if transfer:
            return self._count(transfer)
        text = line.strip()
        local = LOCAL.match(text)
        if local:
            return self._local(Path(local[1]))
        if text.startswith(("Collecting ", "Requirement already satisfied: ")):
            self.found += 1
        elif text.startswith("Installing collected packages: "):
            self.unpacking = text.count(",") + 1
            return f"{megabytes(self.downloaded_bytes)} downloaded; unpacking {packages(self.unpacking)}"
        elif text.startswith("Successfully installed "):
            self.installed = len(text.split()) - 2
            self.unpacking = 0
        elif text.startswith("Building ") and text.endswith(": started"):
            return f"building {text.removesuffix(': started').removeprefix('Building ')}"
        return None

    def _count(self, transfer: re.Match[str]) -> str | None:
        verb, name, number, unit = transfer.groups()
        size = round(float(number) * UNITS[unit])
        # pip names files of indexes other than the default one by their whole address.
        name = name.rpartition("/")[2]
        if verb == "Using cached":
            self.reused_bytes += size
            return None
        self.downloaded_bytes += size
        if name.endswith(".metadata"):
            return None
        self.files += 1
        if size < LARGE_BYTES:
            return None
        return f"downloading {name} ({megabytes(size)}); {megabytes(self.downloaded_bytes)} in all so far"

    def _local(self, path: Path) -> str | None:
        self.found += 1
        size = path.stat().st_size if path.is_file() else 0
        self.reused_bytes += size
        return f"from a local folder: {path.name} ({megabytes(size)})" if size >= LARGE_BYTES else None

    def summary(self) -> str:
        """Where pip stands."""
        if self.unpacking:
            return f"unpacking {packages(self.unpacking)}"
        of = f" of {self.expected}" if self.expected > 1 else ""
        parts = [f"{self.found}{of} looked up"] if self.found else []
        parts.append(f"{megabytes(self.downloaded_bytes)} downloaded")
        if self.reused_bytes:
            parts.append(f"{megabytes(self.reused_bytes)} from local files")
        if self.installed:
            parts.append(f"{self.installed} installed")
        return ", ".join(parts)
