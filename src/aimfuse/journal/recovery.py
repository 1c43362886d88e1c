"""Find the journal's end after a crash, and close what the crash left open.

Sealed files behind the checkpoint must be sound and form a chain. Open files are read from
the disk itself, not from the page cache: after a failed fsync the cache shows data that never
got there. The journal ends at the first frame that does not check out. If a mark further on
says that what is missing had been durable, this is damage and recovery refuses; otherwise it is
a torn tail and is dropped: what is good gets sealed, and a new epoch begins behind it.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import CorruptRecord, ForeignFile
from aimfuse.journal.header import HEADER_BYTES
from aimfuse.journal.journal import Head
from aimfuse.journal.names import JournalName
from aimfuse.journal.reader import FILE_BYTES_MAX, AimFile, Scan, read_sealed, scan_open
from aimfuse.journal.spool import open_names, sealed_names
from aimfuse.journal.writer import AimWriter
from aimfuse.units import FileNumber, Seq

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What lies behind the checkpoint: sealed files in order, and the journal's end."""

    files: tuple[JournalName, ...]
    head: Head


def recover(disk: Disk, spool: Path, group: bytes, checkpoint: Head) -> Recovered:
    """Close the journal behind *checkpoint*: afterwards all of it is sealed and durable.

    Repeating it, also after a crash in the middle, gives the same journal.

    Raises:
        CorruptRecord: something that was durable is missing or damaged. Nothing was dropped.
        ForeignFile: a file of another group or lineage lies in the spool.
        OSError: the disk failed.
    """
    files: list[JournalName] = []
    head = checkpoint
    sealed = {name.number: name for name in _behind(sealed_names(disk, spool), checkpoint)}
    while name := sealed.pop(FileNumber(head.number + 1), None):
        head = follow(head, group, read_sealed(disk, spool / name.sealed))
        files.append(name)
    if sealed:
        missing = spool / JournalName(head.epoch, FileNumber(head.number + 1)).sealed
        raise CorruptRecord(missing, 0, "the file is missing, though later ones are sealed")
    tail = _read_tail(disk, spool, group, head)
    for scan in tail.good:
        head = _close(disk, spool, scan, head)
        files.append(JournalName(scan.identity.epoch, scan.identity.number))
    for path in tail.dropped:
        disk.unlink("recovery:drop", path)
    if tail.good or tail.torn:
        log.info(
            "the journal ends at record %d:%d in file %d; a new epoch begins behind it",
            head.epoch, head.seq, head.number,
        )  # fmt: skip
    # Always: an earlier recovery may have been killed between its renames and this.
    disk.sync_dir("recovery:sync_dir", spool)
    return Recovered(tuple(files), head)


def follow(head: Head, group: bytes, file: AimFile) -> Head:
    """Return the head once *file* is added to the lineage that ends at *head*.

    Raises:
        ForeignFile: it does not attach there.
    """
    identity, seal = file.identity, file.seal
    if identity.group != group:
        raise ForeignFile(file.path, 0, "belongs to another group")
    if identity.number != head.number + 1 or seal.prev_digest != head.digest:
        raise ForeignFile(file.path, 0, f"does not follow file {head.number}")
    if identity.epoch == head.epoch:
        first = head.seq + 1
    elif identity.epoch > head.epoch and identity.parent == head.as_parent():
        first = 1
    else:
        raise ForeignFile(file.path, 0, f"epoch {identity.epoch} does not attach to {head.epoch}")
    if seal.record_count and seal.first_seq != first:
        raise ForeignFile(file.path, 0, f"starts at record {seal.first_seq}, not at {first}")
    last = seal.last_seq if seal.record_count else head.seq
    time_ns = seal.last_time_ns or head.time_ns
    return Head(identity.epoch, identity.number, last, seal.digest, time_ns)


def read_files(disk: Disk, spool: Path, names: tuple[JournalName, ...]) -> Iterator[AimFile]:
    """Yield the sealed files one at a time, each checked anew."""
    return (read_sealed(disk, spool / name.sealed) for name in names)


@dataclass(frozen=True, slots=True)
class _Tail:
    good: tuple[Scan, ...]
    dropped: tuple[Path, ...]
    torn: bool


def _behind(names: list[JournalName], checkpoint: Head) -> list[JournalName]:
    return [name for name in names if name.number > checkpoint.number]


def _read_tail(disk: Disk, spool: Path, group: bytes, head: Head) -> _Tail:
    """Scan the open files in their order; each continues the record numbers or is dropped."""
    names = open_names(disk, spool)
    good: list[Scan] = []
    dropped: list[Path] = []
    committed, torn = 0, False
    last_seq = head.seq if names and names[0].epoch == head.epoch else Seq(0)
    for name in names:
        scan = _scan(disk, spool, group, head, name, last_seq)
        if scan is not None:
            committed = max(committed, scan.committed_seq)
            torn = _is_torn(scan) or torn
        if scan is None or not scan.has_records or name.number != head.number + len(good) + 1:
            dropped.append(spool / name.open)
            continue
        good.append(scan)
        last_seq = scan.last_seq
    if committed > last_seq:
        path = good[-1].path if good else spool / names[0].open
        at = good[-1].end_at if good else HEADER_BYTES
        reason = f"record {last_seq + 1} is damaged, though all to {committed} had been durable"
        raise CorruptRecord(path, at, reason)
    return _Tail(tuple(good), tuple(dropped), torn)


def _is_torn(scan: Scan) -> bool:
    """Tell, also to the log, whether something lies behind the last sound record.

    Zeros are room made in advance. What else lies there may also be left from a recycled file.
    """
    size = len(bytes(scan.data[scan.end_at :]).rstrip(b"\0"))
    if size:
        log.info(
            "%s: %d bytes behind record %d, from byte %d on, are no whole record: dropped",
            scan.path, size, scan.last_seq, scan.end_at,
        )  # fmt: skip
    return size > 0


def _scan(
    disk: Disk, spool: Path, group: bytes, head: Head, name: JournalName, last_seq: Seq
) -> Scan | None:
    """Return the sound part of one open file, or None when it never got its identity."""
    path = spool / name.open
    data = _read_from_disk(disk, path)
    try:
        scan = scan_open(path, data, last_seq)
    except CorruptRecord:
        if len(data) <= HEADER_BYTES:  # The crash came while the file was being made ready.
            return None
        raise
    identity = scan.identity
    if (identity.group, identity.epoch, identity.number) != (group, name.epoch, name.number):
        raise ForeignFile(path, 0, "is not the file that its name says")
    if identity.epoch != head.epoch and identity.parent != head.as_parent():
        raise ForeignFile(path, 0, f"does not attach to file {head.number}")
    return scan


def _read_from_disk(disk: Disk, path: Path) -> bytes:
    """Return what the disk holds: sync what is dirty, forget what is clean, then read."""
    fd = disk.open("recovery:open", path, os.O_RDWR)
    try:
        disk.fdatasync("recovery:sync", fd)
        disk.drop_cache(fd)
        return disk.pread(fd, FILE_BYTES_MAX, 0)
    finally:
        disk.close(fd)


def _close(disk: Disk, spool: Path, scan: Scan, head: Head) -> Head:
    """Seal the sound part of an open file; the bytes are those a sealed one had before."""
    writer = AimWriter.reopen(disk, scan)
    try:
        name = writer.name
        seal = writer.seal(head.digest, name.epoch, FileNumber(name.number + 1))
        disk.rename("recovery:publish", writer.path, spool / name.sealed)
        time_ns = seal.last_time_ns or head.time_ns
        return Head(name.epoch, name.number, writer.last_seq, seal.digest, time_ns)
    finally:
        writer.close()
