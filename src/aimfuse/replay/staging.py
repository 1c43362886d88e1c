"""Keep the files of a copy for a mirror that exists, until it can be switched in whole.

The mirror stays readable at its old point and is not touched. A file is checked when it comes
and linked from ``work/``; the state then says up to which one they are here.
"""

import json
import logging
from dataclasses import replace

from aimfuse.journal.names import SyncName
from aimfuse.journal.reader import AimFile, read_sealed
from aimfuse.journal.records import RecordType
from aimfuse.replay.state import Phase, Staging, SyncProgress
from aimfuse.replay.store import Store
from aimfuse.replay.sync import SyncMark, check_table, plan_sync

log = logging.getLogger(__name__)

_REASON_CHARACTERS_MAX = 200


class StagedFiles:
    """The directory ``staging/``; what of it counts is in the store's state."""

    def __init__(self, store: Store) -> None:
        """Take up what the last run left: nothing that the state does not know stays here.

        Raises:
            OSError: the disk failed; try again with a new object.
        """
        self._store = store
        if self.tidy() and store.state.phase is not Phase.SWITCHING:
            log.warning("%s: files of a staged copy are gone; it begins anew", store.path)
            self.drop()

    def tidy(self) -> bool:
        """Remove what the state does not know; return whether something is missing that it does.

        Raises:
            OSError: the disk failed; calling again goes on.
        """
        store, staging = self._store, self._store.state.staging
        wanted = set(_names(staging)) if staging else set[str]()
        found = set(store.disk.listdir(store.staging))
        for name in sorted(found - wanted):
            store.disk.unlink("staging:tidy", store.staging / name)
        return bool(wanted - found)

    def take(self, name: SyncName, aim: AimFile, mark: SyncMark) -> None:
        """Keep a file whose turn it is, durably; the copy in ``work/`` is of no use then.

        Raises:
            UnfitFile: its table or its records are not those of a sync. Nothing changed.
            OSError: the disk failed; calling again goes on.
        """
        store, before = self._store, self._store.state.staging
        same = before if before and before.progress.sync_id == mark.sync_id else None
        known, progress = (same.volumes, same.progress) if same else ((), None)
        table = check_table(aim, mark, known, progress)
        plan_sync(aim, {entry.volume for entry in table})
        target = store.staging / name.sealed
        if store.disk.exists(target):  # From an attempt that failed; it may be another one.
            store.disk.unlink("staging:unlink_left", target)
        store.disk.link("staging:link", store.work / name.sealed, target)
        store.disk.sync_dir("staging:sync_dir", store.staging)
        advanced = SyncProgress(
            mark.sync_id, mark.origin, mark.index + 1, mark.end,
            mark.to if mark.last else None, mark.round,
        )  # fmt: skip
        size_bytes = (same.size_bytes if same else 0) + aim.seal.total_bytes
        reason = same.reason if same else _reason(aim)
        staging = Staging(advanced, table, mark.next_volume, size_bytes, reason)
        store.save(replace(store.state, staging=staging))
        if before and not same:
            self._remove(before)

    def read(self, index: int) -> AimFile:
        """Read file *index* and check it again.

        Raises:
            JournalError: it was damaged since.
            OSError: it could not be read.
        """
        staging = self._store.state.staging
        assert staging is not None
        return read_sealed(self._store.disk, self._store.staging / _name(staging, index))

    def drop(self) -> None:
        """Give the staged copy up; the source begins anew if the mirror still needs one."""
        staging = self._store.state.staging
        if staging is not None:
            self._store.save(replace(self._store.state, staging=None))
            self._remove(staging)

    def forget(self, staging: Staging) -> None:
        """Remove the files of a copy that was switched in; a crash leaves the rest to `open`."""
        self._remove(staging)

    def _remove(self, staging: Staging) -> None:
        for name in _names(staging):
            path = self._store.staging / name
            if self._store.disk.exists(path):
                self._store.disk.unlink("staging:unlink", path)


def _name(staging: Staging, index: int) -> str:
    return SyncName(staging.progress.sync_id, index).sealed


def _names(staging: Staging) -> list[str]:
    return [_name(staging, index) for index in range(staging.progress.next_index)]


def _reason(aim: AimFile) -> str:
    """Return why the copy is needed, as the GAP record at its begin says."""
    for iocb in aim.records():
        if iocb.type is RecordType.GAP:
            try:
                said = json.loads(bytes(aim.payload(iocb)))["reason"]
            except (ValueError, KeyError, TypeError, RecursionError):
                return ""
            return str(said)[:_REASON_CHARACTERS_MAX]
    return ""
