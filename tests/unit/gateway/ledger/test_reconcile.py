"""Is every difference between a bill and the ledger in exactly one class, to the nano-dollar?"""

from __future__ import annotations

import hashlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.ledger.bills import (
    GPU,
    PROVIDER,
    BillLine,
    Reading,
    bill_hash,
    hashes_before,
    plain_text,
    read_bill,
)
from gateway.ledger.reconcile import Amount, Comparison, Gap, compare

DAYS = range(20_000, 20_010)
CENT = 10_000_000
amounts = st.builds(Amount, st.integers(0, 10**7), st.integers(0, 10**12))
ledgers = st.dictionaries(
    st.sampled_from(["plain", "large"]),
    st.dictionaries(st.integers(DAYS.start * 24 - 14, DAYS.stop * 24 + 14), amounts, max_size=40),
)
bills = st.lists(
    st.builds(
        BillLine,
        day=st.integers(DAYS.start - 2, DAYS.stop + 1),
        pool=st.sampled_from(["plain", "large", "unknown"]),
        quantity=st.integers(-(10**7), 10**7),
        usd_nanos=st.integers(-(10**12), 10**12),
        currency_usd_nanos=st.integers(-(10**6), 10**6),
    ),
    max_size=30,
)


@given(bill=bills, ledger=ledgers, tolerance=st.integers(0, 10**9))
def test_the_classes_add_up_to_the_difference(
    bill: list[BillLine], ledger: dict[str, dict[int, Amount]], tolerance: int
) -> None:
    made = compare(bill, ledger, days=DAYS, tolerance_usd_nanos=tolerance)
    for line in made.lines:
        assert sum(line.gaps.values()) == line.difference_usd_nanos
    assert made.bill_usd_nanos == sum(line.usd_nanos for line in bill)
    within = range(DAYS.start * 24, DAYS.stop * 24)
    ours = sum(each.usd_nanos for hours in ledger.values() for hour, each in hours.items() if hour in within)
    assert made.ledger_usd_nanos == ours
    assert sum(made.by_class().values()) == made.bill_usd_nanos - made.ledger_usd_nanos
    assert sum(made.by_pool_and_class().values()) == sum(made.by_class().values())


def hourly(price: int = 1_000_000) -> dict[int, Amount]:
    """Another quantity every hour, some hours before and after the days too."""
    hours = range(DAYS.start * 24 - 14, DAYS.stop * 24 + 14)
    return {hour: Amount(100 + hour * 7 % 50, (100 + hour * 7 % 50) * price) for hour in hours}


def daily(hours: dict[int, Amount], zone_h: int = 0) -> dict[int, BillLine]:
    lines = {}
    for day in DAYS:
        span = [hours[hour] for hour in range(day * 24 - zone_h, day * 24 - zone_h + 24)]
        lines[day] = BillLine(
            day, "plain", sum(each.quantity for each in span), sum(each.usd_nanos for each in span)
        )
    return lines


def of(bill: dict[int, BillLine], hours: dict[int, Amount]) -> Comparison:
    return compare(bill.values(), {"plain": hours}, days=DAYS, tolerance_usd_nanos=CENT)


def test_a_right_bill_has_no_gaps() -> None:
    hours = hourly()
    assert of(daily(hours), hours).by_class() == {}


def test_each_gap_is_found_for_what_it_is() -> None:
    hours, bill = hourly(), daily(hourly())
    first, second, third, fourth, fifth = (bill[day] for day in list(DAYS)[:5])
    del bill[first.day]
    bill[second.day] = BillLine(second.day, "plain", second.quantity, second.usd_nanos * 2)
    bill[third.day] = BillLine(third.day, "plain", third.quantity + 50, third.usd_nanos + 50_000_000)
    bill[fourth.day] = BillLine(fourth.day, "plain", fourth.quantity, fourth.usd_nanos + CENT)
    bill[fifth.day] = BillLine(fifth.day, "plain", fifth.quantity, fifth.usd_nanos + 5, currency_usd_nanos=5)
    extra = DAYS.stop
    bill[extra] = BillLine(extra, "plain", 10, 77_000_000)
    assert of(bill, hours).by_class() == {
        Gap.MISSING_IN_LEDGER: 77_000_000,
        Gap.MISSING_IN_BILL: -first.usd_nanos,
        Gap.PRICE: second.usd_nanos,
        Gap.QUANTITY: 50_000_000,
        Gap.ROUNDING: CENT,
        Gap.CURRENCY: 5,
    }


@pytest.mark.parametrize("zone_h", [-8, 1, 9])
def test_days_of_another_zone_are_told_from_missing_usage(zone_h: int) -> None:
    hours = hourly()
    made = of(daily(hours, zone_h), hours)
    assert made.zones_h == {"plain": zone_h}
    assert set(made.by_class()) <= {Gap.TIME_ZONE}


PLAIN = "day,pool,quantity,amount,currency,rate\n"


def reading(kind: str = PROVIDER, **rates: str) -> Reading:
    return Reading(kind, "bill.csv", {"gpt": "large"}, {code: Decimal(rate) for code, rate in rates.items()})


def test_a_plain_bill_is_read() -> None:
    text = PLAIN + "2026-10-05,gpt,120000,1.84,,\n2026-10-05,gpt,1,2,EUR,1.10\n"
    assert read_bill(text, reading(EUR="1.08")) == [
        BillLine(20_731, "large", 120_000, 1_840_000_000),
        BillLine(20_731, "large", 1, 2_200_000_000, 40_000_000),
    ]


def test_a_focus_bill_of_gpu_hours_is_read() -> None:
    text = (
        "ChargePeriodStart,BilledCost,BillingCurrency,ConsumedQuantity,ConsumedUnit,ResourceId\n"
        "2026-10-05T23:00:00-02:00,1.5,USD,0.5,Hours,pool/h100-a\n"
    )
    assert read_bill(text, reading(GPU)) == [BillLine(20_732, "h100-a", 1_800_000, 1_500_000_000)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("day,pool\n", "line 1: the columns quantity, amount are missing"),
        (PLAIN, "no line below the first"),
        (PLAIN + "5.10.,gpt,1,1,,\n", "line 2, column day: '5.10.' cannot be read; write a day such as"),
        (PLAIN + "2026-10-05,,1,1,,\n", "line 2, column pool"),
        (PLAIN + "2026-10-05,gpt,many,1,,\n", "line 2, column quantity: 'many'.*number of tokens"),
        (PLAIN + '2026-10-05,gpt,1,1,,\n2026-10-05,gpt,1,"1,5",,\n', "line 3, column amount: '1,5'"),
        (PLAIN + "2026-10-05,gpt,1,NaN,,\n", "column amount"),
        (PLAIN + "2026-10-05,gpt,1,1,EUR,\n", "column currency: 'EUR'.*--rate EUR"),
        (PLAIN + "2026-10-05,gpt,1\n", "line 2: it has another number of columns"),
        (
            "ChargePeriodStart,BilledCost,BillingCurrency,ConsumedQuantity\n",
            "none of the columns ResourceId",
        ),
    ],
)
def test_what_cannot_be_read_names_line_and_column(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read_bill(text, reading())


def test_an_unknown_kind_or_unit_says_which_there_are() -> None:
    with pytest.raises(InvalidRequest, match="one of provider, gpu"):
        read_bill(PLAIN, reading("power"))
    text = "day,pool,quantity,amount,unit\n2026-10-05,gpt,1,1,sheep\n"
    with pytest.raises(InvalidRequest, match=r"column unit: 'sheep'.*tokens"):
        read_bill(text, reading())


@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\r\n\ufeff", codec="utf-8")), min_size=1),
    ends=st.sampled_from(["\r\n", "\r"]),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_a_file_is_the_same_file_whatever_its_lines_end_with(lines: list[str], ends: str, mark: str) -> None:
    plain = "\n".join(lines)
    sent = mark + ends.join(lines)
    assert plain_text(sent) == plain_text(plain) == plain
    kept = hashlib.sha256(plain.encode()).hexdigest()
    assert bill_hash(sent) == bill_hash(plain) == kept, "what was kept of files with plain line ends holds"
    as_it_came = hashlib.sha256(sent.encode()).hexdigest()
    assert {kept, as_it_came} <= hashes_before(sent)
    if ends == "\r\n":
        assert as_it_came in hashes_before(plain), "of a file that a browser once sent as it was"
    assert bill_hash(plain + "x") not in hashes_before(sent)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_bill_is_read_whatever_its_lines_end_with(ends: str) -> None:
    text = ends.join(("day,pool,quantity,amount", "2026-10-05,plain,1,2", "2026-10-06,plain,x,2", ""))
    with pytest.raises(InvalidRequest, match=r"bill\.csv, line 3, column quantity"):
        read_bill(text, Reading(PROVIDER, "bill.csv"))
    (line,) = read_bill(text.replace("2026-10-06,plain,x,2" + ends, ""), Reading(PROVIDER, "bill.csv"))
    assert (line.quantity, line.usd_nanos) == (1, 2_000_000_000)
