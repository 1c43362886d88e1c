"""Bring a staged copy into the mirror: check all of it, then one step that is always finished.

Until the state says SWITCHING nothing of the mirror has changed. From then on the mirror is a
mixture, and whatever happens the copy is executed again from its first file: a SYNC record says
what is there afterwards, and files get their old sizes first. Behind it the journal is
applied as ever, up to the file that makes the mixture consistent; it is here already.
"""

import errno
import os
from dataclasses import replace

from aimfuse.errors import JournalError, StoreError
from aimfuse.journal.reader import AimFile
from aimfuse.journal.records import Iocb, RecordType
from aimfuse.replay.apply import execute, set_size
from aimfuse.replay.chain import follow
from aimfuse.replay.plan import plan_journal
from aimfuse.replay.staging import StagedFiles
from aimfuse.replay.state import HistoryBroken, Json, Phase, Staging, StoreState
from aimfuse.replay.store import Store
from aimfuse.replay.sync import plan_sync, volume_ids
from aimfuse.replay.verified import Verified
from aimfuse.replay.work import Copy, Work
from aimfuse.units import MIB, FileNumber, VolumeId

ROOM_BYTES = 16 * MIB
"""What has to stay free beside what the copy may newly allocate."""


class DamagedCopy(Exception):
    """A journal file that the switch needs was damaged since it came: get it again."""

    def __init__(self, copy: Copy, reason: str) -> None:
        super().__init__(reason)
        self.copy = copy


class Switch:
    """The switch of one store. Each `step` is one file's work."""

    def __init__(self, store: Store, work: Work, staged: StagedFiles) -> None:
        """Begin over: what was checked before a restart is checked again."""
        self._store = store
        self._work = work
        self._staged = staged
        self._checked = 0
        self._trial: StoreState | None = None
        self._payload_bytes: dict[VolumeId, int] = {}
        self._applied = 0
        self._checking = 0
        self._verified = Verified()

    def is_due(self) -> bool:
        """Tell whether everything is here that the switch needs."""
        state = self._store.state
        if state.phase is Phase.SWITCHING:
            return True
        staging = state.staging
        if staging is None or state.phase not in {Phase.CATCHING_UP, Phase.CONSISTENT}:
            return False
        progress = staging.progress
        if not progress.done:
            return False
        if self._trial is not None and self._checking == progress.sync_id:
            return True
        return self._work.received(progress.origin.number) >= (progress.to or 0)

    def progress(self) -> Json | None:
        """Return how far the switch is, for reports."""
        staging = self._store.state.staging
        if staging is None or not staging.progress.done:
            return None
        files = staging.progress.next_index
        return {"files": files, "checked": self._checked, "applied": self._applied}

    def step(self) -> None:
        """Check or execute one more file.

        Raises:
            DamagedCopy: a journal file has to come again. Nothing was changed.
            HistoryBroken: the journal behind the copy does not fit. Nothing was changed.
            StoreError: a staged file was damaged in the middle of the switch.
            OSError: the disk failed; calling again goes on.
        """
        staging = self._store.state.staging
        assert staging is not None
        if self._store.state.phase is Phase.SWITCHING:
            self._execute_next(staging)
        elif not self._check_next(staging):
            self._check_room(staging)
            state = self._store.state
            # A first copy that never became consistent has no names to be taken away again.
            shown = state.volumes if state.phase is Phase.CONSISTENT else state.shown
            self._store.save(replace(state, phase=Phase.SWITCHING, shown=shown))
            self._applied = 0

    def start_over(self) -> None:
        """Forget what was checked: something about the copy has changed."""
        self._trial = None
        self._checked = 0

    # Checking.

    def _check_next(self, staging: Staging) -> bool:
        """Check the next file; return False when all have been."""
        if self._trial is None or self._checking != staging.progress.sync_id:
            self._begin_checking(staging)
        trial = self._trial
        assert trial is not None
        assert trial.head is not None
        if self._checked < staging.progress.next_index:
            self._check_staged(staging)
            return True
        number = FileNumber(trial.head.number + 1)
        if number > (staging.progress.to or 0):
            return False
        copy = self._work.journal.get(number)
        if copy is None:  # Set aside meanwhile; it comes again.
            self.start_over()
            return True
        self._trial = self._try(trial, copy)
        return True

    def _begin_checking(self, staging: Staging) -> None:
        id_max, exact = volume_ids(staging.volumes, staging.next_volume)
        self._checking, self._checked = staging.progress.sync_id, 0
        self._payload_bytes = {}
        self._trial = replace(
            self._store.state,
            head=staging.progress.origin,
            volumes=staging.volumes,
            volume_id_max=id_max,
            volume_ids_exact=exact,
        )

    def _check_staged(self, staging: Staging) -> None:
        try:
            aim = self._staged.read(self._checked)
        except (JournalError, FileNotFoundError):
            self.start_over()
            self._staged.drop()
            return
        self._count(_of_known(aim, staging))
        self._checked += 1

    def _count(self, found: dict[VolumeId, list[Iocb]]) -> None:
        for volume, changes in found.items():
            held = self._payload_bytes.get(volume, 0)
            self._payload_bytes[volume] = held + sum(one.payload_bytes for one in changes)

    def _try(self, trial: StoreState, copy: Copy) -> StoreState:
        """Return the state that one more journal file would lead to."""
        assert trial.head is not None
        try:
            aim = self._work.read(copy)
        except JournalError as exc:
            raise DamagedCopy(copy, str(exc)) from exc
        try:
            head = follow(trial.head, aim)
            plan = plan_journal(trial, aim)
        except HistoryBroken:
            self.start_over()
            raise
        self._count(plan.changes)
        return replace(
            trial,
            head=head,
            volumes=plan.table(),
            volume_id_max=plan.id_max,
            volume_ids_exact=plan.ids_exact,
        )

    def _check_room(self, staging: Staging) -> None:
        """Refuse to begin what the disk may have no room for: the mirror stays readable.

        Raises:
            OSError: ENOSPC. Nothing was changed.
        """
        disk, need = self._store.disk, ROOM_BYTES
        sizes: dict[VolumeId, int] = {}
        for entry in (*staging.volumes, *(self._trial.volumes if self._trial else ())):
            sizes[entry.volume] = max(sizes.get(entry.volume, 0), entry.size_bytes)
        for volume, size in sizes.items():
            held = 0
            path = self._store.volume_path(volume)
            if disk.exists(path):
                fd = disk.open("switch:look", path, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    held = disk.allocated(fd)
                finally:
                    disk.close(fd)
            need += min(max(0, size - held), self._payload_bytes.get(volume, 0))
        if disk.free_bytes(self._store.home) < need:
            raise OSError(errno.ENOSPC, f"the switch may need {need} bytes", str(self._store.path))

    # Executing.

    def _execute_next(self, staging: Staging) -> None:
        if self._applied == 0:
            self._verified = self._store.state.verified.interrupted()
            self._return_to_old_sizes(staging)
        if self._applied < staging.progress.next_index:
            self._execute(staging)
            self._applied += 1
        else:
            self._finish(staging)

    def _return_to_old_sizes(self, staging: Staging) -> None:
        """Take back sizes that an earlier attempt set, and make the files of new volumes.

        Also what it cut off, zeros by now: a size that is not set again may not be synced again.
        """
        before = {entry.volume: entry.size_bytes for entry in self._store.state.volumes}
        for entry in staging.volumes:
            size = before.get(entry.volume, 0)
            fd = self._open(entry.volume, os.O_CREAT if entry.volume not in before else 0)
            try:
                if self._store.disk.size(fd) != size:
                    set_size(self._store.disk, "switch:cut", fd, size)
            finally:
                self._store.disk.close(fd)

    def _execute(self, staging: Staging) -> None:
        try:
            aim = self._staged.read(self._applied)
        except (JournalError, FileNotFoundError) as exc:
            raise StoreError(
                f"a staged file was damaged in the middle of the switch: {exc}",
                hint="The mirror is a mixture of times. Look at the disk; move the store away "
                "for a new first copy.",
            ) from exc
        for volume, changes in _of_known(aim, staging).items():
            fd = self._open(volume)
            try:
                execute(self._store.disk, fd, aim, changes)
                self._store.disk.fdatasync("switch:sync", fd)
            finally:
                self._store.disk.close(fd)
            for one in changes if self._verified.mismatches else ():
                self._verified = self._verified.without(volume, one.offset, _length(one))

    def _finish(self, staging: Staging) -> None:
        """Give the volumes their sizes, then let the state say that the copy is in."""
        store, progress = self._store, staging.progress
        try:
            self._set_sizes(staging)
        except OSError:
            self._applied = 0  # A size that was not synced looks set: all is done again.
            raise
        state = store.state
        doubt = "" if staging.reason == state.doubt else state.doubt
        done = progress.origin.number >= (progress.to or 0) and not doubt
        head = progress.origin
        if state.head is not None and state.head.number == head.number:  # Of the same time, then.
            head = replace(head, time_ns=head.time_ns or state.head.time_ns)
        if done:
            store.derive_links(state.shown, staging.volumes)
        id_max, exact = volume_ids(staging.volumes, staging.next_volume)
        store.save(
            replace(
                state,
                head=head,
                volumes=staging.volumes,
                phase=Phase.CONSISTENT if done else Phase.CATCHING_UP,
                sync=progress,
                volume_id_max=id_max,
                volume_ids_exact=exact,
                staging=None,
                shown=() if done else state.shown,
                doubt=doubt,
                verified=self._verified.within(staging.volumes),
            )
        )
        self.start_over()
        self._applied = 0
        self._staged.forget(staging)
        gone = {one.volume for one in state.volumes} - {one.volume for one in staging.volumes}
        store.remove_volumes(gone)

    def _set_sizes(self, staging: Staging) -> None:
        """Make the volumes' sizes, and the names of their files, durable."""
        disk = self._store.disk
        for entry in staging.volumes:
            fd = self._open(entry.volume)
            try:
                if disk.size(fd) != entry.size_bytes:
                    set_size(disk, "switch:size", fd, entry.size_bytes)
                disk.fdatasync("switch:size_sync", fd)
            finally:
                disk.close(fd)
        disk.sync_dir("switch:sync_dir", self._store.volumes)

    def _open(self, volume: VolumeId, flags: int = 0) -> int:
        path = self._store.volume_path(volume)
        return self._store.disk.open("switch:open", path, os.O_RDWR | os.O_NOFOLLOW | flags)


def _length(iocb: Iocb) -> int:
    return iocb.payload_bytes if iocb.type is RecordType.WRITE else iocb.length


def _of_known(aim: AimFile, staging: Staging) -> dict[VolumeId, list[Iocb]]:
    """Return what a staged file writes to volumes that still exist at the copy's origin.

    An earlier round may have written to volumes that are gone by now.
    """
    kinds = {RecordType.WRITE, RecordType.ZERO}
    written = {one.volume for one in aim.records() if one.type in kinds}
    kept = {entry.volume for entry in staging.volumes}
    changes = plan_sync(aim, written)
    return {volume: found for volume, found in changes.items() if volume in kept}
