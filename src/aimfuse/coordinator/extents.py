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
    data: memoryview | None


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of one volume that is to be read from *fd*, or a hole, without one."""

    offset: int
    length: int
    fd: int | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """What goes into one SYNC file: from `start` up to `end`, `last` if nothing follows.

    Its bytes are the reader's, and there until that gathers the next one.
    """

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
        self._memory = bytearray()

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
        if not self._memory:
            self._memory = bytearray(self._room)
        chunks: list[Chunk] = []
        used, room, scanned, read = 0, self._room, 0, 0
        end = start
        for one in self._volumes:
            volume = int(one.entry.volume)
            if volume < start[0]:
                continue
            begin = start[1] if volume == start[0] else 0
            for piece in self._pieces(one, begin):
                held = 0 if piece.fd is None else piece.length
                if room < held + _FRAME_BYTES or read >= SCAN_BYTES_MAX:
                    end = (volume, piece.offset)
                    return Stretch(start, end, tuple(chunks), scanned, last=False)
                scanned += piece.length
                read += held
                for chunk in self._chunks(volume, piece, used):
                    chunks.append(chunk)
                    count = len(chunk.data or b"")
                    used += count
                    room -= padded(count) + _FRAME_BYTES
            end = (volume, one.entry.size_bytes)
        return Stretch(start, end, tuple(chunks), scanned, last=True)

    def _pieces(self, one: SyncVolume, begin: int) -> Iterator[_Piece]:
        """Yield what is allocated, and with a map holes, in pieces that fit a record."""
        fd = self._open(one)
        if fd is None:  # Gone since; the journal says so before the mirror is consistent.
            return
        try:
            for low, high in self._wanted(one, begin):
                yield from self._stretch(fd, low, high)
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

    def _stretch(self, fd: int, low: int, high: int) -> Iterator[_Piece]:
        at, end = low, min(high, self._disk.size(fd))
        # Where the next hole is may cost a walk over all of the image: not for a few blocks.
        is_short = end - low <= WRITE_BYTES_MAX and low < end
        for data_low, data_high in (
            [(low, end)] if is_short else self._disk.data_ranges(fd, low, end)
        ):
            if at < data_low and self._todo is not None:
                yield _Piece(at, data_low - at, None)
            at = data_low
            while at < data_high:
                # Worst case every other block is zero: leave room for the frames.
                until = min(data_high, align_down(at, BLOCK_BYTES) + WRITE_BYTES_MAX)
                yield _Piece(at, until - at, fd)
                at = until
        if at < high and self._todo is not None:
            yield _Piece(at, high - at, None)

    def _chunks(self, volume: int, piece: _Piece, used: int) -> Iterator[Chunk]:
        """Yield what goes into the file for a piece; what is read lies behind what is *used*."""
        if piece.fd is None:
            yield Chunk(volume, piece.offset, piece.length, None)
            return
        view, here, at = memoryview(self._memory), piece.offset - used, used
        # Less than is wanted if it was cut meanwhile; the journal has that too.
        end = at + self._disk.pread_into(piece.fd, view[at : at + piece.length], piece.offset)
        for low, high in nonzero_runs(self._memory, at, end):
            if at < low and self._todo is not None:
                yield Chunk(volume, here + at, low - at, None)
            data = view[used : used + high - low]
            if used < low:
                data[:] = view[low:high]
            yield Chunk(volume, here + low, high - low, data)
            used += high - low
            at = high
        if at < end and self._todo is not None:
            yield Chunk(volume, here + at, end - at, None)

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


def nonzero_runs(data: bytes | bytearray, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of the stretches of *data* with a block in them that is not zero.

    Only blocks that begin with a zero are looked at whole.
    """
    start = begin
    firsts = data[begin:end:BLOCK_BYTES]
    index = firsts.find(0)
    while index >= 0:
        at = begin + index * BLOCK_BYTES
        block = data[at : min(at + BLOCK_BYTES, end)]
        if block == _ZEROS[: len(block)]:
            if start < at:
                yield start, at
            start = at + len(block)
        index = firsts.find(0, index + 1)
    if start < end:
        yield start, end


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
    parts, _digest = encode_sealed(identity, frames)
    path = directory / name.sealed
    part = directory / (name.sealed + PART)
    fd = disk.open("sync:create", part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        disk.pwrite("sync:write", fd, parts, 0)
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
