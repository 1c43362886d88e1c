"""Small AIM files for tests, written by the real writer onto a simulated disk."""

from collections.abc import Sequence
from pathlib import Path

from aimfuse.journal.header import Identity, Parent
from aimfuse.journal.reader import Scan, scan_open
from aimfuse.journal.records import RecordType, VolumeEntry, encode_table
from aimfuse.journal.writer import AimWriter
from aimfuse.units import Epoch, FileNumber, Seq, VolumeId
from tests.disks.simdisk import SimDisk

SPOOL = Path("/spool")
GROUP = bytes(range(16))
TABLE = encode_table([VolumeEntry(VolumeId(1), "v.img", 1 << 20)])
PREV_DIGEST = bytes([7]) * 32


def identity(number: int = 1, epoch: int = 1, created_ns: int = 1) -> Identity:
    return Identity(GROUP, Epoch(epoch), FileNumber(number), created_ns, Parent())


def spool_disk() -> SimDisk:
    return SimDisk(SPOOL)


def new_writer(
    disk: SimDisk, who: Identity | None = None, recycled: Path | None = None
) -> AimWriter:
    return AimWriter.create(disk, SPOOL, who or identity(), recycled)


def write_record(writer: AimWriter, seq: int, payload: bytes = b"") -> int:
    kind = RecordType.WRITE if payload else RecordType.FLUSH
    return writer.append(kind, 1, Seq(seq), 0, len(payload), 1000 + seq, payload)


def commit_mark(writer: AimWriter, last_seq: int, durable_seq: int) -> None:
    writer.mark(RecordType.COMMIT, Seq(last_seq), durable_seq, 5)


def payload_of(seq: int, length: int) -> bytes:
    """Return bytes that differ from record to record and from place to place."""
    return bytes((seq * 31 + at * 7 + 1) % 251 for at in range(length))


def open_file(lengths: Sequence[int], *, first_seq: int = 1) -> bytes:
    """Return an active file with one WRITE per length, behind its TABLE mark."""
    disk = spool_disk()
    writer = new_writer(disk)
    writer.mark(RecordType.TABLE, Seq(first_seq - 1), 0, 3, TABLE)
    for index, length in enumerate(lengths):
        write_record(writer, first_seq + index, payload_of(first_seq + index, length))
    return disk.contents(writer.path)


def sealed_file(lengths: Sequence[int], *, first_seq: int = 1) -> bytes:
    """Return a sealed file with one WRITE per length, behind its TABLE mark."""
    disk = spool_disk()
    disk.plant(SPOOL / "open", open_file(lengths, first_seq=first_seq))
    writer = AimWriter.reopen(disk, scan(disk, SPOOL / "open", first_seq - 1))
    writer.seal(PREV_DIGEST, Epoch(1), FileNumber(2))
    return disk.contents(writer.path)


def scan(disk: SimDisk, path: Path, last_seq: int = 0) -> Scan:
    return scan_open(path, disk.contents(path), Seq(last_seq))


def seqs(found: Scan) -> list[int]:
    """Return the numbers of the records, without the marks."""
    return [iocb.seq for iocb in found.iocbs if not iocb.is_mark]


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
