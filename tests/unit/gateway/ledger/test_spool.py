"""Does every record survive until it is booked, whoever dies and whatever fails?"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import Overloaded
from gateway.ledger.records import row_of
from gateway.ledger.spool import SUFFIX, TRIM_BYTES, Spool, _create_locked, _is_at
from tests.support.clock import MovableClock
from tests.support.factories import make_end, make_start

Row = dict[str, Any]
LARGE = {"note": "x" * 300_000}
"""Four attempts with it are more than a file may hold before it is trimmed."""


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    found = make_spool(tmp_path)
    yield found
    os.close(found._file)


def make_spool(folder: Path, *, unshipped_max: int = 100) -> Spool:
    return Spool(folder, MovableClock(), unshipped_max=unshipped_max)


def die(spool: Spool) -> None:
    """What is left of a process that was killed: its file, without its lock."""
    os.close(spool._file)


def recovered(folder: Path) -> list[Row]:
    heir = make_spool(folder)
    rows = [row_of(ended) for left in heir.recover() for ended in left.ended]
    heir.close()
    return rows


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def waiting(spool: Spool, count_max: int = 10) -> list[Row]:
    return [row_of(ended) for ended in spool.next_batch(count_max)]


def ids(rows: list[Row]) -> list[Any]:
    return [row["attempt_id"] for row in rows]


# --------------------------------------------------------------------------------------- a living process
def test_an_attempt_is_open_until_it_ends_and_waits_until_it_is_booked(spool: Spool) -> None:
    spool.start(make_start())
    assert (spool.open_count, spool.unshipped_count) == (1, 0)
    spool.end(make_end())
    assert (spool.open_count, spool.unshipped_count) == (0, 1)
    spool.acknowledge(1)
    assert (spool.open_count, spool.unshipped_count) == (0, 0)


def test_a_row_is_what_its_start_and_its_end_say(spool: Spool) -> None:
    spool.start(make_start(tags={"team": "a"}))
    spool.end(make_end(ttft_ms=12))
    (row,) = waiting(spool)
    assert (row["tags"], row["ttft_ms"], row["state"], row["payer"]) == (
        {"team": "a"},
        12,
        "answered",
        "tenant",
    )


def test_a_second_end_is_ignored(spool: Spool) -> None:
    spool.start(make_start())
    spool.end(make_end(charge_usd_nanos=4))
    spool.end(make_end(charge_usd_nanos=9))
    assert [ended.end.charge_usd_nanos for ended in spool.next_batch(10)] == [4]


def test_an_end_without_a_start_is_ignored(spool: Spool) -> None:
    spool.end(make_end("never started"))
    assert spool.next_batch(10) == []


def test_batches_are_the_oldest_ends_and_stay_until_acknowledged(spool: Spool) -> None:
    for name in "abc":
        spool.start(make_start(name))
    for name in "cab":
        spool.end(make_end(name))
    assert ids(waiting(spool, 2)) == ids(waiting(spool, 2)) == ["c", "a"]
    spool.acknowledge(2)
    assert ids(waiting(spool, 2)) == ["b"]


def test_too_much_that_waits_for_the_database_refuses_more(tmp_path: Path) -> None:
    spool = make_spool(tmp_path, unshipped_max=1)
    spool.start(make_start("a"))
    spool.start(make_start("b"))
    spool.end(make_end("a"))
    with pytest.raises(Overloaded, match="1 usage records wait for the database") as caught:
        spool.start(make_start("c"))
    assert caught.value.retry_after_s == 5
    spool.end(make_end("b"))
    spool.acknowledge(2)
    spool.start(make_start("c"))
    die(spool)


# ------------------------------------------------------------------------------------------- the file's size
def test_a_file_in_which_nothing_is_needed_is_emptied(spool: Spool, tmp_path: Path) -> None:
    spool.start(make_start())
    spool.end(make_end())
    assert files(tmp_path)[0].stat().st_size > 0
    spool.acknowledge(1)
    assert files(tmp_path)[0].stat().st_size == 0
    spool.start(make_start("next"))
    assert files(tmp_path)[0].read_bytes().count(b"\n") == 1


def fill(spool: Spool) -> None:
    """Two attempts that are still needed, and before the latter as much as a trim takes."""
    spool.start(make_start("open"))
    for number in range(4):
        spool.start(make_start(str(number), tags=LARGE))
        spool.end(make_end(str(number)))
    spool.start(make_start("waiting"))
    spool.end(make_end("waiting"))


def fill_and_trim(spool: Spool) -> None:
    fill(spool)
    spool.acknowledge(4)


@contextlib.contextmanager
def disk_full_beyond(size_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond that size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_long_file_keeps_only_what_is_needed(spool: Spool, tmp_path: Path) -> None:
    fill_and_trim(spool)
    (path,) = files(tmp_path)
    assert path.stat().st_size < 5_000
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_needed_survives_a_trim_and_a_crash(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    fill_and_trim(spool)
    spool.start(make_start("later"))
    die(spool)
    rows = {row["attempt_id"]: row["state"] for row in recovered(tmp_path)}
    assert rows == {"open": "interrupted", "waiting": "answered", "later": "interrupted"}


def test_a_trimmed_file_is_still_its_owners(spool: Spool, tmp_path: Path) -> None:
    fill_and_trim(spool)
    assert recovered(tmp_path) == []


def test_a_file_whose_every_byte_is_needed_is_not_trimmed_again_and_again(
    spool: Spool, tmp_path: Path
) -> None:
    for number in range(8):
        spool.start(make_start(str(number), tags=LARGE))
    (path,) = files(tmp_path)
    inodes = set()
    for number in range(8, 12):
        spool.start(make_start(str(number)))
        spool.end(make_end(str(number)))
        spool.acknowledge(1)
        inodes.add(path.stat().st_ino)
    assert path.stat().st_size > 2 * TRIM_BYTES
    assert len(inodes) == 1


def test_a_trim_on_a_full_disk_loses_nothing_and_no_descriptor(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    fill(spool)
    before = set(Path("/proc/self/fd").iterdir())
    with disk_full_beyond(100), pytest.raises(OSError, match="File too large"):
        spool.acknowledge(4)
    assert set(Path("/proc/self/fd").iterdir()) == before
    assert list(tmp_path.iterdir()) == files(tmp_path)
    die(spool)
    rows = {row["attempt_id"]: row["state"] for row in recovered(tmp_path)}
    assert (rows["open"], rows["waiting"]) == ("interrupted", "answered")


# ------------------------------------------------------------------------------------------------ disk errors
@pytest.fixture
def full_disk(spool: Spool) -> Iterator[Spool]:
    """A spool whose file takes nothing any more."""
    file = os.dup(spool._file)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, spool._file)
    os.close(full)
    yield spool
    os.close(file)


def test_an_attempt_that_cannot_be_written_down_must_not_start(full_disk: Spool) -> None:
    with pytest.raises(Overloaded, match="No space left") as caught:
        full_disk.start(make_start())
    assert caught.value.retry_after_s == 5
    assert "No space" not in caught.value.caller_detail
    assert full_disk.open_count == 0


def test_an_end_that_cannot_be_written_down_is_still_booked(
    spool: Spool, request: pytest.FixtureRequest
) -> None:
    spool.start(make_start())
    request.getfixturevalue("full_disk")
    spool.end(make_end())
    assert ids(waiting(spool)) == ["att_1"]


def test_records_after_a_torn_one_are_whole(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    spool.start(make_start("before"))
    (path,) = files(tmp_path)
    with disk_full_beyond(path.stat().st_size + 10):
        with pytest.raises(Overloaded, match="only 10 of"):
            spool.start(make_start("torn"))
        with pytest.raises(Overloaded, match="File too large"):
            spool.start(make_start("refused"))
    spool.start(make_start("after"))
    spool.end(make_end("after"))
    die(spool)
    assert {row["attempt_id"]: row["state"] for row in recovered(tmp_path)} == {
        "before": "interrupted",
        "after": "answered",
    }


# --------------------------------------------------------------------------------------------------- recovery
def test_an_attempt_that_never_ended_is_interrupted_at_its_estimate(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    spool.start(make_start(estimated_input_tokens=25, estimated_charge_usd_nanos=3))
    die(spool)
    (row,) = recovered(tmp_path)
    assert (row["state"], row["payer"], row["usage_source"]) == ("interrupted", "platform", "estimated")
    assert (row["input_tokens"], row["charge_usd_nanos"], row["error_code"]) == (25, 3, "gateway_died")
    assert row["ended_at_ms"] == MovableClock().epoch_ms()


def test_an_attempt_that_ended_is_recovered_as_it_ended(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    spool.start(make_start())
    spool.end(make_end())
    expected = waiting(spool)
    die(spool)
    assert recovered(tmp_path) == expected


def test_a_torn_last_line_is_skipped(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    spool.start(make_start("a"))
    spool.start(make_start("b"))
    die(spool)
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    assert ids(recovered(tmp_path)) == ["a"]


def test_an_end_whose_start_is_lost_is_skipped(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    spool.start(make_start("a"))
    spool.end(make_end("a"))
    die(spool)
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes().split(b"\n")[1] + b"\n")
    assert recovered(tmp_path) == []


def test_the_file_of_a_living_process_is_left_alone(spool: Spool, tmp_path: Path) -> None:
    spool.start(make_start())
    assert recovered(tmp_path) == []
    assert len(files(tmp_path)) == 1


def test_every_dead_process_is_recovered_oldest_first(tmp_path: Path) -> None:
    clock = MovableClock()
    for name in ("first", "second"):
        spool = Spool(tmp_path, clock, unshipped_max=10)
        spool.start(make_start(name))
        die(spool)
        clock.move(1)
    assert ids(recovered(tmp_path)) == ["first", "second"]


def test_an_empty_file_of_a_dead_process_has_no_rows_and_may_go(tmp_path: Path) -> None:
    die(make_spool(tmp_path))
    heir = make_spool(tmp_path)
    assert [left.ended for left in heir.recover()] == [[]]
    heir.close()


def test_two_processes_do_not_recover_the_same_file_at_once(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    spool.start(make_start())
    die(spool)
    first, second = make_spool(tmp_path), make_spool(tmp_path)
    at_work = first.recover()
    left = next(at_work)
    assert list(second.recover()) == []
    left.path.unlink()  # booked
    assert list(at_work) == []
    assert list(second.recover()) == []
    assert len(left.ended) == 1
    first.close()
    second.close()


def test_a_file_that_another_process_booked_meanwhile_is_passed_over(tmp_path: Path) -> None:
    for name in "ab":
        spool = make_spool(tmp_path)
        spool.start(make_start(name))
        die(spool)
    heir = make_spool(tmp_path)
    at_work = heir.recover()
    first = next(at_work).path
    for path in files(tmp_path):
        if path not in {first, heir._path}:
            path.unlink()
    assert list(at_work) == []
    heir.close()


def test_a_file_that_was_deleted_before_its_lock_was_had_is_made_again(tmp_path: Path) -> None:
    """A process that recovers takes an empty file whose owner has not locked it yet for a dead one's."""
    path = tmp_path / "new.spool"
    rival = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    fcntl.flock(rival, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(_create_locked, path)
        while sum(is_open_at(link, path) for link in Path("/proc/self/fd").iterdir()) < 2:
            assert not making.done()
        path.unlink()
        os.close(rival)
        made = making.result()
    assert _is_at(made, path)
    os.close(made)


def is_open_at(link: Path, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return link.readlink() == path
    return False


def test_a_file_that_was_replaced_is_not_the_one_of_that_name_any_more(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.touch()
    other.touch()
    descriptor = os.open(path, os.O_RDONLY)
    assert _is_at(descriptor, path)
    other.replace(path)
    assert not _is_at(descriptor, path)
    path.unlink()
    assert not _is_at(descriptor, path)
    os.close(descriptor)


# ------------------------------------------------------------------------------------ closing and syncing
def test_a_file_that_nobody_needs_is_removed_at_the_end(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    spool.start(make_start())
    spool.end(make_end())
    spool.acknowledge(1)
    spool.close()
    assert files(tmp_path) == []


@pytest.mark.parametrize("is_ended", [True, False])
def test_a_file_that_is_still_needed_stays_for_the_next_process(tmp_path: Path, *, is_ended: bool) -> None:
    spool = make_spool(tmp_path)
    spool.start(make_start())
    if is_ended:
        spool.end(make_end())
    spool.close()
    assert ids(recovered(tmp_path)) == ["att_1"]


def test_there_is_something_to_sync_only_after_a_write(spool: Spool) -> None:
    assert spool.file_to_sync() is None
    spool.start(make_start())
    descriptor = spool.file_to_sync()
    assert descriptor is not None
    os.fsync(descriptor)
    os.close(descriptor)
    assert spool.file_to_sync() is None


def test_records_are_readable_by_their_owner_only(spool: Spool, tmp_path: Path) -> None:
    assert files(tmp_path)[0].stat().st_mode & 0o777 == 0o600


def test_two_spools_of_the_same_instant_have_files_of_their_own(tmp_path: Path) -> None:
    first, second = make_spool(tmp_path), make_spool(tmp_path)
    assert len(files(tmp_path)) == 2
    first.close()
    second.close()
