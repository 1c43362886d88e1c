"""The growing end of a group's journal: number, append, commit, roll, seal.

At any time one file is active, the next one lies ready with its name durable, and rolled ones
wait for their seal. Numbering and appending happen in one stretch on one thread. What may take
long (`sync`, `seal_next`, `make_ready`) runs in worker threads; each has a short counterpart
that notes the result on the main thread.
"""

import contextlib
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aimfuse.disk import Disk
from aimfuse.journal.header import NO_DIGEST, Identity, Parent
from aimfuse.journal.records import IOCB_BYTES, IOCBS_MAX, RecordType
from aimfuse.journal.spool import free_files
from aimfuse.journal.writer import AimWriter
from aimfuse.units import Epoch, FileNumber, Seq

FRAME_OVERHEAD_BYTES = 2 * IOCB_BYTES + 8
"""What a record takes besides its payload: its IOCB twice, and padding."""

FILLED_COMMITS_MIN = 64
"""From so many commits a file on, the next one is filled with zeros first: syncing what was
written before is faster by more than the filling costs."""

SMALL_COMMIT_BYTES = 64 * 1024

CLOSING_FILES_MAX = 256
CLOSING_IOCBS_MAX = 1 << 18
"""Rolled files that may wait for their seal, and what of them is kept in memory."""

CROWD_FILES = 64

SEAL_RESERVE_BYTES = 64 * IOCB_BYTES
"""Room left in every file for COMMIT marks."""


@dataclass(frozen=True, slots=True)
class Head:
    """The newest sealed file of a lineage, the last record in it, and the time of that one.

    The time, Unix ns, is 0 where it is not known, and says nothing about which head this is.
    """

    epoch: Epoch = Epoch(0)
    number: FileNumber = FileNumber(0)
    seq: Seq = Seq(0)
    digest: bytes = NO_DIGEST
    time_ns: int = field(default=0, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the form that slots and SYNC marks carry."""
        return {
            "epoch": self.epoch, "number": self.number, "seq": self.seq,
            "digest": self.digest.hex(), "time_ns": self.time_ns,
        }  # fmt: skip

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Head":
        """Read what `to_json` wrote, among other things or alone.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or of another kind.
        """
        epoch, number = Epoch(int(state["epoch"])), FileNumber(int(state["number"]))
        digest, time_ns = bytes.fromhex(state["digest"]), int(state.get("time_ns", 0))
        return cls(epoch, number, Seq(int(state["seq"])), digest, time_ns)

    def as_parent(self) -> Parent:
        """Return what an epoch that starts here names as its parent."""
        return Parent(self.epoch, self.seq, self.digest)


@dataclass(frozen=True, slots=True)
class Commit:
    """One group commit under way: everything up to *seq* lies in *writers*."""

    seq: Seq
    writers: tuple[AimWriter, ...]

    @property
    def is_large(self) -> bool:
        """Tell whether making it durable moves much data, or may touch several files."""
        (*rolled, active) = self.writers
        return bool(rolled) or active.unsynced_bytes > SMALL_COMMIT_BYTES


class Journal:
    """The writing end of one epoch. Not for sharing between threads except as said above."""

    def __init__(
        self,
        disk: Disk,
        spool: Path,
        group: bytes,
        head: Head,
        parent: Parent,
        epoch: Epoch,
        file_bytes: int,
    ) -> None:
        """Continue behind *head*; if that is of another epoch, this one starts at seq 1."""
        self.head = head
        self.epoch = epoch
        self.last_seq = head.seq if head.epoch == epoch else Seq(0)
        self.durable_seq = self.last_seq
        self.active: AimWriter | None = None
        self.active_since_s = 0.0
        self.ready: AimWriter | None = None
        self.closing: deque[AimWriter] = deque()
        self._closing_iocbs = 0
        self._disk = disk
        self._spool = spool
        self._group = group
        self._parent = parent
        self._file_bytes = file_bytes
        self._next_number = FileNumber(head.number + 1)
        self._commits = 0
        self._fill_bytes = 0
        self._free: list[Path] | None = None

    # Making files ready.

    def make_ready(self) -> AimWriter:
        """Create the next file; blocks. Errors leave nothing that recovery minds."""
        identity = Identity(
            self._group, self.epoch, self._next_number, time.time_ns(), self._parent
        )
        if self._free is None:
            self._free = free_files(self._disk, self._spool)
        recycled = self._free.pop(0) if self._free else None
        return AimWriter.create(self._disk, self._spool, identity, recycled, self._fill_bytes)

    def look_for_free_files(self) -> None:
        """Note that files were released, so that the next ones made ready may recycle them.

        For the thread of `make_ready`. Listing a long spool for every file would cost more than
        recycling saves.
        """
        self._free = None

    def adopt(self, writer: AimWriter) -> None:
        """Take what `make_ready` made as the next file."""
        assert self.ready is None
        self._next_number = FileNumber(self._next_number + 1)
        self.ready = writer

    # Appending. One critical section from `fits` to `append`: no await between them.

    def fits(self, records: int, payload_bytes: int) -> bool:
        """Tell whether the active file takes this much more."""
        need = records * FRAME_OVERHEAD_BYTES + payload_bytes + SEAL_RESERVE_BYTES
        active = self.active
        return (
            active is not None
            and active.sealed_bytes + need <= self._file_bytes
            and active.iocb_count + records <= IOCBS_MAX // 2
        )

    def roll(self, table: bytes) -> bool:
        """Make the ready file the active one; it begins with *table*. False if none is ready.

        Raises:
            OSError: the table could not be written; nothing changed.
        """
        ready, active = self.ready, self.active
        if ready is None:
            return False
        ready.mark(RecordType.TABLE, self.last_seq, 0, time.time_ns(), table)
        if active is not None:
            self._close(active)
            often = self._commits >= FILLED_COMMITS_MIN
            self._fill_bytes = min(active.end_at, self._file_bytes) if often else 0
        self._commits = 0
        self.active, self.ready = ready, None
        return True

    def retire(self) -> AimWriter | None:
        """Take the active file out of use without a next one; return it if it holds records."""
        active, self.active = self.active, None
        if active is None:
            return None
        if active.record_count:
            self._close(active)
            return active
        self.ready = self.ready or active
        if self.ready is not active:
            active.close()
            self._disk.unlink("journal:unused", active.path)
        return None

    def append(
        self, kind: RecordType, volume: int, offset: int, length: int, payload: bytes = b""
    ) -> Seq:
        """Append a record to the active file and return its number.

        Raises:
            OSError: no record was written and no number was used.
        """
        active = self.active
        assert active is not None
        seq = Seq(self.last_seq + 1)
        if not active.record_count:
            self.active_since_s = time.monotonic()
        active.append(kind, volume, seq, offset, length, time.time_ns(), payload)
        self.last_seq = seq
        return seq

    def active_age_s(self) -> float:
        """Return how long ago the active file got its first record, 0 without one."""
        active = self.active
        if active is None or not active.record_count:
            return 0.0
        return time.monotonic() - self.active_since_s

    @property
    def can_roll(self) -> bool:
        """Tell whether one more file may wait for its seal."""
        return len(self.closing) < CLOSING_FILES_MAX and self._closing_iocbs < CLOSING_IOCBS_MAX

    @property
    def is_crowded(self) -> bool:
        """Tell whether writers may soon wait for the seals."""
        return len(self.closing) >= CROWD_FILES or self._closing_iocbs > CLOSING_IOCBS_MAX // 2

    def _close(self, writer: AimWriter) -> None:
        self.closing.append(writer)
        self._closing_iocbs += writer.iocb_count

    @property
    def unwritten_bytes(self) -> int:
        """Return what making durable and sealing what was accepted may yet take on the disk."""
        return sum(writer.sealed_bytes - writer.synced_at for writer in self._open_files())

    @property
    def open_bytes(self) -> int:
        """Return what the files that hold records and are not sealed will measure."""
        return sum(writer.sealed_bytes for writer in self._open_files())

    def _open_files(self) -> tuple[AimWriter, ...]:
        return (*self.closing, *((self.active,) if self.active else ()))

    # Group commit.

    def begin_commit(self) -> Commit | None:
        """Note what is to be made durable, or None if nothing is."""
        active = self.active
        if active is None or self.last_seq == self.durable_seq:
            return None
        self._commits += 1
        # The mark tells a later recovery what was durable before this commit: a break in
        # front of that is damage and no torn tail. Without it (full disk) less is told apart,
        # and nothing is lost, so the commit goes on.
        with contextlib.suppress(OSError):
            active.mark(RecordType.COMMIT, self.last_seq, self.durable_seq, time.time_ns())
        # What a rolled file holds was often synced before it was rolled. Its seal, which may be
        # syncing it again, is not waited for.
        rolled = (writer for writer in self.closing if writer.unsynced_bytes)
        return Commit(self.last_seq, (*rolled, active))

    def sync(self, commit: Commit) -> None:
        """Make the commit's records durable; blocks.

        Raises:
            OSError: they may not be, and never will be by trying again. Halt.
        """
        for writer in commit.writers:
            writer.sync()

    def finish_commit(self, commit: Commit) -> None:
        """Note that `sync` returned."""
        self.durable_seq = max(self.durable_seq, commit.seq)

    # Sealing.

    def seal_next(self) -> Head:
        """Finish the oldest rolled file and publish it under its sealed name; blocks.

        Raises:
            OSError: the file stays open, for recovery to finish. Halt.
        """
        writer = self.closing[0]
        name = writer.name
        seal = writer.seal(self.head.digest, self.epoch, FileNumber(name.number + 1))
        self._disk.rename("journal:publish", writer.path, self._spool / name.sealed)
        # A checkpoint may soon be past this file; by its open name recovery would drop it,
        # though destinations still need it.
        self._disk.sync_dir("journal:publish_sync_dir", self._spool)
        writer.close()
        seq = writer.last_seq if writer.record_count else self.head.seq
        time_ns = seal.last_time_ns or self.head.time_ns
        return Head(name.epoch, name.number, seq, seal.digest, time_ns)

    def finish_seal(self, head: Head) -> None:
        """Note what `seal_next` returned; all of it is durable."""
        self._closing_iocbs -= self.closing.popleft().iocb_count
        self.head = head
        self.durable_seq = max(self.durable_seq, head.seq)

    def close(self) -> None:
        """Give back the descriptors and remove files that hold no record."""
        for writer in (*self.closing, self.active, self.ready):
            if writer is None:
                continue
            writer.close()
            if not writer.record_count:
                self._disk.unlink("journal:unused", writer.path)
        self.active = self.ready = None
        self.closing.clear()
