"""A program that answers as a vLLM 0.32 server does, and misbehaves when told to.

    python -m tests.support.mock_vllm --port 0 --model tollgate-reference --speculative 3

Prints `listening on http://127.0.0.1:PORT` first, then `control on http://127.0.0.1:PORT`: the control port
answers GET /_stats and POST /_control whatever fault is on (they work on the first port too, unless it
refuses).
"""

import argparse
import asyncio
import os
import signal
import sys

from tests.support.mock_vllm_faults import FaultError, Faults, catalogue_text, parse_switch
from tests.support.mock_vllm_requests import ServerProfile
from tests.support.mock_vllm_server import MockServer

_EXAMPLES = """\
examples:
  python -m tests.support.mock_vllm --port 8001
  python -m tests.support.mock_vllm --port 0 --model llama --model llama-70b --ttft-ms 80 --tpot-ms 12
  python -m tests.support.mock_vllm --port 0 --speculative 3 --acceptance 0.7
  python -m tests.support.mock_vllm --port 0 --fault status=503,2 --fault unhealthy
  curl -d '{"fault": "die_mid_stream", "value": 3, "times": 1}' http://127.0.0.1:8001/_control
  curl -d '{"ttft_ms": 500, "gauges": {"num_requests_waiting": 12}}' http://127.0.0.1:8001/_control
  curl -d '{"clear": true, "reset": true}' http://127.0.0.1:8001/_control
  curl http://127.0.0.1:8001/_stats

faults (--fault NAME[=VALUE], or "fault", "value" and "times" in POST /_control):
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.mock_vllm",
        description="Answer as a vLLM 0.32 server does, and misbehave when told to.",
        epilog=_EXAMPLES + catalogue_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="port on 127.0.0.1; 0 (default) chooses a free one")
    add(
        "--model",
        action="append",
        help="served name, may be repeated; the first is echoed (tollgate-reference)",
    )
    add("--max-model-len", type=int, default=2048, help="context length in tokens (default 2048)")
    add(
        "--tokens", type=int, default=16, help="length of an answer that max_tokens does not cut (default 16)"
    )
    add(
        "--speculative",
        type=int,
        nargs="?",
        const=3,
        default=0,
        metavar="K",
        help="K draft tokens per step (3)",
    )
    add(
        "--acceptance",
        type=float,
        default=0.6,
        help="chance that a draft token is accepted, 0 to 1 (default 0.6)",
    )
    add("--ttft-ms", type=float, default=0.0, help="time to the first token (default 0)")
    add("--step-ms", type=float, default=0.0, help="time per engine step, instead of per token (default 0)")
    add("--tpot-ms", type=float, default=0.0, help="time per further token (default 0)")
    add("--api-key", help="demand this bearer token under /v1")
    add("--max-num-queued-reqs", type=int, help="503 for requests beyond this many at once")
    add("--enable-auto-tool-choice", action="store_true", help='tool_choice "auto" calls the first tool')
    add("--no-request-metrics", action="store_true", help="as without --enable-per-request-metrics")
    add("--no-prompt-tokens-details", action="store_true", help="as without --enable-prompt-tokens-details")
    add("--no-prefix-cache", action="store_true", help="never report cached tokens")
    add("--sleep-mode", type=float, metavar="WAKE_S", help="with /sleep and /wake_up, which takes so long")
    add(
        "--keep-alive-s",
        type=float,
        default=5.0,
        help="close idle connections after this (default 5, as vLLM)",
    )
    add(
        "--fault",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="misbehave from the start; see below",
    )
    add("--exit-with-stdin", action="store_true", help="end when standard input is closed (the parent died)")
    return parser


def profile_of(args: argparse.Namespace) -> ServerProfile:
    """What the command line asks for."""
    return ServerProfile(
        models=tuple(args.model or ["tollgate-reference"]),
        max_model_len=args.max_model_len,
        answer_tokens=args.tokens,
        draft_tokens=args.speculative,
        acceptance=args.acceptance,
        ttft_ms=args.ttft_ms,
        tpot_ms=args.tpot_ms,
        step_ms=args.step_ms,
        has_request_metrics=not args.no_request_metrics,
        has_prompt_tokens_details=not args.no_prompt_tokens_details,
        has_auto_tools=args.enable_auto_tool_choice,
        has_prefix_cache=not args.no_prefix_cache,
        api_key=args.api_key,
        queued_requests_max=args.max_num_queued_reqs,
        wake_s=args.sleep_mode,
        keep_alive_s=args.keep_alive_s,
    )


async def run(args: argparse.Namespace, faults: Faults) -> None:
    """Serve until a signal or the parent's end."""
    loop = asyncio.get_running_loop()
    mock = MockServer(profile_of(args), faults)
    serving = await loop.create_server(mock.connection, "127.0.0.1", args.port, backlog=2048)
    control = await loop.create_server(mock.control_connection, "127.0.0.1", 0)
    sys.stdout.write(f"listening on http://127.0.0.1:{serving.sockets[0].getsockname()[1]}\n")
    sys.stdout.write(f"control on http://127.0.0.1:{control.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    if args.exit_with_stdin:
        loop.add_reader(
            sys.stdin.fileno(), lambda: None if os.read(sys.stdin.fileno(), 4096) else ended.set()
        )
    await ended.wait()
    # Not wait_closed(): a client that holds its connection open must not keep a mock alive.
    serving.close()
    control.close()


def main() -> int:
    """Run the program."""
    args = build_parser().parse_args()
    faults = Faults()
    try:
        for written in args.fault:
            faults.switch(parse_switch(written))
    except FaultError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    asyncio.run(run(args, faults))
    return 0


if __name__ == "__main__":
    sys.exit(main())
