"""Read AIM files: all of a sealed one or nothing, and as much as is sound of an open one."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from crc32c import crc32c

from aimfuse.disk import Disk, read_file
from aimfuse.errors import CorruptRecord, TornRecord
from aimfuse.journal.header import (
    DIGEST_AT,
    DIGEST_END_AT,
    HEADER_BYTES,
    BadHeader,
    Identity,
    Seal,
    decode_identity,
    decode_seal,
    identity_seed,
)
from aimfuse.journal.records import (
    IOCB_BYTES,
    IOCBS_MAX,
    MAGIC,
    BadIocb,
    Iocb,
    RecordType,
    VolumeEntry,
    decode_iocb,
    decode_table,
    unpack_iocbs,
)
from aimfuse.units import KIB, MIB, Seq

FILE_BYTES_MAX = 256 * MIB
"""No AIM file is larger; a reader refuses what claims to be."""

FRONT_BYTES = 256 * KIB
CHUNK_BYTES = 256 * KIB
"""What is read at once where a file is only checked."""

_FLAGS = os.O_RDONLY | os.O_NONBLOCK
"""So that nobody waits for who fills a FIFO that lies in the place of a file."""

_COMMIT_BYTE = bytes([RecordType.COMMIT])
_DIGEST_GAP = bytes(DIGEST_END_AT - DIGEST_AT)


@dataclass(frozen=True, slots=True)
class AimFile:
    """A sealed AIM file, checked whole; `iocbs` holds records and marks in their order.

    Or what was needed of one, checked piece by piece: see excerpt.py.
    """

    path: Path
    data: memoryview
    identity: Identity
    seal: Seal
    iocbs: tuple[Iocb, ...]

    def payload(self, iocb: Iocb) -> memoryview:
        """Return the bytes that belong to one of `iocbs`, without copying them."""
        return self.data[iocb.data_at : iocb.data_at + iocb.payload_bytes]

    def records(self) -> Iterator[Iocb]:
        """Yield the records, without the marks."""
        return (iocb for iocb in self.iocbs if not iocb.is_mark)

    def table(self) -> tuple[VolumeEntry, ...] | None:
        """Return the volumes as they were before the first record, or None without a TABLE."""
        if self.iocbs and self.iocbs[0].type is RecordType.TABLE:
            return decode_table(self.payload(self.iocbs[0]))
        return None


def file_digest(header: bytes | memoryview, rest: Iterable[bytes | memoryview] = ()) -> bytes:
    """Return the digest of a whole AIM file: the sums of the seal read as zeros.

    The file is *header*, at least its first 4096 bytes, followed by *rest*, each part of
    which is used before the next one is asked for; nothing is copied.
    """
    view = memoryview(header)
    digest = blake3(view[:DIGEST_AT]).update(_DIGEST_GAP).update(view[DIGEST_END_AT:])
    for part in rest:
        digest.update(part)
    return digest.digest()


def read_sealed(disk: Disk, path: Path) -> AimFile:
    """Read and check a sealed file from the disk; see `check_sealed`."""
    return check_sealed(path, read_file(disk, path, FILE_BYTES_MAX + 1))


def read_own(disk: Disk, path: Path, iocbs_max: int = IOCBS_MAX) -> AimFile:
    """Read a sealed file that was made, or checked whole, on this host; errors as `check_sealed`.

    Its digest is checked, which covers every byte; the sums of single records are not, which is
    ten times as fast. Only the first *iocbs_max* of them are in the result.
    """
    data = read_file(disk, path, FILE_BYTES_MAX + 1)
    identity, seal = check_header(path, data, len(data))
    view = memoryview(data)
    _check_digest(path, seal, file_digest(view))
    try:
        wanted = min(iocbs_max, seal.iocb_count)
        iocbs = unpack_iocbs(view[seal.iocb_at : seal.iocb_at + wanted * IOCB_BYTES])
    except BadIocb as exc:
        raise CorruptRecord(path, seal.iocb_at, str(exc)) from exc
    return AimFile(path, view, identity, seal, iocbs)


class OwnReader:
    """Reads files one after the other as `read_own` does, into memories that it uses by turns.

    A file is to be used no more once *held* further ones have been asked for. Each of its pieces
    is hashed while the processor's caches have it, and no memory has to be made for it: that
    takes a third less time.
    """

    def __init__(self, held: int) -> None:
        """Begin without any memory."""
        self._memories = deque(bytearray() for _ in range(held))

    def read(self, disk: Disk, path: Path) -> AimFile:
        """Read a file and check it; of its IOCBs only the leading marks are in the result.

        Errors as for `read_own`.
        """
        fd = disk.open("read", path, _FLAGS)
        memory = self._memories.popleft()
        try:
            size = min(disk.size(fd), FILE_BYTES_MAX + 1)
            if len(memory) < size:
                memory = bytearray(size)
            view = memoryview(memory)[:size]
            got = disk.pread_into(fd, view[:HEADER_BYTES], 0)
            identity, seal = check_header(path, bytes(view[:got]), size)
            rest = _read_on(disk, fd, got, lambda at: view[at : at + CHUNK_BYTES])
            _check_digest(path, seal, file_digest(view[:got], rest))
        finally:
            self._memories.append(memory)
            disk.close(fd)
        file = _with_marks(path, view, identity, seal)
        assert file is not None
        return file


def check_own(disk: Disk, path: Path) -> AimFile:
    """Check a file as `read_own` does, in little memory; its leading marks are in the result.

    Its `data` ends behind them, or later.
    """
    fd = disk.open("read", path, _FLAGS)
    try:
        size = disk.size(fd)
        front = disk.pread(fd, min(size, FRONT_BYTES), 0)
        identity, seal = check_header(path, front, size)
        # Each piece overwrites the one before it: so they stay in the processor's caches.
        memory = memoryview(bytearray(min(CHUNK_BYTES, size - len(front))))
        rest = _read_on(disk, fd, len(front), lambda at: memory[: size - at])
        _check_digest(path, seal, file_digest(front, rest))
    finally:
        disk.close(fd)
    return _with_marks(path, memoryview(front), identity, seal) or read_own(disk, path)


def _read_on(
    disk: Disk, fd: int, at: int, place: Callable[[int], memoryview]
) -> Iterator[memoryview]:
    """Yield what lies from byte *at* on, each piece in the memory that *place* has for it."""
    while (memory := place(at)) and (got := disk.pread_into(fd, memory, at)):
        yield memory[:got]
        at += got


def _check_digest(path: Path, seal: Seal, found: bytes) -> None:
    if found != seal.digest:
        raise CorruptRecord(path, 0, "file digest mismatch")


def _with_marks(path: Path, front: memoryview, identity: Identity, seal: Seal) -> AimFile | None:
    """Return a file that is known to be sound with its leading marks, if *front* has them all."""
    try:
        marks = _leading_marks(front, seal.iocb_at)
    except BadIocb as exc:
        raise CorruptRecord(path, HEADER_BYTES, str(exc)) from exc
    return None if marks is None else AimFile(path, front, identity, seal, marks)


def _leading_marks(front: memoryview, end: int) -> tuple[Iocb, ...] | None:
    """Return the marks before the first record, or None if *front* ends first.

    *end* is where the data portion does. The file is known to be sound.
    """
    marks: list[Iocb] = []
    at = HEADER_BYTES
    while at < end:
        if at + IOCB_BYTES > len(front):
            return None
        (iocb,) = unpack_iocbs(front[at : at + IOCB_BYTES])
        if not iocb.is_mark:
            break
        if iocb.data_at != at + IOCB_BYTES:
            raise BadIocb("a mark that points out of place")
        marks.append(iocb)
        at = iocb.end_at
    return tuple(marks) if at <= len(front) else None


def read_header(disk: Disk, path: Path) -> tuple[Identity, Seal | None]:
    """Return what the header says, without looking at the rest.

    Raises:
        CorruptRecord: the header fails its checks.
        OSError: the file could not be read.
    """
    header = read_file(disk, path, HEADER_BYTES)
    try:
        return decode_identity(header), decode_seal(header)
    except BadHeader as exc:
        raise CorruptRecord(path, 0, str(exc)) from exc


def check_sealed(path: Path, data: bytes) -> AimFile:
    """Check every byte of a sealed file and return its contents; *path* is for messages.

    Raises:
        TornRecord: the file ends early, or was never sealed.
        CorruptRecord: a checksum, the digest, a pointer or the order of records is wrong.
    """
    identity, seal = check_header(path, data, len(data))
    view = memoryview(data)
    _check_digest(path, seal, file_digest(view))
    seed = identity_seed(view)
    iocbs = tuple(_table_of_contents(path, view, seed, seal))
    check_order(path, seal, iocbs)
    return AimFile(path, view, identity, seal, iocbs)


def check_header(path: Path, data: bytes, size: int) -> tuple[Identity, Seal]:
    """Return what the header in *data* says, once it has been held against the file's *size*.

    Errors as for `check_sealed`.
    """
    try:
        identity = decode_identity(data)
        seal = decode_seal(data)
    except BadHeader as exc:
        kind = TornRecord if len(data) < HEADER_BYTES else CorruptRecord
        raise kind(path, 0, str(exc)) from exc
    if seal is None:
        raise TornRecord(path, 0, "never sealed")
    if seal.total_bytes > FILE_BYTES_MAX:
        raise CorruptRecord(path, 0, f"claims {seal.total_bytes} bytes, above any limit")
    if size < seal.total_bytes:
        raise TornRecord(path, size, f"cut short, {seal.total_bytes} bytes were sealed")
    if (
        size > seal.total_bytes
        or seal.iocb_count > IOCBS_MAX
        or seal.iocb_at != HEADER_BYTES + seal.data_bytes
        or seal.iocb_at + seal.iocb_count * IOCB_BYTES != seal.total_bytes
    ):
        raise CorruptRecord(path, 0, "pointers of the header contradict the file's size")
    return identity, seal


def _table_of_contents(path: Path, view: memoryview, seed: int, seal: Seal) -> Iterator[Iocb]:
    """Decode the IOCB portion, holding it against what stands in the data portion."""
    data = view.obj
    assert isinstance(data, bytes)  # Slices of bytes compare at once, those of a view bytewise.
    at = HEADER_BYTES
    for index in range(seal.iocb_count):
        table_at = seal.iocb_at + index * IOCB_BYTES
        raw = data[table_at : table_at + IOCB_BYTES]
        try:
            iocb = decode_iocb(seed, raw)
        except BadIocb as exc:
            raise CorruptRecord(path, table_at, f"IOCB {index}: {exc}") from exc
        end_at = iocb.end_at
        if iocb.data_at != at + IOCB_BYTES or end_at > seal.iocb_at:
            raise CorruptRecord(path, table_at, f"IOCB {index} points out of place")
        if data[at : at + IOCB_BYTES] != raw:
            raise CorruptRecord(path, at, f"IOCB {index} differs from the one before its data")
        if crc32c(view[iocb.data_at : iocb.data_at + iocb.payload_bytes]) != iocb.payload_crc:
            raise CorruptRecord(path, iocb.data_at, "payload checksum mismatch")
        yield iocb
        at = end_at
    if at != seal.iocb_at:
        raise CorruptRecord(path, at, "bytes that no IOCB describes")


def check_order(path: Path, seal: Seal, iocbs: tuple[Iocb, ...]) -> None:
    """Hold the records against the seal; errors as for `check_sealed`."""
    seq = seal.first_seq - 1
    for iocb in iocbs:
        if not iocb.is_mark:
            seq += 1
            if iocb.seq != seq:
                raise CorruptRecord(path, iocb.data_at, f"record {iocb.seq} where {seq} belongs")
    records = seq + 1 - seal.first_seq
    if records != seal.record_count or (records and seq != seal.last_seq):
        raise CorruptRecord(path, 0, "the header counts other records than the file holds")


@dataclass(frozen=True, slots=True)
class Scan:
    """The sound part of a file that was not sealed, and how it ends.

    `iocbs` are the marks and records up to `end_at`, the first byte that is not one.
    `committed_seq` is the highest seq that any mark, also beyond the break, declares durable.
    """

    path: Path
    data: memoryview
    identity: Identity
    iocbs: tuple[Iocb, ...]
    end_at: int
    last_seq: Seq
    committed_seq: Seq

    @property
    def has_records(self) -> bool:
        """Tell whether at least one record is sound."""
        return any(not iocb.is_mark for iocb in self.iocbs)

    def payload(self, iocb: Iocb) -> memoryview:
        """Return the bytes that belong to one of `iocbs`, without copying them."""
        return self.data[iocb.data_at : iocb.data_at + iocb.payload_bytes]


def scan_open(path: Path, data: bytes, last_seq: Seq) -> Scan:
    """Find the sound beginning of an open file that continues after *last_seq*.

    Raises:
        CorruptRecord: the identity is damaged. Whether that matters depends on what later
            files declare; the caller knows.
    """
    try:
        identity = decode_identity(data)
    except BadHeader as exc:
        raise CorruptRecord(path, 0, str(exc)) from exc
    view = memoryview(data)
    seed = identity_seed(view)
    iocbs: list[Iocb] = []
    at = HEADER_BYTES
    while (iocb := _sound_frame(view, seed, at)) and iocb.seq == last_seq + (not iocb.is_mark):
        iocbs.append(iocb)
        last_seq = iocb.seq
        at = iocb.end_at
    committed = max((mark.offset for mark in _commit_marks(view, seed)), default=0)
    return Scan(path, view, identity, tuple(iocbs), at, last_seq, Seq(committed))


def _sound_frame(view: memoryview, seed: int, at: int) -> Iocb | None:
    try:
        iocb = decode_iocb(seed, view[at : at + IOCB_BYTES])
    except BadIocb:
        return None
    if iocb.data_at != at + IOCB_BYTES or iocb.end_at > len(view):
        return None
    payload = view[iocb.data_at : iocb.data_at + iocb.payload_bytes]
    return iocb if crc32c(payload) == iocb.payload_crc else None


def _commit_marks(view: memoryview, seed: int) -> Iterator[Iocb]:
    """Yield every COMMIT mark of this file, wherever it lies, also behind damage."""
    data = view.obj
    assert isinstance(data, bytes)
    at = data.find(MAGIC, HEADER_BYTES)
    while at >= 0:
        if data[at + len(MAGIC) : at + len(MAGIC) + 1] == _COMMIT_BYTE:
            iocb = _sound_frame(view, seed, at)
            if iocb is not None:
                yield iocb
        at = data.find(MAGIC, at + 1)
