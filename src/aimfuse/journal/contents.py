"""What a sealed file changes, read without its data: header, IOCB portion, names.

Folding a spool must not cost reading it: of a file of 16 MiB this reads some kilobytes. What
it reads is checked by its own sums; the digest, which covers the data too, is not.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import compress
from operator import add
from pathlib import Path

from crc32c import crc32c

from aimfuse.disk import Disk
from aimfuse.errors import CorruptRecord, TornRecord
from aimfuse.journal.dirty import DirtyMap
from aimfuse.journal.header import (
    HEADER_BYTES,
    BadHeader,
    Identity,
    Seal,
    decode_identity,
    decode_seal,
    identity_seed,
)
from aimfuse.journal.journal import Head
from aimfuse.journal.portion import Columns, check_complete, checked_columns, spans_of
from aimfuse.journal.records import (
    IOCB_BYTES,
    IOCBS_MAX,
    BadIocb,
    Iocb,
    RecordType,
    VolumeEntry,
    check_name,
    decode_iocb,
    decode_table,
)
from aimfuse.units import Seq, VolumeId

_OTHERS = bytes(kind != RecordType.WRITE for kind in range(256))
_NAMED = frozenset({RecordType.CREATE, RecordType.RENAME})


@dataclass(frozen=True, slots=True)
class Contents:
    """A sealed file without its data.

    `others` are the records and marks that are no WRITE, by their index in `columns`; `names` are
    those that CREATE and RENAME give, by seq.
    """

    identity: Identity
    seal: Seal
    table: tuple[VolumeEntry, ...]
    columns: Columns
    others: dict[int, Iocb]
    names: dict[int, str]

    @property
    def is_broken(self) -> bool:
        """Tell whether it says that the image changed in a way that no record tells of."""
        return RecordType.GAP in self.columns.types

    def count(self, kinds: Iterable[RecordType]) -> int:
        """Return how many records of these kinds there are."""
        return sum(map(self.columns.types.count, map(int, kinds)))

    def head(self) -> Head:
        """Return the position behind the file; without records its time is that of the table."""
        identity, seal, first = self.identity, self.seal, self.others[0]
        seq = seal.last_seq if seal.record_count else first.seq
        time_ns = seal.last_time_ns or first.time_ns
        return Head(identity.epoch, identity.number, Seq(seq), seal.digest, time_ns)


def read_contents(disk: Disk, path: Path) -> Contents:
    """Return what the sealed journal file at *path* changes.

    Raises:
        TornRecord: it is not sealed.
        CorruptRecord: what was read of it is damaged.
        OSError: it could not be read.
    """
    fd = disk.open("contents:open", path, 0)
    try:
        header = disk.pread(fd, HEADER_BYTES, 0)
        identity, seal = _header(path, header)
        raw = disk.pread(fd, seal.iocb_count * IOCB_BYTES, seal.iocb_at)
        if len(raw) != seal.iocb_count * IOCB_BYTES:
            raise CorruptRecord(path, seal.iocb_at, "the IOCB portion is cut short")
        seed = identity_seed(memoryview(header))
        columns = checked_columns(path, seal.iocb_at, raw, seed)
        check_complete(path, seal.iocb_at, columns)
        others = {
            index: decode_iocb(seed, raw[index * IOCB_BYTES : (index + 1) * IOCB_BYTES])
            for index in compress(range(seal.iocb_count), columns.types.translate(_OTHERS))
        }
        if 0 not in others or others[0].type is not RecordType.TABLE:
            raise CorruptRecord(path, seal.iocb_at, "it does not begin with a table of volumes")
        names = {
            int(one.seq): check_name(_payload(disk, fd, path, one))
            for one in others.values()
            if one.type in _NAMED
        }
        table = decode_table(_payload(disk, fd, path, others[0]))
        return Contents(identity, seal, table, columns, others, names)
    except (BadIocb, ValueError) as exc:
        raise CorruptRecord(path, 0, str(exc)) from exc
    finally:
        disk.close(fd)


def fold_into(
    dirty: DirtyMap, contents: Iterable[Contents]
) -> tuple[Head, tuple[VolumeEntry, ...]] | None:
    """Add to *dirty* whatever the files change; return position and volumes behind the last.

    Growing is no change: whoever copies the map makes a volume as long as it is then, and what
    is new in it reads as zeros. What is cut off is one, for it may be grown over again.
    """
    end = None
    for file in contents:
        volumes = {one.volume: one for one in file.table}
        begin = 0
        for index, iocb in file.others.items():
            _fold_writes(dirty, volumes, file.columns, begin, index)
            _fold(dirty, volumes, iocb, file.names)
            begin = index + 1
        _fold_writes(dirty, volumes, file.columns, begin, len(file.columns.types))
        end = file.head(), tuple(volumes[one] for one in sorted(volumes))
    return end


def _fold(
    dirty: DirtyMap, volumes: dict[VolumeId, VolumeEntry], iocb: Iocb, names: dict[int, str]
) -> None:
    kind, volume = iocb.type, iocb.volume
    known = volumes.get(volume)
    if kind is RecordType.CREATE:
        volumes[volume] = VolumeEntry(volume, names[iocb.seq], 0)
    elif known is None:
        return  # A mark, or something after the volume's end.
    elif kind is RecordType.ZERO:
        dirty.add(volume, iocb.offset, iocb.length)
        _grow(volumes, known, iocb.offset + iocb.length)
    elif kind is RecordType.TRUNCATE:
        dirty.add(volume, iocb.length, known.size_bytes - iocb.length)
        volumes[volume] = VolumeEntry(volume, known.name, iocb.length)
    elif kind is RecordType.RENAME:
        _drop(dirty, volumes, VolumeId(iocb.offset))
        volumes[volume] = VolumeEntry(volume, names[iocb.seq], known.size_bytes)
    elif kind is RecordType.UNLINK:
        _drop(dirty, volumes, volume)


def _fold_writes(
    dirty: DirtyMap,
    volumes: dict[VolumeId, VolumeEntry],
    columns: Columns,
    begin: int,
    end: int,
) -> None:
    """Fold the records from *begin* up to *end*, all of which are WRITEs."""
    for volume, low, high in spans_of(columns.volumes[begin:end]):
        known = volumes.get(VolumeId(volume))
        if known is not None:
            here = slice(begin + low, begin + high)
            offsets, sizes = columns.offsets[here], columns.sizes[here]
            dirty.add_many(volume, offsets, sizes)
            if max(offsets) + max(sizes) > known.size_bytes:  # Mostly nothing grows.
                _grow(volumes, known, max(map(add, offsets, sizes)))


def _grow(volumes: dict[VolumeId, VolumeEntry], known: VolumeEntry, end: int) -> None:
    if end > known.size_bytes:
        volumes[known.volume] = VolumeEntry(known.volume, known.name, end)


def _drop(dirty: DirtyMap, volumes: dict[VolumeId, VolumeEntry], volume: VolumeId) -> None:
    if volumes.pop(volume, None) is not None:
        dirty.forget(volume)


def _header(path: Path, header: bytes) -> tuple[Identity, Seal]:
    try:
        identity, seal = decode_identity(header), decode_seal(header)
    except BadHeader as exc:
        raise CorruptRecord(path, 0, str(exc)) from exc
    if seal is None:
        raise TornRecord(path, 0, "never sealed")
    if seal.iocb_count > IOCBS_MAX:
        raise CorruptRecord(path, 0, "more IOCBs than any file has")
    return identity, seal


def _payload(disk: Disk, fd: int, path: Path, iocb: Iocb) -> bytes:
    payload = disk.pread(fd, iocb.payload_bytes, iocb.data_at)
    if len(payload) != iocb.payload_bytes or crc32c(payload) != iocb.payload_crc:
        raise CorruptRecord(path, iocb.data_at, "payload checksum mismatch")
    return payload
