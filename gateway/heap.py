"""How does the process's memory stay what is used of it? By one heap for all threads.

glibc gives each new thread a heap of its own, up to eight for a processor. SQLite's connections are threads
that take turns: each look at the books sorts in another one, and its heap keeps what was freed in it. Under a
thousand streams on the embedded database each look, one a minute, left two megabytes behind. Python runs one
thread at a time, so hardly anybody waits for the one heap.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8
"""malloc.h of glibc."""


def share_one_heap() -> bool:
    """Let threads that start from now on allocate where the first one does.

    Returns:
        Whether the C library has such a thing: musl's and macOS's have one heap anyway, or none to choose.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_ARENA_MAX, 1) == 1
