"""How the C library keeps the memory that this process has freed; asked for once, at its start.

Settings of glibc's allocator (mallopt(3)). Another C library has none, and nothing happens.
"""

import ctypes

from aimfuse.units import MIB

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_POOLS = 2
_LARGE_BYTES_MIN = 16 * MIB


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
