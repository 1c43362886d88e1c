"""Take a mirror back in place, the newest file first, and forward again to the exact record.

A step undoes some files and is then durable as the store's new position; a crash in it repeats
it, which gives the same bytes: the oldest undo file that touches a byte says what it was at the
end. Of the file behind the fork the records that count are written anew, as the first file of
the next epoch, so that the journal stays one chain of whole files.
"""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from aimfuse.errors import CorruptRecord
from aimfuse.journal.header import Identity, Parent
from aimfuse.journal.names import GoneName, JournalName
from aimfuse.journal.reader import AimFile, OwnReader, check_own, read_own, read_sealed
from aimfuse.journal.records import Iocb, RecordType, VolumeEntry, encode_table
from aimfuse.journal.writer import AimWriter
from aimfuse.replay.ahead import results_of
from aimfuse.replay.apply import set_size
from aimfuse.replay.kept import KeptSet, list_kept
from aimfuse.replay.rebuild import HELD_MAX
from aimfuse.replay.state import Head, Promoted
from aimfuse.replay.store import Store
from aimfuse.replay.taken_back import Ranges, ranges_of, take_back
from aimfuse.replay.undo import Read, Undo, UndoMark, further_parts, read_undo
from aimfuse.units import MIB, FileNumber, Seq, VolumeId

STEP_BYTES = 512 * MIB
STEP_FILES = 4096
"""Undone in one step at most, give or take a file: what a crash repeats."""

CHECKERS = 2
"""Threads that check undo files: one hashes while the other waits for the disk, or hashes too."""

_read = partial(read_own, iocbs_max=2)
"""Reads and checks a file as a whole, and decodes its first marks only."""


class _Looked(NamedTuple):
    """An undo file that was checked; `ranges` are those of its part 0, if it is to be executed."""

    undo: Undo
    ranges: list[Ranges]
    size_bytes: int


def check_way(store: Store, fork: Head) -> int:
    """Read all that `WayBack` will need from the mirror to *fork*; return its bytes.

    What is damaged is found while nothing has been changed yet.

    Raises:
        JournalError: a file of the history is damaged or gone.
        OSError: one could not be read.
    """
    held = 0
    expected: Head | None = store.state.head
    with closing(_undos(store, fork, _check, CHECKERS)) as undos:
        for undo, _ranges, size_bytes in undos:
            _check_follows(undo, expected, store.state.head)
            expected = undo.mark.head
            held += size_bytes
    if expected != fork:
        raise CorruptRecord(store.history, 0, f"undo files behind file {fork.number} are gone")
    return held


class WayBack:
    """The way from the mirror back to a fork, a step at a time.

    With *read_ahead* the next undo files are read, checked and looked at on a second thread,
    also while a step is made durable: what is read ahead in one serves the next.
    """

    def __init__(self, store: Store, fork: Head, *, read_ahead: bool = False) -> None:
        """Read nothing yet."""
        self._store = store
        self._fork = fork
        self._threads = int(read_ahead)
        self._reader = OwnReader(HELD_MAX)
        self._undos: Generator[_Looked, None, None] | None = None

    def step(self) -> bool:
        """Undo some files; return whether the mirror is at the fork now.

        Raises:
            JournalError: a file of the history is damaged. The position is that of the last step.
            OSError: as above; calling again repeats the step.
        """
        if self._undos is None:
            look = partial(_look, read=self._reader.read)
            self._undos = _undos(self._store, self._fork, look, self._threads)
        try:
            _step_back(self._store, self._undos)
        except BaseException:
            self.close()
            raise
        return self._store.state.head == self._fork

    def close(self) -> None:
        """Wait for what is being read, and forget it; a further step begins from the position."""
        if self._undos is not None:
            self._undos.close()
            self._undos = None


def _step_back(store: Store, undos: Iterator[_Looked]) -> None:
    undone = _Undone(store)
    try:
        for one in undos:
            _check_follows(one.undo, undone.head, store.state.head)
            undone.add(one)
            if undone.is_enough:
                break
        undone.sync()
    finally:
        undone.close()
    if undone.end is not None:
        _move_to(store, *undone.end)


class _Undone:
    """The files that one step undoes: what they overwrote is written, and then made durable."""

    def __init__(self, store: Store) -> None:
        self.head = store.state.head
        self.end: tuple[UndoMark, tuple[VolumeEntry, ...]] | None = None
        self._store = store
        self._fds: dict[VolumeId, int] = {}
        self._bytes = 0
        self._files = 0

    @property
    def is_enough(self) -> bool:
        return self._bytes >= STEP_BYTES or self._files >= STEP_FILES

    def add(self, looked: _Looked) -> None:
        disk, fds = self._store.disk, self._fds
        undo, ranges, size_bytes = looked
        for entry in undo.table:
            if entry.volume not in fds:
                _bring_back(self._store, undo, entry.volume)
                fds[entry.volume] = _open(self._store, entry.volume)
            if disk.size(fds[entry.volume]) != entry.size_bytes:
                set_size(disk, "rewind:size", fds[entry.volume], entry.size_bytes)
        take_back(disk, undo.aim, ranges, fds, "rewind")
        for part in further_parts(disk, self._store.history, undo, _read):
            take_back(disk, part, ranges_of(part), fds, "rewind")
        self.head, self.end = undo.mark.head, (undo.mark, undo.table)
        self._bytes += size_bytes
        self._files += 1

    def sync(self) -> None:
        if self.end is None:
            return
        for entry in self.end[1]:
            self._store.disk.fdatasync("rewind:sync", self._fds[entry.volume])
        self._store.disk.sync_dir("rewind:sync_dir", self._store.volumes)

    def close(self) -> None:
        for fd in self._fds.values():
            self._store.disk.close(fd)


def _undos(
    store: Store, fork: Head, look: Callable[[Store, KeptSet], _Looked], threads: int
) -> Generator[_Looked, None, None]:
    """Yield what leads from the mirror back to *fork*, that of a half-applied file first.

    So many *threads* look at the next ones meanwhile.
    """
    head = store.state.head
    assert head is not None
    sets = _sets(store, head, fork)
    calls = (partial(look, store, one) for one in sets)
    with closing(results_of(calls, threads)) as found:
        for one, looked in zip(sets, found, strict=True):
            mark = looked.undo.mark
            if one.name.number > head.number and (
                mark.head != head or mark.sync_id != _sync_id(store)
            ):
                continue  # Of another attempt, in front of a copy.
            yield looked


def _check(store: Store, one: KeptSet) -> _Looked:
    """Check all parts of an undo file."""
    undo = read_undo(store.disk, store.history, one.name, check_own)
    for _part in further_parts(store.disk, store.history, undo, check_own):
        pass
    return _Looked(undo, [], one.size_bytes)


def _look(store: Store, one: KeptSet, read: Read) -> _Looked:
    """Check part 0 of an undo file, and find out what it has of which volume."""
    undo = read_undo(store.disk, store.history, one.name, read)
    return _Looked(undo, ranges_of(undo.aim), one.size_bytes)


def _sets(store: Store, head: Head, fork: Head) -> list[KeptSet]:
    kept = list_kept(store.look, store.history)
    half = kept.get(head.number + 1)
    sets = [half] if half is not None and half.has_undo else []
    for number in range(head.number, fork.number, -1):
        one = kept.get(number)
        if one is None or not one.has_undo:
            raise CorruptRecord(store.history, 0, f"the undo file of file {number} is gone")
        sets.append(one)
    return sets


def _sync_id(store: Store) -> int:
    return store.state.sync.sync_id if store.state.sync else 0


def _check_follows(undo: Undo, behind: Head | None, newest: Head | None) -> None:
    """Make sure that *undo* takes back the file that *behind* is the end of, or a half one."""
    assert behind is not None
    if undo.mark.head == newest:
        return
    if undo.mark.of != behind.digest:
        raise CorruptRecord(undo.aim.path, 0, "it takes back another file than the one here")


def _move_to(store: Store, mark: UndoMark, table: tuple[VolumeEntry, ...]) -> None:
    """Name the volumes as *table* does, say that the mirror is there, and drop what is not."""
    before = store.state.volumes
    store.derive_links(before, table)
    store.save(
        replace(
            store.state,
            head=mark.head,
            volumes=table,
            volume_id_max=mark.id_max,
            volume_ids_exact=mark.ids_exact,
        )
    )
    store.remove_volumes({one.volume for one in before} - {one.volume for one in table})


def _bring_back(store: Store, undo: Undo, volume: VolumeId) -> None:
    """Give the data of a volume that the undone file removed its place again."""
    path = store.volume_path(volume)
    if volume not in undo.mark.gone or store.disk.exists(path):
        return
    gone = store.history / str(GoneName(undo.name, volume))
    if not store.disk.exists(gone):
        raise CorruptRecord(gone, 0, "the data of a removed volume is gone")
    store.disk.link("rewind:bring_back", gone, path)


def _open(store: Store, volume: VolumeId) -> int:
    return store.disk.open("rewind:open", store.volume_path(volume), os.O_RDWR | os.O_NOFOLLOW)


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
