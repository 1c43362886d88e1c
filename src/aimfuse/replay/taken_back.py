"""Execute undo files: each range that a journal file overwrote gets what it held before.

No object is made for a record: what a part says is looked at column by column, and all that goes
to one volume is written by one call. Looking and writing are apart, so that the next part can be
looked at on another thread while the one before it is written.
"""

from array import array
from collections.abc import Iterable, Mapping
from itertools import compress
from typing import NamedTuple

from aimfuse.disk import Disk, Places
from aimfuse.errors import CorruptRecord
from aimfuse.journal.portion import Columns, columns_of, spans_of
from aimfuse.journal.reader import AimFile
from aimfuse.journal.records import RecordType
from aimfuse.units import VolumeId


class Ranges(NamedTuple):
    """What a part has of one volume: holes, as offset and length, and where its bytes are."""

    volume: VolumeId
    holes: list[tuple[int, int]]
    places: Places


def ranges_of(part: AimFile) -> list[Ranges]:
    """Return what *part* says of each volume.

    Raises:
        CorruptRecord: it holds what no undo file has.
    """
    columns = columns_of(part)
    return [
        _ranges(VolumeId(volume), columns, begin, end)
        for volume, begin, end in spans_of(columns.volumes)
    ]


def take_back(
    disk: Disk, part: AimFile, ranges: Iterable[Ranges], fds: Mapping[VolumeId, int], what: str
) -> None:
    """Write what *part* has of the volumes that *fds* has open; nothing is durable yet.

    *ranges* are those of the part. They are disjoint, so holes may come first. *what* begins the
    labels.

    Raises:
        CorruptRecord: it points out of itself.
        OSError: the disk failed; any of it may be written.
    """
    for volume, holes, places in ranges:
        fd = fds.get(volume)
        if fd is None:
            continue
        if holes:
            disk.punch_many(f"{what}:punch", fd, holes)
        if places.ats:
            _write(disk, part, fd, f"{what}:write", places)


def _write(disk: Disk, part: AimFile, fd: int, label: str, places: Places) -> None:
    try:
        disk.pwrite_places(label, fd, part.data, places)
    except ValueError as exc:
        raise CorruptRecord(part.path, 0, str(exc)) from exc


def _ranges(volume: VolumeId, columns: Columns, begin: int, end: int) -> Ranges:
    types = columns.types[begin:end]
    ats, offsets, sizes = (one[begin:end] for one in (columns.ats, columns.offsets, columns.sizes))
    if types.count(RecordType.WRITE) == len(types):  # As mostly.
        return Ranges(volume, [], Places(ats, offsets, array("q", sizes)))
    writes = types.translate(_WRITES)
    places = Places(*(array("q", compress(one, writes)) for one in (ats, offsets, sizes)))
    holes = zip(offsets, columns.lengths[begin:end], strict=True)
    return Ranges(volume, list(compress(holes, types.translate(_ZEROS))), places)


def _only(kind: RecordType) -> bytes:
    """Return the table that turns this type into 1 and all others into 0."""
    return bytes(one == kind for one in range(256))


_WRITES, _ZEROS = _only(RecordType.WRITE), _only(RecordType.ZERO)
