"""Is a task remembered only when it is sure, and given up as soon as it is not?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.inference import Task, TaskSource, TaskType
from gateway.routing.classifier.memory import (
    AGREEING,
    CHECK_EVERY,
    SYSTEM_CHARS_MIN,
    Key,
    TaskMemory,
    key_of,
)

CODE = Task(type=TaskType.CODE, source=TaskSource.CLASSIFIER, confidence=0.8)
QA = Task(type=TaskType.QA, source=TaskSource.CLASSIFIER, confidence=0.6)
UNKNOWN = Task(type=TaskType.CHAT, source=TaskSource.DEFAULT, confidence=0.0)
SYSTEM = "You answer in code. " * 10


def key(key_id: str = "key-1", system: str = SYSTEM, *, has_tools: bool = False) -> Key:
    found = key_of(key_id, system, has_tools=has_tools)
    assert found is not None
    return found


def taught(memory: TaskMemory, times: int, task: Task = CODE) -> None:
    for _ in range(times):
        memory.learn(key(), task)


def test_a_task_is_remembered_after_so_many_that_agree_and_not_one_earlier() -> None:
    memory = TaskMemory()
    taught(memory, AGREEING - 1)
    assert memory.recall(key()) is None
    taught(memory, 1)
    assert memory.recall(key()) == CODE


def test_one_request_in_so_many_is_classified_afresh() -> None:
    memory = TaskMemory()
    taught(memory, AGREEING)
    asked = [memory.recall(key()) is None for _ in range(5 * CHECK_EVERY)]
    assert sum(asked) == 5
    assert asked[CHECK_EVERY - 1]


@pytest.mark.parametrize("other", [QA, UNKNOWN])
def test_one_that_disagrees_or_is_unsure_ends_it(other: Task) -> None:
    memory = TaskMemory()
    taught(memory, AGREEING)
    memory.learn(key(), other)
    assert memory.recall(key()) is None
    taught(memory, AGREEING - 1)
    assert memory.recall(key()) is None


def test_a_check_that_agrees_changes_nothing() -> None:
    memory = TaskMemory()
    taught(memory, AGREEING)
    memory.learn(key(), Task(type=TaskType.CODE, source=TaskSource.SIGNAL, confidence=0.9))
    assert memory.recall(key()) == CODE


def test_what_only_signals_said_is_remembered_as_a_signal() -> None:
    memory = TaskMemory()
    taught(memory, AGREEING, Task(type=TaskType.CODE, source=TaskSource.SIGNAL, confidence=0.9))
    known = memory.recall(key())
    assert known is not None
    assert (known.source, known.confidence) == (TaskSource.SIGNAL, 0.9)


def test_no_key_for_a_system_prompt_that_is_empty_or_short() -> None:
    assert key_of("key-1", "", has_tools=False) is None
    assert key_of("key-1", "x" * (SYSTEM_CHARS_MIN - 1), has_tools=False) is None
    assert key_of("key-1", "x" * SYSTEM_CHARS_MIN, has_tools=False) is not None


@pytest.mark.parametrize(
    "other", [key("key-2"), key(system=SYSTEM + "."), key(has_tools=True)], ids=["key", "prompt", "tools"]
)
def test_pairs_do_not_share(other: Key) -> None:
    memory = TaskMemory()
    taught(memory, AGREEING)
    assert memory.recall(other) is None


def test_the_pairs_that_were_not_used_for_longest_are_forgotten() -> None:
    memory = TaskMemory(pairs_max=2)
    for name in ("a", "b"):
        for _ in range(AGREEING):
            memory.learn(key(name), CODE)
    assert memory.recall(key("a")) == CODE
    memory.learn(key("c"), CODE)
    assert len(memory) == 2
    assert memory.recall(key("b")) is None
    assert memory.recall(key("a")) == CODE
    memory.forget()
    assert len(memory) == 0


@given(st.lists(st.sampled_from([CODE, QA, UNKNOWN]), max_size=150))
def test_what_is_remembered_always_had_so_many_agree_at_the_end(fresh: list[Task]) -> None:
    """As the gateway uses it, against the plain rule: a run of equal fresh answers, ended by any other."""
    memory = TaskMemory()
    run: list[Task] = []
    since_check = 0
    for task in fresh:
        known = memory.recall(key())
        if len(run) >= AGREEING:
            since_check += 1
            if since_check < CHECK_EVERY:
                assert known is not None
                assert known.type is run[-1].type
                continue
            since_check = 0
        assert known is None
        memory.learn(key(), task)
        if task is UNKNOWN:
            run = []
        elif run and run[-1].type is not task.type:
            run = [task]
        else:
            run.append(task)
        if len(run) <= 1:
            since_check = 0
