"""Against what is Tollgate measured, and how is each of them started?

The floor is nginx, which passes bytes on and does nothing else. The peers are those of `peers.sh`, where
they are installed; each is started as its own documentation says, one process, logging at its least. What
each of them is spared is said in `note`: none keeps books.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.load.programs import find_program
from tests.load.traffic import MODEL
from tests.support.servers import free_port

FLOOR: Final = "nginx"
OURS: Final = "tollgate"
SCRIPT: Final = "tests/load/peers.sh"
_MASTER_KEY: Final = "sk-lab-7f3c1b9a2d8e4f60a1b2c3d4e5f60718"
"""LiteLLM does not start without a strong one."""


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway that can be started."""

    name: str
    """One word, for --only."""
    title: str
    command: tuple[str, ...]
    port: int
    model: str = MODEL
    path: str = "/v1/chat/completions"
    headers: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()
    """See `Asked`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    """Where it runs."""
    port_file: Path | None = None
    """Where it says which port it has; `port` is nothing then."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """What a target is made for."""

    peers: Path
    """Where the peers are installed."""
    folder: Path
    """For the files that this run makes."""
    upstreams: tuple[str, ...]
    """Base addresses, without /v1."""

    def write(self, name: str, text: str) -> str:
        """A file in the folder; returns its path."""
        path = self.folder / name
        path.write_text(text)
        return str(path)


# ------------------------------------------------------------------------------------------------ the floor
def nginx(place: Place) -> Target:
    """Nginx as a proxy: no key, no body read, no accounting.

    Raises:
        ProgramMissing: it is not installed.
    """
    program, port = find_program("nginx"), free_port()
    folder = place.folder / "nginx"
    folder.mkdir(exist_ok=True)
    temporary = "".join(
        f"  {kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    servers = " ".join(f"server {url.removeprefix('http://')};" for url in place.upstreams)
    file = place.write(
        "nginx.conf",
        # Its workers would become another user, who cannot reach this folder.
        f"{'user root root;' if os.geteuid() == 0 else ''}\n"
        f"worker_processes 1;\ndaemon off;\npid {folder}/pid;\nerror_log {folder}/error.log warn;\n"
        "events { worker_connections 4096; }\n"
        f"http {{\n  access_log off;\n{temporary}"
        "  client_body_buffer_size 64k;\n  keepalive_requests 100000000;\n"
        f"  upstream vllm {{ {servers} keepalive 512; keepalive_requests 100000000; }}\n"
        f"  server {{\n    listen 127.0.0.1:{port};\n"
        '    location / { proxy_pass http://vllm; proxy_http_version 1.1; proxy_set_header Connection "";'
        " proxy_buffering off; proxy_read_timeout 600s; }\n  }\n}\n",
    )
    return Target(
        FLOOR,
        "nginx, the floor",
        (str(program), "-c", file),
        port,
        note="passes bytes on; round robin over 4",
    )


# ------------------------------------------------------------------------------------------------ the peers
def _vllm_router(place: Place) -> Target:
    port = free_port()
    program = place.peers / "vllm-router/bin/vllm-router"
    return Target(
        "vllm-router",
        _titled(place, "vllm-router", "vllm_router"),
        (str(program), *_rust_router(place, port), "--log-level", "warning"),
        port,
        note="Rust; round robin over 4; no keys, no accounting",
    )


def _sglang_router(place: Place) -> Target:
    port = free_port()
    program = place.peers / "sglang-router/bin/python"
    command = (str(program), "-m", "sglang_router.launch_router", *_rust_router(place, port))
    return Target(
        "sglang-router",
        _titled(place, "sglang-router", "sglang_router"),
        (*command, "--backend", "openai", "--log-level", "warn"),
        port,
        note="Rust; round robin over 4; no keys, no accounting",
    )


def _rust_router(place: Place, port: int) -> tuple[str, ...]:
    common = ("--host", "127.0.0.1", "--port", str(port), "--worker-urls", *place.upstreams)
    return (*common, "--policy", "round_robin", "--prometheus-port", str(free_port()))


def _tensorzero(place: Place) -> Target:
    provider = {"type": "vllm", "model_name": MODEL, "api_base": f"{place.upstreams[0]}/v1"}
    lines = "".join(f'{name} = "{value}"\n' for name, value in provider.items())
    config = place.write(
        "tensorzero.toml",
        "[gateway]\nobservability.enabled = false\n"
        f'[models.{MODEL}]\nrouting = ["v"]\n'
        f'[models.{MODEL}.providers.v]\n{lines}api_key_location = "none"\n',
    )
    port_file = place.folder / "tensorzero.port"
    # The only gateway inside the wheel is the one that patch_openai_client starts in the process.
    script = place.write(
        "tensorzero_gateway.py",
        "import asyncio, pathlib, warnings\nimport openai, tensorzero\nwarnings.simplefilter('ignore')\n"
        "async def main():\n    client = openai.AsyncOpenAI(api_key='x')\n"
        f"    await tensorzero.patch_openai_client(client, config_file={config!r}, async_setup=True)\n"
        f"    pathlib.Path({str(port_file)!r}).write_text(str(client.base_url.port))\n"
        "    await asyncio.sleep(1e6)\nasyncio.run(main())\n",
    )
    return Target(
        "tensorzero",
        _titled(place, "tensorzero", "tensorzero"),
        (str(place.peers / "tensorzero/bin/python"), script),
        0,
        model=f"tensorzero::model_name::{MODEL}",
        path="/openai/v1/chat/completions",
        port_file=port_file,
        note="Rust, embedded; one upstream; observability off",
    )


def _portkey(place: Place) -> Target:
    port = free_port()
    start = place.peers / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    version = json.loads((start.parent.parent / "package.json").read_text())["version"]
    return Target(
        "portkey",
        f"portkey {version}",
        ("node", str(start), f"--port={port}", "--headless"),
        port,
        headers=(
            "x-portkey-provider: openai",
            f"x-portkey-custom-host: {place.upstreams[0]}/v1",
            "authorization: Bearer sk-none",
        ),
        environment={"NODE_ENV": "production"},
        note="node; one upstream; no accounting",
    )


def _litellm(place: Place) -> Target:
    port = free_port()
    deployments = "".join(
        f"  - model_name: {MODEL}\n    litellm_params:\n      model: hosted_vllm/{MODEL}\n"
        f"      api_base: {url}/v1\n      api_key: sk-none\n"
        for url in place.upstreams
    )
    config = place.write("litellm.yaml", f"model_list:\n{deployments}litellm_settings:\n  telemetry: false\n")
    program = place.peers / "litellm/bin/litellm"
    return Target(
        "litellm",
        _titled(place, "litellm", "litellm"),
        (str(program), "--config", config, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
        port,
        headers=(f"authorization: Bearer {_MASTER_KEY}",),
        environment={
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MASTER_KEY": _MASTER_KEY,
        },
        note="Python; shuffle over 4; master key only: no database, no budgets, no spend log",
    )


_PEERS: Final[dict[str, tuple[str, Callable[[Place], Target]]]] = {
    "vllm-router": ("vllm-router/bin/vllm-router", _vllm_router),
    "sglang-router": ("sglang-router/bin/python", _sglang_router),
    "tensorzero": ("tensorzero/bin/python", _tensorzero),
    "portkey": ("portkey/node_modules/@portkey-ai/gateway/build/start-server.js", _portkey),
    "litellm": ("litellm/bin/litellm", _litellm),
}
"""What shows that a peer is installed, and how it is described."""

NAMES: Final = (FLOOR, OURS, *_PEERS)


def peers(place: Place) -> tuple[list[Target], dict[str, str]]:
    """The peers that are installed; by name of those that are not, the command that installs them."""
    found, missing = [], {}
    for name, (sign, describe) in _PEERS.items():
        if (place.peers / sign).exists():
            found.append(describe(place))
        else:
            missing[name] = f"{SCRIPT} {name}"
    return found, missing


def _titled(place: Place, environment: str, distribution: str) -> str:
    """Name and version, as the environment's own metadata say."""
    site = next((place.peers / environment / "lib").glob("python*/site-packages"), None)
    found = next(site.glob(f"{distribution}-*.dist-info"), None) if site is not None else None
    version = found.name.removesuffix(".dist-info").rpartition("-")[2] if found is not None else "unknown"
    return f"{environment} {version}"
