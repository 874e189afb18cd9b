"""A small one of what `make proof` does with 200 versions."""

from pathlib import Path

from gateway.migrate import upgrade
from tests.load.publishing import publish_under_load, settings_of
from tests.support.servers import postgres_server


def test_ten_versions_under_load_lose_no_request(tmp_path: Path) -> None:
    with postgres_server() as database:
        upgrade(database)
        figures = publish_under_load(tmp_path, settings_of(database), versions=10, clients=4)
    assert figures["lost"] == 0
    assert figures["requests"] > 0
