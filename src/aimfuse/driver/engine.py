"""The volume engine: accept, commit, apply, checkpoint. Synchronous, without clock or kernel.

Order of a byte: accepted (numbered, appended to the journal, visible to reads), durable (its
journal file is synced), applied (in the image), checkpointed (the image is synced). Nothing is
applied before it is durable. Accepting happens on one thread and never waits; each slow step
is a triple: `begin` and `finish` on that thread, the work between them in a worker thread.
"""

import errno
import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from aimfuse.driver.changes import Change, paste
from aimfuse.driver.checkpoint import Checkpoint, CheckpointFile, KnownVolume
from aimfuse.driver.images import Dirty, Images
from aimfuse.driver.labels import Label, Labels
from aimfuse.driver.stretch import Stretch
from aimfuse.driver.volumes import Volume, Volumes
from aimfuse.driver.zeros import split
from aimfuse.errors import HaltedError, SupersededError, VolumeError
from aimfuse.journal.journal import Commit, Head, Journal
from aimfuse.journal.records import PAYLOAD_BYTES_MAX, RecordType, VolumeEntry
from aimfuse.journal.verify import Hashed, encode_hashes
from aimfuse.journal.writer import AimWriter
from aimfuse.units import BLOCK_BYTES, MIB, FileNumber, Seq, VolumeId

log = logging.getLogger(__name__)

APPLY_BATCH_BYTES = 16 * MIB
APPLY_BATCH_CHANGES = 4096
CHANGE_OVERHEAD_BYTES = 256
"""What an accepted change takes in memory besides its payload, about."""

ZERO_LENGTH_MAX = 1 << 40
"""Longest range of one ZERO record; longer ones are split."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a group may use; sizes in bytes."""

    size_max: int
    memory_bytes_max: int = 64 * MIB


@dataclass(frozen=True, slots=True)
class Boundary:
    """A file of the journal that was rolled, and the volumes right after its last record."""

    number: FileNumber
    last_seq: Seq
    entries: tuple[VolumeEntry, ...]


class Engine:
    """One group while it is served. See the module for which thread may call what."""

    def __init__(
        self,
        journal: Journal,
        images: Images,
        volumes: Volumes,
        checkpoints: CheckpointFile,
        checkpoint: Checkpoint,
        limits: Limits,
    ) -> None:
        """Serve *volumes* whose images hold everything up to *checkpoint*."""
        self.journal = journal
        self.images = images
        self.volumes = volumes
        self.limits = limits
        self.checkpoint = checkpoint
        self.released_through = FileNumber(0)
        self.unapplied_bytes = 0
        self.uncommitted_bytes = 0
        self.halted: str | None = None
        self.superseded: SupersededError | None = None
        self.is_diverging = False
        self.on_halt: Callable[[], None] = lambda: None
        self.labels = Labels()
        self._checkpoints = checkpoints
        self._flushed_seq = journal.last_seq
        self._accepted: deque[Change] = deque()
        self._boundaries: deque[Boundary] = deque()
        self._heads: deque[Head] = deque()
        self._stretches: list[Stretch] = []

    @property
    def applied_seq(self) -> Seq:
        """Return the newest record such that it and all before it are in the images.

        Records that change no image, such as a FLUSH, are in as soon as they are durable.
        """
        durable, pending = self.journal.durable_seq, self._accepted
        return Seq(min(durable, pending[0].seq - 1)) if pending else durable

    # Room. The caller waits until `has_room` says yes and then goes on without an await.

    def has_room(self, payload_bytes: int) -> bool:
        """Tell whether a request with so much payload fits, rolling to the next file if need be.

        Raises:
            OSError: the next file takes no bytes; nothing changed.
        """
        if self.unapplied_bytes > self.limits.memory_bytes_max:
            return False
        records = 2 + 2 * (payload_bytes // BLOCK_BYTES)
        journal = self.journal
        if journal.fits(records, payload_bytes):
            return True
        # A request larger than a whole file goes into an empty one all the same.
        empty = journal.active is not None and not journal.active.record_count
        return empty or self.roll()

    def roll(self) -> bool:
        """Begin the next journal file if one is ready; the active one must hold records."""
        active = self.journal.active
        if not self.journal.roll(self.volumes.table()):
            return False
        self._note_boundary(active)
        return True

    def retire(self) -> None:
        """Take the active file out of use, to be sealed as the last one before a clean end."""
        self._note_boundary(self.journal.retire())

    def _note_boundary(self, writer: AimWriter | None) -> None:
        if writer is not None:
            entries = tuple(self.volumes.entries())
            self._boundaries.append(Boundary(writer.name.number, writer.last_seq, entries))

    # Accepting: number, append, show to reads, in one stretch without an await.

    def write(self, volume: Volume, offset: int, data: bytes) -> None:
        """Accept *data* at *offset*.

        Raises:
            VolumeError: EFBIG beyond the group's size limit. Nothing was accepted.
            HaltedError: the volume takes no more writes.
            OSError: the journal took none or only some whole pieces, in order.
        """
        self.check_writable()
        end = offset + len(data)
        if end > self.limits.size_max:
            raise VolumeError(errno.EFBIG, f"{volume.name} may not grow to {end} bytes")
        for at, length, payload in split(offset, data):
            kind = RecordType.WRITE if payload else RecordType.ZERO
            self._accept(Change(Seq(0), kind, volume.volume, at, length, payload), volume)
            # At once: should the next piece fail, the journal says that this one is there.
            volume.size_bytes = max(volume.size_bytes, at + length)

    def zero(self, volume: Volume, offset: int, length: int) -> None:
        """Accept zeros for a range; it grows the volume like a write.

        Raises:
            VolumeError, HaltedError, OSError: as for `write`.
        """
        self.check_writable()
        end = offset + length
        if end > self.limits.size_max:
            raise VolumeError(errno.EFBIG, f"{volume.name} may not grow to {end} bytes")
        while offset < end:
            part = min(end - offset, ZERO_LENGTH_MAX)
            self._accept(Change(Seq(0), RecordType.ZERO, volume.volume, offset, part), volume)
            offset += part
            volume.size_bytes = max(volume.size_bytes, offset)

    def truncate(self, volume: Volume, size: int) -> None:
        """Accept a new size; what is cut off reads as zeros should the volume grow again.

        Raises:
            VolumeError, HaltedError, OSError: as for `write`; nothing was accepted.
        """
        self.check_writable()
        if size > self.limits.size_max:
            raise VolumeError(errno.EFBIG, f"{volume.name} may not grow to {size} bytes")
        old = volume.size_bytes
        if size == old:
            return
        if self.images.is_device:  # Once accepted it could never be applied.
            raise VolumeError(errno.EPERM, f"{volume.name} lies on a device and keeps its size")
        cut = max(0, old - size)
        self._accept(Change(Seq(0), RecordType.TRUNCATE, volume.volume, size, cut), volume)
        volume.size_bytes = size

    def create(self, name: str) -> Volume:
        """Accept a new, empty volume of a directory group."""
        self.check_writable()
        volume = VolumeId(self.volumes.next_volume)
        self._accept(Change(Seq(0), RecordType.CREATE, volume, 0, 0, name=name), None)
        return self.volumes.create(volume, name)

    def rename(self, volume: Volume, name: str) -> None:
        """Accept a new name; the volume that bore it is replaced in the same step."""
        self.check_writable()
        replaced = self.volumes.named(name)
        gone = replaced.volume if replaced is not None and replaced is not volume else 0
        self._accept(
            Change(Seq(0), RecordType.RENAME, volume.volume, gone, 0, b"", name, volume.name), None
        )
        self.volumes.rename(volume, name)

    def remove(self, volume: Volume) -> None:
        """Accept the removal of a volume; open handles keep it alive on this side."""
        self.check_writable()
        self._accept(Change(Seq(0), RecordType.UNLINK, volume.volume, 0, 0, name=volume.name), None)
        self.volumes.remove(volume)

    def flush(self, volume: Volume) -> Seq:
        """Accept an application's flush; return the seq that has to be durable for it."""
        self.check_active()
        journal = self.journal
        if journal.last_seq != self._flushed_seq:
            self._flushed_seq = journal.append(RecordType.FLUSH, volume.volume, 0, 0)
        return journal.last_seq

    def bookmark(self, label: str) -> Seq:
        """Accept a named position and return it.

        Raises:
            LabelTaken: there is one of that name. Nothing was accepted.
        """
        self.check_active()
        self.labels.check(label)
        seq = self.journal.append(RecordType.BOOKMARK, 0, 0, 0, label.encode())
        self.labels.note(Label(label, self.journal.epoch, seq))
        return seq

    def gap(self, reason: str) -> Seq:
        """Accept that history is broken here: the images hold more than the journal says."""
        self.check_active()
        return self.journal.append(RecordType.GAP, 0, 0, 0, json.dumps({"reason": reason}).encode())

    # Verifying: a stretch is hashed in another thread, and told of every change meanwhile.

    def begin_stretch(self, volume: Volume, start: int, end: int) -> Stretch:
        """Return a stretch that is told of all that happens to *volume*, until it is ended."""
        stretch = Stretch(self.images, volume, start, end)
        volume.opens += 1  # Its image stays open.
        self._stretches.append(stretch)
        return stretch

    def end_stretch(self, stretch: Stretch) -> None:
        """Let the stretch go, and the volume that it kept."""
        self._stretches.remove(stretch)
        self.close_handle(stretch.volume)

    def verify(self, volume: Volume, ranges: Sequence[Hashed]) -> Seq:
        """Accept what *volume* holds in these ranges right now, for its mirrors to compare.

        Raises:
            HaltedError, OSError: as for `write`; nothing was accepted.
        """
        self.check_active()
        start = ranges[0].offset
        length = ranges[-1].end - start
        payload = encode_hashes(ranges)
        return self.journal.append(RecordType.VERIFY, volume.volume, start, length, payload)

    def read(self, volume: Volume, offset: int, length: int) -> bytes:
        """Return what the volume holds now, up to its end; also while halted.

        Raises:
            OSError: the image could not be read.
        """
        length = max(0, min(length, volume.size_bytes - offset))
        if not length:
            return b""
        # Changes are gathered before the image is read: what the applier puts there in
        # between is then laid over itself.
        over = volume.overlay.over(offset, length) if volume.overlay else []
        if not over:
            return self.images.read(volume.volume, length, offset)
        top = over[-1]
        if top.offset <= offset and offset + length <= top.offset + top.length and top.payload:
            skip = offset - top.offset
            return top.payload[skip : skip + length]
        base = bytearray(self.images.read(volume.volume, length, offset))
        paste(base, offset, over)
        return bytes(base)

    # Commit.

    def begin_commit(self) -> Commit | None:
        """Begin a group commit of all that was accepted, or None if nothing was."""
        if self.halted is not None:
            return None
        self.uncommitted_bytes = 0
        return self.journal.begin_commit()

    def finish_commit(self, commit: Commit) -> None:
        """Note that the journal is durable through the commit."""
        self.journal.finish_commit(commit)

    # Apply.

    def begin_apply(self) -> list[Change]:
        """Take the oldest durable changes that are not in the image, a bounded batch."""
        batch: list[Change] = []
        count = 0
        durable = self.journal.durable_seq
        for change in self._accepted:
            if change.seq > durable or count > APPLY_BATCH_BYTES:
                break
            if len(batch) >= APPLY_BATCH_CHANGES:
                break
            batch.append(change)
            count += len(change.payload)
        return batch

    def finish_apply(self, batch: list[Change]) -> None:
        """Note that the images hold *batch*: reads take it from there now."""
        self.images.note_applied(batch)
        for change in batch:
            self._accepted.popleft()
            self.unapplied_bytes -= len(change.payload) + CHANGE_OVERHEAD_BYTES
            volume = self.volumes.get(change.volume)
            if volume is None:
                continue
            if change.length:
                volume.overlay.remove(change)
            if change.kind is RecordType.CREATE:
                self.images.set_owner(volume.volume, volume.mode, volume.uid, volume.gid)
            elif change.kind is RecordType.RENAME:
                self._forget_unused(self.volumes.get(change.offset))
            self._forget_unused(volume)

    def close_handle(self, volume: Volume) -> None:
        """Note that one user of the volume is gone."""
        volume.opens -= 1
        self._forget_unused(volume)

    def set_owner(self, volume: Volume, mode: int, uid: int, gid: int) -> None:
        """Give the volume and its image mode and owner, which are no part of the journal."""
        volume.mode, volume.uid, volume.gid = mode, uid, gid
        if self.images.is_open(volume.volume):
            self.images.set_owner(volume.volume, mode, uid, gid)

    def _forget_unused(self, volume: Volume | None) -> None:
        """Drop a removed volume that is neither open nor in a change yet to be applied."""
        if volume is None or not volume.removed or volume.opens:
            return
        if not any(_concerns(change, volume) for change in self._accepted):
            self.images.forget(volume.volume)
            self.volumes.forget(volume)

    # Seal and checkpoint.

    def finish_seal(self, head: Head) -> None:
        """Note a sealed file as a place for a checkpoint."""
        self.journal.finish_seal(head)
        self._heads.append(head)

    def begin_checkpoint(self, *, again: bool = False) -> tuple[Checkpoint, Dirty] | None:
        """Return the newest possible checkpoint and what has to be synced before it holds.

        Where there is none newer, it can be the present one *again*: once both slots hold it,
        the files before it may go.
        """
        best: tuple[Head, Boundary] | None = None
        while self._heads and self._heads[0].seq <= self.applied_seq:
            head = self._heads.popleft()
            while self._boundaries[0].number < head.number:
                self._boundaries.popleft()
            best = (head, self._boundaries[0])
        if best is None:
            repeats = again and self.released_through < self.checkpoint.head.number
            return (self.checkpoint.unclean(), self.images.take_dirty()) if repeats else None
        head, boundary = best
        known = tuple(
            KnownVolume(entry, self.images.inode(entry.volume)) for entry in boundary.entries
        )
        checkpoint = replace(
            self.checkpoint.unclean(),
            head=head,
            gap=None,  # The record that says so comes first behind a checkpoint with a gap.
            volumes=known,
            next_volume=self.volumes.next_volume,
        )
        return checkpoint, self.images.take_dirty()

    def write_checkpoint(self, checkpoint: Checkpoint, dirty: Dirty | None = None) -> None:
        """Sync the *dirty* images, if that is still to be done, then write the checkpoint; blocks.

        Raises:
            OSError: the images or the state may not be durable; the checkpoint before counts.
        """
        if dirty is not None:
            self.images.sync(dirty)
        self.labels.save(checkpoint.head.epoch, checkpoint.head.seq)
        self._checkpoints.write(checkpoint)

    def finish_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Note it. Files up to the one before it may go: one unreadable slot loses nothing."""
        self.released_through = self.checkpoint.head.number
        self.checkpoint = checkpoint

    # State.

    def halt(self, reason: str) -> None:
        """Refuse all writes from now on; what was accepted stays readable."""
        if self.halted is None:
            self.halted = reason
            log.critical("halted: %s", reason)
            self.on_halt()

    def check_active(self) -> None:
        """Raise `HaltedError` if the volume takes no more writes."""
        if self.halted is not None:
            raise HaltedError(self.halted)

    def check_writable(self) -> None:
        """Raise `SupersededError` if another source goes on, else as `check_active`."""
        self.check_active()
        if self.superseded is not None and not self.is_diverging:
            raise self.superseded

    def _accept(self, change: Change, volume: Volume | None) -> None:
        """Critical section: number, append, show. Never awaits, never half done."""
        kind = change.kind
        payload = change.payload or change.name.encode()
        offset, length = change.offset, change.length
        if kind is RecordType.TRUNCATE:
            assert volume is not None
            offset, length = volume.size_bytes, change.offset
        elif kind is RecordType.UNLINK:
            payload = b""
        assert len(payload) <= PAYLOAD_BYTES_MAX
        change.seq = self.journal.append(kind, change.volume, offset, length, payload)
        self._accepted.append(change)
        for stretch in self._stretches:
            stretch.note(change)
        size = len(change.payload) + CHANGE_OVERHEAD_BYTES
        self.unapplied_bytes += size
        self.uncommitted_bytes += size
        if volume is not None and change.length:
            volume.overlay.add(change)


def _concerns(change: Change, volume: Volume) -> bool:
    """Tell whether *change* is of *volume*, or takes its name: until then it may come back."""
    replaces = change.kind is RecordType.RENAME and change.offset == volume.volume
    return replaces or change.volume == volume.volume
