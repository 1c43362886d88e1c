"""Undo files: what a journal file is about to overwrite, so that it can be taken back.

An undo file belongs to one journal file, and has its group, epoch and number. Executed on the
mirror behind that file, or in the middle of it, it gives the mirror in front of it: TABLE says
the volumes and sizes there, WRITE and ZERO what lay in every range that the file touches. Ranges
are disjoint, so order does not matter. Large ones come in parts; part 0 is written last, so
its name says that all of them are there. A volume that the file removes is kept whole, as
a further name of its data, for nothing writes to it any more.
"""

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from aimfuse.disk import Disk, Places, publish
from aimfuse.errors import CorruptRecord, explain
from aimfuse.journal.header import FileKind, Identity
from aimfuse.journal.names import PART, GoneName, JournalName, UndoName
from aimfuse.journal.portion import spans_of
from aimfuse.journal.reader import AimFile, read_sealed
from aimfuse.journal.records import Iocb, RecordType, Row, VolumeEntry, encode_table
from aimfuse.journal.whole import Frame, encode_rows
from aimfuse.replay.ahead import results_of
from aimfuse.replay.plan import Plan
from aimfuse.replay.state import Head, Json
from aimfuse.replay.store import Store
from aimfuse.units import MIB, ByteOffset, VolumeId, natural

PART_BYTES = 32 * MIB
"""Payload of one part: bounds what is held in memory."""

FRAMES_MAX = 1 << 17
"""Records of one part."""

RUN_BYTES = MIB
"""Bytes that one record holds, and one call reads."""

READ_ROWS = 1024
"""Records whose bytes are read while those before them are encoded."""

_WRITE = RecordType.WRITE
_FRAME_BYTES = 128
"""What a record costs beside its payload, twice an IOCB."""


class Unreadable(Exception):
    """A before-image cannot be read, while the journal could still be written over it."""


Stretch = tuple[int, int, bool]
"""Where bytes of a volume's file begin and end that are about to change; no hole, but data.

Plain, as `Row` is: one is made for each record.
"""

Survey = dict[VolumeId, list[Stretch]]
Read = Callable[[Disk, Path], AimFile]
"""Reads a sealed file and checks it."""


@dataclass(frozen=True, slots=True)
class UndoMark:
    """What part 0 says: which file it undoes, and the state that is there again afterwards.

    `of` is the digest of that file, `parts` are those of the further parts; `gone` are the
    volumes that it removed. `sync_id` tells from which copy on this history goes.
    """

    of: bytes
    head: Head
    sync_id: int
    parts: tuple[bytes, ...]
    gone: tuple[VolumeId, ...]
    id_max: int
    ids_exact: bool

    def to_json(self) -> Json:
        """Return the payload of the mark."""
        return {
            "of": self.of.hex(),
            "from": self.head.to_json(),
            "sync": f"{self.sync_id:016x}",
            "parts": [one.hex() for one in self.parts],
            "gone": list(self.gone),
            "id_max": self.id_max,
            "ids_exact": self.ids_exact,
        }

    @classmethod
    def from_json(cls, data: Json) -> "UndoMark":
        """Read what `to_json` wrote; errors as for `Head.from_json`."""
        return cls(
            bytes.fromhex(data["of"]),
            Head.from_json(data["from"]),
            natural(int(data["sync"], 16)),
            tuple(bytes.fromhex(one) for one in data["parts"]),
            tuple(VolumeId(natural(one)) for one in data["gone"]),
            natural(data["id_max"]),
            bool(data["ids_exact"]),
        )


@dataclass(frozen=True, slots=True)
class Undo:
    """Part 0 of what undoes a journal file, checked whole; `table` is that in front of it."""

    name: JournalName
    aim: AimFile
    mark: UndoMark
    table: tuple[VolumeEntry, ...]


# Making one.


def survey(store: Store, plan: Plan) -> Survey:
    """Return what of the mirror *plan* may change, by volume, holes told from data.

    Raises:
        OSError: the disk failed; nothing was changed.
    """
    found: Survey = {}
    for entry in store.state.volumes:
        changes = plan.changes.get(entry.volume)
        if not changes:
            continue
        ranges = overwritten(changes, entry.size_bytes)
        fd = _open_volume(store, entry.volume)
        try:
            found[entry.volume] = _told_apart(store.disk, fd, ranges, entry.size_bytes)
        finally:
            store.disk.close(fd)
    return found


def overwritten(changes: Iterable[Iocb], size: int) -> list[tuple[int, int]]:
    """Return the ranges of a volume of *size* bytes that *changes* touch, sorted, disjoint."""
    changes = list(changes)
    touched: list[tuple[int, int]] = [
        (one.offset, one.offset + one.payload_bytes) for one in changes if one.type is _WRITE
    ]
    for one in changes if len(touched) < len(changes) else ():
        start: int = one.offset
        if one.type is RecordType.ZERO:
            touched.append((start, start + one.length))
        elif one.type is not _WRITE:
            touched.append((one.length, size))
    touched.sort()
    ranges: list[tuple[int, int]] = []
    low = high = -1
    for start, end in touched:
        if start > high:
            ranges.append((low, high))
            low, high = start, end
        elif end > high:
            high = end
    ranges.append((low, high))
    return [  # What lies beyond the end was not there.
        (low, min(high, size)) for low, high in ranges if low < high and low < size
    ]


def needed_bytes(found: Survey) -> int:
    """Return about how large the undo file of a survey will be."""
    return sum(
        _FRAME_BYTES + (end - start if is_data else 0)
        for stretches in found.values()
        for start, end, is_data in stretches
    )


def write_undo(
    store: Store, aim: AimFile, plan: Plan, found: Survey, now_ns: int
) -> list[GoneName | UndoName]:
    """Make the undo file of *aim* durable; return the names of all that belongs to it.

    Raises:
        Unreadable: the mirror could not be read. There is no part 0.
        OSError: the disk failed. If part 0 is there, all of it is.
    """
    disk, state = store.disk, store.state
    assert state.head is not None
    name = JournalName(aim.identity.epoch, aim.identity.number)
    table = Frame(RecordType.TABLE, VolumeId(0), ByteOffset(0), 0, encode_table(state.volumes))
    mark = UndoMark(
        aim.seal.digest, state.head, state.sync.sync_id if state.sync else 0, (),
        tuple(sorted(plan.gone)), state.volume_id_max, state.volume_ids_exact,
    )  # fmt: skip
    digests: list[bytes] = []
    groups = _groups(found)
    last = next(groups, [])
    for group in groups:
        part = len(digests) + 1
        _publish(store, UndoName(name, part), aim, (table, mark), last, now_ns, digests)
        last = group
    for volume in mark.gone:
        link_gone(store, name, volume)
    if mark.gone:
        disk.sync_dir("undo:gone_sync_dir", store.history)
    mark = replace(mark, parts=tuple(digests))
    _publish(store, UndoName(name), aim, (table, mark), last, now_ns, digests)
    return names_of(name, mark)


def names_of(name: JournalName, mark: UndoMark) -> list[GoneName | UndoName]:
    """Return the names of everything that part 0 counts on, itself included."""
    parts = [UndoName(name, part) for part in range(len(mark.parts) + 1)]
    return [*parts, *(GoneName(name, volume) for volume in mark.gone)]


def link_gone(store: Store, name: JournalName, volume: VolumeId) -> None:
    """Give the data of a volume that file *name* removes a name in the history."""
    target = store.history / str(GoneName(name, volume))
    if not store.disk.exists(target):
        store.disk.link("undo:gone", store.volume_path(volume), target)


def _publish(
    store: Store, name: UndoName, aim: AimFile, marks: tuple[Frame, UndoMark], rows: list[Row],
    now_ns: int, digests: list[bytes],
) -> None:  # fmt: skip
    """Read what *rows* name, make a part of it durable, and add its digest to *digests*."""
    identity = _identity(aim, name.part, now_ns)
    table, mark = marks
    data, digest = encode_rows(identity, [table, _mark(mark)], rows, partial(_fill, store, rows))
    path = store.history / str(name)
    part = path.with_name(path.name + PART)
    if store.disk.exists(part):  # After a failed sync the old one is not to be trusted.
        store.disk.unlink("undo:unlink_part", part)
    publish(store.disk, "undo", path, data)
    digests.append(digest)


def _identity(aim: AimFile, part: int, now_ns: int) -> Identity:
    own = aim.identity
    return Identity(own.group, own.epoch, own.number, now_ns, kind=FileKind.UNDO, sync_id=part)


def _mark(mark: UndoMark) -> Frame:
    payload = json.dumps(mark.to_json(), separators=(",", ":")).encode()
    return Frame(RecordType.UNDO, VolumeId(0), ByteOffset(0), 0, payload)


def _groups(found: Survey) -> Iterator[list[Row]]:
    """Yield the records of *found* in the groups that go into one part each."""
    group: list[Row] = []
    held = 0
    for volume, stretches in found.items():
        for start, end, is_data in stretches:
            step = RUN_BYTES if is_data else end - start
            for at in range(start, end, step) if end - start > step else (start,):
                length = min(step, end - at)
                group.append((_WRITE if is_data else RecordType.ZERO, volume, at, length))
                held += length if is_data else 0
                if held >= PART_BYTES or len(group) >= FRAMES_MAX:
                    yield group
                    group, held = [], 0
    if group:
        yield group


def _fill(store: Store, rows: list[Row], memory: memoryview, ats: Sequence[int]) -> Iterator[int]:
    """Read what is to be kept of the mirror to where it belongs, the next stretch meanwhile."""
    ends = [*range(READ_ROWS, len(rows), READ_ROWS), len(rows)]
    begins = [0, *ends]
    calls = [
        partial(_fill_some, store, memory, rows[begin:end], ats[begin:end])
        for begin, end in zip(begins, ends, strict=False)
    ]
    with closing(results_of(calls, int(len(ends) > 1))) as done:
        for end, _none in zip(ends, done, strict=True):
            yield end


def _fill_some(store: Store, memory: memoryview, rows: list[Row], ats: Sequence[int]) -> None:
    for volume, begin, end in spans_of([row[1] for row in rows]):
        here = zip(rows[begin:end], ats[begin:end], strict=True)
        found = [(at, row[2], row[3]) for row, at in here if row[0] is _WRITE]
        if not found:
            continue
        places = Places(*(array("q", column) for column in zip(*found, strict=True)))
        fd = _open_volume(store, volume)
        try:
            _read(store.disk, fd, volume, memory, places)
        finally:
            store.disk.close(fd)


def _read(disk: Disk, fd: int, volume: VolumeId, memory: memoryview, places: Places) -> None:
    """Read *places*: all of them by one call, and one by one those where that ends."""
    done = disk.pread_places(fd, memory, places)
    for at, offset, length in islice(zip(*places, strict=True), done, None):
        try:
            got = disk.pread_into(fd, memory[at : at + length], offset)
        except OSError as exc:
            raise Unreadable(f"volume {volume} at byte {offset}: {explain(exc)}") from exc
        if got < length:
            raise Unreadable(f"volume {volume} ends at byte {offset + got}")


def _told_apart(disk: Disk, fd: int, ranges: list[tuple[int, int]], size: int) -> list[Stretch]:
    """Return *ranges*, holes told from data; looking for holes is slow, so only if there are."""
    if disk.allocated(fd) >= size:
        return [(start, end, True) for start, end in ranges]
    return list(_stretches(disk, fd, ranges, size))


def _stretches(
    disk: Disk, fd: int, ranges: Iterable[tuple[int, int]], size: int
) -> Iterator[Stretch]:
    low, high = 0, 0  # The last stretch of data that was found; in front of it lies a hole.
    for start, end in ranges:
        at = start
        while at < end:
            if at >= high:
                low, high = next(disk.data_ranges(fd, at, size), (size, size))
            if at < low:
                yield at, min(end, low), False
            if low < end:
                yield max(at, low), min(end, high), True
            at = high if low < end else end


def _open_volume(store: Store, volume: VolumeId) -> int:
    path = store.volume_path(volume)
    return store.disk.open("undo:read", path, os.O_RDONLY | os.O_NOFOLLOW)


# Reading one.


def read_undo(disk: Disk, history: Path, name: JournalName, read: Read = read_sealed) -> Undo:
    """Read and check part 0 of what undoes the journal file *name*, by *read*.

    Raises:
        JournalError: it is damaged, or another file's.
        OSError: it could not be read.
    """
    path = history / str(UndoName(name))
    aim = _read_part(read, disk, path, name, 0)
    try:
        mark = UndoMark.from_json(json.loads(bytes(aim.payload(aim.iocbs[1]))))
        table = aim.table()
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise CorruptRecord(path, 0, f"no usable UNDO mark: {exc!r}") from exc
    assert table is not None
    return Undo(name, aim, mark, table)


def parts_of(disk: Disk, history: Path, undo: Undo, read: Read = read_sealed) -> Iterator[AimFile]:
    """Yield every part of *undo*, each checked whole; errors as for `read_undo`."""
    yield undo.aim
    yield from further_parts(disk, history, undo, read)


def further_parts(
    disk: Disk, history: Path, undo: Undo, read: Read = read_sealed
) -> Iterator[AimFile]:
    """Yield what `parts_of` does behind part 0, which nearly all undo files have alone."""
    for part, digest in enumerate(undo.mark.parts, start=1):
        path = history / str(UndoName(undo.name, part))
        aim = _read_part(read, disk, path, undo.name, part)
        if aim.seal.digest != digest:
            raise CorruptRecord(path, 0, "it is not the part that belongs to part 0")
        yield aim


def _read_part(read: Read, disk: Disk, path: Path, name: JournalName, part: int) -> AimFile:
    try:
        aim = read(disk, path)
    except FileNotFoundError as exc:
        raise CorruptRecord(path, 0, "the file is gone") from exc
    own = aim.identity
    said = (own.kind, own.epoch, own.number, own.sync_id)
    if said != (FileKind.UNDO, name.epoch, name.number, part):
        raise CorruptRecord(path, 0, "its header names another file than its name does")
    kinds = [iocb.type for iocb in aim.iocbs[:2]]
    if kinds != [RecordType.TABLE, RecordType.UNDO]:
        raise CorruptRecord(path, 0, "it does not begin with TABLE and UNDO")
    return aim
