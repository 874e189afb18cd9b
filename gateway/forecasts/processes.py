"""How is something heavy asked of a process of its own?"""

from __future__ import annotations

import asyncio
import sys

from gateway.errors import ConfigurationError

CHILD_S = 300.0


async def ask_process(module: str, question: bytes) -> bytes:
    """What `python -m module` answers on its standard output; ended if we are cancelled.

    Raises:
        ConfigurationError: it died, or took too long.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(CHILD_S):
            answer, _ = await child.communicate(question)
    except TimeoutError:
        raise ConfigurationError(f"{module} took longer than {CHILD_S:.0f} s and was ended") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise ConfigurationError(f"{module} ended with status {child.returncode}; its log may say why")
    return answer
