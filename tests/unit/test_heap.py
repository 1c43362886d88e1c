"""What the C library does with memory that was freed, once it was asked."""

import subprocess
import sys

_THREADS = """
import ctypes, sys, threading
from aimfuse import heap
if sys.argv[1:]:
    heap.share_among_threads()
together = threading.Barrier(8)
def work():
    held = bytes(100_000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
ctypes.CDLL(None).malloc_stats()
"""


def test_threads_do_not_keep_a_pool_of_memory_each() -> None:
    pools = []
    for words in ((), ("shared",)):
        done = subprocess.run(
            [sys.executable, "-c", _THREADS, *words], check=True, capture_output=True, text=True
        )
        pools.append(done.stderr.count("Arena "))
    assert pools[0] > 2
    assert pools[1] <= 2


_REQUESTS = """
import resource, sys
from aimfuse import heap
if sys.argv[1:]:
    heap.keep_for_the_next_request()
def turns(count):
    for _ in range(count):
        held = [bytearray(b"x") * (1 << 20) for _ in range(8)]
turns(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
turns(100)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_of_large_requests_is_not_fetched_anew_for_each() -> None:
    faults = []
    for words in ((), ("kept",)):
        done = subprocess.run(
            [sys.executable, "-c", _REQUESTS, *words], check=True, capture_output=True, text=True
        )
        faults.append(int(done.stdout))
    assert faults[1] < faults[0] // 10
