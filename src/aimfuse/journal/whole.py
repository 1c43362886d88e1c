"""Make a sealed AIM file in memory, all at once: for files that nobody appends to.

The bytes are those that `AimWriter` would have left; only a journal that grows has use for an
open file.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

from crc32c import crc32c

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
from aimfuse.journal.records import (
    IOCB_BYTES,
    MARK_MIN,
    RecordType,
    Row,
    encode_iocb,
    encode_iocbs,
    padded,
)
from aimfuse.units import ByteOffset, Epoch, FileNumber, Seq, VolumeId

Buffer = bytes | memoryview
_PADS = tuple(bytes(count) for count in range(8))


class Frame(NamedTuple):
    """A record or mark that is to be written; *offset* and *length* in bytes."""

    type: RecordType
    volume: VolumeId
    offset: ByteOffset
    length: int
    payload: Buffer


Fill = Callable[[memoryview, Sequence[int]], Iterator[int]]
"""Gets the memory of a file, and where in it the payload of each row begins.

It puts payloads there, and yields each time up to which row they are there now, at last up to
the end of the rows.
"""


def encode_sealed(identity: Identity, frames: Sequence[Frame]) -> tuple[list[Buffer], bytes]:
    """Return a file with *frames* in it, its records numbered from 1, in parts, and its digest.

    Every time in it is that of the identity. It has no file before it and none behind. The
    payloads are not copied: each is hashed right after it was summed up.
    """
    sizes = [len(frame.payload) for frame in frames]
    end = HEADER_BYTES + sum(IOCB_BYTES + padded(size) for size in sizes)
    records = [size for size, frame in zip(sizes, frames, strict=True) if frame.type < MARK_MIN]
    seal = _seal(identity, end, len(frames), len(records), sum(records))
    body: list[Buffer] = []
    iocbs: list[bytes] = []

    def parts() -> Iterator[Buffer]:
        for iocb, payload, pad in _framed(identity, frames):
            iocbs.append(iocb)
            yield iocb
            yield payload
            if pad:
                yield pad
        yield b"".join(iocbs)

    def noted() -> Iterator[Buffer]:
        for part in parts():
            body.append(part)
            yield part

    digest = file_digest(_header(identity, seal), noted())
    return [_header(identity, replace(seal, digest=digest)), *body], digest


def encode_rows(
    identity: Identity, marks: Iterable[Frame], rows: Sequence[Row], fill: Fill
) -> tuple[bytearray, bytes]:
    """Return what `encode_sealed` does for *marks*, then *rows*, whose payloads *fill* puts there.

    Only a WRITE has one, of its length. What is read for it is not copied, and can go on being
    read while what is there is encoded and hashed. What *fill* raises goes through.
    """
    seed, time_ns = identity_seed(encode_identity(identity)), identity.created_ns
    front: list[Buffer] = []
    iocbs: list[bytes] = []
    for frame in _framed(identity, marks):
        iocbs.append(frame[0])
        front += frame
    begin = HEADER_BYTES + sum(map(len, front))
    sizes = [row[3] if row[0] is RecordType.WRITE else 0 for row in rows]
    steps = [IOCB_BYTES + size + -size % 8 for size in sizes]
    ats = list(accumulate(steps, initial=begin + IOCB_BYTES))
    end = ats[-1] - IOCB_BYTES
    seal = _seal(identity, end, len(iocbs) + len(rows), len(rows), sum(sizes))
    data = bytearray(seal.total_bytes)

    def parts() -> Iterator[memoryview]:
        done = 0
        for upto in fill(view, ats[:-1]):
            here = slice(done, upto)
            sums = [
                crc32c(view[at : at + size])
                for at, size in zip(ats[here], sizes[here], strict=True)
            ]
            found = encode_iocbs(seed, time_ns, done + 1, rows[here], sizes[here], ats[here], sums)
            for at, iocb in zip(ats[here], found, strict=True):
                view[at - IOCB_BYTES : at] = iocb
            iocbs.extend(found)
            yield view[ats[done] - IOCB_BYTES : ats[upto] - IOCB_BYTES]
            done = upto
        view[end:] = b"".join(iocbs)
        yield view[end:]

    with memoryview(data) as view:
        view[:begin] = b"".join([_header(identity, seal), *front])
        digest = file_digest(view[:begin], parts())
    data[:HEADER_BYTES] = _header(identity, replace(seal, digest=digest))
    return data, digest


def _framed(identity: Identity, frames: Iterable[Frame]) -> Iterator[tuple[bytes, Buffer, bytes]]:
    """Yield each frame as it stands behind the header: IOCB, payload, padding."""
    seed, time_ns = identity_seed(encode_identity(identity)), identity.created_ns
    at, seq = HEADER_BYTES + IOCB_BYTES, 0
    for kind, volume, offset, length, payload in frames:
        seq += kind < MARK_MIN
        iocb = encode_iocb(seed, kind, volume, seq, offset, length, at, time_ns, payload)
        yield iocb, payload, _PADS[-len(payload) % 8]
        at += IOCB_BYTES + padded(len(payload))


def _seal(
    identity: Identity, iocb_at: int, iocb_count: int, records: int, payload_bytes: int
) -> Seal:
    first, times = (Seq(1), identity.created_ns) if records else (Seq(0), 0)
    return Seal(
        iocb_at + iocb_count * IOCB_BYTES, iocb_at, iocb_at - HEADER_BYTES, iocb_count, records,
        first, Seq(records), times, times, payload_bytes, Epoch(0), FileNumber(0), NO_DIGEST,
    )  # fmt: skip


def _header(identity: Identity, seal: Seal) -> bytes:
    header = encode_identity(identity)[:SEAL_AT] + encode_seal(seal)
    return header.ljust(HEADER_BYTES, b"\0")
