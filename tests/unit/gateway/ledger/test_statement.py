"""Do the lines of a statement add up to its total, whatever the amounts, and is its PDF always the same?"""

from __future__ import annotations

from fractions import Fraction

import msgspec
import pypdfium2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConfigurationError
from gateway.ledger.statement import (
    NANOS_PER_CENT,
    DueLine,
    Statement,
    StatementLine,
    StatementTable,
    cents_text,
    per,
    round_to_cents,
    shared_cents,
)
from gateway.ledger.statement_pdf import TEMPLATE, render

STATEMENT = Statement(
    tenant='Ångström & Söhne #1 _x_ $y$ *z* "q" \\ <a>',
    tenant_id="ten_1",
    month="October 2026",
    period_from="2026-10-01T00:00:00Z",
    period_to="2026-11-01T00:00:00Z",
    number="2026-10/ten_1",
    provisional="The month is not over: these figures will change.",
    due="0.76",
    due_exact="0.756000000",
    due_lines=(
        DueLine("Usage of October 2026", "", "1.006000000", "1.01"),
        DueLine("Credit of 2026-09: #emph[Outage]", "adj_1", "-0.250000000", "-0.25"),
    ),
    total="1.01",
    total_exact="1.006000000",
    facts=(("Requests", "3"), ("Input tokens", "1,000"), ("End users", "2")),
    tables=(
        StatementTable(
            "By project",
            tuple(StatementLine(f"#panic() {n}", "1", "2", "3", "0.01") for n in range(60)),
        ),
        StatementTable("By model", ()),
    ),
    notes=("A note.",),
    sources=(("Basis", "charges"),),
)


@given(st.lists(st.integers(-(10**14), 10**14), max_size=40))
def test_lines_add_up_to_the_rounded_total(amounts: list[int]) -> None:
    cents = shared_cents(amounts)
    assert sum(cents) == round_to_cents(sum(amounts))
    for shown, exact in zip(cents, amounts, strict=True):
        assert abs(shown * NANOS_PER_CENT - exact) < NANOS_PER_CENT, "no line is off by a cent"


@given(st.integers(-(10**18), 10**18))
def test_a_total_is_rounded_half_to_even(nanos: int) -> None:
    assert round_to_cents(nanos) == round(Fraction(nanos, NANOS_PER_CENT))


@given(
    st.lists(st.integers(-(10**14), 10**14), min_size=1, max_size=12),
    st.lists(st.integers(-(10**14), 10**14), max_size=12),
)
def test_parts_of_a_part_add_up_to_what_it_is_shown_as(parts: list[int], others: list[int]) -> None:
    whole, *rest = shared_cents([sum(parts), *others])
    shown = shared_cents(parts, whole)
    assert sum(shown) + sum(rest) == round_to_cents(sum(parts) + sum(others))
    for cents, exact in zip(shown, parts, strict=True):
        assert abs(cents * NANOS_PER_CENT - exact) < NANOS_PER_CENT, "no line is off by a cent"


def test_amounts_for_people() -> None:
    assert [cents_text(each) for each in (0, 5, -5, 123_456_789)] == ["0.00", "0.05", "-0.05", "1,234,567.89"]
    assert per(1_500_000_000, 1_000) == "0.001500"
    assert per(5, 0) == "–"  # noqa: RUF001 - a dash is meant


def test_the_same_statement_is_the_same_file() -> None:
    document = render(STATEMENT)
    assert render(msgspec.json.decode(msgspec.json.encode(STATEMENT), type=Statement)) == document
    assert render(msgspec.structs.replace(STATEMENT, total="1.02")) != document


def test_names_are_never_markup_and_pages_are_numbered() -> None:
    document = pypdfium2.PdfDocument(render(STATEMENT))
    pages = [page.get_textpage().get_text_range() for page in document]
    document.close()
    assert len(pages) == 2
    assert STATEMENT.tenant in pages[0]
    assert "#panic() 0" in pages[0]
    assert "Provisional." in pages[0]
    assert "Credit of 2026-09: #emph[Outage]" in pages[0]
    assert ["page 1 of 2" in pages[0], "page 2 of 2" in pages[1]] == [True, True]


def test_a_folder_of_fonts_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is no folder of fonts"):
        render(STATEMENT, fonts=TEMPLATE)
