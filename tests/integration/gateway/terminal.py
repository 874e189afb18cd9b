"""How does a test run commands of the `tollgate` program inside its own process?"""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from gateway.cli import app as program
from gateway.commands.terminal import out
from gateway.errors import GatewayError
from tests.integration.gateway.rig import settings_for

Answer = dict[str, Any]


class Terminal:
    """The `tollgate` program on a database with a tenant, a key and an administrator."""

    def __init__(self, home: Path) -> None:
        nowhere = ["http://127.0.0.1:9"]
        settings = settings_for(home, {"speculative": nowhere, "plain": nowhere})
        self.runner = CliRunner()
        self.environment = {
            "TOLLGATE_STATE_DIR": str(settings.state_dir),
            "TOLLGATE_DATABASE_URL": settings.effective_database_url,
            "TOLLGATE_POLICY": str(settings.policy),
            "TOLLGATE_POOLS": str(settings.pools),
        }
        out.width = 250  # not what COLUMNS happened to say when the program was imported
        self.json("tenants", "create", "acme")
        self.json("projects", "create", "default", "--tenant", "acme")

    def json(self, *arguments: str) -> Any:
        return json.loads(self.text(*arguments, "--json"))

    def text(self, *arguments: str) -> str:
        outcome = self.runner.invoke(program, arguments, env=self.environment)
        assert outcome.exit_code == 0, (arguments, outcome.output, outcome.exception)
        return outcome.stdout

    def refused(self, *arguments: str) -> str:
        """What `main` would say before it ends with status 2."""
        outcome = self.runner.invoke(program, arguments, env=self.environment)
        assert isinstance(outcome.exception, GatewayError), outcome.output
        return str(outcome.exception)

    def objects(self, name: str) -> dict[str, str]:
        """A tenant with all that belongs to one, and an administrator's key."""
        self.json("tenants", "create", name)
        key = self.json("keys", "create", "--tenant", name)
        self.json("limits", "set", "key", key["id"], "--requests-per-minute", "60")
        admin = self.json("admins", "create", name, "--role", "operator")
        return {"TENANT": name, "PROJECT": key["project_id"], "KEY": key["id"], "ADMIN": admin["id"]}

    def audit(self) -> list[Answer]:
        found: list[Answer] = self.json("audit", "log", "--limit", "500")
        return found
