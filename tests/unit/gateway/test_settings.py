"""Are settings read from where they are set, mistakes named, and secrets kept?"""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.errors import ConfigurationError
from gateway.settings import MASK, Settings, load_settings, masked

SECRET = "s3cret-" * 8


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start in, and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in list(settings_in_environment()):
        monkeypatch.delenv(name)
    return tmp_path


def settings_in_environment() -> list[str]:
    lines = Path("/proc/self/environ").read_bytes().split(b"\0")
    names = [line.split(b"=")[0].decode() for line in lines]
    return [name for name in names if name.upper().startswith("TOLLGATE_")]


def set_all(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"TOLLGATE_{name}", value)


def refusal() -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    return caught.value.caller_detail


# ------------------------------------------------------------------------------------------------- sources
def test_without_anything_set_the_defaults_hold() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.is_embedded) == ("127.0.0.1", 8080, True)
    assert settings.timeouts.total_s == 600


def test_the_environment_is_read_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, PORT="9000")
    monkeypatch.setenv("tollgate_host", "::1")
    assert (load_settings().port, load_settings().host) == (9000, "::1")


def test_a_group_is_reached_with_two_underscores(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, TIMEOUTS__CONNECT_S="0.5", LIMITS__ATTEMPTS_MAX="7")
    settings = load_settings()
    assert (settings.timeouts.connect_s, settings.limits.attempts_max) == (0.5, 7)
    assert settings.timeouts.total_s == 600


def test_the_file_is_read(folder: Path) -> None:
    (folder / "tollgate.toml").write_text(
        "port = 9001\n[timeouts]\nconnect_s = 1.5\n[spool]\nbatch_records_max = 9\n"
    )
    settings = load_settings()
    assert (settings.port, settings.timeouts.connect_s, settings.spool.batch_records_max) == (9001, 1.5, 9)


def test_the_environment_beats_the_file_value_by_value(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tollgate.toml").write_text("port = 9001\n[timeouts]\nconnect_s = 1.5\ntotal_s = 9\n")
    set_all(monkeypatch, TIMEOUTS__CONNECT_S="3")
    settings = load_settings()
    assert (settings.port, settings.timeouts.connect_s, settings.timeouts.total_s) == (9001, 3, 9)


def test_a_group_may_be_one_variable_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, TIMEOUTS='{"connect_s": 4}')
    assert load_settings().timeouts.connect_s == 4


def test_other_programs_variables_are_nobodys_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLL_PORT", "x")
    assert load_settings({"PATH": "/bin", "TOLL": "1"}).port == 8080


# ------------------------------------------------------------------------------------------------ mistakes
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("TOLLGATE_PROT", "did you mean TOLLGATE_PORT?"),
        ("TOLLGATE_TIMEOUTS__CONECT_S", "did you mean TOLLGATE_TIMEOUTS__CONNECT_S?"),
        ("tollgate_adminkey", "did you mean TOLLGATE_ADMIN_KEY?"),
        ("TOLLGATE_QQ", "`tollgate config` lists the known ones"),
    ],
)
def test_an_unknown_name_in_the_environment_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings({name: "1"})
    assert caught.value.caller_detail == f"unknown setting {name} in the environment; {hint}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1\n", "unknown setting 'prot' in tollgate.toml; did you mean port?"),
        (
            "[timeouts]\nconect_s = 1\n",
            "unknown setting 'timeouts.conect_s' in tollgate.toml; did you mean timeouts.connect_s?",
        ),
        (
            "[zzzzzz]\na = 1\n",
            "unknown setting 'zzzzzz' in tollgate.toml; `tollgate config` lists the known ones",
        ),
        ("port = 70000\n", "setting 'port': Input should be less than or equal to 65535 (got 70000)"),
        ("port = \n", "tollgate.toml: "),
        ('port = "many"\n', "setting 'port': Input should be a valid integer"),
    ],
)
def test_a_mistake_in_the_file_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "tollgate.toml").write_text(text)
    assert refusal().startswith(message)


def test_every_mistake_is_named_at_once(folder: Path) -> None:
    (folder / "tollgate.toml").write_text("prot = 1\nport = -1\n[spool]\nbatch_records_max = 0\n")
    found = refusal()
    assert "'prot'" in found
    assert "'port'" in found
    assert "'spool.batch_records_max': Input should be greater than 0 (got 0)" in found


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PORT", "many", "setting 'port': Input should be a valid integer"),
        ("TIMEOUTS__TOTAL_S", "0", "setting 'timeouts.total_s': Input should be greater than 0 (got '0')"),
        ("FRESHNESS__POLL_INTERVAL_S", "5", "setting 'freshness.poll_interval_s': Input should be less than"),
        ("TIMEOUTS", "{connect", 'in the environment: error parsing value for field "timeouts"'),
    ],
)
def test_a_bad_value_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    set_all(monkeypatch, **{name: value})
    assert refusal().startswith(message)


def test_a_file_that_is_a_folder_is_named(folder: Path) -> None:
    (folder / "tollgate.toml").mkdir()
    assert load_settings().port == 8080  # as if there were none


@pytest.mark.parametrize("name", ["admin_key", "secret_key", "migration_database_url", "database_url"])
def test_a_mistake_in_a_secret_does_not_tell_it(folder: Path, name: str) -> None:
    (folder / "tollgate.toml").write_text(f'{name} = ["{SECRET}"]\n')
    found = refusal()
    assert found.startswith(f"setting '{name}': Input should be a valid string")
    assert SECRET not in found


# -------------------------------------------------------------------------------------------- the database
def test_by_default_the_database_is_a_file_in_the_state_folder(folder: Path) -> None:
    assert load_settings().effective_database_url == f"sqlite+aiosqlite:///{folder}/.tollgate/tollgate.db"


def test_a_database_of_ones_own_is_not_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, DATABASE_URL="postgresql+asyncpg://localhost/tollgate")
    settings = load_settings()
    assert settings.effective_database_url == "postgresql+asyncpg://localhost/tollgate"
    assert not settings.is_embedded


# ------------------------------------------------------------------------------------------------- secrets
def test_masked_settings_hide_every_secret() -> None:
    settings = Settings(
        admin_key=SecretStr(SECRET),
        secret_key=SecretStr(SECRET),
        migration_database_url=SecretStr(f"postgresql://owner:{SECRET}@db/x"),
        database_url=f"postgresql+asyncpg://app:{SECRET}@db/x",
    )
    shown = masked(settings)
    assert SECRET not in str(shown)
    assert SECRET not in repr(settings.admin_key)
    assert (shown["admin_key"], shown["secret_key"], shown["secret_key_file"]) == (MASK, MASK, None)
    assert shown["timeouts"]["connect_s"] == 2.0


def test_a_secret_that_is_not_set_is_shown_as_such() -> None:
    assert masked(Settings())["admin_key"] is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://app:pw@db:5432/x", f"postgresql://app:{MASK}@db:5432/x"),
        ("postgresql://app:p@w:?/@db/x", f"postgresql://app:{MASK}@db/x"),
        ("postgresql://app@db/x", "postgresql://app@db/x"),
        ("postgresql://db/x", "postgresql://db/x"),
        (
            "postgresql://db/x?user=app&password=pw&ssl=on",
            f"postgresql://db/x?user=app&password={MASK}&ssl=on",
        ),
        ("postgresql://db/x?sslpassword=pw", f"postgresql://db/x?sslpassword={MASK}"),
        ("postgresql://app:pw@db/x?PASSWORD=pw", f"postgresql://app:{MASK}@db/x?PASSWORD={MASK}"),
        ("sqlite+aiosqlite:////data/tollgate.db", "sqlite+aiosqlite:////data/tollgate.db"),
    ],
)
def test_passwords_in_the_databases_address_are_masked(url: str, shown: str) -> None:
    assert masked(Settings(database_url=url))["database_url"] == shown


# ------------------------------------------------------------------------------------------- external keys
def external_keys() -> dict[str, str]:
    return {name: key.get_secret_value() for name, key in load_settings().external_keys.items()}


def test_keys_of_external_targets_have_names_of_the_operators_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert external_keys() == {}
    set_all(monkeypatch, EXTERNAL_KEYS__OPENAI=SECRET, EXTERNAL_KEYS__MY_OTHER="x")
    monkeypatch.setenv("tollgate_external_keys__third", "y")
    assert external_keys() == {"openai": SECRET, "my_other": "x", "third": "y"}


def test_keys_of_external_targets_may_stand_in_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tollgate.toml").write_text(f'[external_keys]\nOpenAI = "{SECRET}"\nother = "x"\n')
    assert external_keys() == {"openai": SECRET, "other": "x"}
    set_all(monkeypatch, EXTERNAL_KEYS__OTHER="y")
    assert external_keys() == {"openai": SECRET, "other": "y"}


@pytest.mark.parametrize("name", ["EXTERNAL_KEY__OPENAI", "EXTERNAL_KEYS__", "EXTERNAL_KEYS_OPENAI"])
def test_a_misspelt_group_of_keys_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    set_all(monkeypatch, **{name: SECRET})
    found = refusal()
    assert f"unknown setting TOLLGATE_{name} in the environment" in found
    assert SECRET not in found


def test_keys_of_external_targets_are_masked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, EXTERNAL_KEYS__OPENAI=SECRET, EXTERNAL_KEYS__OTHER="x")
    assert masked(load_settings())["external_keys"] == {"openai": MASK, "other": MASK}
    monkeypatch.delenv("TOLLGATE_EXTERNAL_KEYS__OTHER")
    assert SECRET not in repr(load_settings())


def test_a_mistake_in_the_keys_does_not_tell_them(folder: Path) -> None:
    (folder / "tollgate.toml").write_text(f'external_keys = "{SECRET}"\n')
    assert "external_keys" in refusal()
    assert SECRET not in refusal()


def test_weights_of_tenants_are_json_and_above_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, OVERLOAD__TENANT_WEIGHTS='{"acme": 3, "of: a name": 0.5}')
    assert load_settings().overload.tenant_weights == {"acme": 3, "of: a name": 0.5}
    set_all(monkeypatch, OVERLOAD__TENANT_WEIGHTS='{"acme": 0}')
    assert "a weight must be above 0" in refusal()


def test_flex_is_never_refused_after_default(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, OVERLOAD__FLEX_SHARE="0.95")
    assert "flex_share must not be above default_share" in refusal()
