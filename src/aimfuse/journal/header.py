"""The first 4096 bytes of an AIM file: who it is (at its birth) and what it holds (at its seal).

Identity, 128 bytes at 0, written once when the file is made ready:
magic[8] version:u16 kind:u16 header_bytes:u32 group[16] epoch:u64 number:u64 created_ns:u64
parent_epoch:u64 parent_seq:u64 parent_digest[32] data_at:u64 sync_id:u64 reserved:u32 crc:u32.

Seal, 512 bytes later, written once when the file is finished:
magic[8] total_bytes:u64 iocb_at:u64 data_bytes:u64 iocb_count:u64 record_count:u64
first_seq:u64 last_seq:u64 first_time_ns:u64 last_time_ns:u64 payload_bytes:u64
next_epoch:u64 next_number:u64 prev_digest[32] digest[32] crc:u32.

Little-endian. The parts lie in different sectors, so that sealing never endangers the
identity. The digest is BLAKE3-256 of the whole file with `digest` and the seal's `crc` read
as zeros; each file names its predecessor's digest.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from crc32c import crc32c

from aimfuse.units import Epoch, FileNumber, Seq

HEADER_BYTES = 4096
SEAL_AT = 512
DIGEST_BYTES = 32
NO_DIGEST = bytes(DIGEST_BYTES)
VERSION = 1

_IDENTITY = struct.Struct("<8sHHI16sQQQQQ32sQQI")
_SEAL = struct.Struct("<8s12Q32s32s")
_CRC = struct.Struct("<I")
IDENTITY_BYTES = _IDENTITY.size + _CRC.size
SEAL_BYTES = _SEAL.size + _CRC.size
DIGEST_AT = SEAL_AT + _SEAL.size - DIGEST_BYTES
DIGEST_END_AT = SEAL_AT + SEAL_BYTES
assert IDENTITY_BYTES == 128, "the on-disk format is frozen"  # noqa: PLR2004 - said once
assert SEAL_BYTES == 172, "the on-disk format is frozen"  # noqa: PLR2004 - said once

_IDENTITY_MAGIC = b"\x89AIM\r\n\x1a\n"
_SEAL_MAGIC = b"AIM-SEAL"


class FileKind(IntEnum):
    """What the records are: journal, a copy of extents for a joining mirror, before-images."""

    JOURNAL = 0
    SYNC = 1
    UNDO = 2


_KINDS = frozenset(FileKind)


@dataclass(frozen=True, slots=True)
class Parent:
    """Where an epoch branched off: the last record and file digest of the one before."""

    epoch: Epoch = Epoch(0)
    seq: Seq = Seq(0)
    digest: bytes = NO_DIGEST


@dataclass(frozen=True, slots=True)
class Identity:
    """Who an AIM file is; `number` counts journal files, or files within one sync.

    `sync_id` is the id of a sync; of an undo file, which has the `number` of the journal file
    that it undoes, the part.
    """

    group: bytes
    epoch: Epoch
    number: FileNumber
    created_ns: int
    parent: Parent = Parent()
    kind: FileKind = FileKind.JOURNAL
    sync_id: int = 0


@dataclass(frozen=True, slots=True)
class Seal:
    """What a finished AIM file holds; sizes in bytes, times in Unix ns, 0 without records."""

    total_bytes: int
    iocb_at: int
    data_bytes: int
    iocb_count: int
    record_count: int
    first_seq: Seq
    last_seq: Seq
    first_time_ns: int
    last_time_ns: int
    payload_bytes: int
    next_epoch: Epoch
    next_number: FileNumber
    prev_digest: bytes
    digest: bytes = NO_DIGEST


class BadHeader(Exception):
    """The header is damaged, or of a version that this program does not know."""


def encode_identity(identity: Identity) -> bytes:
    """Return a fresh header: the identity, then zeros where the seal will be."""
    parent = identity.parent
    fields = _IDENTITY.pack(
        _IDENTITY_MAGIC, VERSION, identity.kind, HEADER_BYTES, identity.group, identity.epoch,
        identity.number, identity.created_ns, parent.epoch, parent.seq, parent.digest,
        HEADER_BYTES, identity.sync_id, 0,
    )  # fmt: skip
    return (fields + _CRC.pack(crc32c(fields))).ljust(HEADER_BYTES, b"\0")


def decode_identity(header: bytes | memoryview) -> Identity:
    """Return who the file is.

    Raises:
        BadHeader: too short, no AIM file, damaged, or another version.
    """
    if len(header) < IDENTITY_BYTES:
        raise BadHeader("identity cut short")
    fields = header[: _IDENTITY.size]
    magic, version, kind, header_bytes, group, epoch, number, created, p_epoch, p_seq, p_digest, \
        data_at, sync_id, reserved = _IDENTITY.unpack(fields)  # fmt: skip
    if magic != _IDENTITY_MAGIC:
        raise BadHeader("not an AIM file")
    if _CRC.unpack_from(header, _IDENTITY.size)[0] != crc32c(fields):
        raise BadHeader("identity checksum mismatch")
    if version != VERSION or reserved or kind not in _KINDS:
        raise BadHeader(f"AIM version {version}, kind {kind}: this program reads version {VERSION}")
    if header_bytes != HEADER_BYTES or data_at != HEADER_BYTES:
        raise BadHeader("header pointers out of place")
    parent = Parent(Epoch(p_epoch), Seq(p_seq), p_digest)
    return Identity(
        group, Epoch(epoch), FileNumber(number), created, parent, FileKind(kind), sync_id
    )


def identity_seed(header: bytes | memoryview) -> int:
    """Return the seed of the file's IOCB checksums: no other file is likely to have the same.

    Without the identity's own checksum: a CRC over bytes and their CRC is a constant.
    """
    return crc32c(header[: _IDENTITY.size])


def encode_seal(seal: Seal) -> bytes:
    """Return the seal's bytes, its checksum included."""
    fields = _SEAL.pack(
        _SEAL_MAGIC, seal.total_bytes, seal.iocb_at, seal.data_bytes, seal.iocb_count,
        seal.record_count, seal.first_seq, seal.last_seq, seal.first_time_ns, seal.last_time_ns,
        seal.payload_bytes, seal.next_epoch, seal.next_number, seal.prev_digest, seal.digest,
    )  # fmt: skip
    return fields + _CRC.pack(crc32c(fields))


def decode_seal(header: bytes | memoryview) -> Seal | None:
    """Return what the file holds, or None while it is not sealed.

    Raises:
        BadHeader: something is there, but it is damaged.
    """
    data = header[SEAL_AT : SEAL_AT + SEAL_BYTES]
    if len(data) < SEAL_BYTES:
        raise BadHeader("seal cut short")
    if not any(data):
        return None
    fields = data[: _SEAL.size]
    magic, *values = _SEAL.unpack(fields)
    if magic != _SEAL_MAGIC or _CRC.unpack_from(data, _SEAL.size)[0] != crc32c(fields):
        raise BadHeader("seal checksum mismatch")
    return Seal(*values)
