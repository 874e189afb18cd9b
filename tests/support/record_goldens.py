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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    # Run as a file, it finds its sisters from the repository root.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.mock_vllm_exchange import Ask, exchange, save

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
# Always eight tokens, so that a recording does not depend on what the model has to say.
FIXED_LENGTH: Final = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
# The same for an end of its own: there is nothing else to say.
FREE_TO_END: Final = {"ignore_eos": ..., "max_tokens": 64}
TWO: Final = {"n": 2, "temperature": 1.0, "seed": 7}


def _post(path: str, body: dict[str, Any]) -> Ask:
    return Ask("POST", path, json.dumps(body, ensure_ascii=False))


def _words(count: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": " ".join(["tea"] * count)}]


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked, in the terms of one server."""

    url: str
    model: str
    context: int

    @classmethod
    def to(cls, url: str) -> "Questions":
        """For the server at this base URL."""
        card = json.loads(exchange(url, Ask("GET", "/v1/models", headers=()), TIMEOUT_S).body)["data"][0]
        return cls(url, card["id"], card["max_model_len"])

    def all(self) -> Iterator[tuple[str, Ask]]:
        """Every request by name; /metrics last, when it has something to count."""
        yield from self.answers()
        yield from self.refusals()
        yield from self.engine_refusals()
        yield from self.prompt_refusals()
        yield from self.context_limits()
        yield from self.pages()

    def chat(self, **changes: Any) -> Ask:
        """A chat request; a value of ... removes the field."""
        body = {"model": self.model, "messages": HELLO} | FIXED_LENGTH | changes
        return _post(
            "/v1/chat/completions", {name: value for name, value in body.items() if value is not ...}
        )

    def text(self, **changes: Any) -> Ask:
        """A completion request; a value of ... removes the field."""
        body = {"model": self.model, "prompt": "The café sells"} | FIXED_LENGTH | changes
        return _post("/v1/completions", {name: value for name, value in body.items() if value is not ...})

    def answers(self) -> Iterator[tuple[str, Ask]]:
        """What a server answers with text."""
        yield "chat", self.chat()
        yield "chat_default_length", self.chat(max_completion_tokens=3, max_tokens=...)
        yield "chat_stream", self.chat(stream=True)
        yield "chat_stream_usage", self.chat(**USAGE)
        yield "chat_stream_continuous_usage", self.chat(**CONTINUOUS)
        yield "chat_n2", self.chat(**TWO)
        yield "chat_stream_n2", self.chat(**TWO, stream=True)
        yield "chat_stream_n2_usage", self.chat(**TWO, **USAGE)
        yield "chat_logprobs", self.chat(logprobs=True, top_logprobs=1)
        yield "chat_stream_logprobs", self.chat(logprobs=True, top_logprobs=1, stream=True)
        one_word = {"structured_outputs": {"choice": ["The café beside the harbour sells tea."]}}
        yield "chat_stop_by_itself", self.chat(**one_word, **FREE_TO_END)
        yield "chat_stop_by_itself_stream", self.chat(**one_word, **FREE_TO_END, stream=True)
        yield "chat_stop", self.chat(**one_word, **FREE_TO_END, stop=["never", "sells"])
        yield "chat_stop_stream", self.chat(**one_word, **FREE_TO_END, stop="sells", stream=True)
        yield "completion_stop", self.text(**one_word, **FREE_TO_END, stop="sells")
        yield "chat_json_object", self.chat(response_format={"type": "json_object"}, **FREE_TO_END)
        wanted = {"type": "json_schema", "json_schema": {"name": "shop", "schema": SCHEMA, "strict": True}}
        yield "chat_json_schema", self.chat(response_format=wanted, **FREE_TO_END)
        yield "chat_json_schema_stream", self.chat(response_format=wanted, **FREE_TO_END, **USAGE)
        yield (
            "chat_tool_required",
            self.chat(tools=[TOOL], tool_choice="required", ignore_eos=..., max_tokens=60),
        )
        named = {"type": "function", "function": {"name": "look_up"}}
        yield "chat_tool_named", self.chat(tools=[TOOL], tool_choice=named, ignore_eos=..., max_tokens=128)
        yield (
            "chat_tool_named_stream",
            self.chat(tools=[TOOL], tool_choice=named, ignore_eos=..., max_tokens=128, **USAGE),
        )
        yield (
            "chat_tool_required_stream",
            self.chat(tools=[TOOL], tool_choice="required", ignore_eos=..., max_tokens=60, stream=True),
        )
        yield "chat_tool_none", self.chat(tools=[TOOL], tool_choice="none")
        yield (
            "chat_request_id",
            Ask(
                "POST",
                "/v1/chat/completions",
                self.chat().body,
                (*self.chat().headers, ("x-request-id", "req-0123")),
            ),
        )
        yield (
            "chat_ignored_fields",
            self.chat(
                metadata={"team": "a"},
                user="u1",
                service_tier="flex",
                store=True,
                safety_identifier="s",
                cache_salt="ab12",
            ),
        )
        yield "chat_ignored_bad_fields", self.chat(metadata="text", service_tier=7, store="maybe")
        yield "chat_removed_guided_json", self.chat(guided_json=SCHEMA)
        yield "chat_no_model", self.chat(model=...)
        yield (
            "chat_content_parts",
            self.chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}]),
        )
        yield "chat_unknown_role", self.chat(messages=[{"role": "wizard", "content": "hello"}])
        yield "chat_null_content", self.chat(messages=[{"role": "user", "content": None}])
        yield "chat_numbers_as_text", self.chat(max_tokens="8", temperature="0", stream="false")
        yield from self._text_answers()

    def _text_answers(self) -> Iterator[tuple[str, Ask]]:
        """What a server completes."""
        yield "completion", self.text()
        yield "completion_default_length", self.text(max_tokens=None)
        yield "completion_stream", self.text(stream=True)
        yield "completion_stream_usage", self.text(**USAGE)
        yield "completion_stream_continuous_usage", self.text(**CONTINUOUS)
        yield "completion_array", self.text(prompt=["The café", "Two clerks count"])
        yield "completion_array_stream", self.text(prompt=["The café", "Two clerks count"], **USAGE)
        yield "completion_token_ids", self.text(prompt=[5, 6, 7, 8])
        yield "completion_token_ids_array", self.text(prompt=[[5, 6, 7], [8, 9]])
        yield "completion_n2", self.text(**TWO)
        yield "completion_logprobs", self.text(logprobs=1)
        yield "completion_stream_logprobs", self.text(logprobs=1, stream=True)

    def refusals(self) -> Iterator[tuple[str, Ask]]:
        """What a server refuses, and what one might think it refuses."""
        path = "/v1/chat/completions"
        yield "bad_json", Ask("POST", path, '{"model": ')
        yield "bad_json_not_object", Ask("POST", path, "[1, 2]")
        yield "bad_json_empty", Ask("POST", path, "")
        yield "bad_content_type", Ask("POST", path, self.chat().body, (("content-type", "text/plain"),))
        yield "bad_model", self.chat(model="nobody")
        yield "bad_model_stream", self.chat(model="nobody", stream=True)
        yield "bad_model_type", self.chat(model=7)
        yield "completion_bad_model", self.text(model="nobody")
        yield "bad_messages_missing", self.chat(messages=...)
        yield "bad_messages_type", self.chat(messages="hello")
        yield "bad_messages_empty", self.chat(messages=[])
        yield "bad_message_type", self.chat(messages=["hello"])
        yield "bad_message_without_role", self.chat(messages=[{"content": "hello"}])
        yield "bad_content_type_of_message", self.chat(messages=[{"role": "user", "content": 7}])
        yield "bad_max_tokens_text", self.chat(max_tokens="many")
        yield "bad_max_tokens_fraction", self.chat(max_tokens=8.5)
        yield "bad_max_tokens_list", self.chat(max_tokens=[8])
        yield "bad_max_tokens_zero", self.chat(max_tokens=0)
        yield "bad_max_tokens_negative", self.chat(max_tokens=-1)
        yield "bad_temperature_text", self.chat(temperature="hot")
        yield "bad_temperature_negative", self.chat(temperature=-1)
        yield "bad_temperature_high", self.chat(temperature=3)
        yield "bad_top_p", self.chat(top_p=2)
        yield "bad_n_zero", self.chat(n=0)
        yield "bad_n_greedy", self.chat(n=2)
        yield "bad_stream_text", self.chat(stream="perhaps")
        yield "bad_stream_options", self.chat(stream_options={"include_usage": True})
        yield "bad_user_type", self.chat(user=7)
        yield "bad_stop_too_many", self.chat(stop=["a", "b", "c", "d", "e"])
        yield "bad_cache_salt_empty", self.chat(cache_salt="")
        yield "bad_cache_salt_type", self.chat(cache_salt=7)
        yield "bad_cache_salt_slash", self.chat(cache_salt="a/b")
        yield "bad_cache_salt_long", self.chat(cache_salt="x" * 129)
        yield "bad_top_logprobs", self.chat(top_logprobs=2)
        yield "bad_response_format", self.chat(response_format={"type": "xml"})
        yield "bad_json_schema_missing", self.chat(response_format={"type": "json_schema"})
        yield "bad_tools_empty", self.chat(tools=[])
        yield "chat_tool_auto", self.chat(tools=[TOOL])
        yield "bad_tool_choice_without_tools", self.chat(tool_choice="required")
        yield (
            "bad_tool_unknown",
            self.chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "other"}}),
        )

    def engine_refusals(self) -> Iterator[tuple[str, Ask]]:
        """What only a speculative engine refuses: within a stream that has begun, if it is one."""
        yield "min_p", self.chat(min_p=0.1, temperature=0.8)
        yield "min_p_stream", self.chat(min_p=0.1, temperature=0.8, **USAGE)
        yield "min_p_greedy", self.chat(min_p=0.1)
        yield "logit_bias", self.chat(logit_bias={"5": 10})
        yield "logit_bias_stream", self.chat(logit_bias={"5": 10}, stream=True)
        yield "completion_min_p_stream", self.text(min_p=0.1, temperature=0.8, stream=True)

    def prompt_refusals(self) -> Iterator[tuple[str, Ask]]:
        """Prompts of completions that are refused."""
        yield "completion_prompt_missing", self.text(prompt=...)
        yield "completion_prompt_empty", self.text(prompt="")
        yield "completion_prompt_list_empty", self.text(prompt=[])
        yield "completion_prompt_type", self.text(prompt=7)
        yield "completion_token_id_out_of_range", self.text(prompt=[10_000_000])

    def context_limits(self) -> Iterator[tuple[str, Ask]]:
        """What happens where prompt and max_tokens meet the context length."""
        yield "limit_max_tokens_over_context", self.chat(max_tokens=self.context + 1)
        yield (
            "limit_max_completion_tokens_over_context",
            self.chat(max_tokens=..., max_completion_tokens=9999),
        )
        yield "limit_max_tokens_over_context_stream", self.chat(max_tokens=9999, stream=True)
        yield "limit_completion_max_tokens_over_context", self.text(max_tokens=9999)
        yield (
            "limit_completion_clamped",
            self.text(prompt=[5] * (self.context - 8), max_tokens=100),
        )
        yield "limit_completion_one_left", self.text(prompt=[5] * (self.context - 1), max_tokens=100)
        yield "limit_completion_full", self.text(prompt=[5] * self.context, max_tokens=100)
        yield (
            "limit_completion_full_stream",
            self.text(prompt=[5] * self.context, max_tokens=100, stream=True),
        )
        yield "limit_completion_too_long", self.text(prompt=[5] * (self.context + 1), max_tokens=100)
        words = self.words_that_leave(8)
        yield "limit_chat_clamped", self.chat(messages=_words(words), max_tokens=100)
        yield (
            "limit_chat_clamped_stream",
            self.chat(messages=_words(words), max_tokens=100, **USAGE),
        )
        yield (
            "limit_chat_without_max_tokens",
            self.chat(messages=_words(words), max_tokens=...),
        )
        yield "limit_chat_too_long", self.chat(messages=_words(words + 1000))
        yield "limit_chat_too_long_stream", self.chat(messages=_words(words + 1000), stream=True)
        yield "limit_chat_far_too_long", self.chat(messages=_words(10_000))

    def words_that_leave(self, left: int) -> int:
        """How many words make a chat prompt that leaves about so many tokens of the context."""
        sizes = []
        for count in (100, 200):
            ask = _post("/tokenize", {"model": self.model, "messages": _words(count)})
            sizes.append(json.loads(exchange(self.url, ask, TIMEOUT_S).body)["count"])
        each = (sizes[1] - sizes[0]) / 100
        return int((self.context - left - (sizes[0] - 100 * each)) / each)

    def pages(self) -> Iterator[tuple[str, Ask]]:
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
    for name, ask in Questions.to(args.url).all():
        if args.only and args.only not in name:
            continue
        reply = exchange(args.url, ask, TIMEOUT_S)
        save(folder / f"{name}.json", ask, reply)
        print(f"{reply.status} {name}: {reply.body[-160:]!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
