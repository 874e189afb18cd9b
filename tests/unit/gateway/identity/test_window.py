"""Is a minute counted as the window says, and is what it says about room and waiting true?"""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RateLimited
from gateway.identity.limits import Limit, Limiter, Scope
from gateway.identity.window import MINUTE_MS, Window
from tests.support.clock import MovableClock

bounds = st.integers(1, 50)
steps = st.lists(st.tuples(st.integers(0, 45_000), st.integers(1, 12)), max_size=60)
windows = st.builds(
    Window,
    limit=bounds,
    now=st.integers(0, 60),
    before=st.integers(0, 60),
    elapsed_ms=st.integers(0, MINUTE_MS - 1),
)


def exact_use(came: list[tuple[int, int]], now_ms: int) -> Fraction:
    """The formula, from every single request."""
    minute, elapsed_ms = divmod(now_ms, MINUTE_MS)
    now = sum(tokens for at_ms, tokens in came if at_ms // MINUTE_MS == minute)
    before = sum(tokens for at_ms, tokens in came if at_ms // MINUTE_MS == minute - 1)
    return now + before * (1 - Fraction(elapsed_ms, MINUTE_MS))


@given(bound=bounds, steps=steps)
def test_what_passes_is_what_the_formula_allows_and_less_than_twice_the_limit_in_any_minute(
    bound: int, steps: list[tuple[int, int]]
) -> None:
    clock = MovableClock()
    limiter = Limiter(clock)
    limit = Limit(Scope.KEY, "key", tokens_per_minute=bound)
    came: list[tuple[int, int]] = []
    for pause_ms, asked in steps:
        clock.move(pause_ms / 1000)
        tokens, now_ms = min(asked, bound), clock.epoch_ms()
        has_room = exact_use(came, now_ms) + tokens <= bound
        try:
            limiter.admit([limit], tokens).end(None)
            passed = True
        except RateLimited:
            passed = False
        assert passed == has_room
        if passed:
            came.append((now_ms, tokens))
    for at_ms, _ in came:
        assert sum(n for when, n in came if at_ms - MINUTE_MS < when <= at_ms) < 2 * bound
        assert sum(n for when, n in came if when // MINUTE_MS == at_ms // MINUTE_MS) <= bound


def later(window: Window, wait_ms: int) -> Window:
    """The same after a pause in which nothing came."""
    passed, elapsed_ms = divmod(window.elapsed_ms + wait_ms, MINUTE_MS)
    counts = [(window.now, window.before), (0, window.now), (0, 0)][min(passed, 2)]
    return Window(window.limit, *counts, elapsed_ms)


@given(window=windows, data=st.data())
def test_there_is_room_after_the_wait_and_not_before(window: Window, data: st.DataObject) -> None:
    more = data.draw(st.integers(1, window.limit))
    wait_ms = window.wait_ms(more)
    assert window.has_room(more) == (wait_ms == 0)
    assert later(window, wait_ms).has_room(more)
    assert wait_ms == 0 or not later(window, wait_ms - 1).has_room(more)
    assert wait_ms <= 2 * MINUTE_MS


@given(window=windows)
def test_what_remains_may_come_and_one_more_may_not(window: Window) -> None:
    used = window.now + window.before * (1 - Fraction(window.elapsed_ms, MINUTE_MS))
    assert window.remaining == max(0, int((window.limit - used) // 1))
    assert window.has_room(window.remaining) or window.remaining == 0
    assert not window.has_room(window.remaining + 1)
    assert later(window, window.reset_ms).remaining == window.limit
