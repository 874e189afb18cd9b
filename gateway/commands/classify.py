"""`tollgate classify`: which tasks are these requests, and how is that known?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress

from gateway.commands.terminal import Json, load_pool_files, print_table
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.inference import Call, Endpoint
from gateway.protocols.openai import ParseLimits, parse_call
from gateway.routing.classify import classify as task_of
from gateway.routing.policy import Policy, load_policy
from gateway.settings import load_settings

SHOWN_CHARS = 60
LINES_PER_STEP = 200
_NO_LIMITS = ParseLimits(messages_max=100_000, choices_max=100_000)

tasks = typer.Typer(help="Tasks of requests.", no_args_is_help=True)


@tasks.command(
    "classify",
    short_help="Which tasks are these requests?",
    epilog="Example: `tollgate classify requests.jsonl --json > tasks.jsonl`",
)
def classify(
    file: Annotated[
        Path,
        typer.Argument(help='JSON lines: request bodies, or {"text": "…"}; "-" reads standard input'),
    ],
    *,
    as_json: Json = False,
) -> None:
    """Say for each request of a file its task, its nature, how that was found and how sure it is.

    With `--json` one JSON object per request. Nothing is sent anywhere; the policy in use says the natures.
    """
    settings = load_settings()
    policy = load_policy(settings.policy, pools=load_pool_files(settings))
    found = _judged(file, policy)
    if as_json:
        for each in found:
            sys.stdout.write(json.dumps(each) + "\n")
        return
    titles = ("line", "task", "nature", "source", "confidence", "text")
    rows = [
        (
            each["line"],
            each["task"],
            each["nature"],
            each["source"],
            f"{each['confidence']:.2f}",
            each["text"],
        )
        for each in found
    ]
    print_table(titles, rows)


def _judged(file: Path, policy: Policy) -> Iterator[dict[str, Any]]:
    """One answer per request, in the order of the file.

    Raises:
        ConfigurationError: the file cannot be read.
        InvalidRequest: a line is no request; names it.
    """
    lines = _lines(file)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("requests", total=len(lines))
        for number, line in enumerate(lines, start=1):
            if line.strip():
                call = _call(line, where=f"{file}:{number}")
                task = task_of(call, policy)
                yield {
                    "line": number,
                    "task": task.type.value,
                    "nature": policy.natures[task.type].value,
                    "source": task.source.value,
                    "confidence": task.confidence,
                    "text": " ".join(call.facts.instruction.split())[:SHOWN_CHARS],
                }
            if number % LINES_PER_STEP == 0:
                progress.update(bar, completed=number)


def _lines(file: Path) -> list[bytes]:
    try:
        return (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).splitlines()
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}") from None


def _call(line: bytes, *, where: str) -> Call:
    try:
        body = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{where}: not JSON: {error}; each line is one request") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f'{where}: not an object: write {{"text": "…"}} or a request body')
    if "messages" not in body and "prompt" not in body:
        text = body.pop("text", None)
        if not isinstance(text, str) or not text:
            raise InvalidRequest(f'{where}: neither "messages" nor "prompt" nor a "text" that is not empty')
        body["messages"] = [{"role": "user", "content": text}]
    body.setdefault("model", "auto")
    endpoint = Endpoint.COMPLETIONS if "prompt" in body else Endpoint.CHAT_COMPLETIONS
    try:
        return parse_call(endpoint, msgspec.json.encode(body), {}, limits=_NO_LIMITS)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error}") from None
