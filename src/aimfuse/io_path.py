"""Make the process fit to be part of the I/O path; where the system refuses, warn and go on."""

import ctypes
import errno
import logging
import os
import resource

log = logging.getLogger(__name__)

_PR_SET_IO_FLUSHER = 57
_MCL_CURRENT = 1
_MCL_FUTURE = 2
_MCL_ONFAULT = 4

_libc = ctypes.CDLL(None, use_errno=True)


def become_part_of_the_io_path() -> None:
    """Allocate without waiting for our own write-back, stay in memory, leave no core dumps.

    A kernel that needs memory may write back pages of this very mount; a driver that waits
    for that memory would wait for itself.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _try("PR_SET_IO_FLUSHER", _libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0))
    _soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if os.geteuid() != 0 and hard != resource.RLIM_INFINITY:
        return  # It would be granted now, and allocations beyond the limit would fail later.
    _try("mlockall", _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT))


def _try(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        level = logging.INFO if number in {errno.EPERM, errno.ENOMEM} else logging.WARNING
        log.log(
            level, "%s refused (%s): under memory pressure the mount may stall",
            what, os.strerror(number),
        )  # fmt: skip
