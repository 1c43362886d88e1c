"""A writable layer over a volume of the past, thrown away with the process that made it.

What is written goes to a sparse file without a name, so that the system removes it also when
the process is killed. Which blocks of it count is known in memory only.
"""

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.units import BLOCK_BYTES, MIB, align_down, align_up

Read = Callable[[int, int], bytes]
"""Returns up to so many bytes at an offset of what lies beneath, fewer at its end."""

_CHUNK_BLOCKS = MIB // BLOCK_BYTES
_ALL_HELD = bytes([1]) * _CHUNK_BLOCKS
"""Of all chunks in which every block is held, so that a discarded disk takes little memory."""

_NO_ANONYMOUS = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})
_SIZE_MAX = (1 << 63) - 1


def open_nameless(disk: Disk, directory: Path) -> int:
    """Return a descriptor of a new file in *directory* that has no name there.

    Raises:
        OSError: none can be made.
    """
    try:
        return disk.open("scratch:create", directory, os.O_RDWR | os.O_TMPFILE)
    except OSError as exc:
        if exc.errno not in _NO_ANONYMOUS:
            raise
    path = directory / f"aimfuse-scratch-{secrets.token_hex(8)}"
    fd = disk.open("scratch:create", path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    disk.unlink("scratch:unlink", path)
    return fd


class Overlay:
    """One volume with a writable layer; `size` is its present one in bytes."""

    def __init__(self, disk: Disk, fd: int, beneath: Read, size: int) -> None:
        """Lay the empty file *fd* over what *beneath* reads of a volume of *size* bytes."""
        self.size = size
        self._disk = disk
        self._fd = fd
        self._beneath = beneath
        self._shown = size  # So much of what lies beneath can still be seen.
        self._held: dict[int, bytes | bytearray] = {}

    def close(self) -> None:
        """Throw away what was written."""
        self._disk.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to *length* bytes; errors as *beneath* and the disk give them."""
        end = min(offset + length, self.size)
        parts: list[bytes] = []
        for low, high, is_held in self._runs(offset, end):
            data = self._disk.pread(self._fd, high - low, low) if is_held else b""
            if not is_held and low < self._shown:
                data = self._beneath(low, min(high, self._shown) - low)
            parts.append(data.ljust(high - low, b"\0"))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Write *data*; whole blocks are held, so the rest of the first and last one is read.

        Raises:
            OSError: the scratch disk is full or failed; what was there before still counts.
        """
        end = offset + len(data)
        if end > _SIZE_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        low, high = align_down(offset, BLOCK_BYTES), align_up(end, BLOCK_BYTES)
        before = after = b""
        if low < offset and not self._is_held(low):
            before = self.read(low, offset - low).ljust(offset - low, b"\0")
        if end < high and not self._is_held(high - BLOCK_BYTES):
            after = self.read(end, high - end).ljust(high - end, b"\0")
        self._disk.pwrite("scratch:write", self._fd, [before, data, after], offset - len(before))
        self._hold(low, high)
        self.size = max(self.size, end)

    def truncate(self, size: int) -> None:
        """Set the size; what is beyond it reads as zeros from then on."""
        if size > _SIZE_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if size < self.size:
            self._disk.truncate("scratch:size", self._fd, size)
            self._let_go(align_up(size, BLOCK_BYTES))
            self._shown = min(self._shown, size)
        self.size = size

    def zero(self, offset: int, length: int) -> None:
        """Have *length* bytes read as zeros; the room of whole blocks is given back.

        Raises:
            OSError: the scratch disk is full or failed; what was there before still counts, but
                for whole blocks, which may be zeros already.
        """
        end = offset + length
        if end > _SIZE_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        low, high = align_up(offset, BLOCK_BYTES), align_down(end, BLOCK_BYTES)
        if low >= high:  # No whole block, and less than two.
            self.write(offset, bytes(length))
            return
        self._disk.punch("scratch:punch", self._fd, low, high - low)
        self._hold(low, high)
        self.size = max(self.size, high)
        if offset < low:
            self.write(offset, bytes(low - offset))
        if high < end:
            self.write(high, bytes(end - high))

    # Which blocks are held.

    def _runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Yield stretches between *start* and *end*, each held in all of its blocks or in none."""
        at = start
        while at < end:
            first = is_held = self._is_held(at)
            begun = at
            while at < end and is_held == first:
                at = min(end, self._alike_until(at, first))
                is_held = at < end and self._is_held(at)
            yield begun, at, first

    def _alike_until(self, at: int, is_held: bool) -> int:  # noqa: FBT001 - the state of a block
        """Return where the chunk of *at*, or the run of blocks in it that are alike, ends."""
        chunk, block = divmod(at // BLOCK_BYTES, _CHUNK_BLOCKS)
        known = self._held.get(chunk)
        found = -1 if known is None else known.find(0 if is_held else 1, block)
        return (chunk * _CHUNK_BLOCKS + (found if found >= 0 else _CHUNK_BLOCKS)) * BLOCK_BYTES

    def _is_held(self, at: int) -> bool:
        chunk, block = divmod(at // BLOCK_BYTES, _CHUNK_BLOCKS)
        known = self._held.get(chunk)
        return known is not None and bool(known[block])

    def _hold(self, start: int, end: int) -> None:
        at, end = start // BLOCK_BYTES, end // BLOCK_BYTES
        while at < end:
            chunk, block = divmod(at, _CHUNK_BLOCKS)
            count = min(_CHUNK_BLOCKS - block, end - at)
            if count == _CHUNK_BLOCKS:
                self._held[chunk] = _ALL_HELD
            else:
                known = bytearray(self._held.get(chunk, _CHUNK_BLOCKS))
                known[block : block + count] = _ALL_HELD[:count]
                self._held[chunk] = known
            at += count

    def _let_go(self, start: int) -> None:
        first, block = divmod(start // BLOCK_BYTES, _CHUNK_BLOCKS)
        for chunk in [one for one in self._held if one > first]:
            del self._held[chunk]
        if known := self._held.get(first):
            self._held[first] = known[:block] + bytes(_CHUNK_BLOCKS - block)
