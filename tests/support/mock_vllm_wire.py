"""How does vLLM 0.32 write an answer down, byte for byte?

Pure: from what was asked and what is said to bodies and server-sent events, in vLLM's key order and with
its habits (no `usage` key before the usage chunk, fingerprint on the last chunk only, `total_tokens` before
`completion_tokens`). Checked against tests/support/golden, which a real server wrote.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from tests.support.mock_vllm_requests import Generation, ServerProfile, prompt_tokens
from tests.support.mock_vllm_text import Script

FINGERPRINT: Final = "vllm-0.32.0-5eedc0de"
DONE: Final = b"data: [DONE]\n\n"


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_TEXT_MARK: Final = "\0text\0"
_MARK_JSON: Final = _ENCODER.encode(_TEXT_MARK)


def compact(value: object) -> str:
    """JSON as vLLM's answers carry it: no blanks, text beyond ASCII as it is."""
    return _ENCODER.encode(value)


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return _ENCODER.encode(text)


def error_event(body: dict[str, Any]) -> bytes:
    """An error inside a stream; vLLM writes this one with blanks and ASCII escapes."""
    return f"data: {json.dumps(body)}\n\n".encode()


@dataclass(frozen=True, slots=True)
class Timing:
    """Measured times of one request, seconds."""

    ttft_s: float
    decode_s: float
    queue_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream."""

    kind: Literal["role", "content", "usage", "done"]
    data: bytes
    tokens: int = 0
    accepted: int | None = None
    """Draft tokens accepted in this step; None: no verify step."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that is said about one request, before any byte is written."""

    generation: Generation
    profile: ServerProfile
    answer_id: str
    created: int
    scripts: tuple[Script, ...]
    """One per choice: prompts times n."""
    cached_tokens: int

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens, all prompts."""
        return prompt_tokens(self.generation.prompts)

    @property
    def completion_tokens(self) -> int:
        """Output tokens, all choices."""
        return sum(script.tokens for script in self.scripts)

    def finish_reason(self, script: Script) -> str:
        """Why a choice ended."""
        if script.stop is not None:
            return "stop"
        if script.is_cut or script.tokens >= self.generation.limit_tokens:
            return "length"
        if self.generation.tool_name and not self.generation.is_named_tool:
            return "tool_calls"
        return "stop"

    # ------------------------------------------------------------------------------------- accounting
    def usage(self, completion_tokens: int) -> dict[str, Any]:
        """The three counts, in vLLM's order."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "completion_tokens": completion_tokens,
        }

    def metrics(self, timing: Timing) -> dict[str, Any] | None:
        """The per-request metrics; None when they cannot be attributed to one stream."""
        if not self.profile.has_request_metrics or len(self.scripts) != 1:
            return None
        tokens = self.completion_tokens
        whole_s = timing.ttft_s + timing.decode_s
        found: dict[str, Any] = {
            "time_to_first_token_ms": timing.ttft_s * 1000,
            "generation_time_ms": timing.decode_s * 1000,
            "queue_time_ms": timing.queue_s * 1000,
            "mean_itl_ms": timing.decode_s * 1000 / (tokens - 1) if tokens > 1 else None,
            "tokens_per_second": tokens / whole_s if whole_s > 0 else None,
            "speculative_decoding": None,
        }
        draft = self.profile.draft_tokens
        # A stop text is found by the front end, which aborts the request: the engine's count never arrives.
        if draft and self.scripts[0].stop is None:
            found["speculative_decoding"] = speculation(self.scripts[0].accepted, draft)
        return found

    # ------------------------------------------------------------------------------------ plain answers
    def plain(self, timing: Timing) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        usage = self.usage(self.completion_tokens)
        details: dict[str, Any] | None = None
        if self.profile.has_prompt_tokens_details:
            details = {"cached_tokens": self.cached_tokens}
            details |= {
                "created_cache_tokens": 0 if self.generation.is_chat else None,
                "multimodal_tokens": None,
            }
        usage |= {"prompt_tokens_details": details, "completion_tokens_details": None}
        is_chat = self.generation.is_chat
        choices = [
            self._chat_choice(index, script) if is_chat else self._text_choice(index, script)
            for index, script in enumerate(self.scripts)
        ]
        body: dict[str, Any] = {
            "id": self.answer_id,
            "object": "chat.completion" if is_chat else "text_completion",
            "created": self.created,
            "model": self.generation.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage,
        }
        if is_chat:
            body |= {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        metrics = self.metrics(timing)
        if metrics and metrics["speculative_decoding"]:
            metrics["speculative_decoding"] |= {"per_step_accepted": None, "per_step_drafted": None}
        return body | {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": metrics}

    def _chat_choice(self, index: int, script: Script) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self._content_beside_call() if self.generation.tool_name else script.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
        }
        if self.generation.tool_name:
            call = {"name": self.generation.tool_name, "arguments": script.text}
            message["tool_calls"] = [{"id": self._call_id(index), "type": "function", "function": call}]
        message["reasoning"] = None
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs([token for step in script.steps for token in step], 0),
            "finish_reason": self.finish_reason(script),
            "stop_reason": script.stop,
            "token_ids": None,
            "routed_experts": None,
        }

    def _text_choice(self, index: int, script: Script) -> dict[str, Any]:
        return {
            "index": index,
            "text": script.text,
            "logprobs": self._logprobs([token for step in script.steps for token in step], 0),
            "finish_reason": self.finish_reason(script),
            "stop_reason": script.stop,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "routed_experts": None,
        }

    def _content_beside_call(self) -> str | None:
        """Nothing is said beside a call; vLLM writes that as "" when the call was demanded."""
        return None if self.generation.is_free_to_call else ""

    def _call_id(self, index: int) -> str:
        return f"chatcmpl-tool-{self.answer_id.rpartition('-')[2][:14]}{index:02x}"

    def _logprobs(self, tokens: list[str], offset: int) -> dict[str, Any] | None:
        top = self.generation.top_logprobs
        if top is None:
            return None
        if not self.generation.is_chat:
            offsets = [offset]
            for token in tokens[:-1]:
                offsets.append(offsets[-1] + len(token))
            return {
                "text_offset": offsets,
                "token_logprobs": [-0.25] * len(tokens),
                "tokens": tokens,
                "top_logprobs": [{token: -0.25} for token in tokens],
            }
        entries = []
        for token in tokens:
            entry = {"token": token, "logprob": -0.25, "bytes": list(token.encode())}
            entries.append(entry | {"top_logprobs": [dict(entry)] * min(top, 1)})
        return {"content": entries}

    # ------------------------------------------------------------------------------------------ streams
    def events(self) -> Iterator[Event]:
        """The events up to the last content; usage_event and DONE follow."""
        generation = self.generation
        if generation.is_chat:
            for index in range(len(self.scripts)):
                yield Event("role", self._role_event(index))
        if generation.tool_name:
            yield from self._tool_events()
            return
        is_varying = generation.has_continuous_usage or generation.top_logprobs is not None
        # Events of one choice differ in their text only: write one, and put the texts in.
        moulds: dict[int, str] = {}
        said = [0] * len(self.scripts)
        offsets = [0] * len(self.scripts)
        for index, number in self._turns():
            script = self.scripts[index]
            step = script.steps[number]
            said[index] += len(step)
            is_last = number == len(script.steps) - 1
            if is_last or is_varying:
                data = self._text_event(index, step, said[index], offsets[index], is_last=is_last)
            else:
                if index not in moulds:
                    moulds[index] = self._text_event(index, (_TEXT_MARK,), 1, 0, is_last=False).decode()
                data = moulds[index].replace(_MARK_JSON, _quoted("".join(step))).encode()
            offsets[index] += sum(map(len, step))
            yield Event("content", data, len(step), script.accepted_at(number))

    def _turns(self) -> Iterator[tuple[int, int]]:
        """The choices take turns, step by step: (index of the choice, number of its step)."""
        for number in range(max(len(script.steps) for script in self.scripts)):
            for index, script in enumerate(self.scripts):
                if number < len(script.steps):
                    yield index, number

    def _tool_events(self) -> Iterator[Event]:
        """The name first, then the arguments piece by piece, then an empty delta with the end."""
        said = [0] * len(self.scripts)
        for index in range(len(self.scripts)):
            call = {"id": self._call_id(index), "type": "function", "index": 0}
            delta = {
                "content": None,
                "tool_calls": [call | {"function": {"name": self.generation.tool_name}}],
            }
            yield Event("content", self._choice_event(index, {"delta": delta}, said=0))
        for index, number in self._turns():
            script = self.scripts[index]
            step = script.steps[number]
            said[index] += len(step)
            call = {"index": 0, "function": {"arguments": "".join(step)}}
            data = self._choice_event(
                index, {"delta": {"content": None, "tool_calls": [call]}}, said=said[index]
            )
            yield Event("content", data, len(step), script.accepted_at(number))
        for index in range(len(self.scripts)):
            yield Event("content", self._choice_event(index, {"delta": {}}, said=said[index], is_last=True))

    def _role_event(self, index: int) -> bytes:
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        chunk = self._chunk([choice])
        if self.generation.has_continuous_usage:
            chunk["usage"] = self.usage(0) | {"completion_tokens_details": None}
        return _event(chunk | {"prompt_token_ids": None, "prompt_text": None})

    def _text_event(
        self, index: int, step: tuple[str, ...], said: int, offset: int, *, is_last: bool
    ) -> bytes:
        text = "".join(step)
        part: dict[str, Any] = {"delta": {"content": text}} if self.generation.is_chat else {"text": text}
        logprobs = self._logprobs(list(step), offset)
        return self._choice_event(index, part, said=said, logprobs=logprobs, is_last=is_last)

    def _choice_event(
        self,
        index: int,
        part: dict[str, Any],
        *,
        said: int,
        logprobs: dict[str, Any] | None = None,
        is_last: bool = False,
    ) -> bytes:
        is_chat = self.generation.is_chat
        choice: dict[str, Any] = {"index": index, **part, "logprobs": logprobs}
        choice["finish_reason"] = self.finish_reason(self.scripts[index]) if is_last else None
        if is_last or not is_chat:
            choice["stop_reason"] = self.scripts[index].stop if is_last else None
        if not is_chat:
            choice["prompt_token_ids"] = None
        choice["token_ids"] = None
        chunk = self._chunk([choice])
        if self.generation.has_continuous_usage:
            chunk["usage"] = self.usage(said) | ({"completion_tokens_details": None} if is_chat else {})
        if is_last and not self.generation.has_usage_chunk:
            chunk["system_fingerprint"] = FINGERPRINT
        return _event(chunk)

    def usage_event(self, timing: Timing) -> Event:
        """The chunk with the counts; nulls are left out of it."""
        usage = self.usage(self.completion_tokens)
        if self.profile.has_prompt_tokens_details:
            details = {"cached_tokens": self.cached_tokens}
            usage["prompt_tokens_details"] = details | (
                {"created_cache_tokens": 0} if self.generation.is_chat else {}
            )
        chunk = self._chunk([]) | {"usage": usage, "system_fingerprint": FINGERPRINT}
        metrics = self.metrics(timing)
        if metrics is not None:
            chunk["metrics"] = {name: value for name, value in metrics.items() if value is not None}
        return Event("usage", _event(chunk))

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": "chat.completion.chunk" if self.generation.is_chat else "text_completion",
            "created": self.created,
            "model": self.generation.model,
            "choices": choices,
        }


def _event(chunk: dict[str, Any]) -> bytes:
    return f"data: {compact(chunk)}\n\n".encode()


def speculation(accepted: tuple[int, ...], draft_tokens: int) -> dict[str, Any]:
    """The summary of --per-request-spec-decode-metrics."""
    steps = len(accepted)
    kept = sum(accepted)
    return {
        "mean_acceptance_length": 1 + kept / steps if steps else 0.0,
        "draft_acceptance_rate": kept / (steps * draft_tokens) if steps else 0.0,
        "acceptance_histogram": [accepted.count(j) for j in range(draft_tokens + 1)],
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": kept,
        "num_draft_tokens": steps * draft_tokens,
        "num_spec_tokens": draft_tokens,
    }


def models_body(profile: ServerProfile, created: int) -> dict[str, Any]:
    """The body of /v1/models."""
    permission = {
        "id": "modelperm-5eedc0de5eedc0de",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    cards = [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": profile.models[0],
            "parent": None,
            "max_model_len": profile.max_model_len,
            "permission": [permission],
        }
        for name in profile.models
    ]
    return {"object": "list", "data": cards}
