"""Make a sealed AIM file in memory, all at once: for files that nobody appends to.

The bytes are those that `AimWriter` would have left; only a journal that grows has use for an
open file.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from aimfuse.journal.header import (
    HEADER_BYTES,
    NO_DIGEST,
    SEAL_AT,
    Identity,
    Seal,
    encode_identity,
    encode_seal,
    identity_seed,
)
from aimfuse.journal.reader import file_digest
from aimfuse.journal.records import IOCB_BYTES, MARK_MIN, RecordType, encode_iocb, padded
from aimfuse.units import ByteOffset, Epoch, FileNumber, Seq, VolumeId

_PADS = tuple(bytes(count) for count in range(8))


class Frame(NamedTuple):
    """A record or mark that is to be written; *offset* and *length* in bytes."""

    type: RecordType
    volume: VolumeId
    offset: ByteOffset
    length: int
    payload: bytes


def encode_sealed(identity: Identity, frames: Iterable[Frame]) -> tuple[bytearray, bytes]:
    """Return a file with *frames* in it, its records numbered from 1, and its digest.

    Every time in it is that of the identity. It has no file before it and none behind.
    """
    seed, time_ns = identity_seed(encode_identity(identity)), identity.created_ns
    body: list[bytes] = []
    iocbs: list[bytes] = []
    at, seq, payload_bytes = HEADER_BYTES, 0, 0
    for kind, volume, offset, length, payload in frames:
        if kind < MARK_MIN:
            seq += 1
            payload_bytes += len(payload)
        data_at = at + IOCB_BYTES
        iocb = encode_iocb(seed, kind, volume, seq, offset, length, data_at, time_ns, payload)
        iocbs.append(iocb)
        body += (iocb, payload, _PADS[-len(payload) % 8])
        at = data_at + padded(len(payload))
    first, times = (Seq(1), time_ns) if seq else (Seq(0), 0)
    total = at + len(iocbs) * IOCB_BYTES
    parts = [*body, *iocbs]
    seal = Seal(
        total, at, at - HEADER_BYTES, len(iocbs), seq, first, Seq(seq), times, times,
        payload_bytes, Epoch(0), FileNumber(0), NO_DIGEST,
    )  # fmt: skip
    data = bytearray().join([_header(identity, seal), *parts])
    digest = file_digest(memoryview(data))
    data[:HEADER_BYTES] = _header(identity, replace(seal, digest=digest))
    return data, digest


def _header(identity: Identity, seal: Seal) -> bytes:
    header = encode_identity(identity)[:SEAL_AT] + encode_seal(seal)
    return header.ljust(HEADER_BYTES, b"\0")
