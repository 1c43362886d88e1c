"""Find in undo files, without executing them, what bytes of a volume were behind an older file.

Of each undo file the ranges are kept, 20 bytes for each of its records; which files have
something of a stretch of a volume is found out when that is first read. The first undo file behind
the point that covers a byte has it as it was at the point. Every record that is used is read
again from its file, and checked.
"""

import json
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from operator import add, le
from pathlib import Path
from typing import NamedTuple

from aimfuse.disk import Disk
from aimfuse.errors import CorruptRecord
from aimfuse.journal.header import FileKind
from aimfuse.journal.names import GoneName, JournalName, UndoName
from aimfuse.journal.portion import Portion, read_portion
from aimfuse.journal.records import RecordType, VolumeEntry, decode_table
from aimfuse.replay.open_files import OpenFiles
from aimfuse.replay.undo import UndoMark
from aimfuse.units import MIB, VolumeId

PAYLOADS_MAX = 16
"""Payloads of up to 1 MiB that are kept, since readers come back for the rest of one."""

REGION_BYTES = 16 * MIB
REGIONS_MAX = 16384
"""Stretches of a volume for which it is remembered which undo files have something of them."""

_MARKS = 2
_ONLY_CHANGES = bytes([RecordType.WRITE, RecordType.ZERO])


class Piece(NamedTuple):
    """Bytes *start* to *end* of a volume, which record number *record* of layer *layer* has."""

    start: int
    end: int
    layer: int
    record: int


class Layer(NamedTuple):
    """The ranges of one part of an undo file; `spans` say where those of each volume are."""

    portion: Portion
    spans: dict[VolumeId, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """One undo file with all of its parts; `table` are the volumes in front of its file."""

    name: JournalName
    mark: UndoMark
    table: tuple[VolumeEntry, ...]
    layers: tuple[Layer, ...]


class UndoIndex:
    """The undo files behind one point, in the order of their files; more can be added."""

    def __init__(self, disk: Disk, history: Path) -> None:
        """Begin with none. *history* is where they lie."""
        self.gone: dict[VolumeId, Path] = {}
        """Where the data of volumes is that later files removed."""
        self._disk = disk
        self._history = history
        self._layers: list[Layer] = []
        self._regions: dict[tuple[VolumeId, int], tuple[int, array[int]]] = {}
        self._files = OpenFiles(disk, "view:undo")
        self._payloads: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def __len__(self) -> int:
        """Return how many layers there are; `find` can begin behind those known before."""
        return len(self._layers)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    # Adding.

    def load(self, name: JournalName) -> Loaded:
        """Read and check what the undo file of journal file *name* says; nothing is added yet.

        Raises:
            JournalError: it is damaged, or not what its name says.
            OSError: it could not be read.
        """
        path = self._history / str(UndoName(name))
        portion, mark, table = self._read_first(path, name)
        layers = [_layer(portion)]
        for part, digest in enumerate(mark.parts, start=1):
            path = self._history / str(UndoName(name, part))
            portion = self._read(path, name, part)
            if portion.seal.digest != digest:
                raise CorruptRecord(path, 0, "it is not the part that belongs to part 0")
            layers.append(_layer(portion))
        return Loaded(name, mark, table, tuple(layers))

    def add(self, loaded: Loaded) -> None:
        """Add what was loaded; its journal file is behind those of all that were added before."""
        self._layers.extend(loaded.layers)
        for volume in loaded.mark.gone:
            self.gone[volume] = self._history / str(GoneName(loaded.name, volume))

    def _read_first(
        self, path: Path, name: JournalName
    ) -> tuple[Portion, UndoMark, tuple[VolumeEntry, ...]]:
        portion = self._read(path, name, 0)
        fd = self._files.get(path)
        table, mark = (
            portion.payload(self._disk, fd, portion.iocb(self._disk, fd, index))
            for index in range(_MARKS)
        )
        try:
            said, volumes = UndoMark.from_json(json.loads(mark)), decode_table(table)
        except (KeyError, TypeError, ValueError, RecursionError) as exc:
            raise CorruptRecord(path, 0, f"no usable UNDO mark: {exc!r}") from exc
        return portion, said, volumes

    def _read(self, path: Path, name: JournalName, part: int) -> Portion:
        self._files.forget(path)
        try:
            portion = read_portion(self._disk, path, self._files.get(path))
        except FileNotFoundError as exc:
            raise CorruptRecord(path, 0, "the file is gone") from exc
        own = portion.identity
        said = (own.kind, own.epoch, own.number, own.sync_id)
        if said != (FileKind.UNDO, name.epoch, name.number, part):
            raise CorruptRecord(path, 0, "its header names another file than its name does")
        if portion.types[:_MARKS] != bytes([RecordType.TABLE, RecordType.UNDO]):
            raise CorruptRecord(path, 0, "it does not begin with TABLE and UNDO")
        if portion.types[_MARKS:].strip(_ONLY_CHANGES):
            raise CorruptRecord(path, 0, "it holds what no undo file has")
        return portion

    # Finding.

    def find(self, volume: VolumeId, start: int, end: int, first: int = 0) -> Iterator[Piece]:
        """Yield who has which bytes from *start* to *end*, each byte once; of some, nobody.

        Layers in front of number *first* are left out.
        """
        layers: set[int] = set()
        for region in range(start // REGION_BYTES, (end - 1) // REGION_BYTES + 1):
            layers.update(self._touching(volume, region))
        missing = [(start, end)]
        for number in sorted(one for one in layers if one >= first):
            left: list[tuple[int, int]] = []
            for low, high in missing:
                at = low
                for piece in self._in_layer(number, volume, low, high):
                    if at < piece.start:
                        left.append((at, piece.start))
                    yield piece
                    at = piece.end
                if at < high:
                    left.append((at, high))
            missing = left
            if not missing:
                return

    def _touching(self, volume: VolumeId, region: int) -> "array[int]":
        """Return the layers that have something of a region; each is asked once."""
        key = (volume, region)
        asked, found = self._regions.pop(key, (0, array("I")))
        low, high = region * REGION_BYTES, (region + 1) * REGION_BYTES
        for number in range(asked, len(self._layers)):
            if _touches(self._layers[number], volume, low, high):
                found.append(number)
        self._regions[key] = (len(self._layers), found)
        if len(self._regions) > REGIONS_MAX:
            del self._regions[next(iter(self._regions))]
        return found

    def _in_layer(self, number: int, volume: VolumeId, start: int, end: int) -> Iterator[Piece]:
        portion, spans = self._layers[number]
        low, high = spans.get(volume, (0, 0))
        starts, lengths = portion.offsets, portion.lengths
        index = max(low, bisect_right(starts, start, low, high) - 1)
        while index < high and starts[index] < end:
            piece_end = starts[index] + lengths[index]
            if piece_end > start:
                yield Piece(max(start, starts[index]), min(end, piece_end), number, index)
            index += 1

    # Reading.

    def read(self, volume: VolumeId, piece: Piece) -> bytes | None:
        """Return the bytes of *piece*, or None for zeros.

        Raises:
            JournalError: the record is damaged.
            OSError: it could not be read.
        """
        portion = self._layers[piece.layer].portion
        disk, path = self._disk, portion.path
        at = piece.start - portion.offsets[piece.record]
        key = (piece.layer, piece.record)
        payload = self._payloads.get(key)
        if payload is None:
            fd = self._files.get(path)
            iocb = portion.iocb(disk, fd, piece.record)
            if (iocb.volume, iocb.offset) != (volume, portion.offsets[piece.record]):
                raise CorruptRecord(path, iocb.data_at, "it changed while it was used")
            if iocb.type is RecordType.ZERO:
                return None
            payload = portion.payload(disk, fd, iocb)
            self._payloads[key] = payload
            if len(self._payloads) > PAYLOADS_MAX:
                self._payloads.popitem(last=False)
        found = payload[at : at + piece.end - piece.start]
        if len(found) < piece.end - piece.start:
            raise CorruptRecord(path, 0, f"record {piece.record} is shorter than its range")
        return found


def _layer(portion: Portion) -> Layer:
    """Return the spans of the volumes: their records lie together and in order.

    Raises:
        CorruptRecord: they do not, so that nobody could find one.
    """
    volumes: array[int] = portion.volumes
    spans: dict[VolumeId, tuple[int, int]] = {}
    at, end = _MARKS, len(volumes)
    while at < end:
        volume = VolumeId(volumes[at])
        high = bisect_right(volumes, volume, at, end)
        if volume in spans or not _is_rising(portion, at, high):
            raise CorruptRecord(portion.path, 0, "its ranges are not in order")
        spans[volume] = (at, high)
        at = high
    return Layer(portion, spans)


def _is_rising(portion: Portion, low: int, high: int) -> bool:
    """Tell whether these records are of one volume, in order, and none overlaps another."""
    starts, lengths = portion.offsets[low:high], portion.lengths[low:high]
    if set(portion.volumes[low:high]) != {portion.volumes[low]}:
        return False
    return all(map(le, map(add, starts, lengths), islice(starts, 1, None)))


def _touches(layer: Layer, volume: VolumeId, start: int, end: int) -> bool:
    span = layer.spans.get(volume)
    if span is None:
        return False
    starts = layer.portion.offsets
    index = bisect_left(starts, end, *span) - 1
    return index >= span[0] and starts[index] + layer.portion.lengths[index] > start
