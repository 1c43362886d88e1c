"""Take files in from a store's inbox: check each, keep a private copy, let the sender's go."""

from collections import deque
from functools import partial

from aimfuse.journal.names import JournalName, SyncName
from aimfuse.journal.reader import AimFile
from aimfuse.replay.ahead import ReadAhead
from aimfuse.replay.applier import Applier, RoundTime
from aimfuse.replay.chain import fork
from aimfuse.replay.findings import Findings
from aimfuse.replay.inbox import DamagedFile, Inbox, Later, check_name
from aimfuse.replay.order import REPLAYING
from aimfuse.replay.promotion import why_refused
from aimfuse.replay.state import Head, Phase, UnfitFile
from aimfuse.replay.store import Store
from aimfuse.replay.sync import SyncMark, Turn, read_mark, turn
from aimfuse.replay.work import Copy

AnyName = JournalName | SyncName
Ahead = ReadAhead[AnyName, AimFile | Later]


class Intake:
    """The way from the inbox of an open store into its ``work/``.

    `is_unfinished`: there is more to look at, though the inbox may not change. `files` is how
    many files of ours lie there, at most.
    """

    def __init__(
        self,
        store: Store,
        inbox: Inbox,
        applier: Applier,
        findings: Findings,
        time_left: RoundTime,
        ahead: Ahead | None,
    ) -> None:
        self.is_unfinished = False
        self.files = 0
        self._store = store
        self._inbox = inbox
        self._applier = applier
        self._work = applier.work
        self._findings = findings
        self._time = time_left
        self._ahead = ahead
        self._sizes: dict[AnyName, int] = {}
        self._names: deque[AnyName] = deque()
        self._junk: list[str] = []
        self._more = False

    @property
    def size_bytes(self) -> int:
        """Return what the files take that were looked at and not taken in."""
        return sum(self._sizes.values())

    def changed(self) -> bool:
        """Tell whether looking into the inbox may bring anything new; costs one look."""
        return self._inbox.changed()

    def empty(self) -> bool:
        """Take in, and apply, what is here and can be used, while the round lasts.

        Raises:
            OSError: the disk failed. Call `start_over` then.
        """
        if not self._names and not self._junk:
            self._list()
        progress = False
        while self._names and not (progress and self._time.is_over()) and not self._is_halted():
            name = self._names.popleft()
            if self._take(name):
                progress = True
                self._sizes.pop(name, None)
                self.files -= 1
        while self._junk and not (progress and self._time.is_over()):
            path = self._store.inbox / self._junk.pop()
            progress = self._findings.set_aside(path, "not the name of an AIM file") or progress
        self.is_unfinished = bool(self._names or self._junk) or (self._more and progress)
        return progress

    def start_over(self) -> None:
        """List the inbox anew the next time: the file that failed comes first again."""
        self._names.clear()
        self._junk.clear()

    def _is_halted(self) -> bool:
        return bool(self._findings.halted)

    def _list(self) -> None:
        """Note what to look at next; a long listing is used up before the next one."""
        listing = self._inbox.list()
        self._names = deque([*listing.sync, *listing.journal])
        self._junk, self._more = listing.junk, listing.more
        self._sizes = {name: self._inbox.size(name) for name in self._names}
        self.files = listing.files
        self._time.begin()  # However long listing took.

    def _look_ahead(self, name: AnyName) -> None:
        """Have the file that will be applied after *name* read, if it is the next one here."""
        if self._ahead is None or not self._names or not isinstance(name, JournalName):
            return
        behind, head = self._names[0], self._store.state.head
        if self._store.state.phase not in REPLAYING or head is None:
            return
        if isinstance(behind, JournalName) and name.number == behind.number - 1 == head.number + 1:
            self._ahead.start(behind, partial(self._inbox.read, behind))

    def _take(self, name: AnyName) -> bool:
        promoted = self._store.state.promoted
        if promoted is not None:
            if isinstance(name, JournalName) and name.number <= promoted.fork.number:
                return self._discard(name)
            path = self._inbox.path(name)
            return self._findings.set_aside(path, why_refused(self._store), expendable=True)
        try:
            if isinstance(name, JournalName):
                return self._take_journal(name)
            return self._take_sync(name)
        except DamagedFile as exc:
            self._findings.note_damaged(name)
            return self._findings.set_aside(self._inbox.path(name), str(exc), expendable=True)
        except UnfitFile as exc:
            return self._findings.set_aside(self._inbox.path(name), str(exc))

    def _take_journal(self, name: JournalName) -> bool:
        head = self._store.state.head
        if head is None:
            return False  # It may be right, once a first sync says so.
        if name.number < head.number:
            return self._discard(name)
        known = self._work.journal.get(name.number)
        if known is None and name.number > head.number + 1 and not self._has_room(name.number):
            return False
        aim = self._read(name)
        self._look_ahead(name)
        return aim is not None and self._accept(name, aim, head, known)

    def _has_room(self, number: int) -> bool:
        """Tell whether a file that cannot be applied yet is taken in: always for a switch.

        Files that wait on purpose may fill the disk, but for what has to stay free.
        """
        staging = self._store.state.staging
        is_wanted = staging is not None and staging.progress.done
        if is_wanted or self._work.has_room():
            return True
        brake, head = self._applier.brake, self._store.state.head
        is_next = head is not None and number == self._work.received(head.number) + 1
        return is_next and brake.is_on and brake.has_room()

    def _accept(self, name: JournalName, aim: AimFile, head: Head, known: Copy | None) -> bool:
        """Take in a sound journal file, unless its number is taken: by itself, or by a fork."""
        digest = head.digest if name.number == head.number else known and known.digest
        if digest == aim.seal.digest:
            return self._discard(name)
        if digest is not None and self._store.state.phase is Phase.SWITCHING:
            return False  # Halting must not leave a mixture: the switch is finished first.
        if digest is not None:
            broken = fork(aim, "another one under its number is here")
            self._findings.halt(broken, self._inbox.path(name))
            return True
        self._receive(name, aim)
        self._applier.apply_new(self._work.journal[name.number], aim)
        return True

    def _take_sync(self, name: SyncName) -> bool:
        sync = self._store.state.under_way
        if sync and sync.sync_id == name.sync_id and name.index < sync.next_index:
            self._findings.stale_count += 1
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
        when = turn(self._store.state, mark)
        if when is Turn.NEVER:
            self._findings.stale_count += 1
            return self._discard(name)
        self._accept_sync(name, aim, mark, when)
        return True

    def _accept_sync(self, name: SyncName, aim: AimFile, mark: SyncMark, when: Turn) -> None:
        """Take in a sound SYNC file: that of a first copy at once, without a private copy.

        The inbox has it until it is applied and durable, and there is no mirror yet that half
        of it could spoil.
        """
        is_first = when is Turn.NOW and not mark.staged
        if is_first and self._applier.brake.lets_first_copy():
            self._applier.apply_first_copy(aim, mark)
            self._findings.note_sound(name)
            self._discard(name)
            self._applier.drain()
        else:
            self._receive(name, aim)
            self._applier.apply_new(self._work.sync[name], aim)

    def _read(self, name: AnyName) -> AimFile | None:
        """Read a file from the inbox if it is there, whole, and one of this store's."""
        read = partial(self._inbox.read, name)
        aim = self._ahead.take(name, read) if self._ahead else read()
        if isinstance(aim, Later):
            return None
        identity, group = aim.identity, self._store.state.group
        check_name(name, identity)
        if group is not None and identity.group != group:
            problem = f"foreign: it is of group {identity.group.hex()}, not of this store's"
            self._findings.give_notice(f"{name.sealed}: {problem}")
            raise UnfitFile(problem)
        return aim

    def _receive(self, name: AnyName, aim: AimFile) -> None:
        self._work.add(name, aim)
        self._findings.note_sound(name)
        if isinstance(name, JournalName):
            self._applier.brake.note(self._work.journal[name.number])
        self._discard(name)

    def _discard(self, name: AnyName) -> bool:
        """Remove a file from the inbox that is here already or of no use."""
        path = self._inbox.path(name)
        entry = self._store.look.entry(path)
        if entry is None:
            return True
        if not entry.is_file:
            return self._findings.set_aside(path, f"a {entry.kind} and no file")
        self._store.disk.unlink("inbox:unlink", path)
        return True
