"""One store at work: take files in, apply what is next, report. Synchronous; see replayer.

Private copies come before anything new: what a crash or a failed disk interrupted is redone
from them first. A disk error changes no position; the round fails and is repeated later. A
broken history halts the store durably; a fault of ours halts it until the next start.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import JournalError, StateLost, StoreError
from aimfuse.journal.names import JournalName, SyncName, parse
from aimfuse.journal.reader import AimFile
from aimfuse.replay.ack import LIST_MAX, AckFile
from aimfuse.replay.ahead import ReadAhead
from aimfuse.replay.apply import apply_journal
from aimfuse.replay.chain import fork
from aimfuse.replay.doubt import held_back
from aimfuse.replay.forward import Forward
from aimfuse.replay.history import History
from aimfuse.replay.inbox import DamagedFile, Inbox, Later, check_name
from aimfuse.replay.look import Look
from aimfuse.replay.order import REPLAYING, is_needless, next_copy
from aimfuse.replay.quarantine import Quarantine
from aimfuse.replay.report import is_needed, report_sync
from aimfuse.replay.staging import StagedFiles
from aimfuse.replay.state import (
    Head,
    HistoryBroken,
    HistoryGap,
    Json,
    Phase,
    UnfitFile,
)
from aimfuse.replay.store import Store
from aimfuse.replay.switch import DamagedCopy, Switch
from aimfuse.replay.sync import Turn, apply_sync, read_mark, turn
from aimfuse.replay.work import Copy, Work
from aimfuse.units import SECOND_NS

log = logging.getLogger(__name__)

NOTICE_NS = 300 * SECOND_NS
ROUND_S = 0.1
"""A round ends after the file during which this much time has passed."""

AnyName = JournalName | SyncName


class Session:
    """A store between its opening and its closing; all methods on one thread at a time."""

    def __init__(
        self,
        disk: Disk,
        path: Path,
        look: Look | None = None,
        clock: Callable[[], int] = time.time_ns,
        *,
        read_ahead: bool = False,
    ) -> None:
        """Name the store; nothing is touched before the first round. *clock*: Unix ns.

        With *read_ahead* the next file is read and checked on a second thread.
        """
        self.store = Store(disk, path, look)
        self.failures = 0
        self.error = ""
        self.halted = ""
        self.is_gone = False
        self.stale_count = 0
        self._clock = clock
        self._ahead: ReadAhead[AnyName, AimFile | Later] | None = (
            ReadAhead() if read_ahead else None
        )
        self._ready = False
        self._again = True
        self._notice = ("", 0)
        self._gap: tuple[int, str] | None = None
        self._progress_ns = clock()
        self._damaged: dict[str, None] = {}
        self._inbox_sizes: dict[AnyName, int] = {}
        self._inbox_files = 0
        self._names: deque[AnyName] = deque()
        self._junk: list[str] = []
        self._more = False
        self._round_ends_s = 0.0

    def round(self) -> bool:
        """Do a bounded piece of work; return whether anything got further.

        Never raises for what the disk or a sender did: `error` and `failures` say it, and
        the next round tries again. Once `is_gone` is set there is nothing to do but to close:
        the path leads elsewhere, and what lies there now is not this session's.
        """
        progress = False
        self._round_ends_s = time.monotonic() + ROUND_S
        try:
            self._look_whether_gone()
            if not self.halted and not self.is_gone:
                progress = self._round()
        except (OSError, MemoryError) as exc:
            self._fail(exc)
        except (StoreError, StateLost) as exc:
            self._stop(f"{exc} {exc.hint}".rstrip())
        except Exception as exc:
            log.exception("%s: stopped by a fault of aimfuse", self.store.path)
            self._stop(f"stopped by a fault of aimfuse: {exc!r}")
        else:
            if not self.is_gone:
                self.error, self.failures = "", 0
        self._offer_ack()
        return progress

    def close(self) -> None:
        """Write what the last ack left out, and let the store go."""
        if self._ahead:
            self._ahead.drop()
        self._offer_ack(force=True)
        self.store.close()

    def _look_whether_gone(self) -> None:
        if not self.is_gone and not self.store.is_here():
            self.is_gone = True
            self.error = "moved away or replaced while it was replayed"
            log.warning("%s: %s; let go", self.store.path, self.error)

    def _offer_ack(self, *, force: bool = False) -> None:
        with contextlib.suppress(OSError):  # Then the ack cannot be written either.
            self._look_whether_gone()
            if self._ready and not self.is_gone:
                self._ack.offer(self._ack_key(), self._report, force=force)

    # The round.

    def _round(self) -> bool:
        if not self._ready:
            self._open()
        if self.store.state.phase is Phase.HALTED:
            self.halted = self.store.state.reason
            return False
        self._history.prune(urgent=self.failures > 0)
        progress = self._drain()
        if self._again or self._inbox.changed():
            progress = self._empty_inbox() or progress
        self._forward.note()
        return progress

    def _open(self) -> None:
        self.store.open()
        self._quarantine = Quarantine(self.store)
        self._inbox = Inbox(self.store, self._clock)
        self._staged = StagedFiles(self.store)
        self._work = Work(self.store)
        self._switch = Switch(self.store, self._work, self._staged)
        self._forward = Forward(self.store)
        self._history = History(self.store, self._clock)
        self._gap = held_back(self.store.state)
        self._drop_applied()
        self._ack = AckFile(self.store, self._clock)
        remembered = self._ack.last.get("damaged")
        names = [*self._work.lost, *(remembered if isinstance(remembered, list) else [])]
        self._damaged = {n: None for n in names if isinstance(n, str) and parse(n) is not None}
        self._ready = True

    def _empty_inbox(self) -> bool:
        if not self._names and not self._junk:
            self._list_inbox()
        progress = False
        while self._names and not (progress and self._is_over()) and not self.halted:
            name = self._names.popleft()
            if self._take(name):
                progress = True
                self._inbox_sizes.pop(name, None)
                self._inbox_files -= 1
        while self._junk and not (progress and self._is_over()):
            path = self.store.inbox / self._junk.pop()
            progress = self._set_aside(path, "not the name of an AIM file") or progress
        self._again = bool(self._names or self._junk) or (self._more and progress)
        return progress

    def _list_inbox(self) -> None:
        """Note what to look at next; a long listing is used up before the next one."""
        listing = self._inbox.list()
        self._names = deque([*listing.sync, *listing.journal])
        self._junk, self._more = listing.junk, listing.more
        self._inbox_sizes = {name: self._inbox.size(name) for name in self._names}
        self._inbox_files = listing.files
        self._round_ends_s = time.monotonic() + ROUND_S  # However long listing took.

    def _look_ahead(self, name: AnyName) -> None:
        """Have the file that will be applied after *name* read, if it is the next one here."""
        if self._ahead is None or not self._names or not isinstance(name, JournalName):
            return
        behind, head = self._names[0], self.store.state.head
        if self.store.state.phase not in REPLAYING or head is None:
            return
        if isinstance(behind, JournalName) and name.number == behind.number - 1 == head.number + 1:
            self._ahead.start(behind, partial(self._inbox.read, behind))

    def _take(self, name: AnyName) -> bool:
        try:
            if isinstance(name, JournalName):
                return self._take_journal(name)
            return self._take_sync(name)
        except DamagedFile as exc:
            self._note_damaged(name)
            return self._set_aside(self._inbox.path(name), str(exc), expendable=True)
        except UnfitFile as exc:
            return self._set_aside(self._inbox.path(name), str(exc))

    def _take_journal(self, name: JournalName) -> bool:
        head = self.store.state.head
        if head is None:
            return False  # It may be right, once a first sync says so.
        if name.number < head.number:
            return self._discard(name)
        known = self._work.journal.get(name.number)
        if known is None and name.number > head.number + 1 and not self._has_room():
            return False
        aim = self._read(name)
        self._look_ahead(name)
        return aim is not None and self._accept(name, aim, head, known)

    def _has_room(self) -> bool:
        """Tell whether a file that cannot be applied yet is taken in: always for a switch."""
        staging = self.store.state.staging
        is_wanted = staging is not None and staging.progress.done
        return is_wanted or self._work.has_room()

    def _accept(self, name: JournalName, aim: AimFile, head: Head, known: Copy | None) -> bool:
        """Take in a sound journal file, unless its number is taken: by itself, or by a fork."""
        digest = head.digest if name.number == head.number else known and known.digest
        if digest == aim.seal.digest:
            return self._discard(name)
        if digest is not None:
            self._halt(fork(aim, "another one under its number is here"), self._inbox.path(name))
            return True
        self._receive(name, aim)
        copy = self._work.journal[name.number]
        if self._next_copy() is copy:
            self._apply(copy, aim)
        self._drain()
        return True

    def _take_sync(self, name: SyncName) -> bool:
        sync = self.store.state.under_way
        if sync and sync.sync_id == name.sync_id and name.index < sync.next_index:
            self.stale_count += 1
            return self._discard(name)
        if name in self._work.sync:
            return self._discard(name)
        is_next = name.index == (sync.next_index if sync else 0)
        if not is_next and name.index > 0 and not self._work.has_room():
            return False
        aim = self._read(name)
        if aim is None:
            return False
        mark = read_mark(aim)
        if turn(self.store.state, mark) is Turn.NEVER:
            self.stale_count += 1
            return self._discard(name)
        self._receive(name, aim)
        self._drain()
        return True

    def _read(self, name: AnyName) -> AimFile | None:
        """Read a file from the inbox if it is there, whole, and one of this store's."""
        read = partial(self._inbox.read, name)
        aim = self._ahead.take(name, read) if self._ahead else read()
        if isinstance(aim, Later):
            return None
        identity, group = aim.identity, self.store.state.group
        check_name(name, identity)
        if group is not None and identity.group != group:
            problem = f"foreign: it is of group {identity.group.hex()}, not of this store's"
            self._notice = (f"{name.sealed}: {problem}", self._clock())
            raise UnfitFile(problem)
        return aim

    def _receive(self, name: AnyName, aim: AimFile) -> None:
        self._work.add(name, aim)
        self._damaged.pop(name.sealed, None)
        self._discard(name)

    def _discard(self, name: AnyName) -> bool:
        """Remove a file from the inbox that is here already or of no use."""
        path = self._inbox.path(name)
        entry = self.store.look.entry(path)
        if entry is None:
            return True
        if not entry.is_file:
            return self._set_aside(path, f"a {entry.kind} and no file")
        self.store.disk.unlink("inbox:unlink", path)
        return True

    # Applying.

    def _drain(self) -> bool:
        """Apply private copies while the next one is there and the round lasts."""
        progress = False
        while not self.halted:
            if self._switch.is_due():
                self._do_switch()
            elif (copy := self._next_copy()) is not None:
                self._redo(copy)
            else:
                break
            progress = True
            if self._is_over():
                self._again = True
                break
        return progress

    def _do_switch(self) -> None:
        """Take one step of the switch, and deal with what it finds."""
        self._forward.note()  # The next hop hears of a mixture before there is one.
        try:
            self._switch.step()
        except DamagedCopy as exc:
            self._note_damaged(exc.copy.name)
            reason = f"the private copy was damaged: {exc}"
            self._put_off(exc.copy, reason, expendable=True)
            self._switch.start_over()
        except HistoryGap:  # The image was taken as it is meanwhile: the copy is of no use.
            self._staged.drop()
        except HistoryBroken as exc:
            self._halt(exc, None)
        else:
            self._progress_ns = self._clock()
            if self.store.state.staging is None:  # It is in: what held the journal back is over.
                self._gap = held_back(self.store.state)
            self._drop_applied()

    def _next_copy(self) -> Copy | None:
        held = self._gap[0] if self._gap else None
        if is_needless(self.store.state, self._work, held):
            self._staged.drop()
        return next_copy(self.store.state, self._work, held)

    def _redo(self, copy: Copy) -> None:
        try:
            aim = self._work.read(copy)
        except JournalError as exc:
            self._note_damaged(copy.name)
            self._put_off(copy, f"the private copy was damaged: {exc}", expendable=True)
            return
        self._apply(copy, aim)

    def _apply(self, copy: Copy, aim: AimFile) -> None:
        try:
            if isinstance(copy.name, JournalName):
                apply_journal(self.store, aim, self._history)
            else:
                self._apply_sync(copy, aim)
        except HistoryGap as exc:
            assert isinstance(copy.name, JournalName)
            self._gap = (copy.name.number, str(exc))
            log.warning("%s: %s", self.store.path, exc)
            return
        except HistoryBroken as exc:
            self._halt(exc, self.store.work / copy.name.sealed)
            self._work.forget(copy)
            return
        except UnfitFile as exc:
            self._put_off(copy, str(exc))
            return
        self._work.drop(copy)
        self._progress_ns = self._clock()

    def _apply_sync(self, copy: Copy, aim: AimFile) -> None:
        mark = read_mark(aim)
        if turn(self.store.state, mark) is not Turn.NOW:
            self.stale_count += 1
            return
        if mark.staged:
            assert isinstance(copy.name, SyncName)
            self._staged.take(copy.name, aim, mark)
            self._switch.start_over()
            done = False
        else:
            apply_sync(self.store, aim, mark)
            done = self.store.state.phase is not Phase.SYNCING
        for other in list(self._work.sync.values()):
            assert isinstance(other.name, SyncName)
            if other is not copy and (done or other.name.sync_id != mark.sync_id):
                self._work.drop(other)
        self._drop_applied()

    def _drop_applied(self) -> None:
        """Drop files that the position, or the sync under way, has passed."""
        head, sync = self.store.state.head, self.store.state.under_way
        for name, one in list(self._work.sync.items()):
            if sync and name.sync_id == sync.sync_id and name.index < sync.next_index:
                self._work.drop(one)
        for number, copy in list(self._work.journal.items()):
            if head is None or number <= head.number:
                self._work.drop(copy)

    def _put_off(self, copy: Copy, reason: str, *, expendable: bool = False) -> None:
        self._set_aside(self.store.work / copy.name.sealed, reason, expendable=expendable)
        self._work.forget(copy)

    # Refusing and failing.

    def _set_aside(self, path: Path, reason: str, *, expendable: bool = False) -> bool:
        shown = self.store.shown(reason)
        return self._quarantine.set_aside(path, shown, self._clock(), expendable=expendable)

    def _note_damaged(self, name: AnyName) -> None:
        if len(self._damaged) < LIST_MAX:
            self._damaged[name.sealed] = None

    def _halt(self, exc: HistoryBroken, path: Path | None) -> None:
        """Stop for good: the reason becomes durable before the file is set aside."""
        reason = self.store.shown(str(exc))
        self.store.save(replace(self.store.state, phase=Phase.HALTED, reason=reason))
        self._stop(reason)
        if path is not None:
            self._set_aside(path, reason)

    def _stop(self, reason: str) -> None:
        self.halted = self.store.shown(reason)
        log.error("%s halted: %s", self.store.path, self.halted)

    def _fail(self, exc: Exception) -> None:
        text = self.store.shown(f"{type(exc).__name__}: {exc}")
        if text != self.error:
            log.warning("%s: %s; it will be tried again", self.store.path, text)
        self.error = text
        self.failures += 1
        self._again = True
        if self._ahead:
            self._ahead.drop()
        self._names.clear()  # The one that failed comes first again.
        self._junk.clear()

    def _is_over(self) -> bool:
        return time.monotonic() >= self._round_ends_s

    # Reporting.

    def _ack_key(self) -> object:
        """Return something that differs whenever the ack would say something else."""
        state = self.store.state
        damaged = tuple(self._damaged)
        return (state, self._work.files, self._inbox_files, self._quarantine.count,
                self._shown_error(), damaged, self.stale_count,
                str(self._switch.progress()))  # fmt: skip

    def _shown_error(self) -> str | None:
        text, since_ns = self._notice
        recent = 0 <= self._clock() - since_ns < NOTICE_NS
        problem = (text if recent else "") or (self._history.problem if self._ready else "")
        return self.halted or self.error or problem or self._needs_sync()

    def _needs_sync(self) -> str | None:
        """Return why the mirror cannot go on without a new copy, if that is so."""
        head = self.store.state.head
        behind = self._gap and head is not None and self._gap[0] == head.number + 1
        return self._gap[1] if self._gap and behind else None

    def _report(self) -> Json:
        state, head = self.store.state, self.store.state.head
        after = head.number if head else 0
        phase = Phase.HALTED if self.halted else state.phase
        behind = max(after, state.staging.progress.origin.number) if state.staging else after
        ahead = [n for n in self._damaged if is_needed(n, after)][:LIST_MAX]
        self._damaged = dict.fromkeys(ahead)
        return {
            "group": state.group.hex() if state.group else None,
            "time_ns": self._clock(),
            "phase": phase.value,
            "applied": head.to_json() if head else None,
            "received": {"number": self._work.received(after)},
            "missing": self._work.missing(behind, LIST_MAX),
            "damaged": ahead,
            "sync": report_sync(state, self._work, self._switch),
            "needs_sync": self._needs_sync(),
            "queue": {
                "files": self._work.files + max(0, self._inbox_files),
                "bytes": self._work.size_bytes + sum(self._inbox_sizes.values()),
            },
            "oldest_waiting_ns": self._work.oldest_ns(),
            "mirror_time_ns": head.time_ns if head else 0,
            "progress_ns": self._progress_ns,
            "free_bytes": self.store.disk.free_bytes(self.store.home),
            "error": self._shown_error(),
            "quarantined": self._quarantine.count,
            "stale": self.stale_count,
        }  # fmt: skip
