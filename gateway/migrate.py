"""How does the database's schema become the one that this program needs?

Alembic does the work; its settings stand in pyproject.toml, its steps in `migrations/`.
"""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from gateway.schema import ROOT, unreachable


def alembic_config(url: str) -> Config:
    """Alembic's configuration for one database."""
    config = Config(toml_file=ROOT / "pyproject.toml")
    config.attributes["url"] = url
    return config


def upgrade(url: str, *, revision: str = "head") -> None:
    """Bring the database up to `revision`. Not from within an event loop.

    Raises:
        ConfigurationError: the database cannot be reached, or does not let us.
    """
    try:
        command.upgrade(alembic_config(url), revision)
    except (SQLAlchemyError, OSError) as error:
        raise unreachable(make_url(url), error) from error


def downgrade(url: str, *, revision: str) -> None:
    """Take the database back to `revision`. Not from within an event loop."""
    command.downgrade(alembic_config(url), revision)
