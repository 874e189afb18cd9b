"""Where do log lines go?"""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

LOG_BYTES_MAX = 20_000_000


def set_up_logging(file: Path | None) -> None:
    """Lines with time, level and origin, to a file or to standard error; libraries only from warnings on."""
    handler: logging.Handler = logging.StreamHandler()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(file, maxBytes=LOG_BYTES_MAX, backupCount=1)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[handler]
    )
    for name in ("uvicorn", "httpx", "httpcore", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
