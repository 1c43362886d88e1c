"""Take a mirror back in place, the newest file first, and forward again to the exact record.

A step undoes some files and is then durable as the store's new position; a crash in it repeats
it, which gives the same bytes: the oldest undo file that touches a byte says what it was at the
end. Of the file behind the fork the records that count are written anew, as the first file of
the next epoch, so that the journal stays one chain of whole files.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import CorruptRecord
from aimfuse.journal.header import Identity, Parent
from aimfuse.journal.names import GoneName, JournalName
from aimfuse.journal.reader import AimFile, read_sealed
from aimfuse.journal.records import Iocb, RecordType, VolumeEntry, encode_table
from aimfuse.journal.writer import AimWriter
from aimfuse.replay.apply import execute, set_size
from aimfuse.replay.kept import KeptSet, list_kept
from aimfuse.replay.state import Head, Promoted
from aimfuse.replay.store import Store
from aimfuse.replay.undo import Undo, parts_of, read_undo
from aimfuse.units import MIB, FileNumber, Seq, VolumeId

STEP_BYTES = 256 * MIB
STEP_FILES = 4096
"""Undone in one step at most, give or take a file: what a crash repeats."""


def check_way(store: Store, fork: Head) -> int:
    """Read all that `step_back` will need from the mirror to *fork*; return its bytes.

    What is damaged is found while nothing has been changed yet.

    Raises:
        JournalError: a file of the history is damaged or gone.
        OSError: one could not be read.
    """
    held = 0
    expected: Head | None = store.state.head
    for undo, one in _undos(store, fork):
        _check_follows(undo, expected, store.state.head)
        for _part in parts_of(store.disk, store.history, undo):
            pass
        expected = undo.mark.head
        held += one.size_bytes
    if expected != fork:
        raise CorruptRecord(store.history, 0, f"undo files behind file {fork.number} are gone")
    return held


def step_back(store: Store, fork: Head) -> bool:
    """Undo some files; return whether the mirror is at *fork* now.

    Raises:
        JournalError: a file of the history is damaged. The position is that of the last step.
        OSError: as above; calling again repeats the step.
    """
    batch: list[Undo] = []
    held = 0
    for undo, one in _undos(store, fork):
        _check_follows(undo, batch[-1].mark.head if batch else store.state.head, store.state.head)
        batch.append(undo)
        held += one.size_bytes
        if held >= STEP_BYTES or len(batch) >= STEP_FILES:
            break
    if batch:
        _undo(store, batch)
    return store.state.head == fork


def _undos(store: Store, fork: Head) -> Iterator[tuple[Undo, KeptSet]]:
    """Yield what leads from the mirror back to *fork*, that of a half-applied file first."""
    state = store.state
    assert state.head is not None
    kept = list_kept(store.look, store.history)
    half = kept.get(state.head.number + 1)
    if half is not None and half.has_undo:
        undo = read_undo(store.disk, store.history, half.name)
        if undo.mark.head == state.head and undo.mark.sync_id == _sync_id(store):
            yield undo, half
    for number in range(state.head.number, fork.number, -1):
        one = kept.get(number)
        if one is None or not one.has_undo:
            path = store.history
            raise CorruptRecord(path, 0, f"the undo file of file {number} is gone")
        yield read_undo(store.disk, store.history, one.name), one


def _sync_id(store: Store) -> int:
    return store.state.sync.sync_id if store.state.sync else 0


def _check_follows(undo: Undo, behind: Head | None, newest: Head | None) -> None:
    """Make sure that *undo* takes back the file that *behind* is the end of, or a half one."""
    assert behind is not None
    if undo.mark.head == newest:
        return
    if undo.mark.of != behind.digest:
        raise CorruptRecord(undo.aim.path, 0, "it takes back another file than the one here")


def _undo(store: Store, batch: list[Undo]) -> None:
    state, disk = store.state, store.disk
    fds: dict[VolumeId, int] = {}
    links = False
    try:
        for undo in batch:
            for entry in undo.table:
                if entry.volume not in fds:
                    links = _bring_back(store, undo, entry.volume) or links
                    fds[entry.volume] = _open(store, entry.volume)
                if disk.size(fds[entry.volume]) != entry.size_bytes:
                    set_size(disk, "rewind:size", fds[entry.volume], entry.size_bytes)
            for part in parts_of(disk, store.history, undo):
                _execute(disk, part, fds)
        kept = {entry.volume for entry in batch[-1].table}
        for volume in kept & fds.keys():
            disk.fdatasync("rewind:sync", fds[volume])
    finally:
        for fd in fds.values():
            disk.close(fd)
    if links:
        disk.sync_dir("rewind:sync_dir", store.volumes)
    end = batch[-1]
    _move_to(store, end.mark.head, end.table, (end.mark.id_max, end.mark.ids_exact))
    store.remove_volumes({one.volume for one in state.volumes} - {v.volume for v in end.table})


def _move_to(
    store: Store, head: Head, table: tuple[VolumeEntry, ...], ids: tuple[int, bool]
) -> None:
    """Name the volumes as *table* does, then say that the mirror is at *head*."""
    store.derive_links(store.state.volumes, table)
    id_max, exact = ids
    store.save(
        replace(store.state, head=head, volumes=table, volume_id_max=id_max, volume_ids_exact=exact)
    )


def _bring_back(store: Store, undo: Undo, volume: VolumeId) -> bool:
    """Give the data of a volume that the undone file removed its place again."""
    path = store.volume_path(volume)
    if volume not in undo.mark.gone or store.disk.exists(path):
        return False
    gone = store.history / str(GoneName(undo.name, volume))
    if not store.disk.exists(gone):
        raise CorruptRecord(gone, 0, "the data of a removed volume is gone")
    store.disk.link("rewind:bring_back", gone, path)
    return True


def _open(store: Store, volume: VolumeId) -> int:
    return store.disk.open("rewind:open", store.volume_path(volume), os.O_RDWR | os.O_NOFOLLOW)


def _execute(disk: Disk, part: AimFile, fds: dict[VolumeId, int]) -> None:
    changes: dict[VolumeId, list[Iocb]] = {}
    for iocb in part.records():
        changes.setdefault(iocb.volume, []).append(iocb)
    for volume, found in changes.items():
        execute(disk, fds[volume], part, found)


def forget_brought_back(store: Store) -> None:
    """Strike what lives again off the history: from now on it changes.

    Raises:
        OSError: the disk failed; calling again goes on.
    """
    alive = {int(entry.volume) for entry in store.state.volumes}
    for one in list_kept(store.look, store.history).values():
        for volume, name in one.gone().items():
            if volume in alive:
                store.disk.unlink("rewind:unlink_gone", store.history / name)


def write_anew(store: Store, promoted: Promoted, spool: Path) -> AimFile:
    """Make the first file of the new epoch in *spool*, durably; return it, read back.

    It has the records that count of the file behind the fork. The same bytes at each call, so
    that a crash changes nothing.

    Raises:
        JournalError: that file is damaged.
        OSError: a disk failed.
    """
    disk, fork = store.disk, promoted.fork
    kept = list_kept(store.look, store.history)
    old = read_sealed(disk, store.history / kept[fork.number + 1].name.sealed)
    name = JournalName(promoted.epoch, FileNumber(fork.number + 1))
    identity = Identity(
        old.identity.group, name.epoch, name.number, promoted.at_ns,
        Parent(fork.epoch, fork.seq, fork.digest),
    )  # fmt: skip
    writer = AimWriter.create(disk, spool, identity)
    try:
        table = encode_table(old.table() or ())
        writer.mark(RecordType.TABLE, Seq(0), 0, old.iocbs[0].time_ns, table)
        for seq, one in enumerate(_counting(old, promoted.seq), start=1):
            payload = bytes(old.payload(one))
            writer.append(
                one.type, one.volume, Seq(seq), one.offset, one.length, one.time_ns, payload
            )
        writer.seal(fork.digest, name.epoch, FileNumber(name.number + 1))
    finally:
        writer.close()
    disk.rename("rewind:publish", writer.path, spool / name.sealed)
    disk.sync_dir("rewind:publish_sync_dir", spool)
    return read_sealed(disk, spool / name.sealed)


def _counting(aim: AimFile, seq: int) -> Iterator[Iocb]:
    return (one for one in aim.records() if one.seq <= seq)
