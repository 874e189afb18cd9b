"""Is there one root key, long enough, and does everybody who starts at once get the same?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from pydantic import SecretStr

from gateway.errors import ConfigurationError
from gateway.identity.root_key import derive, generated_secret, load_admin_key, load_root_key
from gateway.settings import Settings

LONG = "k" * 32
POSTGRESQL = "postgresql+asyncpg://localhost/tollgate"


def refusal(load: object, settings: Settings) -> str:
    assert callable(load)
    with pytest.raises(ConfigurationError) as caught:
        load(settings)
    return caught.value.caller_detail


# ------------------------------------------------------------------------------------------ generated ones
def test_a_secret_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "state" / "secret-key"
    first = generated_secret(path)
    assert len(first) == 64
    assert generated_secret(path) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_two_installations_have_secrets_of_their_own(tmp_path: Path) -> None:
    assert generated_secret(tmp_path / "a") != generated_secret(tmp_path / "b")


def test_all_that_start_at_once_agree(tmp_path: Path) -> None:
    count = 8
    barrier = Barrier(count)

    def start(_: int) -> str:
        barrier.wait(timeout=30)
        return generated_secret(tmp_path / "secret-key")

    for attempt in range(10):
        with ThreadPoolExecutor(count) as pool:
            assert len(set(pool.map(start, range(count)))) == 1
        (tmp_path / "secret-key").rename(tmp_path / f"old-{attempt}")
    assert len(list(tmp_path.iterdir())) == 10


# -------------------------------------------------------------------------------------------- the root key
def test_on_one_machine_the_root_key_is_generated(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    assert (
        load_root_key(settings) == load_root_key(settings) == (tmp_path / "secret-key").read_bytes().strip()
    )


def test_a_root_key_that_is_set_is_used(tmp_path: Path) -> None:
    assert load_root_key(Settings(state_dir=tmp_path, secret_key=SecretStr(LONG))) == LONG.encode()
    assert list(tmp_path.iterdir()) == []


def test_the_first_key_of_a_list_is_in_force() -> None:
    rotated = SecretStr(f" {LONG} , {'o' * 32}")
    assert load_root_key(Settings(secret_key=rotated)) == LONG.encode()


def test_a_root_key_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{LONG}\n")
    assert load_root_key(Settings(secret_key_file=path)) == LONG.encode()


@pytest.mark.parametrize("key", ["", "k" * 31, f",{LONG}", " " * 40])
def test_a_root_key_that_is_too_short_is_refused(key: str) -> None:
    assert "at least 32 are needed" in refusal(load_root_key, Settings(secret_key=SecretStr(key)))


def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    found = refusal(load_root_key, Settings(secret_key_file=tmp_path / "missing"))
    assert found.startswith("TOLLGATE_SECRET_KEY_FILE: ")
    assert "missing" in found


def test_a_key_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"\xff" * 40)
    found = refusal(load_root_key, Settings(secret_key_file=path))
    assert found.startswith("TOLLGATE_SECRET_KEY_FILE: ")


def test_with_a_shared_database_the_root_key_must_be_given(tmp_path: Path) -> None:
    found = refusal(load_root_key, Settings(state_dir=tmp_path, database_url=POSTGRESQL))
    assert found.startswith("TOLLGATE_SECRET_KEY is not set: on PostgreSQL every replica needs the same")
    assert list(tmp_path.iterdir()) == []


def test_what_is_derived_belongs_to_its_purpose_and_its_root() -> None:
    assert len(derive(b"root", "a")) == 32
    assert derive(b"root", "a") == derive(b"root", "a")
    assert len({derive(b"root", "a"), derive(b"root", "b"), derive(b"toor", "a")}) == 3


# ------------------------------------------------------------------------------------------- the admin key
def test_on_one_machine_the_admin_key_is_generated_and_looks_like_one(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    key = load_admin_key(settings)
    assert key.startswith("tga-")
    assert load_admin_key(settings) == key


def test_an_admin_key_that_is_set_is_used() -> None:
    assert load_admin_key(Settings(admin_key=SecretStr(LONG))) == LONG


def test_an_admin_key_that_is_too_short_is_refused() -> None:
    assert "at least 32 characters" in refusal(load_admin_key, Settings(admin_key=SecretStr("short")))


def test_with_a_shared_database_the_admin_key_must_be_given() -> None:
    assert "TOLLGATE_ADMIN_KEY is not set" in refusal(load_admin_key, Settings(database_url=POSTGRESQL))
