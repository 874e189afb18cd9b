"""How do the gateway and vLLM get onto a bare machine?

`python3 -m backends.install gateway [--dev]` fills `.venv`, `python3 -m backends.install engine` fills
`.venv-vllm`: two environments, because vLLM pins its own fastapi, pydantic and torch. Runs with the system's
Python before anything is installed, hence standard library only, and syntax that an older Python can still
read far enough to be told that it is too old. Registries, proxies and certificates are pip's configuration,
never ours. Nothing outside the project's folder changes, pip's download cache aside (`INSTALL_ISOLATED=1`
moves that, and temporary files, into `.tollgate` too).

A stamp in the environment holds a digest of everything that the installation depends on: an environment with
the right stamp costs a second run a few milliseconds; without one it is completed, not rebuilt, since pip
skips what is already there. Sizes of downloads were read from the packages' metadata in November 2026.
"""
# ruff: noqa: T201, TID251, S603
# T201: printing progress is this program's job. TID251: settings.py needs what this program installs.
# S603: it starts python, pip and nvidia-smi with arguments of its own making.

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from backends.install_machine import (
    SUPPORTED,
    InstallError,
    NotOffered,
    detect_hardware,
    require_engine_platform,
    require_numa_library,
    require_space,
    supported_python,
)
from backends.install_output import PipProgress, advice_for, duration, megabytes, next_step_for_venv
from backends.install_plan import (
    STAMP,
    VARIANT,
    Plan,
    core_packages,
    engine_plan,
    environment_settings,
    gateway_plan,
    is_complete,
    pin_count,
    write_stamp,
)

ROOT = Path(__file__).resolve().parent.parent
STATE = ".tollgate"
# What makes pip install elsewhere, or our Python import from elsewhere.
FOREIGN_SETTINGS = frozenset(
    {
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_ROOT",
        "PIP_REQUIRE_VIRTUALENV",
    }
)
CUDA_TORCH_DISK_GB = 10.0
HEARTBEAT_S = 10.0
IMPORT_CHECK = "import vllm; print(vllm.__version__)"
GATEWAY_CHECK = "import gateway.cli, gateway.commands.running"
"""What `tollgate serve` needs."""


@dataclass
class Session:
    """One run: where it logs, and which step it is at."""

    root: Path
    plan: Plan
    log: Path
    steps: int = 0
    step: int = 0
    started: float = field(default_factory=time.monotonic)
    downloaded: int = 0

    def begin(self, title: str) -> None:
        """Announce the next step."""
        self.step += 1
        say(f"[{self.step}/{self.steps}] {title}")


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


# ------------------------------------------------------------------------------------------ running programs
def child_environment(root: Path) -> dict[str, str]:
    """Our environment without what would make pip install elsewhere than in the virtual environment."""
    settings = {key: value for key, value in os.environ.items() if key not in FOREIGN_SETTINGS}
    settings.update(
        PIP_USER="0",
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_NO_INPUT="1",
        PYTHONNOUSERSITE="1",
        PYTHONUNBUFFERED="1",
        VLLM_NO_USAGE_STATS="1",
    )
    if settings.get("INSTALL_ISOLATED") == "1":
        temporary = root / STATE / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        settings.update(PIP_CACHE_DIR=str(root / STATE / "pip-cache"), TMPDIR=str(temporary))
    return settings


def stream(session: Session, command: list[str], on_line: Callable[[str], None]) -> int:
    """Run a command, hand each line of its output to the log and to `on_line`; returns the exit status."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(session.log.open("a", encoding="utf-8"))
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        process = stack.enter_context(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd=session.root,
                env=child_environment(session.root),
            )
        )
        # After an interruption: the terminal's Ctrl-C reaches the program too, a SIGTERM only us.
        stack.callback(process.terminate)
        assert process.stdout is not None  # noqa: S101 - Popen's type cannot say that PIPE gives one
        for line in process.stdout:
            log.write(line)
            log.flush()
            on_line(line.rstrip("\n"))
        return process.wait()


@contextlib.contextmanager
def heartbeat(text: Callable[[], str]) -> Iterator[None]:
    """Say something now and then, so that a long silence of pip is not taken for a hang."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_S):
            say(f"      … {text()}")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def pip_install(session: Session, arguments: list[str], *, expected: int = 0) -> None:
    """Run `pip install`, showing what it finds, downloads and unpacks.

    Args:
        session: where to log, and which environment.
        arguments: what follows `pip install`.
        expected: how many packages are asked for, 0 when pip decides.

    Raises:
        NotOffered: the index lacks a version.
        InstallError: any other failure.
    """
    # No byte code in advance: it takes longer than everything else, and Python writes what is used anyway.
    options = ["--progress-bar", "off", "--no-compile"]
    command = [str(session.plan.python), "-m", "pip", "install", *options]
    progress = PipProgress(expected=expected)
    tail: deque[str] = deque(maxlen=15)
    began = time.monotonic()

    def on_line(line: str) -> None:
        tail.append(line)
        message = progress.feed(line)
        if message:
            say(f"      {message}")

    before = len(session.plan.installed())

    def state() -> str:
        placed = len(session.plan.installed()) - before
        unpacked = f", {placed} in place" if progress.unpacking and placed > 0 else ""
        return f"{progress.summary()}{unpacked}, {duration(time.monotonic() - began)}"

    with heartbeat(state):
        status = stream(session, [*command, *arguments], on_line)
    session.downloaded += progress.downloaded_bytes
    if status == 0:
        say(f"      {progress.summary()}, {duration(time.monotonic() - began)}")
        return
    text = "\n".join(tail)
    kind = NotOffered if "No matching distribution found" in text else InstallError
    raise kind(f"pip ended with status {status}", advice_for(text, status), tail=tuple(tail))


# -------------------------------------------------------------------------------------------------- the steps
def is_usable(plan: Plan) -> bool:
    """Whether an existing environment can be completed: right place, right kind, its Python and pip start."""
    if not plan.python.exists():
        return False
    variant = plan.folder / VARIANT
    if variant.is_file() and variant.read_text(encoding="utf-8") != plan.variant:
        return False
    created_as = environment_settings(plan.folder).get("command", "").rpartition(" ")[2]
    if created_as and os.path.realpath(created_as) != os.path.realpath(plan.folder):
        # The project's folder was moved or copied: every script in bin/ points to the old place.
        return False
    probe = subprocess.run(
        [str(plan.python), "-c", "import sys, pip; print(*sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(plan.folder.parent),
    )
    return probe.returncode == 0 and tuple(int(part) for part in probe.stdout.split()) in SUPPORTED


def make_environment(session: Session) -> None:
    """Create the virtual environment, or keep one that works.

    Raises:
        InstallError: Python cannot make one.
    """
    plan = session.plan
    if is_usable(plan):
        version = environment_settings(plan.folder).get("version", "?")
        session.begin(f"{plan.folder.name} exists (Python {version}); completing it")
        (plan.folder / VARIANT).write_text(plan.variant, encoding="utf-8")
        return
    again = "rebuilding" if plan.folder.exists() else "making"
    session.begin(f"{again} {plan.folder.name} with Python {platform.python_version()}")
    lines: list[str] = []
    status = stream(session, [sys.executable, "-m", "venv", "--clear", str(plan.folder)], lines.append)
    if status != 0:
        # Half an environment has a python that works and no pip.
        shutil.rmtree(plan.folder, ignore_errors=True)
        raise InstallError(
            "Python could not make a virtual environment",
            next_step_for_venv("\n".join(lines), sys.version_info[:2]),
            tail=tuple(lines[-15:]),
        )
    (plan.folder / VARIANT).write_text(plan.variant, encoding="utf-8")


def install_core(session: Session, choices: list[str]) -> None:
    """Install one package by itself, in the first of its versions that the index offers.

    Raises:
        InstallError: none of them, or something else went wrong.
    """
    preferred, *others = choices
    session.begin(preferred.replace("==", " "))
    try:
        pip_install(session, ["--no-deps", preferred], expected=1)
    except NotOffered:
        if not others:
            raise
    else:
        return
    fallback = others[0]
    say(f"      the index has no {preferred} for this Python: taking {fallback}, built for NVIDIA GPUs.")
    say("      It works without a GPU, but it downloads about 2.7 GB instead of 0.2 and takes 7 GB on disk.")
    say("      To avoid that: stop here (Ctrl-C), add PyTorch's index for CPU builds to pip's configuration")
    say(
        "      (extra-index-url; PyTorch's installation page shows it under compute platform CPU), run again."
    )
    require_space(session.plan.folder, CUDA_TORCH_DISK_GB)
    # With dependencies: only torch knows which CUDA libraries it was built with.
    pip_install(session, [fallback])


def install_requirements(session: Session) -> None:
    """Install the pinned packages, without dependencies: the file is complete and resolving takes minutes."""
    path = session.plan.requirements
    count = pin_count(path)
    session.begin(f"{count} packages from {path.relative_to(session.root)}")
    pip_install(session, ["--no-deps", "-r", str(path)], expected=count)


def install_project(session: Session, project: Path) -> None:
    """Install Tollgate itself, so that `.venv/bin/tollgate` runs the sources in this folder."""
    session.begin("Tollgate itself (editable)")
    pip_install(session, ["--no-deps", "--editable", str(project)], expected=1)


def install_plugin(session: Session, plugin: Path) -> None:
    """Install our vLLM plugin with the setuptools that vLLM pins, so that nothing is downloaded."""
    session.begin(f"vLLM plugin from {plugin.relative_to(session.root)}")
    # setuptools never removes from build/ what left the sources; such files would be installed again.
    shutil.rmtree(plugin / "build", ignore_errors=True)
    pip_install(session, ["--no-deps", "--no-build-isolation", "--force-reinstall", str(plugin)], expected=1)


def check_engine(session: Session) -> None:
    """Import vLLM once; the first import also writes its byte code, which takes a while.

    Raises:
        InstallError: it does not import.
    """
    session.begin("checking that vLLM imports")
    lines: list[str] = []
    with heartbeat(lambda: "importing"):
        status = stream(session, [str(session.plan.python), "-c", IMPORT_CHECK], lines.append)
    if status != 0:
        raise InstallError(
            "`import vllm` failed",
            f"see the log; to start from nothing, remove {session.plan.folder.name} and run this again",
            tail=tuple(lines[-15:]),
        )
    say(f"      vLLM {lines[-1]}")


def check_gateway(session: Session) -> None:
    """Import the gateway once, which writes the byte code of what it needs, whatever the environment says.

    Without byte code (PYTHONDONTWRITEBYTECODE, usual in containers) every start compiles 1,200 files anew.

    Raises:
        InstallError: it does not import.
    """
    session.begin("checking that the gateway imports")
    lines: list[str] = []
    command = ["env", "-u", "PYTHONDONTWRITEBYTECODE", str(session.plan.python), "-c", GATEWAY_CHECK]
    status = stream(session, command, lines.append)
    if status != 0:
        raise InstallError(
            "the gateway cannot be imported",
            f"see the log; to start from nothing, remove {session.plan.folder.name} and run this again",
            tail=tuple(lines[-15:]),
        )


def install(session: Session) -> None:
    """Run all steps of the session's plan and stamp the environment.

    Raises:
        InstallError: a step failed; what was installed stays and the next run goes on from there.
    """
    plan = session.plan
    if plan.name == "engine":
        require_engine_platform(platform.system(), platform.machine(), platform.libc_ver())
    if plan.variant == "cpu":
        require_numa_library()
    require_space(plan.folder, plan.disk_gb)
    core = core_packages(plan.requirements)
    first = [choices for choices in core if choices[0].startswith("torch==")]
    last = [choices for choices in core if choices not in first]
    session.steps = 2 + len(core) + (plan.project is not None) + (plan.plugin is not None)
    session.steps += plan.name == "engine" or plan.project is not None
    (plan.folder / STAMP).unlink(missing_ok=True)
    make_environment(session)
    for choices in first:
        install_core(session, choices)
    install_requirements(session)
    for choices in last:
        install_core(session, choices)
    if plan.project is not None:
        install_project(session, plan.project)
        check_gateway(session)
    if plan.plugin is not None:
        install_plugin(session, plan.plugin)
    if plan.name == "engine":
        check_engine(session)
    write_stamp(plan)
    took = duration(time.monotonic() - session.started)
    say(f"{plan.name}: ready in {took}, {megabytes(session.downloaded)} downloaded")


# ---------------------------------------------------------------------------------------------- the program
@contextlib.contextmanager
def exclusive(root: Path, name: str) -> Iterator[None]:
    """Let one installation of an environment run at a time; a lock dies with its holder."""
    state = root / STATE
    state.mkdir(exist_ok=True)
    with (state / f"install-{name}.lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            say(f"{name}: process {lock.read().strip() or '?'} is installing it already; waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def use_supported_python(arguments: list[str]) -> None:
    """Continue under a supported Python when this one is not.

    Raises:
        InstallError: there is none.
    """
    version = tuple(sys.version_info[:2])
    if version in SUPPORTED:
        return
    program = supported_python()
    if program is None:
        raise InstallError(
            f"Tollgate runs on Python 3.11, 3.12 and 3.13; {sys.executable} is {platform.python_version()}",
            "install one, with its venv module, so that python3.11, python3.12 or python3.13 is on PATH",
        )
    say(f"python3 is {platform.python_version()}, which is not supported; continuing with {program}")
    sys.stdout.flush()
    os.execv(program, [program, "-m", "backends.install", *arguments])  # noqa: S606 - no shell is the point


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m backends.install",
        description="Install the gateway (.venv) or vLLM (.venv-vllm).",
        epilog="example: python3 -m backends.install engine",
    )
    parser.add_argument("what", choices=["gateway", "engine"])
    parser.add_argument("--dev", action="store_true", help="gateway: with what `make test` needs")
    parser.add_argument(
        "--hardware", choices=["auto", "cpu", "cuda"], default="auto", help="engine: default is what is found"
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if there is work to do"
    )
    return parser.parse_args(arguments)


def plans(options: argparse.Namespace, root: Path) -> tuple[Plan, list[Plan]]:
    """What to install, and the environments that would do as well (a developer's contains the gateway's)."""
    if options.what == "engine":
        hardware = detect_hardware() if options.hardware == "auto" else options.hardware
        plan = engine_plan(root, hardware)
        return plan, [plan]
    plan = gateway_plan(root, dev=options.dev)
    return plan, [plan, gateway_plan(root, dev=True)]


def report(error: InstallError, log: Path) -> None:
    """Say what failed, why, and what to do next."""
    for line in error.tail:
        say(f"    | {line}")
    say(f"installation stopped: {error}")
    if log.exists():
        say(f"full log:  {log}")
    say(f"next step: {error.next_step}")


def execute(options: argparse.Namespace, root: Path) -> int:
    """Install, or check, what the command line asked for; returns the exit status."""
    plan, sufficient = plans(options, root)
    log = root / STATE / "logs" / f"install-{plan.name}.log"
    if any(is_complete(each) for each in sufficient):
        say(f"{plan.name}: up to date ({plan.folder.name})")
        return 0
    if options.check:
        say(f"{plan.name}: not installed, or not up to date ({plan.folder.name})")
        return 1
    with exclusive(root, plan.name):
        if any(is_complete(each) for each in sufficient):
            say(f"{plan.name}: installed meanwhile ({plan.folder.name})")
            return 0
        log.parent.mkdir(exist_ok=True)
        log.write_text("", encoding="utf-8")
        kind = f", {plan.variant} build" if plan.variant else ""
        say(f"{plan.name}: installing into {plan.folder.name}{kind}; log in {log.relative_to(root)}")
        try:
            install(Session(root=root, plan=plan, log=log))
        except InstallError as error:
            report(error, log)
            return 1
    return 0


def main(arguments: list[str] | None = None, *, root: Path = ROOT) -> int:
    """Run the program; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        use_supported_python(arguments)
        return execute(options, root)
    except InstallError as error:
        report(error, root / STATE / "logs" / "none")
        return 1
    except KeyboardInterrupt:
        say("installation interrupted; run the same command again to go on from here")
        return 130


if __name__ == "__main__":
    sys.exit(main())
