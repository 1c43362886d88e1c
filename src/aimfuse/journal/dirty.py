"""Which parts of the volumes a mirror lacks: a bitmap per volume, in pieces, at one grain.

The grain is a block as long as that stays small, and doubles whenever the map would grow
beyond its bound: a volume of any size, written all over at random, costs a few megabytes.

In a file, little-endian: magic[8]="AIM-DIRT" version:u16 grain_shift:u16 chunk_bytes:u32
chunks:u64, then for each chunk volume:u32 reserved:u32 index:u64 bits[chunk_bytes], and last a
CRC-32C:u32 of everything before it. Bit b of chunk i stands for the grain number
i * chunk_bytes * 8 + b, the lowest bit of a byte first.
"""

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from aimfuse.disk import Disk, publish, read_file
from aimfuse.errors import CorruptRecord
from aimfuse.rows import mark_blocks
from aimfuse.units import BLOCK_BYTES, MIB, align_down, align_up

CHUNK_BYTES = 1024
MAP_BYTES_MAX = 16 * MIB
"""Bits that a map may hold, in bytes; with what Python adds it stays below twice of that."""

_CHUNK_GRAINS = 8 * CHUNK_BYTES
_MAGIC = b"AIM-DIRT"
_VERSION = 1
_HEAD = struct.Struct("<8sHHIQ")
_CHUNK = struct.Struct("<IIQ")
_CRC = struct.Struct("<I")
_FILE_BYTES_MAX = 64 * MIB
_GRAIN_SHIFT_MIN = BLOCK_BYTES.bit_length() - 1
_GRAIN_SHIFT_MAX = 62


class Extent(NamedTuple):
    """A stretch of one volume, in bytes."""

    volume: int
    offset: int
    length: int


class DirtyMap:
    """A set of grains. Adding rounds outward: what was added is always in it."""

    def __init__(self, bytes_max: int = MAP_BYTES_MAX) -> None:
        """Begin empty, with the finest grain; *bytes_max* bounds the bits kept."""
        self._shift = _GRAIN_SHIFT_MIN
        self._chunks_max = max(1, bytes_max // CHUNK_BYTES)
        self._chunks: dict[tuple[int, int], bytearray] = {}

    @property
    def grain_bytes(self) -> int:
        """Return the size of what one bit stands for."""
        return 1 << self._shift

    def __bool__(self) -> bool:
        """Tell whether anything is in it."""
        return bool(self._chunks)

    def add(self, volume: int, offset: int, length: int) -> None:
        """Add the stretch, rounded outward to whole grains."""
        if length <= 0:
            return
        first, last = offset >> self._shift, (offset + length - 1) >> self._shift
        if first == last:  # The hot path: one block.
            at, bit = divmod(first, _CHUNK_GRAINS)
            self._chunk(volume, at)[bit >> 3] |= 1 << (bit & 7)
        else:
            while last // _CHUNK_GRAINS - first // _CHUNK_GRAINS >= self._chunks_max:
                self._coarsen()
                first, last = offset >> self._shift, (offset + length - 1) >> self._shift
            for at in range(first // _CHUNK_GRAINS, last // _CHUNK_GRAINS + 1):
                base = at * _CHUNK_GRAINS
                low, high = max(0, first - base), min(_CHUNK_GRAINS - 1, last - base)
                _fill(self._chunk(volume, at), low, high + 1)
        self._keep_small()

    def add_many(self, volume: int, offsets: "array[int]", lengths: "array[int]") -> None:
        """Add stretches of one volume, as `add` does; types as for `rows.mark_blocks`."""
        at = 0
        while (
            at := mark_blocks(self._chunks, CHUNK_BYTES, volume, self._shift, offsets, lengths, at)
        ) < len(offsets):
            self.add(volume, offsets[at], lengths[at])
            at += 1

    def add_all(self, other: "DirtyMap") -> None:
        """Add everything that is in *other*."""
        if other._shift > self._shift:  # noqa: SLF001 - one of us
            self._coarsen(other._shift - self._shift)  # noqa: SLF001
        if other._shift == self._shift:  # noqa: SLF001
            for (volume, at), bits in other._chunks.items():  # noqa: SLF001
                _merge(self._chunk(volume, at), bits)
            self._keep_small()
        else:
            for volume, offset, length in other.extents():
                self.add(volume, offset, length)

    def volumes(self) -> set[int]:
        """Return the volumes with anything in it."""
        return {volume for volume, _at in self._chunks}

    def forget(self, volume: int) -> None:
        """Drop a whole volume: it is gone."""
        for key in [key for key in self._chunks if key[0] == volume]:
            del self._chunks[key]

    def drop_before(self, volume: int, offset: int) -> None:
        """Drop the volumes before *volume*, and of it what lies wholly before *offset*."""
        at, bit = divmod(offset >> self._shift, _CHUNK_GRAINS)
        for key in [key for key in self._chunks if key < (volume, at)]:
            del self._chunks[key]
        bits = self._chunks.get((volume, at))
        if bits is not None:
            left = int.from_bytes(bits, "little") >> bit << bit
            if left:
                bits[:] = left.to_bytes(CHUNK_BYTES, "little")
            else:
                del self._chunks[volume, at]

    def extents(self, volume: int = 0, offset: int = 0) -> Iterator[Extent]:
        """Yield what is in it from that place on, in order, neighbours as one."""
        found: Extent | None = None
        for one in self._runs(volume, align_down(offset, self.grain_bytes)):
            if found and (one.volume, one.offset) == (found.volume, found.offset + found.length):
                found = found._replace(length=found.length + one.length)
                continue
            if found:
                yield found
            found = one
        if found:
            yield found

    def dirty_bytes(self) -> int:
        """Return how much is in it."""
        return sum(int.from_bytes(one, "little").bit_count() for one in self._chunks.values()) << (
            self._shift
        )

    def encode(self) -> bytes:
        """Return the file's content; see the module."""
        parts = [_HEAD.pack(_MAGIC, _VERSION, self._shift, CHUNK_BYTES, len(self._chunks))]
        for volume, at in sorted(self._chunks):
            parts += (_CHUNK.pack(volume, 0, at), bytes(self._chunks[volume, at]))
        data = b"".join(parts)
        return data + _CRC.pack(crc32c(data))

    @classmethod
    def decode(cls, data: bytes) -> "DirtyMap":
        """Read what `encode` wrote.

        Raises:
            ValueError: it is damaged, cut short, or of another version.
        """
        if len(data) < _HEAD.size + _CRC.size or crc32c(data[:-4]) != _CRC.unpack(data[-4:])[0]:
            raise ValueError("checksum mismatch")
        magic, version, shift, chunk_bytes, count = _HEAD.unpack_from(data)
        size = _HEAD.size + count * (_CHUNK.size + CHUNK_BYTES) + _CRC.size
        known = (magic, version, chunk_bytes) == (_MAGIC, _VERSION, CHUNK_BYTES)
        if not known or len(data) != size or not _GRAIN_SHIFT_MIN <= shift <= _GRAIN_SHIFT_MAX:
            raise ValueError("no dirty map of this version")
        found = cls()
        found._shift = shift
        found._chunks_max = max(found._chunks_max, count)
        for place in range(_HEAD.size, len(data) - _CRC.size, _CHUNK.size + CHUNK_BYTES):
            volume, _reserved, at = _CHUNK.unpack_from(data, place)
            begin = place + _CHUNK.size
            found._chunks[volume, at] = bytearray(data[begin : begin + CHUNK_BYTES])
        return found

    def _chunk(self, volume: int, at: int) -> bytearray:
        chunk = self._chunks.get((volume, at))
        if chunk is None:
            chunk = self._chunks[volume, at] = bytearray(CHUNK_BYTES)
        return chunk

    def _runs(self, volume: int, offset: int) -> Iterator[Extent]:
        first_at, first_bit = divmod(offset >> self._shift, _CHUNK_GRAINS)
        for key in sorted(self._chunks):
            if key < (volume, first_at):
                continue
            bits = int.from_bytes(self._chunks[key], "little")
            if key == (volume, first_at):
                bits = bits >> first_bit << first_bit
            base = key[1] * _CHUNK_GRAINS
            for low, count in _ones(bits):
                yield Extent(key[0], (base + low) << self._shift, count << self._shift)

    def _keep_small(self) -> None:
        while len(self._chunks) > self._chunks_max:
            if len(self._chunks) == len(self.volumes()):
                return  # One for each volume, which are bounded.
            self._coarsen()

    def _coarsen(self, steps: int = 1) -> None:
        """Double the grain *steps* times."""
        everything = list(self.extents())
        self._shift += steps
        self._chunks = {}
        for volume, offset, length in everything:
            first, last = offset >> self._shift, (offset + length - 1) >> self._shift
            for at in range(first // _CHUNK_GRAINS, last // _CHUNK_GRAINS + 1):
                base = at * _CHUNK_GRAINS
                low, high = max(0, first - base), min(_CHUNK_GRAINS - 1, last - base)
                _fill(self._chunk(volume, at), low, high + 1)


def write_map(disk: Disk, path: Path, dirty: DirtyMap, mode: int = 0o600) -> None:
    """Write *dirty* to *path*, whole or not at all, durable when this returns."""
    publish(disk, "dirty", path, dirty.encode(), mode)


def read_map(disk: Disk, path: Path) -> DirtyMap:
    """Return the map in *path*.

    Raises:
        CorruptRecord: it is damaged.
        OSError: it could not be read.
    """
    try:
        return DirtyMap.decode(read_file(disk, path, _FILE_BYTES_MAX))
    except ValueError as exc:
        raise CorruptRecord(path, 0, str(exc)) from exc


def _fill(bits: bytearray, low: int, high: int) -> None:
    """Set the bits from *low* up to and without *high*."""
    first, last = align_up(low, 8), align_down(high, 8)
    if first > last:  # Within one byte.
        bits[low >> 3] |= (1 << high % 8) - (1 << low % 8)
        return
    if low < first:
        bits[low >> 3] |= 0xFF << low % 8 & 0xFF
    bits[first >> 3 : last >> 3] = b"\xff" * ((last - first) >> 3)
    if last < high:
        bits[last >> 3] |= (1 << high % 8) - 1


def _merge(bits: bytearray, other: bytearray) -> None:
    both = int.from_bytes(bits, "little") | int.from_bytes(other, "little")
    bits[:] = both.to_bytes(CHUNK_BYTES, "little")


def _ones(bits: int) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of each run of ones."""
    at = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        count = (~bits & (bits + 1)).bit_length() - 1
        yield at + zeros, count
        bits >>= count
        at += zeros + count
