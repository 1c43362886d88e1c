"""Write one AIM file: append frames while it is active, then seal it.

A frame is an IOCB, its payload, and zeros up to a multiple of 8. A small one is written as it
is appended; a large one gets its place at once and is written by the next `write_out`, in a
worker thread, so that copying it does not hold up requests. Sealing appends all IOCBs once more
as the IOCB portion, fills in the header's pointers and the digest, cuts the file to its length
and syncs it. A file that fails a sync is dead: `failed` keeps the error, so that no later sync
of it can report success.
"""

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from aimfuse.disk import Disk
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
from aimfuse.journal.names import JournalName
from aimfuse.journal.reader import Scan, file_digest
from aimfuse.journal.records import IOCB_BYTES, RecordType, encode_iocb, padded
from aimfuse.units import MIB, Epoch, FileNumber, Seq

DEFERRED_BYTES_MIN = 128 * 1024
"""From this payload on, copying costs more than handing the write to a worker thread."""

_PIECE_BYTES = MIB
_ZEROS = memoryview(bytes(MIB))
_PADS = tuple(bytes(count) for count in range(8))


class AimWriter:
    """One file between its making and its seal.

    `append` and `mark` belong to one thread and never wait; `sync` and `seal` may run in
    worker threads, also both at once.
    """

    def __init__(self, disk: Disk, path: Path, fd: int, identity: Identity) -> None:
        """Take over *fd*, whose header is written and durable under its name."""
        self.path = path
        self.identity = identity
        self.name = JournalName(identity.epoch, identity.number)
        self.end_at = HEADER_BYTES
        self.synced_at = HEADER_BYTES
        self.first_seq = Seq(0)
        self.last_seq = Seq(0)
        self.record_count = 0
        self.payload_bytes = 0
        self.first_time_ns = 0
        self.last_time_ns = 0
        self.failed: OSError | None = None
        self._disk = disk
        self._fd = fd
        self._seed = identity_seed(encode_identity(identity))
        self._iocbs: list[bytes] = []
        self._sync_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._deferred: deque[tuple[int, Sequence[bytes]]] = deque()

    @classmethod
    def create(
        cls,
        disk: Disk,
        spool: Path,
        identity: Identity,
        recycled: Path | None = None,
        filled_bytes: int = 0,
    ) -> "AimWriter":
        """Make a file ready under its open name, durable with its name when this returns.

        A *recycled* file keeps its blocks: already written ones sync two to three times
        faster than new ones. Its new header goes in, and is synced, before it gets the name.
        A new file can be filled with zeros up to *filled_bytes* for the same end, after its
        identity is durable: recovery tells a file that never got one by its length.
        """
        path = spool / JournalName(identity.epoch, identity.number).open
        at = recycled or path
        flags = os.O_RDWR | (0 if recycled else os.O_CREAT | os.O_TRUNC)
        fd = disk.open("journal:create", at, flags)
        try:
            disk.pwrite("journal:identity", fd, [encode_identity(identity)], 0)
            disk.fdatasync("journal:identity_sync", fd)
            if recycled:
                disk.rename("journal:recycle", recycled, path)
            disk.sync_dir("journal:create_sync_dir", spool)
            if not recycled and filled_bytes > HEADER_BYTES:
                _fill(disk, fd, filled_bytes)
        except OSError:
            disk.close(fd)
            raise
        return cls(disk, path, fd, identity)

    @classmethod
    def reopen(cls, disk: Disk, scan: Scan) -> "AimWriter":
        """Continue with the sound part of a file that a crash left open, to seal it."""
        writer = cls(
            disk, scan.path, disk.open("journal:reopen", scan.path, os.O_RDWR), scan.identity
        )
        for iocb in scan.iocbs:
            at = iocb.data_at - IOCB_BYTES
            writer._note(bytes(scan.data[at : iocb.data_at]), iocb.end_at)
            if not iocb.is_mark:
                writer._count(iocb.seq, iocb.time_ns, iocb.payload_bytes)
        return writer

    def append(
        self,
        kind: RecordType,
        volume: int,
        seq: Seq,
        offset: int,
        length: int,
        time_ns: int,
        payload: bytes = b"",
    ) -> int:
        """Append a record and return where in the file its payload lies.

        Raises:
            OSError: nothing was recorded; the next frame goes to the same place.
        """
        data_at = self._frame(kind, volume, seq, offset, length, time_ns, payload)
        self._count(seq, time_ns, len(payload))
        return data_at

    def mark(
        self, kind: RecordType, seq: Seq, offset: int, time_ns: int, payload: bytes = b""
    ) -> None:
        """Append a mark behind record *seq*; errors as for `append`."""
        self._frame(kind, 0, seq, offset, 0, time_ns, payload)

    def write_out(self) -> None:
        """Write what `append` has deferred; blocks.

        Raises:
            OSError: nothing is lost, calling again goes on.
        """
        with self._write_lock:
            batch = list(self._deferred)
            if not batch:
                return
            offsets: list[int] = []
            buffers: list[bytes] = []
            for at, frame in batch:
                for buffer in frame:
                    offsets.append(at)
                    buffers.append(buffer)
                    at += len(buffer)  # noqa: PLW2901 - it walks through the frame
            self._disk.pwrite_many("journal:append", self._fd, offsets, buffers)
            for _ in batch:
                self._deferred.popleft()

    def sync(self) -> None:
        """Make everything appended before this call durable.

        Raises:
            OSError: this or an earlier sync of the file failed; none will succeed again.
                Only running out of space before anything was synced may be tried again.
        """
        with self._sync_lock:
            if self.failed:
                raise self.failed
            end_at = self.end_at
            if end_at == self.synced_at:
                return
            self.write_out()
            self._fdatasync("journal:sync")
            self.synced_at = end_at

    def seal(self, prev_digest: bytes, next_epoch: Epoch, next_number: FileNumber) -> Seal:
        """Finish the file: IOCB portion, pointers, digest; durable when this returns.

        The name stays; the caller renames. Repeating it after a crash gives the same bytes.

        Raises:
            OSError: the file is unsealed. After a failed sync it stays so; running out of
                space may be tried again.
        """
        self.sync()
        total = self.end_at + len(self._iocbs) * IOCB_BYTES
        table = b"".join(self._iocbs)
        self._disk.pwrite("journal:iocbs", self._fd, [table], self.end_at)
        seal = self._describe(total, table, prev_digest, next_epoch, next_number)
        self._disk.pwrite("journal:seal", self._fd, [encode_seal(seal)], SEAL_AT)
        self._disk.truncate("journal:cut", self._fd, total)
        with self._sync_lock:
            self._fdatasync("journal:seal_sync")
        return seal

    def close(self) -> None:
        """Give the descriptor back; the file stays as it is."""
        self._disk.close(self._fd)

    def _fdatasync(self, label: str) -> None:
        try:
            self._disk.fdatasync(label, self._fd)
        except OSError as exc:
            # Whatever its number, ENOSPC too, this one must never look like worth a retry.
            self.failed = OSError(errno.EIO, f"syncing {self.path} failed: {exc.strerror}")
            raise self.failed from exc

    def _describe(
        self,
        total: int,
        table: bytes,
        prev_digest: bytes,
        next_epoch: Epoch,
        next_number: FileNumber,
    ) -> Seal:
        seal = Seal(
            total, self.end_at, self.end_at - HEADER_BYTES, len(self._iocbs), self.record_count,
            self.first_seq, self.last_seq, self.first_time_ns, self.last_time_ns,
            self.payload_bytes, next_epoch, next_number, prev_digest, NO_DIGEST,
        )  # fmt: skip
        unsigned = encode_identity(self.identity)[:SEAL_AT] + encode_seal(seal)
        digest = file_digest(unsigned.ljust(HEADER_BYTES, b"\0"), chain(self._body(), (table,)))
        return replace(seal, digest=digest)

    def _body(self) -> Iterator[memoryview]:
        """Yield the frames piece by piece, each in the memory of the one before.

        That stays in the processor's cache; a whole file would be copied through fresh memory.
        """
        view = memoryview(bytearray(_PIECE_BYTES))
        for at in range(HEADER_BYTES, self.end_at, _PIECE_BYTES):
            piece = view[: min(_PIECE_BYTES, self.end_at - at)]
            if self._disk.pread_into(self._fd, piece, at) < len(piece):
                raise OSError(errno.EIO, f"{self.path} became shorter")
            yield piece

    def _frame(
        self,
        kind: int,
        volume: int,
        seq: int,
        offset: int,
        length: int,
        time_ns: int,
        payload: bytes,
    ) -> int:
        data_at = self.end_at + IOCB_BYTES
        iocb = encode_iocb(self._seed, kind, volume, seq, offset, length, data_at, time_ns, payload)
        buffers: Sequence[bytes] = (iocb, payload)
        pad = -len(payload) % 8
        if pad:
            buffers = (iocb, payload, _PADS[pad])
        if len(payload) >= DEFERRED_BYTES_MIN:
            self._deferred.append((self.end_at, buffers))
        else:
            try:
                self._disk.pwrite("journal:append", self._fd, buffers, self.end_at)
            except OSError:
                # All of it may be in the file all the same: recovery must not find it there.
                with contextlib.suppress(OSError):
                    self._disk.truncate("journal:cut_back", self._fd, self.end_at)
                raise
        self._note(iocb, data_at + padded(len(payload)))
        return data_at

    def _note(self, iocb: bytes, end_at: int) -> None:
        self._iocbs.append(iocb)
        self.end_at = end_at

    def _count(self, seq: Seq, time_ns: int, payload_bytes: int) -> None:
        if not self.record_count:
            self.first_seq = seq
            self.first_time_ns = time_ns
        self.record_count += 1
        self.last_seq = seq
        self.last_time_ns = time_ns
        self.payload_bytes += payload_bytes

    @property
    def unsynced_bytes(self) -> int:
        """Return how much was appended since the last sync."""
        return self.end_at - self.synced_at

    @property
    def iocb_count(self) -> int:
        """Return how many records and marks the file holds."""
        return len(self._iocbs)

    @property
    def sealed_bytes(self) -> int:
        """Return what the file would measure if it were sealed now."""
        return self.end_at + len(self._iocbs) * IOCB_BYTES


def _fill(disk: Disk, fd: int, end_at: int) -> None:
    for at in range(HEADER_BYTES, end_at, len(_ZEROS)):
        disk.pwrite("journal:fill", fd, [_ZEROS[: end_at - at]], at)
    disk.fdatasync("journal:fill_sync", fd)
