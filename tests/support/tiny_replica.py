"""A stand-in for a vLLM server: quick to start, with a child of its own, and as naughty as a test asks.

    python tests/support/tiny_replica.py --port 8001 [--misbehave …]

Speaks /health, /metrics, /v1/models and /v1/completions. Like vLLM it has an "engine": a child process that
outlives it unless somebody ends it, and that ignores SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ENGINE = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"

METRICS = """\
vllm:num_requests_running{engine="0"} 1.0
vllm:num_requests_waiting{engine="0"} 0.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:prompt_tokens_total{engine="0"} 10.0
vllm:generation_tokens_total{engine="0"} 20.0
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sulk_file: Path | None = None

    def do_GET(self) -> None:
        if self.path == "/health":
            if self.sulk_file is not None and self.sulk_file.exists():
                time.sleep(3600)
            self.answer("")
        elif self.path == "/metrics":
            self.answer(METRICS.replace("} 1.0", "} 0.0"))  # nothing is under way
        elif self.path == "/v1/models":
            self.answer(json.dumps({"data": [{"id": "reference"}]}))
        else:
            self.answer("", status=404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/completions":
            self.answer(json.dumps({"choices": [{"text": "1"}], "usage": {"completion_tokens": 1}}))
        else:
            self.answer("", status=404)

    def answer(self, body: str, *, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fail", help="print this many lines and end with status 3")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--sulk-file", type=Path, help="hang on /health while this file exists")
    options = parser.parse_args()
    print(f"tiny replica, pid {os.getpid()}, on port {options.port}", flush=True)
    if options.fail is not None:
        for number in range(int(options.fail)):
            print(f"complaint {number}", flush=True)
        sys.exit(3)
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", ENGINE])
    Handler.sulk_file = options.sulk_file
    Server(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
