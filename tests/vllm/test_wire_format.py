"""Does the installed vLLM still answer as the recorded one did?

The golden files are vLLM 0.32's; the mock and the gateway's relay are built on them. A release that changes
the wire format fails here, by name of the exchange, and the new recording (tests/support/record_goldens.py)
shows the change.
"""

import json
from functools import cache
from pathlib import Path

import pytest

from tests.support.mock_vllm_exchange import Ask, exchange, load, metric_names, outline
from tests.support.record_goldens import TIMEOUT_S, Questions

pytestmark = pytest.mark.vllm

GOLDEN = Path(__file__).resolve().parents[1] / "support" / "golden"
VARIANTS = ("plain", "speculative")
RECORDED = [
    (variant, path.stem)
    for variant in VARIANTS
    for path in sorted((GOLDEN / variant).glob("*.json"))
    if path.stem != "metrics"
]


@cache
def questions(url: str) -> dict[str, Ask]:
    return dict(Questions.to(url).all())


@pytest.mark.fleet
@pytest.mark.parametrize(("variant", "name"), RECORDED)
def test_answers_are_built_as_recorded(request: pytest.FixtureRequest, variant: str, name: str) -> None:
    url = request.getfixturevalue(f"{variant}_url")
    golden = load(GOLDEN / variant / f"{name}.json")[1]
    assert outline(exchange(url, questions(url)[name], TIMEOUT_S)) == outline(golden)


@pytest.mark.fleet
@pytest.mark.parametrize("variant", VARIANTS)
def test_metrics_have_the_recorded_names_and_types(request: pytest.FixtureRequest, variant: str) -> None:
    url = request.getfixturevalue(f"{variant}_url")
    page = exchange(url, Ask("GET", "/metrics", headers=()), TIMEOUT_S)
    golden = load(GOLDEN / variant / "metrics.json")[1]
    assert page.header("content-type") == golden.header("content-type")
    assert metric_names(page.body) == metric_names(golden.body)


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
def test_tokens_are_counted_as_they_are_charged(plain_url: str, endpoint: str) -> None:
    """What a tight budget relies on: /tokenize says what the answer's usage says later."""
    model = "tollgate-reference"
    asked = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Tell é a story"},
        ]
    }
    fields = asked if endpoint == "chat/completions" else {"prompt": "Once upon a time"}
    told = []
    for path in ("/tokenize", f"/v1/{endpoint}"):
        body = {"model": model, **fields} | ({} if path == "/tokenize" else {"max_tokens": 1})
        reply = exchange(plain_url, Ask("POST", path, body=json.dumps(body)), TIMEOUT_S)
        assert reply.status == 200, reply.body
        told.append(json.loads(reply.body))
    assert told[0]["count"] == told[1]["usage"]["prompt_tokens"] > 0


def test_every_recorded_exchange_is_still_asked(plain_url: str) -> None:
    assert set(questions(plain_url)) == {path.stem for path in (GOLDEN / "plain").glob("*.json")}
