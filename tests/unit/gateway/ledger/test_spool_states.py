"""Whatever happens in whatever order: is every attempt that started booked, once, as it ended?"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.ledger.records import Ended
from gateway.ledger.spool import SUFFIX, Spool
from tests.support.clock import MovableClock
from tests.support.factories import make_end, make_start

LARGE = {"note": "x" * 300_000}


class SpoolMachine(RuleBasedStateMachine):
    """A process that starts, ends, ships, crashes and recovers, beside a dictionary that cannot fail."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._clock = MovableClock()
        self._spool = self._process()
        self._count = 0
        self.expected: dict[str, tuple[str, int]] = {}
        """State and charge of every attempt that ever started."""
        self.open: list[str] = []
        self.database: dict[str, tuple[str, int | None]] = {}

    def _process(self) -> Spool:
        return Spool(Path(self._folder.name), self._clock, unshipped_max=1_000)

    def _book(self, batch: list[Ended]) -> None:
        for start, end in batch:
            booked = (str(end.state), end.charge_usd_nanos)
            known = self.database.setdefault(start.attempt_id, booked)
            assert known == booked, "the same attempt was booked twice, differently"

    @rule(is_large=st.booleans())
    def start(self, *, is_large: bool) -> None:
        name = f"att_{self._count}"
        self._count += 1
        self._spool.start(
            make_start(name, tags=LARGE if is_large else {}, estimated_charge_usd_nanos=self._count)
        )
        self.expected[name] = ("interrupted", self._count)
        self.open.append(name)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.open))
        self.open.remove(name)
        charge = 1_000 + len(name)
        self._spool.end(make_end(name, charge_usd_nanos=charge))
        self._spool.end(make_end(name, charge_usd_nanos=charge + 1))
        self.expected[name] = ("answered", charge)

    @rule(count=st.integers(1, 5), is_acknowledged=st.booleans())
    def ship(self, *, count: int, is_acknowledged: bool) -> None:
        rows = self._spool.next_batch(count)
        self._book(rows)
        if is_acknowledged:
            self._spool.acknowledge(len(rows))

    @rule()
    def crash_and_recover(self) -> None:
        os.close(self._spool._file)
        self._restart()

    @rule()
    def stop_and_start_again(self) -> None:
        self._spool.close()
        self._restart()

    def _restart(self) -> None:
        self._clock.move(1)
        self._spool = self._process()
        for left in self._spool.recover():
            self._book(left.ended)
            left.path.unlink()
        self.open.clear()
        assert self.database == self.expected

    @invariant()
    def nothing_is_booked_that_did_not_end(self) -> None:
        assert all(self.expected[name] == booked for name, booked in self.database.items())

    @invariant()
    def there_is_one_file(self) -> None:
        assert len(list(Path(self._folder.name).glob(f"*{SUFFIX}"))) == 1

    def teardown(self) -> None:
        os.close(self._spool._file)
        self._restart()
        os.close(self._spool._file)
        self._folder.cleanup()


SpoolMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25)
TestSpool = SpoolMachine.TestCase
