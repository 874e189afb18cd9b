"""What does an environment consist of, and is it complete?

Plans for the two environments, and the stamp that says that one of them was carried out. Reads and writes
files, starts nothing. Standard library only: `backends.install` needs it before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

STAMP = "tollgate-install.json"
VARIANT = "tollgate-variant"


@dataclass(frozen=True)
class Plan:
    """What one environment consists of."""

    name: str
    folder: Path
    requirements: Path
    disk_gb: float
    """Free space that the installation needs, downloads included (measured, rounded up)."""
    project: Path | None = None
    """A project to install editable."""
    plugin: Path | None = None
    variant: str = ""
    """Distinguishes contents that cannot be turned into each other: cpu and cuda both install a `vllm`."""

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / "bin" / "python"

    def installed(self) -> list[Path]:
        """The records of the packages in the environment."""
        return list(self.folder.glob("lib/python3*/site-packages/*.dist-info"))


def gateway_plan(root: Path, *, dev: bool) -> Plan:
    """The gateway's environment; `dev` adds what `make test` needs."""
    requirements = root / "requirements" / ("dev.txt" if dev else "gateway.txt")
    return Plan(name="gateway", folder=root / ".venv", requirements=requirements, disk_gb=0.6, project=root)


def engine_plan(root: Path, hardware: str) -> Plan:
    """The engine's environment for `hardware`, cpu or cuda."""
    plugin = root / "backends" / "vllm_plugin"
    return Plan(
        name="engine",
        folder=root / ".venv-vllm",
        requirements=root / "requirements" / f"engine-{hardware}.txt",
        disk_gb=14.0 if hardware == "cuda" else 4.5,
        plugin=plugin if plugin.is_dir() else None,
        variant=hardware,
    )


def core_packages(requirements: Path) -> list[list[str]]:
    """The `# core:` lines: packages that are installed by themselves, each with its alternatives."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    marked = [line.split("core:", 1)[1] for line in lines if line.startswith("# core:")]
    return [[choice.strip() for choice in line.split("|")] for line in marked]


def pin_count(requirements: Path) -> int:
    """How many packages a requirements file pins (for people: markers are not evaluated)."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    return len({line.split("==")[0] for line in lines if "==" in line and not line.startswith("#")})


def sources(folder: Path) -> list[Path]:
    """A plugin's own files, without what building it leaves behind."""
    built = {"build", "__pycache__", "dist"}
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [
        path
        for path in found
        if not built.intersection(path.relative_to(folder).parts)
        and not any(part.endswith(".egg-info") for part in path.relative_to(folder).parts)
    ]


def packaging_tables(root: Path) -> str:
    """The part of pyproject.toml that an editable installation depends on; linters' settings are not."""
    import tomllib  # noqa: PLC0415 - an older Python must get as far as the message about its age

    document = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    tables = (
        document.get("build-system"),
        document.get("project"),
        document.get("tool", {}).get("setuptools"),
    )
    return json.dumps(tables, sort_keys=True)


def digest(plan: Plan) -> str:
    """A digest of all that an environment's content depends on, the Python version aside."""
    summary = hashlib.sha256(plan.variant.encode())
    summary.update(plan.requirements.read_bytes())
    if plan.project is not None:
        summary.update(packaging_tables(plan.project).encode())
    for path in sources(plan.plugin) if plan.plugin is not None else []:
        summary.update(f"{path.name}\0".encode())
        summary.update(path.read_bytes())
    return summary.hexdigest()


def environment_settings(folder: Path) -> dict[str, str]:
    """The keys of pyvenv.cfg; empty where there is no environment."""
    path = folder / "pyvenv.cfg"
    if not path.is_file():
        return {}
    pairs = (line.partition("=") for line in path.read_text(encoding="utf-8").splitlines())
    return {key.strip(): value.strip() for key, separator, value in pairs if separator}


def expected_stamp(plan: Plan) -> dict[str, str]:
    """What the stamp of a complete environment says."""
    version = environment_settings(plan.folder).get("version", "")
    return {"digest": digest(plan), "python": version, "folder": str(plan.folder)}


def is_complete(plan: Plan) -> bool:
    """Whether the environment holds exactly what the plan asks for, by its stamp."""
    path = plan.folder / STAMP
    if not path.is_file() or not plan.python.exists():
        return False
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        # Cut short while it was written: the installation did not end.
        return False
    return bool(stamp == expected_stamp(plan))


def write_stamp(plan: Plan) -> None:
    """Declare the environment complete, in one step so that half a stamp is never read."""
    draft = plan.folder / f"{STAMP}.new"
    draft.write_text(json.dumps(expected_stamp(plan)), encoding="utf-8")
    draft.replace(plan.folder / STAMP)
