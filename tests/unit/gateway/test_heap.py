"""One heap for all threads, in a program of its own: whoever asks for it cannot take it back."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from gateway.heap import share_one_heap

asked = share_one_heap() if sys.argv[1] == "one" else None
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
barrier = threading.Barrier(4)

def allocate():
    barrier.wait()
    libc.malloc(ctypes.c_size_t(4000))
    barrier.wait()

threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
stdout = ctypes.c_void_p.in_dll(libc, "stdout")
# Without a buffer: what writes of heaps while it holds their locks must not allocate one.
libc.setvbuf(stdout, None, 2, ctypes.c_size_t(0))
libc.malloc_info(0, stdout)
libc.fflush(None)
print("asked", asked)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heaps")
@pytest.mark.parametrize(("how", "is_one"), [("one", True), ("each", False)])
def test_threads_that_start_later_allocate_from_the_first_heap(how: str, *, is_one: bool) -> None:
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    ).stdout
    assert (told.count("<heap nr=") == 1) is is_one, told
    assert ("asked True" in told) is is_one
