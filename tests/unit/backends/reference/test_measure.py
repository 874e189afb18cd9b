import json
from pathlib import Path

import pytest

from backends.reference.measure import judge, server_command
from backends.reference.text import Conversation, Message

ITEM = Conversation("structured", (Message("user", "…"),), {"name": "Anna Berg", "city": "Oslo"})


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ('{"name": "Anna Berg", "city": "Oslo"}', (True, True)),
        ('{"city": "Oslo", "name": "Anna Berg"}', (True, True)),
        ('{"name": "Anna Bell", "city": "Oslo"}', (True, False)),
        ('{"name": "Anna Berg"}', (False, False)),
        ('{"name": "Anna Berg", "city": "Oslo", "date": "1 May"}', (False, False)),
        ('["name", "city"]', (False, False)),
        ('{"name": "Anna Berg", "city": "Os', (False, False)),
    ],
)
def test_an_answer_is_judged_by_keys_and_by_values(answer: str, verdict: tuple[bool, bool]) -> None:
    assert judge(ITEM, answer) == verdict


def test_the_draft_is_given_only_when_it_proposes_tokens() -> None:
    with_draft = server_command(Path("weights"), target="target-awq", port=1, draft_tokens=4)
    assert json.loads(with_draft[-1]) == {
        "method": "draft_model",
        "model": "weights/draft",
        "num_speculative_tokens": 4,
    }
    alone = server_command(Path("weights"), target="target", port=1, draft_tokens=0)
    # vLLM 0.32 refuses --per-request-spec-decode-metrics without a speculative config.
    assert not {"--speculative-config", "--per-request-spec-decode-metrics"} & set(alone)
