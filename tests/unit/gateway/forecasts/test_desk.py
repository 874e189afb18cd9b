"""Is a forecast computed once, one at a time, and refused when too many wait?"""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import Overloaded
from gateway.forecasts.child import Errand, Found
from gateway.forecasts.desk import AT_ONCE, REMEMBERED_S, RETRY_AFTER_S, WAITING_MAX, ForecastDesk


class Child:
    """Computes when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Errand] = []
        self.at_once = self.most_at_once = 0
        self.may_end = asyncio.Event()
        self.now_s = 0.0

    async def ask(self, errand: Errand) -> Found:
        self.asked.append(errand)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.may_end.wait()
        finally:
            self.at_once -= 1
        return Found(forecasts={}, none={}, has_library=True)

    def desk(self) -> ForecastDesk:
        return ForecastDesk(self.ask, monotonic_s=lambda: self.now_s)


def errand(number: int) -> Errand:
    return Errand(series={"total": [float(number)]}, ahead=1, season=7)


async def test_one_runs_few_wait_and_the_others_are_told_when_to_come_back() -> None:
    child = Child()
    desk = child.desk()
    async with asyncio.TaskGroup() as asking:
        for number in range(AT_ONCE + WAITING_MAX):
            asking.create_task(desk.answer(errand(number)))
        await _all_are_in()
        with pytest.raises(Overloaded, match="wait already") as refused:
            await desk.answer(errand(99))
        assert refused.value.retry_after_s == RETRY_AFTER_S
        assert len(child.asked) == AT_ONCE
        child.may_end.set()
    assert (len(child.asked), child.most_at_once) == (AT_ONCE + WAITING_MAX, AT_ONCE)
    await desk.answer(errand(99))


async def test_the_same_question_is_computed_once_and_again_when_it_is_old() -> None:
    child = Child()
    desk = child.desk()
    async with asyncio.TaskGroup() as asking:
        for _ in range(3):
            asking.create_task(desk.answer(errand(1)))
        await _all_are_in()
        child.may_end.set()
    await desk.answer(errand(1))
    assert len(child.asked) == 1
    child.now_s += REMEMBERED_S + 1
    await desk.answer(errand(1))
    assert len(child.asked) == 2


async def test_who_leaves_while_waiting_gives_his_place_back() -> None:
    child = Child()
    desk = child.desk()
    async with asyncio.TaskGroup() as asking:
        for _ in range(3 * (AT_ONCE + WAITING_MAX)):
            leaver = asking.create_task(desk.answer(errand(1)))
            await _all_are_in()
            leaver.cancel()
            await _all_are_in()
    child.may_end.set()
    await desk.answer(errand(2))


async def _all_are_in() -> None:
    """Every task has come to where it waits."""
    for _ in range(3):
        await asyncio.sleep(0)
