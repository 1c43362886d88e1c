"""Execute undo files: each range that a journal file overwrote gets what it held before.

No object is made for a record: what a part says is looked at column by column, and all that goes
to one volume is written by one call.
"""

from array import array
from collections.abc import Mapping
from itertools import compress

from aimfuse.disk import Disk, Places
from aimfuse.errors import CorruptRecord
from aimfuse.journal.portion import Columns, columns_of, spans_of
from aimfuse.journal.reader import AimFile
from aimfuse.journal.records import RecordType
from aimfuse.units import VolumeId


def take_back(disk: Disk, part: AimFile, fds: Mapping[VolumeId, int], what: str) -> None:
    """Write what *part* has of the volumes that *fds* has open; nothing is durable yet.

    The ranges of an undo file are disjoint, so holes may come first. *what* begins the labels.

    Raises:
        CorruptRecord: it points out of itself.
        OSError: the disk failed; any of it may be written.
    """
    columns = columns_of(part)
    for volume, begin, end in spans_of(columns.volumes):
        fd = fds.get(VolumeId(volume))
        if fd is None:
            continue
        types = columns.types[begin:end]
        holes = types.translate(_ZEROS)
        if any(holes):
            ranges = zip(columns.offsets[begin:end], columns.lengths[begin:end], strict=True)
            disk.punch_many(f"{what}:punch", fd, compress(ranges, holes))
        writes = types.translate(_WRITES)
        if any(writes):
            _write(disk, part, fd, f"{what}:write", _places(columns, begin, end, writes))


def _write(disk: Disk, part: AimFile, fd: int, label: str, places: Places) -> None:
    try:
        disk.pwrite_places(label, fd, part.data, places)
    except ValueError as exc:
        raise CorruptRecord(part.path, 0, str(exc)) from exc


def _places(columns: Columns, begin: int, end: int, chosen: bytes) -> Places:
    ats, offsets, sizes = columns.ats, columns.offsets, columns.sizes
    return Places(*(array("q", compress(one[begin:end], chosen)) for one in (ats, offsets, sizes)))


def _only(kind: RecordType) -> bytes:
    """Return the table that turns this type into 1 and all others into 0."""
    return bytes(one == kind for one in range(256))


_WRITES, _ZEROS = _only(RecordType.WRITE), _only(RecordType.ZERO)
