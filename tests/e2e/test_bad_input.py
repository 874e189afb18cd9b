"""Does every bad request get OpenAI's error shape, the right status and a sentence that helps?"""

import gzip
import json
import re
from typing import Any, Final

import httpx
import pytest

from tests.e2e.site import CHAT, RawClient, Site
from tests.support.gateway_process import json_of
from tests.support.mock_vllm_exchange import Reply

LIMIT: Final = 20_000_000
MESSAGES: Final[list[Any]] = [{"role": "user", "content": "Hi"}]
GOOD: Final[dict[str, Any]] = {"model": "auto", "messages": MESSAGES}
TASKS: Final = (
    "extraction, classification, structured, code, summarization, translation, rewriting, qa, math,"
    " creative, brainstorming, chat"
)


def error_of(answer: httpx.Response | Reply, status: int) -> dict[str, Any]:
    """The error of an answer, once its shape is found right."""
    body = answer.content if isinstance(answer, httpx.Response) else answer.body
    code = answer.status_code if isinstance(answer, httpx.Response) else answer.status
    assert code == status, body
    headers = dict(answer.headers)
    assert headers["content-type"] == "application/json"
    assert re.fullmatch(r"req_[0-9a-f]{32}", headers["x-request-id"])
    assert headers["x-should-retry"] == "false"
    document = json.loads(body)
    assert set(document) == {"error"}
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert re.fullmatch(r"[A-Z`\d].{15,}\.", error["message"], flags=re.DOTALL), "not a sentence"
    return error


BODIES: Final[list[tuple[str, bytes, str]]] = [
    ("empty", b"", "The request body is empty: send a JSON object."),
    ("cut", b'{"model": "auto",\n "messages": [}', "not valid JSON: Expecting value at line 2, column 15"),
    ("text", b"hello", "not valid JSON: Expecting value at line 1, column 1"),
    ("trailing", b'{"model":"auto"} x', "not valid JSON: Extra data at line 1, column 18"),
    ("array", b"[1]", 'must be a JSON object such as {"model": "auto", "messages": [...]}, not an array'),
    ("null", b"null", "not null"),
    ("number", b"17", "not a number"),
    ("mark", b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "byte-order mark, which JSON does not allow"),
    (
        "latin",
        '{"model":"auto","messages":[{"role":"user","content":"Grüße"}]}'.encode("latin-1"),
        "not UTF-8",
    ),
    ("nan", b'{"model":"auto","messages":[{"role":"user","content":"x"}],"top_p":NaN}', "holds NaN"),
    ("inf", b'{"model":"auto","messages":[],"temperature":-Infinity}', "holds -Infinity"),
    ("twice", b'{"model":"auto","messages":[],"model":"b"}', "says 'model' 2 times: say each field once"),
    ("escaped", rb'{"model":"auto","messages":[],"mod\u0065l":"b"}', "says 'model' 2 times"),
    ("deep", b'{"model":"auto","x":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply"),
]


@pytest.mark.parametrize(("body", "said"), [pytest.param(*two, id=name) for name, *two in BODIES])
def test_a_body_that_is_no_request(site: Site, body: bytes, said: str) -> None:
    error = error_of(site.post(body), 400)
    assert said in error["message"]
    assert error["code"] == "invalid_request"


FIELDS: Final[list[tuple[dict[str, Any], str, str]]] = [
    ({"messages": MESSAGES}, "model", "`model` is missing: send a model alias"),
    ({**GOOD, "model": ""}, "model", "`model` is empty"),
    ({**GOOD, "model": 7}, "model", "`model` has the wrong type: expected `str`, got `int`"),
    ({"model": "auto"}, "messages", "`messages` is missing: send a list"),
    ({**GOOD, "messages": []}, "messages", "`messages` is empty: send at least one"),
    ({**GOOD, "messages": "Hi"}, "messages", "`messages` has the wrong type: expected `array`"),
    (
        {**GOOD, "messages": [{"content": "Hi"}]},
        "messages",
        "missing required field `role` - at ",
    ),
    ({**GOOD, "stream": "yes"}, "stream", "`stream` has the wrong type"),
    ({**GOOD, "max_tokens": 0}, "max_tokens", "`max_tokens` must be at least 1, not 0"),
    ({**GOOD, "max_tokens": "many"}, "max_tokens", "`max_tokens` has the wrong type"),
    ({**GOOD, "n": -1}, "n", "`n` must be at least 1"),
    ({**GOOD, "n": 4000}, "n", "4000 answers in one request; at most 128 are allowed"),
    ({**GOOD, "messages": MESSAGES * 2049}, "messages", "2049 messages in one request; at most 2048"),
    ({**GOOD, "metadata": {"a": 1}}, "metadata", "`metadata` has the wrong type"),
    ({**GOOD, "metadata": {str(n): "" for n in range(17)}}, "metadata", "17 pairs; at most 16"),
    ({**GOOD, "metadata": {"task": "codes"}}, "metadata.task", f"Did you mean 'code'? Known tasks: {TASKS}"),
    ({**GOOD, "service_tier": "fast"}, "service_tier", "use one of auto, default, flex, priority"),
    (
        {**GOOD, "stream_options": {"include_usage": True}},
        "stream_options",
        "only allowed with `stream: true`",
    ),
]


@pytest.mark.parametrize(("body", "param", "said"), FIELDS)
def test_a_field_that_is_wrong(site: Site, body: dict[str, Any], param: str, said: str) -> None:
    error = error_of(site.post(body), 400)
    assert said in error["message"]
    assert (error["param"], error["code"]) == (param, "invalid_request")


def test_a_prompt_that_is_wrong(site: Site) -> None:
    for prompt, said in (
        ("", "`prompt` is empty"),
        ([1, "a"], "`prompt` must be a string, a list of strings"),
    ):
        answer = site.post({"model": "auto", "prompt": prompt}, path="/v1/completions")
        assert said in error_of(answer, 400)["message"]


def test_an_unknown_model_names_the_known_ones(site: Site) -> None:
    error = error_of(site.post({**GOOD, "model": "gpt-9"}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert error["message"] == (
        "Unknown model 'gpt-9'. Known models: auto, tollgate-reference, tollgate-reference-speculative,"
        " tollgate-reference-plain."
    )


def test_an_unknown_task_names_the_known_ones(site: Site) -> None:
    error = error_of(site.post(GOOD, headers={"x-tollgate-task": "summarisation"}), 400)
    assert error["param"] == "x-tollgate-task"
    assert "Did you mean 'summarization'?" in error["message"]
    assert f"Known tasks: {TASKS}." in error["message"]


def test_no_key_a_wrong_one_and_a_revoked_one(site: Site) -> None:
    url = site.url + CHAT
    with httpx.Client(trust_env=False, timeout=30) as client:
        missing = error_of(client.post(url, json=GOOD), 401)
        assert "No API key: send it in the header 'Authorization: Bearer tg-" in missing["message"]
        for header in ("Basic dXNlcg==", "Bearer", "tg-abc"):
            refused = error_of(client.post(url, json=GOOD, headers={"authorization": header}), 401)
            assert "must read 'Bearer <API key>'" in refused["message"]
        wrong = error_of(client.post(url, json=GOOD, headers={"authorization": "Bearer tg-a-b"}), 401)
        assert "not known" in wrong["message"]
        made = json_of(site.gateway.cli("keys", "create", "--tenant", "demo", "--json"))
        mine = {"authorization": f"Bearer {made['key']}"}
        _until(client, url, mine, 200)
        assert client.post(url, json=GOOD, headers={"x-api-key": made["key"]}).status_code == 200
        outcome = site.gateway.cli("keys", "revoke", made["id"])
        assert outcome.stdout == f"Key {made['id']} is revoked.\n"
        _until(client, url, mine, 401)
        revoked = error_of(client.post(url, json=GOOD, headers=mine), 401)
        assert f"The API key tg-{made['id']}-… was revoked on 20" in revoked["message"]


def _until(client: httpx.Client, url: str, headers: dict[str, str], status: int) -> None:
    for _ in range(100):
        if client.post(url, json={**GOOD, "max_tokens": 1}, headers=headers).status_code == status:
            return
    raise AssertionError(f"never {status}")


def test_a_compressed_body(site: Site) -> None:
    body = gzip.compress(json.dumps(GOOD).encode())
    announced = error_of(site.post(body, headers={"content-encoding": "gzip"}), 415)
    assert "compressed (gzip): send it uncompressed" in announced["message"]
    secret = error_of(site.post(body), 415)
    assert "compressed with gzip" in secret["message"]
    assert announced["code"] == secret["code"] == "unsupported_encoding"


@pytest.mark.parametrize("size", [LIMIT + 1, 60_000_000])
def test_a_body_over_the_limit(site: Site, size: int) -> None:
    start = json.dumps({**GOOD, "x": ""})[:-2].encode()
    body = start + b"a" * (size - len(start) - 2) + b'"}'
    assert len(body) == size
    error = error_of(site.post(body), 413)
    assert error["code"] == "payload_too_large"
    assert "larger than 20,000,000 bytes" in error["message"]
    assert "TOLLGATE_LIMITS__BODY_BYTES_MAX" in error["message"]


def test_a_body_at_the_limit_is_taken(site: Site) -> None:
    start = json.dumps({**GOOD, "user": ""})[:-2].encode()
    body = start + b"a" * (LIMIT - len(start) - 2) + b'"}'
    assert len(body) == LIMIT
    assert site.post(body).status_code == 200


def test_a_chunked_body_over_the_limit_is_refused_before_its_end(site: Site) -> None:
    with RawClient(site.gateway) as client:
        client.send(client.head("content-type: application/json", "transfer-encoding: chunked"))
        piece = b"%x\r\n%s\r\n" % (1_000_000, b" " * 1_000_000)
        try:
            for _ in range(21):
                client.send(piece)
        except ConnectionError:
            pass  # it need not take what it refused
        error = error_of(client.reply(), 413)
        assert error["code"] == "payload_too_large"


def test_a_chunked_body_is_read_whole(site: Site) -> None:
    body = json.dumps(GOOD).encode()
    with RawClient(site.gateway) as client:
        client.send(client.head("content-type: application/json", "transfer-encoding: chunked"))
        for byte in body:
            client.send(b"1\r\n%c\r\n" % byte)
        client.send(b"0\r\n\r\n")
        assert client.reply().status == 200


def test_a_client_that_asks_first_is_told_to_go_on(site: Site) -> None:
    body = json.dumps(GOOD).encode()
    with RawClient(site.gateway) as client:
        client.send(client.head(f"content-length: {len(body)}", "expect: 100-continue"))
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100")
        client.send(body)
        assert client.reply().status == 200


@pytest.mark.parametrize(
    "line",
    [
        "content-length: abc",
        "content-length: -5",
        "content-length: 99999999999999999999999",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5\r\ntransfer-encoding: chunked",
    ],
)
def test_a_length_that_cannot_be_is_refused_and_harms_nobody(site: Site, line: str) -> None:
    with RawClient(site.gateway) as client:
        client.send(client.head(line))
        assert client.reply().status == 400
    assert site.post(GOOD).status_code == 200


def test_an_announced_length_over_the_limit_is_refused_before_anything_is_sent(site: Site) -> None:
    with RawClient(site.gateway) as client:
        client.send(client.head("content-length: 99999999999"))
        error_of(client.reply(), 413)


def test_after_a_refusal_the_connection_serves_on(site: Site) -> None:
    with RawClient(site.gateway) as client:
        client.ask({**GOOD, "model": "gpt-9"})
        assert client.reply().status == 404
        client.ask(GOOD)
        assert client.reply().status == 200


def test_numbers_beyond_measure_are_the_clients_fault(site: Site) -> None:
    body = b'{ "model": "auto", "seed": ' + b"9" * 5000 + b', "messages": [{"role": "user", "content": "x"}]}'
    assert b"internal_error" not in site.post(body).content  # what the engine makes of it is its business
    lengthy = b'{"model":"auto","max_tokens":' + b"9" * 400 + b',"messages":[{"role":"user","content":"x"}]}'
    error_of(site.post(lengthy), 400)


def test_nothing_of_all_this_was_ever_booked(site: Site) -> None:
    before = site.metric("tollgate_attempts_open")
    site.post({**GOOD, "model": "gpt-9"}, headers={"x-request-id": "never-booked"})
    assert before == 0
    site.rows(0, client_request_id="never-booked")
