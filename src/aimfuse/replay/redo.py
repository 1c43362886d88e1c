"""What the records of journal files up to a point leave behind: who wrote each byte last."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from aimfuse.journal.reader import AimFile
from aimfuse.journal.records import Iocb, RecordType
from aimfuse.replay.plan import VOLUME_BYTES_MAX


class Written(NamedTuple):
    """Bytes *start* to *end*: *data*, or None for zeros."""

    start: int
    end: int
    data: memoryview | None


class Redo:
    """The ranges of one volume that the records change, disjoint and in order."""

    def __init__(self) -> None:
        """Begin with none."""
        self._starts: list[int] = []
        self._written: list[Written] = []

    def add(self, aim: AimFile, changes: Iterable[Iocb]) -> None:
        """Take *changes* of *aim* in, which come behind all others; nothing of it is copied."""
        for iocb in changes:
            if iocb.type is RecordType.WRITE:
                end = iocb.offset + iocb.payload_bytes
                self._put(Written(iocb.offset, end, aim.payload(iocb)))
            elif iocb.type is RecordType.ZERO:
                self._put(Written(iocb.offset, iocb.offset + iocb.length, None))
            else:  # What lay behind the new end is zeros if the volume grows again.
                self._put(Written(iocb.length, VOLUME_BYTES_MAX, None))

    def find(self, start: int, end: int) -> Iterator[Written]:
        """Yield what the records left between *start* and *end*, cut to that, in order."""
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._written) and self._starts[index] < end:
            if self._written[index].end > start:
                yield _cut(self._written[index], start, end)
            index += 1

    def _put(self, new: Written) -> None:
        """Lay *new* over what is there."""
        if new.start >= new.end:
            return
        low = bisect_left(self._starts, new.start)
        if low and self._written[low - 1].end > new.start:
            low -= 1
        high = bisect_left(self._starts, new.end)
        kept = [new]
        if low < high:
            first, last = self._written[low], self._written[high - 1]
            if first.start < new.start:
                kept.insert(0, _cut(first, first.start, new.start))
            if last.end > new.end:
                kept.append(_cut(last, new.end, last.end))
        self._written[low:high] = kept
        self._starts[low:high] = [one.start for one in kept]


def _cut(one: Written, start: int, end: int) -> Written:
    low, high = max(start, one.start), min(end, one.end)
    if (low, high) == (one.start, one.end):
        return one
    data = None if one.data is None else one.data[low - one.start : high - one.start]
    return Written(low, high, data)
