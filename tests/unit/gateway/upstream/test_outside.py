"""Is what speaks to external targets shared by versions that name the same, and closed when none is left?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.upstream.outside import Endpoint, Outside, OutsideByVersion
from tests.support.clock import MovableClock

ONE = {"away": Endpoint("https://one.example/v1", None)}
OTHER = {"away": Endpoint("https://other.example/v1", None)}


class Speaker:
    """Speaks to nobody; knows whether it was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    async def complete(self, call: Any, decision: Any, target: Any) -> Any:
        raise AssertionError((call, decision, target))

    async def open(self, call: Any, decision: Any, target: Any) -> Any:
        raise AssertionError((call, decision, target))

    async def close(self) -> None:
        self.is_closed = True


class Speakers:
    """Makes them."""

    def __init__(self) -> None:
        self.made: list[Speaker] = []

    async def __call__(
        self, endpoints: Mapping[str, Endpoint], *, connect_timeout_s: float
    ) -> Outside | None:
        assert connect_timeout_s == 2
        if not endpoints:
            return None
        self.made.append(Speaker())
        return self.made[-1]

    @property
    def open_count(self) -> int:
        return sum(not each.is_closed for each in self.made)


async def test_canaries_that_come_and_go_leave_no_client_behind() -> None:
    clock, speakers = MovableClock(), Speakers()
    outside = OutsideByVersion(clock, connect_timeout_s=2, keep_s=60, load=speakers)
    for number in range(5):
        await outside.load("active@1", ONE)
        await outside.load(f"candidate@{number}", OTHER, beside="active@1")
        await outside.load("active@1", ONE)  # the canary is over
        clock.move(61)
    await outside.load("active@1", ONE)
    clock.move(61)
    await outside.load("active@1", ONE)
    assert speakers.open_count == 1
    await outside.close()
    assert speakers.open_count == 0


async def test_versions_with_the_same_endpoints_share_a_client_until_the_last_is_left() -> None:
    clock, speakers = MovableClock(), Speakers()
    outside = OutsideByVersion(clock, connect_timeout_s=2, keep_s=60, load=speakers)
    await outside.load("a@1", ONE)
    await outside.load("b@1", dict(ONE))
    clock.move(61)
    await outside.load("c@1", {})
    assert [each.is_closed for each in speakers.made] == [False], "b@1 was left just now"
    clock.move(61)
    await outside.load("d@1", {})
    assert [each.is_closed for each in speakers.made] == [True]
