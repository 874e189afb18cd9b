"""A pool file in its text, with changes, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from backends.check.findings import Severity
from backends.check.pool_check import PoolCheck, check_files

POOL = """\
name: mine
driver: process
model:
  path: hub/Meta-Llama-3.1-70B-Instruct-AWQ-INT4
  served_name: llama
  max_model_len: 8192
batching:
  max_num_seqs: 32
  max_num_batched_tokens: 2048
hardware:
  gpu: A100-80GB
  gpus_per_replica: 1
  usd_per_hour: 2.79
rates: {input: 1, cached_input: 0.1, output: 2}
"""

Checker = Callable[..., PoolCheck]


@pytest.fixture
def check(tmp_path: Path) -> Checker:
    """Judges the pool above by the snapshot, with texts replaced and lines added."""

    def run(*changes: tuple[str, str], more: str = "") -> PoolCheck:
        text = POOL
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "mine.yaml"
        file.write_text(text + more, encoding="utf-8")
        (pool,) = check_files([file], engine=None).pools
        return pool

    return run


def said(pool: PoolCheck, severity: Severity = Severity.ERROR) -> list[str]:
    """Its findings of this severity, without the folder."""
    return [each.told(pool.source.name) for each in pool.findings if each.severity is severity]
