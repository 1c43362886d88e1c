"""System calls that Python does not have, or not as bare as a test needs them."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEEP_SIZE = 1
PUNCH = 3
ZERO_RANGE = 16
PLAIN = 0
AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.renameat2.argtypes = [
    ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
]  # fmt: skip


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """Return the errno that the call ended with, 0 for success."""
    done = _libc.fallocate(fd, mode, offset, length) == 0
    return 0 if done else ctypes.get_errno()


def renameat2(old: Path, new: Path, flags: int) -> int:
    """Return the errno that the call ended with, 0 for success."""
    names = (os.fsencode(old), os.fsencode(new))
    done = _libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], flags) == 0
    return 0 if done else ctypes.get_errno()


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR, mode: int = 0o600) -> Iterator[int]:
    """Give a descriptor for the block."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def write_direct(path: Path, offset: int, data: bytes) -> int:
    """Write past the page cache in one call and return how much was written."""
    with opened(path, os.O_RDWR | os.O_DIRECT) as fd, mmap.mmap(-1, len(data)) as aligned:
        aligned[:] = data
        return os.pwrite(fd, aligned, offset)


def read_direct(path: Path, offset: int, length: int) -> bytes:
    """Read past the page cache in one call."""
    with opened(path, os.O_RDONLY | os.O_DIRECT) as fd, mmap.mmap(-1, length) as aligned:
        count = os.preadv(fd, [aligned], offset)
        return aligned[:count]


def write_mapped(path: Path, offset: int, data: bytes) -> None:
    """Write through a shared mapping, which must lie inside the file, and msync it."""
    start = offset - offset % mmap.PAGESIZE
    skip = offset - start
    with opened(path) as fd, mmap.mmap(fd, skip + len(data), offset=start) as mapped:
        mapped[skip:] = data
        mapped.flush()


def read_mapped(path: Path, offset: int, length: int) -> bytes:
    """Read through a shared mapping, which must lie inside the file."""
    start = offset - offset % mmap.PAGESIZE
    skip = offset - start
    with (
        opened(path, os.O_RDONLY) as fd,
        mmap.mmap(fd, skip + length, offset=start, prot=mmap.PROT_READ) as mapped,
    ):
        return mapped[skip:]


def drop_cache(path: Path) -> None:
    """Have the kernel forget the clean pages of a file."""
    with opened(path, os.O_RDONLY) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
