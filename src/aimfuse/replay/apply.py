"""Execute a checked file on the mirror: data, durable; then names; then the position.

A crash anywhere leaves the position at the file before, and the private copy in place, so the
file is executed again from its beginning. That gives the same bytes: every record says what
is there afterwards, and bytes beyond the size that the table knows are cut off first.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace

from aimfuse.disk import Disk
from aimfuse.journal.reader import AimFile
from aimfuse.journal.records import Iocb, RecordType
from aimfuse.replay.chain import follow
from aimfuse.replay.compare import Comparison
from aimfuse.replay.forward import keep
from aimfuse.replay.history import History
from aimfuse.replay.marks import Marks
from aimfuse.replay.plan import plan_journal
from aimfuse.replay.state import Head, Phase, StoreState
from aimfuse.replay.store import Store
from aimfuse.units import BLOCK_BYTES, VolumeId, align_up

RUNS_MAX = 512
"""Writes that go out in one call: each may be large, so this bounds the copies in memory."""

_NAMED = frozenset({Phase.CONSISTENT, Phase.REWINDING})
"""In these phases ``mirror/`` has the volumes' names."""

_WRITE = RecordType.WRITE
_ZERO = RecordType.ZERO
_VERIFY = RecordType.VERIFY

Check = Callable[[int, Iocb], None]
"""Compares what a file holds with what a VERIFY record says it should."""


def apply_journal(store: Store, aim: AimFile, history: History, marks: Marks) -> None:
    """Bring the mirror from the position before *aim* to the one after it.

    What the file overwrites is in *history*, and its bookmarks are in *marks*, durably, before
    the first byte changes.

    Cost: one gathering write per run of adjacent records, one fdatasync per touched volume,
    one slot. Blocks.

    Raises:
        HistoryBroken: the file does not follow, or a record is impossible. Nothing changed.
        OSError: the disk failed. The position is the old one; the mirror may lie between the
            two until the file is applied again, from a copy that was read anew.
    """
    state = store.state
    assert state.head is not None
    head = follow(state.head, aim)
    plan = plan_journal(state, aim)
    marks.note(aim)
    history.save(aim, plan)
    keep(store, aim)
    is_begun = store.is_begun(head.number)
    comparison = Comparison(store.disk, aim, plan, state.verified, again=is_begun)
    is_compared = state.phase is Phase.CONSISTENT
    before = {entry.volume: entry.size_bytes for entry in state.volumes}
    touched = plan.changes | plan.checks if is_compared else plan.changes
    for volume in touched:
        sizes = (before.get(volume, 0), plan.sizes[volume])
        changes = comparison.merged(volume) if is_compared else plan.changes[volume]
        write_volume(store, aim, volume, changes, sizes, plan.created, comparison.check)
    for volume in plan.created - plan.changes.keys():
        write_volume(store, aim, volume, (), (0, 0), plan.created)
    if plan.created:
        store.disk.sync_dir("apply:sync_dir", store.volumes)
    phase = _phase_at(state, head)
    table = plan.table()
    if phase in _NAMED:
        known = state.volumes if state.phase in _NAMED else state.shown
        store.derive_links(known, table)
    store.save(
        replace(
            state,
            head=head,
            volumes=table,
            phase=phase,
            volume_id_max=plan.id_max,
            volume_ids_exact=plan.ids_exact,
            shown=() if phase in _NAMED else state.shown,
            verified=comparison.result(head.number)
            if is_compared
            else state.verified.interrupted(),
        )
    )
    store.remove_volumes(plan.gone)


def _phase_at(state: StoreState, head: Head) -> Phase:
    """Return the phase once *head* is applied: behind its journal a copy is a mirror."""
    if state.phase is Phase.CATCHING_UP and state.sync and head.number >= (state.sync.to or 0):
        return Phase.CONSISTENT
    return state.phase


def write_volume(
    store: Store,
    aim: AimFile,
    volume: VolumeId,
    changes: Iterable[Iocb],
    sizes: tuple[int, int],
    created: set[VolumeId],
    check: Check | None = None,
) -> None:
    """Execute *changes* on one volume and make them durable; VERIFY records go to *check*.

    *sizes* are the volume's bytes before and after. An earlier attempt may have left the
    file longer than before; what lies there would show through holes, so it is cut off.

    Raises:
        OSError: any part of it may have happened; nothing that was written is durable.
    """
    disk, (before, after) = store.disk, sizes
    flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if volume in created else 0)
    fd = disk.open("apply:open", store.volume_path(volume), flags)
    try:
        if disk.size(fd) > before:
            set_size(disk, "apply:cut", fd, before)
        execute(disk, fd, aim, changes, check)
        if disk.size(fd) != after:
            set_size(disk, "apply:size", fd, after)
        disk.fdatasync("apply:sync", fd)
    finally:
        disk.close(fd)


def execute(
    disk: Disk, fd: int, aim: AimFile, changes: Iterable[Iocb], check: Check | None = None
) -> None:
    """Carry *changes* of *aim* out on one file, in order; nothing is durable yet."""
    batch = _Batch(disk, fd)
    data, runs, add = aim.data, batch.runs, batch.begin
    for iocb in changes:
        if iocb.type is _WRITE:
            payload = data[iocb.data_at : iocb.data_at + iocb.payload_bytes]
            if iocb.offset == batch.end and runs:
                runs[-1].append(payload)
            else:
                add(iocb.offset, payload)
            batch.end = iocb.offset + iocb.payload_bytes
            continue
        batch.flush()
        if iocb.type is _VERIFY:
            if check is not None:
                check(fd, iocb)
        elif iocb.type is _ZERO:
            _zero(disk, fd, iocb.offset, iocb.length)
        else:
            set_size(disk, "apply:truncate", fd, iocb.length)
    batch.flush()


class _Batch:
    """Writes that wait to go out in one call, adjacent ones as one; `end` is the last's end."""

    def __init__(self, disk: Disk, fd: int) -> None:
        self.runs: list[list[memoryview]] = []
        self.end = 0
        self._offsets: list[int] = []
        self._disk = disk
        self._fd = fd

    def begin(self, offset: int, payload: memoryview) -> None:
        """Add a write that does not continue the last one."""
        if len(self.runs) == RUNS_MAX:
            self.flush()
        self._offsets.append(offset)
        self.runs.append([payload])

    def flush(self) -> None:
        """Let everything go out, in order."""
        if self.runs:
            buffers = [run[0] if len(run) == 1 else b"".join(run) for run in self.runs]
            self._disk.pwrite_many("apply:write", self._fd, self._offsets, buffers)
            self.runs.clear()
            self._offsets.clear()


def _zero(disk: Disk, fd: int, offset: int, length: int) -> None:
    size = disk.size(fd)
    inside = min(length, size - offset)
    if inside > 0:
        disk.punch("apply:punch", fd, offset, inside)
    if offset + length > size:
        disk.truncate("apply:extend", fd, offset + length)


def set_size(disk: Disk, label: str, fd: int, size: int) -> None:
    """Set the file's size; what lay beyond it reads as zeros from then on.

    The rest of the last block is zeroed by a call of its own: after a failed sync the cache
    may show zeros there that never reached the disk, and cutting alone need not write them.
    """
    rest = min(align_up(size, BLOCK_BYTES), disk.size(fd)) - size
    if rest > 0:
        disk.punch(label, fd, size, rest)
    disk.truncate(label, fd, size)
