"""Is a closed report read that an older version wrote, and what is not known of it then?"""

from __future__ import annotations

import zlib

import msgspec

from gateway.ledger.frozen import OfTenant, frozen_in
from gateway.ledger.period_tables import ClosedPeriod

OLDER: dict[str, object] = {
    "format": "tollgate-period/1",
    "period": "2026-01",
    "closed_at": "2026-02-04T00:00:00Z",
    "closed_by": "cli:finance",
    "ledger_high_water": {"journal_id": "jtx_1", "bookings": 7},
    "price_versions": ["plain@1"],
    "price_versions_are": "used",
    "names": {"tenant": {"ten_1": "acme"}},
    "ledger": {"totals": {}},
}


def closed(report: dict[str, object]) -> ClosedPeriod:
    packed = zlib.compress(msgspec.json.encode(report))
    return ClosedPeriod(id="2026-01", report=packed)  # type: ignore[call-arg]


def test_a_report_of_an_older_version_says_what_it_has() -> None:
    frozen = frozen_in(closed(OLDER))
    assert (frozen.tenants, frozen.ledger_high_water.at) == (None, None)
    assert frozen.names["tenant"]["ten_1"] == "acme"
    assert msgspec.json.decode(frozen.ledger) == OLDER["ledger"]


def test_what_is_kept_of_tenants_is_read_back() -> None:
    of = OfTenant(3, ("plain@1", "plain@2"))
    frozen = frozen_in(closed({**OLDER, "tenants": {"ten_1": of}}))
    assert frozen.tenants == {"ten_1": of}
