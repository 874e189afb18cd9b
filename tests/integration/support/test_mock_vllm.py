"""Does the mock vLLM write what a real one wrote, and misbehave as it is told to?"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mock_process import MockVllm
from tests.support.mock_vllm_exchange import (
    Ask,
    Reply,
    connect,
    encode,
    exchange,
    load,
    metric_names,
    outline,
    read_reply,
)

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "support" / "golden"
VARIANTS = {"plain": (), "speculative": ("--speculative", "4"), "tools": ("--enable-auto-tool-choice",)}
# Pydantic lists every branch of a union here; the mock says it once.
UNION_ERRORS = {
    "bad_content_type_of_message",
    "bad_message_type",
    "bad_message_without_role",
    "bad_response_format",
    "chat_null_content",
}
# The recorded model did not want to call the tool; the mock always does.
MODELS_CHOICE = {"tools/chat_tool_auto"}
NOT_OFFERED = {"load", "ping"}
# What the mock leaves out: nothing in a gateway reads it.
UNCOUNTED = {
    "external_prefix_cache",
    "estimated_",
    "mm_cache",
    "num_requests_waiting_by_reason",
    "prompt_tokens_cached_by_source",
    "request_prefill_kv_computed_tokens",
}
CHAT = {"model": "tollgate-reference", "messages": [{"role": "user", "content": "what does the café sell"}]}
STREAM = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
GOLDEN_FILES = [
    path
    for path in sorted(GOLDEN.glob("*/*.json"))
    if path.stem not in NOT_OFFERED | {"metrics"} and f"{path.parent.name}/{path.stem}" not in MODELS_CHOICE
]


def ask(body: object = CHAT, path: str = "/v1/chat/completions") -> Ask:
    return Ask("POST", path, json.dumps(body))


def content(reply: Reply) -> list[str]:
    """The non-empty contents of a chat stream."""
    deltas = [e["choices"][0]["delta"] for e in reply.events() if isinstance(e, dict) and e.get("choices")]
    return [delta["content"] for delta in deltas if delta.get("content")]


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, MockVllm]]:
    """One mock per recorded server."""
    started = {name: MockVllm(*arguments) for name, arguments in VARIANTS.items()}
    yield started
    for one in started.values():
        one.stop()


@pytest.fixture
def mock(running: dict[str, MockVllm]) -> MockVllm:
    running["plain"].reset()
    running["plain"].control(ttft_ms=0, tpot_ms=0, answer_tokens=16)
    return running["plain"]


# ------------------------------------------------------------------------------------------- wire format
@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_answers_are_built_as_recorded(running: dict[str, MockVllm], path: Path) -> None:
    asked, golden = load(path)
    told, expected = outline(exchange(running[path.parent.name].url, asked)), outline(golden)
    if path.stem in UNION_ERRORS:
        for outlined in (told, expected):
            error = json.loads(str(outlined["error"]).replace('"code":N', '"code":400'))["error"]
            outlined["error"] = error | {"message": ""}
    assert told == expected


@pytest.mark.parametrize("variant", ["plain", "speculative"])
def test_metrics_have_the_recorded_names_and_types(running: dict[str, MockVllm], variant: str) -> None:
    reply = exchange(running[variant].url, Ask("GET", "/metrics", headers=()))
    golden = load(GOLDEN / variant / "metrics.json")[1]
    told, expected = metric_names(reply.body), metric_names(golden.body)
    assert reply.header("content-type") == golden.header("content-type")
    assert told.items() <= expected.items()
    missing = {name.removeprefix("vllm:") for name in expected.keys() - told.keys()}
    assert {
        name for name in missing if not name.endswith("_created") and not name.startswith(tuple(UNCOUNTED))
    } == set()


def test_metrics_count_what_was_served(running: dict[str, MockVllm]) -> None:
    with MockVllm("--speculative", "3", "--acceptance", "1", "--no-prefix-cache") as own:
        reply = exchange(own.url, ask(STREAM))
        page = exchange(own.url, Ask("GET", "/metrics", headers=())).body.decode()
        stats = own.stats()
    usage = reply.events()[-2]["usage"]
    found = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    labels = '{engine="0",model_name="tollgate-reference"}'
    assert (
        float(found[f"vllm:prompt_tokens_total{labels}"]) == usage["prompt_tokens"] == stats["prompt_tokens"]
    )
    assert float(found[f"vllm:generation_tokens_total{labels}"]) == usage["completion_tokens"] == 16
    # The prefill gives one token, then four steps of up to four: 4 + 4 + 4 + 3.
    assert float(found[f"vllm:spec_decode_num_drafts_total{labels}"]) == 4
    assert float(found[f"vllm:spec_decode_num_accepted_tokens_total{labels}"]) == 11
    assert 'finished_reason="stop",model_name="tollgate-reference"} 1.0' in page


def test_speculative_chunks_carry_several_tokens(running: dict[str, MockVllm]) -> None:
    reply = exchange(running["speculative"].url, ask(STREAM | {"max_tokens": 16}))
    usage_chunk = reply.events()[-2]
    assert usage_chunk["usage"]["completion_tokens"] == 16
    assert len(content(reply)) < 16
    assert usage_chunk["metrics"]["speculative_decoding"]["num_spec_steps"] == len(content(reply)) - 1


def test_answers_are_deterministic_and_stream_the_same_text(mock: MockVllm) -> None:
    plain = [json.loads(exchange(mock.url, ask()).body) for _ in range(2)]
    texts = [answer["choices"][0]["message"]["content"] for answer in plain]
    assert texts[0] == texts[1] == "".join(content(exchange(mock.url, ask(STREAM))))
    assert plain[0]["usage"]["prompt_tokens"] == 5 + 4
    other = CHAT | {"messages": [{"role": "user", "content": "something else"}]}
    assert json.loads(exchange(mock.url, ask(other)).body)["choices"][0]["message"]["content"] != texts[0]


@pytest.mark.parametrize(("asked", "got", "reason"), [(4, 4, "length"), (16, 16, "length"), (99, 16, "stop")])
def test_max_tokens_cuts_the_answer(mock: MockVllm, asked: int, got: int, reason: str) -> None:
    answer = json.loads(exchange(mock.url, ask(CHAT | {"max_tokens": asked})).body)
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (got, reason)


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(mock: MockVllm) -> None:
    whole = json.loads(exchange(mock.url, ask()).body)["choices"][0]["message"]["content"]
    # Begins in one token and ends in the next.
    stop = whole[7:12]
    choice = json.loads(exchange(mock.url, ask(CHAT | {"stop": ["never said", stop]})).body)["choices"][0]
    assert choice["message"]["content"] == whole.partition(stop)[0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


def test_a_prompt_seen_before_is_cached_in_whole_blocks(mock: MockVllm) -> None:
    long = CHAT | {"messages": [{"role": "user", "content": f"word {time.monotonic_ns()} " * 20}]}
    details = [
        json.loads(exchange(mock.url, ask(long)).body)["usage"]["prompt_tokens_details"] for _ in range(2)
    ]
    assert [one["cached_tokens"] for one in details] == [0, 32]


def test_structured_output_is_json_of_the_schema(mock: MockVllm) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "tags": {"type": "array"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = json.loads(exchange(mock.url, ask(CHAT | {"response_format": wanted})).body)
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"n": 7, "tags": ["word"]}


def test_an_api_key_guards_v1_only() -> None:
    with MockVllm("--api-key", "k1") as own:
        refused = exchange(own.url, ask())
        let_in = exchange(
            own.url, Ask("POST", ask().path, ask().body, (*ask().headers, ("authorization", "Bearer k1")))
        )
        health = exchange(own.url, Ask("GET", "/health", headers=()))
    assert (refused.status, refused.body) == (401, b'{"error":"Unauthorized"}')
    assert (let_in.status, health.status) == (200, 200)


def test_the_queue_limit_answers_503() -> None:
    with MockVllm("--max-num-queued-reqs", "0") as own:
        reply = exchange(own.url, ask())
    assert reply.status == 503
    assert json.loads(reply.body)["error"]["type"] == "Service Unavailable"


def test_pace_follows_ttft_and_tpot(mock: MockVllm) -> None:
    mock.control(ttft_ms=60, tpot_ms=10)
    start = time.monotonic()
    metrics = exchange(mock.url, ask(STREAM)).events()[-2]["metrics"]
    took_s = time.monotonic() - start
    assert took_s >= 0.06 + 15 * 0.01
    assert metrics["time_to_first_token_ms"] >= 60
    assert metrics["mean_itl_ms"] >= 9


# ------------------------------------------------------------------------------------------- connections
def test_a_connection_serves_pipelined_requests_in_order(mock: MockVllm) -> None:
    with connect(mock.url) as channel:
        channel.sendall(encode(ask(STREAM)) + encode(ask()) + encode(Ask("GET", "/version", headers=())))
        channel.settimeout(5)
        received = b""
        while b'{"version"' not in received:
            received += channel.recv(65536)
    assert (
        received.index(b"data: [DONE]") < received.index(b'"chat.completion"') < received.index(b'{"version"')
    )


def test_an_idle_connection_is_closed_as_by_vllm() -> None:
    with MockVllm("--keep-alive-s", "0.1") as own, connect(own.url) as channel:
        channel.sendall(encode(Ask("GET", "/health", headers=())))
        assert read_reply(channel).status == 200
        assert channel.recv(1) == b""


@pytest.mark.parametrize("body", [CHAT, STREAM])
def test_a_client_that_leaves_is_counted_as_aborted(mock: MockVllm, body: dict[str, object]) -> None:
    mock.control(ttft_ms=5000)
    with connect(mock.url) as channel:
        channel.sendall(encode(ask(body)))
        mock.wait_for(in_flight=1)
    stats = mock.wait_for(in_flight=0)
    assert (stats["requests"], stats["aborted"], stats["completed"]) == (1, 1, 0)


def test_a_client_that_leaves_mid_stream_is_counted_as_aborted(mock: MockVllm) -> None:
    mock.control(tpot_ms=200)
    with connect(mock.url) as channel:
        channel.sendall(encode(ask(STREAM)))
        assert b"200 OK" in channel.recv(4096)
    stats = mock.wait_for(in_flight=0)
    assert stats["aborted"] == 1
    assert 0 < stats["completion_tokens"] < 16


def test_stats_show_the_last_request(mock: MockVllm) -> None:
    sent = Ask("POST", "/v1/chat/completions", ask().body, (*ask().headers, ("x-request-id", "r-1")))
    reply = exchange(mock.url, sent)
    last = mock.stats()["last_request"]
    assert last["body"] == CHAT
    assert last["headers"]["x-request-id"] == "r-1"
    assert json.loads(reply.body)["id"] == "chatcmpl-r-1"


def test_gauges_can_be_overridden(mock: MockVllm) -> None:
    mock.control(gauges={"num_requests_waiting": 12})
    page = exchange(mock.url, Ask("GET", "/metrics", headers=())).body
    assert b'vllm:num_requests_waiting{engine="0",model_name="tollgate-reference"} 12.0' in page


# ------------------------------------------------------------------------------------------------ faults
def test_a_fault_happens_as_often_as_asked(mock: MockVllm) -> None:
    mock.fault("status", 500, times=2)
    assert [exchange(mock.url, ask()).status for _ in range(3)] == [500, 500, 200]


def test_refuse_closes_on_accept_and_leaves_the_control_port_open(mock: MockVllm) -> None:
    mock.fault("refuse", times=1)
    with connect(mock.url) as channel:
        assert channel.recv(1) == b""
    assert exchange(mock.url, ask()).status == 200
    assert mock.stats()["connections_refused"] == 1


@pytest.mark.parametrize(
    ("value", "status", "kind", "retry_after"),
    [
        ("503", 503, "Service Unavailable", None),
        ("503,7", 503, "Service Unavailable", "7"),
        ("429,0.5", 429, "Too Many Requests", "0.5"),
        ("500", 500, "InternalServerError", None),
        ("400", 400, "BadRequestError", None),
    ],
)
def test_status_answers_with_vllms_body(
    mock: MockVllm, value: str, status: int, kind: str, retry_after: str | None
) -> None:
    mock.fault("status", value)
    reply = exchange(mock.url, ask())
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["type"], error["code"]) == (status, kind, status)
    assert reply.header("retry-after") == retry_after


def test_error_string_body_has_a_string_where_others_have_an_object(mock: MockVllm) -> None:
    mock.fault("error_string_body")
    reply = exchange(mock.url, ask())
    assert (reply.status, reply.body) == (401, b'{"error":"Unauthorized"}')


@pytest.mark.parametrize("body", [CHAT, STREAM])
def test_die_before_first_chunk_closes_after_the_headers(mock: MockVllm, body: dict[str, object]) -> None:
    mock.fault("die_before_first_chunk")
    reply = exchange(mock.url, ask(body))
    assert (reply.status, reply.body, reply.is_complete) == (200, b"", False)


def test_error_first_event_comes_before_any_role(mock: MockVllm) -> None:
    mock.fault("error_first_event")
    events = exchange(mock.url, ask(STREAM)).events()
    assert [sorted(event) if isinstance(event, dict) else event for event in events] == [["error"], "[DONE]"]


def test_error_before_first_content_follows_the_role(mock: MockVllm) -> None:
    mock.fault("error_before_first_content")
    reply = exchange(mock.url, ask(STREAM))
    role, error, done = reply.events()
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert error["error"]["code"] == 500
    assert (done, reply.is_complete) == ("[DONE]", True)


@pytest.mark.parametrize("after", [0, 3])
def test_die_mid_stream_closes_after_so_many_contents(mock: MockVllm, after: int) -> None:
    mock.fault("die_mid_stream", after)
    reply = exchange(mock.url, ask(STREAM))
    assert (len(content(reply)), reply.is_complete) == (after, False)
    assert b"[DONE]" not in reply.body


def test_die_mid_stream_cuts_a_plain_answer_in_half(mock: MockVllm) -> None:
    mock.fault("die_mid_stream", 3)
    reply = exchange(mock.url, ask())
    assert 0 < len(reply.body) < int(reply.header("content-length") or 0)


def test_error_mid_stream_ends_properly(mock: MockVllm) -> None:
    mock.fault("error_mid_stream", 2)
    reply = exchange(mock.url, ask(STREAM))
    assert len(content(reply)) == 2
    assert reply.events()[-2]["error"]["type"] == "InternalServerError"
    assert (reply.events()[-1], reply.is_complete) == ("[DONE]", True)


def test_error_mid_stream_is_a_500_for_a_plain_answer(mock: MockVllm) -> None:
    mock.fault("error_mid_stream", 2)
    assert exchange(mock.url, ask()).status == 500


def test_half_event_ends_inside_an_event(mock: MockVllm) -> None:
    mock.fault("half_event", 2)
    reply = exchange(mock.url, ask(STREAM))
    assert len(content(reply)) == 2
    last = reply.body.rpartition(b"\n\n")[2]
    assert last.startswith(b'data: {"id"')
    assert not reply.is_complete


def test_stall_before_first_sends_headers_and_then_nothing(mock: MockVllm) -> None:
    mock.fault("stall_before_first", 30)
    with connect(mock.url, 0.3) as channel:
        channel.sendall(encode(ask(STREAM)))
        assert channel.recv(4096).endswith(b"\r\n\r\n")
        with pytest.raises(TimeoutError):
            channel.recv(1)


def test_stall_mid_stream_pauses_once(mock: MockVllm) -> None:
    mock.fault("stall_mid_stream", "2,0.3")
    start = time.monotonic()
    reply = exchange(mock.url, ask(STREAM))
    assert time.monotonic() - start >= 0.3
    assert len(content(reply)) == 16
    assert reply.is_complete


def test_no_usage_leaves_the_usage_chunk_out(mock: MockVllm) -> None:
    mock.fault("no_usage")
    reply = exchange(mock.url, ask(STREAM))
    assert b'"usage"' not in reply.body
    assert reply.body.endswith(b"data: [DONE]\n\n")


def test_no_done_ends_the_body_without_the_mark(mock: MockVllm) -> None:
    mock.fault("no_done")
    reply = exchange(mock.url, ask(STREAM))
    assert b"[DONE]" not in reply.body
    assert b'"usage"' in reply.body
    assert reply.is_complete


@pytest.mark.parametrize(
    ("body", "kind"), [(CHAT, "application/json"), (STREAM, "text/event-stream; charset=utf-8")]
)
def test_garbage_is_neither_json_nor_sse(mock: MockVllm, body: dict[str, object], kind: str) -> None:
    mock.fault("garbage")
    reply = exchange(mock.url, ask(body))
    assert (reply.status, reply.header("content-type")) == (200, kind)
    assert reply.body.startswith(b"<html>")


def test_garbage_event_is_framed_but_no_json(mock: MockVllm) -> None:
    mock.fault("garbage", "event")
    body = exchange(mock.url, ask(STREAM)).body
    assert body.startswith(b"data: {")
    with pytest.raises(json.JSONDecodeError):
        json.loads(body.removeprefix(b"data: "))


@pytest.mark.parametrize("body", [CHAT, STREAM])
def test_wrong_length_promises_more_than_it_sends(mock: MockVllm, body: dict[str, object]) -> None:
    mock.fault("wrong_length")
    reply = exchange(mock.url, ask(body))
    assert (reply.status, reply.is_complete) == (200, False)


def test_hang_never_answers(mock: MockVllm) -> None:
    mock.fault("hang", times=1)
    with connect(mock.url, 0.3) as channel:
        channel.sendall(encode(ask()))
        with pytest.raises(TimeoutError):
            channel.recv(1)
        assert exchange(mock.url, Ask("GET", "/health", headers=())).status == 200
    assert mock.wait_for(in_flight=0)["aborted"] == 1


def test_unhealthy_answers_503_until_cleared(mock: MockVllm) -> None:
    health = Ask("GET", "/health", headers=())
    mock.fault("unhealthy")
    assert exchange(mock.url, health).status == 503
    assert exchange(mock.url, ask()).status == 200
    mock.clear()
    assert exchange(mock.url, health).status == 200


def test_split_ignores_event_borders(mock: MockVllm) -> None:
    whole = exchange(mock.url, ask(STREAM | {"stream_options": None}))
    mock.fault("split", 7)
    pieces = exchange(mock.url, ask(STREAM | {"stream_options": None})).pieces
    assert {len(piece) for piece in pieces[:-1]} == {7}
    assert len(b"".join(pieces)) == len(whole.body)
    assert any(not _is_text(piece) for piece in pieces), "no piece ends inside a character"


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_coalesce_puts_several_events_in_one_piece(mock: MockVllm) -> None:
    mock.fault("coalesce", 4)
    reply = exchange(mock.url, ask(STREAM))
    assert {piece.count(b"data: ") for piece in reply.pieces[:-1]} == {4}
    assert len(content(reply)) == 16


def test_slow_headers_arrive_in_pieces(mock: MockVllm) -> None:
    mock.fault("slow_headers", 0.4)
    with connect(mock.url) as channel:
        channel.sendall(encode(ask()))
        start = time.monotonic()
        assert b"\r\n\r\n" not in channel.recv(4096)
        assert read_reply_after(channel)
    assert time.monotonic() - start >= 0.3


def read_reply_after(channel: socket.socket) -> bool:
    """Whether the rest of an answer came, headers and all."""
    received = b""
    while b'"metrics"' not in received:
        data = channel.recv(65536)
        if not data:
            return False
        received += data
    return True


def test_faults_combine(mock: MockVllm) -> None:
    mock.fault("split", 5)
    mock.fault("error_mid_stream", 1)
    reply = exchange(mock.url, ask(STREAM))
    assert len(content(reply)) == 1
    assert {len(piece) for piece in reply.pieces[:-1]} == {5}


def test_an_unknown_fault_or_value_is_refused(mock: MockVllm) -> None:
    for wanted in (
        {"fault": "explode"},
        {"fault": "split", "value": 0},
        {"fault": "stall_mid_stream", "value": 3},
        {"fault": "hang", "value": 1},
        {"gauges": {"temperature": 1}},
        {"speed": 1},
    ):
        reply = exchange(mock.control_url, Ask("POST", "/_control", json.dumps(wanted)))
        assert reply.status == 400, wanted
        assert "error" in json.loads(reply.body)


# ----------------------------------------------------------------------------------------------- program
def test_faults_can_be_on_from_the_start() -> None:
    with MockVllm("--fault", "status=429,3", "--fault", "unhealthy") as own:
        assert exchange(own.url, ask()).header("retry-after") == "3"
        assert exchange(own.url, Ask("GET", "/health", headers=())).status == 503


def test_a_wrong_argument_is_reported() -> None:
    with pytest.raises(RuntimeError, match="unknown fault 'explode'"):
        MockVllm("--fault", "explode")


def test_help_names_every_fault_and_shows_examples() -> None:
    command = [sys.executable, "-m", "tests.support.mock_vllm", "--help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "examples:" in said
    assert "stall_mid_stream=K,SECONDS" in said


def test_it_ends_when_the_test_process_dies() -> None:
    program = (
        "import time; from tests.support.mock_process import MockVllm; m = MockVllm(); "
        "print(m.process.pid, m.port, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        assert exchange(f"http://127.0.0.1:{port}", ask()).status == 200
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _is_running(pid):
        assert time.monotonic() < deadline, "the mock outlived the process that started it"
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    # An orphan that nobody has waited for yet is over, too.
    return state != "Z"


def test_stop_twice_does_no_harm() -> None:
    own = MockVllm()
    own.stop()
    own.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(own.process.pid, 0)
