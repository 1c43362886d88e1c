"""What becomes of memory that is not needed any more, once somebody asked."""

import subprocess
import sys

from aimfuse.units import MIB

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
    heap.keep_for_the_next_request(64 << 20)
def turns(count):
    for _ in range(count):
        held = [bytearray(b"x") * (1 << 20) for _ in range(8)]
turns(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
turns(100)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
kept = resident()
heap.give_back()
print(kept - resident())
"""


def test_memory_of_large_requests_is_kept_until_it_is_given_back() -> None:
    faults, given_back = [], []
    for words in ((), ("kept",)):
        done = subprocess.run(
            [sys.executable, "-c", _REQUESTS, *words], check=True, capture_output=True, text=True
        )
        said = done.stdout.split()
        faults.append(int(said[0]))
        given_back.append(int(said[1]))
    assert faults[1] < faults[0] // 10
    assert given_back[1] > 6 * MIB, "what was kept is given back when asked for"


_RECORDS = """
import gc, sys
from aimfuse import heap
if sys.argv[1:]:
    heap.expect_many_records()
before = gc.get_stats()[0]["collections"]
held = [(one, one) for one in range(50_000)]
print(gc.get_stats()[0]["collections"] - before)
"""


def test_many_records_set_off_few_searches_for_garbage() -> None:
    searches = []
    for words in ((), ("many",)):
        done = subprocess.run(
            [sys.executable, "-c", _RECORDS, *words], check=True, capture_output=True, text=True
        )
        searches.append(int(done.stdout))
    assert 0 < searches[1] < searches[0] // 4
