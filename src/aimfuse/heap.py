"""How this process deals with memory that is not needed any more; asked for once, at its start.

Settings of glibc's allocator (mallopt(3)), of which another C library has none, so that nothing
happens; and of Python's search for garbage that refers to itself.
"""

import ctypes
import gc

from aimfuse.units import MIB

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_POOLS = 2
_LARGE_BYTES_MIN = 16 * MIB


_OBJECTS_BETWEEN = 10_000


def expect_many_records() -> None:
    """Look more seldom for garbage that refers to itself, and never among what is there now.

    Reading a journal makes hundreds of thousands of small objects in a second, none of which
    refers to another one of them; the search took a sixth of a replayer's time.
    """
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN)


def share_among_threads() -> None:
    """Keep what threads have freed for all of them.

    Else there is a pool for each of up to eight threads per core, and every one of them grows
    to the largest file that was built, read or sent in it.
    """
    _set(_M_ARENA_MAX, _POOLS)


def keep_for_the_next_request(bytes_max: int) -> None:
    """Do not hand freed memory back to the kernel, up to *bytes_max* of it, until `give_back`.

    Requests of up to 1 MiB come and go all the time. Having the memory of each zeroed by the
    kernel for the next costs a fifth of all that a large write costs.
    """
    _set(_M_TRIM_THRESHOLD, bytes_max)
    _set(_M_MMAP_THRESHOLD, _LARGE_BYTES_MIN)


def give_back() -> None:
    """Hand back what was kept; takes milliseconds, in which other threads may allocate nothing."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _set(parameter: int, value: int) -> None:
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(parameter, value)
