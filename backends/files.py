"""Which pools does this folder of YAML files describe?

One file per pool, `*.yaml`, not in sub-folders. Reading is strict and all mistakes of all files are reported
at once, each with file, line and key. Whether the weights exist is not asked here: the machine that checks a
file need not be the one that serves it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backends.pool import PoolSpec
from backends.yaml_source import KeyPath, YamlSourceError, explain, load_yaml_with_lines


class PoolFileError(ValueError):
    """One or more pool files are wrong; the text names file, line and key, one mistake per line."""


def load_pools(folder: Path) -> dict[str, PoolSpec]:
    """Read every `*.yaml` directly in the folder; pools by name, in the order of the files' names.

    Relative model paths come back absolute (relative to their file), names of repositories as they are.

    Raises:
        PoolFileError: no such folder, no pool in it, a file that cannot be read, or any mistake in a file.
    """
    if not folder.is_dir():
        raise PoolFileError(f"{folder}: no such folder; expected a folder with one YAML file per pool")
    files = sorted(path for path in folder.glob("*.yaml") if path.is_file())
    if not files:
        raise PoolFileError(f"{folder}: holds no *.yaml file; expected one file per pool")
    pools: dict[str, PoolSpec] = {}
    origin: dict[str, str] = {}
    mistakes: list[str] = []
    for path in files:
        try:
            spec, name_line = _read(path)
        except PoolFileError as error:
            mistakes.append(str(error))
            continue
        place = f"{path}:{name_line}"
        if spec.name in pools:
            mistakes.append(f"{place}: name: pool '{spec.name}' is already defined at {origin[spec.name]}")
            continue
        pools[spec.name] = spec
        origin[spec.name] = place
    if mistakes:
        raise PoolFileError("\n".join(mistakes))
    return pools


def _read(path: Path) -> tuple[PoolSpec, int]:
    """One pool, and the line of its name."""
    value, lines = read_document(path)
    try:
        spec = PoolSpec.model_validate(value)
    except ValidationError as error:
        raise PoolFileError("\n".join(explain(error, lines, PoolSpec, source=str(path)))) from error
    return with_absolute_paths(spec, path.parent), lines["name",]


def read_document(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """What a pool file holds, right or wrong, and on which line each key stands.

    Raises:
        PoolFileError: it cannot be read, is no YAML, or holds something else than keys.
    """
    try:
        value, lines = load_yaml_with_lines(path.read_text(encoding="utf-8"))
    except YamlSourceError as error:
        raise PoolFileError(f"{path}:{error.line}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PoolFileError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise PoolFileError(f"{path}:1: expected a mapping of keys such as 'name', 'driver' and 'model'")
    return value, lines


def with_absolute_paths(spec: PoolSpec, folder: Path) -> PoolSpec:
    """The same pool; its relative model paths are relative to this folder, its file's."""
    model = spec.model.model_copy(update={"path": _located(spec.model.path, folder)})
    speculation = spec.speculation
    if speculation is not None:
        speculation = speculation.model_copy(update={"model": _located(speculation.model, folder)})
    profile = str((folder / Path(spec.profile).expanduser()).resolve()) if spec.profile else None
    return spec.model_copy(update={"model": model, "speculation": speculation, "profile": profile})


def _located(text: str | None, folder: Path) -> str | None:
    """An absolute path where a folder is meant; `meta-llama/Llama-3` stays the name of a repository.

    A folder is meant when the text begins like a path or when there is such a folder beside the file.
    """
    if text is None:
        return None
    path = Path(text).expanduser()
    looks_like_path = text.startswith((".", "/", "~"))
    if looks_like_path or (folder / path).is_dir():
        return str((folder / path).resolve())
    return text
