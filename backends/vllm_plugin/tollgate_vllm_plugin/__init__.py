"""Which faults of vLLM's CPU build have to be repaired when a vLLM process starts?

vLLM calls `register` in each of its processes (API server, engine core, worker; group
`vllm.general_plugins`, read in vLLM 0.32 `plugins/__init__.py`). Nothing happens on other platforms, nor on
a vLLM release whose source was not read.
"""

import logging
import re

logger = logging.getLogger("vllm.tollgate_vllm_plugin")
"""Below `vllm`, so that vLLM's own handlers print it."""

REPAIRED_RELEASES = frozenset({(0, 31), (0, 32)})
"""Releases known to have both faults; `tests/vllm/test_sampling_fix.py` fails when the first is gone."""


def release_of(version: str) -> tuple[int, int] | None:
    """Read major and minor from a version such as `0.32.0+cpu`; `None` when it is not of that form."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None


def register() -> None:
    """Repair this process; safe to call any number of times."""
    import vllm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    if release_of(vllm.__version__) not in REPAIRED_RELEASES:
        logger.warning(
            "vLLM %s is not a release this plugin knows (0.31, 0.32): nothing is repaired. Check that "
            "speculation at temperature > 0 is right before sending it sampled requests.",
            vllm.__version__,
        )
        return
    from . import awq, sampling

    sampling.repair()
    awq.repair()
