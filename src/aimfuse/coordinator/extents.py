"""Read the live image for a sync and write what was read as SYNC files.

A SYNC file is an AIM file of kind SYNC, numbered index + 1: a TABLE mark, a SYNC mark (JSON:
id, index, from, start, end, last, to, next_volume, round, staged), then records with seq from 1.
Of a whole copy holes and runs of zeros are left out, for it goes to files that were just made;
of what a map names they are ZERO records. The image changes while it is read; that is right,
for the journal from `head` on is replayed over the copy.

Everything here blocks and belongs into worker threads.
"""

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aimfuse.coordinator.acks import Position
from aimfuse.coordinator.cursor import SyncState, SyncVolume
from aimfuse.disk import Disk
from aimfuse.errors import ImageMismatch
from aimfuse.journal.dirty import DirtyMap
from aimfuse.journal.header import HEADER_BYTES, FileKind, Identity
from aimfuse.journal.names import PART, SyncName
from aimfuse.journal.records import IOCB_BYTES, RecordType, encode_table, padded
from aimfuse.journal.whole import Frame, encode_sealed
from aimfuse.units import BLOCK_BYTES, MIB, ByteOffset, FileNumber, VolumeId, align_down

SYNC_FILE_BYTES = 16 * MIB
WRITE_BYTES_MAX = MIB
SCAN_BYTES_MAX = 256 * MIB
"""Most that is read for one file: an image full of written zeros still makes progress."""

_FRAME_BYTES = 2 * IOCB_BYTES
_MARK_BYTES = 4096
_LOOK_AGAIN_MAX = 3


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of one volume: its bytes, or None if they are all zero."""

    volume: int
    offset: int
    length: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """What goes into one SYNC file: from `start` up to `end`, `last` if nothing follows."""

    start: Position
    end: Position
    chunks: tuple[Chunk, ...]
    scanned_bytes: int
    last: bool


class ImageReader:
    """Reads the image files of a group, one volume at a time."""

    def __init__(
        self, disk: Disk, image: Path, sync: SyncState, file_bytes: int = SYNC_FILE_BYTES,
        todo: DirtyMap | None = None,
    ) -> None:  # fmt: skip
        """Read everything but holes, or, with *todo*, what that names and holes, too."""
        self._todo = todo
        self._disk = disk
        self._image = image
        self._volumes = sorted(sync.volumes, key=lambda one: one.entry.volume)
        table = len(encode_table(one.entry for one in self._volumes))
        spent = HEADER_BYTES + table + _MARK_BYTES + 2 * _FRAME_BYTES
        self._room = max(2 * WRITE_BYTES_MAX, file_bytes - spent)

    def data_bytes(self) -> int:
        """Return the bytes that a whole copy has to read, about."""
        total = 0
        for one in self._volumes:
            fd = self._open(one)
            if fd is not None:
                is_file = stat.S_ISREG(os.fstat(fd).st_mode)
                held = self._disk.allocated(fd) if is_file else self._disk.size(fd)
                total += min(held, one.entry.size_bytes)
                self._disk.close(fd)
        return total

    def gather(self, start: Position) -> Stretch:
        """Read from *start* until a file is full.

        Raises:
            ImageMismatch: the image is another file than the one that was mirrored.
            OSError: it could not be read.
        """
        chunks: list[Chunk] = []
        room, scanned, read = self._room, 0, 0
        end = start
        for one in self._volumes:
            volume = int(one.entry.volume)
            if volume < start[0]:
                continue
            begin = start[1] if volume == start[0] else 0
            for piece in self._pieces(one, begin):
                held = len(piece.data or b"")
                if room < held + _FRAME_BYTES or read >= SCAN_BYTES_MAX:
                    end = (volume, piece.offset)
                    return Stretch(start, end, tuple(chunks), scanned, last=False)
                scanned += piece.length
                read += held
                for chunk in self._chunks(piece):
                    chunks.append(chunk)
                    room -= padded(len(chunk.data or b"")) + _FRAME_BYTES
            end = (volume, one.entry.size_bytes)
        return Stretch(start, end, tuple(chunks), scanned, last=True)

    def _pieces(self, one: SyncVolume, begin: int) -> Iterator[Chunk]:
        """Yield what is allocated, and with a map holes, in pieces that fit a record."""
        fd = self._open(one)
        if fd is None:  # Gone since; the journal says so before the mirror is consistent.
            return
        try:
            for low, high in self._wanted(one, begin):
                yield from self._stretch(fd, one, low, high)
        finally:
            self._disk.close(fd)

    def _wanted(self, one: SyncVolume, begin: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, end) of what is to be copied of a volume."""
        volume, size = int(one.entry.volume), one.entry.size_bytes
        if self._todo is None:
            yield begin, size
            return
        for extent in self._todo.extents(volume, begin):
            if extent.volume != volume:
                return
            end = min(size, extent.offset + extent.length)
            if max(begin, extent.offset) < end:
                yield max(begin, extent.offset), end

    def _stretch(self, fd: int, one: SyncVolume, low: int, high: int) -> Iterator[Chunk]:
        volume, at = int(one.entry.volume), low
        end = min(high, self._disk.size(fd))
        # Where the next hole is may cost a walk over all of the image: not for a few blocks.
        is_short = end - low <= WRITE_BYTES_MAX and low < end
        for data_low, data_high in (
            [(low, end)] if is_short else self._disk.data_ranges(fd, low, end)
        ):
            if at < data_low and self._todo is not None:
                yield Chunk(volume, at, data_low - at, None)
            at = data_low
            while at < data_high:
                # Worst case every other block is zero: leave room for the frames.
                until = min(data_high, align_down(at, BLOCK_BYTES) + WRITE_BYTES_MAX)
                data = self._disk.pread(fd, until - at, at)
                if not data:  # Cut meanwhile; the journal has that too.
                    return
                yield Chunk(volume, at, len(data), data)
                at += len(data)
        if at < high and self._todo is not None:
            yield Chunk(volume, at, high - at, None)

    def _chunks(self, piece: Chunk) -> Iterator[Chunk]:
        """Yield what goes into the file for a piece."""
        if piece.data is None:
            yield piece
            return
        at = 0
        for start, part in nonzero_runs(piece.data):
            if at < start and self._todo is not None:
                yield Chunk(piece.volume, piece.offset + at, start - at, None)
            yield Chunk(piece.volume, piece.offset + start, len(part), part)
            at = start + len(part)
        if at < piece.length and self._todo is not None:
            yield Chunk(piece.volume, piece.offset + at, piece.length - at, None)

    def _open(self, one: SyncVolume) -> int | None:
        if not self._image.is_dir():
            fd = self._disk.open("sync:open", self._image, os.O_RDONLY)
            if stat.S_ISREG(os.fstat(fd).st_mode) and self._disk.inode(fd) != one.inode:
                self._disk.close(fd)
                raise ImageMismatch(
                    f"{self._image} was replaced since it was mirrored",
                    hint="Put the image back, or mount it with --resync.",
                )
            return fd
        for _ in range(_LOOK_AGAIN_MAX):
            path = self._find(one)
            if path is None:
                return None
            try:
                fd = self._disk.open("sync:open", path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:  # Renamed in between.
                continue
            if self._disk.inode(fd) == one.inode:
                return fd
            self._disk.close(fd)
        return None

    def _find(self, one: SyncVolume) -> Path | None:
        """Return the present path of a volume: names change hands, inodes do not."""
        path = self._image / one.entry.name
        try:
            if path.stat(follow_symlinks=False).st_ino == one.inode:
                return path
        except FileNotFoundError:
            pass
        with os.scandir(self._image) as entries:
            return next((Path(e.path) for e in entries if e.inode() == one.inode), None)


def nonzero_runs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of the stretches of *data* with a block in them that is not zero."""
    start = None
    for at in range(0, len(data), BLOCK_BYTES):
        block = data[at : at + BLOCK_BYTES]
        if block == _ZEROS[: len(block)]:
            if start is not None:
                yield start, data[start:at]
                start = None
        elif start is None:
            start = at
    if start is not None:
        yield start, data[start:] if start else data


_ZEROS = bytes(BLOCK_BYTES)


def write_sync_file(  # noqa: PLR0913 - what a file says, and where it goes
    disk: Disk, directory: Path, group: bytes, sync: SyncState, index: int,
    stretch: Stretch, to: int | None, time_ns: int,
) -> Path:  # fmt: skip
    """Write one SYNC file beneath *directory* and return its path, its name the inbox's.

    Not synced: whoever goes on with it after a crash checks it whole, and else builds it anew.

    Raises:
        OSError: the disk failed or is full; what is left behind is overwritten next time.
    """
    name = SyncName(sync.sync_id, index)
    identity = Identity(
        group, sync.head.epoch, FileNumber(index + 1), time_ns,
        kind=FileKind.SYNC, sync_id=sync.sync_id,
    )  # fmt: skip
    head, here = VolumeId(0), ByteOffset(0)
    table = encode_table(one.entry for one in sync.volumes)
    frames = [
        Frame(RecordType.TABLE, head, here, 0, table),
        Frame(RecordType.SYNC, head, here, 0, _mark(sync, index, stretch, to)),
    ]
    if sync.staged and index == 0:
        frames.append(Frame(RecordType.GAP, head, here, 0, _gap(sync)))
    for chunk in stretch.chunks:
        kind = RecordType.ZERO if chunk.data is None else RecordType.WRITE
        at = ByteOffset(chunk.offset)
        frames.append(Frame(kind, VolumeId(chunk.volume), at, chunk.length, chunk.data or b""))
    data, _digest = encode_sealed(identity, frames)
    path = directory / name.sealed
    part = directory / (name.sealed + PART)
    fd = disk.open("sync:create", part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        disk.pwrite("sync:write", fd, [data], 0)
    finally:
        disk.close(fd)
    disk.rename("sync:rename", part, path)
    return path


def _mark(sync: SyncState, index: int, stretch: Stretch, to: int | None) -> bytes:
    mark = {
        "id": f"{sync.sync_id:016x}",
        "index": index,
        "from": sync.head.to_json(),
        "start": list(stretch.start),
        "end": list(stretch.end),
        "last": to is not None,
        "round": sync.round,
        "staged": sync.staged,
    }  # fmt: skip
    if sync.next_volume:
        mark["next_volume"] = sync.next_volume
    if to is not None:
        mark["to"] = to
    return json.dumps(mark, separators=(",", ":")).encode()


def _gap(sync: SyncState) -> bytes:
    """Return what the GAP record of a staged copy says: why, and up to which file it reaches."""
    said = {"reason": sync.why, "through": sync.head.number}
    return json.dumps(said, separators=(",", ":")).encode()
