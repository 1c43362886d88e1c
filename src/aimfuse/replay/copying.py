"""Copy the data of one file to another, in its order, by one thread or by several."""

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from aimfuse.disk import Disk
from aimfuse.units import MIB

COPY_BYTES = 16 * MIB
"""Bytes that one call copies, and between two reports of progress."""


EMPTY_COPIES_MAX = 8
"""Tries at a place where nothing is read and no end is: a file may be cut and grow meanwhile."""


class Copying:
    """One file's data on its way from *source* to the same places of *target*."""

    def __init__(
        self, disk: Disk, source: int, target: int, begin: int, told: Callable[[int, int], None]
    ) -> None:
        """Copy what lies behind byte *begin*.

        *told* gets the bytes that were copied, and where; with several threads, in any order.
        """
        self._disk = disk
        self._source = source
        self._target = target
        self._told = told
        self._chunks = self._made_chunks(begin)
        self._lock = threading.Lock()
        self._is_over = False

    def run(self, threads: int) -> None:
        """Copy all of it.

        Raises:
            OSError: a disk failed or is full; any part of it may have been copied.
        """
        if threads == 1:
            self._work()
            return
        with ThreadPoolExecutor(threads - 1, "copy") as pool:
            others = [pool.submit(self._work) for _ in range(threads - 1)]
            self._work()
        for one in others:
            one.result()

    def _made_chunks(self, begin: int) -> Iterator[tuple[int, int]]:
        size = self._disk.size(self._source)
        for low, high in self._disk.data_ranges(self._source, begin, size):
            for at in range(low, high, COPY_BYTES):
                yield at, min(at + COPY_BYTES, high)

    def _work(self) -> None:
        try:
            while (chunk := self._next()) is not None:
                at, end = chunk
                while at < end and (got := self._copied(at, end)):
                    at += got
                    with self._lock:
                        self._told(got, at)
        except BaseException:
            self._is_over = True  # For the other threads, too.
            raise

    def _copied(self, at: int, end: int) -> int:
        """Copy from *at* on; return the bytes, 0 where the source ends.

        It may end before its *end*: the replayer has cut it, and what was there is in an undo
        file. Nothing else may be left out, for the target would be zero there.
        """
        for _again in range(EMPTY_COPIES_MAX):
            got = self._disk.copy_range("restore:copy", self._source, self._target, at, end - at)
            if got or self._disk.size(self._source) <= at:
                return got
        raise OSError(errno.EIO, f"nothing could be read at byte {at}, in front of the end")

    def _next(self) -> tuple[int, int] | None:
        with self._lock:
            return None if self._is_over else next(self._chunks, None)
