"""Find runs of zeros in written data, so that they become holes instead of payload."""

from collections.abc import Iterator

from aimfuse.units import BLOCK_BYTES, MIB, align_up

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
    at = data.find(_BLOCK) if len(data) > BLOCK_BYTES else -1
    while at >= 0:
        start = align_up(offset + at, BLOCK_BYTES) - offset
        stop = _run_end(data, start)
        if stop > start:
            if start > done:
                yield offset + done, start - done, data[done:start]
            yield offset + start, stop - start, b""
            done = stop
        at = data.find(_BLOCK, max(stop, start + 1))
    if done < len(data):
        yield offset + done, len(data) - done, data[done:] if done else data


def _run_end(data: bytes, start: int) -> int:
    stop = start
    while data[stop : stop + BLOCK_BYTES] == _BLOCK:
        stop += BLOCK_BYTES
    return stop
