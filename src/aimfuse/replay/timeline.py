"""A past as one line of records to search in: only files that are asked for are read."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import OutOfReach
from aimfuse.journal.excerpt import read_front
from aimfuse.journal.portion import Portion, read_portion
from aimfuse.journal.records import MARK_MIN, RecordType, decode_table
from aimfuse.replay.past import Past
from aimfuse.replay.point import Finder, Point, Wanted
from aimfuse.replay.state import Json
from aimfuse.replay.undo import read_undo

FILES_KEPT = 8
_SAVED = bytes([RecordType.FLUSH, RecordType.BOOKMARK])
_NAMED = {RecordType.CREATE, RecordType.RENAME, RecordType.BOOKMARK}


@dataclass(frozen=True, slots=True, order=True)
class Spot:
    """The state behind record *seq* of file *file*, counted from 0; -1 is the oldest state."""

    file: int
    seq: int
    epoch: int

    @property
    def position(self) -> str:
        """Return it as `--at` takes it."""
        return f"{self.epoch}:{self.seq}"


class Timeline:
    """The spots of one past, which whoever uses it has pinned."""

    def __init__(self, disk: Disk, past: Past) -> None:
        """*past* has a mirror.

        Raises:
            OutOfReach: there is no history, so there is but one state.
        """
        reach = past.reach
        if reach is None or not reach.sets:
            raise OutOfReach(f"{past.path} has no history: there is one state only")
        self._disk = disk
        self._past = past
        self._names = [one.name for one in reversed(reach.sets)]
        self._portion = lru_cache(FILES_KEPT)(self._read)
        head = read_undo(disk, past.history, self._names[0], read_front).mark.head
        self.oldest = Spot(-1, head.seq, head.epoch)
        self._oldest_ns = head.time_ns
        self._base: int = reach.base

    @property
    def newest(self) -> Spot:
        """Return the spot behind the last record."""
        return self.end_of(len(self._names) - 1) or self.oldest

    def spot(self, wanted: Wanted) -> Spot:
        """Return where *wanted* is; errors as for `Finder.find`."""
        point: Point = Finder(self._disk, self._past).find(wanted)
        if point.redo is None:
            return self.end_of(point.base - self._base - 1) or self.oldest
        epoch, seq = point.position
        return Spot(point.redo.name.number - self._base - 1, seq, epoch)

    def end_of(self, file: int) -> Spot | None:
        """Return the spot behind a file, or that of the last one in front of it with records."""
        while file >= 0:
            portion = self._portion(file)
            if portion.seal.record_count:
                return Spot(file, portion.seal.last_seq, portion.identity.epoch)
            file -= 1
        return None

    def saved_in(self, file: int) -> list[Spot]:
        """Return the spots of a file where somebody had saved: behind its FLUSHes and bookmarks."""
        types = self._portion(file).types
        places = zip(self.records_in(file), _records(types), strict=True)
        return [spot for spot, index in places if types[index] in _SAVED]

    def records_in(self, file: int) -> list[Spot]:
        """Return all spots of a file."""
        seal, epoch = self._portion(file).seal, self._portion(file).identity.epoch
        return [Spot(file, seal.first_seq + one, epoch) for one in range(seal.record_count)]

    def describe(self, spot: Spot) -> Json:
        """Return a spot for people and programs: where, when, and which record it is behind."""
        said: Json = {"position": spot.position, "file": self._base + 1 + spot.file}
        if spot.file < 0:
            return said | {"time_ns": self._oldest_ns or None, "type": None}
        portion = self._portion(spot.file)
        path = portion.path
        fd = self._disk.open("timeline:open", path, os.O_RDONLY)
        try:
            iocb = portion.iocb(self._disk, fd, self._index(spot))
            said |= {"time_ns": iocb.time_ns, "type": iocb.type.name}
            if iocb.volume:
                table = decode_table(
                    portion.payload(self._disk, fd, portion.iocb(self._disk, fd, 0))
                )
                name = next((one.name for one in table if one.volume == iocb.volume), None)
                said |= {"name": name, "offset": iocb.offset, "length": iocb.length}
            if iocb.type in _NAMED:
                said["label"] = portion.payload(self._disk, fd, iocb).decode(errors="replace")
        finally:
            self._disk.close(fd)
        return said

    def _index(self, spot: Spot) -> int:
        """Return which IOCB of its file the record is: marks stand between them."""
        portion = self._portion(spot.file)
        return _records(portion.types)[spot.seq - portion.seal.first_seq]

    def _read(self, file: int) -> Portion:
        path: Path = self._past.history / self._names[file].sealed
        fd = self._disk.open("timeline:open", path, os.O_RDONLY)
        try:
            return read_portion(self._disk, path, fd)
        finally:
            self._disk.close(fd)


@lru_cache(FILES_KEPT)
def _records(types: bytes) -> list[int]:
    return [index for index, kind in enumerate(types) if kind < MARK_MIN]
