"""Read of a sealed file only what is needed, each piece checked by its own sum.

The header has two sums, each IOCB one that is seeded with the file's identity, each payload one
that stands in its IOCB. What is not read is not checked, and neither is the digest, which covers
all of it; so where most of a file is needed it is read whole and checked whole.
"""

import os
from array import array
from collections.abc import Container, Iterator
from dataclasses import replace
from itertools import compress
from operator import add
from pathlib import Path

from crc32c import crc32c

from aimfuse.disk import Disk, Places
from aimfuse.errors import CorruptRecord, TornRecord
from aimfuse.journal.header import HEADER_BYTES, identity_seed
from aimfuse.journal.portion import Columns, check_complete, checked_columns, payload_sums
from aimfuse.journal.reader import AimFile, check_header, check_order, check_sealed
from aimfuse.journal.records import IOCB_BYTES, MARK_MIN, BadIocb, Iocb, decode_iocb, unpack_iocbs
from aimfuse.units import KIB

FRONT_BYTES = 32 * KIB
"""What is read first: the header and, nearly always, the leading marks; a small file whole."""

GAP_BYTES = 64 * KIB
"""What lies between two needed stretches is read, too, if it is not longer: that is faster."""

WHOLE_RATIO = 0.75
"""Where so much of the data is needed all of it is read, and the digest checked."""

_FLAGS = os.O_RDONLY | os.O_NONBLOCK
_IS_MARK = bytes(kind >= MARK_MIN for kind in range(256))


def read_front(disk: Disk, path: Path) -> AimFile:
    """Return what a sealed file says of itself: its header, and in `iocbs` the leading marks.

    Nothing behind those is read. Its `data` ends there.

    Raises:
        TornRecord: it is not sealed, or ends early.
        CorruptRecord: what was read of it is damaged.
        OSError: it could not be read.
    """
    fd = disk.open("read", path, _FLAGS)
    try:
        return _front(disk, fd, path)
    finally:
        disk.close(fd)


def read_iocbs(disk: Disk, path: Path) -> AimFile:
    """Return the same with all IOCBs, but without their payloads; errors as for `read_front`."""
    fd = disk.open("read", path, _FLAGS)
    try:
        front = _front(disk, fd, path)
        raw, _columns = _portion(disk, fd, front)
    finally:
        disk.close(fd)
    iocbs = unpack_iocbs(memoryview(raw))
    check_order(path, front.seal, iocbs)
    return replace(front, iocbs=iocbs)


class Excerpts:
    """Reads sealed files: their leading marks, and the records of some volumes."""

    def __init__(self, volumes: Container[int]) -> None:
        """What is needed are the records of *volumes*."""
        self._volumes = volumes

    def read(self, disk: Disk, path: Path) -> AimFile:
        """Return the file as if it held nothing else; its seal says where its IOCBs are in `data`.

        Of a file that was read whole everything is in it. Errors as for `read_front`.
        """
        fd = disk.open("read", path, _FLAGS)
        try:
            front = _front(disk, fd, path)
            if self._needs_all_of(front):
                return _whole(disk, fd, front)
            raw, columns = _portion(disk, fd, front)
            chosen = self._choose(columns)
            places = _joined(columns, chosen)
            if sum(places.lengths) >= WHOLE_RATIO * front.seal.data_bytes:
                return _whole(disk, fd, front, raw)
            return _excerpt(disk, fd, front, raw, columns, chosen, places)
        finally:
            disk.close(fd)

    def _needs_all_of(self, front: AimFile) -> bool:
        """Tell whether no volume is in the file but those that are needed, or it is here anyway."""
        if len(front.data) >= front.seal.total_bytes:
            return True
        try:
            table = front.table()
        except ValueError:  # Whoever uses it says so.
            return True
        return table is not None and all(one.volume in self._volumes for one in table)

    def _choose(self, columns: Columns) -> bytes:
        """Return for each IOCB 1 if it is needed, else 0."""
        wanted = {one: one in self._volumes for one in set(columns.volumes)}
        of_volumes = bytes(map(wanted.__getitem__, columns.volumes))
        marks = columns.types.translate(_IS_MARK)
        return bytes(map(int.__or__, of_volumes, marks))


def _front(disk: Disk, fd: int, path: Path) -> AimFile:
    """Read the header and the leading marks, or a small file whole."""
    size = disk.size(fd)
    data = disk.pread(fd, min(size, FRONT_BYTES), 0)
    identity, seal = check_header(path, data, size)
    seed, at = identity_seed(data), HEADER_BYTES
    marks: list[Iocb] = []

    def read_to(end: int) -> None:
        nonlocal data
        if end > seal.iocb_at:
            raise CorruptRecord(path, at, "a frame that does not fit into the file")
        if end > len(data):
            more = max(end - len(data), min(FRONT_BYTES, size - len(data)))
            data += disk.pread(fd, more, len(data))
            if end > len(data):
                raise TornRecord(path, len(data), "cut short while it was read")

    while at < seal.iocb_at:
        read_to(at + IOCB_BYTES)
        try:
            iocb = decode_iocb(seed, data[at : at + IOCB_BYTES])
        except BadIocb as exc:
            raise CorruptRecord(path, at, str(exc)) from exc
        if not iocb.is_mark:
            break
        if iocb.data_at != at + IOCB_BYTES:
            raise CorruptRecord(path, at, "a mark that points out of place")
        read_to(iocb.end_at)
        if crc32c(data[iocb.data_at : iocb.data_at + iocb.payload_bytes]) != iocb.payload_crc:
            raise CorruptRecord(path, iocb.data_at, "payload checksum mismatch")
        marks.append(iocb)
        at = iocb.end_at
    return AimFile(path, memoryview(data), identity, seal, tuple(marks))


def _portion(disk: Disk, fd: int, front: AimFile) -> tuple[bytes, Columns]:
    """Read the IOCB portion; return it, and what it says."""
    at, size = front.seal.iocb_at, front.seal.iocb_count * IOCB_BYTES
    raw = disk.pread(fd, size, at)
    if len(raw) < size:
        raise TornRecord(front.path, at, "the IOCB portion is cut short")
    columns = checked_columns(front.path, at, raw, identity_seed(front.data))
    check_complete(front.path, at, columns)
    ats, sizes = columns.ats, columns.sizes
    if ats and (ats[0] <= HEADER_BYTES or max(map(add, ats, sizes)) > at):  # They rise.
        raise CorruptRecord(front.path, at, "an IOCB that points out of place")
    return raw, columns


def _whole(disk: Disk, fd: int, front: AimFile, raw: bytes = b"") -> AimFile:
    """Read the rest of a file, of which *raw* is the end that is here, and check all of it."""
    at, end = len(front.data), front.seal.total_bytes - len(raw)
    rest = disk.pread(fd, end - at, at) if at < end else b""
    return check_sealed(front.path, b"".join((front.data[:end], rest, raw)))


def _joined(columns: Columns, chosen: bytes) -> Places:
    """Return the stretches of the file that have to be read for the chosen records."""
    starts, lengths = array("q"), array("q")
    low = high = 0
    found = zip(compress(columns.ats, chosen), compress(columns.sizes, chosen), strict=True)
    for at, size in sorted(one for one in found if one[1]):
        if at - high > GAP_BYTES or not high:
            if high:
                starts.append(low)
                lengths.append(high - low)
            low = at
        high = max(high, at + size)
    if high:
        starts.append(low)
        lengths.append(high - low)
    return Places(starts, starts, lengths)


def _excerpt(
    disk: Disk, fd: int, front: AimFile, raw: bytes, columns: Columns, chosen: bytes, places: Places
) -> AimFile:
    """Read *places*, check what was chosen, and put it where it has its place in the file."""
    path, seal = front.path, front.seal
    chosen_raw = b"".join(_chosen_iocbs(raw, chosen))
    end_at = seal.iocb_at + len(chosen_raw)
    data = memoryview(bytearray(end_at))  # What is not written to takes no memory.
    data[seal.iocb_at :] = chosen_raw
    done = disk.pread_places(fd, data, places)
    for at, length in zip(places.ats[done:], places.lengths[done:], strict=True):
        piece = disk.pread(fd, length, at)
        if len(piece) < length:
            raise TornRecord(path, at, "cut short while it was read")
        data[at : at + length] = piece
    sums = zip(columns.ats, columns.sizes, payload_sums(raw), strict=True)
    for at, size, expected in compress(sums, chosen):
        if crc32c(data[at : at + size]) != expected:
            raise CorruptRecord(path, at, "payload checksum mismatch")
    found = replace(seal, iocb_count=len(chosen_raw) // IOCB_BYTES, total_bytes=end_at)
    return replace(front, data=data, seal=found)


def _chosen_iocbs(raw: bytes, chosen: bytes) -> Iterator[bytes]:
    """Yield the IOCBs that were chosen, neighbours as one."""
    at, end = 0, len(chosen)
    while (at := chosen.find(1, at)) >= 0:
        stop = chosen.find(0, at)
        stop = end if stop < 0 else stop
        yield raw[at * IOCB_BYTES : stop * IOCB_BYTES]
        at = stop
