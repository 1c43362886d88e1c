"""Apply what a store has received, in order: private copies, SYNC files, the switch of a copy.

Private copies come before anything new: what a crash or a failed disk interrupted is redone
from them first. A disk error changes no position; the round fails and is repeated later.
"""

import logging
import time
from collections.abc import Callable

from aimfuse.errors import JournalError
from aimfuse.journal.names import JournalName, SyncName
from aimfuse.journal.reader import AimFile
from aimfuse.replay.apply import apply_journal
from aimfuse.replay.brake import Brake
from aimfuse.replay.doubt import held_back
from aimfuse.replay.findings import Findings
from aimfuse.replay.forward import Forward
from aimfuse.replay.history import History
from aimfuse.replay.marks import Marks
from aimfuse.replay.order import is_needless, next_copy
from aimfuse.replay.staging import StagedFiles
from aimfuse.replay.state import HistoryBroken, HistoryGap, Phase, UnfitFile
from aimfuse.replay.store import Store
from aimfuse.replay.switch import DamagedCopy, Switch
from aimfuse.replay.sync import SyncMark, Turn, apply_sync, read_mark, turn
from aimfuse.replay.work import Copy, Work

log = logging.getLogger(__name__)

ROUND_S = 0.1
"""A round ends after the file during which this much time has passed."""


class RoundTime:
    """How long a round goes on."""

    def __init__(self) -> None:
        self._ends_s = 0.0

    def begin(self) -> None:
        """Let the round have its whole time from here on."""
        self._ends_s = time.monotonic() + ROUND_S

    def is_over(self) -> bool:
        """Tell whether the round is to end after the file that it is at."""
        return time.monotonic() >= self._ends_s


class Applier:
    """Brings an open store's mirror forward. `progress_ns`: when it last did, in Unix ns."""

    def __init__(
        self,
        store: Store,
        findings: Findings,
        time_left: RoundTime,
        clock: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        """Take up what the last run left. *clock* gives Unix ns.

        Raises:
            OSError: the disk failed; try again with a new object.
        """
        self.staged = StagedFiles(store)
        self.work = Work(store)
        self.switch = Switch(store, self.work, self.staged)
        self.forward = Forward(store)
        self.history = History(store, clock)
        self.marks = Marks(store, self.history.kept())
        self.brake = Brake(store, self.work, lambda: self.history.settings, clock, monotonic)
        self.is_cut_short = False
        self.applied_files = 0
        self.progress_ns = clock()
        self._store = store
        self._findings = findings
        self._time = time_left
        self._clock = clock
        self._gap: tuple[int, str] | None = held_back(store.state)
        self._drop_applied()

    def drain(self) -> bool:
        """Apply private copies while the next one is there and the round lasts."""
        progress = self.is_cut_short = False
        while not self._findings.halted:
            if self.switch.is_due() and self.brake.lets_switch():
                self._do_switch()
            elif (copy := self._next_copy()) is not None:
                self._redo(copy)
            else:
                break
            progress = True
            if self._time.is_over():
                self.is_cut_short = True
                break
        return progress

    def apply_new(self, copy: Copy, aim: AimFile) -> None:
        """Apply a file that has just been received, if it is its turn, and what follows."""
        if self._next_copy() is copy:
            self._apply(copy, aim)
        self.drain()

    def apply_first_copy(self, aim: AimFile, mark: SyncMark) -> None:
        """Apply the file of a first copy whose turn it is.

        Raises:
            UnfitFile: its records or its table are not those of a sync. Nothing changed.
            OSError: the disk failed. The file is to be applied again.
        """
        apply_sync(self._store, aim, mark)
        self._drop_other_copies(mark.sync_id, done=self._store.state.phase is not Phase.SYNCING)
        self.progress_ns = self._clock()

    def needs_sync(self) -> str | None:
        """Return why the mirror cannot go on without a new copy, if that is so."""
        head = self._store.state.head
        behind = self._gap and head is not None and self._gap[0] == head.number + 1
        return self._gap[1] if self._gap and behind else None

    def _do_switch(self) -> None:
        """Take one step of the switch, and deal with what it finds."""
        self.forward.note()  # The next hop hears of a mixture before there is one.
        try:
            self.switch.step()
        except DamagedCopy as exc:
            self._findings.note_damaged(exc.copy.name)
            reason = f"the private copy was damaged: {exc}"
            self._put_off(exc.copy, reason, expendable=True)
            self.switch.start_over()
        except HistoryGap:  # The image was taken as it is meanwhile: the copy is of no use.
            self.staged.drop()
        except HistoryBroken as exc:
            self._findings.halt(exc, None)
        else:
            self.progress_ns = self._clock()
            if self._store.state.staging is None:  # It is in: what held the journal back is over.
                self._gap = held_back(self._store.state)
            self._drop_applied()

    def _next_copy(self) -> Copy | None:
        held = self._gap[0] if self._gap else None
        if is_needless(self._store.state, self.work, held):
            self.staged.drop()
        copy = next_copy(self._store.state, self.work, held)
        return copy if copy is None or self.brake.lets(copy) else None

    def _redo(self, copy: Copy) -> None:
        try:
            aim = self.work.read(copy)
        except JournalError as exc:
            self._findings.note_damaged(copy.name)
            self._put_off(copy, f"the private copy was damaged: {exc}", expendable=True)
            return
        self._apply(copy, aim)

    def _apply(self, copy: Copy, aim: AimFile) -> None:
        try:
            if isinstance(copy.name, JournalName):
                apply_journal(self._store, aim, self.history, self.marks)
                self.applied_files += 1
            else:
                self._apply_sync(copy, aim)
        except HistoryGap as exc:
            assert isinstance(copy.name, JournalName)
            self._gap = (copy.name.number, str(exc))
            log.warning("%s: %s", self._store.path, exc)
            return
        except HistoryBroken as exc:
            self._findings.halt(exc, self._store.work / copy.name.sealed)
            self.work.forget(copy)
            return
        except UnfitFile as exc:
            self._put_off(copy, str(exc))
            return
        self.work.drop(copy)
        self.brake.forget(copy)
        self.progress_ns = self._clock()

    def _apply_sync(self, copy: Copy, aim: AimFile) -> None:
        mark = read_mark(aim)
        if turn(self._store.state, mark) is not Turn.NOW:
            self._findings.stale_count += 1
            return
        if mark.staged:
            assert isinstance(copy.name, SyncName)
            self.staged.take(copy.name, aim, mark)
            self.switch.start_over()
            self._drop_other_copies(mark.sync_id, done=False, but=copy)
        else:
            self.apply_first_copy(aim, mark)

    def _drop_other_copies(self, sync_id: int, *, done: bool, but: Copy | None = None) -> None:
        """Drop files of other copies than the one under way, and all of one that is *done*."""
        for name, other in list(self.work.sync.items()):
            if other is not but and (done or name.sync_id != sync_id):
                self.work.drop(other)
        self._drop_applied()

    def _drop_applied(self) -> None:
        """Drop files that the position, or the sync under way, has passed."""
        head, sync = self._store.state.head, self._store.state.under_way
        for name, one in list(self.work.sync.items()):
            if sync and name.sync_id == sync.sync_id and name.index < sync.next_index:
                self.work.drop(one)
        for number, copy in list(self.work.journal.items()):
            if head is None or number <= head.number:
                self.work.drop(copy)
                self.brake.forget(copy)

    def _put_off(self, copy: Copy, reason: str, *, expendable: bool = False) -> None:
        path = self._store.work / copy.name.sealed
        self._findings.set_aside(path, reason, expendable=expendable)
        self.work.forget(copy)
