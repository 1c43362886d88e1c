"""Find runs of zeros in written data, so that they become holes instead of payload."""

from collections.abc import Iterator

from aimfuse.units import BLOCK_BYTES, MIB

_ZEROS = bytes(MIB)
_BLOCK = bytes(BLOCK_BYTES)


def is_zero(data: bytes) -> bool:
    """Tell whether *data*, at most 1 MiB, is nothing but zeros."""
    return data == (_ZEROS if len(data) == MIB else _ZEROS[: len(data)])


def split(offset: int, data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (offset, length, payload) pieces that together are *data* at *offset*.

    Pieces without payload are zero runs: whole blocks at block boundaries of the volume.
    The common cases, one block of data or all zeros, cost one comparison.
    """
    if not data[0] and is_zero(data) and not (offset | len(data)) % BLOCK_BYTES:
        yield offset, len(data), b""
        return
    done = 0
    at = _next_block(data, -offset % BLOCK_BYTES)
    while at >= 0:
        stop = _run_end(data, at)
        if at > done:
            yield offset + done, at - done, data[done:at]
        yield offset + at, stop - at, b""
        done = stop
        at = _next_block(data, stop)
    if done < len(data):
        yield offset + done, len(data) - done, data[done:] if done else data


def _next_block(data: bytes, start: int) -> int:
    """Return where at or behind *start*, in steps of a block, the next block of zeros is, or -1.

    Looking at the first byte of each block costs a hundredth of a search for the zeros.
    """
    if len(data) <= BLOCK_BYTES:
        return -1
    heads = data[start::BLOCK_BYTES]
    number = heads.find(0)
    while number >= 0:
        at = start + number * BLOCK_BYTES
        if data.startswith(_BLOCK, at):
            return at
        number = heads.find(0, number + 1)
    return -1


def _run_end(data: bytes, start: int) -> int:
    stop = start
    while data.startswith(_BLOCK, stop):
        stop += BLOCK_BYTES
    return stop
