"""One record of the journal, and the 64 bytes (IOCB) that describe it on disk.

Little-endian, 64 bytes: magic[4]="IOCB" type:u8 flags:u8 reserved:u16 volume:u32
payload_bytes:u32 seq:u64 offset:u64 length:u64 data_at:u64 time_ns:u64 payload_crc:u32
iocb_crc:u32. Both sums are CRC-32C; the IOCB's is seeded with the file's identity, so that
what a recycled file held before never passes. `data_at` is the payload's place in the file;
an IOCB in the data portion stands right before it, so it knows its own place too.

What `offset`, `length` and the payload mean for each type is in docs/format.md.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import count, repeat
from operator import add
from typing import NamedTuple

from crc32c import crc32c

from aimfuse.units import MIB, ByteOffset, Seq, VolumeId

MAGIC = b"IOCB"
PAYLOAD_BYTES_MAX = 4 * MIB
NAME_BYTES_MAX = 255
VOLUMES_MAX = 15_000
IOCBS_MAX = 1 << 19
"""IOCBs that a reader accepts in one file; a writer rolls at half of them."""
FRAME_GRAIN_BYTES = 8

_FIELDS = struct.Struct("<4sBBHIIQQQQQI")
_CRC = struct.Struct("<I")
_WHOLE = struct.Struct(_FIELDS.format + "I")
IOCB_BYTES = _FIELDS.size + _CRC.size
assert IOCB_BYTES == 64, "the on-disk format is frozen"  # noqa: PLR2004 - said once
_ENTRY = struct.Struct("<IQH")


class RecordType(IntEnum):
    """What a record does; from 128 on, marks that are no records and take no seq."""

    WRITE = 1
    ZERO = 2
    TRUNCATE = 3
    CREATE = 4
    RENAME = 5
    UNLINK = 6
    FLUSH = 7
    BOOKMARK = 8
    VERIFY = 9
    GAP = 10
    COMMIT = 128
    TABLE = 129
    SYNC = 130
    UNDO = 131


MARK_MIN = RecordType.COMMIT
_TYPES = {int(kind): kind for kind in RecordType}


class Iocb(NamedTuple):
    """Where a record belongs and where its payload lies; sizes in bytes, time in Unix ns.

    A named tuple and no frozen dataclass: readers make one per record, at a fifth of the cost.
    """

    type: RecordType
    volume: VolumeId
    seq: Seq
    offset: ByteOffset
    length: int
    payload_bytes: int
    data_at: int
    time_ns: int
    payload_crc: int

    @property
    def is_mark(self) -> bool:
        """Tell whether this is a mark, which takes no seq of its own."""
        return self.type >= MARK_MIN

    @property
    def end_at(self) -> int:
        """Return the place in the file right after the padded payload."""
        return self.data_at + padded(self.payload_bytes)


class BadIocb(Exception):
    """These 64 bytes are no IOCB of this file."""


def padded(payload_bytes: int) -> int:
    """Return the room that a payload takes: frames start at multiples of 8."""
    return payload_bytes + -payload_bytes % FRAME_GRAIN_BYTES


def encode_iocb(  # noqa: PLR0913 - an object more for each write would cost as much again
    seed: int,
    kind: int,
    volume: int,
    seq: int,
    offset: int,
    length: int,
    data_at: int,
    time_ns: int,
    payload: bytes | memoryview,
) -> bytes:
    """Return the 64 bytes in front of *payload*. Flat arguments: this is the hot path."""
    fields = _FIELDS.pack(
        MAGIC, kind, 0, 0, volume, len(payload), seq, offset, length, data_at, time_ns,
        crc32c(payload),
    )  # fmt: skip
    return fields + _CRC.pack(crc32c(fields, seed))


Row = tuple[RecordType, VolumeId, int, int]
"""A record of a file that is made at once: its type, volume, offset and length."""


def encode_iocbs(
    seed: int,
    time_ns: int,
    first_seq: int,
    rows: Sequence[Row],
    sizes: Sequence[int],
    ats: Sequence[int],
    sums: Iterable[int],
) -> list[bytes]:
    """Return what `encode_iocb` gives for each of *rows*, of the numbers from *first_seq* on.

    Of each payload *sizes* has the bytes, *ats* the place in the file and *sums* the checksum.
    """
    kinds, volumes, offsets, lengths = zip(*rows, strict=True) if rows else ((), (), (), ())
    fields = list(
        map(
            _FIELDS.pack, repeat(MAGIC), kinds, repeat(0), repeat(0), volumes, sizes,
            count(first_seq),
            offsets, lengths, ats, repeat(time_ns), sums,
        )
    )  # fmt: skip
    return list(map(add, fields, map(_CRC.pack, map(crc32c, fields, repeat(seed)))))


def decode_iocb(seed: int, data: bytes | memoryview) -> Iocb:
    """Return what the 64 bytes say.

    Raises:
        BadIocb: too short, another file's, damaged, or of an unknown type.
    """
    if len(data) != IOCB_BYTES:
        raise BadIocb("cut short")
    fields = bytes(data[: _FIELDS.size])
    magic, kind, flags, reserved, volume, payload_bytes, *rest, payload_crc, crc = _WHOLE.unpack(
        data
    )
    if magic != MAGIC or crc32c(fields, seed) != crc:
        raise BadIocb("checksum mismatch")
    known = _TYPES.get(kind)
    if known is None or flags or reserved or payload_bytes > PAYLOAD_BYTES_MAX:
        raise BadIocb("of a type, flag or size that this version does not know")
    seq, offset, length, data_at, time_ns = rest
    return Iocb(known, volume, seq, offset, length, payload_bytes, data_at, time_ns, payload_crc)


def unpack_iocbs(data: memoryview) -> tuple[Iocb, ...]:
    """Return what an IOCB portion says that is known to be sound; none of its sums is looked at.

    Raises:
        BadIocb: there is one of an unknown type.
    """
    types = _TYPES
    try:
        return tuple(
            Iocb(types[kind], volume, seq, offset, length, size, at, time_ns, crc)
            for _, kind, _, _, volume, size, seq, offset, length, at, time_ns, crc, _
            in _WHOLE.iter_unpack(data)
        )  # fmt: skip
    except KeyError as exc:
        raise BadIocb(f"of type {exc}, which this version does not know") from exc


@dataclass(frozen=True, slots=True)
class VolumeEntry:
    """A volume as the journal knows it at one position."""

    volume: VolumeId
    name: str
    size_bytes: int


def encode_table(entries: Iterable[VolumeEntry]) -> bytes:
    """Return a TABLE payload: per volume id:u32 size:u64 name_bytes:u16 name, by id."""
    parts = []
    for entry in sorted(entries, key=lambda entry: entry.volume):
        name = entry.name.encode()
        parts.append(_ENTRY.pack(entry.volume, entry.size_bytes, len(name)) + name)
    return b"".join(parts)


def decode_table(payload: bytes | memoryview) -> tuple[VolumeEntry, ...]:
    """Return the volumes of a TABLE payload.

    Raises:
        ValueError: not what `encode_table` writes: cut short, ids not rising, a name twice
            or not a plain file name.
    """
    entries: list[VolumeEntry] = []
    at = 0
    while at < len(payload):
        if at + _ENTRY.size > len(payload):
            raise ValueError("table cut short")
        volume, size, name_bytes = _ENTRY.unpack_from(payload, at)
        at += _ENTRY.size
        if at + name_bytes > len(payload):
            raise ValueError("table cut short")
        name = check_name(bytes(payload[at : at + name_bytes]))
        if entries and volume <= entries[-1].volume:
            raise ValueError("volume ids of a table do not rise")
        entries.append(VolumeEntry(VolumeId(volume), name, size))
        at += name_bytes
    if len({entry.name for entry in entries}) < len(entries) or len(entries) > VOLUMES_MAX:
        raise ValueError("a table with a name twice, or too many volumes")
    return tuple(entries)


def check_name(raw: bytes) -> str:
    """Return a volume's name from a payload.

    Raises:
        ValueError: empty, longer than 255 bytes, not UTF-8, ``.`` or ``..``, or with a
            ``/`` or a control character in it.
    """
    name = raw.decode()
    if not 0 < len(raw) <= NAME_BYTES_MAX or name in {".", ".."}:
        raise ValueError(f"{name!r} cannot name a volume")
    if "/" in name or any(ord(char) < 0x20 or ord(char) == 0x7F for char in name):  # noqa: PLR2004
        raise ValueError(f"{name!r} cannot name a volume")
    return name
