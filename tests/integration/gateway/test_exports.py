"""Is the ledger exported by whoever asks: over the API, by the command line, by the calendar?"""

import asyncio
import csv
import hashlib
import io
import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import openpyxl
import pypdfium2
import pytest
from pyarrow import parquet
from sqlalchemy import text

from gateway.admin.exports import AT_ONCE_MAX, Counter, ExportFailed, _answer
from gateway.cli import app as program
from gateway.clock import Clock
from gateway.db import create_engine, session_factory
from gateway.errors import ConfigurationError, Overloaded
from gateway.jobs.export_targets import Delivery, deliver
from gateway.ledger.cuts import month_of, previous_start
from gateway.ledger.exports import Export, Footing
from gateway.pricing.rates import Price, Rates
from gateway.pricing.store import remember_versions
from tests.integration.gateway.rig import ADMIN_KEY, Gateway, bearer
from tests.integration.gateway.terminal import Terminal
from tests.support.servers import s3_server
from tests.support.spend_rows import attempt_row, book_rows

EXPORTS = "/admin/v1/exports"
THIS = month_of(Clock().now())[0]
LAST = previous_start("month", THIS)
BEFORE = previous_start("month", LAST)
"""The last two months that are over: files are written for each month since, so it must not be long ago."""
EMBEDDED = pytest.mark.parametrize("home", ["embedded"], indirect=True)


async def export(gateway: Gateway, **params: str) -> Any:
    return await gateway.client.get(EXPORTS, params=params, headers=bearer(ADMIN_KEY))


@EMBEDDED
async def test_the_api_streams_what_the_report_says(gateway: Gateway) -> None:
    await gateway.chat("Tell me a story", metadata={"team": "=1+1"})
    await gateway.chat("Extract all names: Bob")
    rows = await gateway.rows(2)
    answer = await export(gateway, group_by="tenant,tag:team", filter="tenant=acme")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="tollgate-groups.csv"'
    lines = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert {(line["tenant"], line["tag:team"]) for line in lines} == {("acme", "'=1+1"), ("acme", "")}
    charged = sum(int(line["charge_usd"].replace(".", "")) for line in lines)
    assert charged == sum(row.charge_usd_nanos or 0 for row in rows)
    assert int(answer.headers["x-tollgate-control-total-usd"].replace(".", "")) == charged
    assert answer.headers["x-tollgate-ledger-high-water"].startswith("jtx_")
    answer = await export(gateway, rows="attempts", format="parquet", filter="tenant=acme")
    table = parquet.read_table(io.BytesIO(answer.content))
    assert sorted(table.column("attempt_id").to_pylist()) == sorted(row.attempt_id for row in rows)
    assert answer.headers["x-tollgate-row-count"] == "2"


@EMBEDDED
async def test_a_question_that_cannot_be_answered_is_no_file(gateway: Gateway) -> None:
    for params, status, said in (
        ({"format": "pdf"}, 400, "No format 'pdf'; there are csv"),
        ({"filter": "tenant"}, 400, "A filter is written dimension=value"),
        ({"filter": "tenant=acne"}, 404, "No tenant 'acne' for the filter tenant=…. Did you mean 'acme'?"),
        ({"from": "2026-11-02", "to": "2026-11-01"}, 400, "The end of the report must be after"),
    ):
        answer = await export(gateway, **params)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), params
        assert said in answer.json()["error"]["message"]
    schedules = await gateway.client.get(f"{EXPORTS}/schedules", headers=bearer(ADMIN_KEY))
    assert (schedules.status_code, schedules.json()) == (200, {"schedules": []})


@EMBEDDED
async def test_a_file_that_breaks_off_breaks_the_connection_and_a_client_that_leaves_ends_it(
    gateway: Gateway,
) -> None:
    await gateway.chat("Hm")
    await gateway.rows(1)
    url = gateway.settings.effective_database_url
    wanted = Export(format="csv", start_ms=0, end_ms=3_600_000 * 10**6, rows="attempts")
    counter = Counter()
    counter.take()
    left = await _answer(wanted, url, counter)
    await left(SCOPE, _gone, _away)
    assert counter.count == 0
    async with gateway.services.sessions() as session:
        await session.execute(text("UPDATE spend_hours SET charge_usd_nanos = charge_usd_nanos + 1"))
        await session.commit()
    counter.take()
    broken = await _answer(wanted, url, counter)
    with pytest.raises(ExportFailed):
        await broken(SCOPE, _patient, _away)
    assert counter.count == 0
    for _ in range(AT_ONCE_MAX):
        counter.take()
    with pytest.raises(Overloaded, match="makes 2 exports at a time"):
        counter.take()


SCOPE = {"type": "http", "method": "GET", "asgi": {"version": "3.0", "spec_version": "2.3"}}


async def _gone() -> dict[str, Any]:
    return {"type": "http.disconnect"}


async def _patient() -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


async def _away(message: Any) -> None:
    del message


# ------------------------------------------------------------------------------------------- the command line
@pytest.fixture
def terminal(home: Path) -> Terminal:
    found = Terminal(home)
    key = found.json("keys", "create", "--tenant", "acme")
    rows = [
        attempt_row(
            number,
            started_at_ms=ms(f"{(LAST, BEFORE)[number % 2]:%Y-%m}", 5 + number),
            tenant_id=key["tenant_id"],
            project_id=key["project_id"],
            key_id=key["id"],
            pool="plain",
            price_version="plain@1",
            tags={"team": "search"} if number % 3 else {},
            input_tokens=1_234_567_890 + number,
            hold_usd_nanos=1_234_567_890 + number,
            charge_usd_nanos=1_234_567_890 + number,
        )
        for number in range(6)
    ]
    asyncio.run(_booked(found.environment["TOLLGATE_DATABASE_URL"], rows))
    return found


async def _booked(url: str, rows: list[dict[str, Any]]) -> None:
    engine = create_engine(url)
    async with session_factory(engine)() as session:
        # A nano-USD per input token, so that the books are right and a month may be closed.
        price = Price("plain@1", Rates(1_000_000, 0, 0, 0, 0))
        await remember_versions(session, {"plain": price}, now_ms=1)
        await book_rows(session, rows)
        await session.commit()
    await engine.dispose()


def ms(month: str, day: int) -> int:
    return int(datetime.fromisoformat(f"{month}-{day:02d}T01:30:00Z").timestamp() * 1000)


IN_LAST = ("--from", f"{LAST:%Y-%m-%d}", "--to", f"{THIS:%Y-%m-%d}")
BETWEEN = ("--from", f"{BEFORE:%Y-%m-%d}", "--to", f"{THIS:%Y-%m-%d}")


@EMBEDDED
def test_a_report_with_everything_beside_it(terminal: Terminal) -> None:
    said = terminal.text("report", "--by", "tag:team", *IN_LAST, "--compare")
    assert f"compared with {BEFORE:%Y-%m}-01 00:00 to {LAST:%Y-%m}-01 00:00 UTC" in said
    assert "untagged" in said
    assert "+0.0 %" in said
    units = terminal.text("report", "--by", "model", *BETWEEN, "--units", "--end-users")
    assert "1.234568" in units
    chart = terminal.text("report", "--by", "month", *BETWEEN, "--chart", "--where", "project=acme/default")
    assert [line.split()[0] for line in chart.splitlines() if "█" in line] == [
        f"{BEFORE:%Y-%m}",
        f"{LAST:%Y-%m}",
    ]
    found = terminal.json("report", "--by", "day", *BETWEEN, "--top", "2", "--where", "tenant=acme")
    assert (len(found["rows"]), found["others"]["rows"], found["row_count"]) == (2, 4, 3)
    assert found["control_total"] == {
        "charge_usd": "7.407407355",
        "platform_usd": "0.000000000",
        "requests": 6,
        "is_footed": True,
    }
    assert found["price_versions"] == ["plain@1"]
    assert (found["time_zone"], found["basis"], found["source"]) == ("UTC", "charge", "hours")
    assert "No project 'ads' for the filter" in terminal.refused("report", "--where", "project=ads")
    assert "Cannot order by" in terminal.refused("report", "--order", "colour")


@EMBEDDED
def test_budgets_burn_down(terminal: Terminal) -> None:
    limit = ("--window", "total", "--limit", "10")
    terminal.json("budgets", "create", "all of it", "--tenant", "acme", *limit)
    (burning,) = terminal.json("budgets", "burn-down")
    assert (burning["outlook"], burning["runs_out_at"]) == ("unknown", None)
    assert "its window began less than an hour ago" in terminal.text("budgets", "burn-down")


@EMBEDDED
def test_files_of_every_format(terminal: Terminal, tmp_path: Path) -> None:
    for name in ("csv", "xlsx", "parquet"):
        path = tmp_path / f"all.{name}"
        told = terminal.json("export", "--format", name, "--by", "tenant,month", *BETWEEN, "-o", str(path))
        assert (told["rows"], told["charge_usd"]) == (2, "7.407407355")
        about = json.loads(Path(f"{path}.about.json").read_text())
        assert (about["control_total_charge_usd"], about["sha256"]) == ("7.407407355", told["sha256"])
    book = openpyxl.load_workbook(tmp_path / "all.xlsx")
    assert [cell.value for cell in book["rows"]["B"]] == ["tenant", "acme", "acme"]
    assert "--rows is groups or attempts" in terminal.refused("export", "--rows", "cells")
    assert "give the file with -o" in terminal.refused("export", "--json")


@EMBEDDED
def test_a_statement_adds_up_and_is_the_same_again(terminal: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "acme.pdf"
    said = terminal.text("statement", "--tenant", "acme", "--month", f"{LAST:%Y-%m}", "-o", str(path))
    assert f"acme, {LAST:%B %Y}: 3.70 USD due (exact 3.703703676), provisional in" in said
    document = pypdfium2.PdfDocument(path)
    shown = "".join(page.get_textpage().get_text_range() for page in document)
    document.close()
    for words in (f"{LAST:%B %Y}", "acme", "3.70 USD", "exact: 3.703703676 USD", "By project", "page 1 of 1"):
        assert words in shown, words
    assert "Provisional. The month is not closed yet" in shown.replace("\r\n", " ")
    assert "all times are UTC" in shown
    found = terminal.json("statement", "--tenant", "acme", "--month", f"{LAST:%Y-%m}")
    assert [line["amount"] for line in found["tables"][0]["lines"]] == ["3.70"]
    refused = terminal.refused("statement", "--tenant", "acme", "--month", "October")
    assert "A month is written 2026-11" in refused


@EMBEDDED
def test_schedules_write_what_is_provisional_and_then_what_is_final(
    terminal: Terminal, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    add = ("export", "schedule", "add", "finance", "--every", "month", "--to", str(folder), "--format", "csv")
    made = terminal.json(*add, "--by", "tenant,day", "--from", f"{BEFORE:%Y-%m}-15")
    assert made["begins"] == f"{BEFORE:%Y-%m}-01T00:00:00Z"
    due = terminal.json("export", "schedule", "run")
    written = due["written"]
    # The current month is among them from its second day on.
    assert written[:2] == [f"finance-{month:%Y-%m}.provisional.csv" for month in (BEFORE, LAST)]
    assert due["left"] == []
    assert sorted(each.name for each in folder.iterdir() if each.suffix == ".csv") == sorted(written)
    assert len((folder / written[0]).read_text().splitlines()) == 4
    assert terminal.text("export", "schedule", "run") == "Nothing is due.\n"
    terminal.environment["TOLLGATE_SECRET_KEY"] = "k" * 64
    terminal.json("period", "close", f"{BEFORE:%Y-%m}", "--now")
    final = f"finance-{BEFORE:%Y-%m}.csv"
    assert terminal.json("export", "schedule", "run")["written"] == [final]
    assert terminal.text("export", "schedule", "run") == "Nothing is due.\n"
    (listed,) = terminal.json("export", "schedule", "list")
    assert [each["is_final"] for each in listed["files"]].count(True) == 1
    assert listed["files"][-2]["control_total_usd"] == "3.703703679"
    assert written[-1] in terminal.text("export", "schedule", "list")
    assert terminal.text("export", "schedule", "remove", "finance") == "finance writes nothing any more.\n"
    assert terminal.json("export", "schedule", "list") == []
    actions = [entry["action"] for entry in terminal.audit()]
    assert {"export_schedule.create", "export_schedule.retire"} <= set(actions)
    for wrong, said in (
        (("a/b", "--every", "month", "--to", "x"), "becomes the name of files"),
        (("a", "--every", "hour", "--to", "x"), "`every` is day, week, month"),
        (("a", "--every", "day", "--to", "gs://b"), "Exports go to a folder or to s3://bucket/prefix"),
        (("a", "--every", "day", "--to", "s3://"), "A bucket is written s3://bucket"),
        (("finance", "--every", "day", "--to", "x"), "There is an export schedule 'finance' already"),
        (("a", "--every", "day", "--to", "x", "--by", "colour"), "Cannot group by 'colour'"),
    ):
        assert said in terminal.refused("export", "schedule", "add", *wrong)
    assert "No export schedule 'b'" in terminal.refused("export", "schedule", "remove", "b")


@EMBEDDED
def test_schedules_write_to_a_bucket(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for variable, value in keys.items():
        monkeypatch.setenv(variable, value)
    name = f"acme-{LAST:%Y-%m}.provisional.parquet"
    with s3_server() as endpoint:
        s3 = boto3.client("s3", endpoint_url=endpoint)
        to = ("--to", "s3://ledger/monthly/", "--endpoint-url", endpoint)
        add = ("export", "schedule", "add", "acme", "--every", "month", *to)
        terminal.json(*add, "--format", "parquet", "--from", f"{LAST:%Y-%m-%d}")
        outcome = terminal.runner.invoke(
            program,
            ["export", "schedule", "run"],
            env=terminal.environment,
        )
        assert outcome.exit_code == 1, "the bucket is not there"
        assert f"{name} is not written" in outcome.stdout
        s3.create_bucket(Bucket="ledger")
        assert f"{name} is written." in terminal.text("export", "schedule", "run")
        content = s3.get_object(Bucket="ledger", Key=f"monthly/{name}")["Body"].read()
        s3.head_object(Bucket="ledger", Key=f"monthly/{name}.about.json")
        _a_final_object_is_left_alone(terminal, s3, endpoint)
    assert parquet.read_table(io.BytesIO(content)).num_rows == 1
    (listed,) = terminal.json("export", "schedule", "list")
    assert listed["files"][-1]["place"] == f"s3://ledger/monthly/{name}"
    assert listed["files"][-1]["is_final"] is False


def _a_final_object_is_left_alone(terminal: Terminal, s3: Any, endpoint: str) -> None:
    terminal.environment["TOLLGATE_SECRET_KEY"] = "k" * 64
    for month in (BEFORE, LAST):
        terminal.json("period", "close", f"{month:%Y-%m}", "--now")
    name = f"acme-{LAST:%Y-%m}.parquet"
    assert terminal.json("export", "schedule", "run")["written"] == [name]
    key = {"Bucket": "ledger", "Key": f"monthly/{name}"}
    content = s3.get_object(**key)["Body"].read()
    to = Delivery(target="s3://ledger/monthly/", name=name, endpoint_url=endpoint, is_final=True)
    url = terminal.environment["TOLLGATE_DATABASE_URL"]
    again = asyncio.run(_delivered(url, to))
    assert (again.sha256, again.place) == (
        hashlib.sha256(content).hexdigest(),
        f"s3://ledger/monthly/{name}",
    )
    assert s3.get_object(**key)["Body"].read() == content
    s3.put_object(**key, Body=b"changed")
    with pytest.raises(ConfigurationError, match="never written over"):
        asyncio.run(_delivered(url, to))
    assert s3.get_object(**key)["Body"].read() == b"changed"


async def _delivered(url: str, to: Delivery) -> Footing:
    engine = create_engine(url)
    wanted = Export(format="parquet", start_ms=ms(f"{LAST:%Y-%m}", 1), end_ms=ms(f"{THIS:%Y-%m}", 1))
    async with session_factory(engine)() as session:
        footing = await deliver(session, wanted, to, now_ms=1)
    await engine.dispose()
    return footing


# ------------------------------------------------------------------------------------------------------ FOCUS
@EMBEDDED
async def test_the_api_says_focus_of_both_sides(gateway: Gateway) -> None:
    await gateway.chat("Extract all names: Bob")
    (row,) = await gateway.rows(1)
    answer = await export(gateway, format="focus", focus_version="1.4")
    assert answer.status_code == 200, answer.text
    lines = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    ours = [line for line in lines if line["SubAccountName"] == "acme"]
    assert sum(Decimal(line["BilledCost"]) for line in ours) * 10**9 == row.charge_usd_nanos
    assert {line["ServiceProviderName"] for line in lines} == {"Tollgate"}
    answer = await export(gateway, format="focus", side="supply")
    assert answer.status_code == 200, answer.text
    answer = await export(gateway, format="focus", side="both")
    assert answer.status_code in {400, 422}


@EMBEDDED
def test_focus_files_on_the_command_line_and_by_the_calendar(terminal: Terminal, tmp_path: Path) -> None:
    terminal.environment["TOLLGATE_FINANCE__ORGANISATION"] = "Example GmbH"
    month = f"{LAST:%Y-%m}"
    told = [
        terminal.json("export", "--format", "focus", "--month", month, "-o", str(tmp_path / f"last.{suffix}"))
        for suffix in ("csv", "parquet")
    ]
    assert told[0]["charge_usd"] == told[1]["charge_usd"] == "3.703703676"
    assert "rounding_residue_usd" in told[0]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "last.csv").read_text(encoding="utf-8"), newline="")))
    assert {line["BillingAccountName"] for line in lines} == {"Example GmbH"}
    assert parquet.read_table(tmp_path / "last.parquet").num_rows == len(lines) == told[0]["rows"]
    about = json.loads((tmp_path / "last.csv.about.json").read_text(encoding="utf-8"))
    assert about["title"] == "FOCUS 1.2 cost and usage, demand side"
    assert "--side is demand or supply" in terminal.refused("export", "--format", "focus", "--side", "both")
    assert "are of --format focus" in terminal.refused("export", "--side", "supply")
    assert "--month, or --from" in terminal.refused("export", "--month", month, "--from", "2026-01-01")
    options = ("--every", "month", "--from", f"{LAST:%Y-%m-%d}", "--to", str(tmp_path / "monthly"))
    terminal.json(
        "export", "schedule", "add", "focus", "--format", "focus", "--focus-version", "1.4", *options
    )
    terminal.json("export", "schedule", "run")
    (written,) = (tmp_path / "monthly").glob(f"focus-{LAST:%Y-%m}*.csv")
    assert "ServiceProviderName" in written.read_text(encoding="utf-8").partition("\n")[0]
