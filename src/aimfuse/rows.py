"""Look at many rows of numbers in one call: by an extension, and without it a row at a time."""

import contextlib
import importlib
from array import array
from collections.abc import Callable

from crc32c import crc32c

Buffer = bytes | bytearray | memoryview

Chunks = dict[tuple[int, int], bytearray]
"""Bits, by volume and number of the chunk."""

SUM_BYTES = 4


def count_sound_plainly(rows: Buffer, row_bytes: int, seed: int) -> int:
    """Return how many rows match their sums in front of the first that does not.

    The last four bytes of each are the CRC-32C of those before, continued from *seed*.
    """
    view = memoryview(rows)
    for begin in range(0, len(view), row_bytes):
        end = begin + row_bytes - SUM_BYTES
        said = int.from_bytes(view[end : begin + row_bytes], "little")
        if crc32c(view[begin:end], seed) != said:
            return begin // row_bytes
    return len(view) // row_bytes


def mark_blocks_plainly(
    chunks: Chunks,
    chunk_bytes: int,
    volume: int,
    shift: int,
    offsets: "array[int]",
    lengths: "array[int]",
    begin: int,
) -> int:
    """Set the bit of each block of ``1 << shift`` bytes that a stretch lies in.

    Begins with stretch number *begin*. Returns that of the first one that is not marked, as it
    is empty, lies in several blocks or in a chunk that is not there; or how many there are.
    *offsets* are of type q and *lengths* of type I.
    """
    grains = 8 * chunk_bytes
    for at in range(begin, len(offsets)):
        first, last = offsets[at] >> shift, (offsets[at] + lengths[at] - 1) >> shift
        chunk = chunks.get((volume, first // grains))
        if chunk is None or first != last or not lengths[at]:
            return at
        bit = first % grains
        chunk[bit >> 3] |= 1 << (bit & 7)
    return len(offsets)


count_sound: Callable[[Buffer, int, int], int] = count_sound_plainly
mark_blocks: Callable[[Chunks, int, int, int, "array[int]", "array[int]", int], int] = (
    mark_blocks_plainly
)
with contextlib.suppress(ImportError):  # Not built: slower.
    _rows = importlib.import_module("aimfuse._rows")
    count_sound, mark_blocks = _rows.count_sound, _rows.mark_blocks
