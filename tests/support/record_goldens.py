"""What does a real vLLM answer? Records raw HTTP exchanges as golden files.

    python tests/support/record_goldens.py --url http://127.0.0.1:8000 --out tests/support/golden

Run once against a plain and once against a speculative server, both with --served-model-name
tollgate-reference, --max-model-len 2048, --enable-per-request-metrics and --enable-prompt-tokens-details,
the speculative one also with --per-request-spec-decode-metrics summary. The files go to OUT/plain or
OUT/speculative, by what /metrics shows. Then once with --enable-auto-tool-choice --tool-call-parser hermes,
as `--folder tools --only tool`.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    # Run as a file, it finds its sisters from the repository root.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.mock_vllm_exchange import Ask, exchange, save

MODEL: Final = "tollgate-reference"
CONTEXT: Final = 2048
TIMEOUT_S: Final = 300.0
HELLO: Final = [{"role": "user", "content": "Say what the café sells, please."}]
SCHEMA: Final = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "is_open": {"type": "boolean"}},
    "required": ["name", "is_open"],
    "additionalProperties": False,
}
# Leaves no freedom, so that even a model that cannot call tools completes the call.
ARGUMENTS: Final = {
    "type": "object",
    "properties": {"name": {"type": "string", "enum": ["tea"]}},
    "required": ["name"],
    "additionalProperties": False,
}
TOOL: Final = {"type": "function", "function": {"name": "look_up", "strict": True, "parameters": ARGUMENTS}}
USAGE: Final = {"stream": True, "stream_options": {"include_usage": True}}
CONTINUOUS: Final = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
TWO: Final = {"n": 2, "temperature": 1.0, "seed": 7}


def chat(**changes: Any) -> Ask:
    """A chat request; a value of ... removes the field."""
    body = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_tokens": 8} | changes
    return _post("/v1/chat/completions", {name: value for name, value in body.items() if value is not ...})


def text(**changes: Any) -> Ask:
    """A completion request; a value of ... removes the field."""
    body = {"model": MODEL, "prompt": "The café sells", "temperature": 0, "max_tokens": 8} | changes
    return _post("/v1/completions", {name: value for name, value in body.items() if value is not ...})


def _post(path: str, body: dict[str, Any]) -> Ask:
    return Ask("POST", path, json.dumps(body, ensure_ascii=False))


def answers() -> Iterator[tuple[str, Ask]]:
    """What a server answers with text."""
    yield "chat", chat()
    yield "chat_default_length", chat(max_completion_tokens=3, max_tokens=...)
    yield "chat_stream", chat(stream=True)
    yield "chat_stream_usage", chat(**USAGE)
    yield "chat_stream_continuous_usage", chat(**CONTINUOUS)
    yield "chat_n2", chat(**TWO)
    yield "chat_stream_n2", chat(**TWO, stream=True)
    yield "chat_stream_n2_usage", chat(**TWO, **USAGE)
    yield "chat_logprobs", chat(logprobs=True, top_logprobs=1)
    yield "chat_stream_logprobs", chat(logprobs=True, top_logprobs=1, stream=True)
    yield "chat_stop", chat(stop=["e"], max_tokens=400)
    yield "chat_json_object", chat(response_format={"type": "json_object"}, max_tokens=64)
    wanted = {"type": "json_schema", "json_schema": {"name": "shop", "schema": SCHEMA, "strict": True}}
    yield "chat_json_schema", chat(response_format=wanted, max_tokens=64)
    yield "chat_json_schema_stream", chat(response_format=wanted, max_tokens=64, **USAGE)
    yield "chat_tool_required", chat(tools=[TOOL], tool_choice="required", max_tokens=60)
    named = {"type": "function", "function": {"name": "look_up"}}
    yield "chat_tool_named", chat(tools=[TOOL], tool_choice=named, max_tokens=128)
    yield "chat_tool_named_stream", chat(tools=[TOOL], tool_choice=named, max_tokens=128, **USAGE)
    yield "chat_tool_required_stream", chat(tools=[TOOL], tool_choice="required", max_tokens=60, stream=True)
    yield "chat_tool_none", chat(tools=[TOOL], tool_choice="none")
    yield (
        "chat_request_id",
        Ask("POST", "/v1/chat/completions", chat().body, (*chat().headers, ("x-request-id", "req-0123"))),
    )
    yield (
        "chat_ignored_fields",
        chat(
            metadata={"team": "a"},
            user="u1",
            service_tier="flex",
            store=True,
            safety_identifier="s",
            cache_salt="ab12",
        ),
    )
    yield "chat_ignored_bad_fields", chat(metadata="text", service_tier=7, store="maybe")
    yield "chat_removed_guided_json", chat(guided_json=SCHEMA)
    yield "chat_no_model", chat(model=...)
    yield (
        "chat_content_parts",
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}]),
    )
    yield "chat_unknown_role", chat(messages=[{"role": "wizard", "content": "hello"}])
    yield "chat_null_content", chat(messages=[{"role": "user", "content": None}])
    yield "chat_numbers_as_text", chat(max_tokens="8", temperature="0", stream="false")
    yield "completion", text()
    yield "completion_default_length", text(max_tokens=None)
    yield "completion_stream", text(stream=True)
    yield "completion_stream_usage", text(**USAGE)
    yield "completion_stream_continuous_usage", text(**CONTINUOUS)
    yield "completion_array", text(prompt=["The café", "Two clerks count"])
    yield "completion_array_stream", text(prompt=["The café", "Two clerks count"], **USAGE)
    yield "completion_token_ids", text(prompt=[5, 6, 7, 8])
    yield "completion_token_ids_array", text(prompt=[[5, 6, 7], [8, 9]])
    yield "completion_n2", text(**TWO)
    yield "completion_logprobs", text(logprobs=1)
    yield "completion_stream_logprobs", text(logprobs=1, stream=True)


def refusals() -> Iterator[tuple[str, Ask]]:
    """What a server refuses, and what one might think it refuses."""
    path = "/v1/chat/completions"
    yield "bad_json", Ask("POST", path, '{"model": ')
    yield "bad_json_not_object", Ask("POST", path, "[1, 2]")
    yield "bad_json_empty", Ask("POST", path, "")
    yield "bad_content_type", Ask("POST", path, chat().body, (("content-type", "text/plain"),))
    yield "bad_model", chat(model="nobody")
    yield "bad_model_stream", chat(model="nobody", stream=True)
    yield "bad_model_type", chat(model=7)
    yield "completion_bad_model", text(model="nobody")
    yield "bad_messages_missing", chat(messages=...)
    yield "bad_messages_type", chat(messages="hello")
    yield "bad_messages_empty", chat(messages=[])
    yield "bad_message_type", chat(messages=["hello"])
    yield "bad_message_without_role", chat(messages=[{"content": "hello"}])
    yield "bad_content_type_of_message", chat(messages=[{"role": "user", "content": 7}])
    yield "bad_max_tokens_text", chat(max_tokens="many")
    yield "bad_max_tokens_fraction", chat(max_tokens=8.5)
    yield "bad_max_tokens_list", chat(max_tokens=[8])
    yield "bad_max_tokens_zero", chat(max_tokens=0)
    yield "bad_max_tokens_negative", chat(max_tokens=-1)
    yield "bad_temperature_text", chat(temperature="hot")
    yield "bad_temperature_negative", chat(temperature=-1)
    yield "bad_temperature_high", chat(temperature=3)
    yield "bad_top_p", chat(top_p=2)
    yield "bad_n_zero", chat(n=0)
    yield "bad_n_greedy", chat(n=2)
    yield "bad_stream_text", chat(stream="perhaps")
    yield "bad_stream_options", chat(stream_options={"include_usage": True})
    yield "bad_user_type", chat(user=7)
    yield "bad_stop_too_many", chat(stop=["a", "b", "c", "d", "e"])
    yield "bad_cache_salt_empty", chat(cache_salt="")
    yield "bad_cache_salt_type", chat(cache_salt=7)
    yield "bad_cache_salt_slash", chat(cache_salt="a/b")
    yield "bad_cache_salt_long", chat(cache_salt="x" * 129)
    yield "bad_top_logprobs", chat(top_logprobs=2)
    yield "bad_response_format", chat(response_format={"type": "xml"})
    yield "bad_json_schema_missing", chat(response_format={"type": "json_schema"})
    yield "bad_tools_empty", chat(tools=[])
    yield "chat_tool_auto", chat(tools=[TOOL])
    yield "bad_tool_choice_without_tools", chat(tool_choice="required")
    yield (
        "bad_tool_unknown",
        chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "other"}}),
    )


def engine_refusals() -> Iterator[tuple[str, Ask]]:
    """What only a speculative engine refuses: within a stream that has begun, if it is one."""
    yield "min_p", chat(min_p=0.1, temperature=0.8)
    yield "min_p_stream", chat(min_p=0.1, temperature=0.8, **USAGE)
    yield "min_p_greedy", chat(min_p=0.1)
    yield "logit_bias", chat(logit_bias={"5": 10})
    yield "logit_bias_stream", chat(logit_bias={"5": 10}, stream=True)
    yield "completion_min_p_stream", text(min_p=0.1, temperature=0.8, stream=True)


def prompt_refusals() -> Iterator[tuple[str, Ask]]:
    """Prompts of completions that are refused."""
    yield "completion_prompt_missing", text(prompt=...)
    yield "completion_prompt_empty", text(prompt="")
    yield "completion_prompt_list_empty", text(prompt=[])
    yield "completion_prompt_type", text(prompt=7)
    yield "completion_token_id_out_of_range", text(prompt=[10_000_000])


def context_limits(url: str) -> Iterator[tuple[str, Ask]]:
    """What happens where prompt and max_tokens meet the context length."""
    yield "limit_max_tokens_over_context", chat(max_tokens=CONTEXT + 1)
    yield "limit_max_completion_tokens_over_context", chat(max_tokens=..., max_completion_tokens=9999)
    yield "limit_max_tokens_over_context_stream", chat(max_tokens=9999, stream=True)
    yield "limit_completion_max_tokens_over_context", text(max_tokens=9999)
    yield "limit_completion_clamped", text(prompt=[5] * (CONTEXT - 8), max_tokens=100, ignore_eos=True)
    yield "limit_completion_one_left", text(prompt=[5] * (CONTEXT - 1), max_tokens=100)
    yield "limit_completion_full", text(prompt=[5] * CONTEXT, max_tokens=100)
    yield "limit_completion_full_stream", text(prompt=[5] * CONTEXT, max_tokens=100, stream=True)
    yield "limit_completion_too_long", text(prompt=[5] * (CONTEXT + 1), max_tokens=100)
    words = words_that_leave(url, 8)
    yield "limit_chat_clamped", chat(messages=_words(words), max_tokens=100, ignore_eos=True)
    yield "limit_chat_clamped_stream", chat(messages=_words(words), max_tokens=100, ignore_eos=True, **USAGE)
    yield "limit_chat_without_max_tokens", chat(messages=_words(words), max_tokens=..., ignore_eos=True)
    yield "limit_chat_too_long", chat(messages=_words(words + 1000))
    yield "limit_chat_too_long_stream", chat(messages=_words(words + 1000), stream=True)
    yield "limit_chat_far_too_long", chat(messages=_words(200_000))


def _words(count: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": " ".join(["tea"] * count)}]


def words_that_leave(url: str, left: int) -> int:
    """How many words make a chat prompt that leaves about so many tokens of the context."""
    sizes = []
    for count in (100, 200):
        ask = _post("/tokenize", {"model": MODEL, "messages": _words(count)})
        sizes.append(json.loads(exchange(url, ask, TIMEOUT_S).body)["count"])
    each = (sizes[1] - sizes[0]) / 100
    return int((CONTEXT - left - (sizes[0] - 100 * each)) / each)


def pages() -> Iterator[tuple[str, Ask]]:
    """Everything that is not generation; /metrics last, when it has something to count."""
    for name, path in (
        ("health", "/health"),
        ("version", "/version"),
        ("models", "/v1/models"),
        ("load", "/load"),
    ):
        yield name, Ask("GET", path, headers=())
    yield "ping", Ask("GET", "/ping", headers=())
    yield "not_found", Ask("GET", "/v1/nothing", headers=())
    yield "not_allowed_get", Ask("GET", "/v1/chat/completions", headers=())
    yield "not_allowed_post", Ask("POST", "/v1/models", "{}")
    yield "metrics", Ask("GET", "/metrics", headers=())


def _all(url: str) -> Iterator[tuple[str, Ask]]:
    for part in (answers(), refusals(), engine_refusals(), prompt_refusals(), context_limits(url), pages()):
        yield from part


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", required=True, help="base URL of a running vLLM")
    parser.add_argument("--out", required=True, type=Path, help="folder of the golden files")
    parser.add_argument("--only", help="only exchanges whose name contains this")
    parser.add_argument("--folder", help="folder below OUT, instead of plain or speculative")
    args = parser.parse_args()
    page = exchange(args.url, Ask("GET", "/metrics", headers=()), TIMEOUT_S).body
    folder = args.out / (args.folder or ("speculative" if b"vllm:spec_decode_" in page else "plain"))
    for name, ask in _all(args.url):
        if args.only and args.only not in name:
            continue
        reply = exchange(args.url, ask, TIMEOUT_S)
        save(folder / f"{name}.json", ask, reply)
        print(f"{reply.status} {name}: {reply.body[-160:]!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
