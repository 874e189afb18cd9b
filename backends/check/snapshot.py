"""What does the vLLM that this project was written for say of a command line, without being installed?

`vllm_flags.json` holds the flags of one release, with their kinds and choices, made from that release by
`python -m backends.check.snapshot <interpreter>`; a test with real vLLM fails when the two differ. It knows
spelling, choices and kinds of values; what depends on several flags or on the model it does not, beyond
the rules that the pool file's own types hold.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from backends.check.engine import ask_for_snapshot
from backends.check.obsolete import REMOVED_FLAGS
from backends.yaml_source import nearest

FILE = Path(__file__).with_name("vllm_flags.json")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The flags of one release of vLLM."""

    version: str
    flags: dict[str, dict[str, Any]]
    speculation_keys: tuple[str, ...]
    speculation_methods: tuple[str, ...]
    quantizations: tuple[str, ...]
    tool_call_parsers: tuple[str, ...]
    reasoning_parsers: tuple[str, ...]

    def flag(self, option: str) -> dict[str, Any] | None:
        """What is known of `--option`, also by its other name; None if there is no such flag."""
        found = self.flags.get(option)
        return self.flags[found["same_as"]] if found and "same_as" in found else found

    def mistakes(self, argv: list[str]) -> list[str]:
        """What this release would refuse of a command line, as far as its flags show it."""
        found = []
        options = _options(argv)
        # A plug-in brings names that no snapshot has.
        open_ended = {
            option.replace("-plugin", "").replace("--tool-", "--tool-call-")
            for option, _ in options
            if option in {"--tool-parser-plugin", "--reasoning-parser-plugin"}
        }
        for option, values in options:
            sentence = None if option in open_ended else self._mistake(option, values)
            if sentence:
                found.append(sentence)
        return found

    def _mistake(self, option: str, values: list[str]) -> str | None:
        name, _, below = option.partition(".")
        known = self.flag(name)
        if known is None and name.startswith("--no-"):
            known = self.flag("--" + name.removeprefix("--no-"))
            if known is not None:
                return None if known["kind"] == "switch" else f"{option}: {name[5:]} has no form with --no-"
        if known is None:
            return self._unknown(name)
        if below and known["kind"] != "json":
            return f"{option}: {name} takes no keys"
        return None if below else self._wrong_values(option, known, values)

    def _unknown(self, option: str) -> str:
        replacement = REMOVED_FLAGS.get(option.removeprefix("--").replace("-", "_"))
        if replacement:
            return f"{option} is not in vLLM {self.version}: {replacement}"
        meant = nearest(option, list(self.flags))
        hint = f"; did you mean {meant}?" if meant else ""
        return f"{option} is no flag of vLLM {self.version}{hint}"

    def _wrong_values(self, option: str, known: dict[str, Any], values: list[str]) -> str | None:
        kind = known["kind"]
        if kind in {"flag", "switch"}:
            return f"{option} takes no value, got {values[0]!r}" if values else None
        if not values or (len(values) > 1 and not known.get("is_list")):
            return f"{option} takes {'values' if known.get('is_list') else 'one value'}, got {len(values)}"
        choices = known.get("choices") or self._choices_elsewhere(option)
        for value in values:
            if choices and value not in choices:
                meant = nearest(value, list(choices))
                hint = f"; did you mean {meant}?" if meant else f"; expected one of {', '.join(choices)}"
                return f"{option} {value}: no such choice{hint}"
            if not choices and not _is_of_kind(value, kind):
                return f"{option} {value}: expected {_KINDS[kind]}"
        return self._wrong_keys(values[0]) if option == "--speculative-config" else None

    def _wrong_keys(self, config: str) -> str | None:
        for key in json.loads(config):
            if key not in self.speculation_keys:
                meant = nearest(key, list(self.speculation_keys))
                hint = f"; did you mean {meant}?" if meant else ""
                return f"--speculative-config: vLLM {self.version} knows no key {key}{hint}"
        return None

    def _choices_elsewhere(self, option: str) -> tuple[str, ...]:
        return {
            "--quantization": self.quantizations,
            "--tool-call-parser": self.tool_call_parsers,
            "--reasoning-parser": self.reasoning_parsers,
        }.get(option, ())


@cache
def read_snapshot(path: Path = FILE) -> Snapshot:
    """The snapshot that comes with the project."""
    document = json.loads(path.read_text(encoding="utf-8"))
    lists = {name: tuple(value) for name, value in document.items() if isinstance(value, list)}
    return Snapshot(version=document["version"], flags=document["flags"], **lists)


_KINDS = {"int": "a whole number", "float": "a number", "size": "a whole number such as 8192", "json": "JSON"}


def _is_of_kind(value: str, kind: str) -> bool:
    try:
        match kind:
            case "int":
                int(value)
            case "float":
                float(value)
            case "size":
                float(value.rstrip("kKmMgGtT")) if value != "auto" else None
            case "json":
                json.loads(value)
    except ValueError:
        return False
    return True


def _options(argv: list[str]) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            found.append((word, []))
        elif found:
            found[-1][1].append(word)
    return found


def main() -> None:
    """Write the snapshot of the vLLM of the interpreter that is named."""
    document = ask_for_snapshot(Path(sys.argv[1]))
    FILE.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sys.stdout.write(f"{FILE}: {len(document['flags'])} flags of vLLM {document['version']}\n")


if __name__ == "__main__":
    main()
